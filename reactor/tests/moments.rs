//! Moments between real servers: what a connection remembers of its writes when its server follows another, when keys expire
//! on replicas, and what trackers on a replica are told, and when.

#[allow(dead_code, reason = "each suite uses its part")]
mod process;

#[allow(dead_code, reason = "each suite uses its part")]
mod nodes;

use nodes::*;
use process::*;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Found in review: the number of a write in one history was asked for in another, where it was another record's.
#[test]
fn what_was_lost_is_not_said_to_be_replicated() {
    let scratch = Scratch::new("moments-histories");
    let (mut one, mut two) = (Node::new(&scratch, "one", "2"), Node::new(&scratch, "two", "2"));
    one.start();
    two.start();
    fill(&two, 100);
    // Both shards: the answer of one of them travels.
    let mut client = one.client();
    for key in ["a", "b", "c", "d"] {
        assert_eq!(client.ask(&format!("SET {key} mine")), "+OK");
    }
    let token = client.bulk("CLIENT LSN");
    assert_eq!(client.ask(&format!("WAITLSN {token} 1000")), "+OK");
    assert_eq!(client.ask("WAIT 0 0"), ":0");
    assert_eq!(one.client().ask(&format!("REPLICAOF 127.0.0.1 {}", two.port)), "+OK");
    same(&two, &one);
    assert_eq!(client.bulk("CLIENT LSN"), token, "it is the name of a record, here as everywhere");
    assert!(client.ask("WAIT 0 0").starts_with("-ERR WAIT cannot be used"));
    assert!(client.ask(&format!("WAITLSN {token} 10")).starts_with("-LOST "));
    assert_eq!(one.client().ask("REPLICAOF NO ONE"), "+OK");
    assert_eq!(client.bulk("CLIENT LSN"), token);
    for command in ["WAIT 0 0", "WAIT 1 10", "WAITAOF 1 0 0"] {
        let answer = client.ask(command);
        let lost = format!("-LOST the last write of this connection, the record {token}, is not in");
        assert!(answer.starts_with(&lost), "{command}: {answer}");
    }
    // The other follows: what is written from now on counts, and is there.
    assert_eq!(two.client().ask(&format!("REPLICAOF 127.0.0.1 {}", one.port)), "+OK");
    for key in ["a", "b", "c", "d"] {
        assert_eq!(client.ask(&format!("SET {key} ours")), "+OK");
    }
    assert_eq!(client.ask("WAIT 1 20000"), ":1");
    let ours = client.bulk("CLIENT LSN");
    assert_ne!(ours[..16], token[..16]);
    let mut there = two.client();
    assert_eq!(there.ask(&format!("WAITLSN {ours} 20000")), "+OK");
    assert_eq!(there.bulk("GET d"), "ours");
    // A failover that loses nothing: what was written is still there, under its name.
    assert_eq!(client.ask(&format!("REPLICAOF 127.0.0.1 {}", two.port)), "+OK");
    assert_eq!(there.ask("REPLICAOF NO ONE"), "+OK");
    assert_eq!(there.ask("SET e after"), "+OK");
    same(&two, &one);
    assert_eq!(client.ask(&format!("WAITLSN {ours} 20000")), "+OK");
    assert_eq!(client.bulk("CLIENT LSN"), ours);
    assert_eq!(one.client().ask("REPLICAOF NO ONE"), "+OK");
    assert_eq!(client.ask("WAIT 0 0"), ":0");
}

/// A server that had no replicas gave its writes numbers and no history.
#[test]
fn a_number_of_before_is_not_told_in_a_history() {
    let scratch = Scratch::new("moments-number");
    let mut primary = Node::new(&scratch, "primary", "1");
    primary.start();
    fill(&primary, 10);
    let dir = scratch.path("alone");
    let alone = Running::start(&["--dir", &dir, "--durability", "always", "--shards", "1"]);
    let mut client = alone.client();
    assert_eq!(client.ask("SET mine x"), "+OK");
    assert_eq!(client.bulk("CLIENT LSN"), "1");
    assert_eq!(client.ask(&format!("REPLICAOF 127.0.0.1 {}", primary.port)), "+OK");
    eventually(|| client_text(&alone), || alone.client().ask("EXISTS fill:1") == ":1");
    let told = client.ask("CLIENT LSN");
    assert!(told.starts_with("-LOST the last write of this connection, the record 1, is not in"), "{told}");
}

