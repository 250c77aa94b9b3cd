//! A disk in memory that forgets what was not flushed: the edge of these tests.
//!
//! Writes stay volatile until a flush; a crash keeps a random subset of their 512-byte sectors. Creations,
//! renames and deletions stay volatile until the directory is flushed; a crash keeps a random subset of them.
//! Operations complete in any order, writes may be short, and any operation may be made to fail. All of it
//! follows from one seed.
#![allow(dead_code, reason = "each test uses its part")]

use std::collections::BTreeMap;

use wal::block::PAGE_BYTES;
use wal::checksum::Checksum;
use wal::damage::Damage;
use wal::group_commit::GroupCommit;
use wal::lsn::Lsn;
use wal::operation::{Action, Completion, Errno, Operation, Sync};
use wal::reader::{EndOfLog, HEAD_BYTES, LogReader, ReadOptions, SegmentFile, read_all};
use wal::record::Record;
use wal::segment::{FileName, Sequence};

pub const SECTOR_BYTES: usize = 512;

pub fn checksum() -> Checksum {
    Checksum::lent(crc32c::crc32c_append).expect("crc32c computes CRC-32C")
}

/// SplitMix64.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }
}

#[derive(Clone, Debug)]
struct Volatile {
    offset: usize,
    bytes: Vec<u8>,
}

#[derive(Clone, Debug, Default)]
struct File {
    durable: Vec<u8>,
    /// Written and not flushed, in order.
    volatile: Vec<Volatile>,
    length: usize,
}

impl File {
    fn keep(&mut self, write: &Volatile, mut keeps: impl FnMut() -> bool) {
        for (index, sector) in write.bytes.chunks(SECTOR_BYTES).enumerate() {
            if keeps() {
                let start = write.offset + index * SECTOR_BYTES;
                if self.durable.len() < start + sector.len() {
                    self.durable.resize(start + sector.len(), 0);
                }
                self.durable[start..start + sector.len()].copy_from_slice(sector);
            }
        }
    }

    fn flush(&mut self) {
        for write in std::mem::take(&mut self.volatile) {
            self.keep(&write, || true);
        }
        self.durable.resize(self.length, 0);
    }

    fn tear(&mut self, random: &mut Random) {
        let percent = [0, 20, 50, 90, 100][random.below(5)];
        for write in std::mem::take(&mut self.volatile) {
            self.keep(&write, || random.chance(percent));
        }
        if self.durable.len() < self.length && random.chance(50) {
            self.durable.resize(self.length, 0);
        }
        self.length = self.durable.len();
    }
}

#[derive(Clone, Copy, Debug)]
enum Entry {
    Added(FileName, usize),
    Renamed(FileName, FileName),
    Removed(FileName),
}

fn apply(names: &mut BTreeMap<FileName, usize>, entry: Entry) {
    match entry {
        Entry::Added(name, file) => drop(names.insert(name, file)),
        Entry::Renamed(from, to) => {
            if let Some(file) = names.remove(&from) {
                names.insert(to, file);
            }
        }
        Entry::Removed(name) => drop(names.remove(&name)),
    }
}

/// Kinds of operations, to make one fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Create,
    Reserve,
    WriteZeros,
    WriteHeader,
    WriteBlock,
    Flush,
    Rename,
    Delete,
    FlushDirectory,
    Close,
}

pub fn kind(action: &Action) -> Kind {
    match action {
        Action::Create { .. } => Kind::Create,
        Action::Reserve { .. } => Kind::Reserve,
        Action::WriteZeros { .. } => Kind::WriteZeros,
        Action::Write { file: FileName::Spare(_), .. } => Kind::WriteHeader,
        Action::Write { .. } => Kind::WriteBlock,
        Action::Flush { .. } => Kind::Flush,
        Action::Rename { .. } => Kind::Rename,
        Action::Delete { .. } => Kind::Delete,
        Action::FlushDirectory => Kind::FlushDirectory,
        Action::Close { .. } => Kind::Close,
    }
}

