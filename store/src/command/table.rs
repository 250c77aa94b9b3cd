//! The command table: one entry says everything about a command.
//!
//! Lookup, arity errors, gating, queueing, per-command metrics, COMMAND and its subcommands, ACL CAT and
//! `docs/protocol.md` are all read from here. A container (CLIENT, CONFIG, …) is followed by its subcommands,
//! named `container|subcommand`. Names, arities, flags, key positions and categories are Redis', because
//! clients route by them; the summaries are ours.

use super::{
    Call, Handler, client, connection, info, introspection, key, pubsub, reads, replication, server, string,
    tracking, transaction,
};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use flag::*;

/// What a command is and may do: Redis' flags, and below them ours, which clients do not see.
pub mod flag {
    /// May change data.
    pub const WRITE: u32 = 1 << 0;
    /// Reads data.
    pub const READONLY: u32 = 1 << 1;
    /// May grow memory: refused over `maxmemory`.
    pub const DENYOOM: u32 = 1 << 2;
    /// For the operator.
    pub const ADMIN: u32 = 1 << 3;
    /// Publish and subscribe.
    pub const PUBSUB: u32 = 1 << 4;
    /// Not from scripts.
    pub const NOSCRIPT: u32 = 1 << 5;
    /// May wait.
    pub const BLOCKING: u32 = 1 << 6;
    /// Allowed while data is loaded.
    pub const LOADING: u32 = 1 << 7;
    /// Allowed on a replica that lost its primary.
    pub const STALE: u32 = 1 << 8;
    /// Not shown by MONITOR.
    pub const SKIP_MONITOR: u32 = 1 << 9;
    /// Not in the slow log: its arguments are secret.
    pub const SKIP_SLOWLOG: u32 = 1 << 10;
    /// Constant or logarithmic time.
    pub const FAST: u32 = 1 << 11;
    /// Allowed before the password.
    pub const NO_AUTH: u32 = 1 << 12;
    /// Refused while data is loaded in the background.
    pub const NO_ASYNC_LOADING: u32 = 1 << 13;
    /// Not in a transaction.
    pub const NO_MULTI: u32 = 1 << 14;
    /// Allowed while a script runs too long.
    pub const ALLOW_BUSY: u32 = 1 << 15;
    /// The names of the flags above, by bit.
    pub const NAMES: [&str; 16] = [
        "write",
        "readonly",
        "denyoom",
        "admin",
        "pubsub",
        "noscript",
        "blocking",
        "loading",
        "stale",
        "skip_monitor",
        "skip_slowlog",
        "fast",
        "no_auth",
        "no_async_loading",
        "no_multi",
        "allow_busy",
    ];

    /// Needs `enable-debug-command`.
    pub const PROTECTED: u32 = 1 << 24;
    /// Its replies are messages: CLIENT REPLY OFF does not silence them.
    pub const PUSHES: u32 = 1 << 25;
    /// Not a write, but held back by CLIENT PAUSE WRITE.
    pub const MAY_REPLICATE: u32 = 1 << 26;
    /// So short that it is timed by its share of a run.
    pub const QUICK: u32 = 1 << 27;
    /// May change how the bytes behind it are to be understood: nothing is parsed ahead of it.
    pub const ENDS_BATCH: u32 = 1 << 28;
    /// About the whole server: executed with every shard in hand.
    pub const ALL_SHARDS: u32 = 1 << 29;
    /// Comes after what its client has sent to other shards.
    pub const AFTER_HOPS: u32 = 1 << 30;
}

/// ACL categories.
pub mod category {
    /// Their names, by bit, in Redis' order.
    pub const NAMES: [&str; 21] = [
        "keyspace",
        "read",
        "write",
        "set",
        "sortedset",
        "list",
        "hash",
        "string",
        "bitmap",
        "hyperloglog",
        "geo",
        "stream",
        "pubsub",
        "admin",
        "fast",
        "slow",
        "blocking",
        "dangerous",
        "connection",
        "transaction",
        "scripting",
    ];
    pub(super) const KEYSPACE: u32 = 1 << 0;
    pub(super) const READ: u32 = 1 << 1;
    pub(super) const WRITE: u32 = 1 << 2;
    pub(super) const STRING: u32 = 1 << 7;
    pub(super) const PUBSUB: u32 = 1 << 12;
    pub(super) const ADMIN: u32 = 1 << 13;
    pub(super) const FAST: u32 = 1 << 14;
    pub(super) const SLOW: u32 = 1 << 15;
    pub(super) const BLOCKING: u32 = 1 << 16;
    pub(super) const DANGEROUS: u32 = 1 << 17;
    pub(super) const CONNECTION: u32 = 1 << 18;
    pub(super) const TRANSACTION: u32 = 1 << 19;
}

/// Which arguments are keys: the first, the last (negative: from the end) and the distance; all 0: none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyRange {
    /// Index of the first key.
    pub first: i16,
    /// Index of the last key.
    pub last: i16,
    /// From one key to the next.
    pub step: i16,
}

/// Where some of a command's keys are and what becomes of them, as COMMAND INFO shows it.
#[derive(Clone, Copy, Debug)]
pub struct KeySpec {
    /// A remark, or nothing.
    pub notes: &'static str,
    /// RO, RW, OW or RM, and what is done with the value.
    pub flags: &'static [&'static str],
    /// Index of the first key.
    pub index: i16,
    /// The last key, counted from the first (negative: from the end).
    pub last: i16,
    /// From one key to the next.
    pub step: i16,
}

/// What a command is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Values.
    String,
    /// Keys, whatever their value.
    Generic,
    /// MULTI and its kin.
    Transactions,
    /// Messages.
    Pubsub,
    /// The connection itself.
    Connection,
    /// The server.
    Server,
}

impl Group {
    /// All of them, in the order of the documentation.
    pub const ALL: [Group; 6] =
        [Group::String, Group::Generic, Group::Transactions, Group::Pubsub, Group::Connection, Group::Server];

    /// Its name in COMMAND DOCS.
    pub fn name(self) -> &'static str {
        match self {
            Group::String => "string",
            Group::Generic => "generic",
            Group::Transactions => "transactions",
            Group::Pubsub => "pubsub",
            Group::Connection => "connection",
            Group::Server => "server",
        }
    }
}

/// One entry of the table.
pub struct Command {
    /// In lower case; a subcommand is `container|name`.
    pub name: &'static str,
    /// The place in the table, which is also where its counters are.
    pub id: u16,
    /// The number of arguments with the name; negative: at least so many.
    pub arity: i32,
    /// See [`flag`].
    pub flags: u32,
    /// The keys.
    pub keys: KeyRange,
    /// The keys once more, with what is done with them.
    pub key_specs: &'static [KeySpec],
    /// The ACL categories that do not follow from the flags.
    pub extra_categories: u32,
    /// Hints for clients that talk to many nodes.
    pub tips: &'static [&'static str],
    /// What it is about.
    pub group: Group,
    /// The version of Redis it appeared in.
    pub since: &'static str,
    /// How its time grows.
    pub complexity: &'static str,
    /// One sentence.
    pub summary: &'static str,
    /// The same over HTTP, if there is such a thing.
    pub http: &'static str,
    /// Subcommands follow.
    pub is_container: bool,
    /// The code.
    pub handler: Handler,
}

impl Command {
    /// Whether it may have this many arguments, with the name.
    #[inline]
    pub fn accepts(&self, count: usize) -> bool {
        if self.arity >= 0 {
            count == self.arity as usize
        } else {
            count >= self.arity.unsigned_abs() as usize
        }
    }

