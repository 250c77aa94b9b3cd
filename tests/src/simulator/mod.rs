//! The whole server in one thread, on a simulated machine, and the power cut at any step.
//!
//! A run is several lives of one server on one disk. In each, real shards, the real log and real recovery
//! ([`server`]) serve simulated clients ([`client`]) over a simulated network ([`net`]), while the simulated disk
//! ([`disk`]) is slow, fails, or fills up; at some step the power goes, the process is killed, or the server is stopped as an
//! operator would. The next life begins with what the disk still has, and may be cut while it recovers. The
//! [`ledger`] judges every reply and every recovery.
//!
//! Everything follows from one seed: it replays a run exactly. Nothing here sleeps, starts a thread or touches a
//! file. What is not simulated is how threads meet inside a step: loom tries that for the mailbox (`tests/model`), and
//! the fields that shards and the log's owner share are tested by threads in `reactor/tests/log.rs`.
//!
//! | module | what it owns |
//! |---|---|
//! | [`server`] | a life: shards, the log's owner, its helper, step by step |
//! | [`clock`] | time |
//! | [`net`] | connections, and the driver that a shard sees |
//! | [`disk`] | what is durable, what a power cut leaves, what fails |
//! | [`client`] | who asks, and for what |
//! | [`tracker`] | what clients keep, and are told to drop |
//! | [`command`] | the commands, and the model of what they answer |
//! | [`ledger`] | what was executed and promised, and what must come back |
//! | [`memory`] | how much memory there is; keys evicted, segments emptied |
//! | [`snapshots`] | who takes snapshots, and where a start reads them |
//! | [`campaign`] | many seeds on all cores, and what they came to |

pub mod campaign;
pub mod client;
pub mod clock;
pub mod command;
pub mod disk;
pub mod ledger;
pub mod memory;
pub mod net;
pub mod server;
pub mod snapshots;
pub mod tracker;

/// Says what happens, in a run that is replayed with MILLRACE_TRACE=1.
macro_rules! trace {
    ($($what:tt)*) => {
        if crate::simulator::is_traced() {
            println!($($what)*);
        }
    };
}
use trace;

use crate::random::Random;
use client::{Client, Tokens};
use clock::SimClock;
use command::Stored;
use disk::{Disk, Lie, Troubles};
use ledger::{Ledger, Loss};
use memory::Bound;
use net::Net;
use reactor::io::log_files::{LogWriteMode, checksum};
use reactor::server::log_handle::LogState;
use reactor::server::log_owner::LogOptions;
use reactor::server::snapshot_handle::Schedule;
use server::{Actor, Found, NoStart, Server, Setup, read_log, restore_all};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use std::sync::OnceLock;
use std::time::Duration;
use store::image::restore::LiveCursor;
use store::session::Durability;
use store::tracking::Mistake;
use wal::checksum::Checksum;
use wal::lsn::Lsn;
use wal::settings::FlushPolicy;

/// A mistake that is made on purpose: the simulator must find each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Acknowledges before the flush.
    AcknowledgesEarly,
    /// Takes a failed write or flush for one that succeeded.
    IgnoresFailedFlush,
    /// Believes every block, whatever its checksum.
    SkipsChecksum,
    /// Lets the log go when a snapshot has its name, flushed or not.
    TrustsUnflushedSnapshots,
    /// Evicts keys and does not log it.
    LosesEvictions,
    /// Something of client tracking.
    Tracking(Mistake),
}

impl Bug {
    /// All of them.
    pub const ALL: [Bug; 10] = [
        Bug::AcknowledgesEarly,
        Bug::IgnoresFailedFlush,
        Bug::SkipsChecksum,
        Bug::TrustsUnflushedSnapshots,
        Bug::LosesEvictions,
        Bug::Tracking(Mistake::RegistersLate),
        Bug::Tracking(Mistake::ForgetsRedirection),
        Bug::Tracking(Mistake::PushesFirst),
        Bug::Tracking(Mistake::TellsEarly),
        Bug::Tracking(Mistake::ForgetsEvictions),
    ];
}

