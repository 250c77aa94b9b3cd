//! One worker's connections as a state machine: events and time in, operations out.
//!
//! It owns everything a run decides: when a request may leave, what its three stamps are, which histogram they
//! go to, and when the run is over. It performs no I/O and reads no clock, so each of its rules can be tested
//! without a server.
//!
//! **Closed loop**: a connection sends a batch of `pipeline` requests when all replies to the last batch are
//! there. Latency counts from the send, because there is no other moment to count from; a server that stalls
//! is simply asked less. **Open loop**: requests belong to arrivals of a [`Schedule`]; a connection whose send is
//! still in flight makes its arrivals wait, and they go out late, never dropped and never re-based. Latency
//! counts from the arrival.
//!
//! Stages: connect (and handshake) → prefill → warm-up → measure → drain → done. A request belongs to the
//! measurement by its intended time (open) or its send (closed); what is unanswered when the drain ends is
//! recorded with the time it has taken so far, a lower bound.

use crate::histogram::{self, Interval, Timeline};
use crate::scan::{Garbage, Scanner, Tally};
use crate::schedule::{Arrival, Schedule};
use crate::workload::{self, Workload, WorkloadError, WorkloadOptions};
use hdrhistogram::Histogram;
use reactor::server::event::{ConnectionId, Event, Operation, Target};
use std::collections::VecDeque;
use std::fmt;

/// Requests in a batch while the server is filled.
const PREFILL_PIPELINE: u32 = 64;
/// A backlog beyond this ends the run: the offered rate is out of reach, and memory is not.
const OUTSTANDING_MAX: usize = 4_000_000;
/// An open loop's send carries at most this many bytes, so that one connection's backlog does not hold up all.
const SEND_BYTES_MAX: usize = 256 * 1024;

/// How requests are paced.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Load {
    /// The next batch waits for the last one's replies.
    Closed {
        /// Requests in a batch.
        pipeline: u32,
    },
    /// Requests come when the schedule says.
    Open {
        /// Arrivals a second.
        rate: f64,
        /// The distribution of their gaps.
        arrival: Arrival,
    },
}

/// When a measurement ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// After this many nanoseconds.
    After(u64),
    /// After this many requests.
    Requests(u64),
}

/// All that determines a run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where to.
    pub target: Target,
    /// What.
    pub workload: WorkloadOptions,
    /// Over how many connections.
    pub connections: usize,
    /// In which loop.
    pub load: Load,
    /// Set every key once before.
    pub prefill: bool,
    /// Discarded at the beginning.
    pub warmup_ns: u64,
    /// The measurement's length.
    pub stop: Stop,
    /// How long replies are waited for afterwards.
    pub drain_ns: u64,
    /// A connection whose oldest request is unanswered for longer is given up and opened again.
    pub timeout_ns: u64,
    /// One point of the timeline.
    pub interval_ns: u64,
}

/// Where a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Connections are being opened and greeted.
    Connect,
    /// Every key is set once.
    Prefill,
    /// Load runs, nothing is recorded.
    WarmUp,
    /// Load runs and is recorded.
    Measure,
    /// No new requests; replies are awaited.
    Drain,
    /// Over.
    Done,
}

/// Why a run cannot go on. What was measured before remains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The target does not accept connections; the errno.
    Refused(i32),
    /// It accepted, then closed before the first answer.
    ClosedEarly,
    /// It sent what is no reply.
    Garbage(String),
    /// It answers nothing.
    Silent(Stage),
    /// It refuses the handshake or the prefill.
    Rejected(String),
    /// It closed a connection while it was being filled.
    LostInPrefill,
    /// It keeps closing connections.
    ClosesAll(u64),
    /// The flags describe no workload.
    Workload(String),
    /// The driver failed.
    Driver(String),
    /// More requests wait than the run may hold.
    Backlog,
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Refused(errno) => {
                let error = std::io::Error::from_raw_os_error(*errno);
                write!(out, "cannot connect: {error}; is the server running, and is this its address?")
            }
            Failure::ClosedEarly => out.write_str(
                "the server closes connections before answering; maxclients, TLS, or another protocol?",
            ),
            Failure::Garbage(what) => write!(out, "the server's bytes are no replies: {what}"),
            Failure::Silent(stage) => {
                let what = match stage {
                    Stage::Connect => "connect or greet",
                    Stage::Prefill => "prefill",
                    _ => "requests",
                };
                write!(out, "the server does not answer ({what}): nothing arrived within --timeout")
            }
            Failure::Rejected(text) => write!(out, "the server refuses: {text}"),
            Failure::LostInPrefill => {
                out.write_str("the server closed a connection while it was being filled; did it end?")
            }
            Failure::ClosesAll(count) => {
                write!(out, "the server keeps closing connections: {count} were opened again, giving up")
            }
            Failure::Workload(text) => out.write_str(text),
            Failure::Driver(text) => write!(out, "the I/O driver failed: {text}"),
            Failure::Backlog => write!(
                out,
                "{OUTSTANDING_MAX} requests are waiting: the offered rate is far above what is served"
            ),
        }
    }
}

impl From<Garbage> for Failure {
    fn from(garbage: Garbage) -> Failure {
        Failure::Garbage(garbage.0)
    }
}

impl From<WorkloadError> for Failure {
    fn from(error: WorkloadError) -> Failure {
        Failure::Workload(error.0)
    }
}

