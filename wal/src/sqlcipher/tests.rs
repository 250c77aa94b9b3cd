//! Tests of the encrypted journal: keys, order, durability, damage.

use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::record::Record;

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

fn raw(digit: &str) -> Key {
    Key::parse(&digit.repeat(64)).unwrap()
}

fn open(path: &Path) -> Journal {
    Journal::open(path, &raw("a")).unwrap()
}

/// A journal with room, as the server has it.
fn with_room(path: &Path) -> Journal {
    let mut journal = open(path);
    journal.make_room(1 << 20).unwrap();
    journal
}

/// One transaction with these records, flushed.
fn write(journal: &mut Journal, payloads: &[&[u8]], unix_us: u64) -> Result<Lsn, JournalError> {
    for payload in payloads {
        journal.append(payload, unix_us)?;
    }
    journal.commit()?;
    journal.flush()
}

fn records(journal: &Journal, from: u64, until: Until) -> (Vec<(u64, u64, Vec<u8>)>, JournalEnd) {
    let mut found = Vec::new();
    let each = |record: Record<'_>| -> Result<(), JournalError> {
        found.push((record.lsn.0, record.unix_us, record.payload.to_vec()));
        Ok(())
    };
    let end = journal.read(Lsn(from), until, each).unwrap();
    (found, end)
}

#[test]
fn what_was_appended_is_read_back_after_every_reopening() {
    let folder = Folder::new();
    let mut journal = open(&folder.journal());
    assert_eq!((journal.next_lsn(), journal.durable_lsn()), (Lsn(1), Lsn(0)));
    assert_eq!(write(&mut journal, &[b"one", b"", &[3; 10_000]], 10), Ok(Lsn(3)));
    assert_eq!(write(&mut journal, &[], 11), Ok(Lsn(3)));
    assert_eq!(write(&mut journal, &[b"four"], 5), Ok(Lsn(4)), "time does not go back");
    journal.close().unwrap();
    let mut journal = open(&folder.journal());
    assert_eq!(write(&mut journal, &[b"five"], 20), Ok(Lsn(5)));
    let (found, end) = records(&journal, 1, Until::End);
    let expected: [(u64, u64, &[u8]); 5] =
        [(1, 10, b"one"), (2, 10, b""), (3, 10, &[3; 10_000]), (4, 10, b"four"), (5, 20, b"five")];
    assert!(found.iter().map(|(lsn, time, bytes)| (*lsn, *time, bytes.as_slice())).eq(expected));
    assert_eq!(
        end,
        JournalEnd { next_lsn: Lsn(6), last_unix_us: 20, records: 5, payload_bytes: 10_011, is_until: false }
    );
    let (found, end) = records(&journal, 2, Until::Lsn(Lsn(3)));
    assert_eq!((found.len(), end.next_lsn, end.is_until), (2, Lsn(4), true));
    assert_eq!(records(&journal, 1, Until::UnixMicros(10)).0.len(), 4);
    journal.verify().unwrap();
}

