//! What must be true, looked at whenever something is applied, read or counted.

use super::*;
use repl::fault::{Fault, Reason};

impl World {
    /// What a node shows is a prefix of a history that was durable on its primary.
    pub(super) fn check_state(&mut self, index: usize) {
        let now = self.nodes[index].now(self.now);
        let node = &mut self.nodes[index];
        let is_readable = match &mut node.replica {
            Some(replica) => replica.read(None, now) != ReadVerdict::Loading,
            None => node.role == Role::Root,
        };
        if !is_readable {
            return;
        }
        let (last, state) = (node.state.last, node.state);
        self.tally.checks += 1;
        let Some(shards) = self.ledger.shards(last) else {
            return self.fail(format!("node {index} shows {last:?}, which was never durable on a primary"));
        };
        if state.lsns.iter().any(|&lsn| lsn != last.lsn) || shards != state.shards {
            return self.fail(format!("node {index} shows {state:?}, and {last:?} is the end of {shards:?}"));
        }
        self.ledger.shown(last, index);
        let Some(replica) = &self.nodes[index].replica else { return };
        // Where a later branch begins, what the run before went on to write is of another history.
        let latest = replica.lineage().latest().map(|branch| branch.id);
        let is_of_latest = self.ledger.get(last).is_some_and(|truth| Some(truth.branch) == latest);
        if let Some(as_of) = replica.fresh_as_of().filter(|_| is_of_latest) {
            self.tally.fresh += 1;
            let at = as_of.saturating_sub(self.nodes[index].offset);
            let durable = self.ledger.durable_by(last.run, at);
            if durable > last.lsn {
                self.fail(format!(
                    "node {index} says it has all of {at} us, and ends with {last:?} before LSN {durable}"
                ));
            }
        }
    }

    /// A record comes: no key may have expired here that it found alive. The clocks of two primaries may differ.
    pub(super) fn check_word(&mut self, index: usize, name: Name) {
        let (word, run) = self.nodes[index].word;
        let executed = self.ledger.get(name).filter(|_| name.run == run).map(|truth| truth.executed_us);
        if let Some(executed) = executed.filter(|&executed| executed < word) {
            self.fail(format!(
                "node {index} has let keys expire by {word}, and {name:?} was executed at {executed}"
            ));
        }
    }

    pub(super) fn check_bounds(&mut self, index: usize) {
        let node = &self.nodes[index];
        let now = node.now(self.now);
        let Some(primary) = &node.primary else { return };
        let settings = &node.primary_settings;
        let frame = settings.frame_bytes_max + settings.snapshot_chunk_bytes + 10_000;
        let backlog = primary.backlog().0;
        let in_flight = primary.replicas(now).map(|replica| replica.in_flight_bytes).max().unwrap_or(0);
        if backlog > settings.backlog_bytes_max + frame || in_flight > settings.send_window_bytes + frame {
            self.fail(format!(
                "node {index} holds {backlog} bytes of backlog and {in_flight} for one replica"
            ));
        }
    }

    pub(super) fn read(&mut self) {
        let delay = self.random.between(100, 4000);
        self.at(delay, Event::Read);
        if self.ledger.writes.is_empty() {
            return;
        }
        let index = self.random.below(self.nodes.len() as u64) as usize;
        let recent = self.ledger.writes.len() - 1;
        let wanted = self.ledger.writes[recent - self.random.below(30).min(recent as u64) as usize];
        let Some(truth) = self.ledger.get(wanted) else { return };
        let (now, life) = (self.nodes[index].now(self.now), self.nodes[index].life);
        let Some(replica) = &mut self.nodes[index].replica else { return };
        let asked = AtLeast { lsn: Lsn(wanted.lsn), branch: Some(truth.branch) };
        match replica.read(Some(asked), now) {
            ReadVerdict::Wait(id) => drop(self.reads.insert((index, life, id), wanted)),
            verdict => self.check_read(index, wanted, verdict),
        }
        self.pump(index);
    }

    pub(super) fn check_read(&mut self, index: usize, wanted: Name, verdict: ReadVerdict) {
        self.tally.reads += 1;
        let last = self.nodes[index].state.last;
        let has = last.lsn >= wanted.lsn && self.ledger.ancestor(last, wanted.lsn) == Some(wanted);
        let is_true = match verdict {
            ReadVerdict::Now => has,
            ReadVerdict::Lost => last.lsn >= wanted.lsn && !has,
            ReadVerdict::Behind { applied_lsn } => applied_lsn.0 < wanted.lsn,
            _ => true,
        };
        self.tally.lost_reads += u64::from(verdict == ReadVerdict::Lost);
        if !is_true {
            self.fail(format!("node {index} shows {last:?}, and a read of {wanted:?} was told {verdict:?}"));
        }
    }

    /// Honest nodes with one secret and one version never find each other's bytes wrong.
    pub(super) fn check_fault(&mut self, index: usize, fault: &Fault) {
        self.tally.faults += 1;
        let never = [Reason::Version, Reason::Itself, Reason::Secret, Reason::Protocol, Reason::Shards];
        if self.bug.is_none() && never.contains(&fault.reason) {
            self.fail(format!("node {index} closes a connection: {fault}"));
        }
    }
}
