//! Random clients over several shards whose caches must be true.
//!
//! [`caches_stay_true`] is the property: a client that applies every invalidation in the order in which it receives it
//! holds nothing that is not so, whenever everything on its way has arrived. Clients of every mode, on every shard, read
//! and write pipelines of one, several and transactions; keys expire and are evicted, the table is too small, clients
//! and those they redirect to leave, and with a log writes become durable when each shard hears of it.

use super::*;
use alloc::collections::{BTreeMap, BTreeSet};

/// A reply or push, as far as a cache has to understand it.
#[derive(Clone, Debug, PartialEq)]
enum Value {
    Null,
    /// Refused for want of memory.
    Error,
    Text(Vec<u8>),
    Items(Vec<Value>),
    Push(Vec<Value>),
}

fn parse(bytes: &[u8]) -> Option<(Value, usize)> {
    let end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
    let (line, mut at) = (&bytes[1..end], end + 2);
    let number = || core::str::from_utf8(line).unwrap().parse::<i64>().unwrap();
    Some(match bytes[0] {
        b'-' => (Value::Error, at),
        b'+' | b':' => (Value::Text(line.to_vec()), at),
        b'_' => (Value::Null, at),
        b'$' | b'*' if number() < 0 => (Value::Null, at),
        b'$' | b'=' => {
            let length = number() as usize;
            (Value::Text(bytes.get(at..at + length)?.to_vec()), at + length + 2)
        }
        kind @ (b'*' | b'~' | b'>' | b'%') => {
            let count = number() as usize * if kind == b'%' { 2 } else { 1 };
            let mut items = Vec::new();
            for _ in 0..count {
                let (item, used) = parse(&bytes[at..])?;
                items.push(item);
                at += used;
            }
            (if kind == b'>' { Value::Push(items) } else { Value::Items(items) }, at)
        }
        other => panic!("no reply begins with {:?}", other as char),
    })
}

/// What a reply that is awaited means.
#[derive(Clone, Debug)]
enum Awaited {
    Nothing,
    /// These keys, one after the other, in an array if there are several. Kept unless an invalidation came meanwhile.
    Values(Vec<(String, bool)>),
    /// The same behind replies of MULTI and QUEUED.
    Executed(Vec<(String, bool)>),
    /// This client changed these keys: with NOLOOP nobody else will tell it.
    Changed(Vec<String>),
}

/// A client with a cache.
struct Cache {
    client: usize,
    /// Who is told in its place.
    listener: Option<usize>,
    mode: &'static str,
    prefix: &'static str,
    no_loop: bool,
    values: BTreeMap<String, Value>,
    awaited: VecDeque<Awaited>,
    /// It lost the connection that is told in its place, or its own: it must not trust its cache.
    is_over: bool,
    hits: usize,
    pushes: usize,
}

impl Cache {
    fn invalidate(&mut self, key: Option<&[u8]>) {
        self.pushes += 1;
        let concerns = |name: &str| key.is_none_or(|key| name.as_bytes() == key);
        self.values.retain(|name, _| !concerns(name));
        if self.listener.is_some() {
            // What is being read may come on the other connection only after this: it must not be kept.
            for awaited in &mut self.awaited {
                if let Awaited::Values(keys) | Awaited::Executed(keys) = awaited {
                    keys.iter_mut().filter(|(name, _)| concerns(name)).for_each(|(_, keeps)| *keeps = false);
                }
            }
        }
    }

    fn invalidate_all_of(&mut self, keys: &Value) {
        match keys {
            Value::Items(keys) => {
                assert_eq!(keys.len(), 1, "one key each");
                let Value::Text(key) = &keys[0] else { panic!("{keys:?}") };
                self.invalidate(Some(key));
            }
            Value::Null => self.invalidate(None),
            other => panic!("{other:?}"),
        }
    }

    /// Bytes of its own connection.
    fn process(&mut self, bytes: &mut Vec<u8>) {
        while let Some((value, used)) = parse(bytes) {
            bytes.drain(..used);
            match value {
                Value::Push(items) if items[0] == Value::Text(b"invalidate".to_vec()) => {
                    self.invalidate_all_of(&items[1]);
                }
                Value::Push(items) => {
                    assert_eq!(items[0], Value::Text(b"tracking-redir-broken".to_vec()));
                    self.is_over = true;
                }
                reply => self.take_reply(reply),
            }
        }
    }

