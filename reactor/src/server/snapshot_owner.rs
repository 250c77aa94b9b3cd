//! The owner of snapshots: decides when one is taken, has the shards begin, has their images written, lets old ones and
//! the log before them go. Pure but for what it shares with the shards: no thread, no clock, no system call.
//!
//! What is decided about the file is decided by [`snapshot::writer::SnapshotWriter`]. One snapshot at a time:
//!
//! ```text
//! wanted ─▶ Prepare ─▶ every shard begins ─▶ parts are written ─▶ tables, flush, the log is durable so far,
//!                                                                  rename, flush of the directory
//!        ─▶ complete ─▶ who waits is told ─▶ the log before the oldest that is kept may go ─▶ older ones go
//! ```
//!
//! Removing a file of a gigabyte can take as long as half of its writing: who waits for the new one does not wait for that,
//! and the next snapshot does.
//!
//! Whatever fails on the way ends the attempt: the shards give their images up, the temporary file goes, the server
//! lives. A round, as its thread takes it: [`SnapshotOwner::handle`] for each message, [`SnapshotOwner::handle_time`],
//! then one [`Work`] of [`SnapshotOwner::poll_work`] done and its outcome handed back (of a write later: other threads do
//! those); with nothing to do it waits until [`SnapshotOwner::wake_at`] or a message. [`snapshot_thread`](super::snapshot_thread) runs it on a thread; the simulator in
//! `tests/` can step it beside the shards.

use super::log_handle::Waker;
use super::snapshot_end::{Pace, SnapshotEnd};
use super::snapshot_handle::{
    BUFFER_BYTES, Begun, History, Message, Order, PartBuffer, Schedule, SnapshotShared, Ticket,
    buffers_of_each,
};
use crate::io::sync::Bell;
use snapshot::names::{FileName, Listing, SnapshotId};
use snapshot::operation::{Completion, Operation};
use snapshot::writer::{Outcome, Plan, RegionPlan, Settings, ShardPlan, SnapshotWriter};
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use store::image::ImageRefusal;
use store::snapshots::{AtEnd, Status, Wish};
use wal::block::BlockBuffer;
use wal::checksum::Checksum;
use wal::lsn::Lsn;

const SECOND: u64 = 1_000_000_000;
/// How often the schedule is looked at, and the log while a complete file waits for it.
const SCHEDULE_PERIOD: u64 = SECOND / 10;
const DURABLE_PERIOD: u64 = SECOND / 1000;
/// Why there can be none.
const SHARD_GONE: &str = "a shard has ended, and its keys with it";
/// A schedule whose snapshot failed waits so long before the next attempt.
const RETRY_PERIOD: u64 = 30 * SECOND;

/// How snapshots are taken.
#[derive(Clone, Debug)]
pub struct SnapshotOptions {
    /// When, and how many are kept.
    pub schedule: Schedule,
    /// How the rest of the file is written.
    pub writer: Settings,
    /// Bytes of a shard's buffer, whole pages.
    pub part_bytes: usize,
    /// What everything is checked with.
    pub checksum: Checksum,
    /// Random, new for each start.
    pub uid_seed: u64,
    /// How much of a busy shard's time it may take.
    pub pace: Pace,
    /// Bytes of log behind the last snapshot, at the start.
    pub log_bytes_before: u64,
    /// The snapshot that the start began with. Others that lie there are not counted among those that are kept: they may
    /// be of a history that was left out (`--recover-to`), and the log must not go on their strength.
    pub started_from: Option<SnapshotId>,
    /// This process has the directory for itself: what a crash left there may go, and the log before snapshots.
    pub owns_directory: bool,
}

impl Default for SnapshotOptions {
    fn default() -> SnapshotOptions {
        SnapshotOptions {
            schedule: Schedule { log_bytes: 0, interval_s: 0, on_shutdown: false, keep: 2 },
            writer: Settings::default(),
            part_bytes: BUFFER_BYTES,
            checksum: Checksum::portable(),
            uid_seed: 0,
            pace: Pace::WITHOUT,
            log_bytes_before: 0,
            started_from: None,
            owns_directory: false,
        }
    }
}

