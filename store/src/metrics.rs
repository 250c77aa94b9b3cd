//! The counters, and one table that names them: INFO and Prometheus are both read from it.
//!
//! Each shard counts for itself. What is shown is the whole server, merged as the table says while all shards are in
//! one hand; [`SHARD_FIGURES`] are shown of each shard as well.
//!
//! Counters of the core are incremented where the thing happens. Those of the loop (`loop_*`) are copied in by
//! the driver once a turn. Bounds that were reached have a counter each, so that nothing is dropped, refused
//! or cut without a trace.

use crate::command::COMMANDS;
use crate::engine::Shared;
use crate::image::warm::WarmProgress;
use crate::pubsub::Space;
use crate::slowlog::merged_slowlog;
use crate::stages::{self, StageFigures};
use crate::time::Nanos;
use crate::tracking::Table;
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

/// Kinds of error replies counted apart; more are counted as one.
const ERROR_KINDS_MAX: usize = 128;

/// Powers of two of microseconds that command times are sorted into.
pub const TIME_BUCKETS: usize = 32;

/// What is known of one command.
#[derive(Clone, Debug, Default)]
pub struct CommandStats {
    /// Times it was executed.
    pub calls: u64,
    /// Time it took, in all.
    pub nanos: u64,
    /// Times it was refused before it was executed.
    pub rejected: u64,
    /// Times it answered with an error.
    pub failed: u64,
    /// Calls by the power of two of the microseconds they took.
    pub histogram: Option<Box<[u64; TIME_BUCKETS]>>,
}

impl CommandStats {
    /// Adds what another shard knows of the same command.
    fn add(&mut self, other: &CommandStats) {
        self.calls += other.calls;
        self.nanos += other.nanos;
        self.rejected += other.rejected;
        self.failed += other.failed;
        if let Some(histogram) = &other.histogram {
            let sums = self.histogram.get_or_insert_with(|| Box::new([0; TIME_BUCKETS]));
            sums.iter_mut().zip(histogram.iter()).for_each(|(sum, count)| *sum += count);
        }
    }
}

/// How the log is and what it has done, as the driver last looked.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogFigures {
    /// `open`, `full`, `failed` or `closed`; empty: nobody has looked yet.
    pub state: &'static str,
    /// Records written.
    pub records: u64,
    /// Bytes of the blocks they stand in.
    pub bytes: u64,
    /// Write operations.
    pub writes: u64,
    /// Times something was made durable.
    pub flushes: u64,
    /// Time that took, in all.
    pub flush_us_total: u64,
    /// Bytes of memory of records that are not durable yet.
    pub pending_bytes: u64,
    /// `[n]`: batches of 2^(n-1) to 2^n - 1 records.
    pub batch_records: [u64; 24],
    /// `[n]`: flushes that took 2^(n-1) to 2^n - 1 microseconds; the last also what took longer.
    pub flush_us: [u64; 24],
}

impl LogFigures {
    /// Counts by power of two as INFO shows them: how many up to which value, empty ones left out.
    pub(crate) fn histogram_text(counts: &[u64]) -> String {
        let filled = counts.iter().enumerate().filter(|(_, count)| **count > 0);
        let parts: Vec<String> = filled.map(|(at, count)| format!("{}={count}", (1u64 << at) - 1)).collect();
        parts.join(",")
    }
}

/// The log's figures, whichever shard looked last.
pub(crate) fn log_figures(shared: &Shared) -> LogFigures {
    let looked = shared.all().map(|shard| &shard.metrics.log);
    looked
        .max_by_key(|figures| (figures.records, figures.flushes, figures.state.len()))
        .copied()
        .unwrap_or_default()
}

