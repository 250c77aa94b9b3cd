//! MULTI, EXEC, DISCARD, WATCH and UNWATCH.
//!
//! Between MULTI and EXEC the gate queues commands instead of letting them through; EXEC calls them one after
//! the other, and as nothing else runs meanwhile that is all there is to isolation. WATCH asks the keyspace for
//! a token per key and EXEC asks whether each still holds.

use super::{COMMANDS, Call, call as call_command, reply, settle_reply_mode};
use crate::engine::Shared;
use crate::session::{ReplyMode, Session, Transaction};
use crate::shards::Message;
use crate::time::Nanos;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// MULTI
pub fn multi(call: &mut Call<'_>) {
    if call.session.transaction.is_some() {
        return reply!(call).error("ERR MULTI calls can not be nested");
    }
    call.session.transaction = Some(Box::default());
    reply!(call).ok();
}

/// DISCARD
pub fn discard(call: &mut Call<'_>) {
    if call.session.transaction.is_none() {
        return reply!(call).error("ERR DISCARD without MULTI");
    }
    discard_transaction(call.engine, call.session);
    reply!(call).ok();
}

/// EXEC
pub fn exec(call: &mut Call<'_>) {
    let Some(transaction) = call.session.transaction.take() else {
        return reply!(call).error("ERR EXEC without MULTI");
    };
    let Transaction { queued, broken, .. } = *transaction;
    let unchanged = call.session.watches.iter().all(|(key, token)| {
        call.engine.select(key);
        call.engine.keyspace.is_unchanged(key, token, call.now)
    });
    forget_watches(call.engine, call.session);
    if broken {
        return reply!(call).error("EXECABORT Transaction discarded because of previous errors.");
    }
    if !unchanged {
        return reply!(call).null_array();
    }
    reply!(call).array(queued.len());
    call.session.executing = queued.len();
    let started = call.clock.monotonic();
    for (id, args) in &queued {
        if call.output_full() {
            return;
        }
        let command = &COMMANDS[usize::from(*id)];
        let (start, silence, ended) =
            (call.session.output.len(), call.session.reply_mode, call.session.closing);
        call_command(&mut Call {
            engine: call.engine,
            session: call.session,
            args: args.view(),
            now: call.now,
            clock: call.clock,
            first_key_hash: None,
            command,
        });
        if silence != ReplyMode::On || call.session.reply_mode != ReplyMode::On {
            settle_reply_mode(call.session, Some(command), start, silence);
        }
        if ended {
            // It killed itself earlier in the transaction: what follows happens, but is not answered.
            call.session.output.truncate(start);
        }
    }
    // Quick commands were not timed by themselves: each gets its share of the whole.
    let elapsed = call.clock.monotonic().since(started);
    let share = Nanos(elapsed.0 / queued.len().max(1) as u64);
    for (id, _) in &queued {
        if !COMMANDS[usize::from(*id)].is_timed() {
            call.engine.metrics.note_time(*id, share, 1);
        }
    }
    call.session.executing = 0;
}

/// `WATCH key [key …]`
pub fn watch(call: &mut Call<'_>) {
    if call.session.transaction.is_some() {
        return reply!(call).error("ERR WATCH inside MULTI is not allowed");
    }
    for key in call.args.iter().skip(1) {
        if !call.session.watches.contains_key(key) {
            call.engine.select(key);
            let token = call.engine.keyspace.watch(key, call.now);
            call.session.watches.insert(key.into(), token);
        }
    }
    reply!(call).ok();
}

/// UNWATCH
pub fn unwatch(call: &mut Call<'_>) {
    forget_watches(call.engine, call.session);
    reply!(call).ok();
}

/// Forgets the transaction and the watched keys, if there are any.
pub(crate) fn discard_transaction(shared: &mut Shared, session: &mut Session) {
    session.transaction = None;
    forget_watches(shared, session);
}

fn forget_watches(shared: &mut Shared, session: &mut Session) {
    if shared.is_sharded && !session.watches.is_empty() {
        return forget_watches_everywhere(shared, session);
    }
    for key in core::mem::take(&mut session.watches).into_keys() {
        shared.keyspace.unwatch(&key);
    }
}

/// Keys of shards that are not in hand: those are told.
fn forget_watches_everywhere(shared: &mut Shared, session: &mut Session) {
    let mut elsewhere: BTreeMap<usize, Vec<Box<[u8]>>> = BTreeMap::new();
    for key in core::mem::take(&mut session.watches).into_keys() {
        let shard = shared.fleet.place.shard_of(&key);
        if shared.has_in_hand(shard) {
            shared.select_shard(shard);
            shared.keyspace.unwatch(&key);
        } else {
            elsewhere.entry(shard).or_default().push(key);
        }
    }
    shared.deselect();
    let messages = elsewhere.into_iter().map(|(shard, keys)| (shard, Message::Unwatch(keys)));
    shared.fleet.outbox.extend(messages);
}
