//! The log of a real server, as clients and operators meet it: restarts, damage, disks without room, a log that fails, and
//! what a client on one shard is promised of writes on another.

#[allow(dead_code, reason = "each suite uses its part")]
mod process;

use process::*;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// Flags of a server whose log has small files.
fn flags<'a>(dir: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut flags = vec!["--durability", "always", "--log-segment-size", "1mb", "--dir", dir];
    flags.extend_from_slice(more);
    flags
}

/// Polls what another thread brings about; there is nothing to wait on but time.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        std::thread::yield_now();
    }
}

/// A number in INFO.
fn info(client: &mut Client<TcpStream>, section: &str, field: &str) -> u64 {
    let text = client.bulk(&format!("INFO {section}"));
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {field} in {text}")).parse().unwrap()
}

/// The segments of a log, by their names.
fn segments(dir: &str) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.to_str().is_some_and(|name| name.ends_with(".wal")));
    paths.sort();
    paths
}

/// What a log takes on the disk.
fn disk_bytes(dir: &str) -> u64 {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().metadata().unwrap().blocks() * 512).sum()
}

/// Shards keep records back for a moment so that more join them: those of a server to which nothing else happens must not stay
/// where the end of the process takes them.
#[test]
fn under_everysec_the_last_records_of_an_idle_server_reach_its_files() {
    for shards in ["1", "2"] {
        let scratch = Scratch::new("everysec-idle");
        let dir = scratch.path("data");
        let flags =
            ["--durability", "everysec", "--log-segment-size", "1mb", "--dir", &dir, "--shards", shards];
        let server = Running::start(&flags);
        let mut client = server.client();
        let mut waits = Vec::new();
        for round in 0..11 {
            let value = format!("the-last-word-{round}");
            assert_eq!(client.ask(&format!("SET key {value}")), "+OK");
            let answered = Instant::now();
            // Nothing is asked of the server meanwhile: each event would be an occasion for it.
            eventually("what was answered is not in the log", || {
                let holds =
                    |bytes: Vec<u8>| bytes.windows(value.len()).any(|window| window == value.as_bytes());
                segments(&dir).iter().any(|path| fs::read(path).is_ok_and(holds))
            });
            waits.push(answered.elapsed());
        }
        // Some 12 ms are meant. Whatever else wakes an idle shard does so twice a second.
        waits.sort();
        assert!(waits[5] < Duration::from_millis(200), "{waits:?}");
    }
}

/// Each start once took a segment for good: eight of them and a record took half a gigabyte and more.
#[test]
fn twenty_restarts_without_writes_take_no_more_disk_than_one() {
    let scratch = Scratch::new("restarts");
    let dir = scratch.path("data");
    let server = Running::start(&flags(&dir, &[]));
    assert_eq!(server.client().ask("SET kept 1"), "+OK");
    server.stop();
    // The record's, one with a mark, one prepared, one to be prepared next, one that is being made: each of a megabyte.
    let most = 5 * (1 << 20) + (64 << 10);
    for round in 0..20 {
        let mut server = Running::start(&flags(&dir, &[]));
        if round == 10 {
            assert_eq!(server.client().bulk("GET kept"), "1");
        }
        // Closed, or killed at whatever it does.
        if round % 3 == 0 {
            server.stop();
        } else {
            server.signal("KILL");
            server.wait(PATIENCE);
        }
        let used = disk_bytes(&dir);
        assert!(used <= most, "{used} bytes after {round} restarts: {:?}", segments(&dir));
    }
    // Where something is written in between, a start after a clean end adds one segment at most; the prepared ones come and go.
    let begun =
        || segments(&dir).iter().filter(|path| fs::read(path).unwrap()[4096..].starts_with(b"MRLB")).count();
    let server = Running::start(&flags(&dir, &[]));
    server.stop();
    let mut before = begun();
    for round in 0..5 {
        let server = Running::start(&flags(&dir, &[]));
        assert_eq!(server.client().ask(&format!("SET more{round} 1")), "+OK");
        server.stop();
        let (now, all) = (begun(), segments(&dir).len());
        assert!(now <= before + 1 && all <= now + 3, "{now} segments and {all} files, {before} before");
        before = now;
    }
    let server = Running::start(&flags(&dir, &[]));
    assert_eq!(server.client().ask("DBSIZE"), ":6");
    server.stop();
}

