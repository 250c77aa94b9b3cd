//! The writer, step by step: what it asks of the disk, and what it promises after each answer.

mod disk;

use disk::{Disk, Kind, checksum, kind, read};
use wal::group_commit::{FlushPolicy, GroupCommit, Refused, Settings, Start, WriteMode};
use wal::lsn::{Epoch, Lsn};
use wal::operation::{Action, Completion, Doing, Errno, Operation, Sync};
use wal::reader::ReadOptions;
use wal::segment::{FileName, Sequence};

fn settings() -> Settings {
    Settings {
        segment_bytes: 16 * 4096,
        block_bytes_max: 8192,
        pending_bytes_max: 256 << 10,
        append_bytes_max: 1024,
        ..Settings::default()
    }
}

fn started(settings: Settings) -> (Disk, GroupCommit) {
    let mut disk = Disk::new(1);
    let mut log = GroupCommit::new(settings, &Start::empty(7), checksum());
    assert_eq!(log.append(b"early", 1), Err(Refused::Starting));
    disk.settle(&mut log);
    disk.completed.clear();
    (disk, log)
}

fn complete(log: &mut GroupCommit, operation: Operation, result: Result<usize, Errno>) {
    let buffer = match operation.action {
        Action::Write { buffer, .. } => Some(buffer),
        _ => None,
    };
    log.handle_completion(Completion { id: operation.id, result, buffer });
}

/// Bytes that a write asks for.
fn length(operation: &Operation) -> usize {
    match &operation.action {
        Action::Write { buffer, start, .. } => buffer.as_slice().len() - start,
        action => panic!("{action:?} is no write"),
    }
}

#[test]
fn while_one_block_is_written_the_next_one_fills() {
    let (_, mut log) = started(settings());
    log.append(b"first", 1).unwrap();
    let first = log.poll_operation().expect("it goes at once");
    assert_eq!(length(&first), 4096);
    for _ in 0..100 {
        log.append(b"waiting", 2).unwrap();
        assert!(log.poll_operation().is_none(), "one write in flight");
    }
    assert_eq!(log.durable_lsn(), Lsn::ZERO);
    complete(&mut log, first, Ok(4096));
    assert_eq!(log.durable_lsn(), Lsn(1));
    let second = log.poll_operation().expect("all that waited, in one block");
    assert_eq!(length(&second), 4096);
    assert_eq!(log.durable_lsn(), Lsn(1));
    complete(&mut log, second, Ok(4096));
    assert_eq!((log.durable_lsn(), log.pending_bytes()), (Lsn(101), 0));
    let counters = log.counters();
    // One, the mark of the start, had no records.
    assert_eq!((counters.blocks, counters.writes, counters.records), (3, 3, 101));
    assert_eq!(
        (counters.records_per_block[0], counters.records_per_block[1], counters.records_per_block[7]),
        (1, 1, 1)
    );
}

#[test]
fn only_the_contiguous_prefix_is_acknowledged() {
    let (_, mut log) = started(Settings { writes_in_flight_max: 3, ..settings() });
    let mut writes = Vec::new();
    for number in 0..3 {
        log.append(&[number], 1).unwrap();
        writes.push(log.poll_operation().unwrap());
    }
    log.append(b"fourth", 1).unwrap();
    assert!(log.poll_operation().is_none(), "three in flight");
    for (index, durable) in [(2, 0), (0, 1), (0, 3)] {
        complete(&mut log, writes.remove(index), Ok(4096));
        assert_eq!(log.durable_lsn(), Lsn(durable));
    }
}

#[test]
fn a_short_write_goes_on_where_it_stopped() {
    let (disk, mut log) = started(settings());
    log.append(&[5; 7000], 1).unwrap();
    let write = log.poll_operation().unwrap();
    let Action::Write { offset, .. } = write.action else { panic!() };
    assert_eq!(length(&write), 8192);
    // Not a whole page: the rest begins at the last one.
    complete(&mut log, write, Ok(4096 + 512));
    assert_eq!(log.durable_lsn(), Lsn::ZERO);
    let rest = log.poll_operation().unwrap();
    let Action::Write { offset: rest_offset, start, .. } = rest.action else { panic!() };
    assert_eq!((rest_offset, start, length(&rest)), (offset + 4096, 4096, 4096));
    complete(&mut log, rest, Ok(4096));
    assert_eq!(log.durable_lsn(), Lsn(1));
    assert_eq!(log.counters().short_writes, 1);
    drop(disk);
    // One that never gets on is an error in the end.
    log.append(b"stuck", 1).unwrap();
    for _ in 0..100 {
        let Some(write) = log.poll_operation() else { break };
        complete(&mut log, write, Ok(0));
    }
    assert_eq!(log.failure().unwrap().failure.errno, Errno::EIO);
}

