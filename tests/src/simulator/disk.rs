//! The simulated disk: it forgets what was not flushed, tears sectors, fails, fills up and flips bits.
//!
//! Writes stay volatile until they are flushed; when the power goes a random part of their 512-byte sectors is kept.
//! Creations, renames and deletions stay volatile until the directory is flushed; a random part of them is kept. A
//! flush that fails drops what it should have written, and the next one says that all is well: so do kernels. A
//! process that is killed leaves everything with the kernel, volatile still.
//!
//! Three deliberate bugs ([`Lie`]) make a server above it wrong that is right: the simulator must notice.

use super::trace;
use crate::random::Random;
use snapshot::names::{FileName as SnapshotName, SnapshotId};
use snapshot::operation::{Action as SnapshotAction, Operation as SnapshotOperation};
use std::collections::BTreeMap;
use wal::block::PAGE_BYTES;
use wal::operation::{Action, Completion, Errno, Operation, Sync};
use wal::segment::FileName;

/// What a disk writes as a whole.
const SECTOR_BYTES: usize = 512;

/// How a disk deceives the server above it: as a server would deceive its clients that had the bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// A block is said to be durable when it is written: "acknowledge before the flush".
    CompletesBeforeFlush,
    /// A write or flush that failed is said to have succeeded: "ignore a failed flush".
    HidesFailures,
    /// A snapshot's file is said to be flushed and is not: "rename before the flush".
    ForgetsSnapshots,
}

/// Of a hundred operations, how many go wrong so; and what else does.
#[derive(Clone, Copy, Debug, Default)]
pub struct Troubles {
    /// Writes of blocks that take a part only.
    pub short_writes: usize,
    /// Writes of blocks, and flushes of them, that fail.
    pub failures: usize,
    /// Everything else that fails.
    pub other_failures: usize,
    /// Operations on the files of snapshots that fail.
    pub snapshot_failures: usize,
    /// Bytes of snapshots that can be written until the disk is full: not every file system can set room aside.
    pub snapshot_room: Option<usize>,
}

/// What the disk was doing when the process ended.
#[derive(Debug)]
pub enum InFlight {
    /// For the log.
    Log(Operation),
    /// For a snapshot.
    Snapshot(SnapshotId, SnapshotOperation),
    /// An old snapshot was being removed.
    Remove(String),
}

#[derive(Clone, Debug)]
struct Written {
    offset: usize,
    bytes: Vec<u8>,
}

#[derive(Debug, Default)]
struct File {
    /// Zeros follow, up to the length.
    durable: Vec<u8>,
    /// Written and not flushed, in order.
    volatile: Vec<Written>,
    length: usize,
    durable_length: usize,
}

impl File {
    fn keep(&mut self, write: &Written, mut keeps: impl FnMut() -> bool) {
        for (index, sector) in write.bytes.chunks(SECTOR_BYTES).enumerate() {
            if keeps() {
                let start = write.offset + index * SECTOR_BYTES;
                let end = start + sector.len();
                if self.durable.len() < end {
                    self.durable.resize(end, 0);
                }
                self.durable[start..end].copy_from_slice(sector);
            }
        }
    }

    fn flush(&mut self) {
        for write in std::mem::take(&mut self.volatile) {
            self.keep(&write, || true);
        }
        self.durable_length = self.length;
    }

    /// The power is gone.
    fn tear(&mut self, random: &mut Random) {
        let percent = *random.pick(&[0, 20, 50, 90, 100]);
        for write in std::mem::take(&mut self.volatile) {
            self.keep(&write, || random.chance(percent));
        }
        if self.durable_length < self.length && random.chance(50) {
            self.durable_length = self.length;
        }
        self.length = self.durable_length;
        self.durable.truncate(self.length);
    }

    fn read(&self, bytes: &mut [u8], offset: usize) -> usize {
        let length = bytes.len().min(self.length.saturating_sub(offset));
        let bytes = &mut bytes[..length];
        bytes.fill(0);
        overlay(bytes, offset, &self.durable, 0);
        for write in &self.volatile {
            overlay(bytes, offset, &write.bytes, write.offset);
        }
        length
    }
}

/// Copies what `from`, which begins at `from_at`, has of `to`, which begins at `to_at`.
fn overlay(to: &mut [u8], to_at: usize, from: &[u8], from_at: usize) {
    let begin = to_at.max(from_at);
    let end = (to_at + to.len()).min(from_at + from.len());
    if begin < end {
        to[begin - to_at..end - to_at].copy_from_slice(&from[begin - from_at..end - from_at]);
    }
}

#[derive(Clone, Debug)]
enum Entry {
    Added(String, usize),
    Renamed(String, String),
    Removed(String),
}

