//! The server on a disk whose power is cut: what was acknowledged is there afterwards, and what anybody was shown.
//!
//! SIGKILL proves nothing about flushing. Here the disk forgets what was not flushed, tears and reorders it; fails writes
//! and flushes; fills up. Every client owns its keys and counts in them, and remembers the last count that was
//! acknowledged, the last that it sent, and the highest that it was shown: after the restart each key must lie between.
//!
//! Each test prints its seed; `MILLRACE_SEED` repeats it, `MILLRACE_CUTS` makes the first one longer. Without root,
//! /dev/fuse, loop devices or mkfs.ext4 the tests are skipped and say so.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tests::oracle::target::millrace_binary;
use tests::power_cut::{CutStyle, Options, PowerCutDisk};
use tests::random::{self, Random};
use tests::runner::{self, Skipped};

type Outcome = Result<(), Skipped>;

const CLIENTS: usize = 6;
const KEYS: usize = 4;
const PATIENCE: Duration = Duration::from_secs(30);
const EIO: i32 = 5;

fn main() -> ExitCode {
    runner::main(&[
        ("a_hundred_power_cuts_lose_nothing", a_hundred_power_cuts_lose_nothing),
        ("power_cuts_among_snapshots_lose_nothing", power_cuts_among_snapshots_lose_nothing),
        ("a_disk_that_lies_loses", a_disk_that_lies_loses),
        ("a_failed_flush_is_never_acknowledged", a_failed_flush_is_never_acknowledged),
        ("a_full_disk_refuses_writes_and_serves_reads", a_full_disk_refuses_writes_and_serves_reads),
        (
            "power_cuts_lose_nothing_of_the_encrypted_journal",
            power_cuts_lose_nothing_of_the_encrypted_journal,
        ),
        (
            "a_disk_that_lies_loses_the_encrypted_journal_too",
            a_disk_that_lies_loses_the_encrypted_journal_too,
        ),
        (
            "a_failed_flush_of_the_encrypted_journal_is_never_acknowledged",
            a_failed_flush_of_the_encrypted_journal_is_never_acknowledged,
        ),
        (
            "a_full_disk_under_the_encrypted_journal_refuses_and_resumes",
            a_full_disk_under_the_encrypted_journal_refuses_and_resumes,
        ),
    ])
}

/// What is known of one key.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    sent: u64,
    acknowledged: u64,
    shown: u64,
}

type Ledger = Arc<Vec<Mutex<[Known; KEYS]>>>;

/// What makes the server keep the encrypted journal; its key is in the environment.
const ENCRYPTED: &[&str] = &["--journal", "sqlcipher", "--log-segment-size", "4mb"];

/// The encrypted journal takes minutes to build, so a quick build goes without it.
fn needs_the_encrypted_journal() -> Outcome {
    match cfg!(feature = "sqlcipher") {
        true => Ok(()),
        false => Err(Skipped("built without the encrypted journal (--features sqlcipher)".into())),
    }
}

fn a_hundred_power_cuts_lose_nothing() -> Outcome {
    let cuts =
        std::env::var("MILLRACE_CUTS").map_or(100, |text| text.parse().expect("MILLRACE_CUTS is a number"));
    lose_nothing("a_hundred_power_cuts_lose_nothing", cuts, Duration::ZERO, |cut| {
        let mode = ["direct", "dsync", "fdatasync"][cut % 3];
        // No snapshot comes: small segments, or a hundred starts would fill the disk.
        vec!["--log-write-mode", mode, "--log-segment-size", "1mb"]
    })
}

/// So little log starts a snapshot that one is nearly always being taken, an older one removed or the log before it let go
/// when the power goes.
fn power_cuts_among_snapshots_lose_nothing() -> Outcome {
    lose_nothing("power_cuts_among_snapshots_lose_nothing", 60, Duration::ZERO, |cut| {
        let keep = ["1", "2", "3"][cut / 4 % 3];
        vec!["--snapshot-log-bytes", "64kb", "--snapshot-keep", keep, "--log-segment-size", "1mb"]
    })
}

fn power_cuts_lose_nothing_of_the_encrypted_journal() -> Outcome {
    needs_the_encrypted_journal()?;
    let delay = Duration::from_millis(3);
    lose_nothing("power_cuts_lose_nothing_of_the_encrypted_journal", 24, delay, |_| ENCRYPTED.to_vec())
}

