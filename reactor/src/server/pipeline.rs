//! The pure heart of one shard: events in, operations out, no system call, no clock, no thread.
//!
//! It joins the crates below for one shard and owns the order of a turn: parse and execute as bytes arrive,
//! then, when everything that arrived is executed, background work, then replies. A connection's replies of one
//! turn leave in one send, and at most one send is in flight on a connection: what is answered meanwhile
//! gathers behind it.
//!
//! Closing is polite. After the last reply the sending side is shut down and input is discarded for a moment
//! ([`LINGER`], [`LINGER_BYTES`]), because closing a TCP socket that still has unread input sends a reset, and
//! a reset can destroy the reply that explains the closing (RFC 9112, section 9.6).

use super::event::{ConnectionId, Event, Operation};
use std::collections::VecDeque;
use store::engine::{Action, Engine};
use store::image::Damage;
use store::journal::Records;
use store::session::{Peer, Transport};
use store::shards::Message;
use store::stages::BlockTimes;
use store::time::{Clock, Nanos, Now};

/// How long a closing connection may go on sending before it is cut.
const LINGER: Nanos = Nanos(2_000_000_000);
/// The same while the server stops: a moment for replies on their way, and no more.
const LINGER_STOPPING: Nanos = Nanos(50_000_000);
/// How much of its input is discarded before it is cut.
const LINGER_BYTES: usize = 1 << 20;
/// How long a shutdown waits for clients to take their replies.
const DRAIN: Nanos = Nanos(5_000_000_000);

/// What the pipeline needs to know of a listener; the event carries its index.
#[derive(Clone, Debug)]
pub struct ListenerRole {
    /// The protocol spoken there.
    pub transport: Transport,
    /// An AF_UNIX listener.
    pub unix: bool,
    /// Its own address, as CLIENT LIST shows it.
    pub local: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Gone,
    Open,
    /// The last replies are on their way; no input is executed.
    Draining,
    /// FIN is out; input is discarded.
    Lingering,
    /// `Close` was handed to the driver.
    Closing,
}

/// What the pipeline remembers of a connection beside its session.
#[derive(Clone, Copy, Debug, Default)]
struct Link {
    generation: u32,
    phase: Phase,
    sending: bool,
    receive_ended: bool,
    discarded: usize,
}

/// See the module.
pub struct Pipeline {
    engine: Engine,
    listeners: Vec<ListenerRole>,
    links: Vec<Link>,
    open: usize,
    operations: VecDeque<Operation>,
    /// Lingering connections in the order in which they began, which is that of their deadlines.
    lingering: VecDeque<(Nanos, ConnectionId)>,
    stall: Nanos,
    stopping_until: Option<Nanos>,
    /// A client asked for the end, and the other shards have not been told.
    stop_wanted: bool,
}

impl Pipeline {
    /// A shard with nothing connected.
    pub fn new(engine: Engine, listeners: Vec<ListenerRole>) -> Pipeline {
        Pipeline {
            engine,
            listeners,
            links: Vec::new(),
            open: 0,
            operations: VecDeque::new(),
            lingering: VecDeque::new(),
            stall: Nanos(0),
            stopping_until: None,
            stop_wanted: false,
        }
    }

    /// The core, for the loop's counters.
    pub fn engine_mut(&mut self) -> &mut Engine {
        &mut self.engine
    }

    /// See [`Engine::damage`]: asked before anything of a turn leaves.
    #[inline]
    pub fn damage(&self) -> Option<&Damage> {
        self.engine.damage()
    }

    /// Takes one event: everything that can be executed now is.
    #[inline]
    pub fn handle(&mut self, event: Event<'_>, now: Now, clock: &dyn Clock) {
        match event {
            Event::Received { connection, bytes } => match self.phase(connection) {
                Phase::Open => self.engine.handle_receive(connection, bytes, now, clock),
                Phase::Lingering => {
                    let link = &mut self.links[connection.slot as usize];
                    link.discarded += bytes.len();
                    if link.discarded > LINGER_BYTES {
                        self.close(connection);
                    }
                }
                _ => {}
            },
            Event::Sent { connection, buffer, result } => {
                self.handle_sent(connection, buffer, result, now, clock)
            }
            Event::Accepted { connection, listener, peer } => {
                let role = &self.listeners[listener];
                let address = match peer {
                    Some(address) => address.to_string(),
                    None if role.unix => role.local.clone(),
                    None => "?:0".into(),
                };
                let peer =
                    Peer { address, local: role.local.clone(), transport: role.transport, unix: role.unix };
                self.opened(connection);
                self.engine.handle_connect(connection, peer, now);
            }
            Event::ReceiveEnded { connection } => match self.phase(connection) {
                Phase::Open | Phase::Draining => {
                    self.links[connection.slot as usize].receive_ended = true;
                    self.engine.handle_receive_end(connection, now);
                }
                Phase::Lingering => self.close(connection),
                Phase::Closing | Phase::Gone => {}
            },
            Event::Failed { connection, .. } => self.close(connection),
            Event::Closed { connection } => {
                if self.phase(connection) != Phase::Gone {
                    self.links[connection.slot as usize].phase = Phase::Gone;
                    self.open -= 1;
                    self.engine.handle_disconnect(connection, now);
                }
            }
            Event::StopRequested => {
                if self.stopping_until.is_none() {
                    self.stopping_until = Some(Nanos(now.monotonic.0 + DRAIN.0));
                    self.operations.push_back(Operation::StopAccepting);
                    self.engine.begin_shutdown(now);
                }
            }
            Event::Connected { .. } => {}
        }
    }

