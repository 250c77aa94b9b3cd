//! The commands that treat a key as a key, whatever its value: existence, names, expiry, iteration, flushing.
//!
//! Byte for byte as Redis 7.0 answers them. Expiry times are absolute milliseconds from here on down; the
//! arithmetic that can overflow happens here, with Redis' errors. Iteration (KEYS, SCAN) writes the matching
//! keys first and their number before them afterwards, because it is known only then.

use super::string::{Base, NOT_AN_INTEGER, Refusal, SYNTAX_ERROR, Unit};
use super::string::{for_each_key, invalid_expire_time, refuse, store_error};
use super::{Call, c_string, integer, is_word, reply};
use crate::config::Config;
use crate::engine::Shared;
use crate::eviction::EvictionPolicy;
use crate::glob;
use crate::keyspace::{Encoding, Expiry, Keyspace};
use crate::protocol::reply::Reply;
use crate::protocol::resp::Args;
use crate::time::Now;
use alloc::borrow::ToOwned;
use alloc::format;
use alloc::vec::Vec;

const NO_SUCH_KEY: &str = "ERR no such key";

// ------------------------------------------------------------------------------------------- existence

/// `DEL key [key …]`
pub fn del(call: &mut Call<'_>) {
    let mut removed = 0;
    for_each_key(call, 1, |call, at, hash| {
        removed += i64::from(call.engine.keyspace.remove(call.args.at(at), hash, call.now));
    });
    reply!(call).integer(removed);
}

/// `UNLINK key [key …]`: DEL; freeing a record is never slow here.
pub fn unlink(call: &mut Call<'_>) {
    del(call);
}

/// `EXISTS key [key …]`: a key named twice counts twice.
pub fn exists(call: &mut Call<'_>) {
    let mut found = 0;
    for_each_key(call, 1, |call, at, hash| {
        let exists = call.engine.keyspace.peek(call.args.at(at), hash, call.now).is_some();
        count_lookup(&mut call.engine.keyspace, exists);
        found += i64::from(exists);
    });
    reply!(call).integer(found);
}

/// `TOUCH key [key …]`
pub fn touch(call: &mut Call<'_>) {
    let mut found = 0;
    for_each_key(call, 1, |call, at, hash| {
        let exists = call.engine.keyspace.touch(call.args.at(at), hash, call.now);
        count_lookup(&mut call.engine.keyspace, exists);
        found += i64::from(exists);
    });
    reply!(call).integer(found);
}

/// `TYPE key`
pub fn type_of(call: &mut Call<'_>) {
    let hash = call.hash(1);
    let found = call.engine.keyspace.peek(call.args.at(1), hash, call.now).is_some();
    count_lookup(&mut call.engine.keyspace, found);
    reply!(call).simple(if found { "string" } else { "none" });
}

/// `DBSIZE`
pub fn dbsize(call: &mut Call<'_>) {
    let keys: usize = call.engine.all().map(|shard| shard.keyspace.len()).sum();
    reply!(call).integer(keys as i64);
}

/// `RANDOMKEY`
pub fn randomkey(call: &mut Call<'_>) {
    let key = random_key(call.engine, call.now);
    let mut reply = reply!(call);
    match key {
        Some(key) => reply.bulk(&key),
        None => reply.null(),
    }
}

/// A key of any shard in hand, each as likely as the others: shards are drawn by their share of the keys.
fn random_key(shared: &mut Shared, now: Now) -> Option<Vec<u8>> {
    if !shared.has_guests() {
        return shared.keyspace.random_key(now);
    }
    loop {
        let keys: usize = shared.all().map(|shard| shard.keyspace.len()).sum();
        if keys == 0 {
            return None;
        }
        let mut at = shared.keyspace.draw(keys);
        let mut key = None;
        shared.for_all(|shard| {
            let keys = shard.keyspace.len();
            if at < keys {
                key = shard.keyspace.random_key(now);
                at = usize::MAX;
            } else if at != usize::MAX {
                at -= keys;
            }
        });
        // `None`: all that the shard had was expired, and is gone now.
        if key.is_some() {
            return key;
        }
    }
}