    fn take_reply(&mut self, reply: Value) {
        match self.awaited.pop_front().unwrap_or_else(|| panic!("nobody asked for {reply:?}")) {
            Awaited::Nothing => {}
            Awaited::Values(_) | Awaited::Executed(_) if reply == Value::Error => {}
            Awaited::Changed(keys) if self.no_loop => {
                keys.iter().for_each(|key| {
                    self.values.remove(key);
                });
            }
            Awaited::Changed(_) => {}
            Awaited::Values(keys) | Awaited::Executed(keys) => {
                let values = match reply {
                    Value::Items(values) => values,
                    value => Vec::from([value]),
                };
                assert_eq!(values.len(), keys.len());
                for ((key, keeps), value) in keys.into_iter().zip(values) {
                    if keeps {
                        self.values.insert(key, value);
                    }
                }
            }
        }
    }

    /// Bytes of the connection that is told in its place.
    fn process_messages(&mut self, bytes: &mut Vec<u8>) {
        while let Some((value, used)) = parse(bytes) {
            bytes.drain(..used);
            match value {
                Value::Push(items) => self.invalidate_all_of(&items[1]),
                Value::Items(items) if items[0] == Value::Text(b"message".to_vec()) => {
                    self.invalidate_all_of(&items[2]);
                }
                _ => {}
            }
        }
    }
}

const KEYS: usize = 14;

fn key(random: &mut Random) -> String {
    format!("{}{}", ["a:", "b:", "c:"][random.below(3)], random.below(KEYS / 3 + 1))
}

struct World {
    server: Server,
    random: Random,
    caches: Vec<Cache>,
    writers: Vec<usize>,
    next_value: u64,
    /// Comparisons of a cached value with what is so.
    compared: usize,
    seed: u64,
}

impl World {
    fn new(seed: u64) -> World {
        let mut random = Random(seed);
        let shards = 1 + random.below(4);
        let pairs_max = random.pick(&["1000000", "12", "30"]);
        let mut server = Server::new(shards, &[("tracking-table-max-pairs", pairs_max)]);
        if random.below(2) == 0 {
            server.keep_log();
        }
        server.order = Some(Random(random.next()));
        let writers = (0..3).map(|at| server.connect(at % shards)).collect();
        World { server, random, caches: Vec::new(), writers, next_value: 0, compared: 0, seed }
    }

    fn connect(&mut self) -> usize {
        let shard = self.random.below(self.server.engines.len());
        self.server.come_home(shard);
        self.server.connect(shard)
    }

    /// A tracker of some kind connects, all that it says first is answered.
    fn add_cache(&mut self) {
        let client = self.connect();
        let mode = self.random.pick(&["", "", "OPTIN", "OPTOUT", "BCAST"]);
        let mode = ["", "OPTIN", "OPTOUT", "BCAST"].into_iter().find(|known| *known == mode).unwrap();
        let prefix = if mode == "BCAST" { ["", "a:", "b:"][self.random.below(3)] } else { "" };
        let no_loop = self.random.below(3) == 0;
        let mut options = String::from(mode);
        if !prefix.is_empty() {
            options.push_str(&format!(" PREFIX {prefix}"));
        }
        if no_loop {
            options.push_str(" NOLOOP");
        }
        let mut listener = None;
        if self.random.below(3) == 0 {
            let other = self.connect();
            let hello = self.random.pick(&["HELLO 3\r\n", "SUBSCRIBE __redis__:invalidate\r\n"]);
            let id = field(&self.server.say(other, "CLIENT INFO\r\n"), "id");
            self.server.say(other, hello);
            options.push_str(&format!(" REDIRECT {id}"));
            listener = Some(other);
        }
        let hello = if listener.is_some() && self.random.below(2) == 0 { "HELLO 2" } else { "HELLO 3" };
        let answer = self.server.say(client, format!("{hello}\r\nCLIENT TRACKING ON {options}\r\n"));
        // It may hear of keys at once.
        assert!(answer.contains("+OK\r\n"), "{options}: {answer}, seed {}", self.seed);
        self.caches.push(Cache {
            client,
            listener,
            mode,
            prefix,
            no_loop,
            values: BTreeMap::new(),
            awaited: VecDeque::new(),
            is_over: false,
            hits: 0,
            pushes: 0,
        });
    }

