//! The owner and the shards' ends, stepped by hand over a disk in memory: every operation fails once, every give-up
//! comes at every step, and nothing is ever left over.

use super::*;
use crate::io::log_files::checksum;
use crate::server::log_handle::{Image, LogShared, LogState};
use crate::server::pipeline::Pipeline;
use snapshot::operation::Action;
use snapshot::view::SnapshotView;
use std::collections::BTreeMap;
use std::io;
use store::arena::HeapSource;
use store::config::Config;
use store::engine::{Engine, Seeds};
use store::session::{ConnectionId, Peer};
use store::shards::{Place, Totals};
use store::time::{Clock, Nanos, Now};
use wal::lsn::Epoch;
use wal::operation::Errno;

const CLIENT: ConnectionId = ConnectionId { slot: 0, generation: 1 };
const OTHER: ConnectionId = ConnectionId { slot: 1, generation: 1 };

struct Standing(Nanos);

impl Clock for Standing {
    fn monotonic(&self) -> Nanos {
        self.0
    }
}

/// A directory in memory, one of whose operations fails.
#[derive(Default)]
struct Disk {
    files: BTreeMap<FileName, Vec<u8>>,
    operations: usize,
    fails_at: Option<usize>,
    /// What was done, in words.
    done: Vec<String>,
}

impl Disk {
    fn fails(&mut self, what: String) -> bool {
        self.done.push(what);
        self.operations += 1;
        self.fails_at == Some(self.operations)
    }

    fn listing(&self) -> Listing {
        let names: Vec<String> = self.files.keys().map(ToString::to_string).collect();
        Listing::of(names.iter().map(String::as_str))
    }

    fn perform(&mut self, id: SnapshotId, operation: Operation) -> Completion {
        let Operation { id: number, action } = operation;
        let words = format!("{action:?}");
        let failed = self.fails(words.split([' ', '{']).next().unwrap().to_string());
        let temporary = FileName::Temporary(id);
        let mut buffer = None;
        let mut written = 0;
        match action {
            _ if failed => {
                if let Action::Write { buffer: back, .. } = action {
                    buffer = Some(back);
                }
            }
            Action::Create => drop(self.files.insert(temporary, Vec::new())),
            Action::Reserve { length } => self.files.get_mut(&temporary).unwrap().resize(length as usize, 0),
            Action::Write { offset, buffer: bytes, start } => {
                let part = &bytes.as_slice()[start..];
                written = part.len();
                let file = self.files.get_mut(&temporary).unwrap();
                file[offset as usize..][..part.len()].copy_from_slice(part);
                buffer = Some(bytes);
            }
            Action::Flush | Action::FlushDirectory => {}
            Action::Rename => {
                let bytes = self.files.remove(&temporary).unwrap();
                self.files.insert(FileName::Snapshot(id), bytes);
            }
            Action::Delete => drop(self.files.remove(&temporary)),
        }
        let result = if failed { Err(Errno::ENOSPC) } else { Ok(written) };
        Completion { id: number, result, buffer }
    }
}

struct World {
    owner: SnapshotOwner,
    messages: Receiver<Message>,
    shards: Vec<Option<(Pipeline, SnapshotEnd)>>,
    disk: Disk,
    /// On their way: the later ends first.
    writes: Vec<(SnapshotId, Operation)>,
    now: u64,
    released: Vec<Lsn>,
    said: Vec<String>,
}

const KEEP_TWO: Schedule = Schedule { log_bytes: 0, interval_s: 0, on_shutdown: false, keep: 2 };

impl World {
    fn new(history: History, schedule: Schedule) -> World {
        let count = 2;
        let totals = Totals::new(count);
        let status = Status::new();
        let bell = Arc::new(Bell::new().unwrap());
        let options = SnapshotOptions {
            schedule,
            checksum: checksum(),
            owns_directory: true,
            writer: Settings { buffer_bytes: 64 << 10, buffers: 2 },
            part_bytes: 128 << 10,
            ..SnapshotOptions::default()
        };
        let wakers = (0..count).map(|_| Box::new(|| {}) as Waker).collect();
        let opened = SnapshotOwner::open(history, Arc::clone(&status), options, wakers, vec![bell; count]);
        let config = Config {
            snapshot_log_bytes: schedule.log_bytes,
            snapshot_interval: schedule.interval_s,
            snapshot_on_shutdown: schedule.on_shutdown,
            snapshot_keep: schedule.keep as u32,
            ..Config::default()
        };
        let now = Now { unix_us: 1_700_000_000_000_000, monotonic: Nanos(1) };
        let shard = |(index, end)| {
            let place = Place { index, count };
            let source = Box::new(HeapSource::default());
            let (config, totals) = (config.clone(), totals.clone());
            let mut engine = Engine::with_place(config, Seeds::default(), source, now, place, totals);
            engine.shared_mut().snapshots.status = Some(Arc::clone(&status));
            engine.handle_connect(CLIENT, Peer::default(), now);
            engine.handle_connect(OTHER, Peer::default(), now);
            Some((Pipeline::new(engine, Vec::new()), end))
        };
        let shards = opened.ends.into_iter().enumerate().map(shard).collect();
        World {
            owner: opened.owner,
            messages: opened.messages,
            shards,
            disk: Disk::default(),
            writes: Vec::new(),
            now: SECOND,
            released: Vec::new(),
            said: Vec::new(),
        }
    }

