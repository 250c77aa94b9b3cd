//! Several shards in one process, as an operator meets them: who listens, who runs where, what it costs to be idle,
//! how all of them stop. What commands over several shards answer is tested elsewhere.

use reactor::Server;
use reactor::cpu::allowed_cores;
use socket2::{Domain, Socket, Type};
use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};
use store::config::Config;
use store::shards::Place;

/// Longer than anything here takes; reaching it is a failure.
const PATIENCE: Duration = Duration::from_secs(30);

const BINARY: &str = env!("CARGO_BIN_EXE_millrace");

/// The drivers this machine has.
fn drivers() -> &'static [&'static str] {
    match std::env::var_os("MILLRACE_WITHOUT_IO_URING") {
        None => &["io_uring", "epoll"],
        Some(_) => &["epoll"],
    }
}

/// A server that has said `ready`; killed with the value if it still runs.
struct Running {
    child: Child,
    ready: String,
    socket: PathBuf,
}

impl Running {
    fn start(driver: &str, shards: usize, arguments: &[&str]) -> Running {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let socket = std::env::temp_dir().join(format!("millrace-shards-{}-{number}", std::process::id()));
        let mut command = Command::new(BINARY);
        command.args([
            "--io",
            driver,
            "--shards",
            &shards.to_string(),
            "--http-port",
            "0",
            "--durability",
            "off",
            "--unixsocket",
        ]);
        command.arg(&socket);
        if !arguments.contains(&"--port") {
            command.args(["--port", "0"]);
        }
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut ready = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        let running = Running { child, ready: ready.trim_end().to_string(), socket };
        assert!(running.ready.starts_with("ready "), "{driver}, {shards} shards: {:?}", running.ready);
        running
    }

    fn field(&self, name: &str) -> &str {
        let value = self.ready.split(' ').find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
        value.unwrap_or_else(|| panic!("no {name} in: {}", self.ready))
    }

    fn address(&self) -> SocketAddr {
        self.field("resp").parse().unwrap()
    }

    fn client(&self) -> Client<TcpStream> {
        Client::over(TcpStream::connect(self.address()).unwrap())
    }

    fn unix_client(&self) -> Client<UnixStream> {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client { stream }
    }

    fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    fn ends_well(mut self) {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None => assert!(Instant::now() < deadline, "the server does not end"),
            }
            // The child's end cannot be waited for with a limit otherwise.
            std::thread::sleep(Duration::from_millis(2));
        };
        assert_eq!(status.code(), Some(0), "{status}");
        assert!(!self.socket.exists(), "the socket's file goes with the server");
    }

    fn stop(self) {
        self.signal("TERM");
        self.ends_well();
    }

    /// Name, state and core list of every thread.
    fn threads(&self) -> Vec<(String, char, String)> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let statuses = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
        let field = |status: &str, name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.trim().to_string()
        };
        statuses
            .map(|status| {
                let state = field(&status, "State:").chars().next().unwrap_or('?');
                (field(&status, "Name:"), state, field(&status, "Cpus_allowed_list:"))
            })
            .collect()
    }

    /// Ticks of CPU time, user and system, of the whole process (proc(5), stat: fields behind the name in brackets).
    fn ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    /// Waits until every thread waits, the helpers that make memory ready included.
    fn falls_asleep(&self) {
        let deadline = Instant::now() + PATIENCE;
        let mut quiet = 0;
        while quiet < 20 {
            quiet = if self.threads().iter().all(|(_, state, _)| *state == 'S') { quiet + 1 } else { 0 };
            assert!(Instant::now() < deadline, "never at rest: {:?}", self.threads());
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.socket);
    }
}

/// Just enough of RESP.
struct Client<S> {
    stream: S,
}

impl Client<TcpStream> {
    fn over(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Client { stream }
    }
}

