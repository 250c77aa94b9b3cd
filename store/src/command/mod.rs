//! The commands: one table ([`table`]) that says everything about each, and the way every one of them takes.
//!
//! [`execute`] is that way: look the name up, check the number of arguments, ask whether this client may do
//! this now ([`gate`]), call the handler, count. The handlers live in files named after the groups of the
//! table. A handler sees a [`Call`]: the engine without its own session, its session, its arguments. It writes
//! its whole reply to `call.session.output` and never fails: an error is a reply too.
//!
//! Time is measured per command where a command can take long, and shared out over a run of quick ones
//! otherwise: reading a clock twice costs a third of a GET. See [`crate::engine`].

pub mod client;
pub mod connection;
pub mod info;
pub mod introspection;
pub mod key;
pub mod pubsub;
pub mod reads;
pub mod replication;
pub mod server;
pub mod string;
pub mod table;
pub mod tracking;
pub mod transaction;

use crate::engine::Shared;
use crate::keyspace::{KeyHash, Keyspace};
use crate::protocol::reply::Reply;
use crate::protocol::resp::{Args, OwnedArgs};
use crate::session::{ReplyMode, Session};
use crate::shards::route::{Route, route};
use crate::time::{Clock, Now};
use crate::tracking::{end_command, register_keys};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
pub use table::{COMMANDS, Command, flag};

/// A command's code.
pub type Handler = fn(&mut Call<'_>);

/// Everything a handler may see and change.
pub struct Call<'a> {
    /// The shard, without the session that is calling.
    pub engine: &'a mut Shared,
    /// The caller. Replies go to its `output`.
    pub session: &'a mut Session,
    /// The arguments; `args[0]` is the command's name as the client wrote it.
    pub args: Args<'a>,
    /// The time of this turn.
    pub now: Now,
    /// For commands that measure.
    pub clock: &'a dyn Clock,
    /// The hash of the first key, where the batch has computed it already.
    pub first_key_hash: Option<KeyHash>,
    /// The entry of the table that led here.
    pub command: &'static Command,
}

/// The reply of a [`Call`], as a borrow of its session only.
macro_rules! reply {
    ($call:expr) => {
        $crate::protocol::reply::Reply::new(&mut $call.session.output, $call.session.resp3)
    };
}
pub(crate) use reply;

impl<'a> Call<'a> {
    /// Where the reply goes. Where a value borrowed from the keyspace is replied, use `reply!(call)`, which
    /// borrows only the session.
    #[inline]
    pub fn reply(&mut self) -> Reply<'_> {
        Reply::new(&mut self.session.output, self.session.resp3)
    }

    /// The keyspace.
    #[inline]
    pub fn keyspace(&mut self) -> &mut Keyspace {
        &mut self.engine.keyspace
    }

    /// The hash of argument `at` as a key.
    #[inline]
    pub fn hash(&self, at: usize) -> KeyHash {
        match self.first_key_hash {
            Some(hash) if at as i16 == self.command.keys.first => hash,
            _ => self.engine.keyspace.hash(&self.args[at]),
        }
    }

    /// Whether the caller's unsent output is over `output-buffer-max`: the session is then doomed, and the
    /// handler should return. Ask before each element of a reply that can have many.
    #[inline]
    pub fn output_full(&mut self) -> bool {
        if self.session.unsent() <= self.engine.config.output_buffer_max {
            return false;
        }
        self.engine.doom(self.session);
        true
    }

    /// `ERR syntax error`
    #[cold]
    pub fn syntax_error(&mut self) {
        self.reply().error("ERR syntax error");
    }

    /// The reply to a subcommand or a form of arguments that a container does not know.
    #[cold]
    pub fn subcommand_syntax_error(&mut self) {
        let container = self.command.name.split('|').next().unwrap_or_default().to_ascii_uppercase();
        let sub = c_string(self.args.get(1).unwrap_or_default(), 128);
        let mut text = b"ERR unknown subcommand or wrong number of arguments for '".to_vec();
        text.extend_from_slice(sub);
        text.extend_from_slice(b"'. Try ");
        text.extend_from_slice(container.as_bytes());
        text.extend_from_slice(b" HELP.");
        self.reply().error_bytes(&text);
    }

    /// The reply to `<container> HELP`: a headline, `lines`, and HELP itself.
    pub fn help(&mut self, lines: &[&str]) {
        let container = self.command.name.split('|').next().unwrap_or_default().to_ascii_uppercase();
        let mut reply = self.reply();
        reply.array(lines.len() + 3);
        reply.simple(&format!("{container} <subcommand> [<arg> [value] [opt] ...]. Subcommands are:"));
        for line in lines {
            reply.simple(line);
        }
        reply.simple("HELP");
        reply.simple("    Prints this help.");
    }
}