/// Buffers are used again, and what a deleted key held must not live on in another block's padding.
#[test]
fn padding_holds_nothing_of_other_records() {
    let (mut disk, mut log) = started(settings());
    log.append(&[0xaa; 4000], 1).unwrap();
    disk.settle(&mut log);
    for _ in 0..4 {
        log.append(b"x", 1).unwrap();
        let write = log.poll_operation().unwrap();
        let Action::Write { buffer, .. } = &write.action else { panic!() };
        assert!(buffer.as_slice()[64 + 8 + 1..].iter().all(|&byte| byte == 0));
        complete(&mut log, write, Ok(4096));
    }
}

#[test]
fn a_failed_write_ends_everything() {
    let (_, mut log) = started(Settings { writes_in_flight_max: 3, ..settings() });
    log.append(b"safe", 1).unwrap();
    let safe = log.poll_operation().unwrap();
    complete(&mut log, safe, Ok(4096));
    let mut writes = Vec::new();
    for number in 0..3 {
        log.append(&[number], 1).unwrap();
        writes.push(log.poll_operation().unwrap());
    }
    let Action::Write { offset, file, .. } = writes[1].action else { panic!() };
    complete(&mut log, writes.remove(1), Err(Errno::EIO));
    let failure = log.failure().expect("failed");
    assert_eq!(
        (failure.failure.file, failure.failure.offset, failure.failure.errno),
        (file, offset, Errno::EIO)
    );
    assert_eq!((failure.failure.doing, failure.durable_lsn), (Doing::Writing, Lsn(1)));
    let said = failure.to_string();
    for word in [&file.to_string(), "offset 16384", "4096 bytes", "EIO", "LSN 1", "restart"] {
        assert!(said.contains(word), "{word:?} is not in {said:?}");
    }
    assert_eq!(log.append(b"more", 1), Err(Refused::Failed(failure)));
    assert_eq!(log.admission(0), Err(Refused::Failed(failure)));
    assert!(log.start_afresh(1).is_none(), "the kernel still reads two buffers");
    // What was on its way arrives, and changes nothing any more.
    complete(&mut log, writes.remove(0), Ok(4096));
    complete(&mut log, writes.remove(0), Ok(512));
    assert_eq!(log.durable_lsn(), Lsn(1));
    assert!(log.poll_operation().is_none(), "nothing is tried again");
    log.close();
    assert!(!log.is_closed() && log.poll_operation().is_none());

    let start = log.start_afresh(99).expect("nothing is in flight");
    assert_eq!((start.next_lsn, start.epoch, start.epoch_first_lsn), (Lsn(5), Epoch(2), Lsn(5)));
    let mut disk = Disk::new(2);
    let files: Vec<Sequence> = start.segments.iter().map(|segment| segment.sequence).collect();
    assert!(files.iter().all(|sequence| *sequence < start.next_sequence), "{start:?}");
    let mut afresh = GroupCommit::new(settings(), &Start { segments: Vec::new(), ..start }, checksum());
    disk.settle(&mut afresh);
    assert_eq!(afresh.append(b"again", 1), Ok(Lsn(5)));
    disk.settle(&mut afresh);
    assert_eq!(afresh.durable_lsn(), Lsn(5));
    let (records, end) = read(&disk.segments(), ReadOptions { from: Lsn(5), ..ReadOptions::default() });
    assert_eq!((records.len(), end.unwrap().next_lsn), (1, Lsn(6)));
}

/// A node that is promoted, or whose primary was: the records before stay what they were, the next are of another epoch.
#[test]
fn a_closed_writer_is_followed_by_one_of_another_epoch() {
    let (mut disk, mut log) = started(settings());
    assert_eq!(log.append(b"one", 1), Ok(Lsn(1)));
    assert!(log.start_epoch(Epoch(7), 5).is_none(), "it is not closed");
    disk.settle(&mut log);
    log.close();
    disk.settle(&mut log);
    let start = log.start_epoch(Epoch(7), 5).expect("nothing is in flight");
    assert_eq!((start.next_lsn, start.epoch, start.epoch_first_lsn), (Lsn(2), Epoch(7), Lsn(2)));
    let mut next = GroupCommit::new(settings(), &start, checksum());
    disk.settle(&mut next);
    assert_eq!(next.append(b"two", 1), Ok(Lsn(2)));
    disk.settle(&mut next);
    let (records, end) = read(&disk.segments(), ReadOptions::default());
    let end = end.unwrap();
    assert_eq!((records.len(), end.next_lsn, end.epoch), (2, Lsn(3), Epoch(7)));
}

