//! What the log is to a shard: records on their way to it, and replies that wait for it.
//!
//! A command is executed at once and revealed late. What it changed becomes one record, numbered when the command is done;
//! what it looked at says which record its reply depends on ([`Keyspace`](crate::keyspace::Keyspace) knows the last write
//! of every key that is not durable yet). The reply leaves when that record is durable: a write's with its own, a
//! read's of a pending key with the write it saw, any other at once.
//!
//! LSNs come from one counter that all shards of a server draw from. A command over several shards is executed with all
//! of them in hand and draws one number, so a record is always whole, and the order of LSNs is one in which everything could
//! have happened one after the other.

use crate::engine::{Action, Shared};
use crate::protocol::reply::Reply;
use crate::session::{ConnectionId, Durability, ReplyMode, Session};
use crate::shards::{Hop, Message};
use crate::time::{Nanos, Now};
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

/// Why a client is not promised that writes are kept.
pub(crate) const NO_LOG: &str =
    "the server runs with durability off. Start it with --durability everysec or always";

/// Records for the log, one after the other in one buffer: a turn may write thousands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records {
    /// The effects of all of them; see [`crate::mutation`].
    pub bytes: Vec<u8>,
    /// Where each ends, LSNs ascending.
    pub ends: Vec<RecordEnd>,
}

/// One record among [`Records`]: what one command changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordEnd {
    /// Its place in the one order of all records.
    pub lsn: u64,
    /// Where its effects end.
    pub end: usize,
}

impl Records {
    /// Each with its LSN.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let mut begin = 0;
        self.ends.iter().map(move |record| {
            let effects = &self.bytes[begin..record.end];
            begin = record.end;
            (record.lsn, effects)
        })
    }

    /// True if there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }
}

/// See the module.
#[derive(Debug)]
pub struct Journal {
    /// The next LSN, for whoever writes next.
    lsns: Arc<AtomicU64>,
    /// What the client gets who asked for nothing else.
    class: Durability,
    /// Everything up to here is durable.
    durable: u64,
    /// Records nobody has taken yet.
    records: Records,
    /// Somebody waits for what the log would not flush yet (`everysec`).
    wants_flush: bool,
    /// Why writes are refused.
    refusal: Option<String>,
    /// What is pending will never be durable.
    failed: bool,
    /// Connections with replies that wait, by LSN.
    waiting: BTreeMap<u64, Vec<ConnectionId>>,
    /// Answers to other shards that wait, by LSN.
    answers: BTreeMap<u64, Vec<(usize, Box<Hop>)>>,
    /// Connections that wait in WAITAOF, by LSN: until when, and whether nobody wants the reply (CLIENT REPLY).
    waits: BTreeMap<(u64, ConnectionId), (Nanos, bool)>,
    /// Those of them that wait no longer than this.
    deadlines: BTreeSet<(Nanos, u64, ConnectionId)>,
    /// Connections a message was delivered to while the present command was executed.
    delivered: Vec<ConnectionId>,
}

impl Journal {
    /// A journal whose log goes on with the number in `lsns`; `class` is what `durability` says.
    pub fn new(lsns: Arc<AtomicU64>, class: Durability) -> Journal {
        let durable = lsns.load(Ordering::Relaxed) - 1;
        Journal {
            lsns,
            class,
            durable,
            records: Records::default(),
            wants_flush: false,
            refusal: None,
            failed: false,
            waiting: BTreeMap::new(),
            answers: BTreeMap::new(),
            waits: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            delivered: Vec::new(),
        }
    }

    /// What the client gets who asked for nothing else.
    pub fn class(&self) -> Durability {
        self.class
    }

    /// Connections that wait in WAITAOF.
    pub fn waits(&self) -> usize {
        self.waits.len()
    }

    /// When the first of them has waited enough.
    pub(crate) fn next_deadline(&self) -> Option<Nanos> {
        self.deadlines.first().map(|entry| entry.0)
    }

