//! Client tracking: caches on the client's side are told what is no longer true.
//!
//! **Where things are.** Interest in a key is registered on the shard that has the key, in the step that reads the value
//! ([`Table`]); what a client asked for is in its session, on the shard of its connection ([`Tracking`]), and so are the
//! prefixes of clients that want to hear of every key ([`Trackers`]). A change fires on the shard of the key; what fired
//! goes to the shards of those it concerns as a [`Message`], and is written there, at the end of what the connection
//! has been answered so far.
//!
//! **Order.** A reply with a value that was read before the change has its place in the connection's output, be it still
//! a hole to be filled by another shard, before the invalidation is put behind it. So a client that drops what it is
//! told to drop, in the order in which it hears, never keeps an old value. For the same reason a writer hears of its own
//! change behind its reply, and behind all of EXEC.
//!
//! **No acknowledgement overtakes.** Whatever a client sends after anybody was answered for a write, or shown it, is
//! answered behind the invalidation: on every shard, whichever executed the write. What fired leaves for the shards of
//! those it concerns at once and before anything else does (a *tell*: [`Message::is_tell`]), and a shard takes what
//! the others have told it before it takes what its clients have sent. The driver's part of this is in
//! `reactor/src/server/shard.rs`; why it is so in `docs/adr/0011-invalidations-wait-where-they-are-told.md`.
//!
//! **Nothing early.** With `durability always` a change is told when it is durable: until then what fired is held, by LSN,
//! on the shard of who is to be told, which asks what is durable before it looks at what clients want. No reply that does
//! not depend on the change waits for it.
//!
//! **A failed log** makes nothing durable any more: what is held then, and what would be held later, is told as a flush to
//! those it concerns. They must not hear of the change, which nobody may see; but they must not go on in the belief that
//! they will be told of what comes.
//!
//! Over HTTP the same is a stream of events: [`stream`].
//!
//! **Bounds.** The table has one (`tracking-table-max-pairs`), and prefixes have the same; what is held is as much as there are writes on their way to
//! the log; a client that does not read is closed at `output-buffer-max` like any other.

mod crowd;
pub mod push;
pub mod stream;
pub mod table;

pub use push::{Invalidation, Redirected};
pub use table::{Cause, Fired, Table};

use crate::command::{Call, Command};
use crate::engine::Shared;
use crate::session::{ConnectionId, Durability, Session};
use crate::shards::{Message, ShardSet};
use crate::time::Now;
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use stream::TOKEN;

/// Pairs forgotten, or keys left out over the bound, in one turn.
const TIDY_BUDGET: usize = 1024;

/// A client as other shards know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// CLIENT ID.
    pub id: u64,
    /// The shard of its connection.
    pub shard: u32,
    /// Its connection there.
    pub connection: ConnectionId,
}

/// Which keys a client wants to hear of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Those it reads.
    #[default]
    Reads,
    /// Those it reads behind CLIENT CACHING YES.
    OptIn,
    /// Those it reads, but not behind CLIENT CACHING NO.
    OptOut,
    /// All that begin with one of its prefixes.
    Broadcast,
}

/// What a client asked for with CLIENT TRACKING.
#[derive(Debug, Default)]
pub struct Tracking {
    /// It is on. What follows is kept when it is turned off, but means nothing then.
    pub is_on: bool,
    /// Which keys.
    pub mode: Mode,
    /// Not those it changed itself.
    pub no_loop: bool,
    /// CLIENT CACHING was given for what comes next.
    pub caching: bool,
    /// Who is told in its place.
    pub redirect: Option<Target>,
    /// That one was gone when there was something to tell.
    pub is_broken: bool,
    /// What keys of interest begin with.
    pub prefixes: BTreeSet<Box<[u8]>>,
    /// The shards that may know it as a reader.
    asked: ShardSet,
}

impl Tracking {
    /// Whether what the client reads next is of interest.
    pub fn is_reading(&self) -> bool {
        self.is_on
            && match self.mode {
                Mode::Reads => true,
                Mode::OptIn => self.caching,
                Mode::OptOut => !self.caching,
                Mode::Broadcast => false,
            }
    }
}

