//! Where the log's owner leaves records for the replication thread: in order, while there is anybody to have them.
//!
//! Closed, it costs the log's thread one load for each batch. The thread asks for it when the first replica has proved who
//! it is, and closes it some time after the last has gone; from the owner's answer on (`Tapped::from`) everything that is appended is copied here, and [`Tap::note_durable`] says how far it may be
//! handed on. What is behind it was read before, or comes from the log. If the thread falls so far behind that
//! `BYTES_MAX` wait, the tap closes by itself and says so: replicas begin anew where it is opened again, from the log.

use crate::io::sync::Bell;
use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use wal::lsn::Lsn;
use wal::record::Record;

/// Records that wait for the thread: many times what one block holds.
const BYTES_MAX: usize = 128 << 20;

/// Consecutive records of one time.
#[derive(Debug, Default)]
pub(super) struct TapRun {
    first_lsn: u64,
    unix_us: u64,
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl TapRun {
    pub(super) fn last_lsn(&self) -> Lsn {
        Lsn(self.first_lsn + self.ends.len() as u64 - 1)
    }

    /// The records behind `after`, up to `until`.
    pub(super) fn records(&self, after: Lsn, until: Lsn) -> impl Iterator<Item = Record<'_>> {
        let mut begin = 0;
        let all = self.ends.iter().zip(self.first_lsn..).map(move |(&end, lsn)| {
            let payload = &self.bytes[begin..end];
            begin = end;
            Record { lsn: Lsn(lsn), unix_us: self.unix_us, payload }
        });
        all.filter(move |record| record.lsn > after && record.lsn <= until)
    }
}

#[derive(Debug, Default)]
struct Queue {
    runs: VecDeque<TapRun>,
    bytes: usize,
    /// Records behind this one are here.
    from: Option<Lsn>,
    last_unix_us: u64,
    durable: Lsn,
    has_overflowed: bool,
    /// How often it was asked for or closed: an answer to an earlier question is none.
    asked: u64,
}

impl Queue {
    fn empty(&self) -> Queue {
        Queue { asked: self.asked, ..Queue::default() }
    }
}

/// See the module.
pub struct Tap {
    is_open: AtomicBool,
    queue: Mutex<Queue>,
    bell: Arc<Bell>,
}

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tap(open: {:?})", self.is_open)
    }
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Tapped {
    /// Records of it may be durable, and the last few not yet.
    pub(super) runs: VecDeque<TapRun>,
    /// Records behind this one are handed over; none: the owner has not heard yet.
    pub(super) from: Option<Lsn>,
    /// What is durable.
    pub(super) durable: Lsn,
    /// Some are lost: see the module.
    pub(super) has_overflowed: bool,
}

