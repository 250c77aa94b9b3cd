//! Records on their way in: from frames, from datagrams, from repairs.

use alloc::format;
use alloc::vec::Vec;

use wal::lsn::Lsn;

use crate::datagram::{Datagram, InvalidDatagram};
use crate::fault::{Fault, Reason};
use crate::identity::Now;
use crate::intake::Taken;
use crate::message::{Heartbeat, Message};
use crate::run::{Delivery, Position, Run};

use super::{Action, Phase, Replica};

impl Replica {
    pub(super) fn handle_records(&mut self, run: &[u8], now: Now) -> Result<(), Fault> {
        let Some(run) = Run::parse(run) else { return Ok(()) };
        if !self.is_of_history(&run) {
            let (lsn, epoch) = (run.first().lsn, run.epoch());
            let text =
                format!("expected LSN {lsn} in the epoch that the history has there, found epoch {epoch}");
            return Err(Fault::new(Reason::HistoryChanged, text));
        }
        self.primary_durable_lsn = self.primary_durable_lsn.max(run.durable_lsn());
        let before = self.intake.last_lsn();
        match self.intake.take(&run) {
            Taken::Next(deliveries) => self.deliver(deliveries),
            Taken::Old => self.counters.old_runs += 1,
            Taken::Early => {
                let (expected, found) = (self.intake.expected(), run.first());
                let text = format!("expected {expected} over the connection, found {found}");
                return Err(Fault::new(Reason::Protocol, text));
            }
            Taken::TooLong { lsn, bytes } => return Err(self.too_long(lsn, bytes)),
        }
        if self.reorder.is_asked() {
            self.reorder.counters.repaired += self.intake.last_lsn().0 - before.0;
        }
        self.take_waiting(now)
    }

    /// Datagrams that were early, and are early no more.
    fn take_waiting(&mut self, now: Now) -> Result<(), Fault> {
        while let Some(run) = self.reorder.release(self.intake.expected()) {
            let Some(run) = Run::parse(&run) else { continue };
            match self.intake.take(&run) {
                Taken::Next(deliveries) => self.deliver(deliveries),
                Taken::Old | Taken::Early => (),
                Taken::TooLong { lsn, bytes } => return Err(self.too_long(lsn, bytes)),
            }
        }
        self.reorder.observe(self.intake.expected(), now.micros);
        Ok(())
    }

    fn too_long(&self, lsn: Lsn, bytes: usize) -> Fault {
        let most = self.settings.record_bytes_max;
        let text = format!("expected records of at most {most} bytes, found LSN {lsn} with {bytes} or more");
        Fault::new(Reason::Protocol, text)
    }

    /// A run belongs to the branch that the history has at its LSNs.
    fn is_of_history(&self, run: &Run<'_>) -> bool {
        let first = run.first().lsn;
        let branch = self.lineage.branch_of(first);
        branch.is_some_and(|branch| branch.epoch == run.epoch())
            && run.last_lsn() <= self.lineage.branch_end(first)
    }

    fn deliver(&mut self, deliveries: Vec<Delivery>) {
        for delivery in deliveries {
            self.counters.records += delivery.last_lsn.0 - delivery.first_lsn.0 + 1;
            self.unapplied.push_back((delivery.last_lsn, delivery.bytes()));
            self.unapplied_bytes += delivery.bytes();
            self.actions.push_back(Action::Apply(delivery));
        }
    }

    pub(super) fn handle_heartbeat(&mut self, beat: Heartbeat, now: Now) -> Result<(), Fault> {
        if beat.wants_ack {
            self.wanted_lsn = Some(beat.durable_lsn).filter(|&wanted| wanted > self.applied_lsn);
            // What it has now may be enough; nobody is told twice.
            if self.wanted_lsn.is_none() || self.applied_lsn > self.acked_lsn {
                self.ack_at = now.micros;
            }
        }
        if !matches!(self.phase, Phase::Streaming) {
            return Ok(());
        }
        self.primary_durable_lsn = self.primary_durable_lsn.max(beat.durable_lsn);
        self.word.hear(beat.durable_lsn, beat.unix_us);
        self.freshness.note(beat.durable_lsn, beat.echo, beat.age_us, self.applied_lsn);
        if self.is_live() {
            self.reorder.note_sent(Position::start_of(beat.datagrams_lsn));
            self.reorder.observe(self.intake.expected(), now.micros);
        }
        Ok(())
    }

