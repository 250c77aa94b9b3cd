//! Hops and lendings under adverse conditions: silence, ends, slow readers, full queues, sleeping shards.

use super::*;

#[test]
fn unwanted_replies_of_other_shards_stay_away() {
    let (mut server, [a, ..]) = Server::three();
    let (near, far) = (on(0, "k"), on(1, "k"));
    let bytes = lines(&[
        &format!("SET {far} 1"),
        "CLIENT REPLY SKIP",
        &format!("GET {far}"),
        &format!("GET {far}"),
        "CLIENT REPLY OFF",
        &format!("INCR {far}"),
        &format!("MGET {near} {far}"),
        "DBSIZE",
        "CLIENT REPLY ON",
        &format!("GET {far}"),
        "CLIENT REPLY SKIP",
        &format!("MGET {near} {far}"),
        &format!("MGET {near} {far}"),
    ]);
    let wanted = "+OK\r\n$1\r\n1\r\n+OK\r\n$1\r\n2\r\n*2\r\n$-1\r\n$1\r\n2\r\n";
    assert_eq!(server.say(a, bytes), wanted);
}

#[test]
fn a_quit_behind_commands_of_other_shards_ends_the_connection_after_their_replies() {
    let (mut server, [a, b, _]) = Server::three();
    server.say(a, format!("MSET {} 1 {} 2\r\n", on(1, "k"), on(2, "k")));
    let bytes = lines(&[&format!("GET {}", on(1, "k")), &format!("GET {}", on(2, "k")), "QUIT", "PING"]);
    assert_eq!(server.say(a, bytes), "$1\r\n1\r\n$1\r\n2\r\n+OK\r\n");
    assert!(server.clients[a].closed);
    let bytes = lines(&[&format!("MGET {} {}", on(1, "k"), on(2, "k")), "QUIT"]);
    assert_eq!(server.say(b, bytes), "*2\r\n$1\r\n1\r\n$1\r\n2\r\n+OK\r\n");
    assert!(server.clients[b].closed);
    // The same for a client that says by its end that it sends no more.
    let half = server.connect(0);
    server.send(half, &lines(&[&format!("GET {}", on(1, "k")), "DBSIZE", &format!("GET {}", on(2, "k"))]));
    let now = server.now;
    server.engines[0].handle_receive_end(server.clients[half].connection, now);
    server.run();
    assert_eq!(server.take(half), "$1\r\n1\r\n:2\r\n$1\r\n2\r\n");
    assert!(server.clients[half].closed);
}

#[test]
fn a_client_that_leaves_while_its_commands_are_away_harms_nobody() {
    let (mut server, [a, b, _]) = Server::three();
    for round in 0..20 {
        let leaver = server.connect(0);
        let mut bytes = lines(&[&format!("INCR {}", on(1, "n")), &format!("INCR {}", on(2, "n"))]);
        bytes.extend(lines(&["DBSIZE"]));
        server.send(leaver, &bytes);
        for _ in 0..round % 5 {
            server.round();
            server.come_home(0);
        }
        server.disconnect(leaver);
        // Its slot is used again before its answers are back.
        let slot = server.clients[leaver].connection.slot;
        let connection = ConnectionId { slot, generation: 8 + round };
        let now = server.now;
        server.engines[0].handle_connect(connection, Peer::default(), now);
        server.engines[0].handle_receive(connection, b"PING\r\n", now, &Standing(now.monotonic));
        server.run();
        let output = server.engines[0].take_output(connection).unwrap();
        assert_eq!(text(&output), "+PONG\r\n");
        server.engines[0].handle_sent(connection, output, now, &Standing(now.monotonic));
        server.engines[0].handle_disconnect(connection, now);
    }
    assert_eq!(
        server.say(b, format!("MGET {} {}\r\n", on(1, "n"), on(2, "n"))),
        "*2\r\n$2\r\n20\r\n$2\r\n20\r\n"
    );
    assert_eq!(server.say(a, "PING\r\n"), "+PONG\r\n");
    assert_eq!((server.shared(0).buffer_bytes, server.shared(0).clients), (0, 1));
}

