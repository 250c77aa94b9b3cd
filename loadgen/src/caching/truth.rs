//! What was written and acknowledged, shared by all workers: what a cache may still say of a key, and since when it may not.
//!
//! Of every key one write at a time is under way, whoever makes it, so its versions are a line: 0 was filled in, the n-th
//! write is n. A value begins with its version in digits, so that whoever reads it knows how old it is. Everything here is
//! an atomic of its own on the generator's one clock; the hot path is two loads.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Digits of the version a value begins with.
pub const VERSION_BYTES: usize = 16;
/// Acknowledgements of a key that are remembered: a worker is told of a write before so many more are made.
const REMEMBERED: u64 = 8;

#[derive(Debug, Default)]
struct Key {
    /// The newest version that was acknowledged.
    version: AtomicU64,
    /// When: of the newest few, by number.
    acknowledged_ns: [AtomicU64; REMEMBERED as usize],
    /// A write is under way.
    busy: AtomicBool,
}

/// See the module.
#[derive(Debug)]
pub struct Truth {
    keys: Vec<Key>,
}

impl Truth {
    /// Of so many keys, all of them at version 0.
    pub fn new(keys: usize) -> Truth {
        Truth { keys: (0..keys).map(|_| Key::default()).collect() }
    }

    /// The newest acknowledged version.
    #[inline]
    pub fn version(&self, key: u32) -> u64 {
        self.keys[key as usize].version.load(Ordering::Acquire)
    }

    /// The version that a write is to make, if nobody else is writing. Follow with [`Truth::acknowledge`] or
    /// [`Truth::give_up`].
    pub fn begin_write(&self, key: u32) -> Option<u64> {
        let key = &self.keys[key as usize];
        (!key.busy.swap(true, Ordering::AcqRel)).then(|| key.version.load(Ordering::Acquire) + 1)
    }

    /// The server has said that it made it.
    pub fn acknowledge(&self, key: u32, version: u64, now: u64) {
        let key = &self.keys[key as usize];
        key.acknowledged_ns[(version % REMEMBERED) as usize].store(now, Ordering::Release);
        key.version.store(version, Ordering::Release);
        key.busy.store(false, Ordering::Release);
    }

    /// It has refused: the version was not made.
    pub fn give_up(&self, key: u32) {
        self.keys[key as usize].busy.store(false, Ordering::Release);
    }

    /// Since when a cache that holds this version is stale; `None`: it is not.
    pub fn stale_since(&self, key: u32, version: u64) -> Option<u64> {
        let newest = self.version(key);
        if newest <= version {
            return None;
        }
        // The first write that it missed, or the oldest that is remembered.
        let first = (version + 1).max(newest.saturating_sub(REMEMBERED - 1));
        Some(self.keys[key as usize].acknowledged_ns[(first % REMEMBERED) as usize].load(Ordering::Acquire))
    }
}

/// Puts the version at the beginning of a value.
pub fn write_version(value: &mut [u8], mut version: u64) {
    for digit in value[..VERSION_BYTES].iter_mut().rev() {
        *digit = b'0' + (version % 10) as u8;
        version /= 10;
    }
}

/// The version that a value begins with.
pub fn read_version(value: &[u8]) -> Option<u64> {
    std::str::from_utf8(value.get(..VERSION_BYTES)?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_a_line_and_staleness_begins_with_the_first_that_was_missed() {
        let truth = Truth::new(2);
        assert_eq!((truth.version(1), truth.stale_since(1, 0)), (0, None));
        assert_eq!(truth.begin_write(1), Some(1));
        assert_eq!(truth.begin_write(1), None, "one write at a time");
        truth.acknowledge(1, 1, 500);
        assert_eq!((truth.stale_since(1, 0), truth.stale_since(1, 1)), (Some(500), None));
        assert_eq!(truth.begin_write(1), Some(2));
        truth.give_up(1);
        assert_eq!(truth.begin_write(1), Some(2), "what was refused was not made");
        truth.acknowledge(1, 2, 700);
        assert_eq!((truth.stale_since(1, 0), truth.stale_since(1, 1)), (Some(500), Some(700)));
        for version in 3..=20 {
            assert_eq!(truth.begin_write(1), Some(version));
            truth.acknowledge(1, version, 1_000 + version);
        }
        // What is forgotten gives a lower bound.
        assert_eq!(truth.stale_since(1, 0), Some(1_013));
        assert_eq!(truth.version(0), 0);
    }

    #[test]
    fn a_value_knows_its_version() {
        let mut value = vec![b'x'; 20];
        write_version(&mut value, 1_234_567);
        assert_eq!(read_version(&value), Some(1_234_567));
        assert!(value.ends_with(b"xxxx"));
        assert_eq!(read_version(b"short"), None);
        assert_eq!(read_version(&[b'x'; 20]), None);
    }
}
