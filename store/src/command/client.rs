//! CLIENT: what the server knows of its connections, and what it can do to them.

use super::{COMMANDS, Call, integer, is_word, reply};
use crate::engine::Shared;
use crate::journal::NO_LOG;
use crate::session::{ConnectionId, Durability, Names, ReplyMode, Session};
use crate::time::{Nanos, Now};
use crate::tracking::Mode;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// CLIENT ID
pub fn client_id(call: &mut Call<'_>) {
    let id = call.session.id;
    reply!(call).integer(id as i64);
}

/// CLIENT GETNAME
pub fn client_getname(call: &mut Call<'_>) {
    let name = call.session.name().to_vec();
    match name.is_empty() {
        true => reply!(call).null(),
        false => reply!(call).bulk(&name),
    }
}

/// CLIENT SETNAME name
pub fn client_setname(call: &mut Call<'_>) {
    if set_name(call, call.args.at(2)) {
        reply!(call).ok();
    }
}

/// Names the caller, or says why not.
pub(super) fn set_name(call: &mut Call<'_>, name: &[u8]) -> bool {
    if !name.iter().all(u8::is_ascii_graphic) {
        reply!(call).error("ERR Client names cannot contain spaces, newlines or special characters.");
        return false;
    }
    if !name.is_empty() || call.session.names.is_some() {
        names(call.session).name = name.to_vec();
    }
    true
}

fn names(session: &mut Session) -> &mut Names {
    session.names.get_or_insert_default()
}

/// CLIENT SETINFO LIB-NAME|LIB-VER text
pub fn client_setinfo(call: &mut Call<'_>) {
    let (option, value) = (call.args.at(2), call.args.at(3));
    let is_name = is_word(option, "lib-name");
    if !is_name && !is_word(option, "lib-ver") {
        let mut text = b"ERR Unrecognized option '".to_vec();
        text.extend_from_slice(super::c_string(option, usize::MAX));
        text.push(b'\'');
        return reply!(call).error_bytes(&text);
    }
    if !value.iter().all(u8::is_ascii_graphic) {
        let what = if is_name { "lib-name" } else { "lib-ver" };
        let text = format!("ERR {what} cannot contain spaces, newlines or special characters.");
        return reply!(call).error(&text);
    }
    let names = names(call.session);
    *(if is_name { &mut names.library } else { &mut names.library_version }) = value.to_vec();
    reply!(call).ok();
}

/// CLIENT INFO
pub fn client_info(call: &mut Call<'_>) {
    let mut text = Vec::new();
    describe(call.session, call.now, &mut text);
    reply!(call).verbatim("txt", &text);
}

/// `CLIENT LIST [TYPE type | ID id …]`
pub fn client_list(call: &mut Call<'_>) {
    let mut wanted = None;
    let mut ids = None;
    if call.args.len() == 4 && is_word(call.args.at(2), "type") {
        match ClientType::parse(call.args.at(3)) {
            Some(kind) => wanted = Some(kind),
            None => return unknown_type(call, call.args.at(3)),
        }
    } else if call.args.len() > 3 && is_word(call.args.at(2), "id") {
        let parsed: Option<Vec<i64>> = call.args.iter().skip(3).map(integer).collect();
        match parsed {
            Some(parsed) => ids = Some(parsed),
            None => return reply!(call).error("ERR Invalid client ID"),
        }
    } else if call.args.len() != 2 {
        return call.syntax_error();
    }
    let shards = call.engine.all();
    let mut sessions: Vec<&Session> =
        shards.flat_map(|shard| shard.sessions.iter()).filter(|other| !other.left).collect();
    sessions.push(call.session);
    sessions.sort_unstable_by_key(|session| session.id);
    let mut text = Vec::new();
    match ids {
        Some(ids) => {
            for id in ids {
                if let Ok(at) = sessions.binary_search_by_key(&id, |session| session.id as i64) {
                    describe(sessions[at], call.now, &mut text);
                }
            }
        }
        None => {
            for session in sessions {
                if wanted.is_none_or(|wanted| ClientType::of(session) == wanted) {
                    describe(session, call.now, &mut text);
                }
            }
        }
    }
    reply!(call).verbatim("txt", &text);
}