/// What is counted during the measurement.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests whose intended time (open) or send (closed) lies in the measurement.
    pub offered: u64,
    /// Of these: handed to the driver.
    pub sent: u64,
    /// Replies that arrived while it lasted, whenever asked for.
    pub completed: u64,
    /// Replies to requests of the measurement, drain included.
    pub answered: u64,
    /// Error replies.
    pub errors: u64,
    /// Null replies and 404s.
    pub nulls: u64,
    /// Pushes.
    pub pushes: u64,
    /// Requests on connections given up after the time-out.
    pub timeouts: u64,
    /// Requests on connections that broke.
    pub lost: u64,
    /// Requests unanswered at the end: their latencies are lower bounds.
    pub unanswered: u64,
    /// Replies picked out and checked.
    pub checked: u64,
    /// Of these: not what was asked for.
    pub wrong: u64,
    /// Connections opened again.
    pub reconnects: u64,
    /// Bytes of requests.
    pub sent_bytes: u64,
    /// Bytes of replies.
    pub received_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No id yet, or gone and to be opened again.
    Unconnected,
    Connecting,
    /// So many replies of the handshake are missing.
    Greeting(u32),
    Ready,
    Closing,
}

/// The stamps of a request of the open loop.
#[derive(Clone, Copy, Debug)]
struct Asked {
    intended: u64,
    sent: u64,
}

#[derive(Debug)]
struct Connection {
    id: Option<ConnectionId>,
    phase: Phase,
    scanner: Scanner,
    /// Closed loop: when the batch left and how many of its replies are missing.
    sent_at: u64,
    missing: u32,
    /// Open loop: asked and unanswered, oldest first.
    asked: VecDeque<Asked>,
    /// Open loop: intended times of what is due and not sent.
    due: VecDeque<u64>,
    buffer: Vec<u8>,
    sending: bool,
    /// In `Client::dirty`.
    dirty: bool,
    /// The next request's place in the cycle of operations, and the first one's since `Scanner::restart`.
    sequence: u64,
    sequence_base: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Client {
    plan: Plan,
    workload: Workload,
    prefill: Option<Workload>,
    prefill_left: u64,
    greeting: (Vec<u8>, u32),
    connections: Vec<Connection>,
    /// Connection index by the id's slot.
    by_slot: Vec<u32>,
    /// Connections with something to send, each once.
    dirty: Vec<u32>,
    unconnected: Vec<u32>,
    operations: VecDeque<Operation>,
    ready: usize,
    stage: Stage,
    stage_began: u64,
    measure_began: u64,
    measure_ended: u64,
    interval_began: u64,
    checked_timeouts: u64,
    last_progress: u64,
    schedule: Option<Schedule>,
    schedule_over: bool,
    next_connection: usize,
    /// Of `Stop::Requests`: how many may still be sent.
    requests_left: u64,
    /// Requests sent and unanswered, and due and unsent.
    outstanding: usize,
    waiting: usize,
    counts: Counts,
    response: Histogram<u64>,
    service: Histogram<u64>,
    lateness: Histogram<u64>,
    timeline: Timeline,
    last_interval: Option<Interval>,
    first_error: Option<String>,
    first_wrong: Option<String>,
    failure: Option<Failure>,
    interrupted: bool,
    seed: u64,
}

/// What a run leaves behind.
#[derive(Debug)]
pub struct Outcome {
    /// Why it ended early, if it did.
    pub failure: Option<Failure>,
    /// Someone pressed Ctrl-C.
    pub interrupted: bool,
    /// Length of the measurement.
    pub window_ns: u64,
    /// See there.
    pub counts: Counts,
    /// Received − intended. Empty in a closed loop.
    pub response: Histogram<u64>,
    /// Received − sent.
    pub service: Histogram<u64>,
    /// Sent − intended. Empty in a closed loop.
    pub lateness: Histogram<u64>,
    /// The history.
    pub intervals: Vec<Interval>,
    /// Text of the first error reply.
    pub first_error: Option<String>,
    /// What was wrong with the first wrong reply.
    pub first_wrong: Option<String>,
}

impl Client {
    /// A client at the beginning of its plan.
    pub fn new(plan: Plan) -> Result<Client, Failure> {
        assert!(plan.connections > 0, "checked by the command line");
        let workload = Workload::new(&plan.workload)?;
        let prefill = match plan.prefill {
            true => Some(Workload::prefill(&plan.workload)?),
            false => None,
        };
        let cycle = workload.cycle_length();
        let connections: Vec<Connection> = (0..plan.connections)
            .map(|index| Connection {
                id: None,
                phase: Phase::Unconnected,
                scanner: workload::scanner(plan.workload.protocol),
                sent_at: 0,
                missing: 0,
                asked: VecDeque::new(),
                due: VecDeque::new(),
                buffer: Vec::new(),
                sending: false,
                dirty: false,
                // Spread over the cycle, so that not all connections write at the same moment.
                sequence: index as u64 * cycle / plan.connections as u64,
                sequence_base: 0,
            })
            .collect();
        let requests_left = match plan.stop {
            Stop::Requests(count) => count,
            Stop::After(_) => u64::MAX,
        };
        Ok(Client {
            workload,
            prefill,
            prefill_left: plan.workload.keys,
            greeting: workload::handshake(&plan.workload),
            unconnected: (0..plan.connections as u32).rev().collect(),
            connections,
            by_slot: Vec::new(),
            dirty: Vec::new(),
            operations: VecDeque::new(),
            ready: 0,
            stage: Stage::Connect,
            stage_began: 0,
            measure_began: u64::MAX,
            measure_ended: u64::MAX,
            interval_began: 0,
            checked_timeouts: 0,
            last_progress: 0,
            schedule: None,
            schedule_over: false,
            next_connection: 0,
            requests_left,
            outstanding: 0,
            waiting: 0,
            counts: Counts::default(),
            response: histogram::empty(),
            service: histogram::empty(),
            lateness: histogram::empty(),
            timeline: Timeline::default(),
            last_interval: None,
            first_error: None,
            first_wrong: None,
            failure: None,
            interrupted: false,
            seed: plan.workload.seed,
            plan,
        })
    }

