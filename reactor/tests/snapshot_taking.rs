//! Snapshots of a real server, as clients and operators meet them: taken under writes, kept, scheduled, failed, and the log
//! before them let go.

#[allow(dead_code, reason = "each suite uses its part")]
mod process;

use process::*;
use reactor::io::log_files::{DirectoryLock, LogDirectory, checksum};
use reactor::server::recovery::{RecoveryOptions, recover_from};
use snapshot::view::SnapshotView;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use store::arena::{HeapSource, SegmentSource};
use store::image::PageCheck;
use store::image::meta::summary;
use store::image::restore::LiveCursor;
use store::keyspace::{Keyspace, KeyspaceOptions};
use store::mutation::Mutation;
use store::shards::Place;
use store::time::{Nanos, Now};
use wal::lsn::Lsn;

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
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A field of INFO.
fn field(client: &mut Client<TcpStream>, field: &str) -> String {
    let text = client.bulk("INFO persistence");
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {field} in {text}")).to_string()
}

fn number(client: &mut Client<TcpStream>, name: &str) -> u64 {
    field(client, name).parse().unwrap()
}

/// Sets so many keys, a hundred at a time.
fn set(client: &mut Client<TcpStream>, name: &str, count: usize, value: &str) {
    for first in (0..count).step_by(100) {
        let commands = |at: usize| format!("SET {name}:{at} {value}\r\n");
        let together: String = (first..count.min(first + 100)).map(commands).collect();
        client.0.write_all(together.as_bytes()).unwrap();
        (first..count.min(first + 100)).for_each(|_| assert_eq!(client.line(), "+OK"));
    }
}

/// Files of a directory whose names end so.
fn files(dir: &str, ending: &str) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.to_str().is_some_and(|name| name.ends_with(ending)));
    paths.sort();
    paths
}

fn snapshots(dir: &str) -> Vec<PathBuf> {
    files(dir, ".mrs")
}

/// What a snapshot holds: a shard's LSN, and its keys.
type Contents = Vec<(u64, BTreeMap<Vec<u8>, Vec<u8>>)>;

struct Check {
    view: Arc<SnapshotView<Vec<u8>>>,
    shard: usize,
}

impl PageCheck for Check {
    fn check(&self, region: u32, page: u32, bytes: &[u8]) -> Result<(), (u32, u32)> {
        self.view
            .check_page(self.shard, region as usize, page.into(), bytes)
            .map_err(|mismatch| (mismatch.expected, mismatch.found))
    }
}

/// Opens a snapshot as a start would, and reads every key.
fn read(path: &Path) -> Contents {
    let bytes = fs::read(path).unwrap();
    assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    let envelope = snapshot::view::Envelope::open(
        path.to_str().unwrap(),
        bytes.len() as u64,
        &bytes[..4096],
        &bytes[bytes.len() - 4096..],
        checksum(),
    )
    .unwrap();
    let tables = envelope.tables();
    let tables = bytes[tables.start as usize..tables.end as usize].to_vec();
    let view = Arc::new(SnapshotView::open(envelope, tables, checksum()).unwrap());
    let now = Now { unix_us: view.header().unix_us, monotonic: Nanos(1) };
    let mut contents = Vec::new();
    for shard in 0..view.shards() {
        let mut source = HeapSource::default();
        let regions = view.regions(shard).iter().map(|region| {
            let memory = source.allocate(region.length as usize).unwrap();
            memory.copy_from_slice(&bytes[region.range().start as usize..region.range().end as usize]);
            memory
        });
        let regions = regions.collect();
        let hash_seed = summary(view.meta(shard)).unwrap().hash_seed;
        let options = KeyspaceOptions { hash_seed, ..KeyspaceOptions::default() };
        let check = Box::new(Check { view: Arc::clone(&view), shard });
        let mut keyspace =
            Keyspace::from_image(options, Box::new(source), view.meta(shard), regions, check, now).unwrap();
        let mut keys = BTreeMap::new();
        let mut cursor = Some(LiveCursor::START);
        while let Some(at) = cursor {
            cursor = keyspace.for_each_live(at, 1 << 20, now, &mut |key, entry| {
                let twice = keys.insert(key.to_vec(), entry.value.to_vec());
                assert!(twice.is_none(), "a key is there twice");
            });
        }
        // What the walk finds, a client finds.
        for (key, value) in &keys {
            let hash = keyspace.hash(key);
            let found = keyspace.get(key, hash, now).expect("a key that is there");
            assert_eq!(found.value, value);
        }
        assert_eq!(keyspace.len(), keys.len());
        assert_eq!(keyspace.damage(), None);
        contents.push((view.lsn(shard).0, keys));
    }
    contents
}

