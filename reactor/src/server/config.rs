//! From command line and file to settings.
//!
//! There is one table of settings, [`store::config::SETTINGS`]; flags, help texts, TOML keys and
//! `--print-config` are generated from it, and this module adds only what is about the file itself. What is
//! given on the command line goes before the file, the file before the defaults.

use crate::io::epoll::EpollOptions;
use crate::io::log_files::LogWriteMode;
use crate::io::ring::RingOptions;
use crate::io::uring::UringOptions;
use crate::journal_tool::{self, JournalTool};
use crate::log_tool::{self, LogTool};
use crate::rdb_tool::{self, RdbTool};
use crate::server::journal::JournalKind;
use crate::server::recovery::RecoverTo;
use crate::server::snapshot_handle::Schedule;
use crate::snapshot_tool::{self, SnapshotTool};
use clap::builder::NonEmptyStringValueParser;
use clap::{Arg, ArgAction, ArgMatches, Command, error::ErrorKind};
use std::ffi::OsString;
use std::fmt;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use store::config::{Config, Kind, SETTINGS, Setting};
use store::session::Durability;
use store::shards::SHARDS_MAX;
use toml::de::{DeTable, DeValue};

/// Slots a driver has beyond `maxclients`, for connections that are told that there are too many.
const SPARE_CONNECTIONS: usize = 128;

/// What a server is started with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Every setting of the table.
    pub config: Config,
    /// The driver was named by the user: where it cannot be had that is an error. Otherwise epoll steps in
    /// for io_uring, with a warning.
    pub io_chosen: bool,
}

impl From<Config> for Settings {
    fn from(config: Config) -> Self {
        Settings { config, io_chosen: false }
    }
}

/// What a command line asks for.
#[derive(Debug)]
pub enum Invocation {
    /// Serve.
    Serve(Box<Settings>),
    /// Print what would run where, and leave.
    Topology(Box<Settings>),
    /// Print this to stdout and leave.
    Print(String),
    /// Look at a log, or repair it.
    Log(LogTool),
    /// Give a journal another key, or convert it.
    Journal(JournalTool),
    /// Look at a snapshot.
    Snapshot(SnapshotTool),
    /// Write a dump for Redis, or read one.
    Rdb(RdbTool),
}

/// Reads a command line, and the file it names.
///
/// The error says what is wrong and knows its exit code: 2, or 0 where it is the answer to `--help`.
pub fn from_arguments<I, T>(arguments: I) -> Result<Invocation, clap::Error>
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    let matches = command().try_get_matches_from(arguments)?;
    let mut settings = Settings::from(Config::default());
    for (name, tool) in TOOLS {
        let Some(tool_matches) = matches.subcommand_matches(name) else { continue };
        return match SETTINGS.iter().find(|setting| matches.contains_id(setting.name)) {
            Some(setting) => Err(refuse(format!("--{} means nothing to `millrace {name}`", setting.name))),
            None => Ok(tool(tool_matches)),
        };
    }
    let topology = matches.subcommand_matches("topology");
    for matches in [Some(&matches), topology].into_iter().flatten() {
        if let Some(path) = matches.get_one::<String>("config") {
            apply_file(&mut settings, Path::new(path)).map_err(refuse)?;
        }
    }
    for matches in [Some(&matches), topology].into_iter().flatten() {
        apply_flags(&mut settings, matches).map_err(refuse)?;
    }
    // What can be judged without starting is judged here, so that it is a usage error too.
    Launch::read(&settings.config).map_err(refuse)?;
    let print = matches.get_flag("print-config");
    Ok(match (print, topology) {
        (true, _) => Invocation::Print(to_toml(&settings.config)),
        (false, Some(_)) => Invocation::Topology(Box::new(settings)),
        (false, None) => Invocation::Serve(Box::new(settings)),
    })
}

/// What a subcommand makes of its arguments.
type ReadTool = fn(&ArgMatches) -> Invocation;