#[test]
fn large_replies_of_another_shard_take_bounded_memory_for_a_slow_reader() {
    let (mut server, [a, b, _]) = Server::three();
    const SIZE: usize = 1 << 20;
    let keys: Vec<String> = (0..4).map(|n| on(1 + n % 2, &format!("large{n}"))).collect();
    for (n, key) in keys.iter().enumerate() {
        let value = alloc::vec![b'a' + n as u8; SIZE];
        assert_eq!(server.say(b, resp(&[b"SET", key.as_bytes(), &value])), "+OK\r\n");
    }
    server.clients[a].reads = false;
    let gets: Vec<u8> = (0..100).flat_map(|n| resp(&[b"GET", keys[n % 4].as_bytes()])).collect();
    server.send(a, &gets);
    let mut received = Vec::new();
    for _ in 0..10_000 {
        for _ in 0..5 {
            server.round();
            let held: usize = (0..3).map(|shard| server.shared(shard).buffer_bytes).sum();
            assert!(held < 12 * SIZE, "{held} bytes for a client that does not read");
        }
        // It reads what is in flight, and no more.
        server.clients[a].reads = true;
        server.transmit(a);
        server.clients[a].reads = false;
        received.append(&mut server.clients[a].received);
        if received.len() >= 100 * (SIZE + 12) {
            break;
        }
    }
    assert_eq!(received.len(), 100 * (SIZE + 12), "not everything came");
    for (n, reply) in received.chunks(SIZE + 12).enumerate() {
        assert!(reply[10..SIZE + 10].iter().all(|&byte| byte == b'a' + (n % 4) as u8), "reply {n}");
    }
}

#[test]
fn a_queue_of_one_hop_slows_and_loses_nothing() {
    let mut server = Server::new(3, &[("hop-queue", "1")]);
    server.order = Some(Random(3));
    let clients: Vec<usize> = (0..12).map(|n| server.connect(n % 3)).collect();
    let keys: Vec<String> = (0..3).map(|shard| on(shard, "n")).collect();
    let pipeline: Vec<u8> = (0..100).flat_map(|n| resp(&[b"INCR", keys[n % 3].as_bytes()])).collect();
    for &client in &clients {
        server.send(client, &pipeline);
    }
    server.run();
    for &client in &clients {
        let answer = server.take(client);
        let numbers: Vec<u64> =
            answer.split("\r\n").filter_map(|line| line.strip_prefix(':')?.parse().ok()).collect();
        assert_eq!(numbers.len(), 100);
        for lane in 0..3 {
            let of_key: Vec<u64> = numbers.iter().skip(lane).step_by(3).copied().collect();
            assert!(of_key.is_sorted(), "a client's commands overtook each other");
        }
    }
    let all = server.say(clients[0], format!("MGET {} {} {}\r\n", keys[0], keys[1], keys[2]));
    assert_eq!(all, "*3\r\n$3\r\n408\r\n$3\r\n396\r\n$3\r\n396\r\n");
    let waits: u64 = (0..3).map(|shard| server.shared(shard).fleet.queue_waits).sum();
    assert!(waits > 0);
}

#[test]
fn a_pipeline_longer_than_a_lane_waits_and_goes_on() {
    let (mut server, [a, ..]) = Server::three();
    let key = on(2, "n");
    let pipeline = resp(&[b"INCR", key.as_bytes()]).repeat(2000);
    let wanted: String = (1..=2000).map(|n| format!(":{n}\r\n")).collect();
    assert_eq!(server.say(a, pipeline), wanted);
}

#[test]
fn a_sleeping_shard_delays_only_what_needs_it() {
    let (mut server, [a, b, c]) = Server::three();
    let keys = [on(0, "k"), on(1, "k"), on(2, "k")];
    server.say(a, format!("MSET {} 0 {} 1 {} 2\r\n", keys[0], keys[1], keys[2]));
    server.sleep(1);
    // Whoever needs nothing of it is served, alone or over two shards.
    assert_eq!(
        server.say(a, format!("GET {}\r\nMGET {0} {}\r\n", keys[2], keys[0])),
        "$1\r\n2\r\n*2\r\n$1\r\n2\r\n$1\r\n0\r\n"
    );
    // Whoever needs it waits, and keeps nobody from working.
    assert_eq!(server.say(c, "DBSIZE\r\nPING\r\n"), "");
    let other = server.connect(2);
    assert_eq!(server.say(other, format!("GET {}\r\n", keys[1])), "");
    assert_eq!(
        server.say(a, format!("MGET {} {}\r\nPING\r\n", keys[0], keys[2])),
        "*2\r\n$1\r\n0\r\n$1\r\n2\r\n+PONG\r\n"
    );
    let third = server.connect(0);
    assert_eq!(server.say(third, format!("MSET {} x {} y\r\n", keys[0], keys[1])), "");
    assert_eq!(server.say(a, format!("GET {}\r\n", keys[0])), "$1\r\n0\r\n");
    server.wake(1);
    server.run();
    assert_eq!(server.take(c), ":3\r\n+PONG\r\n");
    assert_eq!(server.take(other), "$1\r\n1\r\n");
    assert_eq!(server.take(third), "+OK\r\n");
    assert_eq!(server.say(b, format!("MGET {} {}\r\n", keys[0], keys[1])), "*2\r\n$1\r\nx\r\n$1\r\ny\r\n");
}

