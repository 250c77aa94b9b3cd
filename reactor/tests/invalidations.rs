//! `GET /v1/invalidations` over real sockets, on both drivers and over shards: streams of all keys, of a prefix, of a
//! token; coming back; and a cache that is kept true with nothing else. What each event says in every case is the
//! business of `store/src/shards/tests/streams.rs`.

#[allow(dead_code, reason = "other tests use the rest of it")]
mod harness;

use std::collections::{BTreeSet, HashMap};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use harness::{Random, Server, seed};

/// Both drivers, each with one, two and four shards; see `http_end_to_end.rs`.
fn servers() -> impl Iterator<Item = (&'static str, &'static str)> {
    let without = std::env::var_os("MILLRACE_WITHOUT_IO_URING").is_some();
    let drivers = ["io_uring", "epoll"].into_iter().filter(move |&io| io == "epoll" || !without);
    drivers.flat_map(|io| ["1", "2", "4"].map(|shards| (io, shards)))
}

/// As many keys as make sure that each of four shards has some.
fn keys(name: &str) -> Vec<String> {
    (0..16).map(|number| format!("{name}:{number}")).collect()
}

struct Http(BufReader<TcpStream>);

/// Status, fields and body.
struct Answer {
    status: u16,
    fields: HashMap<String, String>,
    body: Vec<u8>,
}

impl Http {
    fn connect(server: &Server) -> Http {
        Http(BufReader::new(server.http().stream))
    }

    fn line(&mut self, end: &str) -> String {
        let mut line = String::new();
        assert_ne!(self.0.read_line(&mut line).expect("a line"), 0, "the server closed the connection");
        line.strip_suffix(end).unwrap_or_else(|| panic!("{line:?}")).to_string()
    }

    fn head(&mut self) -> (u16, HashMap<String, String>) {
        let status = self.line("\r\n")[9..12].parse().expect("a status");
        let mut fields = HashMap::new();
        loop {
            let line = self.line("\r\n");
            let Some((name, value)) = line.split_once(": ") else {
                assert_eq!(line, "");
                return (status, fields);
            };
            fields.insert(name.to_string(), value.to_string());
        }
    }

    fn ask(&mut self, request: &str, fields: &str) -> Answer {
        self.ask_with(request, fields, "")
    }

