//! One thread that drives a [`Client`] through a driver, and what was read of the machine meanwhile.
//!
//! A turn: wait, take the time, let the client see every event, take the time again, let it send. The receive
//! stamp of everything in a turn is the moment after the wait; the send stamp is the moment before sending. So a
//! turn's own length counts into latency, as it does in any client that works in batches, and never out of it.
//!
//! An open loop must be on time to within microseconds, which a timer that wakes a sleeping virtual core cannot
//! do: shortly before an arrival the loop stops sleeping and spins. Turns that spin and find nothing are counted,
//! so that "the generator was busy" means busy and not merely awake.

use crate::client::{Client, Failure, Outcome, Plan, Stage};
use crate::histogram::Interval;
use crate::stages::{Probe, StagesReport};
use crate::system::{self, MachineTimes};
use reactor::cpu;
use reactor::io::driver::{Driver, DriverCounters};
use reactor::io::epoll::{EpollDriver, EpollOptions};
use reactor::io::stop::StopSignal;
use reactor::io::uring::{UringDriver, UringOptions};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

/// An arrival nearer than this is waited for awake.
const SPIN_NS: u64 = 60_000;
/// Sleep ends this long before the arrival: waking takes about as long.
const WAKE_EARLY_NS: u64 = 40_000;

/// Which driver carries the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Io {
    /// io_uring, the faster one.
    #[value(name = "io_uring")]
    IoUring,
    /// epoll, where io_uring is not allowed.
    Epoll,
}

/// CPU time of the server, in nanoseconds, wherever it can be read.
pub type ServerCpu = Box<dyn FnMut() -> Option<u64> + Send>;

/// How a worker runs, beside its plan.
pub struct WorkerOptions {
    /// The driver.
    pub io: Io,
    /// The core to stay on.
    pub pin: Option<usize>,
    /// Spin before arrivals. Not where generator and server share a core.
    pub spin: bool,
    /// Reads the server's CPU time.
    pub server_cpu: Option<ServerCpu>,
    /// The server's threads belong to this process (the demonstration).
    pub server_is_embedded: bool,
}

/// What a watcher is told while it runs.
#[derive(Clone, Copy, Debug)]
pub enum Progress {
    /// A stage began.
    Stage(Stage),
    /// Share of the prefill that is done.
    Prefill(f64),
    /// An interval ended.
    Interval(Interval),
}

/// The clocks of everything that burns CPU, read together.
#[derive(Clone, Copy, Debug, Default)]
struct Reading {
    at_ns: u64,
    generator_ns: u64,
    process_ns: Option<u64>,
    server_ns: Option<u64>,
    machine: Option<MachineTimes>,
    counters: DriverCounters,
    spun_ns: u64,
}

/// The CPU side of a measurement. Times are of the measurement's window.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CpuUse {
    /// The window as the readings saw it.
    pub wall_ns: u64,
    /// The generator thread, its spinning not counted.
    pub generator_ns: u64,
    /// What it spun without finding anything.
    pub generator_spun_ns: u64,
    /// The server, where it can be read.
    pub server_ns: Option<u64>,
    /// Everything else on the machine.
    pub foreign_ns: Option<u64>,
    /// Taken by the hypervisor.
    pub steal_ns: Option<u64>,
    /// System calls of the generator's driver that hand over or wait.
    pub enters: u64,
    /// Receives of the generator.
    pub receives: u64,
    /// Sends of the generator.
    pub sends: u64,
}

/// What a worker brings back.
#[derive(Debug)]
pub struct Worked {
    /// The measurement.
    pub outcome: Outcome,
    /// Where the server says its time went, or why that is not known.
    pub stages: Result<StagesReport, String>,
    /// Its CPU side; zero where no measurement took place.
    pub cpu: CpuUse,
    /// The driver that was used in fact.
    pub io: Io,
    /// Something the reader should know: a fallback, a pin that failed.
    pub notes: Vec<String>,
}

