//! Nodes that replicate: real servers whose ports stay the same over restarts, clients that write all the time, and the
//! comparison of what two nodes hold.

use super::process::*;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

/// Polls what other processes bring about; there is nothing to wait on but time.
pub fn eventually(what: impl Fn() -> String, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{}", what());
        std::thread::yield_now();
    }
}

/// A field of INFO replication.
pub fn info(client: &mut Client<TcpStream>, field: &str) -> Option<String> {
    let text = client.bulk("INFO replication");
    text.lines().find_map(|line| Some(line.strip_prefix(field)?.strip_prefix(':')?.trim().to_string()))
}

pub fn number(client: &mut Client<TcpStream>, field: &str) -> u64 {
    info(client, field).unwrap_or_else(|| panic!("no {field}")).parse().unwrap()
}

/// A node whose ports stay the same over restarts.
pub struct Node {
    pub dir: String,
    pub port: u16,
    pub replicas: u16,
    pub shards: &'static str,
    pub durability: &'static str,
    pub more: Vec<String>,
    pub running: Option<Running>,
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Node {
    pub fn new(scratch: &Scratch, name: &str, shards: &'static str) -> Node {
        Node {
            dir: scratch.path(name),
            port: free_port(),
            replicas: free_port(),
            shards,
            durability: "always",
            more: Vec::new(),
            running: None,
        }
    }

    pub fn with(mut self, more: &[&str]) -> Node {
        self.more.extend(more.iter().map(|word| word.to_string()));
        self
    }

    pub fn start(&mut self) -> &mut Node {
        let (port, replicas) = (self.port.to_string(), self.replicas.to_string());
        let mut flags = vec!["--port", &port, "--replica-listen", &replicas, "--dir", &self.dir];
        flags.extend(["--durability", self.durability, "--shards", self.shards, "--log-segment-size", "1mb"]);
        flags.extend(["--enable-debug-command", "yes"]);
        flags.extend(self.more.iter().map(String::as_str));
        self.running = Some(Running::start(&flags));
        self
    }

    pub fn follow(&mut self, primary: &Node) -> &mut Node {
        self.follow_port(primary.port)
    }

    pub fn follow_port(&mut self, port: u16) -> &mut Node {
        self.more.extend(["--replicaof".to_string(), format!("127.0.0.1:{port}")]);
        self
    }

    pub fn kill(&mut self) {
        let mut running = self.running.take().unwrap();
        running.child.kill().unwrap();
        running.child.wait().unwrap();
    }

    pub fn client(&self) -> Client<TcpStream> {
        Client::tcp(SocketAddr::from(([127, 0, 0, 1], self.port)))
    }
}

pub fn digest(node: &Node) -> String {
    node.client().ask("DEBUG DIGEST")
}

/// Waits until a node has what another has, and they hold the same.
pub fn same(primary: &Node, replica: &Node) {
    let (mut there, mut here) = (primary.client(), replica.client());
    let wanted = number(&mut there, "master_repl_offset");
    let text = || format!("{wanted} wanted; {}", replica.client().bulk("INFO replication"));
    eventually(text, || {
        info(&mut here, "master_link_status").as_deref() == Some("up")
            && number(&mut here, "master_repl_offset") >= wanted
    });
    assert_eq!(here.ask("DBSIZE"), there.ask("DBSIZE"));
    assert_eq!(digest(replica), digest(primary), "the keyspaces differ");
}

/// Writes without a pause until it is stopped; says how many were acknowledged.
pub struct Writer {
    stops: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Writer {
    pub fn start(port: u16) -> Writer {
        let (stops, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stop, counted) = (Arc::clone(&stops), Arc::clone(&count));
        let thread = std::thread::spawn(move || {
            let mut number = 0u64;
            // A server that is killed and started again is come back to.
            'connections: while !stop.load(Ordering::Relaxed) {
                let Ok(stream) = TcpStream::connect(("127.0.0.1", port)) else {
                    std::thread::yield_now();
                    continue;
                };
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                let mut stream = stream;
                while !stop.load(Ordering::Relaxed) {
                    let mut text = String::new();
                    for _ in 0..16 {
                        number += 1;
                        let key = number % 3000;
                        text += &match number % 7 {
                            0 => format!("DEL key:{key}\r\n"),
                            1 => format!("MSET key:{key} {number} other:{key} {number}\r\n"),
                            2 => format!("APPEND key:{key} more\r\n"),
                            3 => format!("SET key:{key} {number} EX 1000\r\n"),
                            4 => format!("PERSIST key:{}\r\n", number.saturating_sub(700) % 3000),
                            _ => format!("SET key:{key} {}\r\n", "v".repeat((number % 200) as usize + 1)),
                        };
                    }
                    if stream.write_all(text.as_bytes()).is_err() {
                        continue 'connections;
                    }
                    let (mut lines, mut bytes) = (0, [0; 4096]);
                    while lines < 16 {
                        match stream.read(&mut bytes) {
                            Ok(count) if count > 0 => {
                                lines += bytes[..count].iter().filter(|&&byte| byte == b'\n').count();
                            }
                            _ => continue 'connections,
                        }
                    }
                    counted.fetch_add(16, Ordering::Relaxed);
                }
            }
        });
        Writer { stops, count, thread }
    }

    /// Waits until so many more were acknowledged.
    pub fn goes_on(&self, more: u64) {
        let wanted = self.count.load(Ordering::Relaxed) + more;
        eventually(|| "writes do not go on".into(), || self.count.load(Ordering::Relaxed) >= wanted);
    }

    pub fn stop(self) {
        self.stops.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

pub fn fill(node: &Node, keys: usize) {
    let mut client = node.client();
    let value = "x".repeat(100);
    for first in (0..keys).step_by(500) {
        let mut text = String::new();
        (first..keys.min(first + 500)).for_each(|key| text += &format!("SET fill:{key} {value}{key}\r\n"));
        client.0.write_all(text.as_bytes()).unwrap();
        (first..keys.min(first + 500)).for_each(|_| assert_eq!(client.line(), "+OK"));
    }
}