fn lose_nothing(
    test: &str,
    cuts: usize,
    flush_delay: Duration,
    more: impl Fn(usize) -> Vec<&'static str>,
) -> Outcome {
    let seed = random::seed();
    println!("{test}: MILLRACE_SEED={seed}");
    let mut disk = PowerCutDisk::new(Options { size: 512 << 20, ..Options::default() })?;
    let ledger = ledger();
    let mut random = Random::new(seed);
    let takes_snapshots = more(0).contains(&"--snapshot-log-bytes");
    let (mut acknowledged, mut shown, mut torn, mut from_snapshots) = (0, 0, 0, 0);
    // Long enough for a cut to come while something is being flushed.
    disk.set_flush_delay(flush_delay);
    for cut in 0..cuts {
        let io = if cut % 2 == 0 { "io_uring" } else { "epoll" };
        let shards = if cut % 4 < 2 { "1" } else { "2" };
        let arguments = [vec!["--io", io, "--shards", shards], more(cut)].concat();
        let has_snapshot = snapshots(disk.mount_point()).iter().any(|name| name.ends_with(".mrs"));
        from_snapshots += usize::from(has_snapshot);
        let mut server = Server::start(disk.mount_point(), &arguments);
        verify(&server, &ledger, &format!("cut {cut}, seed {seed}")).expect("nothing lost, nothing invented");
        let load = Load::start(&server, &ledger, random.next_u64());
        load.wait_for(100 + random.below(600));
        if takes_snapshots {
            // A start looks for work after a tenth of a second, when a fast machine's load is long over: wait for a snapshot
            // to begin, to be complete, for an older one to go, or a few of these. In one of five cuts it is too soon for any.
            for _ in 0..random.below(5) {
                let before = snapshots(disk.mount_point());
                load.wait_until(|| snapshots(disk.mount_point()) != before);
            }
            load.wait_for(random.below(50));
        }
        // The power goes while something is being flushed, in every other cut.
        let begun = Instant::now();
        while !flush_delay.is_zero() && cut % 2 == 1 && disk.flushes_pending() == 0 {
            assert!(begun.elapsed() < PATIENCE, "nothing is flushed");
            std::thread::yield_now();
        }
        let style = [CutStyle::LoseAll, CutStyle::KeepSomeWrites, CutStyle::KeepSomeSectors][random.below(3)];
        let fate = disk.cut(style, random.next_u64());
        torn += usize::from(fate.dropped > 0);
        server.kill();
        let (acks, looks) = load.end();
        acknowledged += acks;
        shown += looks;
        disk.heal().expect("power comes back");
    }
    let server = Server::start(disk.mount_point(), &more(0));
    verify(&server, &ledger, &format!("the end, seed {seed}")).expect("nothing lost, nothing invented");
    println!(
        "{cuts} cuts, {torn} of them with writes under way; {acknowledged} writes acknowledged, {shown} values shown; \
         {from_snapshots} starts from a snapshot"
    );
    assert!(!takes_snapshots || from_snapshots * 2 > cuts, "the test did its work");
    assert!(
        acknowledged > 50 * cuts as u64 && shown > cuts as u64 && torn * 10 > cuts,
        "the test did its work"
    );
    Ok(())
}

/// The negative control: where flushing does nothing the same test must find losses.
fn a_disk_that_lies_loses() -> Outcome {
    lies_and_loses("a_disk_that_lies_loses", &[])
}

fn a_disk_that_lies_loses_the_encrypted_journal_too() -> Outcome {
    needs_the_encrypted_journal()?;
    lies_and_loses("a_disk_that_lies_loses_the_encrypted_journal_too", ENCRYPTED)
}

fn lies_and_loses(test: &str, arguments: &[&str]) -> Outcome {
    let seed = random::seed();
    println!("{test}: MILLRACE_SEED={seed}");
    let mut random = Random::new(seed);
    for _ in 0..10 {
        let mut disk = PowerCutDisk::new(Options { size: 512 << 20, ..Options::default() })?;
        let ledger = ledger();
        let mut server = Server::start(disk.mount_point(), arguments);
        disk.honour_flushes(false);
        let load = Load::start(&server, &ledger, random.next_u64());
        load.wait_for(500);
        disk.cut(CutStyle::LoseAll, random.next_u64());
        server.kill();
        load.end();
        disk.honour_flushes(true);
        disk.heal().expect("power comes back");
        // It may also find that what was durable is gone, and refuse to start.
        match Server::try_start(disk.mount_point(), arguments) {
            Err(refusal) => {
                println!("refused: {}", refusal.trim());
                return Ok(());
            }
            Ok(server) => {
                if let Err(lost) = verify(&server, &ledger, "a lying disk") {
                    println!("found: {lost}");
                    return Ok(());
                }
            }
        }
    }
    panic!("ten power cuts on a disk that flushes nothing, and nothing was lost: the test cannot see losses");
}

