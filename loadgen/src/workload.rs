//! What is asked: requests as byte templates in which only the key's digits change.
//!
//! Rendering a request is one copy and a few digits. Which operation the n-th request of a connection is follows
//! from n alone (`--ratio 1:10` is one SET, then ten GETs, as in memtier), so a reply picked out for checking can
//! be held against its question without a record of what was asked.

use crate::scan::{RespScanner, Scanner};
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng, RngExt};
use rand_distr::{Distribution, Zipf};
use serde::Serialize;

/// The protocol spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// RESP2, or RESP3 after HELLO.
    Resp,
    /// HTTP/1.1.
    Http,
}

/// What the flags say about requests.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WorkloadOptions {
    /// RESP or HTTP.
    pub protocol: Protocol,
    /// 2 or 3; 3 begins each connection with HELLO.
    pub resp_version: u8,
    /// SETs in one cycle.
    pub sets: u32,
    /// GETs in one cycle.
    pub gets: u32,
    /// Keys are drawn from this many.
    pub keys: u64,
    /// Bytes of a key: the prefix, then zero-padded digits.
    pub key_bytes: usize,
    /// What every key starts with.
    pub key_prefix: String,
    /// Bytes of a value.
    pub value_bytes: usize,
    /// Exponent of a Zipf distribution over the keys; `None`: uniform.
    pub theta: Option<f64>,
    /// A command instead of SET and GET, with `__key__` and `__data__`.
    pub command: Option<String>,
    /// Path of HTTP requests, with `{key}`.
    pub http_path: String,
    /// Host field of HTTP requests.
    pub http_host: String,
    /// Check the bytes of sampled values, not only their kind.
    pub verify: bool,
    /// AUTH on every connection.
    #[serde(skip)]
    pub password: Option<String>,
    /// Seed of keys and values.
    pub seed: u64,
}

/// What a reply must look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// `+OK`, or a 2xx status.
    Done,
    /// The value, or none.
    Value,
    /// Anything that is no error.
    Anything,
}

/// One request's bytes, and where its keys' last digits are.
#[derive(Clone, Debug)]
struct Template {
    bytes: Vec<u8>,
    /// One past the last digit of each key in it.
    key_ends: Vec<usize>,
    expected: Expected,
}

#[derive(Clone, Debug)]
enum KeyChoice {
    Uniform(u64),
    Zipf(Zipf<f64>),
    /// Every key once, in order: the prefill.
    Sequential(u64),
}

/// Makes requests.
#[derive(Clone, Debug)]
pub struct Workload {
    /// One cycle of operations, by index into `templates`.
    cycle: Vec<u8>,
    templates: Vec<Template>,
    keys: KeyChoice,
    random: Xoshiro256PlusPlus,
    value: Vec<u8>,
    verify: bool,
}

/// A workload that cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadError(pub String);

impl Workload {
    /// The workload the flags describe.
    pub fn new(options: &WorkloadOptions) -> Result<Workload, WorkloadError> {
        check_keys(options)?;
        let value = value(options);
        let mut templates = Vec::new();
        let mut cycle = Vec::new();
        if let Some(command) = &options.command {
            templates.push(command_template(options, command, &value)?);
            cycle.push(0);
        } else {
            if options.sets == 0 && options.gets == 0 {
                return Err(WorkloadError("--ratio 0:0 asks for nothing".into()));
            }
            if options.sets + options.gets > 100_000 {
                return Err(WorkloadError("--ratio has parts of more than 100000".into()));
            }
            templates.push(set_template(options, &value));
            templates.push(get_template(options));
            cycle.extend(std::iter::repeat_n(0, options.sets as usize));
            cycle.extend(std::iter::repeat_n(1, options.gets as usize));
        }
        let keys = match options.theta {
            None => KeyChoice::Uniform(options.keys),
            Some(theta) => KeyChoice::Zipf(
                Zipf::new(options.keys as f64, theta)
                    .map_err(|error| WorkloadError(format!("--theta {theta}: {error}")))?,
            ),
        };
        let random = Xoshiro256PlusPlus::seed_from_u64(options.seed ^ 0x6b65_7973);
        Ok(Workload { cycle, templates, keys, random, value, verify: options.verify })
    }

    /// Sets every key once.
    pub fn prefill(options: &WorkloadOptions) -> Result<Workload, WorkloadError> {
        check_keys(options)?;
        let value = value(options);
        Ok(Workload {
            cycle: vec![0],
            templates: vec![set_template(options, &value)],
            keys: KeyChoice::Sequential(0),
            random: Xoshiro256PlusPlus::seed_from_u64(options.seed),
            value,
            verify: false,
        })
    }