/// Subcommands that take no settings.
const TOOLS: [(&str, ReadTool); 5] = [
    ("log", |matches| Invocation::Log(LogTool::from_matches(matches))),
    ("journal", |matches| Invocation::Journal(JournalTool::from_matches(matches))),
    ("snapshot", |matches| Invocation::Snapshot(SnapshotTool::from_matches(matches))),
    ("export-rdb", |matches| Invocation::Rdb(RdbTool::from_export_matches(matches))),
    ("import-rdb", |matches| Invocation::Rdb(RdbTool::from_import_matches(matches))),
];

fn refuse(mut text: String) -> clap::Error {
    text.push('\n');
    clap::Error::raw(ErrorKind::InvalidValue, text)
}

/// The command line, generated from the table.
pub fn command() -> Command {
    let file = Arg::new("config")
        .long("config")
        .value_name("FILE.toml")
        .value_parser(NonEmptyStringValueParser::new())
        .help("Read settings from this TOML file; flags go before it");
    let print = Arg::new("print-config")
        .long("print-config")
        .action(ArgAction::SetTrue)
        .help("Print the settings in force as TOML and leave");
    Command::new("millrace")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Millrace: an in-memory key-value server on io_uring, for the Redis protocol and HTTP")
        .after_help("When every listener accepts, one line on stdout says `ready` with the addresses.")
        .arg(file.clone())
        .arg(print)
        .args(SETTINGS.iter().map(flag))
        .subcommand(log_tool::command())
        .subcommand(journal_tool::command())
        .subcommand(snapshot_tool::command())
        .subcommand(rdb_tool::export_command())
        .subcommand(rdb_tool::import_command())
        .subcommand(
            Command::new("topology")
                .about("Print which shard would run on which core, with which keys and listeners, and leave")
                .arg(file)
                .args(SETTINGS.iter().map(flag)),
        )
}

fn flag(setting: &'static Setting) -> Arg {
    let choices = match setting.kind {
        Kind::Choice(words) => format!(" [{}]", words.join(", ")),
        _ => String::new(),
    };
    let default = match setting.default {
        "" => String::new(),
        default => format!(" [default: {default}]"),
    };
    let several = setting.name == "bind";
    let flag = Arg::new(setting.name)
        .long(setting.name)
        .value_name("VALUE")
        .action(if several { ArgAction::Append } else { ArgAction::Set })
        .allow_negative_numbers(true)
        // Redis writes `-::1` for an address that may be missing.
        .allow_hyphen_values(several)
        .hide_default_value(true)
        .help(format!("{}{choices}{default}", setting.summary.trim_end_matches('.')));
    // As in Redis the last of several wins, so that a script may add to a command it was given.
    if several { flag } else { flag.overrides_with(setting.name) }
}

fn apply_flags(settings: &mut Settings, matches: &ArgMatches) -> Result<(), String> {
    for setting in SETTINGS {
        let Some(values) = matches.get_many::<String>(setting.name) else { continue };
        let text = values.map(String::as_str).collect::<Vec<_>>().join(" ");
        apply(settings, setting, &text)
            .map_err(|error| format!("invalid value {text:?} for --{}: {error}", setting.name))?;
    }
    Ok(())
}

fn apply(settings: &mut Settings, setting: &Setting, text: &str) -> Result<(), String> {
    (setting.set)(&mut settings.config, text)?;
    if setting.name == "io" {
        settings.io_chosen = true;
    }
    Ok(())
}

fn apply_file(settings: &mut Settings, path: &Path) -> Result<(), String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    apply_toml(settings, &text).map_err(|(at, error)| {
        let line = text.as_bytes()[..at.min(text.len())].iter().filter(|&&byte| byte == b'\n').count() + 1;
        format!("{}:{line}: {error}", path.display())
    })
}

