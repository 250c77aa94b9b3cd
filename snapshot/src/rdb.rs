//! Redis' dump format (RDB), as far as strings go: what stock Redis 7 wrote is read, and what is written here stock
//! Redis 7.0 loads.
//!
//! [`RdbReader`] is given chunks and asked for entries; it holds one entry and one chunk at a time, and no length
//! in the file makes it allocate what is not there. [`RdbWriter`] appends to a buffer that the caller empties.
//! The file's CRC-64 is checked at its end, so nothing that was read may be believed before
//! [`Step::End`]. A key that holds anything but a string is an error: leaving it out would be losing data.
//!
//! `docs/formats/rdb.md` says what is taken and what is not.

use alloc::borrow::Cow;
use alloc::vec::Vec;
use core::fmt;

use crc::{CRC_64_REDIS, Crc, Table};

/// The version that is written: Redis 7.0 reads it and all before it.
pub const VERSION: u32 = 10;
/// Versions that are read: from the first with a checksum (Redis 2.6) to Redis 7.2.
pub const VERSIONS_READ: core::ops::RangeInclusive<u32> = 5..=11;

const MAGIC: &[u8; 5] = b"REDIS";
const HEAD_BYTES: usize = 9;
const CHECKSUM_BYTES: usize = 8;
static CRC: Crc<u64, Table<16>> = Crc::<u64, Table<16>>::new(&CRC_64_REDIS);

/// What a byte between entries announces.
mod opcode {
    pub const FUNCTION_PRE_GA: u8 = 246;
    pub const FUNCTION2: u8 = 245;
    pub const MODULE_AUX: u8 = 247;
    pub const IDLE: u8 = 248;
    pub const FREQ: u8 = 249;
    pub const AUX: u8 = 250;
    pub const RESIZEDB: u8 = 251;
    pub const EXPIRETIME_MS: u8 = 252;
    pub const EXPIRETIME: u8 = 253;
    pub const SELECTDB: u8 = 254;
    pub const EOF: u8 = 255;
}

/// Types of values; of these, strings are read.
const TYPE_STRING: u8 = 0;

fn type_name(number: u8) -> &'static str {
    match number {
        1 | 10 | 14 | 18 => "list",
        2 | 11 | 20 => "set",
        3 | 5 | 12 | 17 => "sorted set",
        4 | 9 | 13 | 16 => "hash",
        6 | 7 => "module value",
        15 | 19 | 21 => "stream",
        _ => "value of an unknown type",
    }
}

/// What a reader takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RdbOptions {
    /// The database whose keys are wanted; those of others are left out and counted. `None`: the file must have
    /// keys in database 0 only. Millrace has one database.
    pub database: Option<u64>,
    /// No key or value is longer.
    pub string_bytes_max: usize,
}

impl Default for RdbOptions {
    /// Redis' own limit for a string.
    fn default() -> RdbOptions {
        RdbOptions { database: None, string_bytes_max: 512 << 20 }
    }
}

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RdbEntry {
    /// The key.
    pub key: Vec<u8>,
    /// Its value: an integer as its decimal text, a compressed string decompressed.
    pub value: Vec<u8>,
    /// When it ends, Unix time in milliseconds, not 0; perhaps already over.
    pub expires_at: Option<u64>,
}

/// What was in a file beside the entries that were returned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RdbSummary {
    /// Version of the format.
    pub version: u32,
    /// Entries returned.
    pub entries: u64,
    /// Entries of databases that were not wanted.
    pub left_out: u64,
    /// Libraries of functions, which are left out.
    pub functions: u64,
    /// False if the file was written with `rdbchecksum no`: nothing vouches for what it says.
    pub has_checksum: bool,
    /// Bytes of the file.
    pub bytes: u64,
}

/// What a reader says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// An entry. Not to be believed before the end.
    Entry(RdbEntry),
    /// More bytes are needed.
    NeedMore,
    /// The end, and the checksum was right.
    End(RdbSummary),
}

/// Why a file is not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RdbError {
    /// Where in the file.
    pub offset: u64,
    /// What is wrong there.
    pub problem: Problem,
}

