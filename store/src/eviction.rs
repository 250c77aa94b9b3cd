//! What goes when `--maxmemory` is reached: policies by their Redis names, approximated by samples.
//!
//! Recency and frequency stand in the index, sixteen bits beside each offset: a sample of a bucket is one cache
//! line and nine candidates, without reading a record. The best candidates of the last samples wait in a small
//! pool, so that the choice is nearly that of a much larger sample. Policies restricted to entries with an
//! expiry sample the segments of the TTL classes instead, in which nearly every record has one.
//!
//! Everything random comes from [`Rng`], seeded at construction: the same calls evict the same keys.

use alloc::vec::Vec;

use crate::arena::{FIRST_UNIT, Slot};
use crate::image::unchecked::Extent;
use crate::index::{Place, SLOTS};
use crate::keyspace::{Change, Keyspace};
use crate::time::Now;

/// Which keys are removed to make room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EvictionPolicy {
    /// None: writes are refused.
    #[default]
    NoEviction,
    /// The least recently used of all keys.
    AllKeysLru,
    /// The least frequently used of all keys.
    AllKeysLfu,
    /// Any key.
    AllKeysRandom,
    /// The least recently used of the keys with an expiry.
    VolatileLru,
    /// The least frequently used of the keys with an expiry.
    VolatileLfu,
    /// Any key with an expiry.
    VolatileRandom,
    /// The key that expires first.
    VolatileTtl,
}

impl EvictionPolicy {
    /// Every policy, in the order Redis lists them.
    pub const ALL: [EvictionPolicy; 8] = [
        EvictionPolicy::VolatileLru,
        EvictionPolicy::VolatileLfu,
        EvictionPolicy::VolatileRandom,
        EvictionPolicy::VolatileTtl,
        EvictionPolicy::AllKeysLru,
        EvictionPolicy::AllKeysLfu,
        EvictionPolicy::AllKeysRandom,
        EvictionPolicy::NoEviction,
    ];

    /// The name Redis gives it.
    pub fn name(self) -> &'static str {
        match self {
            EvictionPolicy::NoEviction => "noeviction",
            EvictionPolicy::AllKeysLru => "allkeys-lru",
            EvictionPolicy::AllKeysLfu => "allkeys-lfu",
            EvictionPolicy::AllKeysRandom => "allkeys-random",
            EvictionPolicy::VolatileLru => "volatile-lru",
            EvictionPolicy::VolatileLfu => "volatile-lfu",
            EvictionPolicy::VolatileRandom => "volatile-random",
            EvictionPolicy::VolatileTtl => "volatile-ttl",
        }
    }

    /// The policy of that name, in any case of letters.
    pub fn parse(name: &str) -> Option<EvictionPolicy> {
        EvictionPolicy::ALL.into_iter().find(|policy| policy.name().eq_ignore_ascii_case(name))
    }

    /// What the access fields must record for this policy. Redis keeps recency unless frequency is asked for.
    pub fn access_mode(self) -> AccessMode {
        match self {
            EvictionPolicy::AllKeysLfu | EvictionPolicy::VolatileLfu => AccessMode::Lfu,
            _ => AccessMode::Lru,
        }
    }

    fn is_volatile(self) -> bool {
        matches!(
            self,
            EvictionPolicy::VolatileLru
                | EvictionPolicy::VolatileLfu
                | EvictionPolicy::VolatileRandom
                | EvictionPolicy::VolatileTtl
        )
    }
}

/// What the sixteen bits beside each offset record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccessMode {
    /// Nothing: reads do not write to the index.
    Off,
    /// The second of the last access.
    #[default]
    Lru,
    /// Redis' logarithmic counter, and the minute it was last decayed.
    Lfu,
}

/// New keys start here, so that they are not evicted before they had a chance.
const LFU_START: u8 = 5;
/// An age beyond this many seconds is not told apart. Half the range of the clock, so that a saturated age is met
/// again by the sweep before it wraps.
const IDLE_MAX_S: u16 = 32_768;
/// The same for the minutes of the frequency counter.
const DECAY_MAX_MIN: u8 = 128;

/// How access fields are kept: the mode and Redis' two parameters of the frequency counter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    pub mode: AccessMode,
    pub lfu_log_factor: u32,
    pub lfu_decay_minutes: u32,
    /// What the clock of access fields is ahead of the monotonic one: it goes on where an image stopped it.
    pub shift: u64,
}

impl Access {
    /// The clock that access fields have parts of.
    #[inline(always)]
    pub fn clock(self, now: Now) -> u64 {
        now.monotonic.0.wrapping_add(self.shift)
    }

    /// Lets the clock go on from where it was at some moment, by as much as has passed since.
    pub fn resume(&mut self, clock: u64, unix_us: u64, now: Now) {
        let passed = now.unix_us.saturating_sub(unix_us).saturating_mul(1000);
        self.shift = clock.wrapping_add(passed).wrapping_sub(now.monotonic.0);
    }

