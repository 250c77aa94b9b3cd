//! One shard of the server: bytes and time in, replies and actions out.
//!
//! The driver calls a `handle_*` method for each thing that happened, [`Engine::finish_turn`] once a turn, and
//! then carries out what [`Engine::poll_action`] says. Nothing here waits, reads a clock of its own or talks
//! to the kernel.
//!
//! **A batch.** The commands of one receive are taken 64 at a time: parsed and looked up, the index bucket of
//! each first key prefetched, then each record, and only then executed, in order. From a pipeline of 16 on,
//! waiting for memory is what a GET costs, and this overlaps the waits. Arguments stay where they arrived.
//!
//! **Back-pressure.** A client that does not read is not executed for: above [`HIGH_WATER`] bytes of unsent
//! output its input waits, and the driver is asked to stop receiving. What one command can produce beyond
//! that is bounded by `output-buffer-max` and one bulk string; a client over it is closed and counted.
//!
//! **Time.** A command that can take long is timed by itself. Quick ones are timed as a run, and each gets an
//! equal share: their sum is exact, their distribution is that of the runs.

use crate::arena::SegmentSource;
use crate::command::{self, Command, Outcome, Pausing, flag};
use crate::config::Config;
use crate::eviction::EvictionPolicy;
use crate::journal::Journal;
use crate::keyspace::{KeyHash, Keyspace, KeyspaceOptions};
use crate::metrics::Metrics;
use crate::mutation::NotApplied;
use crate::protocol::http;
use crate::protocol::reply::Reply;
use crate::protocol::resp::{self, Args, Found, Limits, OwnedArgs, Parsed};
use crate::pubsub::{self, PubSub, Space};
use crate::reads::Reads;
use crate::replica_waits::ReplicaWaits;
use crate::replication::Replication;
use crate::session::{ConnectionId, Durability, Peer, ReplyMode, Session, Sessions, Transport};
use crate::shards::{Fleet, Message, Place, Totals};
use crate::slowlog::{LatencyMonitor, SlowLog};
use crate::snapshots::Snapshots;
use crate::stages::Sampler;
use crate::time::{Clock, Nanos, Now};
use crate::tracking::Trackers;
use crate::tracking::stream::Streams;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use line::Line;

mod image;
mod line;

/// Unsent output above which a session's input waits.
pub const HIGH_WATER: usize = 1 << 20;

/// Input of a connection that waits for other shards, above which it is asked for no more.
const KEPT_INPUT_MAX: usize = 64 * 1024;

/// Commands parsed ahead.
const BATCH: usize = 64;
const _: () = assert!(BATCH <= u64::BITS as usize, "a batch is a word of flags");

/// Arguments parsed ahead: more end the batch, so that one that has to be parsed again costs little.
const BATCH_ARGUMENTS: usize = 4096;

/// A command longer than this is timed by itself: copying it takes long, however quick the command.
const QUICK_BYTES_MAX: usize = 16 * 1024;

/// Evictions one command may cause. What is left to evict, the next commands and turns evict.
const EVICTIONS_PER_COMMAND: usize = 1024;

/// Records expired, and bytes compacted, in one turn.
const EXPIRE_BUDGET: usize = 256;
const COMPACT_BUDGET: usize = 64 * 1024;
/// Bytes of a restored keyspace checked or moved in one turn; see [`crate::image::warm`].
const WARM_BUDGET: usize = 64 * 1024;

/// How often a shard looks whether it may go on warming.
const WARM_LOOK: Nanos = Nanos(1_000_000);

/// How often a shard looks how much memory all of them take. What came and went between is not seen.
const PEAK_INTERVAL: Nanos = Nanos(100_000_000);

/// Sessions looked at for `timeout` in one turn.
const TIMEOUT_SCAN: usize = 256;

/// Something the driver must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// This session has output to send.
    Flush(ConnectionId),
    /// Close once its output is out.
    Close(ConnectionId),
    /// Close at once and drop its output.
    Abort(ConnectionId),
    /// Receive nothing more for now.
    PauseReceive(ConnectionId),
    /// Receive again.
    ResumeReceive(ConnectionId),
    /// Stand still before anything is sent (DEBUG SLEEP).
    Stall(Nanos),
    /// Stop the server.
    Shutdown,
}

/// The randomness of a shard, all of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seeds {
    /// For the hashes of keys.
    pub hash: u64,
    /// For choices: RANDOMKEY, eviction.
    pub random: u64,
    /// The run's name, shown as 40 hexadecimal digits.
    pub run_id: [u8; 20],
}

impl Seeds {
    /// What the keyspace of a shard with these seeds is made with.
    pub fn keyspace_options(&self) -> KeyspaceOptions {
        KeyspaceOptions { hash_seed: self.hash, random_seed: self.random, ..KeyspaceOptions::default() }
    }
}

/// CLIENT PAUSE.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pause {
    /// Until when, on the monotonic clock; `None`: there is no pause.
    pub until: Option<Nanos>,
    /// Reads wait too.
    pub all: bool,
}

impl Pause {
    /// Whether a command waits.
    pub fn holds(&self, writes: bool) -> bool {
        self.until.is_some() && (self.all || writes)
    }
}

/// Buffers without a user. Idle sessions own none, busy ones take turns with these.
#[derive(Debug, Default)]
pub struct BufferPool {
    free: Vec<Vec<u8>>,
}

impl BufferPool {
    /// More are given back to the allocator.
    const BUFFERS_MAX: usize = 512;
    /// Larger ones are given back to the allocator.
    const BYTES_MAX: usize = 64 * 1024;

    /// An empty buffer.
    #[inline]
    pub fn take(&mut self) -> Vec<u8> {
        self.free.pop().unwrap_or_default()
    }

    /// Takes a buffer back.
    #[inline]
    pub fn give(&mut self, mut buffer: Vec<u8>) {
        let wanted = buffer.capacity() > 0 && buffer.capacity() <= Self::BYTES_MAX;
        if wanted && self.free.len() < Self::BUFFERS_MAX {
            buffer.clear();
            self.free.push(buffer);
        }
    }
}