/// What is to be told on this shard, until it may be.
#[derive(Debug)]
struct Held {
    /// The record that must be durable first; 0: none.
    lsn: u64,
    news: News,
}

#[derive(Debug)]
enum News {
    /// To clients: a key is not what it was.
    Key(Invalidation),
    /// To all clients that track: every key is gone.
    Flush,
    /// To streams, on all shards: a key of this shard, or every key.
    Event(Option<Box<[u8]>>, Vec<Target>),
}

/// A mistake that is made on purpose: the simulator in `tests/` must find each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// Interest is registered at the end of the turn, and not in the step that reads the value.
    RegistersLate,
    /// Who is to be told in place of a client is not, if it is on another shard.
    ForgetsRedirection,
    /// An invalidation leaves before the replies that have not left yet.
    PushesFirst,
    /// A change is told before it is durable.
    TellsEarly,
    /// What a command over several shards changed is told by the shard that had it, when that has it back.
    TellsLate,
    /// Who has read a key that is evicted is not told.
    ForgetsEvictions,
}

/// What a shard keeps for tracking beside its table.
#[derive(Debug, Default)]
pub struct Trackers {
    /// A server makes none.
    pub mistake: Option<Mistake>,
    /// See [`Mistake::RegistersLate`].
    late: Vec<(Box<[u8]>, u64, Target)>,
    /// Clients of this shard that track, by their id.
    clients: BTreeMap<u64, ConnectionId>,
    /// Those of them that want to hear of every key, by prefix.
    prefixes: BTreeMap<Box<[u8]>, Vec<ConnectionId>>,
    /// How many prefixes there are of each length: a key is looked up by these.
    prefix_lengths: BTreeMap<usize, usize>,
    /// Shards with such clients, this one included.
    listening: ShardSet,
    /// What waits for the log, by LSN.
    held: VecDeque<Held>,
    /// What the prefixes weigh; see [`weight`].
    prefix_weight: usize,
    /// Invalidations written to clients.
    pub pushes: u64,
    /// Evictions of tables that are no more.
    evictions: u64,
    /// CLIENT TRACKING that was refused for too many prefixes.
    pub prefixes_refused: u64,
    receivers: Vec<ConnectionId>,
}

/// What a prefix counts as, in pairs: those may take 64 bytes each. Without one a client is just one of those that track.
fn weight(prefix: &[u8]) -> usize {
    if prefix.is_empty() { 0 } else { 1 + prefix.len() / 64 }
}

impl Trackers {
    /// Clients of this shard that track.
    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    /// The prefixes clients of this shard asked for.
    pub fn prefixes(&self) -> impl Iterator<Item = &[u8]> {
        self.prefixes.keys().map(|prefix| &**prefix)
    }

    /// Changes that wait for the log before they are told.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Whether clients of this shard can be told anything.
    #[inline]
    pub fn has_clients(&self) -> bool {
        !self.clients.is_empty()
    }

    /// The first record of the log that something to be told waits for.
    pub(crate) fn first_awaited(&self) -> Option<u64> {
        self.held.front().map(|held| held.lsn)
    }

    fn add_prefix(&mut self, prefix: &[u8], connection: ConnectionId) {
        self.prefix_weight += weight(prefix);
        match self.prefixes.get_mut(prefix) {
            Some(connections) => connections.push(connection),
            None => {
                self.prefixes.insert(prefix.into(), Vec::from([connection]));
                *self.prefix_lengths.entry(prefix.len()).or_default() += 1;
            }
        }
    }

    fn remove_prefix(&mut self, prefix: &[u8], connection: ConnectionId) {
        let Some(connections) = self.prefixes.get_mut(prefix) else { return };
        connections.retain(|other| *other != connection);
        self.prefix_weight -= weight(prefix);
        if connections.is_empty() {
            self.prefixes.remove(prefix);
            if let Some(count) = self.prefix_lengths.get_mut(&prefix.len()) {
                *count -= 1;
                if *count == 0 {
                    self.prefix_lengths.remove(&prefix.len());
                }
            }
        }
    }

