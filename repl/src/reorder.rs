//! Datagrams: which are lost and which late, which are early and wait, and when to ask for what is missing.
//!
//! A gap is known when something behind it has arrived, be it records or a heartbeat that says they have been
//! sent. It may be a matter of order, so it is given a moment, and a little more by chance, before it is
//! asked for over TCP; and asked for again if nothing comes. Datagrams that are early wait in a window of
//! bounded size. When that is full the new ones are dropped: they are asked for in their turn.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::message::Repair;
use crate::run::Position;

/// How often things happened to datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DatagramCounters {
    /// Arrived.
    pub received: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Numbers that have not arrived, so far.
    pub lost: u64,
    /// Arrived behind later ones.
    pub late: u64,
    /// Arrived twice.
    pub duplicate: u64,
    /// Changed on their way, or no datagrams at all.
    pub damaged: u64,
    /// Not made by who knows the key.
    pub forged: u64,
    /// Of another stream, epoch or version.
    pub foreign: u64,
    /// Dropped, because the window or the queue to the shards was full.
    pub overflowed: u64,
    /// Times that records were asked for over TCP.
    pub repairs: u64,
    /// Records that came over TCP after that.
    pub repaired: u64,
}

/// Numbers that are remembered behind the highest, to tell late from duplicate.
const SEEN: u64 = 4096;

/// Which numbers have arrived.
#[derive(Debug)]
struct Sequences {
    highest: u64,
    seen: Vec<u64>,
}

impl Sequences {
    fn word(sequence: u64) -> (usize, u64) {
        ((sequence / 64 % (SEEN / 64)) as usize, 1 << (sequence % 64))
    }

    fn note(&mut self, sequence: u64, counters: &mut DatagramCounters) {
        if self.highest == 0 {
            // Those before the first were meant for others.
            self.highest = sequence.max(1) - 1;
        }
        let (word, bit) = Self::word(sequence);
        if sequence > self.highest {
            let skipped = sequence - self.highest - 1;
            counters.lost += skipped;
            match skipped < SEEN {
                true => {
                    for between in self.highest + 1..sequence {
                        let (word, bit) = Self::word(between);
                        self.seen[word] &= !bit;
                    }
                }
                false => self.seen.fill(0),
            }
            self.highest = sequence;
        } else if self.highest - sequence >= SEEN {
            counters.late += 1;
            return;
        } else if self.seen[word] & bit != 0 {
            counters.duplicate += 1;
            return;
        } else {
            counters.late += 1;
            counters.lost = counters.lost.saturating_sub(1);
        }
        self.seen[word] |= bit;
    }
}

#[derive(Clone, Copy, Debug)]
struct Gap {
    /// What was expected when it was seen.
    at: Position,
    /// When it is asked for.
    deadline: u64,
}

/// Sizes and times; see [`crate::settings::ReplicaSettings`].
#[derive(Clone, Copy, Debug)]
pub struct ReorderSettings {
    /// Datagrams that wait.
    pub datagrams_max: usize,
    /// Their bytes.
    pub bytes_max: usize,
    /// Before a gap is asked for.
    pub gap_delay_us: u64,
    /// And up to so much more.
    pub gap_jitter_us: u64,
    /// Before it is asked for again.
    pub repair_timeout_us: u64,
}

/// The window.
#[derive(Debug)]
pub struct Reorder {
    settings: ReorderSettings,
    waiting: BTreeMap<Position, Vec<u8>>,
    bytes: usize,
    sequences: Sequences,
    /// Everything before this place has been sent as datagrams.
    sent: Position,
    gap: Option<Gap>,
    asked: Option<Repair>,
    random: u64,
    /// How often things happened.
    pub counters: DatagramCounters,
}

impl Reorder {
    /// An empty one. The seed makes replicas that lack the same ask at different times.
    pub fn new(settings: ReorderSettings, seed: u64) -> Reorder {
        Reorder {
            settings,
            waiting: BTreeMap::new(),
            bytes: 0,
            sequences: Sequences { highest: 0, seen: alloc::vec![0; (SEEN / 64) as usize] },
            sent: Position::default(),
            gap: None,
            asked: None,
            random: seed,
            counters: DatagramCounters::default(),
        }
    }

    /// A new stream begins; counters go on.
    pub fn restart(&mut self) {
        self.waiting.clear();
        (self.bytes, self.sent, self.gap, self.asked) = (0, Position::default(), None, None);
        self.sequences.highest = 0;
        self.sequences.seen.fill(0);
    }

    /// An authentic datagram has arrived.
    pub fn note(&mut self, sequence: u64) {
        self.sequences.note(sequence, &mut self.counters);
    }

    /// Everything before this place has been sent.
    pub fn note_sent(&mut self, position: Position) {
        self.sent = self.sent.max(position);
    }

    /// A run that is early.
    pub fn hold(&mut self, first: Position, run: &[u8]) {
        let held = self.waiting.get(&first);
        // Of two that begin at the same place the longer one says more.
        if held.is_some_and(|held| held.len() >= run.len()) {
            return;
        }
        let bytes = self.bytes - held.map_or(0, Vec::len) + run.len();
        let count = self.waiting.len() + usize::from(held.is_none());
        if count > self.settings.datagrams_max || bytes > self.settings.bytes_max {
            self.counters.overflowed += 1;
            return;
        }
        self.bytes = bytes;
        self.waiting.insert(first, run.to_vec());
    }

