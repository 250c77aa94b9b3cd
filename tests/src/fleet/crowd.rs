//! Many clients at once on the same keys, and what none of them may see.
//!
//! Each client sends pipelines of operations, from shards of its own choice, and writes down when each began and what
//! it answered. Some clients vanish in the middle of one. The shapes of the data make mistakes visible:
//!
//! - **accounts**, all with money that WATCH, MULTI and EXEC move about: every sight of all of them has the same sum;
//! - **registers** of one key, read and written on whatever shard: their [`History`] must have an order;
//! - **groups** of keys on several shards, written by one MSET or EXEC: no sight of one is torn, and their history, too,
//!   must have an order;
//! - **flocks**, which MSETNX and MSET set and DEL and UNLINK remove: all keys are there, or none is;
//! - **tokens**, which RENAME and RENAMENX move between two keys: exactly one is there;
//! - **counters**: INCR gives no number twice, and a later one a greater one;
//! - keys that nobody touches, which every full SCAN returns.

use super::history::History;
use super::{Fleet, Plan, Wire};
use crate::oracle::command::Command;
use crate::oracle::value::Value;
use crate::random::Random;
use std::collections::{BTreeMap, BTreeSet};

const ACCOUNTS: usize = 6;
const MONEY: i64 = 100;
const REGISTERS: usize = 6;
const GROUPS: usize = 3;
const FLOCKS: usize = 3;
const TOKENS: usize = 3;
const COUNTERS: usize = 4;
const STABLE: usize = 40;
/// Keys of a group or flock.
const MEMBERS: usize = 4;

/// What one reply of a pipeline is about.
#[derive(Clone, Debug)]
enum Sight {
    /// `+OK`, `+QUEUED` and the like.
    Nothing,
    /// The values of all accounts.
    Accounts,
    WriteRegister(usize, u64),
    ReadRegister(usize),
    WriteGroup(usize, u64),
    ReadGroup(usize),
    /// All values of a flock.
    ReadFlock,
    /// A number of keys of a flock.
    CountFlock,
    /// Both places of a token.
    ReadToken,
    /// A token is there once, however it is counted.
    CountToken,
    Increment(usize),
    /// MULTI was answered, and this is EXEC.
    Executed(Vec<Sight>),
    /// The watched balances; the transfer follows.
    Balances(usize, usize),
    /// EXEC of a transfer.
    Transferred,
    /// A step of a SCAN.
    Scanned,
}

struct Client {
    wire: Wire,
    begun: u64,
    /// What the replies of the pipeline on its way are about.
    pending: Vec<Sight>,
    /// Replies so far.
    answered: usize,
    parsed: usize,
    left: usize,
    scan: Option<(u64, BTreeSet<Vec<u8>>)>,
}

/// What was seen in a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Replies looked at.
    pub replies: usize,
    /// Transfers done.
    pub transfers: usize,
    /// Transfers that EXEC refused because of WATCH.
    pub conflicts: usize,
    /// Full scans.
    pub scans: usize,
}

struct Crowd {
    fleet: Fleet,
    random: Random,
    clients: Vec<Client>,
    next_value: u64,
    registers: Vec<History>,
    groups: Vec<History>,
    counters: Vec<BTreeMap<i64, (u64, u64)>>,
    counts: Counts,
}

