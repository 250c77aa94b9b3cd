//! How replication stands, put into words for INFO, ROLE and `/metrics`.

use super::thread::{TapState, Worker};
use crate::clock::monotonic_ns;
use repl::identity::Now;
use repl::primary::ReplicaState;
use repl::replica::State;
use store::replication::{Figure, ReplicaLine, Report, Upstream};

fn counter(name: &'static str, help: &'static str, value: u64) -> Figure {
    Figure { name, is_counter: true, help, value }
}

fn gauge(name: &'static str, help: &'static str, value: u64) -> Figure {
    Figure { name, is_counter: false, help, value }
}

impl Worker {
    pub(super) fn make_report(&self, now: Now) -> Report {
        let counters = self.primary.counters();
        let fanout = self.primary.fanout_counters();
        let (backlog, dropped) = self.primary.backlog();
        let sent = self.sender.as_ref().map(|sender| sender.counters).unwrap_or_default();
        let figures = vec![
            counter("sync_full", "Replicas that needed a snapshot.", counters.full_syncs),
            counter("sync_partial_ok", "Replicas that went on from where they were.", counters.partial_syncs),
            counter(
                "sync_resumed",
                "Full syncs that went on with what was there of the snapshot.",
                counters.resumed_syncs,
            ),
            counter("replica_connections", "Connections of replicas taken.", counters.links),
            counter("replica_faults", "Connections of replicas that ended with a fault.", counters.faults),
            counter("replica_too_slow", "Replicas that were too slow or silent.", counters.too_slow),
            counter(
                "replica_strangers",
                "Connections that ended before they had proved to be a replica's.",
                counters.strangers,
            ),
            counter(
                "replica_strangers_crowded_out",
                "Of these, some that made room for others.",
                counters.strangers_crowded_out,
            ),
            counter(
                "replica_log_reads",
                "Reads of the log for replicas that had fallen behind.",
                counters.log_reads,
            ),
            counter(
                "replica_repairs",
                "Requests of replicas for records that no datagram brought.",
                counters.repairs,
            ),
            counter("repl_backlog_dropped_frames", "Frames that left the backlog to make room.", dropped),
            counter(
                "repl_datagrams_sent",
                "Datagrams with records and heartbeats that were sent.",
                fanout.datagrams,
            ),
            counter("repl_datagram_bytes_sent", "Their bytes.", fanout.bytes),
            counter("repl_datagram_calls", "System calls that sent them.", sent.calls),
            counter("repl_datagrams_refused", "Datagrams that the socket had no room for.", sent.refused),
            counter("repl_datagrams_held_back", "Bursts held back by delta-udp-rate.", fanout.held_back),
        ];
        let branches = self.lineage.branches();
        let previous = branches.len().checked_sub(2).map(|at| {
            let ended = branches[at + 1].first_lsn.previous().0;
            (branches[at].id.0, ended)
        });
        let lsn = self.primary.durable_lsn().0;
        Report {
            node: self.node.to_string(),
            upstream: self.upstream_line(now),
            replicas: self.replica_lines(now),
            lsn: match &self.log {
                _ if self.replica.is_some() => self.state.dealt_lsn(),
                Some(log) => log.handle.durable_lsn().0,
                None => lsn,
            },
            port: self.port(),
            previous,
            backlog: (self.options.backlog_bytes as u64, backlog as u64, lsn.saturating_add(1)),
            keeps_backlog: self.tap_state == TapState::Open || self.replica.is_some() && self.is_passing_on,
            figures,
        }
    }

