//! What the server says of itself, for the report: a figure whose server cannot be named and set up again is half a figure.
//!
//! Over a connection of its own before the run, RESP servers are asked `INFO server` and `CONFIG GET *`, memcached
//! `version`, and of HTTP servers the header `Server` is kept. Whoever does not answer, or not like that, has told nothing: it is
//! no failure. What is secret, or may be, is left out.

use crate::client::Plan;
use crate::stages::{Probe, Stream, read_line};
use crate::workload::Protocol;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};

/// Longer answers, and longer values, are nobody's configuration.
const WORDS_MAX: usize = 2_000;
const WORD_BYTES_MAX: usize = 4_096;
/// And no server says more of itself.
const INFO_BYTES_MAX: usize = 64 << 10;
const HEADERS_MAX: usize = 100;
const VERSION_CHARS_MAX: usize = 200;
/// A setting whose name holds one of these may be a secret.
const SECRET: [&str; 4] = ["pass", "auth", "secret", "user"];
/// The lines of INFO that say what it is: those who answer like Redis say which Redis, and what they are.
const VERSIONS: [&str; 7] = [
    "server_name",
    "redis_version",
    "millrace_version",
    "valkey_version",
    "dragonfly_version",
    "keydb_version",
    "garnet_version",
];

/// What a server says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// What it is; `None` where it does not tell.
    pub version: Option<String>,
    /// Its settings; empty where it does not tell.
    pub configuration: BTreeMap<String, String>,
}

/// Asks a plan's target.
pub fn read(plan: &Plan) -> Told {
    let probe = Probe::of(plan);
    let version = match plan.workload.protocol {
        Protocol::Resp => ask_info(&probe),
        Protocol::Memcache => ask_memcache(&probe),
        Protocol::Http => ask_http(&probe, &plan.workload.http_host),
    };
    let configuration = match plan.workload.protocol {
        Protocol::Resp => ask(&probe).unwrap_or_default(),
        Protocol::Memcache | Protocol::Http => BTreeMap::new(),
    };
    Told { version: version.and_then(|text| shown(&text)), configuration }
}

/// On one line of a terminal, and not for ever; `None` if nothing is left.
fn shown(text: &str) -> Option<String> {
    let text: String = text.chars().filter(|one| !one.is_control()).take(VERSION_CHARS_MAX).collect();
    Some(text.trim().to_string()).filter(|text| !text.is_empty())
}

/// Sends one RESP command, behind AUTH where there is a password.
fn resp(probe: &Probe, command: &str) -> Option<BufReader<Box<dyn Stream>>> {
    let mut stream = probe.connect().ok()?;
    let mut request = String::new();
    if let Some(password) = probe.password() {
        request = format!("*2\r\n$4\r\nAUTH\r\n${}\r\n{password}\r\n", password.len());
    }
    request.push_str(command);
    stream.write_all(request.as_bytes()).ok()?;
    let mut reader = BufReader::new(stream);
    if probe.password().is_some() && read_line(&mut reader).ok()? != "+OK" {
        return None;
    }
    Some(reader)
}

fn ask_info(probe: &Probe) -> Option<String> {
    let mut reader = resp(probe, "*2\r\n$4\r\nINFO\r\n$6\r\nserver\r\n")?;
    versions(&bulk(&mut reader, INFO_BYTES_MAX)?)
}

/// The lines of INFO that name the server, as it writes them.
fn versions(info: &str) -> Option<String> {
    let is_version = |line: &&str| {
        line.split_once(':').is_some_and(|(name, value)| VERSIONS.contains(&name) && !value.is_empty())
    };
    let lines: Vec<String> = info.lines().filter(is_version).map(|line| line.replacen(':', " ", 1)).collect();
    (!lines.is_empty()).then(|| lines.join(", "))
}

fn ask_memcache(probe: &Probe) -> Option<String> {
    let mut stream = probe.connect().ok()?;
    stream.write_all(b"version\r\n").ok()?;
    let answer = read_line(&mut BufReader::new(stream)).ok()?;
    Some(format!("version {}", answer.strip_prefix("VERSION ")?))
}

fn ask_http(probe: &Probe, host: &str) -> Option<String> {
    let mut stream = probe.connect().ok()?;
    let authorization =
        probe.password().map(|password| format!("Authorization: Bearer {password}\r\n")).unwrap_or_default();
    // Whatever becomes of it: the header is the same.
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: {host}\r\n{authorization}Connection: close\r\n\r\n")
        .ok()?;
    server_header(&mut BufReader::new(stream))
}

