//! HTTP against the engine, in process: a table of requests and the answers they must get, whole, cut at every
//! byte and pipelined in pairs; the forms request smuggling takes; random mutations.

use alloc::borrow::ToOwned;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use super::*;
use crate::arena::HeapSource;
use crate::config::{Config, Setting};
use crate::engine::{Action, Engine, Seeds};
use crate::session::{ConnectionId, Peer, Transport};

const NOW: Now = Now { unix_us: 784_111_777_000_000, monotonic: Nanos(5_000_000_000) };
const DATE: &str = "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n";
const CONNECTION: ConnectionId = ConnectionId { slot: 3, generation: 1 };
/// `proto-max-bulk-len` in these tests.
const VALUE_MAX: usize = 1024 * 1024;
/// What follows a request that must be the last: it must never be answered.
const SMUGGLED: &[u8] = b"GET /v1/keys/k HTTP/1.1\r\nHost: localhost\r\n\r\n";

struct FixedClock;

impl Clock for FixedClock {
    fn monotonic(&self) -> Nanos {
        NOW.monotonic
    }
}

/// One engine and one connection to it. Engines are used again ([`Server::reset`]), because the memory of a
/// `HeapSource` is never given back.
struct Server {
    engine: Engine,
    closed: bool,
    /// The driver was asked to receive nothing more.
    paused: bool,
}

impl Server {
    fn new() -> Server {
        let engine = Engine::new(Config::default(), Seeds::default(), Box::new(HeapSource::default()), NOW);
        Server { engine, closed: false, paused: false }
    }

    /// A server with the keys the table speaks of.
    fn with_keys() -> Server {
        let mut server = Server::new();
        server.reset(&[]);
        server
    }

    /// A new connection, these settings, and the keys the table speaks of and no others.
    fn reset(&mut self, settings: &[(&str, &str)]) {
        self.engine.handle_disconnect(CONNECTION, NOW);
        while self.engine.poll_action().is_some() {}
        let limit = format!("{VALUE_MAX}");
        let usual = [
            ("requirepass", ""),
            ("http-allowed-hosts", ""),
            ("maxmemory", "0"),
            ("proto-max-bulk-len", &limit),
        ];
        for (name, value) in usual {
            self.set(name, value);
        }
        let keyspace = &mut self.engine.shared_mut().keyspace;
        let mut keys = Vec::new();
        let mut cursor = 0;
        loop {
            cursor = keyspace.scan(cursor, 100, NOW, &mut |key| keys.push(key.to_vec()));
            if cursor == 0 {
                break;
            }
        }
        for key in keys {
            keyspace.remove(&key, keyspace.hash(&key), NOW);
        }
        self.connect();
        let mut put = |target: &str, value: &[u8]| {
            let head = format!(
                "PUT {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
                value.len()
            );
            let output = self.exchange(&[head.as_bytes(), value].concat());
            assert!(output.starts_with(b"HTTP/1.1 201 "), "{}", output.escape_ascii());
        };
        put("/v1/keys/k", b"hello");
        put("/v1/keys/n", b"41");
        put("/v1/keys/t?ttl=60", b"soon gone");
        put("/v1/keys/empty", b"");
        put("/v1/keys/max", b"9223372036854775807");
        for &(name, value) in settings {
            self.set(name, value);
        }
    }

    fn set(&mut self, name: &str, value: &str) {
        let shared = self.engine.shared_mut();
        let setting = Setting::find(name.as_bytes()).unwrap_or_else(|| panic!("no setting {name}"));
        (setting.set)(&mut shared.config, value).unwrap();
        shared.settings_changed(NOW);
    }

    fn connect(&mut self) {
        let peer = Peer {
            address: "127.0.0.1:4242".to_owned(),
            local: "127.0.0.1:8080".to_owned(),
            transport: Transport::Http,
            unix: false,
        };
        self.engine.handle_connect(CONNECTION, peer, NOW);
        self.closed = false;
        self.paused = false;
    }

    fn receive(&mut self, bytes: &[u8]) {
        if !self.closed {
            self.engine.handle_receive(CONNECTION, bytes, NOW, &FixedClock);
            self.poll();
        }
    }

    fn poll(&mut self) {
        while let Some(action) = self.engine.poll_action() {
            match action {
                Action::Close(connection) | Action::Abort(connection) => {
                    assert_eq!(connection, CONNECTION);
                    self.closed = true;
                }
                Action::PauseReceive(_) => self.paused = true,
                Action::ResumeReceive(_) => self.paused = false,
                _ => {}
            }
        }
    }

    /// All output there is, taken and confirmed until nothing more comes.
    fn drain(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(output) = self.engine.take_output(CONNECTION) {
            all.extend_from_slice(&output);
            self.engine.handle_sent(CONNECTION, output, NOW, &FixedClock);
            self.poll();
        }
        all
    }

    fn exchange(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.receive(bytes);
        let output = self.drain();
        // Everything is read: waiting for the rest of a request must not stop it from coming.
        assert!(
            !self.paused || self.engine.shared().pause.until.is_some(),
            "a reader that read is not received from"
        );
        output
    }
}

/// One answer that must come.
#[derive(Clone, Debug)]
enum Answer {
    /// To the byte.
    Exactly(Vec<u8>),
    /// A problem document with these fields beside the usual ones and these words in its detail.
    Problem { status: u16, fields: String, words: String, head_only: bool },
}

fn answer(status: u16, fields: &str, body: &str) -> Answer {
    let mut text = format!("HTTP/1.1 {status} {}\r\n{DATE}", reason(status));
    for field in fields.split('|').filter(|field| !field.is_empty()) {
        text.push_str(field);
        text.push_str("\r\n");
    }
    Answer::Exactly(format!("{text}\r\n{body}").into_bytes())
}

/// The fields of a value, in the order they are sent.
fn value_fields(value: &str) -> String {
    format!(
        "Content-Type: application/octet-stream|X-Content-Type-Options: nosniff|Cache-Control: no-cache|ETag: \"{}\"|Content-Length: {}",
        tag(value),
        value.len()
    )
}

fn value(value: &str) -> Answer {
    answer(200, &value_fields(value), value)
}

fn number(text: &str) -> Answer {
    answer(
        200,
        &format!("Content-Type: text/plain|Cache-Control: no-store|Content-Length: {}", text.len()),
        text,
    )
}

fn json(text: &str) -> Answer {
    answer(
        200,
        &format!("Content-Type: application/json|Cache-Control: no-store|Content-Length: {}", text.len()),
        text,
    )
}

fn created(value: &str) -> Answer {
    answer(201, &format!("ETag: \"{}\"|Content-Length: 0", tag(value)), "")
}

fn replaced(value: &str) -> Answer {
    answer(204, &format!("ETag: \"{}\"", tag(value)), "")
}

fn problem(status: u16, words: &str) -> Answer {
    let fields = match status {
        415 => "Accept-Encoding: identity|".to_owned(),
        503 => "Retry-After: 1|".to_owned(),
        401 => "WWW-Authenticate: Bearer realm=\"millrace\"|WWW-Authenticate: Basic realm=\"millrace\", charset=\"UTF-8\"|".to_owned(),
        _ => String::new(),
    };
    Answer::Problem { status, fields, words: words.to_owned(), head_only: false }
}

fn not_allowed(methods: &str) -> Answer {
    Answer::Problem {
        status: 405,
        fields: format!("Allow: {methods}|"),
        words: methods.to_owned(),
        head_only: false,
    }
}

fn to_head(answer: Answer) -> Answer {
    match answer {
        Answer::Problem { status, fields, words, .. } => {
            Answer::Problem { status, fields, words, head_only: true }
        }
        Answer::Exactly(mut bytes) => {
            let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
            bytes.truncate(end);
            Answer::Exactly(bytes)
        }
    }
}

fn tag(value: &str) -> String {
    format!("{:016x}", xxhash_rust::xxh3::xxh3_64(value.as_bytes()))
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        204 => "No Content",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        other => panic!("no request in the table is answered {other}"),
    }
}

