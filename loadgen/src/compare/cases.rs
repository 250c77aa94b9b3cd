//! Case files: what is compared, as TOML without machine paths.

use crate::workload::Protocol;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// A file of cases. Times are in seconds.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct CaseFile {
    /// Heading of the report.
    pub title: String,
    /// The target that the others are held against.
    pub subject: String,
    /// How often everything is measured.
    #[serde(default = "default_rounds")]
    pub rounds: u32,
    /// A measurement beside which other programs ran is made again, at most this often.
    #[serde(default = "default_repeats")]
    pub repeats_if_noisy: u32,
    /// Length of a measurement.
    #[serde(default = "default_duration")]
    pub duration_s: f64,
    /// Warm-up of a measurement.
    #[serde(default = "default_warmup")]
    pub warmup_s: f64,
    /// Connections.
    #[serde(default = "default_connections")]
    pub connections: usize,
    /// Targets beyond the built-in ones, or in their place.
    #[serde(default)]
    pub target: Vec<TargetEntry>,
    /// The cases.
    pub case: Vec<Case>,
}

/// A target of a case file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct TargetEntry {
    /// What cases call it.
    pub name: String,
    /// Program and arguments. `{port}`, `{http-port}`, `{socket}`, `{dir}`, `{core}`, `{reply-bytes}` are filled in.
    pub command: Vec<String>,
    /// Program and arguments that print its version.
    #[serde(default)]
    pub version: Vec<String>,
    /// Where it is spoken to.
    #[serde(default = "default_listener")]
    pub listener: Listener,
    /// Path of HTTP requests.
    #[serde(default = "default_http_path")]
    pub http_path: String,
    /// Set every key before measuring.
    #[serde(default = "default_true")]
    pub fill: bool,
    /// Stop it with SIGSTOP while others are measured. Not every server outlives that.
    #[serde(default = "default_true")]
    pub freeze: bool,
    /// Another load generator to drive it in place of this one: program and arguments. Beside the fields above,
    /// `{connections}`, `{pipeline}`, `{seconds}`, `{requests}`, `{keys}`, `{value-size}` and `{ratio}` are filled in.
    #[serde(default)]
    pub tool: Vec<String>,
    /// Where that tool says its throughput.
    #[serde(default)]
    pub tool_output: ToolOutput,
    /// Files in `{dir}` before it starts: name and contents, with the same fields filled in.
    #[serde(default)]
    pub files: std::collections::BTreeMap<String, String>,
}

/// Where another load generator says its throughput.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ToolOutput {
    /// redis-benchmark and valkey-benchmark `--csv`: the second field of the last line.
    #[default]
    RedisBenchmarkCsv,
    /// memtier_benchmark `--json-out-file {dir}/out.json`: the total of all operations.
    MemtierJson,
}

/// Which of a server's listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Listener {
    /// RESP over TCP at `{port}`.
    Resp,
    /// RESP over AF_UNIX at `{socket}`.
    Unix,
    /// HTTP at `{http-port}`.
    Http,
}

impl Listener {
    /// What is spoken there.
    pub fn protocol(self) -> Protocol {
        match self {
            Listener::Resp | Listener::Unix => Protocol::Resp,
            Listener::Http => Protocol::Http,
        }
    }
}

/// One case.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Case {
    /// Heading of its table.
    pub name: String,
    /// Who takes part.
    pub targets: Vec<String>,
    /// Another subject than the file's.
    #[serde(default)]
    pub subject: Option<String>,
    /// SETs in a cycle.
    #[serde(default)]
    pub sets: u32,
    /// GETs in a cycle.
    #[serde(default)]
    pub gets: u32,
    /// Requests in a batch (closed loop).
    #[serde(default = "default_pipeline")]
    pub pipeline: u32,
    /// Requests a second: makes it an open loop.
    #[serde(default)]
    pub rate: Option<f64>,
    /// Number of keys.
    #[serde(default = "default_keys")]
    pub keys: u64,
    /// Bytes of a key.
    #[serde(default = "default_key_size")]
    pub key_size: usize,
    /// Bytes of a value.
    #[serde(default = "default_value_size")]
    pub value_size: usize,
    /// Zipf exponent in place of uniform keys.
    #[serde(default)]
    pub theta: Option<f64>,
    /// RESP version.
    #[serde(default = "default_resp")]
    pub resp: u8,
    /// A command in place of SET and GET.
    #[serde(default)]
    pub command: Option<String>,
    /// Another number of connections than the file's.
    #[serde(default)]
    pub connections: Option<usize>,
    /// Another length than the file's.
    #[serde(default)]
    pub duration_s: Option<f64>,
    /// Another warm-up than the file's.
    #[serde(default)]
    pub warmup_s: Option<f64>,
    /// Figures aimed at.
    #[serde(default)]
    pub goals: Vec<Goal>,
}

/// A figure aimed at, the subject's over another target's.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Goal {
    /// The other target.
    pub against: String,
    /// CPU per request at most this many times its.
    pub cpu_ratio_max: Option<f64>,
    /// Throughput at least this many times its.
    pub throughput_ratio_min: Option<f64>,
    /// The 99th percentile of latency at most this many times its.
    pub p99_ratio_max: Option<f64>,
}

