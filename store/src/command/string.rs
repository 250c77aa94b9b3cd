//! The string commands, byte for byte as Redis 7.0 answers them.
//!
//! Every handler has the same shape: read the arguments (errors about them come first, in Redis' order), look
//! the key up, decide, let the keyspace do it, reply. GET is the hot path: one lookup, and the reply is
//! written straight from the record. Nothing here keeps state; absolute expiry times are computed here, from
//! `now`, so that what the keyspace is told never depends on when it is told.
//!
//! Words of a command (`NX`, `KEEPTTL`) compare as C strings, because they do in Redis: see
//! [`is_word`].

use super::{Call, integer, is_word, reply};
use crate::keyspace::{Encoding, Expiry, KeyHash, Keyspace, StoreError};
use crate::long_double::LongDouble;
use crate::protocol::resp::Args;
use crate::time::Now;
use alloc::borrow::Cow;
use alloc::format;
use alloc::vec::Vec;

pub(crate) const SYNTAX_ERROR: &str = "ERR syntax error";
pub(crate) const NOT_AN_INTEGER: &str = "ERR value is not an integer or out of range";
const NOT_A_FLOAT: &str = "ERR value is not a valid float";
const WOULD_OVERFLOW: &str = "ERR increment or decrement would overflow";
const TOO_LONG: &str = "ERR string exceeds maximum allowed size (proto-max-bulk-len)";
const NO_MEMORY: &str = "OOM command not allowed when used memory > 'maxmemory'.";

/// Why a command is refused: the text of the error reply.
pub(crate) type Refusal = Cow<'static, str>;

/// How many lookups are prefetched together: enough to cover the latency of memory with that of others, few
/// enough that the first line is still in the cache when it is needed.
const PREFETCH_BATCH: usize = 16;

// ---------------------------------------------------------------------------------------------- reading

/// `GET key`
pub fn get(call: &mut Call<'_>) {
    let hash = call.hash(1);
    let mut reply = reply!(call);
    match call.engine.keyspace.get(call.args.at(1), hash, call.now) {
        Some(entry) => reply.bulk(entry.value),
        None => reply.null(),
    }
}

/// `MGET key [key …]`
pub fn mget(call: &mut Call<'_>) {
    reply!(call).array(call.args.len() - 1);
    for_each_key(call, 1, |call, at, hash| {
        if call.output_full() {
            return;
        }
        let mut reply = reply!(call);
        match call.engine.keyspace.get(call.args.at(at), hash, call.now) {
            Some(entry) => reply.bulk(entry.value),
            None => reply.null(),
        }
    });
}

/// `STRLEN key`
pub fn strlen(call: &mut Call<'_>) {
    let hash = call.hash(1);
    let length =
        call.engine.keyspace.get(call.args.at(1), hash, call.now).map_or(0, |entry| entry.value.len());
    reply!(call).integer(length as i64);
}

/// `GETRANGE key start end`, and its old name `SUBSTR`
pub fn getrange(call: &mut Call<'_>) {
    let hash = call.hash(1);
    let mut reply = reply!(call);
    let (Some(start), Some(end)) = (integer(call.args.at(2)), integer(call.args.at(3))) else {
        return reply.error(NOT_AN_INTEGER);
    };
    match call.engine.keyspace.get(call.args.at(1), hash, call.now) {
        Some(entry) => reply.bulk(slice_between(entry.value, start, end)),
        None => reply.bulk(b""),
    }
}

/// `SUBSTR key start end`
pub fn substr(call: &mut Call<'_>) {
    getrange(call);
}

/// The bytes from `start` to `end` inclusive, where negative positions count from the end.
fn slice_between(value: &[u8], start: i64, end: i64) -> &[u8] {
    if start < 0 && end < 0 && start > end {
        return b"";
    }
    let length = value.len() as i64;
    let from_start = |at: i64| if at < 0 { (length + at).max(0) } else { at };
    let (start, end) = (from_start(start), from_start(end).min(length - 1));
    if start > end || length == 0 { b"" } else { &value[start as usize..=end as usize] }
}

// ---------------------------------------------------------------------------------------------- setting

/// `SET key value [NX | XX] [GET] [EX s | PX ms | EXAT s | PXAT ms | KEEPTTL]`
pub fn set(call: &mut Call<'_>) {
    let options = if call.args.len() == 3 {
        Ok(SetOptions::default()) // what nearly every SET is
    } else {
        SetOptions::parse(call.args, 3, true)
    };
    match options {
        Ok(options) => set_with(call, options, 2, SetReply::Ok),
        Err(refusal) => refuse(call, &refusal),
    }
}