/// What is to be done next. Everything but [`Work::Release`], [`Work::FlushLog`] and [`Work::Say`] has an outcome.
#[derive(Debug)]
pub enum Work {
    /// Make sure that this process has the directory for itself, and list it: [`SnapshotOwner::handle_prepared`].
    Prepare,
    /// An operation of the file's writer: [`SnapshotOwner::handle_completion`]. Several writes may be on their way, and end in
    /// any order.
    File(SnapshotId, Operation),
    /// List the directory: [`SnapshotOwner::handle_listing`].
    List,
    /// Remove a file: [`SnapshotOwner::handle_removed`].
    Remove(FileName),
    /// Everything before this record is in durable snapshots: the log may let it go.
    Release(Lsn),
    /// The log shall make durable what it has.
    FlushLog,
    /// For the operator.
    Say(String),
}

/// The time, as the owner needs it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// CLOCK_MONOTONIC.
    pub monotonic_ns: u64,
    /// Since 1970.
    pub unix_us: u64,
}

/// What has been opened.
#[derive(Debug)]
pub struct OpenedSnapshots {
    /// The owner.
    pub owner: SnapshotOwner,
    /// One for each shard.
    pub ends: Vec<SnapshotEnd>,
    /// The way to the owner.
    pub queue: Sender<Message>,
    /// Its end, for whoever steps the owner.
    pub messages: Receiver<Message>,
}

/// An attempt.
struct Attempt {
    ticket: Ticket,
    wish: Option<Wish>,
    /// The last one, after the shards' last turns.
    is_last: bool,
    begun: Times,
    /// Shards that have not begun are `None`.
    images: Vec<Option<Begun>>,
    writer: Option<SnapshotWriter>,
    /// Parts that came before the writer was there.
    parts: VecDeque<(usize, PartBuffer)>,
    /// Whose buffers the writer has, in the order in which it was given them.
    lenders: VecDeque<usize>,
    /// Shards that have parts to come.
    missing: usize,
    /// All parts are in the writer.
    is_whole: bool,
    /// Changes that are in it.
    changes: u64,
    log_bytes: u64,
    /// Why it failed, where the file's writer does not know.
    why: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    /// Directory locked and listed.
    Preparing,
    /// At the start: what a crash left goes.
    Tidying,
    /// This one is complete: older ones go.
    Retiring(SnapshotId),
}

/// See the module.
pub struct SnapshotOwner {
    shared: Arc<SnapshotShared>,
    options: SnapshotOptions,
    schedule: Schedule,
    now: Times,
    attempt: Option<Attempt>,
    tickets: u64,
    /// What is being done beside the file, and what is to be done next.
    task: Option<Task>,
    works: VecDeque<Work>,
    /// Outcomes that have to come back.
    awaited: usize,
    /// Wanted when the present one is over.
    next: Option<Wish>,
    /// Those of which a start from them, and from the log behind them, is the state that was: the one this server started from,
    /// and its own.
    good: Vec<SnapshotId>,
    /// Old snapshots that are being removed.
    removing: usize,
    /// Bytes of log in the last snapshot, as the log counts them; those of before this process are extra.
    log_bytes_saved: u64,
    log_bytes_before: u64,
    /// Changes in the last snapshot.
    changes_saved: u64,
    last_begun_ns: Option<u64>,
    /// No schedule begins one before.
    not_before_ns: u64,
    looked_ns: Option<u64>,
    /// Shards without clients: their changes.
    over: Vec<Option<u64>>,
    gone: Vec<bool>,
    has_failed_at_end: Option<String>,
    /// The last snapshot was tried, or none is wanted; the shards may end.
    has_left: bool,
}

impl fmt::Debug for SnapshotOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SnapshotOwner({:?})", self.shared)
    }
}

