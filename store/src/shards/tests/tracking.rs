//! Client tracking over several shards, by hand: who is told what, in which order, and when. Random clients are in
//! [`super::caches`].

use super::*;
use crate::tracking::Mistake;
use alloc::collections::BTreeSet;

const INVALIDATE: &str = ">2\r\n$10\r\ninvalidate\r\n";

fn told(key: &str) -> String {
    format!("{INVALIDATE}*1\r\n{}", bulk(key))
}

fn tracks(server: &mut Server, client: usize, options: &str) {
    let answer = server.say(client, format!("HELLO 3\r\nCLIENT TRACKING ON {options}\r\n"));
    assert!(answer.ends_with("+OK\r\n"), "{answer}");
}

#[test]
fn a_reader_on_any_shard_is_told_once_whoever_writes() {
    for reader in 0..3 {
        for writer in 0..3 {
            for key in 0..3 {
                let (mut server, clients) = Server::three();
                let (reader, writer, key) = (clients[reader], clients[writer], on(key, "k"));
                tracks(&mut server, reader, "");
                assert_eq!(server.say(reader, format!("GET {key}\r\n")), "_\r\n");
                let reply = server.say(writer, format!("SET {key} 1\r\n"));
                if reader == writer {
                    assert_eq!(reply, format!("+OK\r\n{}", told(&key)));
                } else {
                    assert_eq!((reply, server.take(reader)), ("+OK\r\n".into(), told(&key)));
                }
                server.say(writer, format!("SET {key} 2\r\n"));
                assert_eq!(server.take(reader), "");
            }
        }
    }
}

#[test]
fn commands_over_several_shards_register_and_tell_on_each() {
    let (mut server, [a, b, _]) = Server::three();
    let keys = [on(0, "k"), on(1, "k"), on(2, "k")];
    tracks(&mut server, a, "");
    server.say(a, format!("MGET {}\r\n", keys.join(" ")));
    assert_eq!(field(&server.say(b, "INFO stats\r\n"), "tracking_total_items"), 3);
    server.say(
        b,
        format!(
            "MULTI\r\nSET {} 1\r\nDEL {}\r\nRENAME {} {}\r\nEXEC\r\n",
            keys[0], keys[1], keys[0], keys[2]
        ),
    );
    let pushes = server.take(a);
    for key in [&keys[0], &keys[2]] {
        assert_eq!(pushes.matches(&*told(key)).count(), 1, "{pushes}");
    }
    assert_eq!(pushes.len(), 2 * told(&keys[0]).len(), "DEL of a key that is not there is no change");
    server.say(a, format!("MULTI\r\nGET {}\r\nGET {}\r\nEXEC\r\n", keys[0], keys[1]));
    server.say(b, "FLUSHALL\r\n");
    assert_eq!(server.take(a), format!("{INVALIDATE}_\r\n"));
    let stats = server.say(b, "INFO stats\r\n");
    assert_eq!((field(&stats, "tracking_total_items"), field(&stats, "tracking_pushes")), (0, 3));
}

#[test]
fn caching_lasts_for_the_next_command_or_transaction_on_whatever_shard() {
    let (mut server, [a, b, _]) = Server::three();
    let (far, farther) = (on(1, "k"), on(2, "k"));
    tracks(&mut server, a, "OPTIN");
    server.say(a, format!("CLIENT CACHING YES\r\nGET {far}\r\nGET {farther}\r\n"));
    server.say(b, format!("SET {far} 1\r\nSET {farther} 1\r\n"));
    assert_eq!(server.take(a), told(&far));
    // As rueidis has it.
    server.say(
        a,
        format!("CLIENT CACHING YES\r\nMULTI\r\nPTTL {far}\r\nGET {far}\r\nEXEC\r\nGET {farther}\r\n"),
    );
    server.say(b, format!("SET {far} 2\r\nSET {farther} 2\r\n"));
    assert_eq!(server.take(a), told(&far));
}

