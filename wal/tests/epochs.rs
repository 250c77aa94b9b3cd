//! What keeps a dropped history from coming back: a segment of the epoch that dropped it, whenever the power fails.
//!
//! A history is dropped by the header of a segment: records of lower epochs do not count from its `epoch_first_lsn` on. So
//! such a segment may go only when another says the same. Here the process ends after each operation in turn.

mod disk;

use disk::{Disk, Kind, Owned, checksum, kind, read};
use wal::block::BlockHeader;
use wal::group_commit::{GroupCommit, Settings, Start};
use wal::lsn::{Epoch, Lsn};
use wal::operation::Errno;
use wal::reader::{EndOfLog, ReadOptions, Until};
use wal::segment::{FIRST_BLOCK_OFFSET, SegmentHeader};

/// More operations than any writer here has to do.
const STEPS: usize = 60;

fn settings() -> Settings {
    Settings {
        segment_bytes: 16 * 4096,
        first_segment_bytes: 16 * 4096,
        block_bytes_max: 8192,
        pending_bytes_max: 256 << 10,
        append_bytes_max: 1024,
        ..Settings::default()
    }
}

/// The log as a start finds it, behind a snapshot that holds what is before `from`.
fn found(disk: &Disk, from: u64) -> (Vec<Owned>, EndOfLog) {
    let (records, end) = read(&disk.segments(), ReadOptions { from: Lsn(from), ..ReadOptions::default() });
    (records, end.unwrap_or_else(|damage| panic!("the start is refused: {damage}")))
}

fn go_on(disk: &Disk, end: &EndOfLog, uid_seed: u64) -> GroupCommit {
    GroupCommit::new(settings(), &end.start(&disk.spares(), uid_seed), checksum())
}

/// So many operations, and then the process ends: what the system was told to keep, it keeps.
fn end_after(disk: &mut Disk, log: &mut GroupCommit, steps: usize) {
    for _ in 0..steps {
        disk.take_operations(log);
        disk.complete_one(log);
    }
    disk.kill();
}

/// Twenty records, of which the last ten are left out, as `--recover-to` does. The writer of the new epoch has done nothing yet.
fn gone_back() -> (Disk, GroupCommit) {
    let mut disk = Disk::new(1);
    let mut log = GroupCommit::new(settings(), &Start::empty(7), checksum());
    disk.settle(&mut log);
    for number in 1..=20 {
        log.append(&[number], u64::from(number)).unwrap();
    }
    disk.settle(&mut log);
    disk.kill();
    let until = Until::Lsn(Lsn(10));
    let (_, end) = read(&disk.segments(), ReadOptions { until, ..ReadOptions::default() });
    let log = go_on(&disk, &end.unwrap(), 8);
    (disk, log)
}

/// Segments whose first block is one of theirs, and not what a recycled file held before.
fn begun(disk: &Disk) -> usize {
    let has_begun = |bytes: &[u8]| {
        let header = SegmentHeader::decode(bytes, checksum()).expect("a header");
        let (seed, first) = (header.seed(checksum()), FIRST_BLOCK_OFFSET);
        BlockHeader::decode(&bytes[first as usize..], first, seed, checksum()).is_some()
    };
    disk.segments().iter().filter(|(_, bytes)| has_begun(bytes)).count()
}

fn assert_dropped(disk: &Disk, from: u64, story: &str) {
    let (records, end) = found(disk, from);
    assert_eq!((end.next_lsn, end.epoch), (Lsn(11), Epoch(2)), "{story}: {end}");
    assert_eq!(records.len() as u64, 11 - from, "{story}");
}

