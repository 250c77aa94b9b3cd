//! The server's binary as an operator meets it: flags, files, messages, exit codes, signals, and the embedded
//! form. What clients and protocols get is tested elsewhere; here a PING is enough.

#[allow(dead_code, reason = "each suite uses its part")]
mod process;

use process::*;
use reactor::server::config::{Io, Settings};
use reactor::{Server, StartError};
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use store::config::Config;

#[test]
fn the_ready_line_tells_where_everything_listens() {
    let scratch = Scratch::new("ready");
    for driver in drivers() {
        let path = scratch.path("socket");
        let server = Running::start(&["--io", driver, "--unixsocket", &path]);
        assert_eq!(server.field("io"), Some(*driver));
        let cores = reactor::cpu::allowed_cores().len().to_string();
        assert_eq!(server.field("shards"), Some(cores.as_str()), "one for each core");
        assert_eq!(server.field("pid"), Some(server.child.id().to_string().as_str()));
        assert_eq!(server.field("unix"), Some(path.as_str()));
        assert_ne!(server.resp().port(), 0);
        let mut client = server.client();
        client.ping();
        assert_eq!(client.bulk("CONFIG GET io"), format!("io {driver}"));
        let info = client.bulk("INFO server");
        assert!(info.contains(&format!("\r\nprocess_id:{}\r\n", server.child.id())), "{info}");
        assert!(info.contains(&format!("\r\nmultiplexing_api:{driver}\r\n")), "{info}");
        assert_eq!(client.bulk("CONFIG GET port"), format!("port {}", server.resp().port()));
        Client::unix(&path).ping();
        let mut http = Client::tcp(server.field("http").unwrap().parse().unwrap());
        assert_eq!(http.ask("GET /healthz HTTP/1.1\r\nHost: localhost\r\n"), "HTTP/1.1 200 OK");
        server.stop();
        assert!(!Path::new(&path).exists(), "the socket's file goes with the server");
    }
}

#[test]
fn listeners_are_those_that_were_asked_for() {
    let scratch = Scratch::new("listeners");
    let server = Running::start(&[
        "--http",
        "no",
        "--durability",
        "off",
        "--bind",
        "127.0.0.1",
        "--bind",
        "-192.0.2.1",
    ]);
    assert_eq!(server.field("http"), None);
    server.client().ping();
    server.stop();
    // An address may be absent, but not every one.
    let told = refused(&["--bind", "-192.0.2.1"], 1);
    assert!(told.contains("nothing would listen"), "{told}");
    let path = scratch.path("only");
    let server = Running::start(&["--bind", "", "--unixsocket", &path]);
    assert_eq!((server.field("resp"), server.field("http")), (None, None));
    Client::unix(&path).ping();
    server.stop();
    // Both families on one port.
    let server = Running::start(&["--bind", "127.0.0.1 -::1", "--http", "no", "--durability", "off"]);
    let addresses: Vec<SocketAddr> =
        server.field("resp").unwrap().split(',').map(|address| address.parse().unwrap()).collect();
    for address in &addresses {
        assert_eq!(address.port(), addresses[0].port());
        Client::tcp(*address).ping();
    }
    server.stop();
}

/// A client that is still reading gets all of its reply, and the port is free when the process is gone.
#[test]
fn a_stop_drains_replies_and_frees_the_port() {
    const LENGTH: usize = 24 << 20;
    for driver in drivers() {
        for signal in ["TERM", "INT"] {
            let mut server = Running::start(&["--io", driver]);
            let mut client = server.client();
            assert_eq!(client.ask(&format!("SETRANGE big {} x", LENGTH - 1)), format!(":{LENGTH}"));
            assert_eq!(client.ask("GET big"), format!("${LENGTH}"));
            server.signal(signal);
            // From here on nobody new gets in.
            let deadline = Instant::now() + PATIENCE;
            while TcpStream::connect(server.resp()).is_ok() {
                assert!(Instant::now() < deadline, "the listener is still open");
            }
            let body = client.body(LENGTH);
            assert!(body.ends_with("\0x"));
            assert_eq!(client.0.read(&mut [0]).unwrap(), 0, "then the connection ends");
            assert_eq!(server.wait(PATIENCE).code(), Some(0));
            TcpListener::bind(server.resp()).expect("the port is free at once");
        }
    }
}

