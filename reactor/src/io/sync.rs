//! What `queue.rs`, `server/mailbox.rs` and `server/replication/turns.rs` are built of: atomics, a cell, and the bell that wakes a thread.
//!
//! They take these from here and nowhere else, because `tests/model` compiles the same files against a module of
//! the same names that is made of loom's primitives, and there tries every order in which threads can meet.

use super::sys;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

pub use std::hint::spin_loop;
pub use std::sync::Arc;
pub use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};

/// How often a thread that waits for another looks again before it goes to sleep: a few microseconds.
pub const SPINS: u32 = 200;

/// A cell that threads share by an agreement of their own.
#[derive(Debug)]
pub struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

impl<T> UnsafeCell<T> {
    /// With this in it.
    pub fn new(value: T) -> Self {
        UnsafeCell(std::cell::UnsafeCell::new(value))
    }

    /// Lends the content to be read.
    #[inline]
    pub fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
        f(self.0.get())
    }

    /// Lends the content to be written.
    #[inline]
    pub fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
        f(self.0.get())
    }
}

/// Wakes one thread, wherever it waits: in [`Bell::wait`], or in a driver that watches the descriptor.
#[derive(Debug)]
pub struct Bell {
    event: OwnedFd,
}

impl Bell {
    /// A bell that has not rung.
    pub fn new() -> io::Result<Bell> {
        Ok(Bell { event: sys::eventfd()? })
    }

    /// The same bell for another hand.
    pub fn another(&self) -> io::Result<Bell> {
        Ok(Bell { event: self.event.try_clone()? })
    }

    /// Wakes the thread, or lets its next wait end at once. One system call.
    pub fn ring(&self) {
        sys::eventfd_raise(self.event.as_fd());
    }

    /// Whether it has rung since it was last waited for; for whoever cannot wait.
    pub fn take(&self) -> bool {
        let has_rung = sys::is_readable(self.event.as_fd());
        if has_rung {
            sys::eventfd_take(self.event.as_fd());
        }
        has_rung
    }

    /// It is known to have rung: that has been heard.
    pub fn clear(&self) {
        sys::eventfd_take(self.event.as_fd());
    }

    /// Waits until it rings, at most `timeout`; `None`: for ever. May end early.
    pub fn wait(&self, timeout: Option<Duration>) {
        if sys::wait_readable(self.event.as_fd(), timeout) {
            sys::eventfd_take(self.event.as_fd());
        }
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
