//! The simulated network: connections between clients and shards, and the driver that a shard sees of them.
//!
//! Bytes arrive in order, late, and cut at random places; a send is taken at once and ends later. What a shard has
//! handed over, the client will read, whatever becomes of the server meanwhile; what was enqueued and not submitted
//! is lost with it.

use super::clock::SimClock;
use crate::random::Random;
use reactor::io::driver::{Driver, DriverCounters};
use reactor::server::event::{ConnectionId, Event, Operation};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

/// Connection reset by peer.
const ECONNRESET: i32 = 104;
/// Events that a driver finds at once.
const EVENTS_MAX: usize = 24;

/// A client's end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireId(usize);

/// Something on its way to a shard.
#[derive(Debug)]
enum Arrival {
    Connected,
    Bytes(Vec<u8>),
    /// The client sends nothing more.
    End,
    /// The client is gone.
    Reset,
    /// A send is done.
    Sent(Vec<u8>),
    Closed,
}

#[derive(Debug)]
struct Wire {
    shard: usize,
    id: ConnectionId,
    listener: usize,
    /// To the shard: bytes and ends, in order.
    incoming: VecDeque<(u64, Arrival)>,
    /// To the shard: of its own operations.
    outcome: VecDeque<(u64, Arrival)>,
    /// To the client, with what was durable when it was handed over.
    outgoing: VecDeque<(u64, Vec<u8>, u64)>,
    /// The client will read no more than what is on its way.
    ended: bool,
    paused: bool,
    closing: bool,
    /// The shard has heard that it is closed.
    gone: bool,
}

impl Wire {
    fn due(&self) -> Option<u64> {
        if self.gone {
            return None;
        }
        let incoming = self.incoming.front().filter(|(_, arrival)| !self.closing && self.heeds(arrival));
        [incoming, self.outcome.front()].into_iter().flatten().map(|front| front.0).min()
    }

    /// Receiving may be paused.
    fn heeds(&self, arrival: &Arrival) -> bool {
        !self.paused || matches!(arrival, Arrival::Connected | Arrival::Reset)
    }

    fn take_due(&mut self, now: u64) -> Option<Arrival> {
        if self.gone {
            return None;
        }
        if let Some((_, arrival)) = self.outcome.pop_front_if(|(at, _)| *at <= now) {
            return Some(arrival);
        }
        let front = self.incoming.front().filter(|(at, arrival)| *at <= now && self.heeds(arrival));
        front.filter(|_| !self.closing)?;
        self.incoming.pop_front().map(|(_, arrival)| arrival)
    }
}

/// Every connection there is.
#[derive(Debug)]
pub struct Net {
    random: Random,
    wires: Vec<Wire>,
    /// Connections that each shard has had: no slot is used again.
    slots: Vec<u32>,
    /// The longest that anything takes, in nanoseconds.
    delay: u64,
    stop_wanted: bool,
    listens: bool,
    /// What the server takes for durable.
    pub durable: u64,
}

impl Net {
    /// Without connections.
    pub fn new(seed: u64, shards: usize, delay: u64) -> Net {
        Net {
            random: Random::new(seed),
            wires: Vec::new(),
            slots: vec![0; shards],
            delay,
            stop_wanted: false,
            listens: true,
            durable: 0,
        }
    }

    fn later(&mut self, now: u64) -> u64 {
        now + self.random.next_u64() % self.delay
    }

    /// Connects a client to a shard's listener.
    pub fn connect(&mut self, shard: usize, listener: usize, now: u64) -> WireId {
        let id = ConnectionId { slot: self.slots[shard], generation: 1 };
        self.slots[shard] += 1;
        let at = self.later(now);
        self.wires.push(Wire {
            shard,
            id,
            listener,
            incoming: [(at, Arrival::Connected)].into(),
            outcome: VecDeque::new(),
            outgoing: VecDeque::new(),
            ended: false,
            paused: false,
            closing: false,
            gone: false,
        });
        WireId(self.wires.len() - 1)
    }

