//! Starting and stopping: from settings to threads that serve.
//!
//! [`Server::start`] checks what can be checked (limits, cores, the driver), opens the listeners, starts the
//! shards' threads and returns once they serve. The program does that with the process' signals, the load
//! generator and the tests with a server inside their own process.
//!
//! The threads start in two steps: each makes what only it can make, its ring above all, and says so; only when all
//! have, all begin. A shard that cannot start so leaves no other behind, and nobody is served by half a server.

mod error;
mod listeners;

use super::config::{Io, Launch, Settings};
use super::data_directory::{self, Found, OpenLog};
use super::journal::JournalKind;
#[cfg(feature = "sqlcipher")]
use super::journal_thread::JournalThread;
use super::log_end::LogEnd;
use super::log_handle::{LogHandle, LogShared, LogState, Waker};
use super::log_thread::{LogControl, LogOptions, LogThread};
use super::mailbox::{Mailbox, Mailboxes};
use super::pipeline::{ListenerRole, Pipeline};
use super::replication::end::{Lane, ReplicationEnd};
use super::replication::{self, OwnLog, Prepared, ReplicationThread, Setup};
use super::shard::{self, Company, Shard};
use super::snapshot_end::{Pace, SnapshotEnd};
use super::snapshot_handle::History;
use super::snapshot_owner::SnapshotOptions;
use super::snapshot_start::Origin;
use super::snapshot_thread::{self, SnapshotThread};
use super::topology::Topology;
use super::warm_pace::{PlannedPace, WarmPace};
use crate::clock::SystemClock;
use crate::cpu::{self, ThreadCpuTime, ThreadsCpuTime};
use crate::io::driver::Driver;
use crate::io::epoll::EpollDriver;
use crate::io::listener::Listener;
use crate::io::log_files::{self, DirectoryLock, LogFiles};
use crate::io::probe;
use crate::io::snapshot_files::SnapshotFiles;
use crate::io::stop::StopSignal;
use crate::io::sync::Bell;
use crate::io::sys;
use crate::io::uring::UringDriver;
use crate::server::event::Target;
pub use error::StartError;
use listeners::{deal_listeners, open_listeners};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;
use store::config::Config;
use store::engine::{Engine, Seeds};
use store::journal::Journal;
use store::keyspace::Keyspace;
use store::session::{Durability, Transport};
use store::shards::{self, Message, Totals};
use store::snapshots::Status;
use wal::lsn::Lsn;

/// Starts servers; see [`Server::start`].
#[derive(Debug)]
pub struct Server;

impl Server {
    /// Starts a server in this process. It serves until it is stopped, or until the value returned is dropped.
    pub fn start(settings: impl Into<Settings>) -> Result<RunningServer, StartError> {
        let stop = StopSignal::new().map_err(StartError::System)?;
        Self::start_with(settings.into(), stop)
    }

    /// Starts a server that `stop` stops.
    pub fn start_with(settings: Settings, stop: StopSignal) -> Result<RunningServer, StartError> {
        let mut launch = Launch::read(&settings.config).map_err(StartError::Setting)?;
        let mut warnings = Vec::new();
        let topology = Topology::plan(&launch).map_err(StartError::Pin)?;
        warnings.extend(topology.warnings.iter().cloned());
        let files = probe::raise_open_files(launch.clients_max).map_err(StartError::Limit)?;
        warnings.extend(files.warning);
        launch.clients_max = files.clients_max;
        if let Some(most) = probe::backlog_max().filter(|&most| most < launch.backlog) {
            warnings.push(format!(
                "tcp-backlog {} is cut to {most} by the kernel (sysctl net.core.somaxconn)",
                launch.backlog
            ));
        }
        if launch.journal == JournalKind::Sqlcipher && launch.durability == Durability::Off {
            let text = "durability is off, so nothing is kept, encrypted or not: name --durability always or everysec";
            warnings.push(text.into());
        }
        let mut config = settings.config;
        config.maxclients = launch.clients_max as u32;
        // CONFIG GET names the number, not the wish for as many as there are cores.
        config.shards = launch.shards.to_string();
        let started = match start_shards(&launch, &topology, &config, &stop) {
            Err(StartError::Ring(why)) if !settings.io_chosen => {
                warnings.push(format!("serving with epoll instead of io_uring: {why}"));
                launch.io = Io::Epoll;
                start_shards(&launch, &topology, &config, &stop)
            }
            started => started,
        };
        let started = started?;
        warnings.extend(started.notes);
        let address = |transport| {
            let mut tcp = started.listeners.iter().filter(|listener| listener.transport == transport);
            tcp.find_map(|listener| match listener.address {
                Target::Tcp(address) => Some(address),
                Target::Unix(_) => None,
            })
        };
        Ok(RunningServer {
            resp: address(Transport::Resp),
            http: address(Transport::Http),
            unix: launch.unix,
            io: launch.io,
            warnings,
            listeners: started.listeners,
            stop,
            cpu: started.cpu,
            shards: launch.shards,
            threads: started.threads,
            snapshots: started.snapshots,
            log: started.log,
            replication: started.replication,
            replicas: started.replicas,
            _lock: started.lock,
            _warm_pace: started.warm_pace,
        })
    }
}