    /// Where the run is.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Share of the prefill that is done, for the progress bar.
    pub fn prefill_share(&self) -> f64 {
        1.0 - self.prefill_left as f64 / self.plan.workload.keys as f64
    }

    /// A connection that needs an id: follow with [`Client::connect`].
    pub fn poll_unconnected(&mut self) -> Option<usize> {
        self.unconnected.pop().map(|index| index as usize)
    }

    /// Opens a connection under the id the driver reserved for it.
    pub fn connect(&mut self, index: usize, id: ConnectionId) {
        let slot = id.slot as usize;
        if self.by_slot.len() <= slot {
            self.by_slot.resize(slot + 1, u32::MAX);
        }
        self.by_slot[slot] = index as u32;
        let connection = &mut self.connections[index];
        connection.id = Some(id);
        connection.phase = Phase::Connecting;
        let target = self.plan.target.clone();
        self.operations.push_back(Operation::Connect { connection: id, token: index as u64, target });
    }

    /// Something the driver reports.
    #[inline]
    pub fn handle(&mut self, event: Event<'_>, now: u64) {
        if let Err(failure) = self.try_handle(event, now) {
            self.fail(failure, now);
        }
    }

    fn try_handle(&mut self, event: Event<'_>, now: u64) -> Result<(), Failure> {
        if self.stage == Stage::Done {
            // The rest of the turn in which it ended: everything outstanding is accounted for already.
            return Ok(());
        }
        match event {
            Event::Received { connection, bytes } => {
                let Some(index) = self.index_of(connection) else { return Ok(()) };
                self.receive(index, bytes, now)
            }
            Event::Sent { connection, buffer, result } => {
                let Some(index) = self.index_of(connection) else { return Ok(()) };
                let state = &mut self.connections[index];
                state.buffer = buffer;
                state.buffer.clear();
                state.sending = false;
                match result {
                    Ok(()) => self.mark_dirty(index),
                    Err(_) => return self.lose(index, now, Loss::Broken),
                }
                Ok(())
            }
            Event::Connected { connection, result, .. } => {
                let Some(index) = self.index_of(connection) else { return Ok(()) };
                self.last_progress = now;
                match result {
                    Ok(()) => {
                        let replies = self.greeting.1;
                        self.connections[index].phase = Phase::Greeting(replies);
                        if replies == 0 {
                            self.become_ready(index);
                        } else {
                            self.connections[index].sending = true;
                            let buffer = self.greeting.0.clone();
                            self.operations.push_back(Operation::Send { connection, buffer });
                        }
                        Ok(())
                    }
                    Err(errno) => {
                        self.connections[index].id = None;
                        self.connections[index].phase = Phase::Unconnected;
                        Err(Failure::Refused(errno))
                    }
                }
            }
            Event::ReceiveEnded { connection } | Event::Failed { connection, .. } => {
                let Some(index) = self.index_of(connection) else { return Ok(()) };
                self.lose(index, now, Loss::Broken)
            }
            Event::Closed { connection } => {
                let Some(index) = self.index_of(connection) else { return Ok(()) };
                let state = &mut self.connections[index];
                state.id = None;
                state.phase = Phase::Unconnected;
                state.sending = false;
                if self.stage < Stage::Drain {
                    self.counts.reconnects += 1;
                    if self.counts.reconnects > 10 * self.plan.connections as u64 + 10_000 {
                        return Err(Failure::ClosesAll(self.counts.reconnects));
                    }
                    self.unconnected.push(index as u32);
                }
                Ok(())
            }
            Event::StopRequested => {
                self.interrupt(now);
                Ok(())
            }
            Event::Accepted { .. } => Ok(()),
        }
    }

    #[inline]
    fn index_of(&self, id: ConnectionId) -> Option<usize> {
        let index = *self.by_slot.get(id.slot as usize)? as usize;
        (self.connections.get(index)?.id == Some(id)).then_some(index)
    }

    #[inline]
    fn mark_dirty(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        if !connection.dirty {
            connection.dirty = true;
            self.dirty.push(index as u32);
        }
    }

    fn become_ready(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        connection.phase = Phase::Ready;
        connection.scanner.restart();
        connection.sequence_base = connection.sequence;
        self.ready += 1;
        self.mark_dirty(index);
    }

