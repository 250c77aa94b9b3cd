//! A real server process, plain blocking clients, and what /proc says about the process.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Longer than anything may take on a busy machine with two cores; reached only by a server that hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// Servers are measured one at a time: a machine with two cores has no room for two storms.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A running `millrace`, killed when dropped.
pub struct Server {
    child: Mutex<Child>,
    pid: u32,
    /// Where it speaks RESP.
    pub resp: SocketAddr,
    http: SocketAddr,
    folder: PathBuf,
    _turn: MutexGuard<'static, ()>,
}

impl Server {
    /// Starts a server on free ports and waits for its `ready` line. Later arguments win over earlier ones.
    pub fn start(io: &str, arguments: &[&str]) -> Server {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder =
            std::env::temp_dir().join(format!("millrace-robustness-{}-{number}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder for the server");
        let mut command = Command::new(env!("CARGO_BIN_EXE_millrace"));
        command.args(["--io", io, "--http-port", "0", "--durability", "off", "--dir"]).arg(&folder);
        command.arg("--unixsocket").arg(folder.join("socket"));
        if !arguments.contains(&"--port") {
            command.args(["--port", "0"]);
        }
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the server starts");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let ready = loop {
            let line =
                lines.next().expect("the server ended before it was ready").expect("its output is text");
            if line.starts_with("ready ") {
                break line;
            }
        };
        // Whatever it still has to say must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        let address = |name: &str| -> SocketAddr {
            let value = ready.split(' ').find_map(|word| word.strip_prefix(name));
            value.and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no {name} in: {ready}"))
        };
        let (resp, http) = (address("resp="), address("http="));
        let server = Server { pid: child.id(), child: Mutex::new(child), resp, http, folder, _turn: turn };
        // Segments are made ready behind the start: a bound on memory counts from when they are.
        eventually(|| server.helper_sleeps(), || "the helper that makes segments ready never rests".into());
        server
    }

    /// The thread named `segments` waits (proc(5), stat: the state follows the name in brackets).
    fn helper_sleeps(&self) -> bool {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid)).expect("the server lives");
        let stats = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
        stats.into_iter().any(|stat| stat.contains("(segments) S"))
    }

    /// A new connection to the RESP port.
    pub fn client(&self) -> Client<TcpStream> {
        Client::over(connect(self.resp))
    }

    /// A new connection to the HTTP port; the caller speaks HTTP.
    pub fn http(&self) -> Client<TcpStream> {
        Client::over(connect(self.http))
    }

    /// A new connection to the Unix socket.
    pub fn unix_client(&self) -> Client<UnixStream> {
        let stream = UnixStream::connect(self.folder.join("socket")).expect("the Unix socket accepts");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Client { stream }
    }

    /// Memory of the process that is in RAM now.
    pub fn resident_bytes(&self) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).expect("the server lives");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") * 1024
    }

    /// How many descriptors the process has open.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid)).expect("the server lives").count()
    }

    /// For this long the memory stays below the bound and another client is answered promptly.
    pub fn stays_bounded_and_polite(&self, span: Duration, bound: usize, other: &mut Client<TcpStream>) {
        let end = Instant::now() + span;
        while Instant::now() < end {
            let begun = Instant::now();
            other.ping();
            assert!(begun.elapsed() < Duration::from_secs(2), "another client waited {:?}", begun.elapsed());
            let resident = self.resident_bytes();
            assert!(resident < bound, "{resident} bytes resident, {bound} are the bound");
        }
    }

    /// Waits until memory was given back.
    pub fn resident_falls_below(&self, bound: usize) {
        eventually(
            || self.resident_bytes() < bound,
            || format!("{} bytes stay, not {bound}", self.resident_bytes()),
        );
    }

    /// Waits until the server has noticed who left.
    pub fn connected_clients_become(&self, by: &mut Client<TcpStream>, count: u64) {
        let by = RefCell::new(by);
        let who = || String::from_utf8_lossy(&by.borrow_mut().call_bulk(&[b"CLIENT", b"LIST"])).into_owned();
        let equal = || by.borrow_mut().info("connected_clients") == count;
        eventually(equal, || format!("connected_clients does not become {count}:\n{:.5000}", who()));
    }

    /// Waits until the process has closed what it should.
    pub fn descriptors_become(&self, count: usize) {
        eventually(
            || self.descriptors() == count,
            || format!("{} descriptors, not {count}", self.descriptors()),
        );
    }

    /// Sends a signal by its name.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.pid.to_string()).status();
        assert!(status.expect("kill(1)").success());
    }

    /// Waits for the process to end and demands that it does so with success.
    pub fn ended_well(self) {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let mut status = None;
        eventually(
            || {
                status = child.try_wait().expect("wait");
                status.is_some()
            },
            || "the server does not end".into(),
        );
        assert!(status.is_some_and(|status| status.success()), "the server ended with {status:?}");
    }

    /// Still alive after all that, it ends when asked to.
    pub fn stop(self) {
        self.client().ping();
        self.signal("TERM");
        self.ended_well();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = child.kill();
        let _ = child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Polls a condition that another process brings about; there is nothing to wait on but time.
fn eventually(mut holds: impl FnMut() -> bool, otherwise: impl FnOnce() -> String) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{}", otherwise());
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let end = Instant::now() + PATIENCE;
    let stream = loop {
        match TcpStream::connect(address) {
            Ok(stream) => break stream,
            // Every local port is in TIME_WAIT: the kernel frees them after a second on loopback.
            Err(error) if error.kind() == std::io::ErrorKind::AddrNotAvailable && Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => panic!("{address} does not accept: {error}"),
        }
    };
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
    stream.set_nodelay(true).expect("no delay");
    stream
}

