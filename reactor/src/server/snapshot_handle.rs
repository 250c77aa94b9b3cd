//! What shards and whoever takes snapshots share: orders to the shards, parts of images on their way, the LSN.
//!
//! ```text
//! shard ── Wish, Begun, Parts, AllOut ──▶ owner ── operations ──▶ disk
//!   ▲                                      │
//!   └── Begin, Buffer, Abandon, Ended ─────┘
//! ```
//!
//! A shard that has nothing to do with a snapshot looks at one flag a turn. Buffers go round: the owner gives a shard a
//! few with the order to begin, and there are never more.

use super::log_handle::{LogShared, Waker};
use snapshot::names::SnapshotId;
use snapshot::operation::Completion;
use snapshot::writer::RunPart;
use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use store::config::Config;
use store::image::{ImageBegin, ImageRefusal};
use store::snapshots::{Status, Wish};
use wal::block::BlockBuffer;
use wal::lsn::{Epoch, Lsn};

/// Bytes of a buffer, and of the longest write.
pub const BUFFER_BYTES: usize = 512 << 10;
/// Buffers of all shards together, about.
const BUFFERS: usize = 16;

/// Buffers that a shard is given.
pub(super) fn buffers_of_each(shards: usize) -> usize {
    (BUFFERS / shards).clamp(2, 8)
}

/// Names an attempt to take a snapshot, so that what belongs to one that was given up is told from the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(pub u64);

/// Some parts of a shard's image, in memory that the kernel can write from as it is.
#[derive(Debug)]
pub struct PartBuffer {
    bytes: BlockBuffer,
    parts: Vec<RunPart>,
}

impl PartBuffer {
    /// An empty one in this memory.
    pub fn new(mut bytes: BlockBuffer) -> PartBuffer {
        bytes.clear();
        PartBuffer { bytes, parts: Vec::new() }
    }

    /// Bytes that fit in.
    pub fn room(&self) -> usize {
        self.bytes.capacity() - self.bytes.used()
    }

    /// Adds a part; one that follows the last joins it.
    pub fn push(&mut self, region: u32, offset: usize, bytes: &[u8]) {
        self.bytes.append(bytes);
        let part = RunPart { region: region as usize, offset: offset as u64, bytes: bytes.len() };
        match self.parts.last_mut() {
            Some(last) if last.region == part.region && last.offset + last.bytes as u64 == part.offset => {
                last.bytes += part.bytes;
            }
            _ => self.parts.push(part),
        }
    }

    /// The parts, and where they lie one behind the other.
    pub(super) fn into_parts(self) -> (Vec<RunPart>, BlockBuffer) {
        (self.parts, self.bytes)
    }
}

/// What the owner is told.
#[derive(Debug)]
pub enum Message {
    /// A client wants a snapshot.
    Wish(Wish),
    /// A shard has begun its image.
    Begun {
        /// Which shard.
        shard: usize,
        /// Of which attempt.
        ticket: Ticket,
        /// What is in it.
        image: Begun,
    },
    /// A shard cannot.
    Refused {
        /// Of which attempt.
        ticket: Ticket,
        /// Why.
        why: ImageRefusal,
    },
    /// Parts of a shard's image.
    Parts {
        /// Which shard.
        shard: usize,
        /// Of which attempt.
        ticket: Ticket,
        /// They.
        buffer: PartBuffer,
    },
    /// A shard has no more parts.
    AllOut {
        /// Of which attempt.
        ticket: Ticket,
    },
    /// A write to the file is done.
    Written(Completion),
    /// The settings have changed.
    Settings(Schedule),
    /// All data was replaced by this snapshot, which has its name in the directory: none before it counts.
    Replaced(Option<SnapshotId>),
    /// A shard has no clients any more, and waits for [`Order::Leave`].
    Over {
        /// Which shard.
        shard: usize,
        /// Its changes so far.
        changes: u64,
    },
    /// A shard has ended.
    Gone {
        /// Which shard.
        shard: usize,
    },
}

/// What a shard's image is.
#[derive(Debug)]
pub struct Begun {
    /// All records up to here are in it.
    pub lsn: Lsn,
    /// Its changes so far; see [`Keyspace::changes`](store::keyspace::Keyspace::changes).
    pub changes: u64,
    /// Its keys.
    pub keys: u64,
    /// Its meta and regions.
    pub begin: ImageBegin,
}

/// What a shard is told.
#[derive(Debug)]
pub enum Order {
    /// Begin an image at the end of a turn.
    Begin(Ticket, Vec<PartBuffer>),
    /// A buffer comes back.
    Buffer(Ticket, PartBuffer),
    /// Give it up.
    Abandon(Ticket),
    /// The snapshot that clients with this wish waited for is durable, or there is none.
    Ended(Option<Wish>, Result<(), Arc<str>>),
    /// There is nothing more to be done: the shard may end.
    Leave,
}

/// When snapshots are taken and how many are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Bytes of log since the last one; 0: never for that.
    pub log_bytes: u64,
    /// Seconds since the last one; 0: never for that.
    pub interval_s: u64,
    /// When the server ends.
    pub on_shutdown: bool,
    /// How many are kept.
    pub keep: usize,
}

