//! What the log holds, on its way to the shards: one thread reads, and one for each shard applies.
//!
//! ```text
//! reading: files, checksums, frames ── portions of effects, in LSN order ──▶ shard 0: prefetch, apply
//!                                    └─────────────────────────────────────▶ shard 1: …
//! ```
//!
//! A record's effects go to the shards that have their keys now, whatever shards there were when it was written.
//! Each shard applies its own in the order of the log, and leaves out what the image it began with holds already; how far
//! the shards are apart does not matter, because nobody is served before all of them have ended. A few portions are on their way at any time, so the memory this takes
//! is bounded.

use super::recovery::RecoveryError;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{Builder, scope};
use store::keyspace::Keyspace;
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

/// Where the effects of one shard go.
pub(super) struct Target<'a> {
    pub(super) keyspace: &'a mut Keyspace,
    /// It holds all records up to this one.
    pub(super) behind: Lsn,
}

impl<'a> Target<'a> {
    /// One that holds nothing yet.
    pub(super) fn empty(keyspace: &'a mut Keyspace) -> Target<'a> {
        Target { keyspace, behind: Lsn::ZERO }
    }
}

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
    behind: Lsn,
    filling: Portion,
    full: SyncSender<Portion>,
    empty: Receiver<Portion>,
}

impl Lane {
    fn add(&mut self, lsn: Lsn, effects: &[u8]) -> Result<(), String> {
        if lsn <= self.behind {
            return Ok(());
        }
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

/// Has `read` read a log, and applies the records it passes on to the targets, which stand in the order of their
/// shards. `records` is how many it will be, about.
pub(super) fn replay<T>(
    directory: &Path,
    targets: Vec<Target<'_>>,
    records: u64,
    now: Now,
    read: impl FnOnce(&mut dyn FnMut(Lsn, u64, &[u8]) -> Result<(), String>) -> Result<T, RecoveryError>,
) -> Result<T, RecoveryError> {
    let count = targets.len();
    let place = Place { index: 0, count };
    let share = records / count as u64;
    scope(|scope| {
        let (mut lanes, mut appliers) = (Vec::new(), Vec::new());
        for (index, Target { keyspace, behind }) in targets.into_iter().enumerate() {
            let (full, portions) = sync_channel(PORTIONS);
            let (back, empty) = channel();
            let work = move || apply(keyspace, &portions, &back, share, now);
            let thread = Builder::new().name(format!("replay-{index}")).spawn_scoped(scope, work);
            appliers.push(thread.map_err(|error| RecoveryError::Io {
                path: directory.to_path_buf(),
                doing: "starting a thread to recover",
                offset: 0,
                error,
            })?);
            lanes.push(Lane { behind, filling: Portion::default(), full, empty });
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
    keyspace: &mut Keyspace,
    portions: &Receiver<Portion>,
    back: &Sender<Portion>,
    mut left: u64,
    now: Now,
) -> Result<(), (Lsn, String)> {
    for mut portion in portions {
        let before = keyspace.len() as u64;
        keyspace
            .apply_all(&portion.effects, now)
            .map_err(|error| (portion.lsn_at(error.at), error.why.to_string()))?;
        // If as many of the records to come bring a new key as of these did, it will be so many.
        let (keys, records) = (keyspace.len() as u64, portion.records.len() as u64);
        left = left.saturating_sub(records);
        let new = keys.saturating_sub(before).min(records);
        keyspace.expect((keys + (left as f64 * new as f64 / records.max(1) as f64) as u64) as usize);
        if portion.effects.capacity() <= PORTION_BYTES_KEPT {
            portion.effects.clear();
            portion.records.clear();
            // Nobody needs it any more once all is read.
            let _ = back.send(portion);
        }
    }
    keyspace.expect(0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use store::arena::HeapSource;
    use store::keyspace::KeyspaceOptions;
    use store::value::Encoding;

    fn keyspaces(count: usize) -> Vec<Keyspace> {
        let keyspace = |_| Keyspace::new(KeyspaceOptions::default(), Box::new(HeapSource::default()));
        (0..count).map(keyspace).collect()
    }

    fn set(number: u64, value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let key = format!("key-{}", number % 5000);
        Mutation::Set { key: key.as_bytes(), value, expires_at: None, encoding: Encoding::Auto }
            .encode(&mut bytes);
        bytes
    }

    fn into(keyspaces: &mut [Keyspace], records: &[Vec<u8>]) -> Result<(), RecoveryError> {
        let behind = vec![Lsn::ZERO; keyspaces.len()];
        into_behind(keyspaces, &behind, records)
    }

    fn into_behind(
        keyspaces: &mut [Keyspace],
        behind: &[Lsn],
        records: &[Vec<u8>],
    ) -> Result<(), RecoveryError> {
        let count = records.len() as u64;
        let targets = keyspaces.iter_mut().zip(behind);
        let targets = targets.map(|(keyspace, &behind)| Target { keyspace, behind }).collect();
        replay(Path::new("there"), targets, count, Now::default(), |each| {
            for (at, record) in records.iter().enumerate() {
                let lsn = Lsn(at as u64 + 1);
                each(lsn, 0, record).map_err(|why| RecoveryError::Record {
                    directory: "there".into(),
                    lsn,
                    why,
                })?;
            }
            Ok(())
        })
    }

    /// Many portions, values larger than one, and a clearing in between: every shard ends with what is its own.
    #[test]
    fn every_shard_gets_its_own_and_in_order() {
        for count in [1, 3] {
            let mut keyspaces = keyspaces(count);
            let mut records: Vec<Vec<u8>> =
                (0..20_000).map(|number| set(number, &number.to_le_bytes())).collect();
            let mut clear = Vec::new();
            Mutation::Clear.encode(&mut clear);
            records.push(clear);
            records
                .push([set(1, &vec![7; 3 << 20]), set(2, b"two"), set(3, b"three"), set(1, b"one")].concat());
            records.extend((4..4000).map(|number| set(number, b"old")));
            records.extend((4..4000).map(|number| set(number, &number.to_le_bytes())));
            into(&mut keyspaces, &records).unwrap();
            assert_eq!(keyspaces.iter().map(Keyspace::len).sum::<usize>(), 3999);
            let place = Place { index: 0, count };
            for number in 1..4000_u64 {
                let key = format!("key-{number}");
                let keyspace = &mut keyspaces[place.shard_of(key.as_bytes())];
                let hash = keyspace.hash(key.as_bytes());
                let value = keyspace.peek(key.as_bytes(), hash, Now::default()).unwrap().value.to_vec();
                let expected = match number {
                    1 => b"one".to_vec(),
                    2 => b"two".to_vec(),
                    3 => b"three".to_vec(),
                    _ => number.to_le_bytes().to_vec(),
                };
                assert_eq!(value, expected, "{key} of {count} shards");
            }
        }
    }

    /// The record that is wrong is named, and not the one that was being read when that was found.
    #[test]
    fn a_record_that_cannot_be_applied_is_named() {
        for count in [1, 3] {
            let mut records: Vec<Vec<u8>> = (0..100_000).map(|number| set(number, b"some value")).collect();
            records[17_000] = vec![99];
            let refused = into(&mut keyspaces(count), &records).unwrap_err();
            assert!(matches!(refused, RecoveryError::Record { lsn: Lsn(17_001), .. }), "{refused}");
        }
    }

    /// Records that an image holds already are not applied to its shard, and to the others they are: also a clearing, which
    /// has no key.
    #[test]
    fn what_a_shard_holds_already_is_left_out() {
        let place = Place { index: 0, count: 3 };
        let mut records: Vec<Vec<u8>> = (0..300).map(|number| set(number, b"1")).collect();
        let mut clear = Vec::new();
        Mutation::Clear.encode(&mut clear);
        records.push(clear);
        records.extend((0..100).map(|number| set(number, b"2")));
        // LSNs from 1: the clearing is 301.
        let behind = [Lsn(0), Lsn(301), Lsn(350)];
        let mut keyspaces = keyspaces(3);
        keyspaces[1].apply_all(&image_key(1), Now::default()).unwrap();
        into_behind(&mut keyspaces, &behind, &records).unwrap();
        for number in 0..300_u64 {
            let key = format!("key-{number}");
            let shard = place.shard_of(key.as_bytes());
            let keyspace = &mut keyspaces[shard];
            let found =
                keyspace.peek(key.as_bytes(), keyspace.hash(key.as_bytes()), Now::default()).is_some();
            let expected = number < 100 && (shard < 2 || number >= 49);
            assert_eq!(found, expected, "{key} of shard {shard}");
        }
        // Nothing has cleared what the image of shard 1 brought.
        let hash = keyspaces[1].hash(b"image-1");
        assert!(keyspaces[1].peek(b"image-1", hash, Now::default()).is_some());
    }

    fn image_key(number: u64) -> Vec<u8> {
        let (key, mut bytes) = (format!("image-{number}"), Vec::new());
        let (value, expires_at) = (&b"kept"[..], None);
        Mutation::Set { key: key.as_bytes(), value, expires_at, encoding: Encoding::Auto }.encode(&mut bytes);
        bytes
    }
}
