//! Workers in a closed loop, each with a local cache: a read that finds its key there asks nobody, and every key found at
//! the server is kept until the server says that it has changed.
//!
//! A worker does one thing after the other, as a request of a web application does: reads that its cache answers come in
//! no time, a read that it does not, and every write, waits for the server. What the cache holds of a key is its version, so
//! that every read of it can be held against what was acknowledged at that moment ([`Truth`]).
//!
//! A value that was on its way when its key changed is not kept: which of the two was first cannot be told by every server's
//! order of pushes and replies.

use super::links::{Links, put_command};
use super::replies::Reply;
use super::truth::{Truth, read_version, write_version};
use super::{KEY_BYTES, Mode, key_number, write_key};
use crate::client::{Failure, Stage};
use crate::gate::{Gate, LOOK_EVERY_NS};
use crate::histogram;
use crate::worker::Machine;
use crate::workload::Share;
use crate::workload::keys::{KeyChoice, KeyDistribution};
use hdrhistogram::Histogram;
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use reactor::server::event::{ConnectionId, Event, Operation, Target};
use std::collections::VecDeque;
use std::sync::Arc;

/// Reads that a worker's cache answers in one turn: then the others have theirs, and what the server said is heard.
const LOCAL_READS_MAX: u32 = 8;
/// Draws of a key that nobody else is writing; then the worker reads.
const WRITE_DRAWS_MAX: u32 = 8;

/// What the workers of one thread do.
#[derive(Clone, Debug)]
pub struct PoolPlan {
    /// Where to.
    pub target: Target,
    /// AUTH.
    pub password: Option<String>,
    /// How many of them.
    pub workers: usize,
    /// How their caches are kept true.
    pub mode: Mode,
    /// Writes in a cycle.
    pub sets: u32,
    /// Reads in a cycle.
    pub gets: u32,
    /// Keys.
    pub keys: u32,
    /// Which of them.
    pub distribution: KeyDistribution,
    /// Bytes of a value.
    pub value_bytes: usize,
    /// Discarded before.
    pub warmup_ns: u64,
    /// Measured.
    pub duration_ns: u64,
    /// A reply that takes longer ends the run.
    pub timeout_ns: u64,
    /// Seed of the keys.
    pub seed: u64,
    /// Which of several threads.
    pub share: Share,
}

/// What was counted and measured.
#[derive(Clone, Debug)]
pub struct PoolFigures {
    /// Reads, wherever they were answered.
    pub reads: u64,
    /// Of these: by the cache.
    pub hits: u64,
    /// Writes acknowledged.
    pub writes: u64,
    /// Error replies.
    pub errors: u64,
    /// Keys that the server did not have.
    pub nulls: u64,
    /// Values older than what was acknowledged before they were asked for: the server's fault.
    pub wrong: u64,
    /// Keys that workers were told of.
    pub invalidations: u64,
    /// Of these: before the writer had its acknowledgement.
    pub early: u64,
    /// Reads that the cache answered with a value that was overwritten and acknowledged.
    pub stale_reads: u64,
    /// For how long it had been, at such a read.
    pub stale_age: Histogram<u64>,
    /// From the acknowledgement of a write to the invalidation of a cache that held the key; those told before it are 0.
    pub window: Histogram<u64>,
    /// Received − sent, of reads at the server.
    pub remote_reads: Histogram<u64>,
    /// Received − sent, of writes.
    pub remote_writes: Histogram<u64>,
    /// Length of the measurement.
    pub window_ns: u64,
    /// Text of the first error.
    pub first_error: Option<String>,
    /// What was wrong first.
    pub first_wrong: Option<String>,
}

impl Default for PoolFigures {
    fn default() -> PoolFigures {
        PoolFigures {
            reads: 0,
            hits: 0,
            writes: 0,
            errors: 0,
            nulls: 0,
            wrong: 0,
            invalidations: 0,
            early: 0,
            stale_reads: 0,
            stale_age: histogram::empty(),
            window: histogram::empty(),
            remote_reads: histogram::empty(),
            remote_writes: histogram::empty(),
            window_ns: 0,
            first_error: None,
            first_wrong: None,
        }
    }
}

