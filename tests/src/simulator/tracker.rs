//! A simulated client's cache, kept true by client tracking: what it asks for, what it keeps, and what it is told.
//!
//! The client applies every invalidation in the order in which its connection brings them, and keeps what it reads. The
//! ledger knows which versions of which keys anybody had been shown when it sent a command ([`Point`]); when the answer
//! is there, nothing may be left in the cache that is older than these. A client that lets another connection be told
//! in its place has no order to rely on: its cache is looked at when nothing is on its way any more. And who hears
//! of every key may not be told more often than it was changed durably: an invalidation that comes early shows
//! what a crash could take back.

use super::client::all_keys;
use super::command::{Command, Key};
use super::ledger::{Ledger, Point};
use super::net::{Net, WireId};
use super::server::RESP_LISTENER;
use crate::oracle::value::{Unparsed, Value};
use crate::random::Random;
use std::collections::BTreeMap;

/// Which keys it asks to hear of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Reads,
    OptIn,
    OptOut,
    Broadcast,
}

/// The connection that is told in its place.
#[derive(Debug)]
struct Listener {
    wire: WireId,
    received: Vec<u8>,
    id: Option<i64>,
    /// Both its first commands are answered.
    is_ready: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Tracker {
    mode: Mode,
    no_loop: bool,
    prefix: &'static str,
    listener: Option<Listener>,
    /// Its own connection speaks RESP3.
    is_resp3: bool,
    /// What it asks for was asked for.
    has_begun: bool,
    /// It cannot rely on being told any more.
    is_over: bool,
    values: BTreeMap<Key, Option<Vec<u8>>>,
    /// What was durable when it asked, and how often it was told of each key since.
    begun_at: u64,
    told: BTreeMap<Key, usize>,
    /// Invalidations that it got.
    pub pushes: u64,
    /// Values that were held against the ledger.
    pub compared: u64,
}

fn named(key: &[u8]) -> Option<Key> {
    all_keys().find(|known| *known == key)
}

impl Tracker {
    /// What a client asks for on a new connection.
    pub fn new(random: &mut Random, net: &mut Net, shards: usize, now: u64) -> Tracker {
        let mode = *random.pick(&[Mode::Reads, Mode::Reads, Mode::OptIn, Mode::OptOut, Mode::Broadcast]);
        let prefix = if mode == Mode::Broadcast { *random.pick(&["", "k", "n", "k1"]) } else { "" };
        let listener = random.chance(25).then(|| {
            let wire = net.connect(random.below(shards), RESP_LISTENER, now);
            let second = *random.pick(&["HELLO 3\r\n", "SUBSCRIBE __redis__:invalidate\r\n"]);
            net.send(wire, format!("CLIENT ID\r\n{second}").as_bytes(), now);
            Listener { wire, received: Vec::new(), id: None, is_ready: false }
        });
        Tracker {
            mode,
            no_loop: random.chance(30),
            prefix,
            is_resp3: listener.is_none() || random.chance(50),
            listener,
            has_begun: false,
            is_over: false,
            values: BTreeMap::new(),
            begun_at: 0,
            told: BTreeMap::new(),
            pushes: 0,
            compared: 0,
        }
    }

    /// What it says before anything else, once it can; `None`: it has, or cannot yet. `durable` is what is by now.
    pub fn begin(&mut self, durable: u64) -> Option<Vec<u8>> {
        if self.has_begun || self.listener.as_ref().is_some_and(|listener| !listener.is_ready) {
            return None;
        }
        self.has_begun = true;
        self.begun_at = durable;
        let mut line = format!("HELLO {}\r\nCLIENT TRACKING ON", if self.is_resp3 { 3 } else { 2 });
        line += match self.mode {
            Mode::Reads => "",
            Mode::OptIn => " OPTIN",
            Mode::OptOut => " OPTOUT",
            Mode::Broadcast => " BCAST",
        };
        if !self.prefix.is_empty() {
            line += &format!(" PREFIX {}", self.prefix);
        }
        if self.no_loop {
            line += " NOLOOP";
        }
        if let Some(id) = self.listener.as_ref().and_then(|listener| listener.id) {
            line += &format!(" REDIRECT {id}");
        }
        Some((line + "\r\n").into_bytes())
    }

    /// Replies to what [`begin`](Self::begin) says.
    pub const BEGINNING: usize = 2;

    /// It asks for nothing before this.
    pub fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// It was refused, or is not told any more.
    pub fn end(&mut self) {
        self.is_over = true;
        self.values.clear();
    }

    /// What it says before a command about whether to keep what that reads, and whether it then may.
    pub fn announce(&mut self, random: &mut Random) -> (Option<&'static str>, bool) {
        match self.mode {
            Mode::Reads | Mode::Broadcast => (None, true),
            Mode::OptIn if random.chance(60) => (Some("CLIENT CACHING YES\r\n"), true),
            Mode::OptIn => (None, false),
            Mode::OptOut if random.chance(40) => (Some("CLIENT CACHING NO\r\n"), false),
            Mode::OptOut => (None, true),
        }
    }

    /// When the other connection has something for it.
    pub fn due(&self, net: &Net) -> Option<u64> {
        let wire = self.listener.as_ref().filter(|_| !self.is_over)?.wire;
        let ended = net.has_ended(wire).then_some(0);
        [net.readable_at(wire), ended].into_iter().flatten().min()
    }

