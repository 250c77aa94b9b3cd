//! Replication's edge: one thread for each server, between sockets, files, the log and the shards.
//!
//! ```text
//! log's owner ── durable records (tap) ──▶ ┌────────────────────┐ ◀──▶ replicas (links)
//!                                          │ replication thread │
//! shards ◀── effects (lanes), one number ─ │  Primary, Replica  │ ◀──▶ the node it follows (upstream)
//! log's owner ◀── records of a replica ─── └────────────────────┘ ◀──▶ snapshot files, lineage
//! ```
//!
//! What is decided is decided by the crate `repl`; the thread performs it and waits (`thread`). Every server has one, and
//! it sleeps until there is a replica or somebody to follow: no shard ever sees a replica's socket, and a write costs
//! what it costs without replicas.
//!
//! | module | what it owns |
//! |---|---|
//! | [`end`] | a shard's end: effects that were dealt to it, what it is told to become |
//! | [`tap`] | durable records on their way from the log's owner to the thread |
//! | `files` | the node's name, its lineage, snapshots being received, their installation |
//! | `thread` | the loop; changes of role |
//! | `links` | the sockets of replicas, and what they are sent |
//! | `following` | the connection to the primary, and what it brings |
//! | [`turns`] | whether a shard is in a turn: what the time that replicas are told must not pass |
//! | `log_side` | a replica's own log; records read back for replicas that fell behind |
//! | `report` | INFO, ROLE and `/metrics` |
//! | `seldom` | lines that strangers may cause |

pub mod end;
pub(super) mod files;
mod following;
mod links;
mod log_side;
mod report;
mod seldom;
pub mod tap;
mod thread;
pub mod turns;

use super::config::{Datagrams, Launch};
use super::data_directory::{Found, OpenLog};
use super::log_handle::LogHandle;
use super::log_thread::LogControl;
use super::snapshot_thread::SnapshotControl;
use super::start::{StartError, random};
use crate::io::datagrams::{DatagramReceiver, DatagramSender};
use crate::io::stop::StopSignal;
use crate::io::sync::Bell;
use end::Lane;
use repl::identity::NodeId;
use repl::lineage::{BranchId, Lineage};
use repl::secret::Secret;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use store::engine::Seeds;
use store::replication::{Edge, Hindrance, ReplicationState, Report, Role};
use store::session::Durability;
use tap::Tap;
use wal::lsn::{Epoch, Lsn};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What commands leave for the thread.
enum Command {
    Follow(Option<(String, u16)>),
}

/// How far the commands are: they are done in the order in which they came.
#[derive(Default)]
struct Followed {
    asked: u64,
    done: u64,
    /// Of the last ones that failed.
    failures: VecDeque<(u64, String)>,
}

/// Failures that are remembered for whoever waits for them.
const FAILURES_MAX: usize = 64;

/// The thread, as shards reach it.
pub(super) struct Handle {
    state: Arc<ReplicationState>,
    bell: Arc<Bell>,
    commands: Mutex<VecDeque<Command>>,
    followed: Mutex<Followed>,
    report: Mutex<Report>,
    /// The history, for reads that name a record of another branch than the present one.
    lineage: Mutex<Lineage>,
    /// What each replica has applied.
    acked: Mutex<Vec<u64>>,
    /// Somebody waits for acks.
    wants_acks: AtomicBool,
    stops: AtomicBool,
    /// Why this server can follow nobody.
    refusal: Option<&'static str>,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handle({:?})", self.state)
    }
}

impl Handle {
    /// Somebody waits for replicas to have what was written.
    fn is_waited_for(&self) -> bool {
        self.wants_acks.load(Ordering::Acquire)
    }

    /// The first command that was not done is.
    fn note_followed(&self, result: Result<(), String>) {
        let mut followed = lock(&self.followed);
        followed.done += 1;
        if let Err(why) = result {
            let number = followed.done;
            followed.failures.push_back((number, why));
            if followed.failures.len() > FAILURES_MAX {
                followed.failures.pop_front();
            }
        }
    }

    /// Everybody may know that the history has come to this branch.
    fn tell_history(&self, lineage: &Lineage) {
        // First the history, so that the branch before is in it when it is not the present one any more.
        lock(&self.lineage).clone_from(lineage);
        if let Some(branch) = lineage.latest() {
            self.state.set_branch(branch.id.0, branch.epoch.0);
        }
    }
}

impl Edge for Handle {
    fn report(&self) -> Report {
        lock(&self.report).clone()
    }

    fn follow(&self, whom: Option<(String, u16)>) -> Result<u64, String> {
        if let Some(why) = self.refusal {
            return Err(why.into());
        }
        let number = {
            let mut commands = lock(&self.commands);
            commands.push_back(Command::Follow(whom));
            let mut followed = lock(&self.followed);
            followed.asked += 1;
            followed.asked
        };
        self.bell.ring();
        Ok(number)
    }

