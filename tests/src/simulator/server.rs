//! One life of a server: real shards, the real owner of the log and real recovery, on a simulated machine.
//!
//! What threads do in the server, [`Server`] does one step at a time, whenever the scheduler says so: a turn of a shard
//! ([`Shard::turn`] and what belongs to it), a round of the log's owner up to the next block, the end of a block's
//! write, the next operation of the helper. Between any two steps the power can go.

use super::clock::SimClock;
use super::disk::{Disk, Troubles};
use super::ledger::Ledger;
use super::net::{Net, SimDriver};
use crate::random::Random;
use reactor::io::log_files::{LogListing, LogSource};
use reactor::io::stop::StopSignal;
use reactor::io::sync::Bell;
use reactor::server::log_end::{LogEnd, REST};
use reactor::server::log_handle::{Done, HelperWork, LogState, Message, Took, Waker};
use reactor::server::log_owner::{LogOptions, LogOwner, OpenedLog, Work};
use reactor::server::mailbox::Mailboxes;
use reactor::server::pipeline::{ListenerRole, Pipeline};
use reactor::server::recovery::{Recovered, RecoveryError, RecoveryOptions, recover_from};
use reactor::server::shard::{Company, Halt, Shard};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};
use store::arena::SegmentSource;
use store::config::Config;
use store::engine::{Engine, Seeds};
use store::journal::Journal;
use store::mutation::Mutation;
use store::session::{Durability, Transport};
use store::shards::{Place, Totals};
use wal::checksum::Checksum;
use wal::group_commit::Start;
use wal::operation::{Errno, Operation};
use wal::segment::{FileName, Sequence};

/// How a server is set up.
#[derive(Clone, Debug)]
pub struct Setup {
    /// How many shards.
    pub shards: usize,
    /// What clients get who ask for nothing else.
    pub class: Durability,
    /// How the log is kept.
    pub log: LogOptions,
    /// See [`LogEnd::with_window`].
    pub window: usize,
    /// Messages between two shards.
    pub hop_queue: usize,
    /// The longest that a write of a block takes, in nanoseconds.
    pub block_delay: u64,
    /// And any operation of the helper.
    pub helper_delay: u64,
    /// What everything is checked with.
    pub checksum: Checksum,
}

/// The listeners of every shard.
pub const RESP_LISTENER: usize = 0;
/// The one for HTTP.
pub const HTTP_LISTENER: usize = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// In the driver, until then.
    Waiting(Option<u64>),
    /// Stands back for the log, until then.
    Resting(u64),
    /// Lent, and asleep or not.
    Lent {
        asleep: bool,
    },
    Over,
}

enum OwnerStage {
    /// Until then.
    Waiting(Option<u64>),
    /// This block is written then; more is to be appended afterwards.
    Writing {
        operation: Operation,
        begun: u64,
        done: u64,
        is_more: bool,
    },
    Over,
}

/// Something that can happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    /// This shard's turn.
    Shard(usize),
    /// The log's owner goes on.
    Owner,
    /// The helper has done something.
    Helper,
}

/// See the module.
pub struct Server {
    clock: SimClock,
    disk: Rc<RefCell<Disk>>,
    net: Rc<RefCell<Net>>,
    random: Random,
    setup: Setup,
    shards: Vec<Option<Shard<SimDriver, SimClock>>>,
    stages: Vec<Stage>,
    rung: Vec<Arc<AtomicBool>>,
    /// Steps that shards have made, and how many there were when each looked at its bell last.
    turns: u64,
    heard_at: Vec<u64>,
    owner: LogOwner,
    owner_stage: OwnerStage,
    messages: Receiver<Message>,
    inbox: VecDeque<Message>,
    /// The first is on its way, since then and until then.
    helper: VecDeque<(Operation, HelperWork)>,
    helping: (u64, u64),
    /// What was durable when the log failed.
    pub failed_at: Option<u64>,
}

/// How a start ended that was none.
pub enum NoStart {
    /// The power went meanwhile.
    PowerCut,
    /// Recovery says that the log is damaged.
    Damage(String),
    /// Something else, which is a bug.
    Wrong(String),
}