impl Tap {
    /// A closed one, which rings this bell.
    pub(super) fn new(bell: Arc<Bell>) -> Arc<Tap> {
        Arc::new(Tap { is_open: AtomicBool::new(false), queue: Mutex::default(), bell })
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether records are wanted; one load.
    #[inline]
    pub fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Relaxed)
    }

    /// Records are wanted: the owner is to be given this number. What is here of an earlier time goes.
    pub(super) fn ask(&self) -> u64 {
        self.close();
        self.queue().asked
    }

    /// By the owner, between two appends: what is appended from now on will come; unless it is not wanted any more.
    pub(in crate::server) fn open(&self, asked: u64, appended: Lsn, durable: Lsn) {
        let mut queue = self.queue();
        if queue.asked != asked {
            return;
        }
        *queue = Queue { from: Some(appended), durable, ..queue.empty() };
        self.is_open.store(true, Ordering::Release);
        drop(queue);
        self.bell.ring();
    }

    /// Nothing more is wanted.
    pub(super) fn close(&self) {
        let mut queue = self.queue();
        self.is_open.store(false, Ordering::Release);
        *queue = queue.empty();
        queue.asked += 1;
    }

    /// Records were appended.
    pub(in crate::server) fn push<'a>(
        &self,
        first_lsn: u64,
        unix_us: u64,
        payloads: impl Iterator<Item = &'a [u8]>,
    ) {
        let mut run = TapRun { first_lsn, unix_us, ..TapRun::default() };
        for payload in payloads {
            run.bytes.extend_from_slice(payload);
            run.ends.push(run.bytes.len());
        }
        let mut queue = self.queue();
        if !self.is_open() {
            // It was closed since the owner looked.
            return;
        }
        // The log's own rule: no record is given an earlier time than the one before.
        run.unix_us = run.unix_us.max(queue.last_unix_us);
        queue.last_unix_us = run.unix_us;
        queue.bytes += run.bytes.len() + run.ends.len() * size_of::<usize>();
        queue.runs.push_back(run);
        if queue.bytes > BYTES_MAX {
            self.is_open.store(false, Ordering::Release);
            *queue = Queue { has_overflowed: true, ..queue.empty() };
        }
    }

    /// Records up to here are durable.
    pub(in crate::server) fn note_durable(&self, durable: Lsn) {
        let mut queue = self.queue();
        if durable > queue.durable {
            queue.durable = durable;
            drop(queue);
            self.bell.ring();
        }
    }

    /// Takes what is there.
    pub(super) fn take(&self) -> Tapped {
        let mut queue = self.queue();
        queue.bytes = 0;
        Tapped {
            runs: std::mem::take(&mut queue.runs),
            from: queue.from,
            durable: queue.durable,
            has_overflowed: std::mem::take(&mut queue.has_overflowed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_in_order_and_never_with_an_earlier_time() {
        let tap = Tap::new(Arc::new(Bell::new().unwrap()));
        assert!(!tap.is_open() && tap.take().from.is_none());
        tap.open(tap.ask(), Lsn(4), Lsn(2));
        let payloads: [&[u8]; 3] = [b"five", b"", b"seven"];
        tap.push(5, 900, payloads.into_iter());
        tap.push(8, 800, payloads[..1].iter().copied());
        tap.note_durable(Lsn(6));
        let tapped = tap.take();
        assert_eq!((tapped.from, tapped.durable), (Some(Lsn(4)), Lsn(6)));
        let found: Vec<_> = tapped
            .runs
            .iter()
            .flat_map(|run| run.records(Lsn(5), Lsn(8)))
            .map(|r| (r.lsn.0, r.unix_us))
            .collect();
        assert_eq!(found, [(6, 900), (7, 900), (8, 900)]);
        assert_eq!(tapped.runs[0].records(Lsn(6), Lsn(9)).next().unwrap().payload, b"seven");
        assert!(tap.take().runs.is_empty());
    }

    #[test]
    fn who_does_not_take_is_told_that_records_were_lost() {
        let tap = Tap::new(Arc::new(Bell::new().unwrap()));
        let asked = tap.ask();
        tap.open(asked, Lsn(0), Lsn(0));
        let large = vec![0; BYTES_MAX / 4];
        for lsn in 1..=4 {
            tap.push(lsn, 0, std::iter::once(&large[..]));
        }
        assert!(!tap.is_open());
        assert!(tap.take().has_overflowed && !tap.take().has_overflowed);
        tap.open(asked, Lsn(4), Lsn(4));
        assert!(tap.is_open(), "the number is still the one that was asked");
    }

    /// Found in review: what was asked for before a change of role was answered after it, and the records of one role were
    /// handed over in the next.
    #[test]
    fn an_answer_to_an_earlier_question_opens_nothing_and_nothing_is_left_of_it() {
        let tap = Tap::new(Arc::new(Bell::new().unwrap()));
        let earlier = tap.ask();
        tap.close();
        tap.open(earlier, Lsn(7), Lsn(7));
        assert!(!tap.is_open() && tap.take().from.is_none());
        let second = tap.ask();
        tap.open(second, Lsn(8), Lsn(8));
        tap.push(9, 5, std::iter::once(&b"nine"[..]));
        let third = tap.ask();
        assert!(!tap.is_open());
        // The owner had looked before.
        tap.push(10, 5, std::iter::once(&b"ten"[..]));
        tap.open(second, Lsn(11), Lsn(11));
        let tapped = tap.take();
        assert!(tapped.from.is_none() && tapped.runs.is_empty(), "{tapped:?}");
        tap.open(third, Lsn(12), Lsn(12));
        assert_eq!(tap.take().from, Some(Lsn(12)));
    }
}
