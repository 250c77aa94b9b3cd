//! The servers under comparison: where their programs are, how they start, that they end.

use super::cases::{Case, Listener, TargetEntry};
use crate::cli::CompareArgs;
use crate::workload::Protocol;
use reactor::cpu;
use reactor::server::event::Target;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A server that does not serve by then never will.
const READY_WITHIN: Duration = Duration::from_secs(20);
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
    /// Files it needs.
    #[serde(skip)]
    files: BTreeMap<String, String>,
    /// The program, found.
    #[serde(skip)]
    program: PathBuf,
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
    pub fn find(
        wanted: &[String],
        entries: &[TargetEntry],
        arguments: &CompareArgs,
    ) -> Result<Peers, String> {
        let known = builtin();
        let mut peers = Peers { found: Vec::new(), missing: Vec::new() };
        let mut seen: Vec<&str> = Vec::new();
        for name in wanted {
            if seen.contains(&name.as_str()) {
                continue;
            }
            seen.push(name);
            let entry = entries.iter().chain(&known).find(|entry| entry.name == *name).ok_or_else(|| {
                let names: Vec<&str> =
                    entries.iter().chain(&known).map(|entry| entry.name.as_str()).collect();
                format!("no target is called \"{name}\"; there are {}", names.join(", "))
            })?;
            match find_program(&entry.command[0], arguments) {
                Some(program) => peers.found.push(Peer {
                    name: entry.name.clone(),
                    command: entry.command.clone(),
                    version: version(entry, &program),
                    listener: entry.listener,
                    http_path: entry.http_path.clone(),
                    fill: entry.fill,
                    files: entry.files.clone(),
                    program,
                }),
                None => peers.missing.push(format!("{name}: no program \"{}\" in PATH", entry.command[0])),
            }
        }
        Ok(peers)
    }

    /// A target that was found.
    pub fn get(&self, name: &str) -> Option<&Peer> {
        self.found.iter().find(|peer| peer.name == name)
    }
}

impl Peer {
    /// What distinguishes servers of this target that cannot stand in for each other.
    pub fn variant(&self, case: &Case) -> String {
        match self.command.iter().any(|word| word.contains("{reply-bytes}")) {
            true => reply_bytes(case).to_string(),
            false => String::new(),
        }
    }

    /// The command line for people.
    pub fn shown_command(&self) -> String {
        let quoted = |word: &String| if word.is_empty() { "''".to_string() } else { word.clone() };
        self.command.iter().map(quoted).collect::<Vec<_>>().join(" ")
    }
}

/// The null server's answer: a value to GET, `+OK` (0) to SET.
fn reply_bytes(case: &Case) -> usize {
    if case.gets > 0 { case.value_size } else { 0 }
}