    fn ask_with(&mut self, request: &str, fields: &str, body: &str) -> Answer {
        let length =
            if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        let request = format!("{request} HTTP/1.1\r\nHost: localhost\r\n{length}{fields}\r\n{body}");
        self.0.get_mut().write_all(request.as_bytes()).expect("the server takes it");
        let (status, fields) = self.head();
        let length = fields.get("Content-Length").map_or(0, |text| text.parse().expect("a length"));
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).expect("a body");
        Answer { status, fields, body }
    }

    fn put(&mut self, key: &str, value: &str) {
        let answer = self.ask_with(&format!("PUT /v1/keys/{key}"), "", value);
        assert!(matches!(answer.status, 201 | 204), "PUT {key}: {}", answer.status);
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Event {
    kind: String,
    id: String,
    data: String,
}

struct Stream(Http);

impl Stream {
    /// Opens a stream and returns its first event, too.
    fn open(server: &Server, query: &str, last_id: Option<&str>) -> (Stream, Event) {
        let mut http = Http::connect(server);
        let last_id = last_id.map_or(String::new(), |id| format!("Last-Event-ID: {id}\r\n"));
        let request = format!("GET /v1/invalidations{query} HTTP/1.1\r\nHost: localhost\r\n{last_id}\r\n");
        http.0.get_mut().write_all(request.as_bytes()).expect("the server takes it");
        let (status, fields) = http.head();
        assert_eq!((status, &*fields["Content-Type"]), (200, "text/event-stream"));
        assert_eq!(fields["Cache-Control"], "no-store");
        assert_eq!((http.line("\n"), http.line("\n")), ("retry: 1000".into(), String::new()));
        let mut stream = Stream(http);
        let first = stream.next();
        (stream, first)
    }

    fn next(&mut self) -> Event {
        // Signs of life keep the connection from timing out.
        let end = Instant::now() + Duration::from_secs(20);
        let mut line = self.0.line("\n");
        while line.is_empty() || line.starts_with(':') {
            assert!(Instant::now() < end, "no event came, only signs of life");
            line = self.0.line("\n");
        }
        let of = |line: String, name: &str| {
            line.strip_prefix(name).unwrap_or_else(|| panic!("{line:?} is not {name:?}")).to_string()
        };
        let kind = of(line, "event: ");
        let event = Event { kind, id: of(self.0.line("\n"), "id: "), data: of(self.0.line("\n"), "data: ") };
        assert_eq!(self.0.line("\n"), "");
        event
    }

    /// The next events are invalidations of exactly these keys. Those of several shards come in any order.
    fn expect(&mut self, keys: &[String]) -> Vec<Event> {
        let events: Vec<Event> = keys.iter().map(|_| self.next()).collect();
        assert!(events.iter().all(|event| event.kind == "invalidate"), "{events:?}");
        let seen: BTreeSet<String> = events.iter().map(|event| event.data.replace("%3A", ":")).collect();
        assert_eq!(seen, keys.iter().cloned().collect(), "{events:?}");
        events
    }
}

#[test]
fn streams_of_all_keys_of_a_prefix_and_of_a_token() {
    for (io, shards) in servers() {
        let server = Server::start(io, &["--shards", shards]);
        let mut writer = server.client();
        let mut reader = Http::connect(&server);
        let refused = reader.ask("GET /v1/keys/user:1", "X-Millrace-Token: mine\r\n");
        assert_eq!(refused.status, 409, "a token without a stream would never be told of anything");
        let (mut all, first) = Stream::open(&server, "", None);
        assert_eq!((&*first.kind, &*first.data), ("ready", "*"));
        let (mut users, _) = Stream::open(&server, "?prefix=user%3A", None);
        let (mut mine, _) = Stream::open(&server, "?token=mine", None);

        let (users_keys, others) = (keys("user"), keys("other"));
        // Of these, the token has read every other one.
        let read: Vec<String> = users_keys.iter().chain(&others).step_by(2).cloned().collect();
        for key in &read {
            assert_eq!(reader.ask(&format!("GET /v1/keys/{key}"), "X-Millrace-Token: mine\r\n").status, 404);
        }
        for key in others.iter().chain(&users_keys) {
            writer.set(key.as_bytes(), b"1");
        }
        let both: Vec<String> = users_keys.iter().chain(&others).cloned().collect();
        all.expect(&both);
        users.expect(&users_keys);
        mine.expect(&read);

        // Once told, a token hears of a key when it has read it again; the others hear every time, whatever happens.
        reader.ask("GET /v1/keys/user:3", "X-Millrace-Token: mine\r\n");
        for (number, key) in users_keys.iter().enumerate() {
            match number % 4 {
                0 => writer.send_command(&[b"DEL", key.as_bytes()]),
                1 => writer.send_command(&[b"EXPIRE", key.as_bytes(), b"1000"]),
                2 => writer.send_command(&[b"PEXPIRE", key.as_bytes(), b"1"]),
                _ => writer.send_command(&[b"INCR", key.as_bytes()]),
            }
            writer.expect(if number % 4 == 3 { b":2\r\n" } else { b":1\r\n" });
        }
        // PEXPIRE is a change, and so is the end it brings, which comes a little later.
        let expiring: Vec<&String> = users_keys.iter().skip(2).step_by(4).collect();
        for stream in [&mut all, &mut users] {
            let mut counts = HashMap::new();
            for _ in 0..users_keys.len() + expiring.len() {
                *counts.entry(stream.next().data.replace("%3A", ":")).or_insert(0) += 1;
            }
            for key in &users_keys {
                assert_eq!(counts.get(key), Some(if expiring.contains(&key) { &2 } else { &1 }), "{key}");
            }
        }
        mine.expect(&["user:3".to_string()]);
        writer.send_command(&[b"FLUSHALL"]);
        writer.expect(b"+OK\r\n");
        for stream in [&mut all, &mut users, &mut mine] {
            let flush = stream.next();
            assert_eq!((&*flush.kind, &*flush.data), ("flush", "*"));
        }
        assert_eq!(writer.info_of("http", "invalidation_streams"), 3);
        drop((all, users, mine));
        server.connected_clients_become(&mut writer, 2);
        assert_eq!(writer.info_of("http", "invalidation_streams"), 0);
        server.stop();
    }
}

#[test]
fn who_comes_back_is_told_what_it_missed_or_that_it_cannot_be() {
    for (io, shards) in servers() {
        let server = Server::start(io, &["--shards", shards, "--invalidation-backlog", "16kb"]);
        let mut writer = server.client();
        let mut write = |names: &[String]| names.iter().for_each(|key| writer.set(key.as_bytes(), b"1"));
        let (mut stream, first) = Stream::open(&server, "", None);
        write(&keys("seen"));
        let seen = stream.expect(&keys("seen"));
        let mut last = seen.last().expect("events").id.clone();
        drop(stream);
        // Whichever shard the kernel gives the new connections to.
        for _ in 0..4 {
            write(&keys("missed"));
            let (mut stream, first) = Stream::open(&server, "", Some(&last));
            assert_eq!((&*first.kind, &*first.id), ("resumed", &*last));
            let missed = stream.expect(&keys("missed"));
            // From the middle of what was missed: nothing twice, nothing left out.
            let (mut rest, _) = Stream::open(&server, "", Some(&missed[9].id));
            let unseen: Vec<String> =
                missed[10..].iter().map(|event| event.data.replace("%3A", ":")).collect();
            rest.expect(&unseen);
            // And both go on with what comes, each once.
            write(&keys("later"));
            let later = stream.expect(&keys("later"));
            rest.expect(&keys("later"));
            let (mut users, _) = Stream::open(&server, "?prefix=missed%3A1", Some(&last));
            let ones: Vec<String> =
                keys("missed").into_iter().filter(|key| key.starts_with("missed:1")).collect();
            users.expect(&ones);
            last = later.last().expect("events").id.clone();
        }
        // Ids that are no ids, and those of another server.
        for strange in ["x", "0-0", "00000000-1.1.1.1"] {
            assert_eq!(Stream::open(&server, "", Some(strange)).1.kind, "flush", "{strange}");
        }
        // 16 KiB hold some 300 such changes on a shard.
        (0..2000).map(|number| format!("many:{number}")).for_each(|key| write(&[key]));
        for late in [&first.id, &last] {
            let (_, answer) = Stream::open(&server, "", Some(late));
            assert_eq!((&*answer.kind, &*answer.data), ("flush", "*"), "{late}");
        }
        assert_eq!(server.client().info_of("http", "invalidation_streams_lost"), 5);
        server.stop();
        let server = Server::start(io, &["--shards", shards]);
        assert_eq!(Stream::open(&server, "", Some(&last)).1.kind, "flush", "another run of the server");
        server.stop();
    }
}

#[test]
fn entity_tags_and_events_keep_a_copy_true() {
    for (io, shards) in servers() {
        let server = Server::start(io, &["--shards", shards]);
        let mut http = Http::connect(&server);
        let (mut stream, _) = Stream::open(&server, "?prefix=page", None);
        for key in keys("page") {
            http.put(&key, "one");
            stream.expect(std::slice::from_ref(&key));
            let get = format!("GET /v1/keys/{key}");
            let first = http.ask(&get, "");
            let tag = first.fields["ETag"].clone();
            let condition = format!("If-None-Match: {tag}\r\n");
            let again = http.ask(&get, &condition);
            assert_eq!((again.status, again.body.len(), &again.fields["ETag"]), (304, 0, &tag));
            http.put(&key, "two");
            stream.expect(std::slice::from_ref(&key));
            let changed = http.ask(&get, &condition);
            assert_eq!((changed.status, &changed.body[..]), (200, &b"two"[..]));
            assert_ne!(changed.fields["ETag"], tag);
            // A value that was changed back is the old one: the copy was true all along.
            http.put(&key, "one");
            stream.expect(std::slice::from_ref(&key));
            assert_eq!(http.ask(&get, &condition).status, 304);
        }
        server.stop();
    }
}

/// A cache as `docs/http.md` describes it: it forgets what it is told to forget, and does not keep what it read while
/// that key was changed.
#[derive(Default)]
struct Cache {
    values: HashMap<String, Vec<u8>>,
    is_spoilt: bool,
    reading: Option<String>,
}

impl Cache {
    fn hear(&mut self, event: &Event) {
        let key = event.data.replace("%3A", ":");
        match event.kind.as_str() {
            "invalidate" => {
                self.values.remove(&key);
                self.is_spoilt |= self.reading.as_ref() == Some(&key);
            }
            _ => {
                self.values.clear();
                self.is_spoilt = true;
            }
        }
    }
}

/// Takes what has come, without waiting.
fn hear_what_came(stream: &mut Stream, cache: &mut Cache) {
    loop {
        let socket = stream.0.0.get_ref();
        socket.set_nonblocking(true).expect("nonblocking");
        let is_there = stream.0.0.fill_buf().map(<[u8]>::len);
        stream.0.0.get_ref().set_nonblocking(false).expect("blocking");
        match is_there {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Ok(length) if length > 0 => cache.hear(&stream.next()),
            other => panic!("the stream ended: {other:?}"),
        }
    }
}

#[test]
fn a_cache_that_follows_the_stream_is_true_under_writes() {
    let mut checked = 0;
    for ((io, shards), durability) in servers().zip(["always", "off"].into_iter().cycle()) {
        for query in ["?prefix=key%3A", "?token=cache"] {
            let seed = seed();
            eprintln!("SEED={seed} ({io}, {shards} shards, durability {durability}, {query})");
            let server = Server::start(io, &["--shards", shards, "--durability", durability]);
            checked += follow(&server, query, seed);
            server.stop();
        }
    }
    assert!(checked > 20, "only {checked} values were in caches at the end: this tested nothing");
}

/// Returns how many values were cached, and true, when all was quiet.
fn follow(server: &Server, query: &str, seed: u64) -> usize {
    let (mut stream, _) = Stream::open(server, query, None);
    let token = if query.contains("token") { "X-Millrace-Token: cache\r\n" } else { "" };
    let names = keys("key");
    let ended = AtomicBool::new(false);
    let mut cache = Cache::default();
    let mut reader = Http::connect(server);
    let mut random = Random(seed);
    std::thread::scope(|scope| {
        for number in 0..2 {
            let (names, ended, mut client) = (&names, &ended, server.client());
            scope.spawn(move || {
                let mut random = Random(seed ^ (number + 1));
                let end = Instant::now() + Duration::from_millis(300);
                while Instant::now() < end {
                    let key = names[(random.next() % names.len() as u64) as usize].as_bytes();
                    client.set(key, random.next().to_string().as_bytes());
                }
                ended.store(true, Ordering::Release);
            });
        }
        while !ended.load(Ordering::Acquire) {
            let key = &names[(random.next() % names.len() as u64) as usize];
            hear_what_came(&mut stream, &mut cache);
            if cache.values.contains_key(key) {
                continue;
            }
            (cache.reading, cache.is_spoilt) = (Some(key.clone()), false);
            let answer = reader.ask(&format!("GET /v1/keys/{key}"), token);
            hear_what_came(&mut stream, &mut cache);
            if answer.status == 200 && !cache.is_spoilt {
                cache.values.insert(key.clone(), answer.body);
            }
            cache.reading = None;
        }
    });
    // A key for each shard, written when all else is: behind its event nothing is on its way from there.
    let marks = keys("key:mark");
    let mut client = server.client();
    for key in &marks {
        reader.ask(&format!("GET /v1/keys/{key}"), token);
        client.set(key.as_bytes(), b"1");
    }
    let mut awaited: BTreeSet<String> = marks.into_iter().collect();
    while !awaited.is_empty() {
        let event = stream.next();
        cache.hear(&event);
        awaited.remove(&event.data.replace("%3A", ":"));
    }
    for (key, value) in &cache.values {
        let true_value = client.call_bulk(&[b"GET", key.as_bytes()]);
        assert_eq!(
            String::from_utf8_lossy(value),
            String::from_utf8_lossy(&true_value),
            "the cache keeps an old {key}; SEED={seed}"
        );
    }
    cache.values.len()
}
