//! Every byte of the log that a real server left behind, flipped once: refused, or cut at the very end, never served.
//!
//! `wal/tests/damage.rs` does this with a log in memory. Here the files are those of the binary, written with its own
//! settings, and recovery is the one that every start goes through, over real files. A server is started, too, on one
//! flipped byte of each page: it must name the file and serve nobody, or serve exactly what was acknowledged.

use reactor::server::recovery::{RecoveryOptions, recover};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const PAGE: usize = 4096;
const KEYS: usize = 5;

/// A directory of one test's own, removed with the value.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        Scratch::under(&std::env::temp_dir(), name)
    }

    fn under(folder: &Path, name: &str) -> Scratch {
        let path = folder.join(format!("millrace-flipped-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a directory");
        Scratch(path)
    }

    /// The log of another directory, in memory where there is a folder for that: recovery flushes every file, and it
    /// will be done tens of thousands of times.
    fn copy(of: &Path, name: &str) -> Scratch {
        let memory = Path::new("/dev/shm");
        let scratch = if memory.is_dir() { Scratch::under(memory, name) } else { Scratch::new(name) };
        for (path, bytes) in segments(of) {
            fs::write(scratch.0.join(path.file_name().expect("a name")), bytes).expect("a copy");
        }
        scratch
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A server, killed when dropped.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    /// `Err`: what it said instead of serving.
    fn start(directory: &Path) -> Result<Server, String> {
        let mut child = Command::new(env!("CARGO_BIN_EXE_millrace"))
            .args([
                "--port",
                "0",
                "--http",
                "no",
                "--shards",
                "1",
                "--io",
                "epoll",
                "--log-segment-size",
                "1mb",
            ])
            .args(["--durability", "always", "--dir"])
            .arg(directory)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
        output.read_line(&mut line).expect("a line");
        let Some(address) = line.split(' ').find_map(|word| word.trim().strip_prefix("resp=")) else {
            let mut said = String::new();
            child.stderr.take().expect("a pipe").read_to_string(&mut said).expect("text");
            assert_eq!(child.wait().expect("it ends").code(), Some(1), "{said}");
            return Err(said);
        };
        Ok(Server { address: address.into(), child })
    }

    fn ask(&self, command: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).expect("the server accepts");
        stream.write_all(format!("{command}\r\nQUIT\r\n").as_bytes()).expect("it listens");
        let mut reply = String::new();
        stream.read_to_string(&mut reply).expect("it answers");
        reply.strip_suffix("+OK\r\n").expect("the answer to QUIT").into()
    }

    /// SIGTERM: the log is closed.
    fn stop(mut self) {
        let status = Command::new("kill").arg(self.child.id().to_string()).status().expect("kill");
        assert!(status.success());
        assert_eq!(self.child.wait().expect("it ends").code(), Some(0));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What is acknowledged for each key.
fn value(number: usize) -> String {
    format!("{number}").repeat(1 + number * number * 40)
}

fn write_a_log(directory: &Path) -> Server {
    let server = Server::start(directory).unwrap_or_else(|said| panic!("{said}"));
    for number in 0..KEYS {
        assert_eq!(server.ask(&format!("SET key{number} {}", value(number))), "+OK\r\n");
    }
    server
}

/// How many of the keys a server holds, each with its own value and none of them after a missing one.
fn held(server: &Server) -> usize {
    let found: Vec<bool> = (0..KEYS)
        .map(|number| {
            let (reply, value) = (server.ask(&format!("GET key{number}")), value(number));
            assert!(
                reply == "$-1\r\n" || reply == format!("${}\r\n{value}\r\n", value.len()),
                "served: {reply}"
            );
            reply != "$-1\r\n"
        })
        .collect();
    assert!(found.is_sorted_by(|before, after| before >= after), "a hole: {found:?}");
    found.iter().filter(|is_there| **is_there).count()
}

type Records = Vec<(u64, Vec<u8>)>;

/// The records, and why there are no more if that is damage.
fn read(directory: &Path) -> (Records, Option<String>) {
    let mut records = Vec::new();
    let read = recover(directory, RecoveryOptions::new(1), &mut |_| {}, |lsn, _, payload| {
        records.push((lsn.0, payload.to_vec()));
        Ok(())
    });
    (records, read.err().map(|damage| damage.to_string()))
}

/// Segments by path.
fn segments(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let paths = fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path());
    let paths = paths.filter(|path| path.extension().is_some_and(|extension| extension == "wal"));
    paths.map(|path| (path.clone(), fs::read(&path).expect("a file"))).collect()
}

/// The last block: its file, its place, and how many records are in it.
fn last_block(segments: &BTreeMap<PathBuf, Vec<u8>>) -> (PathBuf, usize, usize) {
    let blocks = segments.iter().flat_map(|(path, bytes)| {
        let pages = bytes.chunks(PAGE).enumerate().filter(|(_, page)| page.starts_with(b"MRLB"));
        pages.map(move |(at, page)| {
            let count = u32::from_le_bytes(page[48..52].try_into().expect("four bytes"));
            (path.clone(), at * PAGE, count as usize)
        })
    });
    blocks.last().expect("a log has blocks")
}

fn flip(file: &File, at: usize, byte: u8) {
    file.write_all_at(&[byte], at as u64).expect("a byte");
}

/// Flips every byte that was written, or one in `step`, and some of the zeros behind them, and returns how many were
/// refused. `may_lose`: how many records are gone if the byte is in the last block.
fn flip_each(directory: &Path, step: usize, may_lose: usize) -> usize {
    let copy = Scratch::copy(directory, &format!("{step}-{may_lose}"));
    let directory = copy.0.as_path();
    let (whole, damage) = read(directory);
    assert_eq!(damage, None, "before anything was done to it");
    let segments = segments(directory);
    let (last_file, last_offset, _) = last_block(&segments);
    let mut refused = 0;
    for (path, bytes) in &segments {
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
        let file = OpenOptions::new().write(true).open(path).expect("a file");
        for at in 0..bytes.len() {
            let page = &bytes[at / PAGE * PAGE..][..PAGE];
            let step = if page.iter().all(|byte| *byte == 0) { 9973 } else { step };
            if !at.is_multiple_of(step) {
                continue;
            }
            flip(&file, at, bytes[at] ^ 1 << (at % 8));
            let (found, damage) = read(directory);
            flip(&file, at, bytes[at]);
            assert!(whole.starts_with(&found), "{name} byte {at}: what was changed was served");
            match damage {
                Some(damage) => {
                    refused += 1;
                    assert!(damage.contains(name) && damage.contains("offset"), "byte {at}: {damage}");
                }
                None if found.len() == whole.len() => {}
                None => {
                    let is_last = *path == last_file && at >= last_offset;
                    assert!(is_last, "{name} byte {at}: {} of {} records", found.len(), whole.len());
                    assert_eq!(whole.len() - found.len(), may_lose, "{name} byte {at}");
                }
            }
        }
    }
    assert_eq!(read(directory), (whole, None), "every byte is back");
    refused
}

#[test]
fn every_flipped_byte_of_a_log_is_detected() {
    let scratch = Scratch::new("closed");
    write_a_log(&scratch.0).stop();
    assert_eq!(last_block(&segments(&scratch.0)).2, 0, "a closed log ends with a mark");
    let refused = flip_each(&scratch.0, 1, 0);
    println!("closed: {refused} flipped bytes were refused");
    assert!(refused > (KEYS + 2) * PAGE, "{refused}");
}

/// A server that was killed: the last block may be a torn write as well as a damaged one. To cut it is right; it is the
/// only thing that may be cut.
#[test]
fn flipped_bytes_of_a_log_whose_server_was_killed_are_detected() {
    let scratch = Scratch::new("killed");
    drop(write_a_log(&scratch.0));
    let (_, _, records) = last_block(&segments(&scratch.0));
    assert!(records <= 1, "each command was answered before the next was sent");
    let refused = flip_each(&scratch.0, 3, records);
    println!("killed: {refused} flipped bytes were refused, the last block has {records} records");
    assert!(refused > (KEYS + 1) * PAGE / 3, "{refused}");
}

#[test]
fn a_server_refuses_a_damaged_log_or_serves_what_was_acknowledged() {
    let scratch = Scratch::new("served");
    write_a_log(&scratch.0).stop();
    let (mut refused, mut served) = (0, 0);
    for (path, bytes) in segments(&scratch.0) {
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
        for at in (0..bytes.len()).step_by(PAGE) {
            let at = at + at / PAGE * 131 % 128;
            if bytes[at / PAGE * PAGE..][..PAGE].iter().all(|byte| *byte == 0) {
                continue;
            }
            // A start leaves traces: each has a copy of its own.
            let copy = Scratch::copy(&scratch.0, "served-copy");
            let file = OpenOptions::new().write(true).open(copy.0.join(name)).expect("a file");
            flip(&file, at, bytes[at] ^ 0x40);
            match Server::start(&copy.0) {
                Err(said) => {
                    refused += 1;
                    assert!(said.contains(name) && said.contains("offset"), "byte {at}: {said}");
                }
                Ok(server) => {
                    served += 1;
                    assert_eq!(held(&server), KEYS, "{name} byte {at}");
                }
            }
        }
    }
    println!("{refused} starts refused, {served} served everything");
    assert!(refused > KEYS && served > 0, "{refused} {served}");
}
