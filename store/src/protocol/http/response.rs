//! Response bytes: status lines, the fields every response has, problem documents.
//!
//! What does not change from one response to the next — a status line, the date of this second, the fields of
//! a 200 to GET — is kept as one block and copied; only ETag, length and body are formatted per request.

use alloc::borrow::Cow;
use alloc::string::String;
use alloc::vec::Vec;

use super::head::Persistence;
use crate::time::Now;

/// Why a request was refused, on its way to becoming an `application/problem+json` document (RFC 9457).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) status: u16,
    /// What was expected, what was found, what to try.
    pub(super) detail: Cow<'static, str>,
    /// Methods for `Allow`, with 405.
    pub(super) allow: Option<&'static str>,
    /// Further fields.
    pub(super) fields: Vec<(&'static str, String)>,
}

impl Problem {
    /// A refusal for this reason.
    pub(super) fn new(status: u16, detail: impl Into<Cow<'static, str>>) -> Problem {
        Problem { status, detail: detail.into(), allow: None, fields: Vec::new() }
    }
}

/// The first bytes of something a client sent, fit for a message: never long, never a control character.
pub(super) fn excerpt(bytes: &[u8]) -> String {
    const SHOWN_MAX: usize = 60;
    let mut text: String = bytes
        .iter()
        .take(SHOWN_MAX)
        .map(|&byte| if (b' '..=b'~').contains(&byte) { char::from(byte) } else { '.' })
        .collect();
    if bytes.len() > SHOWN_MAX {
        text.push_str("...");
    }
    text
}

/// The reason phrase of a status this server sends.
pub(super) fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        204 => "No Content",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "Unknown",
    }
}

/// `Date: ` + IMF-fixdate + CRLF.
const DATE_LINE_BYTES: usize = 6 + 29 + 2;
const GET_HEAD_BEFORE_DATE: &[u8] = b"HTTP/1.1 200 OK\r\n";
/// Values are opaque bytes: a browser must neither guess a type (a stored script would run as this origin's) nor
/// reuse them unasked.
const GET_HEAD_AFTER_DATE: &[u8] =
    b"Content-Type: application/octet-stream\r\nX-Content-Type-Options: nosniff\r\nCache-Control: no-cache\r\nETag: \"";
const GET_HEAD_BYTES: usize = GET_HEAD_BEFORE_DATE.len() + DATE_LINE_BYTES + GET_HEAD_AFTER_DATE.len();

/// The blocks that hold the date, written anew when the second changes.
#[derive(Debug)]
pub(super) struct DateBlocks {
    /// The Unix second the blocks show.
    second: u64,
    /// From the status line to the opening quote of the ETag.
    get_head: [u8; GET_HEAD_BYTES],
}

impl Default for DateBlocks {
    fn default() -> DateBlocks {
        let mut get_head = [0; GET_HEAD_BYTES];
        get_head[..GET_HEAD_BEFORE_DATE.len()].copy_from_slice(GET_HEAD_BEFORE_DATE);
        get_head[GET_HEAD_BEFORE_DATE.len() + DATE_LINE_BYTES..].copy_from_slice(GET_HEAD_AFTER_DATE);
        let mut blocks = DateBlocks { second: 0, get_head };
        blocks.write_date();
        blocks
    }
}

impl DateBlocks {
    /// Call once per batch of requests.
    pub(super) fn refresh(&mut self, now: Now) {
        let second = now.unix_us / 1_000_000;
        if second != self.second {
            self.second = second;
            self.write_date();
        }
    }

    /// Status line to ETag of a 200 to GET or HEAD.
    #[inline]
    pub(super) fn get_head(&self) -> &[u8; GET_HEAD_BYTES] {
        &self.get_head
    }

    fn date_line(&self) -> &[u8] {
        &self.get_head[GET_HEAD_BEFORE_DATE.len()..][..DATE_LINE_BYTES]
    }

    fn write_date(&mut self) {
        let line = &mut self.get_head[GET_HEAD_BEFORE_DATE.len()..][..DATE_LINE_BYTES];
        line[..6].copy_from_slice(b"Date: ");
        line[6..35].copy_from_slice(&imf_fixdate(self.second));
        line[35..].copy_from_slice(b"\r\n");
    }
}

/// RFC 9110, section 5.6.7: `Sun, 06 Nov 1994 08:49:37 GMT`.
fn imf_fixdate(unix_seconds: u64) -> [u8; 29] {
    const DAYS: [&[u8; 3]; 7] = [b"Thu", b"Fri", b"Sat", b"Sun", b"Mon", b"Tue", b"Wed"];
    const MONTHS: [&[u8; 3]; 12] =
        [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];
    let days = unix_seconds / 86_400;
    let (year, month, day) = civil_date(days);
    let second_of_day = unix_seconds % 86_400;
    let mut text = *b"Day, 00 Mon 0000 00:00:00 GMT";
    let mut two_digits = |at: usize, number: u64| {
        text[at] = b'0' + (number / 10 % 10) as u8;
        text[at + 1] = b'0' + (number % 10) as u8;
    };
    two_digits(5, day);
    two_digits(12, year / 100);
    two_digits(14, year);
    two_digits(17, second_of_day / 3600);
    two_digits(20, second_of_day / 60 % 60);
    two_digits(23, second_of_day % 60);
    text[..3].copy_from_slice(DAYS[(days % 7) as usize]);
    text[8..11].copy_from_slice(MONTHS[month as usize - 1]);
    text
}

