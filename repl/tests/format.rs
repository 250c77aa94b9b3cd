//! The format is a promise: the document, the source and bytes written by earlier versions say the same.
//!
//! `UPDATE_GOLDEN=1 cargo test -p repl --test format` writes the golden files and the fuzzer's seeds anew.
//! That is right only together with a new version of the format.

#[path = "../../wal/tests/document/mod.rs"]
mod document;

use std::fs;
use std::path::{Path, PathBuf};

use document::{bound, rows};
use repl::datagram::{self, Datagram, DatagramWriter, InvalidDatagram};
use repl::fault::{Fault, Reason};
use repl::frame::{self, FrameReader, preamble_of};
use repl::identity::{CHAIN_NODES_MAX, Chain, NodeId};
use repl::lineage::{self, BRANCHES_MAX, Branch, BranchId, InvalidLineage, Lineage};
use repl::message::{
    self, Ack, Challenge, Heartbeat, Hello, Message, Repair, SnapshotName, Welcome, capability,
};
use repl::run::{self, Position, RunWriter};
use repl::secret::{DatagramKey, Secret};
use repl::settings::{DatagramSettings, ReplicaSettings};
use wal::checksum::Checksum;
use wal::lsn::{Epoch, Lsn};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn is_update() -> bool {
    std::env::var_os("UPDATE_GOLDEN").is_some()
}

#[test]
fn the_document_says_what_the_source_says() {
    let page = fs::read_to_string(repository().join("docs/formats/delta.md")).unwrap();
    bound(&page, "Preamble", frame::preamble::FIELDS);
    bound(&page, "Frame", frame::header::FIELDS);
    bound(&page, "Hello", message::hello::FIELDS);
    bound(&page, "Challenge", message::challenge::FIELDS);
    bound(&page, "Welcome", message::welcome::FIELDS);
    bound(&page, "Snapshot name", message::snapshot_name::FIELDS);
    bound(&page, "Heartbeat", message::heartbeat::FIELDS);
    bound(&page, "Ack", message::ack::FIELDS);
    bound(&page, "Repair", message::repair::FIELDS);
    bound(&page, "Branch", lineage::branch::FIELDS);
    bound(&page, "Lineage file", lineage::file::FIELDS);
    bound(&page, "Run", run::header::FIELDS);
    bound(&page, "Datagram", datagram::header::FIELDS);
    let meaning = |heading, name: &str| {
        let row = rows(&page, heading).into_iter().find(|row| row.len() == 5 && row[3] == name);
        row.unwrap_or_else(|| panic!("{name}"))[4].clone()
    };
    assert_eq!(meaning("Preamble", "magic").as_bytes(), frame::MAGIC);
    assert_eq!(meaning("Datagram", "magic").as_bytes(), datagram::MAGIC);
    assert_eq!(meaning("Lineage file", "magic").as_bytes(), lineage::FILE_MAGIC);
    assert_eq!(meaning("Datagram", "version"), datagram::VERSION.to_string());
    assert_eq!(meaning("Lineage file", "version"), lineage::FILE_VERSION.to_string());
    assert!(meaning("Preamble", "version").ends_with(&format!(": {}", frame::VERSION)));
    assert!(meaning("Preamble", "oldest").ends_with(&format!(": {}", frame::VERSION_OLDEST)));
    assert!(
        page.starts_with(&format!(
            "# Replication: the stream and the datagram, version {}\n",
            frame::VERSION
        ))
    );
    let (body, greeting) = (frame::BODY_BYTES_LIMIT, frame::GREETING_BYTES_LIMIT);
    assert!(meaning("Frame", "length").contains(&format!("{body} at most, and {greeting} until")));
    assert!(page.contains(&format!("never more than {}.", datagram::DATAGRAM_BYTES_LIMIT)));
    assert!(page.contains(&format!("{} bytes at most", message::REFUSED_TEXT_BYTES_MAX)));
    assert!(page.contains(&format!("A history is at most {BRANCHES_MAX} branches")));
    assert!(page.contains(&format!("the node it follows, and so on; {CHAIN_NODES_MAX} at most")));
    let (datagrams, replica) = (DatagramSettings::default(), ReplicaSettings::default());
    assert!(page.contains(&format!("Datagrams are {} bytes by default", datagrams.datagram_bytes)));
    let (least, most) = (datagrams.heartbeat_us_min / 1000, datagrams.heartbeat_us_max / 1000);
    assert!(
        page.contains(&format!("One comes {least} ms after")) && page.contains(&format!("up to {most} ms."))
    );
    let (delay, jitter) = (replica.gap_delay_us, replica.gap_jitter_us);
    assert!(page.contains(&format!("It is given {delay} µs and up to {jitter} µs more")));
    assert!(page.contains(&format!("again after {} ms", replica.repair_timeout_us / 1000)));
    assert!(meaning("Hello", "capabilities").starts_with("1: it takes datagrams; 2: it takes a snapshot"));
    assert_eq!((capability::DATAGRAMS, capability::RESHARD), (1, 2));
    // Every message and every reason, by its number.
    let kinds: Vec<String> =
        messages(&Secret::new(b"")).iter().map(|message| message.kind().to_string()).collect();
    let written: Vec<String> =
        rows(&page, "Messages").into_iter().skip(1).map(|row| row[0].clone()).collect();
    let mut known = kinds.clone();
    known.sort_by_key(|kind| kind.parse::<u32>().unwrap());
    known.dedup();
    assert_eq!(written, known, "docs/formats/delta.md, Messages");
    let reasons: Vec<(String, String)> =
        rows(&page, "Reasons").into_iter().skip(1).map(|row| (row[0].clone(), row[1].clone())).collect();
    let source = Reason::ALL.map(|reason| ((reason as u32).to_string(), format!("{reason:?}")));
    assert_eq!(reasons, source, "docs/formats/delta.md, Reasons");
}

