//! Counts complete replies in a byte stream without understanding them.
//!
//! A load generator reads far more than it needs to know: all that matters of most replies is where they end.
//! So RESP replies are framed, not parsed: one counter of elements still missing replaces the parse tree, and a
//! reply whose header is the same as the last one's is skipped in a single comparison. One reply in
//! [`SAMPLE_EVERY`] is copied out whole, for the client to check against what it asked for. Everything resumes
//! at any byte, because a receive can end anywhere.
//!
//! It never buffers payload bytes (samples apart) and never trusts a length: nothing is allocated by it.

mod memcache;

pub use memcache::{MemcacheScanner, is_memcache_error};
use memchr::memchr;
use memchr::memmem::Finder;
use std::fmt;

/// One reply in this many is handed out whole.
pub const SAMPLE_EVERY: u64 = 1024;
/// Header lines and HTTP heads longer than this are garbage.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// A sample is cut here.
const SAMPLE_BYTES_MAX: usize = 1 << 20;
/// Longer bulk strings are garbage: no server under test sends them.
const BULK_BYTES_MAX: i64 = 1 << 30;

/// What was counted. Replies include errors and nulls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Complete replies.
    pub replies: u64,
    /// Of these: RESP errors, HTTP status 400 and over except 404.
    pub errors: u64,
    /// Of these: null replies, HTTP 404. A GET that found nothing.
    pub nulls: u64,
    /// RESP3 pushes, HTTP 1xx: complete, but nobody's reply.
    pub pushes: u64,
}

/// Bytes that cannot be a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Garbage(pub String);

impl fmt::Display for Garbage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A whole reply, picked out for checking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Which reply since the last `restart`, from 0.
    pub ordinal: u64,
    /// All of it, up to a megabyte.
    pub bytes: Vec<u8>,
}

/// Any protocol's scanner.
#[derive(Debug)]
pub enum Scanner {
    /// RESP2 and RESP3: the framing is the same.
    Resp(RespScanner),
    /// HTTP/1.1 responses.
    Http(Box<HttpScanner>),
    /// Replies of memcached's text protocol.
    Memcache(Box<MemcacheScanner>),
}

impl Scanner {
    /// Takes the next bytes of the stream and adds what they complete to `tally`.
    #[inline]
    pub fn scan(&mut self, bytes: &[u8], tally: &mut Tally) -> Result<(), Garbage> {
        match self {
            Scanner::Resp(scanner) => scanner.scan(bytes, tally),
            Scanner::Http(scanner) => scanner.scan(bytes, tally),
            Scanner::Memcache(scanner) => scanner.scan(bytes, tally),
        }
    }

    /// Counts ordinals from zero again.
    pub fn restart(&mut self) {
        let notes = self.notes();
        notes.ordinal = 0;
        notes.sample_at = SAMPLE_EVERY / 2;
    }

    /// The reply picked out by the last `scan`, if any.
    #[inline]
    pub fn take_sample(&mut self) -> Option<Sample> {
        self.notes().sample.take()
    }

    /// The text of the first error reply.
    pub fn first_error(&mut self) -> Option<String> {
        self.notes().first_error.take()
    }

    fn notes(&mut self) -> &mut Notes {
        match self {
            Scanner::Resp(scanner) => &mut scanner.notes,
            Scanner::Http(scanner) => &mut scanner.notes,
            Scanner::Memcache(scanner) => &mut scanner.notes,
        }
    }
}

/// What all scanners keep beside their state.
#[derive(Debug)]
struct Notes {
    /// Replies completed since the last restart.
    ordinal: u64,
    /// The next reply to pick out.
    sample_at: u64,
    /// The bytes of the reply being picked out.
    capture: Option<Vec<u8>>,
    sample: Option<Sample>,
    first_error: Option<String>,
    error_seen: bool,
}

