//! Replication as clients meet it: REPLICAOF, ROLE, REPLCONF, WAIT, what INFO says, and a digest of all keys.

use super::{Call, c_string, integer, is_word, reply};
use crate::engine::{Engine, Shared, StandingClock};
use crate::image::restore::LiveCursor;
use crate::protocol::reply::Reply;
use crate::replica_waits::{Awaited, ReplicaWait};
use crate::replication::{Edge, Figure, Report, Upstream};
use crate::session::{ConnectionId, ReplyMode};
use crate::time::{Nanos, Now};
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt::Display;

/// Bytes of records walked between two looks at a digest.
const STEP_BYTES: usize = 16 << 20;

/// Nanoseconds that REPLICAOF waits for what it asked for.
const FOLLOW_WAIT: u64 = 30_000_000_000;

/// What Redis says to whoever waits when a primary becomes a replica.
const UNBLOCKED: &str =
    "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)";

/// `REPLICAOF host port`, `REPLICAOF NO ONE`: answered when the role has changed, so that whoever has the reply can write.
pub fn replicaof(call: &mut Call<'_>) {
    let (host, port) = (call.args.at(1), call.args.at(2));
    let whom = if is_word(host, "no") && is_word(port, "one") {
        None
    } else {
        let Some(number) = integer(port).and_then(|port| u16::try_from(port).ok()).filter(|&port| port > 0)
        else {
            return reply!(call).error("ERR Invalid master port");
        };
        let host = core::str::from_utf8(c_string(host, 255)).ok().filter(|host| !host.is_empty());
        let Some(host) = host else {
            return reply!(call).error("ERR Invalid master host");
        };
        Some((String::from(host), number))
    };
    let told = match &call.engine.replication.edge {
        None => Err("ERR this server takes no part in replication".into()),
        Some(edge) => edge.follow(whom),
    };
    match told {
        // Within a transaction nothing waits.
        Ok(_) if call.session.executing > 0 => reply!(call).ok(),
        Ok(number) => park(call, Awaited::Followed(number), call.now.monotonic.0.saturating_add(FOLLOW_WAIT)),
        Err(why) => reply!(call).error(&why),
    }
}

/// The reply comes later.
fn park(call: &mut Call<'_>, what: Awaited, until: u64) {
    call.engine.replica_waits.begin(ReplicaWait {
        connection: call.session.connection,
        what,
        until: Nanos(until),
        is_silent: matches!(call.session.reply_mode, ReplyMode::Off | ReplyMode::Skip),
    });
    call.session.paused_hops = true;
    call.session.gathers = true;
}

/// ROLE
pub fn role(call: &mut Call<'_>) {
    let report = report(call.engine);
    let lsn = call.engine.readable_lsn();
    let mut reply = reply!(call);
    match report.upstream {
        None => {
            reply.array(3);
            reply.bulk(b"master");
            reply.integer(lsn as i64);
            reply.array(report.replicas.len());
            for replica in &report.replicas {
                reply.array(3);
                reply.bulk(replica.host.as_bytes());
                reply.bulk(format!("{}", replica.port).as_bytes());
                reply.bulk(format!("{}", replica.applied_lsn).as_bytes());
            }
        }
        Some(upstream) => {
            reply.array(5);
            reply.bulk(b"slave");
            reply.bulk(upstream.host.as_bytes());
            reply.integer(i64::from(upstream.port));
            reply.bulk(upstream.state.as_bytes());
            reply.integer(lsn as i64);
        }
    }
}

