//! What is sent: random commands over the whole command table, valid and not, and scripts of several steps.
//!
//! [`Grammar::script`] gives the next few [`Step`]s. Most are bursts of independent commands; the others are
//! small plays of two connections (WATCH and interference, subscriptions), bytes that are no protocol, and full
//! scans. Keys come from a small pool, so that commands meet; values and numbers from pools full of edges.
//!
//! Two rules keep the comparison free of clocks. A relative expiry is far away and drawn from a wide range, so that
//! nothing expires during a run and no two of them are ever compared closely; an absolute one lies in the past or
//! after 2096. And no number between 10^5 and 2^29 is ever an argument, because `SETRANGE key 400000000 x` is
//! valid and slow.

use super::command::{Command, Step};
use crate::random::Random;

/// Lasting connections of a run.
pub const CONNECTIONS: usize = 4;

/// After 2096, in seconds: see [`super::exceptions::ABSOLUTE_FROM_MS`].
const FAR_SECONDS: i64 = 4_102_444_800;

/// Makes the arguments of one command, or several commands that belong together.
type Production = fn(&mut Grammar) -> Vec<Vec<Vec<u8>>>;

macro_rules! words {
    ($($word:expr),* $(,)?) => { vec![$(AsRef::<[u8]>::as_ref(&$word).to_vec()),*] };
}

/// One command of the table, with how often it is drawn.
macro_rules! one {
    ($grammar:ident, $($word:expr),* $(,)?) => { |$grammar| vec![words![$($word),*]] };
}

/// How often, what.
const PRODUCTIONS: &[(usize, Production)] = &[
    // strings
    (40, one!(g, "GET", g.key())),
    (50, |g| vec![g.set()]),
    (8, one!(g, "SETNX", g.key(), g.value())),
    (8, one!(g, "SETEX", g.key(), g.relative_seconds(), g.value())),
    (8, one!(g, "PSETEX", g.key(), g.relative_milliseconds(), g.value())),
    (8, one!(g, "GETSET", g.key(), g.value())),
    (8, one!(g, "GETDEL", g.key())),
    (12, |g| vec![g.getex()]),
    (12, |g| {
        let count = if g.random.chance(3) { 150 } else { 1 + g.random.below(6) };
        let mut words = words!["MGET"];
        words.extend((0..count).map(|_| g.key()));
        vec![words]
    }),
    (12, |g| vec![g.mset("MSET")]),
    (8, |g| vec![g.mset("MSETNX")]),
    (14, one!(g, "APPEND", g.key(), g.value())),
    (8, one!(g, "STRLEN", g.key())),
    (10, one!(g, "GETRANGE", g.key(), g.index(), g.index())),
    (3, one!(g, "SUBSTR", g.key(), g.index(), g.index())),
    (10, one!(g, "SETRANGE", g.key(), g.index(), g.value())),
    (14, one!(g, "INCR", g.key())),
    (8, one!(g, "DECR", g.key())),
    (14, one!(g, "INCRBY", g.key(), g.number())),
    (8, one!(g, "DECRBY", g.key(), g.number())),
    (14, one!(g, "INCRBYFLOAT", g.key(), g.float())),
    (8, |g| vec![g.lcs()]),
    // keys
    (12, |g| vec![g.many_keys("DEL")]),
    (5, |g| vec![g.many_keys("UNLINK")]),
    (8, |g| vec![g.many_keys("EXISTS")]),
    (4, |g| vec![g.many_keys("TOUCH")]),
    (6, one!(g, "TYPE", g.key())),
    (8, one!(g, "RENAME", g.key(), g.key())),
    (6, one!(g, "RENAMENX", g.key(), g.key())),
    (8, |g| vec![g.copy()]),
    (2, one!(g, "MOVE", g.key(), g.database())),
    (14, |g| vec![g.expire()]),
    (6, one!(g, "PERSIST", g.key())),
    (6, one!(g, "TTL", g.key())),
    (6, one!(g, "PTTL", g.key())),
    (6, one!(g, "EXPIRETIME", g.key())),
    (8, one!(g, "PEXPIRETIME", g.key())),
    (8, one!(g, "OBJECT", g.case("ENCODING"), g.key())),
    (4, one!(g, "OBJECT", g.case("REFCOUNT"), g.key())),
    (2, one!(g, "OBJECT", g.case("IDLETIME"), g.key())),
    (2, one!(g, "OBJECT", g.case("FREQ"), g.key())),
    (1, one!(g, "OBJECT", g.junk(), g.key())),
    (4, one!(g, "KEYS", g.pattern())),
    (4, |g| vec![g.scan()]),
    (1, one!(_g, "RANDOMKEY")),
    // Only a look at every key makes both sides forget those that have expired.
    (4, |g| vec![g.all_keys("EXISTS"), words!["DBSIZE"]]),
    (1, |g| {
        if g.random.chance(70) {
            return vec![words!["DBSIZE", "junk"]]; // a keyspace that is emptied all the time shows little
        }
        let mut words = words![*g.random.pick(&["FLUSHDB", "FLUSHALL"])];
        for _ in 0..*g.random.pick(&[0, 0, 1, 1, 2]) {
            words.push(g.one_of(&["ASYNC", "SYNC", "sync", "NOW"]));
        }
        vec![words]
    }),
    (1, one!(g, "SWAPDB", g.database(), g.database())),
    // Replies of a megabyte and more: the server has to pause until they are read.
    (1, |g| {
        if g.random.chance(80) {
            return vec![words!["SETRANGE", "key:1", "20000", ""]];
        }
        let length = 100_000 + g.random.below(100_000);
        let (value, key) = (g.random.bytes(length), g.key());
        let mut read = words!["MGET"];
        read.extend(std::iter::repeat_n(key.clone(), 15));
        vec![words!["SET", key, value], read, words!["GET", key], words!["DEL", key]]
    }),
    // connection
    (6, one!(g, "PING", g.value())),
    (4, one!(_g, "PING")),
    (6, one!(g, "ECHO", g.value())),
    (3, one!(g, "SELECT", g.database())),
    (3, |g| vec![g.hello()]),
    (2, |g| vec![g.auth()]),
    (1, one!(_g, "RESET")),
    (14, |g| g.client()),
    // transactions, out of place
    (2, one!(_g, "EXEC")),
    (2, one!(_g, "DISCARD")),
    (2, one!(_g, "UNWATCH")),
    (4, |g| vec![g.many_keys("WATCH")]),
    // messages nobody, or everybody, hears
    (6, |g| vec![g.publish()]),
    (4, |g| vec![g.pubsub()]),
    // server
    (14, |g| g.server()),
    (6, |g| vec![g.config()]),
    (6, |g| vec![g.command()]),
    (4, one!(g, g.unknown_name(), g.value())),
    (2, |g| {
        let mut words = words![g.unknown_name()];
        for _ in 0..g.random.below(12) {
            let length = g.random.below(60);
            words.push(g.random.bytes(length));
        }
        vec![words]
    }),
];

