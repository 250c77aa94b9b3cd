//! Commands that hop: executed on the shard that has their keys, answered in their place.
//!
//! While a connection's input is executed, each command for another shard leaves a [`Hole`] in the output and joins
//! the others for that shard in its [`Lane`]; when the input is done, a lane leaves as one [`Hop`], a single message
//! however long the pipeline was. At most one hop of a lane is away at a time, so commands of a connection reach
//! a shard in their order, and what gathers meanwhile travels next. The allocation goes there and back and is used again.
//!
//! An answer fills the holes from the front. What stands before the first hole may leave; it waits for the answer
//! for a moment ([`HELD`]), because one send is cheaper than two.
//!
//! **Bounds.** A lane takes [`COMMANDS_MAX`] commands and [`BYTES_MAX`] bytes (one command may be larger); then the
//! connection's input waits. No more than `hop-queue` hops are away to one shard; further ones wait for an answer. A
//! shard stops answering a hop at [`HIGH_WATER`] bytes of replies, and is asked for the rest when the client has read.

use super::Message;
use crate::command::{COMMANDS, Call, Command, call, flag};
use crate::engine::{Action, HIGH_WATER, Shared};
use crate::keyspace::KeyHash;
use crate::protocol::http::HopRequest;
use crate::protocol::reply::Reply;
use crate::protocol::resp::{Args, Span};
use crate::reads::Written;
use crate::session::{ConnectionId, Durability, Peer, ReplyMode, Session};
use crate::time::{Clock, Nanos, Now};
use crate::tracking::Target;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::ShardSet;

/// Commands a lane takes before the connection waits.
const COMMANDS_MAX: usize = 256;
/// Bytes of arguments a lane takes before the connection waits.
const BYTES_MAX: usize = 256 * 1024;
/// How long replies wait for the answer to a command behind them.
const HELD: Nanos = Nanos(200_000);
/// So many bytes of replies do not wait.
const HELD_BYTES_MAX: usize = 64 * 1024;
/// Hops kept for further use.
const POOL_MAX: usize = 256;
/// Buffers that grew beyond this are given back.
const KEPT_BYTES_MAX: usize = 64 * 1024;

/// Commands of one connection for one shard, and what they answered.
#[derive(Debug, Default)]
pub struct Hop {
    connection: ConnectionId,
    client: u64,
    resp3: bool,
    /// For the slow log.
    peer: Option<Arc<Peer>>,
    name: Vec<u8>,
    bytes: Vec<u8>,
    spans: Vec<Span>,
    commands: Vec<HopCommand>,
    /// An HTTP request in place of commands.
    request: Option<Box<HopRequest>>,
    /// Nothing is to be executed; it asks for being there.
    is_fence: bool,
    /// Commands executed so far.
    executed: usize,
    /// The replies of this visit, and where each ends.
    output: Vec<u8>,
    ends: Vec<usize>,
    /// What its connection asked for (CLIENT DURABILITY).
    durability: Option<Durability>,
    /// The last write in it.
    last_write: Written,
    /// A reply was over `output-buffer-max`: the connection is to be cut.
    broken: bool,
    /// The HTTP connection ends behind this response.
    closes: bool,
}

#[derive(Clone, Copy, Debug)]
struct HopCommand {
    id: u16,
    /// What it reads is of interest to its client.
    tracks: bool,
    first_span: u32,
    spans: u32,
}

impl Hop {
    fn len(&self) -> usize {
        if self.request.is_some() || self.is_fence { 1 } else { self.commands.len() }
    }

    /// The commands were executed, but what they answered must not be seen: the connection is to be cut.
    pub(crate) fn without_answer(mut self: Box<Self>) -> Box<Self> {
        self.broken = true;
        self.output.clear();
        self.ends.clear();
        self
    }

    fn is_full(&self) -> bool {
        self.commands.len() >= COMMANDS_MAX || self.bytes.len() >= BYTES_MAX
    }

    fn push(&mut self, command: &Command, args: &Args<'_>, tracks: bool) {
        let first_span = self.spans.len() as u32;
        for argument in args.iter() {
            self.spans.push(Span { start: self.bytes.len() as u32, len: argument.len() as u32 });
            self.bytes.extend_from_slice(argument);
        }
        self.commands.push(HopCommand { id: command.id, tracks, first_span, spans: args.len() as u32 });
    }

