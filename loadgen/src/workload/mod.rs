//! What is asked: requests as byte templates in which only the key's digits change, and the data where sizes vary.
//!
//! Rendering a request is one copy and a few digits. Which operation the n-th request of a connection is follows
//! from n alone (`--ratio 1:10` is one SET, then ten GETs, as in memtier), so a reply picked out for checking can
//! be held against its question without a record of what was asked.

pub mod keys;
pub mod sizes;
mod template;

use crate::scan::{RespScanner, Scanner};
use keys::{KeyChoice, KeyDistribution};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng, RngExt, SeedableRng};
use serde::Serialize;
use sizes::{KeySizes, TtlMix, ValueSizes};
use template::Template;
pub use template::handshake;

/// The protocol spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// RESP2, or RESP3 after HELLO.
    Resp,
    /// HTTP/1.1.
    Http,
    /// memcached's text protocol.
    Memcache,
}

/// What the flags say about requests.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WorkloadOptions {
    /// What is spoken.
    pub protocol: Protocol,
    /// 2 or 3; 3 begins each connection with HELLO.
    pub resp_version: u8,
    /// SETs in one cycle.
    pub sets: u32,
    /// GETs in one cycle.
    pub gets: u32,
    /// Keys are drawn from this many.
    pub keys: u64,
    /// Bytes of a key: the prefix, then zero-padded digits. Where sizes vary, `key_sizes` says how.
    pub key_bytes: usize,
    /// Sizes of keys that vary.
    pub key_sizes: Option<KeySizes>,
    /// What every key starts with.
    pub key_prefix: String,
    /// Which of them.
    pub key_distribution: KeyDistribution,
    /// Bytes of a value.
    pub value_bytes: ValueSizes,
    /// How long values live.
    pub ttls: TtlMix,
    /// Commands instead of SET and GET, with `__key__` and `__data__`, and how many of each in one cycle.
    pub commands: Vec<(String, u32)>,
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
    /// Which of several threads asks.
    #[serde(skip)]
    pub share: Share,
}

/// One of several threads of a generator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Which, from 0.
    pub index: usize,
    /// How many there are.
    pub of: usize,
}

impl Default for Share {
    fn default() -> Share {
        Share { index: 0, of: 1 }
    }
}

impl Default for WorkloadOptions {
    /// What the flags say where nothing is said.
    fn default() -> WorkloadOptions {
        WorkloadOptions {
            protocol: Protocol::Resp,
            resp_version: 2,
            sets: 1,
            gets: 10,
            keys: 100_000,
            key_bytes: 16,
            key_sizes: None,
            key_prefix: "key:".into(),
            key_distribution: KeyDistribution::Uniform,
            value_bytes: ValueSizes::Fixed(64),
            ttls: TtlMix::default(),
            commands: Vec::new(),
            http_path: "/v1/keys/{key}".into(),
            http_host: "localhost".into(),
            verify: false,
            password: None,
            seed: 1,
            share: Share::default(),
        }
    }
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

/// One kind of request of the cycle.
#[derive(Clone, Debug)]
struct Operation {
    /// Its templates, each with the part of 2^64 below which a draw chooses it; a SET has one for each time to live.
    variants: Vec<(u64, Template)>,
    expected: Expected,
}

/// Makes requests.
#[derive(Clone, Debug)]
pub struct Workload {
    /// One cycle of operations, by index into `operations`.
    cycle: Vec<u8>,
    /// By size of the key, from the smallest on; one entry where all are alike.
    operations: Vec<Vec<Operation>>,
    key_sizes: KeySizes,
    key_span: (u16, u16),
    keys: KeyChoice,
    random: Xoshiro256PlusPlus,
    /// The data of the largest value; smaller ones are its beginning.
    value: Vec<u8>,
    sizes: ValueSizes,
    seed: u64,
    verify: bool,
}

/// A workload that cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadError(pub String);

impl From<String> for WorkloadError {
    fn from(text: String) -> WorkloadError {
        WorkloadError(text)
    }
}

impl Workload {
    /// The workload the flags describe.
    pub fn new(options: &WorkloadOptions) -> Result<Workload, WorkloadError> {
        check_keys(options)?;
        let value = value(options);
        let fixed = fixed(options, &value);
        let key_sizes = options.key_sizes.unwrap_or(KeySizes::Fixed(options.key_bytes as u16));
        let key_span = key_sizes.span((options.key_prefix.len() + digits_needed(options)) as u16);
        let mut operations = Vec::new();
        for bytes in key_span.0..=key_span.1 {
            let sized = WorkloadOptions { key_bytes: usize::from(bytes), ..options.clone() };
            operations.push(operations_of_size(&sized, fixed)?);
        }
        let mut cycle = Vec::new();
        if options.commands.is_empty() {
            cycle.extend(std::iter::repeat_n(0, options.sets.min(100_001) as usize));
            cycle.extend(std::iter::repeat_n(1, options.gets.min(100_001) as usize));
        } else {
            for (index, (_, count)) in options.commands.iter().enumerate() {
                cycle.extend(std::iter::repeat_n(index as u8, (*count).min(100_001) as usize));
            }
        }
        if cycle.is_empty() {
            return Err(WorkloadError("--command-ratio 0 for every command asks for nothing".into()));
        }
        if cycle.len() > 100_000 {
            return Err(WorkloadError("--ratio and --command-ratio have parts of more than 100000".into()));
        }
        Ok(Workload {
            cycle,
            operations,
            key_sizes,
            key_span,
            keys: KeyChoice::new(options.key_distribution, options.keys)?.of_share(options.share),
            // Every thread draws keys of its own; the first one those of a generator alone.
            random: Xoshiro256PlusPlus::seed_from_u64(
                options.seed ^ 0x6b65_7973 ^ (options.share.index as u64) << 40,
            ),
            value,
            sizes: options.value_bytes,
            seed: options.seed,
            verify: options.verify,
        })
    }