impl<S: Read + Write> Client<S> {
    fn line(&mut self) -> String {
        let mut line = Vec::new();
        let mut byte = [0];
        while !line.ends_with(b"\r\n") {
            self.stream.read_exact(&mut byte).unwrap();
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap().trim_end().to_string()
    }

    fn ask(&mut self, command: &str) -> String {
        self.stream.write_all(format!("{command}\r\n").as_bytes()).unwrap();
        self.line()
    }

    fn bulk(&mut self, command: &str) -> String {
        let head = self.ask(command);
        assert!(head.starts_with('$'), "{command}: {head}");
        self.line()
    }

    fn ping(&mut self) {
        assert_eq!(self.ask("PING"), "+PONG");
    }

    /// The shard that has this connection: its clients are numbered in its own way.
    fn shard(&mut self, shards: usize) -> usize {
        let id: usize = self.ask("CLIENT ID")[1..].parse().unwrap();
        (id - 1) % shards
    }
}

/// A key of a shard.
fn key_of(shard: usize, shards: usize) -> String {
    let place = Place { index: 0, count: shards };
    (0..).map(|number| format!("key:{number}")).find(|key| place.shard_of(key.as_bytes()) == shard).unwrap()
}

fn run(arguments: &[&str]) -> Output {
    Command::new(BINARY).args(arguments).stdin(Stdio::null()).output().unwrap()
}

#[test]
fn any_number_of_shards_serves_as_one() {
    for driver in drivers() {
        for shards in [1, 2, 4] {
            let server = Running::start(driver, shards, &[]);
            assert_eq!((server.field("io"), server.field("shards")), (*driver, shards.to_string().as_str()));
            let names: HashSet<String> = server.threads().into_iter().map(|(name, ..)| name).collect();
            for shard in 0..4 {
                assert_eq!(names.contains(&format!("shard-{shard}")), shard < shards, "{names:?}");
            }
            let mut client = server.client();
            for number in 0..100 {
                assert_eq!(client.ask(&format!("SET key:{number} value:{number}")), "+OK");
            }
            let mut other = server.unix_client();
            for number in 0..100 {
                assert_eq!(other.bulk(&format!("GET key:{number}")), format!("value:{number}"));
            }
            let mut http = Client::over(TcpStream::connect(server.field("http")).unwrap());
            assert_eq!(http.ask("GET /healthz HTTP/1.1\r\nHost: localhost\r\n"), "HTTP/1.1 200 OK");
            server.stop();
        }
    }
}

#[test]
fn connections_are_dealt_to_all_shards() {
    const SHARDS: usize = 4;
    for driver in drivers() {
        let server = Running::start(driver, SHARDS, &[]);
        // The kernel deals by a hash of the addresses: among 128 none of four is missed, but once in 10^15.
        let mut clients: Vec<_> = (0..128).map(|_| server.client()).collect();
        let tcp: HashSet<usize> = clients.iter_mut().map(|client| client.shard(SHARDS)).collect();
        assert_eq!(tcp.len(), SHARDS, "{driver}: {tcp:?}");
        // In turn here, where they come one by one: whoever took one waits behind the others. On a busy machine a shard
        // that is not back in time misses its turn, so it may take a few more until each has had two.
        let mut clients: Vec<_> = Vec::new();
        let mut unix = [0; SHARDS];
        while unix.iter().any(|&count| count < 2) {
            assert!(clients.len() < 256, "{driver}: of 256 clients in a row each shard has {unix:?}");
            let mut client = server.unix_client();
            unix[client.shard(SHARDS)] += 1;
            clients.push(client);
        }
        server.stop();
    }
}

#[test]
fn shards_run_on_cores_of_their_own() {
    let cores = allowed_cores();
    if cores.len() < 2 {
        return println!("SKIPPED: one core, so no two shards can have one each");
    }
    let core_of = |server: &Running, shard: &str| {
        let threads = server.threads();
        threads.iter().find(|(name, ..)| name == shard).map(|(.., cores)| cores.clone()).unwrap()
    };
    let server = Running::start("epoll", 2, &[]);
    assert_eq!(core_of(&server, "shard-0"), cores[0].to_string());
    assert_eq!(core_of(&server, "shard-1"), cores[1].to_string());
    server.stop();
    let server = Running::start("epoll", 3, &["--pin", &format!("{},{}", cores[1], cores[0])]);
    assert_eq!(core_of(&server, "shard-0"), cores[1].to_string());
    assert_eq!(core_of(&server, "shard-1"), cores[0].to_string());
    assert_eq!(core_of(&server, "shard-2"), cores[1].to_string());
    server.stop();
}

#[test]
fn topology_prints_what_a_start_would_do() {
    let cores = allowed_cores();
    let output =
        run(&["topology", "--shards", "1", "--pin", &cores[0].to_string(), "--unixsocket", "/run/m"]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    for line in [
        "shards     1",
        "driver     io_uring, one ring for each shard",
        "listeners  resp 127.0.0.1:6379",
        "           http 127.0.0.1:8080",
        "           unix /run/m",
        "hop queue  1024 messages",
    ] {
        assert!(text.lines().any(|found| found.starts_with(line)), "{line:?} in:\n{text}");
    }
    let row = text.lines().last().unwrap().split_whitespace().collect::<Vec<_>>();
    assert_eq!((row[0], row[1]), ("0", cores[0].to_string().as_str()), "{text}");
    assert_eq!(row.last(), Some(&"0-16383"), "{text}");

    let output = run(&["topology", "--shards", "3", "--io", "epoll", "--port", "0"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("127.0.0.1:a free port, a socket for each shard (SO_REUSEPORT)"), "{text}");
    let slots: Vec<&str> =
        text.lines().rev().take(3).map(|row| row.split(' ').next_back().unwrap()).collect();
    assert_eq!(slots, ["10923-16383", "5462-10922", "0-5461"], "{text}");
    let warned = String::from_utf8(output.stderr).unwrap();
    assert_eq!(warned.contains("wait for each other"), cores.len() < 3, "{warned}");

    let output = run(&["topology", "--pin", "60000"]);
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("cannot pin to core 60000: this machine has no such core"), "{told}");
}

/// Two shards for one core work, and the operator hears what that costs.
#[test]
fn too_few_cores_are_a_warning() {
    let core = allowed_cores()[0].to_string();
    let output = run(&["topology", "--shards", "2", "--pin", &core]);
    assert!(output.status.success());
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.starts_with("millrace: warning: 2 shards on 1 core, all that pin names"), "{told}");
    for driver in drivers() {
        let server = Running::start(driver, 2, &["--pin", &core]);
        let mut client = server.client();
        assert_eq!(client.ask(&format!("MSET {} 1 {} 2", key_of(0, 2), key_of(1, 2))), "+OK");
        server.stop();
    }
}

/// SO_REUSEPORT lets in whoever has the same user and sets it too: not us, and nobody beside us.
#[test]
fn a_port_that_another_server_would_share_is_refused() {
    let stranger = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    stranger.set_reuse_port(true).unwrap();
    stranger.set_reuse_address(true).unwrap();
    stranger.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    stranger.listen(16).unwrap();
    let address = stranger.local_addr().unwrap().as_socket().unwrap();
    let refused = |address: SocketAddr| {
        let port = address.port().to_string();
        let output = run(&["--shards", "2", "--http", "no", "--durability", "off", "--port", &port]);
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(
            told.starts_with(&format!("millrace: cannot listen on {address}: the port is taken")),
            "{told}"
        );
    };
    refused(address);
    // Nor does a second server of ours join the first.
    let server = Running::start("epoll", 2, &[]);
    refused(server.address());
    server.client().ping();
    server.stop();
}

/// Shards that have nothing to do sleep: those of a server just started, and those that have hopped.
#[test]
fn an_idle_server_uses_no_cpu() {
    const IDLE: Duration = Duration::from_secs(1);
    for driver in drivers() {
        let server = Running::start(driver, 4, &[]);
        let mut clients: Vec<_> = (0..8).map(|_| server.client()).collect();
        for round in 0..2 {
            server.falls_asleep();
            let before = server.ticks();
            // Time that passes is what is measured here.
            std::thread::sleep(IDLE);
            let used = server.ticks() - before;
            assert!(used <= 2, "{driver}, round {round}: {used} ticks in {IDLE:?} without a request");
            for client in &mut clients {
                for number in 0..50 {
                    assert_eq!(client.ask(&format!("MSET a{number} 1 b{number} 2 c{number} 3")), "+OK");
                    assert_eq!(client.bulk(&format!("GET a{number}")), "1");
                }
            }
        }
        server.stop();
    }
}

/// All of them, from a signal and from a client of one of them, while others are in the middle of work.
#[test]
fn all_shards_stop_together_and_free_the_port() {
    for driver in drivers() {
        for way in ["TERM", "SHUTDOWN NOSAVE"] {
            let server = Running::start(driver, 4, &[]);
            let address = server.address();
            let stopping = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let begun: Vec<_> = (0..4)
                    .map(|_| {
                        let mut client = server.client();
                        let (give, take) = std::sync::mpsc::channel();
                        let stopping = &stopping;
                        scope.spawn(move || {
                            for number in 0.. {
                                let keys = (number % 100, number % 77, number % 55);
                                let command = format!("MSET x{} 1 y{} 2 z{} 3\r\n", keys.0, keys.1, keys.2);
                                let sent = client.stream.write_all(command.as_bytes());
                                let mut reply = [0; 5];
                                if sent.is_err() || client.stream.read_exact(&mut reply).is_err() {
                                    assert!(stopping.load(Ordering::SeqCst), "cut off without a stop");
                                    return;
                                }
                                if number == 20 {
                                    give.send(()).unwrap();
                                }
                            }
                        });
                        take
                    })
                    .collect();
                begun.iter().for_each(|begun| begun.recv_timeout(PATIENCE).unwrap());
                stopping.store(true, Ordering::SeqCst);
                match way {
                    "TERM" => server.signal("TERM"),
                    command => {
                        let mut client = server.client();
                        client.stream.write_all(format!("{command}\r\n").as_bytes()).unwrap();
                        assert_eq!(client.stream.read(&mut [0]).unwrap_or(0), 0, "SHUTDOWN has no reply");
                    }
                }
            });
            server.ends_well();
            TcpListener::bind(address).expect("the port is free at once");
        }
    }
}

