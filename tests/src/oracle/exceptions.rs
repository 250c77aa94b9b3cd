//! The replies that may differ from Redis', each with its reason. **This list may only shrink.**
//!
//! Everything that is not named here must be equal byte for byte. An exception does not switch the comparison off:
//! it says what still must agree. A test asserts the number of entries.

use super::command::Command;
use super::value::Value;
use std::collections::BTreeSet;

/// One kind of reply that may differ.
pub struct Exception {
    /// For messages.
    pub name: &'static str,
    /// Why no server could answer the same bytes, or why Millrace rightly does not.
    pub reason: &'static str,
    /// The commands it is about.
    pub applies: fn(&Command) -> bool,
    /// What must agree nevertheless: the command, Redis' reply, Millrace's reply.
    pub agrees: fn(&Command, &Value, &Value) -> bool,
}

/// Milliseconds that the two servers' clocks, or the moments they executed a command, may be apart.
const CLOCK_SLACK_MS: i64 = 20_000;
/// The oracle's absolute expiry times lie after this moment (2096), its relative ones end before it.
pub const ABSOLUTE_FROM_MS: i64 = 4_000_000_000_000;
/// And before this one (2112), or at the end of time.
const ABSOLUTE_UNTIL_MS: i64 = 4_500_000_000_000;

/// The list.
pub static EXCEPTIONS: &[Exception] = &[
    Exception {
        name: "order of keys",
        reason: "KEYS walks the hash table, and the hash seed is random",
        applies: |command| command.starts_with(&["KEYS"]),
        agrees: |_, redis, millrace| same_set(redis, millrace),
    },
    Exception {
        name: "SCAN",
        reason: "cursors are opaque and the order is that of the hash table; a full scan is compared as a set elsewhere",
        applies: |command| command.starts_with(&["SCAN"]),
        agrees: |_, redis, millrace| is_scan_reply(redis) && is_scan_reply(millrace),
    },
    Exception {
        name: "RANDOMKEY",
        reason: "the choice is random",
        applies: |command| command.starts_with(&["RANDOMKEY"]),
        agrees: |_, redis, millrace| redis.bytes().is_some() && millrace.bytes().is_some(),
    },
    Exception {
        name: "relative expiry",
        reason: "the two servers execute EXPIRE, and later TTL, at different moments",
        applies: |command| matches!(&*command.name(), "TTL" | "PTTL" | "EXPIRETIME" | "PEXPIRETIME"),
        agrees: |command, redis, millrace| same_time(command, redis, millrace),
    },
    Exception {
        name: "TIME, LASTSAVE",
        reason: "clocks",
        applies: |command| matches!(&*command.name(), "TIME" | "LASTSAVE"),
        agrees: |_, redis, millrace| same_shape(redis, millrace),
    },
    Exception {
        name: "OBJECT IDLETIME, OBJECT FREQ",
        reason: "seconds of idleness sampled at different moments; a counter that grows at random",
        applies: |command| command.name() == "OBJECT" && matches!(&*command.upper(1), "IDLETIME" | "FREQ"),
        agrees: |_, redis, millrace| redis.integer().is_some() && millrace.integer().is_some(),
    },
    Exception {
        name: "OBJECT REFCOUNT",
        reason: "what Redis still references depends on the command that wrote it; nothing is shared here",
        applies: |command| command.starts_with(&["OBJECT", "REFCOUNT"]),
        agrees: |_, redis, millrace| redis.integer().is_some() && millrace.integer().is_some(),
    },
    Exception {
        name: "INFO",
        reason: "numbers of another server; the sections are the same, and some more",
        applies: |command| command.starts_with(&["INFO"]),
        agrees: |_, redis, millrace| has_sections_of(redis, millrace),
    },
    Exception {
        name: "CLIENT ID",
        reason: "ids are counted per server, and Redis counts its own connections too",
        applies: |command| command.starts_with(&["CLIENT", "ID"]),
        agrees: |_, redis, millrace| redis.integer().is_some() && millrace.integer().is_some(),
    },
    Exception {
        name: "CLIENT INFO, CLIENT LIST",
        reason: "addresses, ages and buffer sizes; lib-name and lib-ver follow, as in Redis 7.2; shards count by themselves, \
                 so with several the order is not that of connecting",
        applies: |command| {
            command.starts_with(&["CLIENT", "INFO"]) || command.starts_with(&["CLIENT", "LIST"])
        },
        agrees: |_, redis, millrace| same_client_lines(redis, millrace),
    },
    Exception {
        name: "HELLO",
        reason: "version and connection id",
        applies: |command| command.starts_with(&["HELLO"]),
        agrees: |_, redis, millrace| same_hello(redis, millrace),
    },
    Exception {
        name: "COMMAND, COMMAND COUNT, LIST, DOCS, INFO without a name",
        reason: "Redis has more commands, and its documentation is its own",
        applies: |command| {
            command.name() == "COMMAND"
                && (command.args.len() == 1
                    || matches!(&*command.upper(1), "COUNT" | "LIST" | "DOCS")
                    || command.upper(1) == "INFO" && command.args.len() == 2)
        },
        agrees: |_, redis, millrace| redis.kind() == millrace.kind(),
    },
    Exception {
        name: "CONFIG GET with a pattern",
        reason: "the settings are not the same; those that both have must have the same values, but for addresses",
        applies: |command| {
            command.starts_with(&["CONFIG", "GET"]) && command.args[2..].iter().any(|name| is_glob(name))
        },
        agrees: |_, redis, millrace| same_settings(redis, millrace),
    },
    Exception {
        name: "MEMORY",
        reason: "numbers of another allocator",
        applies: |command| command.name() == "MEMORY" && command.upper(1) != "HELP",
        agrees: |_, redis, millrace| redis.kind() == millrace.kind(),
    },
    Exception {
        name: "SLOWLOG GET, SLOWLOG LEN",
        reason: "which commands are slow is not the same",
        applies: |command| {
            command.starts_with(&["SLOWLOG", "GET"]) || command.starts_with(&["SLOWLOG", "LEN"])
        },
        agrees: |_, redis, millrace| redis.kind() == millrace.kind(),
    },
    Exception {
        name: "LATENCY",
        reason: "measured times",
        applies: |command| command.name() == "LATENCY" && command.upper(1) != "HELP",
        agrees: |_, redis, millrace| redis.kind() == millrace.kind(),
    },
    Exception {
        name: "DEBUG OBJECT",
        reason: "an address, and the length of a serialised form that Millrace does not have",
        applies: |command| command.starts_with(&["DEBUG", "OBJECT"]),
        agrees: |_, redis, millrace| redis.kind() == millrace.kind() && !redis.is_error(),
    },
    Exception {
        name: "CLIENT SETINFO, CLIENT NO-TOUCH",
        reason: "of Redis 7.2: current clients send SETINFO on connecting, so Millrace has it",
        applies: |command| {
            command.starts_with(&["CLIENT", "SETINFO"]) || command.starts_with(&["CLIENT", "NO-TOUCH"])
        },
        agrees: |_, redis, _| redis.is_error(),
    },
    Exception {
        name: "order of channels",
        reason: "PUBSUB CHANNELS walks a hash table",
        applies: |command| {
            matches!(&*command.upper(1), "CHANNELS" | "SHARDCHANNELS") && command.name() == "PUBSUB"
        },
        agrees: |_, redis, millrace| same_set(redis, millrace),
    },
    Exception {
        name: "order of leaving",
        reason: "UNSUBSCRIBE without names leaves the channels in the order of a hash table",
        applies: leaves_all,
        agrees: |_, redis, millrace| same_leave(redis, millrace),
    },
];