#[derive(Debug)]
pub struct Disk {
    files: Vec<File>,
    names: BTreeMap<FileName, usize>,
    durable_names: BTreeMap<FileName, usize>,
    volatile_entries: Vec<Entry>,
    in_flight: Vec<Operation>,
    pub random: Random,
    pub capacity: usize,
    /// In percent.
    pub short_writes: usize,
    /// In percent of block writes and flushes of segments.
    pub errors: usize,
    /// The next operation of this kind fails so; it is then taken back.
    pub fail_next: Option<(Kind, Errno)>,
    pub completed: Vec<Kind>,
}

impl Disk {
    pub fn new(seed: u64) -> Disk {
        Disk {
            files: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            volatile_entries: Vec::new(),
            in_flight: Vec::new(),
            random: Random(seed),
            capacity: usize::MAX,
            short_writes: 0,
            errors: 0,
            fail_next: None,
            completed: Vec::new(),
        }
    }

    pub fn used(&self) -> usize {
        self.names.values().map(|&file| self.files[file].length).sum()
    }

    pub fn submit(&mut self, operation: Operation) {
        self.in_flight.push(operation);
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Submits all there is to do.
    pub fn take_operations(&mut self, log: &mut GroupCommit) {
        while let Some(operation) = log.poll_operation() {
            self.submit(operation);
        }
    }

    /// Completes one operation, any of them.
    pub fn complete_one(&mut self, log: &mut GroupCommit) -> bool {
        if self.in_flight.is_empty() {
            return false;
        }
        let index = self.random.below(self.in_flight.len());
        let operation = self.in_flight.swap_remove(index);
        let completion = self.perform(operation);
        log.handle_completion(completion);
        true
    }

    /// Until nothing is left to do.
    pub fn settle(&mut self, log: &mut GroupCommit) {
        loop {
            self.take_operations(log);
            if !self.complete_one(log) {
                return;
            }
        }
    }

    fn file(&mut self, name: FileName) -> &mut File {
        let file = *self.names.get(&name).unwrap_or_else(|| panic!("{name} is not there: {:?}", self.names));
        &mut self.files[file]
    }

    fn perform(&mut self, operation: Operation) -> Completion {
        let Operation { id, action } = operation;
        let kind = kind(&action);
        self.completed.push(kind);
        if let Some((which, errno)) = self.fail_next
            && which == kind
        {
            self.fail_next = None;
            let buffer = if let Action::Write { buffer, .. } = action { Some(buffer) } else { None };
            return Completion { id, result: Err(errno), buffer };
        }
        let risky = matches!(kind, Kind::WriteBlock | Kind::Flush);
        if risky && self.random.chance(self.errors) {
            return self.fail(Operation { id, action });
        }
        let mut returned = None;
        let result = match action {
            Action::Create { file } => {
                assert!(!self.names.contains_key(&file), "{file} is there");
                self.files.push(File::default());
                self.enter(Entry::Added(file, self.files.len() - 1));
                Ok(0)
            }
            Action::Reserve { file, length } => {
                if self.used() + length as usize > self.capacity {
                    Err(Errno::ENOSPC)
                } else {
                    self.file(file).length = length as usize;
                    Ok(0)
                }
            }
            Action::WriteZeros { file, offset, length } => {
                let write = Volatile { offset: offset as usize, bytes: vec![0; length as usize] };
                let target = self.file(file);
                assert!(write.offset + write.bytes.len() <= target.length);
                target.volatile.push(write);
                Ok(0)
            }
            Action::Write { file, offset, buffer, start, sync } => {
                let all = buffer.as_slice();
                assert!(offset.is_multiple_of(PAGE_BYTES as u64) && start.is_multiple_of(PAGE_BYTES));
                assert!(
                    all.len().is_multiple_of(PAGE_BYTES) && all.as_ptr().addr().is_multiple_of(PAGE_BYTES)
                );
                let mut length = all.len() - start;
                if kind == Kind::WriteBlock && self.random.chance(self.short_writes) {
                    length = self.random.below(length / SECTOR_BYTES) * SECTOR_BYTES;
                }
                let write = Volatile { offset: offset as usize, bytes: all[start..start + length].to_vec() };
                let target = self.file(file);
                assert!(
                    write.offset + write.bytes.len() <= target.length,
                    "a write behind the end of {file}"
                );
                match sync {
                    Sync::None => target.volatile.push(write),
                    Sync::Data => target.keep(&write, || true),
                    Sync::Flush => {
                        target.volatile.push(write);
                        target.flush();
                    }
                }
                returned = Some(buffer);
                Ok(length)
            }
            Action::Flush { file } => {
                self.file(file).flush();
                Ok(0)
            }
            Action::Rename { from, to } => {
                assert!(self.names.contains_key(&from) && !self.names.contains_key(&to), "{from} to {to}");
                self.enter(Entry::Renamed(from, to));
                Ok(0)
            }
            Action::Delete { file } => {
                if self.names.contains_key(&file) {
                    self.enter(Entry::Removed(file));
                    Ok(0)
                } else {
                    Err(Errno(2))
                }
            }
            Action::FlushDirectory => {
                self.flush_directory();
                Ok(0)
            }
            Action::Close { file } => {
                assert!(self.names.contains_key(&file));
                Ok(0)
            }
        };
        Completion { id, result, buffer: returned }
    }

    fn enter(&mut self, entry: Entry) {
        apply(&mut self.names, entry);
        self.volatile_entries.push(entry);
    }

    fn flush_directory(&mut self) {
        for entry in std::mem::take(&mut self.volatile_entries) {
            apply(&mut self.durable_names, entry);
        }
    }

    /// As kernels do: what could not be flushed is dropped, and the next flush says that all is well.
    fn fail(&mut self, operation: Operation) -> Completion {
        let Operation { id, action } = operation;
        let mut random = self.random.clone();
        self.random.next();
        let (name, buffer) = match action {
            Action::Write { file, offset, buffer, start, .. } => {
                let bytes = buffer.as_slice()[start..].to_vec();
                self.file(file).volatile.push(Volatile { offset: offset as usize, bytes });
                (file, Some(buffer))
            }
            Action::Flush { file } => (file, None),
            action => panic!("{action:?} is not made to fail"),
        };
        let file = self.file(name);
        let length = file.length;
        for write in std::mem::take(&mut file.volatile) {
            file.keep(&write, || random.chance(50));
        }
        file.length = length;
        Completion { id, result: Err(Errno::EIO), buffer }
    }

    /// The power fails: whatever was not flushed is kept or lost sector by sector.
    pub fn cut_power(&mut self) {
        let mut random = self.random.clone();
        self.random.next();
        self.abandon_in_flight(&mut random);
        for entry in std::mem::take(&mut self.volatile_entries) {
            if random.chance(50) {
                apply(&mut self.durable_names, entry);
            }
        }
        for file in &mut self.files {
            file.tear(&mut random);
        }
        self.names = self.durable_names.clone();
    }

    /// The process is killed: what the kernel has, it has. The next start flushes it before it believes it.
    pub fn kill(&mut self) {
        let mut random = self.random.clone();
        self.random.next();
        self.abandon_in_flight(&mut random);
        self.flush_all();
    }

    pub fn flush_all(&mut self) {
        self.flush_directory();
        for file in &mut self.files {
            file.flush();
        }
    }

    /// Operations that were on their way: done, not done, or half done.
    fn abandon_in_flight(&mut self, random: &mut Random) {
        let (errors, short_writes) = (self.errors, self.short_writes);
        (self.errors, self.short_writes) = (0, 0);
        for operation in std::mem::take(&mut self.in_flight) {
            match operation.action {
                Action::Write { file, offset, buffer, start, .. } => {
                    let bytes = buffer.as_slice()[start..].to_vec();
                    let length = random.below(bytes.len() / SECTOR_BYTES + 1) * SECTOR_BYTES;
                    let write = Volatile { offset: offset as usize, bytes: bytes[..length].to_vec() };
                    self.file(file).volatile.push(write);
                }
                _ if random.chance(50) => drop(self.perform(operation)),
                _ => {}
            }
        }
        (self.errors, self.short_writes) = (errors, short_writes);
    }

    /// Names and contents as a start finds them.
    pub fn list(&self) -> Vec<(FileName, Vec<u8>)> {
        let content = |file: &File| {
            let mut file = file.clone();
            file.flush();
            file.durable
        };
        self.names.iter().map(|(&name, &file)| (name, content(&self.files[file]))).collect()
    }

    pub fn segments(&self) -> Vec<(Sequence, Vec<u8>)> {
        let segment = |(name, bytes)| match name {
            FileName::Segment(sequence) => Some((sequence, bytes)),
            FileName::Spare(_) => None,
        };
        self.list().into_iter().filter_map(segment).collect()
    }

    pub fn spares(&self) -> Vec<Sequence> {
        let spare = |name: &FileName| match name {
            FileName::Spare(sequence) => Some(*sequence),
            FileName::Segment(_) => None,
        };
        self.names.keys().filter_map(spare).collect()
    }
}

/// A record read back, owned.
#[derive(Clone, PartialEq, Eq)]
pub struct Owned {
    pub lsn: u64,
    pub unix_us: u64,
    pub payload: Vec<u8>,
}

impl std::fmt::Debug for Owned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let start = &self.payload[..self.payload.len().min(20)];
        write!(f, "{}@{}: {} bytes, {}", self.lsn, self.unix_us, self.payload.len(), start.escape_ascii())
    }
}

