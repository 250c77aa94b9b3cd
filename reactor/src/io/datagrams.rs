//! UDP for replication: bursts that the kernel cuts into datagrams (UDP_SEGMENT), and many datagrams taken in one call
//! (recvmmsg).
//!
//! A burst is datagrams of one length one behind the other, the last perhaps shorter. One `sendmsg` hands all of them over for
//! each address; where kernel, path or interface refuse to cut, they are sent one by one from then on. Nothing waits: what
//! the socket has no room for is lost, as it might be on its way, and counted.

use super::sys::check;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};

/// Datagrams taken in one call.
const BATCH: usize = 64;
/// The longest there can be.
const DATAGRAM_BYTES_MAX: usize = 65_536;
/// Room for what comes while the thread does something else; the kernel may give less.
const SOCKET_BYTES: usize = 8 << 20;

/// What was sent, and what was not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SendCounters {
    /// System calls.
    pub calls: u64,
    /// Datagrams, counted once for each address, that the socket did not take.
    pub refused: u64,
}

/// Sends bursts to a group, or to each address of a list.
pub struct DatagramSender {
    socket: Socket,
    addresses: Vec<SockAddr>,
    /// The kernel cuts.
    cuts: bool,
    /// What happened.
    pub counters: SendCounters,
}

impl fmt::Debug for DatagramSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatagramSender({} addresses, cut by the kernel: {})", self.addresses.len(), self.cuts)
    }
}

impl DatagramSender {
    /// To these, all of one family; a group is reached by the interface that has this address.
    pub fn new(addresses: &[SocketAddr], interface: Ipv4Addr) -> io::Result<DatagramSender> {
        let domain = addresses.first().map_or(Domain::IPV4, |address| Domain::for_address(*address));
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        // Less is no error.
        let _ = socket.set_send_buffer_size(SOCKET_BYTES);
        if addresses.iter().any(|address| address.ip().is_multicast()) {
            socket.set_multicast_ttl_v4(1)?;
            socket.set_multicast_loop_v4(true)?;
            if !interface.is_unspecified() {
                socket.set_multicast_if_v4(&interface)?;
            }
        }
        let addresses = addresses.iter().map(|&address| SockAddr::from(address)).collect();
        Ok(DatagramSender { socket, addresses, cuts: true, counters: SendCounters::default() })
    }

    /// Whether the kernel cuts bursts, as far as is known.
    pub fn cuts(&self) -> bool {
        self.cuts
    }

    /// Sends each of these one by one from now on.
    pub fn without_cutting(self) -> DatagramSender {
        DatagramSender { cuts: false, ..self }
    }

    /// Sends a burst of datagrams of so many bytes.
    pub fn send(&mut self, bytes: &[u8], datagram_bytes: usize) {
        let count = bytes.len().div_ceil(datagram_bytes) as u64;
        for at in 0..self.addresses.len() {
            if self.cuts && count > 1 {
                self.counters.calls += 1;
                match send_cut(self.socket.as_raw_fd(), &self.addresses[at], bytes, datagram_bytes as u16) {
                    Ok(()) => continue,
                    Err(error) if is_full(&error) => {
                        self.counters.refused += count;
                        continue;
                    }
                    // No such option, no checksums by the interface, or more segments than it takes.
                    Err(_) => self.cuts = false,
                }
            }
            for datagram in bytes.chunks(datagram_bytes) {
                self.counters.calls += 1;
                let sent = self.socket.send_to(datagram, &self.addresses[at]);
                self.counters.refused += u64::from(sent.is_err());
            }
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    // Nobody listens: on loopback the kernel says so of an earlier datagram.
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOBUFS | libc::ECONNREFUSED))
}

/// One `sendmsg` with UDP_SEGMENT.
fn send_cut(socket: RawFd, address: &SockAddr, bytes: &[u8], segment: u16) -> io::Result<()> {
    /// Aligned as control messages have to be.
    #[repr(C, align(8))]
    struct Control([u8; 64]);
    let mut control = Control([0; 64]);
    let mut piece = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: all zeros is a valid `msghdr`: null pointers and lengths of zero.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = address.as_ptr().cast_mut().cast();
    message.msg_namelen = address.len();
    message.msg_iov = &raw mut piece;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    // SAFETY: `CMSG_SPACE` and `CMSG_LEN` compute; two bytes and their header fit into 64. `CMSG_FIRSTHDR` points into
    // `control`, which is aligned and long enough, and outlives the call; so do the piece, the bytes and the address. The
    // kernel only reads them.
    let sent = unsafe {
        message.msg_controllen = libc::CMSG_SPACE(size_of::<u16>() as u32) as _;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_UDP;
        (*header).cmsg_type = libc::UDP_SEGMENT;
        (*header).cmsg_len = libc::CMSG_LEN(size_of::<u16>() as u32) as _;
        libc::CMSG_DATA(header).cast::<u16>().write_unaligned(segment);
        libc::sendmsg(socket, &raw const message, libc::MSG_NOSIGNAL)
    };
    match sent {
        ..0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Takes datagrams, many at once.
pub struct DatagramReceiver {
    socket: Socket,
    memory: Vec<u8>,
    lengths: [usize; BATCH],
}

impl fmt::Debug for DatagramReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatagramReceiver({:?})", self.socket)
    }
}

