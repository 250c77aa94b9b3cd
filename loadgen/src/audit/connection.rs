//! A blocking connection that speaks RESP or HTTP/1.1: requests out in batches, answers in one at a time.
//!
//! Blocking on purpose: an audit wants to know what each client was told before the server died, not how fast. An end
//! of the connection is an error like any other; the caller decides what it means.

use super::ledger::{Answer, Change, Expiry, Held, SeenExpiry};
use crate::cli::ParsedTarget;
use crate::workload::Protocol;
use reactor::server::event::Target;
use std::fmt::Write as _;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Longer values and HTTP heads are garbage: nothing here writes or asks for as much.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Where a client goes and how it speaks.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Address, protocol, host.
    pub target: ParsedTarget,
    /// For AUTH or the Authorization field.
    pub password: Option<String>,
    /// No answer takes longer.
    pub timeout: Duration,
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// One connection.
pub struct Connection {
    stream: Stream,
    protocol: Protocol,
    /// Fields that every HTTP request has.
    fields: String,
    outgoing: Vec<u8>,
    incoming: Vec<u8>,
    consumed: usize,
}

/// A RESP reply.
#[derive(Debug)]
enum Reply {
    Simple(Vec<u8>),
    Error(String),
    Number(i64),
    Bulk(Option<Vec<u8>>),
}

/// An HTTP response.
struct Response {
    status: u16,
    expires: bool,
    body: Vec<u8>,
}