    /// What is pending will never be durable.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed
    }

    /// Everything up to this LSN is durable, as far as this shard was told.
    pub fn durable_lsn(&self) -> u64 {
        self.durable
    }

    pub(crate) fn set_durable_lsn(&mut self, lsn: u64) {
        self.durable = lsn;
    }

    /// The last LSN anybody drew.
    pub fn latest_lsn(&self) -> u64 {
        self.lsns.load(Ordering::Relaxed) - 1
    }

    /// Why writes are refused now.
    pub fn refusal(&self) -> Option<&str> {
        self.refusal.as_deref()
    }

    /// Bytes of records nobody has taken.
    pub fn record_bytes(&self) -> usize {
        self.records.bytes.len()
    }

    /// Records nobody has taken.
    pub fn records(&self) -> &Records {
        &self.records
    }

    /// Connections and other shards wait for the log.
    pub fn is_waited_for(&self) -> bool {
        !self.waiting.is_empty() || !self.answers.is_empty() || !self.waits.is_empty()
    }

    /// The first record that anybody waits for.
    pub fn first_awaited(&self) -> Option<u64> {
        let first = |waiting: Option<&u64>| waiting.copied().unwrap_or(u64::MAX);
        let lsn = first(self.waiting.keys().next()).min(first(self.answers.keys().next()));
        let lsn = lsn.min(first(self.waits.keys().next().map(|(lsn, _)| lsn)));
        (lsn != u64::MAX).then_some(lsn)
    }
}

/// Where a session's output may not be seen yet: each stretch, up to its end, needs its LSN durable.
#[derive(Debug, Default)]
pub struct Gates {
    stretches: VecDeque<(usize, u64)>,
    /// Output before it needs nothing.
    open: usize,
}

impl Gates {
    /// How much of the output may leave.
    pub(crate) fn open(&self) -> usize {
        self.open
    }

    /// The last record that anything in the output waits for.
    pub(crate) fn latest(&self) -> u64 {
        self.stretches.iter().map(|stretch| stretch.1).max().unwrap_or(0)
    }

    /// Output up to `end` needs `lsn`.
    pub(crate) fn close(&mut self, end: usize, lsn: u64) {
        match self.stretches.back_mut() {
            Some(last) if last.0 == end => last.1 = last.1.max(lsn),
            _ => self.stretches.push_back((end, lsn)),
        }
    }

    /// The first `bytes` have left.
    pub(crate) fn shift(&mut self, bytes: usize) {
        self.open = self.open.saturating_sub(bytes);
        self.stretches.iter_mut().for_each(|stretch| stretch.0 = stretch.0.saturating_sub(bytes));
    }

    /// A reply of `length` bytes found its place at `at`.
    pub(crate) fn insert(&mut self, at: usize, length: usize) {
        if self.open > at {
            self.open += length;
        }
        self.stretches.iter_mut().filter(|stretch| stretch.0 > at).for_each(|stretch| stretch.0 += length);
    }

    /// Opens what is durable; false: nothing is closed any more.
    fn settle(&mut self, durable: u64) -> bool {
        while let Some(&(end, _)) = self.stretches.front().filter(|stretch| stretch.1 <= durable) {
            self.open = end;
            self.stretches.pop_front();
        }
        !self.stretches.is_empty()
    }
}

impl Shared {
    /// What a reply to this session promises.
    pub(crate) fn durability_of(&self, session: &Session) -> Durability {
        let class = self.journal.as_ref().map_or(Durability::Off, |journal| journal.class);
        session.durability.unwrap_or(class)
    }

    /// Whether a client may ask for this: less than the server gives always, more where there is a log to wait for.
    pub(crate) fn can_promise(&self, class: Durability) -> bool {
        class == Durability::Off || self.journal.is_some()
    }

    /// A command is done: what it changed becomes a record, and its reply waits for what it depends on. Cheap where there
    /// was neither.
    #[inline]
    pub(crate) fn conclude(&mut self, session: &mut Session) {
        let record = if self.journal.is_some() { self.conclude_with_log(session) } else { None };
        if self.has_news() {
            self.conclude_tracking(record, Some(session));
        }
    }

    /// Returns the LSN of the record, if there is one.
    fn conclude_with_log(&mut self, session: &mut Session) -> Option<u64> {
        self.deselect();
        let mut bytes = self.take_record_bytes();
        let begin = bytes.len();
        let mut observed = 0;
        self.for_all(|shard| {
            shard.keyspace.take_effects(&mut bytes);
            observed = observed.max(shard.keyspace.take_observed());
        });
        let record = self.record(bytes, begin);
        if let Some(lsn) = record {
            observed = lsn;
            session.last_write = self.written(lsn);
        }
        let journal = self.journal.as_mut()?;
        let class = session.durability.unwrap_or(journal.class);
        if observed > journal.durable && class == Durability::Always {
            session.gate = session.gate.max(observed);
            journal.wants_flush |= journal.class != Durability::Always;
        }
        if !journal.delivered.is_empty() {
            self.gate_delivered(observed);
        }
        record
    }