fn merged(contents: &Contents) -> BTreeMap<Vec<u8>, Vec<u8>> {
    contents.iter().flat_map(|(_, keys)| keys.clone()).collect()
}

/// What the log makes of a snapshot: to each shard's keys the records behind that shard's image.
fn replayed(dir: &str, contents: Contents) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let count = contents.len();
    let place = Place { index: 0, count };
    let mut shards = contents;
    let now = Now { unix_us: 1, monotonic: Nanos(1) };
    let mut keyspaces: Vec<Keyspace> = Vec::new();
    for (_, keys) in &shards {
        let mut keyspace = Keyspace::new(KeyspaceOptions::default(), Box::new(HeapSource::default()));
        for (key, value) in keys {
            let mutation =
                Mutation::Set { key, value, expires_at: None, encoding: store::keyspace::Encoding::Auto };
            keyspace.apply(&mutation, now).unwrap();
        }
        keyspaces.push(keyspace);
    }
    let source = LogDirectory::new(Path::new(dir));
    recover_from(source, RecoveryOptions::new(1), &mut |_| {}, |lsn: Lsn, _, payload: &[u8]| {
        let mut rest = payload;
        while !rest.is_empty() {
            let mutation = Mutation::decode(&mut rest).map_err(|error| format!("{error:?}"))?;
            let shard = place.shard_of(mutation.key().expect("nobody clears"));
            if lsn.0 > shards[shard].0 {
                keyspaces[shard].apply(&mutation, now).map_err(|error| format!("{error:?}"))?;
            }
        }
        Ok(())
    })
    .unwrap();
    for ((_, keys), keyspace) in shards.iter_mut().zip(&mut keyspaces) {
        keys.clear();
        let mut cursor = Some(LiveCursor::START);
        while let Some(at) = cursor {
            cursor = keyspace.for_each_live(at, 1 << 20, now, &mut |key, entry| {
                keys.insert(key.to_vec(), entry.value.to_vec());
            });
        }
    }
    merged(&shards)
}

/// Writes and goes on writing until it is told to stop; what it wrote is in `last`. Appending makes it visible when a record
/// is applied twice, or not at all.
fn write_on(address: std::net::SocketAddr, name: usize, stop: &AtomicBool) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut writer, mut reader) = (stream.try_clone().unwrap(), BufReader::new(stream));
    let mut last: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    let mut round = 0u64;
    while !stop.load(Ordering::Relaxed) {
        let mut commands = String::new();
        let mut expected = 0;
        for _ in 0..16 {
            round = round.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let number = (round >> 33) % 20_000;
            let key = format!("writer{name}:{number:05}");
            let value = format!("{round:016x}");
            let entry = last.entry(key.clone().into_bytes()).or_default();
            match (round >> 20) % 8 {
                0 => {
                    commands.push_str(&format!("DEL {key}\r\n"));
                    last.remove(key.as_bytes());
                }
                1 | 2 if entry.len() < 200 => {
                    commands.push_str(&format!("APPEND {key} {value}\r\n"));
                    entry.extend_from_slice(value.as_bytes());
                }
                3 => {
                    // Two shards at once, as a rule, and one record.
                    let other = format!("writer{name}:{:05}", (number + 1) % 20_000);
                    commands.push_str(&format!("MSET {key} {value} {other} {value}\r\n"));
                    last.insert(key.into_bytes(), value.clone().into_bytes());
                    last.insert(other.into_bytes(), value.into_bytes());
                }
                _ => {
                    commands.push_str(&format!("SET {key} {value}\r\n"));
                    *entry = value.into_bytes();
                }
            }
            expected += 1;
        }
        writer.write_all(commands.as_bytes()).unwrap();
        let mut line = String::new();
        for _ in 0..expected {
            line.clear();
            reader.read_line(&mut line).unwrap();
            assert!(line.starts_with(['+', ':']), "{line}");
        }
    }
    last.retain(|_, value| !value.is_empty());
    last
}

