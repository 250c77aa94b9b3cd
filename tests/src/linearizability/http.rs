//! Threads that drive a real server over HTTP and record: the same keys and the same model as over RESP.
//!
//! Conditional requests are compare-and-sets: on the entity tag of what was read before, on there being a value, on
//! there being none.

use super::clients::{Plan, Values, demand_no_silence, open, register_key, settle, single};
use super::history::{History, Invocation, Log};
use super::register::{Command, Keyed};
use super::{Reply, Value};
use crate::random::Random;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;

/// Clients with operations on single keys.
pub fn single_key(plan: &Plan, history: &History<Keyed, Reply>) {
    std::thread::scope(|scope| {
        for number in plan.first_client..plan.first_client + plan.clients {
            scope.spawn(move || {
                let mut log = history.client(number);
                let seed = plan.seed.wrapping_mul(1_000).wrapping_add(u64::from(number));
                let Ok(stream) = open(plan.address) else { return };
                let mut client =
                    Client { plan, number, random: Random::new(seed), stream: BufReader::new(stream) };
                let ended = client.work(&mut log);
                demand_no_silence(number, &ended);
            });
        }
    });
}

struct Client<'a> {
    plan: &'a Plan,
    number: u32,
    random: Random,
    stream: BufReader<TcpStream>,
}

/// What a response says.
struct Response {
    status: u16,
    tag: Option<String>,
    body: Vec<u8>,
}

impl Client<'_> {
    fn work(&mut self, log: &mut Log<'_, Keyed, Reply>) -> io::Result<()> {
        let mut values = Values::new(self.plan.seed, self.number);
        let mut left = self.plan.operations;
        while left > 0 {
            let key = self.plan.key(&mut self.random);
            if self.random.chance(5) {
                left = left.saturating_sub(2);
                let new = values.next(key, &mut self.random);
                self.compare_and_set(log, key, new)?;
                self.plan.progress.add(2);
                continue;
            }
            let count = self.random.between(1, self.plan.pipeline_max as i64) as usize;
            let mut requests = Vec::new();
            let mut batch: Vec<(Invocation, Command)> = Vec::new();
            for _ in 0..count.min(left) {
                let key = self.plan.key(&mut self.random);
                let command = match single(key, &mut values, &mut self.random) {
                    Command::Set(value) | Command::GetSet(value) => Command::Put(value),
                    other => other,
                };
                put(&mut requests, key, &command, "");
                batch.push((log.invoke(Keyed { key, command: command.clone() }), command));
            }
            left = left.saturating_sub(count);
            self.stream.get_mut().write_all(&requests)?;
            let count = batch.len();
            for (invocation, command) in batch {
                let response = self.response()?;
                settle(log, invocation, self.reply_of(&command, &response));
            }
            self.plan.progress.add(count);
        }
        Ok(())
    }

    /// Reads the key and its tag, then replaces it unless it has another by then.
    fn compare_and_set(&mut self, log: &mut Log<'_, Keyed, Reply>, key: u32, new: Value) -> io::Result<()> {
        let mut request = Vec::new();
        put(&mut request, key, &Command::Get, "");
        let read = log.invoke(Keyed { key, command: Command::Get });
        self.stream.get_mut().write_all(&request)?;
        let response = self.response()?;
        let reply = self.reply_of(&Command::Get, &response);
        let Some(Reply::Value(expected)) = reply.clone() else { panic!("GET answered {}", response.status) };
        settle(log, read, reply);
        request.clear();
        let condition = match &response.tag {
            Some(tag) => format!("If-Match: {tag}\r\n"),
            None => "If-None-Match: *\r\n".into(),
        };
        put(&mut request, key, &Command::Put(new.clone()), &condition);
        let command = Command::CompareAndSet { expected, new };
        let swap = log.invoke(Keyed { key, command: command.clone() });
        self.stream.get_mut().write_all(&request)?;
        let response = self.response()?;
        settle(log, swap, self.reply_of(&command, &response));
        Ok(())
    }

    /// A response as models speak of it; nothing: it was refused.
    fn reply_of(&self, command: &Command, response: &Response) -> Option<Reply> {
        let number = || {
            let text = std::str::from_utf8(&response.body).expect("a number");
            Reply::Number(text.trim_end().parse().expect("a number"))
        };
        Some(match (command, response.status) {
            (_, 503) if self.plan.may_be_refused => return None,
            (Command::Get, 200) => Reply::Value(Some(response.body.clone())),
            (Command::Get, 404) => Reply::Value(None),
            (Command::Delete, status @ (204 | 404)) => Reply::Number(i64::from(status == 204)),
            (Command::Put(_), status @ (201 | 204)) => Reply::Number(i64::from(status == 201)),
            (Command::SetIfAbsent(_), 201) | (Command::SetIfPresent(_), 204) => Reply::Done,
            (Command::SetIfAbsent(_) | Command::SetIfPresent(_), 412) => Reply::Value(None),
            (Command::CompareAndSet { .. }, 201 | 204) => Reply::Done,
            (Command::CompareAndSet { .. }, 412) => Reply::Aborted,
            (Command::Add(_) | Command::Append(_), 200) => number(),
            (Command::Add(_), 409) => Reply::Refused,
            (command, status) => {
                panic!("{command:?} answered {status}: {}", response.body.escape_ascii())
            }
        })
    }

    fn response(&mut self) -> io::Result<Response> {
        let mut response = Response { status: 0, tag: None, body: Vec::new() };
        let mut length = 0;
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line)? == 0 || !line.ends_with('\n') {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            let line = line.trim_end();
            if response.status == 0 {
                let status = line.split(' ').nth(1).and_then(|word| word.parse().ok());
                response.status = status.unwrap_or_else(|| panic!("no status line: {line}"));
                continue;
            }
            let Some((name, value)) = line.split_once(':') else {
                assert!(line.is_empty(), "no field: {line}");
                break;
            };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.trim().parse().expect("a length"),
                "etag" => response.tag = Some(value.trim().into()),
                _ => {}
            }
        }
        response.body.resize(length, 0);
        self.stream.read_exact(&mut response.body)?;
        Ok(response)
    }
}

fn put(requests: &mut Vec<u8>, key: u32, command: &Command, condition: &str) {
    let (method, query, condition, body): (_, String, _, &[u8]) = match command {
        Command::Get => ("GET", String::new(), condition, b""),
        Command::Delete => ("DELETE", String::new(), condition, b""),
        Command::Put(value) => ("PUT", String::new(), condition, value),
        Command::SetIfAbsent(value) => ("PUT", String::new(), "If-None-Match: *\r\n", value),
        Command::SetIfPresent(value) => ("PUT", String::new(), "If-Match: *\r\n", value),
        Command::Add(by) => ("POST", format!("?op=incr&by={by}"), condition, b""),
        Command::Append(value) => ("POST", "?op=append".into(), condition, value),
        Command::Set(_) | Command::GetSet(_) | Command::CompareAndSet { .. } => {
            unreachable!("not one request: {command:?}")
        }
    };
    let key = String::from_utf8(register_key(key)).expect("names are ASCII");
    let has_body = method != "GET" && method != "DELETE";
    let length = if has_body { format!("Content-Length: {}\r\n", body.len()) } else { String::new() };
    let head =
        format!("{method} /v1/keys/{key}{query} HTTP/1.1\r\nHost: localhost\r\n{condition}{length}\r\n");
    requests.extend_from_slice(head.as_bytes());
    requests.extend_from_slice(body);
}
