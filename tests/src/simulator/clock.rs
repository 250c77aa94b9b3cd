//! The simulated clock: time goes on when the scheduler says so, and a little whenever somebody looks.

use reactor::clock::TurnClock;
use std::cell::Cell;
use std::rc::Rc;
use store::time::{Clock, Nanos, Now};

/// 2026-11-22, about: where the wall clock begins, in microseconds.
const UNIX_US: u64 = 1_795_357_800_000_000;

/// Everybody's clock.
#[derive(Clone, Debug, Default)]
pub struct SimClock {
    now: Rc<Cell<u64>>,
    /// How much passes between two looks.
    pub step: u64,
}

impl SimClock {
    /// A clock that begins at a second, so that nothing is at 0.
    pub fn new(step: u64) -> SimClock {
        SimClock { now: Rc::new(Cell::new(1_000_000_000)), step }
    }

    /// Nanoseconds since the beginning of the simulation, across restarts.
    pub fn nanos(&self) -> u64 {
        self.now.get()
    }

    /// Leaps to a time, unless it is past.
    pub fn leap(&self, to: u64) {
        self.now.set(self.now.get().max(to));
    }

    /// The wall clock at a time, microseconds since 1970.
    pub fn unix_us(nanos: u64) -> u64 {
        UNIX_US + nanos / 1000
    }

    /// The present.
    pub fn now(&self) -> Now {
        Now { unix_us: Self::unix_us(self.nanos()), monotonic: Nanos(self.nanos()) }
    }
}

impl Clock for SimClock {
    fn monotonic(&self) -> Nanos {
        self.now.set(self.now.get() + self.step);
        Nanos(self.nanos())
    }
}

impl TurnClock for SimClock {
    fn tick(&mut self) -> Now {
        self.now.set(self.now.get() + self.step);
        self.now()
    }
}
