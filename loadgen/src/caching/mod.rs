//! `loadgen caching`: what a cache in the client is worth that the server keeps true, and how true it is.
//!
//! `delay` measures the time from an acknowledged write to the invalidation at N trackers, and the reads that were stale in
//! between. `grid` is the table of the article on Dragonfly and Relay (February 2024): W workers, each with a local cache kept
//! true by tracking (RESP3, CLIENT TRACKING), against servers with so many shards: throughput, hit rate and server CPU, with
//! the cache on and off.
//!
//! Servers are started fresh, one at a time, by name; or one that runs already is measured (`--target`).

mod delay;
mod grid;
mod links;
mod pool;
mod replies;
mod trackers;
mod truth;

use crate::cli::{parse_duration, parse_target};
use crate::compare::builtin::target_entry;
use crate::compare::cases::TargetEntry;
use crate::compare::peers::{Needs, Peers, Programs, Running};
use crate::report::Placement;
use crate::run::usage;
use crate::stages::Stream;
use crate::worker::Io;
use crate::workload::Protocol;
use clap::{Args, Subcommand, ValueEnum};
use reactor::cpu;
use reactor::io::stop::StopSignal;
use reactor::server::event::Target;
use serde::Serialize;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Name and version of the JSON schema.
pub const SCHEMA: &str = "millrace-loadgen-caching-1";
/// `key:` and twelve digits, as `loadgen run` has them.
pub const KEY_BYTES: usize = 16;
/// Keys filled in one write.
const FILL_BATCH: u32 = 500;

/// Flags of `caching`.
#[derive(Clone, Debug, Args)]
pub struct CachingArgs {
    /// What is measured.
    #[command(subcommand)]
    pub what: What,
}

/// What is measured.
#[derive(Clone, Debug, Subcommand)]
pub enum What {
    /// From an acknowledged write to the invalidation at N trackers, and stale reads in between.
    ///
    /// Exit code: 0 it was carried out, 1 it was not, 2 wrong usage.
    Delay(trackers::DelayArgs),
    /// Workers with local caches against shards: throughput, hit rate, server CPU, with the cache on and off.
    ///
    /// Exit code: 0 it was carried out, 1 it was not or cannot be believed, 2 wrong usage.
    Grid(grid::GridArgs),
}

impl CachingArgs {
    /// The flags that both kinds have.
    pub fn common_mut(&mut self) -> &mut Common {
        match &mut self.what {
            What::Delay(arguments) => &mut arguments.common,
            What::Grid(arguments) => &mut arguments.common,
        }
    }
}

/// How caches are kept true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// There is none.
    #[value(skip)]
    Off,
    /// CLIENT TRACKING ON: the server remembers who has read what.
    Reads,
    /// CLIENT TRACKING ON BCAST: everybody is told of every key with the prefix.
    Bcast,
}

impl Mode {
    /// The commands a connection begins with.
    fn greeting(self, password: Option<&str>) -> Vec<Vec<u8>> {
        let mut greeting = vec![match password {
            Some(password) => links::command(&[b"HELLO", b"3", b"AUTH", b"default", password.as_bytes()]),
            None => links::command(&[b"HELLO", b"3"]),
        }];
        match self {
            Mode::Off => {}
            Mode::Reads => greeting.push(links::command(&[b"CLIENT", b"TRACKING", b"ON"])),
            Mode::Bcast => {
                greeting.push(links::command(&[b"CLIENT", b"TRACKING", b"ON", b"BCAST", b"PREFIX", b"key:"]))
            }
        }
        greeting
    }
}