    fn replica_lines(&self, now: Now) -> Vec<ReplicaLine> {
        let line = |info: repl::primary::ReplicaInfo| {
            let peer = self.links.get(&info.link).map_or("", |link| link.peer.as_str());
            ReplicaLine {
                host: peer.rsplit_once(':').map_or(peer, |(host, _)| host).trim_matches(['[', ']']).into(),
                port: info.port,
                state: match info.state {
                    ReplicaState::Handshake => "handshake",
                    ReplicaState::FullSync => "send_bulk",
                    ReplicaState::CatchingUp | ReplicaState::Streaming | ReplicaState::Live => "online",
                },
                node: info.node.map(|node| node.to_string()).unwrap_or_default(),
                applied_lsn: info.applied_lsn.0,
                durable_lsn: info.durable_lsn.0,
                lag_records: info.lag_records,
                lag_bytes: info.lag_bytes,
                lag_us: info.lag_us,
                is_live: info.state == ReplicaState::Live,
            }
        };
        // Who has not proved who it is may be anybody: Sentinel would take it for a replica.
        let is_known = |info: &repl::primary::ReplicaInfo| info.state != ReplicaState::Handshake;
        self.primary.replicas(now).filter(is_known).map(line).collect()
    }

    fn upstream_line(&self, now: Now) -> Option<Upstream> {
        let replica = self.replica.as_ref()?;
        let (host, port) = self.upstream.whom.clone()?;
        let seconds = |since: u64| monotonic_ns().saturating_sub(since) / 1_000_000_000;
        let counters = replica.counters();
        let datagrams = replica.datagram_counters();
        Some(Upstream {
            host,
            port,
            http_port: self.upstream.http_port,
            state: match replica.state() {
                State::Resting => "connect",
                State::Connecting | State::Handshake => "connecting",
                State::FullSync => "sync",
                State::Streaming => "connected",
            },
            down_s: self.upstream.down_since.map(seconds),
            last_io_s: self.upstream.heard_at.map(seconds),
            sync: self.upstream.sync,
            unapplied_bytes: replica.unapplied_bytes() as u64,
            last_fault: replica.last_fault().map(|fault| fault.to_string()),
            figures: vec![
                gauge(
                    "replica_lag_records",
                    "Records that are durable on the primary and cannot be read here.",
                    replica.lag_records(),
                ),
                gauge(
                    "replica_lag_us",
                    "Microseconds this replica may be behind.",
                    replica.lag_us(now).unwrap_or(u64::MAX),
                ),
                gauge(
                    "replica_lag_bytes",
                    "Bytes of records that have arrived and are not applied.",
                    replica.unapplied_bytes() as u64,
                ),
                counter("replica_connects", "Connections to the primary begun.", counters.connects),
                counter(
                    "replica_full_syncs",
                    "Times all data was replaced by a snapshot of the primary.",
                    counters.full_syncs,
                ),
                counter(
                    "replica_partial_syncs",
                    "Times this replica went on from where it was.",
                    counters.partial_syncs,
                ),
                counter("replica_records", "Records taken from the primary.", counters.records),
                counter("replica_datagrams", "Datagrams received.", datagrams.received),
                counter("replica_datagrams_lost", "Datagrams that have not arrived.", datagrams.lost),
                counter(
                    "replica_datagrams_late",
                    "Datagrams that arrived behind later ones.",
                    datagrams.late,
                ),
                counter("replica_datagrams_duplicate", "Datagrams that arrived twice.", datagrams.duplicate),
                counter(
                    "replica_datagrams_damaged",
                    "Datagrams that were changed on their way, or none at all.",
                    datagrams.damaged,
                ),
                counter(
                    "replica_datagrams_forged",
                    "Datagrams not made by who knows the secret.",
                    datagrams.forged,
                ),
                counter(
                    "replica_datagrams_foreign",
                    "Datagrams of another stream, epoch or version.",
                    datagrams.foreign,
                ),
                counter(
                    "replica_datagrams_overflowed",
                    "Datagrams dropped for want of room.",
                    datagrams.overflowed,
                ),
                counter(
                    "replica_repairs_asked",
                    "Times that records were asked for over TCP.",
                    datagrams.repairs,
                ),
                counter(
                    "replica_records_repaired",
                    "Records that came over TCP after that.",
                    datagrams.repaired,
                ),
            ],
        })
    }
}
