//! What a hop costs: CPU time of a command whose key lies here, and of one whose key lies on another shard.
//! Run with `cargo run --release -p reactor --example hop_bench -- [SHARDS] [SECONDS] [CONNECTIONS]`.
//!
//! The real loop, pipeline, engine and mailboxes run on as many cores as there are shards; only the sockets are
//! missing: a driver of this file hands every connection its next batch of GETs as soon as the replies to the last are
//! there. So the difference of two rows is the hop and nothing else: carrying the command, waking nobody (all shards are
//! busy), executing it there, carrying the reply back and putting it in its place. CPU time is that of all shards' threads
//! together. Shards need cores of their own: two on this machine say nothing about four.

use reactor::clock::SystemClock;
use reactor::cpu::{self, ThreadCpuTime};
use reactor::io::driver::{Driver, DriverCounters};
use reactor::io::memory::MmapSource;
use reactor::io::stop::StopSignal;
use reactor::server::event::{ConnectionId, Event, Operation};
use reactor::server::mailbox::{Mailbox, Mailboxes};
use reactor::server::pipeline::{ListenerRole, Pipeline};
use reactor::server::shard::{self, Company};
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};
use store::config::Config;
use store::engine::{Engine, Seeds};
use store::session::Transport;
use store::shards::{Message, Place, Totals};

const KEYS: u64 = 100_000;
const VALUE: usize = 64;
/// `$64`, the value, and two line ends.
const REPLY: usize = 5 + VALUE + 2;
/// `+OK` and its line end.
const SET_REPLY: usize = 5;

/// Whose keys the connections of a shard ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keys {
    Own,
    Others,
    Everybody,
}

#[derive(Clone, Copy)]
struct Case {
    keys: Keys,
    pipeline: usize,
    seconds: f64,
    connections: usize,
}

fn main() -> ExitCode {
    let mut numbers = [2.0, 2.0, 25.0];
    for (number, argument) in numbers.iter_mut().zip(std::env::args().skip(1)) {
        match argument.parse() {
            Ok(given) if given > 0.0 => *number = given,
            _ => {
                eprintln!("expected shards, seconds and connections a shard, found {argument:?}");
                return ExitCode::from(2);
            }
        }
    }
    let [shards, seconds, connections] = numbers;
    let (shards, connections) = (shards as usize, connections as usize);
    let cores = cpu::allowed_cores();
    if shards < 2 || shards > cores.len() {
        eprintln!("expected from 2 shards to as many as there are cores ({}), found {shards}", cores.len());
        return ExitCode::from(2);
    }
    println!(
        "{shards} shards on cores of their own, {connections} connections each, {KEYS} keys, {VALUE} B values"
    );
    println!(
        "{:>8} {:>10} {:>12} {:>14} {:>14}",
        "pipeline", "keys", "commands/s", "CPU ns/command", "ns/hop"
    );
    for pipeline in [1, 4, 16, 64] {
        let mut local = 0.0;
        for keys in [Keys::Own, Keys::Others, Keys::Everybody] {
            let case = Case { keys, pipeline, seconds, connections };
            let (commands, cpu) = measure(shards, &cores, case);
            let each = cpu.as_nanos() as f64 / commands as f64;
            let share = match keys {
                Keys::Own => 0.0,
                Keys::Others => 1.0,
                Keys::Everybody => 1.0 - 1.0 / shards as f64,
            };
            if keys == Keys::Own {
                local = each;
            }
            let hop = if share > 0.0 { format!("{:.0}", (each - local) / share) } else { "–".into() };
            let rate = commands as f64 / seconds;
            println!(
                "{pipeline:>8} {:>10} {rate:>12.0} {each:>14.0} {hop:>14}",
                format!("{keys:?}").to_lowercase()
            );
        }
    }
    ExitCode::SUCCESS
}