/// Year, month (1..=12) and day (1..=31) of a day counted from 1970-01-01, in the Gregorian calendar.
fn civil_date(days: u64) -> (u64, u64, u64) {
    const DAYS_IN_400_YEARS: u64 = 146_097;
    const DAYS_TO_MARCH_1970: u64 = 719_468; // from 0000-03-01, so that leap days end a year
    let days = days + DAYS_TO_MARCH_1970;
    let (cycle, day) = (days / DAYS_IN_400_YEARS, days % DAYS_IN_400_YEARS);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (cycle * 400 + year + u64::from(month <= 2), month, day_of_month)
}

/// What stands around title, status and detail. The type `about:blank` says that the status is the type.
const PROBLEM_PARTS: [&[u8]; 4] =
    [b"{\"type\":\"about:blank\",\"title\":\"", b"\",\"status\":", b",\"detail\":\"", b"\"}"];

/// Writes one response: `begin`, any number of fields, then `body` or `no_content`.
pub(super) struct ResponseWriter<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> ResponseWriter<'a> {
    /// Status line and date.
    pub(super) fn begin(out: &'a mut Vec<u8>, dates: &DateBlocks, status: u16) -> ResponseWriter<'a> {
        out.extend_from_slice(b"HTTP/1.1 ");
        push_number(out, u64::from(status));
        out.push(b' ');
        out.extend_from_slice(reason(status).as_bytes());
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(dates.date_line());
        ResponseWriter { out }
    }

    pub(super) fn field(self, name: &str, value: &[u8]) -> Self {
        debug_assert!(!value.contains(&b'\r') && !value.contains(&b'\n'));
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b": ");
        self.out.extend_from_slice(value);
        self.out.extend_from_slice(b"\r\n");
        self
    }

    pub(super) fn etag(self, tag: &[u8; 16]) -> Self {
        self.out.extend_from_slice(b"ETag: \"");
        self.out.extend_from_slice(tag);
        self.out.extend_from_slice(b"\"\r\n");
        self
    }

    /// Ends a response that has content; `head_only` leaves the content out, not its length.
    pub(super) fn body(self, persistence: Persistence, body: &[u8], head_only: bool) {
        self.out.extend_from_slice(b"Content-Length: ");
        push_number(self.out, body.len() as u64);
        self.out.extend_from_slice(b"\r\n");
        push_connection(self.out, persistence);
        self.out.extend_from_slice(b"\r\n");
        if !head_only {
            self.out.extend_from_slice(body);
        }
    }

    /// Ends a response with a problem document, which is measured first and then written in place: a cache that
    /// is asked mostly for what it does not have answers 404 as often as 200.
    fn problem_document(self, problem: &Problem, persistence: Persistence, head_only: bool) {
        let title = reason(problem.status);
        let escapes = problem.detail.bytes().filter(|&byte| byte == b'"' || byte == b'\\').count();
        let length = PROBLEM_PARTS.iter().map(|part| part.len()).sum::<usize>()
            + title.len()
            + 3 // the status
            + problem.detail.len()
            + escapes;
        self.out.extend_from_slice(b"Content-Length: ");
        push_number(self.out, length as u64);
        self.out.extend_from_slice(b"\r\n");
        push_connection(self.out, persistence);
        self.out.extend_from_slice(b"\r\n");
        if head_only {
            return;
        }
        let start = self.out.len();
        self.out.extend_from_slice(PROBLEM_PARTS[0]);
        self.out.extend_from_slice(title.as_bytes());
        self.out.extend_from_slice(PROBLEM_PARTS[1]);
        push_number(self.out, u64::from(problem.status));
        self.out.extend_from_slice(PROBLEM_PARTS[2]);
        push_json_escaped(self.out, &problem.detail);
        self.out.extend_from_slice(PROBLEM_PARTS[3]);
        assert_eq!(self.out.len() - start, length, "a wrong length would be read as another response");
    }

    /// Ends the head of a response whose content ends with the connection.
    pub(super) fn endless(self) {
        push_connection(self.out, Persistence::Close);
        self.out.extend_from_slice(b"\r\n");
    }

    /// Ends a 204 or 304, which has neither content nor a length.
    pub(super) fn no_content(self, persistence: Persistence) {
        push_connection(self.out, persistence);
        self.out.extend_from_slice(b"\r\n");
    }
}

