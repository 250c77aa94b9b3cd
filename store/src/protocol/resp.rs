//! The request parser: RESP arrays of bulk strings, and inline commands as telnet users type them.
//!
//! A command that is wholly in the buffer is never copied: its arguments are [`Span`]s of the buffer it
//! arrived in. One that is not leaves a [`Partial`] behind, which remembers every argument found so far, so
//! that a huge MSET arriving in thousands of pieces is scanned once and not once per piece. The common shape
//! (lengths of up to five digits, all there) takes a short path that reads eight bytes at a
//! time; everything else, and every mistake, takes the long one, which follows Redis' rules to the letter,
//! including what it does *not* check: the byte after a `\r`, and the two bytes after a bulk string.
//!
//! Nothing is allocated for what a header promises, only for what has arrived.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Index;

/// A header line or an inline command that is longer than this without ending is an error.
pub const LINE_MAX: usize = 64 * 1024;

/// The most arguments one command can announce; Redis' own limit.
const ARGUMENTS_MAX: i64 = i32::MAX as i64;

/// The limits for a client that has not yet given the password.
const UNAUTHENTICATED_ARGUMENTS_MAX: i64 = 10;
const UNAUTHENTICATED_BULK_MAX: i64 = 16_384;

/// A stretch of a buffer. Input buffers are shorter than 4 GiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Where it starts.
    pub start: u32,
    /// How long it is.
    pub len: u32,
}

/// The arguments of one command, its name first: spans over one buffer.
#[derive(Clone, Copy)]
pub struct Args<'a> {
    buffer: &'a [u8],
    spans: &'a [Span],
}

impl<'a> Args<'a> {
    /// Arguments at `spans` of `buffer`.
    #[inline]
    pub fn new(buffer: &'a [u8], spans: &'a [Span]) -> Args<'a> {
        Args { buffer, spans }
    }

    /// How many, with the name.
    #[inline]
    #[allow(clippy::len_without_is_empty, reason = "a command has at least its name")]
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Argument `at`, for as long as the buffer lives. Panics where there is none, like an index.
    #[inline]
    pub fn at(&self, at: usize) -> &'a [u8] {
        let span = self.spans[at];
        let start = span.start as usize;
        &self.buffer[start..start + span.len as usize]
    }

    /// Argument `at`, if there is one.
    #[inline]
    pub fn get(&self, at: usize) -> Option<&'a [u8]> {
        (at < self.spans.len()).then(|| self.at(at))
    }

    /// The buffer, and where in it the name is.
    #[inline]
    pub(crate) fn name(&self) -> (&'a [u8], Span) {
        (self.buffer, self.spans[0])
    }

    /// All of them, the name first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &'a [u8]> + ExactSizeIterator + use<'a> {
        let buffer = self.buffer;
        self.spans.iter().map(move |span| &buffer[span.start as usize..][..span.len as usize])
    }

    /// The arguments from `from` on, over the same buffer.
    pub fn from(&self, from: usize) -> Args<'a> {
        Args { buffer: self.buffer, spans: &self.spans[from.min(self.spans.len())..] }
    }

    /// Bytes of all arguments together.
    pub fn bytes(&self) -> usize {
        self.spans.iter().map(|span| span.len as usize).sum()
    }
}

impl Index<usize> for Args<'_> {
    type Output = [u8];

    #[inline]
    fn index(&self, at: usize) -> &[u8] {
        self.at(at)
    }
}

/// Arguments that own their bytes: a command queued by MULTI, or one that did not come as RESP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnedArgs {
    bytes: Vec<u8>,
    spans: Vec<Span>,
}

impl OwnedArgs {
    /// No arguments yet.
    pub const fn new() -> OwnedArgs {
        OwnedArgs { bytes: Vec::new(), spans: Vec::new() }
    }

    /// Adds one at the end.
    pub fn push(&mut self, argument: &[u8]) {
        self.spans.push(Span { start: self.bytes.len() as u32, len: argument.len() as u32 });
        self.bytes.extend_from_slice(argument);
    }