/// A server that serves. Dropping it stops it and waits for that.
#[derive(Debug)]
pub struct RunningServer {
    /// The first RESP listener on TCP, with its real port.
    pub resp: Option<SocketAddr>,
    /// The first HTTP listener, with its real port.
    pub http: Option<SocketAddr>,
    /// The AF_UNIX listener.
    pub unix: Option<PathBuf>,
    /// The driver in use.
    pub io: Io,
    /// What an operator should know although it did not prevent the start.
    pub warnings: Vec<String>,
    listeners: Vec<Place>,
    stop: StopSignal,
    cpu: ThreadsCpuTime,
    shards: usize,
    threads: Vec<JoinHandle<io::Result<()>>>,
    snapshots: Option<SnapshotThread>,
    log: Option<DurableLog>,
    replication: Option<ReplicationThread>,
    /// Where replicas connect.
    pub replicas: Option<SocketAddr>,
    /// Makes this process the only one in the directory.
    _lock: Option<DirectoryLock>,
    _warm_pace: Option<WarmPace>,
}

/// The log of a server.
#[derive(Debug)]
struct DurableLog {
    writer: LogWriter,
    shared: Option<Arc<LogShared>>,
}

/// Whichever writes it.
#[derive(Debug)]
enum LogWriter {
    Native(LogThread),
    #[cfg(feature = "sqlcipher")]
    Encrypted(JournalThread),
}

impl LogWriter {
    fn control(&self) -> Option<LogControl> {
        match self {
            LogWriter::Native(thread) => Some(thread.control()),
            #[cfg(feature = "sqlcipher")]
            LogWriter::Encrypted(_) => None,
        }
    }

    fn close(self) -> Result<(), String> {
        match self {
            LogWriter::Native(thread) => thread.close(),
            #[cfg(feature = "sqlcipher")]
            LogWriter::Encrypted(thread) => thread.close(),
        }
    }
}

impl RunningServer {
    /// Asks the server to stop: it accepts nothing more, lets clients take their replies for a moment, and
    /// ends. Does not wait.
    pub fn stop(&self) {
        self.stop.request();
    }

    /// Waits until the server has ended, by whatever asked it to.
    pub fn join(mut self) -> io::Result<()> {
        self.wait()
    }

    fn wait(&mut self) -> io::Result<()> {
        let served = join_all(std::mem::take(&mut self.threads));
        // Replicas have what clients were promised before the log ends.
        self.replication = None;
        let saved = self.snapshots.take().map_or(Ok(()), |thread| thread.join().map_err(io::Error::other));
        // Behind the last reply: what is on its way becomes durable, whoever waits for it.
        let closed = self.log.take().map_or(Ok(()), |log| log.writer.close().map_err(io::Error::other));
        served.and(saved).and(closed)
    }

    /// CPU time the shards have used together.
    pub fn cpu_time(&self) -> Duration {
        self.cpu.read()
    }

    /// CPU time each shard has used.
    pub fn shard_cpu_times(&self) -> Vec<Duration> {
        self.cpu.each()
    }

