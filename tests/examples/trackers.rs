//! Clients that track, for figures (`results/tracking.py`): many of them, at hardly any cost to themselves.
//!
//! `trackers hold ADDRESS COUNT` has COUNT clients follow every key (RESP3, BCAST), prints `ready`, and takes what they
//! are told until its standard input ends. Then it prints how many keys that were, as JSON. It looks at each
//! connection ten times a second: what clients do with an invalidation is not what is to be measured.
//!
//! `trackers delay ADDRESS COUNT reads|bcast WRITES` writes one key again and again while COUNT clients track it, and
//! prints how long after its acknowledgement, and after its sending, each was told: percentiles as JSON, in
//! microseconds. It never sleeps while it waits, notes when the kernel has something for whom, and reads it when all
//! have something. A client may be told before the writer is: then the time is negative.
//!
//! Exit codes: 0, 1 where the server does not do what it should, 2 wrong usage.

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::io::{Error, ErrorKind, Read, Result, Write, stdin};
use std::net::TcpStream;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const USAGE: &str = "usage: trackers hold ADDRESS COUNT | trackers delay ADDRESS COUNT reads|bcast WRITES";
const KEY: &str = "tracked";
/// Between two writes: the server has nothing to do when one comes.
const PAUSE: Duration = Duration::from_micros(500);
/// Before the measurement.
const WARM_UP_WRITES: usize = 100;
/// The longest anything may take.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["hold", address, count] => count.parse().ok().map(|count| hold(address, count)),
        ["delay", address, count, mode @ ("reads" | "bcast"), writes] => {
            let numbers = count.parse().ok().zip(writes.parse().ok());
            numbers.map(|(count, writes)| delay(address, count, mode == "bcast", writes))
        }
        _ => None,
    };
    match done {
        Some(Ok(())) => ExitCode::SUCCESS,
        Some(Err(error)) => {
            eprintln!("trackers: {error}");
            ExitCode::FAILURE
        }
        None => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn connect(address: &str) -> Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// A connection that tracks.
fn tracker(address: &str, broadcasts: bool) -> Result<TcpStream> {
    let mut stream = connect(address)?;
    let mode = if broadcasts { " BCAST" } else { "" };
    stream.write_all(format!("HELLO 3\r\nCLIENT TRACKING ON{mode}\r\n").as_bytes())?;
    let mut text = Vec::new();
    // The reply to HELLO is a map whose last part differs from server to server; that to the other is behind it.
    while !text.ends_with(b"+OK\r\n") {
        if text.starts_with(b"-") || text.windows(3).any(|window| window == b"\n-E") {
            return Err(Error::other(format!("refused: {}", text.escape_ascii())));
        }
        read_some(&mut stream, &mut text)?;
    }
    Ok(stream)
}

fn read_some(stream: &mut TcpStream, text: &mut Vec<u8>) -> Result<usize> {
    let mut bytes = [0; 65536];
    let length = stream.read(&mut bytes)?;
    if length == 0 {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    text.extend_from_slice(&bytes[..length]);
    Ok(length)
}

fn hold(address: &str, count: usize) -> Result<()> {
    const SLICES: usize = 10;
    let mut trackers = (0..count).map(|_| tracker(address, true)).collect::<Result<Vec<TcpStream>>>()?;
    trackers.iter().try_for_each(|tracker| tracker.set_nonblocking(true))?;
    println!("ready");
    static IS_OVER: AtomicBool = AtomicBool::new(false);
    std::thread::spawn(|| {
        let _ = stdin().read_to_end(&mut Vec::new());
        IS_OVER.store(true, Ordering::Relaxed);
    });
    let (mut keys, mut pushes, mut bytes) = (0, 0, vec![0; 1 << 18]);
    let mut at = 0;
    while !IS_OVER.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(100) / SLICES as u32);
        for tracker in trackers.iter_mut().skip(at % SLICES).step_by(SLICES) {
            match tracker.read(&mut bytes) {
                Ok(0) => return Err(Error::other("the server has closed a connection")),
                Ok(length) => {
                    // A push is one `>`, a `$` for its kind, and one for each key: no key here has either.
                    let count =
                        |wanted: u8| bytes[..length].iter().filter(|byte| **byte == wanted).count() as u64;
                    pushes += count(b'>');
                    keys += count(b'$') - count(b'>').min(count(b'$'));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        at += 1;
    }
    println!("{{\"keys\": {keys}, \"pushes\": {pushes}}}");
    Ok(())
}

fn delay(address: &str, count: usize, broadcasts: bool, writes: usize) -> Result<()> {
    let mut writer = connect(address)?;
    let mut trackers =
        (0..count).map(|_| tracker(address, broadcasts)).collect::<Result<Vec<TcpStream>>>()?;
    let epoll = Epoll::new(EpollCreateFlags::empty())?;
    let watched = trackers.iter().chain([&writer]).enumerate();
    for (number, stream) in watched {
        // Once for each arrival, and without reading: that comes when all have arrived.
        let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, number as u64);
        epoll.add(stream, event)?;
    }
    let get = format!("*2\r\n$3\r\nGET\r\n${}\r\n{KEY}\r\n", KEY.len());
    let set = format!("*3\r\n$3\r\nSET\r\n${}\r\n{KEY}\r\n$1\r\nv\r\n", KEY.len());
    writer.write_all(set.as_bytes())?;
    writer.read_exact(&mut [0; 5])?;
    let push = format!(">2\r\n$10\r\ninvalidate\r\n*1\r\n${}\r\n{KEY}\r\n", KEY.len());
    // Those that follow every key have heard of the first one, too.
    if broadcasts {
        trackers.iter_mut().try_for_each(|tracker| tracker.read_exact(&mut vec![0; push.len()]))?;
    }
    let (mut since_acknowledged, mut since_sent) = (Vec::new(), Vec::new());
    let mut last_told = Vec::new();
    let mut events = vec![EpollEvent::empty(); count + 1];
    for write in 0..WARM_UP_WRITES + writes {
        if !broadcasts {
            trackers.iter_mut().try_for_each(|tracker| tracker.write_all(get.as_bytes()))?;
            trackers.iter_mut().try_for_each(|tracker| tracker.read_exact(&mut [0; 7]))?;
        }
        std::thread::sleep(PAUSE);
        // What was read since is of the past.
        while epoll.wait(&mut events, EpollTimeout::ZERO)? > 0 {}
        let sent = Instant::now();
        writer.write_all(set.as_bytes())?;
        // The last is the writer's.
        let (mut arrived, mut missing) = (vec![None; count + 1], count + 1);
        while missing > 0 {
            let ready = epoll.wait(&mut events, EpollTimeout::ZERO)?;
            let now = Instant::now();
            for event in &events[..ready] {
                let arrival = &mut arrived[event.data() as usize];
                missing -= usize::from(arrival.is_none());
                arrival.get_or_insert(now);
            }
            if sent.elapsed() > PATIENCE {
                return Err(Error::other(format!("{missing} of {count} were not told in {PATIENCE:?}")));
            }
        }
        for tracker in &mut trackers {
            let mut bytes = vec![0; push.len()];
            tracker.read_exact(&mut bytes)?;
            if bytes != push.as_bytes() {
                return Err(Error::other(format!("no invalidation: {}", bytes.escape_ascii())));
            }
        }
        writer.read_exact(&mut [0; 5])?;
        let mut told: Vec<Instant> = arrived.into_iter().flatten().collect();
        let acknowledged = told.pop().expect("the writer's");
        if write >= WARM_UP_WRITES {
            let signed = |told: &Instant| {
                let after = told.saturating_duration_since(acknowledged).as_secs_f64();
                (after - acknowledged.saturating_duration_since(*told).as_secs_f64()) * 1e6
            };
            since_acknowledged.extend(told.iter().map(signed));
            since_sent.extend(told.iter().map(|told| told.duration_since(sent).as_secs_f64() * 1e6));
            last_told.extend(told.iter().map(signed).reduce(f64::max));
        }
    }
    println!(
        "{{\"since_acknowledged\": {}, \"since_sent\": {}, \"last_told\": {}}}",
        percentiles(since_acknowledged),
        percentiles(since_sent),
        percentiles(last_told)
    );
    Ok(())
}

fn percentiles(mut times: Vec<f64>) -> String {
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() as f64 * share) as usize).min(times.len() - 1)];
    let (p50, p99, max) = (at(0.5), at(0.99), at(1.0));
    format!("{{\"count\": {}, \"p50\": {p50:.1}, \"p99\": {p99:.1}, \"max\": {max:.1}}}", times.len())
}
