//! `millrace snapshot`, `export-rdb` and `import-rdb` as an operator meets them, with a stock redis-server at the other end.

#[allow(dead_code, reason = "each suite uses its part")]
mod process;
#[allow(dead_code, reason = "each suite uses its part")]
mod snapshots;

use process::*;
use snapshot::rdb::RdbWriter;
use snapshots::{Folder, flip, new_log, path_of, set, take};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The year 2100, in milliseconds.
const LATER: u64 = 4_102_444_800_123;
const PAGE: usize = 4096;

/// A value and its expiry.
type Held = (Vec<u8>, Option<u64>);
type Data = BTreeMap<Vec<u8>, Held>;

/// A redis-server in a directory, whose dump it loads.
struct Redis {
    child: Child,
    stream: BufReader<UnixStream>,
    dump: String,
}

impl Redis {
    fn start(scratch: &Scratch, flags: &[&str]) -> Redis {
        let socket = scratch.path("redis.sock");
        let mut child = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket", &socket])
            .arg("--dir")
            .arg(&scratch.0)
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("redis-server cannot be started ({error}); scripts/setup.sh installs it")
            });
        let said = lines(child.stdout.take().unwrap());
        let mut all = String::new();
        while !all.contains("ready to accept connections") {
            let line = said.recv_timeout(PATIENCE);
            all.push_str(&line.unwrap_or_else(|_| panic!("redis-server is not ready: {all}")));
        }
        let stream = UnixStream::connect(&socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Redis { child, stream: BufReader::new(stream), dump: scratch.path("dump.rdb") }
    }

    fn send(&mut self, words: &[&[u8]]) {
        let mut request = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            request.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            request.extend_from_slice(word);
            request.extend_from_slice(b"\r\n");
        }
        self.stream.get_mut().write_all(&request).unwrap();
    }

    /// A line without its type, or the bytes of a bulk string; a null is `None`.
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

    fn call(&mut self, words: &[&[u8]]) -> Option<Vec<u8>> {
        self.send(words);
        self.reply()
    }

    fn fill(&mut self, data: &Data) {
        for (key, (value, expires_at)) in data {
            match expires_at {
                Some(at) => self.call(&[b"SET", key, value, b"PXAT", at.to_string().as_bytes()]),
                None => self.call(&[b"SET", key, value]),
            };
        }
    }

    fn save(&mut self) -> String {
        self.call(&[b"SAVE"]);
        self.dump.clone()
    }

    fn must_hold(&mut self, data: &Data) {
        assert_eq!(self.call(&[b"DBSIZE"]).unwrap(), data.len().to_string().as_bytes());
        for (key, (value, expires_at)) in data {
            assert!(self.call(&[b"GET", key]).as_ref() == Some(value), "{}", key.escape_ascii());
            let end = expires_at.map_or(String::from("-1"), |at| at.to_string());
            assert_eq!(self.call(&[b"PEXPIRETIME", key]).unwrap(), end.as_bytes(), "{}", key.escape_ascii());
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Every way Redis writes a string, keys that are no text, records of every size, expiries.
fn samples() -> Data {
    let mut data = Data::new();
    let mut put = |key: &[u8], value: &[u8], at| data.insert(key.to_vec(), (value.to_vec(), at));
    put(b"empty", b"", None);
    put(b"", b"an empty key", None);
    put(b"binary \xff\x00\r\n", b"\x00\xfe\"\\", Some(LATER));
    for number in
        ["0", "-1", "127", "-128", "128", "32767", "-32769", "2147483647", "-2147483648", "2147483648", "012"]
    {
        put(format!("number {number}").as_bytes(), number.as_bytes(), None);
    }
    put(b"9", b"a key that is a number", None);
    put(b"compressed", &b"abc".repeat(7000), Some(LATER + 1));
    let noise = |length: usize| {
        (0..length as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect::<Vec<_>>()
    };
    put(b"long", &noise(3_000_000), None);
    put(b"longer than a segment can share", &noise(1_100_000), Some(LATER));
    for length in [63, 64, 16383, 16384, 70_000] {
        put(format!("length {length}").as_bytes(), &noise(length), None);
    }
    for number in 0..20_000_u32 {
        let at = (number % 3 == 0).then_some(LATER + u64::from(number) * 1000);
        put(format!("key:{number}").as_bytes(), &noise(number as usize % 200), at);
    }
    data
}

fn number(line: &str, field: &str) -> u64 {
    let rest = line.split_once(&format!("\"{field}\":")).unwrap_or_else(|| panic!("no {field} in {line}")).1;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|_| panic!("{field} is no number in {line}"))
}

/// Runs a tool that must succeed; what it says on stdout, and on stderr.
fn tool(arguments: &[&str]) -> (String, String) {
    let output = run(arguments);
    let (said, warned) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {said}{warned}");
    (said, warned)
}

/// Runs a tool that must fail; what it says on stdout, and on stderr.
fn fails(arguments: &[&str]) -> (String, String) {
    let output = run(arguments);
    let (said, warned) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}{warned}");
    (said, warned)
}

/// The one snapshot of a directory.
fn snapshot_of(directory: &str) -> String {
    let paths = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let found: Vec<_> = paths.filter(|path| path.extension().is_some_and(|kind| kind == "mrs")).collect();
    let [path] = &found[..] else { panic!("{found:?}") };
    path.to_str().unwrap().into()
}

/// A dump of these by this program's writer.
fn dump_file(scratch: &Scratch, name: &str, entries: &[(&[u8], &[u8], Option<u64>)]) -> String {
    let mut bytes = Vec::new();
    let mut writer = RdbWriter::begin(&mut bytes, 0, entries.len() as u64, 0);
    for (key, value, expires_at) in entries {
        writer.entry(&mut bytes, key, value, *expires_at);
    }
    writer.end(&mut bytes);
    fs::write(scratch.path(name), bytes).unwrap();
    scratch.path(name)
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

/// An imported directory with a few hundred keys, and its snapshot.
fn imported(scratch: &Scratch, shards: &str) -> (String, String) {
    let keys: Vec<String> = (0..700).map(|number| format!("key {number}")).collect();
    let value = vec![7; 1000];
    let entries: Vec<_> =
        keys.iter().map(|key| (key.as_bytes(), &value[..], key.ends_with('0').then_some(LATER))).collect();
    let dump = dump_file(scratch, "some.rdb", &entries);
    let directory = scratch.path("imported");
    tool(&["import-rdb", &dump, &directory, "--shards", shards]);
    let snapshot = snapshot_of(&directory);
    (directory, snapshot)
}

#[test]
fn keys_come_from_redis_and_go_back() {
    let data = samples();
    let expires = data.values().filter(|held| held.1.is_some()).count() as u64;
    let scratch = Scratch::new("from-redis");
    let mut redis = Redis::start(&scratch, &[]);
    redis.fill(&data);
    let dump = redis.save();
    for shards in [1, 3] {
        let directory = scratch.path(&format!("data-{shards}"));
        let (said, warned) = tool(&["import-rdb", &dump, &directory, "--shards", &shards.to_string()]);
        assert_eq!(warned, "");
        assert_eq!((number(&said, "keys"), number(&said, "expires")), (data.len() as u64, expires), "{said}");
        assert_eq!((number(&said, "shards"), number(&said, "expired_left_out")), (shards, 0), "{said}");
        let snapshot = snapshot_of(&directory);
        assert_eq!(fs::metadata(&snapshot).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(said.contains(&snapshot), "{said}");

        let (info, _) = tool(&["snapshot", "info", &snapshot]);
        let described: Vec<&str> = info.lines().collect();
        assert_eq!(described.len() as u64, 1 + shards, "{info}");
        assert_eq!((number(described[0], "epoch"), number(described[0], "lsn_max")), (1, 0), "{info}");
        let sum = |field| described[1..].iter().map(|line| number(line, field)).sum::<u64>();
        assert_eq!((sum("keys"), sum("expires")), (data.len() as u64, expires), "{info}");
        assert!(sum("long_records") >= 1 && sum("pages") * PAGE as u64 == sum("bytes"), "{info}");

        let (verified, _) = tool(&["snapshot", "verify", &snapshot]);
        let result = verified.strip_prefix(&info).expect("verify says what info says first");
        assert!(result.contains("\"state\":\"whole\""), "{verified}");
        assert_eq!((number(result, "keys"), number(result, "pages")), (data.len() as u64, sum("pages")));

        let (dumped, _) = tool(&["snapshot", "dump", &snapshot]);
        assert_eq!(dumped.lines().count(), data.len());
        for expected in [
            "\"key\":\"key:3\",\"value\":",
            "\"key\":\"number -32769\",\"value\":\"-32769\",\"expires_at_ms\":null,\"encoding\":\"auto\"}",
            "\"key\":{\"hex\":\"62696e61727920ff000d0a\"},\"value\":{\"hex\":\"00fe225c\"},\"expires_at_ms\":4102444800123,",
            "\"key\":\"empty\",\"value\":\"\",",
        ] {
            assert_eq!(dumped.matches(expected).count(), 1, "{expected}");
        }

        // And back, into a server of its own.
        let back = Scratch::new(&format!("to-redis-{shards}"));
        let (said, _) = tool(&["export-rdb", &snapshot, &back.path("dump.rdb")]);
        assert_eq!((number(&said, "keys"), number(&said, "expires")), (data.len() as u64, expires), "{said}");
        let check = Command::new("redis-check-rdb")
            .arg(back.path("dump.rdb"))
            .output()
            .expect("it comes with redis-server");
        assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
        Redis::start(&back, &[]).must_hold(&data);
    }
}

#[test]
fn what_is_no_string_is_named_and_nothing_is_made() {
    let scratch = Scratch::new("types");
    let mut redis = Redis::start(&scratch, &[]);
    let many: Vec<Vec<u8>> = (0..2000).map(|number| format!("element {number}").into_bytes()).collect();
    let mut refused = 0;
    for (command, name) in [
        ("RPUSH", "a list"),
        ("SADD", "a set"),
        ("ZADD", "a sorted set"),
        ("HSET", "a hash"),
        ("XADD", "a stream"),
        ("PFADD", ""),
    ] {
        // Small ones are packed in one piece, large ones are not; integers have a form of their own.
        for elements in [1, 2000] {
            for is_integer in [false, true] {
                redis.call(&[b"FLUSHALL"]);
                redis.call(&[b"SET", b"a string", b"value"]);
                for (number, element) in many[..elements].iter().enumerate() {
                    let digits = number.to_string().into_bytes();
                    let element = if is_integer { &digits } else { element };
                    let key = &b"the \"key\"\n"[..];
                    match command {
                        "ZADD" => redis.send(&[b"ZADD", key, &digits, element]),
                        "HSET" => redis.send(&[b"HSET", key, element, &digits]),
                        "XADD" => redis.send(&[b"XADD", key, b"*", element, &digits]),
                        _ => redis.send(&[command.as_bytes(), key, element]),
                    }
                }
                (0..elements).for_each(|_| drop(redis.reply()));
                let (dump, directory) = (redis.save(), scratch.path("types"));
                if name.is_empty() {
                    // A HyperLogLog is a string.
                    assert_eq!(number(&tool(&["import-rdb", &dump, &directory]).0, "keys"), 2);
                    fs::remove_dir_all(&directory).unwrap();
                    continue;
                }
                let (said, error) = fails(&["import-rdb", &dump, &directory]);
                assert_eq!(said, "");
                assert!(error.contains(&format!("expected a string, found {name} (type ")), "{error}");
                assert!(
                    error.contains("under the key \"the \\\"key\\\"\\n\"") && error.contains(&dump),
                    "{error}"
                );
                assert!(error.contains("at offset "), "{error}");
                assert!(!Path::new(&directory).exists(), "what was made is removed");
                refused += 1;
            }
        }
    }
    assert_eq!(refused, 20);
}

#[test]
fn databases_functions_and_dumps_without_checksum_are_said() {
    let scratch = Scratch::new("databases");
    let mut redis = Redis::start(&scratch, &["--rdbchecksum", "no"]);
    redis.call(&[b"SET", b"zero", b"0"]);
    redis.call(&[
        b"FUNCTION",
        b"LOAD",
        b"#!lua name=lib\nredis.register_function('f', function() return 1 end)",
    ]);
    let (dump, directory) = (redis.save(), scratch.path("zero"));
    let (said, warned) = tool(&["import-rdb", &dump, &directory]);
    assert!(
        warned.contains("1 libraries of functions were left out") && warned.contains("rdbchecksum no"),
        "{warned}"
    );
    assert!(number(&said, "functions_left_out") == 1 && said.contains("\"has_checksum\":false"), "{said}");
    for database in ["5", "11"] {
        redis.call(&[b"SELECT", database.as_bytes()]);
        redis.call(&[b"SET", b"key", database.as_bytes()]);
    }
    redis.save();
    let directory = scratch.path("all");
    let (_, error) = fails(&["import-rdb", &dump, &directory]);
    assert!(error.contains("found \"key\" in database 5; Millrace has one database"), "{error}");
    assert!(error.contains("--database N"), "{error}");
    assert!(!Path::new(&directory).exists());
    for (database, value) in [("0", "0"), ("5", "5"), ("11", "11")] {
        let directory = scratch.path(&format!("database-{database}"));
        let (said, _) = tool(&["import-rdb", &dump, &directory, "--database", database]);
        assert_eq!((number(&said, "keys"), number(&said, "other_databases_left_out")), (1, 2), "{said}");
        let (dumped, _) = tool(&["snapshot", "dump", &snapshot_of(&directory)]);
        assert!(dumped.contains(&format!("\"value\":\"{value}\"")), "{dumped}");
    }
}

#[test]
fn a_dump_that_is_not_whole_makes_nothing() {
    let scratch = Scratch::new("damaged-dumps");
    let dump = dump_file(&scratch, "good.rdb", &[(b"a", b"1", None), (b"b", &[9; 5000], Some(LATER))]);
    let good = fs::read(&dump).unwrap();
    let (bad, directory) = (scratch.path("bad.rdb"), scratch.path("directory"));
    let refuse = |bytes: &[u8], complaint: &str| {
        fs::write(&bad, bytes).unwrap();
        let (said, error) = fails(&["import-rdb", &bad, &directory, "--shards", "1"]);
        assert!(said.is_empty() && error.contains(complaint) && error.contains(&bad), "{error}");
        assert!(!Path::new(&directory).exists());
    };
    refuse(&good[..good.len() - 1], "it was cut");
    refuse(&good[..good.len() / 2], "it was cut");
    refuse(&[&good[..], b"x"].concat(), "found more bytes");
    refuse(b"MILLRSNP", "expected an RDB file");
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    refuse(&flipped, "the file is damaged");
    dump_file(&scratch, "bad.rdb", &[(b"twice", b"1", None), (b"b", b"2", None), (b"twice", b"3", None)]);
    let twice = fs::read(&bad).unwrap();
    refuse(&twice, "found \"twice\" twice");
    let (_, error) = fails(&["import-rdb", &scratch.path("none.rdb"), &directory]);
    assert!(error.contains("none.rdb: there is no such file"), "{error}");
    assert!(!Path::new(&directory).exists());
    // And the whole one is taken.
    assert_eq!(number(&tool(&["import-rdb", &dump, &directory]).0, "keys"), 2);
}

#[test]
fn what_has_expired_is_left_out_and_counted() {
    let scratch = Scratch::new("expired");
    let soon = now_ms() + 300;
    let entries: [(&[u8], &[u8], _); 4] = [
        (b"past", b"1", Some(1)),
        (b"soon", b"2", Some(soon)),
        (b"later", b"3", Some(LATER)),
        (b"never", b"4", None),
    ];
    let dump = dump_file(&scratch, "in.rdb", &entries);
    let directory = scratch.path("data");
    let (said, _) = tool(&["import-rdb", &dump, &directory, "--shards", "2"]);
    // A slow machine may have taken more than 300 ms.
    let gone = number(&said, "expired_left_out");
    assert_eq!(number(&said, "keys"), 4 - gone);
    assert!(gone == 1 || now_ms() > soon, "{said}");
    let (snapshot, out) = (snapshot_of(&directory), scratch.path("out.rdb"));
    let end = Instant::now() + PATIENCE;
    while now_ms() <= soon {
        assert!(Instant::now() < end);
        std::thread::yield_now();
    }
    let (said, _) = tool(&["export-rdb", &snapshot, &out]);
    assert_eq!((number(&said, "keys"), number(&said, "expires")), (2, 1), "{said}");
    assert_eq!(number(&said, "expired_left_out"), 2 - gone, "{said}");
    let (dumped, _) = tool(&["snapshot", "dump", &snapshot]);
    assert_eq!(dumped.lines().count() as u64, 4 - gone, "a snapshot is shown as it is");
}

#[test]
fn nothing_is_overwritten_without_being_told() {
    let scratch = Scratch::new("overwrite");
    let (directory, snapshot) = imported(&scratch, "2");
    let dump = scratch.path("some.rdb");
    let before = fs::read(&snapshot).unwrap();
    let (_, error) = fails(&["import-rdb", &dump, &directory]);
    assert!(error.contains("expected a directory without data, found a snapshot"), "{error}");
    assert!(fs::read(&snapshot).unwrap() == before);

    // One that was set aside still says that there was data.
    fs::rename(&snapshot, format!("{snapshot}.damaged")).unwrap();
    let (_, error) = fails(&["import-rdb", &dump, &directory]);
    assert!(error.contains("found a snapshot"), "{error}");
    fs::rename(format!("{snapshot}.damaged"), &snapshot).unwrap();

    let out = scratch.file("out.rdb", "something else");
    let (_, error) = fails(&["export-rdb", &snapshot, &out]);
    assert!(error.contains("--overwrite") && error.contains(&out), "{error}");
    assert_eq!(fs::read(&out).unwrap(), b"something else");
    tool(&["export-rdb", &snapshot, &out, "--overwrite"]);
    assert!(fs::read(&out).unwrap().starts_with(b"REDIS0010"));
    let mut names: Vec<_> =
        fs::read_dir(&scratch.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["imported", "out.rdb", "some.rdb"], "no temporary file is left");

    // A server's directory, while it runs and when it has stopped.
    let data = scratch.path("data");
    let server = Running::start(&["--durability", "always", "--log-segment-size", "1mb", "--dir", &data]);
    let (_, error) = fails(&["import-rdb", &dump, &data]);
    assert!(error.contains(&format!("in use by process {}", server.child.id())), "{error}");
    server.stop();
    let (_, error) = fails(&["import-rdb", &dump, &data]);
    assert!(error.contains("found a log"), "{error}");
}

/// Flags of a server on a directory with a log of small files.
fn flags<'a>(directory: &'a str, shards: &'a str) -> [&'a str; 8] {
    ["--durability", "always", "--log-segment-size", "1mb", "--shards", shards, "--dir", directory]
}

/// Asks a server for what it must hold, a thousand keys at a time.
fn must_serve(server: &Running, data: &Data) {
    let mut client = server.client();
    assert_eq!(client.ask("DBSIZE"), format!(":{}", data.len()));
    let all: Vec<_> = data.iter().collect();
    for some in all.chunks(1000) {
        let mut request = Vec::new();
        for (key, _) in some {
            for command in ["GET", "PEXPIRETIME"] {
                request.extend_from_slice(
                    format!("*2\r\n${}\r\n{command}\r\n${}\r\n", command.len(), key.len()).as_bytes(),
                );
                request.extend_from_slice(key);
                request.extend_from_slice(b"\r\n");
            }
        }
        std::thread::scope(|scope| {
            let mut writer = client.0.try_clone().unwrap();
            scope.spawn(move || writer.write_all(&request).unwrap());
            let mut reader = BufReader::new(&client.0);
            for (key, (value, expires_at)) in some {
                let mut head = String::new();
                reader.read_line(&mut head).unwrap();
                assert_eq!(head, format!("${}\r\n", value.len()), "{}", key.escape_ascii());
                let mut bytes = vec![0; value.len() + 2];
                reader.read_exact(&mut bytes).unwrap();
                assert!(bytes.strip_suffix(b"\r\n") == Some(&value[..]), "{}", key.escape_ascii());
                head.clear();
                reader.read_line(&mut head).unwrap();
                let end = expires_at.map_or(String::from("-1"), |at| at.to_string());
                assert_eq!(head, format!(":{end}\r\n"), "{}", key.escape_ascii());
            }
        });
    }
}

/// What is in a directory, but for the file that says who works there.
fn content(directory: &str) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    let files =
        entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()));
    files.filter(|(name, _)| name != "millrace.lock").collect()
}

