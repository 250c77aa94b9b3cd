//! Starting and stopping: from settings to threads that serve.
//!
//! [`Server::start`] checks what can be checked (limits, cores, the driver), opens the listeners, starts the
//! shards' threads and returns once they serve. The program does that with the process' signals, the load
//! generator and the tests with a server inside their own process.
//!
//! The threads start in two steps: each makes what only it can make, its ring above all, and says so; only when all
//! have, all begin. A shard that cannot start so leaves no other behind, and nobody is served by half a server.

use super::config::{Bind, Io, Launch, Settings};
use super::journal::{self, JournalKind};
#[cfg(feature = "sqlcipher")]
use super::journal_thread::JournalThread;
use super::log_end::LogEnd;
use super::log_handle::{LogHandle, LogState, Waker};
use super::log_thread::{LogOptions, LogThread};
use super::mailbox::{Mailbox, Mailboxes};
use super::pipeline::{ListenerRole, Pipeline};
use super::recovery::{self, RecoveryError, RecoveryOptions};
use super::replay::replay;
use super::shard::{self, Company};
use super::topology::Topology;
use crate::clock::SystemClock;
use crate::cpu::{self, PinError, ThreadCpuTime, ThreadsCpuTime};
use crate::io::driver::Driver;
use crate::io::epoll::EpollDriver;
use crate::io::listener::{ListenError, ListenOptions, Listener};
use crate::io::log_files::{self, DirectoryLock, LockError, LogFiles};
use crate::io::memory::MmapSource;
use crate::io::probe::{self, RingUnavailable};
use crate::io::stop::StopSignal;
use crate::io::sync::Bell;
use crate::io::sys;
use crate::io::uring::UringDriver;
use crate::server::event::Target;
use std::fmt;
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
use store::session::{Durability, Transport};
use store::shards::{self, Message, Totals};

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
            log: started.log,
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
    log: Option<DurableLog>,
}

/// The log of a server, and the lock that makes it the only one.
#[derive(Debug)]
struct DurableLog {
    writer: LogWriter,
    _lock: DirectoryLock,
}

/// Whichever writes it.
#[derive(Debug)]
enum LogWriter {
    Native(LogThread),
    #[cfg(feature = "sqlcipher")]
    Encrypted(JournalThread),
}

impl LogWriter {
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
        // Behind the last reply: what is on its way becomes durable, whoever waits for it.
        let closed = self.log.take().map_or(Ok(()), |log| log.writer.close().map_err(io::Error::other));
        served.and(closed)
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

/// Why a server did not start: for a person to act on.
#[derive(Debug)]
pub enum StartError {
    /// A setting that contradicts another.
    Setting(String),
    /// A core that cannot be had.
    Pin(PinError),
    /// A limit of the process that leaves no room.
    Limit(String),
    /// io_uring cannot be had.
    Ring(RingUnavailable),
    /// Another process works in the directory.
    Lock(LockError),
    /// What the log holds cannot be brought back.
    Recovery(RecoveryError),
    /// An address that cannot be listened on.
    Listen(ListenError),
    /// The kernel refused something else.
    System(io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Setting(text) | Self::Limit(text) => f.write_str(text),
            Self::Pin(error) => error.fmt(f),
            Self::Ring(error) => error.fmt(f),
            Self::Lock(error) => error.fmt(f),
            Self::Recovery(error) => error.fmt(f),
            Self::Listen(error) => error.fmt(f),
            Self::System(error) => {
                write!(f, "the system refused what a start needs: {}", log_files::in_words(error))
            }
        }
    }
}

impl std::error::Error for StartError {}

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
    log: Option<DurableLog>,
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
    let mut notes = Vec::new();
    let begun = (|| {
        let mut plans = plans(launch, topology, config, listeners, stop)?;
        if launch.durability != Durability::Off {
            log = Some(open_log(launch, &mut plans, &mut notes)?);
        }
        for plan in plans {
            starting.spawn(plan)?;
        }
        starting.await_all()
    })();
    match begun {
        Ok(cpu) => Ok(Started { listeners: places, log, notes, cpu, threads: starting.begin() }),
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
    let common = seeds()?;
    let mut plans = Vec::new();
    for (index, listeners) in listeners.into_iter().enumerate() {
        let mut mailbox = mailboxes[index].take();
        if let Some(mailbox) = mailbox.as_mut().filter(|_| topology.crowded) {
            mailbox.shares_its_core();
        }
        let place = shards::Place { index, count };
        // One name and one way of hashing for the whole server; choices are each shard's own.
        let seeds = Seeds { random: random()?, ..common };
        // Made here and not on the pinned thread, whose core its helper must not share.
        let memory = Box::new(MmapSource::with_helper_on(topology.helper_core()));
        let now = SystemClock::new().now();
        plans.push(Plan {
            launch: launch.clone(),
            engine: Engine::with_place(config.clone(), seeds, memory, now, place, totals.clone()),
            log: None,
            place,
            core: topology.cores[index],
            mailbox,
            listeners,
            stop: stop.clone(),
        });
    }
    Ok(plans)
}

