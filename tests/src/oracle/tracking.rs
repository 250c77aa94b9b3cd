//! Client tracking beside redis-server: who is told what, by which change, on which connection.
//!
//! Random clients of every mode, some redirected, do one thing after the other. After each step every connection is asked
//! for a sign of life, and what it was told in the step must be the same on both sides: the reply byte for byte, before
//! any invalidation; the invalidations as a set of keys. As a set, because Redis puts several keys of broadcasting
//! clients into one push and Millrace never does, and because shards have no order among themselves. A server whose
//! invalidations are on their way from another shard is asked again, for a while.
//!
//! Over several shards it is also looked at that no acknowledgement overtakes an invalidation: when whoever acted has its
//! answer, every other client is answered behind what it is to be told, unless another connection is told in its place.
//!
//! [`compare_options`] lays every combination of up to three options beside each other, behind every state that decides
//! which of them may follow.
//!
//! Nothing here depends on a clock: keys expire never or at once. And one thing is left out: a client that is told in place
//! of another hears of its own changes before their reply from Redis, even in the middle of EXEC's, and behind it from
//! Millrace. So few connections are redirected to, and these have no transactions.

use super::command::Command;
use super::target::{Link, Received, Server};
use super::value::{Value, show_bytes};
use crate::random::Random;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Connections at a time.
const CONNECTIONS: usize = 6;
/// How long an invalidation may be on its way.
const PATIENCE: Duration = Duration::from_secs(10);
/// Those of them that others redirect to.
const LISTENERS: usize = 2;
const CHANNEL: &str = "__redis__:invalidate";

/// What a run did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Told {
    /// Steps.
    pub steps: usize,
    /// Keys that clients were told of, and `*` for all of them.
    pub keys: usize,
    /// Messages that a redirection is broken.
    pub broken: usize,
}

/// One side of a run.
struct Side<'a> {
    server: &'a mut dyn Server,
    links: Vec<Box<dyn Link>>,
    /// What has come and was not looked at.
    received: Vec<Vec<u8>>,
    /// CLIENT ID of every connection there ever was.
    ids: Vec<i64>,
    /// Those of the present ones.
    present: Vec<usize>,
    marks: u64,
    /// Replies stand before invalidations.
    is_strict: bool,
}

/// What a connection heard in a step: replies in their order, and what it was told without having asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Heard {
    replies: Vec<String>,
    told: BTreeSet<String>,
}