    /// Sends bytes, in pieces.
    pub fn send(&mut self, wire: WireId, bytes: &[u8], now: u64) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let length = match self.random.below(4) {
                0 => 1 + self.random.below(rest.len().min(16)),
                1 => 1 + self.random.below(rest.len()),
                _ => rest.len(),
            };
            let (piece, behind) = rest.split_at(length);
            rest = behind;
            self.put(wire, Arrival::Bytes(piece.to_vec()), now);
        }
    }

    /// Sends nothing more, politely or not.
    pub fn end(&mut self, wire: WireId, resets: bool, now: u64) {
        self.put(wire, if resets { Arrival::Reset } else { Arrival::End }, now);
    }

    fn put(&mut self, wire: WireId, arrival: Arrival, now: u64) {
        let mut at = self.later(now);
        let incoming = &mut self.wires[wire.0].incoming;
        if let Some(last) = incoming.back() {
            at = at.max(last.0);
        }
        incoming.push_back((at, arrival));
    }

    /// When the client has something to read.
    pub fn readable_at(&self, wire: WireId) -> Option<u64> {
        self.wires[wire.0].outgoing.front().map(|front| front.0)
    }

    /// The next that the client reads by now, and what the server took for durable when it handed it over.
    pub fn read(&mut self, wire: WireId, now: u64) -> Option<(Vec<u8>, u64)> {
        let piece = self.wires[wire.0].outgoing.pop_front_if(|(at, ..)| *at <= now);
        piece.map(|(_, bytes, durable)| (bytes, durable))
    }

    /// Nothing more will come from the server.
    pub fn has_ended(&self, wire: WireId) -> bool {
        let wire = &self.wires[wire.0];
        wire.ended && wire.outgoing.is_empty()
    }

    /// Asks every shard to stop.
    pub fn stop(&mut self) {
        self.stop_wanted = true;
    }
}

/// What one shard sees of the network.
#[derive(Debug)]
pub struct SimDriver {
    net: Rc<RefCell<Net>>,
    clock: SimClock,
    shard: usize,
    /// Its connections by slot.
    wires: Vec<usize>,
    enqueued: Vec<Operation>,
    ready: VecDeque<(usize, Arrival)>,
    lent: Option<Arrival>,
    told_to_stop: bool,
    counters: DriverCounters,
}

impl SimDriver {
    /// The driver of a shard.
    pub fn new(net: Rc<RefCell<Net>>, clock: SimClock, shard: usize) -> SimDriver {
        SimDriver {
            net,
            clock,
            shard,
            wires: Vec::new(),
            enqueued: Vec::new(),
            ready: VecDeque::new(),
            lent: None,
            told_to_stop: false,
            counters: DriverCounters::default(),
        }
    }

    /// When there is something for this shard.
    pub fn due(&self) -> Option<u64> {
        if !self.ready.is_empty() {
            return Some(0);
        }
        let net = self.net.borrow();
        if net.stop_wanted && !self.told_to_stop {
            return Some(0);
        }
        net.wires.iter().filter(|wire| wire.shard == self.shard).filter_map(Wire::due).min()
    }

