//! The ledger: what was executed, what anybody was told, and what a recovery must bring back.
//!
//! The records that shards hand to the log are taken down in LSN order, byte for byte, and folded into every
//! version that every key had. A reply is explained by the commands' own model ([`super::command`]): there must be a
//! state of its time from which it follows, and the earliest such state says which record it depends on. A client
//! that is promised durability may get no reply whose record is not durable yet; and after a crash every record that
//! any such reply depended on must be back, with all before it, as they were written, and nothing else.

use super::clock::SimClock;
use super::command::{Command, State, Stored, TOKEN_BYTES, Token, Verdict, parse_token};
use super::memory::may_evict;
use super::trace;
use crate::oracle::value::Value;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::rc::Rc;
use store::eviction::EvictionPolicy;
use store::mutation::Mutation;

/// A version that a key had from a record on.
#[derive(Clone, Debug)]
struct Version {
    lsn: u64,
    /// `None`: the key is not there.
    stored: Option<Stored>,
    /// How often the record changed it.
    times: usize,
}

#[derive(Debug)]
struct Executed {
    payload: Vec<u8>,
    at: u64,
}

/// Of the states that do not explain a reply, so many are told.
const REASONS_MAX: usize = 8;

/// When a command can have been executed.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Behind this record.
    pub from: u64,
    /// It was sent then, in simulated nanoseconds.
    pub since: u64,
    /// It was answered then.
    pub until: u64,
}

/// What `everysec` may lose, in simulated nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Loss {
    /// From the first record lost to the last.
    pub span_max: u64,
    /// From the first record lost to the crash.
    pub age_max: u64,
}

/// What anybody had been shown at a moment.
#[derive(Clone, Debug, Default)]
pub struct Point {
    /// Everything up to this record.
    promised: u64,
    /// By key the latest version, and whether it was seen to have ended.
    shown: Rc<BTreeMap<Vec<u8>, (u64, bool)>>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Ledger {
    /// By LSN, the first at 0.
    executed: Vec<Executed>,
    /// Handed over before one with a lower number.
    early: BTreeMap<u64, Executed>,
    keys: BTreeMap<Vec<u8>, Vec<Version>>,
    /// By record the keys that it removes before it does anything else to them: they may have been evicted.
    gone: BTreeMap<u64, Vec<Vec<u8>>>,
    /// Removals of keys, ever.
    removals: u64,
    /// The server's memory is bounded, and this is what becomes of the rest.
    pub policy: Option<EvictionPolicy>,
    tokens: HashMap<Token, u64>,
    /// Of writes that were refused, or lost with a crash: they must not appear.
    banned: HashSet<Token>,
    /// The last record that a reply depended on, and that reply.
    promised: (u64, String),
    /// The most that the server took for durable.
    durable: u64,
    /// See [`Point::shown`].
    shown: Rc<BTreeMap<Vec<u8>, (u64, bool)>>,
}

impl Ledger {
    /// The last record executed.
    pub fn latest(&self) -> u64 {
        self.executed.len() as u64
    }

    /// The last record that anybody was promised.
    pub fn promised(&self) -> u64 {
        self.promised.0
    }

    /// Removals of keys that were logged, ever.
    pub fn removals(&self) -> u64 {
        self.removals
    }

    /// A record is still missing before others.
    pub fn is_behind(&self) -> bool {
        !self.early.is_empty()
    }

    /// Takes down a record that a shard hands to the log.
    pub fn execute(&mut self, lsn: u64, payload: &[u8], at: u64) -> Result<(), String> {
        let is_new = lsn > self.latest()
            && self.early.insert(lsn, Executed { payload: payload.to_vec(), at }).is_none();
        if !is_new {
            return Err(format!("LSN {lsn} was given to two records"));
        }
        while let Some(executed) = self.early.remove(&(self.latest() + 1)) {
            let lsn = self.latest() + 1;
            self.fold(lsn, &executed.payload)?;
            self.executed.push(executed);
        }
        Ok(())
    }

