//! What the server knows of one connection.
//!
//! Ten thousand connections that say nothing must cost next to nothing, so a [`Session`] holds inline only
//! what every command touches; a transaction, subscriptions, an HTTP request in progress are boxed and absent,
//! and the input and output buffers own an allocation only while there is something in them.

use crate::journal::Gates;
use crate::keyspace::WatchToken;
use crate::protocol::resp::{OwnedArgs, Partial};
use crate::reads::Written;
use crate::shards::hop::Lanes;
use crate::time::{Nanos, Now};
use crate::tracking::{Target, Tracking};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// A connection as the driver knows it. Slots are reused, generations tell their users apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct ConnectionId {
    /// Index of the connection; small.
    pub slot: u32,
    /// Counts the users of the slot.
    pub generation: u32,
}

/// Which protocol the listener speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Transport {
    /// RESP2 or RESP3.
    #[default]
    Resp,
    /// HTTP/1.1.
    Http,
}

/// The other side of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// `127.0.0.1:4242`, or `/path.sock:0`
    pub address: String,
    /// The address the client connected to, in the same form.
    pub local: String,
    /// What the listener speaks.
    pub transport: Transport,
    /// The connection came over AF_UNIX.
    pub unix: bool,
}

/// What CLIENT REPLY asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ReplyMode {
    /// Every command is answered.
    #[default]
    On,
    /// None is.
    Off,
    /// The next one is not.
    SkipNext,
    /// This one is not.
    Skip,
}

/// What a reply to a write promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Durability {
    /// Nothing: there may be no log.
    Off,
    /// At most a second of writes can be lost.
    EverySecond,
    /// The write is on stable storage.
    Always,
}

impl Durability {
    /// By the word that the setting and CLIENT DURABILITY have for it.
    pub fn parse(word: &str) -> Option<Durability> {
        match word {
            "off" => Some(Durability::Off),
            "everysec" => Some(Durability::EverySecond),
            "always" => Some(Durability::Always),
            _ => None,
        }
    }

    /// The word.
    pub fn name(self) -> &'static str {
        match self {
            Durability::Off => "off",
            Durability::EverySecond => "everysec",
            Durability::Always => "always",
        }
    }
}

/// A transaction between MULTI and EXEC.
#[derive(Debug, Default)]
pub struct Transaction {
    /// The queued commands, with their place in the table.
    pub queued: Vec<(u16, OwnedArgs)>,
    /// A command was refused while queueing: EXEC will abort.
    pub broken: bool,
    /// One of the queued commands may grow memory.
    pub denies_oom: bool,
    /// One of the queued commands writes.
    pub writes: bool,
    /// What the queue allocates, roughly.
    pub bytes: usize,
}

/// Names a session listens to, in the order in which it began to.
#[derive(Debug, Default)]
pub struct NameSet {
    names: BTreeMap<Box<[u8]>, u64>,
    next: u64,
}

impl NameSet {
    /// Adds a name; `false`: it was there.
    pub fn insert(&mut self, name: &[u8]) -> bool {
        self.next += 1;
        let is_new = !self.names.contains_key(name);
        if is_new {
            self.names.insert(name.into(), self.next);
        }
        is_new
    }

    /// Removes a name; `false`: it was not there.
    pub fn remove(&mut self, name: &[u8]) -> bool {
        self.names.remove(name).is_some()
    }

