//! What each replica is sent next: polled, one step at a time, in turns.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::vec::Vec;
use core::mem;

use wal::lsn::Lsn;
use wal::record::Record;

use crate::backlog::{SharedBytes, encode_chunks};
use crate::fault::{Fault, Reason};
use crate::identity::Now;
use crate::message::{Heartbeat, Message};
use crate::run::Position;

use super::link::{Link, Phase};
use super::{Action, Burst, LinkId, Primary, Source};

impl Primary {
    /// What to do next; none: nothing until something happens, or [`Primary::poll_timeout`].
    pub fn poll_action(&mut self, now: Now) -> Option<Action> {
        if let Some(action) = self.actions.pop_front() {
            return Some(action);
        }
        if let Some((wait, replicas)) = self.waits.poll_done() {
            return Some(Action::WaitDone { wait, replicas });
        }
        // Everybody once, beginning behind who was served last.
        let behind: Vec<LinkId> = self.links.range(self.served..).map(|(&id, _)| id).collect();
        let before = self.links.range(..self.served).map(|(&id, _)| id);
        let turns: Vec<LinkId> =
            behind.iter().copied().filter(|&id| id != self.served).chain(before).collect();
        let last = self.links.contains_key(&self.served).then_some(self.served);
        for id in turns.into_iter().chain(last) {
            if let Some(action) = self.poll_link(id, now) {
                self.served = id;
                return Some(action);
            }
        }
        None
    }

    fn poll_link(&mut self, id: LinkId, now: Now) -> Option<Action> {
        let (durable, window) = (self.durable_lsn, self.settings.send_window_bytes);
        let available_from = self.available_from();
        let link = self.links.get_mut(&id)?;
        if !link.out.is_empty() {
            let bytes = mem::take(&mut link.out);
            return Some(link.send(id, SharedBytes::new(bytes)));
        }
        if link.in_flight_bytes >= window {
            return None;
        }
        match &mut link.phase {
            Phase::Choosing { is_asked } if !*is_asked => {
                *is_asked = true;
                let partial = link.hello.as_ref().and_then(|hello| hello.partial);
                Some(Action::FindSnapshot { link: id, partial: partial.map(|(name, _)| name) })
            }
            Phase::Snapshot { name, offset, is_reading } if !*is_reading => {
                *is_reading = true;
                let rest = usize::try_from(name.length - *offset).unwrap_or(usize::MAX);
                let length = rest.min(self.settings.snapshot_chunk_bytes);
                Some(Action::ReadSnapshot { link: id, name: *name, offset: *offset, length })
            }
            Phase::Streaming(stream) => {
                if let Some(chunk) = stream.from_log.pop_front() {
                    return Some(link.send(id, chunk.frame));
                }
                if stream.is_reading || stream.until.is_some_and(|until| stream.cursor.lsn > until) {
                    return None;
                }
                if stream.cursor >= self.backlog.end() {
                    if link.datagrams && !stream.is_live {
                        let live = stream.cursor.lsn;
                        (stream.is_live, stream.until) = (true, Some(Lsn::ZERO));
                        link.say(&Message::Live(live), self.checksum);
                        self.begin_fanout(id, now);
                        return self.poll_link(id, now);
                    }
                    return None;
                }
                if let Some(chunk) = self.backlog.from(stream.cursor).next() {
                    stream.cursor = chunk.end;
                    let frame = chunk.frame.clone();
                    return Some(link.send(id, frame));
                }
                if self.log_first_lsn.is_none() || available_from > stream.cursor.lsn {
                    self.handle_log_gone(id);
                    return self.actions.pop_front();
                }
                if self.log_reads == self.settings.log_reads_max {
                    return None;
                }
                self.log_reads += 1;
                self.counters.log_reads += 1;
                link.log_reads += 1;
                stream.is_reading = true;
                let until = stream.until.map_or(durable, |until| until.min(durable));
                let bytes_max = self.settings.log_read_bytes;
                Some(Action::ReadLog { link: id, from: stream.cursor.lsn, until, bytes_max })
            }
            _ => None,
        }
    }

    /// The first replica that takes datagrams: they begin where it stands.
    fn begin_fanout(&mut self, id: LinkId, now: Now) {
        let is_first = !self.links.iter().any(|(&other, link)| other != id && link.is_live());
        if let Some(fanout) = self.fanout.as_mut().filter(|_| is_first) {
            fanout.idle(self.backlog.end(), now.micros);
        }
    }