/// What became of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered.
    Done,
    /// It is on its way to another shard, and its reply will find its place.
    Hopped,
    /// CLIENT PAUSE holds it back: it must be executed again later.
    Postponed,
    /// Other shards hold it back: it must be executed again later.
    Blocked,
    /// It waits for other shards by itself, and its connection with it.
    Gathers,
}

/// The length of the longest name: names are compared as one number.
const NAME_MAX: usize = 16;

/// Open addressing, at most a third full.
const SLOTS: usize = 512;

/// Marks a free slot.
const FREE: u16 = u16::MAX;

/// The names of the table as numbers, in table order; 0 for subcommands, which have their own lookup.
static NAMES: [u128; COMMANDS.len()] = {
    let mut names = [0; COMMANDS.len()];
    let mut at = 0;
    while at < COMMANDS.len() {
        let name = COMMANDS[at].name.as_bytes();
        let mut word = 0u128;
        let mut position = 0;
        let mut is_subcommand = false;
        while position < name.len() {
            if name[position] == b'|' {
                is_subcommand = true;
            }
            if position < NAME_MAX {
                word |= (name[position] as u128) << (position * 8);
            }
            position += 1;
        }
        if !is_subcommand {
            assert!(name.len() <= NAME_MAX, "a command name is longer than the lookup compares");
            names[at] = word;
        }
        at += 1;
    }
    names
};

static NAME_SLOTS: [u16; SLOTS] = {
    let mut slots = [FREE; SLOTS];
    let mut at = 0;
    while at < COMMANDS.len() {
        if NAMES[at] != 0 {
            let mut slot = name_slot(NAMES[at]);
            while slots[slot] != FREE {
                slot = (slot + 1) % SLOTS;
            }
            slots[slot] = at as u16;
        }
        at += 1;
    }
    slots
};

/// What is left of sixteen bytes for a name of each length. A table is quicker than shifting 128 bits.
static MASKS: [u128; NAME_MAX + 1] = {
    let mut masks = [0; NAME_MAX + 1];
    let mut len = 1;
    while len <= NAME_MAX {
        masks[len] = u128::MAX >> ((NAME_MAX - len) * 8);
        len += 1;
    }
    masks
};

#[inline]
const fn name_slot(word: u128) -> usize {
    let folded = (word as u64) ^ ((word >> 64) as u64).rotate_left(23);
    (folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 55) as usize % SLOTS
}

/// The command of this name, in any case. Containers are found too; [`Command::subcommand`] goes on from
/// there.
///
/// The name becomes one 128-bit number, lower-cased by setting bit 5 of every byte. That maps no byte that is
/// not a letter to a letter, and names consist of letters only, so equal numbers mean equal names.
#[inline]
pub fn lookup(name: &[u8]) -> Option<&'static Command> {
    if name.len() > NAME_MAX {
        return None;
    }
    let mut bytes = [0u8; NAME_MAX];
    bytes[..name.len()].copy_from_slice(name);
    lookup_word(u128::from_le_bytes(bytes), name.len())
}

/// As [`lookup`], for a name that lies `start` bytes into a buffer: where sixteen bytes can be read from
/// there, no copy of unknown length is needed.
#[inline]
fn lookup_at(buffer: &[u8], start: usize, len: usize) -> Option<&'static Command> {
    match buffer.get(start..).and_then(|rest| rest.first_chunk::<NAME_MAX>()) {
        Some(bytes) if len <= NAME_MAX => lookup_word(u128::from_le_bytes(*bytes), len),
        _ => lookup(&buffer[start..start + len]),
    }
}