/// From Redis to a server, which is written to, is killed, goes on, and back to Redis: with as many shards as the snapshot
/// has and with others.
#[test]
fn a_server_goes_on_where_redis_was_and_redis_where_the_server_was() {
    let scratch = Scratch::new("there-and-back");
    let mut redis = Redis::start(&scratch, &[]);
    let data = samples();
    redis.fill(&data);
    let dump = redis.save();
    drop(redis);
    for (round, (imported, served)) in [("2", "2"), ("1", "3")].into_iter().enumerate() {
        let directory = scratch.path(&format!("data-{round}"));
        tool(&["import-rdb", &dump, &directory, "--shards", imported]);
        let mut held = data.clone();
        let server = Running::start(&flags(&directory, served));
        must_serve(&server, &held);
        let mut client = server.client();
        let put = |client: &mut Client<_>, held: &mut Data, key: &str, value: &str, at: Option<u64>| {
            let end = at.map_or(String::new(), |at| format!(" PXAT {at}"));
            assert_eq!(client.ask(&format!("SET {key} {value}{end}")), "+OK");
            held.insert(key.into(), (value.into(), at));
        };
        for key in 0..50 {
            put(&mut client, &mut held, &format!("new:{key}"), "from-the-log", None);
            put(&mut client, &mut held, &format!("key:{key}"), "overwritten", Some(LATER + key));
        }
        assert_eq!(client.ask("DEL key:100 key:101 long"), ":3");
        for key in ["key:100", "key:101", "long"] {
            held.remove(key.as_bytes());
        }
        assert_eq!(client.ask("PERSIST compressed"), ":1");
        held.get_mut(&b"compressed"[..]).unwrap().1 = None;
        assert_eq!(client.ask("APPEND key:200 more"), format!(":{}", held[&b"key:200"[..]].0.len() + 4));
        held.get_mut(&b"key:200"[..]).unwrap().0.extend_from_slice(b"more");

        let out = scratch.path(&format!("out-{round}.rdb"));
        let (_, error) = fails(&["export-rdb", &directory, &out]);
        assert!(error.contains(&format!("in use by process {}", server.child.id())), "{error}");
        assert!(!Path::new(&out).exists());
        // SIGKILL: the log ends where it ends.
        drop(server);
        let server = Running::start(&flags(&directory, served));
        must_serve(&server, &held);
        put(&mut server.client(), &mut held, "after", "the-kill", None);
        drop(server);

        let before = content(&directory);
        let (said, notes) = tool(&["export-rdb", &directory, &out]);
        assert_eq!(number(&said, "keys"), held.len() as u64, "{said}");
        assert!(notes.contains("the log was recovered up to LSN "), "{notes}");
        assert!(content(&directory) == before, "reading changes nothing");
        let back = Scratch::new(&format!("there-and-back-{round}"));
        fs::copy(&out, back.path("dump.rdb")).unwrap();
        Redis::start(&back, &[]).must_hold(&held);
        // And the server goes on.
        let server = Running::start(&flags(&directory, served));
        must_serve(&server, &held);
        server.stop();
    }
}

