//! The io_uring driver: multishot accept, multishot receive from provided buffers, one send in flight per
//! connection, one enter a turn.
//!
//! Ownership, on which every `SAFETY` here rests: a buffer being sent lies in its connection's `send` field
//! from the push until the send's completion; a connection's slot is not freed, and its descriptor not closed,
//! before the completions of its receive, its send and its FIN were taken; receive memory belongs to
//! [`BufferRing`] or to the connection's `own_buffer`, and neither moves. Dropping the driver drops the ring
//! first, which cancels and waits.
//!
//! A completion names its operation, slot and generation in `user_data`, so that one that comes late for a
//! slot in its next life is recognised and ignored.

use super::buffers::{BufferRing, GROUP};
use super::driver::{Driver, DriverCounters};
use super::listener::Listener;
use super::ring::{Completion, Ring, RingOptions};
use super::stop::StopSignal;
use crate::server::event::{ConnectionId, Event, Operation, Target};
use io_uring::{opcode, squeue, types};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// Switches of the driver. Each io_uring feature can be turned off, to measure it or to do without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UringOptions {
    /// The ring itself.
    pub ring: RingOptions,
    /// Slots for connections; one more is accepted and closed at once.
    pub max_connections: usize,
    /// One accept operation for all connections of a listener (Linux 5.19).
    pub multishot_accept: bool,
    /// One receive operation for all receives of a connection (Linux 6.0). Needs `provided_buffers`.
    pub multishot_receive: bool,
    /// Receive into buffers the kernel picks from a shared ring (Linux 5.19); else each connection owns one.
    pub provided_buffers: bool,
    /// Buffers in that ring, a power of two.
    pub buffer_count: u16,
    /// Bytes in a buffer.
    pub buffer_size: u32,
    /// Accepted sockets live in the ring's own table and never get a descriptor number (Linux 5.19; their
    /// addresses need FIXED_FD_INSTALL, Linux 6.8).
    pub direct_descriptors: bool,
    /// Let completions gather for this long before the first wakes the loop (Linux 6.12); 0: off.
    pub min_wait_us: u32,
}

impl Default for UringOptions {
    fn default() -> Self {
        UringOptions {
            ring: RingOptions::default(),
            max_connections: 10_128,
            multishot_accept: true,
            multishot_receive: true,
            provided_buffers: true,
            buffer_count: 512,
            buffer_size: 16384,
            direct_descriptors: false,
            min_wait_us: 0,
        }
    }
}

/// How long a listener rests after an accept failed for want of descriptors or memory, unless a connection
/// closes before.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// How long a connection must have been silent before its receive is armed afresh, once. Linux 6.18 now and then
/// loses the wake-up of a multishot receive when a reset arrives right behind data: the socket is dead and no
/// completion ever says so (12 of 30,000 such resets on a loaded machine). A fresh receive finds the error.
static SILENCE_SPAN: types::Timespec = types::Timespec::new().nsec(500_000_000);

/// Generations use 28 bits of `user_data`.
const GENERATION_MASK: u32 = 0x0fff_ffff;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Accept = 1,
    Install,
    Receive,
    Send,
    Connect,
    Close,
    Stop,
    /// The timer behind [`SILENCE_SPAN`].
    Sweep,
    /// FIN on a descriptor in the ring's table.
    FinishSend,
    /// The eventfd by which other threads end a wait.
    Wake,
    /// Cancellations: their own results say nothing we need.
    Other,
}

impl Kind {
    fn from_bits(bits: u64) -> Kind {
        match bits {
            1 => Kind::Accept,
            2 => Kind::Install,
            3 => Kind::Receive,
            4 => Kind::Send,
            5 => Kind::Connect,
            6 => Kind::Close,
            7 => Kind::Stop,
            8 => Kind::Sweep,
            9 => Kind::FinishSend,
            10 => Kind::Wake,
            _ => Kind::Other,
        }
    }
}