#[inline]
fn lookup_word(word: u128, len: usize) -> Option<&'static Command> {
    if len == 0 {
        return None;
    }
    let word = (word | 0x2020_2020_2020_2020_2020_2020_2020_2020) & MASKS[len.min(NAME_MAX)];
    let mut slot = name_slot(word);
    loop {
        let at = NAME_SLOTS[slot];
        if at == FREE {
            return None;
        }
        if NAMES[usize::from(at)] == word {
            return Some(&COMMANDS[usize::from(at)]);
        }
        slot = (slot + 1) % SLOTS;
    }
}

/// The command that `args` name: the subcommand where the first argument is a container with more behind it.
#[inline]
pub fn resolve(args: &Args<'_>) -> Option<&'static Command> {
    let (buffer, name) = args.name();
    let command = lookup_at(buffer, name.start as usize, name.len as usize)?;
    if command.is_container && args.len() > 1 { command.subcommand(&args[1]) } else { Some(command) }
}

/// Executes one command and appends its reply to the session's output. Everything that protects the server is
/// in here; only CLIENT PAUSE, which needs a queue, is left to the caller of [`execute_resolved`].
pub fn execute(shared: &mut Shared, session: &mut Session, args: Args<'_>, now: Now, clock: &dyn Clock) {
    let command = resolve(&args);
    let started = clock.monotonic();
    let outcome = execute_resolved(shared, session, command, args, None, now, clock, Pausing::Ignore);
    debug_assert_eq!(outcome, Outcome::Done);
    if let Some(command) = command
        && !command.is_timed()
    {
        let elapsed = clock.monotonic().since(started);
        shared.metrics.note_time(command.id, elapsed, 1);
    }
}

/// Whether CLIENT PAUSE can hold this command back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pausing {
    /// It can: the caller keeps the input.
    Obey,
    /// It cannot.
    Ignore,
}

/// [`execute`] for a command that is already looked up and whose first key may already be hashed. Quick
/// commands are counted but not timed: the caller shares the time of a whole run among them.
#[inline]
#[allow(
    clippy::too_many_arguments,
    reason = "the batch knows all of this, and a struct would be built per GET"
)]
pub(crate) fn execute_resolved(
    shared: &mut Shared,
    session: &mut Session,
    command: Option<&'static Command>,
    args: Args<'_>,
    first_key_hash: Option<KeyHash>,
    now: Now,
    clock: &dyn Clock,
    pausing: Pausing,
) -> Outcome {
    let start = session.output.len();
    let silence = session.reply_mode;
    // Also of what is refused or queued: CLIENT LIST shows what was sent last.
    session.last_command = command.map_or(u16::MAX, |command| command.id);
    let gate = match command {
        None => {
            reject_unknown(shared, session, &args);
            Gate::Answered
        }
        Some(command) if !command.accepts(args.len()) => {
            let text = format!("ERR wrong number of arguments for '{}' command", command.name);
            reject(shared, session, command, text.as_bytes());
            Gate::Answered
        }
        Some(command)
            if session.is_restricted() || shared.is_restricted || command.flags & flag::PROTECTED != 0 =>
        {
            gate(shared, session, command, &args, now, pausing)
        }
        Some(_) => Gate::Open,
    };
    let mut outcome = Outcome::Done;
    let mut is_executed = false;
    match (gate, command) {
        (Gate::Open, Some(command)) => {
            let left = match shared.is_plain || !shared.is_sharded || shared.has_guests() {
                true => None,
                false => leave(shared, session, command, &args),
            };
            match left {
                None => {
                    call(&mut Call { engine: shared, session, args, now, clock, first_key_hash, command });
                    is_executed = !shared.is_plain;
                }
                Some(Outcome::Hopped) => outcome = Outcome::Hopped,
                Some(waits) => return waits,
            }
        }
        (Gate::Postpone, _) => return Outcome::Postponed,
        _ => {}
    }
    if silence != ReplyMode::On || session.reply_mode != ReplyMode::On {
        settle_reply_mode(session, command, start, silence);
    }
    // Behind the reply, wanted or not: what the command has to tell its own client.
    if is_executed {
        shared.conclude(session);
    }
    if session.tracking.is_some() {
        end_command(session, command);
    }
    outcome
}

