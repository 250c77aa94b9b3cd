//! What took long: the slow log (SLOWLOG) and the history of slow events (LATENCY).
//!
//! Both are bounded rings. What they are told was measured with a clock the caller lent; nothing is measured
//! here.

use crate::engine::Shared;
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
    /// When it ended, microseconds since 1970.
    pub unix_us: u64,
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
            unix_us: now.unix_us,
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

/// The slow log of the whole server, as far as it is in hand: the latest first, each with a number of its own. A
/// shard alone shows Redis' numbers. `slowlog-max-len` is about the whole; what is over it is not shown, though its
/// shard may still have it.
pub fn merged_slowlog(shared: &Shared) -> Vec<(u64, &SlowCommand)> {
    let mut shards: Vec<_> = shared
        .all()
        .map(|shard| {
            let place = shard.fleet.place;
            let numbered = move |entry: &SlowCommand| entry.id * place.count as u64 + place.index as u64;
            shard.slowlog.iter().map(move |entry| (numbered(entry), entry)).peekable()
        })
        .collect();
    let max = usize::try_from(shared.config.slowlog_max_len).unwrap_or(usize::MAX);
    let mut merged = Vec::new();
    // The order of a shard stays as it is, whatever the wall clock did.
    let time = |entry: &(u64, &SlowCommand)| (entry.1.unix_us, entry.0);
    while merged.len() < max
        && let Some(newest) = (0..shards.len()).max_by_key(|&at| shards[at].peek().map(time))
        && let Some(entry) = shards[newest].next()
    {
        merged.push(entry);
    }
    merged
}

/// Forgets what is over `slowlog-max-len` for the whole server.
pub fn trim_slowlogs(shared: &mut Shared) {
    if !shared.has_guests() {
        return;
    }
    let count = shared.fleet.place.count as u64;
    let mut kept = alloc::vec![0; count as usize];
    merged_slowlog(shared).iter().for_each(|(id, _)| kept[(id % count) as usize] += 1);
    shared.for_all(|shard| shard.slowlog.truncate(kept[shard.fleet.place.index]));
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
#[derive(Clone, Debug, Default)]
pub struct Series {
    /// Seconds since 1970 and milliseconds taken, the oldest first.
    pub samples: VecDeque<(u64, u64)>,
    /// The longest ever.
    pub max_ms: u64,
}

impl Series {
    /// With the history of another shard; of two samples of one second, the longer.
    fn with(self, other: &Series) -> Series {
        let max_ms = self.max_ms.max(other.max_ms);
        let mut samples = VecDeque::new();
        let (mut ours, mut theirs) = (self.samples.into_iter().peekable(), other.samples.iter().peekable());
        loop {
            let (second, ms) = match (ours.peek(), theirs.peek()) {
                (Some(our), Some(their)) if our.0 > their.0 => **their,
                (Some(our), Some(their)) if our.0 == their.0 => (our.0, our.1.max(their.1)),
                (Some(our), _) => *our,
                (None, Some(their)) => **their,
                (None, None) => break,
            };
            ours.next_if(|sample| sample.0 == second);
            theirs.next_if(|sample| sample.0 == second);
            samples.push_back((second, ms));
        }
        samples.drain(..samples.len().saturating_sub(SAMPLES_MAX));
        Series { samples, max_ms }
    }
}

/// The slow events of the whole server, as far as it is in hand.
pub fn merged_latency(shared: &Shared) -> BTreeMap<&'static str, Series> {
    let mut merged: BTreeMap<&'static str, Series> = BTreeMap::new();
    for (event, series) in shared.all().flat_map(|shard| shard.latency.iter()) {
        let whole = match merged.remove(event) {
            Some(so_far) => so_far.with(series),
            None => series.clone(),
        };
        merged.insert(event, whole);
    }
    merged
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

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.events.clear();
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