/// Applies a TOML document; an error comes with the offset it stands at.
fn apply_toml(settings: &mut Settings, text: &str) -> Result<(), (usize, String)> {
    let document = DeTable::parse(text)
        .map_err(|error| (error.span().map_or(0, |span| span.start), error.message().to_string()))?;
    for (key, value) in document.get_ref() {
        let name = key.get_ref().as_ref();
        let setting = SETTINGS
            .iter()
            .find(|setting| setting.name == name)
            .ok_or_else(|| (key.span().start, unknown(name)))?;
        scalar(value.get_ref())
            .and_then(|text| apply(settings, setting, &text))
            .map_err(|error| (value.span().start, format!("invalid value for {name}: {error}")))?;
    }
    Ok(())
}

/// A TOML value as the table reads it. Several values are one text with spaces, as Redis writes `bind`.
fn scalar(value: &DeValue<'_>) -> Result<String, String> {
    match value {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Integer(number) => Ok(match number.radix() {
            10 => number.as_str().replace('_', ""),
            radix => {
                i64::from_str_radix(number.as_str(), radix).map_err(|error| error.to_string())?.to_string()
            }
        }),
        DeValue::Boolean(yes) => Ok(if *yes { "yes" } else { "no" }.to_string()),
        DeValue::Array(values) => {
            let texts: Result<Vec<String>, String> =
                values.iter().map(|value| scalar(value.get_ref())).collect();
            Ok(texts?.join(" "))
        }
        DeValue::Float(_) | DeValue::Datetime(_) | DeValue::Table(_) => {
            Err("a text, an integer, true, false or a list of these was expected".into())
        }
    }
}

fn unknown(name: &str) -> String {
    let nearest = SETTINGS
        .iter()
        .map(|setting| (distance(name, setting.name), setting.name))
        .min()
        .filter(|&(distance, _)| distance <= 1 + name.len() / 4);
    match nearest {
        Some((_, nearest)) => format!("unknown setting {name:?}; did you mean {nearest:?}?"),
        None => format!("unknown setting {name:?} (`millrace --help` lists all)"),
    }
}

/// Levenshtein's: how many letters to change, add or leave out; `_` counts as `-`.
fn distance(one: &str, other: &str) -> usize {
    let same = |a: u8, b: u8| a.eq_ignore_ascii_case(&b) || (a == b'_' && b == b'-');
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, &a) in one.as_bytes().iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &b) in other.as_bytes().iter().enumerate() {
            let replaced = diagonal + usize::from(!same(a, b));
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[other.len()]
}

/// The settings as a file that `--config` reads.
pub fn to_toml(config: &Config) -> String {
    let mut text = String::from("# Every setting of Millrace, as in force when this was printed.\n");
    for setting in SETTINGS {
        let value = (setting.get)(config);
        let value = match value.as_str() {
            "yes" => toml::Value::Boolean(true),
            "no" => toml::Value::Boolean(false),
            text => match value.parse::<i64>() {
                Ok(number) if number.to_string() == text => toml::Value::Integer(number),
                _ => toml::Value::String(value),
            },
        };
        let _ = write!(text, "\n# {}\n{} = {value}\n", setting.summary, setting.name);
    }
    text
}

/// An address of `--bind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bind {
    /// The address.
    pub address: IpAddr,
    /// Written with a leading `-`: no error where this machine has no such address.
    pub optional: bool,
}

/// Which driver serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    /// io_uring.
    Uring,
    /// epoll.
    Epoll,
}

impl fmt::Display for Io {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Io::Uring => "io_uring",
            Io::Epoll => "epoll",
        })
    }
}