    /// Who wants to hear of this key.
    fn receivers(&self, key: &[u8], out: &mut Vec<ConnectionId>) {
        for &length in self.prefix_lengths.keys().take_while(|length| **length <= key.len()) {
            if let Some(connections) = self.prefixes.get(&key[..length]) {
                out.extend_from_slice(connections);
            }
        }
    }
}

// ---- what commands do ----------------------------------------------------------------------------------------------

/// After a command that reads: its keys are of interest to the caller from now on. Nothing can come between the reading
/// and this; what the reading itself found to be expired has fired before.
#[inline]
pub(crate) fn register_keys(call: &mut Call<'_>) {
    let Some(target) = call.session.tracks else { return };
    let range = call.command.keys;
    if range.first == range.last && !call.engine.has_guests() {
        let at = range.first as usize;
        let (key, hash) = (call.args.at(at), call.hash(at));
        if call.engine.keyspace.tracked().is_some_and(|table| table.knows(key, hash.0, target.id)) {
            return;
        }
    }
    register_anew(call, target);
}

#[cold]
fn register_anew(call: &mut Call<'_>, target: Target) {
    let range = call.command.keys;
    let last = match i64::from(range.last) {
        last @ ..0 => call.args.len() as i64 + last,
        last => last,
    };
    let mut at = range.first as usize;
    while at as i64 <= last && at < call.args.len() {
        let (key, hash) = (call.args.at(at), call.hash(at));
        let shared = &mut *call.engine;
        let shard = match shared.has_guests() {
            true => shared.fleet.place.shard_of(key),
            false => shared.fleet.place.index,
        };
        if let Some(tracking) = &mut call.session.tracking {
            tracking.asked.insert(shard);
        }
        shared.deselect();
        let shared = match shared.fleet.guests.iter_mut().find(|(index, _)| *index == shard) {
            Some((_, guest)) => &mut **guest,
            None => shared,
        };
        if shared.trackers.mistake == Some(Mistake::RegistersLate) {
            shared.trackers.late.push((key.into(), hash.0, target));
            shared.table();
        } else {
            shared.table().register(key, hash.0, target);
        }
        at += range.step.max(1) as usize;
    }
}

/// After any command of a client that has used tracking: CLIENT CACHING is about one command, or one transaction.
#[inline]
pub(crate) fn end_command(session: &mut Session, command: Option<&'static Command>) {
    if session.tracking.as_ref().is_some_and(|tracking| tracking.caching) {
        end_caching(session, command);
    }
}

#[cold]
fn end_caching(session: &mut Session, command: Option<&'static Command>) {
    let keeps =
        session.transaction.is_some() || command.is_some_and(|command| command.name.starts_with("client|"));
    if let Some(tracking) = session.tracking.as_mut().filter(|_| !keeps) {
        tracking.caching = false;
        session.update_tracks();
    }
}

impl Session {
    /// Recomputes whether what this client reads next is of interest.
    pub(crate) fn update_tracks(&mut self) {
        let tracking = self.tracking.as_ref().filter(|tracking| tracking.is_reading());
        let (id, connection) = (self.id, self.connection);
        self.tracks = tracking.map(|_| Target { id, shard: self.home, connection });
    }

    /// A command that reads is on its way to another shard: that one will know the client as a reader.
    pub(crate) fn note_asked(&mut self, shard: usize) {
        if let Some(tracking) = &mut self.tracking {
            tracking.asked.insert(shard);
        }
    }
}

impl Shared {
    /// The table of this shard, which is there from now on.
    pub(crate) fn table(&mut self) -> &mut Table {
        if !self.is_tracking {
            let mut table = Table::new(self.pairs_share());
            table.set_hears_all(!self.trackers.listening.is_empty());
            self.keyspace.keep_tracked(Some(Box::new(table)));
            self.is_tracking = true;
            self.is_plain = false;
        }
        self.keyspace.tracked_mut().expect("it was just made, or is there as `is_tracking` says")
    }

    /// The share of the bound that this shard has.
    fn pairs_share(&self) -> usize {
        (self.config.tracking_table_max_pairs as usize).div_ceil(self.fleet.place.count)
    }

