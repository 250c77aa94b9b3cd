//! Invalidations over HTTP, on every shard: streams of all keys, of a prefix, of a token; coming back.

use super::*;

fn request(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n")
}

impl Server {
    /// Opens a stream and returns the client and its first event.
    fn open(&mut self, shard: usize, query: &str, last_id: Option<&str>) -> (usize, String) {
        let client = self.connect_as(shard, Transport::Http);
        let fields = last_id.map_or(String::new(), |id| format!("Last-Event-ID: {id}\r\n"));
        let answer = self.say(client, request(&format!("/v1/invalidations{query}"), &fields));
        let (head, events) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer}"));
        assert!(
            head.starts_with("HTTP/1.1 200 OK") && head.contains("Content-Type: text/event-stream"),
            "{head}"
        );
        assert!(head.contains("Connection: close") && !head.contains("Content-Length"), "{head}");
        (client, events.strip_prefix("retry: 1000\n\n").unwrap().into())
    }

    /// The kinds and subjects of the events that have come.
    fn events(&mut self, client: usize) -> Vec<(String, String)> {
        let text = self.take(client);
        all_events(&text).into_iter().map(|(kind, _, data)| (kind, data)).collect()
    }
}

/// Kind, id and data of each.
fn all_events(text: &str) -> Vec<(String, String, String)> {
    let parse = |event: &str| {
        let mut lines = event.lines();
        let mut line = |name: &str| lines.next().unwrap().strip_prefix(name).unwrap().to_string();
        (line("event: "), line("id: "), line("data: "))
    };
    text.split("\n\n").filter(|event| !event.is_empty() && !event.starts_with(':')).map(parse).collect()
}

fn last_id(text: &str) -> String {
    all_events(text).pop().unwrap().1
}

fn invalidate(keys: &[&str]) -> Vec<(String, String)> {
    keys.iter().map(|key| ("invalidate".to_string(), key.to_string())).collect()
}

#[test]
fn a_stream_has_the_changes_of_every_shard() {
    let (mut server, [a, ..]) = Server::three();
    for shard in 0..3 {
        let (stream, first) = server.open(shard, "", None);
        assert_eq!(all_events(&first)[0].0, "ready");
        for of in 0..3 {
            server.say(a, format!("SET {} 1\r\n", on(of, "k")));
        }
        server.say(a, lines(&["SET {t} 1 PX 1", "FLUSHALL"]));
        let data = |key: &str| key.replace('{', "%7B").replace('}', "%7D");
        let keys = [0, 1, 2].map(|of| data(&on(of, "k")));
        let mut wanted = invalidate(&[&keys[0], &keys[1], &keys[2], "%7Bt%7D"]);
        wanted.push(("flush".into(), "*".into()));
        assert_eq!(server.events(stream), wanted);
        // What it still says is of no interest, and does no harm.
        assert_eq!(server.say(stream, request("/healthz", "")), "");
        assert!(!server.clients[stream].closed);
        server.disconnect(stream);
    }
}

#[test]
fn a_stream_of_a_prefix_has_no_others() {
    let (mut server, [a, ..]) = Server::three();
    let (stream, _) = server.open(1, "?prefix=user%3A", None);
    for key in ["user:1", "other", "user", "user:2"] {
        server.say(a, format!("SET {key} 1\r\n"));
    }
    server.say(a, "RENAME user:2 other\r\n");
    assert_eq!(server.events(stream), invalidate(&["user%3A1", "user%3A2", "user%3A2"]));
}

#[test]
fn a_token_hears_once_of_what_was_read_with_it() {
    let (mut server, [a, ..]) = Server::three();
    let reader = server.connect_as(2, Transport::Http);
    let read = |key: &str, token: &str| {
        request(&format!("/v1/keys/{key}"), &format!("X-Millrace-Token: {token}\r\n"))
    };
    let refused = server.say(reader, read("k", "mine"));
    assert!(
        refused.starts_with("HTTP/1.1 409") && refused.contains("Open GET /v1/invalidations?token="),
        "{refused}"
    );
    let (stream, _) = server.open(0, "?token=mine", None);
    let (other, _) = server.open(1, "?token=other", None);
    for key in ["k", "j", "m"] {
        assert!(server.say(reader, read(key, "mine")).starts_with("HTTP/1.1 404"));
    }
    server.say(reader, read("j", "other"));
    for key in ["k", "j", "k", "unread"] {
        server.say(a, format!("SET {key} 1\r\n"));
    }
    assert_eq!(server.events(stream), invalidate(&["k", "j"]));
    assert_eq!(server.events(other), invalidate(&["j"]));
    // The reader may go on while the stream is away; who comes back is told of more rather than less.
    server.say(reader, read("j", "mine"));
    let (_, first) = server.open(0, "", None);
    server.disconnect(stream);
    server.say(a, "SET j 2\r\n");
    let (stream, again) = server.open(2, "?token=mine", Some(&last_id(&first)));
    assert_eq!(all_events(&again)[1].2, "j");
    server.say(reader, read("m", "mine"));
    server.say(a, "SET m 2\r\n");
    assert_eq!(server.events(stream), invalidate(&["m"]));
    // Long after its end a token is forgotten, and with it what was read.
    server.say(reader, read("k", "mine"));
    (0..server.clients.len()).filter(|at| *at != a && *at != reader).for_each(|at| server.disconnect(at));
    server.run();
    assert!(server.say(reader, read("k", "mine")).starts_with("HTTP/1.1 200"));
    for _ in 0..2 {
        server.now.monotonic.0 += 61_000_000_000;
        server.run();
    }
    assert!(server.say(reader, read("k", "mine")).starts_with("HTTP/1.1 409"));
    assert!((0..3).all(|shard| !server.shared(shard).is_tracking), "nothing is kept for nobody");
}