/// Everything that is counted and not counted elsewhere.
#[derive(Debug)]
pub struct Metrics {
    /// By place in the command table.
    pub commands: Vec<CommandStats>,
    /// Error replies by their code.
    pub errors: BTreeMap<Box<[u8]>, u64>,
    /// Commands executed.
    pub commands_processed: u64,
    /// Error replies.
    pub error_replies: u64,
    /// Connections accepted.
    pub connections_received: u64,
    /// Connections refused for `maxclients`.
    pub connections_rejected: u64,
    /// Bytes received from clients.
    pub input_bytes: u64,
    /// Bytes given to the driver to send.
    pub output_bytes: u64,
    /// Requests that broke the protocol.
    pub protocol_errors: u64,
    /// Clients closed for output they did not read.
    pub output_limit_disconnections: u64,
    /// Clients closed for input that made no command.
    pub query_limit_disconnections: u64,
    /// Clients closed for silence.
    pub timeout_disconnections: u64,
    /// Times a client's commands waited because it did not read.
    pub output_pauses: u64,
    /// Commands refused for `maxmemory`.
    pub oom_rejections: u64,
    /// Commands the store had no room for though `maxmemory` allowed them.
    pub store_refusals: u64,
    /// Messages published.
    pub messages_published: u64,
    /// HTTP requests.
    pub http_requests: u64,
    /// HTTP responses with a status of 400 to 499.
    pub http_responses_4xx: u64,
    /// HTTP responses with a status of 500 to 599.
    pub http_responses_5xx: u64,
    /// The most bytes `maxmemory` ever counted.
    pub used_memory_peak: u64,
    /// When it was last looked at.
    pub(crate) peak_noted: Nanos,
    /// Turns of the loop (from the driver).
    pub loop_turns: u64,
    /// System calls that submitted or waited (from the driver).
    pub loop_enters: u64,
    /// Completions or readiness events (from the driver).
    pub loop_events: u64,
    /// The longest turn in nanoseconds, waiting excluded (from the driver).
    pub loop_turn_nanos_max: u64,
    /// Nanoseconds spent in turns, waiting excluded (from the driver).
    pub loop_busy_nanos: u64,
    /// Times no receive buffer was free (from the driver).
    pub loop_buffer_exhaustions: u64,
    /// Sends that took only a part of what they were given (from the driver).
    pub loop_short_sends: u64,
    /// Bytes of the process in memory (from the driver).
    pub process_resident_bytes: u64,
    /// Processor time of the process in user mode, microseconds (from the driver).
    pub process_user_us: u64,
    /// Processor time of the process in the kernel, microseconds (from the driver).
    pub process_system_us: u64,
    /// The log's own figures (from the driver).
    pub log: LogFigures,
    /// How far the snapshot is read in that the server started from.
    pub warm: WarmProgress,
    /// Where the time of requests went.
    pub stages: StageFigures,
    /// Commands executed when the rate was last computed, and when that was.
    rate_mark: (u64, Nanos),
    /// Commands per second, lately.
    pub commands_per_second: u64,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics {
            commands: vec![CommandStats::default(); COMMANDS.len()],
            errors: BTreeMap::new(),
            commands_processed: 0,
            error_replies: 0,
            connections_received: 0,
            connections_rejected: 0,
            input_bytes: 0,
            output_bytes: 0,
            protocol_errors: 0,
            output_limit_disconnections: 0,
            query_limit_disconnections: 0,
            timeout_disconnections: 0,
            output_pauses: 0,
            oom_rejections: 0,
            store_refusals: 0,
            messages_published: 0,
            http_requests: 0,
            http_responses_4xx: 0,
            http_responses_5xx: 0,
            used_memory_peak: 0,
            peak_noted: Nanos(0),
            loop_turns: 0,
            loop_enters: 0,
            loop_events: 0,
            loop_turn_nanos_max: 0,
            loop_busy_nanos: 0,
            loop_buffer_exhaustions: 0,
            loop_short_sends: 0,
            process_resident_bytes: 0,
            process_user_us: 0,
            process_system_us: 0,
            log: LogFigures::default(),
            warm: WarmProgress::default(),
            stages: StageFigures::default(),
            rate_mark: (0, Nanos(0)),
            commands_per_second: 0,
        }
    }
}

impl Metrics {
    /// Adds `count` calls of a command that took `nanos` each.
    #[inline]
    pub fn note_time(&mut self, command: u16, each: Nanos, count: u64) {
        let stats = &mut self.commands[usize::from(command)];
        stats.nanos += each.0 * count;
        let bucket = (64 - (each.0 >> 10).leading_zeros() as usize).min(TIME_BUCKETS - 1);
        match &mut stats.histogram {
            Some(histogram) => histogram[bucket] += count,
            None => {
                let mut histogram = Box::new([0; TIME_BUCKETS]);
                histogram[bucket] = count;
                stats.histogram = Some(histogram);
            }
        }
    }

    /// Counts an error reply, which starts with `-`, by its code.
    #[cold]
    pub fn note_error(&mut self, reply: &[u8]) {
        self.error_replies += 1;
        let reply = reply.strip_prefix(b"-").unwrap_or(reply);
        let end = reply.iter().position(|&byte| byte == b' ' || byte == b'\r').unwrap_or(reply.len());
        let code = &reply[..end.min(32)];
        if let Some(count) = self.errors.get_mut(code) {
            *count += 1;
        } else if self.errors.len() < ERROR_KINDS_MAX {
            self.errors.insert(code.into(), 1);
        } else {
            *self.errors.entry(b"OTHER"[..].into()).or_default() += 1;
        }
    }

