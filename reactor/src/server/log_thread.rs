//! The log's threads: the one that writes blocks, and one that helps.
//!
//! ```text
//! shards ── batches, any order ──▶ log thread: in LSN order, group commit ── blocks ──▶ disk (one call each)
//!    ▲                                │    ▲
//!    └── durable_lsn, wakers ─────────┘    └──▶ helper thread: segments prepared, removed; flushes once a second
//! ```
//!
//! What is decided is decided by [`LogOwner`]; the threads perform and wait. A block is written by the log's thread
//! itself, in one system call that returns when it is durable; while it does, the records of the next
//! block gather in the queue. Everything slow that no record waits for (zeros, renames, deletions, directory
//! flushes) is the helper's, so that it never stands before a block. No shard ever waits in here.

use super::log_handle::{Done, HelperWork, LogHandle, LogShared, Message, Restart, Took, Waker};
pub use super::log_owner::LogOptions;
use super::log_owner::{LogOwner, OpenedLog, Work};
use crate::clock::monotonic_ns;
use crate::cpu;
use crate::io::log_files::{LogDisk, checksum};
use crate::io::sys;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;
use wal::group_commit::Start;
use wal::lsn::Lsn;
use wal::operation::Operation;
use wal::settings::FlushPolicy;

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
        let (core, spin) = (options.core, options.spin);
        let opened = LogOwner::open(start, options, checksum(), wakers)
            .map_err(|wrong| io::Error::new(io::ErrorKind::InvalidInput, wrong))?;
        let OpenedLog { owner, handles, queue, messages } = opened;
        let shared = Arc::clone(owner.shared());
        let disk = Arc::new(disk);
        let (work, orders) = channel();
        let helper = {
            let (disk, done) = (Arc::clone(&disk), queue.clone());
            Builder::new().name("log-helper".into()).spawn(move || {
                pin(core);
                help(&*disk, &orders, &done);
            })?
        };
        let (ready, is_ready) = sync_channel(1);
        let writer = Writer { owner, messages, disk, work, spin, ready: Some(ready) };
        let thread = Builder::new().name("log".into()).spawn(move || {
            pin(core);
            // On a shard's core it would end the turn in the middle for a block of few records: the shard shall first
            // execute what has arrived. Refused (a sandbox), blocks are smaller and nothing is wrong.
            let _ = sys::yield_to_others();
            let result = writer.run();
            // Its orders have ended with the writer.
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

    /// For whoever lets segments go, on another thread.
    pub fn control(&self) -> LogControl {
        LogControl { queue: self.queue.clone() }
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

/// What a thread that takes snapshots may ask of the log.
#[derive(Clone, Debug)]
pub struct LogControl {
    queue: Sender<Message>,
}

impl LogControl {
    /// See [`LogThread::release`].
    pub fn release(&self, needed: Lsn) {
        let _ = self.queue.send(Message::Release(needed));
    }

    /// Has everything submitted so far made durable now.
    pub fn request_flush(&self) {
        let _ = self.queue.send(Message::Flush);
    }

    /// Has records left for replicas from now on; see [`Tap`](super::replication::tap::Tap).
    pub(super) fn open_tap(&self, asked: u64) {
        let _ = self.queue.send(Message::Tap(asked));
    }

    /// See [`Message::Restart`]. The caller has nothing on its way to the log, and sends nothing before it is told.
    pub(super) fn restart(&self, restart: Restart) {
        let _ = self.queue.send(Message::Restart(Box::new(restart)));
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
        let took = Took { begun_ns: begun, ended_ns: monotonic_ns() };
        if done.send(Message::Done(Done { completion, what, took })).is_err() {
            return;
        }
    }
}

/// The log's thread.
struct Writer<D> {
    owner: LogOwner,
    messages: Receiver<Message>,
    disk: Arc<D>,
    work: Sender<(Operation, HelperWork)>,
    /// How long it looks for messages before it sleeps.
    spin: Duration,
    ready: Option<SyncSender<()>>,
}

impl<D: LogDisk> Writer<D> {
    fn run(mut self) -> Result<(), String> {
        loop {
            while let Ok(message) = self.messages.try_recv() {
                self.owner.handle(message);
            }
            if self.owner.is_abandoned() {
                break;
            }
            let is_more = self.owner.append();
            self.act();
            self.owner.publish();
            let is_more = self.owner.see_to_restart() || is_more;
            if self.owner.is_ready()
                && let Some(ready) = self.ready.take()
            {
                // One message, room for one.
                let _ = ready.try_send(());
            }
            if self.owner.is_finished() {
                break;
            }
            if !is_more {
                self.wait();
            }
        }
        self.owner.finish()
    }

    /// Performs what the owner wants done: blocks here, all else by the helper.
    fn act(&mut self) {
        while let Some(work) = self.owner.poll_operation() {
            match work {
                Work::Block(operation) => {
                    let begun_ns = monotonic_ns();
                    let completion = self.disk.perform(operation);
                    self.owner.handle_block(completion, Took { begun_ns, ended_ns: monotonic_ns() });
                }
                Work::Helper(operation, what) => {
                    if self.work.send((operation, what)).is_err() {
                        unreachable!("the helper lives as long as its orders");
                    }
                }
            }
        }
    }

    /// Waits for a message, or until it is time for something.
    fn wait(&mut self) {
        let now = monotonic_ns();
        if self.owner.handle_time(now) {
            return;
        }
        let spin_until = now + self.spin.as_nanos() as u64;
        while monotonic_ns() < spin_until {
            match self.messages.try_recv() {
                Ok(message) => return self.owner.handle(message),
                Err(TryRecvError::Empty) => std::hint::spin_loop(),
                Err(TryRecvError::Disconnected) => break,
            }
        }
        let received = match self.owner.wake_at() {
            None => self.messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => self.messages.recv_timeout(Duration::from_nanos(at.saturating_sub(now))),
        };
        match received {
            Ok(message) => self.owner.handle(message),
            Err(RecvTimeoutError::Timeout) => {}
            // The helper holds a sender, so this is not reached while it lives.
            Err(RecvTimeoutError::Disconnected) => self.owner.handle(Message::Abandon),
        }
    }
}
