//! A server that answers every request after a fixed time, each connection for itself: `loadgen calibrate --paced 20ms`.
//!
//! It is what load generators are held against each other with (`loadgen compare --tools`). A closed loop of N connections can
//! do no more than N requests in that time, and its latency is that time, whoever asks: generators that have half of their
//! core left must say the same. It speaks RESP and HTTP/1.1, a thread for each connection, and writes nothing down.

use super::server::take_command;
use crate::system;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// What every key holds.
const VALUE: [u8; 64] = [b'x'; 64];
/// A request that is longer is none.
const REQUEST_BYTES_MAX: usize = 1 << 20;

/// What is spoken at a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speaks {
    Resp,
    Http,
}

/// Serves at both ports until it is killed.
pub fn serve(delay: Duration, port: u16, http_port: u16) -> ExitCode {
    let listen = |port: u16| {
        TcpListener::bind(("127.0.0.1", port))
            .map_err(|error| format!("cannot listen at 127.0.0.1:{port}: {error}"))
    };
    match (listen(port), listen(http_port)) {
        (Ok(resp), Ok(http)) => {
            std::thread::spawn(move || accept(&http, Speaks::Http, delay));
            accept(&resp, Speaks::Resp, delay);
            crate::run::failed("the listener is gone")
        }
        (Err(error), _) | (_, Err(error)) => crate::run::failed(&error),
    }
}

fn accept(listener: &TcpListener, speaks: Speaks, delay: Duration) {
    while let Ok((stream, _)) = listener.accept() {
        // One that cannot be served is closed; its peer says so.
        let _ = std::thread::Builder::new().name("paced".into()).spawn(move || {
            // Without it every sleep ends up to 50 µs late.
            system::set_timer_slack_ns(1);
            let _ = stream.set_nodelay(true);
            answer(stream, speaks, delay)
        });
    }
}

/// Serves one connection to its end: each request takes `delay` from the moment it is seen, one after the other.
fn answer(mut stream: TcpStream, speaks: Speaks, delay: Duration) -> Option<()> {
    let (mut input, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
    loop {
        let count = stream.read(&mut buffer).ok().filter(|count| *count > 0)?;
        let mut due = Instant::now();
        input.extend_from_slice(&buffer[..count]);
        let mut rest = &input[..];
        while let Some((reply, is_paced, after)) = next(rest, speaks) {
            rest = after;
            if is_paced {
                due += delay;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            stream.write_all(&reply).ok()?;
        }
        input = rest.to_vec();
        if input.len() > REQUEST_BYTES_MAX {
            return None;
        }
    }
}

/// The reply to the first whole request, whether it takes its time, and what follows the request.
fn next(bytes: &[u8], speaks: Speaks) -> Option<(Vec<u8>, bool, &[u8])> {
    match speaks {
        Speaks::Resp => {
            let (name, rest) = take_command(bytes)?;
            let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
            let (reply, is_paced) = match () {
                () if is(b"GET") => ([b"$64\r\n", &VALUE[..], b"\r\n"].concat(), true),
                () if is(b"SET") => (b"+OK\r\n".to_vec(), true),
                () if is(b"PING") => (b"+PONG\r\n".to_vec(), false),
                // What a tool asks before it begins is none of its load.
                () => (b"-ERR this server answers GET, SET and PING only\r\n".to_vec(), false),
            };
            Some((reply, is_paced, rest))
        }
        Speaks::Http => {
            let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
            let (reply, is_paced) = match bytes.starts_with(b"GET /v1/") {
                true => ([b"HTTP/1.1 200 OK\r\nContent-Length: 64\r\n\r\n", &VALUE[..]].concat(), true),
                false => (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec(), false),
            };
            Some((reply, is_paced, &bytes[end..]))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_answered_whole_and_only_the_load_is_paced() {
        let get = b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n";
        let both = [&get[..], b"*1\r\n$4\r\nPING\r\n"].concat();
        for cut in 0..get.len() {
            assert_eq!(next(&both[..cut], Speaks::Resp), None, "{cut}");
        }
        let (reply, is_paced, rest) = next(&both, Speaks::Resp).expect("whole");
        assert_eq!((reply.len(), is_paced), (5 + 64 + 2, true));
        assert_eq!(next(rest, Speaks::Resp), Some((b"+PONG\r\n".to_vec(), false, &b""[..])));
        let (reply, is_paced, _) = next(b"*1\r\n$4\r\nINFO\r\n", Speaks::Resp).expect("whole");
        assert!(reply.starts_with(b"-ERR") && !is_paced);
        let request = b"GET /v1/keys/key:1 HTTP/1.1\r\nHost: a\r\n\r\nGET ";
        let (reply, is_paced, rest) = next(request, Speaks::Http).expect("whole");
        assert!(reply.starts_with(b"HTTP/1.1 200") && reply.ends_with(&VALUE) && is_paced);
        assert_eq!((rest, next(rest, Speaks::Http)), (&b"GET "[..], None));
        assert!(
            !next(b"GET / HTTP/1.1\r\n\r\n", Speaks::Http).expect("whole").1,
            "whether it is there costs nothing"
        );
    }

    #[test]
    fn every_request_takes_its_time_on_its_own_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let delay = Duration::from_millis(40);
        std::thread::spawn(move || accept(&listener, Speaks::Resp, delay));
        // One that never asks a whole request keeps nobody waiting.
        let mut silent = TcpStream::connect(address).expect("it listens");
        silent.write_all(b"*2\r\n$3\r\nGET").expect("it reads");
        let began = Instant::now();
        let mut stream = TcpStream::connect(address).expect("it listens");
        // Two at once: the second waits for the first.
        stream.write_all(&b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n".repeat(2)).expect("it reads");
        let mut replies = [0; 2 * 71];
        stream.read_exact(&mut replies).expect("it answers");
        // A busy machine may be late; it is never early.
        assert!(began.elapsed() >= delay * 2, "{:?}", began.elapsed());
    }
}
