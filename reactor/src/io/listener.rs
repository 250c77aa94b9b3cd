//! Listening sockets: TCP and AF_UNIX, for RESP and for HTTP.
//!
//! What a connection needs is set on the listener and inherited from it (TCP_NODELAY), so that accepting
//! costs one system call and works with direct descriptors, on which no option could be set any more.
//! Blocking or not is the driver's business: epoll makes its listeners non-blocking, io_uring does not care.
//!
//! A port still held by a process that has just ended is waited for, one second: io_uring tears its rings
//! down from a kernel thread, and their sockets with them, a moment after the process is gone.

use super::probe;
use crate::server::event::Target;
use socket2::{Domain, SockAddr, Socket, Type};
use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::session::Transport;

/// Longest queue of connections not accepted yet; the kernel cuts it to `net.core.somaxconn`.
pub const BACKLOG_DEFAULT: u32 = 4096;

/// How long a taken port is tried again.
const TAKEN_PATIENCE: Duration = Duration::from_secs(1);
/// The pause between two tries.
const TAKEN_PAUSE: Duration = Duration::from_millis(10);

/// How to listen.
#[derive(Clone, Copy, Debug)]
pub struct ListenOptions {
    /// Longest queue of connections not accepted yet.
    pub backlog: u32,
    /// SO_REUSEPORT: several shards listen on one port and the kernel deals connections out.
    pub reuse_port: bool,
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self { backlog: BACKLOG_DEFAULT, reuse_port: false }
    }
}

/// A socket that is bound and listens.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    transport: Transport,
    address: Target,
    /// Removes the socket's file when the last listener on it goes, if there is one.
    file: Option<Arc<SocketFile>>,
    shared: bool,
}

impl Listener {
    /// Listens on a TCP address. Port 0 takes a free one: [`Listener::address`] has its number.
    pub fn tcp(
        address: SocketAddr,
        transport: Transport,
        options: ListenOptions,
    ) -> Result<Self, ListenError> {
        let deadline = Instant::now() + TAKEN_PATIENCE;
        let socket = loop {
            match Self::try_tcp(address, options) {
                Ok(socket) => break socket,
                Err(error) if is_taken(&error) && Instant::now() < deadline => {
                    std::thread::sleep(TAKEN_PAUSE);
                }
                Err(error) => return Err(ListenError::new(&Target::Tcp(address), error)),
            }
        };
        let bound = socket
            .local_addr()
            .map(|bound| bound.as_socket().expect("an IP socket has an IP address"))
            .map_err(|error| ListenError::new(&Target::Tcp(address), error))?;
        Ok(Self { socket, transport, address: Target::Tcp(bound), file: None, shared: false })
    }

    /// One more listener at the same place, for another shard.
    ///
    /// On TCP a socket of its own (SO_REUSEPORT): the kernel deals connections out. On AF_UNIX, which has no such
    /// thing, the same socket under another descriptor: see [`is_shared`](Self::is_shared).
    ///
    /// The first of a port is bound without SO_REUSEPORT, so that it is refused wherever another server listens, even
    /// one of the same user that would share; only when it has the port the option is set, and others may join.
    pub fn another(&mut self, options: ListenOptions) -> Result<Self, ListenError> {
        let opened = (|| match &self.address {
            Target::Tcp(address) => {
                self.socket.set_reuse_port(true)?;
                Self::try_tcp(*address, ListenOptions { reuse_port: true, ..options })
            }
            Target::Unix(_) => self.socket.try_clone(),
        })();
        let socket = opened.map_err(|error| ListenError::new(&self.address, error))?;
        self.shared = self.file.is_some();
        let (address, file) = (self.address.clone(), self.file.clone());
        Ok(Self { socket, transport: self.transport, address, file, shared: self.shared })
    }

