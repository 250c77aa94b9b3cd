//! Requests as byte templates: what changes from one to the next is the key's digits and, where sizes vary, the data.

use super::{Protocol, WorkloadError, WorkloadOptions, resp_command};

/// What follows a part of a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// The data's length and so many bytes more, as decimal digits.
    Length(usize),
    /// The data.
    Data,
}

/// Constant bytes, where keys end in them, and what follows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    bytes: Vec<u8>,
    /// One past the last digit of each key in it.
    key_ends: Vec<usize>,
    fill: Option<Fill>,
}

/// One request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Template {
    /// One part where all sizes are alike.
    parts: Vec<Part>,
}

impl Template {
    /// Appends the request for a key with this data. Data of one size for all keys is part of the template already.
    #[inline]
    pub fn render(&self, key: u64, data: &[u8], out: &mut Vec<u8>) {
        for part in &self.parts {
            let start = out.len();
            out.extend_from_slice(&part.bytes);
            for end in &part.key_ends {
                write_digits(&mut out[start..start + end], key);
            }
            match part.fill {
                None => {}
                Some(Fill::Data) => out.extend_from_slice(data),
                Some(Fill::Length(more)) => push_number(out, (data.len() + more) as u64),
            }
        }
    }

    /// Whether the data's size matters to it.
    pub fn has_data(&self) -> bool {
        self.parts.iter().any(|part| part.fill.is_some())
    }
}

/// Puts a template together.
struct Builder<'a> {
    /// The data, where it is the same for every key.
    fixed: Option<&'a [u8]>,
    key: Vec<u8>,
    parts: Vec<Part>,
    current: Part,
}

impl<'a> Builder<'a> {
    fn new(options: &WorkloadOptions, fixed: Option<&'a [u8]>) -> Builder<'a> {
        let mut key = options.key_prefix.clone().into_bytes();
        key.resize(options.key_bytes.max(key.len()), b'0');
        Builder { fixed, key, parts: Vec::new(), current: Part::default() }
    }

    fn text(&mut self, text: &[u8]) -> &mut Self {
        self.current.bytes.extend_from_slice(text);
        self
    }

    fn key(&mut self) -> &mut Self {
        self.current.bytes.extend_from_slice(&self.key);
        self.current.key_ends.push(self.current.bytes.len());
        self
    }

    fn fill(&mut self, fill: Fill) -> &mut Self {
        match (self.fixed, fill) {
            (Some(data), Fill::Data) => self.current.bytes.extend_from_slice(data),
            (Some(data), Fill::Length(more)) => {
                push_number(&mut self.current.bytes, (data.len() + more) as u64)
            }
            (None, fill) => {
                let mut part = std::mem::take(&mut self.current);
                part.fill = Some(fill);
                self.parts.push(part);
            }
        }
        self
    }

    fn end(mut self) -> Template {
        if !self.current.bytes.is_empty() {
            self.parts.push(self.current);
        }
        Template { parts: self.parts }
    }

    /// `$LENGTH` and a word of RESP in which keys and data may stand.
    fn word(&mut self, word: &str) {
        let (mut constant, mut data) = (0, 0);
        let mut pieces = Vec::new();
        let mut rest = word;
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix("__key__") {
                constant += self.key.len();
                pieces.push((None, 'k'));
                rest = after;
            } else if let Some(after) = rest.strip_prefix("__data__") {
                data += 1;
                pieces.push((None, 'd'));
                rest = after;
            } else {
                let character = rest.chars().next().expect("not empty");
                constant += character.len_utf8();
                pieces.push((Some(character), 'c'));
                rest = &rest[character.len_utf8()..];
            }
        }
        self.text(b"$");
        match data {
            0 => push_number(&mut self.current.bytes, constant as u64),
            _ => {
                self.fill(Fill::Length(constant));
            }
        }
        self.text(b"\r\n");
        for (character, kind) in pieces {
            match kind {
                'k' => {
                    self.key();
                }
                'd' => {
                    self.fill(Fill::Data);
                }
                _ => {
                    let character = character.expect("a piece of text");
                    self.text(character.encode_utf8(&mut [0; 4]).as_bytes());
                }
            }
        }
        self.text(b"\r\n");
    }
}

