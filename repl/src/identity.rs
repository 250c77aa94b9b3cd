//! Names: of nodes, of the chain of nodes that records have come through; and the time, as two clocks in one
//! value.

use alloc::vec::Vec;
use core::fmt;

/// The time of an event. The caller reads both clocks once for a batch of events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Microseconds of a clock that never goes back; from any beginning. Deadlines are in these.
    pub micros: u64,
    /// Microseconds since 1970: what a primary tells of its time ([`crate::word`]).
    pub unix_us: u64,
}

/// A node, by a number it drew when its data directory was made: it survives restarts, addresses and
/// promotions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub [u8; NodeId::BYTES]);

impl NodeId {
    /// Bytes of an id.
    pub const BYTES: usize = 16;
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Longest chain of nodes behind one another. A longer one is refused: each link adds a delay, and a chain
/// that grows without end is a ring.
pub const CHAIN_NODES_MAX: usize = 16;

/// Where a node's records come from: the node it follows, the one that follows, up to the primary that
/// writes. Empty for that primary.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain(Vec<NodeId>);

impl Chain {
    /// These nodes, the nearest first; none if there are too many.
    pub fn new(nodes: Vec<NodeId>) -> Option<Chain> {
        (nodes.len() <= CHAIN_NODES_MAX).then_some(Chain(nodes))
    }

    /// The nodes, the nearest first.
    pub fn nodes(&self) -> &[NodeId] {
        &self.0
    }

    /// True if records have come through this node.
    pub fn contains(&self, node: NodeId) -> bool {
        self.0.contains(&node)
    }

    /// What this chain is for those who follow `node`; none if it is too long for them.
    pub fn behind(&self, node: NodeId) -> Option<Chain> {
        let mut nodes = Vec::from([node]);
        nodes.extend_from_slice(&self.0);
        Chain::new(nodes)
    }
}
