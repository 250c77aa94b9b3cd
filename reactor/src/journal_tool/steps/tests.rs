//! What somebody finds who comes after a conversion or a change of the key that ended between two of its steps.

use super::*;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicU32, Ordering};

/// A directory of one test's own, with two key files beside it.
struct Scratch {
    folder: PathBuf,
}

impl Scratch {
    fn new() -> Scratch {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder =
            std::env::temp_dir().join(format!("millrace-journal-tool-{}-{number}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("data")).unwrap();
        for (name, text) in [("old", "an old passphrase\n"), ("new", &"5a".repeat(32))] {
            fs::write(folder.join(name), text).unwrap();
            fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o600)).unwrap();
        }
        Scratch { folder }
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn key(&self, name: &str) -> KeySource {
        KeySource::File(self.folder.join(name))
    }

    fn convert(&self, to: JournalKind, survive: Survive<'_>) -> Result<(), ToolError> {
        convert(&self.data(), to, &self.key("old"), survive, &mut Vec::new())
    }

    fn names(&self) -> Vec<String> {
        let names = fs::read_dir(self.data()).unwrap();
        let mut names: Vec<String> =
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| name != log_files::LOCK_FILE && !name.ends_with(".spare"));
        names.sort();
        names
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn go_on(_: &str) -> Result<(), ToolError> {
    Ok(())
}

/// An encrypted journal with some history: a cut, an epoch, long records.
fn make(scratch: &Scratch) -> Content {
    let mut journal = journal::open(&scratch.data(), &scratch.key("old")).unwrap();
    for number in 0..40_u64 {
        let length = if number % 7 == 3 { 300_000 } else { number as usize * 9 };
        journal.append(&vec![number as u8; length], 1_000_000 + number * number).unwrap();
        if number % 3 == 0 {
            journal.commit().unwrap();
        }
    }
    journal.commit().unwrap();
    journal.flush().unwrap();
    journal.cut(Lsn(31)).unwrap();
    journal.append(b"another history", 5_000_000).unwrap();
    journal.commit().unwrap();
    journal.flush().unwrap();
    let content = content_of_journal(&journal).unwrap();
    assert_eq!((content.records, content.epoch, content.epoch_first_lsn), (31, 2, Lsn(31)));
    journal.close().unwrap();
    content
}

/// What the directory holds now, whichever journal it is.
fn content(scratch: &Scratch, key: &str) -> Result<Content, ToolError> {
    let found = Holdings::of(&scratch.data()).unwrap();
    match (found.native, found.sqlcipher) {
        (true, false) => read_native(&LogOnDisk::open(&scratch.data())?, |_, _, _| Ok(())),
        (false, true) => {
            let journal = journal::open(&scratch.data(), &scratch.key(key))?;
            let content = content_of_journal(&journal)?;
            journal.close()?;
            Ok(content)
        }
        neither => panic!("{neither:?}"),
    }
}

#[test]
fn a_conversion_keeps_records_numbers_times_and_the_epoch() {
    let scratch = Scratch::new();
    let made = make(&scratch);
    scratch.convert(JournalKind::Native, &mut go_on).unwrap();
    assert_eq!(content(&scratch, "old").unwrap(), made);
    assert!(scratch.names().iter().all(|name| name.starts_with("log-")), "{:?}", scratch.names());
    scratch.convert(JournalKind::Native, &mut go_on).unwrap();
    scratch.convert(JournalKind::Sqlcipher, &mut go_on).unwrap();
    assert_eq!(content(&scratch, "old").unwrap(), made);
    assert_eq!(scratch.names(), ["journal.db", "journal.db-wal"]);
    let before = fs::read(scratch.data().join(JOURNAL_FILE)).unwrap();
    for bytes in [b"another history".as_slice(), &[39; 100]] {
        assert!(!before.windows(bytes.len()).any(|window| window == bytes), "in the clear");
    }
}

/// The process ends between any two steps: the data is that of before, and once the new journal counts no server starts
/// until the same command has ended it.
#[test]
fn a_conversion_may_end_anywhere() {
    for to in [JournalKind::Native, JournalKind::Sqlcipher] {
        for end in 0.. {
            let scratch = Scratch::new();
            let made = make(&scratch);
            if to == JournalKind::Sqlcipher {
                scratch.convert(JournalKind::Native, &mut go_on).unwrap();
            }
            let (mut step, mut counts) = (0, false);
            let ended = scratch.convert(to, &mut |what| {
                counts |= what == "it counts";
                step += 1;
                if step > end { Err(ToolError::Text("killed".into())) } else { Ok(()) }
            });
            if ended.is_ok() {
                assert!(end >= 4, "{to}: {end} steps");
                break;
            }
            assert_eq!(ended.unwrap_err().to_string(), "killed");
            let other = if to == JournalKind::Native { JournalKind::Sqlcipher } else { JournalKind::Native };
            if counts {
                for kind in [to, other] {
                    let said = journal::refuse_the_other(&scratch.data(), kind).unwrap_err();
                    assert!(said.contains(&format!("--to {to}")), "{said}");
                }
                let said = scratch.convert(other, &mut go_on).unwrap_err().to_string();
                assert!(said.contains("end that one first"), "{said}");
            } else {
                journal::refuse_the_other(&scratch.data(), other).unwrap();
                assert_eq!(content(&scratch, "old").unwrap(), made, "the old one is whole");
            }
            scratch.convert(to, &mut go_on).unwrap();
            journal::refuse_the_other(&scratch.data(), to).unwrap();
            assert_eq!(content(&scratch, "old").unwrap(), made, "{to}, ended after {end} steps");
            let leftovers: Vec<String> =
                scratch.names().into_iter().filter(|name| name.starts_with("conver")).collect();
            assert_eq!(leftovers, [""; 0]);
        }
    }
}

/// Whenever it ends one of the two keys opens the journal, and it is all there.
#[test]
fn a_change_of_the_key_may_end_anywhere() {
    for end in 0.. {
        let scratch = Scratch::new();
        let made = make(&scratch);
        let (old, new) = (scratch.key("old"), scratch.key("new"));
        let (mut step, mut is_new) = (0, false);
        let ended = rekey(
            &scratch.data(),
            &old,
            &new,
            &mut |what| {
                is_new |= what == "the new one is in place";
                step += 1;
                if step > end { Err(ToolError::Text("killed".into())) } else { Ok(()) }
            },
            &mut Vec::new(),
        );
        let is_done = ended.is_ok();
        let (right, wrong) = if is_done || is_new { ("new", "old") } else { ("old", "new") };
        assert_eq!(content(&scratch, right).unwrap(), made, "ended after {end} steps");
        let said = content(&scratch, wrong).unwrap_err().to_string();
        assert!(said.contains("journal.db") && said.contains("--journal-key-file"), "{said}");
        if is_done {
            assert_eq!(end, 3);
            assert_eq!(scratch.names(), ["journal.db"], "the wrong key leaves nothing behind");
            break;
        }
        if right == "old" {
            // What was left half done is in nobody's way.
            rekey(&scratch.data(), &old, &new, &mut go_on, &mut Vec::new()).unwrap();
            assert_eq!(content(&scratch, "new").unwrap(), made);
        }
    }
}

#[test]
fn what_cannot_be_done_is_said_and_changes_nothing() {
    let scratch = Scratch::new();
    let says = |result: Result<(), ToolError>, word: &str| {
        let said = result.unwrap_err().to_string();
        assert!(said.contains(word), "{said}");
    };
    says(scratch.convert(JournalKind::Native, &mut go_on), "found none");
    let made = make(&scratch);
    says(
        convert(&scratch.data(), JournalKind::Native, &scratch.key("new"), &mut go_on, &mut Vec::new()),
        "this key",
    );
    fs::set_permissions(scratch.folder.join("new"), fs::Permissions::from_mode(0o640)).unwrap();
    let (old, new) = (scratch.key("old"), scratch.key("new"));
    says(rekey(&scratch.data(), &old, &new, &mut go_on, &mut Vec::new()), "chmod 600");
    says(rekey(&scratch.data(), &old, &scratch.key("none"), &mut go_on, &mut Vec::new()), "No such file");
    let lock = DirectoryLock::take(&scratch.data()).unwrap();
    says(scratch.convert(JournalKind::Native, &mut go_on), "in use by process");
    drop(lock);
    assert_eq!(content(&scratch, "old").unwrap(), made);
    scratch.convert(JournalKind::Native, &mut go_on).unwrap();
    says(rekey(&scratch.data(), &old, &old, &mut go_on, &mut Vec::new()), "kind native");
    // A damaged log is not converted.
    let segment = scratch.data().join("log-0000000000000001.wal");
    let mut bytes = fs::read(&segment).unwrap();
    bytes[9_000] ^= 1;
    fs::write(&segment, bytes).unwrap();
    says(scratch.convert(JournalKind::Sqlcipher, &mut go_on), "damaged");
    assert!(segment.exists());
}

/// The beginning of a log may be in a snapshot only: a journal made of the rest would lack it.
#[test]
fn a_log_with_snapshots_is_not_converted() {
    let scratch = Scratch::new();
    let made = make(&scratch);
    scratch.convert(JournalKind::Native, &mut go_on).unwrap();
    let snapshot = scratch.data().join("snapshot-0000000000000001-0000000000000010.mrs");
    fs::write(&snapshot, "").unwrap();
    let told = scratch.convert(JournalKind::Sqlcipher, &mut go_on).unwrap_err().to_string();
    assert!(told.contains("not encrypted") && told.contains("snapshot-*"), "{told}");
    fs::remove_file(snapshot).unwrap();
    scratch.convert(JournalKind::Sqlcipher, &mut go_on).unwrap();
    assert_eq!(content(&scratch, "old").unwrap(), made);
}