/// Stores the data under the key, for ever or for a time.
pub fn set(options: &WorkloadOptions, fixed: Option<&[u8]>, ttl_ms: Option<u64>) -> Template {
    let mut builder = Builder::new(options, fixed);
    match options.protocol {
        Protocol::Resp => {
            let count = if ttl_ms.is_some() { 5 } else { 3 };
            builder.text(format!("*{count}\r\n").as_bytes());
            for word in ["SET", "__key__", "__data__"] {
                builder.word(word);
            }
            if let Some(ms) = ttl_ms {
                builder.word("PX");
                builder.word(&ms.to_string());
            }
        }
        Protocol::Memcache => {
            // Seconds, rounded up: 0 would mean for ever.
            let seconds = ttl_ms.map_or(0, |ms| ms.div_ceil(1_000));
            builder.text(b"set ").key().text(format!(" 0 {seconds} ").as_bytes());
            builder.fill(Fill::Length(0)).text(b"\r\n").fill(Fill::Data).text(b"\r\n");
        }
        Protocol::Http => {
            http_head(&mut builder, options, "PUT", ttl_ms);
            builder.text(b"Content-Length: ").fill(Fill::Length(0)).text(b"\r\n\r\n").fill(Fill::Data);
        }
    }
    builder.end()
}

/// Asks for the key.
pub fn get(options: &WorkloadOptions) -> Template {
    let mut builder = Builder::new(options, Some(b""));
    match options.protocol {
        Protocol::Resp => {
            builder.text(b"*2\r\n");
            builder.word("GET");
            builder.word("__key__");
        }
        Protocol::Memcache => {
            builder.text(b"get ").key().text(b"\r\n");
        }
        Protocol::Http => {
            http_head(&mut builder, options, "GET", None);
            builder.text(b"\r\n");
        }
    }
    builder.end()
}

/// Request line and Host field.
fn http_head(builder: &mut Builder<'_>, options: &WorkloadOptions, method: &str, ttl_ms: Option<u64>) {
    builder.text(format!("{method} ").as_bytes());
    match options.http_path.split_once("{key}") {
        Some((before, after)) => {
            builder.text(before.as_bytes()).key().text(after.as_bytes());
        }
        None => {
            builder.text(options.http_path.as_bytes());
        }
    }
    if let Some(ms) = ttl_ms {
        let joint = if options.http_path.contains('?') { '&' } else { '?' };
        builder.text(format!("{joint}ttl_ms={ms}").as_bytes());
    }
    builder.text(format!(" HTTP/1.1\r\nHost: {}\r\n", options.http_host).as_bytes());
    if let Some(password) = &options.password {
        builder.text(format!("Authorization: Bearer {password}\r\n").as_bytes());
    }
}

/// Any command of RESP or memcached, with `__key__` and `__data__` anywhere.
pub fn command(
    options: &WorkloadOptions,
    command: &str,
    fixed: Option<&[u8]>,
) -> Result<Template, WorkloadError> {
    let mut builder = Builder::new(options, fixed);
    let words: Vec<&str> = command.split_ascii_whitespace().collect();
    if words.is_empty() {
        return Err(WorkloadError("--command is empty".into()));
    }
    match options.protocol {
        Protocol::Resp => {
            builder.text(format!("*{}\r\n", words.len()).as_bytes());
            words.into_iter().for_each(|word| builder.word(word));
        }
        Protocol::Memcache => {
            if command.contains("__data__") {
                return Err(WorkloadError(
                    "a --command for memcached is one line, without __data__; --ratio has its set".into(),
                ));
            }
            for (index, word) in words.into_iter().enumerate() {
                builder.text(if index > 0 { b" " } else { b"" });
                match word.split_once("__key__") {
                    Some((before, after)) => {
                        builder.text(before.as_bytes()).key().text(after.as_bytes());
                    }
                    None => {
                        builder.text(word.as_bytes());
                    }
                }
            }
            builder.text(b"\r\n");
        }
        Protocol::Http => {
            return Err(WorkloadError(
                "--command is for RESP and memcached; an HTTP path is given by --http-path".into(),
            ));
        }
    }
    Ok(builder.end())
}

/// What a connection sends first, and how many replies that earns.
pub fn handshake(options: &WorkloadOptions) -> (Vec<u8>, u32) {
    let mut bytes = Vec::new();
    let mut replies = 0;
    if options.protocol == Protocol::Resp {
        let password = options.password.as_deref().map(str::as_bytes);
        match (options.resp_version, password) {
            (3, Some(password)) => resp_command(&[b"HELLO", b"3", b"AUTH", b"default", password], &mut bytes),
            (3, None) => resp_command(&[b"HELLO", b"3"], &mut bytes),
            (_, Some(password)) => resp_command(&[b"AUTH", password], &mut bytes),
            _ => return (bytes, 0),
        }
        replies = 1;
    }
    (bytes, replies)
}

