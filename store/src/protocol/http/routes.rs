//! What a request asks for: path, method, query and conditions.
//!
//! [`route`] turns a head into a [`Request`] or a refusal before any body is read; [`execute`](super::execute)
//! runs it when the body is complete. Both work on one argument buffer: the key first, then the other texts of
//! the request, then the body, then what the command line needs besides. A value is thus copied once, from the
//! receive buffer to where the command reads it.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::access::{authenticate, check_host, check_origin};
use super::conditions::push_condition;
use super::head::{Framing, Head};
use super::response::{Problem, excerpt};
use crate::engine::Shared;
use crate::journal::NO_LOG;
use crate::protocol::resp::Span;
use crate::reads::{FORM, Token, WAIT_MS_DEFAULT, WAIT_MS_MAX};
use crate::session::{Durability, Session};
use crate::tracking::stream::{TOKEN_BYTES_MAX, TOKENS_MAX, token_id};

/// Keys one listing may ask for.
const LIST_COUNT_MAX: u32 = 10_000;
const LIST_COUNT_DEFAULT: u32 = 100;
/// Spans are 32 bits: a body never reaches this, whatever `proto-max-bulk-len` says.
const VALUE_BYTES_MAX: u64 = 3 << 30;

/// The methods this server has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Get,
    Head,
    Put,
    Post,
    Delete,
    Options,
}

impl Method {
    fn parse(name: &str) -> Option<Method> {
        Some(match name {
            "GET" => Method::Get,
            "HEAD" => Method::Head,
            "PUT" => Method::Put,
            "POST" => Method::Post,
            "DELETE" => Method::Delete,
            "OPTIONS" => Method::Options,
            _ => return None,
        })
    }

    pub(super) fn changes_state(self) -> bool {
        matches!(self, Method::Put | Method::Post | Method::Delete)
    }
}

/// What a path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resource {
    /// `/v1/keys/{key}`
    Key,
    /// `/v1/keys`
    Keys,
    /// `/v1/invalidations`
    Invalidations,
    /// `/healthz`
    Health,
    /// `/role/primary`
    Primary,
    /// `/role/replica`
    Replica,
    /// `/metrics`
    Metrics,
    /// `*`
    Server,
}

impl Resource {
    pub(super) fn allow(self) -> &'static str {
        match self {
            Resource::Key | Resource::Server => "GET, HEAD, PUT, POST, DELETE, OPTIONS",
            Resource::Invalidations => "GET, OPTIONS",
            Resource::Keys | Resource::Health | Resource::Primary | Resource::Replica | Resource::Metrics => {
                "GET, HEAD, OPTIONS"
            }
        }
    }
}

/// When a value that is PUT expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PutExpiry {
    Never,
    Keep,
    InMs(u64),
}

/// What is to be done, beyond the method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Plain,
    Put(PutExpiry),
    Increment(i64),
    IncrementFloat(Span),
    Append,
    List { cursor: u64, count: u32, pattern: Option<Span> },
    Stream { prefix: Option<Span>, token: Option<Span> },
}

/// The least that the data must have for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AtLeast {
    pub(super) token: Token,
    /// How long it may wait for that; 0: not at all, or no longer.
    pub(super) wait_ms: u64,
}

/// A request that was understood and allowed. Spans are into the argument buffer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) resource: Resource,
    pub(super) operation: Operation,
    pub(super) key: Span,
    pub(super) if_match: Option<Span>,
    pub(super) if_none_match: Option<Span>,
    /// What is read is of interest to the stream with this token.
    pub(super) token: Option<Span>,
    /// How far a stream has come.
    pub(super) last_event_id: Option<Span>,
    /// What the response is to promise; `None`: what the server's setting says.
    pub(super) durability: Option<Durability>,
    /// What the data must have.
    pub(super) at_least: Option<AtLeast>,
    /// Where the body begins: behind everything the head put into the buffer.
    pub(super) body_start: usize,
}

