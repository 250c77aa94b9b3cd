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
//! thread touches [`RESERVE`] segments ahead and the shard takes those. When it takes them faster than they
//! are made, it maps its own as before: late is better than refused.

use crate::cpu;
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use store::arena::SegmentSource;

/// Segments of one huge page that stand ready.
const RESERVE: usize = 4;

/// What huge pages measure here and what segments are aligned to.
const HUGE_PAGE: usize = 2 << 20;
/// The smallest unit of a mapping.
const PAGE: usize = 4096;

/// Gives the arena its memory, straight from the kernel.
#[derive(Debug)]
pub struct MmapSource {
    shelf: Arc<Shelf>,
    helper: Option<JoinHandle<()>>,
    /// Address and mapped bytes of every segment given out. Without it a slice that was never ours could be
    /// handed to `release`, from safe code, and be unmapped.
    segments: BTreeMap<usize, usize>,
    mapped_bytes: usize,
}

impl MmapSource {
    /// A source that has given nothing yet. Its helper thread may run where the calling thread may.
    pub fn new() -> Self {
        Self::with_helper_on(None)
    }

    /// The same with the helper on one core: not the shard's, where each of its turns would be a scheduler's
    /// slice of waiting for the shard.
    pub fn with_helper_on(core: Option<usize>) -> Self {
        let shelf = Arc::new(Shelf::default());
        let stocked = shelf.clone();
        let work = move || {
            // Refused, it runs wherever the scheduler likes.
            let _ = core.map(cpu::pin_to);
            stocked.keep_stocked();
        };
        // Without a helper (a limit on threads) everything works, only not ahead of time.
        let helper = std::thread::Builder::new().name("segments".into()).spawn(work).ok();
        Self { shelf, helper, segments: BTreeMap::new(), mapped_bytes: 0 }
    }

    /// Bytes given out and not released.
    pub fn mapped_bytes(&self) -> usize {
        self.mapped_bytes
    }
}

impl SegmentSource for MmapSource {
    fn allocate(&mut self, bytes: usize) -> Option<&'static mut [u8]> {
        let length = bytes.checked_next_multiple_of(PAGE).filter(|&length| length > 0)?;
        let ready = if length == HUGE_PAGE { self.shelf.take() } else { None };
        let address = ready.or_else(|| map_aligned(length))?;
        self.segments.insert(address.as_ptr().addr(), length);
        self.mapped_bytes += length;
        // SAFETY: `map_aligned` returned `length` >= `bytes` bytes, zeroed, readable and writable, that
        // nothing else refers to; they stay mapped until `release` gets the only reference back.
        Some(unsafe { std::slice::from_raw_parts_mut(address.as_ptr(), bytes) })
    }

    fn release(&mut self, memory: &'static mut [u8]) {
        let address = memory.as_mut_ptr();
        let length = self.segments.remove(&address.addr()).expect("a segment of this source");
        assert!(memory.len() <= length && length - memory.len() < PAGE, "a whole segment comes back");
        self.mapped_bytes -= length;
        unmap(address, length);
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
        for address in self.shelf.state().ready.drain(..) {
            unmap(address as *mut u8, HUGE_PAGE);
        }
    }
}

/// What the helper has made and the shard has not taken.
#[derive(Debug, Default)]
struct Shelf {
    state: Mutex<ShelfState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct ShelfState {
    /// Addresses of mapped, touched, zeroed huge pages that nobody else knows.
    ready: Vec<usize>,
    closed: bool,
}

impl Shelf {
    fn state(&self) -> MutexGuard<'_, ShelfState> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn take(&self) -> Option<NonNull<u8>> {
        let taken = self.state().ready.pop();
        self.changed.notify_one();
        NonNull::new(taken? as *mut u8)
    }

    fn keep_stocked(&self) {
        loop {
            let state = self.state();
            let enough = |state: &mut ShelfState| !state.closed && state.ready.len() >= RESERVE;
            let state =
                self.changed.wait_while(state, enough).unwrap_or_else(|poisoned| poisoned.into_inner());
            if state.closed {
                return;
            }
            drop(state);
            let Some(address) = map_aligned(HUGE_PAGE) else { return };
            touch(address, HUGE_PAGE);
            let mut state = self.state();
            state.ready.push(address.as_ptr().addr());
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
fn map_aligned(length: usize) -> Option<NonNull<u8>> {
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
        libc::madvise(segment.cast(), length, libc::MADV_HUGEPAGE);
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
            while source.shelf.state().ready.len() < RESERVE {
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