impl Connection {
    /// Connects, and shows the password.
    pub fn open(endpoint: &Endpoint) -> io::Result<Connection> {
        let timeout = Some(endpoint.timeout);
        let stream = match &endpoint.target.address {
            Target::Tcp(address) => {
                let stream = TcpStream::connect_timeout(address, endpoint.timeout)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(timeout)?;
                stream.set_write_timeout(timeout)?;
                Stream::Tcp(stream)
            }
            Target::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(timeout)?;
                stream.set_write_timeout(timeout)?;
                Stream::Unix(stream)
            }
        };
        let mut fields = format!("Host: {}\r\n", endpoint.target.host);
        let protocol = endpoint.target.protocol;
        if let Some(password) = &endpoint.password {
            let _ = write!(fields, "Authorization: Bearer {password}\r\n");
        }
        let (outgoing, incoming) = (Vec::new(), Vec::new());
        let mut connection = Connection { stream, protocol, fields, outgoing, incoming, consumed: 0 };
        if let (Protocol::Resp, Some(password)) = (protocol, &endpoint.password) {
            connection.words(&[b"AUTH", password.as_bytes()]);
            connection.send()?;
            if let Reply::Error(error) = connection.reply()? {
                return Err(io::Error::other(error));
            }
        }
        Ok(connection)
    }

    /// Whether the server serves: PING is answered with PONG, or /healthz with 200. An error reply is told.
    pub fn ping(&mut self) -> io::Result<Result<(), String>> {
        match self.protocol {
            Protocol::Resp => {
                self.words(&[b"PING"]);
                self.send()?;
                match self.reply()? {
                    Reply::Error(error) => Ok(Err(error)),
                    Reply::Simple(text) if text == b"PONG" => Ok(Ok(())),
                    other => Err(garbage(&format!("{other:?} in answer to PING"))),
                }
            }
            Protocol::Memcache => unreachable!("refused by the command line"),
            Protocol::Http => {
                let _ = write!(self.outgoing_text(), "GET /healthz HTTP/1.1\r\n");
                self.end_head(None);
                self.send()?;
                let response = self.response()?;
                Ok(if response.status == 200 { Ok(()) } else { Err(refusal(&response)) })
            }
        }
    }

    /// Adds a write to what is sent next.
    pub fn put_change(&mut self, key: &[u8], change: &Change) {
        match self.protocol {
            Protocol::Resp => match change {
                Change::Set(Held { value, expiry: Expiry::Never }) => self.words(&[b"SET", key, value]),
                Change::Set(Held { value, expiry: Expiry::At(at) }) => {
                    self.words(&[b"SET", key, value, b"PXAT", at.to_string().as_bytes()]);
                }
                Change::Set(Held { value, expiry: Expiry::Sometime }) => {
                    self.words(&[b"SET", key, value, b"PX", FAR_MS.as_bytes()]);
                }
                Change::Delete => self.words(&[b"DEL", key]),
                Change::Add(step) => self.words(&[b"INCRBY", key, step.to_string().as_bytes()]),
                Change::Append(tail) => self.words(&[b"APPEND", key, tail]),
            },
            Protocol::Memcache => unreachable!("refused by the command line"),
            Protocol::Http => {
                let (method, query, body): (_, String, Option<&[u8]>) = match change {
                    Change::Set(Held { value, expiry: Expiry::Never }) => ("PUT", String::new(), Some(value)),
                    Change::Set(Held { value, .. }) => ("PUT", format!("?ttl_ms={FAR_MS}"), Some(value)),
                    Change::Delete => ("DELETE", String::new(), None),
                    Change::Add(step) => ("POST", format!("?op=incr&by={step}"), Some(b"")),
                    Change::Append(tail) => ("POST", "?op=append".into(), Some(tail)),
                };
                self.request_line(method, key, &query);
                self.end_head(body);
            }
        }
    }

    /// Adds a read to what is sent next; `with_expiry`: of its expiry as well.
    pub fn put_read(&mut self, key: &[u8], with_expiry: bool) {
        match self.protocol {
            Protocol::Resp => {
                self.words(&[b"GET", key]);
                if with_expiry {
                    self.words(&[b"PEXPIRETIME", key]);
                }
            }
            Protocol::Memcache => unreachable!("refused by the command line"),
            Protocol::Http => {
                self.request_line("GET", key, "");
                self.end_head(None);
            }
        }
    }

    /// Sends all that was put.
    pub fn send(&mut self) -> io::Result<()> {
        let sent = match &mut self.stream {
            Stream::Tcp(stream) => stream.write_all(&self.outgoing),
            Stream::Unix(stream) => stream.write_all(&self.outgoing),
        };
        self.outgoing.clear();
        sent
    }

    /// The answer to the next write.
    pub fn change_answer(&mut self, change: &Change) -> io::Result<Answer> {
        if self.protocol == Protocol::Resp {
            return Ok(match self.reply()? {
                Reply::Simple(text) if text == b"OK" => Answer::Done,
                Reply::Number(number) => Answer::Number(number),
                Reply::Error(error) => Answer::Refused(error),
                other => return Err(garbage(&format!("{other:?} in answer to {}", change.show()))),
            });
        }
        let response = self.response()?;
        let number = || -> io::Result<Answer> {
            let text = std::str::from_utf8(&response.body).ok();
            let number = text.and_then(|text| text.trim().parse().ok());
            number.map(Answer::Number).ok_or_else(|| garbage("a body that is no number"))
        };
        match (change, response.status) {
            (Change::Set(_), 201) => Ok(Answer::Created),
            (Change::Set(_), 204) => Ok(Answer::Replaced),
            (Change::Set(_), 200) => Ok(Answer::Done),
            (Change::Delete, 204 | 200) => Ok(Answer::Number(1)),
            (Change::Delete, 404) => Ok(Answer::Number(0)),
            (Change::Add(_) | Change::Append(_), 200) => number(),
            _ => Ok(Answer::Refused(refusal(&response))),
        }
    }

    /// The answer to the next read.
    pub fn read_answer(&mut self, with_expiry: bool) -> io::Result<(Option<Vec<u8>>, SeenExpiry)> {
        if self.protocol == Protocol::Http {
            let response = self.response()?;
            return match response.status {
                200 if response.expires => Ok((Some(response.body), SeenExpiry::Said(Expiry::Sometime))),
                200 => Ok((Some(response.body), SeenExpiry::Said(Expiry::Never))),
                404 => Ok((None, SeenExpiry::Said(Expiry::Never))),
                _ => Err(io::Error::other(refusal(&response))),
            };
        }
        let value = match self.reply()? {
            Reply::Bulk(value) => value,
            Reply::Error(error) => return Err(io::Error::other(error)),
            other => return Err(garbage(&format!("{other:?} in answer to GET"))),
        };
        if !with_expiry {
            return Ok((value, SeenExpiry::Unsaid));
        }
        let expiry = match self.reply()? {
            // -1: it does not expire; -2: it is missing.
            Reply::Number(number) => {
                SeenExpiry::Said(u64::try_from(number).map_or(Expiry::Never, Expiry::At))
            }
            Reply::Error(_) => SeenExpiry::Unsaid,
            other => return Err(garbage(&format!("{other:?} in answer to PEXPIRETIME"))),
        };
        Ok((value, expiry))
    }

    fn words(&mut self, words: &[&[u8]]) {
        let _ = write!(self.outgoing_text(), "*{}\r\n", words.len());
        for word in words {
            let _ = write!(self.outgoing_text(), "${}\r\n", word.len());
            self.outgoing.extend_from_slice(word);
            self.outgoing.extend_from_slice(b"\r\n");
        }
    }

    fn request_line(&mut self, method: &str, key: &[u8], query: &str) {
        // Keys are of letters, digits, `:`, which stand for themselves in a path.
        let key = std::str::from_utf8(key).expect("an audit's keys are text");
        let _ = write!(self.outgoing_text(), "{method} /v1/keys/{key}{query} HTTP/1.1\r\n");
    }

    fn end_head(&mut self, body: Option<&[u8]>) {
        self.outgoing.extend_from_slice(self.fields.as_bytes());
        if let Some(body) = body {
            let _ = write!(self.outgoing_text(), "Content-Length: {}\r\n", body.len());
        }
        self.outgoing.extend_from_slice(b"\r\n");
        self.outgoing.extend_from_slice(body.unwrap_or_default());
    }

    fn outgoing_text(&mut self) -> impl std::fmt::Write + '_ {
        struct Text<'a>(&'a mut Vec<u8>);
        impl std::fmt::Write for Text<'_> {
            fn write_str(&mut self, text: &str) -> std::fmt::Result {
                self.0.extend_from_slice(text.as_bytes());
                Ok(())
            }
        }
        Text(&mut self.outgoing)
    }

    fn reply(&mut self) -> io::Result<Reply> {
        let line = self.line()?;
        let (kind, rest) = line.split_first().ok_or_else(|| garbage("an empty line"))?;
        let number = || -> io::Result<i64> {
            let text = std::str::from_utf8(rest).ok();
            text.and_then(|text| text.parse().ok()).ok_or_else(|| garbage("no number where one belongs"))
        };
        match kind {
            b'+' => Ok(Reply::Simple(rest.to_vec())),
            b'-' => Ok(Reply::Error(String::from_utf8_lossy(rest).into_owned())),
            b':' => Ok(Reply::Number(number()?)),
            b'$' => match number()? {
                -1 => Ok(Reply::Bulk(None)),
                length => {
                    let length = usize::try_from(length).map_err(|_| garbage("a negative length"))?;
                    let mut bytes = self.exactly(length + 2)?;
                    if bytes.split_off(length) != b"\r\n" {
                        return Err(garbage("a value that is longer than it said"));
                    }
                    Ok(Reply::Bulk(Some(bytes)))
                }
            },
            _ => Err(garbage(&line.escape_ascii().to_string())),
        }
    }

    fn response(&mut self) -> io::Result<Response> {
        let line = String::from_utf8_lossy(&self.line()?).into_owned();
        let status = line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        let status: u16 = status.ok_or_else(|| garbage(&line))?;
        let (mut length, mut expires) = (None, false);
        loop {
            let line = String::from_utf8_lossy(&self.line()?).into_owned();
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').ok_or_else(|| garbage(&line))?;
            match &name.to_ascii_lowercase()[..] {
                "content-length" => length = value.trim().parse().ok(),
                "x-millrace-ttl-ms" => expires = true,
                "transfer-encoding" => return Err(garbage("a chunked answer, which no key has")),
                _ => {}
            }
        }
        let has_body = !matches!(status, 100..=199 | 204 | 304);
        let body = match (has_body, length) {
            (false, _) => Vec::new(),
            (true, Some(length)) => self.exactly(length)?,
            (true, None) => return Err(garbage("an answer without Content-Length")),
        };
        Ok(Response { status, expires, body })
    }

    fn line(&mut self) -> io::Result<Vec<u8>> {
        loop {
            let rest = &self.incoming[self.consumed..];
            if let Some(end) = memchr::memchr(b'\n', rest) {
                let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]).to_vec();
                self.consume(end + 1);
                return Ok(line);
            }
            self.receive()?;
        }
    }

    fn exactly(&mut self, length: usize) -> io::Result<Vec<u8>> {
        if length > ANSWER_BYTES_MAX {
            return Err(garbage(&format!("an answer of {length} bytes")));
        }
        while self.incoming.len() - self.consumed < length {
            self.receive()?;
        }
        let bytes = self.incoming[self.consumed..self.consumed + length].to_vec();
        self.consume(length);
        Ok(bytes)
    }

    fn consume(&mut self, length: usize) {
        self.consumed += length;
        if self.consumed == self.incoming.len() {
            self.incoming.clear();
            self.consumed = 0;
        }
    }

    fn receive(&mut self) -> io::Result<()> {
        if self.incoming.len() - self.consumed > ANSWER_BYTES_MAX {
            return Err(garbage("an answer without an end"));
        }
        let mut buffer = [0; 16 * 1024];
        let count = loop {
            let read = match &mut self.stream {
                Stream::Tcp(stream) => stream.read(&mut buffer),
                Stream::Unix(stream) => stream.read(&mut buffer),
            };
            match read {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        if count == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.incoming.extend_from_slice(&buffer[..count]);
        Ok(())
    }
}

/// An expiry that no audit lives to see: thirty years.
const FAR_MS: &str = "946080000000";

fn garbage(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("the server's bytes are no answer: {what}"))
}

