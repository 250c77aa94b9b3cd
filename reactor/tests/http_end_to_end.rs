//! HTTP over real sockets, on both drivers and over shards: what only a kernel in between can break. What each request
//! must be answered is the business of `store/src/protocol/http/tests.rs`.

#[allow(dead_code, reason = "other tests use the rest of it")]
mod harness;

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};

use harness::Server;

fn connect(server: &Server) -> Client {
    Client { reader: BufReader::new(server.http().stream) }
}

struct Client {
    reader: BufReader<TcpStream>,
}

#[derive(Debug)]
struct Response {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Response {
    fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

impl Client {
    fn send(&mut self, bytes: &[u8]) {
        self.reader.get_mut().write_all(bytes).unwrap();
    }

    fn receive(&mut self) -> Response {
        self.receive_answer(false)
    }

    fn receive_answer(&mut self, to_head: bool) -> Response {
        let mut head = String::new();
        loop {
            let mut line = String::new();
            assert_ne!(self.reader.read_line(&mut line).unwrap(), 0, "the connection ended within {head:?}");
            assert!(line.ends_with("\r\n"), "{line:?}");
            if line == "\r\n" {
                break;
            }
            head.push_str(line.trim_end());
            head.push('\n');
        }
        let status = head[9..12].parse().unwrap();
        let mut response = Response { status, head, body: Vec::new() };
        let length = response.field("Content-Length").map_or(0, |text| text.parse().unwrap());
        if !to_head {
            response.body.resize(length, 0);
            self.reader.read_exact(&mut response.body).unwrap();
        }
        response
    }

    fn exchange(&mut self, request: &str) -> Response {
        self.send(request.as_bytes());
        self.receive()
    }

