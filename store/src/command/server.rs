//! The server itself: CONFIG, TIME, MEMORY, SLOWLOG, LATENCY, DEBUG, SHUTDOWN and Redis'
//! persistence commands. INFO is in [`info`](super::info), what is about replication in
//! [`replication`](super::replication).

use super::{COMMANDS, Call, c_string, integer, is_word, lookup, reply};
use crate::config::{Config, SETTINGS, Setting};
use crate::engine::{Action, Shared};
use crate::glob;
use crate::keyspace::{Encoding, KeyspaceStats};
use crate::metrics::{CommandStats, merged_commands, peak_memory, sum};
use crate::protocol::reply::Reply;
use crate::slowlog::{Series, merged_latency, merged_slowlog, trim_slowlogs};
use crate::snapshots::{AtEnd, Wish};
use crate::time::Nanos;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// `CONFIG GET pattern [pattern …]`
pub fn config_get(call: &mut Call<'_>) {
    let mut found: Vec<(Vec<u8>, &Setting)> = Vec::new();
    for pattern in call.args.iter().skip(2) {
        if !pattern.iter().any(|byte| b"[*?".contains(byte)) {
            // A name comes back as it was written.
            let is_new = !found.iter().any(|(name, _)| name.eq_ignore_ascii_case(pattern));
            if let Some(setting) = Setting::find(pattern).filter(|_| is_new) {
                found.push((pattern.to_vec(), setting));
            }
            continue;
        }
        for setting in SETTINGS {
            let is_new = !found.iter().any(|(_, other)| other.name == setting.name);
            if is_new && glob::matches(pattern, setting.name.as_bytes(), true) {
                found.push((setting.name.as_bytes().to_vec(), setting));
            }
        }
    }
    let (config, has_log) = (&call.engine.config, call.engine.journal.is_some());
    let followed = call.engine.replication.edge.as_ref().map(|edge| edge.report().upstream);
    let mut reply = reply!(call);
    reply.map(found.len());
    for (name, setting) in found {
        reply.bulk(&name);
        match setting.name {
            // Redis' clients ask this to learn whether writes outlive the process.
            "appendonly" if has_log => reply.bulk(b"yes"),
            // As REPLICAOF has left it, in Redis' form.
            "replicaof" if let Some(followed) = &followed => match followed {
                Some(upstream) => reply.bulk(format!("{} {}", upstream.host, upstream.port).as_bytes()),
                None => reply.bulk(b""),
            },
            _ => reply.bulk((setting.get)(config).as_bytes()),
        }
    }
}

/// `CONFIG SET name value [name value …]`: all of them or none.
pub fn config_set(call: &mut Call<'_>) {
    let args = call.args;
    if !args.len().is_multiple_of(2) {
        return call.syntax_error();
    }
    match changed_config(&call.engine.config, &args) {
        Err(text) => reply!(call).error_bytes(&text),
        Ok(config) => {
            let opened = config.requirepass.is_empty() && !call.engine.config.requirepass.is_empty();
            let now = call.now;
            call.engine.for_all(|shard| {
                shard.config.clone_from(&config);
                if opened {
                    super::client::let_everybody_in(shard);
                }
                shard.settings_changed(now);
                shard.make_room(now);
                shard.publish_totals();
            });
            trim_slowlogs(call.engine);
            reply!(call).ok();
        }
    }
}

