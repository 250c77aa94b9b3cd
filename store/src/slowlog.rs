//! What took long: the slow log (SLOWLOG) and the history of slow events (LATENCY).
//!
//! Both are bounded rings. What they are told was measured with a clock the caller lent; nothing is measured
//! here.

use crate::protocol::resp::Args;
use crate::time::{Nanos, Now};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// Arguments kept of a slow command; the last one tells how many more there were.
const ARGUMENTS_MAX: usize = 32;

/// Bytes kept of each argument.
const ARGUMENT_BYTES_MAX: usize = 128;

/// Samples kept of each kind of event; one per second at most.
const SAMPLES_MAX: usize = 160;

/// One slow command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlowCommand {
    /// Counts up and is never used twice.
    pub id: u64,
    /// When it ended, seconds since 1970.
    pub unix_seconds: u64,
    /// How long it took.
    pub duration_us: u64,
    /// Its arguments, shortened.
    pub arguments: Vec<Vec<u8>>,
    /// Who sent it.
    pub address: String,
    /// The name the client gave itself.
    pub name: Vec<u8>,
}

/// The latest slow commands.
#[derive(Debug, Default)]
pub struct SlowLog {
    entries: VecDeque<SlowCommand>,
    next_id: u64,
}

impl SlowLog {
    /// Keeps a command, at the expense of the oldest.
    pub fn push(
        &mut self,
        args: &Args<'_>,
        address: &str,
        name: &[u8],
        duration: Nanos,
        now: Now,
        max: usize,
    ) {
        let kept = if args.len() > ARGUMENTS_MAX { ARGUMENTS_MAX - 1 } else { args.len() };
        let mut arguments: Vec<Vec<u8>> = args.iter().take(kept).map(shortened).collect();
        if args.len() > kept {
            arguments.push(format!("... ({} more arguments)", args.len() - kept).into_bytes());
        }
        let entry = SlowCommand {
            id: self.next_id,
            unix_seconds: now.unix_us / 1_000_000,
            duration_us: duration.0 / 1000,
            arguments,
            address: address.into(),
            name: name.into(),
        };
        self.next_id += 1;
        self.entries.push_front(entry);
        self.truncate(max);
    }

    /// Forgets all but the latest `max`.
    pub fn truncate(&mut self, max: usize) {
        self.entries.truncate(max);
    }

    /// The latest first.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &SlowCommand> {
        self.entries.iter()
    }

    /// Forgets all of them.
    pub fn clear(&mut self) {
        self.entries.clear();
    }
}

fn shortened(argument: &[u8]) -> Vec<u8> {
    if argument.len() <= ARGUMENT_BYTES_MAX {
        return argument.to_vec();
    }
    let mut kept = argument[..ARGUMENT_BYTES_MAX].to_vec();
    kept.extend_from_slice(format!("... ({} more bytes)", argument.len() - ARGUMENT_BYTES_MAX).as_bytes());
    kept
}

/// The history of one kind of event.
#[derive(Debug, Default)]
pub struct Series {
    /// Seconds since 1970 and milliseconds taken, the oldest first.
    pub samples: VecDeque<(u64, u64)>,
    /// The longest ever.
    pub max_ms: u64,
}

/// Slow events by their kind.
#[derive(Debug, Default)]
pub struct LatencyMonitor {
    events: BTreeMap<&'static str, Series>,
}

impl LatencyMonitor {
    /// Keeps an event; of several in one second, the longest.
    pub fn push(&mut self, event: &'static str, duration: Nanos, now: Now) {
        let (second, ms) = (now.unix_us / 1_000_000, duration.0 / 1_000_000);
        let series = self.events.entry(event).or_default();
        series.max_ms = series.max_ms.max(ms);
        match series.samples.back_mut() {
            Some(last) if last.0 == second => last.1 = last.1.max(ms),
            _ => {
                if series.samples.len() == SAMPLES_MAX {
                    series.samples.pop_front();
                }
                series.samples.push_back((second, ms));
            }
        }
    }

    /// The kinds that have samples.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&'static str, &Series)> {
        self.events.iter().map(|(event, series)| (*event, series))
    }

    /// One kind.
    pub fn get(&self, event: &[u8]) -> Option<&Series> {
        self.events.iter().find(|(name, _)| name.as_bytes() == event).map(|(_, series)| series)
    }

    /// Forgets one kind; `false`: there was nothing.
    pub fn remove(&mut self, event: &[u8]) -> bool {
        let before = self.events.len();
        self.events.retain(|name, _| name.as_bytes() != event);
        self.events.len() < before
    }

    /// Forgets everything; returns how many kinds there were.
    pub fn clear(&mut self) -> usize {
        let count = self.events.len();
        self.events.clear();
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::resp::OwnedArgs;

    #[test]
    fn the_slow_log_keeps_the_latest_and_shortens_them() {
        let mut log = SlowLog::default();
        let mut owned = OwnedArgs::new();
        owned.push(&[b'x'; 200]);
        (0..40).for_each(|_| owned.push(b"a"));
        for _ in 0..5 {
            log.push(&owned.view(), "here", b"", Nanos(5_000), Now::default(), 3);
        }
        let ids: Vec<u64> = log.iter().map(|entry| entry.id).collect();
        assert_eq!(ids, [4, 3, 2]);
        let entry = log.iter().next().unwrap();
        assert_eq!(entry.arguments.len(), 32);
        assert_eq!(entry.arguments[31], b"... (10 more arguments)");
        assert!(entry.arguments[0].ends_with(b"x... (72 more bytes)"));
        assert_eq!(entry.duration_us, 5);
    }

    #[test]
    fn of_several_events_in_a_second_the_longest_stays() {
        let mut monitor = LatencyMonitor::default();
        let at = |seconds: u64| Now { unix_us: seconds * 1_000_000, ..Now::default() };
        monitor.push("command", Nanos(3_000_000), at(1));
        monitor.push("command", Nanos(9_000_000), at(1));
        monitor.push("command", Nanos(2_000_000), at(2));
        let series = monitor.get(b"command").unwrap();
        assert_eq!(series.samples, [(1, 9), (2, 2)]);
        assert_eq!(series.max_ms, 9);
        (3..500).for_each(|second| monitor.push("command", Nanos(1), at(second)));
        assert_eq!(monitor.get(b"command").unwrap().samples.len(), SAMPLES_MAX);
        assert!(monitor.remove(b"command") && !monitor.remove(b"command"));
    }
}
