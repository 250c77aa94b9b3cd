//! Segments of the arena as anonymous mappings on huge pages.
//!
//! A lookup at random in gigabytes of 4 KiB pages pays for a TLB miss beside the cache miss; on 2 MiB pages
//! it costs about two thirds. So segments of 2 MiB and more start on a 2 MiB boundary and ask for huge pages
//! (`MADV_HUGEPAGE`; where the machine has none to give, ordinary pages come, and nothing breaks). Memory is
//! the kernel's until it is touched: a fresh segment costs address space only. It is released by `munmap`,
//! so a segment that compaction empties goes back to the machine at once.
//!
//! The first touch of a huge page is the kernel's moment to find and zero it: 0.7 ms, and 7 ms where the host
//! has never backed that memory. On the shard's thread this alone would break the bound on a turn, so a helper
//! thread touches segments ahead and the shard takes those: a few, and more while they are taken quickly
//! ([`Shelf::keep_stocked`]).
//!
//! When the shard takes them faster than they are made, it gets one on ordinary pages, which cost microseconds at a
//! time. And it must not call `mmap` for it: that waits for the lock the helper's touching holds, 5 ms each time. So
//! address space is reserved at the start, for huge pages and for ordinary ones, and given out from there.
//!
//! Regions of a snapshot that a keyspace lives on come back here too: the helper unmaps them.

use super::snapshot_map::MappedRegion;
use crate::cpu;
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;
use store::arena::SegmentSource;

/// Segments of one huge page that stand ready where hardly any are taken.
const RESERVE_MIN: usize = 2;
/// And where many are.
const RESERVE_MAX: usize = 16;
/// When none was taken for so long, the reserve shrinks to the least.
const RESERVE_LEASE: Duration = Duration::from_millis(500);

/// Address space reserved for each kind of page: what the arena and its index can ever use. Where a limit forbids
/// that (`ulimit -v`), as much as there is, and beyond it segments are mapped one by one.
const SPACE_MAX: usize = 64 << 30;
const SPACE_MIN: usize = 1 << 30;

/// What huge pages measure here and what segments are aligned to.
const HUGE_PAGE: usize = 2 << 20;
/// The smallest unit of a mapping.
const PAGE: usize = 4096;

/// Gives the arena its memory, straight from the kernel.
#[derive(Debug)]
pub struct MmapSource {
    shelf: Arc<Shelf>,
    helper: Option<JoinHandle<()>>,
    /// Segments on ordinary pages, for when the shelf is empty.
    ordinary: Space,
    /// Address and mapped bytes of every segment given out. Without it a slice that was never ours could be
    /// handed to `release`, from safe code, and be unmapped.
    segments: BTreeMap<usize, usize>,
    /// Regions of a snapshot's file that were given out.
    adopted: BTreeMap<usize, MappedRegion>,
    mapped_bytes: usize,
    /// While it says so, huge pages are worth waiting for: nobody is served yet.
    is_patient: Arc<AtomicBool>,
}

impl MmapSource {
    /// A source that has given nothing yet. Its helper thread may run where the calling thread may.
    pub fn new() -> Self {
        Self::with_helper_on(None)
    }

    /// The same with the helper on one core: not the shard's, where each of its turns would be a scheduler's
    /// slice of waiting for the shard.
    pub fn with_helper_on(core: Option<usize>) -> Self {
        let shelf = Arc::new(Shelf::new());
        let stocked = shelf.clone();
        let work = move || {
            // Refused, it runs wherever the scheduler likes.
            let _ = core.map(cpu::pin_to);
            stocked.keep_stocked();
        };
        // Without a helper (a limit on threads) everything works, only not ahead of time.
        let helper = std::thread::Builder::new().name("segments".into()).spawn(work).ok();
        let ordinary = Space::reserve(Pages::Ordinary);
        Self {
            shelf,
            helper,
            ordinary,
            segments: BTreeMap::new(),
            adopted: BTreeMap::new(),
            mapped_bytes: 0,
            is_patient: Arc::default(),
        }
    }

    /// The same that waits for huge pages while `is_patient` says so, instead of taking ordinary ones.
    pub fn with_patience(mut self, is_patient: Arc<AtomicBool>) -> Self {
        self.is_patient = is_patient;
        self
    }

    /// Makes a region of a file memory that comes back by [`release`](SegmentSource::release), which unmaps it.
    pub fn adopt(&mut self, mut region: MappedRegion) -> &'static mut [u8] {
        let memory = region.memory();
        self.adopted.insert(region.address(), region);
        memory
    }

    /// Bytes given out and not released, regions of files left out.
    pub fn mapped_bytes(&self) -> usize {
        self.mapped_bytes
    }
}

