//! Where the threads of one generator wait for each other: all connect and fill first, and then begin at the same moment
//! of the clock they share. When one of them fails, the others end.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// The last to arrive names a moment that far ahead, so that all know of it when it comes.
const AHEAD_NS: u64 = 2_000_000;
/// A thread that waits looks as often.
pub const LOOK_EVERY_NS: u64 = 100_000;

/// See the module.
#[derive(Debug)]
pub struct Gate {
    threads: usize,
    arrived: AtomicUsize,
    /// When the load begins; 0: not all are here.
    begins_at: AtomicU64,
    /// How long the warm-up lasts, where one thread has made it longer.
    warmup_ns: AtomicU64,
    over: AtomicBool,
}

impl Gate {
    /// For that many threads.
    pub fn new(threads: usize) -> Gate {
        Gate {
            threads,
            arrived: AtomicUsize::new(0),
            begins_at: AtomicU64::new(0),
            warmup_ns: AtomicU64::new(0),
            over: AtomicBool::new(false),
        }
    }

    /// A thread is ready to begin; each says so once.
    pub fn arrive(&self, now: u64) {
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.threads {
            self.begins_at.store(now + AHEAD_NS, Ordering::Release);
        }
    }

    /// The moment at which all begin, once it has come.
    pub fn opened(&self, now: u64) -> Option<u64> {
        let begins_at = self.begins_at.load(Ordering::Acquire);
        (begins_at > 0 && now >= begins_at).then_some(begins_at)
    }

    /// The thread that decides on it makes the warm-up so long, well before it would end.
    pub fn lengthen_warmup(&self, ns: u64) {
        self.warmup_ns.store(ns, Ordering::Release);
    }

    /// How long it has been made; 0: it was not.
    pub fn warmup_ns(&self) -> u64 {
        self.warmup_ns.load(Ordering::Acquire)
    }

    /// A thread has ended before its time.
    pub fn give_up(&self) {
        self.over.store(true, Ordering::Release);
    }

    /// Another thread has.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_for_all_at_one_moment_and_not_before_the_last_is_there() {
        let gate = Gate::new(2);
        gate.arrive(5);
        assert_eq!(gate.opened(u64::MAX), None);
        gate.arrive(1_000);
        assert_eq!(gate.opened(1_000 + AHEAD_NS - 1), None);
        assert_eq!(gate.opened(1_000 + AHEAD_NS), Some(1_000 + AHEAD_NS));
        assert_eq!(gate.opened(u64::MAX), Some(1_000 + AHEAD_NS));
        assert!(!gate.is_over());
        gate.give_up();
        assert!(gate.is_over());
    }
}
