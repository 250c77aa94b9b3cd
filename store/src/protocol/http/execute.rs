//! Requests as commands: what runs, and what is answered.
//!
//! Everything but reading a key goes through [`command::execute`], so arity, memory, password and metrics are
//! the table's business here as on a RESP connection. A GET looks the key up itself, because formatting a reply
//! only to parse it again would cost as much as the lookup; it is counted like the command.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::mem;

use super::conditions::{Precondition, evaluate, precondition_failed};
use super::end_get_run;
use super::head::Persistence;
use super::response::{Problem, ResponseWriter, etag_text, push_connection, push_number};
use super::routes::{Method, Operation, PutExpiry, Request, Resource, parse_decimal, slice};
use crate::command;
use crate::engine::Shared;
use crate::protocol::resp::{Args, Span};
use crate::session::Session;
use crate::time::{Clock, Now};
use crate::tracking::stream::{Filter, token_id};

/// Runs a request whose body is complete and writes its response, or says why not.
pub(super) fn execute(
    shared: &mut Shared,
    session: &mut Session,
    request: &Request,
    arguments: &mut Vec<u8>,
    persistence: Persistence,
    now: Now,
    clock: &dyn Clock,
) -> Result<(), Problem> {
    if shared.replication.is_following() && matches!(request.resource, Resource::Key | Resource::Keys) {
        let writes = !matches!(request.method, Method::Get | Method::Head | Method::Options);
        if let Err((status, text)) = shared.heed_as_replica(writes) {
            let mut problem = Problem::new(status, text);
            problem
                .fields
                .extend(shared.standing().http_primary.map(|primary| ("X-Millrace-Primary", primary)));
            return Err(problem);
        }
        shared.catch_up(now);
    }
    let mut context = Context { shared, session, arguments, persistence, now, clock };
    match (request.resource, request.method) {
        (_, Method::Options) => {
            context.begin(204).field("Allow", request.resource.allow().as_bytes()).no_content(persistence);
            Ok(())
        }
        (Resource::Key, Method::Get | Method::Head) => context.get(request),
        (Resource::Key, Method::Put) => context.put(request),
        (Resource::Key, Method::Delete) => context.delete(request),
        (Resource::Key, Method::Post) => context.update(request),
        (Resource::Keys, _) => context.list(request),
        (Resource::Invalidations, _) => {
            context.stream(request);
            Ok(())
        }
        (Resource::Health, _) => {
            context.text(b"text/plain", b"ok", request.method == Method::Head);
            Ok(())
        }
        (Resource::Primary | Resource::Replica, _) => {
            context.role(request);
            Ok(())
        }
        (Resource::Metrics, _) => {
            let start = context.arguments.len();
            crate::metrics::write_prometheus(context.shared, context.arguments);
            let document = &context.arguments[start..];
            ResponseWriter::begin(&mut context.session.output, &context.shared.http.dates, 200)
                .field("Content-Type", b"text/plain; version=0.0.4; charset=utf-8")
                .field("Cache-Control", b"no-store")
                .body(persistence, document, request.method == Method::Head);
            Ok(())
        }
        (Resource::Server, _) => Err(Problem::new(400, "The target * goes with OPTIONS only.")),
    }
}

/// One request in execution.
struct Context<'a> {
    shared: &'a mut Shared,
    session: &'a mut Session,
    arguments: &'a mut Vec<u8>,
    persistence: Persistence,
    now: Now,
    clock: &'a dyn Clock,
}