impl SegmentSource for MmapSource {
    fn allocate(&mut self, bytes: usize) -> Option<&'static mut [u8]> {
        let length = bytes.checked_next_multiple_of(PAGE).filter(|&length| length > 0)?;
        let ready = match length {
            HUGE_PAGE => {
                let make = || self.is_patient.load(Ordering::Relaxed).then(|| self.shelf.make()).flatten();
                self.shelf.take().or_else(make).or_else(|| self.ordinary.take())
            }
            _ => None,
        };
        let address = ready.or_else(|| map_aligned(length, Pages::Ordinary))?;
        self.segments.insert(address.as_ptr().addr(), length);
        self.mapped_bytes += length;
        // SAFETY: whichever it came from returned `length` >= `bytes` bytes, zeroed, readable and writable, that
        // nothing else refers to; they stay mapped until `release` gets the only reference back.
        Some(unsafe { std::slice::from_raw_parts_mut(address.as_ptr(), bytes) })
    }

    fn release(&mut self, memory: &'static mut [u8]) {
        let address = memory.as_mut_ptr();
        if let Some(region) = self.adopted.remove(&address.addr()) {
            // Without a helper it is unmapped here.
            return if self.helper.is_some() { self.shelf.discard(region) } else { drop(region) };
        }
        let length = self.segments.remove(&address.addr()).expect("a segment of this source");
        assert!(memory.len() <= length && length - memory.len() < PAGE, "a whole segment comes back");
        self.mapped_bytes -= length;
        if self.ordinary.owns(address) {
            self.ordinary.give_back(address);
        } else if self.shelf.owns(address) {
            self.shelf.give_back(address);
        } else {
            unmap(address, length);
        }
    }
}

impl Default for MmapSource {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for MmapSource {
    fn drop(&mut self) {
        self.shelf.state().closed = true;
        self.shelf.changed.notify_all();
        if let Some(helper) = self.helper.take() {
            // It cannot panic; if it could, the segments it made would only stay mapped.
            let _ = helper.join();
        }
    }
}

/// What a mapping asks the kernel for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pages {
    Ordinary,
    Huge,
}

/// Reserved address space, given out in pieces of one huge page. A piece that nobody has holds no memory.
#[derive(Debug)]
struct Space {
    base: usize,
    bytes: usize,
    /// Pieces before it have been given out at least once.
    used: usize,
    free: Vec<usize>,
}

impl Space {
    /// Reserves as much as there is; nothing where that is too little to be worth it.
    fn reserve(pages: Pages) -> Space {
        let mut bytes = SPACE_MAX;
        while bytes >= SPACE_MIN {
            if let Some(base) = map_aligned(bytes, pages) {
                return Space { base: base.as_ptr().addr(), bytes, used: 0, free: Vec::new() };
            }
            bytes /= 2;
        }
        Space { base: 0, bytes: 0, used: 0, free: Vec::new() }
    }

    fn owns(&self, address: *mut u8) -> bool {
        (self.base..self.base + self.bytes).contains(&address.addr())
    }

    fn take(&mut self) -> Option<NonNull<u8>> {
        if let Some(address) = self.free.pop() {
            return NonNull::new(address as *mut u8);
        }
        let address = self.base + self.used;
        if self.used + HUGE_PAGE > self.bytes {
            return None;
        }
        self.used += HUGE_PAGE;
        NonNull::new(address as *mut u8)
    }

    /// Takes a piece back; its memory goes to the machine, so that it is zero when it is given out again.
    fn give_back(&mut self, address: *mut u8) {
        assert!(self.owns(address) && address.addr().is_multiple_of(HUGE_PAGE), "a piece of this space");
        // SAFETY: a whole piece of our own mapping, to which the caller gave up the only reference.
        let result = unsafe { libc::madvise(address.cast(), HUGE_PAGE, libc::MADV_DONTNEED) };
        assert_eq!(result, 0, "madvise: {}", std::io::Error::last_os_error());
        self.free.push(address.addr());
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        if self.bytes > 0 {
            unmap(self.base as *mut u8, self.bytes);
        }
    }
}

/// What the helper has made and the shard has not taken.
#[derive(Debug)]
struct Shelf {
    state: Mutex<ShelfState>,
    changed: Condvar,
    /// The bounds of `state.space`, which never change.
    space: std::ops::Range<usize>,
}

