//! One suite for every driver: what `reactor::io::driver` promises, tried on epoll, on io_uring, and on io_uring
//! with each of its features switched off.
//!
//! The driver under test runs on the test's own thread, turn by turn, below a trivial pipeline ([`Pipeline`])
//! that echoes and that checks every event against the rules of `server::event`: ids are unique, nothing comes
//! after the end, a buffer comes back as the allocation that went out, `Closed` comes once and last. Clients are
//! plain blocking sockets. Nothing sleeps: a test waits for conditions by turning the driver, with a deadline.
//!
//! Where io_uring cannot be had the suite fails and says why; `MILLRACE_WITHOUT_IO_URING=1` leaves it out.

use reactor::io::driver::Driver;
use reactor::io::epoll::{EpollDriver, EpollOptions};
use reactor::io::listener::{ListenOptions, Listener};
use reactor::io::probe;
use reactor::io::ring::RingOptions;
use reactor::io::stop::StopSignal;
use reactor::io::sync::Bell;
use reactor::io::uring::{UringDriver, UringOptions};
use reactor::server::event::{ConnectionId, Event, Operation, Target};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use std::collections::{HashMap, VecDeque};
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};
use store::session::Transport;

/// Longer than anything here takes on the slowest machine; reaching it is a failure.
const PATIENCE: Duration = Duration::from_secs(60);

// ---------------------------------------------------------------------------------------------------------
// The drivers

/// Sizes a test chooses.
#[derive(Clone, Copy)]
struct Bounds {
    connections: usize,
    /// Provided buffers: count and bytes. The epoll driver has one of its own.
    buffers: (u16, u32),
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds { connections: 64, buffers: (64, 4096) }
    }
}

/// One way to make a driver.
trait Variant {
    type Driver: Driver;
    /// Receives can run out of buffers.
    const EXHAUSTIBLE: bool = false;
    fn driver(listeners: Vec<Listener>, bounds: Bounds, stop: StopSignal) -> Self::Driver;
    fn is_available() -> bool {
        true
    }
}

struct Epoll;

impl Variant for Epoll {
    type Driver = EpollDriver;
    fn driver(listeners: Vec<Listener>, bounds: Bounds, stop: StopSignal) -> EpollDriver {
        EpollDriver::new(listeners, EpollOptions { max_connections: bounds.connections }, stop).unwrap()
    }
}

fn uring(
    listeners: Vec<Listener>,
    bounds: Bounds,
    stop: StopSignal,
    switch: impl FnOnce(&mut UringOptions),
) -> UringDriver {
    let mut options = UringOptions {
        max_connections: bounds.connections,
        buffer_count: bounds.buffers.0,
        buffer_size: bounds.buffers.1,
        // Room for a burst, and little enough that a dozen rings at once are no burden.
        ring: RingOptions { completion_entries: 4096, ..RingOptions::default() },
        ..UringOptions::default()
    };
    switch(&mut options);
    match UringDriver::new(listeners, options, stop) {
        Ok(driver) => driver,
        Err(error) => panic!("{}", probe::explain(&error, &options)),
    }
}

fn uring_is_available() -> bool {
    if std::env::var_os("MILLRACE_WITHOUT_IO_URING").is_some() {
        return false;
    }
    if let Err(why) = probe::check_uring(&UringOptions::default()) {
        panic!("{why}\n(MILLRACE_WITHOUT_IO_URING=1 leaves these tests out)");
    }
    true
}

macro_rules! uring_variant {
    ($name:ident, $exhaustible:literal, $switch:expr) => {
        struct $name;
        impl Variant for $name {
            type Driver = UringDriver;
            const EXHAUSTIBLE: bool = $exhaustible;
            fn driver(listeners: Vec<Listener>, bounds: Bounds, stop: StopSignal) -> UringDriver {
                uring(listeners, bounds, stop, $switch)
            }
            fn is_available() -> bool {
                uring_is_available()
            }
        }
    };
}

uring_variant!(Uring, true, |_| {});
uring_variant!(SingleAccept, true, |options| options.multishot_accept = false);
uring_variant!(SingleReceive, true, |options| options.multishot_receive = false);
uring_variant!(OwnBuffers, false, |options| {
    options.multishot_receive = false;
    options.provided_buffers = false;
});
uring_variant!(NoDeferTaskrun, true, |options| options.ring.defer_taskrun = false);
uring_variant!(NoSingleIssuer, true, |options| {
    options.ring.single_issuer = false;
    options.ring.defer_taskrun = false;
});
uring_variant!(SqArray, true, |options| options.ring.no_sqarray = false);
uring_variant!(PlainEnter, true, |options| options.ring.registered_ring = false);
uring_variant!(Direct, true, |options| options.direct_descriptors = true);
uring_variant!(MinWait, true, |options| options.min_wait_us = 200);
uring_variant!(TinyQueue, true, |options| options.ring.submission_entries = 2);

// ---------------------------------------------------------------------------------------------------------
// The trivial pipeline

/// What a connection went through.
#[derive(Debug, Default)]
struct Link {
    listener: Option<usize>,
    peer: Option<SocketAddr>,
    connected: Option<Result<(), i32>>,
    received: Vec<u8>,
    received_total: usize,
    ended: bool,
    failed: Option<i32>,
    /// To be sent when nothing is in flight.
    output: Vec<u8>,
    /// Address, length and capacity of the allocation in flight.
    in_flight: Option<(usize, usize, usize)>,
    sent: usize,
    sends: usize,
    send_error: Option<i32>,
    close_asked: bool,
    /// The driver has been told.
    close_handed: bool,
    closed: bool,
}

impl Link {
    fn is_over(&self) -> bool {
        self.ended || self.failed.is_some() || self.send_error.is_some()
    }
}

/// Echoes, and checks the driver.
struct Pipeline {
    links: HashMap<ConnectionId, Link>,
    /// In the order in which they were accepted.
    accepted: Vec<ConnectionId>,
    slots: HashMap<u32, ConnectionId>,
    operations: VecDeque<Operation>,
    stops: usize,
    closed: usize,
    /// Send back what comes.
    echo: bool,
    /// Close where the peer ended or failed and everything is sent.
    close_when_over: bool,
    /// Forget the bytes, to spare memory: `received_total` remains.
    keep_received: bool,
    /// Forget connections once they are closed.
    keep_closed: bool,
}

impl Pipeline {
    fn new() -> Self {
        Pipeline {
            links: HashMap::new(),
            accepted: Vec::new(),
            slots: HashMap::new(),
            operations: VecDeque::new(),
            stops: 0,
            closed: 0,
            echo: true,
            close_when_over: true,
            keep_received: true,
            keep_closed: true,
        }
    }

    fn open(&mut self, connection: ConnectionId, link: Link) {
        assert!(!self.links.contains_key(&connection), "{connection:?} came twice");
        let before = self.slots.insert(connection.slot, connection);
        assert_eq!(before, None, "the slot of {connection:?} is in use");
        self.links.insert(connection, link);
    }

    fn link(&mut self, connection: ConnectionId) -> &mut Link {
        let link = self.links.get_mut(&connection);
        let link = link.unwrap_or_else(|| panic!("an event for {connection:?}, which nobody knows"));
        assert!(!link.closed, "an event for {connection:?} after it was closed");
        link
    }