#[test]
fn whoever_wants_all_keys_of_a_prefix_hears_of_them_from_every_shard() {
    let (mut server, [a, b, c]) = Server::three();
    tracks(&mut server, a, "BCAST PREFIX a: PREFIX b:");
    tracks(&mut server, b, "BCAST NOLOOP");
    let keys = ["a:1", "a:2", "b:1", "b:2", "c:1", "c:2"];
    keys.iter().for_each(|key| assert_eq!(server.say(c, format!("SET {key} 1\r\n")), "+OK\r\n"));
    let wanted = |keys: &[&str]| keys.iter().map(|key| told(key)).collect::<Vec<_>>().concat();
    assert_eq!(server.take(a), wanted(&keys[..4]));
    assert_eq!(server.take(b), wanted(&keys));
    keys.iter().for_each(|key| assert_eq!(server.say(b, format!("DEL {key}\r\n")), ":1\r\n"));
    assert_eq!(server.take(a), wanted(&keys[..4]));
    assert_eq!(field(&server.say(c, "INFO stats\r\n"), "tracking_total_prefixes"), 3);
    server.say(a, "CLIENT TRACKING OFF\r\n");
    server.disconnect(b);
    server.run();
    server.say(c, "SET a:1 1\r\n");
    assert_eq!(server.take(a), "");
    for shard in 0..3 {
        assert!(!server.shared(shard).is_tracking, "shard {shard} keeps a table for nobody");
    }
}

#[test]
fn redirection_crosses_shards_and_its_end_is_told() {
    let (mut server, [a, b, c]) = Server::three();
    let key = on(2, "k");
    let id = field(&server.say(b, "CLIENT INFO\r\n"), "id");
    server.say(b, "SUBSCRIBE __redis__:invalidate\r\n");
    tracks(&mut server, a, &format!("REDIRECT {id}"));
    assert_eq!(server.say(a, "CLIENT GETREDIR\r\n"), format!(":{id}\r\n"));
    assert!(server.say(a, "CLIENT LIST\r\n").contains(&format!(" redir={id} ")));
    server.say(a, format!("GET {key}\r\n"));
    server.say(c, format!("SET {key} 1\r\n"));
    assert_eq!(
        (server.take(a), server.take(b)),
        (
            String::new(),
            format!("*3\r\n$7\r\nmessage\r\n$20\r\n__redis__:invalidate\r\n*1\r\n{}", bulk(&key))
        )
    );
    server.say(c, "FLUSHALL\r\n");
    assert!(server.take(b).ends_with("__redis__:invalidate\r\n$-1\r\n"));
    server.say(a, format!("GET {key}\r\n"));
    server.disconnect(b);
    server.say(c, format!("SET {key} 2\r\n"));
    assert_eq!(server.take(a), format!(">2\r\n$21\r\ntracking-redir-broken\r\n:{id}\r\n"));
    let info = server.say(a, "CLIENT TRACKINGINFO\r\nCLIENT LIST\r\n");
    assert!(info.contains("broken_redirect") && info.contains("flags=tR "), "{info}");
}

#[test]
fn a_change_is_told_when_it_is_durable_and_nobody_else_waits() {
    let mut server = Server::new(2, &[]);
    let place = Place { index: 0, count: 2 };
    let key = (0..).map(|at| format!("k{at}")).find(|key| place.shard_of(key.as_bytes()) == 1).unwrap();
    let (near, far, writer) = (server.connect(0), server.connect(1), server.connect(1));
    for engine in &mut server.engines {
        engine.keep_journal(Journal::new(Arc::new(AtomicU64::new(1)), Durability::Always));
    }
    for reader in [near, far] {
        tracks(&mut server, reader, "");
        server.say(reader, format!("GET {key}\r\n"));
    }
    let listener = server.connect(0);
    tracks(&mut server, listener, "BCAST");
    assert_eq!(server.say(writer, format!("SET {key} 1\r\n")), "");
    assert_eq!((0..2).map(|shard| server.engines[shard].first_awaited()).collect::<Vec<_>>(), [Some(1); 2]);
    for reader in [near, far, listener] {
        assert_eq!(server.take(reader), "", "a crash could take it back");
        assert_eq!(server.say(reader, "PING\r\n"), "+PONG\r\n", "and nothing else waits for it");
    }
    server.engines[1].set_durable(1);
    assert_eq!(server.engines[1].first_awaited(), None);
    server.run();
    assert_eq!(server.take(far), told(&key));
    assert_eq!(server.take(writer), "+OK\r\n");
    // The other shard has heard of the change already, and waits for nobody but the log.
    assert_eq!((server.take(near), server.take(listener)), (String::new(), String::new()));
    server.engines[0].set_durable(1);
    server.run();
    for reader in [near, listener] {
        assert_eq!(server.take(reader), told(&key));
    }
}

