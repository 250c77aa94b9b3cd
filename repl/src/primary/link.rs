//! What a primary knows of one replica's connection.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use wal::checksum::Checksum;
use wal::lsn::Lsn;

use crate::backlog::Chunk;
use crate::frame::{FrameReader, encode_preamble};
use crate::message::{Hello, Message, SnapshotName};
use crate::run::Position;
use crate::secret::Nonce;

/// Where a connection stands.
#[derive(Debug)]
pub(super) enum Phase {
    /// Nothing but a preamble has come.
    Greeting,
    /// It said hello and was challenged.
    Proving,
    /// It has proved who it is, and waits for records to be handed over here ([`super::Action::Feed`]).
    Waiting,
    /// It needs a snapshot, and one is looked for.
    Choosing {
        /// The edge was asked.
        is_asked: bool,
    },
    /// The file is on its way.
    Snapshot {
        name: SnapshotName,
        /// The next byte to be read.
        offset: u64,
        /// The edge was asked for it.
        is_reading: bool,
    },
    /// Records are on their way.
    Streaming(Stream),
}

/// Which records a replica is sent over its connection.
#[derive(Debug)]
pub(super) struct Stream {
    /// The next.
    pub(super) cursor: Position,
    /// The first that there was to send: what is before it was there already.
    pub(super) first_lsn: Lsn,
    /// The last; none: whatever becomes durable.
    pub(super) until: Option<Lsn>,
    /// Where the repair began that is being sent.
    pub(super) repair_from: Lsn,
    /// The edge was asked to read the log.
    pub(super) is_reading: bool,
    /// What it read, encoded.
    pub(super) from_log: VecDeque<Chunk>,
    /// New records reach it as datagrams.
    pub(super) is_live: bool,
    /// Records that it may lack.
    pub(super) lag_records_max: u64,
}

impl Stream {
    /// Records are asked for. Who asks again for what is on its way is not sent it from the start: a long record
    /// would never come to its end.
    pub(super) fn repair(&mut self, from_lsn: Lsn, to_lsn: Lsn) {
        let is_on_its_way = self.is_reading
            || !self.from_log.is_empty()
            || self.until.is_some_and(|until| self.cursor.lsn <= until);
        if is_on_its_way && (self.repair_from..=self.cursor.lsn).contains(&from_lsn) {
            self.until = self.until.max(Some(to_lsn));
            return;
        }
        (self.cursor, self.until) = (Position::start_of(from_lsn), Some(to_lsn));
        self.repair_from = from_lsn;
        self.from_log.clear();
    }
}

/// One connection.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) phase: Phase,
    pub(super) reader: FrameReader,
    pub(super) nonce: Nonce,
    pub(super) hello: Option<Hello>,
    /// As they went over the wire: what proofs are made of.
    pub(super) hello_body: Vec<u8>,
    pub(super) challenge_body: Vec<u8>,
    /// Messages to be sent before anything else.
    pub(super) out: Vec<u8>,
    /// Bytes handed to the edge and not written yet.
    pub(super) in_flight_bytes: usize,
    pub(super) applied_lsn: Lsn,
    pub(super) durable_lsn: Lsn,
    /// It was asked to ack at once, when this was durable.
    pub(super) asked_lsn: Lsn,
    /// The stamp of its latest ack.
    pub(super) echo: u64,
    /// When it was heard last; before it has proved who it is, when it came: what it says buys it no time.
    pub(super) heard_at: u64,
    pub(super) heartbeat_at: u64,
    pub(super) datagrams: bool,
    pub(super) repairs: u64,
    pub(super) log_reads: u64,
}

impl Link {
    pub(super) fn new(nonce: Nonce, checksum: Checksum, now_micros: u64, heartbeat_us: u64) -> Link {
        Link {
            phase: Phase::Greeting,
            reader: FrameReader::new(checksum),
            nonce,
            hello: None,
            hello_body: Vec::new(),
            challenge_body: Vec::new(),
            out: encode_preamble(checksum).to_vec(),
            in_flight_bytes: 0,
            applied_lsn: Lsn::ZERO,
            durable_lsn: Lsn::ZERO,
            asked_lsn: Lsn::ZERO,
            echo: 0,
            heard_at: now_micros,
            heartbeat_at: now_micros.saturating_add(heartbeat_us),
            datagrams: false,
            repairs: 0,
            log_reads: 0,
        }
    }

    pub(super) fn say(&mut self, message: &Message, checksum: Checksum) {
        message.encode(&mut self.out, checksum);
    }

    /// It has proved that it knows the secret.
    pub(super) fn is_replica(&self) -> bool {
        !matches!(self.phase, Phase::Greeting | Phase::Proving)
    }

    /// It was sent a welcome.
    pub(super) fn is_welcome(&self) -> bool {
        matches!(self.phase, Phase::Snapshot { .. } | Phase::Streaming(_))
    }

    pub(super) fn is_live(&self) -> bool {
        matches!(&self.phase, Phase::Streaming(stream) if stream.is_live)
    }

    /// How many records it lacks, and how many it may, if those are fewer.
    pub(super) fn is_too_far_behind(&self, durable_lsn: Lsn) -> Option<(u64, u64)> {
        let Phase::Streaming(stream) = &self.phase else { return None };
        // What was sent counts as there: TCP brings it, or the connection ends. For datagrams nobody vouches.
        let has =
            if stream.is_live { self.applied_lsn.next().max(stream.first_lsn) } else { stream.cursor.lsn };
        let has = has.previous();
        let behind = durable_lsn.0.saturating_sub(has.0);
        (behind > stream.lag_records_max).then_some((behind, stream.lag_records_max))
    }

    /// The first record that it will have to be read from somewhere; none before that is known.
    pub(super) fn needs_from(&self) -> Option<Lsn> {
        match &self.phase {
            Phase::Snapshot { name, .. } => Some(name.lsn.next()),
            Phase::Streaming(stream) if stream.is_live => Some(self.applied_lsn.next()),
            Phase::Streaming(stream) => Some(stream.cursor.lsn),
            _ => None,
        }
    }
}