impl Side<'_> {
    fn connect(&mut self, at: usize) {
        let mut link = self.server.connect();
        let id = super::ask(&mut *link, &["CLIENT", "ID"]).integer().expect("a number");
        if at < self.links.len() {
            self.links[at] = link;
            self.received[at].clear();
            self.present[at] = self.ids.len();
        } else {
            self.links.push(link);
            self.received.push(Vec::new());
            self.present.push(self.ids.len());
        }
        self.ids.push(id);
        // Most are RESP3 clients that track, unless they say something else.
        super::ask(&mut *self.links[at], &["HELLO", "3"]);
        if at >= LISTENERS {
            super::ask(&mut *self.links[at], &["CLIENT", "TRACKING", "ON"]);
        }
    }

    /// Ids mean the same if they are those of the same connection.
    fn named(&self, value: &Value) -> Value {
        match value {
            Value::Line(b':', _) => {
                let known = self.ids.iter().position(|id| Some(*id) == value.integer());
                known.map_or(value.clone(), |at| Value::Line(b':', format!("<{at}>").into_bytes()))
            }
            Value::Items(kind, items) => {
                Value::Items(*kind, items.iter().map(|item| self.named(item)).collect())
            }
            other => other.clone(),
        }
    }

    /// Sends commands, with `$n` for the id of connection n.
    fn send(&mut self, at: usize, commands: &[Vec<String>]) {
        let mut bytes = Vec::new();
        for words in commands {
            let word = |word: &String| match word.strip_prefix('$').and_then(|n| n.parse::<usize>().ok()) {
                Some(other) => self.ids[self.present[other]].to_string().into_bytes(),
                None => word.clone().into_bytes(),
            };
            Command::new(words.iter().map(word).collect()).encode(&mut bytes);
        }
        self.links[at].send(&bytes);
    }

    /// Everything a connection hears until it gives a sign of life.
    fn listen(&mut self, at: usize, shows_ids: bool, heard: &mut Heard) -> Result<(), String> {
        self.marks += 1;
        let mark = format!("mark-{}", self.marks);
        let mut bytes = Vec::new();
        Command::new(vec![b"PING".to_vec(), mark.clone().into_bytes()]).encode(&mut bytes);
        self.links[at].send(&bytes);
        let had_told = heard.told.len();
        loop {
            let value = match Value::parse(&self.received[at]) {
                Ok((value, used)) => {
                    self.received[at].drain(..used);
                    value
                }
                Err(_) => {
                    if self.links[at].receive(&mut self.received[at]) != Received::Bytes {
                        let rest = show_bytes(&self.received[at], 600);
                        return Err(format!(
                            "{} fell silent; what it said last: \"{rest}\"",
                            self.server.name()
                        ));
                    }
                    continue;
                }
            };
            let is_mark = |value: &Value| value.bytes() == Some(mark.as_bytes());
            // A RESP2 client that listens gets a pair.
            if is_mark(&value) || value.items().is_some_and(|items| items.last().is_some_and(is_mark)) {
                return Ok(());
            }
            match unasked(&value) {
                Some(Unasked::Keys(keys)) => heard.told.extend(keys),
                Some(Unasked::Broken(id)) => {
                    let at = self.ids.iter().position(|known| *known == id);
                    heard.told.insert(format!("broken <{at:?}>"));
                }
                None if heard.told.len() > had_told && self.is_strict => {
                    return Err(format!("{}: a reply stands behind an invalidation", self.server.name()));
                }
                None => {
                    // Among numbers, those of TRACKINGINFO and GETREDIR.
                    let is_info = value
                        .items()
                        .and_then(|all| all.first())
                        .is_some_and(|first| first.bytes() == Some(b"flags"));
                    let value = if shows_ids || is_info { self.named(&value) } else { value };
                    heard.replies.push(value.show());
                }
            }
        }
    }
}

enum Unasked {
    Keys(Vec<String>),
    Broken(i64),
}

/// What an invalidation says, in either protocol; `None`: it is another value.
fn unasked(value: &Value) -> Option<Unasked> {
    let items = value.items()?;
    let word = |at: usize| items.get(at).and_then(Value::bytes);
    let keys = match (value.kind(), word(0)?) {
        (b'>', b"invalidate") => items.get(1)?,
        (b'*', b"message") if word(1)? == CHANNEL.as_bytes() => items.get(2)?,
        (b'>', b"tracking-redir-broken") => return Some(Unasked::Broken(items.get(1)?.integer()?)),
        _ => return None,
    };
    Some(Unasked::Keys(match keys.items() {
        None => vec!["*".into()],
        Some(keys) => keys.iter().map(Value::show).collect(),
    }))
}

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

fn key(random: &mut Random) -> String {
    format!("{}{}", random.pick(&["a:", "b:", "ab:", "c"]), random.below(4))
}

fn read(random: &mut Random) -> String {
    let key = key(random);
    match random.below(9) {
        0..4 => format!("GET {key}"),
        4 => format!("MGET {key} {} {}", self::key(random), self::key(random)),
        5 => format!("EXISTS {key} {}", self::key(random)),
        6 => format!("{} {key}", random.pick(&["STRLEN", "TYPE", "PEXPIRETIME", "TOUCH"])),
        7 => format!("GETRANGE {key} 0 1"),
        _ => format!("LCS {key} {}", self::key(random)),
    }
}

