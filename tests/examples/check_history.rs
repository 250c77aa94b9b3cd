//! Judges recorded histories again: `cargo run --profile ci -p tests --example check_history FILE...`.
//!
//! Tests of linearizability write the histories that they find wrong to files and say where. Exit codes: 0 there is an
//! order that explains each, 1 there is none, 2 wrong usage, or no history.

use std::process::ExitCode;
use std::time::Instant;
use tests::linearizability::checker::Outcome;
use tests::linearizability::file::Recorded;

fn main() -> ExitCode {
    let paths: Vec<String> = std::env::args().skip(1).collect();
    if paths.is_empty() || paths.iter().any(|path| path.starts_with('-')) {
        eprintln!(
            "usage: check_history FILE...\nA file is one that a test of linearizability named when it failed."
        );
        return ExitCode::from(2);
    }
    let mut worst = ExitCode::SUCCESS;
    for path in paths {
        let text = std::fs::read_to_string(&path).map_err(|error| error.to_string());
        let recorded = match text.and_then(|text| Recorded::from_text(&text)) {
            Ok(recorded) => recorded,
            Err(error) => {
                eprintln!("{path}: {error}");
                return ExitCode::from(2);
            }
        };
        let (operations, unknown) = recorded.counts();
        let begun = Instant::now();
        let report = recorded.check();
        let took = begun.elapsed().as_secs_f64();
        print!("{path}: {operations} operations, {unknown} of unknown outcome, judged in {took:.2} s: ");
        match report.outcome {
            Outcome::Linearizable => println!("an order explains every reply"),
            Outcome::Violation(violation) => {
                println!("NO ORDER EXPLAINS IT\n{violation}");
                worst = ExitCode::FAILURE;
            }
            Outcome::Undecided => {
                println!("not decided within {} configurations", report.configurations);
                worst = ExitCode::FAILURE;
            }
        }
    }
    worst
}
