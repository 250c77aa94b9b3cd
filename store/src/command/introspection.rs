//! The table shown to clients: COMMAND and its subcommands, and the part of ACL that is true here.

use super::table::{COMMANDS, Command, category, flag};
use super::{Call, c_string, is_word, lookup, reply};
use crate::glob;
use crate::protocol::reply::Reply;
use crate::protocol::resp::Args;
use alloc::format;
use alloc::vec::Vec;

/// The commands without their subcommands.
fn top_level() -> impl Iterator<Item = &'static Command> {
    COMMANDS.iter().filter(|command| !command.is_subcommand())
}

/// The command of a name as COMMAND takes it: a subcommand is `container|name`.
fn by_full_name(name: &[u8]) -> Option<&'static Command> {
    match name.iter().position(|&byte| byte == b'|') {
        None => lookup(name),
        Some(bar) => lookup(&name[..bar])?.subcommand(&name[bar + 1..]),
    }
}

/// COMMAND
pub fn command(call: &mut Call<'_>) {
    let mut reply = reply!(call);
    reply.array(top_level().count());
    top_level().for_each(|command| write_info(&mut reply, command));
}

/// COMMAND COUNT
pub fn command_count(call: &mut Call<'_>) {
    reply!(call).integer(top_level().count() as i64);
}

/// `COMMAND INFO [name …]`
pub fn command_info(call: &mut Call<'_>) {
    if call.args.len() == 2 {
        return command(call);
    }
    reply!(call).array(call.args.len() - 2);
    for name in call.args.iter().skip(2) {
        if call.output_full() {
            return;
        }
        match by_full_name(name) {
            Some(command) => write_info(&mut reply!(call), command),
            None => reply!(call).null(),
        }
    }
}

fn write_info(reply: &mut Reply<'_>, command: &Command) {
    reply.array(10);
    reply.bulk(command.name.as_bytes());
    reply.integer(i64::from(command.arity));
    let flags = bits(&flag::NAMES, command.flags);
    reply.set(flags.len());
    flags.iter().for_each(|name| reply.simple(name));
    reply.integer(i64::from(command.keys.first));
    reply.integer(i64::from(command.keys.last));
    reply.integer(i64::from(command.keys.step));
    let categories = bits(&category::NAMES, command.categories());
    reply.set(categories.len());
    categories.iter().for_each(|name| reply.simple(&format!("@{name}")));
    reply.set(command.tips.len());
    command.tips.iter().for_each(|tip| reply.bulk(tip.as_bytes()));
    reply.set(command.key_specs.len());
    for spec in command.key_specs {
        reply.map(3 + usize::from(!spec.notes.is_empty()));
        if !spec.notes.is_empty() {
            reply.bulk(b"notes");
            reply.bulk(spec.notes.as_bytes());
        }
        reply.bulk(b"flags");
        reply.set(spec.flags.len());
        spec.flags.iter().for_each(|name| reply.simple(name));
        reply.bulk(b"begin_search");
        reply.map(2);
        reply.bulk(b"type");
        reply.bulk(b"index");
        reply.bulk(b"spec");
        reply.map(1);
        reply.bulk(b"index");
        reply.integer(i64::from(spec.index));
        reply.bulk(b"find_keys");
        reply.map(2);
        reply.bulk(b"type");
        reply.bulk(b"range");
        reply.bulk(b"spec");
        reply.map(3);
        reply.bulk(b"lastkey");
        reply.integer(i64::from(spec.last));
        reply.bulk(b"keystep");
        reply.integer(i64::from(spec.step));
        reply.bulk(b"limit");
        reply.integer(0);
    }
    // Redis' own oddity: an empty set, but an array of what is there.
    match command.subcommands().count() {
        0 => reply.set(0),
        count => reply.array(count),
    }
    command.subcommands().for_each(|sub| write_info(reply, sub));
}

