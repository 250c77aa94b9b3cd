//! One life of a server: real shards, the real owner of the log and real recovery, on a simulated machine.
//!
//! What threads do in the server, [`Server`] does one step at a time, whenever the scheduler says so: a turn of a shard
//! ([`Shard::turn`] and what belongs to it), a round of the log's owner up to the next block, the end of a block's
//! write, the next operation of the helper. Between any two steps the power can go.

use super::clock::SimClock;
use super::disk::{Disk, InFlight, Troubles};
use super::ledger::Ledger;
use super::memory::{Bound, Chores};
use super::net::{Net, SimDriver};
use super::snapshots::{Asides, SimSnapshots, Taker, settle_asides};
use super::trace;
use crate::random::Random;
use reactor::io::log_files::{LogListing, LogSource};
use reactor::io::stop::StopSignal;
use reactor::io::sync::Bell;
use reactor::server::log_end::{LogEnd, REST};
use reactor::server::log_handle::{Done, HelperWork, LogState, Message, Took, Waker};
use reactor::server::log_owner::{LogOptions, LogOwner, OpenedLog, Work};
use reactor::server::mailbox::Mailboxes;
use reactor::server::pipeline::{ListenerRole, Pipeline};
use reactor::server::recovery::{RecoveryError, RecoveryOptions, recover_from};
use reactor::server::shard::{Company, Halt, Shard};
use reactor::server::snapshot_end::SnapshotEnd;
use reactor::server::snapshot_handle::{History, Schedule};
use reactor::server::snapshot_owner::{SnapshotOptions, SnapshotOwner, Times};
use reactor::server::snapshot_start::{Restored, Wishes, restore};
use snapshot::writer::Settings as WriterSettings;
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
use store::session::{Durability, Transport};
use store::shards::{Place, Totals};
use store::snapshots::Status;
use store::tracking::Mistake;
use wal::checksum::Checksum;
use wal::lsn::Lsn;
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
    /// Whether snapshots are taken, and when.
    pub snapshots: Option<Schedule>,
    /// See `tracking-table-max-pairs`.
    pub tracking_pairs_max: u64,
    /// How much memory it may take.
    pub memory: Option<Bound>,
    /// Segments of the arena are emptied that nobody would choose, and in many turns.
    pub compacts: bool,
    /// Evictions are not logged: a mistake made on purpose.
    pub loses_evictions: bool,
    /// See [`Mistake`].
    pub mistake: Option<Mistake>,
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
    /// Without clients, and waits for a snapshot of the end; until then.
    Last(Option<u64>),
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
    /// The snapshot's thread goes on.
    Taker,
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
    /// The last record of each shard that the ledger knows.
    told: Vec<u64>,
    owner: LogOwner,
    owner_stage: OwnerStage,
    messages: Receiver<Message>,
    inbox: VecDeque<Message>,
    /// The first is on its way, since then and until then.
    helper: VecDeque<(Operation, HelperWork)>,
    helping: (u64, u64),
    taker: Option<Taker>,
    /// Snapshots that were found damaged meanwhile.
    asides: Asides,
    /// Keys evicted, segments emptied.
    pub chores: Chores,
    /// The log was told to close.
    is_closing: bool,
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
pub(super) struct Source(pub(super) Rc<RefCell<Disk>>);

pub(super) fn system(errno: Errno) -> io::Error {
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
            match FileName::parse(&name) {
                Some(FileName::Segment(sequence)) => listing.segments.push((sequence, length)),
                Some(FileName::Spare(sequence)) => listing.spares.push(sequence),
                None => {}
            }
        }
        listing.segments.sort_unstable();
        Ok(listing)
    }

    fn open(&self, sequence: Sequence) -> io::Result<FileName> {
        Ok(FileName::Segment(sequence))
    }

    fn read_at(&self, file: &FileName, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.borrow_mut().read(&file.to_string(), bytes, offset).map_err(system)
    }

    fn read_ahead(&self, _file: &FileName, _offset: u64, _length: u64) {}

    fn flush(&self, file: &FileName) -> io::Result<()> {
        self.0.borrow_mut().flush(&file.to_string()).map_err(system)
    }

    fn flush_directory(&self) -> io::Result<()> {
        self.0.borrow_mut().flush_directory().map_err(system)
    }
}

