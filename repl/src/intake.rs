//! Runs in, whole records in order out: each record once, none left out.
//!
//! Runs come from frames, from datagrams and from repairs, cut anywhere and overlapping. What decides is the
//! position that is expected next: what lies before it was had already, what begins behind it is early, and
//! only what goes on exactly there is taken.

use alloc::vec::Vec;

use wal::lsn::Lsn;

use crate::run::{Delivery, Position, Run, Source};

/// What became of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It went on where the last one ended. At most two deliveries: the end of a record that came in parts,
    /// and the whole records behind it.
    Next(Vec<Delivery>),
    /// All of it was there before.
    Old,
    /// Something before it is missing.
    Early,
    /// It has a record that is longer than the bound.
    TooLong {
        /// Which.
        lsn: Lsn,
        /// Bytes of it so far.
        bytes: usize,
    },
}

/// Where the stream of records stands on the receiving side.
#[derive(Debug)]
pub struct Intake {
    expected: Position,
    /// What there is of the expected record.
    joined: Vec<u8>,
    record_bytes_max: usize,
}

impl Intake {
    /// Expects this record first.
    pub fn new(next: Lsn, record_bytes_max: usize) -> Intake {
        Intake { expected: Position::start_of(next), joined: Vec::new(), record_bytes_max }
    }

    /// What is to come next.
    pub fn expected(&self) -> Position {
        self.expected
    }

    /// The last whole record there was.
    pub fn last_lsn(&self) -> Lsn {
        self.expected.lsn.previous()
    }

    /// Forgets what there is of an unfinished record.
    pub fn restart(&mut self, next: Lsn) {
        self.expected = Position::start_of(next);
        self.joined = Vec::new();
    }

    /// Takes a run, whose epoch and durable mark have been checked.
    pub fn take(&mut self, run: &Run<'_>) -> Taken {
        if run.first() > self.expected {
            return Taken::Early;
        }
        // Looked at before anything is changed: what is delivered and what is expected never disagree.
        let lengths = run
            .parts()
            .filter(|part| part.end() > self.expected)
            .map(|part| (part.position.lsn, part.position.offset as usize + part.bytes.len()));
        if let Some((lsn, bytes)) = lengths.into_iter().find(|&(_, bytes)| bytes > self.record_bytes_max) {
            return Taken::TooLong { lsn, bytes };
        }
        let epoch = run.epoch();
        let mut deliveries = Vec::new();
        let (mut whole, mut is_old): (Option<(Lsn, Lsn)>, bool) = (None, true);
        for part in run.parts() {
            let (lsn, end) = (part.position.lsn, part.end());
            if end <= self.expected {
                continue;
            }
            // Behind a part that was had in full comes exactly what is expected, since parts have no gaps.
            let skipped = (self.expected.offset - part.position.offset) as usize;
            let Some(bytes) = part.bytes.get(skipped..) else { continue };
            is_old = false;
            if part.is_last && part.position.offset == 0 && self.expected.offset == 0 {
                whole = Some((whole.map_or(lsn, |(first, _)| first), lsn));
            } else {
                self.joined.extend_from_slice(bytes);
                if part.is_last {
                    let payload = core::mem::take(&mut self.joined);
                    let source = Source::Joined { unix_us: part.unix_us, payload };
                    deliveries.push(Delivery { first_lsn: lsn, last_lsn: lsn, epoch, source });
                }
            }
            self.expected = end;
        }
        if let Some((first_lsn, last_lsn)) = whole {
            let source = Source::Run(run.as_bytes().to_vec());
            deliveries.push(Delivery { first_lsn, last_lsn, epoch, source });
        }
        if is_old { Taken::Old } else { Taken::Next(deliveries) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::RunWriter;
    use wal::lsn::Epoch;

    fn payload(lsn: u64) -> Vec<u8> {
        (0..(lsn * 7) % 40).map(|n| (n + lsn) as u8).collect()
    }

    /// A run of these positions: from `first` up to (not including) `end`.
    fn run(first: Position, end: Position) -> Vec<u8> {
        let mut out = Vec::new();
        let mut writer = RunWriter::begin(&mut out, Epoch(1), first, Lsn(99), 5);
        for lsn in first.lsn.0..=end.lsn.0 {
            let bytes = payload(lsn);
            let from = if lsn == first.lsn.0 { first.offset as usize } else { 0 };
            if lsn == end.lsn.0 {
                if end.offset as usize > from {
                    writer.push(&mut out, &bytes[from..end.offset as usize], 5, true);
                }
            } else {
                writer.push(&mut out, &bytes[from..], 5, false);
            }
        }
        out
    }

    fn positions() -> Vec<Position> {
        let inside =
            |lsn| [0, 1, payload(lsn).len() as u32 / 2].map(|offset| Position { lsn: Lsn(lsn), offset });
        let mut all: Vec<Position> = (1..8).flat_map(inside).collect();
        all.retain(|at| (at.offset as usize) < payload(at.lsn.0).len().max(1));
        all.dedup();
        all
    }

    #[test]
    fn any_cover_of_the_stream_gives_each_record_once() {
        // Every pair of overlapping runs, and then the rest.
        let all = positions();
        let last = Position::start_of(Lsn(8));
        for &middle in &all {
            for &again in all.iter().filter(|&&again| again <= middle) {
                let mut intake = Intake::new(Lsn(1), 1000);
                let mut seen = Vec::new();
                let start = Position::start_of(Lsn(1));
                for (first, end) in [(start, middle), (again, last), (start, last)] {
                    if first == end {
                        continue;
                    }
                    let bytes = run(first, end);
                    match intake.take(&Run::parse(&bytes).unwrap()) {
                        Taken::Next(deliveries) => {
                            for delivery in &deliveries {
                                assert_eq!(delivery.records().next().unwrap().lsn, delivery.first_lsn);
                                seen.extend(delivery.records().map(|r| (r.lsn.0, r.payload.to_vec())));
                            }
                        }
                        Taken::Old => assert!(first == start && intake.expected() == last || end <= middle),
                        other => panic!("{first:?}..{end:?}: {other:?}"),
                    }
                }
                assert_eq!(
                    seen,
                    (1..8).map(|lsn| (lsn, payload(lsn))).collect::<Vec<_>>(),
                    "{middle:?} {again:?}"
                );
            }
        }
    }

    #[test]
    fn what_is_early_or_too_long_changes_nothing() {
        let mut intake = Intake::new(Lsn(2), 20);
        let bytes = run(Position { lsn: Lsn(2), offset: 3 }, Position::start_of(Lsn(4)));
        assert_eq!(intake.take(&Run::parse(&bytes).unwrap()), Taken::Early);
        let bytes = run(Position::start_of(Lsn(2)), Position::start_of(Lsn(4)));
        let taken = intake.take(&Run::parse(&bytes).unwrap());
        assert_eq!(taken, Taken::TooLong { lsn: Lsn(3), bytes: 21 });
    }
}