#[test]
fn twenty_restarts_on_one_port() {
    for driver in drivers() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
        for round in 0..20 {
            let start = Instant::now();
            let server = Running::start(driver, 4, &["--port", &port]);
            assert!(start.elapsed() < Duration::from_secs(5), "start {round} took {:?}", start.elapsed());
            let mut clients: Vec<_> = (0..8).map(|_| server.client()).collect();
            clients.iter_mut().for_each(Client::ping);
            if round % 10 != 0 {
                clients.clear();
            }
            server.stop();
        }
    }
}

/// DEBUG SLEEP stops one shard: clients of another are answered, and what needs the sleeper is late, not lost.
#[test]
fn a_sleeping_shard_delays_only_what_needs_it() {
    const SLEEP: Duration = Duration::from_millis(1500);
    for driver in drivers() {
        let server = Running::start(driver, 2, &["--enable-debug-command", "yes"]);
        let mut clients: Vec<_> = (0..64).map(|_| server.client()).collect();
        let sleeper =
            clients.iter_mut().position(|client| client.shard(2) == 0).expect("one of 64 on shard 0");
        let mut sleeper = clients.swap_remove(sleeper);
        let awake = clients.iter_mut().position(|client| client.shard(2) == 1).expect("one of 64 on shard 1");
        let mut awake = clients.swap_remove(awake);
        let (near, far) = (key_of(1, 2), key_of(0, 2));
        let begun = Instant::now();
        sleeper.stream.write_all(format!("DEBUG SLEEP {}\r\n", SLEEP.as_secs_f64()).as_bytes()).unwrap();
        let mut answered = 0;
        while begun.elapsed() < SLEEP / 2 {
            awake.ping();
            assert_eq!(awake.ask(&format!("SET {near} {answered}")), "+OK");
            answered += 1;
        }
        assert!(
            begun.elapsed() < SLEEP,
            "a client of the shard that is awake waited for the one that sleeps"
        );
        assert!(answered > 1);
        assert_eq!(awake.ask(&format!("SET {far} late")), "+OK");
        assert_eq!(awake.ask(&format!("MSET {near} 1 {far} 2")), "+OK");
        assert!(begun.elapsed() >= SLEEP - Duration::from_millis(100), "{:?}", begun.elapsed());
        assert_eq!(sleeper.line(), "+OK");
        assert_eq!(sleeper.bulk(&format!("GET {near}")), "1");
        server.stop();
    }
}