/// `SETNX key value`
pub fn setnx(call: &mut Call<'_>) {
    let options = SetOptions { condition: Condition::Missing, ..SetOptions::default() };
    set_with(call, options, 2, SetReply::OneOrZero);
}

/// `SETEX key seconds value`
pub fn setex(call: &mut Call<'_>) {
    let ttl = Ttl::Given { unit: Unit::Seconds, base: Base::Now, argument: 2 };
    set_with(call, SetOptions { ttl, ..SetOptions::default() }, 3, SetReply::Ok);
}

/// `PSETEX key milliseconds value`
pub fn psetex(call: &mut Call<'_>) {
    let ttl = Ttl::Given { unit: Unit::Milliseconds, base: Base::Now, argument: 2 };
    set_with(call, SetOptions { ttl, ..SetOptions::default() }, 3, SetReply::Ok);
}

/// `GETSET key value`
pub fn getset(call: &mut Call<'_>) {
    let options = SetOptions { get: true, ..SetOptions::default() };
    set_with(call, options, 2, SetReply::Ok);
}

/// What a successful, and a refused, conditional set answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum SetReply {
    Ok,
    OneOrZero,
}

/// SET and everything that is a special case of it. With GET the old value is the whole answer, whether or
/// not the new one is stored.
fn set_with(call: &mut Call<'_>, options: SetOptions, value: usize, style: SetReply) {
    let expiry = match options.ttl.resolve(call.command.name, call.args, call.now) {
        Ok(expiry) => expiry,
        Err(refusal) => return refuse(call, &refusal),
    };
    let hash = call.hash(1);
    let key = call.args.at(1);
    let keyspace = &mut call.engine.keyspace;
    let reply_start = call.session.output.len();
    let mut reply = reply!(call);
    let found = if options.get {
        let entry = keyspace.get(key, hash, call.now);
        match &entry {
            Some(entry) => reply.bulk(entry.value),
            None => reply.null(),
        }
        entry.is_some()
    } else {
        options.condition != Condition::Always && keyspace.peek(key, hash, call.now).is_some()
    };
    if !options.condition.allows(found) {
        match style {
            _ if options.get => {}
            SetReply::Ok => reply.null(),
            SetReply::OneOrZero => reply.integer(0),
        }
        return;
    }
    match keyspace.set(key, hash, call.args.at(value), expiry, Encoding::Auto, call.now) {
        Ok(()) => match style {
            _ if options.get => {}
            SetReply::Ok => reply.ok(),
            SetReply::OneOrZero => reply.integer(1),
        },
        Err(error) => {
            call.session.output.truncate(reply_start); // the old value may stand there already
            refuse(call, store_error(error));
        }
    }
}

/// `MSET key value [key value …]`
pub fn mset(call: &mut Call<'_>) {
    mset_with(call, false);
}

/// `MSETNX key value [key value …]`: all or none
pub fn msetnx(call: &mut Call<'_>) {
    mset_with(call, true);
}

fn mset_with(call: &mut Call<'_>, only_missing: bool) {
    if call.args.len().is_multiple_of(2) {
        let refusal = format!("ERR wrong number of arguments for '{}' command", call.command.name);
        return refuse(call, &refusal);
    }
    if only_missing {
        let mut found = false;
        for_each_key(call, 2, |call, at, hash| {
            found = found || call.engine.keyspace.peek(call.args.at(at), hash, call.now).is_some();
        });
        if found {
            return reply!(call).integer(0);
        }
    }
    let mut outcome = Ok(());
    for_each_key(call, 2, |call, at, hash| {
        if outcome.is_ok() {
            let (key, value) = (call.args.at(at), call.args.at(at + 1));
            outcome = call.engine.keyspace.set(key, hash, value, Expiry::Never, Encoding::Auto, call.now);
        }
    });
    let mut reply = reply!(call);
    match outcome {
        Ok(()) if only_missing => reply.integer(1),
        Ok(()) => reply.ok(),
        Err(error) => reply.error(store_error(error)),
    }
}

