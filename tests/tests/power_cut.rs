//! The power-cut disk proved on itself, with small writers: what is flushed survives, what is not is lost, torn and
//! reordered, and faults are what they were asked to be. Tests of the server rest on these.
//!
//! Each test prints its seed; `MILLRACE_SEED` repeats it. Without root, /dev/fuse, loop devices or mkfs.ext4 the
//! tests are skipped and say so.
//!
//! What ext4 does with names (measured here, by `names_*`): an fsync of a new file commits the journal, and its
//! directory entry with it, so the file is there after the cut although nobody flushed the directory. A rename or an
//! unlink after the last flush of anything is undone by a cut. Code that must work elsewhere flushes the directory
//! in each of the three cases.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use tests::power_cut::writers::{
    Aligned, AppendedLog, Findings, PAGE, SLOTS, SlotFile, Way, flush_directory, make_noise, open_direct,
    page, slots, versions, write_slot,
};
use tests::power_cut::{CutStyle, Options, PowerCutDisk, mounts};
use tests::random::{self, Random};
use tests::runner::{self, Skipped};

type Outcome = Result<(), Skipped>;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(HOLD_A_DISK) {
        return hold_a_disk();
    }
    runner::main(&[
        ("flushed_data_survives_a_hundred_torn_cuts", flushed_data_survives_a_hundred_torn_cuts),
        ("the_same_writers_lose_on_a_disk_that_lies", the_same_writers_lose_on_a_disk_that_lies),
        ("unflushed_data_is_lost_in_some_cuts", unflushed_data_is_lost_in_some_cuts),
        (
            "names_not_flushed_with_their_directory_can_vanish",
            names_not_flushed_with_their_directory_can_vanish,
        ),
        ("cuts_tear_pages_and_reorder_requests", cuts_tear_pages_and_reorder_requests),
        ("a_seed_is_a_fate", a_seed_is_a_fate),
        ("writes_fail_when_told_and_only_then", writes_fail_when_told_and_only_then),
        ("a_failed_flush_loses_what_it_was_to_flush", a_failed_flush_loses_what_it_was_to_flush),
        ("a_small_disk_fills_and_has_room_again", a_small_disk_fills_and_has_room_again),
        ("a_slow_flush_takes_its_time_and_a_cut_ends_it", a_slow_flush_takes_its_time_and_a_cut_ends_it),
        ("files_open_across_a_cut_fail_for_ever", files_open_across_a_cut_fail_for_ever),
        ("nothing_is_left_behind", nothing_is_left_behind),
    ])
}

/// A seed, printed with the name of its test.
fn seeded(test: &str) -> u64 {
    let seed = random::seed();
    println!("{test}: MILLRACE_SEED={seed}");
    seed
}

fn disk() -> Result<PowerCutDisk, Skipped> {
    Ok(PowerCutDisk::new(Options::default())?)
}

fn heal(disk: &mut PowerCutDisk) {
    disk.heal().expect("ext4 replays its journal");
}

// ---------------------------------------------------------------------------------------------------------------
// What is flushed survives.

