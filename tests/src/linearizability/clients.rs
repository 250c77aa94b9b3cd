//! Threads that drive a real server over RESP and record what they ask and are told.
//!
//! Keys are few and everybody wants them: contention is what is tested. Each client draws its operations from its own
//! generator, sends them in small pipelines, and now and then hangs up without reading the replies, which leaves
//! operations of unknown outcome behind. When the server goes away a client ends and leaves what it had sent unknown;
//! the same history can go on when the server is back, with other clients.
//!
//! A write that is refused because the log has failed did not happen: it is taken out of the history, so that its effect
//! must never be seen.

use super::history::{History, Invocation, Log};
use super::keyspace::{self, Transaction};
use super::register::{self, Keyed};
use super::{Reply, Value};
use crate::oracle::command;
use crate::oracle::value::{Unparsed, Value as Parsed};
use crate::random::Random;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// No answer takes longer; only a hang does.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// Keys in each group that is used as one.
pub const GROUP_KEYS: usize = 3;
/// What each account of a bank holds at first.
pub const OPENING_BALANCE: i64 = 100;

/// What the clients of a run do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The server: its RESP port, or its HTTP port for [`super::http`].
    pub address: SocketAddr,
    /// The number of the first client. None may be used twice in a history.
    pub first_client: u32,
    /// How many clients.
    pub clients: u32,
    /// Operations of each.
    pub operations: usize,
    /// How many keys, or groups of keys, they share.
    pub keys: u32,
    /// So many of them get every second operation; 0: all are alike.
    pub hot_keys: u32,
    /// Operations sent at once, at most.
    pub pipeline_max: usize,
    /// Every so many pipelines a client hangs up before the replies; 0: never.
    pub hang_up_every: usize,
    /// Whether the log may fail, and writes be refused.
    pub may_be_refused: bool,
    /// Where replies are counted.
    pub progress: Progress,
    /// Everything random.
    pub seed: u64,
}

impl Plan {
    /// The number of a key, or of a group.
    pub(super) fn key(&self, random: &mut Random) -> u32 {
        let hot = self.hot_keys > 0 && random.chance(50);
        random.below(if hot { self.hot_keys } else { self.keys } as usize) as u32
    }
}

/// Replies that have come, counted for whoever waits for a moment in the middle of the load.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<(Mutex<Counted>, Condvar)>);

#[derive(Debug, Default)]
struct Counted {
    replies: usize,
    wanted: usize,
}

impl Progress {
    /// So many more.
    pub fn add(&self, replies: usize) {
        let mut counted = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        counted.replies += replies;
        if counted.replies >= counted.wanted {
            self.0.1.notify_all();
        }
    }

    /// How many there are.
    pub fn replies(&self) -> usize {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).replies
    }

    /// Waits until there are `wanted`, but no longer than `patience`. False if there are fewer.
    pub fn wait_for(&self, wanted: usize, patience: Duration) -> bool {
        let mut counted = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        counted.wanted = wanted;
        let waited = self.0.1.wait_timeout_while(counted, patience, |counted| counted.replies < wanted);
        waited.unwrap_or_else(PoisonError::into_inner).0.replies >= wanted
    }
}

/// What a group of keys is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// All keys always hold the same: they are set, deleted and read together.
    Together,
    /// Accounts: transfers keep their sum.
    Bank,
    /// Values are moved and copied between the keys.
    Moves,
}

/// What a group is used for.
pub fn use_of(group: u32) -> Use {
    [Use::Together, Use::Bank, Use::Moves][group as usize % 3]
}

/// Clients with operations on single keys.
pub fn single_key(plan: &Plan, history: &History<Keyed, Reply>) {
    run(plan, history, |client, log| {
        let mut left = plan.operations;
        let mut values = Values::new(plan.seed, client.number);
        while left > 0 {
            if client.random.chance(3) {
                left = left.saturating_sub(2);
                let key = plan.key(&mut client.random);
                let new = values.next(key, &mut client.random);
                compare_and_set(client, log, key, new)?;
                plan.progress.add(2);
                continue;
            }
            let count = client.random.between(1, plan.pipeline_max as i64) as usize;
            let mut batch = Vec::new();
            for _ in 0..count.min(left) {
                let key = plan.key(&mut client.random);
                let command = single(key, &mut values, &mut client.random);
                client.put(&words_of(&register_key(key), &command));
                batch.push(log.invoke(Keyed { key, command }));
            }
            left = left.saturating_sub(count);
            if client.send_and_maybe_hang_up(plan)? {
                continue;
            }
            let count = batch.len();
            for invocation in batch {
                let reply = client.reply()?;
                settle(log, invocation, client.reply_of(&reply));
            }
            plan.progress.add(count);
        }
        Ok(())
    });
}