/// Flags of both.
#[derive(Clone, Debug, Args)]
pub struct Common {
    /// Servers to start, one after the other in every round: millrace, redis, valkey, dragonfly.
    #[arg(long, value_delimiter = ',', default_value = "millrace", value_name = "NAME,…")]
    pub targets: Vec<String>,
    /// A server that runs already, in place of --targets: resp://HOST:PORT or unix:///PATH.
    #[arg(long, value_name = "URL", conflicts_with = "targets")]
    pub target: Option<String>,
    /// The process of --target, for its CPU time.
    #[arg(long, value_name = "PID", requires = "target")]
    pub server_pid: Option<u32>,
    /// Name of an environment variable that holds the password for AUTH.
    #[arg(long, value_name = "VARIABLE")]
    pub password_env: Option<String>,
    /// How caches are kept true.
    #[arg(long, value_enum, default_value = "reads")]
    pub tracking: Mode,
    /// Bytes of a value, of which the first sixteen are its version.
    #[arg(long, short = 'd', default_value_t = 64, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(16..=1_048_576))]
    pub value_size: u32,
    /// Rounds, each with every server started fresh.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub rounds: u32,
    /// A reply, or an invalidation, that takes longer ends it.
    #[arg(long, default_value = "10s", value_parser = parse_duration, value_name = "TIME")]
    pub timeout: Duration,
    /// The Millrace to measure; else the one beside this program, else from PATH.
    #[arg(long, value_name = "PROGRAM")]
    pub millrace: Option<PathBuf>,
    /// Core of the servers' first shard; else the first of the affinity mask.
    #[arg(long, value_name = "CORE")]
    pub server_core: Option<usize>,
    /// Core of the generator; else the last of the affinity mask.
    #[arg(long, value_name = "CORE")]
    pub generator_core: Option<usize>,
    /// The generator's driver.
    #[arg(long, value_enum, default_value = "io_uring")]
    pub io: Io,
    /// Seed of keys and arrivals.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Write the report as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the report as one HTML page.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// `loadgen caching`.
pub fn command(arguments: &CachingArgs, stop: &StopSignal) -> ExitCode {
    let done = match &arguments.what {
        What::Delay(arguments) => trackers::command(arguments, stop),
        What::Grid(arguments) => grid::command(arguments, stop),
    };
    done.unwrap_or_else(|error| usage(&error))
}

impl Common {
    /// Whether what is asked for can be written at all.
    fn check_outputs(&self) -> Result<(), String> {
        [&self.json, &self.html]
            .into_iter()
            .flatten()
            .try_for_each(|path| crate::report::check_writable(path))
    }

    /// What must be right before anything begins.
    fn check(&self) -> Result<Placement, String> {
        let allowed = cpu::allowed_cores();
        let placement = Placement {
            server_core: self.server_core.or(allowed.first().copied().filter(|_| allowed.len() > 1)),
            generator_core: self.generator_core.or(allowed.last().copied().filter(|_| allowed.len() > 1)),
        };
        for core in [placement.server_core, placement.generator_core].into_iter().flatten() {
            cpu::check_pin(core).map_err(|error| error.to_string())?;
        }
        Ok(placement)
    }

    fn password(&self) -> Result<Option<String>, String> {
        let read = |name: &String| {
            std::env::var(name).map_err(|_| format!("--password-env: the variable {name} is not set"))
        };
        self.password_env.as_ref().map(read).transpose()
    }

    /// The servers to measure, each with so many shards.
    fn servers(&self, shards: &[u32], placement: Placement) -> Result<(Vec<Server>, Vec<String>), String> {
        if let Some(target) = &self.target {
            let parsed = parse_target(target)?;
            if parsed.protocol != Protocol::Resp {
                return Err(format!("--target {target}: tracking is a matter of RESP: resp:// or unix://"));
            }
            let server = Server {
                name: target.clone(),
                shards: None,
                what: Which::Running(parsed.address, self.server_pid),
            };
            return Ok((vec![server], Vec::new()));
        }
        let programs = Programs { millrace: self.millrace.clone(), null: None };
        let (mut servers, mut missing) = (Vec::new(), Vec::new());
        for name in &self.targets {
            // Those of one thread are measured once, whatever is asked of the others.
            let counts: &[u32] = if ["redis", "valkey"].contains(&name.as_str()) { &[1] } else { shards };
            for count in counts {
                let entry = entry(name, *count, placement)?;
                let mut found = Peers::find(std::slice::from_ref(name), &[entry], &programs)?;
                missing.extend(found.missing);
                if let Some(peer) = found.found.pop() {
                    let pin = placement.server_core.filter(|_| *count == 1);
                    servers.push(Server {
                        name: name.clone(),
                        shards: Some(*count),
                        what: Which::Start(Box::new(peer), pin),
                    });
                }
            }
        }
        missing.dedup();
        if servers.is_empty() {
            return Err(format!("none of the targets is here: {}", missing.join("; ")));
        }
        Ok((servers, missing))
    }
}

/// How a server is started with so many shards.
fn entry(name: &str, shards: u32, placement: Placement) -> Result<TargetEntry, String> {
    let command = match name {
        "millrace" => {
            let first = placement.server_core.unwrap_or(0);
            let pin = if shards == 1 { format!("--pin {first}") } else { String::new() };
            format!(
                "millrace --bind 127.0.0.1 --port {{port}} --http no --dir {{dir}} --durability off --shards {shards} {pin}"
            )
        }
        "redis" | "valkey" => {
            format!("{name}-server --bind 127.0.0.1 --port {{port}} --dir {{dir}} --save '' --appendonly no")
        }
        "dragonfly" => format!(
            "dragonfly --bind 127.0.0.1 --port {{port}} --dir {{dir}} --dbfilename= --proactor_threads={shards} \
             --version_check=false"
        ),
        _ => {
            return Err(format!(
                "no server is called \"{name}\" here; there are millrace, redis, valkey and dragonfly, and --target for \
                 one that runs already"
            ));
        }
    };
    let version = match name {
        "redis" | "valkey" => format!("{name}-server --version"),
        _ => format!("{name} --version"),
    };
    Ok(target_entry(name, &command, &version))
}

/// A server to measure.
struct Server {
    name: String,
    shards: Option<u32>,
    what: Which,
}

enum Which {
    /// To be started, on that core.
    Start(Box<crate::compare::peers::Peer>, Option<usize>),
    /// It runs.
    Running(Target, Option<u32>),
}

/// A server while it is measured.
struct Serving {
    address: Target,
    pid: Option<u32>,
    started: Option<Running>,
}

impl Server {
    fn start(&self, keys: u32) -> Result<Serving, String> {
        match &self.what {
            Which::Running(address, pid) => {
                Ok(Serving { address: address.clone(), pid: *pid, started: None })
            }
            Which::Start(peer, core) => {
                let needs = Needs { keys: u64::from(keys), reply_bytes: 0 };
                let running = Running::start(peer, needs, *core)?;
                Ok(Serving {
                    address: running.address.clone(),
                    pid: Some(running.pid()),
                    started: Some(running),
                })
            }
        }
    }