    fn followed(&self, number: u64) -> Option<Result<(), String>> {
        let followed = lock(&self.followed);
        let failure = followed.failures.iter().find(|(failed, _)| *failed == number);
        (followed.done >= number).then(|| failure.map_or(Ok(()), |(_, why)| Err(why.clone())))
    }

    fn replicas_with(&self, lsn: u64, asks: bool) -> usize {
        let count = lock(&self.acked).iter().filter(|&&applied| applied >= lsn).count();
        if asks && !self.wants_acks.swap(true, Ordering::AcqRel) {
            self.bell.ring();
        }
        count
    }

    fn holds_record(&self, branch: u64, lsn: u64) -> bool {
        lock(&self.lineage).holds_record(BranchId(branch), Lsn(lsn))
    }
}

/// What the data directory says of histories, and the branch that was begun on it.
pub(super) struct History {
    node: NodeId,
    lineage: Lineage,
    pub(super) last_lsn: Lsn,
    log_first_lsn: Option<Lsn>,
    last_unix_us: u64,
}

/// Reads which history the data is of; a primary that takes replicas begins a branch, and its log goes on in that
/// branch's epoch.
pub(super) fn begin_history(
    launch: &Launch,
    log: &mut OpenLog,
    found: &Found,
    notes: &mut Vec<String>,
) -> Result<History, StartError> {
    let mut name = [0; 16];
    name[..8].copy_from_slice(&random()?.to_le_bytes());
    name[8..].copy_from_slice(&random()?.to_le_bytes());
    let mut history = History {
        node: NodeId(name),
        lineage: Lineage::default(),
        last_lsn: found.lsn,
        log_first_lsn: None,
        last_unix_us: 0,
    };
    let OpenLog::Native(start) = log else {
        if launch.replica_listen.is_some() && launch.replicaof.is_none() {
            let text = "replica-listen: a primary needs a log that replicas can be sent: --durability always or everysec, and \
                        --journal native";
            return Err(StartError::Setting(text.into()));
        }
        // What a snapshot brought has no history behind it.
        history.last_lsn = Lsn::ZERO;
        return Ok(history);
    };
    let known = files::read_lineage(&launch.dir).map_err(StartError::Setting)?;
    let takes_part = launch.replica_listen.is_some() || launch.replicaof.is_some() || known.is_some();
    history.last_lsn = start.next_lsn.previous();
    history.last_unix_us = start.last_unix_us;
    history.lineage = known.unwrap_or_default();
    let first = super::recovery::LogOnDisk::open(&launch.dir).map_err(StartError::Recovery)?.first_lsn();
    history.log_first_lsn = Some(first.min(start.next_lsn));
    if !takes_part {
        return Ok(history);
    }
    history.node = files::node_id(&launch.dir, name).map_err(StartError::Setting)?;
    let epoch = start.epoch.max(latest_epoch(&history.lineage));
    let is_known = !start.segments.is_empty();
    if is_known && !history.lineage.fits(start.epoch, start.epoch_first_lsn, history.last_lsn) {
        // Records would be taken for others of the same numbers.
        notes.push(format!(
            "the file lineage is not of this log, which is in epoch {} from LSN {} to {}: it is not used, and replicas are \
             given everything anew",
            start.epoch, start.epoch_first_lsn, history.last_lsn
        ));
        history.lineage = Lineage::default();
    }
    if found.snapshot.is_some_and(|id| id.epoch > latest_epoch(&history.lineage)) {
        // It was taken by a server without a log: what that one wrote is in no record, and behind the last one that replicas
        // have.
        history.lineage = Lineage::default();
    }
    if launch.replicaof.is_none() {
        let branch = history.lineage.begin(start.next_lsn, BranchId(random()?), epoch);
        files::write_lineage(&launch.dir, &history.lineage).map_err(StartError::Setting)?;
        (start.epoch, start.epoch_first_lsn) = (branch.epoch, start.next_lsn);
        start.is_marked = false;
    }
    Ok(history)
}

/// Listens for replicas.
pub(super) fn listen(launch: &Launch) -> Result<Option<TcpListener>, StartError> {
    let Some(address) = launch.replica_listen else { return Ok(None) };
    let listener = TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    listener.map(Some).map_err(|error| {
        StartError::Setting(format!(
            "replica-listen: cannot listen on {address}: {error}; choose another port"
        ))
    })
}

/// What all parts of a server need of replication before the thread runs.
pub(super) struct Prepared {
    pub(super) state: Arc<ReplicationState>,
    pub(super) handle: Arc<Handle>,
    pub(super) bell: Arc<Bell>,
    pub(super) tap: Arc<Tap>,
    listener: Option<TcpListener>,
    sender: Option<DatagramSender>,
    receiver: Option<DatagramReceiver>,
}

