//! Hosts of a test's own: network namespaces, each with an address, joined by a bridge in one more.
//!
//! Nothing of it touches the machine's own network: the namespaces have no way out. Packets are lost by nftables on their
//! way into a host, by chance or all of them from one other host; lost for both directions of a connection, then: every
//! packet, or datagrams of UDP only. A host goes with the value that stands for it, and what killed tests left is removed
//! by the next.
//!
//! It needs root and the programs `ip` and `nft`; without them a test is skipped and says so.

use std::collections::HashSet;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};

use crate::oracle::value::{Unparsed, Value};
use crate::runner::Skipped;

/// Longer than anything here takes, on any machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How names of namespaces begin; a process and a number follow.
const PREFIX: &str = "millrace";

/// Several hosts that can reach each other.
#[derive(Debug)]
pub struct Network {
    name: String,
    hosts: Vec<Host>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    namespace: String,
    /// Its only address.
    pub address: Ipv4Addr,
}

/// Which packets are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packets {
    /// Whatever they carry.
    All,
    /// Datagrams of UDP; connections are well.
    Datagrams,
}

impl Packets {
    /// As a rule has it.
    fn condition(self) -> &'static str {
        match self {
            Packets::All => "",
            Packets::Datagrams => "meta l4proto udp",
        }
    }
}

impl Network {
    /// So many hosts, with the addresses 10.77.0.1 and so on.
    pub fn new(hosts: usize) -> Result<Network, Skipped> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        if !nix::unistd::geteuid().is_root() {
            return Err(Skipped("network namespaces need root".into()));
        }
        for program in ["ip", "nft"] {
            if Command::new(program).arg("-V").output().is_err() {
                return Err(Skipped(format!("{program} is not installed (Debian: iproute2, nftables)")));
            }
        }
        remove_leftovers();
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}-{}-{number}", std::process::id());
        let mut network = Network { name, hosts: Vec::new() };
        network
            .build(hosts)
            .map_err(|error| Skipped(format!("this machine does not let namespaces be made: {error}")))?;
        Ok(network)
    }

    fn build(&mut self, hosts: usize) -> io::Result<()> {
        let bridge = self.name.clone();
        run("ip", &["netns", "add", &bridge])?;
        run("ip", &["-n", &bridge, "link", "add", "bridge", "type", "bridge"])?;
        run("ip", &["-n", &bridge, "link", "set", "bridge", "up"])?;
        for at in 1..=hosts {
            let host = Host {
                namespace: format!("{bridge}-{at}"),
                address: Ipv4Addr::new(10, 77, 0, u8::try_from(at).map_err(io::Error::other)?),
            };
            let (namespace, port) = (host.namespace.as_str(), format!("port{at}"));
            run("ip", &["netns", "add", namespace])?;
            self.hosts.push(host.clone());
            let cable = ["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", namespace];
            run("ip", &[&["-n", &bridge][..], &cable].concat())?;
            run("ip", &["-n", &bridge, "link", "set", &port, "master", "bridge", "up"])?;
            run("ip", &["-n", namespace, "address", "add", &format!("{}/24", host.address), "dev", "eth0"])?;
            run("ip", &["-n", namespace, "link", "set", "eth0", "up"])?;
            run("ip", &["-n", namespace, "link", "set", "lo", "up"])?;
            host.rules(
                "add table inet test\nadd chain inet test in { type filter hook input priority 0; }\n",
            )?;
        }
        Ok(())
    }

    /// The host of this number, from 0 on.
    pub fn host(&self, at: usize) -> &Host {
        &self.hosts[at]
    }

    /// Every host loses so many of a thousand packets that come to it.
    pub fn lose(&self, per_thousand: u32, packets: Packets) {
        self.hosts.iter().for_each(|host| host.lose(per_thousand, packets));
    }

    /// No packet passes between these two groups of hosts.
    pub fn part(&self, some: &[usize], others: &[usize], packets: Packets) {
        for &one in some {
            for &other in others {
                self.hosts[one].refuse(&self.hosts[other], packets);
                self.hosts[other].refuse(&self.hosts[one], packets);
            }
        }
    }

    /// From now on what leaves a host is cut there into the packets that a wire would carry. These cables take bursts in
    /// one piece, and a rule would lose all of it or nothing.
    pub fn cut_bursts(&self) -> Result<(), Skipped> {
        for host in &self.hosts {
            run("ip", &["-n", &host.namespace, "link", "set", "eth0", "gso_max_segs", "1"])
                .map_err(|error| Skipped(format!("bursts of datagrams cannot be cut here: {error}")))?;
        }
        Ok(())
    }

    /// Every packet passes.
    pub fn heal(&self) {
        for host in &self.hosts {
            host.rules("flush chain inet test in\n").expect("rules are taken away");
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for host in &self.hosts {
            let _ = run("ip", &["netns", "delete", &host.namespace]);
        }
        let _ = run("ip", &["netns", "delete", &self.name]);
    }
}

