//! The simulator for hours: `cargo run --profile ci -p tests --example simulate -- --seconds 3600`.
//!
//! Runs random seeds on every core, and ends with the first that fails: its number replays the run exactly, in here with `--seed`
//! and `--runs 1`, and in the test with MILLRACE_SEED.

use clap::Parser;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tests::random;
use tests::simulator::Bug;
use tests::simulator::campaign::{campaign, try_run};

/// Simulates the whole server on a machine whose power is cut.
#[derive(Debug, Parser)]
struct Flags {
    /// How long.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// How many runs at most.
    #[arg(long, default_value_t = u64::MAX, hide_default_value = true)]
    runs: u64,
    /// The seed of the first run; the others follow from it.
    #[arg(long)]
    seed: Option<u64>,
    /// A mistake made on purpose: early, flush, checksum or evictions.
    #[arg(long, value_parser = parse_bug)]
    bug: Option<Bug>,
}

fn parse_bug(text: &str) -> Result<Bug, String> {
    match text {
        "early" => Ok(Bug::AcknowledgesEarly),
        "flush" => Ok(Bug::IgnoresFailedFlush),
        "checksum" => Ok(Bug::SkipsChecksum),
        "evictions" => Ok(Bug::LosesEvictions),
        _ => Err(String::from("expected early, flush, checksum or evictions")),
    }
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    let seed = flags.seed.unwrap_or_else(random::seed);
    println!("simulate: seed {seed}");
    let (begun, told) = (Instant::now(), Mutex::new(Instant::now()));
    let (tally, failure) = if flags.runs == 1 {
        match try_run(seed, flags.bug) {
            Ok(tally) => (tally, None),
            Err(failure) => (Default::default(), Some(failure)),
        }
    } else {
        campaign(seed, flags.bug, |tally| {
            if let Ok(mut told) = told.try_lock()
                && told.elapsed() > Duration::from_secs(60)
            {
                *told = Instant::now();
                println!("{} s: {tally}", begun.elapsed().as_secs());
            }
            begun.elapsed() < Duration::from_secs(flags.seconds) && tally.runs < flags.runs
        })
    };
    println!("{:.1} s: {tally}", begun.elapsed().as_secs_f64());
    match failure {
        None => ExitCode::SUCCESS,
        Some(failure) => {
            println!("seed {} failed: {}", failure.seed, failure.why);
            println!(
                "cargo run --profile ci -p tests --example simulate -- --runs 1 --seed {}",
                failure.seed
            );
            ExitCode::FAILURE
        }
    }
}
