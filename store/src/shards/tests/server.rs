//! Commands about the whole server, asked on any shard.

use super::*;

#[test]
fn a_message_reaches_listeners_on_every_shard() {
    let (mut server, [a, b, c]) = Server::three();
    let other = server.connect(1);
    server.say(a, "SUBSCRIBE news\r\n");
    server.say(b, "SUBSCRIBE news other\r\nPSUBSCRIBE n*\r\n");
    server.say(other, "PSUBSCRIBE n* x*\r\nSSUBSCRIBE piece\r\n");
    let publisher = server.connect(2);
    assert_eq!(server.say(publisher, "PUBLISH news hello\r\nPUBLISH none hello\r\n"), ":4\r\n:2\r\n");
    assert_eq!(server.take(a), "*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$5\r\nhello\r\n");
    assert_eq!(server.take(b).matches("hello").count(), 3);
    assert_eq!(server.take(other).matches("pmessage").count(), 2);
    assert_eq!(server.say(publisher, "SPUBLISH piece hello\r\n"), ":1\r\n");
    assert!(server.take(other).contains("smessage"));
    assert_eq!(
        server.say(publisher, "PUBSUB NUMSUB news other none\r\n"),
        "*6\r\n$4\r\nnews\r\n:2\r\n$5\r\nother\r\n:1\r\n$4\r\nnone\r\n:0\r\n"
    );
    assert_eq!(server.say(publisher, "PUBSUB CHANNELS\r\n"), "*2\r\n$4\r\nnews\r\n$5\r\nother\r\n");
    assert_eq!(server.say(publisher, "PUBSUB NUMPAT\r\n"), ":2\r\n");
    assert_eq!(server.say(publisher, "PUBSUB SHARDNUMSUB piece\r\n"), "*2\r\n$5\r\npiece\r\n:1\r\n");
    assert_eq!(server.say(publisher, "PUBSUB SHARDCHANNELS\r\n"), "*1\r\n$5\r\npiece\r\n");
    // A publisher with the slot of a listener on another shard does not hear for it.
    assert_eq!(server.say(c, "HELLO 3\r\nSUBSCRIBE mine\r\n").matches("mine").count(), 1);
    assert_eq!(server.say(c, "PUBLISH mine x\r\n").matches("message").count(), 1);
    // In a transaction too.
    assert!(server.say(publisher, "MULTI\r\nPUBLISH news again\r\nEXEC\r\n").ends_with("*1\r\n:4\r\n"));
    assert!(server.take(a).contains("again"));
    let stats = server.say(publisher, "INFO stats\r\n");
    assert_eq!(field(&stats, "pubsub_channels"), 3);
    assert_eq!(field(&stats, "pubsub_patterns"), 2);
    assert_eq!(field(&stats, "messages_published"), 5);
}

#[test]
fn clients_are_listed_and_killed_on_every_shard() {
    let (mut server, [a, b, c]) = Server::three();
    for (client, name) in [(a, "first"), (b, "second"), (c, "third")] {
        server.say(client, format!("CLIENT SETNAME {name}\r\n"));
    }
    let list = server.say(c, "CLIENT LIST\r\n");
    let ids: Vec<u64> =
        list.lines().filter(|line| line.contains("id=")).map(|line| field(line, "id")).collect();
    assert_eq!(ids.len(), 3);
    assert!(ids.is_sorted(), "{ids:?}");
    assert!(list.contains("name=first ") && list.contains("name=second ") && list.contains("name=third "));
    let id = field(list.lines().find(|line| line.contains("name=second ")).unwrap(), "id");
    assert!(server.say(a, format!("CLIENT LIST ID {id}\r\n")).contains("name=second "));
    assert_eq!(
        server.say(a, format!("CLIENT TRACKING ON REDIRECT {id}\r\nCLIENT TRACKING ON REDIRECT 999\r\n")),
        "+OK\r\n\
         -ERR The client ID you want redirect to does not exist\r\n"
    );
    assert_eq!(server.say(a, format!("CLIENT KILL ID {id}\r\nCLIENT KILL ID {id}\r\n")), ":1\r\n:0\r\n");
    assert!(server.clients[b].closed);
    assert_eq!(server.say(a, "CLIENT KILL TYPE normal SKIPME no\r\n"), ":2\r\n");
    assert!(server.clients[a].closed && server.clients[c].closed);
    let late = server.connect(1);
    assert_eq!(field(&server.say(late, "INFO clients\r\n"), "connected_clients"), 1);
}

