//! What a reader makes of bytes that are not what was written: changed data is never served.

mod disk;

use disk::{Disk, Owned, assert_same, checksum, read, reader};
use wal::damage::DamageKind;
use wal::group_commit::{GroupCommit, Settings, Start};
use wal::lsn::{Epoch, Lsn};
use wal::operation::{Action, Completion};
use wal::reader::{Found, ReadOptions, Tail, Until};
use wal::record::Batch;
use wal::segment::{FileName, SegmentHeader, Sequence};

fn settings() -> Settings {
    Settings {
        segment_bytes: 10 * 4096,
        block_bytes_max: 8192,
        pending_bytes_max: 1 << 20,
        append_bytes_max: 1024,
        ..Settings::default()
    }
}

/// Ten records in two segments, one of them longer than a block, each acknowledged before the next is
/// appended.
fn small_log(close: bool) -> (Disk, GroupCommit, Vec<Owned>) {
    let mut disk = Disk::new(1);
    let mut log = GroupCommit::new(settings(), &Start::empty(7), checksum());
    disk.settle(&mut log);
    let mut records = Vec::new();
    for number in 0..10_u8 {
        let length = if number == 4 { 9000 } else { 20 + usize::from(number) };
        let record = Owned {
            lsn: u64::from(number) + 1,
            unix_us: 1000 + u64::from(number),
            payload: vec![number; length],
        };
        log.append(&record.payload, record.unix_us).unwrap();
        disk.settle(&mut log);
        assert_eq!(log.durable_lsn().0, record.lsn);
        records.push(record);
    }
    if close {
        log.close();
        disk.settle(&mut log);
        assert!(log.is_closed());
    }
    (disk, log, records)
}

fn begun(files: &[(Sequence, Vec<u8>)]) -> usize {
    files.iter().filter(|(_, bytes)| bytes[4096..4100] == *b"MRLB").count()
}

#[test]
fn a_log_reads_back() {
    let (disk, _, records) = small_log(true);
    let files = disk.segments();
    assert!(begun(&files) == 2 && files.len() > 2, "two segments and some prepared");
    for chunk_bytes in [1, 4096, 9000, 1 << 20] {
        let (found, end) = read(&files, ReadOptions { chunk_bytes, ..ReadOptions::default() });
        let end = end.unwrap();
        assert_eq!(found, records);
        assert_eq!((end.tail.clone(), end.next_lsn, end.records), (Tail::Closed, Lsn(11), 10));
        assert_eq!((end.last_unix_us, end.epoch), (1009, Epoch::FIRST));
        assert!(end.to_string().contains("before LSN 11") && end.to_string().contains("closed"), "{end}");
    }
    // Files in any order, and from any record on.
    let reversed: Vec<_> = files.iter().cloned().rev().collect();
    for from in 1..=12 {
        let (found, end) = read(&reversed, ReadOptions { from: Lsn(from), ..ReadOptions::default() });
        assert_eq!(found, records[(from as usize - 1).min(10)..], "from {from}");
        assert_eq!(end.unwrap().next_lsn, Lsn(from.max(11)));
        assert_same(&reversed, ReadOptions { from: Lsn(from), ..ReadOptions::default() });
    }
    for last in 1..=10_u64 {
        let expected = &records[..last as usize];
        let (found, end) =
            read(&files, ReadOptions { until: Until::Lsn(Lsn(last)), ..ReadOptions::default() });
        assert_eq!(found, expected);
        assert_eq!(end.unwrap().tail, Tail::Until);
        let until = Until::UnixMicros(999 + last);
        let (found, end) = read(&files, ReadOptions { until, ..ReadOptions::default() });
        assert_eq!(found, expected);
        assert_eq!(end.unwrap().next_lsn, Lsn(last + 1));
    }
}

