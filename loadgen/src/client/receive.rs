//! What comes in: connections that open and close, replies and their stamps, what a connection still owes when it goes.

use super::connection::{Loss, Phase};
use super::{Client, Failure, Stage, Stop};
use crate::scan::Tally;
use crate::workload;
use reactor::server::event::{ConnectionId, Event, Operation};

impl Client {
    /// Something the driver reports.
    #[inline]
    pub(super) fn try_handle(&mut self, event: Event<'_>, now: u64) -> Result<(), Failure> {
        if self.stage == Stage::Done {
            // The rest of the turn in which it ended: everything outstanding is accounted for already.
            return Ok(());
        }
        match event {
            Event::Received { connection, bytes } => {
                // What is due by now was offered before this arrived, however late that is noticed.
                if matches!(self.plan.stop, Stop::Requests(_))
                    && self.schedule.is_some()
                    && !self.schedule_over
                {
                    self.admit_arrivals(now);
                }
                let Some(index) = self.index_of(connection) else { return Ok(()) };
                self.receive(index, bytes, now)
            }
            Event::Sent { connection, buffer, result } => {
                let Some(index) = self.index_of(connection) else { return Ok(()) };
                let state = &mut self.connections[index];
                state.buffer = buffer;
                state.buffer.clear();
                state.sending = false;
                match result {
                    Ok(()) => self.mark_dirty(index),
                    Err(_) => return self.lose(index, now, Loss::Broken),
                }
                Ok(())
            }
            Event::Connected { connection, result, .. } => {
                let Some(index) = self.index_of(connection) else { return Ok(()) };
                self.last_progress = now;
                match result {
                    Ok(()) => {
                        let replies = self.greeting.1;
                        self.connections[index].phase = Phase::Greeting(replies);
                        if replies == 0 {
                            self.become_ready(index);
                        } else {
                            self.connections[index].sending = true;
                            let buffer = self.greeting.0.clone();
                            self.operations.push_back(Operation::Send { connection, buffer });
                        }
                        Ok(())
                    }
                    Err(errno) => {
                        self.connections[index].id = None;
                        self.connections[index].phase = Phase::Unconnected;
                        Err(Failure::Refused(errno))
                    }
                }
            }
            Event::ReceiveEnded { connection } | Event::Failed { connection, .. } => {
                let Some(index) = self.index_of(connection) else { return Ok(()) };
                self.lose(index, now, Loss::Broken)
            }
            Event::Closed { connection } => {
                let Some(index) = self.index_of(connection) else { return Ok(()) };
                let state = &mut self.connections[index];
                state.id = None;
                state.phase = Phase::Unconnected;
                state.sending = false;
                // One that was closed on purpose may still have arrivals to send when the measurement is over.
                let churned = std::mem::take(&mut state.churning);
                let is_wanted = self.stage < Stage::Drain || (churned && !state.due.is_empty());
                if is_wanted {
                    if !churned {
                        self.counts.reconnects += 1;
                    }
                    if self.counts.reconnects > 10 * self.plan.connections as u64 + 10_000 {
                        return Err(Failure::ClosesAll(self.counts.reconnects));
                    }
                    self.unconnected.push(index as u32);
                }
                Ok(())
            }
            Event::StopRequested => {
                self.interrupt(now);
                Ok(())
            }
            Event::Accepted { .. } => Ok(()),
        }
    }

    #[inline]
    pub(super) fn index_of(&self, id: ConnectionId) -> Option<usize> {
        let index = *self.by_slot.get(id.slot as usize)? as usize;
        (self.connections.get(index)?.id == Some(id)).then_some(index)
    }

    #[inline]
    pub(super) fn mark_dirty(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        if !connection.dirty {
            connection.dirty = true;
            self.dirty.push(index as u32);
        }
    }

    pub(super) fn become_ready(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        connection.phase = Phase::Ready;
        connection.requests = 0;
        connection.scanner.restart();
        connection.sequence_base = connection.sequence;
        self.ready += 1;
        self.mark_dirty(index);
    }

    pub(super) fn receive(&mut self, index: usize, bytes: &[u8], now: u64) -> Result<(), Failure> {
        let connection = &mut self.connections[index];
        let mut tally = Tally::default();
        let scanned = connection.scanner.scan(bytes, &mut tally);
        if self.stage == Stage::Measure {
            self.counts.received_bytes += bytes.len() as u64;
        }
        if tally.errors > 0 && self.first_error.is_none() {
            self.first_error = connection.scanner.first_error();
        }
        match connection.phase {
            Phase::Greeting(missing) => {
                scanned?;
                self.last_progress = now;
                if tally.errors > 0 {
                    return Err(Failure::Rejected(self.first_error.clone().unwrap_or_default()));
                }
                match missing.checked_sub(tally.replies as u32) {
                    Some(0) => self.become_ready(index),
                    Some(left) => connection.phase = Phase::Greeting(left),
                    None => return Err(Failure::Garbage("more replies than requests".into())),
                }
                Ok(())
            }
            Phase::Ready => {
                if let Some(sample) = connection.scanner.take_sample() {
                    let sequence = connection.sequence_base + sample.ordinal;
                    self.check_sample(sequence, &sample.bytes);
                }
                if tally.replies + tally.pushes > 0 {
                    self.count_replies(index, tally, now)?;
                }
                scanned?;
                Ok(())
            }
            // Bytes that were under way when the connection was given up.
            Phase::Closing | Phase::Connecting | Phase::Unconnected => Ok(()),
        }
    }

