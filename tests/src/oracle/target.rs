//! The servers that are compared: a redis-server, a Millrace process, or a Millrace engine in this process.
//!
//! A [`Server`] gives [`Link`]s. A link is as dumb as a wire: bytes in, bytes out, and at the end nothing more.
//! Processes are started here and die with the value that stands for them.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

/// A server that takes no longer than this for any answer; only a hang does, so the bound is generous.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// Bytes that fit in any socket buffer.
const WRITE_INLINE_MAX: usize = 32 * 1024;

/// What a receive brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// Bytes were appended.
    Bytes,
    /// The other side has closed; nothing will follow.
    Closed,
    /// Nothing came, and nothing will without something being sent.
    Silence,
}

/// One connection.
pub trait Link {
    /// Sends bytes. A failure is not reported here: the next receive will say that the link is closed.
    fn send(&mut self, bytes: &[u8]);
    /// Says that nothing more will be sent.
    fn finish(&mut self);
    /// Waits for bytes and appends them.
    fn receive(&mut self, into: &mut Vec<u8>) -> Received;
}

/// Something that accepts connections.
pub trait Server {
    /// For messages.
    fn name(&self) -> &str;
    /// Opens a connection.
    fn connect(&mut self) -> Box<dyn Link>;
}

/// Where a process listens.
#[derive(Clone, Debug)]
pub enum Address {
    /// `host:port`
    Tcp(String),
    /// A socket's path.
    Unix(PathBuf),
}

enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    fn open(address: &Address) -> std::io::Result<Socket> {
        Ok(match address {
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(SILENCE_MAX))?;
                Socket::Tcp(stream)
            }
            Address::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(SILENCE_MAX))?;
                Socket::Unix(stream)
            }
        })
    }

    fn try_clone(&self) -> std::io::Result<Socket> {
        Ok(match self {
            Socket::Tcp(stream) => Socket::Tcp(stream.try_clone()?),
            Socket::Unix(stream) => Socket::Unix(stream.try_clone()?),
        })
    }

    fn write_all(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Socket::Tcp(stream) => stream.write_all(bytes),
            Socket::Unix(stream) => stream.write_all(bytes),
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Socket::Tcp(stream) => stream.read(buffer),
            Socket::Unix(stream) => stream.read(buffer),
        }
    }

    fn shutdown_write(&self) -> std::io::Result<()> {
        match self {
            Socket::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Socket::Unix(stream) => stream.shutdown(Shutdown::Write),
        }
    }
}

/// A link over a socket. A server that waits for its replies to be read takes nothing more in, so whoever sends much
/// must be able to read meanwhile: beyond a few bytes, a thread of the link's own does the sending.
struct SocketLink {
    socket: Socket,
    buffer: Vec<u8>,
    /// Sent since something was last received.
    unanswered: usize,
    writer: Option<Writer>,
}

struct Writer {
    work: Sender<Work>,
    /// Handed over and not done.
    outstanding: Arc<AtomicUsize>,
}

enum Work {
    Write(Vec<u8>),
    Finish,
}

impl Writer {
    fn start(mut socket: Socket) -> Writer {
        let (work, queue) = channel();
        let outstanding = Arc::new(AtomicUsize::new(0));
        let done = Arc::clone(&outstanding);
        std::thread::spawn(move || {
            for work in queue {
                // A failure means that the server has closed, which the next receive reports.
                let _ = match work {
                    Work::Write(bytes) => socket.write_all(&bytes),
                    Work::Finish => socket.shutdown_write(),
                };
                done.fetch_sub(1, Ordering::Release);
            }
        });
        Writer { work, outstanding }
    }

    fn is_idle(&self) -> bool {
        self.outstanding.load(Ordering::Acquire) == 0
    }

    fn hand_over(&self, work: Work) {
        self.outstanding.fetch_add(1, Ordering::Release);
        self.work.send(work).expect("the thread lives as long as the link");
    }
}

impl Link for SocketLink {
    fn send(&mut self, bytes: &[u8]) {
        self.unanswered += bytes.len();
        let is_idle = self.writer.as_ref().is_none_or(Writer::is_idle);
        if is_idle && self.unanswered <= WRITE_INLINE_MAX {
            let _ = self.socket.write_all(bytes);
            return;
        }
        let socket = &self.socket;
        let writer = self.writer.get_or_insert_with(|| {
            Writer::start(socket.try_clone().expect("a second handle on an open socket"))
        });
        writer.hand_over(Work::Write(bytes.to_vec()));
    }

    fn finish(&mut self) {
        match &self.writer {
            Some(writer) => writer.hand_over(Work::Finish),
            None => {
                let _ = self.socket.shutdown_write();
            }
        }
    }

    fn receive(&mut self, into: &mut Vec<u8>) -> Received {
        loop {
            match self.socket.read(&mut self.buffer) {
                Ok(0) => return Received::Closed,
                Ok(length) => {
                    self.unanswered = 0;
                    into.extend_from_slice(&self.buffer[..length]);
                    return Received::Bytes;
                }
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted => continue,
                    ErrorKind::WouldBlock | ErrorKind::TimedOut => return Received::Silence,
                    // A reset is how a close looks when some of what was sent had not been read.
                    _ => return Received::Closed,
                },
            }
        }
    }
}