    fn label(&self) -> String {
        match self.shards {
            Some(1) => format!("{}, 1 shard", self.name),
            Some(count) => format!("{}, {count} shards", self.name),
            None => self.name.clone(),
        }
    }
}

impl Serving {
    /// The end of what it printed.
    fn log_tail(&self) -> String {
        self.started.as_ref().map_or(String::new(), Running::log_tail)
    }

    /// Sets every key to version 0.
    fn fill(&self, keys: u32, value_bytes: usize, password: Option<&str>) -> Result<(), String> {
        let stream =
            crate::stages::connect(&self.address).map_err(|error| format!("cannot fill: {error}"))?;
        fill(stream, keys, value_bytes, password).map_err(|error| format!("cannot fill: {error}"))
    }
}

fn fill(
    stream: Box<dyn Stream>,
    keys: u32,
    value_bytes: usize,
    password: Option<&str>,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut batch = Vec::new();
    let expect_ok = |stream: &mut BufReader<Box<dyn Stream>>, batch: &mut Vec<u8>, replies: u32| {
        stream.get_mut().write_all(batch)?;
        batch.clear();
        for _ in 0..replies {
            let mut line = String::new();
            stream.read_line(&mut line)?;
            if line != "+OK\r\n" {
                return Err(std::io::Error::other(format!("the server answers \"{}\"", line.trim_end())));
            }
        }
        Ok(())
    };
    if let Some(password) = password {
        links::put_command(&mut batch, &[b"AUTH", password.as_bytes()]);
        expect_ok(&mut stream, &mut batch, 1)?;
    }
    let mut value = vec![b'v'; value_bytes];
    truth::write_version(&mut value, 0);
    for first in (0..keys).step_by(FILL_BATCH as usize) {
        let count = FILL_BATCH.min(keys - first);
        for key in first..first + count {
            links::put_command(&mut batch, &[b"SET", &write_key(key), &value]);
        }
        expect_ok(&mut stream, &mut batch, count)?;
    }
    Ok(())
}

/// The name of a key.
fn write_key(number: u32) -> [u8; KEY_BYTES] {
    let mut key = *b"key:000000000000";
    let mut rest = number;
    for digit in key[4..].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    key
}

/// The number of a key of that form.
fn key_number(key: &[u8]) -> Option<u32> {
    let digits = key.strip_prefix(b"key:").filter(|digits| digits.len() == KEY_BYTES - 4)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_named_as_everywhere_and_read_back() {
        assert_eq!(&write_key(0), b"key:000000000000");
        assert_eq!(&write_key(90_210), b"key:000000090210");
        assert_eq!(key_number(&write_key(u32::MAX)), Some(u32::MAX));
        for other in [&b"key:1"[..], b"", b"other:0000000001", b"key:00000000000x"] {
            assert_eq!(key_number(other), None);
        }
    }

    #[test]
    fn servers_are_started_with_their_shards() {
        let placement = Placement { server_core: Some(0), generator_core: Some(1) };
        let line = |name, shards| entry(name, shards, placement).expect("known").command.join(" ");
        assert!(line("millrace", 1).contains("--shards 1 --pin 0"));
        assert!(line("millrace", 4).ends_with("--shards 4"));
        assert!(line("dragonfly", 4).contains("--proactor_threads=4"));
        assert!(entry("nonsense", 1, placement).expect_err("unknown").contains("millrace, redis"));
    }
}
