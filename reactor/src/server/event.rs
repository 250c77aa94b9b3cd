//! Every event that can come in and every operation that can go out, on one screen.
//!
//! A driver (`io_uring`, `epoll`, or a simulated one) turns operations into system calls and completions
//! into events. Buffers travel by ownership: a `Send` carries its bytes away and the matching `Sent` brings
//! the allocation back, so nothing is ever written while the kernel reads it.

use std::net::SocketAddr;
use std::path::PathBuf;

pub use store::session::ConnectionId;

/// Something that happened, handed to the pipeline. Borrowed bytes are valid during the call only.
#[derive(Debug)]
pub enum Event<'a> {
    /// A listener accepted a connection; it already receives.
    Accepted {
        /// The new connection.
        connection: ConnectionId,
        /// Index of the listener in the order they were given to the driver.
        listener: usize,
        /// The other side's address; `None` on AF_UNIX.
        peer: Option<SocketAddr>,
    },
    /// A `Connect` ended. On success the connection already receives.
    Connected {
        /// The connection the operation named; on failure it is already gone (no `Closed` follows).
        connection: ConnectionId,
        /// The token of the operation.
        token: u64,
        /// `Err` holds the errno.
        result: Result<(), i32>,
    },
    /// Bytes arrived.
    Received {
        /// From this connection.
        connection: ConnectionId,
        /// Never empty.
        bytes: &'a [u8],
    },
    /// The peer will send nothing more (it may still read).
    ReceiveEnded {
        /// From this connection.
        connection: ConnectionId,
    },
    /// The send in flight ended. On `Err` nothing more can be sent.
    Sent {
        /// On this connection.
        connection: ConnectionId,
        /// The allocation that travelled with the `Send`.
        buffer: Vec<u8>,
        /// `Err` holds the errno (EPIPE, ECONNRESET, …).
        result: Result<(), i32>,
    },
    /// Receiving failed (ECONNRESET, …): the pipeline should `Close`.
    Failed {
        /// This connection.
        connection: ConnectionId,
        /// The errno.
        errno: i32,
    },
    /// The descriptor is closed and every buffer is back. The id will not be seen again.
    Closed {
        /// This connection.
        connection: ConnectionId,
    },
    /// SIGTERM or SIGINT arrived, or another thread asked to stop.
    StopRequested,
}

impl Event<'_> {
    /// About how much work an event can be, in bytes of input.
    #[inline]
    pub fn weight(&self) -> usize {
        match self {
            Event::Received { bytes, .. } => 128 + bytes.len(),
            // A connection that waited for this goes on with what it kept.
            Event::Sent { buffer, .. } => 128 + buffer.len() / 16,
            _ => 128,
        }
    }
}

/// Something to do, handed to the driver.
#[derive(Debug)]
pub enum Operation {
    /// Open a stream to `target`. The id is the caller's from `Driver::reserve`.
    Connect {
        /// An id from `Driver::reserve`.
        connection: ConnectionId,
        /// Comes back in `Connected`.
        token: u64,
        /// Where to.
        target: Target,
    },
    /// Send all of `buffer`. At most one may be in flight on a connection; the driver asserts it.
    Send {
        /// On this connection.
        connection: ConnectionId,
        /// Never empty.
        buffer: Vec<u8>,
    },
    /// Stop receiving (back-pressure). Bytes already taken from the kernel may still arrive.
    PauseReceive {
        /// On this connection.
        connection: ConnectionId,
    },
    /// Receive again.
    ResumeReceive {
        /// On this connection.
        connection: ConnectionId,
    },
    /// Send FIN once what was sent is out, and go on receiving: the first half of a lingering close, without
    /// which a reset for unread input could destroy replies on their way (RFC 9112, section 9.6).
    FinishSend {
        /// On this connection.
        connection: ConnectionId,
    },
    /// Close: what is in flight is cancelled, `Closed` follows. The pipeline drains replies first.
    Close {
        /// This connection.
        connection: ConnectionId,
    },
    /// Accept nothing more and close the listeners (shutdown).
    StopAccepting,
}

/// Where a connection goes to or a listener stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// TCP.
    Tcp(SocketAddr),
    /// AF_UNIX stream.
    Unix(PathBuf),
}
