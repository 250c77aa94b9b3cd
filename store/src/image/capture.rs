//! Taking an image while the keyspace goes on.
//!
//! [`begin_image`](Keyspace::begin_image) writes the meta, seals every segment and sets the free lists aside: nothing is
//! walked. From then on records that are written go to new segments, and a page of the index is copied before it first
//! changes. [`image_step`](Keyspace::image_step) hands out the slabs of the index, with what was copied early in its place, then
//! the segments. The index comes first because nearly every write changes it; a segment that was handed out is written in
//! place again, and what died in it meanwhile is reused.
//!
//! **Memory.** Index pages copied early wait for their place: a share of those that have not gone out, and never more than
//! the index (some 10 bytes a key). Segments grow by what is written over in segments that are not handed out
//! yet: with a fraction r of the data overwritten while the image is taken, r/4 of the data at most.
//!
//! Compaction rests while an image is taken and until its slots are put in order. Everything else goes on.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::{ImageBegin, ImagePart, ImageProgress, ImageRefusal, meta};
use crate::keyspace::Keyspace;
use crate::time::Now;

/// The image being taken.
pub(crate) struct Capture {
    /// Regions of the index: those of the arena follow.
    index_regions: usize,
    total_bytes: u64,
    delivered_bytes: u64,
}

impl Keyspace {
    /// Begins an image of the keyspace as it is now, in time that depends on the number of segments and of the index's
    /// pieces only. Every byte of the regions then comes through [`image_step`](Self::image_step).
    pub fn begin_image(&mut self, now: Now) -> Result<ImageBegin, ImageRefusal> {
        if self.damage.is_some() {
            return Err(ImageRefusal::Damaged);
        }
        if self.image.is_some() {
            return Err(ImageRefusal::Running);
        }
        if self.unchecked.is_some() {
            return Err(ImageRefusal::Warming);
        }
        if self.arena.has_aside() {
            return Err(ImageRefusal::Tidying);
        }
        self.stop_compaction();
        let meta = meta::encode(self, now);
        let mut regions = Vec::new();
        self.index.begin_image(&mut regions);
        let index_regions = regions.len();
        self.arena.begin_image(&mut regions);
        let total_bytes = regions.iter().map(|region| region.bytes as u64).sum();
        self.image = Some(Box::new(Capture { index_regions, total_bytes, delivered_bytes: 0 }));
        Ok(ImageBegin { meta, regions })
    }

    /// Hands the next parts of the image to `sink`, about `budget_bytes` of them and at least a page: each page of each region
    /// exactly once, in no order. False: there are no more, and [`end_image`](Self::end_image) is next.
    pub fn image_step(&mut self, budget_bytes: usize, sink: &mut dyn FnMut(ImagePart<'_>)) -> bool {
        let Some(image) = &mut self.image else { return false };
        let mut budget = budget_bytes.max(super::PAGE_BYTES) / super::PAGE_BYTES * super::PAGE_BYTES;
        let mut counting = |part: ImagePart<'_>| {
            image.delivered_bytes += part.bytes.len() as u64;
            sink(part);
        };
        let mut done = self.index.image_step(&mut budget, &mut counting);
        done &= budget > 0 && self.arena.image_step(image.index_regions, &mut budget, &mut counting);
        debug_assert!(!done || image.delivered_bytes == image.total_bytes);
        !done
    }

    /// All parts are out: the keyspace goes on as if there had been no image.
    ///
    /// # Panics
    /// If there are parts left: [`abandon_image`](Self::abandon_image) is for that.
    pub fn end_image(&mut self) {
        let image = self.image.as_ref().expect("an image is being taken");
        assert_eq!(image.delivered_bytes, image.total_bytes, "the image is not complete");
        self.abandon_image();
    }

    /// Gives the image up, if one is being taken.
    pub fn abandon_image(&mut self) {
        if self.image.take().is_some() {
            self.index.end_image();
            self.arena.end_image();
        }
    }

    /// Whether an image that was taken, or lived on, left slots to be put in order, by
    /// [`compact_some`](Self::compact_some).
    pub fn is_tidying(&self) -> bool {
        self.image.is_none() && !self.is_unsure() && self.arena.has_aside()
    }

    /// How far the image is; `None`: none is being taken.
    pub fn image_progress(&self) -> Option<ImageProgress> {
        let image = self.image.as_ref()?;
        let (early_bytes, early_bytes_max, kept) = self.index.image_bytes();
        Some(ImageProgress {
            total_bytes: image.total_bytes,
            delivered_bytes: image.delivered_bytes,
            early_bytes,
            early_bytes_max,
            held_bytes: early_bytes + kept + self.arena.image_bytes(),
        })
    }
}
