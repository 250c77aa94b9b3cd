//! The oracle: the same random commands to redis-server and to Millrace, replies compared byte for byte.
//!
//! [`compare`] plays scripts of a [`grammar::Grammar`] on both servers at once: commands on a few lasting
//! connections, in bursts cut at random points into small writes, bytes that break the protocol on connections
//! of their own, and full scans. Equal bytes need no look inside. Where they differ, both streams are parsed,
//! each reply is laid beside its command, and the difference must be covered by an entry of
//! [`exceptions::EXCEPTIONS`], or the run ends with a [`Mismatch`] that shows both replies and how the keys
//! concerned came to be as they are. At the end the two keyspaces are compared key by key.
//!
//! | module | what it owns |
//! |---|---|
//! | [`grammar`] | what is sent |
//! | [`exceptions`] | what may differ, and why; the list may only shrink |
//! | [`target`], [`engine`] | processes and the in-process engine, and connections to them |
//! | [`tracking`] | the same for client tracking: who is told what |
//! | [`command`], [`value`] | a command, a reply |

pub mod command;
pub mod engine;
pub mod exceptions;
pub mod grammar;
pub mod target;
pub mod tracking;
pub mod value;

use command::{Command, Step};
use exceptions::EXCEPTIONS;
use grammar::{CONNECTIONS, Grammar};
use std::collections::VecDeque;
use std::fmt;
use target::{Link, Received, Server};
use value::{Unparsed, Value, show_bytes};

/// What a run did.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Commands sent, without the PINGs between bursts.
    pub commands: usize,
    /// Connections with broken bytes.
    pub throwaways: usize,
    /// Full scans.
    pub scans: usize,
    /// Keys that both sides held at the end.
    pub keys: usize,
    /// How often each exception was needed.
    pub exceptions: Vec<usize>,
}

/// The first difference of a run.
pub struct Mismatch {
    /// What differs.
    pub what: String,
    /// Redis' side.
    pub redis: String,
    /// Millrace's side.
    pub millrace: String,
    /// Recent commands about the same keys, oldest first.
    pub history: Vec<String>,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.what)?;
        if !self.history.is_empty() {
            writeln!(f, "before it:")?;
            for line in &self.history {
                writeln!(f, "    {line}")?;
            }
        }
        writeln!(f, "  redis:    {}", shorten(&self.redis))?;
        write!(f, "  millrace: {}", shorten(&self.millrace))
    }
}

/// A reply can be the whole command table.
fn shorten(text: &str) -> String {
    const CHARS_MAX: usize = 1500;
    match text.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}… ({} characters)", &text[..end], text.chars().count()),
        None => text.to_owned(),
    }
}

/// Commands remembered for the history of a mismatch.
const REMEMBERED: usize = 4000;
/// Lines of history shown.
const HISTORY_LINES: usize = 16;

/// Plays at least `commands` commands. `resp` is 2 or 3.
pub fn compare(
    redis: &mut dyn Server,
    millrace: &mut dyn Server,
    seed: u64,
    resp: u8,
    commands: usize,
) -> Result<Summary, Box<Mismatch>> {
    let mut run = Run::new(redis, millrace, seed, resp)?;
    match run.play_all(commands) {
        Ok(()) => Ok(run.summary),
        Err(mut mismatch) => {
            mismatch.history.push(run.keys_of_one());
            Err(mismatch)
        }
    }
}

/// The same connection to both servers.
struct Pair {
    redis: Box<dyn Link>,
    millrace: Box<dyn Link>,
    /// Commands between MULTI and EXEC, to lay beside the elements of EXEC's reply.
    queue: Option<Vec<Command>>,
}

struct Run<'a> {
    redis: &'a mut dyn Server,
    millrace: &'a mut dyn Server,
    grammar: Grammar,
    resp: u8,
    pairs: Vec<Pair>,
    pings: u64,
    remembered: VecDeque<(usize, Command)>,
    summary: Summary,
}