impl Context<'_> {
    fn begin(&mut self, status: u16) -> ResponseWriter<'_> {
        ResponseWriter::begin(&mut self.session.output, &self.shared.http.dates, status)
    }

    fn text(&mut self, content_type: &[u8], text: &[u8], head_only: bool) {
        let persistence = self.persistence;
        self.begin(200).field("Content-Type", content_type).field("Cache-Control", b"no-store").body(
            persistence,
            text,
            head_only,
        );
    }

    /// 200 if the node is what is asked for and may be used, else 503; one line says why.
    fn role(&mut self, request: &Request) {
        let standing = self.shared.standing();
        let stops = self.shared.shutting_down.then(|| String::from("the server stops"));
        let follows = standing.primary.as_deref().unwrap_or("nobody yet");
        // Anybody may ask, and where the primary is, is not for anybody where there is a password.
        let is_open = self.shared.config.requirepass.is_empty();
        let (is_asked_for, what) = match standing.is_replica {
            true if is_open => (request.resource == Resource::Replica, format!("a replica of {follows}")),
            true => (request.resource == Resource::Replica, String::from("a replica")),
            false => (request.resource == Resource::Primary, String::from("a primary")),
        };
        let (status, text) = match stops.or(standing.trouble) {
            Some(trouble) => (503, format!("{what}, and not to be used: {trouble}\n")),
            None if is_asked_for => (200, format!("{what}\n")),
            None => (503, format!("this is {what}\n")),
        };
        if status == 503 {
            self.shared.metrics.http_responses_5xx += 1;
        }
        let (persistence, is_head) = (self.persistence, request.method == Method::Head);
        self.begin(status).field("Content-Type", b"text/plain").field("Cache-Control", b"no-store").body(
            persistence,
            text.as_bytes(),
            is_head,
        );
    }

    /// GET and HEAD, straight from the keyspace into the output.
    fn get(&mut self, request: &Request) -> Result<(), Problem> {
        let key = slice(self.arguments, request.key);
        if let Some(get) = command::lookup(b"get") {
            self.session.last_command = get.id;
            self.shared.metrics.commands_processed += 1;
            self.shared.metrics.commands[usize::from(get.id)].calls += 1;
            self.shared.http.get_run.get_or_insert_with(|| (self.clock.monotonic(), 0)).1 += 1;
        }
        if let Some(token) = request.token
            && !self.shared.register_token(key, token_id(slice(self.arguments, token)))
        {
            return Err(Problem::new(
                409,
                "No stream has this token. Open GET /v1/invalidations?token=... first, and read when its first event is there.",
            ));
        }
        let hash = self.shared.keyspace.hash(key);
        let Some(entry) = self.shared.keyspace.get(key, hash, self.now) else {
            return Err(Problem::new(
                404,
                "There is no such key, or it has expired. PUT a value to create it.",
            ));
        };
        let tag = etag_text(entry.value);
        let out = &mut self.session.output;
        let dates = &self.shared.http.dates;
        if request.if_match.is_some() || request.if_none_match.is_some() {
            match evaluate(request, self.arguments, Some(&tag)) {
                Precondition::Holds => {}
                Precondition::NotModified => {
                    ResponseWriter::begin(out, dates, 304)
                        .field("Cache-Control", b"no-cache")
                        .etag(&tag)
                        .no_content(self.persistence);
                    return Ok(());
                }
                Precondition::Failed => return Err(precondition_failed()),
            }
        }
        out.extend_from_slice(dates.get_head());
        out.extend_from_slice(&tag);
        out.extend_from_slice(b"\"\r\nContent-Length: ");
        push_number(out, entry.value.len() as u64);
        out.extend_from_slice(b"\r\n");
        if let Some(expires_at) = entry.expires_at {
            out.extend_from_slice(b"X-Millrace-TTL-Ms: ");
            push_number(out, expires_at.saturating_sub(self.now.unix_ms()));
            out.extend_from_slice(b"\r\n");
        }
        push_connection(out, self.persistence);
        out.extend_from_slice(b"\r\n");
        if request.method == Method::Get {
            out.extend_from_slice(entry.value);
        }
        Ok(())
    }

    /// The entity tag of the current value; conditions look without being seen in hits and misses.
    fn current_tag(&mut self, key: Span) -> Option<[u8; 16]> {
        let key = slice(self.arguments, key);
        let hash = self.shared.keyspace.hash(key);
        self.shared.keyspace.peek(key, hash, self.now).map(|entry| etag_text(entry.value))
    }

    fn exists(&mut self, key: Span) -> bool {
        let key = slice(self.arguments, key);
        let hash = self.shared.keyspace.hash(key);
        self.shared.keyspace.peek(key, hash, self.now).is_some()
    }

    /// Conditions and command run without anything in between, so this is compare-and-set.
    fn check_preconditions(&mut self, request: &Request) -> Result<(), Problem> {
        if request.if_match.is_none() && request.if_none_match.is_none() {
            return Ok(());
        }
        let current = self.current_tag(request.key);
        match evaluate(request, self.arguments, current.as_ref()) {
            Precondition::Holds => Ok(()),
            _ => Err(precondition_failed()),
        }
    }

    fn put(&mut self, request: &Request) -> Result<(), Problem> {
        self.check_preconditions(request)?;
        let existed = self.exists(request.key);
        let value = self.body(request);
        let tag = etag_text(slice(self.arguments, value));
        let Operation::Put(expiry) = request.operation else {
            unreachable!("route gives every PUT an expiry")
        };
        let command = self.push(b"SET");
        let reply = match expiry {
            PutExpiry::Never => self.run(&[command, request.key, value]),
            PutExpiry::Keep => {
                let keep = self.push(b"KEEPTTL");
                self.run(&[command, request.key, value, keep])
            }
            PutExpiry::InMs(milliseconds) => {
                let unit = self.push(b"PX");
                let milliseconds = self.push_decimal(milliseconds as i64);
                self.run(&[command, request.key, value, unit, milliseconds])
            }
        };
        let refused = Reply::parse(&reply).refusal();
        self.shared.http.reply = reply;
        refused?;
        let persistence = self.persistence;
        if existed {
            self.begin(204).etag(&tag).no_content(persistence);
        } else {
            self.begin(201).etag(&tag).body(persistence, b"", false);
        }
        Ok(())
    }

    fn delete(&mut self, request: &Request) -> Result<(), Problem> {
        // Without the conditions this would be a 404, so they do not count (RFC 9110, section 13.2.1).
        if self.exists(request.key) {
            self.check_preconditions(request)?;
        }
        let command = self.push(b"DEL");
        let reply = self.run(&[command, request.key]);
        let parsed = Reply::parse(&reply);
        let outcome = parsed.refusal().map(|()| parsed == Reply::Text(b"1"));
        self.shared.http.reply = reply;
        if !outcome? {
            return Err(Problem::new(404, "There is no such key, or it has expired: nothing was deleted."));
        }
        let persistence = self.persistence;
        self.begin(204).no_content(persistence);
        Ok(())
    }

    /// POST: one command that changes the value and answers with a number.
    fn update(&mut self, request: &Request) -> Result<(), Problem> {
        self.check_preconditions(request)?;
        let value = self.body(request);
        let reply = match request.operation {
            Operation::Increment(by) => {
                let (command, by) = (self.push(b"INCRBY"), self.push_decimal(by));
                self.run(&[command, request.key, by])
            }
            Operation::IncrementFloat(by) => {
                let command = self.push(b"INCRBYFLOAT");
                self.run(&[command, request.key, by])
            }
            _ => {
                let command = self.push(b"APPEND");
                self.run(&[command, request.key, value])
            }
        };
        let outcome = match Reply::parse(&reply) {
            Reply::Text(number) => {
                self.text(b"text/plain", number, false);
                Ok(())
            }
            other => other.refusal(),
        };
        self.shared.http.reply = reply;
        outcome
    }

    /// A stream of invalidations, which ends when the client has enough of it.
    fn stream(&mut self, request: &Request) {
        let Operation::Stream { prefix, token } = request.operation else {
            unreachable!("route gives every stream its operation")
        };
        self.begin(200)
            .field("Content-Type", b"text/event-stream")
            .field("Cache-Control", b"no-store")
            // NGINX would keep events until a buffer is full.
            .field("X-Accel-Buffering", b"no")
            .endless();
        let text = |span: Span| slice(self.arguments, span);
        let filter = match token {
            Some(token) => Filter::Token(token_id(text(token))),
            None => Filter::Prefix(prefix.map_or(&b""[..], text).into()),
        };
        self.shared.open_stream(self.session, filter, request.last_event_id.map(text));
    }

    fn list(&mut self, request: &Request) -> Result<(), Problem> {
        let Operation::List { cursor, count, pattern } = request.operation else {
            unreachable!("route gives every listing its operation")
        };
        let command = self.push(b"SCAN");
        let start = self.arguments.len();
        push_number(self.arguments, cursor);
        let cursor = self.span_from(start);
        let (count_word, count) = (self.push(b"COUNT"), self.push_decimal(i64::from(count)));
        let reply = match pattern {
            None => self.run(&[command, cursor, count_word, count]),
            Some(pattern) => {
                let word = self.push(b"MATCH");
                self.run(&[command, cursor, count_word, count, word, pattern])
            }
        };
        let outcome = self.write_listing(&reply, request.method == Method::Head);
        self.shared.http.reply = reply;
        outcome
    }

    /// SCAN's reply as JSON. Keys are percent-encoded, ready to be put behind `/v1/keys/`, and thus need no
    /// escaping and no care for what is not UTF-8.
    fn write_listing(&mut self, reply: &[u8], head_only: bool) -> Result<(), Problem> {
        let mut parts = reply;
        if let Reply::Error(_) = Reply::parse(reply) {
            return Reply::parse(reply).refusal();
        }
        let malformed =
            || Problem::new(500, "SCAN answered in a form the listing does not know. This is a bug.");
        take_line(&mut parts).filter(|line| line == b"*2").ok_or_else(malformed)?;
        let cursor = take_bulk(&mut parts).ok_or_else(malformed)?;
        let keys: usize = take_line(&mut parts)
            .and_then(|line| parse_decimal(line.strip_prefix(b"*")?))
            .ok_or_else(malformed)?;
        let start = self.arguments.len();
        let json = &mut *self.arguments;
        json.extend_from_slice(b"{\"cursor\":\"");
        json.extend_from_slice(cursor);
        json.extend_from_slice(b"\",\"keys\":[");
        for at in 0..keys {
            json.extend_from_slice(if at == 0 { b"\"" } else { b",\"" });
            push_percent_encoded(json, take_bulk(&mut parts).ok_or_else(malformed)?);
            json.push(b'"');
        }
        json.extend_from_slice(b"]}");
        ResponseWriter::begin(&mut self.session.output, &self.shared.http.dates, 200)
            .field("Content-Type", b"application/json")
            .field("Cache-Control", b"no-store")
            .body(self.persistence, &self.arguments[start..], head_only);
        Ok(())
    }

    /// The body, which is the last thing in the buffer until a command's words are added.
    fn body(&self, request: &Request) -> Span {
        self.span_from(request.body_start)
    }

    fn span_from(&self, start: usize) -> Span {
        Span { start: start as u32, len: (self.arguments.len() - start) as u32 }
    }

    fn push(&mut self, word: &[u8]) -> Span {
        let start = self.arguments.len();
        self.arguments.extend_from_slice(word);
        self.span_from(start)
    }

    fn push_decimal(&mut self, number: i64) -> Span {
        self.push(itoa::Buffer::new().format(number).as_bytes())
    }

    /// Runs a command through the table, with all its gates. The reply, in RESP3, goes to a scratch buffer the
    /// caller gives back.
    fn run(&mut self, spans: &[Span]) -> Vec<u8> {
        end_get_run(self.shared, self.clock);
        let mut reply = mem::take(&mut self.shared.http.reply);
        reply.clear();
        mem::swap(&mut self.session.output, &mut reply);
        self.session.resp3 = true;
        command::execute(self.shared, self.session, Args::new(self.arguments, spans), self.now, self.clock);
        mem::swap(&mut self.session.output, &mut reply);
        reply
    }
}