/// Everything of a shard but the session being executed: what a [`command::Call`] holds as `engine`.
pub struct Shared {
    /// The data.
    pub keyspace: Keyspace,
    /// The settings.
    pub config: Config,
    /// The counters.
    pub metrics: Metrics,
    /// The listeners.
    pub pubsub: PubSub,
    /// The slow commands.
    pub slowlog: SlowLog,
    /// The slow events.
    pub latency: LatencyMonitor,
    /// The batches whose way is timed.
    pub sampler: Sampler,
    /// What HTTP keeps between requests.
    pub http: http::Responder,
    /// All sessions but the one being executed.
    pub sessions: Sessions,
    /// What the driver must do.
    pub actions: VecDeque<Action>,
    /// Whose messages wait until others have their replies.
    pub(crate) line: Line,
    /// CLIENT PAUSE.
    pub pause: Pause,
    /// See [`Seeds::run_id`].
    pub run_id: [u8; 20],
    /// When the server started.
    pub started: Now,
    /// Clients connected, without those that were refused.
    pub clients: usize,
    /// Clients that listen to something.
    pub subscribers: usize,
    /// Bytes of all sessions' buffers.
    pub buffer_bytes: usize,
    /// Time added by DEBUG SLEEP: it passes after the command, but belongs to it.
    pub stalled: Nanos,
    /// The server is stopping.
    pub shutting_down: bool,
    /// DEBUG SET-ACTIVE-EXPIRE: keys expire without being touched.
    pub expires_actively: bool,
    /// Shown by INFO; the driver sets it.
    pub process_id: u32,
    /// Whether the gate has something to ask of every client: there is a memory limit or a pause.
    pub(crate) is_restricted: bool,
    /// What takes less is neither slow for the slow log nor for the latency monitor.
    slow_nanos: u64,
    /// Whether quick commands are timed one by one too: the slow log wants to know of microseconds.
    pub(crate) times_everything: bool,
    pub(crate) pool: BufferPool,
    /// The other shards.
    pub fleet: Fleet,
    /// The log; `None`: `durability` is off.
    pub journal: Option<Box<Journal>>,
    /// Who wants snapshots, and how they are.
    pub snapshots: Snapshots,
    /// The role of this server, and what a replica applies.
    pub replication: Replication,
    /// Clients in WAIT or REPLICAOF.
    pub(crate) replica_waits: ReplicaWaits,
    /// Reads that name a record.
    pub reads: Reads,
    /// Connections that end, whose last words may leave since the log is durable.
    pub(crate) ending: Vec<ConnectionId>,
    /// There are no other shards, no log and nobody who tracks: most of what follows a command can be left out.
    pub(crate) is_plain: bool,
    /// Somebody may have to be told of changes of this shard's keys.
    pub(crate) is_tracking: bool,
    /// Clients that track, and what they are to be told.
    pub trackers: Trackers,
    /// Streams of invalidations over HTTP.
    pub streams: Streams,
    /// There are others: see [`crate::shards::route`].
    pub(crate) is_sharded: bool,
    /// Bytes that compaction looks at in one turn.
    pub compact_budget: usize,
    /// Sessions that wait for CLIENT UNPAUSE.
    pub(crate) postponed: Vec<ConnectionId>,
    next_client_id: u64,
    /// Where the search for silent clients goes on.
    timeout_scan: usize,
    receivers: Vec<(ConnectionId, Option<Box<[u8]>>)>,
}

impl Shared {
    /// Bytes that `maxmemory` bounds.
    #[inline]
    pub fn used_memory(&self) -> u64 {
        (self.keyspace.used_bytes() + self.buffer_bytes) as u64
    }

    /// The same of the whole server.
    pub fn used_memory_everywhere(&self) -> u64 {
        if !self.is_sharded {
            return self.used_memory();
        }
        let (place, totals) = (self.fleet.place.index, &self.fleet.totals);
        self.used_memory() + totals.used_elsewhere(place)
    }

    /// Keeps the most that the whole server ever took. Not in every turn: what others take lies with them.
    fn note_peak(&mut self, now: Nanos) {
        if now.since(self.metrics.peak_noted).0 >= PEAK_INTERVAL.0 {
            self.metrics.peak_noted = now;
            self.metrics.used_memory_peak = self.metrics.used_memory_peak.max(self.used_memory_everywhere());
        }
    }

    /// The most that this shard may take while the whole server is over its limit: an equal share. What the others take is
    /// known a turn late, and whoever evicted for all of them would soon have nothing left.
    fn memory_share(&self) -> u64 {
        self.config.maxmemory / self.fleet.place.count as u64
    }

    /// Evicts until there is room; `false`: there is none to be made. The limit is the whole server's; a shard evicts its
    /// own keys, and only while it has more than its share.
    pub(crate) fn make_room(&mut self, now: Now) -> bool {
        let limit = self.config.maxmemory;
        // What a replica holds is for its primary to say.
        if limit == 0 || self.replication.is_following() || self.used_memory_everywhere() <= limit {
            return true;
        }
        self.metrics.used_memory_peak = self.metrics.used_memory_peak.max(self.used_memory_everywhere());
        for _ in 0..EVICTIONS_PER_COMMAND {
            if self.used_memory_everywhere() <= limit {
                return true;
            }
            let evicts = self.config.maxmemory_policy != EvictionPolicy::NoEviction;
            if evicts && self.is_sharded && self.used_memory() <= self.memory_share() {
                return true;
            }
            if !evicts || self.keyspace.evict_one(self.config.maxmemory_policy, now).is_none() {
                return false;
            }
        }
        // Like Redis, a command that has paid its share goes on; but a flood must not run away.
        self.used_memory_everywhere() <= limit + limit / 4
    }

    /// Says what the other shards may look at.
    pub(crate) fn publish_totals(&self) {
        if self.is_sharded {
            let (place, used) = (self.fleet.place.index, self.used_memory());
            self.fleet.totals.publish(place, self.clients, used, self.subscribers);
        }
    }

    /// Recomputes what depends on settings. Call it after changing them.
    pub fn settings_changed(&mut self, now: Now) {
        let threshold = self.config.slowlog_log_slower_than;
        self.restrict();
        self.times_everything =
            (0..1000).contains(&threshold) || (1..=1).contains(&self.config.latency_monitor_threshold);
        let latency = self.config.latency_monitor_threshold;
        self.slow_nanos = match (u64::try_from(threshold), latency) {
            (Err(_), 0) => u64::MAX,
            (Err(_), ms) => ms.saturating_mul(1_000_000),
            (Ok(us), 0) => us.saturating_mul(1000),
            (Ok(us), ms) => us.saturating_mul(1000).min(ms.saturating_mul(1_000_000)),
        };
        self.slowlog.truncate(self.config.slowlog_max_len as usize);
        self.sampler.set_period(u64::from(self.config.stage_sampling));
        let config = &self.config;
        self.keyspace.set_eviction_parameters(
            config.lfu_log_factor,
            config.lfu_decay_time,
            config.maxmemory_samples as usize,
        );
        self.keyspace.set_access_mode(self.config.maxmemory_policy.access_mode(), now);
        if self.is_tracking {
            self.refresh_tracking();
        }
    }