/// The settings as they would be, or Redis' error.
fn changed_config(config: &Config, args: &crate::protocol::resp::Args<'_>) -> Result<Config, Vec<u8>> {
    let failed = |name: &[u8], why: &str| {
        let mut text = b"ERR CONFIG SET failed (possibly related to argument '".to_vec();
        text.extend_from_slice(c_string(name, usize::MAX));
        text.extend_from_slice(b"') - ");
        text.extend_from_slice(why.as_bytes());
        text
    };
    let pairs = || (2..args.len()).step_by(2).map(|at| (args.at(at), args.at(at + 1)));
    let mut settings: Vec<&Setting> = Vec::new();
    for (name, _) in pairs() {
        let Some(setting) = Setting::find(name) else {
            let mut text = b"ERR Unknown option or number of arguments for CONFIG SET - '".to_vec();
            text.extend_from_slice(c_string(name, usize::MAX));
            text.push(b'\'');
            return Err(text);
        };
        if !setting.mutable {
            return Err(failed(name, "can't set immutable config"));
        }
        if settings.iter().any(|other| other.name == setting.name) {
            return Err(failed(name, "duplicate parameter"));
        }
        settings.push(setting);
    }
    let mut changed = config.clone();
    for (setting, (_, value)) in settings.iter().zip(pairs()) {
        let value =
            core::str::from_utf8(value).map_err(|_| failed(setting.name.as_bytes(), "not valid UTF-8"))?;
        (setting.set)(&mut changed, value).map_err(|why| failed(setting.name.as_bytes(), &why))?;
    }
    Ok(changed)
}

/// CONFIG RESETSTAT
pub fn config_resetstat(call: &mut Call<'_>) {
    call.engine.for_all(|shard| {
        shard.metrics.reset();
        shard.fleet.reset_counters();
        shard.reset_tracking_counters();
        let stats = shard.keyspace.stats_mut();
        stats.hits = 0;
        stats.misses = 0;
        stats.expired = 0;
        stats.evicted = 0;
    });
    reply!(call).ok();
}

/// CONFIG REWRITE
pub fn config_rewrite(call: &mut Call<'_>) {
    reply!(call).error("ERR The server is running without a config file");
}

/// CONFIG HELP
pub fn config_help(call: &mut Call<'_>) {
    call.help(&[
        "GET <pattern>",
        "    Return parameters matching the glob-like <pattern> and their values.",
        "SET <directive> <value>",
        "    Set the configuration <directive> to <value>.",
        "RESETSTAT",
        "    Reset statistics reported by the INFO command.",
        "REWRITE",
        "    Rewrite the configuration file.",
    ]);
}

/// TIME
pub fn time(call: &mut Call<'_>) {
    let now = call.now.unix_us;
    let mut reply = reply!(call);
    reply.array(2);
    reply.bulk_integer((now / 1_000_000) as i64);
    reply.bulk_integer((now % 1_000_000) as i64);
}

/// `MEMORY USAGE key [SAMPLES count]`
pub fn memory_usage(call: &mut Call<'_>) {
    let mut at = 3;
    while at < call.args.len() {
        match call.args.get(at + 1) {
            Some(count) if is_word(call.args.at(at), "samples") => match integer(count) {
                None => return reply!(call).error("ERR value is not an integer or out of range"),
                Some(..0) => return call.syntax_error(),
                Some(_) => at += 2,
            },
            _ => return call.syntax_error(),
        }
    }
    let hash = call.hash(2);
    match call.engine.keyspace.record_bytes(call.args.at(2), hash, call.now) {
        None => reply!(call).null(),
        Some(bytes) => reply!(call).integer(bytes as i64),
    }
}

/// MEMORY DOCTOR
pub fn memory_doctor(call: &mut Call<'_>) {
    let arena_bytes = sum(call.engine, |shard| shard.keyspace.stats().arena_bytes as u64);
    let dead_bytes = sum(call.engine, |shard| shard.keyspace.stats().dead_bytes as u64);
    let text = if arena_bytes > 64 << 20 && dead_bytes > arena_bytes / 2 {
        "More than half of the arena is dead records. Compaction takes it back while the server is busy; MEMORY PURGE \
         asks for it now."
    } else {
        "I find nothing to complain of: no more than half of the arena is dead records."
    };
    reply!(call).verbatim("txt", text.as_bytes());
}

/// MEMORY MALLOC-STATS
pub fn memory_malloc_stats(call: &mut Call<'_>) {
    reply!(call).bulk(b"Stats not supported for the current allocator");
}

/// MEMORY PURGE
pub fn memory_purge(call: &mut Call<'_>) {
    let now = call.now;
    call.engine.for_all(|shard| _ = shard.keyspace.compact_some(now, 1 << 20));
    reply!(call).ok();
}

