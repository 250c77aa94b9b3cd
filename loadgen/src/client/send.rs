//! What goes out: which requests leave now, and their stamps.

use super::connection::{Asked, Phase};
use super::{Client, Load, Stage};
use crate::workload;
use reactor::server::event::Operation;

/// Requests in a batch while the server is filled.
const PREFILL_PIPELINE: u32 = 64;
/// An open loop's send carries at most this many bytes, so that one connection's backlog does not hold up all.
const SEND_BYTES_MAX: usize = 256 * 1024;

impl Client {
    /// The next operation; `now` becomes the send stamp of what it carries.
    #[inline]
    pub(super) fn next_operation(&mut self, now: u64) -> Option<Operation> {
        if let Some(operation) = self.operations.pop_front() {
            return Some(operation);
        }
        while let Some(index) = self.dirty.pop() {
            self.connections[index as usize].dirty = false;
            if let Some(send) = self.build_send(index as usize, now) {
                return Some(send);
            }
        }
        None
    }

    #[inline]
    pub(super) fn build_send(&mut self, index: usize, now: u64) -> Option<Operation> {
        let connection = &mut self.connections[index];
        if connection.phase != Phase::Ready || connection.sending {
            return None;
        }
        let id = connection.id?;
        let room = match (self.plan.requests_per_connection, self.stage) {
            (Some(limit), Stage::WarmUp | Stage::Measure | Stage::Drain) => limit - connection.requests,
            _ => u64::MAX,
        };
        if room == 0 {
            return self.churn(index);
        }
        let mut buffer = std::mem::take(&mut connection.buffer);
        let measured_now;
        match self.stage {
            Stage::Prefill => {
                let count = u64::from(PREFILL_PIPELINE).min(self.prefill_left);
                let workload = self.prefill.as_mut().filter(|_| connection.missing == 0);
                if let Some(workload) = workload {
                    for _ in 0..count {
                        workload.render(connection.sequence, &mut buffer);
                        connection.sequence += 1;
                    }
                    self.prefill_left -= count;
                    connection.missing = count as u32;
                    connection.sent_at = now;
                    self.outstanding += count as usize;
                }
                measured_now = 0;
            }
            Stage::WarmUp | Stage::Measure | Stage::Drain => match self.plan.load {
                Load::Closed { pipeline } => {
                    if connection.missing > 0 || self.stage == Stage::Drain {
                        connection.buffer = buffer;
                        return None;
                    }
                    let mut count = u64::from(pipeline).min(room);
                    if self.stage == Stage::Measure {
                        count = count.min(self.requests_left);
                        self.requests_left -= count;
                        self.counts.offered += count;
                        measured_now = count;
                    } else {
                        measured_now = 0;
                    }
                    if count == 0 {
                        connection.buffer = buffer;
                        return None;
                    }
                    for _ in 0..count {
                        self.workload.render(connection.sequence, &mut buffer);
                        connection.sequence += 1;
                    }
                    connection.missing = count as u32;
                    connection.requests += count;
                    connection.sent_at = now;
                    self.outstanding += count as usize;
                }
                Load::Open { .. } => {
                    let began = match self.stage {
                        Stage::WarmUp => self.stage_began + self.plan.warmup_ns,
                        _ => self.measure_began,
                    };
                    let mut measured = 0;
                    let mut count = 0;
                    while buffer.len() < SEND_BYTES_MAX && (count as u64) < room {
                        let Some(intended) = connection.due.pop_front() else { break };
                        self.workload.render(connection.sequence, &mut buffer);
                        connection.sequence += 1;
                        connection.asked.push_back(Asked { intended, sent: now });
                        count += 1;
                        if intended >= began {
                            self.lateness.saturating_record(now - intended);
                            measured += 1;
                            if let Some(picker) = &mut self.picker {
                                picker.see(intended, now);
                            }
                        }
                    }
                    connection.requests += count as u64;
                    self.waiting -= count;
                    self.outstanding += count;
                    measured_now = measured;
                }
            },
            Stage::Connect | Stage::Wait | Stage::Done => return None,
        }
        if buffer.is_empty() {
            connection.buffer = buffer;
            return None;
        }
        if measured_now > 0 {
            self.counts.sent += measured_now;
            self.counts.sent_bytes += buffer.len() as u64;
        }
        connection.sending = true;
        Some(Operation::Send { connection: id, buffer })
    }

    /// Closes a connection whose requests are used up, as soon as they are answered. What is due on it waits, late and
    /// not dropped, until it is open again.
    pub(super) fn churn(&mut self, index: usize) -> Option<Operation> {
        let connection = &mut self.connections[index];
        let is_over = self.stage == Stage::Drain && connection.due.is_empty();
        if connection.missing > 0 || !connection.asked.is_empty() || is_over {
            return None;
        }
        let id = connection.id?;
        connection.phase = Phase::Closing;
        connection.churning = true;
        connection.scanner = workload::scanner(self.plan.workload.protocol);
        self.ready -= 1;
        self.counts.churned += u64::from(self.stage == Stage::Measure);
        Some(Operation::Close { connection: id })
    }
}
