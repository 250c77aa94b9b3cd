//! Messages to many: who is told at once, and who waits in line.
//!
//! A PUBLISH to a thousand subscribers, or an invalidation for a thousand caches, is a thousand sends, and each costs
//! the kernel microseconds. Made in one turn they would stand between every other client and its reply. So the first
//! [`AT_ONCE`] of a turn leave with the turn, and the others wait in line, [`PER_TURN`] to a turn, in the order in which
//! they were told; meanwhile replies come first. Who is answered while waiting has the messages with the answer, before
//! it: a connection's bytes keep their order, only the sending waits.

use super::{Action, Shared};
use crate::session::{ConnectionId, Session};
use alloc::collections::VecDeque;

/// Connections that a turn sends messages to without a line: a few cost nobody anything.
const AT_ONCE: usize = 8;
/// Connections of the line whose turn it is: some 0.2 ms of sends.
const PER_TURN: usize = 32;

/// Connections that have messages, and nothing else, to be sent.
#[derive(Debug, Default)]
pub(crate) struct Line {
    waiting: VecDeque<ConnectionId>,
    at_once: usize,
    left: usize,
}

impl Line {
    /// A turn ends: so many may go.
    #[inline]
    pub fn finish_turn(&mut self) {
        self.at_once = 0;
        self.left = PER_TURN;
    }

    /// Somebody waits for the next turn.
    #[inline]
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }
}

impl Shared {
    /// A session that is not being executed has a message to be sent.
    pub(crate) fn queue_message(&mut self, session: &mut Session) {
        if session.flush_queued || session.in_line {
            return;
        }
        if self.line.at_once < AT_ONCE && self.line.waiting.is_empty() {
            self.queue_flush(session);
            self.line.at_once += usize::from(session.flush_queued);
        } else {
            session.in_line = true;
            self.line.waiting.push_back(session.connection);
        }
    }

    /// The next in line whose messages may leave in this turn.
    pub(super) fn next_in_line(&mut self) -> Option<Action> {
        while self.line.left > 0 {
            let connection = self.line.waiting.pop_front()?;
            let Some(mut session) = self.sessions.take(connection) else { continue };
            session.in_line = false;
            self.queue_flush(&mut session);
            self.sessions.insert(session);
            // None: it was answered meanwhile, or what it is told waits for the log.
            if let Some(action) = self.actions.pop_front() {
                self.line.left -= 1;
                return Some(action);
            }
        }
        None
    }
}