    fn still() -> World {
        World::new(History::Still(Epoch(1), Lsn(7)), KEEP_TWO)
    }

    fn time(&self) -> Now {
        Now { unix_us: 1_700_000_000_000_000 + self.now / 1000, monotonic: Nanos(self.now) }
    }

    fn engine(&mut self, shard: usize) -> &mut Engine {
        self.shards[shard].as_mut().unwrap().0.engine_mut()
    }

    /// A client of a shard says something.
    fn say(&mut self, shard: usize, client: ConnectionId, command: &str) {
        let now = self.time();
        let line = format!("{command}\r\n");
        self.engine(shard).handle_receive(client, line.as_bytes(), now, &Standing(now.monotonic));
    }

    /// What a client has been answered.
    fn heard(&mut self, shard: usize, client: ConnectionId) -> String {
        let engine = self.engine(shard);
        let output = engine.take_output(client).unwrap_or_default();
        String::from_utf8(output).unwrap()
    }

    /// Keys that lie on the shard.
    fn fill(&mut self, shard: usize, keys: usize) {
        let place = Place { index: shard, count: self.shards.len() };
        let now = self.time();
        for at in (0..)
            .map(|at| format!("key:{at}"))
            .filter(|key| place.shard_of(key.as_bytes()) == shard)
            .take(keys)
        {
            let line = format!("SET {at} {}\r\n", "v".repeat(100));
            self.engine(shard).handle_receive(CLIENT, line.as_bytes(), now, &Standing(now.monotonic));
        }
        self.heard(shard, CLIENT);
    }

    /// A turn of every shard, all messages, and one thing done. `false`: nothing was to do.
    fn step(&mut self) -> bool {
        self.now += SECOND / 1000;
        let now = self.time();
        for (pipeline, end) in self.shards.iter_mut().flatten() {
            end.begin_turn(pipeline, now);
            pipeline.engine_mut().finish_turn(now);
            end.end_turn(pipeline, now, &Standing(now.monotonic), true);
        }
        while let Ok(message) = self.messages.try_recv() {
            self.owner.handle(message);
        }
        self.owner.handle_time(Times { monotonic_ns: self.now, unix_us: now.unix_us });
        let work = match self.owner.poll_work() {
            Some(Work::File(id, operation)) if matches!(operation.action, Action::Write { .. }) => {
                self.writes.push((id, operation));
                if self.writes.len() < 3 {
                    return true;
                }
                None
            }
            work => work,
        };
        let Some(work) = work else {
            let Some((id, operation)) = self.writes.pop() else { return false };
            let completion = self.disk.perform(id, operation);
            self.owner.handle(Message::Written(completion));
            return true;
        };
        match work {
            Work::Prepare => {
                let failed = self.disk.fails("Prepare".into());
                let prepared =
                    if failed { Err("in use by somebody".into()) } else { Ok(self.disk.listing()) };
                self.owner.handle_prepared(prepared);
            }
            Work::File(id, operation) => {
                let completion = self.disk.perform(id, operation);
                self.owner.handle_completion(completion);
            }
            Work::List => {
                let failed = self.disk.fails("List".into());
                let listed =
                    if failed { Err(io::Error::from_raw_os_error(5)) } else { Ok(self.disk.listing()) };
                self.owner.handle_listing(listed);
            }
            Work::Remove(file) => {
                let failed = self.disk.fails("Remove".into());
                let removed = match failed {
                    true => Err(io::Error::from_raw_os_error(5)),
                    false => self.disk.files.remove(&file).map(drop).ok_or(io::ErrorKind::NotFound.into()),
                };
                self.owner.handle_removed(file, removed);
            }
            Work::Release(lsn) => self.released.push(lsn),
            Work::FlushLog => {}
            Work::Say(text) => self.said.push(text),
        }
        true
    }