/// What runs came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Runs.
    pub runs: u64,
    /// Times that the power went, and that the process was killed.
    pub power_cuts: u64,
    /// See there.
    pub kills: u64,
    /// Power cuts while recovery was reading.
    pub cut_recoveries: u64,
    /// Ends as an operator makes them.
    pub stops: u64,
    /// Lives in which a write or flush failed.
    pub failed_logs: u64,
    /// Lives in which writes were refused for want of room.
    pub full_disks: u64,
    /// Recoveries that refused a log whose bits were flipped.
    pub damage_refused: u64,
    /// Snapshots that were completed, and attempts that were not.
    pub snapshots: u64,
    /// See there.
    pub failed_snapshots: u64,
    /// Snapshots that the disk had no room for, when they began and in the middle.
    pub full_snapshots: u64,
    /// See there.
    pub full_in_the_middle: u64,
    /// Starts from a snapshot.
    pub starts_from_snapshots: u64,
    /// Servers that ended because a page of the snapshot they lived on was damaged.
    pub damage_served: u64,
    /// Lives at whose end everything had been answered.
    pub quiet_ends: u64,
    /// Records executed, and those of them that a crash took.
    pub records: u64,
    /// See there.
    pub lost_records: u64,
    /// Replies that were judged.
    pub replies: u64,
    /// Of them, writes that were refused.
    pub refused: u64,
    /// Those for want of memory, and keys evicted.
    pub full_memories: u64,
    /// See there.
    pub evicted: u64,
    /// Segments of the arena emptied, how many others were to be, and images that began when one was half
    /// empty.
    pub emptied: u64,
    /// See there.
    pub asked: u64,
    /// See there.
    pub interrupted: u64,
    /// Invalidations that clients got, and values in their caches that were judged.
    pub pushes: u64,
    /// See there.
    pub cached: u64,
    /// Steps.
    pub steps: u64,
}

impl Tally {
    /// Times that a server ended without being asked.
    pub fn crashes(&self) -> u64 {
        self.power_cuts + self.kills + self.cut_recoveries
    }

    /// Adds another's.
    pub fn add(&mut self, other: &Tally) {
        self.runs += other.runs;
        self.power_cuts += other.power_cuts;
        self.kills += other.kills;
        self.cut_recoveries += other.cut_recoveries;
        self.stops += other.stops;
        self.failed_logs += other.failed_logs;
        self.full_disks += other.full_disks;
        self.damage_refused += other.damage_refused;
        self.snapshots += other.snapshots;
        self.failed_snapshots += other.failed_snapshots;
        self.full_snapshots += other.full_snapshots;
        self.full_in_the_middle += other.full_in_the_middle;
        self.starts_from_snapshots += other.starts_from_snapshots;
        self.damage_served += other.damage_served;
        self.quiet_ends += other.quiet_ends;
        self.records += other.records;
        self.lost_records += other.lost_records;
        self.replies += other.replies;
        self.refused += other.refused;
        self.full_memories += other.full_memories;
        self.evicted += other.evicted;
        self.emptied += other.emptied;
        self.asked += other.asked;
        self.interrupted += other.interrupted;
        self.pushes += other.pushes;
        self.cached += other.cached;
        self.steps += other.steps;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} runs, {} crashes ({} power cuts, {} kills, {} cut while recovering), {} stops, {} failed logs, {} full \
             disks, {} starts refused for flipped bits, {} servers ended for them, {} snapshots and {} that failed, {} \
             without room from the beginning and {} in the middle, {} starts from one, {} quiet ends; {} records, {} of them lost unpromised; {} \
             replies judged, {} writes refused, {} of them for want of memory; {} keys evicted; {} segments emptied, {} of them asked for, {} half empty when an image began; {} invalidations, {} cached values judged; {} steps",
            self.runs,
            self.crashes(),
            self.power_cuts,
            self.kills,
            self.cut_recoveries,
            self.stops,
            self.failed_logs,
            self.full_disks,
            self.damage_refused,
            self.damage_served,
            self.snapshots,
            self.failed_snapshots,
            self.full_snapshots,
            self.full_in_the_middle,
            self.starts_from_snapshots,
            self.quiet_ends,
            self.records,
            self.lost_records,
            self.replies,
            self.refused,
            self.full_memories,
            self.evicted,
            self.emptied,
            self.asked,
            self.interrupted,
            self.pushes,
            self.cached,
            self.steps
        )
    }
}

