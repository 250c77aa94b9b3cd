//! Reading a journal: records in order, and what cannot be what was written.

use super::{FRAME_BYTES, Journal, JournalError, Place, part};
use crate::lsn::Lsn;
use crate::reader::Until;
use crate::record::Record;

/// What reading found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalEnd {
    /// The record that would come next.
    pub next_lsn: Lsn,
    /// The time of the last record read.
    pub last_unix_us: u64,
    /// Records handed out.
    pub records: u64,
    /// Bytes of their payloads.
    pub payload_bytes: u64,
    /// It stopped where it was told to, and there is more.
    pub is_until: bool,
}

impl Journal {
    /// Reads where the last row ends.
    pub(super) fn find_end(&mut self) -> Result<(), JournalError> {
        let query =
            "SELECT number, first_lsn, count, unix_us, part, bytes FROM block ORDER BY number DESC LIMIT 1";
        let last = {
            let mut select = self.prepare(query)?;
            let mut rows = select.query([]).map_err(|error| self.classify("reading its end", &error))?;
            match rows.next().map_err(|error| self.classify("reading its end", &error))? {
                None => None,
                Some(row) => Some(self.block(row).map(|block| {
                    let last = Frames(block.bytes).last();
                    let delay = if block.part == part::WHOLE { last.map_or(0, |frame| frame.0) } else { 0 };
                    let place = Place {
                        next_lsn: block.first_lsn.plus(block.count),
                        next_number: block.number + 1,
                        last_unix_us: block.unix_us + u64::from(delay),
                    };
                    (place, block.part)
                })?),
            }
        };
        self.place = match last {
            None => Place { next_lsn: self.first_lsn, next_number: 1, last_unix_us: 0 },
            Some((_, part::GOES_ON)) => {
                return Err(self.damaged("a record whose end is missing".to_string()));
            }
            Some((place, _)) => place,
        };
        self.durable_lsn = self.place.next_lsn.previous();
        Ok(())
    }

