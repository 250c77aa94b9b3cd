//! The epoll driver: what io_uring is measured against, and the way in where io_uring is forbidden.
//!
//! Level-triggered and straight-line, the way the fastest epoll servers are built: one wait a turn, one receive
//! into one shared buffer for each readable socket, one send for each reply, tried at once. A busy connection
//! costs no `epoll_ctl` at all: interest changes only where the kernel would otherwise report again and again
//! what nobody wants (input while paused, a peer that is gone), or where a send must wait for room.
//!
//! A send that the kernel takes only in part keeps the rest and waits for EPOLLOUT, so that to the pipeline
//! this looks like the one send in flight of the other driver. `Sent` comes with the next turn, which does not
//! enter the kernel if nothing but such news is pending; so a turn of requests costs one `epoll_wait` here as
//! it costs one `io_uring_enter` there.
//!
//! What the kernel reports names slot and generation, never a descriptor: an entry of this turn for a
//! connection closed in this turn is recognised although its descriptor may already be another's.

use super::driver::{Driver, DriverCounters};
use super::listener::Listener;
use super::stop::StopSignal;
use super::sys;
use crate::server::event::{ConnectionId, Event, Operation, Target};
use socket2::{Domain, SockAddr, Socket, Type};
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// Bounds of the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpollOptions {
    /// Slots for connections; one more is accepted and closed at once.
    pub max_connections: usize,
}

impl Default for EpollOptions {
    fn default() -> Self {
        EpollOptions { max_connections: 10_128 }
    }
}

/// Ready entries taken in one turn; what does not fit is reported in the next.
const READY_MAX: usize = 512;
/// The one receive buffer.
const RECEIVE_BYTES: usize = 64 << 10;
/// Accepts in a row on one listener, so that a burst of connections does not starve those that are there.
const ACCEPT_BURST: usize = 128;
/// How long a listener rests after an accept failed for want of descriptors or memory, unless a connection
/// closes before.
const ACCEPT_REST: Duration = Duration::from_millis(100);

const READ: u32 = libc::EPOLLIN as u32;
const WRITE: u32 = libc::EPOLLOUT as u32;
/// Reported whether asked for or not.
const GONE: u32 = (libc::EPOLLERR | libc::EPOLLHUP) as u32;

/// Tokens of what is not a connection: slots no table reaches.
const SLOT_STOP: u32 = u32::MAX;
const SLOT_WAKER: u32 = u32::MAX - 1;
const SLOT_LISTENERS: u32 = u32::MAX - 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    /// Given out by `reserve`; `Connect` has not come.
    Reserved,
    Connecting {
        token: u64,
    },
    Open,
    /// The descriptor is closed, `Closed` waits to be taken.
    Closed,
}

#[derive(Debug)]
struct Connection {
    generation: u32,
    state: State,
    socket: Option<OwnedFd>,
    /// What epoll was told to report; `None`: it does not know the socket.
    interest: Option<u32>,
    paused: bool,
    /// End of stream or an error was seen.
    receive_ended: bool,
    /// FIN follows the send in flight.
    finish_send: bool,
    sent: usize,
    send: Option<Vec<u8>>,
}

impl Connection {
    fn descriptor(&self) -> RawFd {
        self.socket.as_ref().expect("an open connection has a socket").as_raw_fd()
    }

    fn receives(&self) -> bool {
        self.state == State::Open && !self.paused && !self.receive_ended
    }

    /// What should be reported.
    fn wanted(&self) -> u32 {
        let read = if self.receives() { READ } else { 0 };
        let waits = self.send.is_some() || matches!(self.state, State::Connecting { .. });
        read | if waits { WRITE } else { 0 }
    }
}

