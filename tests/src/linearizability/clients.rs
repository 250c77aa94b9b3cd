//! Threads that drive a real server over RESP and record what they ask and are told.
//!
//! Keys are few and everybody wants them: contention is what is tested. Each client draws its operations from its own
//! generator, sends them in small pipelines, and now and then hangs up without reading the replies, which leaves
//! operations of unknown outcome behind. When the server goes away a client ends and leaves what it had sent unknown;
//! the same history can go on when the server is back.

use super::history::{History, Log};
use super::keyspace::{self, Transaction};
use super::register::{self, Keyed};
use super::{Reply, Value};
use crate::oracle::command;
use crate::oracle::value::{Unparsed, Value as Parsed};
use crate::random::Random;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
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
    /// The server.
    pub address: SocketAddr,
    /// How many clients.
    pub clients: u32,
    /// Operations of each.
    pub operations: usize,
    /// How many keys, or groups of keys, they share.
    pub keys: u32,
    /// Operations sent at once, at most.
    pub pipeline_max: usize,
    /// Every so many pipelines a client hangs up before the replies; 0: never.
    pub hang_up_every: usize,
    /// Everything random.
    pub seed: u64,
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
                let key = client.random.below(plan.keys as usize) as u32;
                let new = values.next(key, &mut client.random);
                compare_and_set(client, log, key, new)?;
                continue;
            }
            let count = client.random.between(1, plan.pipeline_max as i64) as usize;
            let mut batch = Vec::new();
            for _ in 0..count.min(left) {
                let key = client.random.below(plan.keys as usize) as u32;
                let command = single(key, &mut values, &mut client.random);
                client.put(&words_of(&register_key(key), &command));
                batch.push(log.invoke(Keyed { key, command }));
            }
            left = left.saturating_sub(count);
            if client.send_and_maybe_hang_up(plan)? {
                continue;
            }
            for invocation in batch {
                let reply = client.reply()?;
                log.respond(invocation, reply_of(&reply));
            }
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
            let group = client.random.below(plan.keys as usize) as u32;
            if use_of(group) == Use::Bank && client.random.chance(30) {
                left = left.saturating_sub(2);
                transfer_with_watch(client, log, group)?;
                continue;
            }
            let count = client.random.between(1, plan.pipeline_max as i64) as usize;
            let mut batch = Vec::new();
            for _ in 0..count.min(left) {
                let group = client.random.below(plan.keys as usize) as u32;
                let transaction = several(group, &mut values, &mut client.random);
                client.put_transaction(&transaction);
                let commands = transaction.commands.len();
                batch.push((log.invoke(transaction), commands));
            }
            left = left.saturating_sub(count);
            if client.send_and_maybe_hang_up(plan)? {
                continue;
            }
            for (invocation, commands) in batch {
                let replies = client.transaction_reply(commands)?;
                log.respond(invocation, replies);
            }
        }
        Ok(())
    });
}

/// Gives every account its opening balance, one bank after the other.
pub fn open_accounts(plan: &Plan, history: &History<Transaction, Vec<Reply>>) -> io::Result<()> {
    let mut client = Client::connect(plan.address, plan.clients, Random::new(plan.seed))?;
    let mut log = history.client(plan.clients);
    for group in (0..plan.keys).filter(|group| use_of(*group) == Use::Bank) {
        let balance = OPENING_BALANCE.to_string().into_bytes();
        let pairs = (0..GROUP_KEYS).map(|key| (key, balance.clone())).collect();
        let transaction = Transaction::of(group, keyspace::Command::SetAll(pairs));
        client.put_transaction(&transaction);
        let invocation = log.invoke(transaction);
        client.send()?;
        log.respond(invocation, client.transaction_reply(1)?);
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
        for number in 0..plan.clients {
            let work = &work;
            scope.spawn(move || {
                let mut log = history.client(number);
                let seed = plan.seed.wrapping_mul(1_000).wrapping_add(u64::from(number));
                let Ok(mut client) = Client::connect(plan.address, number, Random::new(seed)) else { return };
                match work(&mut client, &mut log) {
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                        panic!("client {number}: no answer within {SILENCE_MAX:?}");
                    }
                    // The server went away: what was under way stays unknown.
                    Ok(()) | Err(_) => {}
                }
            });
        }
    });
}