    fn try_tcp(address: SocketAddr, options: ListenOptions) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        // Connections of an earlier life may still be in TIME_WAIT on this port; they are no reason to wait.
        socket.set_reuse_address(true)?;
        if options.reuse_port {
            socket.set_reuse_port(true)?;
        }
        if address.is_ipv6() {
            // `--bind 0.0.0.0 --bind ::` must be possible: the second would else cover the first.
            socket.set_only_v6(true)?;
        }
        socket.set_tcp_nodelay(true)?;
        socket.bind(&address.into())?;
        socket.listen(options.backlog.try_into().unwrap_or(i32::MAX))?;
        Ok(socket)
    }

    /// Listens on an AF_UNIX path. A socket file that nobody answers on is left over from a crash and is
    /// replaced; a living one, or a file that is no socket, is an error.
    pub fn unix(path: &Path, transport: Transport, options: ListenOptions) -> Result<Self, ListenError> {
        let target = Target::Unix(path.to_path_buf());
        let attempt = || -> io::Result<(Socket, SocketFile)> {
            let address = SockAddr::unix(path)?;
            remove_stale(path, &address)?;
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            socket.bind(&address)?;
            let file = SocketFile::new(path)?;
            socket.listen(options.backlog.try_into().unwrap_or(i32::MAX))?;
            Ok((socket, file))
        };
        // The ring of a server that was killed answers for a moment after the process is gone.
        let deadline = Instant::now() + TAKEN_PATIENCE;
        let result = loop {
            match attempt() {
                Err(error) if is_taken(&error) && Instant::now() < deadline => {
                    std::thread::sleep(TAKEN_PAUSE);
                }
                result => break result,
            }
        };
        match result {
            Ok((socket, file)) => {
                Ok(Self { socket, transport, address: target, file: Some(Arc::new(file)), shared: false })
            }
            Err(error) => Err(ListenError::new(&target, error)),
        }
    }

    /// Where it listens; a TCP port is the real one.
    pub fn address(&self) -> &Target {
        &self.address
    }

    /// Other shards wait on the very same socket. A driver then takes one connection at a time and lines up behind
    /// the others, or one shard would get them all.
    pub fn is_shared(&self) -> bool {
        self.shared
    }

    /// The protocol spoken here.
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// Makes `accept` return instead of wait.
    pub fn set_nonblocking(&self) -> io::Result<()> {
        self.socket.set_nonblocking(true)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Gets a socket file out of the way if it is stale; says no if it is not.
fn remove_stale(path: &Path, address: &SockAddr) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::from_raw_os_error(libc::EEXIST));
        }
        Ok(_) => {}
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // A live server with a full backlog must not block us: it answers EAGAIN, which means "alive".
    probe.set_nonblocking(true)?;
    match probe.connect(address) {
        Err(error) if error.raw_os_error() == Some(libc::ECONNREFUSED) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
        Ok(()) | Err(_) => Err(io::Error::from_raw_os_error(libc::EADDRINUSE)),
    }
}

fn is_taken(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EADDRINUSE)
}

/// The file of a bound AF_UNIX socket. Removed with this value, unless somebody has put another one there.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<Self> {
        let found = fs::symlink_metadata(path)?;
        // The working directory may change before the file is removed.
        Ok(Self { path: std::path::absolute(path)?, device: found.dev(), inode: found.ino() })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == (self.device, self.inode));
        if ours {
            // Nobody is left to tell about a failure; the next start finds the file stale.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Why nothing listens at an address: what, why, and what to try.
#[derive(Debug)]
pub struct ListenError {
    address: Target,
    error: io::Error,
    /// Who has the port, where that can be found out.
    holder: Option<String>,
}

impl ListenError {
    fn new(address: &Target, error: io::Error) -> Self {
        let holder = match address {
            Target::Tcp(address) if is_taken(&error) => probe::who_listens(address.port()),
            _ => None,
        };
        Self { address: address.clone(), error, holder }
    }

    /// The errno, if the kernel said no.
    pub fn errno(&self) -> Option<i32> {
        self.error.raw_os_error()
    }
}

impl ListenError {
    /// This machine has no such address, or not the address family.
    pub fn is_absent_address(&self) -> bool {
        matches!(self.errno(), Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT))
    }
}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot listen on {}: ", self.address)?;
        match (&self.address, self.error.raw_os_error()) {
            (Target::Tcp(address), Some(libc::EADDRINUSE)) => {
                match &self.holder {
                    Some(holder) => write!(f, "the port is taken by {holder}")?,
                    None => write!(
                        f,
                        "the port is taken (`ss -ltnp 'sport = {}'` shows by whom)",
                        address.port()
                    )?,
                }
                write!(f, "; stop that process, choose another port, or 0 for a free one")
            }
            (Target::Tcp(address), Some(libc::EACCES)) => write!(
                f,
                "ports below {} are for privileged processes; choose a higher port than {}, or grant \
                 CAP_NET_BIND_SERVICE",
                probe::first_unprivileged_port(),
                address.port()
            ),
            (Target::Tcp(_), Some(libc::EADDRNOTAVAIL)) => {
                write!(f, "this machine has no such address (`ip addr` lists those it has)")
            }
            (Target::Tcp(_), Some(libc::EAFNOSUPPORT)) => write!(f, "this kernel has IPv6 switched off"),
            (Target::Unix(_), Some(libc::EADDRINUSE)) => {
                write!(f, "a living server answers there; stop it or choose another path")
            }
            (Target::Unix(_), Some(libc::EEXIST)) => write!(
                f,
                "a file that is no socket has that name, and it is not ours to remove; choose another path"
            ),
            (Target::Unix(_), Some(libc::ENOENT)) => write!(f, "its directory does not exist"),
            (Target::Unix(path), None) => write!(
                f,
                "{} bytes are too long for a socket's path (107 at most); choose a shorter one",
                path.as_os_str().len()
            ),
            (_, Some(libc::EMFILE)) => {
                write!(f, "no descriptor is left; raise the limit on open files (`ulimit -n`)")
            }
            _ => write!(f, "{}", self.error),
        }
    }
}

