//! Time: stages and their ends, arrivals that become due, intervals, time-outs.

use super::connection::Loss;
use super::plan::OUTSTANDING_MAX;
use super::{Client, Counts, Failure, Load, Stage, Stop};
use crate::arrivals::Picker;
use crate::gate::LOOK_EVERY_NS;
use crate::schedule::Schedule;
use crate::worker::Progress;

impl Client {
    /// Lets time pass: stages, arrivals, intervals, time-outs. Once a turn, before what goes out.
    #[inline]
    pub(super) fn pass_time(&mut self, now: u64) {
        if self.stage == Stage::WarmUp && self.plan.warmup_is_tested {
            self.test_warm_up(now);
        }
        // Arrivals first: those that were due before the measurement's end belong to it, however late this is.
        if self.schedule.is_some() && !self.schedule_over {
            self.admit_arrivals(now);
        }
        self.advance(now);
        if self.stage == Stage::Measure && now >= self.interval_began + self.plan.interval_ns {
            self.end_interval(now);
        }
        if now >= self.checked_timeouts + 50_000_000 {
            self.check_timeouts(now);
        }
    }

    /// The first thread decides whether the warm-up goes on, the others look what it has decided.
    fn test_warm_up(&mut self, now: u64) {
        let (began, length) = (self.stage_began, self.plan.warmup_ns);
        let longer = match &mut self.warm_up {
            Some(warm_up) => warm_up.lengthen(began, length, now),
            None => self.gate.as_ref().map(|gate| gate.warmup_ns()).filter(|&longer| longer > length),
        };
        if let Some(longer) = longer {
            self.plan.warmup_ns = longer;
            if let Some(gate) = self.gate.as_ref().filter(|_| self.warm_up.is_some()) {
                gate.lengthen_warmup(longer);
            }
        }
    }

    pub(super) fn advance(&mut self, now: u64) {
        match self.stage {
            Stage::Connect if self.ready == self.connections.len() => {
                if self.prefill.is_some() {
                    self.enter(Stage::Prefill, now);
                } else {
                    self.be_ready(now);
                }
            }
            Stage::Prefill if self.prefill_left == 0 && self.outstanding == 0 => {
                if let Some(error) = self.first_error.clone() {
                    self.fail(Failure::Rejected(format!("the prefill got errors: {error}")), now);
                    return;
                }
                self.be_ready(now);
            }
            Stage::Wait => {
                let begins_at = self.gate.as_ref().and_then(|gate| gate.opened(now));
                if let Some(begins_at) = begins_at {
                    self.begin_load(begins_at, now);
                }
            }
            Stage::WarmUp if now - self.stage_began >= self.plan.warmup_ns => {
                // The boundary itself, not the turn that notices it: arrivals in between are measured.
                let boundary = self.stage_began + self.plan.warmup_ns;
                self.measure_began = if self.schedule.is_some() { boundary } else { now };
                self.interval_began = self.measure_began;
                self.warmup_settled = self.warm_up.take().map(|warm_up| warm_up.has_settled());
                self.enter(Stage::Measure, now);
            }
            Stage::Measure => {
                let over = match self.plan.stop {
                    Stop::After(length) => now - self.measure_began >= length,
                    Stop::Requests(_) => {
                        let none_left = self.requests_left == 0 || self.schedule_over;
                        none_left && self.outstanding + self.waiting == 0
                    }
                };
                if over {
                    self.end_measurement(now);
                }
            }
            Stage::Drain
                if self.outstanding + self.waiting == 0 || now >= self.measure_ended + self.plan.drain_ns =>
            {
                self.finish(now);
            }
            _ => {}
        }
    }

    pub(super) fn enter(&mut self, stage: Stage, now: u64) {
        self.stage = stage;
        self.stage_began = now;
        self.last_progress = now;
        if matches!(stage, Stage::Prefill | Stage::WarmUp) {
            for index in 0..self.connections.len() {
                let connection = &mut self.connections[index];
                connection.scanner.restart();
                connection.sequence_base = connection.sequence;
                self.mark_dirty(index);
            }
        }
    }

    /// Connected and filled: begins, or waits for the others.
    fn be_ready(&mut self, now: u64) {
        match &self.gate {
            None => self.begin_load(now, now),
            Some(gate) => {
                gate.arrive(now);
                self.enter(Stage::Wait, now);
            }
        }
    }

    /// The warm-up begins, or began a moment ago.
    fn begin_load(&mut self, began: u64, now: u64) {
        self.counts = Counts::default();
        self.first_error = None;
        if let Load::Open { rate, arrival } = &self.plan.load {
            let share = self.plan.workload.share;
            self.schedule = Some(Schedule::new(arrival.clone(), *rate, self.seed).dealt(share));
            let expected = match self.plan.stop {
                Stop::After(length) => length as f64 / 1e9 * rate,
                Stop::Requests(count) => count as f64,
            };
            // Each thread picks as rarely as if it saw all: what they pick together is as much as one would.
            let whole =
                expected * if matches!(self.plan.stop, Stop::Requests(_)) { share.of as f64 } else { 1.0 };
            self.picker = Some(Picker::new(*rate, whole, self.seed ^ share.index as u64));
        }
        self.enter(Stage::WarmUp, began);
        self.advance(now);
    }

    pub(super) fn end_interval(&mut self, now: u64) {
        let began = self.measure_began;
        let span_ns = (self.interval_began - began, now - began);
        self.interval_began = now;
        self.last_interval = Some(match self.plan.workload.share.of {
            1 => Progress::Interval(self.timeline.end_interval(span_ns.0, span_ns.1)),
            _ => Progress::Part(Box::new(self.timeline.end_part(span_ns))),
        });
    }

