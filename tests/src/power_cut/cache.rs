//! The disk itself, pure: durable sectors, a volatile write cache above them, and what a power cut leaves.
//!
//! A write goes into the cache and is read back from there; a flush makes durable what was written before it. A cut
//! ends the cache: every sector that was not flushed is lost, or, where the style says so, a subset drawn from the
//! seed had reached the media by chance. Sectors are the unit, so a 4 KiB write can be torn, and each is drawn for
//! itself, so a later write can survive an earlier one. A sector written twice since the last flush may come back
//! with either content, or with the one before both.
//!
//! Fate is a function of the seed, the sector and how often that sector was written since the last flush, never of
//! what happened elsewhere: a run that is replayed meets the same fate even if the kernel orders its requests anew.
//!
//! It never makes a flushed sector volatile again, never invents bytes, and does no I/O.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::random::Random;

/// The unit that is written whole or not at all.
pub const SECTOR: usize = 512;

/// What the cache holds at most. A fuller one writes its oldest requests to the media, as a real one does; a cut
/// cannot take those any more, and [`CachedDisk::destaged`] counts them.
pub const CACHE_BYTES_MAX: usize = 64 << 20;

/// What a power cut does to the writes that were not flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutStyle {
    /// All of them are lost.
    LoseAll,
    /// A random subset of the requests survives, each of them whole: reordered, not torn.
    KeepSomeWrites,
    /// A random subset of the sectors survives: reordered and torn.
    KeepSomeSectors,
}

/// What a cut did, in sectors as they were written: one that was written twice counts twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fate {
    /// Lost.
    pub dropped: u64,
    /// Not flushed, and on the media all the same.
    pub kept: u64,
}

/// A point between two writes: a flush covers what was written before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark(u64);

/// One request in the cache.
struct Write {
    number: u64,
    offset: usize,
    data: Box<[u8]>,
}

impl Write {
    /// The sectors of the request: their number on the disk and their bytes.
    fn sectors(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let first = (self.offset / SECTOR) as u64;
        self.data.chunks(SECTOR).enumerate().map(move |(at, bytes)| (first + at as u64, bytes))
    }
}

/// A disk with a volatile write cache.
pub struct CachedDisk {
    /// What a read returns: durable, unflushed and forgotten bytes.
    current: Vec<u8>,
    /// What a cut leaves at least.
    durable: Vec<u8>,
    /// The cache, oldest request first.
    unflushed: VecDeque<Write>,
    unflushed_bytes: usize,
    /// The number of the next request.
    next: u64,
    /// Sectors that a failed flush dropped: still read back, never made durable by a later flush.
    forgotten: HashSet<u64>,
    /// Sectors that left the cache because it was full.
    pub destaged: u64,
}

impl CachedDisk {
    /// A disk of this many zero bytes, a multiple of [`SECTOR`].
    pub fn new(size: usize) -> CachedDisk {
        assert!(size > 0 && size.is_multiple_of(SECTOR), "{size} bytes are no whole number of sectors");
        CachedDisk {
            // Zeroed memory is not touched until it is written: an empty disk costs nothing.
            current: vec![0; size],
            durable: vec![0; size],
            unflushed: VecDeque::new(),
            unflushed_bytes: 0,
            next: 0,
            forgotten: HashSet::new(),
            destaged: 0,
        }
    }

    /// Bytes on the disk.
    pub fn size(&self) -> usize {
        self.current.len()
    }

    /// The bytes there, or nothing where that is beyond the end.
    pub fn read(&self, offset: u64, length: usize) -> Option<&[u8]> {
        let offset = usize::try_from(offset).ok()?;
        self.current.get(offset..offset.checked_add(length)?)
    }