fn write(random: &mut Random) -> String {
    let (key, other, value) = (key(random), key(random), random.below(1000));
    match random.below(22) {
        0..7 => format!("SET {key} {value}"),
        7 => format!(
            "SET {key} {value} {}",
            random.pick(&["NX", "XX", "KEEPTTL", "GET", "PXAT 4102444800000"])
        ),
        8 => format!("DEL {key} {other}"),
        9 => format!("MSET {key} {value} {other} {value}"),
        10 => format!("MSETNX {key} {value} {other} {value}"),
        11 => format!("{} {key} {other}", random.pick(&["RENAME", "RENAMENX", "COPY"])),
        12 => format!("COPY {key} {other} REPLACE"),
        13 => format!("APPEND {key} x"),
        14 => format!("SETRANGE {key} {} y", random.below(5)),
        15 => format!("INCR {key}"),
        16 => format!("PEXPIREAT {key} {}", random.pick(&["4102444800000", "4102444900000", "1"])),
        17 => format!("PERSIST {key}"),
        18 => format!("{} {key}", random.pick(&["GETDEL", "GETEX"])),
        19 => format!("GETEX {key} {}", random.pick(&["PERSIST", "PXAT 4102444800000", "PXAT 1"])),
        20 => format!("GETSET {key} {value}"),
        _ if random.chance(20) => (*random.pick(&["FLUSHALL", "FLUSHDB", "FLUSHALL ASYNC"])).into(),
        _ => format!("UNLINK {key}"),
    }
}

/// CLIENT TRACKING with options that go together more often than not.
fn tracking(random: &mut Random) -> String {
    let mut line = format!(
        "CLIENT TRACKING {}",
        random.pick(&["ON", "ON", "ON", "ON", "ON", "ON", "on", "OFF", "maybe"])
    );
    match random.below(10) {
        0..3 => {}
        3..6 => {
            line += " BCAST";
            for _ in 0..random.below(3) {
                line += &format!(" PREFIX {}", random.pick(&["a:", "b:", "ab:", "a", "c"]));
            }
        }
        6 => line += " OPTIN",
        7 => line += " OPTOUT",
        _ => {
            for _ in 0..random.below(4) {
                line += *random.pick(&[
                    " OPTIN",
                    " OPTOUT",
                    " BCAST",
                    " NOLOOP",
                    " PREFIX a:",
                    " PREFIX",
                    " junk",
                ]);
            }
        }
    }
    if random.chance(25) {
        line += " NOLOOP";
    }
    if random.chance(30) {
        line += &format!(" REDIRECT ${}", random.below(LISTENERS));
    }
    if random.chance(3) {
        line += *random.pick(&[" REDIRECT 0", " REDIRECT -3", " REDIRECT x", " REDIRECT", " REDIRECT $0"]);
    }
    line
}

/// What a connection says in one step.
fn say(random: &mut Random, at: usize) -> Vec<String> {
    match random.below(100) {
        0..34 => vec![read(random)],
        34..64 => vec![write(random)],
        64..72 if at >= LISTENERS => {
            let mut lines = vec!["MULTI".to_owned()];
            if random.chance(20) {
                lines.insert(0, format!("CLIENT CACHING {}", random.pick(&["YES", "NO"])));
            }
            for _ in 0..1 + random.below(4) {
                lines.push(if random.chance(50) { read(random) } else { write(random) });
            }
            lines.push((*random.pick(&["EXEC", "EXEC", "EXEC", "DISCARD"])).into());
            lines
        }
        72..78 => {
            let caching = format!("CLIENT CACHING {}", random.pick(&["YES", "YES", "NO", "NO", "maybe"]));
            let between = random.pick(&["PING", "CLIENT GETNAME", "CLIENT TRACKINGINFO", "NOSUCH", "GET"]);
            match random.below(3) {
                0 => vec![caching, (*between).into(), read(random)],
                _ => vec![caching, read(random), read(random)],
            }
        }
        78..88 => {
            let line = tracking(random);
            // Redis remembers what a client has read that tracks no more, should it begin again; Millrace does not.
            let forgets = line.contains("OFF").then(|| "FLUSHALL".to_owned());
            [line].into_iter().chain(forgets).collect()
        }
        88..91 => vec!["CLIENT TRACKINGINFO".into()],
        91 => vec!["CLIENT GETREDIR".into()],
        92 if at < LISTENERS => vec!["HELLO 2".into()],
        92..95 => vec!["HELLO 3".into()],
        95..97 if at < LISTENERS => vec![format!("SUBSCRIBE {}", random.pick(&[CHANNEL, CHANNEL, "other"]))],
        97 => vec![format!("UNSUBSCRIBE {CHANNEL}")],
        98 if random.chance(30) => {
            vec!["RESET".into(), "FLUSHALL".into(), "HELLO 3".into(), "CLIENT TRACKING ON".into()]
        }
        _ => vec!["CLIENT REPLY SKIP".into(), read(random), write(random)],
    }
}

