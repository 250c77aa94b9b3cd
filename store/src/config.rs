//! The settings: one table that the command line, the configuration file, CONFIG GET and SET and the
//! documentation are read from.
//!
//! A setting that Redis has keeps its name, its syntax and its errors. A value is text outside and typed
//! inside; [`Setting::set`] is the only way from one to the other, so a [`Config`] cannot hold what its table
//! forbids.

use crate::eviction::EvictionPolicy;
use crate::session::Peer;
use alloc::format;
use alloc::string::{String, ToString};

/// What a value may look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A whole number.
    Integer {
        /// The smallest.
        min: i64,
        /// The greatest.
        max: i64,
    },
    /// A number of bytes: `100`, `100k` (thousands), `100kb` (1024s), and so with m and g.
    Memory {
        /// The smallest.
        min: u64,
        /// The greatest.
        max: u64,
    },
    /// `yes` or `no`
    Switch,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Anything.
    Text,
    /// Only this: the feature is not there, but tools ask for it.
    Only(&'static str),
}

/// One entry of the table.
pub struct Setting {
    /// As in the file and behind `--`.
    pub name: &'static str,
    /// What a value may look like.
    pub kind: Kind,
    /// The value where nobody gave one.
    pub default: &'static str,
    /// Whether CONFIG SET may change it.
    pub mutable: bool,
    /// What it is for, in a sentence.
    pub summary: &'static str,
    /// The current value, as CONFIG GET shows it.
    pub get: fn(&Config) -> String,
    /// Changes it, or says what was expected, in Redis' words.
    pub set: fn(&mut Config, &str) -> Result<(), String>,
}

/// A type that a setting can have.
trait Value: Sized {
    fn parse(text: &str, kind: Kind) -> Result<Self, String>;
    fn show(&self) -> String;
}

macro_rules! number_value {
    ($($number:ty),*) => {$(
        impl Value for $number {
            fn parse(text: &str, kind: Kind) -> Result<Self, String> {
                parse_number(text, kind)?.try_into().map_err(|_| String::from("argument is out of range"))
            }
            fn show(&self) -> String {
                self.to_string()
            }
        }
    )*};
}
number_value!(u16, u32, u64, i64, usize);

impl Value for bool {
    fn parse(text: &str, _: Kind) -> Result<Self, String> {
        match text {
            _ if text.eq_ignore_ascii_case("yes") => Ok(true),
            _ if text.eq_ignore_ascii_case("no") => Ok(false),
            _ => Err("argument must be 'yes' or 'no'".into()),
        }
    }
    fn show(&self) -> String {
        if *self { "yes".into() } else { "no".into() }
    }
}

impl Value for String {
    fn parse(text: &str, kind: Kind) -> Result<Self, String> {
        match kind {
            Kind::Choice(words) => choose(text, words).map(String::from),
            Kind::Only("no") if !text.eq_ignore_ascii_case("no") && !text.eq_ignore_ascii_case("yes") => {
                Err("argument must be 'yes' or 'no'".into())
            }
            Kind::Only(only) if text.eq_ignore_ascii_case(only) => Ok(only.into()),
            Kind::Only(only) => Err(format!(
                "only '{only}' is possible: durability says whether there is a log, snapshot-log-bytes and \
                 snapshot-interval when snapshots are taken"
            )),
            _ => Ok(text.into()),
        }
    }
    fn show(&self) -> String {
        self.clone()
    }
}

impl Value for EvictionPolicy {
    fn parse(text: &str, kind: Kind) -> Result<Self, String> {
        let Kind::Choice(words) = kind else { return Err("not a choice".into()) };
        let word = choose(text, words)?;
        EvictionPolicy::parse(word).ok_or_else(|| "unknown policy".into())
    }
    fn show(&self) -> String {
        self.name().into()
    }
}

/// Who may use DEBUG.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DebugAccess {
    /// Nobody.
    No,
    /// Everybody.
    Yes,
    /// Clients on this machine.
    Local,
}

impl DebugAccess {
    /// Whether this client may.
    pub fn allows(self, peer: &Peer) -> bool {
        let local = peer.unix || peer.address.starts_with("127.") || peer.address.starts_with("[::1]");
        self == DebugAccess::Yes || (self == DebugAccess::Local && local)
    }
}

