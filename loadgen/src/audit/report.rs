//! What an audit leaves on paper: a table for the terminal and JSON.

use super::client::{Finding, Kind, Tally};
use super::plan::Plan;
use crate::report::table::{align, micros, thousands};
use crate::system::Manifest;
use serde::Serialize;
use std::fmt::Write;

/// Named in every report; a change of meaning changes it.
pub const SCHEMA: &str = "millrace-loadgen-audit-1";
/// Findings of each kind that a report shows.
pub const FINDINGS_MAX: usize = 20;
/// Cycles in the table; JSON has all of them.
const ROWS_MAX: usize = 20;

/// One time the server went away.
#[derive(Clone, Debug, Serialize)]
pub struct Cycle {
    /// From 1.
    pub cycle: u32,
    /// Acknowledged writes after which it was to be killed; null: somebody else killed it.
    pub kill_at: Option<u64>,
    /// Writes that were answered with success.
    pub acknowledged: u64,
    /// Writes that were never answered: they may be there or not.
    pub unknown: u64,
    /// Writes that were answered with an error: they may be there or not.
    pub refused: u64,
    /// Reads by readers meanwhile.
    pub shown: u64,
    /// Keys read after the restart.
    pub verified: u64,
    /// Of these: something acknowledged, or shown to a reader, is gone.
    pub lost: u64,
    /// Of these: never sent. And values never sent that a reader was shown.
    pub phantom: u64,
    /// Answers that contradict what the key held.
    pub wrong_replies: u64,
    /// From the start of the process until it served; where somebody else restarts it, from its going away.
    pub recovery_ms: f64,
}

impl Cycle {
    /// A cycle's row.
    pub fn new(cycle: u32, kill_at: Option<u64>, tally: &Tally, recovery: std::time::Duration) -> Cycle {
        Cycle {
            cycle,
            kill_at,
            acknowledged: tally.acknowledged,
            unknown: tally.unknown,
            refused: tally.refused,
            shown: tally.shown,
            verified: tally.verified,
            lost: tally.lost,
            phantom: tally.phantom,
            wrong_replies: tally.wrong_replies,
            recovery_ms: recovery.as_secs_f64() * 1e3,
        }
    }
}

/// The sums of all cycles.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Totals {
    /// Cycles that were carried out to the end.
    pub cycles: usize,
    /// See [`Cycle`].
    pub acknowledged: u64,
    /// See [`Cycle`].
    pub unknown: u64,
    /// See [`Cycle`].
    pub refused: u64,
    /// See [`Cycle`].
    pub shown: u64,
    /// See [`Cycle`].
    pub verified: u64,
    /// See [`Cycle`].
    pub lost: u64,
    /// See [`Cycle`].
    pub phantom: u64,
    /// See [`Cycle`].
    pub wrong_replies: u64,
    /// The longest recovery.
    pub recovery_ms_max: f64,
}

/// An audit.
#[derive(Clone, Debug, Serialize)]
pub struct AuditReport {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// Where and by what it was made.
    pub manifest: Manifest,
    /// The server: its command line, or its address.
    pub server: String,
    /// What killed it: a signal, or null for somebody else.
    pub signal: Option<&'static str>,
    /// What was asked for.
    pub plan: Plan,
    /// The sums.
    pub totals: Totals,
    /// Why it ended before all cycles were done.
    pub incomplete: Option<String>,
    /// The first error that a write was answered with.
    pub refusal: Option<String>,
    /// The first of what went wrong, some of each kind.
    pub findings: Vec<Finding>,
    /// Cycle by cycle.
    pub cycles: Vec<Cycle>,
}