/// The disk as recovery reads it.
struct Source(Rc<RefCell<Disk>>);

fn system(errno: Errno) -> io::Error {
    io::Error::from_raw_os_error(errno.0)
}

impl LogSource for Source {
    type File = FileName;

    fn directory(&self) -> &Path {
        Path::new("disk")
    }

    fn list(&self) -> io::Result<LogListing> {
        let mut listing = LogListing::default();
        for (name, length) in self.0.borrow().list() {
            match name {
                FileName::Segment(sequence) => listing.segments.push((sequence, length)),
                FileName::Spare(sequence) => listing.spares.push(sequence),
            }
        }
        listing.segments.sort_unstable();
        Ok(listing)
    }

    fn open(&self, sequence: Sequence) -> io::Result<FileName> {
        Ok(FileName::Segment(sequence))
    }

    fn read_at(&self, file: &FileName, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.borrow_mut().read(*file, bytes, offset).map_err(system)
    }

    fn read_ahead(&self, _file: &FileName, _offset: u64, _length: u64) {}

    fn flush(&self, file: &FileName) -> io::Result<()> {
        self.0.borrow_mut().flush(*file).map_err(system)
    }

    fn flush_directory(&self) -> io::Result<()> {
        self.0.borrow_mut().flush_directory().map_err(system)
    }
}

/// Memory that servers of this process leave to one another.
static MEMORY: Mutex<Vec<&'static mut [u8]>> = Mutex::new(Vec::new());

struct Pool;

impl SegmentSource for Pool {
    fn allocate(&mut self, bytes: usize) -> Option<&'static mut [u8]> {
        let mut kept = MEMORY.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = kept.iter().position(|memory| memory.len() == bytes) {
            let memory = kept.swap_remove(index);
            drop(kept);
            memory.fill(0);
            return Some(memory);
        }
        drop(kept);
        const PAGE: usize = 4096;
        let memory = vec![0; bytes + PAGE].leak();
        let start = memory.as_ptr().align_offset(PAGE);
        Some(&mut memory[start..start + bytes])
    }

    fn release(&mut self, memory: &'static mut [u8]) {
        MEMORY.lock().unwrap_or_else(PoisonError::into_inner).push(memory);
    }
}

/// Reads the log as a start does.
#[allow(clippy::type_complexity, reason = "what a log is")]
pub fn read_log(
    disk: &Rc<RefCell<Disk>>,
    checksum: Checksum,
    uid_seed: u64,
) -> Result<(Recovered, Vec<(u64, Vec<u8>)>), NoStart> {
    let options = RecoveryOptions { checksum, ..RecoveryOptions::new(uid_seed) };
    let mut records = Vec::new();
    let recovered = recover_from(Source(Rc::clone(disk)), options, &mut |_| {}, |lsn, _, payload| {
        records.push((lsn.0, payload.to_vec()));
        Ok(())
    });
    match recovered {
        Ok(recovered) => Ok((recovered, records)),
        Err(_) if disk.borrow().fuse == Some(0) => Err(NoStart::PowerCut),
        Err(error @ RecoveryError::Damage(..)) => Err(NoStart::Damage(error.to_string())),
        Err(error) => Err(NoStart::Wrong(error.to_string())),
    }
}