/// Somebody writes, it is acknowledged or shown to somebody else, and at once every tracker sends something: it must be
/// answered behind the invalidation. Returns what was tried.
fn acknowledge(seed: u64, mistake: Option<Mistake>) -> Result<(usize, bool, bool), String> {
    let mut random = Random(seed);
    let shards = 2 + random.below(3);
    let mut server = Server::new(shards, &[]);
    server.engines.iter_mut().for_each(|engine| engine.shared_mut().trackers.mistake = mistake);
    let has_log = random.below(2) == 0;
    if has_log {
        server.keep_log();
    }
    server.order = Some(Random(random.next()));
    let trackers: Vec<usize> = (0..shards).map(|shard| server.connect(shard)).collect();
    let [writer, reader] = [(); 2].map(|()| server.connect(random.below(shards)));
    let place = Place { index: 0, count: shards };
    let keys: Vec<String> = (0..shards)
        .map(|on| (0..).map(|at| format!("k{at}")).find(|key| place.shard_of(key.as_bytes()) == on).unwrap())
        .collect();
    let all = keys.join(" ");
    server.say(writer, format!("MSET {}\r\n", all.replace(' ', " old ") + " old"));
    server.take(writer);
    for &tracker in &trackers {
        // One that reads, or one that hears of everything.
        let mode = ["", "BCAST"][random.below(2)];
        tracks(&mut server, tracker, mode);
        server.say(tracker, format!("MGET {all}\r\n"));
    }
    let one = keys[random.below(shards)].clone();
    // Perhaps not on every shard.
    let some = keys[random.below(shards - 1)..].to_vec();
    let values = some.iter().map(|key| format!(" {key} new")).collect::<String>();
    let kind = random.below(5);
    let (write, changed, ends) = match kind {
        0 => (format!("SET {one} new\r\n"), [one].to_vec(), "+OK\r\n"),
        1 => (format!("MSET{values}\r\n"), some, "+OK\r\n"),
        2 => (
            format!(
                "MULTI\r\n{}EXEC\r\n",
                some.iter().map(|key| format!("SET {key} new\r\n")).collect::<String>()
            ),
            some,
            "+OK\r\n+OK\r\n",
        ),
        3 => (format!("DEL {}\r\n", some.join(" ")), some, ":"),
        _ => ("FLUSHALL\r\n".into(), Vec::new(), "+OK\r\n"),
    };
    server.send(writer, write.as_bytes());
    // Shown to the writer, or to somebody who looks again and again.
    let looks = kind < 3 && random.below(2) == 0;
    let mut is_asking = false;
    let is_shown = |server: &mut Server, is_asking: &mut bool| match looks {
        true => {
            let bytes = server.take(reader);
            *is_asking &= bytes.is_empty();
            bytes.contains("new").then_some(bytes)
        }
        false => {
            let bytes = text(&server.clients[writer].received);
            // Of EXEC the last replies are those that count.
            let whole = kind != 2 || bytes.matches("OK").count() > changed.len();
            (whole && bytes.contains(ends)).then_some(bytes)
        }
    };
    let mut rounds = 0;
    while is_shown(&mut server, &mut is_asking).is_none() {
        if looks && !is_asking {
            is_asking = true;
            let asks = [format!("MGET {all}\r\n"), format!("GET {}\r\n", changed[0])];
            server.send(reader, asks[random.below(2)].as_bytes());
        }
        rounds += 1;
        assert!(
            rounds < 10_000,
            "nobody is shown {write} ({looks}), seed {seed}: {:?}",
            text(&server.clients[writer].received)
        );
        server.round();
    }
    // The order of arrival at one shard must not matter to another.
    let late = random.below(shards);
    for at in 0..shards {
        let tracker = trackers[(late + at) % shards];
        server.come_home(server.clients[tracker].shard);
        server.hasten(server.clients[tracker].shard);
        server.send(tracker, b"PING\r\n");
    }
    server.run();
    for &tracker in &trackers {
        let bytes = server.take(tracker);
        let (before, behind) = bytes.split_once("+PONG\r\n").unwrap();
        let wanted = if kind == 4 {
            [format!("{INVALIDATE}_\r\n")].to_vec()
        } else {
            changed.iter().map(|key| told(key)).collect()
        };
        for push in wanted {
            if before.matches(&*push).count() != 1 {
                return Err(format!("{write}: {bytes}, seed {seed}"));
            }
        }
        if !behind.is_empty() {
            return Err(format!("{write}: {bytes}, seed {seed}"));
        }
    }
    Ok((kind, looks, has_log))
}

