//! Reports read back from their files, for `loadgen report` and `loadgen replay`.
//!
//! Only what these two show is read. A report of another schema is refused by its name, not half understood.

use serde::Deserialize;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A report that was written earlier.
#[derive(Clone, Debug, Deserialize)]
pub struct StoredReport {
    schema: String,
    /// The conditions.
    pub manifest: StoredManifest,
    /// The runs.
    pub runs: Vec<StoredRun>,
}

/// The conditions that two reports are compared in.
#[derive(Clone, Debug, Deserialize)]
pub struct StoredManifest {
    /// When it began.
    pub started_at: String,
    /// The command line.
    pub command: Vec<String>,
    /// Version of the tool.
    pub version: String,
    /// Commit of the source tree.
    pub commit: Option<String>,
    /// The compiler.
    pub toolchain: String,
    /// How it was built.
    pub profile: String,
    /// The kernel.
    pub kernel: Option<String>,
    /// The CPU.
    pub cpu_model: Option<String>,
    /// Cores it could use.
    pub cores: Vec<usize>,
    /// Frequency governor.
    pub governor: Option<String>,
    /// Mitigations.
    pub mitigations: Vec<String>,
}

/// A run of it.
#[derive(Clone, Debug, Deserialize)]
pub struct StoredRun {
    /// What it was.
    pub title: String,
    #[serde(rename = "loop")]
    loop_report: StoredLoop,
    /// Replies a second.
    pub throughput_per_s: Option<f64>,
    response_time: Option<StoredSummary>,
    service_time: StoredSummary,
    /// The curve of the loop's own latency.
    pub curve: Vec<super::CurvePoint>,
    cpu: StoredCpu,
    /// The server's own configuration.
    #[serde(default)]
    pub server_configuration: std::collections::BTreeMap<String, String>,
    /// Whether it can be believed.
    pub verdict: String,
    /// Why it ended early.
    pub incomplete: Option<String>,
    #[serde(default)]
    reasons: Vec<StoredReason>,
    #[serde(default)]
    is_backlogged: bool,
}

#[derive(Clone, Debug, Deserialize)]
struct StoredReason {
    rule: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum StoredLoop {
    Closed { pipeline: u32 },
    Open { rate_per_s: f64, arrival: String },
}

#[derive(Clone, Debug, Deserialize)]
struct StoredCpu {
    server_us_per_request: Option<f64>,
}

/// A histogram in a few figures.
#[derive(Clone, Debug, Deserialize)]
pub struct StoredSummary {
    /// The largest.
    pub max_ns: Option<u64>,
    percentiles: Vec<StoredPercentile>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
struct StoredPercentile {
    quantile: f64,
    ns: Option<u64>,
}

impl StoredSummary {
    /// The percentile of that quantile, if it was named.
    pub fn at(&self, quantile: f64) -> Option<u64> {
        self.percentiles.iter().find(|one| one.quantile == quantile)?.ns
    }
}

impl StoredRun {
    /// The loop in words.
    pub fn loop_text(&self) -> String {
        match &self.loop_report {
            StoredLoop::Closed { pipeline: 1 } => "closed loop".into(),
            StoredLoop::Closed { pipeline } => format!("closed loop, pipeline {pipeline}"),
            StoredLoop::Open { rate_per_s, arrival } => {
                format!("open loop, {arrival}, {}/s", super::table::thousands(*rate_per_s))
            }
        }
    }

    /// Whether it was an open loop: its latencies are not to be held against a closed one's.
    pub fn is_open(&self) -> bool {
        matches!(self.loop_report, StoredLoop::Open { .. })
    }

    /// The rate that was offered and kept up with; `None`: a closed loop, or more than was served.
    pub fn rate_reached(&self) -> Option<f64> {
        let is_overloaded =
            self.is_backlogged || self.reasons.iter().any(|reason| reason.rule == "rate_not_reached");
        match self.loop_report {
            StoredLoop::Open { rate_per_s, .. } if !is_overloaded => Some(rate_per_s),
            _ => None,
        }
    }

    /// The latency that answers this loop's question, and its name.
    pub fn latency(&self) -> (&'static str, &StoredSummary) {
        match &self.response_time {
            Some(response) => ("response time", response),
            None => ("service time", &self.service_time),
        }
    }

