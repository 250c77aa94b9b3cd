//! Warming: a restored keyspace checks its pages in the background and moves out of the file.
//!
//! [`warm_step`](Keyspace::warm_step) goes through the regions, those of the index first. It checks what was not checked on
//! the way, then copies the region into memory from the source and gives the file's pages back to the source. Segments and long
//! records are copied in parts, for which they are sealed: overwriting a record meanwhile gives it another place, and
//! what dies in them is listed when they have moved. A slab of the index is copied in one go, two mebibytes. Where the source
//! has no memory, a region stays in the file, which is slower to write to but as good. At the end the free lists are joined
//! and everything is as if there had been no restart.
//!
//! [`check_step`](Keyspace::check_step) is the first half of it alone.

use super::{PAGE_BYTES, RegionKind};
use crate::keyspace::Keyspace;

/// How far warming has come.
#[derive(Default)]
pub(crate) struct Warming {
    region: usize,
    page: usize,
    /// All pages of so many regions, the first ones, are checked.
    pub checked_regions: usize,
    /// Of the region that is being copied: where to, and how much is there.
    copy: Option<(&'static mut [u8], usize)>,
    pub total_bytes: u64,
    pub checked_bytes: u64,
    moved_bytes: u64,
    kept_bytes: u64,
}

/// What [`Keyspace::warm_progress`] says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WarmProgress {
    /// Bytes of all regions.
    pub total_bytes: u64,
    /// Bytes of pages that were checked.
    pub checked_bytes: u64,
    /// Bytes that are no longer in the file, or no longer needed.
    pub warmed_bytes: u64,
    /// Bytes that stay in the file, for want of memory.
    pub kept_bytes: u64,
}

impl Keyspace {
    /// Goes on checking, with about `budget_bytes`, and moves nothing: for who must know that all of the image is right before
    /// anybody is served from it. To be called before the first operation and before [`warm_step`](Keyspace::warm_step), which
    /// then finds nothing to check. True: there is more to do.
    pub fn check_step(&mut self, budget_bytes: usize) -> bool {
        let mut budget = (budget_bytes / PAGE_BYTES).max(1);
        while budget > 0 && self.damage.is_none() {
            let Some(unchecked) = &mut self.unchecked else { return false };
            let Some(at) = unchecked.next_with_work() else { return false };
            let info = unchecked.regions[at].info;
            let memory = match info.kind {
                RegionKind::Index => self.index.slab_memory(info.number as usize),
                RegionKind::Segment | RegionKind::Span => self.arena.memory(info.number as usize),
            };
            let page = unchecked.regions[at].first_unchecked();
            let end = (info.bytes / PAGE_BYTES).min(page + budget);
            match unchecked.check_pages(at, memory, page..=end - 1) {
                Ok(looked_at) => budget = budget.saturating_sub(looked_at),
                Err(damage) => return self.note_damage(damage),
            }
        }
        self.damage.is_none()
    }

    /// Goes on warming, with about `budget_bytes` of checking or copying, or one slab of the index. True: there is more to do.
    pub fn warm_step(&mut self, budget_bytes: usize) -> bool {
        let mut budget = budget_bytes.max(PAGE_BYTES);
        while budget > 0 {
            if self.damage.is_some() {
                return false;
            }
            let Some(unchecked) = &self.unchecked else { return false };
            let Some(region) = unchecked.regions.get(unchecked.warm.region) else {
                self.end_warming();
                return self.is_tidying();
            };
            let (info, address) = (region.info, region.address);
            let memory = match info.kind {
                RegionKind::Index => self.index.slab_memory(info.number as usize),
                RegionKind::Segment | RegionKind::Span => self.arena.memory(info.number as usize),
            };
            if memory.as_ptr().addr() != address || !self.arena.is_mapped(memory) {
                self.end_region(true);
                continue;
            }
            let unchecked = self.unchecked.as_mut().expect("looked at above");
            let (at, page) = (unchecked.warm.region, unchecked.warm.page);
            let pages = info.bytes / PAGE_BYTES;
            if page < pages {
                // One look at the count saves looking at pages that were all used.
                let left = unchecked.regions[at].left;
                let end = if left == 0 { pages } else { pages.min(page + (budget / PAGE_BYTES).max(1)) };
                match unchecked.check_pages(at, memory, page..=end - 1) {
                    Ok(looked_at) => budget = budget.saturating_sub(looked_at * PAGE_BYTES),
                    Err(damage) => return self.note_damage(damage),
                }
                unchecked.warm.page = end;
                // Pages looked through are not free either.
                budget = budget.saturating_sub(64);
                continue;
            }
            self.move_region(info.kind, info.number as usize, info.bytes, &mut budget);
        }
        self.is_unsure()
    }