    fn fold(&mut self, lsn: u64, payload: &[u8]) -> Result<(), String> {
        let mut rest = payload;
        let (mut gone, mut changed) = (Vec::new(), HashSet::new());
        while !rest.is_empty() {
            let mutation = Mutation::decode(&mut rest).map_err(|error| format!("LSN {lsn}: {error}"))?;
            trace!("executed: LSN {lsn} {mutation:?}");
            let Some(key) = mutation.key() else {
                let keys: Vec<Vec<u8>> = self.keys.keys().cloned().collect();
                keys.iter().for_each(|key| self.put(key, lsn, None));
                continue;
            };
            let is_first = changed.insert(key.to_vec());
            let before = self.keys.get(key).and_then(|versions| versions.last()?.stored.clone());
            let mut written: &[u8] = b"";
            let after = match (mutation, before) {
                (Mutation::Set { value, expires_at, .. }, _) => {
                    written = value;
                    Some(Stored { value: value.to_vec(), expires_ms: expires_at })
                }
                (Mutation::Append { bytes, .. }, Some(mut stored)) => {
                    written = bytes;
                    stored.value.extend_from_slice(bytes);
                    Some(stored)
                }
                (Mutation::SetExpiry { expires_at, .. }, Some(stored)) => {
                    Some(Stored { expires_ms: expires_at, ..stored })
                }
                (Mutation::Remove { .. }, _) => {
                    self.removals += 1;
                    gone.extend(is_first.then(|| key.to_vec()));
                    None
                }
                (other, before) => return Err(format!("LSN {lsn}: {other:?} of {before:?}")),
            };
            if let Some(token) = written.last_chunk::<TOKEN_BYTES>().and_then(parse_token) {
                if self.banned.contains(&token) {
                    return Err(format!("LSN {lsn} holds {token:?}, which was refused or lost"));
                }
                if self.tokens.insert(token, lsn).is_some_and(|other| other != lsn) {
                    return Err(format!("LSN {lsn} holds {token:?}, which was written before"));
                }
            }
            self.put(key, lsn, after);
        }
        if !gone.is_empty() {
            self.gone.insert(lsn, gone);
        }
        Ok(())
    }

    fn put(&mut self, key: &[u8], lsn: u64, stored: Option<Stored>) {
        let versions = self.keys.entry(key.to_vec()).or_default();
        match versions.last_mut() {
            Some(last) if last.lsn == lsn => {
                last.stored = stored;
                last.times += 1;
            }
            _ => versions.push(Version { lsn, stored, times: 1 }),
        }
    }

    /// The version of a key behind a record; none: it never was there.
    fn version(&self, key: &[u8], lsn: u64) -> Option<&Version> {
        let versions = self.keys.get(key)?;
        versions[..versions.partition_point(|version| version.lsn <= lsn)].last()
    }

    fn state(&self, keys: &[&[u8]], lsn: u64) -> State {
        let stored = |key: &&[u8]| self.version(key, lsn).and_then(|version| version.stored.clone());
        keys.iter().map(|key| (key.to_vec(), stored(key))).collect()
    }

    /// The keys that may have been evicted to make room for a command which made the record: its removals come first in it,
    /// but for what other shards lent.
    fn evicted_for(&self, keys: &[&[u8]], lsn: u64) -> Vec<Vec<&[u8]>> {
        let (Some(policy), Some(gone)) = (self.policy, self.gone.get(&lsn)) else { return Vec::new() };
        let may_go = |key: &&[u8]| {
            let stored = self.version(key, lsn - 1).and_then(|version| version.stored.as_ref());
            let may = |stored: &Stored| may_evict(policy, stored.expires_ms.is_some());
            keys.contains(key) && stored.is_some_and(may)
        };
        let gone: Vec<&[u8]> = gone.iter().map(Vec::as_slice).filter(may_go).collect();
        let begins = if gone.len() > 12 { 0..1 } else { 0..gone.len() };
        let ranges = begins.flat_map(|begin| (begin + 1..=gone.len()).map(move |end| begin..end));
        ranges.map(|range| gone[range].to_vec()).collect()
    }

    /// All keys that ever were.
    fn all_keys(&self) -> Vec<&[u8]> {
        self.keys.keys().map(Vec::as_slice).collect()
    }