    /// Sets every key once.
    pub fn prefill(options: &WorkloadOptions) -> Result<Workload, WorkloadError> {
        let once = WorkloadOptions {
            sets: 1,
            gets: 0,
            commands: Vec::new(),
            key_distribution: KeyDistribution::Sequential,
            share: Share::default(),
            // A fill that expires before the run is none.
            ttls: TtlMix::default(),
            verify: false,
            ..options.clone()
        };
        Workload::new(&once)
    }

    /// Appends the `sequence`-th request of a connection.
    #[inline]
    pub fn render(&mut self, sequence: u64, out: &mut Vec<u8>) {
        let key = self.keys.draw(&mut self.random);
        let sized = match &self.operations[..] {
            [only] => only,
            several => {
                let bytes = self.key_sizes.of_key(key, self.seed, self.key_span);
                &several[usize::from(bytes - self.key_span.0)]
            }
        };
        let variants = &sized[self.operation_of(sequence)].variants;
        let template = match &variants[..] {
            [(_, only)] => only,
            several => {
                let drawn = self.random.next_u64();
                let chosen = several.iter().find(|(below, _)| drawn <= *below);
                &chosen.unwrap_or(&several[several.len() - 1]).1
            }
        };
        let data = match template.has_data() {
            true => &self.value[..self.sizes.of_key(key, self.seed) as usize],
            false => &[],
        };
        template.render(key, data, out);
    }

    #[inline]
    fn operation_of(&self, sequence: u64) -> usize {
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
        let expected = self.operations[0][self.operation_of(sequence)].expected;
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
            Protocol::Memcache => match expected {
                _ if crate::scan::is_memcache_error(reply) => (true, None),
                Expected::Anything => (true, None),
                Expected::Done => (reply == b"STORED\r\n", None),
                Expected::Value if reply.starts_with(b"VALUE ") => {
                    let header = reply.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1);
                    (true, reply[header..].strip_suffix(b"\r\nEND\r\n"))
                }
                Expected::Value => (reply == b"END\r\n", None),
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
            Some(body) if self.verify && !self.may_be_a_value(body) => {
                let shown = crate::scan::printable(body, 64);
                Err(format!("{} bytes \"{shown}\" in place of the value that was set", body.len()))
            }
            _ => Ok(()),
        }
    }

    /// Which key was asked for is not known any more; every value is the beginning of the largest.
    fn may_be_a_value(&self, body: &[u8]) -> bool {
        let size_is_possible = match self.sizes {
            ValueSizes::Fixed(bytes) => body.len() == bytes as usize,
            ValueSizes::Range(from, to) => (from as usize..=to as usize).contains(&body.len()),
            ValueSizes::Etc => true,
        };
        size_is_possible && self.value.starts_with(body)
    }

