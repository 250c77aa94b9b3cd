//! Servers with known behaviour, and the program run against them.

#![allow(dead_code, reason = "each test program uses a part of it")]

use serde_json::Value;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// What a server does with its n-th request (from 0, over all connections): bytes to send, or the end.
pub type Answer = dyn Fn(u64, &[Vec<u8>]) -> Reaction + Send + Sync;

pub enum Reaction {
    Reply(Vec<u8>),
    Silence,
    /// Reply, then close the connection.
    Last(Vec<u8>),
    /// Close this and every later connection, and stop listening.
    Die,
}

pub fn reply(text: &str) -> Reaction {
    Reaction::Reply(text.as_bytes().to_vec())
}

/// A RESP server of one thread for each connection.
pub struct Server {
    pub address: SocketAddr,
    pub requests: Arc<AtomicU64>,
    pub dead: Arc<Mutex<bool>>,
}

impl Server {
    pub fn start(answer: impl Fn(u64, &[Vec<u8>]) -> Reaction + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let server = Server { address, requests: Arc::default(), dead: Arc::default() };
        let answer: Arc<Answer> = Arc::new(answer);
        let (requests, dead) = (Arc::clone(&server.requests), Arc::clone(&server.dead));
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if *dead.lock().expect("no panic") {
                    return;
                }
                stream.set_nodelay(true).expect("a TCP socket");
                let (answer, requests, dead) =
                    (Arc::clone(&answer), Arc::clone(&requests), Arc::clone(&dead));
                thread::spawn(move || {
                    let reader = stream.try_clone().expect("a descriptor");
                    if serve(reader, stream, &*answer, &requests) {
                        *dead.lock().expect("no panic") = true;
                        // Wakes the accept, which sees the flag and drops the listener.
                        let _ = TcpStream::connect(address);
                    }
                });
            }
        });
        server
    }

    pub fn target(&self) -> String {
        format!("resp://{}", self.address)
    }
}

/// Serves one connection; true if the whole server is to die.
pub fn serve(reader: impl Read, mut writer: impl Write, answer: &Answer, requests: &AtomicU64) -> bool {
    let mut reader = BufReader::new(reader);
    while let Some(request) = read_request(&mut reader) {
        // What a run asks before it begins is none of its requests. No server here is a Millrace.
        if request[0] == b"INFO" || request[0] == b"CONFIG" {
            if writer.write_all(b"-ERR unknown command\r\n").is_err() {
                return false;
            }
            continue;
        }
        let number = requests.fetch_add(1, Ordering::SeqCst);
        let bytes = match answer(number, &request) {
            Reaction::Reply(bytes) => bytes,
            Reaction::Silence => continue,
            Reaction::Last(bytes) => {
                let _ = writer.write_all(&bytes);
                return false;
            }
            Reaction::Die => return true,
        };
        if writer.write_all(&bytes).is_err() {
            return false;
        }
    }
    false
}

pub fn read_line(reader: &mut impl BufRead) -> Option<String> {
    let mut line = String::new();
    (reader.read_line(&mut line).ok()? > 0).then(|| line.trim_end().to_string())
}

pub fn read_request(reader: &mut impl BufRead) -> Option<Vec<Vec<u8>>> {
    let count: usize = read_line(reader)?.strip_prefix('*')?.parse().ok()?;
    let mut words = Vec::new();
    for _ in 0..count {
        let length: usize = read_line(reader)?.strip_prefix('$')?.parse().ok()?;
        let mut word = vec![0; length + 2];
        reader.read_exact(&mut word).ok()?;
        word.truncate(length);
        words.push(word);
    }
    Some(words)
}

/// Answers like a store: SET stores, GET gives what was stored.
pub fn store() -> impl Fn(u64, &[Vec<u8>]) -> Reaction + Send + Sync + 'static {
    let map: Mutex<HashMap<Vec<u8>, Vec<u8>>> = Mutex::default();
    move |_, request| {
        let mut map = map.lock().expect("no panic");
        match (&request[0][..], request.len()) {
            (b"SET", 3) => {
                map.insert(request[1].clone(), request[2].clone());
                reply("+OK\r\n")
            }
            (b"GET", 2) => match map.get(&request[1]) {
                Some(value) => {
                    let head = format!("${}\r\n", value.len());
                    Reaction::Reply([head.as_bytes(), value, b"\r\n"].concat())
                }
                None => reply("$-1\r\n"),
            },
            _ => reply("-ERR unknown command\r\n"),
        }
    }
}

pub fn loadgen(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadgen"));
    command.args(arguments).stdin(Stdio::null());
    command
}

pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

pub fn ran(output: Output) -> Ran {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("the program prints text");
    Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Runs to the end; a hang fails by the test harness' patience, so every test gives its own short times.
pub fn run(arguments: &[&str]) -> Ran {
    ran(loadgen(arguments).output().expect("the program starts"))
}

pub fn scratch(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a folder");
    folder
}

/// `loadgen run` against a target with a JSON report: what it printed, and the run in the report.
pub fn measure(name: &str, target: &str, flags: &[&str]) -> (Ran, Value) {
    let folder = scratch(name);
    let json = folder.join("report.json");
    let json_path = json.to_str().expect("a text path");
    let base = ["run", "--target", target, "--json", json_path];
    let ran = run(&[&base[..], flags].concat());
    let text = std::fs::read(&json).unwrap_or_else(|_| panic!("no report; {}", ran.stderr));
    let report: Value = serde_json::from_slice(&text).expect("valid JSON");
    assert_eq!(report["schema"], "millrace-loadgen-report-1");
    let _ = std::fs::remove_dir_all(folder);
    (ran, report["runs"][0].clone())
}

pub fn percentile_ms(summary: &Value, quantile: f64) -> f64 {
    let list = summary["percentiles"].as_array().expect("a list");
    let one = list.iter().find(|one| one["quantile"] == quantile).expect("a known quantile");
    one["ns"].as_u64().unwrap_or_else(|| panic!("p{quantile} has too few samples: {summary}")) as f64 / 1e6
}

pub fn rules(run: &Value) -> Vec<String> {
    let list = run["reasons"].as_array().expect("a list");
    list.iter().map(|reason| reason["rule"].as_str().expect("text").to_string()).collect()
}

/// A report that was written.
pub fn read_json(path: &Path) -> Value {
    let text = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).expect("valid JSON")
}

/// Millrace itself, in this process, without a log and at ports of its own.
pub fn millrace(settings: &[(&str, &str)]) -> reactor::RunningServer {
    let mut config = store::config::Config::default();
    let own = [("port", "0"), ("http-port", "0"), ("durability", "off"), ("shards", "1")];
    for (name, value) in own.iter().chain(settings) {
        let setting = store::config::Setting::find(name.as_bytes()).expect("a setting");
        (setting.set)(&mut config, value).expect("a value");
    }
    reactor::Server::start(config).expect("the server starts")
}

/// A case file's entry of a server that answers nearly at once.
pub fn target_entry(name: &str) -> String {
    format!(
        "[[target]]\nname = \"{name}\"\ncommand = [\"loadgen\", \"calibrate\", \"--paced\", \"20us\", \"--port\", \
         \"{{port}}\", \"--http-port\", \"{{http-port}}\"]\n"
    )
}

/// The folder that a comparison has written below this one.
pub fn only_folder(results: &Path) -> PathBuf {
    let first = std::fs::read_dir(results).expect("results").next();
    first.expect("a folder").expect("readable").path()
}
