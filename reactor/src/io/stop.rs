//! How a server is told to stop: one descriptor that every driver waits on.
//!
//! [`StopSignal`] is an eventfd that is raised and never read, so one request reaches every thread that
//! watches it, whether it comes from a signal handler, an embedding program or a test.

use super::sys;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// A request to stop, shared by everything that can make it and everything that heeds it.
#[derive(Clone, Debug)]
pub struct StopSignal {
    event: Arc<OwnedFd>,
}

impl StopSignal {
    /// A signal nobody has raised yet.
    pub fn new() -> io::Result<Self> {
        Ok(Self { event: Arc::new(sys::eventfd()?) })
    }

    /// Asks everybody who holds a copy to stop. It cannot be taken back.
    pub fn request(&self) {
        sys::eventfd_raise(self.event.as_fd());
    }

    /// Whether somebody has asked.
    pub fn is_requested(&self) -> bool {
        sys::is_readable(self.event.as_fd())
    }

    /// From now on SIGTERM and SIGINT request a stop; a second one of them ends the process at once with
    /// code 1, so that a shutdown that hangs can be cut short from the keyboard. SIGPIPE is ignored.
    pub fn on_signals(&self) -> io::Result<()> {
        sys::ignore_sigpipe();
        let stopping = Arc::new(AtomicBool::new(false));
        for signal in [libc::SIGTERM, libc::SIGINT] {
            // The order matters: the shutdown looks at the flag before this same delivery sets it.
            signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&stopping))?;
            signal_hook::flag::register(signal, Arc::clone(&stopping))?;
            let event = Arc::clone(&self.event);
            // SAFETY: the handler makes one write to a descriptor that the captured `Arc` keeps open; it
            // neither allocates nor locks nor panics, and it puts errno back.
            unsafe { signal_hook::low_level::register(signal, move || sys::eventfd_raise(event.as_fd()))? };
        }
        Ok(())
    }
}

impl AsFd for StopSignal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl AsRawFd for StopSignal {
    fn as_raw_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_reaches_every_copy_and_stays() {
        let stop = StopSignal::new().unwrap();
        let copy = stop.clone();
        assert!(!copy.is_requested());
        stop.request();
        assert!(copy.is_requested() && stop.is_requested());
        assert!(copy.is_requested(), "looking does not take it");
    }

    #[test]
    fn two_signals_do_not_share_a_request() {
        let (one, other) = (StopSignal::new().unwrap(), StopSignal::new().unwrap());
        one.request();
        assert!(!other.is_requested());
    }
}