impl Request {
    /// Whether the body is a value to keep.
    pub(super) fn method_takes_value(&self) -> bool {
        matches!(self.operation, Operation::Put(_) | Operation::Append)
    }
}

/// The longest value accepted.
pub(super) fn value_bytes_max(shared: &Shared) -> u64 {
    shared.config.proto_max_bulk_len.min(VALUE_BYTES_MAX)
}

/// Decides what a head asks for, and whether it may. Checks go from the outside in: host, password, path,
/// method, origin, content, query, conditions.
pub(super) fn route(
    shared: &mut Shared,
    session: &mut Session,
    head: &Head<'_, '_>,
    arguments: &mut Vec<u8>,
) -> Result<Request, Problem> {
    let (path, query) = match memchr::memchr(b'?', head.target.as_bytes()) {
        Some(at) => (&head.target[..at], &head.target[at + 1..]),
        None => (head.target, ""),
    };
    let resource = match path {
        "/healthz" => Some(Resource::Health),
        "/role/primary" => Some(Resource::Primary),
        "/role/replica" => Some(Resource::Replica),
        "/metrics" => Some(Resource::Metrics),
        "/v1/keys" => Some(Resource::Keys),
        "/v1/invalidations" => Some(Resource::Invalidations),
        "*" => Some(Resource::Server),
        _ if path.starts_with("/v1/keys/") => Some(Resource::Key),
        _ => None,
    };
    // What watches the server has no password, and calls it by any name.
    let is_public = [Resource::Health, Resource::Primary, Resource::Replica].map(Some).contains(&resource);
    if !is_public {
        check_host(shared, session, head.host)?;
        authenticate(shared, session, head.authorization)?;
    }
    if head.unknown_expectation {
        return Err(Problem::new(417, "The only expectation this server meets is 100-continue."));
    }
    let Some(method) = Method::parse(head.method) else {
        return Err(Problem::new(
            501,
            format!(
                "The method \"{}\" is not implemented. This server has GET, HEAD, PUT, POST, DELETE and OPTIONS (in capitals).",
                excerpt(head.method.as_bytes())
            ),
        ));
    };
    let Some(resource) = resource else {
        return Err(Problem::new(
            404,
            format!(
                "Nothing is at \"{}\". Try /v1/keys/{{key}}, /v1/keys?cursor=0, /metrics, /healthz or /role/primary.",
                excerpt(path.as_bytes())
            ),
        ));
    };
    let allowed = resource.allow();
    let is_refused = match resource {
        Resource::Key => false,
        Resource::Invalidations => method.changes_state() || method == Method::Head,
        _ => method.changes_state(),
    };
    if is_refused {
        return Err(Problem {
            allow: Some(allowed),
            ..Problem::new(405, format!("{} is not possible here. Allowed: {allowed}.", head.method))
        });
    }
    if method.changes_state() {
        check_origin(head)?;
    }
    let mut request = Request {
        method,
        resource,
        operation: Operation::Plain,
        key: Span::default(),
        if_match: None,
        if_none_match: None,
        token: None,
        last_event_id: None,
        durability: parse_durability(shared, head.durability)?,
        at_least: parse_at_least(head)?.filter(|_| matches!(resource, Resource::Key | Resource::Keys)),
        body_start: 0,
    };
    if resource == Resource::Key {
        request.key = push_decoded(arguments, &path["/v1/keys/".len()..], false)?;
    }
    if method != Method::Options {
        request.operation = parse_operation(method, resource, query, head, arguments)?;
    }
    if request.method_takes_value() {
        check_content(head)?;
    }
    if head.if_match {
        request.if_match = Some(push_condition(arguments, head, "if-match")?);
    }
    if head.if_none_match {
        request.if_none_match = Some(push_condition(arguments, head, "if-none-match")?);
    }
    if let Some(token) = head.token.filter(|_| resource == Resource::Key) {
        check_token_length(token)?;
        request.token = Some(push(arguments, token));
    }
    if let Operation::Stream { prefix, token } = request.operation {
        if prefix.is_some() && token.is_some() {
            return Err(Problem::new(400, "Give prefix or token, not both: a token names keys one by one."));
        }
        if let Some(token) = token {
            check_token_length(slice(arguments, token))?;
            if !shared.has_room_for_token(token_id(slice(arguments, token))) {
                return Err(Problem::new(
                    503,
                    format!(
                        "There are {TOKENS_MAX} tokens already. One is forgotten a minute after its stream has ended."
                    ),
                ));
            }
        }
        request.last_event_id = head.last_event_id.map(|id| push(arguments, id));
    }
    request.body_start = arguments.len();
    Ok(request)
}