    fn receive(&mut self, index: usize, bytes: &[u8], now: u64) -> Result<(), Failure> {
        let connection = &mut self.connections[index];
        let mut tally = Tally::default();
        let scanned = connection.scanner.scan(bytes, &mut tally);
        if self.stage == Stage::Measure {
            self.counts.received_bytes += bytes.len() as u64;
        }
        if tally.errors > 0 && self.first_error.is_none() {
            self.first_error = connection.scanner.first_error();
        }
        match connection.phase {
            Phase::Greeting(missing) => {
                scanned?;
                self.last_progress = now;
                if tally.errors > 0 {
                    return Err(Failure::Rejected(self.first_error.clone().unwrap_or_default()));
                }
                match missing.checked_sub(tally.replies as u32) {
                    Some(0) => self.become_ready(index),
                    Some(left) => connection.phase = Phase::Greeting(left),
                    None => return Err(Failure::Garbage("more replies than requests".into())),
                }
                Ok(())
            }
            Phase::Ready => {
                if let Some(sample) = connection.scanner.take_sample() {
                    let sequence = connection.sequence_base + sample.ordinal;
                    self.check_sample(sequence, &sample.bytes);
                }
                if tally.replies + tally.pushes > 0 {
                    self.count_replies(index, tally, now)?;
                }
                scanned?;
                Ok(())
            }
            // Bytes that were under way when the connection was given up.
            Phase::Closing | Phase::Connecting | Phase::Unconnected => Ok(()),
        }
    }

    #[cold]
    fn check_sample(&mut self, sequence: u64, reply: &[u8]) {
        let workload = match self.stage {
            Stage::Prefill => self.prefill.as_ref().unwrap_or(&self.workload),
            _ => &self.workload,
        };
        self.counts.checked += 1;
        if let Err(wrong) = workload.check(self.plan.workload.protocol, sequence, reply) {
            self.counts.wrong += 1;
            self.first_wrong.get_or_insert(wrong);
        }
    }

    #[inline]
    fn count_replies(&mut self, index: usize, tally: Tally, now: u64) -> Result<(), Failure> {
        self.last_progress = now;
        let measuring = self.stage == Stage::Measure;
        if measuring {
            self.counts.completed += tally.replies;
            self.counts.errors += tally.errors;
            self.counts.nulls += tally.nulls;
            self.counts.pushes += tally.pushes;
            self.timeline.complete(tally.replies);
        }
        let connection = &mut self.connections[index];
        let missing = connection.missing as usize + connection.asked.len();
        if tally.replies > missing as u64 {
            let surplus = tally.replies - missing as u64;
            return Err(Failure::Garbage(format!("{surplus} replies more than were asked for")));
        }
        self.outstanding -= tally.replies as usize;
        if connection.missing > 0 {
            // Closed loop, or prefill.
            connection.missing -= tally.replies as u32;
            let sent = connection.sent_at;
            let empty = connection.missing == 0;
            if self.measured(sent) {
                self.counts.answered += tally.replies;
                self.service.saturating_record_n(now - sent, tally.replies);
                if measuring {
                    self.timeline.record(now - sent, tally.replies);
                }
            }
            if empty {
                self.mark_dirty(index);
            }
            return Ok(());
        }
        for _ in 0..tally.replies {
            let asked = connection.asked.pop_front().expect("counted above");
            if asked.intended >= self.measure_began {
                self.counts.answered += 1;
                self.response.saturating_record(now - asked.intended);
                self.service.saturating_record(now - asked.sent);
                self.timeline.record(now - asked.intended, 1);
            }
        }
        Ok(())
    }

    /// Whether a request of that moment belongs to the measurement.
    #[inline]
    fn measured(&self, at: u64) -> bool {
        at >= self.measure_began && at < self.measure_ended
    }

    /// A connection is of no use any more: counts what it still owes, and closes it.
    fn lose(&mut self, index: usize, now: u64, loss: Loss) -> Result<(), Failure> {
        let state = &mut self.connections[index];
        let Some(id) = state.id else { return Ok(()) };
        match state.phase {
            Phase::Greeting(_) | Phase::Connecting => return Err(Failure::ClosedEarly),
            Phase::Ready => {}
            Phase::Closing | Phase::Unconnected => return Ok(()),
        }
        state.phase = Phase::Closing;
        self.ready -= 1;
        self.operations.push_back(Operation::Close { connection: id });
        let owed = self.give_up_unanswered(index, now);
        match loss {
            Loss::Broken => self.counts.lost += owed,
            Loss::TimedOut => self.counts.timeouts += owed,
        }
        self.connections[index].scanner = workload::scanner(self.plan.workload.protocol);
        match self.stage {
            Stage::Connect => Err(Failure::ClosedEarly),
            // A hole in the prefill would be found as misses later.
            Stage::Prefill => Err(Failure::LostInPrefill),
            _ => Ok(()),
        }
    }

    /// Records the sent and unanswered requests of a connection as having taken at least until now; the number
    /// of those that belong to the measurement.
    fn give_up_unanswered(&mut self, index: usize, now: u64) -> u64 {
        let (began, ended) = (self.measure_began, self.measure_ended);
        let connection = &mut self.connections[index];
        let mut owed = 0;
        self.outstanding -= connection.missing as usize + connection.asked.len();
        let batch = u64::from(std::mem::take(&mut connection.missing));
        if batch > 0 && connection.sent_at >= began && connection.sent_at < ended {
            self.service.saturating_record_n(now - connection.sent_at, batch);
            owed += batch;
        }
        for asked in connection.asked.drain(..) {
            if asked.intended >= began {
                self.response.saturating_record(now - asked.intended);
                self.service.saturating_record(now - asked.sent);
                owed += 1;
            }
        }
        owed
    }

