//! The servers under comparison: where their programs are, how they start, that they end.

use super::builtin;
use super::cases::{Case, Listener, TargetEntry, ToolOutput};
use super::tools::ToolFigures;
use crate::system;
use crate::workload::Protocol;
use reactor::cpu;
use reactor::io::stop::StopSignal;
use reactor::server::event::Target;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A server that does not serve by then never will.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// Another load generator ends within this many times the length of a measurement (some take a number of requests, and a slow
/// server takes its time over them) …
const TOOL_PATIENCE_FACTOR: f64 = 20.0;
/// … and this, for its start and its report.
const TOOL_PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks whether it does.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A target whose program was found.
#[derive(Clone, Debug, Serialize)]
pub struct Peer {
    /// Its name in cases and tables.
    pub name: String,
    /// Program and arguments, fields not filled in.
    pub command: Vec<String>,
    /// What the program says of itself.
    pub version: Option<String>,
    /// Where it is spoken to.
    pub listener: Listener,
    /// Path of HTTP requests.
    pub http_path: String,
    /// Set every key before measuring.
    pub fill: bool,
    /// Stop it while others are measured.
    pub freeze: bool,
    /// Another load generator that drives it, fields not filled in; empty: this one.
    pub tool: Vec<String>,
    /// What that one says of itself.
    pub tool_version: Option<String>,
    /// The target that is the same server driven by this tool.
    pub undriven: Option<String>,
    /// Where that one says its throughput.
    #[serde(skip)]
    pub tool_output: ToolOutput,
    /// What keys begin with that are set for it.
    #[serde(skip)]
    pub fill_prefix: Option<String>,
    /// The other load generator, found.
    #[serde(skip)]
    tool_program: PathBuf,
    /// Files it needs.
    #[serde(skip)]
    files: BTreeMap<String, String>,
    /// The program, found.
    #[serde(skip)]
    program: PathBuf,
}

/// Programs that are not looked for.
#[derive(Clone, Debug, Default)]
pub struct Programs {
    /// Millrace.
    pub millrace: Option<PathBuf>,
    /// The null server.
    pub null: Option<PathBuf>,
}

/// What a server is told of its load.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    /// Keys.
    pub keys: u64,
    /// What the null server answers.
    pub reply_bytes: usize,
}

impl Needs {
    /// Those of a case.
    pub fn of(case: &Case) -> Needs {
        Needs { keys: case.keys, reply_bytes: reply_bytes(case) }
    }
}

/// All targets of a comparison.
#[derive(Debug)]
pub struct Peers {
    /// Those that are here, in the order of the cases.
    pub found: Vec<Peer>,
    /// Those that are not, and what was looked for.
    pub missing: Vec<String>,
}

impl Peers {
    /// Looks for the programs of the targets `wanted`.
    pub fn find(wanted: &[String], entries: &[TargetEntry], programs: &Programs) -> Result<Peers, String> {
        let mut peers = Peers { found: Vec::new(), missing: Vec::new() };
        let mut seen: Vec<&str> = Vec::new();
        for name in wanted {
            if seen.contains(&name.as_str()) {
                continue;
            }
            seen.push(name);
            let (entry, undriven) = builtin::find(name, entries)?;
            let mut programs = [entry.command.first(), entry.tool.first()].map(|name| match name {
                Some(name) => find_program(name, programs).ok_or(name),
                None => Ok(PathBuf::new()),
            });
            if let Some(Err(absent)) = programs.iter().find(|program| program.is_err()) {
                peers.missing.push(format!("{name}: no program \"{absent}\" in PATH"));
                continue;
            }
            let [program, tool_program] = programs.each_mut().map(|program| match program {
                Ok(path) => std::mem::take(path),
                Err(_) => unreachable!("looked at above"),
            });
            peers.found.push(Peer {
                name: entry.name.clone(),
                command: entry.command.clone(),
                version: version(&entry.version, &program),
                listener: entry.listener,
                http_path: entry.http_path.clone(),
                fill: entry.fill,
                freeze: entry.freeze,
                tool: entry.tool.clone(),
                tool_version: version(&entry.tool_version, &tool_program),
                undriven,
                tool_output: entry.tool_output,
                fill_prefix: entry.fill_prefix.clone(),
                tool_program,
                files: entry.files.clone(),
                program,
            });
        }
        Ok(peers)
    }

    /// A target that was found.
    pub fn get(&self, name: &str) -> Option<&Peer> {
        self.found.iter().find(|peer| peer.name == name)
    }
}