/// The last block of a log says nothing of itself. Once the log has been idle, a mark behind it does.
#[test]
fn damage_to_the_last_record_of_an_idle_log_is_refused_and_not_cut() {
    let scratch = Scratch::new("idle");
    let dir = scratch.path("data");
    let mut server = Running::start(&flags(&dir, &[]));
    let mut client = server.client();
    assert_eq!(client.ask("SET first 1"), "+OK");
    assert_eq!(client.ask("SET last 2"), "+OK");
    // Two records, each a block; every other block is a mark, and one was written at the start.
    eventually("an idle log writes a mark", || {
        let count = |client: &mut _, field| info(client, "persistence", field);
        count(&mut client, "log_records") == 2 && count(&mut client, "log_writes") > 3
    });
    server.signal("KILL");
    server.wait(PATIENCE);
    let file =
        segments(&dir).into_iter().find(|path| fs::read(path).unwrap()[4096..].starts_with(b"MRLB")).unwrap();
    let bytes = fs::read(&file).unwrap();
    // The last block that has frames.
    let offset =
        bytes.chunks(4096).rposition(|page| page.starts_with(b"MRLB") && page[48..52] != [0; 4]).unwrap()
            * 4096;
    let damaged = fs::OpenOptions::new().write(true).open(&file).unwrap();
    damaged.write_all_at(&[bytes[offset + 80] ^ 1], offset as u64 + 80).unwrap();
    let arguments = [&["--port", "0", "--http", "no"][..], &flags(&dir, &[])].concat();
    let told = refused(&arguments, 1);
    let name = file.file_name().unwrap().to_str().unwrap();
    assert!(told.contains(name) && told.contains(&format!("offset {offset}")), "{told}");
    assert!(told.contains("millrace log verify") && !told.contains("torn tail"), "{told}");
}

/// Whatever the system refuses comes with its name and with what to try, and never as a bare number.
#[test]
fn what_the_system_refuses_is_said_in_words() {
    let scratch = Scratch::new("words");
    let dir = scratch.path("data");
    let server = Running::start(&flags(&dir, &[]));
    assert_eq!(server.client().ask("SET key 1"), "+OK");
    server.stop();
    let arguments = [&["--port", "0", "--http", "no"][..], &flags(&dir, &[])].concat();
    // A directory in a segment's place can be opened and not be read.
    let last = segments(&dir).pop().unwrap();
    fs::remove_file(&last).unwrap();
    fs::create_dir(&last).unwrap();
    let told = refused(&arguments, 1);
    let name = last.file_name().unwrap().to_str().unwrap();
    assert!(told.contains(name) && told.contains("EISDIR: ") && told.contains("; "), "{told}");
    // A file in the directory's place.
    fs::remove_dir_all(&dir).unwrap();
    fs::write(&dir, "").unwrap();
    let other = refused(&arguments, 1);
    assert!(other.contains("--dir") && other.contains("E"), "{other}");
    for told in [told, other] {
        assert!(!told.contains("os error") && !told.contains("errno "), "{told}");
    }
}

/// It once said `ready` and nothing else, and the first client that wrote learnt it.
#[test]
fn a_disk_without_room_for_a_segment_is_said_at_the_start() {
    let scratch = Scratch::new("small");
    let dir = scratch.path("data");
    // No file may be longer than 64 KiB: to the log that is a disk that is full.
    let mut command = limited("trap '' XFSZ; ulimit -f 128");
    let server = Running::spawn(command.args(["--port", "0", "--http", "no"]).args(flags(&dir, &[])));
    let warned = server.heard(&["warning: ", "writes are refused"]);
    for word in ["log-0000000000000001.spare", "EFBIG", "ulimit -f", "reads are served"] {
        assert!(warned.contains(word), "{word} in {warned}");
    }
    let mut client = server.client();
    client.ping();
    assert_eq!(client.ask("GET key"), "$-1");
    let told = client.ask("SET key 1");
    assert!(told.starts_with("-MISCONF") && told.contains("log-"), "{told}");
    server.stop();
}