#[test]
fn each_write_mode_asks_for_its_own_durability() {
    for (write_mode, expected) in
        [(WriteMode::DurableWrite, Sync::Data), (WriteMode::WriteThenFlush, Sync::Flush)]
    {
        let (_, mut log) = started(Settings { write_mode, ..settings() });
        log.append(b"x", 1).unwrap();
        let Action::Write { sync, .. } = log.poll_operation().unwrap().action else { panic!() };
        assert_eq!(sync, expected);
    }
}

#[test]
fn on_request_blocks_are_written_when_full_and_flushed_when_asked() {
    let (mut disk, mut log) = started(Settings { flush_policy: FlushPolicy::OnRequest, ..settings() });
    log.append(b"one", 1).unwrap();
    disk.settle(&mut log);
    assert_eq!((log.written_lsn(), log.durable_lsn()), (Lsn::ZERO, Lsn::ZERO), "it waits for company");
    log.append(&[1; 8000], 1).unwrap();
    log.append(&[2; 8000], 1).unwrap();
    disk.settle(&mut log);
    assert_eq!((log.written_lsn(), log.durable_lsn()), (Lsn(2), Lsn::ZERO), "full blocks are written");
    assert!(!disk.completed.contains(&Kind::Flush));
    log.request_flush();
    log.append(b"later", 1).unwrap();
    disk.settle(&mut log);
    assert!(log.durable_lsn() >= Lsn(3));
    assert!(disk.completed.contains(&Kind::Flush));
    // A flush that fails is the end, as a write is.
    log.append(b"lost", 1).unwrap();
    log.request_flush();
    disk.fail_next = Some((Kind::Flush, Errno::EIO));
    disk.settle(&mut log);
    let failure = log.failure().unwrap();
    assert_eq!((failure.failure.doing, failure.failure.errno), (Doing::Flushing, Errno::EIO));
    assert!(failure.to_string().contains("flushing log-"), "{failure}");
}

/// A segment that is full of unflushed blocks is flushed for the block that only the request sealed.
#[test]
fn a_request_at_the_end_of_a_segment_is_fulfilled() {
    let (mut disk, mut log) = started(Settings { flush_policy: FlushPolicy::OnRequest, ..settings() });
    // The mark of the start takes one page, seven blocks of two pages fill the rest; the eighth is open.
    for _ in 0..8 {
        log.append(&[1; 8000], 1).unwrap();
    }
    disk.settle(&mut log);
    assert_eq!((log.written_lsn(), log.segments().count()), (Lsn(7), 1));
    log.request_flush();
    disk.settle(&mut log);
    assert_eq!((log.durable_lsn(), log.segments().count()), (Lsn(8), 2));
}

/// A durable write says nothing of the ones before it, which were written without a flush.
#[test]
fn a_change_of_policy_flushes_what_was_written_before() {
    let (mut disk, mut log) = started(Settings { flush_policy: FlushPolicy::OnRequest, ..settings() });
    log.append(&[1; 8000], 1).unwrap();
    log.append(&[2; 8000], 1).unwrap();
    disk.settle(&mut log);
    log.set_flush_policy(FlushPolicy::EveryBlock);
    let mut seen = Vec::new();
    while let Some(operation) = log.poll_operation() {
        seen.push(kind(&operation.action));
        if seen.len() == 1 {
            let Action::Flush { .. } = operation.action else { panic!("{operation:?}") };
        }
        disk.submit(operation);
        let before = log.durable_lsn();
        disk.complete_one(&mut log);
        assert!(log.durable_lsn() >= before);
    }
    assert_eq!(log.durable_lsn(), Lsn(2));
}

