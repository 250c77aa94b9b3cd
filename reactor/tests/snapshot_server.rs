//! Servers that start from snapshots: what clients and operators meet, damage while it serves included.

#[allow(dead_code, reason = "each suite uses its part")]
mod process;
#[allow(dead_code, reason = "each suite uses its part")]
mod snapshots;

use process::*;
use snapshots::*;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;
use wal::lsn::{Epoch, Lsn};

/// Flags of a server on a directory, whose port is its own.
fn flags<'a>(folder: &'a Folder, more: &[&'a str]) -> Vec<&'a str> {
    let mut flags = vec!["--durability", "always", "--log-segment-size", "1mb", "--dir", folder.text()];
    flags.extend_from_slice(more);
    flags
}

/// A number in INFO.
fn info(client: &mut Client<TcpStream>, field: &str) -> u64 {
    let text = client.bulk("INFO persistence");
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {field} in {text}")).trim().parse().unwrap()
}

/// Polls what another thread brings about; there is nothing to wait on but time.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        std::thread::yield_now();
    }
}

/// Everything a server has, as its clients see it.
fn everything(server: &Running) -> Contents {
    let mut client = server.client();
    let mut all = Contents::new();
    let mut cursor = "0".to_string();
    loop {
        let head = client.ask(&format!("SCAN {cursor} COUNT 500"));
        assert_eq!(head, "*2");
        let length = client.line()[1..].parse().unwrap();
        cursor = client.body(length);
        let count: usize = client.line()[1..].parse().unwrap();
        for _ in 0..count {
            let length = client.line()[1..].parse().unwrap();
            all.insert(client.body(length).into_bytes(), Default::default());
        }
        if cursor == "0" {
            break;
        }
    }
    for (key, entry) in &mut all {
        let key = std::str::from_utf8(key).unwrap();
        client.0.write_all(format!("GET {key}\r\nPEXPIRETIME {key}\r\n").as_bytes()).unwrap();
        let length: usize = client.line()[1..].parse().unwrap();
        let mut value = vec![0; length + 2];
        client.0.read_exact(&mut value).unwrap();
        value.truncate(length);
        let end: i64 = client.line()[1..].parse().unwrap();
        *entry = (value, u64::try_from(end).ok());
    }
    all
}

/// What a server says on stderr until it ends.
fn last_words(server: &mut Running) -> String {
    let mut words = String::new();
    // Its end is that of stderr.
    while let Ok(line) = server.messages.recv_timeout(PATIENCE) {
        words += &line;
    }
    let status = server.wait(PATIENCE);
    assert_eq!(status.code(), Some(1), "{status}: {words}");
    words
}

/// A restart with the same shards and with others, on each driver: clients see what was there, go on writing, and see that.
#[test]
fn a_server_serves_what_a_snapshot_and_the_log_hold() {
    let mut random = Random::new("a_server_serves_what_a_snapshot_and_the_log_hold");
    for (round, (before, after)) in [(1, 1), (3, 3), (1, 3), (3, 2)].into_iter().enumerate() {
        let folder = Folder::new("serves");
        let records = records(&mut random, 3000, 500, round == 1);
        new_log(&folder.0, &records);
        let lsns: Vec<u64> = (0..before).map(|_| 1500 + random.below(50)).collect();
        let id = take(&folder.0, &lsns);
        release(&folder.0, id.lsn.0);
        let shards = after.to_string();
        let more = ["--shards", &shards, "--io", drivers()[round % drivers().len()]];
        let server = Running::start(&flags(&folder, &more));
        let mut expected = state_after(&records, now());
        assert!(everything(&server) == expected, "{before} shards before, {after} now");
        let mut client = server.client();
        let pairs: String = (0..40).map(|n| format!(" new{n} {n}")).collect();
        assert_eq!(client.ask(&format!("MSET{pairs}")), "+OK");
        assert_eq!(client.ask("SET key:1 again"), "+OK");
        expected
            .extend((0..40).map(|n| (format!("new{n}").into_bytes(), (n.to_string().into_bytes(), None))));
        expected.insert(b"key:1".to_vec(), (b"again".to_vec(), None));
        let line = server.heard(&["serving from snapshot-"]);
        let dealt = format!("it is of {before} shards, and dealing its records to {after}");
        assert_eq!(line.contains(&dealt), before != after, "{line}");
        // Killed, it starts from the same snapshot and a longer log.
        let mut server = server;
        server.signal("KILL");
        server.wait(PATIENCE);
        let server = Running::start(&flags(&folder, &more));
        assert!(everything(&server) == expected, "{before} shards before, {after} now, once more");
        server.stop();
        // And it is read where nothing is written.
        let files = || fs::read_dir(&folder.0).unwrap().count();
        let there = files();
        let server = Running::start(&["--dir", folder.text(), "--shards", &shards]);
        assert!(everything(&server) == expected, "without a log of its own");
        assert_eq!(server.client().ask("SET lost 1"), "+OK");
        server.stop();
        assert_eq!(files(), there);
        let server = Running::start(&flags(&folder, &more));
        assert_eq!(server.client().ask("EXISTS lost"), ":0");
        server.stop();
    }
}