#[derive(Debug)]
struct ShelfState {
    space: Space,
    /// Addresses of touched, zeroed huge pages that nobody else knows.
    ready: Vec<usize>,
    /// How many shall be.
    wanted: usize,
    /// Segments taken, ever.
    taken: u64,
    /// Regions of files that nobody refers to any more.
    discarded: Vec<MappedRegion>,
    closed: bool,
}

impl Shelf {
    fn new() -> Shelf {
        let space = Space::reserve(Pages::Huge);
        let bounds = space.base..space.base + space.bytes;
        let state = ShelfState {
            space,
            ready: Vec::new(),
            wanted: RESERVE_MIN,
            taken: 0,
            discarded: Vec::new(),
            closed: false,
        };
        Shelf { state: Mutex::new(state), changed: Condvar::new(), space: bounds }
    }

    fn state(&self) -> MutexGuard<'_, ShelfState> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn owns(&self, address: *mut u8) -> bool {
        self.space.contains(&address.addr())
    }

    fn give_back(&self, address: *mut u8) {
        self.state().space.give_back(address);
    }

    /// Has the helper unmap a region: that takes as long as there are pages of it in memory.
    fn discard(&self, region: MappedRegion) {
        self.state().discarded.push(region);
        self.changed.notify_one();
    }

    /// Makes one here and now, where that may take its time.
    fn make(&self) -> Option<NonNull<u8>> {
        let address = self.state().space.take()?;
        touch(address, HUGE_PAGE);
        Some(address)
    }

    fn take(&self) -> Option<NonNull<u8>> {
        let mut state = self.state();
        let taken = state.ready.pop();
        state.taken += 1;
        if state.ready.len() < state.wanted / 2 + 1 {
            state.wanted = (state.wanted * 2).min(RESERVE_MAX);
        }
        drop(state);
        self.changed.notify_one();
        NonNull::new(taken? as *mut u8)
    }

    /// The helper's life: keeps the shelf as full as it shall be, and gives back what a quiet time leaves over.
    fn keep_stocked(&self) {
        let mut seen = 0;
        let mut state = self.state();
        while !state.closed {
            if let Some(region) = state.discarded.pop() {
                drop(state);
                drop(region);
                state = self.state();
            } else if state.ready.len() < state.wanted
                && let Some(address) = state.space.take()
            {
                drop(state);
                touch(address, HUGE_PAGE);
                state = self.state();
                state.ready.push(address.as_ptr().addr());
            } else if state.wanted == RESERVE_MIN || state.ready.is_empty() {
                state = self.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
            } else {
                let waited = self.changed.wait_timeout(state, RESERVE_LEASE);
                state = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
                if state.taken == seen && !state.closed {
                    state.wanted = RESERVE_MIN;
                    while state.ready.len() > RESERVE_MIN
                        && let Some(address) = state.ready.pop()
                    {
                        state.space.give_back(address as *mut u8);
                    }
                }
                seen = state.taken;
            }
        }
    }
}

/// Makes the kernel back a fresh mapping now.
fn touch(address: NonNull<u8>, length: usize) {
    // SAFETY: the range was just mapped by the caller, who alone knows it.
    let populated = unsafe { libc::madvise(address.as_ptr().cast(), length, libc::MADV_POPULATE_WRITE) };
    if populated != 0 {
        // A kernel before 5.14: one write a page does the same.
        for page in (0..length).step_by(PAGE) {
            // SAFETY: inside the range, which is writable and nobody else's.
            unsafe { address.as_ptr().add(page).write_volatile(0) };
        }
    }
}

/// Maps `length` bytes; on a huge-page boundary if they fill at least one.
fn map_aligned(length: usize, pages: Pages) -> Option<NonNull<u8>> {
    if length < HUGE_PAGE {
        return map(length);
    }
    // The kernel promises page alignment only: map more than is asked for and give the ends back.
    let reserved = length.checked_add(HUGE_PAGE)?;
    let start = map(reserved)?.as_ptr();
    let head = start.addr().next_multiple_of(HUGE_PAGE) - start.addr();
    let tail = reserved - head - length;
    // SAFETY: `head + length + tail == reserved`, so all three parts lie within the mapping just made.
    let segment = unsafe {
        let segment = start.add(head);
        if head > 0 {
            unmap(start, head);
        }
        if tail > 0 {
            unmap(segment.add(length), tail);
        }
        // Advice only: EINVAL on a kernel without transparent huge pages changes nothing.
        let advice = if pages == Pages::Huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
        libc::madvise(segment.cast(), length, advice);
        segment
    };
    NonNull::new(segment)
}

