//! The side that has the records: what each replica is sent, and from where.
//!
//! What has become durable goes into the [backlog](crate::backlog), and from there to every replica that is
//! up to date, as soon as its window lets it. A replica that falls out of the backlog is sent what the log
//! has, read by the edge piece by piece; one that the log cannot help is sent a snapshot. None of this makes
//! the primary wait: the backlog drops its oldest frames whoever lacks them, only so many replicas are read
//! for at once, and one that falls too far behind, or is silent for too long, is closed.
//!
//! With datagrams a replica that has caught up is told so ([`Message::Live`]), gets its records from the
//! [fan-out](fanout), and over its connection only what it asks for.
//!
//! Whoever connects is a stranger until it has proved that it knows the secret. Strangers are bounded in number and
//! time, and nothing is kept for them: records need not be handed over ([`Primary::rest`]) before a replica has
//! proved itself and [`Action::Feed`] asks for them.
//!
//! `handle_*` says what has happened, [`Primary::poll_action`] and [`Primary::poll_datagrams`] what to do,
//! and [`Primary::poll_timeout`] when to look again though nothing happens. Only durable records may be
//! handed over.

mod fanout;
mod handshake;
mod link;
mod stream;
mod waits;

use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::vec::Vec;

use wal::checksum::Checksum;
use wal::lsn::Lsn;
use wal::record::Record;

use crate::backlog::{Backlog, SharedBytes, encode_chunks};
use crate::fault::{Fault, Reason};
use crate::identity::{Chain, NodeId, Now};
use crate::lineage::{Branch, Lineage};
use crate::message::{Ack, Heartbeat, Message, Repair, SnapshotName};
use crate::run::Position;
use crate::secret::{Nonce, Secret};
use crate::settings::PrimarySettings;
pub use fanout::{Burst, FanoutCounters};
use fanout::{Fanout, Source};
use link::{Link, Phase};
use waits::Waits;
pub use waits::{WaitId, WaitVerdict};

/// Names a replica's connection; the edge chooses it, and never the same one twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// What a primary is begun with.
#[derive(Clone, Debug)]
pub struct PrimaryStart {
    /// This node.
    pub node: NodeId,
    /// The secret that all nodes share.
    pub secret: Secret,
    /// Random, new for each start: names this run in datagrams.
    pub stream: u64,
    /// Random, new for each start: part of the keys of its datagrams.
    pub salt: Nonce,
    /// The history; a node that writes has [begun](Lineage::begin) its branch, durably. Before [`Lsn::FIRST`] there was
    /// nothing: data that is there without a record counts as one.
    pub lineage: Lineage,
    /// The last durable record; of a node that follows another, the last that it has applied.
    pub durable_lsn: Lsn,
    /// The first record that the log has; none if this node keeps no log.
    pub log_first_lsn: Option<Lsn>,
    /// False for a node that follows another and has nothing yet.
    pub is_serving: bool,
}

/// What the edge is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write to the replica's socket, behind what was written before, and say so with
    /// [`Primary::handle_written`].
    Send {
        /// Whose.
        link: LinkId,
        /// What; others may be sending it, too.
        bytes: SharedBytes,
    },
    /// Close the connection, once what was handed over is written, or cannot be. It is forgotten here.
    Close {
        /// Which.
        link: LinkId,
        /// Why; the replica was told if it could be.
        fault: Fault,
        /// It had not proved who it is: anybody may have been there.
        is_stranger: bool,
    },
    /// The first replica is there, and records are not handed over: do so from now on.
    /// [`Primary::handle_feed`] follows.
    Feed,
    /// Read the log; [`Primary::handle_log_records`], [`Primary::handle_log_gone`] or
    /// [`Primary::handle_log_damaged`] follows.
    ReadLog {
        /// For whom.
        link: LinkId,
        /// The first record.
        from: Lsn,
        /// Nothing behind this one.
        until: Lsn,
        /// About so many bytes, and at least one record.
        bytes_max: usize,
    },
    /// Find a snapshot that [`Primary::check_snapshot`] accepts, or take one;
    /// [`Primary::handle_snapshot_found`] or [`Primary::handle_no_snapshot`] follows.
    FindSnapshot {
        /// For whom.
        link: LinkId,
        /// It has the beginning of this one.
        partial: Option<SnapshotName>,
    },
    /// Read the snapshot's file; [`Primary::handle_snapshot_bytes`] or [`Primary::handle_no_snapshot`]
    /// follows.
    ReadSnapshot {
        /// For whom.
        link: LinkId,
        /// Which.
        name: SnapshotName,
        /// From here on.
        offset: u64,
        /// So many bytes, which the file has.
        length: usize,
    },
    /// The file has been read to its end for this replica.
    SnapshotSent {
        /// Who.
        link: LinkId,
    },
    /// A wait is over.
    WaitDone {
        /// Which.
        wait: WaitId,
        /// So many replicas have the record.
        replicas: usize,
    },
}

