//! The commands that simulated clients send, and what each may answer: the model that knows nothing of the server.

use crate::oracle::value::Value;
use std::collections::BTreeMap;
use store::session::Durability;

/// Names one write of one client: it stands at the end of the value that the write stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub u32);

/// `<`, eight hexadecimal digits, `>`.
pub const TOKEN_BYTES: usize = 10;

/// The token that bytes are, if they are one.
pub fn parse_token(bytes: &[u8; TOKEN_BYTES]) -> Option<Token> {
    let [b'<', digits @ .., b'>'] = bytes else { return None };
    u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok().map(Token)
}

/// What a key holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The value.
    pub value: Vec<u8>,
    /// When it ends.
    pub expires_ms: Option<u64>,
}

/// A value that a client writes: filler, and a token that no other has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text {
    /// The token.
    pub token: Token,
    /// Bytes before it.
    pub filler: usize,
}

impl Text {
    /// Its bytes.
    pub fn bytes(self) -> Vec<u8> {
        let mut bytes = vec![b'a' + (self.token.0 % 26) as u8; self.filler];
        bytes.extend_from_slice(format!("<{:08x}>", self.token.0).as_bytes());
        bytes
    }
}

/// A name in the keyspace.
pub type Key = &'static [u8];

/// What a client sends.
#[derive(Clone, Debug)]
pub enum Command {
    /// GET
    Get(Key),
    /// MGET
    Mget(Vec<Key>),
    /// STRLEN
    Strlen(Key),
    /// EXISTS
    Exists(Key),
    /// PEXPIRETIME
    ExpireTime(Key),
    /// DBSIZE is not exact while keys end; KEYS * is.
    AllKeys,
    /// SET, with PX, NX and GET.
    Set {
        /// Where.
        key: Key,
        /// What.
        text: Text,
        /// For how long.
        px: Option<u64>,
        /// Only if it is not there.
        nx: bool,
        /// What was there is asked for.
        get: bool,
    },
    /// SETEX
    Setex(Key, Text, u64),
    /// APPEND
    Append(Key, Text),
    /// MSET
    Mset(Vec<(Key, Text)>),
    /// INCRBY
    Incrby(Key, u32),
    /// DEL
    Del(Key),
    /// GETDEL
    Getdel(Key),
    /// PEXPIRE
    Pexpire(Key, u64),
    /// PERSIST
    Persist(Key),
    /// FLUSHALL
    Flushall,
    /// MULTI to EXEC, as one.
    Transaction(Vec<Command>),
    /// WAITAOF 1 0 0
    Waitaof,
    /// CLIENT DURABILITY
    Durability(Option<Durability>),
    /// PING
    Ping,
}

/// Whether a reply follows from a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It does.
    Yes,
    /// It does not.
    No(String),
    /// A key came to its end while the command was on its way.
    Unclear,
}

/// When something written at an unknown moment ends.
type Span = Option<(u64, u64)>;

/// The keys a command is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State(BTreeMap<Vec<u8>, Option<(Vec<u8>, Span)>>);

impl FromIterator<(Vec<u8>, Option<Stored>)> for State {
    fn from_iter<I: IntoIterator<Item = (Vec<u8>, Option<Stored>)>>(entries: I) -> State {
        let exact = |stored: Stored| (stored.value, stored.expires_ms.map(|at| (at, at)));
        State(entries.into_iter().map(|(key, stored)| (key, stored.map(exact))).collect())
    }
}

impl State {
    /// Whether something was written.
    pub fn differs(&self, before: &State) -> bool {
        self != before
    }

    /// The same without some keys.
    pub fn without(&self, keys: &[&[u8]]) -> State {
        let mut state = self.clone();
        keys.iter().for_each(|key| _ = state.0.insert(key.to_vec(), None));
        state
    }

    /// Whether the state that was found is this one.
    pub fn accounts_for(&self, found: &State) -> bool {
        self.0.iter().all(|(key, expected)| match (expected, found.0.get(key).unwrap_or(&None)) {
            (None, None) => true,
            (Some((value, None)), Some((other, None))) => value == other,
            (Some((value, Some((low, high)))), Some((other, Some((at, _))))) => {
                value == other && (low..=high).contains(&at)
            }
            _ => false,
        })
    }
}

/// Executes commands on a state at a time that is known roughly.
struct Run<'a> {
    state: &'a mut State,
    low_ms: u64,
    high_ms: u64,
    is_unclear: bool,
}

