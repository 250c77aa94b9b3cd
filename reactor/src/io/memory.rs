//! Segments of the arena as anonymous mappings on huge pages.
//!
//! A lookup at random in gigabytes of 4 KiB pages pays for a TLB miss beside the cache miss; on 2 MiB pages
//! it costs about two thirds. So segments of 2 MiB and more start on a 2 MiB boundary and ask for huge pages
//! (`MADV_HUGEPAGE`; where the machine has none to give, ordinary pages come, and nothing breaks). Memory is
//! the kernel's until it is touched: a fresh segment costs address space only. It is released by `munmap`,
//! so a segment that compaction empties goes back to the machine at once.

use std::collections::BTreeMap;
use std::ptr::NonNull;
use store::arena::SegmentSource;

/// What huge pages measure here and what segments are aligned to.
const HUGE_PAGE: usize = 2 << 20;
/// The smallest unit of a mapping.
const PAGE: usize = 4096;

/// Gives the arena its memory, straight from the kernel.
#[derive(Debug, Default)]
pub struct MmapSource {
    /// Address and mapped bytes of every segment given out. Without it a slice that was never ours could be
    /// handed to `release`, from safe code, and be unmapped.
    segments: BTreeMap<usize, usize>,
    mapped_bytes: usize,
}

impl MmapSource {
    /// A source that has given nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes given out and not released.
    pub fn mapped_bytes(&self) -> usize {
        self.mapped_bytes
    }
}

impl SegmentSource for MmapSource {
    fn allocate(&mut self, bytes: usize) -> Option<&'static mut [u8]> {
        let length = bytes.checked_next_multiple_of(PAGE).filter(|&length| length > 0)?;
        let address = map_aligned(length)?;
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