impl SnapshotOwner {
    /// For shards with these wakers and bells.
    pub fn open(
        history: History,
        status: Arc<Status>,
        options: SnapshotOptions,
        wakers: Vec<Waker>,
        bells: Vec<Arc<Bell>>,
    ) -> OpenedSnapshots {
        let shards = wakers.len();
        let shared = Arc::new(SnapshotShared::new(history, status, wakers));
        let (queue, messages) = channel();
        let ends = bells.into_iter().enumerate().map(|(shard, bell)| {
            let (shared, queue) = (Arc::clone(&shared), queue.clone());
            SnapshotEnd::new(shared, queue, bell, shard, options.pace, options.schedule)
        });
        let ends = ends.collect();
        let mut owner = SnapshotOwner {
            log_bytes_saved: shared.history.log_bytes(),
            log_bytes_before: options.log_bytes_before,
            good: options.started_from.into_iter().collect(),
            shared,
            schedule: options.schedule,
            options,
            now: Times::default(),
            attempt: None,
            tickets: 0,
            task: None,
            works: VecDeque::new(),
            awaited: 0,
            next: None,
            removing: 0,
            changes_saved: 0,
            last_begun_ns: None,
            not_before_ns: 0,
            looked_ns: None,
            over: vec![None; shards],
            gone: vec![false; shards],
            has_failed_at_end: None,
            has_left: false,
        };
        if owner.options.owns_directory {
            owner.begin_task(Task::Tidying, Work::List);
        }
        OpenedSnapshots { owner, ends, queue, messages }
    }

    /// What everybody sees.
    pub fn shared(&self) -> &Arc<SnapshotShared> {
        &self.shared
    }

    fn status(&self) -> &Status {
        &self.shared.status
    }

    /// Takes a message.
    pub fn handle(&mut self, message: Message) {
        match message {
            Message::Wish(wish) => self.handle_wish(wish),
            Message::Begun { shard, ticket, image } => {
                if let Some(attempt) = self.attempt.as_mut().filter(|attempt| attempt.ticket == ticket) {
                    attempt.images[shard] = Some(image);
                    if attempt.images.iter().all(Option::is_some) {
                        self.open_file();
                    }
                }
            }
            Message::Refused { ticket, why } => {
                if self.attempt.as_ref().is_some_and(|attempt| attempt.ticket == ticket) {
                    // A snapshot of a damaged keyspace would have lost keys.
                    let is_warming = why == ImageRefusal::Warming;
                    self.give_up(why.to_string());
                    if is_warming {
                        self.not_before_ns = self.now.monotonic_ns + SECOND;
                    }
                }
            }
            Message::Parts { shard, ticket, buffer } => {
                if let Some(attempt) = self.attempt.as_mut().filter(|attempt| attempt.ticket == ticket) {
                    attempt.parts.push_back((shard, buffer));
                    self.take_parts();
                }
            }
            Message::AllOut { ticket } => {
                if let Some(attempt) = self.attempt.as_mut().filter(|attempt| attempt.ticket == ticket) {
                    attempt.missing -= 1;
                    self.take_parts();
                }
            }
            Message::Written(completion) => self.handle_completion(completion),
            Message::Settings(schedule) => self.schedule = schedule,
            Message::Replaced(id) => {
                self.good = id.into_iter().collect();
                self.log_bytes_saved = self.shared.history.log_bytes();
                self.log_bytes_before = 0;
            }
            Message::Over { shard, changes } => {
                self.over[shard] = Some(changes);
                self.look_at_end();
            }
            Message::Gone { shard } => {
                self.gone[shard] = true;
                if !self.has_left {
                    self.give_up(SHARD_GONE.into());
                }
                self.look_at_end();
            }
        }
    }

    fn handle_wish(&mut self, wish: Wish) {
        match wish {
            Wish::Save | Wish::Background => {
                // Claimed by the command. Should something else run nevertheless, this comes next.
                self.next = Some(wish);
            }
            // See `look_at_schedule`.
            Wish::Scheduled => self.looked_ns = Some(0),
            Wish::Shutdown => {
                let is_running = |attempt: &Attempt| attempt.wish == Some(wish) && attempt.why.is_none();
                if !self.attempt.as_ref().is_some_and(is_running) {
                    self.next = Some(wish);
                    self.give_up("the server is to end".into());
                }
            }
        }
        self.begin_next();
    }

    /// What time it is; begins what is due.
    pub fn handle_time(&mut self, now: Times) {
        self.now = now;
        if let Some(attempt) = &mut self.attempt {
            if let Some(writer) = &mut attempt.writer
                && writer.outcome() == Outcome::Working
            {
                writer.handle_durable(self.shared.history.durable_lsn());
                let written = writer.bytes_written();
                self.shared.status.written_bytes.store(written, Ordering::Relaxed);
                if let Some(why) = self.shared.history.failure() {
                    self.give_up(format!("what it holds is not in the log: {why}"));
                }
            }
        } else if now.monotonic_ns >= *self.looked_ns.get_or_insert(now.monotonic_ns) + SCHEDULE_PERIOD {
            // Not at once: shards have yet to say whether they are warming.
            self.looked_ns = Some(now.monotonic_ns);
            self.look_at_schedule();
        }
        self.begin_next();
    }

