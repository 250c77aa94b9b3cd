//! The connections of clients that track: opened and greeted one step after the other, one send at a time on each, and what
//! arrives handed over reply by reply. Pure, like everything that a turn drives.
//!
//! A greeting waits for each of its answers: not every server takes HELLO and CLIENT TRACKING in one go.

use super::replies::{Replies, Reply};
use crate::client::Failure;
use reactor::server::event::{ConnectionId, Event, Operation, Target};
use std::collections::VecDeque;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Unconnected,
    Connecting,
    /// The answer to this step of the greeting is missing.
    Greeting(usize),
    Ready,
}

#[derive(Debug)]
struct Link {
    id: Option<ConnectionId>,
    phase: Phase,
    replies: Replies,
    /// What is to be sent next.
    buffer: Vec<u8>,
    sending: bool,
    /// In `Links::dirty`.
    dirty: bool,
    greeting: Vec<Vec<u8>>,
}

/// See the module.
#[derive(Debug)]
pub struct Links {
    target: Target,
    links: Vec<Link>,
    /// Link by the id's slot.
    by_slot: Vec<u32>,
    unconnected: Vec<usize>,
    operations: VecDeque<Operation>,
    dirty: Vec<usize>,
    ready: usize,
}

impl Links {
    /// One for each greeting: commands, each of which is answered before the next one is sent.
    pub fn new(target: Target, greetings: Vec<Vec<Vec<u8>>>) -> Links {
        let link = |greeting| Link {
            id: None,
            phase: Phase::Unconnected,
            replies: Replies::default(),
            buffer: Vec::new(),
            sending: false,
            dirty: false,
            greeting,
        };
        let links: Vec<Link> = greetings.into_iter().map(link).collect();
        Links {
            target,
            unconnected: (0..links.len()).rev().collect(),
            links,
            by_slot: Vec::new(),
            operations: VecDeque::new(),
            dirty: Vec::new(),
            ready: 0,
        }
    }

    /// Whether all are connected and greeted.
    pub fn are_ready(&self) -> bool {
        self.ready == self.links.len()
    }

    /// One that needs an id.
    pub fn poll_unconnected(&mut self) -> Option<usize> {
        self.unconnected.pop()
    }

    /// Opens it.
    pub fn connect(&mut self, index: usize, id: ConnectionId) {
        let slot = id.slot as usize;
        if self.by_slot.len() <= slot {
            self.by_slot.resize(slot + 1, u32::MAX);
        }
        self.by_slot[slot] = index as u32;
        self.links[index].id = Some(id);
        self.links[index].phase = Phase::Connecting;
        let target = self.target.clone();
        self.operations.push_back(Operation::Connect { connection: id, token: index as u64, target });
    }

    /// Where bytes for it go; they leave with the next operations.
    pub fn send(&mut self, index: usize) -> &mut Vec<u8> {
        let link = &mut self.links[index];
        if !link.dirty {
            link.dirty = true;
            self.dirty.push(index);
        }
        &mut link.buffer
    }

    /// What is to be done next.
    pub fn poll_operation(&mut self) -> Option<Operation> {
        if let Some(operation) = self.operations.pop_front() {
            return Some(operation);
        }
        while let Some(index) = self.dirty.pop() {
            let link = &mut self.links[index];
            link.dirty = false;
            // What cannot leave now does when the send before it has ended.
            if let (Some(connection), false, false) = (link.id, link.sending, link.buffer.is_empty()) {
                link.sending = true;
                return Some(Operation::Send { connection, buffer: std::mem::take(&mut link.buffer) });
            }
        }
        None
    }

    /// Something the driver reports; replies on links that are ready go to `found`. `Err` ends the run. A stop is not for
    /// here.
    pub fn handle(
        &mut self,
        event: Event<'_>,
        mut found: impl FnMut(usize, Reply<'_>),
    ) -> Result<(), Failure> {
        match event {
            Event::Connected { connection, result, .. } => {
                let Some(index) = self.index_of(connection) else { return Ok(()) };
                result.map_err(Failure::Refused)?;
                self.greet(index, 0);
            }
            Event::Received { connection, bytes } => {
                let Some(index) = self.index_of(connection) else { return Ok(()) };
                let mut replies = std::mem::take(&mut self.links[index].replies);
                let mut refused = None;
                let taken = replies.take(bytes, |reply| match self.links[index].phase {
                    Phase::Ready => found(index, reply),
                    Phase::Greeting(_) if matches!(reply, Reply::Push | Reply::Invalidate(_)) => {}
                    Phase::Greeting(step) => match reply {
                        Reply::Error(text) => {
                            refused.get_or_insert_with(|| String::from_utf8_lossy(text).into_owned());
                        }
                        _ => self.greet(index, step + 1),
                    },
                    Phase::Unconnected | Phase::Connecting => {}
                });
                self.links[index].replies = replies;
                taken.map_err(Failure::Garbage)?;
                if let Some(text) = refused {
                    return Err(Failure::Rejected(text));
                }
            }
            Event::Sent { connection, mut buffer, result } => {
                let Some(index) = self.index_of(connection) else { return Ok(()) };
                if result.is_err() {
                    return Err(Failure::ClosedEarly);
                }
                let link = &mut self.links[index];
                link.sending = false;
                if link.buffer.is_empty() {
                    buffer.clear();
                    link.buffer = buffer;
                } else if !link.dirty {
                    link.dirty = true;
                    self.dirty.push(index);
                }
            }
            Event::ReceiveEnded { connection }
            | Event::Failed { connection, .. }
            | Event::Closed { connection } => {
                let Some(index) = self.index_of(connection) else { return Ok(()) };
                return Err(match self.links[index].phase {
                    Phase::Ready => Failure::LostConnection,
                    _ => Failure::ClosedEarly,
                });
            }
            Event::Accepted { .. } | Event::StopRequested => {}
        }
        Ok(())
    }

    fn greet(&mut self, index: usize, step: usize) {
        let link = &mut self.links[index];
        match link.greeting.get(step).cloned() {
            Some(command) => {
                link.phase = Phase::Greeting(step);
                self.send(index).extend_from_slice(&command);
            }
            None => {
                link.phase = Phase::Ready;
                self.ready += 1;
            }
        }
    }

    #[inline]
    fn index_of(&self, id: ConnectionId) -> Option<usize> {
        let index = *self.by_slot.get(id.slot as usize)? as usize;
        (self.links.get(index)?.id == Some(id)).then_some(index)
    }
}

/// A command of RESP.
pub fn command(words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_command(&mut bytes, words);
    bytes
}

/// The same at the end of a buffer.
pub fn put_command(bytes: &mut Vec<u8>, words: &[&[u8]]) {
    use std::io::Write;
    // Writing to memory does not fail.
    let _ = write!(bytes, "*{}\r\n", words.len());
    for word in words {
        let _ = write!(bytes, "${}\r\n", word.len());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
}