/// Sends a command to the shards that have to execute it. `None`: this one has.
#[inline]
fn leave(
    shared: &mut Shared,
    session: &mut Session,
    command: &'static Command,
    args: &Args<'_>,
) -> Option<Outcome> {
    match route(shared, session, command, args) {
        // What it waits for has to be known: the writes on their way to other shards are its own.
        Route::Here if session.has_holes && command.flags & (flag::BLOCKING | flag::AFTER_HOPS) != 0 => {
            Some(Outcome::Blocked)
        }
        Route::Here => None,
        Route::Hop(shard) if shared.hop(session, shard, command, args) => Some(Outcome::Hopped),
        // What is over several shards comes behind everything that is on its way.
        Route::Gather(shards) if !session.has_holes => {
            shared.gather(session, shards, command.id, OwnedArgs::from(*args));
            Some(Outcome::Gathers)
        }
        Route::Hop(_) | Route::Gather(_) => Some(Outcome::Blocked),
    }
}

/// Before a handler, where there are other shards or a log. False: the reply is written.
#[cold]
fn prepare(call: &mut Call<'_>) -> bool {
    let follows = call.engine.replication.is_following();
    // Also what came from another shard, or waited for several, while the role changed: some of them may have heard of it, and
    // what is written on one that follows is in no record.
    let some_follow = follows || call.engine.has_following_guests();
    if some_follow && call.command.flags & flag::WRITE != 0 {
        call.reply().error(crate::replication::READONLY);
        return false;
    }
    // A transaction is of one moment: EXEC itself has caught up.
    if follows && call.session.executing == 0 {
        call.engine.catch_up(call.now);
    }
    if call.engine.has_guests() {
        select_keyspace(call);
    }
    if call.command.flags & flag::ALL_SHARDS != 0
        && let Some(journal) = &call.engine.journal
        && shows_every_write(call.command, &call.args, journal.has_failed())
    {
        call.engine.for_all(|shard| shard.keyspace.observe_everything());
    }
    true
}

/// Whether a reply about the whole server tells of writes, if only how many keys they made: it then waits for all of them.
fn shows_every_write(command: &Command, args: &Args<'_>, log_has_failed: bool) -> bool {
    if command.flags & (flag::READONLY | flag::WRITE) != 0 {
        return true;
    }
    let counts_keys = command.name == "info" || command.name.starts_with("memory|");
    // Whoever asks how the log is must hear it from one that stands still; and of a server whose log has failed, which
    // is when an operator needs to see it, the figures are told as they are.
    let is_about_log = command.name == "info" && args.len() == 2 && is_word(&args[1], "persistence");
    counts_keys && !is_about_log && !log_has_failed
}

/// With other shards in hand: the keyspace a command is about takes the place of this shard's.
#[cold]
fn select_keyspace(call: &mut Call<'_>) {
    let first = call.command.keys.first;
    if first > 0 && call.command.flags & flag::PUBSUB == 0 {
        return call.engine.select(&call.args[first as usize]);
    }
    match call.command.name {
        "scan" => {
            let cursor = key::parse_cursor(call.args.at(1)).unwrap_or(0);
            call.engine.select_shard((cursor % call.engine.fleet.place.count as u64) as usize);
        }
        "debug" if call.args.len() > 2 => call.engine.select(&call.args[2]),
        _ => call.engine.deselect(),
    }
}