/// MEMORY STATS: Redis' fields where they mean something here.
pub fn memory_stats(call: &mut Call<'_>) {
    let of_all =
        |of: fn(&KeyspaceStats) -> usize| sum(call.engine, |shard| of(&shard.keyspace.stats()) as u64);
    let used = sum(call.engine, Shared::used_memory);
    let dataset = sum(call.engine, |shard| shard.keyspace.used_bytes() as u64);
    let keys = sum(call.engine, |shard| shard.keyspace.len() as u64);
    let index_bytes = of_all(|stats| stats.index_bytes);
    let percent = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 };
    let peak = peak_memory(call.engine);
    let buffers = sum(call.engine, |shard| shard.buffer_bytes as u64);
    let integers = [
        ("peak.allocated", peak),
        ("total.allocated", used),
        ("startup.allocated", 0),
        ("replication.backlog", 0),
        ("clients.slaves", 0),
        ("clients.normal", buffers),
        ("aof.buffer", 0),
        ("overhead.total", index_bytes + buffers),
        ("keys.count", keys),
        ("keys.bytes-per-key", dataset.checked_div(keys).unwrap_or(0)),
        ("dataset.bytes", dataset),
        ("arena.bytes", of_all(|stats| stats.arena_bytes)),
        ("arena.live-bytes", of_all(|stats| stats.live_bytes)),
        ("arena.dead-bytes", of_all(|stats| stats.dead_bytes)),
        ("index.bytes", index_bytes),
    ];
    let doubles = [("dataset.percentage", percent(dataset, used)), ("peak.percentage", percent(used, peak))];
    let mut reply = reply!(call);
    reply.map(integers.len() + doubles.len());
    for (name, value) in integers {
        reply.bulk(name.as_bytes());
        reply.integer(value as i64);
    }
    for (name, value) in doubles {
        reply.bulk(name.as_bytes());
        reply.double(value);
    }
}

/// MEMORY HELP
pub fn memory_help(call: &mut Call<'_>) {
    call.help(&[
        "DOCTOR",
        "    Return memory problems reports.",
        "MALLOC-STATS",
        "    Return internal statistics report from the memory allocator.",
        "PURGE",
        "    Attempt to purge dirty pages for reclamation by the allocator.",
        "STATS",
        "    Return information about the memory usage of the server.",
        "USAGE <key> [SAMPLES <count>]",
        "    Return memory in bytes used by <key> and its value. Nested values are",
        "    sampled up to <count> times (default: 5, 0 means sample all).",
    ]);
}

/// `SLOWLOG GET [count]`
pub fn slowlog_get(call: &mut Call<'_>) {
    let count = match call.args.get(2).map(integer) {
        _ if call.args.len() > 3 => return call.subcommand_syntax_error(),
        None => 10,
        Some(Some(-1)) => usize::MAX,
        Some(Some(count @ 0..)) => count as usize,
        Some(_) => return reply!(call).error("ERR count should be greater than or equal to -1"),
    };
    let entries = merged_slowlog(call.engine);
    let mut reply = reply!(call);
    reply.array(entries.len().min(count));
    for (id, entry) in entries.into_iter().take(count) {
        reply.array(6);
        reply.integer(id as i64);
        reply.integer((entry.unix_us / 1_000_000) as i64);
        reply.integer(entry.duration_us as i64);
        reply.array(entry.arguments.len());
        entry.arguments.iter().for_each(|argument| reply.bulk(argument));
        reply.bulk(entry.address.as_bytes());
        reply.bulk(&entry.name);
    }
}

/// SLOWLOG LEN
pub fn slowlog_len(call: &mut Call<'_>) {
    let len = merged_slowlog(call.engine).len();
    reply!(call).integer(len as i64);
}

/// SLOWLOG RESET
pub fn slowlog_reset(call: &mut Call<'_>) {
    call.engine.for_all(|shard| shard.slowlog.clear());
    reply!(call).ok();
}

/// SLOWLOG HELP
pub fn slowlog_help(call: &mut Call<'_>) {
    call.help(&[
        "GET [<count>]",
        "    Return top <count> entries from the slowlog (default: 10, -1 mean all).",
        "    Entries are made of:",
        "    id, timestamp, time in microseconds, arguments array, client IP and port,",
        "    client name",
        "LEN",
        "    Return the length of the slowlog.",
        "RESET",
        "    Reset the slowlog.",
    ]);
}

