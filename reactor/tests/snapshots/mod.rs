//! Logs and snapshots made in this process: what a start is tried on.

use reactor::clock::realtime_ns;
use reactor::io::log_files::{LogDirectory, LogFiles, LogWriteMode, checksum, list};
use reactor::io::snapshot_files::{SnapshotDisk, SnapshotFiles, snapshot_path};
use reactor::io::snapshot_map::SnapshotFile;
use reactor::io::snapshot_source::SnapshotDirectory;
use reactor::server::log_thread::{LogOptions, LogThread};
use reactor::server::recovery::{RecoverTo, RecoveryError, RecoveryOptions};
use reactor::server::snapshot_start::{Restored, Wishes, restore};
use snapshot::names::SnapshotId;
use snapshot::writer::{Outcome, Plan, Refused, RegionPlan, Settings, ShardPlan, SnapshotWriter};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use store::arena::HeapSource;
use store::engine::Seeds;
use store::image::restore::LiveCursor;
use store::keyspace::{Encoding, Keyspace, KeyspaceOptions};
use store::mutation::Mutation;
use store::time::Now;
use wal::block::{BlockHeader, PAGE_BYTES};
use wal::group_commit::Start;
use wal::lsn::{Epoch, Lsn};
use wal::segment::{FIRST_BLOCK_OFFSET, FileName, SegmentHeader};

/// The hash seed of all data made here.
pub const HASH_SEED: u64 = 0x5eed;

/// A directory of one test's own, removed with the value.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new(name: &str) -> Folder {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("millrace-start-{name}-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub fn text(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    /// From `SEED`, or a new one; printed, so that a failure can be replayed.
    pub fn new(name: &str) -> Random {
        let seed = match std::env::var("SEED") {
            Ok(seed) => seed.parse().expect("SEED is a number"),
            Err(_) => realtime_ns(),
        };
        println!("{name}: SEED={seed}");
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Some bytes, now and then many.
    pub fn value(&mut self) -> Vec<u8> {
        let length = match self.below(400) {
            0 => 100_000 + self.below(3_000_000),
            1..10 => self.below(70_000),
            _ => self.below(200),
        };
        let byte = self.next().to_le_bytes();
        (0..length as usize).map(|at| byte[at % 8].wrapping_add((at / 4096) as u8)).collect()
    }
}

pub fn now() -> Now {
    Now { unix_us: realtime_ns() / 1000, ..Now::default() }
}

/// An effect as a record.
pub fn set(key: &str, value: &[u8], expires_at: Option<u64>) -> Vec<u8> {
    let mut bytes = Vec::new();
    Mutation::Set { key: key.as_bytes(), value, expires_at, encoding: Encoding::Auto }.encode(&mut bytes);
    bytes
}

/// Records as many clients make them: keys that come and go, of all sizes, with and without an end, one by one and several
/// at once; a clearing now and then.
pub fn records(random: &mut Random, count: u64, keys: u64, clears: bool) -> Vec<Vec<u8>> {
    let soon = now().unix_ms();
    let effect = |bytes: &mut Vec<u8>, random: &mut Random| {
        let key = format!("key:{}", random.below(keys));
        let key = key.as_bytes();
        let expires_at = match random.below(10) {
            0 => Some(soon + 3_600_000 + random.below(1_000_000_000)),
            // Is over before anybody looks.
            1 => Some(soon - 1 - random.below(1_000_000)),
            _ => None,
        };
        match random.below(20) {
            0..=11 => {
                let value = random.value();
                Mutation::Set { key, value: &value, expires_at, encoding: Encoding::Auto }.encode(bytes);
            }
            12..=13 => Mutation::Append { key, bytes: b"and more" }.encode(bytes),
            14 => Mutation::WriteRange { key, offset: random.below(50), bytes: b"over" }.encode(bytes),
            15 => Mutation::SetExpiry { key, expires_at }.encode(bytes),
            _ => Mutation::Remove { key }.encode(bytes),
        }
    };
    (0..count)
        .map(|_| {
            let mut bytes = Vec::new();
            if clears && random.below(count) == 0 {
                Mutation::Clear.encode(&mut bytes);
            }
            for _ in 0..1 + random.below(10).saturating_sub(6) {
                effect(&mut bytes, random);
            }
            bytes
        })
        .collect()
}

