//! Request heads: finding where one ends, and what it says about framing, host and connection.
//!
//! [`HeadScan`] looks at each byte once, however the head is cut into receives, and enforces what httparse
//! is lenient about: every line ends in CRLF, no line is folded, the first line names an HTTP version. Only a
//! complete head is parsed, once, by httparse. Everything two implementations could read differently — the
//! raw material of request smuggling — is refused here with a problem that closes the connection.

use core::mem::MaybeUninit;

use alloc::format;
use httparse::Header;

use super::response::{Problem, excerpt};

/// Longest request head, from the first byte of the request line to the empty line.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Most header fields in a head.
pub const HEAD_FIELDS_MAX: usize = 64;

/// How far the end of a head has been looked for. Offsets count from the head's first byte.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct HeadScan {
    /// Nothing before this offset needs to be looked at again.
    searched: usize,
    /// Where the line being searched began.
    line_start: usize,
}

impl HeadScan {
    /// Looks on through `data`, which begins with the head's first byte and holds what was there last time.
    /// `Ok(Some(length))` is a whole head with its empty line.
    pub(super) fn advance(&mut self, data: &[u8]) -> Result<Option<usize>, Problem> {
        if self.searched == 0
            && let Some(&first) = data.first()
            && !is_token_byte(first)
        {
            return Err(not_http(data));
        }
        loop {
            let Some(at) = memchr::memchr(b'\n', &data[self.searched..]) else {
                self.searched = data.len();
                return if data.len() > HEAD_BYTES_MAX { Err(self.too_large()) } else { Ok(None) };
            };
            let line_feed = self.searched + at;
            if line_feed >= HEAD_BYTES_MAX {
                return Err(self.too_large());
            }
            if line_feed == 0 || data[line_feed - 1] != b'\r' {
                return Err(Problem::new(
                    400,
                    "A line of the request head ends in LF without CR. Every line must end in CRLF (RFC 9112, section 2.2).",
                ));
            }
            let line = &data[self.line_start..line_feed - 1];
            let is_request_line = self.line_start == 0;
            self.searched = line_feed + 1;
            self.line_start = line_feed + 1;
            if is_request_line {
                check_request_line(line)?;
            } else if let Some(&first) = line.first() {
                if first == b' ' || first == b'\t' {
                    return Err(Problem::new(
                        400,
                        "A header field is folded over several lines (obs-fold). Send each field on one line.",
                    ));
                }
            } else {
                return Ok(Some(line_feed + 1));
            }
        }
    }

    fn too_large(&self) -> Problem {
        if self.line_start == 0 {
            Problem::new(
                414,
                format!(
                    "The request line is longer than {HEAD_BYTES_MAX} bytes. Use a shorter key; percent-encoding triples every byte that needs it."
                ),
            )
        } else {
            Problem::new(
                431,
                format!(
                    "The request head is longer than {HEAD_BYTES_MAX} bytes. Send fewer or shorter header fields."
                ),
            )
        }
    }
}

/// What to say to someone who does not speak HTTP at all.
fn not_http(data: &[u8]) -> Problem {
    if data[0] == 0x16 {
        Problem::new(
            400,
            "This looks like a TLS handshake, but this port speaks plain HTTP/1.1. Use http://, or put a TLS proxy in front.",
        )
    } else {
        Problem::new(400, format!("A request must begin with a method; found the byte 0x{:02x}.", data[0]))
    }
}

/// Refuses a first line that cannot be HTTP/1.x as soon as it is complete, so that a client speaking another
/// protocol hears of it instead of waiting for an empty line it will never send.
fn check_request_line(line: &[u8]) -> Result<(), Problem> {
    let version = line.rsplit(|&byte| byte == b' ').next().unwrap_or(line);
    match version {
        b"HTTP/1.1" | b"HTTP/1.0" => Ok(()),
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            Err(Problem::new(
                505,
                format!("Found {}; this server speaks HTTP/1.1 and HTTP/1.0.", excerpt(version)),
            ))
        }
        _ if line.first() == Some(&b'*') => Err(Problem::new(
            400,
            "This looks like the Redis protocol, but this port speaks HTTP/1.1. Redis clients belong on the other port (--port).",
        )),
        _ => Err(Problem::new(
            400,
            format!("The first line must be METHOD SP target SP HTTP/1.1; found \"{}\".", excerpt(line)),
        )),
    }
}