    /// Recomputes whether the gate has something to ask of every client.
    pub(crate) fn restrict(&mut self) {
        self.is_restricted = self.config.maxmemory > 0
            || self.pause.until.is_some()
            || self.journal.as_ref().is_some_and(|journal| journal.refusal().is_some())
            || self.heeds_replication();
    }

    /// Whether [`note_slow`](Self::note_slow) could have something to keep.
    #[inline]
    pub(crate) fn is_slow(&self, elapsed: Nanos) -> bool {
        elapsed.0 >= self.slow_nanos
    }

    /// Keeps a command that took long.
    #[cold]
    pub(crate) fn note_slow(
        &mut self,
        session: &Session,
        command: &Command,
        args: &Args<'_>,
        elapsed: Nanos,
        now: Now,
    ) {
        let threshold = self.config.slowlog_log_slower_than;
        if threshold >= 0 && elapsed.0 / 1000 >= threshold as u64 && command.flags & flag::SKIP_SLOWLOG == 0 {
            let max = self.config.slowlog_max_len as usize;
            if max > 0 {
                let args = without_secrets(command, args);
                self.slowlog.push(&args.view(), &session.peer.address, session.name(), elapsed, now, max);
            }
        }
        let threshold = self.config.latency_monitor_threshold;
        if threshold > 0 && elapsed.0 / 1_000_000 >= threshold {
            let event = if command.flags & flag::FAST != 0 { "fast-command" } else { "command" };
            self.latency.push(event, elapsed, now);
        }
    }

    /// Ends a session at once: it has broken a bound, or somebody killed it.
    pub(crate) fn abort(&mut self, session: &mut Session) {
        if !session.aborted {
            session.aborted = true;
            session.closing = true;
            session.output = Vec::new();
            session.input = Vec::new();
            session.input_start = 0;
            session.partial = None;
            self.leave(session);
            self.actions.push_back(Action::Abort(session.connection));
        }
    }

    /// [`abort`](Self::abort) for unread output.
    #[cold]
    pub(crate) fn doom(&mut self, session: &mut Session) {
        if !session.aborted {
            self.metrics.output_limit_disconnections += 1;
            self.abort(session);
        }
    }

    /// Takes a session out of everything that knows it by name.
    pub(crate) fn leave(&mut self, session: &mut Session) {
        command::transaction::discard_transaction(self, session);
        command::pubsub::unsubscribe_all(self, session);
        self.stop_tracking(session);
        self.close_stream(session);
        self.forget_wait(session.connection);
        self.replica_waits.end(session.connection);
        if !session.left {
            session.left = true;
            self.clients -= 1;
        }
    }

    /// Sends a message to everybody who listens, on every shard in hand; returns how many that are.
    pub fn publish(&mut self, caller: &mut Session, space: Space, channel: &[u8], message: &[u8]) -> usize {
        self.metrics.messages_published += 1;
        let mut count = self.publish_here(Some(caller), space, channel, message);
        for (_, guest) in &mut self.fleet.guests {
            // The names of connections are the shard's own: the caller is none of the guest's.
            count += guest.publish_here(None, space, channel, message);
        }
        count
    }

    fn publish_here(
        &mut self,
        mut caller: Option<&mut Session>,
        space: Space,
        channel: &[u8],
        message: &[u8],
    ) -> usize {
        let mut receivers = core::mem::take(&mut self.receivers);
        self.pubsub.receivers(space, channel, &mut receivers);
        for (connection, pattern) in &receivers {
            let pattern = pattern.as_deref();
            if let Some(caller) = caller.as_deref_mut().filter(|caller| caller.connection == *connection) {
                pubsub::write_message(&mut caller.output, caller.resp3, space, pattern, channel, message);
            } else if let Some(mut session) = self.sessions.take(*connection) {
                self.deliver(&mut session, |out, resp3| {
                    pubsub::write_message(out, resp3, space, pattern, channel, message);
                });
                self.sessions.insert(session);
            }
        }
        let count = receivers.len();
        receivers.clear();
        receivers.shrink_to(64);
        self.receivers = receivers;
        count
    }

    /// Appends to the output of a session that is not being executed.
    fn deliver(&mut self, session: &mut Session, write: impl FnOnce(&mut Vec<u8>, bool)) {
        if session.closing {
            return;
        }
        if session.unsent() > self.config.output_buffer_max {
            self.doom(session);
        } else {
            if session.output.capacity() == 0 {
                session.output = self.pool.take();
            }
            write(&mut session.output, session.resp3);
            self.note_delivery(session.connection);
            self.queue_message(session);
        }
        self.charge(session);
    }

    #[inline]
    pub(crate) fn queue_flush(&mut self, session: &mut Session) {
        let waits = (session.has_holes | session.is_gated)
            && (session.sendable() == 0 || (session.has_holes && !Self::holds_too_much(session)));
        if !session.flush_queued && !session.output.is_empty() && !waits {
            session.flush_queued = true;
            self.actions.push_back(Action::Flush(session.connection));
        }
    }

    /// Brings the sum of all buffers up to date with one session.
    #[inline]
    pub(crate) fn charge(&mut self, session: &mut Session) {
        let bytes = session.buffer_bytes();
        if bytes != session.charged {
            self.buffer_bytes = self.buffer_bytes - session.charged + bytes;
            session.charged = bytes;
        }
    }

    /// After anything happened to a session: what the driver has to know of it.
    #[inline]
    pub(crate) fn settle(&mut self, session: &mut Session) {
        if !self.is_plain {
            if session.lanes.is_some() {
                self.send_hops(session);
            }
            if session.is_gated || session.gate > 0 {
                self.close_gate(session);
            }
        }
        if session.is_exceptional() {
            self.settle_exceptions(session);
        }
        if session.output.is_empty() {
            if session.output.capacity() > 0 {
                self.pool.give(core::mem::take(&mut session.output));
            }
        } else {
            self.queue_flush(session);
        }
        self.charge(session);
    }

    /// [`settle`](Self::settle), where the time is known: replies before a missing one are then held for a moment only.
    #[inline]
    pub(crate) fn settle_at(&mut self, session: &mut Session, now: Now) {
        if session.has_holes {
            self.hold(session, now);
        }
        self.settle(session);
    }