impl<'a> Run<'a> {
    fn new(
        redis: &'a mut dyn Server,
        millrace: &'a mut dyn Server,
        seed: u64,
        resp: u8,
    ) -> Result<Run<'a>, Box<Mismatch>> {
        let mut pairs = Vec::new();
        for _ in 0..CONNECTIONS {
            pairs.push(Pair { redis: redis.connect(), millrace: millrace.connect(), queue: None });
        }
        // Active expiry would make DBSIZE a matter of time; Millrace has no such switch and needs none, because
        // DBSIZE is only asked after a look at every key.
        let mut bytes = Vec::new();
        Command::new(vec![b"DEBUG".to_vec(), b"SET-ACTIVE-EXPIRE".to_vec(), b"0".to_vec()])
            .encode(&mut bytes);
        pairs[0].redis.send(&bytes);
        let mut answer = Vec::new();
        while answer.len() < 5 && pairs[0].redis.receive(&mut answer) == Received::Bytes {}
        assert_eq!(answer, b"+OK\r\n", "redis-server takes DEBUG SET-ACTIVE-EXPIRE");
        let summary = Summary { exceptions: vec![0; EXCEPTIONS.len()], ..Summary::default() };
        let grammar = Grammar::new(seed, resp);
        let mut run =
            Run { redis, millrace, grammar, resp, pairs, pings: 0, remembered: VecDeque::new(), summary };
        for connection in 0..CONNECTIONS {
            let hello = Command::new(vec![b"HELLO".to_vec(), resp.to_string().into_bytes()]);
            run.play(Step::Burst { connection, commands: vec![hello] })?;
        }
        Ok(run)
    }

    fn play_all(&mut self, commands: usize) -> Result<(), Box<Mismatch>> {
        while self.summary.commands < commands {
            for step in self.grammar.script() {
                self.play(step)?;
            }
        }
        self.compare_keyspaces()
    }

    /// The keys that only one side has now, for a mismatch.
    fn keys_of_one(&mut self) -> String {
        // A SCAN shows no key that has expired, and DBSIZE counts it until somebody looks at it.
        let keys = [&mut self.redis, &mut self.millrace].map(|server| {
            let mut link = server.connect();
            let counted = ask(&mut *link, &["DBSIZE"]).show();
            (counted, scan(&mut *link, &[]).unwrap_or_default())
        });
        let [redis, millrace] = &keys;
        let only = |these: &[Vec<u8>], those: &[Vec<u8>]| {
            let keys = these.iter().filter(|key| !those.contains(key));
            keys.map(|key| show_bytes(key, 60)).collect::<Vec<_>>().join(" ")
        };
        format!(
            "now redis has {} keys, alone \"{}\"; millrace {}, alone \"{}\"",
            redis.0,
            only(&redis.1, &millrace.1),
            millrace.0,
            only(&millrace.1, &redis.1)
        )
    }

    fn play(&mut self, step: Step) -> Result<(), Box<Mismatch>> {
        match step {
            Step::Burst { connection, commands } => self.play_burst(connection, commands, false),
            Step::Open { connection, commands } => self.play_burst(connection, commands, true),
            Step::Throwaway { bytes } => self.play_throwaway(&bytes),
            Step::Victim { opening, connection, commands } => {
                self.play_victim(&opening, connection, commands)
            }
            Step::FullScan { options } => self.play_scan(&options),
        }
    }

    // ---------------------------------------------------------------------------------- bursts

    fn play_burst(
        &mut self,
        connection: usize,
        commands: Vec<Command>,
        open: bool,
    ) -> Result<(), Box<Mismatch>> {
        let mut bytes = Vec::new();
        for command in &commands {
            command.encode(&mut bytes);
        }
        let mark = format!("mark-{}-of-the-oracle", self.pings);
        if !open {
            self.pings += 1;
            Command::new(vec![b"PING".to_vec(), mark.clone().into_bytes()]).encode(&mut bytes);
        }
        self.summary.commands += commands.len();
        for command in &commands {
            if self.remembered.len() == REMEMBERED {
                self.remembered.pop_front();
            }
            self.remembered.push_back((connection, command.clone()));
        }
        self.send_in_pieces(connection, &bytes);

        let end = format!("{mark}\r\n").into_bytes();
        let count = commands.len();
        let is_complete = move |bytes: &[u8]| {
            if !open {
                return bytes.ends_with(&end);
            }
            let replies = Value::parse_all(bytes).unwrap_or_else(|(values, _)| values);
            replies.iter().filter(|value| !value.is_push()).count() >= count
        };
        let pair = &mut self.pairs[connection];
        let (redis, redis_end) = receive_until(&mut *pair.redis, &is_complete);
        let (millrace, millrace_end) = receive_until(&mut *pair.millrace, &is_complete);
        let is_transactional =
            pair.queue.is_some() || commands.iter().any(|command| command.upper(0).starts_with("MULTI"));
        if redis == millrace && redis_end == millrace_end && redis_end == Received::Bytes && !is_transactional
        {
            return Ok(());
        }
        if redis_end != millrace_end || redis_end != Received::Bytes {
            let equal = redis.iter().zip(&millrace).take_while(|(a, b)| a == b).count();
            let answered = Value::parse_all(&redis[..equal])
                .map_or_else(|(values, _)| values.len(), |values| values.len());
            let shown = |end, bytes: &[u8]| {
                format!(
                    "{end:?} after {} bytes that go on: \"{}\"",
                    bytes.len(),
                    show_bytes(&bytes[equal..], 400)
                )
            };
            return Err(self.mismatch(
                format!(
                    "after {} commands one side fell silent or closed; the first {equal} bytes, {answered} replies, were \
                     equal. The commands:{}",
                    commands.len(),
                    list(connection, &commands)
                ),
                shown(redis_end, &redis),
                shown(millrace_end, &millrace),
                &[],
            ));
        }
        self.compare_replies(connection, &commands, &redis, &millrace)
    }

    /// Sends the same bytes to both, in the same pieces.
    fn send_in_pieces(&mut self, connection: usize, bytes: &[u8]) {
        let mut cuts = Vec::new();
        let random = self.grammar.random();
        let pieces = match random.below(10) {
            0..5 => 1,
            5..9 => 2 + random.below(3),
            _ => 5 + random.below(20),
        };
        for _ in 1..pieces {
            cuts.push(random.below(bytes.len() + 1));
        }
        cuts.push(bytes.len());
        cuts.sort_unstable();
        let mut start = 0;
        let pair = &mut self.pairs[connection];
        for cut in cuts {
            if cut > start {
                pair.redis.send(&bytes[start..cut]);
                pair.millrace.send(&bytes[start..cut]);
                start = cut;
            }
        }
    }

    /// Lays replies beside commands. The last reply answers the PING of the oracle, if there was one.
    fn compare_replies(
        &mut self,
        connection: usize,
        commands: &[Command],
        redis: &[u8],
        millrace: &[u8],
    ) -> Result<(), Box<Mismatch>> {
        let (redis_values, millrace_values) = match (Value::parse_all(redis), Value::parse_all(millrace)) {
            (Ok(redis), Ok(millrace)) => (redis, millrace),
            // Redis itself breaks the framing in a few places (CLIENT REPLY OFF inside EXEC); equal bytes are equal.
            _ if redis == millrace => return Ok(()),
            (redis_values, millrace_values) => {
                return Err(self.mismatch(
                    format!("these replies cannot be parsed:{}", list(connection, commands)),
                    show_parsed(redis, &redis_values),
                    show_parsed(millrace, &millrace_values),
                    &[],
                ));
            }
        };
        if let [command] = commands
            && exceptions::leaves_all(command)
            && redis_values != millrace_values
        {
            let whole = |values: &[Value]| Value::Items(b'*', values[..values.len() - 1].to_vec());
            return self.compare_one(connection, command, &whole(&redis_values), &whole(&millrace_values));
        }
        let split = |values: Vec<Value>| values.into_iter().partition::<Vec<_>, _>(Value::is_push);
        let (redis_pushes, redis_values) = split(redis_values);
        let (millrace_pushes, millrace_values) = split(millrace_values);
        if redis_pushes != millrace_pushes {
            let at = redis_pushes.iter().zip(&millrace_pushes).take_while(|(a, b)| a == b).count();
            let shown = |pushes: &[Value]| pushes.get(at).map_or("nothing".into(), Value::show);
            return Err(self.mismatch(
                format!("message {at} differs after:{}", list(connection, commands)),
                shown(&redis_pushes),
                shown(&millrace_pushes),
                &[],
            ));
        }
        let answered = answered(commands, self.pairs[connection].queue.is_some(), !redis_pushes.is_empty());
        for (at, (redis, millrace)) in redis_values.iter().zip(&millrace_values).enumerate() {
            let extra = redis_values.len().checked_sub(answered.len()); // the PING of the oracle
            let aligned = matches!(extra, Some(0 | 1));
            match answered.get(at).filter(|_| aligned) {
                Some(command) => {
                    self.compare_one(connection, command, redis, millrace)?;
                }
                None if redis == millrace => {}
                None => {
                    return Err(self.mismatch(
                        format!("reply {at} differs after:{}", list(connection, commands)),
                        redis.show(),
                        millrace.show(),
                        &[],
                    ));
                }
            }
        }
        if redis_values.len() != millrace_values.len() {
            return Err(self.mismatch(
                format!("the number of replies differs after:{}", list(connection, commands)),
                format!("{} replies: {}", redis_values.len(), show_tail(redis)),
                format!("{} replies: {}", millrace_values.len(), show_tail(millrace)),
                &[],
            ));
        }
        Ok(())
    }

    /// Compares one command's replies, and keeps the queue of its connection.
    fn compare_one(
        &mut self,
        connection: usize,
        command: &Command,
        redis: &Value,
        millrace: &Value,
    ) -> Result<(), Box<Mismatch>> {
        let queue = &mut self.pairs[connection].queue;
        let is_ok = *redis == Value::Line(b'+', b"OK".to_vec());
        let mut executed = Vec::new();
        match &*command.name() {
            "MULTI" if is_ok => *queue = Some(Vec::new()),
            "EXEC" | "DISCARD" | "RESET" if !redis.is_error() || is_abort(redis) => {
                executed = queue.take().unwrap_or_default();
            }
            _ if *redis == Value::Line(b'+', b"QUEUED".to_vec()) => {
                if let Some(queue) = queue {
                    queue.push(command.clone());
                }
            }
            _ => {}
        }
        if redis == millrace {
            return Ok(());
        }
        if let (Some(redis), Some(millrace)) = (redis.items(), millrace.items())
            && command.name() == "EXEC"
            && redis.len() == millrace.len()
            && redis.len() == executed.len()
        {
            for ((command, redis), millrace) in executed.iter().zip(redis).zip(millrace) {
                self.compare_one(connection, command, redis, millrace)?;
            }
            return Ok(());
        }
        if let Some(exception) = exceptions::covering(command, redis, millrace) {
            self.summary.exceptions[exception] += 1;
            return Ok(());
        }
        let what = format!("on connection {connection}: {}", command.show());
        let keys: Vec<&[u8]> = command.args[1..]
            .iter()
            .map(|argument| &argument[..])
            .filter(|argument| self.grammar.keys().iter().any(|key| key == argument))
            .collect();
        Err(self.mismatch(what, redis.show(), millrace.show(), &keys))
    }

    // ----------------------------------------------------------------------------- other steps

    fn play_throwaway(&mut self, bytes: &[u8]) -> Result<(), Box<Mismatch>> {
        self.summary.throwaways += 1;
        let mut redis = self.redis.connect();
        let mut millrace = self.millrace.connect();
        // Redis drops what it has not sent yet when it sees an HTTP request: in one piece nothing was sent.
        let text = bytes.to_ascii_lowercase();
        let is_http = [&b"host:"[..], b"post"]
            .iter()
            .any(|word| text.windows(word.len()).any(|window| window == *word));
        let cut = if is_http { bytes.len() } else { self.grammar.random().below(bytes.len() + 1) };
        for piece in [&bytes[..cut], &bytes[cut..]] {
            if !piece.is_empty() {
                redis.send(piece);
                millrace.send(piece);
            }
        }
        redis.finish();
        millrace.finish();
        let what = format!(
            "a connection that sends these bytes (cut at {cut}) and then ends: \"{}\"",
            show_bytes(bytes, 1500)
        );
        self.compare_ends(what, &mut *redis, &mut *millrace)
    }

    /// A connection of its own, which is closed by what is done on another one.
    fn play_victim(
        &mut self,
        opening: &[Command],
        connection: usize,
        commands: Vec<Command>,
    ) -> Result<(), Box<Mismatch>> {
        self.summary.throwaways += 1;
        let mut redis = self.redis.connect();
        let mut millrace = self.millrace.connect();
        let mut bytes = Vec::new();
        let ping = Command::new(vec![b"PING".to_vec(), b"mark-of-the-victim".to_vec()]);
        opening.iter().chain([&ping]).for_each(|command| command.encode(&mut bytes));
        redis.send(&bytes);
        millrace.send(&bytes);
        let is_complete = |bytes: &[u8]| bytes.ends_with(b"mark-of-the-victim\r\n");
        let (mut redis_bytes, _) = receive_until(&mut *redis, &is_complete);
        let (mut millrace_bytes, _) = receive_until(&mut *millrace, &is_complete);
        // The reply to HELLO, the first command, is compared elsewhere.
        for bytes in [&mut redis_bytes, &mut millrace_bytes] {
            let hello = Value::parse(bytes).map_or(0, |(_, used)| used);
            bytes.drain(..hello);
        }
        let what = format!("a connection that others close, after:{}", list(9, opening));
        if redis_bytes != millrace_bytes {
            return Err(self.mismatch(what, show_tail(&redis_bytes), show_tail(&millrace_bytes), &[]));
        }
        self.play_burst(connection, commands, false)?;
        self.compare_ends(what, &mut *redis, &mut *millrace)
    }

    /// Everything that still comes on a connection, up to its end.
    fn compare_ends(
        &mut self,
        what: String,
        redis: &mut dyn Link,
        millrace: &mut dyn Link,
    ) -> Result<(), Box<Mismatch>> {
        let (redis, redis_end) = receive_until(redis, &|_| false);
        let (millrace, millrace_end) = receive_until(millrace, &|_| false);
        if redis == millrace && redis_end == millrace_end && redis_end == Received::Closed {
            return Ok(());
        }
        // Redis sends 64 KiB to a client at a time, and drops the rest when it meets the client's end before it.
        if redis.len() >= 64 << 10 && millrace.starts_with(&redis) && redis_end == millrace_end {
            return Ok(());
        }
        // HELLO names version and connection: compare by value.
        if let (Ok(redis), Ok(millrace)) = (Value::parse_all(&redis), Value::parse_all(&millrace))
            && redis_end == millrace_end
            && redis.len() == millrace.len()
            && redis.iter().zip(&millrace).all(|(redis, millrace)| {
                let hello = Command::new(vec![b"HELLO".to_vec()]);
                redis == millrace || exceptions::covering(&hello, redis, millrace).is_some()
            })
        {
            return Ok(());
        }
        Err(self.mismatch(
            what,
            format!("{redis_end:?} after {} bytes, \"{}\"", redis.len(), show_bytes(&redis, 1500)),
            format!("{millrace_end:?} after {} bytes, \"{}\"", millrace.len(), show_bytes(&millrace, 1500)),
            &[],
        ))
    }

    fn play_scan(&mut self, options: &[Vec<u8>]) -> Result<(), Box<Mismatch>> {
        self.summary.scans += 1;
        let pair = &mut self.pairs[0];
        let redis = scan(&mut *pair.redis, options);
        let millrace = scan(&mut *pair.millrace, options);
        if redis.is_ok() && redis == millrace {
            return Ok(());
        }
        let shown = |result: Result<Vec<Vec<u8>>, String>| match result {
            Ok(keys) => keys.iter().map(|key| show_bytes(key, 60)).collect::<Vec<_>>().join(" "),
            Err(error) => error,
        };
        let options: Vec<String> = options.iter().map(|option| show_bytes(option, 60)).collect();
        Err(self.mismatch(format!("a full SCAN {}", options.join(" ")), shown(redis), shown(millrace), &[]))
    }

    /// Every key's value, encoding and expiry, by commands whose replies are then compared as any other.
    fn compare_keyspaces(&mut self) -> Result<(), Box<Mismatch>> {
        let keys = self.grammar.keys().to_vec();
        let mut commands = Vec::new();
        let mut push = |words: &[&[u8]]| {
            commands.push(Command::new(words.iter().map(|word| word.to_vec()).collect()));
        };
        push(&[b"KEYS", b"*"]);
        for key in &keys {
            push(&[b"GET", key]);
            push(&[b"PEXPIRETIME", key]);
            push(&[b"OBJECT", b"ENCODING", key]);
        }
        push(&[b"DBSIZE"]);
        self.play_burst(1, commands, false)?;
        self.play_scan(&[])?;
        let found = scan(&mut *self.pairs[0].redis, &[]).unwrap_or_default();
        self.summary.keys = found.len();
        // Nothing may exist that the grammar does not know: its value would go uncompared.
        let others: Vec<Vec<u8>> = found.into_iter().filter(|key| !keys.contains(key)).collect();
        for chunk in others.chunks(100) {
            let commands = chunk.iter().map(|key| Command::new(vec![b"GET".to_vec(), key.clone()])).collect();
            self.play_burst(1, commands, false)?;
        }
        Ok(())
    }

    /// A mismatch, with the remembered commands that name one of `keys` (all where there is none).
    fn mismatch(&self, what: String, redis: String, millrace: String, keys: &[&[u8]]) -> Box<Mismatch> {
        let concerns = |command: &Command| {
            let flushes = command.name().starts_with("FLUSH");
            keys.is_empty() || flushes || command.args.iter().any(|argument| keys.contains(&&argument[..]))
        };
        let mut history: Vec<String> = self
            .remembered
            .iter()
            .rev()
            .filter(|(_, command)| concerns(command))
            .take(HISTORY_LINES)
            .map(|(connection, command)| format!("{connection}> {}", command.show()))
            .collect();
        history.reverse();
        let what =
            format!("[RESP{}, {} against {}] {what}", self.resp, self.redis.name(), self.millrace.name());
        Box::new(Mismatch { what, redis, millrace, history })
    }
}

