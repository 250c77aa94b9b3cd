//! The SQLCipher journal: the same records under the same numbers, encrypted at rest, for who must have that.
//!
//! One file that SQLCipher encrypts and authenticates page by page. A batch is one transaction, and a
//! transaction that has committed is durable: SQLite's own write-ahead log is flushed with every commit
//! (`synchronous=EXTRA`). A commit blocks, so the journal lives on a thread of its own and never on a shard.
//! The key comes from a file or the environment; here it is text, and it is never printed.
//!
//! A full disk is found before a write is accepted: a reserve file holds space that is given up for the batch
//! which did not fit, and nothing is admitted until it is whole again. A commit that fails for any other
//! reason fails the journal for good: what of it is on disk is known only after it has been opened again.

use std::fmt;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::lsn::{Epoch, Lsn};
use crate::reader::Until;
use crate::record::{Batch, Record};

/// The version of the tables, as `PRAGMA user_version` has it.
pub const VERSION: i64 = 1;
/// What `PRAGMA application_id` says: `MRLJ`.
pub const APPLICATION_ID: i64 = 0x4d52_4c4a;
/// Space kept for the batch that finds the disk full.
pub const RESERVE_BYTES_DEFAULT: u64 = 16 << 20;

const TABLES: &str = "
    CREATE TABLE record (lsn INTEGER PRIMARY KEY, unix_us INTEGER NOT NULL, payload BLOB NOT NULL) STRICT;
    CREATE TABLE history (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        epoch INTEGER NOT NULL,
        epoch_first_lsn INTEGER NOT NULL,
        first_lsn INTEGER NOT NULL
    ) STRICT;
    INSERT INTO history VALUES (1, 1, 1, 1);
";

/// The key of a journal.
pub struct Key(String);

impl Key {
    /// Reads a key as it stands in a file or a variable. 64 hexadecimal digits are the key itself; anything
    /// else is a passphrase, from which SQLCipher derives one (a few tenths of a second at each start). A
    /// line end is not part of it.
    pub fn parse(text: &str) -> Result<Key, JournalError> {
        let text = text.strip_suffix('\n').unwrap_or(text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        let wrong = |found: &str| Err(JournalError::Key(found.to_string()));
        if text.is_empty() {
            return wrong("nothing");
        }
        if text.contains(['\0', '\n']) {
            return wrong("more than one line, or a zero byte");
        }
        if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(Key(format!("x'{text}'")));
        }
        // SQLCipher would take it for hexadecimal digits, and fail or not depending on what follows.
        if text.get(..2).is_some_and(|start| start.eq_ignore_ascii_case("x'")) {
            return wrong("something that begins with x' (write the 64 digits alone)");
        }
        Ok(Key(text.to_string()))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(hidden)")
    }
}

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
                write!(f, "{}: no space for the journal; free some on its disk", path.display())
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

/// What reading found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalEnd {
    /// The record that would come next.
    pub next_lsn: Lsn,
    /// The time of the last record read.
    pub last_unix_us: u64,
    /// Records handed out.
    pub records: u64,
    /// It stopped where it was told to, and there is more.
    pub is_until: bool,
}

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    connection: Connection,
    path: PathBuf,
    reserve_bytes: u64,
    has_reserve: bool,
    epoch: Epoch,
    epoch_first_lsn: Lsn,
    first_lsn: Lsn,
    next_lsn: Lsn,
    last_unix_us: u64,
    failure: Option<JournalError>,
}