/// Of a log that was closed every byte counts: a change to it is refused, or it changes nothing.
#[test]
fn every_flipped_byte_of_a_closed_log_is_detected() {
    let (disk, _, records) = small_log(true);
    let files = disk.segments();
    let last_used = 4096 * files[1].1.chunks(4096).rposition(|page| page[..4] == *b"MRLB").unwrap();
    let (mut refused, mut harmless) = (0, 0);
    for (index, (sequence, bytes)) in files.iter().enumerate() {
        for at in 0..bytes.len() {
            // Every byte that was written, and some of those that were not.
            let is_written = bytes[at / 4096 * 4096..][..4096].iter().any(|&byte| byte != 0);
            if !is_written && !at.is_multiple_of(61) {
                continue;
            }
            let mut files = files.clone();
            files[index].1[at] ^= 1 << (at % 8);
            let (found, end) = read(&files, ReadOptions::default());
            if at.is_multiple_of(7) {
                assert_same(&files, ReadOptions::default());
            }
            match end {
                Err(damage) => {
                    refused += 1;
                    assert!(records.starts_with(&found), "changed data before the refusal");
                    assert_eq!(damage.file, FileName::Segment(*sequence), "byte {at}: {damage}");
                    assert!(
                        damage.offset <= at as u64 && at as u64 - damage.offset < 12_288,
                        "byte {at}: {damage}"
                    );
                    assert!(damage.to_string().contains("expected"), "{damage}");
                }
                Ok(end) => {
                    harmless += 1;
                    assert_eq!(found, records, "{sequence:?} byte {at}: served or cut");
                    // Nothing is behind it: the block that says the log was closed, and pages never written.
                    let unused = index == 1 && at >= last_used || index > 1 && at >= 4096;
                    let unused = unused || index == 0 && at >= end_of_blocks(&files[0].1);
                    assert!(unused, "{sequence:?} byte {at} of a block passed: {end}");
                }
            }
        }
    }
    assert!(refused > 10 * 4096 && harmless > 0, "{refused} refused, {harmless} harmless");
}

fn end_of_blocks(bytes: &[u8]) -> usize {
    let mut at = 4096;
    while bytes.get(at..at + 4) == Some(b"MRLB") {
        at += u32::from_le_bytes(bytes[at + 12..at + 16].try_into().unwrap()) as usize;
    }
    at
}

/// Of a log that was killed the last block may be a torn write: cutting it is right, serving it changed
/// never.
#[test]
fn a_flipped_byte_of_an_open_log_is_cut_at_its_end_and_refused_before() {
    let (disk, _, records) = small_log(false);
    let files = disk.segments();
    let last_block = end_of_blocks(&files[1].1) - 4096;
    for (index, (sequence, bytes)) in files.iter().enumerate() {
        for at in (0..bytes.len()).step_by(3) {
            let mut files = files.clone();
            files[index].1[at] ^= 0x10;
            let (found, end) = read(&files, ReadOptions::default());
            assert!(records.starts_with(&found), "changed data");
            if let Ok(end) = end
                && found.len() < records.len()
            {
                assert!(
                    index == 1 && (last_block..last_block + 4096).contains(&at),
                    "{sequence:?} byte {at}: {end}"
                );
                assert_eq!(found.len(), 9);
                // With the knowledge that it was durable it is damage.
                let options = ReadOptions { durable_at_least: Lsn(10), ..ReadOptions::default() };
                assert_eq!(read(&files, options).1.unwrap_err().kind, DamageKind::Gap);
            }
        }
    }
}

/// A file shorter than its header says was never so: segments get their names with their full length.
#[test]
fn a_log_cut_at_any_byte_is_refused() {
    let (disk, _, records) = small_log(true);
    let files = disk.segments();
    for (index, (sequence, bytes)) in files.iter().enumerate() {
        for length in 0..bytes.len() {
            let mut slices: Vec<_> = files.iter().map(|file| (file.0, file.1.as_slice())).collect();
            slices[index].1 = &bytes[..length];
            let (options, checksum) = (ReadOptions::default(), checksum());
            let damage = wal::reader::read_all(&slices, options, checksum, |_| panic!("served")).unwrap_err();
            assert_eq!(
                (damage.file, damage.kind),
                (FileName::Segment(*sequence), DamageKind::Length),
                "{damage}"
            );
            assert_eq!(damage.offset, length as u64);
        }
    }
    // A missing file is a gap, unless it is the last, or one that holds no block.
    for index in 0..files.len() {
        let mut files = files.clone();
        files.remove(index);
        let (found, end) = read(&files, ReadOptions::default());
        match index {
            0 => assert_eq!(end.unwrap_err().kind, DamageKind::Gap),
            1 => {
                assert!(records.starts_with(&found) && end.unwrap().next_lsn.0 == found.len() as u64 + 1);
                let options = ReadOptions { durable_at_least: Lsn(10), ..ReadOptions::default() };
                assert_eq!(read(&files, options).1.unwrap_err().kind, DamageKind::Gap);
            }
            _ => assert_eq!(found, records),
        }
    }
}