    /// The other side ended the connection in order: end of file, not a reset.
    fn assert_closed(&mut self) {
        let mut rest = Vec::new();
        match self.reader.read_to_end(&mut rest) {
            Ok(_) => assert!(rest.is_empty(), "{}", rest.escape_ascii()),
            Err(error) => panic!("the connection did not end in order: {error}"),
        }
    }
}

/// Both drivers, each with one, two and four shards. Where io_uring cannot be had this fails and says why, unless the
/// machine's owner knows.
fn servers() -> impl Iterator<Item = (&'static str, &'static str)> {
    let without = std::env::var_os("MILLRACE_WITHOUT_IO_URING").is_some();
    let drivers = ["io_uring", "epoll"].into_iter().filter(move |&io| io == "epoll" || !without);
    drivers.flat_map(|io| ["1", "2", "4"].map(|shards| (io, shards)))
}

const HOST: &str = "Host: localhost\r\n";

#[test]
fn a_session_of_every_method() {
    for (io, shards) in servers() {
        let server = Server::start(io, &["--shards", shards]);
        let mut client = connect(&server);
        let put =
            client.exchange(&format!("PUT /v1/keys/k HTTP/1.1\r\n{HOST}Content-Length: 5\r\n\r\nhello"));
        assert_eq!(put.status, 201);
        let get = client.exchange(&format!("GET /v1/keys/k HTTP/1.1\r\n{HOST}\r\n"));
        assert_eq!((get.status, &get.body[..]), (200, &b"hello"[..]));
        assert_eq!(get.field("ETag"), put.field("ETag"));
        client.send(format!("HEAD /v1/keys/k HTTP/1.1\r\n{HOST}\r\n").as_bytes());
        let head = client.receive_answer(true);
        assert_eq!((head.status, head.field("Content-Length")), (200, Some("5")));
        let incr = client.exchange(&format!("POST /v1/keys/n?op=incr&by=7 HTTP/1.1\r\n{HOST}\r\n"));
        assert_eq!((incr.status, &incr.body[..]), (200, &b"7"[..]));
        // As many pages as there are shards: each ends with the cursor of the next, and the last with 0.
        let mut listed = String::new();
        for page in 1..=shards.parse::<usize>().unwrap() {
            let cursor = page - 1;
            let list =
                client.exchange(&format!("GET /v1/keys?cursor={cursor}&match=k* HTTP/1.1\r\n{HOST}\r\n"));
            listed.push_str(std::str::from_utf8(&list.body).unwrap());
            let next = if page.to_string() == shards { 0 } else { page };
            assert!(listed.contains(&format!("{{\"cursor\":\"{next}\",\"keys\":[")), "{listed}");
        }
        assert_eq!(listed.matches("\"k\"").count(), 1, "{listed}");
        assert_eq!(client.exchange(&format!("DELETE /v1/keys/k HTTP/1.1\r\n{HOST}\r\n")).status, 204);
        assert_eq!(client.exchange(&format!("GET /v1/keys/k HTTP/1.1\r\n{HOST}\r\n")).status, 404);
        assert_eq!(client.exchange(&format!("OPTIONS * HTTP/1.1\r\n{HOST}\r\n")).status, 204);
        let metrics = client.exchange(&format!("GET /metrics HTTP/1.1\r\n{HOST}\r\n"));
        let asked = format!("\nmillrace_http_requests_total {}\n", 8 + shards.parse::<usize>().unwrap());
        assert!(String::from_utf8(metrics.body).unwrap().contains(&asked), "not {asked:?}");
    }
}

#[test]
fn both_protocols_see_the_same_keys() {
    for (io, shards) in servers() {
        let server = Server::start(io, &["--shards", shards]);
        let mut redis = server.client();
        redis.send_command(&[b"SET", b"a\r\n", b"v", b"EX", b"100"]);
        redis.expect(b"+OK\r\n");
        let mut client = connect(&server);
        let get = client.exchange(&format!("GET /v1/keys/a%0D%0A HTTP/1.1\r\n{HOST}\r\n"));
        assert_eq!((get.status, &get.body[..]), (200, &b"v"[..]));
        let ttl: u64 = get.field("X-Millrace-TTL-Ms").unwrap().parse().unwrap();
        assert!((1..=100_000).contains(&ttl), "{ttl}");
        assert_eq!(
            client.exchange(&format!("PUT /v1/keys/b HTTP/1.1\r\n{HOST}Content-Length: 2\r\n\r\nxy")).status,
            201
        );
        assert_eq!(redis.call_bulk(&[b"GET", b"b"]), b"xy");
    }
}

#[test]
fn requests_arrive_in_any_pieces() {
    for (io, shards) in servers() {
        let server = Server::start(io, &["--shards", shards]);
        let mut client = connect(&server);
        let request = format!(
            "PUT /v1/keys/k HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n3\r\nmil\r\n5\r\nlrace\r\n0\r\n\r\nGET /v1/keys/k HTTP/1.1\r\n{HOST}\r\n"
        );
        // No delay and a write each: every byte is a segment of its own.
        for byte in request.as_bytes() {
            client.send(&[*byte]);
        }
        assert_eq!(client.receive().status, 201);
        assert_eq!(client.receive().body, b"millrace");
    }
}

#[test]
fn pipelined_answers_keep_their_order_for_a_slow_reader() {
    for (io, shards) in servers() {
        let server = Server::start(io, &["--shards", shards]);
        let mut client = connect(&server);
        let body = "x".repeat(20_000);
        client.send(
            format!("PUT /v1/keys/big HTTP/1.1\r\n{HOST}Content-Length: {}\r\n\r\n{body}", body.len())
                .as_bytes(),
        );
        assert_eq!(client.receive().status, 201);
        // 40 MB of answers: many times what sockets and the high-water mark hold. Nothing is read until all is
        // written, so the server must stop executing and stop receiving, and go on later.
        const REQUESTS: usize = 2000;
        let mut writer = client.reader.get_ref().try_clone().unwrap();
        let sender = std::thread::spawn(move || {
            for number in 0..REQUESTS {
                write!(
                    writer,
                    "GET /v1/keys/big HTTP/1.1\r\n{HOST}\r\nGET /v1/keys/none{number} HTTP/1.1\r\n{HOST}\r\n"
                )
                .unwrap();
            }
        });
        for number in 0..REQUESTS {
            let value = client.receive();
            assert_eq!((value.status, value.body.len()), (200, body.len()), "answer {number}");
            assert_eq!(client.receive().status, 404, "answer {number}");
        }
        sender.join().unwrap();
    }
}

#[test]
fn large_values_survive() {
    for (io, shards) in servers() {
        let server = Server::start(io, &["--shards", shards]);
        let mut client = connect(&server);
        let value: Vec<u8> =
            (0..20_000_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        client.send(
            format!(
                "PUT /v1/keys/large HTTP/1.1\r\n{HOST}Expect: 100-continue\r\nContent-Length: {}\r\n\r\n",
                value.len()
            )
            .as_bytes(),
        );
        assert_eq!(client.receive().status, 100);
        client.send(&value);
        assert_eq!(client.receive().status, 201);
        let get = client.exchange(&format!("GET /v1/keys/large HTTP/1.1\r\n{HOST}\r\n"));
        assert_eq!(get.status, 200);
        assert!(get.body == value, "the value changed on its way");
    }
}

#[test]
fn a_refusal_arrives_though_more_was_sent() {
    for (io, shards) in servers() {
        let server = Server::start(io, &["--shards", shards, "--proto-max-bulk-len", "1mb"]);
        let mut client = connect(&server);
        client.send(format!("PUT /v1/keys/k HTTP/1.1\r\n{HOST}Content-Length: 3000000\r\n\r\n").as_bytes());
        // The answer comes before the body; what is sent all the same must not turn it into a reset.
        assert_eq!(client.receive().status, 413);
        let _ = client.reader.get_mut().write_all(&vec![b'x'; 100_000]);
        client.reader.get_mut().shutdown(Shutdown::Write).unwrap();
        client.assert_closed();

        let mut client = connect(&server);
        client.send(
            format!("GET / HTTP/1.1\r\n{HOST}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n")
                .repeat(50)
                .as_bytes(),
        );
        let refusal = client.receive();
        assert_eq!((refusal.status, refusal.field("Connection")), (400, Some("close")));
        client.assert_closed();
        // Nobody else noticed.
        assert_eq!(connect(&server).exchange(&format!("GET /healthz HTTP/1.1\r\n{HOST}\r\n")).body, b"ok");
    }
}

#[test]
fn half_closed_connections_get_their_answers() {
    for (io, shards) in servers() {
        let server = Server::start(io, &["--shards", shards]);
        let mut client = connect(&server);
        client.send(format!("GET /healthz HTTP/1.1\r\n{HOST}\r\n").repeat(20).as_bytes());
        client.send(b"GET /incomplete");
        client.reader.get_mut().shutdown(Shutdown::Write).unwrap();
        for _ in 0..20 {
            assert_eq!(client.receive().body, b"ok");
        }
        client.assert_closed();
    }
}

#[test]
fn other_protocols_are_refused() {
    for (io, shards) in servers() {
        let server = Server::start(io, &["--shards", shards]);
        for hello in [
            &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
            b"*1\r\n$4\r\nPING\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ] {
            let mut client = connect(&server);
            client.send(hello);
            let refusal = client.receive();
            assert!(matches!(refusal.status, 400 | 505), "{}: {}", hello.escape_ascii(), refusal.head);
            client.assert_closed();
        }
        // HTTP on the other port ends the connection, as in Redis: without an answer that a browser could read.
        let mut stream = server.client().stream;
        stream.write_all(b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\nSET k v\r\n").unwrap();
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
        }
        assert!(!answer.windows(3).any(|window| window == b"+OK"), "{}", answer.escape_ascii());
        assert_eq!(connect(&server).exchange(&format!("GET /v1/keys/k HTTP/1.1\r\n{HOST}\r\n")).status, 404);
    }
}

#[test]
fn a_password_guards_everything_but_health() {
    let server = Server::start("epoll", &["--requirepass", "open sesame"]);
    let mut client = connect(&server);
    assert_eq!(client.exchange(&format!("GET /healthz HTTP/1.1\r\n{HOST}\r\n")).status, 200);
    let refused = client.exchange(&format!("GET /v1/keys/k HTTP/1.1\r\n{HOST}\r\n"));
    assert_eq!(refused.status, 401);
    assert!(refused.field("WWW-Authenticate").is_some());
    let request = format!(
        "PUT /v1/keys/k HTTP/1.1\r\n{HOST}Authorization: Bearer open sesame\r\nContent-Length: 1\r\n\r\nv"
    );
    assert_eq!(client.exchange(&request).status, 201);
}