    fn describe(&self, sequence: u64) -> String {
        match self.operations[0][self.operation_of(sequence)].expected {
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
        Protocol::Memcache => Scanner::Memcache(Box::default()),
    }
}

/// The operations of a cycle, for keys of one size.
fn operations_of_size(
    options: &WorkloadOptions,
    fixed: Option<&[u8]>,
) -> Result<Vec<Operation>, WorkloadError> {
    if options.commands.is_empty() {
        if options.sets == 0 && options.gets == 0 {
            return Err(WorkloadError("--ratio 0:0 asks for nothing".into()));
        }
        let get = Operation { variants: vec![(u64::MAX, template::get(options))], expected: Expected::Value };
        return Ok(vec![set_operation(options, fixed), get]);
    }
    if options.commands.len() > 250 {
        return Err(WorkloadError("there may be 250 commands at most".into()));
    }
    let operation = |(command, _): &(String, u32)| {
        let template = template::command(options, command, fixed)?;
        Ok(Operation { variants: vec![(u64::MAX, template)], expected: Expected::Anything })
    };
    options.commands.iter().map(operation).collect()
}

fn digits_needed(options: &WorkloadOptions) -> usize {
    options.keys.saturating_sub(1).checked_ilog10().unwrap_or(0) as usize + 1
}

fn set_operation(options: &WorkloadOptions, fixed: Option<&[u8]>) -> Operation {
    let mix = match &options.ttls.0[..] {
        [] => &[(None, 1)],
        mix => mix,
    };
    let whole: f64 = mix.iter().map(|(_, weight)| f64::from(*weight)).sum();
    let mut below = 0.0;
    let variants = mix.iter().filter(|(_, weight)| *weight > 0).map(|(ttl_ms, weight)| {
        below += f64::from(*weight);
        ((below / whole * u64::MAX as f64) as u64, template::set(options, fixed, *ttl_ms))
    });
    Operation { variants: variants.collect(), expected: Expected::Done }
}

fn check_keys(options: &WorkloadOptions) -> Result<(), WorkloadError> {
    let needed = digits_needed(options);
    let smallest = options.key_sizes.map_or(options.key_bytes, |sizes| {
        usize::from(sizes.span((options.key_prefix.len() + needed) as u16).0)
    });
    let digits = smallest.saturating_sub(options.key_prefix.len());
    if options.keys == 0 {
        return Err(WorkloadError("--keys must be at least 1".into()));
    }
    if digits < needed {
        return Err(WorkloadError(format!(
            "--keys {} needs {needed} digits after the prefix \"{}\", but --key-size {} leaves {digits}",
            options.keys, options.key_prefix, options.key_bytes
        )));
    }
    let blank =
        |text: &str| text.contains(|character: char| character.is_whitespace() || character.is_control());
    if options.protocol == Protocol::Memcache && (options.key_bytes > 250 || blank(&options.key_prefix)) {
        return Err(WorkloadError(
            "a key of memcached has at most 250 bytes and no blanks (--key-size, --key-prefix)".into(),
        ));
    }
    Ok(())
}

/// Bytes that neither compress nor hold a line end. The same for every key, so that any can be checked.
fn value(options: &WorkloadOptions) -> Vec<u8> {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(options.seed ^ 0x7661_6c75);
    (0..options.value_bytes.max()).map(|_| random.random_range(b'0'..=b'z')).collect()
}

/// The data, where it is the same for every key.
fn fixed<'a>(options: &WorkloadOptions, value: &'a [u8]) -> Option<&'a [u8]> {
    matches!(options.value_bytes, ValueSizes::Fixed(_)).then_some(value)
}

