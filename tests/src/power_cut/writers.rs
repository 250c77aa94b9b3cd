//! Small writers that remember what they were promised, and an audit that looks whether it was kept.
//!
//! A [`SlotFile`] is overwritten page by page, each sector saying which slot and version it belongs to; an
//! [`AppendedLog`] grows record by record. Both write until the disk is gone. Acknowledged is what was flushed; what
//! was in flight may be there, or not, or in part. Anything else is a finding: lost where an older state is there,
//! changed where it is none that was ever written.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;

use super::cache::SECTOR;
use crate::random::Random;

/// Bytes of a slot: what O_DIRECT writes at least, and eight sectors that can be torn apart.
pub const PAGE: usize = 4096;

/// Slots in a file.
pub const SLOTS: usize = 64;

/// What an audit found.
#[derive(Debug, Default)]
pub struct Findings {
    /// Acknowledged and not there: an older state is.
    pub lost: Vec<String>,
    /// Neither what was acknowledged nor what was tried after it, nor an older state.
    pub changed: Vec<String>,
    /// Pages in flight that came back torn: proof that the cuts were no kind ones.
    pub torn: usize,
}

/// How a writer makes a slot durable.
#[derive(Clone, Copy, Debug)]
pub enum Way {
    /// O_DIRECT, then fdatasync.
    Direct,
    /// O_DIRECT and O_DSYNC.
    DirectDsync,
    /// Through the page cache, then fdatasync.
    Buffered,
}

/// A file of slots and what is known of it.
pub struct SlotFile {
    way: Way,
    path: PathBuf,
    acknowledged: Vec<u64>,
    /// Sent and not acknowledged, and again after a cut until it was: these slots may hold what was acknowledged or
    /// any of these versions, in any mix of sectors.
    in_flight: Option<(Range<usize>, Vec<u64>)>,
    /// Versions count up over all slots, so that an older state is known as such.
    next: u64,
}

impl SlotFile {
    /// Makes it and flushes it, with its directory.
    pub fn create(way: Way, directory: &Path) -> SlotFile {
        let path = directory.join(format!("{way:?}"));
        slots(&path);
        SlotFile { way, path, acknowledged: vec![0; SLOTS], in_flight: None, next: 1 }
    }

    /// Opens it, before the disk may go: a thread that comes late would find none.
    pub fn open(&self) -> File {
        match self.way {
            Way::Direct => open_direct(&self.path, 0),
            Way::DirectDsync => open_direct(&self.path, libc::O_DSYNC),
            Way::Buffered => {
                OpenOptions::new().read(true).write(true).open(&self.path).expect("the file of slots")
            }
        }
    }

    fn put(&mut self, file: &File, slots: Range<usize>) -> io::Result<()> {
        let version = self.next;
        self.next += 1;
        self.in_flight.get_or_insert((slots.clone(), Vec::new())).1.push(version);
        write_slots(file, slots.clone(), version)?;
        if matches!(self.way, Way::Direct | Way::Buffered) {
            file.sync_data()?;
        }
        self.acknowledged[slots].fill(version);
        self.in_flight = None;
        Ok(())
    }

    /// Writes until the disk is gone, a few slots at a time; tells of each that was acknowledged.
    pub fn write_on(&mut self, file: &File, seed: u64, acknowledged: &Sender<()>) {
        let mut random = Random::new(seed);
        // The first request tidies up what the last cut tore.
        let mut slots = self.in_flight.clone().map_or(0..1, |(slots, _)| slots);
        while self.put(file, slots.clone()).is_ok() {
            if acknowledged.send(()).is_err() {
                return;
            }
            let start = random.below(SLOTS);
            slots = start..(start + 1 + random.below(8)).min(SLOTS);
        }
    }

    /// Looks at the file and adds what it finds.
    pub fn audit(&self, findings: &mut Findings) {
        let bytes = fs::read(&self.path).unwrap_or_default();
        let older: Vec<u64> = (0..self.next).rev().collect();
        for slot in 0..SLOTS {
            let acknowledged = self.acknowledged[slot];
            let name = format!("{:?}, slot {slot}, version {acknowledged}", self.way);
            let Some(page) = bytes.get(slot * PAGE..(slot + 1) * PAGE) else {
                findings.lost.push(name);
                continue;
            };
            let mut fine = vec![acknowledged];
            if let Some((_, versions)) = self.in_flight.as_ref().filter(|(slots, _)| slots.contains(&slot)) {
                fine.extend(versions);
            }
            let found = versions(page, slot, &fine);
            if found.contains(&Err(())) {
                let older = versions(page, slot, &older).iter().all(Result::is_ok);
                if older { &mut findings.lost } else { &mut findings.changed }.push(name);
            } else if found.iter().any(|version| *version != found[0]) {
                findings.torn += 1;
            }
        }
    }
}