    /// Whether each call is timed by itself.
    #[inline]
    pub fn is_timed(&self) -> bool {
        self.flags & QUICK == 0
    }

    /// Whether it reads keys whose values clients may keep.
    #[inline]
    pub fn reads_keys(&self) -> bool {
        self.flags & READONLY != 0 && self.keys.first > 0
    }

    /// The subcommand of this name, in any case.
    pub fn subcommand(&self, name: &[u8]) -> Option<&'static Command> {
        self.subcommands().find(|command| command.last_name().as_bytes().eq_ignore_ascii_case(name))
    }

    /// The subcommands.
    pub fn subcommands(&self) -> impl Iterator<Item = &'static Command> + use<> {
        let count = if self.is_container { COMMANDS.len() } else { 0 };
        COMMANDS[usize::from(self.id) + 1..].iter().take(count).take_while(|command| command.is_subcommand())
    }

    /// Whether it belongs to a container.
    pub fn is_subcommand(&self) -> bool {
        self.name.contains('|')
    }

    /// The name without the container's.
    pub fn last_name(&self) -> &'static str {
        self.name.rsplit('|').next().unwrap_or(self.name)
    }

    /// All ACL categories, by bit.
    pub fn categories(&self) -> u32 {
        let mut all = self.extra_categories;
        for (flags, implied) in [
            (WRITE, category::WRITE),
            (READONLY, category::READ),
            (ADMIN, category::ADMIN | category::DANGEROUS),
            (PUBSUB, category::PUBSUB),
            (FAST, category::FAST),
            (BLOCKING, category::BLOCKING),
        ] {
            if self.flags & flags != 0 {
                all |= implied;
            }
        }
        if self.flags & FAST == 0 { all | category::SLOW } else { all }
    }
}

#[allow(clippy::too_many_arguments, reason = "one line of the table each")]
const fn row(
    name: &'static str,
    arity: i32,
    flags: u32,
    [first, last, step]: [i16; 3],
    group: Group,
    since: &'static str,
    complexity: &'static str,
    summary: &'static str,
    handler: Handler,
) -> Command {
    Command {
        name,
        id: 0,
        arity,
        flags,
        keys: KeyRange { first, last, step },
        key_specs: &[],
        extra_categories: 0,
        tips: &[],
        group,
        since,
        complexity,
        summary,
        http: "",
        is_container: false,
        handler,
    }
}

const fn keys_at(flags: &'static [&'static str], index: i16, last: i16, step: i16) -> KeySpec {
    KeySpec { notes: "", flags, index, last, step }
}

const fn noted(notes: &'static str, spec: KeySpec) -> KeySpec {
    KeySpec { notes, ..spec }
}

/// A container without a subcommand: its arity forbids that, so nobody gets here.
fn container(call: &mut Call<'_>) {
    call.subcommand_syntax_error();
}

/// Gives every entry its place and tells containers from the rest.
const fn numbered<const N: usize>(mut rows: [Command; N]) -> [Command; N] {
    let mut at = 0;
    while at < N {
        rows[at].id = at as u16;
        rows[at].is_container = at + 1 < N && !has_bar(rows[at].name) && has_bar(rows[at + 1].name);
        at += 1;
    }
    rows
}

const fn has_bar(name: &str) -> bool {
    let bytes = name.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == b'|' {
            return true;
        }
        at += 1;
    }
    false
}

/// The documentation of every command, as `docs/protocol.md` has it.
pub(super) fn docs_markdown() -> String {
    let mut text = String::from(
        "# Commands\n\n<!-- Generated from store/src/command/table.rs; do not edit. -->\n\nEvery command in RESP2 and \
         RESP3. A negative arity means \"at least\"; keys are first, last and step, counted from the command's \
         name.\n",
    );
    for group in Group::ALL {
        text.push_str(&format!("\n## {}\n\n", group.name()));
        text.push_str(
            "| command | arity | flags | keys | time | summary | HTTP |\n|---|---:|---|---|---|---|---|\n",
        );
        for command in COMMANDS.iter().filter(|command| command.group == group) {
            let flags: Vec<&str> = NAMES
                .iter()
                .enumerate()
                .filter(|(bit, _)| command.flags & (1 << bit) != 0)
                .map(|(_, name)| *name)
                .collect();
            let keys = match command.keys {
                KeyRange { first: 0, .. } => String::new(),
                KeyRange { first, last, step } => format!("{first}, {last}, {step}"),
            };
            let http = if command.http.is_empty() { String::new() } else { format!("`{}`", command.http) };
            text.push_str(&format!(
                "| `{}` | {} | {} | {} | {} | {} | {} |\n",
                command.name.replace('|', " ").to_ascii_uppercase(),
                command.arity,
                flags.join(" "),
                keys,
                command.complexity,
                command.summary,
                http
            ));
        }
    }
    text
}

/// The table. Order within a group is that of the documentation; a container comes before its subcommands.
pub static COMMANDS: [Command; ROW_COUNT] = numbered(ROWS);

const ROW_COUNT: usize = 157;