    /// Takes a request into the cache. False, and nothing happened, where it is beyond the end or is not made of
    /// whole sectors.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> bool {
        let Ok(offset) = usize::try_from(offset) else { return false };
        if !offset.is_multiple_of(SECTOR) || !data.len().is_multiple_of(SECTOR) {
            return false;
        }
        let Some(place) = offset.checked_add(data.len()).and_then(|end| self.current.get_mut(offset..end))
        else {
            return false;
        };
        place.copy_from_slice(data);
        self.unflushed.push_back(Write { number: self.next, offset, data: data.into() });
        self.next += 1;
        self.unflushed_bytes += data.len();
        while self.unflushed_bytes > CACHE_BYTES_MAX {
            let oldest = self.take_oldest().expect("bytes in the cache belong to a request");
            self.destaged += (oldest.data.len() / SECTOR) as u64;
            self.make_durable(&oldest);
        }
        true
    }

    /// Where a flush that arrives now has its end: later writes are not part of it.
    pub fn mark(&self) -> Mark {
        Mark(self.next)
    }

    /// A flush succeeds: everything written before the mark is durable.
    pub fn flush(&mut self, mark: Mark) {
        while let Some(write) = self.take_oldest_before(mark) {
            self.make_durable(&write);
        }
    }

    /// A flush fails, and takes what it was to flush with it. The bytes are still read back, and a later flush may
    /// well succeed, but without them: this is what makes retrying a failed flush a bug. Returns the sectors lost.
    pub fn fail_flush(&mut self, mark: Mark) -> u64 {
        let mut lost = 0;
        while let Some(write) = self.take_oldest_before(mark) {
            for (sector, _) in write.sectors() {
                self.forgotten.insert(sector);
                lost += 1;
            }
        }
        lost
    }

    /// The power goes. Afterwards the disk holds what the media holds, and the cache is empty.
    pub fn cut(&mut self, style: CutStyle, seed: u64) -> Fate {
        // How much survives differs from cut to cut: nearly all, nearly nothing, and between.
        let keep_percent = *Random::new(seed).pick(&[5, 25, 50, 75, 95]);
        let mut times_written = HashMap::new();
        let mut drawn = |unit: u64| {
            let times: &mut u64 = times_written.entry(unit).or_default();
            *times += 1;
            let mut random = Random::new(seed ^ Random::new(unit << 20 | *times).next_u64());
            random.chance(keep_percent)
        };
        let mut fate = Fate::default();
        let writes: Vec<Write> = self.unflushed.drain(..).collect();
        self.unflushed_bytes = 0;
        for write in &writes {
            let whole = style == CutStyle::KeepSomeWrites && drawn((write.offset / SECTOR) as u64);
            for (sector, bytes) in write.sectors() {
                if whole || style == CutStyle::KeepSomeSectors && drawn(sector) {
                    self.durable[place(sector)].copy_from_slice(bytes);
                    fate.kept += 1;
                } else {
                    fate.dropped += 1;
                }
            }
        }
        let written = writes.iter().flat_map(|write| write.sectors().map(|(sector, _)| sector));
        for sector in written.chain(self.forgotten.drain()) {
            self.current[place(sector)].copy_from_slice(&self.durable[place(sector)]);
        }
        fate
    }

    fn take_oldest(&mut self) -> Option<Write> {
        let write = self.unflushed.pop_front()?;
        self.unflushed_bytes -= write.data.len();
        Some(write)
    }

    fn take_oldest_before(&mut self, mark: Mark) -> Option<Write> {
        if self.unflushed.front()?.number < mark.0 { self.take_oldest() } else { None }
    }

    fn make_durable(&mut self, write: &Write) {
        self.durable[write.offset..write.offset + write.data.len()].copy_from_slice(&write.data);
    }
}