#[test]
fn a_pause_holds_all_shards_and_its_end_lets_all_go_on() {
    let (mut server, [a, b, c]) = Server::three();
    assert_eq!(server.say(a, "CLIENT PAUSE 100000 WRITE\r\n"), "+OK\r\n");
    assert_eq!(server.say(b, format!("GET {0}\r\nSET {0} v\r\n", on(2, "k"))), "$-1\r\n");
    assert_eq!(server.say(c, "MSET a 1 b 2 c 3\r\nDBSIZE\r\n"), "");
    assert_eq!(server.say(a, "CLIENT UNPAUSE\r\n"), "+OK\r\n");
    assert_eq!(server.take(b), "+OK\r\n");
    assert_eq!(server.take(c), "+OK\r\n:4\r\n");
}

#[test]
fn a_setting_is_changed_on_all_shards_or_on_none() {
    let (mut server, [a, b, c]) = Server::three();
    assert_eq!(server.say(a, "CONFIG SET maxmemory 100mb slowlog-max-len 7\r\n"), "+OK\r\n");
    for client in [a, b, c] {
        assert_eq!(
            server.say(client, "CONFIG GET maxmemory\r\n"),
            "*2\r\n$9\r\nmaxmemory\r\n$9\r\n104857600\r\n"
        );
    }
    assert!((0..3).all(|shard| server.shared(shard).is_restricted));
    assert!(
        server
            .say(b, "CONFIG SET maxmemory 1mb slowlog-max-len no\r\n")
            .starts_with("-ERR CONFIG SET failed")
    );
    assert!((0..3).all(|shard| server.shared(shard).config.maxmemory == 100 << 20));
    // Who has not given the password is let in everywhere once there is none.
    assert_eq!(server.say(a, "CONFIG SET requirepass secret\r\n"), "+OK\r\n");
    let late = server.connect(2);
    assert!(server.say(late, "GET a\r\n").starts_with("-NOAUTH"));
    assert_eq!(server.say(b, "CONFIG SET requirepass \"\"\r\n"), "+OK\r\n");
    assert_eq!(server.say(late, "GET a\r\n"), "$-1\r\n");
    assert_eq!(server.say(late, "CONFIG SET maxmemory 0\r\nDEBUG SET-ACTIVE-EXPIRE 0\r\n"), "+OK\r\n+OK\r\n");
    assert!(
        (0..3).all(|shard| !server.shared(shard).is_restricted && !server.shared(shard).expires_actively)
    );
}

