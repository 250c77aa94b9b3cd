//! The side that follows: from a connection and datagrams to records, in order, each once.
//!
//! | where it stands | what it waits for |
//! |---|---|
//! | [`State::Resting`] | the time of the next attempt, or to be told whom to follow |
//! | [`State::Connecting`] | the edge |
//! | [`State::Handshake`] | challenge and welcome |
//! | [`State::FullSync`] | the snapshot's bytes, then the edge, which installs it |
//! | [`State::Streaming`] | records |
//!
//! Whatever breaks, what was applied stays, and the next connection goes on behind it. A snapshot replaces
//! the data in one step ([`Action::Install`]) when all of it is there; until then reads are answered from
//! what was there before, if they may be stale. What arrives is believed only if the primary has proved that
//! it knows the secret, is of the history it named, is durable there, and goes on where the last record
//! ended.
//!
//! Records are handed over in [`Action::Apply`] and count when the edge says that they can be read
//! ([`Replica::handle_applied`]). While too many are on their way the connection is not read, so TCP tells
//! the primary; datagrams are dropped, and asked for later.

mod handshake;
mod stream;

use alloc::collections::VecDeque;
use alloc::format;
use alloc::vec::Vec;
use core::mem;

use wal::checksum::Checksum;
use wal::lsn::Lsn;

use crate::fault::{Fault, Reason};
use crate::frame::FrameReader;
use crate::freshness::Freshness;
use crate::identity::{Chain, NodeId, Now};
use crate::intake::Intake;
use crate::lineage::{Branch, Lineage};
use crate::message::{Ack, Message, SnapshotName};
use crate::reads::{AtLeast, ReadId, ReadVerdict, Reads};
use crate::reorder::{DatagramCounters, Reorder, ReorderSettings};
use crate::run::Delivery;
use crate::secret::{DatagramKey, Nonce, Secret};
use crate::settings::ReplicaSettings;
use crate::word::Heard;

/// What a replica is begun with: what its data directory holds.
#[derive(Clone, Debug)]
pub struct ReplicaStart {
    /// This node.
    pub node: NodeId,
    /// The secret that all nodes share.
    pub secret: Secret,
    /// Whose records it has; empty if it has none.
    pub lineage: Lineage,
    /// The last record it has.
    pub last_lsn: Lsn,
    /// A snapshot of which it has so many bytes, durably.
    pub partial: Option<(SnapshotName, u64)>,
    /// Random.
    pub seed: u64,
}

/// What the edge is to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Connect to the primary: [`Replica::handle_connected`] or [`Replica::handle_closed`] follows.
    Connect,
    /// Write to the connection.
    Send(Vec<u8>),
    /// Close the connection, and say why.
    Close(Fault),
    /// Write the snapshot into a file from this byte on; what is before it is there. 0: begin a new one.
    BeginSnapshot {
        /// Which.
        name: SnapshotName,
        /// Its next byte.
        offset: u64,
    },
    /// Bytes of it; [`Replica::handle_snapshot_stored`] follows.
    StoreSnapshot {
        /// Where.
        offset: u64,
        /// What.
        bytes: Vec<u8>,
    },
    /// The file is complete: check it, and let it and this history take the place of all data, log and
    /// history there were, in one step that a crash leaves done or not begun. [`Replica::handle_installed`]
    /// follows. Records handed over before have been applied by then, or never will be, and are not mentioned
    /// after it.
    Install {
        /// Which.
        name: SnapshotName,
        /// The history it belongs to.
        lineage: Lineage,
    },
    /// What there is of a snapshot is of no use any more.
    DropSnapshot,
    /// Keep this history. It is durable before a record that comes after this is.
    Follow(Lineage),
    /// Apply these records; [`Replica::handle_applied`] follows, for several at once if that suits.
    Apply(Delivery),
}

/// Where a replica stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is not connected.
    Resting,
    /// The edge is connecting.
    Connecting,
    /// It has not been told yet what it will get.
    Handshake,
    /// A snapshot is on its way, or being installed.
    FullSync,
    /// Records are on their way.
    Streaming,
}

/// How often things happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplicaCounters {
    /// Connections begun.
    pub connects: u64,
    /// Connections that ended with a fault.
    pub faults: u64,
    /// Handshakes that went on from where it was.
    pub partial_syncs: u64,
    /// Handshakes that replaced the data.
    pub full_syncs: u64,
    /// Of these, some that had the first bytes already.
    pub resumed_syncs: u64,
    /// Records handed over.
    pub records: u64,
    /// Frames of records that had nothing new.
    pub old_runs: u64,
}

