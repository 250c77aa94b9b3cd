//! What simulated servers do for want of memory: keys are evicted, segments of the arena emptied; and how often.
//!
//! A server whose memory is bounded ([`Bound`]) has so little beyond its empty index that what clients write and what their
//! buffers take drives keys out, or has writes refused. Segments are emptied once images have left enough behind that is
//! dead. [`Chores`] has others emptied as well, and a turn then moves a few records only, so that images begin, keys end
//! and the power goes when a segment is half empty.

use super::ledger::Ledger;
use super::server::Setup;
use super::trace;
use crate::random::Random;
use std::sync::Arc;
use store::eviction::EvictionPolicy;
use store::keyspace::Keyspace;
use store::snapshots::Status;
use store::time::Now;

/// How much memory a server may take.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    /// Bytes beyond what it takes without keys and clients.
    pub bytes: u64,
    /// What becomes of the rest.
    pub policy: EvictionPolicy,
}

impl Bound {
    /// Any; mostly one under which something is evicted.
    pub fn draw(random: &mut Random) -> Bound {
        Bound {
            bytes: *random.pick(&[1000, 4000, 10_000, 20_000, 60_000]),
            // What is volatile only is mostly not enough.
            policy: match random.below(10) {
                0 => EvictionPolicy::NoEviction,
                1..4 => *random.pick(&EvictionPolicy::ALL),
                _ => {
                    let all = |policy: &&EvictionPolicy| may_evict(**policy, false);
                    let all: Vec<_> = EvictionPolicy::ALL.iter().filter(all).collect();
                    **random.pick(&all)
                }
            },
        }
    }

    /// `maxmemory` for these keyspaces.
    pub fn maxmemory(&self, keyspaces: &[Keyspace]) -> u64 {
        let empty = |keyspace: &Keyspace| (keyspace.used_bytes() - keyspace.stats().live_bytes) as u64;
        keyspaces.iter().map(empty).sum::<u64>() + self.bytes
    }
}

/// Whether a policy may take a key.
pub fn may_evict(policy: EvictionPolicy, expires: bool) -> bool {
    match policy {
        EvictionPolicy::NoEviction => false,
        EvictionPolicy::AllKeysLru | EvictionPolicy::AllKeysLfu | EvictionPolicy::AllKeysRandom => true,
        EvictionPolicy::VolatileLru
        | EvictionPolicy::VolatileLfu
        | EvictionPolicy::VolatileRandom
        | EvictionPolicy::VolatileTtl => expires,
    }
}

/// A shard as it was when somebody looked last.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    evicted: u64,
    emptied: u64,
    /// Bytes that compaction moved.
    moved: u64,
    /// A segment is half empty.
    half_empty: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Chores {
    /// Segments are emptied that nobody would choose.
    compacts: bool,
    /// Keys are evicted by this policy, and neither logged nor counted: a mistake made on purpose.
    loses: Option<EvictionPolicy>,
    /// Whether a snapshot is being taken.
    status: Option<Arc<Status>>,
    shards: Vec<Seen>,
    /// Records that remove keys, before this life.
    removals_before: u64,
    /// Keys evicted.
    pub evicted: u64,
    /// Segments emptied, and how many others were to be.
    pub emptied: u64,
    /// See there.
    pub asked: u64,
    /// Images that began while a segment was being emptied.
    pub interrupted: u64,
}

impl Chores {
    /// Of a server that begins.
    pub fn new(shards: usize, setup: &Setup, status: &Arc<Status>, ledger: &Ledger) -> Chores {
        Chores {
            status: setup.snapshots.map(|_| Arc::clone(status)),
            compacts: setup.compacts,
            loses: setup.memory.filter(|_| setup.loses_evictions).map(|bound| bound.policy),
            shards: vec![Seen::default(); shards],
            removals_before: ledger.removals(),
            evicted: 0,
            emptied: 0,
            asked: 0,
            interrupted: 0,
        }
    }

    /// Before a turn, and behind it: perhaps a segment is to be emptied.
    pub fn begin(&mut self, shard: usize, keyspace: &mut Keyspace, random: &mut Random, now: Now) {
        if let Some(policy) = self.loses
            && random.chance(5)
            && keyspace.evict_one(policy, now).is_some()
        {
            keyspace.take_effects(&mut Vec::new());
            self.shards[shard].evicted += 1;
        }
        // What an image interrupts has mostly begun just before.
        let is_near = keyspace.image_progress().is_none()
            && self.status.as_ref().is_some_and(|status| status.is_claimed());
        if !self.compacts || !random.chance(if is_near { 50 } else { 3 }) {
            return;
        }
        let before = keyspace.stats();
        let first = random.below(before.segments + 1);
        let numbers = (first..=before.segments).chain(0..first);
        if let Some(number) = numbers.into_iter().find(|&number| keyspace.evacuate_segment(number)) {
            trace!("shard {shard}: segment {number} is to be emptied");
            self.asked += 1;
        }
    }

    /// After a turn, whose records the ledger has: what was done.
    pub fn end(&mut self, shard: usize, keyspace: &Keyspace, ledger: &Ledger) -> Result<(), String> {
        let (stats, seen) = (keyspace.stats(), &mut self.shards[shard]);
        self.evicted += stats.evicted - seen.evicted;
        let emptied = stats.compacted_segments - seen.emptied;
        self.emptied += emptied;
        seen.half_empty = emptied == 0 && (seen.half_empty || stats.compacted_bytes > seen.moved);
        if seen.half_empty {
            trace!("shard {shard}: a segment is half empty");
        }
        if keyspace.image_progress().is_some() {
            self.interrupted += u64::from(std::mem::take(&mut seen.half_empty));
        }
        (seen.evicted, seen.emptied, seen.moved) =
            (stats.evicted, stats.compacted_segments, stats.compacted_bytes);
        let removals = ledger.removals() - self.removals_before;
        if self.evicted > removals && !ledger.is_behind() {
            return Err(format!("{} keys were evicted, and {removals} removals logged", self.evicted));
        }
        Ok(())
    }
}