impl Peer {
    /// Whose load it is, and in which loop.
    pub fn driven_by(&self, own: &str) -> String {
        match self.tool.first() {
            None => format!("loadgen, {own}"),
            // All that are known have closed loops.
            Some(program) => format!("{program}, closed loop, its own figures"),
        }
    }

    /// How another tool says its figures; `None`: it is this one.
    pub fn other_tool(&self) -> Option<ToolOutput> {
        (!self.tool.is_empty()).then_some(self.tool_output)
    }

    /// What distinguishes servers of this target that cannot stand in for each other.
    pub fn variant(&self, case: &Case) -> String {
        match self.command.iter().any(|word| word.contains("{reply-bytes}")) {
            true => reply_bytes(case).to_string(),
            false => String::new(),
        }
    }
}

/// The null server's answer: a value to GET, `+OK` (0) to SET.
fn reply_bytes(case: &Case) -> usize {
    if case.gets > 0 { case.value_size } else { 0 }
}

fn find_program(name: &str, programs: &Programs) -> Option<PathBuf> {
    let given = match name {
        "millrace" => programs.millrace.clone(),
        "nullresp" => programs.null.clone(),
        _ => None,
    };
    if let Some(path) = given {
        return is_program(&path).then_some(path);
    }
    // The server of `calibrate` is this program.
    if name == "loadgen" {
        return std::env::current_exe().ok();
    }
    // The Millrace of the same build stands beside this program.
    if name == "millrace" {
        let beside = std::env::current_exe().ok().map(|exe| exe.with_file_name(name));
        if let Some(path) = beside.filter(|path| is_program(path)) {
            return Some(path);
        }
    }
    if name.contains('/') {
        return is_program(Path::new(name)).then(|| name.into());
    }
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|folder| folder.join(name))
        .find(|path| is_program(path))
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

fn version(words: &[String], program: &Path) -> Option<String> {
    let (_, arguments) = words.split_first()?;
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().ok()?;
    // nginx tells its version on stderr.
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().next()?.trim();
    (!line.is_empty()).then(|| line.to_string())
}

/// A server that was started here. Dropping it ends it and removes its folder.
#[derive(Debug)]
pub struct Running {
    child: Child,
    folder: PathBuf,
    may_freeze: bool,
    fields: Vec<(&'static str, String)>,
    /// Where it is spoken to.
    pub address: Target,
    /// What is spoken.
    pub protocol: Protocol,
    /// Path of HTTP requests.
    pub http_path: String,
}

impl Running {
    /// Starts a target on `core` and waits until it serves.
    pub fn start(peer: &Peer, needs: Needs, core: Option<usize>) -> Result<Running, String> {
        // The folder's name is short: a socket's path may have 107 bytes.
        let folder = fresh_folder().map_err(|error| format!("no folder for it: {error}"))?;
        let [port, http_port] = free_ports().map_err(|error| format!("no free port: {error}"))?;
        let socket = folder.join("s");
        let fields = vec![
            ("{port}", port.to_string()),
            ("{http-port}", http_port.to_string()),
            ("{socket}", socket.display().to_string()),
            ("{dir}", folder.display().to_string()),
            ("{core}", core.or(cpu::allowed_cores().first().copied()).unwrap_or(0).to_string()),
            ("{reply-bytes}", needs.reply_bytes.to_string()),
            ("{keys}", needs.keys.to_string()),
            ("{path}", peer.http_path.replace("{key}", "key:000000000001")),
            // In a script that has the digits of a key at hand.
            ("{path-by-key}", peer.http_path.replace("{key}", "key:${key}")),
        ];
        for (name, contents) in &peer.files {
            fs::write(folder.join(name), fill_in(contents, &fields))
                .map_err(|error| format!("cannot write its {name}: {error}"))?;
        }
        let log = fs::File::create(folder.join("log"))
            .and_then(|log| Ok((log.try_clone()?, log)))
            .map_err(|error| format!("no log file for it: {error}"))?;
        let mut command = Command::new(&peer.program);
        command.args(peer.command[1..].iter().map(|word| fill_in(word, &fields)));
        command.stdin(Stdio::null()).stdout(log.0).stderr(log.1);
        let child = spawn_pinned(command, core)
            .map_err(|error| format!("cannot start {}: {error}", peer.program.display()))?;
        let localhost = |port: u16| Target::Tcp(SocketAddr::from(([127, 0, 0, 1], port)));
        let mut running = Running {
            child,
            folder,
            may_freeze: peer.freeze,
            fields,
            address: match peer.listener {
                Listener::Resp | Listener::Memcache => localhost(port),
                Listener::Http => localhost(http_port),
                Listener::Unix => Target::Unix(socket),
            },
            protocol: peer.listener.protocol(),
            http_path: peer.http_path.clone(),
        };
        running.wait_until_ready()?;
        Ok(running)
    }