#[test]
fn a_full_disk_is_met_before_a_record_is_accepted() {
    let (mut disk, mut log) = started(settings());
    // The current segment and one prepared ahead; no room for a third.
    disk.capacity = 2 * 16 * 4096 + 1000;
    let mut accepted = 0;
    let failure = loop {
        match log.append(&[9; 1000], 1) {
            Ok(lsn) => accepted = lsn.0,
            Err(Refused::Full(failure)) => break failure,
            Err(Refused::Busy) => {}
            Err(refused) => panic!("{refused}"),
        }
        disk.settle(&mut log);
        assert!(log.failure().is_none());
        assert_eq!(log.durable_lsn().0, accepted, "what was accepted found its place");
    };
    assert!(accepted > 10);
    assert_eq!((failure.errno, failure.doing), (Errno::ENOSPC, Doing::Preallocating));
    let said = Refused::Full(failure).to_string();
    assert!(said.contains(".spare") && said.contains("ENOSPC") && said.contains("snapshot"), "{said}");
    // It does not hammer the disk on its own, and leaves nothing behind.
    disk.completed.clear();
    disk.settle(&mut log);
    assert!(
        disk.completed.is_empty() && disk.spares().is_empty(),
        "{:?} {:?}",
        disk.completed,
        disk.spares()
    );
    log.retry();
    disk.settle(&mut log);
    assert!(matches!(log.admission(1), Err(Refused::Full(_))), "still full");
    // Somebody makes room: it ends by itself with the next try.
    disk.capacity = usize::MAX;
    log.retry();
    disk.settle(&mut log);
    assert_eq!(log.append(&[9; 1000], 1), Ok(Lsn(accepted + 1)));
    disk.settle(&mut log);
    assert_eq!(log.durable_lsn(), Lsn(accepted + 1));
}

/// A snapshot frees segments; they are used again, for which no room is needed.
#[test]
fn a_released_segment_ends_a_full_disk() {
    let (mut disk, mut log) = started(settings());
    disk.capacity = 2 * 16 * 4096 + 1000;
    while !matches!(log.append(&[9; 1000], 1), Err(Refused::Full(_))) {
        disk.settle(&mut log);
    }
    let last = log.appended_lsn();
    log.release(last.next());
    disk.settle(&mut log);
    assert_eq!(log.append(&[9; 1000], 1), Ok(last.next()));
    log.retry();
    disk.settle(&mut log);
    assert!(log.shortage().is_none());
    assert_eq!(log.segment_counters().recycled, 1);
    let from = last;
    let (records, end) = read(&disk.segments(), ReadOptions { from, ..ReadOptions::default() });
    assert_eq!((records.len(), end.unwrap().next_lsn), (2, last.next().next()));
}

#[test]
fn pending_bytes_are_bounded() {
    let (mut disk, mut log) = started(Settings { pending_bytes_max: 40_000, ..settings() });
    let mut accepted = 0;
    while log.append(&[1; 500], 1).is_ok() {
        accepted += 1;
        assert!(log.pending_bytes() <= 40_000);
    }
    assert!(accepted > 20);
    assert_eq!(log.append(&[1; 500], 1), Err(Refused::Busy));
    assert_eq!(log.counters().refused_busy, 2);
    disk.settle(&mut log);
    assert!(log.append(&[1; 500], 1).is_ok());
    let Err(Refused::TooLarge { bytes, bytes_max }) = log.append(&[1; 50_000], 1) else { panic!() };
    assert!(bytes > bytes_max && bytes_max == 40_000);
}

/// Whoever asks first and appends no more than it asked for is not refused, whatever the sizes of the
/// records.
#[test]
fn what_was_admitted_is_not_refused() {
    let mut random = disk::Random(3);
    for run in 0..200 {
        let (mut disk, mut log) = started(Settings { segment_bytes: (8 + run % 9) * 4096, ..settings() });
        for _ in 0..100 {
            disk.take_operations(&mut log);
            let mut budget = random.below(20_000);
            while let Err(refused) = log.admission(budget) {
                assert_eq!(refused, Refused::Busy);
                disk.settle(&mut log);
            }
            while budget > 8 {
                let length = random.below(budget - 8);
                log.append(&vec![1; length], 1).unwrap_or_else(|refused| panic!("{refused}"));
                budget -= length + 8;
                // Completions may come in between.
                disk.complete_one(&mut log);
            }
        }
        disk.settle(&mut log);
        assert_eq!(log.durable_lsn(), log.appended_lsn());
    }
}