    /// Updates the rates; call it now and then.
    pub fn tick(&mut self, now: Nanos) {
        let elapsed = now.since(self.rate_mark.1).0;
        if elapsed >= 1_000_000_000 {
            let commands = self.commands_processed - self.rate_mark.0.min(self.commands_processed);
            self.commands_per_second = (u128::from(commands) * 1_000_000_000 / u128::from(elapsed)) as u64;
            self.rate_mark = (self.commands_processed, now);
        }
    }

    /// CONFIG RESETSTAT: sets to zero what only counts. What the driver copies in will be back; the longest turn is the
    /// longest since then.
    pub fn reset(&mut self) {
        *self = Metrics {
            rate_mark: (0, self.rate_mark.1),
            used_memory_peak: 0,
            loop_turns: self.loop_turns,
            loop_enters: self.loop_enters,
            loop_events: self.loop_events,
            loop_busy_nanos: self.loop_busy_nanos,
            loop_buffer_exhaustions: self.loop_buffer_exhaustions,
            loop_short_sends: self.loop_short_sends,
            process_resident_bytes: self.process_resident_bytes,
            process_user_us: self.process_user_us,
            process_system_us: self.process_system_us,
            log: self.log,
            warm: self.warm,
            ..Metrics::default()
        };
    }
}

/// What Prometheus calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// One entry of the table.
pub struct Metric {
    /// The name behind `millrace_`.
    pub name: &'static str,
    /// The section and field of INFO; empty where INFO has none.
    pub info: (&'static str, &'static str),
    /// What Prometheus calls it.
    pub kind: MetricKind,
    /// How the values of several shards become one.
    pub merge: Merge,
    /// One sentence.
    pub help: &'static str,
    /// The current value of one shard.
    pub get: fn(&Shared) -> u64,
}

/// How the values of several shards become that of the server.
#[derive(Clone, Copy, Debug)]
pub enum Merge {
    /// They are added.
    Sum,
    /// The greatest.
    Max,
    /// All are the same.
    Same,
    /// Computed from all shards at once.
    Whole(fn(&Shared) -> u64),
}

impl Metric {
    /// The value of the whole server, as far as it is in hand.
    pub fn value(&self, shared: &Shared) -> u64 {
        match self.merge {
            Sum => sum(shared, self.get),
            Max => shared.all().map(self.get).max().unwrap_or(0),
            Same => (self.get)(shared),
            Whole(compute) => compute(shared),
        }
    }
}

/// A number added up over all shards in hand.
pub fn sum(shared: &Shared, of: impl Fn(&Shared) -> u64) -> u64 {
    shared.all().map(of).sum()
}

/// A name may have listeners on several shards.
fn distinct_names(shared: &Shared, space: Space) -> u64 {
    if !shared.has_guests() {
        return shared.pubsub.names(space) as u64;
    }
    let names: BTreeSet<&[u8]> = shared.all().flat_map(|shard| shard.pubsub.matching(space, None)).collect();
    names.len() as u64
}

/// A figure of the table of client tracking.
fn tracked(shared: &Shared, figure: fn(&Table) -> usize) -> u64 {
    shared.keyspace.tracked().map_or(0, figure) as u64
}

/// Clients of several shards may have asked for the same prefix.
fn distinct_prefixes(shared: &Shared) -> u64 {
    let prefixes: BTreeSet<&[u8]> = shared.all().flat_map(|shard| shard.trackers.prefixes()).collect();
    prefixes.len() as u64
}

/// What is known of each command, of all shards in hand together.
pub fn merged_commands(shared: &Shared) -> Vec<CommandStats> {
    let mut merged = vec![CommandStats::default(); COMMANDS.len()];
    for shard in shared.all() {
        merged.iter_mut().zip(&shard.metrics.commands).for_each(|(into, of)| into.add(of));
    }
    merged
}

/// The error replies by their code, of all shards in hand together.
pub fn merged_errors(shared: &Shared) -> BTreeMap<&[u8], u64> {
    let mut merged = BTreeMap::new();
    for (code, count) in shared.all().flat_map(|shard| &shard.metrics.errors) {
        *merged.entry(&**code).or_default() += count;
    }
    merged
}

/// A figure that is also shown of each shard by itself.
pub struct ShardFigure {
    /// The field in INFO's lines; Prometheus says `millrace_shard_` before it, and `_total` behind a counter.
    pub name: &'static str,
    /// What Prometheus calls it.
    pub kind: MetricKind,
    /// One sentence.
    pub help: &'static str,
    /// The current value of one shard.
    pub get: fn(&Shared) -> u64,
}