/// Four writers and one who never flushes, a cut at a moment drawn from the seed, a look at everything: so many
/// times, or until something is found. Returns what was found, how much was acknowledged and how long each cut and
/// heal took.
fn audited(
    disk: &mut PowerCutDisk,
    style: CutStyle,
    cuts: usize,
    seed: u64,
) -> (Findings, usize, Vec<Duration>) {
    let mut random = Random::new(seed);
    let (mut findings, mut acknowledgements, mut times) = (Findings::default(), 0, Vec::new());
    let directory = disk.mount_point().to_path_buf();
    let ways = [Way::Direct, Way::DirectDsync, Way::Buffered];
    let mut files: Vec<SlotFile> = ways.iter().map(|&way| SlotFile::create(way, &directory)).collect();
    let mut logs: Vec<AppendedLog> = Vec::new();
    let noise = directory.join("noise");
    drop(slots(&noise));
    for round in 0..cuts {
        logs.push(AppendedLog::at(directory.join(format!("log-{round}")), random.next_u64()));
        let log = logs.last_mut().expect("pushed just now");
        let (acknowledge, acknowledged) = mpsc::channel();
        let until = 20 + random.below(60);
        let cut_seed = random.next_u64();
        let noisy = open_direct(&noise, 0);
        let opened: Vec<File> = files.iter().map(SlotFile::open).collect();
        let begun = thread::scope(|scope| {
            for (file, open) in files.iter_mut().zip(&opened) {
                let (seed, acknowledge) = (random.next_u64(), acknowledge.clone());
                scope.spawn(move || file.write_on(open, seed, &acknowledge));
            }
            scope.spawn(move || log.write_on(&acknowledge));
            scope.spawn(|| make_noise(&noisy));
            let seen = acknowledged.iter().take(until).count();
            assert_eq!(seen, until, "the writers ended before the cut");
            // Right after an acknowledgement is right after a flush, and the cache is empty: a little later.
            let cut_at = disk.counters().writes + random.below(10) as u64;
            while disk.counters().writes < cut_at {
                thread::yield_now();
            }
            let begun = Instant::now();
            disk.cut(style, cut_seed);
            begun
        });
        acknowledgements += until + acknowledged.try_iter().count();
        drop((noisy, opened));
        heal(disk);
        times.push(begun.elapsed());
        files.iter().for_each(|file| file.audit(&mut findings));
        logs.iter().for_each(|log| log.audit(&mut findings));
        // The audit of a few logs says as much as that of a hundred.
        if logs.len() > 5 {
            logs.remove(0).remove();
        }
        if !findings.lost.is_empty() || !findings.changed.is_empty() {
            println!("  cut {round} of this seed, {style:?}, cut seed {cut_seed}");
            break;
        }
    }
    (findings, acknowledgements, times)
}

fn flushed_data_survives_a_hundred_torn_cuts() -> Outcome {
    let seed = seeded("flushed_data_survives_a_hundred_torn_cuts");
    let mut disk = disk()?;
    let begun = Instant::now();
    let (findings, acknowledged, mut times) = audited(&mut disk, CutStyle::KeepSomeSectors, 100, seed);
    let counters = disk.counters();
    println!(
        "  {} cuts in {} ms, {acknowledged} writes acknowledged: {} lost, {} changed; {} pages in flight torn",
        counters.cuts,
        begun.elapsed().as_millis(),
        findings.lost.len(),
        findings.changed.len(),
        findings.torn
    );
    times.sort();
    let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
    println!("  cut and heal: median {} ms, worst {} ms", median.as_millis(), worst.as_millis());
    println!(
        "  {} writes, {} flushes; unflushed sectors: {} dropped, {} kept",
        counters.writes, counters.flushes, counters.sectors_dropped, counters.sectors_kept
    );
    let none = findings.lost.is_empty() && findings.changed.is_empty();
    assert!(none, "{findings:#?}");
    assert_eq!(counters.cuts, 100);
    let taken = counters.sectors_dropped.min(counters.sectors_kept);
    assert!(taken > 1000, "the cuts met an empty cache: {counters:?}");
    assert!(findings.torn > 0, "no page in flight was torn in a hundred cuts");
    assert!(median < Duration::from_secs(1), "a cut takes {median:?}: tests on this disk will take for ever");
    assert_eq!(ext4_errors(&disk), 0, "ext4 found errors: this disk broke a promise that ext4 relies on");
    Ok(())
}

/// Errors that ext4 has recorded, which it keeps across mounts.
fn ext4_errors(disk: &PowerCutDisk) -> u64 {
    let name = disk.device().file_name().expect("/dev/loopN").to_string_lossy().into_owned();
    let count =
        fs::read_to_string(format!("/sys/fs/ext4/{name}/errors_count")).expect("ext4 is mounted from it");
    count.trim().parse().expect("a number")
}