/// Plays `steps` steps on both; an error says what differed. Unless `is_exact`, Millrace may tell more, and
/// later: from another shard a key that changed twice may come a second time after the next reply, and with a log a client
/// that begins to track while an older change is on its way to the disk may hear of it. Neither does harm.
pub fn compare(
    redis: &mut dyn Server,
    millrace: &mut dyn Server,
    seed: u64,
    steps: usize,
    is_exact: bool,
) -> Result<Told, String> {
    let mut random = Random::new(seed);
    let side = |server, is_strict| Side {
        is_strict,
        server,
        links: Vec::new(),
        received: Vec::new(),
        ids: Vec::new(),
        present: Vec::new(),
        marks: 0,
    };
    let mut sides = [side(redis, false), side(millrace, is_exact)];
    for at in 0..CONNECTIONS {
        sides.iter_mut().for_each(|side| side.connect(at));
    }
    let mut done = Told::default();
    let mut history = Vec::new();
    while done.steps < steps {
        done.steps += 1;
        let at = random.below(CONNECTIONS);
        let closes = random.chance(2);
        let (by, lines) = match closes {
            true => ((at + 1) % CONNECTIONS, vec![format!("CLIENT KILL ID ${at}")]),
            false => (at, say(&mut random, at)),
        };
        history.push(format!("{by}> {}", lines.join(" | ")));
        let commands: Vec<Vec<String>> = lines.iter().map(|line| words(line)).collect();
        for side in &mut sides {
            // A RESP2 client that listens may not kill: the connection that does it is one of its own.
            match closes {
                true => {
                    let mut other = side.server.connect();
                    let id = side.ids[side.present[at]].to_string();
                    super::ask(&mut *other, &["CLIENT", "KILL", "ID", &id]);
                    side.connect(at);
                }
                false => side.send(by, &commands),
            }
        }
        let shows_ids = lines[0] == "CLIENT GETREDIR";
        let is_hello = lines.iter().any(|line| line.starts_with("HELLO"));
        // Redis tells broadcasting clients at the end of the round in which it executed the command, which is over when it
        // has answered what was asked behind it: so whoever acted is asked first, and again with the others.
        let mut first = [Heard::default(), Heard::default()];
        for (side, heard) in sides.iter_mut().zip(&mut first) {
            side.listen(at, shows_ids, heard)?;
        }
        for connection in 0..CONNECTIONS {
            let is_actor = connection == at;
            let mut heard = if is_actor { std::mem::take(&mut first) } else { Default::default() };
            let begun = Instant::now();
            for (side, heard) in sides.iter_mut().zip(&mut heard) {
                side.listen(connection, shows_ids, heard)?;
            }
            // Who is told in the place of another, or that nobody is any more, may be told later.
            let mut missing = heard[0].told.difference(&heard[1].told);
            if connection >= LISTENERS
                && let Some(key) = missing.find(|told| !told.starts_with("broken"))
            {
                let before = history.len().saturating_sub(25);
                return Err(format!(
                    "connection {connection} with seed {seed} was not told of {key} before it was answered, after\n    {}",
                    history[before..].join("\n    ")
                ));
            }
            while !heard[0].told.is_subset(&heard[1].told) && begun.elapsed() < PATIENCE {
                sides[1].listen(connection, shows_ids, &mut heard[1])?;
            }
            let [redis, millrace] = &heard;
            let same_replies = is_hello || redis.replies == millrace.replies;
            let same_told = match is_exact {
                true => redis.told == millrace.told,
                false => redis.told.is_subset(&millrace.told),
            };
            if !same_replies || !same_told {
                let before = history.len().saturating_sub(25);
                return Err(format!(
                    "connection {connection} with seed {seed} after\n    {}\n  redis:    {redis:?}\n  {}: {millrace:?}",
                    history[before..].join("\n    "),
                    sides[1].server.name(),
                ));
            }
            done.keys += redis.told.len();
            done.broken += redis.told.iter().filter(|told| told.starts_with("broken")).count();
        }
    }
    Ok(done)
}

/// What a client asked for before.
const BEFORE: [&str; 9] = [
    "OFF",
    "ON",
    "ON OPTIN",
    "ON OPTOUT",
    "ON NOLOOP",
    "ON BCAST",
    "ON BCAST PREFIX a: PREFIX bb",
    "ON BCAST NOLOOP PREFIX ",
    "ON REDIRECT $0",
];