/// Words whose random change could do harm or make the outcome depend on time: they are sent as written. (`DBSIZE junk`
/// that lost its junk counted, once in ten runs, a key that had expired and that nobody had looked at.)
const NEVER_MUTATED: &[&str] =
    &["CLIENT", "CONFIG", "DBSIZE", "DEBUG", "SHUTDOWN", "SLOWLOG", "RESET", "WAIT"];
/// Commands with an expiry time among their arguments. Swapping two could make a value a time; and a key that nobody
/// knows must not expire, because DBSIZE counts it until somebody looks at it.
const WITH_EXPIRY: &[&str] =
    &["SET", "SETEX", "PSETEX", "GETEX", "EXPIRE", "PEXPIRE", "EXPIREAT", "PEXPIREAT", "SETRANGE"];

/// Known to Millrace and not to Redis 7.0, which only the reply to the command itself may show.
fn is_of_redis_7_2(command: &Command) -> bool {
    command.name() == "CLIENT" && matches!(&*command.upper(1), "SETINFO" | "NO-TOUCH")
}

/// The generator.
pub struct Grammar {
    random: Random,
    keys: Vec<Vec<u8>>,
    resp: u8,
}

impl Grammar {
    /// A grammar for connections that speak RESP2 or RESP3.
    pub fn new(seed: u64, resp: u8) -> Grammar {
        let mut keys: Vec<Vec<u8>> = (0..14).map(|n| format!("key:{n}").into_bytes()).collect();
        keys.extend([
            b"".to_vec(),
            b"\r\n".to_vec(),
            b"a\0b".to_vec(),
            b"\xff\xfe\x80".to_vec(),
            "schlüssel".as_bytes().to_vec(),
            b"with space".to_vec(),
            b"[a-z]*?\\".to_vec(),
            b"{tag}1".to_vec(),
            vec![b'k'; 300],
            vec![b'q'; 5000],
            b"12".to_vec(),
        ]);
        Grammar { random: Random::new(seed), keys, resp }
    }

    /// Every key a command may name.
    pub fn keys(&self) -> &[Vec<u8>] {
        &self.keys
    }

    /// For decisions of the runner that belong to the same seed.
    pub fn random(&mut self) -> &mut Random {
        &mut self.random
    }

    /// The next steps.
    pub fn script(&mut self) -> Vec<Step> {
        match self.random.below(100) {
            0..70 => {
                let connection = self.random.below(CONNECTIONS);
                let count = match self.random.below(20) {
                    0..8 => 1,
                    8..15 => 2 + self.random.below(6),
                    15..19 => 8 + self.random.below(24),
                    _ if self.random.chance(5) => 2000,
                    _ => 100 + self.random.below(60),
                };
                vec![self.burst(connection, count)]
            }
            70..86 => self.transaction(),
            86..92 => self.subscription(),
            92..97 => vec![self.throwaway()],
            97 => match self.random.below(4) {
                0 => self.password(),
                1 => self.victim(),
                2 => self.pause(),
                _ => self.out_of_memory(),
            },
            _ => {
                let mut options = Vec::new();
                for (name, value) in [
                    ("COUNT", self.one_of(&["1", "3", "10", "1000"])),
                    ("MATCH", self.pattern()),
                    ("TYPE", self.one_of(&["string", "STRING", "list", "nosuch"])),
                ] {
                    if self.random.chance(40) {
                        options.extend([name.as_bytes().to_vec(), value]);
                    }
                }
                vec![Step::FullScan { options }]
            }
        }
    }

    fn burst(&mut self, connection: usize, count: usize) -> Step {
        let mut commands = self.commands(count);
        self.keep_protocol(&mut commands);
        Step::Burst { connection, commands }
    }

    /// Connections stay in the protocol that the run is about.
    fn keep_protocol(&self, commands: &mut Vec<Command>) {
        if commands.iter().any(|command| matches!(&*command.name(), "HELLO" | "RESET")) {
            commands.push(Command::new(words!["HELLO", self.resp.to_string()]));
        }
    }

    fn commands(&mut self, count: usize) -> Vec<Command> {
        let total: usize = PRODUCTIONS.iter().map(|(weight, _)| weight).sum();
        let mut commands = Vec::new();
        while commands.len() < count {
            let mut ticket = self.random.below(total);
            let production = PRODUCTIONS
                .iter()
                .find(|(weight, _)| {
                    let found = ticket < *weight;
                    ticket = ticket.wrapping_sub(*weight);
                    found
                })
                .expect("the ticket is below the sum of all weights")
                .1;
            let group = production(self);
            let may_be_wrong = group.len() == 1;
            for args in group {
                let mut command = Command::new(args);
                if may_be_wrong && self.random.chance(5) {
                    self.mutate(&mut command);
                }
                if self.random.chance(15) {
                    let name = String::from_utf8_lossy(&command.args[0]).into_owned();
                    if name.is_ascii() {
                        command.args[0] = self.case(&name);
                    }
                }
                let size: usize = command.args.iter().map(Vec::len).sum();
                command.inline = size < 1000 && self.random.chance(4);
                commands.push(command);
            }
        }
        commands
    }

    /// Makes a command probably wrong.
    fn mutate(&mut self, command: &mut Command) {
        if NEVER_MUTATED.contains(&&*command.name()) {
            return;
        }
        let at = self.random.below(command.args.len());
        let has_expiry = WITH_EXPIRY.contains(&&*command.name());
        match self.random.below(6) {
            0 if command.args.len() > 2 => {
                command.args.remove(at.max(1 + usize::from(has_expiry)));
            }
            1 => {
                let junk = self.junk();
                command.args.insert(at.max(1), junk);
            }
            2 if at > usize::from(has_expiry) => {
                let junk = self.junk();
                let is_time = std::str::from_utf8(&junk).is_ok_and(|text| text.parse::<u64>().is_ok());
                command.args[at] = if has_expiry && is_time { b"junk".to_vec() } else { junk };
            }
            3 => {
                let copy = command.args[at.max(1).min(command.args.len() - 1)].clone();
                command.args.push(copy);
            }
            4 if !has_expiry && at > 1 => command.args.swap(1, at),
            _ => command.args.truncate(1),
        }
    }

    // -------------------------------------------------------------------------------------- scripts

    /// WATCH, interference, MULTI, more interference, EXEC.
    fn transaction(&mut self) -> Vec<Step> {
        let a = self.random.below(CONNECTIONS);
        let b = (a + 1 + self.random.below(CONNECTIONS - 1)) % CONNECTIONS;
        let mut steps = Vec::new();
        if self.random.chance(60) {
            let mut commands = vec![Command::new(self.many_keys("WATCH"))];
            let count = self.random.below(3);
            commands.extend(self.commands(count));
            self.keep_protocol(&mut commands);
            steps.push(Step::Burst { connection: a, commands });
            if self.random.chance(60) {
                let count = 1 + self.random.below(4);
                steps.push(self.burst(b, count));
            }
        }
        let mut queue = vec![Command::new(words!["MULTI"])];
        queue.extend(self.queued());
        if self.random.chance(40) {
            steps.push(Step::Open { connection: a, commands: std::mem::take(&mut queue) });
            let count = 1 + self.random.below(3);
            steps.push(self.burst(b, count));
            if self.random.chance(30) {
                steps.push(Step::Open { connection: a, commands: self.queued() });
            }
        }
        queue.extend(self.queued());
        queue.push(Command::new(match self.random.below(8) {
            0 => words!["DISCARD"],
            1 => words!["EXEC", self.junk()],
            _ => words!["EXEC"],
        }));
        // Leaves the transaction whatever happened; mostly an error.
        queue.push(Command::new(words!["DISCARD"]));
        let count = self.random.below(2);
        queue.extend(self.commands(count));
        self.keep_protocol(&mut queue);
        steps.push(Step::Burst { connection: a, commands: queue });
        steps
    }