/// CLIENT KILL address, or filters
pub fn client_kill(call: &mut Call<'_>) {
    let args = call.args;
    let old_form = args.len() == 3;
    let mut filter = Filter { skip_me: !old_form, ..Filter::default() };
    if old_form {
        filter.address = Some(args.at(2));
    } else {
        let mut at = 2;
        while at < args.len() {
            let (option, Some(value)) = (args.at(at), args.get(at + 1)) else { return call.syntax_error() };
            if is_word(option, "id") {
                match integer(value) {
                    Some(id @ 1..) => filter.id = Some(id as u64),
                    _ => return reply!(call).error("ERR client-id should be greater than 0"),
                }
            } else if is_word(option, "type") {
                match ClientType::parse(value) {
                    Some(kind) => filter.kind = Some(kind),
                    None => return unknown_type(call, value),
                }
            } else if is_word(option, "addr") {
                filter.address = Some(value);
            } else if is_word(option, "laddr") {
                filter.local = Some(value);
            } else if is_word(option, "user") {
                if value != b"default" {
                    let mut text = b"ERR No such user '".to_vec();
                    text.extend_from_slice(super::c_string(value, usize::MAX));
                    text.push(b'\'');
                    return reply!(call).error_bytes(&text);
                }
            } else if is_word(option, "skipme") && is_word(value, "yes") {
                filter.skip_me = true;
            } else if is_word(option, "skipme") && is_word(value, "no") {
                filter.skip_me = false;
            } else {
                return call.syntax_error();
            }
            at += 2;
        }
    }
    let me = !filter.skip_me && filter.matches(call.session);
    let mut killed = usize::from(me);
    let mut elsewhere = Vec::new();
    let here = call.engine.fleet.place.index;
    call.engine.for_all(|shard| {
        let others = shard.sessions.iter().filter(|other| !other.left && filter.matches(other));
        let doomed: Vec<ConnectionId> = others.map(|other| other.connection).collect();
        if !doomed.is_empty() && shard.fleet.place.index != here {
            elsewhere.push(shard.fleet.place.index);
        }
        for connection in doomed {
            if let Some(mut session) = shard.sessions.take(connection) {
                shard.abort(&mut session);
                shard.sessions.insert(session);
                killed += 1;
            }
        }
    });
    // Whoever reads the reply may rely on the connections being at their end, as with one shard.
    for shard in elsewhere {
        call.engine.fence(call.session, shard);
    }
    match (old_form, killed) {
        (true, 0) => reply!(call).error("ERR No such client"),
        (true, _) => reply!(call).ok(),
        (false, _) => reply!(call).integer(killed as i64),
    }
    // The reply leaves first.
    call.session.closing |= me;
}

#[derive(Default)]
struct Filter<'a> {
    id: Option<u64>,
    kind: Option<ClientType>,
    address: Option<&'a [u8]>,
    local: Option<&'a [u8]>,
    skip_me: bool,
}

