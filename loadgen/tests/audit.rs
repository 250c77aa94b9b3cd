//! `loadgen audit` against servers that keep what they acknowledge, and against liars of every kind.
//!
//! redis-server is the honest one with `appendfsync always` and the forgetful one without a log; where it is not
//! installed its tests are counted as skipped, loudly. The liars are this program itself, started as `helper-server`.
//! A runner of its own stands in for the standard one, which knows no third outcome beside passed and failed.

#[path = "../../tests/src/runner.rs"]
#[allow(dead_code, unused_imports, reason = "its own tests are run where it lives")]
mod runner;
mod schema;

use runner::{Skipped, Test};
use serde_json::Value;
use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const TESTS: &[Test] = &[
    ("redis_with_its_log_flushed_loses_nothing", redis_with_its_log_flushed_loses_nothing),
    ("redis_without_a_log_loses", redis_without_a_log_loses),
    ("millrace_without_durability_loses", millrace_without_durability_loses),
    ("millrace_with_durability_loses_nothing", millrace_with_durability_loses_nothing),
    ("millrace_with_the_encrypted_journal_loses_nothing", millrace_with_the_encrypted_journal_loses_nothing),
    ("an_honest_server_passes_and_the_report_adds_up", an_honest_server_passes_and_the_report_adds_up),
    ("the_same_seed_kills_at_the_same_moments", the_same_seed_kills_at_the_same_moments),
    ("a_forgetful_server_has_lost", a_forgetful_server_has_lost),
    ("an_inventive_server_has_phantoms", an_inventive_server_has_phantoms),
    ("a_log_with_holes_is_found", a_log_with_holes_is_found),
    ("lost_expiries_are_found", lost_expiries_are_found),
    ("what_a_reader_was_shown_must_survive", what_a_reader_was_shown_must_survive),
    ("wrong_replies_are_found", wrong_replies_are_found),
    ("refused_writes_may_be_there_or_not", refused_writes_may_be_there_or_not),
    ("somebody_else_may_restart_the_server", somebody_else_may_restart_the_server),
    ("a_server_that_does_not_come_back_is_a_failure", a_server_that_does_not_come_back_is_a_failure),
    ("a_server_that_falls_silent_is_a_failure", a_server_that_falls_silent_is_a_failure),
    ("ctrl_c_writes_what_was_found", ctrl_c_writes_what_was_found),
    ("wrong_usage_is_exit_code_2", wrong_usage_is_exit_code_2),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [first, port, log, mode] = &arguments[..]
        && first == "helper-server"
    {
        return Helper::serve(port, log, mode);
    }
    runner::main(TESTS)
}

// ── running the program ──

struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
    /// Null if none was written.
    report: Value,
}

impl Ran {
    fn total(&self, name: &str) -> u64 {
        let total = &self.report["totals"][name];
        total
            .as_u64()
            .unwrap_or_else(|| panic!("no {name} in {}\n{}{}", self.report, self.stdout, self.stderr))
    }

    fn kinds(&self) -> Vec<&str> {
        let findings = self.report["findings"].as_array().expect("a list");
        findings.iter().map(|finding| finding["kind"].as_str().expect("text")).collect()
    }

    #[track_caller]
    fn passed(&self) {
        assert_eq!(self.code, Some(0), "{}\n{}", self.stdout, self.stderr);
        assert_eq!((self.total("lost"), self.total("phantom"), self.total("wrong_replies")), (0, 0, 0));
        assert!(self.report["incomplete"].is_null() && self.kinds().is_empty());
        assert!(self.stdout.contains("nothing acknowledged was lost"), "{}", self.stdout);
    }

    #[track_caller]
    fn failed_with(&self, kind: &str) {
        assert_eq!(self.code, Some(1), "{}\n{}", self.stdout, self.stderr);
        assert!(
            self.kinds().contains(&kind),
            "no {kind} among the findings\n{}\n{}",
            self.stdout,
            self.stderr
        );
        assert!(
            self.stdout.contains("FAILED") && self.stdout.contains(&kind.replace('_', " ")),
            "{}",
            self.stdout
        );
    }
}

