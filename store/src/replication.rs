//! What a shard knows of replication: which role the server has, what may be read, and what its primary has sent.
//!
//! [`ReplicationState`] is a handful of atomics that all shards and the replication thread share; every server has one,
//! with replicas or without. The thread itself is behind [`Edge`], and asked only by commands that are about it.
//!
//! **How a replica applies records.** The thread deals a delivery's effects to the shards' [`Feed`]s and then moves one
//! number, [`ReplicationState::dealt_lsn`], behind its last record. Before a command is executed its shard applies all that
//! was dealt up to that number (`Shared::catch_up`); a command over several shards has all of them do so, up to the same
//! number. So whatever is read, on whatever shard, is the state behind one record, and never an earlier one than anybody
//! has read before: what clients see is a prefix of the primary's log without a lock or a barrier. A shard that nobody asks
//! applies in its own turns.
//!
//! **Time.** Keys expire by the primary's word: a replica's clock for keys is the time of a heartbeat whose last record it
//! has applied, and before which nothing was executed that comes later ([`ReplicationState::word_us`]). So a key is never
//! gone here that a later record still changes.

use crate::command::{Command, flag};
use crate::engine::{Engine, Shared};
use crate::journal::Journal;
use crate::keyspace::Keyspace;
use crate::session::Durability;
use crate::shards::{Place, ShardSet};
use crate::time::Now;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

/// Which side of replication a server is on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// It writes, whether it has replicas or not.
    #[default]
    Primary,
    /// It follows another, and does not write.
    Replica,
}

/// Why a replica does not answer reads now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hindrance {
    /// Nothing is in the way.
    #[default]
    None,
    /// There is no data yet, or it is being replaced: `-LOADING`, 503.
    Loading,
    /// The data may be further behind than `replica-max-lag`: `-STALE`, 503.
    Stale,
}

/// What all shards and the replication thread share. Everything is written by that thread, and read by anybody.
#[derive(Debug, Default)]
pub struct ReplicationState {
    role: AtomicU8,
    hindrance: AtomicU8,
    dealt_lsn: AtomicU64,
    word_us: AtomicU64,
    branch: AtomicU64,
    epoch: AtomicU64,
    lag_us: AtomicU64,
    lag_records: AtomicU64,
    is_linked: AtomicBool,
    lag_max_ms: AtomicU64,
    wakes: AtomicU64,
}

impl ReplicationState {
    /// A primary.
    pub fn new() -> Arc<ReplicationState> {
        Arc::new(ReplicationState { lag_us: AtomicU64::new(u64::MAX), ..ReplicationState::default() })
    }

    /// The role.
    #[inline]
    pub fn role(&self) -> Role {
        if self.role.load(Ordering::Acquire) == 0 { Role::Primary } else { Role::Replica }
    }

    /// Whether the server follows another.
    #[inline]
    pub fn is_replica(&self) -> bool {
        self.role() == Role::Replica
    }

    /// Changes the role.
    pub fn set_role(&self, role: Role) {
        self.role.store(role as u8, Ordering::Release);
    }

    /// Why reads are not answered.
    #[inline]
    pub fn hindrance(&self) -> Hindrance {
        match self.hindrance.load(Ordering::Acquire) {
            0 => Hindrance::None,
            1 => Hindrance::Loading,
            _ => Hindrance::Stale,
        }
    }

    /// Says why.
    pub fn set_hindrance(&self, hindrance: Hindrance) {
        self.hindrance.store(hindrance as u8, Ordering::Release);
    }

    /// On a replica: everything up to this record can be read, and is seen by every command that begins from now on. On a
    /// primary that is [`Shared::readable_lsn`]'s to say.
    #[inline]
    pub fn dealt_lsn(&self) -> u64 {
        self.dealt_lsn.load(Ordering::Acquire)
    }

    /// Everything up to this record is in the shards' feeds.
    pub fn set_dealt_lsn(&self, lsn: u64) {
        self.dealt_lsn.store(lsn, Ordering::Release);
    }