/// Counts a lookup as a hit or a miss where the keyspace does not: so does Redis for commands that ask about a key
/// and not for its value.
fn count_lookup(keyspace: &mut Keyspace, found: bool) {
    let stats = keyspace.stats_mut();
    stats.hits += u64::from(found);
    stats.misses += u64::from(!found);
}

// ------------------------------------------------------------------------------------------------ names

/// `RENAME key newkey`
pub fn rename(call: &mut Call<'_>) {
    rename_with(call, false);
}

/// `RENAMENX key newkey`
pub fn renamenx(call: &mut Call<'_>) {
    rename_with(call, true);
}

fn rename_with(call: &mut Call<'_>, only_missing: bool) {
    let (from_hash, to_hash) = (call.hash(1), call.hash(2));
    let (from, to) = (call.args.at(1), call.args.at(2));
    let now = call.now;
    call.engine.select(from);
    let Some(entry) = call.engine.keyspace.peek(from, from_hash, now) else {
        return reply!(call).error(NO_SUCH_KEY);
    };
    let renamed = |reply: &mut Reply<'_>| if only_missing { reply.integer(1) } else { reply.ok() };
    if from == to {
        let mut reply = reply!(call);
        return if only_missing { reply.integer(0) } else { reply.ok() };
    }
    let (value, encoding) = (entry.value.to_owned(), entry.encoding);
    let expiry = entry.expires_at.map_or(Expiry::Never, Expiry::At);
    call.engine.select(to);
    if only_missing && call.engine.keyspace.peek(to, to_hash, now).is_some() {
        return reply!(call).integer(0);
    }
    match call.engine.keyspace.set(to, to_hash, &value, expiry, encoding, now) {
        Ok(()) => {
            call.engine.select(from);
            call.engine.keyspace.remove(from, from_hash, now);
            renamed(&mut reply!(call));
        }
        Err(error) => reply!(call).error(store_error(error)),
    }
}

/// `COPY source destination [DB index] [REPLACE]`
pub fn copy(call: &mut Call<'_>) {
    let replace = match parse_copy_options(call.args, &call.engine.config) {
        Ok(replace) => replace,
        Err(refusal) => return refuse(call, &refusal),
    };
    let (from_hash, to_hash) = (call.hash(1), call.hash(2));
    let (from, to) = (call.args.at(1), call.args.at(2));
    let now = call.now;
    if from == to {
        return reply!(call).error("ERR source and destination objects are the same");
    }
    call.engine.select(from);
    let Some(entry) = call.engine.keyspace.get(from, from_hash, now) else {
        return reply!(call).integer(0);
    };
    let (value, encoding) = (entry.value.to_owned(), entry.encoding);
    let expiry = entry.expires_at.map_or(Expiry::Never, Expiry::At);
    call.engine.select(to);
    if !replace && call.engine.keyspace.peek(to, to_hash, now).is_some() {
        return reply!(call).integer(0);
    }
    match call.engine.keyspace.set(to, to_hash, &value, expiry, encoding, now) {
        Ok(()) => reply!(call).integer(1),
        Err(error) => reply!(call).error(store_error(error)),
    }
}

/// `MOVE key db`: with one database, always a mistake.
pub fn move_key(call: &mut Call<'_>) {
    let refusal = match parse_database(call.args.at(2), &call.engine.config) {
        Ok(_) => "ERR source and destination objects are the same".into(),
        Err(refusal) => refusal,
    };
    refuse(call, &refusal);
}

fn parse_database(text: &[u8], config: &Config) -> Result<i64, Refusal> {
    let index = integer(text).ok_or(NOT_AN_INTEGER)?;
    if i32::try_from(index).is_err() {
        let (low, high) = (i32::MIN, i32::MAX);
        return Err(format!("ERR value is out of range, value must between {low} and {high}").into());
    }
    if !(0..config.databases as i64).contains(&index) {
        return Err("ERR DB index is out of range".into());
    }
    Ok(index)
}