    /// Forgets all of them and keeps the allocation.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.spans.clear();
    }

    /// A view for [`Call`](crate::command::Call).
    pub fn view(&self) -> Args<'_> {
        Args::new(&self.bytes, &self.spans)
    }

    /// What it allocates.
    pub fn capacity(&self) -> usize {
        self.bytes.capacity() + self.spans.capacity() * size_of::<Span>()
    }
}

impl From<Args<'_>> for OwnedArgs {
    fn from(args: Args<'_>) -> OwnedArgs {
        let mut owned =
            OwnedArgs { bytes: Vec::with_capacity(args.bytes()), spans: Vec::with_capacity(args.len()) };
        args.iter().for_each(|argument| owned.push(argument));
        owned
    }
}

/// What the limits depend on.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// `proto-max-bulk-len`
    pub bulk_max: u64,
    /// Until the client has given the password it may send only small commands.
    pub authenticated: bool,
}

/// A command of which a part has arrived. Offsets count from the command's first byte.
#[derive(Debug, Default)]
pub struct Partial {
    spans: Vec<Span>,
    /// Arguments still to come.
    remaining: u32,
    /// The length of the bulk string whose header was read and whose bytes are not all there.
    bulk_len: Option<u32>,
    /// Everything before is understood.
    position: usize,
}

impl Partial {
    /// What it allocates.
    pub fn capacity(&self) -> usize {
        size_of::<Partial>() + self.spans.capacity() * size_of::<Span>()
    }
}

/// Where the parser writes what it finds. One of these serves a whole batch of commands.
#[derive(Debug, Default)]
pub struct Found {
    /// The arguments of every command found, one command after the other.
    pub spans: Vec<Span>,
    /// The bytes that the spans of inline commands refer to: their quotes and escapes are resolved.
    pub inline: Vec<u8>,
}

/// The outcome of one [`parse`].
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A command whose spans are offsets into the buffer that was given.
    Command,
    /// A command whose spans are offsets into [`Found::inline`].
    Inline,
    /// More bytes are needed.
    Incomplete,
    /// The client broke the protocol; it hears this and is closed.
    Error(ProtocolError),
}

/// What is wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolError {
    /// 64 KiB of a `*` header without an end.
    MultibulkCountTooLong,
    /// `*` and no number, or one out of range.
    MultibulkLength,
    /// More than ten arguments before the password.
    UnauthenticatedMultibulkLength,
    /// 64 KiB of a `$` header without an end.
    BulkCountTooLong,
    /// An argument that does not start with `$`, and what it starts with.
    ExpectedDollar(u8),
    /// `$` and no number, or one out of range.
    BulkLength,
    /// An argument of more than 16 KiB before the password.
    UnauthenticatedBulkLength,
    /// 64 KiB of an inline command without an end.
    InlineTooLong,
    /// An inline command ends inside a quote, or goes on right behind one.
    UnbalancedQuotes,
}

impl ProtocolError {
    /// What the client is told, with the error code.
    pub fn text(self) -> Vec<u8> {
        let what = match self {
            ProtocolError::MultibulkCountTooLong => "too big mbulk count string",
            ProtocolError::MultibulkLength => "invalid multibulk length",
            ProtocolError::UnauthenticatedMultibulkLength => "unauthenticated multibulk length",
            ProtocolError::BulkCountTooLong => "too big bulk count string",
            ProtocolError::ExpectedDollar(_) => "expected '$', got '",
            ProtocolError::BulkLength => "invalid bulk length",
            ProtocolError::UnauthenticatedBulkLength => "unauthenticated bulk length",
            ProtocolError::InlineTooLong => "too big inline request",
            ProtocolError::UnbalancedQuotes => "unbalanced quotes in request",
        };
        let mut text = String::from("ERR Protocol error: ").into_bytes();
        text.extend_from_slice(what.as_bytes());
        if let ProtocolError::ExpectedDollar(byte) = self {
            text.extend_from_slice(&[byte, b'\'']);
        }
        text
    }
}

/// Finds the next command of `buffer` at `*at` and adds its arguments to `found`. On `Command` and `Inline`,
/// `*at` is behind it. On `Incomplete`, `*at` is where the incomplete command starts: the caller keeps the
/// bytes from there on, puts more behind them and calls again with `*at` at the same byte and the same
/// `partial`.
#[inline]
pub fn parse(
    buffer: &[u8],
    at: &mut usize,
    limits: Limits,
    partial: &mut Option<Box<Partial>>,
    found: &mut Found,
) -> Parsed {
    if partial.is_none()
        && let Some(end) = parse_short(buffer, *at, limits, &mut found.spans)
    {
        *at = end;
        return Parsed::Command;
    }
    parse_long(buffer, at, limits, partial, found)
}

