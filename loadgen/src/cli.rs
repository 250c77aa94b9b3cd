//! The command line: flags into plans. Names follow memtier_benchmark where the meaning is the same.

use crate::audit::plan::AuditArgs;
use crate::caching::CachingArgs;
use crate::calibrate::CalibrateArgs;
use crate::client::{Load, Plan, Stop, warm_up};
use crate::presets::{self, Preset};
use crate::replay::ReplayArgs;
use crate::report::overlay::ReportArgs;
use crate::schedule::Arrival;
use crate::sweep::{KneeArgs, SweepArgs};
use crate::worker::{Io, Spin};
use crate::workload::keys::KeyDistribution;
use crate::workload::sizes::{KeySizes, TtlMix, ValueSizes};
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
#[command(name = "loadgen", version, args_conflicts_with_subcommands = true, args_override_self = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Flags of the demonstration.
    #[command(flatten)]
    pub demo: DemoArgs,
}

impl Cli {
    /// Reads a command line, the program's name first.
    pub fn read(arguments: impl IntoIterator<Item = std::ffi::OsString>) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(presets::expand(arguments))
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Drive one server once.
    Run(Box<RunArgs>),
    /// Measure several servers in turn, A B A B, each started fresh, and compare them.
    Compare(Box<CompareArgs>),
    /// Caches in clients that the server keeps true: how soon they hear of a write, and what they are worth.
    Caching(Box<CachingArgs>),
    /// Kill a server in the middle of writes, again and again, and look whether all that it acknowledged survives.
    ///
    /// Exit code: 0 nothing was lost or invented, 1 something was, or not all was carried out, 2 wrong usage.
    Audit(Box<AuditArgs>),
    /// Latency against offered rate: an open loop at one rate after the other.
    ///
    /// Exit code: 0 it was carried out, 1 it was not, or no run of it is to be believed, 2 wrong usage.
    Sweep(Box<SweepArgs>),
    /// The highest rate that keeps an objective such as p99<1ms, repeated there, and looked at on the way down.
    ///
    /// Exit code: 0 there is one, 1 there is none, or the search failed, 2 wrong usage.
    Knee(Box<KneeArgs>),
    /// Reports side by side, their curves over each other.
    Report(ReportArgs),
    /// Carry the command line of a report out again, and lay both reports side by side.
    ///
    /// Exit code: that of the command repeated.
    Replay(ReplayArgs),
    /// Hold this tool against a server with known delays, stalls and bursts.
    ///
    /// Exit code: 0 every figure agrees with what was done, 1 one does not, 2 wrong usage.
    Calibrate(CalibrateArgs),
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

/// When the warm-up ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WarmUpWish {
    /// After this time.
    For(Duration),
    /// When latency has settled.
    Tested,
}

/// Closed or open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LoopKind {
    /// The next batch waits for the last one's replies.
    Closed,
    /// Requests come when a schedule says, drawn without regard to the server.
    Open,
}

/// memtier_benchmark's names of protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum MemtierProtocol {
    /// RESP2.
    #[value(alias = "resp2")]
    Redis,
    /// RESP3.
    Resp3,
    /// memcached's text protocol.
    MemcacheText,
}

