//! How fast the rest of a snapshot is read in behind the traffic.
//!
//! Shards check and move the pages of the snapshot they live on in steps of some microseconds, between turns. A page that is
//! not in memory would make such a step wait for the disk, and a shard has better things to do. So one thread has the
//! file read ahead, region by region, at a bounded rate, and lets each shard go as far as it has come. A shard
//! that needs a page before its time gets it from the disk, and waits for that one page.

use super::snapshot_start::Served;
use crate::cpu;
use crate::io::snapshot_map::{SnapshotFile, read_ahead};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{Builder, JoinHandle, sleep};
use std::time::{Duration, Instant};

/// The disk is kept busy so far ahead.
const AHEAD_BYTES: u64 = 8 << 20;
/// What a shard is let go at a time.
const PORTION_BYTES: u64 = 512 << 10;
/// No longer is slept at once, so that a server that ends need not wait for it.
const NAP: Duration = Duration::from_millis(5);

/// The thread. Dropping it ends it.
#[derive(Debug)]
pub(super) struct WarmPace {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// One that waits for its beginning.
pub(super) struct PlannedPace {
    work: Work,
    rate: u64,
    core: Option<usize>,
}

impl PlannedPace {
    /// At so many bytes a second (0: as fast as it goes), and with a bound for each shard: so many bytes of its regions, in
    /// their order, may be warm by now.
    pub(super) fn new(
        served: &Served<SnapshotFile>,
        rate: u64,
        core: Option<usize>,
    ) -> (PlannedPace, Vec<Arc<AtomicU64>>) {
        let bounds: Vec<Arc<AtomicU64>> = served.regions.iter().map(|_| Arc::default()).collect();
        let work = Work {
            file: Arc::clone(served.file.file()),
            regions: served.regions.clone(),
            bounds: bounds.clone(),
            is_over: Arc::default(),
        };
        (PlannedPace { work, rate, core }, bounds)
    }

    /// Begins, once shards serve: until then the disk and the cores have better things to do. Without a thread there is no
    /// bound.
    pub(super) fn begin(self) -> WarmPace {
        let PlannedPace { work, rate, core } = self;
        let (is_over, bounds) = (Arc::clone(&work.is_over), work.bounds.clone());
        let thread = Builder::new().name("warm".into()).spawn(move || {
            // Refused, it runs wherever the scheduler likes.
            let _ = core.map(cpu::pin_to);
            work.run(rate);
        });
        if thread.is_err() {
            bounds.iter().for_each(|bound| bound.store(u64::MAX, Ordering::Relaxed));
        }
        WarmPace { is_over, thread: thread.ok() }
    }
}

impl Drop for WarmPace {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It does not panic; if it did, shards would stay as warm as they are.
            let _ = thread.join();
        }
    }
}

struct Work {
    file: Arc<File>,
    regions: Vec<Vec<Range<u64>>>,
    bounds: Vec<Arc<AtomicU64>>,
    is_over: Arc<AtomicBool>,
}

impl Work {
    fn run(&self, rate: u64) {
        let begun = Instant::now();
        let mut done = 0;
        let portions = portions(&self.regions);
        let (mut ahead, mut ahead_bytes) = (0, 0);
        for (at, (shard, range)) in portions.iter().enumerate() {
            let bytes = range.end - range.start;
            while ahead < portions.len() && (ahead <= at || ahead_bytes < AHEAD_BYTES) {
                let next = &portions[ahead].1;
                read_ahead(&self.file, next.start, next.end - next.start);
                ahead_bytes += next.end - next.start;
                ahead += 1;
            }
            // Its last page is there when all of it is. What cannot be read is met by whoever needs it.
            let _ = self.file.read_at(&mut [0], range.end - 1);
            ahead_bytes -= bytes;
            self.bounds[*shard].fetch_add(bytes, Ordering::Relaxed);
            done += bytes;
            let due = match rate {
                0 => Duration::ZERO,
                rate => Duration::from_secs_f64(done as f64 / rate as f64),
            };
            while let early = due.saturating_sub(begun.elapsed())
                && !early.is_zero()
                && !self.is_over.load(Ordering::Relaxed)
            {
                sleep(early.min(NAP));
            }
            if self.is_over.load(Ordering::Relaxed) {
                return;
            }
        }
        // What is left to do is no longer the disk's.
        self.bounds.iter().for_each(|bound| bound.store(u64::MAX, Ordering::Relaxed));
    }
}

/// The regions of all shards in portions, of each shard one in turn.
fn portions(regions: &[Vec<Range<u64>>]) -> Vec<(usize, Range<u64>)> {
    let of_shard = |ranges: &Vec<Range<u64>>| -> Vec<Range<u64>> {
        let cut = |range: &Range<u64>| {
            let end = range.end;
            range.clone().step_by(PORTION_BYTES as usize).map(move |at| at..end.min(at + PORTION_BYTES))
        };
        ranges.iter().flat_map(cut).collect()
    };
    let cut: Vec<Vec<Range<u64>>> = regions.iter().map(of_shard).collect();
    let most = cut.iter().map(Vec::len).max().unwrap_or(0);
    let nth = |at: usize| {
        cut.iter().enumerate().filter_map(move |(shard, ranges)| Some((shard, ranges.get(at)?.clone())))
    };
    (0..most).flat_map(nth).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_take_turns_and_nothing_is_left_out() {
        const MIB: u64 = 1 << 20;
        let end = 20 * MIB..21 * MIB;
        let regions = [vec![4096..4096 + 2 * MIB, 9 * MIB..9 * MIB + 4096], vec![], vec![end]];
        let portions = portions(&regions);
        let shards: Vec<usize> = portions.iter().map(|(shard, _)| *shard).collect();
        assert_eq!(shards, [0, 2, 0, 2, 0, 0, 0]);
        for (shard, ranges) in regions.iter().enumerate() {
            let mut expected = ranges.iter().flat_map(|range| range.clone().step_by(4096));
            let of_shard = portions.iter().filter(|(of, _)| *of == shard);
            assert!(of_shard.flat_map(|(_, range)| range.clone().step_by(4096)).eq(expected.by_ref()));
        }
        assert!(portions.iter().all(|(_, range)| range.end - range.start <= PORTION_BYTES));
    }
}