#[test]
fn an_embedded_server_tells_the_time_of_each_shard() {
    let config =
        Config { port: 0, http_port: 0, shards: "3".into(), durability: "off".into(), ..Config::default() };
    let server = Server::start(config).unwrap();
    let times = server.shard_cpu_times();
    assert_eq!(times.len(), 3);
    assert!(times.iter().all(|&time| time > Duration::ZERO));
    assert!(server.cpu_time() >= times.iter().sum());
    assert!(server.ready_line().contains(" shards=3 "));
    let clock = server.cpu_clock();
    server.stop();
    server.join().unwrap();
    assert_eq!(clock.read(), clock.each().iter().sum());
}

/// The second port is taken when the first is open already: nobody is left behind, and the next try succeeds.
#[test]
fn a_start_that_fails_leaves_nothing_behind() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let threads = || fs::read_dir("/proc/self/task").unwrap().count();
    let config = |http_port| Config {
        port: 0,
        http_port,
        shards: "4".into(),
        durability: "off".into(),
        ..Config::default()
    };
    let before = threads();
    Server::start(config(port)).unwrap_err();
    let deadline = Instant::now() + PATIENCE;
    // Other tests of this process come and go: only that it falls back is sure.
    while threads() > before + 8 {
        assert!(Instant::now() < deadline, "threads stay behind: {}", threads());
        std::thread::yield_now();
    }
    drop(taken);
    Server::start(config(port)).unwrap();
}