fn map(length: usize) -> Option<NonNull<u8>> {
    // SAFETY: a new private anonymous mapping where the kernel likes; it touches no existing memory.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if address == libc::MAP_FAILED { None } else { NonNull::new(address.cast()) }
}

fn unmap(address: *mut u8, length: usize) {
    // SAFETY: callers pass a range they mapped and hold the only reference to. An error would mean that the
    // range was never a mapping: a bug, not a condition.
    let result = unsafe { libc::munmap(address.cast(), length) };
    assert_eq!(result, 0, "munmap: {}", std::io::Error::last_os_error());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_zeroed_aligned_and_counted() {
        let mut source = MmapSource::new();
        let small = source.allocate(10_000).unwrap();
        assert_eq!((small.len(), small.as_ptr().addr() % PAGE), (10_000, 0));
        assert_eq!(source.mapped_bytes(), 12_288);
        let large = source.allocate(HUGE_PAGE * 2).unwrap();
        assert_eq!(large.as_ptr().addr() % HUGE_PAGE, 0);
        assert!(large.iter().all(|&byte| byte == 0));
        large.fill(7);
        small.fill(9);
        assert!(large.iter().all(|&byte| byte == 7), "segments do not overlap");
        source.release(large);
        assert_eq!(source.mapped_bytes(), 12_288);
        source.release(small);
        assert_eq!(source.mapped_bytes(), 0);
    }

    #[test]
    fn released_memory_comes_back_zeroed() {
        let mut source = MmapSource::new();
        for _ in 0..20 {
            let segment = source.allocate(HUGE_PAGE).unwrap();
            assert!(segment.iter().all(|&byte| byte == 0));
            segment.fill(0xAA);
            source.release(segment);
        }
    }

    #[test]
    fn the_reserve_is_stocked_taken_and_stocked_again() {
        let mut source = MmapSource::new();
        let wait_until_stocked = |source: &MmapSource| {
            let begun = std::time::Instant::now();
            while source.shelf.state().ready.len() < RESERVE_MIN {
                assert!(begun.elapsed().as_secs() < 20, "the helper does not stock the shelf");
                std::thread::yield_now();
            }
        };
        wait_until_stocked(&source);
        let first = *source.shelf.state().ready.last().unwrap();
        let segment = source.allocate(HUGE_PAGE).unwrap();
        assert_eq!(segment.as_ptr().addr(), first, "a segment that stands ready is taken");
        assert!(segment.iter().all(|&byte| byte == 0));
        wait_until_stocked(&source);
        source.release(segment);
        assert_eq!(source.mapped_bytes(), 0);
    }

    /// The helper once held the lock that `mmap` needs while it touched a page, and the shard, finding the shelf empty,
    /// waited 5 ms for it: whole segments now come from address space that is reserved, however fast they are taken.
    #[test]
    fn segments_taken_too_fast_come_from_reserved_space() {
        let mut source = MmapSource::new();
        let segments: Vec<_> = (0..64).map(|_| source.allocate(HUGE_PAGE).unwrap()).collect();
        let reserved = |address| source.ordinary.owns(address) || source.shelf.owns(address);
        assert!(segments.iter().all(|segment| reserved(segment.as_ptr().cast_mut())));
        assert!(segments.iter().any(|segment| source.ordinary.owns(segment.as_ptr().cast_mut())));
        assert!(source.shelf.state().wanted > RESERVE_MIN, "the reserve grows with the demand");
        for segment in segments {
            segment.fill(3);
            source.release(segment);
        }
        assert_eq!(source.mapped_bytes(), 0);
        let again = source.allocate(HUGE_PAGE).unwrap();
        assert!(again.iter().all(|&byte| byte == 0));
        source.release(again);
        let begun = std::time::Instant::now();
        while source.shelf.state().wanted > RESERVE_MIN {
            assert!(begun.elapsed().as_secs() < 20, "the reserve does not shrink");
            std::thread::yield_now();
        }
        assert!(source.shelf.state().ready.len() <= RESERVE_MIN);
    }

    #[test]
    fn impossible_sizes_are_refused() {
        let mut source = MmapSource::new();
        assert!(source.allocate(0).is_none());
        assert!(source.allocate(usize::MAX).is_none());
        assert!(source.allocate(1 << 60).is_none());
        assert_eq!(source.mapped_bytes(), 0);
    }

    #[test]
    #[should_panic(expected = "a segment of this source")]
    fn foreign_memory_is_not_unmapped() {
        MmapSource::new().release(Box::leak(vec![0u8; PAGE].into_boxed_slice()));
    }
}