/// Flags of `run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// resp://HOST:PORT, http://HOST:PORT[/PATH], memcache://HOST:PORT; over a Unix socket unix:///SOCKET (RESP),
    /// http+unix:///SOCKET[:/PATH] or memcache+unix:///SOCKET.
    #[arg(long, value_name = "URL", required_unless_present_any = ["server", "port", "unix_socket"])]
    pub target: Option<String>,
    /// A host in place of --target, as memtier_benchmark has it.
    #[arg(long, short = 's', visible_alias = "host", value_name = "HOST", conflicts_with = "target")]
    pub server: Option<String>,
    /// Its port; 6379 if not given.
    #[arg(long, short = 'p', value_name = "PORT", conflicts_with = "target")]
    pub port: Option<u16>,
    /// An AF_UNIX socket in place of --target.
    #[arg(long, short = 'S', value_name = "PATH", conflicts_with_all = ["target", "server", "port"])]
    pub unix_socket: Option<PathBuf>,
    /// What is spoken at --server.
    #[arg(long, short = 'P', value_enum, conflicts_with = "target")]
    pub protocol: Option<MemtierProtocol>,
    /// A workload with a name; flags beside it overrule its own.
    #[arg(long, value_enum)]
    pub preset: Option<Preset>,
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
    /// Discarded before the measurement: a time, or auto: 2s to 30s, until the latency's medians show no trend any more.
    #[arg(long, default_value = "1s", value_parser = parse_warmup, value_name = "TIME|auto")]
    pub warmup: WarmUpWish,
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
    /// Process that arrivals follow (open loop): poisson, which is the default, constant, pareto or pareto:SHAPE, etc,
    /// onoff:ON/OFF, ramp:RATE/TIME from --rate on, or trace:FILE of times in seconds, one a line. The last and etc have a rate
    /// of their own.
    #[arg(long, value_name = "PROCESS")]
    pub arrival: Option<Arrival>,
    /// SETs and GETs in one cycle.
    #[arg(long, default_value = "1:10", value_parser = parse_ratio, value_name = "SET:GET")]
    pub ratio: (u32, u32),
    /// Number of keys.
    #[arg(long, short = 'r', visible_alias = "key-maximum", default_value_t = 100_000, value_name = "N")]
    pub keys: u64,
    /// Bytes of a key: a number, a range such as 16-40, or etc. It follows from the key and the seed.
    #[arg(long, default_value = "16", value_name = "BYTES")]
    pub key_size: KeySizes,
    /// What keys begin with.
    #[arg(long, default_value = "key:", value_name = "TEXT")]
    pub key_prefix: String,
    /// Bytes of a value: a number, a range such as 32-512, or etc. A key's size follows from the key and the seed.
    #[arg(long, short = 'd', visible_aliases = ["data-size", "data-size-range"], default_value = "64", value_name = "BYTES")]
    pub value_size: ValueSizes,
    /// How long values live: times with weights, such as none:8,60s:1,1h:1.
    #[arg(long, default_value = "", value_name = "MIX")]
    pub ttl: TtlMix,
    /// uniform, zipf or zipf:THETA, hotspot:KEYS/REQUESTS, sequential or gaussian or gaussian:DEVIATION.
    #[arg(long, default_value = "uniform", value_name = "DISTRIBUTION")]
    pub key_distribution: KeyDistribution,
    /// The same as --key-distribution zipf:THETA.
    #[arg(long, visible_alias = "key-zipf-exp", value_name = "THETA")]
    pub theta: Option<f64>,
    /// memtier_benchmark's names of distributions: R:R, G:G, S:S and Z:Z. Both sides must be the same here.
    #[arg(long, value_name = "PATTERN", value_parser = parse_key_pattern)]
    pub key_pattern: Option<KeyDistribution>,
    /// Seed of arrivals, keys and values.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Threads of the generator. They share connections and rate, and draw the arrivals of one schedule in turn; their
    /// histograms are merged in the end.
    #[arg(long, short = 't', default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub threads: u32,
    /// Stay on this core; of several threads, one core for each, such as 1,2.
    #[arg(long, value_name = "CORE,…", value_delimiter = ',')]
    pub pin: Vec<usize>,
    /// How events are awaited: asleep until shortly before an arrival (auto), always asleep, or always awake.
    #[arg(long, value_enum, default_value = "auto")]
    pub spin: Spin,
    /// The driver.
    #[arg(long, value_enum, default_value = "io_uring")]
    pub io: Io,
    /// Read the server's CPU time from this process.
    #[arg(long, value_name = "PID")]
    pub server_pid: Option<u32>,
    /// Count the system calls of --server-pid, where the machine allows it.
    #[arg(long, requires = "server_pid")]
    pub syscalls: bool,
    /// Set every key once before.
    #[arg(long)]
    pub prefill: bool,
    /// Compare sampled values byte by byte with what a prefill with the same seed and sizes has set.
    #[arg(long)]
    pub verify: bool,
    /// RESP version.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(2..=3))]
    pub resp: u8,
    /// A command in place of SET and GET; __key__ and __data__ are filled in. Several take turns.
    #[arg(long, value_name = "TEMPLATE")]
    pub command: Vec<String>,
    /// How many of each --command in one cycle, in their order.
    #[arg(long, value_name = "N", requires = "command")]
    pub command_ratio: Vec<u32>,
    /// Open no more connections a second than that, before the load begins and whenever one is opened again.
    #[arg(long, value_name = "N", value_parser = parse_rate)]
    pub connect_rate: Option<f64>,
    /// Close a connection after so many requests and open another.
    #[arg(long, visible_alias = "reconnect-interval", value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub requests_per_connection: Option<u64>,
    /// Path of HTTP requests; {key} is filled in.
    #[arg(long, default_value = "/v1/keys/{key}", value_name = "PATH")]
    pub http_path: String,
    /// Name of an environment variable that holds the password: for AUTH, and over HTTP for `Authorization: Bearer`.
    #[arg(long, value_name = "VARIABLE")]
    pub password_env: Option<String>,
    /// Write the report as JSON.
    #[arg(long, visible_alias = "json-out-file", value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the report as one HTML page.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write a line of figures for each run, as CSV.
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// Write whole histograms: PREFIX.hlog (HdrHistogram V2) and PREFIX.response.hgrm, .service.hgrm, .lateness.hgrm.
    #[arg(long, value_name = "PREFIX")]
    pub hdr_file_prefix: Option<PathBuf>,
}

