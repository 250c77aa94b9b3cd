//! One file in memory that forgets what was not flushed: the edge of these tests. And small plans to write.
#![allow(dead_code, reason = "each test uses its part")]

#[path = "../../../tests/src/random.rs"]
pub mod random;

use std::collections::BTreeSet;

use random::Random;
use snapshot::operation::{Action, Completion, Operation};
use snapshot::view::SnapshotView;
use snapshot::writer::{Plan, Refused, RegionPlan, Settings, ShardPlan, SnapshotWriter};
use wal::block::{BlockBuffer, PAGE_BYTES};
use wal::checksum::Checksum;
use wal::lsn::{Epoch, Lsn};
use wal::operation::Errno;

pub const SECTOR_BYTES: usize = 512;

pub fn checksum() -> Checksum {
    Checksum::lent(crc32c::crc32c_append).expect("crc32c computes CRC-32C")
}

/// Contents of a snapshot: a plan, and for each shard the bytes of each region.
#[derive(Clone, Debug)]
pub struct Contents {
    pub plan: Plan,
    pub bytes: Vec<Vec<Vec<u8>>>,
}

impl Contents {
    /// Shards with regions of so many pages, filled at random; some pages are zeros.
    pub fn random(random: &mut Random, shards: &[&[u64]]) -> Contents {
        let mut bytes = Vec::new();
        let shards = shards.iter().enumerate().map(|(shard, lengths)| {
            bytes.push(
                lengths
                    .iter()
                    .map(|&pages| {
                        let pages = (0..pages).flat_map(|_| match random.chance(15) {
                            true => vec![0; PAGE_BYTES],
                            false => random.bytes(PAGE_BYTES),
                        });
                        pages.collect()
                    })
                    .collect(),
            );
            let region = |(number, &pages): (usize, &u64)| RegionPlan {
                kind: 1 + (number % 2) as u32,
                number: number as u32,
                length: pages * PAGE_BYTES as u64,
            };
            let meta_bytes = random.below(300);
            ShardPlan {
                lsn: Lsn(500 + shard as u64),
                meta: random.bytes(meta_bytes),
                regions: lengths.iter().enumerate().map(region).collect(),
            }
        });
        let shards = shards.collect();
        Contents { plan: Plan { uid: random.next_u64(), epoch: Epoch(2), unix_us: 77, shards }, bytes }
    }

    /// Parts of a few pages each, every page once, in a random order.
    pub fn parts(&self, random: &mut Random, pages_max: usize) -> Vec<Part> {
        let mut parts = Vec::new();
        for (shard, regions) in self.bytes.iter().enumerate() {
            for (region, bytes) in regions.iter().enumerate() {
                let mut offset = 0;
                while offset < bytes.len() {
                    let length = ((1 + random.below(pages_max)) * PAGE_BYTES).min(bytes.len() - offset);
                    parts.push(Part { shard, region, offset, length });
                    offset += length;
                }
            }
        }
        // Mostly in order, as they come when nothing is written to the shard.
        for index in 1..parts.len() {
            if random.chance(30) {
                parts.swap(index, random.below(index));
            }
        }
        parts
    }

    pub fn part(&self, part: &Part) -> &[u8] {
        &self.bytes[part.shard][part.region][part.offset..part.offset + part.length]
    }

    /// The file, written without any accident.
    pub fn file(&self) -> Vec<u8> {
        let mut random = Random::new(1);
        let settings = Settings { buffer_bytes: 4 * PAGE_BYTES, buffers: 2 };
        let mut writer = SnapshotWriter::new(&self.plan, settings, checksum()).unwrap();
        let mut disk = Disk::default();
        for part in self.parts(&mut random, 4) {
            disk.settle(&mut writer);
            writer.handle_part(part.shard, part.region, part.offset as u64, self.part(&part)).unwrap();
        }
        writer.finish().unwrap();
        writer.handle_durable(writer.header().lsn_max);
        disk.settle(&mut writer);
        disk.named.expect("it is complete")
    }

    /// A view says what was planned, and all pages are what they were.
    #[track_caller]
    pub fn assert_is(&self, file: &[u8]) {
        let view = SnapshotView::of_file("it", file, checksum()).unwrap();
        assert_eq!(view.shards(), self.plan.shards.len());
        for (shard, plan) in self.plan.shards.iter().enumerate() {
            assert_eq!((view.lsn(shard), view.meta(shard)), (plan.lsn, plan.meta.as_slice()));
            let regions = view.regions(shard);
            assert_eq!(regions.len(), plan.regions.len());
            for (index, (region, plan)) in regions.iter().zip(&plan.regions).enumerate() {
                assert_eq!(
                    (region.kind, region.number, region.length),
                    (plan.kind, plan.number, plan.length)
                );
                let bytes = &file[region.offset as usize..][..region.length as usize];
                assert!(bytes == self.bytes[shard][index], "shard {shard} region {index}");
                for (page, bytes) in bytes.chunks(PAGE_BYTES).enumerate() {
                    view.check_page(shard, index, page as u64, bytes).unwrap();
                }
            }
        }
    }
}