/// LATENCY LATEST
pub fn latency_latest(call: &mut Call<'_>) {
    let events = merged_latency(call.engine);
    let mut reply = reply!(call);
    reply.array(events.len());
    for (event, series) in events {
        let (second, ms) = series.samples.back().copied().unwrap_or_default();
        reply.array(4);
        reply.bulk(event.as_bytes());
        reply.integer(second as i64);
        reply.integer(ms as i64);
        reply.integer(series.max_ms as i64);
    }
}

/// LATENCY HISTORY event
pub fn latency_history(call: &mut Call<'_>) {
    let samples = history(call).map(|series| series.samples).unwrap_or_default();
    let mut reply = reply!(call);
    reply.array(samples.len());
    for (second, ms) in samples {
        reply.array(2);
        reply.integer(second as i64);
        reply.integer(ms as i64);
    }
}

/// The history of the event that the second argument names.
fn history(call: &Call<'_>) -> Option<Series> {
    let name = call.args.at(2);
    merged_latency(call.engine)
        .into_iter()
        .find(|(event, _)| event.as_bytes() == name)
        .map(|(_, series)| series)
}

/// `LATENCY RESET [event …]`
pub fn latency_reset(call: &mut Call<'_>) {
    let count = if call.args.len() == 2 {
        let events = merged_latency(call.engine).len();
        call.engine.for_all(|shard| shard.latency.clear());
        events
    } else {
        let mut removed = 0;
        for event in call.args.iter().skip(2) {
            let mut found = false;
            call.engine.for_all(|shard| found |= shard.latency.remove(event));
            removed += usize::from(found);
        }
        removed
    };
    reply!(call).integer(count as i64);
}

/// LATENCY GRAPH event: one column per sample, its height the share of the longest.
pub fn latency_graph(call: &mut Call<'_>) {
    let Some(series) = history(call) else {
        let mut text = b"ERR No samples available for event '".to_vec();
        text.extend_from_slice(c_string(call.args.at(2), usize::MAX));
        text.push(b'\'');
        return reply!(call).error_bytes(&text);
    };
    const ROWS: u64 = 4;
    let high = series.samples.iter().map(|sample| sample.1).max().unwrap_or(0);
    let low = series.samples.iter().map(|sample| sample.1).min().unwrap_or(0);
    let name = String::from_utf8_lossy(call.args.at(2)).into_owned();
    let mut text = format!("{name} - high {high} ms, low {low} ms (all time high {} ms)\n", series.max_ms);
    for row in (0..ROWS).rev() {
        for (_, ms) in &series.samples {
            text.push(if ms * ROWS > row * high.max(1) { '#' } else { ' ' });
        }
        text.push('\n');
    }
    reply!(call).verbatim("txt", text.as_bytes());
}

/// LATENCY DOCTOR
pub fn latency_doctor(call: &mut Call<'_>) {
    let events = merged_latency(call.engine);
    let mut text = String::new();
    if call.engine.config.latency_monitor_threshold == 0 {
        text.push_str(
            "Latency is not monitored: CONFIG SET latency-monitor-threshold <milliseconds> starts it.\n",
        );
    } else if events.is_empty() {
        text.push_str("No event took as long as latency-monitor-threshold.\n");
    }
    for (event, series) in &events {
        let sum: u64 = series.samples.iter().map(|sample| sample.1).sum();
        let count = series.samples.len().max(1) as u64;
        text.push_str(&format!(
            "{event}: {} samples, {} ms on average, {} ms at most. SLOWLOG GET shows the commands.\n",
            series.samples.len(),
            sum / count,
            series.max_ms
        ));
    }
    reply!(call).verbatim("txt", text.as_bytes());
}