    fn args(&self, command: HopCommand) -> Args<'_> {
        let first = command.first_span as usize;
        Args::new(&self.bytes, &self.spans[first..first + command.spans as usize])
    }

    fn clear(&mut self) {
        for buffer in [&mut self.bytes, &mut self.output] {
            buffer.clear();
            buffer.shrink_to(KEPT_BYTES_MAX);
        }
        self.spans.clear();
        self.commands.clear();
        self.ends.clear();
        self.request = None;
        self.is_fence = false;
        self.peer = None;
        self.executed = 0;
        self.broken = false;
        self.closes = false;
    }

    fn bytes(&self) -> usize {
        self.bytes.capacity() + self.output.capacity()
    }
}

/// A place in the output for a reply that is on its way.
#[derive(Clone, Copy, Debug)]
struct Hole {
    at: usize,
    shard: usize,
    /// CLIENT REPLY OFF: nobody wants it.
    silent: bool,
}

/// What a connection has to do with one shard.
#[derive(Debug, Default)]
struct Lane {
    building: Option<Box<Hop>>,
    away: bool,
    answer: Option<Box<Hop>>,
    /// Replies of the answer that have found their holes.
    taken: usize,
    /// Listed among those that wait for a credit.
    listed: bool,
}

/// What a connection has to do with the other shards.
#[derive(Debug, Default)]
pub struct Lanes {
    holes: VecDeque<Hole>,
    lanes: Vec<Lane>,
    /// Lanes with something to send.
    dirty: ShardSet,
    held: bool,
}

impl Lanes {
    /// What they allocate, roughly.
    pub(crate) fn buffer_bytes(&self) -> usize {
        let of = |hop: &Option<Box<Hop>>| hop.as_ref().map_or(0, |hop| hop.bytes());
        self.lanes.iter().map(|lane| of(&lane.building) + of(&lane.answer)).sum()
    }

    /// Where the first missing reply belongs.
    pub(crate) fn first_hole(&self) -> Option<usize> {
        self.holes.front().map(|hole| hole.at)
    }

    /// How many replies are missing.
    pub(crate) fn missing(&self) -> usize {
        self.holes.len()
    }

    /// The first `bytes` of the output have left.
    pub(crate) fn shift(&mut self, bytes: usize) {
        self.holes.iter_mut().for_each(|hole| hole.at -= bytes);
    }
}

/// The traffic of hops, as one shard sees it.
#[derive(Debug)]
pub(crate) struct Traffic {
    /// Hops that may be away to one shard.
    credits_max: usize,
    away: Vec<usize>,
    /// Connections whose lane waits for a credit, by shard.
    waiting: Vec<VecDeque<ConnectionId>>,
    #[allow(clippy::vec_box, reason = "a hop travels in its box; the pool is there to keep the allocation")]
    pool: Vec<Box<Hop>>,
    /// In whose name commands of other shards' connections are executed.
    proxy: Option<Box<Session>>,
    /// Connections with replies that wait for an answer, and until when.
    held: VecDeque<(Nanos, ConnectionId)>,
}

impl Traffic {
    pub(crate) fn new(shards: usize, credits_max: usize) -> Traffic {
        Traffic {
            credits_max: credits_max.max(1),
            away: alloc::vec![0; shards],
            waiting: (0..shards).map(|_| VecDeque::new()).collect(),
            pool: Vec::new(),
            proxy: None,
            held: VecDeque::new(),
        }
    }

    /// When the first of the replies that wait have waited enough.
    pub(crate) fn held_until(&self) -> Option<Nanos> {
        self.held.front().map(|entry| entry.0)
    }

    /// No hop is away, and nobody waits to send one.
    #[cfg(test)]
    pub(crate) fn is_idle(&self) -> bool {
        self.away.iter().all(|&away| away == 0) && self.waiting.iter().all(VecDeque::is_empty)
    }

    /// Whether anything is on its way or waits.
    pub(crate) fn is_busy(&self) -> bool {
        let waits = self.waiting.iter().any(|waiting| !waiting.is_empty());
        waits || self.away.iter().any(|&away| away > 0) || !self.held.is_empty()
    }

    fn recycle(&mut self, mut hop: Box<Hop>) {
        if self.pool.len() < POOL_MAX {
            hop.clear();
            self.pool.push(hop);
        }
    }
}

impl Shared {
    /// Puts a command on its way to another shard. `false`: the connection must wait first.
    pub(crate) fn hop(
        &mut self,
        session: &mut Session,
        shard: usize,
        command: &Command,
        args: &Args<'_>,
    ) -> bool {
        let silent = matches!(session.reply_mode, ReplyMode::Off | ReplyMode::Skip);
        let tracks = session.tracks.is_some();
        let Some(hop) = self.building(session, shard).filter(|hop| !hop.is_full()) else { return false };
        hop.push(command, args, tracks);
        if tracks {
            session.note_asked(shard);
        }
        self.dig(session, shard, silent);
        true
    }