impl Filter<'_> {
    fn matches(&self, session: &Session) -> bool {
        self.id.is_none_or(|id| id == session.id)
            && self.kind.is_none_or(|kind| kind == ClientType::of(session))
            && self.address.is_none_or(|address| address == session.peer.address.as_bytes())
            && self.local.is_none_or(|local| local == session.peer.local.as_bytes())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ClientType {
    Normal,
    Replica,
    Pubsub,
    Master,
}

impl ClientType {
    fn parse(word: &[u8]) -> Option<ClientType> {
        match word {
            _ if is_word(word, "normal") => Some(ClientType::Normal),
            _ if is_word(word, "slave") || is_word(word, "replica") => Some(ClientType::Replica),
            _ if is_word(word, "pubsub") => Some(ClientType::Pubsub),
            _ if is_word(word, "master") => Some(ClientType::Master),
            _ => None,
        }
    }

    fn of(session: &Session) -> ClientType {
        if session.is_subscriber() { ClientType::Pubsub } else { ClientType::Normal }
    }
}

#[cold]
fn unknown_type(call: &mut Call<'_>, word: &[u8]) {
    let mut text = b"ERR Unknown client type '".to_vec();
    text.extend_from_slice(super::c_string(word, usize::MAX));
    text.push(b'\'');
    reply!(call).error_bytes(&text);
}

/// `CLIENT PAUSE milliseconds [WRITE|ALL]`
pub fn client_pause(call: &mut Call<'_>) {
    let all = match call.args.get(3) {
        _ if call.args.len() > 4 => return call.subcommand_syntax_error(),
        None => true,
        Some(word) if is_word(word, "all") => true,
        Some(word) if is_word(word, "write") => false,
        Some(_) => return reply!(call).error("ERR CLIENT PAUSE mode must be WRITE or ALL"),
    };
    let timeout = match integer(call.args.at(2)) {
        None => return reply!(call).error("ERR timeout is not an integer or out of range"),
        Some(..0) => return reply!(call).error("ERR timeout is negative"),
        Some(timeout) => timeout as u64,
    };
    let until = Nanos(call.now.monotonic.0.saturating_add(timeout.saturating_mul(1_000_000)));
    let now = call.now;
    call.engine.for_all(|shard| {
        let pause = &mut shard.pause;
        // A second pause can make the first longer and stricter, not shorter or milder.
        pause.all = all || (pause.until.is_some() && pause.all);
        pause.until = Some(pause.until.map_or(until, |other| other.max(until)));
        shard.settings_changed(now);
    });
    reply!(call).ok();
}

/// CLIENT UNPAUSE
pub fn client_unpause(call: &mut Call<'_>) {
    let now = call.now;
    call.engine.for_all(|shard| {
        shard.pause.until = None;
        shard.settings_changed(now);
    });
    reply!(call).ok();
}

/// CLIENT REPLY ON|OFF|SKIP
pub fn client_reply(call: &mut Call<'_>) {
    let mode = call.args.at(2);
    if is_word(mode, "on") {
        call.session.reply_mode = ReplyMode::On;
        reply!(call).ok();
    } else if is_word(mode, "off") {
        call.session.reply_mode = ReplyMode::Off;
    } else if is_word(mode, "skip") {
        if call.session.reply_mode != ReplyMode::Off {
            call.session.reply_mode = ReplyMode::SkipNext;
        }
    } else {
        call.syntax_error();
    }
}

/// `CLIENT DURABILITY [ALWAYS|EVERYSEC|OFF|DEFAULT]`: what replies to this connection promise from now on.
pub fn client_durability(call: &mut Call<'_>) {
    let Some(word) = call.args.get(2) else {
        let class = call.engine.durability_of(call.session);
        return reply!(call).bulk(class.name().as_bytes());
    };
    if call.args.len() > 3 {
        return call.subcommand_syntax_error();
    }
    if is_word(word, "default") {
        call.session.durability = None;
        return reply!(call).ok();
    }
    let classes = [Durability::Off, Durability::EverySecond, Durability::Always];
    let Some(class) = classes.into_iter().find(|class| is_word(word, class.name())) else {
        return reply!(call).error("ERR CLIENT DURABILITY must be ALWAYS, EVERYSEC, OFF or DEFAULT");
    };
    if !call.engine.can_promise(class) {
        let text = format!("ERR CLIENT DURABILITY {} needs a log: {NO_LOG}", class.name());
        return reply!(call).error(&text);
    }
    call.session.durability = Some(class);
    reply!(call).ok();
}

/// Reads ON or OFF, or replies a syntax error.
fn switch(call: &mut Call<'_>) -> Option<bool> {
    let word = call.args.at(2);
    if is_word(word, "on") {
        Some(true)
    } else if is_word(word, "off") {
        Some(false)
    } else {
        call.syntax_error();
        None
    }
}

/// CLIENT NO-EVICT ON|OFF
pub fn client_no_evict(call: &mut Call<'_>) {
    if let Some(on) = switch(call) {
        call.session.no_evict = on;
        reply!(call).ok();
    }
}

/// CLIENT NO-TOUCH ON|OFF
pub fn client_no_touch(call: &mut Call<'_>) {
    if let Some(on) = switch(call) {
        call.session.no_touch = on;
        reply!(call).ok();
    }
}

/// `CLIENT UNBLOCK id [TIMEOUT|ERROR]`: WAITAOF and WAITLSN block, and end by themselves: nobody is woken.
pub fn client_unblock(call: &mut Call<'_>) {
    if call.args.len() > 4 {
        return call.subcommand_syntax_error();
    }
    if let Some(reason) = call.args.get(3)
        && !is_word(reason, "timeout")
        && !is_word(reason, "error")
    {
        return reply!(call).error("ERR CLIENT UNBLOCK reason should be TIMEOUT or ERROR");
    }
    match integer(call.args.at(2)) {
        None => reply!(call).error("ERR value is not an integer or out of range"),
        Some(_) => reply!(call).integer(0),
    }
}

/// CLIENT HELP, as Redis has it: what is ours stands in docs/protocol.md.
pub fn client_help(call: &mut Call<'_>) {
    call.help(HELP);
}

/// One line of CLIENT LIST. The fields that describe Redis' own buffers hold the closest thing of ours.
fn describe(session: &Session, now: Now, out: &mut Vec<u8>) {
    let mut flags = String::new();
    let tracking = session.tracking.as_deref().filter(|tracking| tracking.is_on);
    for (set, flag) in [
        (session.is_subscriber(), 'P'),
        (session.transaction.is_some() || session.executing > 0, 'x'),
        (session.paused_client, 'b'),
        (tracking.is_some(), 't'),
        (tracking.is_some_and(|tracking| tracking.is_broken), 'R'),
        (tracking.is_some_and(|tracking| tracking.mode == Mode::Broadcast), 'B'),
        (session.closing, 'c'),
        (session.peer.unix, 'U'),
        (session.no_evict, 'e'),
        (session.no_touch, 'T'),
    ] {
        if set {
            flags.push(flag);
        }
    }
    if flags.is_empty() {
        flags.push('N');
    }
    let seconds = |since: Nanos| now.monotonic.since(since).0 / 1_000_000_000;
    let (sub, psub, ssub) = session
        .subscriptions
        .as_ref()
        .map_or((0, 0, 0), |all| (all.channels.len(), all.patterns.len(), all.shard_channels.len()));
    let (multi, multi_bytes) = session
        .transaction
        .as_ref()
        .map_or((-1, 0), |transaction| (transaction.queued.len() as i64, transaction.bytes));
    // To others it looks as if EXEC were one command, and so it does to CLIENT INFO inside of it.
    let in_exec = session.executing > 0;
    let multi = if in_exec { session.executing as i64 } else { multi };
    let pending = session.input.len() - session.input_start.min(session.input.len());
    let total = size_of::<Session>() + session.buffer_bytes();
    let command = COMMANDS.get(usize::from(session.last_command)).map_or("NULL", |command| command.name);
    let names = session.names.as_deref();
    out.extend_from_slice(
        format!(
            "id={} addr={} laddr={} fd={} name=",
            session.id,
            session.peer.address,
            session.peer.local,
            session.connection.slot + 8
        )
        .as_bytes(),
    );
    out.extend_from_slice(session.name());
    out.extend_from_slice(
        format!(
            " age={} idle={} flags={flags} db=0 sub={sub} psub={psub} ssub={ssub} multi={multi} qbuf={pending} \
             qbuf-free={} argv-mem=0 multi-mem={multi_bytes} rbs={} rbp={} obl={} oll=0 omem={} tot-mem={total} \
             events=r cmd={command} user=default redir={} resp={} lib-name=",
            seconds(session.connected),
            seconds(session.last_interaction),
            session.input.capacity() - pending.min(session.input.capacity()),
            session.output.capacity(),
            session.output.capacity(),
            session.output.len(),
            session.in_flight,
            super::tracking::redirection(session),
            if session.resp3 { 3 } else { 2 },
        )
        .as_bytes(),
    );
    out.extend_from_slice(names.map_or(&[], |names| &names.library));
    out.extend_from_slice(b" lib-ver=");
    out.extend_from_slice(names.map_or(&[], |names| &names.library_version));
    out.push(b'\n');
}

/// After `requirepass` was emptied: whoever was waiting for a password needs none.
pub(super) fn let_everybody_in(shared: &mut Shared) {
    shared.sessions.iter_mut().for_each(|session| session.authenticated = true);
}

const HELP: &[&str] = &[
    "CACHING (YES|NO)",
    "    Enable/disable tracking of the keys for next command in OPTIN/OPTOUT modes.",
    "GETREDIR",
    "    Return the client ID we are redirecting to when tracking is enabled.",
    "GETNAME",
    "    Return the name of the current connection.",
    "ID",
    "    Return the ID of the current connection.",
    "INFO",
    "    Return information about the current client connection.",
    "KILL <ip:port>",
    "    Kill connection made from <ip:port>.",
    "KILL <option> <value> [<option> <value> [...]]",
    "    Kill connections. Options are:",
    "    * ADDR (<ip:port>|<unixsocket>:0)",
    "      Kill connections made from the specified address",
    "    * LADDR (<ip:port>|<unixsocket>:0)",
    "      Kill connections made to specified local address",
    "    * TYPE (NORMAL|MASTER|REPLICA|PUBSUB)",
    "      Kill connections by type.",
    "    * USER <username>",
    "      Kill connections authenticated by <username>.",
    "    * SKIPME (YES|NO)",
    "      Skip killing current connection (default: yes).",
    "LIST [options ...]",
    "    Return information about client connections. Options:",
    "    * TYPE (NORMAL|MASTER|REPLICA|PUBSUB)",
    "      Return clients of specified type.",
    "UNPAUSE",
    "    Stop the current client pause, resuming traffic.",
    "PAUSE <timeout> [WRITE|ALL]",
    "    Suspend all, or just write, clients for <timeout> milliseconds.",
    "REPLY (ON|OFF|SKIP)",
    "    Control the replies sent to the current connection.",
    "SETNAME <name>",
    "    Assign the name <name> to the current connection.",
    "UNBLOCK <clientid> [TIMEOUT|ERROR]",
    "    Unblock the specified blocked client.",
    "TRACKING (ON|OFF) [REDIRECT <id>] [BCAST] [PREFIX <prefix> [...]]",
    "         [OPTIN] [OPTOUT] [NOLOOP]",
    "    Control server assisted client side caching.",
    "TRACKINGINFO",
    "    Report tracking status for the current connection.",
    "NO-EVICT (ON|OFF)",
    "    Protect current client connection from eviction.",
];