/// The negative control of the audit: the writers flush, but the disk does not.
fn the_same_writers_lose_on_a_disk_that_lies() -> Outcome {
    let seed = seeded("the_same_writers_lose_on_a_disk_that_lies");
    let mut disk = disk()?;
    disk.honour_flushes(false);
    let (findings, ..) = audited(&mut disk, CutStyle::LoseAll, 3, seed);
    println!("  {} lost, {} changed", findings.lost.len(), findings.changed.len());
    assert!(!findings.lost.is_empty(), "nothing lost without a flush: the audit sees nothing");
    Ok(())
}

// ---------------------------------------------------------------------------------------------------------------
// What is not flushed is lost.

/// The negative control of the disk.
fn unflushed_data_is_lost_in_some_cuts() -> Outcome {
    let seed = seeded("unflushed_data_is_lost_in_some_cuts");
    let mut random = Random::new(seed);
    let mut disk = disk()?;
    let path = disk.mount_point().join("slots");
    drop(slots(&path));
    let mut version = 0;
    for (style, buffered) in [
        (CutStyle::LoseAll, false),
        (CutStyle::LoseAll, true),
        (CutStyle::KeepSomeWrites, false),
        (CutStyle::KeepSomeSectors, false),
    ] {
        let (mut lost, mut kept) = (0, 0);
        for _ in 0..10 {
            let before = version;
            version += 1;
            let file = if buffered {
                OpenOptions::new().write(true).open(&path).expect("the slots")
            } else {
                open_direct(&path, 0)
            };
            for slot in 0..SLOTS {
                write_slot(&file, slot, version).expect("a disk with power");
            }
            drop(file);
            disk.cut(style, random.next_u64());
            heal(&mut disk);
            let bytes = fs::read(&path).expect("the slots");
            let file = open_direct(&path, 0);
            for slot in 0..SLOTS {
                let found = versions(&bytes[slot * PAGE..(slot + 1) * PAGE], slot, &[before, version]);
                lost += found.iter().filter(|found| **found == Ok(before)).count();
                kept += found.iter().filter(|found| **found == Ok(version)).count();
                assert!(!found.contains(&Err(())), "slot {slot} holds what nobody wrote");
                write_slot(&file, slot, version).expect("a disk with power");
            }
            file.sync_all().expect("a flush");
        }
        println!(
            "  {style:?}, {}: {lost} sectors lost, {kept} kept",
            if buffered { "buffered" } else { "O_DIRECT" }
        );
        assert!(lost > 0, "{style:?}: nothing was lost");
        match style {
            // Sometimes ext4 itself has flushed meanwhile, for its journal.
            CutStyle::LoseAll => {
                assert!(lost > kept, "{style:?}: {kept} of {} sectors survived", lost + kept)
            }
            _ => assert!(kept > 0, "{style:?}: nothing was kept"),
        }
    }
    Ok(())
}

/// What is done to a name. Each is done last, after everything else was flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Naming {
    CreateUnflushed,
    CreateFlushed,
    Rename,
    Unlink,
}