/// The common shape: `*` and `$` headers of up to five digits and everything there. `None` leaves `spans` as
/// it was and says nothing: the long path finds out.
#[inline]
fn parse_short(buffer: &[u8], start: usize, limits: Limits, spans: &mut Vec<Span>) -> Option<usize> {
    let (count, size) = short_header(buffer.get(start..)?, b'*')?;
    if count == 0 || !limits.authenticated || limits.bulk_max < 100_000 {
        return None;
    }
    let before = spans.len();
    let mut at = start + size;
    for _ in 0..count {
        let header = buffer.get(at..).and_then(|rest| short_header(rest, b'$'));
        let Some((len, size)) = header.filter(|(len, size)| at + size + len + 2 <= buffer.len()) else {
            spans.truncate(before);
            return None;
        };
        at += size;
        spans.push(Span { start: at as u32, len: len as u32 });
        at += len + 2;
    }
    Some(at)
}

/// `<kind>`, one to five digits without a leading zero, `\r` and one more byte: the number and the size.
/// Needs eight bytes, which any bulk string of two bytes or more has.
#[inline]
fn short_header(bytes: &[u8], kind: u8) -> Option<(usize, usize)> {
    let head: &[u8; 8] = bytes.first_chunk()?;
    let digit = |byte: u8| usize::from(byte.wrapping_sub(b'0'));
    if head[0] != kind {
        return None;
    }
    let first = digit(head[1]);
    if head[2] == b'\r' {
        return (first < 10).then_some((first, 4));
    }
    let second = digit(head[2]);
    if first.wrapping_sub(1) >= 9 || second >= 10 {
        return None;
    }
    if head[3] == b'\r' {
        return Some((first * 10 + second, 5));
    }
    let mut value = first * 10 + second;
    for at in 3..6 {
        let next = digit(head[at]);
        if next >= 10 {
            return None;
        }
        value = value * 10 + next;
        if head[at + 1] == b'\r' {
            return Some((value, at + 3));
        }
    }
    None
}

/// Every shape, resumable, with Redis' own idea of what is an error and when.
#[inline(never)]
fn parse_long(
    buffer: &[u8],
    at: &mut usize,
    limits: Limits,
    partial: &mut Option<Box<Partial>>,
    found: &mut Found,
) -> Parsed {
    loop {
        if partial.is_none() {
            match buffer.get(*at) {
                None => return Parsed::Incomplete,
                Some(b'*') => {}
                Some(_) => match parse_inline(buffer, at, found) {
                    Some(parsed) => return parsed,
                    None => continue, // an empty line
                },
            }
            match multibulk_header(&buffer[*at..], limits) {
                Ok(Some((count, size))) if count <= 0 => *at += size, // nothing to do, as in Redis
                Ok(Some((count, size))) => {
                    *partial = Some(Box::new(Partial {
                        remaining: count as u32,
                        position: size,
                        ..Partial::default()
                    }));
                }
                Ok(None) => return Parsed::Incomplete,
                Err(error) => return Parsed::Error(error),
            }
        }
        let Some(state) = partial.as_deref_mut() else { continue };
        return match state.advance(&buffer[*at..], limits) {
            Ok(false) => Parsed::Incomplete,
            Ok(true) => {
                let base = *at as u32;
                found
                    .spans
                    .extend(state.spans.iter().map(|span| Span { start: span.start + base, len: span.len }));
                *at += state.position;
                *partial = None;
                Parsed::Command
            }
            Err(error) => {
                *partial = None;
                Parsed::Error(error)
            }
        };
    }
}

