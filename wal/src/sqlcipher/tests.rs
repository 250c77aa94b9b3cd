//! Tests of the encrypted journal: keys, order, durability, damage.

use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

/// A folder that is removed with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("millrace-journal-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Folder(path)
    }

    fn journal(&self) -> PathBuf {
        self.0.join("journal.db")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

const RESERVE: u64 = 100_000;

fn raw(digit: &str) -> Key {
    Key::parse(&digit.repeat(64)).unwrap()
}

fn open(path: &Path) -> Journal {
    Journal::open(path, &raw("a"), RESERVE).unwrap()
}

fn batch(payloads: &[&[u8]]) -> Batch {
    let mut batch = Batch::new();
    for payload in payloads {
        batch.push(payload);
    }
    batch
}

fn records(journal: &Journal, from: u64, until: Until) -> (Vec<(u64, u64, Vec<u8>)>, JournalEnd) {
    let mut found = Vec::new();
    let each = |record: Record<'_>| found.push((record.lsn.0, record.unix_us, record.payload.to_vec()));
    let end = journal.read(Lsn(from), until, each).unwrap();
    (found, end)
}

#[test]
fn what_was_appended_is_read_back_after_every_reopening() {
    let folder = Folder::new();
    let mut journal = open(&folder.journal());
    assert_eq!((journal.next_lsn(), journal.durable_lsn()), (Lsn(1), Lsn(0)));
    assert_eq!(journal.append_batch(&batch(&[b"one", b"", &[3; 10_000]]), 10), Ok(Lsn(3)));
    assert_eq!(journal.append_batch(&Batch::new(), 11), Ok(Lsn(3)));
    assert_eq!(journal.append_batch(&batch(&[b"four"]), 5), Ok(Lsn(4)), "and time does not go back");
    journal.close().unwrap();
    let mut journal = open(&folder.journal());
    assert_eq!(journal.append_batch(&batch(&[b"five"]), 20), Ok(Lsn(5)));
    let (found, end) = records(&journal, 1, Until::End);
    let expected: [(u64, u64, &[u8]); 5] =
        [(1, 10, b"one"), (2, 10, b""), (3, 10, &[3; 10_000]), (4, 11, b"four"), (5, 20, b"five")];
    assert!(found.iter().map(|(lsn, time, bytes)| (*lsn, *time, bytes.as_slice())).eq(expected));
    assert_eq!(end, JournalEnd { next_lsn: Lsn(6), last_unix_us: 20, records: 5, is_until: false });
    let (found, end) = records(&journal, 2, Until::Lsn(Lsn(3)));
    assert_eq!((found.len(), end.next_lsn, end.is_until), (2, Lsn(4), true));
    assert_eq!(records(&journal, 1, Until::UnixMicros(11)).0.len(), 4);
    journal.verify().unwrap();
}

/// What the guarantee rests on: SQLite flushes its log with every commit, and nobody else reads the files.
#[test]
fn commits_are_durable_and_files_are_private() {
    let folder = Folder::new();
    let path = folder.journal();
    fs::write(&path, b"").unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    let mut journal = open(&path);
    journal.admission().unwrap();
    journal.append_batch(&batch(&[b"secret words"]), 1).unwrap();
    let pragma =
        |name| journal.connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(pragma("synchronous"), 3);
    let mode: String = journal.connection.pragma_query_value(None, "journal_mode", |row| row.get(0)).unwrap();
    assert_eq!(mode, "wal");
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder.0).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().mode() & 0o777, 0o600, "{:?}", entry.path());
        let bytes = fs::read(entry.path()).unwrap();
        assert!(!bytes.windows(6).any(|window| window == b"secret"), "{:?} is in the clear", entry.path());
        assert!(!bytes.starts_with(b"SQLite format"), "{:?} is in the clear", entry.path());
        names.push(entry.file_name().into_string().unwrap());
    }
    names.sort();
    assert_eq!(names, ["journal.db", "journal.db-reserve", "journal.db-wal"]);
    assert_eq!(fs::metadata(folder.0.join("journal.db-reserve")).unwrap().len(), RESERVE);
}