    /// Until the owner has nothing more to do.
    fn settle(&mut self) {
        let mut quiet = 0;
        for _ in 0..20_000 {
            quiet = if self.step() || self.owner.attempt.is_some() { 0 } else { quiet + 1 };
            if quiet == 20 {
                return;
            }
        }
        panic!("it does not come to rest: {:?}", self.disk.done);
    }

    /// Keys of the newest snapshot, as its meta says.
    fn saved_keys(&self) -> u64 {
        let id = self.disk.listing().snapshots[0];
        let bytes = &self.disk.files[&FileName::Snapshot(id)];
        let view = SnapshotView::of_file(&FileName::Snapshot(id).to_string(), bytes, checksum()).unwrap();
        for shard in 0..view.shards() {
            for (at, region) in view.regions(shard).iter().enumerate() {
                let pages = bytes[region.range().start as usize..region.range().end as usize].chunks(4096);
                pages
                    .enumerate()
                    .for_each(|(page, bytes)| view.check_page(shard, at, page as u64, bytes).unwrap());
            }
        }
        let entries = |shard| store::image::meta::summary(view.meta(shard)).unwrap().entries;
        (0..view.shards()).map(entries).sum()
    }

    fn is_tidy(&self) -> bool {
        let taken = |shard: &Option<(Pipeline, SnapshotEnd)>| {
            shard.as_ref().is_some_and(|(_, end)| format!("{end:?}").contains("Some"))
        };
        self.disk.listing().temporary.is_empty()
            && !self.owner.status().is_claimed()
            && self.owner.awaited == 0
            && !self.shards.iter().any(taken)
    }
}

#[test]
fn a_client_that_says_save_waits_until_the_name_is_durable() {
    let mut world = World::still();
    world.fill(0, 300);
    world.fill(1, 200);
    world.settle();
    world.disk.done.clear();
    world.say(0, CLIENT, "SAVE");
    world.say(0, OTHER, "PING");
    assert_eq!(world.heard(0, OTHER), "+PONG\r\n");
    while world.heard(0, CLIENT).is_empty() {
        let is_durable = world.disk.done.iter().any(|done| done == "FlushDirectory");
        if is_durable {
            world.step();
            break;
        }
        assert!(world.owner.status().is_claimed());
        world.step();
    }
    assert_eq!(world.heard(0, CLIENT), "+OK\r\n");
    assert!(!world.owner.status().is_claimed());
    world.settle();
    assert_eq!(world.saved_keys(), 500);
    assert!(world.is_tidy());
    let order: Vec<&str> =
        world.disk.done.iter().map(String::as_str).filter(|done| *done != "Write").collect();
    let expected = ["Prepare", "Create", "Reserve", "Flush", "Rename", "FlushDirectory", "List"];
    assert_eq!(order, expected);
}

/// Whatever fails: nobody is told that there is a snapshot unless there is, nothing is left over, and the next one succeeds.
#[test]
fn every_operation_fails_once() {
    let mut fails_at = 1;
    loop {
        let mut world = World::still();
        world.fill(0, 300);
        world.fill(1, 200);
        world.settle();
        // Three are there, so that one has to go.
        for lsn in [3, 4, 5] {
            let id = SnapshotId { epoch: Epoch(1), lsn: Lsn(lsn) };
            world.disk.files.insert(FileName::Snapshot(id), Vec::new());
            // The server started from the newest.
            world.owner.good = vec![id];
        }
        world.disk.operations = 0;
        world.disk.fails_at = Some(fails_at);
        world.say(1, CLIENT, "SAVE");
        world.settle();
        let failed = world.disk.done.get(world.disk.done.len() - world.disk.operations..).unwrap();
        let Some(failed) = failed.get(fails_at - 1).cloned() else {
            assert!(fails_at > 10, "all of them were tried");
            return;
        };
        let reply = world.heard(1, CLIENT);
        // What is complete stays so, whatever happens to the old ones.
        let is_complete = matches!(failed.as_str(), "List" | "Remove");
        match is_complete {
            true => assert_eq!(reply, "+OK\r\n", "{failed}"),
            false => assert!(reply.starts_with("-ERR "), "{failed}: {reply}"),
        }
        if failed != "Delete" {
            assert!(world.is_tidy(), "{failed}: {:?}", world.disk.files.keys());
        }
        assert!(world.released.is_empty() || is_complete, "{failed}: {:?}", world.released);
        let words = if is_complete { "warning: " } else { "there is no snapshot" };
        assert!(world.said.iter().any(|said| said.starts_with(words)), "{failed}: {:?}", world.said);
        world.disk.fails_at = None;
        world.say(1, CLIENT, "SAVE");
        world.settle();
        assert_eq!(world.heard(1, CLIENT), "+OK\r\n", "after {failed}");
        assert_eq!(world.saved_keys(), 500, "after {failed}");
        assert!(world.is_tidy() && world.disk.listing().snapshots.len() == 2, "after {failed}");
        // The oldest that is kept has LSN 5.
        assert_eq!(world.released.last(), Some(&Lsn(6)), "after {failed}");
        fails_at += 1;
    }
}

