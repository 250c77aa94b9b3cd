//! Simulated clients: they pipeline random commands over few keys, by RESP or HTTP, and remember what they were told.

use super::command::{Command, Key, Text, Token};
use super::ledger::{Ledger, Point, Window};
use super::net::{Net, WireId};
use super::server::{HTTP_LISTENER, RESP_LISTENER};
use super::tracker::Tracker;
use crate::oracle::value::{Unparsed, Value};
use crate::random::Random;
use std::collections::VecDeque;
use std::sync::LazyLock;
use store::session::Durability;

/// Values of every kind of length.
pub(super) const TEXTS: [Key; 6] = [b"k0", b"k1", b"k2", b"k3", b"k4", b"k5"];
/// Numbers.
pub(super) const COUNTERS: [Key; 2] = [b"n0", b"n1"];
/// More keys, in some runs: so many that segments are not emptied, and memory not made, at a stroke.
static CROWD: LazyLock<Vec<Key>> = LazyLock::new(|| {
    let name = |number: u8| -> Key { vec![b'c', b'0' + number / 10, b'0' + number % 10].leak() };
    (0..96).map(name).collect()
});

/// All keys that clients write.
pub(super) fn all_keys() -> impl Iterator<Item = Key> {
    TEXTS.into_iter().chain(COUNTERS).chain(CROWD.iter().copied())
}

/// Replies that a client may wait for at once.
const OUTSTANDING_MAX: usize = 40;

/// A command on its way.
#[derive(Debug)]
struct Sent {
    command: Command,
    window: Window,
    class: Durability,
    /// Replies that come before its own.
    before: usize,
    /// Writes of this connection before it, for WAITAOF.
    written: usize,
    /// What anybody had been shown when it was sent.
    point: Point,
    /// What it reads is kept.
    keeps: bool,
    /// But for these keys: they changed meanwhile.
    stale: Vec<Key>,
}

/// See the module.
#[derive(Debug)]
pub struct Client {
    name: usize,
    is_http: bool,
    shards: usize,
    random: Random,
    wire: Option<WireId>,
    /// What this connection was promised; `None`: as the server.
    asked: Option<Durability>,
    server_class: Durability,
    outstanding: VecDeque<Sent>,
    received: Vec<u8>,
    /// Tokens written on this connection.
    written: Vec<Token>,
    /// The record that its last reply depended on.
    floor: u64,
    acts_at: u64,
    think: u64,
    /// Whether it uses the many keys.
    is_crowded: bool,
    /// Whether values of several blocks are written.
    long_values: bool,
    /// It keeps what it reads as long as it is not told that it has changed.
    is_caching: bool,
    tracker: Option<Tracker>,
    /// Of connections that have ended.
    pushes: u64,
    compared: u64,
    /// Replies that it got.
    pub replies: u64,
    /// Writes that were refused, and those of them for want of memory.
    pub refused: u64,
    /// See there.
    pub full: u64,
}

/// What a run shares between its clients.
#[derive(Debug, Default)]
pub struct Tokens(u32);

impl Tokens {
    fn text(&mut self, random: &mut Random, is_long: bool) -> Text {
        self.0 += 1;
        let longest = match random.below(20) {
            0 if is_long => 12_000,
            1..=3 => 1500,
            _ => 60,
        };
        Text { token: Token(self.0), filler: random.below(longest) }
    }

    fn long_text(&mut self, random: &mut Random) -> Text {
        self.0 += 1;
        Text { token: Token(self.0), filler: random.below(6000) }
    }
}

/// What RESP3 says otherwise.
fn as_resp2(value: Value) -> Value {
    match value {
        Value::Line(b'_', _) => Value::Line(b'$', b"-1".to_vec()),
        Value::Items(kind, items) => Value::Items(kind, items.into_iter().map(as_resp2).collect()),
        other => other,
    }
}

impl Client {
    /// A client that is not connected yet.
    pub fn new(
        name: usize,
        seed: u64,
        shards: usize,
        server_class: Durability,
        is_crowded: bool,
        now: u64,
    ) -> Client {
        let mut random = Random::new(seed);
        let think = *random.pick(&[100_000, 2_000_000, 20_000_000, 300_000_000]);
        let is_http = name > 0 && random.chance(25);
        Client {
            name,
            is_http,
            is_caching: !is_http && name > 0 && random.chance(60),
            tracker: None,
            pushes: 0,
            compared: 0,
            shards,
            wire: None,
            asked: None,
            server_class,
            outstanding: VecDeque::new(),
            received: Vec::new(),
            written: Vec::new(),
            floor: 0,
            acts_at: now + random.next_u64() % think,
            think,
            is_crowded,
            long_values: random.chance(30),
            replies: 0,
            refused: 0,
            full: 0,
            random,
        }
    }

