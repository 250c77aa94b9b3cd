//! The port for replicas, and what replicas find behind others' ports: strangers who say nothing or junk, no descriptors,
//! nodes of other versions, primaries that send what they must not. All of it on real sockets; the primaries that
//! misbehave are `repl`'s state machine in the hands of a test.

#[allow(dead_code, reason = "each suite uses its part")]
mod nodes;
#[allow(dead_code, reason = "each suite uses its part")]
mod process;
#[allow(dead_code, reason = "each suite uses its part")]
mod snapshots;

use nodes::*;
use process::*;
use repl::backlog::encode_chunks;
use repl::fault::{Fault, Reason};
use repl::frame::preamble_of;
use repl::identity::{NodeId, Now};
use repl::lineage::{BranchId, Lineage};
use repl::message::SnapshotName;
use repl::primary::{Action, LinkId, Primary, PrimaryStart, ReplicaState};
use repl::secret::Secret;
use repl::settings::PrimarySettings;
use snapshot::format::Header;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};
use store::mutation::Mutation;
use store::value::Encoding;
use wal::block::PAGE_BYTES;
use wal::checksum::Checksum;
use wal::lsn::{Epoch, Lsn};
use wal::record::Record;

/// What is said of those who have not proved who they are.
const STRANGER: &str = "not known to be a replica's";

fn connect(node: &Node) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", node.replicas)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// All that comes until the other side closes.
fn to_the_end(mut stream: TcpStream) -> Vec<u8> {
    let mut said = Vec::new();
    // A reset is an end, too: it had not read all.
    let _ = stream.read_to_end(&mut said);
    said
}

/// Found in review: whoever connected had records kept for it from then on, and a place among the replicas; a line was said
/// for each that spoke junk.
#[test]
fn strangers_keep_nobody_out_and_cost_the_primary_nothing() {
    let scratch = Scratch::new("repl-strangers");
    let mut primary = Node::new(&scratch, "primary", "1");
    primary.start();
    let mut client = primary.client();
    // Many more than there is room for: those who came first have gone.
    let mut silent: Vec<TcpStream> = (0..100).map(|_| connect(&primary)).collect();
    eventually(
        || client_info(&primary),
        || number(&mut primary.client(), "replica_strangers_crowded_out") >= 36,
    );
    let kept = silent.split_off(36);
    for stream in silent {
        let said = String::from_utf8_lossy(&to_the_end(stream)).into_owned();
        assert!(said.contains("expected a proof before 64 others came"), "{said}");
    }
    let begun = Instant::now();
    for _ in 0..300 {
        let mut stream = connect(&primary);
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        assert!(to_the_end(stream).starts_with(b"MILLRDLT"));
    }
    fill(&primary, 200);
    for (field, wanted) in [("repl_backlog_active", 0), ("repl_backlog_histlen", 0), ("connected_slaves", 0)]
    {
        assert_eq!(number(&mut client, field), wanted, "{field}: {}", client_info(&primary));
    }
    eventually(|| client_info(&primary), || number(&mut primary.client(), "replica_strangers") >= 336);
    let quiet = connect(&primary);
    let took = begun.elapsed();
    // One line a second, and the first at once; there is one more to come.
    let lines = primary.running.as_ref().unwrap().messages.try_iter().filter(|line| line.contains(STRANGER));
    let lines = lines.count() as u64;
    assert!((1..=took.as_secs() + 3).contains(&lines), "{lines} lines in {took:?}");

    // A replica comes, and nobody is in its way.
    let mut replica = Node::new(&scratch, "replica", "1");
    replica.follow(&primary).start();
    fill(&primary, 300);
    same(&primary, &replica);
    assert_eq!(number(&mut client, "sync_full"), 0);
    eventually(|| client_info(&primary), || number(&mut primary.client(), "repl_backlog_active") == 1);
    fill(&primary, 10);
    same(&primary, &replica);
    eventually(|| client_info(&primary), || number(&mut primary.client(), "repl_backlog_histlen") > 0);
    // Who says nothing is closed in the end, and the replica is not.
    let said = String::from_utf8_lossy(&to_the_end(quiet)).into_owned();
    assert!(said.contains("expected a proof within 5000000 us"), "{said}");
    drop(kept);
    assert_eq!(number(&mut client, "connected_slaves"), 1);

    // The last replica has gone: after a while nothing is kept any more, and it goes on from the log.
    replica.running.take().unwrap().stop();
    let kept = || client_info(&primary);
    eventually(kept, || number(&mut primary.client(), "repl_backlog_active") == 0);
    assert_eq!(number(&mut client, "repl_backlog_histlen"), 0);
    fill(&primary, 400);
    replica.start();
    same(&primary, &replica);
    assert_eq!(number(&mut client, "sync_full"), 0);
    eventually(|| client_info(&primary), || number(&mut primary.client(), "sync_partial_ok") >= 2);
}

