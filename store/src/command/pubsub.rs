//! SUBSCRIBE, PUBLISH and their kin.

use super::{Call, reply};
use crate::engine::Shared;
use crate::protocol::reply::Reply;
use crate::pubsub::Space;
use crate::session::{NameSet, ReplyMode, Session, Subscriptions};
use alloc::boxed::Box;
use alloc::vec::Vec;

/// `SUBSCRIBE channel [channel …]`
pub fn subscribe(call: &mut Call<'_>) {
    subscribe_to(call, Space::Channels);
}

/// `PSUBSCRIBE pattern [pattern …]`
pub fn psubscribe(call: &mut Call<'_>) {
    subscribe_to(call, Space::Patterns);
}

/// `SSUBSCRIBE channel [channel …]`
pub fn ssubscribe(call: &mut Call<'_>) {
    subscribe_to(call, Space::Shard);
}

/// `UNSUBSCRIBE [channel …]`
pub fn unsubscribe(call: &mut Call<'_>) {
    unsubscribe_from(call, Space::Channels);
}

/// `PUNSUBSCRIBE [pattern …]`
pub fn punsubscribe(call: &mut Call<'_>) {
    unsubscribe_from(call, Space::Patterns);
}

/// `SUNSUBSCRIBE [channel …]`
pub fn sunsubscribe(call: &mut Call<'_>) {
    unsubscribe_from(call, Space::Shard);
}

/// PUBLISH channel message
pub fn publish(call: &mut Call<'_>) {
    publish_to(call, Space::Channels);
}

/// SPUBLISH channel message
pub fn spublish(call: &mut Call<'_>) {
    publish_to(call, Space::Shard);
}

/// `PUBSUB CHANNELS [pattern]`
pub fn pubsub_channels(call: &mut Call<'_>) {
    names(call, Space::Channels);
}

/// `PUBSUB SHARDCHANNELS [pattern]`
pub fn pubsub_shardchannels(call: &mut Call<'_>) {
    names(call, Space::Shard);
}

/// `PUBSUB NUMSUB [channel …]`
pub fn pubsub_numsub(call: &mut Call<'_>) {
    counts(call, Space::Channels);
}

/// `PUBSUB SHARDNUMSUB [channel …]`
pub fn pubsub_shardnumsub(call: &mut Call<'_>) {
    counts(call, Space::Shard);
}

/// PUBSUB NUMPAT
pub fn pubsub_numpat(call: &mut Call<'_>) {
    // Unique patterns, as Redis counts them: two shards may have listeners of one.
    let patterns = union(call.engine, Space::Patterns, None).len();
    reply!(call).integer(patterns as i64);
}

/// PUBSUB HELP
pub fn pubsub_help(call: &mut Call<'_>) {
    call.help(&[
        "CHANNELS [<pattern>]",
        "    Return the currently active channels matching a <pattern> (default: '*').",
        "NUMPAT",
        "    Return number of subscriptions to patterns.",
        "NUMSUB [<channel> ...]",
        "    Return the number of subscribers for the specified channels, excluding",
        "    pattern subscriptions(default: no channels).",
        "SHARDCHANNELS [<pattern>]",
        "    Return the currently active shard level channels matching a <pattern> (default: '*').",
        "SHARDNUMSUB [<shardchannel> ...]",
        "    Return the number of subscribers for the specified shard level channel(s)",
    ]);
}

fn publish_to(call: &mut Call<'_>, space: Space) {
    let count = call.engine.publish(call.session, space, call.args.at(1), call.args.at(2));
    // CLIENT REPLY OFF silences the count but not the message, should the publisher listen too.
    if matches!(call.session.reply_mode, ReplyMode::On | ReplyMode::SkipNext) {
        reply!(call).integer(count as i64);
    }
}

fn names(call: &mut Call<'_>, space: Space) {
    if call.args.len() > 3 {
        return call.subcommand_syntax_error();
    }
    let pattern = call.args.get(2);
    let names = union(call.engine, space, pattern);
    let mut reply = reply!(call);
    reply.array(names.len());
    names.iter().for_each(|name| reply.bulk(name));
}

/// The names that match, of all shards in hand.
fn union<'a>(shared: &'a Shared, space: Space, pattern: Option<&'a [u8]>) -> Vec<&'a [u8]> {
    let mut names: Vec<&[u8]> =
        shared.all().flat_map(|shard| shard.pubsub.matching(space, pattern)).collect();
    if shared.has_guests() {
        names.sort_unstable();
        names.dedup();
    }
    names
}

