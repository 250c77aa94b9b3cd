//! A client with keys of its own, and a reader of everybody's.
//!
//! A client draws changes from its generator, sends a few together, and notes in each key's [`Ledger`] what it is told.
//! It goes on until its connection breaks: then the server is gone, and what was not answered is unknown. After the
//! restart it reads every key and lets the ledgers judge.

use super::connection::{Connection, Endpoint, is_gone, is_silent};
use super::ledger::{Answer, Change, Expiry, Held, Ledger, SeenExpiry, Verdict, show};
use super::plan::Plan;
use crate::workload::Protocol;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use serde::Serialize;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// Reads sent together while keys are looked at.
const READS_TOGETHER: usize = 64;
/// Explanations of each kind that a client keeps of one cycle; the rest is counted.
const FINDINGS_MAX: usize = 20;
/// Appending stops when a value is this many times as long as a value that is set may be.
const GROWTH_MAX: usize = 4;
/// No expiry of an audit is before this (the year 2096), milliseconds since 1970.
const EXPIRY_MS: u64 = 4_000_000_000_000;

/// What all clients of a cycle share.
pub struct Shared<'a> {
    /// Acknowledged writes of all clients in this cycle.
    pub acknowledged: AtomicU64,
    /// At this many the server is killed; `None`: somebody else does it.
    pub kill_at: Option<u64>,
    /// Kills it.
    pub kill: &'a (dyn Fn() + Sync),
    /// Set when clients are to end although the server lives.
    pub is_over: AtomicBool,
    /// When they do so by themselves.
    pub deadline: Instant,
}

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Kind {
    /// What was acknowledged, or shown to a reader, is gone.
    Lost,
    /// What is there was never sent.
    Phantom,
    /// A reply contradicts what the key held.
    WrongReply,
}

/// One thing that went wrong.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// The cycle, from 1.
    pub cycle: u32,
    /// What it is.
    pub kind: Kind,
    /// The key.
    pub key: String,
    /// What it could have held.
    pub expected: Vec<String>,
    /// What it held, or what was answered.
    pub found: String,
}

/// What one client found in one cycle.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Writes that were answered with success.
    pub acknowledged: u64,
    /// Writes that were answered with an error.
    pub refused: u64,
    /// The first of these errors.
    pub refusal: Option<String>,
    /// Writes that were never answered.
    pub unknown: u64,
    /// Keys read after the restart.
    pub verified: u64,
    /// Of these: lost.
    pub lost: u64,
    /// Of these: never sent; and values never sent that a reader was shown.
    pub phantom: u64,
    /// Answers that were wrong.
    pub wrong_replies: u64,
    /// Reads by readers.
    pub shown: u64,
    /// Explanations.
    pub findings: Vec<Finding>,
    /// Why the audit cannot go on.
    pub failure: Option<String>,
}

impl Tally {
    /// Adds another client's.
    pub fn add(&mut self, other: Tally) {
        self.acknowledged += other.acknowledged;
        self.refused += other.refused;
        self.unknown += other.unknown;
        self.verified += other.verified;
        self.lost += other.lost;
        self.phantom += other.phantom;
        self.wrong_replies += other.wrong_replies;
        self.shown += other.shown;
        self.refusal = self.refusal.take().or(other.refusal);
        self.failure = self.failure.take().or(other.failure);
        self.findings.extend(other.findings);
    }

    fn find(&mut self, finding: Finding) {
        match finding.kind {
            Kind::Lost => self.lost += 1,
            Kind::Phantom => self.phantom += 1,
            Kind::WrongReply => self.wrong_replies += 1,
        }
        if self.findings.iter().filter(|other| other.kind == finding.kind).count() < FINDINGS_MAX {
            self.findings.push(finding);
        }
    }
}

/// The name of a key.
pub fn key_name(plan: &Plan, client: usize, key: usize) -> String {
    format!("{}{client}:{key}", plan.key_prefix)
}

/// Texts are set and appended to, counters count. Every value of a text is written once only.
fn is_counter(key: usize) -> bool {
    key % 3 == 2
}

/// A client that writes.
pub struct Client {
    number: usize,
    random: Xoshiro256PlusPlus,
    keys: Vec<Ledger>,
    /// Writes so far: they make values unique.
    sequence: u64,
    /// Between `connect` and `load`.
    connection: Option<Connection>,
    /// What this cycle has brought.
    pub tally: Tally,
}

impl Client {
    /// A client whose keys are missing.
    pub fn new(plan: &Plan, number: usize) -> Client {
        let seed = plan.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(number as u64);
        Client {
            number,
            random: Xoshiro256PlusPlus::seed_from_u64(seed),
            keys: (0..plan.keys).map(|_| Ledger::default()).collect(),
            sequence: 0,
            connection: None,
            tally: Tally::default(),
        }
    }

