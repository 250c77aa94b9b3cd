//! What tests of images share: collecting one, checksums, and memory that is used again.

#![allow(dead_code, reason = "each test uses its part")]

use std::sync::{Arc, Mutex};

use store::arena::{HeapSource, SegmentSource};
use store::image::{ImageBegin, ImageError, ImagePart, PAGE_BYTES, PART_BYTES_MAX, PageCheck};
use store::keyspace::{Keyspace, KeyspaceOptions};
use store::time::Now;
use xxhash_rust::xxh3::xxh3_64;

/// Memory that several keyspaces take and give back.
#[derive(Clone, Default)]
pub struct SharedSource(Arc<Mutex<Memory>>);

#[derive(Default)]
struct Memory {
    heap: HeapSource,
    kept: Vec<&'static mut [u8]>,
}

impl SharedSource {
    /// Memory with anything in it.
    fn allocate_dirty(&self, bytes: usize) -> &'static mut [u8] {
        let Memory { heap, kept } = &mut *self.0.lock().unwrap();
        match kept.iter().position(|memory| memory.len() == bytes) {
            Some(at) => kept.swap_remove(at),
            None => heap.allocate(bytes).expect("memory"),
        }
    }
}

impl SegmentSource for SharedSource {
    fn allocate(&mut self, bytes: usize) -> Option<&'static mut [u8]> {
        let memory = self.allocate_dirty(bytes);
        memory.fill(0);
        Some(memory)
    }

    fn release(&mut self, memory: &'static mut [u8]) {
        let Memory { heap, kept } = &mut *self.0.lock().unwrap();
        kept.push(memory);
        if kept.len() > 200 {
            heap.release(kept.remove(0));
        }
    }
}

/// An image on its way.
pub struct Taking {
    pub begin: ImageBegin,
    pub regions: Vec<Vec<u8>>,
    seen: Vec<Vec<bool>>,
}

impl Taking {
    pub fn new(begin: ImageBegin) -> Taking {
        let regions = begin.regions.iter().map(|region| vec![0xa5; region.bytes]).collect();
        let seen = begin.regions.iter().map(|region| vec![false; region.bytes / PAGE_BYTES]).collect();
        Taking { begin, regions, seen }
    }

    pub fn put(&mut self, part: ImagePart<'_>) {
        let ImagePart { region, offset, bytes } = part;
        assert!(offset.is_multiple_of(PAGE_BYTES) && bytes.len().is_multiple_of(PAGE_BYTES));
        assert!(!bytes.is_empty() && bytes.len() <= PART_BYTES_MAX);
        self.regions[region as usize][offset..offset + bytes.len()].copy_from_slice(bytes);
        for page in offset / PAGE_BYTES..(offset + bytes.len()) / PAGE_BYTES {
            assert!(!self.seen[region as usize][page], "page {page} of region {region} came twice");
            self.seen[region as usize][page] = true;
        }
    }

    pub fn is_whole(&self) -> bool {
        self.seen.iter().flatten().all(|&seen| seen)
    }

    pub fn sums(&self) -> Sums {
        let pages = |region: &Vec<u8>| region.chunks(PAGE_BYTES).map(sum).collect();
        Sums(self.regions.iter().map(pages).collect())
    }

    /// A keyspace that lives on a copy of the image.
    pub fn restore(
        &self,
        options: KeyspaceOptions,
        source: &SharedSource,
        now: Now,
    ) -> Result<Keyspace, ImageError> {
        self.restore_with(options, source, self.sums(), now)
    }

    pub fn restore_with(
        &self,
        options: KeyspaceOptions,
        source: &SharedSource,
        sums: Sums,
        now: Now,
    ) -> Result<Keyspace, ImageError> {
        let regions = self.regions.iter().map(|bytes| {
            let region = source.allocate_dirty(bytes.len());
            region.copy_from_slice(bytes);
            region
        });
        let regions = regions.collect();
        Keyspace::from_image(
            options,
            Box::new(source.clone()),
            &self.begin.meta,
            regions,
            Box::new(sums),
            now,
        )
    }
}

/// Takes an image in one go.
pub fn take(keyspace: &mut Keyspace, now: Now) -> Taking {
    let mut taking = Taking::new(keyspace.begin_image(now).expect("nothing in the way"));
    while keyspace.image_step(1 << 20, &mut |part| taking.put(part)) {}
    assert!(taking.is_whole());
    keyspace.end_image();
    taking
}

/// Gives back what a keyspace has, but for the last of each.
pub fn dispose(mut keyspace: Keyspace, now: Now) {
    keyspace.abandon_image();
    keyspace.clear(now);
    while keyspace.compact_some(now, 1 << 20) {}
}

fn sum(page: &[u8]) -> u32 {
    xxh3_64(page) as u32
}

/// The checksums of an image's pages.
#[derive(Clone)]
pub struct Sums(pub Vec<Vec<u32>>);

impl PageCheck for Sums {
    fn check(&self, region: u32, page: u32, bytes: &[u8]) -> Result<(), (u32, u32)> {
        assert_eq!(bytes.len(), PAGE_BYTES);
        let (expected, found) = (self.0[region as usize][page as usize], sum(bytes));
        if expected == found { Ok(()) } else { Err((expected, found)) }
    }
}

/// Keys with one hash under `seed`: the first eight bytes cancel a part of the hash's secret, and what is multiplied with
/// the zero they leave does not matter.
pub fn colliding_key(seed: u64, number: u64) -> Vec<u8> {
    let secret = u64::from_le_bytes([0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe]);
    let mut key = secret.wrapping_add(seed).to_le_bytes().to_vec();
    key.extend_from_slice(&number.to_le_bytes());
    key.extend_from_slice(b"as many as wanted");
    key.truncate(32);
    key
}
