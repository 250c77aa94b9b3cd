//! Several shards that look like one server.
//!
//! Each shard is an [`Engine`](crate::engine::Engine) on a thread of its own, with its own keys, connections and
//! counters. Keys belong to shards by Redis Cluster's hash slots, `{tags}` included, so that a client can keep keys
//! together. Shards share nothing but [`Totals`]; what one wants of another it says in a [`Message`], and between any
//! two shards messages arrive in the order in which they were sent.
//!
//! - **A command whose keys all lie on one other shard hops there** ([`hop`]): it is executed there, and its answer
//!   takes the place that was kept for it among the connection's replies.
//! - **A command over several shards gathers them** ([`gather`]): each shard involved lends all it has to the shard of
//!   the connection, in ascending order so that two cannot wait for each other, stands still meanwhile, and gets it
//!   back. The command is executed where everything lies in one hand, as if there were one shard: it is atomic and
//!   isolated by construction, and no handler knows of messages.
//!
//! [`route`] says which of the two, or neither, a command needs.

pub mod gather;
pub mod hop;
pub mod route;

use crate::engine::Shared;
use crate::tracking::stream::Event;
use crate::tracking::{Invalidation, Redirected, Target};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use gather::{Acquisition, Gather};
use hop::Traffic;

pub use hop::Hop;

/// Hash slots, as in Redis Cluster.
pub const SLOTS: usize = 16_384;

/// The most shards a server can have: a set of them is one number.
pub const SHARDS_MAX: usize = 128;

/// A shard among the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// From 0 on.
    pub index: usize,
    /// How many there are.
    pub count: usize,
}

impl Default for Place {
    fn default() -> Place {
        Place { index: 0, count: 1 }
    }
}

impl Place {
    /// There are no others.
    #[inline]
    pub fn is_alone(self) -> bool {
        self.count == 1
    }

    /// The shard that has a key.
    #[inline]
    pub fn shard_of(self, key: &[u8]) -> usize {
        shard_of_slot(slot(key), self.count)
    }

    /// Every shard.
    pub fn everybody(self) -> ShardSet {
        ShardSet(u128::MAX >> (SHARDS_MAX - self.count))
    }
}

/// Slots are dealt out in equal, contiguous ranges.
#[inline]
pub fn shard_of_slot(slot: usize, count: usize) -> usize {
    slot * count / SLOTS
}

/// The slots of a shard: from the first up to but not including the second.
pub fn slots_of(index: usize, count: usize) -> (usize, usize) {
    ((index * SLOTS).div_ceil(count), ((index + 1) * SLOTS).div_ceil(count))
}

/// The hash slot of a key, by the rule of the Redis Cluster specification: CRC-16/XMODEM of what stands between the
/// first `{` and the first `}` behind it, if that is anything, else of the whole key; modulo 16384.
pub fn slot(key: &[u8]) -> usize {
    let tag = memchr::memchr(b'{', key).and_then(|open| {
        let behind = &key[open + 1..];
        memchr::memchr(b'}', behind).filter(|&length| length > 0).map(|length| &behind[..length])
    });
    usize::from(crc16(tag.unwrap_or(key))) % SLOTS
}

/// Eight tables, so that eight bytes are one step: one byte at a time, a key of sixteen would cost more than its GET.
static CRC16: [[u16; 256]; 8] = {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 != 0 { (crc << 1) ^ 0x1021 } else { crc << 1 };
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut table = 1;
    while table < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[table - 1][byte];
            tables[table][byte] = (before << 8) ^ tables[0][(before >> 8) as usize];
            byte += 1;
        }
        table += 1;
    }
    tables
};

fn crc16(bytes: &[u8]) -> u16 {
    let mut crc = 0u16;
    let mut rest = bytes;
    while let Some((eight, behind)) = rest.split_first_chunk::<8>() {
        let high = crc.to_be_bytes();
        crc = CRC16[7][usize::from(eight[0] ^ high[0])]
            ^ CRC16[6][usize::from(eight[1] ^ high[1])]
            ^ CRC16[5][usize::from(eight[2])]
            ^ CRC16[4][usize::from(eight[3])]
            ^ CRC16[3][usize::from(eight[4])]
            ^ CRC16[2][usize::from(eight[5])]
            ^ CRC16[1][usize::from(eight[6])]
            ^ CRC16[0][usize::from(eight[7])];
        rest = behind;
    }
    rest.iter().fold(crc, |crc, byte| (crc << 8) ^ CRC16[0][usize::from((crc >> 8) as u8 ^ byte)])
}

/// Some of the shards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardSet(u128);