impl From<Record<'_>> for Owned {
    fn from(record: Record<'_>) -> Owned {
        Owned { lsn: record.lsn.0, unix_us: record.unix_us, payload: record.payload.to_vec() }
    }
}

/// Reads a log: its records, and its end or its damage.
pub fn read(files: &[(Sequence, Vec<u8>)], options: ReadOptions) -> (Vec<Owned>, Result<EndOfLog, Damage>) {
    let files: Vec<(Sequence, &[u8])> =
        files.iter().map(|(sequence, bytes)| (*sequence, bytes.as_slice())).collect();
    let mut records = Vec::new();
    let end = read_all(&files, options, checksum(), |record| records.push(Owned::from(record)));
    (records, end)
}

/// Reads a log with and without a look at heads alone: both find the same. Where the log breaks off before what is wanted,
/// a look at heads alone may pass over a body that is torn, and find more.
pub fn assert_same(files: &[(Sequence, Vec<u8>)], options: ReadOptions) {
    let [whole, heads] = [false, true].map(|may_read_heads| {
        let (records, end) = read(files, ReadOptions { may_read_heads, ..options });
        (records, end.map(|end| EndOfLog { bytes_read: 0, ..end }))
    });
    if whole.0.is_empty() && options.from > Lsn::FIRST {
        return;
    }
    assert_eq!(heads, whole, "{options:?}");
}

/// A reader over files in memory, with the bytes it wants given to it until it hands out no more.
pub fn reader(files: &[(Sequence, Vec<u8>)], options: ReadOptions) -> LogReader {
    let heads: Vec<SegmentFile<'_>> = files
        .iter()
        .map(|(sequence, bytes)| SegmentFile {
            sequence: *sequence,
            length: bytes.len() as u64,
            head: &bytes[..bytes.len().min(HEAD_BYTES)],
        })
        .collect();
    LogReader::open(&heads, options, checksum()).expect("headers are fine")
}