/// Memory that servers of this process leave to one another.
static MEMORY: Mutex<Vec<&'static mut [u8]>> = Mutex::new(Vec::new());

/// See [`MEMORY`].
pub(super) struct Pool;

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

/// Reads the log from a record on.
pub fn read_log(
    disk: &Rc<RefCell<Disk>>,
    checksum: Checksum,
    from: Lsn,
) -> Result<Vec<(u64, Vec<u8>)>, NoStart> {
    let options = RecoveryOptions { checksum, from, ..RecoveryOptions::new(0) };
    let mut records = Vec::new();
    let recovered = recover_from(Source(Rc::clone(disk)), options, &mut |_| {}, |lsn, _, payload| {
        records.push((lsn.0, payload.to_vec()));
        Ok(())
    });
    match recovered {
        Ok(_) => Ok(records),
        Err(error) => Err(no_start(disk, error)),
    }
}

fn no_start(disk: &Rc<RefCell<Disk>>, error: RecoveryError) -> NoStart {
    match error {
        _ if disk.borrow().fuse == Some(0) => NoStart::PowerCut,
        RecoveryError::Damage(..) | RecoveryError::Snapshot(_) => NoStart::Damage(error.to_string()),
        error => NoStart::Wrong(error.to_string()),
    }
}

/// What a start makes of a disk.
pub struct Found {
    /// The keyspaces, and how the log goes on.
    pub restored: Restored<String>,
    /// Snapshots that are found damaged from now on.
    pub asides: Asides,
    seeds: Vec<Seeds>,
}

/// Makes keyspaces of a snapshot and the log behind it, or of the log alone, as a start does.
pub fn restore_all(
    disk: &Rc<RefCell<Disk>>,
    clock: &SimClock,
    setup: &Setup,
    random: &mut Random,
) -> Result<Found, NoStart> {
    let hash = random.next_u64();
    let seeds: Vec<Seeds> =
        (0..setup.shards).map(|_| Seeds { hash, random: random.next_u64(), run_id: [7; 20] }).collect();
    let recovery = RecoveryOptions { checksum: setup.checksum, ..RecoveryOptions::new(random.next_u64()) };
    let wishes =
        Wishes { seeds: &seeds, recovery, warms_fully: random.chance(20), may_write: true, now: clock.now() };
    let source = SimSnapshots::new(disk);
    let restored = restore(Source(Rc::clone(disk)), &source, &wishes, &mut |_| {});
    settle_asides(&mut disk.borrow_mut(), &source.asides());
    match restored {
        Ok(restored) => {
            for note in &restored.notes {
                trace!("start: {note}");
            }
            Ok(Found { restored, asides: source.asides(), seeds })
        }
        Err(error) => Err(no_start(disk, error)),
    }
}

