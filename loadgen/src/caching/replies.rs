//! What a server says to a client that tracks: replies in order, and invalidations between them.
//!
//! Other than the scanner of a run, which only counts, it hands over what it found, and only what such a client is sent:
//! simple replies, numbers, values, nulls, and pushes of `invalidate`. Replies of other kinds are framed and handed over as
//! [`Reply::Other`]. It resumes at any byte.

use memchr::memchr;

/// No header is longer.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// No value is: those here are as large as `--value-size` says.
const BULK_BYTES_MAX: usize = 64 << 20;
/// Elements of a reply nested deeper than that are nobody's.
const DEPTH_MAX: usize = 8;

/// What arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// `+OK`, or another word.
    Simple(&'a [u8]),
    /// `-ERR …`.
    Error(&'a [u8]),
    /// A value.
    Value(&'a [u8]),
    /// There is none.
    Null,
    /// This key has changed.
    Invalidate(&'a [u8]),
    /// Every key has.
    InvalidateAll,
    /// A push of another kind.
    Push,
    /// A number, a map, whatever else.
    Other,
}

/// Bytes on their way to become replies.
#[derive(Debug, Default)]
pub struct Replies {
    /// What began in an earlier receive.
    kept: Vec<u8>,
}

/// Not all of it is there.
enum Stop {
    Incomplete,
    Garbage(String),
}

impl From<String> for Stop {
    fn from(text: String) -> Stop {
        Stop::Garbage(text)
    }
}

type Parsed<T> = Result<T, Stop>;

impl Replies {
    /// Takes the next bytes and hands over what they complete; `Err` says what cannot be a reply.
    pub fn take(&mut self, bytes: &[u8], mut found: impl FnMut(Reply<'_>)) -> Result<(), String> {
        let joined;
        let all = match self.kept.is_empty() {
            true => bytes,
            false => {
                self.kept.extend_from_slice(bytes);
                joined = std::mem::take(&mut self.kept);
                &joined[..]
            }
        };
        let mut rest = all;
        while !rest.is_empty() {
            match one(rest, &mut found) {
                Ok(after) => rest = after,
                Err(Stop::Incomplete) => {
                    self.kept = rest.to_vec();
                    return Ok(());
                }
                Err(Stop::Garbage(what)) => return Err(what),
            }
        }
        Ok(())
    }
}

/// The first whole reply or push, handed over; what follows it.
fn one<'a>(bytes: &'a [u8], found: &mut impl FnMut(Reply<'_>)) -> Parsed<&'a [u8]> {
    if bytes[0] != b'>' {
        let (reply, after) = element(bytes, 0)?;
        found(reply);
        return Ok(after);
    }
    let (count, mut rest) = number(bytes)?;
    let whole = skip(bytes, 0)?;
    if count < 1 {
        return Err(Stop::Garbage("a push without a kind".into()));
    }
    let (kind, after) = element(rest, 0)?;
    rest = after;
    let is_invalidate = matches!(kind, Reply::Value(b"invalidate") | Reply::Simple(b"invalidate"));
    if !(is_invalidate && count == 2) {
        found(Reply::Push);
        return Ok(whole);
    }
    if matches!(rest.first(), Some(b'_')) || rest.starts_with(b"*-1") {
        found(Reply::InvalidateAll);
        return Ok(whole);
    }
    let (keys, mut rest) = number(rest)?;
    for _ in 0..keys {
        let (key, after) = element(rest, 1)?;
        rest = after;
        match key {
            Reply::Value(key) | Reply::Simple(key) => found(Reply::Invalidate(key)),
            _ => return Err(Stop::Garbage("an invalidation of what is no key".into())),
        }
    }
    Ok(whole)
}

/// An element that is no push, and what follows it.
fn element(bytes: &[u8], depth: usize) -> Parsed<(Reply<'_>, &[u8])> {
    let (line, rest) = line(bytes)?;
    match line.first() {
        Some(b'+') => Ok((Reply::Simple(&line[1..]), rest)),
        Some(b'-') => Ok((Reply::Error(&line[1..]), rest)),
        Some(b'_') => Ok((Reply::Null, rest)),
        Some(b'$') => match number(bytes)?.0 {
            -1 => Ok((Reply::Null, rest)),
            length => {
                let length = usize::try_from(length).ok().filter(|length| *length <= BULK_BYTES_MAX);
                let length = length.ok_or_else(|| format!("a value of \"{}\"", line.escape_ascii()))?;
                let value = rest.get(..length).ok_or(Stop::Incomplete)?;
                let end = rest.get(length..length + 2).ok_or(Stop::Incomplete)?;
                if end != b"\r\n" {
                    return Err(Stop::Garbage("a value that is not followed by CRLF".into()));
                }
                Ok((Reply::Value(value), &rest[length + 2..]))
            }
        },
        _ => Ok((Reply::Other, skip(bytes, depth)?)),
    }
}

/// What follows an element of any kind.
fn skip(bytes: &[u8], depth: usize) -> Parsed<&[u8]> {
    if depth > DEPTH_MAX {
        return Err(Stop::Garbage("a reply that is nested too deep".into()));
    }
    let (line, rest) = line(bytes)?;
    let factor = match line.first() {
        Some(b':' | b',' | b'#' | b'(') => return Ok(rest),
        Some(b'*' | b'~' | b'>') => 1,
        Some(b'%') => 2,
        Some(b'=' | b'!') => {
            let length = usize::try_from(number(bytes)?.0).map_err(|_| "a length below zero".to_string())?;
            return rest.get(length.saturating_add(2)..).ok_or(Stop::Incomplete);
        }
        Some(b'+' | b'-' | b'_' | b'$') => return Ok(element(bytes, depth)?.1),
        _ => return Err(Stop::Garbage(format!("this is not RESP: \"{}\"", line.escape_ascii()))),
    };
    let mut rest = rest;
    for _ in 0..number(bytes)?.0.max(0) * factor {
        rest = skip(rest, depth + 1)?;
    }
    Ok(rest)
}

/// A header line without its end, and what follows.
fn line(bytes: &[u8]) -> Parsed<(&[u8], &[u8])> {
    let Some(end) = memchr(b'\n', &bytes[..bytes.len().min(LINE_BYTES_MAX)]) else {
        return match bytes.len() < LINE_BYTES_MAX {
            true => Err(Stop::Incomplete),
            false => Err(Stop::Garbage("a header of more than 64 KiB".into())),
        };
    };
    match bytes[..end].strip_suffix(b"\r") {
        Some(line) => Ok((line, &bytes[end + 1..])),
        None => Err(Stop::Garbage(format!("this is not RESP: \"{}\"", bytes[..end].escape_ascii()))),
    }
}

/// The number in a header, and what follows the header.
fn number(bytes: &[u8]) -> Parsed<(i64, &[u8])> {
    let (line, rest) = line(bytes)?;
    let text = std::str::from_utf8(&line[1..]).ok();
    let number = text.and_then(|text| text.parse::<i64>().ok()).filter(|number| *number < 1 << 32);
    number
        .map(|number| (number, rest))
        .ok_or_else(|| Stop::Garbage(format!("a length that is no number: \"{}\"", line.escape_ascii())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(stream: &[u8], cuts: &[usize]) -> Result<Vec<String>, String> {
        let (mut replies, mut texts, mut at) = (Replies::default(), Vec::new(), 0);
        for end in cuts.iter().copied().chain([stream.len()]) {
            replies.take(&stream[at..end], |reply| {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                texts.push(match reply {
                    Reply::Simple(word) => format!("simple {}", text(word)),
                    Reply::Error(word) => format!("error {}", text(word)),
                    Reply::Value(value) => format!("value {}", text(value)),
                    Reply::Invalidate(key) => format!("invalidate {}", text(key)),
                    other => format!("{other:?}"),
                });
            })?;
            at = end;
        }
        Ok(texts)
    }

    #[test]
    fn replies_and_invalidations_come_in_order_wherever_the_stream_is_cut() {
        let stream = b"%2\r\n+server\r\n+x\r\n$5\r\nproto\r\n:3\r\n+OK\r\n$3\r\nabc\r\n>2\r\n$10\r\ninvalidate\r\n*2\r\n$1\r\na\r\n\
            $1\r\nb\r\n$-1\r\n_\r\n>2\r\n+invalidate\r\n_\r\n>3\r\n$7\r\nmessage\r\n+c\r\n*1\r\n:5\r\n-ERR no\r\n=6\r\ntxt:ab\r\n:1\r\n";
        let expected = [
            "Other",
            "simple OK",
            "value abc",
            "invalidate a",
            "invalidate b",
            "Null",
            "Null",
            "InvalidateAll",
            "Push",
            "error ERR no",
            "Other",
            "Other",
        ];
        for cut in 0..=stream.len() {
            assert_eq!(texts(stream, &[cut]).expect("well-formed"), expected, "cut at {cut}");
        }
        let everywhere: Vec<usize> = (0..stream.len()).collect();
        assert_eq!(texts(stream, &everywhere).expect("well-formed"), expected);
    }

    #[test]
    fn what_is_no_reply_is_said() {
        for wrong in [
            &b"HTTP/1.1 200\r\n"[..],
            b"$x\r\n",
            b"$2\r\nokay\r\n",
            b">0\r\n",
            b"+OK\n",
            b">2\r\n+invalidate\r\n*1\r\n:5\r\n",
        ] {
            assert!(texts(wrong, &[]).is_err(), "{}", wrong.escape_ascii());
        }
        let deep = b"*1\r\n".repeat(40);
        assert!(texts(&deep, &[]).expect_err("too deep").contains("deep"));
    }
}