impl Journal {
    /// Opens a journal, or makes a new one with this key if there is no file. It is then locked for all
    /// others.
    pub fn open(path: &Path, key: &Key, reserve_bytes: u64) -> Result<Journal, JournalError> {
        let io = |what: &str, error: io::Error| JournalError::Failed(path.into(), format!("{what}: {error}"));
        // Made here and not by SQLite, so that it is never readable by others; its log takes over the
        // permissions.
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path)
            .and_then(|file| file.set_permissions(Permissions::from_mode(0o600)))
            .map_err(|error| io("creating it", error))?;
        flush_directory_of(path).map_err(|error| io("flushing its directory", error))?;
        let connection = connect(path, key).map_err(|error| classify(path, "opening it", &error))?;
        let mut journal = Journal {
            connection,
            path: path.into(),
            reserve_bytes,
            has_reserve: false,
            epoch: Epoch::FIRST,
            epoch_first_lsn: Lsn::FIRST,
            first_lsn: Lsn::FIRST,
            next_lsn: Lsn::FIRST,
            last_unix_us: 0,
            failure: None,
        };
        journal.prepare()?;
        Ok(journal)
    }

    /// Makes the tables of a new journal, and reads where an old one stands.
    fn prepare(&mut self) -> Result<(), JournalError> {
        let pragma = |name: &str| self.connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let found = pragma("application_id").and_then(|id| Ok((id, pragma("user_version")?)));
        match found.map_err(|error| self.classify("reading it", &error))? {
            (0, 0) if self.is_empty()? => {
                let made = format!(
                    "BEGIN; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION}; {TABLES} COMMIT;"
                );
                let made = self.connection.execute_batch(&made);
                made.map_err(|error| self.classify("making its tables", &error))?;
            }
            (APPLICATION_ID, VERSION) => {}
            (APPLICATION_ID, version) => {
                return Err(JournalError::Foreign(self.path.clone(), format!("version {version}")));
            }
            _ => {
                let found = "a database of something else".to_string();
                return Err(JournalError::Foreign(self.path.clone(), found));
            }
        }
        let query = "SELECT epoch, epoch_first_lsn, first_lsn, \
                     (SELECT max(lsn) FROM record), (SELECT unix_us FROM record ORDER BY lsn DESC LIMIT 1) FROM history";
        let row = self.connection.query_row(query, [], |row| {
            let number = |index| row.get::<_, Option<i64>>(index).map(|number| number.unwrap_or(0) as u64);
            Ok([number(0)?, number(1)?, number(2)?, number(3)?, number(4)?])
        });
        let [epoch, epoch_first_lsn, first_lsn, last_lsn, last_unix_us] =
            row.map_err(|error| self.classify("reading where it ends", &error))?;
        self.epoch = Epoch(epoch);
        self.epoch_first_lsn = Lsn(epoch_first_lsn);
        self.first_lsn = Lsn(first_lsn);
        self.next_lsn = Lsn(last_lsn).next().max(self.first_lsn);
        self.last_unix_us = last_unix_us;
        Ok(())
    }

    fn is_empty(&self) -> Result<bool, JournalError> {
        let tables =
            self.connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0));
        tables.map(|tables| tables == 0).map_err(|error| self.classify("reading it", &error))
    }

    /// The number of the next record.
    pub fn next_lsn(&self) -> Lsn {
        self.next_lsn
    }

    /// Everything up to here is durable.
    pub fn durable_lsn(&self) -> Lsn {
        self.next_lsn.previous()
    }

    /// The first record that is kept.
    pub fn first_lsn(&self) -> Lsn {
        self.first_lsn
    }

    /// The history records are appended to, and its first LSN.
    pub fn epoch(&self) -> (Epoch, Lsn) {
        (self.epoch, self.epoch_first_lsn)
    }

    /// Whether a batch could be appended now; asked before commands are executed. Makes the reserve whole if
    /// it is not.
    pub fn admission(&mut self) -> Result<(), JournalError> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        if !self.has_reserve {
            let made = make_reserve(&self.reserve_path(), self.reserve_bytes);
            if made.is_err() {
                // Half a reserve is space that others may need to end the shortage.
                drop(fs::remove_file(self.reserve_path()));
                return Err(JournalError::Full(self.path.clone()));
            }
            self.has_reserve = true;
        }
        Ok(())
    }

    fn reserve_path(&self) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push("-reserve");
        name.into()
    }

    /// Appends the records of one batch, all or none of them; they are durable when it returns. Returns the
    /// last LSN.
    pub fn append_batch(&mut self, batch: &Batch, unix_us: u64) -> Result<Lsn, JournalError> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        let unix_us = unix_us.max(self.last_unix_us);
        let mut result = self.write(batch, unix_us);
        if is_full(&result) && self.has_reserve {
            // Rolled back as a whole, before anything was flushed: trying again is safe here, as it is not
            // after EIO.
            self.has_reserve = false;
            drop(fs::remove_file(self.reserve_path()));
            result = self.write(batch, unix_us);
        }
        match result {
            Ok(()) => {
                self.next_lsn = self.next_lsn.plus(batch.len() as u64);
                self.last_unix_us = unix_us;
                Ok(self.durable_lsn())
            }
            Err(_) if is_full(&result) => Err(JournalError::Full(self.path.clone())),
            Err(error) => {
                let failure =
                    JournalError::Failed(self.path.clone(), format!("a transaction failed: {error}"));
                self.failure = Some(failure.clone());
                Err(failure)
            }
        }
    }

    fn write(&mut self, batch: &Batch, unix_us: u64) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction()?;
        {
            let mut insert =
                transaction.prepare("INSERT INTO record (lsn, unix_us, payload) VALUES (?1, ?2, ?3)")?;
            for (payload, lsn) in batch.iter().zip(self.next_lsn.0..) {
                insert.execute((lsn as i64, unix_us as i64, payload))?;
            }
        }
        transaction.commit()
    }

    /// Hands out the records from `from` on, in order. Every page read is authenticated by its key.
    pub fn read(
        &self,
        from: Lsn,
        until: Until,
        mut each: impl FnMut(Record<'_>),
    ) -> Result<JournalEnd, JournalError> {
        let mut end = JournalEnd { next_lsn: from, last_unix_us: 0, records: 0, is_until: false };
        let damaged = |found: String| JournalError::Damaged(self.path.clone(), found);
        if from < self.first_lsn {
            return Err(damaged(format!("that they begin with LSN {}, not {from}", self.first_lsn)));
        }
        let failed = |error: &rusqlite::Error| self.classify("reading records", error);
        let select = "SELECT lsn, unix_us, payload FROM record WHERE lsn >= ?1 ORDER BY lsn";
        let mut select = self.connection.prepare(select).map_err(|error| failed(&error))?;
        let mut rows = select.query([from.0 as i64]).map_err(|error| failed(&error))?;
        while let Some(row) = rows.next().map_err(|error| failed(&error))? {
            let lsn = Lsn(row.get::<_, i64>(0).map_err(|error| failed(&error))? as u64);
            let unix_us = row.get::<_, i64>(1).map_err(|error| failed(&error))? as u64;
            let payload = row.get_ref(2).map_err(|error| failed(&error))?;
            let payload = payload.as_blob().map_err(|error| damaged(error.to_string()))?;
            end.is_until = match until {
                Until::End => false,
                Until::Lsn(last) => lsn > last,
                Until::UnixMicros(last) => unix_us > last,
            };
            if end.is_until {
                return Ok(end);
            }
            if lsn != end.next_lsn {
                return Err(damaged(format!("LSN {lsn} after LSN {}", end.next_lsn.previous())));
            }
            end.next_lsn = lsn.next();
            end.last_unix_us = unix_us;
            end.records += 1;
            each(Record { lsn, unix_us, payload });
        }
        if end.next_lsn < self.next_lsn {
            return Err(damaged(format!("the end after LSN {}", end.next_lsn.previous())));
        }
        Ok(end)
    }

    /// Removes the records before `needed`, which a durable snapshot holds. Their space is used again.
    pub fn release(&mut self, needed: Lsn) -> Result<(), JournalError> {
        let needed = needed.min(self.next_lsn);
        if needed <= self.first_lsn {
            return Ok(());
        }
        let sql = format!(
            "BEGIN; DELETE FROM record WHERE lsn < {needed}; UPDATE history SET first_lsn = {needed}; COMMIT;"
        );
        self.change(&sql, "removing old records")?;
        self.first_lsn = needed;
        Ok(())
    }

    /// Removes the records from `next_lsn` on and begins a new epoch there: recovery to a point in time.
    pub fn cut(&mut self, next_lsn: Lsn) -> Result<(), JournalError> {
        assert!(next_lsn >= self.first_lsn && next_lsn <= self.next_lsn, "{next_lsn} is not in the journal");
        self.set_history(next_lsn, self.epoch.next(), next_lsn, self.first_lsn)
    }

    /// Numbers an empty journal on from another log.
    pub fn begin_at(
        &mut self,
        next_lsn: Lsn,
        epoch: Epoch,
        epoch_first_lsn: Lsn,
    ) -> Result<(), JournalError> {
        assert!(self.first_lsn == self.next_lsn, "the journal has records");
        self.set_history(next_lsn, epoch, epoch_first_lsn, next_lsn)
    }

    fn set_history(
        &mut self,
        next: Lsn,
        epoch: Epoch,
        epoch_first: Lsn,
        first: Lsn,
    ) -> Result<(), JournalError> {
        let sql = format!(
            "BEGIN; DELETE FROM record WHERE lsn >= {next}; \
             UPDATE history SET epoch = {epoch}, epoch_first_lsn = {epoch_first}, first_lsn = {first}; COMMIT;"
        );
        self.change(&sql, "beginning an epoch")?;
        (self.next_lsn, self.epoch, self.epoch_first_lsn, self.first_lsn) = (next, epoch, epoch_first, first);
        Ok(())
    }

    fn change(&mut self, sql: &str, doing: &str) -> Result<(), JournalError> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        self.connection.execute_batch(sql).map_err(|error| {
            // Out of space it is as it was; otherwise nobody knows.
            drop(self.connection.execute_batch("ROLLBACK"));
            let error = self.classify(doing, &error);
            if !matches!(error, JournalError::Full(_)) {
                self.failure = Some(error.clone());
            }
            error
        })
    }

    /// Encrypts the whole journal with another key. A crash meanwhile leaves it as it was, under the old key.
    pub fn rekey(&mut self, key: &Key) -> Result<(), JournalError> {
        // SQLCipher rewrites every page in one transaction, under a rollback journal.
        let result = self.connection.pragma_update(None, "journal_mode", "DELETE").and_then(|()| {
            self.connection.pragma_update(None, "rekey", &key.0)?;
            use_write_ahead_log(&self.connection)
        });
        result.map_err(|error| self.classify("changing its key", &error))
    }

    /// Reads and authenticates every page.
    pub fn verify(&self) -> Result<(), JournalError> {
        let mut found = Vec::new();
        for check in ["cipher_integrity_check", "integrity_check"] {
            let result = self.connection.pragma_query(None, check, |row| {
                found.push(row.get::<_, String>(0)?);
                Ok(())
            });
            result.map_err(|error| self.classify("verifying it", &error))?;
        }
        found.retain(|line| line != "ok");
        match found.first() {
            Some(first) => Err(JournalError::Damaged(self.path.clone(), first.clone())),
            None => self.read(self.first_lsn, Until::End, |_| {}).map(|_| ()),
        }
    }

    /// Closes it: SQLite's log is folded into the file.
    pub fn close(self) -> Result<(), JournalError> {
        let path = self.path;
        self.connection.close().map_err(|(_, error)| classify(&path, "closing it", &error))
    }

    fn classify(&self, doing: &str, error: &rusqlite::Error) -> JournalError {
        match classify(&self.path, doing, error) {
            // It was opened with this key, so it is not the key.
            JournalError::WrongKey(path) => JournalError::Damaged(path, error.to_string()),
            other => other,
        }
    }
}