    /// Server CPU per request.
    pub fn server_us_per_request(&self) -> Option<f64> {
        self.cpu.server_us_per_request
    }
}

/// Reads a report, or the `report.json` of a folder, as JSON; and which file that was.
pub fn read_value(path: &Path) -> Result<(Value, PathBuf), String> {
    let file: PathBuf = if path.is_dir() { path.join("report.json") } else { path.into() };
    let text = std::fs::read(&file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    let value = parse_value(&text).map_err(|error| format!("{}: {error}", file.display()))?;
    Ok((value, file))
}

fn parse_value(text: &[u8]) -> Result<Value, String> {
    serde_json::from_slice(text).map_err(|error| format!("this is no JSON: {error}"))
}

impl StoredReport {
    /// Reads a report, or the `report.json` of a folder.
    pub fn read(path: &Path) -> Result<StoredReport, String> {
        let (value, file) = read_value(path)?;
        StoredReport::of(value).map_err(|error| format!("{}: {error}", file.display()))
    }

    fn of(value: Value) -> Result<StoredReport, String> {
        let schema = value["schema"].as_str().unwrap_or("none").to_string();
        // A knee holds the report of its runs.
        let value = match schema.as_str() {
            crate::sweep::KNEE_SCHEMA => value["report"].clone(),
            _ => value,
        };
        if value["schema"].as_str() != Some(super::SCHEMA) {
            return Err(format!(
                "its schema is \"{schema}\", expected \"{}\": a report of `loadgen run`",
                super::SCHEMA
            ));
        }
        let report: StoredReport = serde_json::from_value(value)
            .map_err(|error| format!("it lacks what its schema promises: {error}"))?;
        debug_assert_eq!(report.schema, super::SCHEMA);
        Ok(report)
    }
}

impl StoredManifest {
    /// Conditions by name.
    pub fn rows(&self) -> Vec<(&'static str, String)> {
        let unknown = || "–".to_string();
        let cores: Vec<String> = self.cores.iter().map(usize::to_string).collect();
        vec![
            ("started", self.started_at.clone()),
            ("command", self.command.iter().skip(1).cloned().collect::<Vec<_>>().join(" ")),
            ("loadgen", self.version.clone()),
            ("commit", self.commit.clone().unwrap_or_else(unknown)),
            ("toolchain", format!("{}, {}", self.toolchain, self.profile)),
            ("kernel", self.kernel.clone().unwrap_or_else(unknown)),
            ("CPU", self.cpu_model.clone().unwrap_or_else(unknown)),
            ("cores", cores.join(", ")),
            ("governor", self.governor.clone().unwrap_or_else(unknown)),
            ("mitigations", self.mitigations.join("; ")),
        ]
    }
}

#[cfg(test)]
pub mod tests {
    use super::super::Report;
    use super::super::tests::reported;
    use super::*;
    use crate::system::Manifest;

    /// What a report is after it was written and read.
    pub fn stored(open: bool, samples: u64) -> StoredReport {
        let run = reported("run", open, samples);
        let report = Report::new("a title", Manifest::read(), vec![run]);
        StoredReport::of(serde_json::to_value(&report).expect("writes")).expect("reads")
    }

    #[test]
    fn a_written_report_is_read_back() {
        let open = stored(true, 20_000);
        let run = &open.runs[0];
        assert_eq!((run.is_open(), run.latency().0), (true, "response time"));
        assert_eq!(run.loop_text(), "open loop, poisson, 50,000/s");
        assert!(run.latency().1.at(0.99).is_some() && run.latency().1.at(0.9999).is_none());
        assert_eq!(run.server_us_per_request(), Some(95.0));
        assert!(!stored(false, 20_000).runs[0].is_open());
    }

    #[test]
    fn what_is_no_report_is_refused_by_name() {
        let refused = |text: &str| {
            parse_value(text.as_bytes()).and_then(StoredReport::of).expect_err("must be refused")
        };
        assert!(refused("").contains("no JSON"));
        assert!(refused("{}").contains("\"none\""));
        assert!(refused("{\"schema\": \"millrace-loadgen-comparison-1\"}").contains("comparison-1"));
        assert!(refused(&format!("{{\"schema\": \"{}\"}}", super::super::SCHEMA)).contains("lacks"));
        assert!(StoredReport::read(Path::new("/no/such/run")).expect_err("no file").contains("/no/such/run"));
    }
}