impl PoolFigures {
    /// Adds another thread's.
    pub fn merge(&mut self, other: PoolFigures) {
        self.reads += other.reads;
        self.hits += other.hits;
        self.writes += other.writes;
        self.errors += other.errors;
        self.nulls += other.nulls;
        self.wrong += other.wrong;
        self.invalidations += other.invalidations;
        self.early += other.early;
        self.stale_reads += other.stale_reads;
        for (ours, theirs) in [
            (&mut self.stale_age, other.stale_age),
            (&mut self.window, other.window),
            (&mut self.remote_reads, other.remote_reads),
            (&mut self.remote_writes, other.remote_writes),
        ] {
            ours.add(theirs).expect("all have the same range");
        }
        self.window_ns = self.window_ns.max(other.window_ns);
        self.first_error = self.first_error.take().or(other.first_error);
        self.first_wrong = self.first_wrong.take().or(other.first_wrong);
    }
}

/// What a worker waits for.
#[derive(Clone, Copy, Debug)]
enum Asked {
    /// The value of a key; whether it changed meanwhile, and what was acknowledged before.
    Read { key: u32, changed: bool, known: u64 },
    /// A write.
    Write { key: u32, version: u64 },
}

#[derive(Debug)]
struct Worker {
    /// Version + 1 by key; 0: not there. Empty without a cache.
    cache: Vec<u64>,
    asked: Option<Asked>,
    sent_at: u64,
    cycle: u32,
}

/// The workers without their connections.
#[derive(Debug)]
struct Workers {
    plan: PoolPlan,
    truth: Arc<Truth>,
    workers: Vec<Worker>,
    keys: KeyChoice,
    random: Xoshiro256PlusPlus,
    value: Vec<u8>,
    /// Workers that wait for nothing, and those that had their turn.
    runnable: VecDeque<usize>,
    rested: Vec<usize>,
    measuring: bool,
    figures: PoolFigures,
    surplus: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Pool {
    links: Links,
    workers: Workers,
    stage: Stage,
    stage_began: u64,
    measure_began: u64,
    checked: u64,
    last_progress: u64,
    gate: Arc<Gate>,
    failure: Option<Failure>,
    interrupted: bool,
}

impl Pool {
    /// Workers at the beginning of their plan.
    pub fn new(plan: PoolPlan, truth: Arc<Truth>, gate: Arc<Gate>) -> Result<Pool, Failure> {
        let keys = KeyChoice::new(plan.distribution, u64::from(plan.keys)).map_err(Failure::Workload)?;
        let cycle = plan.sets + plan.gets;
        let worker = |index: usize| Worker {
            cache: if plan.mode == Mode::Off { Vec::new() } else { vec![0; plan.keys as usize] },
            asked: None,
            sent_at: 0,
            // Not all of them write at the same moment.
            cycle: (index as u64 * u64::from(cycle) / plan.workers as u64) as u32,
        };
        let greeting = plan.mode.greeting(plan.password.as_deref());
        let workers = Workers {
            truth,
            workers: (0..plan.workers).map(worker).collect(),
            keys: keys.of_share(plan.share),
            random: Xoshiro256PlusPlus::seed_from_u64(
                plan.seed ^ 0x706f_6f6c ^ (plan.share.index as u64) << 40,
            ),
            value: vec![b'v'; plan.value_bytes],
            runnable: (0..plan.workers).collect(),
            rested: Vec::new(),
            measuring: false,
            figures: PoolFigures::default(),
            surplus: false,
            plan,
        };
        Ok(Pool {
            links: Links::new(workers.plan.target.clone(), vec![greeting; workers.plan.workers]),
            workers,
            stage: Stage::Connect,
            stage_began: 0,
            measure_began: 0,
            checked: 0,
            last_progress: 0,
            gate,
            failure: None,
            interrupted: false,
        })
    }

    /// What they did; why it ended early, and whether somebody asked for that.
    pub fn into_figures(self) -> (PoolFigures, Option<Failure>, bool) {
        (self.workers.figures, self.failure, self.interrupted)
    }

    fn enter(&mut self, stage: Stage, at: u64) {
        (self.stage, self.stage_began) = (stage, at);
    }

    fn finish(&mut self, now: u64) {
        if self.stage == Stage::Measure {
            self.workers.figures.window_ns = now - self.measure_began;
        }
        self.workers.measuring = false;
        self.enter(Stage::Done, now);
    }

