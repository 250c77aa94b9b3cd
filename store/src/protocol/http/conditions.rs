//! Conditional requests: lists of entity tags, and what they say about a value (RFC 9110, section 13).

use alloc::format;
use alloc::vec::Vec;

use super::head::Head;
use super::response::{Problem, excerpt};
use super::routes::{Method, Request, slice};
use crate::protocol::resp::Span;

/// Appends the values of a conditional field, which may be spread over several, as one list.
pub(super) fn push_condition(
    arguments: &mut Vec<u8>,
    head: &Head<'_, '_>,
    name: &'static str,
) -> Result<Span, Problem> {
    let start = arguments.len();
    for value in head.values(name) {
        if arguments.len() > start {
            arguments.push(b',');
        }
        arguments.extend_from_slice(value);
    }
    let list = &arguments[start..];
    if list != b"*" && (list.is_empty() || EntityTags(list).any(|tag| tag.is_none())) {
        return Err(Problem::new(
            400,
            format!("{name} must be * or a list of entity tags in quotes; found \"{}\".", excerpt(list)),
        ));
    }
    Ok(Span { start: start as u32, len: (arguments.len() - start) as u32 })
}

/// The entity tags of a list: whether weak, and the text between the quotes. `None` for what is none, then ends.
struct EntityTags<'a>(&'a [u8]);

impl<'a> Iterator for EntityTags<'a> {
    type Item = Option<(bool, &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut rest = self.0;
        while let [b' ' | b'\t' | b',', tail @ ..] = rest {
            rest = tail;
        }
        if rest.is_empty() {
            return None;
        }
        self.0 = &[];
        let (weak, quoted) = match rest.strip_prefix(b"W/") {
            Some(tail) => (true, tail),
            None => (false, rest),
        };
        let Some(opened) = quoted.strip_prefix(b"\"") else { return Some(None) };
        let Some(end) = memchr::memchr(b'"', opened) else { return Some(None) };
        let tail = &opened[end + 1..];
        let after = tail.trim_ascii_start();
        if !after.is_empty() && after[0] != b',' {
            return Some(None);
        }
        self.0 = after;
        Some(Some((weak, &opened[..end])))
    }
}

/// Whether the current value, if there is one, is among those a condition names.
fn condition_names(list: &[u8], current: Option<&[u8; 16]>, weak_is_enough: bool) -> bool {
    let Some(current) = current else { return false };
    list == b"*"
        || EntityTags(list)
            .flatten()
            .any(|(weak, tag)| (weak_is_enough || !weak) && tag == current.as_slice())
}

/// What the conditions of a request say about the current value (RFC 9110, section 13.2.2).
pub(super) enum Precondition {
    Holds,
    NotModified,
    Failed,
}

pub(super) fn evaluate(request: &Request, arguments: &[u8], current: Option<&[u8; 16]>) -> Precondition {
    if let Some(span) = request.if_match
        && !condition_names(slice(arguments, span), current, false)
    {
        return Precondition::Failed;
    }
    if let Some(span) = request.if_none_match
        && condition_names(slice(arguments, span), current, true)
    {
        return match request.method {
            Method::Get | Method::Head => Precondition::NotModified,
            _ => Precondition::Failed,
        };
    }
    Precondition::Holds
}

pub(super) fn precondition_failed() -> Problem {
    Problem::new(
        412,
        "The value is not the one the condition names. GET it again for its present ETag, then retry.",
    )
}
