//! Invalidations on their last way: to the connection that is told, or the one that is told in its place.
//!
//! A RESP3 client gets a push of its own, `invalidate` and the key; one key each, because that is what every client
//! library understands. A RESP2 client hears nothing, unless it listens to messages and somebody redirects to it.

use super::{Mistake, Mode, Target};
use crate::engine::Shared;
use crate::protocol::reply::Reply;
use crate::session::{ConnectionId, Session};
use crate::shards::Message;
use alloc::boxed::Box;
use alloc::vec::Vec;

/// Where RESP2 clients hear of invalidations.
const CHANNEL: &[u8] = b"__redis__:invalidate";

/// What a shard has to tell its clients of one key.
#[derive(Debug)]
pub struct Invalidation {
    /// Its name.
    pub key: Box<[u8]>,
    /// The record that must be durable before anybody is told; 0: none.
    pub lsn: u64,
    /// CLIENT ID of who changed it; 0: it was not asked for.
    pub writer: u64,
    /// Who has read it.
    pub readers: Vec<ConnectionId>,
    /// Those who want to hear of every key hear of it, too.
    pub is_for_listeners: bool,
}

/// What a client shall be told in place of another one.
#[derive(Debug)]
pub struct Redirected {
    /// Whom.
    pub to: Target,
    /// In whose place.
    pub from: Target,
    /// The key; `None`: all of them.
    pub key: Option<Box<[u8]>>,
}

/// What is written, by protocol version: made once, however many are told.
struct Push<'a> {
    key: Option<&'a [u8]>,
    resp3: Vec<u8>,
    message: Vec<u8>,
}

impl<'a> Push<'a> {
    fn new(key: Option<&'a [u8]>) -> Push<'a> {
        let body = |reply: &mut Reply<'_>| match key {
            Some(key) => {
                reply.array(1);
                reply.bulk(key);
            }
            None => reply.null(),
        };
        let (mut resp3, mut message) = (Vec::new(), Vec::new());
        let mut reply = Reply::new(&mut resp3, true);
        reply.push(2);
        reply.bulk(b"invalidate");
        body(&mut reply);
        let mut reply = Reply::new(&mut message, false);
        reply.array(3);
        reply.bulk(b"message");
        reply.bulk(CHANNEL);
        body(&mut reply);
        Push { key, resp3, message }
    }
}

/// Why a client is told.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    /// It has read the key.
    Read,
    /// It wants to hear of every key.
    Listens,
    /// All keys are gone.
    Flushed,
}

impl Shared {
    /// Tells clients of this shard that a key is not what it was. `session` is being executed, and thus not among the
    /// others.
    pub(crate) fn push_invalidation(
        &mut self,
        invalidation: &Invalidation,
        mut session: Option<&mut Session>,
    ) {
        let Invalidation { key, writer, readers, is_for_listeners, .. } = invalidation;
        let mut listeners = core::mem::take(&mut self.trackers.receivers);
        listeners.clear();
        if *is_for_listeners {
            self.trackers.receivers(key, &mut listeners);
        }
        if !readers.is_empty() || !listeners.is_empty() {
            let push = Push::new(Some(key));
            for &connection in readers {
                self.push_to(connection, &push, Why::Read, *writer, session.as_deref_mut());
            }
            for &connection in &listeners {
                self.push_to(connection, &push, Why::Listens, *writer, session.as_deref_mut());
            }
        }
        self.trackers.receivers = listeners;
    }

    /// Tells every client of this shard that tracks that all keys are gone.
    pub(super) fn push_flush(&mut self, session: Option<&mut Session>) {
        let connections: Vec<ConnectionId> = self.trackers.clients.values().copied().collect();
        self.push_flush_to(&connections, session);
    }

    /// Tells these clients of this shard that all keys are gone.
    pub(super) fn push_flush_to(&mut self, connections: &[ConnectionId], mut session: Option<&mut Session>) {
        let push = Push::new(None);
        for &connection in connections {
            self.push_to(connection, &push, Why::Flushed, 0, session.as_deref_mut());
        }
    }

    fn push_to(
        &mut self,
        connection: ConnectionId,
        push: &Push<'_>,
        why: Why,
        writer: u64,
        executing: Option<&mut Session>,
    ) {
        match executing {
            Some(session) if session.connection == connection => {
                self.push_for(session, push, why, writer, None);
            }
            executing => {
                let Some(mut session) = self.sessions.take(connection) else { return };
                self.push_for(&mut session, push, why, writer, executing);
                self.sessions.insert(session);
            }
        }
    }