    fn fail(&mut self, failure: Failure, now: u64) {
        self.failure.get_or_insert(failure);
        self.gate.give_up();
        self.finish(now);
    }

    fn check(&mut self, now: u64) {
        self.checked = now;
        if self.gate.is_over() {
            self.finish(now);
            return;
        }
        let timeout = self.workers.plan.timeout_ns;
        let late = |worker: &Worker| worker.asked.is_some() && now.saturating_sub(worker.sent_at) > timeout;
        let silent = match self.stage {
            Stage::Connect => now - self.last_progress > timeout,
            Stage::WarmUp | Stage::Measure => self.workers.workers.iter().any(late),
            _ => false,
        };
        if silent {
            self.fail(Failure::Silent(self.stage), now);
        }
    }
}

impl Machine for Pool {
    fn stage(&self) -> Stage {
        self.stage
    }

    fn handle_time(&mut self, now: u64) {
        match self.stage {
            Stage::Connect if self.links.are_ready() => {
                self.gate.arrive(now);
                self.enter(Stage::Wait, now);
            }
            Stage::Wait => {
                if let Some(began) = self.gate.opened(now) {
                    self.enter(Stage::WarmUp, began);
                }
            }
            Stage::WarmUp if now >= self.stage_began + self.workers.plan.warmup_ns => {
                self.workers.figures = PoolFigures::default();
                self.workers.measuring = true;
                self.measure_began = now;
                self.enter(Stage::Measure, now);
            }
            Stage::Measure if now >= self.measure_began + self.workers.plan.duration_ns => self.finish(now),
            _ => {}
        }
        self.workers.runnable.extend(self.workers.rested.drain(..));
        if now >= self.checked + 50_000_000 {
            self.check(now);
        }
    }

    fn handle(&mut self, event: Event<'_>, now: u64) {
        if self.stage == Stage::Done {
            return;
        }
        if matches!(event, Event::StopRequested) {
            self.interrupted = true;
            self.finish(now);
            return;
        }
        self.last_progress = now;
        let workers = &mut self.workers;
        if let Err(failure) = self.links.handle(event, |index, reply| workers.found(index, reply, now)) {
            self.fail(failure, now);
        } else if self.workers.surplus {
            self.fail(Failure::Garbage("a reply that nobody had asked for".into()), now);
        }
    }

    fn poll_unconnected(&mut self, _now: u64) -> Option<usize> {
        self.links.poll_unconnected()
    }

    fn connect(&mut self, index: usize, id: ConnectionId) {
        self.links.connect(index, id);
    }

    fn poll_operation(&mut self, now: u64) -> Option<Operation> {
        if matches!(self.stage, Stage::WarmUp | Stage::Measure) {
            while let Some(index) = self.workers.runnable.pop_front() {
                self.workers.go_on(index, now, &mut self.links);
            }
        }
        self.links.poll_operation()
    }

    fn poll_timeout(&self, now: u64) -> u64 {
        match self.stage {
            Stage::Wait => LOOK_EVERY_NS,
            _ if !self.workers.rested.is_empty() => 0,
            Stage::WarmUp => {
                (self.stage_began + self.workers.plan.warmup_ns).saturating_sub(now).min(50_000_000)
            }
            Stage::Measure => {
                (self.measure_began + self.workers.plan.duration_ns).saturating_sub(now).min(50_000_000)
            }
            _ => 50_000_000,
        }
    }

    fn driver_failed(&mut self, error: &std::io::Error, now: u64) {
        self.fail(Failure::Driver(error.to_string()), now);
    }
}

impl Workers {
    /// A worker does what it can until it has to wait for the server.
    fn go_on(&mut self, index: usize, now: u64, links: &mut Links) {
        let cycle = self.plan.sets + self.plan.gets;
        for _ in 0..LOCAL_READS_MAX {
            let worker = &mut self.workers[index];
            let place = worker.cycle;
            worker.cycle = (place + 1) % cycle;
            if place < self.plan.sets && self.write(index, now, links) {
                return;
            }
            let key = self.keys.draw(&mut self.random) as u32;
            let worker = &mut self.workers[index];
            match worker.cache.get(key as usize).copied().unwrap_or(0) {
                0 => {
                    let known = self.truth.version(key);
                    worker.asked = Some(Asked::Read { key, changed: false, known });
                    worker.sent_at = now;
                    put_command(links.send(index), &[b"GET", &write_key(key)]);
                    return;
                }
                entry => self.read_locally(key, entry - 1, now),
            }
        }
        self.rested.push(index);
    }

