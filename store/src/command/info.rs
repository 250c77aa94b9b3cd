//! INFO: the server described in sections, with the fields that tools parse.
//!
//! Redis' names are kept where the thing exists or its absence is a fact worth telling (`aof_enabled:0`).
//! What a table of [`metrics`](crate::metrics) already names is printed from there.

use super::{COMMANDS, Call, connection::REDIS_VERSION, is_word, reply};
use crate::engine::Shared;
use crate::keyspace::KeyspaceStats;
use crate::metrics::{
    LogFigures, METRICS, Metrics, SHARD_FIGURES, ShardFigure, log_figures, merged_commands, merged_errors,
    peak_memory, sum,
};
use crate::snapshots;
use crate::stages;
use crate::time::Now;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

/// The sections, in order, and whether INFO shows them unasked.
const SECTIONS: [(&str, &str, bool); 15] = [
    ("server", "Server", true),
    ("clients", "Clients", true),
    ("memory", "Memory", true),
    ("persistence", "Persistence", true),
    ("stats", "Stats", true),
    ("replication", "Replication", true),
    ("cpu", "CPU", true),
    ("modules", "Modules", true),
    ("loop", "Loop", false),
    ("http", "Http", false),
    ("shards", "Shards", false),
    ("stages", "Stages", false),
    ("commandstats", "Commandstats", false),
    ("errorstats", "Errorstats", true),
    ("cluster", "Cluster", true),
];

/// `INFO [section …]`
pub fn info(call: &mut Call<'_>) {
    let wanted = |name: &str, by_default: bool| {
        let mut sections = call.args.iter().skip(1);
        call.args.len() == 1 && by_default
            || sections.any(|section| {
                is_word(section, name)
                    || is_word(section, "all")
                    || is_word(section, "everything")
                    || (is_word(section, "default") && by_default)
            })
    };
    let mut text = String::new();
    for (name, title, by_default) in SECTIONS {
        if wanted(name, by_default) {
            section(call.engine, name, title, call.now, &mut text);
        }
    }
    if wanted("keyspace", true) {
        section(call.engine, "keyspace", "Keyspace", call.now, &mut text);
    }
    reply!(call).verbatim("txt", text.as_bytes());
}

/// A number of bytes as INFO shows it to people.
fn human(bytes: u64) -> String {
    let units = [("K", 1u64 << 10), ("M", 1 << 20), ("G", 1 << 30), ("T", 1 << 40)];
    match units.iter().rev().find(|(_, unit)| bytes >= *unit) {
        None => format!("{bytes}B"),
        Some((name, unit)) => format!("{:.2}{name}", bytes as f64 / *unit as f64),
    }
}