/// The heart of it: images at the shards' own LSNs, taken while they are written to, and the log behind them, are what the
/// clients wrote; on every driver, on one shard and on three.
#[test]
fn a_snapshot_taken_under_writes_and_the_log_behind_it_are_what_was_written() {
    for (driver, shards) in drivers().iter().flat_map(|driver| [(driver, "1"), (driver, "3")]) {
        let scratch = Scratch::new(&format!("under-{driver}-{shards}"));
        let dir = scratch.path("data");
        let more = ["--shards", shards, "--io", driver, "--snapshot-keep", "3", "--log-segment-size", "16mb"];
        let server = Running::start(&flags(&dir, &more));
        let stop = Arc::new(AtomicBool::new(false));
        let written = Arc::new(Mutex::new(BTreeMap::new()));
        let writers: Vec<_> = (0..3)
            .map(|name| {
                let (address, stop, written) = (server.resp(), Arc::clone(&stop), Arc::clone(&written));
                std::thread::spawn(move || {
                    let last = write_on(address, name, &stop);
                    written.lock().unwrap().extend(last);
                })
            })
            .collect();
        let mut client = server.client();
        eventually("there is something to save", || {
            number(&mut client, "rdb_changes_since_last_save") > 5000
        });
        let mut names = Vec::new();
        for round in 1..=2 {
            let before = number(&mut client, "latest_lsn");
            if round == 1 {
                assert_eq!(client.ask("SAVE"), "+OK");
            } else {
                assert_eq!(client.ask("BGSAVE"), "+Background saving started");
            }
            eventually("it is complete", || number(&mut client, "rdb_saves") == round);
            let lsn = number(&mut client, "snapshot_last_lsn");
            assert!(lsn >= before && lsn <= number(&mut client, "durable_lsn"), "{before} {lsn}");
            assert_eq!(field(&mut client, "rdb_last_bgsave_status"), "ok");
            names.push(lsn);
        }
        // Something is behind the second one, too.
        let more = number(&mut client, "latest_lsn") + 500;
        eventually("writers go on", || number(&mut client, "latest_lsn") > more);
        stop.store(true, Ordering::Relaxed);
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        let text = client.bulk("INFO loop");
        eprintln!("{driver} {shards}: {}", text.lines().find(|line| line.contains("turn_nano")).unwrap());
        server.stop();
        let written = Arc::try_unwrap(written).unwrap().into_inner().unwrap();
        let paths = snapshots(&dir);
        assert_eq!(paths.len(), 2);
        for (path, name) in paths.iter().zip(names) {
            let contents = read(path);
            assert_eq!(contents.len(), shards.parse::<usize>().unwrap());
            assert_eq!(contents.iter().map(|shard| shard.0).min(), Some(name));
            assert!(merged(&contents) != written, "something happened behind it");
            let replayed = replayed(&dir, contents);
            assert_eq!(replayed.len(), written.len(), "{driver}, {shards} shards, {}", path.display());
            assert!(replayed == written, "{driver}, {shards} shards, {}", path.display());
        }
        // And so a server starts, whatever the number of shards.
        for count in [shards, "2"] {
            let more = ["--shards", count, "--io", driver, "--log-segment-size", "16mb"];
            let server = Running::start(&flags(&dir, &more));
            let mut client = server.client();
            assert_eq!(client.ask("DBSIZE"), format!(":{}", written.len()));
            let keys: Vec<&Vec<u8>> = written.keys().collect();
            for keys in keys.chunks(100) {
                let words: Vec<&str> = keys.iter().map(|key| std::str::from_utf8(key).unwrap()).collect();
                let values: Vec<&[u8]> = keys.iter().map(|key| written[*key].as_slice()).collect();
                let expected = String::from_utf8(values.join(&b' ')).unwrap();
                assert_eq!(client.bulk(&format!("MGET {}", words.join(" "))), expected);
            }
            server.stop();
        }
    }
}