/// The names of the bits that are set.
fn bits(names: &[&'static str], set: u32) -> Vec<&'static str> {
    names.iter().enumerate().filter(|(bit, _)| set & (1 << bit) != 0).map(|(_, name)| *name).collect()
}

/// `COMMAND DOCS [name …]`
pub fn command_docs(call: &mut Call<'_>) {
    let wanted: Vec<&Command> = match call.args.len() {
        2 => top_level().collect(),
        _ => call.args.iter().skip(2).filter_map(by_full_name).collect(),
    };
    reply!(call).map(wanted.len());
    for command in wanted {
        if call.output_full() {
            return;
        }
        let mut reply = reply!(call);
        reply.bulk(command.name.as_bytes());
        write_docs(&mut reply, command);
    }
}

fn write_docs(reply: &mut Reply<'_>, command: &Command) {
    let fields: [(&str, &str); 4] = [
        ("summary", command.summary),
        ("since", command.since),
        ("group", command.group.name()),
        ("complexity", command.complexity),
    ];
    let fields: Vec<_> = fields.iter().filter(|(_, text)| !text.is_empty()).collect();
    reply.map(fields.len() + usize::from(command.is_container));
    for (name, text) in fields {
        reply.bulk(name.as_bytes());
        reply.bulk(text.as_bytes());
    }
    if command.is_container {
        reply.bulk(b"subcommands");
        reply.map(command.subcommands().count());
        for sub in command.subcommands() {
            reply.bulk(sub.name.as_bytes());
            write_docs(reply, sub);
        }
    }
}

/// `COMMAND LIST [FILTERBY MODULE name | ACLCAT category | PATTERN pattern]`
pub fn command_list(call: &mut Call<'_>) {
    enum Filter<'a> {
        All,
        Nothing,
        Category(u32),
        Pattern(&'a [u8]),
    }
    let args = call.args;
    let filter = match args.len() {
        2 => Filter::All,
        5 if is_word(args.at(2), "filterby") => {
            let (kind, what) = (args.at(3), args.at(4));
            if is_word(kind, "module") {
                Filter::Nothing
            } else if is_word(kind, "aclcat") {
                Filter::Category(category_bit(what).unwrap_or(0))
            } else if is_word(kind, "pattern") {
                Filter::Pattern(what)
            } else {
                return call.syntax_error();
            }
        }
        _ => return call.syntax_error(),
    };
    let names: Vec<&str> = COMMANDS
        .iter()
        .filter(|command| match filter {
            Filter::All => true,
            Filter::Nothing => false,
            Filter::Category(bit) => command.categories() & bit != 0,
            Filter::Pattern(pattern) => glob::matches(pattern, command.name.as_bytes(), true),
        })
        .map(|command| command.name)
        .collect();
    let mut reply = reply!(call);
    reply.array(names.len());
    names.iter().for_each(|name| reply.bulk(name.as_bytes()));
}

fn category_bit(name: &[u8]) -> Option<u32> {
    let at = category::NAMES.iter().position(|known| name.eq_ignore_ascii_case(known.as_bytes()))?;
    Some(1 << at)
}

/// `COMMAND GETKEYS command [argument …]`
pub fn command_getkeys(call: &mut Call<'_>) {
    get_keys(call, false);
}

/// `COMMAND GETKEYSANDFLAGS command [argument …]`
pub fn command_getkeysandflags(call: &mut Call<'_>) {
    get_keys(call, true);
}

fn get_keys(call: &mut Call<'_>, with_flags: bool) {
    let inner = call.args.from(2);
    let Some(command) = super::resolve(&inner) else {
        return reply!(call).error("ERR Invalid command specified");
    };
    // Shard channels are hashed like keys but are none.
    if command.key_specs.iter().all(|spec| spec.flags.contains(&"not_key")) {
        return reply!(call).error("ERR The command has no key arguments");
    }
    if !command.accepts(inner.len()) {
        return reply!(call).error("ERR Invalid number of arguments specified for command");
    }
    let keys = keys_of(command, &inner);
    if keys.is_empty() {
        return reply!(call).error("ERR Invalid arguments specified for command");
    }
    let mut reply = reply!(call);
    reply.array(keys.len());
    for (key, flags) in keys {
        if with_flags {
            reply.array(2);
        }
        reply.bulk(key);
        if with_flags {
            reply.set(flags.len());
            flags.iter().for_each(|name| reply.simple(name));
        }
    }
}

/// A key and what becomes of it.
type Key<'a> = (&'a [u8], Vec<&'static str>);

/// The keys of a command, with what becomes of them.
fn keys_of<'a>(command: &Command, args: &Args<'a>) -> Vec<Key<'a>> {
    let mut keys = Vec::new();
    for spec in command.key_specs {
        let first = spec.index as usize;
        let last = match spec.last {
            last @ 0.. => first + last as usize,
            last => args.len().saturating_sub(last.unsigned_abs() as usize),
        };
        for at in (first..=last).step_by(spec.step as usize) {
            if let Some(key) = args.get(at) {
                keys.push((key, spec_flags(command, spec.flags, args)));
            }
        }
    }
    keys
}