impl Partial {
    /// Reads on in `bytes`, which start at the command's first byte. `true`: the command is complete.
    fn advance(&mut self, bytes: &[u8], limits: Limits) -> Result<bool, ProtocolError> {
        while self.remaining > 0 {
            let len = match self.bulk_len {
                Some(len) => len,
                None => {
                    let Some((len, size)) = bulk_header(&bytes[self.position..], limits)? else {
                        return Ok(false);
                    };
                    self.position += size;
                    self.bulk_len = Some(len);
                    len
                }
            };
            if bytes.len() - self.position < len as usize + 2 {
                return Ok(false);
            }
            self.spans.push(Span { start: self.position as u32, len });
            self.position += len as usize + 2;
            self.bulk_len = None;
            self.remaining -= 1;
        }
        Ok(true)
    }
}

/// The number of arguments and the size of the header; `None`: not all there.
fn multibulk_header(bytes: &[u8], limits: Limits) -> Result<Option<(i64, usize)>, ProtocolError> {
    let Some(end) = line_end(bytes, b'\r') else {
        return if bytes.len() > LINE_MAX { Err(ProtocolError::MultibulkCountTooLong) } else { Ok(None) };
    };
    if end + 2 > bytes.len() {
        return Ok(None);
    }
    let count = parse_integer(&bytes[1..end])
        .filter(|&count| count <= ARGUMENTS_MAX)
        .ok_or(ProtocolError::MultibulkLength)?;
    if count > UNAUTHENTICATED_ARGUMENTS_MAX && !limits.authenticated {
        return Err(ProtocolError::UnauthenticatedMultibulkLength);
    }
    Ok(Some((count, end + 2)))
}

/// The length of the bulk string and the size of its header; `None`: not all there.
fn bulk_header(bytes: &[u8], limits: Limits) -> Result<Option<(u32, usize)>, ProtocolError> {
    let Some(end) = line_end(bytes, b'\r') else {
        return if bytes.len() > LINE_MAX { Err(ProtocolError::BulkCountTooLong) } else { Ok(None) };
    };
    if end + 2 > bytes.len() {
        return Ok(None);
    }
    if bytes[0] != b'$' {
        return Err(ProtocolError::ExpectedDollar(bytes[0]));
    }
    let len = parse_integer(&bytes[1..end])
        .filter(|&len| len >= 0 && len as u64 <= limits.bulk_max.min(u64::from(u32::MAX / 2)))
        .ok_or(ProtocolError::BulkLength)?;
    if len > UNAUTHENTICATED_BULK_MAX && !limits.authenticated {
        return Err(ProtocolError::UnauthenticatedBulkLength);
    }
    Ok(Some((len as u32, end + 2)))
}

/// Redis searches line ends with `strchr`: a zero byte before one hides it.
fn line_end(bytes: &[u8], end: u8) -> Option<usize> {
    memchr::memchr2(end, 0, bytes).filter(|&at| bytes[at] == end)
}

/// A decimal integer as Redis reads headers: an optional minus, no plus, no leading zeros, nothing else.
pub fn parse_integer(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    match digits {
        [] => return None,
        [b'0'] => return (!negative).then_some(0),
        [b'0', ..] => return None,
        _ => {}
    }
    let mut value: i64 = 0;
    for &byte in digits {
        let digit = i64::from(byte.wrapping_sub(b'0'));
        if digit > 9 {
            return None;
        }
        value = value.checked_mul(10)?;
        value = if negative { value.checked_sub(digit)? } else { value.checked_add(digit)? };
    }
    Some(value)
}

/// One inline command. `None`: an empty line was skipped.
fn parse_inline(buffer: &[u8], at: &mut usize, found: &mut Found) -> Option<Parsed> {
    let bytes = &buffer[*at..];
    let Some(end) = line_end(bytes, b'\n') else {
        let too_long = bytes.len() > LINE_MAX;
        return Some(if too_long { Parsed::Error(ProtocolError::InlineTooLong) } else { Parsed::Incomplete });
    };
    let line = bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]);
    let before = found.spans.len();
    if split_line(line, found).is_none() {
        found.spans.truncate(before);
        return Some(Parsed::Error(ProtocolError::UnbalancedQuotes));
    }
    *at += end + 1;
    (found.spans.len() > before).then_some(Parsed::Inline)
}