impl Run<'_> {
    fn get(&mut self, key: Key) -> Option<Vec<u8>> {
        let (value, span) = self.state.0.get(key).cloned().flatten()?;
        match span {
            // In the millisecond of its end it is still there.
            Some((_, end)) if end < self.low_ms => None,
            Some((begin, _)) if begin <= self.high_ms + 1 => {
                self.is_unclear = true;
                Some(value)
            }
            _ => Some(value),
        }
    }

    fn span(&self, key: Key) -> Span {
        self.state.0.get(key).cloned().flatten().and_then(|(_, span)| span)
    }

    fn in_ms(&self, ms: u64) -> Span {
        Some((self.low_ms + ms, self.high_ms + ms + 1))
    }

    fn put(&mut self, key: Key, value: Vec<u8>, span: Span) {
        self.state.0.insert(key.to_vec(), Some((value, span)));
    }

    fn remove(&mut self, key: Key) {
        self.state.0.insert(key.to_vec(), None);
    }

    fn execute(&mut self, command: &Command, reply: &Value) -> Result<(), String> {
        let ok = || expect(reply, &Value::Line(b'+', b"OK".to_vec()));
        match command {
            Command::Get(key) => {
                let value = self.get(key);
                expect(reply, &bulk(value))
            }
            Command::Mget(keys) => {
                let values = keys.iter().map(|key| bulk(self.get(key))).collect();
                expect(reply, &Value::Items(b'*', values))
            }
            Command::Strlen(key) => {
                let length = self.get(key).map_or(0, |value| value.len());
                expect(reply, &integer(length as i64))
            }
            Command::Exists(key) => {
                let exists = self.get(key).is_some();
                expect(reply, &integer(i64::from(exists)))
            }
            Command::ExpireTime(key) => {
                let exists = self.get(key).is_some();
                match (exists, self.span(key)) {
                    (false, _) => expect(reply, &integer(-2)),
                    (true, None) => expect(reply, &integer(-1)),
                    (true, Some((low, high))) => match reply.integer() {
                        Some(at) if (low..=high).contains(&(at as u64)) => Ok(()),
                        _ => Err(format!("{} is not from {low} to {high}", reply.show())),
                    },
                }
            }
            Command::AllKeys => {
                let keys: Vec<Vec<u8>> = self.state.0.keys().cloned().collect();
                let mut there: Vec<Value> = Vec::new();
                for key in keys {
                    let is_there = {
                        let (low, high) = (self.low_ms, self.high_ms);
                        match self.state.0.get(&key).and_then(Option::as_ref) {
                            None => false,
                            Some((_, Some((_, end)))) if *end < low => false,
                            Some((_, Some((begin, _)))) if *begin <= high + 1 => {
                                self.is_unclear = true;
                                true
                            }
                            Some(_) => true,
                        }
                    };
                    if is_there {
                        there.push(Value::Bytes(b'$', key));
                    }
                }
                let mut found = reply.items().unwrap_or_default().to_vec();
                found.sort_by(|a, b| a.bytes().cmp(&b.bytes()));
                expect(&Value::Items(b'*', found), &Value::Items(b'*', there))
            }
            Command::Set { key, text, px, nx, get } => {
                let before = self.get(key);
                let is_written = !nx || before.is_none();
                if is_written {
                    let span = px.and_then(|ms| self.in_ms(ms));
                    self.put(key, text.bytes(), span);
                }
                match (get, is_written) {
                    (true, _) => expect(reply, &bulk(before)),
                    (false, true) => ok(),
                    (false, false) => expect(reply, &bulk(None)),
                }
            }
            Command::Setex(key, text, seconds) => {
                let span = self.in_ms(seconds * 1000);
                self.put(key, text.bytes(), span);
                ok()
            }
            Command::Append(key, text) => {
                let (mut value, span) = match self.get(key) {
                    Some(value) => (value, self.span(key)),
                    None => (Vec::new(), None),
                };
                value.extend_from_slice(&text.bytes());
                let length = value.len();
                self.put(key, value, span);
                expect(reply, &integer(length as i64))
            }
            Command::Mset(pairs) => {
                for (key, text) in pairs {
                    self.put(key, text.bytes(), None);
                }
                ok()
            }
            Command::Incrby(key, by) => {
                let (before, span) = match self.get(key) {
                    Some(value) => (value, self.span(key)),
                    None => (b"0".to_vec(), None),
                };
                let before: i64 = std::str::from_utf8(&before)
                    .ok()
                    .and_then(|text| text.parse().ok())
                    .ok_or_else(|| format!("{before:?} is no number"))?;
                let after = before + i64::from(*by);
                self.put(key, after.to_string().into_bytes(), span);
                expect(reply, &integer(after))
            }
            Command::Del(key) => {
                let existed = self.get(key).is_some();
                if existed {
                    self.remove(key);
                }
                expect(reply, &integer(i64::from(existed)))
            }
            Command::Getdel(key) => {
                let before = self.get(key);
                if before.is_some() {
                    self.remove(key);
                }
                expect(reply, &bulk(before))
            }
            Command::Pexpire(key, ms) => {
                let value = self.get(key);
                let existed = value.is_some();
                if let Some(value) = value {
                    let span = self.in_ms(*ms);
                    self.put(key, value, span);
                }
                expect(reply, &integer(i64::from(existed)))
            }
            Command::Persist(key) => {
                let ended = self.get(key).filter(|_| self.span(key).is_some());
                let did = ended.is_some();
                if let Some(value) = ended {
                    self.put(key, value, None);
                }
                expect(reply, &integer(i64::from(did)))
            }
            Command::Flushall => {
                self.state.0.values_mut().for_each(|stored| *stored = None);
                ok()
            }
            Command::Transaction(commands) => {
                let replies = reply.items().ok_or_else(|| format!("{} is no array", reply.show()))?;
                if replies.len() != commands.len() {
                    return Err(format!("{} replies to {} commands", replies.len(), commands.len()));
                }
                commands.iter().zip(replies).try_for_each(|(command, reply)| self.execute(command, reply))
            }
            Command::Durability(_) => ok(),
            Command::Ping => expect(reply, &Value::Line(b'+', b"PONG".to_vec())),
            // Who waits knows for what.
            Command::Waitaof => Ok(()),
        }
    }
}