/// A log that is appended to record by record; one a round, made and flushed with its directory first.
pub struct AppendedLog {
    path: PathBuf,
    seed: u64,
    acknowledged: Vec<u8>,
}

impl AppendedLog {
    /// A log that will be at this path; the seed makes its records.
    pub fn at(path: PathBuf, seed: u64) -> AppendedLog {
        AppendedLog { path, seed, acknowledged: Vec::new() }
    }

    /// Removes the file, if it ever came to be.
    pub fn remove(self) {
        let _ = fs::remove_file(self.path);
    }

    /// Makes the file, flushes it and its directory, and appends until the disk is gone.
    pub fn write_on(&mut self, acknowledged: &Sender<()>) {
        let mut random = Random::new(self.seed);
        let Ok(mut file) = File::create_new(&self.path) else { return };
        if file.sync_all().is_err()
            || File::open(self.path.parent().expect("in a directory")).is_ok_and(|d| d.sync_all().is_err())
        {
            return;
        }
        loop {
            let length = 1 + random.below(3000);
            let record = random.bytes(length);
            if file.write_all(&record).is_err() || file.sync_data().is_err() {
                return;
            }
            self.acknowledged.extend(record);
            if acknowledged.send(()).is_err() {
                return;
            }
        }
    }

    /// Looks at the file and adds what it finds.
    pub fn audit(&self, findings: &mut Findings) {
        let found = fs::read(&self.path).unwrap_or_default();
        let name = format!("{}, {} bytes", self.path.display(), self.acknowledged.len());
        if found.len() < self.acknowledged.len() {
            findings.lost.push(format!("{name}: {} are there", found.len()));
        } else if !found.starts_with(&self.acknowledged) {
            findings.changed.push(name);
        }
    }
}

/// The page that a slot holds at a version: every sector says which it is.
pub fn page(slot: usize, version: u64) -> Vec<u8> {
    let sector = |at: usize| {
        let mut random = Random::new((slot as u64) << 40 ^ (version << 8) ^ at as u64);
        (0..SECTOR / 8).flat_map(move |_| random.next_u64().to_le_bytes())
    };
    (0..PAGE / SECTOR).flat_map(sector).collect()
}

/// A page-aligned copy: what O_DIRECT demands of memory.
pub struct Aligned {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    /// So many zeros.
    pub fn zeros(length: usize) -> Aligned {
        let memory = vec![0; length + PAGE];
        let start = memory.as_ptr().align_offset(PAGE);
        Aligned { memory, start, length }
    }

    /// These bytes.
    pub fn of(bytes: &[u8]) -> Aligned {
        let mut aligned = Aligned::zeros(bytes.len());
        aligned.bytes().copy_from_slice(bytes);
        aligned
    }

    /// The aligned bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }
}

/// A file of slots, all of them flushed at version 0.
pub fn slots(path: &Path) -> File {
    let pages: Vec<u8> = (0..SLOTS).flat_map(|slot| page(slot, 0)).collect();
    fs::write(path, pages).expect("room for the slots");
    File::open(path).expect("just written").sync_all().expect("a flush");
    flush_directory(path);
    open_direct(path, 0)
}

/// Opens past the page cache, with more flags.
pub fn open_direct(path: &Path, flags: i32) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_DIRECT | flags);
    options.open(path).expect("O_DIRECT works on ext4")
}

/// Flushes the directory that the path is in.
pub fn flush_directory(path: &Path) {
    File::open(path.parent().expect("a file is in a directory"))
        .expect("a directory")
        .sync_all()
        .expect("a flush");
}

/// Writes one slot, to a file opened either way.
pub fn write_slot(file: &File, slot: usize, version: u64) -> io::Result<()> {
    write_slots(file, slot..slot + 1, version)
}

/// One request for all of them.
pub fn write_slots(file: &File, slots: Range<usize>, version: u64) -> io::Result<()> {
    let start = (slots.start * PAGE) as u64;
    let pages: Vec<u8> = slots.flat_map(|slot| page(slot, version)).collect();
    file.write_all_at(Aligned::of(&pages).bytes(), start)
}

/// Writes the whole file again and again, and never flushes it, until the disk is gone.
pub fn make_noise(file: &File) {
    let mut noise = Aligned::zeros(SLOTS * PAGE);
    while file.write_all_at(noise.bytes(), 0).is_ok() {}
}

/// Which version each sector of a slot has: `Err` where it is none of those named.
pub fn versions(bytes: &[u8], slot: usize, known: &[u64]) -> Vec<Result<u64, ()>> {
    let pages: Vec<Vec<u8>> = known.iter().map(|&version| page(slot, version)).collect();
    let sectors = bytes.chunks(SECTOR).enumerate();
    sectors
        .map(|(at, sector)| {
            let is = |page: &Vec<u8>| page[at * SECTOR..(at + 1) * SECTOR] == *sector;
            pages.iter().position(is).map(|at| known[at]).ok_or(())
        })
        .collect()
}
