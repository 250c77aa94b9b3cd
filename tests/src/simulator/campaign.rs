//! Many seeds, on all cores: how tests and the program `simulate` run the simulator.

use super::{Bug, Tally, run};
use crate::random::Random;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

/// A run that went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Which: it replays the run exactly.
    pub seed: u64,
    /// What was wrong.
    pub why: String,
}

/// One run; a panic of the server is a failure as well.
pub fn try_run(seed: u64, bug: Option<Bug>) -> Result<Tally, Failure> {
    let failed = |why| Failure { seed, why };
    match catch_unwind(AssertUnwindSafe(|| run(seed, bug))) {
        Ok(result) => result.map_err(failed),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
            Err(failed(format!("panicked: {}", text.unwrap_or_default())))
        }
    }
}

/// The seed of a run: that of the campaign's first run is the campaign's own, so one number replays either.
pub fn seed_of(campaign: u64, run: u64) -> u64 {
    match run {
        0 => campaign,
        _ => Random::new(campaign ^ run.wrapping_mul(0x9e37_79b9_7f4a_7c15)).next_u64(),
    }
}

/// Runs seeds on every core until `goes_on` says no, asked before each run with what the runs came to so far, or one fails.
pub fn campaign(
    seed: u64,
    bug: Option<Bug>,
    goes_on: impl Fn(&Tally) -> bool + Sync,
) -> (Tally, Option<Failure>) {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let (tally, failure) = (Mutex::new(Tally::default()), Mutex::new(None::<Failure>));
    let (next, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let lock = |tally: &Mutex<Tally>| *tally.lock().unwrap_or_else(PoisonError::into_inner);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) && goes_on(&lock(&tally)) {
                    match try_run(seed_of(seed, next.fetch_add(1, Ordering::Relaxed)), bug) {
                        Ok(one) => tally.lock().unwrap_or_else(PoisonError::into_inner).add(&one),
                        Err(one) => {
                            over.store(true, Ordering::Relaxed);
                            failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(one);
                        }
                    }
                }
            });
        }
    });
    let tally = lock(&tally);
    (tally, failure.into_inner().unwrap_or_else(PoisonError::into_inner))
}
