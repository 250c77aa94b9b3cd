//! The writer step by step: the order of its operations, failures at every one of them, crashes, bounds.

mod disk;

use disk::random::{Random, seed};
use disk::{Contents, Disk, Part, checksum, hand_over};
use snapshot::names::{FileName, SnapshotId};
use snapshot::operation::{Action, Operation};
use snapshot::writer::{Outcome, Plan, Refused, RegionPlan, RunPart, Settings, ShardPlan, SnapshotWriter};
use wal::block::{BlockBuffer, PAGE_BYTES};
use wal::lsn::{Epoch, Lsn};
use wal::operation::{Completion, Errno};

const PAGE: u64 = PAGE_BYTES as u64;

fn settings(pages: usize, buffers: usize) -> Settings {
    Settings { buffer_bytes: pages * PAGE_BYTES, buffers }
}

/// Three shards; one has no regions.
fn contents(random: &mut Random) -> Contents {
    Contents::random(random, &[&[3, 1, 9], &[], &[5, 2]])
}

#[test]
fn operations_come_in_the_order_that_makes_the_name_a_promise() {
    let contents = contents(&mut Random::new(1));
    let mut writer = SnapshotWriter::new(&contents.plan, settings(64, 2), checksum()).unwrap();
    let mut disk = Disk::default();
    let id = SnapshotId { epoch: Epoch(2), lsn: Lsn(500) };
    assert_eq!(writer.id(), id);
    assert_eq!(FileName::Snapshot(id).to_string(), "snapshot-0000000000000002-00000000000001f4.mrs");
    for (shard, regions) in contents.bytes.iter().enumerate() {
        for (region, bytes) in regions.iter().enumerate() {
            writer.handle_part(shard, region, 0, bytes).unwrap();
        }
    }
    writer.finish().unwrap();
    disk.settle(&mut writer);
    // All regions in one piece, and the tables with the trailer. It waits for the log.
    assert_eq!(disk.actions, ["create", "reserve", "write", "write", "flush"]);
    assert!(disk.named.is_none() && writer.outcome() == Outcome::Working);
    writer.handle_durable(Lsn(501));
    assert!(writer.poll_operation().is_none(), "LSN 502 is in an image and not durable");
    writer.handle_durable(Lsn(502));
    disk.settle(&mut writer);
    assert_eq!(disk.actions[5..], ["rename", "flush directory"]);
    assert!(writer.is_ended() && writer.outcome() == Outcome::Complete);
    let file = disk.named.unwrap();
    assert_eq!((file.len() as u64, writer.bytes_written()), (writer.header().length, writer.header().length));
    contents.assert_is(&file);
}

#[test]
fn parts_are_refused_without_a_trace() {
    let contents = contents(&mut Random::new(2));
    let mut writer = SnapshotWriter::new(&contents.plan, settings(4, 2), checksum()).unwrap();
    let page = [7; PAGE_BYTES];
    for (shard, region, offset, bytes) in [
        (1, 0, 0, &page[..]),
        (3, 0, 0, &page),
        (0, 3, 0, &page),
        (0, 1, PAGE, &page),
        (0, 0, 100, &page),
        (0, 0, 0, &page[1..]),
        (0, 0, 0, &[]),
        (0, 0, u64::MAX - PAGE + 1, &page),
        (0, 2, 0, &[7; 5 * PAGE_BYTES]),
    ] {
        assert_eq!(writer.handle_part(shard, region, offset, bytes), Err(Refused::Misplaced));
    }
    assert_eq!(writer.finish(), Err(Refused::Incomplete(20)));
    let mut disk = Disk::default();
    for part in contents.parts(&mut Random::new(3), 3) {
        disk.settle(&mut writer);
        hand_over(&mut writer, &contents, &part).unwrap();
        assert_eq!(hand_over(&mut writer, &contents, &part), Err(Refused::Twice));
    }
    writer.finish().unwrap();
    assert_eq!(
        (writer.finish(), writer.handle_part(0, 0, 0, &page)),
        (Err(Refused::Ended), Err(Refused::Ended))
    );
    writer.handle_durable(Lsn::MAX);
    disk.settle(&mut writer);
    contents.assert_is(&disk.named.unwrap());
}

