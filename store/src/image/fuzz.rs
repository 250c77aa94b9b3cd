//! What a target in `fuzz/` calls: any bytes as the meta of an image.
//!
//! They must be refused, or describe an image of so many regions; with regions of zeros, a keyspace is made of them.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::{PageCheck, meta};
use crate::arena::{HeapSource, SegmentSource};
use crate::keyspace::{Keyspace, KeyspaceOptions};
use crate::time::{Nanos, Now};

/// No more memory than this is made for what a meta describes.
const MEMORY_MAX: usize = 16 << 20;

/// Believes everything.
struct AnyPage;

impl PageCheck for AnyPage {
    fn check(&self, _region: u32, _page: u32, _bytes: &[u8]) -> Result<(), (u32, u32)> {
        Ok(())
    }
}

/// Memory that is used again from one input to the next, since it is never freed.
pub struct Memory(Box<dyn SegmentSource>);

impl Memory {
    /// Nothing yet.
    pub fn new() -> Memory {
        Memory(Box::new(HeapSource::with_limit(MEMORY_MAX)))
    }
}

impl Default for Memory {
    fn default() -> Memory {
        Memory::new()
    }
}

/// Any bytes as a meta. Nothing may panic, whatever they are.
pub fn fuzz_image_meta(memory: &mut Memory, input: &[u8]) {
    let now = Now { unix_us: 1_700_000_000_000_000, monotonic: Nanos(1_000_000_000) };
    let Ok(decoded) = meta::decode(input) else { return };
    assert!(meta::summary(input).is_ok(), "the beginning of a meta that is right");
    let total: usize = decoded.regions.iter().map(|region| region.bytes).sum();
    if total > MEMORY_MAX {
        return;
    }
    let options = KeyspaceOptions { hash_seed: decoded.summary.hash_seed, ..KeyspaceOptions::default() };
    let mut regions = Vec::new();
    for region in &decoded.regions {
        match memory.0.allocate(region.bytes) {
            Some(bytes) => regions.push(bytes),
            None => {
                regions.into_iter().for_each(|bytes| memory.0.release(bytes));
                return;
            }
        }
    }
    let source = core::mem::replace(&mut memory.0, Box::new(HeapSource::default()));
    memory.0 = match Keyspace::try_from_image(options, source, input, regions, Box::new(AnyPage), now) {
        Ok(mut keyspace) => {
            // Where entries should be there are zeros, and nothing may mind.
            let hash = keyspace.hash(b"key");
            assert!(keyspace.get(b"key", hash, now).is_none());
            assert_eq!(keyspace.len() as u64, decoded.summary.entries);
            keyspace.release_everything();
            keyspace.arena.take_source()
        }
        Err((_, source)) => source,
    };
}