/// What tells shards apart: an uneven load, hops that could be spared, who waits for whom.
#[rustfmt::skip]
pub const SHARD_FIGURES: &[ShardFigure] = &[
    ShardFigure { name: "keys", kind: Gauge, help: "Keys of a shard.", get: |s| s.keyspace.len() as u64 },
    ShardFigure { name: "clients", kind: Gauge, help: "Clients of a shard.", get: |s| s.clients as u64 },
    ShardFigure { name: "commands", kind: Counter, help: "Commands a shard executed.", get: |s| s.metrics.commands_processed },
    ShardFigure { name: "hops_sent", kind: Counter, help: "Batches of commands a shard sent to others.", get: |s| s.fleet.hops_sent },
    ShardFigure { name: "hop_commands_sent", kind: Counter, help: "Commands in them.", get: |s| s.fleet.hop_commands_sent },
    ShardFigure { name: "hops_served", kind: Counter, help: "Batches of others a shard executed.", get: |s| s.fleet.hops_served },
    ShardFigure { name: "queue_waits", kind: Counter, help: "Batches that waited because hop-queue were away.", get: |s| s.fleet.queue_waits },
    ShardFigure { name: "gathered", kind: Counter, help: "Commands over several shards that a shard executed.", get: |s| s.fleet.gathered_commands },
    ShardFigure { name: "times_lent", kind: Counter, help: "Times a shard was lent.", get: |s| s.fleet.times_lent },
    ShardFigure { name: "busy_nanoseconds", kind: Counter, help: "Time a shard spent in turns, waiting excluded.", get: |s| s.metrics.loop_busy_nanos },
    ShardFigure { name: "used_memory", kind: Gauge, help: "Bytes of a shard that maxmemory counts.", get: |s| s.used_memory() },
];

const fn metric(
    name: &'static str,
    info: (&'static str, &'static str),
    kind: MetricKind,
    merge: Merge,
    help: &'static str,
    get: fn(&Shared) -> u64,
) -> Metric {
    Metric { name, info, kind, merge, help, get }
}

use Merge::{Max, Same, Sum, Whole};
use MetricKind::{Counter, Gauge};