/// Brings back what the log holds, and lets every shard's writes go on in it.
fn open_log(launch: &Launch, plans: &mut [Plan], notes: &mut Vec<String>) -> Result<DurableLog, StartError> {
    let lock = DirectoryLock::take(&launch.dir).map_err(StartError::Lock)?;
    journal::refuse_the_other(&launch.dir, launch.journal).map_err(StartError::Setting)?;
    let (wakers, bells) = wakers(plans)?;
    let (writer, handles) = match launch.journal {
        JournalKind::Native => open_native(launch, plans, notes, wakers)?,
        #[cfg(feature = "sqlcipher")]
        JournalKind::Sqlcipher => open_encrypted(launch, plans, notes, wakers)?,
        #[cfg(not(feature = "sqlcipher"))]
        JournalKind::Sqlcipher => return Err(StartError::Setting(journal::NOT_BUILT_IN.into())),
    };
    let state = handles.first().map_or(LogState::Open, |handle| handle.shared().state());
    if state.is_full() {
        notes.push(format!("writes are refused until there is room, reads are served: {state}"));
    }
    for ((plan, handle), bell) in plans.iter_mut().zip(handles).zip(bells) {
        plan.engine.keep_journal(Journal::new(handle.shared().lsns(), launch.durability));
        plan.log = Some(LogEnd::new(handle, bell, plan.place.index == 0));
    }
    Ok(DurableLog { writer, _lock: lock })
}

fn open_native(
    launch: &Launch,
    plans: &mut [Plan],
    notes: &mut Vec<String>,
    wakers: Vec<Waker>,
) -> Result<(LogWriter, Vec<LogHandle>), StartError> {
    let now = SystemClock::new().now();
    let mut options = RecoveryOptions::new(random()?);
    options.to = launch.recover_to;
    let mut report = |line: &str| eprintln!("millrace: {line}");
    let records = recovery::records_about(&launch.dir).map_err(StartError::Recovery)?;
    let engines = plans.iter_mut().map(|plan| &mut plan.engine).collect();
    let recovered = replay(&launch.dir, engines, records, now, |each| {
        recovery::recover(&launch.dir, options, &mut report, each)
    })
    .map_err(StartError::Recovery)?;
    if launch.recover_to.is_some()
        && let Some((epoch, first)) = recovery::latest_epoch(&launch.dir).map_err(StartError::Recovery)?
        && first == recovered.end.next_lsn
    {
        // A supervisor that starts it again with the same words must not cut again.
        return Err(StartError::Recovery(RecoveryError::AlreadyCut { epoch, first }));
    }
    notes.extend(recovered.line());
    notes.extend(recovered.cut());
    let files = LogFiles::new(&launch.dir, launch.log_write_mode);
    let (thread, handles) =
        LogThread::start(files, &recovered.start, log_options(launch), wakers).map_err(StartError::System)?;
    Ok((LogWriter::Native(thread), handles))
}