thread_local! {
    /// See [`Bug::SkipsChecksum`].
    static SKIPS_CHECKSUM: Cell<bool> = const { Cell::new(false) };
}

/// CRC-32C, or nothing: then whatever stands there agrees with it.
fn rigged_checksum() -> Checksum {
    let rigged = |crc, bytes: &[u8]| match SKIPS_CHECKSUM.get() {
        true => 0,
        false => checksum().continued(crc, bytes),
    };
    SKIPS_CHECKSUM.set(false);
    Checksum::lent(rigged).expect("it computes CRC-32C as long as it is honest")
}

/// Whether MILLRACE_TRACE is set.
fn is_traced() -> bool {
    static IS_TRACED: OnceLock<bool> = OnceLock::new();
    *IS_TRACED.get_or_init(|| std::env::var_os("MILLRACE_TRACE").is_some())
}

/// How a life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    PowerCut,
    Kill,
    Stop,
}

/// A run: what stays from life to life.
struct Run {
    random: Random,
    clock: SimClock,
    disk: Rc<RefCell<Disk>>,
    ledger: Ledger,
    tokens: Tokens,
    checksum: Checksum,
    class: Durability,
    policy: FlushPolicy,
    segment_bytes: u64,
    block_bytes_max: usize,
    write_mode: LogWriteMode,
    flips: bool,
    /// Snapshots are taken.
    snapshots: bool,
    /// Memory is bounded.
    is_bounded: bool,
    /// Segments are emptied at any moment.
    compacts: bool,
    /// There are many keys.
    is_crowded: bool,
    /// See [`Bug::LosesEvictions`].
    loses_evictions: bool,
    mistake: Option<Mistake>,
    /// The disk takes its time in this life.
    is_slow: bool,
    /// The log failed in this life.
    has_failed: bool,
    /// A bit was flipped: acknowledged records may be refused or, at the end, cut. Nothing may be invented.
    is_rotten: bool,
    tally: Tally,
}

/// One run. An error says what was wrong, and nothing of the seed.
pub fn run(seed: u64, bug: Option<Bug>) -> Result<Tally, String> {
    let mut random = Random::new(seed);
    let checksum = rigged_checksum();
    SKIPS_CHECKSUM.set(bug == Some(Bug::SkipsChecksum));
    let lie = match bug {
        Some(Bug::AcknowledgesEarly) => Some(Lie::CompletesBeforeFlush),
        Some(Bug::IgnoresFailedFlush) => Some(Lie::HidesFailures),
        Some(Bug::TrustsUnflushedSnapshots) => Some(Lie::ForgetsSnapshots),
        Some(Bug::SkipsChecksum | Bug::LosesEvictions | Bug::Tracking(_)) | None => None,
    };
    let block_bytes_max = *random.pick(&[4096, 4096, 8192, 16_384]);
    let clock = SimClock::new(*random.pick(&[50, 200, 1000, 5000]));
    let is_always = random.chance(70);
    let mut run = Run {
        disk: Rc::new(RefCell::new(Disk::new(random.next_u64(), lie))),
        clock,
        ledger: Ledger::default(),
        tokens: Tokens::default(),
        checksum,
        class: if is_always { Durability::Always } else { Durability::EverySecond },
        policy: if is_always { FlushPolicy::EveryBlock } else { FlushPolicy::OnRequest },
        segment_bytes: (12_288 + 2 * block_bytes_max as u64) + 4096 * (random.next_u64() % 24),
        block_bytes_max,
        write_mode: *random.pick(&[LogWriteMode::Direct, LogWriteMode::Fdatasync]),
        flips: random.chance(10) || bug == Some(Bug::SkipsChecksum),
        // Threads that apply records would compute honest checksums of its pages.
        snapshots: random.chance(40) && bug != Some(Bug::SkipsChecksum),
        is_bounded: random.chance(30),
        compacts: random.chance(50),
        is_crowded: random.chance(30),
        loses_evictions: bug == Some(Bug::LosesEvictions),
        mistake: match bug {
            Some(Bug::Tracking(mistake)) => Some(mistake),
            _ => None,
        },
        is_slow: false,
        has_failed: false,
        is_rotten: false,
        tally: Tally { runs: 1, ..Tally::default() },
        random,
    };
    for _ in 0..2 + run.random.below(4) {
        if !run.live()? {
            return Ok(run.tally);
        }
    }
    let setup = run.setup();
    run.read_back(&setup)?;
    Ok(run.tally)
}

