//! Which journal a directory holds, where the key of the encrypted one comes from, and recovery from it.
//!
//! The log is kept in one of two journals: files of blocks (`native`), or one encrypted database (`sqlcipher`). A
//! directory holds one of them. A server that is told to use the other refuses to start, because it would begin
//! an empty one beside the data; `millrace journal convert` makes one into the other.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::io::log_files;

#[cfg(feature = "sqlcipher")]
pub use encrypted::{open, read_key, recover};

/// The name of the encrypted journal's file.
pub const JOURNAL_FILE: &str = "journal.db";
/// The environment variable that has the key where no file does.
pub const KEY_VARIABLE: &str = "MILLRACE_JOURNAL_KEY";
/// Where a conversion builds the new journal: worthless until the directory is renamed.
pub const CONVERTING: &str = "converting";
/// What a program says that was built without the encrypted journal.
#[cfg_attr(feature = "sqlcipher", expect(dead_code, reason = "this program has it"))]
pub(crate) const NOT_BUILT_IN: &str = "this millrace was built without the SQLCipher journal; build one that has it: `cargo \
                                       build --release -p reactor --features sqlcipher`";

/// What the log is kept in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JournalKind {
    /// Files of blocks.
    Native,
    /// One database, encrypted.
    Sqlcipher,
}

impl JournalKind {
    /// Reads the word; an encrypted journal must have been built in.
    pub fn parse(word: &str) -> Result<JournalKind, String> {
        match word {
            "native" => Ok(JournalKind::Native),
            #[cfg(feature = "sqlcipher")]
            "sqlcipher" => Ok(JournalKind::Sqlcipher),
            #[cfg(not(feature = "sqlcipher"))]
            "sqlcipher" => Err(NOT_BUILT_IN.into()),
            _ => Err(format!("expected native or sqlcipher, found {word:?}")),
        }
    }

    /// Its word on the command line.
    pub fn name(self) -> &'static str {
        match self {
            JournalKind::Native => "native",
            JournalKind::Sqlcipher => "sqlcipher",
        }
    }

    /// The directory in which a finished conversion to this lies, until its files have taken their places.
    pub(crate) fn converted(self) -> String {
        format!("converted-to-{}", self.name())
    }
}

impl fmt::Display for JournalKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What lies in a directory of data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Holdings {
    pub(crate) native: bool,
    pub(crate) sqlcipher: bool,
    /// A conversion that counts already and is not at its end.
    pub(crate) converted: Option<JournalKind>,
}

impl Holdings {
    pub(crate) fn of(directory: &Path) -> io::Result<Holdings> {
        if !directory.try_exists()? {
            return Ok(Holdings::default());
        }
        // SQLite makes an empty file first: that is none yet.
        let sqlcipher = directory.join(JOURNAL_FILE).metadata().is_ok_and(|file| file.len() > 0);
        let kinds = [JournalKind::Native, JournalKind::Sqlcipher];
        let converted = kinds.into_iter().find(|kind| directory.join(kind.converted()).exists());
        Ok(Holdings { native: !log_files::list(directory)?.segments.is_empty(), sqlcipher, converted })
    }
}

/// Refuses to use one journal where the other one lies.
pub(crate) fn refuse_the_other(directory: &Path, wanted: JournalKind) -> Result<(), String> {
    let place = directory.display();
    let found = Holdings::of(directory).map_err(|error| format!("{place}: {error}"))?;
    if let Some(to) = found.converted {
        return Err(format!(
            "{place}: a conversion was interrupted before its end, and nothing is lost; `millrace journal convert {place} \
             --to {to}` ends it"
        ));
    }
    let other = match wanted {
        JournalKind::Native if found.sqlcipher => JournalKind::Sqlcipher,
        JournalKind::Sqlcipher if found.native => JournalKind::Native,
        _ => return Ok(()),
    };
    Err(format!(
        "{place} holds a journal of the kind {other}, and --journal {wanted} would begin an empty one beside it; start with \
         --journal {other}, or convert it first: `millrace journal convert {place} --to {wanted}`"
    ))
}

/// A file with a key, or the variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// This file.
    File(PathBuf),
    /// [`KEY_VARIABLE`].
    Environment,
}