    pub(super) fn prepare(&self, sql: &str) -> Result<rusqlite::Statement<'_>, JournalError> {
        self.connection.prepare(sql).map_err(|error| self.classify("reading records", &error))
    }

    pub(super) fn block<'a>(&self, row: &'a rusqlite::Row<'a>) -> Result<Block<'a>, JournalError> {
        let number = |index| match row.get::<_, i64>(index) {
            Ok(number) if number >= 0 => Ok(number as u64),
            Ok(number) => Err(self.damaged(format!("the number {number}"))),
            Err(error) => Err(self.classify("reading records", &error)),
        };
        let bytes = row.get_ref(5).map_err(|error| self.classify("reading records", &error))?;
        Ok(Block {
            number: number(0)? as i64,
            first_lsn: Lsn(number(1)?),
            count: number(2)?,
            unix_us: number(3)?,
            part: number(4)? as i64,
            bytes: bytes.as_blob().map_err(|error| self.damaged(error.to_string()))?,
        })
    }

    /// Hands out the records from `from` on, in order, until `each` returns an error. Every page read is authenticated
    /// by its key.
    pub fn read<E: From<JournalError>>(
        &self,
        from: Lsn,
        until: Until,
        mut each: impl FnMut(Record<'_>) -> Result<(), E>,
    ) -> Result<JournalEnd, E> {
        let mut end =
            JournalEnd { next_lsn: from, last_unix_us: 0, records: 0, payload_bytes: 0, is_until: false };
        if from < self.first_lsn {
            return Err(self
                .damaged(format!("that they begin with LSN {}, not {from}", self.first_lsn))
                .into());
        }
        let failed = |error: &rusqlite::Error| self.classify("reading records", error);
        let query = "SELECT number, first_lsn, count, unix_us, part, bytes FROM block WHERE number >= ?1 ORDER BY number";
        let mut select = self.prepare(query)?;
        let mut rows = select.query([self.number_of(from)?]).map_err(|error| failed(&error))?;
        // The beginning of a record that takes several rows.
        let mut begun: Option<Vec<u8>> = None;
        let mut next: Option<(i64, Lsn)> = None;
        while let Some(row) = rows.next().map_err(|error| failed(&error))? {
            let block = self.block(row)?;
            let found = (block.number, block.first_lsn);
            if next.is_some_and(|next| next != found) || block.first_lsn > end.next_lsn {
                let (number, lsn) = next.unwrap_or((block.number, end.next_lsn));
                let found =
                    format!("block {} with LSN {} for block {number} with LSN {lsn}", found.0, found.1);
                return Err(self.damaged(found).into());
            }
            next = Some((block.number + 1, block.first_lsn.plus(block.count)));
            let mut hand_out = |lsn: Lsn, unix_us: u64, payload: &[u8]| -> Result<bool, E> {
                if lsn < end.next_lsn {
                    return Ok(true);
                }
                end.is_until = match until {
                    Until::End => false,
                    Until::Lsn(last) => lsn > last,
                    Until::UnixMicros(last) => unix_us > last,
                };
                if end.is_until {
                    return Ok(false);
                }
                end = JournalEnd {
                    next_lsn: lsn.next(),
                    last_unix_us: unix_us,
                    records: end.records + 1,
                    payload_bytes: end.payload_bytes + payload.len() as u64,
                    is_until: false,
                };
                each(Record { lsn, unix_us, payload })?;
                Ok(true)
            };
            let lost = |what: &str| self.damaged(format!("{what} in block {}", block.number));
            match (block.part, &mut begun, block.count) {
                (part::WHOLE, None, 1..) => {
                    let mut frames = Frames(block.bytes);
                    for lsn in block.first_lsn.0..block.first_lsn.0 + block.count {
                        let (delay, payload) = frames.next().ok_or_else(|| lost("too few records"))?;
                        if !hand_out(Lsn(lsn), block.unix_us + u64::from(delay), payload)? {
                            return Ok(end);
                        }
                    }
                    if !frames.0.is_empty() {
                        return Err(lost("bytes behind the records").into());
                    }
                }
                (part::GOES_ON, begun, 0) => {
                    begun.get_or_insert_default().extend_from_slice(block.bytes);
                }
                (part::LAST, begun, 1) => {
                    let mut bytes = begun.take().unwrap_or_default();
                    bytes.extend_from_slice(block.bytes);
                    if !hand_out(block.first_lsn, block.unix_us, &bytes)? {
                        return Ok(end);
                    }
                }
                _ => return Err(lost("parts that do not fit").into()),
            }
        }
        if end.next_lsn < self.next_lsn() {
            return Err(self.damaged(format!("the end after LSN {}", end.next_lsn.previous())).into());
        }
        Ok(end)
    }

    /// The row in which a record begins; numbers follow each other, so it is found by halving.
    pub(super) fn number_of(&self, lsn: Lsn) -> Result<i64, JournalError> {
        let failed = |error: &rusqlite::Error| self.classify("looking for a record", error);
        let bounds = self.connection.query_row("SELECT min(number), max(number) FROM block", [], |row| {
            Ok((row.get::<_, Option<i64>>(0)?, row.get::<_, Option<i64>>(1)?))
        });
        let (Some(mut low), Some(mut high)) = bounds.map_err(|error| failed(&error))? else { return Ok(0) };
        let mut select = self.prepare("SELECT first_lsn FROM block WHERE number = ?1")?;
        let mut first_of = |number: i64| {
            let first = select.query_row([number], |row| row.get::<_, i64>(0));
            first.map_err(|error| self.damaged(format!("no block {number}: {error}")))
        };
        while low < high {
            let middle = low + (high - low + 1) / 2;
            // The first of several rows of one record is wanted, or one before it.
            if first_of(middle)? as u64 >= lsn.0 { high = middle - 1 } else { low = middle }
        }
        Ok(low)
    }
}

/// A row as it was read.
pub(super) struct Block<'a> {
    pub(super) number: i64,
    pub(super) first_lsn: Lsn,
    pub(super) count: u64,
    pub(super) unix_us: u64,
    pub(super) part: i64,
    pub(super) bytes: &'a [u8],
}

/// The records of a blob: delay and payload.
pub(super) struct Frames<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Frames<'a> {
    type Item = (u32, &'a [u8]);

    fn next(&mut self) -> Option<(u32, &'a [u8])> {
        let (frame, rest) = self.0.split_first_chunk::<FRAME_BYTES>()?;
        let word = |at: usize| u32::from_le_bytes(frame[at..at + 4].try_into().expect("four bytes"));
        let payload = rest.get(..word(0) as usize)?;
        self.0 = &rest[payload.len()..];
        Some((word(4), payload))
    }
}