    /// Lets time pass: stages, arrivals, intervals, time-outs. Call once a turn, before [`Client::poll_operation`].
    #[inline]
    pub fn handle_time(&mut self, now: u64) {
        // Arrivals first: those that were due before the measurement's end belong to it, however late this is.
        if self.schedule.is_some() && !self.schedule_over {
            self.admit_arrivals(now);
        }
        self.advance(now);
        if self.stage == Stage::Measure && now >= self.interval_began + self.plan.interval_ns {
            self.end_interval(now);
        }
        if now >= self.checked_timeouts + 50_000_000 {
            self.check_timeouts(now);
        }
    }

    fn advance(&mut self, now: u64) {
        match self.stage {
            Stage::Connect if self.ready == self.connections.len() => {
                if self.prefill.is_some() {
                    self.enter(Stage::Prefill, now);
                } else {
                    self.begin_load(now);
                }
            }
            Stage::Prefill if self.prefill_left == 0 && self.outstanding == 0 => {
                if let Some(error) = self.first_error.clone() {
                    self.fail(Failure::Rejected(format!("the prefill got errors: {error}")), now);
                    return;
                }
                self.begin_load(now);
            }
            Stage::WarmUp if now - self.stage_began >= self.plan.warmup_ns => {
                // The boundary itself, not the turn that notices it: arrivals in between are measured.
                let boundary = self.stage_began + self.plan.warmup_ns;
                self.measure_began = if self.schedule.is_some() { boundary } else { now };
                self.interval_began = self.measure_began;
                self.enter(Stage::Measure, now);
            }
            Stage::Measure => {
                let over = match self.plan.stop {
                    Stop::After(length) => now - self.measure_began >= length,
                    Stop::Requests(_) => {
                        let none_left = self.requests_left == 0 || self.schedule_over;
                        none_left && self.outstanding + self.waiting == 0
                    }
                };
                if over {
                    self.end_measurement(now);
                }
            }
            Stage::Drain
                if self.outstanding + self.waiting == 0 || now >= self.measure_ended + self.plan.drain_ns =>
            {
                self.finish(now);
            }
            _ => {}
        }
    }

    fn enter(&mut self, stage: Stage, now: u64) {
        self.stage = stage;
        self.stage_began = now;
        self.last_progress = now;
        if matches!(stage, Stage::Prefill | Stage::WarmUp) {
            for index in 0..self.connections.len() {
                let connection = &mut self.connections[index];
                connection.scanner.restart();
                connection.sequence_base = connection.sequence;
                self.mark_dirty(index);
            }
        }
    }

    fn begin_load(&mut self, now: u64) {
        self.counts = Counts::default();
        self.first_error = None;
        if let Load::Open { rate, arrival } = self.plan.load {
            self.schedule = Some(Schedule::new(arrival, rate, self.seed));
        }
        self.enter(Stage::WarmUp, now);
        self.advance(now);
    }

    fn end_interval(&mut self, now: u64) {
        let began = self.measure_began;
        let interval = self.timeline.end_interval(self.interval_began - began, now - began);
        self.interval_began = now;
        self.last_interval = Some(interval);
    }

    /// The interval that ended since the last call.
    pub fn take_interval(&mut self) -> Option<Interval> {
        self.last_interval.take()
    }

    fn end_measurement(&mut self, now: u64) {
        self.measure_ended = match (self.plan.stop, self.schedule.is_some()) {
            (Stop::After(length), true) => self.measure_began + length,
            _ => now,
        };
        self.schedule_over = true;
        if now > self.interval_began {
            self.end_interval(now);
        }
        self.enter(Stage::Drain, now);
        self.advance(now);
    }

    /// Ends the run: what is unanswered is recorded as a lower bound.
    fn finish(&mut self, now: u64) {
        if self.stage == Stage::Done {
            return;
        }
        if self.stage == Stage::Measure {
            self.measure_ended = now;
            if now > self.interval_began {
                self.end_interval(now);
            }
        }
        for index in 0..self.connections.len() {
            self.counts.unanswered += self.give_up_unanswered(index, now);
            let began = self.measure_began;
            let connection = &mut self.connections[index];
            for intended in connection.due.drain(..).filter(|intended| *intended >= began) {
                // Never sent: late by all of it, and no service time at all.
                self.response.saturating_record(now - intended);
                self.lateness.saturating_record(now - intended);
                self.counts.unanswered += 1;
            }
        }
        self.waiting = 0;
        self.enter(Stage::Done, now);
    }

    fn fail(&mut self, failure: Failure, now: u64) {
        self.failure.get_or_insert(failure);
        self.finish(now);
    }

    /// The driver itself failed.
    pub fn driver_failed(&mut self, error: &std::io::Error, now: u64) {
        self.fail(Failure::Driver(error.to_string()), now);
    }

    /// Ctrl-C: keeps what was measured so far.
    pub fn interrupt(&mut self, now: u64) {
        self.interrupted = true;
        self.finish(now);
    }