    /// Hands over what was enqueued.
    pub fn submit(&mut self) {
        let now = self.clock.nanos();
        let net = &mut *self.net.borrow_mut();
        for operation in self.enqueued.drain(..) {
            let connection = match &operation {
                Operation::Send { connection, .. }
                | Operation::PauseReceive { connection }
                | Operation::ResumeReceive { connection }
                | Operation::FinishSend { connection }
                | Operation::Close { connection } => *connection,
                Operation::StopAccepting => {
                    net.listens = false;
                    continue;
                }
                Operation::Connect { .. } => unreachable!("the server connects to nobody"),
            };
            let at = net.later(now);
            let wire = &mut net.wires[self.wires[connection.slot as usize]];
            assert_eq!(wire.id, connection, "an operation on a connection that never was");
            if wire.gone {
                continue;
            }
            match operation {
                Operation::Send { buffer, .. } if !wire.closing => {
                    let is_sending =
                        wire.outcome.iter().any(|(_, arrival)| matches!(arrival, Arrival::Sent(_)));
                    assert!(!is_sending && !buffer.is_empty(), "one send on a connection, and of something");
                    self.counters.sends += 1;
                    let behind = wire.outgoing.back().map_or(0, |last| last.0);
                    wire.outgoing.push_back((at.max(behind), buffer.clone(), net.durable));
                    let done = net.later(now);
                    let wire = &mut net.wires[self.wires[connection.slot as usize]];
                    wire.outcome.push_back((done, Arrival::Sent(buffer)));
                }
                Operation::PauseReceive { .. } => wire.paused = true,
                Operation::ResumeReceive { .. } => wire.paused = false,
                Operation::FinishSend { .. } => wire.ended = true,
                Operation::Close { .. } if !wire.closing => {
                    (wire.closing, wire.ended) = (true, true);
                    let behind = wire.outcome.back().map_or(0, |last| last.0);
                    wire.outcome.push_back((at.max(behind), Arrival::Closed));
                }
                _ => {}
            }
        }
    }

    /// Finds what has happened: some of it, in any order between connections.
    pub fn collect(&mut self) {
        let now = self.clock.nanos();
        let net = &mut *self.net.borrow_mut();
        let mut found = 0;
        let mut mine: Vec<usize> =
            (0..net.wires.len()).filter(|&wire| net.wires[wire].shard == self.shard).collect();
        while !mine.is_empty() && found < EVENTS_MAX {
            let index = net.random.below(mine.len());
            let at = mine[index];
            match net.wires[at].take_due(now) {
                Some(arrival) => {
                    found += 1;
                    self.counters.completions += 1;
                    match &arrival {
                        Arrival::Connected if !net.listens => {
                            // The listeners are closed.
                            let wire = &mut net.wires[at];
                            (wire.ended, wire.gone) = (true, true);
                            continue;
                        }
                        Arrival::Connected => {
                            let slot = net.wires[at].id.slot as usize;
                            self.wires.resize(self.wires.len().max(slot + 1), usize::MAX);
                            self.wires[slot] = at;
                        }
                        Arrival::Closed => net.wires[at].gone = true,
                        _ => {}
                    }
                    self.ready.push_back((at, arrival));
                }
                None => drop(mine.swap_remove(index)),
            }
        }
    }
}

impl Driver for SimDriver {
    fn submit_and_wait(&mut self, _timeout: Option<Duration>) -> io::Result<()> {
        self.submit();
        self.collect();
        Ok(())
    }

    fn next_event(&mut self) -> Option<Event<'_>> {
        if !self.told_to_stop && self.net.borrow().stop_wanted {
            self.told_to_stop = true;
            return Some(Event::StopRequested);
        }
        let (at, arrival) = self.ready.pop_front()?;
        let (connection, listener) = {
            let wire = &self.net.borrow().wires[at];
            (wire.id, wire.listener)
        };
        Some(match arrival {
            Arrival::Connected => {
                let peer = Some(([127, 0, 0, 1], 40_000 + connection.slot as u16).into());
                Event::Accepted { connection, listener, peer }
            }
            Arrival::Bytes(_) => {
                self.lent = Some(arrival);
                let Some(Arrival::Bytes(bytes)) = &self.lent else { unreachable!("just put there") };
                Event::Received { connection, bytes }
            }
            Arrival::End => Event::ReceiveEnded { connection },
            Arrival::Reset => Event::Failed { connection, errno: ECONNRESET },
            Arrival::Sent(buffer) => Event::Sent { connection, buffer, result: Ok(()) },
            Arrival::Closed => Event::Closed { connection },
        })
    }

    fn enqueue(&mut self, operation: Operation) {
        self.enqueued.push(operation);
    }

    fn reserve(&mut self) -> Option<ConnectionId> {
        None
    }

    fn watch(&mut self, _waker: OwnedFd) -> io::Result<()> {
        Ok(())
    }

    fn counters(&self) -> DriverCounters {
        self.counters
    }
}