    fn handle(&mut self, event: Event<'_>) {
        match event {
            Event::Accepted { connection, listener, peer } => {
                self.open(connection, Link { listener: Some(listener), peer, ..Link::default() });
                self.accepted.push(connection);
            }
            Event::Connected { connection, token, result } => {
                assert_eq!(token, token_of(connection));
                let link = self.link(connection);
                assert_eq!(link.connected.replace(result), None, "connected twice");
                assert!(!link.close_handed, "connected after it was closed");
                if result.is_err() {
                    link.closed = true;
                    self.slots.remove(&connection.slot);
                }
            }
            Event::Received { connection, bytes } => {
                let (echo, keep) = (self.echo, self.keep_received);
                let link = self.link(connection);
                assert!(!bytes.is_empty(), "a receive without bytes");
                assert!(!link.ended && link.failed.is_none(), "bytes after the end");
                assert!(!link.close_handed, "bytes after the close");
                link.received_total += bytes.len();
                if keep {
                    link.received.extend_from_slice(bytes);
                }
                if echo {
                    link.output.extend_from_slice(bytes);
                    self.advance(connection);
                }
            }
            Event::ReceiveEnded { connection } => {
                let link = self.link(connection);
                assert!(!link.ended && link.failed.is_none(), "the end came twice");
                assert!(!link.close_handed, "an end after the close");
                link.ended = true;
                self.advance(connection);
            }
            Event::Failed { connection, errno } => {
                let link = self.link(connection);
                assert!(!link.ended && link.failed.is_none(), "a failure after the end");
                assert!(!link.close_handed, "a failure after the close");
                assert!(errno > 0, "an errno is positive: {errno}");
                link.failed = Some(errno);
                self.advance(connection);
            }
            Event::Sent { connection, buffer, result } => {
                let link = self.link(connection);
                let came = (buffer.as_ptr().addr(), buffer.len(), buffer.capacity());
                assert_eq!(link.in_flight.take(), Some(came), "the buffer that was sent comes back");
                // After a close it may still be told, if it had ended before.
                match result {
                    Ok(()) => {
                        link.sent += buffer.len();
                        link.sends += 1;
                    }
                    Err(errno) => link.send_error = Some(errno),
                }
                self.advance(connection);
            }
            Event::Closed { connection } => {
                let link = self.link(connection);
                assert!(link.close_handed, "closed without being asked");
                link.closed = true;
                self.closed += 1;
                self.slots.remove(&connection.slot);
                if !self.keep_closed {
                    self.links.remove(&connection);
                }
            }
            Event::StopRequested => self.stops += 1,
        }
    }

    /// Sends what is pending or closes what is over.
    fn advance(&mut self, connection: ConnectionId) {
        let close_when_over = self.close_when_over;
        let link = self.link(connection);
        if link.in_flight.is_some() || link.close_asked {
            return;
        }
        if !link.output.is_empty() && link.send_error.is_none() && link.failed.is_none() {
            let buffer = std::mem::take(&mut link.output);
            link.in_flight = Some((buffer.as_ptr().addr(), buffer.len(), buffer.capacity()));
            self.operations.push_back(Operation::Send { connection, buffer });
        } else if link.is_over() && close_when_over {
            self.close(connection);
        }
    }

    fn send(&mut self, connection: ConnectionId, bytes: &[u8]) {
        self.link(connection).output.extend_from_slice(bytes);
        self.advance(connection);
    }

    fn close(&mut self, connection: ConnectionId) {
        let link = self.link(connection);
        if !link.close_asked {
            link.close_asked = true;
            self.operations.push_back(Operation::Close { connection });
        }
    }
}

/// A token that belongs to its connection alone.
fn token_of(connection: ConnectionId) -> u64 {
    (connection.generation as u64) << 40 | connection.slot as u64 | 1 << 39
}

// ---------------------------------------------------------------------------------------------------------
// The harness

/// A driver, the pipeline above it, and where it listens: TCP first, AF_UNIX second.
struct Harness<V: Variant> {
    driver: V::Driver,
    pipeline: Pipeline,
    addresses: Vec<Target>,
    stop: StopSignal,
}

const TCP: usize = 0;
const UNIX: usize = 1;

/// A path for a socket that no other test has.
fn socket_path() -> PathBuf {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("millrace-conformance-{}-{number}", std::process::id()))
}

fn tcp_listener(port: u16) -> Listener {
    Listener::tcp(SocketAddr::from(([127, 0, 0, 1], port)), Transport::Resp, ListenOptions::default())
        .unwrap()
}

fn listeners() -> Vec<Listener> {
    let unix = Listener::unix(&socket_path(), Transport::Resp, ListenOptions::default()).unwrap();
    let both = vec![tcp_listener(0), unix];
    // Accepted sockets inherit it. The kernel would else let a send grow to megabytes that nobody reads.
    both.iter().for_each(|listener| SockRef::from(listener).set_send_buffer_size(64 << 10).unwrap());
    both
}

impl<V: Variant> Harness<V> {
    fn new(bounds: Bounds) -> Self {
        Self::with(listeners(), bounds)
    }

    fn with(listeners: Vec<Listener>, bounds: Bounds) -> Self {
        let addresses = listeners.iter().map(|listener| listener.address().clone()).collect();
        let stop = StopSignal::new().unwrap();
        let driver = V::driver(listeners, bounds, stop.clone());
        Harness { driver, pipeline: Pipeline::new(), addresses, stop }
    }

    /// One turn of the loop, exactly as `server::shard` turns. True if anything happened.
    fn turn(&mut self, timeout: Duration) -> bool {
        self.hand_over();
        self.driver.submit_and_wait(Some(timeout)).unwrap();
        let mut happened = false;
        while let Some(event) = self.driver.next_event() {
            happened = true;
            self.pipeline.handle(event);
        }
        self.hand_over();
        happened
    }

    fn hand_over(&mut self) {
        while let Some(operation) = self.pipeline.operations.pop_front() {
            if let Operation::Close { connection } = operation {
                self.pipeline.link(connection).close_handed = true;
            }
            self.driver.enqueue(operation);
        }
    }

    /// Turns until `condition` holds.
    fn until(&mut self, what: &str, mut condition: impl FnMut(&mut Pipeline) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(&mut self.pipeline) {
            assert!(Instant::now() < deadline, "waited in vain: {what}; {:?}", self.driver.counters());
            self.turn(Duration::from_millis(20));
        }
    }

    /// Nothing is to be told, so the driver must wait, not spin. One turn may bring what is under way.
    fn assert_quiet(&mut self, what: &str) {
        let span = Duration::from_millis(30);
        for _ in 0..8 {
            let start = Instant::now();
            let happened = self.turn(span);
            if !happened && start.elapsed() >= span - Duration::from_millis(2) {
                return;
            }
        }
        panic!("the driver turns without rest: {what}; {:?}", self.driver.counters());
    }

    /// A client that is connected and accepted.
    fn client(&mut self, listener: usize) -> (Socket, ConnectionId) {
        let client = connect(&self.addresses[listener]);
        let before = self.pipeline.accepted.len();
        self.until("accept", |pipeline| pipeline.accepted.len() > before);
        (client, self.pipeline.accepted[before])
    }

    /// Turns until the client's thread has ended, and joins it.
    fn join<T>(&mut self, thread: std::thread::JoinHandle<T>) -> T {
        self.until("client thread", |_| thread.is_finished());
        thread.join().unwrap()
    }

    /// A message and its echo.
    fn ping(&mut self, client: &mut Socket, connection: ConnectionId) {
        let sent = self.pipeline.link(connection).sent;
        client.write_all(b"ping").unwrap();
        self.until("echo", |pipeline| pipeline.link(connection).sent >= sent + 4);
        assert_eq!(read_exactly(client, 4), b"ping");
    }

    fn until_closed(&mut self, connection: ConnectionId) {
        self.until("Closed", |pipeline| pipeline.links.get(&connection).is_none_or(|link| link.closed));
    }

    fn until_all_closed(&mut self) {
        self.until("all Closed", |pipeline| pipeline.slots.is_empty());
        assert_eq!(self.driver.counters().open, 0, "what is closed is not open");
    }
}

fn address_of(target: &Target) -> SockAddr {
    match target {
        Target::Tcp(address) => (*address).into(),
        Target::Unix(path) => SockAddr::unix(path).unwrap(),
    }
}