    /// Tells a client, or whom it wants to be told in its place. `executing` is not among the others.
    fn push_for(
        &mut self,
        session: &mut Session,
        push: &Push<'_>,
        why: Why,
        writer: u64,
        executing: Option<&mut Session>,
    ) {
        let Some(tracking) = session.tracking.as_deref().filter(|tracking| tracking.is_on) else { return };
        // What it read before it chose to hear of everything is of no interest, and the other way round.
        let is_wanted = match why {
            Why::Read => tracking.mode != Mode::Broadcast,
            Why::Listens => tracking.mode == Mode::Broadcast,
            Why::Flushed => true,
        };
        if !is_wanted || (tracking.no_loop && writer == session.id) {
            return;
        }
        let own = self.fleet.place.index;
        match tracking.redirect {
            None if session.resp3 => self.write_push(session, &push.resp3),
            None => {}
            Some(to) if to.shard as usize != own => {
                if self.trackers.mistake == Some(Mistake::ForgetsRedirection) {
                    return;
                }
                let from = Target { id: session.id, shard: own as u32, connection: session.connection };
                let redirected = Redirected { to, from, key: push.key.map(Box::from) };
                let message = Message::Redirect(Box::new(redirected));
                self.fleet.tells.push_back((to.shard as usize, message));
            }
            Some(to) if to.id == session.id => self.push_redirected(session, push),
            Some(to) => match executing {
                Some(other) if other.id == to.id => self.push_redirected(other, push),
                _ => match self.sessions.take(to.connection) {
                    Some(mut other) => {
                        let is_gone = other.left;
                        if !is_gone {
                            self.push_redirected(&mut other, push);
                        }
                        self.sessions.insert(other);
                        if is_gone {
                            self.break_redirect(session);
                        }
                    }
                    None => self.break_redirect(session),
                },
            },
        }
    }

    /// A client of another shard wants one of this shard to be told.
    pub(crate) fn push_for_other(&mut self, redirected: Redirected) {
        let Redirected { to, from, key } = redirected;
        match self.sessions.take(to.connection) {
            Some(mut session) if !session.left => {
                self.push_redirected(&mut session, &Push::new(key.as_deref()));
                self.sessions.insert(session);
            }
            gone => {
                gone.into_iter().for_each(|session| self.sessions.insert(session));
                self.fleet.outbox.push_back((from.shard as usize, Message::RedirectBroken(from, to.id)));
            }
        }
    }

    /// The client that should have been told in place of one of this shard is gone.
    pub(crate) fn redirect_is_broken(&mut self, from: Target, to: u64) {
        let Some(mut session) = self.sessions.take(from.connection) else { return };
        let tracking = session.tracking.as_deref().filter(|tracking| tracking.is_on);
        if tracking.is_some_and(|tracking| tracking.redirect.is_some_and(|redirect| redirect.id == to)) {
            self.break_redirect(&mut session);
        }
        self.sessions.insert(session);
    }

    fn push_redirected(&mut self, session: &mut Session, push: &Push<'_>) {
        if session.resp3 {
            self.write_push(session, &push.resp3);
        } else if session.is_subscriber() {
            self.write_push(session, &push.message);
        }
    }

    /// Whom a client wanted to be told in its place is gone.
    fn break_redirect(&mut self, session: &mut Session) {
        let Some(tracking) = &mut session.tracking else { return };
        tracking.is_broken = true;
        let Some(redirect) = tracking.redirect.filter(|_| session.resp3) else { return };
        let mut bytes = Vec::new();
        let mut reply = Reply::new(&mut bytes, true);
        reply.push(2);
        reply.bulk(b"tracking-redir-broken");
        reply.integer(redirect.id as i64);
        self.append_push(session, &bytes);
    }

    fn write_push(&mut self, session: &mut Session, bytes: &[u8]) {
        self.trackers.pushes += 1;
        self.append_push(session, bytes);
    }

    /// Writes behind everything that the client has been answered.
    pub(super) fn append_push(&mut self, session: &mut Session, bytes: &[u8]) {
        if session.closing {
            return;
        }
        if session.unsent() > self.config.output_buffer_max {
            self.doom(session);
        } else {
            if session.output.capacity() == 0 {
                session.output = self.pool.take();
            }
            if self.trackers.mistake == Some(Mistake::PushesFirst) && !session.has_holes && !session.is_gated
            {
                drop(session.output.splice(..0, bytes.iter().copied()));
            } else {
                session.output.extend_from_slice(bytes);
            }
            self.queue_message(session);
        }
        self.charge(session);
    }
}