#[test]
fn the_slow_log_is_one_for_all_shards() {
    let (mut server, [a, b, c]) = Server::three();
    server.say(a, "CONFIG SET slowlog-log-slower-than 0 slowlog-max-len 4\r\nSLOWLOG RESET\r\n");
    for (n, client) in [a, b, c, a, b, c].into_iter().enumerate() {
        server.say(client, format!("ECHO message{n}\r\n"));
    }
    assert_eq!(server.say(b, "SLOWLOG LEN\r\n"), ":4\r\n");
    // LEN and, on its way, GET itself are in it by now; the latest come first.
    let log = server.say(c, "SLOWLOG GET -1\r\n");
    let order: Vec<_> =
        ["LEN", "message5", "message4", "message3"].iter().map(|word| log.find(word)).collect();
    assert!(order.iter().all(Option::is_some) && order.is_sorted(), "{log}");
    assert!(!log.contains("message2"));
    let ids: Vec<&str> =
        log.split("*6\r\n").skip(1).map(|entry| entry.split("\r\n").next().unwrap()).collect();
    assert_eq!(ids.len(), 4);
    assert!((0..4).all(|at| !ids[..at].contains(&ids[at])), "{ids:?}");
    // What is over a shorter length is gone for good, on every shard.
    server.say(
        a,
        "CONFIG SET slowlog-log-slower-than -1 slowlog-max-len 2\r\nCONFIG SET slowlog-max-len 100\r\n",
    );
    assert_eq!(server.say(a, "SLOWLOG LEN\r\n"), ":2\r\n");
    assert_eq!(server.say(b, "SLOWLOG RESET\r\nSLOWLOG LEN\r\n"), "+OK\r\n:0\r\n");
}

#[test]
fn slow_events_of_all_shards_are_one_history() {
    let (mut server, [a, b, _]) = Server::three();
    let at = |second: u64| Now { unix_us: second * 1_000_000, ..START };
    for (shard, second, ms) in [(0, 10, 5), (1, 11, 9), (1, 12, 2), (2, 10, 7), (0, 13, 1)] {
        server.engines[shard].shared_mut().latency.push("command", Nanos(ms * 1_000_000), at(second));
    }
    server.engines[2].shared_mut().latency.push("fast-command", Nanos(3_000_000), at(9));
    assert_eq!(
        server.say(b, "LATENCY HISTORY command\r\n"),
        "*4\r\n*2\r\n:10\r\n:7\r\n*2\r\n:11\r\n:9\r\n*2\r\n:12\r\n:2\r\n*2\r\n:13\r\n:1\r\n"
    );
    assert_eq!(
        server.say(a, "LATENCY LATEST\r\n"),
        "*2\r\n*4\r\n$7\r\ncommand\r\n:13\r\n:1\r\n:9\r\n*4\r\n$12\r\nfast-command\r\n:9\r\n:3\r\n:3\r\n"
    );
    assert!(server.say(a, "LATENCY GRAPH fast-command\r\n").contains("high 3 ms"));
    assert_eq!(server.say(a, "LATENCY RESET command nothing\r\nLATENCY RESET\r\n"), ":1\r\n:1\r\n");
    assert_eq!(server.say(b, "LATENCY LATEST\r\n"), "*0\r\n");
}

#[test]
fn figures_are_sums_over_all_shards_and_shown_of_each() {
    let (mut server, [a, b, c]) = Server::three();
    for n in 0..300 {
        server.say([a, b, c][n % 3], format!("SET key:{n} v\r\nGET key:{n}\r\nGET nothing:{n}\r\nGET\r\n"));
    }
    server.say(a, "MSET a 1 b 2 c 3 d 4\r\nEXPIRE a 1000\r\nEXPIRE b 1000\r\n");
    let info = server.say(b, "INFO all\r\n");
    assert_eq!(field(&info, "keyspace_hits"), 300);
    assert_eq!(field(&info, "keyspace_misses"), 300);
    assert_eq!(field(&info, "connected_clients"), 3);
    assert_eq!(field(&info, "total_connections_received"), 3);
    assert_eq!(field(&info, "db0:keys"), 304);
    assert_eq!(field(&info, "expires"), 2);
    assert_eq!(field(&info, "cmdstat_get:calls"), 600);
    assert_eq!(field(&info, "errorstat_ERR:count"), 300);
    let used: u64 = (0..3).map(|shard| server.shared(shard).used_memory()).sum();
    assert!(field(&info, "\nused_memory").abs_diff(used) < 10_000);
    let hops: u64 = (0..3).map(|shard| server.shared(shard).fleet.hops_sent).sum();
    assert!(hops > 300 && field(&info, "\nhops_sent") == hops);
    for shard in 0..3 {
        let line = info.lines().find(|line| line.starts_with(&format!("shard{shard}:"))).unwrap();
        assert_eq!(field(line, "keys"), server.shared(shard).keyspace.len() as u64);
        assert_eq!(field(line, "hops_served"), server.shared(shard).fleet.hops_served);
        assert_eq!(field(line, "clients"), 1);
        assert!(field(line, "used_memory") > 0);
    }
    assert!(!server.say(b, "INFO\r\n").contains("shard0:"));
    assert_eq!(field(&server.say(c, "MEMORY STATS\r\n").replace("\r\n:", " "), "keys.count"), 304);
    let histogram = server.say(a, "LATENCY HISTOGRAM get\r\n").replace("\r\n:", " ");
    // Each is timed where it was executed, and only there; the 300 without a key are counted too, as by one shard.
    assert_eq!(field(&histogram, "calls"), 900);

    let mut page = Vec::new();
    crate::metrics::write_prometheus(server.shared(0), &mut page);
    assert!(text(&page).contains("millrace_shard_keys{shard=\"0\"}") && !text(&page).contains("shard=\"1\""));

    assert_eq!(server.say(c, "CONFIG RESETSTAT\r\n"), "+OK\r\n");
    let info = server.say(a, "INFO all\r\n");
    for name in ["keyspace_hits", "total_error_replies", "\nhops_sent", "total_connections_received"] {
        assert_eq!(field(&info, name), 0, "{name}");
    }
}