/// Flags of `compare`.
#[derive(Clone, Debug, Args)]
pub struct CompareArgs {
    /// A file of targets and cases, as results/cases/*.toml.
    #[arg(long, value_name = "FILE")]
    pub cases: Option<PathBuf>,
    /// Only these targets, by name. Without --cases: millrace, millrace-epoll, millrace-unix, redis, valkey, kevy,
    /// dragonfly, pogocache, memcached, null, nginx, millrace-http, paced, and each of them driven by another tool, such as
    /// redis-by-memtier.
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    pub targets: Vec<String>,
    /// The same server driven by each of these in turn, in place of several servers: loadgen, redis-benchmark,
    /// valkey-benchmark, memtier, wrk, k6, bare. Without --cases: those of results/cases/tools.toml.
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    pub tools: Vec<String>,
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
    /// Core of the generator; of several threads one for each, such as 1,2. Else the second of the affinity mask, or
    /// wherever there is room.
    #[arg(long, value_name = "CORE,…", value_delimiter = ',')]
    pub generator_core: Vec<usize>,
    /// Threads of the generator. They share connections and rate; their histograms are merged.
    #[arg(long, short = 't', default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub threads: u32,
    /// The generator's driver.
    #[arg(long, value_enum, default_value = "io_uring")]
    pub io: Io,
    /// Count the servers' system calls, where the machine allows it; each costs them a little.
    #[arg(long)]
    pub syscalls: bool,
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
    let usage = "a target is resp://HOST:PORT, http://HOST:PORT, memcache://HOST:PORT, unix:///PATH (RESP), \
                 http+unix:///PATH or memcache+unix:///PATH";
    let (scheme, rest) = text.split_once("://").ok_or_else(|| format!("\"{text}\": {usage}"))?;
    let tcp = |host: &str| -> Result<Target, String> {
        let mut addresses = host
            .to_socket_addrs()
            .map_err(|error| format!("\"{text}\": cannot find \"{host}\" ({error}); {usage}"))?;
        addresses.next().map(Target::Tcp).ok_or_else(|| format!("\"{text}\": \"{host}\" has no address"))
    };
    let unix = |socket: &str, protocol, path| {
        let address = Target::Unix(socket.into());
        ParsedTarget { address, protocol, host: "localhost".into(), path }
    };
    match scheme {
        "resp" | "redis" => {
            let host = rest.trim_end_matches('/');
            Ok(ParsedTarget { address: tcp(host)?, protocol: Protocol::Resp, host: host.into(), path: None })
        }
        "memcache" => {
            let host = rest.trim_end_matches('/');
            Ok(ParsedTarget {
                address: tcp(host)?,
                protocol: Protocol::Memcache,
                host: host.into(),
                path: None,
            })
        }
        "unix" if rest.starts_with('/') => Ok(unix(rest, Protocol::Resp, None)),
        "memcache+unix" if rest.starts_with('/') => Ok(unix(rest, Protocol::Memcache, None)),
        "http+unix" if rest.starts_with('/') => {
            // As NGINX writes them: the socket ends with a colon where a path of requests follows.
            let (socket, path) = match rest.find(":/") {
                Some(at) if rest.len() > at + 2 => (&rest[..at], Some(rest[at + 1..].to_string())),
                Some(at) => (&rest[..at], None),
                None => (rest, None),
            };
            Ok(unix(socket, Protocol::Http, path))
        }
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

fn parse_warmup(text: &str) -> Result<WarmUpWish, String> {
    match text {
        "auto" => Ok(WarmUpWish::Tested),
        time => parse_duration(time).map(WarmUpWish::For).map_err(|why| format!("{why}, or auto")),
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

fn parse_key_pattern(text: &str) -> Result<KeyDistribution, String> {
    let (sets, gets) = text.split_once(':').ok_or("a pattern looks like R:R")?;
    if sets != gets {
        return Err(format!(
            "\"{text}\": SETs and GETs draw from one distribution here, so both sides must be the same"
        ));
    }
    match sets {
        "R" => Ok(KeyDistribution::Uniform),
        "S" => Ok(KeyDistribution::Sequential),
        "G" => "gaussian".parse(),
        "Z" => "zipf".parse(),
        _ => Err("a pattern is R:R (uniform), G:G (gaussian), S:S (sequential) or Z:Z (zipf)".into()),
    }
}

/// Reads `1:10`.
pub fn parse_ratio(text: &str) -> Result<(u32, u32), String> {
    let (sets, gets) = text.split_once(':').ok_or("a ratio looks like 1:10")?;
    let number = |part: &str| part.parse::<u32>().map_err(|_| "a ratio looks like 1:10".to_string());
    match (number(sets)?, number(gets)?) {
        (0, 0) => Err("0:0 asks for nothing".into()),
        ratio => Ok(ratio),
    }
}

/// Reads a number of requests a second.
pub fn parse_rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "a rate is a number of requests a second".to_string())?;
    if (0.001..=1e9).contains(&rate) { Ok(rate) } else { Err("a rate lies between 0.001 and 1e9".into()) }
}

fn parse_share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| "a share is a number".to_string())?;
    if share > 0.0 && share <= 1.5 { Ok(share) } else { Err("a share lies between 0 and 1.5".into()) }
}