/// The other way to end early: sectors that were never written. One writer, one write in flight: everything
/// before the cut that was durable when the last valid block was written must be there, the rest is a torn
/// tail.
#[test]
fn a_log_whose_tail_was_never_written_is_cut() {
    let (disk, _, records) = small_log(false);
    let files = disk.segments();
    let used = end_of_blocks(&files[1].1);
    let mut ends = Vec::new();
    for length in 4096..=used {
        let mut files = files.clone();
        files[1].1[length..].fill(0);
        let (found, end) = read(&files, ReadOptions::default());
        let end = end.unwrap_or_else(|damage| panic!("{length}: {damage}"));
        assert!(records.starts_with(&found));
        assert_eq!(end.next_lsn.0, found.len() as u64 + 1);
        let torn = matches!(end.tail, Tail::Open { found: Found::TornBlock { .. }, .. });
        assert_eq!(end.is_torn(), torn);
        ends.push((found.len(), torn));
    }
    assert_eq!(ends.last(), Some(&(10, false)));
    assert!(ends.is_sorted_by_key(|end| end.0), "a longer file gives fewer records");
    assert!(ends.iter().any(|end| end.1), "no torn block was met");
    // A hole with a block behind it that says that the hole was durable.
    for at in (4096..used - 4096).step_by(512) {
        let mut files = files.clone();
        let before = files[1].1[at..at + 512].to_vec();
        files[1].1[at..at + 512].fill(0);
        if before == files[1].1[at..at + 512] {
            continue;
        }
        let damage = read(&files, ReadOptions::default()).1.unwrap_err();
        assert_eq!(damage.kind, DamageKind::Block, "{at}: {damage}");
        assert!(damage.to_string().contains("durable"), "{damage}");
    }
}

/// Two blocks in flight, the second arrives, the first does not: neither was acknowledged, and both are cut.
#[test]
fn a_block_written_ahead_of_a_lost_one_is_cut() {
    let mut disk = Disk::new(1);
    let settings = Settings { writes_in_flight_max: 2, ..settings() };
    let mut log = GroupCommit::new(settings, &Start::empty(7), checksum());
    disk.settle(&mut log);
    log.append(b"safe", 1).unwrap();
    disk.settle(&mut log);
    let mut held = Vec::new();
    for payload in [b"lost", b"late"] {
        log.append(payload, 2).unwrap();
        held.push(log.poll_operation().expect("a block"));
    }
    let second = held.pop().unwrap();
    disk.submit(second);
    disk.complete_one(&mut log);
    assert_eq!((log.durable_lsn(), log.appended_lsn()), (Lsn(1), Lsn(3)), "only the prefix counts");
    let (found, end) = read(&disk.segments(), ReadOptions::default());
    let end = end.unwrap();
    assert_eq!((found.len(), end.next_lsn), (1, Lsn(2)));
    assert_eq!(end.tail, Tail::Open { found: Found::Zeros, blocks_after: 1 });
    assert!(end.is_torn() && end.to_string().contains("1 blocks"), "{end}");
    // The log goes on with other records under these numbers, in a new segment, and the old blocks stay where
    // they are.
    let mut log = GroupCommit::new(settings, &end.start(&disk.spares(), 8), checksum());
    disk.settle(&mut log);
    log.append(b"anew", 3).unwrap();
    disk.settle(&mut log);
    let (found, end) = read(&disk.segments(), ReadOptions::default());
    let payloads: Vec<_> = found.iter().map(|record| record.payload.as_slice()).collect();
    assert_eq!(payloads, [b"safe", b"anew"]);
    assert_eq!(end.unwrap().next_lsn, Lsn(3));
}