/// REPLCONF. `REPLCONF replication-port` is ours: a replica is told where it may connect, and where HTTP is.
pub fn replconf(call: &mut Call<'_>) {
    if call.args.len() == 2 && is_word(call.args.at(1), "replication-port") {
        let port = report(call.engine).port;
        let http = if call.engine.config.http { call.engine.config.http_port } else { 0 };
        return reply!(call).simple(&format!("REPLICATION {port} {http}"));
    }
    if call.args.len().is_multiple_of(2) {
        return call.syntax_error();
    }
    for option in call.args.iter().skip(1).step_by(2) {
        let known = ["listening-port", "ip-address", "capa", "ack", "getack", "rdb-only", "rdb-filter-only"];
        if !known.iter().any(|word| is_word(option, word)) {
            let mut text = b"ERR Unrecognized REPLCONF option: ".to_vec();
            text.extend_from_slice(c_string(option, usize::MAX));
            return reply!(call).error_bytes(&text);
        }
        if is_word(option, "ack") || is_word(option, "getack") {
            // A replica's acknowledgement is never answered.
            return;
        }
    }
    reply!(call).ok();
}

/// `WAIT replicas timeout`: until so many have applied the connection's last write.
pub fn wait(call: &mut Call<'_>) {
    let Some(wanted) = integer(call.args.at(1)) else {
        return reply!(call).error("ERR value is not an integer or out of range");
    };
    let timeout = match integer(call.args.at(2)) {
        None => return reply!(call).error("ERR timeout is not an integer or out of range"),
        Some(..0) => return reply!(call).error("ERR timeout is negative"),
        Some(timeout) => timeout as u64,
    };
    if call.engine.is_replica() {
        return reply!(call).error("ERR WAIT cannot be used with replica instances.");
    }
    let written = call.session.last_write;
    if !call.engine.has_kept(written) {
        let why = call.engine.refuse_lost(written);
        return reply!(call).error(&why);
    }
    let Some(edge) = call.engine.replication.edge.clone() else { return reply!(call).integer(0) };
    let replicas = usize::try_from(wanted).unwrap_or(0);
    let count = edge.replicas_with(written.lsn, false);
    // Within a transaction nothing waits, as in Redis.
    if count >= replicas || call.session.executing > 0 {
        return reply!(call).integer(count as i64);
    }
    let until = match timeout {
        0 => u64::MAX,
        _ => call.now.monotonic.0.saturating_add(timeout.saturating_mul(1_000_000)),
    };
    park(call, Awaited::Replicas { written, replicas }, until);
    // Behind the entry: what is acknowledged from now on is told to this shard.
    edge.replicas_with(written.lsn, true);
}

impl Shared {
    /// The next whose wait is over, and the answer.
    fn over(&self, edge: &dyn Edge, now: Now) -> Option<(ConnectionId, Result<Option<i64>, String>)> {
        let waits = &self.replica_waits;
        if let Some((number, connection)) = waits.first_followed()
            && let Some(done) = edge.followed(number)
        {
            return Some((connection, done.map(|()| None).map_err(|why| format!("ERR {why}"))));
        }
        if let Some((connection, written)) =
            waits.written().find(|&(_, written)| self.is_replica() || !self.has_kept(written))
        {
            // What those who follow have is of the history that is followed from now on.
            let why = if self.is_replica() { UNBLOCKED.into() } else { Shared::lost_text(written) };
            return Some((connection, Err(why)));
        }
        // Asked before anything is counted: what is acknowledged from now on is told to this shard.
        let replicas = if waits.awaits_replicas() { edge.replicas_with(0, true) } else { 0 };
        if let Some((connection, count)) = waits.reached(replicas, |lsn| edge.replicas_with(lsn, false)) {
            return Some((connection, Ok(Some(count as i64))));
        }
        let wait = waits.expired(now.monotonic)?;
        let answer = match wait.what {
            Awaited::Replicas { written, .. } => Ok(Some(edge.replicas_with(written.lsn, false) as i64)),
            Awaited::Followed(_) => Err("ERR it is still being done: INFO replication shows how far".into()),
        };
        Some((wait.connection, answer))
    }