fn golden_lineage() -> Lineage {
    let branch = |epoch, id, lsn| Branch { epoch: Epoch(epoch), id: BranchId(id), first_lsn: Lsn(lsn) };
    Lineage::new(vec![branch(1, 0x0a, 1), branch(2, 0x0b, 40), branch(5, 0x0c, 1000)]).unwrap()
}

fn golden_run() -> Vec<u8> {
    let mut out = Vec::new();
    let at = Position { lsn: Lsn(1000), offset: 7 };
    let mut run = RunWriter::begin(&mut out, Epoch(5), at, Lsn(1002), 1_700_000_000_000_000);
    run.push(&mut out, b"the end of 1000", 1_700_000_000_000_000, false);
    run.push(&mut out, b"", 1_700_000_000_000_250, false);
    run.push(&mut out, b"SET a", 1_700_000_000_000_500, true);
    out
}

fn snapshot() -> SnapshotName {
    SnapshotName { epoch: 5, lsn: Lsn(1040), lsn_max: Lsn(1042), uid: 0x676f_6c64_656e, length: 4096 }
}

/// One of each, the replica's first.
fn messages(secret: &Secret) -> Vec<Message> {
    let (replica, primary, above) = (NodeId([0x11; 16]), NodeId([0x22; 16]), NodeId([0x33; 16]));
    let mut welcome = Welcome {
        proof: [0; 16],
        stream: 0x7374_7265_616d,
        salt: [0x44; 16],
        start_lsn: Lsn(1041),
        datagrams: true,
        full: Some((snapshot(), 1000)),
        chain: Chain::new(vec![primary, above]).unwrap(),
        lineage: golden_lineage(),
    };
    welcome.proof = secret.proof(repl::secret::Prover::Primary, &[b"hello", b"challenge", &welcome.proven()]);
    vec![
        Message::Hello(Hello {
            node: replica,
            nonce: [0x55; 16],
            last_lsn: Lsn(39),
            partly_lsn: Lsn(39),
            capabilities: capability::ALL,
            shards: 4,
            port: 6379,
            partial: Some((snapshot(), 1000)),
            lineage: Lineage::new(golden_lineage().branches()[..1].to_vec()).unwrap(),
        }),
        Message::Proof(secret.proof(repl::secret::Prover::Replica, &[b"hello", b"challenge"])),
        Message::Ack(Ack { applied_lsn: Lsn(1041), durable_lsn: Lsn(1040), stamp: 77 }),
        Message::Repair(Repair { from_lsn: Lsn(1042), to_lsn: Lsn(1050) }),
        Message::Challenge(Challenge { node: primary, nonce: [0x66; 16] }),
        Message::Welcome(welcome),
        Message::Chunk { offset: 1000, bytes: b"bytes of the snapshot".to_vec() },
        Message::Records(golden_run()),
        Message::Heartbeat(Heartbeat {
            durable_lsn: Lsn(1050),
            datagrams_lsn: Lsn(1049),
            unix_us: 1_700_000_000_001_000,
            echo: 77,
            log_bytes: 12_345,
            age_us: 300,
            wants_ack: true,
        }),
        Message::Branch(Branch { epoch: Epoch(6), id: BranchId(0x0d), first_lsn: Lsn(1060) }),
        Message::Chain(Chain::new(vec![primary]).unwrap()),
        Message::Live(Lsn(1051)),
        Message::Refused(Fault::new(
            Reason::TooSlow,
            "expected a replica within 10 records, found one 11 behind",
        )),
    ]
}