    fn log_bytes(&self) -> u64 {
        self.shared.history.log_bytes().saturating_sub(self.log_bytes_saved) + self.log_bytes_before
    }

    /// Begins one if it is time.
    fn look_at_schedule(&mut self) {
        let Schedule { log_bytes, interval_s, .. } = self.schedule;
        let begun_ns = *self.last_begun_ns.get_or_insert(self.now.monotonic_ns);
        let is_ready = !self.status().is_warming() && self.now.monotonic_ns >= self.not_before_ns;
        let is_ending = self.over.iter().any(Option::is_some) || self.gone.contains(&true);
        if !is_ready || is_ending || self.next.is_some() {
            return;
        }
        let elapsed_s = (self.now.monotonic_ns - begun_ns) / SECOND;
        let by_size = log_bytes > 0 && self.log_bytes() >= log_bytes;
        let by_time = interval_s > 0 && elapsed_s >= interval_s && self.has_changed();
        let scheduled =
            (by_size || by_time) && self.shared.history.failure().is_none() || self.status().take_scheduled();
        // A client that has said BGSAVE meanwhile has it its way.
        if scheduled && self.status().claim() {
            self.next = Some(Wish::Scheduled);
        }
    }

    /// Whether the shards have changed anything since the last snapshot, as far as they have said.
    fn has_changed(&self) -> bool {
        self.shared.changes() != self.changes_saved
    }

    /// Begins what is wanted, if nothing else is going on.
    fn begin_next(&mut self) {
        if self.attempt.is_none()
            && self.task.is_none()
            && let Some(wish) = self.next.take()
        {
            self.begin(Some(wish), false);
        }
    }

    fn begin(&mut self, wish: Option<Wish>, is_last: bool) {
        self.tickets += 1;
        let shards = self.shared.shards();
        self.status().claim();
        self.attempt = Some(Attempt {
            ticket: Ticket(self.tickets),
            wish,
            is_last,
            begun: self.now,
            images: (0..shards).map(|_| None).collect(),
            writer: None,
            parts: VecDeque::new(),
            lenders: VecDeque::new(),
            missing: shards,
            is_whole: false,
            changes: 0,
            log_bytes: self.shared.history.log_bytes(),
            why: None,
        });
        let status = &self.shared.status;
        status.written_bytes.store(0, Ordering::Relaxed);
        status.total_bytes.store(0, Ordering::Relaxed);
        status.begun_unix_s.store((self.now.unix_us / 1_000_000).max(1), Ordering::Relaxed);
        self.begin_task(Task::Preparing, Work::Prepare);
    }

    fn begin_task(&mut self, task: Task, work: Work) {
        self.task = Some(task);
        self.awaited += 1;
        self.works.push_back(work);
    }

    /// The directory is this process' own, and has these files; or it cannot be.
    pub fn handle_prepared(&mut self, result: Result<Listing, String>) {
        self.awaited -= 1;
        self.task = None;
        let listing = match result {
            Ok(listing) => listing,
            Err(why) => return self.give_up(why),
        };
        self.remove_leftovers(&listing);
        if self.gone.contains(&true) {
            // Its keys are gone with it.
            return self.give_up(SHARD_GONE.into());
        }
        let Some(attempt) = self.attempt.as_ref().filter(|attempt| attempt.why.is_none()) else {
            return self.end_attempt_if_settled();
        };
        let buffers = buffers_of_each(self.shared.shards());
        for shard in 0..self.shared.shards() {
            let buffer = || PartBuffer::new(BlockBuffer::with_capacity(self.options.part_bytes));
            let buffers = (0..buffers).map(|_| buffer()).collect();
            self.shared.order(shard, Order::Begin(attempt.ticket, buffers));
        }
    }

    fn remove_leftovers(&mut self, listing: &Listing) {
        for &id in &listing.temporary {
            self.awaited += 1;
            self.works.push_back(Work::Remove(FileName::Temporary(id)));
        }
    }

