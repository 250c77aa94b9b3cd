//! `loadgen calibrate`: what is reported against what was done. A program of its own, so that no other test runs beside
//! it: two threads spin here, one of which is the truth.
//!
//! What the machine does to the figures can only add to them. So that no figure is below the truth, and the claims about the two
//! loops, must hold whatever else runs. By how much figures are above the truth is a figure of the machine too: `loadgen
//! calibrate` itself judges it against 20 µs, and no test does.

mod harness;
#[path = "../../tests/src/runner.rs"]
#[allow(dead_code, unused_imports, reason = "its own tests are run where it lives")]
mod runner;
mod schema;

use harness::{Ran, run, scratch};
use runner::{Skipped, Test};
use serde_json::Value;
use std::process::ExitCode;

const TESTS: [Test; 5] = [
    ("a_stall_shows_in_the_open_loops_p99_and_not_in_the_closed_ones", contrast),
    ("a_stopped_server_shows_in_full", stopped),
    ("no_reported_percentile_is_below_the_injected_truth", truth),
    ("a_calibration_is_replayed_and_laid_beside_the_old_one", replayed),
    ("cases_that_do_not_exist_are_wrong_usage", usage),
];

fn main() -> ExitCode {
    runner::main(&TESTS)
}

fn calibrate(name: &str, only: &str, attempts: &str) -> (Ran, Value) {
    let folder = scratch(name);
    let json = folder.join("calibration.json");
    let path = json.to_str().expect("a text path");
    let ran = run(&["calibrate", "--only", only, "--attempts", attempts, "--json", path]);
    let text = std::fs::read(&json).unwrap_or_else(|_| panic!("no report: {}{}", ran.stdout, ran.stderr));
    let report: Value = serde_json::from_slice(&text).expect("valid JSON");
    schema::keeps_to("calibration", &report);
    let _ = std::fs::remove_dir_all(folder);
    (ran, report)
}

fn rows(case: &Value) -> &Vec<Value> {
    case["rows"].as_array().expect("rows")
}

/// Nothing that a machine does makes a figure smaller than the truth.
fn nothing_is_too_low(report: &Value, ran: &Ran) {
    for row in report["cases"].as_array().expect("cases").iter().flat_map(rows) {
        assert_ne!(row["agreement"], "too_low", "time was not counted: {row}\n{}", ran.stdout);
    }
}

/// Claims hold on any machine.
fn claims_hold(report: &Value, ran: &Ran) {
    let claims = report["cases"][0]["claims"].as_array().expect("claims");
    assert_eq!(claims.len(), 3, "{report}");
    assert!(claims.iter().all(|claim| claim[1] == true), "{}", ran.stdout);
}

fn contrast() -> Result<(), Skipped> {
    let (ran, report) = calibrate("contrast", "stalls for 100 ms", "2");
    claims_hold(&report, &ran);
    nothing_is_too_low(&report, &ran);
    assert!(ran.stdout.contains("the open loop's p99"), "{}", ran.stdout);
    assert_eq!(rows(&report["cases"][0]).len(), 3);
    Ok(())
}

fn stopped() -> Result<(), Skipped> {
    let (ran, report) = calibrate("stopped", "is stopped for 500 ms", "1");
    claims_hold(&report, &ran);
    assert_eq!(ran.code, Some(0), "{}", ran.stdout);
    Ok(())
}

fn truth() -> Result<(), Skipped> {
    for (only, figures) in [("after 1 ms", 9), ("after 50", 6), ("every 5 ms", 3)] {
        let (ran, report) = calibrate("truth", only, "1");
        nothing_is_too_low(&report, &ran);
        let case = &report["cases"][0];
        assert_eq!(rows(case).len(), figures, "{report}");
        if only == "after 1 ms" {
            // The delay itself is what was asked for, whatever came on top.
            assert!(rows(case)[0]["truth_ns"].as_u64() >= Some(1_000_000), "{report}");
        }
    }
    Ok(())
}

fn replayed() -> Result<(), Skipped> {
    let folder = scratch("calibrate-replay");
    let path = |name: &str| folder.join(name).to_str().expect("text").to_string();
    run(&["calibrate", "--only", "after 50", "--attempts", "1", "--json", &path("old.json")]);
    let ran = run(&["replay", &path("old.json"), "--results", &path("new")]);
    assert_ne!(ran.code, Some(2), "{}", ran.stderr);
    let (_, table) = ran.stdout.split_once("  A: ").unwrap_or_else(|| panic!("{}", ran.stderr));
    for expected in ["answers after 50 µs, closed loop, service time p99", "truth µs", "reported µs", "B / A"]
    {
        assert!(table.contains(expected), "{expected} in {table}");
    }
    let _ = std::fs::remove_dir_all(folder);
    Ok(())
}

fn usage() -> Result<(), Skipped> {
    assert_eq!(run(&["calibrate", "--only", "no such case"]).code, Some(2));
    Ok(())
}