fn connect(path: &Path, key: &Key) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(Duration::ZERO)?;
    // It would write to standard error by itself; what it finds comes back as an error and is said once.
    connection.pragma_update(None, "cipher_log_level", "NONE")?;
    connection.pragma_update(None, "key", &key.0)?;
    // A library without encryption ignores the key, and would write everything in the clear.
    connection.pragma_query_value(None, "cipher_version", |row| row.get::<_, String>(0))?;
    // Before the first read: no other process may have it open, and no shared memory file is made.
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0))?;
    use_write_ahead_log(&connection)?;
    Ok(connection)
}

/// One flush a commit, where a rollback journal needs three.
fn use_write_ahead_log(connection: &Connection) -> rusqlite::Result<()> {
    let mode: String = connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    assert_eq!(mode, "wal", "SQLite keeps its log in files");
    connection.pragma_update(None, "synchronous", "EXTRA")
}

fn classify(path: &Path, doing: &str, error: &rusqlite::Error) -> JournalError {
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => JournalError::WrongKey(path.into()),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => JournalError::Locked(path.into()),
        Some(ErrorCode::DatabaseCorrupt) => JournalError::Damaged(path.into(), error.to_string()),
        Some(ErrorCode::DiskFull) => JournalError::Full(path.into()),
        _ => JournalError::Failed(path.into(), format!("{doing}: {error}")),
    }
}

fn is_full(result: &rusqlite::Result<()>) -> bool {
    result.as_ref().is_err_and(|error| error.sqlite_error_code() == Some(ErrorCode::DiskFull))
}

/// Zeros, written and not just promised: file systems may give promised space to somebody else.
fn make_reserve(path: &Path, bytes: u64) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)?;
    let zeros = [0; 64 << 10];
    let mut left = bytes;
    while left > 0 {
        let part = left.min(zeros.len() as u64);
        file.write_all(&zeros[..part as usize])?;
        left -= part;
    }
    file.sync_all()
}

fn flush_directory_of(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests;
