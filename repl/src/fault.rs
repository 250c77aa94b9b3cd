//! Why a connection between two nodes ends, or does not begin: a number for the other side, words for an
//! operator.
//!
//! No fault touches what a node holds. The replica tries again, sooner or later by the reason's kind.

use alloc::string::String;
use core::fmt;

/// The reason, as its number in a [`Refused`](crate::message::Message::Refused) message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Reason {
    /// The two programs speak no common version.
    Version = 1,
    /// A node was told to follow itself.
    Itself = 2,
    /// A node was told to follow one that follows it.
    Cycle = 3,
    /// Too many nodes behind one another.
    ChainTooLong = 4,
    /// The two nodes were given different secrets.
    Secret = 5,
    /// The node follows another and has not got its data yet.
    NotReady = 6,
    /// The replica has more of the same history than the node it follows; that passes.
    Behind = 7,
    /// The node has as many replicas as it may.
    TooManyReplicas = 8,
    /// A snapshot was made for another number of shards, and the replica cannot deal it anew.
    Shards = 9,
    /// Bytes that this protocol does not know.
    Protocol = 10,
    /// The other side said nothing for too long.
    Timeout = 11,
    /// The replica is further behind than a replica may be.
    TooSlow = 12,
    /// The node's own history is another one now.
    HistoryChanged = 13,
    /// The records the replica needs are in no log any more.
    LogGone = 14,
    /// No snapshot could be made or read.
    Snapshot = 15,
    /// The node is stopping, or was told to follow another.
    Stopped = 16,
    /// The same replica has connected again.
    Replaced = 17,
}

impl Reason {
    /// All of them, in the order of their numbers.
    pub const ALL: [Reason; 17] = [
        Reason::Version,
        Reason::Itself,
        Reason::Cycle,
        Reason::ChainTooLong,
        Reason::Secret,
        Reason::NotReady,
        Reason::Behind,
        Reason::TooManyReplicas,
        Reason::Shards,
        Reason::Protocol,
        Reason::Timeout,
        Reason::TooSlow,
        Reason::HistoryChanged,
        Reason::LogGone,
        Reason::Snapshot,
        Reason::Stopped,
        Reason::Replaced,
    ];

    /// The reason of this number.
    pub fn of(number: u32) -> Option<Reason> {
        Reason::ALL.into_iter().find(|reason| *reason as u32 == number)
    }

    /// Nothing but a person's hand changes it: trying again soon is of no use.
    pub fn is_lasting(self) -> bool {
        use Reason::*;
        matches!(self, Version | Itself | Cycle | ChainTooLong | Secret | Shards | Replaced)
    }

    /// The next attempt goes another way, and need not wait, unless that has led here before.
    pub fn is_over_at_once(self) -> bool {
        matches!(self, Reason::LogGone | Reason::HistoryChanged)
    }

    /// What a person can do about it.
    pub fn remedy(self) -> &'static str {
        match self {
            Reason::Version => "run versions that speak to each other on both nodes; update replicas first",
            Reason::Itself => {
                "name another node with --replicaof, or give this one a data directory of its own"
            }
            Reason::Cycle => "let one of these nodes follow a node outside of the ring",
            Reason::ChainTooLong => "let some of the replicas follow the primary itself",
            Reason::Secret => "give all nodes the same replication secret",
            Reason::NotReady | Reason::Behind => "it is tried again",
            Reason::TooManyReplicas => "raise the number of replicas there, or follow one of its replicas",
            Reason::Shards => "start the replica with as many --shards as its primary",
            Reason::Protocol => {
                "see that the port is the other node's, and that nothing between them changes bytes"
            }
            Reason::Timeout => "look at the network between the nodes, and whether the other one runs",
            Reason::TooSlow => "give the replica more CPU or network; it is given everything anew",
            Reason::HistoryChanged | Reason::LogGone => "it is given what it needs in another way",
            Reason::Snapshot => "look at the disk of the node that is followed",
            Reason::Stopped => "start that node, or follow another",
            Reason::Replaced => {
                "if it goes on, two nodes have one id, since a data directory was copied: stop one, remove the file \
                 replica-id in its --dir, and start it again"
            }
        }
    }
}

/// A fault: the reason, who saw it, and in which words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The kind.
    pub reason: Reason,
    /// The other side said it.
    pub is_peers: bool,
    /// What was expected and what was found.
    pub text: String,
}

impl Fault {
    /// One that was seen here.
    pub fn new(reason: Reason, text: impl Into<String>) -> Fault {
        Fault { reason, is_peers: false, text: text.into() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = if self.is_peers { "the other node says: " } else { "" };
        write!(f, "{who}{}; {}", self.text, self.reason.remedy())
    }
}

impl core::error::Error for Fault {}