    pub(super) fn handle_live(&mut self, lsn: Lsn, now: Now) -> Result<(), Fault> {
        let expected = self.intake.expected();
        let Some(channel) = self.channel.as_mut().filter(|_| Position::start_of(lsn) <= expected) else {
            let text = format!(
                "expected records up to datagrams, found datagrams from LSN {lsn} on after {expected:?}"
            );
            return Err(Fault::new(Reason::Protocol, text));
        };
        channel.is_live = true;
        self.take_waiting(now)
    }

    /// A datagram has arrived, from whomever.
    pub fn handle_datagram(&mut self, bytes: &[u8], now: Now) {
        let counters = &mut self.reorder.counters;
        counters.received += 1;
        counters.bytes += bytes.len() as u64;
        let datagram = match Datagram::decode(bytes, self.checksum) {
            Ok(datagram) => datagram,
            Err(InvalidDatagram::Version(_)) => return counters.foreign += 1,
            Err(_) => return counters.damaged += 1,
        };
        let Some(channel) = &mut self.channel else { return counters.foreign += 1 };
        let run = &datagram.run;
        let branch = self.lineage.branches().iter().find(|branch| branch.epoch == run.epoch());
        let Some(branch) = branch.filter(|_| datagram.stream == channel.stream) else {
            return counters.foreign += 1;
        };
        if channel.key.as_ref().is_none_or(|(of, _)| of != branch) {
            channel.key = Some((*branch, self.secret.datagram_key(&channel.salt, *branch)));
        }
        if !channel.key.as_ref().is_some_and(|(_, key)| datagram.is_authentic(key)) {
            return counters.forged += 1;
        }
        // What is being installed replaces the history that runs are checked against.
        if !matches!(self.phase, Phase::Streaming) || self.installing.is_some() {
            return;
        }
        let is_live = channel.is_live;
        // They say nothing of the connection, which must be heard for itself.
        self.reorder.note(datagram.sequence);
        self.primary_durable_lsn = self.primary_durable_lsn.max(run.durable_lsn());
        if run.count() == 0 {
            self.reorder.note_sent(run.first());
        } else if self.is_of_history(run) {
            self.reorder.note_sent(run.parts().last().map_or(run.first(), |part| part.end()));
            if let Err(fault) = self.take_datagram(&datagram) {
                return self.fail(fault, now);
            }
        } else {
            self.reorder.counters.foreign += 1;
        }
        if let Err(fault) = self.take_waiting(now) {
            return self.fail(fault, now);
        }
        if is_live {
            self.ask_for_repair(now);
        }
    }

    fn take_datagram(&mut self, datagram: &Datagram<'_>) -> Result<(), Fault> {
        if self.unapplied_bytes >= self.settings.apply_bytes_max {
            self.reorder.counters.overflowed += 1;
            return Ok(());
        }
        let run = &datagram.run;
        match self.intake.take(run) {
            Taken::Next(deliveries) => self.deliver(deliveries),
            Taken::Old => (),
            Taken::Early => self.reorder.hold(run.first(), run.as_bytes()),
            Taken::TooLong { lsn, bytes } => return Err(self.too_long(lsn, bytes)),
        }
        Ok(())
    }

    /// Whether it asks for what datagrams have lost: not while it can take nothing.
    pub(super) fn repairs(&self) -> bool {
        self.is_live() && matches!(self.phase, Phase::Streaming) && self.takes_frames()
    }

    pub(super) fn ask_for_repair(&mut self, now: Now) {
        if !self.repairs() {
            return;
        }
        if let Some(repair) = self.reorder.poll_repair(self.intake.expected(), now.micros) {
            self.say(&Message::Repair(repair));
        }
    }
}