/// Whether REPLACE was given. There is one database, so DB may only name it.
fn parse_copy_options(args: Args<'_>, config: &Config) -> Result<bool, Refusal> {
    let mut replace = false;
    let mut at = 3;
    while let Some(word) = args.get(at) {
        match args.get(at + 1) {
            _ if is_word(word, "REPLACE") => replace = true,
            Some(index) if is_word(word, "DB") => {
                parse_database(index, config)?;
                at += 1;
            }
            _ => return Err(SYNTAX_ERROR.into()),
        }
        at += 1;
    }
    Ok(replace)
}

// ----------------------------------------------------------------------------------------------- expiry

/// `EXPIRE key seconds [NX | XX | GT | LT]`
pub fn expire(call: &mut Call<'_>) {
    expire_with(call, Unit::Seconds, Base::Now);
}

/// `PEXPIRE key milliseconds [NX | XX | GT | LT]`
pub fn pexpire(call: &mut Call<'_>) {
    expire_with(call, Unit::Milliseconds, Base::Now);
}

/// `EXPIREAT key unix-seconds [NX | XX | GT | LT]`
pub fn expireat(call: &mut Call<'_>) {
    expire_with(call, Unit::Seconds, Base::Epoch);
}

/// `PEXPIREAT key unix-milliseconds [NX | XX | GT | LT]`
pub fn pexpireat(call: &mut Call<'_>) {
    expire_with(call, Unit::Milliseconds, Base::Epoch);
}

fn expire_with(call: &mut Call<'_>, unit: Unit, base: Base) {
    let conditions = match ExpireConditions::parse(call.args) {
        Ok(conditions) => conditions,
        Err(refusal) => {
            return reply!(call).error_bytes(&refusal);
        }
    };
    let Some(amount) = integer(call.args.at(2)) else {
        return refuse(call, NOT_AN_INTEGER);
    };
    let now_ms = call.now.unix_ms() as i64;
    let milliseconds = match unit {
        Unit::Seconds => amount.checked_mul(1000),
        Unit::Milliseconds => Some(amount),
    };
    let expires_at = milliseconds.and_then(|at| match base {
        Base::Now => at.checked_add(now_ms),
        Base::Epoch => Some(at),
    });
    let Some(expires_at) = expires_at else {
        return refuse(call, &invalid_expire_time(call.command.name));
    };
    let hash = call.hash(1);
    let key = call.args.at(1);
    let keyspace = &mut call.engine.keyspace;
    let mut reply = reply!(call);
    let Some(entry) = keyspace.peek(key, hash, call.now) else {
        return reply.integer(0);
    };
    let current = entry.expires_at.map(|at| at as i64);
    if !conditions.allow(current, expires_at) {
        return reply.integer(0);
    }
    if expires_at <= now_ms {
        keyspace.remove(key, hash, call.now);
        return reply.integer(1);
    }
    match keyspace.set_expiry(key, hash, Some(expires_at as u64), call.now) {
        Ok(found) => reply.integer(i64::from(found)),
        Err(error) => reply.error(store_error(error)),
    }
}

/// When EXPIRE may change what stands there. No expiry counts as one that never comes.
#[derive(Default)]
struct ExpireConditions {
    missing: bool,
    present: bool,
    later: bool,
    earlier: bool,
}

impl ExpireConditions {
    fn parse(args: Args<'_>) -> Result<ExpireConditions, Vec<u8>> {
        let mut conditions = ExpireConditions::default();
        for word in args.iter().skip(3) {
            let condition = match word {
                _ if is_word(word, "NX") => &mut conditions.missing,
                _ if is_word(word, "XX") => &mut conditions.present,
                _ if is_word(word, "GT") => &mut conditions.later,
                _ if is_word(word, "LT") => &mut conditions.earlier,
                _ => {
                    // Quoted as a C string, and Redis trims line ends off the end of a formatted error.
                    let mut refusal = [b"ERR Unsupported option ", c_string(word, usize::MAX)].concat();
                    while let Some(b'\r' | b'\n') = refusal.last() {
                        refusal.pop();
                    }
                    return Err(refusal);
                }
            };
            *condition = true;
        }
        let ExpireConditions { missing, present, later, earlier } = conditions;
        if missing && (present || later || earlier) {
            return Err(b"ERR NX and XX, GT or LT options at the same time are not compatible".to_vec());
        }
        if later && earlier {
            return Err(b"ERR GT and LT options at the same time are not compatible".to_vec());
        }
        Ok(conditions)
    }