    pub(super) fn end_measurement(&mut self, now: u64) {
        self.measure_ended = match (self.plan.stop, self.schedule.is_some()) {
            (Stop::After(length), true) => self.measure_began + length,
            _ => now,
        };
        self.schedule_over = true;
        if now > self.interval_began {
            self.end_interval(now);
        }
        self.enter(Stage::Drain, now);
        self.advance(now);
    }

    /// Ends the run: what is unanswered is recorded as a lower bound.
    pub(super) fn finish(&mut self, now: u64) {
        if self.stage == Stage::Done {
            return;
        }
        if self.stage == Stage::Measure {
            self.measure_ended = now;
            if now > self.interval_began {
                self.end_interval(now);
            }
        }
        for index in 0..self.connections.len() {
            self.counts.unanswered += self.give_up_unanswered(index, now);
            let began = self.measure_began;
            let connection = &mut self.connections[index];
            for intended in connection.due.drain(..).filter(|intended| *intended >= began) {
                // Never sent: late by all of it, and no service time at all.
                self.response.saturating_record(now - intended);
                self.lateness.saturating_record(now - intended);
                self.counts.unanswered += 1;
            }
        }
        self.waiting = 0;
        self.enter(Stage::Done, now);
    }

    pub(super) fn fail(&mut self, failure: Failure, now: u64) {
        self.failure.get_or_insert(failure);
        if let Some(gate) = &self.gate {
            gate.give_up();
        }
        self.finish(now);
    }

    /// Ctrl-C: keeps what was measured so far.
    pub fn interrupt(&mut self, now: u64) {
        self.interrupted = true;
        self.finish(now);
    }

    pub(super) fn admit_arrivals(&mut self, now: u64) {
        let Some(schedule) = &mut self.schedule else { return };
        let zero = match self.stage {
            Stage::WarmUp => self.stage_began,
            _ => self.measure_began - self.plan.warmup_ns,
        };
        let end = match self.plan.stop {
            Stop::After(length) => self.plan.warmup_ns + length,
            Stop::Requests(_) => u64::MAX,
        };
        let mut began = self.measure_began;
        if self.stage == Stage::WarmUp {
            began = zero + self.plan.warmup_ns;
        }
        while let Some(arrival) = schedule.take_due(now - zero) {
            let intended = zero + arrival;
            if arrival >= end || self.requests_left == 0 {
                self.schedule_over = true;
                break;
            }
            if intended >= began {
                self.counts.offered += 1;
                self.requests_left = self.requests_left.saturating_sub(1);
                if self.requests_left == 0 {
                    self.offer_ended = Some(intended);
                }
            }
            let index = self.next_connection;
            self.next_connection = (index + 1) % self.connections.len();
            let connection = &mut self.connections[index];
            connection.due.push_back(intended);
            self.waiting += 1;
            if !connection.dirty {
                connection.dirty = true;
                self.dirty.push(index as u32);
            }
        }
        if self.waiting + self.outstanding > OUTSTANDING_MAX {
            self.fail(Failure::Backlog, now);
        }
    }

    pub(super) fn check_timeouts(&mut self, now: u64) {
        self.checked_timeouts = now;
        let timeout = self.plan.timeout_ns;
        if self.gate.as_ref().is_some_and(|gate| gate.is_over()) {
            // Another thread has failed, and says why.
            self.finish(now);
            return;
        }
        if self.stage == Stage::Wait {
            return;
        }
        if self.stage < Stage::WarmUp {
            if now.saturating_sub(self.last_progress) > timeout + self.connect_gap().unwrap_or(0) {
                self.fail(Failure::Silent(self.stage), now);
            }
            return;
        }
        for index in 0..self.connections.len() {
            let connection = &self.connections[index];
            let oldest = match connection.missing {
                0 => connection.asked.front().map(|asked| asked.sent),
                _ => Some(connection.sent_at),
            };
            if oldest.is_some_and(|sent| now - sent > timeout) {
                if now - self.last_progress > timeout {
                    // Not this connection: nobody is answered.
                    self.fail(Failure::Silent(self.stage), now);
                    return;
                }
                if let Err(failure) = self.lose(index, now, Loss::TimedOut) {
                    self.fail(failure, now);
                }
            }
        }
    }

    /// How long nothing happens unless an event comes.
    #[inline]
    pub(super) fn time_left(&self, now: u64) -> u64 {
        let mut at = now + 50_000_000;
        match self.stage {
            Stage::Wait => at = now + LOOK_EVERY_NS,
            Stage::WarmUp => at = at.min(self.stage_began + self.plan.warmup_ns),
            Stage::Measure => {
                at = at.min(self.interval_began + self.plan.interval_ns);
                if let Stop::After(length) = self.plan.stop {
                    at = at.min(self.measure_began + length);
                }
            }
            Stage::Drain => at = at.min(self.measure_ended + self.plan.drain_ns),
            _ => {}
        }
        if let Some(arrival) = self.arrival_ahead() {
            at = at.min(arrival);
        }
        if !self.unconnected.is_empty() {
            at = at.min(self.connect_at);
        }
        at.saturating_sub(now)
    }

    /// When the next request of the open loop is due.
    #[inline]
    pub(super) fn arrival_ahead(&self) -> Option<u64> {
        let schedule = self.schedule.as_ref().filter(|_| !self.schedule_over)?;
        let zero = match self.stage {
            Stage::WarmUp => self.stage_began,
            _ => self.measure_began - self.plan.warmup_ns,
        };
        Some(zero + schedule.peek())
    }
}
