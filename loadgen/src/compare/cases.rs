//! Case files: what is compared, as TOML without machine paths.

use super::builtin;
use crate::schedule::Arrival;
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
    /// `{connections}`, `{pipeline}`, `{seconds}`, `{requests}`, `{keys}`, `{first-key}`, `{last-key}`, `{value-size}`,
    /// `{ratio}`, `{test}` (get or set), `{path}` of a key and `{generator-core}` are filled in.
    #[serde(default)]
    pub tool: Vec<String>,
    /// Program and arguments that print that tool's version.
    #[serde(default)]
    pub tool_version: Vec<String>,
    /// Where that tool says its throughput.
    #[serde(default)]
    pub tool_output: ToolOutput,
    /// What keys begin with that are set for that tool, where it asks for others than this one.
    #[serde(default)]
    pub fill_prefix: Option<String>,
    /// Files in `{dir}` before it starts: name and contents, with the same fields filled in.
    #[serde(default)]
    pub files: std::collections::BTreeMap<String, String>,
}

/// Where another load generator says its throughput.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ToolOutput {
    /// redis-benchmark and valkey-benchmark `--csv`: the last line.
    #[default]
    RedisBenchmarkCsv,
    /// memtier_benchmark `--json-out-file {dir}/out.json`: the total of all operations.
    MemtierJson,
    /// wrk `--latency`: what it prints.
    WrkText,
    /// k6 `--summary-export {dir}/out.json --summary-trend-stats med,p(99)`.
    K6Summary,
    /// The null server's own bare client: the line that it prints.
    NullClientText,
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
    /// memcached's text protocol over TCP at `{port}`.
    Memcache,
}

impl Listener {
    /// What is spoken there.
    pub fn protocol(self) -> Protocol {
        match self {
            Listener::Resp | Listener::Unix => Protocol::Resp,
            Listener::Http => Protocol::Http,
            Listener::Memcache => Protocol::Memcache,
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
    /// The rate in place of that as a share of what the target reached in the case `rate-of`, in the same round.
    #[serde(default)]
    pub rate_share: Option<f64>,
    /// An earlier case with the same data and a closed loop.
    #[serde(default)]
    pub rate_of: Option<String>,
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
    /// Process that arrivals follow in an open loop, as `--arrival` has it; Poisson if not given.
    #[serde(default)]
    pub arrival: Option<String>,
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

impl Case {
    /// Whether requests come when a schedule says.
    pub fn is_open(&self) -> bool {
        self.rate.is_some() || self.rate_share.is_some()
    }

    /// Which loop this tool measures it in.
    pub fn loop_text(&self) -> &'static str {
        if self.is_open() { "open loop" } else { "closed loop" }
    }

    /// The same data in the server.
    fn data(&self) -> (u64, usize, usize) {
        (self.keys, self.key_size, self.value_size)
    }
}

/// A figure aimed at: the subject's over another target's, or the generator's own beside a target.
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
    /// The 99th percentile of this generator's lateness beside it at most so many microseconds (open loop).
    pub lateness_p99_us_max: Option<f64>,
}

impl Goal {
    /// How many figures it names; one is right.
    fn figures(&self) -> usize {
        let all =
            [self.cpu_ratio_max, self.throughput_ratio_min, self.p99_ratio_max, self.lateness_p99_us_max];
        all.into_iter().flatten().count()
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

/// What `compare --tools` measures without a file: the same servers driven by one load generator after the other.
const CROSS_CHECK: &str = include_str!("../../../results/cases/tools.toml");

/// What `compare` measures without a file.
const DEFAULT_CASES: &str = r#"
title = "GET and SET against the null server and Redis-compatible peers"
subject = "millrace"

[[case]]
name = "GET, pipeline 1"
targets = ["millrace", "millrace-epoll", "redis", "valkey", "kevy", "dragonfly", "pogocache", "null"]
gets = 1

[[case]]
name = "GET, pipeline 16"
targets = ["millrace", "millrace-epoll", "redis", "valkey", "kevy", "dragonfly", "pogocache", "null"]
gets = 1
pipeline = 16

[[case]]
name = "SET, pipeline 16"
targets = ["millrace", "millrace-epoll", "redis", "valkey", "kevy", "dragonfly", "pogocache", "null"]
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
            if let Some(Err(error)) = case.arrival.as_ref().map(|arrival| arrival.parse::<Arrival>()) {
                return Err(of_case(&error));
            }
            if case.goals.iter().any(|goal| goal.figures() != 1) {
                return Err(of_case(
                    "a goal has one of cpu-ratio-max, throughput-ratio-min, p99-ratio-max and lateness-p99-us-max",
                ));
            }
            match (case.rate_share, &case.rate_of) {
                (None, None) => {}
                (Some(share), Some(of)) if share > 0.0 && share <= 1.0 && case.rate.is_none() => {
                    let earlier = file.case.iter().take_while(|other| other.name != case.name);
                    let fits =
                        |other: &Case| other.name == *of && !other.is_open() && other.data() == case.data();
                    if !earlier.into_iter().any(fits) {
                        return Err(of_case(&format!(
                            "rate-of names \"{of}\", and no earlier case of that name has a closed loop and the same data"
                        )));
                    }
                }
                _ => {
                    return Err(of_case(
                        "rate-share, over 0 and up to 1, goes with rate-of, the case it is a share of, and without rate",
                    ));
                }
            }
        }
        Ok(file)
    }

