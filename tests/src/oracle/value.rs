//! Replies as values: RESP2 and RESP3 parsed strictly, for the comparisons that bytes alone cannot make.

use std::fmt::Write;

/// One reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// `+`, `-`, `:`, `,`, `#`, `(` and the nulls: a type byte and the rest of the line.
    Line(u8, Vec<u8>),
    /// `$` and `=`: a type byte and the bytes.
    Bytes(u8, Vec<u8>),
    /// `*`, `~`, `>` and, with keys and values in turn, `%`.
    Items(u8, Vec<Value>),
}

/// Why bytes are not a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unparsed {
    /// The reply goes on.
    Incomplete,
    /// It never was one.
    Malformed,
}

impl Value {
    /// The first reply of `bytes`, and its length.
    pub fn parse(bytes: &[u8]) -> Result<(Value, usize), Unparsed> {
        let kind = *bytes.first().ok_or(Unparsed::Incomplete)?;
        let end = bytes.windows(2).position(|pair| pair == b"\r\n").ok_or(Unparsed::Incomplete)?;
        let line = &bytes[1..end];
        let body = end + 2;
        let length = || -> Result<usize, Unparsed> {
            let text = std::str::from_utf8(line).map_err(|_| Unparsed::Malformed)?;
            text.parse().map_err(|_| Unparsed::Malformed)
        };
        match kind {
            b'$' | b'*' if line == b"-1" => Ok((Value::Line(kind, line.to_vec()), body)),
            b'+' | b'-' | b':' | b',' | b'#' | b'(' | b'_' => Ok((Value::Line(kind, line.to_vec()), body)),
            b'$' | b'=' => {
                let length = length()?;
                let whole = bytes.get(body..body + length + 2).ok_or(Unparsed::Incomplete)?;
                if !whole.ends_with(b"\r\n") {
                    return Err(Unparsed::Malformed);
                }
                Ok((Value::Bytes(kind, whole[..length].to_vec()), body + length + 2))
            }
            b'*' | b'~' | b'>' | b'%' => {
                let count = length()? * if kind == b'%' { 2 } else { 1 };
                let mut items = Vec::new();
                let mut at = body;
                for _ in 0..count {
                    let (item, used) = Value::parse(&bytes[at..])?;
                    items.push(item);
                    at += used;
                }
                Ok((Value::Items(kind, items), at))
            }
            _ => Err(Unparsed::Malformed),
        }
    }

    /// All replies of `bytes`; an error tells how far they were replies.
    pub fn parse_all(mut bytes: &[u8]) -> Result<Vec<Value>, (Vec<Value>, Unparsed)> {
        let mut values = Vec::new();
        while !bytes.is_empty() {
            match Value::parse(bytes) {
                Ok((value, used)) => {
                    values.push(value);
                    bytes = &bytes[used..];
                }
                Err(error) => return Err((values, error)),
            }
        }
        Ok(values)
    }

    /// A message that answers no command, or confirms a subscription: a push in RESP3, in RESP2 an array that is only
    /// told from a reply by its first word.
    pub fn is_push(&self) -> bool {
        const WORDS: [&[u8]; 9] = [
            b"message",
            b"pmessage",
            b"smessage",
            b"subscribe",
            b"psubscribe",
            b"ssubscribe",
            b"unsubscribe",
            b"punsubscribe",
            b"sunsubscribe",
        ];
        match self {
            Value::Items(b'>', _) => true,
            Value::Items(b'*', items) if matches!(items.len(), 3 | 4) => {
                items[0].bytes().is_some_and(|word| WORDS.contains(&word))
            }
            _ => false,
        }
    }

    /// An error reply.
    pub fn is_error(&self) -> bool {
        matches!(self, Value::Line(b'-', _))
    }

    /// "No such thing", in either protocol.
    pub fn is_null(&self) -> bool {
        matches!(self, Value::Line(b'_', _))
            || matches!(self, Value::Line(b'$' | b'*', text) if text == b"-1")
    }

    /// The elements of an array, set, push or map.
    pub fn items(&self) -> Option<&[Value]> {
        match self {
            Value::Items(_, items) => Some(items),
            _ => None,
        }
    }

    /// The bytes of a bulk or verbatim string.
    pub fn bytes(&self) -> Option<&[u8]> {
        match self {
            Value::Bytes(_, bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The value of `:`.
    pub fn integer(&self) -> Option<i64> {
        match self {
            Value::Line(b':', text) => std::str::from_utf8(text).ok()?.parse().ok(),
            _ => None,
        }
    }

    /// The type byte.
    pub fn kind(&self) -> u8 {
        match self {
            Value::Line(kind, _) | Value::Bytes(kind, _) | Value::Items(kind, _) => *kind,
        }
    }

    /// For people: nested, shortened, with every byte that is not plain text escaped.
    pub fn show(&self) -> String {
        match self {
            Value::Line(kind, text) => format!("{}{}", *kind as char, show_bytes(text, 300)),
            Value::Bytes(b'$', bytes) => format!("\"{}\" ({} bytes)", show_bytes(bytes, 300), bytes.len()),
            Value::Bytes(kind, bytes) => format!("{}\"{}\"", *kind as char, show_bytes(bytes, 300)),
            Value::Items(kind, items) => {
                let shown: Vec<String> = items.iter().take(40).map(Value::show).collect();
                let more = if items.len() > 40 { ", …" } else { "" };
                format!("{}{}[{}{more}]", *kind as char, items.len(), shown.join(", "))
            }
        }
    }
}

/// Bytes for people: escaped and cut at `max`.
pub fn show_bytes(bytes: &[u8], max: usize) -> String {
    let mut text = String::new();
    for &byte in bytes.iter().take(max) {
        match byte {
            b'\r' => text.push_str("\\r"),
            b'\n' => text.push_str("\\n"),
            b'"' | b'\\' => {
                text.push('\\');
                text.push(byte as char);
            }
            b' '..=b'~' => text.push(byte as char),
            _ => write!(text, "\\x{byte:02x}").expect("writing to a String cannot fail"),
        }
    }
    if bytes.len() > max {
        write!(text, "… ({} bytes)", bytes.len()).expect("writing to a String cannot fail");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_reply_parses_and_every_prefix_is_incomplete() {
        let bytes = b"*3\r\n$2\r\nhi\r\n:5\r\n%1\r\n+a\r\n~2\r\n_\r\n=7\r\ntxt:abc\r\n";
        let (value, used) = Value::parse(bytes).unwrap();
        assert_eq!(used, bytes.len());
        assert_eq!(value.items().unwrap().len(), 3);
        for cut in 0..bytes.len() {
            assert_eq!(Value::parse(&bytes[..cut]), Err(Unparsed::Incomplete), "cut at {cut}");
        }
        assert_eq!(Value::parse(b"$2\r\nhixx"), Err(Unparsed::Malformed));
        assert_eq!(Value::parse(b"hello\r\n"), Err(Unparsed::Malformed));
        assert!(Value::parse(b"$-1\r\n").unwrap().0.is_null());
    }
}