#[test]
fn so_many_are_kept_and_the_log_before_them_goes() {
    let scratch = Scratch::new("keep");
    let dir = scratch.path("data");
    let server = Running::start(&flags(&dir, &["--shards", "2", "--snapshot-keep", "2"]));
    let mut client = server.client();
    let value = "x".repeat(1000);
    let mut lsns = Vec::new();
    let first = files(&dir, ".wal")[0].clone();
    for round in 1..=4u64 {
        set(&mut client, &format!("key:{}", round % 2), 2000, &value);
        assert_eq!(client.ask("SAVE"), "+OK");
        lsns.push(number(&mut client, "snapshot_last_lsn"));
        assert_eq!(*lsns.last().unwrap(), round * 2000);
        // Who waited for it did not wait for the old ones to go.
        let kept_now = round.min(2);
        eventually("the old ones go", || {
            snapshots(&dir).len() as u64 == kept_now && number(&mut client, "snapshots_kept") == kept_now
        });
        let kept = lsns.iter().rev().take(2).rev();
        let names: Vec<String> = kept.map(|lsn| format!("snapshot-{:016x}-{lsn:016x}.mrs", 1)).collect();
        let found = snapshots(&dir);
        let found: Vec<_> = found.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(found, names);
        if round == 1 {
            assert!(first.exists(), "with one snapshot of two the log is kept from its beginning");
        }
    }
    // The log's thread removes files when it comes to it.
    eventually("the log before the oldest snapshot goes", || !first.exists());
    assert!(client.ask("LASTSAVE")[1..].parse::<u64>().unwrap() > 1_700_000_000);
    server.stop();
    for path in snapshots(&dir) {
        assert_eq!(merged(&read(&path)).len(), 4000);
    }
    // The log has no beginning any more; with the older of the two snapshots it is enough, too.
    for _ in 0..2 {
        let mut server = Running::start(&flags(&dir, &["--shards", "2"]));
        let mut client = server.client();
        assert_eq!(client.ask("DBSIZE"), ":4000");
        assert_eq!(client.bulk("GET key:0:1999"), value);
        server.signal("KILL");
        server.wait(PATIENCE);
        fs::remove_file(snapshots(&dir).pop().unwrap()).unwrap();
        if snapshots(&dir).is_empty() {
            break;
        }
    }
    let flags = flags(&dir, &["--shards", "2"]);
    refused(&[&["--port", "0", "--http", "no"][..], &flags].concat(), 1);
}

/// A snapshot at every megabyte of log, old ones and segments going all the time, and the process killed again and again:
/// what was acknowledged is there.
#[test]
fn what_was_acknowledged_survives_kills_while_snapshots_come_and_go() {
    for shards in ["1", "3"] {
        let scratch = Scratch::new(&format!("kills-{shards}"));
        let dir = scratch.path("data");
        let more = ["--shards", shards, "--snapshot-log-bytes", "1mb", "--snapshot-keep", "1"];
        let value = "x".repeat(3000);
        for round in 0..8 {
            let mut server = Running::start(&flags(&dir, &more));
            let mut client = server.client();
            if round > 0 {
                assert_eq!(client.ask("DBSIZE"), ":500");
                for at in (0..500).step_by(7) {
                    assert_eq!(client.bulk(&format!("GET key:{at}")), format!("{value}{}", round - 1));
                }
            }
            set(&mut client, "key", 500, &format!("{value}{round}"));
            if round % 2 == 0 {
                // In the middle of one, as a rule.
                eventually("a snapshot is taken, or was", || {
                    field(&mut client, "snapshot_state") != "idle" || number(&mut client, "rdb_saves") > 0
                });
            }
            server.signal("KILL");
            server.wait(PATIENCE);
        }
        assert!(snapshots(&dir).len() <= 2, "{:?}", snapshots(&dir));
    }
}