    /// On a replica: what time it is for keys, in microseconds since 1970. On a primary: no command is executed at an
    /// earlier time. 0: nothing was said.
    #[inline]
    pub fn word_us(&self) -> u64 {
        self.word_us.load(Ordering::Acquire)
    }

    /// The primary's word is this; it never goes back but where the history changes (`is_new`). A replica that is promoted
    /// goes on from it.
    pub fn set_word_us(&self, word_us: u64, is_new: bool) {
        if is_new {
            self.word_us.store(word_us, Ordering::Release);
        } else {
            self.word_us.fetch_max(word_us, Ordering::AcqRel);
        }
    }

    /// The branch of history that records are added to now: its random id and its epoch. An LSN and the branch that it was
    /// written in name one record and never two. (0, 0): the server has no replicas and keeps no history for any.
    pub fn branch(&self) -> (u64, u64) {
        (self.branch.load(Ordering::Acquire), self.epoch.load(Ordering::Acquire))
    }

    /// A branch has begun.
    pub fn set_branch(&self, id: u64, epoch: u64) {
        self.epoch.store(epoch, Ordering::Release);
        self.branch.store(id, Ordering::Release);
    }

    /// On a replica: by how many microseconds it may be behind; none if nothing is known. Told ten times a second or more.
    pub fn lag_us(&self) -> Option<u64> {
        Some(self.lag_us.load(Ordering::Relaxed)).filter(|&lag| lag != u64::MAX)
    }

    /// On a replica: records that are durable on the primary, as far as is known, and cannot be read here.
    pub fn lag_records(&self) -> u64 {
        self.lag_records.load(Ordering::Relaxed)
    }

    /// Says how far behind it is.
    pub fn set_lag(&self, us: Option<u64>, records: u64) {
        self.lag_us.store(us.unwrap_or(u64::MAX), Ordering::Relaxed);
        self.lag_records.store(records, Ordering::Relaxed);
    }

    /// What `replica-max-lag` says; 0: any lag is fine.
    pub fn lag_max_ms(&self) -> u64 {
        self.lag_max_ms.load(Ordering::Relaxed)
    }

    /// Says it, if it is something else.
    #[inline]
    pub fn set_lag_max_ms(&self, ms: u64) {
        if self.lag_max_ms() != ms {
            self.lag_max_ms.store(ms, Ordering::Relaxed);
        }
    }

    /// On a replica: records are streaming from the primary (`master_link_status:up`).
    pub fn is_linked(&self) -> bool {
        self.is_linked.load(Ordering::Acquire)
    }

    /// Says so.
    pub fn set_linked(&self, is_linked: bool) {
        self.is_linked.store(is_linked, Ordering::Release);
    }

    /// Counts what shards may want to look at again: a change of role, records that arrived, a wait that ended.
    pub fn wakes(&self) -> u64 {
        self.wakes.load(Ordering::Acquire)
    }

    /// Something has changed.
    pub fn note_wake(&self) {
        self.wakes.fetch_add(1, Ordering::AcqRel);
    }
}

/// Effects for one shard, of records one behind the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Portion {
    /// What goes before the effects happen.
    pub cleared: Option<Cleared>,
    /// The effects; see [`crate::mutation`].
    pub effects: Vec<u8>,
    /// The last record they belong to, or that came after them and had nothing for this shard.
    pub last_lsn: u64,
}

/// All keys that some shards of a primary had: they were removed there while others were in a snapshot already that was taken
/// behind it. What of them is on a shard here depends on how many shards there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cleared {
    /// How many shards there were.
    pub count: usize,
    /// Those whose keys go.
    pub shards: ShardSet,
}

impl Cleared {
    /// Whether a key goes.
    pub fn has(self, key: &[u8]) -> bool {
        self.shards.contains(Place { index: 0, count: self.count }.shard_of(key))
    }
}