/// Guarantee 4: nothing is acknowledged after it, reads of what is durable go on, and a restart finds exactly that.
fn a_failed_flush_is_never_acknowledged() -> Outcome {
    fails_for_good(&[], "log-")
}

fn a_failed_flush_of_the_encrypted_journal_is_never_acknowledged() -> Outcome {
    needs_the_encrypted_journal()?;
    fails_for_good(ENCRYPTED, "journal.db")
}

fn fails_for_good(arguments: &[&str], file: &str) -> Outcome {
    for io in ["io_uring", "epoll"] {
        let arguments = [arguments, &["--io", io]].concat();
        let disk = PowerCutDisk::new(Options { size: 512 << 20, ..Options::default() })?;
        let mut server = Server::start(disk.mount_point(), &[&arguments[..], &["--shards", "2"]].concat());
        let mut client = server.client();
        assert_eq!(client.ask("SET durable 1"), Ok("+OK".into()));
        disk.fail_flushes(EIO);
        disk.fail_writes(EIO);
        let unlucky = server.client().ask("SET doomed 1");
        assert!(unlucky.is_err(), "a write whose flush failed was answered with {unlucky:?}");
        let refused = client.ask("SET later 1").expect("an answer");
        assert!(
            refused.starts_with("-MISCONF") && refused.contains("EIO") && refused.contains(file),
            "{refused}"
        );
        assert_eq!(client.ask("GET durable"), Ok("1".into()));
        assert_eq!(client.ask("GET nothing"), Ok("".into()));
        let peeked = server.client().ask("GET doomed");
        assert!(peeked.is_err(), "what will never be durable was shown: {peeked:?}");
        disk.stop_failing();
        let refused = client.ask("SET later 1").expect("an answer");
        assert!(refused.starts_with("-MISCONF"), "a failed log does not heal by itself: {refused}");
        server.kill();
        let server = Server::start(disk.mount_point(), &arguments);
        assert_eq!(server.client().ask("MGET durable later"), Ok("*2".into()));
        assert_eq!(server.client().ask("GET durable"), Ok("1".into()));
        assert_eq!(server.client().ask("SET later 2"), Ok("+OK".into()));
    }
    Ok(())
}

/// Guarantee 4: found before a write is executed; reads go on; service resumes by itself.
fn a_full_disk_refuses_writes_and_serves_reads() -> Outcome {
    // Room for a few segments and no more.
    let disk = PowerCutDisk::new(Options { size: 256 << 20, ..Options::default() })?;
    let server = Server::start(disk.mount_point(), &[]);
    let mut client = server.client();
    let value = "v".repeat(1 << 20);
    let begun = Instant::now();
    let mut stored = 0;
    let refusal = loop {
        let key = format!("key{stored:03}");
        client
            .send(&format!("*3\r\n$3\r\nSET\r\n$6\r\n{key}\r\n${}\r\n{value}\r\n", value.len()))
            .expect("taken");
        let answer = client.reply().expect("an answer");
        if answer != "+OK" {
            break answer;
        }
        stored += 1;
        assert!(stored < 300 && begun.elapsed() < PATIENCE, "{stored} MiB went into a disk of 256");
    };
    assert!(refusal.starts_with("-MISCONF") && refusal.contains("ENOSPC"), "{refusal}");
    assert!(stored > 50, "full after {stored} MiB of 256");
    assert_eq!(client.ask("STRLEN key000"), Ok(format!(":{}", 1 << 20)));
    // Nothing is deleted by itself while there are no snapshots: room comes from elsewhere.
    let mut stopped = server;
    stopped.kill();
    let server = Server::start(disk.mount_point(), &[]);
    let mut client = server.client();
    assert_eq!(client.ask("DBSIZE"), Ok(format!(":{stored}")));
    Ok(())
}