/// Clients that each do so many pipelines. The first thing that nobody may see ends it.
pub fn run(plan: Plan, clients: usize, pipelines: usize) -> Result<Counts, String> {
    let mut random = Random::new(plan.seed ^ 0xc0d);
    let mut fleet = Fleet::new(plan);
    let shard = random.below(plan.shards);
    let wire = fleet.connect(shard);
    fleet.send(wire, &opening());
    fleet.run_until(Fleet::is_settled)?;
    let mut crowd = Crowd {
        fleet,
        random,
        clients: Vec::new(),
        next_value: 1,
        registers: vec![History::default(); REGISTERS],
        groups: vec![History::default(); GROUPS],
        counters: vec![BTreeMap::new(); COUNTERS],
        counts: Counts::default(),
    };
    crowd.registers.iter_mut().chain(&mut crowd.groups).for_each(|history| history.write(0, 0, 0));
    for _ in 0..clients {
        let shard = crowd.random.below(plan.shards);
        let wire = crowd.fleet.connect(shard);
        let left = 1 + crowd.random.below(pipelines);
        crowd.clients.push(Client {
            wire,
            begun: 0,
            pending: Vec::new(),
            answered: 0,
            parsed: 0,
            left,
            scan: None,
        });
    }
    crowd.play()?;
    crowd.judge()?;
    crowd.fleet.end()?;
    Ok(crowd.counts)
}

fn member(kind: &str, number: usize, at: usize) -> Vec<u8> {
    format!("{kind}:{number}:{at}").into_bytes()
}

fn key(kind: &str, number: usize) -> Vec<u8> {
    format!("{kind}:{number}").into_bytes()
}

fn push(bytes: &mut Vec<u8>, name: &str, arguments: impl IntoIterator<Item = Vec<u8>>) {
    let mut args: Vec<Vec<u8>> = name.split(' ').map(|word| word.as_bytes().to_vec()).collect();
    args.extend(arguments);
    Command::new(args).encode(bytes);
}

fn accounts() -> impl Iterator<Item = Vec<u8>> {
    (0..ACCOUNTS).map(|number| key("account", number))
}

fn members(kind: &str, number: usize) -> impl Iterator<Item = Vec<u8>> {
    (0..MEMBERS).map(move |at| member(kind, number, at))
}

fn with_value(keys: impl Iterator<Item = Vec<u8>>, value: u64) -> impl Iterator<Item = Vec<u8>> {
    keys.flat_map(move |key| [key, value.to_string().into_bytes()])
}

fn opening() -> Vec<u8> {
    let mut bytes = Vec::new();
    push(&mut bytes, "MSET", accounts().flat_map(|key| [key, MONEY.to_string().into_bytes()]));
    push(&mut bytes, "MSET", with_value((0..REGISTERS).map(|number| key("register", number)), 0));
    for group in 0..GROUPS {
        push(&mut bytes, "MSET", with_value(members("group", group), 0));
    }
    push(&mut bytes, "MSET", with_value((0..TOKENS).map(|token| member("token", token, 0)), 1));
    push(&mut bytes, "MSET", with_value((0..STABLE).map(|number| key("stable", number)), 1));
    bytes
}

impl Crowd {
    fn play(&mut self) -> Result<(), String> {
        let limit = self.fleet.steps() + super::STEPS_MAX;
        loop {
            let mut is_over = true;
            for at in 0..self.clients.len() {
                self.read(at)?;
                if self.clients[at].pending.is_empty() && self.clients[at].left > 0 {
                    self.clients[at].left -= 1;
                    self.send(at);
                }
                is_over &= self.clients[at].pending.is_empty();
            }
            if is_over {
                return Ok(());
            }
            if !self.fleet.step() {
                return Err(format!("nothing will ever happen again; {}", self.fleet.describe()));
            }
            if self.fleet.steps() > limit {
                return Err(format!("it does not end; {}", self.fleet.describe()));
            }
        }
    }

    fn send(&mut self, at: usize) {
        let mut bytes = Vec::new();
        let mut sights = Vec::new();
        if self.random.chance(30) {
            let from = self.random.below(ACCOUNTS);
            let to = (from + 1 + self.random.below(ACCOUNTS - 1)) % ACCOUNTS;
            push(&mut bytes, "WATCH", [key("account", from), key("account", to)]);
            push(&mut bytes, "MGET", [key("account", from), key("account", to)]);
            sights.extend([Sight::Nothing, Sight::Balances(from, to)]);
        } else {
            for _ in 0..1 + self.random.below(6) {
                self.operation(at, &mut bytes, &mut sights);
            }
        }
        self.post(at, &bytes, sights);
        // Now and then somebody vanishes behind what it has sent; who comes then is somebody else.
        if self.random.chance(2) {
            let pending = std::mem::take(&mut self.clients[at].pending);
            let begun = self.clients[at].begun;
            pending.into_iter().for_each(|sight| self.forget(sight, begun));
            let wire = self.clients[at].wire;
            self.fleet.reset(wire);
            let shard = self.random.below(self.fleet.shards());
            let client = &mut self.clients[at];
            client.wire = self.fleet.connect(shard);
            client.scan = None;
            client.answered = 0;
        }
    }

