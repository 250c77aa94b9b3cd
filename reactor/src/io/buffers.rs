//! Receive buffers that the kernel chooses from: one ring of provided buffers for all connections.
//!
//! An idle connection holds no buffer. The kernel takes the next one when bytes are there, the pipeline reads
//! it in place, and it goes back at once. Who owns a buffer is always plain: the kernel from `give_back` to its
//! completion, we from the completion to `give_back`.
//!
//! Layout (io_uring_register_buf_ring(3)): an array of 16-byte entries {address u64, length u32, id u16, tail
//! u16}; the ring's tail lies in the last two bytes of entry 0.

use super::ring::Ring;
use io_uring::types::BufRingEntry;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

/// The buffer group all receives use.
pub const GROUP: u16 = 0;

/// A registered ring of equal buffers.
#[derive(Debug)]
pub struct BufferRing {
    map: NonNull<u8>,
    map_bytes: usize,
    entries: NonNull<BufRingEntry>,
    memory: NonNull<u8>,
    count: u16,
    size: u32,
    tail: u16,
    unpublished: bool,
}

impl BufferRing {
    /// Maps `count` (a power of two, at most 32768) buffers of `size` bytes and registers them.
    pub fn new(ring: &Ring, count: u16, size: u32) -> io::Result<BufferRing> {
        assert!(
            count.is_power_of_two() && count <= 32768,
            "buffer count {count} is not a power of two ≤ 32768"
        );
        let entries_bytes = (count as usize * size_of::<BufRingEntry>()).next_multiple_of(4096);
        let map_bytes = entries_bytes + count as usize * size as usize;
        // SAFETY: an anonymous mapping of our own; the result is checked.
        let map = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                map_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if map == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let map = NonNull::new(map.cast::<u8>()).expect("mmap never returns null");
        // SAFETY: both offsets lie inside the mapping just made; it is page-aligned, so entries are aligned.
        let (entries, memory) = unsafe { (map.cast::<BufRingEntry>(), map.add(entries_bytes)) };
        let mut buffers =
            BufferRing { map, map_bytes, entries, memory, count, size, tail: 0, unpublished: false };
        // SAFETY: the mapping outlives the registration: Drop of the driver drops the ring first.
        unsafe { ring.submitter().register_buf_ring_with_flags(entries.as_ptr() as u64, count, GROUP, 0) }?;
        for id in 0..count {
            buffers.give_back(id);
        }
        buffers.publish();
        Ok(buffers)
    }

    /// The bytes the kernel wrote into buffer `id`.
    #[inline]
    pub fn bytes(&self, id: u16, length: usize) -> &[u8] {
        assert!(id < self.count && length <= self.size as usize);
        // SAFETY: inside the mapping by the assertion; the kernel is done with this buffer until `give_back`,
        // which needs `&mut self` and so cannot happen while the slice lives.
        unsafe {
            std::slice::from_raw_parts(self.memory.as_ptr().add(id as usize * self.size as usize), length)
        }
    }

    /// Returns a buffer; the kernel sees it after the next `publish`.
    #[inline]
    pub fn give_back(&mut self, id: u16) {
        assert!(id < self.count);
        let position = self.tail & (self.count - 1);
        // SAFETY: `position` < count, and the kernel reads an entry only once the tail has passed it.
        unsafe {
            let entry = &mut *self.entries.as_ptr().add(position as usize);
            entry.set_addr(self.memory.as_ptr().add(id as usize * self.size as usize) as u64);
            entry.set_len(self.size);
            entry.set_bid(id);
        }
        self.tail = self.tail.wrapping_add(1);
        self.unpublished = true;
    }

    /// Makes returned buffers visible to the kernel. Once a turn is enough.
    #[inline]
    pub fn publish(&mut self) {
        if !self.unpublished {
            return;
        }
        self.unpublished = false;
        // SAFETY: the tail lies in entry 0 of the mapping, is 2-byte aligned, and the kernel only reads it.
        let tail = unsafe { &*BufRingEntry::tail(self.entries.as_ptr()).cast::<AtomicU16>() };
        tail.store(self.tail, Ordering::Release);
    }
}

impl Drop for BufferRing {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length; the ring that knew it is gone (the driver drops it first).
        unsafe { libc::munmap(self.map.as_ptr().cast(), self.map_bytes) };
    }
}