/// Compares output with the answers, and says where they part.
fn check(name: &str, output: &[u8], answers: &[Answer], closes: bool) {
    let mut rest = output;
    for (at, expected) in answers.iter().enumerate() {
        let last = at + 1 == answers.len();
        match expected {
            Answer::Exactly(bytes) => {
                let got = &rest[..bytes.len().min(rest.len())];
                assert_eq!(
                    got.escape_ascii().to_string(),
                    bytes.escape_ascii().to_string(),
                    "{name}: answer {at}"
                );
                rest = &rest[bytes.len()..];
            }
            Answer::Problem { status, fields, words, head_only } => {
                let end = rest
                    .windows(4)
                    .position(|window| window == b"\r\n\r\n")
                    .unwrap_or_else(|| panic!("{name}: answer {at} is no response: {}", rest.escape_ascii()));
                let head = core::str::from_utf8(&rest[..end + 4]).unwrap();
                let length: usize = head
                    .split("Content-Length: ")
                    .nth(1)
                    .unwrap_or_else(|| panic!("{name}: answer {at} has no length: {head}"))
                    .split('\r')
                    .next()
                    .unwrap()
                    .parse()
                    .unwrap();
                let mut wanted = format!("HTTP/1.1 {status} {}\r\n{DATE}", reason(*status));
                for field in fields.split('|').filter(|field| !field.is_empty()) {
                    wanted.push_str(field);
                    wanted.push_str("\r\n");
                }
                wanted.push_str("Content-Type: application/problem+json\r\nX-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\n");
                wanted.push_str(&format!("Content-Length: {length}\r\n"));
                if last && closes {
                    wanted.push_str("Connection: close\r\n");
                }
                assert_eq!(head, wanted + "\r\n", "{name}: answer {at}: {}", rest.escape_ascii());
                rest = &rest[end + 4..];
                if *head_only {
                    continue;
                }
                let document = core::str::from_utf8(&rest[..length]).unwrap();
                let detail = document
                    .strip_prefix(&format!(
                        "{{\"type\":\"about:blank\",\"title\":\"{}\",\"status\":{status},\"detail\":\"",
                        reason(*status)
                    ))
                    .and_then(|text| text.strip_suffix("\"}"))
                    .unwrap_or_else(|| panic!("{name}: {document}"));
                assert!(
                    !words.is_empty() && detail.contains(words.as_str()),
                    "{name}: \"{detail}\" lacks \"{words}\""
                );
                rest = &rest[length..];
            }
        }
    }
    assert!(rest.is_empty(), "{name}: more than was asked for: {}", rest.escape_ascii());
}

/// One row of the table.
struct Case {
    name: &'static str,
    request: Vec<u8>,
    answers: Vec<Answer>,
    /// The last answer ends the connection.
    closes: bool,
    settings: &'static [(&'static str, &'static str)],
}

fn case(name: &'static str, request: &str, answers: Vec<Answer>) -> Case {
    Case { name, request: request.as_bytes().to_vec(), answers, closes: false, settings: &[] }
}

fn closing(name: &'static str, request: &str, answers: Vec<Answer>) -> Case {
    Case { closes: true, ..case(name, request, answers) }
}

fn with(settings: &'static [(&'static str, &'static str)], case: Case) -> Case {
    Case { settings, ..case }
}