fn bulk(value: Option<Vec<u8>>) -> Value {
    value.map_or_else(|| Value::Line(b'$', b"-1".to_vec()), |value| Value::Bytes(b'$', value))
}

fn integer(value: i64) -> Value {
    Value::Line(b':', value.to_string().into_bytes())
}

fn expect(found: &Value, expected: &Value) -> Result<(), String> {
    match found == expected {
        true => Ok(()),
        false => Err(format!("it would answer {}", expected.show())),
    }
}

impl Command {
    /// Whether the reply follows from the state, which is then what it is afterwards. The command was executed between two
    /// times, in milliseconds since 1970.
    pub fn execute(&self, state: &mut State, reply: &Value, low_ms: u64, high_ms: u64) -> Verdict {
        let mut run = Run { state, low_ms, high_ms, is_unclear: false };
        match run.execute(self, reply) {
            _ if run.is_unclear => Verdict::Unclear,
            Ok(()) => Verdict::Yes,
            Err(why) => Verdict::No(why),
        }
    }

    /// What it writes.
    pub fn tokens(&self) -> Vec<Token> {
        match self {
            Command::Set { text, .. } | Command::Setex(_, text, _) | Command::Append(_, text) => {
                vec![text.token]
            }
            Command::Mset(pairs) => pairs.iter().map(|(_, text)| text.token).collect(),
            Command::Transaction(commands) => commands.iter().flat_map(Command::tokens).collect(),
            _ => Vec::new(),
        }
    }

    /// The keys it is about.
    pub fn keys(&self) -> Vec<&[u8]> {
        match self {
            Command::Get(key)
            | Command::Strlen(key)
            | Command::Exists(key)
            | Command::ExpireTime(key)
            | Command::Set { key, .. }
            | Command::Setex(key, ..)
            | Command::Append(key, _)
            | Command::Incrby(key, _)
            | Command::Del(key)
            | Command::Getdel(key)
            | Command::Pexpire(key, _)
            | Command::Persist(key) => vec![key],
            Command::Mget(keys) => keys.clone(),
            Command::Mset(pairs) => pairs.iter().map(|(key, _)| *key).collect(),
            Command::Transaction(commands) => commands.iter().flat_map(Command::keys).collect(),
            Command::AllKeys
            | Command::Flushall
            | Command::Waitaof
            | Command::Durability(_)
            | Command::Ping => Vec::new(),
        }
    }

    /// It is about all keys.
    pub fn touches_all(&self) -> bool {
        match self {
            Command::AllKeys | Command::Flushall => true,
            Command::Transaction(commands) => commands.iter().any(Command::touches_all),
            _ => false,
        }
    }

    /// Whether it can be refused as a write.
    pub fn writes(&self) -> bool {
        match self {
            Command::Get(_)
            | Command::Mget(_)
            | Command::Strlen(_)
            | Command::Exists(_)
            | Command::ExpireTime(_)
            | Command::AllKeys
            | Command::Durability(_)
            | Command::Ping => false,
            Command::Transaction(commands) => commands.iter().any(Command::writes),
            _ => true,
        }
    }