    fn queued(&mut self) -> Vec<Command> {
        let count = self.random.below(6);
        let mut commands = self.commands(count);
        // Where a transaction ends is the script's decision.
        commands.retain(|command| {
            let acts_at_once = matches!(&*command.name(), "EXEC" | "DISCARD" | "RESET" | "HELLO" | "QUIT");
            // Redis counts the elements of EXEC's reply before one of them says not to answer.
            let silences = command.starts_with(&["CLIENT", "REPLY"]) && command.upper(2) != "ON";
            !acts_at_once && !silences && !is_of_redis_7_2(command)
        });
        if self.random.chance(6) {
            commands.push(Command::new(words!["MULTI"]));
        }
        commands
    }

    /// Subscribes, publishes from elsewhere, misbehaves, leaves.
    fn subscription(&mut self) -> Vec<Step> {
        let a = self.random.below(CONNECTIONS);
        let b = (a + 1 + self.random.below(CONNECTIONS - 1)) % CONNECTIONS;
        let mut steps = Vec::new();
        for round in 0..1 + self.random.below(3) {
            let mut commands = Vec::new();
            for _ in 0..1 + self.random.below(3) {
                let leaving = round > 0 && self.random.chance(40);
                commands.push(Command::new(self.subscribe(leaving)));
            }
            for _ in 0..self.random.below(4) {
                // RESP2 refuses most of these to a subscriber; RESP3 answers them between messages.
                let words = match self.random.below(6) {
                    0 => words!["GET", self.key()],
                    1 => words!["PING"],
                    2 => words!["PING", self.value()],
                    3 => self.publish(),
                    4 => words!["NOSUCH"],
                    _ => words!["INCR", self.key()],
                };
                commands.push(Command::new(words));
            }
            steps.push(Step::Burst { connection: a, commands });
            let mut commands = Vec::new();
            for _ in 0..1 + self.random.below(5) {
                commands.push(Command::new(if self.random.chance(75) {
                    self.publish()
                } else {
                    self.pubsub()
                }));
            }
            steps.push(Step::Burst { connection: b, commands });
        }
        if self.random.chance(15) {
            let mut commands = vec![Command::new(words!["RESET"])];
            self.keep_protocol(&mut commands);
            steps.push(Step::Burst { connection: a, commands });
        }
        for name in ["UNSUBSCRIBE", "PUNSUBSCRIBE", "SUNSUBSCRIBE"] {
            steps.push(Step::Burst { connection: a, commands: vec![Command::new(words![name])] });
        }
        steps
    }

    /// A password is set, strangers knock, and it is taken back. Who was in stays in.
    fn password(&mut self) -> Vec<Step> {
        const KNOCKS: &[&[u8]] = &[
            b"PING\r\nAUTH wrong\r\nPING\r\nAUTH secret\r\nPING\r\n",
            b"NOSUCH\r\nGET\r\nHELLO\r\nHELLO 3\r\nHELLO 3 AUTH default wrong\r\nGET nosuch\r\n",
            b"HELLO 3 AUTH default secret SETNAME me\r\nGET nosuch\r\nCLIENT GETNAME\r\n",
            b"AUTH nobody secret\r\nAUTH default secret\r\nGET nosuch\r\nRESET\r\nGET nosuch\r\n",
            b"AUTH\r\nAUTH a b c\r\nMULTI\r\nEXEC\r\nSUBSCRIBE a\r\nCOMMAND COUNT\r\n",
            b"QUIT\r\nPING\r\n",
            b"*11\r\n$4\r\nPING\r\n",
            b"*1\r\n$16385\r\n",
            b"*2\r\n$4\r\nAUTH\r\n$6\r\nsecret\r\n*1\r\n$4\r\nPING\r\n",
        ];
        let connection = self.random.below(CONNECTIONS);
        let set = |password: &str| {
            let commands = vec![
                Command::new(words!["CONFIG", "SET", "requirepass", password]),
                Command::new(words!["PING"]),
            ];
            Step::Burst { connection, commands }
        };
        let mut steps = vec![set("secret")];
        for _ in 0..1 + self.random.below(3) {
            let knock: &[u8] = self.random.pick::<&[u8]>(KNOCKS);
            steps.push(Step::Throwaway { bytes: knock.to_vec() });
        }
        steps.push(set(""));
        steps
    }

    /// A subscriber is closed by somebody else.
    fn victim(&mut self) -> Vec<Step> {
        let opening = vec![
            Command::new(words!["HELLO", self.resp.to_string()]),
            Command::new(words!["SUBSCRIBE", self.channel()]),
            Command::new(words!["PSUBSCRIBE", self.channel_pattern()]),
        ];
        let commands =
            vec![Command::new(words!["CLIENT", "KILL", "TYPE", "pubsub"]), Command::new(self.publish())];
        vec![Step::Victim { opening, connection: self.random.below(CONNECTIONS), commands }]
    }

    /// Commands wait for the end of a short pause, in order.
    fn pause(&mut self) -> Vec<Step> {
        let mut commands =
            vec![Command::new(words!["CLIENT", "PAUSE", "15", self.one_of(&["ALL", "WRITE"])])];
        let count = 1 + self.random.below(4);
        commands.extend(self.data_commands(count));
        // A write, so that the pause is over when the burst is answered: Redis forgets the commands of a client that
        // closes while it waits.
        commands.push(Command::new(words!["INCR", "key:0"]));
        vec![Step::Burst { connection: self.random.below(CONNECTIONS), commands }]
    }

    /// Nothing that may grow memory is done, neither alone nor in a transaction.
    fn out_of_memory(&mut self) -> Vec<Step> {
        let connection = self.random.below(CONNECTIONS);
        let mut commands = vec![Command::new(words!["CONFIG", "SET", "maxmemory", "1"])];
        let count = 1 + self.random.below(4);
        commands.extend(self.data_commands(count));
        commands.push(Command::new(words!["MULTI"]));
        let count = 1 + self.random.below(3);
        commands.extend(self.data_commands(count));
        commands.push(Command::new(words!["EXEC"]));
        commands.push(Command::new(words!["CONFIG", "SET", "maxmemory", "0"]));
        if self.random.chance(50) {
            // The limit is there when EXEC comes, but was not when the commands were queued.
            commands.push(Command::new(words!["MULTI"]));
            commands.push(Command::new(words!["CONFIG", "SET", "maxmemory", "1"]));
            commands.extend(self.data_commands(2));
            commands.push(Command::new(words!["CONFIG", "SET", "maxmemory", "0"]));
            commands.push(Command::new(words!["EXEC"]));
        }
        vec![Step::Burst { connection, commands }]
    }

