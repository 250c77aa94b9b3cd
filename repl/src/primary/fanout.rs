//! Records as datagrams: cut so that every datagram of a burst but the last has the same length, paced,
//! numbered.
//!
//! One stream serves all replicas that are up to date, be it a group address or a list. It never waits for
//! any of them, and nothing is sent twice: what a replica lacks it asks for over its connection. If the cap
//! lets the stream fall so far behind that its records leave the backlog, it goes on with what is there.

use alloc::vec::Vec;

use wal::checksum::Checksum;
use wal::lsn::{Epoch, Lsn};
use wal::record::FRAME_BYTES;

use crate::backlog::{Backlog, Chunk};
use crate::datagram::{DATAGRAM_BYTES_LIMIT, DatagramWriter, OVERHEAD_BYTES};
use crate::identity::Now;
use crate::lineage::{Branch, Lineage};
use crate::pacer::Pacer;
use crate::run::{Position, RunWriter};
use crate::secret::{DatagramKey, Nonce, Secret};
use crate::settings::DatagramSettings;

/// Datagrams to be sent at once, one behind the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Burst {
    /// All of them.
    pub bytes: Vec<u8>,
    /// Each has so many bytes; the last may have fewer. What UDP_SEGMENT wants to know.
    pub datagram_bytes: usize,
}

impl Burst {
    /// One by one, for kernels and paths that do not cut.
    pub fn datagrams(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes.chunks(self.datagram_bytes)
    }
}

/// How often things happened to the datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FanoutCounters {
    /// Datagrams made.
    pub datagrams: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Of these, heartbeats.
    pub heartbeats: u64,
    /// Bursts held back by the cap.
    pub held_back: u64,
    /// Records left out, because they had left the backlog before the cap let them go.
    pub skipped_records: u64,
}

#[derive(Debug)]
pub(super) struct Fanout {
    settings: DatagramSettings,
    pacer: Pacer,
    pub(super) cursor: Position,
    sequence: u64,
    heartbeat_at: u64,
    heartbeat_us: u64,
    key: Option<(Branch, DatagramKey)>,
    is_held_back: bool,
    pub(super) counters: FanoutCounters,
}

/// What all datagrams of a burst have in common.
pub(super) struct Source<'a> {
    pub(super) backlog: &'a Backlog,
    pub(super) lineage: &'a Lineage,
    pub(super) durable_lsn: Lsn,
    pub(super) stream: u64,
    pub(super) salt: &'a Nonce,
    pub(super) secret: &'a Secret,
    pub(super) checksum: Checksum,
}

impl Fanout {
    pub(super) fn new(settings: DatagramSettings, cursor: Position, now_micros: u64) -> Fanout {
        Fanout {
            settings,
            pacer: Pacer::new(settings.bytes_per_second, settings.burst_bytes, now_micros),
            cursor,
            sequence: 0,
            heartbeat_at: now_micros,
            heartbeat_us: settings.heartbeat_us_min,
            key: None,
            is_held_back: false,
            counters: FanoutCounters::default(),
        }
    }

    /// Nobody listens: what becomes durable meanwhile is not sent later.
    pub(super) fn idle(&mut self, end: Position, now_micros: u64) {
        (self.cursor, self.heartbeat_at) = (end, now_micros);
        self.heartbeat_us = self.settings.heartbeat_us_min;
        self.is_held_back = false;
    }

    pub(super) fn deadline(&self, end: Position) -> u64 {
        match self.cursor < end {
            true if self.is_held_back => self.pacer.ready_at(self.settings.datagram_bytes as u64),
            true => 0,
            false => self.heartbeat_at,
        }
    }

    pub(super) fn poll(&mut self, source: &Source<'_>, now: Now) -> Option<Burst> {
        let oldest = source.backlog.first();
        if self.cursor < oldest {
            self.counters.skipped_records += oldest.lsn.0 - self.cursor.lsn.0;
            self.cursor = oldest;
        }
        let size = self.settings.datagram_bytes;
        let allowed = self.pacer.available(now.micros) / size as u64;
        let has_records = self.cursor < source.backlog.end();
        if !has_records && now.micros < self.heartbeat_at {
            return None;
        }
        self.counters.held_back += u64::from(allowed == 0 && !self.is_held_back);
        self.is_held_back = allowed == 0;
        if allowed == 0 {
            return None;
        }
        // What the kernel cuts is itself no longer than a datagram may be.
        let most = self.settings.burst_datagrams_max.min(DATAGRAM_BYTES_LIMIT / size);
        let datagrams = usize::try_from(allowed).unwrap_or(usize::MAX).min(most);
        let mut burst = Burst { bytes: Vec::new(), datagram_bytes: size };
        if has_records {
            self.fill(source, now, datagrams, &mut burst.bytes);
            self.heartbeat_us = self.settings.heartbeat_us_min;
        } else {
            self.heartbeat(source, now, &mut burst.bytes);
            self.heartbeat_us = (self.heartbeat_us * 2).min(self.settings.heartbeat_us_max);
        }
        self.heartbeat_at = now.micros.saturating_add(self.heartbeat_us);
        self.pacer.take(burst.bytes.len() as u64);
        self.counters.bytes += burst.bytes.len() as u64;
        (!burst.bytes.is_empty()).then_some(burst)
    }