impl Default for Notes {
    fn default() -> Notes {
        Notes {
            ordinal: 0,
            // Not the first one: a first reply may be special, and half way is as good as any.
            sample_at: SAMPLE_EVERY / 2,
            capture: None,
            sample: None,
            first_error: None,
            error_seen: false,
        }
    }
}

impl Notes {
    fn capture(&mut self, bytes: &[u8]) {
        if let Some(capture) = &mut self.capture {
            let room = SAMPLE_BYTES_MAX - capture.len().min(SAMPLE_BYTES_MAX);
            capture.extend_from_slice(&bytes[..bytes.len().min(room)]);
        }
    }

    /// Throws away what was captured of something that turned out not to be a reply.
    fn uncapture(&mut self) {
        if let Some(capture) = &mut self.capture {
            capture.clear();
        }
    }

    fn complete(&mut self) {
        if let Some(bytes) = self.capture.take() {
            self.sample = Some(Sample { ordinal: self.ordinal, bytes });
            self.sample_at += SAMPLE_EVERY;
        }
        self.ordinal += 1;
    }

    fn error(&mut self, text: &[u8]) {
        if !self.error_seen {
            self.error_seen = true;
            self.first_error = Some(printable(text, 200));
        }
    }
}

/// Bytes for a person to read: what is not printable is escaped, what is long is cut.
pub fn printable(bytes: &[u8], limit: usize) -> String {
    let shown = &bytes[..bytes.len().min(limit)];
    let dots = if bytes.len() > limit { "…" } else { "" };
    format!("{}{dots}", shown.escape_ascii())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RespState {
    /// A type byte comes next.
    Start,
    /// A line began in an earlier receive; its bytes are in `partial`.
    Line,
    /// This many payload bytes are still to come, then CRLF.
    Payload(u64),
    /// The CR, then the LF, that end a payload.
    PayloadCr,
    PayloadLf,
}

/// Frames RESP2 and RESP3 replies. See the module.
#[derive(Debug)]
pub struct RespScanner {
    state: RespState,
    /// Elements still to come before the reply is complete; 0 between replies.
    missing: u64,
    /// The next line is the reply itself, not an element inside it.
    top: bool,
    push: bool,
    error: bool,
    null: bool,
    partial: Vec<u8>,
    /// The last reply's header, if it is at most eight bytes, as a little-endian word with its mask, and the
    /// whole reply's length. The usual reply looks like the one before.
    learned_word: u64,
    learned_mask: u64,
    learned_bytes: usize,
    notes: Notes,
}

impl Default for RespScanner {
    fn default() -> RespScanner {
        RespScanner {
            state: RespState::Start,
            missing: 0,
            top: false,
            push: false,
            error: false,
            null: false,
            partial: Vec::new(),
            learned_word: 0,
            learned_mask: 0,
            learned_bytes: 0,
            notes: Notes::default(),
        }
    }
}

impl RespScanner {
    fn scan(&mut self, bytes: &[u8], tally: &mut Tally) -> Result<(), Garbage> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.state {
                RespState::Start => {
                    if self.missing == 0 {
                        rest = self.skip_familiar(rest, tally);
                        if rest.is_empty() {
                            break;
                        }
                        self.begin_reply();
                    }
                    rest = self.take_line(rest, tally)?;
                }
                RespState::Line => rest = self.take_line(rest, tally)?,
                RespState::Payload(left) => {
                    let here = left.min(rest.len() as u64);
                    let (payload, after) = rest.split_at(here as usize);
                    self.notes.capture(payload);
                    rest = after;
                    self.state =
                        if here == left { RespState::PayloadCr } else { RespState::Payload(left - here) };
                }
                RespState::PayloadCr | RespState::PayloadLf => {
                    let (expected, next) = match self.state {
                        RespState::PayloadCr => (b'\r', RespState::PayloadLf),
                        _ => (b'\n', RespState::Start),
                    };
                    if rest[0] != expected {
                        return Err(Garbage(format!(
                            "a bulk string is not followed by CRLF but by \"{}\"",
                            printable(rest, 32)
                        )));
                    }
                    self.notes.capture(&rest[..1]);
                    rest = &rest[1..];
                    self.state = next;
                    if next == RespState::Start {
                        self.end_element(tally);
                    }
                }
            }
        }
        Ok(())
    }

    /// Skips whole replies that begin like the last one.
    #[inline]
    fn skip_familiar<'b>(&mut self, bytes: &'b [u8], tally: &mut Tally) -> &'b [u8] {
        let whole = self.learned_bytes;
        if whole == 0 {
            return bytes;
        }
        // The word is read whole, so the last eight bytes of a receive take the other way; so does the reply
        // that is to be picked out.
        let limit = self.notes.sample_at.saturating_sub(self.notes.ordinal);
        let mut count = 0;
        let mut at = 0;
        while count < limit && bytes.len() - at >= whole.max(8) {
            let word = u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
            if word & self.learned_mask != self.learned_word || bytes[at + whole - 2..at + whole] != *b"\r\n"
            {
                break;
            }
            at += whole;
            count += 1;
        }
        self.notes.ordinal += count;
        tally.replies += count;
        &bytes[at..]
    }

    fn learn(&mut self, header: &[u8], whole: usize) {
        let mut word = [0; 8];
        let mut mask = [0; 8];
        word[..header.len()].copy_from_slice(header);
        mask[..header.len()].fill(0xff);
        self.learned_word = u64::from_le_bytes(word);
        self.learned_mask = u64::from_le_bytes(mask);
        self.learned_bytes = whole;
    }

    #[inline]
    fn begin_reply(&mut self) {
        self.missing = 1;
        self.top = true;
        self.push = false;
        self.error = false;
        self.null = false;
        if self.notes.ordinal == self.notes.sample_at {
            self.notes.capture = Some(Vec::new());
        }
    }

    fn take_line<'b>(&mut self, bytes: &'b [u8], tally: &mut Tally) -> Result<&'b [u8], Garbage> {
        let Some(end) = memchr(b'\n', bytes) else {
            if self.partial.len() + bytes.len() > LINE_BYTES_MAX {
                return Err(Garbage(format!(
                    "a line of more than {LINE_BYTES_MAX} bytes: \"{}\"",
                    printable(&self.partial, 32)
                )));
            }
            // Recognise what is no RESP at all by its first byte, rather than wait for a line end.
            if self.partial.is_empty() && !b"$+-:*_#,(!=%~>|".contains(&bytes[0]) {
                return Err(not_resp(bytes));
            }
            self.partial.extend_from_slice(bytes);
            self.state = RespState::Line;
            return Ok(&[]);
        };
        let (line, rest) = bytes.split_at(end + 1);
        self.notes.capture(&self.partial);
        self.notes.capture(line);
        self.state = RespState::Start;
        if self.partial.is_empty() {
            self.line(line, tally)?;
        } else {
            let mut whole = std::mem::take(&mut self.partial);
            whole.extend_from_slice(line);
            let result = self.line(&whole, tally);
            whole.clear();
            self.partial = whole;
            result?;
        }
        Ok(rest)
    }

    /// One whole line, with its CRLF.
    fn line(&mut self, line: &[u8], tally: &mut Tally) -> Result<(), Garbage> {
        let Some(text) = line.strip_suffix(b"\r\n") else {
            return Err(if b"$+-:*_#,(!=%~>|".contains(&line[0]) {
                Garbage(format!("a line ends in LF alone: \"{}\"", printable(line, 64)))
            } else {
                not_resp(line)
            });
        };
        let top = std::mem::replace(&mut self.top, false);
        match text.first() {
            Some(b'+') => {
                if top && !self.push && line.len() <= 8 {
                    self.learn(line, line.len());
                }
                self.end_element(tally);
            }
            Some(b':' | b',' | b'#' | b'(') => self.end_element(tally),
            Some(b'_') => {
                self.null |= top;
                self.end_element(tally);
            }
            Some(b'-') => {
                if top {
                    self.error = true;
                    self.notes.error(&text[1..]);
                }
                self.end_element(tally);
            }
            Some(b'$' | b'=' | b'!') => {
                let length = number(text)?;
                if length < 0 {
                    self.null |= top;
                    self.end_element(tally);
                } else if length > BULK_BYTES_MAX {
                    return Err(Garbage(format!("a bulk string of {length} bytes")));
                } else {
                    if text[0] == b'!' && top {
                        self.error = true;
                        self.notes.error(text);
                    } else if text[0] == b'$' && top && !self.push && line.len() <= 8 {
                        self.learn(line, line.len() + length as usize + 2);
                    }
                    self.state =
                        if length == 0 { RespState::PayloadCr } else { RespState::Payload(length as u64) };
                }
            }
            Some(b'*' | b'~') => self.aggregate(text, 1, top, tally)?,
            Some(b'%') => self.aggregate(text, 2, top, tally)?,
            Some(b'>') => {
                if top {
                    self.push = true;
                }
                self.aggregate(text, 1, top, tally)?;
            }
            Some(b'|') => {
                // Attributes come before the element they describe and do not count as one. Redis sends none
                // unasked, so what follows one is framed but not told apart (an error, a null).
                self.missing += 1;
                self.aggregate(text, 2, top, tally)?;
            }
            _ => return Err(not_resp(line)),
        }
        Ok(())
    }

    fn aggregate(&mut self, text: &[u8], factor: u64, top: bool, tally: &mut Tally) -> Result<(), Garbage> {
        let count = number(text)?;
        if count < 0 {
            self.null |= top;
        } else {
            let children = (count as u64).checked_mul(factor).filter(|children| *children < 1 << 40);
            let Some(children) = children else {
                return Err(Garbage(format!("an array of {count} elements")));
            };
            self.missing += children;
        }
        self.end_element(tally);
        Ok(())
    }

    #[inline]
    fn end_element(&mut self, tally: &mut Tally) {
        self.missing -= 1;
        if self.missing > 0 {
            return;
        }
        if self.push {
            tally.pushes += 1;
            // The reply that was to be picked out is still to come.
            self.notes.capture = None;
            return;
        }
        tally.replies += 1;
        tally.errors += u64::from(self.error);
        tally.nulls += u64::from(self.null);
        self.notes.complete();
    }
}