/// `APPEND key value`
pub fn append(call: &mut Call<'_>) {
    let hash = call.hash(1);
    let (key, suffix) = (call.args.at(1), call.args.at(2));
    let length_max = call.engine.config.proto_max_bulk_len;
    let keyspace = &mut call.engine.keyspace;
    let mut reply = reply!(call);
    if let Some(entry) = keyspace.peek(key, hash, call.now)
        && (entry.value.len() + suffix.len()) as u64 > length_max
    {
        return reply.error(TOO_LONG);
    }
    match keyspace.append(key, hash, suffix, call.now) {
        Ok(length) => reply.integer(length as i64),
        Err(error) => reply.error(store_error(error)),
    }
}

/// `SETRANGE key offset value`
pub fn setrange(call: &mut Call<'_>) {
    let hash = call.hash(1);
    let (key, bytes) = (call.args.at(1), call.args.at(3));
    let length_max = call.engine.config.proto_max_bulk_len;
    let keyspace = &mut call.engine.keyspace;
    let mut reply = reply!(call);
    let Some(offset) = integer(call.args.at(2)) else {
        return reply.error(NOT_AN_INTEGER);
    };
    let Ok(offset) = u64::try_from(offset) else {
        return reply.error("ERR offset is out of range");
    };
    if bytes.is_empty() {
        // Nothing to write creates nothing and changes nothing.
        let length = keyspace.peek(key, hash, call.now).map_or(0, |entry| entry.value.len());
        return reply.integer(length as i64);
    }
    if offset + bytes.len() as u64 > length_max {
        return reply.error(TOO_LONG);
    }
    match keyspace.write_range(key, hash, offset as usize, bytes, call.now) {
        Ok(length) => reply.integer(length as i64),
        Err(error) => reply.error(store_error(error)),
    }
}

// ---------------------------------------------------------------------------- reading and changing at once

/// `GETDEL key`
pub fn getdel(call: &mut Call<'_>) {
    let hash = call.hash(1);
    let key = call.args.at(1);
    let keyspace = &mut call.engine.keyspace;
    let mut reply = reply!(call);
    match keyspace.get(key, hash, call.now) {
        Some(entry) => reply.bulk(entry.value),
        None => return reply.null(),
    }
    keyspace.remove(key, hash, call.now);
}

/// `GETEX key [EX s | PX ms | EXAT s | PXAT ms | PERSIST]`
pub fn getex(call: &mut Call<'_>) {
    let options = match SetOptions::parse(call.args, 2, false) {
        Ok(options) => options,
        Err(refusal) => return refuse(call, &refusal),
    };
    let hash = call.hash(1);
    let key = call.args.at(1);
    let keyspace = &mut call.engine.keyspace;
    let reply_start = call.session.output.len();
    let mut reply = reply!(call);
    let Some(entry) = keyspace.get(key, hash, call.now) else {
        return reply.null(); // even before the expiry time is looked at
    };
    let (expiry, had_expiry) = match options.ttl.resolve(call.command.name, call.args, call.now) {
        Ok(expiry) => (expiry, entry.expires_at.is_some()),
        Err(refusal) => return reply.error(&refusal),
    };
    reply.bulk(entry.value);
    let outcome = match (options.ttl, expiry) {
        (Ttl::Given { base: Base::Epoch, .. }, Expiry::At(at)) if at <= call.now.unix_ms() => {
            keyspace.remove(key, hash, call.now);
            return;
        }
        (Ttl::Given { .. }, Expiry::At(at)) => keyspace.set_expiry(key, hash, Some(at), call.now),
        (Ttl::Persist, _) if had_expiry => keyspace.set_expiry(key, hash, None, call.now),
        _ => return,
    };
    if let Err(error) = outcome {
        call.session.output.truncate(reply_start);
        refuse(call, store_error(error));
    }
}

/// `INCR key`
pub fn incr(call: &mut Call<'_>) {
    increment(call, 1);
}

/// `DECR key`
pub fn decr(call: &mut Call<'_>) {
    increment(call, -1);
}

/// `INCRBY key increment`
pub fn incrby(call: &mut Call<'_>) {
    match integer(call.args.at(2)) {
        Some(by) => increment(call, by),
        None => refuse(call, NOT_AN_INTEGER),
    }
}

/// `DECRBY key decrement`
pub fn decrby(call: &mut Call<'_>) {
    match integer(call.args.at(2)) {
        Some(i64::MIN) => refuse(call, "ERR decrement would overflow"),
        Some(by) => increment(call, -by),
        None => refuse(call, NOT_AN_INTEGER),
    }
}