/// A segment is used again: what it held before is no part of the log, though every old block was valid.
#[test]
fn stale_blocks_of_a_recycled_segment_are_not_read() {
    let mut disk = Disk::new(1);
    let mut log = GroupCommit::new(settings(), &Start::empty(7), checksum());
    disk.settle(&mut log);
    let mut number = 0_u64;
    while log.segment_counters().recycled < 3 {
        number += 1;
        log.append(&number.to_le_bytes(), number).unwrap();
        disk.settle(&mut log);
        log.release(Lsn(number));
        disk.settle(&mut log);
    }
    let files = disk.segments();
    let stale = files
        .iter()
        .flat_map(|(_, bytes)| bytes[4096..].chunks(4096))
        .filter(|page| page[..4] == *b"MRLB")
        .count();
    let first = number - 3;
    let (found, end) = read(&files, ReadOptions { from: Lsn(first), ..ReadOptions::default() });
    let end = end.unwrap();
    assert_eq!(found.len(), 4);
    assert!(found.iter().all(|record| record.payload == record.lsn.to_le_bytes()));
    assert!(stale > end.blocks as usize, "no stale block was left to be met");
    assert!(log.segment_counters().created <= 3, "{:?}", log.segment_counters());
}

#[test]
fn what_follows_a_point_in_time_does_not_come_back() {
    let (mut disk, _, records) = small_log(true);
    let until = Until::Lsn(Lsn(6));
    let (_, end) = read(&disk.segments(), ReadOptions { until, ..ReadOptions::default() });
    let start = end.unwrap().start(&disk.spares(), 99);
    assert_eq!((start.epoch, start.epoch_first_lsn, start.next_lsn), (Epoch(2), Lsn(7), Lsn(7)));
    let mut log = GroupCommit::new(settings(), &start, checksum());
    disk.settle(&mut log);
    let options = ReadOptions::default();
    let (found, end) = read(&disk.segments(), options);
    assert_eq!(found, records[..6]);
    assert_eq!((end.as_ref().unwrap().next_lsn, end.unwrap().epoch), (Lsn(7), Epoch(2)));
    log.append(b"another", 2000).unwrap();
    disk.settle(&mut log);
    let (found, _) = read(&disk.segments(), options);
    assert_eq!(found[..6], records[..6]);
    assert_eq!((found.len(), found[6].payload.as_slice()), (7, b"another".as_slice()));
    // The segments of the abandoned end are let go like others.
    log.release(Lsn(8));
    disk.settle(&mut log);
    assert_eq!(log.segments().count(), 1);
    let (found, _) = read(&disk.segments(), ReadOptions { from: Lsn(8), ..options });
    assert!(found.is_empty());
}

#[test]
fn a_damaged_log_can_be_cut_on_purpose() {
    let (mut disk, _, records) = small_log(true);
    let mut files = disk.segments();
    files[0].1[4096 + 3 * 4096 + 70] ^= 1;
    let mut reader = reader(&files, ReadOptions::default());
    let damage = loop {
        match reader.next_record() {
            Ok(Some(_)) => {}
            Ok(None) => {
                let request = reader.poll_read().expect("it does not end");
                let bytes = &files.iter().find(|file| file.0 == request.sequence).unwrap().1;
                reader.handle_read(bytes[request.offset as usize..][..request.length].to_vec());
            }
            Err(damage) => break damage,
        }
    };
    assert_eq!(reader.next_record(), Err(damage.clone()), "it stays damaged");
    let end = reader.cut_at_damage().unwrap();
    assert_eq!(end.next_lsn, damage.intact_before);
    let mut log = GroupCommit::new(settings(), &end.start(&disk.spares(), 3), checksum());
    disk.settle(&mut log);
    let (found, end) = read(&disk.segments(), ReadOptions::default());
    assert_eq!(found, records[..damage.intact_before.0 as usize - 1]);
    assert_eq!(end.unwrap().epoch, Epoch(2));
}