#[test]
fn a_record_longer_than_a_segment_has_room_prepared() {
    let (mut disk, mut log) = started(Settings { pending_bytes_max: 1 << 20, ..settings() });
    let record: Vec<u8> = (0..300_000_u32).map(|n| (n / 7) as u8).collect();
    assert_eq!(log.admission(record.len()), Err(Refused::Busy));
    // Smaller wishes in between do not starve it.
    for _ in 0..3 {
        log.append(b"small", 1).unwrap();
        disk.settle(&mut log);
    }
    assert_eq!(log.admission(record.len()), Ok(()));
    log.append(&record, 2).unwrap();
    log.append(b"after", 3).unwrap();
    disk.settle(&mut log);
    assert_eq!(log.durable_lsn(), Lsn(5));
    assert!(log.segments().count() > 4);
    for chunk_bytes in [1, 10_000, 1 << 20] {
        let (records, end) = read(&disk.segments(), ReadOptions { chunk_bytes, ..ReadOptions::default() });
        assert_eq!(end.unwrap().next_lsn, Lsn(6));
        assert!(records[3].payload == record && records[3].unix_us == 2 && records[4].payload == b"after");
        // From within: the segment that holds the record's end is not the one to begin with.
        let options = ReadOptions { from: Lsn(5), chunk_bytes, ..ReadOptions::default() };
        let (records, _) = read(&disk.segments(), options);
        assert_eq!(records[0].payload, b"after");
        let (records, _) = read(&disk.segments(), ReadOptions { from: Lsn(4), ..options });
        assert!(records[0].payload == record);
    }
}

/// A record that ends in a later segment is needed together with the segment it begins in.
#[test]
fn the_segment_in_which_a_needed_record_begins_is_kept() {
    let (mut disk, mut log) = started(Settings { pending_bytes_max: 1 << 20, ..settings() });
    log.append(b"before", 1).unwrap();
    let record = vec![7; 200_000];
    while log.append(&record, 2).is_err() {
        disk.settle(&mut log);
    }
    disk.settle(&mut log);
    let segments = log.segments().count();
    assert!(segments > 3);
    log.release(Lsn(2));
    disk.settle(&mut log);
    assert_eq!(log.segments().count(), segments);
    let (records, _) = read(&disk.segments(), ReadOptions { from: Lsn(2), ..ReadOptions::default() });
    assert!(records.len() == 1 && records[0].payload == record);
    log.release(Lsn(3));
    disk.settle(&mut log);
    assert_eq!(log.segments().count(), 1, "the end of a record that nobody needs keeps nothing");
    let (records, end) = read(&disk.segments(), ReadOptions { from: Lsn(3), ..ReadOptions::default() });
    assert_eq!((records.len(), end.unwrap().next_lsn), (0, Lsn(3)));
}

/// Every step of preparing or removing a segment fails once: the log goes on, and what failed is done later.
#[test]
fn a_failed_preparation_is_no_failed_log() {
    let kinds = [Kind::Create, Kind::Reserve, Kind::WriteZeros, Kind::WriteHeader, Kind::Flush, Kind::Rename];
    for failing in kinds.into_iter().chain([Kind::FlushDirectory, Kind::Delete, Kind::Close]) {
        for errno in [Errno::EIO, Errno::ENOSPC] {
            let (mut disk, mut log) = started(settings());
            disk.fail_next = Some((failing, errno));
            let mut was_short = false;
            for round in 0..200 {
                while let Err(refused) = log.append(&[1; 2000], round) {
                    let named = matches!(refused, Refused::Full(failure) if failure.errno == errno);
                    assert!(named || refused == Refused::Busy, "{failing:?}: {refused}");
                    log.retry();
                    disk.settle(&mut log);
                }
                disk.settle(&mut log);
                was_short |= log.shortage().is_some();
                if round % 20 == 19 {
                    log.release(log.durable_lsn());
                }
            }
            assert!(disk.fail_next.is_none(), "{failing:?} never happened");
            assert!(log.failure().is_none());
            let expected = !matches!(failing, Kind::Delete | Kind::Close);
            assert_eq!(was_short, expected, "{failing:?}");
            let counters = log.segment_counters();
            assert_eq!(counters.preparations_failed, u64::from(expected), "{failing:?}");
            assert_eq!(counters.deletions_failed, u64::from(failing == Kind::Delete));
            let options = ReadOptions { from: log.durable_lsn(), ..ReadOptions::default() };
            assert_eq!(read(&disk.segments(), options).1.unwrap().next_lsn, Lsn(201), "{failing:?}");
        }
    }
}