fn not_resp(bytes: &[u8]) -> Garbage {
    Garbage(format!("this is not RESP: \"{}\"", printable(bytes, 48)))
}

/// The decimal number after the type byte.
fn number(text: &[u8]) -> Result<i64, Garbage> {
    let digits = &text[1..];
    let (negative, digits) = match digits.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, digits),
    };
    if digits.is_empty() || digits.len() > 18 || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Garbage(format!("a length that is no number: \"{}\"", printable(text, 48))));
    }
    let value = digits.iter().fold(0, |value, digit| value * 10 + i64::from(digit - b'0'));
    Ok(if negative { -value } else { value })
}

/// A whole head or line, and what follows it; `None`: it has not all arrived.
type Taken<'b> = Result<Option<(Vec<u8>, &'b [u8])>, Garbage>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HttpState {
    Head,
    Body(u64),
    ChunkSize,
    /// Chunk bytes with their CRLF.
    Chunk(u64),
    Trailer,
}

/// Frames HTTP/1.1 responses on a connection that is kept alive. See the module.
#[derive(Debug)]
pub struct HttpScanner {
    state: HttpState,
    /// A head or a chunk line that began in an earlier receive.
    partial: Vec<u8>,
    status: u16,
    head_end: Finder<'static>,
    notes: Notes,
}

