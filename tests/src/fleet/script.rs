//! Random commands for clients that must not meet: the oracle's grammar, every key in a client's own room.
//!
//! A client whose keys nobody else touches must read, among however many others, what it would read alone.

use crate::oracle::command::{Command, Step};
use crate::oracle::grammar::Grammar;
use crate::random::Random;
use store::command::{COMMANDS, flag, lookup};

/// Commands that show or change what is not the caller's alone: of no use here, and some of no meaning.
const ABOUT_OTHERS: &[&str] = &[
    "ACL",
    "CLIENT",
    "COMMAND",
    "CONFIG",
    "DEBUG",
    "INFO",
    "LASTSAVE",
    "LATENCY",
    "LOLWUT",
    "MEMORY",
    "MODULE",
    "MONITOR",
    "PSUBSCRIBE",
    "PUBLISH",
    "PUBSUB",
    "PUNSUBSCRIBE",
    "ROLE",
    "SAVE",
    "BGSAVE",
    "SHUTDOWN",
    "SLOWLOG",
    "SPUBLISH",
    "SSUBSCRIBE",
    "SUBSCRIBE",
    "SUNSUBSCRIBE",
    "TIME",
    "UNSUBSCRIBE",
    "WAIT",
    "POST",
    "HOST:",
    "AUTH",
];

/// Commands about every key. [`spans_shards`] says whether they are about those of every shard yet.
const ABOUT_ALL_KEYS: &[&str] = &["DBSIZE", "FLUSHALL", "FLUSHDB", "KEYS", "RANDOMKEY"];

/// Whether a command's answer depends on nothing but keys that it names, and on its own connection.
pub fn is_about_keys(command: &Command) -> bool {
    let name = command.name();
    let reply_mode = command.starts_with(&["CLIENT", "REPLY"]);
    (reply_mode || !ABOUT_OTHERS.contains(&&*name)) && !ABOUT_ALL_KEYS.contains(&&*name) && name != "SCAN"
}

/// The same, or it is about every key of the server.
pub fn is_about_data(command: &Command) -> bool {
    let name = command.name();
    let about_all = ABOUT_ALL_KEYS.contains(&&*name) || name == "SCAN";
    is_about_keys(command) || (about_all && (name == "SCAN" || spans_shards(&name)))
}

/// Whether the table says that a command is about all shards.
pub fn spans_shards(name: &str) -> bool {
    lookup(name.as_bytes()).is_some_and(|command| command.flags & flag::ALL_SHARDS != 0)
}

/// Puts `room` before every key of a command.
fn enter(command: &mut Command, room: &[u8]) {
    let Some(mut entry) = lookup(&command.args[0]) else { return };
    if entry.is_container
        && let Some(found) = command.args.get(1).and_then(|word| entry.subcommand(word))
    {
        entry = found;
    }
    let keys = COMMANDS[usize::from(entry.id)].keys;
    let count = command.args.len();
    let last = if keys.last < 0 { count as i64 + i64::from(keys.last) } else { i64::from(keys.last) };
    let mut at = keys.first.max(0) as usize;
    while keys.first > 0 && at as i64 <= last && at < count {
        command.args[at].splice(..0, room.iter().copied());
        at += keys.step.max(1) as usize;
    }
}

/// What one client sends.
pub struct Script {
    grammar: Grammar,
    room: Vec<u8>,
    /// Large values, in a thousand places between two commands.
    large: usize,
}

impl Script {
    /// Of the client with this number.
    pub fn new(random: &mut Random, client: usize) -> Script {
        let large = *random.pick(&[0, 0, 2, 20]);
        let room = match random.below(5) {
            // All its keys on one shard.
            0 => format!("{{{}}}", random.below(1000) * 10 + client),
            _ => format!("{client}:"),
        };
        Script { grammar: Grammar::new(random.next_u64(), 2), room: room.into_bytes(), large }
    }

    /// About so many commands as bytes.
    pub fn bytes(&mut self, commands: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut count = 0;
        while count < commands {
            for step in self.grammar.script() {
                let (Step::Burst { commands, .. } | Step::Open { commands, .. }) = step else { continue };
                for mut command in commands {
                    if is_about_keys(&command) {
                        enter(&mut command, &self.room);
                        command.encode(&mut bytes);
                        count += 1;
                    }
                    self.interrupt(&mut bytes);
                }
            }
        }
        bytes
    }

    /// Between two commands: a shard falls asleep, or something large passes.
    fn interrupt(&mut self, bytes: &mut Vec<u8>) {
        let (room, large) = (self.room.clone(), 4 + self.large);
        let random = self.grammar.random();
        let command = |words: &[&[u8]], bytes: &mut Vec<u8>| {
            Command::new(words.iter().map(|word| word.to_vec()).collect()).encode(bytes);
        };
        let key = |number: usize| [&room[..], b"large", number.to_string().as_bytes()].concat();
        match random.below(1000) {
            0..4 => {
                let length = format!("0.00{}", random.between(1, 30));
                command(&[b"DEBUG", b"SLEEP", length.as_bytes()], bytes);
            }
            place if (4..large).contains(&place) => {
                let offset = 200_000 + random.below(1_000_000);
                command(&[b"SETRANGE", &key(random.below(4)), offset.to_string().as_bytes(), b"x"], bytes);
                let reads: Vec<Vec<u8>> = (0..1 + random.below(8)).map(|_| key(random.below(4))).collect();
                for read in &reads {
                    command(&[b"GET", read], bytes);
                }
                if random.chance(30) {
                    let mut words: Vec<&[u8]> = vec![b"MGET"];
                    words.extend(reads.iter().map(Vec::as_slice));
                    command(&words, bytes);
                }
                if random.chance(50) {
                    let all: [Vec<u8>; 4] = std::array::from_fn(key);
                    command(&[b"DEL", &all[0], &all[1], &all[2], &all[3]], bytes);
                }
            }
            999 => command(&[b"QUIT"], bytes),
            _ => {}
        }
    }
}

/// A reply stream without what differs by nature: the connection's number in HELLO's reply.
pub fn without_client_ids(bytes: &[u8]) -> Vec<u8> {
    const FIELD: &[u8] = b"$2\r\nid\r\n:";
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(at) = rest.windows(FIELD.len()).position(|window| window == FIELD) {
        out.extend_from_slice(&rest[..at + FIELD.len()]);
        rest = &rest[at + FIELD.len()..];
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        rest = &rest[digits..];
    }
    out.extend_from_slice(rest);
    out
}
