//! Replies of memcached's text protocol: lines, and values between them.
//!
//! A reply is one line, but to a `get`: there it is any number of `VALUE key flags bytes` with their data, and `END`.

use super::{Garbage, LINE_BYTES_MAX, Notes, Tally, printable};
use memchr::memchr;

/// Longer values are garbage: no server under test sends them.
const VALUE_BYTES_MAX: u64 = 1 << 30;

/// Counts replies. See the module.
#[derive(Debug, Default)]
pub struct MemcacheScanner {
    /// Data of a value and its line end, still to come.
    left: u64,
    /// The last two bytes of it must be CRLF; the first of them may have come in an earlier receive.
    carriage_return: bool,
    /// A `VALUE` came: the `END` behind it is no miss.
    found: bool,
    /// The beginning of a line that was cut.
    partial: Vec<u8>,
    pub(super) notes: Notes,
}

/// Whether a reply says that something went wrong.
pub fn is_memcache_error(reply: &[u8]) -> bool {
    [&b"ERROR"[..], b"CLIENT_ERROR ", b"SERVER_ERROR "].iter().any(|word| reply.starts_with(word))
}

impl MemcacheScanner {
    pub(super) fn scan(&mut self, bytes: &[u8], tally: &mut Tally) -> Result<(), Garbage> {
        let mut rest = bytes;
        while !rest.is_empty() {
            self.begin();
            if self.left > 0 {
                rest = self.data(rest)?;
                continue;
            }
            let Some(end) = memchr(b'\n', rest) else {
                if self.partial.len() + rest.len() > LINE_BYTES_MAX {
                    return Err(Garbage(format!("a line of more than {LINE_BYTES_MAX} bytes")));
                }
                self.partial.extend_from_slice(rest);
                self.notes.capture(rest);
                return check_beginning(&self.partial);
            };
            let (line, after) = rest.split_at(end + 1);
            self.notes.capture(line);
            rest = after;
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
        }
        Ok(())
    }

    /// The reply that is to be picked out begins where the last one ended.
    #[inline]
    fn begin(&mut self) {
        let notes = &mut self.notes;
        if notes.capture.is_none() && notes.ordinal == notes.sample_at {
            notes.capture = Some(Vec::new());
        }
    }

    fn data<'b>(&mut self, bytes: &'b [u8]) -> Result<&'b [u8], Garbage> {
        let here = self.left.min(bytes.len() as u64) as usize;
        let (data, after) = bytes.split_at(here);
        self.notes.capture(data);
        for (index, byte) in data.iter().enumerate().skip(here.saturating_sub(2)) {
            match self.left - index as u64 {
                2 => self.carriage_return = *byte == b'\r',
                1 if !self.carriage_return || *byte != b'\n' => {
                    return Err(Garbage(format!(
                        "a value is not followed by CRLF: \"{}\"",
                        printable(data, 32)
                    )));
                }
                _ => {}
            }
        }
        self.left -= here as u64;
        Ok(after)
    }

    fn line(&mut self, line: &[u8], tally: &mut Tally) -> Result<(), Garbage> {
        let Some(text) = line.strip_suffix(b"\r\n") else {
            return Err(not_memcache(line));
        };
        if let Some(value) = text.strip_prefix(b"VALUE ") {
            let length =
                value.split(|byte| *byte == b' ').nth(2).and_then(|word| std::str::from_utf8(word).ok());
            let length =
                length.and_then(|word| word.parse::<u64>().ok()).filter(|length| *length <= VALUE_BYTES_MAX);
            let Some(length) = length else {
                return Err(Garbage(format!("a VALUE without its length: \"{}\"", printable(text, 48))));
            };
            self.found = true;
            self.left = length + 2;
            return Ok(());
        }
        check_beginning(line)?;
        let found = std::mem::take(&mut self.found);
        let is_null = (text == b"END" && !found) || text == b"NOT_FOUND";
        if is_memcache_error(text) {
            tally.errors += 1;
            self.notes.error(text);
        }
        tally.replies += 1;
        tally.nulls += u64::from(is_null);
        self.notes.complete();
        Ok(())
    }
}

/// Words of the protocol are capitals; numbers are the answers of incr and decr.
fn check_beginning(line: &[u8]) -> Result<(), Garbage> {
    let word = line.split(|byte| b" \r".contains(byte)).next().unwrap_or_default();
    let is_word = word.iter().all(|byte| byte.is_ascii_uppercase() || *byte == b'_');
    let is_number = word.iter().all(u8::is_ascii_digit);
    let known = word.len() <= 16 && (is_word || is_number) && !word.starts_with(b"HTTP");
    if known { Ok(()) } else { Err(not_memcache(line)) }
}

fn not_memcache(bytes: &[u8]) -> Garbage {
    Garbage(format!("this is not memcached's text protocol: \"{}\"", printable(bytes, 48)))
}

#[cfg(test)]
mod tests {
    use super::super::SAMPLE_EVERY;
    use super::*;

    const STREAM: &[u8] = b"STORED\r\nVALUE k 0 5\r\na\r\nbc\r\nEND\r\nEND\r\n17\r\nSERVER_ERROR out of memory\r\nNOT_FOUND\r\n\
        VALUE a 0 0\r\n\r\nVALUE b 0 1\r\nx\r\nEND\r\n";

    #[test]
    fn replies_are_counted_whatever_the_cut() {
        for cut in 0..STREAM.len() {
            for second in cut..STREAM.len() {
                let mut scanner = MemcacheScanner::default();
                let mut tally = Tally::default();
                for part in [&STREAM[..cut], &STREAM[cut..second], &STREAM[second..]] {
                    scanner.scan(part, &mut tally).unwrap_or_else(|error| panic!("{cut}, {second}: {error}"));
                }
                assert_eq!(tally, Tally { replies: 7, errors: 1, nulls: 2, pushes: 0 }, "{cut}, {second}");
                assert_eq!(scanner.notes.first_error.as_deref(), Some("SERVER_ERROR out of memory"));
            }
        }
    }

    #[test]
    fn a_reply_is_picked_out_whole() {
        let mut scanner = MemcacheScanner::default();
        let value = b"VALUE k 0 3\r\nabc\r\nEND\r\n";
        let mut samples = Vec::new();
        for part in value.repeat(SAMPLE_EVERY as usize).chunks(7) {
            scanner.scan(part, &mut Tally::default()).expect("well-formed");
            samples.extend(scanner.notes.sample.take());
        }
        assert_eq!(samples.len(), 1);
        assert_eq!((samples[0].ordinal, &samples[0].bytes[..]), (SAMPLE_EVERY / 2, &value[..]));
    }

    #[test]
    fn garbage_is_named() {
        let refused = |bytes: &[u8]| {
            let mut scanner = MemcacheScanner::default();
            scanner.scan(bytes, &mut Tally::default()).expect_err("must be refused").0
        };
        assert!(refused(b"-ERR unknown command\r\n").contains("not memcached"));
        assert!(refused(b"HTTP/1.1 400 Bad Request\r\n").contains("not memcached"));
        assert!(refused(b"$5\r").contains("not memcached"));
        assert!(refused(b"STORED\n").contains("not memcached"));
        assert!(refused(b"VALUE k 0 x\r\n").contains("without its length"));
        assert!(refused(b"VALUE k 0 2\r\nabcd\r\n").contains("not followed by CRLF"));
    }
}