#[derive(Debug)]
enum Phase {
    /// Nobody to follow.
    Stopped,
    /// Connect at this time.
    Resting(u64),
    Connecting,
    /// Hello is said.
    Greeting,
    /// The proof is given.
    Proving,
    Snapshot {
        name: SnapshotName,
        /// The next byte.
        offset: u64,
    },
    /// Also while a snapshot is being installed: what is behind it waits.
    Streaming,
}

/// What the datagrams of this connection must be.
#[derive(Debug)]
struct Channel {
    stream: u64,
    salt: Nonce,
    key: Option<(Branch, DatagramKey)>,
    /// The primary has said that they begin: what is missing is to be asked for.
    is_live: bool,
}

/// The side that follows.
#[derive(Debug)]
pub struct Replica {
    settings: ReplicaSettings,
    checksum: Checksum,
    node: NodeId,
    secret: Secret,
    lineage: Lineage,
    chain: Chain,
    phase: Phase,
    reader: FrameReader,
    /// As they went over the wire: what proofs are made of.
    hello_body: Vec<u8>,
    challenge_body: Vec<u8>,
    actions: VecDeque<Action>,
    intake: Intake,
    /// Deliveries handed over and not applied: their last records and bytes.
    unapplied: VecDeque<(Lsn, usize)>,
    unapplied_bytes: usize,
    applied_lsn: Lsn,
    durable_lsn: Lsn,
    /// Before this record is applied the data is no state that the primary was in.
    consistent_lsn: Lsn,
    partial: Option<(SnapshotName, u64)>,
    /// The history of the snapshot that is on its way.
    pending_lineage: Option<Lineage>,
    installing: Option<(SnapshotName, Lineage)>,
    primary_durable_lsn: Lsn,
    word: Heard,
    channel: Option<Channel>,
    reorder: Reorder,
    freshness: Freshness,
    reads: Reads,
    ack_at: u64,
    /// What the last ack said.
    acked_lsn: Lsn,
    /// Somebody waits for an ack of this.
    wanted_lsn: Option<Lsn>,
    heard_at: u64,
    backoff_us: u64,
    /// What had come when it last went back at once.
    went_back_with: Option<u64>,
    random: u64,
    counters: ReplicaCounters,
    last_fault: Option<Fault>,
}

impl Replica {
    /// One that has yet to be told whom to follow ([`Replica::start`]). The settings must be
    /// [valid](ReplicaSettings::validate).
    pub fn new(settings: ReplicaSettings, start: ReplicaStart, checksum: Checksum) -> Replica {
        settings.validate().unwrap_or_else(|wrong| panic!("{wrong}"));
        let reorder = ReorderSettings {
            datagrams_max: settings.reorder_datagrams_max,
            bytes_max: settings.reorder_bytes_max,
            gap_delay_us: settings.gap_delay_us,
            gap_jitter_us: settings.gap_jitter_us,
            repair_timeout_us: settings.repair_timeout_us,
        };
        Replica {
            checksum,
            node: start.node,
            secret: start.secret,
            lineage: start.lineage,
            chain: Chain::default(),
            phase: Phase::Stopped,
            reader: FrameReader::new(checksum),
            hello_body: Vec::new(),
            challenge_body: Vec::new(),
            actions: VecDeque::new(),
            intake: Intake::new(start.last_lsn.next(), settings.record_bytes_max),
            unapplied: VecDeque::new(),
            unapplied_bytes: 0,
            applied_lsn: start.last_lsn,
            durable_lsn: Lsn::ZERO,
            consistent_lsn: Lsn::ZERO,
            partial: start.partial,
            pending_lineage: None,
            installing: None,
            primary_durable_lsn: Lsn::ZERO,
            word: Heard::default(),
            channel: None,
            reorder: Reorder::new(reorder, start.seed),
            freshness: Freshness::default(),
            reads: Reads::new(settings.reads_waiting_max),
            ack_at: u64::MAX,
            acked_lsn: Lsn::ZERO,
            wanted_lsn: None,
            heard_at: 0,
            backoff_us: settings.backoff_us_min,
            went_back_with: None,
            random: start.seed,
            counters: ReplicaCounters::default(),
            last_fault: None,
            settings,
        }
    }

    /// The data is a state in the middle of a full sync up to this record, at an earlier run's word: it must
    /// not be read before.
    pub fn with_consistent_lsn(mut self, consistent_lsn: Lsn) -> Replica {
        self.consistent_lsn = consistent_lsn;
        self
    }

