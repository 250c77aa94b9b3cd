//! The names of `reactor/src/io/sync.rs`, made of loom's primitives: what the product's files are compiled against here.

use loom::sync::{Condvar, Mutex};
use std::io;
use std::time::Duration;

pub use loom::cell::UnsafeCell;
pub use loom::hint::spin_loop;
pub use loom::sync::Arc;
pub use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};

/// Looking again before sleeping is only for speed, and each look multiplies what there is to try.
pub const SPINS: u32 = 0;

/// An eventfd: it counts, and waiting takes the count.
#[derive(Debug)]
pub struct Bell {
    count: Mutex<u64>,
    rung: Condvar,
}

impl Bell {
    /// A bell that has not rung.
    pub fn new() -> io::Result<Bell> {
        Ok(Bell { count: Mutex::new(0), rung: Condvar::new() })
    }

    /// Wakes the thread, or lets its next wait end at once.
    pub fn ring(&self) {
        *self.count.lock().unwrap() += 1;
        self.rung.notify_one();
    }

    /// Waits until it rings. A wait that nobody ends is a deadlock, which loom reports: so a lost wake-up is found.
    pub fn wait(&self, timeout: Option<Duration>) {
        assert!(timeout.is_none(), "time does not pass here");
        let mut count = self.count.lock().unwrap();
        while *count == 0 {
            count = self.rung.wait(count).unwrap();
        }
        *count = 0;
    }
}