fn find_program(name: &str, arguments: &CompareArgs) -> Option<PathBuf> {
    let given = match name {
        "millrace" => arguments.millrace.clone(),
        "nullresp" => arguments.null.clone(),
        _ => None,
    };
    if let Some(path) = given {
        return is_program(&path).then_some(path);
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

fn version(entry: &TargetEntry, program: &Path) -> Option<String> {
    let (_, arguments) = entry.version.split_first()?;
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().ok()?;
    // nginx tells its version on stderr.
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().next()?.trim();
    (!line.is_empty()).then(|| line.to_string())
}

/// The targets that need no entry in a file.
fn builtin() -> Vec<TargetEntry> {
    let entry = |name: &str, listener: Listener, command: &str, version: &str| TargetEntry {
        name: name.into(),
        command: command.split(' ').map(|word| word.trim_matches('\'').to_string()).collect(),
        version: if version.is_empty() { vec![] } else { version.split(' ').map(str::to_string).collect() },
        listener,
        http_path: "/v1/keys/{key}".into(),
        fill: true,
        files: BTreeMap::new(),
    };
    let millrace = "millrace --bind 127.0.0.1 --port {port} --http-port {http-port} --unixsocket {socket} --dir {dir} \
                    --pin {core} --durability off";
    let redis = |program: &str| {
        format!(
            "{program} --bind 127.0.0.1 --port {{port}} --unixsocket {{socket}} --dir {{dir}} --save '' --appendonly no"
        )
    };
    let version = "millrace --version";
    let mut list = vec![
        entry("millrace", Listener::Resp, millrace, version),
        entry("millrace-unix", Listener::Unix, millrace, version),
        entry("millrace-http", Listener::Http, millrace, version),
        entry("millrace-epoll", Listener::Resp, &format!("{millrace} --io epoll"), version),
        entry("millrace-epoll-unix", Listener::Unix, &format!("{millrace} --io epoll"), version),
        entry("millrace-epoll-http", Listener::Http, &format!("{millrace} --io epoll"), version),
        entry("redis", Listener::Resp, &redis("redis-server"), "redis-server --version"),
        entry("redis-unix", Listener::Unix, &redis("redis-server"), "redis-server --version"),
        entry("valkey", Listener::Resp, &redis("valkey-server"), "valkey-server --version"),
        entry(
            "kevy",
            Listener::Resp,
            "kevy --bind 127.0.0.1 --port {port} --threads 1 --no-aof --dir {dir}",
            "kevy --version",
        ),
    ];
    let mut null =
        entry("null", Listener::Resp, "nullresp --port {port} --cpu {core} --reply-bytes {reply-bytes}", "");
    null.fill = false;
    let mut null_epoll = null.clone();
    null_epoll.name = "null-epoll".into();
    null_epoll.command.extend(["--mode".to_string(), "epoll".to_string()]);
    let mut nginx = entry("nginx", Listener::Http, "nginx -p {dir} -c {dir}/nginx.conf", "nginx -v");
    nginx.fill = false;
    nginx.http_path = "/".into();
    let body = "x".repeat(64);
    nginx.files.insert(
        "nginx.conf".into(),
        format!(
            "daemon off;\nmaster_process off;\nworker_processes 1;\npid {{dir}}/nginx.pid;\nerror_log stderr crit;\n\
             events {{ worker_connections 4096; }}\n\
             http {{\n  access_log off;\n  keepalive_requests 1000000000;\n  keepalive_timeout 1h;\n  \
             client_body_temp_path {{dir}}/body;\n  proxy_temp_path {{dir}}/proxy;\n  \
             fastcgi_temp_path {{dir}}/fastcgi;\n  uwsgi_temp_path {{dir}}/uwsgi;\n  scgi_temp_path {{dir}}/scgi;\n  \
             server {{\n    listen 127.0.0.1:{{http-port}} backlog=4096;\n    location / {{ default_type text/plain; \
             return 200 \"{body}\"; }}\n  }}\n}}\n"
        ),
    );
    list.extend([null, null_epoll, nginx]);
    list
}

/// A server that was started here. Dropping it ends it and removes its folder.
#[derive(Debug)]
pub struct Running {
    child: Child,
    folder: PathBuf,
    /// Where it is spoken to.
    pub address: Target,
    /// What is spoken.
    pub protocol: Protocol,
    /// Path of HTTP requests.
    pub http_path: String,
}

impl Running {
    /// Starts a target on `core` and waits until it serves.
    pub fn start(peer: &Peer, case: &Case, core: Option<usize>) -> Result<Running, String> {
        let failed = |what: String| format!("{}: {what}", peer.name);
        // The folder's name is short: a socket's path may have 107 bytes.
        let folder = fresh_folder().map_err(|error| failed(format!("no folder for it: {error}")))?;
        let [port, http_port] = free_ports().map_err(|error| failed(format!("no free port: {error}")))?;
        let socket = folder.join("s");
        let fields = [
            ("{port}", port.to_string()),
            ("{http-port}", http_port.to_string()),
            ("{socket}", socket.display().to_string()),
            ("{dir}", folder.display().to_string()),
            ("{core}", core.or(cpu::allowed_cores().first().copied()).unwrap_or(0).to_string()),
            ("{reply-bytes}", reply_bytes(case).to_string()),
        ];
        let fill_in = |text: &str| {
            fields.iter().fold(text.to_string(), |text, (name, value)| text.replace(name, value))
        };
        for (name, contents) in &peer.files {
            fs::write(folder.join(name), fill_in(contents))
                .map_err(|error| failed(format!("cannot write its {name}: {error}")))?;
        }
        let log = fs::File::create(folder.join("log"))
            .and_then(|log| Ok((log.try_clone()?, log)))
            .map_err(|error| failed(format!("no log file for it: {error}")))?;
        let mut command = Command::new(&peer.program);
        command.args(peer.command[1..].iter().map(|word| fill_in(word)));
        command.stdin(Stdio::null()).stdout(log.0).stderr(log.1);
        // A process inherits the mask of the thread that starts it.
        let spawned = std::thread::spawn(move || {
            if let Some(core) = core {
                cpu::pin_to(core).map_err(|error| error.to_string())?;
            }
            command.spawn().map_err(|error| error.to_string())
        });
        let child = spawned.join().expect("the thread does not panic");
        let child =
            child.map_err(|error| failed(format!("cannot start {}: {error}", peer.program.display())))?;
        let localhost = |port: u16| Target::Tcp(SocketAddr::from(([127, 0, 0, 1], port)));
        let mut running = Running {
            child,
            folder,
            address: match peer.listener {
                Listener::Resp => localhost(port),
                Listener::Http => localhost(http_port),
                Listener::Unix => Target::Unix(socket),
            },
            protocol: peer.listener.protocol(),
            http_path: peer.http_path.clone(),
        };
        running.wait_until_ready().map_err(failed)?;
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

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Stops it where it stands, so that it takes no time from others.
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        // The shell's own kill: there may be no program of that name. If it fails the server merely stays awake.
        let script = format!("kill {signal} {}", self.pid());
        let _ = Command::new("sh").arg("-c").arg(script).stdin(Stdio::null()).stderr(Stdio::null()).status();
    }

    /// The end of what it printed, for an error message.
    pub fn log_tail(&self) -> String {
        let text = fs::read(self.folder.join("log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(5)..].join("\n  ");
        if tail.is_empty() { String::new() } else { format!("; it printed:\n  {tail}") }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // SIGKILL reaches stopped processes as well. Nothing of a benchmark's data is worth a clean shutdown.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Whether the server answers its first request. `Ok(false)`: not yet (a server that loads says so).
fn answers(mut stream: impl Read + Write, protocol: Protocol) -> std::io::Result<bool> {
    let request: &[u8] = match protocol {
        Protocol::Resp => b"*1\r\n$4\r\nPING\r\n",
        Protocol::Http => b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
    };
    stream.write_all(request)?;
    let mut reply = [0; 64];
    let count = stream.read(&mut reply)?;
    Ok(count > 0 && !reply.starts_with(b"-LOADING"))
}

fn fresh_folder() -> std::io::Result<PathBuf> {
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