impl RunArgs {
    /// How to wait: on one core spinning would take the server's time.
    pub fn spin(&self) -> Spin {
        match self.spin {
            Spin::Auto if reactor::cpu::allowed_cores().len() < 2 => Spin::Never,
            spin => spin,
        }
    }

    /// The process that arrivals follow.
    pub fn arrival(&self) -> Arrival {
        self.arrival.clone().unwrap_or(Arrival::Poisson)
    }

    /// Where the run goes to, whichever flags say it.
    fn target_text(&self) -> String {
        if let Some(path) = &self.unix_socket {
            return format!("unix://{}", path.display());
        }
        match &self.target {
            Some(target) => target.clone(),
            None => {
                let scheme = match self.protocol {
                    Some(MemtierProtocol::MemcacheText) => "memcache",
                    _ => "resp",
                };
                let host = self.server.as_deref().unwrap_or("127.0.0.1");
                format!("{scheme}://{host}:{}", self.port.unwrap_or(6379))
            }
        }
    }

    fn keys_drawn(&self) -> Result<KeyDistribution, String> {
        // memtier_benchmark's exponent belongs to its pattern Z:Z.
        let zipf = |theta: f64| format!("zipf:{theta}").parse::<KeyDistribution>();
        match (self.theta, self.key_pattern, self.key_distribution) {
            (Some(theta), None | Some(KeyDistribution::Zipf { .. }), KeyDistribution::Uniform) => zipf(theta),
            (Some(_), ..) => {
                Err("--theta is the exponent of a Zipf distribution: no other can be asked for beside it"
                    .into())
            }
            (None, Some(pattern), KeyDistribution::Uniform) => Ok(pattern),
            (None, Some(_), _) => Err("--key-pattern and --key-distribution say the same: give one".into()),
            (None, None, distribution) => Ok(distribution),
        }
    }