    /// The part of [`settle`](Self::settle) for a session that waits, waited, or ends, and for HTTP.
    #[inline(never)]
    fn settle_exceptions(&mut self, session: &mut Session) {
        if session.aborted {
            // The command that was its end may have written on.
            session.output = Vec::new();
        }
        let wants_pause = !session.closing
            && (session.paused_output
                || session.paused_client
                || (session.paused_hops && session.input.len() > KEPT_INPUT_MAX)
                || (session.http.is_some() && http::is_paused(session)));
        if wants_pause != session.receive_paused {
            session.receive_paused = wants_pause;
            let connection = session.connection;
            self.actions.push_back(if wants_pause {
                Action::PauseReceive(connection)
            } else {
                Action::ResumeReceive(connection)
            });
        }
        let answered = !session.has_holes && !session.gathers && !session.is_gated;
        if session.closing && !session.close_queued && !session.aborted && answered {
            session.close_queued = true;
            // Its last words leave first.
            self.queue_flush(session);
            self.actions.push_back(Action::Close(session.connection));
        }
    }
}

/// The arguments of a slow command with passwords blotted out.
fn without_secrets(command: &Command, args: &Args<'_>) -> OwnedArgs {
    let mut kept = OwnedArgs::new();
    let mut secrets = 0;
    for argument in args.iter() {
        if secrets > 0 {
            secrets -= 1;
            kept.push(b"(redacted)");
            continue;
        }
        secrets = match command.name {
            "auth" => usize::MAX,
            "config|set" if argument.eq_ignore_ascii_case(b"requirepass") => 1,
            "hello" if argument.eq_ignore_ascii_case(b"auth") => 2,
            _ => 0,
        };
        kept.push(argument);
    }
    kept
}

/// A command of a batch.
struct Planned {
    command: Option<&'static Command>,
    first_key_hash: Option<KeyHash>,
    /// Where it starts in the buffer.
    start: usize,
    /// Where it ends.
    end: usize,
    first_span: u32,
    spans: u32,
    inline: bool,
}

/// The scratch space of a batch.
#[derive(Default)]
struct Batch {
    found: Found,
    commands: Vec<Planned>,
}

/// A clock that stands still, for what is executed without the driver's.
pub(crate) struct StandingClock(pub(crate) Nanos);

impl Clock for StandingClock {
    fn monotonic(&self) -> Nanos {
        self.0
    }
}

/// One shard.
pub struct Engine {
    /// `None` while it is lent to another shard.
    pub(crate) shared: Option<Box<Shared>>,
    /// What other shards said meanwhile, or while the shard stood still.
    pub(crate) deferred: VecDeque<(usize, Message)>,
    /// The shard stands still (DEBUG SLEEP).
    pub(crate) stalled: bool,
    batch: Batch,
    /// The background work has more to do at once.
    busy: bool,
    /// So many bytes of a restored keyspace may be warm by now; `None`: all.
    warm_bound: Option<Arc<AtomicU64>>,
}

/// The shard, which must be at home.
macro_rules! at_home {
    ($engine:expr) => {
        $engine.shared.as_deref_mut().expect(LENT)
    };
}

const LENT: &str = "a shard that is lent does nothing but wait";

impl Engine {
    /// A shard without data and without sessions.
    pub fn new(config: Config, seeds: Seeds, source: Box<dyn SegmentSource>, now: Now) -> Engine {
        Engine::with_place(config, seeds, source, now, Place::default(), Totals::new(1))
    }

    /// One of several shards. All have the same settings and the same seed for hashes.
    pub fn with_place(
        config: Config,
        seeds: Seeds,
        source: Box<dyn SegmentSource>,
        now: Now,
        place: Place,
        totals: Arc<Totals>,
    ) -> Engine {
        let keyspace = Keyspace::new(seeds.keyspace_options(), source);
        Engine::with_keyspace(config, seeds, keyspace, now, place, totals)
    }

    /// One of several shards, whose keys are there already: see [`Keyspace::from_image`] and
    /// [`Seeds::keyspace_options`].
    pub fn with_keyspace(
        config: Config,
        seeds: Seeds,
        keyspace: Keyspace,
        now: Now,
        place: Place,
        totals: Arc<Totals>,
    ) -> Engine {
        let mut shared = Box::new(Shared {
            fleet: Fleet::new(place, totals, config.hop_queue as usize),
            is_sharded: !place.is_alone(),
            is_plain: place.is_alone(),
            is_tracking: false,
            trackers: Trackers::default(),
            streams: Streams::default(),
            journal: None,
            snapshots: Snapshots::default(),
            replication: Replication::default(),
            replica_waits: ReplicaWaits::default(),
            reads: Reads::default(),
            ending: Vec::new(),
            keyspace,
            config,
            metrics: Metrics::default(),
            pubsub: PubSub::default(),
            slowlog: SlowLog::default(),
            latency: LatencyMonitor::default(),
            sampler: Sampler::new(seeds.random),
            http: http::Responder::default(),
            sessions: Sessions::default(),
            actions: VecDeque::new(),
            line: Line::default(),
            pause: Pause::default(),
            run_id: seeds.run_id,
            started: now,
            clients: 0,
            subscribers: 0,
            buffer_bytes: 0,
            stalled: Nanos(0),
            shutting_down: false,
            expires_actively: true,
            process_id: 0,
            is_restricted: false,
            slow_nanos: 0,
            times_everything: false,
            pool: BufferPool::default(),
            postponed: Vec::new(),
            compact_budget: COMPACT_BUDGET,
            next_client_id: 1,
            timeout_scan: 0,
            receivers: Vec::new(),
        });
        shared.metrics.warm = shared.keyspace.warm_progress().unwrap_or_default();
        shared.settings_changed(now);
        Engine {
            shared: Some(shared),
            deferred: VecDeque::new(),
            stalled: false,
            batch: Batch::default(),
            busy: false,
            warm_bound: None,
        }
    }

    /// A connection was accepted.
    pub fn handle_connect(&mut self, connection: ConnectionId, peer: Peer, now: Now) {
        let shared = at_home!(self);
        // Every shard has numbers of its own.
        let place = shared.fleet.place;
        let id = (shared.next_client_id - 1) * place.count as u64 + place.index as u64 + 1;
        shared.next_client_id += 1;
        shared.metrics.connections_received += 1;
        let is_http = peer.transport == Transport::Http;
        let mut session = Box::new(Session::new(connection, id, peer, now));
        session.home = place.index as u32;
        session.authenticated = shared.config.requirepass.is_empty();
        if is_http {
            session.http = Some(Box::default());
        }
        let elsewhere =
            if shared.is_sharded { shared.fleet.totals.clients_elsewhere(place.index) } else { 0 };
        if shared.clients + elsewhere >= shared.config.maxclients as usize {
            shared.metrics.connections_rejected += 1;
            session.left = true;
            session.closing = true;
            if is_http {
                http::refuse_connection(&mut session.output, now);
            } else {
                Reply::new(&mut session.output, false).error("ERR max number of clients reached");
            }
        } else {
            shared.clients += 1;
            session.closing = shared.shutting_down;
            shared.publish_totals();
        }
        shared.settle(&mut session);
        shared.sessions.insert(session);
    }

