//! Primary, replicas and NGINX on hosts of their own, over a network that loses packets and falls apart.
//!
//! Whatever happens meanwhile, at the end all nodes hold the same keys, values and ends, every acknowledged write is among
//! them, and no read that named a record was answered without it. Records come over connections, or as datagrams of which
//! some are lost. The hosts are network namespaces; without root, `ip` or `nft` the tests are skipped and say so.
//!
//! How long the load lasts and how much a full sync carries: `MILLRACE_LOAD_SECONDS` (2) and `MILLRACE_SYNC_MB` (200).

use std::collections::HashMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use reactor::io::datagrams::{DatagramReceiver, DatagramSender};
use tests::hosts::{Client, Host, Network, Node, PATIENCE, Packets};
use tests::oracle::target::millrace_binary;
use tests::proxy::{ask, start_proxy};
use tests::random::{self, Random};
use tests::runner::{self, Skipped};

type Outcome = Result<(), Skipped>;

/// The hosts by number.
const CLIENTS: usize = 0;
const PRIMARY: usize = 1;
const REPLICAS: [usize; 2] = [2, 3];
const PROXY: usize = 4;

fn main() -> ExitCode {
    runner::main(&[
        ("packets_are_lost_and_hosts_parted", packets_are_lost_and_hosts_parted),
        ("datagrams_are_lost_and_connections_are_not", datagrams_are_lost_and_connections_are_not),
        ("one_percent_of_packets_is_lost", || replicates_over_loss(10)),
        ("twenty_percent_of_packets_are_lost", || replicates_over_loss(200)),
        ("one_percent_of_a_groups_datagrams_is_lost", || repairs_lost_datagrams(10, Datagrams::Group)),
        ("twenty_percent_of_a_groups_datagrams_are_lost", || repairs_lost_datagrams(200, Datagrams::Group)),
        ("ten_percent_of_a_lists_datagrams_are_lost", || repairs_lost_datagrams(100, Datagrams::List)),
        ("datagrams_and_their_repairs_are_lost", datagrams_and_their_repairs_are_lost),
        ("datagrams_stay_out_and_come_back", datagrams_stay_out_and_come_back),
        ("a_replica_is_cut_off_and_comes_back", a_replica_is_cut_off_and_comes_back),
        ("replicas_are_killed_under_load", replicas_are_killed_under_load),
        ("the_primary_is_killed_under_load", the_primary_is_killed_under_load),
        ("a_full_sync_while_clients_write", a_full_sync_while_clients_write),
        ("reads_through_nginx_see_what_was_written", reads_through_nginx_see_what_was_written),
    ])
}

fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} must be a number; found {text:?}")),
        Err(_) => default,
    }
}

fn load_time() -> Duration {
    Duration::from_secs(setting("MILLRACE_LOAD_SECONDS", 2))
}

/// A primary and two replicas on hosts of their own, and a host for clients.
struct Cluster {
    network: Network,
    binary: PathBuf,
    directory: Scratch,
    nodes: HashMap<usize, Node>,
    datagrams: Datagrams,
    seed: u64,
}

/// How records reach the replicas, beside their connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Datagrams {
    None,
    /// To a multicast group, which they join.
    Group,
    /// To each of them.
    List,
}

/// Where datagrams go.
const GROUP: &str = "239.255.77.9";
const DATAGRAM_PORT: u16 = 7400;

