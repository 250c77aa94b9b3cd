//! How a primary answers a replica that arrives: refused, from an LSN on, or by a snapshot.

use alloc::format;

use crate::fault::{Fault, Reason};
use crate::identity::{NodeId, Now};
use crate::lineage::Common;
use crate::message::{Challenge, Hello, Message, SnapshotName, Welcome, capability};
use crate::run::Position;
use crate::secret::Prover;

use super::link::{Link, Phase, Stream};
use super::{LinkId, Primary};
use alloc::collections::VecDeque;
use wal::lsn::Lsn;

/// What is to become of a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    Refuse(Fault),
    /// It has a prefix, and what follows is there.
    From(Lsn),
    /// Its data cannot be continued, or what follows is gone.
    Replace,
}

impl Primary {
    pub(super) fn handle_hello(&mut self, id: LinkId, hello: Hello, body: &[u8]) -> Result<(), Fault> {
        let (node, checksum) = (self.node, self.checksum);
        let Some(link) = self.links.get_mut(&id) else { return Ok(()) };
        let message = Message::Challenge(Challenge { node, nonce: link.nonce });
        message.encode_body(&mut link.challenge_body);
        link.say(&message, checksum);
        link.hello_body.extend_from_slice(body);
        link.hello = Some(hello);
        link.phase = Phase::Proving;
        Ok(())
    }

    pub(super) fn handle_proof(
        &mut self,
        id: LinkId,
        proof: &[u8; 16],
        now_micros: u64,
    ) -> Result<(), Fault> {
        let Some(link) = self.links.get_mut(&id) else { return Ok(()) };
        if !self.secret.is_proof(proof, Prover::Replica, &[&link.hello_body, &link.challenge_body]) {
            return Err(Fault::new(
                Reason::Secret,
                "expected a replica that knows the replication secret, found one with another",
            ));
        }
        link.reader.trust();
        let Some(hello) = link.hello.clone() else { return Ok(()) };
        if let Some(fault) = self.unfit(&hello) {
            return Err(fault);
        }
        self.replace_earlier(id, hello.node);
        let most = self.settings.replicas_max;
        if self.links.values().filter(|link| link.is_replica()).count() >= most {
            let text = format!("expected at most {most} replicas, found one more");
            return Err(Fault::new(Reason::TooManyReplicas, text));
        }
        let Some(link) = self.links.get_mut(&id) else { return Ok(()) };
        (link.phase, link.heard_at) = (Phase::Waiting, now_micros);
        if self.is_fed {
            return self.take_in(id, now_micros);
        }
        self.actions.push_back(super::Action::Feed);
        Ok(())
    }

    /// A replica that has proved who it is gets what it needs.
    pub(super) fn take_in(&mut self, id: LinkId, now_micros: u64) -> Result<(), Fault> {
        let Some(hello) = self.links.get(&id).and_then(|link| link.hello.clone()) else { return Ok(()) };
        match self.decide(&hello) {
            Decision::Refuse(fault) => Err(fault),
            Decision::From(first)
                if first > Lsn::FIRST || self.durable_lsn.0 <= self.settings.first_records_max =>
            {
                self.stream_from(id, first, now_micros);
                Ok(())
            }
            // What it can do without, or what it needs.
            Decision::From(_) | Decision::Replace => {
                if let Some(link) = self.links.get_mut(&id) {
                    link.phase = Phase::Choosing { is_asked: false };
                }
                Ok(())
            }
        }
    }

    fn stream_from(&mut self, id: LinkId, first: Lsn, now_micros: u64) {
        self.welcome(id, first, None);
        self.begin_stream(id, first, now_micros);
        self.counters.partial_syncs += 1;
    }

    /// A replica whose connection broke may be back before that is known here: it counts once.
    fn replace_earlier(&mut self, id: LinkId, node: NodeId) {
        let is_earlier =
            |link: &Link| link.is_replica() && link.hello.as_ref().is_some_and(|hello| hello.node == node);
        let earlier = self.links.iter().find(|&(&other, link)| other != id && is_earlier(link));
        if let Some(earlier) = earlier.map(|(&earlier, _)| earlier) {
            let text = format!("expected one connection of node {node}, found a second");
            self.refuse(earlier, Fault::new(Reason::Replaced, text));
        }
    }

    /// Why a replica that says this gets nothing here, whatever it has.
    fn unfit(&self, hello: &Hello) -> Option<Fault> {
        let refuse = |reason, text| Some(Fault::new(reason, text));
        let node = self.node;
        if hello.node == node {
            return refuse(Reason::Itself, format!("expected another node, found {node}, which is this one"));
        }
        if self.chain.contains(hello.node) {
            let found = hello.node;
            return refuse(
                Reason::Cycle,
                format!(
                    "expected a node that this one does not follow, found {found}, from which records come"
                ),
            );
        }
        if self.chain.behind(node).is_none_or(|chain| chain.behind(hello.node).is_none()) {
            let length = self.chain.nodes().len() + 2;
            return refuse(
                Reason::ChainTooLong,
                format!("expected a short chain of nodes, found one of {length}"),
            );
        }
        if !self.is_serving {
            return refuse(
                Reason::NotReady,
                format!("expected a node that has its data, found {node} still waiting for its own primary"),
            );
        }
        None
    }

