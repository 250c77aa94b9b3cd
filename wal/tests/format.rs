//! The format is a promise: the document, the source and files written by earlier versions say the same.
//!
//! `UPDATE_GOLDEN=1 cargo test -p wal --test format` writes the golden files and the fuzzer's seeds anew.
//! That is right only together with a new version of the format.

mod disk;
mod document;

use std::fs;
use std::path::{Path, PathBuf};

use disk::{Disk, Owned, checksum, read};
use document::{bound, rows};
use wal::block::{self, BLOCK_BYTES_LIMIT, BLOCK_MAGIC, PAGE_BYTES};
use wal::damage::DamageKind;
use wal::group_commit::{GroupCommit, Settings, Start};
use wal::lsn::{Epoch, Lsn};
use wal::reader::{Found, ReadOptions, Tail, Until};
use wal::record::{Batch, frame};
use wal::segment::{self, FileName, SEGMENT_BYTES_LIMIT, SEGMENT_MAGIC, Sequence, VERSION};

type Files = Vec<(Sequence, Vec<u8>)>;

fn settings() -> Settings {
    Settings {
        segment_bytes: 6 * 4096,
        block_bytes_max: 4096,
        pending_bytes_max: 1 << 20,
        append_bytes_max: 256,
        ..Settings::default()
    }
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn is_update() -> bool {
    std::env::var_os("UPDATE_GOLDEN").is_some()
}

#[test]
fn the_document_says_what_the_source_says() {
    let page = fs::read_to_string(repository().join("docs/formats/wal.md")).unwrap();
    bound(&page, "Segment header", segment::header::FIELDS);
    bound(&page, "Block header", block::header::FIELDS);
    bound(&page, "Frame", frame::FIELDS);
    let meaning = |heading, name: &str| {
        let row = rows(&page, heading).into_iter().find(|row| row.len() == 5 && row[3] == name);
        row.unwrap_or_else(|| panic!("{name}"))[4].clone()
    };
    assert_eq!(meaning("Segment header", "magic").as_bytes(), SEGMENT_MAGIC);
    assert_eq!(meaning("Segment header", "version"), VERSION.to_string());
    assert_eq!(meaning("Block header", "magic").as_bytes(), BLOCK_MAGIC);
    assert!(page.starts_with(&format!("# The write-ahead log: format, version {VERSION}\n")));
    assert!(page.contains(&format!("A *page* is {PAGE_BYTES} bytes")));
    assert!(page.contains(&format!("16 MiB ({BLOCK_BYTES_LIMIT} bytes)")));
    assert_eq!(SEGMENT_BYTES_LIMIT, (1 << 44) - 4096);
    let flags: Vec<(String, String)> = rows(&page, "Block header")
        .into_iter()
        .filter(|row| row.len() == 3 && row[0] != "bit")
        .map(|row| (row[0].clone(), row[1].clone()))
        .collect();
    let source = [
        ("CONTINUED", block::flags::CONTINUED),
        ("CONTINUES", block::flags::CONTINUES),
        ("CLOSED", block::flags::CLOSED),
    ];
    assert_eq!(flags, source.map(|(name, bit)| (bit.to_string(), name.into())));
    assert_eq!(source.iter().fold(0, |all, (_, bit)| all | bit), block::flags::ALL);
    assert_eq!(FileName::Segment(Sequence(1)).to_string(), "log-0000000000000001.wal");
    assert_eq!(FileName::Spare(Sequence(1)).to_string(), "log-0000000000000001.spare");
}

/// The records of the golden logs: a batch, one that is empty, one longer than a block.
fn golden_records() -> Vec<Owned> {
    let text = |lsn: u64, unix_us, payload: &[u8]| Owned { lsn, unix_us, payload: payload.to_vec() };
    vec![
        text(1, 1_700_000_000_000_000, b"SET a 1"),
        text(2, 1_700_000_000_000_000, b""),
        text(3, 1_700_000_000_000_000, b"DEL a"),
        Owned {
            lsn: 4,
            unix_us: 1_700_000_000_000_500,
            payload: (0..6000_u32).map(|n| (n % 251) as u8).collect(),
        },
        text(5, 1_700_000_000_001_000, b"SET b 2"),
        text(6, 1_700_000_000_002_000, b"SET c 3"),
    ]
}

fn golden_log(close: bool) -> Disk {
    let mut disk = Disk::new(1);
    let mut log = GroupCommit::new(settings(), &Start::empty(0x676f_6c64_656e), checksum());
    let records = golden_records();
    disk.settle(&mut log);
    let mut batch = Batch::new();
    for record in &records[..3] {
        batch.push(&record.payload);
    }
    log.append_batch(&batch, records[0].unix_us).unwrap();
    disk.settle(&mut log);
    for record in &records[3..] {
        while log.append(&record.payload, record.unix_us).is_err() {
            disk.settle(&mut log);
        }
        disk.settle(&mut log);
    }
    if close {
        log.close();
        disk.settle(&mut log);
    }
    disk
}

fn set(files: &mut Files, index: usize, at: usize, byte: u8) {
    assert_ne!(files[index].1[at], byte);
    files[index].1[at] = byte;
}

/// The golden logs, as the present version writes or damages them.
fn golden() -> Vec<(&'static str, Files)> {
    let closed = golden_log(true).segments();
    let open = golden_log(false).segments();
    let last = open.iter().rposition(|(_, bytes)| bytes[4096..4100] == BLOCK_MAGIC).unwrap();
    let last_block = 4096 * open[last].1.chunks(4096).rposition(|page| page[..4] == BLOCK_MAGIC).unwrap();
    let (mut torn, mut damaged, mut header, mut continued) =
        (open.clone(), closed.clone(), closed.clone(), golden_log(true));
    torn[last].1[last_block + 72..].fill(0);
    set(&mut damaged, 0, 2 * 4096 + 64 + 8, b'X');
    set(&mut header, 1, 20, 0xff);
    // Recovered to LSN 4, and gone on with something else.
    let (_, end) = read(&closed, ReadOptions { until: Until::Lsn(Lsn(4)), ..ReadOptions::default() });
    let mut log = GroupCommit::new(settings(), &end.unwrap().start(&[], 0x65_706f_6368), checksum());
    continued.settle(&mut log);
    log.append(b"SET d 4", 1_700_000_000_003_000).unwrap();
    continued.settle(&mut log);
    vec![
        ("v1-closed", closed),
        ("v1-open", open),
        ("v1-torn", torn),
        ("v1-damaged-block", damaged),
        ("v1-damaged-header", header),
        ("v1-second-epoch", continued.segments()),
    ]
}

fn load(name: &str) -> Files {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let mut files = Files::new();
    for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let entry = entry.unwrap();
        let Some(FileName::Segment(sequence)) = FileName::parse(entry.file_name().to_str().unwrap()) else {
            panic!("{:?} is no segment", entry.path());
        };
        files.push((sequence, fs::read(entry.path()).unwrap()));
    }
    files.sort();
    files
}