fn client_text(server: &Running) -> String {
    server.client().bulk("INFO replication")
}

/// Whoever waits in WAIT when its server becomes a replica is told so.
#[test]
fn who_waits_for_replicas_is_told_that_there_will_be_none() {
    let scratch = Scratch::new("moments-unblocked");
    let (mut one, mut two) = (Node::new(&scratch, "one", "1"), Node::new(&scratch, "two", "1"));
    one.start();
    two.start();
    let mut client = one.client();
    assert_eq!(client.ask("SET a 1"), "+OK");
    client.0.write_all(b"WAIT 1 0\r\n").unwrap();
    eventually(
        || client_text(one.running.as_ref().unwrap()),
        || one.client().bulk("INFO clients").contains("blocked_clients:1"),
    );
    assert_eq!(one.client().ask(&format!("REPLICAOF 127.0.0.1 {}", two.port)), "+OK");
    let told = client.line();
    assert!(told.starts_with("-UNBLOCKED "), "{told}");
}

/// Found in review: that nothing was pending was taken for that nothing would come with an earlier time. As long as a turn runs
/// that began before a key's end, the key does not end on a replica: what the turn still writes may have found it.
#[test]
fn a_turn_that_takes_long_holds_the_time_of_replicas_back() {
    let scratch = Scratch::new("moments-turn");
    let mut primary = Node::new(&scratch, "primary", "1");
    primary.start();
    let mut replica = Node::new(&scratch, "replica", "1");
    replica.follow(&primary).start();
    same(&primary, &replica);
    let (mut here, mut sleeper) = (replica.client(), primary.client());
    // Both in one turn, which ends when the shard has slept.
    sleeper.0.write_all(b"SET key value PX 500\r\nDEBUG SLEEP 2\r\n").unwrap();
    eventually(|| "the key does not come".into(), || here.ask("EXISTS key") == ":1");
    eventually(|| "the key does not end".into(), || here.ask("EXISTS key") == ":0");
    let gone = Instant::now();
    assert_eq!([sleeper.line(), sleeper.line()], ["+OK", "+OK"]);
    let early = gone.elapsed();
    assert!(early < Duration::from_millis(700), "the key was gone {early:?} before the turn was over");
}

/// A client of a replica that tracks.
struct Tracker(Client<TcpStream>);

impl Tracker {
    fn new(node: &Node, options: &str) -> Tracker {
        let mut client = node.client();
        client
            .0
            .write_all(format!("HELLO 3\r\nCLIENT TRACKING ON {options}\r\nPING\r\n").as_bytes())
            .unwrap();
        while client.line() != "+PONG" {}
        Tracker(client)
    }

    /// The next invalidation: of a key, or of everything.
    fn told(&mut self) -> Option<String> {
        let head = [self.0.line(), self.0.line(), self.0.line()];
        assert_eq!(head, [">2", "$10", "invalidate"]);
        match &*self.0.line() {
            "_" => None,
            "*1" => {
                let length = self.0.line()[1..].parse().unwrap();
                Some(self.0.body(length))
            }
            other => panic!("{other}"),
        }
    }

    /// Reads a key that is there.
    fn get(&mut self, key: &str) -> String {
        self.0.bulk(&format!("GET {key}"))
    }
}

