//! Starts from snapshots and the log behind them, without a server: what is restored is what was there, or the start is
//! refused.

#[allow(dead_code, reason = "each suite uses its part")]
mod snapshots;

use reactor::server::snapshot_start::Restored;
use snapshots::*;
use std::fs;
use std::path::Path;
use store::keyspace::Keyspace;
use wal::lsn::{Epoch, Lsn};

fn state<F>(restored: &mut Restored<F>) -> Contents {
    contents(&mut restored.keyspaces, now())
}

/// What a start that must not happen says.
fn refusal(directory: &Path, shards: usize) -> String {
    start_to(directory, shards, None, |_| {}).expect_err("it is refused").to_string()
}

/// Warms a keyspace to the end, and everything in it is in order.
fn warm(keyspace: &mut Keyspace) {
    while keyspace.warm_step(1 << 20) {
        if keyspace.is_tidying() {
            keyspace.compact_some(now(), 1 << 20);
        }
    }
    while keyspace.is_tidying() {
        keyspace.compact_some(now(), 1 << 20);
    }
    assert_eq!((keyspace.damage(), keyspace.warm_progress()), (None, None));
    keyspace.check().unwrap();
}

/// Whatever the shards were and are, wherever in the log each of them was when its image was taken.
#[test]
fn a_restart_is_the_state_that_was() {
    let mut random = Random::new("a_restart_is_the_state_that_was");
    let pairs = [(1, 1), (3, 3), (1, 3), (3, 2), (2, 5)];
    for round in 0..10 {
        let (before, after) = pairs[round % pairs.len()];
        let folder = Folder::new("state");
        let count = 2000 + random.below(3000);
        let records = records(&mut random, count, 600, round % 2 == 1);
        new_log(&folder.0, &records);
        // Shards are some records apart.
        let middle = random.below(count - 100);
        let lsns: Vec<u64> = (0..before).map(|_| middle + random.below(100)).collect();
        let id = take(&folder.0, &lsns);
        assert_eq!(id.lsn.0, *lsns.iter().min().unwrap());
        release(&folder.0, id.lsn.0);
        let now = now();
        let expected = state_after(&records, now);
        let mut restored = start(&folder.0, after);
        assert_eq!((restored.snapshot, restored.keyspaces.len()), (Some(id), after));
        assert_eq!(restored.recovered.end.next_lsn, Lsn(count + 1));
        assert_eq!(restored.recovered.end.records, count - id.lsn.0, "only the tail is read");
        assert!(contents(&mut restored.keyspaces, now) == expected, "round {round}: {before} to {after}");
        for keyspace in &mut restored.keyspaces {
            warm(keyspace);
        }
        assert!(contents(&mut restored.keyspaces, now) == expected, "warmed, round {round}");
        // To a place behind the snapshot, all of it read in at once.
        let to = lsns.iter().max().unwrap() + random.below(count - lsns.iter().max().unwrap());
        let until = start_to(&folder.0, after, Some(to), |wishes| wishes.warms_fully = true);
        let mut until = until.unwrap();
        assert!(until.served.is_none());
        assert!(until.keyspaces.iter().all(|keyspace| keyspace.warm_progress().is_none()));
        let expected = state_after(&records[..to as usize], now);
        assert!(contents(&mut until.keyspaces, now) == expected, "round {round}: up to LSN {to}");
    }
}

/// The log goes on behind a restart, and so does everything else: several snapshots, one behind the other.
#[test]
fn a_server_lives_on_from_snapshot_to_snapshot() {
    let mut random = Random::new("a_server_lives_on_from_snapshot_to_snapshot");
    let folder = Folder::new("lives");
    let mut all = Vec::new();
    for life in 0..6_u64 {
        let shards = 1 + life as usize % 3;
        let mut restored = start(&folder.0, shards);
        let now = now();
        assert!(contents(&mut restored.keyspaces, now) == state_after(&all, now), "life {life}");
        assert_eq!(restored.hash_seed, HASH_SEED);
        let start = restored.recovered.start.clone();
        assert_eq!((start.next_lsn, start.epoch), (Lsn(all.len() as u64 + 1), Epoch::FIRST));
        drop(restored);
        let more = records(&mut random, 700, 300, true);
        write_log(&folder.0, &start, &more);
        all.extend(more);
        if life % 2 == 0 {
            let lsn = all.len() as u64 - random.below(300);
            let id = take(&folder.0, &vec![lsn; shards]);
            assert_eq!(start_to(&folder.0, shards, None, |_| {}).unwrap().snapshot, Some(id));
            release(&folder.0, lsn);
        }
    }
}