#[test]
fn the_way_over_another_shard_is_a_stage_and_info_adds_up_all_shards() {
    let mut server = Server::new(3, &[("stage-sampling", "1")]);
    let [a, b] = [0, 1].map(|shard| server.connect(shard));
    let (on_first, on_second, on_third) = (on(0, "k"), on(1, "k"), on(2, "k"));
    for _ in 0..10 {
        // The last reply is one of the connection's own shard, and comes behind two of another.
        server.say(a, format!("SET {on_third} 1\r\nGET {on_third}\r\nGET {on_first}\r\n"));
        server.say(a, format!("GET {on_first}\r\n"));
        server.say(b, format!("GET {on_second}\r\n"));
        // Nobody wants this reply: there is nothing to time.
        server.say(b, format!("CLIENT REPLY SKIP\r\nGET {on_third}\r\n"));
    }
    let info = server.say(b, "INFO stages\r\n");
    let of = |kind: &str, stage: &str| {
        let line =
            info.lines().find(|line| line.starts_with(&format!("stage_{kind}_{stage}:"))).expect("a stage");
        (field(line, "samples"), field(line, "nanoseconds"))
    };
    assert_eq!((of("write", "hop").0, of("read", "hop")), (10, (20, 0)), "{info}");
    assert!(of("write", "hop").1 >= 10 * 20_000, "at least a round each: {info}");
    for kind in crate::stages::KINDS {
        let stages = crate::stages::STAGES.iter().map(|stage| of(kind, stage.name).1);
        assert_eq!(stages.sum::<u64>(), of(kind, "total").1, "{info}");
    }
    assert_eq!(field(&info, "stage_samples"), 30);
    // INFO itself is a command over all shards, this one too.
    assert_eq!(field(&server.say(b, "INFO stages\r\n"), "stage_samples_left_out"), 2);
    server.say(b, "CONFIG RESETSTAT\r\n");
    assert_eq!(field(&server.say(b, "INFO stages\r\n"), "stage_samples"), 0);
}

const HOST: &str = "HTTP/1.1\r\nHost: localhost\r\n";

fn statuses(responses: &str) -> Vec<&str> {
    responses.split("HTTP/1.1 ").skip(1).map(|response| &response[..3]).collect()
}