impl Value for DebugAccess {
    fn parse(text: &str, kind: Kind) -> Result<Self, String> {
        let Kind::Choice(words) = kind else { return Err("not a choice".into()) };
        Ok(match choose(text, words)? {
            "yes" => DebugAccess::Yes,
            "local" => DebugAccess::Local,
            _ => DebugAccess::No,
        })
    }
    fn show(&self) -> String {
        match self {
            DebugAccess::No => "no",
            DebugAccess::Yes => "yes",
            DebugAccess::Local => "local",
        }
        .into()
    }
}

/// The word of `words` that `text` is, in any case.
fn choose(text: &str, words: &'static [&'static str]) -> Result<&'static str, String> {
    words
        .iter()
        .find(|word| word.eq_ignore_ascii_case(text))
        .copied()
        .ok_or_else(|| format!("argument(s) must be one of the following: {}", words.join(", ")))
}

fn parse_number(text: &str, kind: Kind) -> Result<i128, String> {
    let (value, min, max) = match kind {
        Kind::Memory { min, max } => {
            let value = parse_memory(text).ok_or("argument must be a memory value")?;
            (i128::from(value), i128::from(min), i128::from(max))
        }
        Kind::Integer { min, max } => {
            let value = crate::protocol::resp::parse_integer(text.as_bytes());
            (i128::from(value.ok_or("argument couldn't be parsed into an integer")?), min.into(), max.into())
        }
        _ => return Err("not a number".into()),
    };
    if value < min || value > max {
        return Err(format!("argument must be between {min} and {max} inclusive"));
    }
    Ok(value)
}

/// A number of bytes as Redis writes them.
pub fn parse_memory(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let unit: u64 = match text[digits..].to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" => 1000,
        "kb" => 1 << 10,
        "m" => 1_000_000,
        "mb" => 1 << 20,
        "g" => 1_000_000_000,
        "gb" => 1 << 30,
        _ => return None,
    };
    if digits == 0 {
        // Redis reads no digits as zero.
        return Some(0);
    }
    text[..digits].parse::<u64>().ok()?.checked_mul(unit)
}

/// `field: type = "name", kind, "default", fixed|mutable, "summary";` makes the field, the table entry and the
/// default in one place.
macro_rules! settings {
    (@mutable fixed) => { false };
    (@mutable mutable) => { true };
    ($($field:ident: $type:ty = $name:literal, $kind:expr, $default:literal, $change:ident, $summary:literal;)*) => {
        /// The value of every setting.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Config {
            $(#[doc = $summary] pub $field: $type,)*
        }

        /// Every setting, in the order of the documentation.
        pub const SETTINGS: &[Setting] = &[$(Setting {
            name: $name,
            kind: $kind,
            default: $default,
            mutable: settings!(@mutable $change),
            summary: $summary,
            get: |config| Value::show(&config.$field),
            set: |config, text| {
                config.$field = Value::parse(text, $kind)?;
                Ok(())
            },
        },)*];

        impl Default for Config {
            /// Every setting at the default of the table.
            fn default() -> Config {
                Config {
                    $($field: <$type as Value>::parse($default, $kind).expect("the table's default is valid"),)*
                }
            }
        }
    };
}

/// The greatest memory value: a third of what an address can name.
const MEMORY_MAX: u64 = i64::MAX as u64;

const POLICIES: Kind = Kind::Choice(&[
    "volatile-lru",
    "volatile-lfu",
    "volatile-random",
    "volatile-ttl",
    "allkeys-lru",
    "allkeys-lfu",
    "allkeys-random",
    "noeviction",
]);