fn increment(call: &mut Call<'_>, by: i64) {
    let hash = call.hash(1);
    let key = call.args.at(1);
    let keyspace = &mut call.engine.keyspace;
    let mut reply = reply!(call);
    let old = match keyspace.peek(key, hash, call.now) {
        None => Some(0),
        Some(entry) => integer(entry.value),
    };
    let Some(old) = old else {
        return reply.error(NOT_AN_INTEGER);
    };
    let Some(new) = old.checked_add(by) else {
        return reply.error(WOULD_OVERFLOW);
    };
    let mut digits = itoa::Buffer::new();
    let text = digits.format(new).as_bytes();
    match keyspace.set(key, hash, text, Expiry::Keep, Encoding::Auto, call.now) {
        Ok(()) => reply.integer(new),
        Err(error) => reply.error(store_error(error)),
    }
}

/// `INCRBYFLOAT key increment`
pub fn incrbyfloat(call: &mut Call<'_>) {
    let hash = call.hash(1);
    let key = call.args.at(1);
    let keyspace = &mut call.engine.keyspace;
    let mut reply = reply!(call);
    let old = match keyspace.peek(key, hash, call.now) {
        None => Some(LongDouble::from_integer(0)),
        Some(entry) => LongDouble::parse(entry.value),
    };
    let (Some(old), Some(by)) = (old, LongDouble::parse(call.args.at(2))) else {
        return reply.error(NOT_A_FLOAT);
    };
    let Some(new) = old.checked_add(by) else {
        return reply.error("ERR increment would produce NaN or Infinity");
    };
    let text = new.to_text();
    match keyspace.set(key, hash, text.as_bytes(), Expiry::Keep, Encoding::NotInteger, call.now) {
        Ok(()) => reply.bulk(text.as_bytes()),
        Err(error) => reply.error(store_error(error)),
    }
}

// ------------------------------------------------------------------------------------------------- LCS

/// `LCS key1 key2 [LEN] [IDX] [MINMATCHLEN length] [WITHMATCHLEN]`
pub fn lcs(call: &mut Call<'_>) {
    let mut values = [Vec::new(), Vec::new()];
    for (at, value) in values.iter_mut().enumerate() {
        let hash = call.hash(1 + at);
        call.engine.select(call.args.at(1 + at));
        if let Some(entry) = call.engine.keyspace.get(call.args.at(1 + at), hash, call.now) {
            value.extend_from_slice(entry.value);
        }
    }
    let [a, b] = values;
    let bytes_max = call.engine.config.proto_max_bulk_len;
    let outcome = LcsOptions::parse(call.args).and_then(|options| {
        let table = LcsTable::build(&a, &b, bytes_max)?;
        Ok((options, table))
    });
    let mut reply = reply!(call);
    let (options, table) = match outcome {
        Ok(both) => both,
        Err(refusal) => return reply.error(&refusal),
    };
    let length = table.at(a.len(), b.len());
    if options.positions {
        let matches = table.matches(&a, &b, options.match_length_min);
        reply.map(2);
        reply.bulk(b"matches");
        reply.array(matches.len());
        for found in &matches {
            reply.array(2 + usize::from(options.with_match_length));
            for start in [found.a, found.b] {
                reply.array(2);
                reply.integer(start as i64);
                reply.integer((start + found.length - 1) as i64);
            }
            if options.with_match_length {
                reply.integer(found.length as i64);
            }
        }
        reply.bulk(b"len");
        reply.integer(i64::from(length));
    } else if options.length_only {
        reply.integer(i64::from(length));
    } else {
        reply.bulk(&table.common(&a, &b));
    }
}

#[derive(Default)]
struct LcsOptions {
    length_only: bool,
    positions: bool,
    with_match_length: bool,
    match_length_min: usize,
}

impl LcsOptions {
    fn parse(args: Args<'_>) -> Result<LcsOptions, Refusal> {
        let mut options = LcsOptions::default();
        let mut at = 3;
        while let Some(word) = args.get(at) {
            match (word, args.get(at + 1)) {
                _ if is_word(word, "IDX") => options.positions = true,
                _ if is_word(word, "LEN") => options.length_only = true,
                _ if is_word(word, "WITHMATCHLEN") => options.with_match_length = true,
                (_, Some(length)) if is_word(word, "MINMATCHLEN") => {
                    let length = integer(length).ok_or(NOT_AN_INTEGER)?;
                    options.match_length_min = length.max(0) as usize;
                    at += 1;
                }
                _ => return Err(SYNTAX_ERROR.into()),
            }
            at += 1;
        }
        if options.length_only && options.positions {
            return Err("ERR If you want both the length and indexes, please just use IDX.".into());
        }
        Ok(options)
    }
}