/// A file bears a segment's name only when its content is durable, and is overwritten only after its old name
/// is gone.
#[test]
fn preparing_a_segment_keeps_its_order() {
    let mut log = GroupCommit::new(settings(), &Start::empty(7), checksum());
    let mut disk = Disk::new(1);
    disk.settle(&mut log);
    use Kind::*;
    let fresh = [Create, Reserve, WriteZeros, WriteHeader, Flush, Rename, FlushDirectory];
    assert_eq!(disk.completed[..7], fresh);
    while log.segments().count() < 2 {
        log.append(&[1; 5000], 1).unwrap();
        disk.settle(&mut log);
    }
    disk.completed.clear();
    log.release(log.durable_lsn());
    while log.segment_counters().recycled == 0 {
        log.append(&[1; 5000], 1).unwrap();
        disk.settle(&mut log);
    }
    let recycled = [Rename, FlushDirectory, WriteHeader, Flush, Rename, FlushDirectory];
    let steps: Vec<Kind> = disk.completed.iter().copied().filter(|kind| *kind != WriteBlock).collect();
    assert!(steps.windows(6).any(|window| window == recycled), "{steps:?}");
}

/// With nothing to write to and nothing to recycle, what everybody waits for is as short as a segment can be. It counts as no
/// spare, is never taken for a whole one, and a start that has something to recycle does without.
#[test]
fn nobody_waits_for_a_whole_segment() {
    let (whole, short) = (64 * 4096, 7 * 4096);
    let settings = Settings { segment_bytes: whole, first_segment_bytes: 0, ..settings() };
    let mut log = GroupCommit::new(settings, &Start::empty(7), checksum());
    let mut disk = Disk::new(1);
    let lengths = |disk: &Disk| disk.segments().iter().map(|file| file.1.len() as u64).collect::<Vec<u64>>();
    let begin = |log: &mut GroupCommit, disk: &mut Disk| {
        while let Err(refused) = log.append(b"first", 1) {
            assert_eq!(refused, Refused::Starting);
            disk.take_operations(log);
            assert!(disk.complete_one(log), "it is never ready");
        }
    };
    begin(&mut log, &mut disk);
    assert_eq!(lengths(&disk), [short]);
    disk.settle(&mut log);
    assert_eq!(lengths(&disk), [short, whole], "a spare is prepared before the short one is full");
    // Room is what there is: longer than the first, shorter than the two.
    assert_eq!(log.admission(16 * 4096), Ok(()));
    while log.segments().count() < 4 {
        log.append(&[1; 5000], 1).unwrap();
        disk.settle(&mut log);
    }
    assert_eq!(lengths(&disk), [short, whole, whole, whole, whole]);
    assert_eq!(read(&disk.segments(), ReadOptions::default()).1.unwrap().next_lsn, log.appended_lsn().next());
    disk.cut_power();
    let (_, end) = read(&disk.segments(), ReadOptions::default());
    let mut log = GroupCommit::new(settings, &end.unwrap().start(&disk.spares(), 8), checksum());
    disk.completed.clear();
    begin(&mut log, &mut disk);
    assert!(!disk.completed.contains(&Kind::WriteZeros), "{:?}", disk.completed);
    log.release(log.appended_lsn());
    disk.settle(&mut log);
    assert!(lengths(&disk).iter().all(|&length| length == whole), "{:?}", lengths(&disk));
}

/// A writer that takes over from one that was closed early takes no file for a segment of its own length that is not.
#[test]
fn what_is_left_to_the_next_writer_has_the_length_it_has() {
    for (first_segment_bytes, operations) in (0..40).flat_map(|n| [(0, n), (64 * 4096, n)]) {
        let (mut disk, mut log) = started(settings());
        log.append(b"x", 1).unwrap();
        disk.settle(&mut log);
        disk.cut_power();
        let (_, end) = read(&disk.segments(), ReadOptions::default());
        // All that is left is shorter than a segment is now.
        let settings = Settings { segment_bytes: 64 * 4096, first_segment_bytes, ..settings() };
        let start = end.unwrap().start(&disk.spares(), 8);
        let mut log = GroupCommit::new(settings, &start, checksum());
        for _ in 0..operations {
            disk.take_operations(&mut log);
            disk.complete_one(&mut log);
        }
        log.close();
        disk.settle(&mut log);
        let next = log.start_epoch(Epoch(5), 9).expect("nothing is in flight");
        let mut log = GroupCommit::new(settings, &next, checksum());
        disk.settle(&mut log);
        for _ in 0..200 {
            log.append(&[1; 5000], 1).unwrap();
            disk.settle(&mut log);
        }
        disk.cut_power();
        let (_, end) = read(&disk.segments(), ReadOptions::default());
        assert_eq!(end.unwrap().next_lsn, log.appended_lsn().next(), "after {operations} operations");
    }
}