/// A command's reply, as far as the routes need to understand it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reply<'a> {
    /// An integer's digits, a simple string, or a bulk string.
    Text(&'a [u8]),
    Error(&'a [u8]),
    /// Arrays, nulls and the like.
    Other,
}

impl<'a> Reply<'a> {
    fn parse(reply: &'a [u8]) -> Reply<'a> {
        let mut rest = reply;
        match reply.first() {
            Some(b'$') => take_bulk(&mut rest).map_or(Reply::Other, Reply::Text),
            Some(kind @ (b':' | b'+' | b'-')) => match take_line(&mut rest) {
                Some(line) if *kind == b'-' => Reply::Error(&line[1..]),
                Some(line) => Reply::Text(&line[1..]),
                None => Reply::Other,
            },
            _ => Reply::Other,
        }
    }

    /// Translates an error into its status. The code is the first word, as in every Redis error.
    fn refusal(self) -> Result<(), Problem> {
        let text = match self {
            Reply::Text(_) => return Ok(()),
            Reply::Other => {
                return Err(Problem::new(500, "The command answered in an unexpected form. This is a bug."));
            }
            Reply::Error(text) => text,
        };
        let code = text.split(|&byte| byte == b' ').next().unwrap_or(text);
        let says = |words: &[u8]| text.windows(words.len()).any(|window| window == words);
        let status = match code {
            b"OOM" | b"MISCONF" | b"LOADING" | b"STALE" | b"BUSY" | b"NOREPLICAS" => 503,
            b"NOAUTH" => 401,
            b"NOPERM" => 403,
            b"WRONGTYPE" | b"READONLY" => 409,
            _ if says(b"exceeds maximum allowed size") => 413,
            _ if says(b"out of memory") => 503,
            // Incrementing what is no number, or beyond what numbers there are: the state is in the way, not the request.
            _ if says(b"value is not") || says(b"would overflow") || says(b"would produce NaN") => 409,
            _ => 400,
        };
        let mut detail = String::from("The command was refused: ");
        detail.extend(
            text.iter().map(|&byte| if (b' '..=b'~').contains(&byte) { char::from(byte) } else { '.' }),
        );
        Err(Problem::new(status, detail))
    }
}

/// Takes a line without its CRLF from the front.
fn take_line<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = memchr::memchr(b'\r', rest)?;
    let line = &rest[..end];
    *rest = rest.get(end + 2..)?;
    Some(line)
}

/// Takes a bulk string from the front.
fn take_bulk<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length: usize = parse_decimal(take_line(rest)?.strip_prefix(b"$")?)?;
    let bulk = rest.get(..length)?;
    *rest = rest.get(length + 2..)?;
    Some(bulk)
}

/// Everything but RFC 3986's unreserved characters becomes %XX.
pub(crate) fn push_percent_encoded(out: &mut Vec<u8>, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(byte);
        } else {
            out.extend_from_slice(&[b'%', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
        }
    }
}