    /// What anybody has been shown by now.
    pub fn point(&self) -> Point {
        Point { promised: self.promised.0, shown: Rc::clone(&self.shown) }
    }

    /// Somebody was shown these keys as they were behind a record.
    fn show(&mut self, keys: &[Vec<u8>], lsn: u64, low_ms: u64) {
        for key in keys {
            let Some(version) = self.version(key, lsn) else { continue };
            let ends = version.stored.as_ref().and_then(|stored| stored.expires_ms);
            let seen = (version.lsn, ends.is_some_and(|end| end < low_ms));
            let before = self.shown.get(key).copied().unwrap_or_default();
            if seen > before {
                Rc::make_mut(&mut self.shown).insert(key.clone(), seen);
            }
        }
    }

    /// A client keeps this for a key's value (`None`: it is not there), and has heard everything up to the answer to a
    /// command that it sent at this point.
    pub fn check_cached(&self, key: &[u8], cached: Option<&[u8]>, point: &Point) -> Result<(), String> {
        let (mut lsn, mut has_ended) = point.shown.get(key).copied().unwrap_or_default();
        if let Some(promised) = self.version(key, point.promised)
            && promised.lsn > lsn
        {
            (lsn, has_ended) = (promised.lsn, false);
        }
        let versions = self.keys.get(key).map_or(&[][..], Vec::as_slice);
        let later = &versions[versions.partition_point(|version| version.lsn < lsn)..];
        let fits = |version: &Version| match (&version.stored, cached) {
            (None, None) => true,
            // It may have come to its end.
            (Some(stored), None) => stored.expires_ms.is_some(),
            (Some(stored), Some(cached)) => stored.value == cached && !(has_ended && version.lsn == lsn),
            (None, Some(_)) => false,
        };
        if later.iter().any(fits) || (lsn == 0 && cached.is_none()) || self.is_behind() {
            return Ok(());
        }
        let show = |bytes: &[u8]| String::from_utf8_lossy(bytes).to_string();
        Err(format!(
            "{} is kept as {:?}, and LSN {lsn}{} had been shown before the command was sent that is answered now; since then: \
             {later:?}",
            show(key),
            cached.map(show),
            if has_ended { " and its end" } else { "" },
        ))
    }

    /// A client that hears of every change of a key has been told so often, since it asked when `begun` was durable;
    /// `durable` was when it was last told.
    pub fn check_told(&self, key: &[u8], told: usize, begun: u64, durable: u64) -> Result<(), String> {
        let versions = self.keys.get(key).map_or(&[][..], Vec::as_slice);
        // Ends are told as well, and are no records.
        let ends =
            |version: &Version| version.stored.as_ref().is_some_and(|stored| stored.expires_ms.is_some());
        let first = versions.partition_point(|version| version.lsn <= begun);
        let known = versions[first..].iter().filter(|version| version.lsn <= durable);
        let changes = known.map(|version| version.times).sum();
        if told <= changes || versions[first.saturating_sub(1)..].iter().any(ends) || self.is_behind() {
            return Ok(());
        }
        let key = String::from_utf8_lossy(key);
        Err(format!(
            "{key} was told {told} times, and changed {changes} times from LSN {begun} to {durable}, which is durable"
        ))
    }