    fn allow(&self, current: Option<i64>, new: i64) -> bool {
        !(self.missing && current.is_some()
            || self.present && current.is_none()
            || self.later && current.is_none_or(|current| new <= current)
            || self.earlier && current.is_some_and(|current| new >= current))
    }
}

/// `PERSIST key`
pub fn persist(call: &mut Call<'_>) {
    let hash = call.hash(1);
    let key = call.args.at(1);
    let keyspace = &mut call.engine.keyspace;
    let mut reply = reply!(call);
    let expires = keyspace.peek(key, hash, call.now).is_some_and(|entry| entry.expires_at.is_some());
    if !expires {
        return reply.integer(0);
    }
    match keyspace.set_expiry(key, hash, None, call.now) {
        Ok(found) => reply.integer(i64::from(found)),
        Err(error) => reply.error(store_error(error)),
    }
}

/// `TTL key`
pub fn ttl(call: &mut Call<'_>) {
    ttl_with(call, Unit::Seconds, Base::Now);
}

/// `PTTL key`
pub fn pttl(call: &mut Call<'_>) {
    ttl_with(call, Unit::Milliseconds, Base::Now);
}

/// `EXPIRETIME key`
pub fn expiretime(call: &mut Call<'_>) {
    ttl_with(call, Unit::Seconds, Base::Epoch);
}

/// `PEXPIRETIME key`
pub fn pexpiretime(call: &mut Call<'_>) {
    ttl_with(call, Unit::Milliseconds, Base::Epoch);
}

fn ttl_with(call: &mut Call<'_>, unit: Unit, base: Base) {
    let hash = call.hash(1);
    let expiry = call.engine.keyspace.peek(call.args.at(1), hash, call.now).map(|entry| entry.expires_at);
    count_lookup(&mut call.engine.keyspace, expiry.is_some());
    let answer = match expiry {
        None => -2,
        Some(None) => -1,
        Some(Some(expires_at)) => {
            let milliseconds = match base {
                Base::Now => (expires_at as i64 - call.now.unix_ms() as i64).max(0),
                Base::Epoch => expires_at as i64,
            };
            match unit {
                Unit::Milliseconds => milliseconds,
                // To the nearest second. Unsigned, for the greatest times would overflow.
                Unit::Seconds => ((milliseconds as u64 + 500) / 1000) as i64,
            }
        }
    };
    reply!(call).integer(answer);
}

// -------------------------------------------------------------------------------------------- iteration

/// `KEYS pattern`
pub fn keys(call: &mut Call<'_>) {
    let pattern = call.args.at(1);
    let all = pattern == b"*";
    let bytes_max = call.engine.config.output_buffer_max;
    let output = &mut call.session.output;
    let start = output.len();
    let mut count = 0;
    let now = call.now;
    call.engine.for_all(|shard| {
        shard.keyspace.scan(0, usize::MAX, now, &mut |key| {
            // Beyond the bound of the output buffer the connection is cut anyway: stop growing it.
            if output.len() - start <= bytes_max && (all || glob::matches(pattern, key, false)) {
                Reply::new(output, false).bulk(key);
                count += 1;
            }
        });
    });
    insert_array_header(&mut call.session.output, start, count);
    call.output_full();
}