impl Schedule {
    /// What the settings say.
    pub fn of(config: &Config) -> Schedule {
        Schedule {
            log_bytes: config.snapshot_log_bytes,
            interval_s: config.snapshot_interval,
            on_shutdown: config.snapshot_on_shutdown,
            keep: config.snapshot_keep as usize,
        }
    }
}

/// The order of all records, as images need it.
#[derive(Clone, Debug)]
pub enum History {
    /// A log gives it.
    Log(Arc<LogShared>),
    /// There is no log: the data is that of this record, and of what was changed since.
    Still(Epoch, Lsn),
}

impl History {
    /// The last LSN that was given to a record.
    pub fn allocated_lsn(&self) -> Lsn {
        match self {
            History::Log(log) => log.allocated_lsn(),
            History::Still(_, lsn) => *lsn,
        }
    }

    /// Everything up to here is durable, or as durable as it will be.
    pub fn durable_lsn(&self) -> Lsn {
        match self {
            History::Log(log) => log.durable_lsn(),
            History::Still(_, lsn) => *lsn,
        }
    }

    /// The history the LSNs belong to.
    pub fn epoch(&self) -> Epoch {
        match self {
            History::Log(log) => log.epoch(),
            History::Still(epoch, _) => *epoch,
        }
    }

    /// Bytes of log written by this process.
    pub fn log_bytes(&self) -> u64 {
        match self {
            History::Log(log) => log.metrics().log.block_bytes,
            History::Still(..) => 0,
        }
    }

    /// Why nothing more becomes durable, if that is so.
    pub fn failure(&self) -> Option<String> {
        match self {
            History::Log(log) if !log.is_open() => {
                let state = log.state();
                (!state.is_full()).then(|| state.to_string())
            }
            _ => None,
        }
    }
}

/// On cache lines of its own: the shard writes to it every turn.
#[repr(align(128))]
struct Slot {
    /// Changes of the shard so far.
    changes: AtomicU64,
    orders: Mutex<VecDeque<Order>>,
    has_orders: AtomicBool,
    /// The shard sleeps, or is about to, and wants to hear of a buffer.
    wants_buffer: AtomicBool,
    waker: Waker,
}

/// What everybody sees.
pub struct SnapshotShared {
    slots: Vec<Slot>,
    /// What commands see.
    pub status: Arc<Status>,
    /// The order of all records.
    pub history: History,
}

impl fmt::Debug for SnapshotShared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SnapshotShared({} shards, {:?})", self.slots.len(), self.history)
    }
}

impl SnapshotShared {
    pub(super) fn new(history: History, status: Arc<Status>, wakers: Vec<Waker>) -> SnapshotShared {
        let slot = |waker| Slot {
            changes: AtomicU64::new(0),
            orders: Mutex::default(),
            has_orders: AtomicBool::new(false),
            wants_buffer: AtomicBool::new(false),
            waker,
        };
        SnapshotShared { slots: wakers.into_iter().map(slot).collect(), status, history }
    }

    /// How many shards there are.
    pub fn shards(&self) -> usize {
        self.slots.len()
    }

    /// Changes of all shards so far.
    pub(super) fn changes(&self) -> u64 {
        self.slots.iter().map(|slot| slot.changes.load(Ordering::Relaxed)).sum()
    }

    /// A shard has made so many changes.
    #[inline]
    pub(super) fn note_changes(&self, shard: usize, changes: u64) {
        self.slots[shard].changes.store(changes, Ordering::Relaxed);
    }

    /// Tells a shard something. It is woken, except for a buffer that it does not wait for.
    pub(super) fn order(&self, shard: usize, order: Order) {
        let slot = &self.slots[shard];
        let is_buffer = matches!(order, Order::Buffer(..));
        slot.orders.lock().unwrap_or_else(PoisonError::into_inner).push_back(order);
        // A shard announces that it waits and then looks again; here it is the other way round. Both are sequentially
        // consistent, so one of the two sees the other.
        slot.has_orders.store(true, Ordering::SeqCst);
        if slot.wants_buffer.swap(false, Ordering::SeqCst) || !is_buffer {
            (slot.waker)();
        }
    }

    /// Whether a shard has been told something; one load.
    #[inline]
    pub fn has_orders(&self, shard: usize) -> bool {
        self.slots[shard].has_orders.load(Ordering::Acquire)
    }

    /// All that a shard has been told.
    pub(super) fn take_orders(&self, shard: usize) -> VecDeque<Order> {
        let slot = &self.slots[shard];
        slot.has_orders.store(false, Ordering::SeqCst);
        std::mem::take(&mut *slot.orders.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A shard is about to sleep until it has a buffer; `false`: it has been told something.
    pub(super) fn wait_for_buffer(&self, shard: usize) -> bool {
        let slot = &self.slots[shard];
        slot.wants_buffer.store(true, Ordering::SeqCst);
        !slot.has_orders.load(Ordering::SeqCst)
    }
}