/// The same, and what is in the way goes away while the server runs.
fn a_full_disk_under_the_encrypted_journal_refuses_and_resumes() -> Outcome {
    needs_the_encrypted_journal()?;
    let disk = PowerCutDisk::new(Options { size: 160 << 20, ..Options::default() })?;
    let filler = disk.mount_point().join("filler");
    std::fs::write(&filler, vec![7; 60 << 20]).expect("room for it");
    let mut server =
        Server::start(disk.mount_point(), &["--journal", "sqlcipher", "--log-segment-size", "16mb"]);
    let mut client = server.client();
    let value = "v".repeat(256 << 10);
    let set = |client: &mut Client, number: usize| {
        let key = format!("key{number:03}");
        let command = format!("*3\r\n$3\r\nSET\r\n$6\r\n{key}\r\n${}\r\n{value}\r\n", value.len());
        client.send(&command).expect("taken");
        client.reply().expect("an answer")
    };
    let mut stored = 0;
    let refusal = loop {
        let answer = set(&mut client, stored);
        if answer != "+OK" {
            break answer;
        }
        stored += 1;
        assert!(stored < 400, "100 MiB went into 90");
    };
    assert!(refusal.starts_with("-MISCONF") && refusal.contains("ENOSPC"), "{refusal}");
    assert!(stored > 80, "full after {stored} values of 256 KiB");
    assert_eq!(client.ask("STRLEN key000"), Ok(format!(":{}", 256 << 10)));
    std::fs::remove_file(&filler).expect("it can go");
    let begun = Instant::now();
    // The file system gives the space back little by little.
    for _ in 0..20 {
        while set(&mut client, stored) != "+OK" {
            assert!(begun.elapsed() < PATIENCE, "there is room, and writes are refused");
            std::thread::sleep(Duration::from_millis(20));
        }
        stored += 1;
    }
    server.kill();
    let server = Server::start(disk.mount_point(), ENCRYPTED);
    assert_eq!(server.client().ask("DBSIZE"), Ok(format!(":{stored}")));
    Ok(())
}

/// The names of the snapshots, of those being written too.
fn snapshots(directory: &Path) -> Vec<String> {
    let files = std::fs::read_dir(directory.join("data")).into_iter().flatten().flatten();
    let names = files.map(|file| file.file_name().to_string_lossy().into_owned());
    let mut names: Vec<_> = names.filter(|name| name.starts_with("snapshot-")).collect();
    names.sort();
    names
}

fn ledger() -> Ledger {
    Arc::new((0..CLIENTS).map(|_| Mutex::new([Known::default(); KEYS])).collect())
}

/// Every key must hold at least what was acknowledged and shown, and at most what was sent; what it holds is known then.
fn verify(server: &Server, ledger: &Ledger, when: &str) -> Result<(), String> {
    let mut client = server.client();
    for (owner, keys) in ledger.iter().enumerate() {
        for (at, known) in keys.lock().expect("no panic").iter_mut().enumerate() {
            let text = client.ask(&format!("GET c{owner}:{at}")).expect("an answer");
            let found: u64 = if text.is_empty() { 0 } else { text.parse().expect("a count") };
            if found < known.acknowledged || found < known.shown {
                return Err(format!("{when}: c{owner}:{at} is {found}, LOST: {known:?}"));
            }
            if found > known.sent {
                return Err(format!("{when}: c{owner}:{at} is {found}, PHANTOM: {known:?}"));
            }
            *known = Known { acknowledged: found, shown: found, ..*known };
        }
    }
    Ok(())
}

/// Clients that write and look until the server goes away.
struct Load {
    threads: Vec<JoinHandle<(u64, u64)>>,
    acknowledgements: std::sync::mpsc::Receiver<usize>,
}

impl Load {
    fn start(server: &Server, ledger: &Ledger, seed: u64) -> Load {
        let (told, acknowledgements) = channel();
        let threads = (0..CLIENTS)
            .map(|owner| {
                let (ledger, told) = (ledger.clone(), told.clone());
                let client = server.client();
                std::thread::spawn(move || {
                    work(client, owner, &ledger, &told, Random::new(seed ^ owner as u64))
                })
            })
            .collect();
        Load { threads, acknowledgements }
    }

    fn wait_for(&self, wanted: usize) {
        let mut count = 0;
        while count < wanted {
            count += self.acknowledgements.recv_timeout(PATIENCE).expect("the server acknowledges writes");
        }
    }

    fn wait_until(&self, is_so: impl Fn() -> bool) {
        let begun = Instant::now();
        while !is_so() {
            assert!(begun.elapsed() < PATIENCE, "it comes to be so");
            self.wait_for(1);
        }
    }

    fn end(self) -> (u64, u64) {
        drop(self.acknowledgements);
        let ended =
            self.threads.into_iter().map(|thread| thread.join().expect("a client that does not panic"));
        ended.fold((0, 0), |(acks, looks), (more, others)| (acks + more, looks + others))
    }
}

