//! The only clock: one reading a turn, handed down as [`Now`].
//!
//! [`SystemClock::tick`] reads CLOCK_MONOTONIC, about 25 ns, and derives the wall clock from it with an
//! offset that is read again every millisecond. The two clocks are slewed alike, so between readings they
//! cannot drift apart; a step of the wall clock (`date -s`, a VM resumed) is followed within that millisecond
//! of running time. Monotonic times are CLOCK_MONOTONIC itself, so they compare across threads and may be
//! given to the kernel as absolute deadlines.

use crate::io::sys;
use std::sync::Arc;
use store::replication::ReplicationState;
use store::time::{Clock, Nanos, Now};

/// How long an offset between the two clocks is trusted.
const OFFSET_LIFETIME_NS: u64 = 1_000_000;

/// A clock that is read once a turn. The simulator has one of its own.
pub trait TurnClock: Clock {
    /// Reads the time.
    fn tick(&mut self) -> Now;
}

/// Reads the kernel's clocks.
#[derive(Debug)]
pub struct SystemClock {
    now: Now,
    /// Wall clock minus monotonic clock.
    offset_ns: i128,
    offset_read_at: u64,
    /// Whose word counts where this server follows another.
    replication: Option<Arc<ReplicationState>>,
}

impl SystemClock {
    /// A clock that has been read once.
    pub fn new() -> Self {
        let mut clock = Self { now: Now::default(), offset_ns: 0, offset_read_at: 0, replication: None };
        clock.read_offset(monotonic_ns());
        clock.tick();
        clock
    }

    /// A clock that tells the primary's time for keys while this server is a replica, and else none before what replicas
    /// were told.
    pub fn heeding(self, replication: Arc<ReplicationState>) -> Self {
        SystemClock { replication: Some(replication), ..self }
    }

    /// Reads the time: once a turn.
    #[inline]
    pub fn tick(&mut self) -> Now {
        let monotonic = monotonic_ns();
        if monotonic - self.offset_read_at > OFFSET_LIFETIME_NS {
            self.read_offset(monotonic);
        }
        let unix_us = (monotonic as i128 + self.offset_ns) / 1000;
        let mut unix_us = unix_us as u64;
        if let Some(replication) = &self.replication {
            let word_us = replication.word_us();
            unix_us = match replication.is_replica() {
                // Nothing is known before the first word, and there is nothing to expire.
                true if word_us > 0 => word_us,
                // What replicas were told stays true, whatever becomes of the wall clock.
                _ => unix_us.max(word_us),
            };
        }
        self.now = Now { unix_us, monotonic: Nanos(monotonic) };
        self.now
    }

    /// The last reading.
    #[inline]
    pub fn now(&self) -> Now {
        self.now
    }

    fn read_offset(&mut self, monotonic: u64) {
        self.offset_ns = realtime_ns() as i128 - monotonic as i128;
        self.offset_read_at = monotonic;
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl TurnClock for SystemClock {
    #[inline]
    fn tick(&mut self) -> Now {
        SystemClock::tick(self)
    }
}

impl Clock for SystemClock {
    #[inline]
    fn monotonic(&self) -> Nanos {
        Nanos(monotonic_ns())
    }
}

/// CLOCK_MONOTONIC in nanoseconds.
#[inline]
pub fn monotonic_ns() -> u64 {
    sys::clock_ns(libc::CLOCK_MONOTONIC).expect("CLOCK_MONOTONIC exists on every Linux")
}

/// CLOCK_REALTIME: nanoseconds since the Unix epoch.
pub fn realtime_ns() -> u64 {
    sys::clock_ns(libc::CLOCK_REALTIME).expect("CLOCK_REALTIME exists on every Linux")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_forward_and_both_scales_agree_with_the_kernel() {
        let mut clock = SystemClock::new();
        let mut earlier = clock.now();
        for _ in 0..100_000 {
            let now = clock.tick();
            assert!(now.monotonic >= earlier.monotonic);
            earlier = now;
        }
        assert!(clock.monotonic() >= earlier.monotonic);
        let (before, now, after) = (realtime_ns() / 1000, clock.tick(), realtime_ns() / 1000);
        // Microseconds of slack: the offset was read up to a millisecond ago, with an interruption between
        // its two readings at worst.
        let slack = 20_000;
        assert!(now.unix_us + slack >= before && now.unix_us <= after + slack, "{before} {now:?} {after}");
    }

    #[test]
    fn the_offset_is_read_again_when_it_is_old() {
        let mut clock = SystemClock::new();
        clock.offset_ns -= 3_600_000_000_000; // as if the wall clock had been put forward an hour since
        clock.offset_read_at = clock.offset_read_at.saturating_sub(2 * OFFSET_LIFETIME_NS);
        let now = clock.tick();
        assert!(now.unix_us.abs_diff(realtime_ns() / 1000) < 1_000_000);
    }
}
