//! Servers change roles and histories, and no client is told a wrong thing of a record: many runs, each from a seed.
//!
//! `MILLRACE_SEED` replays one run, exactly; `MILLRACE_RUNS` says how many there are otherwise.

use tests::histories::{Mistake, Tally, run};
use tests::random;

const RUNS: u64 = 80;
/// A mistake made on purpose is found within so many.
const RUNS_UNTIL_FOUND: u64 = 1500;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number below 2^64")))
}

#[test]
fn what_is_said_of_a_record_is_true_in_every_history() {
    let runs = number("MILLRACE_RUNS").unwrap_or(if number("MILLRACE_SEED").is_some() { 1 } else { RUNS });
    let first = random::seed();
    println!("{runs} runs from MILLRACE_SEED={first} on");
    let mut total = Tally::default();
    for seed in (0..runs).map(|run| first.wrapping_add(run)) {
        match run(seed, None) {
            Ok(tally) => total.add(&tally),
            Err(why) => panic!("MILLRACE_SEED={seed}: {why}"),
        }
    }
    println!("{total:?}");
    if runs >= RUNS {
        // Runs in which nothing happens prove nothing.
        assert!(total.found > 40 * runs && total.lost > 40 * runs && total.behind > 20 * runs, "{total:?}");
        assert!(total.counted > 5 * runs && total.lost_waits > runs, "{total:?}");
        assert!(total.foreign_names > 3 * runs && total.promotions > 4 * runs, "{total:?}");
        assert!(total.installs > 3 * runs, "{total:?}");
    }
}

#[test]
fn mistakes_made_on_purpose_are_found() {
    let first = random::seed();
    println!("from MILLRACE_SEED={first} on");
    for mistake in Mistake::ALL {
        let seeds = (0..RUNS_UNTIL_FOUND).map(|run| first.wrapping_add(run));
        let found = seeds.clone().find_map(|seed| Some((seed, run(seed, Some(mistake)).err()?)));
        let (seed, why) = found.unwrap_or_else(|| panic!("{mistake:?} was not found from seed {first} on"));
        println!("{mistake:?} was found with seed {seed}: {why}");
        assert_eq!(run(seed, None).err(), None, "it was the mistake, and not the run");
        assert_eq!(run(seed, Some(mistake)).err(), Some(why), "a seed replays its run");
    }
}