    /// When it does something by itself, or has something to read.
    pub fn due(&self, net: &Net, quiet: bool) -> Option<u64> {
        let hears = self.tracker.as_ref().and_then(|tracker| tracker.due(net));
        let reads = self.wire.and_then(|wire| net.readable_at(wire));
        let ended = self.wire.filter(|&wire| net.has_ended(wire)).map(|_| 0);
        let acts = (!quiet && self.outstanding.len() < OUTSTANDING_MAX).then_some(self.acts_at);
        [reads, hears, ended, acts].into_iter().flatten().min()
    }

    /// Commands that are not answered, while the connection stands.
    pub fn outstanding(&self) -> usize {
        if self.wire.is_some() { self.outstanding.len() } else { 0 }
    }

    /// Invalidations that it got.
    pub fn pushes(&self) -> u64 {
        self.pushes + self.tracker.as_ref().map_or(0, |tracker| tracker.pushes)
    }

    /// Values in its caches that were judged.
    pub fn compared(&self) -> u64 {
        self.compared + self.tracker.as_ref().map_or(0, |tracker| tracker.compared)
    }

    /// The first command that is not answered.
    pub fn first_outstanding(&self) -> String {
        self.outstanding.front().map_or(String::new(), |sent| format!("{sent:?}"))
    }

    /// Reads what is there, or acts. With `quiet` it asks for nothing more.
    pub fn step(
        &mut self,
        net: &mut Net,
        ledger: &mut Ledger,
        tokens: &mut Tokens,
        now: u64,
        quiet: bool,
    ) -> Result<(), String> {
        self.hear(net, now)?;
        if let Some(wire) = self.wire {
            while let Some((bytes, durable)) = net.read(wire, now) {
                self.received.extend_from_slice(&bytes);
                self.take_replies(ledger, durable, now)?;
            }
            if net.has_ended(wire) {
                self.leave_all(net, now);
                net.end(wire, false, now);
            }
        }
        if quiet || self.acts_at > now || self.outstanding.len() >= OUTSTANDING_MAX {
            return Ok(());
        }
        self.acts_at = now + 1 + self.random.next_u64() % self.think;
        let Some(wire) = self.wire else {
            let listener = if self.is_http { HTTP_LISTENER } else { RESP_LISTENER };
            self.wire = Some(net.connect(self.random.below(self.shards), listener, now));
            self.tracker = self.is_caching.then(|| Tracker::new(&mut self.random, net, self.shards, now));
            return Ok(());
        };
        if self.random.chance(1) {
            net.end(wire, self.random.chance(50), now);
            self.leave_all(net, now);
            return Ok(());
        }
        let mut bytes = Vec::new();
        if let Some(tracker) = &mut self.tracker {
            if let Some(words) = tracker.begin(net.durable) {
                bytes = words;
                self.note(&Command::Ping, ledger, now, Tracker::BEGINNING, false);
                Command::Ping.encode(&mut bytes);
            } else if !tracker.has_begun() {
                return Ok(());
            } else if self.random.chance(1) {
                tracker.drop_listener(net, now);
            }
        }
        let most = if self.is_http { 3 } else { 12 };
        for _ in 0..1 + self.random.below(most) {
            let command = if self.is_http { self.draw_http(tokens) } else { self.draw(tokens) };
            let reads = matches!(command, Command::Get(_) | Command::Mget(_) | Command::Transaction(_));
            let tracker = self.tracker.as_mut().filter(|_| reads);
            let (words, keeps) = tracker.map_or((None, false), |tracker| tracker.announce(&mut self.random));
            bytes.extend_from_slice(words.unwrap_or_default().as_bytes());
            self.note(&command, ledger, now, usize::from(words.is_some()), keeps);
            match self.is_http {
                true => command.encode_http(&mut bytes),
                false => command.encode(&mut bytes),
            }
        }
        net.send(wire, &bytes, now);
        Ok(())
    }