impl ShardSet {
    /// Adds one.
    pub fn insert(&mut self, shard: usize) {
        self.0 |= 1 << shard;
    }

    /// Removes one.
    pub fn remove(&mut self, shard: usize) {
        self.0 &= !(1 << shard);
    }

    /// Whether this one is among them.
    pub fn contains(self, shard: usize) -> bool {
        self.0 >> shard & 1 == 1
    }

    /// Whether all of `other` are.
    pub fn covers(self, other: ShardSet) -> bool {
        other.0 & !self.0 == 0
    }

    /// Whether one is in both.
    pub fn meets(self, other: ShardSet) -> bool {
        self.0 & other.0 != 0
    }

    /// Both together.
    pub fn with(self, other: ShardSet) -> ShardSet {
        ShardSet(self.0 | other.0)
    }

    /// How many.
    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// None.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The lowest.
    pub fn first(self) -> Option<usize> {
        (self.0 != 0).then(|| self.0.trailing_zeros() as usize)
    }
}

/// What one shard tells another.
pub enum Message {
    /// Commands of one connection, to be executed.
    Hop(Box<Hop>),
    /// The same, answered.
    Answer(Box<Hop>),
    /// A command of mine needs you: lend me what you have.
    Borrow,
    /// Here it is. I stand still until it is back.
    Lent(Box<Shared>),
    /// I sleep (DEBUG SLEEP) and cannot lend now; you will hear when I wake.
    Asleep,
    /// I am awake.
    Awake,
    /// Take it back.
    Return(Box<Shared>),
    /// A connection of mine watches these keys no more.
    Unwatch(Vec<Box<[u8]>>),
    /// Tell your clients that a key is not what it was.
    Invalidate(Box<Invalidation>),
    /// A client of mine wants one of yours to be told in its place.
    Redirect(Box<Redirected>),
    /// Whom your client wanted to be told in its place, by its id, is gone.
    RedirectBroken(Target, u64),
    /// A client of mine, by its id, need not hear of keys any more.
    Forget(u64),
    /// No client of mine wants to hear of every key any more.
    Deaf,
    /// For your streams of invalidations: a key of mine has changed.
    Event(Box<Event>),
    /// A stream of mine has ended: which token it had, and whether it was the last.
    StreamEnded(Option<u64>, bool),
}

impl Message {
    /// It may be heard before what its sender said earlier, and must be heard before anything that is said because of it:
    /// see [`crate::tracking`]. What comes earlier than it might is put behind everything that its receiver is still to
    /// be answered, so it cannot be too early.
    #[inline]
    pub fn is_tell(&self) -> bool {
        matches!(self, Message::Invalidate(_) | Message::Redirect(_))
    }
}

impl core::fmt::Debug for Message {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        formatter.write_str(match self {
            Message::Hop(_) => "Hop",
            Message::Answer(_) => "Answer",
            Message::Borrow => "Borrow",
            Message::Lent(_) => "Lent",
            Message::Asleep => "Asleep",
            Message::Awake => "Awake",
            Message::Return(_) => "Return",
            Message::Unwatch(_) => "Unwatch",
            Message::Invalidate(_) => "Invalidate",
            Message::Redirect(_) => "Redirect",
            Message::RedirectBroken(..) => "RedirectBroken",
            Message::Forget(_) => "Forget",
            Message::Deaf => "Deaf",
            Message::Event(_) => "Event",
            Message::StreamEnded(..) => "StreamEnded",
        })
    }
}

/// What a shard keeps about the others.
pub struct Fleet {
    /// Which one this is.
    pub place: Place,
    /// What all of them may look at.
    pub totals: Arc<Totals>,
    pub(crate) outbox: VecDeque<(usize, Message)>,
    /// What goes before that: see [`Message::is_tell`].
    pub(crate) tells: VecDeque<(usize, Message)>,
    pub(crate) traffic: Traffic,
    /// Commands that wait for other shards to be lent.
    pub(crate) gathers: VecDeque<Gather>,
    pub(crate) acquisition: Option<Acquisition>,
    /// The shard that was asked for by an acquisition that was given up, and has not answered.
    pub(crate) unwanted: Option<usize>,
    /// Who wants to borrow this shard.
    pub(crate) borrowers: VecDeque<usize>,
    /// Shards that said they sleep.
    pub(crate) asleep: ShardSet,
    /// Shards that were told that this one sleeps.
    pub(crate) told: ShardSet,
    /// The shards lent to this one while it executes a command over several, ascending.
    pub(crate) guests: Vec<(usize, Box<Shared>)>,
    /// Whose keyspace stands in the place of this shard's.
    pub(crate) selected: usize,
    /// Hops sent to other shards.
    pub hops_sent: u64,
    /// Commands in them.
    pub hop_commands_sent: u64,
    /// Hops of other shards executed.
    pub hops_served: u64,
    /// Times a hop had to wait because as many as `hop-queue` were away.
    pub queue_waits: u64,
    /// Commands executed over several shards.
    pub gathered_commands: u64,
    /// Times this shard was lent.
    pub times_lent: u64,
}