/// The header `Server` of an answer.
fn server_header(reader: &mut impl BufRead) -> Option<String> {
    if !read_line(reader).ok()?.starts_with("HTTP/1.") {
        return None;
    }
    for _ in 0..HEADERS_MAX {
        let line = read_line(reader).ok()?;
        let (name, value) = line.split_once(':')?;
        if name.eq_ignore_ascii_case("server") {
            return Some(value.trim().to_string());
        }
    }
    None
}

fn ask(probe: &Probe) -> Option<BTreeMap<String, String>> {
    parse(&mut resp(probe, "*3\r\n$6\r\nCONFIG\r\n$3\r\nGET\r\n$1\r\n*\r\n")?)
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
        let (name, value) = (bulk(reader, WORD_BYTES_MAX)?, bulk(reader, WORD_BYTES_MAX)?);
        if !SECRET.iter().any(|part| name.contains(part)) {
            settings.insert(name, value);
        }
    }
    Some(settings)
}

fn bulk(reader: &mut impl BufRead, bytes_max: usize) -> Option<String> {
    let length: usize = read_line(reader).ok()?.strip_prefix('$')?.parse().ok()?;
    if length > bytes_max {
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
    fn a_server_is_named_in_its_own_words() {
        let info = "# Server\r\nredis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.0.1\r\ngcc_version:12.2.0\r\n";
        assert_eq!(
            versions(info).as_deref(),
            Some("redis_version 7.2.4, server_name valkey, valkey_version 8.0.1")
        );
        for nothing in ["", "# Server\r\n", "redis_version:\r\n", "uptime_in_seconds:7\r\n"] {
            assert_eq!(versions(nothing), None, "{nothing:?}");
        }
        let header = |text: &str| server_header(&mut text.as_bytes());
        let answer = "HTTP/1.1 404 Not Found\r\nDate: now\r\nsErver:  nginx/1.22.1 \r\n\r\nServer: body\r\n";
        assert_eq!(header(answer).as_deref(), Some("nginx/1.22.1"));
        // What stands behind the headers is none of them.
        assert_eq!(header("HTTP/1.1 200 OK\r\nDate: now\r\n\r\nServer: body\r\n"), None);
        assert_eq!(header("Server: no HTTP\r\n\r\n"), None);
        // It is shown on a terminal.
        assert_eq!(shown(" a\x1b[31m\tb\n").as_deref(), Some("a[31mb"));
        assert_eq!(shown("\r\n "), None);
        assert_eq!(shown(&"x".repeat(999)).map(|text| text.len()), Some(VERSION_CHARS_MAX));
    }

    /// A server that says one thing to whoever asks, once for each connection, and what it was asked.
    fn told(protocol: Protocol, says: &'static str) -> (Told, Vec<String>) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let mut plan = crate::report::tests::plan(false);
        plan.target = reactor::server::event::Target::Tcp(listener.local_addr().expect("bound"));
        plan.workload.protocol = protocol;
        let connections = if protocol == Protocol::Resp { 2 } else { 1 };
        let server = std::thread::spawn(move || {
            let answer = |_| {
                let (stream, _) = listener.accept().expect("it asks");
                let mut reader = BufReader::new(stream);
                let asked = read_line(&mut reader).expect("a line");
                reader.get_mut().write_all(says.as_bytes()).expect("it listens");
                // Until it has read that: what is closed with bytes unread is reset.
                let _ = std::io::copy(&mut reader, &mut std::io::sink());
                asked
            };
            (0..connections).map(answer).collect()
        });
        (read(&plan), server.join().expect("no panic"))
    }

    #[test]
    fn each_protocol_is_asked_in_its_own_way() {
        let version = |protocol, says| {
            let (told, asked) = told(protocol, says);
            (told.version, asked)
        };
        let (of_memcache, asked) = version(Protocol::Memcache, "VERSION 1.6.38\r\n");
        assert_eq!(
            (of_memcache.as_deref(), &asked[..]),
            (Some("version 1.6.38"), &["version".to_string()][..])
        );
        assert_eq!(version(Protocol::Memcache, "ERROR\r\n").0, None);
        let (of_http, asked) = version(Protocol::Http, "HTTP/1.1 200 OK\r\nServer: nginx\r\n\r\n");
        assert_eq!(
            (of_http.as_deref(), &asked[..]),
            (Some("nginx"), &["GET /metrics HTTP/1.1".to_string()][..])
        );
        let (of_resp, asked) = version(Protocol::Resp, "$19\r\nredis_version:7.4.0\r\n");
        assert_eq!((of_resp.as_deref(), asked.len()), (Some("redis_version 7.4.0"), 2));
        assert_eq!(told(Protocol::Resp, "-ERR unknown command\r\n").0, Told::default());
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