    /// Asks for everything that is there: what a recovery brought back.
    pub fn audit(&mut self, net: &mut Net, ledger: &Ledger, now: u64) {
        let wire = match self.wire {
            Some(wire) => wire,
            None => net.connect(self.random.below(self.shards), RESP_LISTENER, now),
        };
        self.wire = Some(wire);
        let mut bytes = Vec::new();
        let mut commands = vec![Command::AllKeys];
        for key in TEXTS.into_iter().chain(COUNTERS) {
            commands.extend([Command::Get(key), Command::ExpireTime(key)]);
        }
        for command in commands {
            self.note(&command, ledger, now, 0, false);
            command.encode(&mut bytes);
        }
        net.send(wire, &bytes, now);
    }

    /// Asks for an answer behind everything that it has been told by now. `false`: it has no cache.
    pub fn knock(&mut self, net: &mut Net, ledger: &Ledger, now: u64) -> bool {
        let (Some(wire), Some(_)) = (self.wire, &self.tracker) else { return false };
        self.note(&Command::Ping, ledger, now, 0, false);
        let mut bytes = Vec::new();
        Command::Ping.encode(&mut bytes);
        net.send(wire, &bytes, now);
        true
    }

    /// Holds its cache against what anybody has been shown by now; nothing is on its way any more.
    pub fn check_cache(&mut self, ledger: &Ledger) -> Result<(), String> {
        match &mut self.tracker {
            Some(tracker) if self.wire.is_some() => {
                let point = ledger.point();
                tracker.check(ledger, &point, true).map_err(|why| format!("client {}: {why}", self.name))
            }
            _ => Ok(()),
        }
    }

    fn note(&mut self, command: &Command, ledger: &Ledger, now: u64, before: usize, keeps: bool) {
        let class = self.asked.unwrap_or(self.server_class);
        // On one shard a connection's commands are executed in their order.
        let from = ledger.latest();
        self.outstanding.push_back(Sent {
            command: command.clone(),
            window: Window { from, since: now, until: now },
            class,
            before: before + if self.is_http { 0 } else { command.replies_before() },
            written: self.written.len(),
            point: ledger.point(),
            keeps,
            stale: Vec::new(),
        });
        self.written.extend(command.tokens());
        if let Command::Durability(class) = command {
            self.asked = *class;
        }
    }

    /// Reads what is told to the other connection.
    fn hear(&mut self, net: &mut Net, now: u64) -> Result<(), String> {
        let Some(tracker) = &mut self.tracker else { return Ok(()) };
        for key in tracker.hear(net, now)? {
            // What is being read may be older than this, and come later.
            for sent in &mut self.outstanding {
                match key {
                    Some(key) => sent.stale.push(key),
                    None => sent.stale.extend(all_keys()),
                }
            }
        }
        Ok(())
    }

    fn leave_all(&mut self, net: &mut Net, now: u64) {
        if let Some(tracker) = &self.tracker {
            tracker.drop_listener(net, now);
        }
        self.leave();
    }

    /// The server ended, or the connection did.
    pub fn leave(&mut self) {
        if let Some(tracker) = self.tracker.take() {
            self.pushes += tracker.pushes;
            self.compared += tracker.compared;
        }
        self.wire = None;
        self.asked = None;
        self.outstanding.clear();
        self.received.clear();
        self.written.clear();
        self.floor = 0;
    }

    fn take_replies(&mut self, ledger: &mut Ledger, durable: u64, now: u64) -> Result<(), String> {
        loop {
            let reply = match self.is_http {
                true => self.parse_http()?,
                false => match Value::parse(&self.received) {
                    Ok((value, used)) => {
                        self.received.drain(..used);
                        Some(value)
                    }
                    Err(Unparsed::Incomplete) => None,
                    Err(Unparsed::Malformed) => {
                        return Err(format!("client {}: no reply: {:?}", self.name, self.received));
                    }
                },
            };
            let Some(reply) = reply else { return Ok(()) };
            if let (Some(tracker), Value::Items(b'>', items)) = (&mut self.tracker, &reply) {
                let durable = (self.server_class == Durability::Always).then_some(durable);
                let taken = tracker.take_push(items, ledger, durable);
                taken.map_err(|why| format!("client {}: {why}", self.name))?;
                continue;
            }
            self.take_reply(&as_resp2(reply), ledger, durable, now)?;
        }
    }