/// A killed process leaves its files as they are: every batch that was acknowledged is in them.
#[test]
fn a_journal_that_was_not_closed_has_every_acknowledged_batch() {
    let folder = Folder::new();
    let mut journal = open(&folder.journal());
    for number in 0..50_u64 {
        let last = journal.append_batch(&batch(&[&number.to_le_bytes(), b"x"]), number).unwrap();
        if number % 10 == 3 {
            let copy = Folder::new();
            for entry in fs::read_dir(&folder.0).unwrap() {
                let entry = entry.unwrap();
                fs::copy(entry.path(), copy.0.join(entry.file_name())).unwrap();
            }
            let copied = open(&copy.journal());
            assert_eq!(copied.durable_lsn(), last);
            assert_eq!(records(&copied, 1, Until::End).0.len() as u64, last.0);
        }
    }
}

#[test]
fn the_wrong_key_is_one_clear_error() {
    let folder = Folder::new();
    let path = folder.journal();
    open(&path).close().unwrap();
    let before = fs::read(&path).unwrap();
    for key in [raw("b"), Key::parse("a passphrase").unwrap()] {
        let error = Journal::open(&path, &key, RESERVE).unwrap_err();
        assert_eq!(error, JournalError::WrongKey(path.clone()));
        let said = error.to_string();
        assert!(said.contains("journal.db") && said.contains("key") && !said.contains("bbbb"), "{said}");
    }
    assert_eq!(fs::read(&path).unwrap(), before, "nothing was changed");
    assert_eq!(format!("{:?}", raw("b")), "Key(hidden)");
    fs::write(
        &path,
        b"not a database at all, but some text that is long enough to be a page of one".repeat(100),
    )
    .unwrap();
    assert_eq!(Journal::open(&path, &raw("a"), RESERVE).unwrap_err(), JournalError::WrongKey(path.clone()));
    for text in ["", "\n", "two\nlines", "x'00'", "zero\0"] {
        assert!(matches!(Key::parse(text), Err(JournalError::Key(_))), "{text:?}");
    }
}

#[test]
fn a_new_key_replaces_the_old_one() {
    let folder = Folder::new();
    let path = folder.journal();
    let mut journal = open(&path);
    journal.append_batch(&batch(&[b"kept", b"too"]), 1).unwrap();
    let passphrase = Key::parse("it's a \"passphrase\"; with -- signs\n").unwrap();
    journal.rekey(&passphrase).unwrap();
    journal.append_batch(&batch(&[b"later"]), 2).unwrap();
    let mode: String = journal.connection.pragma_query_value(None, "journal_mode", |row| row.get(0)).unwrap();
    assert_eq!(mode, "wal");
    journal.close().unwrap();
    assert_eq!(Journal::open(&path, &raw("a"), RESERVE).unwrap_err(), JournalError::WrongKey(path.clone()));
    let journal = Journal::open(&path, &passphrase, RESERVE).unwrap();
    assert_eq!(records(&journal, 1, Until::End).0.len(), 3);
    journal.verify().unwrap();
}

#[test]
fn a_second_process_is_told_who_is_in_the_way() {
    let folder = Folder::new();
    let journal = open(&folder.journal());
    let error = Journal::open(&folder.journal(), &raw("a"), RESERVE).unwrap_err();
    assert_eq!(error, JournalError::Locked(folder.journal()));
    drop(journal);
    open(&folder.journal());
}

#[test]
fn released_records_are_gone_and_numbers_go_on() {
    let folder = Folder::new();
    let mut journal = open(&folder.journal());
    for number in 0..10_u8 {
        journal.append_batch(&batch(&[&[number]]), u64::from(number)).unwrap();
    }
    journal.release(Lsn(8)).unwrap();
    assert_eq!(records(&journal, 8, Until::End).0.len(), 3);
    assert!(matches!(journal.read(Lsn(7), Until::End, |_| {}), Err(JournalError::Damaged(..))));
    journal.release(Lsn::MAX).unwrap();
    journal.close().unwrap();
    let mut journal = open(&folder.journal());
    assert_eq!((journal.first_lsn(), journal.next_lsn()), (Lsn(11), Lsn(11)));
    assert_eq!(journal.append_batch(&batch(&[b"x"]), 1), Ok(Lsn(11)));
}

