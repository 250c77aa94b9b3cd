//! A shard's end of snapshots: its image begins, goes out part by part, and ends, between other turns.
//!
//! An image is begun at the end of a turn that does nothing else: then everything the shard has done has its LSN, and
//! nothing of it is lent or borrowed. It takes half a millisecond at ten million keys. After that each turn copies a
//! bounded number of bytes into buffers that the snapshot's thread writes to the file as they are.
//!
//! **Pace.** While clients keep the shard busy, copying may take a certain share of its time and no more ([`Pace`]): what
//! the snapshot's thread does with each byte costs about twice as much again, on this core if there is no other.
//! The index goes out faster, because almost every write makes a copy of a page of it that has not gone out. A shard
//! that has not heard from a client for a while copies as fast as buffers come back.

use super::pipeline::Pipeline;
use super::snapshot_handle::{Begun, Message, Order, PartBuffer, Schedule, SnapshotShared, Ticket};
use crate::io::sync::Bell;
use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;
use store::image::{ImagePart, ImageRefusal, RegionKind};
use store::time::{Clock, Nanos, Now};
use wal::lsn::Lsn;

/// Bytes copied in a turn of a busy shard.
const STEP_BYTES: usize = 64 << 10;
/// And in one of a shard that has nothing else to do.
const IDLE_STEP_BYTES: usize = 256 << 10;
/// A shard that has heard nothing for so long is idle.
const IDLE_AFTER: Nanos = Nanos(3_000_000);

/// How much of a busy shard's time may go into copying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// One part in so many.
    pub part: u64,
    /// The same while the index goes out.
    pub index_part: u64,
}

impl Pace {
    /// Where the snapshot's thread has a core that no shard needs.
    pub const WITH_A_CORE: Pace = Pace { part: 12, index_part: 4 };
    /// Where it takes its time from the shards.
    pub const WITHOUT: Pace = Pace { part: 40, index_part: 12 };
}

/// See the module.
pub struct SnapshotEnd {
    shared: Arc<SnapshotShared>,
    queue: Sender<Message>,
    bell: Arc<Bell>,
    shard: usize,
    pace: Pace,
    /// To be begun at the end of the next turn.
    begin: Option<(Ticket, Vec<PartBuffer>)>,
    taking: Option<Taking>,
    is_warming: bool,
    /// What the owner was told last, by the first shard.
    schedule: Schedule,
    /// Nothing was heard from a client since.
    quiet_since: Nanos,
    /// The shard may end.
    may_leave: bool,
}

/// An image on its way.
struct Taking {
    ticket: Ticket,
    filling: Option<PartBuffer>,
    empty: Vec<PartBuffer>,
    /// Regions below are of the index.
    index_regions: u32,
    in_index: bool,
    /// Nothing is copied before.
    next: Nanos,
}

impl fmt::Debug for SnapshotEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ticket = self.taking.as_ref().map(|taking| taking.ticket);
        write!(f, "SnapshotEnd(shard {}, taking {ticket:?})", self.shard)
    }
}

impl SnapshotEnd {
    /// Of a shard; `bell` is what its waker rings.
    pub(super) fn new(
        shared: Arc<SnapshotShared>,
        queue: Sender<Message>,
        bell: Arc<Bell>,
        shard: usize,
        pace: Pace,
        schedule: Schedule,
    ) -> SnapshotEnd {
        SnapshotEnd {
            shared,
            queue,
            bell,
            shard,
            pace,
            begin: None,
            taking: None,
            is_warming: false,
            schedule,
            quiet_since: Nanos(0),
            may_leave: false,
        }
    }

    /// Rings when there is an order.
    pub fn bell(&self) -> &Bell {
        &self.bell
    }

    /// Takes what the shard has been told. `true`: this turn shall do nothing but begin an image.
    #[inline]
    pub fn begin_turn(&mut self, pipeline: &mut Pipeline, now: Now) -> bool {
        if self.shared.has_orders(self.shard) {
            self.take_orders(pipeline, now);
        }
        self.begin.is_some()
    }

    #[cold]
    fn take_orders(&mut self, pipeline: &mut Pipeline, now: Now) {
        for order in self.shared.take_orders(self.shard) {
            match order {
                Order::Begin(ticket, buffers) => self.begin = Some((ticket, buffers)),
                Order::Buffer(ticket, buffer) => {
                    if let Some(taking) = self.taking.as_mut().filter(|taking| taking.ticket == ticket) {
                        taking.empty.push(buffer);
                    }
                }
                Order::Abandon(ticket) => {
                    if self.begin.as_ref().is_some_and(|begin| begin.0 == ticket) {
                        self.begin = None;
                    }
                    if self.taking.take_if(|taking| taking.ticket == ticket).is_some() {
                        pipeline.engine_mut().abandon_image();
                    }
                }
                Order::Ended(wish, result) => {
                    let engine = pipeline.engine_mut();
                    let failure = result.as_ref().err().map(|why| why.to_string());
                    if let Some(wish) = wish {
                        engine.end_saves(wish, failure.as_deref().map_or(Ok(()), Err), now);
                    }
                    engine.shared_mut().snapshots.failure = failure;
                }
                Order::Leave => self.may_leave = true,
            }
        }
    }

    /// Does what this turn has to do for a snapshot, when all of its records have been handed to the log.
    #[inline]
    pub fn end_turn(&mut self, pipeline: &mut Pipeline, now: Now, clock: &impl Clock, was_busy: bool) {
        if was_busy {
            self.quiet_since = now.monotonic;
        }
        self.look_at(pipeline);
        if self.begin.is_some() {
            self.try_begin(pipeline, now, clock);
        } else if let Some(taking) = &self.taking
            && taking.next <= now.monotonic
        {
            self.step(pipeline, now, clock);
        }
    }