    fn take_reply(
        &mut self,
        reply: &Value,
        ledger: &mut Ledger,
        durable: u64,
        now: u64,
    ) -> Result<(), String> {
        let Some(sent) = self.outstanding.front_mut() else {
            return Err(format!("client {}: a reply to nothing: {}", self.name, reply.show()));
        };
        self.replies += 1;
        if sent.before > 0 {
            sent.before -= 1;
            let is_beginning = matches!(sent.command, Command::Ping);
            if let Some(tracker) = self.tracker.as_mut().filter(|_| is_beginning && reply.is_error()) {
                // Whom it names may be gone.
                tracker.end();
            }
            return Ok(());
        }
        let Some(mut sent) = self.outstanding.pop_front() else { return Ok(()) };
        sent.window.until = now;
        self.judge(&sent, reply, ledger, durable)?;
        if let Some(tracker) = &mut self.tracker {
            tracker.absorb(&sent.command, reply, sent.keeps, &sent.stale);
            let checked = tracker.check(ledger, &sent.point, false);
            checked.map_err(|why| format!("client {}, answered {:?}: {why}", self.name, sent.command))?;
        }
        Ok(())
    }

    /// Whether a reply can be, and may be by now.
    fn judge(&mut self, sent: &Sent, reply: &Value, ledger: &mut Ledger, durable: u64) -> Result<(), String> {
        let mut window = sent.window;
        if self.shards == 1 {
            window.from = window.from.max(self.floor);
        }
        if reply.is_error() {
            self.refused += 1;
            self.full += u64::from(reply.show().starts_with("-OOM"));
        }
        let client = self.name;
        let what = || format!("client {client}: {:?} answered with {}", sent.command, reply.show());
        if let Command::Waitaof = sent.command {
            if reply.is_error() {
                return Ok(());
            }
            if reply.items().and_then(|items| items[0].integer()) != Some(1) {
                return Err(what());
            }
            let own = self.written[..sent.written].iter().filter_map(|token| ledger.lsn_of(*token));
            return ledger.promise(own.max().unwrap_or(0), durable, &what);
        }
        // What is not promised to stay may be told later.
        let shows = self.server_class != Durability::Always || sent.class == Durability::Always;
        let lsn = match ledger.explain(&sent.command, reply, window, shows) {
            Ok(lsn) => lsn,
            // It was not promised anything, and depends on what another shard has not handed over yet.
            Err(_) if sent.class != Durability::Always && ledger.is_behind() => return Ok(()),
            Err(why) => return Err(format!("client {client}: {why}")),
        };
        self.floor = self.floor.max(lsn);
        match sent.class {
            Durability::Always => ledger.promise(lsn, durable, &what),
            _ => Ok(()),
        }
    }