fn enter(names: &mut BTreeMap<String, usize>, entry: &Entry) {
    match entry {
        Entry::Added(name, file) => drop(names.insert(name.clone(), *file)),
        Entry::Renamed(from, to) => {
            if let Some(file) = names.remove(from) {
                names.insert(to.clone(), file);
            }
        }
        Entry::Removed(name) => drop(names.remove(name)),
    }
}

fn show_of_snapshot(action: &SnapshotAction) -> String {
    match action {
        SnapshotAction::Write { offset, buffer, start } => {
            format!("Write {offset} {} from {start}", buffer.as_slice().len())
        }
        other => format!("{other:?}"),
    }
}

/// An operation without the bytes.
fn show(action: &Action) -> String {
    match action {
        Action::Write { file, offset, buffer, start, sync } => {
            format!("Write {file} {offset} {} from {start} {sync:?}", buffer.as_slice().len())
        }
        other => format!("{other:?}"),
    }
}

/// See the module.
#[derive(Debug)]
pub struct Disk {
    files: Vec<File>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    volatile_entries: Vec<Entry>,
    random: Random,
    lie: Option<Lie>,
    /// Bytes that files may take.
    pub capacity: usize,
    /// What goes wrong at present.
    pub troubles: Troubles,
    /// Reads and flushes of recovery until the power goes.
    pub fuse: Option<usize>,
    /// Writes of blocks, or flushes of them, that failed.
    pub failed: u64,
    /// Snapshots that there was no room for, when they began and in the middle.
    pub without_room: (u64, u64),
}

impl Disk {
    /// An empty one.
    pub fn new(seed: u64, lie: Option<Lie>) -> Disk {
        Disk {
            files: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            volatile_entries: Vec::new(),
            random: Random::new(seed),
            lie,
            capacity: usize::MAX,
            troubles: Troubles::default(),
            fuse: None,
            failed: 0,
            without_room: (0, 0),
        }
    }

    /// Bytes that files take.
    pub fn used(&self) -> usize {
        self.names.values().map(|&file| self.files[file].length).sum()
    }

    /// Names and lengths, as a start finds them.
    pub fn list(&self) -> Vec<(String, u64)> {
        self.names.iter().map(|(name, &file)| (name.clone(), self.files[file].length as u64)).collect()
    }

    /// Reads as the kernel would; how many bytes there were.
    pub fn read(&mut self, name: &str, bytes: &mut [u8], offset: u64) -> Result<usize, Errno> {
        self.burn()?;
        let file = *self.names.get(name).ok_or(Errno(2))?;
        Ok(self.files[file].read(bytes, offset as usize))
    }

    /// Flushes a file before it is believed.
    pub fn flush(&mut self, name: &str) -> Result<(), Errno> {
        self.burn()?;
        let file = *self.names.get(name).ok_or(Errno(2))?;
        self.files[file].flush();
        Ok(())
    }

    /// Flushes the directory before it is believed.
    pub fn flush_directory(&mut self) -> Result<(), Errno> {
        self.burn()?;
        self.keep_entries();
        Ok(())
    }

    fn keep_entries(&mut self) {
        for entry in std::mem::take(&mut self.volatile_entries) {
            enter(&mut self.durable_names, &entry);
        }
    }

    fn has(&self, name: impl ToString) -> bool {
        self.names.contains_key(&name.to_string())
    }

    fn add(&mut self, name: String) {
        self.files.push(File::default());
        self.enter(Entry::Added(name, self.files.len() - 1));
    }

    /// Removes a file. Its name comes back if the power goes before the directory is flushed.
    pub fn remove(&mut self, name: &str) -> Result<(), Errno> {
        if !self.has(name) {
            return Err(Errno(2));
        }
        self.enter(Entry::Removed(name.to_string()));
        Ok(())
    }

    /// Gives a file another name, for good.
    pub fn rename(&mut self, from: &str, to: &str) -> Result<(), Errno> {
        if !self.has(from) {
            return Err(Errno(2));
        }
        self.enter(Entry::Renamed(from.to_string(), to.to_string()));
        self.keep_entries();
        Ok(())
    }