impl Fleet {
    pub(crate) fn new(place: Place, totals: Arc<Totals>, hop_queue: usize) -> Fleet {
        assert!(place.count <= SHARDS_MAX && place.index < place.count, "{place:?} is no place for a shard");
        Fleet {
            place,
            totals,
            outbox: VecDeque::new(),
            tells: VecDeque::new(),
            traffic: Traffic::new(place.count, hop_queue),
            gathers: VecDeque::new(),
            acquisition: None,
            unwanted: None,
            borrowers: VecDeque::new(),
            asleep: ShardSet::default(),
            told: ShardSet::default(),
            guests: Vec::new(),
            selected: place.index,
            hops_sent: 0,
            hop_commands_sent: 0,
            hops_served: 0,
            queue_waits: 0,
            gathered_commands: 0,
            times_lent: 0,
        }
    }
}

impl Fleet {
    /// CONFIG RESETSTAT
    pub(crate) fn reset_counters(&mut self) {
        self.hops_sent = 0;
        self.hop_commands_sent = 0;
        self.hops_served = 0;
        self.queue_waits = 0;
        self.gathered_commands = 0;
        self.times_lent = 0;
    }
}

/// What handlers see of the other shards while a command is executed over several. Without guests all of this is about
/// this shard alone, which is the whole server then, or all that the command needs.
impl Shared {
    /// Other shards are in hand.
    #[inline]
    pub fn has_guests(&self) -> bool {
        !self.fleet.guests.is_empty()
    }

    /// Whether the keys of a shard can be reached now.
    pub(crate) fn has_in_hand(&self, shard: usize) -> bool {
        shard == self.fleet.place.index || self.fleet.guests.iter().any(|(index, _)| *index == shard)
    }

    /// Puts the keyspace that has `key` into `keyspace`.
    #[inline]
    pub fn select(&mut self, key: &[u8]) {
        if self.has_guests() {
            self.select_shard(self.fleet.place.shard_of(key));
        }
    }

    /// Puts the keyspace of a shard into `keyspace`, if it is in hand.
    pub(crate) fn select_shard(&mut self, shard: usize) {
        if self.fleet.selected == shard {
            return;
        }
        self.deselect();
        if let Some((_, guest)) = self.fleet.guests.iter_mut().find(|(index, _)| *index == shard) {
            core::mem::swap(&mut self.keyspace, &mut guest.keyspace);
            self.fleet.selected = shard;
        }
    }

    /// Puts this shard's own keyspace back.
    pub(crate) fn deselect(&mut self) {
        let (own, selected) = (self.fleet.place.index, self.fleet.selected);
        if selected != own
            && let Some((_, guest)) = self.fleet.guests.iter_mut().find(|(index, _)| *index == selected)
        {
            core::mem::swap(&mut self.keyspace, &mut guest.keyspace);
            self.fleet.selected = own;
        }
    }

    /// This shard and all guests, ascending. Nothing may be selected.
    pub fn all(&self) -> impl Iterator<Item = &Shared> {
        debug_assert_eq!(self.fleet.selected, self.fleet.place.index);
        let own = self.fleet.place.index;
        let guests = || self.fleet.guests.iter().map(|(index, guest)| (*index, &**guest));
        let below = guests().filter(move |(index, _)| *index < own);
        let above = guests().filter(move |(index, _)| *index > own);
        below.chain(core::iter::once((own, self))).chain(above).map(|(_, shard)| shard)
    }

    /// Whether a shard that is lent to this one follows another server; also while something is selected.
    pub(crate) fn has_following_guests(&self) -> bool {
        self.fleet.guests.iter().any(|(_, guest)| guest.replication.is_following())
    }

    /// Does the same to this shard and all guests, ascending.
    pub fn for_all(&mut self, mut act: impl FnMut(&mut Shared)) {
        self.deselect();
        let mut guests = core::mem::take(&mut self.fleet.guests);
        let own = self.fleet.place.index;
        guests.iter_mut().filter(|(index, _)| *index < own).for_each(|(_, guest)| act(guest));
        act(self);
        guests.iter_mut().filter(|(index, _)| *index > own).for_each(|(_, guest)| act(guest));
        self.fleet.guests = guests;
    }
}