    /// Bytes arrived.
    pub fn handle_receive(&mut self, connection: ConnectionId, bytes: &[u8], now: Now, clock: &dyn Clock) {
        let shared = at_home!(self);
        let Some(mut session) = shared.sessions.take(connection) else { return };
        shared.metrics.input_bytes += bytes.len() as u64;
        if !session.closing {
            session.last_interaction = now.monotonic;
            let sample = shared.sampler.is_due().then(|| shared.begin_sample(&session, clock));
            if session.http.is_some() {
                http::handle_receive(shared, &mut session, bytes, now, clock);
            } else {
                self.receive_resp(&mut session, bytes, now, clock);
            }
            if let Some(begun) = sample {
                at_home!(self).end_sample(&mut session, begun, now, clock);
            }
        }
        let shared = at_home!(self);
        shared.settle_at(&mut session, now);
        shared.sessions.insert(session);
    }

    /// The peer will send nothing more: what is complete is answered, then the connection closes.
    pub fn handle_receive_end(&mut self, connection: ConnectionId, _now: Now) {
        let Some(mut session) = at_home!(self).sessions.take(connection) else { return };
        session.input_ended = true;
        if session.http.is_some() && !session.closing {
            http::handle_receive_end(&mut session);
        } else if !session.waits() {
            session.closing = true;
        }
        at_home!(self).settle(&mut session);
        at_home!(self).sessions.insert(session);
    }

    /// The connection is gone.
    pub fn handle_disconnect(&mut self, connection: ConnectionId, _now: Now) {
        let Some(mut session) = at_home!(self).sessions.take(connection) else { return };
        at_home!(self).leave(&mut session);
        if session.is_sampled {
            at_home!(self).drop_samples(connection);
        }
        at_home!(self).buffer_bytes -= session.charged;
        at_home!(self).pool.give(core::mem::take(&mut session.output));
    }

    /// All that the session has to send, nothing if there is [`damage`](Self::damage); the caller owns it until [`handle_sent`](Self::handle_sent).
    pub fn take_output(&mut self, connection: ConnectionId) -> Option<Vec<u8>> {
        if self.damage().is_some() {
            return None;
        }
        let session = at_home!(self).sessions.get_mut(connection)?;
        session.flush_queued = false;
        if session.output.is_empty() || session.aborted {
            return None;
        }
        let mut output = core::mem::take(&mut session.output);
        if session.has_holes | session.is_gated {
            session.output = output;
            let at = session.sendable();
            let rest = session.output.split_off(at);
            output = core::mem::replace(&mut session.output, rest);
            if let Some(lanes) = &mut session.lanes {
                lanes.shift(at);
            }
            if let Some(gates) = &mut session.gates {
                gates.shift(at);
            }
            if output.is_empty() {
                return None;
            }
        }
        session.in_flight += output.len();
        let is_sampled = session.is_sampled;
        let shared = at_home!(self);
        shared.metrics.output_bytes += output.len() as u64;
        if is_sampled {
            shared.sampler.taken(connection, output.len());
        }
        Some(output)
    }

    /// Everything up to this record of the log is on stable storage.
    pub fn set_durable(&mut self, durable: u64) {
        at_home!(self).set_durable(durable);
    }

    /// The first record of the log that anybody waits for; see [`Journal::first_awaited`].
    pub fn first_awaited(&self) -> Option<u64> {
        let shared = self.shared();
        let replies = shared.journal.as_ref().and_then(|journal| journal.first_awaited());
        [replies, shared.trackers.first_awaited()].into_iter().flatten().min()
    }

    /// Bytes of the log's records that nobody has taken.
    pub fn record_bytes(&self) -> usize {
        self.shared().journal.as_ref().map_or(0, |journal| journal.record_bytes())
    }

    /// Applies effects read from the log, before anything is served; see [`Keyspace::apply_all`].
    pub fn apply_all(&mut self, effects: &[u8], now: Now) -> Result<(), NotApplied> {
        at_home!(self).keyspace.apply_all(effects, now)
    }

    /// See [`Keyspace::expect`].
    pub fn expect_keys(&mut self, keys: usize) {
        at_home!(self).keyspace.expect(keys);
    }

    /// Keys of this shard.
    pub fn keys(&self) -> usize {
        self.shared().keyspace.len()
    }

    /// Input that is kept and may be executed in the next turn, in bytes; 0 where it is little.
    pub fn kept_input(&self) -> usize {
        const LITTLE: usize = 256 * 1024;
        let shared = self.shared();
        if shared.buffer_bytes < LITTLE {
            return 0;
        }
        shared.sessions.iter().map(|session| session.input.len()).sum()
    }

    /// From now on writes become records of a log.
    pub fn keep_journal(&mut self, journal: Journal) {
        let shared = at_home!(self);
        shared.keyspace.keep_effects(journal.class() == Durability::Always);
        shared.is_plain = false;
        shared.journal = Some(Box::new(journal));
    }

    /// What [`take_output`](Self::take_output) gave was sent; the buffer comes back.
    pub fn handle_sent(&mut self, connection: ConnectionId, buffer: Vec<u8>, now: Now, clock: &dyn Clock) {
        let shared = at_home!(self);
        shared.pool.give(buffer);
        match shared.sessions.get_mut(connection) {
            None => return,
            Some(session) => {
                session.in_flight = 0;
                session.last_interaction = now.monotonic;
                let (is_sampled, is_quiet) =
                    (session.is_sampled, !session.is_exceptional() && session.output.is_empty());
                if is_quiet {
                    let bytes = session.buffer_bytes();
                    shared.buffer_bytes = shared.buffer_bytes - session.charged + bytes;
                    session.charged = bytes;
                }
                if is_sampled {
                    shared.end_samples(connection, now.monotonic);
                }
                if is_quiet {
                    return;
                }
            }
        }
        let Some(mut session) = at_home!(self).sessions.take(connection) else { return };
        if session.http.is_some() {
            if !session.closing {
                http::resume(at_home!(self), &mut session, now, clock);
            }
        } else if session.paused_output && session.unsent() < HIGH_WATER && !session.closing {
            session.paused_output = false;
            if !session.waits() {
                self.run_kept(&mut session, now, clock);
            }
        }
        at_home!(self).settle_at(&mut session, now);
        at_home!(self).sessions.insert(session);
    }