fn client_socket(target: &Target) -> Socket {
    let domain = match target {
        Target::Tcp(address) => Domain::for_address(*address),
        Target::Unix(_) => Domain::UNIX,
    };
    let socket = Socket::new(domain, Type::STREAM, None).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.set_write_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn connect(target: &Target) -> Socket {
    let socket = client_socket(target);
    // A ring on this thread interrupts blocking calls to do its work. Asked again, the kernel goes on waiting.
    while let Err(error) = socket.connect(&address_of(target)) {
        match error.kind() {
            ErrorKind::Interrupted => {}
            _ if error.raw_os_error() == Some(libc::EISCONN) => break,
            _ => panic!("{target:?}: {error}"),
        }
    }
    if matches!(target, Target::Tcp(_)) {
        socket.set_tcp_nodelay(true).unwrap();
    }
    socket
}

fn read_exactly(socket: &mut Socket, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    socket.read_exact(&mut bytes).unwrap();
    bytes
}

/// The next byte, the end, or why not.
fn read_once(socket: &mut Socket) -> Result<usize, ErrorKind> {
    loop {
        match socket.read(&mut [0]).map_err(|error| error.kind()) {
            Err(ErrorKind::Interrupted) => {}
            read => return read,
        }
    }
}

/// What is left to read up to the end of the stream.
fn read_all(socket: &mut Socket) -> Vec<u8> {
    let mut bytes = Vec::new();
    socket.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Closes so that the peer sees a reset (on AF_UNIX: a hang-up).
fn reset(socket: Socket) {
    socket.set_linger(Some(Duration::ZERO)).unwrap();
    drop(socket);
}

/// Bytes in which every position can be told from its neighbours.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3] ^ at as u8).collect()
}

/// A small generator for the random tests (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % bound as u64) as usize
    }
}

/// The seed of a random test: from the clock, or from `MILLRACE_SEED` to repeat one.
fn seed() -> u64 {
    let seed = match std::env::var("MILLRACE_SEED") {
        Ok(text) => text.parse().unwrap(),
        Err(_) => reactor::clock::realtime_ns() | 1,
    };
    println!("MILLRACE_SEED={seed}");
    seed
}

/// Set in processes that run one test alone.
const ALONE: &str = "MILLRACE_TEST_ALONE";

/// The command that runs this very test in a process of its own, with `role` in the environment.
fn this_test_as(role: &str) -> Command {
    let test = std::thread::current().name().unwrap().to_string();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &test, "--nocapture", "--test-threads=1"]).env(ALONE, role);
    command
}

fn role() -> Option<String> {
    std::env::var(ALONE).ok()
}

/// Runs the rest of a test in a process of its own, where descriptors can be counted.
fn alone(test: impl FnOnce()) {
    if role().is_some() {
        return test();
    }
    let output = this_test_as("yes").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("1 passed"), "the test ran: {text}");
}

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

// ---------------------------------------------------------------------------------------------------------
// The suite

/// Bytes arrive whole and in order, however they were cut.
fn every_split<V: Variant>() {
    let mut harness = Harness::<V>::new(Bounds::default());
    let message = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$5\r\nvalue\r\n";
    for listener in [TCP, UNIX] {
        let (mut client, connection) = harness.client(listener);
        let mut total = 0;
        for cut in 1..message.len() {
            for part in [&message[..cut], &message[cut..]] {
                client.write_all(part).unwrap();
                total += part.len();
                harness.until("part", |pipeline| pipeline.link(connection).received_total == total);
            }
            harness.until("echo", |pipeline| pipeline.link(connection).sent == total);
            assert_eq!(read_exactly(&mut client, message.len()), message);
        }
        let short = b"PING\r\n";
        for first in 1..short.len() - 1 {
            for second in first + 1..short.len() {
                for part in [&short[..first], &short[first..second], &short[second..]] {
                    client.write_all(part).unwrap();
                    total += part.len();
                    harness.until("part", |pipeline| pipeline.link(connection).received_total == total);
                }
                harness.until("echo", |pipeline| pipeline.link(connection).sent == total);
                assert_eq!(read_exactly(&mut client, short.len()), short);
            }
        }
        for byte in message {
            client.write_all(&[*byte]).unwrap();
            total += 1;
            harness.until("byte", |pipeline| pipeline.link(connection).sent == total);
        }
        assert_eq!(read_exactly(&mut client, message.len()), message);
        let link = harness.pipeline.link(connection);
        assert_eq!(link.received.len(), total);
        drop(client);
        harness.until_closed(connection);
    }
    harness.until_all_closed();
}

/// Messages around and far beyond the size of every receive buffer.
fn long_messages<V: Variant>() {
    let mut harness = Harness::<V>::new(Bounds { buffers: (16, 4096), ..Bounds::default() });
    for listener in [TCP, UNIX] {
        for length in [4095, 4096, 4097, 8192, 65_535, 65_536, 65_537, 1 << 20, 5_000_003] {
            let (client, connection) = harness.client(listener);
            let message = pattern(length);
            let mut writer = client.try_clone().unwrap();
            let (to_write, mut reader) = (message.clone(), client);
            let writing = std::thread::spawn(move || {
                writer.write_all(&to_write).unwrap();
                writer.shutdown(Shutdown::Write).unwrap();
            });
            let reading = std::thread::spawn(move || read_all(&mut reader));
            let echoed = harness.join(reading);
            writing.join().unwrap();
            assert!(echoed == message, "{length} bytes come back as they were");
            harness.until_closed(connection);
            assert_eq!(harness.pipeline.links[&connection].received, message);
        }
    }
    let counters = harness.driver.counters();
    assert_eq!(counters.received_bytes, counters.sent_bytes);
    harness.until_all_closed();
}

/// Replies of megabytes through the smallest socket buffers, to readers that take a little at a time.
fn short_sends<V: Variant>() {
    let small = listeners();
    for listener in &small {
        // The kernel makes it what it thinks is the least.
        SockRef::from(listener).set_send_buffer_size(1).unwrap();
    }
    let mut harness = Harness::<V>::with(small, Bounds::default());
    let message = pattern(3 << 20);
    for listener in [TCP, UNIX] {
        let mut client = client_socket(&harness.addresses[listener]);
        client.set_recv_buffer_size(1).unwrap();
        client.connect(&address_of(&harness.addresses[listener])).unwrap();
        harness.until("accept", |pipeline| !pipeline.slots.is_empty());
        let connection = *harness.pipeline.accepted.last().unwrap();
        harness.pipeline.send(connection, &message);
        let length = message.len();
        let reading = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let mut chunk = [0; 7001];
            while bytes.len() < length {
                let most = 1 + bytes.len() % chunk.len();
                let read = client.read(&mut chunk[..most]).unwrap();
                assert_ne!(read, 0, "the stream ended at {}", bytes.len());
                bytes.extend_from_slice(&chunk[..read]);
            }
            (bytes, client)
        });
        let (bytes, client) = harness.join(reading);
        assert!(bytes == message);
        harness.until("Sent", |pipeline| pipeline.link(connection).sent == length);
        assert_eq!(harness.pipeline.link(connection).sends, 1, "to the pipeline it was one send");
        drop(client);
        harness.until_closed(connection);
    }
    let counters = harness.driver.counters();
    assert_eq!(counters.sent_bytes, 2 * message.len() as u64);
    assert!(counters.sends >= 2 && counters.sends >= counters.short_sends);
    harness.until_all_closed();
}

/// Twenty clients that do not read keep nobody else waiting, and get everything in the end.
fn slow_readers<V: Variant>() {
    let mut harness = Harness::<V>::new(Bounds::default());
    let message = pattern(1 << 20);
    let mut slow: Vec<(Socket, ConnectionId)> =
        (0..20).map(|number| harness.client([TCP, UNIX][number % 2])).collect();
    for &(_, connection) in &slow {
        harness.pipeline.send(connection, &message);
    }
    let (mut quick, quick_connection) = harness.client(TCP);
    for _ in 0..100 {
        harness.ping(&mut quick, quick_connection);
    }
    for &(_, connection) in &slow {
        assert_eq!(harness.pipeline.link(connection).sent, 0, "a megabyte does not fit unread");
    }
    harness.assert_quiet("twenty sends that wait for room");
    let reading = std::thread::spawn(move || {
        for (client, _) in &mut slow {
            assert!(read_exactly(client, message.len()) == message);
        }
        slow
    });
    let slow = harness.join(reading);
    harness.ping(&mut quick, quick_connection);
    drop((slow, quick));
    harness.until_all_closed();
}

