//! Invalidations over HTTP: a stream of server-sent events for every key, for those with a prefix, or for those that
//! were read with the stream's token.
//!
//! **Numbers.** Each shard numbers the changes of its keys as they may be told, while somebody has a stream anywhere, and
//! keeps the latest in a backlog. The id of an event names the run of the server and the number of the last event of each
//! shard that the stream has come to, `1f0a37c2-17.0.4`: a client that comes back with it in Last-Event-ID is told what
//! it missed, whichever shard its new connection is on. Where a backlog does not reach back so far, or the server was
//! started anew, it is told `flush` instead: everything it keeps may be old.
//!
//! **Opening** a stream has every shard in hand: what is in the backlogs is written, and from there on every event comes
//! as a message, each once and from each shard in order.
//!
//! **Bounds.** A backlog takes `invalidation-backlog` bytes and is given back a minute after the last stream has ended, as
//! are tokens without a stream; there are at most [`TOKENS_MAX`] of those. A client that does not read its stream is
//! closed at `output-buffer-max`, and comes back with its last id.

use super::Target;
use crate::engine::Shared;
use crate::session::{ConnectionId, Session};
use crate::shards::{Message, ShardSet};
use crate::time::{Nanos, Now};
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::mem;

/// In place of a shard: the reader is a token.
pub(super) const TOKEN: u32 = u32::MAX;
/// Tokens of streams that are open or ended a moment ago.
pub const TOKENS_MAX: usize = 4096;
/// The longest token.
pub const TOKEN_BYTES_MAX: usize = 128;
/// How long a client may take to come back.
const KEPT: Nanos = Nanos(60_000_000_000);
/// A stream is never silent for longer, so that whoever stands between knows that it lives.
const BEAT: Nanos = Nanos(15_000_000_000);
/// What an event in a backlog takes beside its key.
const EVENT_BYTES: usize = 40;

/// Which events a stream has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Those of keys that begin with this.
    Prefix(Box<[u8]>),
    /// Those of keys that were read with this token, by its [id](token_id).
    Token(u64),
}

/// A change, as streams hear of it.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its number on its shard.
    pub number: u64,
    /// The key; `None`: all of them.
    pub key: Option<Box<[u8]>>,
    /// The tokens it was read with.
    pub tokens: Vec<u64>,
}

/// The reader that a token is: no client has such an id.
pub fn token_id(token: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(token) | 1 << 63
}

/// The number of an event, and its key.
type Kept = (u64, Option<Box<[u8]>>);

#[derive(Debug)]
struct Stream {
    filter: Filter,
    /// By shard the number of the last event it has come to.
    seen: Vec<u64>,
}

#[derive(Debug, Default)]
struct Token {
    streams: usize,
    idle_since: Option<Nanos>,
}

/// The streams of a shard, and what it keeps for those of all shards.
#[derive(Debug, Default)]
pub struct Streams {
    /// Of this shard's connections.
    open: BTreeMap<ConnectionId, Stream>,
    /// Shards with streams.
    listening: ShardSet,
    /// The latest changes of this shard's keys; `None`: nobody asks for them.
    backlog: Option<VecDeque<Kept>>,
    backlog_bytes: usize,
    /// The number of the last event.
    latest: u64,
    tokens: BTreeMap<u64, Token>,
    /// Tokens whose last stream has just ended, and those whose did a moment ago.
    ended: Vec<u64>,
    idle: VecDeque<(Nanos, u64)>,
    idle_since: Option<Nanos>,
    next_beat: Option<Nanos>,
    /// Events written.
    pub events: u64,
    /// Streams that came back too late to be told what they missed.
    pub lost: u64,
    line: Vec<u8>,
}

impl Streams {
    /// Streams of this shard's connections.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// Bytes of the backlog.
    pub fn backlog_bytes(&self) -> usize {
        self.backlog_bytes
    }

    /// Changes are of interest.
    pub(super) fn is_wanted(&self) -> bool {
        self.backlog.is_some()
    }

    /// When something is to be done next.
    pub(crate) fn next_deadline(&self) -> Option<Nanos> {
        let idle = self.idle_since.map(|since| Nanos(since.0 + KEPT.0));
        let tokens = self.idle.front().map(|entry| Nanos(entry.0.0 + KEPT.0));
        [idle, tokens, self.next_beat].into_iter().flatten().min()
    }

    /// Whether a token has a stream, or had one a moment ago.
    fn knows_token(&self, id: u64) -> bool {
        self.tokens.contains_key(&id)
    }

    /// A shard has a stream now; `token`: what for.
    fn listen(&mut self, home: usize, token: Option<u64>) {
        self.listening.insert(home);
        self.idle_since = None;
        if self.backlog.is_none() {
            // Whoever was here before has missed something since.
            self.latest += 1;
            self.backlog = Some(VecDeque::new());
        }
        if let Some(id) = token {
            let token = self.tokens.entry(id).or_default();
            token.streams += 1;
            token.idle_since = None;
        }
    }

    /// The first event that can be told again.
    fn first(&self) -> u64 {
        self.backlog.as_ref().and_then(|backlog| backlog.front()).map_or(self.latest + 1, |event| event.0)
    }