    /// The clock behind [`cpu_time`](Self::cpu_time), to keep when the server is joined.
    pub fn cpu_clock(&self) -> ThreadsCpuTime {
        self.cpu.clone()
    }

    /// The line that tells a supervisor or a test that every listener accepts, and where.
    pub fn ready_line(&self) -> String {
        let mut line = String::from("ready");
        for (name, unix, transport) in [
            ("resp", false, Transport::Resp),
            ("http", false, Transport::Http),
            ("unix", true, Transport::Resp),
        ] {
            let places: Vec<String> = self
                .listeners
                .iter()
                .filter(|place| place.transport == transport && place.is_unix() == unix)
                .map(|place| place.address.to_string())
                .collect();
            if !places.is_empty() {
                line.push_str(&format!(" {name}={}", places.join(",")));
            }
        }
        if let Some(replicas) = &self.replicas {
            line.push_str(&format!(" replicas={replicas}"));
        }
        line.push_str(&format!(" io={} shards={} pid={}", self.io, self.shards, std::process::id()));
        line
    }
}

impl Drop for RunningServer {
    fn drop(&mut self) {
        self.stop();
        // Whoever wants to know how it ended joins.
        let _ = self.wait();
    }
}

/// Where a listener stands; the listener itself belongs to the driver.
#[derive(Clone, Debug)]
struct Place {
    transport: Transport,
    address: Target,
}

impl Place {
    fn of(listener: &Listener) -> Self {
        Place { transport: listener.transport(), address: listener.address().clone() }
    }

    fn is_unix(&self) -> bool {
        matches!(self.address, Target::Unix(_))
    }

    fn role(&self) -> ListenerRole {
        let local = match &self.address {
            Target::Tcp(address) => address.to_string(),
            // As Redis writes the address of a Unix socket.
            Target::Unix(path) => format!("{}:0", path.display()),
        };
        ListenerRole { transport: self.transport, unix: self.is_unix(), local }
    }
}