fn names_not_flushed_with_their_directory_can_vanish() -> Outcome {
    let seed = seeded("names_not_flushed_with_their_directory_can_vanish");
    let mut random = Random::new(seed);
    let mut disk = disk()?;
    let directory = disk.mount_point().join("d");
    fs::create_dir(&directory).expect("a directory");
    flush_directory(&directory);
    let mut undone: BTreeMap<(Naming, bool), (usize, usize)> = BTreeMap::new();
    let namings = [Naming::CreateUnflushed, Naming::CreateFlushed, Naming::Rename, Naming::Unlink];
    for round in 0..8 {
        for naming in namings {
            for flush in [false, true] {
                let name = |what: &str| directory.join(format!("{naming:?}-{flush}-{round}-{what}"));
                let (old, new) = (name("old"), name("new"));
                if matches!(naming, Naming::Rename | Naming::Unlink) {
                    fs::write(&old, b"old").expect("room");
                    File::open(&old).and_then(|file| file.sync_all()).expect("a flush");
                    flush_directory(&old);
                }
                match naming {
                    Naming::CreateUnflushed => fs::write(&new, b"new").expect("room"),
                    Naming::CreateFlushed => {
                        fs::write(&new, b"new").expect("room");
                        File::open(&new).and_then(|file| file.sync_all()).expect("a flush");
                    }
                    Naming::Rename => fs::rename(&old, &new).expect("a name"),
                    Naming::Unlink => fs::remove_file(&old).expect("a name"),
                }
                if flush {
                    flush_directory(&new);
                }
                let style = *random.pick(&[CutStyle::LoseAll, CutStyle::KeepSomeSectors]);
                disk.cut(style, random.next_u64());
                heal(&mut disk);
                let done = match naming {
                    Naming::Unlink => !old.exists(),
                    Naming::Rename => {
                        assert!(old.exists() != new.exists(), "a rename is atomic");
                        new.exists()
                    }
                    _ => new.exists(),
                };
                let count = undone.entry((naming, flush)).or_default();
                count.0 += usize::from(!done);
                count.1 += 1;
            }
        }
    }
    for ((naming, flush), (undone, of)) in &undone {
        let directory = if *flush { "directory flushed" } else { "directory not flushed" };
        println!("  {naming:?}, {directory}: undone in {undone} of {of} cuts");
    }
    let undone = |naming, flush| undone[&(naming, flush)].0;
    for naming in namings {
        assert_eq!(undone(naming, true), 0, "{naming:?}: a flushed directory lost a name");
    }
    for naming in [Naming::CreateUnflushed, Naming::Rename, Naming::Unlink] {
        assert!(undone(naming, false) > 0, "{naming:?}: no cut found the missing flush");
    }
    assert_eq!(undone(Naming::CreateFlushed, false), 0, "ext4 used to keep a new file's name with its fsync");
    Ok(())
}

fn cuts_tear_pages_and_reorder_requests() -> Outcome {
    let seed = seeded("cuts_tear_pages_and_reorder_requests");
    let mut random = Random::new(seed);
    let mut disk = disk()?;
    let path = disk.mount_point().join("slots");
    drop(slots(&path));
    let mut version = 0;
    let (mut torn, mut reordered) = (0, 0);
    for style in [CutStyle::KeepSomeSectors, CutStyle::KeepSomeWrites] {
        for _ in 0..10 {
            let before = version;
            version += 1;
            let file = open_direct(&path, 0);
            for slot in 0..SLOTS / 2 {
                write_slot(&file, slot, version).expect("a disk with power");
            }
            drop(file);
            disk.cut(style, random.next_u64());
            heal(&mut disk);
            let bytes = fs::read(&path).expect("the slots");
            let found: Vec<Vec<Result<u64, ()>>> = (0..SLOTS)
                .map(|slot| versions(&bytes[slot * PAGE..(slot + 1) * PAGE], slot, &[0, before, version]))
                .collect();
            let is_torn =
                |page: &Vec<Result<u64, ()>>| page.contains(&Ok(before)) && page.contains(&Ok(version));
            assert!(
                !found.iter().flatten().any(|sector| sector.is_err()),
                "a sector holds what nobody wrote"
            );
            let untouched = &found[SLOTS / 2..];
            assert!(
                untouched.iter().flatten().all(|sector| *sector == Ok(0)),
                "the cut reached a flushed page"
            );
            if style == CutStyle::KeepSomeSectors {
                torn += found.iter().filter(|page| is_torn(page)).count();
            } else {
                assert!(!found.iter().any(is_torn), "a request was torn");
                let whole: Vec<Result<u64, ()>> = found[..SLOTS / 2].iter().map(|page| page[0]).collect();
                reordered += whole.windows(2).filter(|pair| *pair == [Ok(before), Ok(version)]).count();
            }
            let file = open_direct(&path, 0);
            for slot in 0..SLOTS / 2 {
                write_slot(&file, slot, version).expect("a disk with power");
            }
            file.sync_all().expect("a flush");
        }
    }
    println!("  {torn} pages torn; {reordered} times a request was lost and the next one survived");
    assert!(torn > 20 && reordered > 20, "{torn} torn, {reordered} reordered");
    Ok(())
}