    /// Begins a write of a key that nobody else is writing; `false`: none was found.
    fn write(&mut self, index: usize, now: u64, links: &mut Links) -> bool {
        for _ in 0..WRITE_DRAWS_MAX {
            let key = self.keys.draw(&mut self.random) as u32;
            let Some(version) = self.truth.begin_write(key) else { continue };
            let worker = &mut self.workers[index];
            // What it writes it does not keep: the server is asked for it again, as by every library that tracks.
            if let Some(entry) = worker.cache.get_mut(key as usize) {
                *entry = 0;
            }
            worker.asked = Some(Asked::Write { key, version });
            worker.sent_at = now;
            write_version(&mut self.value, version);
            put_command(links.send(index), &[b"SET", &write_key(key), &self.value]);
            return true;
        }
        false
    }

    #[inline]
    fn read_locally(&mut self, key: u32, version: u64, now: u64) {
        if !self.measuring {
            return;
        }
        self.figures.reads += 1;
        self.figures.hits += 1;
        // What was acknowledged after this turn began was not known to this read.
        if let Some(since) = self.truth.stale_since(key, version).filter(|since| *since <= now) {
            self.figures.stale_reads += 1;
            self.figures.stale_age.saturating_record(now - since);
        }
    }

    fn found(&mut self, index: usize, reply: Reply<'_>, now: u64) {
        match reply {
            Reply::Invalidate(key) => {
                if let Some(key) = key_number(key).filter(|key| *key < self.plan.keys) {
                    self.told(index, key, now);
                }
            }
            Reply::InvalidateAll => (0..self.plan.keys).for_each(|key| self.told(index, key, now)),
            Reply::Push => {}
            reply => self.answered(index, reply, now),
        }
    }

    /// A worker hears that a key has changed.
    fn told(&mut self, index: usize, key: u32, now: u64) {
        let worker = &mut self.workers[index];
        if let Some(Asked::Read { key: asked, changed, .. }) = &mut worker.asked {
            *changed |= *asked == key;
        }
        let entry = worker.cache.get_mut(key as usize).map_or(0, std::mem::take);
        if !self.measuring {
            return;
        }
        self.figures.invalidations += 1;
        if entry > 0 {
            let since = self.truth.stale_since(key, entry - 1);
            self.figures.early += u64::from(since.is_none());
            self.figures.window.saturating_record(since.map_or(0, |since| now.saturating_sub(since)));
        }
    }

    fn answered(&mut self, index: usize, reply: Reply<'_>, now: u64) {
        let worker = &mut self.workers[index];
        let Some(asked) = worker.asked.take() else {
            self.surplus = true;
            return;
        };
        let took = now.saturating_sub(worker.sent_at);
        let figures = &mut self.figures;
        if let Reply::Error(text) = reply {
            figures.errors += u64::from(self.measuring);
            figures.first_error.get_or_insert_with(|| String::from_utf8_lossy(text).into_owned());
        }
        match asked {
            Asked::Write { key, version } if !matches!(reply, Reply::Error(_)) => {
                self.truth.acknowledge(key, version, now);
                if self.measuring {
                    figures.writes += 1;
                    figures.remote_writes.saturating_record(took);
                }
            }
            Asked::Write { key, .. } => self.truth.give_up(key),
            Asked::Read { key, changed, known } => {
                let version = if let Reply::Value(value) = reply { read_version(value) } else { None };
                if let Some(version) = version {
                    if !changed && let Some(entry) = worker.cache.get_mut(key as usize) {
                        *entry = version + 1;
                    }
                    if version < known {
                        figures.wrong += u64::from(self.measuring);
                        figures.first_wrong.get_or_insert_with(|| {
                            format!("key {key} had version {known}, acknowledged before it was asked for, and {version} was answered")
                        });
                    }
                }
                if self.measuring {
                    figures.reads += 1;
                    figures.nulls += u64::from(reply == Reply::Null);
                    figures.remote_reads.saturating_record(took);
                }
            }
        }
        self.runnable.push_back(index);
    }
}

const _: () = assert!(KEY_BYTES == 16, "what `write_key` makes and `loadgen run` has by default");

#[cfg(test)]
mod tests {
    use super::*;