/// The format is a promise: the document has the tables, the mark and the settings as they are.
#[test]
fn the_document_says_what_is_done() {
    let document = include_str!("../../../docs/formats/journal.md");
    let plain = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let document = plain(document);
    assert!(document.contains(&plain(TABLES)), "the tables");
    assert!(document.contains(&format!("application_id` is {APPLICATION_ID:#x}")));
    assert!(document.contains(&format!("format, version {VERSION}")));
    assert!(document.contains("`MRLJMARK`") && document.contains(&format!("up to {} KiB", ROW_BYTES >> 10)));
    let folder = Folder::new();
    let journal = open(&folder.journal());
    let pragma = |name: &str| {
        let value = journal.connection.pragma_query_value(None, name, |row| row.get::<_, String>(0));
        value.unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    for (name, value, said) in [
        ("cipher_page_size", "4096", "4096 bytes"),
        ("kdf_iter", "256000", "256,000 iterations"),
        ("cipher_hmac_algorithm", "HMAC_SHA512", "HMAC-SHA512"),
        ("cipher_kdf_algorithm", "PBKDF2_HMAC_SHA512", "PBKDF2-HMAC-SHA512"),
        ("cipher_use_hmac", "1", "checked at each read"),
    ] {
        assert_eq!(pragma(name), value, "{name}");
        assert!(document.contains(said), "{said}");
    }
    let plaintext =
        journal.connection.pragma_query_value(None, "cipher_plaintext_header_size", |row| row.get(0));
    assert_eq!(plaintext, Ok("0".to_string()));
    assert_eq!(log_file::PAGE_BYTES, 4096);
}

#[test]
fn files_are_private_and_unreadable() {
    let folder = Folder::new();
    let path = folder.journal();
    fs::write(&path, b"").unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    let mut journal = open(&path);
    journal.make_room(1 << 20).unwrap();
    write(&mut journal, &[b"secret words"], 1).unwrap();
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
    assert_eq!(names, ["journal.db", "journal.db-wal"]);
}

/// A killed process leaves its files as they are: every batch that was acknowledged is in them.
#[test]
fn a_journal_that_was_not_closed_has_every_acknowledged_batch() {
    let folder = Folder::new();
    let mut journal = open(&folder.journal());
    for number in 0..50_u64 {
        let last = write(&mut journal, &[&number.to_le_bytes(), b"x"], number).unwrap();
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
        let error = Journal::open(&path, &key).unwrap_err();
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
    assert_eq!(Journal::open(&path, &raw("a")).unwrap_err(), JournalError::WrongKey(path.clone()));
    for text in ["", "\n", "two\nlines", "x'00'", "zero\0"] {
        assert!(matches!(Key::parse(text), Err(JournalError::Key(_))), "{text:?}");
    }
}

#[test]
fn a_copy_has_everything_under_its_own_key() {
    let folder = Folder::new();
    let path = folder.journal();
    let mut journal = open(&path);
    journal.begin_at(Lsn(7), Epoch(3), Lsn(5)).unwrap();
    for number in 0..100_u64 {
        write(&mut journal, &[&number.to_le_bytes(), &vec![number as u8; 100_000]], number).unwrap();
    }
    let expected = records(&journal, 7, Until::End);
    let passphrase = Key::parse("it's a \"passphrase\"; with -- signs\n").unwrap();
    let copy = folder.0.join("copy.db");
    journal.copy_to(&copy, &passphrase, &mut |_| {}).unwrap();
    assert!(!folder.0.join("copy.db-wal").exists(), "it is one file");
    assert_eq!(Journal::open(&copy, &raw("a")).unwrap_err(), JournalError::WrongKey(copy.clone()));
    let mut copied = Journal::open(&copy, &passphrase).unwrap();
    assert_eq!(records(&copied, 7, Until::End), expected);
    assert_eq!((copied.epoch(), copied.first_lsn()), ((Epoch(3), Lsn(5)), Lsn(7)));
    copied.verify().unwrap();
    assert_eq!(write(&mut copied, &[b"later"], 200), Ok(Lsn(207)));
}

#[test]
fn a_second_process_is_told_who_is_in_the_way() {
    let folder = Folder::new();
    let journal = open(&folder.journal());
    let error = Journal::open(&folder.journal(), &raw("a")).unwrap_err();
    assert_eq!(error, JournalError::Locked(folder.journal()));
    drop(journal);
    open(&folder.journal());
}

#[test]
fn released_records_are_gone_and_numbers_go_on() {
    let folder = Folder::new();
    let mut journal = open(&folder.journal());
    for number in 0..10_u8 {
        write(&mut journal, &[&[number]], u64::from(number)).unwrap();
    }
    journal.release(Lsn(8)).unwrap();
    assert_eq!(records(&journal, 8, Until::End).0.len(), 3);
    assert!(matches!(
        journal.read(Lsn(7), Until::End, |_| Ok::<(), JournalError>(())),
        Err(JournalError::Damaged(..))
    ));
    journal.release(Lsn::MAX).unwrap();
    journal.close().unwrap();
    let mut journal = open(&folder.journal());
    assert_eq!((journal.first_lsn(), journal.next_lsn()), (Lsn(11), Lsn(11)));
    assert_eq!(write(&mut journal, &[b"x"], 1), Ok(Lsn(11)));
}

#[test]
fn a_cut_begins_an_epoch_and_a_new_journal_may_begin_anywhere() {
    let folder = Folder::new();
    let mut journal = open(&folder.journal());
    journal.begin_at(Lsn(100), Epoch(3), Lsn(50)).unwrap();
    write(&mut journal, &[b"a", b"b", b"c"], 1).unwrap();
    journal.cut(Lsn(101)).unwrap();
    journal.close().unwrap();
    let mut journal = open(&folder.journal());
    assert_eq!((journal.epoch(), journal.next_lsn()), ((Epoch(4), Lsn(101)), Lsn(101)));
    write(&mut journal, &[b"other"], 1).unwrap();
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
    let mut journal = with_room(&folder.journal());
    write(&mut journal, &[b"before"], 1).unwrap();
    let pages: i64 = journal.connection.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
    let limit = |journal: &Journal, pages: i64| {
        let sql = format!("PRAGMA max_page_count = {pages}");
        journal.connection.query_row(&sql, [], |row| row.get::<_, i64>(0)).unwrap()
    };
    limit(&journal, pages + 2);
    let error = write(&mut journal, &[b"small", &[1; 100_000]], 2).unwrap_err();
    assert_eq!(error, JournalError::Full(folder.journal()));
    assert_eq!((journal.durable_lsn(), journal.next_lsn()), (Lsn(1), Lsn(2)));
    limit(&journal, 1 << 30);
    assert_eq!(write(&mut journal, &[b"small", &[1; 100_000]], 2), Ok(Lsn(3)));
    assert_eq!(records(&journal, 1, Until::End).0.len(), 3);
    journal.verify().unwrap();
}

/// What was said to fit does, without a longer file: small transactions, large ones, records of several rows.
#[test]
fn what_there_is_room_for_needs_no_more_of_the_disk() {
    let folder = Folder::new();
    let mut journal = open(&folder.journal());
    assert_eq!(journal.room(), 0, "nothing is promised that is not prepared");
    journal.make_room(8 << 20).unwrap();
    assert!(journal.room() >= 8 << 20);
    let length = || fs::metadata(folder.0.join("journal.db-wal")).unwrap().len();
    let prepared = length();
    let mut number = 0_usize;
    for size in [0, 1, 90, 470, 3_000, 3_950, 4_100, 9_000, 100_000, 262_136, 262_137, 300_000, 1 << 20] {
        let mut count = 0;
        loop {
            let records = 1 + number % 3;
            let need = image_bytes_max(records * (size + FRAME_BYTES));
            if need > journal.room() || count == 200 {
                break;
            }
            let before = journal.room();
            let payload = vec![number as u8; size];
            write(&mut journal, &vec![&payload[..]; records], 1).unwrap();
            assert!(before - journal.room() <= need, "{records} of {size} took {}", before - journal.room());
            (number, count) = (number + 1, count + 1);
        }
        journal.make_room(4 << 20).unwrap();
    }
    assert_eq!(length(), prepared);
    assert!(number > 1_000, "{number}");
    journal.verify().unwrap();
    journal.close().unwrap();
    assert_eq!(length(), prepared, "closing keeps what is prepared");
    let journal = open(&folder.journal());
    assert!(journal.room() > 7 << 20, "and the next one has it again");
    assert!(records(&journal, 1, Until::End).0.len() > number);
}

/// Any other failure is the end of this journal object, not of the records.
#[test]
fn a_failed_transaction_is_not_tried_again() {
    let folder = Folder::new();
    let mut journal = open(&folder.journal());
    write(&mut journal, &[b"kept"], 1).unwrap();
    journal.connection.execute_batch("DROP TABLE block").unwrap();
    let error = write(&mut journal, &[b"lost"], 1).unwrap_err();
    assert!(matches!(error, JournalError::Failed(..)), "{error}");
    assert_eq!(write(&mut journal, &[b"later"], 1), Err(error.clone()));
    assert_eq!(journal.make_room(1), Err(error.clone()));
    assert_eq!(journal.release(Lsn(2)), Err(error));
}

/// A byte of SQLite's log that has changed would, to SQLite, be the end of it. The durable mark knows better.
#[test]
fn a_flipped_byte_in_the_log_takes_back_nothing() {
    let folder = Folder::new();
    let mut journal = with_room(&folder.journal());
    for number in 0..60_u8 {
        write(&mut journal, &[&[number; 300]], 1).unwrap();
        if number == 20 {
            journal.checkpoint().unwrap();
        }
    }
    let (expected, _) = records(&journal, 1, Until::End);
    let used = 32 + journal.log_bytes() as usize;
    // As a killed process leaves it: neither closed nor folded.
    let (database, log) =
        (fs::read(folder.journal()).unwrap(), fs::read(folder.0.join("journal.db-wal")).unwrap());
    let copy = Folder::new();
    let mut refused = 0;
    let places: Vec<usize> = (0..64).chain((64..used).step_by(1013)).collect();
    for &at in &places {
        fs::write(copy.journal(), &database).unwrap();
        let mut flipped = log.clone();
        flipped[at] ^= 4;
        fs::write(copy.0.join("journal.db-wal"), &flipped).unwrap();
        match Journal::open(&copy.journal(), &raw("a")) {
            Err(JournalError::Damaged(path, said)) => {
                assert!(path.ends_with("journal.db-wal") && said.contains("offset"), "{said}");
                refused += 1;
            }
            // A byte that nobody looks at, as the number of checkpoints.
            Ok(journal) => assert_eq!(records(&journal, 1, Until::End).0, expected, "byte {at}"),
            Err(other) => panic!("byte {at}: {other}"),
        }
    }
    assert!(refused > places.len() * 9 / 10, "{refused} of {}", places.len());
    // The mark is no obstacle where it is lost itself, and a torn end behind it is cut.
    fs::write(copy.journal(), &database).unwrap();
    let mut torn = log.clone();
    let end = torn.len() - 4096;
    torn[end..].fill(0);
    torn[used - 10] ^= 1;
    fs::write(copy.0.join("journal.db-wal"), &torn).unwrap();
    assert_eq!(records(&open(&copy.journal()), 1, Until::End).0, expected[..expected.len() - 1]);
}

#[test]
fn long_records_take_several_rows() {
    let folder = Folder::new();
    let mut journal = open(&folder.journal());
    let long: Vec<u8> = (0..1_000_000_u32).map(|number| (number % 251) as u8).collect();
    write(
        &mut journal,
        &[b"before", &long, b"", &long[..ROW_BYTES - 8], &long[..ROW_BYTES - 7], b"after"],
        9,
    )
    .unwrap();
    write(&mut journal, &[&long[1..]], 10).unwrap();
    journal.close().unwrap();
    let mut journal = open(&folder.journal());
    let lengths = |journal: &Journal, from| {
        let (found, _) = records(journal, from, Until::End);
        assert!(
            found.iter().all(|record| long.starts_with(&record.2) || record.2.len() < 10 || record.0 == 7)
        );
        found.iter().map(|record| (record.0, record.2.len())).collect::<Vec<_>>()
    };
    let all = [(1, 6), (2, 1_000_000), (3, 0), (4, ROW_BYTES - 8), (5, ROW_BYTES - 7), (6, 5), (7, 999_999)];
    for from in 1..=8 {
        assert_eq!(lengths(&journal, from), all[from as usize - 1..], "from {from}");
    }
    journal.cut(Lsn(7)).unwrap();
    assert_eq!(lengths(&journal, 1), all[..6]);
    journal.release(Lsn(3)).unwrap();
    assert_eq!(lengths(&journal, 3), all[2..6]);
    journal.cut(Lsn(5)).unwrap();
    assert_eq!(lengths(&journal, 3), all[2..4]);
    assert_eq!(write(&mut journal, &[b"x"], 11), Ok(Lsn(5)));
    journal.verify().unwrap();
}

/// Cut and released at every record of rows that hold several.
#[test]
fn rows_are_cut_and_released_anywhere() {
    for at in 1..=13_u64 {
        let folder = Folder::new();
        let mut journal = open(&folder.journal());
        for first in [1_u8, 5, 9] {
            write(&mut journal, &[&[first], &[first + 1], &[first + 2], &[first + 3]], u64::from(first))
                .unwrap();
        }
        let numbers = |journal: &Journal, from| -> Vec<u64> {
            records(journal, from, Until::End).0.iter().map(|record| record.0).collect()
        };
        journal.release(Lsn(at)).unwrap();
        assert!(numbers(&journal, at).into_iter().eq(at..=12), "{at}");
        let cut = at + (13 - at) / 2;
        journal.cut(Lsn(cut)).unwrap();
        assert!(numbers(&journal, at).into_iter().eq(at..cut), "{at} to {cut}");
        assert_eq!(write(&mut journal, &[b"new"], 30), Ok(Lsn(cut)));
        journal.close().unwrap();
        let journal = open(&folder.journal());
        assert_eq!((journal.next_lsn(), journal.first_lsn()), (Lsn(cut + 1), Lsn(at)));
        assert!(numbers(&journal, at).into_iter().eq(at..=cut));
    }
}

#[test]
fn a_flipped_byte_is_never_served() {
    let folder = Folder::new();
    let path = folder.journal();
    let mut journal = open(&path);
    for number in 0..20_u8 {
        write(&mut journal, &[&[number; 300]], 1).unwrap();
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
        let end = Journal::open(&path, &raw("a")).and_then(|journal| {
            journal.read(Lsn(1), Until::End, |record| {
                found.push((record.lsn.0, 1, record.payload.to_vec()));
                Ok(())
            })
        });
        match end {
            Err(_) => refused += 1,
            Ok(_) => assert_eq!(found, expected, "byte {at}"),
        }
        assert!(expected.starts_with(&found), "byte {at}: changed data");
    }
    assert!(refused > bytes.len() / 97 * 9 / 10, "{refused} refused");
}