/// Where a sector lies.
fn place(sector: u64) -> std::ops::Range<usize> {
    let start = sector as usize * SECTOR;
    start..start + SECTOR
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 8 * SECTOR;

    fn page(byte: u8) -> Vec<u8> {
        vec![byte; PAGE]
    }

    /// A disk whose first `pages` pages are durable and made of 1.
    fn disk(pages: usize) -> CachedDisk {
        let mut disk = CachedDisk::new(pages.max(4) * PAGE);
        for at in 0..pages {
            assert!(disk.write((at * PAGE) as u64, &page(1)));
        }
        disk.flush(disk.mark());
        disk
    }

    #[test]
    fn what_was_flushed_survives_every_cut() {
        for seed in 0..100 {
            for style in [CutStyle::LoseAll, CutStyle::KeepSomeWrites, CutStyle::KeepSomeSectors] {
                let mut disk = disk(2);
                disk.write(PAGE as u64, &page(2));
                disk.flush(disk.mark());
                assert_eq!(disk.cut(style, seed), Fate::default());
                assert_eq!(disk.read(0, PAGE), Some(&page(1)[..]));
                assert_eq!(disk.read(PAGE as u64, PAGE), Some(&page(2)[..]));
            }
        }
    }

    #[test]
    fn what_was_not_flushed_is_read_back_and_lost() {
        let mut disk = disk(1);
        disk.write(0, &page(2));
        assert_eq!(disk.read(0, PAGE), Some(&page(2)[..]));
        assert_eq!(disk.cut(CutStyle::LoseAll, 1), Fate { dropped: 8, kept: 0 });
        assert_eq!(disk.read(0, PAGE), Some(&page(1)[..]));
    }

    #[test]
    fn a_write_behind_the_mark_is_no_part_of_the_flush() {
        let mut disk = disk(2);
        disk.write(0, &page(2));
        let mark = disk.mark();
        disk.write(PAGE as u64, &page(2));
        disk.flush(mark);
        disk.cut(CutStyle::LoseAll, 1);
        assert_eq!(disk.read(0, 1), Some(&[2][..]));
        assert_eq!(disk.read(PAGE as u64, 1), Some(&[1][..]));
    }

    #[test]
    fn sectors_are_torn_and_requests_are_not() {
        let (mut torn, mut whole, mut lost) = (0, 0, 0);
        for seed in 0..200 {
            for style in [CutStyle::KeepSomeSectors, CutStyle::KeepSomeWrites] {
                let mut disk = disk(1);
                disk.write(0, &page(2));
                disk.cut(style, seed);
                let sectors: Vec<u8> =
                    disk.read(0, PAGE).expect("inside").chunks(SECTOR).map(|s| s[0]).collect();
                let new = sectors.iter().filter(|byte| **byte == 2).count();
                assert!(sectors.iter().all(|byte| [1, 2].contains(byte)));
                match (style, new) {
                    (CutStyle::KeepSomeWrites, 8) => whole += 1,
                    (CutStyle::KeepSomeWrites, 0) => lost += 1,
                    (CutStyle::KeepSomeWrites, _) => panic!("seed {seed}: a request was torn"),
                    _ => torn += usize::from((1..8).contains(&new)),
                }
            }
        }
        assert!(torn > 50 && whole > 50 && lost > 50, "torn {torn}, whole {whole}, lost {lost}");
    }

    #[test]
    fn a_later_write_can_survive_an_earlier_one_and_any_version_can_be_the_last() {
        let mut reordered = 0;
        let mut last = [0; 4];
        for seed in 0..300 {
            let mut disk = disk(2);
            disk.write(0, &page(2));
            disk.write(PAGE as u64, &page(2));
            disk.write(PAGE as u64, &page(3));
            disk.cut(CutStyle::KeepSomeWrites, seed);
            let (first, second) =
                (disk.read(0, 1).expect("inside")[0], disk.read(PAGE as u64, 1).expect("inside")[0]);
            reordered += usize::from(first == 1 && second > 1);
            last[second as usize] += 1;
        }
        assert!(reordered > 20 && last[1] > 20 && last[2] > 20 && last[3] > 20, "{reordered} {last:?}");
    }

    #[test]
    fn the_same_seed_is_the_same_fate_whatever_else_was_written() {
        let image = |seed: u64, neighbour_first: bool| {
            let mut disk = disk(4);
            if neighbour_first {
                disk.write(3 * PAGE as u64, &page(9));
            }
            disk.write(0, &page(2));
            disk.write(PAGE as u64, &page(2));
            if !neighbour_first {
                disk.write(3 * PAGE as u64, &page(9));
            }
            disk.cut(CutStyle::KeepSomeSectors, seed);
            disk.read(0, 4 * PAGE).expect("inside").to_vec()
        };
        let mut images = HashSet::new();
        for seed in 0..20 {
            assert_eq!(image(seed, true), image(seed, false), "seed {seed}");
            images.insert(image(seed, true));
        }
        assert!(images.len() > 10, "only {} different fates", images.len());
    }

    #[test]
    fn a_failed_flush_loses_what_it_was_to_flush_though_a_later_one_succeeds() {
        let mut disk = disk(2);
        disk.write(0, &page(2));
        assert_eq!(disk.fail_flush(disk.mark()), 8);
        assert_eq!(disk.read(0, 1), Some(&[2][..]), "it is still read back");
        disk.flush(disk.mark());
        disk.cut(CutStyle::KeepSomeSectors, 3);
        assert_eq!(disk.read(0, PAGE), Some(&page(1)[..]));
        // Written anew it is as good as any.
        disk.write(0, &page(3));
        disk.flush(disk.mark());
        disk.cut(CutStyle::LoseAll, 3);
        assert_eq!(disk.read(0, PAGE), Some(&page(3)[..]));
    }

    #[test]
    fn a_full_cache_writes_its_oldest_requests() {
        let megabyte = vec![7; 1 << 20];
        let mut disk = CachedDisk::new(CACHE_BYTES_MAX + (2 << 20));
        for at in 0..(CACHE_BYTES_MAX >> 20) + 1 {
            assert!(disk.write((at << 20) as u64, &megabyte));
        }
        assert_eq!(disk.destaged, (1 << 20) / SECTOR as u64);
        disk.cut(CutStyle::LoseAll, 1);
        assert_eq!(disk.read(0, 1), Some(&[7][..]), "the oldest had left the cache");
        assert_eq!(disk.read(1 << 20, 1), Some(&[0][..]), "the next had not");
    }

    #[test]
    fn nothing_is_written_beyond_the_end_or_in_part() {
        let mut disk = disk(4);
        assert!(!disk.write(4 * PAGE as u64, &page(1)));
        assert!(!disk.write(u64::MAX - 511, &page(1)));
        assert!(!disk.write(1, &page(1)) && !disk.write(0, &[1; 100]));
        assert_eq!(disk.read(4 * PAGE as u64 - 1, 2), None);
        assert_eq!(disk.cut(CutStyle::LoseAll, 1), Fate::default());
    }
}