impl Default for HttpScanner {
    fn default() -> HttpScanner {
        HttpScanner {
            state: HttpState::Head,
            partial: Vec::new(),
            status: 0,
            head_end: Finder::new(b"\r\n\r\n"),
            notes: Notes::default(),
        }
    }
}

impl HttpScanner {
    fn scan(&mut self, bytes: &[u8], tally: &mut Tally) -> Result<(), Garbage> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.state {
                HttpState::Head => {
                    if self.partial.is_empty() && self.notes.ordinal == self.notes.sample_at {
                        self.notes.capture.get_or_insert_default();
                    }
                    let Some((head, after)) = self.take_until_head_end(rest)? else { return Ok(()) };
                    rest = after;
                    self.notes.capture(&head);
                    self.head(&head, tally)?;
                    self.recycle(head);
                }
                HttpState::Body(left) => {
                    let here = left.min(rest.len() as u64);
                    self.notes.capture(&rest[..here as usize]);
                    rest = &rest[here as usize..];
                    self.state = HttpState::Body(left - here);
                    if here == left {
                        self.end_response(tally);
                    }
                }
                HttpState::Chunk(left) => {
                    let here = left.min(rest.len() as u64);
                    self.notes.capture(&rest[..here as usize]);
                    rest = &rest[here as usize..];
                    self.state =
                        if here == left { HttpState::ChunkSize } else { HttpState::Chunk(left - here) };
                }
                HttpState::ChunkSize => {
                    let Some((line, after)) = self.take_line(rest)? else { return Ok(()) };
                    rest = after;
                    self.notes.capture(&line);
                    let size = chunk_size(&line)?;
                    self.state = if size == 0 { HttpState::Trailer } else { HttpState::Chunk(size + 2) };
                    self.recycle(line);
                }
                HttpState::Trailer => {
                    let Some((line, after)) = self.take_line(rest)? else { return Ok(()) };
                    rest = after;
                    self.notes.capture(&line);
                    let last = line == b"\r\n" || line == b"\n";
                    self.recycle(line);
                    if last {
                        self.end_response(tally);
                    }
                }
            }
        }
        Ok(())
    }

    fn recycle(&mut self, mut buffer: Vec<u8>) {
        buffer.clear();
        self.partial = buffer;
    }

    /// The head up to and with its empty line, if it is all there.
    fn take_until_head_end<'b>(&mut self, bytes: &'b [u8]) -> Taken<'b> {
        // The end may straddle the receives: look again at the last three bytes kept.
        let kept = self.partial.len();
        let check = (kept + bytes.len()).min(5);
        self.partial.extend_from_slice(&bytes[..bytes.len().min(LINE_BYTES_MAX)]);
        if !b"HTTP/".starts_with(&self.partial[..check]) {
            return Err(Garbage(format!("this is not HTTP: \"{}\"", printable(&self.partial, 48))));
        }
        let from = kept.saturating_sub(3);
        match self.head_end.find(&self.partial[from..]) {
            Some(at) => {
                let end = from + at + 4;
                self.partial.truncate(end);
                Ok(Some((std::mem::take(&mut self.partial), &bytes[end - kept..])))
            }
            None if self.partial.len() >= LINE_BYTES_MAX => {
                Err(Garbage(format!("a response head of more than {LINE_BYTES_MAX} bytes")))
            }
            None => Ok(None),
        }
    }

    fn take_line<'b>(&mut self, bytes: &'b [u8]) -> Taken<'b> {
        let end = memchr(b'\n', bytes).map_or(bytes.len(), |at| at + 1);
        self.partial.extend_from_slice(&bytes[..end]);
        if self.partial.len() > LINE_BYTES_MAX {
            return Err(Garbage("a chunk header of more than 64 KiB".into()));
        }
        if self.partial.last() != Some(&b'\n') {
            return Ok(None);
        }
        Ok(Some((std::mem::take(&mut self.partial), &bytes[end..])))
    }

    fn head(&mut self, head: &[u8], tally: &mut Tally) -> Result<(), Garbage> {
        let bad = |what: &str| Garbage(format!("{what} in \"{}\"", printable(head, 64)));
        let status = head.get(9..12).filter(|digits| digits.iter().all(u8::is_ascii_digit));
        let Some(status) = status else { return Err(bad("no status code")) };
        self.status = status.iter().fold(0, |value, digit| value * 10 + u16::from(digit - b'0'));
        if (100..200).contains(&self.status) {
            tally.pushes += 1;
            self.notes.uncapture();
            return Ok(());
        }
        let mut length = None;
        let mut chunked = false;
        let mut rest = head;
        while let Some(end) = memchr(b'\n', rest) {
            rest = &rest[end + 1..];
            match rest.first() {
                Some(b'c' | b'C') => {
                    if let Some(value) = header_value(rest, b"content-length:") {
                        let value = std::str::from_utf8(value).ok().and_then(|text| text.parse::<u64>().ok());
                        length = Some(value.ok_or_else(|| bad("a Content-Length that is no number"))?);
                    }
                }
                Some(b't' | b'T') => {
                    if let Some(value) = header_value(rest, b"transfer-encoding:") {
                        chunked = value.to_ascii_lowercase().ends_with(b"chunked");
                    }
                }
                _ => {}
            }
        }
        if self.status == 204 || self.status == 304 {
            self.end_response(tally);
        } else if chunked {
            self.state = HttpState::ChunkSize;
        } else {
            match length {
                Some(0) => self.end_response(tally),
                Some(length) => self.state = HttpState::Body(length),
                None => return Err(bad("neither Content-Length nor chunked encoding")),
            }
        }
        Ok(())
    }

    fn end_response(&mut self, tally: &mut Tally) {
        self.state = HttpState::Head;
        tally.replies += 1;
        if self.status == 404 {
            tally.nulls += 1;
        } else if self.status >= 400 {
            tally.errors += 1;
            self.notes.error(format!("HTTP status {}", self.status).as_bytes());
        }
        self.notes.complete();
    }
}

