//! Time as the core sees it: always an argument, never a clock.

/// Nanoseconds on the monotonic clock, from an arbitrary origin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nanos(pub u64);

impl Nanos {
    /// Time from `earlier` to `self`; zero where `earlier` is later.
    pub fn since(self, earlier: Nanos) -> Nanos {
        Nanos(self.0.saturating_sub(earlier.0))
    }
}

/// One reading of both clocks. The loop takes one a turn and hands it to everything it calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Wall-clock time, microseconds since the Unix epoch: expiry times and TIME are on this scale.
    pub unix_us: u64,
    /// Monotonic time: durations are on this scale.
    pub monotonic: Nanos,
}

impl Now {
    /// Wall-clock milliseconds since the Unix epoch, the resolution of every expiry.
    #[inline]
    pub fn unix_ms(self) -> u64 {
        self.unix_us / 1000
    }
}

/// A clock the core may be lent while it executes, to time commands that can be slow (SLOWLOG, LATENCY).
/// The simulator lends a simulated one.
pub trait Clock {
    /// The present moment on the monotonic scale.
    fn monotonic(&self) -> Nanos;
}