#[test]
fn headers_that_contradict_each_other_are_refused() {
    let checksum = checksum();
    let file = |sequence: u64, epoch: u64, first: u64| {
        let header = SegmentHeader {
            uid: sequence,
            sequence: Sequence(sequence),
            length: 8192,
            epoch: Epoch(epoch),
            epoch_first_lsn: Lsn(first),
        };
        let mut bytes = header.encode(checksum).as_slice().to_vec();
        bytes.resize(8192, 0);
        (Sequence(sequence), bytes)
    };
    let refused = |files: &[(Sequence, Vec<u8>)]| read(files, ReadOptions::default()).1.unwrap_err();
    assert_eq!(refused(&[file(1, 1, 1), file(1, 1, 1)]).kind, DamageKind::Order);
    assert_eq!(refused(&[file(1, 2, 1), file(2, 1, 1)]).kind, DamageKind::Order);
    assert_eq!(refused(&[file(1, 1, 1), file(2, 1, 2)]).kind, DamageKind::Order);
    assert_eq!(refused(&[(Sequence(2), file(1, 1, 1).1)]).kind, DamageKind::Order);
    assert_eq!(refused(&[file(1, 1, 1), file(2, 2, 5)]).kind, DamageKind::Gap, "LSN 1 to 4 are nowhere");
    assert!(read(&[file(1, 1, 1), file(3, 1, 1)], ReadOptions::default()).1.is_ok());
    let mut later = file(1, 1, 1).1;
    later[8] = 2;
    let crc = checksum.continued(checksum.of(&later[..12]), &later[16..4096]);
    later[12..16].copy_from_slice(&crc.to_le_bytes());
    let damage = refused(&[(Sequence(1), later)]);
    assert_eq!(damage.kind, DamageKind::Version);
    assert!(damage.to_string().contains("version 2") && !damage.to_string().contains("repair"), "{damage}");
}

/// An empty block in the wrong place, a record under a wrong number: checksums are right, and it is refused
/// all the same.
#[test]
fn valid_blocks_in_the_wrong_order_are_refused() {
    let mut disk = Disk::new(1);
    let mut log = GroupCommit::new(settings(), &Start::empty(7), checksum());
    disk.settle(&mut log);
    log.append(b"one", 1).unwrap();
    disk.settle(&mut log);
    // A second writer that wrongly begins with the same number under the same uid, one block further on.
    let mut other_disk = Disk::new(1);
    let start = Start { next_lsn: Lsn(3), ..Start::empty(7) };
    let mut other = GroupCommit::new(settings(), &start, checksum());
    other_disk.settle(&mut other);
    other.append(b"four", 1).unwrap();
    other_disk.settle(&mut other);
    other.append(b"five", 1).unwrap();
    other_disk.settle(&mut other);
    let mut files = disk.segments();
    let from = &other_disk.segments()[0].1;
    files[0].1[3 * 4096..4 * 4096].copy_from_slice(&from[3 * 4096..4 * 4096]);
    let damage = read(&files, ReadOptions::default()).1.unwrap_err();
    assert_eq!((damage.kind, damage.offset), (DamageKind::Inconsistent, 3 * 4096), "{damage}");
    // And the same block one place too early, as a disk that writes to the wrong sector has it: no valid
    // block.
    let mut files = disk.segments();
    files[0].1[3 * 4096..4 * 4096].copy_from_slice(&from[2 * 4096..3 * 4096]);
    let end = read(&files, ReadOptions::default()).1.unwrap();
    assert_eq!(end.next_lsn, Lsn(2));
}

/// A replica is sent what is durable from the files of a log that goes on: what follows is not even looked at.
#[test]
fn a_log_that_is_being_written_is_read_up_to_its_durable_end() {
    let (disk, log, records) = small_log(false);
    let mut files = disk.segments();
    let end = end_of_blocks(&files[1].1);
    // Half of a block on its way, and one behind it that was written later than the first was read.
    files[1].1[end..end + 4096].fill(0xee);
    let until = Until::Lsn(log.durable_lsn());
    let (found, end) = read(&files, ReadOptions { until, ..ReadOptions::default() });
    assert_eq!((found, end.unwrap().tail), (records, Tail::Until));
}

/// Blocks that complete no record are durable before the next is written, too: their loss is damage although no LSN
/// says so, or an acknowledged record behind them would be cut.
#[test]
fn a_lost_block_without_a_record_of_its_own_is_damage() {
    let mut disk = Disk::new(1);
    let mut log = GroupCommit::new(settings(), &Start::empty(7), checksum());
    disk.settle(&mut log);
    log.append(&[9; 12_000], 1).unwrap();
    disk.settle(&mut log);
    assert_eq!(log.durable_lsn(), Lsn(1));
    let files = disk.segments();
    // The mark of the start, and the first of the two blocks of the only record.
    for at in [4096, 8192, 8192 + 4096] {
        let mut files = files.clone();
        files[0].1[at + 100] ^= 1;
        let damage = read(&files, ReadOptions::default()).1.unwrap_err();
        assert_eq!((damage.kind, damage.intact_before), (DamageKind::Block, Lsn(1)), "{damage}");
    }
}

