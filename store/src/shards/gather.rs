//! Commands over several shards: everything they need comes into one hand first.
//!
//! A shard that has such commands waiting (its own connections') acquires all the shards they need: in ascending order,
//! itself included, one after the other. Others are asked to lend all they have, at the end of their turn, and stand
//! still until it comes back; the shard itself goes on with other work meanwhile and only lends nothing any more
//! from its own place in the order on. With everything in hand it executes all the waiting commands, and gives
//! back. As everybody acquires in the same order, nobody waits in a circle.
//!
//! A shard that sleeps (DEBUG SLEEP) says so instead of lending: what was acquired goes back at once, the commands that
//! need the sleeper wait for its waking, and nobody else waits for anything.

use super::{Message, ShardSet};
use crate::command::{self, COMMANDS, Outcome, Pausing};
use crate::engine::{Engine, Shared};
use crate::protocol::http::{self, HopRequest};
use crate::protocol::resp::OwnedArgs;
use crate::session::{ConnectionId, Session};
use crate::time::{Clock, Now};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// A command that waits.
pub(crate) struct Gather {
    connection: ConnectionId,
    shards: ShardSet,
    work: Work,
}

enum Work {
    Command(u16, OwnedArgs),
    Http(Box<HopRequest>),
}

/// Shards on their way into one hand.
pub(crate) struct Acquisition {
    wanted: ShardSet,
    got: Vec<(usize, Box<Shared>)>,
    /// Who was asked and has not answered.
    asked: Option<usize>,
    /// This shard's own turn in the order has come: it is not lent any more.
    holds_self: bool,
}

impl Shared {
    /// Lets a command wait until `shards` are in hand. Its connection waits with it.
    pub(crate) fn gather(&mut self, session: &mut Session, shards: ShardSet, command: u16, args: OwnedArgs) {
        self.gather_work(session, shards, Work::Command(command, args));
    }

    /// The same for an HTTP request.
    pub(crate) fn gather_request(
        &mut self,
        session: &mut Session,
        shards: ShardSet,
        request: Box<HopRequest>,
    ) {
        self.gather_work(session, shards, Work::Http(request));
    }

    fn gather_work(&mut self, session: &mut Session, shards: ShardSet, work: Work) {
        session.paused_hops = true;
        session.gathers = true;
        self.fleet.gathers.push_back(Gather { connection: session.connection, shards, work });
    }

    /// Whether the next turn has something to say or to begin.
    pub(crate) fn has_fleet_work(&self) -> bool {
        let fleet = &self.fleet;
        let mut waiting = fleet.gathers.iter();
        !fleet.outbox.is_empty()
            || !fleet.tells.is_empty()
            || fleet.acquisition.is_none()
                && fleet.unwanted.is_none()
                && waiting.any(|gather| !gather.shards.meets(fleet.asleep))
    }

    /// Begins to acquire what the waiting commands need, except from shards that sleep.
    fn begin_acquisition(&mut self) -> bool {
        let fleet = &mut self.fleet;
        if fleet.acquisition.is_some() || fleet.unwanted.is_some() {
            return false;
        }
        let mut wanted = ShardSet::default();
        for gather in fleet.gathers.iter().filter(|gather| !gather.shards.meets(fleet.asleep)) {
            wanted = wanted.with(gather.shards);
        }
        if wanted.is_empty() {
            return false;
        }
        wanted.insert(fleet.place.index);
        fleet.acquisition = Some(Acquisition { wanted, got: Vec::new(), asked: None, holds_self: false });
        true
    }

    /// Asks for the next shard. True: everything is in hand.
    fn advance_acquisition(&mut self) -> bool {
        let own = self.fleet.place.index;
        let Some(acquisition) = &mut self.fleet.acquisition else { return false };
        let mut missing = acquisition.wanted;
        acquisition.got.iter().for_each(|(index, _)| missing.remove(*index));
        if acquisition.holds_self {
            missing.remove(own);
        }
        if missing.first() == Some(own) {
            acquisition.holds_self = true;
            missing.remove(own);
        }
        acquisition.asked = missing.first();
        match acquisition.asked {
            Some(shard) => {
                self.fleet.outbox.push_back((shard, Message::Borrow));
                false
            }
            None => true,
        }
    }