/// Every metric without labels.
#[rustfmt::skip]
pub const METRICS: &[Metric] = &[
    metric("connected_clients", ("clients", "connected_clients"), Gauge, Sum, "Clients connected.", |s| s.clients as u64),
    metric("maxclients", ("clients", "maxclients"), Gauge, Same, "Clients that may be connected.", |s| u64::from(s.config.maxclients)),
    metric("pubsub_clients", ("clients", "pubsub_clients"), Gauge, Sum, "Clients that listen to something.", |s| s.subscribers as u64),
    metric("tracking_clients", ("clients", "tracking_clients"), Gauge, Sum, "Clients with tracking on.", |s| s.trackers.clients() as u64),
    metric("client_buffer_bytes", ("memory", "mem_clients_normal"), Gauge, Sum, "Bytes of all input and output buffers.", |s| s.buffer_bytes as u64),
    metric("used_memory_bytes", ("memory", "used_memory"), Gauge, Sum, "Bytes that maxmemory counts: records, index and buffers.", |s| s.used_memory()),
    metric("used_memory_peak_bytes", ("memory", "used_memory_peak"), Gauge, Whole(peak_memory), "The most it ever was, looked at ten times a second.", |s| s.metrics.used_memory_peak),
    metric("maxmemory_bytes", ("memory", "maxmemory"), Gauge, Same, "The limit; 0 is none.", |s| s.config.maxmemory),
    metric("dataset_bytes", ("memory", "used_memory_dataset"), Gauge, Sum, "Bytes of live records and the index.", |s| s.keyspace.used_bytes() as u64),
    metric("process_resident_bytes", ("memory", "used_memory_rss"), Gauge, Max, "Bytes of the process in memory.", |s| s.metrics.process_resident_bytes),
    metric("connections_received_total", ("stats", "total_connections_received"), Counter, Sum, "Connections accepted.", |s| s.metrics.connections_received),
    metric("commands_processed_total", ("stats", "total_commands_processed"), Counter, Sum, "Commands executed.", |s| s.metrics.commands_processed),
    metric("commands_per_second", ("stats", "instantaneous_ops_per_sec"), Gauge, Sum, "Commands executed per second, lately.", |s| s.metrics.commands_per_second),
    metric("input_bytes_total", ("stats", "total_net_input_bytes"), Counter, Sum, "Bytes received.", |s| s.metrics.input_bytes),
    metric("output_bytes_total", ("stats", "total_net_output_bytes"), Counter, Sum, "Bytes given to the kernel.", |s| s.metrics.output_bytes),
    metric("connections_rejected_total", ("stats", "rejected_connections"), Counter, Sum, "Connections refused for maxclients.", |s| s.metrics.connections_rejected),
    metric("expired_keys_total", ("stats", "expired_keys"), Counter, Sum, "Keys whose time came.", |s| s.keyspace.stats().expired),
    metric("evicted_keys_total", ("stats", "evicted_keys"), Counter, Sum, "Keys evicted for maxmemory.", |s| s.keyspace.stats().evicted),
    metric("keyspace_hits_total", ("stats", "keyspace_hits"), Counter, Sum, "Lookups that found the key.", |s| s.keyspace.stats().hits),
    metric("keyspace_misses_total", ("stats", "keyspace_misses"), Counter, Sum, "Lookups that did not.", |s| s.keyspace.stats().misses),
    metric("pubsub_channels", ("stats", "pubsub_channels"), Gauge, Whole(|s| distinct_names(s, Space::Channels)), "Channels somebody listens to.", |s| s.pubsub.names(Space::Channels) as u64),
    metric("pubsub_patterns", ("stats", "pubsub_patterns"), Gauge, Whole(|s| distinct_names(s, Space::Patterns)), "Patterns somebody listens to.", |s| s.pubsub.names(Space::Patterns) as u64),
    metric("pubsub_shard_channels", ("stats", "pubsubshard_channels"), Gauge, Whole(|s| distinct_names(s, Space::Shard)), "Shard channels somebody listens to.", |s| s.pubsub.names(Space::Shard) as u64),
    metric("messages_published_total", ("stats", "messages_published"), Counter, Sum, "Messages published.", |s| s.metrics.messages_published),
    metric("tracking_keys", ("stats", "tracking_total_keys"), Gauge, Sum, "Keys whose readers will be told when they change.", |s| tracked(s, Table::keys)),
    metric("tracking_items", ("stats", "tracking_total_items"), Gauge, Sum, "Pairs of such a key and a reader.", |s| tracked(s, Table::pairs)),
    metric("tracking_prefixes", ("stats", "tracking_total_prefixes"), Gauge, Whole(distinct_prefixes), "Prefixes that clients want to hear of.", |s| s.trackers.prefixes().count() as u64),
    metric("tracking_pushes_total", ("stats", "tracking_pushes"), Counter, Sum, "Invalidations written to clients.", |s| s.trackers.pushes),
    metric("tracking_pushes_held", ("stats", "tracking_pushes_held"), Gauge, Sum, "Changes that clients are told of when they are durable.", |s| s.trackers.held() as u64),
    metric("tracking_evictions_total", ("stats", "tracking_evictions"), Counter, Sum, "Keys whose readers were told because tracking-table-max-pairs was reached.", |s| s.tracking_evictions()),
    metric("tracking_prefixes_refused_total", ("stats", "tracking_prefixes_refused"), Counter, Sum, "CLIENT TRACKING refused because prefixes would have been more than tracking-table-max-pairs.", |s| s.trackers.prefixes_refused),
    metric("invalidation_streams", ("http", "invalidation_streams"), Gauge, Sum, "Streams of invalidations over HTTP.", |s| s.streams.open() as u64),
    metric("invalidation_events_total", ("http", "invalidation_events"), Counter, Sum, "Events written to them.", |s| s.streams.events),
    metric("invalidation_streams_lost_total", ("http", "invalidation_streams_lost"), Counter, Sum, "Streams that came back too late to be told what they missed.", |s| s.streams.lost),
    metric("invalidation_backlog_bytes", ("http", "invalidation_backlog_bytes"), Gauge, Sum, "Memory of the changes that streams can come back to.", |s| s.streams.backlog_bytes() as u64),
    metric("tracking_bytes", ("memory", "tracking_bytes"), Gauge, Sum, "Memory of the tables of client tracking.", |s| tracked(s, Table::bytes)),
    metric("error_replies_total", ("stats", "total_error_replies"), Counter, Sum, "Error replies.", |s| s.metrics.error_replies),
    metric("protocol_errors_total", ("stats", "protocol_errors"), Counter, Sum, "Requests that broke the protocol.", |s| s.metrics.protocol_errors),
    metric("lsn_reads_waiting", ("stats", "lsn_reads_waiting"), Gauge, Sum, "Clients that wait for a record.", |s| s.reads.waits() as u64),
    metric("lsn_reads_waited_total", ("stats", "lsn_reads_waited"), Counter, Sum, "Reads that named a record and had to wait for it.", |s| s.reads.waited),
    metric("lsn_reads_behind_total", ("stats", "lsn_reads_behind"), Counter, Sum, "Reads that named a record and were refused because it was not there in time.", |s| s.reads.behind),
    metric("lsn_reads_lost_total", ("stats", "lsn_reads_lost"), Counter, Sum, "Reads that named a record that is not in this server's history.", |s| s.reads.lost),
    metric("output_limit_disconnections_total", ("stats", "client_output_buffer_limit_disconnections"), Counter, Sum, "Clients closed for output they did not read.", |s| s.metrics.output_limit_disconnections),
    metric("query_limit_disconnections_total", ("stats", "client_query_buffer_limit_disconnections"), Counter, Sum, "Clients closed for too much input.", |s| s.metrics.query_limit_disconnections),
    metric("timeout_disconnections_total", ("stats", "timeout_disconnections"), Counter, Sum, "Clients closed for silence.", |s| s.metrics.timeout_disconnections),
    metric("output_pauses_total", ("stats", "output_pauses"), Counter, Sum, "Times a client's commands waited because it did not read.", |s| s.metrics.output_pauses),
    metric("oom_rejections_total", ("stats", "oom_rejections"), Counter, Sum, "Commands refused for maxmemory.", |s| s.metrics.oom_rejections),
    metric("store_refusals_total", ("stats", "store_refusals"), Counter, Sum, "Commands the store had no room for.", |s| s.metrics.store_refusals),
    metric("http_requests_total", ("http", "http_requests"), Counter, Sum, "HTTP requests.", |s| s.metrics.http_requests),
    metric("http_responses_4xx_total", ("http", "http_responses_4xx"), Counter, Sum, "HTTP responses that blame the client.", |s| s.metrics.http_responses_4xx),
    metric("http_responses_5xx_total", ("http", "http_responses_5xx"), Counter, Sum, "HTTP responses that blame the server.", |s| s.metrics.http_responses_5xx),
    metric("loop_turns_total", ("loop", "loop_turns"), Counter, Sum, "Turns of the loop.", |s| s.metrics.loop_turns),
    metric("loop_enters_total", ("loop", "loop_enters"), Counter, Sum, "System calls that submitted or waited.", |s| s.metrics.loop_enters),
    metric("loop_events_total", ("loop", "loop_events"), Counter, Sum, "Completions and readiness events.", |s| s.metrics.loop_events),
    metric("loop_turn_nanoseconds_max", ("loop", "loop_turn_nanoseconds_max"), Gauge, Max, "The longest turn, waiting excluded.", |s| s.metrics.loop_turn_nanos_max),
    metric("loop_busy_nanoseconds_total", ("loop", "loop_busy_nanoseconds"), Counter, Sum, "Time spent in turns, waiting excluded.", |s| s.metrics.loop_busy_nanos),
    metric("loop_buffer_exhaustions_total", ("loop", "loop_buffer_exhaustions"), Counter, Sum, "Times no receive buffer was free.", |s| s.metrics.loop_buffer_exhaustions),
    metric("loop_short_sends_total", ("loop", "loop_short_sends"), Counter, Sum, "Sends that took only a part.", |s| s.metrics.loop_short_sends),
    metric("hops_sent_total", ("shards", "hops_sent"), Counter, Sum, "Batches of commands sent to other shards.", |s| s.fleet.hops_sent),
    metric("hop_commands_sent_total", ("shards", "hop_commands_sent"), Counter, Sum, "Commands in them.", |s| s.fleet.hop_commands_sent),
    metric("hops_served_total", ("shards", "hops_served"), Counter, Sum, "Batches of other shards executed.", |s| s.fleet.hops_served),
    metric("queue_waits_total", ("shards", "queue_waits"), Counter, Sum, "Batches that waited because hop-queue were away.", |s| s.fleet.queue_waits),
    metric("gathered_commands_total", ("shards", "gathered_commands"), Counter, Sum, "Commands executed over several shards.", |s| s.fleet.gathered_commands),
    metric("times_lent_total", ("shards", "times_lent"), Counter, Sum, "Times a shard was lent to another.", |s| s.fleet.times_lent),
    metric("durable_lsn", ("persistence", "durable_lsn"), Gauge, Max, "The last record of the log that is on stable storage.", |s| s.journal.as_ref().map_or(0, |journal| journal.durable_lsn())),
    metric("latest_lsn", ("persistence", "latest_lsn"), Gauge, Max, "The last record of the log.", |s| s.journal.as_ref().map_or(0, |journal| journal.latest_lsn())),
    metric("log_records_total", ("persistence", "log_records"), Counter, Max, "Records the log has written.", |s| s.metrics.log.records),
    metric("log_writes_total", ("persistence", "log_writes"), Counter, Max, "Write operations of the log.", |s| s.metrics.log.writes),
    metric("log_flushes_total", ("persistence", "log_flushes"), Counter, Max, "Times the log made something durable.", |s| s.metrics.log.flushes),
    metric("log_bytes_total", ("persistence", "log_bytes"), Counter, Max, "Bytes the log has written.", |s| s.metrics.log.bytes),
    metric("log_pending_bytes", ("persistence", "log_pending_bytes"), Gauge, Whole(|s| log_figures(s).pending_bytes), "Memory of records that are not durable yet.", |s| s.metrics.log.pending_bytes),
    metric("log_waits", ("persistence", "log_waits"), Gauge, Sum, "Clients that wait in WAITAOF.", |s| s.journal.as_ref().map_or(0, |journal| journal.waits() as u64)),
    metric("warming", ("persistence", "warming"), Gauge, Max, "1 while the snapshot that the server started from is being read in behind the traffic.", |s| u64::from(s.keyspace.warm_progress().is_some())),
    metric("warm_total_bytes", ("persistence", "warm_total_bytes"), Gauge, Sum, "Bytes of the snapshot that the server started from; 0: from none, or they were read before it served.", |s| s.warm_figures().total_bytes),
    metric("warm_checked_bytes", ("persistence", "warm_checked_bytes"), Gauge, Sum, "Bytes of it whose checksums were looked at.", |s| s.warm_figures().checked_bytes),
    metric("warm_moved_bytes", ("persistence", "warm_moved_bytes"), Gauge, Sum, "Bytes of it that are in memory of the server's own, or not needed any more.", |s| s.warm_figures().warmed_bytes),
    metric("warm_kept_bytes", ("persistence", "warm_kept_bytes"), Gauge, Sum, "Bytes of it that stay in the file, for want of memory.", |s| s.warm_figures().kept_bytes),
    metric("snapshots_total", ("persistence", "rdb_saves"), Counter, Same, "Snapshots that were completed.", |s| s.snapshots.figure(|of| &of.completed)),
    metric("snapshot_failures_total", ("persistence", "snapshot_failures"), Counter, Same, "Snapshots that were begun and not completed.", |s| s.snapshots.figure(|of| &of.failed)),
    metric("snapshots_kept", ("persistence", "snapshots_kept"), Gauge, Same, "Snapshots in the directory.", |s| s.snapshots.figure(|of| &of.kept)),
    metric("snapshot_in_progress", ("", ""), Gauge, Same, "1 while a snapshot is taken.", |s| u64::from(s.snapshots.figure(|of| &of.begun_unix_s) > 0)),
    metric("snapshot_written_bytes", ("persistence", "snapshot_written_bytes"), Gauge, Same, "Bytes written of the snapshot that is being taken.", |s| s.snapshots.figure(|of| &of.written_bytes)),
    metric("snapshot_total_bytes", ("persistence", "snapshot_total_bytes"), Gauge, Same, "All of its bytes.", |s| s.snapshots.figure(|of| &of.total_bytes)),
    metric("snapshot_held_bytes", ("persistence", "snapshot_held_bytes"), Gauge, Sum, "Memory held only because a snapshot is taken.", |s| s.keyspace.image_progress().map_or(0, |image| image.held_bytes as u64)),
    metric("snapshot_last_lsn", ("persistence", "snapshot_last_lsn"), Gauge, Same, "All records up to this one are in the last snapshot.", |s| s.snapshots.figure(|of| &of.last_lsn)),
    metric("snapshot_last_bytes", ("persistence", "snapshot_last_bytes"), Gauge, Same, "Bytes of the last snapshot.", |s| s.snapshots.figure(|of| &of.last_bytes)),
    metric("snapshot_last_unix_seconds", ("", ""), Gauge, Same, "When the last snapshot was complete; 0: there is none.", |s| s.snapshots.figure(|of| &of.last_unix_s)),
    metric("snapshot_last_microseconds", ("persistence", "snapshot_last_microseconds"), Gauge, Same, "How long the last snapshot took.", |s| s.snapshots.last_took_us()),
    metric("stage_samples_total", ("stages", "stage_samples"), Counter, Sum, "Batches of requests whose way through the server was timed.", |s| s.metrics.stages.samples()),
    metric("stage_samples_left_out_total", ("stages", "stage_samples_left_out"), Counter, Sum, "Batches drawn to be timed of which not everything is known.", |s| s.metrics.stages.left_out),
    metric("keys", ("", ""), Gauge, Sum, "Keys.", |s| s.keyspace.len() as u64),
    metric("keys_with_expiry", ("", ""), Gauge, Sum, "Keys with a lifetime.", |s| s.keyspace.expires_len() as u64),
    metric("slowlog_entries", ("", ""), Gauge, Whole(|s| merged_slowlog(s).len() as u64), "Commands in the slow log.", |s| s.slowlog.iter().len() as u64),
];

