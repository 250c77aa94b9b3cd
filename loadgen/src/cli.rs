//! The command line: flags into plans. Names follow memtier_benchmark where the meaning is the same.

use crate::audit::plan::AuditArgs;
use crate::client::{Load, Plan, Stop};
use crate::schedule::Arrival;
use crate::worker::Io;
use crate::workload::{Protocol, WorkloadOptions};
use clap::{Args, Parser, Subcommand, ValueEnum};
use reactor::server::event::Target;
use std::net::ToSocketAddrs;
use std::path::PathBuf;
use std::time::Duration;

/// An open-loop load generator for RESP and HTTP key-value servers that judges its own measurements.
///
/// Without a command: the demonstration. It starts a Millrace server on one core, drives it from another, prints
/// a table and writes a report below results/.
///
/// Exit code: 0 the run is VALID or SUSPECT (the demonstration: it was carried out), 1 it failed or is INVALID, 2 wrong usage.
#[derive(Debug, Parser)]
#[command(name = "loadgen", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Flags of the demonstration.
    #[command(flatten)]
    pub demo: DemoArgs,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Drive one server once.
    Run(Box<RunArgs>),
    /// Measure several servers in turn, A B A B, each started fresh, and compare them.
    Compare(Box<CompareArgs>),
    /// Kill a server in the middle of writes, again and again, and look whether all that it acknowledged survives.
    ///
    /// Exit code: 0 nothing was lost or invented, 1 something was, or not all was carried out, 2 wrong usage.
    Audit(Box<AuditArgs>),
}

/// Flags of the demonstration.
#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// Where reports are written.
    #[arg(long, default_value = "results", value_name = "DIR")]
    pub results: PathBuf,
    /// Length of each measurement.
    #[arg(long, default_value = "4s", value_parser = parse_duration, value_name = "TIME")]
    pub duration: Duration,
    /// Rate of the open loop as a share of the closed loop's maximum.
    #[arg(long, default_value_t = 0.5, value_parser = parse_share, value_name = "SHARE")]
    pub share: f64,
    /// The driver of server and generator.
    #[arg(long, value_enum, default_value = "io_uring")]
    pub io: Io,
    /// Seed of arrivals, keys and values.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// Closed or open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LoopKind {
    /// The next batch waits for the last one's replies.
    Closed,
    /// Requests come when a schedule says, drawn without regard to the server.
    Open,
}

/// Flags of `run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// resp://HOST:PORT, unix:///PATH (RESP), or http://HOST:PORT[/PATH].
    #[arg(long, value_name = "URL")]
    pub target: String,
    /// Connections.
    #[arg(long, short = 'c', visible_alias = "clients", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pub connections: u32,
    /// Requests sent together on a connection (closed loop).
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub pipeline: u32,
    /// Length of the measurement: 5s, 500ms, 2m; a bare number is seconds.
    #[arg(long, visible_alias = "test-time", default_value = "5s", value_parser = parse_duration, value_name = "TIME", conflicts_with = "requests")]
    pub duration: Duration,
    /// Measure this many requests in place of a time. All connections together, as in redis-benchmark.
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub requests: Option<u64>,
    /// Discarded before the measurement.
    #[arg(long, default_value = "1s", value_parser = parse_duration, value_name = "TIME")]
    pub warmup: Duration,
    /// How long replies are awaited after it.
    #[arg(long, default_value = "1s", value_parser = parse_duration, value_name = "TIME")]
    pub drain: Duration,
    /// A connection that leaves a request unanswered for longer is given up.
    #[arg(long, default_value = "10s", value_parser = parse_duration, value_name = "TIME")]
    pub timeout: Duration,
    /// Which loop. They answer different questions and are never mixed.
    #[arg(long = "loop", value_enum, default_value = "closed")]
    pub loop_kind: LoopKind,
    /// Requests a second over all connections (open loop).
    #[arg(long, value_name = "N", value_parser = parse_rate)]
    pub rate: Option<f64>,
    /// Distribution of the gaps between arrivals (open loop).
    #[arg(long, value_enum, default_value = "poisson")]
    pub arrival: Arrival,
    /// SETs and GETs in one cycle.
    #[arg(long, default_value = "1:10", value_parser = parse_ratio, value_name = "SET:GET")]
    pub ratio: (u32, u32),
    /// Number of keys.
    #[arg(long, short = 'r', visible_alias = "key-maximum", default_value_t = 100_000, value_name = "N")]
    pub keys: u64,
    /// Bytes of a key.
    #[arg(long, default_value_t = 16, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(1..))]
    pub key_size: u16,
    /// What keys begin with.
    #[arg(long, default_value = "key:", value_name = "TEXT")]
    pub key_prefix: String,
    /// Bytes of a value.
    #[arg(long, short = 'd', visible_alias = "data-size", default_value_t = 64, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(0..=64 << 20))]
    pub value_size: u32,
    /// Draw keys from a Zipf distribution with this exponent in place of a uniform one.
    #[arg(long, value_name = "THETA")]
    pub theta: Option<f64>,
    /// Seed of arrivals, keys and values.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Stay on this core.
    #[arg(long, value_name = "CORE")]
    pub pin: Option<usize>,
    /// The driver.
    #[arg(long, value_enum, default_value = "io_uring")]
    pub io: Io,
    /// Read the server's CPU time from this process.
    #[arg(long, value_name = "PID")]
    pub server_pid: Option<u32>,
    /// Set every key once before.
    #[arg(long)]
    pub prefill: bool,
    /// Compare sampled values byte by byte with what a prefill with the same seed and sizes has set.
    #[arg(long)]
    pub verify: bool,
    /// RESP version.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(2..=3))]
    pub resp: u8,
    /// A command in place of SET and GET; __key__ and __data__ are filled in.
    #[arg(long, value_name = "TEMPLATE")]
    pub command: Option<String>,
    /// Path of HTTP requests; {key} is filled in.
    #[arg(long, default_value = "/v1/keys/{key}", value_name = "PATH")]
    pub http_path: String,
    /// Name of an environment variable that holds the password for AUTH.
    #[arg(long, value_name = "VARIABLE")]
    pub password_env: Option<String>,
    /// Write the report as JSON.
    #[arg(long, visible_alias = "json-out-file", value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the report as one HTML page.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// Flags of `compare`.