    /// Follow the primary that the edge connects to.
    pub fn start(&mut self, now: Now) {
        if matches!(self.phase, Phase::Stopped) {
            self.phase = Phase::Resting(now.micros);
        }
    }

    /// Follow nobody: the connection ends, what was handed over is still to be applied.
    pub fn stop(&mut self, now: Now) {
        if !matches!(self.phase, Phase::Stopped | Phase::Resting(_)) {
            self.fail(
                Fault::new(Reason::Stopped, "expected to go on, found that the node is told to stop"),
                now,
            );
        }
        self.phase = Phase::Stopped;
    }

    /// The connection is there. `nonce` is random.
    pub fn handle_connected(&mut self, nonce: Nonce, now: Now) {
        if matches!(self.phase, Phase::Connecting) {
            self.say_hello(nonce, now);
        }
    }

    /// The connection is gone, or could not be made.
    pub fn handle_closed(&mut self, why: &str, now: Now) {
        if !matches!(self.phase, Phase::Stopped | Phase::Resting(_)) {
            self.last_fault =
                Some(Fault::new(Reason::Timeout, format!("expected a connection, found {why}")));
            self.disconnect(now, false);
        }
    }

    /// Bytes have arrived from the primary. They may be more than [`Replica::wants_bytes`] asked for.
    pub fn handle_bytes(&mut self, bytes: &[u8], now: Now) {
        if self.is_connected() {
            self.heard_at = now.micros;
            self.reader.push(bytes);
            self.read_frames(now);
        }
    }

    /// False while what has arrived waits for records to be applied: let the socket fill.
    pub fn wants_bytes(&self) -> bool {
        self.is_connected() && self.takes_frames()
    }

    fn takes_frames(&self) -> bool {
        self.installing.is_none() && self.unapplied_bytes < self.settings.apply_bytes_max
    }

    fn is_connected(&self) -> bool {
        !matches!(self.phase, Phase::Stopped | Phase::Resting(_) | Phase::Connecting)
    }

    /// The proof is given: before it an ack would be the first word of a stranger.
    fn acknowledges(&self) -> bool {
        matches!(self.phase, Phase::Proving | Phase::Snapshot { .. } | Phase::Streaming)
    }

    fn read_frames(&mut self, now: Now) {
        while self.is_connected() && self.takes_frames() {
            let message = match self.reader.next_frame() {
                Ok(None) => return,
                Ok(Some(frame)) => {
                    if matches!(self.phase, Phase::Greeting) {
                        self.challenge_body.clone_from(&frame.body);
                    }
                    Message::decode(frame.kind, frame.body)
                }
                Err(fault) => Err(fault),
            };
            if let Err(fault) = message.and_then(|message| self.handle_message(message, now)) {
                return self.fail(fault, now);
            }
        }
    }

    fn handle_message(&mut self, message: Message, now: Now) -> Result<(), Fault> {
        match (&self.phase, message) {
            (_, Message::Refused(fault)) => Err(fault),
            (Phase::Greeting, Message::Challenge(challenge)) => self.handle_challenge(challenge),
            (Phase::Proving, Message::Welcome(welcome)) => self.handle_welcome(welcome, now),
            // It keeps the connection alive while a snapshot is being taken.
            (Phase::Proving, Message::Heartbeat(_)) => Ok(()),
            (Phase::Snapshot { .. }, Message::Chunk { offset, bytes }) => {
                self.handle_chunk(offset, bytes, now)
            }
            (Phase::Snapshot { .. } | Phase::Streaming, Message::Heartbeat(beat)) => {
                self.handle_heartbeat(beat, now)
            }
            (Phase::Snapshot { .. } | Phase::Streaming, Message::Branch(branch)) => {
                self.handle_branch(branch)
            }
            (Phase::Snapshot { .. } | Phase::Streaming, Message::Chain(chain)) => self.handle_chain(chain),
            (Phase::Streaming, Message::Records(run)) => self.handle_records(&run, now),
            (Phase::Streaming, Message::Live(lsn)) => self.handle_live(lsn, now),
            (_, message) => {
                let kind = message.kind();
                Err(Fault::new(
                    Reason::Protocol,
                    format!("expected what a primary says next, found kind {kind}"),
                ))
            }
        }
    }