    /// What depends on who tracks. The shard's own keyspace must be selected.
    pub(crate) fn refresh_tracking(&mut self) {
        let listens = !self.trackers.listening.is_empty() || self.streams.is_wanted();
        let is_wanted = listens || !self.trackers.clients.is_empty();
        if is_wanted {
            self.table();
        }
        let share = self.pairs_share();
        let is_idle = self.keyspace.tracked_mut().is_some_and(|table| {
            table.set_hears_all(listens);
            table.set_pairs_max(share);
            table.is_idle()
        });
        if is_idle && !is_wanted {
            self.trackers.evictions += self.keyspace.tracked().map_or(0, Table::evictions);
            self.keyspace.keep_tracked(None);
            self.is_tracking = false;
            self.is_plain =
                self.fleet.place.is_alone() && self.journal.is_none() && !self.replication.is_following();
        }
    }

    /// Keys whose readers were told because the table was full, since the start.
    pub(crate) fn tracking_evictions(&self) -> u64 {
        self.trackers.evictions + self.keyspace.tracked().map_or(0, Table::evictions)
    }

    /// CONFIG RESETSTAT
    pub(crate) fn reset_tracking_counters(&mut self) {
        (self.trackers.pushes, self.trackers.evictions, self.trackers.prefixes_refused) = (0, 0, 0);
        (self.streams.events, self.streams.lost) = (0, 0);
        if let Some(table) = self.keyspace.tracked_mut() {
            table.reset_evictions();
        }
    }

    /// Whether clients of this shard may ask for these prefixes, too: they are kept in addition to the table, and what
    /// each shard keeps of them has the same bound.
    pub(crate) fn has_room_for_prefixes(&mut self, new: &[&[u8]]) -> bool {
        let wanted = self.trackers.prefix_weight + new.iter().map(|prefix| weight(prefix)).sum::<usize>();
        let has_room = new.is_empty() || wanted <= self.pairs_share();
        self.trackers.prefixes_refused += u64::from(!has_room);
        has_room
    }

    /// CLIENT TRACKING ON with options that were checked, every shard in hand.
    pub(crate) fn start_tracking(
        &mut self,
        session: &mut Session,
        mode: Mode,
        no_loop: bool,
        redirect: Option<Target>,
        prefixes: &[&[u8]],
    ) {
        let connection = session.connection;
        let tracking = session.tracking.get_or_insert_default();
        tracking.is_on = true;
        (tracking.mode, tracking.no_loop, tracking.redirect) = (mode, no_loop, redirect);
        tracking.is_broken = false;
        if mode == Mode::Broadcast {
            let everything: &[&[u8]] = &[b""];
            for &prefix in if prefixes.is_empty() { everything } else { prefixes } {
                if tracking.prefixes.insert(prefix.into()) {
                    self.trackers.add_prefix(prefix, connection);
                }
            }
            let home = self.fleet.place.index;
            self.for_all(|shard| {
                shard.trackers.listening.insert(home);
                shard.refresh_tracking();
            });
        }
        self.trackers.clients.insert(session.id, connection);
        session.update_tracks();
        self.deselect();
        self.refresh_tracking();
    }

    /// CLIENT TRACKING OFF, RESET, and the end of a connection.
    pub(crate) fn stop_tracking(&mut self, session: &mut Session) {
        let Some(tracking) = &mut session.tracking else { return };
        self.deselect();
        tracking.is_on = false;
        tracking.caching = false;
        tracking.is_broken = false;
        tracking.redirect = None;
        let own = self.fleet.place.index;
        let had_prefixes = !tracking.prefixes.is_empty();
        for prefix in core::mem::take(&mut tracking.prefixes) {
            self.trackers.remove_prefix(&prefix, session.connection);
        }
        if had_prefixes && self.trackers.prefixes.is_empty() {
            self.trackers.listening.remove(own);
            self.tell_others(|| Message::Deaf);
        }
        self.trackers.clients.remove(&session.id);
        // It stays noted where it was a reader: commands may be on their way there still.
        let mut asked = tracking.asked;
        while let Some(shard) = asked.first() {
            asked.remove(shard);
            if shard != own {
                self.fleet.outbox.push_back((shard, Message::Forget(session.id)));
            } else if let Some(table) = self.keyspace.tracked_mut() {
                table.forget(session.id);
            }
        }
        session.tracks = None;
        self.refresh_tracking();
    }

