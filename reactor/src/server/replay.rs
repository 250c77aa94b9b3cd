//! What the log holds, on its way to the shards: one thread reads, and one for each shard applies.
//!
//! ```text
//! reading: files, checksums, frames ── portions of effects, in LSN order ──▶ shard 0: prefetch, apply
//!                                    └─────────────────────────────────────▶ shard 1: …
//! ```
//!
//! A record's effects go to the shards that have their keys now, whatever shards there were when it was written.
//! Each shard applies its own in the order of the log; how far the shards are apart does not matter, because nobody
//! is served before all of them have ended. A few portions are on their way at any time, so the memory this takes
//! is bounded.

use super::recovery::RecoveryError;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{Builder, scope};
use store::engine::Engine;
use store::mutation::Mutation;
use store::shards::Place;
use store::time::Now;
use wal::lsn::Lsn;

/// Bytes after which a portion goes on its way: little enough to be in the cache when it is applied, and enough that
/// handing it over costs nothing.
const PORTION_BYTES: usize = 256 << 10;
/// Portions that wait for a shard.
const PORTIONS: usize = 4;
/// A portion that grew beyond this for a large value is given back to the allocator.
const PORTION_BYTES_KEPT: usize = 4 * PORTION_BYTES;

/// Effects for one shard.
#[derive(Default)]
struct Portion {
    effects: Vec<u8>,
    /// Where the effects of a record end, and its LSN.
    records: Vec<(usize, Lsn)>,
}

impl Portion {
    fn add(&mut self, lsn: Lsn, effects: &[u8]) {
        self.effects.extend_from_slice(effects);
        match self.records.last_mut() {
            Some((end, last)) if *last == lsn => *end = self.effects.len(),
            _ => self.records.push((self.effects.len(), lsn)),
        }
    }

    /// The record to which the byte at `offset` belongs.
    fn lsn_at(&self, offset: usize) -> Lsn {
        self.records[self.records.partition_point(|&(end, _)| end <= offset)].1
    }
}

/// The reading thread's end.
struct Lane {
    filling: Portion,
    full: SyncSender<Portion>,
    empty: Receiver<Portion>,
}

impl Lane {
    fn add(&mut self, lsn: Lsn, effects: &[u8]) -> Result<(), String> {
        self.filling.add(lsn, effects);
        if self.filling.effects.len() >= PORTION_BYTES { self.send() } else { Ok(()) }
    }

    fn send(&mut self) -> Result<(), String> {
        let next = self.empty.try_recv().unwrap_or_default();
        let full = std::mem::replace(&mut self.filling, next);
        // The shard's thread says why it has ended.
        self.full.send(full).map_err(|_| String::from("the shard that has its keys has given up"))
    }
}

/// Has `read` read a log, and applies the records it passes on to the engines, which stand in the order of their
/// shards. `records` is how many it will be, about.
pub(super) fn replay<T>(
    directory: &Path,
    engines: Vec<&mut Engine>,
    records: u64,
    now: Now,
    read: impl FnOnce(&mut dyn FnMut(Lsn, u64, &[u8]) -> Result<(), String>) -> Result<T, RecoveryError>,
) -> Result<T, RecoveryError> {
    let count = engines.len();
    let place = Place { index: 0, count };
    let share = records / count as u64;
    scope(|scope| {
        let (mut lanes, mut appliers) = (Vec::new(), Vec::new());
        for (index, engine) in engines.into_iter().enumerate() {
            let (full, portions) = sync_channel(PORTIONS);
            let (back, empty) = channel();
            let work = move || apply(engine, &portions, &back, share, now);
            let thread = Builder::new().name(format!("replay-{index}")).spawn_scoped(scope, work);
            appliers.push(thread.map_err(|error| RecoveryError::Io {
                path: directory.to_path_buf(),
                doing: "starting a thread to recover",
                offset: 0,
                error,
            })?);
            lanes.push(Lane { filling: Portion::default(), full, empty });
        }
        let read = read(&mut |lsn, _, record| deal(&mut lanes, place, lsn, record));
        for lane in &mut lanes {
            // If the thread has ended, it says why.
            let _ = lane.send();
        }
        drop(lanes);
        // Of several that failed, the first in the log.
        let mut failed: Option<(Lsn, String)> = None;
        for applier in appliers {
            if let Err((lsn, why)) = applier.join().expect("applying does not panic")
                && failed.as_ref().is_none_or(|(first, _)| lsn < *first)
            {
                failed = Some((lsn, why));
            }
        }
        match failed {
            Some((lsn, why)) => Err(RecoveryError::Record { directory: directory.to_path_buf(), lsn, why }),
            None => read,
        }
    })
}

/// Gives every effect of a record to the shard that has its key.
fn deal(lanes: &mut [Lane], place: Place, lsn: Lsn, record: &[u8]) -> Result<(), String> {
    if let [lane] = lanes {
        return lane.add(lsn, record);
    }
    let mut rest = record;
    while !rest.is_empty() {
        let effect = rest;
        let mutation = Mutation::decode(&mut rest).map_err(|error| error.to_string())?;
        let effect = &effect[..effect.len() - rest.len()];
        match mutation.key() {
            Some(key) => lanes[place.shard_of(key)].add(lsn, effect)?,
            None => lanes.iter_mut().try_for_each(|lane| lane.add(lsn, effect))?,
        }
    }
    Ok(())
}

/// The life of a thread that applies. The error has the first record that cannot be applied, and why.
fn apply(
    engine: &mut Engine,
    portions: &Receiver<Portion>,
    back: &Sender<Portion>,
    mut left: u64,
    now: Now,
) -> Result<(), (Lsn, String)> {
    for mut portion in portions {
        let before = engine.keys() as u64;
        engine
            .apply_all(&portion.effects, now)
            .map_err(|error| (portion.lsn_at(error.at), error.why.to_string()))?;
        // If as many of the records to come bring a new key as of these did, it will be so many.
        let (keys, records) = (engine.keys() as u64, portion.records.len() as u64);
        left = left.saturating_sub(records);
        let new = keys.saturating_sub(before).min(records);
        engine.expect_keys((keys + (left as f64 * new as f64 / records.max(1) as f64) as u64) as usize);
        if portion.effects.capacity() <= PORTION_BYTES_KEPT {
            portion.effects.clear();
            portion.records.clear();
            // Nobody needs it any more once all is read.
            let _ = back.send(portion);
        }
    }
    engine.expect_keys(0);
    Ok(())
}