/// What a ready entry turned out to be, without borrowing the driver.
enum Step {
    /// Nothing for the caller, and the entry is done.
    Nothing,
    /// Bytes of this length are in the receive buffer; the entry is done.
    Received(ConnectionId, usize),
    /// The entry is done.
    Event(Event<'static>),
    /// The entry may hold more.
    Accepted(Event<'static>),
}

/// See the module.
pub struct EpollDriver {
    epoll: OwnedFd,
    listeners: Vec<Option<Listener>>,
    /// Set while accepting is given up for a moment.
    resting_until: Option<Instant>,
    stop: StopSignal,
    waker: Option<OwnedFd>,
    options: EpollOptions,
    connections: Vec<Connection>,
    free: Vec<u32>,
    ready: Box<[libc::epoll_event]>,
    ready_count: usize,
    ready_next: usize,
    accepts_left: usize,
    receive_buffer: Box<[u8]>,
    /// News made by operations.
    pending: VecDeque<Event<'static>>,
    /// The last turn brought pending news only and did not ask the kernel.
    skipped_wait: bool,
    /// Linux before 5.11 waits in whole milliseconds only.
    has_pwait2: bool,
    counters: DriverCounters,
}

impl EpollDriver {
    /// Starts accepting on `listeners`.
    pub fn new(listeners: Vec<Listener>, options: EpollOptions, stop: StopSignal) -> io::Result<Self> {
        assert!(options.max_connections < SLOT_LISTENERS as usize, "slots and tokens do not meet");
        assert!(listeners.len() < (SLOT_WAKER - SLOT_LISTENERS) as usize, "one token for each listener");
        // SAFETY: no pointers; the descriptor returned is new and nobody else's.
        let epoll = unsafe { OwnedFd::from_raw_fd(sys::check(libc::epoll_create1(libc::EPOLL_CLOEXEC))?) };
        let driver = EpollDriver {
            epoll,
            listeners: listeners.into_iter().map(Some).collect(),
            resting_until: None,
            stop,
            waker: None,
            options,
            connections: Vec::new(),
            free: Vec::new(),
            ready: vec![libc::epoll_event { events: 0, u64: 0 }; READY_MAX].into_boxed_slice(),
            ready_count: 0,
            ready_next: 0,
            accepts_left: ACCEPT_BURST,
            receive_buffer: vec![0; RECEIVE_BYTES].into_boxed_slice(),
            pending: VecDeque::new(),
            skipped_wait: false,
            has_pwait2: true,
            counters: DriverCounters::default(),
        };
        for (index, listener) in driver.listeners.iter().flatten().enumerate() {
            listener.set_nonblocking()?;
            driver.listen(index, listener)?;
        }
        driver.control(libc::EPOLL_CTL_ADD, driver.stop.as_raw_fd(), READ, SLOT_STOP as u64)?;
        Ok(driver)
    }

    /// Waits for connections. On a socket that other shards wait on too only one of those that sleep is woken, and
    /// whoever comes last to the queue of waiters has its turn last.
    fn listen(&self, index: usize, listener: &Listener) -> io::Result<()> {
        let events = if listener.is_shared() { READ | libc::EPOLLEXCLUSIVE as u32 } else { READ };
        self.control(libc::EPOLL_CTL_ADD, listener.as_raw_fd(), events, listener_token(index))
    }

    fn control(&self, operation: libc::c_int, descriptor: RawFd, events: u32, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events, u64: token };
        // SAFETY: `event` is valid for the call, which copies it.
        sys::check(unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), operation, descriptor, &mut event) })
            .map(drop)
    }

    /// Tells epoll what is wanted of a connection, if that is not what it knows.
    ///
    /// Failing here means a descriptor that is not ours or no kernel memory for one more watch: a bug or the
    /// end, not a condition a connection could be told of.
    fn update_interest(&mut self, slot: usize) {
        let connection = &self.connections[slot];
        let wanted = connection.wanted();
        let operation = match connection.interest {
            Some(known) if known == wanted => return,
            Some(_) => libc::EPOLL_CTL_MOD,
            None if wanted == 0 => return,
            None => libc::EPOLL_CTL_ADD,
        };
        self.control(operation, connection.descriptor(), wanted, self.token(slot))
            .expect("epoll_ctl on a socket of ours");
        self.connections[slot].interest = Some(wanted);
    }

    /// Errors and hang-ups are reported even where no interest is: a socket nobody wants to hear of has to go.
    fn forget(&mut self, slot: usize) {
        let descriptor = self.connections[slot].descriptor();
        self.control(libc::EPOLL_CTL_DEL, descriptor, 0, 0).expect("epoll_ctl on a socket of ours");
        self.connections[slot].interest = None;
    }

    fn token(&self, slot: usize) -> u64 {
        (self.connections[slot].generation as u64) << 32 | slot as u64
    }

    fn id(&self, slot: usize) -> ConnectionId {
        ConnectionId { slot: slot as u32, generation: self.connections[slot].generation }
    }

    /// The slot of a connection that still is the one the id names.
    #[inline]
    fn live(&self, id: ConnectionId) -> Option<usize> {
        let connection = self.connections.get(id.slot as usize)?;
        let alive = !matches!(connection.state, State::Free | State::Closed);
        (connection.generation == id.generation && alive).then_some(id.slot as usize)
    }

    /// A free slot, or `None` where the table is full.
    fn allocate(&mut self, state: State) -> Option<usize> {
        let slot = match self.free.pop() {
            Some(slot) => slot as usize,
            None if self.connections.len() < self.options.max_connections => {
                self.connections.push(Connection {
                    generation: 0,
                    state: State::Free,
                    socket: None,
                    interest: None,
                    paused: false,
                    receive_ended: false,
                    finish_send: false,
                    sent: 0,
                    send: None,
                });
                self.connections.len() - 1
            }
            None => return None,
        };
        let connection = &mut self.connections[slot];
        debug_assert!(connection.state == State::Free && connection.socket.is_none());
        *connection = Connection {
            generation: connection.generation,
            state,
            socket: None,
            interest: None,
            paused: false,
            receive_ended: false,
            finish_send: false,
            sent: 0,
            send: None,
        };
        Some(slot)
    }

    fn release(&mut self, slot: usize) {
        let connection = &mut self.connections[slot];
        connection.state = State::Free;
        connection.socket = None;
        connection.send = None;
        connection.generation = connection.generation.wrapping_add(1);
        self.free.push(slot as u32);
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<usize> {
        let (epoll, entries) = (self.epoll.as_raw_fd(), self.ready.as_mut_ptr());
        let capacity = self.ready.len() as libc::c_int;
        self.counters.enters += 1;
        if self.has_pwait2
            && let Some(timeout) = timeout.filter(|timeout| !timeout.is_zero())
        {
            let timespec = sys::timespec(timeout);
            let no_mask = std::ptr::null::<libc::sigset_t>();
            // SAFETY: `ready` is writable for `capacity` entries; `timespec` lives through the call; without
            // a mask its size is not looked at.
            let count = unsafe {
                libc::syscall(libc::SYS_epoll_pwait2, epoll, entries, capacity, &timespec, no_mask, 0usize)
            };
            match sys::check(count as libc::c_int) {
                Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => self.has_pwait2 = false,
                result => return result.map(|count| count as usize),
            }
        }
        // Rounded up: a turn that comes early for a timer would come again and again until it is time.
        let milliseconds = timeout.map_or(-1, |timeout| {
            timeout.as_nanos().div_ceil(1_000_000).min(libc::c_int::MAX as u128) as libc::c_int
        });
        // SAFETY: `ready` is writable for `capacity` entries.
        let count = unsafe { libc::epoll_wait(epoll, entries, capacity, milliseconds) };
        sys::check(count).map(|count| count as usize)
    }

    /// Takes one ready entry a step further.
    #[inline]
    fn step(&mut self, token: u64, events: u32) -> Step {
        let (slot, generation) = (token as u32, (token >> 32) as u32);
        if slot >= SLOT_LISTENERS {
            return match slot {
                SLOT_STOP => self.on_stop(),
                // Edge-triggered and never read: that it ended the wait is all.
                SLOT_WAKER => Step::Nothing,
                _ => self.on_acceptable((slot - SLOT_LISTENERS) as usize),
            };
        }
        let Some(slot) = self.live(ConnectionId { slot, generation }) else { return Step::Nothing };
        match self.connections[slot].state {
            State::Connecting { token } => return self.on_connect(slot, token),
            State::Open => {}
            _ => return Step::Nothing,
        }
        let mut wanted = false;
        if events & (WRITE | GONE) != 0 && self.connections[slot].send.is_some() {
            wanted = true;
            self.continue_send(slot);
        }
        if events & (READ | GONE) != 0 && self.connections[slot].receives() {
            return self.receive(slot);
        }
        if !wanted {
            // Paused, or ended, or nothing left to send: this would be reported again for ever.
            if events & GONE != 0 && self.connections[slot].wanted() == 0 {
                self.forget(slot);
            } else {
                self.update_interest(slot);
            }
        }
        Step::Nothing
    }

    #[inline]
    fn receive(&mut self, slot: usize) -> Step {
        let id = self.id(slot);
        let connection = &mut self.connections[slot];
        let buffer = &mut self.receive_buffer;
        // SAFETY: the buffer is writable for its length during the call.
        let result =
            unsafe { libc::recv(connection.descriptor(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        if result > 0 {
            self.counters.receives += 1;
            self.counters.received_bytes += result as u64;
            return Step::Received(id, result as usize);
        }
        let event = if result == 0 {
            Event::ReceiveEnded { connection: id }
        } else {
            match errno() {
                libc::EAGAIN | libc::EINTR => return Step::Nothing,
                errno => Event::Failed { connection: id, errno },
            }
        };
        // Most connections are closed now. Only one that is kept is reported again, and then epoll is told.
        connection.receive_ended = true;
        Step::Event(event)
    }

    /// Accepts one connection; the entry stays until there is no other.
    fn on_acceptable(&mut self, index: usize) -> Step {
        loop {
            let Some(listener) = &self.listeners[index] else { return Step::Nothing };
            if self.accepts_left == 0 {
                return Step::Nothing;
            }
            self.accepts_left -= 1;
            match accept(listener) {
                Ok((socket, peer)) => {
                    if listener.is_shared() {
                        self.go_last(index);
                    }
                    if let Some(event) = self.accepted(socket, index, peer) {
                        return Step::Accepted(event);
                    }
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => return Step::Nothing,
                    // The peer went away while it waited.
                    Some(libc::EINTR | libc::ECONNABORTED | libc::EPROTO) => {}
                    _ => {
                        self.counters.accept_errors += 1;
                        self.rest();
                        return Step::Nothing;
                    }
                },
            }
        }
    }

    /// Has had its turn at a shared listener: the next connection is another shard's, if one sleeps.
    fn go_last(&mut self, index: usize) {
        self.accepts_left = 0;
        let Some(listener) = self.listeners[index].as_ref().filter(|_| self.resting_until.is_none()) else {
            return;
        };
        self.control(libc::EPOLL_CTL_DEL, listener.as_raw_fd(), 0, 0)
            .and_then(|()| self.listen(index, listener))
            .expect("epoll_ctl on a listener of ours");
    }

    fn accepted(
        &mut self,
        socket: OwnedFd,
        listener: usize,
        peer: Option<SocketAddr>,
    ) -> Option<Event<'static>> {
        let Some(slot) = self.allocate(State::Open) else {
            self.counters.accept_errors += 1;
            return None;
        };
        self.connections[slot].socket = Some(socket);
        self.update_interest(slot);
        self.counters.accepted += 1;
        self.counters.open += 1;
        Some(Event::Accepted { connection: self.id(slot), listener, peer })
    }

    /// Out of descriptors: the waiting connections would be reported for ever, so do not listen for a moment.
    fn rest(&mut self) {
        if self.resting_until.is_none() {
            self.set_listening(false);
        }
        self.resting_until = Some(Instant::now() + ACCEPT_REST);
    }

    fn end_rest(&mut self) {
        self.set_listening(true);
        self.resting_until = None;
    }

    fn set_listening(&self, on: bool) {
        for (index, listener) in self.listeners.iter().enumerate() {
            let Some(listener) = listener else { continue };
            // Not modified but added and deleted: an exclusive watch cannot be modified.
            let done = match on {
                true => self.listen(index, listener),
                false => self.control(libc::EPOLL_CTL_DEL, listener.as_raw_fd(), 0, 0),
            };
            done.expect("epoll_ctl on a listener of ours");
        }
    }

    fn on_stop(&mut self) -> Step {
        // The signal stays raised for the others who watch it; we have seen it.
        self.control(libc::EPOLL_CTL_DEL, self.stop.as_raw_fd(), 0, 0).expect("epoll_ctl on the stop signal");
        Step::Event(Event::StopRequested)
    }

    /// Goes on with a send for which there is room now, or which has failed.
    fn continue_send(&mut self, slot: usize) {
        if let Some(outcome) = self.try_send(slot) {
            self.finish_send(slot, outcome);
        }
    }

    /// Gives the kernel what it will take; `None`: it did not take all.
    #[inline]
    fn try_send(&mut self, slot: usize) -> Option<Result<(), i32>> {
        let connection = &mut self.connections[slot];
        let buffer = connection.send.as_ref().expect("a send is in flight");
        loop {
            let rest = &buffer[connection.sent..];
            let socket = connection.socket.as_ref().expect("an open connection has a socket");
            self.counters.sends += 1;
            // SAFETY: `rest` is readable for its length during the call.
            let result = unsafe {
                libc::send(socket.as_raw_fd(), rest.as_ptr().cast(), rest.len(), libc::MSG_NOSIGNAL)
            };
            if result >= 0 {
                self.counters.sent_bytes += result as u64;
                if result as usize == rest.len() {
                    return Some(Ok(()));
                }
                connection.sent += result as usize;
                self.counters.short_sends += 1;
                return None;
            }
            match errno() {
                libc::EINTR => {}
                libc::EAGAIN => return None,
                errno => return Some(Err(errno)),
            }
        }
    }

    #[inline]
    fn finish_send(&mut self, slot: usize, result: Result<(), i32>) {
        let id = self.id(slot);
        let connection = &mut self.connections[slot];
        let buffer = connection.send.take().expect("a send is in flight");
        connection.sent = 0;
        if std::mem::take(&mut connection.finish_send) {
            shutdown_send(connection.descriptor());
        }
        self.pending.push_back(Event::Sent { connection: id, buffer, result });
    }

    fn connect(&mut self, id: ConnectionId, token: u64, target: &Target) {
        let Some(slot) = self.live(id).filter(|&slot| self.connections[slot].state == State::Reserved) else {
            return;
        };
        match start_connect(target) {
            Ok((socket, done)) => {
                let connection = &mut self.connections[slot];
                connection.socket = Some(socket);
                connection.state = if done { State::Open } else { State::Connecting { token } };
                self.update_interest(slot);
                if done {
                    self.connected(id, token);
                }
            }
            Err(error) => {
                self.release(slot);
                // Not a kernel's answer: a path too long for a socket.
                let errno = error.raw_os_error().unwrap_or(libc::ENAMETOOLONG);
                self.pending.push_back(Event::Connected { connection: id, token, result: Err(errno) });
            }
        }
    }

    fn connected(&mut self, id: ConnectionId, token: u64) {
        self.counters.open += 1;
        self.pending.push_back(Event::Connected { connection: id, token, result: Ok(()) });
    }

    fn on_connect(&mut self, slot: usize, token: u64) -> Step {
        let id = self.id(slot);
        let connection = &mut self.connections[slot];
        let socket = connection.socket.as_ref().expect("a connecting connection has a socket");
        // Why a connection failed is asked of the socket, and only once; no error means that it stands.
        let error = match socket2::SockRef::from(socket).take_error() {
            Ok(None) => None,
            Ok(Some(error)) | Err(error) => Some(error),
        };
        match error {
            None => {
                connection.state = State::Open;
                self.update_interest(slot);
                self.counters.open += 1;
                Step::Event(Event::Connected { connection: id, token, result: Ok(()) })
            }
            Some(error) => {
                self.release(slot);
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                Step::Event(Event::Connected { connection: id, token, result: Err(errno) })
            }
        }
    }

    fn close(&mut self, slot: usize) {
        let id = self.id(slot);
        let connection = &mut self.connections[slot];
        match connection.state {
            State::Reserved => return self.release(slot),
            State::Open => self.counters.open -= 1,
            State::Connecting { .. } => {}
            State::Free | State::Closed => return,
        }
        // Closing the only descriptor takes the socket out of epoll. The slot is free once `Closed` is taken.
        connection.socket = None;
        connection.send = None;
        connection.state = State::Closed;
        self.pending.push_back(Event::Closed { connection: id });
    }
}

impl Driver for EpollDriver {
    #[inline]
    fn submit_and_wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        (self.ready_count, self.ready_next, self.accepts_left) = (0, 0, ACCEPT_BURST);
        // News from the operations of this turn need no system call. But not twice in a row: a connection
        // whose every `Sent` leads to another send must not keep us from the others.
        if !self.pending.is_empty() && !self.skipped_wait {
            self.skipped_wait = true;
            return Ok(());
        }
        self.skipped_wait = false;
        let mut timeout = if self.pending.is_empty() { timeout } else { Some(Duration::ZERO) };
        if self.resting_until.is_some() {
            timeout = Some(timeout.map_or(ACCEPT_REST, |timeout| timeout.min(ACCEPT_REST)));
        }
        match self.wait(timeout) {
            Ok(count) => self.ready_count = count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if self.resting_until.is_some_and(|until| until <= Instant::now()) {
            self.end_rest();
        }
        Ok(())
    }

    #[inline]
    fn next_event(&mut self) -> Option<Event<'_>> {
        if let Some(event) = self.pending.pop_front() {
            if let Event::Closed { connection } = event {
                self.release(connection.slot as usize);
                if self.resting_until.is_some() {
                    self.end_rest();
                }
            }
            return Some(event);
        }
        let received = loop {
            if self.ready_next == self.ready_count {
                // The last entry may have finished a send and had nothing else to tell.
                return self.pending.pop_front();
            }
            let entry = self.ready[self.ready_next];
            let step = self.step(entry.u64, entry.events);
            if let Step::Accepted(event) = step {
                self.counters.completions += 1;
                return Some(event);
            }
            self.ready_next += 1;
            self.counters.completions += 1;
            match step {
                Step::Received(connection, length) => break (connection, length),
                Step::Event(event) => return Some(event),
                Step::Nothing | Step::Accepted(_) => {}
            }
        };
        let (connection, length) = received;
        Some(Event::Received { connection, bytes: &self.receive_buffer[..length] })
    }

    #[inline]
    fn enqueue(&mut self, operation: Operation) {
        match operation {
            Operation::Send { connection, buffer } => {
                assert!(!buffer.is_empty(), "a send carries bytes");
                let Some(slot) = self.live(connection) else { return };
                let state = &mut self.connections[slot];
                if state.state != State::Open {
                    return;
                }
                assert!(state.send.is_none(), "one send in flight per connection");
                state.send = Some(buffer);
                match self.try_send(slot) {
                    Some(outcome) => self.finish_send(slot, outcome),
                    None => self.update_interest(slot),
                }
            }
            Operation::PauseReceive { connection } => {
                // Epoll hears of it when there is input nobody wants, which is often never.
                if let Some(slot) = self.live(connection) {
                    self.connections[slot].paused = true;
                }
            }
            Operation::ResumeReceive { connection } => {
                if let Some(slot) = self.live(connection)
                    && std::mem::take(&mut self.connections[slot].paused)
                    && self.connections[slot].state == State::Open
                {
                    self.update_interest(slot);
                }
            }
            Operation::FinishSend { connection } => {
                if let Some(slot) = self.live(connection)
                    && self.connections[slot].state == State::Open
                {
                    let connection = &mut self.connections[slot];
                    if connection.send.is_some() {
                        connection.finish_send = true;
                    } else {
                        shutdown_send(connection.descriptor());
                    }
                }
            }
            Operation::Close { connection } => {
                if let Some(slot) = self.live(connection) {
                    self.close(slot);
                }
            }
            Operation::Connect { connection, token, target } => self.connect(connection, token, &target),
            Operation::StopAccepting => {
                self.resting_until = None;
                self.listeners.iter_mut().for_each(|listener| *listener = None);
            }
        }
    }

    fn reserve(&mut self) -> Option<ConnectionId> {
        self.allocate(State::Reserved).map(|slot| self.id(slot))
    }

    fn watch(&mut self, waker: OwnedFd) -> io::Result<()> {
        let events = READ | libc::EPOLLET as u32;
        self.control(libc::EPOLL_CTL_ADD, waker.as_raw_fd(), events, SLOT_WAKER as u64)?;
        self.waker = Some(waker);
        Ok(())
    }

    fn counters(&self) -> DriverCounters {
        self.counters
    }
}

impl fmt::Debug for EpollDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EpollDriver").field("counters", &self.counters).finish_non_exhaustive()
    }
}

