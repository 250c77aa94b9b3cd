//! Who may use the server over HTTP: hosts, passwords, origins.
//!
//! A browser is the danger here. It runs pages of anyone's inside the network the server trusts, so three
//! things keep such pages out: the Host must not be a name an attacker could own, the password (if there is
//! one) comes with every request, and a request that changes data must not come from another origin. No answer
//! has a CORS field, so no other origin's page can read one either.

use core::net::{Ipv4Addr, Ipv6Addr};

use alloc::format;
use alloc::vec::Vec;

use super::head::Head;
use super::response::{Problem, excerpt};
use crate::engine::Shared;
use crate::session::Session;

/// DNS rebinding makes a browser take this server for the attacker's own host; the name it then sends gives it away.
pub(super) fn check_host(shared: &mut Shared, session: &Session, host: Option<&[u8]>) -> Result<(), Problem> {
    // HTTP/1.0 without Host: no browser does that. AF_UNIX: no browser gets there.
    let Some(host) = host else { return Ok(()) };
    // Clients repeat themselves: reading an address costs more than comparing it with the last one.
    if session.peer.unix || (host == shared.http.literal_host && !host.is_empty()) {
        return Ok(());
    }
    let Some((kind, name)) = classify_host(host) else {
        return Err(Problem::new(400, format!("\"{}\" is not a host with an optional port.", excerpt(host))));
    };
    if kind == HostKind::Literal {
        shared.http.literal_host.clear();
        shared.http.literal_host.extend_from_slice(host);
        return Ok(());
    }
    let mut allowed = shared.config.http_allowed_hosts.split([' ', ',']).filter(|entry| !entry.is_empty());
    if allowed.any(|entry| entry == "*" || entry.eq_ignore_ascii_case(name)) {
        return Ok(());
    }
    Err(Problem::new(
        421,
        format!(
            "The host \"{}\" is neither an IP address, localhost nor an allowed name. Add it to the setting http-allowed-hosts.",
            excerpt(name.as_bytes())
        ),
    ))
}

/// HTTP carries the password with every request; a connection remembers nothing.
pub(super) fn authenticate(
    shared: &Shared,
    session: &mut Session,
    authorization: Option<&[u8]>,
) -> Result<(), Problem> {
    let password = shared.config.requirepass.as_bytes();
    session.authenticated =
        password.is_empty() || authorization.is_some_and(|credentials| is_authorized(credentials, password));
    if session.authenticated {
        return Ok(());
    }
    Err(Problem::new(
        401,
        if authorization.is_some() {
            "The password is wrong, or the scheme is neither Bearer nor Basic."
        } else {
            "This server has a password. Send it as Authorization: Bearer PASSWORD, or Basic with any user name."
        },
    ))
}

fn is_authorized(credentials: &[u8], password: &[u8]) -> bool {
    let Some(blank) = memchr::memchr(b' ', credentials) else { return false };
    let (scheme, token) = (&credentials[..blank], credentials[blank..].trim_ascii());
    if scheme.eq_ignore_ascii_case(b"bearer") {
        return equal_in_constant_time(token, password);
    }
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return false;
    }
    let Some(decoded) = decode_base64(token) else { return false };
    memchr::memchr(b':', &decoded)
        .is_some_and(|colon| equal_in_constant_time(&decoded[colon + 1..], password))
}

/// Does not tell by its duration how much of a guess was right (only how long the guess is).
fn equal_in_constant_time(guess: &[u8], secret: &[u8]) -> bool {
    let mut difference = guess.len() ^ secret.len();
    for (at, &byte) in guess.iter().enumerate() {
        difference |= usize::from(byte ^ secret[at % secret.len()]);
    }
    difference == 0
}

fn decode_base64(text: &[u8]) -> Option<Vec<u8>> {
    let digits = text.strip_suffix(b"==").or_else(|| text.strip_suffix(b"=")).unwrap_or(text);
    let mut decoded = Vec::with_capacity(digits.len() * 3 / 4);
    let (mut bits, mut count) = (0_u32, 0);
    for &digit in digits {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            decoded.push((bits >> count) as u8);
        }
    }
    Some(decoded)
}

/// A browser says where a page that sends a request came from. Pages of other origins may not write; the host
/// check has seen to it that "same origin" means us. Clients that are no browsers send neither field.
pub(super) fn check_origin(head: &Head<'_, '_>) -> Result<(), Problem> {
    let same_site = head.fetch_site.is_none_or(|site| site == b"same-origin" || site == b"none");
    let same_origin = head.origin.is_none_or(|origin| {
        let authority = origin.strip_prefix(b"http://").or_else(|| origin.strip_prefix(b"https://"));
        authority.is_some()
            && authority.zip(head.host).is_some_and(|(ours, host)| ours.eq_ignore_ascii_case(host))
    });
    if same_site && same_origin {
        return Ok(());
    }
    Err(Problem::new(
        403,
        format!(
            "A page of another origin (\"{}\") may not change data here. Send the request from a program, or from a page of this host.",
            excerpt(head.origin.or(head.fetch_site).unwrap_or_default())
        ),
    ))
}

/// Which hosts a request may be addressed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HostKind {
    /// An IP literal or `localhost`: no DNS name of an attacker's resolves to it.
    Literal,
    /// Another name: allowed if configured.
    Name,
}

/// Splits `host[:port]` and says what kind of host it is. `None`: not a host at all.
fn classify_host(host: &[u8]) -> Option<(HostKind, &str)> {
    let host = core::str::from_utf8(host).ok()?;
    if let Some(rest) = host.strip_prefix('[') {
        let (literal, port) = rest.split_once(']')?;
        literal.parse::<Ipv6Addr>().ok()?;
        return is_port_suffix(port).then_some((HostKind::Literal, literal));
    }
    let (name, port) = host.split_at(host.find(':').unwrap_or(host.len()));
    if name.is_empty()
        || !is_port_suffix(port)
        || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~'))
    {
        return None;
    }
    let literal = name.eq_ignore_ascii_case("localhost") || name.parse::<Ipv4Addr>().is_ok();
    Some((if literal { HostKind::Literal } else { HostKind::Name }, name))
}

fn is_port_suffix(text: &str) -> bool {
    text.is_empty()
        || (text.len() <= 6
            && text.starts_with(':')
            && text.bytes().skip(1).all(|byte| byte.is_ascii_digit()))
}