/// How long the connection lives after this request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) enum Persistence {
    /// HTTP/1.1 without a wish: stays open, nothing to say about it.
    #[default]
    KeepAlive,
    /// HTTP/1.0 that asked to keep it: must be told so.
    KeepAliveAnnounced,
    /// Closed after the response, which says so.
    Close,
}

/// How the request's body is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// Neither Content-Length nor Transfer-Encoding: no body.
    Absent,
    /// Content-Length.
    Length(u64),
    /// Transfer-Encoding: chunked.
    Chunked,
}

/// A parsed head. What concerns every request is digested; the rest stays in `fields`.
pub(super) struct Head<'b, 'h> {
    pub(super) method: &'b str,
    pub(super) target: &'b str,
    pub(super) fields: &'h [Header<'b>],
    pub(super) framing: Framing,
    pub(super) persistence: Persistence,
    /// HTTP/1.1 Expect: 100-continue.
    pub(super) expects_continue: bool,
    /// An expectation other than 100-continue.
    pub(super) unknown_expectation: bool,
    /// The effective host: the authority of an absolute target, else the Host field. `None`: HTTP/1.0 without.
    pub(super) host: Option<&'b [u8]>,
    pub(super) if_match: bool,
    pub(super) if_none_match: bool,
    pub(super) origin: Option<&'b [u8]>,
    pub(super) fetch_site: Option<&'b [u8]>,
    pub(super) authorization: Option<&'b [u8]>,
    pub(super) content_encoding: Option<&'b [u8]>,
    pub(super) content_range: bool,
    pub(super) ttl_ms: Option<&'b [u8]>,
    pub(super) durability: Option<&'b [u8]>,
    pub(super) token: Option<&'b [u8]>,
    pub(super) last_event_id: Option<&'b [u8]>,
    pub(super) lsn: Option<&'b [u8]>,
    pub(super) wait_ms: Option<&'b [u8]>,
}

impl<'b> Head<'b, '_> {
    /// The values of every field called `name`.
    pub(super) fn values<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'b [u8]> + 's {
        self.fields.iter().filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
    }
}

/// Room for the fields of one head; uninitialised, because clearing 64 of them costs as much as parsing three.
pub(super) type FieldSlots<'b> = [MaybeUninit<Header<'b>>; HEAD_FIELDS_MAX];

/// Parses a complete head. Every error closes the connection: where the body would begin or end is in doubt.
pub(super) fn parse<'b, 'h>(bytes: &'b [u8], slots: &'h mut FieldSlots<'b>) -> Result<Head<'b, 'h>, Problem> {
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(bytes, slots) {
        Ok(httparse::Status::Complete(length)) if length == bytes.len() => {}
        Err(httparse::Error::TooManyHeaders) => {
            return Err(Problem::new(
                431,
                format!("The request has more than {HEAD_FIELDS_MAX} header fields."),
            ));
        }
        Err(httparse::Error::HeaderName) => {
            return Err(Problem::new(
                400,
                "A header field name is malformed: it must be one word of letters, digits and -, directly followed by a colon.",
            ));
        }
        Err(httparse::Error::HeaderValue) => {
            return Err(Problem::new(
                400,
                "A header field value holds a control character (NUL, CR without LF or another).",
            ));
        }
        // An end other than the scan's would mean that the two disagree about a line end; nothing may follow.
        _ => {
            return Err(Problem::new(
                400,
                "The request line is malformed: METHOD SP target SP HTTP/1.1, one space each, the target percent-encoded.",
            ));
        }
    }
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version) else {
        return Err(Problem::new(400, "The request line is incomplete."));
    };
    digest(method, target, minor, request.headers)
}