/// Splits a line into words as Redis does: `"…"` with escapes, `'…'` with only `\'`, quotes may start inside a
/// word, but behind a closing quote there must be space. `None`: they are not balanced.
fn split_line(line: &[u8], found: &mut Found) -> Option<()> {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c);
    let mut rest = line;
    loop {
        rest = &rest[rest.iter().take_while(|byte| is_space(byte)).count()..];
        if rest.is_empty() {
            return Some(());
        }
        let start = found.inline.len();
        loop {
            match rest {
                [] => break,
                [b' ' | b'\t' | b'\n' | b'\r', ..] => break,
                [b'"', tail @ ..] => {
                    rest = double_quoted(tail, &mut found.inline)?;
                    if !rest.first().is_none_or(is_space) {
                        return None;
                    }
                    break;
                }
                [b'\'', tail @ ..] => {
                    rest = single_quoted(tail, &mut found.inline)?;
                    if !rest.first().is_none_or(is_space) {
                        return None;
                    }
                    break;
                }
                [byte, tail @ ..] => {
                    found.inline.push(*byte);
                    rest = tail;
                }
            }
        }
        found.spans.push(Span { start: start as u32, len: (found.inline.len() - start) as u32 });
    }
}

/// Reads up to and over the closing `"`; returns what follows.
fn double_quoted<'a>(mut rest: &'a [u8], out: &mut Vec<u8>) -> Option<&'a [u8]> {
    let hex = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
    loop {
        match rest {
            [b'\\', b'x', high, low, tail @ ..] if hex(*high).is_some() && hex(*low).is_some() => {
                out.push(hex(*high)? * 16 + hex(*low)?);
                rest = tail;
            }
            [b'\\', escaped, tail @ ..] => {
                out.push(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 0x08,
                    b'a' => 0x07,
                    other => *other,
                });
                rest = tail;
            }
            [b'"', tail @ ..] => return Some(tail),
            [byte, tail @ ..] => {
                out.push(*byte);
                rest = tail;
            }
            [] => return None,
        }
    }
}