/// Commands answered in the measured time, and the CPU time of all shards meanwhile.
fn measure(shards: usize, cores: &[usize], case: Case) -> (u64, Duration) {
    let mailboxes = Mailboxes::new(shards, 1024).expect("descriptors for the bells");
    let totals = Totals::new(shards);
    let barrier = Arc::new(Barrier::new(shards));
    let threads: Vec<_> = mailboxes
        .into_iter()
        .enumerate()
        .map(|(index, mailbox)| {
            let (totals, barrier, core) = (totals.clone(), barrier.clone(), cores[index]);
            let place = Place { index, count: shards };
            std::thread::spawn(move || serve(place, totals, mailbox, barrier, core, case))
        })
        .collect();
    let results = threads.into_iter().map(|thread| thread.join().expect("a shard that does not panic"));
    results.fold((0, Duration::ZERO), |(count, time), (more, cpu)| (count + more, time + cpu))
}

fn serve(
    place: Place,
    totals: Arc<Totals>,
    mailbox: Mailbox<Message>,
    barrier: Arc<Barrier>,
    core: usize,
    case: Case,
) -> (u64, Duration) {
    cpu::pin_to(core).expect("a core of this process");
    let clock = SystemClock::new();
    let seeds = Seeds { hash: 1, random: place.index as u64, run_id: [0; 20] };
    let source = Box::new(MmapSource::new());
    let engine = Engine::with_place(Config::default(), seeds, source, clock.now(), place, totals);
    let role = ListenerRole { transport: Transport::Resp, unix: false, local: "127.0.0.1:0".into() };
    let pipeline = Pipeline::new(engine, vec![role]);
    let stop = StopSignal::new().expect("a descriptor");
    let mut driver = Clients::new(place, barrier, case);
    // Borrowed, so that what it counted is still here afterwards.
    let company = Company::new(mailbox, stop);
    shard::run(shard::Shard::new(&mut driver, pipeline, clock, Some(company), None))
        .expect("a loop without sockets cannot fail");
    (driver.answered, driver.cpu)
}

/// Connections that always have a next batch, as a driver.
struct Clients {
    case: Case,
    barrier: Arc<Barrier>,
    /// Own keys, still to be set.
    unset: Vec<u64>,
    /// Keys to ask for.
    asked: Vec<u64>,
    random: u64,
    /// Bytes of replies each connection still waits for.
    missing: Vec<usize>,
    ready: VecDeque<usize>,
    sent: VecDeque<(ConnectionId, Vec<u8>)>,
    accepted: usize,
    closed: VecDeque<ConnectionId>,
    batch: Vec<u8>,
    phase: Phase,
    cpu_clock: ThreadCpuTime,
    answered: u64,
    cpu: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Filling,
    Measuring { until: Instant, cpu: Duration },
    Stopping { told: bool },
}

impl Clients {
    fn new(place: Place, barrier: Arc<Barrier>, case: Case) -> Clients {
        let of = |shard: usize| (0..KEYS).filter(move |key| place.shard_of(name(*key).as_bytes()) == shard);
        let asked = match case.keys {
            Keys::Own => of(place.index).collect(),
            Keys::Everybody => (0..KEYS).collect(),
            Keys::Others => {
                (0..KEYS).filter(|key| place.shard_of(name(*key).as_bytes()) != place.index).collect()
            }
        };
        Clients {
            unset: of(place.index).collect(),
            asked,
            random: 0x9e37_79b9_7f4a_7c15 ^ place.index as u64,
            missing: vec![0; case.connections],
            ready: VecDeque::new(),
            sent: VecDeque::new(),
            accepted: 0,
            closed: VecDeque::new(),
            batch: Vec::new(),
            phase: Phase::Filling,
            cpu_clock: ThreadCpuTime::of_this_thread().expect("a thread has a clock"),
            answered: 0,
            cpu: Duration::ZERO,
            case,
            barrier,
        }
    }