    fn commands(&self) -> Result<Vec<(String, u32)>, String> {
        if self.command_ratio.is_empty() {
            return Ok(self.command.iter().map(|command| (command.clone(), 1)).collect());
        }
        if self.command_ratio.len() != self.command.len() {
            return Err("--command-ratio is given once for each --command, or not at all".into());
        }
        Ok(self.command.iter().cloned().zip(self.command_ratio.iter().copied()).collect())
    }

    /// The plan these flags describe; `Err` is a usage error.
    pub fn plan(&self) -> Result<Plan, String> {
        if self.loop_kind == LoopKind::Closed && self.arrival.is_some() {
            return Err("--arrival belongs to the open loop: add --loop open".into());
        }
        let rate = self.rate.or(self.arrival().own_rate().filter(|_| self.loop_kind == LoopKind::Open));
        let load = match (self.loop_kind, rate) {
            (LoopKind::Closed, None) => Load::Closed { pipeline: self.pipeline },
            (LoopKind::Closed, Some(_)) => {
                return Err("--rate belongs to the open loop: add --loop open".into());
            }
            (LoopKind::Open, None) => {
                return Err("--loop open needs --rate, the requests offered a second".into());
            }
            (LoopKind::Open, Some(rate)) => Load::Open { rate, arrival: self.arrival() },
        };
        self.plan_with(load)
    }