#[derive(Clone, Debug, Args)]
pub struct CompareArgs {
    /// A file of targets and cases, as results/cases/*.toml.
    #[arg(long, value_name = "FILE")]
    pub cases: Option<PathBuf>,
    /// Only these targets, by name. Without --cases: millrace, millrace-epoll, millrace-unix, redis, valkey, kevy,
    /// null, nginx, millrace-http.
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    pub targets: Vec<String>,
    /// Only cases whose name contains this.
    #[arg(long, value_name = "TEXT")]
    pub only: Option<String>,
    /// Rounds, each with every target started fresh.
    #[arg(long, value_name = "N")]
    pub rounds: Option<u32>,
    /// Length of each measurement.
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    pub duration: Option<Duration>,
    /// Warm-up of each measurement.
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    pub warmup: Option<Duration>,
    /// The null server's program; else `nullresp` from PATH.
    #[arg(long, value_name = "PROGRAM")]
    pub null: Option<PathBuf>,
    /// The Millrace to measure; else the one beside this program, else from PATH.
    #[arg(long, value_name = "PROGRAM")]
    pub millrace: Option<PathBuf>,
    /// Core of the servers; else the first of the affinity mask.
    #[arg(long, value_name = "CORE")]
    pub server_core: Option<usize>,
    /// Core of the generator; else the second of the affinity mask.
    #[arg(long, value_name = "CORE")]
    pub generator_core: Option<usize>,
    /// The generator's driver.
    #[arg(long, value_enum, default_value = "io_uring")]
    pub io: Io,
    /// Where the report is written.
    #[arg(long, default_value = "results", value_name = "DIR")]
    pub results: PathBuf,
    /// Seed of keys, values and of the bootstrap.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// Where a run goes to, as the flag says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsedTarget {
    /// The address.
    pub address: Target,
    /// The protocol.
    pub protocol: Protocol,
    /// Host field of HTTP requests.
    pub host: String,
    /// Path of HTTP requests, if the target names one.
    pub path: Option<String>,
}