/// What is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// It does not begin with `REDIS` and a version.
    NoRdb(Vec<u8>),
    /// A version that is not read.
    Version(u32),
    /// It ends in the middle.
    Cut,
    /// Bytes behind the end.
    Trailing,
    /// The checksum at the end is another.
    Checksum {
        /// What stands there.
        stored: u64,
        /// What the bytes give.
        computed: u64,
    },
    /// A length or an encoding that cannot be.
    Malformed(&'static str),
    /// A string longer than [`RdbOptions::string_bytes_max`].
    TooLong {
        /// Its length.
        length: u64,
        /// The limit.
        limit: usize,
    },
    /// A key that does not hold a string.
    Type {
        /// The key.
        key: Vec<u8>,
        /// The number of its type.
        number: u8,
    },
    /// A key in a database that Millrace does not have.
    Database {
        /// The key.
        key: Vec<u8>,
        /// The number of the database.
        database: u64,
    },
    /// Data of a module.
    Module,
}

impl fmt::Display for RdbError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at offset {}: ", self.offset)?;
        match &self.problem {
            Problem::NoRdb(found) => write!(
                f,
                "expected an RDB file, which begins with REDIS and four digits, found \"{}\"",
                found.escape_ascii()
            ),
            Problem::Version(found) => write!(
                f,
                "expected RDB version {} to {}, found {found}; save the data with Redis 7.0 or 7.2",
                VERSIONS_READ.start(),
                VERSIONS_READ.end()
            ),
            Problem::Cut => f.write_str("expected more, found the end of the file: it was cut"),
            Problem::Trailing => {
                f.write_str("expected the end of the file behind its checksum, found more bytes")
            }
            Problem::Checksum { stored, computed } => write!(
                f,
                "expected the checksum {stored:#018x} that stands there, found {computed:#018x}: the file is damaged"
            ),
            Problem::Malformed(expected) => {
                write!(f, "expected {expected}, found something else: the file is damaged")
            }
            Problem::TooLong { length, limit } => {
                write!(f, "expected strings of {limit} bytes at most, found one of {length}")
            }
            Problem::Type { key, number } => write!(
                f,
                "expected a string, found a {} (type {number}) under the key \"{}\"; Millrace holds strings only: remove \
                 such keys before saving",
                type_name(*number),
                key.escape_ascii()
            ),
            Problem::Database { key, database } => write!(
                f,
                "expected keys in database 0 only, found \"{}\" in database {database}; Millrace has one database: \
                 choose the one to take (--database N)",
                key.escape_ascii()
            ),
            Problem::Module => {
                f.write_str("expected no data of modules, found some; unload the module before saving")
            }
        }
    }
}

impl core::error::Error for RdbError {}

/// Why a parse of the buffer did not succeed.
enum Halt {
    Incomplete,
    Wrong(usize, Problem),
}

type Parsed<T> = Result<T, Halt>;

/// A position in the bytes at hand. Nothing is copied or decompressed before all of an item is there.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    limit: usize,
}

enum Length {
    Plain(u64),
    Encoded(u8),
}

/// A string where it lies.
enum Text<'a> {
    Raw(&'a [u8]),
    Integer(i32),
    Lzf { bytes: &'a [u8], length: usize, at: usize },
}

impl<'a> Cursor<'a> {
    fn wrong<T>(&self, at: usize, problem: Problem) -> Parsed<T> {
        Err(Halt::Wrong(at, problem))
    }

    fn take(&mut self, count: usize) -> Parsed<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let taken = rest.get(..count).ok_or(Halt::Incomplete)?;
        self.at += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Parsed<[u8; N]> {
        Ok(self.take(N)?.try_into().expect("as many as asked for"))
    }

    fn byte(&mut self) -> Parsed<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn any_length(&mut self) -> Parsed<Length> {
        let at = self.at;
        let first = self.byte()?;
        Ok(Length::Plain(match first >> 6 {
            0 => u64::from(first & 63),
            1 => u64::from(u16::from_be_bytes([first & 63, self.byte()?])),
            3 => return Ok(Length::Encoded(first & 63)),
            _ => match first {
                0x80 => u64::from(u32::from_be_bytes(self.array()?)),
                0x81 => u64::from_be_bytes(self.array()?),
                _ => return self.wrong(at, Problem::Malformed("a length")),
            },
        }))
    }

    fn length(&mut self) -> Parsed<u64> {
        let at = self.at;
        match self.any_length()? {
            Length::Plain(length) => Ok(length),
            Length::Encoded(_) => self.wrong(at, Problem::Malformed("a length")),
        }
    }

    /// A length of something that will have to be in memory.
    fn bounded(&mut self) -> Parsed<usize> {
        let at = self.at;
        let length = self.length()?;
        self.within(at, length)
    }

    fn within(&self, at: usize, length: u64) -> Parsed<usize> {
        match usize::try_from(length) {
            Ok(length) if length <= self.limit => Ok(length),
            _ => self.wrong(at, Problem::TooLong { length, limit: self.limit }),
        }
    }

    fn text(&mut self) -> Parsed<Text<'a>> {
        let at = self.at;
        Ok(match self.any_length()? {
            Length::Plain(length) => {
                let length = self.within(at, length)?;
                Text::Raw(self.take(length)?)
            }
            Length::Encoded(0) => Text::Integer(i32::from(i8::from_le_bytes(self.array()?))),
            Length::Encoded(1) => Text::Integer(i32::from(i16::from_le_bytes(self.array()?))),
            Length::Encoded(2) => Text::Integer(i32::from_le_bytes(self.array()?)),
            Length::Encoded(3) => {
                let (compressed, length) = (self.bounded()?, self.bounded()?);
                Text::Lzf { bytes: self.take(compressed)?, length, at }
            }
            Length::Encoded(_) => return self.wrong(at, Problem::Malformed("an encoding of a string")),
        })
    }
}