/// A blocking client that speaks RESP2 and reads its socket without a buffer of its own, so that what it has not
/// read is the kernel's or the server's.
pub struct Client<S> {
    /// The connection.
    pub stream: S,
}

impl Client<TcpStream> {
    fn over(stream: TcpStream) -> Self {
        Client { stream }
    }
}

impl<S: Read + Write> Client<S> {
    /// Writes everything.
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server takes it");
    }

    /// Writes one command.
    pub fn send_command(&mut self, arguments: &[&[u8]]) {
        let mut bytes = format!("*{}\r\n", arguments.len()).into_bytes();
        for argument in arguments {
            bytes.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
            bytes.extend_from_slice(argument);
            bytes.extend_from_slice(b"\r\n");
        }
        self.send(&bytes);
    }

    /// Reads exactly these bytes.
    pub fn expect(&mut self, wanted: &[u8]) {
        let mut seen = vec![0; wanted.len()];
        self.stream.read_exact(&mut seen).expect("an answer");
        assert!(seen == wanted, "{} instead of {}", seen.escape_ascii(), wanted.escape_ascii());
    }

    /// PING, and its answer.
    pub fn ping(&mut self) {
        self.send(b"*1\r\n$4\r\nPING\r\n");
        self.expect(b"+PONG\r\n");
    }

    /// SET, and its answer.
    pub fn set(&mut self, key: &[u8], value: &[u8]) {
        self.send_command(&[b"SET", key, value]);
        self.expect(b"+OK\r\n");
    }

    fn read_line(&mut self) -> String {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            self.stream.read_exact(&mut byte).expect("a line");
            line.push(byte[0]);
        }
        String::from_utf8_lossy(&line[..line.len() - 2]).into_owned()
    }

    /// Reads one bulk string; `None` is the null.
    pub fn read_bulk(&mut self) -> Option<Vec<u8>> {
        let line = self.read_line();
        let length: i64 =
            line.strip_prefix('$').and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{line}"));
        let mut bytes = vec![0; usize::try_from(length).ok()? + 2];
        self.stream.read_exact(&mut bytes).expect("a value");
        assert!(bytes.ends_with(b"\r\n"));
        bytes.truncate(bytes.len() - 2);
        Some(bytes)
    }

    /// A command that answers with a bulk string.
    pub fn call_bulk(&mut self, arguments: &[&[u8]]) -> Vec<u8> {
        self.call(arguments).expect("a value, not null")
    }

    /// A command that answers with a bulk string or null.
    pub fn call(&mut self, arguments: &[&[u8]]) -> Option<Vec<u8>> {
        self.send_command(arguments);
        self.read_bulk()
    }

    /// A command that answers with an integer.
    pub fn call_integer(&mut self, arguments: &[&[u8]]) -> u64 {
        self.send_command(arguments);
        let line = self.read_line();
        line.strip_prefix(':').and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("no integer: {line}"))
    }

    /// One number of INFO.
    pub fn info(&mut self, field: &str) -> u64 {
        self.info_of("default", field)
    }

    /// One number of a section of INFO.
    pub fn info_of(&mut self, section: &str, field: &str) -> u64 {
        let info = self.call_bulk(&[b"INFO", section.as_bytes()]);
        let info = String::from_utf8(info).expect("INFO is text");
        let value = info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        value.and_then(|n| n.parse().ok()).unwrap_or_else(|| {
            let names: HashSet<&str> = info.lines().filter_map(|line| line.split(':').next()).collect();
            panic!("INFO has no number {field} among {names:?}")
        })
    }
}

/// Room for both ends of 10,000 connections: the soft limit of this process goes up to its hard limit.
pub fn raise_descriptor_limit() {
    let limits = fs::read_to_string("/proc/self/limits").expect("limits");
    let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("a limit of open files");
    let hard = line.split_whitespace().nth(4).expect("a hard limit");
    let pid = std::process::id().to_string();
    // prlimit(1) does it from outside: setrlimit(2) would need unsafe code here.
    let status = Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={hard}:{hard}")]).status();
    assert!(status.expect("prlimit(1) of util-linux").success());
    let enough = hard == "unlimited" || hard.parse::<u64>().is_ok_and(|limit| limit >= 16_384);
    assert!(enough, "the hard limit of {hard} descriptors is too low for this test (ulimit -Hn)");
}

/// SplitMix64: enough for junk.
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// `SEED` from the environment, to repeat a run; a new one otherwise.
pub fn seed() -> u64 {
    let clock =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_nanos()
            as u64;
    std::env::var("SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(clock)
}