impl Server {
    /// A server that has these records, and goes on where they end.
    pub fn start(
        disk: &Rc<RefCell<Disk>>,
        clock: &SimClock,
        net: &Rc<RefCell<Net>>,
        setup: &Setup,
        start: &Start,
        records: &[(u64, Vec<u8>)],
        seed: u64,
    ) -> Result<Server, String> {
        let mut random = Random::new(seed);
        let count = setup.shards;
        let now = clock.now();
        let seeds = Seeds { hash: random.next_u64(), random: random.next_u64(), run_id: [7; 20] };
        let config = Config { hop_queue: setup.hop_queue as u32, ..Config::default() };
        let totals = Totals::new(count);
        let mut engines: Vec<Engine> = (0..count)
            .map(|index| {
                let place = Place { index, count };
                Engine::with_place(config.clone(), seeds, Box::new(Pool), now, place, totals.clone())
            })
            .collect();
        for (engine, effects) in engines.iter_mut().zip(deal(count, records)?) {
            engine.apply_all(&effects, now).map_err(|error| format!("not applied: {error:?}"))?;
        }
        let rung: Vec<Arc<AtomicBool>> = (0..count).map(|_| Arc::default()).collect();
        let wakers = rung.iter().map(|rung| {
            let rung = Arc::clone(rung);
            Box::new(move || rung.store(true, Ordering::Relaxed)) as Waker
        });
        let opened = LogOwner::open(start, setup.log.clone(), setup.checksum, wakers.collect())?;
        let OpenedLog { owner, handles, queue: _, messages } = opened;
        let wrong = |error: io::Error| error.to_string();
        let mut mailboxes: Vec<_> = match count {
            1 => vec![None],
            _ => {
                let mailboxes = Mailboxes::new(count, setup.hop_queue).map_err(wrong)?;
                mailboxes.into_iter().map(Some).collect()
            }
        };
        let stop = StopSignal::new().map_err(wrong)?;
        let bell = Arc::new(Bell::new().map_err(wrong)?);
        let mut shards = Vec::new();
        for (index, (mut engine, handle)) in engines.into_iter().zip(handles).enumerate() {
            engine.keep_journal(Journal::new(handle.shared().lsns(), setup.class));
            let log = LogEnd::new(handle, Arc::clone(&bell), false).with_window(setup.window);
            let role = |transport, port: u16| ListenerRole {
                transport,
                unix: false,
                local: format!("127.0.0.1:{port}"),
            };
            let roles = vec![role(Transport::Resp, 6379), role(Transport::Http, 8080)];
            let driver = SimDriver::new(Rc::clone(net), clock.clone(), index);
            let company = mailboxes[index].take().map(|mailbox| Company::new(mailbox, stop.clone()));
            let pipeline = Pipeline::new(engine, roles);
            shards.push(Some(Shard::new(driver, pipeline, clock.clone(), company, Some(log))));
        }
        let now = clock.nanos();
        Ok(Server {
            clock: clock.clone(),
            disk: Rc::clone(disk),
            net: Rc::clone(net),
            random,
            setup: setup.clone(),
            stages: vec![Stage::Waiting(Some(now)); count],
            shards,
            rung,
            turns: 1,
            heard_at: vec![0; count],
            owner,
            owner_stage: OwnerStage::Waiting(Some(now)),
            messages,
            inbox: VecDeque::new(),
            helper: VecDeque::new(),
            helping: (0, 0),
            failed_at: None,
        })
    }

    /// What the server takes for durable.
    pub fn durable(&self) -> u64 {
        self.owner.shared().durable_lsn().0
    }

    /// How many shards there are.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// How the log is.
    pub fn state(&self) -> LogState {
        self.owner.shared().state()
    }

    /// Everything has ended as it should: shards, then the log.
    pub fn is_over(&self) -> bool {
        matches!(self.owner_stage, OwnerStage::Over)
    }

    /// What can happen, and when. `None`: only somebody else can make it happen.
    pub fn due(&mut self, actor: Actor) -> Option<u64> {
        match actor {
            Actor::Shard(index) => {
                let shard = self.shards[index].as_ref()?;
                let (turns, heard_at) = (self.turns, &mut self.heard_at[index]);
                let mut is_rung = || {
                    // Only shards ring bells, and looking at one is a system call.
                    let is_news = std::mem::replace(heard_at, turns) != turns;
                    let bell = shard.company().map(Company::bell).filter(|_| is_news);
                    // Both, so that neither is left for later.
                    let by_log = self.rung[index].swap(false, Ordering::Relaxed);
                    bell.is_some_and(Bell::take) | by_log
                };
                match self.stages[index] {
                    Stage::Over => None,
                    Stage::Lent { asleep: false } | Stage::Waiting(Some(0)) => Some(0),
                    Stage::Waiting(until) => {
                        if is_rung() {
                            self.stages[index] = Stage::Waiting(Some(0));
                            return Some(0);
                        }
                        [until, shard.driver().due()].into_iter().flatten().min()
                    }
                    Stage::Resting(until) => {
                        if is_rung() {
                            self.stages[index] = Stage::Resting(0);
                            return Some(0);
                        }
                        Some(until)
                    }
                    Stage::Lent { asleep: true } => {
                        if is_rung() {
                            self.stages[index] = Stage::Lent { asleep: false };
                            return Some(0);
                        }
                        None
                    }
                }
            }
            Actor::Owner => match &self.owner_stage {
                OwnerStage::Over => None,
                OwnerStage::Writing { done, .. } => Some(*done),
                OwnerStage::Waiting(_) if !self.inbox.is_empty() => Some(0),
                OwnerStage::Waiting(at) => *at,
            },
            Actor::Helper => (!self.helper.is_empty()).then_some(self.helping.1),
        }
    }