impl<'a> Text<'a> {
    fn decode(self) -> Parsed<Cow<'a, [u8]>> {
        match self {
            Text::Raw(bytes) => Ok(Cow::Borrowed(bytes)),
            Text::Integer(number) => Ok(Cow::Owned(alloc::format!("{number}").into_bytes())),
            Text::Lzf { bytes, length, at } => match decompress(bytes, length) {
                Some(text) => Ok(Cow::Owned(text)),
                None => Err(Halt::Wrong(at, Problem::Malformed("a string compressed with LZF"))),
            },
        }
    }
}

/// LZF: runs of literal bytes, and copies of what was written before. `None` unless it gives exactly `length`.
/// Memory grows with what is written, so a length alone claims none: three bytes give 264 at most.
fn decompress(mut bytes: &[u8], length: usize) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    while let Some((&control, rest)) = bytes.split_first() {
        let control = usize::from(control);
        if control < 32 {
            let (literal, rest) = rest.split_at_checked(control + 1)?;
            if literal.len() > length - out.len() {
                return None;
            }
            out.extend_from_slice(literal);
            bytes = rest;
            continue;
        }
        let mut rest = rest;
        let mut next = || {
            let (&byte, after) = rest.split_first()?;
            rest = after;
            Some(usize::from(byte))
        };
        let count = 2 + if control >> 5 == 7 { 7 + next()? } else { control >> 5 };
        let back = ((control & 31) << 8 | next()?) + 1;
        bytes = rest;
        let start = out.len().checked_sub(back)?;
        if count > length - out.len() {
            return None;
        }
        // What is copied may be what this copy writes.
        for at in start..start + count {
            out.push(out[at]);
        }
    }
    (out.len() == length).then_some(out)
}

/// What was read as a whole.
enum Item {
    Entry {
        key: Vec<u8>,
        value: Vec<u8>,
    },
    /// A string key of a database that is not wanted.
    LeftOut,
    ExpiresAt(u64),
    Database(u64),
    Function,
    Nothing,
    Eof,
}

/// Reads an RDB file.
#[derive(Debug)]
pub struct RdbReader {
    options: RdbOptions,
    buffer: Vec<u8>,
    /// Bytes of the buffer that were read.
    used: usize,
    crc: u64,
    is_complete: bool,
    database: u64,
    /// Of the entry that comes next.
    expires_at: Option<u64>,
    summary: RdbSummary,
    is_ended: bool,
}

impl RdbReader {
    /// A reader at the start of a file.
    pub fn new(options: RdbOptions) -> RdbReader {
        RdbReader {
            options,
            buffer: Vec::new(),
            used: 0,
            crc: 0,
            is_complete: false,
            database: 0,
            expires_at: None,
            summary: RdbSummary::default(),
            is_ended: false,
        }
    }

    /// The next bytes of the file.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.used);
        self.used = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// There are no more bytes.
    pub fn finish(&mut self) {
        self.is_complete = true;
    }

    /// Where in the file the reader is.
    pub fn offset(&self) -> u64 {
        self.summary.bytes
    }