/// The Connection field, where there is something to say.
#[inline]
pub(super) fn push_connection(out: &mut Vec<u8>, persistence: Persistence) {
    match persistence {
        Persistence::KeepAlive => {}
        Persistence::KeepAliveAnnounced => out.extend_from_slice(b"Connection: keep-alive\r\n"),
        Persistence::Close => out.extend_from_slice(b"Connection: close\r\n"),
    }
}

/// Decimal digits.
#[inline]
pub(super) fn push_number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Sixteen hexadecimal digits: the text of an entity tag.
#[inline]
pub(super) fn etag_text(value: &[u8]) -> [u8; 16] {
    let hash = xxhash_rust::xxh3::xxh3_64(value);
    // Each nibble gets its own byte, then all sixteen become digits at once.
    let spread = |half: u32| {
        let mut x = u64::from(half);
        x = (x | x << 16) & 0x0000_ffff_0000_ffff;
        x = (x | x << 8) & 0x00ff_00ff_00ff_00ff;
        x = (x | x << 4) & 0x0f0f_0f0f_0f0f_0f0f;
        let above_nine = ((x + 0x0606_0606_0606_0606) >> 4) & 0x0101_0101_0101_0101;
        (x + 0x3030_3030_3030_3030 + above_nine * 0x27).to_be_bytes()
    };
    let mut text = [0; 16];
    text[..8].copy_from_slice(&spread((hash >> 32) as u32));
    text[8..].copy_from_slice(&spread(hash as u32));
    text
}

/// Adds a field to a response that stands in `out` from `start` on: behind the date, where every response has one.
pub(super) fn insert_field(out: &mut Vec<u8>, start: usize, name: &str, value: &[u8]) {
    let Some(line) = memchr::memchr(b'\n', &out[start..]) else { return };
    let at = start + line + 1 + DATE_LINE_BYTES;
    let field = [name.as_bytes(), b": ", value, b"\r\n"].concat();
    out.splice(at..at, field);
}

/// Answers with a problem document.
pub(super) fn write_problem(
    out: &mut Vec<u8>,
    dates: &DateBlocks,
    problem: &Problem,
    persistence: Persistence,
    head_only: bool,
) {
    let mut response = ResponseWriter::begin(out, dates, problem.status);
    match problem.status {
        401 => {
            response = response
                .field("WWW-Authenticate", b"Bearer realm=\"millrace\"")
                .field("WWW-Authenticate", b"Basic realm=\"millrace\", charset=\"UTF-8\"");
        }
        405 => response = response.field("Allow", problem.allow.unwrap_or_default().as_bytes()),
        // RFC 9110, section 15.5.16: says what would have been understood.
        415 => response = response.field("Accept-Encoding", b"identity"),
        503 => response = response.field("Retry-After", b"1"),
        _ => {}
    }
    for (name, value) in &problem.fields {
        response = response.field(name, value.as_bytes());
    }
    response
        .field("Content-Type", b"application/problem+json")
        .field("X-Content-Type-Options", b"nosniff")
        .field("Cache-Control", b"no-store")
        .problem_document(problem, persistence, head_only);
}

/// Appends `text` as the inside of a JSON string. What the server says about a client's bytes went through
/// [`excerpt`], so there are no control characters to escape.
fn push_json_escaped(out: &mut Vec<u8>, text: &str) {
    for byte in text.bytes() {
        debug_assert!(byte >= b' ');
        if byte == b'"' || byte == b'\\' {
            out.push(b'\\');
        }
        out.push(byte);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let cases: &[(u64, &[u8; 29])] = &[
            (0, b"Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777, b"Sun, 06 Nov 1994 08:49:37 GMT"),
            (951_782_399, b"Mon, 28 Feb 2000 23:59:59 GMT"),
            (951_782_400, b"Tue, 29 Feb 2000 00:00:00 GMT"),
            (951_868_800, b"Wed, 01 Mar 2000 00:00:00 GMT"),
            (1_767_225_599, b"Wed, 31 Dec 2025 23:59:59 GMT"),
            (4_107_542_400, b"Mon, 01 Mar 2100 00:00:00 GMT"),
        ];
        for &(second, text) in cases {
            assert_eq!(core::str::from_utf8(&imf_fixdate(second)), core::str::from_utf8(text), "{second}");
        }
    }

    #[test]
    fn etag_text_is_the_hash_in_hexadecimal() {
        for length in 0..200 {
            let value: Vec<u8> = (0..length).map(|index| (index * 7) as u8).collect();
            let expected = alloc::format!("{:016x}", xxhash_rust::xxh3::xxh3_64(&value));
            assert_eq!(core::str::from_utf8(&etag_text(&value)), Ok(expected.as_str()));
        }
    }

    #[test]
    fn json_strings_are_escaped() {
        let mut out = Vec::new();
        push_json_escaped(&mut out, "a\"b\\c\u{e9}");
        assert_eq!(out, "a\\\"b\\\\c\u{e9}".as_bytes());
    }
}