    /// Lets it happen.
    pub fn step(&mut self, actor: Actor, ledger: &mut Ledger) -> Result<(), String> {
        match actor {
            Actor::Shard(index) => self.step_shard(index, ledger),
            Actor::Owner => self.step_owner(),
            Actor::Helper => {
                self.end_help();
                Ok(())
            }
        }
    }

    fn step_shard(&mut self, index: usize, ledger: &mut Ledger) -> Result<(), String> {
        self.turns += 1;
        let failed = |error: io::Error| format!("shard {index} has failed: {error}");
        let Some(shard) = &mut self.shards[index] else { return Ok(()) };
        match self.stages[index] {
            Stage::Over => {}
            Stage::Waiting(_) => {
                shard.driver_mut().collect();
                let Halt { rests, stall } = shard.turn().map_err(failed)?;
                assert_eq!(stall.0, 0, "no client asks for DEBUG SLEEP");
                let now = self.clock.nanos();
                while let Ok(message) = self.messages.try_recv() {
                    if let Message::Records(batch) = &message {
                        for (lsn, payload) in batch.records() {
                            ledger.execute(lsn.0, payload, now)?;
                        }
                    }
                    self.inbox.push_back(message);
                }
                if rests {
                    let Some(log) = shard.log() else { unreachable!("it has one") };
                    log.prepare_rest();
                    self.stages[index] = Stage::Resting(now + REST.as_nanos() as u64);
                    return Ok(());
                }
                self.dispatch(index);
            }
            Stage::Resting(_) => self.dispatch(index),
            Stage::Lent { .. } => {
                shard.hear().map_err(failed)?;
                self.stand_or_go(index);
            }
        }
        Ok(())
    }

    fn dispatch(&mut self, index: usize) {
        self.net.borrow_mut().durable = self.owner.shared().durable_lsn().0;
        let Some(shard) = &mut self.shards[index] else { return };
        if shard.dispatch() {
            shard.driver_mut().submit();
            return self.stand_or_go(index);
        }
        self.go_on(index);
    }

    /// A shard that is lent sleeps if it may.
    fn stand_or_go(&mut self, index: usize) {
        let Some(shard) = &mut self.shards[index] else { return };
        if shard.is_lent() {
            self.stages[index] = Stage::Lent { asleep: shard.prepare_sleep() };
        } else {
            self.go_on(index);
        }
    }

    /// The end of a turn and the beginning of the next, up to where the driver waits.
    fn go_on(&mut self, index: usize) {
        let Some(shard) = &mut self.shards[index] else { return };
        shard.count();
        if shard.is_over() {
            self.stages[index] = Stage::Over;
            // All of them: then the threads end, and with them their ends of the log.
            if self.stages.iter().all(|stage| *stage == Stage::Over) {
                self.shards.iter_mut().for_each(|shard| *shard = None);
                self.inbox.push_back(Message::Close);
            }
            return;
        }
        let timeout = shard.before_waiting();
        self.net.borrow_mut().durable = self.owner.shared().durable_lsn().0;
        shard.driver_mut().submit();
        let now = self.clock.nanos();
        self.stages[index] = Stage::Waiting(timeout.map(|timeout| now + timeout.as_nanos() as u64));
    }