    /// Finds what explains a reply: the record it depends on. `shows`: the client is promised that it will stay so.
    pub fn explain(
        &mut self,
        command: &Command,
        reply: &Value,
        window: Window,
        shows: bool,
    ) -> Result<u64, String> {
        let tokens = command.tokens();
        if reply.is_error() {
            let text = reply.show();
            let is_full = self.policy.is_some() && text.starts_with("-OOM") && command.grows();
            let is_refused = text.starts_with("-MISCONF") || text.starts_with("-EXECABORT");
            if !(is_full || command.writes() && is_refused) {
                return Err(format!("{command:?} was answered with {text}"));
            }
            if let Some(token) = tokens.iter().find(|token| self.tokens.contains_key(token)) {
                return Err(format!("{command:?} was refused with {text}, and {token:?} was written"));
            }
            self.banned.extend(tokens);
            return Ok(0);
        }
        let keys = match command.touches_all() {
            true => self.all_keys(),
            false => command.keys(),
        };
        let (low_ms, high_ms) =
            (SimClock::unix_us(window.since) / 1000, SimClock::unix_us(window.until) / 1000);
        let latest = self.latest();
        // States before and behind each record that changed one of the keys.
        let mut states: Vec<u64> = vec![window.from];
        for key in &keys {
            let versions = self.keys.get(*key).map_or(&[][..], Vec::as_slice);
            let begin = versions.partition_point(|version| version.lsn <= window.from);
            states.extend(versions[begin..].iter().flat_map(|version| [version.lsn - 1, version.lsn]));
        }
        if let Some(lsn) = tokens.iter().find_map(|token| self.tokens.get(token)) {
            states = vec![lsn - 1];
        }
        states.sort_unstable();
        states.dedup();
        trace!("{}: {command:?} -> {}", window.until, reply.show());
        let own = |lsn| tokens.iter().all(|token| self.lsn_of(*token).is_none_or(|own| own == lsn));
        let mut found = None;
        let mut reasons = VecDeque::new();
        'found: for &lsn in states.iter().filter(|lsn| (window.from..=latest).contains(lsn)) {
            let before = self.state(&keys, lsn);
            let is_own = command.writes() && lsn < latest && own(lsn + 1);
            // Only where nothing else explains it.
            let evicted = if is_own { self.evicted_for(&keys, lsn + 1) } else { Vec::new() };
            for evicted in [Vec::new()].into_iter().chain(evicted) {
                let before = before.without(&evicted);
                let mut state = before.clone();
                let why = match command.execute(&mut state, reply, low_ms, high_ms) {
                    Verdict::Unclear => {
                        // A key came to its end meanwhile. What is known of it all the same:
                        let written = tokens.iter().find_map(|token| self.tokens.get(token));
                        return Ok(written.copied().unwrap_or(0));
                    }
                    Verdict::No(why) => why,
                    Verdict::Yes if !state.differs(&before) => {
                        // That it was evicted stands in the record.
                        let lsn = lsn + u64::from(!evicted.is_empty());
                        let seen = keys.iter().filter_map(|key| self.version(key, lsn));
                        found = Some((lsn, seen.map(|version| version.lsn).max().unwrap_or(0)));
                        break 'found;
                    }
                    Verdict::Yes if lsn == latest => {
                        String::from("it would be the next record, which is not there")
                    }
                    Verdict::Yes => match state.accounts_for(&self.state(&keys, lsn + 1)) && own(lsn + 1) {
                        true => {
                            found = Some((lsn + 1, lsn + 1));
                            break 'found;
                        }
                        false => format!("it would leave {state:?}"),
                    },
                };
                reasons.push_back((lsn, why));
                if reasons.len() > REASONS_MAX {
                    reasons.pop_front();
                }
            }
        }
        if let Some((lsn, depends_on)) = found {
            if shows {
                let keys: Vec<Vec<u8>> = keys.iter().map(|key| key.to_vec()).collect();
                self.show(&keys, lsn, low_ms);
            }
            return Ok(depends_on);
        }
        let reasons = reasons.iter().map(|(lsn, why)| {
            let (before, after) = (self.state(&keys, *lsn), self.state(&keys, lsn + 1));
            format!("after LSN {lsn}: {why}, of {before:?}, and then there is {after:?}")
        });
        Err(format!(
            "{command:?} was answered with {}, which nothing explains; LSNs {} to {latest}: {}",
            reply.show(),
            window.from,
            reasons.collect::<Vec<_>>().join("; ")
        ))
    }

    /// The record of a client's write, if it was executed.
    pub fn lsn_of(&self, token: Token) -> Option<u64> {
        self.tokens.get(&token).copied()
    }

    /// A client that is promised durability got a reply that depends on a record; `durable` is what the server takes
    /// for durable.
    pub fn promise(&mut self, lsn: u64, durable: u64, what: &dyn Fn() -> String) -> Result<(), String> {
        if lsn > durable {
            return Err(format!("{} shows LSN {lsn}, and durable is {durable} only", what()));
        }
        if lsn > self.promised.0 {
            self.promised = (lsn, what());
        }
        Ok(())
    }