fn a_seed_is_a_fate() -> Outcome {
    let seed = seeded("a_seed_is_a_fate");
    let mut disk = disk()?;
    let path = disk.mount_point().join("slots");
    let file = slots(&path);
    let mut fate = |version: u64, seed: u64| {
        let_the_journal_rest(&disk);
        let file = open_direct(&path, 0);
        for slot in 0..SLOTS {
            write_slot(&file, slot, 0).expect("a disk with power");
        }
        file.sync_all().expect("a flush");
        for slot in 0..SLOTS {
            write_slot(&file, slot, version).expect("a disk with power");
        }
        drop(file);
        disk.cut(CutStyle::KeepSomeSectors, seed);
        heal(&mut disk);
        let bytes = fs::read(&path).expect("the slots");
        let slot = |slot: usize| versions(&bytes[slot * PAGE..(slot + 1) * PAGE], slot, &[0, version]);
        (0..SLOTS)
            .flat_map(slot)
            .map(|found| found.expect("a known sector") == version)
            .collect::<Vec<bool>>()
    };
    drop(file);
    let first = fate(1, seed);
    assert!(first == fate(2, seed), "the same seed, another fate");
    assert!((1..6).any(|other| fate(3, seed.wrapping_add(other)) != first), "five more seeds, the same fate");
    Ok(())
}

// ---------------------------------------------------------------------------------------------------------------
// Faults.