    /// Appends the `sequence`-th request of a connection.
    #[inline]
    pub fn render(&mut self, sequence: u64, out: &mut Vec<u8>) {
        let key = match &mut self.keys {
            // Multiply-shift: the bias of 2^-64·n is far below what a run could show.
            KeyChoice::Uniform(count) => {
                ((u128::from(self.random.next_u64()) * u128::from(*count)) >> 64) as u64
            }
            KeyChoice::Zipf(zipf) => zipf.sample(&mut self.random) as u64 - 1,
            KeyChoice::Sequential(next) => {
                *next += 1;
                *next - 1
            }
        };
        let template = &self.templates[self.template_of(sequence)];
        let start = out.len();
        out.extend_from_slice(&template.bytes);
        for end in &template.key_ends {
            write_digits(&mut out[start..start + end], key);
        }
    }

    #[inline]
    fn template_of(&self, sequence: u64) -> usize {
        match self.cycle.len() {
            1 => usize::from(self.cycle[0]),
            length => usize::from(self.cycle[(sequence % length as u64) as usize]),
        }
    }

    /// How long a cycle of operations is; connections start at different places in it.
    pub fn cycle_length(&self) -> u64 {
        self.cycle.len() as u64
    }

    /// Holds a whole reply against the request it answers; `Err` says what is wrong with it.
    pub fn check(&self, protocol: Protocol, sequence: u64, reply: &[u8]) -> Result<(), String> {
        let expected = self.templates[self.template_of(sequence)].expected;
        let (kind_is_right, body) = match protocol {
            Protocol::Resp => match (expected, reply.first()) {
                // Errors are counted as such already.
                (_, Some(b'-')) => (true, None),
                (Expected::Anything, _) => (true, None),
                (Expected::Done, _) => (reply == b"+OK\r\n", None),
                (Expected::Value, Some(b'$')) if !reply.starts_with(b"$-1") => {
                    let header = reply.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1);
                    (true, reply[header..].strip_suffix(b"\r\n"))
                }
                (Expected::Value, first) => (matches!(first, Some(b'$' | b'_')), None),
            },
            Protocol::Http => {
                let head = reply.windows(4).position(|window| window == b"\r\n\r\n").map_or(0, |at| at + 4);
                let found = reply.get(9..12) == Some(b"200") && expected == Expected::Value;
                (true, found.then_some(&reply[head..]))
            }
        };
        if !kind_is_right {
            let shown = crate::scan::printable(reply, 64);
            return Err(format!("\"{shown}\" is no answer to {}", self.describe(sequence)));
        }
        match body {
            Some(body) if self.verify && body != self.value => {
                let shown = crate::scan::printable(body, 64);
                Err(format!("{} bytes \"{shown}\" in place of the value that was set", body.len()))
            }
            _ => Ok(()),
        }
    }

    fn describe(&self, sequence: u64) -> String {
        match self.templates[self.template_of(sequence)].expected {
            Expected::Done => "SET".into(),
            Expected::Value => "GET".into(),
            Expected::Anything => "the command".into(),
        }
    }
}

/// A scanner for the replies of that protocol.
pub fn scanner(protocol: Protocol) -> Scanner {
    match protocol {
        Protocol::Resp => Scanner::Resp(RespScanner::default()),
        Protocol::Http => Scanner::Http(Box::default()),
    }
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

fn check_keys(options: &WorkloadOptions) -> Result<(), WorkloadError> {
    let digits = options.key_bytes.saturating_sub(options.key_prefix.len());
    let needed = options.keys.saturating_sub(1).checked_ilog10().unwrap_or(0) as usize + 1;
    if options.keys == 0 {
        return Err(WorkloadError("--keys must be at least 1".into()));
    }
    if digits < needed {
        return Err(WorkloadError(format!(
            "--keys {} needs {needed} digits after the prefix \"{}\", but --key-size {} leaves {digits}",
            options.keys, options.key_prefix, options.key_bytes
        )));
    }
    Ok(())
}

/// Bytes that neither compress nor hold a line end. The same for every key, so that any can be checked.
fn value(options: &WorkloadOptions) -> Vec<u8> {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(options.seed ^ 0x7661_6c75);
    (0..options.value_bytes).map(|_| random.random_range(b'0'..=b'z')).collect()
}

fn zero_key(options: &WorkloadOptions) -> Vec<u8> {
    let mut key = options.key_prefix.clone().into_bytes();
    key.resize(options.key_bytes.max(key.len()), b'0');
    key
}

fn resp_command(arguments: &[&[u8]], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("*{}\r\n", arguments.len()).as_bytes());
    for argument in arguments {
        out.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
        out.extend_from_slice(argument);
        out.extend_from_slice(b"\r\n");
    }
}