/// The settings that the reactor itself heeds, read once at the start. All others are the core's.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Port of the RESP listeners; 0: a free one.
    pub port: u16,
    /// Port of the HTTP listeners; `None`: HTTP is off.
    pub http_port: Option<u16>,
    /// Where TCP listeners stand; empty: nowhere.
    pub bind: Vec<Bind>,
    /// Path of the AF_UNIX listener.
    pub unix: Option<PathBuf>,
    /// Queue of connections not accepted yet.
    pub backlog: u32,
    /// Clients served at once.
    pub clients_max: usize,
    /// The driver.
    pub io: Io,
    /// Cores for the shards, in order; empty: not pinned.
    pub pin: Vec<usize>,
    /// Threads that serve.
    pub shards: usize,
    /// Messages that may be on their way from one shard to another.
    pub hop_queue: usize,
    /// Where data lies.
    pub dir: PathBuf,
    /// What a reply to a write promises.
    pub durability: Durability,
    /// How the log reaches the disk.
    pub log_write_mode: LogWriteMode,
    /// Bytes of one of its files.
    pub log_segment_bytes: u64,
    /// What the log is kept in.
    pub journal: JournalKind,
    /// Where the key of the encrypted one stands; `None`: in the environment.
    pub journal_key_file: Option<PathBuf>,
    /// When snapshots are taken.
    pub snapshots: Schedule,
    /// Where recovery stops.
    pub recover_to: Option<RecoverTo>,
    /// A snapshot is read in before anybody is served.
    pub warms_fully: bool,
    /// Bytes a second of a snapshot that are read in behind the traffic; 0: no bound.
    pub warm_rate: u64,
    /// Where replicas connect; `None`: nowhere.
    pub replica_listen: Option<SocketAddr>,
    /// Whom the server follows: host, and port for RESP.
    pub replicaof: Option<(String, u16)>,
    /// The secret that all nodes share; empty: none.
    pub replication_secret: Vec<u8>,
    /// Datagrams: where to, where from, by which interface, and how many bytes a second.
    pub datagrams: Datagrams,
    /// Milliseconds a replica may be behind and answer reads; 0: any.
    pub replica_max_lag: u64,
    /// Bytes of the newest records kept for replicas.
    pub repl_backlog_bytes: usize,
    /// Switches of the io_uring driver.
    pub uring: UringOptions,
    /// Bounds of the epoll driver.
    pub epoll: EpollOptions,
}

/// Settings of replication's datagrams.
#[derive(Clone, Debug)]
pub struct Datagrams {
    /// Where they are sent: a group, or each replica.
    pub to: Vec<SocketAddr>,
    /// Where they are taken.
    pub at: Option<SocketAddr>,
    /// The interface of a group.
    pub interface: Ipv4Addr,
    /// Bytes a second; 0: no bound.
    pub bytes_per_second: u64,
}

impl Datagrams {
    fn read(config: &Config) -> Result<Datagrams, String> {
        let address = |setting: &str, text: &str| {
            text.parse::<SocketAddr>().map_err(|_| {
                format!(
                    "{setting}: expected an IP address and a port, such as 239.1.2.3:7777, found {text:?}"
                )
            })
        };
        let words = config.delta_udp.split([' ', ',']).filter(|word| !word.is_empty());
        let to: Vec<SocketAddr> = words.map(|word| address("delta-udp", word)).collect::<Result<_, _>>()?;
        let at = Some(config.delta_udp_listen.trim()).filter(|text| !text.is_empty());
        let at = at.map(|text| address("delta-udp-listen", text)).transpose()?;
        if let Some(wrong) =
            to.iter().chain(&at).find(|address| address.is_ipv6() && address.ip().is_multicast())
        {
            return Err(format!("delta-udp: expected a multicast group of IPv4, found {wrong}"));
        }
        let interface = match config.delta_udp_interface.as_str() {
            "" => Ipv4Addr::UNSPECIFIED,
            text => text.parse().map_err(|_| {
                format!("delta-udp-interface: expected an IPv4 address of this machine, found {text:?}")
            })?,
        };
        Ok(Datagrams { to, at, interface, bytes_per_second: config.delta_udp_rate })
    }
}