    /// Reads what the other connection has brought: keys that were told, `None` for all.
    pub fn hear(&mut self, net: &mut Net, now: u64) -> Result<Vec<Option<Key>>, String> {
        let mut told: Vec<Value> = Vec::new();
        let Some(listener) = &mut self.listener else { return Ok(Vec::new()) };
        while let Some((bytes, _)) = net.read(listener.wire, now) {
            listener.received.extend_from_slice(&bytes);
        }
        loop {
            let (value, used) = match Value::parse(&listener.received) {
                Ok(parsed) => parsed,
                Err(Unparsed::Incomplete) => break,
                Err(Unparsed::Malformed) => return Err(format!("no message: {:?}", listener.received)),
            };
            listener.received.drain(..used);
            let items = value.items().unwrap_or_default();
            match (items.first().and_then(Value::bytes), items) {
                (Some(b"message"), [_, _, body]) => told.push(body.clone()),
                (Some(b"invalidate"), [_, body]) => told.push(body.clone()),
                _ if listener.id.is_none() => listener.id = value.integer(),
                _ => listener.is_ready = true,
            }
        }
        if net.has_ended(listener.wire) {
            self.end();
        }
        told.iter().map(|body| self.apply(body)).collect()
    }

    /// The other connection ends.
    pub fn drop_listener(&self, net: &mut Net, now: u64) {
        if let Some(listener) = &self.listener {
            net.end(listener.wire, false, now);
        }
    }

    /// A push on its own connection; `durable` is what was when it was handed over.
    pub fn take_push(
        &mut self,
        items: &[Value],
        ledger: &Ledger,
        durable: Option<u64>,
    ) -> Result<(), String> {
        match (items[0].bytes(), items.get(1)) {
            (Some(b"invalidate"), Some(body)) => {
                let key = self.apply(body)?;
                let told = key.map_or(0, |key| self.told.get(key).copied().unwrap_or(0));
                match (key, durable) {
                    (Some(key), Some(durable)) if self.mode == Mode::Broadcast && !self.no_loop => {
                        ledger.check_told(key, told, self.begun_at, durable)
                    }
                    _ => Ok(()),
                }
            }
            (Some(b"tracking-redir-broken"), _) => {
                self.end();
                Ok(())
            }
            _ => Err(format!("{items:?} is no push it asked for")),
        }
    }

    fn apply(&mut self, body: &Value) -> Result<Option<Key>, String> {
        self.pushes += 1;
        let Some(keys) = body.items() else {
            self.values.clear();
            return Ok(None);
        };
        let [Value::Bytes(_, key)] = keys else { return Err(format!("{keys:?} is not one key")) };
        let Some(key) = named(key) else { return Err(format!("{key:?} was never written")) };
        self.values.remove(key);
        *self.told.entry(key).or_default() += 1;
        Ok(Some(key))
    }

    /// A command is answered: what was read is kept, but for `stale` keys; what it changed itself nobody else tells it.
    pub fn absorb(&mut self, command: &Command, reply: &Value, keeps: bool, stale: &[Key]) {
        if reply.is_error() || self.is_over || !self.has_begun {
            return;
        }
        let mut keep = |key: Key, value: &Value| {
            if keeps && !stale.contains(&key) && key.starts_with(self.prefix.as_bytes()) {
                self.values.insert(key, value.bytes().filter(|_| !value.is_null()).map(<[u8]>::to_vec));
            } else {
                // It was read and not kept: an older one is of no use.
                self.values.remove(key);
            }
        };
        match command {
            Command::Get(key) => keep(key, reply),
            Command::Mget(keys) => {
                let values = reply.items().unwrap_or_default();
                keys.iter().zip(values).for_each(|(key, value)| keep(key, value));
            }
            Command::Transaction(commands) => {
                let replies = reply.items().unwrap_or_default();
                // What it has written itself may have changed again before anybody could see it.
                let written = commands.iter().filter(|command| command.writes()).flat_map(Command::keys);
                let written = written.filter_map(named).chain(stale.iter().copied());
                let stale: Vec<Key> =
                    match commands.iter().any(|command| matches!(command, Command::Flushall)) {
                        true => all_keys().collect(),
                        false => written.collect(),
                    };
                let pairs = commands.iter().zip(replies);
                pairs.for_each(|(command, reply)| self.absorb(command, reply, keeps, &stale));
            }
            other if self.no_loop && other.writes() => {
                other.keys().into_iter().filter_map(named).for_each(|key| {
                    self.values.remove(key);
                });
            }
            _ => {}
        }
    }

    /// Nothing in the cache may be older than what anybody had been shown. `is_late`: nothing is on its way any more.
    pub fn check(&mut self, ledger: &Ledger, point: &Point, is_late: bool) -> Result<(), String> {
        if self.is_over || (self.listener.is_some() && !is_late) {
            return Ok(());
        }
        for (key, value) in &self.values {
            self.compared += 1;
            ledger.check_cached(key, value.as_deref(), point).map_err(|why| {
                let (mode, prefix, no_loop) = (self.mode, self.prefix, self.no_loop);
                let redirects = self.listener.is_some();
                format!(
                    "a cache ({mode:?}, prefix {prefix:?}, noloop {no_loop}, redirect {redirects}): {why}"
                )
            })?;
        }
        Ok(())
    }
}