impl Host {
    /// A program that will run on this host.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace]).arg(program);
        command
    }

    /// A thread that runs on this host: its connections come from there.
    pub fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let file = PathBuf::from("/run/netns").join(&self.namespace);
        thread::spawn(move || {
            let namespace = File::open(&file).expect("the namespace is there");
            setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).expect("a thread may enter it");
            work()
        })
    }

    /// Runs something on this host and waits for it.
    pub fn on<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// How many packets this host has lost since the network was last whole.
    pub fn lost(&self) -> u64 {
        let output = self.command("nft").args(["list", "chain", "inet", "test", "in"]).output();
        let output = output.expect("nft runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let counts = text.split("counter packets ").skip(1);
        counts
            .map(|rest| rest.split(' ').next().and_then(|count| count.parse::<u64>().ok()).expect(&text))
            .sum()
    }

    fn lose(&self, per_thousand: u32, packets: Packets) {
        let which = packets.condition();
        let rule = format!(
            "add rule inet test in ip saddr 10.77.0.0/24 {which} numgen random mod 1000 < {per_thousand} counter drop\n"
        );
        self.rules(&rule).expect("a rule that loses packets is taken");
    }

    fn refuse(&self, other: &Host, packets: Packets) {
        let which = packets.condition();
        let rule = format!("add rule inet test in ip saddr {} {which} counter drop\n", other.address);
        self.rules(&rule).expect("a rule that parts hosts is taken");
    }

    fn rules(&self, rules: &str) -> io::Result<()> {
        let mut nft = self.command("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn()?;
        nft.stdin.take().ok_or_else(|| io::Error::other("no stdin"))?.write_all(rules.as_bytes())?;
        match nft.wait()?.success() {
            true => Ok(()),
            false => Err(io::Error::other(format!("nft refused: {rules}"))),
        }
    }
}

fn run(program: &str, arguments: &[&str]) -> io::Result<()> {
    let output = Command::new(program).args(arguments).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_string();
    Err(io::Error::other(format!("{program} {}: {said}", arguments.join(" "))))
}

/// Namespaces of tests whose processes are gone.
fn remove_leftovers() {
    let Ok(names) = fs::read_dir("/run/netns") else { return };
    for name in names.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let mut parts = name.split('-');
        let process = (parts.next() == Some(PREFIX)).then(|| parts.next()).flatten();
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            let _ = run("ip", &["netns", "delete", &name]);
        }
    }
}

/// A server that has said `ready`; killed with the value.
#[derive(Debug)]
pub struct Node {
    child: Child,
    /// Where it listens for RESP.
    pub resp: SocketAddr,
    /// And for HTTP.
    pub http: SocketAddr,
}

impl Node {
    /// Starts one on a host, with its data in a directory.
    pub fn start(host: &Host, binary: &Path, directory: &Path, arguments: &[&str]) -> Node {
        fs::create_dir_all(directory).expect("a directory for data");
        let address = host.address.to_string();
        let mut child = host
            .command(binary)
            .args(["--bind", &address, "--port", "6379", "--http-port", "8080", "--dir"])
            .arg(directory)
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server can be started");
        let output = child.stdout.take().expect("it was asked for");
        let (tell, told) = channel();
        thread::spawn(move || {
            let mut line = String::new();
            let _ = BufReader::new(output).read_line(&mut line);
            tell.send(line)
        });
        let ready = told.recv_timeout(PATIENCE).unwrap_or_default();
        if !ready.starts_with("ready ") {
            let _ = child.kill();
            panic!("{host:?} is not ready: {ready:?}, {:?}", child.wait());
        }
        Node { child, resp: (host.address, 6379).into(), http: (host.address, 8080).into() }
    }