#[test]
fn whoever_comes_back_is_told_what_it_missed_on_any_shard() {
    let (mut server, [a, ..]) = Server::three();
    let (stream, first) = server.open(0, "", None);
    let set = |server: &mut Server, name: &str| {
        (0..3).for_each(|of| {
            server.say(a, format!("SET {} 1\r\n", on(of, name)));
        });
    };
    set(&mut server, "seen");
    let seen = server.take(stream);
    let id = last_id(&seen);
    server.disconnect(stream);
    set(&mut server, "missed");
    for shard in 0..3 {
        let (stream, again) = server.open(shard, "", Some(&id));
        let events = all_events(&again);
        assert_eq!((&*events[0].0, events.len()), ("resumed", 4), "{again}");
        assert!(events[1..].iter().all(|event| event.2.ends_with("missed")), "{again}");
        // From the middle of what was missed.
        let (_, rest) = server.open(shard, "", Some(&events[2].1));
        assert_eq!(all_events(&rest)[1..].iter().map(|e| &e.2).collect::<Vec<_>>(), [&events[3].2]);
        assert_eq!(server.take(stream), "");
    }
    // The first event of all is an id to come back with, too.
    let (_, all) = server.open(1, "", Some(&last_id(&first)));
    assert_eq!(all_events(&all).len(), 7);
    // To the greatest of numbers the server added one.
    let greatest = format!("abababab-1.1.{}", u64::MAX);
    for strange in
        ["", "x", "abababab-1.2", "abababab-1.2.99999", "cdcdcdcd-1.1.1", "abababab-1.1.-1", &greatest]
    {
        let (_, answer) = server.open(1, "", Some(strange));
        assert_eq!(all_events(&answer)[0].0, "flush", "{strange}");
    }
}

#[test]
fn a_backlog_is_bounded_and_says_so() {
    let mut server = Server::new(1, &[("invalidation-backlog", "1kb")]);
    let writer = server.connect(0);
    let (stream, first) = server.open(0, "", None);
    for number in 0..100 {
        server.say(writer, format!("SET key:{number} 1\r\n"));
    }
    assert!(server.shared(0).streams.backlog_bytes() <= 1024);
    let events = all_events(&server.take(stream));
    assert_eq!(events.len(), 100);
    let (_, late) = server.open(0, "", Some(&last_id(&first)));
    assert_eq!(all_events(&late)[0].0, "flush");
    let (_, in_time) = server.open(0, "", Some(&events[90].1));
    assert_eq!(all_events(&in_time).len(), 10);
    let info = server.say(writer, "INFO http\r\n");
    assert_eq!((field(&info, "invalidation_streams"), field(&info, "invalidation_streams_lost")), (3, 1));
    // After a minute without streams nothing is kept, and whoever comes then has missed something.
    (0..server.clients.len()).filter(|at| *at != writer).for_each(|at| server.disconnect(at));
    for _ in 0..2 {
        server.run();
        server.now.monotonic.0 += 61_000_000_000;
    }
    server.run();
    assert!(!server.shared(0).is_tracking);
    let (_, after) = server.open(0, "", Some(&events[99].1));
    assert_eq!(all_events(&after)[0].0, "flush");
}

#[test]
fn a_stream_waits_for_the_log_gives_signs_of_life_and_must_be_read() {
    let mut server = Server::new(1, &[("output-buffer-max", "65536"), ("timeout", "20")]);
    server.engines[0].keep_journal(Journal::new(Arc::new(AtomicU64::new(1)), Durability::Always));
    let writer = server.connect(0);
    let (stream, _) = server.open(0, "", None);
    server.say(writer, "SET k 1\r\n");
    assert_eq!(server.take(stream), "");
    server.engines[0].set_durable(1);
    server.run();
    assert_eq!(server.events(stream), invalidate(&["k"]));
    for _ in 0..4 {
        server.now.monotonic.0 += 16_000_000_000;
        server.run();
        assert_eq!(server.take(stream), ": \n\n");
    }
    server.clients[stream].reads = false;
    for number in 0..3000 {
        let writer = server.connect(0);
        server.say(writer, format!("SET key:{number} 1\r\n"));
        server.engines[0].set_durable(number + 2);
        server.run();
        server.disconnect(writer);
    }
    assert!(server.clients[stream].closed);
    assert_eq!(server.shared(0).streams.open(), 0);
}

#[test]
fn what_a_stream_cannot_be_is_said() {
    let mut server = Server::new(1, &[]);
    let client = server.connect_as(0, Transport::Http);
    for (path, status, words) in [
        ("/v1/invalidations?prefix=a&token=b", "400", "not both"),
        ("/v1/invalidations?token=", "400", "1 to 128 bytes"),
        ("/v1/invalidations?what=b", "400", "Possible: prefix, token"),
    ] {
        let answer = server.say(client, request(path, ""));
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(words), "{answer}");
    }
    let head = request("/v1/invalidations", "").replace("GET", "HEAD");
    assert!(server.say(client, head).starts_with("HTTP/1.1 405"));
}