    fn post(&mut self, at: usize, bytes: &[u8], sights: Vec<Sight>) {
        let client = &mut self.clients[at];
        client.begun = self.fleet.steps();
        client.pending = sights;
        client.answered = 0;
        client.parsed = 0;
        self.fleet.send(client.wire, bytes);
    }

    fn value(&mut self) -> u64 {
        self.next_value += 1;
        self.next_value
    }

    fn operation(&mut self, at: usize, bytes: &mut Vec<u8>, sights: &mut Vec<Sight>) {
        let in_transaction = self.random.chance(25);
        let begin = sights.len();
        let mut queued = Vec::new();
        if in_transaction {
            push(bytes, "MULTI", []);
            for _ in 0..1 + self.random.below(3) {
                self.simple_operation(bytes, &mut queued);
            }
            push(bytes, "EXEC", []);
            sights.extend(vec![Sight::Nothing; 1 + queued.len()]);
            sights.push(Sight::Executed(queued));
        } else if self.random.chance(4) {
            let length = format!("0.00{}", self.random.between(1, 20));
            push(bytes, "DEBUG SLEEP", [length.into_bytes()]);
            sights.push(Sight::Nothing);
        } else if self.random.chance(8) {
            let cursor = self.clients[at].scan.get_or_insert_default().0;
            // One step a pipeline: the next needs its cursor.
            if !sights.iter().any(|sight| matches!(sight, Sight::Scanned)) {
                push(bytes, "SCAN", [cursor.to_string().into_bytes()]);
                sights.push(Sight::Scanned);
            }
        } else {
            self.simple_operation(bytes, sights);
        }
        debug_assert!(sights.len() >= begin);
    }

    /// One command and one reply.
    fn simple_operation(&mut self, bytes: &mut Vec<u8>, sights: &mut Vec<Sight>) {
        let sight = match self.random.below(20) {
            0..2 => {
                push(bytes, "MGET", accounts());
                Sight::Accounts
            }
            2..5 => {
                let (number, value) = (self.random.below(REGISTERS), self.value());
                push(bytes, "SET", [key("register", number), value.to_string().into_bytes()]);
                Sight::WriteRegister(number, value)
            }
            5..8 => {
                let number = self.random.below(REGISTERS);
                push(bytes, "GET", [key("register", number)]);
                Sight::ReadRegister(number)
            }
            8..10 => {
                let (group, value) = (self.random.below(GROUPS), self.value());
                push(bytes, "MSET", with_value(members("group", group), value));
                Sight::WriteGroup(group, value)
            }
            10..12 => {
                let group = self.random.below(GROUPS);
                push(bytes, "MGET", members("group", group));
                Sight::ReadGroup(group)
            }
            12..15 => {
                let flock = self.random.below(FLOCKS);
                let value = self.value();
                let keys = members("flock", flock);
                match self.random.below(7) {
                    0 => push(bytes, "MSET", with_value(keys, value)),
                    1 => push(bytes, "MSETNX", with_value(keys, value)),
                    2 => push(bytes, "DEL", keys),
                    3 => push(bytes, "UNLINK", keys),
                    4 => push(bytes, "EXISTS", keys),
                    5 => push(bytes, "TOUCH", keys),
                    _ => {
                        push(bytes, "MGET", keys);
                        return sights.push(Sight::ReadFlock);
                    }
                }
                Sight::CountFlock
            }
            15..18 => {
                let token = self.random.below(TOKENS);
                let from = self.random.below(2);
                let places = [member("token", token, from), member("token", token, 1 - from)];
                match self.random.below(5) {
                    0 => push(bytes, "RENAME", places),
                    1 => push(bytes, "RENAMENX", places),
                    2 => {
                        push(bytes, "EXISTS", places);
                        return sights.push(Sight::CountToken);
                    }
                    _ => {
                        push(bytes, "MGET", places);
                        return sights.push(Sight::ReadToken);
                    }
                }
                Sight::Nothing
            }
            _ => {
                let counter = self.random.below(COUNTERS);
                push(bytes, "INCR", [key("counter", counter)]);
                Sight::Increment(counter)
            }
        };
        sights.push(sight);
    }