    pub(super) fn tell_others(&mut self, message: impl Fn() -> Message) {
        let place = self.fleet.place;
        for shard in (0..place.count).filter(|shard| *shard != place.index) {
            self.fleet.outbox.push_back((shard, message()));
        }
    }

    /// A client of another shard reads here no more.
    pub(crate) fn forget_reader(&mut self, id: u64) {
        if let Some(table) = self.keyspace.tracked_mut() {
            table.forget(id);
        }
        self.refresh_tracking();
    }

    /// The clients of another shard want to hear of every key no more.
    pub(crate) fn stop_listening(&mut self, shard: usize) {
        self.trackers.listening.remove(shard);
        self.refresh_tracking();
    }

    // ---- what fired ----------------------------------------------------------------------------------------------

    /// Whether something is to be told, or what was done to other shards may be.
    #[inline]
    pub(crate) fn has_news(&self) -> bool {
        self.has_guests() || (self.is_tracking && self.keyspace.tracked().is_some_and(Table::has_fired))
    }

    /// A command is done, or background work: what it changed is told, at once or when the log has it.
    #[cold]
    pub(crate) fn conclude_tracking(&mut self, record: Option<u64>, session: Option<&mut Session>) {
        let writer = session.as_ref().map_or(0, |session| session.id);
        let own = self.fleet.place.index;
        if self.has_guests() {
            let mut far = Vec::new();
            self.for_all(|shard| shard.take_fired(record, writer, &mut far));
            for (to, invalidation) in far {
                // Whoever is in hand hears of it when it is back. The others hear of it from here: were it left to the
                // shard of the key, the writer could have its answer before.
                match self.fleet.guests.iter_mut().find(|(index, _)| *index == to) {
                    Some((_, guest)) => guest.keep_news(invalidation.lsn, News::Key(invalidation)),
                    None if self.trackers.mistake == Some(Mistake::TellsLate) => {
                        if let Some((_, guest)) = self.fleet.guests.first_mut() {
                            guest.fleet.outbox.push_back((to, Message::Invalidate(Box::new(invalidation))));
                        }
                    }
                    None => self.tell_shard(to, own, invalidation),
                }
            }
        } else if self.keyspace.tracked().is_some_and(Table::has_fired) {
            let mut far = Vec::new();
            self.take_fired(record, writer, &mut far);
            far.into_iter().for_each(|(to, invalidation)| self.tell_shard(to, own, invalidation));
        }
        self.release_held(session);
    }

    /// Takes what fired on this shard: what is for its streams is held here, the rest is added to `far`, with the shard
    /// that is to tell it.
    fn take_fired(&mut self, record: Option<u64>, writer: u64, far: &mut Vec<(usize, Invalidation)>) {
        let latest = self.keyspace.latest_effect();
        let Some(table) = self.keyspace.tracked_mut().filter(|table| table.has_fired()) else { return };
        let (fired, is_cleared) = table.take_fired();
        let waits = self.journal.as_ref().is_some_and(|journal| journal.class() == Durability::Always)
            && self.trackers.mistake != Some(Mistake::TellsEarly);
        let changed = if waits { record.unwrap_or(latest) } else { 0 };
        let forgets_evictions = self.trackers.mistake == Some(Mistake::ForgetsEvictions);
        for Fired { key, cause, targets } in fired {
            if forgets_evictions && cause == Cause::Evicted {
                continue;
            }
            let lsn = match cause {
                Cause::Full => 0,
                // That a key expired says that it was there. Who finds it gone waits for no more than this.
                Cause::Expired(after) if waits => after,
                Cause::Expired(_) => 0,
                Cause::Evicted | Cause::Asked => changed,
            };
            let is_for_tokens = targets.iter().any(|target| target.shard == TOKEN);
            if self.streams.is_wanted() && (cause != Cause::Full || is_for_tokens) {
                let tokens = targets.iter().filter(|target| target.shard == TOKEN).copied().collect();
                self.keep_news(lsn, News::Event(Some(key.clone()), tokens));
            }
            // A change that nobody asked for is news to its writer, too.
            let writer = if cause == Cause::Asked { writer } else { 0 };
            let listening = if cause == Cause::Full { ShardSet::default() } else { self.trackers.listening };
            let mut concerned = listening;
            let clients = targets.iter().filter(|target| target.shard != TOKEN);
            clients.for_each(|target| concerned.insert(target.shard as usize));
            while let Some(shard) = concerned.first() {
                concerned.remove(shard);
                let there = targets.iter().filter(|target| target.shard as usize == shard);
                let invalidation = Invalidation {
                    key: key.clone(),
                    lsn,
                    writer,
                    readers: there.map(|target| target.connection).collect(),
                    is_for_listeners: listening.contains(shard),
                };
                far.push((shard, invalidation));
            }
        }
        if is_cleared {
            // All shards are cleared together: one tells the streams of all.
            if self.fleet.place.index == 0 && self.streams.is_wanted() {
                self.keep_news(changed, News::Event(None, Vec::new()));
            }
            self.keep_news(changed, News::Flush);
        }
    }