impl Launch {
    /// Reads them out of the table's values; the error names the setting.
    pub fn read(config: &Config) -> Result<Self, String> {
        let max_connections = config.maxclients as usize + SPARE_CONNECTIONS;
        let pin = cores(&config.pin).map_err(|error| format!("pin: {error}"))?;
        let launch = Launch {
            port: config.port,
            http_port: config.http.then_some(config.http_port),
            bind: binds(&config.bind).map_err(|error| format!("bind: {error}"))?,
            unix: Some(&config.unixsocket).filter(|path| !path.is_empty()).map(PathBuf::from),
            backlog: config.tcp_backlog,
            clients_max: config.maxclients as usize,
            io: if config.io == "epoll" { Io::Epoll } else { Io::Uring },
            shards: shards(&config.shards, &pin).map_err(|error| format!("shards: {error}"))?,
            hop_queue: config.hop_queue as usize,
            dir: PathBuf::from(&config.dir),
            durability: Durability::parse(&config.durability).unwrap_or(Durability::Off),
            log_write_mode: config
                .log_write_mode
                .parse()
                .map_err(|error| format!("log-write-mode: {error}"))?,
            // Whole pages, as the log wants them.
            log_segment_bytes: config.log_segment_size.next_multiple_of(4096),
            journal: JournalKind::parse(&config.journal).map_err(|error| format!("journal: {error}"))?,
            journal_key_file: Some(&config.journal_key_file)
                .filter(|path| !path.is_empty())
                .map(PathBuf::from),
            snapshots: Schedule::of(config),
            recover_to: match config.recover_to.as_str() {
                "" => None,
                text => Some(text.parse().map_err(|error| format!("recover-to: {error}"))?),
            },
            replica_listen: replica_listen(&config.replica_listen, &config.bind)?,
            replicaof: replicaof(&config.replicaof)?,
            replication_secret: replication_secret(&config.replication_secret_file)?,
            datagrams: Datagrams::read(config)?,
            replica_max_lag: config.replica_max_lag,
            repl_backlog_bytes: config.repl_backlog_size,
            warms_fully: config.warm == "full",
            warm_rate: config.warm_rate,
            pin,
            uring: UringOptions {
                ring: RingOptions {
                    single_issuer: config.uring_single_issuer,
                    defer_taskrun: config.uring_defer_taskrun,
                    no_sqarray: config.uring_no_sqarray,
                    registered_ring: config.uring_registered_ring,
                    ..RingOptions::default()
                },
                max_connections,
                multishot_accept: config.uring_multishot_accept,
                multishot_receive: config.uring_multishot_receive,
                provided_buffers: config.uring_provided_buffers,
                buffer_count: buffer_count(config.uring_provided_buffers_count)
                    .map_err(|error| format!("uring-provided-buffers-count: {error}"))?,
                buffer_size: config.uring_provided_buffer_size,
                direct_descriptors: config.uring_direct_descriptors,
                min_wait_us: config.uring_min_wait_us,
            },
            epoll: EpollOptions { max_connections },
        };
        if launch.pin.len() > launch.shards {
            let (cores, shards) = (launch.pin.len(), launch.shards);
            return Err(format!(
                "pin: {cores} cores for {shards} shard{}; name one core for each, or ask for more shards",
                if shards == 1 { "" } else { "s" }
            ));
        }
        if launch.bind.is_empty() && launch.unix.is_none() {
            return Err("bind and unixsocket are both empty: nothing would listen".into());
        }
        Ok(launch)
    }
}

fn cores(text: &str) -> Result<Vec<usize>, String> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let list = text.split_ascii_whitespace().collect::<Vec<_>>().join(",");
    crate::cpu::parse_core_list(&list)
        .ok_or_else(|| format!("{text:?} is no list of cores, as 0 or 1,3 or 4-7"))
}

/// How many shards: as many as was said, or one for each core.
fn shards(text: &str, pin: &[usize]) -> Result<usize, String> {
    match text.trim() {
        "" if pin.is_empty() => Ok(crate::cpu::allowed_cores().len().clamp(1, SHARDS_MAX)),
        "" => Ok(pin.len().min(SHARDS_MAX)),
        text => match text.parse() {
            Ok(0) => Err("0 shards would own no key and serve nobody; ask for 1 or more".into()),
            Ok(count) if count <= SHARDS_MAX => Ok(count),
            Ok(count) => Err(format!("{count} are more than the {SHARDS_MAX} a server can have")),
            Err(_) => Err(format!("{text:?} is no number from 1 to {SHARDS_MAX}")),
        },
    }
}