    fn wait_until_ready(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            match self.child.try_wait() {
                Ok(None) => {}
                Ok(Some(status)) => return Err(format!("it ended at once ({status}){}", self.log_tail())),
                Err(error) => return Err(format!("it cannot be watched: {error}")),
            }
            let answered = match &self.address {
                Target::Tcp(address) => TcpStream::connect(address).and_then(|stream| {
                    stream.set_read_timeout(Some(READY_WITHIN))?;
                    answers(stream, self.protocol)
                }),
                Target::Unix(path) => UnixStream::connect(path).and_then(|stream| {
                    stream.set_read_timeout(Some(READY_WITHIN))?;
                    answers(stream, self.protocol)
                }),
            };
            match answered {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) if Instant::now() > deadline => {
                    return Err(format!("it does not serve: {error}{}", self.log_tail()));
                }
                Err(_) => {}
            }
            if Instant::now() > deadline {
                return Err(format!("it does not serve{}", self.log_tail()));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Lets another load generator, on `core`, drive the server; what it says of that, and the CPU time that it took.
    pub fn run_tool(
        &self,
        peer: &Peer,
        case: &Case,
        load: ToolLoad,
        core: Option<usize>,
        stop: &StopSignal,
    ) -> Result<(ToolFigures, Duration), String> {
        let mut fields = self.fields.clone();
        // For tools that do not pad numbers: from here on all have the digits that a key of this size has behind `key:`.
        let first_key = 10u64.saturating_pow(case.key_size.saturating_sub(5) as u32);
        fields.extend([
            ("{connections}", load.connections.to_string()),
            ("{pipeline}", case.pipeline.to_string()),
            ("{seconds}", load.seconds.ceil().to_string()),
            // Some take a number of requests: about as many as are made in the time.
            ("{requests}", load.requests.to_string()),
            ("{first-key}", first_key.to_string()),
            ("{last-key}", first_key.saturating_add(case.keys - 1).to_string()),
            ("{value-size}", case.value_size.to_string()),
            ("{ratio}", format!("{}:{}", case.sets, case.gets)),
            ("{test}", if case.gets > 0 { "get" } else { "set" }.to_string()),
            ("{generator-core}", core.or(cpu::allowed_cores().last().copied()).unwrap_or(0).to_string()),
        ]);
        let mut command = Command::new(&peer.tool_program);
        command.args(peer.tool[1..].iter().map(|word| fill_in(word, &fields)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A group of its own, so that what it starts can be ended with it.
        command.process_group(0);
        let before = children_cpu_time();
        let child = spawn_pinned(command, core)
            .map_err(|error| format!("cannot start {}: {error}", peer.tool_program.display()))?;
        let patience = Duration::from_secs_f64(load.seconds * TOOL_PATIENCE_FACTOR) + TOOL_PATIENCE;
        let output = wait_for_tool(child, stop, patience).map_err(|why| format!("{} {why}", peer.tool[0]))?;
        let took = children_cpu_time().saturating_sub(before);
        let said = || tail(&String::from_utf8_lossy(&output.stderr));
        if !output.status.success() {
            return Err(format!("{} ended with {}{}", peer.tool[0], output.status, said()));
        }
        let figures = peer.tool_output.figures(&output.stdout, &self.folder);
        let figures = figures.ok_or_else(|| {
            format!("{} says no throughput where it was looked for{}", peer.tool[0], said())
        })?;
        Ok((figures, took))
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Stops it where it stands, so that it takes no time from others.
    pub fn freeze(&self) {
        self.signal("STOP");
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal("CONT");
    }

    fn signal(&self, signal: &str) {
        if !self.may_freeze {
            return;
        }
        // If it fails the server merely stays awake.
        let _ = system::signal(self.pid(), signal);
    }

    /// The end of what it printed, for an error message.
    pub fn log_tail(&self) -> String {
        let text = fs::read(self.folder.join("log")).unwrap_or_default();
        tail(&String::from_utf8_lossy(&text))
    }
}

/// The end of what a program printed, for an error message.
fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(5)..].join("\n  ");
    if tail.is_empty() { String::new() } else { format!("; it printed:\n  {tail}") }
}

/// CPU time of all processes that were started here and have ended.
fn children_cpu_time() -> Duration {
    let usage = cpu::children_usage();
    usage.user + usage.system
}

impl Drop for Running {
    fn drop(&mut self) {
        // SIGKILL reaches stopped processes as well. Nothing of a benchmark's data is worth a clean shutdown.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// How hard another load generator is to try.
#[derive(Clone, Copy, Debug)]
pub struct ToolLoad {
    /// Over how many connections.
    pub connections: usize,
    /// For how long.
    pub seconds: f64,
    /// How often in all, for those that take a number.
    pub requests: u64,
}

fn fill_in(text: &str, fields: &[(&'static str, String)]) -> String {
    fields.iter().fold(text.to_string(), |text, (name, value)| text.replace(name, value))
}

/// Waits until another load generator has ended and all it printed is read. It is ended when `stop` is raised or when it takes
/// longer than `patience`.
fn wait_for_tool(mut child: Child, stop: &StopSignal, patience: Duration) -> Result<Output, String> {
    fn reader(mut pipe: impl Read + Send + 'static) -> JoinHandle<std::io::Result<Vec<u8>>> {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            pipe.read_to_end(&mut bytes).map(|_| bytes)
        })
    }
    let stdout = reader(child.stdout.take().expect("it is a pipe"));
    let stderr = reader(child.stderr.take().expect("it is a pipe"));
    let deadline = Instant::now() + patience;
    loop {
        let status = child.try_wait().map_err(|error| format!("cannot be watched: {error}"))?;
        if let (Some(status), true, true) = (status, stdout.is_finished(), stderr.is_finished()) {
            let text = |reader: JoinHandle<std::io::Result<Vec<u8>>>| {
                let read = reader.join().expect("the thread does not panic");
                read.map_err(|error| format!("cannot be read: {error}"))
            };
            return Ok(Output { status, stdout: text(stdout)?, stderr: text(stderr)? });
        }
        let is_late = Instant::now() > deadline;
        if is_late || stop.is_requested() {
            // Whatever it has started holds its pipes and asks the server on. The group's number is not free before the
            // child has been waited for.
            system::signal_group(child.id(), "KILL");
            let _ = child.kill();
            let _ = child.wait();
            return Err(match is_late {
                true => format!("did not end within {patience:?} and was ended"),
                false => "was interrupted".into(),
            });
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// A process inherits the mask of the thread that starts it.
fn spawn_pinned(mut command: Command, core: Option<usize>) -> Result<Child, String> {
    let spawned = std::thread::spawn(move || {
        if let Some(core) = core {
            cpu::pin_to(core).map_err(|error| error.to_string())?;
        }
        command.spawn().map_err(|error| error.to_string())
    });
    spawned.join().expect("the thread does not panic")
}

/// Whether the server answers its first request. `Ok(false)`: not yet (a server that loads says so).
fn answers(mut stream: impl Read + Write, protocol: Protocol) -> std::io::Result<bool> {
    let request: &[u8] = match protocol {
        Protocol::Resp => b"*1\r\n$4\r\nPING\r\n",
        Protocol::Memcache => b"version\r\n",
        Protocol::Http => b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
    };
    stream.write_all(request)?;
    let mut reply = [0; 64];
    let count = stream.read(&mut reply)?;
    Ok(count > 0 && !reply.starts_with(b"-LOADING"))
}

/// A folder that nobody had before. Its name is short: a socket's path may have 107 bytes.
pub fn fresh_folder() -> std::io::Result<PathBuf> {
    let base = std::env::temp_dir();
    for number in 0..10_000 {
        let folder = base.join(format!("loadgen-{}-{number}", std::process::id()));
        match fs::create_dir(&folder) {
            Ok(()) => return Ok(folder),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(std::io::Error::other("ten thousand folders are taken"))
}

/// Ports that are free now. Another program may take one before the server does; then the server says so.
fn free_ports() -> std::io::Result<[u16; 2]> {
    let listeners = [TcpListener::bind(("127.0.0.1", 0))?, TcpListener::bind(("127.0.0.1", 0))?];
    Ok([listeners[0].local_addr()?.port(), listeners[1].local_addr()?.port()])
}