/// More connections with input than there are buffers: all are served, late at worst.
fn buffer_exhaustion<V: Variant>() {
    let mut harness = Harness::<V>::new(Bounds { connections: 64, buffers: (2, 64) });
    let message = pattern(3000);
    let mut clients: Vec<(Socket, ConnectionId)> =
        (0..40).map(|number| harness.client([TCP, UNIX][number % 2])).collect();
    for round in 0..3 {
        for (client, _) in &mut clients {
            client.write_all(&message).unwrap();
        }
        let total = (round + 1) * message.len();
        for &(_, connection) in &clients {
            harness.until("all echoed", |pipeline| pipeline.link(connection).sent == total);
        }
        for (client, _) in &mut clients {
            assert!(read_exactly(client, message.len()) == message);
        }
    }
    let exhausted = harness.driver.counters().buffers_exhausted;
    assert_eq!(exhausted > 0, V::EXHAUSTIBLE, "{exhausted} receives found no buffer");
    drop(clients);
    harness.until_all_closed();
}

/// A peer that has said everything still gets its replies.
fn half_close<V: Variant>() {
    let mut harness = Harness::<V>::new(Bounds::default());
    for listener in [TCP, UNIX] {
        let (mut client, connection) = harness.client(listener);
        client.write_all(b"last words").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        harness.until_closed(connection);
        assert_eq!(read_all(&mut client), b"last words");
        assert_eq!(harness.pipeline.links[&connection].failed, None);

        // Nothing said at all.
        let (mut client, connection) = harness.client(listener);
        client.shutdown(Shutdown::Write).unwrap();
        harness.until_closed(connection);
        assert_eq!(read_all(&mut client), b"");

        // Kept open after the end: replies flow for as long as we like, and the end is told once.
        harness.pipeline.close_when_over = false;
        let (mut client, connection) = harness.client(listener);
        client.shutdown(Shutdown::Write).unwrap();
        harness.until("end", |pipeline| pipeline.link(connection).ended);
        harness.assert_quiet("an ended connection");
        for _ in 0..3 {
            harness.pipeline.send(connection, b"late");
            harness.until("sent", |pipeline| pipeline.link(connection).in_flight.is_none());
            assert_eq!(read_exactly(&mut client, 4), b"late");
        }
        // Both sides have ended and the peer is gone: nothing to tell, so nothing is told.
        harness.driver.enqueue(Operation::FinishSend { connection });
        drop(client);
        harness.assert_quiet("a connection that both sides ended");
        harness.pipeline.close(connection);
        harness.until_closed(connection);
        harness.pipeline.close_when_over = true;
    }
    harness.until_all_closed();
}

/// `FinishSend`: the peer sees the end behind everything that was sent, and may go on sending.
fn finish_send<V: Variant>() {
    let mut harness = Harness::<V>::new(Bounds::default());
    for listener in [TCP, UNIX] {
        let (mut client, connection) = harness.client(listener);
        harness.ping(&mut client, connection);
        harness.pipeline.echo = false;
        harness.driver.enqueue(Operation::FinishSend { connection });
        harness.turn(Duration::ZERO);
        assert_eq!(read_all(&mut client), b"");
        client.write_all(b"still there?").unwrap();
        harness.until("input after FIN", |pipeline| pipeline.link(connection).received.ends_with(b"there?"));
        client.shutdown(Shutdown::Write).unwrap();
        harness.until_closed(connection);
        assert_eq!(harness.pipeline.links[&connection].failed, None);
        harness.pipeline.echo = true;
    }
    harness.until_all_closed();
}

/// A FIN reaches the connection it was meant for, and never the one that has the descriptor's number next.
fn finish_send_and_close<V: Variant>() {
    const BATCH: usize = 16;
    let mut harness = Harness::<V>::new(Bounds { connections: 4 * BATCH, ..Bounds::default() });
    harness.pipeline.keep_closed = false;
    for round in 0..200 {
        let listener = [TCP, UNIX][round % 2];
        let leaving: Vec<_> = (0..BATCH).map(|_| harness.client(listener)).collect();
        // These wait in the queue, and take the numbers as they come free.
        let target = harness.addresses[listener].clone();
        for (_, connection) in &leaving {
            harness.driver.enqueue(Operation::FinishSend { connection: *connection });
            harness.pipeline.close(*connection);
        }
        harness.pipeline.accepted.clear();
        let mut staying: Vec<Socket> = (0..BATCH).map(|_| connect(&target)).collect();
        harness.until("the next", |pipeline| pipeline.accepted.len() == BATCH);
        for client in &mut staying {
            client.write_all(b"ping").unwrap();
        }
        harness.until("requests", |pipeline| {
            let link = |id| pipeline.links.get(id).expect("a FIN meant for another ended it");
            pipeline.accepted.iter().all(|id| link(id).sent == 4)
        });
        staying.iter_mut().for_each(|client| assert_eq!(read_exactly(client, 4), b"ping"));
        // A TIME_WAIT for each would use up the ports.
        leaving.into_iter().for_each(|(client, _)| reset(client));
        staying.into_iter().for_each(reset);
        harness.until("room", |pipeline| pipeline.slots.is_empty());
    }
}

/// A reset in every state a connection can be in ends that connection and nothing else.
fn resets<V: Variant>() {
    let mut harness = Harness::<V>::new(Bounds::default());
    let (mut witness, witness_connection) = harness.client(TCP);
    let flood = pattern(4 << 20);
    for listener in [TCP, UNIX] {
        // Before it is accepted.
        let before = harness.pipeline.accepted.len();
        reset(connect(&harness.addresses[listener]));
        harness.turn(Duration::from_millis(20));
        if let Some(&connection) = harness.pipeline.accepted.get(before) {
            harness.until_closed(connection);
        }

        // Idle.
        let (client, connection) = harness.client(listener);
        reset(client);
        harness.until_closed(connection);
        assert!(harness.pipeline.links[&connection].is_over());

        // With input that nobody has taken, and with half a message taken.
        let (mut client, connection) = harness.client(listener);
        client.write_all(b"*1\r\n$4\r\nPI").unwrap();
        harness.until("half a message", |pipeline| pipeline.link(connection).received_total > 0);
        client.write_all(b"NG").unwrap();
        reset(client);
        harness.until_closed(connection);

        // While a send is in flight.
        let (client, connection) = harness.client(listener);
        harness.pipeline.send(connection, &flood);
        harness.until("a send in flight", |pipeline| pipeline.link(connection).in_flight.is_some());
        harness.turn(Duration::from_millis(5));
        reset(client);
        harness.until_closed(connection);
        assert_eq!(harness.pipeline.links[&connection].sent, 0);

        // While a send is in flight and receiving is paused.
        let (client, connection) = harness.client(listener);
        harness.pipeline.send(connection, &flood);
        harness.driver.enqueue(Operation::PauseReceive { connection });
        harness.turn(Duration::from_millis(5));
        reset(client);
        harness.until("the send fails", |pipeline| pipeline.links[&connection].send_error.is_some());
        harness.until_closed(connection);

        // Paused: nobody asks, so it may stay unknown, but not at the price of spinning.
        let (mut client, connection) = harness.client(listener);
        harness.driver.enqueue(Operation::PauseReceive { connection });
        harness.turn(Duration::ZERO);
        client.write_all(b"unread").unwrap();
        reset(client);
        harness.assert_quiet("a paused connection that was reset");
        harness.driver.enqueue(Operation::ResumeReceive { connection });
        harness.until("the reset shows", |pipeline| pipeline.links[&connection].is_over());
        harness.until_closed(connection);

        // Paused, reset, and closed without another look.
        let (client, connection) = harness.client(listener);
        harness.driver.enqueue(Operation::PauseReceive { connection });
        harness.turn(Duration::ZERO);
        reset(client);
        harness.pipeline.close(connection);
        harness.until_closed(connection);

        // After we ended our side.
        let (client, connection) = harness.client(listener);
        harness.driver.enqueue(Operation::FinishSend { connection });
        harness.turn(Duration::ZERO);
        reset(client);
        harness.until_closed(connection);

        // After the peer ended its side, with us writing on.
        harness.pipeline.close_when_over = false;
        let (client, connection) = harness.client(listener);
        client.shutdown(Shutdown::Write).unwrap();
        harness.until("end", |pipeline| pipeline.link(connection).ended);
        harness.pipeline.send(connection, &flood);
        harness.turn(Duration::from_millis(5));
        reset(client);
        harness.until("the send fails", |pipeline| pipeline.link(connection).send_error.is_some());
        harness.assert_quiet("a connection that has ended and failed");
        harness.pipeline.close(connection);
        harness.until_closed(connection);

        // Failed and left open for a while.
        let (client, connection) = harness.client(listener);
        reset(client);
        harness.until("the reset shows", |pipeline| pipeline.link(connection).is_over());
        harness.assert_quiet("a connection that was reset");
        harness.pipeline.close(connection);
        harness.until_closed(connection);
        harness.pipeline.close_when_over = true;

        harness.ping(&mut witness, witness_connection);
    }
    drop(witness);
    harness.until_all_closed();
}