/// The exception that covers this pair of replies, if one does.
pub fn covering(command: &Command, redis: &Value, millrace: &Value) -> Option<usize> {
    EXCEPTIONS
        .iter()
        .position(|exception| (exception.applies)(command) && (exception.agrees)(command, redis, millrace))
}

/// Whether a command unsubscribes from everything, with as many replies as there were channels.
pub fn leaves_all(command: &Command) -> bool {
    command.args.len() == 1 && matches!(&*command.name(), "UNSUBSCRIBE" | "PUNSUBSCRIBE" | "SUNSUBSCRIBE")
}

fn is_glob(name: &[u8]) -> bool {
    name.iter().any(|byte| matches!(byte, b'*' | b'?' | b'['))
}

fn same_set(redis: &Value, millrace: &Value) -> bool {
    let (Some(redis_items), Some(millrace_items)) = (redis.items(), millrace.items()) else {
        return false;
    };
    let set = |items: &[Value]| items.iter().map(Value::show).collect::<BTreeSet<_>>();
    redis.kind() == millrace.kind()
        && redis_items.len() == millrace_items.len()
        && set(redis_items) == set(millrace_items)
}

fn is_scan_reply(reply: &Value) -> bool {
    let Some([cursor, keys]) = reply.items() else {
        return false;
    };
    let is_number = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    cursor.bytes().is_some_and(is_number)
        && keys.items().is_some_and(|keys| keys.iter().all(|key| key.bytes().is_some()))
}

fn same_time(command: &Command, redis: &Value, millrace: &Value) -> bool {
    let (Some(redis), Some(millrace)) = (redis.integer(), millrace.integer()) else {
        return false;
    };
    let name = command.name();
    let unit_ms = if name.starts_with('P') { 1 } else { 1000 };
    // An absolute time that a mutation made a relative one lies as far behind now again: between the two.
    let at_ms = redis.saturating_mul(unit_ms);
    let is_pooled = (ABSOLUTE_FROM_MS..ABSOLUTE_UNTIL_MS).contains(&at_ms) || at_ms > i64::MAX / 1000;
    let is_absolute = name.ends_with("EXPIRETIME") && is_pooled;
    redis > 0 && millrace > 0 && !is_absolute && redis.abs_diff(millrace) <= (CLOCK_SLACK_MS / unit_ms) as u64
}