impl Run {
    /// One life. False: there can be no other.
    fn live(&mut self) -> Result<bool, String> {
        let setup = self.setup();
        let Some(found) = self.read_back(&setup)? else { return Ok(false) };
        let next_lsn = found.restored.recovered.start.next_lsn;
        self.tally.starts_from_snapshots += u64::from(found.restored.snapshot.is_some());
        let net =
            Net::new(self.random.next_u64(), setup.shards, *self.random.pick(&[5000, 200_000, 5_000_000]));
        let net = Rc::new(RefCell::new(net));
        let seed = self.random.next_u64();
        let mut server = Server::start(&self.disk, &self.clock, &net, &setup, found, &self.ledger, seed)?;
        self.ledger.policy = setup.memory.map(|bound| bound.policy);
        let now = self.clock.nanos();
        let mut clients: Vec<Client> = (0..1 + self.random.below(4))
            .map(|name| {
                let seed = self.random.next_u64();
                Client::new(name, seed, setup.shards, self.class, self.is_crowded, now)
            })
            .collect();
        clients[0].audit(&mut net.borrow_mut(), &self.ledger, now);
        trace!("{now}: a life on {} shards, {} clients, LSN {}", setup.shards, clients.len(), next_lsn);
        trace!("{setup:?}");
        let end = *self.random.pick(&[End::PowerCut, End::PowerCut, End::PowerCut, End::Kill, End::Stop]);
        // Most power cuts come out of the blue, some when everybody has their answers.
        let is_quiet = end == End::Stop || self.random.chance(25);
        let steps = 20 + self.random.below(*self.random.clone().pick(&[60, 400, 1200]));
        let done = self.serve(&mut server, &net, &mut clients, steps);
        let done = done.and_then(|()| match is_quiet {
            true => self.settle(&mut server, &net, &mut clients, end == End::Stop),
            false => Ok(()),
        });
        for client in &clients {
            self.tally.replies += client.replies;
            self.tally.refused += client.refused;
            self.tally.full_memories += client.full;
            self.tally.pushes += client.pushes();
            self.tally.cached += client.compared();
        }
        let (taken, failed) = server.snapshots();
        self.tally.snapshots += taken;
        self.tally.failed_snapshots += failed;
        let (early, late) = std::mem::take(&mut self.disk.borrow_mut().without_room);
        self.tally.full_snapshots += early;
        self.tally.full_in_the_middle += late;
        self.tally.evicted += server.chores.evicted;
        self.tally.emptied += server.chores.emptied;
        self.tally.asked += server.chores.asked;
        self.tally.interrupted += server.chores.interrupted;
        let end = match done {
            // As the process would, before anything more leaves.
            Err(why) if self.is_rotten && why.contains("the snapshot that is being served is damaged") => {
                trace!("{why}");
                self.tally.damage_served += 1;
                End::Kill
            }
            done => {
                done?;
                end
            }
        };
        self.has_failed = server.failed_at.is_some();
        self.tally.failed_logs += u64::from(self.has_failed);
        // What was sent is read, whatever becomes of the server.
        for client in &mut clients {
            client.step(&mut net.borrow_mut(), &mut self.ledger, &mut self.tokens, u64::MAX / 2, true)?;
        }
        self.ledger.note_durable(server.durable());
        trace!("{}: {end:?}, durable {}", self.clock.nanos(), server.durable());
        match end {
            End::Stop => {
                self.tally.stops += 1;
                if !server.is_over() {
                    return Err(String::from("the server was stopped and does not end"));
                }
                let has_failed = server.failed_at.is_some();
                let closed = server.finish();
                if let Err(why) = closed
                    && !has_failed
                {
                    return Err(format!("the log was closed, and: {why}"));
                }
                if !has_failed {
                    self.ledger.note_durable(self.ledger.latest());
                }
                // Sometimes the machine goes down behind it.
                if self.random.chance(50) {
                    self.disk.borrow_mut().cut_power(Vec::new());
                }
            }
            End::PowerCut => {
                self.tally.power_cuts += 1;
                let in_flight = server.end();
                self.disk.borrow_mut().cut_power(in_flight);
            }
            End::Kill => {
                self.tally.kills += 1;
                let in_flight = server.end();
                self.disk.borrow_mut().kill(in_flight);
            }
        }
        self.disk.borrow_mut().troubles = Troubles::default();
        self.disk.borrow_mut().capacity = usize::MAX;
        Ok(true)
    }