/// Paused connections are left alone and cost nothing; resumed ones have lost nothing.
fn pause_and_resume<V: Variant>() {
    let mut harness = Harness::<V>::new(Bounds::default());
    for listener in [TCP, UNIX] {
        let (mut client, connection) = harness.client(listener);
        harness.ping(&mut client, connection);
        harness.driver.enqueue(Operation::PauseReceive { connection });
        harness.assert_quiet("a paused connection");
        client.write_all(b"one").unwrap();
        harness.assert_quiet("a paused connection with input");
        assert_eq!(harness.pipeline.link(connection).received, b"ping", "nothing comes while paused");
        // Others are not paused with it.
        let (mut other, other_connection) = harness.client(listener);
        harness.ping(&mut other, other_connection);
        // Sending still works.
        harness.pipeline.send(connection, b"out");
        harness.until("sent", |pipeline| pipeline.link(connection).sent == 7);
        assert_eq!(read_exactly(&mut client, 3), b"out");
        client.write_all(b"two").unwrap();
        harness.driver.enqueue(Operation::ResumeReceive { connection });
        harness.until("input", |pipeline| pipeline.link(connection).received == b"pingonetwo");

        harness.until("echo", |pipeline| pipeline.link(connection).sent == 13);
        assert_eq!(read_exactly(&mut client, 6), b"onetwo");

        // Twice each, and undone within a turn.
        for operations in [
            &[true, true, false][..],
            &[true, false],
            &[true, false, true, false],
            &[false, false],
            &[false, true, false],
        ] {
            for &pause in operations {
                harness.driver.enqueue(match pause {
                    true => Operation::PauseReceive { connection },
                    false => Operation::ResumeReceive { connection },
                });
            }
            harness.ping(&mut client, connection);
        }

        // Paused and closed; paused, ended by the peer, resumed.
        harness.driver.enqueue(Operation::PauseReceive { connection });
        harness.pipeline.close(connection);
        harness.until_closed(connection);
        let (mut client, connection) = harness.client(listener);
        harness.driver.enqueue(Operation::PauseReceive { connection });
        harness.turn(Duration::ZERO);
        client.write_all(b"bye").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        harness.assert_quiet("a paused connection that the peer has ended");
        harness.driver.enqueue(Operation::ResumeReceive { connection });
        harness.until_closed(connection);
        assert_eq!(read_all(&mut client), b"bye");
        drop(other);
        harness.until_closed(other_connection);
    }
    harness.until_all_closed();
}

/// Whatever is in flight when a connection is closed, `Closed` is the next and last that is heard of it.
fn close_in_every_state<V: Variant>() {
    let mut harness = Harness::<V>::new(Bounds::default());
    let flood = pattern(4 << 20);
    for listener in [TCP, UNIX] {
        // Idle: the peer sees the end.
        let (mut client, connection) = harness.client(listener);
        harness.pipeline.close(connection);
        harness.until_closed(connection);
        assert_eq!(read_all(&mut client), b"");

        // A send in flight: the peer sees the end, or a reset, behind what the kernel had taken.
        let (mut client, connection) = harness.client(listener);
        harness.pipeline.send(connection, &flood);
        harness.turn(Duration::from_millis(5));
        assert_eq!(harness.pipeline.link(connection).sent, 0, "four megabytes do not fit unread");
        harness.pipeline.close(connection);
        harness.until_closed(connection);
        let mut bytes = Vec::new();
        match client.read_to_end(&mut bytes) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
        assert!(bytes.len() < flood.len() && bytes == flood[..bytes.len()]);

        // A send handed over in the same turn as the close.
        let (_client, connection) = harness.client(listener);
        harness.pipeline.send(connection, b"never mind");
        harness.pipeline.close(connection);
        harness.until_closed(connection);

        // Input on its way.
        let (mut client, connection) = harness.client(listener);
        client.write_all(b"unread").unwrap();
        harness.pipeline.close(connection);
        harness.until_closed(connection);

        // In the turn in which it was accepted.
        let client = connect(&harness.addresses[listener]);
        let before = harness.pipeline.accepted.len();
        harness.until("accept", |pipeline| pipeline.accepted.len() > before);
        let connection = harness.pipeline.accepted[before];
        harness.pipeline.close(connection);
        harness.until_closed(connection);
        drop(client);

        // What is said about a connection that is gone is ignored, also when its slot lives on.
        let (mut client, next) = harness.client(listener);
        harness.driver.enqueue(Operation::Send { connection, buffer: b"ghost".to_vec() });
        harness.driver.enqueue(Operation::PauseReceive { connection });
        harness.driver.enqueue(Operation::ResumeReceive { connection });
        harness.driver.enqueue(Operation::FinishSend { connection });
        harness.driver.enqueue(Operation::Close { connection });
        let target = harness.addresses[listener].clone();
        harness.driver.enqueue(Operation::Connect { connection, token: 0, target });
        harness.assert_quiet("operations on a connection that is gone");
        harness.ping(&mut client, next);
        drop(client);
        harness.until_closed(next);
    }
    harness.until_all_closed();
}

/// Ten thousand connections at once, each of which is answered twice. The clients live in a process of their
/// own, so that each side may use its limit on descriptors.
fn ten_thousand_connections<V: Variant>() {
    const COUNT: usize = 10_000;
    if let Some(role) = role() {
        return hold_connections(role.parse().unwrap(), COUNT);
    }
    let fitted = probe::raise_open_files(COUNT + 1000).unwrap();
    assert_eq!(fitted.warning, None, "the limit on open files allows this test");
    let bounds = Bounds { connections: COUNT + 1, buffers: (256, 256) };
    let mut harness = Harness::<V>::new(bounds);
    harness.pipeline.keep_received = false;
    let Target::Tcp(address) = harness.addresses[TCP] else { unreachable!("the first listens on TCP") };
    let mut child =
        this_test_as(&address.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let output = child.stdout.take().unwrap();
    // Each stage of the client ends with a line of its own; libtest's lines are among them.
    let (tell, told) = channel();
    let reading = std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if line.contains("held ") {
                tell.send(line).unwrap();
            }
        }
    });
    for stage in 1..=2 {
        let mut line = None;
        harness.until("the clients' stage", |_| {
            line = told.try_recv().ok();
            line.is_some()
        });
        assert!(line.unwrap().contains(&format!("held {COUNT} stage {stage}")));
        assert_eq!(harness.driver.counters().open, COUNT as u64);
        assert_eq!(harness.pipeline.slots.len(), COUNT);
    }
    assert!(harness.pipeline.links.values().all(|link| link.received_total == 2));
    // The end of its input lets the client go, with all its connections.
    drop(child.stdin.take());
    harness.until_all_closed();
    assert_eq!(harness.pipeline.closed, COUNT);
    assert!(child.wait().unwrap().success());
    reading.join().unwrap();
}