/// Where a replica stands, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaState {
    /// It has not proved who it is.
    Handshake,
    /// It waits for a snapshot, or is being sent one.
    FullSync,
    /// It is sent what it lacks.
    CatchingUp,
    /// It is up to date, over TCP.
    Streaming,
    /// It is up to date, by datagrams.
    Live,
}

/// One replica, for INFO and ROLE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaInfo {
    /// Its connection.
    pub link: LinkId,
    /// Who it is, once it has said so.
    pub node: Option<NodeId>,
    /// The port clients reach it at; 0 if it has not said.
    pub port: u32,
    /// Where it stands.
    pub state: ReplicaState,
    /// What it has acknowledged.
    pub applied_lsn: Lsn,
    /// What is in its own log.
    pub durable_lsn: Lsn,
    /// Records it lacks.
    pub lag_records: u64,
    /// Their bytes, as far as the backlog reaches.
    pub lag_bytes: u64,
    /// The oldest of them has been durable for so long; as far as the backlog reaches.
    pub lag_us: u64,
    /// Bytes on their way to it.
    pub in_flight_bytes: usize,
    /// How often it asked for records that no datagram brought.
    pub repairs: u64,
    /// How often the log was read for it.
    pub log_reads: u64,
}

/// How often things happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrimaryCounters {
    /// Connections taken.
    pub links: u64,
    /// Connections closed with a fault.
    pub faults: u64,
    /// Of these, for being too slow or silent.
    pub too_slow: u64,
    /// Of these, some that had not proved who they are.
    pub strangers: u64,
    /// Of those, some that made room for another.
    pub strangers_crowded_out: u64,
    /// Replicas that went on from where they were.
    pub partial_syncs: u64,
    /// Replicas that needed a snapshot.
    pub full_syncs: u64,
    /// Of these, some that had the first bytes already.
    pub resumed_syncs: u64,
    /// Reads of the log for replicas that had fallen behind.
    pub log_reads: u64,
    /// Requests for records that no datagram brought.
    pub repairs: u64,
    /// Waits that found no room.
    pub waits_refused: u64,
}

/// The side that has the records.
#[derive(Debug)]
pub struct Primary {
    settings: PrimarySettings,
    checksum: Checksum,
    node: NodeId,
    secret: Secret,
    stream: u64,
    salt: Nonce,
    lineage: Lineage,
    chain: Chain,
    durable_lsn: Lsn,
    log_first_lsn: Option<Lsn>,
    /// What is before this record in the log is not read any more: some of it is damaged.
    log_sound_from: Lsn,
    is_serving: bool,
    /// Records are handed over.
    is_fed: bool,
    /// Since when it has had all that its own primary had, by its clock; none for who follows nobody.
    fresh_as_of: Option<Option<u64>>,
    backlog: Backlog,
    links: BTreeMap<LinkId, Link>,
    fanout: Option<Fanout>,
    waits: Waits,
    actions: VecDeque<Action>,
    /// Who was served last: the next one is first.
    served: LinkId,
    log_reads: usize,
    counters: PrimaryCounters,
}

impl Primary {
    /// One without replicas. The settings must be [valid](PrimarySettings::validate).
    pub fn new(settings: PrimarySettings, start: PrimaryStart, checksum: Checksum, now: Now) -> Primary {
        settings.validate().unwrap_or_else(|wrong| panic!("{wrong}"));
        assert!(!start.is_serving || start.lineage.latest().is_some(), "records belong to a branch");
        let backlog = Backlog::new(start.durable_lsn.next(), settings.backlog_bytes_max);
        let fanout = settings.datagrams.map(|settings| Fanout::new(settings, backlog.end(), now.micros));
        let PrimaryStart { node, secret, stream, salt, lineage, durable_lsn, log_first_lsn, is_serving } =
            start;
        Primary {
            checksum,
            node,
            secret,
            stream,
            salt,
            lineage,
            chain: Chain::default(),
            durable_lsn,
            log_first_lsn,
            log_sound_from: Lsn::FIRST,
            is_serving,
            is_fed: true,
            fresh_as_of: None,
            backlog,
            links: BTreeMap::new(),
            fanout,
            waits: Waits::new(settings.waits_max),
            actions: VecDeque::new(),
            served: LinkId(0),
            log_reads: 0,
            counters: PrimaryCounters::default(),
            settings,
        }
    }

