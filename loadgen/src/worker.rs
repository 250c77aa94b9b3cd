//! One thread that drives a [`Client`] through a driver, and what was read of the machine meanwhile.
//!
//! A turn: wait, take the time, let the client see every event, take the time again, let it send. The receive
//! stamp of everything in a turn is the moment after the wait; the send stamp is the moment before sending. So a
//! turn's own length counts into latency, as it does in any client that works in batches, and never out of it.
//!
//! An open loop must be on time to within microseconds, which a timer that wakes a sleeping virtual core cannot
//! do: shortly before an arrival the loop stops sleeping and spins. Turns that spin and find nothing are counted,
//! so that "the generator was busy" means busy and not merely awake.
//!
//! The turn is the same for every [`Machine`]: a run's client, and the workers and trackers of `loadgen caching`.
//! Several threads each drive a client of their own; what they brought back is merged afterwards ([`Worked::merge`]).

use crate::client::{Client, Failure, Outcome, Plan, Stage};
use crate::gate::Gate;
use crate::histogram::Interval;
use crate::stages::{Probe, StagesReport};
use crate::system::{self, MachineTimes};
use hdrhistogram::Histogram;
use reactor::cpu;
use reactor::io::driver::{Driver, DriverCounters};
use reactor::io::epoll::{EpollDriver, EpollOptions};
use reactor::io::perf::{Counted, Counter};
use reactor::io::stop::StopSignal;
use reactor::io::uring::{UringDriver, UringOptions};
use reactor::server::event::{ConnectionId, Event, Operation};
use std::sync::Arc;
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

/// How a generator waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Spin {
    /// Asleep until shortly before an arrival, then awake. Not where generator and server share a core: then asleep.
    Auto,
    /// Always asleep: arrivals are late by the time that waking takes.
    Never,
    /// Always awake: no reply waits for the generator to wake up either.
    Always,
}

/// What a turn drives: events and time in, operations out. It performs no I/O and reads no clock.
pub trait Machine {
    /// Where it is. The CPU side is read where [`Stage::Measure`] begins and where it ends.
    fn stage(&self) -> Stage;
    /// The first turn begins: patience counts from here.
    fn begin(&mut self, _now: u64) {}
    /// Lets time pass; once a turn, before [`Machine::poll_operation`].
    fn handle_time(&mut self, now: u64);
    /// Something the driver reports.
    fn handle(&mut self, event: Event<'_>, now: u64);
    /// A connection that needs an id: follow with [`Machine::connect`].
    fn poll_unconnected(&mut self, now: u64) -> Option<usize>;
    /// Opens a connection under the id the driver reserved for it.
    fn connect(&mut self, index: usize, id: ConnectionId);
    /// The next operation; `now` becomes the send stamp of what it carries.
    fn poll_operation(&mut self, now: u64) -> Option<Operation>;
    /// How long nothing happens unless an event comes.
    fn poll_timeout(&self, now: u64) -> u64;
    /// When the next request of an open loop is due.
    fn next_arrival(&self) -> Option<u64> {
        None
    }
    /// What a watcher is to be told: an interval that ended.
    fn take_interval(&mut self) -> Option<Progress> {
        None
    }
    /// Share of the prefill that is done.
    fn prefill_share(&self) -> f64 {
        1.0
    }
    /// The driver itself failed.
    fn driver_failed(&mut self, error: &std::io::Error, now: u64);
}

/// CPU time of the server, in nanoseconds, wherever it can be read.
pub type ServerCpu = Box<dyn FnMut() -> Option<u64> + Send>;

/// Cycles, instructions and system calls of the server, as far as they can be counted.
pub type ServerCounters = Box<dyn FnMut() -> [Option<u64>; 3] + Send>;

/// Counts what the process does from now on; of what cannot be counted, why.
pub fn counters_of(pid: u32, with_system_calls: bool) -> (Option<ServerCounters>, Vec<String>) {
    let mut why_not = Vec::new();
    let mut open = |counted| Counter::of_process(pid, counted).map_err(|why| why_not.push(why)).ok();
    let counters = [
        open(Counted::Cycles),
        open(Counted::Instructions),
        if with_system_calls { open(Counted::SystemCalls) } else { None },
    ];
    let some = counters.iter().any(Option::is_some);
    let read = move || counters.each_ref().map(|counter| counter.as_ref()?.read().ok());
    (some.then(|| Box::new(read) as ServerCounters), why_not)
}

/// How a worker runs, beside its plan.
pub struct WorkerOptions {
    /// The driver.
    pub io: Io,
    /// The core to stay on.
    pub pin: Option<usize>,
    /// How events are awaited.
    pub spin: Spin,
    /// Reads the server's CPU time.
    pub server_cpu: Option<ServerCpu>,
    /// Counts what the server does.
    pub server_counters: Option<ServerCounters>,
    /// The server's threads belong to this process (the demonstration).
    pub server_is_embedded: bool,
    /// Further threads that share the plan's connections and rate, and their cores.
    pub others: Vec<Option<usize>>,
}

/// What a watcher is told while it runs.
#[derive(Clone, Debug)]
pub enum Progress {
    /// A stage began.
    Stage(Stage),
    /// Share of the prefill that is done.
    Prefill(f64),
    /// An interval ended.
    Interval(Interval),
    /// One of several threads ended its part of an interval: the watcher merges them, and works percentiles out where
    /// no request waits for it.
    Part(Box<IntervalPart>),
}

/// A thread's part of an interval of the timeline.
#[derive(Clone, Debug)]
pub struct IntervalPart {
    /// Which interval, from 0.
    pub number: u64,
    /// Its beginning and end, in nanoseconds of the measurement.
    pub span_ns: (u64, u64),
    /// Replies that arrived in it.
    pub completed: u64,
    /// Their latencies.
    pub latencies: Histogram<u64>,
}

/// The clocks of everything that burns CPU, read together.
#[derive(Clone, Copy, Debug, Default)]
struct Reading {
    at_ns: u64,
    generator_ns: u64,
    process_ns: Option<u64>,
    server_ns: Option<u64>,
    server_counted: [Option<u64>; 3],
    machine: Option<MachineTimes>,
    counters: DriverCounters,
    spun_ns: u64,
}

/// The CPU side of a measurement. Times are of the measurement's window.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CpuUse {
    /// The window as the readings saw it.
    pub wall_ns: u64,
    /// The generator's threads together, their spinning not counted.
    pub generator_ns: u64,
    /// The busiest of them.
    pub busiest_ns: u64,
    /// What it spun without finding anything.
    pub generator_spun_ns: u64,
    /// The server, where it can be read.
    pub server_ns: Option<u64>,
    /// Cycles, instructions and system calls of the server, where they were counted.
    pub server_counted: [Option<u64>; 3],
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
    /// Where the worker's clock stands at zero.
    pub epoch: Instant,
    /// Its CPU side; zero where no measurement took place.
    pub cpu: CpuUse,
    /// The driver that was used in fact.
    pub io: Io,
    /// Something the reader should know: a fallback, a pin that failed.
    pub notes: Vec<String>,
}