/// A limit on the length of files is what a full disk is to the snapshot: found when its room is set aside.
#[test]
fn without_room_there_is_no_snapshot_and_the_server_lives() {
    let scratch = Scratch::new("full");
    let dir = scratch.path("data");
    let mut command = limited("trap '' XFSZ; ulimit -S -f 12288");
    let server = Running::spawn(
        command.args(["--port", "0", "--http-port", "0"]).args(flags(&dir, &["--shards", "1"])),
    );
    let mut client = server.client();
    assert_eq!(client.ask("SET small 1"), "+OK");
    assert_eq!(client.ask("SAVE"), "+OK");
    let lastsave = client.ask("LASTSAVE");
    let value = "x".repeat(4000);
    set(&mut client, "key", 1500, &value);
    let told = client.ask("SAVE");
    assert!(told.starts_with("-ERR ") && told.contains("EFBIG") && told.contains("ulimit -f"), "{told}");
    assert_eq!(field(&mut client, "rdb_last_bgsave_status"), "err");
    assert_eq!(number(&mut client, "snapshot_failures"), 1);
    assert!(field(&mut client, "snapshot_last_failure").contains("EFBIG"));
    assert_eq!(client.ask("LASTSAVE"), lastsave);
    assert_eq!(client.ask("SET more 1"), "+OK");
    assert_eq!(client.bulk("GET more"), "1");
    assert_eq!(files(&dir, ".tmp"), [] as [PathBuf; 0]);
    assert_eq!(snapshots(&dir).len(), 1, "the one before stays");
    assert!(client.ask("SHUTDOWN SAVE").starts_with("-ERR Errors trying to SHUTDOWN"));
    client.ping();
    // It goes on when there is room.
    let limit = ["--fsize=unlimited", "--pid", &server.child.id().to_string()].map(String::from);
    assert!(std::process::Command::new("prlimit").args(limit).status().unwrap().success());
    assert_eq!(client.ask("SAVE"), "+OK");
    assert_eq!(field(&mut client, "rdb_last_bgsave_status"), "ok");
    assert_eq!(merged(&read(snapshots(&dir).last().unwrap())).len(), 1502);
    server.heard(&["no snapshot", "EFBIG"]);
    server.stop();
}

#[test]
fn one_at_a_time() {
    let scratch = Scratch::new("one");
    let dir = scratch.path("data");
    for shards in ["1", "3"] {
        let server = Running::start(&flags(&dir, &["--shards", shards]));
        let mut client = server.client();
        assert_eq!(client.ask("SET key 1"), "+OK");
        for second in ["BGSAVE", "SAVE", "BGSAVE SCHEDULE"] {
            client.0.write_all(format!("BGSAVE\r\n{second}\r\nPING\r\n").as_bytes()).unwrap();
            assert_eq!(client.line(), "+Background saving started");
            assert_eq!(client.line(), "-ERR Background save already in progress", "{second}");
            assert_eq!(client.line(), "+PONG");
            eventually("it ends", || field(&mut client, "snapshot_state") == "idle");
        }
        // Whoever says SAVE is answered in order.
        client.0.write_all(b"SAVE\r\nSET key 2\r\nGET key\r\n").unwrap();
        assert_eq!([client.line(), client.line(), client.line(), client.line()], ["+OK", "+OK", "$1", "2"]);
        let saves = number(&mut client, "rdb_saves");
        assert_eq!(client.ask("BGSAVE SCHEDULE"), "+Background saving scheduled");
        eventually("a scheduled one comes", || number(&mut client, "rdb_saves") == saves + 1);
        client.0.write_all(b"MULTI\r\nSET key 3\r\nBGSAVE\r\nEXEC\r\n").unwrap();
        let lines: Vec<String> = (0..6).map(|_| client.line()).collect();
        assert_eq!(lines[4..], ["+OK", "+Background saving scheduled"]);
        eventually("that of the transaction comes", || number(&mut client, "rdb_saves") == saves + 2);
        assert_eq!(client.ask("BGSAVE NOW"), "-ERR syntax error");
        assert!(client.ask("SAVE it").starts_with("-ERR wrong number of arguments"));
        // None that is being removed is read.
        eventually("the old ones go", || snapshots(&dir).len() <= 2);
        assert!(
            snapshots(&dir)
                .iter()
                .any(|path| { merged(&read(path)).get(b"key".as_slice()).map(Vec::as_slice) == Some(b"3") })
        );
        server.stop();
    }
}