/// `LATENCY HISTOGRAM [command …]`
pub fn latency_histogram(call: &mut Call<'_>) {
    let stats = merged_commands(call.engine);
    let with_times = |id: usize| stats[id].histogram.is_some();
    let mut wanted: Vec<usize> = Vec::new();
    if call.args.len() == 2 {
        wanted.extend((0..COMMANDS.len()).filter(|id| with_times(*id)));
    } else {
        for command in call.args.iter().skip(2).filter_map(lookup) {
            let all = core::iter::once(command).chain(command.subcommands());
            wanted.extend(all.map(|command| usize::from(command.id)).filter(|id| with_times(*id)));
        }
    }
    let mut reply = reply!(call);
    reply.map(wanted.len());
    for id in wanted {
        reply.bulk(COMMANDS[id].name.as_bytes());
        write_histogram(&mut reply, &stats[id]);
    }
}

/// Calls that took at most so many microseconds, in powers of two.
fn write_histogram(reply: &mut Reply<'_>, stats: &CommandStats) {
    let Some(histogram) = &stats.histogram else { return };
    let steps: Vec<(u64, u64)> = histogram
        .iter()
        .enumerate()
        .scan(0, |sum, (bucket, count)| {
            *sum += count;
            Some((1 << bucket, *sum, *count))
        })
        .filter(|(_, _, count)| *count > 0)
        .map(|(us, sum, _)| (us, sum))
        .collect();
    reply.map(2);
    reply.bulk(b"calls");
    reply.integer(steps.last().map_or(0, |step| step.1) as i64);
    reply.bulk(b"histogram_usec");
    reply.map(steps.len());
    for (us, sum) in steps {
        reply.integer(us as i64);
        reply.integer(sum as i64);
    }
}

/// LATENCY HELP
pub fn latency_help(call: &mut Call<'_>) {
    call.help(&[
        "DOCTOR",
        "    Return a human readable latency analysis report.",
        "GRAPH <event>",
        "    Return an ASCII latency graph for the <event> class.",
        "HISTORY <event>",
        "    Return time-latency samples for the <event> class.",
        "LATEST",
        "    Return the latest latency samples for all events.",
        "RESET [<event> ...]",
        "    Reset latency data of one or more <event> classes.",
        "    (default: reset all data for all event classes)",
        "HISTOGRAM [COMMAND ...]",
        "    Return a cumulative distribution of latencies in the format of a histogram for the specified command names.",
        "    If no commands are specified then all histograms are replied.",
    ]);
}

/// DEBUG: what tests need of Redis' own.
pub fn debug(call: &mut Call<'_>) {
    let args = call.args;
    let sub = args.at(1);
    match args.len() {
        2 if is_word(sub, "help") => call.help(&[
            "DIGEST",
            "    Output a hex signature representing the current DB content.",
            "OBJECT <key>",
            "    Show low level info about `key` and associated value.",
            "PROTOCOL <type>",
            "    Reply with a test value of the specified type. <type> can be: string,",
            "    integer, double, bignum, null, array, set, map, attrib, push, verbatim,",
            "    true, false.",
            "SET-ACTIVE-EXPIRE <0|1>",
            "    Setting it to 0 disables expiring keys (and hash-fields) in background",
            "SLEEP <seconds>",
            "    Stop the server for <seconds>. Decimals allowed.",
        ]),
        3 if is_word(sub, "sleep") => {
            // strtod: what is no number is no time.
            let seconds = core::str::from_utf8(args.at(2)).ok().and_then(|text| text.parse::<f64>().ok());
            let nanos = (seconds.unwrap_or(0.0).clamp(0.0, 3600.0) * 1e9) as u64;
            call.engine.stalled.0 += nanos;
            call.engine.actions.push_back(Action::Stall(Nanos(nanos)));
            reply!(call).ok();
        }
        3 if is_word(sub, "set-active-expire") => {
            let expires_actively = integer(args.at(2)).unwrap_or(0) != 0;
            call.engine.for_all(|shard| shard.expires_actively = expires_actively);
            reply!(call).ok();
        }
        2 if is_word(sub, "digest") => super::replication::debug_digest(call),
        3 if is_word(sub, "object") => debug_object(call),
        3 if is_word(sub, "protocol") => debug_protocol(call),
        _ => call.subcommand_syntax_error(),
    }
}