    #[cold]
    pub(super) fn check_sample(&mut self, sequence: u64, reply: &[u8]) {
        let workload = match self.stage {
            Stage::Prefill => self.prefill.as_ref().unwrap_or(&self.workload),
            _ => &self.workload,
        };
        self.counts.checked += 1;
        if let Err(wrong) = workload.check(self.plan.workload.protocol, sequence, reply) {
            self.counts.wrong += 1;
            self.first_wrong.get_or_insert(wrong);
        }
    }

    #[inline]
    pub(super) fn count_replies(&mut self, index: usize, tally: Tally, now: u64) -> Result<(), Failure> {
        self.last_progress = now;
        let measuring = self.stage == Stage::Measure;
        if measuring {
            self.counts.completed += tally.replies;
            if self.offer_ended.is_none_or(|ended| now <= ended) {
                self.completed_by_then += tally.replies;
            }
            self.counts.errors += tally.errors;
            self.counts.nulls += tally.nulls;
            self.counts.pushes += tally.pushes;
            self.timeline.complete(tally.replies);
        }
        let connection = &mut self.connections[index];
        let missing = connection.missing as usize + connection.asked.len();
        if tally.replies > missing as u64 {
            let surplus = tally.replies - missing as u64;
            return Err(Failure::Garbage(format!("{surplus} replies more than were asked for")));
        }
        self.outstanding -= tally.replies as usize;
        if connection.missing > 0 {
            // Closed loop, or prefill.
            connection.missing -= tally.replies as u32;
            let sent = connection.sent_at;
            let empty = connection.missing == 0;
            if let Some(warm_up) = self.warm_up.as_mut().filter(|_| self.stage == Stage::WarmUp) {
                warm_up.record(now - sent, tally.replies);
            }
            if self.measured(sent) {
                self.counts.answered += tally.replies;
                self.service.saturating_record_n(now - sent, tally.replies);
                if measuring {
                    self.timeline.record(now - sent, tally.replies);
                }
            }
            if empty {
                self.mark_dirty(index);
            }
            return Ok(());
        }
        for _ in 0..tally.replies {
            let asked = connection.asked.pop_front().expect("counted above");
            if let Some(warm_up) = self.warm_up.as_mut() {
                warm_up.record(now - asked.intended, 1);
            }
            if asked.intended >= self.measure_began {
                self.counts.answered += 1;
                self.response.saturating_record(now - asked.intended);
                self.service.saturating_record(now - asked.sent);
                self.timeline.record(now - asked.intended, 1);
            }
        }
        if self.plan.requests_per_connection.is_some() && self.connections[index].asked.is_empty() {
            self.mark_dirty(index);
        }
        Ok(())
    }

    /// Whether a request of that moment belongs to the measurement.
    #[inline]
    pub(super) fn measured(&self, at: u64) -> bool {
        at >= self.measure_began && at < self.measure_ended
    }

    /// A connection is of no use any more: counts what it still owes, and closes it.
    pub(super) fn lose(&mut self, index: usize, now: u64, loss: Loss) -> Result<(), Failure> {
        let state = &mut self.connections[index];
        let Some(id) = state.id else { return Ok(()) };
        match state.phase {
            Phase::Greeting(_) | Phase::Connecting => return Err(Failure::ClosedEarly),
            Phase::Ready => {}
            Phase::Closing | Phase::Unconnected => return Ok(()),
        }
        state.phase = Phase::Closing;
        self.ready -= 1;
        self.operations.push_back(Operation::Close { connection: id });
        let owed = self.give_up_unanswered(index, now);
        match loss {
            Loss::Broken => self.counts.lost += owed,
            Loss::TimedOut => self.counts.timeouts += owed,
        }
        self.connections[index].scanner = workload::scanner(self.plan.workload.protocol);
        match self.stage {
            Stage::Connect => Err(Failure::ClosedEarly),
            // A hole in the prefill would be found as misses later.
            Stage::Prefill => Err(Failure::LostInPrefill),
            _ => Ok(()),
        }
    }

    /// Records the sent and unanswered requests of a connection as having taken at least until now; the number
    /// of those that belong to the measurement.
    pub(super) fn give_up_unanswered(&mut self, index: usize, now: u64) -> u64 {
        let (began, ended) = (self.measure_began, self.measure_ended);
        let connection = &mut self.connections[index];
        let mut owed = 0;
        self.outstanding -= connection.missing as usize + connection.asked.len();
        let batch = u64::from(std::mem::take(&mut connection.missing));
        if batch > 0 && connection.sent_at >= began && connection.sent_at < ended {
            self.service.saturating_record_n(now - connection.sent_at, batch);
            owed += batch;
        }
        for asked in connection.asked.drain(..) {
            if asked.intended >= began {
                self.response.saturating_record(now - asked.intended);
                self.service.saturating_record(now - asked.sent);
                owed += 1;
            }
        }
        owed
    }
}