/// Where a shard takes what was dealt to it.
pub trait Feed: Send + Sync {
    /// The next portion with no record behind this one.
    fn take(&self, until: u64) -> Option<Portion>;
    /// The shard has applied everything up to here. An error: it cannot go on, for this reason.
    fn applied(&self, lsn: u64, result: Result<(), String>);
}

/// A number for INFO and `/metrics`.
#[derive(Clone, Copy, Debug)]
pub struct Figure {
    /// In INFO; in `/metrics` with `millrace_` before it.
    pub name: &'static str,
    /// It only goes up.
    pub is_counter: bool,
    /// What it means.
    pub help: &'static str,
    /// It; `u64::MAX`: nothing is known.
    pub value: u64,
}

/// Whom the server follows, and how that goes.
#[derive(Clone, Debug, Default)]
pub struct Upstream {
    /// As it was named: the primary's address for clients.
    pub host: String,
    /// And its port.
    pub port: u16,
    /// Its port for HTTP, once it has said so; 0: it has none, or has not said.
    pub http_port: u16,
    /// `connect`, `connecting`, `sync` or `connected`, as ROLE has it.
    pub state: &'static str,
    /// Since when nothing is streaming, in seconds; none while something is.
    pub down_s: Option<u64>,
    /// When the primary was last heard, in seconds.
    pub last_io_s: Option<u64>,
    /// Of a snapshot that is on its way: bytes that are here, and all of them.
    pub sync: Option<(u64, u64)>,
    /// Bytes of records that were taken from the primary and are not applied by all shards.
    pub unapplied_bytes: u64,
    /// Why the last connection ended.
    pub last_fault: Option<String>,
    /// Figures for INFO and `/metrics`.
    pub figures: Vec<Figure>,
}

/// A replica, for INFO and ROLE.
#[derive(Clone, Debug, Default)]
pub struct ReplicaLine {
    /// Its address.
    pub host: String,
    /// Its port for clients.
    pub port: u32,
    /// `handshake`, `wait_bgsave`, `send_bulk`, or `online`.
    pub state: &'static str,
    /// Who it is.
    pub node: String,
    /// What it has acknowledged.
    pub applied_lsn: u64,
    /// What is in its own log.
    pub durable_lsn: u64,
    /// Records it lacks.
    pub lag_records: u64,
    /// Their bytes.
    pub lag_bytes: u64,
    /// How long the oldest of them has been durable.
    pub lag_us: u64,
    /// Its records come as datagrams.
    pub is_live: bool,
}

/// How replication stands, for INFO, ROLE and `/metrics`.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// This node's id, 32 hexadecimal digits.
    pub node: String,
    /// Whom it follows; none: it is a primary.
    pub upstream: Option<Upstream>,
    /// Those who follow it.
    pub replicas: Vec<ReplicaLine>,
    /// The last record that replicas may have.
    pub lsn: u64,
    /// Where replicas connect; 0: nowhere.
    pub port: u16,
    /// The branch before the present one, and where it ended: what Redis calls the second id.
    pub previous: Option<(u64, u64)>,
    /// Bytes of the backlog: bound, used, and its first record.
    pub backlog: (u64, u64, u64),
    /// Records are kept for replicas.
    pub keeps_backlog: bool,
    /// Figures for INFO and `/metrics`.
    pub figures: Vec<Figure>,
}

/// The replication thread, as commands reach it.
pub trait Edge: Send + Sync {
    /// How things stand.
    fn report(&self) -> Report;
    /// REPLICAOF: follow this host and port, or nobody. Done when [`followed`](Self::followed) says so of this number. An
    /// error is for the client.
    fn follow(&self, whom: Option<(String, u16)>) -> Result<u64, String>;
    /// What became of it; `None`: it is being done. Shards are woken when that changes.
    fn followed(&self, number: u64) -> Option<Result<(), String>>;
    /// How many replicas have a record; asks them to say so soon.
    fn replicas_with(&self, lsn: u64, asks: bool) -> usize;
    /// Whether a record of another branch than the present one is part of the server's history, which has come as far as that.
    fn holds_record(&self, branch: u64, lsn: u64) -> bool;
}