    /// The next thing in the file. After an error or the end there is nothing more to ask.
    pub fn poll(&mut self) -> Result<Step, RdbError> {
        loop {
            let parsed = self.parse();
            match parsed {
                Ok((item, length)) => {
                    if let Some(step) = self.take(item, length)? {
                        return Ok(step);
                    }
                }
                Err(Halt::Wrong(at, problem)) => return Err(self.error(at, problem)),
                Err(Halt::Incomplete) if !self.is_complete => return Ok(Step::NeedMore),
                Err(Halt::Incomplete) => {
                    let rest = &self.buffer[self.used..];
                    // Another file is not called a cut one.
                    let is_other = self.summary.version == 0 && !rest.iter().zip(MAGIC).all(|(a, b)| a == b);
                    let problem = if is_other { Problem::NoRdb(rest.to_vec()) } else { Problem::Cut };
                    return Err(self.error(if is_other { 0 } else { rest.len() }, problem));
                }
            }
        }
    }

    fn error(&self, at: usize, problem: Problem) -> RdbError {
        RdbError { offset: self.summary.bytes + at as u64, problem }
    }

    /// The item at the front of the buffer, and its length.
    fn parse(&self) -> Parsed<(Item, usize)> {
        let mut cursor =
            Cursor { bytes: &self.buffer[self.used..], at: 0, limit: self.options.string_bytes_max };
        if self.is_ended {
            return match (cursor.bytes.is_empty(), self.is_complete) {
                (true, true) => Ok((Item::Eof, 0)),
                (true, false) => Err(Halt::Incomplete),
                (false, _) => cursor.wrong(0, Problem::Trailing),
            };
        }
        if self.summary.version == 0 {
            return head(&mut cursor).map(|()| (Item::Nothing, HEAD_BYTES));
        }
        let item = self.item(&mut cursor)?;
        Ok((item, cursor.at))
    }

    fn item(&self, cursor: &mut Cursor<'_>) -> Parsed<Item> {
        Ok(match cursor.byte()? {
            opcode::EOF => {
                cursor.take(CHECKSUM_BYTES)?;
                Item::Eof
            }
            opcode::SELECTDB => Item::Database(cursor.length()?),
            opcode::RESIZEDB => {
                cursor.length()?;
                cursor.length()?;
                Item::Nothing
            }
            opcode::AUX => {
                cursor.text()?;
                cursor.text()?;
                Item::Nothing
            }
            opcode::EXPIRETIME => {
                Item::ExpiresAt((u64::from(u32::from_le_bytes(cursor.array()?)) * 1000).max(1))
            }
            // The beginning of 1970 and what lies before it is over; 0 would be no end at all.
            opcode::EXPIRETIME_MS => {
                Item::ExpiresAt(u64::try_from(i64::from_le_bytes(cursor.array()?)).unwrap_or(0).max(1))
            }
            opcode::IDLE => {
                cursor.length()?;
                Item::Nothing
            }
            opcode::FREQ => {
                cursor.byte()?;
                Item::Nothing
            }
            opcode::FUNCTION2 => {
                cursor.text()?;
                Item::Function
            }
            opcode::MODULE_AUX => return cursor.wrong(0, Problem::Module),
            opcode::FUNCTION_PRE_GA => {
                return cursor.wrong(0, Problem::Malformed("no functions of a release candidate of Redis 7"));
            }
            number => self.entry(number, cursor)?,
        })
    }

    fn entry(&self, number: u8, cursor: &mut Cursor<'_>) -> Parsed<Item> {
        let key = cursor.text()?;
        if number != TYPE_STRING {
            let key = key.decode()?.into_owned();
            return cursor.wrong(0, Problem::Type { key, number });
        }
        let value = cursor.text()?;
        match self.options.database {
            Some(wanted) if wanted != self.database => return Ok(Item::LeftOut),
            None if self.database != 0 => {
                let key = key.decode()?.into_owned();
                return cursor.wrong(0, Problem::Database { key, database: self.database });
            }
            _ => {}
        }
        Ok(Item::Entry { key: key.decode()?.into_owned(), value: value.decode()?.into_owned() })
    }

