//! Messages between shards: a bounded queue for every ordered pair, and the protocol by which a shard sleeps.
//!
//! **Nothing is lost.** Where a queue is full the message stays with its sender, behind those that wait already, and
//! goes out when there is room: between any two shards messages arrive in the order in which they were sent.
//!
//! **A wake-up is paid for only where somebody sleeps.** A shard that is about to sleep says so, and then looks at its
//! queues once more; a sender makes its messages visible, and then looks whether the receiver sleeps. With a fence
//! between the two steps on both sides at least one of them sees the other: either the sleeper stays awake or it is
//! woken. A sender that waits for room sleeps in the same way, and whoever makes room looks after it. A shard that is
//! awake costs nobody a system call.
//!
//! Messages become visible with [`Mailbox::flush`], once a turn, so that a batch costs one cache line and one fence.
//!
//! `tests/model` compiles this file and `io/queue.rs` against loom and tries every order of events.

use crate::io::queue::{Consumer, Producer, queue};
use crate::io::sync::{Arc, AtomicBool, AtomicUsize, Bell, Ordering, SPINS, fence, spin_loop};
use std::collections::VecDeque;
use std::io;
use std::time::Duration;

/// Makes mailboxes; see [`Mailboxes::new`].
#[derive(Debug)]
pub struct Mailboxes;

impl Mailboxes {
    /// One for each shard, in order, with queues of `capacity` messages between any two.
    #[allow(clippy::new_ret_no_self)]
    pub fn new<M: Send>(shards: usize, capacity: usize) -> io::Result<Vec<Mailbox<M>>> {
        let beds = (0..shards).map(|_| Bed::new()).collect::<io::Result<Box<[Bed]>>>()?;
        let ward =
            Arc::new(Ward { beds, unfinished: AtomicUsize::new(shards), broken: AtomicBool::new(false) });
        let mut mailboxes: Vec<Mailbox<M>> = (0..shards).map(|index| Mailbox::new(index, &ward)).collect();
        // Pairs in order, so that the peers of each are in the order of their numbers.
        for low in 0..shards {
            for high in low + 1..shards {
                let (up, from_below) = queue(capacity);
                let (down, from_above) = queue(capacity);
                mailboxes[low].peers.push(Peer::new(high, up, from_above));
                mailboxes[high].peers.push(Peer::new(low, down, from_below));
            }
        }
        Ok(mailboxes)
    }
}

/// What all mailboxes share.
struct Ward {
    beds: Box<[Bed]>,
    /// Shards that still have clients.
    unfinished: AtomicUsize,
    /// A shard has ended without having finished.
    broken: AtomicBool,
}

/// Where a shard sleeps. On lines of its own: every sender reads it, and only falling asleep and waking write.
#[repr(align(128))]
struct Bed {
    /// The shard sleeps or is about to. Whoever takes this back must ring. Both sides exchange it and never just store:
    /// so there is one order of its changes that the checker knows too.
    asleep: AtomicBool,
    bell: Bell,
}

impl Bed {
    fn new() -> io::Result<Bed> {
        Ok(Bed { asleep: AtomicBool::new(false), bell: Bell::new()? })
    }

    /// Wakes the shard if it sleeps; `false`: it does not. What it shall see must have been written before a fence.
    fn wake(&self) -> bool {
        // The exchange only where the cheap look says that it may be needed: awake, the line stays everybody's.
        let sleeps = self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed);
        if sleeps {
            self.bell.ring();
        }
        sleeps
    }
}

impl Ward {
    fn wake_all_but(&self, index: usize) {
        fence(Ordering::SeqCst);
        for (other, bed) in self.beds.iter().enumerate() {
            if other != index {
                bed.wake();
            }
        }
    }
}

/// The way to one other shard and back.
struct Peer<M> {
    shard: usize,
    to: Producer<M>,
    from: Consumer<M>,
    /// What found no room.
    outbox: VecDeque<M>,
    /// Since the last fence: something was published, room was made.
    published: bool,
    released: bool,
}