/// What a shard holds of replication.
#[derive(Default)]
pub struct Replication {
    /// Shared by all.
    pub state: Arc<ReplicationState>,
    /// The thread; none: this server was built without one.
    pub edge: Option<Arc<dyn Edge>>,
    /// This shard follows: where its records come from, and what it has applied.
    following: Option<(Arc<dyn Feed>, u64)>,
}

impl fmt::Debug for Replication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let applied = self.following.as_ref().map(|(_, applied)| applied);
        f.debug_struct("Replication").field("state", &self.state).field("applied", &applied).finish()
    }
}

impl Replication {
    /// Whether this shard applies what another server has written.
    #[inline]
    pub fn is_following(&self) -> bool {
        self.following.is_some()
    }

    /// What this shard has applied, if it follows.
    pub fn applied_lsn(&self) -> Option<u64> {
        self.following.as_ref().map(|(_, applied)| *applied)
    }
}

/// What a client is told that wants to write on a replica.
pub(crate) const READONLY: &str = "READONLY You can't write against a read only replica.";
const LOADING: &str = "LOADING Millrace is loading the dataset in memory";

impl Shared {
    /// Everything up to this record can be read here, and will be after a crash of the primary: the LSN that a reply of
    /// now may name. 0 where there is no log.
    pub fn readable_lsn(&self) -> u64 {
        if self.replication.is_following() || self.replication.state.is_replica() {
            return self.replication.state.dealt_lsn();
        }
        self.journal.as_ref().map_or(0, |journal| journal.durable_lsn())
    }

    /// Applies all that was dealt, on this shard and on those in hand.
    #[inline]
    pub(crate) fn catch_up(&mut self, now: Now) {
        if self.replication.is_following() {
            self.catch_up_to(self.replication.state.dealt_lsn(), now);
        }
    }

    #[cold]
    fn catch_up_to(&mut self, dealt: u64, now: Now) {
        let is_behind = |shard: &Shared| shard.replication.applied_lsn().is_some_and(|lsn| lsn < dealt);
        if self.has_guests() {
            self.for_all(|shard| {
                if is_behind(shard) {
                    shard.apply_dealt(dealt, now);
                }
            });
        } else if is_behind(self) {
            self.apply_dealt(dealt, now);
        }
    }

    fn apply_dealt(&mut self, dealt: u64, now: Now) {
        let Some((feed, applied)) = &mut self.replication.following else { return };
        while let Some(portion) = feed.take(dealt) {
            // Effects of one record on one shard are never apart, so nobody sees half of it.
            let cleared = match portion.cleared {
                Some(cleared) => self.keyspace.clear_where(&|key| cleared.has(key), now),
                None => Ok(()),
            };
            let applied_all = cleared.and_then(|()| self.keyspace.apply_all(&portion.effects, now));
            if let Err(error) = applied_all {
                let why = format!("records up to LSN {} cannot be applied: {}", portion.last_lsn, error.why);
                return feed.applied(*applied, Err(why));
            }
        }
        *applied = dealt;
        feed.applied(dealt, Ok(()));
        if self.has_news() {
            self.conclude_tracking(None, None);
        }
    }

    /// Whether a command may be executed by what replication says now; else what its client is told.
    #[cold]
    pub(crate) fn heed_replication(&self, command: &Command, writes: bool) -> Result<(), String> {
        let state = &self.replication.state;
        if !state.is_replica() && !self.replication.is_following() {
            return Ok(());
        }
        if writes {
            return Err(READONLY.into());
        }
        let looks = command.flags & flag::READONLY != 0 && command.keys.first > 0
            || matches!(command.name, "exec" | "watch" | "scan" | "keys" | "dbsize" | "randomkey");
        match state.hindrance() {
            Hindrance::Loading if command.flags & flag::LOADING == 0 => Err(LOADING.into()),
            Hindrance::Stale if looks => Err(self.stale_text()),
            _ => Ok(()),
        }
    }