/// The commands that a reply can be laid beside. In RESP3 a subscription is confirmed by a push, and CLIENT REPLY
/// makes commands silent.
fn answered(commands: &[Command], mut in_multi: bool, pushes: bool) -> Vec<&Command> {
    let (mut is_off, mut skips) = (false, 0);
    let mut answered = Vec::new();
    for command in commands {
        let reply_mode = if command.starts_with(&["CLIENT", "REPLY"]) && !in_multi {
            command.upper(2)
        } else {
            String::new()
        };
        match &*reply_mode {
            "ON" => is_off = false,
            "OFF" => is_off = true,
            "SKIP" => skips = 2,
            _ => {}
        }
        let is_confirmed_by_push = pushes && command.name().ends_with("SUBSCRIBE");
        if !is_off && skips == 0 && !is_confirmed_by_push {
            answered.push(command);
        }
        skips = usize::saturating_sub(skips, 1);
        match &*command.name() {
            "MULTI" => in_multi = true,
            "EXEC" | "DISCARD" | "RESET" => in_multi = false,
            _ => {}
        }
    }
    answered
}

fn is_abort(reply: &Value) -> bool {
    matches!(reply, Value::Line(b'-', text) if text.starts_with(b"EXECABORT"))
}

/// Receives until the bytes are complete, or there is no more.
fn receive_until(link: &mut dyn Link, is_complete: &dyn Fn(&[u8]) -> bool) -> (Vec<u8>, Received) {
    let mut bytes = Vec::new();
    while !is_complete(&bytes) {
        match link.receive(&mut bytes) {
            Received::Bytes => {}
            end => return (bytes, end),
        }
    }
    (bytes, Received::Bytes)
}