/// Values that are written once only, so that whoever reads one knows who wrote it.
struct Values {
    prefix: String,
    count: u32,
}

impl Values {
    fn new(seed: u64, client: u32) -> Values {
        Values { prefix: format!("{:04x}.{client}.", seed as u16), count: 0 }
    }

    /// Keys with odd numbers are counters.
    fn next(&mut self, key: u32, random: &mut Random) -> Value {
        self.count += 1;
        match key % 2 {
            0 => format!("{}{};", self.prefix, self.count).into_bytes(),
            _ => random.between(0, 1_000_000_000).to_string().into_bytes(),
        }
    }
}

fn single(key: u32, values: &mut Values, random: &mut Random) -> register::Command {
    use register::Command;
    let is_counter = key % 2 == 1;
    match random.below(100) {
        0..45 => Command::Get,
        45..60 => Command::Set(values.next(key, random)),
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
    let Reply::Value(expected) = reply_of(&client.reply()?) else {
        panic!("GET did not answer with a value")
    };
    log.respond(read, Reply::Value(expected.clone()));
    client.put(&[b"MULTI".to_vec()]);
    client.put(&words_of(&name, &register::Command::Set(new.clone())));
    client.put(&[b"EXEC".to_vec()]);
    let swap = log.invoke(Keyed { key, command: register::Command::CompareAndSet { expected, new } });
    client.send()?;
    let replies = client.exec_reply(1)?;
    log.respond(swap, replies.into_iter().next().expect("one reply to one command"));
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
    let replies = client.transaction_reply(1)?;
    let [Reply::Values(seen)] = &replies[..] else { panic!("MGET did not answer with values: {replies:?}") };
    let seen = seen.clone();
    log.respond(invocation, replies);
    let balance = |value: &Option<Value>| -> i64 {
        let text = std::str::from_utf8(value.as_deref().expect("the account is open")).expect("a number");
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
    log.respond(invocation, client.exec_reply(1)?);
    Ok(())
}

fn register_key(key: u32) -> Vec<u8> {
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
        Command::SetIfAbsent(value) => ("SET", vec![value.clone(), b"NX".to_vec()]),
        Command::SetIfPresent(value) => ("SET", vec![value.clone(), b"XX".to_vec()]),
        Command::Add(number) => ("INCRBY", vec![number.to_string().into_bytes()]),
        Command::Append(value) => ("APPEND", vec![value.clone()]),
        Command::Delete => ("DEL", vec![]),
        Command::CompareAndSet { .. } => unreachable!("not one command; see compare_and_set"),
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
fn reply_of(parsed: &Parsed) -> Reply {
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
    stream: TcpStream,
    outgoing: Vec<u8>,
    incoming: Vec<u8>,
    consumed: usize,
}

impl Client {
    fn connect(address: SocketAddr, number: u32, random: Random) -> io::Result<Client> {
        let stream = open(address)?;
        Ok(Client { number, random, address, stream, outgoing: vec![], incoming: vec![], consumed: 0 })
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

    /// The reply to what `put_transaction` has put, nothing being watched.
    fn transaction_reply(&mut self, commands: usize) -> io::Result<Vec<Reply>> {
        if commands == 1 { Ok(vec![reply_of(&self.reply()?)]) } else { self.exec_reply(commands) }
    }

    /// The replies to MULTI, so many commands, and EXEC.
    fn exec_reply(&mut self, commands: usize) -> io::Result<Vec<Reply>> {
        expect_ok(&self.reply()?);
        for _ in 0..commands {
            let queued = self.reply()?;
            assert_eq!(queued, Parsed::Line(b'+', b"QUEUED".to_vec()), "{}", queued.show());
        }
        let reply = self.reply()?;
        match reply.items() {
            Some(items) => Ok(items.iter().map(reply_of).collect()),
            None if reply.is_null() => Ok(vec![Reply::Aborted]),
            None => panic!("EXEC answered {}", reply.show()),
        }
    }
}

fn open(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    stream.set_write_timeout(Some(SILENCE_MAX))?;
    Ok(stream)
}
