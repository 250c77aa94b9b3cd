//! The owner of the SQLCipher journal: one thread that puts the records of all shards into one order and commits them.
//!
//! It is to the shards what [`log_thread`](super::log_thread) is: they see a [`LogHandle`] and cannot tell the journals
//! apart. A transaction holds all that has come by the time it begins, whatever shard it is from; while it is committed
//! and flushed, the next one gathers in the queue. SQLite blocks, and nothing else waits in this thread, so one thread
//! does everything: commits, flushes, checkpoints, and preparing room ahead.
//!
//! What was admitted fits into the part of SQLite's log that is prepared ([`Journal::room`]), so a commit does not find
//! the disk full; preparing more does, and then writes are refused before they are executed.

use super::log_handle::{Image, LogBatch, LogHandle, LogMetrics, LogShared, LogState, Message, Took, Waker};
use super::log_owner::{EMPTY_BATCH_BYTES_MAX, EMPTY_BATCHES, LogOptions, Waiting, is_due};
use crate::clock::monotonic_ns;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;
use wal::lsn::Lsn;
use wal::settings::FlushPolicy;
use wal::sqlcipher::{Journal, JournalError, LOG_BYTES_MIN, image_bytes_max};

/// Framed records in a transaction, at most; one that is longer stands alone.
const TRANSACTION_BYTES: usize = 4 << 20;
/// With less room than for this much writes are refused once no more can be had.
const ROOM_LOW_BYTES: usize = 256 << 10;

/// The journal's thread. Dropping it closes the journal.
pub struct JournalThread {
    shared: Arc<LogShared>,
    queue: Sender<Message>,
    thread: Option<JoinHandle<Result<(), String>>>,
}

impl fmt::Debug for JournalThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JournalThread({:?})", self.shared)
    }
}

impl JournalThread {
    /// Starts where the journal ends, with one handle for each waker. Returns when room is prepared, or when it is
    /// known that there is none for now: look at [`LogShared::state`]. Of the options, what is about blocks and
    /// segments does not count, but for `segment_bytes`: so much of SQLite's log is prepared.
    pub fn start(
        journal: Journal,
        options: LogOptions,
        wakers: Vec<Waker>,
    ) -> io::Result<(JournalThread, Vec<LogHandle>)> {
        let shards = wakers.len();
        let shared = Arc::new(LogShared::new(
            journal.next_lsn(),
            journal.epoch().0,
            options.pending_bytes_max,
            Image::Journal(image_bytes_max),
            wakers,
        ));
        let (queue, messages) = channel();
        let (returns, empties): (Vec<_>, Vec<_>) =
            (0..shards).map(|_| sync_channel::<LogBatch>(EMPTY_BATCHES)).unzip();
        let handles = empties.into_iter().enumerate();
        let handles = handles
            .map(|(shard, empties)| LogHandle::new(Arc::clone(&shared), queue.clone(), empties, shard))
            .collect();
        let (ready, is_ready) = sync_channel(1);
        let owner = Owner {
            // Twice that is prepared.
            wanted_room: options.segment_bytes.max(LOG_BYTES_MIN) / 2,
            journal,
            messages,
            returns,
            shared: Arc::clone(&shared),
            state: LogState::Open,
            failure: None,
            shortage: None,
            waiting: BTreeMap::new(),
            reserved_of_appended: 0,
            metrics: LogMetrics::default(),
            flush_to: None,
            next_flush: None,
            next_retry: None,
            next_mark: None,
            is_marked: true,
            is_closing: false,
            is_abandoned: false,
            options,
        };
        let thread = Builder::new().name("journal".into()).spawn(move || owner.run(&ready))?;
        // It sends one message in any case, or its thread ended, which the state tells.
        let _ = is_ready.recv();
        Ok((JournalThread { shared, queue, thread: Some(thread) }, handles))
    }

    /// What everybody sees.
    pub fn shared(&self) -> &Arc<LogShared> {
        &self.shared
    }

    /// Changes between `always` and `everysec` while running.
    pub fn set_policy(&self, policy: FlushPolicy) {
        let _ = self.queue.send(Message::SetPolicy(policy));
    }

    /// Everything before `needed` is in a durable snapshot: it may go.
    pub fn release(&self, needed: Lsn) {
        let _ = self.queue.send(Message::Release(needed));
    }