    /// Commands about keys and values only.
    fn data_commands(&mut self, count: usize) -> Vec<Command> {
        const NAMES: &[&str] = &[
            "GET",
            "SET",
            "SETNX",
            "SETEX",
            "GETSET",
            "GETDEL",
            "GETEX",
            "MGET",
            "MSET",
            "MSETNX",
            "APPEND",
            "STRLEN",
            "GETRANGE",
            "SETRANGE",
            "INCR",
            "DECRBY",
            "INCRBYFLOAT",
            "DEL",
            "EXISTS",
            "RENAME",
            "COPY",
            "EXPIRE",
            "PERSIST",
            "PUBLISH",
            "ECHO",
        ];
        let mut commands = Vec::new();
        while commands.len() < count {
            commands.extend(self.commands(1).into_iter().filter(|command| NAMES.contains(&&*command.name())));
        }
        commands
    }

    fn subscribe(&mut self, leaving: bool) -> Vec<Vec<u8>> {
        let kind = self.random.below(3);
        let mut words = words![match (kind, leaving) {
            (0, false) => "SUBSCRIBE",
            (0, true) => "UNSUBSCRIBE",
            (1, false) => "PSUBSCRIBE",
            (1, true) => "PUNSUBSCRIBE",
            (_, false) => "SSUBSCRIBE",
            (_, true) => "SUNSUBSCRIBE",
        }];
        for _ in 0..1 + self.random.below(3) {
            words.push(if kind == 1 { self.channel_pattern() } else { self.channel() });
        }
        words
    }

    /// Bytes that break the protocol, or nearly.
    fn throwaway(&mut self) -> Step {
        const NASTY: &[&[u8]] = &[
            b"*-1\r\n",
            b"*0\r\nPING\r\n",
            b"*1048577\r\n",
            b"*2147483648\r\n",
            b"*99999999999999999999\r\n",
            b"*abc\r\n",
            b"*\r\n",
            b"* 1\r\n",
            b"*+1\r\n$4\r\nPING\r\n",
            b"*01\r\n$4\r\nPING\r\n",
            b"*1\r\n#3\r\n",
            b"*1\r\nPING\r\n",
            b"*1\r\n\r\n",
            b"*1\r\n$-1\r\n",
            b"*1\r\n$536870913\r\n",
            b"*1\r\n$99999999999999999999\r\n",
            b"*1\r\n$abc\r\n",
            b"*1\r\n$\r\n",
            b"*1\r\n$4\r\nPINGxx*1\r\n$4\r\nPING\r\n",
            b"*1\r\n$4\r\nPING",
            b"*1\r\n$10\r\nPING\r\n",
            b"*1\r\n$0\r\n\r\n",
            b"*2\r\n$4\r\nECHO\r\n$0\r\n\r\n",
            b"*1\n$4\nPING\n",
            b"\r\n\r\nPING\r\n",
            b"\n\nPING\n",
            b"PING\n",
            b"PING\r",
            b"   PING   \r\n",
            b"\tPING\r\n",
            b" \r\nPING\r\n",
            b"PING \"unbalanced\r\nPING\r\n",
            b"PING 'unbalanced\r\n",
            b"PING \"a\"b\r\n",
            b"PING 'it\\'s'\r\n",
            b"PING \"\\x41\\n\\q\"\r\n",
            b"PING \"\\xzz\"\r\n",
            b"PING a\"b c\"\r\n",
            b"PING \0hidden\r\n",
            b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"POST / HTTP/1.1\r\n\r\nSET a b\r\n",
            b"post x\r\nPING\r\n",
            b"Host: localhost\r\nPING\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03random",
            b"QUIT\r\nPING\r\n",
            b"QUIT now\r\nPING\r\n",
            b"MULTI\r\nQUIT\r\nPING\r\n",
            b"MULTI\r\nSET throwaway 1\r\n",
            b"MULTI\r\nSET throwaway\r\nEXEC\r\n",
            b"SUBSCRIBE a\r\nQUIT\r\n",
            b"SUBSCRIBE a\r\nPING\r\nGET a\r\nRESET\r\nGET a\r\n",
            b"HELLO 3\r\nPING\r\nGET nosuch\r\nHELLO 2\r\nGET nosuch\r\n",
            b"CLIENT REPLY OFF\r\nPING\r\nCLIENT REPLY ON\r\nPING\r\n",
            b"CLIENT REPLY SKIP\r\nPING\r\nPING\r\n",
            b"CLIENT REPLY SKIP\r\nNOSUCH\r\nPING\r\n",
            b"CLIENT REPLY OFF\r\n*1\r\n$abc\r\n",
        ];
        let mut bytes = Vec::new();
        match self.random.below(10) {
            0..4 => {
                for _ in 0..self.random.below(3) {
                    bytes.extend_from_slice(b"*2\r\n$4\r\nECHO\r\n$5\r\nfirst\r\n");
                }
                let nasty: &[u8] = self.random.pick::<&[u8]>(NASTY);
                bytes.extend_from_slice(nasty);
                if self.random.chance(30) {
                    let nasty: &[u8] = self.random.pick::<&[u8]>(NASTY);
                    bytes.extend_from_slice(nasty);
                }
            }
            4..8 => {
                // Valid commands without expiry times, with some bytes changed, lost or doubled.
                for _ in 0..1 + self.random.below(4) {
                    let words = match self.random.below(8) {
                        0 => words!["GET", self.key()],
                        1 => words!["SET", self.key(), self.short()],
                        2 => words!["MGET", self.key(), self.key(), self.key()],
                        3 => words!["MSET", self.key(), self.short(), self.key(), self.short()],
                        4 => words!["APPEND", self.key(), self.short()],
                        5 => words!["ECHO", self.short()],
                        6 => words!["DEL", self.key(), self.key()],
                        _ => words!["PING"],
                    };
                    let command = Command { args: words, inline: self.random.chance(30) };
                    command.encode(&mut bytes);
                }
                for _ in 0..1 + self.random.below(2) {
                    let at = self.random.below(bytes.len());
                    match self.random.below(3) {
                        0 => bytes[at] = *self.random.pick(b"\r\n*$-:0129aZ \"'\0\xff"),
                        1 => {
                            bytes.remove(at);
                        }
                        _ => {
                            let byte = bytes[at];
                            bytes.insert(at, byte);
                        }
                    }
                    if bytes.is_empty() {
                        break;
                    }
                }
            }
            8 => {
                let length = 1 + self.random.below(200);
                bytes = self.random.bytes(length);
            }
            _ => {
                // Far above the bound of a line, so that it does not matter in how many pieces it is read.
                let kind = self.random.below(3);
                bytes.extend_from_slice([&b""[..], b"*", b"*1\r\n$"][kind]);
                bytes.extend(std::iter::repeat_n(b'1', 300_000));
            }
        }
        Step::Throwaway { bytes }
    }

    // -------------------------------------------------------------------------------- single commands