    /// Whether it can be refused for want of memory.
    pub fn grows(&self) -> bool {
        match self {
            Command::Set { .. }
            | Command::Setex(..)
            | Command::Append(..)
            | Command::Mset(_)
            | Command::Incrby(..) => true,
            Command::Transaction(commands) => commands.iter().any(Command::grows),
            _ => false,
        }
    }

    /// Its words.
    fn words(&self) -> Vec<Vec<u8>> {
        let number = |number: u64| number.to_string().into_bytes();
        let mut words: Vec<Vec<u8>> = Vec::new();
        let name = match self {
            Command::Get(_) => "GET",
            Command::Mget(_) => "MGET",
            Command::Strlen(_) => "STRLEN",
            Command::Exists(_) => "EXISTS",
            Command::ExpireTime(_) => "PEXPIRETIME",
            Command::AllKeys => "KEYS",
            Command::Set { .. } => "SET",
            Command::Setex(..) => "SETEX",
            Command::Append(..) => "APPEND",
            Command::Mset(_) => "MSET",
            Command::Incrby(..) => "INCRBY",
            Command::Del(_) => "DEL",
            Command::Getdel(_) => "GETDEL",
            Command::Pexpire(..) => "PEXPIRE",
            Command::Persist(_) => "PERSIST",
            Command::Flushall => "FLUSHALL",
            Command::Transaction(_) => unreachable!("it is several"),
            Command::Waitaof => "WAITAOF",
            Command::Durability(_) => "CLIENT",
            Command::Ping => "PING",
        };
        words.push(name.into());
        match self {
            Command::Mset(pairs) => {
                words.extend(pairs.iter().flat_map(|(key, text)| [key.to_vec(), text.bytes()]))
            }
            Command::AllKeys => words.push(b"*".to_vec()),
            Command::Waitaof => words.extend([b"1".to_vec(), b"0".to_vec(), b"0".to_vec()]),
            Command::Durability(class) => {
                let word = class.map_or("default", Durability::name);
                words.extend(["DURABILITY".into(), word.into()]);
            }
            Command::Setex(key, text, seconds) => {
                words.extend([key.to_vec(), number(*seconds), text.bytes()]);
            }
            _ => words.extend(self.keys().iter().map(|key| key.to_vec())),
        }
        match self {
            Command::Set { text, px, nx, get, .. } => {
                words.push(text.bytes());
                words.extend(px.iter().flat_map(|ms| ["PX".into(), number(*ms)]));
                words.extend(nx.then(|| "NX".into()));
                words.extend(get.then(|| "GET".into()));
            }
            Command::Append(_, text) => words.push(text.bytes()),
            Command::Incrby(_, by) => words.push(number(u64::from(*by))),
            Command::Pexpire(_, ms) => words.push(number(*ms)),
            _ => {}
        }
        words
    }

    /// As RESP, for the wire; a transaction with its MULTI and EXEC.
    pub fn encode(&self, out: &mut Vec<u8>) {
        if let Command::Transaction(commands) = self {
            push(out, &["MULTI".into()]);
            commands.iter().for_each(|command| command.encode(out));
            return push(out, &["EXEC".into()]);
        }
        push(out, &self.words());
    }

    /// Replies that come before the one that counts: to MULTI, and of what is queued.
    pub fn replies_before(&self) -> usize {
        match self {
            Command::Transaction(commands) => 1 + commands.len(),
            _ => 0,
        }
    }

    /// As a request over HTTP, if it can be one.
    pub fn encode_http(&self, out: &mut Vec<u8>) {
        let path = |key: &Key| format!("/v1/keys/{}", String::from_utf8_lossy(key));
        let (method, target, body) = match self {
            Command::Get(key) => ("GET", path(key), Vec::new()),
            Command::Set { key, text, px, nx: false, get: false } => {
                let ttl = px.map_or(String::new(), |ms| format!("?ttl_ms={ms}"));
                ("PUT", format!("{}{ttl}", path(key)), text.bytes())
            }
            Command::Del(key) => ("DELETE", path(key), Vec::new()),
            other => unreachable!("{other:?} is not asked for over HTTP"),
        };
        let head = format!("{method} {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n");
        out.extend_from_slice(head.as_bytes());
        if method == "PUT" {
            out.extend_from_slice(format!("Content-Length: {}\r\n", body.len()).as_bytes());
        }
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(&body);
    }
}

fn push(out: &mut Vec<u8>, words: &[Vec<u8>]) {
    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}