/// Options, right and wrong; `$0` is another client, `$1` the client itself.
const OPTIONS: [&str; 15] = [
    "OPTIN",
    "optout",
    "BCAST",
    "NoLoop",
    "PREFIX a:",
    "PREFIX a:longer",
    "PREFIX b",
    "PREFIX ",
    "REDIRECT $0",
    "REDIRECT $1",
    "REDIRECT 0",
    "REDIRECT 123456789",
    "REDIRECT x",
    "PREFIX",
    "REDIRECT",
];

/// A client and another one of the same server, which it can redirect to.
struct Asked {
    link: Box<dyn Link>,
    _other: Box<dyn Link>,
    ids: Vec<String>,
}

/// Every combination of up to two options, in each order, and `more` of three, behind every state; CACHING, TRACKINGINFO and
/// GETREDIR in each state that comes of it. Returns how many replies were the same.
pub fn compare_options<'a>(
    redis: &'a mut dyn Server,
    millrace: &'a mut dyn Server,
    seed: u64,
    more: usize,
) -> Result<usize, String> {
    let mut random = Random::new(seed);
    let mut tails: Vec<Vec<&str>> = vec![Vec::new()];
    for one in OPTIONS.iter().chain(&["junk", ""]) {
        tails.push(vec![one]);
        tails.extend(OPTIONS.iter().map(|two| vec![*one, two]));
    }
    tails.extend((0..more).map(|_| (0..3).map(|_| *random.pick(&OPTIONS)).collect()));
    let name = millrace.name().to_owned();
    let mut sides = Vec::new();
    let servers: [&mut dyn Server; 2] = [redis, millrace];
    for server in servers {
        let mut other = server.connect();
        let mut link = server.connect();
        let ids = [&mut other, &mut link].map(|link| super::ask(&mut **link, &["CLIENT", "ID"]).show());
        let ids = ids.map(|id| id.trim_start_matches(':').to_owned()).to_vec();
        sides.push(Asked { link, _other: other, ids });
    }
    let mut compared = 0;
    for resp in ["2", "3"] {
        sides.iter_mut().for_each(|side| drop(super::ask(&mut *side.link, &["HELLO", resp])));
        for before in BEFORE {
            for tail in &tails {
                let word = *random.pick(&["ON", "ON", "ON", "on", "OFF", "maybe"]);
                let line = format!("{word} {}", tail.join(" "));
                let line = line.strip_suffix(' ').filter(|_| tail.is_empty()).unwrap_or(&line);
                let lines = [
                    "CLIENT TRACKING OFF".into(),
                    format!("CLIENT TRACKING {before}"),
                    format!("CLIENT TRACKING {line}"),
                    "CLIENT TRACKINGINFO".into(),
                    "CLIENT GETREDIR".into(),
                    "CLIENT CACHING YES".into(),
                    "CLIENT TRACKINGINFO".into(),
                    "CLIENT CACHING no".into(),
                    "CLIENT TRACKINGINFO".into(),
                    "CLIENT CACHING maybe".into(),
                ];
                let mut answers: Vec<Vec<String>> = Vec::new();
                for Asked { link, ids, .. } in &mut sides {
                    let said = |line: &String| {
                        let word = |word: &str| match word {
                            "$0" => ids[0].clone(),
                            "$1" => ids[1].clone(),
                            word => word.to_owned(),
                        };
                        let words: Vec<String> = line.split(' ').map(word).collect();
                        let words: Vec<&str> = words.iter().map(String::as_str).collect();
                        let mut text = super::ask(&mut **link, &words).show();
                        for (at, id) in ids.iter().enumerate() {
                            text = text.replace(&format!(":{id}"), &format!(":<{at}>"));
                        }
                        text
                    };
                    answers.push(lines.iter().map(said).collect());
                }
                if answers[0] != answers[1] {
                    return Err(format!(
                        "RESP{resp}, {before:?}, then {line:?}:\n  redis:    {:#?}\n  {}: {:#?}",
                        answers[0], name, answers[1]
                    ));
                }
                compared += answers[0].len();
            }
        }
    }
    Ok(compared)
}