    fn workers(mode: Mode) -> (Workers, Links) {
        let plan = PoolPlan {
            target: Target::Unix("/nowhere".into()),
            password: None,
            workers: 2,
            mode,
            sets: 0,
            gets: 1,
            keys: 1,
            distribution: KeyDistribution::Uniform,
            value_bytes: 32,
            warmup_ns: 0,
            duration_ns: 1,
            timeout_ns: 1,
            seed: 1,
            share: Share::default(),
        };
        let truth = Arc::new(Truth::new(1));
        let mut pool = Pool::new(plan, truth, Arc::new(Gate::new(1))).expect("valid");
        pool.workers.measuring = true;
        (pool.workers, pool.links)
    }

    fn value(version: u64) -> Vec<u8> {
        let mut value = vec![b'v'; 32];
        write_version(&mut value, version);
        value
    }

    #[test]
    fn a_read_is_stale_from_the_acknowledgement_until_the_worker_is_told() {
        let (mut workers, mut links) = workers(Mode::Reads);
        workers.go_on(0, 10, &mut links);
        workers.found(0, Reply::Value(&value(0)), 20);
        workers.go_on(0, 30, &mut links);
        assert_eq!((workers.figures.hits, workers.figures.stale_reads), (8, 0));
        // The other one writes: sent, acknowledged, and then the first one is told.
        assert_eq!(workers.truth.begin_write(0), Some(1));
        workers.workers[1].asked = Some(Asked::Write { key: 0, version: 1 });
        workers.go_on(0, 40, &mut links);
        assert_eq!(workers.figures.stale_reads, 0, "not acknowledged");
        workers.found(1, Reply::Simple(b"OK"), 50);
        workers.go_on(0, 49, &mut links);
        assert_eq!(workers.figures.stale_reads, 0, "read before it was");
        workers.go_on(0, 150, &mut links);
        assert_eq!((workers.figures.stale_reads, workers.figures.stale_age.max()), (8, 100));
        workers.found(0, Reply::Invalidate(&write_key(0)), 250);
        assert_eq!((workers.figures.invalidations, workers.figures.early), (1, 0));
        assert_eq!(workers.figures.window.max(), 200);
        workers.go_on(0, 260, &mut links);
        assert!(workers.workers[0].asked.is_some(), "the cache does not have it any more");
    }

    #[test]
    fn what_changed_on_its_way_is_not_kept_and_who_is_told_early_is_counted() {
        let (mut workers, mut links) = workers(Mode::Reads);
        workers.go_on(0, 10, &mut links);
        workers.found(0, Reply::Invalidate(&write_key(0)), 15);
        workers.found(0, Reply::Value(&value(0)), 20);
        workers.go_on(0, 30, &mut links);
        assert!(workers.workers[0].asked.is_some() && workers.figures.hits == 0);
        workers.found(0, Reply::Value(&value(0)), 40);
        workers.truth.begin_write(0);
        workers.found(0, Reply::Invalidate(&write_key(0)), 50);
        assert_eq!((workers.figures.early, workers.figures.window.max()), (1, 0));
    }

    #[test]
    fn a_server_that_answers_with_what_was_overwritten_is_found_out() {
        let (mut workers, mut links) = workers(Mode::Off);
        workers.truth.begin_write(0);
        workers.truth.acknowledge(0, 1, 5);
        workers.go_on(0, 10, &mut links);
        workers.found(0, Reply::Value(&value(0)), 20);
        assert_eq!(workers.figures.wrong, 1);
        assert!(workers.figures.first_wrong.as_ref().is_some_and(|text| text.contains("version 1")));
        workers.go_on(0, 30, &mut links);
        assert!(workers.workers[0].asked.is_some() && workers.figures.hits == 0, "no cache, no hits");
        workers.found(0, Reply::Null, 40);
        assert_eq!(workers.figures.nulls, 1);
        workers.found(0, Reply::Null, 50);
        assert!(workers.surplus);
    }
}