#[test]
fn a_schedule_takes_them() {
    let scratch = Scratch::new("schedule");
    let dir = scratch.path("data");
    let server = Running::start(&flags(&dir, &["--snapshot-log-bytes", "1mb", "--shards", "2"]));
    let mut client = server.client();
    let value = "x".repeat(4000);
    let write = |client: &mut Client<TcpStream>| set(client, "key", 400, &value);
    write(&mut client);
    eventually("so much log brings one", || number(&mut client, "rdb_saves") >= 1);
    assert_eq!(client.ask("CONFIG SET snapshot-log-bytes 0"), "+OK");
    eventually("it ends", || field(&mut client, "snapshot_state") == "idle");
    let saves = number(&mut client, "rdb_saves");
    write(&mut client);
    assert_eq!(client.ask("CONFIG SET snapshot-log-bytes 1mb"), "+OK");
    eventually("and so much more another", || number(&mut client, "rdb_saves") > saves);
    assert_eq!(client.ask("CONFIG SET snapshot-log-bytes 0 snapshot-interval 1"), "+OK");
    assert_eq!(client.ask("SET changed 1"), "+OK");
    eventually("and the time", || number(&mut client, "rdb_changes_since_last_save") == 0);
    server.stop();
    assert_eq!(merged(&read(snapshots(&dir).last().unwrap())).len(), 401);
}

/// Without a log only a snapshot outlives the process, and one of the end holds the last write.
#[test]
fn the_end_can_leave_a_snapshot() {
    let scratch = Scratch::new("end");
    for shards in ["1", "3"] {
        for (at, (flag, how, wanted)) in [
            ("no", "SHUTDOWN SAVE", true),
            ("yes", "SHUTDOWN", true),
            ("yes", "TERM", true),
            ("yes", "SHUTDOWN NOSAVE", false),
            ("no", "TERM", false),
        ]
        .into_iter()
        .enumerate()
        {
            let dir = scratch.path(&format!("{shards}-{at}"));
            let flags = ["--dir", &dir, "--snapshot-on-shutdown", flag, "--shards", shards];
            let mut server = Running::start(&flags);
            let mut client = server.client();
            set(&mut client, "key", 100, "1");
            match how {
                "TERM" => server.signal("TERM"),
                how => client.0.write_all(format!("{how}\r\n").as_bytes()).unwrap(),
            }
            assert_eq!(server.wait(PATIENCE).code(), Some(0), "{how}");
            match wanted {
                true => assert_eq!(merged(&read(&snapshots(&dir)[0])).len(), 100, "{how}"),
                false => assert!(!Path::new(&dir).exists(), "{how}"),
            }
        }
    }
}

/// A server without a log takes the directory when it first writes there, and not before.
#[test]
fn a_directory_of_somebody_else_is_left_alone() {
    let scratch = Scratch::new("lock");
    let dir = scratch.path("data");
    let server = Running::start(&["--dir", &dir]);
    let mut client = server.client();
    assert_eq!(client.ask("SET key 1"), "+OK");
    assert!(!Path::new(&dir).exists());
    let lock = DirectoryLock::take(Path::new(&dir)).unwrap();
    let told = client.ask("SAVE");
    let me = format!("process {}", std::process::id());
    assert!(told.starts_with("-ERR ") && told.contains(&me) && told.contains("--dir"), "{told}");
    drop(lock);
    assert_eq!(client.ask("SAVE"), "+OK");
    assert!(DirectoryLock::take(Path::new(&dir)).is_err(), "now it is this server's");
    server.stop();
}

#[cfg(feature = "sqlcipher")]
#[test]
fn there_is_none_beside_an_encrypted_journal() {
    let scratch = Scratch::new("encrypted");
    let dir = scratch.path("data");
    let server = Running::start(&["--dir", &dir, "--journal", "sqlcipher", "--snapshot-on-shutdown", "yes"]);
    let mut client = server.client();
    assert_eq!(client.ask("SET key 1"), "+OK");
    for command in ["SAVE", "BGSAVE", "BGSAVE SCHEDULE"] {
        let told = client.ask(command);
        assert!(told.contains("in the clear") && told.contains("sqlcipher"), "{told}");
    }
    assert_eq!(field(&mut client, "snapshot_state"), "refused");
    assert!(client.ask("SHUTDOWN SAVE").starts_with("-ERR Errors"));
    server.stop();
    assert!(!Path::new(&dir).exists());
}
