//! A server whose every delay is known: it waits as it was told to, and writes down when it read each request and when
//! it let each reply go.
//!
//! It spins on a core of its own, so that nothing but the delays asked for lies between the two moments. Neither moment can
//! be written down exactly: a request arrived at some time between the last look that did not find it and the return of
//! the read that did, and a reply left at some time during its write. So the truth is a span. Its shorter end, from the
//! read's return to the write's beginning, lies between the generator's own stamps: what a generator reports is never less.
//! Its longer end is what this server certainly did not exceed: beyond it a report is above the truth by what transport,
//! waking and the generator itself cost.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What the server does to requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Behaviour {
    /// Each takes this long, one after the other.
    Delay(Duration),
    /// Each is answered at once, but so often everything stands still for so long.
    Stall {
        /// From the beginning of one stall to that of the next; the first begins that long after the start.
        every: Duration,
        /// How long nothing happens.
        length: Duration,
    },
    /// Replies gather and leave together, so often.
    Burst {
        /// From one release to the next.
        every: Duration,
    },
}

/// A request as the server saw it: nanoseconds since [`Truth::epoch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// The last look that did not find it has begun.
    pub looked_ns: u64,
    /// The read that completed it has returned.
    pub read_ns: u64,
    /// Its reply is about to be written.
    pub replied_ns: u64,
    /// The write has returned.
    pub written_ns: u64,
}

/// What the server wrote down.
#[derive(Debug)]
pub struct Truth {
    /// Where its clock stands at zero.
    pub epoch: Instant,
    /// Every request, in the order in which it was answered.
    pub served: Vec<Served>,
    /// Time that the server's thread wanted to work or look and could not: others had its core.
    pub held_up_ns: u64,
}

/// A gap between two looks of a thread that does nothing but look is somebody else's time from here on.
const HELD_UP_NS: u64 = 20_000;

/// The server while it runs.
#[derive(Debug)]
pub struct Calibrator {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Truth>,
    path: PathBuf,
}

impl Calibrator {
    /// Serves at a socket of that path, on that core.
    pub fn start(path: &Path, behaviour: Behaviour, core: Option<usize>) -> Result<Calibrator, String> {
        let listener = UnixListener::bind(path)
            .map_err(|error| format!("cannot listen at {}: {error}", path.display()))?;
        listener.set_nonblocking(true).map_err(|error| error.to_string())?;
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new().name("calibrator".into()).spawn({
            let stop = Arc::clone(&stop);
            move || {
                if let Some(core) = core {
                    // Unpinned it is noisier, and says so by the time it was held up.
                    let _ = reactor::cpu::pin_to(core);
                }
                serve(&listener, behaviour, &stop)
            }
        });
        let thread = thread.map_err(|error| format!("no thread for the server: {error}"))?;
        Ok(Calibrator { stop, thread, path: path.into() })
    }

    /// Ends it.
    pub fn stop(self) -> Truth {
        self.stop.store(true, Ordering::Relaxed);
        let truth = self.thread.join().expect("the server does not panic");
        let _ = std::fs::remove_file(&self.path);
        truth
    }
}

struct Connection {
    stream: UnixStream,
    input: Vec<u8>,
    /// Requests whose replies are held back: since when each may have been there, and when it was read.
    held: Vec<(u64, u64)>,
    /// When the last look that found nothing began.
    looked_ns: u64,
    open: bool,
}

/// A look for somebody who connects is a system call that everybody else waits for: not every turn has one.
const TURNS_TO_ACCEPT: u32 = 64;

const REPLY: &[u8] = b"$2\r\nok\r\n";
const ERROR: &[u8] = b"-ERR this server answers GET only\r\n";