/// Calls the handler, times it if it can be slow, counts it and its errors.
#[inline]
pub(crate) fn call(call: &mut Call<'_>) {
    let command = call.command;
    let start = call.session.output.len();
    let is_refused = !call.engine.is_plain && !prepare(call);
    if is_refused {
        // Said already.
    } else if command.is_timed() || call.engine.times_everything {
        let started = call.clock.monotonic();
        let stalled = call.engine.stalled;
        (command.handler)(call);
        let stalled = call.engine.stalled.since(stalled);
        let mut elapsed = call.clock.monotonic().since(started);
        elapsed.0 += stalled.0;
        if command.is_timed() {
            call.engine.metrics.note_time(command.id, elapsed, 1);
        }
        if call.engine.is_slow(elapsed) {
            call.engine.note_slow(call.session, command, &call.args, elapsed, call.now);
        }
    } else {
        (command.handler)(call);
    }
    if call.session.tracks.is_some() && command.reads_keys() {
        register_keys(call);
    }
    call.engine.metrics.commands_processed += 1;
    let failed = call.session.output.get(start) == Some(&b'-');
    let stats = &mut call.engine.metrics.commands[usize::from(command.id)];
    stats.calls += 1;
    if failed {
        stats.failed += 1;
        call.engine.metrics.note_error(&call.session.output[start..]);
    }
}

enum Gate {
    Open,
    /// The reply is written.
    Answered,
    Postpone,
}

/// Whether this client may execute this command now, in the order in which Redis asks.
#[cold]
fn gate(
    shared: &mut Shared,
    session: &mut Session,
    command: &'static Command,
    args: &Args<'_>,
    now: Now,
    pausing: Pausing,
) -> Gate {
    let refuse = |shared: &mut Shared, session: &mut Session, text: &str| {
        reject(shared, session, command, text.as_bytes());
        Gate::Answered
    };
    let is = |name: &str| command.name == name;
    let in_transaction = session.transaction.is_some();
    // EXEC answers for what it will run.
    let (mut grows, mut writes) = (command.flags & flag::DENYOOM != 0, command.flags & flag::WRITE != 0);
    if let (true, Some(transaction)) = (is("exec"), &session.transaction) {
        grows |= transaction.denies_oom;
        writes |= transaction.writes;
    }
    if command.flags & flag::PROTECTED != 0 && !shared.config.enable_debug_command.allows(&session.peer) {
        return refuse(
            shared,
            session,
            "ERR DEBUG command not allowed. If the enable-debug-command option is set to \"local\", you can run it \
             from a local connection, otherwise you need to set this option in the configuration file, and then \
             restart the server.",
        );
    }
    if !session.authenticated && command.flags & flag::NO_AUTH == 0 {
        return refuse(shared, session, "NOAUTH Authentication required.");
    }
    if let Err(text) = shared.heed_replication(command, writes) {
        return refuse(shared, session, &text);
    }
    if writes && let Some(why) = shared.journal.as_ref().and_then(|journal| journal.refusal()) {
        let text = format!("MISCONF {why}");
        return refuse(shared, session, &text);
    }
    if in_transaction && command.flags & flag::NO_MULTI != 0 {
        return refuse(shared, session, "ERR Command not allowed inside a transaction");
    }
    if shared.config.maxmemory > 0 {
        let has_room = shared.make_room(now);
        let queues = in_transaction && !(is("exec") || is("discard") || is("quit") || is("reset"));
        if !has_room && (grows || queues) {
            shared.metrics.oom_rejections += 1;
            return refuse(shared, session, "OOM command not allowed when used memory > 'maxmemory'.");
        }
    }
    if session.is_subscriber()
        && !session.resp3
        && !matches!(
            command.name,
            "ping"
                | "subscribe"
                | "ssubscribe"
                | "unsubscribe"
                | "sunsubscribe"
                | "psubscribe"
                | "punsubscribe"
                | "quit"
                | "reset"
        )
    {
        let text = format!(
            "ERR Can't execute '{}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context",
            command.name
        );
        return refuse(shared, session, &text);
    }
    if pausing == Pausing::Obey && shared.pause.holds(writes || command.flags & flag::MAY_REPLICATE != 0) {
        return Gate::Postpone;
    }
    if let Some(transaction) = &mut session.transaction
        && !(is("exec") || is("discard") || is("multi") || is("watch") || is("quit") || is("reset"))
    {
        if !transaction.broken {
            transaction.denies_oom |= grows;
            transaction.writes |= writes;
            let owned = OwnedArgs::from(*args);
            transaction.bytes += owned.capacity() + size_of::<(u16, OwnedArgs)>();
            transaction.queued.push((command.id, owned));
        }
        if session
            .transaction
            .as_ref()
            .is_some_and(|queue| queue.bytes > shared.config.client_query_buffer_limit)
        {
            shared.doom(session);
        }
        session.output.extend_from_slice(b"+QUEUED\r\n");
        return Gate::Answered;
    }
    Gate::Open
}