/// The log fails while a write is on its way. Who wants to know why is answered.
#[test]
fn an_operator_is_answered_after_the_log_has_failed() {
    let scratch = Scratch::new("failed");
    let dir = scratch.path("data");
    for shards in ["1", "2"] {
        let _ = fs::remove_dir_all(&dir);
        // The signal that comes with a file that may not grow would end the process.
        let mut command = limited("trap '' XFSZ");
        let arguments = flags(&dir, &["--shards", shards]);
        let mut server = Running::spawn(command.args(["--port", "0", "--http-port", "0"]).args(arguments));
        assert_eq!(server.client().ask("SET a 1"), "+OK");
        let limit = ["--fsize=4096", "--pid", &server.child.id().to_string()].map(String::from);
        let status = Command::new("prlimit").args(limit).status().expect("prlimit(1) of util-linux");
        assert!(status.success());
        let mut writer = server.client();
        writer.0.write_all(b"MSET b 2 c 3 d 4\r\n").unwrap();
        let mut looker = server.client();
        eventually("the log fails", || looker.bulk("INFO persistence").contains("log_state:failed"));
        let mut client = server.client();
        let text = client.bulk("INFO");
        assert!(text.contains("# Keyspace") && text.contains("log_state:failed"), "{text}");
        assert!(client.bulk("CLIENT LIST").contains("id="));
        assert_eq!(client.bulk("CONFIG GET maxmemory"), "maxmemory 0");
        client.ping();
        let mut http = TcpStream::connect(server.field("http").unwrap()).unwrap();
        http.set_read_timeout(Some(PATIENCE)).unwrap();
        http.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut page = String::new();
        http.read_to_string(&mut page).unwrap();
        assert!(page.starts_with("HTTP/1.1 200 ") && page.contains("millrace_latest_lsn "), "{page}");
        let told = client.ask("SET e 5");
        assert!(told.starts_with("-MISCONF the log failed writing log-") && told.contains("EFBIG"), "{told}");
        // The write that was on its way got no answer.
        let mut rest = Vec::new();
        writer.0.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"");
        server.signal("TERM");
        assert_eq!(server.wait(PATIENCE).code(), Some(1), "what was not made durable is said at the end");
        drop(server);
        let server = Running::start(&flags(&dir, &["--shards", shards]));
        assert_eq!(server.client().bulk("GET a"), "1");
        server.stop();
    }
}

/// A client whose writes go to other shards is promised no less, and may ask for less.
#[test]
fn waiting_for_the_log_covers_writes_on_every_shard() {
    let scratch = Scratch::new("waitaof");
    let dir = scratch.path("data");
    for shards in ["2", "4"] {
        for (durability, class) in [
            ("always", "default"),
            ("always", "off"),
            ("always", "everysec"),
            ("everysec", "default"),
            ("everysec", "off"),
        ] {
            let _ = fs::remove_dir_all(&dir);
            let more = ["--shards", shards, "--durability", durability];
            let mut server = Running::start(&flags(&dir, &more));
            let mut client = server.client();
            assert_eq!(client.ask(&format!("CLIENT DURABILITY {class}")), "+OK");
            let pairs: String = (0..32).map(|n| format!(" key{n} {n}")).collect();
            assert_eq!(client.ask(&format!("MSET{pairs}")), "+OK");
            for n in 32..64 {
                assert_eq!(client.ask(&format!("SET key{n} {n}")), "+OK");
            }
            assert_eq!([client.ask("WAITAOF 1 0 20000"), client.line(), client.line()], ["*2", ":1", ":0"]);
            // HTTP, the same: a write that waits for nothing, then one that does, behind it in the log.
            for (n, wanted) in [(64, "off"), (65, "always")] {
                let mut http = TcpStream::connect(server.field("http").unwrap()).unwrap();
                http.set_read_timeout(Some(PATIENCE)).unwrap();
                let head = format!(
                    "PUT /v1/keys/key{n} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 2\r\n\
                     X-Millrace-Durability: {wanted}\r\n\r\n{n}"
                );
                http.write_all(head.as_bytes()).unwrap();
                let mut answer = String::new();
                http.read_to_string(&mut answer).unwrap();
                assert!(answer.starts_with("HTTP/1.1 20"), "{answer}");
            }
            server.signal("KILL");
            server.wait(PATIENCE);
            // Whatever shards there are now.
            let server = Running::start(&flags(&dir, &["--shards", "3"]));
            let mut client = server.client();
            assert_eq!(client.ask("DBSIZE"), ":66", "{durability}, {class}, {shards} shards");
            for n in 0..66 {
                assert_eq!(client.bulk(&format!("GET key{n}")), n.to_string());
            }
            server.stop();
        }
    }
}