/// Clients with operations on several keys. The banks' accounts are there: see [`open_accounts`].
pub fn multi_key(plan: &Plan, history: &History<Transaction, Vec<Reply>>) {
    run(plan, history, |client, log| {
        let mut left = plan.operations;
        let mut values = Values::new(plan.seed, client.number);
        while left > 0 {
            let group = plan.key(&mut client.random);
            if use_of(group) == Use::Bank && client.random.chance(30) {
                left = left.saturating_sub(2);
                transfer_with_watch(client, log, group)?;
                plan.progress.add(2);
                continue;
            }
            let count = client.random.between(1, plan.pipeline_max as i64) as usize;
            let mut batch = Vec::new();
            for _ in 0..count.min(left) {
                let group = plan.key(&mut client.random);
                let transaction = several(group, &mut values, &mut client.random);
                client.put_transaction(&transaction);
                let commands = transaction.commands.len();
                batch.push((log.invoke(transaction), commands));
            }
            left = left.saturating_sub(count);
            if client.send_and_maybe_hang_up(plan)? {
                continue;
            }
            let count = batch.len();
            for (invocation, commands) in batch {
                let replies = client.transaction_reply(commands)?;
                settle(log, invocation, replies);
            }
            plan.progress.add(count);
        }
        Ok(())
    });
}

/// Writes down what was answered; nothing: it was refused.
pub(super) fn settle<I, O>(log: &mut Log<'_, I, O>, invocation: Invocation, output: Option<O>) {
    match output {
        Some(output) => log.respond(invocation, output),
        None => log.withdraw(invocation),
    }
}

/// Gives every account its opening balance, one bank after the other.
pub fn open_accounts(plan: &Plan, history: &History<Transaction, Vec<Reply>>) -> io::Result<()> {
    let number = plan.first_client + plan.clients;
    let mut client = Client::connect(plan, number, Random::new(plan.seed))?;
    let mut log = history.client(number);
    for group in (0..plan.keys).filter(|group| use_of(*group) == Use::Bank) {
        let balance = OPENING_BALANCE.to_string().into_bytes();
        let pairs = (0..GROUP_KEYS).map(|key| (key, balance.clone())).collect();
        let transaction = Transaction::of(group, keyspace::Command::SetAll(pairs));
        client.put_transaction(&transaction);
        let invocation = log.invoke(transaction);
        client.send()?;
        let reply = client.transaction_reply(1)?;
        settle(&mut log, invocation, reply);
    }
    Ok(())
}

