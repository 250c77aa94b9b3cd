//! How fast a log is read back, in bytes and in records a second.
//!
//! `cargo run --release -p wal --example recovery_speed -- [MIB] [PAYLOAD_BYTES] [DIRECTORY]`
//!
//! Writes a log of MIB mebibytes (1024) with payloads of PAYLOAD_BYTES (80) into memory, or into files in
//! DIRECTORY, then recovers it five times with the CPU's checksum and once with the portable one. "Applying"
//! a record is adding up its first bytes: what is measured is the log, not the store.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::time::Instant;

use wal::checksum::Checksum;
use wal::group_commit::{GroupCommit, Settings, Start};
use wal::operation::{Action, Completion, Operation};
use wal::reader::{EndOfLog, HEAD_BYTES, LogReader, ReadOptions, SegmentFile};
use wal::record::Batch;
use wal::segment::FileName;

type Memory = BTreeMap<FileName, Vec<u8>>;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: usize| {
        arguments
            .next()
            .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{text} is not a number")))
    };
    let (mib, payload_bytes) = (number(1024), number(80));
    let directory = arguments.next().map(PathBuf::from);
    let fast = Checksum::lent(crc32c::crc32c_append).expect("crc32c computes CRC-32C");

    let begun = Instant::now();
    let files = write(mib << 20, payload_bytes, fast);
    let written: usize = files.values().map(Vec::len).sum();
    println!(
        "wrote {} segments, {:.2} GB, in {:.2} s (framing and checksums, no disk)",
        files.len(),
        written as f64 / 1e9,
        begun.elapsed().as_secs_f64()
    );
    if let Some(directory) = &directory {
        for (name, bytes) in &files {
            fs::write(directory.join(name.to_string()), bytes).expect("the directory is writable");
        }
    }
    for (name, checksum) in [("CPU", fast); 5].into_iter().chain([("portable", Checksum::portable())]) {
        let (begun, cpu_begun) = (Instant::now(), cpu_seconds());
        let (end, sum) = match &directory {
            None => recover(&files, checksum, |name, offset, bytes: &mut [u8]| {
                bytes.copy_from_slice(&files[&name][offset as usize..][..bytes.len()]);
            }),
            Some(directory) => recover(&files, checksum, |name, offset, bytes: &mut [u8]| {
                let mut file = File::open(directory.join(name.to_string())).expect("it was written");
                file.seek(SeekFrom::Start(offset)).expect("a file can seek");
                file.read_exact(bytes).expect("it has its length");
            }),
        };
        let (seconds, cpu) = (begun.elapsed().as_secs_f64(), cpu_seconds() - cpu_begun);
        let (gigabytes, millions) = (end.bytes_read as f64 / 1e9, end.records as f64 / 1e6);
        println!(
            "checksum {name}: {} records, {gigabytes:.2} GB in {seconds:.3} s: {:.2} GB/s, {:.1} million records/s; \
             {cpu:.3} s of CPU: {:.2} GB/s, {:.1} million records/s (sum {sum:x})",
            end.records,
            gigabytes / seconds,
            millions / seconds,
            gigabytes / cpu,
            millions / cpu,
        );
    }
    if let Some(directory) = &directory {
        for name in files.keys() {
            fs::remove_file(directory.join(name.to_string())).expect("it was written");
        }
    }
}

/// What this process has used of a core: on a busy machine the better figure.
fn cpu_seconds() -> f64 {
    let text = fs::read_to_string("/proc/self/schedstat").expect("Linux says how long a process has run");
    let nanoseconds = text.split_whitespace().next().and_then(|word| word.parse::<u64>().ok());
    nanoseconds.expect("a number of nanoseconds") as f64 / 1e9
}

/// A log as a busy server leaves it: each turn hands over what a hundred connections asked for.
fn write(bytes: usize, payload_bytes: usize, checksum: Checksum) -> Memory {
    let mut files = Memory::new();
    let mut log = GroupCommit::new(Settings::default(), &Start::empty(1), checksum);
    let mut batch = Batch::new();
    let payload: Vec<u8> = (0..payload_bytes).map(|index| index as u8).collect();
    for _ in 0..100 {
        batch.push(&payload);
    }
    while log.counters().block_bytes < bytes as u64 {
        // Blocks fill while one is being written: some twenty turns.
        for _ in 0..20 {
            if log.append_batch(&batch, log.appended_lsn().0).is_err() {
                break;
            }
        }
        while let Some(operation) = log.poll_operation() {
            let completion = perform(&mut files, operation);
            log.handle_completion(completion);
        }
    }
    log.close();
    while let Some(operation) = log.poll_operation() {
        let completion = perform(&mut files, operation);
        log.handle_completion(completion);
    }
    assert!(log.is_closed());
    files.retain(|name, _| matches!(name, FileName::Segment(_)));
    files
}

fn perform(files: &mut Memory, operation: Operation) -> Completion {
    let mut completion = Completion { id: operation.id, result: Ok(0), buffer: None };
    match operation.action {
        Action::Create { file } => drop(files.insert(file, Vec::new())),
        Action::Reserve { file, length } => files.get_mut(&file).expect("created").resize(length as usize, 0),
        Action::Write { file, offset, buffer, start, .. } => {
            let bytes = &buffer.as_slice()[start..];
            files.get_mut(&file).expect("created")[offset as usize..][..bytes.len()].copy_from_slice(bytes);
            completion.result = Ok(bytes.len());
            completion.buffer = Some(buffer);
        }
        Action::Rename { from, to } => {
            let bytes = files.remove(&from).expect("created");
            files.insert(to, bytes);
        }
        Action::Delete { file } => drop(files.remove(&file)),
        Action::WriteZeros { .. } | Action::Flush { .. } | Action::FlushDirectory | Action::Close { .. } => {}
    }
    completion
}

fn recover(
    files: &Memory,
    checksum: Checksum,
    mut read: impl FnMut(FileName, u64, &mut [u8]),
) -> (EndOfLog, u64) {
    let mut heads = Vec::new();
    for (&name, bytes) in files {
        let mut head = vec![0; HEAD_BYTES];
        read(name, 0, &mut head);
        let FileName::Segment(sequence) = name else { unreachable!("only segments are kept") };
        heads.push((sequence, bytes.len() as u64, head));
    }
    let heads: Vec<SegmentFile<'_>> = heads
        .iter()
        .map(|(sequence, length, head)| SegmentFile { sequence: *sequence, length: *length, head })
        .collect();
    let mut reader = LogReader::open(&heads, ReadOptions::default(), checksum).expect("the log is fine");
    let (mut sum, mut memory) = (0_u64, Vec::new());
    loop {
        while let Some(record) = reader.next_record().expect("the log is fine") {
            let word = record.payload.first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes));
            sum = sum.wrapping_add(word ^ record.lsn.0);
        }
        let Some(request) = reader.poll_read() else { break };
        memory.resize(request.length, 0);
        read(FileName::Segment(request.sequence), request.offset, &mut memory);
        memory = reader.handle_read(memory);
    }
    (reader.end().expect("it was read").clone(), sum)
}
