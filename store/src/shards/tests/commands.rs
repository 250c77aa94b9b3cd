//! Commands on keys of several shards are answered as if there were one.

use super::*;

#[test]
fn a_pipeline_over_all_shards_is_answered_in_order() {
    let (mut server, clients) = Server::three();
    let mut bytes = Vec::new();
    let mut wanted = String::new();
    for n in 0..300 {
        bytes.extend(resp(&[b"SET", format!("key:{n}").as_bytes(), format!("value {n}").as_bytes()]));
        wanted.push_str("+OK\r\n");
    }
    for n in 0..300 {
        bytes.extend(resp(&[b"GET", format!("key:{n}").as_bytes()]));
        bytes.extend(resp(&[b"ECHO", b"between"]));
        wanted.push_str(&bulk(&format!("value {n}")));
        wanted.push_str(&bulk("between"));
    }
    for client in clients {
        assert_eq!(server.say(client, &bytes), wanted);
    }
    assert!((0..3).all(|shard| server.shared(shard).keyspace.len() > 50));
    // A pipeline's commands for one shard travel together.
    let hops: u64 = (0..3).map(|shard| server.shared(shard).fleet.hops_sent).sum();
    let commands: u64 = (0..3).map(|shard| server.shared(shard).fleet.hop_commands_sent).sum();
    assert!(commands > 1000, "{commands}");
    assert!(hops < commands / 20, "{hops} hops for {commands} commands");
}

/// Random commands over few keys, on all shards, most of them valid.
pub(super) fn random_command(random: &mut Random) -> Vec<u8> {
    let keys: [&[u8]; 6] = [b"a", b"b", b"c", b"d", b"e", b"{a}another, a long one that lies with the first"];
    let values: [&[u8]; 5] = [b"1", b"-7", b"text", b"", b"9223372036854775807"];
    let (key, other, third) = (random.pick(&keys), random.pick(&keys), random.pick(&keys));
    let value = random.pick(&values);
    match random.below(40) {
        0..=4 => resp(&[b"GET", key]),
        5..=8 => resp(&[b"SET", key, value]),
        9 => resp(&[b"INCR", key]),
        10 => resp(&[b"APPEND", key, value]),
        11 => resp(&[b"DEL", key, other]),
        12 => resp(&[b"MGET", key, other, third]),
        13 => resp(&[b"MSET", key, value, other, b"x", third, b"y"]),
        14 => resp(&[b"EXPIRE", key, b"100"]),
        15 => resp(&[b"MULTI"]),
        16 | 17 => resp(&[b"EXEC"]),
        18 => resp(&[b"WATCH", key, other]),
        19 => resp(&[b"DISCARD"]),
        20 => resp(&[b"RENAME", key, other]),
        21 => resp(&[b"RENAMENX", key, other]),
        22 => resp(&[b"COPY", key, other, random.pick(&[&b"REPLACE"[..], b"DB"])]),
        23 => resp(&[b"MSETNX", key, value, other, b"x"]),
        24 => resp(&[b"EXISTS", key, other, key]),
        25 => resp(&[b"TOUCH", key, other, third]),
        26 => resp(&[b"UNLINK", key, other]),
        27 => resp(&[b"LCS", key, other]),
        28 => resp(&[b"UNWATCH"]),
        29 => resp(&[b"DBSIZE"]),
        30 => resp(&[random.pick(&[&b"foo"[..], b"get", b"config"]), key, value]),
        31 => resp(&[b"HELLO", if random.below(2) == 0 { b"2" } else { b"3" }]),
        32 => resp(&[b"CLIENT", b"REPLY", random.pick(&[&b"ON"[..], b"SKIP", b"OFF", b"ON"])]),
        33 => resp(&[b"PUBLISH", b"nobody", value]),
        34 => resp(&[b"SPUBLISH", key, value]),
        35 => resp(&[b"GETRANGE", key, b"0", b"-1"]),
        36 => resp(&[b"TTL", key]),
        37 => resp(&[b"OBJECT", b"ENCODING", key]),
        38 => resp(&[b"FLUSHALL"]),
        _ => b"PING inline\r\n".to_vec(),
    }
}