impl<M: Send> Peer<M> {
    fn new(shard: usize, to: Producer<M>, from: Consumer<M>) -> Self {
        Peer { shard, to, from, outbox: VecDeque::new(), published: false, released: false }
    }
}

/// Counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MailboxCounters {
    /// Messages sent.
    pub sent: u64,
    /// Messages received.
    pub received: u64,
    /// Sleeping shards woken: system calls.
    pub wakes: u64,
    /// Messages that found the queue full and had to wait.
    pub full: u64,
}

/// One shard's end of everything.
pub struct Mailbox<M: Send> {
    index: usize,
    ward: Arc<Ward>,
    peers: Vec<Peer<M>>,
    /// Whose messages are being taken.
    turn: usize,
    /// Something happened since the last flush, or waits for room.
    dirty: bool,
    /// Messages wait for room.
    waiting: bool,
    /// `asleep` was set.
    announced: bool,
    finished: bool,
    spins: u32,
    counters: MailboxCounters,
}

impl<M: Send> Mailbox<M> {
    fn new(index: usize, ward: &Arc<Ward>) -> Self {
        Mailbox {
            index,
            ward: ward.clone(),
            peers: Vec::new(),
            turn: 0,
            dirty: false,
            waiting: false,
            announced: false,
            finished: false,
            spins: SPINS,
            counters: MailboxCounters::default(),
        }
    }

    /// Sends a message to another shard. It goes out with the next [`flush`](Self::flush), or when there is room.
    #[inline]
    pub fn send(&mut self, to: usize, message: M) {
        assert_ne!(to, self.index, "a shard sends itself nothing");
        // The peers are all but oneself.
        let peer = &mut self.peers[to - usize::from(to > self.index)];
        debug_assert_eq!(peer.shard, to);
        self.counters.sent += 1;
        self.dirty = true;
        // What waits already goes first.
        let refused = if peer.outbox.is_empty() { peer.to.push(message).err() } else { Some(message) };
        if let Some(message) = refused {
            self.counters.full += 1;
            self.waiting = true;
            peer.outbox.push_back(message);
        }
    }

    /// Lets the others see what was sent and the room that was made, and wakes those who wait for it. `false`: some
    /// messages wait for room.
    #[inline]
    pub fn flush(&mut self) -> bool {
        !self.dirty || self.flush_dirty()
    }

    fn flush_dirty(&mut self) -> bool {
        let mut news = false;
        let mut waiting = false;
        for peer in &mut self.peers {
            while let Some(message) = peer.outbox.pop_front() {
                if let Err(message) = peer.to.push(message) {
                    peer.outbox.push_front(message);
                    waiting = true;
                    break;
                }
            }
            peer.published = peer.to.publish();
            peer.released |= peer.from.release();
            news |= peer.published | peer.released;
        }
        (self.dirty, self.waiting) = (waiting, waiting);
        if news {
            // What we published comes before what we look at now: see the module.
            fence(Ordering::SeqCst);
            for peer in &mut self.peers {
                let starved = std::mem::take(&mut peer.released) && peer.from.take_starved();
                if peer.published || starved {
                    self.counters.wakes += u64::from(self.ward.beds[peer.shard].wake());
                }
            }
        }
        !waiting
    }

    /// Messages to this shard have found no room yet: it cannot hear them.
    pub fn keeps_back(&self, to: usize) -> bool {
        !self.peers[to - usize::from(to > self.index)].outbox.is_empty()
    }

    /// As many messages as there can be to be heard when somebody looks.
    pub fn audible_max(&self) -> usize {
        self.peers.iter().map(|peer| peer.from.capacity()).sum()
    }