    /// Somebody has connected. `nonce` is random. If there are too many who have not proved who they are, the oldest
    /// of them makes room.
    pub fn handle_connected(&mut self, id: LinkId, nonce: Nonce, now: Now) {
        let link = Link::new(nonce, self.checksum, now.micros, self.settings.heartbeat_us);
        let replaced = self.links.insert(id, link);
        assert!(replaced.is_none(), "{id:?} is in use");
        self.counters.links += 1;
        let most = self.settings.strangers_max;
        let mut strangers = self.links.iter().filter(|(_, link)| !link.is_replica());
        // Ids need not go up with time.
        let oldest = strangers.clone().min_by_key(|&(&id, link)| (link.heard_at, id)).map(|(&id, _)| id);
        if let (Some(_), Some(oldest)) = (strangers.nth(most), oldest) {
            let text = format!("expected a proof before {most} others came, found none");
            self.counters.strangers_crowded_out += 1;
            self.refuse(oldest, Fault::new(Reason::Timeout, text));
        }
    }

    /// Whether anybody is there who has proved to be a replica.
    pub fn has_replicas(&self) -> bool {
        self.links.values().any(Link::is_replica)
    }

    /// Whether records are handed over.
    pub fn is_fed(&self) -> bool {
        self.is_fed
    }

    /// Records are not handed over any more, until [`Action::Feed`] asks for them; the backlog is let go. Nothing
    /// happens, and false is returned, while there are replicas.
    pub fn rest(&mut self) -> bool {
        if self.has_replicas() {
            return false;
        }
        self.is_fed = false;
        self.begin_backlog();
        true
    }

    /// Records behind this one will be handed over: what [`Action::Feed`] asked for, or since some were lost on their
    /// way here. In that case replicas begin anew.
    pub fn handle_feed(&mut self, durable_lsn: Lsn, now: Now) {
        let is_gap = durable_lsn != self.durable_lsn;
        (self.durable_lsn, self.is_fed) = (durable_lsn, true);
        if is_gap {
            self.begin_backlog();
            let text = "expected to hand on every record, found that some were lost on their way to this";
            let fault = Fault::new(Reason::HistoryChanged, text);
            self.refuse_where(|link| link.is_replica() && !matches!(link.phase, Phase::Waiting), &fault);
        }
        let waiting = self.links.iter().filter(|(_, link)| matches!(link.phase, Phase::Waiting));
        for id in waiting.map(|(&id, _)| id).collect::<Vec<_>>() {
            if let Err(fault) = self.take_in(id, now.micros) {
                self.refuse(id, fault);
            }
        }
    }

    /// It begins behind what is durable.
    fn begin_backlog(&mut self) {
        self.backlog = Backlog::new(self.durable_lsn.next(), self.settings.backlog_bytes_max);
        if let Some(fanout) = &mut self.fanout {
            fanout.idle(self.backlog.end(), 0);
        }
    }

    /// Bytes have arrived from a replica.
    pub fn handle_bytes(&mut self, id: LinkId, bytes: &[u8], now: Now) {
        let Some(link) = self.links.get_mut(&id) else { return };
        link.reader.push(bytes);
        loop {
            let Some(link) = self.links.get_mut(&id) else { return };
            let message = match link.reader.next_frame() {
                Ok(None) => return,
                Ok(Some(frame)) => {
                    let body = frame.body.clone();
                    Message::decode(frame.kind, frame.body).map(|message| (message, body))
                }
                Err(fault) => Err(fault),
            };
            if link.is_replica() {
                link.heard_at = now.micros;
            }
            if let Err(fault) =
                message.and_then(|(message, body)| self.handle_message(id, message, &body, now))
            {
                return self.refuse(id, fault);
            }
        }
    }

