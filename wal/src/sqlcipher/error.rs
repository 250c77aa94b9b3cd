//! What can go wrong with a journal, said to an operator, and how SQLite's errors become that.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;

use super::VERSION;
use crate::operation::Errno;

/// What can go wrong, said to an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JournalError {
    /// The text is no key.
    Key(String),
    /// The file is not readable with this key.
    WrongKey(PathBuf),
    /// Another process has it open.
    Locked(PathBuf),
    /// It is a database of something else, or of a later version.
    Foreign(PathBuf, String),
    /// A page or a record is not what was written.
    Damaged(PathBuf, String),
    /// There is no space; what was to be written is not there, and all before it is.
    Full(PathBuf),
    /// Something failed for good; the journal takes nothing more until it is opened again.
    Failed(PathBuf, String),
}

impl fmt::Display for JournalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            JournalError::Key(found) => write!(
                f,
                "the journal's key: expected 64 hexadecimal digits or a passphrase on one line, found {found}"
            ),
            JournalError::WrongKey(path) => write!(
                f,
                "{}: expected a journal encrypted with this key, found bytes that it does not open; give the key it was \
                 made with or last changed to; with the right key, the file's first page is damaged",
                path.display()
            ),
            JournalError::Locked(path) => {
                write!(f, "{}: another process has the journal open; stop it first", path.display())
            }
            JournalError::Foreign(path, found) => {
                write!(f, "{}: expected a journal of version {VERSION}, found {found}", path.display())
            }
            JournalError::Damaged(path, found) => write!(
                f,
                "{}: expected the records that were written, found {found}; restore the file from a copy or a replica",
                path.display()
            ),
            JournalError::Full(path) => {
                write!(
                    f,
                    "{}: no room for the journal: {}; free space on its disk",
                    path.display(),
                    Errno::ENOSPC
                )
            }
            JournalError::Failed(path, what) => write!(
                f,
                "{}: {what}; nothing after the last acknowledged record counts until the journal is opened again",
                path.display()
            ),
        }
    }
}

impl std::error::Error for JournalError {}

/// What an error of SQLite means.
pub(super) fn classify(path: &Path, doing: &str, error: &rusqlite::Error) -> JournalError {
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => JournalError::WrongKey(path.into()),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => JournalError::Locked(path.into()),
        Some(ErrorCode::DatabaseCorrupt) => JournalError::Damaged(path.into(), error.to_string()),
        Some(ErrorCode::DiskFull) => JournalError::Full(path.into()),
        _ => JournalError::Failed(path.into(), format!("{doing}: {error}")),
    }
}

/// Whether there was no space.
pub(super) fn is_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DiskFull)
}

/// The other word for no space.
pub(super) const EDQUOT: i32 = 122;

/// As the other log says it.
pub(super) fn errno(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), |number| Errno(number).to_string())
}