/// One place of a file and what must be said of it.
fn places(path: &Path) -> Vec<(u64, &'static str)> {
    let length = fs::metadata(path).unwrap().len();
    let bytes = fs::read(path).unwrap();
    let trailer = &bytes[length as usize - 4096..];
    let tables = u64::from_le_bytes(trailer[32..40].try_into().unwrap());
    vec![
        (3, "expected \"MILLRSNP\", found \""),
        (100, "expected a header with the checksum 0x"),
        (length - 4096 + 2, "expected \"MILLREND\", found \""),
        (length - 50, "expected a trailer with the checksum 0x"),
        (tables + 40, "expected tables with the checksum 0x"),
    ]
}

/// Header, trailer and tables are looked at before anything is served. The snapshot before is used with the log, which holds the
/// same data; without it, the start is refused and says what, where and why.
#[test]
fn a_damaged_snapshot_is_passed_over_if_that_is_exact() {
    let mut random = Random::new("a_damaged_snapshot_is_passed_over_if_that_is_exact");
    // No segment of the log has as many records as lie between the places that matter below.
    let size = |records: &[Vec<u8>]| records.iter().map(Vec::len).sum::<usize>();
    let is_long = |records: &Vec<Vec<u8>>| records.windows(850).all(|some| size(some) > 1 << 20);
    let records = std::iter::repeat_with(|| records(&mut random, 3000, 400, false)).find(is_long).unwrap();
    let make = || {
        let folder = Folder::new("damage");
        new_log(&folder.0, &records);
        let earlier = take(&folder.0, &[900, 1000]);
        let newest = take(&folder.0, &[2000, 2010]);
        (folder, earlier, newest)
    };
    let (folder, _, newest) = make();
    for place in 0..places(&path_of(&folder.0, newest)).len() {
        // What has expired in the meantime is not in it: each has places of its own.
        let (folder, earlier, newest) = make();
        let (offset, said) = places(&path_of(&folder.0, newest))[place];
        release(&folder.0, earlier.lsn.0);
        let path = path_of(&folder.0, newest);
        flip(&path, offset);
        let now = now();
        let expected = state_after(&records, now);
        let mut restored = start(&folder.0, 2);
        assert_eq!(restored.snapshot, Some(earlier));
        assert!(contents(&mut restored.keyspaces, now) == expected, "offset {offset}");
        let note = &restored.notes[0];
        for word in [path.to_str().unwrap(), said, "are used instead", ".damaged now"] {
            assert!(note.contains(word), "{word} in {note}");
        }
        // It is out of the way, yet not forgotten: without the earlier one nothing holds the same.
        assert!(!path.exists());
        assert_eq!(start(&folder.0, 2).snapshot, Some(earlier));
        fs::remove_file(path_of(&folder.0, earlier)).unwrap();
        let refused = refusal(&folder.0, 2);
        let first = segments(&folder.0)[0].1.unwrap();
        let missing = format!("the log begins with LSN {first}, and not with LSN 1");
        for word in [".damaged was found damaged before", &missing, "move that file to another place"] {
            assert!(refused.contains(word), "{word} in {refused}");
        }
    }
    // All of the log is as good as any snapshot.
    let (folder, earlier, newest) = make();
    for id in [earlier, newest] {
        flip(&path_of(&folder.0, id), 100);
    }
    let now = now();
    let mut restored = start(&folder.0, 3);
    assert_eq!((restored.snapshot, restored.notes.len()), (None, 2));
    assert!(contents(&mut restored.keyspaces, now) == state_after(&records, now));
    // Without it they are not.
    let (folder, earlier, newest) = make();
    for id in [earlier, newest] {
        flip(&path_of(&folder.0, id), 100);
    }
    release(&folder.0, earlier.lsn.0);
    let refused = refusal(&folder.0, 2);
    for id in [earlier, newest] {
        assert!(refused.contains(path_of(&folder.0, id).to_str().unwrap()), "{refused}");
    }
    assert!(path_of(&folder.0, newest).exists(), "a start that is refused leaves everything as it is");
    // A log that has lost its end does not hold what a damaged snapshot held.
    let (folder, _, newest) = make();
    flip(&path_of(&folder.0, newest), 100);
    for (path, first) in segments(&folder.0).into_iter().rev() {
        if first.is_none_or(|first| first > Lsn(1000)) {
            fs::remove_file(path).unwrap();
        }
    }
    let refused = refusal(&folder.0, 2);
    assert!(refused.contains("which is known to have been durable"), "{refused}");
}

