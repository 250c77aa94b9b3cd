//! Replies: what a handler has to say, written as RESP2 or RESP3 at the end of the session's output.
//!
//! A [`Reply`] is a short-lived view over one output buffer. Nothing is checked against the number of elements
//! that were announced: a handler that says `array(2)` and writes three is a bug that the oracle tests find.
//! Error texts are cleaned of line ends here, because they often carry what the client sent.

use alloc::string::String;
use alloc::vec::Vec;

/// The longest length header: `$` + 20 digits + CRLF.
const HEADER_MAX: usize = 23;

/// Lengths below this have their whole header in a table; longer ones are formatted.
const HEADER_TABLE: usize = 1024;

/// `<length>\r\n` for every small length, padded to eight bytes, with its size in the last one.
static LENGTHS: [[u8; 8]; HEADER_TABLE] = {
    let mut table = [[0u8; 8]; HEADER_TABLE];
    let mut n = 0;
    while n < HEADER_TABLE {
        let digits = if n < 10 {
            1
        } else if n < 100 {
            2
        } else if n < 1000 {
            3
        } else {
            4
        };
        let (mut rest, mut at) = (n, digits);
        while at > 0 {
            at -= 1;
            table[n][at] = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        table[n][digits] = b'\r';
        table[n][digits + 1] = b'\n';
        table[n][7] = digits as u8 + 2;
        n += 1;
    }
    table
};

/// Writes one command's reply. Borrow it anew for each command: it is two words.
pub struct Reply<'a> {
    out: &'a mut Vec<u8>,
    resp3: bool,
}