    /// A pipeline of a tracker: reads, and writes of its own.
    fn ask(&mut self, at: usize) {
        let mut bytes = Vec::new();
        for _ in 0..1 + self.random.below(4) {
            let cache = &mut self.caches[at];
            if self.random.below(5) == 0 {
                self.next_value += 1;
                let (one, two, value) = (key(&mut self.random), key(&mut self.random), self.next_value);
                let (line, changed) = match self.random.below(3) {
                    0 => (format!("MSET {one} {value} {two} {value}"), [one, two].to_vec()),
                    1 => (format!("DEL {one} {two}"), [one, two].to_vec()),
                    _ => (format!("SET {one} {value}"), [one].to_vec()),
                };
                bytes.extend(lines(&[&line]));
                cache.awaited.push_back(Awaited::Changed(changed));
                continue;
            }
            // Whether it says something about the next command, and whether that is then kept.
            let says = self.random.below(2) == 0;
            let keeps = match cache.mode {
                "OPTIN" if says => {
                    bytes.extend(lines(&["CLIENT CACHING YES"]));
                    cache.awaited.push_back(Awaited::Nothing);
                    true
                }
                "OPTIN" => false,
                "OPTOUT" if says => {
                    bytes.extend(lines(&["CLIENT CACHING NO"]));
                    cache.awaited.push_back(Awaited::Nothing);
                    false
                }
                _ => true,
            };
            let count = 1 + self.random.below(3);
            let keys: Vec<String> = (0..count).map(|_| key(&mut self.random)).collect();
            let kept = |key: &String| (key.clone(), keeps && key.starts_with(cache.prefix));
            let awaited: Vec<(String, bool)> = keys.iter().map(kept).collect();
            match self.random.below(3) {
                0 => {
                    bytes.extend(lines(&["MULTI"]));
                    keys.iter().for_each(|key| bytes.extend(lines(&[&format!("GET {key}")])));
                    bytes.extend(lines(&["EXEC"]));
                    cache.awaited.extend((0..=count).map(|_| Awaited::Nothing));
                    cache.awaited.push_back(Awaited::Executed(awaited));
                }
                1 => {
                    bytes.extend(lines(&[&format!("MGET {}", keys.join(" "))]));
                    cache.awaited.push_back(Awaited::Values(awaited));
                }
                _ => {
                    bytes.extend(lines(&[&format!("GET {}", keys[0])]));
                    cache.awaited.push_back(Awaited::Values(awaited[..1].to_vec()));
                }
            }
        }
        let client = self.caches[at].client;
        self.server.send(client, &bytes);
    }

    fn write(&mut self) {
        let writer = self.writers[self.random.below(self.writers.len())];
        self.next_value += 1;
        let (one, two, value) = (key(&mut self.random), key(&mut self.random), self.next_value);
        let line = match self.random.below(40) {
            0..12 => format!("SET {one} {value}"),
            12..17 => format!("SET {one} {value} PX {}", 1 + self.random.below(40)),
            17..20 => format!("DEL {one} {two}"),
            20..23 => format!("RENAME {one} {two}"),
            23..27 => format!("MSET {one} {value} {two} {value}"),
            27..30 => format!("MULTI\r\nSET {one} {value}\r\nAPPEND {two} x\r\nEXEC"),
            30..32 => format!("PEXPIRE {one} {}", 1 + self.random.below(40)),
            32..34 => format!("GETDEL {one}"),
            34..36 => format!("COPY {one} {two} REPLACE"),
            36 => "FLUSHALL".into(),
            // All of it goes to make room that is never enough.
            37 => {
                "CONFIG SET maxmemory-policy allkeys-random maxmemory 1\r\nSET x 1\r\nCONFIG SET maxmemory 0"
                    .into()
            }
            _ => format!("GET {one}\r\nRANDOMKEY"),
        };
        self.server.send(writer, &lines(&[&line]));
    }

    /// What has arrived is processed, of two connections in any order.
    fn process(&mut self) {
        for cache in &mut self.caches {
            let first = self.random.below(2) == 0;
            for own in [first, !first] {
                match (own, cache.listener) {
                    (true, _) => cache.process(&mut self.server.clients[cache.client].received),
                    (false, Some(listener)) => {
                        cache.process_messages(&mut self.server.clients[listener].received);
                        cache.is_over |= self.server.clients[listener].closed;
                    }
                    _ => {}
                }
            }
            cache.is_over |= self.server.clients[cache.client].closed;
        }
    }