#[test]
fn a_stop_does_not_wait_for_ever_and_a_second_signal_does_not_wait_at_all() {
    for driver in drivers() {
        for signals in [1, 2] {
            let mut server = Running::start(&["--io", driver]);
            let mut client = server.client();
            client.ask("SETRANGE big 33554431 x");
            assert!(client.ask("GET big").starts_with('$'));
            let start = Instant::now();
            server.signal("TERM");
            if signals == 2 {
                while TcpStream::connect(server.resp()).is_ok() {
                    assert!(start.elapsed() < PATIENCE, "the listener is still open");
                }
                server.signal("TERM");
                assert_eq!(server.wait(PATIENCE).code(), Some(1));
                assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
            } else {
                assert_eq!(server.wait(PATIENCE).code(), Some(0));
                assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
            }
        }
    }
}

#[test]
fn shutdown_ends_the_process_with_code_0() {
    for driver in drivers() {
        let mut server = Running::start(&["--io", driver]);
        let mut client = server.client();
        let mut other = server.client();
        other.ping();
        client.0.write_all(b"SHUTDOWN NOSAVE\r\n").unwrap();
        assert_eq!(client.0.read(&mut [0]).unwrap(), 0);
        assert_eq!(other.0.read(&mut [0]).unwrap(), 0);
        assert_eq!(server.wait(PATIENCE).code(), Some(0));
    }
}

/// Rings are torn down by the kernel after the process is gone; a restart must not suffer from it.
#[test]
fn twenty_restarts_on_one_port() {
    for driver in drivers() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
        for round in 0..20 {
            let start = Instant::now();
            let arguments = ["--io", driver, "--port", &port, "--http", "no", "--durability", "off"];
            let server = Running::spawn(Command::new(BINARY).args(arguments));
            assert!(start.elapsed() < Duration::from_secs(5), "start {round} took {:?}", start.elapsed());
            let mut clients: Vec<_> = (0..5).map(|_| server.client()).collect();
            clients.iter_mut().for_each(Client::ping);
            // Mostly the clients leave first; a stop with clients may take them a moment of lingering.
            if round % 10 != 0 {
                clients.clear();
            }
            server.stop();
        }
    }
}

#[test]
fn a_killed_server_leaves_nothing_in_the_way() {
    let scratch = Scratch::new("killed");
    let path = scratch.path("socket");
    for driver in drivers() {
        let mut server = Running::start(&["--io", driver, "--unixsocket", &path]);
        let port = server.resp().port().to_string();
        Client::unix(&path).ping();
        server.client().ping();
        server.signal("KILL");
        server.wait(PATIENCE);
        assert!(Path::new(&path).exists());
        let arguments =
            ["--io", driver, "--port", &port, "--http", "no", "--durability", "off", "--unixsocket", &path];
        let server = Running::spawn(Command::new(BINARY).args(arguments));
        Client::unix(&path).ping();
        server.client().ping();
        server.stop();
    }
}

#[test]
fn wrong_usage_is_told_and_ends_with_code_2() {
    for (arguments, says) in [
        (&["--prot", "1"][..], "--port"),
        (&["--port", "70000"], "65535"),
        (&["--port", "many"], "--port"),
        (&["--io", "kqueue"], "io_uring, epoll"),
        (&["--shards", "0"], "0 shards would own no key"),
        (&["--shards", "129"], "more than the 128"),
        (&["--shards", "1", "--pin", "0,1"], "2 cores for 1 shard"),
        (&["--hop-queue", "0"], "--hop-queue"),
        (&["topology", "--shards", "0"], "0 shards"),
        (&["--durability", "sometimes"], "--durability"),
        (&["--pin", "first"], "pin"),
        (&["--bind", "localhost.example"], "is no IP address"),
        (&["--bind", ""], "nothing would listen"),
        (&["stray"], "stray"),
        (&["--config", "/no/such/file.toml"], "/no/such/file.toml"),
    ] {
        let text = refused(arguments, 2);
        assert!(text.starts_with("error: ") && text.contains(says), "{arguments:?}: {text}");
    }
}

#[test]
fn the_last_of_several_equal_flags_wins() {
    let output = run(&["--maxclients", "7", "--maxclients", "8", "--print-config"]);
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(printed.contains("maxclients = 8"), "{printed}");
}

