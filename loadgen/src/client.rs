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
//! Stages: connect (and handshake) → prefill → wait (one of several threads) → warm-up → measure → drain → done. A request belongs to the
//! measurement by its intended time (open) or its send (closed); what is unanswered when the drain ends is
//! recorded with the time it has taken so far, a lower bound.
//!
//! A turn is `handle` for every event ([`receive`]), `handle_time` ([`time`]), `poll_operation` until there is none
//! ([`send`]).

mod connection;
mod plan;
mod receive;
mod send;
#[cfg(test)]
mod tests;
mod time;
pub mod warm_up;

use crate::arrivals::Picker;
use crate::gate::Gate;
use crate::histogram::{self, Timeline};
use crate::schedule::Schedule;
use crate::worker::{Machine, Progress};
use crate::workload::{self, Workload};
use connection::{Connection, Phase};
use hdrhistogram::Histogram;
pub use plan::{Counts, Failure, Load, Outcome, Plan, Stage, Stop};
use reactor::server::event::{ConnectionId, Event, Operation};
use std::collections::VecDeque;
use std::sync::Arc;
use warm_up::WarmUp;

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
    /// The next connection may be opened from here on.
    connect_at: u64,
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
    /// Open loop: picks requests whose sends are held against the schedule afterwards.
    picker: Option<Picker>,
    schedule_over: bool,
    next_connection: usize,
    /// Of `Stop::Requests`: how many may still be sent.
    requests_left: u64,
    /// When the last of them was meant to leave (open loop).
    offer_ended: Option<u64>,
    /// Replies that had arrived by then.
    completed_by_then: u64,
    /// Requests sent and unanswered, and due and unsent.
    outstanding: usize,
    waiting: usize,
    counts: Counts,
    response: Histogram<u64>,
    service: Histogram<u64>,
    lateness: Histogram<u64>,
    timeline: Timeline,
    /// Until the measurement begins, where a test ends the warm-up and this thread is the one that makes it.
    warm_up: Option<WarmUp>,
    warmup_settled: Option<bool>,
    last_interval: Option<Progress>,
    /// Where it waits for the other threads of its generator.
    gate: Option<Arc<Gate>>,
    first_error: Option<String>,
    first_wrong: Option<String>,
    failure: Option<Failure>,
    interrupted: bool,
    seed: u64,
}
impl Client {
    /// A client at the beginning of its plan.
    pub fn new(plan: Plan) -> Result<Client, Failure> {
        assert!(plan.connections > 0, "checked by the command line");
        let workload = Workload::new(&plan.workload)?;
        // One of several threads fills.
        let prefill = match plan.prefill && plan.workload.share.index == 0 {
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
                requests: 0,
                churning: false,
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
            connect_at: 0,
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
            picker: None,
            schedule_over: false,
            next_connection: 0,
            requests_left,
            offer_ended: None,
            completed_by_then: 0,
            outstanding: 0,
            waiting: 0,
            counts: Counts::default(),
            response: histogram::empty(),
            service: histogram::empty(),
            lateness: histogram::empty(),
            timeline: Timeline::default(),
            warm_up: (plan.warmup_is_tested && plan.workload.share.index == 0).then(WarmUp::new),
            warmup_settled: None,
            last_interval: None,
            gate: None,
            first_error: None,
            first_wrong: None,
            failure: None,
            interrupted: false,
            seed: plan.workload.seed,
            plan,
        })
    }

    /// The same, waiting for the other threads of its generator before its load begins.
    pub fn with_gate(mut self, gate: Option<Arc<Gate>>) -> Client {
        self.gate = gate;
        self
    }

    fn next_unconnected(&mut self, now: u64) -> Option<usize> {
        if self.unconnected.is_empty() || now < self.connect_at {
            return None;
        }
        if let Some(gap) = self.connect_gap() {
            // What is late is not made up for: a burst of connections is what the ramp is to avoid.
            self.connect_at = now + gap;
            self.last_progress = now;
        }
        self.unconnected.pop().map(|index| index as usize)
    }

    fn connect_gap(&self) -> Option<u64> {
        self.plan.connects_per_s.map(|rate| (1e9 / rate) as u64)
    }

    fn open(&mut self, index: usize, id: ConnectionId) {
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
    /// What was measured. The run is over, whether or not it was meant to be.
    pub fn into_outcome(self) -> Outcome {
        let measured = self.measure_began != u64::MAX;
        let ended = if self.measure_ended == u64::MAX { self.measure_began } else { self.measure_ended };
        Outcome {
            failure: self.failure,
            interrupted: self.interrupted,
            measure_began_ns: measured.then_some(self.measure_began),
            picked: self.picker,
            window_ns: if measured { ended.saturating_sub(self.measure_began) } else { 0 },
            offered_ns: self.offer_ended.map(|ended| ended.saturating_sub(self.measure_began)),
            // In a time instead of a number of requests, all that is completed is completed in time.
            completed_in_time: match self.offer_ended {
                Some(_) => self.completed_by_then,
                None => self.counts.completed,
            },
            counts: self.counts,
            response: self.response,
            service: self.service,
            lateness: self.lateness,
            warmup_ns: self.plan.warmup_ns,
            warmup_settled: self.warmup_settled,
            intervals: self.timeline.into_intervals(),
            first_error: self.first_error,
            first_wrong: self.first_wrong,
        }
    }
}

impl Machine for Client {
    fn stage(&self) -> Stage {
        self.stage
    }

    fn begin(&mut self, now: u64) {
        self.last_progress = now;
    }

    #[inline]
    fn handle_time(&mut self, now: u64) {
        self.pass_time(now);
    }

    #[inline]
    fn handle(&mut self, event: Event<'_>, now: u64) {
        if let Err(failure) = self.try_handle(event, now) {
            self.fail(failure, now);
        }
    }

    fn poll_unconnected(&mut self, now: u64) -> Option<usize> {
        self.next_unconnected(now)
    }

    fn connect(&mut self, index: usize, id: ConnectionId) {
        self.open(index, id);
    }

    #[inline]
    fn poll_operation(&mut self, now: u64) -> Option<Operation> {
        self.next_operation(now)
    }

    #[inline]
    fn poll_timeout(&self, now: u64) -> u64 {
        self.time_left(now)
    }

    #[inline]
    fn next_arrival(&self) -> Option<u64> {
        self.arrival_ahead()
    }

    fn take_interval(&mut self) -> Option<Progress> {
        self.last_interval.take()
    }

    fn prefill_share(&self) -> f64 {
        1.0 - self.prefill_left as f64 / self.plan.workload.keys as f64
    }

    fn driver_failed(&mut self, error: &std::io::Error, now: u64) {
        self.fail(Failure::Driver(error.to_string()), now);
    }
}