    /// The same for an HTTP request, which is alone on its connection.
    pub(crate) fn hop_request(&mut self, session: &mut Session, shard: usize, request: Box<HopRequest>) {
        if let Some(hop) = self.building(session, shard) {
            hop.request = Some(request);
            self.dig(session, shard, false);
        }
    }

    /// What a session's output has from here on waits until a shard that is in hand has been given back and has acted on
    /// what was done to it.
    pub(crate) fn fence(&mut self, session: &mut Session, shard: usize) {
        if let Some(hop) = self.building(session, shard) {
            hop.is_fence = true;
            self.dig(session, shard, true);
        }
    }

    fn building<'s>(&mut self, session: &'s mut Session, shard: usize) -> Option<&'s mut Box<Hop>> {
        let count = self.fleet.place.count;
        let lanes = session.lanes.get_or_insert_default();
        if lanes.lanes.is_empty() {
            lanes.lanes.resize_with(count, Lane::default);
        }
        let lane = lanes.lanes.get_mut(shard)?;
        if lane.building.is_none() {
            let mut hop = self.fleet.traffic.pool.pop().unwrap_or_default();
            hop.connection = session.connection;
            hop.client = session.id;
            hop.resp3 = session.resp3;
            hop.durability = session.durability;
            hop.last_write = Written::default();
            hop.peer = Some(session.peer.clone());
            hop.name.clear();
            if let Some(names) = &session.names {
                hop.name.extend_from_slice(&names.name);
            }
            lane.building = Some(hop);
        }
        // RESP3 may have been chosen since the lane began to fill: then it travels as it is first.
        let same = |hop: &&mut Box<Hop>| hop.resp3 == session.resp3 && hop.durability == session.durability;
        lane.building.as_mut().filter(same)
    }

    fn dig(&mut self, session: &mut Session, shard: usize, silent: bool) {
        if let Some(lanes) = &mut session.lanes {
            lanes.holes.push_back(Hole { at: session.output.len(), shard, silent });
            lanes.dirty.insert(shard);
            session.has_holes = true;
        }
    }

    /// Sends what a connection has gathered for other shards, as far as bounds allow.
    pub(crate) fn send_hops(&mut self, session: &mut Session) {
        let Some(lanes) = &mut session.lanes else { return };
        // What stands behind the first missing reply cannot leave before it: to wait for that would be for ever.
        let unsent = session.in_flight + lanes.first_hole().unwrap_or(session.output.len());
        let mut rest = lanes.dirty;
        while let Some(shard) = rest.first() {
            rest.remove(shard);
            let lane = &mut lanes.lanes[shard];
            if lane.away || lane.listed {
                continue;
            }
            match &lane.answer {
                // The rest of a hop whose replies were too large for one visit.
                Some(answer) if lane.taken == answer.ends.len() && unsent < HIGH_WATER => {}
                Some(_) => continue,
                None if lane.building.is_some() => {}
                None => {
                    lanes.dirty.remove(shard);
                    continue;
                }
            }
            if self.fleet.traffic.away[shard] >= self.fleet.traffic.credits_max {
                lane.listed = true;
                self.fleet.traffic.waiting[shard].push_back(session.connection);
                self.fleet.queue_waits += 1;
                continue;
            }
            let hop = match lane.answer.take() {
                Some(answer) => Some(answer),
                None => lane.building.take(),
            };
            if let Some(hop) = hop {
                lane.away = true;
                lane.taken = 0;
                self.fleet.traffic.away[shard] += 1;
                self.fleet.hops_sent += 1;
                self.fleet.hop_commands_sent += (hop.len() - hop.executed) as u64;
                self.fleet.outbox.push_back((shard, Message::Hop(hop)));
            }
        }
    }

    /// Executes another shard's commands, as many as their replies fit.
    /// Returns the LSN that its replies depend on, too.
    pub(crate) fn execute_hop(
        &mut self,
        mut hop: Box<Hop>,
        from: usize,
        now: Now,
        clock: &dyn Clock,
    ) -> (Box<Hop>, u64) {
        let mut proxy = self.fleet.traffic.proxy.take().unwrap_or_default();
        proxy.connection = ConnectionId { slot: u32::MAX, generation: 0 };
        proxy.left = true;
        proxy.authenticated = true;
        proxy.id = hop.client;
        proxy.resp3 = hop.resp3;
        proxy.durability = hop.durability;
        proxy.last_write = Written::default();
        if let Some(peer) = &hop.peer {
            proxy.peer = peer.clone();
        }
        if !hop.name.is_empty() || proxy.names.is_some() {
            proxy.names.get_or_insert_default().name.clone_from(&hop.name);
        }
        proxy.output = core::mem::take(&mut hop.output);
        proxy.output.clear();
        hop.ends.clear();
        if let Some(mut request) = hop.request.take() {
            request.execute(self, &mut proxy, now, clock);
            hop.closes = proxy.closing;
            hop.ends.push(proxy.output.len());
            hop.executed = 1;
            hop.request = Some(request);
        } else if hop.is_fence {
            hop.ends.push(0);
            hop.executed = 1;
        } else {
            self.execute_hop_commands(&mut hop, from, &mut proxy, now, clock);
        }
        hop.broken = proxy.aborted;
        hop.output = core::mem::take(&mut proxy.output);
        proxy.tracks = None;
        proxy.aborted = false;
        proxy.closing = false;
        if proxy.last_write != Written::default() {
            hop.last_write = proxy.last_write;
        }
        let gate = core::mem::take(&mut proxy.gate);
        self.fleet.traffic.proxy = Some(proxy);
        self.fleet.hops_served += 1;
        (hop, gate)
    }

    fn execute_hop_commands(
        &mut self,
        hop: &mut Hop,
        from: usize,
        proxy: &mut Session,
        now: Now,
        clock: &dyn Clock,
    ) {
        let client = Target { id: hop.client, shard: from as u32, connection: hop.connection };
        let first = hop.executed;
        let key_of = |command: HopCommand| {
            let at = COMMANDS[usize::from(command.id)].keys.first;
            hop.args(command).get(at as usize).filter(|_| at > 0)
        };
        if let Some(table) = self.keyspace.tracked_mut() {
            table.turn_to(hop.client);
        }
        // As in a batch of one's own: the waits for memory overlap.
        const AHEAD: usize = 64;
        let mut hashes = [KeyHash(0); AHEAD];
        let ahead = (hop.commands.len() - first).min(AHEAD);
        for (hash, &command) in hashes.iter_mut().zip(&hop.commands[first..first + ahead]) {
            if let Some(key) = key_of(command) {
                *hash = self.keyspace.hash(key);
                self.keyspace.prefetch_bucket(*hash);
                if self.is_tracking {
                    self.keyspace.prefetch_readers(*hash);
                }
            }
        }
        for &hash in &hashes[..ahead] {
            self.keyspace.prefetch_record(hash);
            if self.is_tracking {
                self.keyspace.prefetch_readers_entry(hash);
            }
        }
        if self.is_tracking {
            hashes[..ahead].iter().for_each(|hash| self.keyspace.prefetch_readers_behind(*hash));
        }
        let started = clock.monotonic();
        let mut quick = 0;
        while hop.executed < hop.commands.len() && proxy.output.len() < HIGH_WATER && !proxy.aborted {
            let planned = hop.commands[hop.executed];
            let command = &COMMANDS[usize::from(planned.id)];
            let at = hop.executed - first;
            let hash = (at < ahead && command.keys.first > 0).then(|| hashes[at]);
            let refused =
                self.config.maxmemory > 0 && !self.make_room(now) && command.flags & flag::DENYOOM != 0;
            if refused {
                self.metrics.oom_rejections += 1;
                let start = proxy.output.len();
                Reply::new(&mut proxy.output, proxy.resp3)
                    .error("OOM command not allowed when used memory > 'maxmemory'.");
                self.metrics.note_error(&proxy.output[start..]);
            } else {
                proxy.tracks = planned.tracks.then_some(client);
                call(&mut Call {
                    engine: self,
                    session: proxy,
                    args: hop.args(planned),
                    now,
                    clock,
                    first_key_hash: hash,
                    command,
                });
                self.conclude(proxy);
                quick += usize::from(!command.is_timed());
            }
            hop.executed += 1;
            hop.ends.push(proxy.output.len());
        }
        if quick > 0 {
            let each = Nanos(clock.monotonic().since(started).0 / quick as u64);
            for planned in &hop.commands[first..hop.executed] {
                if !COMMANDS[usize::from(planned.id)].is_timed() {
                    self.metrics.note_time(planned.id, each, 1);
                }
            }
        }
    }

    /// An answer came back: fills its holes. Returns the connection, if it still is there.
    pub(crate) fn take_answer(&mut self, shard: usize, hop: Box<Hop>) -> Option<Box<Session>> {
        self.fleet.traffic.away[shard] -= 1;
        let listens = self.sessions.get_mut(hop.connection).is_some_and(|session| !session.aborted);
        if !listens {
            self.fleet.traffic.recycle(hop);
            return None;
        }
        let mut session = self.sessions.take(hop.connection)?;
        if hop.broken {
            // The shard that executed it has counted this.
            self.fleet.traffic.recycle(hop);
            self.abort(&mut session);
            return Some(session);
        }
        if let Some(lanes) = &mut session.lanes {
            let lane = &mut lanes.lanes[shard];
            lane.away = false;
            lane.taken = 0;
        }
        session.last_write = self.later(session.last_write, hop.last_write);
        if let Some(lanes) = &mut session.lanes {
            lanes.lanes[shard].answer = Some(hop);
        }
        self.fill_holes(&mut session);
        Some(session)
    }

    /// Connections whose lane to `shard` waited for a credit that is there now.
    pub(crate) fn next_waiting(&mut self, shard: usize) -> Option<ConnectionId> {
        let traffic = &mut self.fleet.traffic;
        if traffic.away[shard] >= traffic.credits_max { None } else { traffic.waiting[shard].pop_front() }
    }

    /// Sends for a connection that waited for a credit.
    pub(crate) fn send_waiting(&mut self, shard: usize, session: &mut Session) {
        if let Some(lane) = session.lanes.as_mut().and_then(|lanes| lanes.lanes.get_mut(shard)) {
            lane.listed = false;
        }
        self.send_hops(session);
    }

    fn fill_holes(&mut self, session: &mut Session) {
        let Some(lanes) = &mut session.lanes else { return };
        let mut merged = self.pool.take();
        let mut copied = 0;
        while let Some(&Hole { at, shard, silent }) = lanes.holes.front() {
            let lane = &mut lanes.lanes[shard];
            let Some(answer) = lane.answer.as_ref().filter(|answer| lane.taken < answer.ends.len()) else {
                break;
            };
            merged.extend_from_slice(&session.output[copied..at]);
            copied = at;
            let start = if lane.taken == 0 { 0 } else { answer.ends[lane.taken - 1] };
            if session.is_sampled {
                let length = if silent { 0 } else { answer.ends[lane.taken] - start };
                self.sampler.fill(session.connection, length);
            }
            if !silent {
                if let Some(gates) = &mut session.gates {
                    gates.insert(merged.len(), answer.ends[lane.taken] - start);
                }
                merged.extend_from_slice(&answer.output[start..answer.ends[lane.taken]]);
            }
            lane.taken += 1;
            lanes.holes.pop_front();
            if lane.taken == answer.ends.len() && answer.executed == answer.len() {
                session.closing |= answer.closes;
                if let Some(answer) = lane.answer.take() {
                    self.fleet.traffic.recycle(answer);
                }
            }
        }
        let moved = merged.len();
        merged.extend_from_slice(&session.output[copied..]);
        for hole in &mut lanes.holes {
            hole.at = hole.at - copied + moved;
        }
        session.has_holes = !lanes.holes.is_empty();
        self.pool.give(core::mem::replace(&mut session.output, merged));
    }

    /// Lets replies wait for the answer to a command behind them, a moment.
    pub(crate) fn hold(&mut self, session: &mut Session, now: Now) {
        let connection = session.connection;
        if let Some(lanes) = &mut session.lanes
            && !lanes.held
            && lanes.first_hole().is_some_and(|at| at > 0)
        {
            lanes.held = true;
            self.fleet.traffic.held.push_back((Nanos(now.monotonic.0 + HELD.0), connection));
        }
    }

    /// Whether replies before the first missing one may leave now: there are many.
    pub(crate) fn holds_too_much(session: &Session) -> bool {
        session.lanes.as_ref().and_then(|lanes| lanes.first_hole()).is_some_and(|at| at > HELD_BYTES_MAX)
    }

    /// Sends what stands before the first missing reply: it has waited enough.
    pub(crate) fn flush_held(&mut self, session: &mut Session) {
        if session.sendable() > 0 && !session.flush_queued && !session.aborted {
            session.flush_queued = true;
            self.actions.push_back(Action::Flush(session.connection));
        }
    }

    /// The next connection whose replies have waited enough.
    pub(crate) fn next_held(&mut self, now: Now) -> Option<ConnectionId> {
        let due = self.fleet.traffic.held.front().is_some_and(|entry| entry.0 <= now.monotonic);
        let (_, connection) = self.fleet.traffic.held.pop_front_if(|_| due)?;
        if let Some(lanes) = self.sessions.get_mut(connection).and_then(|session| session.lanes.as_mut()) {
            lanes.held = false;
        }
        Some(connection)
    }
}