    /// The next session whose WAIT is at its end. It has its reply and may go on.
    fn end_replica_wait(&mut self, now: Now) -> Option<ConnectionId> {
        let edge = self.replication.edge.clone()?;
        let (connection, answer) = self.over(&*edge, now)?;
        let wait = self.replica_waits.end(connection)?;
        let Some(mut session) = self.sessions.take(wait.connection) else { return Some(wait.connection) };
        session.gathers = false;
        if !session.aborted && !wait.is_silent {
            let mut reply = Reply::new(&mut session.output, session.resp3);
            match answer {
                Ok(None) => reply.ok(),
                Ok(Some(count)) => reply.integer(count),
                Err(why) => reply.error(&why),
            }
        }
        self.sessions.insert(session);
        Some(wait.connection)
    }
}

impl Engine {
    /// Those in WAIT who need not wait any more go on.
    pub(crate) fn end_replica_waits(&mut self, now: Now) {
        while let Some(connection) = self.shared_mut().end_replica_wait(now) {
            self.resume(connection, now, &StandingClock(now.monotonic));
        }
    }
}

/// How replication stands.
pub(crate) fn report(shared: &Shared) -> Report {
    shared.replication.edge.as_ref().map(|edge| edge.report()).unwrap_or_default()
}

/// INFO replication.
pub(crate) fn write_info(shared: &Shared, line: &mut dyn FnMut(&str, &dyn Display)) {
    let report = report(shared);
    let state = &shared.replication.state;
    let run_id: String = shared.run_id.iter().map(|byte| format!("{byte:02x}")).collect();
    let lsn = shared.readable_lsn();
    let is_replica = state.is_replica();
    line("role", if is_replica { &"slave" } else { &"master" });
    if let Some(upstream) = report.upstream.as_ref().filter(|_| is_replica) {
        write_upstream(shared, upstream, lsn, line);
    }
    let online = report.replicas.iter().filter(|replica| replica.state != "handshake").count();
    line("connected_slaves", &online);
    for (index, replica) in report.replicas.iter().enumerate() {
        let text = format!(
            "ip={},port={},state={},offset={},lag={},lag_records={},lag_bytes={},lag_us={},durable={},datagrams={},node={}",
            replica.host,
            replica.port,
            replica.state,
            replica.applied_lsn,
            replica.lag_us / 1_000_000,
            replica.lag_records,
            replica.lag_bytes,
            replica.lag_us,
            replica.durable_lsn,
            u8::from(replica.is_live),
            replica.node
        );
        line(&format!("slave{index}"), &text);
    }
    line("master_failover_state", &"no-failover");
    let (branch, epoch) = state.branch();
    // Redis' ids have 40 digits: the branch's, and its epoch's, in front of zeros.
    let id = |branch: u64, epoch: u64| format!("{branch:016x}{epoch:024x}");
    match branch {
        0 => line("master_replid", &run_id),
        _ => line("master_replid", &id(branch, epoch)),
    }
    let (previous, ended) = report.previous.map_or((0, -1), |(branch, ended)| (branch, ended as i64));
    line("master_replid2", &format!("{previous:040x}"));
    line("master_repl_offset", &lsn);
    line("second_repl_offset", &ended);
    let (size, used, first) = report.backlog;
    line("repl_backlog_active", &u8::from(report.keeps_backlog));
    line("repl_backlog_size", &size);
    line("repl_backlog_first_byte_offset", &first);
    line("repl_backlog_histlen", &used);
    line("replication_node", &report.node);
    line("replication_port", &report.port);
    line("replication_epoch", &epoch);
    write_figures(&report.figures, line);
}