    /// Background work, a bounded amount: expiry, eviction, compaction, silent clients, the end of a pause.
    pub fn finish_turn(&mut self, now: Now) {
        if at_home!(self).is_sharded {
            self.tend_fleet(now, &StandingClock(now.monotonic));
        }
        if self.shared().journal.as_ref().is_some_and(|journal| journal.waits() > 0) {
            self.end_waits(now);
        }
        if !self.shared().replica_waits.is_empty() {
            self.end_replica_waits(now);
        }
        if self.shared().reads.waits() > 0 {
            self.end_reads(now);
        }
        let shared = at_home!(self);
        self.busy = shared.expires_actively && shared.keyspace.expire_some(now, EXPIRE_BUDGET);
        if shared.config.maxmemory > 0
            && shared.config.maxmemory_policy != EvictionPolicy::NoEviction
            && shared.used_memory_everywhere() > shared.config.maxmemory
        {
            shared.make_room(now);
            // Where the policy finds nothing to evict, turning on would find nothing either.
            self.busy |= shared.used_memory_everywhere() > shared.config.maxmemory
                && (!shared.is_sharded || shared.used_memory() > shared.memory_share())
                && shared.keyspace.evictable(shared.config.maxmemory_policy) > 0;
        }
        self.busy |= shared.keyspace.compact_some(now, shared.compact_budget);
        if shared.keyspace.is_unsure() {
            let bound = self.warm_bound.as_ref().map_or(u64::MAX, |bound| bound.load(Ordering::Relaxed));
            self.busy |= shared.warm(bound);
        }
        shared.conclude_background();
        self.busy |= shared.tidy_tracking(now);
        for connection in core::mem::take(&mut shared.ending) {
            if let Some(mut session) = shared.sessions.take(connection) {
                shared.settle(&mut session);
                shared.sessions.insert(session);
            }
        }
        shared.metrics.tick(now.monotonic);
        shared.note_peak(now.monotonic);
        if shared.pause.until.is_some_and(|until| until <= now.monotonic) {
            shared.pause.until = None;
            shared.settings_changed(now);
        }
        if shared.config.timeout > 0 {
            Self::close_silent(shared, now);
        }
        shared.line.finish_turn();
        if shared.pause.until.is_none() && !shared.postponed.is_empty() {
            self.resume_postponed(now);
        }
    }

    /// The next thing for the driver to do.
    #[inline]
    pub fn poll_action(&mut self) -> Option<Action> {
        let shared = self.shared.as_mut()?;
        match shared.actions.pop_front() {
            None if shared.line.is_waiting() => shared.next_in_line(),
            action => action,
        }
    }

    /// How long nothing needs to be done if nothing happens; `None`: for ever.
    pub fn poll_timeout(&self, now: Now) -> Option<Nanos> {
        let shared = self.shared();
        // What other shards brought while this one stood still may have left something to do.
        let has_work = self.busy || shared.keyspace.is_tidying() || shared.line.is_waiting();
        if has_work || !shared.actions.is_empty() || (shared.is_sharded && shared.has_fleet_work()) {
            return Some(Nanos(0));
        }
        let pause = shared.pause.until.map(|until| until.since(now.monotonic));
        // Often enough that every client is looked at once a second.
        let scans = shared.sessions.slots().div_ceil(TIMEOUT_SCAN).max(1) as u64;
        let silence = shared.config.timeout > 0 && shared.clients > 0;
        let silence = silence.then_some(Nanos(1_000_000_000 / scans));
        let expiry = if shared.expires_actively { shared.keyspace.next_expiry_check(now) } else { None };
        let held = shared.fleet.traffic.held_until().map(|until| until.since(now.monotonic));
        let wait = shared.journal.as_ref().and_then(|journal| journal.next_deadline());
        let wait = wait
            .into_iter()
            .chain(shared.replica_waits.next_end())
            .min()
            .map(|until| until.since(now.monotonic));
        // Warming is not busy where it has come to its bound.
        let warming = shared.keyspace.is_unsure().then_some(WARM_LOOK);
        let streams = shared.streams.next_deadline().map(|at| at.since(now.monotonic));
        let reads = shared.reads.next_look().map(|at| at.since(now.monotonic));
        [expiry, pause, silence, held, wait, warming, streams, reads].into_iter().flatten().min()
    }

    /// The server is to stop: nothing more is executed, what is answered is sent.
    pub fn begin_shutdown(&mut self, now: Now) {
        at_home!(self).shutting_down = true;
        self.abandon_reads(now);
        for slot in 0..at_home!(self).sessions.slots() {
            let Some(connection) = at_home!(self).sessions.at(slot).map(|session| session.connection) else {
                continue;
            };
            if let Some(mut session) = at_home!(self).sessions.take(connection) {
                session.closing = true;
                at_home!(self).settle(&mut session);
                at_home!(self).sessions.insert(session);
            }
        }
    }

    /// The counters, for the driver's own.
    pub fn metrics_mut(&mut self) -> &mut Metrics {
        &mut self.shared_mut().metrics
    }

    /// The settings.
    pub fn config(&self) -> &Config {
        &self.shared().config
    }

    /// Everything but the sessions' input, for tools and tests.
    pub fn shared(&self) -> &Shared {
        self.shared.as_deref().expect(LENT)
    }

    /// As [`shared`](Self::shared).
    pub fn shared_mut(&mut self) -> &mut Shared {
        at_home!(self)
    }

    #[inline]
    fn receive_resp(&mut self, session: &mut Session, bytes: &[u8], now: Now, clock: &dyn Clock) {
        if session.output.capacity() == 0 {
            session.output = at_home!(self).pool.take();
        }
        let waits = session.waits();
        if session.input.is_empty() && !waits {
            let done = self.run(session, bytes, 0, now, clock);
            if done < bytes.len() && !session.closing {
                session.input = at_home!(self).pool.take();
                session.input.extend_from_slice(&bytes[done..]);
                session.input_start = 0;
            }
            return;
        }
        session.input.extend_from_slice(bytes);
        if session.input.len() - session.input_start > at_home!(self).config.client_query_buffer_limit {
            at_home!(self).metrics.query_limit_disconnections += 1;
            return at_home!(self).abort(session);
        }
        if !waits {
            self.run_kept(session, now, clock);
        }
    }