impl AuditReport {
    /// Takes the results of a cycle.
    pub fn add(&mut self, cycle: Cycle, tally: Tally) {
        let totals = &mut self.totals;
        totals.cycles += 1;
        totals.acknowledged += cycle.acknowledged;
        totals.unknown += cycle.unknown;
        totals.refused += cycle.refused;
        totals.shown += cycle.shown;
        totals.verified += cycle.verified;
        totals.lost += cycle.lost;
        totals.phantom += cycle.phantom;
        totals.wrong_replies += cycle.wrong_replies;
        totals.recovery_ms_max = totals.recovery_ms_max.max(cycle.recovery_ms);
        self.refusal = self.refusal.take().or(tally.refusal);
        for mut finding in tally.findings {
            finding.cycle = cycle.cycle;
            if self.findings.iter().filter(|other| other.kind == finding.kind).count() < FINDINGS_MAX {
                self.findings.push(finding);
            }
        }
        self.cycles.push(cycle);
    }

    /// Nothing was lost, nothing invented, and all was carried out.
    pub fn passed(&self) -> bool {
        let Totals { lost, phantom, wrong_replies, .. } = self.totals;
        self.incomplete.is_none() && lost + phantom + wrong_replies == 0
    }

    /// The report on a terminal.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let by = match self.signal {
            Some(signal) => format!("killed with SIG{signal}"),
            None => "killed by somebody else".into(),
        };
        let _ = writeln!(
            text,
            "loadgen audit — {}\n  {by}, {} clients with {} keys each, {} readers, seed {}",
            self.server, self.plan.clients, self.plan.keys, self.plan.readers, self.plan.seed
        );
        let names =
            ["cycle", "acknowledged", "unknown", "refused", "verified", "LOST", "PHANTOM", "recovery"];
        let mut rows = vec![names.map(str::to_string).to_vec()];
        let numbers = |numbers: [u64; 6]| numbers.map(|number| thousands(number as f64)).to_vec();
        let millis = |ms: f64| vec![micros(Some((ms * 1e6) as u64))];
        let is_shown = |at: usize, cycle: &Cycle| {
            let is_bad = cycle.lost + cycle.phantom + cycle.wrong_replies > 0;
            at < ROWS_MAX || is_bad && at < ROWS_MAX * 5
        };
        let mut hidden = 0;
        for (at, cycle) in self.cycles.iter().enumerate() {
            if !is_shown(at, cycle) {
                hidden += 1;
                continue;
            }
            let Cycle { acknowledged, unknown, refused, verified, lost, phantom, .. } = *cycle;
            let counts = numbers([acknowledged, unknown, refused, verified, lost, phantom]);
            rows.push([vec![cycle.cycle.to_string()], counts, millis(cycle.recovery_ms)].concat());
        }
        let Totals { acknowledged, unknown, refused, verified, lost, phantom, .. } = self.totals;
        let counts = numbers([acknowledged, unknown, refused, verified, lost, phantom]);
        let longest = millis(self.totals.recovery_ms_max);
        rows.push([vec![format!("all {}", self.totals.cycles)], counts, longest].concat());
        text.push_str(&align(&rows));
        if hidden > 0 {
            let _ = writeln!(text, "  {hidden} more cycles are in the sums");
        }
        if self.totals.wrong_replies > 0 {
            let _ = writeln!(text, "  wrong replies   {}", thousands(self.totals.wrong_replies as f64));
        }
        if let Some(refusal) = &self.refusal {
            let _ = writeln!(text, "  first refusal   {refusal}");
        }
        for finding in &self.findings {
            let kind = match finding.kind {
                Kind::Lost => "LOST",
                Kind::Phantom => "PHANTOM",
                Kind::WrongReply => "WRONG REPLY",
            };
            let _ = writeln!(
                text,
                "  {kind} in cycle {}: {} holds {}",
                finding.cycle, finding.key, finding.found
            );
            if !finding.expected.is_empty() {
                let _ = writeln!(text, "    expected {}", finding.expected.join("\n          or "));
            }
        }
        let verdict = match (&self.incomplete, self.passed()) {
            (_, true) => "nothing acknowledged was lost, nothing was invented".into(),
            (Some(why), false) if lost + phantom == 0 => format!("incomplete: {why}"),
            (Some(why), false) => format!("FAILED, and incomplete: {why}"),
            (None, false) => "FAILED".into(),
        };
        let _ = writeln!(text, "  verdict         {verdict}");
        text
    }
}