    /// Goes on behind an item.
    fn take(&mut self, item: Item, length: usize) -> Result<Option<Step>, RdbError> {
        let bytes = &self.buffer[self.used..self.used + length];
        if matches!(item, Item::Eof) {
            if self.is_ended {
                return Ok(Some(Step::End(self.summary)));
            }
            let (opcode, stored) = bytes.split_at(1);
            self.crc = continued(self.crc, opcode);
            let stored = u64::from_le_bytes(stored.try_into().expect("eight bytes"));
            // Redis writes 0 where checksums are switched off.
            self.summary.has_checksum = stored != 0;
            if stored != 0 && stored != self.crc {
                return Err(self.error(1, Problem::Checksum { stored, computed: self.crc }));
            }
            self.is_ended = true;
        } else {
            if self.summary.version == 0 {
                self.summary.version = version(bytes).expect("it was looked at");
            }
            self.crc = continued(self.crc, bytes);
        }
        self.used += length;
        self.summary.bytes += length as u64;
        match item {
            Item::Entry { key, value } => {
                self.summary.entries += 1;
                return Ok(Some(Step::Entry(RdbEntry { key, value, expires_at: self.expires_at.take() })));
            }
            Item::LeftOut => {
                self.expires_at = None;
                self.summary.left_out += 1;
            }
            Item::ExpiresAt(at) => self.expires_at = Some(at),
            Item::Database(database) => self.database = database,
            Item::Function => self.summary.functions += 1,
            Item::Nothing | Item::Eof => {}
        }
        Ok(None)
    }
}

fn head(cursor: &mut Cursor<'_>) -> Parsed<()> {
    let bytes = cursor.take(HEAD_BYTES)?;
    match version(bytes) {
        Some(version) if VERSIONS_READ.contains(&version) => Ok(()),
        Some(version) => cursor.wrong(MAGIC.len(), Problem::Version(version)),
        None => cursor.wrong(0, Problem::NoRdb(bytes.to_vec())),
    }
}

fn version(head: &[u8]) -> Option<u32> {
    let digits = head.strip_prefix(MAGIC)?;
    let digits = core::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()))?;
    digits.parse().ok()
}

/// The CRC that `crc` is of, over more bytes. This one has neither a start value nor a final inversion.
fn continued(crc: u64, bytes: &[u8]) -> u64 {
    // The crate takes a start value as if it stood in the parameters, where it is reflected.
    let mut digest = CRC.digest_with_initial(crc.reverse_bits());
    digest.update(bytes);
    digest.finalize()
}

/// Writes an RDB file for Redis 7.0 or later. All of it goes to the caller's buffer.
#[derive(Debug, Default)]
pub struct RdbWriter {
    crc: u64,
}

impl RdbWriter {
    /// Begins a file: to `out` goes its head. `keys` and `expires` are how many keys there will be, and how many
    /// of them have an end; Redis makes room for as many.
    pub fn begin(out: &mut Vec<u8>, unix_seconds: u64, keys: u64, expires: u64) -> RdbWriter {
        let mut writer = RdbWriter { crc: 0 };
        let start = out.len();
        out.extend_from_slice(alloc::format!("REDIS{VERSION:04}").as_bytes());
        out.push(opcode::AUX);
        put_string(out, b"ctime");
        put_string(out, alloc::format!("{unix_seconds}").as_bytes());
        out.push(opcode::SELECTDB);
        put_length(out, 0);
        out.push(opcode::RESIZEDB);
        put_length(out, keys);
        put_length(out, expires);
        writer.crc = continued(writer.crc, &out[start..]);
        writer
    }

    /// A key, its value, and when it ends (Unix time in milliseconds).
    pub fn entry(&mut self, out: &mut Vec<u8>, key: &[u8], value: &[u8], expires_at: Option<u64>) {
        let start = out.len();
        if let Some(at) = expires_at {
            out.push(opcode::EXPIRETIME_MS);
            // Redis' times are signed.
            out.extend_from_slice(&at.min(i64::MAX as u64).to_le_bytes());
        }
        out.push(TYPE_STRING);
        put_string(out, key);
        put_string(out, value);
        self.crc = continued(self.crc, &out[start..]);
    }

    /// Ends the file.
    pub fn end(self, out: &mut Vec<u8>) {
        out.push(opcode::EOF);
        let crc = continued(self.crc, &[opcode::EOF]);
        out.extend_from_slice(&crc.to_le_bytes());
    }
}

fn put_string(out: &mut Vec<u8>, bytes: &[u8]) {
    put_length(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_length(out: &mut Vec<u8>, length: u64) {
    match length {
        0..64 => out.push(length as u8),
        64..16384 => out.extend_from_slice(&((1 << 14) | length as u16).to_be_bytes()),
        _ => match u32::try_from(length) {
            Ok(length) => {
                out.push(0x80);
                out.extend_from_slice(&length.to_be_bytes());
            }
            Err(_) => {
                out.push(0x81);
                out.extend_from_slice(&length.to_be_bytes());
            }
        },
    }
}