fn key(secret: &Secret) -> DatagramKey {
    secret.datagram_key(&[0x44; 16], golden_lineage().latest().unwrap())
}

fn datagram(key: &DatagramKey, checksum: Checksum, padded: usize, records: bool) -> Vec<u8> {
    let mut out = Vec::new();
    let writer = DatagramWriter::begin(&mut out, 0x7374_7265_616d, 9, 1_700_000_000_001_000);
    match records {
        true => out.extend_from_slice(&golden_run()),
        false => drop(RunWriter::begin(&mut out, Epoch(5), Position::start_of(Lsn(1003)), Lsn(1002), 0)),
    }
    writer.finish(&mut out, padded, key, checksum);
    out
}

/// The golden bytes, as the present version writes or damages them; and as what a fuzzer reads them.
fn golden(checksum: Checksum) -> Vec<(&'static str, u8, Vec<u8>)> {
    let secret = Secret::new(b"golden");
    let (mut replica, mut primary) =
        (preamble_of(1, 1, checksum).to_vec(), preamble_of(1, 1, checksum).to_vec());
    for message in messages(&secret) {
        message.encode(if message.kind() < 16 { &mut replica } else { &mut primary }, checksum);
    }
    let changed = |bytes: &[u8], at: usize, byte: u8| {
        let mut bytes = bytes.to_vec();
        assert_ne!(bytes[at], byte);
        bytes[at] = byte;
        bytes
    };
    let records = datagram(&key(&secret), checksum, 0, true);
    let mut later = changed(&records, 4, 2);
    let crc = checksum.continued(checksum.of(&later[..8]), &later[12..]);
    later[8..12].copy_from_slice(&crc.to_le_bytes());
    let lineage = golden_lineage().encode_file(checksum);
    let mut later_lineage = changed(&lineage, 8, 2);
    let crc = checksum.continued(checksum.of(&later_lineage[..12]), &later_lineage[16..]);
    later_lineage[12..16].copy_from_slice(&crc.to_le_bytes());
    const DATAGRAM: u8 = 0;
    const STREAM: u8 = 1;
    const LINEAGE: u8 = 3;
    vec![
        ("v1-replica.stream", STREAM, replica.clone()),
        ("v1-primary.stream", STREAM, primary.clone()),
        ("v1-damaged.stream", STREAM, changed(&primary, 200, 0xff)),
        ("v2-later.stream", STREAM, preamble_of(3, 2, checksum).to_vec()),
        ("v1-records.datagram", DATAGRAM, records.clone()),
        ("v1-padded.datagram", DATAGRAM, datagram(&key(&secret), checksum, 300, true)),
        ("v1-heartbeat.datagram", DATAGRAM, datagram(&key(&secret), checksum, 0, false)),
        ("v1-damaged.datagram", DATAGRAM, changed(&records, 120, 0xff)),
        ("v1-forged.datagram", DATAGRAM, datagram(&key(&Secret::new(b"")), checksum, 0, true)),
        ("v2-later.datagram", DATAGRAM, later),
        ("v1.lineage", LINEAGE, lineage.clone()),
        ("v1-damaged.lineage", LINEAGE, changed(&lineage, 30, 0xff)),
        ("v2-later.lineage", LINEAGE, later_lineage),
    ]
}