/// Reads a target.
pub fn parse_target(text: &str) -> Result<ParsedTarget, String> {
    let usage = "a target is resp://HOST:PORT, unix:///PATH or http://HOST:PORT";
    let (scheme, rest) = text.split_once("://").ok_or_else(|| format!("\"{text}\": {usage}"))?;
    let tcp = |host: &str| -> Result<Target, String> {
        let mut addresses = host
            .to_socket_addrs()
            .map_err(|error| format!("\"{text}\": cannot find \"{host}\" ({error}); {usage}"))?;
        addresses.next().map(Target::Tcp).ok_or_else(|| format!("\"{text}\": \"{host}\" has no address"))
    };
    match scheme {
        "resp" | "redis" => {
            let host = rest.trim_end_matches('/');
            Ok(ParsedTarget { address: tcp(host)?, protocol: Protocol::Resp, host: host.into(), path: None })
        }
        "unix" if rest.starts_with('/') => Ok(ParsedTarget {
            address: Target::Unix(rest.into()),
            protocol: Protocol::Resp,
            host: "localhost".into(),
            path: None,
        }),
        "http" => {
            let (host, path) = match rest.find('/') {
                Some(at) if rest.len() > at + 1 => (&rest[..at], Some(rest[at..].to_string())),
                Some(at) => (&rest[..at], None),
                None => (rest, None),
            };
            Ok(ParsedTarget { address: tcp(host)?, protocol: Protocol::Http, host: host.into(), path })
        }
        _ => Err(format!("\"{text}\": {usage}")),
    }
}

/// Reads `5s`, `500ms`, `2m` or seconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|character: char| character.is_ascii_alphabetic() || character == 'µ');
    let seconds = match &text[digits.len()..] {
        "" | "s" => 1.0,
        "ms" => 1e-3,
        "us" | "µs" => 1e-6,
        "m" => 60.0,
        "h" => 3600.0,
        unit => return Err(format!("\"{unit}\" is no unit of time: use ms, s, m or h")),
    };
    let count: f64 = digits.parse().map_err(|_| "a time looks like 5s, 500ms or 2m".to_string())?;
    Duration::try_from_secs_f64(count * seconds)
        .ok()
        .filter(|time| time.as_secs() <= 86_400 * 30)
        .ok_or_else(|| "out of range".into())
}

fn parse_ratio(text: &str) -> Result<(u32, u32), String> {
    let (sets, gets) = text.split_once(':').ok_or("a ratio looks like 1:10")?;
    let number = |part: &str| part.parse::<u32>().map_err(|_| "a ratio looks like 1:10".to_string());
    match (number(sets)?, number(gets)?) {
        (0, 0) => Err("0:0 asks for nothing".into()),
        ratio => Ok(ratio),
    }
}

fn parse_rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "a rate is a number of requests a second".to_string())?;
    if (0.001..=1e9).contains(&rate) { Ok(rate) } else { Err("a rate lies between 0.001 and 1e9".into()) }
}

fn parse_share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| "a share is a number".to_string())?;
    if share > 0.0 && share <= 1.5 { Ok(share) } else { Err("a share lies between 0 and 1.5".into()) }
}

impl RunArgs {
    /// The plan these flags describe; `Err` is a usage error.
    pub fn plan(&self) -> Result<Plan, String> {
        let target = parse_target(&self.target)?;
        let load = match (self.loop_kind, self.rate) {
            (LoopKind::Closed, None) => Load::Closed { pipeline: self.pipeline },
            (LoopKind::Closed, Some(_)) => {
                return Err("--rate belongs to the open loop: add --loop open".into());
            }
            (LoopKind::Open, None) => {
                return Err("--loop open needs --rate, the requests offered a second".into());
            }
            (LoopKind::Open, Some(_)) if self.pipeline > 1 => {
                return Err("--pipeline belongs to the closed loop: an open loop sends what is due".into());
            }
            (LoopKind::Open, Some(rate)) => Load::Open { rate, arrival: self.arrival },
        };
        let password = match &self.password_env {
            Some(name) => Some(
                std::env::var(name).map_err(|_| format!("--password-env: the variable {name} is not set"))?,
            ),
            None => None,
        };
        if !(self.http_path.starts_with('/') && self.http_path.is_ascii())
            || self.http_path.contains([' ', '\r', '\n'])
        {
            return Err("--http-path begins with / and holds neither spaces nor line ends".into());
        }
        if self.duration.is_zero() {
            return Err("--duration must be more than nothing".into());
        }
        let workload = WorkloadOptions {
            protocol: target.protocol,
            resp_version: self.resp,
            sets: self.ratio.0,
            gets: self.ratio.1,
            keys: self.keys,
            key_bytes: usize::from(self.key_size),
            key_prefix: self.key_prefix.clone(),
            value_bytes: self.value_size as usize,
            theta: self.theta,
            command: self.command.clone(),
            http_path: target.path.unwrap_or_else(|| self.http_path.clone()),
            http_host: target.host,
            verify: self.verify,
            password,
            seed: self.seed,
        };
        // Flags that contradict each other are a usage error now, not a failure later.
        crate::workload::Workload::new(&workload).map_err(|error| error.0)?;
        Ok(Plan {
            target: target.address,
            workload,
            connections: self.connections as usize,
            load,
            prefill: self.prefill,
            warmup_ns: self.warmup.as_nanos() as u64,
            stop: match self.requests {
                Some(count) => Stop::Requests(count),
                None => Stop::After(self.duration.as_nanos() as u64),
            },
            drain_ns: self.drain.as_nanos() as u64,
            timeout_ns: self.timeout.as_nanos() as u64,
            interval_ns: interval_ns(self.requests.map_or(self.duration, |_| Duration::from_secs(10))),
        })
    }
}

