//! Whether a shard is in a turn, and since when: what the time that replicas are told must not pass.
//!
//! Everything a turn executes is executed at the time of its beginning, and what it will write nobody knows. So the shard
//! says that it begins, then reads the clock, then says what it read; and that it rests before it waits. The thread
//! raises the time that clocks are not to be behind ([`ReplicationState::word_us`]), then looks at the marks. Either it
//! sees the beginning, or the shard sees that time when it reads the clock: the two fences see to it, and `tests/model`
//! tries every order.
//!
//! [`ReplicationState::word_us`]: store::replication::ReplicationState::word_us

use crate::io::sync::{AtomicU64, Ordering, fence};

const RESTS: u64 = 0;
const BEGINS: u64 = 1;

/// One shard's.
#[derive(Debug)]
pub struct TurnMark(AtomicU64);

impl Default for TurnMark {
    fn default() -> Self {
        Self::new()
    }
}

/// What a mark says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// None runs: the next one's time is no earlier than what clocks were told before this was seen.
    None,
    /// One is about to read the clock, or has.
    Begins,
    /// One runs, or did a moment ago, that began at this time.
    Since(u64),
}

impl TurnMark {
    /// Of a shard that rests.
    pub fn new() -> TurnMark {
        TurnMark(AtomicU64::new(RESTS))
    }

    /// A turn begins: before its clock is read.
    #[inline]
    pub fn begin(&self) {
        self.0.store(BEGINS, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// This is its time.
    #[inline]
    pub fn since(&self, unix_us: u64) {
        self.0.store(unix_us.max(BEGINS + 1), Ordering::Release);
    }

    /// Nothing is executed before the next beginning. What was is numbered, for whoever sees this.
    #[inline]
    pub fn rest(&self) {
        self.0.store(RESTS, Ordering::Release);
    }

    /// What it says.
    pub fn look(&self) -> Turn {
        match self.0.load(Ordering::Acquire) {
            RESTS => Turn::None,
            BEGINS => Turn::Begins,
            unix_us => Turn::Since(unix_us),
        }
    }
}

/// The earliest time that a turn which runs may have: `u64::MAX` where none does. To be asked after clocks were told, and
/// before the last LSN is. None: a turn begins just now, and its time is not known.
pub fn earliest<'m>(marks: impl Iterator<Item = &'m TurnMark>) -> Option<u64> {
    fence(Ordering::SeqCst);
    let mut earliest = u64::MAX;
    for mark in marks {
        match mark.look() {
            Turn::None => {}
            Turn::Begins => return None,
            Turn::Since(unix_us) => earliest = earliest.min(unix_us),
        }
    }
    Some(earliest)
}
