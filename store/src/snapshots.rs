//! What snapshots are to a shard's clients: SAVE, BGSAVE, LASTSAVE, SHUTDOWN, and the figures that INFO shows.
//!
//! Taking one is the driver's: a command leaves a [`Wish`], and [`Status`], which all shards share with whoever takes
//! snapshots, says at once whether there is one already. A client that said SAVE waits, as in WAITAOF; its shard and
//! everybody else go on. When the snapshot is durable or has failed, the driver says so with
//! [`Engine::end_saves`].

use crate::engine::{Action, Engine, Shared, StandingClock};
use crate::metrics::sum;
use crate::protocol::reply::Reply;
use crate::session::{ConnectionId, ReplyMode, Session};
use crate::time::Now;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};

/// What Redis says, too.
const RUNNING: &str = "ERR Background save already in progress";

/// Who wants a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// SAVE: the client waits for it.
    Save,
    /// BGSAVE.
    Background,
    /// BGSAVE SCHEDULE, or BGSAVE in a transaction: as soon as one can be taken.
    Scheduled,
    /// SHUTDOWN: the client waits, and then the server ends.
    Shutdown,
}

/// What SHUTDOWN said about the snapshot at the very end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum AtEnd {
    /// Nothing: `snapshot-on-shutdown` decides.
    AsConfigured = 0,
    /// There has to be one.
    Save = 1,
    /// There must not.
    NoSave = 2,
}

/// What all shards and whoever takes snapshots know of them.
#[derive(Debug, Default)]
pub struct Status {
    /// One is asked for, or being taken.
    claimed: AtomicBool,
    /// One is to be taken as soon as it can be.
    scheduled: AtomicBool,
    at_end: AtomicU8,
    /// Shards that cannot take one now, because they are still being read in.
    warming: AtomicUsize,
    /// When the last one was complete, seconds since 1970; 0: there is none.
    pub last_unix_s: AtomicU64,
    /// The last attempt failed.
    pub has_failed: AtomicBool,
    /// All records up to this one are in the last one.
    pub last_lsn: AtomicU64,
    /// Bytes of the last one.
    pub last_bytes: AtomicU64,
    /// How long the last one took, in microseconds; `u64::MAX`: there was none.
    pub last_took_us: AtomicU64,
    /// Snapshots that were completed.
    pub completed: AtomicU64,
    /// Attempts that failed.
    pub failed: AtomicU64,
    /// When the one that is being taken was begun, seconds since 1970; 0: none is.
    pub begun_unix_s: AtomicU64,
    /// Of that, bytes that are written.
    pub written_bytes: AtomicU64,
    /// And all of its bytes.
    pub total_bytes: AtomicU64,
    /// Keys in it.
    pub keys: AtomicU64,
    /// Changes of all shards that are in the last one; see [`Keyspace::changes`](crate::keyspace::Keyspace::changes).
    pub changes_saved: AtomicU64,
    /// Snapshots in the directory.
    pub kept: AtomicU64,
}

impl Status {
    /// Nothing yet.
    pub fn new() -> Arc<Status> {
        let status = Status::default();
        status.last_took_us.store(u64::MAX, Ordering::Relaxed);
        Arc::new(status)
    }

    /// Says that one is to be taken; `false`: somebody else did, and it is not over.
    pub fn claim(&self) -> bool {
        !self.claimed.swap(true, Ordering::AcqRel)
    }

    /// It is over.
    pub fn release(&self) {
        self.claimed.store(false, Ordering::Release);
    }

    /// One is asked for, or being taken.
    pub fn is_claimed(&self) -> bool {
        self.claimed.load(Ordering::Acquire)
    }

    /// Whether one was to be taken as soon as it can be; told once.
    pub fn take_scheduled(&self) -> bool {
        self.scheduled.load(Ordering::Relaxed) && self.scheduled.swap(false, Ordering::AcqRel)
    }