    /// Makes everything submitted durable and ends the thread. The error says what could not be made durable.
    pub fn close(mut self) -> Result<(), String> {
        self.end(Message::Close)
    }

    /// Ends the thread as if the process were killed: what is pending stays unwritten, and the journal unclosed.
    pub fn abandon(mut self) {
        let _ = self.end(Message::Abandon);
    }

    fn end(&mut self, message: Message) -> Result<(), String> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        let _ = self.queue.send(message);
        thread.join().unwrap_or_else(|_| Err(String::from("the journal's thread panicked; this is a bug")))
    }
}

impl Drop for JournalThread {
    fn drop(&mut self) {
        // Whoever wants to know how it ended closes.
        let _ = self.end(Message::Close);
    }
}

/// The thread.
struct Owner {
    journal: Journal,
    messages: Receiver<Message>,
    returns: Vec<SyncSender<LogBatch>>,
    shared: Arc<LogShared>,
    state: LogState,
    failure: Option<JournalError>,
    /// No more room can be had, and why. It passes.
    shortage: Option<JournalError>,
    /// Batches by the LSN they go on with. The first is the next, or a record of another shard is missing.
    waiting: BTreeMap<u64, Waiting>,
    /// Room that was reserved for what has been committed since this was last published.
    reserved_of_appended: u64,
    metrics: LogMetrics,
    /// Room that was asked for in vain, until it is there.
    wanted_room: u64,
    /// A flush was asked for when records up to here were on their way.
    flush_to: Option<Lsn>,
    /// Times of CLOCK_MONOTONIC.
    next_flush: Option<u64>,
    next_retry: Option<u64>,
    next_mark: Option<u64>,
    /// The mark of the last flush has been flushed itself.
    is_marked: bool,
    is_closing: bool,
    is_abandoned: bool,
    options: LogOptions,
}