    fn step_owner(&mut self) -> Result<(), String> {
        let now = self.clock.nanos();
        match std::mem::replace(&mut self.owner_stage, OwnerStage::Waiting(None)) {
            OwnerStage::Over => {
                self.owner_stage = OwnerStage::Over;
                return Ok(());
            }
            OwnerStage::Writing { operation, begun, done: _, is_more } => {
                let completion = self.disk.borrow_mut().perform(operation);
                self.owner.handle_block(completion, Took { begun_ns: begun, ended_ns: now });
                self.act(is_more);
            }
            OwnerStage::Waiting(_) => {
                while let Some(message) = self.inbox.pop_front() {
                    self.owner.handle(message);
                    // The next may come too late for this round.
                    if self.random.chance(10) {
                        break;
                    }
                }
                let is_more = self.owner.append();
                self.act(is_more);
            }
        }
        if self.failed_at.is_none() && matches!(self.state(), LogState::Failed(_)) {
            self.failed_at = Some(self.durable());
        }
        Ok(())
    }

    fn act(&mut self, is_more: bool) {
        let now = self.clock.nanos();
        while let Some(work) = self.owner.poll_operation() {
            match work {
                Work::Block(operation) => {
                    let done = now + 1 + self.delay(self.setup.block_delay);
                    self.owner_stage = OwnerStage::Writing { operation, begun: now, done, is_more };
                    return;
                }
                Work::Helper(operation, what) => {
                    self.helper.push_back((operation, what));
                    if self.helper.len() == 1 {
                        self.helping = (now, now + self.delay(self.setup.helper_delay));
                    }
                }
            }
        }
        self.owner.publish();
        if self.owner.is_finished() {
            self.owner_stage = OwnerStage::Over;
            return;
        }
        let at_once = is_more || self.owner.handle_time(now);
        self.owner_stage = OwnerStage::Waiting(if at_once { Some(now) } else { self.owner.wake_at() });
    }

    /// Mostly short, sometimes long.
    fn delay(&mut self, longest: u64) -> u64 {
        let longest = if self.random.chance(90) { longest / 10 } else { longest };
        self.random.next_u64() % longest.max(1)
    }

    fn end_help(&mut self) {
        let now = self.clock.nanos();
        let Some((operation, what)) = self.helper.pop_front() else { return };
        let completion = self.disk.borrow_mut().perform(operation);
        let took = Took { begun_ns: self.helping.0, ended_ns: now };
        self.inbox.push_back(Message::Done(Done { completion, what, took }));
        self.helping = (now, now + self.delay(self.setup.helper_delay));
    }

    /// The end of the process. Returns what the disk was doing.
    pub fn end(self) -> Vec<Operation> {
        let mut in_flight = Vec::new();
        if let OwnerStage::Writing { operation, .. } = self.owner_stage {
            in_flight.push(operation);
        }
        // The others stand in a queue of the process.
        in_flight.extend(self.helper.into_iter().next().map(|(operation, _)| operation));
        in_flight
    }

    /// After a stop: what closing the log came to.
    pub fn finish(self) -> Result<(), String> {
        self.owner.finish()
    }

    /// From now on nothing more goes wrong, or slowly.
    pub fn heal(&mut self) {
        (self.setup.block_delay, self.setup.helper_delay) = (100_000, 100_000);
        let disk = &mut *self.disk.borrow_mut();
        (disk.troubles, disk.capacity) = (Troubles::default(), usize::MAX);
    }
}

/// As the start deals records out: each effect to the shard that has its key now.
fn deal(count: usize, records: &[(u64, Vec<u8>)]) -> Result<Vec<Vec<u8>>, String> {
    let mut lanes = vec![Vec::new(); count];
    for (lsn, record) in records {
        let mut rest = record.as_slice();
        while !rest.is_empty() {
            let before = rest;
            let mutation = Mutation::decode(&mut rest).map_err(|error| format!("LSN {lsn}: {error}"))?;
            let effect = &before[..before.len() - rest.len()];
            match mutation.key() {
                Some(key) => lanes[Place { index: 0, count }.shard_of(key)].extend_from_slice(effect),
                None => lanes.iter_mut().for_each(|lane| lane.extend_from_slice(effect)),
            }
        }
    }
    Ok(lanes)
}