/// A part of a region.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    pub shard: usize,
    pub region: usize,
    pub offset: usize,
    pub length: usize,
}

/// The file under its temporary name and under its own.
#[derive(Default)]
pub struct Disk {
    pub temporary: Option<Vec<u8>>,
    pub named: Option<Vec<u8>>,
    /// Writes since the last flush.
    pub volatile: Vec<(usize, Vec<u8>)>,
    /// What was flushed.
    pub durable: Vec<u8>,
    /// The renaming is durable.
    pub is_name_durable: bool,
    pub actions: Vec<&'static str>,
    pub longest_write: usize,
    /// The operation of this number fails.
    pub fails: Option<(usize, Errno)>,
    /// One of so many writes is short.
    pub short_writes_percent: usize,
    pub short_at: BTreeSet<usize>,
    pub random: Option<Random>,
}

impl Disk {
    /// Performs everything that is asked for.
    pub fn settle(&mut self, writer: &mut SnapshotWriter) {
        while let Some(operation) = writer.poll_operation() {
            let completion = self.perform(operation);
            writer.handle_completion(completion);
        }
    }

    pub fn perform(&mut self, operation: Operation) -> Completion {
        let id = operation.id;
        let (name, result, buffer) = match operation.action {
            action if self.fails.is_some_and(|(number, _)| number == self.actions.len()) => {
                let errno = self.fails.unwrap().1;
                match action {
                    Action::Write { buffer, .. } => ("write fails", Err(errno), Some(buffer)),
                    Action::Create => ("create fails", Err(errno), None),
                    _ => ("fails", Err(errno), None),
                }
            }
            Action::Write { offset, buffer, start } => {
                let written = self.write(offset as usize, &buffer, start);
                ("write", Ok(written), Some(buffer))
            }
            Action::Create => {
                self.temporary = Some(Vec::new());
                ("create", Ok(0), None)
            }
            Action::Reserve { length } => {
                self.temporary.as_mut().unwrap().resize(length as usize, 0);
                ("reserve", Ok(0), None)
            }
            Action::Flush => {
                self.durable.clone_from(self.temporary.as_ref().unwrap());
                self.volatile.clear();
                ("flush", Ok(0), None)
            }
            Action::Rename => {
                self.named = Some(self.temporary.take().unwrap());
                ("rename", Ok(0), None)
            }
            Action::FlushDirectory => {
                assert!(self.named.is_some());
                self.is_name_durable = true;
                ("flush directory", Ok(0), None)
            }
            Action::Delete => {
                self.temporary.take().expect("there is something to remove");
                ("delete", Ok(0), None)
            }
        };
        self.actions.push(name);
        Completion { id, result, buffer }
    }

    fn write(&mut self, offset: usize, buffer: &BlockBuffer, start: usize) -> usize {
        let bytes = &buffer.as_slice()[start..];
        assert!(offset.is_multiple_of(PAGE_BYTES) && bytes.len().is_multiple_of(PAGE_BYTES));
        assert!(bytes.as_ptr().addr().is_multiple_of(PAGE_BYTES), "not aligned for O_DIRECT");
        self.longest_write = self.longest_write.max(bytes.len());
        let random = self.random.get_or_insert(Random::new(0));
        // Never twice at one place: that might be taken for a failure.
        let is_short = random.chance(self.short_writes_percent) && self.short_at.insert(offset);
        let written = if is_short { random.below(bytes.len()) } else { bytes.len() };
        let file = self.temporary.as_mut().expect("created");
        file[offset..offset + written].copy_from_slice(&bytes[..written]);
        self.volatile.push((offset, bytes[..written].to_vec()));
        written
    }

    /// What a power cut leaves of the file under the snapshot's name, if anything has that name.
    pub fn after_a_crash(&self, random: &mut Random) -> Option<Vec<u8>> {
        let renamed = self.named.is_some() && (self.is_name_durable || random.chance(50));
        renamed.then(|| {
            let mut file = self.durable.clone();
            for (offset, bytes) in &self.volatile {
                file.resize(file.len().max(offset + bytes.len()), 0);
                for (index, sector) in bytes.chunks(SECTOR_BYTES).enumerate() {
                    if random.chance(50) {
                        file[offset + index * SECTOR_BYTES..][..sector.len()].copy_from_slice(sector);
                    }
                }
            }
            file
        })
    }
}

/// Hands a part over, however often the writer is full.
pub fn hand_over(writer: &mut SnapshotWriter, contents: &Contents, part: &Part) -> Result<(), Refused> {
    writer.handle_part(part.shard, part.region, part.offset as u64, contents.part(part))
}