impl Owner {
    fn run(mut self, ready: &SyncSender<()>) -> Result<(), String> {
        self.make_room();
        loop {
            while let Ok(message) = self.messages.try_recv() {
                self.handle(message);
            }
            if self.is_abandoned {
                return Ok(());
            }
            let is_more = self.failure.is_none() && self.commit();
            self.publish();
            // One message, room for one.
            let _ = ready.try_send(());
            let is_done = self.is_closing && !is_more;
            if is_done {
                return self.finish();
            }
            if self.failure.is_none() {
                self.make_room();
            }
            if !is_more {
                self.wait();
            }
        }
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Records(batch) => {
                let waiting = Waiting { batch, at: 0 };
                if self.failure.is_some() {
                    return self.forget(waiting.batch);
                }
                let lsn = waiting.lsn();
                let is_new = lsn >= self.journal.next_lsn().0 && self.waiting.insert(lsn, waiting).is_none();
                assert!(is_new, "LSN {lsn} was given to two records");
            }
            Message::WantRoom => self.wanted_room = self.wanted_room.max(self.shared.take_wish()),
            Message::Flush => self.flush_to = self.flush_to.max(Some(self.shared.allocated_lsn())),
            Message::SetPolicy(policy) => self.options.policy = policy,
            Message::Release(needed) => {
                let released = self.journal.release(needed);
                self.note(released);
            }
            Message::Close => self.is_closing = true,
            Message::Abandon => self.is_abandoned = true,
            Message::Done(_) => unreachable!("there is no helper"),
            Message::Tap(_) => {}
            Message::Restart(restart) => {
                (restart.done)(Err("the encrypted journal is of one server, and is not replicated".into()));
            }
        }
    }

    /// Keeps what an error means. True if there was none.
    fn note<T>(&mut self, result: Result<T, JournalError>) -> bool {
        match result {
            Ok(_) => return true,
            Err(full @ JournalError::Full(_)) => self.shortage = Some(full),
            Err(failure) => self.failure = Some(failure),
        }
        false
    }

    /// One transaction of what is next in the order of LSNs. True if there is more.
    fn commit(&mut self) -> bool {
        let (mut framed, mut is_more) = (0, false);
        let mut done = Vec::new();
        let begun = monotonic_ns();
        let first = self.journal.next_lsn();
        while let Some(entry) = self.waiting.first_entry()
            && *entry.key() == self.journal.next_lsn().0
        {
            let mut waiting = entry.remove();
            let (end, bytes) = waiting.run(TRANSACTION_BYTES);
            let is_too_much = framed > 0
                && (framed + bytes > TRANSACTION_BYTES
                    || image_bytes_max(framed + bytes) > self.journal.room());
            // Room was reserved for it. Where a shard did not ask, there may be none.
            if is_too_much || framed == 0 && !self.has_room(image_bytes_max(bytes)) {
                is_more = is_too_much;
                self.waiting.insert(waiting.lsn(), waiting);
                break;
            }
            for index in waiting.at..end {
                let appended = self.journal.append(waiting.payload(index), waiting.batch.unix_us);
                if let Err(failure) = appended {
                    self.failure = Some(failure);
                    self.forget(waiting.batch);
                    done.into_iter().for_each(|batch| self.forget(batch));
                    return false;
                }
            }
            framed += bytes;
            waiting.at = end;
            match end < waiting.batch.len() {
                true => drop(self.waiting.insert(waiting.lsn(), waiting)),
                false => done.push(waiting.batch),
            }
        }
        if framed > 0 {
            self.end_transaction(first, framed, begun, done);
        }
        if self.flush_to.is_some_and(|lsn| lsn < self.journal.next_lsn()) {
            self.flush_to = None;
            self.flush();
        }
        is_more && self.failure.is_none()
    }

    fn has_room(&mut self, bytes: u64) -> bool {
        if bytes <= self.journal.room() {
            return true;
        }
        let made = self.unhurried(|journal| journal.make_room(bytes));
        self.note(made) || self.failure.is_none() && bytes <= self.journal.room()
    }

    fn end_transaction(&mut self, first: Lsn, framed: usize, begun: u64, done: Vec<LogBatch>) {
        let log_before = self.journal.log_bytes();
        if let Err(failure) = self.journal.commit() {
            // Where it says that there is no space, it was promised before: that disk cannot be relied on.
            self.failure = Some(failure);
            return done.into_iter().for_each(|batch| self.forget(batch));
        }
        let records = self.journal.next_lsn().0 - first.0;
        let log = &mut self.metrics.log;
        log.records += records;
        log.payload_bytes += framed as u64 - records * wal::record::FRAME_BYTES as u64;
        log.blocks += 1;
        log.writes += 1;
        // A log that begins at the front again counts from there.
        let log_bytes = self.journal.log_bytes();
        log.block_bytes += log_bytes.checked_sub(log_before).unwrap_or(log_bytes);
        let bucket = (u64::BITS - records.leading_zeros()) as usize;
        log.records_per_block[bucket.min(log.records_per_block.len() - 1)] += 1;
        if self.options.policy == FlushPolicy::EveryBlock {
            self.flush_from(begun);
        }
        // Committed, it takes no memory here any more.
        done.into_iter().for_each(|batch| self.forget(batch));
    }

    fn flush(&mut self) {
        self.flush_from(monotonic_ns());
    }

    /// Makes durable what is committed; the time that took counts from when its transaction began.
    fn flush_from(&mut self, begun: u64) {
        let flushed = self.unhurried(Journal::flush);
        if self.note(flushed) {
            let took = Took { begun_ns: begun, ended_ns: monotonic_ns() };
            self.metrics.add_flush(took.elapsed_us());
            self.shared.keep_block(self.journal.durable_lsn(), took);
            self.is_marked = false;
        }
    }

    /// Does something slow. Under `everysec` nobody waits for this thread, so that a slow disk would let more than a second
    /// be acknowledged meanwhile: nothing more is taken until it is done.
    fn unhurried<T>(&mut self, work: impl FnOnce(&mut Journal) -> T) -> T {
        let is_everysec = self.options.policy == FlushPolicy::OnRequest;
        self.shared.set_late(is_everysec);
        let done = work(&mut self.journal);
        self.shared.set_late(false);
        done
    }

    /// Looks after SQLite's log: begins it at the front, makes it longer if more is asked for than it can hold.
    fn make_room(&mut self) {
        if self.shortage.is_some() {
            // It is tried again, and not in every round.
            return;
        }
        if self.journal.room() < self.wanted_room {
            // Half of it is used between two checkpoints.
            let wanted = self.wanted_room;
            let made = self.unhurried(|journal| match journal.make_room(wanted * 2) {
                Err(JournalError::Full(_)) => journal.make_room(wanted),
                made => made,
            });
            self.note(made);
        } else if self.journal.wants_checkpoint() {
            let checkpoint = self.unhurried(Journal::checkpoint);
            self.note(checkpoint);
        } else {
            return;
        }
        self.publish();
    }

    /// A batch is committed, or will never be.
    fn forget(&mut self, batch: LogBatch) {
        self.shared.forget_pending(batch.memory_bytes());
        self.reserved_of_appended += batch.reserved;
        self.give_back(batch);
    }

    fn give_back(&mut self, mut batch: LogBatch) {
        batch.clear();
        if batch.records.bytes.capacity() <= EMPTY_BATCH_BYTES_MAX {
            // A shard that has enough of them, or is gone, needs none.
            let _ = self.returns[batch.shard].try_send(batch);
        }
    }

    /// Tells the shards how the journal is, and wakes those whom it concerns.
    fn publish(&mut self) {
        let room = self.journal.room();
        if let Some(failure) = &self.failure {
            if !self.state.is_failed() {
                self.state = LogState::JournalFailed(failure.to_string());
                let waiting = std::mem::take(&mut self.waiting);
                waiting.into_values().for_each(|waiting| self.forget(waiting.batch));
            }
        } else if self.state != LogState::Closed {
            if room >= self.wanted_room {
                self.wanted_room = 0;
            }
            let is_low = self.wanted_room > 0 || room < image_bytes_max(ROOM_LOW_BYTES);
            self.state = match &self.shortage {
                Some(shortage) if is_low => LogState::JournalFull(shortage.to_string()),
                _ => LogState::Open,
            };
        }
        let durable = self.journal.durable_lsn();
        self.metrics.waiting_batches = self.waiting.len() as u64;
        self.shared.set_metrics(self.metrics);
        let appended = std::mem::take(&mut self.reserved_of_appended);
        self.shared.publish(durable, room, appended, self.shortage.is_some(), &self.state);
    }

    /// Waits for a message, or until it is time for something.
    fn wait(&mut self) {
        let now = monotonic_ns();
        let is_pending = self.journal.durable_lsn() < self.journal.next_lsn().previous();
        let is_well = self.failure.is_none();
        if is_due(&mut self.next_flush, now, self.options.flush_period, is_well && is_pending) {
            return self.flush();
        }
        if is_due(&mut self.next_retry, now, self.options.retry_period, is_well && self.shortage.is_some()) {
            let low = image_bytes_max(ROOM_LOW_BYTES).max(LOG_BYTES_MIN / 2);
            let wanted = self.wanted_room.max(low);
            let made = self.unhurried(|journal| journal.make_room(wanted));
            if self.note(made) {
                self.shortage = None;
            }
            return;
        }
        let is_idle = is_well && !self.is_marked && !is_pending && self.waiting.is_empty();
        if is_due(&mut self.next_mark, now, self.options.idle_period, is_idle) {
            let marked = self.journal.flush();
            self.note(marked);
            self.is_marked = true;
            return;
        }
        let wake_at = [self.next_flush, self.next_retry, self.next_mark].into_iter().flatten().min();
        let received = match wake_at {
            None => self.messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => self.messages.recv_timeout(Duration::from_nanos(at.saturating_sub(now))),
        };
        match received {
            Ok(message) => self.handle(message),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => self.is_closing = true,
        }
    }

    fn finish(mut self) -> Result<(), String> {
        if self.failure.is_none() {
            self.flush();
        }
        let left = self.waiting.first_key_value().map(|(&lsn, _)| lsn);
        let next = self.journal.next_lsn();
        let result = match (&self.failure, left, &self.shortage) {
            (Some(failure), ..) => Err(failure.to_string()),
            (None, None, _) => Ok(()),
            (None, Some(_), Some(shortage)) => Err(format!(
                "records from LSN {next} on were not written, and nobody was told that they were: {shortage}"
            )),
            (None, Some(lsn), None) => Err(format!(
                "records from LSN {lsn} on were not written: LSN {next} was given to a record that never came; this is \
                 a bug"
            )),
        };
        if self.failure.is_none() {
            self.state = LogState::Closed;
        }
        self.publish();
        match self.failure {
            // Nothing is written any more, not even what closing would write.
            Some(_) => result,
            None => result.and(self.journal.close().map_err(|error| error.to_string())),
        }
    }
}