settings! {
    port: u16 = "port", Kind::Integer { min: 0, max: 65_535 }, "6379", fixed, "TCP port for RESP; 0 takes a free one.";
    bind: String = "bind", Kind::Text, "127.0.0.1", fixed, "Addresses to listen on, separated by spaces.";
    unixsocket: String = "unixsocket", Kind::Text, "", fixed, "Path of a Unix socket for RESP; empty: none.";
    http_port: u16 = "http-port", Kind::Integer { min: 0, max: 65_535 }, "8080", fixed, "TCP port for HTTP; 0 takes a free one.";
    http: bool = "http", Kind::Switch, "yes", fixed, "Whether to listen for HTTP.";
    http_allowed_hosts: String = "http-allowed-hosts", Kind::Text, "", mutable, "Host names HTTP requests may carry beside IP literals and localhost, separated by spaces; * allows any.";
    dir: String = "dir", Kind::Text, ".", fixed, "Directory of the data files.";
    maxmemory: u64 = "maxmemory", Kind::Memory { min: 0, max: MEMORY_MAX }, "0", mutable, "Bytes that keys, values, index and buffers may take; 0: no limit.";
    maxmemory_policy: EvictionPolicy = "maxmemory-policy", POLICIES, "noeviction", mutable, "Which keys make room when maxmemory is reached.";
    maxmemory_samples: u32 = "maxmemory-samples", Kind::Integer { min: 1, max: 2_147_483_647 }, "5", mutable, "Keys compared for one eviction.";
    lfu_log_factor: u32 = "lfu-log-factor", Kind::Integer { min: 0, max: 2_147_483_647 }, "10", mutable, "How slowly the use counter saturates.";
    lfu_decay_time: u32 = "lfu-decay-time", Kind::Integer { min: 0, max: 2_147_483_647 }, "1", mutable, "Minutes after which the use counter loses one.";
    maxclients: u32 = "maxclients", Kind::Integer { min: 1, max: 4_294_967_295 }, "10000", mutable, "Connections at the same time.";
    requirepass: String = "requirepass", Kind::Text, "", mutable, "The password; empty: none.";
    timeout: u32 = "timeout", Kind::Integer { min: 0, max: 2_147_483_647 }, "0", mutable, "Seconds after which a silent client is closed; 0: never.";
    tcp_backlog: u32 = "tcp-backlog", Kind::Integer { min: 0, max: 2_147_483_647 }, "4096", fixed, "Connections waiting to be accepted.";
    tcp_keepalive: u32 = "tcp-keepalive", Kind::Integer { min: 0, max: 2_147_483_647 }, "300", mutable, "Seconds between probes of a silent peer; 0: none.";
    databases: u32 = "databases", Kind::Integer { min: 1, max: 1 }, "1", fixed, "Number of databases; there is one.";
    shards: String = "shards", Kind::Text, "", fixed, "Threads that each own a part of the keys, up to 128; empty: one for each core that pin names, or that this process may use.";
    hop_queue: u32 = "hop-queue", Kind::Integer { min: 1, max: 1_048_576 }, "1024", fixed, "Messages that may be on their way from one shard to another.";
    pin: String = "pin", Kind::Text, "", fixed, "Cores for the shards in order, such as 0 or 0,2-5; empty: one shard is not pinned, several are, each to a core of its own where there are enough.";
    io: String = "io", Kind::Choice(&["io_uring", "epoll"]), "io_uring", fixed, "How the kernel is talked to.";
    durability: String = "durability", Kind::Choice(&["always", "everysec", "off"]), "always", fixed, "What an acknowledged write survives; always: everything but the loss of the disk; everysec: the same, but for the last second; off: there is no log.";
    log_write_mode: String = "log-write-mode", Kind::Choice(&["direct", "dsync", "fdatasync"]), "direct", fixed, "How a block of the log becomes durable: past the page cache, through it, or by a flush behind the write.";
    log_segment_size: u64 = "log-segment-size", Kind::Memory { min: 1 << 20, max: 1 << 30 }, "16mb", fixed, "Bytes of one file of the log.";
    journal: String = "journal", Kind::Choice(&["native", "sqlcipher"]), "native", fixed, "What the log is kept in; native: files of blocks; sqlcipher: a database that is encrypted at rest, in a build with the feature of that name.";
    journal_key_file: String = "journal-key-file", Kind::Text, "", fixed, "File with the key of the encrypted log, which nobody else may read: 64 hexadecimal digits or a passphrase; empty: the environment variable MILLRACE_JOURNAL_KEY has the key.";
    recover_to: String = "recover-to", Kind::Text, "", fixed, "Recover to this LSN or RFC 3339 time and leave out for good what is behind it; empty: everything.";
    warm: String = "warm", Kind::Choice(&["background", "full"]), "background", fixed, "When a snapshot that the server starts from is read in; background: behind the traffic; full: before anybody is served.";
    warm_rate: u64 = "warm-rate", Kind::Memory { min: 0, max: MEMORY_MAX }, "512mb", fixed, "Bytes a second of a snapshot that are read in behind the traffic; 0: as fast as disk and traffic let them.";
    output_buffer_max: usize = "output-buffer-max", Kind::Memory { min: 65_536, max: MEMORY_MAX }, "64mb", mutable, "Bytes of replies one client may leave unread before it is closed.";
    proto_max_bulk_len: u64 = "proto-max-bulk-len", Kind::Memory { min: 1_048_576, max: 1 << 30 }, "512mb", mutable, "The longest argument.";
    client_query_buffer_limit: usize = "client-query-buffer-limit", Kind::Memory { min: 1_048_576, max: 4_000_000_000 }, "1gb", mutable, "Bytes of one client's commands that are not executed yet.";
    slowlog_log_slower_than: i64 = "slowlog-log-slower-than", Kind::Integer { min: -1, max: i64::MAX }, "10000", mutable, "Microseconds from which a command is kept in the slow log; -1: none is.";
    slowlog_max_len: u64 = "slowlog-max-len", Kind::Integer { min: 0, max: i64::MAX }, "128", mutable, "Entries the slow log keeps.";
    latency_monitor_threshold: u64 = "latency-monitor-threshold", Kind::Integer { min: 0, max: i64::MAX }, "0", mutable, "Milliseconds from which an event is kept for LATENCY; 0: none is.";
    tracking_table_max_pairs: u64 = "tracking-table-max-pairs", Kind::Integer { min: 1, max: 4_000_000_000 }, "1000000", mutable, "Pairs of a key and a client that read it which client tracking keeps; beyond that clients are told of keys that have not changed. As many prefixes are kept at most.";
    invalidation_backlog: usize = "invalidation-backlog", Kind::Memory { min: 0, max: MEMORY_MAX }, "1mb", mutable, "Bytes of changes that each shard keeps for streams of invalidations over HTTP to come back to.";
    stage_sampling: u32 = "stage-sampling", Kind::Integer { min: 0, max: 1_000_000_000 }, "32", mutable, "One batch of requests in so many, on average, has its way through the server timed stage by stage, for INFO stages and /metrics; 0: none.";
    hz: u32 = "hz", Kind::Integer { min: 0, max: 2_147_483_647 }, "10", mutable, "Accepted for Redis' sake: background work is done in every turn.";
    snapshot_log_bytes: u64 = "snapshot-log-bytes", Kind::Memory { min: 0, max: MEMORY_MAX }, "1gb", mutable, "Bytes of log since the last snapshot that start one; 0: none do.";
    snapshot_interval: u64 = "snapshot-interval", Kind::Integer { min: 0, max: 2_147_483_647 }, "0", mutable, "Seconds since the last snapshot after which one is taken, if something has changed; 0: never.";
    snapshot_on_shutdown: bool = "snapshot-on-shutdown", Kind::Switch, "no", mutable, "Whether a server that is asked to end takes a snapshot first, so that the next start has no log to read.";
    snapshot_keep: u32 = "snapshot-keep", Kind::Integer { min: 1, max: 1000 }, "2", mutable, "Snapshots kept; the log goes back to the oldest of them once there are so many.";
    replica_listen: String = "replica-listen", Kind::Text, "", fixed, "Where replicas connect: a port, on the first address of bind, or ADDRESS:PORT; 0 takes a free one; empty: the server takes no replicas.";
    replicaof: String = "replicaof", Kind::Text, "", fixed, "The primary to follow, as HOST:PORT with its port for RESP; empty: none, this server writes.";
    replication_secret_file: String = "replication-secret-file", Kind::Text, "", fixed, "File with the secret that all nodes share, which nobody else may read; empty: none, and whoever reaches the port can follow.";
    replica_max_lag: u64 = "replica-max-lag", Kind::Integer { min: 0, max: 86_400_000 }, "0", mutable, "Milliseconds a replica may be behind its primary and still answer reads; 0: any.";
    repl_backlog_size: usize = "replica-backlog-size", Kind::Memory { min: 65_536, max: MEMORY_MAX }, "64mb", fixed, "Bytes of the newest records kept in memory for replicas; older ones are read from the log.";
    delta_udp: String = "delta-udp", Kind::Text, "", fixed, "Where records are sent as datagrams, too: a multicast group as GROUP:PORT, or the addresses of replicas as HOST:PORT, separated by spaces or commas; empty: nowhere.";
    delta_udp_listen: String = "delta-udp-listen", Kind::Text, "", fixed, "Where a replica takes datagrams: the multicast group, which it joins, or an address of its own, with the port; empty: it takes everything over TCP.";
    delta_udp_interface: String = "delta-udp-interface", Kind::Text, "", fixed, "Address of the interface for multicast; empty: the system chooses.";
    delta_udp_rate: u64 = "delta-udp-rate", Kind::Memory { min: 0, max: MEMORY_MAX }, "0", fixed, "Bytes a second that datagrams take at most; what it holds back too long goes over TCP; 0: no bound.";
    save: String = "save", Kind::Only(""), "", mutable, "Redis' schedule of snapshots; see snapshot-log-bytes and snapshot-interval.";
    appendonly: String = "appendonly", Kind::Only("no"), "no", mutable, "Redis' log; CONFIG GET says yes where durability is not off.";
    enable_debug_command: DebugAccess = "enable-debug-command", Kind::Choice(&["no", "yes", "local"]), "no", fixed, "Who may use DEBUG.";
    uring_defer_taskrun: bool = "uring-defer-taskrun", Kind::Switch, "yes", fixed, "io_uring: completions are processed only when we wait.";
    uring_single_issuer: bool = "uring-single-issuer", Kind::Switch, "yes", fixed, "io_uring: one thread alone submits; off also ends uring-defer-taskrun.";
    uring_no_sqarray: bool = "uring-no-sqarray", Kind::Switch, "yes", fixed, "io_uring: submissions without the array of indices.";
    uring_multishot_accept: bool = "uring-multishot-accept", Kind::Switch, "yes", fixed, "io_uring: one accept serves many connections.";
    uring_multishot_receive: bool = "uring-multishot-receive", Kind::Switch, "yes", fixed, "io_uring: one receive serves many messages.";
    uring_provided_buffers: bool = "uring-provided-buffers", Kind::Switch, "yes", fixed, "io_uring: connections share receive buffers; off: each has its own, and uring-multishot-receive ends.";
    uring_provided_buffers_count: u32 = "uring-provided-buffers-count", Kind::Integer { min: 1, max: 32_768 }, "512", fixed, "io_uring: receive buffers shared by all connections.";
    uring_provided_buffer_size: u32 = "uring-provided-buffer-size", Kind::Integer { min: 64, max: 1_048_576 }, "16384", fixed, "io_uring: bytes of each.";
    uring_registered_ring: bool = "uring-registered-ring", Kind::Switch, "yes", fixed, "io_uring: the ring's descriptor is registered.";
    uring_direct_descriptors: bool = "uring-direct-descriptors", Kind::Switch, "no", fixed, "io_uring: connections live in the ring's own descriptor table.";
    uring_min_wait_us: u32 = "uring-min-wait-us", Kind::Integer { min: 0, max: 1_000_000 }, "0", fixed, "io_uring: microseconds to wait for more completions.";
}