fn loadgen(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadgen"));
    command.args(arguments).stdin(Stdio::null());
    command
}

fn scratch() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let folder =
        PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("audit-{}-{number}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("a folder");
    folder
}

fn ran(output: Output, json: &Path) -> Ran {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("the program prints text");
    let (stdout, stderr) = (text(output.stdout), text(output.stderr));
    let report =
        fs::read(json).map_or(Value::Null, |text| serde_json::from_slice(&text).expect("valid JSON"));
    if !report.is_null() {
        schema::keeps_to("audit", &report);
    }
    // What a failed audit keeps for its user nobody needs after a test.
    if let Some(folder) = stdout.lines().find_map(|line| line.trim().strip_prefix("kept ")) {
        let _ = fs::remove_dir_all(folder.trim());
    }
    let _ = fs::remove_dir_all(json.parent().expect("a folder"));
    Ran { code: output.status.code(), stdout, stderr, report }
}

/// A small `loadgen audit` with these flags, to its end.
fn audit(flags: &[&str]) -> Ran {
    let json = scratch().join("report.json");
    let mut command = loadgen(&["audit"]);
    for (flag, value) in [("--clients", "8"), ("--keys", "12"), ("--acks", "600")] {
        if !flags.contains(&flag) {
            command.args([flag, value]);
        }
    }
    command.args(flags).arg("--json").arg(&json);
    ran(command.output().expect("the program starts"), &json)
}

fn helper(mode: &str) -> String {
    let program = std::env::current_exe().expect("this program");
    format!("\"{}\" helper-server 0 {{dir}}/log {mode}", program.display())
}

fn audit_helper(mode: &str, flags: &[&str]) -> Ran {
    audit(&[&["--start", &helper(mode)], flags].concat())
}

fn redis(flags: &str) -> Result<String, Skipped> {
    let version = Command::new("redis-server").arg("--version").stdin(Stdio::null()).output();
    match version {
        Ok(output) if output.status.success() => {
            Ok(format!("redis-server --bind 127.0.0.1 --port {{port}} --dir {{dir}} --save '' {flags}"))
        }
        _ => Err(Skipped("redis-server is not installed (apt-get install redis-server)".into())),
    }
}

/// The server of this workspace, built in the profile of this test, or `MILLRACE_BIN`.
fn millrace() -> PathBuf {
    if let Some(path) = std::env::var_os("MILLRACE_BIN") {
        return path.into();
    }
    let folder = Path::new(env!("CARGO_BIN_EXE_loadgen")).parent().expect("the target directory");
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    // As it was built before, or cargo would build it anew.
    let features: &[&str] = if cfg!(feature = "sqlcipher") { &["--features", "sqlcipher"] } else { &[] };
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--package", "reactor", "--bin", "millrace", "--profile", profile])
        .args(features)
        .arg("--manifest-path")
        .arg(manifest)
        .arg("--target-dir")
        .arg(folder.parent().expect("the profile lies in it"))
        .status();
    assert!(
        built.expect("cargo runs").success(),
        "building millrace failed; MILLRACE_BIN names another binary"
    );
    folder.join("millrace")
}

// ── the tests ──

fn redis_with_its_log_flushed_loses_nothing() -> Result<(), Skipped> {
    let ran = audit(&["--start", &redis("--appendonly yes --appendfsync always")?, "--cycles", "12"]);
    ran.passed();
    assert_eq!(ran.total("cycles"), 12);
    assert!(ran.total("acknowledged") > 2_000 && ran.total("unknown") > 0, "{}", ran.stdout);
    assert_eq!(ran.total("verified"), 12 * 8 * 12);
    Ok(())
}

fn redis_without_a_log_loses() -> Result<(), Skipped> {
    let ran = audit(&["--start", &redis("--appendonly no")?, "--cycles", "2"]);
    ran.failed_with("LOST");
    assert_eq!((ran.total("phantom"), ran.total("wrong_replies")), (0, 0), "{}", ran.stdout);
    Ok(())
}