    /// What the server took for durable when it ended.
    pub fn note_durable(&mut self, durable: u64) {
        self.durable = self.durable.max(durable);
    }

    /// What a start has made of a snapshot and the log behind it must be the state after the last record: every key of that
    /// time with its value and its end, and no other.
    pub fn check_state(&self, found: &BTreeMap<Vec<u8>, Stored>, now_ms: u64) -> Result<(), String> {
        let last = self.latest();
        let state = |key: &Vec<u8>| {
            let stored = self.version(key, last)?.stored.as_ref()?;
            stored.expires_ms.is_none_or(|end| end >= now_ms).then_some(stored)
        };
        for key in self.keys.keys() {
            let (expected, found) = (state(key), found.get(key));
            if expected != found {
                let key = String::from_utf8_lossy(key);
                return Err(format!("after LSN {last} {key} is {expected:?}, and the start has {found:?}"));
            }
        }
        match found.keys().find(|key| !self.keys.contains_key(*key)) {
            Some(key) => {
                Err(format!("{:?} was never written, and the start has it", String::from_utf8_lossy(key)))
            }
            None => Ok(()),
        }
    }

    /// The server ended at `now`, and up to `last` was recovered: what is still in the log must be what was executed, byte
    /// for byte (the state as a whole is looked at elsewhere: [`Ledger::check_state`]); with
    /// all that was promised, and all that the server took for durable, told or not; and no more may be lost than
    /// `loss` allows. If bits were flipped (`may_rot`) the end may be missing, as nothing tells it from a
    /// torn tail.
    pub fn recover(
        &mut self,
        recovered: &[(u64, Vec<u8>)],
        last: u64,
        now: u64,
        loss: Option<Loss>,
        may_rot: bool,
    ) -> Result<(), String> {
        let first = recovered.first().map_or(1, |(lsn, _)| *lsn);
        for (index, (lsn, payload)) in recovered.iter().enumerate() {
            let expected = first + index as u64;
            if *lsn != expected {
                return Err(format!("LSN {lsn} was recovered in the place of {expected}"));
            }
            let Some(executed) = self.executed.get(*lsn as usize - 1) else {
                return Err(format!("LSN {lsn} was recovered and never executed"));
            };
            if executed.payload != *payload {
                return Err(format!(
                    "LSN {lsn} was recovered with other bytes: {payload:?}, not {:?}",
                    executed.payload
                ));
            }
        }
        if last > self.latest() {
            return Err(format!("recovered up to LSN {last}, and {} was the last", self.latest()));
        }
        if !may_rot {
            if last < self.promised.0 {
                let (promised, what) = &self.promised;
                return Err(format!("recovered up to LSN {last}, and {promised} was promised: {what}"));
            }
            if last < self.durable {
                return Err(format!(
                    "recovered up to LSN {last}, and {} was taken for durable",
                    self.durable
                ));
            }
            if let (Some(loss), [first, .., latest]) = (loss, &self.executed[last as usize..]) {
                // Shards hand over in any order.
                let (span, age) = (latest.at.saturating_sub(first.at), now - first.at);
                if span > loss.span_max || age > loss.age_max {
                    let (first, span, age) = (last + 1, span / 1_000_000, age / 1_000_000);
                    return Err(format!(
                        "lost: {span} ms of records, from LSN {first} on, executed {age} ms ago"
                    ));
                }
            }
        }
        self.executed.truncate(last as usize);
        self.early.clear();
        self.gone.split_off(&(last + 1));
        for versions in self.keys.values_mut() {
            versions.truncate(versions.partition_point(|version| version.lsn <= last));
        }
        let lost = self.tokens.iter().filter(|(_, lsn)| **lsn > last).map(|(token, _)| *token);
        self.banned.extend(lost.collect::<Vec<_>>());
        self.tokens.retain(|_, lsn| *lsn <= last);
        self.shown = Rc::default();
        // Everything is durable now that was recovered.
        self.promised = (last, String::from("the start said so"));
        self.durable = last;
        Ok(())
    }
}