    fn set(&mut self) -> Vec<Vec<u8>> {
        let mut words = words!["SET", self.key(), self.value()];
        let options = *self.random.pick(&[0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 4]);
        for _ in 0..options {
            match self.random.below(10) {
                0 => words.push(self.case("NX")),
                1 => words.push(self.case("XX")),
                2 => words.push(self.case("GET")),
                3 => words.push(self.case("KEEPTTL")),
                _ => self.push_time(&mut words),
            }
        }
        if self.random.chance(3) {
            words.push(self.one_of(&["NX\0junk", "PERSIST", "EX", "PXAT", "IFEQ", ""]));
        }
        words
    }

    fn getex(&mut self) -> Vec<Vec<u8>> {
        let mut words = words!["GETEX", self.key()];
        for _ in 0..*self.random.pick(&[0, 1, 1, 1, 2]) {
            match self.random.below(4) {
                0 => words.push(self.case("PERSIST")),
                1 if self.random.chance(10) => {
                    words.push(self.one_of(&["KEEPTTL", "NX", "EX", "GET", "persist\0"]))
                }
                _ => self.push_time(&mut words),
            }
        }
        words
    }

    fn push_time(&mut self, words: &mut Vec<Vec<u8>>) {
        let (name, value) = match self.random.below(4) {
            0 => ("EX", self.relative_seconds()),
            1 => ("PX", self.relative_milliseconds()),
            2 => ("EXAT", self.absolute_seconds()),
            _ => ("PXAT", self.absolute_milliseconds()),
        };
        let name = self.case(name);
        words.extend([name, value]);
    }

    fn expire(&mut self) -> Vec<Vec<u8>> {
        let (name, value) = match self.random.below(4) {
            0 => ("EXPIRE", self.relative_seconds()),
            1 => ("PEXPIRE", self.relative_milliseconds()),
            2 => ("EXPIREAT", self.absolute_seconds()),
            _ => ("PEXPIREAT", self.absolute_milliseconds()),
        };
        let mut words = words![name, self.key(), value];
        for _ in 0..*self.random.pick(&[0, 0, 1, 1, 1, 2, 3]) {
            let option = *self.random.pick(&["NX", "XX", "GT", "LT"]);
            words.push(self.case(option));
        }
        if self.random.chance(3) {
            words.push(self.one_of(&["ZZ", "", "a\r\nb", "\r\nx\r\n", "nx\0y", "\0"]));
        }
        words
    }

    fn mset(&mut self, name: &str) -> Vec<Vec<u8>> {
        let mut words = words![name];
        for _ in 0..if self.random.chance(3) { 60 } else { 1 + self.random.below(4) } {
            words.extend([self.key(), self.value()]);
        }
        if self.random.chance(10) {
            words.pop();
        }
        words
    }

    fn lcs(&mut self) -> Vec<Vec<u8>> {
        let mut words = words!["LCS", self.key(), self.key()];
        for _ in 0..*self.random.pick(&[0, 0, 1, 2, 3]) {
            match self.random.below(4) {
                0 => words.push(self.case("LEN")),
                1 => words.push(self.case("IDX")),
                2 => words.push(self.case("WITHMATCHLEN")),
                _ => {
                    let (name, number) = (self.case("MINMATCHLEN"), self.number());
                    words.extend([name, number]);
                }
            }
        }
        words
    }

    fn copy(&mut self) -> Vec<Vec<u8>> {
        let mut words = words!["COPY", self.key(), self.key()];
        for _ in 0..*self.random.pick(&[0, 1, 1, 2]) {
            if self.random.chance(60) {
                words.push(self.case("REPLACE"));
            } else {
                let (name, database) = (self.case("DB"), self.database());
                words.extend([name, database]);
            }
        }
        words
    }

    fn scan(&mut self) -> Vec<Vec<u8>> {
        let cursor = self.one_of(&[
            "0",
            "0",
            "0",
            "1",
            "17",
            "+0",
            "-0",
            "-1",
            "",
            "abc",
            "1x",
            " 0",
            "0\0x",
            "18446744073709551615",
            "18446744073709551616",
            "-18446744073709551615",
            "99999999999999999999",
        ]);
        let mut words = words!["SCAN", cursor];
        for _ in 0..*self.random.pick(&[0, 1, 1, 2, 3]) {
            let (name, value) = match self.random.below(3) {
                0 => ("COUNT", self.one_of(&["1", "10", "1000", "0", "-1", "abc", "9223372036854775807"])),
                1 => ("MATCH", self.pattern()),
                _ => ("TYPE", self.one_of(&["string", "String", "hash", "zset", "junk", "string\0"])),
            };
            let name = self.case(name);
            words.extend([name, value]);
        }
        if self.random.chance(5) {
            words.push(self.one_of(&["COUNT", "MATCH", "TYPE", "NOVALUES"]));
        }
        words
    }

    fn many_keys(&mut self, name: &str) -> Vec<Vec<u8>> {
        let mut words = words![name];
        for _ in 0..if self.random.chance(3) { 40 } else { 1 + self.random.below(4) } {
            words.push(self.key());
        }
        words
    }

    fn all_keys(&self, name: &str) -> Vec<Vec<u8>> {
        let mut words = words![name];
        words.extend(self.keys.iter().cloned());
        words
    }

    fn hello(&mut self) -> Vec<Vec<u8>> {
        match self.random.below(12) {
            0 => words!["HELLO"],
            1 => {
                words!["HELLO", self.one_of(&["1", "4", "0", "-3", "abc", "", "9223372036854775808", "3.0"])]
            }
            2 => words!["HELLO", "3", "SETNAME", self.one_of(&["me", "two words", "", "new\nline", "ü"])],
            3 => words!["HELLO", "2", "AUTH", "default", self.short()],
            4 => words!["HELLO", "3", "AUTH", "nobody", self.short()],
            5 => words!["HELLO", "3", self.one_of(&["AUTH", "SETNAME", "NOSUCH"])],
            6 => words!["HELLO", "3", "AUTH", "default", "x", "SETNAME", "me"],
            7..10 => words!["HELLO", "2"],
            _ => words!["HELLO", "3"],
        }
    }

    fn auth(&mut self) -> Vec<Vec<u8>> {
        match self.random.below(3) {
            0 => words!["AUTH", self.short()],
            1 => words!["AUTH", "default", self.short()],
            _ => words!["AUTH", self.short(), self.short()],
        }
    }