fn millrace_without_durability_loses() -> Result<(), Skipped> {
    let program = millrace();
    for io in ["io_uring", "epoll"] {
        let line = format!(
            "\"{}\" --bind 127.0.0.1 --port 0 --http-port 0 --dir {{dir}} --durability off --io {io}",
            program.display()
        );
        // Half of the clients over HTTP: what they are answered must agree with what they asked, too.
        let ran = audit(&["--start", &line, "--http", "ready", "--cycles", "3", "--acks", "3000"]);
        ran.failed_with("LOST");
        assert_eq!((ran.total("phantom"), ran.total("wrong_replies")), (0, 0), "{io}: {}", ran.stdout);
        assert_eq!((ran.total("cycles"), ran.total("refused")), (3, 0), "{io}: {}", ran.stdout);
    }
    Ok(())
}

/// Fifty SIGKILLs, over both drivers, one shard and two, RESP and HTTP.
fn millrace_with_durability_loses_nothing() -> Result<(), Skipped> {
    loses_nothing("")
}

/// And the same fifty for the other journal.
fn millrace_with_the_encrypted_journal_loses_nothing() -> Result<(), Skipped> {
    if !cfg!(feature = "sqlcipher") {
        return Err(Skipped("built without the encrypted journal (--features sqlcipher)".into()));
    }
    let folder = scratch();
    let key = folder.join("key");
    fs::write(&key, "a passphrase that nobody guesses\n").expect("a key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("it is ours");
    // Little is prepared, so that pages go to the database all the time.
    let flags = "--journal sqlcipher --log-segment-size 4mb --journal-key-file";
    loses_nothing(&format!("{flags} \"{}\"", key.display()))?;
    let _ = fs::remove_dir_all(folder);
    Ok(())
}

fn loses_nothing(flags: &str) -> Result<(), Skipped> {
    let program = millrace();
    for (io, shards, cycles) in
        [("io_uring", "1", "15"), ("io_uring", "2", "10"), ("epoll", "1", "15"), ("epoll", "2", "10")]
    {
        let line = format!(
            "\"{}\" --bind 127.0.0.1 --port 0 --http-port 0 --dir {{dir}} --durability always --io {io} --shards {shards} \
             {flags}",
            program.display()
        );
        let ran = audit(&["--start", &line, "--http", "ready", "--cycles", cycles, "--acks", "2000"]);
        ran.passed();
        assert_eq!((ran.total("lost"), ran.total("phantom"), ran.total("wrong_replies")), (0, 0, 0));
    }
    Ok(())
}

fn an_honest_server_passes_and_the_report_adds_up() -> Result<(), Skipped> {
    for signal in ["SIGKILL", "TERM"] {
        let ran = audit_helper("honest", &["--cycles", "6", "--kill", signal, "--seed", "7"]);
        ran.passed();
        let cycles = ran.report["cycles"].as_array().expect("a list");
        assert_eq!(cycles.len(), 6);
        for name in ["acknowledged", "unknown", "verified", "shown"] {
            let sum: u64 = cycles.iter().map(|cycle| cycle[name].as_u64().expect("a number")).sum();
            assert_eq!(sum, ran.total(name), "{name}");
            assert!(sum > 0, "{name}");
        }
        for cycle in cycles {
            let number = |name: &str| cycle[name].as_u64().unwrap_or_else(|| panic!("no {name} in {cycle}"));
            // It was killed at that moment; what others were told in it came on top.
            assert!(number("acknowledged") >= number("kill_at"), "{cycle}");
            assert!(cycle["recovery_ms"].as_f64() > Some(0.0), "{cycle}");
        }
        assert!(ran.stderr.contains("cycle 6/6"), "no terminal: a line for each cycle, {}", ran.stderr);
    }
    Ok(())
}

fn the_same_seed_kills_at_the_same_moments() -> Result<(), Skipped> {
    let moments = |seed: &str| -> Vec<u64> {
        let ran = audit_helper("honest", &["--cycles", "3", "--seed", seed]);
        ran.passed();
        let cycles = ran.report["cycles"].as_array().expect("a list").clone();
        cycles.iter().map(|cycle| cycle["kill_at"].as_u64().expect("a number")).collect()
    };
    assert_eq!(moments("11"), moments("11"));
    assert_ne!(moments("11"), moments("12"));
    Ok(())
}

fn a_forgetful_server_has_lost() -> Result<(), Skipped> {
    let ran = audit_helper("forgetful", &["--cycles", "3"]);
    ran.failed_with("LOST");
    let finding = &ran.report["findings"][0];
    assert!(finding["key"].as_str().is_some_and(|key| key.starts_with("audit:")), "{finding}");
    assert!(finding["expected"].as_array().is_some_and(|expected| !expected.is_empty()), "{finding}");
    assert!(finding["found"].is_string() && finding["cycle"].as_u64() >= Some(1), "{finding}");
    assert_eq!(ran.total("cycles"), 3, "a loss does not end an audit");
    Ok(())
}

fn an_inventive_server_has_phantoms() -> Result<(), Skipped> {
    let ran = audit_helper("inventive", &["--cycles", "2"]);
    ran.failed_with("PHANTOM");
    assert_eq!(ran.total("lost"), 0, "{}", ran.stdout);
    Ok(())
}

fn a_log_with_holes_is_found() -> Result<(), Skipped> {
    let ran = audit_helper("holes", &["--cycles", "4", "--acks", "1500"]);
    assert_eq!(ran.code, Some(1), "{}", ran.stdout);
    // Without an append in the middle a value is there that never was; without the last one it is an old value.
    assert!(ran.total("lost") > 0 && ran.total("phantom") > 0, "{}", ran.stdout);
    Ok(())
}

fn lost_expiries_are_found() -> Result<(), Skipped> {
    let ran = audit_helper("timeless", &["--cycles", "2"]);
    ran.failed_with("LOST");
    assert_eq!(ran.total("phantom"), 0, "{}", ran.stdout);
    let findings = ran.report["findings"].as_array().expect("a list");
    let told = |finding: &Value| finding["expected"].to_string().contains("until 4000000");
    assert!(findings.iter().all(told), "{findings:?}");
    Ok(())
}

fn what_a_reader_was_shown_must_survive() -> Result<(), Skipped> {
    let flags = ["--cycles", "10", "--acks", "300", "--pipeline", "1"];
    audit_helper("revealing", &[&flags[..], &["--readers", "0"]].concat()).passed();
    let ran = audit_helper("revealing", &[&flags[..], &["--readers", "8"]].concat());
    ran.failed_with("LOST");
    Ok(())
}

fn wrong_replies_are_found() -> Result<(), Skipped> {
    let ran = audit_helper("miscounting", &["--cycles", "2"]);
    ran.failed_with("WRONG_REPLY");
    assert_eq!((ran.total("lost"), ran.total("phantom")), (0, 0), "{}", ran.stdout);
    Ok(())
}

fn refused_writes_may_be_there_or_not() -> Result<(), Skipped> {
    // Every tenth write is refused; half of those are carried out all the same.
    let ran = audit_helper("moody", &["--cycles", "4", "--acks", "200"]);
    ran.passed();
    assert!(ran.total("refused") > 20, "{}", ran.stdout);
    assert!(ran.stdout.contains("MISCONF not in the mood"), "{}", ran.stdout);
    // One that refuses everything cannot be audited, and is not waited for.
    let began = Instant::now();
    let ran = audit_helper("sulking", &["--cycles", "2"]);
    assert_eq!(ran.code, Some(1), "{}", ran.stdout);
    assert!(ran.stderr.contains("0 of") && ran.stderr.contains("MISCONF not in the mood"), "{}", ran.stderr);
    assert!(began.elapsed() < Duration::from_secs(30));
    Ok(())
}

fn somebody_else_may_restart_the_server() -> Result<(), Skipped> {
    let folder = scratch();
    let log = folder.join("log");
    let port =
        TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
    let start = || -> Child {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["helper-server", &port.to_string()]).arg(&log).arg("honest");
        command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("it starts")
    };
    let json = scratch().join("report.json");
    let target = format!("127.0.0.1:{port}");
    let mut command = loadgen(&["audit", "--target", &target, "--cycles", "3", "--json"]);
    command.arg(&json).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().expect("the program starts");
    let mut server = start();
    for _ in 0..3 {
        // The log grows when clients write.
        let size = || fs::metadata(&log).map_or(0, |meta| meta.len());
        let before = size();
        wait_until(|| size() > before + 20_000);
        server.kill().expect("it lives");
        server.wait().expect("it ends");
        server = start();
    }
    let ran = ran(child.wait_with_output().expect("it ends"), &json);
    server.kill().expect("it lives");
    server.wait().expect("it ends");
    let _ = fs::remove_dir_all(folder);
    ran.passed();
    assert!(ran.total("unknown") > 0 && ran.stdout.contains("killed by somebody else"), "{}", ran.stdout);
    assert!(ran.report["signal"].is_null() && ran.report["cycles"][0]["kill_at"].is_null());
    Ok(())
}