/// Answers with an error instead of executing; a transaction being queued is spoilt by it.
#[cold]
pub(crate) fn reject(shared: &mut Shared, session: &mut Session, command: &'static Command, text: &[u8]) {
    let start = session.output.len();
    shared.metrics.commands[usize::from(command.id)].rejected += 1;
    if command.name == "exec" {
        // Even where there is no transaction: so does Redis.
        transaction::discard_transaction(shared, session);
        let mut whole = b"EXECABORT Transaction discarded because of: ".to_vec();
        whole.extend_from_slice(text.strip_prefix(b"ERR ").unwrap_or(text));
        Reply::new(&mut session.output, session.resp3).error_bytes(&whole);
    } else {
        if let Some(transaction) = &mut session.transaction {
            transaction.broken = true;
        }
        Reply::new(&mut session.output, session.resp3).error_bytes(text);
    }
    shared.metrics.note_error(&session.output[start..]);
}

#[cold]
fn reject_unknown(shared: &mut Shared, session: &mut Session, args: &Args<'_>) {
    // An HTTP request on the RESP port: a browser was tricked into sending it, and its body may be commands.
    if is_word(&args[0], "post") || is_word(&args[0], "host:") {
        shared.metrics.protocol_errors += 1;
        return shared.abort(session);
    }
    let start = session.output.len();
    let mut text;
    if let Some(container) = lookup(&args[0]).filter(|command| command.is_container) {
        text = b"ERR unknown subcommand '".to_vec();
        text.extend_from_slice(c_string(&args[1], 128));
        text.extend_from_slice(b"'. Try ");
        text.extend_from_slice(container.name.to_ascii_uppercase().as_bytes());
        text.extend_from_slice(b" HELP.");
    } else {
        text = b"ERR unknown command '".to_vec();
        text.extend_from_slice(c_string(&args[0], 128));
        text.extend_from_slice(b"', with args beginning with: ");
        let mut quoted = Vec::new();
        for argument in args.iter().skip(1) {
            if quoted.len() >= 128 {
                break;
            }
            let room = 128 - quoted.len();
            quoted.push(b'\'');
            quoted.extend_from_slice(c_string(argument, room));
            quoted.extend_from_slice(b"' ");
        }
        text.extend_from_slice(&quoted);
    }
    if let Some(transaction) = &mut session.transaction {
        transaction.broken = true;
    }
    Reply::new(&mut session.output, session.resp3).error_bytes(&text);
    shared.metrics.note_error(&session.output[start..]);
}

/// After a command whose reply may be unwanted (CLIENT REPLY): takes it back, except messages. `before` is
/// what held when the command began: one that asks for silence is not silenced itself.
#[cold]
pub(crate) fn settle_reply_mode(
    session: &mut Session,
    command: Option<&'static Command>,
    start: usize,
    before: ReplyMode,
) {
    let silent = |mode| matches!(mode, ReplyMode::Off | ReplyMode::Skip);
    if silent(before)
        && silent(session.reply_mode)
        && command.is_none_or(|command| command.flags & flag::PUSHES == 0)
    {
        session.output.truncate(start);
    }
    session.reply_mode = match session.reply_mode {
        ReplyMode::SkipNext => ReplyMode::Skip,
        ReplyMode::Skip if before == ReplyMode::Skip => ReplyMode::On,
        mode => mode,
    };
}

impl Session {
    /// Whether [`gate`] has something to ask for this client whatever the command.
    #[inline]
    fn is_restricted(&self) -> bool {
        !self.authenticated || self.transaction.is_some() || (self.is_subscriber() && !self.resp3)
    }
}