    fn burn(&mut self) -> Result<(), Errno> {
        match &mut self.fuse {
            Some(0) => Err(Errno::EIO),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn file(&mut self, name: impl ToString) -> &mut File {
        let name = name.to_string();
        let file = *self.names.get(&name).unwrap_or_else(|| panic!("{name} is not there: {:?}", self.names));
        &mut self.files[file]
    }

    /// Does an operation: it is complete.
    pub fn perform(&mut self, operation: Operation) -> Completion {
        let Operation { id, action } = operation;
        let is_block = matches!(
            action,
            Action::Write { file: FileName::Segment(_), .. } | Action::Flush { file: FileName::Segment(_) }
        );
        let percent = if is_block { self.troubles.failures } else { self.troubles.other_failures };
        trace!("disk: {}", show(&action));
        if percent > 0 && self.random.chance(percent) && !matches!(action, Action::Close { .. }) {
            trace!("disk: it fails");
            return self.fail(Operation { id, action }, is_block);
        }
        let mut returned = None;
        let result = match action {
            Action::Create { file } => {
                assert!(!self.has(file), "{file} is there");
                self.add(file.to_string());
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
                let target = self.file(file);
                // They are zeros already, as a file system promises of what was set aside.
                assert!((offset + length) as usize <= target.length && target.durable.is_empty());
                Ok(0)
            }
            Action::Write { file, offset, buffer, start, sync } => {
                let all = buffer.as_slice();
                assert!(offset.is_multiple_of(PAGE_BYTES as u64) && start.is_multiple_of(PAGE_BYTES));
                assert!(
                    all.len().is_multiple_of(PAGE_BYTES) && all.as_ptr().addr().is_multiple_of(PAGE_BYTES)
                );
                let mut length = all.len() - start;
                if is_block && self.random.chance(self.troubles.short_writes) {
                    length = self.random.below(length / SECTOR_BYTES) * SECTOR_BYTES;
                }
                let write = Written { offset: offset as usize, bytes: all[start..start + length].to_vec() };
                let sync = if self.lie == Some(Lie::CompletesBeforeFlush) { Sync::None } else { sync };
                let target = self.file(file);
                let end = write.offset + write.bytes.len();
                assert!(end <= target.length, "a write behind the end of {file}");
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
                // What is prepared must be durable, or nothing would come back at all.
                if self.lie != Some(Lie::CompletesBeforeFlush) || !is_block {
                    self.file(file).flush();
                }
                Ok(0)
            }
            Action::Rename { from, to } => {
                assert!(self.has(from) && !self.has(to), "{from} to {to}");
                self.enter(Entry::Renamed(from.to_string(), to.to_string()));
                Ok(0)
            }
            Action::Delete { file } => self.remove(&file.to_string()).map(|()| 0),
            Action::FlushDirectory => {
                self.keep_entries();
                Ok(0)
            }
            Action::Close { file } => {
                assert!(self.has(file));
                Ok(0)
            }
        };
        Completion { id, result, buffer: returned }
    }

    fn enter(&mut self, entry: Entry) {
        enter(&mut self.names, &entry);
        self.volatile_entries.push(entry);
    }

    /// Does an operation on the file of a snapshot: it is complete.
    pub fn perform_of_snapshot(&mut self, snapshot: SnapshotId, operation: SnapshotOperation) -> Completion {
        let SnapshotOperation { id, action } = operation;
        let temporary = SnapshotName::Temporary(snapshot).to_string();
        trace!("disk: {temporary}: {}", show_of_snapshot(&action));
        if self.random.chance(self.troubles.snapshot_failures) {
            trace!("disk: it fails");
            let mut random = Random::new(self.random.next_u64());
            let returned = match action {
                SnapshotAction::Write { buffer, .. } => Some(buffer),
                SnapshotAction::Flush => {
                    self.drop_volatile(temporary, &mut random);
                    None
                }
                _ => None,
            };
            return Completion { id, result: Err(Errno::EIO), buffer: returned };
        }
        let mut returned = None;
        let result = match action {
            SnapshotAction::Create => {
                self.add(temporary);
                Ok(0)
            }
            SnapshotAction::Reserve { length } => match self.used() + length as usize > self.capacity {
                true => {
                    self.without_room.0 += 1;
                    Err(Errno::ENOSPC)
                }
                false => {
                    self.file(temporary).length = length as usize;
                    Ok(0)
                }
            },
            SnapshotAction::Write { offset, buffer, start } => {
                let bytes = &buffer.as_slice()[start..];
                assert!(offset.is_multiple_of(PAGE_BYTES as u64) && bytes.len().is_multiple_of(PAGE_BYTES));
                let mut length = bytes.len();
                if self.random.chance(self.troubles.short_writes) {
                    length = self.random.below(length / SECTOR_BYTES) * SECTOR_BYTES;
                }
                let room = self.troubles.snapshot_room;
                length = room.map_or(length, |room| length.min(room / SECTOR_BYTES * SECTOR_BYTES));
                self.troubles.snapshot_room = room.map(|room| room - length);
                let write = Written { offset: offset as usize, bytes: bytes[..length].to_vec() };
                self.file(temporary).volatile.push(write);
                returned = Some(buffer);
                let is_full = room.is_some() && length == 0;
                self.without_room.1 += u64::from(is_full);
                if is_full { Err(Errno::ENOSPC) } else { Ok(length) }
            }
            SnapshotAction::Flush => {
                if self.lie != Some(Lie::ForgetsSnapshots) {
                    self.file(temporary).flush();
                }
                Ok(0)
            }
            SnapshotAction::Rename => {
                let name = SnapshotName::Snapshot(snapshot).to_string();
                self.enter(Entry::Renamed(temporary, name));
                Ok(0)
            }
            SnapshotAction::FlushDirectory => {
                self.keep_entries();
                Ok(0)
            }
            SnapshotAction::Delete => self.remove(&temporary).map(|()| 0),
        };
        Completion { id, result, buffer: returned }
    }

    /// As kernels do: what could not be flushed is dropped in part, and the next flush says that all is well.
    fn fail(&mut self, operation: Operation, is_block: bool) -> Completion {
        let Operation { id, action } = operation;
        self.failed += u64::from(is_block);
        let mut random = Random::new(self.random.next_u64());
        let (mut length, mut returned) = (0, None);
        match action {
            Action::Write { file, offset, buffer, start, .. } => {
                let bytes = buffer.as_slice()[start..].to_vec();
                length = bytes.len();
                self.file(file).volatile.push(Written { offset: offset as usize, bytes });
                self.drop_volatile(file, &mut random);
                returned = Some(buffer);
            }
            Action::Flush { file } => self.drop_volatile(file, &mut random),
            // Nothing was done. Names stay volatile: no file system goes on after it has lost some.
            _ => {}
        }
        let hides = self.lie == Some(Lie::HidesFailures) && is_block;
        let result = if hides { Ok(length) } else { Err(Errno::EIO) };
        Completion { id, result, buffer: returned }
    }

    fn drop_volatile(&mut self, name: impl ToString, random: &mut Random) {
        let file = self.file(name);
        for write in std::mem::take(&mut file.volatile) {
            file.keep(&write, || random.chance(50));
        }
    }

    /// The power goes, and whatever was not flushed is kept or lost sector by sector. `in_flight` was on its way.
    pub fn cut_power(&mut self, in_flight: Vec<InFlight>) {
        let mut random = Random::new(self.random.next_u64());
        self.abandon(in_flight, &mut random);
        for entry in std::mem::take(&mut self.volatile_entries) {
            if random.chance(50) {
                enter(&mut self.durable_names, &entry);
            }
        }
        let mut survivors = Vec::new();
        for file in self.durable_names.values_mut() {
            let mut survivor = std::mem::take(&mut self.files[*file]);
            survivor.tear(&mut random);
            *file = survivors.len();
            survivors.push(survivor);
        }
        self.files = survivors;
        self.names = self.durable_names.clone();
    }

    /// The process is killed: what the kernel has, it has, and may lose yet.
    pub fn kill(&mut self, in_flight: Vec<InFlight>) {
        let mut random = Random::new(self.random.next_u64());
        self.abandon(in_flight, &mut random);
    }

    /// What was on its way is done, half done, or not done.
    fn abandon(&mut self, in_flight: Vec<InFlight>, random: &mut Random) {
        self.troubles = Troubles::default();
        for operation in in_flight {
            let (name, offset, bytes) = match operation {
                InFlight::Log(Operation {
                    action: Action::Write { file, offset, buffer, start, .. },
                    ..
                }) => (file.to_string(), offset, buffer.as_slice()[start..].to_vec()),
                InFlight::Snapshot(id, SnapshotOperation { action, .. })
                    if matches!(action, SnapshotAction::Write { .. }) =>
                {
                    let SnapshotAction::Write { offset, buffer, start } = action else { unreachable!() };
                    (SnapshotName::Temporary(id).to_string(), offset, buffer.as_slice()[start..].to_vec())
                }
                _ if random.chance(50) => continue,
                InFlight::Log(operation) => {
                    self.perform(operation);
                    continue;
                }
                InFlight::Snapshot(id, operation) => {
                    self.perform_of_snapshot(id, operation);
                    continue;
                }
                InFlight::Remove(name) => {
                    // It may have gone already.
                    let _ = self.remove(&name);
                    continue;
                }
            };
            let length = random.below(bytes.len() / SECTOR_BYTES + 1) * SECTOR_BYTES;
            let write = Written { offset: offset as usize, bytes: bytes[..length].to_vec() };
            self.file(name).volatile.push(write);
        }
    }

    /// A medium that rots: flips a bit of a sector of a segment or snapshot that was written.
    pub fn flip(&mut self) {
        let is_data = |name: &str| name.ends_with(".wal") || name.ends_with(".mrs");
        let files = self.names.iter().filter(|(name, _)| is_data(name)).map(|(_, &file)| file);
        let written: Vec<usize> = files.filter(|&file| !self.files[file].durable.is_empty()).collect();
        if written.is_empty() {
            return;
        }
        let file = *self.random.pick(&written);
        trace!("disk: a bit of file {file} of {:?} is flipped", self.names);
        let bytes = &mut self.files[file].durable;
        let at = self.random.below(bytes.len());
        bytes[at] ^= 1 << self.random.below(8);
    }
}
