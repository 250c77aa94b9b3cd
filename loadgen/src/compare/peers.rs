//! The servers under comparison: where their programs are, how they start, that they end.

use super::cases::{Case, Listener, TargetEntry, ToolOutput};
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
    /// Stop it while others are measured.
    pub freeze: bool,
    /// Another load generator that drives it, fields not filled in; empty: this one.
    pub tool: Vec<String>,
    /// Where that one says its throughput.
    #[serde(skip)]
    tool_output: ToolOutput,
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
            let mut programs = [entry.command.first(), entry.tool.first()].map(|name| match name {
                Some(name) => find_program(name, arguments).ok_or(name),
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
                version: version(entry, &program),
                listener: entry.listener,
                http_path: entry.http_path.clone(),
                fill: entry.fill,
                freeze: entry.freeze,
                tool: entry.tool.clone(),
                tool_output: entry.tool_output,
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

fn words(line: &str) -> Vec<String> {
    line.split_ascii_whitespace().map(|word| word.trim_matches('\'').to_string()).collect()
}

/// The targets that need no entry in a file.
fn builtin() -> Vec<TargetEntry> {
    let entry = |name: &str, listener: Listener, command: &str, version: &str| TargetEntry {
        name: name.into(),
        command: words(command),
        version: if version.is_empty() { vec![] } else { words(version) },
        listener,
        http_path: "/v1/keys/{key}".into(),
        fill: true,
        freeze: true,
        tool: Vec::new(),
        tool_output: ToolOutput::default(),
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
    ];
    let mut kevy = entry(
        "kevy",
        Listener::Resp,
        "kevy --bind 127.0.0.1 --port {port} --threads 1 --no-aof --dir {dir}",
        "kevy --version",
    );
    // 3.17.3 takes the EINTR that follows SIGCONT for a fatal error.
    kevy.freeze = false;
    let mut null =
        entry("null", Listener::Resp, "nullresp --port {port} --cpu {core} --reply-bytes {reply-bytes}", "");
    null.fill = false;
    let mut null_epoll = null.clone();
    null_epoll.name = "null-epoll".into();
    null_epoll.command.extend(["--mode".to_string(), "epoll".to_string()]);
    let mut by_redis_benchmark = null.clone();
    by_redis_benchmark.name = "null-by-redis-benchmark".into();
    by_redis_benchmark.tool = words(
        "redis-benchmark -h 127.0.0.1 -p {port} -c {connections} -P {pipeline} -n {requests} -r {keys} -d {value-size} \
         -t get --csv",
    );
    let mut by_memtier = null.clone();
    by_memtier.name = "null-by-memtier".into();
    by_memtier.tool = words(
        "memtier_benchmark -s 127.0.0.1 -p {port} -t 1 -c {connections} --pipeline {pipeline} --ratio {ratio} \
         --key-maximum {keys} -d {value-size} --test-time {seconds} --hide-histogram --json-out-file {dir}/out.json",
    );
    by_memtier.tool_output = ToolOutput::MemtierJson;
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
    list.extend([kevy, null, null_epoll, by_redis_benchmark, by_memtier, nginx]);
    list
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
    pub fn start(peer: &Peer, case: &Case, core: Option<usize>) -> Result<Running, String> {
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
            ("{reply-bytes}", reply_bytes(case).to_string()),
        ];
        let fill_in = |text: &str| {
            fields.iter().fold(text.to_string(), |text, (name, value)| text.replace(name, value))
        };
        for (name, contents) in &peer.files {
            fs::write(folder.join(name), fill_in(contents))
                .map_err(|error| format!("cannot write its {name}: {error}"))?;
        }
        let log = fs::File::create(folder.join("log"))
            .and_then(|log| Ok((log.try_clone()?, log)))
            .map_err(|error| format!("no log file for it: {error}"))?;
        let mut command = Command::new(&peer.program);
        command.args(peer.command[1..].iter().map(|word| fill_in(word)));
        command.stdin(Stdio::null()).stdout(log.0).stderr(log.1);
        let child = spawn_pinned(command, core)
            .map_err(|error| format!("cannot start {}: {error}", peer.program.display()))?;
        let localhost = |port: u16| Target::Tcp(SocketAddr::from(([127, 0, 0, 1], port)));
        let mut running = Running {
            child,
            folder,
            may_freeze: peer.freeze,
            fields: fields.clone(),
            address: match peer.listener {
                Listener::Resp => localhost(port),
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

    /// Lets another load generator, on `core`, drive the server; the requests a second it says it made.
    pub fn run_tool(
        &self,
        peer: &Peer,
        case: &Case,
        load: ToolLoad,
        core: Option<usize>,
    ) -> Result<f64, String> {
        let mut fields = self.fields.clone();
        fields.extend([
            ("{connections}", load.connections.to_string()),
            ("{pipeline}", case.pipeline.to_string()),
            ("{seconds}", load.seconds.ceil().to_string()),
            // redis-benchmark takes a number of requests: about as many as it makes in the time.
            ("{requests}", ((load.seconds * 60_000.0) as u64 * u64::from(case.pipeline.min(48))).to_string()),
            ("{keys}", case.keys.to_string()),
            ("{value-size}", case.value_size.to_string()),
            ("{ratio}", format!("{}:{}", case.sets, case.gets)),
        ]);
        let mut command = Command::new(&peer.tool_program);
        command.args(peer.tool[1..].iter().map(|word| fill_in(word, &fields)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let child = spawn_pinned(command, core)
            .map_err(|error| format!("cannot start {}: {error}", peer.tool_program.display()))?;
        let output = child.wait_with_output().map_err(|error| format!("{}: {error}", peer.tool[0]))?;
        if !output.status.success() {
            return Err(format!("{} ended with {}", peer.tool[0], output.status));
        }
        let throughput = match peer.tool_output {
            ToolOutput::RedisBenchmarkCsv => {
                redis_benchmark_throughput(&String::from_utf8_lossy(&output.stdout))
            }
            ToolOutput::MemtierJson => {
                memtier_throughput(&fs::read(self.folder.join("out.json")).unwrap_or_default())
            }
        };
        throughput.ok_or_else(|| format!("{} says no throughput where it was looked for", peer.tool[0]))
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
        if !self.may_freeze {
            return;
        }
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

/// How hard another load generator is to try.
#[derive(Clone, Copy, Debug)]
pub struct ToolLoad {
    /// Over how many connections.
    pub connections: usize,
    /// For how long.
    pub seconds: f64,
}

fn redis_benchmark_throughput(csv: &str) -> Option<f64> {
    csv.lines().last()?.split(',').nth(1)?.trim_matches('"').parse().ok()
}

fn memtier_throughput(json: &[u8]) -> Option<f64> {
    let report: serde_json::Value = serde_json::from_slice(json).ok()?;
    report.pointer("/ALL STATS/Totals/Ops~1sec")?.as_f64()
}

fn fill_in(text: &str, fields: &[(&'static str, String)]) -> String {
    fields.iter().fold(text.to_string(), |text, (name, value)| text.replace(name, value))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_tools_throughput_is_found() {
        let csv = "\"test\",\"rps\",\"avg_latency_ms\"\n\"GET\",\"81234.50\",\"0.301\"\n";
        assert_eq!(redis_benchmark_throughput(csv), Some(81_234.5));
        assert_eq!(redis_benchmark_throughput("ERROR"), None);
        let json = br#"{"ALL STATS": {"Totals": {"Ops/sec": 86000.25}}}"#;
        assert_eq!(memtier_throughput(json), Some(86_000.25));
        assert_eq!(memtier_throughput(b""), None);
    }

    #[test]
    fn builtin_targets_have_distinct_names_and_known_fields() {
        let list = builtin();
        for entry in &list {
            assert_eq!(list.iter().filter(|other| other.name == entry.name).count(), 1, "{}", entry.name);
            let known = [
                "port",
                "http-port",
                "socket",
                "dir",
                "core",
                "reply-bytes",
                "connections",
                "pipeline",
                "requests",
                "keys",
                "value-size",
                "ratio",
                "seconds",
            ];
            for word in entry.command.iter().chain(&entry.tool) {
                if let Some((_, rest)) = word.split_once('{') {
                    let field = rest.split('}').next().unwrap_or_default();
                    assert!(known.contains(&field), "{}: {word}", entry.name);
                }
            }
        }
    }
}
