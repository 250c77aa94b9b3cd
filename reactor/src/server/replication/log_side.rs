//! A replica's own log, and records read back from a log for replicas that fell behind.
//!
//! A replica's shards write nothing: the thread hands the log what the primary has sent, under the primary's LSNs and
//! epochs, before the shards are dealt it. How far that is durable is acknowledged; nobody waits for it.

use super::OwnLog;
use super::links::as_record;
use crate::server::log_handle::Refusal;
use crate::server::recovery::{LogOnDisk, Read, RecoveryError};
use repl::run::Delivery;
use std::path::Path;
use wal::lsn::Lsn;
use wal::reader::{ReadOptions, Until};
use wal::record::{FRAME_BYTES, Record};

/// Said by the closure that has enough.
const ENOUGH: &str = "enough";

/// Records of the log.
pub(super) struct LogRead {
    bytes: Vec<u8>,
    /// LSN, time, end.
    ends: Vec<(u64, u64, usize)>,
    /// The first record that the log has now.
    pub(super) first_lsn: Lsn,
}

impl LogRead {
    /// Reads from this record on, to that one at most, and about so many bytes.
    pub(super) fn read(
        directory: &Path,
        from: Lsn,
        until: Lsn,
        bytes_max: usize,
    ) -> Result<LogRead, RecoveryError> {
        let mut read = LogRead::try_read(directory, from, until, bytes_max);
        // A segment may be recycled between two looks at the directory.
        for _ in 0..2 {
            if read.is_err() {
                read = LogRead::try_read(directory, from, until, bytes_max);
            }
        }
        read
    }

    fn try_read(directory: &Path, from: Lsn, until: Lsn, bytes_max: usize) -> Result<LogRead, RecoveryError> {
        let log = LogOnDisk::open(directory)?;
        let mut read = LogRead { bytes: Vec::new(), ends: Vec::new(), first_lsn: log.first_lsn() };
        if read.first_lsn > from {
            return Ok(read);
        }
        let options = ReadOptions { from, until: Until::Lsn(until), ..ReadOptions::default() };
        let outcome = log.read(options, None, |lsn, unix_us, payload| {
            if lsn < from {
                return Ok(());
            }
            if lsn > until || read.bytes.len() >= bytes_max {
                return Err(ENOUGH.into());
            }
            read.bytes.extend_from_slice(payload);
            read.ends.push((lsn.0, unix_us, read.bytes.len()));
            Ok(())
        });
        match outcome {
            Err(RecoveryError::Record { why, .. }) if why == ENOUGH => Ok(read),
            // What is behind the last block that is durable is being written.
            Ok(Read::End(_) | Read::Damaged(..)) if !read.ends.is_empty() => Ok(read),
            Ok(Read::End(_)) => Ok(read),
            Ok(Read::Damaged(place, damage, _)) => Err(RecoveryError::Damage(place, damage)),
            Err(error) => Err(error),
        }
    }

    /// They, in order.
    pub(super) fn records(&self) -> impl Iterator<Item = Record<'_>> {
        let mut begin = 0;
        self.ends.iter().map(move |&(lsn, unix_us, end)| {
            let payload = &self.bytes[begin..end];
            begin = end;
            as_record(lsn, unix_us, payload)
        })
    }
}

/// What a replica has handed to its own log.
#[derive(Debug)]
pub(super) struct OwnRecords {
    /// Up to here.
    pub(super) submitted: Lsn,
    /// There is no room for more just now.
    pub(super) is_blocked: bool,
}

impl OwnRecords {
    pub(super) fn new(submitted: Lsn) -> OwnRecords {
        OwnRecords { submitted, is_blocked: false }
    }

    /// Hands over the records of a delivery. False: there is no room; the bell rings when there may be. An error: the log
    /// takes nothing any more.
    pub(super) fn submit(&mut self, log: &mut OwnLog, delivery: &Delivery) -> Result<bool, String> {
        let framed: usize = delivery.records().map(|record| record.payload.len() + FRAME_BYTES).sum();
        self.is_blocked = false;
        if let Err(refusal) = log.handle.admit(framed) {
            self.is_blocked = true;
            log.handle.wait_for_room();
            return match refusal {
                Refusal::Busy | Refusal::Full => Ok(false),
                Refusal::Failed | Refusal::Closed => Err(log.handle.shared().state().to_string()),
            };
        }
        let mut batch = log.handle.batch(0);
        for record in delivery.records() {
            if record.unix_us != batch.unix_us && !batch.is_empty() {
                log.handle.submit(batch);
                batch = log.handle.batch(0);
            }
            batch.unix_us = record.unix_us;
            batch.push(record.lsn, record.payload);
        }
        // Whoever asks what was written last must not hear less than what shards show.
        log.handle.shared().set_next_lsn(delivery.last_lsn.next());
        log.handle.submit(batch);
        self.submitted = delivery.last_lsn;
        Ok(true)
    }
}
