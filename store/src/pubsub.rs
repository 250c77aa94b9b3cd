//! Who listens to what, and the messages.
//!
//! Three name spaces: channels, patterns over channels, and shard channels, which behave like channels that no
//! pattern sees. A message is encoded once per protocol version and copied into the output of each listener,
//! whose bound holds here too: one that does not read is closed, not buffered for.

use crate::glob;
use crate::protocol::reply::Reply;
use crate::session::ConnectionId;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// The three name spaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// SUBSCRIBE
    Channels,
    /// PSUBSCRIBE
    Patterns,
    /// SSUBSCRIBE
    Shard,
}

type Listeners = BTreeMap<Box<[u8]>, Vec<ConnectionId>>;

/// The listeners of every channel and pattern. What a session listens to it knows itself.
#[derive(Debug, Default)]
pub struct PubSub {
    channels: Listeners,
    patterns: Listeners,
    shard_channels: Listeners,
}

impl PubSub {
    fn space(&self, space: Space) -> &Listeners {
        match space {
            Space::Channels => &self.channels,
            Space::Patterns => &self.patterns,
            Space::Shard => &self.shard_channels,
        }
    }

    fn space_mut(&mut self, space: Space) -> &mut Listeners {
        match space {
            Space::Channels => &mut self.channels,
            Space::Patterns => &mut self.patterns,
            Space::Shard => &mut self.shard_channels,
        }
    }

    /// Adds a listener, who must not be one of this name yet.
    pub fn add(&mut self, space: Space, name: &[u8], listener: ConnectionId) {
        match self.space_mut(space).get_mut(name) {
            Some(listeners) => listeners.push(listener),
            None => {
                self.space_mut(space).insert(name.into(), Vec::from([listener]));
            }
        }
    }

    /// Removes a listener; a name without listeners is forgotten.
    pub fn remove(&mut self, space: Space, name: &[u8], listener: ConnectionId) {
        let names = self.space_mut(space);
        if let Some(listeners) = names.get_mut(name) {
            listeners.retain(|other| *other != listener);
            if listeners.is_empty() {
                names.remove(name);
            }
        }
    }

    /// How many listen to exactly this name.
    pub fn count(&self, space: Space, name: &[u8]) -> usize {
        self.space(space).get(name).map_or(0, Vec::len)
    }

    /// How many names there are.
    pub fn names(&self, space: Space) -> usize {
        self.space(space).len()
    }

    /// The names that match, all without a pattern.
    pub fn matching<'a>(
        &'a self,
        space: Space,
        pattern: Option<&'a [u8]>,
    ) -> impl Iterator<Item = &'a [u8]> + 'a {
        let names = self.space(space).keys().map(|name| &**name);
        names.filter(move |name| pattern.is_none_or(|pattern| glob::matches(pattern, name, false)))
    }

    /// The listeners a message to `channel` goes to, in Redis' order: those of the channel, then those of each
    /// matching pattern, with the pattern. One who listens twice hears it twice.
    pub fn receivers(&self, space: Space, channel: &[u8], out: &mut Vec<(ConnectionId, Option<Box<[u8]>>)>) {
        if let Some(listeners) = self.space(space).get(channel) {
            out.extend(listeners.iter().map(|listener| (*listener, None)));
        }
        if space == Space::Channels {
            for (pattern, listeners) in &self.patterns {
                if glob::matches(pattern, channel, false) {
                    out.extend(listeners.iter().map(|listener| (*listener, Some(pattern.clone()))));
                }
            }
        }
    }
}

/// Writes a message as its listener sees it.
pub fn write_message(
    out: &mut Vec<u8>,
    resp3: bool,
    space: Space,
    pattern: Option<&[u8]>,
    channel: &[u8],
    message: &[u8],
) {
    let mut reply = Reply::new(out, resp3);
    match pattern {
        Some(pattern) => {
            reply.push(4);
            reply.bulk(b"pmessage");
            reply.bulk(pattern);
        }
        None => {
            reply.push(3);
            reply.bulk(if space == Space::Shard { b"smessage" } else { b"message" });
        }
    }
    reply.bulk(channel);
    reply.bulk(message);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_of_channel_and_pattern_is_found_for_each() {
        let id = |slot| ConnectionId { slot, generation: 0 };
        let mut pubsub = PubSub::default();
        pubsub.add(Space::Channels, b"news", id(1));
        pubsub.add(Space::Patterns, b"n*", id(1));
        pubsub.add(Space::Patterns, b"x*", id(2));
        pubsub.add(Space::Shard, b"news", id(3));
        let mut receivers = Vec::new();
        pubsub.receivers(Space::Channels, b"news", &mut receivers);
        assert_eq!(receivers, [(id(1), None), (id(1), Some(b"n*"[..].into()))]);
        pubsub.remove(Space::Channels, b"news", id(1));
        assert_eq!((pubsub.names(Space::Channels), pubsub.count(Space::Shard, b"news")), (0, 1));
    }
}