    /// Gives back what was acquired; the commands go on waiting.
    fn give_up_acquisition(&mut self) {
        if let Some(acquisition) = self.fleet.acquisition.take() {
            self.fleet.unwanted = acquisition.asked;
            for (shard, lent) in acquisition.got {
                self.fleet.outbox.push_back((shard, Message::Return(lent)));
            }
        }
    }
}

impl Engine {
    /// Another shard says something.
    pub fn handle_message(&mut self, from: usize, message: Message, now: Now, clock: &dyn Clock) {
        if self.is_lent() {
            match message {
                Message::Return(shared) => {
                    self.shared = Some(shared);
                    self.shared_mut().release_held(None);
                    self.handle_deferred(now, clock);
                }
                other => self.deferred.push_back((from, other)),
            }
            return;
        }
        if self.stalled {
            let fleet = &mut self.shared_mut().fleet;
            match message {
                Message::Borrow => {
                    fleet.told.insert(from);
                    fleet.outbox.push_back((from, Message::Asleep));
                }
                Message::Lent(shared) => {
                    fleet.unwanted = None;
                    fleet.outbox.push_back((from, Message::Return(shared)));
                }
                other => self.deferred.push_back((from, other)),
            }
            return;
        }
        match message {
            Message::Hop(hop) => {
                let shared = self.shared_mut();
                let (answered, lsn) = shared.execute_hop(hop, from, now, clock);
                shared.answer_when_durable(from, answered, lsn);
            }
            Message::Answer(hop) => self.handle_answer(from, hop, now, clock),
            Message::Borrow => self.shared_mut().fleet.borrowers.push_back(from),
            Message::Lent(lent) => self.handle_lent(from, lent, now, clock),
            Message::Asleep => {
                let shared = self.shared_mut();
                shared.fleet.asleep.insert(from);
                shared.fleet.unwanted = shared.fleet.unwanted.filter(|&asked| asked != from);
                if shared.fleet.acquisition.as_ref().is_some_and(|own| own.asked == Some(from)) {
                    shared.give_up_acquisition();
                    shared.fleet.unwanted = None;
                }
            }
            Message::Awake => self.shared_mut().fleet.asleep.remove(from),
            Message::Return(_) => unreachable!("shard {from} returns what it did not borrow"),
            Message::Unwatch(keys) => {
                let keyspace = &mut self.shared_mut().keyspace;
                keys.iter().for_each(|key| keyspace.unwatch(key));
            }
            Message::Invalidate(invalidation) => self.shared_mut().hear_invalidation(*invalidation),
            Message::Redirect(redirected) => self.shared_mut().push_for_other(*redirected),
            Message::RedirectBroken(from, to) => self.shared_mut().redirect_is_broken(from, to),
            Message::Forget(id) => self.shared_mut().forget_reader(id),
            Message::Event(event) => self.shared_mut().push_event(from, &event),
            Message::StreamEnded(token, is_last) => self.shared_mut().stream_ended(from, token, is_last),
            Message::Deaf => self.shared_mut().stop_listening(from),
        }
    }

    /// The next thing that another shard must be able to hear before anything else that this one did is seen by anybody:
    /// before other messages, replies, and before the log has the records of the turn. See [`Message::is_tell`].
    #[inline]
    pub fn poll_tell(&mut self) -> Option<(usize, Message)> {
        self.shared.as_mut()?.fleet.tells.pop_front()
    }