#[test]
fn the_present_version_still_writes_the_same_bytes() {
    for (name, files) in golden() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        if is_update() {
            drop(fs::remove_dir_all(&folder));
            fs::create_dir_all(&folder).unwrap();
            for (sequence, bytes) in &files {
                fs::write(folder.join(FileName::Segment(*sequence).to_string()), bytes).unwrap();
            }
        }
        let kept = load(name);
        assert_eq!(kept.len(), files.len(), "{name}");
        for ((sequence, bytes), (_, old)) in files.iter().zip(&kept) {
            let difference = bytes.iter().zip(old).position(|(a, b)| a != b);
            assert!(
                bytes == old,
                "{name}/{} differs at {difference:?}: a new format needs a new version",
                FileName::Segment(*sequence)
            );
        }
    }
}

#[test]
fn files_of_version_1_read_as_they_did() {
    let records = golden_records();
    let options = ReadOptions::default();
    let (found, end) = read(&load("v1-closed"), options);
    let end = end.unwrap();
    assert_eq!((found.as_slice(), end.tail, end.next_lsn), (records.as_slice(), Tail::Closed, Lsn(7)));
    let (found, end) = read(&load("v1-open"), options);
    assert_eq!(found, records);
    assert!(matches!(
        end.unwrap().tail,
        Tail::Open { found: Found::Zeros | Found::EndOfSegment, blocks_after: 0 }
    ));
    let (found, end) = read(&load("v1-torn"), options);
    assert_eq!(found, records[..5]);
    let end = end.unwrap();
    assert!(end.is_torn() && end.to_string().contains("LSN 6"), "{end}");
    let (found, end) = read(&load("v1-damaged-block"), options);
    let damage = end.unwrap_err();
    assert_eq!((found.len(), damage.kind, damage.offset), (0, DamageKind::Gap, 2 * 4096), "{damage}");
    assert!(damage.to_string().starts_with("log-0000000000000001.wal at offset 8192: expected"), "{damage}");
    let damage = read(&load("v1-damaged-header"), options).1.unwrap_err();
    assert_eq!((damage.kind, damage.file), (DamageKind::Header, FileName::Segment(Sequence(2))), "{damage}");
    let (found, end) = read(&load("v1-second-epoch"), options);
    assert_eq!(found[..4], records[..4]);
    assert_eq!(
        (found.len(), found[4].payload.as_slice(), end.unwrap().epoch),
        (5, b"SET d 4".as_slice(), Epoch(2))
    );
}

/// Seeds for the fuzzer: the golden logs in its own encoding, with their checksums and with those of the
/// blind ones.
#[test]
fn the_seeds_of_the_fuzzer_are_the_golden_logs() {
    let folder = repository().join("fuzz/corpus/log_reader");
    for (name, files) in golden() {
        let mut blind = files.clone();
        for (_, bytes) in &mut blind {
            bytes[12..16].fill(0);
            for page in bytes[4096..].chunks_mut(4096).filter(|page| page[..4] == BLOCK_MAGIC) {
                page[4..12].fill(0);
            }
        }
        for (files, how, suffix) in [(files, 5_u8, "checked"), (blind, 4, "blind")] {
            let mut seed = vec![how, 0, 0, 0];
            for (index, (_, bytes)) in files.iter().enumerate() {
                if index > 0 {
                    seed.push(u8::MAX);
                }
                for page in bytes.chunks(4096) {
                    let used = page.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
                    seed.push(1);
                    seed.extend_from_slice(&(used as u16).to_le_bytes());
                    seed.extend_from_slice(&page[..used]);
                }
            }
            let unpacked: Vec<Vec<u8>> = files.into_iter().map(|(_, bytes)| bytes).collect();
            assert!(wal::fuzz::files(&seed[4..]) == unpacked, "{name}: the encoding loses something");
            let path = folder.join(format!("{name}-{suffix}"));
            if is_update() {
                fs::create_dir_all(&folder).unwrap();
                fs::write(&path, &seed).unwrap();
            }
            assert!(fs::read(&path).is_ok_and(|kept| kept == seed), "{} is not up to date", path.display());
        }
    }
}