#[test]
fn http_requests_are_answered_in_order_whatever_shard_has_the_key() {
    let (mut server, [a, ..]) = Server::three();
    let http = server.connect_as(1, Transport::Http);
    let mut requests = String::new();
    for n in 0..30 {
        requests.push_str(&format!("PUT /v1/keys/key:{n} {HOST}Content-Length: 7\r\n\r\nvalue{n:02}"));
    }
    for n in 0..30 {
        requests.push_str(&format!("GET /v1/keys/key:{n} {HOST}\r\n"));
    }
    requests.push_str(&format!(
        "DELETE /v1/keys/key:7 {HOST}\r\nGET /v1/keys/key:7 {HOST}\r\nGET /metrics {HOST}\r\n"
    ));
    requests.push_str(&format!("POST /v1/keys/count?op=incr {HOST}\r\nGET /healthz {HOST}\r\n"));
    let responses = server.say(http, &requests);
    let got = statuses(&responses);
    assert_eq!(got[..30], ["201"; 30]);
    assert_eq!(got[30..60], ["200"; 30]);
    assert_eq!(got[60..63], ["204", "404", "200"]);
    assert_eq!(got.len(), 65, "{responses}");
    let places: Vec<_> = (0..30).map(|n| responses.find(&format!("value{n:02}")).unwrap()).collect();
    assert!(places.is_sorted());
    assert_eq!(field(&responses, "\nmillrace_keys"), 29);
    for shard in 0..3 {
        let keys = field(&responses, &format!("millrace_shard_keys{{shard=\"{shard}\"}}"));
        assert!(keys > 0);
    }
    // The listing goes through all shards.
    let (mut cursor, mut found) = (String::from("0"), 0);
    loop {
        let page = server.say(http, format!("GET /v1/keys?cursor={cursor}&count=5 {HOST}\r\n"));
        found += page.matches("key%3A").count();
        cursor = page.split("\"cursor\":\"").nth(1).unwrap().split('"').next().unwrap().into();
        if cursor == "0" {
            break;
        }
    }
    assert_eq!(found, 29);
    assert!(server.say(a, "DBSIZE\r\n").starts_with(":30") || server.say(a, "DBSIZE\r\n").starts_with(":29"));
    // The last request of a connection is answered before it closes.
    let last = format!("GET /v1/keys/key:1 {HOST}Connection: close\r\n\r\nGET /v1/keys/key:2 {HOST}\r\n");
    assert_eq!(statuses(&server.say(http, last)), ["200"]);
    assert!(server.clients[http].closed);
    // So are those of one that says it will send no more.
    for shard in 0..3 {
        let http = server.connect_as(shard, Transport::Http);
        let three: String = (1..4).map(|n| format!("GET /v1/keys/key:{n} {HOST}\r\n")).collect();
        server.send(http, three.as_bytes());
        let (connection, now) = (server.clients[http].connection, server.now);
        server.engines[shard].handle_receive_end(connection, now);
        server.run();
        assert_eq!(statuses(&server.take(http)), ["200"; 3]);
        assert!(server.clients[http].closed);
    }
}