/// A page that is wrong is found by who uses it: the log's tail, a start that reads all, one that deals to other shards.
#[test]
fn a_damaged_page_that_a_start_meets_makes_it_take_the_snapshot_before() {
    let mut random = Random::new("a_damaged_page_that_a_start_meets_makes_it_take_the_snapshot_before");
    let records = records(&mut random, 2500, 300, false);
    for (shards, warms_fully) in [(2, true), (3, false), (2, false)] {
        let folder = Folder::new("page");
        new_log(&folder.0, &records);
        let earlier = take(&folder.0, &[400, 400]);
        let newest = take(&folder.0, &[1500, 1500]);
        release(&folder.0, 400);
        let path = path_of(&folder.0, newest);
        // Every page of buckets: the first key that is looked up meets one.
        for page in 1..512 {
            flip(&path, page * 4096 + 77);
        }
        let now = now();
        let restored = start_to(&folder.0, shards, None, |wishes| wishes.warms_fully = warms_fully);
        let mut restored = restored.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(restored.snapshot, Some(earlier), "{shards} shards, warms fully: {warms_fully}");
        assert!(contents(&mut restored.keyspaces, now) == state_after(&records, now));
        let note = &restored.notes[0];
        for word in [path.to_str().unwrap(), "at offset ", "expected a page with the checksum 0x", "shard 0"]
        {
            assert!(note.contains(word), "{word} in {note}");
        }
        assert!(!path.exists());
    }
}

/// A tail that will use most pages has all of them looked at first, by all cores, and the index in memory of its own.
#[test]
fn a_long_tail_has_the_whole_snapshot_checked_first() {
    let mut random = Random::new("a_long_tail_has_the_whole_snapshot_checked_first");
    let records = records(&mut random, 6000, 300, false);
    for shards in [1, 3] {
        let folder = Folder::new("tail");
        new_log(&folder.0, &records);
        let id = take(&folder.0, &vec![100; shards]);
        let now = now();
        let mut restored = start(&folder.0, shards);
        assert_eq!(restored.snapshot, Some(id));
        for keyspace in &restored.keyspaces {
            let progress = keyspace.warm_progress().expect("it lives on the snapshot");
            assert_eq!(progress.checked_bytes, progress.total_bytes);
            assert_eq!(progress.warmed_bytes, 2 << 20, "a slab of the index");
        }
        assert!(contents(&mut restored.keyspaces, now) == state_after(&records, now));
        restored.keyspaces.iter_mut().for_each(warm);
        assert!(contents(&mut restored.keyspaces, now) == state_after(&records, now), "warmed");
        // A short one does not.
        let id = take(&folder.0, &vec![5990; shards]);
        let restored = start(&folder.0, shards);
        assert_eq!(restored.snapshot, Some(id));
        let progress = restored.keyspaces[0].warm_progress().expect("it lives on the snapshot");
        assert!(progress.checked_bytes < progress.total_bytes);
        // A page of buckets that is wrong is found by the index' move, and the log has everything.
        let path = path_of(&folder.0, take(&folder.0, &vec![100; shards]));
        drop(restored);
        fs::remove_file(path_of(&folder.0, id)).unwrap();
        flip(&path, 512 * 4096 + 77);
        let mut restored = start(&folder.0, shards);
        assert_eq!(restored.snapshot, None);
        assert!(restored.notes[0].contains("expected a page with the checksum 0x"), "{:?}", restored.notes);
        assert!(contents(&mut restored.keyspaces, now) == state_after(&records, now));
    }
}