fn wait_until(mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < end, "it does not come");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn a_server_that_does_not_come_back_is_a_failure() -> Result<(), Skipped> {
    let ran = audit_helper("once", &["--cycles", "3"]);
    assert_eq!((ran.code, ran.total("cycles")), (Some(1), 0), "{}", ran.stdout);
    for expected in ["after the kill of cycle 1", "ended before it served", "I serve once only"] {
        assert!(ran.stderr.contains(expected), "{expected} in\n{}", ran.stderr);
    }
    // One that is not there at all, and one that says nothing.
    let ran = audit(&["--start", "no-such-program-anywhere", "--cycles", "1"]);
    assert!(ran.code == Some(1) && ran.stderr.contains("cannot start"), "{}", ran.stderr);
    let ran = audit(&["--start", "sleep 100", "--cycles", "1", "--patience", "300ms"]);
    assert!(ran.code == Some(1) && ran.stderr.contains("--target"), "{}", ran.stderr);
    let ran = audit(&["--target", "127.0.0.1:1", "--cycles", "1", "--patience", "300ms"]);
    assert!(ran.code == Some(1) && ran.stderr.contains("does not serve within 0.3 s"), "{}", ran.stderr);
    Ok(())
}

fn a_server_that_falls_silent_is_a_failure() -> Result<(), Skipped> {
    let ran = audit_helper("silent", &["--cycles", "2", "--acks", "100000", "--timeout", "500ms"]);
    assert_eq!(ran.code, Some(1), "{}", ran.stdout);
    assert!(ran.stderr.contains("does not answer within --timeout"), "{}", ran.stderr);
    let ran = audit_helper("suicidal", &["--cycles", "2", "--acks", "100000"]);
    assert_eq!(ran.code, Some(1), "{}", ran.stdout);
    assert!(ran.stderr.contains("the server ended by itself"), "{}", ran.stderr);
    Ok(())
}