/// SET reads and writes only with GET, and writes without looking otherwise: its options decide.
fn spec_flags(command: &Command, flags: &[&'static str], args: &Args<'_>) -> Vec<&'static str> {
    if !flags.contains(&"variable_flags") {
        return flags.to_vec();
    }
    let gets = command.name == "set" && args.iter().skip(3).any(|option| is_word(option, "get"));
    if gets { Vec::from(["RW", "access", "update"]) } else { Vec::from(["OW", "update"]) }
}

/// COMMAND HELP
pub fn command_help(call: &mut Call<'_>) {
    call.help(&[
        "(no subcommand)",
        "    Return details about all Redis commands.",
        "COUNT",
        "    Return the total number of commands in this Redis server.",
        "LIST",
        "    Return a list of all commands in this Redis server.",
        "INFO [<command-name> ...]",
        "    Return details about multiple Redis commands.",
        "    If no command names are given, documentation details for all",
        "    commands are returned.",
        "DOCS [<command-name> ...]",
        "    Return documentation details about multiple Redis commands.",
        "    If no command names are given, documentation details for all",
        "    commands are returned.",
        "GETKEYS <full-command>",
        "    Return the keys from a full Redis command.",
        "GETKEYSANDFLAGS <full-command>",
        "    Return the keys and the access flags from a full Redis command.",
    ]);
}

/// ACL WHOAMI
pub fn acl_whoami(call: &mut Call<'_>) {
    reply!(call).bulk(b"default");
}

/// ACL USERS
pub fn acl_users(call: &mut Call<'_>) {
    let mut reply = reply!(call);
    reply.array(1);
    reply.bulk(b"default");
}

/// ACL LIST. Redis shows a hash of the password; we show that there is one.
pub fn acl_list(call: &mut Call<'_>) {
    let password = if call.engine.config.requirepass.is_empty() { "nopass" } else { "#(requirepass)" };
    let rule = format!("user default on {password} ~* &* +@all");
    let mut reply = reply!(call);
    reply.array(1);
    reply.bulk(rule.as_bytes());
}

/// ACL GETUSER name
pub fn acl_getuser(call: &mut Call<'_>) {
    if call.args.at(2) != b"default" {
        return reply!(call).null();
    }
    let open = call.engine.config.requirepass.is_empty();
    let mut reply = reply!(call);
    reply.map(6);
    reply.bulk(b"flags");
    let flags: &[&[u8]] = if open { &[b"on", b"nopass"] } else { &[b"on"] };
    reply.set(flags.len());
    flags.iter().for_each(|flag| reply.bulk(flag));
    reply.bulk(b"passwords");
    reply.array(0);
    for (field, value) in [("commands", "+@all"), ("keys", "~*"), ("channels", "&*")] {
        reply.bulk(field.as_bytes());
        reply.bulk(value.as_bytes());
    }
    reply.bulk(b"selectors");
    reply.array(0);
}

/// `ACL CAT [category]`
pub fn acl_cat(call: &mut Call<'_>) {
    let names: Vec<&str> = match call.args.get(2) {
        _ if call.args.len() > 3 => return call.subcommand_syntax_error(),
        None => category::NAMES.to_vec(),
        Some(name) => match category_bit(name) {
            Some(bit) => {
                COMMANDS.iter().filter(|command| command.categories() & bit != 0).map(|c| c.name).collect()
            }
            None => {
                let text = [b"ERR Unknown category '", c_string(name, usize::MAX), b"'"].concat();
                return reply!(call).error_bytes(&text);
            }
        },
    };
    let mut reply = reply!(call);
    reply.array(names.len());
    names.iter().for_each(|name| reply.bulk(name.as_bytes()));
}

/// ACL HELP
pub fn acl_help(call: &mut Call<'_>) {
    call.help(&[
        "CAT [<category>]",
        "    List all commands that belong to <category>, or all command categories",
        "    when no category is specified.",
        "GETUSER <username>",
        "    Get the user's details.",
        "LIST",
        "    Show users details in config file format.",
        "USERS",
        "    List all the registered usernames.",
        "WHOAMI",
        "    Return the current connection username.",
    ]);
}