fn refusal(response: &Response) -> String {
    let body = String::from_utf8_lossy(&response.body);
    format!("HTTP {} {}", response.status, body.chars().take(200).collect::<String>().trim())
}

/// Whether a failed read or write means that the other side has gone, as a server does that is killed.
pub fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::UnexpectedEof
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
            | ErrorKind::NotConnected
            | ErrorKind::ConnectionRefused
            | ErrorKind::NotFound
    )
}

/// Whether it means that nothing came in time.
pub fn is_silent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::parse_target;
    use std::net::TcpListener;
    use std::thread::JoinHandle;

    /// A server that says this on its one connection, and gives back what it was told until the client hung up.
    fn scripted(scheme: &str, answers: &'static [u8]) -> (Connection, JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            stream.write_all(answers).expect("it fits the socket's buffer");
            let mut told = Vec::new();
            stream.read_to_end(&mut told).expect("the client hangs up in order");
            String::from_utf8(told).expect("text")
        });
        let target = parse_target(&format!("{scheme}://{address}")).expect("a target");
        let timeout = Duration::from_secs(10);
        let connection = Connection::open(&Endpoint { target, password: None, timeout }).expect("it accepts");
        (connection, server)
    }

    fn changes(expiry: Expiry) -> [Change; 4] {
        let held = Held { value: b"v".to_vec(), expiry };
        [Change::Set(held), Change::Append(b"ab".to_vec()), Change::Add(-5), Change::Delete]
    }

    fn told(
        mut connection: Connection,
        server: JoinHandle<String>,
        answers: &[Answer],
        expiry: Expiry,
    ) -> String {
        for change in changes(expiry) {
            connection.put_change(b"k:1", &change);
        }
        connection.send().expect("it is there");
        for (change, expected) in changes(expiry).iter().zip(answers) {
            let answer = connection.change_answer(change).expect("an answer");
            match (&answer, expected) {
                (Answer::Refused(error), Answer::Refused(part)) => {
                    assert!(error.contains(&**part), "{error}")
                }
                (answer, expected) => assert_eq!(answer, expected),
            }
        }
        drop(connection);
        server.join().expect("no panic")
    }

    #[test]
    fn writes_over_resp() {
        let (connection, server) = scripted("resp", b"+OK\r\n:2\r\n-ERR no\r\n:1\r\n");
        let answers = [Answer::Done, Answer::Number(2), Answer::Refused("ERR no".into()), Answer::Number(1)];
        let told = told(connection, server, &answers, Expiry::At(9));
        let words: Vec<&str> =
            told.split("\r\n").filter(|word| !word.is_empty() && !word.starts_with(['*', '$'])).collect();
        let expected = "SET k:1 v PXAT 9 APPEND k:1 ab INCRBY k:1 -5 DEL k:1";
        assert_eq!(words.join(" "), expected);
    }

    #[test]
    fn writes_over_http() {
        let (connection, server) = scripted(
            "http",
            b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\nETag: \"x\"\r\n\r\n\
              HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n2\
              HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nfull\
              HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        );
        let answers =
            [Answer::Created, Answer::Number(2), Answer::Refused("503 full".into()), Answer::Number(0)];
        let told = told(connection, server, &answers, Expiry::Sometime);
        for expected in [
            "PUT /v1/keys/k:1?ttl_ms=946080000000 HTTP/1.1\r\n",
            "Content-Length: 1\r\n\r\nvPOST /v1/keys/k:1?op=append HTTP/1.1\r\n",
            "Content-Length: 2\r\n\r\nabPOST /v1/keys/k:1?op=incr&by=-5 HTTP/1.1\r\n",
            "DELETE /v1/keys/k:1 HTTP/1.1\r\n",
        ] {
            assert!(told.contains(expected), "{expected} in\n{told}");
        }
    }

    #[test]
    fn reads_tell_values_and_expiries() {
        let (mut connection, _) =
            scripted("resp", b"$1\r\nv\r\n:-1\r\n$-1\r\n:-2\r\n$0\r\n\r\n:7\r\n$1\r\nv\r\n-ERR\r\n");
        let mut read = || connection.read_answer(true).expect("an answer");
        assert_eq!(read(), (Some(b"v".to_vec()), SeenExpiry::Said(Expiry::Never)));
        assert_eq!(read(), (None, SeenExpiry::Said(Expiry::Never)));
        assert_eq!(read(), (Some(vec![]), SeenExpiry::Said(Expiry::At(7))));
        assert_eq!(read(), (Some(b"v".to_vec()), SeenExpiry::Unsaid));
        let (mut connection, _) = scripted(
            "http",
            b"HTTP/1.1 200 OK\r\nX-Millrace-TTL-Ms: 5\r\nContent-Length: 1\r\n\r\nv\
              HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nw\
              HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno",
        );
        let mut read = || connection.read_answer(true).expect("an answer");
        assert_eq!(read(), (Some(b"v".to_vec()), SeenExpiry::Said(Expiry::Sometime)));
        assert_eq!(read(), (Some(b"w".to_vec()), SeenExpiry::Said(Expiry::Never)));
        assert_eq!(read(), (None, SeenExpiry::Said(Expiry::Never)));
    }

    #[test]
    fn garbage_and_ends_are_told_apart() {
        for bytes in
            [&b"hello\r\n"[..], b"$x\r\n", b"$-2\r\n", b"$1\r\nabc\r\n", b":\r\n", b"$99999999999\r\n"]
        {
            let (mut connection, _) = scripted("resp", bytes);
            let error = connection.read_answer(false).expect_err("no answer");
            assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
            assert!(!is_gone(&error) && !is_silent(&error));
        }
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let target = parse_target(&format!("resp://{}", listener.local_addr().expect("its address")))
            .expect("a target");
        let endpoint = Endpoint { target, password: None, timeout: Duration::from_millis(50) };
        let mut connection = Connection::open(&endpoint).expect("it accepts");
        assert!(is_silent(&connection.read_answer(false).expect_err("it says nothing")));
        drop(listener.accept().expect("the client"));
        assert!(is_gone(&connection.read_answer(false).expect_err("it has hung up")));
        drop(listener);
        let Err(error) = Connection::open(&endpoint) else { panic!("nobody listens") };
        assert!(is_gone(&error), "{error}");
    }
}