/// The most that all shards ever took together: the greatest that one of them has seen, or what they take now.
pub(crate) fn peak_memory(shared: &Shared) -> u64 {
    let seen = shared.all().map(|shard| shard.metrics.used_memory_peak).max().unwrap_or(0);
    seen.max(sum(shared, Shared::used_memory))
}

/// Counts by power of two as a histogram. `scale` turns the unit of the counts into Prometheus', `total` is their sum.
fn write_histogram(out: &mut Vec<u8>, name: &str, help: &str, counts: &[u64], total: u64, scale: f64) {
    let mut text = format!("# HELP millrace_{name} {help}\n# TYPE millrace_{name} histogram\n");
    let mut sum = 0;
    for (at, count) in counts.iter().enumerate() {
        sum += count;
        // The last one has no upper end.
        if at + 1 < counts.len() {
            let end = ((1u64 << at) - 1) as f64 * scale;
            text.push_str(&format!("millrace_{name}_bucket{{le=\"{end}\"}} {sum}\n"));
        }
    }
    text.push_str(&format!("millrace_{name}_bucket{{le=\"+Inf\"}} {sum}\n"));
    text.push_str(&format!("millrace_{name}_sum {}\nmillrace_{name}_count {sum}\n", total as f64 * scale));
    out.extend_from_slice(text.as_bytes());
}