    /// What a start finds. `None`: it rightly refuses to start.
    fn read_back(&mut self, setup: &Setup) -> Result<Option<Found>, String> {
        let ended = self.clock.nanos();
        // It takes a while until somebody starts it again.
        self.clock.leap(ended + self.random.next_u64() % 2_000_000_000);
        if self.flips && self.ledger.latest() > 0 && self.random.chance(50) {
            self.is_rotten = true;
            trace!("{ended}: a bit is flipped");
            self.disk.borrow_mut().flip();
        }
        loop {
            let fuse = self.random.chance(20).then(|| self.random.below(12));
            self.disk.borrow_mut().fuse = fuse;
            let found = self.try_start(setup, ended);
            self.disk.borrow_mut().fuse = None;
            match found {
                Ok(found) => return found.map(Some),
                Err(NoStart::PowerCut) => {
                    trace!("the power goes while recovery reads");
                    self.tally.cut_recoveries += 1;
                    self.disk.borrow_mut().cut_power(Vec::new());
                }
                Err(NoStart::Damage(why)) if self.is_rotten => {
                    trace!("no start: {why}");
                    self.tally.damage_refused += 1;
                    return Ok(None);
                }
                Err(NoStart::Damage(why) | NoStart::Wrong(why)) => return Err(format!("recovery: {why}")),
            }
        }
    }

    /// A start, and what the ledger says of it; the outer error is no fault of the server.
    fn try_start(&mut self, setup: &Setup, ended: u64) -> Result<Result<Found, String>, NoStart> {
        let found = restore_all(&self.disk, &self.clock, setup, &mut self.random)?;
        // What came before may be gone from the log.
        let from = found.restored.snapshot.map_or(Lsn::FIRST, |id| id.lsn.next());
        let records = read_log(&self.disk, self.checksum, from)?;
        let next_lsn = found.restored.recovered.start.next_lsn.0;
        let executed = self.ledger.latest();
        let loss = (self.policy == FlushPolicy::OnRequest).then_some(Loss {
            span_max: 1_050_000_000,
            // A log that has failed takes nothing more, however long it goes on.
            age_max: if self.is_slow || self.has_failed { u64::MAX / 2 } else { 1_000_000_000 },
        });
        let judged = self.ledger.recover(&records, next_lsn - 1, ended, loss, self.is_rotten);
        if let Err(why) = judged {
            return Ok(Err(why));
        }
        self.tally.records += executed;
        self.tally.lost_records += executed - self.ledger.latest();
        // Looking at all keys looks at all pages: mostly it is the clients who do.
        if found.restored.snapshot.is_none() || self.random.chance(30) {
            let checked = self.check_state(setup)?;
            if let Err(why) = checked {
                return Ok(Err(why));
            }
        }
        Ok(Ok(found))
    }

    /// Holds every key that another start finds against the ledger.
    fn check_state(&mut self, setup: &Setup) -> Result<Result<(), String>, NoStart> {
        let mut found = restore_all(&self.disk, &self.clock, setup, &mut self.random)?;
        let now = self.clock.now();
        let mut state = BTreeMap::new();
        for keyspace in &mut found.restored.keyspaces {
            let mut at = Some(LiveCursor::START);
            while let Some(cursor) = at {
                at = keyspace.for_each_live(cursor, 1 << 20, now, &mut |key, entry| {
                    let stored = Stored { value: entry.value.to_vec(), expires_ms: entry.expires_at };
                    state.insert(key.to_vec(), stored);
                });
            }
            if let Some(damage) = keyspace.damage() {
                return match self.is_rotten {
                    // Whoever is started from it finds that out as well.
                    true => Ok(Ok(())),
                    false => Ok(Err(format!("a page of a snapshot nobody touched: {damage}"))),
                };
            }
        }
        Ok(self.ledger.check_state(&state, now.unix_ms()))
    }