    /// Work that no command asked for (eviction) is a record of its own.
    pub(crate) fn conclude_background(&mut self) {
        let mut record = None;
        if self.journal.is_some() {
            let mut bytes = self.take_record_bytes();
            let begin = bytes.len();
            self.keyspace.take_effects(&mut bytes);
            record = self.record(bytes, begin);
            self.keyspace.take_observed();
        }
        if self.has_news() {
            self.conclude_tracking(record, None);
        }
    }

    /// Lends the buffer of records, for effects to be added to.
    fn take_record_bytes(&mut self) -> Vec<u8> {
        self.journal.as_mut().map_or_else(Vec::new, |journal| core::mem::take(&mut journal.records.bytes))
    }

    /// Takes the buffer of records back; effects that were added behind `begin` become one.
    fn record(&mut self, bytes: Vec<u8>, begin: usize) -> Option<u64> {
        let journal = self.journal.as_mut()?;
        let end = bytes.len();
        journal.records.bytes = bytes;
        if end == begin {
            return None;
        }
        let lsn = journal.lsns.fetch_add(1, Ordering::Relaxed);
        journal.records.ends.push(RecordEnd { lsn, end });
        self.for_all(|shard| shard.keyspace.number_effects(lsn));
        Some(lsn)
    }

    /// A message went to these while a command was executed whose effects are not durable: it must not tell of them.
    fn gate_delivered(&mut self, lsn: u64) {
        self.for_all(|shard| {
            let Some(journal) = &mut shard.journal else { return };
            let durable = journal.durable;
            for connection in core::mem::take(&mut journal.delivered) {
                if lsn > durable
                    && let Some(mut session) = shard.sessions.take(connection)
                {
                    session.gate = session.gate.max(lsn);
                    shard.close_gate(&mut session);
                    shard.sessions.insert(session);
                }
            }
        });
    }

    /// A message was delivered to a connection.
    pub(crate) fn note_delivery(&mut self, connection: ConnectionId) {
        if let Some(journal) = &mut self.journal {
            journal.delivered.push(connection);
        }
    }

    /// What stands in the output of a session waits for the record it depends on.
    pub(crate) fn close_gate(&mut self, session: &mut Session) {
        let lsn = core::mem::take(&mut session.gate);
        let Some(journal) = &mut self.journal else { return };
        let end = session.output.len();
        if lsn <= journal.durable {
            // Behind a closed gate it waits all the same.
            if let Some(gates) = session.gates.as_mut().filter(|_| session.is_gated && end > 0) {
                gates.close(end, 0);
            }
            return;
        }
        if journal.failed {
            // It depends on what is lost: no answer is better than a wrong one.
            return self.abort(session);
        }
        let gates = session.gates.get_or_insert_default();
        if !session.is_gated {
            gates.open = 0;
            gates.stretches.clear();
        }
        gates.close(end, lsn);
        session.is_gated = true;
        let waiting = journal.waiting.entry(lsn).or_default();
        if waiting.last() != Some(&session.connection) {
            waiting.push(session.connection);
        }
    }

    /// An answer to another shard waits for the record it depends on, or leaves now.
    pub(crate) fn answer_when_durable(&mut self, to: usize, hop: Box<Hop>, lsn: u64) {
        match &mut self.journal {
            Some(journal) if lsn > journal.durable && !journal.failed => {
                journal.answers.entry(lsn).or_default().push((to, hop));
            }
            Some(journal) if lsn > journal.durable => {
                self.fleet.outbox.push_back((to, Message::Answer(hop.without_answer())));
            }
            _ => self.fleet.outbox.push_back((to, Message::Answer(hop))),
        }
    }

    /// WAITAOF: the session's input and the reply wait for the record, until then at most (`None`: for ever).
    pub(crate) fn wait_for_log(&mut self, session: &mut Session, lsn: u64, until: Option<Nanos>) {
        let Some(journal) = &mut self.journal else { return };
        let silent = matches!(session.reply_mode, ReplyMode::Off | ReplyMode::Skip);
        journal.waits.insert((lsn, session.connection), (until.unwrap_or(Nanos(u64::MAX)), silent));
        journal.deadlines.extend(until.map(|until| (until, lsn, session.connection)));
        journal.wants_flush |= journal.class != Durability::Always;
        session.paused_hops = true;
        session.gathers = true;
    }