/// Fifty points over the measurement, but none shorter than 100 ms or longer than a second.
pub fn interval_ns(duration: Duration) -> u64 {
    (duration.as_nanos() as u64 / 50).clamp(100_000_000, 1_000_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn plan(flags: &[&str]) -> Result<Plan, String> {
        let cli =
            Cli::try_parse_from(["loadgen", "run"].iter().chain(flags)).map_err(|error| error.to_string())?;
        match cli.command {
            Some(Command::Run(arguments)) => arguments.plan(),
            _ => unreachable!("it was asked for"),
        }
    }

    const TARGET: [&str; 2] = ["--target", "resp://127.0.0.1:6379"];

    #[test]
    fn the_flags_are_consistent() {
        Cli::command().debug_assert();
        assert!(Cli::try_parse_from(["loadgen"]).expect("no flag is fine").command.is_none());
    }

    #[test]
    fn targets_are_read() {
        let target = parse_target("resp://127.0.0.1:6379").expect("valid");
        assert_eq!(target.address, Target::Tcp("127.0.0.1:6379".parse().expect("an address")));
        assert_eq!(
            parse_target("unix:///run/m.sock").expect("valid").address,
            Target::Unix("/run/m.sock".into())
        );
        let http = parse_target("http://127.0.0.1:80/a/b").expect("valid");
        assert_eq!((http.protocol, http.path.as_deref()), (Protocol::Http, Some("/a/b")));
        assert_eq!(parse_target("http://127.0.0.1:80/").expect("valid").path, None);
        for wrong in ["127.0.0.1:6379", "resp://127.0.0.1", "unix://relative", "ftp://127.0.0.1:1", "resp://"]
        {
            assert!(parse_target(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_are_read() {
        assert_eq!(parse_duration("5"), Ok(Duration::from_secs(5)));
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        for wrong in ["", "s", "5x", "-1s", "1e30", "nan"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn memtier_names_mean_the_same() {
        let flags = [
            &TARGET[..],
            &[
                "-c",
                "10",
                "--pipeline",
                "4",
                "--key-maximum",
                "500",
                "-d",
                "32",
                "--test-time",
                "3",
                "--ratio",
                "1:0",
            ],
        ]
        .concat();
        let plan = plan(&flags).expect("valid");
        assert_eq!((plan.connections, plan.load), (10, Load::Closed { pipeline: 4 }));
        assert_eq!((plan.workload.keys, plan.workload.value_bytes), (500, 32));
        assert_eq!((plan.workload.sets, plan.workload.gets), (1, 0));
        assert_eq!(plan.stop, Stop::After(3_000_000_000));
    }

    #[test]
    fn contradictions_are_usage_errors_that_say_what_to_do() {
        let wrong = |flags: &[&str]| plan(&[&TARGET[..], flags].concat()).expect_err("must be refused");
        assert!(wrong(&["--loop", "open"]).contains("--rate"));
        assert!(wrong(&["--rate", "5"]).contains("--loop open"));
        assert!(wrong(&["--loop", "open", "--rate", "5", "--pipeline", "2"]).contains("--pipeline"));
        assert!(wrong(&["--loop", "open", "--rate", "0"]).contains("rate"));
        assert!(wrong(&["--keys", "0"]).contains("--keys"));
        assert!(wrong(&["--key-size", "5", "--keys", "100"]).contains("--key-size"));
        assert!(wrong(&["--ratio", "0:0"]).contains("nothing"));
        assert!(wrong(&["--connections", "0"]).contains("connections"));
        assert!(wrong(&["--http-path", "x"]).contains("--http-path"));
        assert!(wrong(&["--duration", "0"]).contains("--duration"));
        assert!(wrong(&["--password-env", "LOADGEN_NO_SUCH_VARIABLE"]).contains("not set"));
        assert!(wrong(&["--requests", "5", "--duration", "1s"]).contains("--requests"));
        assert!(plan(&["--target", "nonsense"]).expect_err("no scheme").contains("resp://HOST:PORT"));
    }
}
