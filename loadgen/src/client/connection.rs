//! One connection of a client: where it is, and what it owes.

use crate::scan::Scanner;
use reactor::server::event::ConnectionId;
use std::collections::VecDeque;

/// Where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// No id yet, or gone and to be opened again.
    Unconnected,
    Connecting,
    /// So many replies of the handshake are missing.
    Greeting(u32),
    Ready,
    Closing,
}

/// The stamps of a request of the open loop.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) intended: u64,
    pub(super) sent: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) id: Option<ConnectionId>,
    pub(super) phase: Phase,
    pub(super) scanner: Scanner,
    /// Closed loop: when the batch left and how many of its replies are missing.
    pub(super) sent_at: u64,
    pub(super) missing: u32,
    /// Open loop: asked and unanswered, oldest first.
    pub(super) asked: VecDeque<Asked>,
    /// Open loop: intended times of what is due and not sent.
    pub(super) due: VecDeque<u64>,
    pub(super) buffer: Vec<u8>,
    pub(super) sending: bool,
    /// In `Client::dirty`.
    pub(super) dirty: bool,
    /// Requests sent since it was opened, prefill not counted.
    pub(super) requests: u64,
    /// It is closed because they are used up.
    pub(super) churning: bool,
    /// The next request's place in the cycle of operations, and the first one's since `Scanner::restart`.
    pub(super) sequence: u64,
    pub(super) sequence_base: u64,
}

/// Why a connection is given up.
#[derive(Clone, Copy, Debug)]
pub(super) enum Loss {
    Broken,
    TimedOut,
}