#[test]
fn plans_that_make_no_file_are_refused() {
    let region = |number, length| RegionPlan { kind: 1, number, length };
    let plan = |regions| Plan {
        uid: 1,
        epoch: Epoch(1),
        unix_us: 0,
        shards: vec![ShardPlan { lsn: Lsn(1), meta: vec![], regions }],
    };
    let refused =
        |plan: &Plan, settings| SnapshotWriter::new(plan, settings, checksum()).err().map(|e| e.to_string());
    let usual = Settings::default();
    assert_eq!(refused(&plan(vec![region(1, PAGE), region(2, PAGE)]), usual), None);
    assert_eq!(refused(&plan(vec![]), usual), None);
    for (regions, complaint) in [
        (vec![region(1, 0)], "empty"),
        (vec![region(1, 100)], "no pages"),
        (vec![region(1, PAGE), region(1, PAGE)], "twice"),
        (vec![region(1, 1 << 62)], "too long"),
        (vec![region(1, u64::MAX - PAGE + 1), region(2, 1 << 40)], "too long"),
    ] {
        let found = refused(&plan(regions), usual).expect("refused");
        assert!(found.contains(complaint), "{found}");
    }
    assert!(refused(&Plan { shards: vec![], ..plan(vec![]) }, usual).unwrap().contains("found 0"));
    for wrong in [Settings { buffers: 0, ..usual }, Settings { buffer_bytes: 100, ..usual }] {
        assert!(refused(&plan(vec![]), wrong).unwrap().contains("buffers of whole pages"));
    }
}

fn run_part(part: &Part) -> RunPart {
    RunPart { region: part.region, offset: part.offset as u64, bytes: part.length }
}

#[test]
fn runs_are_refused_without_a_trace() {
    let contents = contents(&mut Random::new(5));
    let mut writer = SnapshotWriter::new(&contents.plan, settings(4, 2), checksum()).unwrap();
    let part =
        |region, page: u64, pages: usize| RunPart { region, offset: page * PAGE, bytes: pages * PAGE_BYTES };
    let length = |region: usize| contents.bytes[0][region].len() / PAGE_BYTES;
    let filled = |pages: usize| {
        let mut buffer = BlockBuffer::with_capacity(64 * PAGE_BYTES);
        buffer.append(&vec![1; pages * PAGE_BYTES]);
        buffer
    };
    for (parts, pages) in [
        (vec![], 0),
        (vec![part(0, 0, 1)], 2),
        (vec![part(0, 0, 2)], 1),
        (vec![part(0, 0, 0)], 0),
        (vec![part(0, length(0) as u64, 1)], 1),
        (vec![part(99, 0, 1)], 1),
        // The other way round, and the same twice.
        (vec![part(1, 0, 1), part(0, 0, 1)], 2),
        (vec![part(0, 0, 1), part(0, 0, 1)], 2),
    ] {
        let (refused, back) = writer.handle_run(0, &parts, filled(pages)).unwrap_err();
        assert_eq!((refused, back.used()), (Refused::Misplaced, pages * PAGE_BYTES), "{parts:?}");
    }
    writer.handle_run(0, &[part(0, 0, 1)], filled(1)).unwrap();
    assert_eq!(writer.handle_run(0, &[part(0, 0, 1)], filled(1)).unwrap_err().0, Refused::Twice);
    let total: usize = contents.bytes.iter().flatten().map(|bytes| bytes.len() / PAGE_BYTES).sum();
    assert_eq!(writer.finish(), Err(Refused::Incomplete(total as u64 - 1)));
    writer.abandon();
    assert_eq!(writer.handle_run(0, &[part(1, 0, 1)], filled(1)).unwrap_err().0, Refused::Ended);
}

/// Runs a snapshot with operations that complete in any order, and says what is left of it.
struct Run {
    writer: SnapshotWriter,
    disk: Disk,
    waiting: Vec<Operation>,
    parts: Vec<Part>,
    in_flight_max: usize,
    fulls: usize,
    /// Buffers of ours that the writer has, and how many it ever had.
    lent: usize,
    runs: usize,
}