    /// Deletes what an earlier audit has left behind.
    pub fn clear(&mut self, plan: &Plan, endpoint: &Endpoint) -> Result<(), String> {
        let names: Vec<String> = (0..plan.keys).map(|key| key_name(plan, self.number, key)).collect();
        let work = |names: &[String]| -> io::Result<()> {
            let mut connection = Connection::open(endpoint)?;
            for names in names.chunks(READS_TOGETHER) {
                names.iter().for_each(|name| connection.put_change(name.as_bytes(), &Change::Delete));
                connection.send()?;
                for _ in names {
                    if let Answer::Refused(error) = connection.change_answer(&Change::Delete)? {
                        return Err(io::Error::other(error));
                    }
                }
            }
            Ok(())
        };
        work(&names)
            .map_err(|error| format!("cannot delete the keys of an earlier audit: {}", explain(&error)))
    }

    /// Connects for the next cycle. All do so before any writes: one that came late might find the server that was
    /// started after the crash, and miss the crash.
    pub fn connect(&mut self, endpoint: &Endpoint) -> Result<(), String> {
        let connection = Connection::open(endpoint);
        let connection = connection
            .map_err(|error| format!("client {} cannot connect: {}", self.number, explain(&error)))?;
        self.connection = Some(connection);
        Ok(())
    }

    /// Writes until the server is gone, or until it is over.
    pub fn load(&mut self, plan: &Plan, protocol: Protocol, shared: &Shared<'_>) {
        let mut connection = self.connection.take().expect("connected before");
        let mut sent: VecDeque<(usize, Change)> = VecDeque::new();
        while !shared.is_over.load(Ordering::Relaxed) {
            if Instant::now() > shared.deadline {
                return;
            }
            for _ in 0..self.random.random_range(1..=plan.pipeline_max) {
                let key = self.random.random_range(0..plan.keys);
                if !self.keys[key].has_room() {
                    continue;
                }
                let change = self.draw(plan, key, protocol);
                connection.put_change(key_name(plan, self.number, key).as_bytes(), &change);
                self.keys[key].sent(change.clone());
                sent.push_back((key, change));
            }
            if sent.is_empty() && self.keys.iter().all(Ledger::is_frozen) {
                return;
            }
            // A server that is killed may have answered before: whatever comes is read to the end.
            let mut result = connection.send().map(|()| false);
            while let Some((key, change)) = sent.front() {
                match connection.change_answer(change) {
                    Ok(answer) => self.note(plan, *key, &answer, shared),
                    Err(error) => {
                        result = Err(error);
                        break;
                    }
                }
                sent.pop_front();
            }
            if let Err(error) = result {
                self.tally.unknown += sent.len() as u64;
                if !is_gone(&error) {
                    self.tally.failure = Some(format!("a client gave up: {}", explain(&error)));
                    shared.is_over.store(true, Ordering::Relaxed);
                }
                return;
            }
        }
    }

    fn note(&mut self, plan: &Plan, key: usize, answer: &Answer, shared: &Shared<'_>) {
        let contradiction = self.keys[key].answered(answer);
        if let Answer::Refused(error) = answer {
            self.tally.refused += 1;
            self.tally.refusal.get_or_insert_with(|| error.clone());
            return;
        }
        self.tally.acknowledged += 1;
        let count = shared.acknowledged.fetch_add(1, Ordering::Relaxed) + 1;
        if shared.kill_at == Some(count) {
            (shared.kill)();
        }
        if let Err(found) = contradiction {
            let key = key_name(plan, self.number, key);
            self.tally.find(Finding { cycle: 0, kind: Kind::WrongReply, key, expected: Vec::new(), found });
        }
    }

    fn draw(&mut self, plan: &Plan, key: usize, protocol: Protocol) -> Change {
        self.sequence += 1;
        let random = &mut self.random;
        let kind = random.random_range(0..100);
        let expiry = match (random.random_range(0..4), protocol) {
            (0, Protocol::Resp) => Expiry::At(EXPIRY_MS + self.sequence),
            (0, Protocol::Http) => Expiry::Sometime,
            _ => Expiry::Never,
        };
        if is_counter(key) {
            return match kind {
                0..60 => Change::Add(random.random_range(-1_000..=1_000)),
                60..85 => {
                    let value = random.random_range(0..1_000_000_000).to_string().into_bytes();
                    Change::Set(Held { value, expiry })
                }
                _ => Change::Delete,
            };
        }
        let has_grown = self.keys[key].length_max > plan.value_bytes_max * (GROWTH_MAX - 1);
        let mut text = format!("{}.{};", self.number, self.sequence).into_bytes();
        let length = random.random_range(0..=plan.value_bytes_max);
        match kind {
            0..55 => {
                while text.len() < length {
                    text.push(random.random_range(b'a'..=b'z'));
                }
                Change::Set(Held { value: text, expiry })
            }
            55..85 if !has_grown => {
                while text.len() < length / 4 {
                    text.push(random.random_range(b'A'..=b'Z'));
                }
                Change::Append(text)
            }
            _ => Change::Delete,
        }
    }