/// What is in a keyspace, whatever its time: key, value, end.
pub type Contents = BTreeMap<Vec<u8>, (Vec<u8>, Option<u64>)>;

/// All of it that has not expired at `now`.
pub fn contents<'a>(keyspaces: impl IntoIterator<Item = &'a mut Keyspace>, now: Now) -> Contents {
    let mut all = Contents::new();
    for keyspace in keyspaces {
        let mut at = Some(LiveCursor::START);
        while let Some(cursor) = at {
            at = keyspace.for_each_live(cursor, 1 << 20, now, &mut |key, entry| {
                let before = all.insert(key.to_vec(), (entry.value.to_vec(), entry.expires_at));
                assert_eq!(before, None, "{} is there twice", key.escape_ascii());
            });
        }
        assert_eq!(keyspace.damage(), None);
    }
    all
}

/// The state after records, made by nothing but them.
pub fn state_after(records: &[Vec<u8>], now: Now) -> Contents {
    let options = KeyspaceOptions { hash_seed: HASH_SEED, ..KeyspaceOptions::default() };
    let mut keyspace = Keyspace::new(options, Box::new(HeapSource::default()));
    for record in records {
        keyspace.apply_all(record, now).unwrap();
    }
    contents([&mut keyspace], now)
}

pub fn log_options() -> LogOptions {
    LogOptions {
        segment_bytes: 1 << 20,
        block_bytes_max: 64 << 10,
        write_mode: LogWriteMode::Fdatasync,
        ..LogOptions::default()
    }
}

/// Writes records to a log and closes it.
pub fn write_log(directory: &Path, start: &Start, records: &[Vec<u8>]) {
    let options = log_options();
    let files = LogFiles::new(directory, options.write_mode);
    let (thread, mut handles) = LogThread::start(files, start, options, vec![Box::new(|| {})]).unwrap();
    let handle = &mut handles[0];
    for records in records.chunks(32) {
        let bytes = records.iter().map(|record| record.len() + 64).sum();
        while handle.admit(bytes).is_err() {
            handle.wait_for_room();
            std::thread::yield_now();
        }
        let mut batch = handle.batch(realtime_ns() / 1000);
        for record in records {
            batch.push(handle.allocate(1), record);
        }
        handle.submit(batch);
    }
    thread.close().unwrap();
}

/// A new log with these records, from LSN 1.
pub fn new_log(directory: &Path, records: &[Vec<u8>]) {
    write_log(directory, &Start::empty(realtime_ns()), records);
}