/// Whatever writes and whoever is shown it: what a tracker sends from then on is answered behind the invalidation.
#[test]
fn no_acknowledgement_overtakes_an_invalidation() {
    let tried = (0..200).map(|seed| acknowledge(seed, None).unwrap_or_else(|why| panic!("{why}")));
    let tried: BTreeSet<_> = tried.collect();
    assert!(tried.len() >= 14, "{tried:?}");
    let found = (0..200).find_map(|seed| acknowledge(seed, Some(Mistake::TellsLate)).err());
    assert!(found.is_some(), "a mistake made on purpose is not found");
}

/// What is not durable when the log fails never will be: nobody may hear of it, and nobody may be left in the belief that
/// nothing happened.
#[test]
fn a_failed_log_flushes_what_it_would_have_told_and_keeps_nothing() {
    let mut server = Server::new(2, &[]);
    let place = Place { index: 0, count: 2 };
    let mut keys = (0..).map(|at| format!("k{at}")).filter(|key| place.shard_of(key.as_bytes()) == 1);
    let (key, other, ends) = (keys.next().unwrap(), keys.next().unwrap(), keys.next().unwrap());
    let writer = server.connect(1);
    assert_eq!(server.say(writer, format!("SET {ends} 1 PX 5\r\n")), "+OK\r\n");
    for engine in &mut server.engines {
        engine.keep_journal(Journal::new(Arc::new(AtomicU64::new(1)), Durability::Always));
    }
    let readers = [0, 1].map(|shard| server.connect(shard));
    let (elsewhere, listener, deaf) = (server.connect(0), server.connect(0), server.connect(1));
    for tracker in readers.into_iter().chain([elsewhere]) {
        tracks(&mut server, tracker, "");
    }
    for reader in readers {
        server.say(reader, format!("GET {key}\r\nGET {ends}\r\n"));
    }
    server.say(elsewhere, format!("GET {other}\r\n"));
    tracks(&mut server, listener, &format!("BCAST PREFIX {key}"));
    tracks(&mut server, deaf, "BCAST PREFIX nothing");
    server.say(writer, format!("SET {key} 2\r\nSET {key} 3\r\n"));
    let held = |server: &Server| (0..2).map(|shard| server.shared(shard).trackers.held()).sum::<usize>();
    assert!(held(&server) >= 3);
    for engine in &mut server.engines {
        engine.shared_mut().fail_pending();
    }
    server.run();
    let flush = format!("{INVALIDATE}_\r\n");
    for told in [readers[0], readers[1], listener] {
        assert_eq!(server.take(told), flush, "once, and without a name");
    }
    assert_eq!(
        (server.take(elsewhere), server.take(deaf)),
        (String::new(), String::new()),
        "it is not about them"
    );
    assert!(server.clients[writer].closed, "no answer is better than a wrong one");
    assert_eq!(held(&server), 0);
    // What ends was durable, and is told as ever.
    server.now.monotonic.0 += 50_000_000;
    server.now.unix_us += 50_000;
    server.run();
    for reader in readers {
        assert_eq!(server.take(reader), told(&ends));
    }
    assert_eq!(held(&server), 0);
    assert_eq!(server.engines.iter().filter_map(Engine::first_awaited).count(), 0);
}

#[test]
fn a_tracker_that_never_reads_is_closed_and_costs_the_others_nothing() {
    let mut server = Server::new(2, &[("output-buffer-max", "65536")]);
    let (deaf, other, writer) = (server.connect(0), server.connect(0), server.connect(1));
    tracks(&mut server, deaf, "BCAST");
    tracks(&mut server, other, "BCAST");
    server.clients[deaf].reads = false;
    for number in 0..4000 {
        assert_eq!(server.say(writer, format!("SET key:{number} 1\r\n")), "+OK\r\n");
    }
    assert!(server.clients[deaf].closed);
    assert_eq!(server.take(other).matches("invalidate").count(), 4000);
    let info = server.say(writer, "INFO\r\n");
    assert_eq!(field(&info, "client_output_buffer_limit_disconnections"), 1);
    assert_eq!(field(&info, "tracking_clients"), 1);
}