    /// The same servers driven by one load generator after the other.
    pub fn cross_check() -> CaseFile {
        CaseFile::parse(CROSS_CHECK).expect("a test reads it")
    }

    /// Leaves the targets that are driven by one of `tools`, or by this one, and where servers are named theirs alone; and
    /// the cases in which another one takes part.
    pub fn keep_tools(&mut self, tools: &[String], servers: &[String]) -> Result<(), String> {
        let known = builtin::tool_names();
        if let Some(unknown) = tools.iter().find(|tool| !known.contains(&tool.as_str())) {
            return Err(format!(
                "--tools: no load generator is called \"{unknown}\"; there are {}",
                known.join(", ")
            ));
        }
        let is_chosen = |tool: &str| tool == builtin::OWN || tools.iter().any(|chosen| chosen == tool);
        let is_named = |server: &str| {
            servers.is_empty()
                || servers.iter().any(|named| named == server || format!("{named}-http") == server)
        };
        for case in &mut self.case {
            case.targets.retain(|target| {
                let (server, tool) = builtin::server_and_tool(target);
                is_chosen(tool) && is_named(server)
            });
        }
        let is_other = |target: &String| builtin::server_and_tool(target).1 != builtin::OWN;
        self.case.retain(|case| case.targets.iter().any(is_other));
        Ok(())
    }

    /// Cases that can share filled servers, in order.
    pub fn groups(&self) -> Vec<Vec<Case>> {
        let mut groups: Vec<Vec<Case>> = Vec::new();
        for case in &self.case {
            match groups.iter_mut().find(|group| group[0].data() == case.data()) {
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
            let read =
                CaseFile::parse(&text).unwrap_or_else(|error| panic!("{}: {error}", file.path().display()));
            for case in &read.case {
                let against = case.goals.iter().map(|goal| &goal.against);
                assert!(against.clone().all(|name| case.targets.contains(name)), "{}: a goal", case.name);
                for target in &case.targets {
                    builtin::find(target, &read.target)
                        .unwrap_or_else(|error| panic!("{}: {error}", case.name));
                }
            }
            for place in ["/home/", "/opt/", "/tmp/", "/usr/"] {
                assert!(!text.contains(place), "{} names a place of one machine", file.path().display());
            }
        }
    }

    #[test]
    fn tools_and_servers_of_the_cross_check_can_be_chosen() {
        let kept = |tools: &[&str], servers: &[&str]| {
            let text = |words: &[&str]| words.iter().map(|word| word.to_string()).collect::<Vec<_>>();
            let mut file = CaseFile::cross_check();
            file.keep_tools(&text(tools), &text(servers)).map(|()| file)
        };
        let file = kept(&["wrk"], &[]).expect("known");
        assert!(!file.case.is_empty());
        for case in &file.case {
            assert_eq!(case.targets.len(), 2, "this tool and the other: {:?}", case.targets);
            assert!(
                case.targets[0].ends_with("-http") && case.targets[1].ends_with("-by-wrk"),
                "{:?}",
                case.targets
            );
        }
        let file = kept(&["loadgen", "memtier", "k6"], &["paced"]).expect("known");
        let all: Vec<&str> = file.case.iter().flat_map(|case| &case.targets).map(String::as_str).collect();
        assert_eq!(all, ["paced", "paced-by-memtier", "paced-http", "paced-by-k6"]);
        assert!(kept(&["ab"], &[]).expect_err("unknown").contains("loadgen, redis-benchmark"));
        assert!(kept(&["wrk"], &["nobody"]).expect("no server of that name takes part").case.is_empty());
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
        let case = "[[case]]\nname = \"max\"\ntargets = [\"a\"]\ngets = 1\n[[case]]\nname = \"half\"\ntargets = [\"a\"]\ngets = 1\n";
        for (flags, expected) in [
            ("rate-share = 0.5", "goes with rate-of"),
            ("rate-of = \"max\"", "goes with rate-of"),
            ("rate-share = 2.0\nrate-of = \"max\"", "up to 1"),
            ("rate = 5.0\nrate-share = 0.5\nrate-of = \"max\"", "without rate"),
            ("rate-share = 0.5\nrate-of = \"half\"", "no earlier case"),
            ("rate-share = 0.5\nrate-of = \"max\"\nkeys = 7", "same data"),
        ] {
            let error = wrong(&format!("{head}{case}{flags}\n"));
            assert!(error.contains(expected), "{flags}: {error}");
        }
        let half = format!("{head}{case}rate-share = 0.5\nrate-of = \"max\"\n");
        assert!(CaseFile::parse(&half).expect("well-formed").case[1].is_open());
    }
}