fn header_value<'b>(line: &'b [u8], name: &[u8]) -> Option<&'b [u8]> {
    let (start, rest) = line.split_at_checked(name.len())?;
    if !start.eq_ignore_ascii_case(name) {
        return None;
    }
    Some(rest[..memchr(b'\n', rest)?].trim_ascii())
}

fn chunk_size(line: &[u8]) -> Result<u64, Garbage> {
    let text = line.split(|byte| *byte == b';').next().unwrap_or(line).trim_ascii();
    let text = std::str::from_utf8(text).unwrap_or("?");
    match u64::from_str_radix(text, 16) {
        Ok(size) if size <= BULK_BYTES_MAX as u64 => Ok(size),
        _ => Err(Garbage(format!("a chunk size that is no number: \"{}\"", printable(line, 48)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resp() -> Scanner {
        Scanner::Resp(RespScanner::default())
    }

    fn http() -> Scanner {
        Scanner::Http(Box::default())
    }

    /// Scans `stream` whole, in two parts at every split, and byte by byte; all must count the same.
    fn check_every_split(make: fn() -> Scanner, stream: &[u8], expected: Tally) {
        for split in 0..=stream.len() {
            let mut scanner = make();
            let mut tally = Tally::default();
            for part in [&stream[..split], &stream[split..]] {
                scanner
                    .scan(part, &mut tally)
                    .unwrap_or_else(|garbage| panic!("split at {split}: {garbage}"));
            }
            assert_eq!(tally, expected, "split at {split} of {:?}", printable(stream, 400));
        }
        let mut scanner = make();
        let mut tally = Tally::default();
        for byte in stream {
            scanner.scan(&[*byte], &mut tally).expect("byte by byte");
        }
        assert_eq!(tally, expected, "byte by byte");
    }

    #[test]
    fn resp_replies_are_counted_at_every_split() {
        let stream = b"+OK\r\n+OK\r\n+OK\r\n$5\r\nhello\r\n$5\r\nworld\r\n$5\r\n\r\n\r\n+\r\n$0\r\n\r\n$-1\r\n:42\r\n-ERR no\r\n*2\r\n$1\r\na\r\n*1\r\n+b\r\n*0\r\n*-1\r\n+OK\r\n$5\r\nagain\r\n";
        check_every_split(resp, stream, Tally { replies: 15, errors: 1, nulls: 2, pushes: 0 });
    }

    #[test]
    fn resp3_types_and_pushes_are_counted_at_every_split() {
        let stream = b"_\r\n#t\r\n,1.5\r\n(12345678901234567890\r\n=6\r\ntxt:ab\r\n!5\r\nERR x\r\n%1\r\n+k\r\n~2\r\n:1\r\n:2\r\n>2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n|1\r\n+ttl\r\n:3\r\n$2\r\nok\r\n>2\r\n+invalidate\r\n_\r\n$2\r\nok\r\n*2\r\n|1\r\n+a\r\n+b\r\n:1\r\n-inner\r\n";
        check_every_split(resp, stream, Tally { replies: 10, errors: 1, nulls: 1, pushes: 2 });
    }

    #[test]
    fn a_familiar_header_with_a_wrong_end_is_not_skipped() {
        let mut tally = Tally::default();
        let mut scanner = resp();
        let error = scanner.scan(b"$2\r\nok\r\n$2\r\nokay\r\n$2\r\nok\r\n", &mut tally).unwrap_err();
        assert!(error.to_string().contains("not followed by CRLF"), "{error}");
        assert_eq!(tally.replies, 1);
    }

    #[test]
    fn what_is_not_resp_is_said_with_its_bytes() {
        for bytes in [&b"HTTP/1.1 400 Bad Request\r\n"[..], b"SSH-2.0", b"\x16\x03\x01", b"\r\n", b"\0"] {
            let error = resp().scan(bytes, &mut Tally::default()).unwrap_err();
            assert!(error.to_string().contains("not RESP"), "{error}");
        }
        for bytes in [&b"$x\r\n"[..], b"$\r\n", b"*9999999999999\r\n", b"$99999999999\r\n", b"+OK\n"] {
            assert!(resp().scan(bytes, &mut Tally::default()).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn http_responses_are_counted_at_every_split() {
        let stream = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nETag: \"x\"\r\n\r\nhelloHTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 404 Not Found\r\ncontent-length:0\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nA;x=y\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\nHTTP/1.1 503 Busy\r\nConnection: close\r\nCONTENT-LENGTH: 3\r\n\r\nno\n";
        check_every_split(http, stream, Tally { replies: 5, errors: 1, nulls: 1, pushes: 1 });
    }

    #[test]
    fn what_is_not_http_is_said_with_its_bytes() {
        for bytes in [
            &b"-ERR unknown command 'GET'\r\n"[..],
            b"HTP",
            b"HTTP/1.1 abc\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n\r\n",
        ] {
            assert!(http().scan(bytes, &mut Tally::default()).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn one_reply_in_many_is_handed_out_whole() {
        let reply = b"$3\r\nabc\r\n";
        let mut scanner = resp();
        let mut tally = Tally::default();
        let mut samples = Vec::new();
        let stream = reply.repeat(2000);
        for chunk in stream.chunks(1000) {
            scanner.scan(chunk, &mut tally).unwrap();
            samples.extend(scanner.take_sample());
        }
        assert_eq!(tally.replies, 2000);
        let ordinals: Vec<u64> = samples.iter().map(|sample| sample.ordinal).collect();
        assert_eq!(ordinals, [512, 1536]);
        assert!(samples.iter().all(|sample| sample.bytes == reply));
    }

    #[test]
    fn the_first_error_text_is_kept() {
        let mut scanner = resp();
        scanner
            .scan(b"+OK\r\n-NOAUTH Authentication required.\r\n-ERR x\r\n", &mut Tally::default())
            .unwrap();
        assert_eq!(scanner.first_error().as_deref(), Some("NOAUTH Authentication required."));
    }
}
