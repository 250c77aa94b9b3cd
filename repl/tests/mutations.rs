//! Changed bytes to every decoder and to both machines: nothing panics, and nothing is accepted that was not
//! said.
//!
//! `MILLRACE_SEED=n` repeats a run, `MILLRACE_RUNS=n` makes more of them.

#[path = "simulation/random.rs"]
mod random;

use random::Random;
use repl::datagram::Datagram;
use repl::frame::{Frame, FrameReader};
use repl::fuzz::fuzz_replication;
use repl::lineage::{Branch, BranchId, Lineage};
use repl::secret::Secret;
use std::fs;
use std::path::Path;
use wal::checksum::Checksum;
use wal::lsn::{Epoch, Lsn};

/// Changed inputs in one test.
const RUNS: u64 = 60_000;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.trim().parse().unwrap_or_else(|_| panic!("{name}={text} is not a number below 2^64")))
}

fn folder(path: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<(String, Vec<u8>)> = entries
        .map(|entry| {
            let path = entry.unwrap().path();
            (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(path).unwrap())
        })
        .collect();
    files.sort();
    files
}

fn change(random: &mut Random, bytes: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..random.between(1, 4) {
        let length = bytes.len() as u64;
        let at = random.below(length.max(1)) as usize;
        match random.below(7) {
            0 if length > 0 => bytes[at] ^= 1 << random.below(8),
            1 if length > 0 => bytes[at] = *random.pick(&[0, 1, 0x7f, 0x80, 0xff]),
            2 => bytes.truncate(at),
            3 => drop(bytes.splice(at.min(bytes.len())..at.min(bytes.len()), other.iter().take(40).copied())),
            4 if length > 8 => {
                let at = at.min(bytes.len() - 8);
                let number = *random.pick(&[0, 1, u64::MAX, u64::MAX - 1, 1 << 32, 1 << 63]);
                bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
            }
            5 if length > 0 => drop(bytes.drain(at..(at + random.below(30) as usize).min(bytes.len()))),
            _ => bytes.extend_from_slice(&other[other.len() / 2..]),
        }
    }
}

#[test]
fn changed_bytes_never_panic() {
    let seed = number("MILLRACE_SEED").unwrap_or(20_261_122);
    println!("seed {seed}");
    let mut random = Random(seed);
    let seeds = folder("../fuzz/corpus/replication");
    assert!(seeds.len() > 20, "{} seeds", seeds.len());
    for _ in 0..number("MILLRACE_RUNS").unwrap_or(RUNS) {
        let mut input = random.pick(&seeds).1.clone();
        let other = random.pick(&seeds).1.clone();
        let (how, mut bytes) = (input[0], input.split_off(1));
        change(&mut random, &mut bytes, &other);
        let how = if random.chance(20) { random.below(256) as u8 } else { how };
        fuzz_replication(&[&[how], bytes.as_slice()].concat());
    }
}

fn frames(bytes: &[u8]) -> Vec<Frame> {
    let mut reader = FrameReader::new(Checksum::portable());
    reader.push(bytes);
    core::iter::from_fn(|| reader.next_frame().ok().flatten()).collect()
}

/// A frame, a datagram or a file that was changed is refused, or is what it was. (A CRC-32C tells all changes
/// of up to 32 bits in a row; no change of this test is told by luck alone.)
#[test]
fn changed_bytes_are_never_taken_for_something_else() {
    let seed = number("MILLRACE_SEED").unwrap_or(20_261_122);
    println!("seed {seed}");
    let mut random = Random(seed);
    let checksum = Checksum::portable();
    let branch = Branch { epoch: Epoch(5), id: BranchId(0x0c), first_lsn: Lsn(1000) };
    let key = Secret::new(b"golden").datagram_key(&[0x44; 16], branch);
    let (mut refused, mut same) = (0, 0);
    let golden = folder("tests/golden");
    for (name, bytes) in golden.iter().filter(|(name, _)| name.starts_with("v1")) {
        let whole = frames(bytes);
        for _ in 0..4000 {
            let mut changed = bytes.clone();
            change(&mut random, &mut changed, bytes);
            if name.ends_with(".stream") {
                let found = frames(&changed);
                // Whole frames may be left out or said twice: the machines know what comes when.
                assert!(found.iter().all(|frame| whole.contains(frame)), "{name}: {found:?}");
                refused += u64::from(found.len() < whole.len());
            } else if name.ends_with(".datagram") {
                let Ok(datagram) = Datagram::decode(&changed, checksum) else {
                    refused += 1;
                    continue;
                };
                let is_same = Datagram::decode(bytes, checksum).is_ok_and(|was| was.run == datagram.run);
                assert!(is_same || !datagram.is_authentic(&key), "{name}");
                same += u64::from(is_same);
            } else if let Ok(lineage) = Lineage::decode_file(&changed, checksum) {
                assert_eq!(Ok(lineage), Lineage::decode_file(bytes, checksum), "{name}");
                same += 1;
            } else {
                refused += 1;
            }
        }
    }
    assert!(refused > 30_000, "{refused} refused, {same} the same");
}