fn resp_command(arguments: &[&[u8]], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("*{}\r\n", arguments.len()).as_bytes());
    for argument in arguments {
        out.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
        out.extend_from_slice(argument);
        out.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn options() -> WorkloadOptions {
        WorkloadOptions {
            gets: 2,
            keys: 1_000,
            value_bytes: ValueSizes::Fixed(3),
            verify: true,
            ..WorkloadOptions::default()
        }
    }

    fn rendered(workload: &mut Workload, sequence: u64) -> String {
        let mut out = b"earlier".to_vec();
        workload.render(sequence, &mut out);
        String::from_utf8(out.split_off(7)).expect("text")
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
        options.key_distribution = KeyDistribution::Zipf { theta: 0.99 };
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
        options.commands = vec![("MSET a{__key__} __data__ __key__ x".into(), 1)];
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
        let zipf = KeyDistribution::Zipf { theta: -1.0 };
        assert!(KeyChoice::new(zipf, 5).expect_err("must be refused").contains("--theta"));
        assert!(refused(|options| options.commands = vec![(" ".into(), 1)]).contains("--command"));
        assert!(refused(|options| options.commands = vec![("PING".into(), 0)]).contains("--command-ratio"));
        let blank = |options: &mut WorkloadOptions| {
            (options.protocol, options.key_prefix) = (Protocol::Memcache, "a b".into());
        };
        assert!(refused(blank).contains("no blanks"));
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

    #[test]
    fn several_commands_take_turns_by_their_ratio() {
        let mut options = options();
        options.commands = vec![("INCR __key__".into(), 2), ("PING".into(), 1)];
        let mut workload = Workload::new(&options).expect("valid");
        let words: Vec<bool> =
            (0..6).map(|sequence| rendered(&mut workload, sequence).contains("PING")).collect();
        assert_eq!(words, [false, false, true, false, false, true]);
    }

    #[test]
    fn ttls_are_mixed_by_weight_and_a_prefill_has_none() {
        let mut options = options();
        options.ttls = "none:6,60s:3,1h:1".parse().expect("well-formed");
        let mut workload = Workload::new(&options).expect("valid");
        let mut counts = [0; 3];
        for _ in 0..10_000 {
            let request = rendered(&mut workload, 0);
            counts[if request.ends_with("60000\r\n") {
                1
            } else {
                2 * usize::from(request.ends_with("3600000\r\n"))
            }] += 1;
        }
        for (count, expected) in counts.into_iter().zip([6_000, 3_000, 1_000i32]) {
            assert!((count - expected).abs() < 250, "{counts:?}");
        }
        let mut prefill = Workload::prefill(&options).expect("valid");
        assert!((0..1_000).all(|key| !rendered(&mut prefill, key).contains("PX")));
    }

    #[test]
    fn a_key_has_the_same_size_in_the_prefill_and_in_the_run() {
        let mut options = options();
        options.value_bytes = ValueSizes::Range(5, 40);
        let mut sizes = std::collections::BTreeMap::new();
        let mut take = |workload: &mut Workload, sequence| {
            let request = rendered(workload, sequence);
            let words: Vec<&str> = request.split("\r\n").collect();
            let (key, length, data) = (words[4].to_string(), words[5].to_string(), words[6]);
            assert_eq!(length, format!("${}", data.len()));
            assert_eq!(*sizes.entry(key).or_insert(data.len()), data.len());
        };
        let mut prefill = Workload::prefill(&options).expect("valid");
        (0..1_000).for_each(|key| take(&mut prefill, key));
        let mut workload = Workload::new(&options).expect("valid");
        (0..3_000).for_each(|_| take(&mut workload, 0));
        let right = [&b"$7\r\n"[..], &workload.value[..7], b"\r\n"].concat();
        assert_eq!(workload.check(Protocol::Resp, 1, &right), Ok(()));
        let short = [&b"$4\r\n"[..], &workload.value[..4], b"\r\n"].concat();
        assert!(workload.check(Protocol::Resp, 1, &short).is_err());
    }

    #[test]
    fn memcached_answers_are_checked() {
        let mut options = options();
        options.protocol = Protocol::Memcache;
        let workload = Workload::new(&options).expect("valid");
        let value = String::from_utf8(workload.value.clone()).expect("text");
        let check = |sequence, reply: &str| workload.check(Protocol::Memcache, sequence, reply.as_bytes());
        assert_eq!(check(0, "STORED\r\n"), Ok(()));
        assert_eq!(check(1, "END\r\n"), Ok(()));
        assert_eq!(check(1, &format!("VALUE k 0 3\r\n{value}\r\nEND\r\n")), Ok(()));
        assert_eq!(check(0, "SERVER_ERROR out of memory\r\n"), Ok(()));
        assert!(check(0, "END\r\n").is_err() && check(1, "STORED\r\n").is_err());
        assert!(check(1, "VALUE k 0 3\r\n!!!\r\nEND\r\n").is_err());
    }
}