/// As many keys of one size as fill some segments.
fn plain(count: u64) -> Vec<Vec<u8>> {
    (0..count).map(|number| set(&format!("plain:{number}"), &[number as u8; 500], None)).collect()
}

/// INFO says how far it is, at a rate that has a bound; with `--warm full` there is nothing to say.
#[test]
fn warming_is_shown_bounded_and_can_be_waited_for() {
    let folder = Folder::new("warming");
    new_log(&folder.0, &plain(20_000));
    take(&folder.0, &[20_000, 20_000]);
    let flags_with = |more: &[&'static str]| [&["--shards", "2"], more].concat();
    // A byte a second: it never ends while anybody looks.
    let slow = flags_with(&["--warm-rate", "1"]);
    let server = Running::start(&flags(&folder, &slow));
    let mut client = server.client();
    assert_eq!(client.ask("DBSIZE"), ":20000");
    let total = info(&mut client, "warm_total_bytes");
    assert!(total > 10 << 20, "{total}");
    let checked = info(&mut client, "warm_checked_bytes");
    for number in (0..20_000).step_by(7) {
        assert_eq!(client.ask(&format!("STRLEN plain:{number}")), ":500");
    }
    let more = info(&mut client, "warm_checked_bytes");
    assert!(more > checked && more < total, "{checked}, {more} of {total}");
    assert_eq!((info(&mut client, "warming"), info(&mut client, "loading")), (1, 0));
    assert!(info(&mut client, "warm_moved_bytes") < 4 << 20);
    // What clears everything leaves nothing to warm.
    assert_eq!(client.ask("FLUSHALL"), "+OK");
    assert_eq!(info(&mut client, "warming"), 0);
    assert_eq!(client.ask("DBSIZE"), ":0");
    let mut server = server;
    server.signal("KILL");
    server.wait(PATIENCE);
    // The clearing is in the log.
    let server = Running::start(&flags(&folder, &slow));
    assert_eq!(server.client().ask("DBSIZE"), ":0");
    server.stop();

    let folder = Folder::new("warmed");
    new_log(&folder.0, &plain(20_000));
    let id = take(&folder.0, &[20_000, 20_000]);
    let fast = flags_with(&["--warm-rate", "0"]);
    let server = Running::start(&flags(&folder, &fast));
    let mut client = server.client();
    eventually("it ends", || info(&mut client, "warming") == 0);
    let total = info(&mut client, "warm_total_bytes");
    assert!(total > 0);
    let figures = ["warm_checked_bytes", "warm_moved_bytes"].map(|field| info(&mut client, field));
    assert_eq!((figures, info(&mut client, "warm_kept_bytes")), ([total, total], 0));
    // The file is not needed any more.
    let maps = || fs::read_to_string(format!("/proc/{}/maps", server.child.id())).unwrap();
    eventually("it is unmapped", || !maps().contains(".mrs"));
    fs::remove_file(path_of(&folder.0, id)).unwrap();
    assert_eq!(client.ask("STRLEN plain:19999"), ":500");
    drop(server);

    let folder = Folder::new("full");
    new_log(&folder.0, &plain(20_000));
    take(&folder.0, &[20_000, 20_000]);
    let full = flags_with(&["--warm", "full"]);
    let server = Running::start(&flags(&folder, &full));
    let mut client = server.client();
    assert_eq!((info(&mut client, "warming"), info(&mut client, "warm_total_bytes")), (0, 0));
    assert_eq!(client.ask("DBSIZE"), ":20000");
    server.heard(&["all of it was read in "]);
    let maps = || fs::read_to_string(format!("/proc/{}/maps", server.child.id())).unwrap();
    eventually("it is unmapped", || !maps().contains(".mrs"));
    server.stop();
}

/// A client asks for a key whose page is damaged. It gets no answer, the server ends and says why; the next start does
/// without that file, and everything is there.
#[test]
fn a_damaged_page_ends_the_server_before_it_answers() {
    for shards in ["1", "3"] {
        let folder = Folder::new("page");
        let count = shards.parse().unwrap();
        let records = plain(3000);
        new_log(&folder.0, &records);
        let lsns = |lsn| vec![lsn; count];
        let earlier = take(&folder.0, &lsns(2200));
        let newest = take(&folder.0, &lsns(2900));
        let path = path_of(&folder.0, newest);
        // The page in which the value of one key lies.
        let bytes = fs::read(&path).unwrap();
        let key = b"plain:1234";
        let at = bytes.windows(key.len()).position(|window| window == key).unwrap() as u64;
        flip(&path, at + 300);
        let page = (at + 300) / 4096 * 4096;
        let mut server = Running::start(&flags(&folder, &["--shards", shards, "--warm-rate", "1"]));
        let mut others: Vec<_> = (0..8).map(|_| server.client()).collect();
        others.iter_mut().for_each(|client| client.ping());
        assert_eq!(others[0].ask("STRLEN plain:2999"), ":500");
        // Through whichever shard, in a command of one key and of many, in a transaction.
        let asked = ["GET plain:1234", "MGET plain:1 plain:2 plain:1234 plain:3", "APPEND plain:1234 more"];
        for (client, command) in others.iter_mut().zip(asked.iter().cycle()) {
            // The server may have ended meanwhile.
            let _ = client.0.write_all(format!("{command}\r\n").as_bytes());
        }
        for client in &mut others {
            let mut answer = Vec::new();
            let _ = client.0.read_to_end(&mut answer);
            assert_eq!(String::from_utf8_lossy(&answer), "", "nothing that depends on it is answered");
        }
        let words = last_words(&mut server);
        let place = format!("{} at offset {page}: expected a page with the checksum 0x", path.display());
        for word in [place.as_str(), "found 0x", "The server ends", ".damaged now"] {
            assert!(words.contains(word), "{word} in {words}");
        }
        assert!(!path.exists());
        let server = Running::start(&flags(&folder, &["--shards", shards]));
        server.heard(&["found damaged before"]);
        server.heard(&["serving from ", &format!("{:016x}.mrs", earlier.lsn.0)]);
        assert!(everything(&server) == state_after(&records, now()), "all of it, and no APPEND");
        server.stop();
        // Without the earlier one and the beginning of the log there is nothing to start from.
        release(&folder.0, earlier.lsn.0);
        fs::remove_file(path_of(&folder.0, earlier)).unwrap();
        let told = refused(&[&["--port", "0", "--http", "no"][..], &flags(&folder, &[])].concat(), 1);
        assert!(told.contains(".damaged was found damaged before"), "{told}");
    }
}

/// The background comes across damage nobody asked for.
#[test]
fn damage_that_warming_finds_ends_the_server_too() {
    let folder = Folder::new("background");
    let records = plain(5000);
    new_log(&folder.0, &records);
    let newest = take(&folder.0, &[5000]);
    let path = path_of(&folder.0, newest);
    let length = fs::metadata(&path).unwrap().len();
    flip(&path, length / 2 / 4096 * 4096 + 5);
    let mut server = Running::start(&flags(&folder, &["--shards", "1"]));
    let words = last_words(&mut server);
    let offset = length / 2 / 4096 * 4096;
    assert!(words.contains(&format!("{} at offset {offset}: ", path.display())), "{words}");
    let server = Running::start(&flags(&folder, &["--shards", "1"]));
    assert!(everything(&server) == state_after(&records, now()));
    server.stop();
}

/// Something cuts the file while it is mapped. The kernel's signal is not the last word.
#[test]
fn a_file_that_becomes_shorter_under_the_server_ends_it_with_words() {
    for shards in ["1", "2"] {
        let folder = Folder::new("shorter");
        let records = plain(20_000);
        new_log(&folder.0, &records);
        let count = shards.parse().unwrap();
        take(&folder.0, &vec![100; count]);
        let newest = take(&folder.0, &vec![20_000; count]);
        let path = path_of(&folder.0, newest);
        let mut server = Running::start(&flags(&folder, &["--shards", shards, "--warm-rate", "1"]));
        let mut client = server.client();
        client.ping();
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(8192).unwrap();
        for number in 0..20_000 {
            if client.0.write_all(format!("GET plain:{number}\r\n").as_bytes()).is_err() {
                break;
            }
        }
        let words = last_words(&mut server);
        for word in [path.to_str().unwrap(), " at offset ", "the file ends at 8192", "Start it again"] {
            assert!(words.contains(word), "{word} in {words}");
        }
        // Its length tells the next start.
        let server = Running::start(&flags(&folder, &["--shards", shards]));
        server.heard(&["found 8192"]);
        assert!(everything(&server) == state_after(&records, now()));
        server.stop();
    }
}

/// With less memory than there are data it starts, and then does as its policy says.
#[test]
fn a_limit_below_the_data_evicts_or_refuses() {
    for policy in ["noeviction", "allkeys-lru", "volatile-ttl"] {
        for rate in ["1", "0"] {
            let folder = Folder::new("limit");
            new_log(&folder.0, &plain(20_000));
            take(&folder.0, &[20_000]);
            let more =
                ["--shards", "1", "--maxmemory", "6mb", "--maxmemory-policy", policy, "--warm-rate", rate];
            let server = Running::start(&flags(&folder, &more));
            let mut client = server.client();
            if policy == "allkeys-lru" {
                let keys = |client: &mut Client<_>| client.ask("DBSIZE")[1..].parse::<u64>().unwrap();
                eventually("keys are evicted", || keys(&mut client) < 13_000);
                assert_eq!(client.ask("SET more 1"), "+OK");
                // No more than was needed: memory of keys that are gone is counted once.
                assert!(keys(&mut client) > 6000, "{}", keys(&mut client));
            } else {
                assert!(client.ask("SET more 1").starts_with("-OOM"), "{policy}");
                assert_eq!(client.ask("DBSIZE"), ":20000");
                assert_eq!(client.ask("STRLEN plain:77"), ":500");
                assert_eq!(client.ask("DEL plain:77"), ":1");
            }
            server.stop();
        }
    }
}

/// A directory with a snapshot and no log, as a backup or an import makes it, is served and gets a log behind it.
#[test]
fn a_snapshot_alone_is_enough() {
    let folder = Folder::new("alone");
    let made = Folder::new("made");
    new_log(&made.0, &plain(1000));
    let mut restored = start(&made.0, 2);
    write_snapshot(&folder.0, &mut restored.keyspaces, &[Lsn(0), Lsn(0)], Epoch::FIRST);
    for durability in ["off", "always", "everysec"] {
        let server = Running::start(&["--dir", folder.text(), "--durability", durability, "--shards", "2"]);
        let mut client = server.client();
        assert!(client.ask("DBSIZE") != ":0");
        assert_eq!(client.ask("STRLEN plain:999"), ":500");
        assert_eq!(client.ask(&format!("SET {durability} 1")), "+OK");
        server.stop();
    }
    let server = Running::start(&["--dir", folder.text(), "--durability", "always", "--shards", "2"]);
    let mut client = server.client();
    let there: BTreeMap<_, _> =
        ["off", "always", "everysec"].map(|key| (key, client.ask(&format!("EXISTS {key}")))).into();
    assert_eq!(there["off"], ":0", "a server without a log keeps nothing");
    assert_eq!((there["always"].as_str(), there["everysec"].as_str()), (":1", ":1"));
    server.stop();
}

/// Somebody else's directory is not read while it changes.
#[test]
fn a_directory_with_data_is_locked_even_if_nothing_is_written_to_it() {
    let folder = Folder::new("locked");
    new_log(&folder.0, &plain(10));
    let server = Running::start(&flags(&folder, &[]));
    let told = refused(&["--port", "0", "--http", "no", "--durability", "off", "--dir", folder.text()], 1);
    assert!(told.contains("is in use by process") && told.contains("--dir"), "{told}");
    server.stop();
    let server = Running::start(&["--dir", folder.text()]);
    assert_eq!(server.client().ask("DBSIZE"), ":10");
    server.stop();
}