/// Runs a plan on the calling thread until it is over or `stop` is raised. Of several threads each gets its share of the
/// plan, all the same `epoch`, and a gate at which they wait until all can begin.
pub fn work(
    plan: Plan,
    mut options: WorkerOptions,
    progress: &Sender<Progress>,
    stop: &StopSignal,
    epoch: Instant,
    gate: Option<Arc<Gate>>,
) -> Result<Worked, Failure> {
    let is_first = plan.workload.share.index == 0;
    let connections = plan.connections;
    let mut stages = StageReadings::begin(&plan, is_first);
    let client = Client::new(plan)?.with_gate(gate);
    let mut warm_up = || stages.warm_up();
    let driven = drive(client, connections, &mut options, progress, stop, epoch, &mut warm_up)?;
    let Driven { machine, cpu, io, notes } = driven;
    Ok(Worked { epoch, outcome: machine.into_outcome(), cpu, stages: stages.end(), io, notes })
}

impl Worked {
    /// Adds what another thread of the same generator brought back. What belongs to the machine and the server was read by
    /// the first one.
    pub fn merge(&mut self, other: Worked) {
        self.outcome.merge(other.outcome);
        self.cpu.generator_ns += other.cpu.generator_ns;
        self.cpu.busiest_ns = self.cpu.busiest_ns.max(other.cpu.busiest_ns);
        self.cpu.generator_spun_ns += other.cpu.generator_spun_ns;
        self.cpu.enters += other.cpu.enters;
        self.cpu.receives += other.cpu.receives;
        self.cpu.sends += other.cpu.sends;
        for note in other.notes {
            if !self.notes.contains(&note) {
                self.notes.push(note);
            }
        }
    }
}

/// A machine that is done, and what it took.
pub struct Driven<M> {
    /// See there.
    pub machine: M,
    /// The CPU side of its measurement; zero where none took place.
    pub cpu: CpuUse,
    /// The driver that was used in fact.
    pub io: Io,
    /// Something the reader should know: a fallback, a pin that failed.
    pub notes: Vec<String>,
}

