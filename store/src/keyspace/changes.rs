//! Who hears of changes: the log, through effects that get an LSN, WATCH, and client tracking.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::{KeyHash, Keyspace};
use crate::mutation::Mutation;
use crate::pending::Pending;
use crate::time::Now;
use crate::tracking::{Cause, Table};
use alloc::boxed::Box;

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
    /// Somebody watches a key, wants the effects, or has a client to tell.
    is_heard: bool,
    /// Mutations so far.
    count: u64,
    /// Who has read what; `None`: nobody is to be told.
    tracked: Option<Box<Table>>,
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
        self.count += 1;
        if self.is_heard {
            self.tell(mutation, hash, Cause::Asked);
        }
    }

    /// The same, where no command asked for it: a key was evicted.
    pub(super) fn note_unasked(&mut self, mutation: Mutation<'_>, hash: KeyHash) {
        self.count += 1;
        if self.is_heard {
            self.tell(mutation, hash, Cause::Evicted);
        }
    }

    #[inline(never)]
    fn tell(&mut self, mutation: Mutation<'_>, hash: KeyHash, cause: Cause) {
        if let Some(key) = mutation.key() {
            self.touched(key);
        }
        if let Some(table) = &mut self.tracked {
            match mutation.key() {
                Some(key) => table.touch(key, hash.0, cause),
                None => table.clear(),
            }
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
    pub(super) fn expired(&mut self, key: &[u8], hash: KeyHash) {
        if self.is_heard {
            self.touched(key);
            if let Some(table) = &mut self.tracked {
                let pending = self.effects.as_ref().and_then(|effects| effects.pending.get(hash.0));
                table.touch(key, hash.0, Cause::Expired(pending.unwrap_or(0)));
            }
        }
    }

    /// Who watches a key must know that it is not what it was.
    #[inline(always)]
    pub(super) fn touched(&mut self, key: &[u8]) {
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

    fn update_heard(&mut self) {
        self.is_heard = self.effects.is_some() || self.tracked.is_some() || !self.watched.is_empty();
    }
}

impl Keyspace {
    // ---- effects ----------------------------------------------------------------------------------------

    /// From now on the effects of writes are kept for [`take_effects`](Self::take_effects). `is_exact`: who looks at a key
    /// observes the last write to it, and not the last one to any.
    pub fn keep_effects(&mut self, is_exact: bool) {
        self.changes.effects = Some(Effects { is_exact, ..Effects::default() });
        self.changes.update_heard();
    }

    /// Effects are of no interest any more: what is applied comes from a log.
    pub(crate) fn stop_effects(&mut self) {
        self.changes.effects = None;
        self.changes.update_heard();
    }

    /// Takes the place of another keyspace: those who heard of its changes hear of this one's.
    pub(crate) fn adopt_listeners(&mut self, mut old: Keyspace) {
        let Changes { count, tracked, watched, version, .. } = core::mem::take(&mut old.changes);
        (self.changes.watched, self.changes.version, self.changes.tracked) = (watched, version, tracked);
        self.changes.count += count;
        self.changes.update_heard();
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

    /// The last LSN given to effects: what is seen of any key is durable when this one is.
    pub fn latest_effect(&self) -> u64 {
        self.changes.effects.as_ref().map_or(0, |effects| effects.latest)
    }

    // ---- client tracking --------------------------------------------------------------------------------

    /// Who has read what; `None`: changes of keys are of no interest.
    #[inline]
    pub fn tracked(&self) -> Option<&Table> {
        self.changes.tracked.as_deref()
    }

    /// As [`prefetch_bucket`](Self::prefetch_bucket), for who has read the key.
    #[inline]
    pub(crate) fn prefetch_readers(&self, hash: KeyHash) {
        if let Some(table) = &self.changes.tracked {
            table.prefetch_bucket(hash.0);
        }
    }

    /// As [`prefetch_record`](Self::prefetch_record), for who has read the key.
    #[inline]
    pub(crate) fn prefetch_readers_entry(&self, hash: KeyHash) {
        if let Some(table) = &self.changes.tracked {
            table.prefetch_entry(hash.0);
        }
    }

    /// A third step, worth it where there are several keys.
    #[inline]
    pub(crate) fn prefetch_readers_behind(&self, hash: KeyHash) {
        if let Some(table) = &self.changes.tracked {
            table.prefetch_behind(hash.0);
        }
    }

    /// The same, for changing it.
    #[inline]
    pub(crate) fn tracked_mut(&mut self) -> Option<&mut Table> {
        self.changes.tracked.as_deref_mut()
    }

    /// From now on it is kept who has read what, or it is not.
    pub(crate) fn keep_tracked(&mut self, table: Option<Box<Table>>) {
        self.changes.tracked = table;
        self.changes.update_heard();
    }

    // ---- watches ----------------------------------------------------------------------------------------

    /// Begins to watch a key for one watcher.
    pub fn watch(&mut self, key: &[u8], now: Now) -> WatchToken {
        // An entry that has expired already goes now, so that its removal later is no change.
        let _ = self.find_live(key, self.hash(key), now);
        let version = self.changes.version;
        let watched = self.changes.watched.entry(key.to_vec()).or_insert(Watched { version, watchers: 0 });
        watched.watchers += 1;
        let token = WatchToken { version: watched.version };
        self.changes.update_heard();
        token
    }

    /// Ends one watch of a key.
    pub fn unwatch(&mut self, key: &[u8]) {
        if let Some(watched) = self.changes.watched.get_mut(key) {
            watched.watchers -= 1;
            if watched.watchers == 0 {
                self.changes.watched.remove(key);
                self.changes.update_heard();
            }
        }
    }

    /// Mutations so far, those included that a log brought back. Keys whose time came are none.
    pub fn changes(&self) -> u64 {
        self.changes.count
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