/// As many trackers as there can be leave, again and again: what was kept for them is given back.
#[test]
fn after_storms_of_disconnections_nothing_is_left() {
    let mut server = Server::new(3, &[]);
    let writer = server.connect(0);
    for storm in 0..5 {
        let trackers: Vec<usize> = (0..200).map(|at| server.connect(at % 3)).collect();
        for (at, &tracker) in trackers.iter().enumerate() {
            tracks(&mut server, tracker, ["", "OPTOUT", "BCAST PREFIX x", "NOLOOP"][at % 4]);
            let keys: Vec<String> = (0..40).map(|key| format!("key:{}", (at * 7 + key * 3) % 500)).collect();
            server.send(tracker, format!("MGET {}\r\nGET {}\r\n", keys.join(" "), keys[0]).as_bytes());
        }
        if storm % 2 == 0 {
            server.run();
        }
        for &tracker in &trackers {
            server.come_home(server.clients[tracker].shard);
            server.disconnect(tracker);
        }
        server.run();
        for shard in 0..3 {
            let shared = server.shared(shard);
            assert!(
                !shared.is_tracking && shared.keyspace.tracked().is_none(),
                "storm {storm}, shard {shard}"
            );
            assert_eq!((shared.trackers.clients(), shared.trackers.prefixes().count()), (0, 0));
        }
    }
    let info = server.say(writer, "INFO\r\n");
    assert_eq!((field(&info, "tracking_total_keys"), field(&info, "tracking_bytes")), (0, 0));
}

/// The counter lay in the table, which goes with the last one who tracks: whoever watched it saw it fall back to 0.
#[test]
fn evictions_are_counted_beyond_the_end_of_the_table() {
    let mut server = Server::new(2, &[("tracking-table-max-pairs", "20")]);
    let (reader, other) = (server.connect(0), server.connect(1));
    let evictions = |server: &mut Server| field(&server.say(other, "INFO stats\r\n"), "tracking_evictions");
    let mut before = 0;
    for round in 1..4 {
        tracks(&mut server, reader, "");
        let reads: String = (0..60).map(|at| format!("GET key:{at}\r\n")).collect();
        let pushes = server.say(reader, reads).matches("invalidate").count() as u64;
        assert!(pushes >= 40, "{pushes}");
        assert_eq!(evictions(&mut server), before + pushes, "round {round}");
        before += pushes;
        match round {
            1 => drop(server.say(reader, "CLIENT TRACKING OFF\r\n")),
            _ => {
                server.say(reader, "RESET\r\n");
                server.run();
            }
        }
        assert!((0..2).all(|shard| !server.shared(shard).is_tracking), "nobody tracks any more");
        assert_eq!(evictions(&mut server), before, "round {round}: a counter never falls");
    }
    tracks(&mut server, reader, "");
    server.say(reader, "GET a\r\n");
    server.say(other, "CONFIG RESETSTAT\r\n");
    let stats = server.say(other, "INFO stats\r\n");
    assert_eq!((field(&stats, "tracking_evictions"), field(&stats, "tracking_pushes")), (0, 0));
    assert_eq!(field(&stats, "tracking_total_items"), 1, "what is tracked is not a statistic");
}