/// Drives a machine on the calling thread until it is done or `stop` is raised. `warm_up` is called where the warm-up
/// begins: what it takes is over before the measurement begins.
pub fn drive<M: Machine>(
    machine: M,
    connections: usize,
    options: &mut WorkerOptions,
    progress: &Sender<Progress>,
    stop: &StopSignal,
    epoch: Instant,
    warm_up: &mut dyn FnMut(),
) -> Result<Driven<M>, Failure> {
    let mut notes = Vec::new();
    if let Some(core) = options.pin
        && let Err(error) = cpu::pin_to(core)
    {
        notes.push(format!("the generator is not pinned: {error}"));
    }
    if !system::set_timer_slack_ns(1) {
        notes.push("the timer slack could not be lowered: sleeps may end 50 µs late".into());
    }
    let io = options.io;
    if io == Io::IoUring {
        let uring = UringOptions { max_connections: connections + 8, ..UringOptions::default() };
        match UringDriver::new(Vec::new(), uring, stop.clone()) {
            Ok(driver) => {
                let (machine, cpu) = turns(driver, machine, epoch, options, warm_up, progress);
                return Ok(Driven { machine, cpu, io, notes });
            }
            Err(error) => notes.push(format!("io_uring cannot be used ({error}): the generator uses epoll")),
        }
    }
    let epoll = EpollOptions { max_connections: connections + 8 };
    let driver = EpollDriver::new(Vec::new(), epoll, stop.clone())
        .map_err(|error| Failure::Driver(error.to_string()))?;
    let (machine, cpu) = turns(driver, machine, epoch, options, warm_up, progress);
    Ok(Driven { machine, cpu, io: Io::Epoll, notes })
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
    /// Reads for the first time, which also tells whether the target has such figures. One of several threads does.
    fn begin(plan: &Plan, is_first: bool) -> StageReadings {
        let probe = Probe::of(plan);
        let before = if is_first { probe.read() } else { Err("another thread reads them".into()) };
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

fn turns<D: Driver, M: Machine>(
    mut driver: D,
    mut machine: M,
    epoch: Instant,
    options: &mut WorkerOptions,
    warm_up: &mut dyn FnMut(),
    progress: &Sender<Progress>,
) -> (M, CpuUse) {
    let clock = || epoch.elapsed().as_nanos() as u64;
    let mut stage = Stage::Connect;
    let mut spun_ns = 0;
    let mut before = None;
    let mut after = None;
    let mut prefill_told = 0;
    let mut now = clock();
    let mut last_woke = now;
    // What was asked before, over connections of its own, is no time in which this server was silent.
    machine.begin(now);
    loop {
        machine.handle_time(now);
        if machine.stage() != stage {
            stage = machine.stage();
            if stage == Stage::WarmUp {
                warm_up();
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
        // The last one ends with the run.
        if let Some(interval) = machine.take_interval() {
            let _ = progress.send(interval);
        }
        if stage == Stage::Done {
            break;
        }
        if stage == Stage::Prefill && now - prefill_told > 100_000_000 {
            prefill_told = now;
            let _ = progress.send(Progress::Prefill(machine.prefill_share()));
        }
        while let Some(index) = machine.poll_unconnected(now) {
            match driver.reserve() {
                Some(id) => machine.connect(index, id),
                None => machine.driver_failed(&std::io::Error::other("its connection table is full"), now),
            }
        }

        let mut sends = 0;
        while let Some(operation) = machine.poll_operation(now) {
            driver.enqueue(operation);
            sends += 1;
        }

        let mut wait = machine.poll_timeout(now);
        let mut spinning = false;
        if options.spin == Spin::Always {
            wait = 0;
            spinning = true;
        } else if options.spin == Spin::Auto && machine.next_arrival().is_some() {
            if wait < SPIN_NS {
                wait = 0;
                spinning = true;
            } else {
                wait -= WAKE_EARLY_NS;
            }
        }
        if let Err(error) = driver.submit_and_wait(Some(Duration::from_nanos(wait))) {
            machine.driver_failed(&error, now);
        }
        let woke = clock();
        let mut events = 0;
        while let Some(event) = driver.next_event() {
            machine.handle(event, woke);
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
    (machine, cpu)
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
        server_counted: options.server_counters.as_mut().map_or([None; 3], |read| read()),
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
    let generator_ns = (after.generator_ns - before.generator_ns).saturating_sub(spun_ns);
    CpuUse {
        wall_ns: after.at_ns - before.at_ns,
        generator_ns,
        busiest_ns: generator_ns,
        generator_spun_ns: spun_ns,
        server_ns,
        server_counted: std::array::from_fn(|at| {
            Some(after.server_counted[at]?.saturating_sub(before.server_counted[at]?))
        }),
        foreign_ns,
        steal_ns: after.machine.zip(before.machine).map(|(after, before)| after.steal_since(&before)),
        enters: after.counters.enters - before.counters.enters,
        receives: after.counters.receives - before.counters.receives,
        sends: after.counters.sends - before.counters.sends,
    }
}