    /// Executes what the session has kept, as far as it goes.
    pub(crate) fn run_kept(&mut self, session: &mut Session, now: Now, clock: &dyn Clock) {
        if session.output.capacity() == 0 {
            session.output = at_home!(self).pool.take();
        }
        let mut input = core::mem::take(&mut session.input);
        let done = self.run(session, &input, session.input_start, now, clock);
        if done == input.len() || session.closing {
            session.input_start = 0;
            at_home!(self).pool.give(input);
        } else {
            session.input_start = done;
            // Moving costs at most what was executed since the last move.
            if done > input.len() / 2 {
                input.drain(..done);
                session.input_start = 0;
            }
            session.input = input;
        }
        if session.input_ended && !session.waits() {
            session.closing = true;
        }
    }

    /// Parses and executes from `at` on; returns how far it came. It stops where a command is incomplete,
    /// where the session has to wait, and where it ends.
    fn run(
        &mut self,
        session: &mut Session,
        buffer: &[u8],
        mut at: usize,
        now: Now,
        clock: &dyn Clock,
    ) -> usize {
        let Engine { shared, batch, .. } = self;
        let shared = shared.as_deref_mut().expect(LENT);
        if batch.found.spans.capacity() > 4 * BATCH_ARGUMENTS
            || batch.found.inline.capacity() > resp::LINE_MAX
        {
            // A huge command has passed; the next ones will not be.
            batch.found = Found::default();
        }
        while at < buffer.len() {
            batch.commands.clear();
            batch.found.spans.clear();
            batch.found.inline.clear();
            let limits =
                Limits { bulk_max: shared.config.proto_max_bulk_len, authenticated: session.authenticated };
            let mut parsed_to = at;
            let stop = batch.plan(shared, session, buffer, &mut parsed_to, limits);
            let planned = batch.commands.len();
            if shared.sampler.is_timing() {
                let writes = |planned: &Planned| planned.command.is_some_and(|c| c.flags & flag::WRITE != 0);
                shared.sampler.note(batch.commands.iter().any(writes));
            }
            let done = batch.execute(shared, session, buffer, now, clock);
            if session.closing {
                return buffer.len();
            }
            if done < planned {
                // What was parsed behind is parsed again when its time comes.
                session.partial = None;
                return batch.commands[done].start;
            }
            at = parsed_to;
            if session.paused_hops {
                session.partial = None;
                return at;
            }
            match stop {
                Some(Parsed::Error(error)) => {
                    let start = session.output.len();
                    Reply::new(&mut session.output, session.resp3).error_bytes(&error.text());
                    shared.metrics.protocol_errors += 1;
                    shared.metrics.note_error(&session.output[start..]);
                    if matches!(session.reply_mode, ReplyMode::Off | ReplyMode::Skip) {
                        session.output.truncate(start); // who asked for silence is closed in silence
                    }
                    session.closing = true;
                    return buffer.len();
                }
                Some(_) => return at,
                None => {}
            }
        }
        at
    }

    /// Answers every WAITAOF that has waited enough, and executes what stands behind it.
    #[cold]
    fn end_waits(&mut self, now: Now) {
        while let Some(connection) = at_home!(self).end_wait(now) {
            self.resume(connection, now, &StandingClock(now.monotonic));
        }
    }

    /// Executes what waited for the end of CLIENT PAUSE.
    #[cold]
    fn resume_postponed(&mut self, now: Now) {
        let clock = StandingClock(now.monotonic);
        for connection in core::mem::take(&mut at_home!(self).postponed) {
            let Some(mut session) = at_home!(self).sessions.take(connection) else { continue };
            if session.paused_client {
                session.paused_client = false;
                if session.http.is_some() {
                    http::resume(at_home!(self), &mut session, now, &clock);
                } else if !session.closing && !session.waits() {
                    self.run_kept(&mut session, now, &clock);
                }
            }
            at_home!(self).settle(&mut session);
            at_home!(self).sessions.insert(session);
        }
    }

    /// Closes some of the clients that said nothing for `timeout` seconds.
    #[cold]
    fn close_silent(shared: &mut Shared, now: Now) {
        let limit = u64::from(shared.config.timeout) * 1_000_000_000;
        for _ in 0..TIMEOUT_SCAN.min(shared.sessions.slots()) {
            let slot = shared.timeout_scan % shared.sessions.slots();
            shared.timeout_scan = slot + 1;
            let silent = shared.sessions.at(slot).filter(|session| {
                now.monotonic.since(session.last_interaction).0 > limit
                    && !session.is_subscriber()
                    && !session.is_stream
                    && !session.aborted
            });
            let Some(connection) = silent.map(|session| session.connection) else { continue };
            if let Some(mut session) = shared.sessions.take(connection) {
                shared.metrics.timeout_disconnections += 1;
                shared.abort(&mut session);
                shared.settle(&mut session);
                shared.sessions.insert(session);
            }
        }
    }
}