/// Adds a text to the arguments.
fn push(arguments: &mut Vec<u8>, text: &[u8]) -> Span {
    let start = arguments.len();
    arguments.extend_from_slice(text);
    Span { start: start as u32, len: text.len() as u32 }
}

fn check_token_length(token: &[u8]) -> Result<(), Problem> {
    match token.len() {
        1..=TOKEN_BYTES_MAX => Ok(()),
        length => Err(Problem::new(
            400,
            format!("A token is 1 to {TOKEN_BYTES_MAX} bytes that nobody else would choose; found {length}."),
        )),
    }
}

/// X-Millrace-Durability: a class by its word, of those the server can promise.
fn parse_durability(shared: &Shared, word: Option<&[u8]>) -> Result<Option<Durability>, Problem> {
    let Some(word) = word else { return Ok(None) };
    let Some(class) = core::str::from_utf8(word).ok().and_then(Durability::parse) else {
        return Err(Problem::new(
            400,
            format!("X-Millrace-Durability must be always, everysec or off; found \"{}\".", excerpt(word)),
        ));
    };
    if !shared.can_promise(class) {
        let name = class.name();
        return Err(Problem::new(409, format!("X-Millrace-Durability: {name} needs a log: {NO_LOG}.")));
    }
    Ok(Some(class))
}

/// X-Millrace-LSN and X-Millrace-Wait-Ms.
fn parse_at_least(head: &Head<'_, '_>) -> Result<Option<AtLeast>, Problem> {
    let wait_ms = match head.wait_ms {
        None => WAIT_MS_DEFAULT,
        Some(text) => parse_decimal(text).filter(|&wait_ms| wait_ms <= WAIT_MS_MAX).ok_or_else(|| {
            let found = excerpt(text);
            let text =
                format!("X-Millrace-Wait-Ms must be a whole number up to {WAIT_MS_MAX}; found \"{found}\".");
            Problem::new(400, text)
        })?,
    };
    let Some(text) = head.lsn else { return Ok(None) };
    match Token::parse(text) {
        Some(token) => Ok(Some(AtLeast { token, wait_ms })),
        None => Err(Problem::new(
            400,
            format!(
                "X-Millrace-LSN must be what the answer to a write said, {FORM}; found \"{}\".",
                excerpt(text)
            ),
        )),
    }
}

/// A body that is to be kept must say where it ends and be the value itself.
fn check_content(head: &Head<'_, '_>) -> Result<(), Problem> {
    if head.framing == Framing::Absent {
        return Err(Problem::new(
            411,
            "The value must come with Content-Length or in chunks. For an empty value send Content-Length: 0.",
        ));
    }
    if let Some(coding) = head.content_encoding
        && !coding.eq_ignore_ascii_case(b"identity")
    {
        return Err(Problem::new(
            415,
            format!(
                "Values are stored as they come and served without Content-Encoding, so a body in \"{}\" is refused. Leave the field out to store the encoded bytes.",
                excerpt(coding)
            ),
        ));
    }
    if head.content_range {
        return Err(Problem::new(400, "A PUT replaces the whole value: Content-Range is not supported."));
    }
    Ok(())
}