    /// All shards have begun: what is in the file, and where, is known.
    fn open_file(&mut self) {
        let Some(attempt) = &mut self.attempt else { return };
        let mut shards = Vec::with_capacity(attempt.images.len());
        let mut keys = 0;
        for image in attempt.images.iter_mut().filter_map(Option::take) {
            attempt.changes += image.changes;
            keys += image.keys;
            let regions = image.begin.regions.iter().map(|region| RegionPlan {
                kind: u32::from(region.kind.code()),
                number: region.number,
                length: region.bytes as u64,
            });
            shards.push(ShardPlan { lsn: image.lsn, regions: regions.collect(), meta: image.begin.meta });
        }
        let plan = Plan {
            uid: mix(self.options.uid_seed ^ mix(attempt.ticket.0)),
            epoch: self.shared.history.epoch(),
            unix_us: attempt.begun.unix_us,
            shards,
        };
        match SnapshotWriter::new(&plan, self.options.writer, self.options.checksum) {
            Ok(writer) => {
                let status = &self.shared.status;
                status.total_bytes.store(writer.header().length, Ordering::Relaxed);
                status.keys.store(keys, Ordering::Relaxed);
                attempt.writer = Some(writer);
                self.take_parts();
            }
            Err(invalid) => self.give_up(format!("the images cannot be written: {invalid}; this is a bug")),
        }
    }

    /// Gives the writer what has come, as far as it takes it.
    fn take_parts(&mut self) {
        let Some(attempt) = &mut self.attempt else { return };
        let Some(writer) = attempt.writer.as_mut().filter(|writer| writer.outcome() == Outcome::Working)
        else {
            return;
        };
        while let Some((shard, buffer)) = attempt.parts.pop_front() {
            let (parts, buffer) = buffer.into_parts();
            if parts.is_empty() {
                continue;
            }
            match writer.handle_run(shard, &parts, buffer) {
                Ok(()) => attempt.lenders.push_back(shard),
                Err((refused, _)) => return self.give_up(format!("{refused}; this is a bug")),
            }
        }
        if attempt.missing == 0 && !attempt.is_whole {
            attempt.is_whole = true;
            if writer.header().lsn_max > self.shared.history.durable_lsn() {
                self.works.push_back(Work::FlushLog);
            }
            if let Err(refused) = writer.finish() {
                self.give_up(format!("{refused}; this is a bug"));
            }
        }
    }

    /// Shards get their buffers back. All are alike.
    fn give_back_buffers(&mut self) {
        let Some(attempt) = &mut self.attempt else { return };
        let Some(writer) = &mut attempt.writer else { return };
        while let Some(buffer) = writer.take_returned()
            && let Some(shard) = attempt.lenders.pop_front()
        {
            self.shared.order(shard, Order::Buffer(attempt.ticket, PartBuffer::new(buffer)));
        }
    }

    /// Ends the attempt without a snapshot; what is on its way comes back first.
    fn give_up(&mut self, why: String) {
        let Some(attempt) = &mut self.attempt else { return };
        if attempt.why.is_none() {
            attempt.why = Some(why);
            if let Some(writer) = &mut attempt.writer {
                writer.abandon();
            }
            self.abandon_images();
        }
        self.end_attempt_if_settled();
    }

    fn abandon_images(&mut self) {
        let Some(attempt) = &mut self.attempt else { return };
        attempt.parts.clear();
        for shard in 0..self.shared.shards() {
            self.shared.order(shard, Order::Abandon(attempt.ticket));
        }
    }

    /// The next thing to do. Its outcome comes back before the next is asked for, or later.
    pub fn poll_work(&mut self) -> Option<Work> {
        if let Some(work) = self.works.pop_front() {
            return Some(work);
        }
        let writer = self.attempt.as_mut()?.writer.as_mut()?;
        let operation = writer.poll_operation()?;
        self.awaited += 1;
        Some(Work::File(writer.id(), operation))
    }

