//! The one seam between the pure pipeline and the kernel. Monomorphised, never `dyn`.
//!
//! Three drivers implement it: `uring`, `epoll` and the simulator in `tests/`. One conformance suite runs
//! against all of them.

use crate::server::event::{ConnectionId, Event, Operation};
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Turns operations into system calls and what the kernel reports into events.
pub trait Driver {
    /// Hands over everything enqueued and waits until at least one event is there, `timeout` has passed
    /// (`None`: for ever; zero: do not wait) or a signal came.
    fn submit_and_wait(&mut self, timeout: Option<Duration>) -> io::Result<()>;

    /// The next event of this turn. The bytes of a `Received` are valid until the next call.
    fn next_event(&mut self) -> Option<Event<'_>>;

    /// Queues an operation; it reaches the kernel with the next `submit_and_wait`. An operation on a
    /// connection that is gone is ignored (a `Send`'s buffer is dropped).
    fn enqueue(&mut self, operation: Operation);

    /// An unused connection id for `Operation::Connect`; `None` where the table is full.
    fn reserve(&mut self) -> Option<ConnectionId>;

    /// From now on raising this eventfd ends a wait, without an event: it is how other shards say that there is a
    /// message. It is never read here. Each raise counts, also while the descriptor is readable.
    fn watch(&mut self, waker: OwnedFd) -> io::Result<()>;

    /// What the driver did so far.
    fn counters(&self) -> DriverCounters;
}

/// Counted since the driver was made. Every field becomes a metric of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DriverCounters {
    /// System calls that hand over or wait: `io_uring_enter`, `epoll_wait`.
    pub enters: u64,
    /// Completions or ready events taken.
    pub completions: u64,
    /// Receive completions with bytes.
    pub receives: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// Sends handed to the kernel.
    pub sends: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Sends the kernel took only in part.
    pub short_sends: u64,
    /// Connections accepted.
    pub accepted: u64,
    /// Accepts that failed (EMFILE, ENFILE, ENOMEM, …).
    pub accept_errors: u64,
    /// Receives that found no provided buffer (ENOBUFS) and were armed again.
    pub buffers_exhausted: u64,
    /// Connections open now.
    pub open: u64,
}