/// Begins: nothing runs yet.
pub(super) fn prepare(launch: &Launch) -> Result<Prepared, StartError> {
    let listener = listen(launch)?;
    let bell = Arc::new(Bell::new().map_err(StartError::System)?);
    let state = ReplicationState::new();
    let is_encrypted = launch.journal == super::journal::JournalKind::Sqlcipher;
    let refusal = is_encrypted.then_some(
        "ERR this server's journal is encrypted (--journal sqlcipher), and what a primary sends is not: it cannot follow",
    );
    if let (true, Some(why)) = (launch.replicaof.is_some(), refusal) {
        return Err(StartError::Setting(format!("replicaof: {}", why.trim_start_matches("ERR "))));
    }
    if launch.replicaof.is_some() {
        state.set_role(Role::Replica);
        state.set_hindrance(Hindrance::Loading);
    }
    state.set_lag_max_ms(launch.replica_max_lag);
    let handle = Arc::new(Handle {
        state: Arc::clone(&state),
        bell: Arc::clone(&bell),
        commands: Mutex::default(),
        followed: Mutex::default(),
        report: Mutex::default(),
        lineage: Mutex::default(),
        acked: Mutex::default(),
        wants_acks: AtomicBool::new(false),
        stops: AtomicBool::new(false),
        refusal,
    });
    let tap = Tap::new(Arc::clone(&bell));
    let Datagrams { to, at, interface, .. } = &launch.datagrams;
    let failed = |setting: &str, error: io::Error| {
        StartError::Setting(format!(
            "{setting}: no socket for datagrams: {error}; name addresses this machine can reach"
        ))
    };
    let sender = match to.is_empty() {
        true => None,
        false => Some(DatagramSender::new(to, *interface).map_err(|error| failed("delta-udp", error))?),
    };
    let receiver = match at {
        None => None,
        Some(at) => {
            Some(DatagramReceiver::new(*at, *interface).map_err(|error| failed("delta-udp-listen", error))?)
        }
    };
    Ok(Prepared { state, handle, bell, tap, listener, sender, receiver })
}

impl Prepared {
    /// Where replicas connect.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.listener.as_ref().and_then(|listener| listener.local_addr().ok())
    }
}

/// The log, as the thread reaches it.
pub(super) struct OwnLog {
    pub(super) control: LogControl,
    pub(super) handle: LogHandle,
}

/// Everything that the thread is made of.
pub(super) struct Setup {
    pub(super) prepared: Prepared,
    pub(super) history: History,
    pub(super) lanes: Vec<Arc<Lane>>,
    pub(super) log: Option<OwnLog>,
    pub(super) snapshots: Option<SnapshotControl>,
    pub(super) seeds: Vec<Seeds>,
    pub(super) helper_core: Option<usize>,
    pub(super) stop: StopSignal,
    /// Ports of this server for clients: RESP, HTTP (0: none).
    pub(super) ports: (u16, u16),
}

/// What the thread keeps of the settings.
struct Options {
    directory: PathBuf,
    keeps_log: bool,
    shards: usize,
    ports: (u16, u16),
    backlog_bytes: usize,
    secret: Secret,
    replicaof: Option<(String, u16)>,
    datagram_bytes_per_second: u64,
}

/// The thread.
#[derive(Debug)]
pub(super) struct ReplicationThread {
    thread: Option<JoinHandle<()>>,
    handle: Arc<Handle>,
}

impl ReplicationThread {
    /// Starts it.
    pub(super) fn start(launch: &Launch, setup: Setup) -> io::Result<ReplicationThread> {
        let options = Options {
            directory: launch.dir.clone(),
            keeps_log: launch.durability != Durability::Off,
            shards: launch.shards,
            ports: setup.ports,
            backlog_bytes: launch.repl_backlog_bytes,
            secret: Secret::new(&launch.replication_secret),
            replicaof: launch.replicaof.clone(),
            datagram_bytes_per_second: launch.datagrams.bytes_per_second,
        };
        let handle = Arc::clone(&setup.prepared.handle);
        let mut random = [0; 32];
        getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
        let mut worker = thread::Worker::new(options, setup, random);
        // Before the first client is heard: it is not told that nobody is followed, and that no replicas are taken.
        worker.report();
        let thread = Builder::new().name("replication".into()).spawn(move || worker.run())?;
        Ok(ReplicationThread { thread: Some(thread), handle })
    }

    /// Ends it: replicas are sent what is durable, and told that the server stops.
    pub(super) fn stop(&mut self) {
        self.handle.stops.store(true, Ordering::Release);
        self.handle.bell.ring();
        if let Some(thread) = self.thread.take() {
            // Its panic was said where it happened.
            let _ = thread.join();
        }
    }
}

impl Drop for ReplicationThread {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The epoch that records of this history have behind its last branch.
fn latest_epoch(lineage: &Lineage) -> Epoch {
    lineage.latest().map_or(Epoch(0), |branch| branch.epoch)
}