    fn handle_message(&mut self, id: LinkId, message: Message, body: &[u8], now: Now) -> Result<(), Fault> {
        let Some(link) = self.links.get_mut(&id) else { return Ok(()) };
        match (&mut link.phase, message) {
            (_, Message::Refused(fault)) => Err(fault),
            (Phase::Greeting, Message::Hello(hello)) => self.handle_hello(id, hello, body),
            (Phase::Proving, Message::Proof(proof)) => self.handle_proof(id, &proof, now.micros),
            (phase, Message::Ack(ack)) if !matches!(phase, Phase::Greeting | Phase::Proving) => {
                self.handle_ack(id, ack)
            }
            (Phase::Streaming(stream), Message::Repair(Repair { from_lsn, to_lsn })) => {
                // Who is not live is being sent everything anyway.
                if stream.is_live && from_lsn <= self.durable_lsn {
                    stream.repair(from_lsn, to_lsn.min(self.durable_lsn));
                    link.repairs += 1;
                    self.counters.repairs += 1;
                }
                Ok(())
            }
            (_, message) => {
                let kind = message.kind();
                Err(Fault::new(
                    Reason::Protocol,
                    format!("expected what a replica says next, found kind {kind}"),
                ))
            }
        }
    }

    fn handle_ack(&mut self, id: LinkId, ack: Ack) -> Result<(), Fault> {
        let (durable, lineage) = (self.durable_lsn, &self.lineage);
        let Some(link) = self.links.get_mut(&id) else { return Ok(()) };
        link.echo = ack.stamp;
        // Until records are streaming its state is the one before, perhaps of another history.
        if !matches!(link.phase, Phase::Streaming(_)) {
            return Ok(());
        }
        if ack.applied_lsn > durable || lineage.latest().is_none() {
            let found = ack.applied_lsn;
            return Err(Fault::new(
                Reason::Protocol,
                format!("expected an ack of LSN {durable} at most, found one of LSN {found}"),
            ));
        }
        link.durable_lsn = link.durable_lsn.max(ack.durable_lsn);
        if ack.applied_lsn > link.applied_lsn {
            link.applied_lsn = ack.applied_lsn;
            let links = &self.links;
            self.waits.acknowledged(ack.applied_lsn, |lsn| replicas_with(links, lsn));
        }
        Ok(())
    }

    /// So many bytes of what was to be sent have been written.
    pub fn handle_written(&mut self, id: LinkId, bytes: usize) {
        if let Some(link) = self.links.get_mut(&id) {
            link.in_flight_bytes = link.in_flight_bytes.saturating_sub(bytes);
        }
    }

    /// The connection is gone.
    pub fn handle_closed(&mut self, id: LinkId) {
        self.forget(id);
    }