#[inline]
fn user_data(kind: Kind, slot: u32, generation: u32) -> u64 {
    (kind as u64) << 60 | ((generation & GENERATION_MASK) as u64) << 32 | slot as u64
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Descriptor {
    None,
    Plain(RawFd),
    /// An index into the ring's table.
    Direct(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    /// Reserved for a `Connect` that has not been enqueued.
    Reserved,
    /// Accepted into the table; its address is being asked for.
    Installing,
    Connecting,
    Open,
    /// Waits for the completions of its receive, its send and its FIN.
    Closing,
    /// The close itself is in flight.
    ClosePushed,
}

#[derive(Debug)]
struct Connection {
    generation: u32,
    state: State,
    descriptor: Descriptor,
    receive_armed: bool,
    receive_paused: bool,
    /// End of stream or an error was seen: never armed again.
    receive_ended: bool,
    /// A `FinishSend` is in flight.
    finishing: bool,
    /// Listed in `suspects`.
    suspected: bool,
    /// Something came since the last sweep.
    heard: bool,
    listener: u32,
    sent: usize,
    send: Option<Vec<u8>>,
    own_buffer: Option<Box<[u8]>>,
    connect: Option<Box<(socket2::SockAddr, u64)>>,
}

/// What a completion turned out to be, without borrowing the driver.
enum Step {
    Nothing,
    Event(Event<'static>),
    Provided { connection: ConnectionId, buffer: u16, length: usize },
    Owned { connection: ConnectionId, length: usize },
}

/// See the module.
pub struct UringDriver {
    // Dropped in this order: the ring cancels what is in flight before the memory below goes.
    ring: Ring,
    buffers: Option<BufferRing>,
    connections: Vec<Connection>,
    free: Vec<u32>,
    listeners: Vec<Option<Listener>>,
    listener_armed: Vec<bool>,
    resting_listeners: bool,
    /// A shared listener gave us a connection and is armed again with the next enter.
    listener_yields: bool,
    accepting: bool,
    stop: StopSignal,
    waker: Option<OwnedFd>,
    options: UringOptions,
    /// The buffer whose bytes the caller may still be reading.
    lent: Option<u16>,
    /// Receives to arm with the next enter: those that found no buffer.
    rearm: Vec<ConnectionId>,
    pending: VecDeque<Event<'static>>,
    /// Connections whose multishot receive may have lost a reset: those that were heard lately.
    suspects: Vec<ConnectionId>,
    sweep_armed: bool,
    counters: DriverCounters,
}

impl UringDriver {
    /// Makes the ring on the calling thread and starts accepting on `listeners`.
    pub fn new(listeners: Vec<Listener>, options: UringOptions, stop: StopSignal) -> io::Result<UringDriver> {
        let ring = Ring::new(&options.ring)?;
        let buffers = match options.provided_buffers {
            true => Some(BufferRing::new(&ring, options.buffer_count, options.buffer_size)?),
            false => None,
        };
        if options.direct_descriptors {
            ring.submitter().register_files_sparse(options.max_connections as u32)?;
        }
        let armed = vec![false; listeners.len()];
        let mut driver = UringDriver {
            ring,
            buffers,
            connections: Vec::new(),
            free: Vec::new(),
            listeners: listeners.into_iter().map(Some).collect(),
            listener_armed: armed,
            resting_listeners: false,
            listener_yields: false,
            accepting: true,
            stop,
            waker: None,
            options,
            lent: None,
            rearm: Vec::new(),
            pending: VecDeque::new(),
            suspects: Vec::new(),
            sweep_armed: false,
            counters: DriverCounters::default(),
        };
        driver.arm_listeners()?;
        let poll = opcode::PollAdd::new(types::Fd(driver.stop.as_raw_fd()), libc::POLLIN as u32)
            .build()
            .user_data(user_data(Kind::Stop, 0, 0));
        // SAFETY: the entry points to no memory.
        unsafe { driver.ring.push(poll) }?;
        Ok(driver)
    }

    fn push(&mut self, entry: squeue::Entry) {
        // SAFETY: this module's contract (see its head): what an entry points to stays until its completion.
        let pushed = unsafe { self.ring.push(entry) };
        // The only ways to fail are a ring that is gone or a kernel that breaks its word.
        pushed.expect("io_uring_enter failed while the submission queue was full");
    }

    fn arm_listeners(&mut self) -> io::Result<()> {
        self.resting_listeners = false;
        if !self.accepting {
            return Ok(());
        }
        for index in 0..self.listeners.len() {
            let Some(listener) = &self.listeners[index] else { continue };
            if self.listener_armed[index] {
                continue;
            }
            let descriptor = types::Fd(listener.as_raw_fd());
            // Of several rings that wait on one socket the kernel wakes the one that began to wait first. A multishot
            // operation would keep its place for ever and get every connection; armed afresh, each has its turn.
            let multishot = self.options.multishot_accept && !listener.is_shared();
            let entry = match (multishot, self.options.direct_descriptors) {
                (true, direct) => opcode::AcceptMulti::new(descriptor)
                    .allocate_file_index(direct)
                    .flags(if direct { 0 } else { libc::SOCK_CLOEXEC })
                    .build(),
                (false, true) => opcode::Accept::new(descriptor, std::ptr::null_mut(), std::ptr::null_mut())
                    .file_index(Some(types::DestinationSlot::auto_target()))
                    .build(),
                (false, false) => opcode::Accept::new(descriptor, std::ptr::null_mut(), std::ptr::null_mut())
                    .flags(libc::SOCK_CLOEXEC)
                    .build(),
            };
            self.listener_armed[index] = true;
            self.push(entry.user_data(user_data(Kind::Accept, index as u32, 0)));
        }
        Ok(())
    }

    /// A free slot, or `None` where the table is full.
    fn allocate(&mut self, state: State) -> Option<u32> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.connections.len() < self.options.max_connections => {
                self.connections.push(Connection {
                    generation: 0,
                    state: State::Free,
                    descriptor: Descriptor::None,
                    receive_armed: false,
                    receive_paused: false,
                    receive_ended: false,
                    finishing: false,
                    suspected: false,
                    heard: false,
                    listener: 0,
                    sent: 0,
                    send: None,
                    own_buffer: None,
                    connect: None,
                });
                self.connections.len() as u32 - 1
            }
            None => return None,
        };
        let connection = &mut self.connections[slot as usize];
        debug_assert!(
            connection.state == State::Free
                && !connection.receive_armed
                && connection.send.is_none()
                && !connection.finishing
        );
        connection.state = state;
        connection.receive_paused = false;
        connection.receive_ended = false;
        connection.suspected = false;
        connection.sent = 0;
        Some(slot)
    }

    fn release(&mut self, slot: u32) {
        let connection = &mut self.connections[slot as usize];
        connection.state = State::Free;
        connection.descriptor = Descriptor::None;
        connection.own_buffer = None;
        connection.connect = None;
        connection.generation = (connection.generation + 1) & GENERATION_MASK;
        self.free.push(slot);
    }

    fn id(&self, slot: u32) -> ConnectionId {
        ConnectionId { slot, generation: self.connections[slot as usize].generation }
    }

    /// The slot of a connection that still is the one the id names.
    #[inline]
    fn live(&self, id: ConnectionId) -> Option<usize> {
        let connection = self.connections.get(id.slot as usize)?;
        (connection.generation == id.generation && connection.state != State::Free)
            .then_some(id.slot as usize)
    }

    fn arm_receive(&mut self, slot: usize) {
        let connection = &mut self.connections[slot];
        if connection.receive_armed
            || connection.receive_paused
            || connection.receive_ended
            || connection.state != State::Open
        {
            return;
        }
        connection.receive_armed = true;
        let tag = user_data(Kind::Receive, slot as u32, connection.generation);
        macro_rules! receive {
            ($descriptor:expr) => {
                if self.options.provided_buffers && self.options.multishot_receive {
                    opcode::RecvMulti::new($descriptor, GROUP).build()
                } else if self.options.provided_buffers {
                    opcode::Recv::new($descriptor, std::ptr::null_mut(), self.options.buffer_size)
                        .buf_group(GROUP)
                        .build()
                        .flags(squeue::Flags::BUFFER_SELECT)
                } else {
                    let size = self.options.buffer_size;
                    let memory = connection
                        .own_buffer
                        .get_or_insert_with(|| vec![0; size as usize].into_boxed_slice());
                    opcode::Recv::new($descriptor, memory.as_mut_ptr(), size).build()
                }
            };
        }
        let entry = match connection.descriptor {
            Descriptor::Plain(fd) => receive!(types::Fd(fd)),
            Descriptor::Direct(index) => receive!(types::Fixed(index)),
            Descriptor::None => unreachable!("an open connection has a descriptor"),
        };
        self.push(entry.user_data(tag));
    }

    /// Edge by edge: the eventfd is never read, and each raise is a completion.
    fn arm_waker(&mut self) {
        if let Some(waker) = &self.waker {
            let poll = opcode::PollAdd::new(types::Fd(waker.as_raw_fd()), libc::POLLIN as u32).multi(true);
            self.push(poll.build().user_data(user_data(Kind::Wake, 0, 0)));
        }
    }

    /// Notes that a connection was heard; it is looked at again once it has fallen silent.
    #[inline]
    fn hear(&mut self, slot: usize) {
        let connection = &mut self.connections[slot];
        connection.heard = true;
        if !connection.suspected && self.options.multishot_receive {
            connection.suspected = true;
            let id = self.id(slot as u32);
            self.suspects.push(id);
            self.arm_sweep();
        }
    }

    fn arm_sweep(&mut self) {
        if !self.sweep_armed {
            self.sweep_armed = true;
            let timer = opcode::Timeout::new(&SILENCE_SPAN).build();
            self.push(timer.user_data(user_data(Kind::Sweep, 0, 0)));
        }
    }

    /// Arms the receive of every suspect that has been silent since the last sweep afresh, once.
    fn sweep(&mut self) {
        self.sweep_armed = false;
        for id in std::mem::take(&mut self.suspects) {
            let Some(slot) = self.live(id) else { continue };
            let connection = &mut self.connections[slot];
            if connection.heard {
                connection.heard = false;
                self.suspects.push(id);
                continue;
            }
            connection.suspected = false;
            if connection.state == State::Open && connection.receive_armed {
                // Its ECANCELED completion arms it again.
                self.cancel(user_data(Kind::Receive, id.slot, id.generation));
            }
        }
        if !self.suspects.is_empty() {
            self.arm_sweep();
        }
    }

    fn push_send(&mut self, slot: usize) {
        let connection = &self.connections[slot];
        let buffer = connection.send.as_ref().expect("push_send follows a Send");
        let rest = &buffer[connection.sent..];
        // MSG_WAITALL: the kernel itself goes on after a short send.
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        let length = rest.len().min(1 << 30) as u32;
        let entry = match connection.descriptor {
            Descriptor::Plain(fd) => {
                opcode::Send::new(types::Fd(fd), rest.as_ptr(), length).flags(flags).build()
            }
            Descriptor::Direct(index) => {
                opcode::Send::new(types::Fixed(index), rest.as_ptr(), length).flags(flags).build()
            }
            Descriptor::None => unreachable!("an open connection has a descriptor"),
        };
        let tag = user_data(Kind::Send, slot as u32, connection.generation);
        self.counters.sends += 1;
        self.push(entry.user_data(tag));
    }

    /// Goes on closing: cancels what is in flight, or pushes the close where nothing is.
    fn advance_close(&mut self, slot: usize) {
        let connection = &mut self.connections[slot];
        let busy = connection.receive_armed || connection.send.is_some() || connection.finishing;
        if connection.state != State::Closing || busy {
            return;
        }
        connection.state = State::ClosePushed;
        let tag = user_data(Kind::Close, slot as u32, connection.generation);
        let entry = match connection.descriptor {
            Descriptor::Plain(fd) => opcode::Close::new(types::Fd(fd)).build(),
            Descriptor::Direct(index) => opcode::Close::new(types::Fixed(index)).build(),
            Descriptor::None => unreachable!("a closing connection has a descriptor"),
        };
        self.push(entry.user_data(tag));
    }

    fn begin_close(&mut self, slot: usize) {
        let connection = &mut self.connections[slot];
        match connection.state {
            State::Open => {}
            State::Connecting => {
                // Its completion (ECANCELED, or a success that came first) ends it.
                connection.state = State::Closing;
                let target = user_data(Kind::Connect, slot as u32, connection.generation);
                return self.cancel(target);
            }
            State::Reserved => return self.release(slot as u32),
            _ => return,
        }
        connection.state = State::Closing;
        let generation = connection.generation;
        let (receiving, sending) = (connection.receive_armed, connection.send.is_some());
        if let (Descriptor::Plain(fd), false) = (connection.descriptor, connection.receive_ended) {
            // The peer shall see its end before anyone hears of it, as after Redis' CLIENT KILL: the close itself
            // waits for cancellations and comes a turn later than the killer's reply.
            // SAFETY: no pointers; the descriptor is open.
            unsafe { libc::shutdown(fd, libc::SHUT_RDWR) };
        }
        if receiving {
            self.cancel(user_data(Kind::Receive, slot as u32, generation));
        }
        if sending {
            self.cancel(user_data(Kind::Send, slot as u32, generation));
        }
        self.advance_close(slot);
    }

    fn cancel(&mut self, target: u64) {
        self.push(opcode::AsyncCancel::new(target).build().user_data(user_data(Kind::Other, 0, 0)));
    }

    fn on_accept(&mut self, completion: Completion) -> Step {
        let index = completion.user_data as u32 as usize;
        if !completion.more() {
            self.listener_armed[index] = false;
        }
        if completion.result < 0 {
            if self.accepting {
                self.counters.accept_errors += 1;
                match -completion.result {
                    libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS => {
                        self.resting_listeners = true
                    }
                    // The connection was gone before we took it, or the like: the listener is fine.
                    _ => self.arm_listeners_or_rest(),
                }
            } else if !completion.more() {
                self.listeners[index] = None;
            }
            return Step::Nothing;
        }
        if !completion.more() {
            match &self.listeners[index] {
                // Others have a turn's time to take the next.
                Some(listener) if listener.is_shared() => self.listener_yields = true,
                _ => self.arm_listeners_or_rest(),
            }
        }
        let value = completion.result;
        if !self.options.direct_descriptors {
            // SAFETY: the kernel just gave us this descriptor; nobody else knows it.
            let owned = unsafe { OwnedFd::from_raw_fd(value) };
            let Some(slot) = self.allocate(State::Open).filter(|_| self.accepting) else {
                self.counters.accept_errors += 1;
                return Step::Nothing; // dropping closes it
            };
            let peer = peer_address(owned.as_raw_fd());
            let connection = &mut self.connections[slot as usize];
            connection.descriptor = Descriptor::Plain(owned.into_raw_fd());
            return self.accepted(slot, index, peer);
        }
        let index_in_table = value as u32;
        let Some(slot) = self.allocate(State::Installing) else {
            self.counters.accept_errors += 1;
            let close = opcode::Close::new(types::Fixed(index_in_table)).build();
            self.push(close.user_data(user_data(Kind::Other, 0, 0)));
            return Step::Nothing;
        };
        let connection = &mut self.connections[slot as usize];
        connection.descriptor = Descriptor::Direct(index_in_table);
        connection.listener = index as u32;
        let tag = user_data(Kind::Install, slot, connection.generation);
        // A number for a moment, only to ask for the address: the table itself cannot be asked before 6.19.
        let install = opcode::FixedFdInstall::new(types::Fixed(index_in_table), 0).build();
        self.push(install.user_data(tag));
        Step::Nothing
    }

    fn on_install(&mut self, slot: u32, result: i32) -> Step {
        let peer = (result >= 0)
            .then(|| {
                // SAFETY: the kernel just gave us this descriptor; it is closed at the end of this closure.
                let owned = unsafe { OwnedFd::from_raw_fd(result) };
                peer_address(owned.as_raw_fd())
            })
            .flatten();
        self.connections[slot as usize].state = State::Open;
        let listener = self.connections[slot as usize].listener as usize;
        self.accepted(slot, listener, peer)
    }

    fn accepted(&mut self, slot: u32, listener: usize, peer: Option<SocketAddr>) -> Step {
        self.counters.accepted += 1;
        self.counters.open += 1;
        self.hear(slot as usize);
        self.arm_receive(slot as usize);
        Step::Event(Event::Accepted { connection: self.id(slot), listener, peer })
    }

    fn arm_listeners_or_rest(&mut self) {
        if self.arm_listeners().is_err() {
            self.resting_listeners = true;
        }
    }

    fn on_receive(&mut self, slot: usize, completion: Completion) -> Step {
        let id = self.id(slot as u32);
        let more = completion.more();
        let connection = &mut self.connections[slot];
        if !more {
            connection.receive_armed = false;
        }
        if connection.state != State::Open {
            if let Some(buffer) = completion.buffer() {
                self.give_back(buffer);
            }
            self.advance_close(slot);
            return Step::Nothing;
        }
        let result = completion.result;
        if result > 0 {
            self.counters.receives += 1;
            self.counters.received_bytes += result as u64;
            self.hear(slot);
            return match completion.buffer() {
                Some(buffer) => {
                    if !more {
                        self.arm_receive(slot);
                    }
                    Step::Provided { connection: id, buffer, length: result as usize }
                }
                // Our own buffer: armed again only when the caller has read it.
                None => {
                    self.rearm.push(id);
                    Step::Owned { connection: id, length: result as usize }
                }
            };
        }
        if let Some(buffer) = completion.buffer() {
            self.give_back(buffer);
        }
        match -result {
            0 => {
                self.connections[slot].receive_ended = true;
                Step::Event(Event::ReceiveEnded { connection: id })
            }
            libc::ENOBUFS => {
                // Not the connection's fault: buffers taken in this turn come back before the next enter.
                self.counters.buffers_exhausted += 1;
                self.rearm.push(id);
                Step::Nothing
            }
            libc::ECANCELED | libc::EINTR | libc::EAGAIN => {
                // Paused, or paused and resumed before the cancellation arrived.
                self.arm_receive(slot);
                Step::Nothing
            }
            errno => {
                self.connections[slot].receive_ended = true;
                Step::Event(Event::Failed { connection: id, errno })
            }
        }
    }

    fn on_send(&mut self, slot: usize, result: i32) -> Step {
        let id = self.id(slot as u32);
        let connection = &mut self.connections[slot];
        if connection.state != State::Open {
            connection.send = None;
            self.advance_close(slot);
            return Step::Nothing;
        }
        let outcome = match result {
            sent if sent >= 0 => {
                connection.sent += sent as usize;
                self.counters.sent_bytes += sent as u64;
                if connection.sent < connection.send.as_ref().map_or(0, Vec::len) {
                    self.counters.short_sends += 1;
                    self.push_send(slot);
                    return Step::Nothing;
                }
                Ok(())
            }
            again if -again == libc::EAGAIN || -again == libc::EINTR => {
                self.push_send(slot);
                return Step::Nothing;
            }
            error => Err(-error),
        };
        let connection = &mut self.connections[slot];
        let buffer = connection.send.take().expect("a send completion belongs to a send");
        connection.sent = 0;
        Step::Event(Event::Sent { connection: id, buffer, result: outcome })
    }

    fn on_connect(&mut self, slot: usize, result: i32) -> Step {
        let id = self.id(slot as u32);
        let connection = &mut self.connections[slot];
        let token = connection.connect.take().map_or(0, |connect| connect.1);
        if connection.state == State::Closing {
            self.counters.open += 1; // the close below counts it down again
            self.advance_close(slot);
            return Step::Nothing;
        }
        if result < 0 {
            if let Descriptor::Plain(fd) = connection.descriptor {
                // SAFETY: the descriptor is ours and no operation on it is in flight.
                drop(unsafe { OwnedFd::from_raw_fd(fd) });
            }
            self.release(slot as u32);
            return Step::Event(Event::Connected { connection: id, token, result: Err(-result) });
        }
        connection.state = State::Open;
        self.counters.open += 1;
        self.arm_receive(slot);
        Step::Event(Event::Connected { connection: id, token, result: Ok(()) })
    }

    fn connect(&mut self, id: ConnectionId, token: u64, target: &Target) {
        let Some(slot) = self.live(id).filter(|&slot| self.connections[slot].state == State::Reserved) else {
            return;
        };
        let opened = (|| {
            let (domain, address) = match target {
                Target::Tcp(address) => {
                    (socket2::Domain::for_address(*address), socket2::SockAddr::from(*address))
                }
                Target::Unix(path) => (socket2::Domain::UNIX, socket2::SockAddr::unix(path)?),
            };
            let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
            if domain != socket2::Domain::UNIX {
                socket.set_tcp_nodelay(true)?;
            }
            Ok::<_, io::Error>((socket, address))
        })();
        let (socket, address) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                self.release(slot as u32);
                let errno = error.raw_os_error().unwrap_or(libc::EINVAL);
                return self.pending.push_back(Event::Connected {
                    connection: id,
                    token,
                    result: Err(errno),
                });
            }
        };
        let fd = socket.into_raw_fd();
        let connection = &mut self.connections[slot];
        connection.descriptor = Descriptor::Plain(fd);
        connection.state = State::Connecting;
        let kept = connection.connect.insert(Box::new((address, token)));
        let entry = opcode::Connect::new(types::Fd(fd), kept.0.as_ptr().cast(), kept.0.len()).build();
        let tag = user_data(Kind::Connect, slot as u32, connection.generation);
        self.push(entry.user_data(tag));
    }

    fn give_back(&mut self, buffer: u16) {
        self.buffers.as_mut().expect("a provided buffer comes from the buffer ring").give_back(buffer);
    }

    #[inline]
    fn step(&mut self, completion: Completion) -> Step {
        self.counters.completions += 1;
        let slot = completion.user_data as u32;
        let generation = (completion.user_data >> 32) as u32 & GENERATION_MASK;
        let kind = Kind::from_bits(completion.user_data >> 60);
        match kind {
            Kind::Accept => return self.on_accept(completion),
            Kind::Stop => return Step::Event(Event::StopRequested),
            Kind::Other => return Step::Nothing,
            Kind::Wake => {
                if !completion.more() {
                    self.arm_waker();
                }
                return Step::Nothing;
            }
            Kind::Sweep => {
                self.sweep();
                return Step::Nothing;
            }
            _ => {}
        }
        debug_assert_eq!(
            self.connections[slot as usize].generation, generation,
            "a slot is not reused before its last completion"
        );
        match kind {
            Kind::Receive => self.on_receive(slot as usize, completion),
            Kind::Send => self.on_send(slot as usize, completion.result),
            Kind::Install => self.on_install(slot, completion.result),
            Kind::Connect => self.on_connect(slot as usize, completion.result),
            Kind::FinishSend => {
                self.connections[slot as usize].finishing = false;
                self.advance_close(slot as usize);
                Step::Nothing
            }
            Kind::Close => {
                let id = self.id(slot);
                self.release(slot);
                self.counters.open -= 1;
                if self.resting_listeners {
                    self.arm_listeners_or_rest();
                }
                Step::Event(Event::Closed { connection: id })
            }
            Kind::Accept | Kind::Stop | Kind::Sweep | Kind::Wake | Kind::Other => Step::Nothing,
        }
    }
}