    /// Once the replies of a batch are there: the next one, of the phase.
    fn next_batch(&mut self, connection: usize) {
        self.batch.clear();
        match self.phase {
            Phase::Filling => {
                let from = self.unset.len().saturating_sub(64);
                for key in self.unset.split_off(from) {
                    let text =
                        format!("*3\r\n$3\r\nSET\r\n$16\r\n{}\r\n${VALUE}\r\n{:064}\r\n", name(key), key);
                    self.batch.extend_from_slice(text.as_bytes());
                    self.missing[connection] += SET_REPLY;
                }
            }
            _ => {
                for _ in 0..self.case.pipeline {
                    self.random ^= self.random << 13;
                    self.random ^= self.random >> 7;
                    self.random ^= self.random << 17;
                    let key = self.asked[(self.random >> 8) as usize % self.asked.len()];
                    self.batch.extend_from_slice(b"*2\r\n$3\r\nGET\r\n$16\r\n");
                    self.batch.extend_from_slice(name(key).as_bytes());
                    self.batch.extend_from_slice(b"\r\n");
                }
                self.missing[connection] = REPLY * self.case.pipeline;
            }
        }
    }

    /// All connections have their replies: filling is followed by measuring.
    fn advance(&mut self) {
        match self.phase {
            Phase::Filling if self.unset.is_empty() && self.missing.iter().all(|&missing| missing == 0) => {
                self.barrier.wait();
                let until = Instant::now() + Duration::from_secs_f64(self.case.seconds);
                self.phase = Phase::Measuring { until, cpu: self.cpu_clock.read() };
                self.ready = (0..self.case.connections).collect();
            }
            Phase::Measuring { until, cpu } if Instant::now() >= until => {
                self.cpu = self.cpu_clock.read() - cpu;
                self.phase = Phase::Stopping { told: false };
            }
            _ => {}
        }
    }
}

fn name(key: u64) -> String {
    format!("key:{key:012}")
}

fn id(slot: usize) -> ConnectionId {
    ConnectionId { slot: slot as u32, generation: 0 }
}

impl Driver for &mut Clients {
    fn submit_and_wait(&mut self, _timeout: Option<Duration>) -> io::Result<()> {
        // Never waits: while one batch is away another is here. Other shards' bells ring in vain.
        self.advance();
        Ok(())
    }

    fn next_event(&mut self) -> Option<Event<'_>> {
        if self.accepted < self.case.connections {
            let slot = self.accepted;
            self.accepted += 1;
            self.ready.push_back(slot);
            return Some(Event::Accepted { connection: id(slot), listener: 0, peer: None });
        }
        if let Some((connection, buffer)) = self.sent.pop_front() {
            return Some(Event::Sent { connection, buffer, result: Ok(()) });
        }
        if let Some(connection) = self.closed.pop_front() {
            return Some(Event::Closed { connection });
        }
        if let Phase::Stopping { told: false } = self.phase {
            self.phase = Phase::Stopping { told: true };
            return Some(Event::StopRequested);
        }
        if let Phase::Stopping { .. } = self.phase {
            return None;
        }
        let connection = self.ready.pop_front()?;
        self.next_batch(connection);
        if self.batch.is_empty() {
            return None;
        }
        Some(Event::Received { connection: id(connection), bytes: &self.batch })
    }

    fn enqueue(&mut self, operation: Operation) {
        match operation {
            Operation::Send { connection, buffer } => {
                let slot = connection.slot as usize;
                let missing = &mut self.missing[slot];
                assert!(buffer.len() <= *missing, "more replies than were asked for");
                *missing -= buffer.len();
                if *missing == 0 {
                    if let Phase::Measuring { .. } = self.phase {
                        self.answered += self.case.pipeline as u64;
                    }
                    if self.phase != Phase::Filling || !self.unset.is_empty() {
                        self.ready.push_back(slot);
                    }
                }
                self.sent.push_back((connection, buffer));
            }
            Operation::FinishSend { connection } | Operation::Close { connection }
                if !self.closed.contains(&connection) =>
            {
                self.closed.push_back(connection);
            }
            _ => {}
        }
    }

    fn reserve(&mut self) -> Option<ConnectionId> {
        None
    }

    fn watch(&mut self, _waker: OwnedFd) -> io::Result<()> {
        Ok(())
    }

    fn counters(&self) -> DriverCounters {
        DriverCounters::default()
    }
}