impl KeySource {
    /// The file if there is one.
    pub fn of(file: Option<PathBuf>) -> KeySource {
        file.map_or(KeySource::Environment, KeySource::File)
    }
}

#[cfg(feature = "sqlcipher")]
mod encrypted {
    use super::*;
    use crate::clock::monotonic_ns;
    use crate::server::recovery::{RecoverTo, RecoveryError};
    use std::fs::File;
    use std::io::Read;
    use std::os::unix::fs::MetadataExt;
    use std::time::Duration;
    use wal::lsn::{Epoch, Lsn};
    use wal::reader::Until;
    use wal::sqlcipher::{Journal, JournalEnd, JournalError, KEY_BYTES_MAX, Key};
    use zeroize::Zeroizing;

    /// Reads the key. A file that others may read is refused, as ssh refuses such a private key: what they have read
    /// already is not undone by a warning.
    pub fn read_key(source: &KeySource) -> Result<Key, String> {
        match source {
            KeySource::File(path) => {
                let place = path.display();
                let text = read_key_file(path).map_err(|error| format!("{place}: {error}"))?;
                Key::parse(&text).map_err(|error| format!("{place}: {error}"))
            }
            KeySource::Environment => match std::env::var(KEY_VARIABLE).map(Zeroizing::new) {
                Ok(text) => Key::parse(&text).map_err(|error| format!("{KEY_VARIABLE}: {error}")),
                Err(_) => Err(format!(
                    "the SQLCipher journal needs a key: name a file that has it with --journal-key-file, or set \
                     {KEY_VARIABLE}"
                )),
            },
        }
    }

    fn read_key_file(path: &Path) -> Result<Zeroizing<String>, String> {
        let file = File::open(path).map_err(|error| error.to_string())?;
        let metadata = file.metadata().map_err(|error| error.to_string())?;
        // A pipe that a secret is handed over by has no such bits that mean anything.
        if metadata.is_file() && metadata.mode() & 0o077 != 0 {
            let mode = metadata.mode() & 0o777;
            return Err(format!(
                "others may read this key (mode {mode:03o}), so it is not used; `chmod 600` it, and think of a new key"
            ));
        }
        // Room for all of it and a line end: growing would leave a copy behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(KEY_BYTES_MAX + 3));
        file.take(KEY_BYTES_MAX as u64 + 3).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
        let text = std::str::from_utf8(&bytes)
            .map_err(|_| "expected a key as text, found other bytes".to_string())?;
        Ok(Zeroizing::new(text.to_string()))
    }

    /// Opens the journal of a directory, which the caller has locked.
    pub fn open(directory: &Path, source: &KeySource) -> Result<Journal, RecoveryError> {
        let key = read_key(source).map_err(RecoveryError::Journal)?;
        Journal::open(&directory.join(JOURNAL_FILE), &key).map_err(journal_error)
    }

    fn journal_error(error: JournalError) -> RecoveryError {
        RecoveryError::Journal(match error {
            JournalError::WrongKey(_) => {
                format!("{error}; the key comes from --journal-key-file or {KEY_VARIABLE}")
            }
            error => error.to_string(),
        })
    }

    /// What ended reading.
    enum Stop {
        Journal(JournalError),
        Record(Lsn, String),
    }

    impl From<JournalError> for Stop {
        fn from(error: JournalError) -> Stop {
            Stop::Journal(error)
        }
    }

