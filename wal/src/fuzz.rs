//! What the target in `fuzz/` calls: files of arbitrary bytes, read as a log.
//!
//! The input says how to read and then describes files in few bytes, so that a fuzzer can reach far into a
//! segment: see [`files`]. Half of the inputs are read with a checksum that is always 0, since no fuzzer
//! guesses a right one. Nothing may panic, records must come in order without a gap, and the size of chunks
//! must not matter.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::block::PAGE_BYTES;
use crate::checksum::Checksum;
use crate::lsn::Lsn;
use crate::reader::{EndOfLog, ReadOptions, Until, read_all};
use crate::segment::Sequence;

/// More than this for one input is not made.
const FILES_MAX: usize = 4;
const FILE_BYTES_MAX: usize = 1 << 20;

/// Reads one input as a log.
pub fn fuzz_log_reader(input: &[u8]) {
    let Some((&[how, chunk, from, until], rest)) = input.split_first_chunk::<4>() else { return };
    let checksum = if how & 1 == 0 { Checksum::blind() } else { Checksum::portable() };
    let until = match how >> 1 & 3 {
        0 => Until::Lsn(Lsn(u64::from(until))),
        1 => Until::UnixMicros(u64::from(until)),
        _ => Until::End,
    };
    let options = ReadOptions {
        from: Lsn(u64::from(from).max(1)),
        until,
        durable_at_least: Lsn(u64::from(how >> 4)),
        chunk_bytes: PAGE_BYTES,
        may_read_heads: how & 8 != 0,
    };
    let files = files(rest);
    let (small, end) = read(&files, options, checksum);
    let chunk_bytes = PAGE_BYTES * (1 + usize::from(chunk));
    let (large, other_end) = read(&files, ReadOptions { chunk_bytes, ..options }, checksum);
    assert!(small == large, "chunks of {chunk_bytes} bytes give other records");
    let comparable = |end: Result<EndOfLog, String>| end.map(|end| EndOfLog { bytes_read: 0, ..end });
    assert_eq!(comparable(end), comparable(other_end));
}

fn read(
    files: &[Vec<u8>],
    options: ReadOptions,
    checksum: Checksum,
) -> (Vec<Vec<u8>>, Result<EndOfLog, String>) {
    let numbered: Vec<(Sequence, &[u8])> =
        files.iter().zip(1..).map(|(bytes, number)| (Sequence(number), bytes.as_slice())).collect();
    let mut records = Vec::new();
    let mut last_lsn = options.from.previous();
    let end = read_all(&numbered, options, checksum, |record| {
        assert_eq!(record.lsn, last_lsn.next(), "a gap");
        if let Until::UnixMicros(until) = options.until {
            assert!(record.unix_us <= until, "a record of a later time");
        }
        last_lsn = record.lsn;
        records.push(record.payload.to_vec());
    });
    match &end {
        Ok(end) => assert!(end.next_lsn == last_lsn.next() && end.records == records.len() as u64, "{end:?}"),
        Err(damage) => assert!(damage.to_string().contains("expected"), "{damage}"),
    }
    (records, end.map_err(|damage| damage.to_string()))
}

/// Files from a description: a page count, a length of two bytes, and so many bytes to begin those pages
/// with; zeros fill them. A page count of 255 begins the next file.
pub fn files(mut description: &[u8]) -> Vec<Vec<u8>> {
    let mut files = Vec::from([Vec::new()]);
    while let Some((&[pages, low, high], rest)) = description.split_first_chunk::<3>() {
        if pages == u8::MAX {
            if files.len() == FILES_MAX {
                break;
            }
            files.push(Vec::new());
            description = &description[1..];
            continue;
        }
        let (bytes, rest) = rest.split_at(rest.len().min(usize::from(u16::from_le_bytes([low, high]))));
        let file = files.last_mut().expect("there is always one");
        let length = (usize::from(pages) * PAGE_BYTES).max(bytes.len()).next_multiple_of(PAGE_BYTES);
        if file.len() + length > FILE_BYTES_MAX {
            break;
        }
        let end = file.len() + length;
        file.extend_from_slice(bytes);
        file.resize(end, 0);
        description = rest;
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The target needs a nightly compiler and is not built by CI; its function and seeds are kept alive
    /// here.
    #[test]
    fn the_seed_corpus_passes() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/log_reader");
        let mut seeds = 0;
        for entry in
            std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        {
            let seed = std::fs::read(entry.unwrap().path()).unwrap();
            for first in 0..=u8::MAX {
                let mut input = seed.clone();
                input[0] = first;
                fuzz_log_reader(&input);
            }
            // And with every byte changed, which is what a fuzzer begins with.
            for at in 0..seed.len().min(600) {
                let mut input = seed.clone();
                input[at] ^= 1 << (at % 8);
                fuzz_log_reader(&input);
            }
            seeds += 1;
        }
        assert!(seeds >= 5, "only {seeds} seeds in {}", folder.display());
    }
}