    fn client(&mut self) -> Vec<Vec<Vec<u8>>> {
        const FIXED: &[&[&str]] = &[
            &["CLIENT"],
            &["CLIENT", "ID"],
            &["CLIENT", "ID", "x"],
            &["CLIENT", "GETNAME"],
            &["CLIENT", "SETNAME", "worker-1"],
            &["CLIENT", "SETNAME", "two words"],
            &["CLIENT", "SETNAME", "line\n"],
            &["CLIENT", "SETNAME", ""],
            &["CLIENT", "SETNAME"],
            &["CLIENT", "INFO"],
            &["CLIENT", "LIST"],
            &["CLIENT", "LIST", "TYPE", "normal"],
            &["CLIENT", "LIST", "TYPE", "pubsub"],
            &["CLIENT", "LIST", "TYPE", "replica"],
            &["CLIENT", "LIST", "TYPE", "nosuch"],
            &["CLIENT", "LIST", "TYPE"],
            &["CLIENT", "LIST", "ID"],
            &["CLIENT", "LIST", "ID", "abc"],
            &["CLIENT", "LIST", "ID", "99999999"],
            &["CLIENT", "LIST", "NOSUCH", "x"],
            &["CLIENT", "NO-EVICT", "ON"],
            &["CLIENT", "NO-EVICT", "off"],
            &["CLIENT", "NO-EVICT", "maybe"],
            &["CLIENT", "SETINFO", "LIB-NAME", "oracle"],
            &["CLIENT", "GETREDIR"],
            &["CLIENT", "TRACKINGINFO"],
            &["CLIENT", "TRACKING", "off"],
            &["CLIENT", "TRACKING", "maybe"],
            &["CLIENT", "TRACKING", "on", "NOSUCH"],
            &["CLIENT", "CACHING", "yes"],
            &["CLIENT", "CACHING", "maybe"],
            &["CLIENT", "UNBLOCK", "0"],
            &["CLIENT", "UNBLOCK", "99999999", "TIMEOUT"],
            &["CLIENT", "UNBLOCK", "99999999", "ERROR"],
            &["CLIENT", "UNBLOCK", "1", "NOSUCH"],
            &["CLIENT", "UNBLOCK", "abc"],
            &["CLIENT", "KILL", "1.2.3.4:5"],
            &["CLIENT", "KILL", "ID", "99999999"],
            &["CLIENT", "KILL", "ID", "0"],
            &["CLIENT", "KILL", "ID", "abc"],
            &["CLIENT", "KILL", "TYPE", "nosuch"],
            &["CLIENT", "KILL", "TYPE", "master"],
            &["CLIENT", "KILL", "USER", "nobody"],
            &["CLIENT", "KILL", "ADDR", "1.2.3.4:5", "LADDR", "6.7.8.9:10"],
            &["CLIENT", "KILL", "ID", "99999999", "SKIPME", "maybe"],
            &["CLIENT", "KILL", "ID", "99999999", "SKIPME", "no"],
            &["CLIENT", "KILL", "NOSUCH", "x"],
            &["CLIENT", "KILL", "ID"],
            &["CLIENT", "PAUSE", "abc"],
            &["CLIENT", "PAUSE", "-1"],
            &["CLIENT", "PAUSE", "0"],
            &["CLIENT", "PAUSE", "0", "WRITE"],
            &["CLIENT", "PAUSE", "0", "NOSUCH"],
            &["CLIENT", "UNPAUSE"],
            &["CLIENT", "REPLY", "ON"],
            &["CLIENT", "REPLY", "maybe"],
            &["CLIENT", "HELP"],
            &["CLIENT", "NOSUCH"],
            &["CLIENT", "NOSUCH\r\n", "x"],
            &["CLIENT", "NO-TOUCH", "on"],
        ];
        let words = *self.random.pick(FIXED);
        vec![words.iter().map(|word| word.as_bytes().to_vec()).collect()]
    }

    fn server(&mut self) -> Vec<Vec<Vec<u8>>> {
        const FIXED: &[&[&str]] = &[
            &["TIME"],
            &["INFO"],
            &["INFO", "server"],
            &["INFO", "keyspace", "clients"],
            &["INFO", "nosuch"],
            &["INFO", "everything"],
            &["MEMORY"],
            &["MEMORY", "USAGE", "nosuch"],
            &["MEMORY", "USAGE", "nosuch", "SAMPLES", "5"],
            &["MEMORY", "USAGE", "nosuch", "SAMPLES", "-1"],
            &["MEMORY", "USAGE", "nosuch", "SAMPLES", "abc"],
            &["MEMORY", "USAGE", "nosuch", "NOSUCH"],
            &["MEMORY", "DOCTOR"],
            &["MEMORY", "PURGE"],
            &["MEMORY", "HELP"],
            &["MEMORY", "NOSUCH"],
            &["SLOWLOG", "LEN"],
            &["SLOWLOG", "GET"],
            &["SLOWLOG", "GET", "0"],
            &["SLOWLOG", "GET", "-1"],
            &["SLOWLOG", "GET", "-2"],
            &["SLOWLOG", "GET", "abc"],
            &["SLOWLOG", "RESET"],
            &["SLOWLOG", "HELP"],
            &["SLOWLOG", "NOSUCH"],
            &["LATENCY", "LATEST"],
            &["LATENCY", "HISTORY", "command"],
            &["LATENCY", "RESET"],
            &["LATENCY", "DOCTOR"],
            &["LATENCY", "GRAPH", "nosuch"],
            &["LATENCY", "HISTOGRAM", "nosuch"],
            &["LATENCY", "HELP"],
            &["LATENCY", "NOSUCH"],
            &["DEBUG", "SLEEP", "0"],
            &["DEBUG", "OBJECT", "nosuch"],
            &["LASTSAVE"],
            &["ROLE"],
            &["WAIT", "0", "0"],
            &["WAIT", "abc", "0"],
            &["WAIT", "0", "-1"],
            &["WAIT", "0", "abc"],
            &["ACL", "WHOAMI"],
            &["ACL", "USERS"],
            &["ACL", "CAT", "nosuch"],
            &["ACL", "GETUSER", "nobody"],
            &["ACL", "NOSUCH"],
            &["SHUTDOWN", "NOSUCH"],
            &["SHUTDOWN", "SAVE", "NOSAVE"],
            &["SHUTDOWN", "ABORT"],
            &["OBJECT", "HELP"],
            &["OBJECT", "NOSUCH"],
            &["OBJECT"],
            &["PUBSUB", "HELP"],
            &["PUBSUB", "NOSUCH"],
            &["ACL"],
        ];
        match self.random.below(30) {
            // A new key's counter, read before anything else touches it.
            0 => vec![
                words!["CONFIG", "SET", "maxmemory-policy", self.one_of(&["allkeys-lfu", "volatile-lfu"])],
                words!["DEL", "key:0"],
                words!["SET", "key:0", "x"],
                words!["OBJECT", "FREQ", "key:0"],
                words!["OBJECT", "IDLETIME", "key:0"],
                words!["OBJECT", "FREQ", "nosuch"],
                words!["CONFIG", "SET", "maxmemory-policy", "noeviction"],
            ],
            1 => {
                // This and MEMORY USAGE also see what has expired and nobody has looked at since.
                let key = self.key();
                vec![words!["EXISTS", key], words!["DEBUG", "OBJECT", key]]
            }
            2 => {
                let key = self.key();
                vec![words!["EXISTS", key], words!["MEMORY", "USAGE", key]]
            }
            3 => vec![
                words!["CLIENT", "REPLY", "OFF"],
                words!["INCR", self.key()],
                words!["NOSUCH"],
                words!["CLIENT", "REPLY", "ON"],
            ],
            4 => {
                vec![words!["CLIENT", "REPLY", "SKIP"], words!["INCR", self.key()], words!["GET", self.key()]]
            }
            _ => {
                let words = *self.random.pick(FIXED);
                vec![words.iter().map(|word| word.as_bytes().to_vec()).collect()]
            }
        }
    }