fn peer_address(fd: RawFd) -> Option<SocketAddr> {
    // SAFETY: the caller's descriptor is open for the duration of this call.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    socket2::SockRef::from(&borrowed).peer_addr().ok()?.as_socket()
}

impl Driver for UringDriver {
    #[inline]
    fn submit_and_wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        if let Some(buffer) = self.lent.take() {
            self.give_back(buffer);
        }
        if let Some(buffers) = &mut self.buffers {
            buffers.publish();
        }
        for index in 0..self.rearm.len() {
            let id = self.rearm[index];
            if let Some(slot) = self.live(id) {
                self.arm_receive(slot);
            }
        }
        self.rearm.clear();
        if std::mem::take(&mut self.listener_yields) && !self.resting_listeners {
            self.arm_listeners_or_rest();
        }
        let mut timeout = timeout;
        if self.resting_listeners {
            timeout = Some(timeout.map_or(ACCEPT_REST, |given| given.min(ACCEPT_REST)));
        }
        let want = u32::from(timeout != Some(Duration::ZERO) && self.pending.is_empty());
        let entered = self.ring.enter_with(want, timeout, self.options.min_wait_us);
        if self.resting_listeners {
            self.arm_listeners_or_rest();
        }
        entered
    }

    #[inline]
    fn next_event(&mut self) -> Option<Event<'_>> {
        if let Some(buffer) = self.lent.take() {
            self.give_back(buffer);
        }
        if let Some(event) = self.pending.pop_front() {
            return Some(event);
        }
        let step = loop {
            let completion = self.ring.next_completion()?;
            match self.step(completion) {
                Step::Nothing => {}
                step => break step,
            }
        };
        Some(match step {
            Step::Event(event) => event,
            Step::Provided { connection, buffer, length } => {
                self.lent = Some(buffer);
                let buffers = self.buffers.as_ref().expect("a provided buffer comes from the buffer ring");
                Event::Received { connection, bytes: buffers.bytes(buffer, length) }
            }
            Step::Owned { connection, length } => {
                let memory = self.connections[connection.slot as usize].own_buffer.as_ref();
                Event::Received { connection, bytes: &memory.expect("the receive used it")[..length] }
            }
            Step::Nothing => unreachable!("the loop goes on over these"),
        })
    }

    #[inline]
    fn enqueue(&mut self, operation: Operation) {
        match operation {
            Operation::Send { connection, buffer } => {
                let Some(slot) = self.live(connection) else { return };
                let state = &mut self.connections[slot];
                assert!(state.send.is_none(), "one send in flight per connection");
                assert!(!buffer.is_empty(), "a send carries bytes");
                if state.state != State::Open {
                    return;
                }
                state.send = Some(buffer);
                state.sent = 0;
                self.push_send(slot);
            }
            Operation::Connect { connection, token, target } => self.connect(connection, token, &target),
            Operation::PauseReceive { connection } => {
                let Some(slot) = self.live(connection) else { return };
                let state = &mut self.connections[slot];
                if !state.receive_paused {
                    state.receive_paused = true;
                    if state.receive_armed {
                        let target = user_data(Kind::Receive, slot as u32, state.generation);
                        self.cancel(target);
                    }
                }
            }
            Operation::ResumeReceive { connection } => {
                let Some(slot) = self.live(connection) else { return };
                self.connections[slot].receive_paused = false;
                // Our own buffer may hold bytes the caller is reading: those are armed with the next enter.
                self.rearm.push(connection);
            }
            Operation::FinishSend { connection } => {
                let Some(slot) = self.live(connection) else { return };
                if self.connections[slot].state != State::Open {
                    return;
                }
                // The kernel hands every shutdown to a worker, which looks the descriptor up when it gets to
                // it: closed meanwhile, its number may be another client's, whose replies would end.
                match self.connections[slot].descriptor {
                    // So not through the ring, which costs more besides.
                    Descriptor::Plain(fd) => {
                        // SAFETY: no pointers; the descriptor is open.
                        unsafe { libc::shutdown(fd, libc::SHUT_WR) };
                    }
                    // A number of the ring's table only the ring understands: the close waits.
                    Descriptor::Direct(index) => {
                        let connection = &mut self.connections[slot];
                        if !std::mem::replace(&mut connection.finishing, true) {
                            let tag = user_data(Kind::FinishSend, slot as u32, connection.generation);
                            let entry = opcode::Shutdown::new(types::Fixed(index), libc::SHUT_WR).build();
                            self.push(entry.user_data(tag));
                        }
                    }
                    Descriptor::None => {}
                }
            }
            Operation::Close { connection } => {
                if let Some(slot) = self.live(connection) {
                    self.begin_close(slot);
                }
            }
            Operation::StopAccepting => {
                self.accepting = false;
                self.resting_listeners = false;
                for index in 0..self.listeners.len() {
                    match self.listener_armed[index] {
                        // The listener goes when the cancelled accept has let go of it.
                        true => self.cancel(user_data(Kind::Accept, index as u32, 0)),
                        false => self.listeners[index] = None,
                    }
                }
            }
        }
    }

    fn reserve(&mut self) -> Option<ConnectionId> {
        let slot = self.allocate(State::Reserved)?;
        Some(self.id(slot))
    }

    fn watch(&mut self, waker: OwnedFd) -> io::Result<()> {
        self.waker = Some(waker);
        self.arm_waker();
        Ok(())
    }

    fn counters(&self) -> DriverCounters {
        DriverCounters { enters: self.ring.enters, ..self.counters }
    }
}

impl std::fmt::Debug for UringDriver {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("UringDriver").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Drop for UringDriver {
    fn drop(&mut self) {
        // Cancel while listeners and buffers still exist; `Ring::drop` would come first as well, but plain
        // descriptors must be closed by us, and only once nothing is in flight on them.
        self.ring.cancel_all();
        while self.ring.next_completion().is_some() {}
        for connection in &self.connections {
            if let (Descriptor::Plain(fd), false) =
                (connection.descriptor, connection.state == State::ClosePushed)
            {
                // SAFETY: ours, and everything on it was cancelled just now.
                drop(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
}