fn load(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn the_present_version_still_writes_the_same_bytes() {
    for (name, _, bytes) in golden(Checksum::portable()) {
        if is_update() {
            fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name), &bytes).unwrap();
        }
        let kept = load(name);
        let difference = bytes.iter().zip(&kept).position(|(a, b)| a != b);
        assert!(bytes == kept, "{name} differs at {difference:?}: a new format needs a new version");
    }
}

fn read(bytes: &[u8]) -> Result<Vec<Message>, Fault> {
    let mut reader = FrameReader::new(Checksum::portable());
    reader.push(bytes);
    let mut found = Vec::new();
    while let Some(frame) = reader.next_frame()? {
        found.push(Message::decode(frame.kind, frame.body)?);
    }
    Ok(found)
}

#[test]
fn bytes_of_version_1_read_as_they_did() {
    let secret = Secret::new(b"golden");
    let mut found = read(&load("v1-replica.stream")).unwrap();
    found.extend(read(&load("v1-primary.stream")).unwrap());
    let mut expected = messages(&secret);
    if let Some(Message::Refused(fault)) = expected.last_mut() {
        fault.is_peers = true;
    }
    assert_eq!(found, expected);
    let fault = read(&load("v1-damaged.stream")).unwrap_err();
    assert!(fault.reason == Reason::Protocol && fault.text.contains("whose checksum is wrong"), "{fault}");
    let fault = read(&load("v2-later.stream")).unwrap_err();
    assert!(
        fault.reason == Reason::Version && fault.text.ends_with("found one that speaks 2 to 3"),
        "{fault}"
    );

    let checksum = Checksum::portable();
    for (name, count) in [("v1-records.datagram", 3), ("v1-padded.datagram", 3), ("v1-heartbeat.datagram", 0)]
    {
        let bytes = load(name);
        let datagram = Datagram::decode(&bytes, checksum).unwrap_or_else(|why| panic!("{name}: {why:?}"));
        assert!(datagram.is_authentic(&key(&secret)), "{name}");
        assert_eq!((datagram.sequence, datagram.stream, datagram.run.count()), (9, 0x7374_7265_616d, count));
        assert_eq!(datagram.sent_unix_us, 1_700_000_000_001_000);
    }
    assert_eq!(Datagram::decode(&load("v1-damaged.datagram"), checksum), Err(InvalidDatagram::Checksum));
    assert_eq!(Datagram::decode(&load("v2-later.datagram"), checksum), Err(InvalidDatagram::Version(2)));
    let forged = load("v1-forged.datagram");
    assert!(!Datagram::decode(&forged, checksum).unwrap().is_authentic(&key(&secret)));

    assert_eq!(Lineage::decode_file(&load("v1.lineage"), checksum), Ok(golden_lineage()));
    let damaged = Lineage::decode_file(&load("v1-damaged.lineage"), checksum);
    assert_eq!(damaged, Err(InvalidLineage::Damaged));
    let later = Lineage::decode_file(&load("v2-later.lineage"), checksum);
    assert_eq!(later, Err(InvalidLineage::Version(2)));
}

/// Seeds for the fuzzer: the golden bytes, with their checksums and with those of the blind ones; streams
/// also to the machines themselves.
#[test]
fn the_seeds_of_the_fuzzer_are_the_golden_bytes() {
    let folder = repository().join("fuzz/corpus/replication");
    let mut seeds = Vec::new();
    for (checksum, how, suffix) in [(Checksum::portable(), 1, "checked"), (Checksum::blind(), 0, "blind")] {
        for (name, kind, bytes) in golden(checksum) {
            let seed = |kind: u8| [&[how | kind << 1 | 3 << 3], bytes.as_slice()].concat();
            seeds.push((format!("{name}-{suffix}"), seed(kind)));
            if name.starts_with("v1-") && kind == 1 {
                seeds.push((format!("{name}-peers-{suffix}"), seed(2)));
            }
        }
    }
    for (name, seed) in seeds {
        repl::fuzz::fuzz_replication(&seed);
        let path = folder.join(name);
        if is_update() {
            fs::create_dir_all(&folder).unwrap();
            fs::write(&path, &seed).unwrap();
        }
        assert!(fs::read(&path).is_ok_and(|kept| kept == seed), "{} is not up to date", path.display());
    }
}