fn listener_token(index: usize) -> u64 {
    SLOT_LISTENERS as u64 + index as u64
}

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn accept(listener: &Listener) -> io::Result<(OwnedFd, Option<SocketAddr>)> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: `try_init` lends storage and its length, which the kernel fills and never exceeds; the
    // descriptor returned is new and nobody else's.
    let (socket, address) = unsafe {
        SockAddr::try_init(|storage, length| {
            let socket = sys::check(libc::accept4(listener.as_raw_fd(), storage.cast(), length, flags))?;
            Ok(OwnedFd::from_raw_fd(socket))
        })?
    };
    Ok((socket, address.as_socket()))
}

/// FIN after what was sent. A peer that is gone already makes this fail, and needs no FIN.
fn shutdown_send(descriptor: RawFd) {
    // SAFETY: no pointers; the descriptor is open.
    unsafe { libc::shutdown(descriptor, libc::SHUT_WR) };
}

/// A socket on its way to `target`; true where it has arrived.
fn start_connect(target: &Target) -> io::Result<(OwnedFd, bool)> {
    let (domain, address) = match target {
        Target::Tcp(address) => (Domain::for_address(*address), SockAddr::from(*address)),
        Target::Unix(path) => (Domain::UNIX, SockAddr::unix(path)?),
    };
    let socket = Socket::new(domain, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    if domain != Domain::UNIX {
        socket.set_tcp_nodelay(true)?;
    }
    match socket.connect(&address) {
        Ok(()) => Ok((socket.into(), true)),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok((socket.into(), false)),
        // An AF_UNIX listener with a full queue answers EAGAIN, and nothing reports when there is room.
        Err(error) => Err(error),
    }
}