fn digest<'b, 'h>(
    method: &'b str,
    target: &'b str,
    minor: u8,
    fields: &'h [Header<'b>],
) -> Result<Head<'b, 'h>, Problem> {
    let mut head = Head {
        method,
        target,
        fields,
        framing: Framing::Absent,
        persistence: if minor == 0 { Persistence::Close } else { Persistence::KeepAlive },
        expects_continue: false,
        unknown_expectation: false,
        host: None,
        if_match: false,
        if_none_match: false,
        origin: None,
        fetch_site: None,
        authorization: None,
        content_encoding: None,
        content_range: false,
        ttl_ms: None,
        durability: None,
        token: None,
        last_event_id: None,
        lsn: None,
        wait_ms: None,
    };
    let mut length: Option<u64> = None;
    let mut transfer_encoding = TransferEncoding::Absent;
    let (mut close, mut keep_alive) = (false, false);
    for field in fields {
        let value = field.value;
        // The length sorts out almost every field before a byte is compared.
        match field.name.len() {
            4 if is(field, "host") => set_once(&mut head.host, value, "Host")?,
            6 if is(field, "expect") => {
                if value.eq_ignore_ascii_case(b"100-continue") {
                    head.expects_continue = minor > 0;
                } else {
                    head.unknown_expectation = true;
                }
            }
            6 if is(field, "origin") => head.origin = Some(value),
            8 if is(field, "if-match") => head.if_match = true,
            10 if is(field, "connection") => {
                for option in value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
                    close |= option.eq_ignore_ascii_case(b"close");
                    keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                }
            }
            13 if is(field, "if-none-match") => head.if_none_match = true,
            13 if is(field, "authorization") => set_once(&mut head.authorization, value, "Authorization")?,
            13 if is(field, "content-range") => head.content_range = true,
            14 if is(field, "content-length") => {
                set_once(&mut length, content_length(value)?, "Content-Length")?
            }
            14 if is(field, "sec-fetch-site") => head.fetch_site = Some(value),
            16 if is(field, "content-encoding") => head.content_encoding = Some(value),
            17 if is(field, "transfer-encoding") => transfer_encoding.add(value),
            17 if is(field, "x-millrace-ttl-ms") => set_once(&mut head.ttl_ms, value, "X-Millrace-TTL-Ms")?,
            16 if is(field, "x-millrace-token") => set_once(&mut head.token, value, "X-Millrace-Token")?,
            13 if is(field, "last-event-id") => set_once(&mut head.last_event_id, value, "Last-Event-ID")?,
            14 if is(field, "x-millrace-lsn") => set_once(&mut head.lsn, value, "X-Millrace-LSN")?,
            18 if is(field, "x-millrace-wait-ms") => {
                set_once(&mut head.wait_ms, value, "X-Millrace-Wait-Ms")?
            }
            21 if is(field, "x-millrace-durability") => {
                set_once(&mut head.durability, value, "X-Millrace-Durability")?
            }
            _ => {}
        }
    }
    if close {
        head.persistence = Persistence::Close;
    } else if keep_alive && minor == 0 {
        head.persistence = Persistence::KeepAliveAnnounced;
    }
    head.framing = framing(length, transfer_encoding, minor)?;
    if minor > 0 && head.host.is_none() {
        return Err(Problem::new(400, "An HTTP/1.1 request must have a Host field."));
    }
    resolve_absolute_target(&mut head)?;
    // httparse has seen to blanks and control characters.
    if !head.target.is_ascii() || memchr::memchr(b'#', head.target.as_bytes()).is_some() {
        return Err(Problem::new(
            400,
            "The target holds a byte that must be percent-encoded (a non-ASCII byte or #).",
        ));
    }
    Ok(head)
}