impl Server {
    /// A server that has what was found, and goes on from there.
    pub fn start(
        disk: &Rc<RefCell<Disk>>,
        clock: &SimClock,
        net: &Rc<RefCell<Net>>,
        setup: &Setup,
        found: Found,
        ledger: &Ledger,
        seed: u64,
    ) -> Result<Server, String> {
        let mut random = Random::new(seed);
        let count = setup.shards;
        let now = clock.now();
        let Found { restored, asides, seeds } = found;
        let Restored { keyspaces, hash_seed, recovered, served, snapshot: started_from, .. } = restored;
        let bound = setup.memory;
        let config = Config {
            maxmemory: bound.map_or(0, |bound| bound.maxmemory(&keyspaces)),
            maxmemory_policy: bound.map_or_else(Default::default, |bound| bound.policy),
            hop_queue: setup.hop_queue as u32,
            tracking_table_max_pairs: setup.tracking_pairs_max,
            ..Config::default()
        };
        let totals = Totals::new(count);
        let engines = keyspaces.into_iter().zip(seeds).enumerate().map(|(index, (keyspace, seeds))| {
            let (place, seeds) = (Place { index, count }, Seeds { hash: hash_seed, ..seeds });
            Engine::with_keyspace(config.clone(), seeds, keyspace, now, place, totals.clone())
        });
        let engines: Vec<Engine> = engines.collect();
        let rung: Vec<Arc<AtomicBool>> = (0..count).map(|_| Arc::default()).collect();
        let wakers = || -> Vec<Waker> {
            let waker = |rung: &Arc<AtomicBool>| {
                let rung = Arc::clone(rung);
                Box::new(move || rung.store(true, Ordering::Relaxed)) as Waker
            };
            rung.iter().map(waker).collect()
        };
        let opened = LogOwner::open(&recovered.start, setup.log.clone(), setup.checksum, wakers())?;
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
        let mut ends: Vec<Option<SnapshotEnd>> = (0..count).map(|_| None).collect();
        let mut taker = None;
        let status = Status::new();
        if let Some(schedule) = setup.snapshots {
            let options = SnapshotOptions {
                schedule,
                writer: WriterSettings { buffer_bytes: 128 << 10, buffers: 3 },
                checksum: setup.checksum,
                uid_seed: random.next_u64(),
                log_bytes_before: recovered.end.bytes_read,
                started_from,
                owns_directory: true,
                ..SnapshotOptions::default()
            };
            let history = History::Log(Arc::clone(owner.shared()));
            let bells = (0..count).map(|_| Arc::clone(&bell)).collect();
            let mut opened = SnapshotOwner::open(history, Arc::clone(&status), options, wakers(), bells);
            ends = opened.ends.drain(..).map(Some).collect();
            taker = Some(Taker::new(opened, disk, clock.nanos()));
        }
        let origin = served.map(|served| served.origin);
        let mut shards = Vec::new();
        for (index, (mut engine, handle)) in engines.into_iter().zip(handles).enumerate() {
            if setup.snapshots.is_some() {
                engine.shared_mut().snapshots.status = Some(Arc::clone(&status));
            }
            engine.keep_journal(Journal::new(handle.shared().lsns(), setup.class));
            engine.shared_mut().trackers.mistake = setup.mistake;
            if setup.compacts {
                engine.shared_mut().compact_budget = 1;
            }
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
            let shard = Shard::new(driver, pipeline, clock.clone(), company, Some(log));
            shards.push(Some(shard.with_origin(origin.clone()).with_snapshots(ends[index].take())));
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
            told: vec![0; count],
            owner,
            owner_stage: OwnerStage::Waiting(Some(now)),
            messages,
            inbox: VecDeque::new(),
            helper: VecDeque::new(),
            helping: (0, 0),
            taker,
            asides,
            chores: Chores::new(count, setup, &status, ledger),
            is_closing: false,
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
                    Stage::Lent { asleep: false } | Stage::Waiting(Some(0)) | Stage::Last(Some(0)) => Some(0),
                    Stage::Last(until) => match is_rung() {
                        true => {
                            self.stages[index] = Stage::Last(Some(0));
                            Some(0)
                        }
                        false => until,
                    },
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
            Actor::Taker => self.taker.as_mut()?.due(),
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
            Actor::Taker => {
                self.step_taker();
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
            Stage::Last(_) => self.last_turn(index),
            Stage::Waiting(_) => {
                shard.driver_mut().collect();
                let keyspace = &mut shard.pipeline_mut().engine_mut().shared_mut().keyspace;
                self.chores.begin(index, keyspace, &mut self.random, self.clock.now());
                let Halt { rests, stall } = shard.turn().map_err(failed)?;
                assert_eq!(stall.0, 0, "no client asks for DEBUG SLEEP");
                let now = self.clock.nanos();
                let told = &mut self.told[index];
                let mut execute = |lsn: u64, payload: &[u8]| match lsn > *told {
                    true => {
                        *told = lsn;
                        ledger.execute(lsn, payload, now)
                    }
                    false => Ok(()),
                };
                while let Ok(message) = self.messages.try_recv() {
                    if let Message::Records(batch) = &message {
                        batch.records().try_for_each(|(lsn, payload)| execute(lsn.0, payload))?;
                    }
                    self.inbox.push_back(message);
                }
                // Under `everysec` they are kept back for a while; whoever wrote them has his answer.
                let shared = shard.pipeline_mut().engine_mut().shared_mut();
                let journal = shared.journal.as_ref();
                let kept = journal.map(|journal| journal.records().iter());
                kept.into_iter().flatten().try_for_each(|(lsn, payload)| execute(lsn, payload))?;
                self.chores.end(index, &shared.keyspace, ledger)?;
                self.chores.begin(index, &mut shared.keyspace, &mut self.random, self.clock.now());
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
            shard.say_over();
            self.stages[index] = Stage::Last(Some(0));
            return;
        }
        let timeout = shard.before_waiting();
        self.net.borrow_mut().durable = self.owner.shared().durable_lsn().0;
        shard.driver_mut().submit();
        let now = self.clock.nanos();
        self.stages[index] = Stage::Waiting(timeout.map(|timeout| now + timeout.as_nanos() as u64));
    }

    /// A shard without clients goes on until nobody wants a snapshot of the end.
    fn last_turn(&mut self, index: usize) {
        let Some(shard) = &mut self.shards[index] else { return };
        if let Some(timeout) = shard.last_turn() {
            let now = self.clock.nanos();
            self.stages[index] = Stage::Last(timeout.map(|timeout| now + timeout.as_nanos() as u64));
            return;
        }
        self.stages[index] = Stage::Over;
        // All of them: then the threads end, and with them their ends of the log.
        if self.stages.iter().all(|stage| *stage == Stage::Over) {
            self.shards.iter_mut().for_each(|shard| *shard = None);
            self.close_log();
        }
    }

    /// The log is closed when nobody needs it any more.
    fn close_log(&mut self) {
        let is_needed = self.shards.iter().any(Option::is_some)
            || self.taker.as_ref().is_some_and(|taker| !taker.is_over());
        if !is_needed && !self.is_closing {
            self.is_closing = true;
            self.inbox.push_back(Message::Close);
        }
    }

    fn step_taker(&mut self) {
        let now = self.clock.nanos();
        let Server { taker, random, setup, .. } = self;
        let Some(taker) = taker else { return };
        let longest = setup.helper_delay;
        let mut delay = || random.next_u64() % if random.chance(90) { longest / 10 } else { longest }.max(1);
        let times = Times { monotonic_ns: now, unix_us: SimClock::unix_us(now) };
        self.inbox.extend(taker.step(times, &mut delay));
        self.close_log();
    }

    /// Somebody says BGSAVE.
    pub fn wish_snapshot(&mut self) {
        if let Some(taker) = &mut self.taker {
            taker.wish();
        }
    }

    /// Snapshots that were completed, and attempts that were not.
    pub fn snapshots(&self) -> (u64, u64) {
        self.taker.as_ref().map_or((0, 0), |taker| (taker.completed, taker.failed))
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
    pub fn end(self) -> Vec<InFlight> {
        settle_asides(&mut self.disk.borrow_mut(), &self.asides);
        let mut in_flight: Vec<InFlight> = self.taker.map(Taker::end).unwrap_or_default();
        if let OwnerStage::Writing { operation, .. } = self.owner_stage {
            in_flight.push(InFlight::Log(operation));
        }
        // The others stand in a queue of the process.
        in_flight.extend(self.helper.into_iter().next().map(|(operation, _)| InFlight::Log(operation)));
        in_flight
    }

    /// After a stop: what closing the log came to.
    pub fn finish(self) -> Result<(), String> {
        if let Some(taker) = self.taker {
            taker.finish()?;
        }
        self.owner.finish()
    }

    /// From now on nothing more goes wrong, or slowly.
    pub fn heal(&mut self) {
        (self.setup.block_delay, self.setup.helper_delay) = (100_000, 100_000);
        let disk = &mut *self.disk.borrow_mut();
        (disk.troubles, disk.capacity) = (Troubles::default(), usize::MAX);
    }
}