/// Keys that are dealt out unevenly: three shards have taken all there may be before the fourth begins. It once evicted for
/// all of them, of the little it had, and then refused: hundreds of errors in a run of redis-benchmark.
#[test]
fn a_shard_below_its_share_neither_evicts_nor_refuses_for_the_others() {
    const LIMIT: u64 = 8 << 20;
    let count = 4;
    let mut server = Server::new(count, &[("maxmemory", "8mb"), ("maxmemory-policy", "allkeys-lru")]);
    let clients: Vec<usize> = (0..count).map(|shard| server.connect(shard)).collect();
    let value = "v".repeat(1000);
    let mut next = 0;
    // Keys of one shard, one after the other.
    let mut key_on = |shard: usize| loop {
        next += 1;
        let key = format!("key:{next}");
        if (Place { index: 0, count }).shard_of(key.as_bytes()) == shard {
            return key;
        }
    };
    let everywhere = |server: &Server| -> u64 { (0..count).map(|s| server.shared(s).used_memory()).sum() };
    let mut shards = (1..count).cycle();
    while everywhere(&server) + 4000 < LIMIT {
        let shard = shards.next().unwrap();
        let set = format!("SET {} {value}\r\n", key_on(shard));
        assert_eq!(server.say(clients[shard], set), "+OK\r\n");
    }
    // No turn comes between these: what the others evict meanwhile is not known here.
    let mine: Vec<String> = (0..500).map(|_| key_on(0)).collect();
    let sets: String = mine.iter().map(|key| format!("SET {key} {value}\r\n")).collect();
    assert_eq!(server.say(clients[0], sets), "+OK\r\n".repeat(mine.len()));
    let exists = format!("EXISTS {}\r\n", mine.join(" "));
    assert_eq!(
        server.say(clients[0], exists),
        format!(":{}\r\n", mine.len()),
        "below its share it evicts nothing"
    );
    // And all together they come back below the limit as the others write.
    for (shard, &client) in clients.iter().enumerate().skip(1) {
        for _ in 0..400 {
            let set = format!("SET {} {value}\r\n", key_on(shard));
            assert_eq!(server.say(client, set), "+OK\r\n");
        }
    }
    assert!(everywhere(&server) <= LIMIT, "{} bytes", everywhere(&server));
}

/// It was the sum of what each shard ever had, at whatever time: twice as much as there ever was, here.
#[test]
fn the_most_memory_is_that_of_one_moment() {
    let (mut server, [a, ..]) = Server::three();
    let value = bulk(&"x".repeat(4 << 20));
    let before = field(&server.say(a, "INFO memory\r\n"), "used_memory");
    for shard in 0..3 {
        let key = on(shard, "k");
        server.say(a, format!("*3\r\n$3\r\nSET\r\n{}{value}", bulk(&key)));
        // Long enough that somebody looks.
        server.now.monotonic.0 += 1_000_000_000;
        server.run();
        server.say(a, format!("DEL {key}\r\n"));
        server.now.monotonic.0 += 1_000_000_000;
        server.run();
    }
    let info = server.say(a, "INFO memory\r\n");
    let (peak, now) = (field(&info, "used_memory_peak"), field(&info, "used_memory"));
    assert!(now < before + (2 << 20), "{now} bytes are left, {before} before");
    assert!((4 << 20..7 << 20).contains(&(peak - before)), "{peak} at most, {before} before");
    server.say(a, "CONFIG RESETSTAT\r\n");
    let info = server.say(a, "INFO memory\r\n");
    assert!(field(&info, "used_memory_peak") < before + (2 << 20));
}

/// As Redis': an estimate. Of keys of one length of life it is exact, of several about right; without any it is 0.
#[test]
fn the_mean_time_to_live_is_estimated() {
    let (mut server, [a, ..]) = Server::three();
    let estimate = |server: &mut Server| field(&server.say(a, "INFO keyspace\r\n"), "avg_ttl");
    let many = |from: usize, to: usize, seconds: usize| -> String {
        (from..to).map(|at| format!("SET key:{at} 1 EX {seconds}\r\n")).collect()
    };
    server.say(a, "SET eternal 1\r\n");
    assert_eq!(estimate(&mut server), 0);
    server.say(a, many(0, 300, 100));
    let first = estimate(&mut server);
    assert!((99_000..=100_000).contains(&first), "{first}");
    server.say(a, many(300, 600, 10_000));
    let both = estimate(&mut server);
    assert!((4_000_000..6_000_000).contains(&both), "{both} of 100 and 10,000 seconds");
    server.now.unix_us += 50_000_000;
    server.now.monotonic.0 += 50_000_000_000;
    server.run();
    let later = estimate(&mut server);
    assert!((both - 51_000..both - 49_000).contains(&later), "{later} fifty seconds after {both}");
    server.say(a, (0..600).map(|at| format!("PERSIST key:{at}\r\n")).collect::<String>());
    assert_eq!(estimate(&mut server), 0);
}