    /// What a replica that says this is to get.
    pub(super) fn decide(&self, hello: &Hello) -> Decision {
        if let Some(fault) = self.unfit(hello) {
            return Decision::Refuse(fault);
        }
        let (last, partly, durable) = (hello.last_lsn, hello.partly_lsn, self.durable_lsn);
        match self.lineage.common(&hello.lineage, partly) {
            Common::Prefix if partly > durable => Decision::Refuse(Fault::new(
                Reason::Behind,
                format!("expected a replica that has at most LSN {durable}, found one that has LSN {partly}"),
            )),
            Common::Prefix
                if last.next() >= self.available_from()
                    && durable.0 - last.0 <= self.settings.lag_records_max =>
            {
                Decision::From(last.next())
            }
            _ => Decision::Replace,
        }
    }

    /// A snapshot for a replica that needs one. An error if it is not of this node's history, or too old for
    /// what is left of the log, or the replica cannot use it; the connection is closed then.
    pub fn handle_snapshot_found(
        &mut self,
        id: LinkId,
        name: SnapshotName,
        shards: u32,
        now_micros: u64,
    ) -> Result<(), Fault> {
        let Some(link) = self.links.get(&id) else { return Ok(()) };
        let Phase::Choosing { is_asked: true } = link.phase else { return Ok(()) };
        let Some(hello) = &link.hello else { return Ok(()) };
        let checked = match self.check_snapshot(&name) {
            Ok(()) if shards != hello.shards && hello.capabilities & capability::RESHARD == 0 => {
                let found = hello.shards;
                let text =
                    format!("expected a replica with {shards} shards, as the snapshot has, found {found}");
                Err(Fault::new(Reason::Shards, text))
            }
            checked => checked,
        };
        if let Err(fault) = checked {
            self.refuse(id, fault.clone());
            return Err(fault);
        }
        // Only of the very same file are the bytes that it has the first bytes.
        let offset = hello.partial.filter(|(partial, _)| *partial == name).map_or(0, |(_, bytes)| bytes);
        self.counters.full_syncs += 1;
        self.counters.resumed_syncs += u64::from(offset > 0);
        self.welcome(id, name.lsn.next(), Some((name, offset)));
        if let Some(link) = self.links.get_mut(&id) {
            link.phase = Phase::Snapshot { name, offset, is_reading: false };
        }
        self.after_snapshot(id, now_micros);
        Ok(())
    }

    /// Whether this snapshot is one that a replica can begin with.
    pub fn check_snapshot(&self, name: &SnapshotName) -> Result<(), Fault> {
        let SnapshotName { epoch, lsn, lsn_max, .. } = *name;
        if !name.is_sane() || !self.lineage.holds(name.epoch(), lsn_max) || lsn_max > self.durable_lsn {
            return Err(Fault::new(
                Reason::Snapshot,
                format!(
                    "expected a snapshot of this history, found one of epoch {epoch} up to LSN {lsn_max}"
                ),
            ));
        }
        let first = self.available_from();
        if lsn.next() < first {
            return Err(Fault::new(
                Reason::Snapshot,
                format!(
                    "expected a snapshot that the log, which begins with LSN {first}, goes on from, found LSN {lsn}"
                ),
            ));
        }
        Ok(())
    }

    /// No snapshot can be had: the replica is told, and tries again later, unless there are records that do.
    pub fn handle_no_snapshot(&mut self, id: LinkId, why: &str, now: Now) {
        let link = self.links.get(&id).filter(|link| matches!(link.phase, Phase::Choosing { .. }));
        if let Some(hello) = link.and_then(|link| link.hello.as_ref())
            && let Decision::From(first) = self.decide(hello)
        {
            return self.stream_from(id, first, now.micros);
        }
        self.refuse(
            id,
            Fault::new(Reason::Snapshot, format!("expected a snapshot to send, found none: {why}")),
        );
    }

    fn welcome(&mut self, id: LinkId, start_lsn: Lsn, full: Option<(SnapshotName, u64)>) {
        let datagrams_here = self.fanout.is_some();
        let chain = self.chain.behind(self.node).unwrap_or_default();
        let Some(link) = self.links.get_mut(&id) else { return };
        let can = link.hello.as_ref().is_some_and(|hello| hello.capabilities & capability::DATAGRAMS != 0);
        link.datagrams = datagrams_here && can;
        let mut welcome = Welcome {
            proof: Default::default(),
            stream: self.stream,
            salt: self.salt,
            start_lsn,
            datagrams: link.datagrams,
            full,
            chain,
            lineage: self.lineage.clone(),
        };
        let proven = welcome.proven();
        welcome.proof =
            self.secret.proof(Prover::Primary, &[&link.hello_body, &link.challenge_body, &proven]);
        link.say(&Message::Welcome(welcome), self.checksum);
        link.heartbeat_at = 0;
    }

    pub(super) fn begin_stream(&mut self, id: LinkId, first: Lsn, now_micros: u64) {
        let lag_records_max =
            self.durable_lsn.next().0.saturating_sub(first.0).saturating_add(self.settings.lag_records_max);
        let Some(link) = self.links.get_mut(&id) else { return };
        link.heard_at = now_micros;
        link.phase = Phase::Streaming(Stream {
            cursor: Position::start_of(first),
            first_lsn: first,
            until: None,
            repair_from: first,
            is_reading: false,
            from_log: VecDeque::new(),
            is_live: false,
            lag_records_max,
        });
    }

    /// The file is sent whole: the records behind it follow.
    pub(super) fn after_snapshot(&mut self, id: LinkId, now_micros: u64) {
        let Some(link) = self.links.get(&id) else { return };
        let Phase::Snapshot { name, offset, .. } = link.phase else { return };
        if offset == name.length {
            self.actions.push_back(super::Action::SnapshotSent { link: id });
            self.begin_stream(id, name.lsn.next(), now_micros);
        }
    }
}