/// Runs a plan on the calling thread until it is over or `stop` is raised.
pub fn work(
    plan: Plan,
    mut options: WorkerOptions,
    progress: &Sender<Progress>,
    stop: &StopSignal,
) -> Result<Worked, Failure> {
    let mut notes = Vec::new();
    if let Some(core) = options.pin
        && let Err(error) = cpu::pin_to(core)
    {
        notes.push(format!("the generator is not pinned: {error}"));
    }
    if !system::set_timer_slack_ns(1) {
        notes.push("the timer slack could not be lowered: sleeps may end 50 µs late".into());
    }
    let connections = plan.connections;
    let mut stages = StageReadings::begin(&plan);
    let client = Client::new(plan)?;
    let io = options.io;
    if io == Io::IoUring {
        let uring = UringOptions { max_connections: connections + 8, ..UringOptions::default() };
        match UringDriver::new(Vec::new(), uring, stop.clone()) {
            Ok(driver) => {
                let (outcome, cpu) = drive(driver, client, &mut options, &mut stages, progress);
                return Ok(Worked { outcome, cpu, stages: stages.end(), io, notes });
            }
            Err(error) => notes.push(format!("io_uring cannot be used ({error}): the generator uses epoll")),
        }
    }
    let epoll = EpollOptions { max_connections: connections + 8 };
    let driver = EpollDriver::new(Vec::new(), epoll, stop.clone())
        .map_err(|error| Failure::Driver(error.to_string()))?;
    let (outcome, cpu) = drive(driver, client, &mut options, &mut stages, progress);
    Ok(Worked { outcome, cpu, stages: stages.end(), io: Io::Epoll, notes })
}

/// A warm-up shorter than this is not held up to read the server's figures.
const WARMUP_TO_READ_IN_NS: u64 = 100_000_000;

/// The server's figures by stage, read before the load and behind it.
struct StageReadings {
    probe: Probe,
    before: Result<crate::stages::Reading, String>,
    covers: &'static str,
    warmup_is_long: bool,
}

impl StageReadings {
    /// Reads for the first time, which also tells whether the target has such figures.
    fn begin(plan: &Plan) -> StageReadings {
        let probe = Probe::of(plan);
        let before = probe.read();
        let covers = if plan.prefill { "prefill, measurement and drain" } else { "measurement and drain" };
        StageReadings { probe, before, covers, warmup_is_long: plan.warmup_ns >= WARMUP_TO_READ_IN_NS }
    }

    /// The warm-up begins: reads again, so that what went before is not in the figures. A moment's delay here is over
    /// before the measurement begins.
    fn warm_up(&mut self) {
        if self.before.is_ok() && self.warmup_is_long {
            self.before = self.probe.read();
            self.covers = "warm-up, measurement and drain";
        }
    }

    /// All is over: what happened between.
    fn end(self) -> Result<StagesReport, String> {
        let after = self.before.as_ref().map_err(Clone::clone).and_then(|_| self.probe.read())?;
        StagesReport::between(&self.before?, &after, self.probe.protocol(), self.covers)
    }
}