    /// Its process.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as a power cut would, but for what the kernel still has.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A blocking RESP client, used on the host that it is to come from.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Client {
    /// Connects, or says why not; nothing takes longer than `patience`.
    pub fn connect(address: SocketAddr, patience: Duration) -> io::Result<Client> {
        let stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(Client { stream, received: Vec::new() })
    }

    /// The same to a server that may have to be waited for.
    pub fn await_server(address: SocketAddr) -> Client {
        let end = Instant::now() + PATIENCE;
        loop {
            match Client::connect(address, Duration::from_secs(5)) {
                Ok(client) => {
                    client.stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
                    return client;
                }
                Err(error) => assert!(Instant::now() < end, "{address}: {error}"),
            }
        }
    }

    /// Sends commands together and reads their replies.
    pub fn pipeline(&mut self, commands: &[Vec<&[u8]>]) -> io::Result<Vec<Value>> {
        let mut bytes = Vec::new();
        for command in commands {
            write!(bytes, "*{}\r\n", command.len())?;
            for argument in command {
                write!(bytes, "${}\r\n", argument.len())?;
                bytes.extend_from_slice(argument);
                bytes.extend_from_slice(b"\r\n");
            }
        }
        self.stream.write_all(&bytes)?;
        commands.iter().map(|_| self.reply()).collect()
    }

    /// One command.
    pub fn command(&mut self, arguments: &[&[u8]]) -> io::Result<Value> {
        Ok(self.pipeline(&[arguments.to_vec()])?.remove(0))
    }

    /// One command that must succeed.
    pub fn expect(&mut self, line: &str) -> Value {
        let arguments: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        let reply = self.command(&arguments).unwrap_or_else(|error| panic!("{line}: {error}"));
        assert!(!reply.is_error(), "{line}: {}", reply.show());
        reply
    }

    /// Number and sum of all keys with their values and ends, whatever their order.
    pub fn digest(&mut self) -> io::Result<(usize, u64)> {
        let mut keys = HashSet::new();
        let mut cursor = b"0".to_vec();
        loop {
            let page = self.command(&[b"SCAN", &cursor, b"COUNT", b"1000"])?;
            let Some([next, found]) = page.items() else { return Err(io::Error::other(page.show())) };
            keys.extend(
                found.items().unwrap_or_default().iter().filter_map(|key| key.bytes().map(<[u8]>::to_vec)),
            );
            cursor = next.bytes().unwrap_or_default().to_vec();
            if cursor == b"0" {
                break;
            }
        }
        let keys: Vec<Vec<u8>> = keys.into_iter().collect();
        let mut sum = 0u64;
        for keys in keys.chunks(64) {
            let gets = keys.iter().map(|key| vec![&b"GET"[..], key]);
            let ends = keys.iter().map(|key| vec![&b"PEXPIRETIME"[..], key]);
            let replies = self.pipeline(&gets.chain(ends).collect::<Vec<_>>())?;
            let (values, ends) = replies.split_at(keys.len());
            for ((key, value), end) in keys.iter().zip(values).zip(ends) {
                let mut hasher = DefaultHasher::new();
                (key, value.bytes(), end.integer()).hash(&mut hasher);
                sum = sum.wrapping_add(hasher.finish());
            }
        }
        Ok((keys.len(), sum))
    }

    fn reply(&mut self) -> io::Result<Value> {
        loop {
            match Value::parse(&self.received) {
                Ok((value, length)) => {
                    self.received.drain(..length);
                    return Ok(value);
                }
                Err(Unparsed::Incomplete) => {}
                Err(other) => return Err(io::Error::other(format!("{other:?}"))),
            }
            let mut more = vec![0; 64 << 10];
            match io::Read::read(&mut self.stream, &mut more)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                length => self.received.extend_from_slice(&more[..length]),
            }
        }
    }
}