fn serve(listener: &UnixListener, behaviour: Behaviour, stop: &AtomicBool) -> Truth {
    let epoch = Instant::now();
    let now = || epoch.elapsed().as_nanos() as u64;
    let mut truth = Truth { epoch, served: Vec::with_capacity(1 << 16), held_up_ns: 0 };
    let mut connections: Vec<Connection> = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    let period_ns = match behaviour {
        Behaviour::Stall { every, .. } | Behaviour::Burst { every } => every.as_nanos() as u64,
        Behaviour::Delay(_) => u64::MAX,
    };
    // Nothing is due before there is somebody to feel it.
    let mut due = u64::MAX;
    let mut looked = now();
    let mut turn = 0u32;
    while !stop.load(Ordering::Relaxed) {
        turn = turn.wrapping_add(1);
        if turn.is_multiple_of(TURNS_TO_ACCEPT)
            && let Ok((stream, _)) = listener.accept()
        {
            if stream.set_nonblocking(true).is_ok() {
                let (input, held, looked_ns) = (Vec::new(), Vec::new(), now());
                connections.push(Connection { stream, input, held, looked_ns, open: true });
            }
            due = due.min(now().saturating_add(period_ns));
        }
        let at = now();
        truth.held_up_ns += Some(at - looked).filter(|gap| *gap > HELD_UP_NS).unwrap_or(0);
        if at >= due {
            due = at.max(due + period_ns);
            match behaviour {
                Behaviour::Stall { length, .. } => std::thread::sleep(length),
                _ => connections.iter_mut().for_each(|connection| release(connection, &now, &mut truth)),
            }
        }
        for connection in &mut connections {
            let looks_ns = now();
            match connection.stream.read(&mut buffer) {
                Ok(0) => connection.open = false,
                Ok(count) => {
                    let read_ns = now();
                    connection.input.extend_from_slice(&buffer[..count]);
                    answer(connection, read_ns, behaviour, &now, &mut truth);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => connection.looked_ns = looks_ns,
                Err(_) => connection.open = false,
            }
        }
        connections.retain(|connection| connection.open);
        looked = now();
    }
    truth
}

/// Answers what is complete.
fn answer(
    connection: &mut Connection,
    read_ns: u64,
    behaviour: Behaviour,
    now: &dyn Fn() -> u64,
    truth: &mut Truth,
) {
    let input = std::mem::take(&mut connection.input);
    let mut rest = &input[..];
    while let Some((name, after)) = take_command(rest) {
        rest = after;
        if !name.eq_ignore_ascii_case(b"GET") {
            write(connection, ERROR);
            continue;
        }
        match behaviour {
            Behaviour::Delay(delay) => {
                let until = now().saturating_add(delay.as_nanos() as u64);
                while now() < until {
                    std::hint::spin_loop();
                }
            }
            Behaviour::Stall { .. } => {}
            Behaviour::Burst { .. } => {
                connection.held.push((connection.looked_ns, read_ns));
                continue;
            }
        }
        let (looked_ns, replied_ns) = (connection.looked_ns, now());
        write(connection, REPLY);
        truth.served.push(Served { looked_ns, read_ns, replied_ns, written_ns: now() });
    }
    connection.input = rest.to_vec();
}

/// Lets the held replies of a connection go, all at once.
fn release(connection: &mut Connection, now: &dyn Fn() -> u64, truth: &mut Truth) {
    let held = std::mem::take(&mut connection.held);
    if held.is_empty() {
        return;
    }
    let replied_ns = now();
    write(connection, &REPLY.repeat(held.len()));
    let written_ns = now();
    let served = |(looked_ns, read_ns)| Served { looked_ns, read_ns, replied_ns, written_ns };
    truth.served.extend(held.into_iter().map(served));
}

/// A peer that does not read is waited for: its own stamps would show it.
fn write(connection: &mut Connection, mut bytes: &[u8]) {
    while !bytes.is_empty() && connection.open {
        match connection.stream.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(_) => connection.open = false,
        }
    }
}

/// The first whole command: its name, and what follows it. Bytes that are no command are never complete.
pub fn take_command(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (mut left, mut rest) = number(bytes, b'*')?;
    let mut name = None;
    while left > 0 {
        let (length, after) = number(rest, b'$')?;
        let word = after.get(..length)?;
        rest = after.get(length.checked_add(2)?..)?;
        name.get_or_insert(word);
        left -= 1;
    }
    Some((name.unwrap_or_default(), rest))
}

/// `*2\r\n` or `$3\r\n`: the number, and what follows.
fn number(bytes: &[u8], kind: u8) -> Option<(usize, &[u8])> {
    let end = memchr::memchr(b'\n', bytes)?;
    let line = bytes[..end].strip_suffix(b"\r")?.strip_prefix(&[kind])?;
    let number = std::str::from_utf8(line).ok()?.parse().ok()?;
    Some((number, &bytes[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_taken_whole_at_every_cut() {
        let stream = b"*2\r\n$3\r\nGET\r\n$4\r\nk\r\nv\r\n*1\r\n$4\r\nINFO\r\n";
        let (name, rest) = take_command(stream).expect("whole");
        assert!(name == b"GET" && rest.starts_with(b"*1"));
        let (name, rest) = take_command(rest).expect("whole");
        assert!(name == b"INFO" && rest.is_empty());
        for cut in 0..23 {
            assert_eq!(take_command(&stream[..cut]), None, "{cut}");
        }
    }
}
