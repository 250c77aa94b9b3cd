//! Who hears of changes: the log, through effects that get an LSN, and WATCH.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::{KeyHash, Keyspace};
use crate::mutation::Mutation;
use crate::pending::Pending;
use crate::time::Now;

/// What WATCH remembers of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchToken {
    version: u64,
}

pub(crate) struct Watched {
    version: u64,
    watchers: usize,
}

/// Who must hear of changes.
#[derive(Default)]
pub(crate) struct Changes {
    /// Somebody watches a key, or wants the effects.
    is_heard: bool,
    pub(super) watched: BTreeMap<Vec<u8>, Watched>,
    version: u64,
    /// What is not in the log yet; `None`: there is no log.
    pub(super) effects: Option<Effects>,
}

/// What a log has to know of a keyspace.
#[derive(Default)]
pub(crate) struct Effects {
    /// Those since they were last taken.
    bytes: Vec<u8>,
    /// The hashes of their keys.
    hashes: Vec<u64>,
    /// Which keys have writes that are not durable is known of each. Else whoever looks at any key observes the
    /// last write: where a second's writes are on their way, a table of them costs more than it is worth.
    is_exact: bool,
    /// Keys whose last write is in the log, but perhaps not durable.
    pending: Pending,
    /// The last LSN given to effects of this keyspace.
    latest: u64,
    /// The keyspace was cleared since effects were last numbered.
    clears: bool,
    /// The LSN of the last clearing, while it may not be durable: whatever key is looked at, this was done to it.
    cleared: u64,
    /// The highest LSN of what was looked at since somebody asked.
    observed: u64,
}

impl Effects {
    #[inline]
    pub(super) fn observe(&mut self, hash: KeyHash) {
        if !self.is_exact {
            self.observed = self.latest;
            return;
        }
        if !self.pending.is_empty()
            && let Some(lsn) = self.pending.get(hash.0)
        {
            self.observed = self.observed.max(lsn);
        }
        self.observed = self.observed.max(self.cleared);
    }
}

impl Changes {
    /// Every mutation passes here, whoever asked for it. [`expired`](Self::expired) is the only exception.
    #[inline(always)]
    pub(super) fn note(&mut self, mutation: Mutation<'_>, hash: KeyHash) {
        if self.is_heard {
            self.tell(mutation, hash);
        }
    }

    #[inline(never)]
    fn tell(&mut self, mutation: Mutation<'_>, hash: KeyHash) {
        if let Some(key) = mutation.key() {
            self.expired(key);
        }
        if let Some(effects) = &mut self.effects {
            mutation.encode(&mut effects.bytes);
            effects.clears |= mutation.key().is_none();
            if effects.is_exact {
                effects.hashes.push(hash.0);
            }
        }
    }

    /// A key's time has come. That is no effect: whoever applies the others knows the time too.
    #[inline(always)]
    pub(super) fn expired(&mut self, key: &[u8]) {
        if !self.watched.is_empty() {
            self.tell_watchers(key);
        }
    }

    #[cold]
    fn tell_watchers(&mut self, key: &[u8]) {
        if let Some(watched) = self.watched.get_mut(key) {
            self.version += 1;
            watched.version = self.version;
        }
    }
}

impl Keyspace {
    // ---- effects ----------------------------------------------------------------------------------------

    /// From now on the effects of writes are kept for [`take_effects`](Self::take_effects). `is_exact`: who looks at a key
    /// observes the last write to it, and not the last one to any.
    pub fn keep_effects(&mut self, is_exact: bool) {
        self.changes.effects = Some(Effects { is_exact, ..Effects::default() });
        self.changes.is_heard = true;
    }

    /// Adds the effects since the last call to `out`; false: there are none. They get an LSN next, by
    /// [`number_effects`](Self::number_effects).
    #[inline]
    pub fn take_effects(&mut self, out: &mut Vec<u8>) -> bool {
        // What was done since damage was met is not to be repeated by anybody.
        let is_damaged = self.damage.is_some();
        let has_some = |effects: &&mut Effects| !effects.bytes.is_empty() && !is_damaged;
        let Some(effects) = self.changes.effects.as_mut().filter(has_some) else {
            return false;
        };
        out.append(&mut effects.bytes);
        true
    }

    /// The effects last taken are this record of the log: until it is durable, who looks at their keys observes it.
    pub fn number_effects(&mut self, lsn: u64) {
        let Some(effects) = &mut self.changes.effects else { return };
        effects.latest = lsn;
        if core::mem::take(&mut effects.clears) {
            effects.cleared = lsn;
        }
        for hash in effects.hashes.drain(..) {
            effects.pending.insert(hash, lsn);
        }
    }

    /// Everything up to this record is durable.
    pub fn settle_effects(&mut self, durable: u64) {
        if let Some(effects) = &mut self.changes.effects {
            effects.pending.settle(durable);
            if effects.cleared <= durable {
                effects.cleared = 0;
            }
        }
    }

    /// The highest LSN of what was looked at since the last call; it may be durable already.
    #[inline]
    pub fn take_observed(&mut self) -> u64 {
        self.changes.effects.as_mut().map_or(0, |effects| core::mem::take(&mut effects.observed))
    }

    /// Somebody looks at all keys at once: how many there are, which, or at any of them.
    pub fn observe_everything(&mut self) {
        if let Some(effects) = &mut self.changes.effects {
            effects.observed = effects.observed.max(effects.latest);
        }
    }

    // ---- watches ----------------------------------------------------------------------------------------

    /// Begins to watch a key for one watcher.
    pub fn watch(&mut self, key: &[u8], now: Now) -> WatchToken {
        // An entry that has expired already goes now, so that its removal later is no change.
        let _ = self.find_live(key, self.hash(key), now);
        let version = self.changes.version;
        let watched = self.changes.watched.entry(key.to_vec()).or_insert(Watched { version, watchers: 0 });
        watched.watchers += 1;
        self.changes.is_heard = true;
        WatchToken { version: watched.version }
    }

    /// Ends one watch of a key.
    pub fn unwatch(&mut self, key: &[u8]) {
        if let Some(watched) = self.changes.watched.get_mut(key) {
            watched.watchers -= 1;
            if watched.watchers == 0 {
                self.changes.watched.remove(key);
                self.changes.is_heard = self.changes.effects.is_some() || !self.changes.watched.is_empty();
            }
        }
    }

    /// Keys that somebody watches.
    pub fn watched_len(&self) -> usize {
        self.changes.watched.len()
    }

    /// Whether nothing happened to a key since it was watched. Its time having come is something.
    pub fn is_unchanged(&mut self, key: &[u8], token: &WatchToken, now: Now) -> bool {
        let _ = self.find_live(key, self.hash(key), now);
        self.changes.watched.get(key).is_some_and(|watched| watched.version == token.version)
    }
}