#[test]
fn a_shard_that_falls_asleep_while_it_gathers_gives_back_what_it_had() {
    let (mut server, [a, b, c]) = Server::three();
    for step in 0..12 {
        server.order = Some(Random(step));
        server.send(c, b"DBSIZE\r\n");
        for _ in 0..step {
            server.round();
        }
        server.come_home(2);
        server.sleep(2);
        let two = format!("MGET {} {}\r\nPING\r\n", on(0, "k"), on(1, "k"));
        assert_eq!(server.say(a, two), "*2\r\n$-1\r\n$-1\r\n+PONG\r\n", "step {step}");
        server.wake(2);
        server.run();
        assert!(server.take(c).starts_with(":0"), "step {step}");
        assert_eq!(server.say(b, "DBSIZE\r\n"), ":0\r\n");
    }
}

/// Whatever clients do, and whenever they leave or shards sleep: everybody is served, and nothing is left behind.
#[test]
fn after_any_tumult_nothing_is_left_behind() {
    let seeds = match std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => seed..seed + 1,
        None => 0..20,
    };
    for seed in seeds {
        let mut random = Random(seed);
        let queue = if seed % 2 == 0 { "1" } else { "1024" };
        let mut server = Server::new(3, &[("hop-queue", queue)]);
        server.order = Some(Random(seed + 77));
        let mut living: Vec<usize> = (0..6).map(|n| server.connect(n % 3)).collect();
        for _ in 0..400 {
            let at = random.below(living.len());
            let client = living[at];
            let is_away = |server: &Server, shard: usize| {
                server.engines[shard].is_lent() || server.asleep.contains(shard)
            };
            let shard = server.clients[client].shard;
            match random.below(20) {
                0 if !is_away(&server, shard) => {
                    server.disconnect(client);
                    living[at] = server.connect(shard);
                }
                1 => {
                    let shard = random.below(3);
                    if server.asleep.contains(shard) {
                        server.wake(shard);
                    } else if !server.engines[shard].is_lent() && server.asleep.is_empty() {
                        server.sleep(shard);
                    }
                }
                2..=4 => {
                    server.round();
                }
                _ if is_away(&server, shard) => {
                    server.round();
                }
                _ => {
                    let command = match random.below(60) {
                        0 => resp(&[b"CLIENT", b"KILL", b"TYPE", b"pubsub"]),
                        1 | 2 => resp(&[b"SUBSCRIBE", b"nobody", b"somebody"]),
                        3 => resp(&[b"PSUBSCRIBE", b"*"]),
                        4 => resp(&[b"CLIENT", b"PAUSE", b"1", b"WRITE"]),
                        5 => resp(&[b"CLIENT", b"UNPAUSE"]),
                        6 => resp(&[b"CONFIG", b"SET", b"maxmemory", random.pick(&[&b"0"[..], b"1gb"])]),
                        7 => resp(&[b"INFO", b"everything"]),
                        8 => resp(&[b"CLIENT", b"LIST"]),
                        9 => resp(&[b"QUIT"]),
                        10 => resp(&[b"RESET"]),
                        11 => resp(&[b"SCAN", b"1"]),
                        12 => resp(&[b"SLOWLOG", b"GET"]),
                        _ => commands::random_command(&mut random),
                    };
                    server.send(client, &command);
                }
            }
            for client in &mut living {
                if server.clients[*client].closed && !is_away(&server, server.clients[*client].shard) {
                    *client = server.connect(server.clients[*client].shard);
                }
            }
        }
        while let Some(shard) = server.asleep.first() {
            server.wake(shard);
        }
        server.run();
        let probe = server.connect(seed as usize % 3);
        assert_eq!(server.say(probe, "CLIENT UNPAUSE\r\n"), "+OK\r\n", "seed {seed}");
        server.run();
        for client in living {
            let session = server.engines[server.clients[client].shard].shared_mut();
            let waits = session.sessions.get_mut(server.clients[client].connection);
            let waits = waits.is_some_and(|session| session.waits() || session.has_holes || session.gathers);
            assert!(!waits, "seed {seed}: client {client} waits for ever");
            server.disconnect(client);
        }
        server.disconnect(probe);
        server.run();
        assert_eq!(server.watched(), 0, "seed {seed}");
        for shard in 0..3 {
            let shared = server.shared(shard);
            let left = (shared.clients, shared.subscribers, shared.buffer_bytes, shared.sessions.len());
            assert_eq!(left, (0, 0, 0, 0), "seed {seed}, shard {shard}");
            assert!(shared.fleet.gathers.is_empty() && shared.fleet.acquisition.is_none(), "seed {seed}");
            assert!(shared.fleet.traffic.is_idle(), "seed {seed}, shard {shard}: hops are missing");
        }
    }
}