/// `SCAN cursor [MATCH pattern] [COUNT count] [TYPE type]`
pub fn scan(call: &mut Call<'_>) {
    let Some(cursor) = parse_cursor(call.args.at(1)) else {
        return refuse(call, "ERR invalid cursor");
    };
    let options = match ScanOptions::parse(call.args) {
        Ok(options) => options,
        Err(refusal) => return refuse(call, &refusal),
    };
    let bytes_max = call.engine.config.output_buffer_max;
    let mut found = Vec::new();
    let mut count = 0;
    // A cursor names a shard, the remainder, and a place in it: shards are scanned one after the other.
    let shards = call.engine.fleet.place.count as u64;
    let (cursor, shard) = (cursor / shards, cursor % shards);
    let next = call.engine.keyspace.scan(cursor, options.count, call.now, &mut |key| {
        let matches = options.pattern.is_none_or(|pattern| glob::matches(pattern, key, false));
        if options.strings && matches && found.len() <= bytes_max {
            Reply::new(&mut found, false).bulk(key);
            count += 1;
        }
    });
    let next = match next {
        0 if shard + 1 == shards => 0,
        0 => shard + 1,
        next => next * shards + shard,
    };
    let mut reply = reply!(call);
    reply.array(2);
    reply.bulk(itoa::Buffer::new().format(next).as_bytes());
    reply.array(count);
    reply.raw(&found);
    call.output_full();
}

struct ScanOptions<'a> {
    count: usize,
    pattern: Option<&'a [u8]>,
    /// False where TYPE asked for something else; there are only strings.
    strings: bool,
}

impl<'a> ScanOptions<'a> {
    fn parse(args: Args<'a>) -> Result<ScanOptions<'a>, Refusal> {
        let mut options = ScanOptions { count: 10, pattern: None, strings: true };
        let mut at = 2;
        while let Some(word) = args.get(at) {
            let Some(value) = args.get(at + 1) else {
                return Err(SYNTAX_ERROR.into());
            };
            if is_word(word, "COUNT") {
                let count = integer(value).ok_or(NOT_AN_INTEGER)?;
                if count < 1 {
                    return Err(SYNTAX_ERROR.into());
                }
                options.count = count as usize;
            } else if is_word(word, "MATCH") {
                options.pattern = (value != b"*").then_some(value);
            } else if is_word(word, "TYPE") {
                options.strings = is_word(value, "string");
            } else {
                return Err(SYNTAX_ERROR.into());
            }
            at += 2;
        }
        Ok(options)
    }
}

/// A cursor as `strtoul` reads it, for that is what Redis does: a sign is taken, a minus negates, nothing at
/// all is zero, and a NUL ends the text.
pub(crate) fn parse_cursor(text: &[u8]) -> Option<u64> {
    let text = c_string(text, usize::MAX);
    let (negative, digits) = match text.split_first() {
        None => return Some(0),
        Some((b'-', digits)) => (true, digits),
        Some((b'+', digits)) => (false, digits),
        Some(_) => (false, text),
    };
    if digits.is_empty() {
        return None;
    }
    let value = digits.iter().try_fold(0u64, |value, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })?;
    Some(if negative { value.wrapping_neg() } else { value })
}

/// Puts an array header before elements already written from `start` on.
fn insert_array_header(output: &mut Vec<u8>, start: usize, count: usize) {
    let end = output.len();
    Reply::new(output, false).array(count);
    let header = output.len() - end;
    output[start..].rotate_right(header);
}

// ------------------------------------------------------------------------------------------------ OBJECT

/// `OBJECT ENCODING key`
pub fn object_encoding(call: &mut Call<'_>) {
    let hash = call.hash(2);
    let entry = call.engine.keyspace.peek(call.args.at(2), hash, call.now);
    let name = entry.map(|entry| encoding_name(entry.value, entry.encoding));
    count_lookup(&mut call.engine.keyspace, name.is_some());
    match name {
        Some(name) => reply!(call).bulk(name.as_bytes()),
        None => reply!(call).null(),
    }
}

/// The name Redis has for how it would hold this value.
pub(crate) fn encoding_name(value: &[u8], encoding: Encoding) -> &'static str {
    const EMBEDDED_BYTES_MAX: usize = 44;
    match encoding {
        Encoding::Raw => "raw",
        Encoding::Auto if integer(value).is_some() => "int",
        _ if value.len() <= EMBEDDED_BYTES_MAX => "embstr",
        _ => "raw",
    }
}