    fn config(&mut self) -> Vec<Vec<u8>> {
        const FIXED: &[&[&str]] = &[
            &["CONFIG"],
            &["CONFIG", "GET"],
            &["CONFIG", "GET", "nosuch"],
            &["CONFIG", "GET", "databases"],
            &["CONFIG", "GET", "MaxMemory"],
            &["CONFIG", "GET", "maxmemory-policy"],
            &["CONFIG", "GET", "maxmemory-samples"],
            &["CONFIG", "GET", "proto-max-bulk-len"],
            &["CONFIG", "GET", "client-query-buffer-limit"],
            &["CONFIG", "GET", "save"],
            &["CONFIG", "GET", "appendonly"],
            &["CONFIG", "GET", "requirepass"],
            &["CONFIG", "GET", "timeout"],
            &["CONFIG", "GET", "hz"],
            &["CONFIG", "GET", "lfu-log-factor"],
            &["CONFIG", "GET", "lfu-decay-time"],
            &["CONFIG", "GET", "slowlog-max-len"],
            &["CONFIG", "GET", "slowlog-log-slower-than"],
            &["CONFIG", "GET", "latency-monitor-threshold"],
            &["CONFIG", "GET", "save", "save"],
            &["CONFIG", "GET", "*"],
            &["CONFIG", "GET", "max*", "hz"],
            &["CONFIG", "GET", "m[ab]xmemory"],
            &["CONFIG", "SET"],
            &["CONFIG", "SET", "maxmemory"],
            &["CONFIG", "SET", "nosuch", "1"],
            &["CONFIG", "SET", "databases", "2"],
            &["CONFIG", "SET", "hz", "10"],
            &["CONFIG", "SET", "hz", "abc"],
            &["CONFIG", "SET", "timeout", "-1"],
            &["CONFIG", "SET", "timeout", "0"],
            &["CONFIG", "SET", "maxmemory", "abc"],
            &["CONFIG", "SET", "maxmemory", "-5"],
            &["CONFIG", "SET", "maxmemory", "0"],
            &["CONFIG", "SET", "maxmemory-policy", "nosuch"],
            &["CONFIG", "SET", "maxmemory-policy", "noeviction"],
            &["CONFIG", "SET", "slowlog-max-len", "128"],
            &["CONFIG", "SET", "slowlog-max-len", "-1"],
            &["CONFIG", "SET", "lfu-log-factor", "10"],
            &["CONFIG", "SET", "hz", "10", "hz", "10"],
            &["CONFIG", "SET", "hz", "10", "timeout"],
            &["CONFIG", "SET", "hz", "10", "nosuch", "1"],
            &["CONFIG", "SET", "latency-monitor-threshold", "0"],
            &["CONFIG", "RESETSTAT"],
            &["CONFIG", "RESETSTAT", "x"],
            &["CONFIG", "REWRITE"],
            &["CONFIG", "HELP"],
            &["CONFIG", "NOSUCH"],
        ];
        self.random.pick(FIXED).iter().map(|word| word.as_bytes().to_vec()).collect()
    }

    fn command(&mut self) -> Vec<Vec<u8>> {
        const NAMES: &[&str] = &[
            "get",
            "SET",
            "mget",
            "mset",
            "del",
            "rename",
            "expire",
            "incrbyfloat",
            "lcs",
            "copy",
            "ping",
            "multi",
            "publish",
            "nosuch",
            "keys",
            "scan",
            "touch",
            "getex",
            "exec",
            "watch",
            "flushall",
            "object|encoding",
        ];
        match self.random.below(9) {
            0 => words!["COMMAND"],
            1 => words!["COMMAND", "COUNT"],
            2 => words!["COMMAND", "DOCS", self.one_of(NAMES)],
            3 | 4 => {
                let mut words = words!["COMMAND", "INFO"];
                for _ in 0..self.random.below(4) {
                    words.push(self.one_of(NAMES));
                }
                words
            }
            5 => {
                let mut words = words!["COMMAND", self.one_of(&["GETKEYS", "GETKEYSANDFLAGS"])];
                for command in self.commands(1) {
                    words.extend(if is_of_redis_7_2(&command) { words!["PING"] } else { command.args });
                }
                words
            }
            6 => words!["COMMAND", "LIST"],
            7 => words!["COMMAND", "HELP"],
            _ => words!["COMMAND", self.one_of(&["NOSUCH", "GETKEYS", "COUNT"]), self.short()],
        }
    }

    fn publish(&mut self) -> Vec<Vec<u8>> {
        let name = if self.random.chance(75) { "PUBLISH" } else { "SPUBLISH" };
        words![name, self.channel(), self.value()]
    }

    fn pubsub(&mut self) -> Vec<Vec<u8>> {
        match self.random.below(6) {
            0 => words!["PUBSUB", "CHANNELS"],
            1 => words!["PUBSUB", "CHANNELS", self.channel_pattern()],
            2 => words!["PUBSUB", "NUMSUB", self.channel(), self.channel()],
            3 => words!["PUBSUB", "NUMPAT"],
            4 => words!["PUBSUB", "SHARDCHANNELS"],
            _ => words!["PUBSUB", "SHARDNUMSUB", self.channel()],
        }
    }

    // ---------------------------------------------------------------------------------------- arguments

    fn key(&mut self) -> Vec<u8> {
        // Half of the time one of a handful, so that commands meet.
        let bound = if self.random.chance(50) { 5 } else { self.keys.len() };
        let at = self.random.below(bound);
        self.keys[at].clone()
    }

    fn value(&mut self) -> Vec<u8> {
        match self.random.below(20) {
            0..5 => self.number(),
            5..7 => self.float(),
            7..13 => self.short(),
            13 => Vec::new(),
            14 => {
                let length = 40 + self.random.below(10); // around the longest embedded string
                vec![b'v'; length]
            }
            15..17 => {
                let length = self.random.below(64);
                self.random.bytes(length)
            }
            17 => {
                let length = self.random.below(5000);
                self.random.bytes(length)
            }
            18 if self.random.chance(5) => {
                let length = self.random.below(200_000);
                self.random.bytes(length)
            }
            _ => {
                let length = self.random.below(40);
                (0..length).map(|_| *self.random.pick(b"abcab")).collect()
            }
        }
    }

    fn short(&mut self) -> Vec<u8> {
        let length = 1 + self.random.below(12);
        (0..length).map(|_| *self.random.pick(b"abcdefgh01 .-\"'\\")).collect()
    }

    /// An integer argument, or what somebody mistook for one.
    fn number(&mut self) -> Vec<u8> {
        match self.random.below(12) {
            0..4 => self.random.between(-20, 20).to_string().into_bytes(),
            4 => self.random.between(-9_999, 10_010).to_string().into_bytes(),
            5 => self.random.between(2_147_483_640, 2_147_483_660).to_string().into_bytes(),
            6 => {
                let large = i64::MAX - self.random.between(0, 1 << 40);
                (if self.random.chance(50) { large } else { -large }).to_string().into_bytes()
            }
            7 => self.one_of(&[
                "9223372036854775807",
                "-9223372036854775808",
                "9223372036854775808",
                "-9223372036854775809",
                "18446744073709551615",
                "99999999999999999999999999",
                "4611686018427387904",
                "-4611686018427387905",
            ]),
            8 => self.one_of(&[
                "", "-", "+1", "01", "-0", "00", "1 ", " 1", "1.0", "0x10", "abc", "1e3", "٣", "1\0",
            ]),
            _ => self.random.between(-3, 3).to_string().into_bytes(),
        }
    }