    /// A shard begins to be read in, or has ended.
    pub fn note_warming(&self, is_warming: bool) {
        if is_warming {
            self.warming.fetch_add(1, Ordering::AcqRel);
        } else {
            self.warming.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// A shard is still being read in.
    pub fn is_warming(&self) -> bool {
        self.warming.load(Ordering::Acquire) > 0
    }

    /// What SHUTDOWN said.
    pub fn at_end(&self) -> AtEnd {
        match self.at_end.load(Ordering::Acquire) {
            1 => AtEnd::Save,
            2 => AtEnd::NoSave,
            _ => AtEnd::AsConfigured,
        }
    }

    fn set_at_end(&self, at_end: AtEnd) {
        self.at_end.store(at_end as u8, Ordering::Release);
    }
}

/// A client that waits for a snapshot.
#[derive(Clone, Copy, Debug)]
struct Saver {
    connection: ConnectionId,
    wish: Wish,
    /// SHUTDOWN FORCE: the server ends even so.
    is_forced: bool,
    /// Nobody wants the reply (CLIENT REPLY).
    is_silent: bool,
}

/// A shard's part of it.
#[derive(Debug, Default)]
pub struct Snapshots {
    /// `None`: nobody takes snapshots here.
    pub status: Option<Arc<Status>>,
    /// Why there can be none at all.
    pub refusal: Option<String>,
    /// Why the last attempt failed, in words.
    pub failure: Option<String>,
    wishes: Vec<Wish>,
    savers: Vec<Saver>,
}

impl Snapshots {
    /// Clients that wait for one.
    pub fn waits(&self) -> usize {
        self.savers.len()
    }

    /// A figure, 0 where nobody takes snapshots.
    pub(crate) fn figure(&self, of: impl Fn(&Status) -> &AtomicU64) -> u64 {
        self.status.as_deref().map_or(0, |status| of(status).load(Ordering::Relaxed))
    }

    /// How long the last one took; 0 where there was none.
    pub(crate) fn last_took_us(&self) -> u64 {
        match self.figure(|status| &status.last_took_us) {
            u64::MAX => 0,
            took => took,
        }
    }

    /// The next wish of a client.
    #[inline]
    pub fn take_wish(&mut self) -> Option<Wish> {
        self.wishes.pop()
    }

    /// Whether a snapshot can be had at all; the error is for a client.
    fn status(&self) -> Result<&Arc<Status>, String> {
        match (&self.refusal, &self.status) {
            (Some(why), _) => Err(format!("ERR {why}")),
            (None, None) => Err("ERR this server takes no snapshots".into()),
            (None, Some(status)) => Ok(status),
        }
    }

    /// One is to be taken now.
    pub(crate) fn wish(&mut self, wish: Wish) -> Result<(), String> {
        let status = self.status()?;
        if status.is_warming() && !status.is_claimed() {
            return Err(
                "ERR the snapshot the server started from is still being read in (INFO persistence); try \
                        again then, or say BGSAVE SCHEDULE"
                    .into(),
            );
        }
        if !status.claim() {
            return Err(RUNNING.into());
        }
        self.wishes.push(wish);
        Ok(())
    }

    /// One is to be taken as soon as it can be.
    pub(crate) fn schedule(&mut self) -> Result<(), String> {
        let status = self.status()?;
        status.scheduled.store(true, Ordering::Release);
        self.wishes.push(Wish::Scheduled);
        Ok(())
    }

    /// Whether one is being taken, so that BGSAVE SCHEDULE is an error as in Redis.
    pub(crate) fn refuse_while_running(&self) -> Result<(), String> {
        if self.status()?.is_claimed() { Err(RUNNING.into()) } else { Ok(()) }
    }

    /// SHUTDOWN without a snapshot before it.
    pub(crate) fn end_with(&mut self, at_end: AtEnd) {
        if let Some(status) = &self.status {
            status.set_at_end(at_end);
        }
    }

    /// Whether SHUTDOWN can have one at all.
    pub(crate) fn can_save(&self) -> bool {
        self.status().is_ok()
    }
}

impl Shared {
    /// When the last snapshot was complete, in seconds since 1970; where there was none, when the server started.
    pub(crate) fn last_save_unix_s(&self) -> u64 {
        match self.snapshots.figure(|status| &status.last_unix_s) {
            0 => self.started.unix_us / 1_000_000,
            seconds => seconds,
        }
    }

    /// SAVE, SHUTDOWN: the session's input and the reply wait for the snapshot.
    pub(crate) fn wait_for_snapshot(&mut self, session: &mut Session, wish: Wish, is_forced: bool) {
        let is_silent = matches!(session.reply_mode, ReplyMode::Off | ReplyMode::Skip);
        self.snapshots.savers.push(Saver { connection: session.connection, wish, is_forced, is_silent });
        session.paused_hops = true;
        session.gathers = true;
        if wish == Wish::Shutdown {
            // One that is being taken now is given up for it: whoever takes them knows.
            self.snapshots.wishes.push(wish);
        }
    }
}

impl Engine {
    /// The snapshot that clients with this wish wait for is durable, or there will be none: why, in words.
    pub fn end_saves(&mut self, wish: Wish, result: Result<(), &str>, now: Now) {
        let shared = self.shared_mut();
        let (ended, others) =
            core::mem::take(&mut shared.snapshots.savers).into_iter().partition(|saver| saver.wish == wish);
        shared.snapshots.savers = others;
        let ended: Vec<Saver> = ended;
        for saver in ended {
            let shared = self.shared_mut();
            let is_end = wish == Wish::Shutdown && (result.is_ok() || saver.is_forced);
            if is_end {
                shared.snapshots.end_with(if result.is_ok() { AtEnd::Save } else { AtEnd::NoSave });
                shared.actions.push_back(Action::Shutdown);
            }
            let Some(mut session) = shared.sessions.take(saver.connection) else { continue };
            session.gathers = false;
            if is_end {
                session.closing = true;
            } else if !session.aborted && !saver.is_silent {
                let start = session.output.len();
                let mut reply = Reply::new(&mut session.output, session.resp3);
                match (wish, result) {
                    (Wish::Shutdown, _) => reply.error("ERR Errors trying to SHUTDOWN. Check logs."),
                    (_, Ok(())) => reply.ok(),
                    (_, Err(why)) => reply.error(&format!("ERR {why}")),
                }
                if session.output.get(start) == Some(&b'-') {
                    shared.metrics.note_error(&session.output[start..]);
                }
            }
            shared.settle(&mut session);
            shared.sessions.insert(session);
            self.resume(saver.connection, now, &StandingClock(now.monotonic));
        }
    }
}

/// The fields of INFO persistence, under Redis' names where it has them.
pub(crate) fn write_info(shared: &Shared, now: Now, line: &mut impl FnMut(&str, &dyn core::fmt::Display)) {
    let figure = |of: fn(&Status) -> &AtomicU64| shared.snapshots.figure(of);
    let begun = figure(|status| &status.begun_unix_s);
    let running = u64::from(begun > 0);
    let seconds = |seconds: Option<u64>| seconds.map_or(-1, |seconds| seconds as i64);
    let written = figure(|status| &status.written_bytes);
    let total = figure(|status| &status.total_bytes);
    let keys = figure(|status| &status.keys) * running;
    let done = u128::from(keys) * u128::from(written) / u128::from(total.max(1));
    let took_us = figure(|status| &status.last_took_us);
    let took = (took_us != u64::MAX && shared.snapshots.status.is_some()).then_some(took_us / 1_000_000);
    let status = shared.snapshots.status.as_deref();
    let has_failed = status.is_some_and(|status| status.has_failed.load(Ordering::Relaxed));
    let held =
        sum(shared, |shard| shard.keyspace.image_progress().map_or(0, |progress| progress.held_bytes as u64));
    let changes = sum(shared, |shard| shard.keyspace.changes());
    let now_s = now.unix_us / 1_000_000;
    line("current_cow_size", &held);
    line("current_save_keys_processed", &done);
    line("current_save_keys_total", &keys);
    line("rdb_changes_since_last_save", &changes.saturating_sub(figure(|status| &status.changes_saved)));
    line("rdb_bgsave_in_progress", &running);
    line("rdb_last_save_time", &shared.last_save_unix_s());
    line("rdb_last_bgsave_status", &if has_failed { "err" } else { "ok" });
    line("rdb_last_bgsave_time_sec", &seconds(took));
    line("rdb_current_bgsave_time_sec", &seconds((running > 0).then(|| now_s.saturating_sub(begun))));
    let state = match (&shared.snapshots.refusal, status) {
        (Some(_), _) => "refused",
        (None, None) => "off",
        (None, Some(_)) if running > 0 => "running",
        (None, Some(status)) if status.is_claimed() => "waiting",
        (None, Some(_)) => "idle",
    };
    line("snapshot_state", &state);
    if let Some(failure) = shared.all().find_map(|shard| shard.snapshots.failure.as_deref()) {
        line("snapshot_last_failure", &failure);
    }
}