/// The disk of these tests would say so: a segment that is recycled before its turn to be closed is not closed then.
#[test]
fn a_segment_that_is_gone_is_not_closed() {
    let (mut disk, mut log) = started(settings());
    while log.segments().count() < 2 {
        log.append(&[1; 5000], 1).unwrap();
        let write = log.poll_operation().expect("blocks come before all else");
        disk.submit(write);
        disk.complete_one(&mut log);
    }
    log.release(log.durable_lsn());
    disk.settle(&mut log);
    assert_eq!((log.segments().count(), log.segment_counters().recycled), (1, 1));
}

#[test]
fn more_released_segments_than_are_kept_are_deleted() {
    let (mut disk, mut log) = started(settings());
    while log.segments().count() < 6 {
        log.append(&[1; 5000], 1).unwrap();
        disk.settle(&mut log);
    }
    log.release(Lsn(2));
    disk.settle(&mut log);
    assert_eq!(log.segments().count(), 6, "the first is still needed");
    log.release(Lsn::MAX);
    disk.settle(&mut log);
    assert_eq!(log.segments().count(), 1, "only what is durable is released, and the current one is kept");
    assert_eq!(log.segment_counters().deleted, 4);
    assert_eq!(disk.segments().len(), 3, "the current one, a prepared one, one to be recycled");
}

#[test]
fn closing_makes_everything_durable_and_says_so() {
    for flush_policy in [FlushPolicy::EveryBlock, FlushPolicy::OnRequest] {
        let (mut disk, mut log) = started(Settings { flush_policy, ..settings() });
        log.append(&[1; 8000], 1).unwrap();
        log.append(b"last", 1).unwrap();
        log.close();
        assert_eq!(log.append(b"late", 1), Err(Refused::Closed));
        disk.settle(&mut log);
        assert!(log.is_closed() && log.durable_lsn() == Lsn(2));
        let (_, end) = read(&disk.segments(), ReadOptions::default());
        assert_eq!(end.unwrap().tail, wal::reader::Tail::Closed);
    }
    // A log that never got a segment closes as well.
    let mut disk = Disk::new(1);
    disk.capacity = 0;
    let mut log = GroupCommit::new(settings(), &Start::empty(7), checksum());
    disk.settle(&mut log);
    assert!(matches!(log.admission(0), Err(Refused::Full(_))));
    log.close();
    disk.settle(&mut log);
    assert!(log.is_closed());
}

#[test]
fn a_mark_is_written_once_and_only_if_it_says_something() {
    let (mut disk, mut log) = started(settings());
    log.append(b"x", 1).unwrap();
    disk.settle(&mut log);
    let blocks = log.counters().blocks;
    for _ in 0..3 {
        log.write_mark();
        disk.settle(&mut log);
    }
    assert_eq!(log.counters().blocks, blocks + 1);
    // With the mark behind it, the last record is no torn tail any more.
    let mut files = disk.segments();
    files[0].1[2 * 4096 + 70] ^= 1;
    assert!(read(&files, ReadOptions::default()).1.is_err());
    // Idle for ever, the marks do not use up the room.
    for _ in 0..1000 {
        log.append(b"x", 1).unwrap();
        disk.settle(&mut log);
        log.write_mark();
        disk.settle(&mut log);
    }
    assert_eq!(log.durable_lsn(), Lsn(1001));
}

/// A segment that an earlier run prepared may hold pieces of its last blocks, valid under its id: it gets
/// another.
#[test]
fn a_segment_prepared_by_an_earlier_run_is_not_written_under_its_old_id() {
    let (disk, mut log) = started(settings());
    let prepared = disk.segments().len();
    assert_eq!(prepared, 2);
    let mut disk = disk;
    log.append(b"x", 1).unwrap();
    disk.settle(&mut log);
    disk.cut_power();
    let (_, end) = read(&disk.segments(), ReadOptions::default());
    let end = end.unwrap();
    let old: Vec<u64> = disk.segments().iter().map(|(_, bytes)| uid(bytes)).collect();
    let mut log = GroupCommit::new(settings(), &end.start(&disk.spares(), 1234), checksum());
    disk.settle(&mut log);
    log.append(b"y", 1).unwrap();
    disk.settle(&mut log);
    let current = log.segments().last().unwrap().sequence;
    let (_, bytes) = disk.segments().into_iter().find(|file| file.0 == current).unwrap();
    assert!(!old.contains(&uid(&bytes)));
    assert!(
        !disk.segments().iter().any(|file| file.0 == Sequence(2)),
        "it was used again under another number"
    );
}