/// The requests and the answers they must get. Keys: k=hello, n=41, t=soon gone (60 s), empty=, max=2^63-1.
fn table() -> Vec<Case> {
    const HOST: &str = "Host: localhost\r\n\r\n";
    const ALL: &str = "GET, HEAD, PUT, POST, DELETE, OPTIONS";
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\n{HOST}");
    let put = |fields: &str, body: &str| {
        format!(
            "PUT /v1/keys/k HTTP/1.1\r\nHost: localhost\r\n{fields}Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let put_to = |target: &str, body: &str| {
        format!("PUT {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    let post = |target: &str| format!("POST {target} HTTP/1.1\r\n{HOST}");
    let ttl_value = || answer(200, &(value_fields("soon gone") + "|X-Millrace-TTL-Ms: 60000"), "soon gone");
    let continue_ = || Answer::Exactly(b"HTTP/1.1 100 Continue\r\n\r\n".to_vec());
    let not_modified = || answer(304, &format!("Cache-Control: no-cache|ETag: \"{}\"", tag("hello")), "");
    let hello = tag("hello");
    const SECRET: &[(&str, &str)] = &[("requirepass", "open sesame")];
    vec![
        // Reading.
        case("get", &get("/v1/keys/k"), vec![value("hello")]),
        case("get with ttl", &get("/v1/keys/t"), vec![ttl_value()]),
        case("get empty value", &get("/v1/keys/empty"), vec![value("")]),
        case("get missing", &get("/v1/keys/nope"), vec![problem(404, "no such key")]),
        case("get empty key", &get("/v1/keys/"), vec![problem(404, "no such key")]),
        case("get percent-encoded", &get("/v1/keys/%6B"), vec![value("hello")]),
        case("plus in a path is a plus", &get("/v1/keys/a+b"), vec![problem(404, "no such key")]),
        case("bad escape", &get("/v1/keys/%6"), vec![problem(400, "two hexadecimal digits")]),
        case("bad escape letters", &get("/v1/keys/%zz"), vec![problem(400, "two hexadecimal digits")]),
        case("head", &format!("HEAD /v1/keys/k HTTP/1.1\r\n{HOST}"), vec![to_head(value("hello"))]),
        case("head with ttl", &format!("HEAD /v1/keys/t HTTP/1.1\r\n{HOST}"), vec![to_head(ttl_value())]),
        case("head missing", &format!("HEAD /v1/keys/x HTTP/1.1\r\n{HOST}"), vec![to_head(problem(404, "x"))]),
        case("unknown parameter", &get("/v1/keys/k?ttl=3"), vec![problem(400, "\\\"ttl\\\" means nothing here")]),
        // Conditions.
        case("if-none-match hit", &format!("GET /v1/keys/k HTTP/1.1\r\nIf-None-Match: \"{hello}\"\r\n{HOST}"), vec![not_modified()]),
        case("if-none-match weak hit", &format!("GET /v1/keys/k HTTP/1.1\r\nIf-None-Match: \"a,b\" , W/\"{hello}\"\r\n{HOST}"), vec![not_modified()]),
        case("if-none-match two fields", &format!("GET /v1/keys/k HTTP/1.1\r\nIf-None-Match: \"a\"\r\nIf-None-Match: \"{hello}\"\r\n{HOST}"), vec![not_modified()]),
        case("if-none-match star", &format!("GET /v1/keys/k HTTP/1.1\r\nIf-None-Match: *\r\n{HOST}"), vec![not_modified()]),
        case("if-none-match miss", &format!("GET /v1/keys/k HTTP/1.1\r\nIf-None-Match: \"other\"\r\n{HOST}"), vec![value("hello")]),
        case("head if-none-match", &format!("HEAD /v1/keys/k HTTP/1.1\r\nIf-None-Match: \"{hello}\"\r\n{HOST}"), vec![not_modified()]),
        case("get if-match hit", &format!("GET /v1/keys/k HTTP/1.1\r\nIf-Match: \"{hello}\"\r\n{HOST}"), vec![value("hello")]),
        case("get if-match miss", &format!("GET /v1/keys/k HTTP/1.1\r\nIf-Match: \"x\"\r\n{HOST}"), vec![problem(412, "ETag")]),
        case("get if-match weak", &format!("GET /v1/keys/k HTTP/1.1\r\nIf-Match: W/\"{hello}\"\r\n{HOST}"), vec![problem(412, "ETag")]),
        case("missing beats if-match", &format!("GET /v1/keys/x HTTP/1.1\r\nIf-Match: *\r\n{HOST}"), vec![problem(404, "no such key")]),
        case("malformed condition", &format!("GET /v1/keys/k HTTP/1.1\r\nIf-Match: {hello}\r\n{HOST}"), vec![problem(400, "in quotes")]),
        case("unclosed tag", &format!("GET /v1/keys/k HTTP/1.1\r\nIf-None-Match: \"{hello}\r\n{HOST}"), vec![problem(400, "in quotes")]),
        case("empty condition", &format!("GET /v1/keys/k HTTP/1.1\r\nIf-Match:\r\n{HOST}"), vec![problem(400, "in quotes")]),
        case("create only, exists", &put("If-None-Match: *\r\n", "new"), vec![problem(412, "ETag")]),
        case("create only, new", &(put("If-None-Match: *\r\n", "new").replace("keys/k", "keys/k2") + &get("/v1/keys/k2")), vec![created("new"), value("new")]),
        case("compare and set", &(put(&format!("If-Match: \"{hello}\"\r\n"), "new") + &get("/v1/keys/k")), vec![replaced("new"), value("new")]),
        case("compare and set, other value", &(put("If-Match: \"0123456789abcdef\"\r\n", "new") + &get("/v1/keys/k")), vec![problem(412, "ETag"), value("hello")]),
        case("if-match star, missing", &put("If-Match: *\r\n", "new").replace("keys/k", "keys/x"), vec![problem(412, "ETag")]),
        case("if-match star, there", &put("If-Match: *\r\n", "new"), vec![replaced("new")]),
        // Writing.
        case("put replaces", &(put("", "new") + &get("/v1/keys/k")), vec![replaced("new"), value("new")]),
        case("put creates", &(put_to("/v1/keys/a%2Fb%00/c", "v") + &get("/v1/keys/a/b%00%2fc")), vec![created("v"), value("v")]),
        case("put empty", &(put("", "") + &get("/v1/keys/k")), vec![replaced(""), value("")]),
        case("put ttl seconds", &(put_to("/v1/keys/k?ttl=7", "v") + &get("/v1/keys/k")), vec![replaced("v"), answer(200, &(value_fields("v") + "|X-Millrace-TTL-Ms: 7000"), "v")]),
        case("put ttl milliseconds", &(put_to("/v1/keys/k?ttl_ms=7", "v") + &get("/v1/keys/k")), vec![replaced("v"), answer(200, &(value_fields("v") + "|X-Millrace-TTL-Ms: 7"), "v")]),
        case("put ttl field", &(put("X-Millrace-TTL-Ms: 1500\r\n", "v") + &get("/v1/keys/k")), vec![replaced("v"), answer(200, &(value_fields("v") + "|X-Millrace-TTL-Ms: 1500"), "v")]),
        case("put drops a ttl", &(put_to("/v1/keys/t", "v") + &get("/v1/keys/t")), vec![replaced("v"), value("v")]),
        case("put keeps a ttl", &(put_to("/v1/keys/t?keepttl=1", "v") + &get("/v1/keys/t")), vec![replaced("v"), answer(200, &(value_fields("v") + "|X-Millrace-TTL-Ms: 60000"), "v")]),
        case("put ttl zero", &put_to("/v1/keys/k?ttl=0", "v"), vec![problem(400, "positive")]),
        case("put ttl negative", &put_to("/v1/keys/k?ttl=-1", "v"), vec![problem(400, "positive")]),
        case("put ttl overflow", &put_to("/v1/keys/k?ttl=9223372036854775807", "v"), vec![problem(400, "positive")]),
        case("put ttl words", &put_to("/v1/keys/k?ttl=soon", "v"), vec![problem(400, "\\\"soon\\\"")]),
        case("put ttl twice", &put_to("/v1/keys/k?ttl=1&ttl=2", "v"), vec![problem(400, "given twice")]),
        case("put ttl two ways", &put_to("/v1/keys/k?ttl=1&ttl_ms=2", "v"), vec![problem(400, "not several")]),
        case("put mistyped ttl", &(put_to("/v1/keys/k?tll=1", "v") + &get("/v1/keys/k")), vec![problem(400, "Possible: ttl, ttl_ms, keepttl"), value("hello")]),
        case("put without length", &format!("PUT /v1/keys/k HTTP/1.1\r\n{HOST}"), vec![problem(411, "Content-Length")]),
        case("put encoded", &put("Content-Encoding: gzip\r\n", "v"), vec![problem(415, "gzip")]),
        case("put identity", &put("Content-Encoding: identity\r\n", "v"), vec![replaced("v")]),
        case("put range", &put("Content-Range: bytes 0-0/5\r\n", "v"), vec![problem(400, "Content-Range")]),
        closing("put too large", &format!("PUT /v1/keys/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", VALUE_MAX + 1), vec![problem(413, "proto-max-bulk-len")]),
        closing("put absurdly large", "PUT /v1/keys/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999999999\r\n\r\n", vec![problem(413, "proto-max-bulk-len")]),
        case("delete", &(format!("DELETE /v1/keys/k HTTP/1.1\r\n{HOST}") + &get("/v1/keys/k")), vec![answer(204, "", ""), problem(404, "no such key")]),
        case("delete missing", &format!("DELETE /v1/keys/x HTTP/1.1\r\nIf-Match: *\r\n{HOST}"), vec![problem(404, "nothing was deleted")]),
        case("delete if-match", &format!("DELETE /v1/keys/k HTTP/1.1\r\nIf-Match: \"{hello}\"\r\n{HOST}"), vec![answer(204, "", "")]),
        case("delete if-match miss", &(format!("DELETE /v1/keys/k HTTP/1.1\r\nIf-Match: \"x\"\r\n{HOST}") + &get("/v1/keys/k")), vec![problem(412, "ETag"), value("hello")]),
        // Changing.
        case("incr", &(post("/v1/keys/n?op=incr") + &get("/v1/keys/n")), vec![number("42"), value("42")]),
        case("incr by", &post("/v1/keys/n?op=incr&by=-100"), vec![number("-59")]),
        case("incr creates", &post("/v1/keys/new?by=5&op=incr"), vec![number("5")]),
        case("incr not a number", &post("/v1/keys/k?op=incr"), vec![problem(409, "not an integer")]),
        case("incr overflow", &post("/v1/keys/max?op=incr"), vec![problem(409, "overflow")]),
        case("incr by words", &post("/v1/keys/n?op=incr&by=x"), vec![problem(400, "whole number")]),
        case("incr by a fraction", &post("/v1/keys/n?op=incr&by=0.5"), vec![problem(400, "op=incrbyfloat")]),
        case("incr by plus", &post("/v1/keys/n?op=incr&by=%2B5"), vec![problem(400, "whole number")]),
        case("incr if-match", &format!("POST /v1/keys/n?op=incr HTTP/1.1\r\nIf-Match: \"x\"\r\n{HOST}"), vec![problem(412, "ETag")]),
        case("incr with a body", "POST /v1/keys/n?op=incr HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nxyz", vec![number("42")]),
        case("incrbyfloat", &post("/v1/keys/n?op=incrbyfloat&by=0.5"), vec![number("41.5")]),
        case("incrbyfloat alone", &post("/v1/keys/n?op=incrbyfloat"), vec![problem(400, "by=NUMBER")]),
        case("incrbyfloat words", &post("/v1/keys/n?op=incrbyfloat&by=inf"), vec![problem(400, "finite")]),
        case("incrbyfloat of words", &post("/v1/keys/k?op=incrbyfloat&by=1"), vec![problem(409, "not a valid float")]),
        case("append", "POST /v1/keys/k?op=append HTTP/1.1\r\nHost: localhost\r\nContent-Length: 6\r\n\r\n world", vec![number("11")]),
        case("append without length", &post("/v1/keys/k?op=append"), vec![problem(411, "Content-Length")]),
        case("append by", &post("/v1/keys/k?op=append&by=1"), vec![problem(400, "body")]),
        case("post without operation", &post("/v1/keys/k"), vec![problem(400, "op=incr")]),
        case("post unknown operation", &post("/v1/keys/k?op=explode"), vec![problem(400, "\\\"explode\\\"")]),
        // Listing and the rest.
        case("list by match", &get("/v1/keys?match=m*&count=100"), vec![json("{\"cursor\":\"0\",\"keys\":[\"max\"]}")]),
        case("list nothing", &get("/v1/keys?match=zz%3F+q"), vec![json("{\"cursor\":\"0\",\"keys\":[]}")]),
        case("list odd keys", &(put_to("/v1/keys/%FF%20%22%2Fq~", "v") + &get("/v1/keys?match=%FF*&count=100")), vec![created("v"), json("{\"cursor\":\"0\",\"keys\":[\"%FF%20%22%2Fq~\"]}")]),
        case("list cursor words", &get("/v1/keys?cursor=x"), vec![problem(400, "cursor must be")]),
        case("list too many", &get("/v1/keys?count=10001"), vec![problem(400, "up to 10000")]),
        case("list with ttl", &get("/v1/keys?ttl=1"), vec![problem(400, "Possible: cursor, count, match")]),
        case("health", &get("/healthz"), vec![number("ok")]),
        case("health head", &format!("HEAD /healthz HTTP/1.1\r\n{HOST}"), vec![to_head(number("ok"))]),
        case("nothing there", &get("/"), vec![problem(404, "/v1/keys/{key}")]),
        case("nothing there either", &get("/v1/keysx"), vec![problem(404, "\\\"/v1/keysx\\\"")]),
        case("options", &format!("OPTIONS /v1/keys/k HTTP/1.1\r\n{HOST}"), vec![answer(204, &format!("Allow: {ALL}"), "")]),
        case("options list", &format!("OPTIONS /v1/keys HTTP/1.1\r\n{HOST}"), vec![answer(204, "Allow: GET, HEAD, OPTIONS", "")]),
        case("options star", &format!("OPTIONS * HTTP/1.1\r\n{HOST}"), vec![answer(204, &format!("Allow: {ALL}"), "")]),
        case("delete the list", &format!("DELETE /v1/keys HTTP/1.1\r\n{HOST}"), vec![not_allowed("GET, HEAD, OPTIONS")]),
        case("put health", &put_to("/healthz", "sick"), vec![not_allowed("GET, HEAD, OPTIONS")]),
        case("unknown method", &format!("PATCH /v1/keys/k HTTP/1.1\r\n{HOST}"), vec![problem(501, "\\\"PATCH\\\"")]),
        case("small method", &format!("get /v1/keys/k HTTP/1.1\r\n{HOST}"), vec![problem(501, "capitals")]),
        case("connect", &format!("CONNECT localhost:80 HTTP/1.1\r\n{HOST}"), vec![problem(501, "CONNECT")]),
        // Connection and framing.
        case("absolute target", "GET http://127.0.0.1:8080/v1/keys/k HTTP/1.1\r\nHost: ignored.example\r\n\r\n", vec![value("hello")]),
        case("absolute target without path", "GET HTTP://localhost HTTP/1.1\r\nHost: localhost\r\n\r\n", vec![problem(404, "Nothing is at")]),
        case("crlf before a request", &("\r\n\r\n".to_owned() + &get("/v1/keys/k")), vec![value("hello")]),
        closing("close", &format!("GET /v1/keys/k HTTP/1.1\r\nConnection: Close\r\n{HOST}"), vec![answer(200, &(value_fields("hello") + "|Connection: close"), "hello")]),
        closing("close among others", &format!("GET /v1/keys/k HTTP/1.1\r\nConnection: keep-alive, close\r\n{HOST}"), vec![answer(200, &(value_fields("hello") + "|Connection: close"), "hello")]),
        closing("close with a problem", &format!("GET /v1/keys/x HTTP/1.1\r\nConnection: close\r\n{HOST}"), vec![problem(404, "no such key")]),
        closing("1.0", "GET /v1/keys/k HTTP/1.0\r\n\r\n", vec![answer(200, &(value_fields("hello") + "|Connection: close"), "hello")]),
        case("1.0 keep-alive", "GET /v1/keys/k HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", vec![answer(200, &(value_fields("hello") + "|Connection: keep-alive"), "hello")]),
        closing("1.0 expects nothing", "PUT /v1/keys/k HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nv", vec![answer(204, &format!("ETag: \"{}\"|Connection: close", tag("v")), "")]),
        case("chunked", &("PUT /v1/keys/k HTTP/1.1\r\nTransfer-Encoding: chunked\r\nHost: localhost\r\n\r\n4\r\nmill\r\n00A;x=y;z=\"q\"\r\nrace turns\r\n0\r\nTrailer: x\r\nY:\r\n\r\n".to_owned() + &get("/v1/keys/k")), vec![replaced("millrace turns"), value("millrace turns")]),
        case("chunked nothing", "PUT /v1/keys/k HTTP/1.1\r\nTransfer-Encoding: CHUNKED\r\nHost: localhost\r\n\r\n0\r\n\r\n", vec![replaced("")]),
        case("chunk extension after blanks", "PUT /v1/keys/k HTTP/1.1\r\nTransfer-Encoding: chunked\r\nHost: localhost\r\n\r\n1 ; a\r\nv\r\n0\r\n\r\n", vec![replaced("v")]),
        closing("chunked too large", "PUT /v1/keys/k HTTP/1.1\r\nTransfer-Encoding: chunked\r\nHost: localhost\r\n\r\n1\r\nv\r\n100000\r\n", vec![problem(413, "1048576 bytes")]),
        closing("chunked absurdly large", "PUT /v1/keys/k HTTP/1.1\r\nTransfer-Encoding: chunked\r\nHost: localhost\r\n\r\nffffffffffffffff\r\n", vec![problem(413, "1048576 bytes")]),
        case("get with a body", &("GET /v1/keys/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nbody".to_owned() + &get("/v1/keys/n")), vec![value("hello"), value("41")]),
        case("refusal reads a small body", &("PUT /v1/nope HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nbody".to_owned() + &get("/v1/keys/n")), vec![problem(404, "Nothing is at"), value("41")]),
        closing("refusal does not read a large body", "PUT /v1/nope HTTP/1.1\r\nHost: localhost\r\nContent-Length: 65537\r\n\r\n", vec![problem(404, "Nothing is at")]),
        closing("refusal does not read chunks", "PUT /v1/nope HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n", vec![problem(404, "Nothing is at")]),
        closing("get with a large body", "GET /v1/keys/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: 65537\r\n\r\n", vec![problem(413, "65536 bytes")]),
        case("continue", &put("Expect: 100-continue\r\n", "v"), vec![continue_(), replaced("v")]),
        case("continue without a body", &format!("GET /v1/keys/k HTTP/1.1\r\nExpect: 100-continue\r\n{HOST}"), vec![value("hello")]),
        closing("continue refused", "PUT /v1/keys/k HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 2000000\r\n\r\n", vec![problem(413, "proto-max-bulk-len")]),
        closing("continue refused by the path", "PUT /v1/x HTTP/1.1\r\nHost: localhost\r\nExpect: 100-Continue\r\nContent-Length: 2\r\n\r\n", vec![problem(404, "Nothing is at")]),
        case("other expectation", &format!("GET /v1/keys/k HTTP/1.1\r\nExpect: the-worst\r\n{HOST}"), vec![problem(417, "100-continue")]),
        // Hosts and origins.
        case("host with port", "GET /v1/keys/k HTTP/1.1\r\nHost: LocalHost:8080\r\n\r\n", vec![value("hello")]),
        case("host ipv4", "GET /v1/keys/k HTTP/1.1\r\nHost: 192.0.2.7\r\n\r\n", vec![value("hello")]),
        case("host ipv6", "GET /v1/keys/k HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n", vec![value("hello")]),
        case("host rebound", "GET /v1/keys/k HTTP/1.1\r\nHost: evil.example:8080\r\n\r\n", vec![problem(421, "http-allowed-hosts")]),
        case("host like localhost", "GET /v1/keys/k HTTP/1.1\r\nHost: localhost.evil.example\r\n\r\n", vec![problem(421, "http-allowed-hosts")]),
        case("host rebound by absolute target", "GET http://evil.example/v1/keys/k HTTP/1.1\r\nHost: localhost\r\n\r\n", vec![problem(421, "http-allowed-hosts")]),
        case("host does not matter to health", "GET /healthz HTTP/1.1\r\nHost: evil.example\r\n\r\n", vec![number("ok")]),
        case("host empty", "GET /v1/keys/k HTTP/1.1\r\nHost:\r\n\r\n", vec![problem(400, "not a host")]),
        case("host with user", "GET http://a@localhost/v1/keys/k HTTP/1.1\r\nHost: localhost\r\n\r\n", vec![problem(400, "not a host")]),
        case("host port words", "GET /v1/keys/k HTTP/1.1\r\nHost: localhost:http\r\n\r\n", vec![problem(400, "not a host")]),
        with(&[("http-allowed-hosts", "cache.example db.example")], case("host configured", "GET /v1/keys/k HTTP/1.1\r\nHost: DB.example:80\r\n\r\n", vec![value("hello")])),
        with(&[("http-allowed-hosts", "cache.example db.example")], case("host not configured", "GET /v1/keys/k HTTP/1.1\r\nHost: evil.example\r\n\r\n", vec![problem(421, "evil.example")])),
        with(&[("http-allowed-hosts", "*")], case("any host", "GET /v1/keys/k HTTP/1.1\r\nHost: evil.example\r\n\r\n", vec![value("hello")])),
        case("own page writes", &put("Origin: http://localhost\r\nSec-Fetch-Site: same-origin\r\n", "v"), vec![replaced("v")]),
        case("other page writes", &(put("Origin: http://evil.example\r\n", "v") + &get("/v1/keys/k")), vec![problem(403, "evil.example"), value("hello")]),
        case("other port writes", &put("Origin: http://localhost:3000\r\n", "v"), vec![problem(403, "localhost:3000")]),
        case("page without origin writes", &put("Origin: null\r\n", "v"), vec![problem(403, "null")]),
        case("cross-site write", &put("Sec-Fetch-Site: cross-site\r\n", "v"), vec![problem(403, "cross-site")]),
        case("same-site write", &put("Sec-Fetch-Site: same-site\r\n", "v"), vec![problem(403, "same-site")]),
        case("cross-site increment", &format!("POST /v1/keys/n?op=incr HTTP/1.1\r\nOrigin: http://evil.example\r\n{HOST}"), vec![problem(403, "evil.example")]),
        case("cross-site delete", &format!("DELETE /v1/keys/n HTTP/1.1\r\nOrigin: http://evil.example\r\n{HOST}"), vec![problem(403, "evil.example")]),
        case("cross-site preflight gets no leave", &format!("OPTIONS /v1/keys/n HTTP/1.1\r\nOrigin: http://evil.example\r\nAccess-Control-Request-Method: PUT\r\n{HOST}"), vec![answer(204, &format!("Allow: {ALL}"), "")]),
        case("typed by the user", &put("Sec-Fetch-Site: none\r\n", "v"), vec![replaced("v")]),
        // Password.
        with(SECRET, case("no password", &get("/v1/keys/k"), vec![problem(401, "has a password")])),
        with(SECRET, case("password before path", &get("/v1/nope"), vec![problem(401, "has a password")])),
        with(SECRET, case("metrics need it", &get("/metrics"), vec![problem(401, "has a password")])),
        with(SECRET, case("health does not", &get("/healthz"), vec![number("ok")])),
        with(SECRET, case("bearer", &format!("GET /v1/keys/k HTTP/1.1\r\nAuthorization: bearer open sesame\r\n{HOST}"), vec![value("hello")])),
        with(SECRET, case("basic", &format!("GET /v1/keys/k HTTP/1.1\r\nAuthorization: Basic YWxpOm9wZW4gc2VzYW1l\r\n{HOST}"), vec![value("hello")])),
        with(SECRET, case("basic writes", &put("Authorization: Basic YWxpOm9wZW4gc2VzYW1l\r\n", "v"), vec![replaced("v")])),
        with(SECRET, case("not remembered", &(format!("GET /v1/keys/k HTTP/1.1\r\nAuthorization: bearer open sesame\r\n{HOST}") + &get("/v1/keys/k")), vec![value("hello"), problem(401, "has a password")])),
        with(SECRET, case("wrong password", &format!("GET /v1/keys/k HTTP/1.1\r\nAuthorization: Bearer open sesam\r\n{HOST}"), vec![problem(401, "wrong")])),
        with(SECRET, case("wrong basic", &format!("GET /v1/keys/k HTTP/1.1\r\nAuthorization: Basic !!!\r\n{HOST}"), vec![problem(401, "wrong")])),
        with(SECRET, case("password repeated", &format!("GET /v1/keys/k HTTP/1.1\r\nAuthorization: Bearer open sesameopen sesame\r\n{HOST}"), vec![problem(401, "wrong")])),
        with(SECRET, case("digest", &format!("GET /v1/keys/k HTTP/1.1\r\nAuthorization: Digest x\r\n{HOST}"), vec![problem(401, "neither")])),
        // Memory.
        with(&[("maxmemory", "1")], case("out of memory", &(put("", "v") + &get("/v1/keys/k")), vec![problem(503, "maxmemory"), value("hello")])),
        with(&[("maxmemory", "1")], case("out of memory increment", &post("/v1/keys/n?op=incr"), vec![problem(503, "maxmemory")])),
        with(&[("maxmemory", "1")], case("deleting frees", &format!("DELETE /v1/keys/k HTTP/1.1\r\n{HOST}"), vec![answer(204, "", "")])),
        // Other protocols.
        closing("tls hello", "\u{16}\u{3}\u{1}\u{2}", vec![problem(400, "TLS")]),
        closing("redis", "*1\r\n", vec![problem(400, "Redis protocol")]),
        closing("redis inline", "PING\r\n", vec![problem(400, "METHOD SP target")]),
        closing("http/2", "PRI * HTTP/2.0\r\n", vec![problem(505, "HTTP/2.0")]),
        closing("http/1.2", "GET / HTTP/1.2\r\n", vec![problem(505, "HTTP/1.2")]),
        closing("http/0.9", "GET /v1/keys/k\r\n", vec![problem(400, "METHOD SP target")]),
    ]
}

/// Requests whose end, or whose meaning, two parsers could see differently. Every one must be answered once and
/// close; what follows must not be read as a request.
fn smuggling() -> Vec<(&'static str, Vec<u8>, u16, &'static str)> {
    let host = "Host: localhost\r\n";
    let with_fields = |fields: &str| format!("PUT /v1/keys/k HTTP/1.1\r\n{host}{fields}\r\n").into_bytes();
    let chunked = |body: &[u8]| [&with_fields("Transfer-Encoding: chunked\r\n")[..], body].concat();
    vec![
        (
            "length and chunked",
            with_fields("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
            400,
            "both Content-Length and Transfer-Encoding",
        ),
        (
            "chunked and length",
            with_fields("Transfer-Encoding: chunked\r\nContent-Length: 0\r\n"),
            400,
            "both Content-Length and Transfer-Encoding",
        ),
        (
            "two lengths that differ",
            with_fields("Content-Length: 5\r\nContent-Length: 6\r\n"),
            400,
            "more than one Content-Length",
        ),
        (
            "two lengths that agree",
            with_fields("Content-Length: 5\r\nContent-Length: 5\r\n"),
            400,
            "more than one Content-Length",
        ),
        ("length list", with_fields("Content-Length: 5, 6\r\n"), 400, "one decimal number"),
        ("length list that agrees", with_fields("Content-Length: 5, 5\r\n"), 400, "one decimal number"),
        ("length plus", with_fields("Content-Length: +5\r\n"), 400, "one decimal number"),
        ("length minus", with_fields("Content-Length: -5\r\n"), 400, "one decimal number"),
        ("length hexadecimal", with_fields("Content-Length: 0x5\r\n"), 400, "one decimal number"),
        ("length letters", with_fields("Content-Length: 5a\r\n"), 400, "one decimal number"),
        ("length empty", with_fields("Content-Length:\r\n"), 400, "one decimal number"),
        ("length with blank inside", with_fields("Content-Length: 1 2\r\n"), 400, "one decimal number"),
        ("length fraction", with_fields("Content-Length: 5.0\r\n"), 400, "one decimal number"),
        ("space before colon", with_fields("Content-Length : 5\r\n"), 400, "field name is malformed"),
        ("tab before colon", with_fields("Transfer-Encoding\t: chunked\r\n"), 400, "field name is malformed"),
        ("no field name", with_fields(": x\r\n"), 400, "field name is malformed"),
        ("no colon", with_fields("Content-Length 5\r\n"), 400, "field name is malformed"),
        ("folded", with_fields("X: a\r\n b\r\n"), 400, "obs-fold"),
        ("folded length", with_fields("Content-Length:\r\n 5\r\n"), 400, "obs-fold"),
        ("folded by tab", with_fields("X: a\r\n\tTransfer-Encoding: chunked\r\n"), 400, "obs-fold"),
        (
            "blank before the first field",
            b"PUT /v1/keys/k HTTP/1.1\r\n Host: localhost\r\n\r\n".to_vec(),
            400,
            "obs-fold",
        ),
        (
            "bare lf in the request line",
            b"PUT /v1/keys/k HTTP/1.1\nHost: localhost\r\n\r\n".to_vec(),
            400,
            "LF without CR",
        ),
        (
            "bare lf after a field",
            b"PUT /v1/keys/k HTTP/1.1\r\nHost: localhost\nContent-Length: 0\r\n\r\n".to_vec(),
            400,
            "LF without CR",
        ),
        (
            "bare lf at the end",
            b"PUT /v1/keys/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\n".to_vec(),
            400,
            "LF without CR",
        ),
        (
            "bare lf before a request",
            b"\nGET /v1/keys/k HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
            400,
            "begin with a method",
        ),
        (
            "bare cr in a field",
            with_fields("X: a\rContent-Length: 5\r\n"),
            400,
            "field value holds a control character",
        ),
        ("bare cr before crlf", with_fields("X: a\r\r\n"), 400, "field value holds a control character"),
        (
            "bare cr in the target",
            b"GET /v1/\rkeys/k HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
            400,
            "request line is malformed",
        ),
        (
            "bare cr before a request",
            b"\rGET /v1/keys/k HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
            400,
            "begin with a method",
        ),
        ("nul in a field", with_fields("X: a\0b\r\n"), 400, "field value holds a control character"),
        ("nul in a name", with_fields("X\0: a\r\n"), 400, "field name is malformed"),
        (
            "nul in the target",
            b"GET /v1/keys/k\0 HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
            400,
            "request line is malformed",
        ),
        (
            "delete character in a field",
            with_fields("X: a\x7f\r\n"),
            400,
            "field value holds a control character",
        ),
        (
            "vertical tab in transfer-encoding",
            with_fields("Transfer-Encoding: \x0bchunked\r\n"),
            400,
            "field value holds a control character",
        ),
        (
            "non-ascii name",
            "PUT /v1/keys/k HTTP/1.1\r\nHost: localhost\r\nCont\u{e9}nt: 5\r\n\r\n".as_bytes().to_vec(),
            400,
            "field name is malformed",
        ),
        (
            "non-ascii target",
            "GET /v1/keys/\u{e9} HTTP/1.1\r\nHost: localhost\r\n\r\n".as_bytes().to_vec(),
            400,
            "must be percent-encoded",
        ),
        (
            "fragment",
            b"GET /v1/keys/k#x HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
            400,
            "must be percent-encoded",
        ),
        ("identity", with_fields("Transfer-Encoding: identity\r\n"), 400, "exactly \\\"chunked\\\""),
        (
            "chunked not last",
            with_fields("Transfer-Encoding: chunked, gzip\r\n"),
            400,
            "exactly \\\"chunked\\\"",
        ),
        (
            "chunked twice",
            with_fields("Transfer-Encoding: chunked, chunked\r\n"),
            400,
            "exactly \\\"chunked\\\"",
        ),
        (
            "chunked in two fields",
            with_fields("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
            400,
            "exactly \\\"chunked\\\"",
        ),
        (
            "chunked then identity",
            with_fields("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n"),
            400,
            "exactly \\\"chunked\\\"",
        ),
        ("almost chunked", with_fields("Transfer-Encoding: xchunked\r\n"), 400, "exactly \\\"chunked\\\""),
        ("quoted chunked", with_fields("Transfer-Encoding: \"chunked\"\r\n"), 400, "exactly \\\"chunked\\\""),
        (
            "chunked with parameter",
            with_fields("Transfer-Encoding: chunked;q=1\r\n"),
            400,
            "exactly \\\"chunked\\\"",
        ),
        ("empty transfer-encoding", with_fields("Transfer-Encoding:\r\n"), 400, "exactly \\\"chunked\\\""),
        (
            "comma before chunked",
            with_fields("Transfer-Encoding: , chunked\r\n"),
            400,
            "exactly \\\"chunked\\\"",
        ),
        ("another coding first", with_fields("Transfer-Encoding: gzip, chunked\r\n"), 501, "transfer coding"),
        (
            "chunked in 1.0",
            b"PUT /v1/keys/k HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_vec(),
            400,
            "HTTP/1.0 has no",
        ),
        ("no host", b"GET /v1/keys/k HTTP/1.1\r\n\r\n".to_vec(), 400, "must have a Host"),
        (
            "two hosts",
            b"GET /v1/keys/k HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n".to_vec(),
            400,
            "more than one Host",
        ),
        (
            "two hosts by case",
            b"GET /v1/keys/k HTTP/1.1\r\nHost: localhost\r\nhOST: evil.example\r\n\r\n".to_vec(),
            400,
            "more than one Host",
        ),
        (
            "two passwords",
            with_fields("Authorization: a b\r\nAuthorization: c d\r\n"),
            400,
            "more than one Authorization",
        ),
        (
            "two blanks in the request line",
            b"GET  /v1/keys/k HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
            400,
            "request line is malformed",
        ),
        (
            "blank in the target",
            b"GET /v1/keys/k x HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
            400,
            "request line is malformed",
        ),
        (
            "blank after the version",
            b"GET /v1/keys/k HTTP/1.1 \r\nHost: localhost\r\n\r\n".to_vec(),
            400,
            "METHOD SP target",
        ),
        (
            "small version",
            b"GET /v1/keys/k http/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
            400,
            "METHOD SP target",
        ),
        (
            "version without digits",
            b"GET /v1/keys/k HTTP/1.\r\nHost: localhost\r\n\r\n".to_vec(),
            400,
            "METHOD SP target",
        ),
        (
            "relative target",
            b"GET v1/keys/k HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
            400,
            "begin with / or http://",
        ),
        (
            "https target",
            b"GET https://localhost/v1/keys/k HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
            400,
            "begin with / or http://",
        ),
        (
            "star with get",
            b"GET * HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
            400,
            "begin with / or http://",
        ),
        ("chunk size empty", chunked(b"\r\n"), 400, "size in hexadecimal"),
        ("chunk size plus", chunked(b"+5\r\nhello\r\n0\r\n\r\n"), 400, "size in hexadecimal"),
        ("chunk size minus", chunked(b"-5\r\nhello\r\n0\r\n\r\n"), 400, "size in hexadecimal"),
        ("chunk size 0x", chunked(b"0x5\r\nhello\r\n0\r\n\r\n"), 400, "size in hexadecimal"),
        ("chunk size blank first", chunked(b" 5\r\nhello\r\n0\r\n\r\n"), 400, "size in hexadecimal"),
        ("chunk size blank after", chunked(b"5 \r\nhello\r\n0\r\n\r\n"), 400, "followed by CRLF or by ;"),
        (
            "chunk size overflow",
            chunked(b"10000000000000005\r\nhello\r\n0\r\n\r\n"),
            400,
            "16 hexadecimal digits",
        ),
        (
            "chunk size zeros",
            chunked(b"00000000000000005\r\nhello\r\n0\r\n\r\n"),
            400,
            "16 hexadecimal digits",
        ),
        ("chunk size lf", chunked(b"5\nhello\r\n0\r\n\r\n"), 400, "size in hexadecimal"),
        ("chunk size cr", chunked(b"5\rhello\r\n0\r\n\r\n"), 400, "not followed by LF"),
        ("chunk extension lf", chunked(b"5;x\nhello\r\n0\r\n\r\n"), 400, "chunk extension holds"),
        ("chunk extension cr", chunked(b"5;x\ry\r\nhello\r\n0\r\n\r\n"), 400, "not followed by LF"),
        ("chunk extension nul", chunked(b"5;\0\r\nhello\r\n0\r\n\r\n"), 400, "chunk extension holds"),
        (
            "chunk extension endless",
            chunked(&[b"5;", &[b'x'; 20_000][..], b"\r\nhello\r\n0\r\n\r\n"].concat()),
            400,
            "limited to 16384 bytes",
        ),
        ("chunk longer than said", chunked(b"4\r\nhello\r\n0\r\n\r\n"), 400, "as long as its size says"),
        ("chunk shorter than said", chunked(b"6\r\nhello\r\n0\r\n\r\n"), 400, "as long as its size says"),
        ("chunk ends in lf", chunked(b"5\r\nhello\n0\r\n\r\n"), 400, "as long as its size says"),
        ("chunk ends in cr", chunked(b"5\r\nhello\r0\r\n\r\n"), 400, "not followed by LF"),
        ("trailer without colon", chunked(b"0\r\nGET / HTTP/1.1\r\n\r\n"), 400, "trailer field is malformed"),
        ("trailer folded", chunked(b"0\r\nX: a\r\n b\r\n\r\n"), 400, "trailer field is malformed"),
        ("trailer lf", chunked(b"0\r\nX: a\n\r\n"), 400, "trailer field holds"),
        ("trailer nul", chunked(b"0\r\nX: a\0\r\n\r\n"), 400, "trailer field holds"),
        (
            "trailer endless",
            chunked(&[b"0\r\nX: ", &[b'x'; 20_000][..]].concat()),
            431,
            "limited to 16384 bytes",
        ),
        ("end with lf", chunked(b"0\r\n\n"), 400, "trailer field is malformed"),
        ("end with cr", chunked(b"0\r\n\rX"), 400, "not followed by LF"),
        (
            "target too long",
            [b"GET /v1/keys/", &[b'x'; HEAD_BYTES_MAX][..]].concat(),
            414,
            "request line is longer",
        ),
        ("method too long", vec![b'X'; HEAD_BYTES_MAX + 1], 414, "request line is longer"),
        (
            "field too long",
            [b"GET / HTTP/1.1\r\nX: ", &[b'x'; HEAD_BYTES_MAX][..]].concat(),
            431,
            "head is longer",
        ),
        (
            "too many fields",
            with_fields(&"X: y\r\n".repeat(HEAD_FIELDS_MAX)),
            431,
            "more than 64 header fields",
        ),
        ("binary", vec![0, 1, 2, 3, 0xff], 400, "begin with a method"),
    ]
}

#[test]
fn every_request_gets_its_answer() {
    let mut server = Server::new();
    for case in table() {
        server.reset(case.settings);
        let output = server.exchange(&case.request);
        check(case.name, &output, &case.answers, case.closes);
        assert_eq!(server.closed, case.closes, "{}", case.name);
    }
}

#[test]
fn answers_do_not_depend_on_how_requests_are_cut() {
    let mut server = Server::new();
    for case in table() {
        for at in 1..case.request.len() {
            server.reset(case.settings);
            let mut output = server.exchange(&case.request[..at]);
            output.extend(server.exchange(&case.request[at..]));
            check(&format!("{} cut at {at}", case.name), &output, &case.answers, case.closes);
            assert_eq!(server.closed, case.closes, "{} cut at {at}", case.name);
        }
        server.reset(case.settings);
        let mut output = Vec::new();
        for byte in &case.request {
            output.extend(server.exchange(&[*byte]));
        }
        check(&format!("{} byte by byte", case.name), &output, &case.answers, case.closes);
    }
}

#[test]
fn pipelined_pairs_are_answered_as_if_alone() {
    let cases = table();
    let mut server = Server::new();
    for first in &cases {
        for second in cases.iter().filter(|second| second.settings == first.settings) {
            server.reset(first.settings);
            let mut expected = server.exchange(&first.request);
            assert_eq!(server.closed, first.closes);
            expected.extend(server.exchange(&second.request));
            server.reset(first.settings);
            let output = server.exchange(&[&first.request[..], &second.request].concat());
            assert_eq!(
                output.escape_ascii().to_string(),
                expected.escape_ascii().to_string(),
                "{} before {}",
                first.name,
                second.name
            );
        }
    }
}

#[test]
fn doubtful_requests_are_refused_once_and_close() {
    let mut server = Server::new();
    for (name, request, status, words) in smuggling() {
        let whole = [&request[..], SMUGGLED].concat();
        // Cut everywhere, but long ones only near their ends, where something is decided.
        let cuts = (1..whole.len()).filter(|&at| at < 200 || whole.len() - at < 200);
        let mut reference = Vec::new();
        for at in core::iter::once(0).chain(cuts) {
            server.reset(&[]);
            let mut output = server.exchange(&whole[..at]);
            output.extend(server.exchange(&whole[at..]));
            assert!(server.closed, "{name} cut at {at} did not close: {}", output.escape_ascii());
            let keyspace = &mut server.engine.shared_mut().keyspace;
            let value = keyspace.peek(b"k", keyspace.hash(b"k"), NOW).map(|entry| entry.value.to_vec());
            assert_eq!(value.as_deref(), Some(&b"hello"[..]), "{name} cut at {at} was executed");
            if at == 0 {
                let words = words.to_owned();
                let answers = [Answer::Problem { status, fields: String::new(), words, head_only: false }];
                check(name, &output, &answers, true);
                reference = output;
            } else {
                assert_eq!(
                    output.escape_ascii().to_string(),
                    reference.escape_ascii().to_string(),
                    "{name} cut at {at}"
                );
            }
        }
    }
}

#[test]
fn metrics_are_text_for_prometheus() {
    let mut server = Server::with_keys();
    server.exchange(b"GET /v1/keys/nope HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let output = server.exchange(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let [response] = &responses(&output)[..] else { panic!("{}", output.escape_ascii()) };
    assert_eq!(response.status, 200);
    assert_eq!(response.field("Content-Type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let text = core::str::from_utf8(&response.body).unwrap();
    for line in text.lines() {
        assert!(
            line.starts_with('#')
                || line.split_once(' ').is_some_and(|(_, number)| number.parse::<f64>().is_ok()),
            "{line}"
        );
    }
    // Five PUTs, one miss, and this request itself.
    assert!(text.contains("\nmillrace_http_requests_total 7\n"), "{text}");
    assert!(text.contains("\nmillrace_http_responses_4xx_total 1\n"), "{text}");
    let output = server.exchange(b"HEAD /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(output.ends_with(b"\r\n\r\n"), "{}", output.escape_ascii());
}

#[test]
fn the_first_host_of_all_is_checked_too() {
    // The last good host is remembered; before the first, nothing is, and nothing must not be good.
    let mut server = Server::new();
    server.connect();
    let output = server.exchange(b"GET /v1/keys/k HTTP/1.1\r\nHost:\r\n\r\n");
    check("first host", &output, &[problem(400, "not a host")], false);
}

#[test]
fn a_get_is_counted_like_the_command() {
    let mut server = Server::with_keys();
    let commands = |server: &Server| {
        let get = command::lookup(b"get").unwrap();
        server.engine.shared().metrics.commands[usize::from(get.id)].calls
    };
    let before = commands(&server);
    server.exchange(b"GET /v1/keys/k HTTP/1.1\r\nHost: localhost\r\n\r\nHEAD /v1/keys/x HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(commands(&server), before + 2);
}

#[test]
fn a_reader_that_does_not_read_stops_execution() {
    let mut server = Server::with_keys();
    let value = vec![b'v'; 100_000];
    let mut put =
        format!("PUT /v1/keys/big HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", value.len())
            .into_bytes();
    put.extend_from_slice(&value);
    server.exchange(&put);
    const REQUESTS: usize = 500;
    let get = b"GET /v1/keys/big HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(REQUESTS);
    // In pieces of an odd size, so that requests are cut while execution stands still.
    for piece in get.chunks(1009) {
        server.receive(piece);
    }
    server.engine.handle_receive_end(CONNECTION, NOW);
    server.poll();
    assert!(!server.closed, "closed before everything complete was answered");
    assert!(server.paused, "nothing asks the driver to stop receiving");
    let mut answered = 0;
    while let Some(output) = server.engine.take_output(CONNECTION) {
        assert!(output.len() < OUTPUT_HIGH_WATER + 101_000, "{} bytes wait at once", output.len());
        answered += responses(&output).iter().filter(|response| response.body == value).count();
        server.engine.handle_sent(CONNECTION, output, NOW, &FixedClock);
        server.poll();
    }
    assert_eq!(answered, REQUESTS);
    assert!(server.closed, "the peer had ended");
}

#[test]
fn a_half_closed_connection_forgets_an_incomplete_request() {
    let mut server = Server::with_keys();
    server.receive(b"PUT /v1/keys/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhal");
    server.engine.handle_receive_end(CONNECTION, NOW);
    server.poll();
    assert!(server.closed);
    assert_eq!(server.engine.take_output(CONNECTION), None);
}

#[test]
fn an_endless_head_or_body_stays_bounded() {
    let bytes = |server: &Server| server.engine.shared().buffer_bytes;
    for (start, piece, bound) in [
        (&b"GET /"[..], &[b'x'; 500][..], 64 * 1024),
        (
            b"GET / HTTP/1.1\r\n",
            b"X: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n",
            64 * 1024,
        ),
        (
            b"PUT /v1/keys/k HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"1;x\r\ny\r\n",
            64 * 1024,
        ),
        (
            b"PUT /v1/keys/k HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"1;xxxx\r\ny\r\n",
            64 * 1024,
        ),
        (
            b"PUT /v1/keys/k HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"200\r\n",
            64 * 1024,
        ),
    ] {
        let mut server = Server::with_keys();
        let before = bytes(&server);
        server.receive(start);
        for _ in 0..20_000 {
            if server.closed {
                break;
            }
            server.receive(piece);
            let held = bytes(&server) - before;
            assert!(held <= bound, "{held} bytes are held for {}", start.escape_ascii());
        }
        assert!(server.closed, "nothing ended {}", start.escape_ascii());
    }
    // A length is only a promise: nothing is allocated for it.
    let mut server = Server::with_keys();
    let before = bytes(&server);
    server.receive(
        format!("PUT /v1/keys/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: {VALUE_MAX}\r\n\r\nx")
            .as_bytes(),
    );
    assert!(bytes(&server) - before < 8192, "{} bytes for one", bytes(&server) - before);
}

#[test]
fn a_paused_server_answers_after_the_pause() {
    let mut server = Server::with_keys();
    server.engine.shared_mut().pause =
        crate::engine::Pause { until: Some(Nanos(NOW.monotonic.0 + 1_000_000)), all: false };
    assert_eq!(server.exchange(b"DELETE /v1/keys/k HTTP/1.1\r\nHost: localhost\r\n\r\n"), b"");
    server.engine.finish_turn(Now { monotonic: Nanos(NOW.monotonic.0 + 2_000_000), ..NOW });
    server.poll();
    let output = server.drain();
    assert_eq!(responses(&output).iter().map(|response| response.status).collect::<Vec<_>>(), [204]);
}

#[test]
fn one_connection_too_many_is_told_so() {
    let mut server = Server::with_keys();
    server.set("maxclients", "1");
    let second = ConnectionId { slot: 4, generation: 1 };
    let peer = Peer { transport: Transport::Http, ..Peer::default() };
    server.engine.handle_connect(second, peer, NOW);
    let output = server.engine.take_output(second).unwrap();
    let [response] = &responses(&output)[..] else { panic!("{}", output.escape_ascii()) };
    assert_eq!((response.status, response.field("Connection")), (503, Some("close")));
    assert!(
        core::iter::from_fn(|| server.engine.poll_action()).any(|action| action == Action::Close(second))
    );
    // The first is none the worse for it.
    assert!(server.exchange(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").ends_with(b"ok"));
}

/// A response as a client sees it, read by rules of its own.
#[derive(Debug)]
struct Response {
    status: u16,
    fields: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Response {
    fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// Reads responses to the last byte; panics where they are malformed. Which of them answer HEAD is guessed: no
/// value in these tests begins like a status line.
fn responses(output: &[u8]) -> Vec<Response> {
    let mut rest = output;
    let mut all = Vec::new();
    while !rest.is_empty() {
        let end = rest.windows(4).position(|window| window == b"\r\n\r\n").expect("a head ends");
        let head = core::str::from_utf8(&rest[..end]).expect("heads are text");
        let mut lines = head.split("\r\n");
        let status_line = lines.next().unwrap();
        let status: u16 = status_line.strip_prefix("HTTP/1.1 ").unwrap()[..3].parse().unwrap();
        let fields: Vec<(String, String)> = lines
            .map(|line| {
                let (name, value) = line.split_once(": ").unwrap_or_else(|| panic!("{line}"));
                assert!(!value.bytes().any(|byte| byte < b' ' || byte == 0x7f), "{line}");
                (name.to_owned(), value.to_owned())
            })
            .collect();
        rest = &rest[end + 4..];
        let mut response = Response { status, fields, body: Vec::new() };
        if status != 100 {
            assert!(response.field("Date").is_some(), "{head}");
        }
        match response.field("Content-Length") {
            None => assert!([100, 204, 304].contains(&status), "{head}"),
            Some(length) => {
                let length: usize = length.parse().unwrap();
                if length > 0 && !(rest.is_empty() || rest.starts_with(b"HTTP/1.1 ")) {
                    response.body = rest[..length].to_vec();
                    rest = &rest[length..];
                }
            }
        }
        if response.field("Connection") == Some("close") {
            assert!(rest.is_empty(), "something follows a close: {}", rest.escape_ascii());
        }
        all.push(response);
    }
    all
}

/// A small generator, so that a printed seed repeats a run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }
}

#[test]
fn mutated_requests_get_valid_answers_or_a_close() {
    let seed = std::env::var("SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64 | 1
    });
    std::println!("SEED={seed}");
    let rounds = std::env::var("ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(20_000);
    let mut random = Random(seed);
    let mut corpus: Vec<Vec<u8>> = table().into_iter().map(|case| case.request).collect();
    corpus.extend(
        smuggling().into_iter().map(|(_, request, _, _)| request).filter(|request| request.len() < 4096),
    );
    // The metrics page shows how bytes arrived, which is what differs here.
    corpus.retain(|request| !request.windows(8).any(|window| window == b"/metrics"));
    const TOKENS: &[&[u8]] = &[
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
        b" ",
        b":",
        b"\r\n\r\n",
        b"0\r\n\r\n",
        b"Content-Length: 3\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Host: localhost\r\n",
        b"HTTP/1.0",
        b"HTTP/1.1",
        b"GET ",
        b"PUT ",
        b"%",
        b"?",
        b"&",
        b"=",
        b"*",
        b"\"",
        b",",
        b"ffffffffffffffff",
        b"Connection: keep-alive\r\n",
        b"Expect: 100-continue\r\n",
        b"If-Match: *\r\n",
        b"/v1/keys/k",
        b"\xff",
        b"\x7f",
        b";x=y",
    ];
    let (mut whole, mut cut) = (Server::new(), Server::new());
    for round in 0..rounds {
        let mut input = Vec::new();
        for _ in 0..=random.below(3) {
            input.extend_from_slice(&corpus[random.below(corpus.len())]);
        }
        for _ in 0..random.below(6) {
            let at = random.below(input.len());
            match random.below(6) {
                0 => input[at] = random.below(256) as u8,
                1 => input[at] ^= 1 << random.below(8),
                2 => {
                    let end = (at + random.below(20)).min(input.len() - 1);
                    input.drain(at..end);
                }
                3 => {
                    let token = TOKENS[random.below(TOKENS.len())];
                    input.splice(at..at, token.iter().copied());
                }
                4 => {
                    let end = (at + random.below(40)).min(input.len());
                    let piece = input[at..end].to_vec();
                    input.splice(at..at, piece);
                }
                _ => input.truncate(at + 1),
            }
        }
        whole.reset(&[]);
        cut.reset(&[]);
        let expected = whole.exchange(&input);
        let statuses: Vec<u16> = responses(&expected).iter().map(|response| response.status).collect();
        assert!(!statuses.contains(&500), "round {round} of seed {seed}: {}", input.escape_ascii());
        let mut output = Vec::new();
        let mut rest = &input[..];
        while !rest.is_empty() {
            let at = (1 + random.below(30)).min(rest.len());
            output.extend(cut.exchange(&rest[..at]));
            rest = &rest[at..];
        }
        assert_eq!(
            (output.escape_ascii().to_string(), cut.closed),
            (expected.escape_ascii().to_string(), whole.closed),
            "round {round} of seed {seed}: {}",
            input.escape_ascii()
        );
    }
}