    /// The next message and whom it is from. All that a shard had sent is taken before the next shard's turn; what
    /// arrives meanwhile waits for the next round.
    #[inline]
    pub fn receive(&mut self) -> Option<(usize, M)> {
        for _ in 0..=self.peers.len() {
            let peer = self.peers.get_mut(self.turn)?;
            if let Some(message) = peer.from.pop() {
                self.counters.received += 1;
                self.dirty = true;
                return Some((peer.shard, message));
            }
            peer.released |= peer.from.release();
            self.turn = if self.turn + 1 == self.peers.len() { 0 } else { self.turn + 1 };
            self.peers[self.turn].from.look();
        }
        None
    }

    /// Says that this shard is about to sleep; call it last. `false`: it must not, there is something to do. After
    /// `true` comes [`woke`](Self::woke), however the sleep ended.
    pub fn prepare_sleep(&mut self) -> bool {
        let waited = self.waiting;
        if self.flush() && waited {
            return false;
        }
        let bed = &self.ward.beds[self.index];
        bed.asleep.swap(true, Ordering::Relaxed);
        self.announced = true;
        for peer in self.peers.iter_mut().filter(|peer| !peer.outbox.is_empty()) {
            peer.to.starve();
        }
        // From here on others see that we sleep, or we see what they did before: see the module.
        fence(Ordering::SeqCst);
        let awaited =
            |peer: &mut Peer<M>| peer.from.look() || (!peer.outbox.is_empty() && peer.to.has_room());
        if self.peers.iter_mut().any(awaited) || self.is_broken() || self.all_finished() {
            self.woke();
            return false;
        }
        true
    }

    /// The shard is awake again: nobody needs to ring.
    #[inline]
    pub fn woke(&mut self) {
        if std::mem::take(&mut self.announced) {
            self.ward.beds[self.index].asleep.swap(false, Ordering::Relaxed);
        }
    }

    /// Waits until there may be something to do, at most `timeout`; `None`: for ever. For a shard that stands still:
    /// nothing but its mailbox wakes it. May end early; that all messages have found room is a reason to.
    pub fn wait(&mut self, timeout: Option<Duration>) {
        let waited = self.waiting;
        if self.flush() && waited {
            return;
        }
        for _ in 0..self.spins {
            if self.peers.iter_mut().any(|peer| peer.from.look()) {
                return;
            }
            spin_loop();
        }
        if self.prepare_sleep() {
            self.ward.beds[self.index].bell.wait(timeout);
            self.woke();
        }
    }

    /// Rings when this shard sleeps and there is something to do: for a driver to watch.
    pub fn bell(&self) -> &Bell {
        &self.ward.beds[self.index].bell
    }

    /// Other shards run on the same core: waiting awake would only keep them from answering.
    pub fn shares_its_core(&mut self) {
        self.spins = 0;
    }

    /// This shard has no clients any more and needs nobody's answer. `true`: that is so of all of them, and there is
    /// nothing left to answer.
    pub fn finish(&mut self) -> bool {
        if !std::mem::replace(&mut self.finished, true)
            && self.ward.unfinished.fetch_sub(1, Ordering::AcqRel) == 1
        {
            self.ward.wake_all_but(self.index);
        }
        self.all_finished()
    }

    fn all_finished(&self) -> bool {
        self.finished && self.ward.unfinished.load(Ordering::Acquire) == 0
    }

    /// A shard has ended without having finished: what it was asked for will never come.
    #[inline]
    pub fn is_broken(&self) -> bool {
        self.ward.broken.load(Ordering::Acquire)
    }

    /// What has been counted.
    pub fn counters(&self) -> MailboxCounters {
        self.counters
    }
}

impl<M: Send> Drop for Mailbox<M> {
    fn drop(&mut self) {
        if !self.finished {
            self.ward.broken.store(true, Ordering::Release);
            self.ward.wake_all_but(self.index);
        }
    }
}

impl<M: Send> std::fmt::Debug for Mailbox<M> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let fields = (self.index, &self.counters);
        formatter.debug_struct("Mailbox").field("index and counters", &fields).finish_non_exhaustive()
    }
}