fn write_upstream(shared: &Shared, upstream: &Upstream, lsn: u64, line: &mut dyn FnMut(&str, &dyn Display)) {
    let state = &shared.replication.state;
    let is_up = state.is_linked();
    line("master_host", &upstream.host);
    line("master_port", &upstream.port);
    line("master_link_status", if is_up { &"up" } else { &"down" });
    line("master_last_io_seconds_ago", &upstream.last_io_s.map_or(-1, |s| s as i64));
    line("master_sync_in_progress", &u8::from(upstream.sync.is_some()));
    line("slave_read_repl_offset", &lsn);
    line("slave_repl_offset", &lsn);
    if let Some((here, all)) = upstream.sync {
        line("master_sync_total_bytes", &all);
        line("master_sync_read_bytes", &here);
        line("master_sync_left_bytes", &all.saturating_sub(here));
        let percent = (here * 100).checked_div(all).unwrap_or(0);
        line("master_sync_perc", &format!("{percent}.00"));
    }
    if !is_up {
        line("master_link_down_since_seconds", &upstream.down_s.map_or(-1, |s| s as i64));
    }
    line("slave_priority", &100);
    line("slave_read_only", &1);
    line("replica_announced", &1);
    if let Some(fault) = &upstream.last_fault {
        line("master_last_fault", fault);
    }
    write_figures(&upstream.figures, line);
}

fn write_figures(figures: &[Figure], line: &mut dyn FnMut(&str, &dyn Display)) {
    for figure in figures {
        match figure.value {
            u64::MAX => line(figure.name, &-1),
            value => line(figure.name, &value),
        }
    }
}

/// The same for Prometheus. A replica's own figures are there while it follows.
pub(crate) fn write_prometheus(shared: &Shared, out: &mut Vec<u8>) {
    let report = report(shared);
    let gauge = |name, help, value| Figure { name, is_counter: false, help, value };
    let state = &shared.replication.state;
    let online = report.replicas.iter().filter(|replica| replica.state == "online").count() as u64;
    let behind = report.replicas.iter().map(|replica| replica.lag_records).max().unwrap_or(0);
    let mut figures = vec![
        gauge("replication_is_replica", "1 if the server follows another.", u64::from(state.is_replica())),
        gauge("replication_is_linked", "1 if records stream from the primary.", u64::from(state.is_linked())),
        gauge("replication_lsn", "The last record that can be read here.", shared.readable_lsn()),
        gauge("replication_replicas", "Replicas that have caught up or are about to.", online),
        gauge("replication_replica_lag_records_max", "Records the slowest replica lacks.", behind),
    ];
    figures.extend(&report.figures);
    figures.extend(report.upstream.iter().flat_map(|upstream| &upstream.figures));
    for figure in figures.iter().filter(|figure| figure.value != u64::MAX) {
        let (kind, ending) = if figure.is_counter { ("counter", "_total") } else { ("gauge", "") };
        let (name, help, value) = (figure.name, figure.help, figure.value);
        let text = format!(
            "# HELP millrace_{name}{ending} {help}\n# TYPE millrace_{name}{ending} {kind}\nmillrace_{name}{ending} {value}\n"
        );
        out.extend_from_slice(text.as_bytes());
    }
}

/// `DEBUG DIGEST`: the same on servers that hold the same keys, values and times, whatever their shards and their past.
pub(super) fn debug_digest(call: &mut Call<'_>) {
    let now = call.now;
    let (mut sum, mut mixed) = (0u128, 0u64);
    call.engine.for_all(|shard| {
        let mut at = Some(LiveCursor::START);
        while let Some(cursor) = at {
            at = shard.keyspace.for_each_live(cursor, STEP_BYTES, now, &mut |key, entry| {
                let mut bytes = Vec::with_capacity(key.len() + entry.value.len() + 16);
                bytes.extend_from_slice(&(key.len() as u64).to_le_bytes());
                bytes.extend_from_slice(key);
                bytes.extend_from_slice(entry.value);
                bytes.extend_from_slice(&entry.expires_at.unwrap_or(0).to_le_bytes());
                let hash = xxhash_rust::xxh3::xxh3_64_with_seed(&bytes, 0);
                let other = xxhash_rust::xxh3::xxh3_64_with_seed(&bytes, 1);
                sum = sum.wrapping_add(u128::from(hash) << 64 | u128::from(other));
                mixed ^= hash.rotate_left((other % 64) as u32);
            });
        }
    });
    reply!(call).simple(&format!("{sum:032x}{:08x}", mixed as u32));
}