fn hold_connections(address: SocketAddr, count: usize) {
    let fitted = probe::raise_open_files(count + 1000).unwrap();
    assert_eq!(fitted.warning, None);
    let target = Target::Tcp(address);
    let mut clients: Vec<Socket> = Vec::new();
    for number in 0..count {
        let mut client = connect(&target);
        client.write_all(&[number as u8]).unwrap();
        assert_eq!(read_exactly(&mut client, 1), [number as u8]);
        clients.push(client);
    }
    println!("\nheld {count} stage 1");
    for client in &mut clients {
        client.write_all(b"!").unwrap();
    }
    for client in &mut clients {
        assert_eq!(read_exactly(client, 1), b"!");
    }
    println!("\nheld {count} stage 2");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

/// Connections that the driver opens: both ends in one driver, and every way to fail.
fn connects<V: Variant>() {
    let mut harness = Harness::<V>::new(Bounds::default());
    let connect = |harness: &mut Harness<V>, target: &Target| {
        let connection = harness.driver.reserve().unwrap();
        harness.pipeline.open(connection, Link::default());
        let target = target.clone();
        harness.driver.enqueue(Operation::Connect { connection, token: token_of(connection), target });
        connection
    };
    for listener in [TCP, UNIX] {
        let target = harness.addresses[listener].clone();
        let connection = connect(&mut harness, &target);
        harness.until("Connected", |pipeline| pipeline.links[&connection].connected.is_some());
        assert_eq!(harness.pipeline.link(connection).connected, Some(Ok(())));
        harness.until("accept", |pipeline| pipeline.slots.len() == 2);
        let accepted = *harness.pipeline.accepted.last().unwrap();
        assert_eq!(harness.driver.counters().open, 2);
        // The accepting end alone echoes, or the two would never stop.
        harness.pipeline.echo = false;
        harness.pipeline.send(connection, b"there");
        harness.until("there", |pipeline| pipeline.link(accepted).received == b"there");
        harness.pipeline.send(accepted, b"and back");
        harness.until("back", |pipeline| pipeline.link(connection).received == b"and back");
        harness.pipeline.echo = true;
        harness.pipeline.close(connection);
        harness.until_all_closed();
    }

    // Nobody listens there.
    let free = match tcp_listener(0).address() {
        Target::Tcp(address) => *address,
        Target::Unix(_) => unreachable!("it is a TCP listener"),
    };
    for (target, errno) in [
        (Target::Tcp(free), libc::ECONNREFUSED),
        (Target::Unix(socket_path()), libc::ENOENT),
        (Target::Tcp("255.255.255.255:1".parse().unwrap()), libc::ENETUNREACH),
    ] {
        let connection = connect(&mut harness, &target);
        harness.until("Connected", |pipeline| pipeline.links[&connection].connected.is_some());
        let result = harness.pipeline.links[&connection].connected.unwrap();
        // Which errno a broadcast address earns depends on the machine's routes.
        if errno == libc::ENETUNREACH {
            assert!(result.is_err(), "{target:?}");
        } else {
            assert_eq!(result, Err(errno), "{target:?}");
        }
    }
    let too_long = Target::Unix(PathBuf::from("x".repeat(300)));
    let connection = connect(&mut harness, &too_long);
    harness.until("Connected", |pipeline| pipeline.links[&connection].connected.is_some());
    assert!(harness.pipeline.links[&connection].connected.unwrap().is_err());

    // Closed while it is under way: nobody takes connections from a queue that is full.
    let full = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    full.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    full.listen(0).unwrap();
    let target = Target::Tcp(full.local_addr().unwrap().as_socket().unwrap());
    let fillers: Vec<Socket> = (0..2)
        .map(|_| {
            let filler = client_socket(&target);
            filler.set_nonblocking(true).unwrap();
            let _ = filler.connect(&address_of(&target));
            filler
        })
        .collect();
    let connection = connect(&mut harness, &target);
    harness.assert_quiet("a connection under way");
    assert_eq!(harness.pipeline.link(connection).connected, None, "the queue is full");
    harness.pipeline.close(connection);
    harness.until_closed(connection);
    drop((fillers, full));

    // A slot that was reserved and given back unused.
    let unused = harness.driver.reserve().unwrap();
    harness.driver.enqueue(Operation::Close { connection: unused });
    harness.assert_quiet("a slot given back");

    // The table has an end, and every slot before it can be had.
    assert_eq!(harness.driver.counters().open, 0);
    let all: Vec<ConnectionId> = std::iter::from_fn(|| harness.driver.reserve()).take(1000).collect();
    assert_eq!(all.len(), Bounds::default().connections);
}

/// One connection more than there are slots is turned away, and nobody else notices.
fn full_table<V: Variant>() {
    let mut harness = Harness::<V>::new(Bounds { connections: 4, ..Bounds::default() });
    for listener in [TCP, UNIX] {
        let mut clients: Vec<(Socket, ConnectionId)> = (0..4).map(|_| harness.client(listener)).collect();
        for _ in 0..10 {
            let mut extra = connect(&harness.addresses[listener]);
            let reading = std::thread::spawn(move || read_once(&mut extra));
            let read = harness.join(reading);
            assert!(matches!(read, Ok(0) | Err(ErrorKind::ConnectionReset)), "{read:?}");
        }
        assert!(harness.driver.counters().accept_errors >= 10);
        for (client, connection) in &mut clients {
            harness.ping(client, *connection);
        }
        assert_eq!(harness.driver.reserve(), None);
        let (client, connection) = clients.pop().unwrap();
        drop(client);
        harness.until_closed(connection);
        let (mut client, connection) = harness.client(listener);
        harness.ping(&mut client, connection);
        drop((client, clients));
        harness.until_all_closed();
    }
}

/// Without descriptors accepting rests, without spinning, and goes on when some are free again.
fn out_of_descriptors<V: Variant>() {
    const LIMIT: usize = 48;
    const CLIENTS: usize = 100;
    if role().is_some() {
        return serve_with_few_descriptors::<V>(CLIENTS);
    }
    // The limit is for the child alone, which is the server here.
    let this = this_test_as("few descriptors");
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("ulimit -n {LIMIT}; exec \"$0\" \"$@\"")]).arg(this.get_program());
    shell.args(this.get_args()).env(ALONE, "few descriptors");
    let mut child = shell.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let line = lines.find(|line| line.contains("listens on ")).unwrap();
    let address: SocketAddr = line.rsplit(' ').next().unwrap().parse().unwrap();
    let mut clients: VecDeque<Socket> = (0..CLIENTS).map(|_| connect(&Target::Tcp(address))).collect();
    // Each can be answered at the latest when all before it have left.
    while let Some(mut client) = clients.pop_front() {
        client.write_all(b"hello").unwrap();
        assert_eq!(read_exactly(&mut client, 5), b"hello");
    }
    let rest: Vec<String> = lines.collect();
    assert!(child.wait().unwrap().success(), "{}", rest.join("\n"));
}

fn serve_with_few_descriptors<V: Variant>(clients: usize) {
    let mut harness = Harness::<V>::new(Bounds { connections: 1000, ..Bounds::default() });
    let Target::Tcp(address) = harness.addresses[TCP] else { unreachable!("the first listens on TCP") };
    println!("\nlistens on {address}");
    harness.until("all served", |pipeline| pipeline.closed == clients);
    let counters = harness.driver.counters();
    assert_eq!(counters.accepted, clients as u64);
    assert!(counters.accept_errors > 0, "{counters:?}");
    // Waiting connections must not make the loop spin: a few turns for each client are plenty.
    assert!(counters.enters < 50 * clients as u64, "{counters:?}");
}