#[rustfmt::skip]
#[allow(clippy::large_const_arrays, reason = "used once, to make the static above")]
const ROWS: [Command; ROW_COUNT] = [
    Command {
        http: "GET /v1/keys/{key}",
        key_specs: &[keys_at(&["RO", "access"], 1, 0, 1)],
        extra_categories: category::STRING,
        ..row("get", 2, READONLY | FAST | QUICK, [1, 1, 1], Group::String, "1.0.0", "O(1)", "Replies the value of a key.", string::get)
    },
    Command {
        http: "PUT /v1/keys/{key}",
        key_specs: &[noted("RW and ACCESS due to the optional `GET` argument", keys_at(&["RW", "access", "update", "variable_flags"], 1, 0, 1))],
        extra_categories: category::STRING,
        ..row("set", -3, WRITE | DENYOOM | QUICK, [1, 1, 1], Group::String, "1.0.0", "O(1)", "Sets the value of a key, optionally with a condition and a lifetime.", string::set)
    },
    Command {
        http: "PUT /v1/keys/{key} with If-None-Match: *",
        key_specs: &[keys_at(&["OW", "insert"], 1, 0, 1)],
        extra_categories: category::STRING,
        ..row("setnx", 3, WRITE | DENYOOM | FAST | QUICK, [1, 1, 1], Group::String, "1.0.0", "O(1)", "Sets the value of a key that does not exist.", string::setnx)
    },
    Command {
        http: "PUT /v1/keys/{key}?ttl=seconds",
        key_specs: &[keys_at(&["OW", "update"], 1, 0, 1)],
        extra_categories: category::STRING,
        ..row("setex", 4, WRITE | DENYOOM | QUICK, [1, 1, 1], Group::String, "2.0.0", "O(1)", "Sets the value and the lifetime in seconds of a key.", string::setex)
    },
    Command {
        http: "PUT /v1/keys/{key}?ttl_ms=milliseconds",
        key_specs: &[keys_at(&["OW", "update"], 1, 0, 1)],
        extra_categories: category::STRING,
        ..row("psetex", 4, WRITE | DENYOOM | QUICK, [1, 1, 1], Group::String, "2.6.0", "O(1)", "Sets the value and the lifetime in milliseconds of a key.", string::psetex)
    },
    Command {
        key_specs: &[keys_at(&["RW", "access", "update"], 1, 0, 1)],
        extra_categories: category::STRING,
        ..row("getset", 3, WRITE | DENYOOM | FAST | QUICK, [1, 1, 1], Group::String, "1.0.0", "O(1)", "Sets the value of a key and replies the old one.", string::getset)
    },
    Command {
        key_specs: &[keys_at(&["RW", "access", "delete"], 1, 0, 1)],
        extra_categories: category::STRING,
        ..row("getdel", 2, WRITE | FAST | QUICK, [1, 1, 1], Group::String, "6.2.0", "O(1)", "Replies the value of a key and deletes it.", string::getdel)
    },
    Command {
        key_specs: &[noted("RW and UPDATE because it changes the TTL", keys_at(&["RW", "access", "update"], 1, 0, 1))],
        extra_categories: category::STRING,
        ..row("getex", -2, WRITE | FAST | QUICK, [1, 1, 1], Group::String, "6.2.0", "O(1)", "Replies the value of a key and changes its lifetime.", string::getex)
    },
    Command {
        key_specs: &[keys_at(&["RO", "access"], 1, -1, 1)],
        tips: &["request_policy:multi_shard"],
        extra_categories: category::STRING,
        ..row("mget", -2, READONLY | FAST | QUICK, [1, -1, 1], Group::String, "1.0.0", "O(N)", "Replies the values of several keys.", string::mget)
    },
    Command {
        key_specs: &[keys_at(&["OW", "update"], 1, -1, 2)],
        tips: &["request_policy:multi_shard", "response_policy:all_succeeded"],
        extra_categories: category::STRING,
        ..row("mset", -3, WRITE | DENYOOM | QUICK, [1, -1, 2], Group::String, "1.0.1", "O(N)", "Sets the values of several keys at once.", string::mset)
    },
    Command {
        key_specs: &[keys_at(&["OW", "insert"], 1, -1, 2)],
        tips: &["request_policy:multi_shard", "response_policy:agg_min"],
        extra_categories: category::STRING,
        ..row("msetnx", -3, WRITE | DENYOOM | QUICK, [1, -1, 2], Group::String, "1.0.1", "O(N)", "Sets the values of several keys if none of them exists.", string::msetnx)
    },
    Command {
        http: "POST /v1/keys/{key}?op=append",
        key_specs: &[keys_at(&["RW", "insert"], 1, 0, 1)],
        extra_categories: category::STRING,
        ..row("append", 3, WRITE | DENYOOM | FAST | QUICK, [1, 1, 1], Group::String, "2.0.0", "O(1)", "Appends to the value of a key.", string::append)
    },
    Command {
        http: "HEAD /v1/keys/{key}",
        key_specs: &[keys_at(&["RO"], 1, 0, 1)],
        extra_categories: category::STRING,
        ..row("strlen", 2, READONLY | FAST | QUICK, [1, 1, 1], Group::String, "2.2.0", "O(1)", "Replies the length of the value of a key.", string::strlen)
    },
    Command {
        key_specs: &[keys_at(&["RO", "access"], 1, 0, 1)],
        extra_categories: category::STRING,
        ..row("getrange", 4, READONLY | QUICK, [1, 1, 1], Group::String, "2.4.0", "O(N)", "Replies a part of the value of a key.", string::getrange)
    },
    Command {
        key_specs: &[keys_at(&["RO", "access"], 1, 0, 1)],
        extra_categories: category::STRING,
        ..row("substr", 4, READONLY | QUICK, [1, 1, 1], Group::String, "1.0.0", "O(N)", "Replies a part of the value of a key; the old name of GETRANGE.", string::substr)
    },
    Command {
        key_specs: &[keys_at(&["RW", "update"], 1, 0, 1)],
        extra_categories: category::STRING,
        ..row("setrange", 4, WRITE | DENYOOM | QUICK, [1, 1, 1], Group::String, "2.2.0", "O(1)", "Overwrites a part of the value of a key.", string::setrange)
    },
    Command {
        http: "POST /v1/keys/{key}?op=incr",
        key_specs: &[keys_at(&["RW", "access", "update"], 1, 0, 1)],
        extra_categories: category::STRING,
        ..row("incr", 2, WRITE | DENYOOM | FAST | QUICK, [1, 1, 1], Group::String, "1.0.0", "O(1)", "Adds one to the integer at a key.", string::incr)
    },
    Command {
        http: "POST /v1/keys/{key}?op=incr&by=-1",
        key_specs: &[keys_at(&["RW", "access", "update"], 1, 0, 1)],
        extra_categories: category::STRING,
        ..row("decr", 2, WRITE | DENYOOM | FAST | QUICK, [1, 1, 1], Group::String, "1.0.0", "O(1)", "Subtracts one from the integer at a key.", string::decr)
    },
    Command {
        http: "POST /v1/keys/{key}?op=incr&by=n",
        key_specs: &[keys_at(&["RW", "access", "update"], 1, 0, 1)],
        extra_categories: category::STRING,
        ..row("incrby", 3, WRITE | DENYOOM | FAST | QUICK, [1, 1, 1], Group::String, "1.0.0", "O(1)", "Adds to the integer at a key.", string::incrby)
    },
    Command {
        http: "POST /v1/keys/{key}?op=incr&by=-n",
        key_specs: &[keys_at(&["RW", "access", "update"], 1, 0, 1)],
        extra_categories: category::STRING,
        ..row("decrby", 3, WRITE | DENYOOM | FAST | QUICK, [1, 1, 1], Group::String, "1.0.0", "O(1)", "Subtracts from the integer at a key.", string::decrby)
    },
    Command {
        http: "POST /v1/keys/{key}?op=incrbyfloat&by=x",
        key_specs: &[keys_at(&["RW", "access", "update"], 1, 0, 1)],
        extra_categories: category::STRING,
        ..row("incrbyfloat", 3, WRITE | DENYOOM | FAST | QUICK, [1, 1, 1], Group::String, "2.6.0", "O(1)", "Adds to the number at a key.", string::incrbyfloat)
    },
    Command {
        key_specs: &[keys_at(&["RO", "access"], 1, 1, 1)],
        extra_categories: category::STRING,
        ..row("lcs", -3, READONLY, [1, 2, 1], Group::String, "7.0.0", "O(N*M)", "Replies the longest common subsequence of two values.", string::lcs)
    },
    Command {
        http: "DELETE /v1/keys/{key}",
        key_specs: &[keys_at(&["RM", "delete"], 1, -1, 1)],
        tips: &["request_policy:multi_shard", "response_policy:agg_sum"],
        extra_categories: category::KEYSPACE,
        ..row("del", -2, WRITE | QUICK, [1, -1, 1], Group::Generic, "1.0.0", "O(N)", "Deletes keys.", key::del)
    },
    Command {
        key_specs: &[keys_at(&["RM", "delete"], 1, -1, 1)],
        tips: &["request_policy:multi_shard", "response_policy:agg_sum"],
        extra_categories: category::KEYSPACE,
        ..row("unlink", -2, WRITE | FAST | QUICK, [1, -1, 1], Group::Generic, "4.0.0", "O(1)", "Deletes keys; here the same as DEL.", key::unlink)
    },
    Command {
        key_specs: &[keys_at(&["RO"], 1, -1, 1)],
        tips: &["request_policy:multi_shard", "response_policy:agg_sum"],
        extra_categories: category::KEYSPACE,
        ..row("exists", -2, READONLY | FAST | QUICK, [1, -1, 1], Group::Generic, "1.0.0", "O(N)", "Counts which of the keys exist.", key::exists)
    },
    Command {
        key_specs: &[keys_at(&["RO"], 1, -1, 1)],
        tips: &["request_policy:multi_shard", "response_policy:agg_sum"],
        extra_categories: category::KEYSPACE,
        ..row("touch", -2, READONLY | FAST | QUICK, [1, -1, 1], Group::Generic, "3.2.1", "O(N)", "Counts which of the keys exist and marks them as used.", key::touch)
    },
    Command {
        key_specs: &[keys_at(&["RO"], 1, 0, 1)],
        extra_categories: category::KEYSPACE,
        ..row("type", 2, READONLY | FAST | QUICK, [1, 1, 1], Group::Generic, "1.0.0", "O(1)", "Replies the type of the value of a key.", key::type_of)
    },
    Command {
        key_specs: &[keys_at(&["RW", "access", "delete"], 1, 0, 1), keys_at(&["OW", "update"], 2, 0, 1)],
        extra_categories: category::KEYSPACE,
        ..row("rename", 3, WRITE | QUICK, [1, 2, 1], Group::Generic, "1.0.0", "O(1)", "Renames a key, over an existing one too.", key::rename)
    },
    Command {
        key_specs: &[keys_at(&["RW", "access", "delete"], 1, 0, 1), keys_at(&["OW", "insert"], 2, 0, 1)],
        extra_categories: category::KEYSPACE,
        ..row("renamenx", 3, WRITE | FAST | QUICK, [1, 2, 1], Group::Generic, "1.0.0", "O(1)", "Renames a key unless the new name exists.", key::renamenx)
    },
    Command {
        key_specs: &[keys_at(&["RO", "access"], 1, 0, 1), keys_at(&["OW", "update"], 2, 0, 1)],
        extra_categories: category::KEYSPACE,
        ..row("copy", -3, WRITE | DENYOOM | QUICK, [1, 2, 1], Group::Generic, "6.2.0", "O(N)", "Copies a value to another key.", key::copy)
    },
    Command {
        key_specs: &[keys_at(&["RW", "access", "update"], 1, 0, 1)],
        extra_categories: category::KEYSPACE,
        ..row("move", 3, WRITE | FAST, [1, 1, 1], Group::Generic, "1.0.0", "O(1)", "Moves a key to another database; there is only one.", key::move_key)
    },
    Command {
        tips: &["request_policy:all_shards", "nondeterministic_output_order"],
        extra_categories: category::KEYSPACE | category::DANGEROUS,
        ..row("keys", 2, READONLY | ALL_SHARDS, [0, 0, 0], Group::Generic, "1.0.0", "O(N)", "Replies all keys that match a pattern.", key::keys)
    },
    Command {
        http: "GET /v1/keys?cursor=&count=&match=",
        tips: &["nondeterministic_output", "request_policy:special"],
        extra_categories: category::KEYSPACE,
        ..row("scan", -2, READONLY, [0, 0, 0], Group::Generic, "2.8.0", "O(1)", "Replies some of the keys and a cursor to go on from.", key::scan)
    },
    Command {
        tips: &["request_policy:all_shards", "nondeterministic_output"],
        extra_categories: category::KEYSPACE,
        ..row("randomkey", 1, READONLY | QUICK | ALL_SHARDS, [0, 0, 0], Group::Generic, "1.0.0", "O(1)", "Replies a random key.", key::randomkey)
    },
    Command {
        tips: &["request_policy:all_shards", "response_policy:agg_sum"],
        extra_categories: category::KEYSPACE,
        ..row("dbsize", 1, READONLY | FAST | QUICK | ALL_SHARDS, [0, 0, 0], Group::Server, "1.0.0", "O(1)", "Replies the number of keys.", key::dbsize)
    },
    Command {
        key_specs: &[keys_at(&["RW", "update"], 1, 0, 1)],
        extra_categories: category::KEYSPACE,
        ..row("expire", -3, WRITE | FAST | QUICK, [1, 1, 1], Group::Generic, "1.0.0", "O(1)", "Sets the lifetime of a key in seconds.", key::expire)
    },
    Command {
        key_specs: &[keys_at(&["RW", "update"], 1, 0, 1)],
        extra_categories: category::KEYSPACE,
        ..row("pexpire", -3, WRITE | FAST | QUICK, [1, 1, 1], Group::Generic, "2.6.0", "O(1)", "Sets the lifetime of a key in milliseconds.", key::pexpire)
    },
    Command {
        key_specs: &[keys_at(&["RW", "update"], 1, 0, 1)],
        extra_categories: category::KEYSPACE,
        ..row("expireat", -3, WRITE | FAST | QUICK, [1, 1, 1], Group::Generic, "1.2.0", "O(1)", "Sets when a key expires, in seconds since 1970.", key::expireat)
    },
    Command {
        key_specs: &[keys_at(&["RW", "update"], 1, 0, 1)],
        extra_categories: category::KEYSPACE,
        ..row("pexpireat", -3, WRITE | FAST | QUICK, [1, 1, 1], Group::Generic, "2.6.0", "O(1)", "Sets when a key expires, in milliseconds since 1970.", key::pexpireat)
    },
    Command {
        key_specs: &[keys_at(&["RO", "access"], 1, 0, 1)],
        tips: &["nondeterministic_output"],
        extra_categories: category::KEYSPACE,
        ..row("ttl", 2, READONLY | FAST | QUICK, [1, 1, 1], Group::Generic, "1.0.0", "O(1)", "Replies the remaining lifetime of a key in seconds.", key::ttl)
    },
    Command {
        key_specs: &[keys_at(&["RO", "access"], 1, 0, 1)],
        tips: &["nondeterministic_output"],
        extra_categories: category::KEYSPACE,
        ..row("pttl", 2, READONLY | FAST | QUICK, [1, 1, 1], Group::Generic, "2.6.0", "O(1)", "Replies the remaining lifetime of a key in milliseconds.", key::pttl)
    },
    Command {
        key_specs: &[keys_at(&["RO", "access"], 1, 0, 1)],
        extra_categories: category::KEYSPACE,
        ..row("expiretime", 2, READONLY | FAST | QUICK, [1, 1, 1], Group::Generic, "7.0.0", "O(1)", "Replies when a key expires, in seconds since 1970.", key::expiretime)
    },
    Command {
        key_specs: &[keys_at(&["RO", "access"], 1, 0, 1)],
        extra_categories: category::KEYSPACE,
        ..row("pexpiretime", 2, READONLY | FAST | QUICK, [1, 1, 1], Group::Generic, "7.0.0", "O(1)", "Replies when a key expires, in milliseconds since 1970.", key::pexpiretime)
    },
    Command {
        key_specs: &[keys_at(&["RW", "update"], 1, 0, 1)],
        extra_categories: category::KEYSPACE,
        ..row("persist", 2, WRITE | FAST | QUICK, [1, 1, 1], Group::Generic, "2.2.0", "O(1)", "Removes the lifetime of a key.", key::persist)
    },
    row("object", -2, 0, [0, 0, 0], Group::Generic, "2.2.3", "", "Questions about how a value is stored.", container),
    Command {
        key_specs: &[keys_at(&["RO"], 2, 0, 1)],
        tips: &["nondeterministic_output"],
        extra_categories: category::KEYSPACE,
        ..row("object|encoding", 3, READONLY, [2, 2, 1], Group::Generic, "2.2.3", "O(1)", "Replies the encoding of a value.", key::object_encoding)
    },
    Command {
        key_specs: &[keys_at(&["RO"], 2, 0, 1)],
        tips: &["nondeterministic_output"],
        extra_categories: category::KEYSPACE,
        ..row("object|freq", 3, READONLY, [2, 2, 1], Group::Generic, "4.0.0", "O(1)", "Replies how often a key is used, on a logarithmic scale.", key::object_freq)
    },
    Command {
        extra_categories: category::KEYSPACE,
        ..row("object|help", 2, LOADING | STALE, [0, 0, 0], Group::Generic, "6.2.0", "O(1)", "Lists the subcommands.", key::object_help)
    },
    Command {
        key_specs: &[keys_at(&["RO"], 2, 0, 1)],
        tips: &["nondeterministic_output"],
        extra_categories: category::KEYSPACE,
        ..row("object|idletime", 3, READONLY, [2, 2, 1], Group::Generic, "2.2.3", "O(1)", "Replies for how many seconds a key was not used.", key::object_idletime)
    },
    Command {
        key_specs: &[keys_at(&["RO"], 2, 0, 1)],
        tips: &["nondeterministic_output"],
        extra_categories: category::KEYSPACE,
        ..row("object|refcount", 3, READONLY, [2, 2, 1], Group::Generic, "2.2.3", "O(1)", "Replies the reference count of a value, which is always one.", key::object_refcount)
    },
    Command {
        tips: &["request_policy:all_shards", "response_policy:all_succeeded"],
        extra_categories: category::KEYSPACE | category::DANGEROUS,
        ..row("flushdb", -1, WRITE | ALL_SHARDS, [0, 0, 0], Group::Server, "1.0.0", "O(N)", "Deletes all keys.", key::flushdb)
    },
    Command {
        tips: &["request_policy:all_shards", "response_policy:all_succeeded"],
        extra_categories: category::KEYSPACE | category::DANGEROUS,
        ..row("flushall", -1, WRITE | ALL_SHARDS, [0, 0, 0], Group::Server, "1.0.0", "O(N)", "Deletes all keys.", key::flushall)
    },
    Command {
        extra_categories: category::KEYSPACE | category::DANGEROUS,
        ..row("swapdb", 3, WRITE | FAST, [0, 0, 0], Group::Server, "4.0.0", "O(N)", "Swaps two databases; there is only one.", server::swapdb)
    },
    Command {
        extra_categories: category::TRANSACTION,
        ..row("multi", 1, NOSCRIPT | LOADING | STALE | FAST | ALLOW_BUSY | QUICK, [0, 0, 0], Group::Transactions, "1.2.0", "O(1)", "Starts a transaction: the commands that follow are queued.", transaction::multi)
    },
    Command {
        extra_categories: category::TRANSACTION,
        ..row("exec", 1, NOSCRIPT | LOADING | STALE | SKIP_SLOWLOG, [0, 0, 0], Group::Transactions, "1.2.0", "", "Executes the queued commands at once.", transaction::exec)
    },
    Command {
        extra_categories: category::TRANSACTION,
        ..row("discard", 1, NOSCRIPT | LOADING | STALE | FAST | ALLOW_BUSY | QUICK, [0, 0, 0], Group::Transactions, "2.0.0", "O(N)", "Forgets the queued commands.", transaction::discard)
    },
    Command {
        key_specs: &[keys_at(&["RO"], 1, -1, 1)],
        extra_categories: category::TRANSACTION,
        ..row("watch", -2, NOSCRIPT | LOADING | STALE | FAST | ALLOW_BUSY, [1, -1, 1], Group::Transactions, "2.2.0", "O(1)", "Makes the next EXEC depend on these keys staying as they are.", transaction::watch)
    },
    Command {
        extra_categories: category::TRANSACTION,
        ..row("unwatch", 1, NOSCRIPT | LOADING | STALE | FAST | ALLOW_BUSY | QUICK, [0, 0, 0], Group::Transactions, "2.2.0", "O(1)", "Forgets the watched keys.", transaction::unwatch)
    },
    row("subscribe", -2, PUBSUB | NOSCRIPT | LOADING | STALE | PUSHES, [0, 0, 0], Group::Pubsub, "2.0.0", "O(N)", "Listens to channels.", pubsub::subscribe),
    row("unsubscribe", -1, PUBSUB | NOSCRIPT | LOADING | STALE | PUSHES, [0, 0, 0], Group::Pubsub, "2.0.0", "O(N)", "Stops listening to channels.", pubsub::unsubscribe),
    row("psubscribe", -2, PUBSUB | NOSCRIPT | LOADING | STALE | PUSHES, [0, 0, 0], Group::Pubsub, "2.0.0", "O(N)", "Listens to the channels that match patterns.", pubsub::psubscribe),
    row("punsubscribe", -1, PUBSUB | NOSCRIPT | LOADING | STALE | PUSHES, [0, 0, 0], Group::Pubsub, "2.0.0", "O(N+M)", "Stops listening to patterns.", pubsub::punsubscribe),
    row("publish", 3, PUBSUB | LOADING | STALE | FAST | MAY_REPLICATE | PUSHES, [0, 0, 0], Group::Pubsub, "2.0.0", "O(N+M)", "Sends a message to everybody who listens to a channel.", pubsub::publish),
    Command {
        key_specs: &[keys_at(&["not_key"], 1, -1, 1)],
        ..row("ssubscribe", -2, PUBSUB | NOSCRIPT | LOADING | STALE | PUSHES, [1, -1, 1], Group::Pubsub, "7.0.0", "O(N)", "Listens to shard channels.", pubsub::ssubscribe)
    },
    Command {
        key_specs: &[keys_at(&["not_key"], 1, -1, 1)],
        ..row("sunsubscribe", -1, PUBSUB | NOSCRIPT | LOADING | STALE | PUSHES, [1, -1, 1], Group::Pubsub, "7.0.0", "O(N)", "Stops listening to shard channels.", pubsub::sunsubscribe)
    },
    Command {
        key_specs: &[keys_at(&["not_key"], 1, 0, 1)],
        ..row("spublish", 3, PUBSUB | LOADING | STALE | FAST | MAY_REPLICATE | PUSHES, [1, 1, 1], Group::Pubsub, "7.0.0", "O(N)", "Sends a message to everybody who listens to a shard channel.", pubsub::spublish)
    },
    row("pubsub", -2, 0, [0, 0, 0], Group::Pubsub, "2.8.0", "", "Questions about channels and listeners.", container),
    row("pubsub|channels", -2, PUBSUB | LOADING | STALE | ALL_SHARDS, [0, 0, 0], Group::Pubsub, "2.8.0", "O(N)", "Replies the channels somebody listens to.", pubsub::pubsub_channels),
    row("pubsub|help", 2, LOADING | STALE, [0, 0, 0], Group::Pubsub, "6.2.0", "O(1)", "Lists the subcommands.", pubsub::pubsub_help),
    row("pubsub|numpat", 2, PUBSUB | LOADING | STALE | ALL_SHARDS, [0, 0, 0], Group::Pubsub, "2.8.0", "O(1)", "Replies the number of patterns somebody listens to.", pubsub::pubsub_numpat),
    row("pubsub|numsub", -2, PUBSUB | LOADING | STALE | ALL_SHARDS, [0, 0, 0], Group::Pubsub, "2.8.0", "O(N)", "Replies the number of listeners of channels.", pubsub::pubsub_numsub),
    row("pubsub|shardchannels", -2, PUBSUB | LOADING | STALE | ALL_SHARDS, [0, 0, 0], Group::Pubsub, "7.0.0", "O(N)", "Replies the shard channels somebody listens to.", pubsub::pubsub_shardchannels),
    row("pubsub|shardnumsub", -2, PUBSUB | LOADING | STALE | ALL_SHARDS, [0, 0, 0], Group::Pubsub, "7.0.0", "O(N)", "Replies the number of listeners of shard channels.", pubsub::pubsub_shardnumsub),
    Command {
        http: "GET /healthz",
        tips: &["request_policy:all_shards", "response_policy:all_succeeded"],
        extra_categories: category::CONNECTION,
        ..row("ping", -1, FAST | QUICK, [0, 0, 0], Group::Connection, "1.0.0", "O(1)", "Answers, to show that the server is there.", connection::ping)
    },
    Command {
        extra_categories: category::CONNECTION,
        ..row("echo", 2, LOADING | STALE | FAST | QUICK, [0, 0, 0], Group::Connection, "1.0.0", "O(1)", "Replies its argument.", connection::echo)
    },
    Command {
        extra_categories: category::CONNECTION,
        ..row("hello", -1, NOSCRIPT | LOADING | STALE | FAST | NO_AUTH | ALLOW_BUSY | ENDS_BATCH, [0, 0, 0], Group::Connection, "6.0.0", "O(1)", "Chooses the protocol version, logs in and names the connection.", connection::hello)
    },
    Command {
        extra_categories: category::CONNECTION,
        ..row("auth", -2, NOSCRIPT | LOADING | STALE | FAST | NO_AUTH | ALLOW_BUSY | ENDS_BATCH, [0, 0, 0], Group::Connection, "1.0.0", "O(N)", "Logs in.", connection::auth)
    },
    Command {
        extra_categories: category::CONNECTION,
        ..row("select", 2, LOADING | STALE | FAST | QUICK, [0, 0, 0], Group::Connection, "1.0.0", "O(1)", "Chooses the database; there is only number 0.", connection::select)
    },
    Command {
        extra_categories: category::CONNECTION,
        ..row("quit", -1, NOSCRIPT | LOADING | STALE | FAST | NO_AUTH | ALLOW_BUSY | ENDS_BATCH, [0, 0, 0], Group::Connection, "1.0.0", "O(1)", "Ends the connection.", connection::quit)
    },
    Command {
        extra_categories: category::CONNECTION,
        ..row("reset", 1, NOSCRIPT | LOADING | STALE | FAST | NO_AUTH | ALLOW_BUSY | ENDS_BATCH, [0, 0, 0], Group::Connection, "6.2.0", "O(1)", "Puts the connection into the state it started in.", connection::reset)
    },
    row("client", -2, 0, [0, 0, 0], Group::Connection, "2.4.0", "", "What the server knows of connections.", container),
    Command {
        extra_categories: category::CONNECTION,
        ..row("client|caching", 3, NOSCRIPT | LOADING | STALE, [0, 0, 0], Group::Connection, "6.0.0", "O(1)", "Says whether the keys of the next command are tracked.", tracking::client_caching)
    },
    Command {
        extra_categories: category::CONNECTION,
        ..row("client|durability", -2, NOSCRIPT | LOADING | STALE | NO_MULTI, [0, 0, 0], Group::Connection, "7.4.0", "O(1)", "Says whether replies to this connection wait for the log: always, everysec, off or default.", client::client_durability)
    },
    Command {
        extra_categories: category::CONNECTION,
        ..row("client|getname", 2, NOSCRIPT | LOADING | STALE, [0, 0, 0], Group::Connection, "2.6.9", "O(1)", "Replies the name of this connection.", client::client_getname)
    },
    Command {
        extra_categories: category::CONNECTION,
        ..row("client|getredir", 2, NOSCRIPT | LOADING | STALE, [0, 0, 0], Group::Connection, "6.0.0", "O(1)", "Replies the connection that invalidations are redirected to.", tracking::client_getredir)
    },
    Command {
        extra_categories: category::CONNECTION,
        ..row("client|help", 2, LOADING | STALE, [0, 0, 0], Group::Connection, "5.0.0", "O(1)", "Lists the subcommands.", client::client_help)
    },
    Command {
        extra_categories: category::CONNECTION,
        ..row("client|id", 2, NOSCRIPT | LOADING | STALE, [0, 0, 0], Group::Connection, "5.0.0", "O(1)", "Replies the id of this connection.", client::client_id)
    },
    Command {
        tips: &["nondeterministic_output"],
        extra_categories: category::CONNECTION,
        ..row("client|info", 2, NOSCRIPT | LOADING | STALE, [0, 0, 0], Group::Connection, "6.2.0", "O(1)", "Describes this connection.", client::client_info)
    },
    Command {
        extra_categories: category::CONNECTION,
        ..row("client|kill", -3, ADMIN | NOSCRIPT | LOADING | STALE | ENDS_BATCH | ALL_SHARDS, [0, 0, 0], Group::Connection, "2.4.0", "O(N)", "Ends connections.", client::client_kill)
    },
    Command {
        tips: &["nondeterministic_output"],
        extra_categories: category::CONNECTION,
        ..row("client|list", -2, ADMIN | NOSCRIPT | LOADING | STALE | ALL_SHARDS, [0, 0, 0], Group::Connection, "2.4.0", "O(N)", "Describes all connections.", client::client_list)
    },
    Command {
        extra_categories: category::CONNECTION,
        ..row("client|lsn", 2, NOSCRIPT | LOADING | STALE | AFTER_HOPS, [0, 0, 0], Group::Connection, "7.4.0", "O(1)", "Replies a token for the last write of this connection, which WAITLSN takes on any node.", reads::client_lsn)
    },
    Command {
        extra_categories: category::CONNECTION,
        ..row("client|no-evict", 3, ADMIN | NOSCRIPT | LOADING | STALE, [0, 0, 0], Group::Connection, "7.0.0", "O(1)", "Protects this connection from being closed to save memory.", client::client_no_evict)
    },
    Command {
        extra_categories: category::CONNECTION,
        ..row("client|no-touch", 3, NOSCRIPT | LOADING | STALE, [0, 0, 0], Group::Connection, "7.2.0", "O(1)", "Makes reads of this connection leave the access data alone.", client::client_no_touch)
    },
    Command {
        extra_categories: category::CONNECTION,
        ..row("client|pause", -3, ADMIN | NOSCRIPT | LOADING | STALE | ENDS_BATCH | ALL_SHARDS, [0, 0, 0], Group::Connection, "2.9.50", "O(1)", "Holds commands back for a time.", client::client_pause)
    },
    Command {
        extra_categories: category::CONNECTION,
        ..row("client|reply", 3, NOSCRIPT | LOADING | STALE, [0, 0, 0], Group::Connection, "3.2.0", "O(1)", "Says whether commands are answered.", client::client_reply)
    },
    Command {
        extra_categories: category::CONNECTION,
        ..row("client|setinfo", 4, NOSCRIPT | LOADING | STALE, [0, 0, 0], Group::Connection, "7.2.0", "O(1)", "Tells the name and version of the client library.", client::client_setinfo)
    },
    Command {
        extra_categories: category::CONNECTION,
        ..row("client|setname", 3, NOSCRIPT | LOADING | STALE, [0, 0, 0], Group::Connection, "2.6.9", "O(1)", "Names this connection.", client::client_setname)
    },
    Command {
        extra_categories: category::CONNECTION,
        ..row("client|tracking", -3, NOSCRIPT | LOADING | STALE | ALL_SHARDS, [0, 0, 0], Group::Connection, "6.0.0", "O(1)", "Asks to be told when keys that were read change.", tracking::client_tracking)
    },
    Command {
        extra_categories: category::CONNECTION,
        ..row("client|trackinginfo", 2, NOSCRIPT | LOADING | STALE, [0, 0, 0], Group::Connection, "6.2.0", "O(1)", "Replies the state of tracking on this connection.", tracking::client_trackinginfo)
    },
    Command {
        extra_categories: category::CONNECTION,
        ..row("client|unblock", -3, ADMIN | NOSCRIPT | LOADING | STALE, [0, 0, 0], Group::Connection, "5.0.0", "O(log N)", "Wakes a blocked connection.", client::client_unblock)
    },
    Command {
        extra_categories: category::CONNECTION,
        ..row("client|unpause", 2, ADMIN | NOSCRIPT | LOADING | STALE | ENDS_BATCH | ALL_SHARDS, [0, 0, 0], Group::Connection, "6.2.0", "O(N)", "Ends CLIENT PAUSE.", client::client_unpause)
    },
    Command {
        http: "GET /metrics",
        tips: &["nondeterministic_output", "request_policy:all_shards", "response_policy:special"],
        extra_categories: category::DANGEROUS,
        ..row("info", -1, LOADING | STALE | ALL_SHARDS, [0, 0, 0], Group::Server, "1.0.0", "O(1)", "Describes the server.", info::info)
    },
    Command {
        tips: &["nondeterministic_output_order"],
        extra_categories: category::CONNECTION,
        ..row("command", -1, LOADING | STALE, [0, 0, 0], Group::Server, "2.8.13", "O(N)", "Describes all commands.", introspection::command)
    },
    Command {
        extra_categories: category::CONNECTION,
        ..row("command|count", 2, LOADING | STALE, [0, 0, 0], Group::Server, "2.8.13", "O(1)", "Replies the number of commands.", introspection::command_count)
    },
    Command {
        tips: &["nondeterministic_output_order"],
        extra_categories: category::CONNECTION,
        ..row("command|docs", -2, LOADING | STALE, [0, 0, 0], Group::Server, "7.0.0", "O(N)", "Replies the documentation of commands.", introspection::command_docs)
    },
    Command {
        extra_categories: category::CONNECTION,
        ..row("command|getkeys", -4, LOADING | STALE, [0, 0, 0], Group::Server, "2.8.13", "O(N)", "Replies which arguments of a command are keys.", introspection::command_getkeys)
    },
    Command {
        extra_categories: category::CONNECTION,
        ..row("command|getkeysandflags", -4, LOADING | STALE, [0, 0, 0], Group::Server, "7.0.0", "O(N)", "Replies which arguments of a command are keys and how it uses them.", introspection::command_getkeysandflags)
    },
    Command {
        extra_categories: category::CONNECTION,
        ..row("command|help", 2, LOADING | STALE, [0, 0, 0], Group::Server, "5.0.0", "O(1)", "Lists the subcommands.", introspection::command_help)
    },
    Command {
        tips: &["nondeterministic_output_order"],
        extra_categories: category::CONNECTION,
        ..row("command|info", -2, LOADING | STALE, [0, 0, 0], Group::Server, "2.8.13", "O(N)", "Describes commands.", introspection::command_info)
    },
    Command {
        tips: &["nondeterministic_output_order"],
        extra_categories: category::CONNECTION,
        ..row("command|list", -2, LOADING | STALE, [0, 0, 0], Group::Server, "7.0.0", "O(N)", "Replies the names of commands.", introspection::command_list)
    },
    row("config", -2, 0, [0, 0, 0], Group::Server, "2.0.0", "", "The settings.", container),
    row("config|get", -3, ADMIN | NOSCRIPT | LOADING | STALE, [0, 0, 0], Group::Server, "2.0.0", "O(N)", "Replies settings.", server::config_get),
    row("config|help", 2, LOADING | STALE, [0, 0, 0], Group::Server, "5.0.0", "O(1)", "Lists the subcommands.", server::config_help),
    row("config|resetstat", 2, ADMIN | NOSCRIPT | LOADING | STALE | ALL_SHARDS, [0, 0, 0], Group::Server, "2.0.0", "O(1)", "Sets the statistics to zero.", server::config_resetstat),
    row("config|rewrite", 2, ADMIN | NOSCRIPT | LOADING | STALE, [0, 0, 0], Group::Server, "2.8.0", "O(1)", "Writes the settings to the configuration file.", server::config_rewrite),
    Command {
        tips: &["request_policy:all_nodes", "response_policy:all_succeeded"],
        ..row("config|set", -4, ADMIN | NOSCRIPT | LOADING | STALE | ENDS_BATCH | ALL_SHARDS, [0, 0, 0], Group::Server, "2.0.0", "O(N)", "Changes settings.", server::config_set)
    },
    Command {
        tips: &["nondeterministic_output"],
        ..row("time", 1, LOADING | STALE | FAST | QUICK, [0, 0, 0], Group::Server, "2.6.0", "O(1)", "Replies the server's time.", server::time)
    },
    row("memory", -2, 0, [0, 0, 0], Group::Server, "4.0.0", "", "Questions about memory.", container),
    Command {
        tips: &["nondeterministic_output", "request_policy:all_shards", "response_policy:special"],
        ..row("memory|doctor", 2, ALL_SHARDS, [0, 0, 0], Group::Server, "4.0.0", "O(1)", "Replies advice on memory.", server::memory_doctor)
    },
    row("memory|help", 2, LOADING | STALE, [0, 0, 0], Group::Server, "4.0.0", "O(1)", "Lists the subcommands.", server::memory_help),
    Command {
        tips: &["nondeterministic_output", "request_policy:all_shards", "response_policy:special"],
        ..row("memory|malloc-stats", 2, 0, [0, 0, 0], Group::Server, "4.0.0", "", "Replies what the allocator knows.", server::memory_malloc_stats)
    },
    Command {
        tips: &["request_policy:all_shards", "response_policy:all_succeeded"],
        ..row("memory|purge", 2, ALL_SHARDS, [0, 0, 0], Group::Server, "4.0.0", "", "Gives free memory back to the system.", server::memory_purge)
    },
    Command {
        tips: &["nondeterministic_output", "request_policy:all_shards", "response_policy:special"],
        ..row("memory|stats", 2, ALL_SHARDS, [0, 0, 0], Group::Server, "4.0.0", "O(1)", "Replies how memory is used.", server::memory_stats)
    },
    Command {
        key_specs: &[keys_at(&["RO"], 2, 0, 1)],
        ..row("memory|usage", -3, READONLY, [2, 2, 1], Group::Server, "4.0.0", "O(N)", "Replies what a key costs in memory.", server::memory_usage)
    },
    row("slowlog", -2, 0, [0, 0, 0], Group::Server, "2.2.12", "", "The commands that took long.", container),
    Command {
        tips: &["request_policy:all_nodes", "nondeterministic_output"],
        ..row("slowlog|get", -2, ADMIN | LOADING | STALE | ALL_SHARDS, [0, 0, 0], Group::Server, "2.2.12", "O(N)", "Replies the latest slow commands.", server::slowlog_get)
    },
    row("slowlog|help", 2, LOADING | STALE, [0, 0, 0], Group::Server, "6.2.0", "O(1)", "Lists the subcommands.", server::slowlog_help),
    Command {
        tips: &["request_policy:all_nodes", "response_policy:agg_sum", "nondeterministic_output"],
        ..row("slowlog|len", 2, ADMIN | LOADING | STALE | ALL_SHARDS, [0, 0, 0], Group::Server, "2.2.12", "O(1)", "Replies how many slow commands are kept.", server::slowlog_len)
    },
    Command {
        tips: &["request_policy:all_nodes", "response_policy:all_succeeded"],
        ..row("slowlog|reset", 2, ADMIN | LOADING | STALE | ALL_SHARDS, [0, 0, 0], Group::Server, "2.2.12", "O(N)", "Forgets the slow commands.", server::slowlog_reset)
    },
    row("latency", -2, 0, [0, 0, 0], Group::Server, "2.8.13", "", "Events that took long.", container),
    Command {
        tips: &["nondeterministic_output", "request_policy:all_nodes", "response_policy:special"],
        ..row("latency|doctor", 2, ADMIN | NOSCRIPT | LOADING | STALE | ALL_SHARDS, [0, 0, 0], Group::Server, "2.8.13", "O(1)", "Replies advice on latency.", server::latency_doctor)
    },
    Command {
        tips: &["nondeterministic_output", "request_policy:all_nodes", "response_policy:special"],
        ..row("latency|graph", 3, ADMIN | NOSCRIPT | LOADING | STALE | ALL_SHARDS, [0, 0, 0], Group::Server, "2.8.13", "O(1)", "Draws the history of an event.", server::latency_graph)
    },
    row("latency|help", 2, LOADING | STALE, [0, 0, 0], Group::Server, "2.8.13", "O(1)", "Lists the subcommands.", server::latency_help),
    Command {
        tips: &["nondeterministic_output", "request_policy:all_nodes", "response_policy:special"],
        ..row("latency|histogram", -2, ADMIN | NOSCRIPT | LOADING | STALE | ALL_SHARDS, [0, 0, 0], Group::Server, "7.0.0", "O(N)", "Replies the distribution of the times of commands.", server::latency_histogram)
    },
    Command {
        tips: &["nondeterministic_output", "request_policy:all_nodes", "response_policy:special"],
        ..row("latency|history", 3, ADMIN | NOSCRIPT | LOADING | STALE | ALL_SHARDS, [0, 0, 0], Group::Server, "2.8.13", "O(1)", "Replies the history of an event.", server::latency_history)
    },
    Command {
        tips: &["nondeterministic_output", "request_policy:all_nodes", "response_policy:special"],
        ..row("latency|latest", 2, ADMIN | NOSCRIPT | LOADING | STALE | ALL_SHARDS, [0, 0, 0], Group::Server, "2.8.13", "O(1)", "Replies the latest sample of every event.", server::latency_latest)
    },
    Command {
        tips: &["request_policy:all_nodes", "response_policy:all_succeeded"],
        ..row("latency|reset", -2, ADMIN | NOSCRIPT | LOADING | STALE | ALL_SHARDS, [0, 0, 0], Group::Server, "2.8.13", "O(1)", "Forgets events.", server::latency_reset)
    },
    row("debug", -2, ADMIN | NOSCRIPT | LOADING | STALE | ENDS_BATCH | PROTECTED, [0, 0, 0], Group::Server, "1.0.0", "", "Tools for tests.", server::debug),
    row("lolwut", -1, READONLY | FAST, [0, 0, 0], Group::Server, "5.0.0", "", "Shows the version, with some art.", server::lolwut),
    row("shutdown", -1, ADMIN | NOSCRIPT | LOADING | STALE | NO_MULTI | ALLOW_BUSY | ENDS_BATCH | AFTER_HOPS, [0, 0, 0], Group::Server, "1.0.0", "O(N)", "Stops the server.", server::shutdown),
    row("save", 1, ADMIN | NOSCRIPT | NO_ASYNC_LOADING | NO_MULTI | ENDS_BATCH | AFTER_HOPS, [0, 0, 0], Group::Server, "1.0.0", "O(N)", "Writes a snapshot and answers when it is durable; others are served meanwhile.", server::save),
    row("bgsave", -1, ADMIN | NOSCRIPT | NO_ASYNC_LOADING | AFTER_HOPS, [0, 0, 0], Group::Server, "1.0.0", "O(1)", "Writes a snapshot in the background.", server::bgsave),
    Command {
        tips: &["nondeterministic_output"],
        extra_categories: category::ADMIN | category::DANGEROUS,
        ..row("lastsave", 1, LOADING | STALE | FAST, [0, 0, 0], Group::Server, "1.0.0", "O(1)", "Replies when the last snapshot was written.", server::lastsave)
    },
    Command {
        extra_categories: category::ADMIN | category::DANGEROUS,
        ..row("role", 1, NOSCRIPT | LOADING | STALE | FAST, [0, 0, 0], Group::Server, "2.8.12", "O(1)", "Replies the role in replication.", replication::role)
    },
    row("replicaof", 3, ADMIN | NOSCRIPT | STALE | NO_ASYNC_LOADING | LOADING, [0, 0, 0], Group::Server, "5.0.0", "O(1)", "Follows another server, or nobody.", replication::replicaof),
    row("slaveof", 3, ADMIN | NOSCRIPT | STALE | NO_ASYNC_LOADING | LOADING, [0, 0, 0], Group::Server, "1.0.0", "O(1)", "Follows another server, or nobody.", replication::replicaof),
    row("replconf", -1, ADMIN | NOSCRIPT | LOADING | STALE | ALLOW_BUSY | NO_AUTH, [0, 0, 0], Group::Server, "3.0.0", "O(1)", "Configures a replication link.", replication::replconf),
    Command {
        tips: &["request_policy:all_shards", "response_policy:agg_min"],
        extra_categories: category::CONNECTION,
        ..row("wait", 3, NOSCRIPT | BLOCKING | ENDS_BATCH, [0, 0, 0], Group::Generic, "3.0.0", "O(1)", "Waits for replicas.", replication::wait)
    },
    Command {
        extra_categories: category::CONNECTION,
        ..row("waitaof", 4, NOSCRIPT | BLOCKING | ENDS_BATCH, [0, 0, 0], Group::Generic, "7.2.0", "O(1)", "Waits until the last write of this connection is in the log for good.", server::waitaof)
    },
    Command {
        http: "GET /v1/keys/{key} with X-Millrace-LSN: token",
        extra_categories: category::CONNECTION,
        ..row("waitlsn", 3, NOSCRIPT | BLOCKING | ENDS_BATCH, [0, 0, 0], Group::Generic, "7.4.0", "O(1)", "Waits until this node has the write that a token names, at most so many milliseconds (0 for ever), and says BEHIND or LOST if it has not.", reads::waitlsn)
    },
    row("acl", -2, 0, [0, 0, 0], Group::Server, "6.0.0", "", "Users and what they may do; there is only the default user.", container),
    row("acl|cat", -2, NOSCRIPT | LOADING | STALE, [0, 0, 0], Group::Server, "6.0.0", "O(1)", "Lists the command categories, or the commands of one.", introspection::acl_cat),
    row("acl|getuser", 3, ADMIN | NOSCRIPT | LOADING | STALE, [0, 0, 0], Group::Server, "6.0.0", "O(N)", "Describes a user.", introspection::acl_getuser),
    row("acl|help", 2, LOADING | STALE, [0, 0, 0], Group::Server, "6.0.0", "O(1)", "Lists the subcommands.", introspection::acl_help),
    row("acl|list", 2, ADMIN | NOSCRIPT | LOADING | STALE, [0, 0, 0], Group::Server, "6.0.0", "O(N)", "Lists the users.", introspection::acl_list),
    row("acl|users", 2, ADMIN | NOSCRIPT | LOADING | STALE, [0, 0, 0], Group::Server, "6.0.0", "O(N)", "Lists the names of users.", introspection::acl_users),
    row("acl|whoami", 2, NOSCRIPT | LOADING | STALE, [0, 0, 0], Group::Server, "6.0.0", "O(1)", "Replies the name of the user.", introspection::acl_whoami),];
