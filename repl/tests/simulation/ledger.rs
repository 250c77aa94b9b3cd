//! What is true: every record that was ever durable on a primary, what came before it, and the state behind
//! it.
//!
//! It knows nothing of branches and epochs. Each run of a primary has a number, a record is named by that and
//! its LSN, and each record names the one before it. So whether a state is a prefix of a history, and whether
//! a history has a record, is found out in another way than the product finds it out.

use super::random::mix;
use repl::lineage::BranchId;
use std::collections::{HashMap, HashSet};

/// Shards of every node.
pub const SHARDS: usize = 2;

/// One record: who wrote it, and its number. None has (0, 0), which is before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Name {
    pub run: u64,
    pub lsn: u64,
}

/// What a shard holds, as a fingerprint of all that was applied to it, in order.
pub type Shards = [u64; SHARDS];

/// The shards after one more record.
pub fn after(mut shards: Shards, lsn: u64, payload: &[u8]) -> Shards {
    let shard = (mix(lsn) % SHARDS as u64) as usize;
    shards[shard] = fingerprint(shards[shard], payload);
    shards
}

/// To which shard a record belongs.
pub fn shard_of(lsn: u64) -> usize {
    (mix(lsn) % SHARDS as u64) as usize
}

pub fn fingerprint(before: u64, payload: &[u8]) -> u64 {
    let mut hash = mix(before ^ payload.len() as u64);
    for word in payload.chunks(8) {
        let mut bytes = [0; 8];
        bytes[..word.len()].copy_from_slice(word);
        hash = mix(hash ^ u64::from_le_bytes(bytes));
    }
    hash
}

/// What a record's payload begins with.
pub fn encode_name(name: Name, out: &mut Vec<u8>) {
    out.extend_from_slice(&name.run.to_le_bytes());
    out.extend_from_slice(&name.lsn.to_le_bytes());
}

pub fn decode_name(payload: &[u8]) -> Name {
    let number = |at: usize| u64::from_le_bytes(payload[at..at + 8].try_into().unwrap());
    Name { run: number(0), lsn: number(8) }
}

#[derive(Clone, Copy, Debug)]
pub struct Truth {
    pub before: Name,
    pub shards: Shards,
    pub durable_at: u64,
    /// By its primary's clock, when the turn began that it belongs to.
    pub executed_us: u64,
    /// The branch that the primary was in, which a client is told with its reply.
    pub branch: BranchId,
}

#[derive(Debug, Default)]
pub struct Ledger {
    truth: HashMap<Name, Truth>,
    /// When the records of a run became durable, in order.
    runs: HashMap<u64, Vec<(u64, u64)>>,
    /// Which nodes have ever shown a record.
    shown: HashMap<Name, HashSet<usize>>,
    pub writes: Vec<Name>,
}

impl Ledger {
    pub fn durable(&mut self, name: Name, truth: Truth) {
        assert!(self.truth.insert(name, truth).is_none(), "{name:?} was written twice");
        self.runs.entry(name.run).or_default().push((truth.durable_at, name.lsn));
        self.writes.push(name);
    }

    pub fn get(&self, name: Name) -> Option<Truth> {
        self.truth.get(&name).copied()
    }

    pub fn shards(&self, name: Name) -> Option<Shards> {
        match name {
            Name { run: 0, lsn: 0 } => Some(Shards::default()),
            name => self.truth.get(&name).map(|truth| truth.shards),
        }
    }

    /// The record of the history that ends with `name` that has this LSN.
    pub fn ancestor(&self, mut name: Name, lsn: u64) -> Option<Name> {
        while name.lsn > lsn {
            name = self.truth.get(&name)?.before;
        }
        Some(name)
    }

    pub fn shown(&mut self, name: Name, node: usize) {
        self.shown.entry(name).or_default().insert(node);
    }

    /// How many nodes have ever shown a history that has this record.
    pub fn shown_by(&self, name: Name) -> usize {
        let has = |(&last, nodes): (&Name, &HashSet<usize>)| {
            (last.lsn >= name.lsn && self.ancestor(last, name.lsn) == Some(name)).then(|| nodes.clone())
        };
        self.shown.iter().filter_map(has).flatten().collect::<HashSet<usize>>().len()
    }

    /// The last LSN of a run that was durable at a time.
    pub fn durable_by(&self, run: u64, at: u64) -> u64 {
        let durable = self.runs.get(&run).map_or(&[][..], Vec::as_slice);
        let count = durable.partition_point(|&(durable_at, _)| durable_at <= at);
        count.checked_sub(1).map_or(0, |last| durable[last].1)
    }
}