fn buffer_count(count: u32) -> Result<u16, String> {
    match u16::try_from(count) {
        Ok(count) if count.is_power_of_two() => Ok(count),
        _ => Err(format!("{count} is no power of two up to 32768")),
    }
}

/// Addresses as Redis writes them: `127.0.0.1 -::1`, `*` for every IPv4 and `::*` for every IPv6 address.
fn binds(text: &str) -> Result<Vec<Bind>, String> {
    let bind = |word: &str| {
        let (name, optional) = match word.strip_prefix('-') {
            Some(name) => (name, true),
            None => (word, false),
        };
        let address = match name {
            "*" => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            "::*" => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
            name => name.parse().map_err(|_| format!("{name:?} is no IP address"))?,
        };
        Ok(Bind { address, optional })
    };
    text.split_ascii_whitespace().map(bind).collect()
}

/// Where replicas connect: a port, or an address and a port.
fn replica_listen(text: &str, bind: &str) -> Result<Option<SocketAddr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    if let Ok(port) = text.parse::<u16>() {
        let bind = binds(bind).map_err(|error| format!("bind: {error}"))?;
        let first = bind.first().ok_or("replica-listen: bind names no address; write ADDRESS:PORT")?;
        return Ok(Some(SocketAddr::new(first.address, port)));
    }
    text.parse().map(Some).map_err(|_| {
        format!(
            "replica-listen: expected a port or ADDRESS:PORT, such as 16379 or 10.0.0.1:16379, found {text:?}"
        )
    })
}

/// Of an IPv6 address.
fn without_brackets(host: &str) -> &str {
    host.trim_matches(['[', ']', ' '])
}

/// Whom to follow.
fn replicaof(text: &str) -> Result<Option<(String, u16)>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let text = text.trim();
    // As Redis writes it in its file, too: then a colon before the blank is an IPv6 address's.
    let with_blank = text
        .rsplit_once(' ')
        .filter(|(host, _)| !host.contains(':') || without_brackets(host).parse::<Ipv6Addr>().is_ok());
    let found = with_blank
        .or_else(|| text.rsplit_once(':'))
        .and_then(|(host, port)| Some((without_brackets(host), port.trim().parse().ok()?)));
    match found.filter(|(host, port)| !host.is_empty() && *port > 0) {
        Some((host, port)) => Ok(Some((host.into(), port))),
        None => Err(format!(
            "replicaof: expected HOST:PORT or \"HOST PORT\", such as 10.0.0.1:6379, found {text:?}"
        )),
    }
}