/// A log without a snapshot; a directory that is none; a snapshot that is damaged.
#[test]
fn a_directory_is_exported_whole_or_not_at_all() {
    let scratch = Scratch::new("export-directory");
    let (log, out) = (scratch.path("log"), scratch.path("out.rdb"));
    let server = Running::start(&flags(&log, "2"));
    let mut client = server.client();
    assert_eq!(client.ask("MSET a 1 b 2 c 3"), "+OK");
    assert_eq!(client.ask("SET soon 4 PX 1"), "+OK");
    let end = Instant::now() + PATIENCE;
    while client.ask("EXISTS soon") != ":0" {
        assert!(Instant::now() < end);
    }
    drop(server);
    let (said, _) = tool(&["export-rdb", &log, &out]);
    assert_eq!(number(&said, "keys"), 3, "{said}");
    assert!(number(&said, "expired_left_out") <= 1, "{said}");
    fs::remove_file(&out).unwrap();

    let empty = scratch.path("empty");
    let (_, error) = fails(&["export-rdb", &empty, &out]);
    assert!(error.contains("expected a snapshot file, found nothing"), "{error}");
    fs::create_dir(&empty).unwrap();
    let (_, error) = fails(&["export-rdb", &empty, &out]);
    assert!(error.contains("found no log, snapshot or journal there"), "{error}");
    assert_eq!(fs::read_dir(&empty).unwrap().count(), 0, "and nothing is made there");

    let (directory, snapshot) = imported(&scratch, "2");
    let good = fs::read(&snapshot).unwrap();
    let tables = u64::from_le_bytes(good[good.len() - PAGE..][32..40].try_into().unwrap()) as usize;
    // In a page that only somebody would look at who wants all of it, and where a start looks.
    for at in [tables - 7, tables + 40, 9] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&snapshot, &bad).unwrap();
        let before = content(&directory);
        let (said, error) = fails(&["export-rdb", &directory, &out]);
        assert!(said.is_empty() && error.contains(&snapshot) && error.contains("expected"), "{error}");
        assert!(error.contains("does not hold the same data"), "{error}");
        assert!(content(&directory) == before && !Path::new(&out).exists());
    }
    fs::write(&snapshot, &good).unwrap();
    assert_eq!(number(&tool(&["export-rdb", &directory, &out]).0, "keys"), 700);
}