    /// Moves the index out of the file, ahead of many changes: else the kernel would copy each of its pages on its own.
    pub fn warm_index(&mut self) {
        while let Some(unchecked) = &self.unchecked
            && let Some(region) = unchecked.regions.get(unchecked.warm.region)
            && region.info.kind == RegionKind::Index
            && self.warm_step(region.info.bytes)
        {}
    }

    /// Moves the region at hand, or a part of it. Memory is taken in a step of its own, which can cost as much as the copying.
    fn move_region(&mut self, kind: RegionKind, number: usize, bytes: usize, budget: &mut usize) {
        let Some(unchecked) = &mut self.unchecked else { return };
        let Some((target, from)) = unchecked.warm.copy.take() else {
            let Some(target) = self.arena.allocate_memory(bytes) else {
                if kind != RegionKind::Index {
                    self.arena.end_moving(number);
                }
                return self.end_region(false);
            };
            if kind != RegionKind::Index {
                self.arena.seal_moving(number);
            }
            unchecked.warm.copy = Some((target, 0));
            *budget = 0;
            return;
        };
        let source = match kind {
            RegionKind::Index => self.index.slab_memory(number),
            RegionKind::Segment | RegionKind::Span => self.arena.memory(number),
        };
        let end = if kind == RegionKind::Index { bytes } else { bytes.min(from + (*budget).max(PAGE_BYTES)) };
        target[from..end].copy_from_slice(&source[from..end]);
        *budget = budget.saturating_sub(end - from);
        if end < bytes {
            unchecked.warm.copy = Some((target, end));
            return;
        }
        if kind == RegionKind::Index {
            self.index.move_slab(number, target);
        } else {
            self.arena.move_segment(number, target);
            self.arena.end_moving(number);
        }
        self.end_region(true);
    }

    /// The next region. `has_left`: this one is not in the file any more.
    fn end_region(&mut self, has_left: bool) {
        let Some(unchecked) = &mut self.unchecked else { return };
        let at = unchecked.warm.region;
        if let Some((memory, _)) = unchecked.warm.copy.take() {
            self.arena.give_back(memory);
        }
        let bytes = unchecked.regions[at].info.bytes as u64;
        unchecked.forget(at);
        let warm = &mut unchecked.warm;
        *(if has_left { &mut warm.moved_bytes } else { &mut warm.kept_bytes }) += bytes;
        warm.region += 1;
        warm.page = 0;
    }

    fn end_warming(&mut self) {
        self.unchecked = None;
        self.index.end_cold();
        self.arena.release_lists();
    }

    /// The keyspace was cleared: there is nothing left to warm.
    pub(crate) fn give_up_warming(&mut self) {
        if let Some(unchecked) = &mut self.unchecked
            && let Some((memory, _)) = unchecked.warm.copy.take()
        {
            self.arena.give_back(memory);
        }
        self.unchecked = None;
    }

    /// How far warming is in the order of the regions, in bytes, so that somebody can see to it that what comes next is in
    /// memory; 0 where there is nothing to warm.
    pub fn warm_position(&self) -> u64 {
        let Some(unchecked) = &self.unchecked else { return 0 };
        let warm = &unchecked.warm;
        warm.moved_bytes + warm.kept_bytes + (warm.page * PAGE_BYTES) as u64
    }

    /// How far warming is; `None`: there is nothing to warm.
    pub fn warm_progress(&self) -> Option<WarmProgress> {
        let warm = &self.unchecked.as_ref()?.warm;
        Some(WarmProgress {
            total_bytes: warm.total_bytes,
            checked_bytes: warm.checked_bytes,
            warmed_bytes: warm.moved_bytes,
            kept_bytes: warm.kept_bytes,
        })
    }

    /// Whether there are pages that nobody has looked at: every operation then looks first.
    #[inline(always)]
    pub fn is_unsure(&self) -> bool {
        self.unchecked.is_some()
    }
}
