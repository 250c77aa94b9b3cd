//! The thread that takes snapshots: it performs what [`SnapshotOwner`] decides, and waits.
//!
//! ```text
//! shards ── parts ──▶ snapshot: checksums, order ── writes ──▶ snapshot-write, twice: each in one system call
//!                        ▲                                        │
//!                        └──────────────── done ──────────────────┘
//! ```
//!
//! One thread for the process that computes checksums and does all that is no write. Writes go past the page cache and are
//! done by threads of their own, which stand in each until it is done: so the disk has the next one already when one ends,
//! and neither waits for checksums. These are made with the first snapshot. All run on a core that no shard is pinned to, if
//! there is one, and otherwise their part of the shards' time follows from the shards' pace
//! ([`Pace`](super::snapshot_end::Pace)).

use super::log_handle::Waker;
use super::log_thread::LogControl;
use super::snapshot_end::SnapshotEnd;
use super::snapshot_handle::{History, Message};
use super::snapshot_owner::{OpenedSnapshots, SnapshotOptions, SnapshotOwner, Times, Work};
use crate::clock::SystemClock;
use crate::cpu;
use crate::io::snapshot_files::SnapshotDisk;
use crate::io::sync::Bell;
use snapshot::names::SnapshotId;
use snapshot::operation::{Action, Operation};
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;
use store::snapshots::{Status, Wish};

/// Why there are no snapshots beside the encrypted journal.
pub(super) const ENCRYPTED: &str = "a snapshot would hold the data in the clear, and this server's journal is encrypted \
     (--journal sqlcipher): there are none. The journal alone keeps every write";

/// Writes to the file that are on their way at a time.
const WRITES: usize = 2;

/// The thread. It ends by itself when all shards have.
#[derive(Debug)]
pub struct SnapshotThread {
    thread: Option<JoinHandle<Result<(), String>>>,
    control: SnapshotControl,
}

/// What the replication thread may ask of it.
#[derive(Clone, Debug)]
pub(super) struct SnapshotControl {
    queue: Sender<Message>,
    /// What all know of snapshots.
    pub(super) status: Arc<Status>,
}

impl SnapshotControl {
    /// Has one taken; `false`: one is being taken, or nobody takes any more.
    pub(super) fn take(&self) -> bool {
        self.status.claim() && {
            let is_heard = self.queue.send(Message::Wish(Wish::Background)).is_ok();
            if !is_heard {
                self.status.release();
            }
            is_heard
        }
    }

    /// See [`Message::Replaced`].
    pub(super) fn replaced(&self, id: Option<SnapshotId>) {
        let _ = self.queue.send(Message::Replaced(id));
    }
}

impl SnapshotThread {
    /// Starts it, with one end for each shard.
    pub fn start(
        disk: impl SnapshotDisk,
        history: History,
        status: Arc<Status>,
        options: SnapshotOptions,
        log: Option<LogControl>,
        core: Option<usize>,
        shards: (Vec<Waker>, Vec<Arc<Bell>>),
    ) -> io::Result<(SnapshotThread, Vec<SnapshotEnd>)> {
        let (wakers, bells) = shards;
        let known = Arc::clone(&status);
        let OpenedSnapshots { owner, ends, queue, messages } =
            SnapshotOwner::open(history, status, options, wakers, bells);
        let disk = Arc::new(disk);
        let writers =
            Writers { disk: Arc::clone(&disk), done: queue.clone(), core, orders: None, threads: Vec::new() };
        let taker = Taker { owner, messages, disk, writers, log };
        let thread = Builder::new().name("snapshot".into()).spawn(move || {
            // Refused, it runs wherever the scheduler likes.
            let _ = core.map(cpu::pin_to);
            taker.run()
        })?;
        let control = SnapshotControl { queue, status: known };
        Ok((SnapshotThread { thread: Some(thread), control }, ends))
    }

    /// For the replication thread.
    pub(super) fn control(&self) -> SnapshotControl {
        self.control.clone()
    }

    /// Waits until it has ended, which it does when all shards have. The error says why there is no snapshot of the end
    /// although one was wanted.
    pub fn join(mut self) -> Result<(), String> {
        self.wait()
    }

    fn wait(&mut self) -> Result<(), String> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().unwrap_or_else(|_| Err(String::from("the snapshot's thread panicked; this is a bug")))
    }
}