    /// Ends a turn: background work, then what the core wants done, as operations.
    #[inline]
    pub fn finish_turn(&mut self, now: Now) {
        self.engine.finish_turn(now);
        while let Some(action) = self.engine.poll_action() {
            match action {
                Action::Flush(connection) => self.flush(connection, now),
                Action::Close(connection) => {
                    if self.phase(connection) == Phase::Open {
                        self.links[connection.slot as usize].phase = Phase::Draining;
                        self.flush(connection, now);
                    }
                }
                Action::Abort(connection) => self.close(connection),
                Action::PauseReceive(connection) => {
                    self.operations.push_back(Operation::PauseReceive { connection });
                }
                Action::ResumeReceive(connection) => {
                    self.operations.push_back(Operation::ResumeReceive { connection });
                }
                Action::Stall(length) => self.stall = Nanos(self.stall.0 + length.0),
                Action::Shutdown => self.handle_shutdown_command(now),
            }
        }
        while let Some(&(begun, connection)) = self.lingering.front() {
            let over = self.phase(connection) != Phase::Lingering;
            if !over && begun.0 + self.linger().0 > now.monotonic.0 {
                break;
            }
            self.lingering.pop_front();
            if !over {
                self.close(connection);
            }
        }
        if self.stopping_until.is_some_and(|until| until <= now.monotonic) {
            for slot in 0..self.links.len() {
                let generation = self.links[slot].generation;
                self.close(ConnectionId { slot: slot as u32, generation });
            }
        }
    }

    /// The next thing for the driver to do.
    #[inline]
    pub fn poll_operation(&mut self) -> Option<Operation> {
        self.operations.pop_front()
    }

    /// How long the loop may sleep; `None`: until something happens.
    #[inline]
    pub fn poll_timeout(&self, now: Now) -> Option<Nanos> {
        let mut timeout = self.engine.poll_timeout(now);
        let lingering = self.lingering.front().map(|entry| Nanos(entry.0.0 + self.linger().0));
        // Stopped already, only other shards are waited for.
        let deadlines = [lingering, self.stopping_until.filter(|_| self.open > 0)];
        for deadline in deadlines.into_iter().flatten() {
            let left = deadline.since(now.monotonic);
            timeout = Some(timeout.map_or(left, |other| other.min(left)));
        }
        timeout
    }

    /// DEBUG SLEEP: how long the whole shard is to stand still before its replies leave.
    #[inline]
    pub fn take_stall(&mut self) -> Nanos {
        std::mem::take(&mut self.stall)
    }

    /// A client has sent SHUTDOWN: the other shards have to stop too. Told once.
    #[inline]
    pub fn wants_stop(&mut self) -> bool {
        std::mem::take(&mut self.stop_wanted)
    }

    /// Takes what another shard says; its answer may wait for `Return` of a shard that is lent.
    #[inline]
    pub fn handle_message(&mut self, from: usize, message: Message, now: Now, clock: &dyn Clock) {
        self.engine.handle_message(from, message, now, clock);
    }

    /// Whether another shard may have something to tell clients of this one.
    #[inline]
    pub fn has_trackers(&self) -> bool {
        !self.engine.is_lent() && self.engine.shared().trackers.has_clients()
    }

    /// See [`Engine::poll_tell`].
    #[inline]
    pub fn poll_tell(&mut self) -> Option<(usize, Message)> {
        self.engine.poll_tell()
    }

    /// The next thing for another shard to hear.
    #[inline]
    pub fn poll_message(&mut self) -> Option<(usize, Message)> {
        self.engine.poll_message()
    }

    /// Everything up to this record of the log is durable.
    #[inline]
    pub fn set_durable(&mut self, lsn: u64) {
        self.engine.set_durable(lsn);
    }

    /// See [`Shared::next_durable_sample`](store::engine::Shared::next_durable_sample).
    #[inline]
    pub fn next_durable_sample(&self) -> Option<u64> {
        self.engine.shared().next_durable_sample()
    }

    /// See [`Shared::stamp_log`](store::engine::Shared::stamp_log).
    pub fn stamp_log(&mut self, lsn: u64, times: Option<BlockTimes>) {
        self.engine.shared_mut().stamp_log(lsn, times);
    }

    /// Replies of a batch of requests whose way is timed are among the operations of this turn: the driver has them now.
    #[inline]
    pub fn note_handed(&mut self, clock: &dyn Clock) {
        let sampler = &mut self.engine.shared_mut().sampler;
        if sampler.has_unstamped() {
            sampler.handed(clock.monotonic());
        }
    }

    /// The first record of the log that anybody here waits for.
    #[inline]
    pub fn first_awaited(&self) -> Option<u64> {
        self.engine.first_awaited()
    }