impl Goal {
    /// How many figures it names; one is right.
    fn figures(&self) -> usize {
        [self.cpu_ratio_max, self.throughput_ratio_min, self.p99_ratio_max].into_iter().flatten().count()
    }
}

fn default_rounds() -> u32 {
    5
}
fn default_repeats() -> u32 {
    2
}
fn default_duration() -> f64 {
    3.0
}
fn default_warmup() -> f64 {
    0.5
}
fn default_connections() -> usize {
    50
}
fn default_listener() -> Listener {
    Listener::Resp
}
fn default_http_path() -> String {
    "/v1/keys/{key}".into()
}
fn default_true() -> bool {
    true
}
fn default_pipeline() -> u32 {
    1
}
fn default_keys() -> u64 {
    100_000
}
fn default_key_size() -> usize {
    16
}
fn default_value_size() -> usize {
    64
}
fn default_resp() -> u8 {
    2
}

/// What `compare` measures without a file.
const DEFAULT_CASES: &str = r#"
title = "GET and SET against the null server and Redis-compatible peers"
subject = "millrace"

[[case]]
name = "GET, pipeline 1"
targets = ["millrace", "millrace-epoll", "redis", "valkey", "kevy", "null"]
gets = 1

[[case]]
name = "GET, pipeline 16"
targets = ["millrace", "millrace-epoll", "redis", "valkey", "kevy", "null"]
gets = 1
pipeline = 16

[[case]]
name = "SET, pipeline 16"
targets = ["millrace", "millrace-epoll", "redis", "valkey", "kevy", "null"]
sets = 1
pipeline = 16
"#;

impl Default for CaseFile {
    fn default() -> CaseFile {
        CaseFile::parse(DEFAULT_CASES).expect("a test reads it")
    }
}

impl CaseFile {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<CaseFile, String> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        CaseFile::parse(&text).map_err(|error| format!("{}: {error}", path.display()))
    }

    fn parse(text: &str) -> Result<CaseFile, String> {
        let file: CaseFile = toml::from_str(text).map_err(|error| error.to_string())?;
        for case in &file.case {
            let of_case = |what: &str| format!("case \"{}\": {what}", case.name);
            if case.sets + case.gets == 0 && case.command.is_none() {
                return Err(of_case("it needs sets, gets or a command"));
            }
            if case.pipeline == 0 || case.keys == 0 || case.targets.is_empty() {
                return Err(of_case("pipeline, keys and targets must not be empty"));
            }
            if file.case.iter().filter(|other| other.name == case.name).count() > 1 {
                return Err(of_case("the name occurs twice"));
            }
            if case.goals.iter().any(|goal| goal.figures() != 1) {
                return Err(of_case(
                    "a goal has one of cpu-ratio-max, throughput-ratio-min and p99-ratio-max",
                ));
            }
        }
        Ok(file)
    }

    /// Cases that can share filled servers, in order.
    pub fn groups(&self) -> Vec<Vec<Case>> {
        let mut groups: Vec<Vec<Case>> = Vec::new();
        let data = |case: &Case| (case.keys, case.key_size, case.value_size);
        for case in &self.case {
            match groups.iter_mut().find(|group| data(&group[0]) == data(case)) {
                Some(group) => group.push(case.clone()),
                None => groups.push(vec![case.clone()]),
            }
        }
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_and_the_committed_files_are_read() {
        assert_eq!(CaseFile::default().groups().len(), 1);
        // Not below /tmp, /opt or a home: a case file serves on every machine.
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../results/cases");
        let files: Vec<_> =
            std::fs::read_dir(&folder).expect("the case files are committed").flatten().collect();
        assert!(!files.is_empty());
        for file in files {
            let text = std::fs::read_to_string(file.path()).expect("readable");
            CaseFile::parse(&text).unwrap_or_else(|error| panic!("{}: {error}", file.path().display()));
            for place in ["/home/", "/opt/", "/tmp/", "/usr/"] {
                assert!(!text.contains(place), "{} names a place of one machine", file.path().display());
            }
        }
    }

    #[test]
    fn data_sets_are_not_mixed_in_a_group() {
        let mut file = CaseFile::default();
        file.case[1].keys = 7;
        let groups = file.groups();
        assert_eq!(groups.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1]);
    }

    #[test]
    fn mistakes_are_named() {
        let wrong = |text: &str| CaseFile::parse(text).expect_err("must be refused");
        let head = "title = \"t\"\nsubject = \"a\"\n";
        assert!(wrong(&format!("{head}[[case]]\nname = \"x\"\ntargets = [\"a\"]\n")).contains("sets, gets"));
        assert!(
            wrong(&format!("{head}[[case]]\nname = \"x\"\ntargets = []\ngets = 1\n")).contains("targets")
        );
        assert!(wrong(&format!("{head}colour = 1\n")).contains("colour"));
        let goal = "[[case]]\nname = \"x\"\ntargets = [\"a\"]\ngets = 1\ngoals = [{ against = \"b\" }]\n";
        assert!(wrong(&format!("{head}{goal}")).contains("a goal has one of"));
    }
}