    /// Everything up to `applied` can be read; up to `durable` it is in this node's own log (0 if it keeps
    /// none).
    pub fn handle_applied(&mut self, applied: Lsn, durable: Lsn, now: Now) {
        while let Some(&(last, bytes)) = self.unapplied.front() {
            if last > applied {
                break;
            }
            self.unapplied.pop_front();
            self.unapplied_bytes -= bytes;
        }
        self.durable_lsn = self.durable_lsn.max(durable);
        if applied > self.applied_lsn {
            assert!(applied <= self.intake.last_lsn(), "{applied} was not handed over");
            self.applied_lsn = applied;
            let delay_us = match self.wanted_lsn.take_if(|wanted| *wanted <= applied) {
                Some(_) => 0,
                None => self.settings.ack_delay_us,
            };
            self.ack_at = self.ack_at.min(now.micros.saturating_add(delay_us));
            self.freshness.applied(applied);
            if self.applied_lsn >= self.consistent_lsn {
                self.reads.applied(applied, &self.lineage);
            }
        }
        self.read_frames(now);
    }

    fn fail(&mut self, fault: Fault, now: Now) {
        self.counters.faults += 1;
        if !fault.is_peers && self.is_connected() && !self.hello_body.is_empty() {
            let mut bytes = Vec::new();
            Message::Refused(fault.clone()).encode(&mut bytes, self.checksum);
            self.actions.push_back(Action::Send(bytes));
        }
        self.actions.push_back(Action::Close(fault.clone()));
        let passes = fault.reason.is_over_at_once();
        let has_come = self.counters.records + self.counters.full_syncs;
        // The other way leads somewhere, or to the same place again.
        let at_once = passes && self.went_back_with != Some(has_come);
        if passes {
            self.went_back_with = Some(has_come);
        }
        if fault.reason.is_lasting() || (passes && !at_once) {
            self.backoff_us = self.settings.backoff_us_max;
        }
        self.last_fault = Some(fault);
        self.disconnect(now, at_once);
    }

    fn disconnect(&mut self, now: Now, at_once: bool) {
        self.reader = FrameReader::new(self.checksum);
        self.hello_body.clear();
        self.challenge_body.clear();
        self.intake.restart(self.intake.expected().lsn);
        self.channel = None;
        self.pending_lineage = None;
        self.reorder.restart();
        self.freshness.disconnect();
        self.word.forget();
        (self.ack_at, self.acked_lsn, self.wanted_lsn) = (u64::MAX, Lsn::ZERO, None);
        // Between a half and the whole of it, so that not all replicas come back in the same moment.
        self.random = self.random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        let half = self.backoff_us / 2;
        let wait = if at_once { 0 } else { half + (self.random >> 33) % (half + 1) };
        self.backoff_us = (self.backoff_us * 2).clamp(1, self.settings.backoff_us_max);
        self.phase = Phase::Resting(now.micros.saturating_add(wait));
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Now) {
        self.reads.expire(self.applied_lsn, now.micros);
        match self.phase {
            // What is being installed decides what hello will say.
            Phase::Resting(at) if at <= now.micros && self.installing.is_none() => {
                self.phase = Phase::Connecting;
                self.counters.connects += 1;
                self.heard_at = now.micros;
                self.actions.push_back(Action::Connect);
            }
            Phase::Stopped | Phase::Resting(_) => (),
            _ if !self.takes_frames() => self.heard_at = now.micros,
            _ if now.micros.saturating_sub(self.heard_at) >= self.settings.timeout_us => {
                let silent = self.settings.timeout_us;
                let text = format!("expected a word from the primary within {silent} us, found silence");
                return self.fail(Fault::new(Reason::Timeout, text), now);
            }
            _ => (),
        }
        if now.micros >= self.ack_at && self.acknowledges() {
            self.acknowledge(now);
        }
        self.ask_for_repair(now);
    }

    fn acknowledge(&mut self, now: Now) {
        // As long as the data is about to be replaced it says nothing of this history, and before it is
        // consistent nobody can read it.
        let is_streaming = matches!(self.phase, Phase::Streaming) && self.installing.is_none();
        let counts = is_streaming && self.applied_lsn >= self.consistent_lsn;
        let ack = Ack {
            applied_lsn: if counts { self.applied_lsn } else { Lsn::ZERO },
            durable_lsn: if counts { self.durable_lsn } else { Lsn::ZERO },
            stamp: now.micros.max(1),
        };
        self.ack_at = now.micros.saturating_add(self.settings.ack_interval_us);
        self.acked_lsn = ack.applied_lsn;
        self.say(&Message::Ack(ack));
    }