    fn admit_arrivals(&mut self, now: u64) {
        let Some(schedule) = &mut self.schedule else { return };
        let zero = match self.stage {
            Stage::WarmUp => self.stage_began,
            _ => self.measure_began - self.plan.warmup_ns,
        };
        let end = match self.plan.stop {
            Stop::After(length) => self.plan.warmup_ns + length,
            Stop::Requests(_) => u64::MAX,
        };
        let mut began = self.measure_began;
        if self.stage == Stage::WarmUp {
            began = zero + self.plan.warmup_ns;
        }
        while let Some(arrival) = schedule.take_due(now - zero) {
            let intended = zero + arrival;
            if arrival >= end || self.requests_left == 0 {
                self.schedule_over = true;
                break;
            }
            if intended >= began {
                self.counts.offered += 1;
                self.requests_left = self.requests_left.saturating_sub(1);
            }
            let index = self.next_connection;
            self.next_connection = (index + 1) % self.connections.len();
            let connection = &mut self.connections[index];
            connection.due.push_back(intended);
            self.waiting += 1;
            if !connection.dirty {
                connection.dirty = true;
                self.dirty.push(index as u32);
            }
        }
        if self.waiting + self.outstanding > OUTSTANDING_MAX {
            self.fail(Failure::Backlog, now);
        }
    }

    fn check_timeouts(&mut self, now: u64) {
        self.checked_timeouts = now;
        let timeout = self.plan.timeout_ns;
        if self.stage < Stage::WarmUp {
            if now.saturating_sub(self.last_progress) > timeout {
                self.fail(Failure::Silent(self.stage), now);
            }
            return;
        }
        for index in 0..self.connections.len() {
            let connection = &self.connections[index];
            let oldest = match connection.missing {
                0 => connection.asked.front().map(|asked| asked.sent),
                _ => Some(connection.sent_at),
            };
            if oldest.is_some_and(|sent| now - sent > timeout) {
                if now - self.last_progress > timeout {
                    // Not this connection: nobody is answered.
                    self.fail(Failure::Silent(self.stage), now);
                    return;
                }
                if let Err(failure) = self.lose(index, now, Loss::TimedOut) {
                    self.fail(failure, now);
                }
            }
        }
    }

    /// How long nothing happens unless an event comes.
    #[inline]
    pub fn poll_timeout(&self, now: u64) -> u64 {
        let mut at = now + 50_000_000;
        match self.stage {
            Stage::WarmUp => at = at.min(self.stage_began + self.plan.warmup_ns),
            Stage::Measure => {
                at = at.min(self.interval_began + self.plan.interval_ns);
                if let Stop::After(length) = self.plan.stop {
                    at = at.min(self.measure_began + length);
                }
            }
            Stage::Drain => at = at.min(self.measure_ended + self.plan.drain_ns),
            _ => {}
        }
        if let Some(arrival) = self.next_arrival() {
            at = at.min(arrival);
        }
        at.saturating_sub(now)
    }

    /// When the next request of the open loop is due.
    #[inline]
    pub fn next_arrival(&self) -> Option<u64> {
        let schedule = self.schedule.as_ref().filter(|_| !self.schedule_over)?;
        let zero = match self.stage {
            Stage::WarmUp => self.stage_began,
            _ => self.measure_began - self.plan.warmup_ns,
        };
        Some(zero + schedule.peek())
    }

    /// The next operation; `now` becomes the send stamp of what it carries.
    #[inline]
    pub fn poll_operation(&mut self, now: u64) -> Option<Operation> {
        if let Some(operation) = self.operations.pop_front() {
            return Some(operation);
        }
        while let Some(index) = self.dirty.pop() {
            self.connections[index as usize].dirty = false;
            if let Some(send) = self.build_send(index as usize, now) {
                return Some(send);
            }
        }
        None
    }

    #[inline]
    fn build_send(&mut self, index: usize, now: u64) -> Option<Operation> {
        let connection = &mut self.connections[index];
        if connection.phase != Phase::Ready || connection.sending {
            return None;
        }
        let id = connection.id?;
        let mut buffer = std::mem::take(&mut connection.buffer);
        let measured_now;
        match self.stage {
            Stage::Prefill => {
                let count = u64::from(PREFILL_PIPELINE).min(self.prefill_left);
                let workload = self.prefill.as_mut().filter(|_| connection.missing == 0);
                if let Some(workload) = workload {
                    for _ in 0..count {
                        workload.render(connection.sequence, &mut buffer);
                        connection.sequence += 1;
                    }
                    self.prefill_left -= count;
                    connection.missing = count as u32;
                    connection.sent_at = now;
                    self.outstanding += count as usize;
                }
                measured_now = 0;
            }
            Stage::WarmUp | Stage::Measure | Stage::Drain => match self.plan.load {
                Load::Closed { pipeline } => {
                    if connection.missing > 0 || self.stage == Stage::Drain {
                        connection.buffer = buffer;
                        return None;
                    }
                    let mut count = u64::from(pipeline);
                    if self.stage == Stage::Measure {
                        count = count.min(self.requests_left);
                        self.requests_left -= count;
                        self.counts.offered += count;
                        measured_now = count;
                    } else {
                        measured_now = 0;
                    }
                    if count == 0 {
                        connection.buffer = buffer;
                        return None;
                    }
                    for _ in 0..count {
                        self.workload.render(connection.sequence, &mut buffer);
                        connection.sequence += 1;
                    }
                    connection.missing = count as u32;
                    connection.sent_at = now;
                    self.outstanding += count as usize;
                }
                Load::Open { .. } => {
                    let began = match self.stage {
                        Stage::WarmUp => self.stage_began + self.plan.warmup_ns,
                        _ => self.measure_began,
                    };
                    let mut measured = 0;
                    let mut count = 0;
                    while buffer.len() < SEND_BYTES_MAX {
                        let Some(intended) = connection.due.pop_front() else { break };
                        self.workload.render(connection.sequence, &mut buffer);
                        connection.sequence += 1;
                        connection.asked.push_back(Asked { intended, sent: now });
                        count += 1;
                        if intended >= began {
                            self.lateness.saturating_record(now - intended);
                            measured += 1;
                        }
                    }
                    self.waiting -= count;
                    self.outstanding += count;
                    measured_now = measured;
                }
            },
            Stage::Connect | Stage::Done => return None,
        }
        if buffer.is_empty() {
            connection.buffer = buffer;
            return None;
        }
        if measured_now > 0 {
            self.counts.sent += measured_now;
            self.counts.sent_bytes += buffer.len() as u64;
        }
        connection.sending = true;
        Some(Operation::Send { connection: id, buffer })
    }