impl Setting {
    /// The setting of this name, in any case.
    pub fn find(name: &[u8]) -> Option<&'static Setting> {
        SETTINGS.iter().find(|setting| setting.name.as_bytes().eq_ignore_ascii_case(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_reads_back_what_it_shows() {
        let config = Config::default();
        for setting in SETTINGS {
            let mut changed = config.clone();
            (setting.set)(&mut changed, &(setting.get)(&config)).unwrap();
            assert_eq!(changed, config, "{}", setting.name);
        }
    }

    #[test]
    fn names_are_unique_and_in_lower_case() {
        for (at, setting) in SETTINGS.iter().enumerate() {
            assert_eq!(setting.name, setting.name.to_ascii_lowercase());
            assert!(SETTINGS[..at].iter().all(|other| other.name != setting.name), "{} twice", setting.name);
        }
    }

    #[test]
    fn memory_is_read_as_redis_reads_it() {
        assert_eq!(parse_memory("100mb"), Some(100 << 20));
        assert_eq!(parse_memory("100M"), Some(100_000_000));
        assert_eq!(parse_memory("7"), Some(7));
        assert_eq!(parse_memory("7x"), None);
        assert_eq!(parse_memory("-1"), None);
        assert_eq!(parse_memory("99999999999999999999"), None);
    }

    #[test]
    fn a_bad_value_changes_nothing_and_says_what_was_expected() {
        let mut config = Config::default();
        let set = |config: &mut Config, name: &str, text: &str| {
            (Setting::find(name.as_bytes()).unwrap().set)(config, text).unwrap_err()
        };
        assert_eq!(
            set(&mut config, "maxclients", "0"),
            "argument must be between 1 and 4294967295 inclusive"
        );
        assert_eq!(set(&mut config, "maxmemory", "1x"), "argument must be a memory value");
        assert_eq!(set(&mut config, "timeout", "a"), "argument couldn't be parsed into an integer");
        assert_eq!(set(&mut config, "uring-defer-taskrun", "1"), "argument must be 'yes' or 'no'");
        assert_eq!(config, Config::default());
    }
}