    fn say(&mut self, message: &Message) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes, self.checksum);
        self.actions.push_back(Action::Send(bytes));
    }

    /// What to do next; none: nothing until something happens, or [`Replica::poll_timeout`].
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When to call [`Replica::handle_timeout`] if nothing happens before.
    pub fn poll_timeout(&self) -> Option<u64> {
        let phase = match self.phase {
            Phase::Stopped => None,
            Phase::Resting(at) => self.installing.is_none().then_some(at),
            _ => Some(self.heard_at.saturating_add(self.settings.timeout_us)),
        };
        let ack = (self.ack_at < u64::MAX && self.acknowledges()).then_some(self.ack_at);
        let gap = self.reorder.deadline().filter(|_| self.repairs());
        [phase, ack, gap, self.reads.deadline()].into_iter().flatten().min()
    }

    /// A read arrives, which has to see at least this, or whatever there is. What a reader is told holds
    /// until anything else is applied.
    pub fn read(&mut self, wanted: Option<AtLeast>, now: Now) -> ReadVerdict {
        if self.installing.is_some() || self.applied_lsn < self.consistent_lsn {
            return ReadVerdict::Loading;
        }
        let (lag_us, most) = (self.freshness.lag_us(now.micros), self.settings.lag_us_max);
        if most > 0 && lag_us.is_none_or(|lag| lag > most) {
            return ReadVerdict::Stale { lag_us };
        }
        let Some(wanted) = wanted else { return ReadVerdict::Now };
        let deadline = now.micros.saturating_add(self.settings.read_wait_us);
        self.reads.read(wanted, self.applied_lsn, &self.lineage, deadline)
    }

    /// A read that need not wait any more.
    pub fn poll_read(&mut self) -> Option<(ReadId, ReadVerdict)> {
        self.reads.poll()
    }

    /// The last record that can be read.
    pub fn applied_lsn(&self) -> Lsn {
        self.applied_lsn
    }

    /// The history of what it has.
    pub fn lineage(&self) -> &Lineage {
        &self.lineage
    }

    /// Where its records come from; the node it follows first. What a [`crate::primary::Primary`] beside it
    /// is given in `handle_chain`.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// By its own clock: when it last had everything there was. For a [`crate::primary::Primary`] beside it,
    /// too.
    pub fn fresh_as_of(&self) -> Option<u64> {
        self.freshness.fresh_as_of()
    }

    /// How far behind it may be; none if nothing is known.
    pub fn lag_us(&self, now: Now) -> Option<u64> {
        self.freshness.lag_us(now.micros)
    }

    /// Records that are durable on the primary, as far as is known, and not applied here.
    pub fn lag_records(&self) -> u64 {
        self.primary_durable_lsn.0.saturating_sub(self.applied_lsn.0)
    }

    /// The primary's time, in microseconds since 1970, as far as it holds for data that ends with this record; none if
    /// nothing new is known.
    pub fn take_word(&mut self, last: Lsn) -> Option<u64> {
        self.word.take(last)
    }

    /// Bytes of records that were handed over and are not applied.
    pub fn unapplied_bytes(&self) -> usize {
        self.unapplied_bytes
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        match self.phase {
            _ if self.installing.is_some() => State::FullSync,
            Phase::Stopped | Phase::Resting(_) => State::Resting,
            Phase::Connecting => State::Connecting,
            Phase::Greeting | Phase::Proving => State::Handshake,
            Phase::Snapshot { .. } => State::FullSync,
            Phase::Streaming => State::Streaming,
        }
    }

    /// True if new records come as datagrams.
    pub fn is_live(&self) -> bool {
        self.channel.as_ref().is_some_and(|channel| channel.is_live)
    }

    /// The snapshot that is on its way, and how many bytes of it are there.
    pub fn partial(&self) -> Option<(SnapshotName, u64)> {
        self.partial
    }

    /// How often things happened.
    pub fn counters(&self) -> ReplicaCounters {
        self.counters
    }

    /// How often things happened to datagrams.
    pub fn datagram_counters(&self) -> DatagramCounters {
        self.reorder.counters
    }

    /// Why the last connection ended.
    pub fn last_fault(&self) -> Option<&Fault> {
        self.last_fault.as_ref()
    }

    /// Reads that wait, and those that found no room to.
    pub fn reads_waiting(&self) -> (usize, u64) {
        self.reads.waiting()
    }

    fn take_partial(&mut self) -> Option<(SnapshotName, u64)> {
        mem::take(&mut self.partial)
    }
}