    /// What was measured. The run is over, whether or not it was meant to be.
    pub fn into_outcome(self) -> Outcome {
        let measured = self.measure_began != u64::MAX;
        let ended = if self.measure_ended == u64::MAX { self.measure_began } else { self.measure_ended };
        Outcome {
            failure: self.failure,
            interrupted: self.interrupted,
            window_ns: if measured { ended.saturating_sub(self.measure_began) } else { 0 },
            counts: self.counts,
            response: self.response,
            service: self.service,
            lateness: self.lateness,
            intervals: self.timeline.into_intervals(),
            first_error: self.first_error,
            first_wrong: self.first_wrong,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Loss {
    Broken,
    TimedOut,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report;

    const MS: u64 = 1_000_000;

    /// A client with its driver played by the test: time is what the test says.
    struct Played {
        client: Client,
        now: u64,
        next_slot: u32,
        /// Sends that were not completed yet.
        in_flight: VecDeque<(ConnectionId, Vec<u8>)>,
    }

    impl Played {
        fn new(change: impl FnOnce(&mut Plan)) -> Played {
            let mut plan = report::tests::plan(false);
            plan.connections = 1;
            plan.warmup_ns = 0;
            plan.stop = Stop::After(100 * MS);
            plan.workload.sets = 0;
            plan.workload.gets = 1;
            change(&mut plan);
            let client = Client::new(plan).expect("valid");
            let mut played = Played { client, now: 0, next_slot: 0, in_flight: VecDeque::new() };
            played.turn(0);
            played
        }

        /// Lets the clock reach `now` and takes what the client wants done. Connections open at once.
        fn turn(&mut self, now: u64) {
            self.now = now;
            loop {
                self.client.handle_time(now);
                while let Some(index) = self.client.poll_unconnected() {
                    let id = ConnectionId { slot: self.next_slot, generation: 1 };
                    self.next_slot += 1;
                    self.client.connect(index, id);
                }
                let Some(operation) = self.client.poll_operation(now) else { break };
                match operation {
                    Operation::Connect { connection, token, .. } => {
                        self.client.handle(Event::Connected { connection, token, result: Ok(()) }, now);
                    }
                    Operation::Send { connection, buffer } => self.in_flight.push_back((connection, buffer)),
                    Operation::Close { connection } => {
                        self.in_flight.retain(|(id, _)| *id != connection);
                        self.client.handle(Event::Closed { connection }, now);
                    }
                    other => panic!("a client does not ask for {other:?}"),
                }
            }
        }

        /// The oldest send ends; how many requests it carried.
        fn complete_send(&mut self, now: u64) -> (ConnectionId, usize) {
            let (connection, buffer) = self.in_flight.pop_front().expect("a send is in flight");
            let requests = buffer.windows(3).filter(|window| window == b"GET").count();
            self.client.handle(Event::Sent { connection, buffer, result: Ok(()) }, now);
            (connection, requests)
        }

        fn reply(&mut self, connection: ConnectionId, count: usize, now: u64) {
            let bytes = b"$3\r\nabc\r\n".repeat(count);
            self.client.handle(Event::Received { connection, bytes: &bytes }, now);
        }

        fn outcome(self) -> Outcome {
            self.client.into_outcome()
        }
    }

    fn open(rate: f64) -> impl FnOnce(&mut Plan) {
        move |plan| plan.load = Load::Open { rate, arrival: Arrival::Constant }
    }

    fn assert_close(found: u64, expected: u64) {
        let error = (found as f64 / expected as f64 - 1.0).abs();
        assert!(error < 0.002, "{found} is not {expected}");
    }

    #[test]
    fn late_requests_are_sent_all_and_keep_their_intended_time() {
        // One a millisecond; the first send's completion takes until 10.5 ms.
        let mut played = Played::new(open(1_000.0));
        played.turn(MS);
        assert_eq!(played.in_flight.len(), 1);
        for now in 2..=10 {
            played.turn(now * MS);
        }
        assert_eq!(played.in_flight.len(), 1, "one send in flight a connection");
        let (id, requests) = played.complete_send(10 * MS + MS / 2);
        assert_eq!(requests, 1);
        played.turn(10 * MS + MS / 2);
        let (_, requests) = played.complete_send(10 * MS + MS / 2);
        assert_eq!(requests, 9, "nothing that was due is dropped");
        played.reply(id, 10, 12 * MS);
        let outcome = played.outcome();
        assert_eq!((outcome.counts.offered, outcome.counts.sent, outcome.counts.answered), (10, 10, 10));
        // The first: intended and sent at 1 ms, so 11 ms. The second: intended at 2 ms, sent at 10.5 ms.
        assert_close(outcome.response.max(), 11 * MS);
        assert_close(outcome.service.max(), 11 * MS);
        assert_close(outcome.lateness.max(), 8 * MS + MS / 2);
        assert_close(outcome.response.value_at_quantile(0.85), 10 * MS);
        assert_close(outcome.service.value_at_quantile(0.85), MS + MS / 2);
    }

    #[test]
    fn a_batch_waits_for_all_replies_of_the_last() {
        let mut played = Played::new(|plan| plan.load = Load::Closed { pipeline: 5 });
        let (id, requests) = played.complete_send(MS);
        assert_eq!(requests, 5);
        played.reply(id, 4, 2 * MS);
        played.turn(2 * MS);
        assert!(played.in_flight.is_empty());
        played.reply(id, 1, 3 * MS);
        played.turn(3 * MS);
        assert_eq!(played.complete_send(3 * MS).1, 5);
        let outcome = played.outcome();
        assert_eq!((outcome.counts.sent, outcome.counts.answered), (10, 5));
        assert_close(outcome.service.min(), 2 * MS);
        assert_close(outcome.service.max(), 3 * MS);
        assert_eq!((outcome.response.len(), outcome.lateness.len()), (0, 0));
    }

    #[test]
    fn a_reply_that_overtakes_its_sends_completion_is_taken() {
        let mut played = Played::new(|_| {});
        let id = played.in_flight[0].0;
        played.reply(id, 1, MS);
        played.turn(MS);
        assert_eq!(played.in_flight.len(), 1, "the buffer is not back: nothing new is sent");
        played.complete_send(MS);
        played.turn(MS);
        assert_eq!(played.in_flight.len(), 1);
        assert_eq!(played.outcome().counts.answered, 1);
    }

    #[test]
    fn warm_up_is_discarded_by_the_intended_time() {
        let mut played = Played::new(|plan| {
            open(1_000.0)(plan);
            plan.warmup_ns = 10 * MS + MS / 2;
        });
        // A generator that slept over the boundary: ten arrivals before it, ten after.
        played.turn(20 * MS + MS / 4);
        let (id, requests) = played.complete_send(20 * MS + MS / 4);
        assert_eq!(requests, 20);
        played.turn(20 * MS + MS / 4);
        played.reply(id, 20, 21 * MS);
        let outcome = played.outcome();
        assert_eq!((outcome.counts.offered, outcome.counts.answered, outcome.response.len()), (10, 10, 10));
        assert_close(outcome.response.max(), 10 * MS);
    }

    #[test]
    fn what_is_unanswered_at_the_end_counts_as_long_as_it_took() {
        let mut played = Played::new(|plan| {
            open(1_000.0)(plan);
            plan.stop = Stop::After(10 * MS);
            plan.drain_ns = 50 * MS;
        });
        played.turn(MS);
        played.turn(10 * MS + 1);
        assert_eq!(played.client.stage(), Stage::Drain);
        played.turn(60 * MS);
        assert_eq!(played.client.stage(), Stage::Done);
        let outcome = played.outcome();
        // The one sent, and those that waited behind its send to the end.
        assert_eq!((outcome.counts.offered, outcome.counts.unanswered, outcome.counts.answered), (9, 9, 0));
        assert_eq!(outcome.response.len(), 9);
        assert_close(outcome.response.max(), 59 * MS);
        assert_eq!(outcome.window_ns, 10 * MS);
    }

    #[test]
    fn a_connection_that_is_not_answered_is_given_up_and_opened_again() {
        let mut played = Played::new(|plan| {
            plan.connections = 2;
            plan.stop = Stop::After(1_000 * MS);
            plan.timeout_ns = 100 * MS;
        });
        let (first, _) = played.complete_send(MS);
        let (second, _) = played.complete_send(MS);
        // The second goes on working, the first is silent.
        for now in (20..=200).step_by(20) {
            played.reply(second, 1, now * MS);
            played.turn(now * MS);
            if played.in_flight.iter().any(|(id, _)| *id == second) {
                while played.in_flight[0].0 != second {
                    played.in_flight.rotate_left(1);
                }
                played.complete_send(now * MS);
            }
        }
        assert_eq!((played.client.counts.timeouts, played.client.counts.reconnects), (1, 1));
        assert_eq!(played.next_slot, 3, "the first was opened again");
        // What comes late on the old connection harms nobody.
        played.reply(first, 1, 201 * MS);
        let outcome = played.outcome();
        assert_eq!(outcome.failure, None);
        assert!(outcome.service.max() >= 100 * MS, "a lower bound stands in the histogram");
    }

    #[test]
    fn replies_nobody_asked_for_end_the_run() {
        let mut played = Played::new(|_| {});
        let (id, _) = played.complete_send(MS);
        played.reply(id, 2, MS);
        assert_eq!(played.client.stage(), Stage::Done);
        let failure = played.outcome().failure.expect("it failed").to_string();
        assert!(failure.contains("more than were asked for"), "{failure}");
    }

    #[test]
    fn connections_start_at_different_places_of_the_cycle() {
        let mut played = Played::new(|plan| {
            plan.connections = 4;
            (plan.workload.sets, plan.workload.gets) = (1, 3);
        });
        let sets = played.in_flight.iter().filter(|(_, buffer)| buffer.windows(3).any(|part| part == b"SET"));
        assert_eq!(sets.count(), 1);
        played.client.interrupt(MS);
        assert!(played.outcome().interrupted);
    }
}