    /// A run that has waited and is early no more.
    pub fn release(&mut self, expected: Position) -> Option<Vec<u8>> {
        let first = self.waiting.first_entry().filter(|first| *first.key() <= expected)?;
        let run = first.remove();
        self.bytes -= run.len();
        Some(run)
    }

    /// Datagrams that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// How things stand after something has arrived: is there a gap?
    pub fn observe(&mut self, expected: Position, now_micros: u64) {
        if expected >= self.sent {
            (self.gap, self.asked) = (None, None);
            return;
        }
        if self.asked.is_some_and(|asked| asked.to_lsn < expected.lsn) {
            self.asked = None;
        }
        let is_moving = self.gap.is_none_or(|gap| gap.at != expected);
        if is_moving {
            // What was asked for is on its way as long as it goes on; another gap has its own moment.
            let delay = match self.asked {
                Some(_) => self.settings.repair_timeout_us,
                None => self.settings.gap_delay_us + self.jitter(),
            };
            self.gap = Some(Gap { at: expected, deadline: now_micros.saturating_add(delay) });
        }
    }

    /// When to look again.
    pub fn deadline(&self) -> Option<u64> {
        self.gap.map(|gap| gap.deadline)
    }

    /// What to ask for now.
    pub fn poll_repair(&mut self, expected: Position, now_micros: u64) -> Option<Repair> {
        let gap = self.gap.as_mut().filter(|gap| gap.deadline <= now_micros)?;
        gap.deadline = now_micros.saturating_add(self.settings.repair_timeout_us);
        let behind = self.waiting.keys().next().copied().unwrap_or(self.sent).min(self.sent);
        // A record that is cut by the end of the gap is asked for as a whole.
        let to_lsn = if behind.offset == 0 { behind.lsn.previous() } else { behind.lsn };
        let repair = Repair { from_lsn: expected.lsn, to_lsn: to_lsn.max(expected.lsn) };
        self.asked = Some(repair);
        self.counters.repairs += 1;
        Some(repair)
    }

    /// Records that came over TCP are repairs.
    pub fn is_asked(&self) -> bool {
        self.asked.is_some()
    }

    fn jitter(&mut self) -> u64 {
        self.random = self.random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.random >> 33) % (self.settings.gap_jitter_us + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wal::lsn::Lsn;

    fn at(lsn: u64, offset: u32) -> Position {
        Position { lsn: Lsn(lsn), offset }
    }

    fn reorder() -> Reorder {
        let settings = ReorderSettings {
            datagrams_max: 3,
            bytes_max: 1000,
            gap_delay_us: 100,
            gap_jitter_us: 0,
            repair_timeout_us: 5000,
        };
        Reorder::new(settings, 1)
    }

    #[test]
    fn lost_late_and_duplicate_are_told_apart() {
        let mut reorder = reorder();
        // 7 is the first; 9 is lost for good, 8 and 10 come late, 10 comes twice.
        for sequence in [7, 11, 8, 10, 10, 12] {
            reorder.note(sequence);
        }
        let counters = reorder.counters;
        assert_eq!((counters.lost, counters.late, counters.duplicate), (1, 2, 1));
        reorder.note(12 + 3 * SEEN);
        assert_eq!(reorder.counters.lost, 3 * SEEN);
        reorder.note(13);
        assert_eq!((reorder.counters.lost, reorder.counters.late), (3 * SEEN, 3), "too old to be known");
    }

    #[test]
    fn a_gap_is_asked_for_after_a_moment_and_again() {
        let mut reorder = reorder();
        reorder.note_sent(at(9, 40));
        reorder.hold(at(7, 10), b"run");
        reorder.observe(at(5, 0), 1000);
        assert_eq!((reorder.deadline(), reorder.poll_repair(at(5, 0), 1099)), (Some(1100), None));
        let repair = Repair { from_lsn: Lsn(5), to_lsn: Lsn(7) };
        assert_eq!(reorder.poll_repair(at(5, 0), 1100), Some(repair), "with the record that is cut");
        reorder.observe(at(5, 0), 1200);
        assert_eq!(reorder.poll_repair(at(5, 0), 6099), None);
        assert_eq!(reorder.poll_repair(at(5, 0), 6100), Some(repair));
        // It came, and with it what waited; the end is missing still.
        assert_eq!(reorder.release(at(8, 0)), Some(b"run".to_vec()));
        reorder.observe(at(8, 0), 7000);
        assert_eq!(reorder.poll_repair(at(8, 0), 7100), Some(Repair { from_lsn: Lsn(8), to_lsn: Lsn(9) }));
        reorder.observe(at(10, 0), 7200);
        assert_eq!((reorder.deadline(), reorder.is_asked()), (None, false));
    }

    #[test]
    fn the_window_is_bounded() {
        let mut reorder = reorder();
        for lsn in 2..9 {
            reorder.hold(at(lsn, 0), &[0; 10]);
        }
        assert_eq!((reorder.waiting(), reorder.counters.overflowed), (3, 4));
        reorder.hold(at(2, 0), &[0; 990]);
        assert_eq!(reorder.counters.overflowed, 5, "too many bytes");
        reorder.hold(at(2, 0), &[0; 20]);
        assert_eq!(reorder.release(at(2, 0)).map(|run| run.len()), Some(20), "the longer one");
    }
}