fn debug_object(call: &mut Call<'_>) {
    let key = call.args.at(2);
    let hash = call.hash(2);
    let idle = call.engine.keyspace.idle_seconds(key, hash, call.now).unwrap_or(0);
    let Some(entry) = call.engine.keyspace.peek(key, hash, call.now) else {
        return reply!(call).error("ERR no such key");
    };
    let is_integer = entry.encoding == Encoding::Auto && integer(entry.value).is_some();
    let encoding = match entry.encoding {
        _ if is_integer => "int",
        Encoding::Raw => "raw",
        _ if entry.value.len() <= 44 => "embstr",
        _ => "raw",
    };
    let text = format!(
        "Value at:0x0 refcount:1 encoding:{encoding} serializedlength:{} lru:0 lru_seconds_idle:{idle}",
        entry.value.len() + 1
    );
    reply!(call).simple(&text);
}

fn debug_protocol(call: &mut Call<'_>) {
    let name = call.args.at(2).to_ascii_lowercase();
    let mut reply = reply!(call);
    match name.as_slice() {
        b"string" => reply.bulk(b"Hello World"),
        b"integer" => reply.integer(12345),
        #[allow(clippy::approx_constant, reason = "it is what Redis answers, not a circle")]
        b"double" => reply.double(3.141),
        b"bignum" if reply.is_resp3() => reply.raw(b"(1234567999999999999999999999999999999\r\n"),
        b"bignum" => reply.bulk(b"1234567999999999999999999999999999999"),
        b"null" => reply.null(),
        b"array" => {
            reply.array(3);
            (0..3).for_each(|number| reply.integer(number));
        }
        b"set" => {
            reply.set(3);
            (0..3).for_each(|number| reply.integer(number));
        }
        b"map" => {
            reply.map(3);
            for number in 0..3 {
                reply.integer(number);
                reply.boolean(number == 1);
            }
        }
        b"attrib" => {
            if reply.is_resp3() {
                reply.raw(b"|1\r\n$14\r\nkey-popularity\r\n*2\r\n$7\r\nkey:123\r\n:90\r\n");
            }
            reply.bulk(b"Some real reply following the attribute");
        }
        b"push" if !reply.is_resp3() => reply.error("ERR RESP2 is not supported by this command"),
        b"push" => {
            reply.push(2);
            reply.bulk(b"server-cpu-usage");
            reply.integer(42);
            reply.bulk(b"Some real reply following the push reply");
        }
        b"verbatim" => reply.verbatim("txt", b"This is a verbatim\nstring"),
        b"true" => reply.boolean(true),
        b"false" => reply.boolean(false),
        _ => reply.error(
            "ERR Wrong protocol type name. Please use one of the following: string|integer|double|bignum|null|array|set|\
             map|attrib|push|verbatim|true|false",
        ),
    }
}

/// `SHUTDOWN [NOSAVE|SAVE] [NOW] [FORCE] [ABORT]`
pub fn shutdown(call: &mut Call<'_>) {
    let (mut save, mut no_save, mut force, mut now, mut abort) = (false, false, false, false, false);
    for option in call.args.iter().skip(1) {
        match option {
            _ if is_word(option, "save") => save = true,
            _ if is_word(option, "nosave") => no_save = true,
            _ if is_word(option, "force") => force = true,
            _ if is_word(option, "now") => now = true,
            _ if is_word(option, "abort") => abort = true,
            _ => return call.syntax_error(),
        }
    }
    if (abort && (save || no_save || force || now)) || (save && no_save) {
        return call.syntax_error();
    }
    if abort {
        return reply!(call).error("ERR No shutdown in progress.");
    }
    save |= call.engine.config.snapshot_on_shutdown && !no_save;
    if save && call.engine.snapshots.can_save() {
        return call.engine.wait_for_snapshot(call.session, Wish::Shutdown, force);
    }
    if save && !force {
        return reply!(call).error("ERR Errors trying to SHUTDOWN. Check logs.");
    }
    call.engine.snapshots.end_with(AtEnd::NoSave);
    call.session.closing = true;
    call.engine.actions.push_back(Action::Shutdown);
}