fn errno(result: std::io::Result<()>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

/// Keeps ext4's journal from writing and flushing of its own accord until the next heal: requests are counted here.
fn let_the_journal_rest(disk: &PowerCutDisk) {
    let nothing = None::<&str>;
    mount(nothing, disk.mount_point(), nothing, MsFlags::MS_REMOUNT, Some("commit=3600"))
        .expect("an ext4 option");
}

fn writes_fail_when_told_and_only_then() -> Outcome {
    let disk = disk()?;
    let_the_journal_rest(&disk);
    let path = disk.mount_point().join("slots");
    let file = slots(&path);
    for wanted in [libc::EIO, libc::ENOSPC] {
        disk.fail_writes(wanted);
        for slot in 0..3 {
            assert_eq!(errno(write_slot(&file, slot, 9)), Some(wanted));
        }
        disk.stop_failing();
        write_slot(&file, 0, 0).expect("writes work again");
    }
    // Only the third; everything is flushed, so that ext4 has nothing of its own to write.
    file.sync_all().expect("a flush");
    disk.fail_nth_write(3, libc::EIO);
    let results: Vec<Option<i32>> = (0..6).map(|slot| errno(write_slot(&file, slot, 1))).collect();
    assert_eq!(results, [None, None, Some(libc::EIO), None, None, None]);
    let mut bytes = Aligned::zeros(6 * PAGE);
    file.read_exact_at(bytes.bytes(), 0).expect("reads never fail");
    for slot in 0..6 {
        let wanted = u64::from(slot != 2);
        let found = versions(&bytes.bytes()[slot * PAGE..(slot + 1) * PAGE], slot, &[0, 1]);
        assert!(found.iter().all(|version| *version == Ok(wanted)), "slot {slot}: {found:?}");
    }
    assert_eq!(disk.counters().writes_failed, 7);
    Ok(())
}

fn a_failed_flush_loses_what_it_was_to_flush() -> Outcome {
    let seed = seeded("a_failed_flush_loses_what_it_was_to_flush");
    let mut disk = disk()?;
    let_the_journal_rest(&disk);
    let path = disk.mount_point().join("slots");
    let file = slots(&path);
    file.sync_all().expect("a flush");
    disk.fail_nth_flush(2, libc::EIO);
    write_slot(&file, 0, 1).expect("a write");
    assert_eq!(errno(file.sync_data()), None, "the first flush");
    write_slot(&file, 1, 1).expect("a write");
    assert_eq!(errno(file.sync_data()), Some(libc::EIO), "the second flush");
    assert_eq!(errno(file.sync_data()), None, "a retry looks as if all were well");
    let mut bytes = Aligned::zeros(PAGE);
    file.read_exact_at(bytes.bytes(), PAGE as u64).expect("a read");
    assert!(bytes.bytes() == page(1, 1), "what the flush lost is still read back");
    disk.fail_flushes(libc::EIO);
    write_slot(&file, 2, 1).expect("a write");
    for _ in 0..3 {
        assert_eq!(errno(file.sync_data()), Some(libc::EIO));
    }
    disk.stop_failing();
    // Written again after the failure it is as durable as any.
    write_slot(&file, 3, 1).expect("a write");
    assert_eq!(errno(file.sync_data()), None);
    drop(file);
    assert!(disk.counters().flushes_failed >= 4);
    disk.cut(CutStyle::KeepSomeSectors, seed);
    heal(&mut disk);
    let bytes = fs::read(&path).expect("the slots");
    for (slot, wanted) in [(0, 1), (1, 0), (2, 0), (3, 1)] {
        assert!(
            bytes[slot * PAGE..(slot + 1) * PAGE] == page(slot, wanted),
            "slot {slot} is not at version {wanted}"
        );
    }
    Ok(())
}

fn a_small_disk_fills_and_has_room_again() -> Outcome {
    let mut disk = PowerCutDisk::new(Options { size: 16 << 20, ..Options::default() })?;
    let path = disk.mount_point().join("full");
    let mut file = File::create(&path).expect("an empty disk");
    let megabyte = vec![1; 1 << 20];
    let full = (0..16).find_map(|_| file.write_all(&megabyte).and_then(|()| file.sync_data()).err());
    assert_eq!(full.and_then(|error| error.raw_os_error()), Some(libc::ENOSPC));
    drop(file);
    // A full disk is cut and healed as any.
    disk.cut(CutStyle::KeepSomeSectors, 1);
    heal(&mut disk);
    fs::remove_file(&path).expect("the file was flushed");
    flush_directory(&path);
    fs::write(&path, &megabyte).and_then(|()| File::open(&path)?.sync_all()).expect("there is room again");
    Ok(())
}

fn a_slow_flush_takes_its_time_and_a_cut_ends_it() -> Outcome {
    let mut disk = disk()?;
    let path = disk.mount_point().join("slots");
    let file = slots(&path);
    let timed = |slot: usize| {
        write_slot(&file, slot, 1).expect("a write");
        let begun = Instant::now();
        file.sync_data().expect("a flush");
        begun.elapsed()
    };
    let fast = timed(0);
    let delay = Duration::from_millis(2);
    disk.set_flush_delay(delay);
    let mut slow: Vec<Duration> = (0..20).map(timed).collect();
    slow.sort();
    println!(
        "  fdatasync: {} us; asked to take {} us: {} us (median)",
        fast.as_micros(),
        delay.as_micros(),
        slow[10].as_micros()
    );
    assert!(slow[0] >= delay, "a flush of 2 ms took {:?}", slow[0]);

    // A cut ends one that is under way, with what it was to flush.
    disk.set_flush_delay(Duration::from_secs(3600));
    write_slot(&file, 1, 2).expect("a write");
    let flushed = Mutex::new(None);
    thread::scope(|scope| {
        scope.spawn(|| *flushed.lock().expect("one holder") = Some(errno(file.sync_data())));
        while disk.flushes_pending() == 0 {
            thread::yield_now();
        }
        disk.cut(CutStyle::LoseAll, 1);
    });
    assert_eq!(
        flushed.into_inner().expect("one holder"),
        Some(Some(libc::EIO)),
        "a cut ends a flush under way"
    );
    drop(file);
    disk.set_flush_delay(Duration::ZERO);
    heal(&mut disk);
    let bytes = fs::read(&path).expect("the slots");
    assert!(bytes[PAGE..2 * PAGE] == page(1, 1), "what that flush was to flush is gone");
    Ok(())
}

fn files_open_across_a_cut_fail_for_ever() -> Outcome {
    let mut disk = disk()?;
    let path = disk.mount_point().join("slots");
    let held = slots(&path);
    write_slot(&held, 0, 1).expect("a write");
    held.sync_data().expect("a flush");
    disk.cut(CutStyle::LoseAll, 1);
    assert!(!disk.has_power());
    let mut bytes = Aligned::zeros(PAGE);
    assert_eq!(errno(held.read_exact_at(bytes.bytes(), 0)), Some(libc::EIO));
    heal(&mut disk);
    // The healed disk works while the old file still exists, and the old file cannot reach it.
    assert_eq!(errno(held.read_exact_at(bytes.bytes(), 0)), Some(libc::EIO));
    assert!(write_slot(&held, 0, 7).is_err() || held.sync_data().is_err());
    let file = open_direct(&path, 0);
    file.read_exact_at(bytes.bytes(), 0).expect("a read");
    assert!(bytes.bytes() == page(0, 1), "the old file reached the new disk");
    assert!(disk.counters().refused > 0);
    drop(held);
    // A heal without a cut is a clean unmount: nothing is lost.
    write_slot(&file, 1, 1).expect("a write");
    drop(file);
    heal(&mut disk);
    assert!(fs::read(&path).expect("the slots")[PAGE..2 * PAGE] == page(1, 1));
    Ok(())
}

// ---------------------------------------------------------------------------------------------------------------
// What remains.

/// The argument that makes this binary a process with a disk, to be killed.
const HOLD_A_DISK: &str = "--hold-a-disk";

/// Makes a disk, says so, and keeps it busy until standard input ends.
fn hold_a_disk() -> ExitCode {
    let disk = PowerCutDisk::new(Options::default()).expect("the parent has one, too");
    let file = slots(&disk.mount_point().join("slots"));
    thread::spawn(move || {
        let written =
            (1..).take_while(|&version| write_slot(&file, 1, version).is_ok() && file.sync_data().is_ok());
        written.count()
    });
    println!("ready");
    let _ = std::io::stdin().read(&mut [0]);
    ExitCode::SUCCESS
}

fn nothing_is_left_behind() -> Outcome {
    let traces = |pid: u32| mounts::traces_of(pid).expect("readable /proc and /sys");
    let own = std::process::id();
    let disk = disk()?;
    assert!(traces(own).len() >= 4, "home, two mounts, loop device: {:?}", traces(own));
    drop(disk);
    assert_eq!(traces(own), Vec::<String>::new(), "after a drop");

    let unwound = std::panic::catch_unwind(|| {
        let mut disk = PowerCutDisk::new(Options::default()).expect("there was one before");
        disk.cut(CutStyle::LoseAll, 1);
        std::panic::resume_unwind(Box::new("a test fails with the power off"));
    });
    assert!(unwound.is_err());
    assert_eq!(traces(own), Vec::<String>::new(), "after a panic");

    for _ in 0..3 {
        let mut child = Command::new(std::env::current_exe().expect("this binary"))
            .arg(HOLD_A_DISK)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this binary runs");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
        assert_eq!(line, "ready\n");
        assert!(!traces(child.id()).is_empty());
        assert_eq!(
            mounts::clean_stale().expect("a scan"),
            Vec::<PathBuf>::new(),
            "it is not stale while it lives"
        );
        child.kill().expect("it lives");
        // Killed in the middle of a flush it may not be able to end before it is cleaned up after.
        let deadline = Instant::now() + Duration::from_secs(30);
        while mounts::clean_stale().expect("what was left can be removed").is_empty() {
            assert!(Instant::now() < deadline, "not seen as stale: {:?}", traces(child.id()));
            thread::yield_now();
        }
        child.wait().expect("it ends");
        while !traces(child.id()).is_empty() {
            assert!(Instant::now() < deadline, "left behind: {:?}", traces(child.id()));
            thread::yield_now();
        }
    }
    Ok(())
}