fn is(field: &Header<'_>, name: &str) -> bool {
    field.name.eq_ignore_ascii_case(name)
}

/// Of two fields that contradict each other one program takes the first and another the last.
fn set_once<T>(slot: &mut Option<T>, value: T, name: &str) -> Result<(), Problem> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(Problem::new(400, format!("The request has more than one {name} field."))),
    }
}

/// Digits only: `+5`, `5, 5`, `0x5` and the empty value are how request smuggling begins.
fn content_length(value: &[u8]) -> Result<u64, Problem> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(Problem::new(
            400,
            format!("Content-Length must be one decimal number; found \"{}\".", excerpt(value)),
        ));
    }
    let mut length: u64 = 0;
    for &digit in value {
        // Saturating: a length beyond u64 is well-formed and simply larger than any limit.
        length = length.saturating_mul(10).saturating_add(u64::from(digit - b'0'));
    }
    Ok(length)
}

/// What all Transfer-Encoding fields together say.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TransferEncoding {
    Absent,
    Chunked,
    /// Only codings this server does not have, so far.
    Unknown,
    /// Chunked last, after such a coding.
    UnknownThenChunked,
    /// Malformed, or chunked is not last and alone.
    Broken,
}

impl TransferEncoding {
    fn add(&mut self, value: &[u8]) {
        for coding in value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
            let chunked = coding.eq_ignore_ascii_case(b"chunked");
            let well_formed = !coding.is_empty() && coding.iter().all(|&byte| is_token_byte(byte));
            *self = match (*self, chunked) {
                (TransferEncoding::Absent, true) => TransferEncoding::Chunked,
                (TransferEncoding::Unknown, true) => TransferEncoding::UnknownThenChunked,
                (TransferEncoding::Absent | TransferEncoding::Unknown, false) if well_formed => {
                    TransferEncoding::Unknown
                }
                _ => TransferEncoding::Broken,
            };
        }
    }
}

fn framing(length: Option<u64>, transfer_encoding: TransferEncoding, minor: u8) -> Result<Framing, Problem> {
    if transfer_encoding == TransferEncoding::Absent {
        return Ok(length.map_or(Framing::Absent, Framing::Length));
    }
    if length.is_some() {
        return Err(Problem::new(
            400,
            "The request has both Content-Length and Transfer-Encoding. Send one of them.",
        ));
    }
    if minor == 0 {
        return Err(Problem::new(
            400,
            "HTTP/1.0 has no Transfer-Encoding. Send Content-Length, or use HTTP/1.1.",
        ));
    }
    match transfer_encoding {
        TransferEncoding::Chunked => Ok(Framing::Chunked),
        TransferEncoding::UnknownThenChunked => Err(Problem::new(
            501,
            "The only transfer coding this server has is chunked. Send the body without the other one.",
        )),
        _ => Err(Problem::new(
            400,
            "Transfer-Encoding must be exactly \"chunked\"; otherwise the body has no certain end.",
        )),
    }
}

/// An absolute-form target (as sent to proxies) names the authority itself; Host is then ignored (RFC 9112, 3.2.2).
fn resolve_absolute_target(head: &mut Head<'_, '_>) -> Result<(), Problem> {
    if head.target.starts_with('/') {
        return Ok(());
    }
    if let Some((scheme, rest)) = head.target.split_once("://")
        && scheme.eq_ignore_ascii_case("http")
    {
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        head.host = Some(authority.as_bytes());
        head.target = if path.is_empty() { "/" } else { path };
        return Ok(());
    }
    if head.target == "*" && head.method == "OPTIONS" || head.method == "CONNECT" {
        return Ok(());
    }
    Err(Problem::new(
        400,
        format!("The target must begin with / or http://; found \"{}\".", excerpt(head.target.as_bytes())),
    ))
}

/// RFC 9110 `tchar`.
pub(super) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