    /// Passes on what clients and operators want.
    #[inline]
    fn look_at(&mut self, pipeline: &mut Pipeline) {
        let shared = pipeline.engine_mut().shared_mut();
        while let Some(wish) = shared.snapshots.take_wish() {
            self.tell(Message::Wish(wish));
        }
        self.shared.note_changes(self.shard, shared.keyspace.changes());
        if shared.keyspace.is_unsure() != self.is_warming {
            self.is_warming = !self.is_warming;
            self.shared.status.note_warming(self.is_warming);
        }
        if self.shard == 0 {
            let schedule = Schedule::of(&shared.config);
            if schedule != self.schedule {
                self.schedule = schedule;
                self.tell(Message::Settings(schedule));
            }
        }
    }

    #[cold]
    fn try_begin(&mut self, pipeline: &mut Pipeline, now: Now, clock: &impl Clock) {
        let engine = pipeline.engine_mut();
        // A shard that follows has what it was dealt and has applied, and no more.
        let applied = engine.shared().replication.applied_lsn();
        let lsn = applied.map_or_else(|| self.shared.history.allocated_lsn(), Lsn);
        match engine.begin_image(now) {
            // A few turns.
            Err(ImageRefusal::Tidying) => {}
            Err(why) => {
                let Some((ticket, _)) = self.begin.take() else { return };
                self.tell(Message::Refused { ticket, why });
            }
            Ok(begin) => {
                let Some((ticket, empty)) = self.begin.take() else { return };
                let is_index = |region: &&store::image::RegionInfo| region.kind == RegionKind::Index;
                let index_regions = begin.regions.iter().take_while(is_index).count() as u32;
                let in_index = index_regions > 0;
                let next = clock.monotonic();
                self.taking = Some(Taking { ticket, filling: None, empty, index_regions, in_index, next });
                let (changes, keys) = (engine.shared().keyspace.changes(), engine.keys() as u64);
                let image = Begun { lsn, changes, keys, begin };
                self.tell(Message::Begun { shard: self.shard, ticket, image });
            }
        }
    }

    fn is_idle(&self, now: Now) -> bool {
        now.monotonic.since(self.quiet_since) > IDLE_AFTER
    }

    /// Copies the next parts.
    fn step(&mut self, pipeline: &mut Pipeline, now: Now, clock: &impl Clock) {
        let is_idle = self.is_idle(now);
        let mut left = if is_idle { IDLE_STEP_BYTES } else { STEP_BYTES };
        let Some(taking) = &mut self.taking else { return };
        let (ticket, shard) = (taking.ticket, self.shard);
        let begun = clock.monotonic();
        let mut is_more = true;
        while is_more && left > 0 {
            let Some(mut buffer) = taking.filling.take().or_else(|| taking.empty.pop()) else { break };
            let room = buffer.room().min(left);
            let mut region = 0;
            is_more = pipeline.engine_mut().image_step(room, &mut |part: ImagePart<'_>| {
                region = part.region;
                buffer.push(part.region, part.offset, part.bytes);
            });
            left -= room;
            taking.in_index = region < taking.index_regions;
            if buffer.room() == 0 || !is_more {
                let _ = self.queue.send(Message::Parts { shard, ticket, buffer });
            } else {
                taking.filling = Some(buffer);
            }
        }
        if !is_more {
            self.taking = None;
            pipeline.engine_mut().end_image();
            self.tell(Message::AllOut { ticket });
            return;
        }
        if !is_idle {
            let ended = clock.monotonic();
            let part = if taking.in_index { self.pace.index_part } else { self.pace.part };
            taking.next = Nanos(ended.0 + ended.since(begun).0 * (part - 1));
        }
    }

    /// How long the driver may wait, now that this shard knows what for.
    #[inline]
    pub fn before_waiting(&self, now: Now, timeout: Option<Duration>) -> Option<Duration> {
        if self.begin.is_some() {
            return Some(Duration::ZERO);
        }
        match &self.taking {
            Some(taking) => self.wait_while_taking(taking, now, timeout),
            None => timeout,
        }
    }

    #[cold]
    fn wait_while_taking(&self, taking: &Taking, now: Now, timeout: Option<Duration>) -> Option<Duration> {
        if taking.filling.is_none() && taking.empty.is_empty() {
            return if self.shared.wait_for_buffer(self.shard) { timeout } else { Some(Duration::ZERO) };
        }
        let left = Duration::from_nanos(taking.next.since(now.monotonic).0);
        Some(timeout.map_or(left, |timeout| timeout.min(left)))
    }

    /// The shard has no clients any more, and takes turns until [`may_leave`](Self::may_leave).
    pub fn say_over(&self, pipeline: &mut Pipeline) {
        let changes = pipeline.engine_mut().shared().keyspace.changes();
        self.tell(Message::Over { shard: self.shard, changes });
    }

    /// There is nothing more to be done for a snapshot.
    pub fn may_leave(&self) -> bool {
        self.may_leave
    }

    fn tell(&self, message: Message) {
        // Nobody listens any more: then there are no snapshots, and the last order said so.
        let _ = self.queue.send(message);
    }
}

impl Drop for SnapshotEnd {
    fn drop(&mut self) {
        self.tell(Message::Gone { shard: self.shard });
    }
}