    #[inline(always)]
    fn seconds(self, now: Now) -> u16 {
        (self.clock(now) / 1_000_000_000) as u16
    }

    #[inline(always)]
    fn minutes(self, now: Now) -> u8 {
        (self.clock(now) / 60_000_000_000) as u8
    }

    /// The field of a new key.
    #[inline]
    pub fn start(self, now: Now) -> u16 {
        match self.mode {
            AccessMode::Off => 0,
            AccessMode::Lru => self.seconds(now),
            AccessMode::Lfu => u16::from(self.minutes(now)) << 8 | u16::from(LFU_START),
        }
    }

    /// The field of a key that is accessed now.
    #[inline]
    pub fn touch(self, field: u16, now: Now, rng: &mut Rng) -> u16 {
        match self.mode {
            AccessMode::Off => field,
            AccessMode::Lru => self.seconds(now),
            AccessMode::Lfu => {
                let counter = self.frequency(field, now);
                let above = u64::from(counter.saturating_sub(LFU_START)) * u64::from(self.lfu_log_factor) + 1;
                let lucky = counter < u8::MAX && (rng.next() >> 32) * above < 1 << 32;
                u16::from(self.minutes(now)) << 8 | u16::from(counter + u8::from(lucky))
            }
        }
    }

    /// Seconds since the last access.
    pub fn idle_seconds(self, field: u16, now: Now) -> u16 {
        self.seconds(now).wrapping_sub(field)
    }

    /// The counter after the decay it owes.
    pub fn frequency(self, field: u16, now: Now) -> u8 {
        let elapsed = self.minutes(now).wrapping_sub((field >> 8) as u8);
        match u32::from(elapsed).checked_div(self.lfu_decay_minutes) {
            Some(periods) => (field as u8).saturating_sub(periods.min(255) as u8),
            None => field as u8,
        }
    }

    /// The field as the sweep leaves it: unchanged while its age can be told, at the largest age afterwards.
    pub fn saturate(self, field: u16, now: Now) -> u16 {
        match self.mode {
            AccessMode::Off => field,
            AccessMode::Lru if self.idle_seconds(field, now) > IDLE_MAX_S => {
                self.seconds(now).wrapping_sub(IDLE_MAX_S)
            }
            AccessMode::Lfu if self.minutes(now).wrapping_sub((field >> 8) as u8) > DECAY_MAX_MIN => {
                u16::from(self.minutes(now)) << 8 | u16::from(self.frequency(field, now))
            }
            _ => field,
        }
    }

    /// In how many periods of ten seconds the sweep goes round: half of what the ages above allow.
    pub fn sweep_periods(self) -> u64 {
        match self.mode {
            AccessMode::Lfu => u64::from(DECAY_MAX_MIN) * 60 / 10 / 2,
            _ => u64::from(IDLE_MAX_S) / 10 / 2,
        }
    }
}

/// Our own small generator (one multiplication a number), so that a seed means the same for ever.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    #[inline]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let product = u128::from(self.0 ^ 0xd1b5_4a32_d192_ed03) * u128::from(self.0 | 1);
        let mixed = (product >> 64) as u64 ^ product as u64;
        // One more round: the product of a counter with itself alone is too regular in its low bits.
        let again = u128::from(mixed) * 0xd6e8_feb8_6659_fd93;
        (again >> 64) as u64 ^ again as u64
    }

    /// A number below `bound`, which must not be zero.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }
}

/// A key that may be evicted: the higher the score, the sooner.
#[derive(Clone, Copy)]
struct Candidate {
    score: u64,
    place: Place,
}

const POOL_MAX: usize = 16;
/// The best candidates seen, worst first.
pub(crate) struct Pool {
    candidates: Vec<Candidate>,
    policy: EvictionPolicy,
}

impl Pool {
    pub fn new() -> Pool {
        Pool { candidates: Vec::with_capacity(POOL_MAX + 1), policy: EvictionPolicy::NoEviction }
    }

    pub fn clear(&mut self) {
        self.candidates.clear();
    }

    fn offer(&mut self, candidate: Candidate) {
        if self.candidates.len() == POOL_MAX && candidate.score <= self.candidates[0].score {
            return;
        }
        if self.candidates.iter().any(|known| known.place == candidate.place) {
            return;
        }
        let at = self.candidates.partition_point(|known| known.score < candidate.score);
        self.candidates.insert(at, candidate);
        if self.candidates.len() > POOL_MAX {
            self.candidates.remove(0);
        }
    }
}

impl Keyspace {
    /// Keys that `policy` may evict.
    pub(crate) fn evictable(&self, policy: EvictionPolicy) -> usize {
        match policy {
            EvictionPolicy::NoEviction => 0,
            _ if policy.is_volatile() => self.expires_len(),
            _ => self.len(),
        }
    }