    /// A position in a string.
    fn index(&mut self) -> Vec<u8> {
        if self.random.chance(60) {
            let index = self.random.between(-15, 60);
            index.to_string().into_bytes()
        } else if self.random.chance(20) {
            let index = self.random.between(0, 20_000);
            index.to_string().into_bytes()
        } else {
            self.number()
        }
    }

    fn float(&mut self) -> Vec<u8> {
        let digits = |random: &mut Random, count: usize| -> String {
            (0..count).map(|_| char::from(b'0' + random.below(10) as u8)).collect()
        };
        let sign = *self.random.pick(&["", "", "-", "+"]);
        let (whole, part) = (self.random.below(12), self.random.below(20));
        let (whole, part) = (digits(&mut self.random, whole), digits(&mut self.random, part));
        match self.random.below(12) {
            0..5 => format!("{sign}{whole}.{part}").into_bytes(),
            5 => format!("{sign}{whole}{part}").into_bytes(),
            6 => {
                let exponent = self.random.between(-30, 30);
                format!("{sign}{whole}.{part}e{exponent}").into_bytes()
            }
            7 => {
                let exponent = self.random.between(-5000, 5000);
                format!("{sign}{whole}1E{exponent}").into_bytes()
            }
            8 => {
                let (mantissa, exponent) = (self.random.next_u64(), self.random.between(-90, 90));
                format!("{sign}0x{mantissa:x}.8p{exponent}").into_bytes()
            }
            9 => self.one_of(&[
                "inf",
                "-inf",
                "+Infinity",
                "nan",
                "-nan(1)",
                "",
                ".",
                "1e",
                "0x",
                "1.5.2",
                " 1",
                "1 ",
                "1\0",
                "1e400",
                "1e4932",
                "-1e4932",
                "1e-4951",
                "1e5000",
                "1e-5000",
            ]),
            10 => self.one_of(&[
                "0.1",
                "0.2",
                "0.3",
                "-0.1",
                "1.1",
                "3.0e3",
                "1e17",
                "1e-17",
                "5e-18",
                "123456789.125",
            ]),
            _ => self.number(),
        }
    }

    fn relative_seconds(&mut self) -> Vec<u8> {
        if self.random.chance(80) {
            return self.random.between(100_000, 100_000_000).to_string().into_bytes();
        }
        self.bad_time(&["9223372036854775", "9223372036854776", "-9223372036854776"])
    }

    fn relative_milliseconds(&mut self) -> Vec<u8> {
        if self.random.chance(80) {
            return self.random.between(100_000_000, 100_000_000_000).to_string().into_bytes();
        }
        self.bad_time(&["9223372036854775807", "9223372036854775000"])
    }

    fn absolute_seconds(&mut self) -> Vec<u8> {
        if self.random.chance(70) {
            let offset = *self.random.pick(&[0, 1, 1, 86_400, 1_000_000]);
            return (FAR_SECONDS + offset).to_string().into_bytes();
        }
        self.bad_time(&["1", "1000000000", "9223372036854775", "9223372036854776"])
    }

    fn absolute_milliseconds(&mut self) -> Vec<u8> {
        if self.random.chance(70) {
            let offset = *self.random.pick(&[0, 1, 499, 500, 999, 1000, 86_400_000]);
            return (FAR_SECONDS * 1000 + offset).to_string().into_bytes();
        }
        self.bad_time(&["1", "999", "1000000000000", "9223372036854775807", "9223372036854775308"])
    }

    fn bad_time(&mut self, also: &[&str]) -> Vec<u8> {
        if self.random.chance(50) {
            return self.one_of(also);
        }
        self.one_of(&[
            "0",
            "-1",
            "-100000",
            "abc",
            "",
            "1.5",
            "+5",
            "9223372036854775808",
            "-9223372036854775808",
            "-9223372036854775809",
            "NX",
            " 5",
        ])
    }

    fn database(&mut self) -> Vec<u8> {
        self.one_of(&[
            "0",
            "0",
            "0",
            "1",
            "-1",
            "abc",
            "16",
            "2147483648",
            "-2147483649",
            "9223372036854775808",
            "",
        ])
    }

    fn pattern(&mut self) -> Vec<u8> {
        if self.random.chance(50) {
            return self.one_of(&[
                "*",
                "key:*",
                "key:?",
                "key:1?",
                "[a-z]*",
                "[^k]*",
                "k*[0-9]",
                "key:[1-35]",
                "\\[*",
                "*\\\\",
                "",
                "**",
                "*:*:*",
                "[",
                "[a",
                "[]",
                "[^]",
                "k[\\e]y*",
                "key:[9-1]",
                "?",
                "*\u{fc}*",
            ]);
        }
        let length = 1 + self.random.below(7);
        (0..length).map(|_| *self.random.pick(b"**??[]^-\\key:1279kqz\xff\x80\0")).collect()
    }

    fn channel(&mut self) -> Vec<u8> {
        self.one_of(&["news.1", "news.2", "hello", "hallo", "user:q", "plain", "", "zz:\r\n"])
    }

    /// No channel matches two of these: in which order one client hears of several matches is Redis' hash order.
    fn channel_pattern(&mut self) -> Vec<u8> {
        self.one_of(&["news.*", "h?llo", "user:[a-z]", "zz:*", "nosuch*", "pla\\in"])
    }

    fn unknown_name(&mut self) -> Vec<u8> {
        match self.random.below(5) {
            0 => {
                let length = 1 + self.random.below(200);
                let mut name = self.random.bytes(length);
                name[0] = b'!';
                name
            }
            1 => vec![b'z'; 150],
            2 => Vec::new(),
            3 => b"ge\0t".to_vec(),
            _ => {
                let number = self.random.below(1000);
                format!("nosuch{number}").into_bytes()
            }
        }
    }

    /// An argument that fits nowhere; never a number that could be a time soon.
    fn junk(&mut self) -> Vec<u8> {
        match self.random.below(6) {
            0 => Vec::new(),
            1 => {
                let length = self.random.below(20);
                self.random.bytes(length)
            }
            2 => {
                self.one_of(&["NX", "GET", "EX", "KEEPTTL", "REPLACE", "DB", "MATCH", "COUNT", "LEN", "IDX"])
            }
            3 => self.one_of(&["9223372036854775808", "-1", "0", "-9223372036854775808", "1.5"]),
            4 => self.key(),
            _ => b"junk".to_vec(),
        }
    }

    /// A word in random case.
    fn case(&mut self, word: &str) -> Vec<u8> {
        match self.random.below(3) {
            0 => word.to_ascii_lowercase().into_bytes(),
            1 => word.to_ascii_uppercase().into_bytes(),
            _ => {
                word.bytes()
                    .map(|byte| {
                        if byte.is_ascii_alphabetic() && self.random.chance(50) { byte ^ 0x20 } else { byte }
                    })
                    .collect()
            }
        }
    }

    fn one_of(&mut self, words: &[&str]) -> Vec<u8> {
        self.random.pick(words).as_bytes().to_vec()
    }
}