#[test]
fn random_pipelines_are_answered_as_by_one_shard() {
    let seeds = match std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => seed..seed + 1,
        None => 0..15,
    };
    for seed in seeds {
        let mut random = Random(seed);
        let (mut one, mut fleet) = (Server::new(1, &[]), Server::new(3, &[]));
        fleet.order = Some(Random(seed + 1000));
        // The same id on both.
        let shard = seed as usize % 3;
        let alone = (0..=shard).map(|_| one.connect(0)).last().unwrap();
        let client = fleet.connect(shard);
        for step in 0..30 {
            let count = 1 + random.below(30);
            let commands: Vec<u8> = (0..count).flat_map(|_| random_command(&mut random)).collect();
            let cut = random.below(commands.len());
            let mut answers = [String::new(), String::new()];
            for (answer, server, client) in [(0, &mut one, alone), (1, &mut fleet, client)] {
                // The second half arrives while the first is on its way.
                server.send(client, &commands[..cut]);
                server.round();
                server.send(client, &commands[cut..]);
                server.run();
                answers[answer] = server.take(client);
            }
            assert_eq!(answers[1], answers[0], "seed {seed}, step {step}: {}", text(&commands));
        }
        fleet.disconnect(client);
        fleet.run();
        assert_eq!(fleet.watched(), 0, "seed {seed}: watches are left behind");
        assert!(
            (0..3).all(|shard| fleet.shared(shard).buffer_bytes == 0),
            "seed {seed}: buffers are left behind"
        );
    }
}

#[test]
fn an_observer_sees_all_of_an_mset_or_nothing() {
    let (mut server, clients) = Server::three();
    server.order = Some(Random(5));
    let keys = [on(0, "x"), on(1, "x"), on(2, "x")];
    for n in 0..200 {
        let value = format!("{n}");
        let set = format!("MSET {} {value} {} {value} {} {value}\r\n", keys[0], keys[1], keys[2]);
        let get = format!("MGET {} {} {}\r\n", keys[0], keys[1], keys[2]);
        for (client, bytes) in
            [(clients[n % 3], &set), (clients[(n + 1) % 3], &get), (clients[(n + 2) % 3], &get)]
        {
            server.send(client, bytes.as_bytes());
        }
        server.run();
        for reader in [clients[(n + 1) % 3], clients[(n + 2) % 3]] {
            let seen = server.take(reader);
            let values: Vec<&str> = seen.split("\r\n").filter(|part| !part.starts_with(['*', '$'])).collect();
            assert!(values.windows(2).all(|pair| pair[0] == pair[1] || pair[1].is_empty()), "torn: {seen}");
        }
        server.take(clients[n % 3]);
    }
}

#[test]
fn a_transaction_over_shards_with_clean_watches_happens_and_with_dirty_ones_does_not() {
    let (mut server, [a, b, _]) = Server::three();
    let (x, y, z) = (on(0, "x"), on(1, "y"), on(2, "z"));
    let begin = lines(&[&format!("WATCH {x} {y} {z}"), "MULTI", &format!("SET {x} 1"), &format!("INCR {y}")]);
    let queued = "+OK\r\n+OK\r\n+QUEUED\r\n+QUEUED\r\n";
    assert_eq!(server.say(a, &begin), queued);
    assert_eq!(server.watched(), 3);
    assert_eq!(server.say(a, "EXEC\r\n"), "*2\r\n+OK\r\n:1\r\n");
    assert_eq!(server.watched(), 0);
    // Somebody else changes the key that is on the third shard and that the transaction does not touch.
    assert_eq!(server.say(a, &begin), queued);
    assert_eq!(server.say(b, format!("SET {z} dirty\r\n")), "+OK\r\n");
    assert_eq!(server.say(a, "EXEC\r\n"), "*-1\r\n");
    assert_eq!(server.watched(), 0);
    assert_eq!(server.say(b, format!("GET {y}\r\n")), "$1\r\n1\r\n");
    for end in ["DISCARD\r\n", "RESET\r\n", "BOGUS\r\nEXEC\r\n"] {
        server.say(a, &begin);
        assert_eq!(server.watched(), 3);
        server.say(a, end);
        assert_eq!(server.watched(), 0, "after {end}");
    }
    server.say(a, format!("WATCH {y} {z}\r\nUNWATCH\r\n"));
    assert_eq!(server.watched(), 0);
    // A client that goes away forgets its watches everywhere, even if it had not been answered yet.
    server.say(a, &begin);
    server.disconnect(a);
    server.run();
    assert_eq!(server.watched(), 0);
    let hasty = server.connect(0);
    server.send(hasty, &begin);
    server.disconnect(hasty);
    server.run();
    assert_eq!(server.watched(), 0);
    // And so does one that is killed from another shard.
    let victim = server.connect(1);
    server.say(victim, &begin);
    assert_eq!(server.watched(), 3);
    assert_eq!(server.say(b, "CLIENT KILL TYPE normal\r\n"), ":2\r\n");
    assert_eq!(server.watched(), 0);
}