/// The first segment of the new epoch has its name, and the disk fails at its first block. A start reads its header, goes on
/// behind it in a file of its own, and once took that segment to make this file of: had the power failed in between, the
/// next start would have served the ten records again.
#[test]
fn an_epoch_whose_first_block_failed_has_begun() {
    // With a snapshot of the ten that stayed, and without.
    for (from, steps) in [1, 11].into_iter().flat_map(|from| (0..STEPS).map(move |steps| (from, steps))) {
        let (mut disk, mut log) = gone_back();
        disk.fail_next = Some((Kind::WriteBlock, Errno::EIO));
        disk.settle(&mut log);
        assert!(log.failure().is_some());
        disk.kill();
        assert_dropped(&disk, from, "after the failed mark");
        // It is not marked, and no records are appended; any number of starts may end so.
        for start in 0..3 {
            let (_, end) = found(&disk, from);
            let mut log = go_on(&disk, &end, 9 + start);
            log.release(Lsn(from));
            end_after(&mut disk, &mut log, steps);
            assert_dropped(&disk, from, &format!("start {start}, ended after {steps} operations"));
        }
    }
}

/// The same, and the log begins again in fresh files behind a snapshot while the process goes on, as
/// [`GroupCommit::start_afresh`] offers. The process ends before the first block of those files, and so do the starts that follow.
/// While it goes on the files before are kept as they should be; it was the starts that lost them.
#[test]
fn a_log_that_begins_again_behind_a_failed_epoch_keeps_what_it_dropped() {
    for (steps, then) in (0..STEPS).flat_map(|steps| (0..STEPS).step_by(3).map(move |then| (steps, then))) {
        // The snapshot is durable, and the log may not have been told yet.
        for is_released in [false, true] {
            let (mut disk, mut log) = gone_back();
            disk.fail_next = Some((Kind::WriteBlock, Errno::EIO));
            disk.settle(&mut log);
            let start = log.start_afresh(9).expect("it failed, and nothing is on its way");
            assert_eq!((start.next_lsn, start.epoch), (Lsn(11), Epoch(3)));
            let mut log = GroupCommit::new(settings(), &start, checksum());
            if is_released {
                log.release(Lsn(11));
            }
            end_after(&mut disk, &mut log, steps);
            let mut epoch = Epoch(2);
            for steps in [then, steps, then] {
                let (records, end) = found(&disk, 11);
                assert!(records.is_empty(), "{} came back", records.len());
                assert!(end.next_lsn == Lsn(11) && end.epoch >= epoch, "not before {epoch}: {end:?}");
                epoch = end.epoch;
                let mut log = go_on(&disk, &end, 10 + steps as u64);
                if is_released {
                    log.release(Lsn(11));
                }
                end_after(&mut disk, &mut log, steps);
            }
        }
    }
}

/// A snapshot holds everything, and the first block of the current segment is on its way: the segment before stays until it
/// has arrived. If it went, a power cut would leave no block at all: a header alone would say what was dropped, in a file that
/// starts once took for their own, and the start would say that there is no log beside the snapshot.
#[test]
fn the_last_segment_that_has_begun_stays_until_the_next_one_has() {
    let (mut disk, mut log) = gone_back();
    disk.settle(&mut log);
    log.append(b"another eleventh", 30).unwrap();
    disk.settle(&mut log);
    disk.kill();
    let (records, end) = found(&disk, 1);
    assert_eq!((records.len(), end.next_lsn, end.epoch), (11, Lsn(12), Epoch(2)));
    let mut log = go_on(&disk, &end, 9);
    let mut block = None;
    loop {
        while let Some(operation) = log.poll_operation() {
            if kind(&operation.action) == Kind::WriteBlock {
                block = Some(operation);
                // Before the next segment is prepared: from one that is let go, if there is one.
                log.release(Lsn(12));
            } else {
                disk.submit(operation);
            }
        }
        if !disk.complete_one(&mut log) {
            break;
        }
    }
    assert!(begun(&disk) > 0, "no segment says that its epoch has begun");
    // Once that block is durable, the current segment says so.
    disk.submit(block.expect("the start is marked"));
    disk.settle(&mut log);
    assert_eq!(log.segments().count(), 1);
    disk.kill();
    let (records, end) = found(&disk, 12);
    assert_eq!((records.len(), end.next_lsn, end.epoch), (0, Lsn(12), Epoch(2)));
}