/// Reads the query. A parameter that means nothing here is refused: a mistyped `ttl` must not store for ever.
fn parse_operation(
    method: Method,
    resource: Resource,
    query: &str,
    head: &Head<'_, '_>,
    arguments: &mut Vec<u8>,
) -> Result<Operation, Problem> {
    let expected: &[&str] = match (resource, method) {
        (Resource::Key, Method::Put) => &["ttl", "ttl_ms", "keepttl"],
        (Resource::Key, Method::Post) => &["op", "by"],
        (Resource::Keys, _) => &["cursor", "count", "match"],
        (Resource::Invalidations, _) => &["prefix", "token"],
        _ => &[],
    };
    if query.is_empty() && expected.is_empty() {
        return Ok(Operation::Plain);
    }
    let mut values: [Option<Span>; 3] = [None; 3];
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let Some(at) = expected.iter().position(|&candidate| candidate == name) else {
            return Err(Problem::new(
                400,
                format!(
                    "The query parameter \"{}\" means nothing here. Possible: {}.",
                    excerpt(name.as_bytes()),
                    if expected.is_empty() { String::from("none") } else { expected.join(", ") }
                ),
            ));
        };
        if values[at].replace(push_decoded(arguments, value, true)?).is_some() {
            return Err(Problem::new(400, format!("The query parameter \"{name}\" is given twice.")));
        }
    }
    let text = |span: Span| slice(arguments, span);
    match (resource, method) {
        (Resource::Key, Method::Put) => {
            let [ttl, ttl_ms, keep] = values;
            if usize::from(ttl.is_some())
                + usize::from(ttl_ms.is_some())
                + usize::from(keep.is_some())
                + usize::from(head.ttl_ms.is_some())
                > 1
            {
                return Err(Problem::new(
                    400,
                    "Give one of ttl (seconds), ttl_ms, keepttl and the field X-Millrace-TTL-Ms, not several.",
                ));
            }
            Ok(Operation::Put(if let Some(ttl) = ttl {
                PutExpiry::InMs(parse_ttl("ttl", text(ttl), 1000)?)
            } else if let Some(ttl) = ttl_ms {
                PutExpiry::InMs(parse_ttl("ttl_ms", text(ttl), 1)?)
            } else if let Some(ttl) = head.ttl_ms {
                PutExpiry::InMs(parse_ttl("X-Millrace-TTL-Ms", ttl, 1)?)
            } else if let Some(keep) = keep {
                match text(keep) {
                    b"1" | b"" => PutExpiry::Keep,
                    b"0" => PutExpiry::Never,
                    other => {
                        return Err(Problem::new(
                            400,
                            format!("keepttl must be 1 or 0; found \"{}\".", excerpt(other)),
                        ));
                    }
                }
            } else {
                PutExpiry::Never
            }))
        }
        (Resource::Key, Method::Post) => {
            let [operation, by, _] = values;
            match (operation.map(text), by) {
                (Some(b"incr"), None) => Ok(Operation::Increment(1)),
                (Some(b"incr"), Some(by)) => match parse_decimal(text(by)) {
                    Some(by) => Ok(Operation::Increment(by)),
                    None => Err(Problem::new(
                        400,
                        format!(
                            "by must be a whole number of 64 bits; found \"{}\". For fractions use op=incrbyfloat.",
                            excerpt(text(by))
                        ),
                    )),
                },
                (Some(b"incrbyfloat"), Some(by))
                    if parse_decimal::<f64>(text(by)).is_some_and(f64::is_finite) =>
                {
                    Ok(Operation::IncrementFloat(by))
                }
                (Some(b"incrbyfloat"), Some(by)) => Err(Problem::new(
                    400,
                    format!("by must be a finite number; found \"{}\".", excerpt(text(by))),
                )),
                (Some(b"incrbyfloat"), None) => Err(Problem::new(400, "op=incrbyfloat needs by=NUMBER.")),
                (Some(b"append"), None) => Ok(Operation::Append),
                (Some(b"append"), Some(_)) => {
                    Err(Problem::new(400, "op=append takes what to append from the body, not from by."))
                }
                (Some(other), _) => Err(Problem::new(
                    400,
                    format!(
                        "The operation \"{}\" is unknown. Possible: op=incr, op=incrbyfloat, op=append.",
                        excerpt(other)
                    ),
                )),
                (None, _) => Err(Problem::new(
                    400,
                    "A POST needs an operation: op=incr, op=incrbyfloat or op=append. To store a value use PUT.",
                )),
            }
        }
        (Resource::Keys, _) => {
            let [cursor, count, pattern] = values;
            let number = |name: &str, span: Option<Span>, default: u64, max: u64| match span {
                None => Ok(default),
                Some(span) => match parse_decimal::<u64>(text(span)) {
                    Some(number) if number <= max => Ok(number),
                    _ => Err(Problem::new(
                        400,
                        format!(
                            "{name} must be a whole number up to {max}; found \"{}\".",
                            excerpt(text(span))
                        ),
                    )),
                },
            };
            Ok(Operation::List {
                cursor: number("cursor", cursor, 0, u64::MAX)?,
                count: number("count", count, u64::from(LIST_COUNT_DEFAULT), u64::from(LIST_COUNT_MAX))?
                    .max(1) as u32,
                pattern,
            })
        }
        (Resource::Invalidations, _) => Ok(Operation::Stream { prefix: values[0], token: values[1] }),
        _ => Ok(Operation::Plain),
    }
}