/// Images of shards at different LSNs are made one state by the log: alone they are shown and exported with a warning.
#[test]
fn a_snapshot_alone_may_be_of_several_moments_and_that_is_said() {
    let folder = Folder::new("moments");
    let scratch = Scratch::new("moments");
    let count = 900;
    let records: Vec<_> = (0..count).map(|number| set(&format!("key:{number}"), b"value", None)).collect();
    new_log(&folder.0, &records);
    let one = path_of(&folder.0, take(&folder.0, &[500, 500]));
    let several = path_of(&folder.0, take(&folder.0, &[600, 700]));
    let (_, warned) = tool(&["export-rdb", one.to_str().unwrap(), &scratch.path("one.rdb")]);
    assert_eq!(warned, "");
    let several = several.to_str().unwrap();
    let (info, _) = tool(&["snapshot", "info", several]);
    assert_eq!((number(&info, "lsn"), number(&info, "lsn_max")), (600, 700), "{info}");
    tool(&["snapshot", "verify", several]);
    let (said, warned) = tool(&["export-rdb", several, &scratch.path("several.rdb")]);
    assert!(warned.contains("different moments (LSN 600 to 700)"), "{warned}");
    assert!((600..=700).contains(&number(&said, "keys")), "{said}");
    // A damaged page: the earlier snapshot and the log are the same, and are used.
    let tables = fs::read(several).map(|bytes| bytes.len() - 3 * PAGE).unwrap();
    flip(Path::new(several), tables as u64);
    let (said, notes) = tool(&["export-rdb", folder.text(), &scratch.path("all.rdb")]);
    assert_eq!(number(&said, "keys"), count, "{said}");
    assert!(notes.contains("are used instead") && Path::new(several).exists(), "{notes}");
}

