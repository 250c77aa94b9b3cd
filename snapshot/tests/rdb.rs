//! Dumps exchanged with a real redis-server 7.0, over a Unix socket of its own, and cases by hand.
//!
//! `UPDATE_GOLDEN=1 cargo test -p snapshot --test rdb` has Redis write the golden dump anew.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use snapshot::fuzz::read_rdb;
use snapshot::rdb::{Problem, RdbEntry, RdbError, RdbOptions, RdbSummary, RdbWriter};

/// The year 2100, in milliseconds.
const LATER: u64 = 4_102_444_800_123;

/// A directory that goes with its value.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("millrace-rdb-{}-{count}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn dump(&self) -> PathBuf {
        self.0.join("dump.rdb")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A redis-server in a folder, whose dump it loads.
struct Redis {
    child: Child,
    stream: BufReader<UnixStream>,
}

impl Redis {
    fn start(folder: &Folder) -> Redis {
        let socket = folder.0.join("socket");
        let mut child = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--dbfilename", "dump.rdb"])
            .arg("--unixsocket")
            .arg(&socket)
            .arg("--dir")
            .arg(&folder.0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("redis-server cannot be started ({error}); scripts/setup.sh installs it")
            });
        let mut said = String::new();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        while !said.contains("ready to accept connections") {
            match lines.next() {
                Some(line) => said.push_str(&(line.unwrap() + "\n")),
                None => panic!("redis-server ended: {said}"),
            }
        }
        std::thread::spawn(move || lines.for_each(drop));
        let stream = BufReader::new(UnixStream::connect(&socket).unwrap());
        Redis { child, stream }
    }

    /// A command's reply: a line without its type, or the bytes of a bulk string; a null is `None`.
    fn call(&mut self, words: &[&[u8]]) -> Option<Vec<u8>> {
        let mut request = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            request.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            request.extend_from_slice(word);
            request.extend_from_slice(b"\r\n");
        }
        self.stream.get_mut().write_all(&request).unwrap();
        self.reply()
    }

    fn reply(&mut self) -> Option<Vec<u8>> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line).unwrap();
        let text = String::from_utf8_lossy(&line[1..line.len() - 2]).into_owned();
        match line[0] {
            b'$' if text == "-1" => None,
            b'$' => {
                let mut bytes = vec![0; text.parse::<usize>().unwrap() + 2];
                self.stream.read_exact(&mut bytes).unwrap();
                bytes.truncate(bytes.len() - 2);
                Some(bytes)
            }
            b'+' | b':' => Some(text.into_bytes()),
            _ => panic!("redis-server says {text}"),
        }
    }

    fn number(&mut self, words: &[&[u8]]) -> i64 {
        String::from_utf8(self.call(words).unwrap()).unwrap().parse().unwrap()
    }

    fn assert_holds(&mut self, entries: &[RdbEntry]) {
        assert_eq!(self.number(&[b"DBSIZE"]), entries.len() as i64);
        for entry in entries {
            let key = entry.key.as_slice();
            assert!(self.call(&[b"GET", key]) == Some(entry.value.clone()), "{}", key.escape_ascii());
            let end = entry.expires_at.map_or(-1, |at| at as i64);
            assert_eq!(self.number(&[b"PEXPIRETIME", key]), end, "{}", key.escape_ascii());
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/redis-7.0.15.rdb")
}

fn read(
    bytes: &[u8],
    options: RdbOptions,
    chunk_bytes: usize,
) -> (Vec<RdbEntry>, Result<RdbSummary, RdbError>) {
    let mut entries = Vec::new();
    let end = read_rdb(options, bytes, chunk_bytes, |entry| entries.push(entry));
    entries.sort_by(|a, b| a.key.cmp(&b.key));
    (entries, end)
}

fn entry(key: &[u8], value: &[u8], expires_at: Option<u64>) -> RdbEntry {
    RdbEntry { key: key.to_vec(), value: value.to_vec(), expires_at }
}

/// Every encoding that Redis gives a string, and every form of a length.
fn samples() -> Vec<RdbEntry> {
    let mut samples = vec![
        entry(b"", b"empty key", None),
        entry(b"empty value", b"", None),
        entry(b"\x00\r\n\xff binary", b"\xff\x00\r\n", Some(LATER)),
        entry(&[b'k'; 63], &[b'v'; 63], None),
        entry(b"12345", b"a key that is a number", Some(LATER + 1)),
        entry(b"float", b"3.25", None),
        entry(b"compressible", "the same words, ".repeat(40).as_bytes(), Some(LATER + 2)),
        entry(b"zeros", &[0; 3000], None),
    ];
    for number in [0, 1, -1, 127, -128, 128, -129, 32767, -32768, 32768, -32769, i64::from(i32::MAX)] {
        samples.push(entry(format!("int {number}").as_bytes(), number.to_string().as_bytes(), None));
    }
    for number in [i64::from(i32::MIN), 1 << 31, i64::MAX, i64::MIN] {
        samples.push(entry(format!("int {number}").as_bytes(), number.to_string().as_bytes(), Some(LATER)));
    }
    for text in ["007", "+1", "-0", " 1", "9223372036854775808"] {
        samples.push(entry(format!("text {text}").as_bytes(), text.as_bytes(), None));
    }
    samples.sort_by(|a, b| a.key.cmp(&b.key));
    samples
}

/// Long ones, which are not kept in a golden file: lengths of two and four bytes, long copies in LZF.
fn long_samples() -> Vec<RdbEntry> {
    let mut state = 88172645463325252_u64;
    let mut noise = |length: usize| -> Vec<u8> {
        let byte = |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        (0..length).map(byte).collect()
    };
    let mut samples = samples();
    for length in [64, 16383, 16384, 70_000, 3 << 20] {
        samples.push(entry(format!("noise {length}").as_bytes(), &noise(length), Some(LATER)));
        let key = noise(length.min(20_000));
        samples.push(entry(&key, b"a long key", None));
        let block = noise(1 + length / 300);
        samples.push(entry(format!("repeated {length}").as_bytes(), &block.repeat(300), None));
    }
    samples.push(entry(b"very compressible", &vec![b'x'; 9 << 20], None));
    samples.sort_by(|a, b| a.key.cmp(&b.key));
    samples
}

fn fill(redis: &mut Redis, entries: &[RdbEntry]) {
    for RdbEntry { key, value, expires_at } in entries {
        redis.call(&[b"SET", key, value]);
        if let Some(at) = expires_at {
            redis.call(&[b"PEXPIREAT", key, at.to_string().as_bytes()]);
        }
    }
}

fn saved(redis: &mut Redis, folder: &Folder) -> Vec<u8> {
    assert_eq!(redis.call(&[b"SAVE"]).unwrap(), b"OK");
    fs::read(folder.dump()).unwrap()
}

#[test]
fn what_redis_saves_is_read() {
    let folder = Folder::new();
    let mut redis = Redis::start(&folder);
    for policy in ["noeviction", "allkeys-lfu", "allkeys-lru"] {
        // With an eviction policy a dump holds access data, too.
        redis.call(&[b"CONFIG", b"SET", b"maxmemory-policy", policy.as_bytes()]);
        redis.call(&[b"FLUSHALL"]);
        let samples = long_samples();
        fill(&mut redis, &samples);
        let library = b"#!lua name=mine\nredis.register_function('one', function() return 1 end)";
        redis.call(&[b"FUNCTION", b"LOAD", b"REPLACE", library]);
        let dump = saved(&mut redis, &folder);
        assert!(dump.len() < 9 << 20, "Redis compresses");
        for chunk_bytes in [997, 65536, dump.len()] {
            let (entries, end) = read(&dump, RdbOptions::default(), chunk_bytes);
            let end = end.unwrap();
            assert_eq!((end.version, end.functions, end.left_out, end.has_checksum), (10, 1, 0, true));
            assert_eq!((end.entries as usize, end.bytes as usize), (entries.len(), dump.len()));
            assert!(entries == samples, "chunks of {chunk_bytes}");
        }
        redis.assert_holds(&samples);
    }
    redis.call(&[b"CONFIG", b"SET", b"rdbcompression", b"no"]);
    let (entries, end) = read(&saved(&mut redis, &folder), RdbOptions::default(), 4096);
    assert!(end.is_ok() && entries == long_samples(), "without compression");
}

#[test]
fn what_is_written_redis_loads() {
    let (folder, samples) = (Folder::new(), long_samples());
    let expires = samples.iter().filter(|entry| entry.expires_at.is_some()).count();
    let mut dump = Vec::new();
    let mut writer = RdbWriter::begin(&mut dump, 1_700_000_000, samples.len() as u64, expires as u64);
    let mut out = Vec::new();
    for RdbEntry { key, value, expires_at } in &samples {
        writer.entry(&mut out, key, value, *expires_at);
        // The buffer may be emptied at any time.
        if out.len() > 10_000 {
            dump.append(&mut out);
        }
    }
    writer.end(&mut out);
    dump.append(&mut out);
    fs::write(folder.dump(), &dump).unwrap();
    let check =
        Command::new("redis-check-rdb").arg(folder.dump()).output().expect("it comes with redis-server");
    let said = String::from_utf8_lossy(&check.stdout);
    assert!(check.status.success() && said.contains("Checksum OK"), "{said}");
    assert!(said.contains(&format!("{} keys read", samples.len())), "{said}");
    let mut redis = Redis::start(&folder);
    redis.assert_holds(&samples);
    // And it comes back as it went.
    let (entries, end) = read(&saved(&mut redis, &folder), RdbOptions::default(), 4096);
    assert!(end.is_ok() && entries == samples);
    let (entries, end) = read(&dump, RdbOptions::default(), 4096);
    assert!(end.is_ok() && entries == samples);
}

#[test]
fn what_is_no_string_is_named() {
    let folder = Folder::new();
    let mut redis = Redis::start(&folder);
    for (command, name) in [
        (&[b"RPUSH".as_slice(), b"my\nkey", b"a"][..], "a list"),
        (&[b"SADD", b"my\nkey", b"a"], "a set"),
        (&[b"SADD", b"my\nkey", b"1"], "a set"),
        (&[b"ZADD", b"my\nkey", b"1", b"a"], "a sorted set"),
        (&[b"HSET", b"my\nkey", b"a", b"1"], "a hash"),
        (&[b"XADD", b"my\nkey", b"*", b"a", b"1"], "a stream"),
    ] {
        redis.call(&[b"FLUSHALL"]);
        redis.call(command);
        let (entries, end) = read(&saved(&mut redis, &folder), RdbOptions::default(), 64);
        let error = end.unwrap_err();
        assert!(entries.is_empty() && matches!(error.problem, Problem::Type { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(&format!("expected a string, found {name} (type ")), "{text}");
        assert!(text.contains("under the key \"my\\nkey\""), "{text}");
    }
}

#[test]
fn databases_are_told_apart() {
    let folder = Folder::new();
    let mut redis = Redis::start(&folder);
    redis.call(&[b"SET", b"a", b"0"]);
    redis.call(&[b"SELECT", b"9"]);
    redis.call(&[b"SET", b"b", b"9", b"PXAT", LATER.to_string().as_bytes()]);
    let dump = saved(&mut redis, &folder);
    let (_, end) = read(&dump, RdbOptions::default(), 4096);
    let text = end.unwrap_err().to_string();
    assert!(text.contains("found \"b\" in database 9; Millrace has one database"), "{text}");
    for (database, expected) in [(0, entry(b"a", b"0", None)), (9, entry(b"b", b"9", Some(LATER)))] {
        let options = RdbOptions { database: Some(database), ..RdbOptions::default() };
        let (entries, end) = read(&dump, options, 4096);
        assert_eq!((entries, end.unwrap().left_out), (vec![expected], 1));
    }
}

#[test]
fn the_golden_dump_is_read() {
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        let folder = Folder::new();
        let mut redis = Redis::start(&folder);
        fill(&mut redis, &samples());
        fs::write(golden(), saved(&mut redis, &folder)).unwrap();
    }
    let dump = fs::read(golden()).unwrap();
    let (entries, end) = read(&dump, RdbOptions::default(), 50);
    end.unwrap();
    assert_eq!(entries, samples());
}

/// A file by hand: a head, these bytes, the end without a checksum.
fn by_hand(body: &[u8]) -> (Vec<RdbEntry>, Result<RdbSummary, RdbError>) {
    let file = [b"REDIS0009", body, &[255], &[0; 8]].concat();
    let whole = read(&file, RdbOptions { string_bytes_max: 1000, ..RdbOptions::default() }, 4096);
    let bytewise = read(&file, RdbOptions { string_bytes_max: 1000, ..RdbOptions::default() }, 1);
    assert_eq!(whole, bytewise);
    whole
}

#[test]
fn lengths_and_encodings_are_not_believed() {
    // An expiry in seconds, and lengths in every form.
    let (entries, end) = by_hand(b"\xfd\x02\0\0\0\0\x01a\x40\x02bc\0\x80\0\0\0\x01d\x81\0\0\0\0\0\0\0\x01e");
    assert!(!end.unwrap().has_checksum);
    assert_eq!(entries, [entry(b"a", b"bc", Some(2000)), entry(b"d", b"e", None)]);
    // An end that was before 1970 is over, and not never.
    let (entries, _) = by_hand(b"\xfc\xff\xff\xff\xff\xff\xff\xff\xff\0\x01a\x01b");
    assert_eq!(entries, [entry(b"a", b"b", Some(1))]);
    // LZF: two literals, and a copy of them that reaches into itself.
    let (entries, _) = by_hand(b"\0\x01a\xc3\x05\x06\x01xy\x40\x01");
    assert_eq!(entries, [entry(b"a", b"xyxyxy", None)]);
    for (body, complaint) in [
        (&b"\0\x81\xff\xff\xff\xff\xff\xff\xff\xff"[..], "found one of 18446744073709551615"),
        (b"\0\x01a\x80\x7f\xff\xff\xff", "strings of 1000 bytes at most, found one of 2147483647"),
        (b"\0\x01a\xc3\x02\x80\x7f\xff\xff\xff\0a", "found one of 2147483647"),
        (b"\0\x01a\xc3\x05\x07\x01xy\x40\x01", "compressed with LZF"),
        (b"\0\x01a\xc3\x05\x05\x01xy\x40\x01", "compressed with LZF"),
        (b"\0\x01a\xc3\x05\x06\x01xy\x40\x02", "compressed with LZF"),
        (b"\0\x01a\xc3\x01\x06\x05", "compressed with LZF"),
        (b"\0\x01a\xc3\x02\x06\x40\x00", "compressed with LZF"),
        (b"\0\x01a\xc4", "an encoding of a string"),
        (b"\0\x82", "a length"),
        (b"\xfe\xc0", "a length"),
        (b"\xf7", "data of modules"),
        (b"\x63\x01a", "a value of an unknown type (type 99) under the key \"a\""),
        (b"\0\x05ab", "the file: it was cut"),
        (b"\xff\0\0\0\0\0\0\0\0more", "expected the end of the file"),
    ] {
        let text = by_hand(body).1.unwrap_err().to_string();
        assert!(
            text.contains(complaint) && text.starts_with("at offset "),
            "{}: {text}",
            body.escape_ascii()
        );
    }
    for (file, complaint) in [
        (&b"REDIS0012"[..], "expected RDB version 5 to 11, found 12"),
        (b"REDIS0004", "found 4"),
        (b"REDIS00x0", "expected an RDB file"),
        (b"MILLRSNP", "found \"MILLRSNP\""),
        (b"PK", "found \"PK\""),
        (b"REDIS", "it was cut"),
        (b"", "it was cut"),
    ] {
        let text = read(file, RdbOptions::default(), 3).1.unwrap_err().to_string();
        assert!(text.contains(complaint), "{}: {text}", file.escape_ascii());
    }
}
