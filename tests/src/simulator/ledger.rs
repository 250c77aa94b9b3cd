//! The ledger: what was executed, what anybody was told, and what a recovery must bring back.
//!
//! The records that shards hand to the log are taken down in LSN order, byte for byte, and folded into every
//! version that every key had. A reply is explained by the commands' own model ([`super::command`]): there must be a
//! state of its time from which it follows, and the earliest such state says which record it depends on. A client
//! that is promised durability may get no reply whose record is not durable yet; and after a crash every record that
//! any such reply depended on must be back, with all before it, as they were written, and nothing else.

use super::clock::SimClock;
use super::command::{Command, State, Stored, TOKEN_BYTES, Token, Verdict, parse_token};
use super::trace;
use crate::oracle::value::Value;
use std::collections::{BTreeMap, HashMap, HashSet};
use store::mutation::Mutation;

/// A version that a key had from a record on.
#[derive(Clone, Debug)]
struct Version {
    lsn: u64,
    /// `None`: the key is not there.
    stored: Option<Stored>,
}

#[derive(Debug)]
struct Executed {
    payload: Vec<u8>,
    at: u64,
}

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

/// See the module.
#[derive(Debug, Default)]
pub struct Ledger {
    /// By LSN, the first at 0.
    executed: Vec<Executed>,
    /// Handed over before one with a lower number.
    early: BTreeMap<u64, Executed>,
    keys: BTreeMap<Vec<u8>, Vec<Version>>,
    tokens: HashMap<Token, u64>,
    /// Of writes that were refused, or lost with a crash: they must not appear.
    banned: HashSet<Token>,
    /// The last record that a reply depended on, and that reply.
    promised: (u64, String),
    /// The most that the server took for durable.
    durable: u64,
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
        while !rest.is_empty() {
            let mutation = Mutation::decode(&mut rest).map_err(|error| format!("LSN {lsn}: {error}"))?;
            trace!("executed: LSN {lsn} {mutation:?}");
            let Some(key) = mutation.key() else {
                let keys: Vec<Vec<u8>> = self.keys.keys().cloned().collect();
                keys.iter().for_each(|key| self.put(key, lsn, None));
                continue;
            };
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
                (Mutation::Remove { .. }, _) => None,
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
        Ok(())
    }

    fn put(&mut self, key: &[u8], lsn: u64, stored: Option<Stored>) {
        let versions = self.keys.entry(key.to_vec()).or_default();
        match versions.last_mut() {
            Some(last) if last.lsn == lsn => last.stored = stored,
            _ => versions.push(Version { lsn, stored }),
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

    /// All keys that ever were.
    fn all_keys(&self) -> Vec<&[u8]> {
        self.keys.keys().map(Vec::as_slice).collect()
    }

    /// Finds what explains a reply: the record it depends on.
    pub fn explain(&mut self, command: &Command, reply: &Value, window: Window) -> Result<u64, String> {
        let tokens = command.tokens();
        if reply.is_error() {
            let text = reply.show();
            if !command.writes() || !(text.starts_with("-MISCONF") || text.starts_with("-EXECABORT")) {
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
        let mut reasons = Vec::new();
        trace!("{}: {command:?} -> {}", window.until, reply.show());
        for &lsn in states.iter().filter(|lsn| (window.from..=latest).contains(lsn)) {
            let mut state = self.state(&keys, lsn);
            let before = state.clone();
            match command.execute(&mut state, reply, low_ms, high_ms) {
                Verdict::Unclear => {
                    // A key came to its end meanwhile. What is known of it all the same:
                    let written = tokens.iter().find_map(|token| self.tokens.get(token));
                    return Ok(written.copied().unwrap_or(0));
                }
                Verdict::No(why) => reasons.push(format!("after LSN {lsn}: {why}, of {before:?}")),
                Verdict::Yes if !state.differs(&before) => {
                    let seen = keys.iter().filter_map(|key| self.version(key, lsn));
                    return Ok(seen.map(|version| version.lsn).max().unwrap_or(0));
                }
                Verdict::Yes => {
                    if lsn == latest {
                        reasons.push(format!(
                            "after LSN {lsn}: it would be the next record, which is not there"
                        ));
                        continue;
                    }
                    let after = self.state(&keys, lsn + 1);
                    match state.accounts_for(&after)
                        && tokens.iter().all(|token| self.lsn_of(*token).is_none_or(|own| own == lsn + 1))
                    {
                        true => return Ok(lsn + 1),
                        false => reasons.push(format!("LSN {} is {after:?}, not {state:?}", lsn + 1)),
                    }
                }
            }
        }
        Err(format!(
            "{command:?} was answered with {}, which nothing explains; LSNs {} to {latest}: {}",
            reply.show(),
            window.from,
            reasons.join("; ")
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

    /// The server ended at `now` and this was recovered. It must be what was executed, from LSN 1 on, byte for byte; with
    /// all that was promised, and all that the server took for durable, told or not; and no more may be lost than
    /// `loss` allows. If bits were flipped (`may_rot`) the end may be missing, as nothing tells it from a
    /// torn tail.
    pub fn recover(
        &mut self,
        recovered: &[(u64, Vec<u8>)],
        now: u64,
        loss: Option<Loss>,
        may_rot: bool,
    ) -> Result<(), String> {
        for (index, (lsn, payload)) in recovered.iter().enumerate() {
            if *lsn != index as u64 + 1 {
                return Err(format!("LSN {lsn} was recovered in the place of {}", index + 1));
            }
            let Some(executed) = self.executed.get(index) else {
                return Err(format!("LSN {lsn} was recovered and never executed"));
            };
            if executed.payload != *payload {
                return Err(format!(
                    "LSN {lsn} was recovered with other bytes: {payload:?}, not {:?}",
                    executed.payload
                ));
            }
        }
        let last = recovered.len() as u64;
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
            if let (Some(loss), [first, .., latest]) = (loss, &self.executed[recovered.len()..]) {
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
        self.executed.truncate(recovered.len());
        self.early.clear();
        for versions in self.keys.values_mut() {
            versions.truncate(versions.partition_point(|version| version.lsn <= last));
        }
        let lost = self.tokens.iter().filter(|(_, lsn)| **lsn > last).map(|(token, _)| *token);
        self.banned.extend(lost.collect::<Vec<_>>());
        self.tokens.retain(|_, lsn| *lsn <= last);
        // Everything is durable now that was recovered.
        self.promised = (last, String::from("the start said so"));
        self.durable = last;
        Ok(())
    }
}