    /// An operation of the file's writer is done.
    pub fn handle_completion(&mut self, completion: Completion) {
        self.awaited -= 1;
        let Some(writer) = self.attempt.as_mut().and_then(|attempt| attempt.writer.as_mut()) else { return };
        let was_working = writer.outcome() == Outcome::Working;
        writer.handle_completion(completion);
        self.give_back_buffers();
        let Some(writer) = self.attempt.as_ref().and_then(|attempt| attempt.writer.as_ref()) else { return };
        if was_working && matches!(writer.outcome(), Outcome::Failed(_)) {
            self.abandon_images();
        }
        self.take_parts();
        self.end_attempt_if_settled();
    }

    /// Goes on when nothing of the attempt is on its way any more.
    fn end_attempt_if_settled(&mut self) {
        let Some(attempt) = &self.attempt else { return };
        if self.task.is_some() {
            return;
        }
        let outcome = match &attempt.writer {
            Some(writer) if !writer.is_ended() => return,
            Some(writer) => writer.outcome(),
            None if attempt.why.is_none() => return,
            None => Outcome::Abandoned,
        };
        match outcome {
            Outcome::Complete => {
                let own = attempt.writer.as_ref().map(SnapshotWriter::id);
                if let Some(own) = own {
                    self.begin_task(Task::Retiring(own), Work::List);
                }
                self.end(Ok(()));
            }
            Outcome::Failed(failure) => self.end(Err(format!("{failure}; {}", failure.errno.remedy()))),
            Outcome::Abandoned | Outcome::Working => {
                let why = attempt.why.clone().unwrap_or_default();
                self.end(Err(why));
            }
        }
    }

    /// What the directory holds: at the start, or when a snapshot is complete.
    pub fn handle_listing(&mut self, listed: std::io::Result<Listing>) {
        self.awaited -= 1;
        let task = self.task.take();
        let listing = match listed {
            Ok(listing) => listing,
            Err(error) => {
                self.works.push_back(Work::Say(format!(
                    "warning: the snapshots cannot be listed, so none is removed and the log not shortened: {}",
                    crate::io::log_files::in_words(&error)
                )));
                return self.end_retiring(task);
            }
        };
        let own = match task {
            Some(Task::Retiring(own)) => Some(own),
            _ => None,
        };
        self.good.extend(own);
        // One may have been removed by somebody, or set aside since.
        self.good.retain(|id| listing.snapshots.contains(id));
        self.good.sort_unstable();
        self.good.dedup();
        self.remove_leftovers(&listing);
        // With fewer than are to be kept, the log from its beginning stands for the next.
        let keep = self.schedule.keep;
        if let Some(kept) = self.good.len().checked_sub(keep).map(|first| &self.good[first..])
            && let (Some(&first), Some(oldest)) = (kept.first(), kept.iter().map(|id| id.lsn).min())
        {
            self.works.push_back(Work::Release(oldest.next()));
            if own.is_some() {
                for &id in listing.snapshots.iter().filter(|&&id| id < first && Some(id) != own) {
                    self.awaited += 1;
                    self.removing += 1;
                    self.works.push_back(Work::Remove(FileName::Snapshot(id)));
                }
            }
        }
        self.status().kept.store((listing.snapshots.len() - self.removing) as u64, Ordering::Relaxed);
        self.end_retiring(task);
    }

    /// What is wanted next begins when older ones have gone.
    fn end_retiring(&mut self, task: Option<Task>) {
        if matches!(task, Some(Task::Retiring(_))) && self.removing > 0 {
            self.task = task;
            return;
        }
        self.begin_next();
        self.look_at_end();
    }

    /// A file was removed, or not.
    pub fn handle_removed(&mut self, file: FileName, result: std::io::Result<()>) {
        self.awaited -= 1;
        if let Err(error) = result
            && error.kind() != std::io::ErrorKind::NotFound
        {
            let why = crate::io::log_files::in_words(&error);
            self.works
                .push_back(Work::Say(format!("warning: {file} is not needed and cannot be removed: {why}")));
        }
        if matches!(file, FileName::Snapshot(_)) {
            self.removing -= 1;
            let task = self.task.take();
            self.end_retiring(task);
        }
    }