/// The log begins later than the snapshot ends, or there is none.
#[test]
fn a_gap_between_snapshot_and_log_is_refused_with_both_numbers() {
    let mut random = Random::new("a_gap_between_snapshot_and_log_is_refused_with_both_numbers");
    let records = records(&mut random, 3000, 400, false);
    let folder = Folder::new("gap");
    new_log(&folder.0, &records);
    let id = take(&folder.0, &[500, 510]);
    let first = release(&folder.0, 2500);
    assert!(first.0 > 501);
    let refused = refusal(&folder.0, 2);
    let missing = format!("the records from LSN 501 to {} are in neither", first.previous());
    for word in [path_of(&folder.0, id).to_str().unwrap(), "up to LSN 500", &missing] {
        assert!(refused.contains(word), "{word} in {refused}");
    }
    // One shard has seen more than the other, and what lies between is nowhere.
    for (path, _) in segments(&folder.0) {
        fs::remove_file(path).unwrap();
    }
    let refused = refusal(&folder.0, 2);
    assert!(refused.contains("one shard up to LSN 500 and another up to LSN 510"), "{refused}");
    // All have seen the same: that is a state, and it is said that more may have been.
    let folder = Folder::new("alone");
    new_log(&folder.0, &records);
    take(&folder.0, &[500, 500]);
    for (path, _) in segments(&folder.0) {
        fs::remove_file(path).unwrap();
    }
    let now = now();
    let mut restored = start(&folder.0, 2);
    assert!(contents(&mut restored.keyspaces, now) == state_after(&records[..500], now));
    assert!(restored.notes.iter().any(|note| note.contains("after LSN 500 is not here")), "{restored:?}");
    // And its numbers are not given to other records.
    assert_eq!(restored.recovered.start.next_lsn, Lsn(501));
}

/// What `--recover-to` leaves out is in no snapshot that is used, then and later: also where one of its shards is from before that
/// place, and another from behind.
#[test]
fn snapshots_of_what_was_left_out_are_not_used() {
    let mut random = Random::new("snapshots_of_what_was_left_out_are_not_used");
    for last in [700, 1205] {
        let folder = Folder::new("fork");
        let mut all = records(&mut random, 2000, 300, false);
        new_log(&folder.0, &all);
        let earlier = take(&folder.0, &[300, 310]);
        let abandoned = take(&folder.0, &[1200, 1210]);
        // Between what one shard has seen and what the other has.
        for (to, used) in [(1209, earlier), (1210, abandoned), (700, earlier)] {
            let now = now();
            let mut restored = start_to(&folder.0, 2, Some(to), |_| {}).unwrap();
            assert_eq!(restored.snapshot, Some(used), "up to LSN {to}");
            assert!(contents(&mut restored.keyspaces, now) == state_after(&all[..to as usize], now));
        }
        // Before the first of them there is only the log.
        assert_eq!(start_to(&folder.0, 2, Some(305), |_| {}).unwrap().snapshot, None);
        let cut = start_to(&folder.0, 2, Some(last), |_| {}).unwrap().recovered;
        assert_eq!((cut.start.epoch, cut.start.next_lsn), (Epoch(2), Lsn(last + 1)));
        all.truncate(last as usize);
        let more = records(&mut random, 900, 300, false);
        write_log(&folder.0, &cut.start, &more);
        all.extend(more);
        let now = now();
        let mut restored = start(&folder.0, 2);
        assert_eq!(restored.snapshot, Some(earlier));
        assert!(contents(&mut restored.keyspaces, now) == state_after(&all, now), "cut after {last}");
        if last < abandoned.lsn.0 {
            let says_so = restored.notes.iter().any(|note| note.contains("left out for good"));
            assert!(says_so, "{:?}", restored.notes);
        }
        // Once cut, not cut again.
        let again = start_to(&folder.0, 2, Some(last), |_| {}).expect_err("it was cut there").to_string();
        assert!(again.contains("cut there already"), "{again}");
        // A snapshot of the new history is newer than any of the old one.
        let newest = take(&folder.0, &[last + 200, last + 200]);
        assert_eq!(newest.epoch, Epoch(2));
        assert_eq!(start(&folder.0, 2).snapshot, Some(newest));
    }
}