fn parse_ttl(name: &str, text: &[u8], unit_ms: u64) -> Result<u64, Problem> {
    let milliseconds = parse_decimal::<u64>(text).and_then(|number| number.checked_mul(unit_ms));
    match milliseconds {
        // Up to half the range, so that adding the present cannot overflow what an expiry is stored in.
        Some(milliseconds @ 1..=0x3fff_ffff_ffff_ffff) => Ok(milliseconds),
        _ => Err(Problem::new(
            400,
            format!(
                "{name} must be a positive whole number; found \"{}\". Leave it out for a key that does not expire.",
                excerpt(text)
            ),
        )),
    }
}

/// Decimal digits, with `-` where the type has a sign; never `+`, blanks or nothing.
pub(super) fn parse_decimal<N: core::str::FromStr>(text: &[u8]) -> Option<N> {
    if text.first() == Some(&b'+') {
        return None;
    }
    core::str::from_utf8(text).ok()?.parse().ok()
}

/// Appends percent-decoded text. In a query `+` is a blank, as browsers and most libraries write it.
fn push_decoded(arguments: &mut Vec<u8>, text: &str, plus_is_blank: bool) -> Result<Span, Problem> {
    let start = arguments.len();
    let bytes = text.as_bytes();
    if memchr::memchr2(b'%', b'+', bytes).is_none() {
        arguments.extend_from_slice(bytes);
    } else {
        let mut rest = bytes;
        while let Some((&byte, tail)) = rest.split_first() {
            rest = tail;
            match byte {
                b'%' => {
                    let digit = |at: usize| tail.get(at).and_then(|&digit| char::from(digit).to_digit(16));
                    let (Some(high), Some(low)) = (digit(0), digit(1)) else {
                        return Err(Problem::new(
                            400,
                            format!(
                                "A % in the target must be followed by two hexadecimal digits; found \"{}\".",
                                excerpt(text.as_bytes())
                            ),
                        ));
                    };
                    arguments.push((high << 4 | low) as u8);
                    rest = &tail[2..];
                }
                b'+' if plus_is_blank => arguments.push(b' '),
                _ => arguments.push(byte),
            }
        }
    }
    Ok(Span { start: start as u32, len: (arguments.len() - start) as u32 })
}

pub(super) fn slice(arguments: &[u8], span: Span) -> &[u8] {
    &arguments[span.start as usize..][..span.len as usize]
}