#[test]
fn a_cut_begins_an_epoch_and_a_new_journal_may_begin_anywhere() {
    let folder = Folder::new();
    let mut journal = open(&folder.journal());
    journal.begin_at(Lsn(100), Epoch(3), Lsn(50)).unwrap();
    journal.append_batch(&batch(&[b"a", b"b", b"c"]), 1).unwrap();
    journal.cut(Lsn(101)).unwrap();
    journal.close().unwrap();
    let mut journal = open(&folder.journal());
    assert_eq!((journal.epoch(), journal.next_lsn()), ((Epoch(4), Lsn(101)), Lsn(101)));
    journal.append_batch(&batch(&[b"other"]), 1).unwrap();
    let (found, _) = records(&journal, 100, Until::End);
    assert_eq!(
        found.iter().map(|record| record.2.as_slice()).collect::<Vec<_>>(),
        [b"a".as_slice(), b"other"]
    );
}

/// SQLite can be told how many pages a file may have, and then says what it says of a full disk.
#[test]
fn a_full_disk_refuses_and_passes() {
    let folder = Folder::new();
    let mut journal = open(&folder.journal());
    journal.admission().unwrap();
    journal.append_batch(&batch(&[b"before"]), 1).unwrap();
    let pages: i64 = journal.connection.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
    let limit = |journal: &Journal, pages: i64| {
        journal
            .connection
            .query_row(&format!("PRAGMA max_page_count = {pages}"), [], |row| row.get::<_, i64>(0))
            .unwrap()
    };
    limit(&journal, pages + 2);
    let error = journal.append_batch(&batch(&[&[1; 100_000]]), 2).unwrap_err();
    assert_eq!(error, JournalError::Full(folder.journal()));
    assert!(!folder.0.join("journal.db-reserve").exists(), "it was given up for the second try");
    assert_eq!(journal.durable_lsn(), Lsn(1));
    limit(&journal, 1 << 30);
    journal.admission().unwrap();
    assert!(folder.0.join("journal.db-reserve").exists());
    assert_eq!(journal.append_batch(&batch(&[&[1; 100_000]]), 2), Ok(Lsn(2)));
    assert_eq!(records(&journal, 1, Until::End).0.len(), 2);
}

/// Any other failure is the end of this journal object, not of the records.
#[test]
fn a_failed_transaction_is_not_tried_again() {
    let folder = Folder::new();
    let mut journal = open(&folder.journal());
    journal.append_batch(&batch(&[b"kept"]), 1).unwrap();
    journal.connection.execute_batch("DROP TABLE record").unwrap();
    let error = journal.append_batch(&batch(&[b"lost"]), 1).unwrap_err();
    assert!(matches!(error, JournalError::Failed(..)), "{error}");
    assert_eq!(journal.append_batch(&Batch::new(), 1), Err(error.clone()));
    assert_eq!(journal.admission(), Err(error.clone()));
    assert_eq!(journal.release(Lsn(2)), Err(error));
}

#[test]
fn a_flipped_byte_is_never_served() {
    let folder = Folder::new();
    let path = folder.journal();
    let mut journal = open(&path);
    for number in 0..20_u8 {
        journal.append_batch(&batch(&[&[number; 300]]), 1).unwrap();
    }
    let (expected, _) = records(&journal, 1, Until::End);
    journal.close().unwrap();
    let bytes = fs::read(&path).unwrap();
    let mut refused = 0;
    for at in (0..bytes.len()).step_by(97) {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1;
        fs::write(&path, &flipped).unwrap();
        drop(fs::remove_file(folder.0.join("journal.db-wal")));
        let mut found = Vec::new();
        let end = Journal::open(&path, &raw("a"), RESERVE).and_then(|journal| {
            journal.read(Lsn(1), Until::End, |record| found.push((record.lsn.0, 1, record.payload.to_vec())))
        });
        match end {
            Err(_) => refused += 1,
            Ok(_) => assert_eq!(found, expected, "byte {at}"),
        }
        assert!(expected.starts_with(&found), "byte {at}: changed data");
    }
    assert!(refused > bytes.len() / 97 * 9 / 10, "{refused} refused");
}