#[test]
fn an_exec_waits_for_the_commands_before_it() {
    let (mut server, [a, ..]) = Server::three();
    let (here, there) = (on(0, "k"), on(1, "k"));
    let bytes = lines(&[
        &format!("SET {there} 5"),
        "MULTI",
        &format!("INCR {there}"),
        &format!("SET {here} 1"),
        "EXEC",
        &format!("GET {there}"),
    ]);
    assert_eq!(server.say(a, bytes), "+OK\r\n+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n:6\r\n+OK\r\n$1\r\n6\r\n");
}

fn fill(server: &mut Server, client: usize, count: usize) {
    let sets: Vec<u8> =
        (0..count).flat_map(|n| resp(&[b"SET", format!("key:{n}").as_bytes(), b"v"])).collect();
    assert_eq!(server.say(client, sets), "+OK\r\n".repeat(count));
}

fn names(reply: &str) -> Vec<&str> {
    let mut names: Vec<&str> = reply.split("\r\n").filter(|part| part.starts_with("key:")).collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[test]
fn scan_keys_and_dbsize_are_about_all_shards() {
    let (mut server, clients) = Server::three();
    fill(&mut server, clients[0], 1000);
    for client in clients {
        assert_eq!(server.say(client, "DBSIZE\r\n"), ":1000\r\n");
        let keys = server.say(client, "KEYS key:*\r\n");
        assert!(keys.starts_with("*1000\r\n"));
        assert_eq!(names(&keys).len(), 1000);
        assert_eq!(names(&server.say(client, "KEYS key:1?\r\n")).len(), 10);
        let (mut cursor, mut found) = (String::from("0"), String::new());
        loop {
            let page = server.say(client, format!("SCAN {cursor} COUNT 37\r\n"));
            cursor = page.split("\r\n").nth(2).unwrap().into();
            found.push_str(&page);
            if cursor == "0" {
                break;
            }
        }
        assert_eq!(names(&found).len(), 1000);
    }
    assert_eq!(
        server.say(clients[1], "FLUSHALL\r\nDBSIZE\r\nKEYS *\r\nRANDOMKEY\r\n"),
        "+OK\r\n:0\r\n*0\r\n$-1\r\n"
    );
    assert!((0..3).all(|shard| server.shared(shard).keyspace.is_empty()));
}

#[test]
fn every_key_is_as_likely_to_be_the_random_one() {
    let (mut server, [a, ..]) = Server::three();
    // One key on the first shard, nine on the last: a shard is drawn by its share.
    server.say(a, format!("SET {} v\r\n", on(0, "lonely")));
    for n in 0..9 {
        server.say(a, format!("SET {} v\r\n", on(2, &format!("crowd{n}"))));
    }
    let answers = server.say(a, "RANDOMKEY\r\n".repeat(1000));
    let lonely = answers.matches("lonely").count();
    assert!((60..150).contains(&lonely), "{lonely} of 1000 draws, 100 expected");
    for n in 0..9 {
        assert!(answers.contains(&format!("crowd{n}")));
    }
    // What has expired is never drawn, and a server of expired keys has none.
    server.say(a, format!("FLUSHALL\r\nDEBUG SET-ACTIVE-EXPIRE 0\r\nSET {} v PX 1\r\n", on(1, "gone")));
    server.now.unix_us += 10_000;
    assert_eq!(server.say(a, "RANDOMKEY\r\nDBSIZE\r\n"), "$-1\r\n:0\r\n");
}
