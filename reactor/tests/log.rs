//! The log's threads, recovery and tools: over real files, and over a disk that fails when it is told to.

use reactor::io::log_files::{DirectoryLock, LogDisk, LogFiles, LogWriteMode};
use reactor::server::log_handle::{LogHandle, LogState, Refusal, Waker};
use reactor::server::log_thread::{LogOptions, LogThread};
use reactor::server::recovery::{RecoverTo, Recovered, RecoveryError, RecoveryOptions, recover};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use store::mutation::Mutation;
use store::value::Encoding;
use wal::group_commit::Start;
use wal::lsn::{Epoch, Lsn};
use wal::operation::{Action, Completion, Errno, Operation};
use wal::segment::FileName;
use wal::settings::FlushPolicy;

/// Longer than anything here takes; reaching it is a failure.
const PATIENCE: Duration = Duration::from_secs(60);

const BINARY: &str = env!("CARGO_BIN_EXE_millrace");

/// A directory of one test's own, removed with the value.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("millrace-log-{name}-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    /// From `SEED`, or a new one; printed, so that a failure can be replayed.
    fn new(name: &str) -> Random {
        let seed = match std::env::var("SEED") {
            Ok(seed) => seed.parse().expect("SEED is a number"),
            Err(_) => reactor::clock::realtime_ns(),
        };
        println!("{name}: SEED={seed}");
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// Small files, so that a test goes through many of them.
fn small() -> LogOptions {
    LogOptions { segment_bytes: 256 << 10, block_bytes_max: 16 << 10, ..LogOptions::default() }
}

/// Something a thread waits for, in a shard's place.
#[derive(Default)]
struct Bell {
    rung: Mutex<u64>,
    changed: Condvar,
}

impl Bell {
    fn waker(self: &Arc<Bell>) -> Waker {
        let bell = Arc::clone(self);
        Box::new(move || {
            *bell.rung.lock().unwrap() += 1;
            bell.changed.notify_all();
        })
    }

    fn count(&self) -> u64 {
        *self.rung.lock().unwrap()
    }

    /// Waits until it has rung more often than `seen`.
    fn wait_beyond(&self, seen: u64) {
        let rung = self.rung.lock().unwrap();
        let (_rung, timeout) = self.changed.wait_timeout_while(rung, PATIENCE, |rung| *rung <= seen).unwrap();
        assert!(!timeout.timed_out(), "nobody rang");
    }
}

/// A shard as a test needs it.
struct Shard {
    log: LogHandle,
    bell: Arc<Bell>,
}

impl Shard {
    /// Submits records and returns the last one's LSN.
    fn submit(&mut self, payloads: &[&[u8]]) -> Lsn {
        let mut batch = self.log.batch(reactor::clock::realtime_ns() / 1000);
        for payload in payloads {
            let lsn = self.log.allocate(1);
            batch.push(lsn, payload);
        }
        let last = self.log.shared().allocated_lsn();
        self.log.submit(batch);
        last
    }

    fn admit(&mut self, framed: usize) {
        loop {
            let seen = self.bell.count();
            self.log.wait_for_room();
            match self.log.admit(framed) {
                Ok(()) => return,
                Err(Refusal::Busy | Refusal::Full) => self.bell.wait_beyond(seen),
                Err(refusal) => panic!("{refusal:?}: {}", self.log.shared().state()),
            }
        }
    }

    fn wait_durable(&self, lsn: Lsn) {
        loop {
            let seen = self.bell.count();
            if !self.log.wait_for(lsn) {
                assert!(self.log.durable_lsn() >= lsn, "{}", self.log.shared().state());
                return;
            }
            self.bell.wait_beyond(seen);
        }
    }

    /// Waits until the state is as wanted.
    fn wait_state(&self, wanted: impl Fn(&LogState) -> bool) -> LogState {
        loop {
            let seen = self.bell.count();
            // Far away: only a change of the state wakes this.
            self.log.wait_for(Lsn(u64::MAX - 1));
            let state = self.log.shared().state();
            if wanted(&state) {
                return state;
            }
            self.bell.wait_beyond(seen);
        }
    }
}

fn begin(disk: impl LogDisk, start: &Start, options: LogOptions, shards: usize) -> (LogThread, Vec<Shard>) {
    let bells: Vec<Arc<Bell>> = (0..shards).map(|_| Arc::default()).collect();
    let wakers = bells.iter().map(Bell::waker).collect();
    let (thread, handles) = LogThread::start(disk, start, options, wakers).unwrap();
    let shards = handles.into_iter().zip(bells).map(|(log, bell)| Shard { log, bell }).collect();
    (thread, shards)
}

fn files(directory: &Path, options: &LogOptions) -> LogFiles {
    LogFiles::new(directory, options.write_mode)
}

type Records = Vec<(u64, Vec<u8>)>;

fn read_to(directory: &Path, to: Option<RecoverTo>) -> Result<(Records, Recovered), RecoveryError> {
    let mut records = Vec::new();
    let options = RecoveryOptions { to, ..RecoveryOptions::new(reactor::clock::monotonic_ns()) };
    let recovered = recover(directory, options, &mut |_| {}, |lsn, _, payload| {
        records.push((lsn.0, payload.to_vec()));
        Ok(())
    })?;
    Ok((records, recovered))
}

fn read(directory: &Path) -> (Records, Recovered) {
    read_to(directory, None).unwrap_or_else(|error| panic!("{error}"))
}

fn empty() -> Start {
    Start::empty(reactor::clock::monotonic_ns())
}

#[test]
fn records_of_many_threads_are_read_back_in_one_order() {
    let mut random = Random::new("records_of_many_threads_are_read_back_in_one_order");
    for mode in LogWriteMode::ALL {
        let scratch = Scratch::new("threads");
        let options = LogOptions { write_mode: mode, ..small() };
        let (log, shards) = begin(files(&scratch.0, &options), &empty(), options, 4);
        let written: Arc<Mutex<BTreeMap<u64, Vec<u8>>>> = Arc::default();
        let threads: Vec<_> = shards
            .into_iter()
            .map(|mut shard| {
                let (mut random, written) = (Random(random.next()), Arc::clone(&written));
                thread::spawn(move || {
                    for _ in 0..150 {
                        let count = 1 + random.below(8);
                        let mut payloads = Vec::new();
                        for _ in 0..count {
                            // Some are longer than a block.
                            let longest = if random.below(40) == 0 { 60_000 } else { 300 };
                            let length = random.below(longest);
                            payloads.push((0..length).map(|_| random.next() as u8).collect::<Vec<u8>>());
                        }
                        shard.admit(payloads.iter().map(|payload| payload.len() + 8).sum());
                        // LSNs are taken one by one, so that batches of several shards interleave.
                        let mut batch = shard.log.batch(1);
                        let mut last = Lsn::ZERO;
                        for payload in payloads {
                            last = shard.log.allocate(1);
                            if random.below(3) == 0 {
                                thread::yield_now();
                            }
                            batch.push(last, &payload);
                            written.lock().unwrap().insert(last.0, payload);
                        }
                        shard.log.submit(batch);
                        if random.below(4) == 0 {
                            shard.wait_durable(last);
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let shared = Arc::clone(log.shared());
        log.close().unwrap();
        let written = written.lock().unwrap();
        assert_eq!(shared.durable_lsn(), Lsn(written.len() as u64));
        assert_eq!((shared.pending_bytes(), shared.reserved_bytes()), (0, 0));
        let (records, recovered) = read(&scratch.0);
        assert!(records.into_iter().eq(written.clone()), "{mode}");
        assert_eq!(recovered.start.next_lsn, Lsn(written.len() as u64 + 1));
        assert!(recovered.start.segments.len() > 2, "the test goes through several segments");
        let metrics = shared.metrics();
        assert_eq!(metrics.log.records, written.len() as u64);
        assert_eq!(metrics.flush_us.iter().sum::<u64>(), metrics.flushes);
        assert_eq!(metrics.log.records_per_block.iter().sum::<u64>(), metrics.log.blocks);
        assert!(metrics.log.blocks < metrics.log.records, "several records share a block");
    }
}

/// Waits for what another thread will make true.
fn eventually(mut is_true: impl FnMut() -> bool, what: &str) {
    let begun = Instant::now();
    while !is_true() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        thread::yield_now();
    }
}

#[test]
fn what_comes_before_its_turn_waits_for_it() {
    let scratch = Scratch::new("holes");
    let (log, mut shards) = begin(files(&scratch.0, &small()), &empty(), small(), 2);
    let (first, second) = (shards[0].log.allocate(1), shards[1].log.allocate(1));
    let third = shards[0].log.allocate(1);
    let mut batch = shards[1].log.batch(5);
    batch.push(second, b"second");
    shards[1].log.submit(batch);
    eventually(|| log.shared().metrics().waiting_batches == 1, "the batch arrives");
    assert_eq!(log.shared().durable_lsn(), Lsn::ZERO);
    assert_eq!(log.shared().metrics().log.records, 0);
    let mut batch = shards[0].log.batch(5);
    batch.push(first, b"first");
    batch.push(third, b"third");
    shards[0].log.submit(batch);
    shards[1].wait_durable(third);
    assert_eq!(shards[0].bell.count(), 0, "who does not wait is not woken");
    log.close().unwrap();
    let (records, recovered) = read(&scratch.0);
    let expected = [(1, b"first".to_vec()), (2, b"second".to_vec()), (3, b"third".to_vec())];
    assert_eq!(records, expected);
    assert!(recovered.cut().is_none() && recovered.line().unwrap().contains("up to LSN 3: 3 records"));
}

#[test]
fn a_record_that_never_came_is_said_at_the_end() {
    let scratch = Scratch::new("hole");
    let (log, mut shards) = begin(files(&scratch.0, &small()), &empty(), small(), 1);
    let _ = shards[0].log.allocate(1);
    shards[0].submit(&[b"second"]);
    let error = log.close().unwrap_err();
    assert!(error.contains("LSN 2") && error.contains("LSN 1 was given"), "{error}");
    assert_eq!(read(&scratch.0).0, []);
}

#[test]
fn restarts_go_on_where_the_log_ended() {
    let mut random = Random::new("restarts_go_on_where_the_log_ended");
    let scratch = Scratch::new("restarts");
    let (mut start, mut expected) = (empty(), Records::new());
    for round in 0..8 {
        let (log, mut shards) = begin(files(&scratch.0, &small()), &start, small(), 1);
        assert_eq!(log.shared().durable_lsn(), start.next_lsn.previous());
        for _ in 0..random.below(200) {
            let payload = vec![round as u8; random.below(2000) as usize];
            shards[0].admit(payload.len() + 8);
            let lsn = shards[0].submit(&[&payload]);
            expected.push((lsn.0, payload));
        }
        if random.below(2) == 0 {
            log.close().unwrap();
        } else {
            // What is durable is there; what is not may be.
            shards[0].wait_durable(log.shared().allocated_lsn());
            log.abandon();
        }
        let (records, recovered) = read(&scratch.0);
        assert_eq!(records, expected);
        assert_eq!(recovered.start.epoch, Epoch(1));
        start = recovered.start;
    }
    for entry in fs::read_dir(&scratch.0).unwrap() {
        let mode = entry.unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

#[test]
fn what_is_durable_is_in_the_files_whenever_the_log_ends() {
    let mut random = Random::new("what_is_durable_is_in_the_files_whenever_the_log_ends");
    for _ in 0..10 {
        let scratch = Scratch::new("abandon");
        let policy = [FlushPolicy::EveryBlock, FlushPolicy::OnRequest][random.below(2) as usize];
        let options = LogOptions { policy, flush_period: Duration::from_millis(2), ..small() };
        let (log, mut shards) = begin(files(&scratch.0, &options), &empty(), options, 1);
        let count = 50 + random.below(500);
        for lsn in 1..=count {
            let payload = lsn.to_le_bytes().repeat(1 + random.below(40) as usize);
            shards[0].admit(payload.len() + 8);
            shards[0].submit(&[&payload]);
        }
        shards[0].wait_durable(Lsn(1 + random.below(count)));
        let durable = log.shared().durable_lsn();
        log.abandon();
        let (records, _) = read(&scratch.0);
        assert!(records.len() as u64 >= durable.0, "{} of {durable}", records.len());
        for (index, (lsn, payload)) in records.into_iter().enumerate() {
            assert_eq!(lsn, index as u64 + 1);
            assert!(payload.chunks(8).all(|chunk| chunk == lsn.to_le_bytes()));
        }
    }
}

/// The writer of the test after this one, in a process of its own that is killed; by itself it writes a little.
#[test]
fn a_writer_says_what_is_durable() {
    let scratch = Scratch::new("writer");
    let victim = std::env::var("MILLRACE_LOG_TEST_VICTIM").ok();
    let mut words = victim.as_deref().unwrap_or("direct always").split(' ');
    let write_mode: LogWriteMode = words.next().unwrap().parse().unwrap();
    let policy = match words.next().unwrap() {
        "always" => FlushPolicy::EveryBlock,
        _ => FlushPolicy::OnRequest,
    };
    let directory = words.next().map_or(scratch.0.clone(), PathBuf::from);
    let options = LogOptions { write_mode, policy, flush_period: Duration::from_millis(20), ..small() };
    let start = read(&directory).1.start;
    let first = start.next_lsn.0;
    let (log, mut shards) = begin(files(&directory, &options), &start, options, 1);
    let mut lsn = first;
    while victim.is_some() || lsn < first + 300 {
        let payload = lsn.to_le_bytes().repeat(1 + lsn as usize % 200);
        shards[0].admit(payload.len() + 8);
        shards[0].submit(&[&payload]);
        lsn += 1;
        if lsn.is_multiple_of(5) {
            if policy == FlushPolicy::EveryBlock {
                shards[0].wait_durable(Lsn(lsn - 1));
            }
            println!("\ndurable {}", log.shared().durable_lsn());
        }
    }
    log.close().unwrap();
    let (records, _) = read(&directory);
    assert!(
        records.iter().all(|(lsn, payload)| *payload == lsn.to_le_bytes().repeat(1 + *lsn as usize % 200))
    );
    assert_eq!(records.len(), 300);
}

#[test]
fn a_killed_process_leaves_all_that_it_said_was_durable() {
    let mut random = Random::new("a_killed_process_leaves_all_that_it_said_was_durable");
    for mode in ["direct always", "dsync always", "fdatasync always", "direct everysec"] {
        let scratch = Scratch::new("kill");
        for _ in 0..3 {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "a_writer_says_what_is_durable", "--nocapture"])
                .env("MILLRACE_LOG_TEST_VICTIM", format!("{mode} {}", scratch.0.display()))
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let lines = BufReader::new(child.stdout.take().unwrap()).lines();
            // `everysec` has nothing to say for a while.
            let said = |line: String| {
                line.strip_prefix("durable ").and_then(|lsn| lsn.parse::<u64>().ok()).filter(|&lsn| lsn > 0)
            };
            let (mut durable, mut left) = (0, 20 + random.below(300));
            for line in lines.map_while(Result::ok).filter_map(said) {
                durable = line;
                left = left.saturating_sub(1);
                if left == 0 {
                    child.kill().unwrap();
                }
            }
            child.wait().unwrap();
            let (records, _) = read(&scratch.0);
            assert!(durable > 0 && records.len() as u64 >= durable, "{mode}: {} of {durable}", records.len());
            for (index, (lsn, payload)) in records.into_iter().enumerate() {
                assert_eq!(lsn, index as u64 + 1);
                assert_eq!(payload, lsn.to_le_bytes().repeat(1 + lsn as usize % 200), "{mode}");
            }
        }
    }
}

type Rule = Box<dyn Fn(&Action) -> Option<Errno> + Send + Sync>;

/// Files that fail where a rule says so.
struct Rigged {
    files: LogFiles,
    rule: Rule,
}

impl LogDisk for Rigged {
    fn perform(&self, operation: Operation) -> Completion {
        match (self.rule)(&operation.action) {
            None => self.files.perform(operation),
            Some(errno) => {
                let buffer = match operation.action {
                    Action::Write { buffer, .. } => Some(buffer),
                    _ => None,
                };
                Completion { id: operation.id, result: Err(errno), buffer }
            }
        }
    }
}

/// Holds the disk up. It opens when the test ends, however it does: a log that closes waits for its disk.
struct Gate(Arc<Door>);

#[derive(Default)]
struct Door {
    is_open: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    fn new(is_open: bool) -> Gate {
        Gate(Arc::new(Door { is_open: Mutex::new(is_open), ..Door::default() }))
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.0.set(true);
    }
}

impl Door {
    fn set(&self, is_open: bool) {
        *self.is_open.lock().unwrap_or_else(PoisonError::into_inner) = is_open;
        self.changed.notify_all();
    }

    fn pass(&self) {
        drop(self.changed.wait_while(self.is_open.lock().unwrap(), |is_open| !*is_open).unwrap());
    }
}

fn rigged(directory: &Path, options: &LogOptions, rule: Rule) -> Rigged {
    Rigged { files: files(directory, options), rule }
}

fn is_block(action: &Action) -> bool {
    matches!(action, Action::Write { file: FileName::Segment(_), .. })
}

fn is_segment_flush(action: &Action) -> bool {
    matches!(action, Action::Flush { file: FileName::Segment(_) })
}

/// Files of which every block takes so long.
struct Slow {
    files: LogFiles,
    block: Duration,
}

impl LogDisk for Slow {
    fn perform(&self, operation: Operation) -> Completion {
        if is_block(&operation.action) {
            thread::sleep(self.block);
        }
        self.files.perform(operation)
    }
}

#[test]
fn the_log_remembers_when_a_block_was_written_and_durable() {
    let scratch = Scratch::new("times");
    let options = LogOptions { idle_period: Duration::from_millis(20), ..small() };
    let block = Duration::from_millis(15);
    let slow = Slow { files: files(&scratch.0, &options), block };
    let (thread, mut shards) = begin(slow, &empty(), options, 1);
    let shard = &mut shards[0];
    let mut done = 0;
    for round in 0..4 {
        let before = reactor::clock::monotonic_ns();
        shard.admit(100);
        let last = shard.submit(&[b"one", b"two"]);
        shard.wait_durable(last);
        let after = reactor::clock::monotonic_ns();
        let took = shard.log.shared().block_times(last).expect("it was a moment ago");
        assert_eq!(shard.log.shared().block_times(last.previous()), Some(took), "both are in one block");
        assert!(before <= took.begun_ns && took.ended_ns <= after, "{took:?} between {before} and {after}");
        assert!(took.begun_ns >= done, "round {round}: not with the block before, nor with a mark");
        assert!(took.elapsed_us() >= 15_000, "{took:?}");
        done = took.ended_ns;
        // An idle log writes a mark: no record's block.
        let writes = shard.log.shared().metrics().log.writes;
        eventually(|| shard.log.shared().metrics().log.writes > writes, "a mark");
    }
    let shared = Arc::clone(shard.log.shared());
    assert_eq!(shared.block_times(shared.allocated_lsn().next()), None, "nobody has written that");
    assert_eq!(shared.block_times(Lsn(0)), None, "that was before this process");
    drop(shards);
    thread.close().unwrap();
}

#[test]
fn a_failed_write_or_flush_is_the_end_of_acknowledging() {
    let every_second =
        LogOptions { policy: FlushPolicy::OnRequest, flush_period: Duration::from_millis(1), ..small() };
    type Kind = fn(&Action) -> bool;
    for (options, kind, word) in
        [(small(), is_block as Kind, "writing"), (every_second, is_segment_flush as Kind, "flushing")]
    {
        let scratch = Scratch::new("eio");
        let count = Arc::new(AtomicU64::new(0));
        let rule: Rule = {
            let count = Arc::clone(&count);
            // The third fails, and then never again: whoever tried once more would take it for a success.
            Box::new(move |action| {
                (kind(action) && count.fetch_add(1, Ordering::Relaxed) == 2).then_some(Errno::EIO)
            })
        };
        let (log, mut shards) = begin(rigged(&scratch.0, &options, rule), &empty(), options, 1);
        let shard = &mut shards[0];
        let mut last = Lsn::ZERO;
        while log.shared().is_open() {
            if shard.log.admit(100).is_ok() {
                last = shard.submit(&[&[7; 92]]);
                // Until it is durable, or never.
                while shard.log.wait_for(last) {
                    thread::yield_now();
                }
            }
        }
        let LogState::Failed(failure) = shard.wait_state(|state| matches!(state, LogState::Failed(_))) else {
            unreachable!("waited for it")
        };
        let durable = log.shared().durable_lsn();
        assert_eq!(failure.durable_lsn, durable);
        assert!(durable < last, "the last record was not acknowledged");
        let text = failure.to_string();
        assert!(text.contains(word) && text.contains("log-") && text.contains("EIO"), "{text}");
        assert!(word == "flushing" || text.contains("at offset "), "{text}");
        assert_eq!(shard.log.admit(8), Err(Refusal::Failed));
        // What is submitted nevertheless is not written, and nobody waits for it.
        let performed = count.load(Ordering::Relaxed);
        let late = shard.submit(&[b"late"]);
        assert!(!shard.log.wait_for(late));
        eventually(|| log.shared().pending_bytes() == 0, "memory is given back");
        assert_eq!(log.shared().durable_lsn(), durable);
        assert_eq!(log.close().unwrap_err(), text);
        assert_eq!(count.load(Ordering::Relaxed), performed, "nothing was tried again");
        let (records, recovered) = read(&scratch.0);
        assert!(records.len() as u64 >= durable.0);
        assert!(recovered.start.next_lsn > durable);
    }
}

#[test]
fn a_full_disk_refuses_before_execution_and_resumes_by_itself() {
    let scratch = Scratch::new("full");
    let options = LogOptions { retry_period: Duration::from_millis(5), ..small() };
    let is_full = Arc::new(AtomicU64::new(0));
    let rule: Rule = {
        let is_full = Arc::clone(&is_full);
        Box::new(move |action| {
            let takes_space = matches!(action, Action::Reserve { .. });
            (takes_space && is_full.load(Ordering::Relaxed) == 1).then_some(Errno::ENOSPC)
        })
    };
    let (log, mut shards) = begin(rigged(&scratch.0, &options, rule), &empty(), options, 1);
    let shard = &mut shards[0];
    let mut expected = Records::new();
    for _ in 0..3 {
        is_full.store(1, Ordering::Relaxed);
        // What is prepared can still be filled.
        let refusal = loop {
            let seen = shard.bell.count();
            shard.log.wait_for_room();
            match shard.log.admit(5008) {
                Ok(()) => {
                    let payload = vec![expected.len() as u8; 5000];
                    let lsn = shard.submit(&[&payload]);
                    expected.push((lsn.0, payload));
                }
                Err(Refusal::Busy) => shard.bell.wait_beyond(seen),
                Err(refusal) => break refusal,
            }
        };
        assert_eq!(refusal, Refusal::Full);
        // Everything that was admitted becomes durable nevertheless.
        shard.wait_durable(Lsn(expected.len() as u64));
        let state = shard.wait_state(|state| matches!(state, LogState::Full(_)));
        let text = state.to_string();
        assert!(text.contains("ENOSPC") && text.contains("free space"), "{text}");
        is_full.store(0, Ordering::Relaxed);
        shard.wait_state(|state| *state == LogState::Open);
        shard.admit(5008);
    }
    log.close().unwrap();
    assert_eq!(read(&scratch.0).0, expected);
}

#[test]
fn a_disk_that_is_full_from_the_start_is_waited_for() {
    let scratch = Scratch::new("full-start");
    let options = LogOptions { retry_period: Duration::from_millis(5), ..small() };
    let failures = Arc::new(AtomicU64::new(4));
    let rule: Rule = {
        let failures = Arc::clone(&failures);
        Box::new(move |action| {
            let fails = matches!(action, Action::Create { .. })
                && failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok();
            fails.then_some(Errno::ENOSPC)
        })
    };
    let (log, mut shards) = begin(rigged(&scratch.0, &options, rule), &empty(), options, 1);
    assert_eq!(shards[0].log.admit(8), Err(Refusal::Full));
    shards[0].wait_state(|state| *state == LogState::Open);
    shards[0].admit(8);
    let lsn = shards[0].submit(&[b""]);
    shards[0].wait_durable(lsn);
    assert_eq!(failures.load(Ordering::Relaxed), 0);
    log.close().unwrap();
}

#[test]
fn a_record_larger_than_all_that_is_prepared_is_made_room_for() {
    let scratch = Scratch::new("large");
    let options = LogOptions { pending_bytes_max: 1 << 20, ..small() };
    let (log, mut shards) = begin(files(&scratch.0, &options), &empty(), options, 1);
    let shard = &mut shards[0];
    let payload: Vec<u8> = (0..3_000_000_u32).map(|n| (n >> 3) as u8).collect();
    assert_eq!(shard.log.admit(payload.len() + 8), Err(Refusal::Busy));
    shard.admit(payload.len() + 8);
    let lsn = shard.submit(&[&payload]);
    shard.wait_durable(lsn);
    log.close().unwrap();
    assert_eq!(read(&scratch.0).0, [(1, payload)]);
}

#[test]
fn memory_that_is_pending_is_bounded() {
    let scratch = Scratch::new("pending");
    let options = LogOptions { pending_bytes_max: 100_000, ..small() };
    let gate = Gate::new(true);
    let rule: Rule = {
        let gate = Arc::clone(&gate.0);
        Box::new(move |action| {
            if is_block(action) {
                gate.pass();
            }
            None
        })
    };
    let (log, mut shards) = begin(rigged(&scratch.0, &options, rule), &empty(), options, 1);
    // Dropped before the log, which waits for it.
    let gate = gate;
    gate.0.set(false);
    let shard = &mut shards[0];
    let mut last = Lsn::ZERO;
    while shard.log.admit(1008).is_ok() {
        last = shard.submit(&[&[1; 1000]]);
    }
    let pending = log.shared().pending_bytes();
    assert!(pending <= 100_000 && last > Lsn(5), "{pending} bytes, {last}");
    let seen = shard.bell.count();
    shard.log.wait_for_room();
    assert_eq!(shard.log.admit(1008), Err(Refusal::Busy));
    gate.0.set(true);
    shard.bell.wait_beyond(seen);
    shard.wait_durable(last);
    eventually(|| log.shared().pending_bytes() == 0, "what is durable takes no memory");
    assert!(shard.log.admit(1008).is_ok());
    log.close().unwrap();
}

#[test]
fn everysec_flushes_when_it_is_time_and_when_it_is_asked() {
    let scratch = Scratch::new("everysec");
    let options = LogOptions { policy: FlushPolicy::OnRequest, ..small() };
    let hourly = LogOptions { flush_period: Duration::from_secs(3600), ..options.clone() };
    let (log, mut shards) = begin(files(&scratch.0, &hourly), &empty(), hourly, 1);
    let lsn = shards[0].submit(&[b"one", b"two"]);
    assert!(shards[0].log.wait_for(lsn), "nothing flushes it by itself");
    shards[0].log.request_flush();
    shards[0].wait_durable(lsn);
    let lsn = shards[0].submit(&[b"three"]);
    log.set_policy(FlushPolicy::EveryBlock);
    shards[0].wait_durable(lsn);
    log.close().unwrap();
    let start = read(&scratch.0).1.start;
    let often = LogOptions { flush_period: Duration::from_millis(10), ..options };
    let (log, mut shards) = begin(files(&scratch.0, &often), &start, often, 1);
    let lsn = shards[0].submit(&[b"four"]);
    shards[0].wait_durable(lsn);
    log.close().unwrap();
    assert_eq!(read(&scratch.0).0.len(), 4);
}

/// A second's writes of a fast server are more than the bound on memory: under `everysec` shards once stood still from then
/// on until the flush, a third of the time.
#[test]
fn under_everysec_what_is_written_takes_no_memory_until_it_is_flushed() {
    let scratch = Scratch::new("written");
    let options = LogOptions {
        policy: FlushPolicy::OnRequest,
        flush_period: Duration::from_secs(3600),
        pending_bytes_max: 100_000,
        ..small()
    };
    let (log, mut shards) = begin(files(&scratch.0, &options), &empty(), options, 1);
    let mut last = Lsn::ZERO;
    for _ in 0..1000 {
        shards[0].admit(1008);
        last = shards[0].submit(&[&[1; 1000]]);
    }
    assert!(log.shared().durable_lsn() < last, "nobody asked for a flush");
    log.close().unwrap();
}

/// `everysec` promises that no more than a second is lost, also on a disk that takes its time.
#[test]
fn under_everysec_nothing_more_is_taken_while_a_flush_takes_too_long() {
    let scratch = Scratch::new("late");
    let options =
        LogOptions { policy: FlushPolicy::OnRequest, flush_period: Duration::from_millis(950), ..small() };
    let gate = Gate::new(false);
    let rule: Rule = {
        let gate = Arc::clone(&gate.0);
        Box::new(move |action| {
            if is_segment_flush(action) {
                gate.pass();
            }
            None
        })
    };
    let (log, mut shards) = begin(rigged(&scratch.0, &options, rule), &empty(), options, 1);
    // Dropped before the log, which waits for it.
    let gate = gate;
    let shard = &mut shards[0];
    shard.admit(1008);
    let last = shard.submit(&[&[1; 1000]]);
    eventually(|| shard.log.admit(1008) == Err(Refusal::Busy), "the flush is late");
    assert!(log.shared().durable_lsn() < last);
    let seen = shard.bell.count();
    shard.log.wait_for_room();
    gate.0.set(true);
    shard.bell.wait_beyond(seen);
    shard.admit(1008);
    assert!(log.shared().durable_lsn() >= last);
    log.close().unwrap();
}

/// What was acknowledged under `everysec` stayed in this process until the flush: the end of the process alone, which Redis
/// survives without a loss, took up to a second of it.
#[test]
fn everysec_hands_records_to_the_system_long_before_it_flushes() {
    let scratch = Scratch::new("everysec-write");
    let hours = Duration::from_secs(3600);
    let options =
        LogOptions { policy: FlushPolicy::OnRequest, flush_period: hours, idle_period: hours, ..small() };
    let (log, mut shards) = begin(files(&scratch.0, &options), &empty(), options, 1);
    for number in 1..=3 {
        let lsn = shards[0].submit(&[b"one", b"two"]);
        // The mark of the start is a write, too.
        eventually(|| log.shared().metrics().log.writes == 1 + number, "it is written");
        assert!(log.shared().durable_lsn() < lsn, "and not flushed");
    }
    log.abandon();
    assert_eq!(read(&scratch.0).0.len(), 6);
}

fn set(key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    Mutation::Set { key, value, expires_at: None, encoding: Encoding::Auto }.encode(&mut bytes);
    bytes
}

/// A log of `count` records, a block each, ended as a crash would. Nothing but records says what is durable.
fn sample(directory: &Path, count: u64, value_bytes: usize) {
    let options = LogOptions { idle_period: Duration::from_secs(3600), ..small() };
    let start = read(directory).1.start;
    let (log, mut shards) = begin(files(directory, &options), &start, options, 1);
    for number in 0..count {
        let payload = set(format!("key-{number}").as_bytes(), &vec![b'v'; value_bytes]);
        shards[0].admit(payload.len() + 8);
        let lsn = shards[0].submit(&[&payload]);
        shards[0].wait_durable(lsn);
    }
    log.abandon();
}

/// The blocks with records of a directory's log: file and offset.
fn blocks(directory: &Path) -> Vec<(PathBuf, u64)> {
    let mut paths: Vec<PathBuf> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "wal"))
        .collect();
    paths.sort();
    let mut found = Vec::new();
    for path in paths {
        for (page, bytes) in fs::read(&path).unwrap().chunks(4096).enumerate() {
            // The magic, and the number of frames.
            if bytes.starts_with(b"MRLB") && bytes[48..52] != [0; 4] {
                found.push((path.clone(), page as u64 * 4096));
            }
        }
    }
    found
}

fn overwrite(path: &Path, offset: u64, bytes: &[u8]) {
    fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, offset).unwrap();
}

fn tool(arguments: &[&str], directory: &Path) -> Output {
    Command::new(BINARY).arg("log").args(arguments).arg(directory).output().unwrap()
}

/// What a tool printed and said, and its exit code.
fn answer(arguments: &[&str], directory: &Path) -> (Option<i32>, String, String) {
    let output = tool(arguments, directory);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_torn_tail_is_cut_and_said() {
    let scratch = Scratch::new("torn");
    sample(&scratch.0, 5, 10_000);
    let (path, offset) = blocks(&scratch.0).pop().unwrap();
    overwrite(&path, offset + 4096, &[0; 512]);
    let (records, recovered) = read(&scratch.0);
    assert_eq!(records.len(), 4);
    let cut = recovered.cut().unwrap();
    let name = path.file_name().unwrap().to_str().unwrap();
    assert!(cut.starts_with("torn tail: ") && cut.contains(name), "{cut}");
    assert!(cut.contains(&format!("offset {offset}")) && cut.lines().count() == 1, "{cut}");
    let (code, out, _) = answer(&["verify"], &scratch.0);
    assert!(code == Some(0) && out.contains("torn tail") && out.contains("LSN 1 to 4"), "{out}");
    let (code, out, _) = answer(&["repair"], &scratch.0);
    assert!(code == Some(0) && out.contains("nothing to repair"), "{out}");
    // The next run goes on with the number that was cut, in a new file.
    sample(&scratch.0, 1, 10);
    let (records, recovered) = read(&scratch.0);
    assert_eq!((records.len(), records[4].0), (5, 5));
    assert!(recovered.cut().is_none() && recovered.start.epoch == Epoch(1));
}

#[test]
fn damage_in_the_middle_is_refused_and_repaired_only_on_demand() {
    let scratch = Scratch::new("damage");
    sample(&scratch.0, 6, 10_000);
    let (path, offset) = blocks(&scratch.0)[3].clone();
    overwrite(&path, offset + 5000, b"!");
    let before = fs::read(&path).unwrap();
    let name = path.file_name().unwrap().to_str().unwrap();
    let error = read_to(&scratch.0, None).err().unwrap().to_string();
    for word in
        [name, &format!("offset {offset}"), "expected ", "found ", "log verify", "log repair", "LSN 4"]
    {
        assert!(error.contains(word), "no {word:?} in: {error}");
    }
    let (code, out, said) = answer(&["verify"], &scratch.0);
    assert!(code == Some(1) && out.contains("damaged: ") && said.contains(name), "{out}{said}");
    let (code, _, said) = answer(&["dump"], &scratch.0);
    assert!(code == Some(1) && said.contains(name), "{said}");
    let (code, out, _) = answer(&["repair"], &scratch.0);
    assert!(code == Some(1) && out.contains("would cut the log before LSN 4"), "{out}");
    assert_eq!(fs::read(&path).unwrap(), before, "nothing is done without --yes");
    assert!(read_to(&scratch.0, None).is_err());
    let (code, out, said) = answer(&["repair", "--yes"], &scratch.0);
    assert!(
        code == Some(0) && out.contains("repaired: ") && out.contains("epoch 2 from LSN 4"),
        "{out}{said}"
    );
    let (records, recovered) = read(&scratch.0);
    assert_eq!((records.len(), recovered.start.epoch), (3, Epoch(2)));
    sample(&scratch.0, 2, 10);
    let (records, _) = read(&scratch.0);
    assert!(records.iter().map(|record| record.0).eq(1..=5));
    let (code, out, said) = answer(&["verify"], &scratch.0);
    assert!(code == Some(0) && out.ends_with("whole\n"), "{out}{said}");
}

#[test]
fn a_damaged_header_takes_its_file_out_of_the_way() {
    let scratch = Scratch::new("header");
    sample(&scratch.0, 70, 10_000);
    let mut paths: Vec<PathBuf> = blocks(&scratch.0).into_iter().map(|block| block.0).collect();
    paths.dedup();
    assert!(paths.len() > 2);
    let kept = blocks(&scratch.0).iter().filter(|block| block.0 == paths[0]).count();
    overwrite(&paths[1], 20, b"!");
    assert!(read_to(&scratch.0, None).is_err());
    let (code, out, said) = answer(&["repair"], &scratch.0);
    assert!(code == Some(1) && out.contains(".wal.damaged") && paths[1].exists(), "{out}{said}");
    let (code, out, said) = answer(&["repair", "--yes"], &scratch.0);
    assert!(code == Some(0), "{out}{said}");
    assert!(!paths[1].exists() && paths[1].with_extension("wal.damaged").exists());
    let (records, recovered) = read(&scratch.0);
    assert!(records.iter().map(|record| record.0).eq(1..=kept as u64));
    assert_eq!(recovered.start.epoch, Epoch(2));
    sample(&scratch.0, 1, 10);
    assert_eq!(read(&scratch.0).0.len(), kept + 1);
}

#[test]
fn blocks_that_contradict_each_other_can_be_repaired() {
    let scratch = Scratch::new("contradiction");
    sample(&scratch.0, 70, 10_000);
    let mut paths: Vec<PathBuf> = blocks(&scratch.0).into_iter().map(|block| block.0).collect();
    paths.dedup();
    // A segment is missing.
    fs::remove_file(&paths[1]).unwrap();
    let kept = blocks(&scratch.0).iter().filter(|block| block.0 == paths[0]).count();
    let error = read_to(&scratch.0, None).err().unwrap().to_string();
    assert!(error.contains("the records up to LSN"), "{error}");
    let (code, out, said) = answer(&["repair", "--yes"], &scratch.0);
    assert!(code == Some(0), "{out}{said}");
    let (records, _) = read(&scratch.0);
    assert_eq!(records.len(), kept);
}

#[test]
fn recovery_stops_at_an_lsn_or_a_time_and_goes_on_under_a_new_epoch() {
    let scratch = Scratch::new("until");
    let options = small();
    let (log, mut shards) = begin(files(&scratch.0, &options), &empty(), options, 1);
    for second in 1..=5_u64 {
        let mut batch = shards[0].log.batch(second * 1_000_000);
        batch.push(shards[0].log.allocate(1), format!("old {second}").as_bytes());
        shards[0].log.submit(batch);
    }
    log.close().unwrap();
    let stop = |to: &str| read_to(&scratch.0, Some(to.parse().unwrap()));
    assert_eq!(stop("@3.5").unwrap().0.len(), 3);
    assert_eq!(stop("1970-01-01T00:00:04Z").unwrap().0.len(), 4);
    let error = stop("6").err().unwrap().to_string();
    assert!(error.contains("ends with LSN 5"), "{error}");
    let (records, recovered) = stop("2").unwrap();
    assert_eq!((records.len(), recovered.start.next_lsn, recovered.start.epoch), (2, Lsn(3), Epoch(2)));
    assert!(recovered.cut().unwrap().contains("LSN 3 under epoch 2"));
    let (log, mut shards) = begin(files(&scratch.0, &small()), &recovered.start, small(), 1);
    assert_eq!(log.shared().epoch(), Epoch(2));
    let lsn = shards[0].submit(&[b"new 3"]);
    assert_eq!(lsn, Lsn(3));
    log.close().unwrap();
    let (records, recovered) = read(&scratch.0);
    assert_eq!(records, [(1, b"old 1".to_vec()), (2, b"old 2".to_vec()), (3, b"new 3".to_vec())]);
    assert_eq!(recovered.start.epoch, Epoch(2));
}

#[test]
fn a_long_recovery_reports_how_far_it_is() {
    let scratch = Scratch::new("progress");
    sample(&scratch.0, 3, 10);
    let options = RecoveryOptions { report_period: Duration::ZERO, ..RecoveryOptions::new(1) };
    let mut lines = Vec::new();
    recover(&scratch.0, options, &mut |line| lines.push(line.to_string()), |_, _, _| Ok(())).unwrap();
    assert!(
        !lines.is_empty() && lines.iter().all(|line| line.starts_with("recovering the log: ")),
        "{lines:?}"
    );
    let refused = recover(&scratch.0, options, &mut |_| {}, |lsn, _, _| match lsn {
        Lsn(2) => Err("no such effect".into()),
        _ => Ok(()),
    });
    let text = refused.err().unwrap().to_string();
    assert!(
        text.contains("LSN 2") && text.contains("no such effect") && text.contains("--recover-to 1"),
        "{text}"
    );
}

/// Holds the lock of the directory it is given until its stdin ends; by itself it takes one of its own.
#[test]
fn a_holder_of_a_lock() {
    let scratch = Scratch::new("holder");
    let directory = std::env::var_os("MILLRACE_LOG_TEST_HOLDER").map(PathBuf::from);
    let _lock = DirectoryLock::take(directory.as_ref().unwrap_or(&scratch.0)).unwrap();
    println!("\nheld");
    if directory.is_some() {
        let _ = std::io::stdin().lines().next();
    }
}

fn holder(directory: &Path) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_holder_of_a_lock", "--nocapture"])
        .env("MILLRACE_LOG_TEST_HOLDER", directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "held"));
    child
}

#[test]
fn one_process_at_a_time_works_in_a_directory() {
    let scratch = Scratch::new("locked");
    sample(&scratch.0, 3, 10);
    let mut child = holder(&scratch.0);
    let pid = format!("process {} (", child.id());
    let refused = DirectoryLock::take(&scratch.0).unwrap_err().to_string();
    assert!(refused.contains(&pid) && refused.contains("a_holder_of_a_lock"), "{refused}");
    let (code, _, said) = answer(&["repair"], &scratch.0);
    assert!(code == Some(1) && said.contains(&pid), "{said}");
    let (code, out, said) = answer(&["verify"], &scratch.0);
    assert!(code == Some(0) && out.contains(&pid) && out.ends_with("whole\n"), "{out}{said}");
    // A killed process holds nothing.
    child.kill().unwrap();
    child.wait().unwrap();
    drop(DirectoryLock::take(&scratch.0).unwrap());
}

#[test]
fn the_tools_say_what_is_there() {
    let scratch = Scratch::new("tools");
    let options = small();
    let (log, mut shards) = begin(files(&scratch.0, &options), &empty(), options, 1);
    let mut several = set(b"a\"b", b"\xff\x00");
    Mutation::Remove { key: b"gone" }.encode(&mut several);
    let mut batch = shards[0].log.batch(1_795_357_800_250_000);
    for payload in [set(b"one", b"1"), several, set(b"three", "ü".as_bytes())] {
        batch.push(shards[0].log.allocate(1), &payload);
    }
    shards[0].log.submit(batch);
    log.close().unwrap();
    let (code, out, said) = answer(&["verify"], &scratch.0);
    assert_eq!(code, Some(0), "{out}{said}");
    for words in [
        "log-0000000000000001.wal  262.1 kB  epoch 1 from LSN 1  begins with LSN 1",
        "records: LSN 1 to 3, 2026-11-22T14:30:00.250000Z to 2026-11-22T14:30:00.250000Z",
        "read: 3 records",
        "it was closed",
    ] {
        assert!(out.contains(words), "no {words:?} in: {out}");
    }
    let (code, out, _) = answer(&["dump"], &scratch.0);
    let time = "\"time\":\"2026-11-22T14:30:00.250000Z\"";
    let lines = [
        format!(
            "{{\"lsn\":1,{time},\"kind\":\"set\",\"key\":\"one\",\"value\":\"1\",\"encoding\":\"auto\"}}"
        ),
        format!(
            "{{\"lsn\":2,{time},\"kind\":\"set\",\"key\":\"a\\\"b\",\"value\":{{\"hex\":\"ff00\"}},\"encoding\":\"auto\"}}"
        ),
        format!("{{\"lsn\":2,{time},\"kind\":\"remove\",\"key\":\"gone\"}}"),
        format!(
            "{{\"lsn\":3,{time},\"kind\":\"set\",\"key\":\"three\",\"value\":\"ü\",\"encoding\":\"auto\"}}"
        ),
    ];
    assert_eq!(code, Some(0));
    assert!(out.lines().eq(lines.clone()), "{out}");
    let (code, out, _) = answer(&["dump", "--from", "2", "--until", "2"], &scratch.0);
    assert!(code == Some(0) && out.lines().eq(lines[1..3].iter().cloned()), "{out}");
    let nowhere = scratch.0.join("nowhere");
    for (arguments, directory, expected, words) in [
        (&["verify"][..], &nowhere, 1, "nowhere"),
        (&["repair"], &nowhere, 1, "nowhere"),
        (&["dump", "--from", "x"], &scratch.0, 2, "--from"),
        (&["dump", "--from", "0"], &scratch.0, 2, "--from"),
        (&["erase"], &scratch.0, 2, "erase"),
    ] {
        let (code, _, said) = answer(arguments, directory);
        assert!(code == Some(expected) && said.contains(words), "{arguments:?}: {code:?} {said}");
    }
    assert!(!nowhere.exists(), "a tool makes no directory");
    let output = Command::new(BINARY).args(["--port", "7", "log", "verify", "x"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let records_of_another_kind = Scratch::new("foreign");
    let (log, mut shards) = begin(files(&records_of_another_kind.0, &small()), &empty(), small(), 1);
    shards[0].submit(&[b"\x63"]);
    log.close().unwrap();
    let (code, out, _) = answer(&["dump"], &records_of_another_kind.0);
    assert!(code == Some(1) && out.contains("\"malformed\"") && out.contains("{\"hex\":\"63\"}"), "{out}");
    assert_eq!(answer(&["verify"], &records_of_another_kind.0).0, Some(1));
}
