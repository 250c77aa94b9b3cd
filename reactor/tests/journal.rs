//! The encrypted journal under a server: its thread, recovery, keys, damage, and tools that are killed.
#![cfg(feature = "sqlcipher")]

use reactor::clock::{monotonic_ns, realtime_ns};
use reactor::server::journal_thread::JournalThread;
use reactor::server::log_handle::{LogHandle, LogState, Refusal, Waker};
use reactor::server::log_thread::LogOptions;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use wal::lsn::Lsn;
use wal::reader::Until;
use wal::settings::FlushPolicy;
use wal::sqlcipher::{Journal, JournalError, Key};

/// Longer than anything here takes; reaching it is a failure.
const PATIENCE: Duration = Duration::from_secs(60);

const BINARY: &str = env!("CARGO_BIN_EXE_millrace");

/// A directory of one test's own with two keys in it, removed with the value.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("millrace-{name}-{}-{number}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("data")).unwrap();
        let scratch = Scratch(folder);
        scratch.write_key("key", &"c4".repeat(32), 0o600);
        scratch.write_key("other", "a passphrase\n", 0o600);
        scratch
    }

    fn write_key(&self, name: &str, text: &str, mode: u32) {
        fs::write(self.0.join(name), text).unwrap();
        fs::set_permissions(self.0.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    fn data(&self) -> PathBuf {
        self.0.join("data")
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_string()
    }

    /// `millrace` with these words, to its end.
    fn run(&self, words: &[&str]) -> Output {
        Command::new(BINARY).args(words).env_remove("MILLRACE_JOURNAL_KEY").output().unwrap()
    }

    /// The arguments of a server on this directory.
    fn arguments(&self, key: &str) -> Vec<String> {
        let words = ["--port", "0", "--http", "no", "--durability", "always", "--journal", "sqlcipher"];
        let mut words: Vec<String> = words.map(String::from).to_vec();
        words.extend(["--log-segment-size", "4mb", "--dir"].map(String::from));
        words.push(self.path("data"));
        words.extend(["--journal-key-file".into(), self.path(key)]);
        words
    }

    fn server(&self, more: &[&str]) -> Server {
        Server::start(&self.arguments("key"), more).unwrap_or_else(|said| panic!("{said}"))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

struct Server {
    child: Child,
    address: String,
}

impl Server {
    /// `Err`: what it said instead of serving.
    fn start(words: &[String], more: &[&str]) -> Result<Server, String> {
        let mut child = Command::new(BINARY)
            .args(words)
            .args(more)
            .env_remove("MILLRACE_JOURNAL_KEY")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.split_whitespace().find_map(|word| word.strip_prefix("resp=")).map(str::to_owned);
        let mut errors = child.stderr.take().unwrap();
        match address {
            Some(address) => {
                thread::spawn(move || std::io::copy(&mut errors, &mut std::io::stderr()));
                Ok(Server { child, address })
            }
            None => {
                let mut said = String::new();
                errors.read_to_string(&mut said).unwrap();
                assert_eq!(child.wait().unwrap().code(), Some(1), "{said}");
                Err(said)
            }
        }
    }

    fn client(&self) -> Client {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client(BufReader::new(stream))
    }

    fn stop(mut self) {
        Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Client(BufReader<TcpStream>);

impl Client {
    /// One command, and its reply's first line or its bulk.
    fn ask(&mut self, command: &str) -> String {
        self.0.get_mut().write_all(format!("{command}\r\n").as_bytes()).unwrap();
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        if line.starts_with('$') && !line.starts_with("$-") {
            line.clear();
            self.0.read_line(&mut line).unwrap();
        }
        line.trim_end().to_string()
    }

    fn fill(&mut self, count: usize) {
        for number in 0..count {
            assert_eq!(self.ask(&format!("SET fill:{number} {}", "f".repeat(200))), "+OK");
        }
    }
}

fn key() -> Key {
    Key::parse(&"c4".repeat(32)).unwrap()
}

type Records = Vec<(u64, Vec<u8>)>;

fn records(path: &Path) -> Records {
    let journal = Journal::open(path, &key()).unwrap();
    let mut records = Vec::new();
    let read = journal.read(journal.first_lsn(), Until::End, |record| -> Result<(), JournalError> {
        records.push((record.lsn.0, record.payload.to_vec()));
        Ok(())
    });
    read.unwrap();
    records
}

fn begin(path: &Path, options: LogOptions, shards: usize) -> (JournalThread, Vec<LogHandle>) {
    let wakers = (0..shards).map(|_| Box::new(|| {}) as Waker).collect();
    let journal = Journal::open(path, &key()).unwrap();
    JournalThread::start(journal, options, wakers).unwrap()
}

/// What waits here waits by asking again: who is woken is tested with the other journal's thread.
fn eventually(mut is_true: impl FnMut() -> bool, what: &str) {
    let begun = Instant::now();
    while !is_true() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        thread::yield_now();
    }
}

/// As the test of the same name for the other journal, but for what only that one has.
#[test]
fn records_of_many_threads_are_read_back_in_one_order() {
    let seed = std::env::var("SEED").map_or_else(|_| realtime_ns(), |seed| seed.parse().unwrap());
    println!("records_of_many_threads_are_read_back_in_one_order: SEED={seed}");
    for policy in [FlushPolicy::EveryBlock, FlushPolicy::OnRequest] {
        let scratch = Scratch::new("threads");
        let path = scratch.data().join("journal.db");
        let options = LogOptions {
            policy,
            segment_bytes: 0,
            pending_bytes_max: 1 << 20,
            flush_period: Duration::from_millis(3),
            ..LogOptions::default()
        };
        let (log, handles) = begin(&path, options, 4);
        let written: Arc<Mutex<BTreeMap<u64, Vec<u8>>>> = Arc::default();
        let threads: Vec<_> = handles
            .into_iter()
            .enumerate()
            .map(|(shard, mut log)| {
                let written = Arc::clone(&written);
                let mut state = seed.wrapping_add((shard as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1;
                // xorshift64
                let mut below = move |bound: u64| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state % bound
                };
                thread::spawn(move || {
                    for _ in 0..150 {
                        let payloads: Vec<Vec<u8>> = (0..=below(7))
                            .map(|_| {
                                let longest = if below(40) == 0 { 600_000 } else { 300 };
                                vec![below(256) as u8; below(longest) as usize]
                            })
                            .collect();
                        let framed = payloads.iter().map(|payload| payload.len() + 8).sum();
                        eventually(|| log.admit(framed).is_ok(), "there is room");
                        // LSNs are taken one by one, so that batches of several shards interleave.
                        let mut batch = log.batch(1);
                        let mut last = Lsn::ZERO;
                        for payload in payloads {
                            last = log.allocate(1);
                            if below(3) == 0 {
                                thread::yield_now();
                            }
                            batch.push(last, &payload);
                            written.lock().unwrap().insert(last.0, payload);
                        }
                        log.submit(batch);
                        if below(4) == 0 {
                            eventually(|| log.durable_lsn() >= last, "it becomes durable");
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let shared = Arc::clone(log.shared());
        log.close().unwrap();
        let written = written.lock().unwrap();
        assert_eq!(shared.durable_lsn(), Lsn(written.len() as u64));
        assert_eq!((shared.pending_bytes(), shared.reserved_bytes()), (0, 0));
        assert_eq!(shared.state(), LogState::Closed);
        assert!(records(&path).into_iter().eq(written.clone()));
        let metrics = shared.metrics();
        assert_eq!(metrics.log.records, written.len() as u64);
        assert_eq!(metrics.flush_us.iter().sum::<u64>(), metrics.flushes);
        assert_eq!(metrics.log.records_per_block.iter().sum::<u64>(), metrics.log.writes);
        assert!(metrics.log.writes < metrics.log.records, "several records share a transaction");
    }
}

/// What is acknowledged is there after the thread has vanished; what is not need not be.
#[test]
fn what_was_durable_when_the_thread_vanished_is_there() {
    let scratch = Scratch::new("vanish");
    let path = scratch.data().join("journal.db");
    let mut expected = Records::new();
    for round in 0..10_u64 {
        let (log, mut handles) = begin(&path, LogOptions { segment_bytes: 0, ..LogOptions::default() }, 1);
        let handle = &mut handles[0];
        for number in 0..20_u64 {
            eventually(|| handle.admit(2_000).is_ok(), "there is room");
            let (lsn, payload) = (handle.allocate(1), vec![(round * 20 + number) as u8; 1_000]);
            let mut batch = handle.batch(1);
            batch.push(lsn, &payload);
            handle.submit(batch);
            expected.push((lsn.0, payload));
        }
        eventually(|| handle.durable_lsn() == handle.shared().allocated_lsn(), "it becomes durable");
        log.abandon();
        drop(handles);
        assert_eq!(records(&path), expected, "round {round}");
    }
}

#[test]
fn a_record_that_never_came_is_said_at_the_end() {
    let scratch = Scratch::new("hole");
    let path = scratch.data().join("journal.db");
    let (log, mut handles) = begin(&path, LogOptions { segment_bytes: 0, ..LogOptions::default() }, 1);
    let missing = handles[0].allocate(1);
    let lsn = handles[0].allocate(1);
    let mut batch = handles[0].batch(1);
    batch.push(lsn, b"second");
    handles[0].submit(batch);
    let error = log.close().unwrap_err();
    assert!(error.contains(&format!("LSN {missing} was given")), "{error}");
    assert_eq!(records(&path), []);
}

/// Larger than anything that is prepared: it is made room for, and then it is taken.
#[test]
fn a_large_record_is_made_room_for() {
    let scratch = Scratch::new("large");
    let path = scratch.data().join("journal.db");
    let options = LogOptions { segment_bytes: 0, pending_bytes_max: 1 << 20, ..LogOptions::default() };
    let (log, mut handles) = begin(&path, options, 1);
    let payload: Vec<u8> = (0..30_000_000_u32).map(|number| (number >> 3) as u8).collect();
    assert_eq!(handles[0].admit(payload.len() + 8), Err(Refusal::Busy));
    eventually(|| handles[0].admit(payload.len() + 8).is_ok(), "room is made");
    let lsn = handles[0].allocate(1);
    let mut batch = handles[0].batch(1);
    batch.push(lsn, &payload);
    handles[0].submit(batch);
    log.close().unwrap();
    assert_eq!(records(&path), [(1, payload)]);
}

#[test]
fn a_killed_server_has_everything_and_nothing_in_the_clear() {
    let scratch = Scratch::new("kill");
    for io in ["io_uring", "epoll"] {
        let server = scratch.server(&["--io", io, "--shards", "2"]);
        let mut client = server.client();
        client.ask("FLUSHALL");
        assert_eq!(client.ask("SET plainkeybytes plainvaluebytes"), "+OK");
        client.fill(300);
        assert_eq!(client.ask("INCRBY counter 41"), ":41");
        server.kill();
        let mut server = scratch.server(&["--io", io]);
        let mut client = server.client();
        assert_eq!(client.ask("DBSIZE"), ":302");
        assert_eq!(client.ask("GET plainkeybytes"), "plainvaluebytes");
        assert_eq!(client.ask("INCR counter"), ":42");
        let info = |client: &mut Client, field: &str| -> u64 {
            client.0.get_mut().write_all(b"INFO persistence\r\n").unwrap();
            let mut line = String::new();
            client.0.read_line(&mut line).unwrap();
            let mut text = vec![0; line[1..].trim_end().parse::<usize>().unwrap() + 2];
            client.0.read_exact(&mut text).unwrap();
            let text = String::from_utf8(text).unwrap();
            let found = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
            found.unwrap_or_else(|| panic!("no {field} in {text}")).parse().unwrap()
        };
        // Counted by the journal's thread, shown from a shard's next look on.
        eventually(|| info(&mut client, "log_records") == 1, "the record is counted");
        assert!(info(&mut client, "log_flushes") >= 1 && info(&mut client, "log_bytes") > 4096);
        // While it runs and when it has stopped: SQLite's log and whatever else there is.
        for is_running in [true, false] {
            for entry in fs::read_dir(scratch.data()).unwrap() {
                let path = entry.unwrap().path();
                let bytes = fs::read(&path).unwrap();
                for word in [
                    &b"plainkeybytes"[..],
                    b"plainvaluebytes",
                    &[b'f'; 24],
                    b"SQLite format",
                    b"CREATE TABLE",
                ] {
                    let found = bytes.windows(word.len()).any(|window| window == word);
                    assert!(!found, "{word:?} in {path:?}, running: {is_running}");
                }
                assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "{path:?}");
            }
            if is_running {
                Command::new("kill").arg(server.child.id().to_string()).status().unwrap();
                assert_eq!(server.child.wait().unwrap().code(), Some(0));
            }
        }
    }
}

#[test]
fn the_key_is_needed_right_and_private() {
    let scratch = Scratch::new("keys");
    let server = scratch.server(&[]);
    assert_eq!(server.client().ask("SET k v"), "+OK");
    server.stop();
    let refusal = |words: &[String], expected: &[&str]| {
        let said = Server::start(words, &[]).map(|_| ()).unwrap_err();
        assert_eq!(said.lines().count(), 1, "{said}");
        expected.iter().for_each(|word| assert!(said.contains(word), "{word}: {said}"));
        assert!(!said.contains("passphrase\n") && !said.contains("c4c4"), "{said}");
    };
    refusal(&scratch.arguments("other"), &["data/journal.db", "key", "--journal-key-file"]);
    refusal(&scratch.arguments("missing"), &["missing: No such file"]);
    scratch.write_key("open", &"c4".repeat(32), 0o604);
    refusal(&scratch.arguments("open"), &["mode 604", "chmod 600"]);
    scratch.write_key("empty", "\n", 0o600);
    refusal(&scratch.arguments("empty"), &["empty: ", "found nothing"]);
    let mut words = scratch.arguments("key");
    words.truncate(words.len() - 2);
    refusal(&words, &["--journal-key-file", "MILLRACE_JOURNAL_KEY"]);
    // From the environment.
    let mut child = Command::new(BINARY)
        .args(&words)
        .env("MILLRACE_JOURNAL_KEY", "c4".repeat(32))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(line.starts_with("ready "), "{line}");
    // With the other journal the same directory is refused.
    let native = scratch.run(&[
        "--port",
        "0",
        "--http",
        "no",
        "--durability",
        "always",
        "--dir",
        &scratch.path("data"),
    ]);
    let said = String::from_utf8(native.stderr).unwrap();
    assert!(native.status.code() == Some(1) && said.contains("journal convert"), "{said}");
}

/// Of database and log alike: either the change is found and nothing starts, or everything is there.
#[test]
fn a_flipped_byte_is_never_served() {
    let scratch = Scratch::new("flip");
    let server = scratch.server(&[]);
    let mut client = server.client();
    for number in 0..3_000 {
        assert_eq!(client.ask(&format!("SET key:{number} {}", number.to_string().repeat(40))), "+OK");
    }
    server.kill();
    let names = ["journal.db", "journal.db-wal"];
    let whole = names.map(|name| fs::read(scratch.data().join(name)).unwrap());
    assert!(whole[0].len() > 100_000, "pages have gone to the database: {}", whole[0].len());
    let used = whole[1].iter().rposition(|&byte| byte != 0).unwrap();
    let (mut refused, mut served) = (0, 0);
    for (file, name) in names.iter().enumerate() {
        let length = if file == 0 { whole[0].len() } else { used };
        for at in (100..length).step_by(length / 12) {
            let mut flipped = whole.clone();
            flipped[file][at] ^= 0x10;
            names
                .iter()
                .zip(&flipped)
                .for_each(|(name, bytes)| fs::write(scratch.data().join(name), bytes).unwrap());
            match Server::start(&scratch.arguments("key"), &[]) {
                Err(said) => {
                    assert!(said.contains("data/journal.db") && !said.contains("panicked"), "{said}");
                    refused += 1;
                }
                Ok(server) => {
                    let mut client = server.client();
                    assert_eq!(client.ask("DBSIZE"), ":3000", "{name} at {at}");
                    for number in (0..3_000).step_by(113) {
                        let expected = number.to_string().repeat(40);
                        assert_eq!(client.ask(&format!("GET key:{number}")), expected, "{name} at {at}");
                    }
                    served += 1;
                }
            }
        }
    }
    println!("{refused} refused, {served} served everything");
    assert!(refused > 5, "{refused} refused, {served} served");
}

#[test]
fn recovery_to_an_lsn_leaves_the_rest_out_for_good() {
    let scratch = Scratch::new("recover-to");
    let server = scratch.server(&[]);
    let mut client = server.client();
    (1..=9).for_each(|number| assert_eq!(client.ask(&format!("SET key:{number} v")), "+OK"));
    server.kill();
    let said = Server::start(&scratch.arguments("key"), &["--recover-to", "10"]).map(|_| ()).unwrap_err();
    assert!(said.contains("ends with LSN 9"), "{said}");
    let server = scratch.server(&["--recover-to", "4"]);
    assert_eq!(server.client().ask("DBSIZE"), ":4");
    server.kill();
    let said = Server::start(&scratch.arguments("key"), &["--recover-to", "4"]).map(|_| ()).unwrap_err();
    assert!(said.contains("cut there already: epoch 2 begins at LSN 5"), "{said}");
    let server = scratch.server(&[]);
    assert_eq!(server.client().ask("DBSIZE"), ":4");
    assert_eq!(server.client().ask("SET more v"), "+OK");
    server.stop();
    assert_eq!(scratch.server(&[]).client().ask("DBSIZE"), ":5");
}

#[test]
fn the_log_is_looked_at_with_the_key_and_converted_there_and_back() {
    let scratch = Scratch::new("tools");
    let data = scratch.path("data");
    let server = scratch.server(&[]);
    let mut client = server.client();
    client.fill(500);
    let (key, other) = (scratch.path("key"), scratch.path("other"));
    let with_key = |words: &[&str]| scratch.run(&[words, &["--journal-key-file", &key]].concat());
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let busy = with_key(&["log", "verify", &data]);
    assert!(busy.status.code() == Some(1) && text(&busy.stderr).contains("in use by process"), "{busy:?}");
    server.kill();
    let verified = with_key(&["log", "verify", &data]);
    assert!(verified.status.success() && text(&verified.stdout).contains("LSN 1 to 500"), "{verified:?}");
    let dumped = with_key(&["log", "dump", &data, "--from", "3", "--until", "5"]);
    assert_eq!(text(&dumped.stdout).lines().count(), 3);
    assert!(
        text(&dumped.stdout).starts_with("{\"lsn\":3,") && text(&dumped.stdout).contains("fill:2"),
        "{dumped:?}"
    );
    let refused = scratch.run(&["log", "verify", &data]);
    assert!(
        refused.status.code() == Some(1) && text(&refused.stderr).contains("--journal-key-file"),
        "{refused:?}"
    );
    let repair = scratch.run(&["log", "repair", &data]);
    assert!(repair.status.code() == Some(1) && text(&repair.stderr).contains("not repaired"), "{repair:?}");
    let whole = with_key(&["log", "dump", &data]);
    let converted = with_key(&["journal", "convert", &data, "--to", "native"]);
    assert!(converted.status.success(), "{converted:?}");
    assert_eq!(scratch.run(&["log", "dump", &data]).stdout, whole.stdout);
    let server =
        Server::start(&scratch.arguments("key"), &["--journal", "native", "--journal-key-file", ""]).unwrap();
    assert_eq!(server.client().ask("DBSIZE"), ":500");
    assert_eq!(server.client().ask("SET by-native 1"), "+OK");
    server.kill();
    let said = Server::start(&scratch.arguments("key"), &[]).map(|_| ()).unwrap_err();
    assert!(said.contains("--to sqlcipher"), "{said}");
    assert!(with_key(&["journal", "convert", &data, "--to", "sqlcipher"]).status.success());
    let rekeyed = with_key(&["journal", "rekey", &data, "--new-key-file", &other]);
    assert!(rekeyed.status.success(), "{rekeyed:?}");
    let server = Server::start(&scratch.arguments("other"), &[]).unwrap();
    assert_eq!(server.client().ask("DBSIZE"), ":501");
    assert_eq!(server.client().ask("GET by-native"), "1");
}

/// SIGKILL at any moment: one of the keys, or one of the journals, has everything.
#[test]
fn tools_that_are_killed_lose_nothing() {
    let scratch = Scratch::new("killed-tools");
    let data = scratch.path("data");
    let server = scratch.server(&[]);
    server.client().fill(2_000);
    server.stop();
    let (mut key, mut other) = ("key", "other");
    let (mut native, mut killed) = (false, 0);
    let mut longest = Duration::from_millis(400);
    for round in 0..24_u32 {
        let key_file = scratch.path(key);
        let words: Vec<String> = match round % 2 {
            0 if !native => [
                "journal",
                "rekey",
                &data,
                "--new-key-file",
                &scratch.path(other),
                "--journal-key-file",
                &key_file,
            ]
            .map(String::from)
            .to_vec(),
            _ => {
                let to = if native { "sqlcipher" } else { "native" };
                ["journal", "convert", &data, "--to", to, "--journal-key-file", &key_file]
                    .map(String::from)
                    .to_vec()
            }
        };
        let begun = monotonic_ns();
        let mut child = Command::new(BINARY).args(&words).stdout(Stdio::null()).spawn().unwrap();
        let patience = longest * (round + 1) / 20;
        while child.try_wait().unwrap().is_none() && monotonic_ns() - begun < patience.as_nanos() as u64 {
            thread::yield_now();
        }
        let ended = child.try_wait().unwrap();
        killed += u32::from(ended.is_none());
        let _ = child.kill();
        child.wait().unwrap();
        if ended.is_some() {
            longest = Duration::from_nanos(monotonic_ns() - begun);
        }
        // What was interrupted behind the point from which it counts is ended as the error says.
        let verify =
            |key: &str| scratch.run(&["log", "verify", &data, "--journal-key-file", &scratch.path(key)]);
        let said = String::from_utf8(verify(key).stderr).unwrap();
        if said.contains("a conversion was interrupted") {
            let to = if native { "sqlcipher" } else { "native" };
            let again = ["journal", "convert", &data, "--to", to, "--journal-key-file", &key_file];
            assert!(scratch.run(&again).status.success());
        }
        native = !scratch.data().join("journal.db").exists();
        if !native && !verify(key).status.success() {
            (key, other) = (other, key);
        }
        let verified = verify(key);
        let text = String::from_utf8(verified.stdout).unwrap();
        assert!(verified.status.success() && text.contains("LSN 1 to 2000"), "round {round}: {text}");
    }
    println!("{killed} of 24 were killed before their end");
    assert!(killed > 4, "{killed}");
}