/// A directory that goes with the value.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Cluster {
    fn new(test: &str, hosts: usize) -> Result<Cluster, Skipped> {
        let seed = random::seed();
        println!("{test}: MILLRACE_SEED={seed}");
        let directory = std::env::temp_dir().join(format!("millrace-{test}-{}", std::process::id()));
        Ok(Cluster {
            network: Network::new(hosts)?,
            binary: millrace_binary().expect("the server is built"),
            directory: Scratch(directory),
            nodes: HashMap::new(),
            datagrams: Datagrams::None,
            seed,
        })
    }

    /// The primary, and its replicas: the first with a log of its own, the other without.
    fn started(test: &str, hosts: usize) -> Result<Cluster, Skipped> {
        let mut cluster = Cluster::new(test, hosts)?;
        cluster.start_all();
        Ok(cluster)
    }

    /// The same, and records come as datagrams, each of them a packet.
    fn with_datagrams(test: &str, datagrams: Datagrams) -> Result<Cluster, Skipped> {
        let mut cluster = Cluster::new(test, 4)?;
        cluster.network.cut_bursts()?;
        cluster.datagrams = datagrams;
        Ok(cluster)
    }

    fn start_all(&mut self) {
        self.start(PRIMARY, None);
        for at in REPLICAS {
            self.start(at, Some(PRIMARY));
        }
    }

    fn directory(&self, at: usize) -> PathBuf {
        self.directory.0.join(format!("node{at}"))
    }

    fn start(&mut self, at: usize, primary: Option<usize>) {
        let durability = if at == REPLICAS[1] { "off" } else { "always" };
        let mut arguments = vec![
            "--shards",
            "2",
            "--replica-listen",
            "6380",
            "--durability",
            durability,
            "--enable-debug-command",
            "yes",
        ];
        let upstream = primary.map(|primary| format!("{}:6379", self.host(primary).address));
        if let Some(upstream) = &upstream {
            arguments.extend(["--replicaof", upstream]);
        }
        let to = |host: &str| format!("{host}:{DATAGRAM_PORT}");
        let address = self.host(at).address.to_string();
        let (list, here) = match self.datagrams {
            Datagrams::None => (String::new(), String::new()),
            Datagrams::Group => (to(GROUP), to(GROUP)),
            Datagrams::List => {
                let replicas = REPLICAS.map(|at| to(&self.host(at).address.to_string()));
                (replicas.join(","), to(&address))
            }
        };
        if self.datagrams != Datagrams::None {
            arguments.extend(["--delta-udp-interface", &address]);
            match at {
                PRIMARY => arguments.extend(["--delta-udp", &list]),
                _ => arguments.extend(["--delta-udp-listen", &here]),
            }
        }
        let node = Node::start(self.host(at), &self.binary, &self.directory(at), &arguments);
        self.nodes.insert(at, node);
    }

    fn kill(&mut self, at: usize) {
        self.nodes.remove(&at).expect("it runs").kill();
    }

    fn host(&self, at: usize) -> &Host {
        self.network.host(at)
    }

    fn resp(&self, at: usize) -> SocketAddr {
        (self.host(at).address, 6379).into()
    }

    /// Something that a client does.
    fn client<T: Send + 'static>(
        &self,
        at: usize,
        work: impl FnOnce(&mut Client) -> T + Send + 'static,
    ) -> T {
        let address = self.resp(at);
        self.host(CLIENTS).on(move || work(&mut Client::await_server(address)))
    }

    /// Waits until these replicas have what the primary has written by now.
    fn follow(&self, primary: usize, replicas: &[usize]) {
        let token = self.client(primary, |client| {
            client.expect("SET the-last-write 1");
            client.expect("CLIENT LSN").bytes().expect("a primary with a log names its writes").to_vec()
        });
        for &at in replicas {
            let token = token.clone();
            self.client(at, move |client| {
                let end = Instant::now() + PATIENCE;
                loop {
                    // LOADING while a snapshot is on its way; BEHIND where it takes longer than asked.
                    let reply = client.command(&[b"WAITLSN", &token, b"20000"]).expect("the replica answers");
                    if !reply.is_error() {
                        return;
                    }
                    assert!(Instant::now() < end, "replica {at}: {}", reply.show());
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
        }
    }

    /// The same, where nobody writes: then every key, value and end is the same.
    fn agree(&self, primary: usize, replicas: &[usize]) {
        self.follow(primary, replicas);
        let digest = |at| self.client(at, |client| client.expect("DEBUG DIGEST").show());
        for &at in replicas {
            let end = Instant::now() + PATIENCE;
            loop {
                let (found, wanted) = (digest(at), digest(primary));
                if found == wanted {
                    break;
                }
                // A key whose time has come is there a moment longer on a replica.
                assert!(Instant::now() < end, "replica {at}: {found}, primary: {wanted}");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

    /// The digests are believed because clients, too, see the same.
    fn clients_see_the_same(&self, primary: usize, replica: usize) {
        let see = |at| self.client(at, |client| client.digest().expect("the node answers"));
        assert_eq!(see(replica), see(primary), "number and sum of all keys");
    }

    /// A number of INFO replication; none yet: 0.
    fn figure(&self, at: usize, field: &'static str) -> u64 {
        self.client(at, move |client| {
            let info = client.expect("INFO replication");
            let text = String::from_utf8_lossy(info.bytes().unwrap_or_default()).into_owned();
            let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
            value.map_or(0, |value| value.trim().parse().expect(field))
        })
    }

    /// Waits until a number of INFO replication is at least this.
    fn figure_reaches(&self, at: usize, field: &'static str, least: u64) {
        let end = Instant::now() + PATIENCE;
        loop {
            let found = self.figure(at, field);
            if found >= least {
                return;
            }
            assert!(Instant::now() < end, "node {at}: {field} is {found}, and does not reach {least}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until new records come to all replicas as datagrams.
    fn datagrams_come(&self) {
        for at in REPLICAS {
            let before = self.figure(at, "replica_datagrams");
            self.figure_reaches(at, "replica_datagrams", before + 1);
        }
    }

    /// Clients that write to a node until they are told to stop.
    fn load(&self, at: usize, writers: u64) -> Load {
        let (address, stop) = (self.resp(at), Arc::new(AtomicBool::new(false)));
        let writers = (0..writers).map(|writer| {
            let (stop, seed) = (Arc::clone(&stop), self.seed.wrapping_add(writer));
            self.host(CLIENTS).spawn(move || write(address, writer, seed, &stop))
        });
        Load { writers: writers.collect(), stop }
    }

    /// How much a writer has written.
    fn written(&self, primary: usize, writer: usize) -> u64 {
        self.client(primary, move |client| {
            let value = client.expect(&format!("GET count:{writer}"));
            let text = String::from_utf8_lossy(value.bytes().unwrap_or(b"0")).into_owned();
            text.parse::<u64>().expect("a number")
        })
    }

    /// Waits until every writer has come back to a primary that was started again.
    fn writes_go_on(&self, load: &Load, primary: usize) {
        for writer in 0..load.writers.len() {
            let (before, end) = (self.written(primary, writer), Instant::now() + PATIENCE);
            while self.written(primary, writer) == before {
                assert!(Instant::now() < end, "writer {writer} does not go on behind {before}");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

    /// Ends the load: everything that was acknowledged is there.
    fn unload(&self, load: Load, primary: usize) -> u64 {
        load.stop.store(true, Ordering::Relaxed);
        let mut all = 0;
        for (writer, thread) in load.writers.into_iter().enumerate() {
            let (acknowledged, sent) = thread.join().expect("a writer ends");
            let found = self.written(primary, writer);
            assert!(
                (acknowledged..=sent).contains(&found),
                "writer {writer}: {acknowledged} acknowledged, {sent} sent, {found} found"
            );
            all += acknowledged;
        }
        assert!(all > 0, "nothing was written");
        all
    }
}

struct Load {
    writers: Vec<JoinHandle<(u64, u64)>>,
    stop: Arc<AtomicBool>,
}

/// Writes keys of its own, and counts: how often it was told of a count, and how often it asked for one.
fn write(address: SocketAddr, writer: u64, seed: u64, stop: &AtomicBool) -> (u64, u64) {
    let mut random = Random::new(seed);
    let (mut acknowledged, mut sent) = (0, 0);
    let count = format!("count:{writer}");
    let mut client = None;
    while !stop.load(Ordering::Relaxed) {
        let Some(connected) = &mut client else {
            client = Client::connect(address, Duration::from_secs(5)).ok();
            continue;
        };
        let key = format!("key:{writer}:{}", random.below(2000)).into_bytes();
        let other = format!("key:{writer}:{}", random.below(2000)).into_bytes();
        let length = if random.chance(5) { 20_000 } else { 100 };
        let value = random.bytes(length);
        let end = format!("{}", 3_600_000 + random.below(1000)).into_bytes();
        let commands: Vec<Vec<&[u8]>> = vec![
            vec![b"SET", &key, &value],
            match random.below(5) {
                0 => vec![b"DEL", &other],
                1 => vec![b"PEXPIRE", &other, &end],
                2 => vec![b"APPEND", &other, b"more"],
                3 => vec![b"MSET", &other, b"1", &key, b"2"],
                _ => vec![b"SET", &other, b"gone", b"PX", b"1"],
            },
            vec![b"INCR", count.as_bytes()],
        ];
        sent += 1;
        match connected.pipeline(&commands).map(|mut replies| replies.remove(2)) {
            Ok(reply) if reply.integer().is_some() => acknowledged += 1,
            Ok(_) => {}
            Err(_) => client = None,
        }
    }
    (acknowledged, sent)
}

/// The network itself: without this the other tests would prove little.
fn packets_are_lost_and_hosts_parted() -> Outcome {
    let network = Network::new(3)?;
    let received = |from: usize, to: usize, pings: usize| -> usize {
        let address = network.host(to).address;
        let receiver = network.host(to).on(move || {
            let socket = std::net::UdpSocket::bind((address, 7000)).expect("a port");
            socket.set_read_timeout(Some(Duration::from_millis(300))).expect("a time limit");
            socket
        });
        let mut arrived = 0;
        network.host(from).on(move || {
            let socket = std::net::UdpSocket::bind(("0.0.0.0", 0)).expect("a port");
            // No more than a socket has room for.
            for _ in 0..pings {
                socket.send_to(b"ping", (address, 7000)).expect("the network is there");
            }
        });
        let mut buffer = [0; 16];
        while receiver.recv(&mut buffer).is_ok() {
            arrived += 1;
        }
        arrived
    };
    assert_eq!(received(0, 1, 100), 100, "nothing is lost unasked");
    network.lose(200, Packets::All);
    let arrived: usize = (0..5).map(|_| received(0, 1, 200)).sum();
    assert!((650..950).contains(&arrived), "of 1000 packets at 20 % loss {arrived} arrived");
    network.heal();
    network.part(&[0], &[1], Packets::All);
    assert_eq!((received(0, 1, 10), received(1, 0, 10), received(0, 2, 10)), (0, 0, 10));
    network.heal();
    assert_eq!(received(0, 1, 10), 10);
    Ok(())
}

fn replicates_over_loss(per_thousand: u32) -> Outcome {
    let cluster = Cluster::started(&format!("loss-{per_thousand}"), 4)?;
    cluster.network.lose(per_thousand, Packets::All);
    let load = cluster.load(PRIMARY, 4);
    std::thread::sleep(load_time());
    // What was written is compared while packets are lost still, and so is whoever is behind.
    let written = cluster.unload(load, PRIMARY);
    println!("{written} writes at {} % loss", f64::from(per_thousand) / 10.0);
    cluster.agree(PRIMARY, &REPLICAS);
    Ok(())
}

/// The same of what the tests of datagrams stand on: they are lost one by one and not in bursts, those to a group reach all
/// of its hosts, and connections hear nothing of it.
fn datagrams_are_lost_and_connections_are_not() -> Outcome {
    const LENGTH: usize = 1000;
    let network = Network::new(3)?;
    network.cut_bursts()?;
    let group = SocketAddr::from((GROUP.parse::<Ipv4Addr>().expect("an address"), DATAGRAM_PORT));
    let address = network.host(0).address;
    let mut sender = network.host(0).on(move || DatagramSender::new(&[group], address).expect("a socket"));
    let mut receivers: Vec<DatagramReceiver> = [1, 2]
        .map(|at| {
            let address = network.host(at).address;
            network.host(at).on(move || DatagramReceiver::new(group, address).expect("a socket"))
        })
        .into();
    // So many bursts of twenty; returns how many datagrams came to each host when all have come or were lost.
    let mut send = |bursts: usize| -> Vec<usize> {
        let before: Vec<u64> = [1, 2].map(|at| network.host(at).lost()).into();
        (0..bursts).for_each(|_| sender.send(&[7; 20 * LENGTH], LENGTH));
        let taken = receivers.iter_mut().zip(1..).map(|(receiver, at)| {
            let (mut count, end) = (0, Instant::now() + PATIENCE);
            loop {
                count += receiver.receive().expect("datagrams are taken");
                let lost = network.host(at).lost() - before[at - 1];
                if count as u64 + lost >= 20 * bursts as u64 {
                    return count;
                }
                assert!(Instant::now() < end, "host {at}: {count} came, {lost} were lost of {bursts} bursts");
            }
        });
        taken.collect()
    };
    assert_eq!(send(2), [40, 40], "a group's datagrams reach all of its hosts");
    network.lose(200, Packets::Datagrams);
    for (arrived, at) in send(4).into_iter().zip(1..) {
        assert!((35..80).contains(&arrived), "of 80 datagrams at 20 % loss {arrived} came to host {at}");
        assert_eq!(network.host(at).lost(), 80 - arrived as u64, "lost one by one, and counted");
    }
    network.heal();
    network.part(&[0], &[1, 2], Packets::Datagrams);
    assert_eq!(send(1), [0, 0]);
    let listener = network.host(1).on(|| std::net::TcpListener::bind(("0.0.0.0", 7000)).expect("a port"));
    let place = SocketAddr::from((network.host(1).address, 7000));
    network.host(0).on(move || TcpStream::connect_timeout(&place, PATIENCE).expect("connections are made"));
    drop(listener);
    network.heal();
    network.part(&[0], &[1], Packets::Datagrams);
    assert_eq!(send(1), [0, 20], "one host is left out");
    network.heal();
    assert_eq!(send(1), [20, 20]);
    Ok(())
}

/// Datagrams are lost by chance: every gap is seen, counted, and repaired over the connection.
fn repairs_lost_datagrams(per_thousand: u32, datagrams: Datagrams) -> Outcome {
    let mut cluster = Cluster::with_datagrams(&format!("datagrams-{per_thousand}"), datagrams)?;
    cluster.start_all();
    let load = cluster.load(PRIMARY, 4);
    cluster.datagrams_come();
    cluster.network.lose(per_thousand, Packets::Datagrams);
    std::thread::sleep(load_time());
    let written = cluster.unload(load, PRIMARY);
    cluster.agree(PRIMARY, &REPLICAS);
    // Nothing follows these writes that would show that they are missing, but heartbeats.
    for _ in 0..20 {
        cluster.follow(PRIMARY, &REPLICAS);
    }
    let dropped = REPLICAS.map(|at| cluster.host(at).lost());
    cluster.network.heal();
    let percent = f64::from(per_thousand) / 10.0;
    println!("{written} writes; at {percent} % loss the replicas' hosts lost {dropped:?} datagrams");
    for (at, dropped) in REPLICAS.into_iter().zip(dropped) {
        assert!(dropped > 0, "host {at} lost none");
        cluster.figure_reaches(at, "replica_datagrams_lost", dropped);
        assert!(cluster.figure(at, "replica_repairs_asked") > 0, "replica {at} asked for none");
        assert!(cluster.figure(at, "replica_records_repaired") > 0, "replica {at} was given none");
        assert_eq!(cluster.figure(at, "replica_connects"), 1, "replica {at} lost its connection");
        assert_eq!(cluster.figure(at, "replica_datagrams_damaged"), 0);
    }
    cluster.agree(PRIMARY, &REPLICAS);
    cluster.clients_see_the_same(PRIMARY, REPLICAS[0]);
    Ok(())
}

/// The same where connections lose packets, too, from the first handshake on.
fn datagrams_and_their_repairs_are_lost() -> Outcome {
    let mut cluster = Cluster::with_datagrams("datagrams-and-repairs", Datagrams::Group)?;
    cluster.network.lose(50, Packets::All);
    cluster.start_all();
    let load = cluster.load(PRIMARY, 4);
    cluster.datagrams_come();
    std::thread::sleep(load_time());
    cluster.unload(load, PRIMARY);
    for at in REPLICAS {
        cluster.figure_reaches(at, "replica_records_repaired", 1);
        cluster.figure_reaches(at, "replica_datagrams_lost", 1);
    }
    cluster.agree(PRIMARY, &REPLICAS);
    Ok(())
}

/// The way of datagrams is cut, the connection's is not: records come over that one, until datagrams are back.
fn datagrams_stay_out_and_come_back() -> Outcome {
    let mut cluster = Cluster::with_datagrams("datagrams-parted", Datagrams::Group)?;
    cluster.start_all();
    let [cut, other] = REPLICAS;
    let load = cluster.load(PRIMARY, 4);
    for _ in 0..2 {
        cluster.datagrams_come();
        cluster.network.part(&[cut], &[PRIMARY], Packets::Datagrams);
        let before = cluster.figure(cut, "replica_records_repaired");
        std::thread::sleep(load_time() / 2);
        cluster.follow(PRIMARY, &REPLICAS);
        cluster.figure_reaches(cut, "replica_records_repaired", before + 1);
        let dropped = cluster.host(cut).lost();
        assert!(dropped > 0, "no datagram was kept out");
        cluster.network.heal();
        cluster.figure_reaches(cut, "replica_datagrams_lost", dropped);
    }
    cluster.datagrams_come();
    cluster.unload(load, PRIMARY);
    cluster.agree(PRIMARY, &REPLICAS);
    assert_eq!([cut, other].map(|at| cluster.figure(at, "replica_connects")), [1, 1], "connections held");
    Ok(())
}

fn a_replica_is_cut_off_and_comes_back() -> Outcome {
    let cluster = Cluster::started("partition", 4)?;
    let load = cluster.load(PRIMARY, 4);
    let [cut, other] = REPLICAS;
    for _ in 0..2 {
        cluster.network.part(&[cut], &[PRIMARY, other], Packets::All);
        std::thread::sleep(load_time() / 2);
        cluster.follow(PRIMARY, &[other]);
        cluster.network.heal();
        cluster.follow(PRIMARY, &[cut]);
    }
    // A primary that nobody reaches loses nothing of what it acknowledged before.
    cluster.network.part(&[PRIMARY], &[CLIENTS, cut, other], Packets::All);
    std::thread::sleep(load_time() / 4);
    cluster.network.heal();
    cluster.unload(load, PRIMARY);
    cluster.agree(PRIMARY, &REPLICAS);
    Ok(())
}

fn replicas_are_killed_under_load() -> Outcome {
    let mut cluster = Cluster::started("replicas-killed", 4)?;
    let load = cluster.load(PRIMARY, 4);
    let mut random = Random::new(cluster.seed);
    let end = Instant::now() + load_time();
    while Instant::now() < end {
        let at = *random.pick(&REPLICAS);
        std::thread::sleep(Duration::from_millis(random.below(300) as u64));
        cluster.kill(at);
        std::thread::sleep(Duration::from_millis(random.below(300) as u64));
        cluster.start(at, Some(PRIMARY));
    }
    cluster.unload(load, PRIMARY);
    cluster.agree(PRIMARY, &REPLICAS);
    cluster.clients_see_the_same(PRIMARY, REPLICAS[0]);
    Ok(())
}

fn the_primary_is_killed_under_load() -> Outcome {
    let mut cluster = Cluster::started("primary-killed", 4)?;
    let load = cluster.load(PRIMARY, 4);
    let mut random = Random::new(cluster.seed);
    let end = Instant::now() + load_time();
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(200 + random.below(400) as u64));
        cluster.kill(PRIMARY);
        std::thread::sleep(Duration::from_millis(random.below(100) as u64));
        cluster.start(PRIMARY, None);
    }
    cluster.writes_go_on(&load, PRIMARY);
    cluster.unload(load, PRIMARY);
    cluster.agree(PRIMARY, &REPLICAS);
    Ok(())
}

fn a_full_sync_while_clients_write() -> Outcome {
    let mut cluster = Cluster::new("full-sync", 4)?;
    cluster.start(PRIMARY, None);
    let megabytes = setting("MILLRACE_SYNC_MB", 200);
    let seed = cluster.seed;
    cluster.client(PRIMARY, move |client| {
        let mut random = Random::new(seed);
        let values: Vec<Vec<u8>> = (0..100).map(|_| random.bytes(1000)).collect();
        for batch in 0..megabytes * 10 {
            let keys: Vec<String> = (0..100).map(|at| format!("bulk:{batch}:{at}")).collect();
            let commands: Vec<Vec<&[u8]>> = keys
                .iter()
                .zip(&values)
                .map(|(key, value)| vec![&b"SET"[..], key.as_bytes(), value])
                .collect();
            assert!(client.pipeline(&commands).expect("written").iter().all(|reply| !reply.is_error()));
        }
    });
    let load = cluster.load(PRIMARY, 4);
    for at in REPLICAS {
        cluster.start(at, Some(PRIMARY));
    }
    let begun = Instant::now();
    cluster.follow(PRIMARY, &REPLICAS);
    println!("{megabytes} MB were there after {:.1} s", begun.elapsed().as_secs_f64());
    cluster.unload(load, PRIMARY);
    cluster.agree(PRIMARY, &REPLICAS);
    Ok(())
}

// ---------------------------------------------------------------------------------------------------------------
// Through NGINX.

/// What one client saw through the proxy.
#[derive(Debug, Default)]
struct Seen {
    writes: u64,
    failed_writes: u64,
    reads: u64,
    /// Reads that were told that the record is lost.
    lost: u64,
    /// Reads that nobody could answer.
    refused: u64,
}

/// Writes its own key, and reads it with the token of the write: what it wrote, or a word that it cannot be had.
fn write_and_read(proxy: SocketAddr, writer: u64, stop: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let key = format!("own:{writer}");
    while !stop.load(Ordering::Relaxed) {
        let value = format!("{}", seen.writes + seen.failed_writes);
        let written = ask(proxy, "PUT", &key, &value, None).unwrap_or_default();
        let Some(token) = written.token.filter(|_| matches!(written.status, 201 | 204)) else {
            seen.failed_writes += 1;
            continue;
        };
        seen.writes += 1;
        for _ in 0..3 {
            let read = ask(proxy, "GET", &key, "", Some(&token)).expect("the proxy answers");
            seen.reads += 1;
            match read.status {
                200 => assert_eq!(read.body, value, "read with {token}, which was given for that write"),
                // A key that was lost is not there; but then the record is not, either.
                409 if read.body.contains("LOST") => seen.lost += 1,
                // The primary is gone and no replica has the record.
                502 | 504 | 409 => seen.refused += 1,
                _ => panic!("a read with {token} was answered with {read:?}"),
            }
        }
    }
    seen
}

fn reads_through_nginx_see_what_was_written() -> Outcome {
    let mut cluster = Cluster::started("nginx", 5)?;
    let nodes = [PRIMARY, REPLICAS[0], REPLICAS[1]].map(|at| cluster.host(at));
    let home = cluster.directory.0.join("nginx");
    let (proxy, _nginx, _follower) = start_proxy(cluster.host(PROXY), &nodes, &home)?;
    cluster.agree(PRIMARY, &REPLICAS);
    let stop = Arc::new(AtomicBool::new(false));
    let host = cluster.host(CLIENTS).clone();
    let begin = |writers: u64| -> Vec<JoinHandle<Seen>> {
        let spawn = |writer| {
            let stop = Arc::clone(&stop);
            host.spawn(move || write_and_read(proxy, writer, &stop))
        };
        (0..writers).map(spawn).collect()
    };
    let end = |clients: Vec<JoinHandle<Seen>>| -> Vec<Seen> {
        stop.store(true, Ordering::Relaxed);
        let seen = clients.into_iter().map(|client| client.join().expect("a client ends")).collect();
        stop.store(false, Ordering::Relaxed);
        seen
    };
    // Packets are lost and a replica dies: no request fails.
    let clients = begin(4);
    cluster.network.lose(10, Packets::All);
    std::thread::sleep(load_time() / 2);
    let [first, second] = REPLICAS;
    let mut nodes = std::mem::take(&mut cluster.nodes);
    nodes.remove(&second).expect("it runs").kill();
    std::thread::sleep(load_time() / 2);
    cluster.network.heal();
    let seen = end(clients);
    let (writes, reads): (u64, u64) =
        seen.iter().fold((0, 0), |sums, seen| (sums.0 + seen.writes, sums.1 + seen.reads));
    println!("{writes} writes and {reads} reads through NGINX while packets were lost and a replica died");
    assert!(
        writes > 0 && seen.iter().all(|seen| seen.failed_writes + seen.lost + seen.refused == 0),
        "{seen:?}"
    );
    // The primary dies, a replica is promoted: NGINX follows, and nobody reads what is older than it may be.
    let clients = begin(4);
    std::thread::sleep(load_time() / 4);
    nodes.remove(&PRIMARY).expect("it runs").kill();
    let promote = cluster.resp(first);
    cluster.host(CLIENTS).on(move || Client::await_server(promote).expect("REPLICAOF NO ONE"));
    let followed = cluster.host(CLIENTS).on(move || {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if ask(proxy, "PUT", "after", "1", None).is_ok_and(|answer| answer.status == 201) {
                return true;
            }
        }
        false
    });
    assert!(followed, "NGINX writes to the promoted replica");
    std::thread::sleep(load_time() / 4);
    let seen = end(clients);
    assert!(seen.iter().any(|seen| seen.writes > 0), "{seen:?}");
    println!("after the promotion: {seen:?}");
    cluster.nodes = nodes;
    for at in [PRIMARY, second] {
        cluster.start(at, Some(first));
    }
    cluster.agree(first, &[PRIMARY, second]);
    Ok(())
}