/// What has been started.
struct Started {
    listeners: Vec<Place>,
    snapshots: Option<SnapshotThread>,
    log: Option<DurableLog>,
    replication: Option<ReplicationThread>,
    replicas: Option<SocketAddr>,
    lock: Option<DirectoryLock>,
    warm_pace: Option<WarmPace>,
    notes: Vec<String>,
    cpu: ThreadsCpuTime,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

/// Opens the listeners and starts the threads that serve them; returns when they do.
fn start_shards(
    launch: &Launch,
    topology: &Topology,
    config: &Config,
    stop: &StopSignal,
) -> Result<Started, StartError> {
    if launch.io == Io::Uring {
        probe::check_uring(&launch.uring).map_err(StartError::Ring)?;
    }
    let listeners = open_listeners(launch).map_err(StartError::Listen)?;
    if listeners.is_empty() {
        let text = "this machine has none of the addresses in bind: nothing would listen";
        return Err(StartError::Setting(text.into()));
    }
    let places: Vec<Place> = listeners.iter().map(Place::of).collect();
    let mut config = config.clone();
    config.io = launch.io.to_string();
    // INFO and CONFIG GET name the port that was found, not the 0 that asked for one.
    for place in &places {
        match (place.transport, &place.address) {
            (Transport::Resp, Target::Tcp(address)) => config.port = address.port(),
            (Transport::Http, Target::Tcp(address)) => config.http_port = address.port(),
            (_, Target::Unix(_)) => {}
        }
    }
    let listeners = deal_listeners(launch, listeners).map_err(StartError::Listen)?;
    let mut starting = Starting { threads: Vec::new(), reports: Vec::new(), begin: Vec::new() };
    // Where a shard does not start, dropping this ends the others.
    let mut log = None;
    let mut warm_pace = None;
    let mut snapshots = None;
    let mut lock = None;
    let mut replication = None;
    let mut notes = Vec::new();
    let prepared = replication::prepare(launch)?;
    let replicas = prepared.address();
    let begun = (|| {
        let seeds = seeds(launch.shards)?;
        let mut data = data_directory::open(launch, topology, &seeds, &mut notes)?;
        let history = replication::begin_history(launch, &mut data.log, &data.found, &mut notes)?;
        let hashes = data.hash_seed;
        let seeds: Vec<Seeds> = seeds.into_iter().map(|seeds| Seeds { hash: hashes, ..seeds }).collect();
        let shards = seeds.iter().copied().zip(data.keyspaces).collect();
        let ports = (config.port, if config.http { config.http_port } else { 0 });
        let mut plans = plans(launch, topology, config, listeners, stop, shards)?;
        if let Some(served) = &data.served {
            let (pace, bounds) = PlannedPace::new(served, launch.warm_rate, topology.helper_core());
            warm_pace = Some(pace);
            for (plan, bound) in plans.iter_mut().zip(bounds) {
                plan.engine.bound_warming(bound);
                plan.origin = Some(Arc::clone(&served.origin));
            }
        }
        let own_handle;
        (log, own_handle) = open_log(launch, &mut plans, data.log, &prepared, &mut notes)?;
        lock = data.lock;
        let found = (data.found, lock.is_some());
        snapshots = open_snapshots(launch, topology, &mut plans, log.as_ref(), found)?;
        if launch.replicaof.is_some() && history.last_lsn == Lsn::ZERO {
            // What a snapshot brought is of no history that can be followed.
            let now = SystemClock::new().tick();
            plans.iter_mut().for_each(|plan| plan.engine.shared_mut().clear_for_another(now));
        }
        let lanes = attach_replication(launch, &mut plans, &prepared, history.last_lsn);
        let control = log.as_ref().and_then(|log| log.writer.control());
        let setup = Setup {
            prepared,
            history,
            lanes,
            log: control.zip(own_handle).map(|(control, handle)| OwnLog { control, handle }),
            snapshots: snapshots.as_ref().map(SnapshotThread::control),
            seeds,
            helper_core: topology.helper_core(),
            stop: stop.clone(),
            ports,
        };
        for plan in plans {
            starting.spawn(plan)?;
        }
        let cpu = starting.await_all()?;
        replication = Some(ReplicationThread::start(launch, setup).map_err(StartError::System)?);
        Ok(cpu)
    })();
    match begun {
        Ok(cpu) => {
            let threads = starting.begin();
            let warm_pace = warm_pace.map(PlannedPace::begin);
            let listeners = places;
            Ok(Started {
                listeners,
                snapshots,
                log,
                replication,
                replicas,
                lock,
                warm_pace,
                notes,
                cpu,
                threads,
            })
        }
        Err(error) => {
            starting.abandon();
            Err(error)
        }
    }
}

/// What each shard takes with it.
fn plans(
    launch: &Launch,
    topology: &Topology,
    config: Config,
    listeners: Vec<Vec<Listener>>,
    stop: &StopSignal,
    shards: Vec<(Seeds, Keyspace)>,
) -> Result<Vec<Plan>, StartError> {
    let count = launch.shards;
    let totals = Totals::new(count);
    let mut mailboxes: Vec<Option<Mailbox<Message>>> = match count {
        1 => vec![None],
        _ => {
            let mailboxes = Mailboxes::new(count, launch.hop_queue).map_err(StartError::System)?;
            mailboxes.into_iter().map(Some).collect()
        }
    };
    let now = SystemClock::new().now();
    let mut plans = Vec::new();
    for ((index, listeners), (seeds, keyspace)) in listeners.into_iter().enumerate().zip(shards) {
        let mut mailbox = mailboxes[index].take();
        if let Some(mailbox) = mailbox.as_mut().filter(|_| topology.crowded) {
            mailbox.shares_its_core();
        }
        let bell = match &mailbox {
            Some(mailbox) => mailbox.bell().another(),
            None => Bell::new(),
        };
        let place = shards::Place { index, count };
        plans.push(Plan {
            launch: launch.clone(),
            engine: Engine::with_keyspace(config.clone(), seeds, keyspace, now, place, totals.clone()),
            origin: None,
            log: None,
            snapshots: None,
            replication: None,
            bell: Arc::new(bell.map_err(StartError::System)?),
            place,
            core: topology.cores[index],
            mailbox,
            listeners,
            stop: stop.clone(),
        });
    }
    Ok(plans)
}

/// Gives every shard its end of replication, and lets those of a replica follow.
fn attach_replication(
    launch: &Launch,
    plans: &mut [Plan],
    prepared: &Prepared,
    last_lsn: Lsn,
) -> Vec<Arc<Lane>> {
    let mut lanes = Vec::new();
    for plan in plans {
        let lane = Lane::new(Arc::clone(&plan.bell), Arc::clone(&prepared.bell), last_lsn);
        let shared = plan.engine.shared_mut();
        shared.replication.state = Arc::clone(&prepared.state);
        shared.replication.edge = Some(Arc::<replication::Handle>::clone(&prepared.handle));
        if launch.replicaof.is_some() {
            shared.begin_following(Arc::<Lane>::clone(&lane), last_lsn.0);
        }
        plan.replication = Some(ReplicationEnd::new(Arc::clone(&lane), plan.place.index == 0));
        lanes.push(lane);
    }
    lanes
}

/// Lets every shard's writes go on in the log. With it comes a handle for the replication thread.
fn open_log(
    launch: &Launch,
    plans: &mut [Plan],
    log: OpenLog,
    replication: &Prepared,
    notes: &mut Vec<String>,
) -> Result<(Option<DurableLog>, Option<LogHandle>), StartError> {
    let mut options = log_options(launch);
    options.tap = Some(Arc::clone(&replication.tap));
    let mut wakers = wakers(plans);
    let bell = Arc::clone(&replication.bell);
    wakers.push(Box::new(move || bell.ring()));
    let (writer, mut handles) = match log {
        OpenLog::None => return Ok((None, None)),
        OpenLog::Native(start) => {
            let files = LogFiles::new(&launch.dir, launch.log_write_mode);
            let (thread, handles) =
                LogThread::start(files, &start, options, wakers).map_err(StartError::System)?;
            (LogWriter::Native(thread), handles)
        }
        #[cfg(feature = "sqlcipher")]
        OpenLog::Encrypted(opened) => {
            let (thread, handles) =
                JournalThread::start(*opened, options, wakers).map_err(StartError::System)?;
            (LogWriter::Encrypted(thread), handles)
        }
    };
    let state = handles.first().map_or(LogState::Open, |handle| handle.shared().state());
    if state.is_full() {
        notes.push(format!("writes are refused until there is room, reads are served: {state}"));
    }
    let shared = handles.first().map(|handle| Arc::clone(handle.shared()));
    let own = handles.pop();
    for (plan, handle) in plans.iter_mut().zip(handles) {
        plan.engine.keep_journal(Journal::new(handle.shared().lsns(), launch.durability));
        let end = LogEnd::new(handle, Arc::clone(&plan.bell), plan.place.index == 0);
        plan.log = Some(if has_a_core(launch) { end } else { end.sharing_its_core() });
    }
    Ok((Some(DurableLog { writer, shared }), own))
}

/// Whether threads that help the shards have a core of their own.
fn has_a_core(launch: &Launch) -> bool {
    cpu::allowed_cores().len() > launch.shards
}

/// Lets every shard take snapshots, unless nothing of the data may lie on the disk in the clear.
fn open_snapshots(
    launch: &Launch,
    topology: &Topology,
    plans: &mut [Plan],
    log: Option<&DurableLog>,
    (found, is_locked): (Found, bool),
) -> Result<Option<SnapshotThread>, StartError> {
    if launch.journal == JournalKind::Sqlcipher {
        for plan in plans {
            plan.engine.shared_mut().snapshots.refusal = Some(snapshot_thread::ENCRYPTED.into());
        }
        return Ok(None);
    }
    let status = Status::new();
    for plan in plans.iter_mut() {
        plan.engine.shared_mut().snapshots.status = Some(Arc::clone(&status));
    }
    let history = match log.and_then(|log| log.shared.clone()) {
        Some(shared) => History::Log(shared),
        None => History::Still(found.epoch, found.lsn),
    };
    let files = match is_locked {
        true => SnapshotFiles::new(&launch.dir),
        false => SnapshotFiles::to_be_locked(&launch.dir),
    };
    let options = SnapshotOptions {
        schedule: launch.snapshots,
        checksum: log_files::checksum(),
        uid_seed: random()?,
        pace: if has_a_core(launch) { Pace::WITH_A_CORE } else { Pace::WITHOUT },
        log_bytes_before: found.log_bytes,
        started_from: found.snapshot,
        owns_directory: is_locked,
        ..SnapshotOptions::default()
    };
    let control = log.and_then(|log| log.writer.control());
    let bells = plans.iter().map(|plan| Arc::clone(&plan.bell)).collect();
    let (core, shards) = (topology.helper_core(), (wakers(plans), bells));
    let (thread, ends) = SnapshotThread::start(files, history, status, options, control, core, shards)
        .map_err(StartError::System)?;
    for (plan, end) in plans.iter_mut().zip(ends) {
        plan.snapshots = Some(end);
    }
    Ok(Some(thread))
}

fn log_options(launch: &Launch) -> LogOptions {
    LogOptions {
        policy: match launch.durability {
            Durability::Always => wal::settings::FlushPolicy::EveryBlock,
            _ => wal::settings::FlushPolicy::OnRequest,
        },
        write_mode: launch.log_write_mode,
        segment_bytes: launch.log_segment_bytes,
        ..LogOptions::default()
    }
}

/// What wakes each shard when there is something for it to hear.
fn wakers(plans: &[Plan]) -> Vec<Waker> {
    let waker = |plan: &Plan| -> Waker {
        let bell = Arc::clone(&plan.bell);
        Box::new(move || sys::eventfd_raise(bell.as_fd()))
    };
    plans.iter().map(waker).collect()
}

/// Threads that make their rings and wait for the word to serve.
struct Starting {
    threads: Vec<JoinHandle<io::Result<()>>>,
    reports: Vec<Receiver<Result<ThreadCpuTime, StartError>>>,
    begin: Vec<Sender<()>>,
}

impl Starting {
    fn spawn(&mut self, plan: Plan) -> Result<(), StartError> {
        let (tell, told) = channel();
        let (begin, begun) = channel();
        let thread = Builder::new()
            .name(format!("shard-{}", plan.place.index))
            .spawn(move || serve(plan, &Word { tell, begun }))
            .map_err(StartError::System)?;
        self.threads.push(thread);
        self.reports.push(told);
        self.begin.push(begin);
        Ok(())
    }