fn work(
    mut client: Client,
    owner: usize,
    ledger: &Ledger,
    told: &Sender<usize>,
    mut random: Random,
) -> (u64, u64) {
    let (mut acknowledged, mut shown) = (0, 0);
    loop {
        // A few increments in one go: each becomes a record of its own.
        let batch: Vec<usize> = (0..=random.below(4)).map(|_| random.below(KEYS)).collect();
        let counts: Vec<u64> = {
            let mut keys = ledger[owner].lock().expect("no panic");
            let next = |at: &usize| {
                keys[*at].sent += 1;
                keys[*at].sent
            };
            batch.iter().map(next).collect()
        };
        let commands = batch.iter().zip(&counts).map(|(at, count)| format!("SET c{owner}:{at} {count}\r\n"));
        if client.send(&commands.collect::<String>()).is_err() {
            return (acknowledged, shown);
        }
        for (&at, &count) in batch.iter().zip(&counts) {
            match client.reply() {
                Ok(text) if text == "+OK" => {
                    ledger[owner].lock().expect("no panic")[at].acknowledged = count;
                    acknowledged += 1;
                    let _ = told.send(1);
                }
                // Refused, or cut off: whether it was done is not known.
                Ok(_) => {}
                Err(_) => return (acknowledged, shown),
            }
        }
        // Somebody else's key: what is seen there must stay.
        let (other, at) = (random.below(CLIENTS), random.below(KEYS));
        match client.ask(&format!("GET c{other}:{at}")) {
            Err(_) => return (acknowledged, shown),
            Ok(text) => {
                if let Ok(count) = text.parse::<u64>() {
                    let mut keys = ledger[other].lock().expect("no panic");
                    keys[at].shown = keys[at].shown.max(count);
                    shown += 1;
                }
            }
        }
    }
}

/// A server process with its data on the disk.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(directory: &Path, arguments: &[&str]) -> Server {
        Server::try_start(directory, arguments)
            .unwrap_or_else(|refusal| panic!("the server did not start: {refusal}"))
    }

    /// `Err`: what it said instead of serving.
    fn try_start(directory: &Path, arguments: &[&str]) -> Result<Server, String> {
        static BINARY: OnceLock<PathBuf> = OnceLock::new();
        let binary = BINARY.get_or_init(|| millrace_binary().expect("the server's binary"));
        let mut child = Command::new(binary)
            .args(["--port", "0", "--http", "no", "--durability", "always"])
            .env("MILLRACE_JOURNAL_KEY", "0123456789abcdef".repeat(4))
            .arg("--dir")
            .arg(directory.join("data"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("a process");
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take().expect("stdout is piped"));
        output.read_line(&mut line).expect("a line");
        let address = line.split_whitespace().find_map(|word| word.strip_prefix("resp=")).map(str::to_owned);
        let mut errors = child.stderr.take().expect("stderr is piped");
        match address {
            Some(address) => {
                // Somebody must go on reading, or a talkative server would block on a full pipe.
                std::thread::spawn(move || std::io::copy(&mut errors, &mut std::io::stderr()));
                Ok(Server { child, address })
            }
            None => {
                let mut text = String::new();
                let _ = errors.read_to_string(&mut text);
                let _ = child.wait();
                Err(text)
            }
        }
    }

    fn client(&self) -> Client {
        let stream = TcpStream::connect(&self.address).expect("the server accepts");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
        stream.set_nodelay(true).expect("no delay");
        Client(BufReader::new(stream))
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A connection; replies as text, a bulk string without its header.
struct Client(BufReader<TcpStream>);

impl Client {
    fn send(&mut self, commands: &str) -> std::io::Result<()> {
        self.0.get_mut().write_all(commands.as_bytes())
    }

    fn ask(&mut self, command: &str) -> Result<String, String> {
        self.send(&format!("{command}\r\n")).map_err(|error| error.to_string())?;
        self.reply()
    }

    fn reply(&mut self) -> Result<String, String> {
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Ok(0) => return Err("the connection ended".into()),
            Ok(_) => {}
            Err(error) => return Err(error.to_string()),
        }
        let line = line.trim_end();
        let Some(length) = line.strip_prefix('$') else { return Ok(line.into()) };
        let Ok(length) = length.parse::<usize>() else { return Ok(String::new()) };
        let mut bytes = vec![0; length + 2];
        self.0.read_exact(&mut bytes).map_err(|error| error.to_string())?;
        bytes.truncate(length);
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}