impl<'a> Reply<'a> {
    /// A reply at the end of `out`.
    #[inline]
    pub fn new(out: &'a mut Vec<u8>, resp3: bool) -> Reply<'a> {
        Reply { out, resp3 }
    }

    /// Whether the client speaks RESP3.
    #[inline]
    pub fn is_resp3(&self) -> bool {
        self.resp3
    }

    /// `+text`
    pub fn simple(&mut self, text: &str) {
        self.out.reserve(text.len() + 3);
        self.out.push(b'+');
        self.out.extend_from_slice(text.as_bytes());
        self.out.extend_from_slice(b"\r\n");
    }

    /// `+OK`
    #[inline]
    pub fn ok(&mut self) {
        self.out.extend_from_slice(b"+OK\r\n");
    }

    /// `-text`; `text` starts with its code: `ERR …`, `WRONGPASS …`. Line ends inside become spaces.
    pub fn error(&mut self, text: &str) {
        self.error_bytes(text.as_bytes());
    }

    /// As [`error`](Self::error), for texts that quote bytes of the client.
    #[cold]
    pub fn error_bytes(&mut self, text: &[u8]) {
        self.out.reserve(text.len() + 3);
        self.out.push(b'-');
        self.out.extend(text.iter().map(|&byte| if byte == b'\r' || byte == b'\n' { b' ' } else { byte }));
        self.out.extend_from_slice(b"\r\n");
    }

    /// `:value`
    #[inline]
    pub fn integer(&mut self, value: i64) {
        self.header(b':', value);
    }

    /// `$length` and the bytes.
    #[inline]
    pub fn bulk(&mut self, bytes: &[u8]) {
        self.out.reserve(bytes.len() + HEADER_MAX + 2);
        self.header(b'$', bytes.len() as i64);
        self.out.extend_from_slice(bytes);
        self.out.extend_from_slice(b"\r\n");
    }

    /// An integer as a bulk string.
    pub fn bulk_integer(&mut self, value: i64) {
        self.bulk(itoa::Buffer::new().format(value).as_bytes());
    }

    /// No value: `$-1`, or `_` in RESP3.
    #[inline]
    pub fn null(&mut self) {
        self.out.extend_from_slice(if self.resp3 { b"_\r\n" } else { b"$-1\r\n" });
    }

    /// No array: `*-1`, or `_` in RESP3.
    pub fn null_array(&mut self) {
        self.out.extend_from_slice(if self.resp3 { b"_\r\n" } else { b"*-1\r\n" });
    }

    /// An array of `count` elements, which follow.
    #[inline]
    pub fn array(&mut self, count: usize) {
        self.header(b'*', count as i64);
    }

    /// A map of `pairs` pairs, which follow; in RESP2 a flat array.
    pub fn map(&mut self, pairs: usize) {
        if self.resp3 {
            self.header(b'%', pairs as i64);
        } else {
            self.header(b'*', pairs as i64 * 2);
        }
    }

    /// A set of `count` elements, which follow; in RESP2 an array.
    pub fn set(&mut self, count: usize) {
        self.header(if self.resp3 { b'~' } else { b'*' }, count as i64);
    }

    /// A push of `count` elements, which follow; in RESP2 an array.
    pub fn push(&mut self, count: usize) {
        self.header(if self.resp3 { b'>' } else { b'*' }, count as i64);
    }

    /// A floating-point number; in RESP2 a bulk string.
    pub fn double(&mut self, value: f64) {
        let text = if value.is_nan() {
            String::from("nan")
        } else if value.is_infinite() {
            String::from(if value > 0.0 { "inf" } else { "-inf" })
        } else {
            alloc::format!("{value}")
        };
        if self.resp3 {
            self.out.push(b',');
            self.out.extend_from_slice(text.as_bytes());
            self.out.extend_from_slice(b"\r\n");
        } else {
            self.bulk(text.as_bytes());
        }
    }

    /// `#t` or `#f`; in RESP2 1 or 0.
    pub fn boolean(&mut self, value: bool) {
        if self.resp3 {
            self.out.extend_from_slice(if value { b"#t\r\n" } else { b"#f\r\n" });
        } else {
            self.integer(i64::from(value));
        }
    }

    /// Text for people, with its three-letter format (`txt`); in RESP2 a bulk string.
    pub fn verbatim(&mut self, format: &str, text: &[u8]) {
        debug_assert_eq!(format.len(), 3);
        if self.resp3 {
            self.header(b'=', text.len() as i64 + 4);
            self.out.extend_from_slice(format.as_bytes());
            self.out.push(b':');
            self.out.extend_from_slice(text);
            self.out.extend_from_slice(b"\r\n");
        } else {
            self.bulk(text);
        }
    }

    /// Bytes that are already a reply, in the protocol this client speaks.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    #[inline]
    fn header(&mut self, kind: u8, value: i64) {
        if let Some(entry) = usize::try_from(value).ok().and_then(|at| LENGTHS.get(at)) {
            // One fixed-size store and a truncation: cheaper than a copy of unknown length.
            let mut bytes = [0u8; 8];
            bytes[0] = kind;
            bytes[1..].copy_from_slice(&entry[..7]);
            let end = self.out.len() + usize::from(entry[7]) + 1;
            self.out.extend_from_slice(&bytes);
            self.out.truncate(end);
        } else {
            self.out.reserve(HEADER_MAX);
            self.out.push(kind);
            self.out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
            self.out.extend_from_slice(b"\r\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(resp3: bool, write: impl Fn(&mut Reply<'_>)) -> String {
        let mut out = Vec::new();
        write(&mut Reply::new(&mut out, resp3));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn integers_and_lengths_are_the_same_from_the_table_and_formatted() {
        for value in [0, 1, 9, 10, 99, 100, 999, 1000, 1023, 1024, 99_999, i64::MAX, -1, i64::MIN] {
            assert_eq!(written(false, |reply| reply.integer(value)), format!(":{value}\r\n"));
        }
    }

    #[test]
    fn nulls_and_aggregates_follow_the_protocol_version() {
        assert_eq!(written(false, |reply| reply.null()), "$-1\r\n");
        assert_eq!(written(true, |reply| reply.null_array()), "_\r\n");
        assert_eq!(written(false, |reply| reply.map(2)), "*4\r\n");
        assert_eq!(written(true, |reply| reply.map(2)), "%2\r\n");
        assert_eq!(written(true, |reply| reply.verbatim("txt", b"hi")), "=6\r\ntxt:hi\r\n");
        assert_eq!(written(false, |reply| reply.verbatim("txt", b"hi")), "$2\r\nhi\r\n");
        assert_eq!(written(true, |reply| reply.double(1.5)), ",1.5\r\n");
    }

    #[test]
    fn an_error_cannot_forge_a_second_reply() {
        assert_eq!(written(false, |reply| reply.error("ERR a\r\n+OK")), "-ERR a  +OK\r\n");
    }
}