/// Every option that is wrong, or does not go with another, and what is said: Redis' words. Whether that is so of every
/// combination is asked of Redis itself (`tests/src/oracle/tracking.rs`); this needs none.
#[test]
fn options_that_do_not_go_together_are_refused_and_change_nothing() {
    const SWITCH: &str = "ERR You can't switch BCAST mode on/off before disabling tracking for this client, and then \
                          re-enabling it with a different mode.";
    const OPT: &str = "ERR You can't switch OPTIN/OPTOUT mode before disabling tracking for this client, and then \
                       re-enabling it with a different mode.";
    const NOBODY: &str = "ERR The client ID you want redirect to does not exist";
    const BOTH: &str = "ERR OPTIN and OPTOUT are not compatible with BCAST";
    const NUMBER: &str = "ERR value is not an integer or out of range";
    let overlap = |new: &str, what: &str, other: &str| {
        format!(
            "ERR Prefix '{new}' overlaps with {what} prefix '{other}'. Prefixes for a single client must not overlap."
        )
    };
    let given = overlap("a", "another provided", "ab");
    let present = overlap("abc", "an existing", "ab");
    let first = overlap("x", "an existing", "xy1");
    let cases: [(&str, &str, &str); 26] = [
        ("OFF", "maybe", "ERR syntax error"),
        ("OFF", "ON junk", "ERR syntax error"),
        ("OFF", "ON PREFIX", "ERR syntax error"),
        ("OFF", "ON REDIRECT", "ERR syntax error"),
        ("OFF", "OFF junk", "ERR syntax error"),
        ("OFF", "ON PREFIX a", "ERR PREFIX option requires BCAST mode to be enabled"),
        ("ON OPTIN", "ON PREFIX a OPTOUT", "ERR PREFIX option requires BCAST mode to be enabled"),
        ("OFF", "ON BCAST OPTIN", BOTH),
        ("OFF", "ON OPTOUT BCAST", BOTH),
        ("ON BCAST", "ON BCAST OPTIN OPTOUT", BOTH),
        ("OFF", "ON OPTIN OPTOUT", "ERR You can't specify both OPTIN mode and OPTOUT mode"),
        ("ON OPTIN", "ON OPTOUT", OPT),
        ("ON OPTOUT", "ON OPTIN", OPT),
        ("ON", "ON BCAST", SWITCH),
        ("ON BCAST", "ON", SWITCH),
        ("ON BCAST", "ON OPTIN", SWITCH),
        ("ON OPTIN", "ON BCAST OPTOUT", SWITCH),
        ("OFF", "ON REDIRECT x", NUMBER),
        ("OFF", "ON REDIRECT 0", NOBODY),
        ("OFF", "ON REDIRECT -1", NOBODY),
        ("OFF", "ON REDIRECT 123456789", NOBODY),
        ("OFF", "OFF REDIRECT 123456789", NOBODY),
        ("OFF", "ON REDIRECT 1 REDIRECT 1", "ERR A client can only redirect to a single other client"),
        ("OFF", "ON BCAST PREFIX b PREFIX a PREFIX ab PREFIX abc", &given),
        ("ON BCAST PREFIX ab", "ON BCAST PREFIX x PREFIX abc PREFIX abcd", &present),
        ("ON BCAST PREFIX xyz PREFIX xy1", "ON BCAST PREFIX x", &first),
    ];
    for (before, wrong, text) in cases {
        let mut server = Server::new(2, &[]);
        let (client, _) = (server.connect(0), server.connect(1));
        let first =
            server.say(client, format!("HELLO 3\r\nCLIENT TRACKING {before}\r\nCLIENT TRACKINGINFO\r\n"));
        let state = &first[first.rfind("%3").unwrap()..];
        let answer = server.say(client, format!("CLIENT TRACKING {wrong}\r\nCLIENT TRACKINGINFO\r\n"));
        let (error, rest) = answer.split_once("\r\n").unwrap();
        assert_eq!(error, format!("-{text}"), "{before}, then {wrong}");
        assert_eq!(rest, state, "{before}, then {wrong}: it is as it was");
    }
    for caching in ["YES", "NO"] {
        let mut server = Server::new(2, &[]);
        let client = server.connect(0);
        for (mode, wrong) in
            [("OFF", true), ("ON", true), ("ON OPTIN", caching == "NO"), ("ON OPTOUT", caching == "YES")]
        {
            let opening = format!("CLIENT TRACKING OFF\r\nCLIENT TRACKING {mode}\r\n");
            assert_eq!(server.say(client, opening), "+OK\r\n+OK\r\n");
            let text = match mode {
                "OFF" => "ERR CLIENT CACHING can be called only when the client is in tracking mode with OPTIN or OPTOUT mode enabled".into(),
                _ => format!("ERR CLIENT CACHING {caching} is only valid when tracking is enabled in {} mode.", if caching == "YES" { "OPTIN" } else { "OPTOUT" }),
            };
            let answer = server.say(client, format!("CLIENT CACHING {caching}\r\n"));
            assert_eq!(answer, if wrong { format!("-{text}\r\n") } else { "+OK\r\n".into() }, "{mode}");
        }
    }
}