impl std::error::Error for ListenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Tcp(address) => write!(f, "{address}"),
            Target::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::{UnixListener, UnixStream};

    fn localhost() -> SocketAddr {
        "127.0.0.1:0".parse().unwrap()
    }

    fn port_of(listener: &Listener) -> SocketAddr {
        match listener.address() {
            Target::Tcp(address) => *address,
            Target::Unix(path) => panic!("{}", path.display()),
        }
    }

    /// A directory of this test's own, removed with the value.
    struct Scratch(PathBuf);
    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("millrace-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }
    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn port_zero_is_read_back_and_accepts() {
        let listener = Listener::tcp(localhost(), Transport::Resp, ListenOptions::default()).unwrap();
        let address = port_of(&listener);
        assert_ne!(address.port(), 0);
        let client = TcpStream::connect(address).unwrap();
        let (accepted, _) = listener.socket.accept().unwrap();
        assert!(accepted.tcp_nodelay().unwrap(), "TCP_NODELAY is inherited from the listener");
        drop(client);
    }

    #[test]
    fn both_families_take_one_port() {
        let four = Listener::tcp("0.0.0.0:0".parse().unwrap(), Transport::Resp, ListenOptions::default());
        let port = port_of(four.as_ref().unwrap()).port();
        match Listener::tcp(
            format!("[::]:{port}").parse().unwrap(),
            Transport::Resp,
            ListenOptions::default(),
        ) {
            Ok(six) => assert_eq!(port_of(&six).port(), port),
            Err(error) => assert_eq!(error.errno(), Some(libc::EAFNOSUPPORT), "{error}"),
        }
    }

    #[test]
    fn a_taken_port_is_waited_for_and_then_explained() {
        let holder = TcpListener::bind(localhost()).unwrap();
        let address = holder.local_addr().unwrap();
        let start = Instant::now();
        let error = Listener::tcp(address, Transport::Http, ListenOptions::default()).unwrap_err();
        assert!(start.elapsed() >= TAKEN_PATIENCE);
        let text = error.to_string();
        assert!(text.contains(&address.to_string()) && text.contains("0 for a free one"), "{text}");
        assert!(text.contains(&format!("pid {}", std::process::id())), "{text}");
    }

    #[test]
    fn a_port_that_is_freed_meanwhile_is_taken() {
        let holder = TcpListener::bind(localhost()).unwrap();
        let address = holder.local_addr().unwrap();
        assert!(is_taken(&Listener::try_tcp(address, ListenOptions::default()).unwrap_err()));
        let waiting =
            std::thread::spawn(move || Listener::tcp(address, Transport::Resp, ListenOptions::default()));
        drop(holder);
        assert_eq!(port_of(&waiting.join().unwrap().unwrap()), address);
    }

    #[test]
    fn shards_share_a_port_only_when_asked() {
        let shared = ListenOptions { reuse_port: true, ..ListenOptions::default() };
        let one = Listener::tcp(localhost(), Transport::Resp, shared).unwrap();
        Listener::tcp(port_of(&one), Transport::Resp, shared).unwrap();
        assert!(Listener::try_tcp(port_of(&one), ListenOptions::default()).is_err());
    }

    /// SO_REUSEPORT lets any server of the same user join: ours must not, and must be found by others like it.
    #[test]
    fn a_port_is_shared_with_our_own_shards_only() {
        let options = ListenOptions::default();
        let shared = ListenOptions { reuse_port: true, ..options };
        let stranger = Listener::try_tcp(localhost(), shared).unwrap();
        let address = stranger.local_addr().unwrap().as_socket().unwrap();
        let error = Listener::tcp(address, Transport::Resp, options).unwrap_err();
        assert!(error.to_string().contains("the port is taken"), "{error}");

        let mut first = Listener::tcp(localhost(), Transport::Resp, options).unwrap();
        let all = [first.another(options).unwrap(), first.another(options).unwrap(), first];
        assert!(Listener::try_tcp(port_of(&all[0]), options).is_err());
        // The kernel deals connections out among all three.
        let _clients: Vec<_> = (0..64).map(|_| TcpStream::connect(port_of(&all[0])).unwrap()).collect();
        for listener in &all {
            listener.set_nonblocking().unwrap();
            assert!(listener.socket.accept().is_ok(), "a listener without a connection");
            assert!(!listener.is_shared());
        }
    }

    #[test]
    fn the_file_of_a_shared_unix_socket_goes_with_the_last_listener() {
        let scratch = Scratch::new("unix-shared");
        let path = scratch.0.join("s");
        let options = ListenOptions::default();
        let mut one = Listener::unix(&path, Transport::Resp, options).unwrap();
        assert!(!one.is_shared());
        let other = one.another(options).unwrap();
        assert!(one.is_shared() && other.is_shared());
        drop(one);
        UnixStream::connect(&path).unwrap();
        drop(other);
        assert!(!path.exists());
    }

    #[test]
    fn a_foreign_address_is_explained() {
        let error = Listener::tcp("192.0.2.1:0".parse().unwrap(), Transport::Resp, ListenOptions::default())
            .unwrap_err();
        assert!(error.to_string().contains("no such address"), "{error}");
    }

    #[test]
    fn the_file_of_a_unix_socket_comes_and_goes_with_it() {
        let scratch = Scratch::new("unix-life");
        let path = scratch.0.join("s");
        let listener = Listener::unix(&path, Transport::Resp, ListenOptions::default()).unwrap();
        UnixStream::connect(&path).unwrap();
        assert_eq!(listener.address(), &Target::Unix(path.clone()));
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
        let scratch = Scratch::new("unix-stale");
        let path = scratch.0.join("s");
        let options = ListenOptions::default();
        drop(UnixListener::bind(&path).unwrap()); // std leaves the file behind, as a crash does
        assert!(path.exists());
        let listener = Listener::unix(&path, Transport::Resp, options).unwrap();
        let error = Listener::unix(&path, Transport::Resp, options).unwrap_err();
        assert!(error.to_string().contains("a living server answers there"), "{error}");
        UnixStream::connect(&path).unwrap();
        // Somebody else's socket at our path is not removed with ours.
        fs::remove_file(&path).unwrap();
        let other = UnixListener::bind(&path).unwrap();
        drop(listener);
        assert!(path.exists());
        drop(other);
    }

    /// The kernel takes a killed server's ring apart some time after the process is gone.
    #[test]
    fn a_socket_whose_server_is_dying_is_waited_for() {
        let scratch = Scratch::new("unix-dying");
        let path = scratch.0.join("s");
        let dying = UnixListener::bind(&path).unwrap();
        let address = SockAddr::unix(&path).unwrap();
        assert!(is_taken(&remove_stale(&path, &address).unwrap_err()));
        let place = path.clone();
        let waiting =
            std::thread::spawn(move || Listener::unix(&place, Transport::Resp, ListenOptions::default()));
        std::thread::sleep(3 * TAKEN_PAUSE);
        drop(dying);
        let _listener = waiting.join().unwrap().unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let scratch = Scratch::new("unix-file");
        let path = scratch.0.join("data");
        fs::write(&path, "precious").unwrap();
        let options = ListenOptions::default();
        let error = Listener::unix(&path, Transport::Resp, options).unwrap_err();
        assert!(error.to_string().contains("is no socket"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        let error = Listener::unix(&scratch.0.join("no/such"), Transport::Resp, options).unwrap_err();
        assert!(error.to_string().contains("directory does not exist"), "{error}");
        let error = Listener::unix(&scratch.0.join("x".repeat(200)), Transport::Resp, options).unwrap_err();
        assert!(error.to_string().contains("too long"), "{error}");
    }
}