fn set_template(options: &WorkloadOptions, value: &[u8]) -> Template {
    let key = zero_key(options);
    let mut bytes = Vec::new();
    let key_end;
    match options.protocol {
        Protocol::Resp => {
            resp_command(&[b"SET", &key, value], &mut bytes);
            let tail = format!("\r\n${}\r\n", value.len()).len() + value.len() + 2;
            key_end = bytes.len() - tail;
        }
        Protocol::Http => {
            let (head, end) = http_head(options, "PUT", &key);
            bytes = head;
            key_end = end;
            bytes.extend_from_slice(format!("Content-Length: {}\r\n\r\n", value.len()).as_bytes());
            bytes.extend_from_slice(value);
        }
    }
    let key_ends = if key_end == 0 { vec![] } else { vec![key_end] };
    Template { bytes, key_ends, expected: Expected::Done }
}

fn get_template(options: &WorkloadOptions) -> Template {
    let key = zero_key(options);
    let mut bytes = Vec::new();
    let key_end;
    match options.protocol {
        Protocol::Resp => {
            resp_command(&[b"GET", &key], &mut bytes);
            key_end = bytes.len() - 2;
        }
        Protocol::Http => {
            let (head, end) = http_head(options, "GET", &key);
            bytes = head;
            key_end = end;
            bytes.extend_from_slice(b"\r\n");
        }
    }
    let key_ends = if key_end == 0 { vec![] } else { vec![key_end] };
    Template { bytes, key_ends, expected: Expected::Value }
}

/// Request line and Host field, and where the key ends in it (0: the path has none).
fn http_head(options: &WorkloadOptions, method: &str, key: &[u8]) -> (Vec<u8>, usize) {
    let mut bytes = format!("{method} ").into_bytes();
    let mut key_end = 0;
    match options.http_path.split_once("{key}") {
        Some((before, after)) => {
            bytes.extend_from_slice(before.as_bytes());
            bytes.extend_from_slice(key);
            key_end = bytes.len();
            bytes.extend_from_slice(after.as_bytes());
        }
        None => bytes.extend_from_slice(options.http_path.as_bytes()),
    }
    bytes.extend_from_slice(format!(" HTTP/1.1\r\nHost: {}\r\n", options.http_host).as_bytes());
    (bytes, key_end)
}

fn command_template(
    options: &WorkloadOptions,
    command: &str,
    value: &[u8],
) -> Result<Template, WorkloadError> {
    if options.protocol == Protocol::Http {
        return Err(WorkloadError(
            "--command is for RESP targets; an HTTP path is given by --http-path".into(),
        ));
    }
    let words: Vec<&str> = command.split_ascii_whitespace().collect();
    if words.is_empty() {
        return Err(WorkloadError("--command is empty".into()));
    }
    let key = zero_key(options);
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    let mut key_ends = Vec::new();
    for word in words {
        // A key or the data may stand inside a word: prefix{__key__}.
        let mut argument = Vec::new();
        let mut ends = Vec::new();
        let mut rest = word;
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix("__key__") {
                argument.extend_from_slice(&key);
                ends.push(argument.len());
                rest = after;
            } else if let Some(after) = rest.strip_prefix("__data__") {
                argument.extend_from_slice(value);
                rest = after;
            } else {
                let character = rest.chars().next().expect("not empty");
                argument.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                rest = &rest[character.len_utf8()..];
            }
        }
        bytes.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
        key_ends.extend(ends.iter().map(|end| bytes.len() + end));
        bytes.extend_from_slice(&argument);
        bytes.extend_from_slice(b"\r\n");
    }
    Ok(Template { bytes, key_ends, expected: Expected::Anything })
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
pub mod tests {
    use super::*;

    pub fn options() -> WorkloadOptions {
        WorkloadOptions {
            protocol: Protocol::Resp,
            resp_version: 2,
            sets: 1,
            gets: 2,
            keys: 1_000,
            key_bytes: 16,
            key_prefix: "key:".into(),
            value_bytes: 3,
            theta: None,
            command: None,
            http_path: "/v1/keys/{key}".into(),
            http_host: "localhost".into(),
            verify: true,
            password: None,
            seed: 1,
        }
    }

    fn rendered(workload: &mut Workload, sequence: u64) -> String {
        let mut out = b"earlier".to_vec();
        workload.render(sequence, &mut out);
        String::from_utf8(out.split_off(7)).expect("text")
    }

    #[test]
    fn digits_are_written_over_zeros() {
        for value in [0, 1, 9, 10, 11, 99, 100, 101, 999, 1_000, 123_456, 10_000_000, 999_999_999_999] {
            let mut field = b"key:000000000000".to_vec();
            write_digits(&mut field, value);
            assert_eq!(String::from_utf8(field).expect("text"), format!("key:{value:012}"));
        }
    }