    /// Records have become durable: those after the last ones, in order, all of them up to `durable_lsn`.
    pub fn handle_durable<'a>(
        &mut self,
        records: impl Iterator<Item = Record<'a>>,
        durable_lsn: Lsn,
        now: Now,
    ) {
        self.durable_lsn = durable_lsn;
        debug_assert!(self.is_fed, "nobody asked for them");
        let Primary { backlog, lineage, checksum, settings, .. } = self;
        encode_chunks(records, lineage, durable_lsn, settings.frame_bytes_max, *checksum, |chunk| {
            backlog.push(chunk, now.micros);
        });
        assert!(backlog.end() == Position::start_of(durable_lsn.next()), "records up to {durable_lsn}");
        if self.waits.len() > 0 {
            self.ask_for_acks(now);
        }
    }

    /// The log begins with this record now. `None`: there is none.
    pub fn handle_log_begins(&mut self, first: Option<Lsn>) {
        self.log_first_lsn = first;
    }

    /// The history of a node that follows another has grown: what its [`crate::replica::Replica`] says in
    /// [`Follow`](crate::replica::Action::Follow).
    pub fn handle_follow(&mut self, lineage: &Lineage) {
        let known = |branch: &Branch| self.lineage.branches().iter().any(|known| known.id == branch.id);
        let grown = lineage.branches().iter().filter(|branch| branch.first_lsn > self.durable_lsn);
        let begun: Vec<Branch> = grown.filter(|branch| !known(branch)).copied().collect();
        let checksum = self.checksum;
        for link in self.links.values_mut().filter(|link| link.is_welcome()) {
            begun.iter().for_each(|branch| link.say(&Message::Branch(*branch), checksum));
        }
        self.lineage.clone_from(lineage);
    }

    /// This node writes from now on: it has [begun](Lineage::begin) a branch behind all it has applied,
    /// durably, and follows nobody. Replicas go on without a new handshake.
    pub fn handle_promoted(&mut self, lineage: &Lineage) {
        self.handle_follow(lineage);
        self.handle_chain(Chain::default());
        self.fresh_as_of = None;
    }

    /// The node that this one follows gets its own records from these.
    pub fn handle_chain(&mut self, chain: Chain) {
        if chain == self.chain {
            return;
        }
        self.chain = chain;
        let (checksum, behind) = (self.checksum, self.chain.behind(self.node));
        let ids: Vec<LinkId> = self.links.keys().copied().collect();
        for id in ids {
            let Some(link) = self.links.get_mut(&id) else { continue };
            let Some(node) = link.hello.as_ref().map(|hello| hello.node) else { continue };
            match &behind {
                _ if self.chain.contains(node) => {
                    let text = format!("expected a node that this one does not follow, found {node}");
                    self.refuse(id, Fault::new(Reason::Cycle, text));
                }
                Some(chain) if link.is_welcome() => link.say(&Message::Chain(chain.clone()), checksum),
                Some(_) => (),
                None => {
                    let text = "expected a short chain of nodes, found one that grew";
                    self.refuse(id, Fault::new(Reason::ChainTooLong, text));
                }
            }
        }
    }

    /// For a node that follows another: when, by its own clock, it last had all there was; none if it never
    /// did.
    pub fn handle_freshness(&mut self, fresh_as_of: Option<u64>) {
        self.fresh_as_of = Some(fresh_as_of);
    }

    /// This node's data is of another history now, or of none yet: all replicas begin anew.
    pub fn handle_history(&mut self, lineage: Lineage, durable_lsn: Lsn, is_serving: bool) {
        let text = "expected to go on with one history, found that this node was given another";
        self.refuse_all(Fault::new(Reason::HistoryChanged, text));
        assert!(!is_serving || lineage.latest().is_some(), "records belong to a branch");
        (self.lineage, self.durable_lsn, self.is_serving) = (lineage, durable_lsn, is_serving);
        (self.log_sound_from, self.is_fed) = (Lsn::FIRST, true);
        self.begin_backlog();
    }

    /// Ends all connections: the node stops, or changes its role.
    pub fn stop(&mut self) {
        self.refuse_all(Fault::new(
            Reason::Stopped,
            "expected to go on, found that the node is told to stop",
        ));
    }

    fn refuse_all(&mut self, fault: Fault) {
        self.refuse_where(|_| true, &fault);
    }

    fn refuse_where(&mut self, concerns: impl Fn(&Link) -> bool, fault: &Fault) {
        let ids = self.links.iter().filter(|(_, link)| concerns(link)).map(|(&id, _)| id);
        ids.collect::<Vec<_>>().into_iter().for_each(|id| self.refuse(id, fault.clone()));
    }

    /// The replica is told why, and the connection ends.
    pub(crate) fn refuse(&mut self, id: LinkId, fault: Fault) {
        let checksum = self.checksum;
        let Some(link) = self.links.get_mut(&id) else { return };
        self.counters.faults += 1;
        self.counters.too_slow += u64::from(matches!(fault.reason, Reason::TooSlow | Reason::Timeout));
        let is_stranger = !link.is_replica();
        self.counters.strangers += u64::from(is_stranger);
        let said = Fault { is_peers: false, ..fault.clone() };
        if !fault.is_peers {
            link.say(&Message::Refused(said), checksum);
        }
        let bytes = core::mem::take(&mut link.out);
        self.forget(id);
        if !bytes.is_empty() {
            self.actions.push_back(Action::Send { link: id, bytes: SharedBytes::new(bytes) });
        }
        self.actions.push_back(Action::Close { link: id, fault, is_stranger });
    }

    fn forget(&mut self, id: LinkId) {
        let Some(link) = self.links.remove(&id) else { return };
        if matches!(&link.phase, Phase::Streaming(stream) if stream.is_reading) {
            self.log_reads -= 1;
        }
    }

    /// Somebody wants to know when so many replicas have applied a record; by `deadline` at the latest, if
    /// there is one.
    pub fn wait(&mut self, lsn: Lsn, replicas: usize, deadline: Option<u64>, now: Now) -> WaitVerdict {
        let count = replicas_with(&self.links, lsn);
        if count >= replicas || deadline.is_some_and(|deadline| deadline <= now.micros) {
            return WaitVerdict::Done(count);
        }
        let Some(id) = self.waits.begin(lsn, replicas, deadline) else {
            self.counters.waits_refused += 1;
            return WaitVerdict::Done(count);
        };
        self.ask_for_acks(now);
        WaitVerdict::Waiting(id)
    }

    /// Somebody waits for replicas to have what is durable: they ack that as soon as they have it, instead of in their own
    /// time.
    pub fn ask_for_acks(&mut self, now: Now) {
        let (beat, durable) = (self.heartbeat(now), self.durable_lsn);
        let lacks = |link: &&mut Link| link.is_welcome() && link.applied_lsn.max(link.asked_lsn) < durable;
        for link in self.links.values_mut().filter(lacks) {
            link.asked_lsn = durable;
            let beat = Heartbeat { echo: link.echo, wants_ack: true, ..beat };
            link.say(&Message::Heartbeat(beat), self.checksum);
        }
    }

    /// Nobody waits any more.
    pub fn cancel_wait(&mut self, wait: WaitId) {
        self.waits.cancel(wait);
    }

    /// How many replicas have applied this record.
    pub fn replicas_with(&self, lsn: Lsn) -> usize {
        replicas_with(&self.links, lsn)
    }

    /// Where records may be had from: the backlog, and the log if it goes on to the backlog; and no further
    /// back than it is remembered of which branch they are.
    fn available_from(&self) -> Lsn {
        let backlog = self.backlog.first_lsn();
        let first = self.log_first_lsn.map_or(backlog, |log| log.max(self.log_sound_from).min(backlog));
        let oldest = self.lineage.branches().first().map_or(Lsn::MAX, |branch| branch.first_lsn);
        first.max(oldest)
    }

    /// The first record of the log that a replica still needs: a hint to those who let the log go. None if
    /// nobody needs any.
    pub fn needs_log_from(&self) -> Option<Lsn> {
        let needed = self.links.values().filter_map(Link::needs_from).min()?;
        (needed < self.backlog.first_lsn()).then_some(needed)
    }

    /// The history.
    pub fn lineage(&self) -> &Lineage {
        &self.lineage
    }

    /// The last durable record.
    pub fn durable_lsn(&self) -> Lsn {
        self.durable_lsn
    }

    /// How often things happened.
    pub fn counters(&self) -> PrimaryCounters {
        self.counters
    }

    /// How often things happened to the datagrams.
    pub fn fanout_counters(&self) -> FanoutCounters {
        self.fanout.as_ref().map(|fanout| fanout.counters).unwrap_or_default()
    }

    /// Bytes of the backlog, and frames it dropped.
    pub fn backlog(&self) -> (usize, u64) {
        (self.backlog.bytes(), self.backlog.dropped_chunks())
    }

    /// Waits that are not over.
    pub fn waiting(&self) -> usize {
        self.waits.len()
    }

    /// All replicas.
    pub fn replicas(&self, now: Now) -> impl Iterator<Item = ReplicaInfo> {
        self.links.iter().map(move |(&id, link)| {
            let distance = self.backlog.distance(link.applied_lsn.next());
            let (lag_bytes, since) = distance.unwrap_or((0, now.micros));
            let end = self.backlog.end();
            ReplicaInfo {
                link: id,
                node: link.hello.as_ref().map(|hello| hello.node),
                port: link.hello.as_ref().map_or(0, |hello| hello.port),
                state: match &link.phase {
                    Phase::Greeting | Phase::Proving => ReplicaState::Handshake,
                    // What it needs is not known yet, but that it waits is.
                    Phase::Waiting => ReplicaState::CatchingUp,
                    Phase::Choosing { .. } | Phase::Snapshot { .. } => ReplicaState::FullSync,
                    Phase::Streaming(stream) if stream.is_live => ReplicaState::Live,
                    Phase::Streaming(stream) if stream.cursor >= end => ReplicaState::Streaming,
                    Phase::Streaming(_) => ReplicaState::CatchingUp,
                },
                applied_lsn: link.applied_lsn,
                durable_lsn: link.durable_lsn,
                lag_records: self.durable_lsn.0.saturating_sub(link.applied_lsn.0),
                lag_bytes,
                lag_us: now.micros.saturating_sub(since),
                in_flight_bytes: link.in_flight_bytes,
                repairs: link.repairs,
                log_reads: link.log_reads,
            }
        })
    }
}

fn replicas_with(links: &BTreeMap<LinkId, Link>, lsn: Lsn) -> usize {
    let streaming = links.values().filter(|link| matches!(link.phase, Phase::Streaming(_)));
    streaming.filter(|link| link.applied_lsn >= lsn).count()
}
