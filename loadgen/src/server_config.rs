//! What the server says of its own configuration, for the manifest: a figure whose server cannot be set up again is
//! half a figure.
//!
//! RESP servers are asked `CONFIG GET *` over a connection of its own before the run. Whoever does not answer, or not
//! like that, has none: it is no failure. What is secret, or may be, is left out.

use crate::client::Plan;
use crate::stages::{Probe, read_line};
use crate::workload::Protocol;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};

/// Longer answers, and longer values, are nobody's configuration.
const WORDS_MAX: usize = 2_000;
const WORD_BYTES_MAX: usize = 4_096;
/// A setting whose name holds one of these may be a secret.
const SECRET: [&str; 4] = ["pass", "auth", "secret", "user"];

/// The configuration of a plan's target; empty where it does not tell.
pub fn read(plan: &Plan) -> BTreeMap<String, String> {
    if plan.workload.protocol != Protocol::Resp {
        return BTreeMap::new();
    }
    ask(&Probe::of(plan)).unwrap_or_default()
}

fn ask(probe: &Probe) -> Option<BTreeMap<String, String>> {
    let mut stream = probe.connect().ok()?;
    let mut request = Vec::new();
    if let Some(password) = probe.password() {
        let auth = format!("*2\r\n$4\r\nAUTH\r\n${}\r\n{password}\r\n", password.len());
        request.extend_from_slice(auth.as_bytes());
    }
    request.extend_from_slice(b"*3\r\n$6\r\nCONFIG\r\n$3\r\nGET\r\n$1\r\n*\r\n");
    stream.write_all(&request).ok()?;
    let mut reader = BufReader::new(stream);
    if probe.password().is_some() && read_line(&mut reader).ok()? != "+OK" {
        return None;
    }
    parse(&mut reader)
}

/// An array (RESP2) or a map (RESP3) of bulk strings.
fn parse(reader: &mut impl BufRead) -> Option<BTreeMap<String, String>> {
    let head = read_line(reader).ok()?;
    let words: usize = match head.split_at_checked(1)? {
        ("*", count) => count.parse().ok()?,
        ("%", count) => count.parse::<usize>().ok()?.checked_mul(2)?,
        _ => return None,
    };
    if words > WORDS_MAX || words % 2 == 1 {
        return None;
    }
    let mut settings = BTreeMap::new();
    for _ in 0..words / 2 {
        let (name, value) = (bulk(reader)?, bulk(reader)?);
        if !SECRET.iter().any(|part| name.contains(part)) {
            settings.insert(name, value);
        }
    }
    Some(settings)
}

fn bulk(reader: &mut impl BufRead) -> Option<String> {
    let length: usize = read_line(reader).ok()?.strip_prefix('$')?.parse().ok()?;
    if length > WORD_BYTES_MAX {
        return None;
    }
    let mut bytes = vec![0; length + 2];
    reader.read_exact(&mut bytes).ok()?;
    bytes.truncate(length);
    String::from_utf8(bytes).ok()
}

/// Whether writes are on stable storage when they are acknowledged, or on their way there: then threads beside the
/// one that serves need a core. `None`: it cannot be told.
pub fn is_durable(settings: &BTreeMap<String, String>) -> Option<bool> {
    if let Some(durability) = settings.get("durability") {
        return Some(durability != "off");
    }
    settings.get("appendonly").map(|appendonly| appendonly == "yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_and_secrets_are_not_kept() {
        let resp2 = "*6\r\n$10\r\nappendonly\r\n$3\r\nyes\r\n$11\r\nrequirepass\r\n$6\r\nsesame\r\n$4\r\nsave\r\n$0\r\n\r\n";
        let settings = parse(&mut resp2.as_bytes()).expect("well-formed");
        assert_eq!(settings.keys().collect::<Vec<_>>(), ["appendonly", "save"]);
        assert_eq!(is_durable(&settings), Some(true));
        let resp3 = "%1\r\n$10\r\ndurability\r\n$3\r\noff\r\n";
        assert_eq!(is_durable(&parse(&mut resp3.as_bytes()).expect("well-formed")), Some(false));
        assert_eq!(is_durable(&BTreeMap::new()), None);
    }

    #[test]
    fn other_answers_are_no_configuration() {
        for answer in [
            "",
            "-ERR unknown command\r\n",
            "*3\r\n$1\r\na\r\n",
            "*99999999999\r\n",
            "*2\r\n$-1\r\n",
            "%x\r\n",
            "+\r\n",
        ] {
            assert_eq!(parse(&mut answer.as_bytes()), None, "{answer:?}");
        }
    }
}