/// A hundred thousand connections come and go, politely and not, and leave nothing behind.
fn churn<V: Variant>(count: usize) {
    alone(|| {
        // Few slots and few buffers: one that is lost now and then would soon be missed.
        let bounds = Bounds { connections: 32, buffers: (4, 256) };
        let mut harness = Harness::<V>::new(bounds);
        harness.pipeline.keep_received = false;
        harness.pipeline.keep_closed = false;
        let targets = harness.addresses.clone();
        // Once through everything, so that what is made on first use is there.
        harness.turn(Duration::ZERO);
        let before = open_descriptors();
        let mut random = Random(seed());
        let batch = 16;
        for _ in 0..count / batch {
            let mut clients = Vec::new();
            for _ in 0..batch {
                // TCP is left by reset alone: a hundred thousand TIME_WAIT would use up the ports.
                let listener = random.below(2);
                let mut client = connect(&targets[listener]);
                let message = pattern(1 + random.below(600));
                match random.below(4) {
                    0 => {}
                    1 => client.write_all(&message[..message.len() / 2]).unwrap(),
                    _ => client.write_all(&message).unwrap(),
                }
                clients.push((client, listener));
            }
            if random.below(2) == 0 {
                harness.turn(Duration::ZERO);
            }
            if random.below(4) == 0 {
                let open: Vec<ConnectionId> = harness.pipeline.slots.values().copied().collect();
                for connection in open {
                    match random.below(4) {
                        0 => harness.driver.enqueue(Operation::PauseReceive { connection }),
                        1 => harness.pipeline.close(connection),
                        2 => {
                            harness.driver.enqueue(Operation::PauseReceive { connection });
                            harness.driver.enqueue(Operation::ResumeReceive { connection });
                        }
                        _ => {}
                    }
                }
            }
            for (client, listener) in clients {
                match listener == TCP || random.below(3) == 0 {
                    true => reset(client),
                    false => drop(client),
                }
            }
            // A driver that accepts one connection a turn needs a turn for each, or the listener's queue fills up batch
            // by batch until a connect from this very thread waits for ever.
            for _ in 0..=batch {
                harness.turn(Duration::ZERO);
            }
            let open: Vec<ConnectionId> = harness.pipeline.slots.values().copied().collect();
            for connection in open {
                harness.driver.enqueue(Operation::ResumeReceive { connection });
            }
            // The table is small: make room before the next batch.
            let accepted = harness.driver.counters().accepted;
            harness.until("room", |pipeline| pipeline.slots.len() <= batch);
            assert!(harness.driver.counters().accepted >= accepted);
        }
        // A last one on each listener: whatever waits in a queue before it was accepted before it.
        for listener in [TCP, UNIX] {
            let (mut client, connection) = harness.client_after_all(listener);
            harness.ping(&mut client, connection);
            drop(client);
            harness.until_closed(connection);
        }
        harness.until_all_closed();
        let counters = harness.driver.counters();
        assert!(counters.accepted >= count as u64 - counters.accept_errors, "{counters:?}");
        assert_eq!(open_descriptors(), before, "every descriptor is closed");
        // Every slot can be had, and every buffer still serves.
        let mut clients: Vec<(Socket, ConnectionId)> =
            (0..32).map(|number| harness.client([TCP, UNIX][number % 2])).collect();
        for (client, connection) in &mut clients {
            harness.ping(client, *connection);
        }
        drop(clients);
        harness.until_all_closed();
        let slots: Vec<ConnectionId> = std::iter::from_fn(|| harness.driver.reserve()).take(100).collect();
        assert_eq!(slots.len(), bounds.connections);
        drop(harness);
    });
}

impl<V: Variant> Harness<V> {
    /// Like `client`, where others may be accepted before it.
    fn client_after_all(&mut self, listener: usize) -> (Socket, ConnectionId) {
        let mut client = connect(&self.addresses[listener]);
        self.pipeline.keep_received = true;
        client.write_all(b"the last one").unwrap();
        let mut found = None;
        self.until("the last one", |pipeline| {
            let mut open = pipeline.links.iter().filter(|(_, link)| !link.closed);
            found = open.find(|(_, link)| link.received == b"the last one").map(|(id, _)| *id);
            found.is_some()
        });
        let connection = found.unwrap();
        self.until("echo", |pipeline| pipeline.link(connection).sent == 12);
        read_exactly(&mut client, 12);
        self.pipeline.keep_received = false;
        (client, connection)
    }
}

/// The stop signal wakes a driver that waits for ever, once; what is connected may finish.
fn stop_signal<V: Variant>() {
    let mut harness = Harness::<V>::new(Bounds::default());
    let (mut client, connection) = harness.client(TCP);
    let (mut unix_client, unix_connection) = harness.client(UNIX);
    let stop = harness.stop.clone();
    let stopping = std::thread::spawn(move || stop.request());
    while harness.pipeline.stops == 0 {
        harness.driver.submit_and_wait(None).unwrap();
        while let Some(event) = harness.driver.next_event() {
            harness.pipeline.handle(event);
        }
    }
    stopping.join().unwrap();
    harness.assert_quiet("a stop that was told");
    assert_eq!(harness.pipeline.stops, 1, "it is told once");
    harness.driver.enqueue(Operation::StopAccepting);
    harness.turn(Duration::ZERO);
    harness.assert_quiet("listeners that are closed");
    for target in harness.addresses.clone() {
        let refused = client_socket(&target).connect(&address_of(&target)).unwrap_err();
        assert!(matches!(refused.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound), "{refused}");
    }
    harness.ping(&mut client, connection);
    harness.ping(&mut unix_client, unix_connection);
    drop((client, unix_client));
    harness.until_all_closed();
}

/// A signal raised before the driver was made is not missed.
fn stop_before_start<V: Variant>() {
    let stop = StopSignal::new().unwrap();
    stop.request();
    let mut driver = V::driver(listeners(), Bounds::default(), stop);
    driver.submit_and_wait(None).unwrap();
    assert!(matches!(driver.next_event(), Some(Event::StopRequested)));
}

/// A server that goes frees its port at once, whatever was in flight; twenty times.
/// Another thread ends a wait by raising an eventfd that nobody ever reads: again and again, and without an event.
fn woken<V: Variant>() {
    let mut harness = Harness::<V>::new(Bounds::default());
    let bell = Arc::new(Bell::new().unwrap());
    harness.driver.watch(bell.as_fd().try_clone_to_owned().unwrap()).unwrap();
    let (mut client, connection) = harness.client(TCP);
    harness.ping(&mut client, connection);
    harness.assert_quiet("a bell that has not rung");
    let (go, gone) = channel::<()>();
    let ringing = bell.clone();
    let thread = std::thread::spawn(move || gone.iter().for_each(|()| ringing.ring()));
    for round in 0..300 {
        go.send(()).unwrap();
        let start = Instant::now();
        harness.driver.submit_and_wait(Some(PATIENCE)).unwrap();
        assert!(start.elapsed() < PATIENCE / 2, "round {round}: nobody was woken");
        assert!(harness.driver.next_event().is_none(), "being woken is no event");
        if round % 50 == 0 {
            harness.ping(&mut client, connection);
        }
    }
    drop(go);
    thread.join().unwrap();
    harness.assert_quiet("the bell has rung and is still readable");
    // Rung before the wait: it must not be waited through.
    bell.ring();
    let start = Instant::now();
    harness.driver.submit_and_wait(Some(PATIENCE)).unwrap();
    assert!(start.elapsed() < PATIENCE / 2, "rung in vain");
    while harness.driver.next_event().is_some() {}
    harness.assert_quiet("afterwards");
    harness.ping(&mut client, connection);
}

/// Two drivers wait on one AF_UNIX socket: they share what comes, and no one takes all.
fn shared_listener<V: Variant>() {
    const CLIENTS: usize = 40;
    let mut first = Listener::unix(&socket_path(), Transport::Resp, ListenOptions::default()).unwrap();
    let second = first.another(ListenOptions::default()).unwrap();
    let mut one = Harness::<V>::with(vec![first], Bounds::default());
    let mut other = Harness::<V>::with(vec![second], Bounds::default());
    one.turn(Duration::ZERO);
    other.turn(Duration::ZERO);
    let mut clients: Vec<Socket> = (0..CLIENTS).map(|_| connect(&one.addresses[0])).collect();
    let deadline = Instant::now() + PATIENCE;
    while one.pipeline.accepted.len() + other.pipeline.accepted.len() < CLIENTS {
        one.turn(Duration::from_millis(1));
        other.turn(Duration::from_millis(1));
        assert!(Instant::now() < deadline, "clients that nobody accepts");
    }
    let counts = (one.pipeline.accepted.len(), other.pipeline.accepted.len());
    assert!(counts.0.min(counts.1) >= CLIENTS / 4, "{counts:?}");
    for client in &mut clients {
        client.write_all(b"x").unwrap();
    }
    one.until("echoes", |pipeline| pipeline.links.values().all(|link| link.sent == 1));
    other.until("echoes", |pipeline| pipeline.links.values().all(|link| link.sent == 1));
    // One that stops accepting leaves the socket to the other.
    one.driver.enqueue(Operation::StopAccepting);
    one.turn(Duration::ZERO);
    one.assert_quiet("stopped accepting");
    let before = other.pipeline.accepted.len();
    let _late: Vec<Socket> = (0..5).map(|_| connect(&other.addresses[0])).collect();
    other.until("the late ones", |pipeline| pipeline.accepted.len() == before + 5);
    other.assert_quiet("all are accepted");
}