/// Each start once began a segment to say in it that all is durable: eight of them, and a record took half a gigabyte.
#[test]
fn a_run_that_writes_nothing_leaves_a_closed_log_as_it_was() {
    let (mut disk, mut log) = started(settings());
    log.append(b"x", 1).unwrap();
    disk.settle(&mut log);
    log.close();
    disk.settle(&mut log);
    let begun = |disk: &Disk| {
        let files = disk.segments().into_iter();
        files.filter(|(_, bytes)| bytes[4096..].iter().any(|&byte| byte != 0)).collect::<Vec<_>>()
    };
    let before = begun(&disk);
    for seed in 0..3 {
        let (records, end) = read(&disk.segments(), ReadOptions::default());
        assert_eq!(records.len(), 1);
        let mut log = GroupCommit::new(settings(), &end.unwrap().start(&disk.spares(), seed), checksum());
        disk.settle(&mut log);
        log.write_mark();
        disk.settle(&mut log);
        log.close();
        disk.settle(&mut log);
        assert!(log.is_closed());
        assert!(begun(&disk) == before && disk.segments().len() == 2 && disk.spares().is_empty());
    }
    // The first that writes goes on in what the others had prepared.
    let (_, end) = read(&disk.segments(), ReadOptions::default());
    let mut log = GroupCommit::new(settings(), &end.unwrap().start(&disk.spares(), 9), checksum());
    disk.settle(&mut log);
    assert_eq!(log.append(b"y", 2), Ok(Lsn(2)));
    disk.settle(&mut log);
    assert_eq!(log.segment_counters().recycled, 1);
    let (records, end) = read(&disk.segments(), ReadOptions::default());
    assert_eq!((records.len(), end.unwrap().next_lsn), (2, Lsn(3)));
}

/// A log that was not closed is marked at each start, and only the last mark is kept.
#[test]
fn segments_with_nothing_but_marks_are_used_again() {
    let (mut disk, mut log) = started(settings());
    log.append(b"x", 1).unwrap();
    disk.settle(&mut log);
    let mut used = Vec::new();
    for seed in 0..6 {
        disk.cut_power();
        let (records, end) = read(&disk.segments(), ReadOptions::default());
        assert_eq!(records.len(), 1);
        log = GroupCommit::new(settings(), &end.unwrap().start(&disk.spares(), seed), checksum());
        disk.settle(&mut log);
        assert_eq!(log.segments().count(), 2, "the record's, and the one with the latest mark");
        used.push(disk.used());
    }
    assert!(used[1..].windows(2).all(|pair| pair[0] == pair[1]), "{used:?}");
    // And what they said is said by the one that is left: the record is no torn tail.
    let mut files = disk.segments();
    files[0].1[2 * 4096 + 70] ^= 1;
    assert!(read(&files, ReadOptions::default()).1.is_err());
}

/// Runs that end while they prepare a segment would leave one more each time.
#[test]
fn what_an_earlier_run_was_preparing_goes_before_anything_is_created() {
    let start =
        Start { next_sequence: Sequence(6), spares: vec![Sequence(4), Sequence(5)], ..Start::empty(7) };
    let mut log = GroupCommit::new(settings(), &start, checksum());
    let mut seen = Vec::new();
    while seen.len() < 5 {
        let operation = log.poll_operation().expect("there is more to do");
        seen.push(kind(&operation.action));
        complete(&mut log, operation, Ok(0));
    }
    let (delete, flush) = (Kind::Delete, Kind::FlushDirectory);
    assert_eq!(seen, [delete, flush, delete, flush, Kind::Create]);
}

fn uid(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[16..24].try_into().unwrap())
}

#[test]
fn settings_that_cannot_work_are_named() {
    let wrong = |settings: Settings, word: &str| {
        let said = settings.validate().unwrap_err();
        assert!(said.contains(word), "{said}");
    };
    assert_eq!(Settings::default().validate(), Ok(()));
    wrong(Settings { block_bytes_max: 5000, ..settings() }, "found 5000");
    wrong(Settings { block_bytes_max: 32 << 20, ..settings() }, "a block is");
    wrong(Settings { segment_bytes: 6 * 4096, ..settings() }, "at least 28672");
    wrong(Settings { segment_bytes: 100_001, ..settings() }, "multiple of 4096");
    wrong(Settings { pending_bytes_max: 4096, ..settings() }, "pending bytes");
    wrong(Settings { writes_in_flight_max: 0, ..settings() }, "one write in flight");
}

#[test]
fn the_names_of_files_in_failures_are_those_on_disk() {
    assert_eq!(FileName::Segment(Sequence(0x1f)).to_string(), "log-000000000000001f.wal");
}