impl Batch {
    /// Parses up to [`BATCH`] commands, looks them up, and has the memory of their keys on its way.
    /// Returns why it stopped, if not because the batch is full.
    #[inline]
    fn plan(
        &mut self,
        shared: &mut Shared,
        session: &mut Session,
        buffer: &[u8],
        at: &mut usize,
        limits: Limits,
    ) -> Option<Parsed> {
        let mut stop = None;
        let (tracks, is_tracking) = (session.tracks.is_some(), shared.is_tracking);
        if tracks && let Some(table) = shared.keyspace.tracked_mut() {
            table.turn_to(session.id);
        }
        let mut is_of_interest = 0u64;
        while self.commands.len() < BATCH && self.found.spans.len() < BATCH_ARGUMENTS {
            if *at == buffer.len() {
                break;
            }
            let (start, first_span) = (*at, self.found.spans.len());
            let parsed = resp::parse(buffer, at, limits, &mut session.partial, &mut self.found);
            let inline = match parsed {
                Parsed::Command => false,
                Parsed::Inline => true,
                Parsed::Incomplete | Parsed::Error(_) => {
                    stop = Some(parsed);
                    break;
                }
            };
            let source = if inline { &self.found.inline } else { buffer };
            let args = Args::new(source, &self.found.spans[first_span..]);
            let command = command::resolve(&args);
            let mut first_key_hash = None;
            if let Some(command) = command
                && let Some(key) = args.get(command.keys.first as usize).filter(|_| command.keys.first > 0)
            {
                let hash = shared.keyspace.hash(key);
                shared.keyspace.prefetch_bucket(hash);
                first_key_hash = Some(hash);
                // Who has read it is looked up by those who track, and by those who change it.
                if is_tracking && (tracks || command.flags & flag::WRITE != 0) {
                    shared.keyspace.prefetch_readers(hash);
                    is_of_interest |= 1 << self.commands.len();
                }
            }
            let spans = args.len() as u32;
            self.commands.push(Planned {
                command,
                first_key_hash,
                start,
                end: *at,
                first_span: first_span as u32,
                spans,
                inline,
            });
            // Before the password the limits are others, and a few commands change what follows them.
            if !session.authenticated || command.is_none_or(|command| command.flags & flag::ENDS_BATCH != 0) {
                break;
            }
        }
        if self.commands.len() > 1 {
            let mut away = 0u64;
            for (index, planned) in self.commands.iter().enumerate() {
                if let Some(hash) = planned.first_key_hash {
                    away |= u64::from(shared.keyspace.prefetch_record(hash)) << index;
                }
            }
            for behind in [false, true] {
                let mut left = is_of_interest;
                while left != 0 {
                    let index = left.trailing_zeros() as usize;
                    if let Some(hash) = self.commands[index].first_key_hash {
                        match behind {
                            false => shared.keyspace.prefetch_readers_entry(hash),
                            true => shared.keyspace.prefetch_readers_behind(hash),
                        }
                    }
                    left &= left - 1;
                }
            }
            while away != 0 {
                let index = away.trailing_zeros() as usize;
                if let Some(hash) = self.commands[index].first_key_hash {
                    shared.keyspace.prefetch_away(hash);
                }
                away &= away - 1;
            }
        }
        stop
    }

    /// Executes what was planned, in order; returns how many commands are done. Fewer than planned: the
    /// session ended, or has to wait.
    #[inline]
    fn execute(
        &mut self,
        shared: &mut Shared,
        session: &mut Session,
        buffer: &[u8],
        now: Now,
        clock: &dyn Clock,
    ) -> usize {
        let mut run = Run::default();
        for (index, planned) in self.commands.iter().enumerate() {
            if session.closing {
                run.end(shared, session, self, buffer, index, now, clock);
                return index;
            }
            if session.unsent() >= HIGH_WATER {
                run.end(shared, session, self, buffer, index, now, clock);
                session.paused_output = true;
                shared.metrics.output_pauses += 1;
                return index;
            }
            let timed = planned.command.is_some_and(Command::is_timed);
            let alone = timed || planned.end - planned.start > QUICK_BYTES_MAX;
            if alone {
                run.end(shared, session, self, buffer, index, now, clock);
            }
            if !timed {
                run.begin(index, clock);
            }
            let outcome = command::execute_resolved(
                shared,
                session,
                planned.command,
                self.args(planned, buffer),
                planned.first_key_hash,
                now,
                clock,
                Pausing::Obey,
            );
            match outcome {
                Outcome::Done => {}
                // The shard that executes it counts its time.
                Outcome::Hopped => run.hopped |= 1 << index,
                Outcome::Postponed => {
                    run.end(shared, session, self, buffer, index, now, clock);
                    session.paused_client = true;
                    shared.postponed.push(session.connection);
                    return index;
                }
                Outcome::Blocked => {
                    run.end(shared, session, self, buffer, index, now, clock);
                    session.paused_hops = true;
                    return index;
                }
                Outcome::Gathers => {
                    run.end(shared, session, self, buffer, index, now, clock);
                    return index + 1;
                }
            }
            if alone {
                run.end(shared, session, self, buffer, index + 1, now, clock);
            }
        }
        run.end(shared, session, self, buffer, self.commands.len(), now, clock);
        self.commands.len()
    }

    #[inline]
    fn args<'a>(&'a self, planned: &Planned, buffer: &'a [u8]) -> Args<'a> {
        let first = planned.first_span as usize;
        let source = if planned.inline { &self.found.inline } else { buffer };
        Args::new(source, &self.found.spans[first..first + planned.spans as usize])
    }
}

/// Quick commands executed one after the other, timed together.
#[derive(Clone, Copy, Default)]
struct Run {
    started: Option<(usize, Nanos)>,
    /// Commands of the batch that other shards execute, by bit.
    hopped: u64,
}

impl Run {
    #[inline]
    fn begin(&mut self, index: usize, clock: &dyn Clock) {
        if self.started.is_none() {
            self.started = Some((index, clock.monotonic()));
        }
    }

    /// Shares the time since the beginning among the commands up to `end`.
    #[inline]
    #[allow(clippy::too_many_arguments, reason = "it needs what `execute` has")]
    fn end(
        &mut self,
        shared: &mut Shared,
        session: &Session,
        batch: &Batch,
        buffer: &[u8],
        end: usize,
        now: Now,
        clock: &dyn Clock,
    ) {
        let Some((first, started)) = self.started.take() else { return };
        let commands = &batch.commands[first..end];
        let elapsed = clock.monotonic().since(started);
        if self.hopped >> first != 0 {
            return self.end_with_hops(shared, commands, first, elapsed);
        }
        if let [Planned { command: Some(command), .. }] = commands {
            shared.metrics.note_time(command.id, elapsed, 1);
            if shared.is_slow(elapsed) && !shared.times_everything {
                shared.note_slow(session, command, &batch.args(&commands[0], buffer), elapsed, now);
            }
            return;
        }
        let Some(each) = elapsed.0.checked_div(commands.len() as u64).map(Nanos) else { return };
        // Most runs are of one command: one addition serves a stretch of equal ones.
        let mut rest = commands;
        while let Some(command) = rest.first().map(|planned| planned.command) {
            let id = command.map(|command| command.id);
            let same = rest.iter().take_while(|planned| planned.command.map(|c| c.id) == id).count();
            if let Some(id) = id {
                shared.metrics.note_time(id, each, same as u64);
            }
            rest = &rest[same..];
        }
    }

    /// The same for a run of which a part is on its way to other shards: that part is noted there.
    #[inline(never)]
    fn end_with_hops(&self, shared: &mut Shared, commands: &[Planned], first: usize, elapsed: Nanos) {
        let Some(each) = elapsed.0.checked_div(commands.len() as u64).map(Nanos) else { return };
        for (at, planned) in commands.iter().enumerate() {
            if let Some(command) = planned.command.filter(|_| self.hopped >> (first + at) & 1 == 0) {
                shared.metrics.note_time(command.id, each, 1);
            }
        }
    }
}

#[cfg(test)]
mod tests;