/// SHUTDOWN gives up what is being taken, at whatever step, and has its own.
#[test]
fn a_shutdown_comes_at_every_step() {
    for steps in 0..60 {
        let mut world = World::still();
        world.fill(0, 100);
        world.settle();
        world.say(0, CLIENT, "SAVE");
        for _ in 0..steps {
            world.step();
        }
        world.say(1, OTHER, "SHUTDOWN SAVE");
        world.settle();
        let reply = world.heard(0, CLIENT);
        assert!(reply == "+OK\r\n" || reply.starts_with("-ERR the server is to end"), "{steps}: {reply}");
        let mut actions = std::iter::from_fn(|| world.engine(1).poll_action());
        assert!(actions.any(|action| action == store::engine::Action::Shutdown), "after {steps}");
        assert_eq!(world.saved_keys(), 100);
        assert!(world.is_tidy(), "after {steps}");
    }
}

/// A shard that ends takes its keys with it: there is no snapshot without them.
#[test]
fn a_shard_ends_at_every_step() {
    for steps in 0..60 {
        let mut world = World::still();
        world.fill(0, 100);
        world.settle();
        world.say(0, CLIENT, "BGSAVE");
        for _ in 0..steps {
            world.step();
        }
        let complete = world.disk.listing().snapshots.len();
        world.shards[1] = None;
        world.settle();
        assert!(complete >= world.disk.listing().snapshots.len() || world.saved_keys() == 100);
        assert!(world.is_tidy(), "after {steps}");
        world.shards[0] = None;
        world.settle();
        assert!(world.owner.is_finished(), "after {steps}");
    }
}

#[test]
fn the_last_snapshot_holds_what_came_after_the_one_before() {
    for (on_shutdown, keys, wanted) in [(true, 5, true), (true, 0, false), (false, 5, false)] {
        let mut world = World::new(History::Still(Epoch(1), Lsn(7)), Schedule { on_shutdown, ..KEEP_TWO });
        world.fill(0, 50);
        world.say(0, CLIENT, "BGSAVE");
        world.settle();
        assert_eq!(world.saved_keys(), 50);
        world.fill(1, keys);
        for (pipeline, end) in world.shards.iter_mut().flatten() {
            end.say_over(pipeline);
        }
        world.settle();
        assert_eq!(world.saved_keys(), if wanted { 50 + keys as u64 } else { 50 });
        assert!(world.shards.iter().flatten().all(|(_, end)| end.may_leave()));
        world.shards.iter_mut().for_each(|shard| *shard = None);
        world.settle();
        assert!(world.owner.is_finished());
        assert_eq!(world.owner.finish(), Ok(()));
    }
}

#[test]
fn time_takes_one_if_something_has_changed() {
    let mut world = World::new(History::Still(Epoch(1), Lsn(7)), Schedule { interval_s: 5, ..KEEP_TWO });
    let wait = |world: &mut World, seconds: u64| {
        (0..seconds * 10).for_each(|_| {
            world.now += SECOND / 10;
            world.step();
        });
        world.settle();
    };
    wait(&mut world, 20);
    assert_eq!(world.disk.listing().snapshots, []);
    world.fill(0, 10);
    wait(&mut world, 20);
    assert_eq!(world.saved_keys(), 10);
    world.disk.done.clear();
    wait(&mut world, 20);
    assert_eq!(world.disk.done, [] as [String; 0], "nothing has changed");
    world.fill(1, 10);
    // A failure is not tried again at once.
    world.disk.fails_at = Some(world.disk.operations + 3);
    wait(&mut world, 20);
    assert_eq!(world.disk.done.iter().filter(|done| *done == "Create").count(), 1);
    wait(&mut world, 20);
    assert_eq!(world.saved_keys(), 20);
}

fn log() -> (Arc<LogShared>, World) {
    let log = Arc::new(LogShared::new(Lsn(100), Epoch(3), 1 << 20, Image::Blocks(1 << 20), Vec::new()));
    let world = World::new(History::Log(Arc::clone(&log)), Schedule { log_bytes: 1000, ..KEEP_TWO });
    (log, world)
}