    /// Input that is kept and may be executed in the next turn, in bytes.
    #[inline]
    pub fn kept_input(&self) -> usize {
        self.engine.kept_input()
    }

    /// Writes are refused, with this text, or welcome again.
    pub fn refuse_writes(&mut self, why: Option<String>) {
        self.engine.shared_mut().refuse_writes(why);
    }

    /// The log has failed: who waits for it is cut off.
    pub fn fail_pending(&mut self) {
        self.engine.shared_mut().fail_pending();
    }

    /// The turn wrote something.
    #[inline]
    pub fn has_records(&mut self) -> bool {
        self.engine.shared_mut().has_records()
    }

    /// Exchanges `empty` for what the turn wrote.
    #[inline]
    pub fn take_records(&mut self, empty: &mut Records) {
        self.engine.shared_mut().take_records(empty);
    }

    /// Bytes of the records that nobody has taken.
    pub fn record_bytes(&self) -> usize {
        self.engine.record_bytes()
    }

    /// Somebody waits for what the log would not flush yet. Told once.
    #[inline]
    pub fn take_flush_wish(&mut self) -> bool {
        self.engine.shared_mut().take_flush_wish()
    }

    /// All this shard has is with another: until it is back nothing but [`handle_message`](Self::handle_message) may
    /// be called.
    #[inline]
    pub fn is_lent(&self) -> bool {
        self.engine.is_lent()
    }

    /// DEBUG SLEEP begins: until [`end_stall`](Self::end_stall) messages are answered as far as can be.
    pub fn begin_stall(&mut self) {
        self.engine.begin_stall();
    }

    /// DEBUG SLEEP ends: what waited is done.
    pub fn end_stall(&mut self, now: Now, clock: &dyn Clock) {
        self.engine.end_stall(now, clock);
    }

    /// Every client has its replies, every connection is closed.
    #[inline]
    pub fn is_stopped(&self) -> bool {
        self.stopping_until.is_some() && self.open == 0
    }

    /// A stop was asked for.
    pub fn is_stopping(&self) -> bool {
        self.stopping_until.is_some()
    }

    /// Connections that have not been closed entirely.
    pub fn open_connections(&self) -> usize {
        self.open
    }

    fn handle_sent(
        &mut self,
        connection: ConnectionId,
        buffer: Vec<u8>,
        result: Result<(), i32>,
        now: Now,
        clock: &dyn Clock,
    ) {
        if self.phase(connection) == Phase::Gone {
            return;
        }
        self.links[connection.slot as usize].sending = false;
        if result.is_err() {
            return self.close(connection);
        }
        self.engine.handle_sent(connection, buffer, now, clock);
        self.flush(connection, now);
    }

    /// SHUTDOWN from a client ends like SIGTERM.
    fn handle_shutdown_command(&mut self, now: Now) {
        if self.stopping_until.is_none() {
            self.stop_wanted = true;
            self.stopping_until = Some(Nanos(now.monotonic.0 + DRAIN.0));
            self.operations.push_back(Operation::StopAccepting);
            self.engine.begin_shutdown(now);
        }
    }

    #[inline]
    fn phase(&self, connection: ConnectionId) -> Phase {
        match self.links.get(connection.slot as usize) {
            Some(link) if link.generation == connection.generation => link.phase,
            _ => Phase::Gone,
        }
    }

    fn opened(&mut self, connection: ConnectionId) {
        let slot = connection.slot as usize;
        if slot >= self.links.len() {
            self.links.resize(slot + 1, Link::default());
        }
        debug_assert!(self.links[slot].phase == Phase::Gone, "the driver gave a slot out twice");
        self.links[slot] = Link { generation: connection.generation, phase: Phase::Open, ..Link::default() };
        self.open += 1;
    }

    /// Sends what is pending, or goes on closing where nothing is.
    #[inline]
    fn flush(&mut self, connection: ConnectionId, now: Now) {
        let phase = self.phase(connection);
        if !matches!(phase, Phase::Open | Phase::Draining) {
            return;
        }
        let slot = connection.slot as usize;
        if self.links[slot].sending {
            return;
        }
        if let Some(buffer) = self.engine.take_output(connection) {
            self.links[slot].sending = true;
            self.operations.push_back(Operation::Send { connection, buffer });
        } else if phase == Phase::Draining {
            if self.links[slot].receive_ended {
                self.close(connection);
            } else {
                self.links[slot].phase = Phase::Lingering;
                self.operations.push_back(Operation::FinishSend { connection });
                // Paused for back-pressure, it would never show us its end.
                self.operations.push_back(Operation::ResumeReceive { connection });
                self.lingering.push_back((now.monotonic, connection));
            }
        }
    }

    fn linger(&self) -> Nanos {
        if self.stopping_until.is_some() { LINGER_STOPPING } else { LINGER }
    }

    fn close(&mut self, connection: ConnectionId) {
        if !matches!(self.phase(connection), Phase::Gone | Phase::Closing) {
            self.links[connection.slot as usize].phase = Phase::Closing;
            self.operations.push_back(Operation::Close { connection });
        }
    }
}