/// One command on an otherwise silent link, and its reply.
pub fn ask(link: &mut dyn Link, words: &[&str]) -> Value {
    let mut bytes = Vec::new();
    Command::new(words.iter().map(|word| word.as_bytes().to_vec()).collect()).encode(&mut bytes);
    link.send(&bytes);
    let (bytes, end) = receive_until(link, &|bytes| Value::parse(bytes) != Err(Unparsed::Incomplete));
    match Value::parse(&bytes) {
        Ok((value, _)) => value,
        Err(error) => panic!("{words:?}: {error:?}, {end:?} after {}", show_tail(&bytes)),
    }
}

/// All keys by SCAN, sorted; each may be returned more than once.
fn scan(link: &mut dyn Link, options: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, String> {
    let mut keys = Vec::new();
    let mut cursor = b"0".to_vec();
    loop {
        let mut args = vec![b"SCAN".to_vec(), cursor];
        args.extend_from_slice(options);
        let mut bytes = Vec::new();
        Command::new(args).encode(&mut bytes);
        link.send(&bytes);
        let (bytes, _) = receive_until(link, &|bytes| Value::parse(bytes) != Err(Unparsed::Incomplete));
        let reply = Value::parse(&bytes).map_err(|error| format!("{error:?}: {}", show_tail(&bytes)))?.0;
        let Some([next, found]) = reply.items() else {
            return Err(reply.show());
        };
        let found = found.items().unwrap_or_default();
        keys.extend(found.iter().filter_map(Value::bytes).map(<[u8]>::to_vec));
        cursor = next.bytes().unwrap_or_default().to_vec();
        if cursor == b"0" {
            keys.sort();
            keys.dedup();
            return Ok(keys);
        }
    }
}

fn list(connection: usize, commands: &[Command]) -> String {
    let first = commands.len().saturating_sub(40);
    commands[first..].iter().map(|command| format!("\n    {connection}> {}", command.show())).collect()
}

fn show_tail(bytes: &[u8]) -> String {
    let start = bytes.len().saturating_sub(400);
    let dots = if start > 0 { "…" } else { "" };
    format!("{dots}\"{}\"", show_bytes(&bytes[start..], 400))
}

fn show_parsed(bytes: &[u8], parsed: &Result<Vec<Value>, (Vec<Value>, Unparsed)>) -> String {
    match parsed {
        Ok(values) => format!("{} replies: {}", values.len(), show_tail(bytes)),
        Err((values, error)) => format!("{error:?} after {} replies: {}", values.len(), show_tail(bytes)),
    }
}
