//! Clients in WAIT and REPLICAOF, by what they wait for: whose wait is over is found without a look at the others, however
//! many there are.

use crate::reads::Written;
use crate::session::ConnectionId;
use crate::time::Nanos;
use alloc::collections::{BTreeMap, BTreeSet};

/// A client that waits for replication.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReplicaWait {
    pub(crate) connection: ConnectionId,
    pub(crate) what: Awaited,
    pub(crate) until: Nanos,
    /// Nobody wants the reply (CLIENT REPLY).
    pub(crate) is_silent: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Awaited {
    /// WAIT: so many have this record.
    Replicas { written: Written, replicas: usize },
    /// REPLICAOF: the role has changed.
    Followed(u64),
}

/// All of a shard.
#[derive(Debug, Default)]
pub(crate) struct ReplicaWaits {
    waits: BTreeMap<ConnectionId, ReplicaWait>,
    /// In WAIT: by how many replicas are waited for, and then by the record.
    by_replicas: BTreeMap<usize, BTreeSet<(u64, ConnectionId)>>,
    /// The same by the branch of history in which the record was written.
    by_branch: BTreeMap<u64, BTreeSet<(u64, ConnectionId)>>,
    /// In REPLICAOF: by its number.
    followed: BTreeSet<(u64, ConnectionId)>,
    by_end: BTreeSet<(Nanos, ConnectionId)>,
}

impl ReplicaWaits {
    pub(crate) fn is_empty(&self) -> bool {
        self.waits.is_empty()
    }

    /// Clients that wait.
    pub(crate) fn len(&self) -> usize {
        self.waits.len()
    }

    pub(crate) fn begin(&mut self, wait: ReplicaWait) {
        self.end(wait.connection);
        match wait.what {
            Awaited::Replicas { written, replicas } => {
                let entry = (written.lsn, wait.connection);
                self.by_replicas.entry(replicas).or_default().insert(entry);
                self.by_branch.entry(written.branch).or_default().insert(entry);
            }
            Awaited::Followed(number) => {
                self.followed.insert((number, wait.connection));
            }
        }
        self.by_end.insert((wait.until, wait.connection));
        self.waits.insert(wait.connection, wait);
    }

    /// It is over, or the client has left.
    pub(crate) fn end(&mut self, connection: ConnectionId) -> Option<ReplicaWait> {
        let wait = self.waits.remove(&connection)?;
        match wait.what {
            Awaited::Replicas { written, replicas } => {
                remove(&mut self.by_replicas, &replicas, (written.lsn, connection));
                remove(&mut self.by_branch, &written.branch, (written.lsn, connection));
            }
            Awaited::Followed(number) => drop(self.followed.remove(&(number, connection))),
        }
        self.by_end.remove(&(wait.until, connection));
        Some(wait)
    }

    /// When the first has waited enough.
    pub(crate) fn next_end(&self) -> Option<Nanos> {
        self.by_end.first().map(|first| first.0).filter(|until| until.0 < u64::MAX)
    }

    /// Who has waited enough.
    pub(crate) fn expired(&self, now: Nanos) -> Option<ReplicaWait> {
        let (_, connection) = self.by_end.first().filter(|first| first.0 <= now)?;
        self.waits.get(connection).copied()
    }

    /// Whether anybody waits for replicas.
    pub(crate) fn awaits_replicas(&self) -> bool {
        !self.by_replicas.is_empty()
    }

    /// Of each branch the last record that somebody waits for: if that is not lost, none before it is.
    pub(crate) fn written(&self) -> impl Iterator<Item = (ConnectionId, Written)> {
        self.by_branch.iter().filter_map(|(&branch, waits)| {
            waits.last().map(|&(lsn, connection)| (connection, Written { lsn, branch }))
        })
    }

    /// Who waits for no more replicas than there are, for a record that enough of them have, and how many that are.
    pub(crate) fn reached(
        &self,
        replicas: usize,
        count: impl Fn(u64) -> usize,
    ) -> Option<(ConnectionId, usize)> {
        self.by_replicas.range(..=replicas).find_map(|(&wanted, waits)| {
            // Where too few have the first record no more have the next.
            let &(lsn, connection) = waits.first()?;
            Some((connection, count(lsn))).filter(|&(_, count)| count >= wanted)
        })
    }

    /// The first of those who wait for a change of role: they are made in the order of their numbers.
    pub(crate) fn first_followed(&self) -> Option<(u64, ConnectionId)> {
        self.followed.first().copied()
    }
}

fn remove<K: Ord>(all: &mut BTreeMap<K, BTreeSet<(u64, ConnectionId)>>, key: &K, entry: (u64, ConnectionId)) {
    if let Some(waits) = all.get_mut(key) {
        waits.remove(&entry);
        if waits.is_empty() {
            all.remove(key);
        }
    }
}