    /// The names, the oldest first.
    pub fn in_order(&self) -> Vec<Box<[u8]>> {
        let mut names: Vec<(&Box<[u8]>, &u64)> = self.names.iter().collect();
        names.sort_unstable_by_key(|(_, order)| **order);
        names.into_iter().map(|(name, _)| name.clone()).collect()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

/// What a session listens to.
#[derive(Debug, Default)]
pub struct Subscriptions {
    /// Channels.
    pub channels: NameSet,
    /// Patterns.
    pub patterns: NameSet,
    /// Shard channels (here just another name space).
    pub shard_channels: NameSet,
}

/// Names a client gave itself.
#[derive(Debug, Default, Clone)]
pub struct Names {
    /// CLIENT SETNAME
    pub name: Vec<u8>,
    /// CLIENT SETINFO LIB-NAME
    pub library: Vec<u8>,
    /// CLIENT SETINFO LIB-VER
    pub library_version: Vec<u8>,
}

/// One connection.
#[derive(Debug, Default)]
pub struct Session {
    /// What waits to be sent: handlers append here and nowhere else.
    pub output: Vec<u8>,
    /// The client speaks RESP3.
    pub resp3: bool,
    /// The client may use the server (there is no password, or it gave it).
    pub authenticated: bool,
    /// No more input is executed; the connection ends once the output is out.
    pub closing: bool,
    /// The connection ends now and its output is dropped.
    pub aborted: bool,
    /// Execution waits until the peer has read.
    pub(crate) paused_output: bool,
    /// Execution waits for CLIENT UNPAUSE.
    pub(crate) paused_client: bool,
    /// Execution waits for other shards, or in WAITAOF for the log.
    pub(crate) paused_hops: bool,
    /// Replies of other shards are missing in `output`.
    pub(crate) has_holes: bool,
    /// It waits for a command over several shards to be executed, or in WAITAOF for the log.
    pub(crate) gathers: bool,
    /// Output waits for the log.
    pub(crate) is_gated: bool,
    /// The driver was asked to stop receiving.
    pub(crate) receive_paused: bool,
    /// The way of one of its batches through the server is timed.
    pub(crate) is_sampled: bool,
    /// A `Flush` for this session is queued.
    pub(crate) flush_queued: bool,
    /// It waits in line with messages: see `engine/line.rs`.
    pub(crate) in_line: bool,
    /// The peer will send nothing more.
    pub(crate) input_ended: bool,
    /// It is no client any more, or never was (there were too many): nothing knows it by name.
    pub(crate) left: bool,
    /// It is a stream of invalidations over HTTP: what it still sends is of no interest.
    pub(crate) is_stream: bool,
    /// The driver was asked to close it.
    pub(crate) close_queued: bool,
    /// How many commands EXEC is executing; 0 outside of it.
    pub executing: usize,
    /// CLIENT NO-EVICT
    pub no_evict: bool,
    /// CLIENT NO-TOUCH: reads leave the access data alone.
    pub no_touch: bool,
    /// CLIENT REPLY
    pub reply_mode: ReplyMode,
    /// The last command, as a place in the command table.
    pub last_command: u16,
    /// The connection's id in the driver.
    pub connection: ConnectionId,
    /// CLIENT ID: never used twice.
    pub id: u64,
    /// MULTI
    pub transaction: Option<Box<Transaction>>,
    /// WATCH: the keys, and what the keyspace remembers of each.
    pub watches: BTreeMap<Box<[u8]>, WatchToken>,
    /// SUBSCRIBE and its kin; `None` while there are none.
    pub subscriptions: Option<Box<Subscriptions>>,
    /// CLIENT SETNAME and SETINFO.
    pub names: Option<Box<Names>>,
    /// Where the connection comes from.
    pub peer: Arc<Peer>,
    /// The HTTP request in progress; `None` on RESP connections.
    pub http: Option<Box<crate::protocol::http::Connection>>,
    /// CLIENT DURABILITY: what it asked for.
    pub durability: Option<Durability>,
    /// The shard of its connection.
    pub(crate) home: u32,
    /// In whose name what is read next is of interest; `None`: it is not.
    pub(crate) tracks: Option<Target>,
    /// CLIENT TRACKING; `None` while it was never asked for.
    pub tracking: Option<Box<Tracking>>,
    /// The record that its latest replies depend on; 0: none.
    pub(crate) gate: u64,
    /// Which output waits for what, while `is_gated`.
    pub(crate) gates: Option<Box<Gates>>,
    /// Its last write.
    pub(crate) last_write: Written,
    /// What it has to do with other shards; `None` while it never had.
    pub(crate) lanes: Option<Box<Lanes>>,
    /// Received bytes that are not executed yet; those before `input_start` are.
    pub(crate) input: Vec<u8>,
    pub(crate) input_start: usize,
    /// What is known of the command at the end of `input`.
    pub(crate) partial: Option<Box<Partial>>,
    /// Bytes handed to the driver and not reported sent.
    pub(crate) in_flight: usize,
    /// What this session is charged for in the sum of all buffers.
    pub(crate) charged: usize,
    /// When it connected.
    pub connected: Nanos,
    /// When it last sent something.
    pub last_interaction: Nanos,
}

impl Session {
    /// A session for a connection that was just accepted.
    pub fn new(connection: ConnectionId, id: u64, peer: Peer, now: Now) -> Session {
        Session {
            connection,
            id,
            peer: Arc::new(peer),
            connected: now.monotonic,
            last_interaction: now.monotonic,
            last_command: u16::MAX,
            ..Session::default()
        }
    }

    /// Output that has not left the process: written and not taken, or taken and not sent.
    #[inline]
    pub fn unsent(&self) -> usize {
        self.output.len() + self.in_flight
    }

    /// Channels and patterns subscribed to, without the shard channels.
    pub fn subscription_count(&self) -> usize {
        self.subscriptions.as_ref().map_or(0, |all| all.channels.len() + all.patterns.len())
    }

    /// Whether it listens to anything: a RESP2 client may then send few commands.
    #[inline]
    pub fn is_subscriber(&self) -> bool {
        self.subscriptions.is_some()
    }

    /// CLIENT GETNAME; empty where none was set.
    pub fn name(&self) -> &[u8] {
        self.names.as_ref().map_or(&[], |names| &names.name)
    }

    /// How much of the output may leave now: what stands before the first missing reply, and what shows nothing that is
    /// not durable.
    pub(crate) fn sendable(&self) -> usize {
        let open = self.gates.as_ref().filter(|_| self.is_gated).map_or(usize::MAX, |gates| gates.open());
        let hole = self.lanes.as_ref().and_then(|lanes| lanes.first_hole()).unwrap_or(usize::MAX);
        open.min(hole).min(self.output.len())
    }

    /// Replies of other shards that are missing in the output.
    pub(crate) fn missing_replies(&self) -> usize {
        self.lanes.as_ref().map_or(0, |lanes| lanes.missing())
    }

    /// Whether its input waits for something.
    #[inline]
    pub(crate) fn waits(&self) -> bool {
        self.paused_output | self.paused_client | self.paused_hops
    }

    /// Whether anything holds that an ordinary session between two commands does not know.
    #[inline]
    pub(crate) fn is_exceptional(&self) -> bool {
        // One test of what lies side by side in memory, instead of six.
        self.closing
            | self.aborted
            | self.paused_output
            | self.paused_client
            | self.paused_hops
            | self.has_holes
            | self.is_gated
            | self.receive_paused
            | self.http.is_some()
    }

    /// Bytes of all buffers, as `maxmemory` counts them.
    #[inline]
    pub(crate) fn buffer_bytes(&self) -> usize {
        let plain = self.output.capacity() + self.in_flight + self.input.capacity();
        if self.partial.is_some() | self.transaction.is_some() | self.http.is_some() | self.lanes.is_some() {
            plain + self.rare_buffer_bytes()
        } else {
            plain
        }
    }

    #[cold]
    fn rare_buffer_bytes(&self) -> usize {
        self.partial.as_ref().map_or(0, |partial| partial.capacity())
            + self.transaction.as_ref().map_or(0, |transaction| transaction.bytes)
            + self.http.as_ref().map_or(0, |http| http.buffer_bytes())
            + self.lanes.as_ref().map_or(0, |lanes| lanes.buffer_bytes())
    }
}

/// The sessions by slot. The one whose input is being executed is taken out meanwhile, so that a handler can
/// hold it and the table at once.
#[derive(Debug, Default)]
pub struct Sessions {
    slots: Vec<Option<Box<Session>>>,
    count: usize,
}

impl Sessions {
    /// Adds a session; the slot must be empty.
    pub fn insert(&mut self, session: Box<Session>) {
        let slot = session.connection.slot as usize;
        if slot >= self.slots.len() {
            self.slots.resize_with(slot + 1, || None);
        }
        assert!(self.slots[slot].is_none(), "the driver gave a slot away twice");
        self.slots[slot] = Some(session);
        self.count += 1;
    }

    /// Takes a session out; [`insert`](Self::insert) puts it back.
    #[inline]
    pub fn take(&mut self, connection: ConnectionId) -> Option<Box<Session>> {
        let slot = self.slots.get_mut(connection.slot as usize)?;
        if slot.as_ref()?.connection != connection {
            return None;
        }
        self.count -= 1;
        slot.take()
    }

    /// A session that is not being executed.
    #[inline]
    pub fn get_mut(&mut self, connection: ConnectionId) -> Option<&mut Session> {
        let session = self.slots.get_mut(connection.slot as usize)?.as_deref_mut()?;
        (session.connection == connection).then_some(session)
    }

    /// All that are not being executed, by slot.
    pub fn iter(&self) -> impl Iterator<Item = &Session> {
        self.slots.iter().filter_map(Option::as_deref)
    }

    /// All that are not being executed, by slot.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Session> {
        self.slots.iter_mut().filter_map(Option::as_deref_mut)
    }

    /// How many are in the table.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Slots ever used.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// The session at `slot`, if there is one.
    pub fn at(&self, slot: usize) -> Option<&Session> {
        self.slots.get(slot)?.as_deref()
    }
}