    fn leave(&mut self) {
        if self.caches.is_empty() {
            return;
        }
        let at = self.random.below(self.caches.len());
        let Cache { client, listener, .. } = self.caches[at];
        let gone = listener.filter(|_| self.random.below(2) == 0).unwrap_or(client);
        self.server.come_home(self.server.clients[gone].shard);
        self.server.disconnect(gone);
        if gone == client {
            self.caches.swap_remove(at);
        }
    }

    /// Everything arrives; then every cache holds only what is so.
    fn check(&mut self) {
        self.server.run();
        self.process();
        let names: BTreeSet<String> =
            (0..=KEYS / 3).flat_map(|at| ["a:", "b:", "c:"].map(|prefix| format!("{prefix}{at}"))).collect();
        let mut truth = BTreeMap::new();
        let asker = self.writers[0];
        self.server.take(asker);
        for name in &names {
            let reply = self.server.say(asker, format!("GET {name}\r\n"));
            truth.insert(name.clone(), parse(reply.as_bytes()).unwrap().0);
        }
        // What looking found to be expired is told, too.
        self.server.run();
        self.process();
        let seed = self.seed;
        for cache in self.caches.iter_mut().filter(|cache| !cache.is_over) {
            assert!(cache.awaited.is_empty(), "unanswered, seed {seed}: {:?}", cache.awaited);
            for (name, value) in &cache.values {
                let (mode, no_loop, client) = (cache.mode, cache.no_loop, cache.client);
                assert_eq!(
                    value, &truth[name],
                    "client {client} ({mode} prefix {:?}, noloop {no_loop}, redirect {:?}) holds an old {name}, seed {seed}",
                    cache.prefix, cache.listener
                );
                cache.hits += 1;
                self.compared += 1;
            }
        }
        let pairs: usize = self
            .server
            .engines
            .iter()
            .filter_map(|engine| engine.shared().keyspace.tracked())
            .map(|t| t.pairs())
            .sum();
        let max = self.server.shared(0).config.tracking_table_max_pairs as usize;
        assert!(pairs <= max + self.server.engines.len(), "{pairs} pairs, seed {seed}");
    }
}

/// See the module.
fn play(seed: u64) -> (usize, usize) {
    let mut world = World::new(seed);
    (0..5).for_each(|_| world.add_cache());
    for step in 0..400 {
        match world.random.below(40) {
            0..16 if !world.caches.is_empty() => {
                let at = world.random.below(world.caches.len());
                if !world.caches[at].is_over {
                    world.ask(at);
                }
            }
            16..30 => world.write(),
            30..37 => {
                for _ in 0..world.random.below(6) {
                    world.server.round();
                }
                world.process();
            }
            37 => {
                let ms = world.random.below(30) as u64;
                world.server.now.monotonic.0 += ms * 1_000_000;
                world.server.now.unix_us += ms * 1000;
            }
            38 if world.random.below(4) == 0 => world.leave(),
            39 if world.caches.len() < 8 => world.add_cache(),
            _ => {}
        }
        if step % 40 == 39 {
            world.check();
        }
    }
    let pushes = world.caches.iter().map(|cache| cache.pushes).sum();
    for at in 0..world.server.clients.len() {
        world.server.come_home(world.server.clients[at].shard);
        world.server.disconnect(at);
    }
    world.server.run();
    for engine in &world.server.engines {
        assert!(engine.shared().keyspace.tracked().is_none(), "a table is kept for nobody, seed {seed}");
        assert_eq!(engine.unfinished(), None, "seed {seed}");
    }
    (world.compared, pushes)
}

#[test]
fn caches_stay_true() {
    let runs = std::env::var("MILLRACE_TRACKING_RUNS").map_or(150, |runs| runs.parse().unwrap());
    let first: u64 = std::env::var("SEED").map_or(1, |seed| seed.parse().unwrap());
    let (mut compared, mut pushes) = (0, 0);
    for seed in first..first + runs {
        let run = play(seed);
        compared += run.0;
        pushes += run.1;
    }
    println!("{runs} runs from seed {first}: {compared} cached values compared, {pushes} invalidations");
    assert!(compared > runs as usize * 20 && pushes > runs as usize * 20, "{compared} {pushes}");
}