fn ctrl_c_writes_what_was_found() -> Result<(), Skipped> {
    let json = scratch().join("report.json");
    let mut command = loadgen(&["audit", "--cycles", "100000", "--acks", "100", "--clients", "4", "--start"]);
    command.arg(helper("honest")).arg("--json").arg(&json).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    let mut lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
    let second = lines.find(|line| line.as_ref().is_ok_and(|line| line.starts_with("cycle 2/")));
    second.expect("it goes on").expect("its output is text");
    let kill = Command::new("sh").arg("-c").arg(format!("kill -INT {}", child.id())).status();
    assert!(kill.expect("a shell").success());
    let stderr: Vec<String> = lines.map_while(Result::ok).collect();
    let ran = ran(child.wait_with_output().expect("it ends"), &json);
    assert_eq!(ran.code, Some(1), "{}", ran.stdout);
    assert!(stderr.iter().any(|line| line.contains("interrupted")), "{stderr:?}");
    assert!(ran.report["incomplete"].is_string() && ran.total("cycles") >= 2, "{}", ran.report);
    Ok(())
}

fn wrong_usage_is_exit_code_2() -> Result<(), Skipped> {
    for flags in [
        &[][..],
        &["--target", "nonsense:x:y"],
        &["--target", "127.0.0.1:1", "--cycles", "0"],
        &["--target", "127.0.0.1:1", "--kill", "SIGKILL"],
        &["--start", "server", "--kill", "SIGSTOP"],
        &["--start", "server 'open"],
        &["--start", "server", "--clients", "0"],
        &["--start", "server", "--no-such-flag"],
    ] {
        let ran = audit(flags);
        assert_eq!(ran.code, Some(2), "{flags:?}: {}", ran.stderr);
        assert!(ran.stderr.contains("error:"), "{flags:?}: {}", ran.stderr);
    }
    Ok(())
}

