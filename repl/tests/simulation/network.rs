//! Connections between nodes: bytes in order, late, in pieces, until something cuts them.

use std::collections::VecDeque;

/// One way of a connection.
#[derive(Debug, Default)]
pub struct Way {
    /// When they arrive, and what.
    pub queue: VecDeque<(u64, Vec<u8>)>,
    /// The sender closed it: nothing comes behind what is queued.
    pub is_closed: bool,
    last_at: u64,
}

impl Way {
    pub fn push(&mut self, at: u64, bytes: Vec<u8>) -> u64 {
        self.last_at = self.last_at.max(at);
        self.queue.push_back((self.last_at, bytes));
        self.last_at
    }
}

/// A connection of a replica to the node it follows. Each end is a node and which of its lives.
#[derive(Debug)]
pub struct Connection {
    pub replica: (usize, u64),
    pub primary: (usize, u64),
    pub to_replica: Way,
    pub to_primary: Way,
    /// The ends still know of it.
    pub replica_knows: bool,
    pub primary_knows: bool,
}

/// How bad the network is in this run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    pub loss_percent: u64,
    pub duplicate_percent: u64,
    pub late_percent: u64,
    pub damage_percent: u64,
    pub latency_us: u64,
}