    /// Removes one key by `policy` and returns it; `None` if nothing may be evicted.
    pub fn evict_one(&mut self, policy: EvictionPolicy, now: Now) -> Option<Vec<u8>> {
        if self.evictable(policy) == 0 {
            return None;
        }
        if self.pool.policy != policy {
            self.pool.clear();
            self.pool.policy = policy;
        }
        let place = match policy {
            EvictionPolicy::AllKeysRandom => self.random_place()?,
            EvictionPolicy::VolatileRandom => self.next_volatile()?,
            _ => self.worst_of_samples(policy, now)?,
        };
        if self.is_unsure() && !self.check_record(place.offset(), None, Extent::Slot) {
            return None;
        }
        let header = self.arena.header(place.offset());
        let key = self.arena.key(place.offset(), &header).to_vec();
        self.remove_at(place, self.hash(&key), &header, Change::Evicted);
        Some(key)
    }

    fn worst_of_samples(&mut self, policy: EvictionPolicy, now: Now) -> Option<Place> {
        loop {
            self.take_samples(policy, now)?;
            while let Some(candidate) = self.pool.candidates.pop() {
                // Since it was sampled it may have been removed, moved, or used.
                if self.index.is_current(candidate.place)
                    && self.score(policy, candidate.place, now).is_some_and(|score| score >= candidate.score)
                {
                    return Some(candidate.place);
                }
            }
        }
    }

    fn take_samples(&mut self, policy: EvictionPolicy, now: Now) -> Option<()> {
        if policy.is_volatile() {
            for _ in 0..self.samples.max(1) {
                let place = self.next_volatile()?;
                if let Some(score) = self.score(policy, place, now) {
                    self.pool.offer(Candidate { score, place });
                }
            }
            return Some(());
        }
        // One bucket yields several candidates for one cache miss.
        for _ in 0..self.samples.div_ceil(4).max(1) {
            let random = self.rng.next();
            if self.is_unsure() && !self.check_sample(random) {
                return None;
            }
            let (pool, access) = (&mut self.pool, self.access);
            self.index.sample(random, &mut |place, field| {
                let score = access_score(access, policy, field, now);
                pool.offer(Candidate { score, place });
            });
        }
        Some(())
    }

    /// How much the entry at `place` deserves to go; `None` if the policy must not take it.
    fn score(&self, policy: EvictionPolicy, place: Place, now: Now) -> Option<u64> {
        if policy.is_volatile() {
            let expires_at = self.arena.header(place.offset()).expires_at;
            if expires_at == 0 {
                return None;
            }
            if policy == EvictionPolicy::VolatileTtl {
                return Some(u64::MAX - expires_at);
            }
        }
        Some(access_score(self.access, policy, self.index.access(place), now))
    }

    /// An entry of a bucket chosen at random.
    pub(crate) fn random_place(&mut self) -> Option<Place> {
        let random = self.rng.next();
        let choice = self.rng.next();
        if self.is_unsure() && !self.check_sample(random) {
            return None;
        }
        let mut met = [None; SLOTS];
        let mut count = 0;
        self.index.sample(random, &mut |place, _| {
            met[count] = Some(place);
            count += 1;
        });
        met[(choice % count.max(1) as u64) as usize]
    }

    /// The next entry with an expiry, from a TTL segment chosen at random, going on where the last sample of that
    /// segment ended.
    fn next_volatile(&mut self) -> Option<Place> {
        let segments = self.arena.segments().len();
        let mut number = self.rng.below(segments);
        // Every segment is looked through from its sample position to its end and, if need be, once from its start.
        for _ in 0..2 * segments + 1 {
            let segment = &self.arena.segments()[number];
            if segment.class != 0 && segment.live > 0 {
                let end = self.arena.end_unit(number);
                let mut unit = segment.sample_unit;
                while unit < end {
                    if self.is_unsure() && !self.check_walk(number, unit, end) {
                        return None;
                    }
                    let (offset, slot, next) = self.arena.walk(number, unit);
                    unit = next;
                    if let Slot::Record(header) = slot
                        && header.expires_at != 0
                    {
                        let key = self.arena.key(offset, &header);
                        let hash = self.hash(key);
                        if let Some(place) = self.index.find_offset(hash.0, key, offset) {
                            self.arena.segment_mut(number).sample_unit = unit;
                            return Some(place);
                        }
                    }
                }
                self.arena.segment_mut(number).sample_unit = FIRST_UNIT;
            }
            number = if number + 1 == segments { 0 } else { number + 1 };
        }
        None
    }
}

fn access_score(access: Access, policy: EvictionPolicy, field: u16, now: Now) -> u64 {
    match policy {
        EvictionPolicy::AllKeysLfu | EvictionPolicy::VolatileLfu => {
            u64::from(u8::MAX - access.frequency(field, now))
        }
        _ => u64::from(access.idle_seconds(field, now)),
    }
}