/// A server process and its directory; both are gone when this is dropped.
pub struct Process {
    name: String,
    child: Child,
    address: Address,
    directory: PathBuf,
}

impl Process {
    /// Starts a redis-server found on the `PATH`, on a Unix socket of its own.
    pub fn start_redis() -> Result<Process, String> {
        let version = Command::new("redis-server").arg("--version").output().map_err(|error| {
            format!(
                "redis-server, the oracle, cannot be run ({error}); install it: apt-get install redis-server"
            )
        })?;
        let version = String::from_utf8_lossy(&version.stdout).into_owned();
        if !version.contains("v=7.0.") {
            return Err(format!(
                "the oracle is redis-server 7.0 (7.0.15 in Debian 12), but this is {version}"
            ));
        }
        let directory = fresh_directory()?;
        let path = directory.join("redis.sock");
        let mut command = Command::new("redis-server");
        command.args(["--port", "0", "--databases", "1", "--save", "", "--appendonly", "no"]);
        command.args(["--enable-debug-command", "yes", "--loglevel", "notice"]);
        command.arg("--unixsocket").arg(&path).arg("--dir").arg(&directory);
        let (child, _) = start(command, "ready to accept connections")?;
        Ok(Process { name: "redis-server".into(), child, address: Address::Unix(path), directory })
    }

    /// Starts the Millrace binary with `arguments`, and takes its TCP or its Unix socket.
    pub fn start_millrace(binary: &Path, arguments: &[&str], unix: bool) -> Result<Process, String> {
        let directory = fresh_directory()?;
        let path = directory.join("millrace.sock");
        let mut command = Command::new(binary);
        command.args(["--port", "0", "--http-port", "0", "--durability", "off"]).args(arguments);
        command.arg("--unixsocket").arg(&path).arg("--dir").arg(&directory);
        let (child, line) = start(command, "ready")?;
        let address = if unix {
            Address::Unix(path)
        } else {
            let resp = line.split_whitespace().find_map(|word| word.strip_prefix("resp="));
            Address::Tcp(
                resp.ok_or_else(|| format!("no resp= address in the ready line: {line}"))?.to_owned(),
            )
        };
        let name = format!("millrace {}{}", arguments.join(" "), if unix { " (unix)" } else { "" });
        Ok(Process { name, child, address, directory })
    }

    /// Where it listens.
    pub fn address(&self) -> &Address {
        &self.address
    }
}

impl Server for Process {
    fn name(&self) -> &str {
        &self.name
    }

    fn connect(&mut self) -> Box<dyn Link> {
        let socket = Socket::open(&self.address).unwrap_or_else(|error| {
            panic!("{} at {:?} refuses a connection: {error}", self.name, self.address)
        });
        Box::new(SocketLink { socket, buffer: vec![0; 64 * 1024], unanswered: 0, writer: None })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn fresh_directory() -> Result<PathBuf, String> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("millrace-oracle-{}-{count}", std::process::id()));
    std::fs::create_dir_all(&path).map_err(|error| format!("cannot create {}: {error}", path.display()))?;
    Ok(path)
}

/// Starts a process and waits for a line on its standard output that contains `ready`.
fn start(mut command: Command, ready: &str) -> Result<(Child, String), String> {
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot start {shown}: {error}"))?;
    let mut lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
    let mut seen = String::new();
    for line in lines.by_ref() {
        let line = line.map_err(|error| format!("reading the output of {shown}: {error}"))?;
        if line.contains(ready) {
            // Somebody must go on reading, or a talkative server would block on a full pipe.
            std::thread::spawn(move || lines.for_each(drop));
            return Ok((child, line));
        }
        seen.push_str(&line);
        seen.push('\n');
    }
    let _ = child.wait();
    Err(format!("{shown} ended without becoming ready; it said:\n{seen}"))
}

/// The Millrace binary: `MILLRACE_BIN`, or the one of this workspace, built in the profile of this test.
pub fn millrace_binary() -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os("MILLRACE_BIN") {
        return Ok(path.into());
    }
    let test = std::env::current_exe().map_err(|error| format!("where is this test? {error}"))?;
    // target/<profile>/deps/oracle-<hash>
    let folder = test.ancestors().nth(2).ok_or("the test does not lie in a target directory")?;
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(name) => name,
        None => return Err("the target directory has no name".into()),
    };
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    // As it was built before, or cargo would build it anew.
    let features: &[&str] = if cfg!(feature = "sqlcipher") { &["--features", "sqlcipher"] } else { &[] };
    let status = Command::new(env!("CARGO"))
        .args(["build", "--package", "reactor", "--bin", "millrace", "--profile", profile])
        .args(features)
        .arg("--manifest-path")
        .arg(&manifest)
        .arg("--target-dir")
        .arg(folder.parent().ok_or("the target directory has no parent")?)
        .status()
        .map_err(|error| format!("cannot run cargo to build millrace: {error}"))?;
    if !status.success() {
        return Err("building millrace failed; set MILLRACE_BIN to use another binary".into());
    }
    Ok(folder.join("millrace"))
}