/// Runs the clients on threads. A client whose server goes away is done.
fn run<I: Send, O: Send>(
    plan: &Plan,
    history: &History<I, O>,
    work: impl Fn(&mut Client, &mut Log<'_, I, O>) -> io::Result<()> + Sync,
) {
    std::thread::scope(|scope| {
        for number in plan.first_client..plan.first_client + plan.clients {
            let work = &work;
            scope.spawn(move || {
                let mut log = history.client(number);
                let seed = plan.seed.wrapping_mul(1_000).wrapping_add(u64::from(number));
                let Ok(mut client) = Client::connect(plan, number, Random::new(seed)) else { return };
                // If the server went away: what was under way stays unknown.
                let ended = work(&mut client, &mut log);
                demand_no_silence(number, &ended);
            });
        }
    });
}

/// A server that does not answer is another matter than one that goes away.
pub(super) fn demand_no_silence(client: u32, ended: &io::Result<()>) {
    if let Err(error) = ended {
        let is_silence = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
        assert!(!is_silence, "client {client}: no answer within {SILENCE_MAX:?}");
    }
}

/// Values that are written once only, so that whoever reads one knows who wrote it.
pub(super) struct Values {
    prefix: String,
    count: u32,
}

impl Values {
    /// Those of one client.
    pub(super) fn new(seed: u64, client: u32) -> Values {
        Values { prefix: format!("{:04x}.{client}.", seed as u16), count: 0 }
    }

    /// Keys with odd numbers are counters.
    pub(super) fn next(&mut self, key: u32, random: &mut Random) -> Value {
        self.count += 1;
        match key % 2 {
            0 => format!("{}{};", self.prefix, self.count).into_bytes(),
            _ => random.between(0, 1_000_000_000).to_string().into_bytes(),
        }
    }
}

/// A random command on a key.
pub(super) fn single(key: u32, values: &mut Values, random: &mut Random) -> register::Command {
    use register::Command;
    let is_counter = key % 2 == 1;
    match random.below(100) {
        0..45 => Command::Get,
        45..56 => Command::Set(values.next(key, random)),
        56..60 => Command::GetSet(values.next(key, random)),
        60..65 => Command::SetIfAbsent(values.next(key, random)),
        65..70 => Command::SetIfPresent(values.next(key, random)),
        70..78 => Command::Delete,
        78..98 if is_counter => Command::Add(random.between(-9, 9)),
        78..98 => Command::Append(values.next(key, random)),
        // A counter that is no number for a while, a text that is asked to count.
        _ if is_counter => Command::Append(b"x".to_vec()),
        _ => Command::Add(1),
    }
}

/// Reads the key as watched, then sets it unless somebody else has.
fn compare_and_set(
    client: &mut Client,
    log: &mut Log<'_, Keyed, Reply>,
    key: u32,
    new: Value,
) -> io::Result<()> {
    let name = register_key(key);
    client.put(&[b"WATCH".to_vec(), name.clone()]);
    client.put(&words_of(&name, &register::Command::Get));
    let read = log.invoke(Keyed { key, command: register::Command::Get });
    client.send()?;
    expect_ok(&client.reply()?);
    let Reply::Value(expected) = to_reply(&client.reply()?) else {
        panic!("GET did not answer with a value")
    };
    log.respond(read, Reply::Value(expected.clone()));
    client.put(&[b"MULTI".to_vec()]);
    client.put(&words_of(&name, &register::Command::Set(new.clone())));
    client.put(&[b"EXEC".to_vec()]);
    let swap = log.invoke(Keyed { key, command: register::Command::CompareAndSet { expected, new } });
    client.send()?;
    let replies = client.exec_reply(1)?;
    let reply = replies.map(|replies| replies.into_iter().next().expect("one reply to one command"));
    settle(log, swap, reply);
    Ok(())
}

fn several(group: u32, values: &mut Values, random: &mut Random) -> Transaction {
    use keyspace::Command;
    use register::Command as Single;
    let all: Vec<usize> = (0..GROUP_KEYS).collect();
    let key = random.below(GROUP_KEYS);
    let other = (key + 1 + random.below(GROUP_KEYS - 1)) % GROUP_KEYS;
    let command = match use_of(group) {
        Use::Together => match random.below(10) {
            0..3 => {
                let value = values.next(0, random);
                Command::SetAll(all.into_iter().map(|key| (key, value.clone())).collect())
            }
            3 => Command::DeleteAll(all),
            4..6 => Command::One(key, Single::Get),
            _ => Command::GetAll(all),
        },
        Use::Bank => match random.below(10) {
            0..5 => {
                let amount = random.between(1, 20);
                let commands =
                    vec![Command::One(key, Single::Add(-amount)), Command::One(other, Single::Add(amount))];
                return Transaction { group, watched: Vec::new(), commands };
            }
            _ => Command::GetAll(all),
        },
        Use::Moves => match random.below(20) {
            0..3 => Command::One(key, Single::Set(values.next(0, random))),
            3..6 => Command::Rename(key, other),
            6..9 => Command::Copy { from: key, to: other, replace: random.chance(50) },
            9..11 => Command::DeleteAll(vec![key, other]),
            11..13 => {
                let commands = vec![
                    Command::Rename(key, other),
                    Command::One(key, Single::Set(values.next(0, random))),
                    Command::GetAll(all),
                ];
                return Transaction { group, watched: Vec::new(), commands };
            }
            _ => Command::GetAll(all),
        },
    };
    Transaction::of(group, command)
}

/// Reads two accounts as watched, then writes both unless somebody has touched one.
fn transfer_with_watch(
    client: &mut Client,
    log: &mut Log<'_, Transaction, Vec<Reply>>,
    group: u32,
) -> io::Result<()> {
    use keyspace::Command;
    let from = client.random.below(GROUP_KEYS);
    let to = (from + 1 + client.random.below(GROUP_KEYS - 1)) % GROUP_KEYS;
    client.put(&[b"WATCH".to_vec(), group_key(group, from), group_key(group, to)]);
    let read = Transaction::of(group, Command::GetAll(vec![from, to]));
    client.put_transaction(&read);
    let invocation = log.invoke(read);
    client.send()?;
    expect_ok(&client.reply()?);
    let replies = client.transaction_reply(1)?.expect("who only reads is not refused");
    let [Reply::Values(seen)] = &replies[..] else { panic!("MGET did not answer with values: {replies:?}") };
    let seen = seen.clone();
    log.respond(invocation, replies);
    let balance = |value: &Option<Value>| -> i64 {
        // One that is gone holds nothing: to complain is up to the checker.
        let text = std::str::from_utf8(value.as_deref().unwrap_or(b"0")).expect("a number");
        text.parse().expect("a number")
    };
    let amount = client.random.between(1, 20);
    let pairs = vec![
        (from, (balance(&seen[0]) - amount).to_string().into_bytes()),
        (to, (balance(&seen[1]) + amount).to_string().into_bytes()),
    ];
    let watched = vec![(from, seen[0].clone()), (to, seen[1].clone())];
    let transaction = Transaction { group, watched, commands: vec![Command::SetAll(pairs)] };
    client.put_transaction(&transaction);
    let invocation = log.invoke(transaction);
    client.send()?;
    let replies = client.exec_reply(1)?;
    settle(log, invocation, replies);
    Ok(())
}

/// The name of a key.
pub(super) fn register_key(key: u32) -> Vec<u8> {
    format!("register:{key}").into_bytes()
}

fn group_key(group: u32, key: usize) -> Vec<u8> {
    // No hash tag: with several shards a group lies on several of them.
    format!("group:{group}:{key}").into_bytes()
}

fn words_of(key: &[u8], command: &register::Command) -> Vec<Vec<u8>> {
    use register::Command;
    let (name, more): (&str, Vec<Vec<u8>>) = match command {
        Command::Get => ("GET", vec![]),
        Command::Set(value) => ("SET", vec![value.clone()]),
        Command::GetSet(value) => ("GETSET", vec![value.clone()]),
        Command::SetIfAbsent(value) => ("SET", vec![value.clone(), b"NX".to_vec()]),
        Command::SetIfPresent(value) => ("SET", vec![value.clone(), b"XX".to_vec()]),
        Command::Add(number) => ("INCRBY", vec![number.to_string().into_bytes()]),
        Command::Append(value) => ("APPEND", vec![value.clone()]),
        Command::Delete => ("DEL", vec![]),
        Command::CompareAndSet { .. } => unreachable!("not one command; see compare_and_set"),
        Command::Put(_) => unreachable!("HTTP only"),
    };
    let mut words = vec![name.as_bytes().to_vec(), key.to_vec()];
    words.extend(more);
    words
}

fn words_in_group(group: u32, command: &keyspace::Command) -> Vec<Vec<u8>> {
    use keyspace::Command;
    let of = |name: &str, keys: &[usize]| -> Vec<Vec<u8>> {
        let keys = keys.iter().map(|key| group_key(group, *key));
        [name.as_bytes().to_vec()].into_iter().chain(keys).collect()
    };
    match command {
        Command::One(key, command) => words_of(&group_key(group, *key), command),
        Command::SetAll(pairs) => {
            let pairs = pairs.iter().flat_map(|(key, value)| [group_key(group, *key), value.clone()]);
            [b"MSET".to_vec()].into_iter().chain(pairs).collect()
        }
        Command::GetAll(keys) => of("MGET", keys),
        Command::DeleteAll(keys) => of("DEL", keys),
        Command::Rename(from, to) => of("RENAME", &[*from, *to]),
        Command::Copy { from, to, replace } => {
            let mut words = of("COPY", &[*from, *to]);
            words.extend(replace.then(|| b"REPLACE".to_vec()));
            words
        }
    }
}

/// A reply as models speak of it.
fn to_reply(parsed: &Parsed) -> Reply {
    let value = |parsed: &Parsed| match parsed.bytes() {
        Some(bytes) => Some(bytes.to_vec()),
        None if parsed.is_null() => None,
        None => panic!("neither a value nor null: {}", parsed.show()),
    };
    match parsed {
        Parsed::Line(b'+', text) if text == b"OK" => Reply::Done,
        Parsed::Line(b'-', text) => {
            let text = String::from_utf8_lossy(text);
            let is_known =
                text.starts_with("ERR no such key") || text.starts_with("ERR value is not an integer");
            assert!(is_known, "an error that no operation here should meet: {text}");
            Reply::Refused
        }
        Parsed::Line(b':', _) => Reply::Number(parsed.integer().expect("a number follows the colon")),
        Parsed::Items(_, items) => Reply::Values(items.iter().map(value).collect()),
        other => Reply::Value(value(other)),
    }
}

#[track_caller]
fn expect_ok(parsed: &Parsed) {
    assert_eq!(*parsed, Parsed::Line(b'+', b"OK".to_vec()), "OK was expected, not {}", parsed.show());
}

/// A blocking connection and the generator of its owner.
struct Client {
    number: u32,
    random: Random,
    address: SocketAddr,
    may_be_refused: bool,
    stream: TcpStream,
    outgoing: Vec<u8>,
    incoming: Vec<u8>,
    consumed: usize,
}

impl Client {
    fn connect(plan: &Plan, number: u32, random: Random) -> io::Result<Client> {
        let Plan { address, may_be_refused, .. } = *plan;
        let stream = open(address)?;
        let (outgoing, incoming) = (Vec::new(), Vec::new());
        Ok(Client { number, random, address, may_be_refused, stream, outgoing, incoming, consumed: 0 })
    }

    /// Whether it says that the log has failed, and nothing was done.
    fn is_refusal(&self, parsed: &Parsed) -> bool {
        let is_it = matches!(parsed, Parsed::Line(b'-', text)
            if text.starts_with(b"MISCONF") || text.starts_with(b"EXECABORT"));
        assert!(self.may_be_refused || !is_it, "a log that should be whole: {}", parsed.show());
        is_it
    }

    /// A reply as models speak of it; nothing: it was refused.
    fn reply_of(&self, parsed: &Parsed) -> Option<Reply> {
        (!self.is_refusal(parsed)).then(|| to_reply(parsed))
    }

    fn put(&mut self, words: &[Vec<u8>]) {
        command::Command::new(words.to_vec()).encode(&mut self.outgoing);
    }

    fn put_transaction(&mut self, transaction: &Transaction) {
        let commands = &transaction.commands;
        let is_bare = commands.len() == 1 && transaction.watched.is_empty();
        if !is_bare {
            self.put(&[b"MULTI".to_vec()]);
        }
        for command in commands {
            self.put(&words_in_group(transaction.group, command));
        }
        if !is_bare {
            self.put(&[b"EXEC".to_vec()]);
        }
    }

    fn send(&mut self) -> io::Result<()> {
        let sent = self.stream.write_all(&self.outgoing);
        self.outgoing.clear();
        sent
    }

    /// Sends what was put; true: and then hung up, so that no reply will come.
    fn send_and_maybe_hang_up(&mut self, plan: &Plan) -> io::Result<bool> {
        self.send()?;
        let hangs_up = plan.hang_up_every > 0 && self.random.below(plan.hang_up_every) == 0;
        if hangs_up {
            self.stream = open(self.address)?;
            self.incoming.clear();
            self.consumed = 0;
        }
        Ok(hangs_up)
    }

    fn reply(&mut self) -> io::Result<Parsed> {
        loop {
            match Parsed::parse(&self.incoming[self.consumed..]) {
                Ok((parsed, length)) => {
                    self.consumed += length;
                    if self.consumed == self.incoming.len() {
                        self.incoming.clear();
                        self.consumed = 0;
                    }
                    return Ok(parsed);
                }
                Err(Unparsed::Malformed) => {
                    panic!("no reply: {}", self.incoming[self.consumed..].escape_ascii());
                }
                Err(Unparsed::Incomplete) => {}
            }
            let mut buffer = [0; 16 * 1024];
            match self.stream.read(&mut buffer)? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                length => self.incoming.extend_from_slice(&buffer[..length]),
            }
        }
    }

    /// The reply to what `put_transaction` has put, nothing being watched; nothing: it was refused.
    fn transaction_reply(&mut self, commands: usize) -> io::Result<Option<Vec<Reply>>> {
        if commands > 1 {
            return self.exec_reply(commands);
        }
        let reply = self.reply()?;
        Ok(self.reply_of(&reply).map(|reply| vec![reply]))
    }

    /// The replies to MULTI, so many commands, and EXEC.
    fn exec_reply(&mut self, commands: usize) -> io::Result<Option<Vec<Reply>>> {
        expect_ok(&self.reply()?);
        for _ in 0..commands {
            let queued = self.reply()?;
            let is_queued = queued == Parsed::Line(b'+', b"QUEUED".to_vec());
            assert!(is_queued || self.is_refusal(&queued), "{}", queued.show());
        }
        let reply = self.reply()?;
        match reply.items() {
            Some(items) => Ok(Some(items.iter().map(to_reply).collect())),
            None if reply.is_null() => Ok(Some(vec![Reply::Aborted])),
            None if self.is_refusal(&reply) => Ok(None),
            None => panic!("EXEC answered {}", reply.show()),
        }
    }
}

/// A connection that does not wait for ever.
pub(super) fn open(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    stream.set_write_timeout(Some(SILENCE_MAX))?;
    Ok(stream)
}