    /// The next session whose WAITAOF is at its end. It has its reply and may go on.
    pub(crate) fn end_wait(&mut self, now: Now) -> Option<ConnectionId> {
        let journal = self.journal.as_mut()?;
        let first = journal.waits.keys().next().copied();
        let first = first.filter(|&(lsn, _)| lsn <= journal.durable || journal.failed);
        let late = journal.deadlines.first().filter(|entry| entry.0 <= now.monotonic);
        let (lsn, connection) = first.or(late.map(|&(_, lsn, connection)| (lsn, connection)))?;
        let (until, silent) = journal.waits.remove(&(lsn, connection))?;
        journal.deadlines.remove(&(until, lsn, connection));
        let Some(mut session) = self.sessions.take(connection) else { return Some(connection) };
        session.gathers = false;
        if !session.aborted && !silent {
            self.reply_to_wait(&mut session, lsn);
        }
        self.sessions.insert(session);
        Some(connection)
    }

    /// What WAITAOF answers now: whether the record is durable, and how many replicas have it.
    pub(crate) fn reply_to_wait(&mut self, session: &mut Session, lsn: u64) {
        let start = session.output.len();
        let mut reply = Reply::new(&mut session.output, session.resp3);
        match &self.journal {
            Some(journal) if lsn > journal.durable && journal.failed => {
                let why = journal.refusal.as_deref().unwrap_or("the log has failed");
                reply.error(&format!("MISCONF the last write will not be durable: {why}"));
                self.metrics.note_error(&session.output[start..]);
            }
            journal => {
                let is_durable = journal.as_ref().is_some_and(|journal| lsn <= journal.durable);
                reply.array(2);
                reply.integer(i64::from(is_durable));
                reply.integer(0);
            }
        }
    }

    /// Everything up to `durable` is on stable storage: what waited for it leaves.
    pub fn set_durable(&mut self, durable: u64) {
        let Some(journal) = self.journal.as_mut().filter(|journal| journal.durable < durable) else { return };
        journal.durable = durable;
        self.keyspace.settle_effects(durable);
        // Before the replies to those who changed it: whoever has one of them can rely on others having been told.
        self.release_held(None);
        let Some(journal) = &mut self.journal else { return };
        let later = journal.waiting.split_off(&(durable + 1));
        let released = core::mem::replace(&mut journal.waiting, later);
        let later = journal.answers.split_off(&(durable + 1));
        let answers = core::mem::replace(&mut journal.answers, later);
        for (to, hop) in answers.into_values().flatten() {
            self.fleet.outbox.push_back((to, Message::Answer(hop)));
        }
        for connection in released.into_values().flatten() {
            let Some(session) = self.sessions.get_mut(connection) else { continue };
            let Some(gates) = &mut session.gates else { continue };
            session.is_gated = gates.settle(durable);
            let sendable = session.sendable();
            if sendable > 0 && !session.flush_queued && !session.aborted {
                session.flush_queued = true;
                self.actions.push_back(Action::Flush(connection));
            }
            if session.closing && !session.is_gated {
                self.ending.push(connection);
            }
        }
    }

    /// The log has failed: what is pending will never be durable. Whoever waits for it, or comes to look at it, is cut off
    /// without an answer; everything else goes on.
    pub fn fail_pending(&mut self) {
        let Some(journal) = &mut self.journal else { return };
        journal.failed = true;
        for (to, hop) in core::mem::take(&mut journal.answers).into_values().flatten() {
            self.fleet.outbox.push_back((to, Message::Answer(hop.without_answer())));
        }
        for connection in core::mem::take(&mut journal.waiting).into_values().flatten() {
            if let Some(mut session) = self.sessions.take(connection) {
                self.abort(&mut session);
                self.settle(&mut session);
                self.sessions.insert(session);
            }
        }
        self.release_held(None);
    }

    /// Writes are refused from now on, with this text, or are welcome again.
    pub fn refuse_writes(&mut self, why: Option<String>) {
        if let Some(journal) = &mut self.journal {
            journal.refusal = why;
            self.restrict();
        }
    }

    /// There are records that nobody has taken.
    #[inline]
    pub fn has_records(&self) -> bool {
        self.journal.as_ref().is_some_and(|journal| !journal.records.is_empty())
    }

    /// Exchanges `empty` for the records since the last call.
    pub fn take_records(&mut self, empty: &mut Records) {
        debug_assert!(empty.is_empty() && empty.bytes.is_empty());
        if let Some(journal) = &mut self.journal {
            core::mem::swap(&mut journal.records, empty);
        }
    }

    /// Somebody waits for records although the log would wait with its flush. Told once.
    #[inline]
    pub fn take_flush_wish(&mut self) -> bool {
        self.journal.as_mut().is_some_and(|journal| core::mem::take(&mut journal.wants_flush))
    }
}