fn push_number(out: &mut Vec<u8>, number: u64) {
    let mut digits = [b'0'; 20];
    write_digits(&mut digits, number);
    let length = number.checked_ilog10().unwrap_or(0) as usize + 1;
    out.extend_from_slice(&digits[20 - length..]);
}

const DIGIT_PAIRS: [[u8; 2]; 100] = {
    let mut pairs = [[0; 2]; 100];
    let mut value = 0;
    while value < 100 {
        pairs[value] = [b'0' + (value / 10) as u8, b'0' + (value % 10) as u8];
        value += 1;
    }
    pairs
};

/// Writes `value` so that it ends where `field` ends; what stands before are zeros already.
#[inline]
fn write_digits(field: &mut [u8], mut value: u64) {
    let mut end = field.len();
    while value >= 10 {
        field[end - 2..end].copy_from_slice(&DIGIT_PAIRS[(value % 100) as usize]);
        value /= 100;
        end -= 2;
    }
    if value > 0 {
        field[end - 1] = b'0' + value as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::options;
    use super::*;

    fn rendered(template: &Template, data: &[u8]) -> String {
        let mut out = b"earlier".to_vec();
        template.render(42, data, &mut out);
        String::from_utf8(out.split_off(7)).expect("text")
    }

    #[test]
    fn digits_are_written_over_zeros() {
        for value in [0, 1, 9, 10, 11, 99, 100, 101, 999, 1_000, 123_456, 10_000_000, 999_999_999_999] {
            let mut field = b"key:000000000000".to_vec();
            write_digits(&mut field, value);
            assert_eq!(String::from_utf8(field).expect("text"), format!("key:{value:012}"));
            let mut number = Vec::new();
            push_number(&mut number, value);
            assert_eq!(String::from_utf8(number).expect("text"), value.to_string());
        }
    }

    #[test]
    fn sizes_that_vary_give_the_same_bytes_as_fixed_ones() {
        for protocol in [Protocol::Resp, Protocol::Http, Protocol::Memcache] {
            let options = WorkloadOptions { protocol, ..options() };
            for ttl_ms in [None, Some(1_500)] {
                for data in [&b""[..], b"x", b"eleven byte"] {
                    let fixed = set(&options, Some(data), ttl_ms);
                    let varying = set(&options, None, ttl_ms);
                    assert!(varying.has_data() && !fixed.has_data());
                    assert_eq!(rendered(&fixed, b""), rendered(&varying, data), "{protocol:?}");
                }
            }
        }
        let options = options();
        let text = "EVAL a__data__b__key__ 1 __key__ __data__";
        let fixed = command(&options, text, Some(b"0123456789")).expect("valid");
        let varying = command(&options, text, None).expect("valid");
        assert_eq!(rendered(&fixed, b""), rendered(&varying, b"0123456789"));
        assert!(rendered(&varying, b"").contains("\r\n$18\r\nabkey:000000000042\r\n"));
    }

    #[test]
    fn ttls_are_in_the_words_of_each_protocol() {
        let set = |protocol| {
            rendered(&set(&WorkloadOptions { protocol, ..options() }, Some(b"abc"), Some(1_500)), b"")
        };
        assert!(set(Protocol::Resp).ends_with("$3\r\nabc\r\n$2\r\nPX\r\n$4\r\n1500\r\n"));
        assert_eq!(set(Protocol::Memcache), "set key:000000000042 0 2 3\r\nabc\r\n");
        assert!(set(Protocol::Http).starts_with("PUT /v1/keys/key:000000000042?ttl_ms=1500 HTTP/1.1\r\n"));
    }

    #[test]
    fn memcached_is_asked_in_its_own_words() {
        let options = WorkloadOptions { protocol: Protocol::Memcache, ..options() };
        assert_eq!(rendered(&get(&options), b""), "get key:000000000042\r\n");
        let incr = command(&options, "incr __key__ 1", Some(b"")).expect("valid");
        assert_eq!(rendered(&incr, b""), "incr key:000000000042 1\r\n");
        assert!(command(&options, "set __key__ 0 0 3 __data__", None).is_err());
    }
}