/// What a tracker on a replica is told: behind the change there, and of every kind of change.
#[test]
fn trackers_on_a_replica_are_told() {
    for shards in ["1", "2"] {
        let scratch = Scratch::new(&format!("moments-tracking-{shards}"));
        let (mut primary, mut other) =
            (Node::new(&scratch, "primary", "2"), Node::new(&scratch, "other", "1"));
        primary.start();
        other.start();
        let mut replica = Node::new(&scratch, "replica", shards);
        replica.follow(&primary).start();
        let mut client = primary.client();
        let write = |client: &mut Client<TcpStream>, command: &str| {
            assert!(!client.ask(command).starts_with('-'), "{command}");
        };
        let keys: Vec<String> = (0..8).map(|number| format!("key:{number}")).collect();
        for key in &keys {
            write(&mut client, &format!("SET {key} 0"));
        }
        same(&primary, &replica);
        let mut reader = Tracker::new(&replica, "");
        let mut all = Tracker::new(&replica, "BCAST PREFIX key: PREFIX short");
        for round in 1..=20 {
            for key in &keys {
                assert_eq!(reader.get(key), (round - 1).to_string());
                write(&mut client, &format!("SET {key} {round}"));
                assert_eq!(reader.told().as_ref(), Some(key));
                assert_eq!(reader.get(key), round.to_string(), "it was told before the value had changed");
                assert_eq!(all.told().as_ref(), Some(key));
                // What it has read again is of interest again.
            }
        }
        // A key that ends by the primary's time. On a slow machine it may end before it is read.
        let mut life_ms = 200;
        let short = loop {
            let key = format!("short:{life_ms}");
            write(&mut client, &format!("SET {key} v PX {life_ms}"));
            assert_eq!(client.ask("WAIT 1 30000"), ":1");
            match &*reader.0.ask(&format!("GET {key}")) {
                "$1" => break key,
                answer => assert_eq!(answer, "_"),
            }
            life_ms *= 2;
        };
        assert_eq!(reader.0.line(), "v");
        assert_eq!(reader.told().as_ref(), Some(&short));
        assert_eq!(reader.0.ask(&format!("EXISTS {short}")), ":0");
        // Of its being written, and of its end.
        for _ in 0..2 {
            while all.told().as_ref() != Some(&short) {}
        }
        write(&mut client, "FLUSHALL");
        assert_eq!((reader.told(), all.told()), (None, None));
        assert_eq!(reader.0.ask("DBSIZE"), ":0");
        // Everything may be another after a full sync.
        write(&mut client, "SET key:0 before");
        assert_eq!(all.told().as_deref(), Some("key:0"));
        assert_eq!(reader.get("key:0"), "before");
        write(&mut other.client(), "SET key:0 after");
        fill(&other, 300);
        assert_eq!(replica.client().ask(&format!("REPLICAOF 127.0.0.1 {}", other.port)), "+OK");
        assert_eq!((reader.told(), all.told()), (None, None));
        same(&other, &replica);
        assert_eq!(reader.get("key:0"), "after");
        write(&mut other.client(), "SET key:0 again");
        assert_eq!(reader.told().as_deref(), Some("key:0"));
        assert_eq!(reader.get("key:0"), "again");
    }
}

/// The same over HTTP.
#[test]
fn streams_of_a_replica_are_told() {
    let scratch = Scratch::new("moments-streams");
    let (mut primary, mut other) = (Node::new(&scratch, "primary", "1"), Node::new(&scratch, "other", "1"));
    primary.start();
    other.start();
    let mut replica = Node::new(&scratch, "replica", "2");
    replica.follow(&primary).start();
    same(&primary, &replica);
    let mut stream = TcpStream::connect(replica.running.as_ref().unwrap().field("http").unwrap()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET /v1/invalidations HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut lines = BufReader::new(stream).lines();
    let mut event = || {
        let mut kind = String::new();
        loop {
            let line = lines.next().expect("the stream goes on").unwrap();
            match line.split_once(": ") {
                Some(("event", word)) => kind = word.to_string(),
                Some(("data", data)) => return (kind, data.replace("%3A", ":")),
                _ => {}
            }
        }
    };
    assert_eq!(event(), ("ready".into(), "*".into()));
    let mut client = primary.client();
    for round in 0..20 {
        let key = format!("key:{}", round % 8);
        assert_eq!(client.ask(&format!("SET {key} {round}")), "+OK");
        assert_eq!(event(), ("invalidate".into(), key.clone()));
        assert_eq!(replica.client().bulk(&format!("GET {key}")), round.to_string());
    }
    assert_eq!(client.ask("SET short v PX 100"), "+OK");
    assert_eq!(event(), ("invalidate".into(), "short".into()), "of being written");
    assert_eq!(event(), ("invalidate".into(), "short".into()), "of its end");
    assert_eq!(client.ask("FLUSHALL"), "+OK");
    assert_eq!(event().0, "flush");
    assert_eq!(other.client().ask("SET key:0 after"), "+OK");
    assert_eq!(client.ask("SET key:0 before"), "+OK");
    assert_eq!(event(), ("invalidate".into(), "key:0".into()));
    assert_eq!(replica.client().ask(&format!("REPLICAOF 127.0.0.1 {}", other.port)), "+OK");
    let mut told = event();
    while told.0 != "flush" {
        told = event();
    }
    same(&other, &replica);
    assert_eq!(replica.client().bulk("GET key:0"), "after");
}
