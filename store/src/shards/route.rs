//! Where a command has to be executed.
//!
//! Read from the command table: the positions of its keys, and whether it is about the whole server
//! ([`flag::ALL_SHARDS`](crate::command::flag)). The few commands whose reach depends on more are named here.

use super::ShardSet;
use crate::command::{COMMANDS, Command, flag, is_word, key};
use crate::engine::Shared;
use crate::protocol::resp::Args;
use crate::session::Session;

/// Who executes a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// The shard of the connection, by itself.
    Here,
    /// Another one.
    Hop(usize),
    /// The shard of the connection, with what these lend it (it may be among them).
    Gather(ShardSet),
}

/// Decides it.
pub(crate) fn route(shared: &Shared, session: &Session, command: &Command, args: &Args<'_>) -> Route {
    let place = shared.fleet.place;
    if command.flags & flag::ALL_SHARDS != 0 {
        return Route::Gather(place.everybody());
    }
    let one = |shard: usize| if shard == place.index { Route::Here } else { Route::Hop(shard) };
    // The "keys" of SSUBSCRIBE and its kin are channels, and those are everywhere.
    if command.keys.first > 0 && command.flags & flag::PUBSUB == 0 {
        let shards = shards_of_keys(shared, command, args);
        return match shards.first() {
            Some(shard) if shards.len() == 1 && (shard == place.index || command.name != "watch") => {
                one(shard)
            }
            // WATCH changes the session too, which is here.
            Some(_) => Route::Gather(shards),
            None => Route::Here,
        };
    }
    match command.name {
        "exec" => {
            let mut shards = shards_of_transaction(shared, session);
            shards.remove(place.index);
            if shards.is_empty() { Route::Here } else { Route::Gather(shards) }
        }
        "publish" | "spublish" => {
            let mut listening = shared.fleet.totals.with_subscribers();
            listening.remove(place.index);
            if listening.is_empty() { Route::Here } else { Route::Gather(listening) }
        }
        "scan" => args
            .get(1)
            .and_then(key::parse_cursor)
            .map_or(Route::Here, |cursor| one((cursor % place.count as u64) as usize)),
        "debug" => match args.get(2) {
            Some(key) if is_word(args.at(1), "object") => one(place.shard_of(key)),
            _ if is_word(args.at(1), "set-active-expire") || is_word(args.at(1), "digest") => {
                Route::Gather(place.everybody())
            }
            _ => Route::Here,
        },
        _ => Route::Here,
    }
}

/// The shards of a command's keys.
fn shards_of_keys(shared: &Shared, command: &Command, args: &Args<'_>) -> ShardSet {
    let place = shared.fleet.place;
    let range = command.keys;
    let last = if range.last < 0 { args.len() as i64 + i64::from(range.last) } else { i64::from(range.last) };
    let mut shards = ShardSet::default();
    let mut at = range.first as usize;
    while at as i64 <= last && at < args.len() {
        shards.insert(place.shard_of(args.at(at)));
        at += range.step.max(1) as usize;
    }
    shards
}

/// Every shard that EXEC will need: for the queued commands, and for the keys that are watched.
fn shards_of_transaction(shared: &Shared, session: &Session) -> ShardSet {
    let place = shared.fleet.place;
    let mut shards = ShardSet::default();
    for key in session.watches.keys() {
        shards.insert(place.shard_of(key));
    }
    let Some(transaction) = session.transaction.as_ref().filter(|transaction| !transaction.broken) else {
        return shards;
    };
    for (id, args) in &transaction.queued {
        match route(shared, session, &COMMANDS[usize::from(*id)], &args.view()) {
            Route::Here => {}
            Route::Hop(shard) => shards.insert(shard),
            Route::Gather(set) => shards = shards.with(set),
        }
    }
    shards
}