    /// The same with another load.
    pub fn plan_with(&self, load: Load) -> Result<Plan, String> {
        let target = parse_target(&self.target_text())?;
        if matches!(load, Load::Open { .. }) && self.pipeline > 1 {
            return Err("--pipeline belongs to the closed loop: an open loop sends what is due".into());
        }
        if self.resp == 3 && target.protocol != Protocol::Resp {
            return Err("--resp 3 is a version of RESP, and the target speaks another protocol".into());
        }
        if self.password_env.is_some() && target.protocol == Protocol::Memcache {
            return Err("--password-env: memcached's text protocol knows no password".into());
        }
        let password = match &self.password_env {
            Some(name) => Some(
                std::env::var(name).map_err(|_| format!("--password-env: the variable {name} is not set"))?,
            ),
            None => None,
        };
        let is_text = |password: &String| !password.contains(|character: char| character.is_ascii_control());
        if target.protocol == Protocol::Http && !password.as_ref().is_none_or(is_text) {
            return Err("--password-env: a password with control characters cannot be sent over HTTP".into());
        }
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
            resp_version: match self.protocol {
                Some(MemtierProtocol::Resp3) => 3,
                _ => self.resp,
            },
            sets: self.ratio.0,
            gets: self.ratio.1,
            keys: self.keys,
            key_bytes: match self.key_size {
                KeySizes::Fixed(bytes) => usize::from(bytes),
                sizes => usize::from(sizes.span(0).1),
            },
            key_sizes: Some(self.key_size).filter(|sizes| !matches!(sizes, KeySizes::Fixed(_))),
            key_prefix: self.key_prefix.clone(),
            key_distribution: self.keys_drawn()?,
            value_bytes: self.value_size,
            ttls: self.ttl.clone(),
            commands: self.commands()?,
            http_path: target.path.unwrap_or_else(|| self.http_path.clone()),
            http_host: target.host,
            verify: self.verify,
            password,
            seed: self.seed,
            ..WorkloadOptions::default()
        };
        // Flags that contradict each other are a usage error now, not a failure later.
        crate::workload::Workload::new(&workload).map_err(|error| error.0)?;
        Ok(Plan {
            target: target.address,
            workload,
            connections: self.connections as usize,
            load,
            prefill: self.prefill,
            warmup_ns: match self.warmup {
                WarmUpWish::For(time) => time.as_nanos() as u64,
                WarmUpWish::Tested => warm_up::SHORTEST_NS,
            },
            warmup_is_tested: self.warmup == WarmUpWish::Tested,
            stop: match self.requests {
                Some(count) => Stop::Requests(count),
                None => Stop::After(self.duration.as_nanos() as u64),
            },
            drain_ns: self.drain.as_nanos() as u64,
            timeout_ns: self.timeout.as_nanos() as u64,
            interval_ns: interval_ns(self.requests.map_or(self.duration, |_| Duration::from_secs(10))),
            connects_per_s: self.connect_rate,
            requests_per_connection: self.requests_per_connection,
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
        let unix = parse_target("http+unix:///run/nginx.sock:/a:/b").expect("valid");
        assert_eq!((&unix.address, unix.protocol), (&Target::Unix("/run/nginx.sock".into()), Protocol::Http));
        assert_eq!(unix.path.as_deref(), Some("/a:/b"));
        assert_eq!(parse_target("http+unix:///run/nginx.sock").expect("valid").path, None);
        let memcached = parse_target("memcache+unix:///run/m.sock").expect("valid");
        assert_eq!(memcached.protocol, Protocol::Memcache);
        for wrong in [
            "127.0.0.1:6379",
            "resp://127.0.0.1",
            "unix://relative",
            "http+unix://relative",
            "ftp://127.0.0.1:1",
            "resp://",
        ] {
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
        assert_eq!((plan.workload.keys, plan.workload.value_bytes), (500, ValueSizes::Fixed(32)));
        assert_eq!((plan.workload.sets, plan.workload.gets), (1, 0));
        assert_eq!(plan.stop, Stop::After(3_000_000_000));
    }

    #[test]
    fn more_of_memtiers_names() {
        let read = |line: &str| plan(&line.split(' ').collect::<Vec<_>>());
        let one = read("-s 127.0.0.1 -p 7000 -P memcache_text --data-size-range 32-64 --key-pattern G:G")
            .expect("valid");
        assert_eq!(one.target, Target::Tcp("127.0.0.1:7000".parse().expect("an address")));
        assert_eq!(
            (one.workload.protocol, one.workload.value_bytes),
            (Protocol::Memcache, ValueSizes::Range(32, 64))
        );
        assert!(matches!(one.workload.key_distribution, KeyDistribution::Gaussian { .. }));
        let two = read("-S /run/x --key-pattern Z:Z --key-zipf-exp 1.2 --reconnect-interval 50 -P resp3")
            .expect("valid");
        assert_eq!((two.target, two.workload.resp_version), (Target::Unix("/run/x".into()), 3));
        assert_eq!(two.workload.key_distribution, KeyDistribution::Zipf { theta: 1.2 });
        assert_eq!(two.requests_per_connection, Some(50));
        let three = plan(&[
            "-p",
            "1",
            "--command",
            "SET __key__ __data__",
            "--command-ratio",
            "2",
            "--command",
            "PING",
            "--command-ratio",
            "1",
        ]);
        let commands = three.expect("valid").workload.commands;
        assert_eq!(commands, [("SET __key__ __data__".to_string(), 2), ("PING".to_string(), 1)]);
        assert!(read("-p 1 --key-pattern R:S").expect_err("must be refused").contains("one distribution"));
        assert!(
            read("-p 1 --theta 1 --key-distribution sequential")
                .expect_err("must be refused")
                .contains("--theta")
        );
        assert!(read("-p 1 --target resp://127.0.0.1:2").expect_err("must be refused").contains("--target"));
        let uneven = plan(&["-p", "1", "--command", "A", "--command", "B", "--command-ratio", "1"]);
        assert!(uneven.expect_err("must be refused").contains("--command-ratio"));
    }

    #[test]
    fn contradictions_are_usage_errors_that_say_what_to_do() {
        let wrong = |flags: &[&str]| plan(&[&TARGET[..], flags].concat()).expect_err("must be refused");
        assert!(wrong(&["--loop", "open"]).contains("--rate"));
        assert!(wrong(&["--rate", "5"]).contains("--loop open"));
        assert!(wrong(&["--loop", "open", "--rate", "5", "--pipeline", "2"]).contains("--pipeline"));
        assert!(wrong(&["--arrival", "poisson"]).contains("--loop open"));
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