/// The same kinds of values, nested in the same way.
fn same_shape(redis: &Value, millrace: &Value) -> bool {
    match (redis.items(), millrace.items()) {
        (Some(a), Some(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same_shape(a, b)),
        _ => redis.kind() == millrace.kind() && !redis.is_error(),
    }
}

/// Line by line the same fields in the same order, and the same values where they do not depend on the machine. Lines
/// are laid side by side by those values.
/// A connection that is being closed (flag c) may still be there or not.
fn same_client_lines(redis: &Value, millrace: &Value) -> bool {
    type Line = Vec<(String, String)>;
    let lines = |reply: &Value| -> Option<Vec<Line>> {
        let text = String::from_utf8_lossy(reply.bytes()?).into_owned();
        let text = text.strip_prefix("txt:").unwrap_or(&text).to_owned();
        let pair =
            |field: &str| field.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        let lines: Option<Vec<Line>> = text.lines().map(|line| line.split(' ').map(pair).collect()).collect();
        let is_closing =
            |line: &Line| line.iter().any(|(name, value)| name == "flags" && value.contains('c'));
        lines.map(|lines| lines.into_iter().filter(|line| !is_closing(line)).collect())
    };
    let (Some(mut redis), Some(mut millrace)) = (lines(redis), lines(millrace)) else {
        return false;
    };
    let same = ["name", "db", "sub", "psub", "ssub", "cmd", "user", "redir", "resp"];
    // How many commands are queued is not compared: Redis stops counting as soon as a watched key changes.
    let is_in_multi = |line: &Line| line.iter().any(|(name, value)| name == "multi" && value != "-1");
    let kept = |line: &Line| {
        let values = line.iter().filter(|(name, _)| same.contains(&&**name)).cloned();
        (values.collect::<Vec<_>>(), is_in_multi(line))
    };
    redis.sort_by_key(kept);
    millrace.sort_by_key(kept);
    let is_same =
        |a: &(String, String), b: &(String, String)| a.0 == b.0 && (a.1 == b.1 || !same.contains(&&*a.0));
    redis.len() == millrace.len()
        && redis.iter().zip(&millrace).all(|(redis, millrace)| {
            let more: Vec<&str> = millrace.iter().skip(redis.len()).map(|(name, _)| &**name).collect();
            redis.len() <= millrace.len()
                && redis.iter().zip(millrace).all(|(a, b)| is_same(a, b))
                && is_in_multi(redis) == is_in_multi(millrace)
                && (more.is_empty() || more == ["lib-name", "lib-ver"])
        })
}

fn has_sections_of(redis: &Value, millrace: &Value) -> bool {
    let sections = |reply: &Value| -> Vec<String> {
        let text = String::from_utf8_lossy(reply.bytes().unwrap_or_default()).into_owned();
        text.lines().filter_map(|line| line.strip_prefix("# ")).map(str::to_owned).collect()
    };
    let (redis_sections, millrace_sections) = (sections(redis), sections(millrace));
    let not_ours = ["Latencystats", "Modules"];
    redis.kind() == millrace.kind()
        && redis_sections.iter().all(|name| millrace_sections.contains(name) || not_ours.contains(&&**name))
}

fn same_settings(redis: &Value, millrace: &Value) -> bool {
    let may_differ: [&[u8]; 6] = [b"bind", b"dir", b"port", b"unixsocket", b"tcp-backlog", b"maxclients"];
    let (Some(a), Some(b)) = (redis.items(), millrace.items()) else {
        return false;
    };
    redis.kind() == millrace.kind()
        && a.chunks(2).all(|a| {
            let same_name = b.chunks(2).find(|b| b[0] == a[0]);
            let is_local = a[0].bytes().is_some_and(|name| may_differ.contains(&name));
            is_local || same_name.is_none_or(|b| b[1] == a[1])
        })
}

fn same_hello(redis: &Value, millrace: &Value) -> bool {
    let (Some(a), Some(b)) = (redis.items(), millrace.items()) else {
        return false;
    };
    let may_differ: [&[u8]; 2] = [b"version", b"id"];
    redis.kind() == millrace.kind()
        && a.len() == b.len()
        && a.chunks(2).zip(b.chunks(2)).all(|(a, b)| {
            a[0] == b[0]
                && (a[1] == b[1]
                    || a[0].bytes().is_some_and(|name| may_differ.contains(&name))
                        && a[1].kind() == b[1].kind())
        })
}

/// The same confirmations with the same counts, whatever the order of the names.
fn same_leave(redis: &Value, millrace: &Value) -> bool {
    let (Some(a), Some(b)) = (redis.items(), millrace.items()) else {
        return false;
    };
    let column = |replies: &[Value], at: usize| -> Option<Vec<String>> {
        replies.iter().map(|reply| reply.items()?.get(at).map(Value::show)).collect()
    };
    let sorted = |names: Option<Vec<String>>| {
        names.map(|mut names| {
            names.sort();
            names
        })
    };
    column(a, 0) == column(b, 0)
        && column(a, 2) == column(b, 2)
        && sorted(column(a, 1)) == sorted(column(b, 1))
}