    fn heartbeat(&mut self, source: &Source<'_>, now: Now, out: &mut Vec<u8>) {
        let Some(latest) = source.lineage.latest() else { return };
        self.counters.heartbeats += 1;
        let mut datagram = self.open(source, now, out, latest.epoch, now.unix_us);
        datagram.pad = 0;
        self.close(source, datagram, out);
    }

    /// Fills datagrams with what follows the cursor.
    fn fill(&mut self, source: &Source<'_>, now: Now, datagrams: usize, out: &mut Vec<u8>) {
        let (mut open, mut made): (Option<Open>, usize) = (None, 0);
        let size = self.settings.datagram_bytes;
        let chunks: Vec<&Chunk> = source.backlog.from(self.cursor).take(datagrams).collect();
        'chunks: for chunk in chunks {
            let run = chunk.run();
            let epoch = run.epoch();
            // A datagram is of one branch, and ends where a record's frame does.
            if open.as_ref().is_some_and(|open| open.epoch != epoch || open.is_full) {
                open.take().into_iter().for_each(|open| self.close(source, open, out));
            }
            for part in run.parts() {
                if part.end() <= self.cursor {
                    continue;
                }
                let mut rest = &part.bytes[(self.cursor.offset - part.position.offset) as usize..];
                loop {
                    if open.as_ref().is_some_and(|open| open.is_full) {
                        open.take().into_iter().for_each(|open| self.close(source, open, out));
                    }
                    if open.is_none() {
                        if made == datagrams {
                            break 'chunks;
                        }
                        made += 1;
                        open = Some(self.open(source, now, out, epoch, part.unix_us));
                    }
                    let Some(current) = &mut open else { break 'chunks };
                    let room = size.saturating_sub(current.writer.bytes(out) + FRAME_BYTES);
                    let taken = rest.len().min(room);
                    let continues = taken < rest.len() || !part.is_last;
                    if taken == 0 && (continues || size < current.writer.bytes(out) + FRAME_BYTES) {
                        current.is_full = true;
                        continue;
                    }
                    current.run.push(out, &rest[..taken], part.unix_us, continues);
                    current.is_full = continues;
                    self.cursor = match continues {
                        true => Position { offset: self.cursor.offset + taken as u32, ..self.cursor },
                        false => Position::start_of(self.cursor.lsn.next()),
                    };
                    rest = &rest[taken..];
                    if rest.is_empty() {
                        break;
                    }
                }
            }
        }
        if let Some(mut last) = open {
            last.pad = 0;
            self.close(source, last, out);
        }
    }

    fn open(&mut self, source: &Source<'_>, now: Now, out: &mut Vec<u8>, epoch: Epoch, unix_us: u64) -> Open {
        self.sequence += 1;
        self.counters.datagrams += 1;
        let writer = DatagramWriter::begin(out, source.stream, self.sequence, now.unix_us);
        let run = RunWriter::begin(out, epoch, self.cursor, source.durable_lsn, unix_us);
        debug_assert_eq!(writer.bytes(out), OVERHEAD_BYTES);
        Open { writer, run, epoch, is_full: false, pad: self.settings.datagram_bytes }
    }

    fn close(&mut self, source: &Source<'_>, open: Open, out: &mut Vec<u8>) {
        let branch = source.lineage.branches().iter().find(|branch| branch.epoch == open.epoch);
        let branch = *branch.expect("records are of this history");
        // By the whole branch: two nodes may have begun the same epoch, and one took the other's place here.
        if self.key.as_ref().is_none_or(|(of, _)| *of != branch) {
            self.key = Some((branch, source.secret.datagram_key(source.salt, branch)));
        }
        let Some((_, key)) = &self.key else { return };
        open.writer.finish(out, open.pad, key, source.checksum);
    }
}

struct Open {
    writer: DatagramWriter,
    run: RunWriter,
    epoch: Epoch,
    /// Nothing more goes in.
    is_full: bool,
    /// Zeros up to this length.
    pad: usize,
}