    fn tell_shard(&mut self, to: usize, own: usize, invalidation: Invalidation) {
        if to == own {
            self.keep_news(invalidation.lsn, News::Key(invalidation));
        } else {
            self.fleet.tells.push_back((to, Message::Invalidate(Box::new(invalidation))));
        }
    }

    /// Other shards' news come in any order.
    fn keep_news(&mut self, lsn: u64, news: News) {
        let held = &mut self.trackers.held;
        match held.back() {
            Some(last) if last.lsn > lsn => {
                let at = held.partition_point(|other| other.lsn <= lsn);
                held.insert(at, Held { lsn, news });
            }
            _ => held.push_back(Held { lsn, news }),
        }
    }

    /// Another shard tells of a key of its own, or of one that it had in hand.
    pub(crate) fn hear_invalidation(&mut self, invalidation: Invalidation) {
        self.keep_news(invalidation.lsn, News::Key(invalidation));
        self.release_held(None);
    }

    /// Tells what may be told. `session` is being executed, and thus not among the others.
    pub(crate) fn release_held(&mut self, mut session: Option<&mut Session>) {
        if self.trackers.held.is_empty() {
            return;
        }
        let (durable, has_failed) = match &self.journal {
            Some(journal) => (journal.durable_lsn(), journal.has_failed()),
            None => (u64::MAX, false),
        };
        while let Some(held) = self.trackers.held.pop_front_if(|held| held.lsn <= durable) {
            match held.news {
                News::Key(invalidation) => self.push_invalidation(&invalidation, session.as_deref_mut()),
                News::Flush => self.push_flush(session.as_deref_mut()),
                News::Event(key, tokens) => self.tell_streams(key.as_deref(), &tokens),
            }
        }
        if has_failed {
            self.give_up_held(session);
        }
    }

    /// What is held will never be durable: those whom it concerns are told to keep nothing, and not why.
    #[cold]
    fn give_up_held(&mut self, session: Option<&mut Session>) {
        let (mut concerned, mut is_for_streams) = (Vec::new(), false);
        for held in core::mem::take(&mut self.trackers.held) {
            match held.news {
                News::Key(Invalidation { key, readers, is_for_listeners, .. }) => {
                    concerned.extend(readers);
                    if is_for_listeners {
                        self.trackers.receivers(&key, &mut concerned);
                    }
                }
                News::Flush => concerned.extend(self.trackers.clients.values()),
                News::Event(..) => is_for_streams = true,
            }
        }
        concerned.sort_unstable();
        concerned.dedup();
        self.push_flush_to(&concerned, session);
        if is_for_streams {
            self.tell_streams(None, &[]);
        }
    }

    /// Once a turn: what clients that left had read, what is over the bound.
    pub(crate) fn tidy_tracking(&mut self, now: Now) -> bool {
        if !self.is_tracking {
            return false;
        }
        for (key, hash, target) in core::mem::take(&mut self.trackers.late) {
            self.table().register(&key, hash, target);
        }
        self.tidy_streams(now);
        let has_more = self.keyspace.tracked_mut().is_some_and(|table| table.tidy(TIDY_BUDGET));
        self.refresh_tracking();
        has_more
    }
}