impl Run {
    fn new(contents: &Contents, random: &mut Random) -> Run {
        let settings = settings(1 + random.below(5), 1 + random.below(4));
        let pages_max = settings.buffer_bytes / PAGE_BYTES;
        let mut parts = contents.parts(random, pages_max);
        parts.reverse();
        Run {
            writer: SnapshotWriter::new(&contents.plan, settings, checksum()).unwrap(),
            disk: Disk { random: Some(random.clone()), short_writes_percent: 20, ..Disk::default() },
            waiting: Vec::new(),
            parts,
            in_flight_max: settings.buffers,
            fulls: 0,
            lent: 0,
            runs: 0,
        }
    }

    /// Hands over parts that follow each other in a buffer of our own.
    fn hand_over_run(&mut self, contents: &Contents) {
        let (mut buffer, mut parts) = (BlockBuffer::with_capacity(16 * PAGE_BYTES), Vec::<Part>::new());
        while let Some(part) = self.parts.last() {
            let follows = parts.last().is_none_or(|last| {
                let end = last.offset + last.length;
                let is_whole = end == contents.bytes[last.shard][last.region].len();
                last.shard == part.shard
                    && ((last.region == part.region && end == part.offset)
                        || (last.region + 1 == part.region && is_whole && part.offset == 0))
            });
            if !follows || buffer.used() + part.length > buffer.capacity() {
                break;
            }
            buffer.append(contents.part(part));
            parts.extend(self.parts.pop());
        }
        let Some(shard) = parts.first().map(|part| part.shard) else { return };
        let run: Vec<RunPart> = parts.iter().map(run_part).collect();
        match self.writer.handle_run(shard, &run, buffer) {
            Ok(()) => {
                self.lent += 1;
                self.runs += usize::from(parts.len() > 1);
            }
            Err((refused, _)) => {
                assert_eq!(refused, Refused::Ended);
                self.parts.extend(parts.into_iter().rev());
            }
        }
    }

    /// One thing that can happen happens.
    fn step(&mut self, contents: &Contents, random: &mut Random) {
        match random.below(4) {
            0 if self.lent < 3 && random.chance(50) => self.hand_over_run(contents),
            0 => {
                if let Some(part) = self.parts.pop()
                    && let Err(refused) = hand_over(&mut self.writer, contents, &part)
                {
                    assert!(matches!(refused, Refused::Full | Refused::Ended), "{refused}");
                    self.fulls += usize::from(refused == Refused::Full);
                    self.parts.push(part);
                }
            }
            1 => self.waiting.extend(self.writer.poll_operation()),
            2 if !self.waiting.is_empty() => {
                let operation = self.waiting.swap_remove(random.below(self.waiting.len()));
                let completion = self.disk.perform(operation);
                self.writer.handle_completion(completion);
                while self.writer.take_returned().is_some() {
                    self.lent -= 1;
                }
            }
            _ if self.parts.is_empty() => drop(self.writer.finish()),
            _ => {}
        }
        assert!(self.waiting.len() <= self.in_flight_max + self.lent, "more than the buffers there are");
    }
}

#[test]
fn any_order_of_parts_and_completions_gives_the_same_contents() {
    let seed = seed();
    println!("MILLRACE_SEED={seed}");
    let mut random = Random::new(seed);
    let (mut fulls, mut runs) = (0, 0);
    for _ in 0..200 {
        let contents = contents(&mut random);
        let mut run = Run::new(&contents, &mut random);
        run.writer.handle_durable(Lsn(502));
        let mut steps = 0;
        while !run.writer.is_ended() {
            run.step(&contents, &mut random);
            steps += 1;
            assert!(steps < 100_000, "it stands still: {:?}", run.writer);
        }
        assert_eq!(run.writer.outcome(), Outcome::Complete);
        contents.assert_is(run.disk.named.as_ref().unwrap());
        fulls += run.fulls;
        runs += run.runs;
        assert_eq!(run.lent, 0, "every buffer comes back");
    }
    assert!(runs > 100, "no run of several parts: {runs}");
    assert!(fulls > 100, "no buffer was ever missing: {fulls}");
}

