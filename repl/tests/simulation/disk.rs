//! What a node keeps over a crash, and what its memory holds: an edge as simple as can be.

use super::ledger::{Name, SHARDS, Shards, decode_name, encode_name, fingerprint, shard_of};
use repl::lineage::Lineage;
use repl::message::SnapshotName;
use wal::checksum::Checksum;
use wal::lsn::Lsn;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rec {
    pub lsn: u64,
    pub unix_us: u64,
    pub payload: Vec<u8>,
}

/// The data, shard by shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub shards: Shards,
    /// What each shard has applied.
    pub lsns: [u64; SHARDS],
    /// The last record.
    pub last: Name,
}

impl State {
    /// Applies a record to the shard it belongs to, if that does not have it.
    pub fn apply(&mut self, lsn: u64, payload: &[u8]) {
        let shard = shard_of(lsn);
        for (index, at) in self.lsns.iter_mut().enumerate().filter(|(_, at)| **at < lsn) {
            if index == shard {
                self.shards[shard] = fingerprint(self.shards[shard], payload);
            }
            *at = lsn;
        }
        if lsn > self.last.lsn {
            self.last = decode_name(payload);
        }
    }
}

/// A snapshot: shards at LSNs of their own.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub name: SnapshotName,
    pub bytes: Vec<u8>,
}

impl Snapshot {
    /// A snapshot of these shards, padded so that it takes some time to send.
    pub fn new(state: &State, epoch: u64, uid: u64, padding: usize) -> Snapshot {
        let mut bytes = Vec::new();
        encode_name(state.last, &mut bytes);
        for shard in 0..SHARDS {
            bytes.extend_from_slice(&state.shards[shard].to_le_bytes());
            bytes.extend_from_slice(&state.lsns[shard].to_le_bytes());
        }
        bytes.extend_from_slice(&uid.to_le_bytes());
        bytes.extend((0..padding).map(|at| (at as u64 ^ uid) as u8));
        bytes.extend_from_slice(&Checksum::portable().of(&bytes).to_le_bytes());
        let name = SnapshotName {
            epoch,
            lsn: Lsn(state.lsns.into_iter().min().unwrap()),
            lsn_max: Lsn(state.lsns.into_iter().max().unwrap()),
            uid,
            length: bytes.len() as u64,
        };
        Snapshot { name, bytes }
    }

    /// The data of a file that was received; none if it is not that snapshot.
    pub fn read(name: &SnapshotName, bytes: &[u8]) -> Option<State> {
        let (body, crc) = bytes.split_last_chunk::<4>()?;
        let number = |at: usize| u64::from_le_bytes(body[at..at + 8].try_into().unwrap());
        let mut state = State { last: decode_name(body), ..State::default() };
        for shard in 0..SHARDS {
            state.shards[shard] = number(16 + 16 * shard);
            state.lsns[shard] = number(24 + 16 * shard);
        }
        let is_right = bytes.len() as u64 == name.length
            && Checksum::portable().of(body).to_le_bytes() == *crc
            && number(16 + 16 * SHARDS) == name.uid;
        is_right.then_some(state)
    }
}

/// Everything durable.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    pub lineage: Lineage,
    /// What the log goes on from.
    pub base: State,
    /// Records behind `base`'s lowest LSN.
    pub log: Vec<Rec>,
    /// Files that can be sent.
    pub snapshots: Vec<Snapshot>,
    /// One that is being received.
    pub partial: Option<(SnapshotName, Vec<u8>)>,
}

impl Disk {
    pub fn first_lsn(&self) -> u64 {
        self.base.lsns.into_iter().min().unwrap() + 1
    }

    pub fn last_lsn(&self) -> u64 {
        self.log.last().map_or(self.first_lsn() - 1, |last| last.lsn)
    }

    /// What a start makes of it, and from which LSN on that is a state that the primary was in.
    pub fn recover(&self) -> (State, u64) {
        let mut state = self.base;
        self.log.iter().for_each(|record| state.apply(record.lsn, &record.payload));
        (state, self.base.lsns.into_iter().max().unwrap())
    }

    /// Lets the log go up to what a snapshot holds.
    pub fn trim(&mut self, base: State) {
        self.base = base;
        let first = self.first_lsn();
        self.log.retain(|record| record.lsn >= first);
    }
}