/// What the file holds that has the secret of replication.
fn replication_secret(path: &str) -> Result<Vec<u8>, String> {
    use std::os::unix::fs::PermissionsExt;
    if path.is_empty() {
        return Ok(Vec::new());
    }
    let wrong = |why: String| format!("replication-secret-file: {path}: {why}");
    let mode = std::fs::metadata(path).map_err(|error| wrong(error.to_string()))?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(wrong(format!("others may read it (mode {:o}); chmod 600 it", mode & 0o777)));
    }
    let bytes = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let secret = bytes.trim_ascii();
    if secret.len() < 16 {
        return Err(wrong(format!("expected a secret of at least 16 bytes, found {}", secret.len())));
    }
    Ok(secret.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serve(arguments: &[&str]) -> Settings {
        match from_arguments([&["millrace"], arguments].concat()) {
            Ok(Invocation::Serve(settings)) => *settings,
            other => panic!("{arguments:?}: {other:?}"),
        }
    }

    fn refused(arguments: &[&str]) -> String {
        let error = from_arguments([&["millrace"], arguments].concat()).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
        error.to_string()
    }

    fn file(name: &str, text: &str) -> String {
        let path = std::env::temp_dir().join(format!("millrace-{name}-{}.toml", std::process::id()));
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_string()
    }

    /// Found in review: `::1 6379` was taken apart at the address's last colon, and refused.
    #[test]
    fn the_primary_is_written_with_a_colon_or_a_blank() {
        for text in ["db-1:6379", "db-1 6379", "db-1: 6379", " db-1:6379 "] {
            assert_eq!(replicaof(text), Ok(Some(("db-1".into(), 6379))), "{text}");
        }
        for text in ["[::1]:6379", "::1:6379", "::1 6379", "[::1] 6379"] {
            assert_eq!(replicaof(text), Ok(Some(("::1".into(), 6379))), "{text}");
        }
        for text in ["10.0.0.1", ":6379", " 6379", "host:0", "host:port", "host:1 6379"] {
            assert!(replicaof(text).unwrap_err().contains("expected HOST:PORT"), "{text}");
        }
    }

    #[test]
    fn every_setting_is_a_flag_with_a_help_text() {
        command().debug_assert();
        let help = command().render_long_help().to_string();
        for setting in SETTINGS {
            assert!(help.contains(&format!("--{} ", setting.name)), "{}", setting.name);
            let summary: String =
                setting.summary.trim_end_matches('.').split(' ').take(3).collect::<Vec<_>>().join(" ");
            assert!(help.split_whitespace().collect::<Vec<_>>().join(" ").contains(&summary), "{summary}");
        }
    }

    #[test]
    fn the_defaults_are_those_of_the_table() {
        let settings = serve(&[]);
        for setting in SETTINGS {
            let value = (setting.get)(&settings.config);
            let mut again = Config::default();
            (setting.set)(&mut again, setting.default).unwrap();
            assert_eq!((setting.get)(&again), value, "{}", setting.name);
        }
        assert!(!settings.io_chosen);
        let launch = Launch::read(&settings.config).unwrap();
        assert_eq!((launch.port, launch.http_port), (6379, Some(8080)));
        assert_eq!(launch.uring, UringOptions::default());
        assert_eq!(launch.epoll, EpollOptions::default());
    }

    #[test]
    fn flags_go_before_the_file_and_the_file_before_the_defaults() {
        let path = file("precedence", "port = 7000\nhttp = false\nbind = [\"127.0.0.1\", \"-::1\"]\n");
        let launch = Launch::read(&serve(&["--config", &path, "--port", "7001"]).config).unwrap();
        assert_eq!((launch.port, launch.http_port, launch.clients_max), (7001, None, 10_000));
        let four = Bind { address: "127.0.0.1".parse().unwrap(), optional: false };
        let six = Bind { address: "::1".parse().unwrap(), optional: true };
        assert_eq!(launch.bind, [four, six]);
        let flags = serve(&["--bind", "127.0.0.1", "--bind", "-::1"]);
        assert_eq!(Launch::read(&flags.config).unwrap().bind, [four, six]);
    }

    #[test]
    fn the_driver_is_chosen_by_naming_it_anywhere() {
        assert!(serve(&["--io", "io_uring"]).io_chosen);
        assert!(serve(&["--config", &file("io", "io = \"epoll\"")]).io_chosen);
    }

    #[test]
    fn mistakes_in_the_file_are_named_with_their_line() {
        let at = |name: &str, text: &str| {
            let path = file(name, text);
            let error = refused(&["--config", &path]);
            let prefix = format!("error: {path}:");
            error.strip_prefix(&prefix).unwrap_or_else(|| panic!("{error}")).trim().to_string()
        };
        assert_eq!(at("near", "\nprot = 1\n"), "2: unknown setting \"prot\"; did you mean \"port\"?");
        assert_eq!(
            at("underscore", "http_port = 1"),
            "1: unknown setting \"http_port\"; did you mean \"http-port\"?"
        );
        assert!(at("far", "frobnicate = 1").ends_with("(`millrace --help` lists all)"));
        assert!(at("value", "# x\n\nport = \"many\"").starts_with("3: invalid value for port: "));
        assert!(at("table", "[server]\nport = 1").contains("unknown setting \"server\""));
        assert!(at("kind", "port = 1.5").starts_with("1: invalid value for port: a text, an integer"));
        assert!(at("syntax", "port = 1\nhttp-port = = 2\n").starts_with("2: "));
        assert!(at("twice", "port = 1\nport = 2\n").starts_with("2: "));
        let missing = refused(&["--config", "/no/such/file.toml"]);
        assert!(missing.contains("/no/such/file.toml: No such file"), "{missing}");
    }

    #[test]
    fn wrong_usage_is_refused_with_code_2() {
        for (arguments, says) in [
            (&["--prot", "1"][..], "--port"),
            (&["--port"], "--port"),
            (&["--port", "x"], "--port"),
            (&["--io", "kqueue"], "io"),
            (&["--pin", "a"], "pin"),
            (&["--pin", "0,1", "--shards", "1"], "pin: 2 cores for 1 shard;"),
            (&["--shards", "0"], "shards: 0 shards would own no key"),
            (&["--shards", "129"], "shards: 129 are more than the 128"),
            (&["--shards", "-1"], "shards: \"-1\" is no number from 1 to 128"),
            (&["--shards", "two"], "shards: \"two\" is no number"),
            (&["--hop-queue", "0"], "--hop-queue"),
            (&["topology", "--shards", "0"], "shards: 0 shards"),
            (&["topology", "--print-config"], "--print-config"),
            (&["--bind", "nowhere"], "bind"),
            (&["--bind", ""], "nothing would listen"),
            (&["--uring-provided-buffers-count", "500"], "power of two"),
            (&["stray"], "stray"),
        ] {
            let error = refused(arguments);
            assert!(error.contains(says), "{arguments:?}: {error}");
        }
    }

    #[test]
    fn there_is_a_shard_for_each_core_unless_told_otherwise() {
        let shards = |arguments: &[&str]| Launch::read(&serve(arguments).config).unwrap().shards;
        assert_eq!(shards(&[]), crate::cpu::allowed_cores().len().min(SHARDS_MAX));
        assert_eq!(shards(&["--pin", "0,2-4"]), 4);
        assert_eq!(shards(&["--pin", "0,1", "--shards", "3"]), 3);
        assert_eq!(shards(&["--shards", "128"]), 128);
    }

    #[test]
    fn topology_takes_the_flags_of_serving_on_either_side() {
        let path = file("topology", "shards = 3\nport = 7000\n");
        for arguments in [
            &["topology", "--config", &path, "--port", "7001"][..],
            &["--port", "7001", "topology", "--config", &path],
        ] {
            match from_arguments([&["millrace"], arguments].concat()) {
                Ok(Invocation::Topology(settings)) => {
                    let launch = Launch::read(&settings.config).unwrap();
                    assert_eq!((launch.shards, launch.port), (3, 7001));
                }
                other => panic!("{arguments:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn help_and_version_are_answers() {
        for flag in ["--help", "--version"] {
            assert_eq!(from_arguments(["millrace", flag]).unwrap_err().exit_code(), 0);
        }
    }

    #[test]
    fn what_is_printed_can_be_read_again() {
        let arguments = [
            "--port",
            "0",
            "--bind",
            "*",
            "--bind",
            "-::*",
            "--unixsocket",
            "/tmp/a \"b\"",
            "--print-config",
        ];
        let Ok(Invocation::Print(printed)) = from_arguments([&["millrace"], &arguments[..]].concat()) else {
            panic!("not printed")
        };
        let settings = serve(&["--config", &file("printed", &printed)]);
        assert_eq!(to_toml(&settings.config), printed);
        let launch = Launch::read(&settings.config).unwrap();
        assert_eq!((launch.port, launch.bind.len()), (0, 2));
        assert_eq!(launch.unix, Some(PathBuf::from("/tmp/a \"b\"")));
    }

    #[test]
    fn distances_are_levenshteins() {
        assert_eq!(distance("port", "port"), 0);
        assert_eq!(distance("prot", "port"), 2);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("max_clients", "maxclients"), 1);
        assert_eq!(distance("http_port", "http-port"), 0);
    }
}