impl DatagramReceiver {
    /// At this address; a group is joined on the interface that has that one.
    pub fn new(address: SocketAddr, interface: Ipv4Addr) -> io::Result<DatagramReceiver> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        let _ = socket.set_recv_buffer_size(SOCKET_BYTES);
        if address.ip().is_multicast() {
            // Several nodes of one machine may be in the group. Bound to its address, other groups on the port stay out.
            socket.set_reuse_address(true)?;
        }
        socket.bind(&address.into())?;
        if let IpAddr::V4(group) = address.ip()
            && group.is_multicast()
        {
            socket.join_multicast_v4(&group, &interface)?;
        }
        Ok(DatagramReceiver { socket, memory: vec![0; BATCH * DATAGRAM_BYTES_MAX], lengths: [0; BATCH] })
    }

    /// Where it listens.
    pub fn address(&self) -> Option<SocketAddr> {
        self.socket.local_addr().ok()?.as_socket()
    }

    /// Takes what is there, up to a number; says how many.
    pub fn receive(&mut self) -> io::Result<usize> {
        let pieces = self.memory.chunks_exact_mut(DATAGRAM_BYTES_MAX);
        let mut pieces: Vec<libc::iovec> = pieces
            .map(|piece| libc::iovec { iov_base: piece.as_mut_ptr().cast(), iov_len: piece.len() })
            .collect();
        let mut messages: Vec<libc::mmsghdr> = pieces
            .iter_mut()
            .map(|piece| {
                // SAFETY: all zeros is a valid `mmsghdr`: null pointers and lengths of zero.
                let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
                message.msg_hdr.msg_iov = piece;
                message.msg_hdr.msg_iovlen = 1;
                message
            })
            .collect();
        // SAFETY: as many valid messages as are said, each with one piece of memory that is its own, writable and alive
        // during the call; no address, no control, no timeout.
        let count = unsafe {
            libc::recvmmsg(
                self.socket.as_raw_fd(),
                messages.as_mut_ptr(),
                messages.len() as u32,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        match check(count) {
            Ok(count) => {
                for (length, message) in self.lengths.iter_mut().zip(&messages[..count as usize]) {
                    *length = message.msg_len as usize;
                }
                Ok(count as usize)
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Ok(0)
            }
            Err(error) => Err(error),
        }
    }

    /// One of those last taken.
    pub fn datagram(&self, at: usize) -> &[u8] {
        let begin = at * DATAGRAM_BYTES_MAX;
        &self.memory[begin..begin + self.lengths[at]]
    }
}

impl AsRawFd for DatagramReceiver {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn take(receiver: &mut DatagramReceiver, wanted: usize) -> Vec<Vec<u8>> {
        let (mut all, end) = (Vec::new(), Instant::now() + Duration::from_secs(20));
        while all.len() < wanted {
            assert!(Instant::now() < end, "{} of {wanted}", all.len());
            let count = receiver.receive().unwrap();
            (0..count).for_each(|at| all.push(receiver.datagram(at).to_vec()));
        }
        all
    }

    /// Cut by the kernel or one by one, to an address or to a group: the same datagrams arrive.
    #[test]
    fn a_burst_arrives_as_its_datagrams() {
        let localhost = Ipv4Addr::LOCALHOST;
        for place in ["127.0.0.1:0", "239.255.77.1:0"] {
            let mut receiver = DatagramReceiver::new(place.parse().unwrap(), localhost).unwrap();
            let address = receiver.address().unwrap();
            for cuts in [true, false] {
                let mut sender = DatagramSender::new(&[address], localhost).unwrap();
                if !cuts {
                    sender = sender.without_cutting();
                }
                let bytes: Vec<u8> = (0..45 * 1400 - 17).map(|at| (at / 1400) as u8).collect();
                sender.send(&bytes, 1400);
                let found = take(&mut receiver, 45);
                assert_eq!(found.concat(), bytes, "{place}, cut by the kernel: {}", sender.cuts());
                assert_eq!(found[44].len(), 1400 - 17);
                assert_eq!(sender.counters.refused, 0);
            }
        }
    }
}
