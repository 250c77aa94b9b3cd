//! Starting and stopping: from settings to threads that serve.
//!
//! [`Server::start`] checks what can be checked (limits, cores, the driver), opens the listeners, starts the
//! shard's thread and returns once it serves. The program does that with the process' signals, the load
//! generator and the tests with a server inside their own process.

use super::config::{Bind, Io, Launch, Settings};
use super::pipeline::{ListenerRole, Pipeline};
use super::shard;
use crate::clock::SystemClock;
use crate::cpu::{self, PinError, ThreadCpuTime};
use crate::io::driver::Driver;
use crate::io::epoll::EpollDriver;
use crate::io::listener::{ListenError, ListenOptions, Listener};
use crate::io::memory::MmapSource;
use crate::io::probe::{self, RingUnavailable};
use crate::io::stop::StopSignal;
use crate::io::uring::UringDriver;
use crate::server::event::Target;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;
use store::config::Config;
use store::engine::{Engine, Seeds};
use store::session::Transport;

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
        for &core in &launch.pin {
            cpu::check_pin(core).map_err(StartError::Pin)?;
        }
        let files = probe::raise_open_files(launch.clients_max).map_err(StartError::Limit)?;
        warnings.extend(files.warning);
        launch.clients_max = files.clients_max;
        if let Some(most) = probe::backlog_max().filter(|&most| most < launch.backlog) {
            warnings.push(format!(
                "tcp-backlog {} is cut to {most} by the kernel (sysctl net.core.somaxconn)",
                launch.backlog
            ));
        }
        let mut config = settings.config;
        config.maxclients = launch.clients_max as u32;
        let started = match start_shard(&launch, &config, &stop) {
            Err(StartError::Ring(why)) if !settings.io_chosen => {
                warnings.push(format!("serving with epoll instead of io_uring: {why}"));
                launch.io = Io::Epoll;
                start_shard(&launch, &config, &stop)
            }
            started => started,
        };
        let shard = started?;
        let address = |transport| {
            let mut tcp = shard.listeners.iter().filter(|listener| listener.transport == transport);
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
            listeners: shard.listeners,
            stop,
            cpu: shard.cpu,
            thread: Some(shard.thread),
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
    cpu: ThreadCpuTime,
    thread: Option<JoinHandle<io::Result<()>>>,
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
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(io::Error::other("the shard's thread panicked; this is a bug")),
        }
    }

    /// CPU time the shards have used.
    pub fn cpu_time(&self) -> Duration {
        self.cpu.read()
    }

    /// The clock behind [`cpu_time`](Self::cpu_time), to keep when the server is joined.
    pub fn cpu_clock(&self) -> ThreadCpuTime {
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
        line.push_str(&format!(" io={} shards=1 pid={}", self.io, std::process::id()));
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
            Self::Listen(error) => error.fmt(f),
            Self::System(error) => error.fmt(f),
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

struct Shard {
    listeners: Vec<Place>,
    cpu: ThreadCpuTime,
    thread: JoinHandle<io::Result<()>>,
}

/// Opens the listeners and starts the thread that serves them; returns when it does.
fn start_shard(launch: &Launch, config: &Config, stop: &StopSignal) -> Result<Shard, StartError> {
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
    let plan = Plan {
        launch: launch.clone(),
        config,
        listeners,
        stop: stop.clone(),
        seeds: seeds()?,
        // Made here and not on the pinned thread, whose core its helper must not share.
        memory: MmapSource::with_helper_on(match launch.pin[..] {
            [] => None,
            [..] => cpu::allowed_cores().into_iter().find(|core| !launch.pin.contains(core)),
        }),
    };
    let (tell, told) = sync_channel(1);
    let thread = Builder::new()
        .name("shard-0".into())
        .spawn(move || serve(plan, &tell))
        .map_err(StartError::System)?;
    let cpu = wait_until_it_serves(&told)?;
    Ok(Shard { listeners: places, cpu, thread })
}

fn wait_until_it_serves(
    told: &Receiver<Result<ThreadCpuTime, StartError>>,
) -> Result<ThreadCpuTime, StartError> {
    told.recv().unwrap_or_else(|_| {
        Err(StartError::System(io::Error::other("the shard's thread ended while it started; this is a bug")))
    })
}

/// What a shard's thread takes with it.
struct Plan {
    launch: Launch,
    config: Config,
    listeners: Vec<Listener>,
    stop: StopSignal,
    seeds: Seeds,
    memory: MmapSource,
}

/// The whole life of a shard's thread.
fn serve(plan: Plan, tell: &SyncSender<Result<ThreadCpuTime, StartError>>) -> io::Result<()> {
    let Plan { launch, config, listeners, stop, seeds, memory } = plan;
    let prepare = || {
        if let Some(&core) = launch.pin.first() {
            cpu::pin_to(core).map_err(StartError::Pin)?;
        }
        ThreadCpuTime::of_this_thread().map_err(StartError::System)
    };
    let cpu = match prepare() {
        Ok(cpu) => cpu,
        Err(error) => return refuse(tell, error),
    };
    let clock = SystemClock::new();
    let roles = listeners.iter().map(|listener| Place::of(listener).role()).collect();
    let mut engine = Engine::new(config, seeds, Box::new(memory), clock.now());
    engine.shared_mut().process_id = std::process::id();
    let pipeline = Pipeline::new(engine, roles);
    // The ring belongs to the thread that makes it, so the driver is made here.
    let result = match launch.io {
        Io::Uring => match UringDriver::new(listeners, launch.uring, stop) {
            Ok(driver) => run(driver, pipeline, clock, &cpu, tell),
            Err(error) => refuse(tell, StartError::Ring(probe::explain(&error, &launch.uring))),
        },
        Io::Epoll => match EpollDriver::new(listeners, launch.epoll, stop) {
            Ok(driver) => run(driver, pipeline, clock, &cpu, tell),
            Err(error) => refuse(tell, StartError::System(error)),
        },
    };
    cpu.finish();
    result
}

fn run<D: Driver>(
    driver: D,
    pipeline: Pipeline,
    clock: SystemClock,
    cpu: &ThreadCpuTime,
    tell: &SyncSender<Result<ThreadCpuTime, StartError>>,
) -> io::Result<()> {
    // One message, room for one: this cannot block. That nobody listens cannot be either.
    let _ = tell.send(Ok(cpu.clone()));
    shard::run(driver, pipeline, clock)
}

fn refuse(tell: &SyncSender<Result<ThreadCpuTime, StartError>>, error: StartError) -> io::Result<()> {
    let _ = tell.send(Err(error));
    Ok(())
}

/// Opens every listener the settings ask for: RESP, HTTP, AF_UNIX, in this order.
fn open_listeners(launch: &Launch) -> Result<Vec<Listener>, ListenError> {
    let options = ListenOptions { backlog: launch.backlog, reuse_port: false };
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
    let refused = |error: getrandom::Error| {
        StartError::System(io::Error::other(format!("the kernel gave no random bytes: {error}")))
    };
    let mut run_id = [0; 20];
    getrandom::fill(&mut run_id).map_err(refused)?;
    Ok(Seeds { hash: getrandom::u64().map_err(refused)?, random: getrandom::u64().map_err(refused)?, run_id })
}