/// What `printf("%.*s")` would show of an argument: it ends at a zero byte.
pub(crate) fn c_string(bytes: &[u8], max: usize) -> &[u8] {
    let bytes = &bytes[..bytes.len().min(max)];
    &bytes[..memchr::memchr(0, bytes).unwrap_or(bytes.len())]
}

/// Whether an argument is this word, in any case.
#[inline]
pub fn is_word(argument: &[u8], word: &str) -> bool {
    // As `strcasecmp` has it: a NUL ends the argument.
    match argument.get(word.len()) {
        None => argument.eq_ignore_ascii_case(word.as_bytes()),
        Some(0) => argument[..word.len()].eq_ignore_ascii_case(word.as_bytes()),
        Some(_) => false,
    }
}

/// An integer argument as Redis reads them: a whole, canonical, signed 64-bit decimal number.
#[inline]
pub fn integer(argument: &[u8]) -> Option<i64> {
    crate::protocol::resp::parse_integer(argument)
}

/// `docs/protocol.md`, generated so that it cannot disagree with the server.
pub fn docs_markdown() -> String {
    table::docs_markdown()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_found_in_any_case_and_nothing_else_is() {
        for command in COMMANDS.iter().filter(|command| !command.is_subcommand()) {
            for name in [command.name.to_ascii_uppercase(), command.name.into()] {
                assert_eq!(lookup(name.as_bytes()).map(|found| found.id), Some(command.id));
                let window = format!("{name}and more bytes behind it");
                let found = lookup_at(window.as_bytes(), 0, name.len());
                assert_eq!(found.map(|found| found.id), Some(command.id));
                // A bit that lower-casing ignores must not make another byte a letter.
                for at in 0..name.len() {
                    let mut wrong = name.clone().into_bytes();
                    wrong[at] ^= 0x40;
                    assert!(lookup(&wrong).is_none(), "{wrong:?}");
                }
            }
            assert!(command.name.bytes().all(|byte| byte.is_ascii_lowercase()), "{}", command.name);
        }
        for name in [&b""[..], b"ge", b"gett", b"ge\0", b"client|list", b"averyveryverylongname", b"\xff\xff"]
        {
            assert!(lookup(name).is_none(), "{name:?}");
        }
    }

    #[test]
    fn subcommands_follow_their_container() {
        let client = lookup(b"CLIENT").unwrap();
        assert!(client.is_container && client.subcommands().count() > 10);
        assert_eq!(client.subcommand(b"SetName").map(|sub| sub.name), Some("client|setname"));
        assert!(client.subcommand(b"foo").is_none());
        assert!(lookup(b"get").unwrap().subcommands().next().is_none());
        for command in COMMANDS.iter().filter(|command| command.is_subcommand()) {
            let container = command.name.split('|').next().unwrap();
            let found = lookup(container.as_bytes()).unwrap().subcommand(command.last_name().as_bytes());
            assert_eq!(found.map(|found| found.id), Some(command.id));
        }
    }

    #[test]
    fn the_table_agrees_with_itself() {
        for (at, command) in COMMANDS.iter().enumerate() {
            assert_eq!(usize::from(command.id), at);
            assert!(COMMANDS[..at].iter().all(|other| other.name != command.name), "{} twice", command.name);
            let has_keys = command.keys.first > 0;
            assert_eq!(has_keys, !command.key_specs.is_empty(), "{}", command.name);
            assert!(
                command.flags & flag::WRITE == 0 || command.flags & flag::READONLY == 0,
                "{}",
                command.name
            );
            assert!(command.summary.ends_with('.') && !command.summary.contains('|'), "{}", command.name);
            if has_keys && command.arity > 0 {
                assert!(i32::from(command.keys.first) < command.arity, "{}", command.name);
            }
        }
    }

    #[test]
    fn the_documentation_names_every_command() {
        let text = docs_markdown();
        for command in &COMMANDS {
            let name = command.name.replace('|', " ").to_ascii_uppercase();
            assert!(text.contains(&format!("| `{name}` |")), "{name}");
        }
    }
}