#[cfg(feature = "sqlcipher")]
fn open_encrypted(
    launch: &Launch,
    plans: &mut [Plan],
    notes: &mut Vec<String>,
    wakers: Vec<Waker>,
) -> Result<(LogWriter, Vec<LogHandle>), StartError> {
    let now = SystemClock::new().now();
    let source = journal::KeySource::of(launch.journal_key_file.clone());
    let mut opened = journal::open(&launch.dir, &source).map_err(StartError::Recovery)?;
    let mut report = |line: &str| eprintln!("millrace: {line}");
    let records = opened.next_lsn().0 - opened.first_lsn().0;
    let engines = plans.iter_mut().map(|plan| &mut plan.engine).collect();
    let recovered = replay(&launch.dir, engines, records, now, |each| {
        journal::recover(&opened, launch.recover_to, &mut report, each)
    })
    .map_err(StartError::Recovery)?;
    notes.extend(recovered.line());
    if launch.recover_to.is_some() {
        notes.extend(recovered.cut(&mut opened).map_err(StartError::Recovery)?);
    }
    let (thread, handles) =
        JournalThread::start(opened, log_options(launch), wakers).map_err(StartError::System)?;
    Ok((LogWriter::Encrypted(thread), handles))
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

/// What wakes each shard when something of its own has become durable.
fn wakers(plans: &[Plan]) -> Result<(Vec<Waker>, Vec<Arc<Bell>>), StartError> {
    let mut wakers: Vec<Waker> = Vec::new();
    let mut bells = Vec::new();
    for plan in plans {
        let bell = match &plan.mailbox {
            Some(mailbox) => mailbox.bell().another(),
            None => Bell::new(),
        };
        let bell = Arc::new(bell.map_err(StartError::System)?);
        bells.push(Arc::clone(&bell));
        wakers.push(Box::new(move || sys::eventfd_raise(bell.as_fd())));
    }
    Ok((wakers, bells))
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
    log: Option<LogEnd>,
    mailbox: Option<Mailbox<Message>>,
    listeners: Vec<Listener>,
    stop: StopSignal,
}

/// The whole life of a shard's thread.
fn serve(plan: Plan, word: &Word) -> io::Result<()> {
    let Plan { launch, place: _, core, mut engine, log, mailbox, listeners, stop } = plan;
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
    let clock = SystemClock::new();
    let roles = listeners.iter().map(|listener| Place::of(listener).role()).collect();
    engine.shared_mut().process_id = std::process::id();
    let pipeline = Pipeline::new(engine, roles);
    let company = mailbox.map(|mailbox| Company::new(mailbox, stop.clone()));
    // The ring belongs to the thread that makes it, so the driver is made here.
    let result = match launch.io {
        Io::Uring => match UringDriver::new(listeners, launch.uring, stop) {
            Ok(driver) => run(driver, pipeline, clock, company, log, &cpu, word),
            Err(error) => word.refuse(StartError::Ring(probe::explain(&error, &launch.uring))),
        },
        Io::Epoll => match EpollDriver::new(listeners, launch.epoll, stop) {
            Ok(driver) => run(driver, pipeline, clock, company, log, &cpu, word),
            Err(error) => word.refuse(StartError::System(error)),
        },
    };
    cpu.finish();
    result
}

fn run<D: Driver>(
    mut driver: D,
    pipeline: Pipeline,
    clock: SystemClock,
    company: Option<Company>,
    log: Option<LogEnd>,
    cpu: &ThreadCpuTime,
    word: &Word,
) -> io::Result<()> {
    let bell = company.as_ref().map(Company::bell).or_else(|| log.as_ref().map(LogEnd::bell));
    if let Some(bell) = bell {
        let watched = bell.as_fd().try_clone_to_owned().and_then(|waker| driver.watch(waker));
        if let Err(error) = watched {
            return word.refuse(StartError::System(error));
        }
    }
    match word.is_given(cpu) {
        true => shard::run(driver, pipeline, clock, company, log),
        false => Ok(()),
    }
}

/// Every listener once for each shard.
fn deal_listeners(launch: &Launch, mut first: Vec<Listener>) -> Result<Vec<Vec<Listener>>, ListenError> {
    let options = listen_options(launch);
    let mut others = Vec::new();
    for _ in 1..launch.shards {
        others.push(first.iter_mut().map(|listener| listener.another(options)).collect::<Result<_, _>>()?);
    }
    others.insert(0, first);
    Ok(others)
}

fn listen_options(launch: &Launch) -> ListenOptions {
    ListenOptions { backlog: launch.backlog, reuse_port: false }
}

/// Opens every listener the settings ask for: RESP, HTTP, AF_UNIX, in this order.
fn open_listeners(launch: &Launch) -> Result<Vec<Listener>, ListenError> {
    let options = listen_options(launch);
    let mut listeners = Vec::new();
    open_tcp(&mut listeners, &launch.bind, launch.port, Transport::Resp, options)?;
    if let Some(port) = launch.http_port {
        open_tcp(&mut listeners, &launch.bind, port, Transport::Http, options)?;
    }
    if let Some(path) = &launch.unix {
        listeners.push(Listener::unix(path, Transport::Resp, options)?);
    }
    Ok(listeners)
}

/// One listener per address, all on one port: a free one is chosen by the first.
fn open_tcp(
    listeners: &mut Vec<Listener>,
    binds: &[Bind],
    mut port: u16,
    transport: Transport,
    options: ListenOptions,
) -> Result<(), ListenError> {
    for bind in binds {
        match Listener::tcp(SocketAddr::new(bind.address, port), transport, options) {
            Ok(listener) => {
                if let Target::Tcp(address) = listener.address() {
                    port = address.port();
                }
                listeners.push(listener);
            }
            Err(error) if bind.optional && error.is_absent_address() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Randomness is asked for once and handed down: the core is deterministic given these.
fn seeds() -> Result<Seeds, StartError> {
    let mut run_id = [0; 20];
    getrandom::fill(&mut run_id).map_err(no_random)?;
    Ok(Seeds { hash: random()?, random: random()?, run_id })
}

fn random() -> Result<u64, StartError> {
    getrandom::u64().map_err(no_random)
}

fn no_random(error: getrandom::Error) -> StartError {
    StartError::System(io::Error::other(format!("the kernel gave no random bytes: {error}")))
}