/// A run that both strings have in common.
struct LcsMatch {
    a: usize,
    b: usize,
    length: usize,
}

/// Lengths of the longest common subsequence of every pair of prefixes. Quadratic, as in Redis: which of
/// several longest subsequences is reported depends on the whole table, so no thriftier algorithm would
/// answer the same bytes. The setting that bounds a bulk string bounds it.
struct LcsTable {
    lengths: Vec<u32>,
    columns: usize,
}

impl LcsTable {
    fn build(a: &[u8], b: &[u8], bytes_max: u64) -> Result<LcsTable, Refusal> {
        let columns = b.len() + 1;
        let cells = (a.len() as u64 + 1) * columns as u64;
        if cells * 4 > bytes_max {
            return Err("ERR Insufficient memory, transient memory for LCS exceeds proto-max-bulk-len".into());
        }
        let mut lengths = Vec::new();
        if lengths.try_reserve_exact(cells as usize).is_err() {
            return Err("ERR Insufficient memory, failed allocating transient memory for LCS".into());
        }
        lengths.resize(cells as usize, 0u32);
        for (i, byte) in a.iter().enumerate() {
            let (above, row) = lengths[i * columns..(i + 2) * columns].split_at_mut(columns);
            for (j, other) in b.iter().enumerate() {
                row[j + 1] = if byte == other { above[j] + 1 } else { above[j + 1].max(row[j]) };
            }
        }
        Ok(LcsTable { lengths, columns })
    }

    fn at(&self, i: usize, j: usize) -> u32 {
        self.lengths[i * self.columns + j]
    }

    /// Walks from the ends to the beginning along a longest subsequence and shows every common byte.
    fn walk(&self, a: &[u8], b: &[u8], mut visit: impl FnMut(usize, usize)) {
        let (mut i, mut j) = (a.len(), b.len());
        while i > 0 && j > 0 {
            if a[i - 1] == b[j - 1] {
                i -= 1;
                j -= 1;
                visit(i, j);
            } else if self.at(i - 1, j) > self.at(i, j - 1) {
                i -= 1;
            } else {
                j -= 1;
            }
        }
    }

    fn common(&self, a: &[u8], b: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.at(a.len(), b.len()) as usize);
        self.walk(a, b, |i, _| bytes.push(a[i]));
        bytes.reverse();
        bytes
    }

    /// The runs, last first, as Redis lists them.
    fn matches(&self, a: &[u8], b: &[u8], length_min: usize) -> Vec<LcsMatch> {
        let mut matches: Vec<LcsMatch> = Vec::new();
        self.walk(a, b, |i, j| match matches.last_mut() {
            Some(run) if run.a == i + 1 && run.b == j + 1 => {
                *run = LcsMatch { a: i, b: j, length: run.length + 1 };
            }
            _ => matches.push(LcsMatch { a: i, b: j, length: 1 }),
        });
        matches.retain(|run| run.length >= length_min);
        matches
    }
}

// ---------------------------------------------------------------------------------------------- options

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    Seconds,
    Milliseconds,
}

/// From when an expiry argument counts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Base {
    Now,
    Epoch,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Condition {
    #[default]
    Always,
    Missing,
    Present,
}

impl Condition {
    fn allows(self, found: bool) -> bool {
        match self {
            Condition::Always => true,
            Condition::Missing => !found,
            Condition::Present => found,
        }
    }
}

/// What SET and GETEX were told about the expiry.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Ttl {
    #[default]
    Unsaid,
    Keep,
    Persist,
    Given {
        unit: Unit,
        base: Base,
        argument: usize,
    },
}

impl Ttl {
    fn resolve(self, name: &str, args: Args<'_>, now: Now) -> Result<Expiry, Refusal> {
        match self {
            Ttl::Unsaid | Ttl::Persist => Ok(Expiry::Never),
            Ttl::Keep => Ok(Expiry::Keep),
            Ttl::Given { unit, base, argument } => {
                let amount = integer(args.at(argument)).ok_or(NOT_AN_INTEGER)?;
                let at = match unit {
                    Unit::Seconds => amount.checked_mul(1000),
                    Unit::Milliseconds => Some(amount),
                };
                let at = at.filter(|&at| at > 0).and_then(|at| match base {
                    Base::Now => at.checked_add(now.unix_ms() as i64),
                    Base::Epoch => Some(at),
                });
                match at {
                    Some(at) => Ok(Expiry::At(at as u64)),
                    None => Err(invalid_expire_time(name)),
                }
            }
        }
    }
}