    /// Hands every record of the journal to `each`, as recovery from the log does, up to where it is to stop.
    pub fn recover(
        journal: &Journal,
        to: Option<RecoverTo>,
        report: &mut dyn FnMut(&str),
        mut each: impl FnMut(Lsn, u64, &[u8]) -> Result<(), String>,
    ) -> Result<Recovered, RecoveryError> {
        let begun = monotonic_ns();
        let (first, all) = (journal.first_lsn(), journal.next_lsn().0 - journal.first_lsn().0);
        let mut last_report = begun;
        let until = to.map_or(Until::End, Until::from);
        let read = journal.read(first, until, |record| {
            let done = record.lsn.0 - first.0;
            if done > 0 && done.is_multiple_of(1024) && monotonic_ns() - last_report >= 1_000_000_000 {
                last_report = monotonic_ns();
                let rate = done as f64 / ((last_report - begun) as f64 / 1e9);
                let percent = done * 100 / all.max(1);
                report(&format!(
                    "recovering the journal: {done} of {all} records ({percent} %), {rate:.0} a second"
                ));
            }
            each(record.lsn, record.unix_us, record.payload).map_err(|why| Stop::Record(record.lsn, why))
        });
        let end = read.map_err(|stop| match stop {
            Stop::Journal(error) => journal_error(error),
            Stop::Record(lsn, why) => {
                let directory = journal.path().parent().map_or_else(PathBuf::new, Path::to_path_buf);
                RecoveryError::Record { directory, lsn, why }
            }
        })?;
        if let Some(RecoverTo::Lsn(wanted)) = to
            && end.next_lsn <= wanted
        {
            return Err(RecoveryError::NotReached { last: end.next_lsn.previous(), wanted });
        }
        Ok(Recovered { end, elapsed: Duration::from_nanos(monotonic_ns() - begun) })
    }

    /// What was read.
    pub struct Recovered {
        end: JournalEnd,
        elapsed: Duration,
    }

    impl Recovered {
        /// What there is to say, in one line; nothing of an empty journal.
        pub fn line(&self) -> Option<String> {
            let (last, records) = (self.end.next_lsn.previous(), self.end.records);
            let seconds = self.elapsed.as_secs_f64();
            let rate = records as f64 / seconds.max(1e-9);
            (records > 0).then(|| {
                format!(
                    "the journal was recovered up to LSN {last}: {records} records in {seconds:.2} s, {rate:.0} records a \
                     second"
                )
            })
        }

        /// Where recovery was to stop before the end, and what it left out has not been cut before: cuts it. Only when all
        /// that is kept has been applied.
        pub fn cut(&self, journal: &mut Journal) -> Result<Option<String>, RecoveryError> {
            let end = &self.end;
            let (epoch, epoch_first_lsn) = journal.epoch();
            if epoch > Epoch::FIRST && epoch_first_lsn == end.next_lsn {
                // A supervisor that starts it again with the same words must not cut again.
                return Err(RecoveryError::AlreadyCut { epoch: epoch.0, first: epoch_first_lsn });
            }
            if !end.is_until {
                return Ok(None);
            }
            let left_out = journal.next_lsn().0 - end.next_lsn.0;
            journal.cut(end.next_lsn).map_err(journal_error)?;
            Ok(Some(format!(
                "{left_out} records from LSN {} on are left out for good; the journal goes on with that LSN under epoch {}",
                end.next_lsn,
                journal.epoch().0
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_with_the_other_journal_is_refused_and_the_way_out_named() {
        let scratch = std::env::temp_dir().join(format!("millrace-kinds-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&scratch);
        let refused = |wanted| refuse_the_other(&scratch, wanted);
        assert_eq!(refused(JournalKind::Native), Ok(()), "it is not there");
        std::fs::create_dir(&scratch).unwrap();
        assert_eq!((refused(JournalKind::Native), refused(JournalKind::Sqlcipher)), (Ok(()), Ok(())));
        std::fs::write(scratch.join(JOURNAL_FILE), b"").unwrap();
        assert_eq!(refused(JournalKind::Native), Ok(()), "an empty file is none");
        std::fs::write(scratch.join(JOURNAL_FILE), b"x").unwrap();
        assert_eq!(refused(JournalKind::Sqlcipher), Ok(()));
        let said = refused(JournalKind::Native).unwrap_err();
        assert!(said.contains("journal convert") && said.contains("--to native"), "{said}");
        std::fs::remove_file(scratch.join(JOURNAL_FILE)).unwrap();
        std::fs::write(scratch.join("log-0000000000000001.wal"), b"x").unwrap();
        let said = refused(JournalKind::Sqlcipher).unwrap_err();
        assert!(said.contains("--to sqlcipher") && said.contains("--journal native"), "{said}");
        std::fs::create_dir(scratch.join("converted-to-sqlcipher")).unwrap();
        for wanted in [JournalKind::Native, JournalKind::Sqlcipher] {
            let said = refused(wanted).unwrap_err();
            assert!(said.contains("interrupted") && said.contains("--to sqlcipher"), "{said}");
        }
        std::fs::remove_dir_all(&scratch).unwrap();
    }
}