    /// Waits until every one is ready to serve; the first that is not says why.
    fn await_all(&mut self) -> Result<ThreadsCpuTime, StartError> {
        let ended = |_| {
            let text = "a shard's thread ended while it started; this is a bug";
            Err(StartError::System(io::Error::other(text)))
        };
        let clocks = self.reports.iter().map(|told| told.recv().unwrap_or_else(ended));
        Ok(ThreadsCpuTime::of(clocks.collect::<Result<_, _>>()?))
    }

    /// Lets them serve.
    fn begin(self) -> Vec<JoinHandle<io::Result<()>>> {
        for begin in &self.begin {
            // One that has ended since then is found by whoever joins it.
            let _ = begin.send(());
        }
        self.threads
    }

    /// Sends them home, and waits until what they held is free: somebody may try again.
    fn abandon(self) {
        drop(self.begin);
        // Whatever ended them, the reason for giving up is known already.
        let _ = join_all(self.threads);
    }
}

/// Between a thread that starts and the one that started it.
struct Word {
    tell: Sender<Result<ThreadCpuTime, StartError>>,
    begun: Receiver<()>,
}

impl Word {
    /// Says that all is ready; `true`: so is everybody, serve.
    fn is_given(&self, cpu: &ThreadCpuTime) -> bool {
        self.tell.send(Ok(cpu.clone())).is_ok() && self.begun.recv().is_ok()
    }