/// The few numbers that every shard may look at without asking: each writes its own and reads the others'.
#[derive(Debug)]
pub struct Totals {
    shards: Vec<ShardTotals>,
}

/// On cache lines of its own: a shard writes its own often.
#[derive(Debug, Default)]
#[repr(align(128))]
struct ShardTotals {
    clients: AtomicU64,
    used_bytes: AtomicU64,
    subscribers: AtomicU64,
}

impl Totals {
    /// Nothing yet, of so many shards.
    pub fn new(count: usize) -> Arc<Totals> {
        Arc::new(Totals { shards: (0..count).map(|_| ShardTotals::default()).collect() })
    }

    /// Says what a shard has now.
    pub(crate) fn publish(&self, shard: usize, clients: usize, used_bytes: u64, subscribers: usize) {
        let own = &self.shards[shard];
        own.clients.store(clients as u64, Ordering::Relaxed);
        own.used_bytes.store(used_bytes, Ordering::Relaxed);
        // A publisher that has seen the reply to SUBSCRIBE must see this too.
        own.subscribers.store(subscribers as u64, Ordering::SeqCst);
    }

    fn others(&self, shard: usize) -> impl Iterator<Item = &ShardTotals> {
        self.shards.iter().enumerate().filter(move |(index, _)| *index != shard).map(|(_, totals)| totals)
    }

    /// Clients of all shards but one.
    pub(crate) fn clients_elsewhere(&self, shard: usize) -> usize {
        self.others(shard).map(|other| other.clients.load(Ordering::Relaxed) as usize).sum()
    }

    /// Bytes that `maxmemory` counts, of all shards but one.
    pub(crate) fn used_elsewhere(&self, shard: usize) -> u64 {
        self.others(shard).map(|other| other.used_bytes.load(Ordering::Relaxed)).sum()
    }

    /// The shards that have listeners.
    pub(crate) fn with_subscribers(&self) -> ShardSet {
        let mut set = ShardSet::default();
        for (index, shard) in self.shards.iter().enumerate() {
            if shard.subscribers.load(Ordering::SeqCst) > 0 {
                set.insert(index);
            }
        }
        set
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod slot_tests {
    use super::*;

    /// Values of CLUSTER KEYSLOT from redis-server 7.0.15.
    #[test]
    fn slots_are_those_of_redis_cluster() {
        let known: [(&[u8], usize); 8] = [
            (b"", 0),
            (b"foo", 12182),
            (b"123456789", 12739),
            (b"{user1000}.following", 3443),
            (b"{user1000}.followers", 3443),
            (b"foo{}{bar}", 8363),
            (b"foo{{bar}}zap", 4015),
            (b"foo{bar}{zap}", 5061),
        ];
        for (key, wanted) in &known {
            assert_eq!(slot(key), *wanted, "{}", key.escape_ascii());
        }
    }

    #[test]
    fn eight_bytes_at_a_time_are_eight_times_one() {
        let bytes: Vec<u8> = (0..200u32).map(|at| (at * 37 + 11) as u8).collect();
        for len in 0..bytes.len() {
            let slow = bytes[..len]
                .iter()
                .fold(0u16, |crc, byte| (crc << 8) ^ CRC16[0][usize::from((crc >> 8) as u8 ^ byte)]);
            assert_eq!(crc16(&bytes[..len]), slow);
        }
    }

    #[test]
    fn every_slot_has_one_shard_and_shards_have_contiguous_slots() {
        for count in [1, 2, 3, 4, 7, 64, SHARDS_MAX] {
            let mut next = 0;
            for index in 0..count {
                let (from, to) = slots_of(index, count);
                assert_eq!(from, next);
                assert!((from..to).all(|slot| shard_of_slot(slot, count) == index));
                assert!((SLOTS / count..=SLOTS / count + 1).contains(&(to - from)));
                next = to;
            }
            assert_eq!(next, SLOTS);
        }
    }

    #[test]
    fn sets_know_their_members() {
        let mut set = ShardSet::default();
        assert!(set.is_empty() && set.first().is_none());
        set.insert(3);
        set.insert(127);
        assert_eq!((set.len(), set.first(), set.contains(127), set.contains(4)), (2, Some(3), true, false));
        assert!(Place { index: 0, count: 128 }.everybody().covers(set));
        assert!(!Place { index: 0, count: 127 }.everybody().covers(set));
        set.remove(3);
        assert_eq!(set.first(), Some(127));
    }
}
