//! Hostile and careless clients against the real server: whatever they do, memory stays bounded, nothing is left
//! behind, and nobody else's connection notices. Loopback only; every test is bounded in count and in time.

mod harness;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use harness::{Client, Random, Server};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// One test for each driver.
macro_rules! on_both_drivers {
    ($($name:ident),* $(,)?) => {
        mod io_uring { $(#[test] fn $name() { super::$name("io_uring"); })* }
        mod epoll { $(#[test] fn $name() { super::$name("epoll"); })* }
    };
}

on_both_drivers!(
    a_client_that_does_not_read_is_slowed,
    a_reply_over_the_bound_is_cut,
    a_subscriber_that_does_not_read_is_cut,
    a_storm_of_large_replies_leaves_no_memory_behind,
    idle_connections_are_cheap,
    announced_sizes_allocate_nothing,
    coming_and_going_leaves_nothing_behind,
    junk_harms_nobody,
    http_words_close_a_resp_connection,
    slow_clients_are_served,
    too_many_clients_are_told_so,
    a_killed_client_sees_its_end_before_the_killer_hears_of_it,
    stopping_answers_what_was_asked_and_frees_the_port,
);

/// 600 one-MiB replies asked for in one go: the server keeps some, stops executing, and goes on as they are read.
fn a_client_that_does_not_read_is_slowed(io: &str) {
    let server = Server::start(io, &[]);
    let value = vec![b'v'; MIB];
    let mut other = server.client();
    other.set(b"big", &value);
    other.call(&[b"GET", b"big"]);
    let before = server.resident_bytes();

    let mut greedy = server.client();
    greedy.send(&b"*2\r\n$3\r\nGET\r\n$3\r\nbig\r\n".repeat(600));
    server.stays_bounded_and_polite(Duration::from_secs(1), before + 80 * MIB, &mut other);

    for reply in 0..600 {
        assert!(greedy.read_bulk().is_some_and(|bytes| bytes == value), "reply {reply} came back changed");
    }
    drop(greedy);
    server.resident_falls_below(before + 16 * MIB);
    server.stop();
}

/// One command whose reply is 600 MiB cannot be served in pieces: its connection is cut at the bound, and counted.
fn a_reply_over_the_bound_is_cut(io: &str) {
    let server = Server::start(io, &[]);
    let mut other = server.client();
    other.set(b"big", &vec![b'v'; MIB]);
    other.call(&[b"GET", b"big"]);
    let before = server.resident_bytes();
    let counted = other.info("client_output_buffer_limit_disconnections");

    let mut greedy = server.client();
    let mut request = vec![&b"MGET"[..]];
    request.resize(601, b"big");
    greedy.send_command(&request);
    server.stays_bounded_and_polite(Duration::from_secs(1), before + 160 * MIB, &mut other);
    let received = greedy.read_until_closed();
    assert!(received < 600 * MIB, "all {received} bytes were kept for a client that did not read");
    assert_eq!(other.info("client_output_buffer_limit_disconnections"), counted + 1);
    server.resident_falls_below(before + 16 * MIB);
    server.stop();
}

/// What the replies took goes back to the system, and is not kept for the next storm.
fn a_storm_of_large_replies_leaves_no_memory_behind(io: &str) {
    let server = Server::start(io, &[]);
    let mut other = server.client();
    other.set(b"big", &vec![b'v'; 2 * MIB]);
    let before = server.resident_bytes();
    for _ in 0..3 {
        let mut storm: Vec<_> = (0..100).map(|_| server.client()).collect();
        storm.iter_mut().for_each(|client| client.send_command(&[b"GET", b"big"]));
        other.ping();
        drop(storm);
        server.connected_clients_become(&mut other, 1);
    }
    server.resident_falls_below(before + 32 * MIB);
    server.stop();
}

/// Messages cannot be held back as replies can: a subscriber who does not read them is cut at the bound.
fn a_subscriber_that_does_not_read_is_cut(io: &str) {
    let server = Server::start(io, &[]);
    let mut other = server.client();
    let counted = other.info("client_output_buffer_limit_disconnections");
    let mut deaf = server.client();
    deaf.send_command(&[b"SUBSCRIBE", b"news"]);
    deaf.expect(b"*3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1\r\n");
    let before = server.resident_bytes();

    let message = vec![b'm'; MIB];
    let mut heard = 0;
    for _ in 0..300 {
        heard += other.call_integer(&[b"PUBLISH", b"news", &message]);
        assert!(server.resident_bytes() < before + 160 * MIB, "the messages pile up");
    }
    assert!((10..290).contains(&heard), "{heard} of 300 messages went to a subscriber who reads none");
    assert_eq!(other.info("client_output_buffer_limit_disconnections"), counted + 1);
    drop(deaf);
    server.resident_falls_below(before + 32 * MIB);
    server.stop();
}

/// phpredis looks whether its connection still lives before it sends, and reconnects by itself if not. Killed over
/// io_uring it sometimes found it alive, and then lost its command: the end came a turn after the killer's reply.
fn a_killed_client_sees_its_end_before_the_killer_hears_of_it(io: &str) {
    let server = Server::start(io, &[]);
    let mut killer = server.client();
    for round in 0..200 {
        let mut victim = server.client();
        let id = victim.call_integer(&[b"CLIENT", b"ID"]).to_string();
        assert_eq!(killer.call_integer(&[b"CLIENT", b"KILL", b"ID", id.as_bytes()]), 1);
        victim.stream.set_nonblocking(true).unwrap();
        match victim.stream.peek(&mut [0]) {
            Ok(0) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            alive => panic!("round {round}: the killed client finds {alive:?}"),
        }
    }
    server.stop();
}

/// 10,000 connections that have worked and now wait cost at most 1.5 KiB each.
fn idle_connections_are_cheap(io: &str) {
    const CONNECTIONS: usize = 10_000;
    harness::raise_descriptor_limit();
    let server = Server::start(io, &["--maxclients", "12000"]);
    let mut other = server.client();
    other.ping();
    let before = server.resident_bytes();
    let mut idle: Vec<Client<TcpStream>> = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        let mut client = server.client();
        client.ping();
        idle.push(client);
    }
    let each = server.resident_bytes().saturating_sub(before) / CONNECTIONS;
    println!("{io}: {each} bytes for each idle connection");
    assert_eq!(other.info("connected_clients"), CONNECTIONS as u64 + 1);
    assert!(each <= 1536, "an idle connection costs {each} bytes");
    for client in idle.iter_mut().step_by(97) {
        client.ping();
    }
    drop(idle);
    server.connected_clients_become(&mut other, 1);
    server.stop();
}

/// A header that announces half a gigabyte is a promise, not bytes: nothing is set aside for it.
fn announced_sizes_allocate_nothing(io: &str) {
    const CONNECTIONS: usize = 1_000;
    harness::raise_descriptor_limit();
    let server = Server::start(io, &["--maxclients", "12000"]);
    let mut other = server.client();
    other.ping();
    let before = server.resident_bytes();
    let mut waiting = Vec::new();
    for header in [
        &b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$536870912\r\n"[..],
        b"*1\r\n$536870912\r\n",
        b"*1048576\r\n",
        b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$536870912\r\nthe first bytes",
    ] {
        for _ in 0..CONNECTIONS {
            let mut client = server.client();
            client.send(header);
            waiting.push(client);
        }
    }
    let mut uploads = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut stream = server.http();
        stream.send(b"PUT /v1/keys/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: 536870912\r\n\r\n");
        uploads.push(stream);
    }
    server.connected_clients_become(&mut other, 5 * CONNECTIONS as u64 + 1);
    for _ in 0..100 {
        other.ping();
    }
    let each = server.resident_bytes().saturating_sub(before) / (5 * CONNECTIONS);
    println!("{io}: {each} bytes for each connection with an announced size");
    assert!(each <= 4 * KIB, "an announced size costs {each} bytes before anything of it has arrived");
    drop((waiting, uploads));
    server.connected_clients_become(&mut other, 1);
    server.stop();
}

/// 100,000 connections that end in every way a connection can end: no descriptor, no session, no memory stays.
fn coming_and_going_leaves_nothing_behind(io: &str) {
    const WARM_UP: u32 = 5_000;
    const CONNECTIONS: u32 = 100_000;
    let server = Server::start(io, &[]);
    let mut other = server.client();
    other.set(b"value", &[b'v'; 50_000]);
    for round in 0..WARM_UP {
        come_and_go(&server, round);
    }
    server.connected_clients_become(&mut other, 1);
    let (descriptors, memory) = (server.descriptors(), server.resident_bytes());
    for round in 0..CONNECTIONS {
        come_and_go(&server, round);
        if round % 1_000 == 0 {
            other.ping();
        }
    }
    server.connected_clients_become(&mut other, 1);
    server.descriptors_become(descriptors);
    let grown = server.resident_bytes().saturating_sub(memory);
    println!("{io}: {} KiB more after {CONNECTIONS} connections", grown / KIB);
    assert!(grown <= 4 * MIB, "{grown} bytes stayed after {CONNECTIONS} connections had gone");
    server.stop();
}

fn come_and_go(server: &Server, round: u32) {
    match round % 10 {
        0 => drop(server.client()),
        1 => server.client().ping(),
        2 => server.client().send(b"*2\r\n$3\r\nGET\r\n$100\r\nhalf"),
        3 => server.client().reset_after(&b"*2\r\n$3\r\nGET\r\n$5\r\nvalue\r\n".repeat(20)), // replies nobody reads
        4 => server.client().reset_after(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1000000\r\nabc"),
        5 => {
            let mut client = server.client();
            client.send(b"PING\r\nPING\r\n");
            client.stream.shutdown(Shutdown::Write).expect("shutdown");
            client.expect(b"+PONG\r\n+PONG\r\n");
            assert_eq!(client.read_until_closed(), 0);
        }
        6 => server.unix_client().send(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1000000\r\nabc"),
        7 => server.unix_client().ping(),
        8 => server.http().send(b"GET /v1/keys/value HTTP/1.1\r\nHost: loc"),
        _ => {
            let mut client = server.client();
            client.send(b"SUBSCRIBE a b\r\nQUIT\r\n");
            client.read_until_closed();
        }
    }
}

/// A TLS hello, random bytes, endless lines, absurd numbers: answered with an error or cut off, and nobody else notices.
fn junk_harms_nobody(io: &str) {
    let server = Server::start(io, &[]);
    let mut other = server.client();
    other.set(b"k", b"unharmed");
    let before = server.resident_bytes();
    let seed = harness::seed();
    println!("seed {seed}");
    let mut random = Random(seed);

    let mut hello = vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    hello.extend((0..506).map(|_| random.next() as u8));
    for connection in [&mut server.client(), &mut server.http()] {
        connection.send(&hello);
        connection.stream.shutdown(Shutdown::Write).expect("shutdown");
        connection.read_until_closed();
    }
    for bad in [
        &b"*-5\r\n"[..],
        b"*1\r\n$-7\r\n",
        b"*99999999999999999999\r\n",
        b"*1\r\n$99999999999999999999\r\n",
        b"*1\r\n$536870913\r\n",
        b"*1048577\r\n",
        b"*1\r\n+PING\r\n",
        b"*1\r\n$4\rPING\r\n",
        b"SET k \"unbalanced\r\n",
        &[b'x'; 70_000],
        &[0; 70_000],
        &[b'*'; 70_000],
    ] {
        let mut client = server.client();
        // The server may cut the connection before everything is written: that is an answer too.
        let _ = client.stream.write_all(bad);
        let _ = client.stream.shutdown(Shutdown::Write);
        client.read_until_closed();
    }
    for round in 0..3_000 {
        let mut client = if round % 4 == 0 { server.http() } else { server.client() };
        let length = 1 + random.next() as usize % if round % 50 == 0 { 200_000 } else { 500 };
        let mut bytes: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
        if round % 2 == 0 {
            bytes.splice(0..0, *b"*2\r\n$4\r\nECHO\r\n"); // junk in the middle of a good request
        }
        let _ = client.stream.write_all(&bytes);
        if round % 3 == 0 {
            let _ = client.stream.shutdown(Shutdown::Write);
            client.read_until_closed();
        }
        if round % 100 == 0 {
            assert_eq!(other.call_bulk(&[b"GET", b"k"]), b"unharmed");
        }
    }
    assert_eq!(other.call_bulk(&[b"GET", b"k"]), b"unharmed");
    server.connected_clients_become(&mut other, 1);
    server.resident_falls_below(before + 16 * MIB);
    server.stop();
}

/// A browser tricked into sending a form to the RESP port must not get a command through, as in Redis.
fn http_words_close_a_resp_connection(io: &str) {
    let server = Server::start(io, &[]);
    for request in [
        &b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 20\r\n\r\nSET stolen 1\r\nPING\r\n"[..],
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nSET stolen 1\r\n",
        b"post / HTTP/1.1\r\n\r\nSET stolen 1\r\n",
    ] {
        let mut client = server.client();
        client.send(request);
        client.read_until_closed();
    }
    assert_eq!(server.client().call_integer(&[b"EXISTS", b"stolen"]), 0);
    server.stop();
}

/// Hundreds of clients that send a byte now and then: each is served when it is done, and others do not wait for them.
fn slow_clients_are_served(io: &str) {
    let server = Server::start(io, &[]);
    let mut other = server.client();
    other.set(b"k", b"value");
    let resp = b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n";
    let http = b"GET /v1/keys/k HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let mut slow: Vec<(Client<TcpStream>, &[u8])> =
        (0..200).flat_map(|_| [(server.client(), &resp[..]), (server.http(), &http[..])]).collect();
    for at in 0..http.len() {
        for (client, request) in &mut slow {
            if let Some(byte) = request.get(at) {
                client.send(&[*byte]);
            }
        }
        let begun = Instant::now();
        other.ping();
        assert!(
            begun.elapsed() < Duration::from_secs(1),
            "a PING waited {:?} for slow clients",
            begun.elapsed()
        );
    }
    for (client, request) in &mut slow {
        if *request == resp {
            client.expect(b"$5\r\nvalue\r\n");
        } else {
            let mut answer = Vec::new();
            client.stream.read_to_end(&mut answer).expect("an answer, then the end");
            assert!(
                answer.starts_with(b"HTTP/1.1 200 ") && answer.ends_with(b"value"),
                "{}",
                answer.escape_ascii()
            );
        }
    }
    server.stop();
}

/// Over `--maxclients` a client is told why it is sent away, and when one leaves the next comes in.
fn too_many_clients_are_told_so(io: &str) {
    let server = Server::start(io, &["--maxclients", "20"]);
    let mut clients: Vec<_> = (0..20).map(|_| server.client()).collect();
    clients.iter_mut().for_each(Client::ping);
    for _ in 0..50 {
        let mut refused = server.client();
        let mut words = Vec::new();
        refused.stream.read_to_end(&mut words).expect("the reason, then the end");
        assert_eq!(words, b"-ERR max number of clients reached\r\n", "{}", words.escape_ascii());
    }
    let mut refused = server.http();
    let mut words = Vec::new();
    refused.stream.read_to_end(&mut words).expect("the reason, then the end");
    assert!(words.starts_with(b"HTTP/1.1 503 "), "{}", words.escape_ascii());
    clients.truncate(10);
    let mut remaining = clients.pop().expect("nine others");
    server.connected_clients_become(&mut remaining, 10);
    server.client().ping();
    server.stop();
}

/// SIGTERM: replies on their way arrive whole, the process ends with success, and its port is free at once.
fn stopping_answers_what_was_asked_and_frees_the_port(io: &str) {
    let server = Server::start(io, &[]);
    let value = vec![b'v'; 2 * MIB];
    let mut client = server.client();
    client.set(b"big", &value);
    client.send_command(&[b"GET", b"big"]);
    // The first byte says that the reply is on its way; the rest must still come after the signal.
    let mut first = [0];
    client.stream.read_exact(&mut first).expect("the first byte");
    let address = server.resp;
    server.signal("TERM");
    let mut rest = Vec::new();
    client.stream.read_to_end(&mut rest).expect("the rest, then the end");
    assert_eq!(rest.len(), b"2097152\r\n".len() + value.len() + 2);
    server.ended_well();
    let again = Server::start(io, &["--port", &address.port().to_string()]);
    again.client().ping();
    again.stop();
}

/// A blocked read must not hang a test, and "reset by peer" is one way of being closed.
fn is_closed(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted)
}

impl Client<TcpStream> {
    /// Sends these bytes and resets the connection at once, with whatever is still on its way.
    fn reset_after(mut self, bytes: &[u8]) {
        self.send(bytes);
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
    }

    /// Reads to the end of the stream; a reset counts as one. Panics if the server leaves the connection open.
    fn read_until_closed(&mut self) -> usize {
        let mut buffer = vec![0; 256 * KIB];
        let mut total = 0;
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return total,
                Ok(length) => total += length,
                Err(error) if is_closed(&error) => return total,
                Err(error) => panic!("the server did not close the connection: {error} after {total} bytes"),
            }
        }
    }
}

/// The compiler would call these unused in a test that does not need them.
const _: fn(&Server) -> Client<UnixStream> = Server::unix_client;