fn restarts<V: Variant>() {
    let mut port = 0;
    for _ in 0..20 {
        let start = Instant::now();
        let listener = tcp_listener(port);
        let waited = start.elapsed();
        let mut harness = Harness::<V>::with(vec![listener], Bounds::default());
        let Target::Tcp(address) = harness.addresses[TCP] else { unreachable!("it listens on TCP") };
        assert!(port == 0 || port == address.port());
        assert!(waited < Duration::from_millis(500), "the port was taken for {waited:?}");
        port = address.port();
        let (mut client, connection) = harness.client(TCP);
        harness.ping(&mut client, connection);
        let (_blocked, connection) = harness.client(TCP);
        harness.pipeline.send(connection, &pattern(4 << 20));
        harness.turn(Duration::ZERO);
        let _waiting = connect(&harness.addresses[TCP]);
        drop(harness);
        // Everything is closed: the client sees the end.
        let end = read_once(&mut client);
        assert!(matches!(end, Ok(0) | Err(ErrorKind::ConnectionReset)), "{end:?}");
    }
}

/// Waiting takes as long as was asked, and no longer than until something happens.
fn timeouts<V: Variant>() {
    let mut harness = Harness::<V>::new(Bounds::default());
    harness.turn(Duration::ZERO);
    let start = Instant::now();
    for _ in 0..10 {
        assert!(!harness.turn(Duration::ZERO));
    }
    assert!(start.elapsed() < Duration::from_secs(1), "zero does not wait");
    for span in [Duration::from_micros(300), Duration::from_millis(5), Duration::from_millis(50)] {
        let start = Instant::now();
        assert!(!harness.turn(span));
        let waited = start.elapsed();
        assert!(waited >= span, "{waited:?} of {span:?}");
    }
    let client = connect(&harness.addresses[TCP]);
    let start = Instant::now();
    // With direct descriptors a first turn only learns that there will be an address to tell.
    while !harness.turn(PATIENCE) {}
    assert!(start.elapsed() < PATIENCE / 2);
    drop(client);
    harness.until_all_closed();
}

/// Who connected, and to which listener.
fn addresses<V: Variant>() {
    let any: SocketAddr = "[::1]:0".parse().unwrap();
    let mut all = listeners();
    let six = Listener::tcp(any, Transport::Http, ListenOptions::default()).ok();
    let has_six = six.is_some();
    all.extend(six);
    let mut harness = Harness::<V>::with(all, Bounds::default());
    for listener in 0..2 + usize::from(has_six) {
        let (client, connection) = harness.client(listener);
        let link = harness.pipeline.link(connection);
        assert_eq!(link.listener, Some(listener));
        let address = client.local_addr().unwrap().as_socket();
        assert_eq!(link.peer, address);
        assert_eq!(address.is_none(), listener == UNIX);
    }
}

/// Clients that write and read in random pieces, while receiving is paused and resumed at random.
fn storm<V: Variant>() {
    let seed = seed();
    let mut random = Random(seed);
    let mut harness = Harness::<V>::new(Bounds { connections: 64, buffers: (8, 512) });
    harness.pipeline.keep_received = false;
    let threads: Vec<_> = (0..12u64)
        .map(|number| {
            let target = harness.addresses[number as usize % 2].clone();
            std::thread::spawn(move || client_of_the_storm(&target, Random(seed ^ (number + 1) << 32 | 1)))
        })
        .collect();
    harness.until("the storm is over", |pipeline| {
        let open: Vec<ConnectionId> = pipeline.slots.values().copied().collect();
        for connection in open {
            match random.below(12) {
                0 => pipeline.operations.push_back(Operation::PauseReceive { connection }),
                1..=4 => pipeline.operations.push_back(Operation::ResumeReceive { connection }),
                _ => {}
            }
        }
        threads.iter().all(|thread| thread.is_finished())
    });
    for thread in threads {
        thread.join().unwrap();
    }
    let open: Vec<ConnectionId> = harness.pipeline.slots.values().copied().collect();
    for connection in open {
        harness.driver.enqueue(Operation::ResumeReceive { connection });
    }
    harness.until_all_closed();
    let counters = harness.driver.counters();
    assert_eq!(counters.received_bytes, counters.sent_bytes);
}

fn client_of_the_storm(target: &Target, mut random: Random) {
    for _ in 0..6 {
        let mut reader = connect(target);
        let mut writer = reader.try_clone().unwrap();
        let length = 1 + random.below(60_000);
        let message = pattern(length);
        let to_write = message.clone();
        let mut cuts = Random(random.below(1 << 30) as u64 | 1);
        let writing = std::thread::spawn(move || {
            let mut rest = &to_write[..];
            while !rest.is_empty() {
                let (piece, later) = rest.split_at(rest.len().min(1 + cuts.below(3000)));
                writer.write_all(piece).unwrap();
                rest = later;
            }
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut echoed = Vec::new();
        loop {
            let mut piece = vec![0; 1 + random.below(5000)];
            match reader.read(&mut piece).unwrap() {
                0 => break,
                read => echoed.extend_from_slice(&piece[..read]),
            }
        }
        writing.join().unwrap();
        assert!(echoed == message, "{} of {length} bytes", echoed.len());
    }
}

// ---------------------------------------------------------------------------------------------------------
// Every test for every driver

macro_rules! suite {
    ($module:ident, $variant:ty, $churn:literal $(, $more:ident)*) => {
        suite!(@tests $module, $variant, $churn,
            every_split long_messages short_sends slow_readers buffer_exhaustion half_close finish_send
            finish_send_and_close resets
            pause_and_resume close_in_every_state ten_thousand_connections connects full_table
            stop_signal stop_before_start woken shared_listener restarts timeouts addresses storm $($more)*);
    };
    (@tests $module:ident, $variant:ty, $churn:literal, $($test:ident)*) => {
        mod $module {
            use super::Variant;
            $(
                #[test]
                fn $test() {
                    if <$variant>::is_available() {
                        super::$test::<$variant>();
                    }
                }
            )*
            #[test]
            fn churn() {
                if <$variant>::is_available() {
                    super::churn::<$variant>($churn);
                }
            }
        }
    };
}

suite!(epoll, super::Epoll, 100_000, out_of_descriptors);
suite!(io_uring, super::Uring, 100_000, out_of_descriptors);
suite!(io_uring_single_accept, super::SingleAccept, 10_000, out_of_descriptors);
suite!(io_uring_single_receive, super::SingleReceive, 10_000, out_of_descriptors);
suite!(io_uring_own_buffers, super::OwnBuffers, 10_000, out_of_descriptors);
suite!(io_uring_no_defer_taskrun, super::NoDeferTaskrun, 10_000, out_of_descriptors);
suite!(io_uring_no_single_issuer, super::NoSingleIssuer, 10_000, out_of_descriptors);
suite!(io_uring_sq_array, super::SqArray, 10_000, out_of_descriptors);
suite!(io_uring_plain_enter, super::PlainEnter, 10_000, out_of_descriptors);
// Its connections take no descriptors that could run out: the table's size is fixed at the start.
suite!(io_uring_direct, super::Direct, 10_000);
suite!(io_uring_min_wait, super::MinWait, 10_000, out_of_descriptors);
suite!(io_uring_tiny_queue, super::TinyQueue, 10_000, out_of_descriptors);