fn section(shared: &Shared, name: &str, title: &str, now: Now, out: &mut String) {
    if !out.is_empty() {
        out.push_str("\r\n");
    }
    let _ = write!(out, "# {title}\r\n");
    let mut line = |field: &str, value: &dyn core::fmt::Display| {
        let _ = write!(out, "{field}:{value}\r\n");
    };
    // Those of the table come first: redis-cli --stat takes the first field that starts with `used_memory`.
    for metric in METRICS.iter().filter(|metric| metric.info.0 == name) {
        line(metric.info.1, &metric.value(shared));
    }
    let seconds = |us: u64| format!("{}.{:06}", us / 1_000_000, us % 1_000_000);
    match name {
        "server" => {
            let uptime = now.monotonic.since(shared.started.monotonic).0 / 1_000_000_000;
            let run_id: String = shared.run_id.iter().map(|byte| format!("{byte:02x}")).collect();
            line("redis_version", &REDIS_VERSION);
            line("millrace_version", &env!("CARGO_PKG_VERSION"));
            line("redis_git_sha1", &"00000000");
            line("redis_git_dirty", &0);
            line("redis_mode", &"standalone");
            line("os", &"Linux");
            line("arch_bits", &usize::BITS);
            line("multiplexing_api", &shared.config.io);
            line("process_id", &shared.process_id);
            line("run_id", &run_id);
            line("tcp_port", &shared.config.port);
            line("server_time_usec", &now.unix_us);
            line("uptime_in_seconds", &uptime);
            line("uptime_in_days", &(uptime / 86_400));
            line("hz", &shared.config.hz);
            line("configured_hz", &shared.config.hz);
            line("config_file", &"");
            line("io_threads_active", &0);
        }
        "clients" => {
            line("cluster_connections", &0);
            let waits = |shard: &Shared| shard.journal.as_ref().map_or(0, |journal| journal.waits() as u64);
            let saves = |shard: &Shared| shard.snapshots.waits() as u64;
            let reads = |shard: &Shared| (shard.reads.waits() + shard.replica_waits.len()) as u64;
            line("blocked_clients", &(sum(shared, waits) + sum(shared, saves) + sum(shared, reads)));
            line("clients_in_timeout_table", &0);
        }
        "memory" => {
            let of_all =
                |of: fn(&KeyspaceStats) -> usize| sum(shared, |shard| of(&shard.keyspace.stats()) as u64);
            let used = sum(shared, Shared::used_memory);
            let peak = peak_memory(shared);
            let resident = shared.all().map(|shard| shard.metrics.process_resident_bytes).max().unwrap_or(0);
            let buffers = sum(shared, |shard| shard.buffer_bytes as u64);
            let index_bytes = of_all(|stats| stats.index_bytes);
            line("used_memory_human", &human(used));
            line("used_memory_rss_human", &human(resident));
            line("used_memory_peak_human", &human(peak));
            line("used_memory_overhead", &(index_bytes + buffers));
            line("used_memory_lua", &0);
            line("maxmemory_human", &human(shared.config.maxmemory));
            line("maxmemory_policy", &shared.config.maxmemory_policy.name());
            let ratio = resident as f64 / used.max(1) as f64;
            line("mem_fragmentation_ratio", &format!("{ratio:.2}"));
            line("mem_allocator", &"millrace-arena");
            line("arena_bytes", &of_all(|stats| stats.arena_bytes));
            line("arena_live_bytes", &of_all(|stats| stats.live_bytes));
            line("arena_dead_bytes", &of_all(|stats| stats.dead_bytes));
            line("arena_segments", &of_all(|stats| stats.segments));
            line("index_bytes", &index_bytes);
        }
        "persistence" => {
            line("loading", &0);
            line("async_loading", &0);
            snapshots::write_info(shared, now, &mut line);
            let journal = shared.journal.as_deref();
            let is_refused = journal.is_some_and(|journal| journal.refusal().is_some());
            line("aof_enabled", &u8::from(journal.is_some()));
            line("aof_rewrite_in_progress", &0);
            line("aof_last_write_status", &if is_refused { "err" } else { "ok" });
            if journal.is_some() {
                let log = log_figures(shared);
                line("log_state", &if log.state.is_empty() { "open" } else { log.state });
                line("log_batch_records_histogram", &LogFigures::histogram_text(&log.batch_records));
                line("log_flush_usec_histogram", &LogFigures::histogram_text(&log.flush_us));
            } else {
                line("log_state", &"off");
            }
        }
        "stats" => {
            line("sync_full", &0);
            line("sync_partial_ok", &0);
            line("sync_partial_err", &0);
            line("evicted_clients", &0);
            line("latest_fork_usec", &0);
            line("index_splits", &sum(shared, |shard| shard.keyspace.stats().splits));
            line("compacted_bytes", &sum(shared, |shard| shard.keyspace.stats().compacted_bytes));
        }
        "replication" => super::replication::write_info(shared, &mut line),
        "cpu" => {
            // Of the process, whichever shard looked last.
            let latest =
                |of: fn(&Metrics) -> u64| shared.all().map(|shard| of(&shard.metrics)).max().unwrap_or(0);
            line("used_cpu_sys", &seconds(latest(|metrics| metrics.process_system_us)));
            line("used_cpu_user", &seconds(latest(|metrics| metrics.process_user_us)));
            line("used_cpu_sys_children", &seconds(0));
            line("used_cpu_user_children", &seconds(0));
        }
        "commandstats" => {
            let commands = merged_commands(shared);
            for command in &COMMANDS {
                let stats = &commands[usize::from(command.id)];
                if stats.calls + stats.rejected + stats.failed > 0 {
                    let each = stats.nanos as f64 / 1000.0 / stats.calls.max(1) as f64;
                    line(
                        &format!("cmdstat_{}", command.name),
                        &format!(
                            "calls={},usec={},usec_per_call={each:.2},rejected_calls={},failed_calls={}",
                            stats.calls,
                            stats.nanos / 1000,
                            stats.rejected,
                            stats.failed
                        ),
                    );
                }
            }
        }
        "stages" => stages::write_info(shared, line),
        "errorstats" => {
            for (code, count) in merged_errors(shared) {
                line(&format!("errorstat_{}", String::from_utf8_lossy(code)), &format!("count={count}"));
            }
        }
        "shards" => {
            for shard in shared.all() {
                let figure = |figure: &ShardFigure| format!("{}={}", figure.name, (figure.get)(shard));
                let figures: Vec<String> = SHARD_FIGURES.iter().map(figure).collect();
                line(&format!("shard{}", shard.fleet.place.index), &figures.join(","));
            }
        }
        "cluster" => line("cluster_enabled", &0),
        "keyspace" => {
            let keys = sum(shared, |shard| shard.keyspace.len() as u64);
            let expires = sum(shared, |shard| shard.keyspace.expires_len() as u64);
            if keys > 0 {
                let estimates = shared.all().map(|shard| shard.keyspace.ttl_estimate(now));
                let (ttls, weight) = estimates.fold((0, 0), |(a, b), (ttls, weight)| (a + ttls, b + weight));
                let avg_ttl = if expires == 0 { 0 } else { ttls.checked_div(weight).unwrap_or(0) };
                line("db0", &format!("keys={keys},expires={expires},avg_ttl={avg_ttl}"));
            }
        }
        _ => {}
    }
}