/// Reads up to and over the closing `'`; returns what follows.
fn single_quoted<'a>(mut rest: &'a [u8], out: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        match rest {
            [b'\\', b'\'', tail @ ..] => {
                out.push(b'\'');
                rest = tail;
            }
            [b'\'', tail @ ..] => return Some(tail),
            [byte, tail @ ..] => {
                out.push(*byte);
                rest = tail;
            }
            [] => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: Limits = Limits { bulk_max: 512 << 20, authenticated: true };

    /// Everything the parser finds in `input` when it arrives cut at `cuts`.
    fn commands(input: &[u8], cuts: &[usize], limits: Limits) -> (Vec<Vec<Vec<u8>>>, Option<ProtocolError>) {
        let (mut buffer, mut partial, mut commands) = (Vec::new(), None, Vec::new());
        let mut pieces: Vec<usize> = cuts.to_vec();
        pieces.push(input.len());
        let mut from = 0;
        for to in pieces {
            buffer.extend_from_slice(&input[from..to]);
            from = to;
            let mut at = 0;
            loop {
                let mut found = Found::default();
                match parse(&buffer, &mut at, limits, &mut partial, &mut found) {
                    Parsed::Incomplete => break,
                    Parsed::Error(error) => return (commands, Some(error)),
                    outcome => {
                        let source = if outcome == Parsed::Inline { &found.inline } else { &buffer };
                        let args = Args::new(source, &found.spans);
                        commands.push(args.iter().map(<[u8]>::to_vec).collect());
                    }
                }
            }
            buffer.drain(..at);
        }
        (commands, None)
    }

    #[test]
    fn every_split_finds_the_same_commands() {
        let long = "x".repeat(1500);
        let input = format!(
            "*2\r\n$3\r\nGET\r\n$1\r\na\r\n\r\nPING \"a\\x41\" 'b'\r\n*-1\r\n*0\r\n*3\r\n$3\r\nSET\r\n$0\r\n\r\n$1500\r\n{long}\r\n*1\r\n$4\r\nPING\r\n"
        );
        let whole = commands(input.as_bytes(), &[], OPEN);
        assert_eq!(whole.0.len(), 4);
        assert_eq!(whole.0[1], [b"PING".to_vec(), b"aA".to_vec(), b"b".to_vec()]);
        for cut in 0..=input.len() {
            assert_eq!(commands(input.as_bytes(), &[cut], OPEN), whole, "cut at {cut}");
        }
        let every: Vec<usize> = (1..input.len()).collect();
        assert_eq!(commands(input.as_bytes(), &every, OPEN), whole, "cut everywhere");
    }

    #[test]
    fn mistakes_get_redis_own_errors() {
        let unauthenticated = Limits { authenticated: false, ..OPEN };
        let error = |input: &[u8], limits| commands(input, &[], limits).1;
        assert_eq!(error(b"*2147483648\r\n", OPEN), Some(ProtocolError::MultibulkLength));
        assert_eq!(error(b"*x\r\n", OPEN), Some(ProtocolError::MultibulkLength));
        assert_eq!(error(b"*03\r\n", OPEN), Some(ProtocolError::MultibulkLength));
        assert_eq!(error(b"*1\r\n\r\r\n", OPEN), Some(ProtocolError::ExpectedDollar(b'\r')));
        assert_eq!(error(b"*1\r\n$-1\r\n", OPEN), Some(ProtocolError::BulkLength));
        assert_eq!(error(b"*1\r\n$03\r\nGET\r\n", OPEN), Some(ProtocolError::BulkLength));
        assert_eq!(error(b"*1\r\n$536870913\r\n", OPEN), Some(ProtocolError::BulkLength));
        assert_eq!(error(b"*1\r\n$536870912\r\n", OPEN), None);
        assert_eq!(error(b"*11\r\n", unauthenticated), Some(ProtocolError::UnauthenticatedMultibulkLength));
        assert_eq!(
            error(b"*1\r\n$16385\r\n", unauthenticated),
            Some(ProtocolError::UnauthenticatedBulkLength)
        );
        assert_eq!(error(b"PING \"a\r\n", OPEN), Some(ProtocolError::UnbalancedQuotes));
        assert_eq!(error(b"PING 'a''b'\r\n", OPEN), Some(ProtocolError::UnbalancedQuotes));
        let endless = vec![b'1'; LINE_MAX + 1];
        assert_eq!(error(&endless, OPEN), Some(ProtocolError::InlineTooLong));
        assert_eq!(error(&[b"*", &endless[..]].concat(), OPEN), Some(ProtocolError::MultibulkCountTooLong));
        let bulk = [b"*1\r\n$", &endless[..]].concat();
        assert_eq!(error(&bulk, OPEN), Some(ProtocolError::BulkCountTooLong));
    }

    #[test]
    fn a_zero_byte_hides_the_end_of_a_line_as_it_does_from_strchr() {
        assert_eq!(commands(b"PING a\0b\r\n", &[], OPEN), (Vec::new(), None));
        assert_eq!(commands(b"*1\0\r\n", &[], OPEN), (Vec::new(), None));
    }

    #[test]
    fn a_header_allocates_nothing_for_what_it_promises() {
        let (mut partial, mut found, mut at) = (None, Found::default(), 0);
        let outcome = parse(b"*2147483647\r\n$536870912\r\n", &mut at, OPEN, &mut partial, &mut found);
        assert_eq!(outcome, Parsed::Incomplete);
        assert_eq!(partial.unwrap().spans.capacity(), 0);
    }

    #[test]
    fn a_huge_command_in_small_pieces_is_scanned_once() {
        // Quadratic work would be 100 thousand arguments × 1,600 pieces; the position says it is not done.
        let mut input = b"*100001\r\n$4\r\nMSET\r\n".to_vec();
        (0..100_000).for_each(|_| input.extend_from_slice(b"$8\r\nabcdefgh\r\n"));
        let (mut partial, mut found, mut at) = (None, Found::default(), 0);
        let mut last = 0;
        for end in (1000..input.len()).step_by(1000) {
            assert_eq!(parse(&input[..end], &mut at, OPEN, &mut partial, &mut found), Parsed::Incomplete);
            let position = partial.as_ref().unwrap().position;
            assert!(position > last && end - position < 20, "understood up to {position} of {end}");
            last = position;
        }
        assert_eq!(parse(&input, &mut at, OPEN, &mut partial, &mut found), Parsed::Command);
        assert_eq!(found.spans.len(), 100_001);
    }
}