    /// The attempt is over.
    fn end(&mut self, result: Result<(), String>) {
        let Some(attempt) = self.attempt.take() else { return };
        let status = &self.shared.status;
        status.begun_unix_s.store(0, Ordering::Relaxed);
        let took_us = (self.now.monotonic_ns - attempt.begun.monotonic_ns) / 1000;
        match (&result, &attempt.writer) {
            (Ok(()), Some(writer)) => {
                let header = writer.header();
                status.last_unix_s.store(self.now.unix_us / 1_000_000, Ordering::Relaxed);
                status.last_lsn.store(header.lsn.0, Ordering::Relaxed);
                status.last_bytes.store(header.length, Ordering::Relaxed);
                status.last_took_us.store(took_us, Ordering::Relaxed);
                status.changes_saved.store(attempt.changes, Ordering::Relaxed);
                status.completed.fetch_add(1, Ordering::Relaxed);
                status.has_failed.store(false, Ordering::Relaxed);
                self.changes_saved = attempt.changes;
                self.log_bytes_saved = attempt.log_bytes;
                self.log_bytes_before = 0;
                self.last_begun_ns = Some(attempt.begun.monotonic_ns);
                let (file, bytes) = (FileName::Snapshot(writer.id()), header.length);
                let seconds = took_us as f64 / 1e6;
                self.works
                    .push_back(Work::Say(format!("{file} is complete: {bytes} bytes in {seconds:.3} s")));
            }
            (Err(why), _) => {
                status.failed.fetch_add(1, Ordering::Relaxed);
                status.has_failed.store(true, Ordering::Relaxed);
                self.not_before_ns = self.now.monotonic_ns + RETRY_PERIOD;
                self.works.push_back(Work::Say(format!("there is no snapshot: {why}")));
                if attempt.is_last {
                    self.has_failed_at_end = Some(why.clone());
                }
            }
            (Ok(()), None) => unreachable!("a snapshot without a file"),
        }
        if self.next.is_none() {
            status.release();
        }
        let result = result.map_err(Arc::<str>::from);
        for shard in 0..self.shared.shards() {
            self.shared.order(shard, Order::Ended(attempt.wish, result.clone()));
        }
        if attempt.is_last {
            return self.leave();
        }
        self.begin_next();
        self.look_at_end();
    }

    /// All shards are without clients: whether there has to be a last snapshot.
    fn look_at_end(&mut self) {
        let is_over = |shard: usize| self.over[shard].is_some() || self.gone[shard];
        if self.has_left || !(0..self.shared.shards()).all(is_over) {
            return;
        }
        if self.attempt.as_ref().is_some_and(|attempt| attempt.is_last) {
            return;
        }
        self.next = None;
        if self.attempt.is_some() {
            // It comes here again.
            return self.give_up("the server ends".into());
        }
        if self.task.is_some() {
            // And here.
            return;
        }
        let changes: u64 = self.over.iter().flatten().sum();
        let has_changed = changes != self.changes_saved;
        let has_log = matches!(self.shared.history, History::Log(_));
        let wanted = match self.status().at_end() {
            AtEnd::NoSave => false,
            // One was taken just now. What came after it is in the log, if there is one.
            AtEnd::Save => has_changed && !has_log,
            AtEnd::AsConfigured => has_changed && self.schedule.on_shutdown,
        };
        if wanted && !self.gone.contains(&true) {
            self.begin(None, true);
        } else {
            self.leave();
        }
    }

    fn leave(&mut self) {
        self.has_left = true;
        for shard in 0..self.shared.shards() {
            self.shared.order(shard, Order::Leave);
        }
    }

    /// When something is due, if no message comes before.
    pub fn wake_at(&self) -> Option<u64> {
        match &self.attempt {
            Some(attempt) if attempt.is_whole => Some(self.now.monotonic_ns + DURABLE_PERIOD),
            Some(_) => Some(self.now.monotonic_ns + SCHEDULE_PERIOD),
            None => Some(self.looked_ns.unwrap_or(self.now.monotonic_ns) + SCHEDULE_PERIOD),
        }
    }

    /// Nothing is on its way, and the shards may have ended.
    pub fn is_finished(&self) -> bool {
        self.has_left && self.awaited == 0 && self.works.is_empty() && self.attempt.is_none()
    }

    /// The end. The error says why there is no last snapshot although one was wanted.
    pub fn finish(self) -> Result<(), String> {
        match self.has_failed_at_end {
            Some(why) => Err(format!("there is no snapshot of the end: {why}")),
            None => Ok(()),
        }
    }
}

/// A bijection of 64 bits that leaves no pattern (splitmix64).
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests;