    /// A response over HTTP as the reply to the command would be.
    fn parse_http(&mut self) -> Result<Option<Value>, String> {
        let Some(end) = self.received.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
            return Ok(None);
        };
        let head = String::from_utf8_lossy(&self.received[..end]).to_string();
        let wrong = || format!("client {}: no response: {head}", self.name);
        let status: u16 = head.get(9..12).and_then(|text| text.parse().ok()).ok_or_else(wrong)?;
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
        });
        let length = if status == 204 { 0 } else { length.ok_or_else(wrong)? };
        let Some(body) = self.received.get(end + 4..end + 4 + length).map(<[u8]>::to_vec) else {
            return Ok(None);
        };
        self.received.drain(..end + 4 + length);
        let command = self.outstanding.front().map(|sent| &sent.command);
        let integer = |value: &[u8]| Value::Line(b':', value.to_vec());
        Ok(Some(match (status, command) {
            (200, Some(Command::Get(_))) => Value::Bytes(b'$', body),
            (404, Some(Command::Get(_))) => Value::Line(b'$', b"-1".to_vec()),
            (201 | 204, Some(Command::Set { .. })) => Value::Line(b'+', b"OK".to_vec()),
            (204, Some(Command::Del(_))) => integer(b"1"),
            (404, Some(Command::Del(_))) => integer(b"0"),
            (503, _) => {
                let is_full = body.windows(9).any(|word| word == b"maxmemory");
                let why: &[u8] = if is_full { b"OOM " } else { b"MISCONF " };
                Value::Line(b'-', [why, &body[..]].concat())
            }
            _ => return Err(wrong()),
        }))
    }

    fn draw_http(&mut self, tokens: &mut Tokens) -> Command {
        let key = *self.random.pick(&TEXTS);
        match self.random.below(10) {
            0..5 => {
                let text = tokens.text(&mut self.random, self.long_values);
                let px = self.random.chance(20).then(|| 1 + self.random.next_u64() % 3000);
                Command::Set { key, text, px, nx: false, get: false }
            }
            5..9 => Command::Get(key),
            _ => Command::Del(key),
        }
    }

    fn draw(&mut self, tokens: &mut Tokens) -> Command {
        match self.random.below(100) {
            0..2 => {
                let classes = [
                    None,
                    Some(Durability::Off),
                    Some(Durability::EverySecond),
                    Some(Durability::Always),
                    Some(Durability::Always),
                ];
                Command::Durability(*self.random.pick(&classes))
            }
            2..4 => Command::Waitaof,
            4..12 => {
                // The first writes, so that what was executed can be found.
                let mut commands = vec![self.draw_set(tokens)];
                for _ in 0..self.random.below(5) {
                    commands.push(self.draw_plain(tokens));
                }
                Command::Transaction(commands)
            }
            12 if self.random.chance(30) => Command::Flushall,
            13 => Command::Ping,
            14 => Command::AllKeys,
            _ => self.draw_plain(tokens),
        }
    }

    fn draw_set(&mut self, tokens: &mut Tokens) -> Command {
        let key = *self.random.pick(&TEXTS);
        let text = tokens.text(&mut self.random, self.long_values);
        Command::Set { key, text, px: None, nx: false, get: false }
    }

    fn draw_of_crowd(&mut self, tokens: &mut Tokens) -> Command {
        let first = self.random.below(CROWD.len());
        let keys = CROWD.iter().copied().cycle().skip(first);
        match self.random.below(10) {
            0..4 => {
                let keys = keys.take(4 + self.random.below(28));
                Command::Mset(keys.map(|key| (key, tokens.text(&mut self.random, false))).collect())
            }
            4 | 5 => Command::Mget(keys.take(2 + self.random.below(6)).collect()),
            6 => {
                let text = tokens.long_text(&mut self.random);
                Command::Set { key: CROWD[first], text, px: None, nx: false, get: false }
            }
            7 => {
                let text = tokens.text(&mut self.random, false);
                Command::Setex(CROWD[first], text, 1 + self.random.next_u64() % 3)
            }
            8 => Command::Del(CROWD[first]),
            _ => Command::Get(CROWD[first]),
        }
    }

    fn draw_plain(&mut self, tokens: &mut Tokens) -> Command {
        if self.is_crowded && self.random.chance(25) {
            return self.draw_of_crowd(tokens);
        }
        let key = *self.random.pick(&TEXTS);
        let counter = *self.random.pick(&COUNTERS);
        let any = if self.random.chance(20) { counter } else { key };
        match self.random.below(40) {
            0..8 => {
                let text = tokens.text(&mut self.random, self.long_values);
                let px = self.random.chance(20).then(|| 1 + self.random.next_u64() % 3000);
                Command::Set { key, text, px, nx: self.random.chance(15), get: self.random.chance(15) }
            }
            8..10 => {
                let text = tokens.text(&mut self.random, self.long_values);
                Command::Setex(key, text, 1 + self.random.next_u64() % 3)
            }
            10..13 => Command::Append(key, tokens.text(&mut self.random, false)),
            13..16 => {
                let first = self.random.below(TEXTS.len());
                let pairs = (0..1 + self.random.below(3))
                    .map(|at| (TEXTS[(first + at) % TEXTS.len()], tokens.text(&mut self.random, false)));
                Command::Mset(pairs.collect())
            }
            16..20 => Command::Incrby(counter, 1 + self.random.next_u64() as u32 / 2),
            20..22 => Command::Del(any),
            22 => Command::Getdel(any),
            23 | 24 => Command::Pexpire(any, 1 + self.random.next_u64() % 3000),
            25 => Command::Persist(any),
            26 => Command::Strlen(any),
            27 => Command::Exists(any),
            28 => Command::ExpireTime(any),
            29..32 => {
                let first = self.random.below(TEXTS.len());
                let keys = (0..2 + self.random.below(3)).map(|at| TEXTS[(first + at) % TEXTS.len()]);
                Command::Mget(keys.collect())
            }
            _ => Command::Get(any),
        }
    }
}