    /// Nobody will ever know what came of this.
    fn forget(&mut self, sight: Sight, begun: u64) {
        match sight {
            Sight::WriteRegister(number, value) => self.registers[number].write(value, begun, u64::MAX),
            Sight::WriteGroup(group, value) => self.groups[group].write(value, begun, u64::MAX),
            Sight::Executed(queued) => queued.into_iter().for_each(|sight| self.forget(sight, begun)),
            _ => {}
        }
    }

    fn read(&mut self, at: usize) -> Result<(), String> {
        if self.clients[at].pending.is_empty() {
            return Ok(());
        }
        let wire = self.clients[at].wire;
        if self.fleet.is_closed(wire) {
            return Err(format!("the connection of client {at} was closed"));
        }
        loop {
            let client = &self.clients[at];
            let Ok((value, length)) = Value::parse(&self.fleet.received(wire)[client.parsed..]) else {
                return Ok(());
            };
            let Some(sight) = client.pending.get(client.answered).cloned() else {
                return Err(format!("client {at} got an answer that it did not ask for: {}", value.show()));
            };
            let begun = client.begun;
            let is_last = client.answered + 1 == client.pending.len();
            let client = &mut self.clients[at];
            client.parsed += length;
            client.answered += 1;
            if is_last {
                client.pending.clear();
                self.fleet.take_received(wire);
            }
            self.counts.replies += 1;
            self.see(at, &sight, &value, begun).map_err(|error| {
                format!("client {at}: {error}\n  asked: {sight:?}\n  got:   {}", value.show())
            })?;
            if is_last {
                return Ok(());
            }
        }
    }

    fn see(&mut self, at: usize, sight: &Sight, value: &Value, begun: u64) -> Result<(), String> {
        let end = self.fleet.steps();
        let numbers = || -> Vec<Option<i64>> {
            let items = value.items().unwrap_or_default();
            items.iter().map(|item| item.bytes().and_then(parse)).collect()
        };
        match sight {
            Sight::Nothing => {}
            Sight::Accounts => {
                let sum: i64 = numbers().into_iter().flatten().sum();
                if sum != MONEY * ACCOUNTS as i64 {
                    return Err(format!("all accounts together have {sum}"));
                }
            }
            Sight::WriteRegister(number, value) => self.registers[*number].write(*value, begun, end),
            Sight::ReadRegister(number) => {
                let found = value.bytes().and_then(parse).ok_or("a register has no value")?;
                self.registers[*number].read(found as u64, begun, end);
            }
            Sight::WriteGroup(group, value) => self.groups[*group].write(*value, begun, end),
            Sight::ReadGroup(group) => {
                let found = whole(&numbers())?.ok_or("a group has no value")?;
                self.groups[*group].read(found as u64, begun, end);
            }
            Sight::ReadFlock => {
                whole(&numbers())?;
            }
            Sight::CountFlock => {
                if let Some(count) = value.integer()
                    && ![0, 1, MEMBERS as i64].contains(&count)
                {
                    return Err(format!("{count} keys of {MEMBERS} are there"));
                }
            }
            Sight::ReadToken => {
                let places = numbers();
                if places.iter().flatten().count() != 1 {
                    return Err("a token is not in one place".into());
                }
            }
            Sight::CountToken => {
                if value.integer() != Some(1) {
                    return Err("a token is not in one place".into());
                }
            }
            Sight::Increment(counter) => {
                let number = value.integer().ok_or("INCR gives no number")?;
                if let Some(other) = self.counters[*counter].insert(number, (begun, end)) {
                    return Err(format!("{number} was given out before, at {other:?}"));
                }
            }
            Sight::Executed(queued) => {
                let items = value.items().ok_or("EXEC gives no array")?;
                if items.len() != queued.len() {
                    return Err(format!("EXEC of {} commands gives {}", queued.len(), items.len()));
                }
                for (sight, item) in queued.iter().zip(items) {
                    self.see(at, sight, item, begun)?;
                }
            }
            Sight::Balances(from, to) => self.transfer(at, *from, *to, &numbers())?,
            Sight::Transferred if value.is_null() => self.counts.conflicts += 1,
            Sight::Transferred => self.counts.transfers += 1,
            Sight::Scanned => self.scanned(at, value)?,
        }
        Ok(())
    }

