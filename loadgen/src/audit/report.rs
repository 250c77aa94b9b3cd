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

/// What is counted, in a cycle and in all.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Counters {
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
}

impl Counters {
    /// What clients found.
    fn of(tally: &Tally) -> Counters {
        let Tally { acknowledged, unknown, refused, shown, verified, lost, phantom, wrong_replies, .. } =
            *tally;
        Counters { acknowledged, unknown, refused, shown, verified, lost, phantom, wrong_replies }
    }

    fn add(&mut self, other: &Counters) {
        self.acknowledged += other.acknowledged;
        self.unknown += other.unknown;
        self.refused += other.refused;
        self.shown += other.shown;
        self.verified += other.verified;
        self.lost += other.lost;
        self.phantom += other.phantom;
        self.wrong_replies += other.wrong_replies;
    }

    /// Nothing was lost and nothing invented.
    fn is_clean(&self) -> bool {
        self.lost + self.phantom + self.wrong_replies == 0
    }

    /// Cells of the table.
    fn cells(&self) -> Vec<String> {
        let Counters { acknowledged, unknown, refused, verified, lost, phantom, .. } = *self;
        [acknowledged, unknown, refused, verified, lost, phantom]
            .map(|number| thousands(number as f64))
            .to_vec()
    }
}

/// One time the server went away.
#[derive(Clone, Debug, Serialize)]
pub struct Cycle {
    /// From 1.
    pub cycle: u32,
    /// Acknowledged writes after which it was to be killed; null: somebody else killed it.
    pub kill_at: Option<u64>,
    /// What was counted.
    #[serde(flatten)]
    pub counters: Counters,
    /// From the start of the process until it served; where somebody else restarts it, from its going away.
    pub recovery_ms: f64,
}

impl Cycle {
    /// A cycle's row.
    pub fn new(cycle: u32, kill_at: Option<u64>, tally: &Tally, recovery: std::time::Duration) -> Cycle {
        Cycle { cycle, kill_at, counters: Counters::of(tally), recovery_ms: recovery.as_secs_f64() * 1e3 }
    }
}

/// The sums of all cycles.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Totals {
    /// Cycles that were carried out to the end.
    pub cycles: usize,
    /// What was counted.
    #[serde(flatten)]
    pub counters: Counters,
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
        totals.counters.add(&cycle.counters);
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
        self.incomplete.is_none() && self.totals.counters.is_clean()
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
        let millis = |ms: f64| vec![micros(Some((ms * 1e6) as u64))];
        let is_shown =
            |at: usize, cycle: &Cycle| at < ROWS_MAX || !cycle.counters.is_clean() && at < ROWS_MAX * 5;
        let mut hidden = 0;
        for (at, cycle) in self.cycles.iter().enumerate() {
            if !is_shown(at, cycle) {
                hidden += 1;
                continue;
            }
            let counts = cycle.counters.cells();
            rows.push([vec![cycle.cycle.to_string()], counts, millis(cycle.recovery_ms)].concat());
        }
        let counters = self.totals.counters;
        let counts = counters.cells();
        let longest = millis(self.totals.recovery_ms_max);
        rows.push([vec![format!("all {}", self.totals.cycles)], counts, longest].concat());
        text.push_str(&align(&rows));
        if hidden > 0 {
            let _ = writeln!(text, "  {hidden} more cycles are in the sums");
        }
        if counters.wrong_replies > 0 {
            let _ = writeln!(text, "  wrong replies   {}", thousands(counters.wrong_replies as f64));
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
            (Some(why), false) if counters.lost + counters.phantom == 0 => format!("incomplete: {why}"),
            (Some(why), false) => format!("FAILED, and incomplete: {why}"),
            (None, false) => "FAILED".into(),
        };
        let _ = writeln!(text, "  verdict         {verdict}");
        text
    }
}