    /// The next thing for another shard to hear. The shard itself may be in it: see [`is_lent`](Self::is_lent).
    pub fn poll_message(&mut self) -> Option<(usize, Message)> {
        let stalled = self.stalled;
        if let Some(tell) = self.poll_tell() {
            return Some(tell);
        }
        let fleet = &mut self.shared.as_mut()?.fleet;
        if let Some(message) = fleet.outbox.pop_front() {
            return Some(message);
        }
        // A shard that it asked for and wants no more can only come back to it while it is at home: until then it keeps
        // its place in the order, or two could wait for each other.
        let unwanted = fleet.unwanted.is_some_and(|asked| asked > fleet.place.index);
        let keeps = stalled || unwanted || fleet.acquisition.as_ref().is_some_and(|own| own.holds_self);
        if keeps {
            return None;
        }
        let borrower = fleet.borrowers.pop_front()?;
        fleet.times_lent += 1;
        let shared = self.shared.take()?;
        Some((borrower, Message::Lent(shared)))
    }

    /// Everything this shard has is with another one: until a message brings it back, only
    /// [`handle_message`](Self::handle_message) may be called.
    #[inline]
    pub fn is_lent(&self) -> bool {
        self.shared.is_none()
    }

    /// What this shard has left to do for or with the others, in a word; `None`: nothing. For tests, which can tell a
    /// server at rest from one that waits for what never comes.
    pub fn unfinished(&self) -> Option<&'static str> {
        if self.is_lent() {
            return Some("it is lent");
        }
        let fleet = &self.shared().fleet;
        let states = [
            (self.stalled, "it sleeps"),
            (!self.deferred.is_empty(), "messages are deferred"),
            (!fleet.outbox.is_empty() || !fleet.tells.is_empty(), "messages are to be sent"),
            (fleet.acquisition.is_some(), "it acquires other shards"),
            (fleet.unwanted.is_some(), "it awaits a shard that it wants no more"),
            (!fleet.gathers.is_empty(), "commands wait for other shards"),
            (!fleet.borrowers.is_empty(), "another shard wants to borrow it"),
            (!fleet.guests.is_empty() || fleet.selected != fleet.place.index, "it has other shards in hand"),
            (!fleet.asleep.is_empty(), "it thinks that another shard sleeps"),
            (!fleet.told.is_empty(), "another shard thinks that it sleeps"),
            (fleet.traffic.is_busy(), "hops are away, or replies held"),
        ];
        states.into_iter().find_map(|(holds, words)| holds.then_some(words))
    }

    /// The shard is about to stand still for a while (DEBUG SLEEP): it must keep nobody's shard meanwhile.
    pub fn begin_stall(&mut self) {
        self.stalled = true;
        let shared = self.shared_mut();
        shared.give_up_acquisition();
        while let Some(borrower) = shared.fleet.borrowers.pop_front() {
            shared.fleet.told.insert(borrower);
            shared.fleet.outbox.push_back((borrower, Message::Asleep));
        }
    }

    /// It goes on.
    pub fn end_stall(&mut self, now: Now, clock: &dyn Clock) {
        self.stalled = false;
        let fleet = &mut self.shared_mut().fleet;
        while let Some(shard) = fleet.told.first() {
            fleet.told.remove(shard);
            fleet.outbox.push_back((shard, Message::Awake));
        }
        self.handle_deferred(now, clock);
    }

    fn handle_deferred(&mut self, now: Now, clock: &dyn Clock) {
        for (from, message) in core::mem::take(&mut self.deferred) {
            self.handle_message(from, message, now, clock);
        }
    }

    /// Once a turn: starts what can be started, sends what has waited enough, and says what everybody may know.
    pub(crate) fn tend_fleet(&mut self, now: Now, clock: &dyn Clock) {
        let shared = self.shared_mut();
        while let Some(connection) = shared.next_held(now) {
            let Some(mut session) = shared.sessions.take(connection) else { continue };
            shared.flush_held(&mut session);
            shared.sessions.insert(session);
        }
        if shared.begin_acquisition() && shared.advance_acquisition() {
            self.execute_gathered(now, clock);
        }
        self.shared_mut().publish_totals();
    }

    fn handle_lent(&mut self, from: usize, lent: Box<Shared>, now: Now, clock: &dyn Clock) {
        let shared = self.shared_mut();
        match &mut shared.fleet.acquisition {
            Some(own) if own.asked == Some(from) => {
                own.asked = None;
                own.got.push((from, lent));
            }
            // It was wanted for something that has been given up.
            _ => {
                shared.fleet.unwanted = None;
                return shared.fleet.outbox.push_back((from, Message::Return(lent)));
            }
        }
        if shared.advance_acquisition() {
            self.execute_gathered(now, clock);
        }
    }

    /// Everything is in hand: executes every waiting command for which that is enough, and gives back.
    fn execute_gathered(&mut self, now: Now, clock: &dyn Clock) {
        let shared = self.shared_mut();
        let Some(acquisition) = shared.fleet.acquisition.take() else { return };
        let ready = |gather: &Gather| acquisition.wanted.covers(gather.shards);
        let (now_ready, later): (VecDeque<Gather>, _) =
            core::mem::take(&mut shared.fleet.gathers).into_iter().partition(ready);
        shared.fleet.gathers = later;
        shared.fleet.guests = acquisition.got;
        let mut served = Vec::with_capacity(now_ready.len());
        for Gather { connection, work, .. } in now_ready {
            let Some(mut session) = shared.sessions.take(connection) else { continue };
            session.gathers = false;
            session.paused_hops = false;
            if !session.aborted {
                execute_work(shared, &mut session, work, now, clock);
                shared.fleet.gathered_commands += 1;
            }
            shared.deselect();
            shared.settle(&mut session);
            shared.sessions.insert(session);
            served.push(connection);
        }
        for (shard, lent) in core::mem::take(&mut shared.fleet.guests) {
            // What was answered here was made of what is there.
            if let Some(damage) = lent.keyspace.damage() {
                shared.keyspace.adopt_damage(damage);
            }
            shared.fleet.outbox.push_back((shard, Message::Return(lent)));
        }
        for connection in served {
            self.resume(connection, now, clock);
        }
    }

    fn handle_answer(&mut self, from: usize, hop: Box<super::Hop>, now: Now, clock: &dyn Clock) {
        let shared = self.shared_mut();
        if let Some(session) = shared.take_answer(from, hop) {
            let connection = session.connection;
            let mut session = session;
            if session.is_sampled {
                shared.sampler.answered(connection, now.monotonic);
            }
            shared.send_hops(&mut session);
            shared.sessions.insert(session);
            self.resume(connection, now, clock);
        }
        let shared = self.shared_mut();
        while let Some(connection) = shared.next_waiting(from) {
            if let Some(mut session) = shared.sessions.take(connection) {
                shared.send_waiting(from, &mut session);
                shared.sessions.insert(session);
            }
        }
    }

    /// A connection goes on where it waited for other shards or for the log.
    pub(crate) fn resume(&mut self, connection: ConnectionId, now: Now, clock: &dyn Clock) {
        let Some(mut session) = self.shared_mut().sessions.take(connection) else { return };
        if !session.gathers {
            session.paused_hops = false;
            if session.http.is_some() {
                if !session.closing && !session.has_holes {
                    http::resume(self.shared_mut(), &mut session, now, clock);
                }
                session.paused_hops |= session.has_holes;
            } else if !session.closing && !session.waits() {
                self.run_kept(&mut session, now, clock);
            }
        }
        let shared = self.shared_mut();
        shared.settle_at(&mut session, now);
        shared.sessions.insert(session);
    }
}

fn execute_work(shared: &mut Shared, session: &mut Session, work: Work, now: Now, clock: &dyn Clock) {
    match work {
        Work::Command(id, args) => {
            let command = Some(&COMMANDS[usize::from(id)]);
            let started = clock.monotonic();
            let outcome = command::execute_resolved(
                shared,
                session,
                command,
                args.view(),
                None,
                now,
                clock,
                Pausing::Ignore,
            );
            debug_assert_eq!(outcome, Outcome::Done);
            if !COMMANDS[usize::from(id)].is_timed() {
                shared.metrics.note_time(id, clock.monotonic().since(started), 1);
            }
        }
        Work::Http(mut request) => request.execute(shared, session, now, clock),
    }
}