fn client_info(node: &Node) -> String {
    node.client().bulk("INFO replication")
}

/// Ticks of CPU time of the thread that replicates (proc(5), stat: fields behind the name in brackets).
fn ticks(node: &Node) -> u64 {
    let id = node.running.as_ref().unwrap().child.id();
    let tasks = fs::read_dir(format!("/proc/{id}/task")).unwrap();
    let stats = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
    let stat = stats.into_iter().find(|stat| stat.contains("(replication)")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// Found in review: a connection that could not be taken was reported for ever, and the thread did nothing else.
#[test]
fn without_descriptors_the_port_rests_and_comes_back() {
    let scratch = Scratch::new("repl-emfile");
    let mut primary = Node::new(&scratch, "primary", "1");
    primary.start();
    let running = primary.running.as_ref().unwrap();
    let id = running.child.id();
    let prlimit = |words: &[&str]| {
        let output = Command::new("prlimit").arg(format!("--pid={id}")).args(words).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let limit = |soft: &str| prlimit(&[&format!("--nofile={soft}:")]);
    let before = prlimit(&["--nofile", "-o", "SOFT", "--noheadings"]);
    // Below what is open already: there is none for anything new.
    limit("3");
    let mut waiting = connect(&primary);
    let none = ["no connection can be taken on the port for replicas", "raise the limit of open files"];
    running.heard(&none);
    let (begun, used) = (Instant::now(), ticks(&primary));
    // It is said once a second, so two seconds pass.
    running.heard(&none);
    running.heard(&none);
    let (took, used) = (begun.elapsed(), ticks(&primary) - used);
    // A tick is ten milliseconds.
    assert!(Duration::from_millis(10 * used) < took / 4, "{used} ticks in {took:?}");
    limit(before.trim());
    waiting.write_all(b"MILLRDLT").unwrap();
    let mut magic = [0; 8];
    waiting.read_exact(&mut magic).unwrap();
    assert_eq!(&magic, b"MILLRDLT");
}

fn checksum() -> Checksum {
    Checksum::lent(crc32c::crc32c_append).expect("CRC-32C")
}

fn now() -> Now {
    let unix = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Now { micros: unix.as_micros() as u64, unix_us: unix.as_micros() as u64 }
}

fn lineage(branches: &[(u64, u64)]) -> Lineage {
    let mut lineage = Lineage::default();
    for &(first, id) in branches {
        lineage.begin(Lsn(first), BranchId(id), Epoch::FIRST);
    }
    lineage
}

/// A record that sets `puppet:LSN`.
fn payload(lsn: u64) -> Vec<u8> {
    let (key, mut payload) = (format!("puppet:{lsn}"), Vec::new());
    let value = b"value";
    Mutation::Set { key: key.as_bytes(), value, expires_at: None, encoding: Encoding::Auto }
        .encode(&mut payload);
    payload
}

/// A primary in the hands of a test: what `repl` says a primary does, and whatever the test sends in between.
struct Puppet {
    listener: TcpListener,
    primary: Primary,
    stream: Option<TcpStream>,
    links: u64,
    closed: Vec<Fault>,
    payloads: Vec<Vec<u8>>,
    /// What it gives to replicas that need everything: its name, its shards, the file.
    snapshot: Option<(SnapshotName, u32, Vec<u8>)>,
}

impl Puppet {
    fn new(secret: &[u8], lineage: Lineage) -> Puppet {
        Puppet::behind(secret, lineage, Lsn::ZERO)
    }

    /// One whose log begins behind this record.
    fn behind(secret: &[u8], lineage: Lineage, gone: Lsn) -> Puppet {
        let start = PrimaryStart {
            node: NodeId([200; 16]),
            secret: Secret::new(secret),
            stream: 1,
            salt: [7; 16],
            lineage,
            durable_lsn: gone,
            log_first_lsn: Some(gone.next()),
            is_serving: true,
        };
        Puppet {
            listener: TcpListener::bind("127.0.0.1:0").unwrap(),
            primary: Primary::new(PrimarySettings::default(), start, checksum(), now()),
            stream: None,
            links: 0,
            closed: Vec::new(),
            payloads: (1..=gone.0).map(payload).collect(),
            snapshot: None,
        }
    }

    fn port(&self) -> u16 {
        self.listener.local_addr().unwrap().port()
    }

    /// The next who does not ask where replicas connect: it is told that it is here, and comes.
    fn meet(listener: &TcpListener) -> TcpStream {
        let end = Instant::now() + PATIENCE;
        listener.set_nonblocking(true).unwrap();
        loop {
            let Ok((mut stream, _)) = listener.accept() else {
                assert!(Instant::now() < end, "nobody comes");
                std::thread::yield_now();
                continue;
            };
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut first = [0];
            if stream.peek(&mut first).unwrap() == 1 && first[0] != b'*' {
                return stream;
            }
            let port = listener.local_addr().unwrap().port();
            // Who goes away is of no interest.
            let _ = stream.write_all(format!("+REPLICATION {port} 0\r\n").as_bytes());
        }
    }

    fn takes_a_replica(&mut self) {
        let stream = Puppet::meet(&self.listener);
        stream.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        self.links += 1;
        self.primary.handle_connected(LinkId(self.links), [3; 16], now());
        self.stream = Some(stream);
    }

    /// Does what a primary wants done, in one write.
    fn acts(&mut self) {
        let mut bytes = Vec::new();
        while let Some(action) = self.primary.poll_action(now()) {
            match action {
                Action::Send { link, bytes: more } => {
                    bytes.extend_from_slice(&more);
                    self.primary.handle_written(link, more.len());
                }
                Action::Close { fault, .. } => self.closed.push(fault),
                Action::ReadLog { link, from, until, .. } => {
                    let records = self.payloads.iter().zip(1u64..).map(|(payload, lsn)| (Lsn(lsn), payload));
                    let wanted = records.filter(|(lsn, _)| (from..=until).contains(lsn));
                    let wanted = wanted.map(|(lsn, payload)| Record { lsn, unix_us: 5, payload });
                    self.primary.handle_log_records(link, wanted);
                }
                Action::FindSnapshot { link, .. } => match &self.snapshot {
                    None => self.primary.handle_no_snapshot(link, "a puppet has none", now()),
                    Some((name, shards, _)) => {
                        self.primary.handle_snapshot_found(link, *name, *shards, now().micros).unwrap();
                    }
                },
                Action::ReadSnapshot { link, offset, length, .. } => {
                    let (_, _, file) = self.snapshot.as_ref().unwrap();
                    let part = &file[offset as usize..][..length];
                    self.primary.handle_snapshot_bytes(link, offset, part, now());
                }
                _ => {}
            }
        }
        if let Some(stream) = &mut self.stream {
            // Who has gone is found by reading.
            let _ = stream.write_all(&bytes);
        }
    }

    /// Serves until this holds.
    #[track_caller]
    fn serves(&mut self, mut holds: impl FnMut(&mut Puppet) -> bool) {
        let (end, mut bytes) = (Instant::now() + PATIENCE, vec![0; 65_536]);
        loop {
            self.primary.handle_timeout(now());
            self.acts();
            if holds(self) {
                return;
            }
            assert!(Instant::now() < end, "{:?}, {:?}", self.closed, self.primary);
            match self.stream.as_mut().map(|stream| stream.read(&mut bytes)) {
                Some(Ok(0)) | None => self.takes_a_replica(),
                Some(Ok(count)) => self.primary.handle_bytes(LinkId(self.links), &bytes[..count], now()),
                Some(Err(error)) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Some(Err(_)) => self.takes_a_replica(),
            }
        }
    }

    /// So many more records become durable; they are sent with the next action.
    fn writes(&mut self, count: usize) {
        let from = self.payloads.len() as u64;
        self.writes_these((from + 1..).take(count).map(payload).collect());
    }

    fn writes_these(&mut self, payloads: Vec<Vec<u8>>) {
        let from = self.payloads.len() as u64;
        self.payloads.extend(payloads);
        let records = self.payloads.iter().zip(1u64..).skip(from as usize);
        let records = records.map(|(payload, lsn)| Record { lsn: Lsn(lsn), unix_us: 5, payload });
        self.primary.handle_durable(records, Lsn(self.payloads.len() as u64), now());
    }

    /// Serves until a replica has all there is.
    #[track_caller]
    fn has_a_replica_with_all(&mut self) {
        self.serves(|puppet| {
            let wanted = Lsn(puppet.payloads.len() as u64);
            let mut infos = puppet.primary.replicas(now());
            infos.any(|info| info.state == ReplicaState::Streaming && info.applied_lsn == wanted)
        });
    }
}

/// What a replica is told by who is no primary it can follow: clear words on both sides, and nothing is touched.
#[test]
fn a_replica_says_what_is_wrong_with_who_it_was_told_to_follow() {
    let scratch = Scratch::new("repl-skew");
    let impostor = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut replica = Node::new(&scratch, "replica", "2");
    replica.start();
    assert_eq!(replica.client().ask("SET mine kept"), "+OK");
    let port = impostor.local_addr().unwrap().port();
    assert_eq!(replica.client().ask(&format!("REPLICAOF 127.0.0.1 {port}")), "+OK");
    for (answer, words, remedy) in [
        (
            b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
            "HTTP/1.1 400",
            "see that the port is the other node's",
        ),
        // Changed on its way.
        (
            {
                let mut bytes = preamble_of(1, 1, checksum()).to_vec();
                bytes[9] ^= 1;
                bytes
            },
            "expected a",
            "nothing between them changes bytes",
        ),
        // A primary of the future, which does not speak to this one any more.
        (preamble_of(9, 7, checksum()).to_vec(), "that speaks 7 to 9", "update replicas first"),
    ] {
        let mut stream = Puppet::meet(&impostor);
        stream.write_all(&answer).unwrap();
        // The other side is told in its own log.
        let said = String::from_utf8_lossy(&to_the_end(stream)).into_owned();
        assert!(said.starts_with("MILLRDLT") && said.contains("expected") && said.contains(words), "{said}");
        let heard = replica.running.as_ref().unwrap().heard(&["the connection to 127.0.0.1:", "ends", words]);
        assert!(heard.contains(remedy), "{heard}");
        let told = || client_info(&replica);
        eventually(told, || {
            info(&mut replica.client(), "master_last_fault").is_some_and(|fault| fault.contains(words))
        });
        assert_eq!(info(&mut replica.client(), "master_link_status").as_deref(), Some("down"));
    }
    assert_eq!(replica.client().ask("REPLICAOF NO ONE"), "+OK");
    assert_eq!(replica.client().bulk("GET mine"), "kept");
}

/// Records of an epoch that is in nobody's history, records with a hole, an acknowledged history that is another: the
/// connection ends, both sides say why, and not one of them is applied.
#[test]
fn records_that_do_not_belong_are_refused_whole() {
    let scratch = Scratch::new("repl-epoch");
    let mut puppet = Puppet::new(b"", lineage(&[(1, 1)]));
    let mut replica = Node::new(&scratch, "replica", "1");
    replica.follow_port(puppet.port()).start();
    puppet.writes(3);
    puppet.has_a_replica_with_all();
    // Another epoch; a record that is missing; one that is not durable there.
    let forged = |history: &Lineage, lsn: u64, durable: u64| {
        let payload = payload(99);
        let record = Record { lsn: Lsn(lsn), unix_us: 5, payload: &payload };
        let mut frames = Vec::new();
        let take = |chunk: repl::backlog::Chunk| frames.extend_from_slice(&chunk.frame);
        encode_chunks([record].into_iter(), history, Lsn(durable), 4096, checksum(), take);
        frames
    };
    let (own, other) = (lineage(&[(1, 1)]), lineage(&[(1, 1), (2, 5)]));
    for (frames, words, reason) in [
        (forged(&other, 4, 4), "epoch", Reason::HistoryChanged),
        (forged(&own, 7, 7), "LSN", Reason::Protocol),
        (forged(&own, 4, 3), "found", Reason::Protocol),
    ] {
        let closed = puppet.closed.len();
        puppet.stream.as_mut().unwrap().write_all(&frames).unwrap();
        let line =
            replica.running.as_ref().unwrap().heard(&["the connection to 127.0.0.1:", "ends", "expected"]);
        assert!(line.contains(words), "{line}");
        puppet.serves(|puppet| puppet.closed.len() > closed);
        let fault = puppet.closed.last().unwrap();
        assert!(fault.is_peers && fault.reason == reason && fault.text.contains(words), "{fault}");
        // It comes back, from where it was.
        puppet.has_a_replica_with_all();
        assert_eq!(replica.client().ask("DBSIZE"), ":3");
        assert_eq!(replica.client().ask("EXISTS puppet:99"), ":0");
    }
    puppet.writes(2);
    puppet.has_a_replica_with_all();
    assert_eq!(replica.client().ask("DBSIZE"), ":5");
}

/// Found in review: a replica whose disk did not take the history went on with what came behind it until it had ended, and
/// had records in its log of a branch that it knew nothing of.
#[test]
fn behind_a_failure_nothing_more_is_taken() {
    let scratch = Scratch::new("repl-failure");
    let mut puppet = Puppet::new(b"", lineage(&[(1, 1)]));
    let mut replica = Node::new(&scratch, "replica", "1");
    let alone = replica.more.len();
    replica.follow_port(puppet.port()).start();
    puppet.writes(3);
    puppet.has_a_replica_with_all();
    let obstacle = format!("{}/lineage.tmp", replica.dir);
    fs::create_dir(&obstacle).unwrap();
    // A new branch and its records, in one piece.
    puppet.primary.handle_promoted(&lineage(&[(1, 1), (4, 2)]));
    puppet.writes(5);
    puppet.acts();
    let running = replica.running.as_mut().unwrap();
    running.heard(&["this server cannot follow any more, and ends", "lineage"]);
    running.wait(PATIENCE);
    fs::remove_dir(&obstacle).unwrap();
    replica.more.truncate(alone);
    replica.start();
    assert_eq!(replica.client().ask("DBSIZE"), ":3");
    assert_eq!(replica.client().ask("EXISTS puppet:4"), ":0");
}

/// Found in review: FLUSHALL between the records at which the shards of a primary stood when they went into its snapshot. A
/// replica with another number of shards, which has dealt the keys anew, could not tell which of them it removes, and
/// ended.
#[test]
fn all_keys_go_while_a_snapshot_is_taken_that_other_shards_begin_with() {
    const CLEARED: u64 = 200;
    let there = snapshots::Folder::new("resharded");
    let mut clear = Vec::new();
    Mutation::Clear.encode(&mut clear);
    let mut records: Vec<Vec<u8>> = (1..=300).map(payload).collect();
    records[CLEARED as usize - 1] = clear;
    snapshots::new_log(&there.0, &records);
    let history = lineage(&[(1, 1)]);
    // One part from before, and one from behind that; each lacks some records.
    let lsns = [100, 250, 150];
    let id = snapshots::take_under(&there.0, &lsns, history.latest().map(|branch| branch.epoch));
    let file = fs::read(snapshots::path_of(&there.0, id)).unwrap();
    let header = Header::decode("it", &file[..PAGE_BYTES], checksum()).unwrap();
    let name = SnapshotName {
        epoch: header.epoch.0,
        lsn: header.lsn,
        lsn_max: header.lsn_max,
        uid: header.uid,
        length: header.length,
    };
    assert_eq!((name.lsn, name.lsn_max), (Lsn(100), Lsn(250)));
    for (shards, durability) in [("1", "always"), ("2", "off"), ("3", "always"), ("4", "always")] {
        let scratch = Scratch::new(&format!("repl-resharded-{shards}"));
        let mut puppet = Puppet::behind(b"", history.clone(), name.lsn);
        puppet.snapshot = Some((name, lsns.len() as u32, file.clone()));
        puppet.writes_these(records[name.lsn.0 as usize..].to_vec());
        let mut replica = Node::new(&scratch, "replica", shards);
        replica.durability = durability;
        replica.follow_port(puppet.port()).start();
        puppet.has_a_replica_with_all();
        let mut client = replica.client();
        assert_eq!(number(&mut client, "replica_full_syncs"), 1);
        eventually(|| client_info(&replica), || client.ask("DBSIZE") == format!(":{}", 300 - CLEARED));
        for lsn in 1..=300 {
            let expected = if lsn > CLEARED { ":1" } else { ":0" };
            assert_eq!(client.ask(&format!("EXISTS puppet:{lsn}")), expected, "{lsn}, {shards} shards");
        }
        puppet.writes(5);
        puppet.has_a_replica_with_all();
        assert_eq!(client.ask("DBSIZE"), format!(":{}", 305 - CLEARED));
    }
}

/// Found where nodes are started together: who asks a server that begins to serve was told that it takes no replicas, and a
/// replica, that it is a primary.
#[test]
fn the_first_who_ask_a_server_are_told_what_it_is() {
    let scratch = Scratch::new("repl-first");
    let mut primary = Node::new(&scratch, "primary", "2");
    let mut replica = Node::new(&scratch, "replica", "1");
    replica.follow(&primary);
    for node in [&mut primary, &mut replica] {
        for _ in 0..5 {
            // It listens before it serves: whoever asks then is answered first.
            let (port, replicas) = (node.port, node.replicas);
            let asks = std::thread::spawn(move || {
                let end = Instant::now() + PATIENCE;
                let mut crowd: Vec<TcpStream> = Vec::new();
                loop {
                    // The thread has others to see to first.
                    crowd.extend(
                        TcpStream::connect(("127.0.0.1", replicas)).ok().filter(|_| crowd.len() < 50),
                    );
                    if crowd.len() == 50
                        && let Ok(stream) = TcpStream::connect(("127.0.0.1", port))
                    {
                        stream.set_read_timeout(Some(PATIENCE)).unwrap();
                        let mut client = Client(stream);
                        let told = client.ask("REPLCONF replication-port");
                        let role = client.ask("ROLE");
                        return (told, role, client.line(), client.line());
                    }
                    assert!(Instant::now() < end);
                }
            });
            node.start();
            let (told, role, _, name) = asks.join().unwrap();
            assert!(told.starts_with(&format!("+REPLICATION {replicas} ")), "{told}, and it is {replicas}");
            let expected = if node.more.is_empty() { ("*3", "master") } else { ("*5", "slave") };
            assert_eq!((role.as_str(), name.as_str()), expected);
            node.kill();
        }
    }
}
