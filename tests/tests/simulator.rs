//! The whole server simulated, its power cut ten thousand times; and the proof that the simulator notices mistakes.
//!
//! A failing run prints its seed. `MILLRACE_SEED=… cargo test --profile ci -p tests --test simulator` replays it exactly, with
//! MILLRACE_TRACE=1 step by step; `--example simulate` runs for as long as one likes.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use tests::random;
use tests::simulator::campaign::{Failure, campaign, seed_of, try_run};
use tests::simulator::{Bug, Tally};

/// How often a server ends without being asked, in one test.
const CRASHES: u64 = 10_000;
/// A mistake made on purpose is found within so many runs.
const RUNS_UNTIL_FOUND: u64 = 2000;

/// One at a time: each takes all cores.
static ALONE: Mutex<()> = Mutex::new(());

fn fail(failure: &Failure) -> ! {
    panic!(
        "{}\n\nMILLRACE_SEED={} replays it, MILLRACE_TRACE=1 shows each step: cargo test --profile ci -p tests --test \
         simulator crashes -- --nocapture",
        failure.why, failure.seed
    );
}

#[test]
fn crashes_take_nothing_that_anybody_was_shown() {
    let _alone = ALONE.lock();
    if std::env::var_os("MILLRACE_SEED").is_some() {
        match try_run(random::seed(), None) {
            Ok(tally) => return println!("{tally}"),
            Err(failure) => fail(&failure),
        }
    }
    let seed = random::seed();
    println!("the first run's seed is {seed}; the others follow from it");
    let (tally, failure) = campaign(seed, None, |tally: &Tally| tally.crashes() < CRASHES);
    println!("{tally}");
    if let Some(failure) = failure {
        fail(&failure);
    }
    // Runs in which nothing happens prove nothing.
    assert!(tally.power_cuts > 3000 && tally.kills > 1000 && tally.cut_recoveries > 500, "{tally}");
    assert!(tally.stops > 500 && tally.quiet_ends > 1000, "{tally}");
    assert!(tally.failed_logs > 100 && tally.full_disks > 100 && tally.damage_refused > 50, "{tally}");
    assert!(
        tally.snapshots > 300 && tally.failed_snapshots > 300 && tally.starts_from_snapshots > 500,
        "{tally}"
    );
    assert!(tally.full_snapshots > 50 && tally.full_in_the_middle > 15, "{tally}");
    assert!(tally.evicted > 4000 && tally.full_memories > 2000, "{tally}");
    assert!(tally.emptied > 200 && tally.asked > 20, "{tally}");
    assert!(tally.pushes > 10_000 && tally.cached > 50_000, "{tally}");
    assert!(tally.lost_records > 1000 && tally.refused > 1000 && tally.replies > 100 * tally.runs, "{tally}");
}

#[test]
fn mistakes_made_on_purpose_are_found() {
    let _alone = ALONE.lock();
    let seed = random::seed();
    println!("the first run's seed is {seed}");
    for bug in Bug::ALL {
        let tried = AtomicU64::new(0);
        let (_, failure) =
            campaign(seed, Some(bug), |_| tried.fetch_add(1, Ordering::Relaxed) < RUNS_UNTIL_FOUND);
        let Some(failure) = failure else {
            panic!("{bug:?} was not found in {RUNS_UNTIL_FOUND} runs from seed {seed}");
        };
        println!("{bug:?} was found in run {}, seed {}: {}", tried.into_inner(), failure.seed, failure.why);
        // It was the mistake, and not the run.
        assert_eq!(try_run(failure.seed, None).err(), None, "{bug:?}, seed {}", failure.seed);
        assert_eq!(try_run(failure.seed, Some(bug)), Err(failure), "a seed replays its run");
    }
}

#[test]
fn a_seed_replays_its_run() {
    let _alone = ALONE.lock();
    let seed = random::seed();
    println!("the first run's seed is {seed}");
    for run in 0..20 {
        let seed = seed_of(seed, run);
        assert_eq!(try_run(seed, None), try_run(seed, None), "seed {seed}");
    }
}