/// The first block of a segment is lost in flight, the one behind it arrived: it says that everything in the segment
/// before was durable, and nothing of its own segment.
#[test]
fn a_segment_is_known_to_be_durable_by_what_stands_in_the_next() {
    let mut disk = Disk::new(1);
    let settings = Settings { writes_in_flight_max: 2, ..settings() };
    let mut log = GroupCommit::new(settings, &Start::empty(7), checksum());
    disk.settle(&mut log);
    let mut last = 0;
    let lost = loop {
        last += 1;
        log.append(b"record", last).unwrap();
        let operation = log.poll_operation().expect("a block");
        if matches!(operation.action, Action::Write { file: FileName::Segment(Sequence(2)), .. }) {
            break operation;
        }
        disk.submit(operation);
        disk.complete_one(&mut log);
    };
    log.append(b"ahead", last).unwrap();
    let ahead = log.poll_operation().expect("another block");
    disk.submit(ahead);
    disk.complete_one(&mut log);
    drop(lost);
    let files = disk.segments();
    let (found, end) = read(&files, ReadOptions::default());
    let Tail::Open { blocks_after: 1, .. } = end.unwrap().tail else { panic!("no torn tail") };
    assert_eq!((found.len() as u64, log.durable_lsn()), (last - 1, Lsn(last - 1)));
    let mut damaged = files;
    let last_block = end_of_blocks(&damaged[0].1) - 4096;
    damaged[0].1[last_block + 70] ^= 1;
    let damage = read(&damaged, ReadOptions::default()).1.unwrap_err();
    assert_eq!((damage.kind, damage.file), (DamageKind::Block, FileName::Segment(Sequence(1))), "{damage}");
    assert_eq!((damage.offset, damage.intact_before), (last_block as u64, Lsn(last - 1)));
}

/// What the edge hands back must fit what was asked for.
#[test]
fn a_read_that_comes_back_short_is_refused() {
    let (disk, _, _) = small_log(true);
    let mut reader = reader(&disk.segments(), ReadOptions::default());
    assert_eq!(reader.next_record(), Ok(None));
    assert!(reader.poll_read().is_some());
    reader.handle_read(vec![0; 4096]);
    assert_eq!(reader.next_record().unwrap_err().kind, DamageKind::Length);
}

#[test]
fn a_batch_is_one_sequence_of_numbers() {
    let (mut disk, mut log, _) = small_log(false);
    let mut batch = Batch::new();
    for number in 0..1000_u32 {
        batch.push(&number.to_le_bytes());
    }
    assert_eq!(log.append_batch(&batch, 5), Ok(Lsn(1010)));
    assert_eq!(log.append_batch(&Batch::new(), 5), Ok(Lsn(1010)), "nothing to wait for");
    assert_eq!(log.append(b"next", 5), Ok(Lsn(1011)));
    disk.settle(&mut log);
    let (found, end) = read(&disk.segments(), ReadOptions::default());
    assert_eq!(end.unwrap().next_lsn, Lsn(1012));
    assert!(
        found[10..1010].iter().zip(0_u32..).all(|(record, number)| record.payload == number.to_le_bytes())
    );
    assert!(found[10..].iter().all(|record| record.unix_us == 1009), "time does not go back");
}

/// Completions of foreign operations are bugs of the edge, and stop the process.
#[test]
#[should_panic(expected = "not in flight")]
fn an_operation_completes_once() {
    let mut disk = Disk::new(1);
    let mut log = GroupCommit::new(settings(), &Start::empty(7), checksum());
    disk.settle(&mut log);
    log.append(b"one", 1).unwrap();
    let operation = log.poll_operation().unwrap();
    let id = operation.id;
    let Action::Write { buffer, .. } = operation.action else { panic!("{operation:?}") };
    let length = buffer.as_slice().len();
    log.handle_completion(Completion { id, result: Ok(length), buffer: Some(buffer) });
    log.handle_completion(Completion { id, result: Ok(length), buffer: None });
}