    fn refuse(&self, error: StartError) -> io::Result<()> {
        // Nobody who listens is somebody who has given up already.
        let _ = self.tell.send(Err(error));
        Ok(())
    }
}

/// Waits for threads to end; the error is that of the one that failed by itself.
fn join_all(threads: Vec<JoinHandle<io::Result<()>>>) -> io::Result<()> {
    let mut result: io::Result<()> = Ok(());
    for thread in threads {
        let ended = thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("a shard's thread panicked; this is a bug")));
        // The others end with a broken pipe because of it.
        let known = matches!(&result, Err(error) if error.kind() != io::ErrorKind::BrokenPipe);
        if ended.is_err() && !known {
            result = ended;
        }
    }
    result
}

/// What a shard's thread takes with it.
struct Plan {
    launch: Launch,
    place: shards::Place,
    core: Option<usize>,
    engine: Engine,
    origin: Option<Arc<Origin>>,
    log: Option<LogEnd>,
    snapshots: Option<SnapshotEnd>,
    replication: Option<ReplicationEnd>,
    /// Wakes the shard, whoever has something for it.
    bell: Arc<Bell>,
    mailbox: Option<Mailbox<Message>>,
    listeners: Vec<Listener>,
    stop: StopSignal,
}

/// The whole life of a shard's thread.
fn serve(plan: Plan, word: &Word) -> io::Result<()> {
    let Plan {
        launch, core, mut engine, origin, log, snapshots, replication, bell, mailbox, listeners, ..
    } = plan;
    let stop = plan.stop;
    let prepare = || {
        if let Some(core) = core {
            cpu::pin_to(core).map_err(StartError::Pin)?;
        }
        ThreadCpuTime::of_this_thread().map_err(StartError::System)
    };
    let cpu = match prepare() {
        Ok(cpu) => cpu,
        Err(error) => return word.refuse(error),
    };
    let clock = SystemClock::new().heeding(Arc::clone(&engine.shared().replication.state));
    let roles = listeners.iter().map(|listener| Place::of(listener).role()).collect();
    engine.shared_mut().process_id = std::process::id();
    let pipeline = Pipeline::new(engine, roles);
    let company = mailbox.map(|mailbox| Company::new(mailbox, stop.clone()));
    let ends = Ends { clock, company, log, origin, snapshots, replication, bell };
    // The ring belongs to the thread that makes it, so the driver is made here.
    let result = match launch.io {
        Io::Uring => match UringDriver::new(listeners, launch.uring, stop) {
            Ok(driver) => run(driver, pipeline, ends, &cpu, word),
            Err(error) => word.refuse(StartError::Ring(probe::explain(&error, &launch.uring))),
        },
        Io::Epoll => match EpollDriver::new(listeners, launch.epoll, stop) {
            Ok(driver) => run(driver, pipeline, ends, &cpu, word),
            Err(error) => word.refuse(StartError::System(error)),
        },
    };
    cpu.finish();
    result
}