/// Whatever operation fails: nothing has the snapshot's name, or it is whole; and no temporary file stays.
#[test]
fn every_operation_may_fail() {
    let seed = seed();
    println!("MILLRACE_SEED={seed}");
    let mut random = Random::new(seed);
    let contents = contents(&mut random);
    let mut whole = 0;
    for number in 0.. {
        let mut run = Run::new(&contents, &mut random);
        run.disk.fails = Some((number, Errno::ENOSPC));
        run.writer.handle_durable(Lsn(502));
        while !run.writer.is_ended() {
            run.step(&contents, &mut random);
        }
        assert!(run.waiting.is_empty(), "it has ended with {:?} on their way", run.waiting);
        match run.writer.outcome() {
            // The numbers have gone beyond the last operation.
            Outcome::Complete => {
                whole += 1;
                if whole == 20 {
                    break;
                }
            }
            Outcome::Failed(failure) => {
                assert!(failure.to_string().contains("ENOSPC"), "{failure}");
                assert!(failure.to_string().contains("snapshot-0000000000000002-"), "{failure}");
                assert_eq!(run.disk.temporary, None, "{:?}", run.disk.actions);
                if let Some(file) = &run.disk.named {
                    assert_eq!(run.disk.actions.last(), Some(&"fails"), "flushing the directory");
                    contents.assert_is(file);
                }
                assert_eq!(hand_over(&mut run.writer, &contents, &PART), Err(Refused::Ended));
            }
            outcome => panic!("{outcome:?}"),
        }
    }
}

const PART: Part = Part { shard: 0, region: 0, offset: 0, length: PAGE_BYTES };

#[test]
fn a_write_that_never_gets_on_has_failed() {
    let contents = contents(&mut Random::new(4));
    let mut writer = SnapshotWriter::new(&contents.plan, settings(1, 1), checksum()).unwrap();
    assert_eq!(hand_over(&mut writer, &contents, &PART), Err(Refused::Full), "the header has the buffer");
    let mut tries = 0;
    while let Some(Operation { id, action }) = writer.poll_operation() {
        let (result, buffer) = match action {
            Action::Write { buffer, .. } => {
                tries += 1;
                (Ok(100), Some(buffer))
            }
            _ => (Ok(0), None),
        };
        writer.handle_completion(Completion { id, result, buffer });
    }
    assert!(tries == 3 && writer.is_ended());
    let Outcome::Failed(failure) = writer.outcome() else { panic!("{:?}", writer.outcome()) };
    assert_eq!(
        failure.to_string(),
        "writing snapshot-0000000000000002-00000000000001f4.mrs.tmp at offset 0: EIO: input/output error"
    );
}

/// Given up at any time: the file is gone, or, once it is being renamed, whole.
#[test]
fn it_can_be_given_up_at_any_time() {
    let seed = seed();
    println!("MILLRACE_SEED={seed}");
    let mut random = Random::new(seed);
    let contents = contents(&mut random);
    let mut outcomes = [0; 2];
    for patience in (0..1200).step_by(3) {
        let mut run = Run::new(&contents, &mut random);
        run.writer.handle_durable(Lsn(502));
        for _ in 0..patience {
            run.step(&contents, &mut random);
        }
        run.writer.abandon();
        while !run.writer.is_ended() {
            run.step(&contents, &mut random);
        }
        assert_eq!(run.disk.temporary, None, "{:?}", run.disk.actions);
        match run.writer.outcome() {
            Outcome::Abandoned => assert_eq!(run.disk.named, None),
            Outcome::Complete => contents.assert_is(run.disk.named.as_ref().unwrap()),
            outcome => panic!("{outcome:?}"),
        }
        outcomes[usize::from(run.writer.outcome() == Outcome::Complete)] += 1;
    }
    assert!(outcomes.iter().all(|&count| count > 20), "{outcomes:?}");
}

/// What has the snapshot's name after a power cut is whole, whenever the cut comes.
#[test]
fn a_power_cut_leaves_a_whole_snapshot_or_none() {
    let seed = seed();
    println!("MILLRACE_SEED={seed}");
    let mut random = Random::new(seed);
    let (mut none, mut whole) = (0, 0);
    for _ in 0..40 {
        let contents = contents(&mut random);
        let mut run = Run::new(&contents, &mut random);
        run.writer.handle_durable(Lsn(502));
        while !run.writer.is_ended() {
            run.step(&contents, &mut random);
            match run.disk.after_a_crash(&mut random) {
                Some(file) => {
                    whole += 1;
                    contents.assert_is(&file);
                }
                None => none += 1,
            }
        }
        assert!(run.disk.after_a_crash(&mut random).is_some(), "complete, and lost");
    }
    assert!(none > 1000 && whole > 20, "{none} {whole}");
}