#[test]
fn answers_are_printed_and_end_with_code_0() {
    let output = run(&["--version"]);
    assert!(output.status.success());
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        format!("millrace {}\n", env!("CARGO_PKG_VERSION"))
    );
    let help = String::from_utf8(run(&["--help"]).stdout).unwrap();
    for flag in ["--port", "--http-port", "--maxmemory-policy", "--config", "--print-config", "--io"] {
        assert!(help.contains(flag), "{flag}");
    }
}

#[test]
fn what_print_config_prints_is_what_a_server_serves_with() {
    let scratch = Scratch::new("print");
    let path = scratch.path("socket");
    let chosen = [
        "--port",
        "0",
        "--http",
        "no",
        "--durability",
        "off",
        "--maxclients",
        "77",
        "--unixsocket",
        &path,
        "--io",
        "epoll",
    ];
    let output = run(&[&chosen[..], &["--print-config"]].concat());
    assert!(output.status.success());
    let printed = String::from_utf8(output.stdout).unwrap();
    let file = scratch.file("millrace.toml", &printed);
    // The command line goes before the file.
    let arguments = ["--config", &file, "--maxmemory", "100mb"];
    let server = Running::spawn(Command::new(BINARY).args(arguments));
    let mut client = Client::unix(&path);
    assert_eq!(client.bulk("CONFIG GET maxclients"), "maxclients 77");
    assert_eq!(client.bulk("CONFIG GET maxmemory"), "maxmemory 104857600");
    assert_eq!((server.field("io"), server.field("http")), (Some("epoll"), None));
    server.stop();
}

#[test]
fn mistakes_in_a_file_are_named_with_file_and_line() {
    let scratch = Scratch::new("mistakes");
    for (text, says) in [
        ("port = 0\nmax_clients = 5\n", ":2: unknown setting \"max_clients\"; did you mean \"maxclients\"?"),
        ("# a comment\n\nmaxclients = \"few\"\n", ":3: invalid value for maxclients: "),
        ("port = \n", ":1: "),
    ] {
        let file = scratch.file("wrong.toml", text);
        let told = refused(&["--config", &file], 2);
        assert!(told.starts_with(&format!("error: {file}")) && told.contains(says), "{told}");
    }
}

#[test]
fn a_taken_port_is_told_with_its_holder() {
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = holder.local_addr().unwrap();
    for flag in ["--port", "--http-port"] {
        let other = if flag == "--port" { "--http-port" } else { "--port" };
        let told = refused(&[flag, &address.port().to_string(), other, "0"], 1);
        assert!(told.starts_with(&format!("millrace: cannot listen on {address}: ")), "{told}");
        assert!(
            told.contains(&format!("pid {}", std::process::id())) && told.contains("another port"),
            "{told}"
        );
    }
}

#[test]
fn a_living_unix_socket_and_a_file_are_not_touched() {
    let scratch = Scratch::new("living");
    let path = scratch.path("socket");
    let server = Running::start(&["--unixsocket", &path]);
    let told = refused(&["--port", "0", "--http", "no", "--durability", "off", "--unixsocket", &path], 1);
    assert!(told.contains("a living server answers there"), "{told}");
    Client::unix(&path).ping();
    server.stop();
    let file = scratch.file("data", "precious");
    let told = refused(&["--port", "0", "--http", "no", "--durability", "off", "--unixsocket", &file], 1);
    assert!(told.contains("is no socket"), "{told}");
    assert_eq!(fs::read(&file).unwrap(), b"precious");
}

#[test]
fn one_client_too_many_is_told_and_the_others_stay() {
    for driver in drivers() {
        let server = Running::start(&["--io", driver, "--maxclients", "3"]);
        let mut clients: Vec<_> = (0..3).map(|_| server.client()).collect();
        clients.iter_mut().for_each(Client::ping);
        for _ in 0..200 {
            let mut extra = server.client();
            assert_eq!(extra.line(), "-ERR max number of clients reached");
            assert_eq!(extra.0.read(&mut [0]).unwrap(), 0, "and the connection ends");
        }
        clients.iter_mut().for_each(Client::ping);
        drop(clients.pop());
        // The server hears of the leaving a moment later.
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut client = server.client();
            client.0.write_all(b"PING\r\n").unwrap();
            match client.line().as_str() {
                "+PONG" => break,
                refusal => assert_eq!(refusal, "-ERR max number of clients reached"),
            }
            assert!(Instant::now() < deadline, "the place is never free again");
        }
        server.stop();
    }
}