#[cfg(feature = "sqlcipher")]
#[test]
fn an_encrypted_journal_is_exported_with_its_key() {
    let scratch = Scratch::new("export-encrypted");
    let (directory, out) = (scratch.path("data"), scratch.path("out.rdb"));
    let secret = |name: &str| {
        let path = scratch.file(name, &format!("a long enough secret of {name}\n"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    };
    let (key, other) = (secret("key"), secret("other"));
    let server = Running::start(&[
        "--durability",
        "always",
        "--journal",
        "sqlcipher",
        "--journal-key-file",
        &key,
        "--dir",
        &directory,
    ]);
    assert_eq!(server.client().ask("MSET a 1 b 2 c 3"), "+OK");
    server.stop();
    let (_, error) = fails(&["export-rdb", &directory, &out, "--journal-key-file", &other]);
    assert!(error.contains("key") && !Path::new(&out).exists(), "{error}");
    let (said, _) = tool(&["export-rdb", &directory, &out, "--journal-key-file", &key]);
    assert_eq!(number(&said, "keys"), 3, "{said}");
    let (_, error) = fails(&["import-rdb", &out, &directory]);
    assert!(error.contains("found an encrypted journal"), "{error}");
    // The other way: a log alone would lack what the snapshot holds.
    let (directory, _) = imported(&scratch, "2");
    let server = Running::start(&flags(&directory, "2"));
    assert_eq!(server.client().ask("SET a 1"), "+OK");
    server.stop();
    let convert = ["journal", "convert", &directory, "--to", "sqlcipher", "--journal-key-file", &key];
    let before = content(&directory);
    let (_, error) = fails(&convert);
    assert!(
        error.contains("found snapshots, and the log need not have") && content(&directory) == before,
        "{error}"
    );
}

#[test]
fn wrong_usage_is_told_from_failure() {
    for arguments in [
        &["import-rdb", "a.rdb"][..],
        &["import-rdb", "a.rdb", "b", "--shards", "0"],
        &["import-rdb", "a.rdb", "b", "--shards", "129"],
        &["import-rdb", "a.rdb", "b", "--database", "x"],
        &["import-rdb", "a.rdb", "b", "--overwrite"],
        &["export-rdb", "a"],
        &["snapshot"],
        &["snapshot", "repair", "a"],
        &["snapshot", "verify"],
        &["--port", "1", "snapshot", "info", "a"],
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn damage_is_named_where_it_is() {
    let scratch = Scratch::new("damage");
    let (directory, path) = imported(&scratch, "2");
    let good = fs::read(&path).unwrap();
    let out = scratch.path("out.rdb");
    let change = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        fs::write(&path, bytes).unwrap();
    };
    // A page in the first region, in one that holds records, and the last one of all.
    let tables = u64::from_le_bytes(good[good.len() - PAGE..][32..40].try_into().unwrap()) as usize;
    for at in [PAGE + 17, PAGE * 515, tables - 1] {
        change(at);
        let (said, error) = fails(&["snapshot", "verify", &path]);
        let damage = said.lines().find(|line| line.contains("\"what\":\"damage\"")).expect("a line for it");
        assert_eq!(number(damage, "offset") as usize, at / PAGE * PAGE, "{damage}");
        assert!(damage.contains("a page with the checksum 0x") && damage.contains(&path), "{damage}");
        let result = said.lines().last().unwrap();
        assert!(result.contains("\"state\":\"damaged\"") && number(result, "damaged_pages") == 1, "{result}");
        assert!(error.contains(&format!("at offset {}", at / PAGE * PAGE)), "{error}");
        // Nothing is made of it.
        let (_, error) = fails(&["export-rdb", &path, &out]);
        assert!(error.contains("the snapshot is damaged") && !Path::new(&out).exists(), "{error}");
        let (dumped, error) = fails(&["snapshot", "dump", &path]);
        assert!(error.contains("the snapshot is damaged"), "{error}");
        let whole = if at == tables - 1 { number(&tool_info(&path), "keys") } else { 0 };
        assert_eq!(dumped.lines().count() as u64, whole, "a shard with a damaged page is not shown");
        // What a start looks at before it serves is in order.
        tool(&["snapshot", "info", &path]);
    }
    for (at, what) in [
        (3, "MILLRSNP"),
        (40, "header"),
        (tables + 1, "tables"),
        (good.len() - PAGE, "MILLREND"),
        (good.len() - 1, "trailer"),
    ] {
        change(at);
        for word in ["verify", "info", "dump"] {
            let (said, error) = fails(&["snapshot", word, &path]);
            assert!(
                error.contains(what) && error.contains("expected") && error.contains(&path),
                "{what}: {error}"
            );
            assert_eq!(said.lines().count(), usize::from(word != "dump"), "{said}");
        }
    }
    fs::write(&path, &good[..good.len() - PAGE]).unwrap();
    let (_, error) = fails(&["snapshot", "verify", &path]);
    assert!(
        error.contains(&format!("expected a file of {} bytes, found {}", good.len(), good.len() - PAGE)),
        "{error}"
    );
    fs::write(&path, &good).unwrap();
    tool(&["snapshot", "verify", &path]);
    let renamed = path.replace("-0000000000000000.mrs", "-0000000000000007.mrs");
    fs::rename(&path, &renamed).unwrap();
    let (_, error) = fails(&["snapshot", "info", &renamed]);
    assert!(error.contains("found snapshot-0000000000000001-0000000000000000.mrs"), "{error}");
    let (_, error) = fails(&["snapshot", "info", &path]);
    assert!(error.contains("expected a snapshot file, found nothing"), "{error}");
    let (_, error) = fails(&["snapshot", "verify", &directory]);
    assert!(
        error.contains("found a directory; its newest snapshot is ") && error.contains(&renamed),
        "{error}"
    );
}

/// The line of `info` about the first shard.
fn tool_info(path: &str) -> String {
    tool(&["snapshot", "info", path]).0.lines().nth(1).unwrap().into()
}

#[test]
fn the_output_may_be_closed_early() {
    let scratch = Scratch::new("closed-early");
    let (_, path) = imported(&scratch, "1");
    let script = format!("'{BINARY}' snapshot dump '{path}' | head -1; exit ${{PIPESTATUS[0]}}");
    let output = Command::new("bash").args(["-c", &script]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && error.is_empty(), "{error}");
    assert_eq!(output.stdout.iter().filter(|&&byte| byte == b'\n').count(), 1);
}