    fn setup(&mut self) -> Setup {
        let random = &mut self.random;
        self.is_slow = random.chance(20);
        let delay = |random: &mut Random, is_slow| match is_slow {
            true => *random.pick(&[100_000_000, 2_000_000_000]),
            false => *random.pick(&[100_000, 2_000_000, 20_000_000]),
        };
        // Under `everysec` blocks go to the page cache.
        let is_block_slow = self.is_slow && self.policy == FlushPolicy::EveryBlock;
        let window = *random.pick(&[24 << 10, 48 << 10, 256 << 10]);
        // It must suffice for what a turn receives: what is executed beyond it waits for a full disk, under `everysec` for
        // longer than a second.
        let window = if self.is_crowded { 256 << 10 } else { window };
        Setup {
            shards: *random.pick(&[1, 1, 2, 3]),
            class: self.class,
            log: LogOptions {
                segment_bytes: self.segment_bytes,
                first_segment_bytes: *random.pick(&[0, self.segment_bytes]),
                block_bytes_max: self.block_bytes_max,
                pending_bytes_max: *random.pick(&[32 << 10, 256 << 10, 64 << 20]),
                spare_segments: 1 + random.below(2),
                policy: self.policy,
                write_mode: self.write_mode,
                idle_period: Duration::from_millis(*random.pick(&[20, 1000])),
                ..LogOptions::default()
            },
            window,
            hop_queue: *random.pick(&[1, 4, 1024]),
            block_delay: delay(random, is_block_slow),
            helper_delay: delay(random, self.is_slow),
            checksum: self.checksum,
            tracking_pairs_max: *random.pick(&[3, 1_000_000, 1_000_000]),
            memory: (self.is_bounded && random.chance(80)).then(|| Bound::draw(random)),
            compacts: self.compacts,
            loses_evictions: self.loses_evictions,
            mistake: self.mistake,
            snapshots: self.snapshots.then(|| Schedule {
                log_bytes: *random.pick(&[0, 20_000, 200_000]),
                interval_s: *random.pick(&[0, 1]),
                on_shutdown: random.chance(50),
                keep: 1 + random.below(3),
            }),
        }
    }

    /// Lets anything happen that can, so often.
    fn serve(
        &mut self,
        server: &mut Server,
        net: &Rc<RefCell<Net>>,
        clients: &mut [Client],
        steps: usize,
    ) -> Result<(), String> {
        let trouble_at = self.random.below(steps);
        let trouble = self.random.below(10);
        let mut was_full = false;
        for step in 0..steps {
            if step == trouble_at {
                let disk = &mut *self.disk.borrow_mut();
                let percent = *self.random.pick(&[2, 20, 100]);
                match trouble {
                    0 => disk.troubles.failures = percent,
                    1 => disk.troubles.other_failures = percent,
                    2 | 3 => disk.capacity = disk.used() + self.random.below(3) * self.segment_bytes as usize,
                    4 => disk.troubles.short_writes = percent.min(60),
                    5 => disk.troubles.snapshot_failures = percent.min(20),
                    6 => disk.troubles.snapshot_room = Some(self.random.below(8 << 20)),
                    _ => {}
                }
            }
            if matches!(trouble, 2 | 6) && step == trouble_at + steps / 3 {
                let disk = &mut *self.disk.borrow_mut();
                (disk.capacity, disk.troubles.snapshot_room) = (usize::MAX, None);
            }
            if self.snapshots && self.random.below(200) == 0 {
                server.wish_snapshot();
            }
            was_full |= matches!(server.state(), LogState::Full(_));
            if !self.step(server, net, clients, false)? {
                break;
            }
        }
        self.tally.full_disks += u64::from(was_full);
        Ok(())
    }

