//! The whole server on snapshots with a bit that is not as it was written, anywhere in the file: it starts from something else that
//! holds the same data, or ends before it answers, or refuses, and says which file and where. No client ever reads a value
//! that was not set, or misses one that was.
//!
//! `SEED` replays a run.

#[allow(dead_code, reason = "each suite uses its part")]
mod process;
#[allow(dead_code, reason = "each suite uses its part")]
mod snapshots;

use process::*;
use snapshots::*;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};

const PAGE: usize = 4096;
const ROUNDS: usize = 40;

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// Reads every key in no order; a value that is wrong or missing is a failure, a server that has ended is an error.
fn read_all(server: &Running, expected: &Contents, random: &mut Random) -> io::Result<()> {
    let mut keys: Vec<_> = expected.iter().collect();
    for at in (1..keys.len()).rev() {
        keys.swap(at, random.below(at as u64 + 1) as usize);
    }
    let mut stream = TcpStream::connect(server.resp())?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut replies = BufReader::new(stream.try_clone()?);
    for some in keys.chunks(20) {
        let mut request = Vec::new();
        for (key, _) in some {
            request.extend_from_slice(&[b"GET ", &key[..], b"\r\n"].concat());
        }
        stream.write_all(&request)?;
        for (key, (value, _)) in some {
            let mut head = String::new();
            if replies.read_line(&mut head)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            assert_eq!(head.trim_end(), format!("${}", value.len()), "{}", key.escape_ascii());
            let mut bytes = vec![0; value.len() + 2];
            replies.read_exact(&mut bytes)?;
            assert!(bytes[..value.len()] == value[..], "another value of {}", key.escape_ascii());
        }
    }
    Ok(())
}

/// A server that serves, or what one that does not start has said.
fn try_start(flags: &[&str]) -> Result<Running, String> {
    let mut command = Command::new(BINARY);
    command.args(["--port", "0", "--http-port", "0"]).args(flags);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let output = lines(child.stdout.take().unwrap());
    let messages = lines(child.stderr.take().unwrap());
    // A server that does not start closes its output.
    let ready = output.recv_timeout(PATIENCE).unwrap_or_default();
    let server = Running { child, ready, messages };
    if server.ready.starts_with("ready ") {
        return Ok(server);
    }
    let (words, code) = last_words(server);
    assert_eq!(code, Some(1), "{words}");
    Err(words)
}

/// What a server says on stderr until it ends, and how it ends.
fn last_words(mut server: Running) -> (String, Option<i32>) {
    let mut words = String::new();
    while let Ok(line) = server.messages.recv_timeout(PATIENCE) {
        words += &line;
    }
    (words, server.wait(PATIENCE).code())
}

/// A place in a file: one in two where something was written, and not in the zeros that are most of it.
fn place(bytes: &[u8], random: &mut Random) -> u64 {
    let pages = bytes.len() / PAGE;
    let page = match random.below(4) {
        0 => random.below(pages as u64) as usize,
        // Header, tables, trailer.
        1 => [0, pages - 1, pages - 2 - random.below(2) as usize][random.below(3) as usize],
        _ => {
            let first = random.below(pages as u64) as usize;
            let is_full = |&page: &usize| bytes[page * PAGE..][..PAGE].iter().any(|&byte| byte != 0);
            (first..pages).chain(0..first).find(is_full).unwrap()
        }
    };
    (page * PAGE) as u64 + random.below(PAGE as u64)
}

#[test]
fn a_flipped_bit_anywhere_in_a_snapshot_is_never_served() {
    let mut random = Random::new("a_flipped_bit_anywhere_in_a_snapshot_is_never_served");
    let original = Folder::new("damaged-original");
    let records = records(&mut random, 1500, 600, false);
    let expected = state_after(&records, now());
    new_log(&original.0, &records);
    let earlier = take(&original.0, &[700, 710]);
    let newest = take(&original.0, &[1400, 1380]);
    let bytes = fs::read(path_of(&original.0, newest)).unwrap();
    let (mut passed_over, mut ended, mut refused_to_start, mut unharmed) = (0, 0, 0, 0);
    for round in 0..ROUNDS {
        let folder = Folder::new("damaged");
        copy(&original.0, &folder.0);
        // Every other time there is nothing to fall back to.
        let is_last = round % 2 == 1;
        if is_last {
            fs::remove_file(path_of(&folder.0, earlier)).unwrap();
            release(&folder.0, newest.lsn.0);
        }
        let (path, at) = (path_of(&folder.0, newest), place(&bytes, &mut random));
        flip(&path, at);
        let named = |words: &str| words.contains(path.to_str().unwrap()) && words.contains("expected");
        let rate = ["1", "64mb", "0"][random.below(3) as usize];
        let flags =
            ["--durability", "always", "--log-segment-size", "1mb", "--shards", "2", "--warm-rate", rate];
        let flags = [&flags[..], &["--dir", folder.text()]].concat();
        let is_at_start = at < PAGE as u64 || at >= tables_of(&bytes);
        let server = match try_start(&flags) {
            Ok(server) => server,
            Err(words) => {
                assert!(is_last, "an earlier snapshot holds the same data: byte {at}: {words}");
                assert!(named(&words) && words.contains("does not hold the same data"), "byte {at}: {words}");
                refused_to_start += 1;
                continue;
            }
        };
        // What it says of the log comes last.
        let mut said = String::new();
        while !said.contains("the log was recovered up to LSN ") {
            let line = server.messages.recv_timeout(PATIENCE);
            said += &line.unwrap_or_else(|_| panic!("byte {at}: it has said only {said}"));
        }
        let read = read_all(&server, &expected, &mut random);
        if said.contains(" used instead") {
            assert!(named(&said) && !is_last, "byte {at}: {said}");
            read.unwrap_or_else(|error| panic!("byte {at}: an earlier snapshot serves: {error}"));
            passed_over += 1;
            continue;
        }
        assert!(!is_at_start, "byte {at}: what a start looks at is damaged, and it said {said}");
        if read.is_ok() {
            server.signal("TERM");
        }
        let (words, code) = last_words(server);
        match code {
            // Nobody has asked for that page, nor has the background come to it.
            Some(0) => {
                assert!(read.is_ok(), "byte {at}: {words}");
                unharmed += 1;
                continue;
            }
            Some(1) => {
                let place = format!("at offset {}: expected a page", at / PAGE as u64 * PAGE as u64);
                assert!(named(&words) && words.contains(&place), "byte {at}: {words}");
                ended += 1;
            }
            code => panic!("byte {at}: {code:?}: {words}"),
        }
        match try_start(&flags) {
            Ok(server) if !is_last => {
                let read = read_all(&server, &expected, &mut random);
                read.unwrap_or_else(|error| panic!("byte {at}: the start behind the damage: {error}"));
            }
            Ok(_) => panic!("byte {at}: it starts on nothing"),
            Err(words) => {
                assert!(is_last && words.contains("was found damaged before"), "byte {at}: {words}");
            }
        }
    }
    println!(
        "{passed_over} passed over, {ended} ended the server, {refused_to_start} refused, {unharmed} never looked at"
    );
    assert!(passed_over > 0 && ended > 0 && refused_to_start > 0, "{passed_over} {ended} {refused_to_start}");
}

/// Where the tables of a snapshot begin.
fn tables_of(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[bytes.len() - PAGE..][32..40].try_into().unwrap())
}