    #[test]
    fn the_ratio_is_a_cycle() {
        let mut workload = Workload::new(&options()).expect("valid");
        let operations: Vec<String> =
            (0..6).map(|sequence| rendered(&mut workload, sequence)[8..11].to_string()).collect();
        assert_eq!(operations, ["SET", "GET", "GET", "SET", "GET", "GET"]);
    }

    #[test]
    fn every_request_is_whole_and_its_key_in_range() {
        let mut workload = Workload::new(&options()).expect("valid");
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..20_000 {
            let request = rendered(&mut workload, 1);
            let key = request.strip_prefix("*2\r\n$3\r\nGET\r\n$16\r\nkey:").expect("a GET");
            seen.insert(key.strip_suffix("\r\n").expect("a line end").parse::<u64>().expect("digits"));
        }
        assert_eq!((seen.first(), seen.last(), seen.len()), (Some(&0), Some(&999), 1_000));
    }

    #[test]
    fn prefill_sets_every_key_once() {
        let mut workload = Workload::prefill(&options()).expect("valid");
        for key in 0..1_000 {
            let request = rendered(&mut workload, key);
            assert!(request.starts_with(&format!("*3\r\n$3\r\nSET\r\n$16\r\nkey:{key:012}\r\n$3\r\n")));
        }
    }

    #[test]
    fn zipf_prefers_the_first_keys() {
        let mut options = options();
        options.theta = Some(0.99);
        let mut workload = Workload::new(&options).expect("valid");
        let hits = (0..10_000).filter(|_| rendered(&mut workload, 1).contains("key:000000000000")).count();
        // 1/H(1000, 0.99) is 13 %.
        assert!((1_000..1_700).contains(&hits), "{hits}");
    }

    #[test]
    fn http_requests_carry_key_and_body() {
        let mut options = options();
        options.protocol = Protocol::Http;
        options.keys = 1;
        let mut workload = Workload::new(&options).expect("valid");
        let put = rendered(&mut workload, 0);
        assert!(put.starts_with(
            "PUT /v1/keys/key:000000000000 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\n"
        ));
        assert_eq!(
            rendered(&mut workload, 1),
            "GET /v1/keys/key:000000000000 HTTP/1.1\r\nHost: localhost\r\n\r\n"
        );
        options.http_path = "/static".into();
        let mut workload = Workload::new(&options).expect("valid");
        assert!(rendered(&mut workload, 1).starts_with("GET /static HTTP/1.1\r\n"));
    }

    #[test]
    fn a_command_template_takes_keys_and_data_anywhere() {
        let mut options = options();
        options.command = Some("MSET a{__key__} __data__ __key__ x".into());
        let mut workload = Workload::new(&options).expect("valid");
        let request = rendered(&mut workload, 0);
        let mut scanner = scanner(Protocol::Resp);
        let mut tally = crate::scan::Tally::default();
        scanner.scan(request.as_bytes(), &mut tally).expect("well-formed");
        assert_eq!(tally.replies, 1);
        let digits = |at: usize| request[at..at + 12].to_string();
        let first = request.find("a{key:").expect("first key") + 6;
        let second = request.rfind("key:").expect("second key") + 4;
        assert_eq!(digits(first), digits(second));
    }

    #[test]
    fn impossible_workloads_are_refused() {
        let refused = |change: fn(&mut WorkloadOptions)| {
            let mut options = options();
            change(&mut options);
            Workload::new(&options).expect_err("must be refused").0
        };
        assert!(refused(|options| options.keys = 0).contains("--keys"));
        assert!(refused(|options| options.key_bytes = 6).contains("needs 3 digits"));
        assert!(refused(|options| (options.sets, options.gets) = (0, 0)).contains("--ratio"));
        assert!(refused(|options| options.theta = Some(-1.0)).contains("--theta"));
        assert!(refused(|options| options.command = Some(" ".into())).contains("--command"));
    }

    #[test]
    fn wrong_answers_are_told_from_right_ones() {
        let workload = Workload::new(&options()).expect("valid");
        let value = workload.value.clone();
        let right = [&b"$3\r\n"[..], &value, b"\r\n"].concat();
        let ok = |sequence, reply: &[u8]| workload.check(Protocol::Resp, sequence, reply);
        assert_eq!(ok(0, b"+OK\r\n"), Ok(()));
        assert_eq!(ok(1, &right), Ok(()));
        assert_eq!(ok(1, b"$-1\r\n"), Ok(()));
        assert_eq!(ok(1, b"-ERR\r\n"), Ok(()));
        assert!(ok(0, &right).is_err());
        assert!(ok(1, b"+OK\r\n").is_err());
        assert!(ok(1, b"$3\r\n!!!\r\n").expect_err("another value").contains("in place of"));
    }
}
