//! The log's owner: one thread per node that puts the records of all shards into one order and has them written.
//!
//! ```text
//! shards ── batches, any order ──▶ log thread: in LSN order, group commit ── blocks ──▶ disk (one call each)
//!    ▲                                │    ▲
//!    └── durable_lsn, wakers ─────────┘    └──▶ helper thread: segments prepared, removed; flushes once a second
//! ```
//!
//! What is decided is decided by [`wal::group_commit::GroupCommit`]; this thread performs. A block is written by
//! the thread itself, in one system call that returns when it is durable; while it does, the records of the next
//! block gather in the queue. Everything slow that no record waits for (zeros, renames, deletions, directory
//! flushes) is the helper's, so that it never stands before a block. No shard ever waits in here.

use super::log_handle::{
    Done, HelperWork, LogBatch, LogHandle, LogMetrics, LogShared, LogState, Message, Waker,
};
pub use super::log_owner::LogOptions;
use super::log_owner::{Closing, Owner, RoomMeter};
use crate::clock::monotonic_ns;
use crate::cpu;
use crate::io::log_files::{LogDisk, checksum};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::thread::{Builder, JoinHandle};
use wal::group_commit::{GroupCommit, Start};
use wal::lsn::Lsn;
use wal::operation::Operation;
use wal::settings::FlushPolicy;

/// Batches kept for a shard to use again.
const EMPTY_BATCHES: usize = 16;

/// The log's threads. Dropping it closes the log.
pub struct LogThread {
    shared: Arc<LogShared>,
    queue: Sender<Message>,
    thread: Option<JoinHandle<Result<(), String>>>,
}

impl fmt::Debug for LogThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogThread({:?})", self.shared)
    }
}

impl LogThread {
    /// Starts the log where `start` says, with one handle for each waker. Returns when the first segment is
    /// ready, or when it is known that there will be none for now: look at [`LogShared::state`].
    pub fn start(
        disk: impl LogDisk,
        start: &Start,
        options: LogOptions,
        wakers: Vec<Waker>,
    ) -> io::Result<(LogThread, Vec<LogHandle>)> {
        let settings =
            options.settings().map_err(|wrong| io::Error::new(io::ErrorKind::InvalidInput, wrong))?;
        let shards = wakers.len();
        let shared = Arc::new(LogShared::new(
            start.next_lsn,
            start.epoch,
            options.pending_bytes_max,
            options.block_bytes_max,
            wakers,
        ));
        let (queue, messages) = channel();
        let (returns, empties): (Vec<_>, Vec<_>) =
            (0..shards).map(|_| sync_channel::<LogBatch>(EMPTY_BATCHES)).unzip();
        let handles = empties.into_iter().enumerate();
        let handles = handles
            .map(|(shard, empties)| LogHandle::new(Arc::clone(&shared), queue.clone(), empties, shard))
            .collect();
        let disk = Arc::new(disk);
        let (work, orders) = channel();
        let core = options.core;
        let helper = {
            let (disk, done) = (Arc::clone(&disk), queue.clone());
            Builder::new().name("log-helper".into()).spawn(move || {
                pin(core);
                help(&*disk, &orders, &done);
            })?
        };
        let (ready, is_ready) = sync_channel(1);
        let owner = Owner {
            log: GroupCommit::new(settings, start, checksum()),
            meter: RoomMeter::new(&settings),
            disk,
            messages,
            work,
            helper_busy: 0,
            returns,
            shared: Arc::clone(&shared),
            state: LogState::Open,
            waiting: BTreeMap::new(),
            pending: VecDeque::new(),
            reserved_of_appended: 0,
            metrics: LogMetrics::default(),
            wanted_room: 0,
            flush_to: None,
            next_flush: None,
            next_retry: None,
            next_mark: None,
            is_marked: false,
            closing: Closing::No,
            ready: Some(ready),
            options,
        };
        let thread = Builder::new().name("log".into()).spawn(move || {
            pin(core);
            let result = owner.run();
            // Its orders have ended with the owner.
            let _ = helper.join();
            result
        })?;
        // It sends one message in any case, or its thread ended, which the state tells.
        let _ = is_ready.recv();
        Ok((LogThread { shared, queue, thread: Some(thread) }, handles))
    }

    /// What everybody sees.
    pub fn shared(&self) -> &Arc<LogShared> {
        &self.shared
    }

    /// Changes between `always` and `everysec` while running.
    pub fn set_policy(&self, policy: FlushPolicy) {
        let _ = self.queue.send(Message::SetPolicy(policy));
    }

    /// Everything before `needed` is in a durable snapshot: segments that hold nothing else may go.
    pub fn release(&self, needed: Lsn) {
        let _ = self.queue.send(Message::Release(needed));
    }

    /// Makes everything submitted durable, writes that nothing is missing, and ends the threads. The error says
    /// what could not be made durable.
    pub fn close(mut self) -> Result<(), String> {
        self.end(Message::Close)
    }

    /// Ends the threads as if the process were killed: what is pending stays unwritten, and the log unclosed.
    pub fn abandon(mut self) {
        let _ = self.end(Message::Abandon);
    }

    fn end(&mut self, message: Message) -> Result<(), String> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        let _ = self.queue.send(message);
        thread.join().unwrap_or_else(|_| Err(String::from("the log's thread panicked; this is a bug")))
    }
}

impl Drop for LogThread {
    fn drop(&mut self) {
        // Whoever wants to know how it ended closes.
        let _ = self.end(Message::Close);
    }
}

fn pin(core: Option<usize>) {
    // A log on another core is slower and not wrong.
    if let Some(core) = core
        && let Err(error) = cpu::pin_to(core)
    {
        eprintln!("millrace: warning: the log's thread is not pinned: {error}");
    }
}

/// The helper's whole life.
fn help(disk: &impl LogDisk, orders: &Receiver<(Operation, HelperWork)>, done: &Sender<Message>) {
    for (operation, what) in orders {
        let begun = monotonic_ns();
        let completion = disk.perform(operation);
        let elapsed_us = (monotonic_ns() - begun) / 1000;
        if done.send(Message::Done(Done { completion, what, elapsed_us })).is_err() {
            return;
        }
    }
}