#[test]
fn shards_run_where_they_are_pinned() {
    let core = *reactor::cpu::allowed_cores().last().unwrap();
    for driver in drivers() {
        let server = Running::start(&["--io", driver, "--pin", &core.to_string()]);
        let tasks = fs::read_dir(format!("/proc/{}/task", server.child.id())).unwrap();
        let shard = tasks
            .map(|task| fs::read_to_string(task.unwrap().path().join("status")).unwrap())
            .find(|status| status.starts_with("Name:\tshard-0\n"))
            .expect("the shard's thread has its name");
        assert!(shard.contains(&format!("\nCpus_allowed_list:\t{core}\n")), "{shard}");
        server.stop();
    }
    let told = refused(&["--port", "0", "--http", "no", "--durability", "off", "--pin", "60000"], 1);
    assert!(told.contains("cannot pin to core 60000: this machine has no such core"), "{told}");
}

#[test]
fn too_few_descriptors_are_told() {
    let output = limited("ulimit -n 100")
        .args(["--port", "0", "--http", "no", "--durability", "off"])
        .output()
        .unwrap();
    let told = told(output, 1);
    assert!(told.contains("the limit on open files is 100") && told.contains("ulimit -n"), "{told}");

    let server = Running::spawn(limited("ulimit -n 1000").args([
        "--port",
        "0",
        "--http",
        "no",
        "--durability",
        "off",
    ]));
    let warning = server.messages.recv_timeout(PATIENCE).unwrap();
    assert!(warning.contains("maxclients is 840 instead of 10000"), "{warning}");
    assert_eq!(server.client().bulk("CONFIG GET maxclients"), "maxclients 840");
    server.stop();
}

/// io_uring cannot be set up: an error where it was asked for, a warning and epoll where it was not.
#[test]
fn too_little_locked_memory_is_told_or_done_without() {
    if drivers().len() == 1 {
        return; // there is no io_uring to be short of memory for
    }
    let none = || limited("ulimit -l 0");
    let told = told(
        none()
            .args(["--port", "0", "--http", "no", "--durability", "off", "--io", "io_uring"])
            .output()
            .unwrap(),
        1,
    );
    assert!(told.contains("the limit is 0 KiB") && told.contains("--io epoll"), "{told}");

    let server = Running::spawn(none().args(["--port", "0", "--http", "no", "--durability", "off"]));
    let warning = server.messages.recv_timeout(PATIENCE).unwrap();
    assert!(
        warning.contains("serving with epoll instead of io_uring") && warning.contains("ulimit -l"),
        "{warning}"
    );
    assert_eq!(server.field("io"), Some("epoll"));
    let mut client = server.client();
    assert_eq!(client.bulk("CONFIG GET io"), "io epoll");
    let info = client.bulk("INFO server");
    assert!(info.contains("multiplexing_api:epoll\r\n"), "{info}");
    server.stop();

    Running::spawn(none().args(["--port", "0", "--http", "no", "--durability", "off", "--io", "epoll"]))
        .stop();
}

/// The queue behind the ring: too small for its default size, it says so and does not fail silently.
#[test]
fn switches_of_the_ring_reach_it() {
    if drivers().len() == 1 {
        return;
    }
    for switch in [
        &["--uring-defer-taskrun", "no"][..],
        &["--uring-single-issuer", "no"],
        &["--uring-no-sqarray", "no"],
        &["--uring-registered-ring", "no"],
        &["--uring-multishot-accept", "no"],
        &["--uring-multishot-receive", "no"],
        &["--uring-provided-buffers", "no"],
        &["--uring-provided-buffers-count", "8", "--uring-provided-buffer-size", "256"],
        &["--uring-direct-descriptors", "yes"],
        &["--uring-min-wait-us", "50"],
    ] {
        let server = Running::start(&[&["--io", "io_uring"], switch].concat());
        let mut client = server.client();
        client.ping();
        let value = "v".repeat(5000);
        assert_eq!(client.ask(&format!("SET key {value}")), "+OK", "{switch:?}");
        assert_eq!(client.bulk("GET key"), value, "{switch:?}");
        let (name, text) = (switch[0].trim_start_matches("--"), switch[1]);
        assert_eq!(client.bulk(&format!("CONFIG GET {name}")), format!("{name} {text}"));
        server.stop();
    }
}