    /// The same for a request over HTTP; the error is a status and its explanation.
    #[cold]
    pub(crate) fn heed_as_replica(&self, writes: bool) -> Result<(), (u16, String)> {
        if writes {
            return Err((409, self.primary_text()));
        }
        match self.replication.state.hindrance() {
            Hindrance::None => Ok(()),
            Hindrance::Loading => {
                Err((503, "There is no data yet: it is on its way from the primary. Try again.".into()))
            }
            Hindrance::Stale => Err((503, format!("The command was refused: {}", self.stale_text()))),
        }
    }

    /// Where to write.
    fn primary_text(&self) -> String {
        let standing = self.standing();
        let place = match (standing.http_primary, standing.primary) {
            (Some(http), _) => format!(", http://{http}"),
            (None, Some(resp)) => format!(", {resp} (RESP)"),
            (None, None) => String::new(),
        };
        format!("This is a replica, which does not write. Write to its primary{place}.")
    }

    fn stale_text(&self) -> String {
        let most = self.config.replica_max_lag;
        match self.replication.state.lag_us() {
            Some(lag) => format!(
                "STALE this replica may be {} ms behind its primary, and replica-max-lag allows {most}; read from another",
                lag / 1000
            ),
            None => format!(
                "STALE this replica does not know how far it is behind its primary, and replica-max-lag allows {most} ms; \
                 read from another"
            ),
        }
    }

    /// The role has changed, or what hinders reads: commands are asked anew.
    pub(crate) fn heeds_replication(&self) -> bool {
        self.replication.is_following()
    }

    /// This shard belongs to a replica from now on: its records come from `feed`, and begin behind `applied`.
    pub fn begin_following(&mut self, feed: Arc<dyn Feed>, applied: u64) {
        self.replication.following = Some((feed, applied));
        self.keyspace.stop_effects();
        self.is_plain = false;
        self.restrict();
    }

    /// This shard writes again; with a log, behind this record.
    pub fn end_following(&mut self, last_lsn: u64) {
        self.replication.following = None;
        let class = self.journal.as_ref().map(|journal| journal.class());
        if let Some(class) = class {
            self.keyspace.keep_effects(class == Durability::Always);
        }
        if let Some(journal) = &mut self.journal {
            journal.go_on_behind(last_lsn);
        }
        self.is_plain = !self.is_sharded && self.journal.is_none() && !self.is_tracking;
        self.restrict();
    }

    /// All there is belongs to no history that is followed: it goes, as if everything were removed.
    pub fn clear_for_another(&mut self, now: Now) {
        self.keyspace.clear(now);
        self.settings_changed(now);
        if self.has_news() {
            self.conclude_tracking(None, None);
        }
    }

    /// Other data takes the place of all there is: what a snapshot of the primary brought, all up to `applied`.
    pub fn replace_keyspace(&mut self, keyspace: Keyspace, applied: u64, now: Now) {
        // As if everything were removed: watchers are told, and who tracks.
        self.keyspace.clear(now);
        let old = core::mem::replace(&mut self.keyspace, keyspace);
        self.keyspace.adopt_listeners(old);
        self.keyspace.stop_effects();
        if let Some((_, at)) = &mut self.replication.following {
            *at = applied;
        }
        self.settings_changed(now);
        if self.has_news() {
            self.conclude_tracking(None, None);
        }
    }
}

impl Engine {
    /// A turn of a shard that follows: what was dealt is applied though nobody asks for it.
    pub fn apply_dealt(&mut self, now: Now) {
        self.shared_mut().catch_up(now);
    }
}

impl Journal {
    /// Records go on behind this one, which is durable: others than this shard's have been written meanwhile.
    pub(crate) fn go_on_behind(&mut self, last_lsn: u64) {
        self.set_durable_lsn(last_lsn);
    }
}

/// For tests of other crates: a boxed feed of portions.
pub type SharedFeed = Arc<dyn Feed>;

const _: fn() = || {
    fn is_shared<T: Send + Sync>() {}
    is_shared::<Box<dyn Edge>>();
};
