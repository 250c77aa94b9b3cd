//! A shard's end of replication: what the thread deals to it, and what it is told to become.
//!
//! A shard of a primary looks at one flag a turn. One of a replica applies what was dealt, at the latest in its next turn:
//! commands that come first have it done themselves (`store/src/replication.rs`).

use super::super::log_end::LogEnd;
use super::super::pipeline::Pipeline;
use super::turns::TurnMark;
use crate::io::sync::Bell;
use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use store::keyspace::Keyspace;
use store::replication::{Feed, Portion};
use store::time::Now;
use wal::lsn::Lsn;

/// What a shard is told. Each is answered by [`Lane::orders_done`].
pub(super) enum Order {
    /// It follows.
    Follow,
    /// It has nothing.
    Clear,
    /// It writes, behind this record.
    Lead(Lsn),
    /// It has other data, all up to this record.
    Replace(Box<Keyspace>, Lsn),
}

/// What the thread and one shard share.
pub(in crate::server) struct Lane {
    portions: Mutex<VecDeque<Portion>>,
    orders: Mutex<VecDeque<Order>>,
    has_orders: AtomicBool,
    orders_done: AtomicU64,
    applied: AtomicU64,
    failure: Mutex<Option<String>>,
    turn: TurnMark,
    shard: Arc<Bell>,
    thread: Arc<Bell>,
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lane(applied {:?})", self.applied)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lane {
    /// Between a shard and the thread, by what wakes them.
    pub(in crate::server) fn new(shard: Arc<Bell>, thread: Arc<Bell>, applied: Lsn) -> Arc<Lane> {
        Arc::new(Lane {
            portions: Mutex::default(),
            orders: Mutex::default(),
            has_orders: AtomicBool::new(false),
            orders_done: AtomicU64::new(0),
            applied: AtomicU64::new(applied.0),
            failure: Mutex::default(),
            turn: TurnMark::new(),
            shard,
            thread,
        })
    }

    /// Hands over effects; they count when the number that all shards look at has moved.
    pub(super) fn deal(&self, portion: Portion) {
        lock(&self.portions).push_back(portion);
    }

    /// What was dealt and not applied is of no use any more.
    pub(super) fn clear(&self) {
        lock(&self.portions).clear();
    }

    /// Wakes the shard.
    pub(super) fn ring(&self) {
        self.shard.ring();
    }

    /// Tells the shard something; returns what [`Lane::orders_done`] says when it is done.
    pub(super) fn order(&self, order: Order, told: &mut u64) {
        *told += 1;
        lock(&self.orders).push_back(order);
        self.has_orders.store(true, Ordering::Release);
        self.ring();
    }

    /// Orders that were heeded.
    pub(super) fn orders_done(&self) -> u64 {
        self.orders_done.load(Ordering::Acquire)
    }

    /// Everything up to here is applied.
    pub(super) fn applied_lsn(&self) -> Lsn {
        Lsn(self.applied.load(Ordering::Acquire))
    }

    /// Says that everything up to here is.
    pub(super) fn set_applied_lsn(&self, lsn: Lsn) {
        self.applied.store(lsn.0, Ordering::Release);
    }

    /// Whether the shard is in a turn.
    pub(super) fn turn(&self) -> &TurnMark {
        &self.turn
    }

    /// Why the shard cannot apply what it was dealt.
    pub(super) fn failure(&self) -> Option<String> {
        lock(&self.failure).clone()
    }
}

impl Feed for Lane {
    fn take(&self, until: u64) -> Option<Portion> {
        lock(&self.portions).pop_front_if(|portion| portion.last_lsn <= until)
    }

    fn applied(&self, lsn: u64, result: Result<(), String>) {
        self.applied.store(lsn, Ordering::Release);
        if let Err(why) = result {
            lock(&self.failure).get_or_insert(why);
        }
        self.thread.ring();
    }
}

/// See the module.
pub struct ReplicationEnd {
    lane: Arc<Lane>,
    /// This shard says what CONFIG SET has changed.
    speaks: bool,
}

impl fmt::Debug for ReplicationEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReplicationEnd({:?})", self.lane)
    }
}

impl ReplicationEnd {
    pub(in crate::server) fn new(lane: Arc<Lane>, speaks: bool) -> ReplicationEnd {
        ReplicationEnd { lane, speaks }
    }

    /// A turn begins, whose clock has not been read.
    #[inline]
    pub fn before_clock(&self) {
        self.lane.turn.begin();
    }

    /// Nothing is executed until [`before_clock`](Self::before_clock).
    #[inline]
    pub fn rest(&self) {
        self.lane.turn.rest();
    }

    /// Heeds what the shard was told. `true`: the clock may tell another time now, of another server, and is to be read
    /// again: by the time of before, keys of what has taken the place of all data could expire.
    #[inline]
    pub fn heed(&mut self, pipeline: &mut Pipeline, log: Option<&mut LogEnd>, now: Now) -> bool {
        let has_orders = self.lane.has_orders.load(Ordering::Acquire);
        if has_orders {
            self.take_orders(pipeline, log, now);
        }
        has_orders
    }

    /// The time of the turn is known: says it, and applies what was dealt to the shard.
    #[inline]
    pub fn begin_turn(&mut self, pipeline: &mut Pipeline, now: Now) {
        self.lane.turn.since(now.unix_us);
        if pipeline.engine_mut().shared().replication.is_following() {
            pipeline.engine_mut().apply_dealt(now);
        }
        if self.speaks {
            let shared = pipeline.engine_mut().shared();
            shared.replication.state.set_lag_max_ms(shared.config.replica_max_lag);
        }
    }

    #[cold]
    fn take_orders(&mut self, pipeline: &mut Pipeline, mut log: Option<&mut LogEnd>, now: Now) {
        self.lane.has_orders.store(false, Ordering::Release);
        let orders = std::mem::take(&mut *lock(&self.lane.orders));
        for order in orders {
            let shared = pipeline.engine_mut().shared_mut();
            match order {
                Order::Follow => shared.begin_following(Arc::<Lane>::clone(&self.lane), 0),
                Order::Clear => shared.clear_for_another(now),
                Order::Lead(last) => {
                    shared.end_following(last.0);
                    if let Some(log) = &mut log {
                        log.go_on_behind(last);
                    }
                }
                Order::Replace(keyspace, applied) => shared.replace_keyspace(*keyspace, applied.0, now),
            }
            self.lane.orders_done.fetch_add(1, Ordering::AcqRel);
            self.lane.thread.ring();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_dealt_is_taken_up_to_the_number_that_all_look_at_and_no_further() {
        let bell = || Arc::new(Bell::new().unwrap());
        let lane = Lane::new(bell(), bell(), Lsn(4));
        let portion = |last_lsn| Portion { effects: vec![last_lsn as u8], last_lsn, ..Portion::default() };
        [6, 9, 12].into_iter().for_each(|last_lsn| lane.deal(portion(last_lsn)));
        assert_eq!(lane.take(5), None);
        assert_eq!(lane.take(9), Some(portion(6)));
        assert_eq!((lane.take(9), lane.take(11)), (Some(portion(9)), None));
        lane.clear();
        assert_eq!((lane.take(99), lane.applied_lsn()), (None, Lsn(4)));
        Feed::applied(&*lane, 12, Ok(()));
        assert_eq!((lane.applied_lsn(), lane.failure()), (Lsn(12), None));
        Feed::applied(&*lane, 12, Err("first".into()));
        Feed::applied(&*lane, 12, Err("second".into()));
        assert_eq!(lane.failure().as_deref(), Some("first"));
    }
}