fn counts(call: &mut Call<'_>, space: Space) {
    reply!(call).array((call.args.len() - 2) * 2);
    for channel in call.args.iter().skip(2) {
        let count: usize = call.engine.all().map(|shard| shard.pubsub.count(space, channel)).sum();
        let mut reply = reply!(call);
        reply.bulk(channel);
        reply.integer(count as i64);
    }
}

/// The session's own list of what it listens to.
fn own(subscriptions: &mut Subscriptions, space: Space) -> &mut NameSet {
    match space {
        Space::Channels => &mut subscriptions.channels,
        Space::Patterns => &mut subscriptions.patterns,
        Space::Shard => &mut subscriptions.shard_channels,
    }
}

/// What the replies count: channels and patterns together, shard channels apart.
fn count(session: &Session, space: Space) -> i64 {
    match (&session.subscriptions, space) {
        (None, _) => 0,
        (Some(all), Space::Shard) => all.shard_channels.len() as i64,
        (Some(_), _) => session.subscription_count() as i64,
    }
}

fn subscribe_to(call: &mut Call<'_>, space: Space) {
    let word: &[u8] = match space {
        Space::Channels => b"subscribe",
        Space::Patterns => b"psubscribe",
        Space::Shard => b"ssubscribe",
    };
    if call.session.subscriptions.is_none() {
        call.session.subscriptions = Some(Box::default());
        call.engine.subscribers += 1;
    }
    for name in call.args.iter().skip(1) {
        if call.output_full() {
            return;
        }
        if let Some(subscriptions) = &mut call.session.subscriptions
            && own(subscriptions, space).insert(name)
        {
            call.engine.pubsub.add(space, name, call.session.connection);
        }
        let count = count(call.session, space);
        confirm(&mut reply!(call), word, Some(name), count);
    }
}

fn unsubscribe_from(call: &mut Call<'_>, space: Space) {
    let word: &[u8] = match space {
        Space::Channels => b"unsubscribe",
        Space::Patterns => b"punsubscribe",
        Space::Shard => b"sunsubscribe",
    };
    let named: Vec<Box<[u8]>> = if call.args.len() > 1 {
        call.args.iter().skip(1).map(Box::from).collect()
    } else {
        let subscriptions = call.session.subscriptions.as_deref_mut();
        subscriptions.map_or(Vec::new(), |all| own(all, space).in_order())
    };
    if named.is_empty() {
        let count = count(call.session, space);
        return confirm(&mut reply!(call), word, None, count);
    }
    for name in &named {
        if call.output_full() {
            return;
        }
        if let Some(subscriptions) = &mut call.session.subscriptions
            && own(subscriptions, space).remove(name)
        {
            call.engine.pubsub.remove(space, name, call.session.connection);
        }
        let count = count(call.session, space);
        confirm(&mut reply!(call), word, Some(name), count);
    }
    forget_if_empty(call.engine, call.session);
}

fn confirm(reply: &mut Reply<'_>, word: &[u8], name: Option<&[u8]>, count: i64) {
    reply.push(3);
    reply.bulk(word);
    match name {
        Some(name) => reply.bulk(name),
        None => reply.null(),
    }
    reply.integer(count);
}

/// A session that listens to nothing any more is an ordinary one again.
fn forget_if_empty(shared: &mut Shared, session: &mut Session) {
    let empty = session.subscriptions.as_ref().is_some_and(|all| {
        all.channels.is_empty() && all.patterns.is_empty() && all.shard_channels.is_empty()
    });
    if empty {
        session.subscriptions = None;
        shared.subscribers -= 1;
    }
}

/// Stops listening to everything, without a word.
pub(crate) fn unsubscribe_all(shared: &mut Shared, session: &mut Session) {
    let Some(subscriptions) = session.subscriptions.take() else { return };
    shared.subscribers -= 1;
    let Subscriptions { channels, patterns, shard_channels } = *subscriptions;
    for (space, names) in
        [(Space::Channels, channels), (Space::Patterns, patterns), (Space::Shard, shard_channels)]
    {
        names.in_order().iter().for_each(|name| shared.pubsub.remove(space, name, session.connection));
    }
}