// ── the servers in this program ──

#[derive(Clone)]
struct Held {
    value: Vec<u8>,
    ends: Option<u64>,
}

#[derive(Default)]
struct Data {
    map: HashMap<Vec<u8>, Held>,
    /// What the file will get.
    unwritten: Vec<u8>,
    /// Writes in it.
    unwritten_count: u64,
}

/// A server with a log, honest or not. A write(2) survives the death of its process, so it need not flush.
struct Helper {
    mode: String,
    data: Mutex<Data>,
    writes: AtomicU64,
    file: Mutex<File>,
}

impl Helper {
    fn serve(port: &str, log: &str, mode: &str) -> ExitCode {
        let old = fs::read(log).unwrap_or_default();
        if mode == "once" && Path::new(log).exists() {
            eprintln!("I serve once only");
            return ExitCode::FAILURE;
        }
        let file = OpenOptions::new().create(true).append(true).open(log).expect("a log");
        let helper = Helper {
            mode: mode.into(),
            data: Mutex::default(),
            writes: AtomicU64::new(0),
            file: Mutex::new(file),
        };
        let mut reader = BufReader::new(&old[..]);
        while let Some(request) = read_request(&mut reader) {
            apply(&mut helper.data.lock().expect("no panic").map, &request);
        }
        if mode == "inventive" {
            let mut data = helper.data.lock().expect("no panic");
            for held in data.map.values_mut().filter(|held| held.value.contains(&b';')) {
                held.value[1] ^= 0x55;
            }
        }
        let listener = TcpListener::bind(format!("127.0.0.1:{port}")).expect("a port");
        println!("ready resp={}", listener.local_addr().expect("its address"));
        std::thread::scope(|scope| {
            let helper = &helper;
            while let Ok((stream, _)) = listener.accept() {
                scope.spawn(move || helper.serve_one(stream));
            }
        });
        ExitCode::SUCCESS
    }

    fn serve_one(&self, mut stream: TcpStream) -> Option<()> {
        stream.set_nodelay(true).ok()?;
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        loop {
            let request = read_request(&mut reader)?;
            let reply = self.answer(&request);
            stream.write_all(&reply).ok()?;
        }
    }

    fn answer(&self, request: &[Vec<u8>]) -> Vec<u8> {
        let name = &request[0][..];
        let held = |key: &[u8]| self.data.lock().expect("no panic").map.get(key).cloned();
        match name {
            b"PING" => return b"+PONG\r\n".to_vec(),
            b"GET" => {
                let held = held(&request[1]);
                return held.map_or(b"$-1\r\n".to_vec(), |held| bulk(&held.value));
            }
            b"PEXPIRETIME" => {
                let number = held(&request[1]).map_or(-2, |held| held.ends.map_or(-1, |ends| ends as i64));
                return format!(":{number}\r\n").into_bytes();
            }
            // It changes nothing, and every audit begins with many of them.
            b"DEL" if held(&request[1]).is_none() => return b":0\r\n".to_vec(),
            _ => {}
        }
        self.write(request)
    }