/// `OBJECT REFCOUNT key`: Redis shares the integers below ten thousand, unless eviction needs each object's
/// own access time.
pub fn object_refcount(call: &mut Call<'_>) {
    const SHARED_INTEGERS: i64 = 10_000;
    let hash = call.hash(2);
    let config = &call.engine.config;
    let needs_access_time = is_lru(config.maxmemory_policy) || is_lfu(config.maxmemory_policy);
    let shares = config.maxmemory == 0 || !needs_access_time;
    let is_shared = call.engine.keyspace.peek(call.args.at(2), hash, call.now).map(|entry| {
        shares
            && entry.encoding == Encoding::Auto
            && integer(entry.value).is_some_and(|value| (0..SHARED_INTEGERS).contains(&value))
    });
    count_lookup(&mut call.engine.keyspace, is_shared.is_some());
    match is_shared {
        Some(true) => reply!(call).integer(i64::from(i32::MAX)),
        Some(false) => reply!(call).integer(1),
        None => reply!(call).null(),
    }
}

/// `OBJECT IDLETIME key`
pub fn object_idletime(call: &mut Call<'_>) {
    let hash = call.hash(2);
    let counts_frequency = is_lfu(call.engine.config.maxmemory_policy);
    let idle = call.engine.keyspace.idle_seconds(call.args.at(2), hash, call.now);
    count_lookup(&mut call.engine.keyspace, idle.is_some());
    let mut reply = reply!(call);
    match idle {
        None => reply.null(),
        Some(_) if counts_frequency => reply.error(
            "ERR An LFU maxmemory policy is selected, idle time not tracked. Please note that when switching \
             between policies at runtime LRU and LFU data will take some time to adjust.",
        ),
        Some(seconds) => reply.integer(seconds as i64),
    }
}

/// `OBJECT FREQ key`
pub fn object_freq(call: &mut Call<'_>) {
    let hash = call.hash(2);
    let counts_frequency = is_lfu(call.engine.config.maxmemory_policy);
    let found = call.engine.keyspace.peek(call.args.at(2), hash, call.now).is_some();
    count_lookup(&mut call.engine.keyspace, found);
    let frequency = call.engine.keyspace.frequency(call.args.at(2), hash, call.now);
    let mut reply = reply!(call);
    if !found {
        reply.null();
    } else if !counts_frequency {
        reply.error(
            "ERR An LFU maxmemory policy is not selected, access frequency not tracked. Please note that when \
             switching between policies at runtime LRU and LFU data will take some time to adjust.",
        );
    } else {
        reply.integer(i64::from(frequency.unwrap_or(0)));
    }
}

/// `OBJECT HELP`
pub fn object_help(call: &mut Call<'_>) {
    call.help(&[
        "ENCODING <key>",
        "    Return the kind of internal representation used in order to store the value",
        "    associated with a <key>.",
        "FREQ <key>",
        "    Return the access frequency index of the <key>. The returned integer is",
        "    proportional to the logarithm of the recent access frequency of the key.",
        "IDLETIME <key>",
        "    Return the idle time of the <key>, that is the approximated number of",
        "    seconds elapsed since the last access to the key.",
        "REFCOUNT <key>",
        "    Return the number of references of the value associated with the specified",
        "    <key>.",
    ]);
}

fn is_lru(policy: EvictionPolicy) -> bool {
    matches!(policy, EvictionPolicy::AllKeysLru | EvictionPolicy::VolatileLru)
}

fn is_lfu(policy: EvictionPolicy) -> bool {
    matches!(policy, EvictionPolicy::AllKeysLfu | EvictionPolicy::VolatileLfu)
}

// ---------------------------------------------------------------------------------------------- flushing

/// `FLUSHDB [ASYNC | SYNC]`
pub fn flushdb(call: &mut Call<'_>) {
    let mode = call.args.get(1);
    let known = mode.is_none_or(|mode| is_word(mode, "SYNC") || is_word(mode, "ASYNC"));
    if call.args.len() > 2 || !known {
        return refuse(call, SYNTAX_ERROR);
    }
    let now = call.now;
    call.engine.for_all(|shard| {
        shard.keyspace.clear(now);
        shard.publish_totals();
    });
    reply!(call).ok();
}

/// `FLUSHALL [ASYNC | SYNC]`: there is one database.
pub fn flushall(call: &mut Call<'_>) {
    flushdb(call);
}