/// What a shard has beside its driver and its core.
struct Ends {
    clock: SystemClock,
    company: Option<Company>,
    log: Option<LogEnd>,
    origin: Option<Arc<Origin>>,
    snapshots: Option<SnapshotEnd>,
    replication: Option<ReplicationEnd>,
    bell: Arc<Bell>,
}

fn run<D: Driver>(
    mut driver: D,
    pipeline: Pipeline,
    ends: Ends,
    cpu: &ThreadCpuTime,
    word: &Word,
) -> io::Result<()> {
    let Ends { clock, company, log, origin, snapshots, replication, bell } = ends;
    if company.is_some() || log.is_some() || snapshots.is_some() || replication.is_some() {
        let watched = bell.as_fd().try_clone_to_owned().and_then(|waker| driver.watch(waker));
        if let Err(error) = watched {
            return word.refuse(StartError::System(error));
        }
    }
    match word.is_given(cpu) {
        true => {
            let shard = Shard::new(driver, pipeline, clock, company, log).with_origin(origin);
            shard::run(shard.with_snapshots(snapshots).with_replication(replication))
        }
        false => Ok(()),
    }
}

/// Randomness is asked for once and handed down: the core is deterministic given these. One name and one way of hashing
/// for the whole server; choices are each shard's own.
fn seeds(shards: usize) -> Result<Vec<Seeds>, StartError> {
    let mut run_id = [0; 20];
    getrandom::fill(&mut run_id).map_err(no_random)?;
    let hash = random()?;
    (0..shards).map(|_| Ok(Seeds { hash, random: random()?, run_id })).collect()
}

pub(super) fn random() -> Result<u64, StartError> {
    getrandom::u64().map_err(no_random)
}

fn no_random(error: getrandom::Error) -> StartError {
    StartError::System(io::Error::other(format!("the kernel gave no random bytes: {error}")))
}