/// The same by a time: only what was written until then.
#[test]
fn recovery_to_a_time_chooses_a_snapshot_before_it() {
    let mut random = Random::new("recovery_to_a_time_chooses_a_snapshot_before_it");
    let folder = Folder::new("time");
    let first = records(&mut random, 500, 100, false);
    new_log(&folder.0, &first);
    let earlier = take(&folder.0, &[400]);
    let between = now();
    while now().unix_us <= between.unix_us + 1000 {
        std::thread::yield_now();
    }
    let goes_on = start(&folder.0, 1).recovered.start;
    write_log(&folder.0, &goes_on, &records(&mut random, 500, 100, false));
    take(&folder.0, &[900]);
    let mut restored = start_to(&folder.0, 1, None, |wishes| {
        wishes.recovery.to = Some(reactor::server::recovery::RecoverTo::UnixMicros(between.unix_us));
    })
    .unwrap();
    assert_eq!(restored.snapshot, Some(earlier));
    let now = now();
    assert!(contents(&mut restored.keyspaces, now) == state_after(&first, now));
    assert_eq!(restored.recovered.start.next_lsn, Lsn(501));
    // Without a log there are only the snapshots, and none is older than all of them.
    for (path, _) in segments(&folder.0) {
        fs::remove_file(path).unwrap();
    }
    let to = |unix_us| {
        start_to(&folder.0, 1, None, |wishes| {
            wishes.recovery.to = Some(reactor::server::recovery::RecoverTo::UnixMicros(unix_us));
        })
    };
    assert_eq!(to(between.unix_us).unwrap().snapshot, Some(earlier));
    let refused = to(1).expect_err("nothing is that old").to_string();
    assert!(refused.contains("no snapshot in ") && refused.contains("recover-to"), "{refused}");
}

/// A snapshot that was taken without a log holds what nothing else does: it begins an epoch, the log goes on in it, and no
/// earlier snapshot and log are ever taken for the same.
#[test]
fn a_snapshot_without_a_log_is_not_replaced_by_an_earlier_one() {
    let mut random = Random::new("a_snapshot_without_a_log_is_not_replaced_by_an_earlier_one");
    let folder = Folder::new("unlogged");
    let mut all = records(&mut random, 600, 100, false);
    new_log(&folder.0, &all);
    let logged = take(&folder.0, &[500]);
    // What a server without a log did: it read all there is, and took a snapshot.
    let mut restored = start_to(&folder.0, 1, None, |wishes| wishes.may_write = false).unwrap();
    assert_eq!((restored.snapshot, restored.snapshot_epoch(false)), (Some(logged), Epoch(2)));
    let unlogged = records(&mut random, 50, 100, false);
    for record in &unlogged {
        restored.keyspaces[0].apply_all(record, now()).unwrap();
    }
    warm(&mut restored.keyspaces[0]);
    let epoch = restored.snapshot_epoch(false);
    let id = write_snapshot(&folder.0, &mut restored.keyspaces, &[Lsn(600)], epoch);
    all.extend(unlogged);
    let check = |shards, used, all: &[Vec<u8>]| {
        let now = now();
        let mut restored = start(&folder.0, shards);
        assert_eq!(restored.snapshot, Some(used));
        assert!(contents(&mut restored.keyspaces, now) == state_after(all, now));
        restored.recovered.start
    };
    let start = check(2, id, &all);
    assert_eq!((start.epoch, start.epoch_first_lsn, start.next_lsn), (Epoch(2), Lsn(601), Lsn(601)));
    let more = records(&mut random, 300, 100, false);
    // Before the log has gone on, and after.
    let path = path_of(&folder.0, id);
    flip(&path, 50);
    let refused = refusal(&folder.0, 1);
    assert!(refused.contains("taken without a log") && refused.contains("checksum"), "{refused}");
    flip(&path, 50);
    write_log(&folder.0, &start, &more);
    all.extend(more);
    check(1, id, &all);
    flip(&path, 50);
    let refused = refusal(&folder.0, 1);
    assert!(refused.contains("epoch 2 of the log begins with LSN 601"), "{refused}");
    assert!(path.exists());
    // Once there is a later one that the log leads to, it is one like others.
    flip(&path, 50);
    let later = take(&folder.0, &[700]);
    flip(&path, 50);
    check(1, later, &all);
}

/// Only what is called as a snapshot is one, and what it says it is.
#[test]
fn a_snapshot_under_another_ones_name_is_not_used() {
    let mut random = Random::new("a_snapshot_under_another_ones_name_is_not_used");
    let folder = Folder::new("name");
    let all = records(&mut random, 400, 100, false);
    new_log(&folder.0, &all);
    let id = take(&folder.0, &[300]);
    let pretended = snapshot::names::SnapshotId { lsn: Lsn(350), ..id };
    fs::copy(path_of(&folder.0, id), path_of(&folder.0, pretended)).unwrap();
    let mut restored = start(&folder.0, 1);
    assert_eq!(restored.snapshot, Some(id));
    assert!(state(&mut restored) == state_after(&all, now()));
    assert!(restored.notes[0].contains("Give the file its own name back"), "{:?}", restored.notes);
    assert!(path_of(&folder.0, pretended).exists(), "it is no damage");
}