    /// What the edge read from the log, in order from the record that was asked for. Nothing: it is not
    /// there.
    pub fn handle_log_records<'a>(&mut self, id: LinkId, records: impl Iterator<Item = Record<'a>>) {
        let (durable, checksum) = (self.durable_lsn, self.checksum);
        let Some(link) = self.links.get_mut(&id) else { return };
        let Phase::Streaming(stream) = &mut link.phase else { return };
        if !mem::take(&mut stream.is_reading) {
            return;
        }
        self.log_reads -= 1;
        // A repair may have been asked for meanwhile: then this is not what is wanted now.
        let mut records = records.take_while(|record| record.lsn <= durable).peekable();
        let Some(first) = records.peek().map(|record| record.lsn) else { return self.handle_log_gone(id) };
        if first != stream.cursor.lsn {
            return;
        }
        let body_bytes_max = self.settings.frame_bytes_max;
        let mut chunks = VecDeque::new();
        encode_chunks(records, &self.lineage, durable, body_bytes_max, checksum, |chunk| {
            chunks.push_back(chunk)
        });
        stream.cursor = chunks.back().map_or(stream.cursor, |last| last.end);
        stream.from_log = chunks;
    }

    /// The log does not have what a replica needs: it comes back, and is given a snapshot.
    pub fn handle_log_gone(&mut self, id: LinkId) {
        let Some(Link { phase: Phase::Streaming(stream), .. }) = self.links.get(&id) else { return };
        let text = format!("expected LSN {} in the log, found that it was let go", stream.cursor.lsn);
        self.refuse(id, Fault::new(Reason::LogGone, text));
    }

    /// The log cannot be read where a replica needs it. What is before the present is not read again, and it comes back
    /// for a snapshot; so does everybody who is as far behind.
    pub fn handle_log_damaged(&mut self, id: LinkId, why: &str) {
        self.log_sound_from = self.durable_lsn.next();
        let Some(Link { phase: Phase::Streaming(stream), .. }) = self.links.get(&id) else { return };
        let text = format!("expected LSN {} in the log, found {why}", stream.cursor.lsn);
        self.refuse(id, Fault::new(Reason::LogGone, text));
    }

    /// Bytes of the snapshot, as asked for.
    pub fn handle_snapshot_bytes(&mut self, id: LinkId, at: u64, bytes: &[u8], now: Now) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let Phase::Snapshot { name, offset, is_reading } = &mut link.phase else { return };
        if !*is_reading || *offset != at || bytes.is_empty() || bytes.len() as u64 > name.length - at {
            return;
        }
        (*offset, *is_reading) = (at + bytes.len() as u64, false);
        link.say(&Message::Chunk { offset: at, bytes: bytes.to_vec() }, self.checksum);
        self.after_snapshot(id, now.micros);
    }

    /// Records and heartbeats as datagrams, for the group or each address of the list. Poll until there is
    /// none.
    pub fn poll_datagrams(&mut self, now: Now) -> Option<Burst> {
        let is_heard = self.links.values().any(Link::is_live);
        let fanout = self.fanout.as_mut()?;
        if !is_heard {
            fanout.idle(self.backlog.end(), now.micros);
            return None;
        }
        let source = Source {
            backlog: &self.backlog,
            lineage: &self.lineage,
            durable_lsn: self.durable_lsn,
            stream: self.stream,
            salt: &self.salt,
            secret: &self.secret,
            checksum: self.checksum,
        };
        fanout.poll(&source, now)
    }

    /// Time has passed: heartbeats, and who is silent for too long.
    pub fn handle_timeout(&mut self, now: Now) {
        let beat = self.heartbeat(now);
        let (checksum, timeout_us) = (self.checksum, self.settings.timeout_us);
        let mut over = Vec::new();
        for (&id, link) in &mut self.links {
            if now.micros.saturating_sub(link.heard_at) >= timeout_us {
                let what = if link.is_replica() { "an ack" } else { "a proof" };
                let text = format!("expected {what} within {timeout_us} us, found none");
                over.push((id, Fault::new(Reason::Timeout, text)));
            } else if let Some((behind, most)) = link.is_too_far_behind(self.durable_lsn) {
                let text = format!("expected a replica within {most} records, found one {behind} behind");
                over.push((id, Fault::new(Reason::TooSlow, text)));
            } else if link.is_replica() && now.micros >= link.heartbeat_at {
                link.say(&Message::Heartbeat(Heartbeat { echo: link.echo, ..beat }), checksum);
                link.heartbeat_at = now.micros.saturating_add(self.settings.heartbeat_us);
            }
        }
        over.into_iter().for_each(|(id, fault)| self.refuse(id, fault));
        let links = &self.links;
        self.waits.expire(now.micros, |lsn| super::replicas_with(links, lsn));
    }

    /// When [`Primary::handle_timeout`] and [`Primary::poll_datagrams`] have something to do, if nothing
    /// happens before.
    pub fn poll_timeout(&self) -> Option<u64> {
        let timeout_us = self.settings.timeout_us;
        let links = self.links.values().flat_map(|link| {
            let heartbeat_at = link.is_replica().then_some(link.heartbeat_at);
            [Some(link.heard_at.saturating_add(timeout_us)), heartbeat_at].into_iter().flatten()
        });
        let is_heard = self.links.values().any(Link::is_live);
        let fanout = self.fanout.as_ref().filter(|_| is_heard);
        let datagrams = fanout.map(|fanout| fanout.deadline(self.backlog.end()));
        links.chain(datagrams).chain(self.waits.deadline()).min()
    }

    pub(super) fn heartbeat(&self, now: Now) -> Heartbeat {
        let end = Position::start_of(self.durable_lsn.next());
        Heartbeat {
            durable_lsn: self.durable_lsn,
            datagrams_lsn: self.fanout.as_ref().map_or(end, |fanout| fanout.cursor).lsn,
            unix_us: now.unix_us,
            echo: 0,
            log_bytes: self.backlog.log_bytes(),
            age_us: match self.fresh_as_of {
                None => 0,
                Some(fresh) => fresh.map_or(u64::MAX, |fresh| now.micros.saturating_sub(fresh)),
            },
            wants_ack: false,
        }
    }
}

impl Link {
    fn send(&mut self, id: LinkId, bytes: SharedBytes) -> Action {
        self.in_flight_bytes += bytes.len();
        Action::Send { link: id, bytes }
    }
}