fn free_ports() -> Config {
    Config { port: 0, http_port: 0, durability: "off".into(), ..Config::default() }
}

#[test]
fn a_server_can_be_embedded() {
    for driver in drivers() {
        let config = Config { io: driver.to_string(), ..free_ports() };
        let one = Server::start(config.clone()).unwrap();
        let two = Server::start(config).unwrap();
        assert_eq!(one.io.to_string(), *driver);
        assert_ne!(one.resp, two.resp);
        for server in [&one, &two] {
            let mut client = Client::tcp(server.resp.unwrap());
            client.ping();
            assert!(TcpStream::connect(server.http.unwrap()).is_ok());
        }
        // They share nothing.
        Client::tcp(one.resp.unwrap()).ask("SET key value");
        assert_eq!(Client::tcp(two.resp.unwrap()).ask("EXISTS key"), ":0");
        let clock = one.cpu_clock();
        assert!(one.cpu_time() > Duration::ZERO);
        let (address, gone) = (one.resp.unwrap(), two.resp.unwrap());
        one.stop();
        one.join().unwrap();
        let used = clock.read();
        assert!(
            used > Duration::ZERO && clock.read() == used,
            "the time of a thread that ended stands still"
        );
        let refused = TcpStream::connect(address).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        Client::tcp(gone).ping();
        drop(two);
        assert!(TcpStream::connect(gone).is_err(), "dropping a server stops it");
    }
}

#[test]
fn what_prevents_an_embedded_start_is_returned() {
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = holder.local_addr().unwrap().port();
    let error = Server::start(Config { port, ..free_ports() }).unwrap_err();
    assert!(matches!(error, StartError::Listen(_)), "{error}");
    let error = Server::start(Config { pin: "60000".into(), ..free_ports() }).unwrap_err();
    assert!(matches!(error, StartError::Pin(_)), "{error}");
    let error = Server::start(Config { shards: "0".into(), ..free_ports() }).unwrap_err();
    assert!(matches!(error, StartError::Setting(_)), "{error}");
    let error = Server::start(Config { bind: "nowhere".into(), ..free_ports() }).unwrap_err();
    assert!(matches!(error, StartError::Setting(_)), "{error}");
    // A named driver is a demand, also from a program.
    let settings = Settings { config: Config { io: "epoll".into(), ..free_ports() }, io_chosen: true };
    assert_eq!(Server::start(settings).unwrap().io, Io::Epoll);
}

/// A supervisor that restarts a server with the same words must not throw away what was written since the first time.
#[test]
fn recovering_to_a_place_twice_is_refused() {
    let scratch = Scratch::new("recover-twice");
    let dir = scratch.path("data");
    let durable = |more: &[&str]| {
        let mut arguments = vec!["--http", "no", "--durability", "always", "--dir", &dir];
        arguments.extend_from_slice(more);
        arguments.iter().map(|text| text.to_string()).collect::<Vec<_>>()
    };
    let start = |more: &[&str]| {
        let arguments = durable(more);
        Running::start(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let server = start(&[]);
    let mut client = server.client();
    for number in 1..=5 {
        assert_eq!(client.ask(&format!("SET k{number} {number}")), "+OK");
    }
    server.stop();
    let server = start(&["--recover-to", "3"]);
    let mut client = server.client();
    assert_eq!(client.ask("DBSIZE"), ":3");
    assert_eq!(client.ask("SET new 1"), "+OK");
    server.stop();
    let again = durable(&["--port", "0", "--recover-to", "3"]);
    let told = refused(&again.iter().map(String::as_str).collect::<Vec<_>>(), 1);
    assert!(told.contains("the log was cut there already") && told.contains("LSN 4"), "{told}");
    let server = start(&[]);
    assert_eq!(server.client().bulk("GET new"), "1");
    server.stop();
}

#[test]
#[should_panic(expected = "it was to refuse")]
fn a_start_that_is_not_refused_is_no_endless_test() {
    let scratch = Scratch::new("endless");
    let dir = scratch.path("");
    run_within(
        &["--port", "0", "--http", "no", "--durability", "off", "--dir", &dir],
        Duration::from_millis(200),
    );
}