    fn keep(&mut self, number: u64, key: Option<&[u8]>, bytes_max: usize) {
        let Some(backlog) = &mut self.backlog else { return };
        self.backlog_bytes += EVENT_BYTES + key.map_or(0, <[u8]>::len);
        backlog.push_back((number, key.map(Box::from)));
        while self.backlog_bytes > bytes_max
            && let Some((_, key)) = backlog.pop_front()
        {
            self.backlog_bytes -= EVENT_BYTES + key.map_or(0, |key| key.len());
        }
    }
}

/// The numbers in an id, if it is one of this run and of as many shards.
fn parse_id(id: &[u8], run_id: &[u8; 20], shards: usize) -> Option<Vec<u64>> {
    let text = core::str::from_utf8(id).ok()?;
    let (run, numbers) = text.split_once('-')?;
    let mut wanted = Vec::new();
    push_run(&mut wanted, run_id);
    let numbers: Option<Vec<u64>> = numbers.split('.').map(|number| number.parse().ok()).collect();
    numbers.filter(|numbers| run.as_bytes() == wanted && numbers.len() == shards)
}

fn push_run(out: &mut Vec<u8>, run_id: &[u8; 20]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in &run_id[..4] {
        out.extend_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
}

/// One event: its kind, what it is about, and the id to come back with.
fn push_event(out: &mut Vec<u8>, kind: &[u8], key: Option<&[u8]>, run_id: &[u8; 20], seen: &[u64]) {
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(kind);
    out.extend_from_slice(b"\nid: ");
    push_run(out, run_id);
    for (at, number) in seen.iter().enumerate() {
        out.push(if at == 0 { b'-' } else { b'.' });
        out.extend_from_slice(itoa::Buffer::new().format(*number).as_bytes());
    }
    out.extend_from_slice(b"\ndata: ");
    match key {
        Some(key) => crate::protocol::http::push_percent_encoded(out, key),
        None => out.push(b'*'),
    }
    out.extend_from_slice(b"\n\n");
}

impl Shared {
    /// Begins a stream behind the head of its response, which is written; every shard is in hand.
    pub(crate) fn open_stream(&mut self, session: &mut Session, filter: Filter, last_id: Option<&[u8]>) {
        let place = self.fleet.place;
        let token = match filter {
            Filter::Token(id) => Some(id),
            Filter::Prefix(_) => None,
        };
        self.for_all(|shard| {
            shard.streams.listen(place.index, token);
            shard.refresh_tracking();
        });
        let asked = last_id.and_then(|id| parse_id(id, &self.run_id, place.count));
        let mut seen = asked.unwrap_or_default();
        let reaches_back = !seen.is_empty()
            && self.all().zip(&seen).all(|(shard, number)| {
                // A client may send any number, also the greatest.
                (shard.streams.first()..=shard.streams.latest + 1).contains(&number.saturating_add(1))
            });
        let mut text = mem::take(&mut self.streams.line);
        text.clear();
        text.extend_from_slice(b"retry: 1000\n\n");
        let mut events = 1;
        if reaches_back {
            push_event(&mut text, b"resumed", None, &self.run_id, &seen);
            for (at, shard) in self.all().enumerate() {
                let after = seen[at];
                let missed = shard.streams.backlog.iter().flatten().filter(|event| event.0 > after);
                for (number, key) in missed {
                    seen[at] = *number;
                    // Whether it was read with the token is not known any more: one too many does no harm.
                    let is_wanted = match (&filter, key) {
                        (Filter::Prefix(prefix), Some(key)) => key.starts_with(prefix),
                        _ => true,
                    };
                    if is_wanted {
                        let kind: &[u8] = if key.is_some() { b"invalidate" } else { b"flush" };
                        push_event(&mut text, kind, key.as_deref(), &self.run_id, &seen);
                        events += 1;
                    }
                }
            }
        }
        // What was not of interest is behind it, too.
        seen = self.all().map(|shard| shard.streams.latest).collect();
        if !reaches_back {
            let kind: &[u8] = if last_id.is_some() { b"flush" } else { b"ready" };
            self.streams.lost += u64::from(last_id.is_some());
            push_event(&mut text, kind, None, &self.run_id, &seen);
        }
        session.output.extend_from_slice(&text);
        text.clear();
        text.shrink_to(4096);
        self.streams.line = text;
        self.streams.events += events;
        session.is_stream = true;
        self.streams.open.insert(session.connection, Stream { filter, seen });
    }

    /// A connection ends: its stream does.
    pub(crate) fn close_stream(&mut self, session: &mut Session) {
        if !mem::take(&mut session.is_stream) {
            return;
        }
        let Some(stream) = self.streams.open.remove(&session.connection) else { return };
        let token = match stream.filter {
            Filter::Token(id) => Some(id),
            Filter::Prefix(_) => None,
        };
        let is_last = self.streams.open.is_empty();
        let own = self.fleet.place.index;
        self.stream_ended(own, token, is_last);
        if token.is_some() || is_last {
            self.tell_others(|| Message::StreamEnded(token, is_last));
        }
    }

    /// A stream of a shard has ended, perhaps its last.
    pub(crate) fn stream_ended(&mut self, home: usize, token: Option<u64>, is_last: bool) {
        if is_last {
            self.streams.listening.remove(home);
        }
        if let Some(id) = token
            && let Some(token) = self.streams.tokens.get_mut(&id)
        {
            token.streams = token.streams.saturating_sub(1);
            if token.streams == 0 {
                self.streams.ended.push(id);
            }
        }
    }

    /// Whether there can be one token more.
    pub(crate) fn has_room_for_token(&self, id: u64) -> bool {
        self.streams.tokens.len() < TOKENS_MAX || self.streams.knows_token(id)
    }

    /// A key that is read with a token: its stream is told when it changes. `false`: there is none.
    pub(crate) fn register_token(&mut self, key: &[u8], id: u64) -> bool {
        if !self.streams.knows_token(id) {
            return false;
        }
        let hash = self.keyspace.hash(key);
        let target = Target { id, shard: TOKEN, connection: ConnectionId::default() };
        self.table().register(key, hash.0, target);
        true
    }

    /// A change may be told: it gets a number, and streams on every shard hear of it.
    pub(super) fn tell_streams(&mut self, key: Option<&[u8]>, targets: &[Target]) {
        if self.streams.backlog.is_none() {
            return;
        }
        self.streams.latest += 1;
        let number = self.streams.latest;
        self.streams.keep(number, key, self.config.invalidation_backlog);
        let tokens: Vec<u64> =
            targets.iter().filter(|target| target.shard == TOKEN).map(|target| target.id).collect();
        let event = Event { number, key: key.map(Box::from), tokens };
        let own = self.fleet.place.index;
        let mut listening = self.streams.listening;
        listening.remove(own);
        while let Some(shard) = listening.first() {
            listening.remove(shard);
            self.fleet.outbox.push_back((shard, Message::Event(Box::new(event.clone()))));
        }
        self.push_event(own, &event);
    }

    /// Writes an event of a shard to the streams of this one.
    pub(crate) fn push_event(&mut self, from: usize, event: &Event) {
        let kind: &[u8] = if event.key.is_some() { b"invalidate" } else { b"flush" };
        let mut lines = Vec::new();
        for (connection, stream) in &mut self.streams.open {
            // It may have been in the backlog when the stream was opened.
            if stream.seen[from] >= event.number {
                continue;
            }
            stream.seen[from] = event.number;
            let is_wanted = match (&stream.filter, &event.key) {
                (_, None) => true,
                (Filter::Prefix(prefix), Some(key)) => key.starts_with(prefix),
                (Filter::Token(id), Some(_)) => event.tokens.contains(id),
            };
            if is_wanted {
                let mut line = Vec::new();
                push_event(&mut line, kind, event.key.as_deref(), &self.run_id, &stream.seen);
                lines.push((*connection, line));
            }
        }
        self.streams.events += lines.len() as u64;
        for (connection, line) in lines {
            self.write_to_stream(connection, &line);
        }
    }

    fn write_to_stream(&mut self, connection: ConnectionId, bytes: &[u8]) {
        if let Some(mut session) = self.sessions.take(connection) {
            self.append_push(&mut session, bytes);
            self.sessions.insert(session);
        }
    }

    /// Once a turn: signs of life, and what nobody has come back for.
    pub(super) fn tidy_streams(&mut self, now: Now) {
        let now = now.monotonic;
        let streams = &mut self.streams;
        if streams.open.is_empty() {
            streams.next_beat = None;
        } else if streams.next_beat.is_none_or(|at| at <= now) {
            let is_first = streams.next_beat.is_none();
            streams.next_beat = Some(Nanos(now.0 + BEAT.0));
            let connections: Vec<ConnectionId> = streams.open.keys().copied().collect();
            for connection in connections.into_iter().filter(|_| !is_first) {
                self.write_to_stream(connection, b": \n\n");
            }
        }
        let streams = &mut self.streams;
        for id in mem::take(&mut streams.ended) {
            streams.idle.push_back((now, id));
            if let Some(token) = streams.tokens.get_mut(&id) {
                token.idle_since = Some(now);
            }
        }
        while let Some((since, id)) =
            self.streams.idle.pop_front_if(|(since, _)| now.since(*since).0 > KEPT.0)
        {
            let token = self.streams.tokens.get(&id);
            // It may have a stream again, or had one until later.
            if token.is_some_and(|token| token.streams == 0 && token.idle_since == Some(since)) {
                self.streams.tokens.remove(&id);
                if let Some(table) = self.keyspace.tracked_mut() {
                    table.forget(id);
                }
            }
        }
        let streams = &mut self.streams;
        if streams.backlog.is_some() && streams.listening.is_empty() {
            let since = *streams.idle_since.get_or_insert(now);
            if now.since(since).0 > KEPT.0 && streams.tokens.is_empty() {
                streams.backlog = None;
                streams.backlog_bytes = 0;
                streams.idle_since = None;
            }
        }
    }
}