impl Drop for SnapshotThread {
    fn drop(&mut self) {
        // Whoever wants to know how it ended joins.
        let _ = self.wait();
    }
}

struct Taker<D> {
    owner: SnapshotOwner,
    messages: Receiver<Message>,
    disk: Arc<D>,
    writers: Writers<D>,
    log: Option<LogControl>,
}

/// Those who write to the file, each one piece at a time.
struct Writers<D> {
    disk: Arc<D>,
    done: Sender<Message>,
    core: Option<usize>,
    /// The way to them; none before the first write.
    orders: Option<Sender<Order>>,
    threads: Vec<JoinHandle<()>>,
}

type Order = (SnapshotId, Operation);

impl<D: SnapshotDisk> Writers<D> {
    /// Has a write done. Without threads (a limit on them) it is done here.
    fn write(&mut self, id: SnapshotId, operation: Operation) {
        if self.orders.is_none() {
            self.begin();
        }
        let order = (id, operation);
        let (id, operation) = match &self.orders {
            Some(orders) if !self.threads.is_empty() => match orders.send(order) {
                Ok(()) => return,
                Err(back) => back.0,
            },
            _ => order,
        };
        // The receiver is the caller's.
        let _ = self.done.send(Message::Written(self.disk.perform(id, operation)));
    }

    fn begin(&mut self) {
        let (orders, queue) = channel::<Order>();
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..WRITES {
            let (disk, done, core) = (Arc::clone(&self.disk), self.done.clone(), self.core);
            let queue = Arc::clone(&queue);
            let work = move || {
                let _ = core.map(cpu::pin_to);
                loop {
                    // Whoever waits for an order holds the lock; the others are writing, or wait for it.
                    let order = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok((id, operation)) = order else { return };
                    let _ = done.send(Message::Written(disk.perform(id, operation)));
                }
            };
            self.threads.extend(Builder::new().name("snapshot-write".into()).spawn(work));
        }
        self.orders = Some(orders);
    }
}

impl<D> Drop for Writers<D> {
    fn drop(&mut self) {
        self.orders = None;
        for thread in self.threads.drain(..) {
            // It cannot panic; if it could, what it was writing would never have been waited for to the end.
            let _ = thread.join();
        }
    }
}

impl<D: SnapshotDisk> Taker<D> {
    fn run(mut self) -> Result<(), String> {
        let mut clock = SystemClock::new();
        let mut tick = move || {
            let now = clock.tick();
            Times { monotonic_ns: now.monotonic.0, unix_us: now.unix_us }
        };
        loop {
            let now = tick();
            self.owner.handle_time(now);
            let heard = match self.messages.try_recv() {
                Ok(message) => {
                    self.owner.handle(message);
                    true
                }
                // Every shard has said before that it is gone: what is left to do is done.
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => false,
            };
            // Messages first: a client that asks for the end does not wait for a gigabyte.
            if heard {
                continue;
            }
            if let Some(work) = self.owner.poll_work() {
                self.perform(work);
                continue;
            }
            if self.owner.is_finished() {
                break;
            }
            let now = now.monotonic_ns;
            let received = match self.owner.wake_at() {
                None => self.messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => self.messages.recv_timeout(Duration::from_nanos(at.saturating_sub(now))),
            };
            match received {
                Ok(message) => {
                    // What begins with it does not begin when the waiting did.
                    self.owner.handle_time(tick());
                    self.owner.handle(message);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.owner.finish()
    }

    fn perform(&mut self, work: Work) {
        match work {
            Work::Prepare => {
                let prepared = self.disk.prepare();
                self.owner.handle_prepared(prepared);
            }
            Work::File(id, operation) if matches!(operation.action, Action::Write { .. }) => {
                self.writers.write(id, operation);
            }
            Work::File(id, operation) => {
                let completion = self.disk.perform(id, operation);
                self.owner.handle_completion(completion);
            }
            Work::List => {
                let listed = self.disk.list();
                self.owner.handle_listing(listed);
            }
            Work::Remove(file) => {
                let removed = self.disk.remove(file);
                self.owner.handle_removed(file, removed);
            }
            Work::Release(needed) => {
                if let Some(log) = &self.log {
                    log.release(needed);
                }
            }
            Work::FlushLog => {
                if let Some(log) = &self.log {
                    log.request_flush();
                }
            }
            Work::Say(text) => eprintln!("millrace: {text}"),
        }
    }
}