/// Images may be ahead of the log; the file's name is not.
#[test]
fn the_log_is_durable_before_the_name_is() {
    let (log, mut world) = log();
    world.fill(0, 10);
    log.lsns().store(151, Ordering::SeqCst);
    world.say(0, CLIENT, "SAVE");
    (0..500).for_each(|_| _ = world.step());
    assert_eq!(world.disk.done.last().unwrap(), "Flush");
    log.publish(Lsn(149), 0, 0, false, &LogState::Open);
    (0..500).for_each(|_| _ = world.step());
    assert_eq!(world.disk.done.last().unwrap(), "Flush");
    log.publish(Lsn(150), 0, 0, false, &LogState::Open);
    world.settle();
    assert_eq!(world.heard(0, CLIENT), "+OK\r\n");
    let id = SnapshotId { epoch: Epoch(3), lsn: Lsn(150) };
    assert_eq!(world.disk.listing().snapshots, [id]);
    assert_eq!(world.released, [], "one of two");
    log.lsns().store(161, Ordering::SeqCst);
    log.publish(Lsn(160), 0, 0, false, &LogState::Open);
    world.say(0, CLIENT, "SAVE");
    world.settle();
    assert_eq!(world.released, [Lsn(151)]);
}

#[test]
fn what_the_log_lost_is_in_no_snapshot() {
    let (log, mut world) = log();
    log.lsns().store(151, Ordering::SeqCst);
    world.say(0, CLIENT, "SAVE");
    (0..500).for_each(|_| _ = world.step());
    assert_eq!(world.disk.done.last().unwrap(), "Flush");
    log.publish(Lsn(149), 0, 0, false, &LogState::Closed);
    world.settle();
    assert!(world.heard(0, CLIENT).contains("the log is closed"));
    assert!(world.is_tidy() && world.disk.files.is_empty());
}

#[test]
fn so_much_log_takes_one() {
    let (log, mut world) = log();
    world.fill(0, 10);
    let write = |bytes| {
        let mut metrics = log.metrics();
        metrics.log.block_bytes += bytes;
        log.set_metrics(metrics);
    };
    write(999);
    (0..500).for_each(|_| _ = world.step());
    assert_eq!(world.disk.listing().snapshots, []);
    write(1);
    (0..500).for_each(|_| _ = world.step());
    assert_eq!(world.saved_keys(), 10);
    write(500);
    world.disk.done.clear();
    (0..500).for_each(|_| _ = world.step());
    assert_eq!(world.disk.done, [] as [String; 0]);
}

#[test]
fn what_a_crash_left_goes_at_the_start() {
    let id = SnapshotId { epoch: Epoch(1), lsn: Lsn(3) };
    let mut world = World::still();
    world.disk.files.insert(FileName::Temporary(id), vec![1]);
    for lsn in [1, 2, 3] {
        world.disk.files.insert(FileName::Snapshot(SnapshotId { lsn: Lsn(lsn), ..id }), vec![1]);
        world.owner.good.push(SnapshotId { lsn: Lsn(lsn), ..id });
    }
    world.settle();
    assert!(world.disk.listing().temporary.is_empty());
    assert_eq!(world.disk.listing().snapshots.len(), 3, "only a new one lets an old one go");
    assert_eq!(world.released, [Lsn(3)], "the two newest have LSN 2 and 3");
}

/// Snapshots of what `--recover-to` left out once counted among those that are kept: a start let the log before them go, and
/// with it all there was.
#[test]
fn the_log_does_not_go_on_the_strength_of_snapshots_that_were_left_out() {
    for (keep, released, left) in [(2, vec![], 3), (1, vec![Lsn(8)], 1)] {
        let mut world = World::new(History::Still(Epoch(2), Lsn(7)), Schedule { keep, ..KEEP_TWO });
        for lsn in [100, 200] {
            let id = SnapshotId { epoch: Epoch(1), lsn: Lsn(lsn) };
            world.disk.files.insert(FileName::Snapshot(id), vec![1]);
        }
        world.fill(0, 3);
        world.settle();
        assert_eq!(world.released, [], "nothing that is there can be started from");
        world.say(0, CLIENT, "SAVE");
        world.settle();
        assert_eq!(world.heard(0, CLIENT), "+OK\r\n");
        assert_eq!(
            (world.released.clone(), world.disk.listing().snapshots.len()),
            (released, left),
            "keep {keep}"
        );
    }
}