    fn write(&self, request: &[Vec<u8>]) -> Vec<u8> {
        let number = self.writes.fetch_add(1, Ordering::SeqCst);
        let mode = &self.mode[..];
        let is_refused = mode == "sulking" || mode == "moody" && number % 10 == 9;
        if is_refused && (mode == "sulking" || number % 20 == 9) {
            return b"-MISCONF not in the mood\r\n".to_vec();
        }
        if mode == "silent" && number > 200 {
            park();
        }
        if mode == "suicidal" && number == 200 {
            std::process::exit(3);
        }
        let mut data = self.data.lock().expect("no panic");
        let mut reply = apply(&mut data.map, request);
        // Every reader sees it; it is neither written nor acknowledged.
        let is_odd =
            |key: &[u8]| key.split(|&byte| byte == b':').nth(1).is_some_and(|number| number[0] % 2 == 1);
        if mode == "revealing" && number > 50 && is_odd(&request[1]) {
            drop(data);
            park();
        }
        let logged = match mode {
            "timeless" => &request[..request.len().min(3)],
            _ => request,
        };
        if mode != "holes" || number % 12 != 11 {
            data.unwritten_count += 1;
            let bytes = encode(logged);
            data.unwritten.extend_from_slice(&bytes);
        }
        match mode {
            // Acknowledged long before it is written.
            "forgetful" if data.unwritten_count < 64 => {}
            _ => {
                let bytes = std::mem::take(&mut data.unwritten);
                self.file.lock().expect("no panic").write_all(&bytes).expect("the log takes it");
                data.unwritten_count = 0;
            }
        }
        if mode == "miscounting" && number % 100 == 99 && reply.starts_with(b":") {
            reply = b":77777\r\n".to_vec();
        }
        if is_refused { b"-MISCONF not in the mood\r\n".to_vec() } else { reply }
    }
}

fn park() -> ! {
    loop {
        std::thread::park();
    }
}

fn apply(map: &mut HashMap<Vec<u8>, Held>, request: &[Vec<u8>]) -> Vec<u8> {
    let number =
        |bytes: &[u8]| -> i64 { std::str::from_utf8(bytes).expect("text").parse().expect("a number") };
    let integer = |number: i64| format!(":{number}\r\n").into_bytes();
    match (&request[0][..], request) {
        (b"SET", [_, key, value, options @ ..]) => {
            let ends = options.get(1).map(|ends| number(ends) as u64);
            map.insert(key.clone(), Held { value: value.clone(), ends });
            b"+OK\r\n".to_vec()
        }
        (b"DEL", [_, key]) => integer(i64::from(map.remove(key).is_some())),
        (b"INCRBY", [_, key, step]) => {
            let held = map.entry(key.clone()).or_insert(Held { value: b"0".to_vec(), ends: None });
            let sum = number(&held.value) + number(step);
            held.value = sum.to_string().into_bytes();
            integer(sum)
        }
        (b"APPEND", [_, key, tail]) => {
            let held = map.entry(key.clone()).or_insert(Held { value: Vec::new(), ends: None });
            held.value.extend_from_slice(tail);
            integer(held.value.len() as i64)
        }
        _ => b"-ERR unknown command\r\n".to_vec(),
    }
}

fn bulk(bytes: &[u8]) -> Vec<u8> {
    [format!("${}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

fn encode(request: &[Vec<u8>]) -> Vec<u8> {
    let words = request.iter().flat_map(|word| bulk(word));
    format!("*{}\r\n", request.len()).into_bytes().into_iter().chain(words).collect()
}

fn read_request(reader: &mut impl BufRead) -> Option<Vec<Vec<u8>>> {
    let line = |reader: &mut dyn BufRead, kind: char| -> Option<usize> {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        line.trim_end().strip_prefix(kind)?.parse().ok()
    };
    let count = line(reader, '*')?;
    let mut words = Vec::new();
    for _ in 0..count {
        let mut word = vec![0; line(reader, '$')? + 2];
        reader.read_exact(&mut word).ok()?;
        word.truncate(word.len() - 2);
        words.push(word);
    }
    Some(words)
}