#[derive(Clone, Copy, Default)]
struct SetOptions {
    condition: Condition,
    get: bool,
    ttl: Ttl,
}

impl SetOptions {
    /// Options of SET (`for_set`) or GETEX from argument `at` on. One may be repeated; two that contradict each
    /// other are a syntax error.
    fn parse(args: Args<'_>, mut at: usize, for_set: bool) -> Result<SetOptions, Refusal> {
        const TIMES: [(&str, Unit, Base); 4] = [
            ("EX", Unit::Seconds, Base::Now),
            ("PX", Unit::Milliseconds, Base::Now),
            ("EXAT", Unit::Seconds, Base::Epoch),
            ("PXAT", Unit::Milliseconds, Base::Epoch),
        ];
        let mut options = SetOptions::default();
        while let Some(word) = args.get(at) {
            let time = TIMES.iter().find(|(name, ..)| is_word(word, name));
            if let Some(&(_, unit, base)) = time {
                let agrees = match options.ttl {
                    Ttl::Unsaid => true,
                    Ttl::Given { unit: u, base: b, .. } => u == unit && b == base,
                    Ttl::Keep | Ttl::Persist => false,
                };
                if !agrees || at + 1 >= args.len() {
                    return Err(SYNTAX_ERROR.into());
                }
                options.ttl = Ttl::Given { unit, base, argument: at + 1 };
                at += 2;
                continue;
            }
            at += 1;
            match options {
                SetOptions { condition: Condition::Always | Condition::Missing, .. }
                    if for_set && is_word(word, "NX") =>
                {
                    options.condition = Condition::Missing;
                }
                SetOptions { condition: Condition::Always | Condition::Present, .. }
                    if for_set && is_word(word, "XX") =>
                {
                    options.condition = Condition::Present;
                }
                _ if for_set && is_word(word, "GET") => options.get = true,
                SetOptions { ttl: Ttl::Unsaid | Ttl::Keep, .. } if for_set && is_word(word, "KEEPTTL") => {
                    options.ttl = Ttl::Keep;
                }
                SetOptions { ttl: Ttl::Unsaid | Ttl::Persist, .. }
                    if !for_set && is_word(word, "PERSIST") =>
                {
                    options.ttl = Ttl::Persist;
                }
                _ => return Err(SYNTAX_ERROR.into()),
            }
        }
        Ok(options)
    }
}

// ---------------------------------------------------------------------------------------------- helpers

#[cold]
pub(crate) fn invalid_expire_time(name: &str) -> Refusal {
    format!("ERR invalid expire time in '{name}' command").into()
}

#[cold]
pub(crate) fn refuse(call: &mut Call<'_>, refusal: &str) {
    reply!(call).error(refusal);
}

/// What a client hears when the keyspace has no place for its value.
#[cold]
pub(crate) fn store_error(error: StoreError) -> &'static str {
    match error {
        // Nobody will see the answer to a command that met damage.
        StoreError::OutOfSpace | StoreError::Damaged => NO_MEMORY,
        StoreError::TooLarge => TOO_LONG,
    }
}

/// Visits every `step`-th argument from the first on as a key, with its hash. The index buckets of a batch are
/// fetched into the cache together, then its records, and only then the keys are visited: the misses overlap.
pub(crate) fn for_each_key(
    call: &mut Call<'_>,
    step: usize,
    mut visit: impl FnMut(&mut Call<'_>, usize, KeyHash),
) {
    let count = (call.args.len() - 1).div_ceil(step);
    let mut hashes = [KeyHash(0); PREFETCH_BATCH];
    for batch in (0..count).step_by(PREFETCH_BATCH) {
        let size = PREFETCH_BATCH.min(count - batch);
        let keyspace: &Keyspace = &call.engine.keyspace;
        for (i, hash) in hashes[..size].iter_mut().enumerate() {
            *hash = keyspace.hash(call.args.at(1 + (batch + i) * step));
            keyspace.prefetch_bucket(*hash);
        }
        if size > 1 {
            for &hash in &hashes[..size] {
                keyspace.prefetch_record(hash);
            }
        }
        for (i, &hash) in hashes[..size].iter().enumerate() {
            let at = 1 + (batch + i) * step;
            call.engine.select(call.args.at(at));
            visit(call, at, hash);
        }
    }
}