/// SAVE: the client has its answer when the snapshot is durable. Everybody else is served meanwhile.
pub fn save(call: &mut Call<'_>) {
    match call.engine.snapshots.wish(Wish::Save) {
        Ok(()) => call.engine.wait_for_snapshot(call.session, Wish::Save, false),
        Err(text) => reply!(call).error(&text),
    }
}

/// `BGSAVE [SCHEDULE]`
pub fn bgsave(call: &mut Call<'_>) {
    if call.args.len() > 2 || call.args.get(1).is_some_and(|option| !is_word(option, "schedule")) {
        return call.syntax_error();
    }
    let snapshots = &mut call.engine.snapshots;
    let (scheduled, result) = match call.args.len() == 2 || call.session.executing > 0 {
        true => (true, snapshots.refuse_while_running().and_then(|()| snapshots.schedule())),
        false => (false, snapshots.wish(Wish::Background)),
    };
    match result {
        Ok(()) if scheduled => reply!(call).simple("Background saving scheduled"),
        Ok(()) => reply!(call).simple("Background saving started"),
        Err(text) => reply!(call).error(&text),
    }
}

/// LASTSAVE: as Redis does, the start of the server where nothing was saved since.
pub fn lastsave(call: &mut Call<'_>) {
    let seconds = call.engine.last_save_unix_s();
    reply!(call).integer(seconds as i64);
}

/// SWAPDB: there is one database, and it may be swapped with itself.
pub fn swapdb(call: &mut Call<'_>) {
    let index = |at| integer(call.args.at(at)).and_then(|index| i32::try_from(index).ok());
    let indexes = (index(1), index(2));
    let mut reply = reply!(call);
    match indexes {
        (None, _) => reply.error("ERR invalid first DB index"),
        (_, None) => reply.error("ERR invalid second DB index"),
        (Some(0), Some(0)) => reply.ok(),
        _ => reply.error("ERR DB index is out of range"),
    }
}

/// `WAITAOF numlocal numreplicas timeout`: waits for the log, not for replicas' logs.
pub fn waitaof(call: &mut Call<'_>) {
    let local = match integer(call.args.at(1)) {
        None => return reply!(call).error("ERR value is not an integer or out of range"),
        Some(local @ 0..=1) => local == 1,
        Some(_) => return reply!(call).error("ERR value is out of range, value must between 0 and 1"),
    };
    match integer(call.args.at(2)) {
        None => return reply!(call).error("ERR value is not an integer or out of range"),
        Some(..0) => return reply!(call).error("ERR value is out of range, must be positive"),
        Some(_) => {}
    }
    let timeout = match integer(call.args.at(3)) {
        None => return reply!(call).error("ERR timeout is not an integer or out of range"),
        Some(..0) => return reply!(call).error("ERR timeout is negative"),
        Some(timeout) => timeout as u64,
    };
    if call.engine.is_replica() {
        return reply!(call).error(
            "ERR WAITAOF cannot be used with replica instances. Please also note that writes on replicas are just local and \
             are not propagated.",
        );
    }
    let written = call.session.last_write;
    if !call.engine.has_kept(written) {
        let why = call.engine.refuse_lost(written);
        return reply!(call).error(&why);
    }
    let lsn = written.lsn;
    let waits = match &call.engine.journal {
        None if local => {
            return reply!(call)
                .error("ERR WAITAOF cannot be used when numlocal is set but appendonly is disabled.");
        }
        // Within a transaction nothing waits, as in Redis.
        Some(journal) => {
            local && lsn > journal.durable_lsn() && !journal.has_failed() && call.session.executing == 0
        }
        None => false,
    };
    if !waits {
        return call.engine.reply_to_wait(call.session, lsn);
    }
    let until = call.now.monotonic.0.saturating_add(timeout.saturating_mul(1_000_000));
    call.engine.wait_for_log(call.session, lsn, (timeout > 0).then_some(Nanos(until)));
}

/// LOLWUT
pub fn lolwut(call: &mut Call<'_>) {
    let text = format!(
        "~~~~\\\n     )  the fast channel\n~~~~/   that turns a mill's ring\n\nMillrace {}\n",
        env!("CARGO_PKG_VERSION")
    );
    reply!(call).verbatim("txt", text.as_bytes());
}