    fn transfer(
        &mut self,
        at: usize,
        from: usize,
        to: usize,
        balances: &[Option<i64>],
    ) -> Result<(), String> {
        let [Some(has), Some(gets)] = balances else { return Err("an account has no balance".into()) };
        let amount = self.random.between(-20, 20);
        let mut bytes = Vec::new();
        push(&mut bytes, "MULTI", []);
        push(&mut bytes, "SET", [key("account", from), (has - amount).to_string().into_bytes()]);
        push(&mut bytes, "SET", [key("account", to), (gets + amount).to_string().into_bytes()]);
        push(&mut bytes, "MGET", accounts());
        push(&mut bytes, "EXEC", []);
        let mut sights = vec![Sight::Nothing; 4];
        sights.push(Sight::Transferred);
        self.post(at, &bytes, sights);
        Ok(())
    }

    fn scanned(&mut self, at: usize, value: &Value) -> Result<(), String> {
        let Some([next, keys]) = value.items() else { return Err("SCAN gives no pair".into()) };
        let Some((cursor, found)) = &mut self.clients[at].scan else { return Ok(()) };
        let keys = keys.items().unwrap_or_default().iter().filter_map(Value::bytes);
        found.extend(keys.map(<[u8]>::to_vec));
        *cursor = next.bytes().and_then(parse).ok_or("SCAN gives no cursor")? as u64;
        if *cursor == 0 {
            if let Some(missing) =
                (0..STABLE).map(|number| key("stable", number)).find(|key| !found.contains(key))
            {
                return Err(format!("a full SCAN did not return {}", missing.escape_ascii()));
            }
            self.counts.scans += 1;
            self.clients[at].scan = None;
        }
        Ok(())
    }

    /// What only the whole shows.
    fn judge(&self) -> Result<(), String> {
        for (number, history) in self.registers.iter().enumerate() {
            history.check().map_err(|error| format!("register {number} has no order: {error}"))?;
        }
        for (group, history) in self.groups.iter().enumerate() {
            history.check().map_err(|error| format!("group {group} has no order: {error}"))?;
        }
        for (counter, numbers) in self.counters.iter().enumerate() {
            let mut latest_begin = (0, 0);
            for (&number, &(begin, end)) in numbers {
                if end < latest_begin.0 {
                    return Err(format!(
                        "counter {counter} gave {number} at {end}, but {} to who asked at {}",
                        latest_begin.1, latest_begin.0
                    ));
                }
                latest_begin = latest_begin.max((begin, number));
            }
        }
        Ok(())
    }
}

fn parse(bytes: &[u8]) -> Option<i64> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

/// The one value of all keys.
fn whole(values: &[Option<i64>]) -> Result<Option<i64>, String> {
    let first = values.first().copied().flatten();
    if values.iter().all(|value| *value == first) { Ok(first) } else { Err("it is torn".into()) }
}