/// A start, up to a record.
pub fn start_to(
    directory: &Path,
    shards: usize,
    to: Option<u64>,
    change: impl FnOnce(&mut Wishes<'_>),
) -> Result<Restored<SnapshotFile>, RecoveryError> {
    let seed = |random| Seeds { hash: HASH_SEED, random, run_id: [0; 20] };
    let seeds: Vec<Seeds> = (0..shards as u64).map(seed).collect();
    let mut recovery = RecoveryOptions::new(realtime_ns());
    recovery.to = to.map(|lsn| RecoverTo::Lsn(Lsn(lsn)));
    let mut wishes = Wishes { seeds: &seeds, recovery, warms_fully: false, may_write: true, now: now() };
    change(&mut wishes);
    let source = SnapshotDirectory::new(directory, None);
    restore(LogDirectory::new(directory), &source, &wishes, &mut |_| {})
}

pub fn start(directory: &Path, shards: usize) -> Restored<SnapshotFile> {
    start_to(directory, shards, None, |_| {}).unwrap_or_else(|error| panic!("{error}"))
}

/// Takes a snapshot of what a directory holds: each shard as it was after its LSN.
pub fn take(directory: &Path, lsns: &[u64]) -> SnapshotId {
    take_under(directory, lsns, None)
}

/// The same under an epoch.
pub fn take_under(directory: &Path, lsns: &[u64], epoch: Option<Epoch>) -> SnapshotId {
    let mut epoch_found = Epoch::FIRST;
    let mut keyspaces: Vec<Keyspace> = Vec::new();
    for (shard, &lsn) in lsns.iter().enumerate() {
        let restored = start_to(directory, lsns.len(), Some(lsn), |_| {});
        let mut restored = restored.unwrap_or_else(|error| panic!("{error}"));
        epoch_found = restored.recovered.end.epoch;
        let mut keyspace = restored.keyspaces.swap_remove(shard);
        while keyspace.warm_step(usize::MAX) {
            keyspace.compact_some(now(), usize::MAX);
        }
        while keyspace.is_tidying() {
            keyspace.compact_some(now(), usize::MAX);
        }
        keyspaces.push(keyspace);
    }
    let lsns: Vec<Lsn> = lsns.iter().map(|&lsn| Lsn(lsn)).collect();
    write_snapshot(directory, &mut keyspaces, &lsns, epoch.unwrap_or(epoch_found))
}

/// Writes images of keyspaces.
pub fn write_snapshot(
    directory: &Path,
    keyspaces: &mut [Keyspace],
    lsns: &[Lsn],
    epoch: Epoch,
) -> SnapshotId {
    let begin = |(keyspace, &lsn): (&mut Keyspace, &Lsn)| {
        let begun = keyspace.begin_image(now()).unwrap();
        let region = |region: &store::image::RegionInfo| RegionPlan {
            kind: u32::from(region.kind.code()),
            number: region.number,
            length: region.bytes as u64,
        };
        ShardPlan { lsn, meta: begun.meta, regions: begun.regions.iter().map(region).collect() }
    };
    let shards: Vec<ShardPlan> = keyspaces.iter_mut().zip(lsns).map(begin).collect();
    let plan = Plan { uid: realtime_ns(), epoch, unix_us: now().unix_us, shards };
    let mut writer = SnapshotWriter::new(&plan, Settings::default(), checksum()).unwrap();
    let disk = SnapshotFiles::new(directory).without_direct();
    let id = writer.id();
    writer.handle_durable(Lsn::MAX);
    let pump = |writer: &mut SnapshotWriter| {
        while let Some(operation) = writer.poll_operation() {
            let completion = disk.perform(id, operation);
            writer.handle_completion(completion);
        }
    };
    for (shard, keyspace) in keyspaces.iter_mut().enumerate() {
        loop {
            let is_more = keyspace.image_step(64 << 10, &mut |part| {
                loop {
                    match writer.handle_part(shard, part.region as usize, part.offset as u64, part.bytes) {
                        Ok(()) => break,
                        Err(Refused::Full) => pump(&mut writer),
                        Err(refused) => panic!("{refused}"),
                    }
                }
            });
            if !is_more {
                break;
            }
        }
        keyspace.end_image();
    }
    writer.finish().unwrap();
    pump(&mut writer);
    assert_eq!(writer.outcome(), Outcome::Complete);
    id
}

/// The segments of a log and the first record of each, oldest first.
pub fn segments(directory: &Path) -> Vec<(PathBuf, Option<Lsn>)> {
    let of = |&(sequence, _): &(wal::segment::Sequence, u64)| {
        let path = directory.join(FileName::Segment(sequence).to_string());
        let mut head = vec![0; 2 * PAGE_BYTES];
        fs::File::open(&path).unwrap().read_exact_at(&mut head, 0).unwrap();
        let seed = SegmentHeader::decode(&head, checksum()).unwrap().seed(checksum());
        let block = BlockHeader::decode(&head[PAGE_BYTES..], FIRST_BLOCK_OFFSET, seed, checksum());
        (path, block.map(|block| block.first_whole_lsn()))
    };
    list(directory).unwrap().segments.iter().map(of).collect()
}

/// Removes the segments that hold nothing but records up to an LSN, as the log does behind a snapshot. Returns the first
/// record that is left.
pub fn release(directory: &Path, lsn: u64) -> Lsn {
    let segments = segments(directory);
    for pair in segments.windows(2) {
        if pair[1].1.is_some_and(|first| first <= Lsn(lsn + 1)) {
            fs::remove_file(&pair[0].0).unwrap();
        }
    }
    self::segments(directory).iter().find_map(|(_, first)| *first).unwrap_or(Lsn::FIRST)
}

/// Flips a bit of a file.
pub fn flip(path: &Path, offset: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 4], offset).unwrap();
}

/// Where a snapshot lies.
pub fn path_of(directory: &Path, id: SnapshotId) -> PathBuf {
    snapshot_path(directory, id)
}