fn drive<D: Driver>(
    mut driver: D,
    mut client: Client,
    options: &mut WorkerOptions,
    stages: &mut StageReadings,
    progress: &Sender<Progress>,
) -> (Outcome, CpuUse) {
    let epoch = Instant::now();
    let clock = || epoch.elapsed().as_nanos() as u64;
    let mut stage = Stage::Connect;
    let mut spun_ns = 0;
    let mut before = None;
    let mut after = None;
    let mut prefill_told = 0;
    let mut now = clock();
    let mut last_woke = now;
    loop {
        client.handle_time(now);
        if client.stage() != stage {
            stage = client.stage();
            if stage == Stage::WarmUp {
                stages.warm_up();
                now = clock();
            }
            if stage >= Stage::Measure && before.is_none() {
                before = Some(read_all(clock(), spun_ns, &driver, options));
                now = clock();
            }
            if stage > Stage::Measure && before.is_some() && after.is_none() {
                after = Some(read_all(clock(), spun_ns, &driver, options));
            }
            // A watcher that has gone away is no reason to stop.
            let _ = progress.send(Progress::Stage(stage));
        }
        if stage == Stage::Done {
            break;
        }
        if let Some(interval) = client.take_interval() {
            let _ = progress.send(Progress::Interval(interval));
        }
        if stage == Stage::Prefill && now - prefill_told > 100_000_000 {
            prefill_told = now;
            let _ = progress.send(Progress::Prefill(client.prefill_share()));
        }
        while let Some(index) = client.poll_unconnected() {
            match driver.reserve() {
                Some(id) => client.connect(index, id),
                None => client.driver_failed(&std::io::Error::other("its connection table is full"), now),
            }
        }

        let mut sends = 0;
        while let Some(operation) = client.poll_operation(now) {
            driver.enqueue(operation);
            sends += 1;
        }

        let mut wait = client.poll_timeout(now);
        let mut spinning = false;
        if options.spin && client.next_arrival().is_some() {
            if wait < SPIN_NS {
                wait = 0;
                spinning = true;
            } else {
                wait -= WAKE_EARLY_NS;
            }
        }
        if let Err(error) = driver.submit_and_wait(Some(Duration::from_nanos(wait))) {
            client.driver_failed(&error, now);
        }
        let woke = clock();
        let mut events = 0;
        while let Some(event) = driver.next_event() {
            client.handle(event, woke);
            events += 1;
        }
        if spinning && events == 0 && sends == 0 {
            spun_ns += woke - last_woke;
        }
        last_woke = woke;
        // The second reading of the turn: what leaves now is stamped now.
        now = clock();
    }
    let cpu = match (before, after) {
        (Some(before), Some(after)) => cpu_use(&before, &after, options.server_is_embedded),
        _ => CpuUse::default(),
    };
    (client.into_outcome(), cpu)
}

fn read_all<D: Driver>(at_ns: u64, spun_ns: u64, driver: &D, options: &mut WorkerOptions) -> Reading {
    Reading {
        at_ns,
        generator_ns: cpu::thread_cpu_time().as_nanos() as u64,
        process_ns: Some({
            let usage = cpu::process_usage();
            (usage.user + usage.system).as_nanos() as u64
        }),
        server_ns: options.server_cpu.as_mut().and_then(|read| read()),
        machine: system::machine_times(),
        counters: driver.counters(),
        spun_ns,
    }
}

fn cpu_use(before: &Reading, after: &Reading, server_is_embedded: bool) -> CpuUse {
    let spun_ns = after.spun_ns - before.spun_ns;
    let server_ns = after.server_ns.zip(before.server_ns).map(|(after, before)| after.saturating_sub(before));
    let busy_ns = after.machine.zip(before.machine).map(|(after, before)| after.busy_since(&before));
    let foreign_ns = match (busy_ns, after.process_ns.zip(before.process_ns)) {
        (Some(busy), Some((process_after, process_before))) => {
            let ours = process_after.saturating_sub(process_before);
            let server = if server_is_embedded { Some(0) } else { server_ns };
            // Without the server's share, what is foreign cannot be told.
            server.map(|server| busy.saturating_sub(ours + server))
        }
        _ => None,
    };
    CpuUse {
        wall_ns: after.at_ns - before.at_ns,
        generator_ns: (after.generator_ns - before.generator_ns).saturating_sub(spun_ns),
        generator_spun_ns: spun_ns,
        server_ns,
        foreign_ns,
        steal_ns: after.machine.zip(before.machine).map(|(after, before)| after.steal_since(&before)),
        enters: after.counters.enters - before.counters.enters,
        receives: after.counters.receives - before.counters.receives,
        sends: after.counters.sends - before.counters.sends,
    }
}