    /// A reader was shown these values of this client's keys.
    pub fn shown(&mut self, plan: &Plan, cycle: u32, key: usize, value: &[u8]) {
        if !self.keys[key].shown(value) {
            let found = Some(Held { value: value.to_vec(), expiry: Expiry::Never });
            let finding = Finding {
                cycle,
                kind: Kind::Phantom,
                key: key_name(plan, self.number, key),
                expected: self.keys[key].candidates().iter().map(show).collect(),
                found: format!("{}, shown to a reader", show(&found)),
            };
            self.tally.find(finding);
        }
    }

    /// Reads every key and judges what it holds.
    pub fn verify(&mut self, plan: &Plan, endpoint: &Endpoint, cycle: u32) {
        if let Err(error) = self.try_verify(plan, endpoint, cycle) {
            self.tally.failure = Some(format!("a client cannot read its keys: {}", explain(&error)));
        }
    }

    fn try_verify(&mut self, plan: &Plan, endpoint: &Endpoint, cycle: u32) -> io::Result<()> {
        let mut connection = Connection::open(endpoint)?;
        for first in (0..plan.keys).step_by(READS_TOGETHER) {
            let keys = first..plan.keys.min(first + READS_TOGETHER);
            keys.clone().for_each(|key| {
                connection.put_read(key_name(plan, self.number, key).as_bytes(), true);
            });
            connection.send()?;
            for key in keys {
                let (value, expiry) = connection.read_answer(true)?;
                self.judge(plan, cycle, key, value, expiry);
            }
        }
        Ok(())
    }

    fn judge(&mut self, plan: &Plan, cycle: u32, key: usize, value: Option<Vec<u8>>, expiry: SeenExpiry) {
        self.tally.verified += 1;
        let ledger = &mut self.keys[key];
        let expected = ledger.expected();
        let verdict = ledger.found(value.clone(), expiry);
        let kind = match verdict {
            Verdict::Kept => return,
            Verdict::Lost => Kind::Lost,
            Verdict::Phantom => Kind::Phantom,
        };
        let expiry = match expiry {
            SeenExpiry::Said(expiry) => expiry,
            SeenExpiry::Unsaid => Expiry::Never,
        };
        let finding = Finding {
            cycle,
            kind,
            key: key_name(plan, self.number, key),
            expected: expected.iter().map(show).collect(),
            found: show(&value.map(|value| Held { value, expiry })),
        };
        self.tally.find(finding);
    }
}

/// What a reader was shown last: client, key, value.
pub type Shown = HashMap<(usize, usize), Vec<u8>>;

/// Reads texts of all clients until the server is gone.
pub fn read(
    plan: &Plan,
    endpoint: &Endpoint,
    shared: &Shared<'_>,
    seed: u64,
) -> (Shown, u64, Option<String>) {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut shown = Shown::new();
    let mut count = 0;
    let mut work = || -> io::Result<()> {
        let mut connection = Connection::open(endpoint)?;
        while !shared.is_over.load(Ordering::Relaxed) && Instant::now() < shared.deadline {
            let (client, key) = (random.random_range(0..plan.clients), random.random_range(0..plan.keys));
            if is_counter(key) {
                continue;
            }
            connection.put_read(key_name(plan, client, key).as_bytes(), false);
            connection.send()?;
            let (value, _) = connection.read_answer(false)?;
            count += 1;
            if let Some(value) = value {
                shown.insert((client, key), value);
            }
        }
        Ok(())
    };
    let failure = match work() {
        Err(error) if !is_gone(&error) => Some(format!("a reader gave up: {}", explain(&error))),
        Ok(()) | Err(_) => None,
    };
    if failure.is_some() {
        shared.is_over.store(true, Ordering::Relaxed);
    }
    (shown, count, failure)
}

fn explain(error: &io::Error) -> String {
    if is_silent(error) {
        return "the server does not answer within --timeout, and whether it still will nobody can tell"
            .into();
    }
    error.to_string()
}
