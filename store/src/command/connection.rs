//! The connection itself: PING, ECHO, HELLO, AUTH, SELECT, QUIT, RESET.

use super::{Call, integer, is_word, reply};
use crate::session::ReplyMode;
use alloc::format;

/// The version we tell clients: digits and dots only, and high enough for those that refuse to cache on the
/// client's side below 7.4. Millrace's own is in INFO.
pub const REDIS_VERSION: &str = "7.4.0";

const WRONG_PASSWORD: &str = "WRONGPASS invalid username-password pair or user is disabled.";

/// `PING [message]`
pub fn ping(call: &mut Call<'_>) {
    if call.args.len() > 2 {
        return reply!(call).error("ERR wrong number of arguments for 'ping' command");
    }
    let message = call.args.get(1);
    let mut reply = reply!(call);
    if call.session.subscriptions.is_some() && !call.session.resp3 {
        let mut reply = reply!(call);
        reply.array(2);
        reply.bulk(b"pong");
        return reply.bulk(message.unwrap_or_default());
    }
    match message {
        None => reply.simple("PONG"),
        Some(message) => reply.bulk(message),
    }
}

/// ECHO message
pub fn echo(call: &mut Call<'_>) {
    let message = call.args.at(1);
    reply!(call).bulk(message);
}

/// `HELLO [version [AUTH user password] [SETNAME name]]`
pub fn hello(call: &mut Call<'_>) {
    let mut version = None;
    if let Some(argument) = call.args.get(1) {
        match integer(argument) {
            None => {
                return reply!(call).error("ERR Protocol version is not an integer or out of range");
            }
            Some(number @ 2..=3) => version = Some(number),
            Some(_) => return reply!(call).error("NOPROTO unsupported protocol version"),
        }
    }
    let mut at = 2;
    while at < call.args.len() {
        let (option, more) = (call.args.at(at), call.args.len() - at - 1);
        if is_word(option, "auth") && more >= 2 {
            if !log_in(call, call.args.at(at + 1), call.args.at(at + 2)) {
                return reply!(call).error(WRONG_PASSWORD);
            }
            at += 3;
        } else if is_word(option, "setname") && more >= 1 {
            if !super::client::set_name(call, call.args.at(at + 1)) {
                return;
            }
            at += 2;
        } else {
            let mut text = b"ERR Syntax error in HELLO option '".to_vec();
            text.extend_from_slice(super::c_string(option, usize::MAX));
            text.push(b'\'');
            return reply!(call).error_bytes(&text);
        }
    }
    if !call.session.authenticated {
        return reply!(call).error(
            "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO AUTH <user> \
             <pass> option can be used to authenticate the client and select the RESP protocol version at the same \
             time",
        );
    }
    if let Some(version) = version {
        call.session.resp3 = version == 3;
    }
    let (id, resp3) = (call.session.id, call.session.resp3);
    let is_replica = call.engine.replication.state.is_replica();
    let mut reply = reply!(call);
    reply.map(7);
    reply.bulk(b"server");
    reply.bulk(b"redis");
    reply.bulk(b"version");
    reply.bulk(REDIS_VERSION.as_bytes());
    reply.bulk(b"proto");
    reply.integer(if resp3 { 3 } else { 2 });
    reply.bulk(b"id");
    reply.integer(id as i64);
    reply.bulk(b"mode");
    reply.bulk(b"standalone");
    reply.bulk(b"role");
    reply.bulk(if is_replica { b"replica" } else { b"master" });
    reply.bulk(b"modules");
    reply.array(0);
}

/// `AUTH [user] password`
pub fn auth(call: &mut Call<'_>) {
    let (user, password): (&[u8], &[u8]) = match call.args.len() {
        2 if call.engine.config.requirepass.is_empty() => {
            return reply!(call).error(
                "ERR AUTH <password> called without any password configured for the default user. Are you sure your \
                 configuration is correct?",
            );
        }
        2 => (b"default", call.args.at(1)),
        3 => (call.args.at(1), call.args.at(2)),
        _ => return call.syntax_error(),
    };
    if log_in(call, user, password) {
        reply!(call).ok();
    } else {
        reply!(call).error(WRONG_PASSWORD);
    }
}

/// There is one user. Without a password, any will do, as in Redis.
fn log_in(call: &mut Call<'_>, user: &[u8], password: &[u8]) -> bool {
    let wanted = call.engine.config.requirepass.as_bytes();
    let right = user == b"default" && (wanted.is_empty() || is_same_secret(wanted, password));
    call.session.authenticated |= right;
    right
}

/// Compares without telling by its duration how much of a guess was right.
fn is_same_secret(wanted: &[u8], guess: &[u8]) -> bool {
    let mut difference = wanted.len() ^ guess.len();
    for (at, &byte) in guess.iter().enumerate() {
        difference |= usize::from(byte ^ wanted[at % wanted.len()]);
    }
    difference == 0
}

/// SELECT index
pub fn select(call: &mut Call<'_>) {
    let index = integer(call.args.at(1));
    let mut reply = reply!(call);
    match index {
        None => reply.error("ERR value is not an integer or out of range"),
        Some(0) => reply.ok(),
        Some(index) if i32::try_from(index).is_err() => {
            let (min, max) = (i32::MIN, i32::MAX);
            reply.error(&format!("ERR value is out of range, value must between {min} and {max}"));
        }
        Some(_) => reply.error("ERR DB index is out of range"),
    }
}

/// QUIT
pub fn quit(call: &mut Call<'_>) {
    reply!(call).ok();
    call.session.closing = true;
}

/// RESET
pub fn reset(call: &mut Call<'_>) {
    super::transaction::discard_transaction(call.engine, call.session);
    super::pubsub::unsubscribe_all(call.engine, call.session);
    call.engine.stop_tracking(call.session);
    let session = &mut *call.session;
    session.resp3 = false;
    session.authenticated = call.engine.config.requirepass.is_empty();
    session.reply_mode = ReplyMode::On;
    session.no_touch = false;
    session.no_evict = false;
    session.durability = None;
    if let Some(names) = &mut session.names {
        names.name.clear();
    }
    reply!(call).simple("RESET");
}