    /// Nobody asks for more and nothing fails any more: everybody gets an answer. With `stops` the server ends, too.
    fn settle(
        &mut self,
        server: &mut Server,
        net: &Rc<RefCell<Net>>,
        clients: &mut [Client],
        stops: bool,
    ) -> Result<(), String> {
        server.heal();
        // Longer than anything that is waited for: a slow disk prepares twenty segments.
        let patience = 1_000_000_000_000;
        let mut until = self.clock.nanos() + patience;
        let mut steps = 0;
        while clients.iter().any(|client| client.outstanding() > 0) {
            steps += 1;
            if !self.step(server, net, clients, true)? || self.clock.nanos() > until || steps > 200_000 {
                let stuck = clients.iter().find(|client| client.outstanding() > 0);
                let what = stuck.map_or(String::new(), Client::first_outstanding);
                return Err(format!("nobody answers {what}; the log: {:?}", server.state()));
            }
        }
        self.tally.quiet_ends += 1;
        self.check_caches(server, net, clients)?;
        if stops {
            net.borrow_mut().stop();
            until = self.clock.nanos() + patience;
            while !server.is_over() && self.clock.nanos() < until && steps < 400_000 {
                steps += 1;
                if !self.step(server, net, clients, true)? {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Somebody looks at everything, then nothing is on its way any more: no cache holds what is older than that.
    fn check_caches(
        &mut self,
        server: &mut Server,
        net: &Rc<RefCell<Net>>,
        clients: &mut [Client],
    ) -> Result<(), String> {
        for round in 0..2 {
            let now = self.clock.nanos();
            match round {
                0 => clients[0].audit(&mut net.borrow_mut(), &self.ledger, now),
                _ => clients.iter_mut().for_each(|client| {
                    client.knock(&mut net.borrow_mut(), &self.ledger, now);
                }),
            }
            let until = now + 1_000_000_000;
            for _ in 0..20_000 {
                let is_answered = clients.iter().all(|client| client.outstanding() == 0);
                let is_over = is_answered && self.clock.nanos() > until;
                if is_over || !self.step(server, net, clients, true)? {
                    break;
                }
            }
        }
        clients.iter_mut().try_for_each(|client| client.check_cache(&self.ledger))
    }

    /// One step of anybody. False: nothing will ever happen again.
    fn step(
        &mut self,
        server: &mut Server,
        net: &Rc<RefCell<Net>>,
        clients: &mut [Client],
        quiet: bool,
    ) -> Result<bool, String> {
        self.tally.steps += 1;
        let now = self.clock.nanos();
        let (mut ready, mut next) = (Vec::new(), None::<u64>);
        let mut consider = |actor: usize, due: Option<u64>| match due {
            Some(at) if at <= now => ready.push(actor),
            Some(at) => next = Some(next.map_or(at, |next| next.min(at))),
            None => {}
        };
        consider(0, server.due(Actor::Owner));
        consider(1, server.due(Actor::Helper));
        consider(2, server.due(Actor::Taker));
        let shards = server.shards();
        for shard in 0..shards {
            consider(3 + shard, server.due(Actor::Shard(shard)));
        }
        for (index, client) in clients.iter().enumerate() {
            consider(3 + shards + index, client.due(&net.borrow(), quiet));
        }
        let Some(&chosen) = (!ready.is_empty()).then(|| self.random.pick(&ready)) else {
            let Some(next) = next else { return Ok(false) };
            self.clock.leap(next);
            return Ok(true);
        };
        match chosen {
            0 => server.step(Actor::Owner, &mut self.ledger)?,
            1 => server.step(Actor::Helper, &mut self.ledger)?,
            2 => server.step(Actor::Taker, &mut self.ledger)?,
            _ if chosen < 3 + shards => server.step(Actor::Shard(chosen - 3), &mut self.ledger)?,
            _ => {
                let client = &mut clients[chosen - 3 - shards];
                client.step(&mut net.borrow_mut(), &mut self.ledger, &mut self.tokens, now, quiet)?;
                // Who asks takes time, too.
                self.clock.leap(now + self.clock.step);
            }
        }
        if let Some(failed_at) = server.failed_at
            && self.ledger.promised() > failed_at
        {
            return Err(format!(
                "LSN {} was promised after the log failed at {failed_at}",
                self.ledger.promised()
            ));
        }
        Ok(true)
    }
}