/// All metrics in Prometheus' text format.
pub fn write_prometheus(shared: &Shared, out: &mut Vec<u8>) {
    let head = |out: &mut Vec<u8>, name: &str, kind: MetricKind, help: &str| {
        let kind = if kind == Counter { "counter" } else { "gauge" };
        out.extend_from_slice(
            format!("# HELP millrace_{name} {help}\n# TYPE millrace_{name} {kind}\n").as_bytes(),
        );
    };
    for metric in METRICS {
        head(out, metric.name, metric.kind, metric.help);
        out.extend_from_slice(format!("millrace_{} {}\n", metric.name, metric.value(shared)).as_bytes());
    }
    if shared.journal.is_some() {
        let log = log_figures(shared);
        let help = "Records that were written in one block of the log.";
        write_histogram(out, "log_batch_records", help, &log.batch_records, log.records, 1.0);
        let help = "Time it took to make something durable.";
        write_histogram(out, "log_flush_seconds", help, &log.flush_us, log.flush_us_total, 1e-6);
    }
    crate::command::replication::write_prometheus(shared, out);
    stages::write_prometheus(shared, out);
    for figure in SHARD_FIGURES {
        let ending = if figure.kind == Counter { "_total" } else { "" };
        let name = format!("shard_{}{ending}", figure.name);
        head(out, &name, figure.kind, figure.help);
        for shard in shared.all() {
            let (index, value) = (shard.fleet.place.index, (figure.get)(shard));
            out.extend_from_slice(format!("millrace_{name}{{shard=\"{index}\"}} {value}\n").as_bytes());
        }
    }
    let commands = merged_commands(shared);
    let called = || COMMANDS.iter().map(|command| (command.name, &commands[usize::from(command.id)]));
    type Column = (&'static str, &'static str, fn(&CommandStats) -> String);
    let columns: [Column; 4] = [
        ("command_calls_total", "Calls by command.", |stats| format!("{}", stats.calls)),
        ("command_seconds_total", "Time by command.", |stats| {
            format!("{}.{:09}", stats.nanos / 1_000_000_000, stats.nanos % 1_000_000_000)
        }),
        ("command_rejected_total", "Refused calls by command.", |stats| format!("{}", stats.rejected)),
        ("command_failed_total", "Calls that answered with an error, by command.", |stats| {
            format!("{}", stats.failed)
        }),
    ];
    for (name, help, column) in columns {
        head(out, name, Counter, help);
        for (command, stats) in called().filter(|(_, stats)| stats.calls + stats.rejected > 0) {
            let line =
                format!("millrace_{name}{{command=\"{}\"}} {}\n", command.replace('|', " "), column(stats));
            out.extend_from_slice(line.as_bytes());
        }
    }
    head(out, "errors_total", Counter, "Error replies by code.");
    for (code, count) in merged_errors(shared) {
        let code: String =
            code.iter().map(|&byte| if byte.is_ascii_alphanumeric() { byte as char } else { '_' }).collect();
        out.extend_from_slice(format!("millrace_errors_total{{code=\"{code}\"}} {count}\n").as_bytes());
    }
}