/// A client could ask for prefixes without end, and nothing counted them. They have the bound of the table now, and give
/// their room back with the client.
#[test]
fn prefixes_are_bounded_and_give_their_room_back() {
    let mut server = Server::new(2, &[("tracking-table-max-pairs", "20")]);
    let [greedy, other, writer] = [0, 0, 1].map(|shard| server.connect(shard));
    let ask = |from: usize, to: usize| {
        let prefixes: String = (from..to).map(|at| format!(" PREFIX p{at:02}")).collect();
        format!("CLIENT TRACKING ON BCAST{prefixes}\r\n")
    };
    let refused = "-ERR too many prefixes: tracking-table-max-pairs bounds them, too\r\n";
    server.say(greedy, "HELLO 3\r\n");
    // A share of ten.
    assert_eq!(server.say(greedy, ask(0, 11)), refused);
    assert!(server.say(greedy, "CLIENT TRACKINGINFO\r\n").contains("off"), "nothing of it was done");
    assert_eq!(server.say(greedy, ask(0, 9)), "+OK\r\n");
    assert_eq!(server.say(greedy, ask(9, 11)), refused);
    // A long one weighs more, whoever asks for it; who wants all keys adds nothing to them.
    let long = "x".repeat(64);
    tracks(&mut server, other, "BCAST");
    assert_eq!(
        server.say(other, format!("CLIENT TRACKING ON BCAST PREFIX {long}\r\n")).matches("overlaps").count(),
        1
    );
    assert_eq!(
        server.say(other, format!("CLIENT TRACKING OFF\r\nCLIENT TRACKING ON BCAST PREFIX {long}\r\n")),
        format!("+OK\r\n{refused}")
    );
    assert_eq!(server.say(other, "CLIENT TRACKING ON BCAST PREFIX x\r\n"), "+OK\r\n");
    let stats = server.say(writer, "INFO stats\r\n");
    assert_eq!(
        (field(&stats, "tracking_prefixes_refused"), field(&stats, "tracking_total_prefixes")),
        (3, 10)
    );
    server.say(writer, "SET p08 1\r\nSET p09 1\r\nSET x 1\r\n");
    assert_eq!((server.take(greedy), server.take(other)), (told("p08"), told("x")));
    server.disconnect(greedy);
    server.run();
    assert_eq!(server.say(other, ask(0, 9)), "+OK\r\n");
    assert_eq!(server.say(other, "CLIENT TRACKING OFF\r\n"), "+OK\r\n");
    assert_eq!(server.say(other, ask(0, 10)), "+OK\r\n");
}

/// Whoever is told in place of others and does not read is cut like anybody else; those others hear that nobody is told
/// in their place any more, and are served.
#[test]
fn who_is_told_in_place_of_others_and_never_reads_is_cut_and_they_hear_of_it() {
    for deaf_on in 0..2 {
        let mut server = Server::new(2, &[("output-buffer-max", "65536")]);
        let (tracker, deaf, writer) = (server.connect(0), server.connect(deaf_on), server.connect(1));
        server.say(deaf, "SUBSCRIBE __redis__:invalidate\r\n");
        let id = field(
            &server
                .say(tracker, "CLIENT LIST\r\n")
                .replace("\r\n", "\n")
                .lines()
                .find(|line| line.contains("sub=1"))
                .unwrap()
                .replace("id=", " id="),
            "id",
        );
        tracks(&mut server, tracker, &format!("BCAST REDIRECT {id}"));
        server.clients[deaf].reads = false;
        for number in 0..2500 {
            assert_eq!(server.say(writer, format!("SET key:{number} 1\r\n")), "+OK\r\n");
        }
        assert!(server.clients[deaf].closed);
        let broken = format!(">2\r\n$21\r\ntracking-redir-broken\r\n:{id}\r\n");
        let heard = server.say(tracker, "PING\r\n");
        assert!(heard.starts_with(&broken) && heard.ends_with("+PONG\r\n"), "{heard}");
        assert_eq!(heard.len() % broken.len(), "+PONG\r\n".len(), "nothing else");
        let info = server.say(writer, "INFO\r\n");
        assert_eq!(field(&info, "client_output_buffer_limit_disconnections"), 1);
    }
}

#[test]
fn every_key_has_a_push_of_its_own() {
    let (mut server, [a, b, c]) = Server::three();
    tracks(&mut server, a, "BCAST");
    tracks(&mut server, b, "");
    let keys = [on(0, "k"), on(0, "l"), on(1, "k"), on(2, "k")];
    server.say(b, format!("MGET {}\r\n", keys.join(" ")));
    server.say(c, format!("MSET {} 1\r\n", keys.join(" 1 ")));
    for client in [a, b] {
        let pushes = server.take(client);
        assert_eq!(pushes.len(), keys.iter().map(|key| told(key).len()).sum::<usize>());
        assert!(keys.iter().all(|key| pushes.contains(&told(key))), "{pushes}");
    }
}
