//! The SQLCipher journal: the same records under the same numbers, encrypted at rest, for who must have that.
//!
//! One database that SQLCipher encrypts and authenticates page by page, with its defaults: AES-256-CBC, an HMAC-SHA512
//! for each page, keys by PBKDF2. A transaction holds what has gathered while the one before was on its way to the disk,
//! as blocks: rows whose blob has the frames of many records, because a row costs more than a record does.
//!
//! A commit is an append to SQLite's own log, and durable after one flush of that file (`log_file.rs` says why it is
//! not SQLite that flushes). When half of that log is used, its pages are written to the database (a checkpoint) and it
//! begins at the front again. All of this blocks, so the journal lives on a thread of its own and never on a shard.
//!
//! A full disk is found before a write is accepted: [`Journal::room`] is what certainly fits into the part of the log
//! that is prepared and unused. A commit that fails for another reason fails the journal for good: what of it is on disk
//! is known only after it has been opened again.
//!
//! `docs/formats/journal.md` has the tables.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use crate::lsn::{Epoch, Lsn};
use crate::operation::Errno;
use crate::reader::Until;
use crate::record::FRAME_BYTES;
use error::{EDQUOT, classify, errno, is_full};
use log_file::LogFile;
use reading::Frames;

pub use error::JournalError;
pub use key::{KEY_BYTES_MAX, Key};
pub use reading::JournalEnd;

mod error;
mod key;
mod log_file;
mod reading;

/// The name of the database in the directory of data. Beside it lies SQLite's log, with `-wal` behind the name.
pub const FILE_NAME: &str = "journal.db";
/// The version of the tables, as `PRAGMA user_version` has it.
pub const VERSION: i64 = 1;
/// What `PRAGMA application_id` says: `MRLJ`.
pub const APPLICATION_ID: i64 = 0x4d52_4c4a;
/// Bytes of SQLite's log that are prepared, unless said otherwise.
pub const LOG_BYTES_DEFAULT: u64 = 64 << 20;
/// The least: what a shard asks for must fit into half of it.
pub const LOG_BYTES_MIN: u64 = 4 << 20;
/// The longest blob; a longer record takes several rows.
const ROW_BYTES: usize = 256 << 10;
/// Bytes of records in a transaction that nobody waits for.
const LOAD_BYTES: usize = 4 << 20;
/// Pages that a transaction may take beyond its records, as when a level is added to the tree.
const PAGES_KEPT: u64 = 64;

const TABLES: &str = "
    CREATE TABLE block (
        number INTEGER PRIMARY KEY,
        first_lsn INTEGER NOT NULL,
        count INTEGER NOT NULL,
        unix_us INTEGER NOT NULL,
        part INTEGER NOT NULL,
        bytes BLOB NOT NULL
    ) STRICT;
    CREATE TABLE history (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        epoch INTEGER NOT NULL,
        epoch_first_lsn INTEGER NOT NULL,
        first_lsn INTEGER NOT NULL
    ) STRICT;
    INSERT INTO history VALUES (1, 1, 1, 1);
";

/// What a row's blob holds.
mod part {
    /// Whole records, each behind its frame.
    pub const WHOLE: i64 = 0;
    /// Bytes of one record that goes on in the next row.
    pub const GOES_ON: i64 = 1;
    /// The last bytes of it.
    pub const LAST: i64 = 2;
}

/// Where a journal stands; what a transaction that fails goes back to.
#[derive(Clone, Copy, Debug)]
struct Place {
    next_lsn: Lsn,
    next_number: i64,
    last_unix_us: u64,
}

/// Records that are gathered for one row.
#[derive(Debug, Default)]
struct Row {
    first_lsn: Lsn,
    count: i64,
    unix_us: u64,
    bytes: Vec<u8>,
}

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    connection: Connection,
    log: LogFile,
    path: PathBuf,
    /// Frames in SQLite's log.
    frames: u64,
    epoch: Epoch,
    epoch_first_lsn: Lsn,
    first_lsn: Lsn,
    place: Place,
    /// Where it stood when the transaction began; `None`: there is none.
    before: Option<Place>,
    row: Row,
    /// Bytes that [`Journal::load`] has not committed.
    loaded_bytes: usize,
    /// Everything before it has been flushed.
    durable_lsn: Lsn,
    failure: Option<JournalError>,
}

impl Journal {
    /// Opens a journal, or makes a new one with this key if there is no file. It is then locked for all others; that
    /// nobody has it open before is for the caller to see to, by the lock on the directory.
    pub fn open(path: &Path, key: &Key) -> Result<Journal, JournalError> {
        let io = |what: &str, error: io::Error| JournalError::Failed(path.into(), format!("{what}: {error}"));
        log_file::settle(path)?;
        // Made here and not by SQLite, so that it is never readable by others; its log takes over the
        // permissions.
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path)
            .and_then(|file| {
                file.set_permissions(Permissions::from_mode(0o600))?;
                // What is read is to be on the disk and not only in memory.
                file.sync_all()
            })
            .map_err(|error| io("opening it", error))?;
        let connection = connect(path, key).map_err(|error| classify(path, "opening it", &error))?;
        let log = LogFile::open(path).map_err(|error| io("opening SQLite's log of it", error))?;
        flush_directory_of(path).map_err(|error| io("flushing its directory", error))?;
        let place = Place { next_lsn: Lsn::FIRST, next_number: 1, last_unix_us: 0 };
        let mut journal = Journal {
            connection,
            log,
            path: path.into(),
            frames: 0,
            epoch: Epoch::FIRST,
            epoch_first_lsn: Lsn::FIRST,
            first_lsn: Lsn::FIRST,
            place,
            before: None,
            row: Row::default(),
            loaded_bytes: 0,
            durable_lsn: Lsn::ZERO,
            failure: None,
        };
        journal.set_up()?;
        Ok(journal)
    }

    /// Makes the tables of a new journal, and reads where an old one stands.
    fn set_up(&mut self) -> Result<(), JournalError> {
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
        self.count_frames()?;
        self.flush_log()?;
        let query = "SELECT epoch, epoch_first_lsn, first_lsn FROM history";
        let row = self.connection.query_row(query, [], |row| Ok([row.get(0)?, row.get(1)?, row.get(2)?]));
        let [epoch, epoch_first_lsn, first_lsn]: [i64; 3] =
            row.map_err(|error| self.classify("reading where it begins", &error))?;
        self.epoch = Epoch(epoch as u64);
        self.epoch_first_lsn = Lsn(epoch_first_lsn as u64);
        self.first_lsn = Lsn(first_lsn as u64);
        self.find_end()
    }

    fn is_empty(&self) -> Result<bool, JournalError> {
        let tables =
            self.connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0));
        tables.map(|tables| tables == 0).map_err(|error| self.classify("reading it", &error))
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number of the next record.
    pub fn next_lsn(&self) -> Lsn {
        self.place.next_lsn
    }

    /// Everything up to here is durable.
    pub fn durable_lsn(&self) -> Lsn {
        self.durable_lsn
    }

    /// The first record that is kept.
    pub fn first_lsn(&self) -> Lsn {
        self.first_lsn
    }

    /// The history records are appended to, and its first LSN.
    pub fn epoch(&self) -> (Epoch, Lsn) {
        (self.epoch, self.epoch_first_lsn)
    }

    /// Bytes of SQLite's log in use.
    pub fn log_bytes(&self) -> u64 {
        self.frames * log_file::FRAME_BYTES
    }

    /// What certainly fits into what is prepared, measured by [`image_bytes_max`].
    pub fn room(&self) -> u64 {
        let kept = PAGES_KEPT * log_file::FRAME_BYTES;
        self.log.capacity().saturating_sub(self.log_bytes() + kept)
    }

    /// Half of SQLite's log is used: a checkpoint is due.
    pub fn wants_checkpoint(&self) -> bool {
        self.log_bytes() > self.log.capacity() / 2
    }

    /// Makes room for so many bytes: a checkpoint, and if that is not enough a longer log. `Full`: there is no more
    /// to be had.
    pub fn make_room(&mut self, bytes: u64) -> Result<(), JournalError> {
        let checkpoint = self.checkpoint();
        if let Err(error) = &checkpoint
            && !matches!(error, JournalError::Full(_))
        {
            return checkpoint;
        }
        if self.room() >= bytes {
            return checkpoint;
        }
        let capacity = self.log_bytes() + PAGES_KEPT * log_file::FRAME_BYTES + bytes;
        self.log.prepare(capacity).map_err(|error| match error.raw_os_error() {
            Some(number) if [Errno::ENOSPC.0, EDQUOT].contains(&number) => {
                JournalError::Full(self.path.clone())
            }
            _ => self.fail(format!("preparing SQLite's log: {}", errno(&error))),
        })?;
        self.mark()
    }

    /// Writes what is in SQLite's log to the database, so that the log begins at the front again.
    pub fn checkpoint(&mut self) -> Result<(), JournalError> {
        self.check()?;
        if self.frames == 0 {
            return Ok(());
        }
        let counts = self.connection.query_row("PRAGMA wal_checkpoint(RESTART)", [], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
        });
        match counts {
            Ok((0, frames, written)) if frames == written => {
                self.frames = 0;
                self.durable_lsn = self.place.next_lsn.previous();
                // What this says is not needed any more: no flush of its own.
                self.mark()
            }
            Ok(found) => Err(self.fail(format!("a checkpoint ended early: {found:?}"))),
            Err(error) => Err(match self.classify("a checkpoint", &error) {
                full @ JournalError::Full(_) => full,
                _ => self.fail(format!("a checkpoint failed: {error}")),
            }),
        }
    }

    fn mark(&mut self) -> Result<(), JournalError> {
        let marked = self.log.mark(self.frames);
        marked.map_err(|error| self.fail(format!("marking what is durable: {}", errno(&error))))
    }

    /// Appends a record to the transaction, which begins with it if there is none.
    pub fn append(&mut self, payload: &[u8], unix_us: u64) -> Result<Lsn, JournalError> {
        self.check()?;
        if self.before.is_none() {
            self.before = Some(self.place);
            let begun = self.run("BEGIN IMMEDIATE");
            begun.or_else(|error| self.give_up(&error))?;
        }
        let unix_us = unix_us.max(self.place.last_unix_us);
        let lsn = self.place.next_lsn;
        let appended = self.add(payload, unix_us);
        appended.or_else(|error| self.give_up(&error))?;
        self.place.next_lsn = lsn.next();
        self.place.last_unix_us = unix_us;
        Ok(lsn)
    }

    fn add(&mut self, payload: &[u8], unix_us: u64) -> rusqlite::Result<()> {
        let is_new = self.row.count == 0;
        let delay = u32::try_from(unix_us - self.row.unix_us);
        if !is_new && (delay.is_err() || self.row.bytes.len() + FRAME_BYTES + payload.len() > ROW_BYTES) {
            self.end_row()?;
        }
        if FRAME_BYTES + payload.len() > ROW_BYTES {
            let mut pieces = payload.chunks(ROW_BYTES).peekable();
            while let Some(piece) = pieces.next() {
                let (part, count) =
                    if pieces.peek().is_some() { (part::GOES_ON, 0) } else { (part::LAST, 1) };
                self.insert(self.place.next_lsn, count, unix_us, part, piece)?;
            }
            return Ok(());
        }
        if self.row.count == 0 {
            (self.row.first_lsn, self.row.unix_us) = (self.place.next_lsn, unix_us);
        }
        let delay = (unix_us - self.row.unix_us) as u32;
        self.row.count += 1;
        self.row.bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        self.row.bytes.extend_from_slice(&delay.to_le_bytes());
        self.row.bytes.extend_from_slice(payload);
        Ok(())
    }

    fn end_row(&mut self) -> rusqlite::Result<()> {
        let Row { first_lsn, count, unix_us, bytes } = std::mem::take(&mut self.row);
        self.insert(first_lsn, count, unix_us, part::WHOLE, &bytes)?;
        self.row.bytes = bytes;
        self.row.bytes.clear();
        Ok(())
    }

    fn insert(
        &mut self,
        first_lsn: Lsn,
        count: i64,
        unix_us: u64,
        part: i64,
        bytes: &[u8],
    ) -> rusqlite::Result<()> {
        let sql = "INSERT INTO block (number, first_lsn, count, unix_us, part, bytes) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
        let mut insert = self.connection.prepare_cached(sql)?;
        insert.execute((self.place.next_number, first_lsn.0 as i64, count, unix_us as i64, part, bytes))?;
        self.place.next_number += 1;
        Ok(())
    }

    /// Appends a record to a journal that nobody waits for: transactions of a few MiB, flushed by
    /// [`close_as_one_file`](Self::close_as_one_file).
    pub fn load(&mut self, payload: &[u8], unix_us: u64) -> Result<(), JournalError> {
        self.append(payload, unix_us)?;
        self.loaded_bytes += payload.len() + FRAME_BYTES;
        if self.loaded_bytes >= LOAD_BYTES {
            self.loaded_bytes = 0;
            self.commit()?;
            if self.log_bytes() >= LOG_BYTES_MIN {
                self.checkpoint()?;
            }
        }
        Ok(())
    }

    /// Writes all of it to a new file under another key, and closes that as one file.
    pub fn copy_to(&self, path: &Path, key: &Key, progress: &mut dyn FnMut(Lsn)) -> Result<(), JournalError> {
        let mut copy = Journal::open(path, key)?;
        copy.begin_at(self.first_lsn, self.epoch, self.epoch_first_lsn)?;
        self.read(self.first_lsn, Until::End, |record| {
            progress(record.lsn);
            copy.load(record.payload, record.unix_us)
        })?;
        copy.commit()?;
        let (copied, all) = (copy.next_lsn(), self.next_lsn());
        assert_eq!(copied, all, "every record was copied");
        copy.close_as_one_file()
    }

    /// Ends the transaction, all of it or nothing. It is durable after [`flush`](Self::flush). `Full`: nothing of it is
    /// there, and it may be tried again from its first record.
    pub fn commit(&mut self) -> Result<(), JournalError> {
        self.check()?;
        if self.before.is_none() {
            return Ok(());
        }
        let committed = match self.row.count {
            0 => Ok(()),
            _ => self.end_row(),
        };
        let committed = committed.and_then(|()| self.run("COMMIT"));
        committed.or_else(|error| self.give_up(&error))?;
        self.before = None;
        self.count_frames()
    }

    /// Makes durable what has been committed.
    pub fn flush(&mut self) -> Result<Lsn, JournalError> {
        self.check()?;
        assert!(self.before.is_none(), "a transaction is open");
        self.flush_log()?;
        self.durable_lsn = self.place.next_lsn.previous();
        self.mark()?;
        Ok(self.durable_lsn)
    }

    fn flush_log(&mut self) -> Result<(), JournalError> {
        let flushed = self.log.flush();
        flushed.map_err(|error| self.fail(format!("flushing SQLite's log: {}", errno(&error))))
    }

    fn run(&self, sql: &str) -> rusqlite::Result<()> {
        self.connection.prepare_cached(sql)?.execute([]).map(|_| ())
    }

    fn count_frames(&mut self) -> Result<(), JournalError> {
        let count = self.connection.prepare_cached("PRAGMA wal_checkpoint(NOOP)");
        let count = count.and_then(|mut select| select.query_row([], |row| row.get::<_, i64>(1)));
        self.frames = match count {
            Ok(frames) => frames.max(0) as u64,
            Err(error) => return Err(self.fail(format!("looking at SQLite's log: {error}"))),
        };
        Ok(())
    }

    fn check(&self) -> Result<(), JournalError> {
        self.failure.clone().map_or(Ok(()), Err)
    }

    fn fail(&mut self, what: String) -> JournalError {
        let failure = JournalError::Failed(self.path.clone(), what);
        self.failure = Some(failure.clone());
        failure
    }

    /// Rolls back. Out of space it is as it was, because nothing had been flushed; otherwise nobody knows.
    fn give_up(&mut self, error: &rusqlite::Error) -> Result<(), JournalError> {
        if !self.connection.is_autocommit() {
            // SQLite does that by itself after most errors.
            drop(self.connection.execute_batch("ROLLBACK"));
        }
        if let Some(before) = self.before.take() {
            self.place = before;
        }
        self.row = Row::default();
        if is_full(error) && self.connection.is_autocommit() {
            return Err(JournalError::Full(self.path.clone()));
        }
        Err(self.fail(format!("a transaction failed: {error}")))
    }

    /// Removes the records before `needed`, which a durable snapshot holds. Their space is used again.
    pub fn release(&mut self, needed: Lsn) -> Result<(), JournalError> {
        self.check()?;
        let needed = needed.min(self.next_lsn());
        if needed <= self.first_lsn {
            return Ok(());
        }
        let kept = self.number_of(needed)?;
        let sql = format!(
            "BEGIN; DELETE FROM block WHERE number < {kept} OR (number = {kept} AND first_lsn + count <= {needed} \
             AND first_lsn < {needed}); UPDATE history SET first_lsn = {needed}; COMMIT;"
        );
        self.change(&sql, "removing old records")?;
        self.first_lsn = needed;
        Ok(())
    }

    /// Removes the records from `next_lsn` on and begins a new epoch there: recovery to a point in time.
    pub fn cut(&mut self, next_lsn: Lsn) -> Result<(), JournalError> {
        assert!(
            next_lsn >= self.first_lsn && next_lsn <= self.next_lsn(),
            "{next_lsn} is not in the journal"
        );
        let number = self.number_of(next_lsn)?;
        let mut sql = format!("DELETE FROM block WHERE first_lsn >= {next_lsn} AND number >= {number};");
        // A row that begins before is shortened.
        let query = "SELECT number, first_lsn, count, unix_us, part, bytes FROM block WHERE number = ?1";
        let shortened = {
            let mut select = self.prepare(query)?;
            let mut rows =
                select.query([number]).map_err(|error| self.classify("reading records", &error))?;
            match rows.next().map_err(|error| self.classify("reading records", &error))? {
                Some(row) => {
                    let block = self.block(row)?;
                    let kept = next_lsn.0.saturating_sub(block.first_lsn.0);
                    let is_cut = block.part == part::WHOLE && kept > 0 && kept < block.count;
                    let length = |frames: Frames<'_>| block.bytes.len() - frames.0.len();
                    is_cut.then(|| {
                        let mut frames = Frames(block.bytes);
                        frames.by_ref().take(kept as usize).for_each(|_| {});
                        (kept, length(frames))
                    })
                }
                None => None,
            }
        };
        if let Some((count, length)) = shortened {
            sql.push_str(&format!(
                "UPDATE block SET count = {count}, bytes = substr(bytes, 1, {length}) WHERE number = {number};"
            ));
        }
        self.set_history(&sql, self.epoch.next(), next_lsn, self.first_lsn)
    }

    /// Numbers an empty journal on from another log.
    pub fn begin_at(
        &mut self,
        next_lsn: Lsn,
        epoch: Epoch,
        epoch_first_lsn: Lsn,
    ) -> Result<(), JournalError> {
        assert!(self.first_lsn == self.next_lsn(), "the journal has records");
        self.set_history("", epoch, epoch_first_lsn, next_lsn)
    }

    /// Writes down which history this is; records are numbered on from where they end.
    pub fn set_epoch(&mut self, epoch: Epoch, epoch_first_lsn: Lsn) -> Result<(), JournalError> {
        self.set_history("", epoch, epoch_first_lsn, self.first_lsn)
    }

    fn set_history(
        &mut self,
        sql: &str,
        epoch: Epoch,
        epoch_first: Lsn,
        first: Lsn,
    ) -> Result<(), JournalError> {
        let sql = format!(
            "BEGIN; {sql} UPDATE history SET epoch = {epoch}, epoch_first_lsn = {epoch_first}, first_lsn = {first}; \
             COMMIT;"
        );
        self.change(&sql, "beginning an epoch")?;
        (self.epoch, self.epoch_first_lsn, self.first_lsn) = (epoch, epoch_first, first);
        self.find_end()
    }

    fn change(&mut self, sql: &str, doing: &str) -> Result<(), JournalError> {
        self.check()?;
        if let Err(error) = self.connection.execute_batch(sql) {
            drop(self.connection.execute_batch("ROLLBACK"));
            return Err(match is_full(&error) {
                true => JournalError::Full(self.path.clone()),
                false => self.fail(format!("{doing}: {error}")),
            });
        }
        self.count_frames()?;
        self.flush_log()?;
        self.mark()
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
        found.first().map_or(Ok(()), |first| Err(self.damaged(first.clone())))
    }

    /// Closes it: SQLite's log is folded into the database, and keeps its space for the next time.
    pub fn close(mut self) -> Result<(), JournalError> {
        assert!(self.before.is_none(), "a transaction is open");
        match self.checkpoint() {
            // It is all there, in two files: the next start goes on from that.
            Err(JournalError::Full(_)) => return Ok(()),
            checkpoint => checkpoint?,
        }
        let Journal { connection, log, path, .. } = self;
        connection.close().map_err(|(_, error)| classify(&path, "closing it", &error))?;
        log.forget().map_err(|error| JournalError::Failed(path, format!("closing SQLite's log: {error}")))
    }

    /// Closes it so that all of it is one file, which may be renamed.
    pub fn close_as_one_file(mut self) -> Result<(), JournalError> {
        let path = self.path.clone();
        self.checkpoint()?;
        self.close()?;
        let removed = fs::remove_file(log_file::path_of(&path)).and_then(|()| flush_directory_of(&path));
        removed.map_err(|error| JournalError::Failed(path, format!("removing SQLite's log: {error}")))
    }

    fn damaged(&self, found: String) -> JournalError {
        JournalError::Damaged(self.path.clone(), found)
    }

    fn classify(&self, doing: &str, error: &rusqlite::Error) -> JournalError {
        match classify(&self.path, doing, error) {
            // It was opened with this key, so it is not the key.
            JournalError::WrongKey(path) => JournalError::Damaged(path, error.to_string()),
            other => other,
        }
    }
}

/// The most that so many bytes of framed records can take in SQLite's log, if they come together: pages that hold them
/// and those that point there, rows that begin, the first page and the end of the tree.
pub const fn image_bytes_max(framed: usize) -> u64 {
    let framed = framed as u64;
    framed + framed / 8 + 6 * log_file::FRAME_BYTES
}

fn connect(path: &Path, key: &Key) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(Duration::ZERO)?;
    // It would write to standard error by itself; what it finds comes back as an error and is said once.
    connection.pragma_update(None, "cipher_log_level", "NONE")?;
    connection.execute_batch(&key.statement())?;
    // A library without encryption ignores the key, and would write everything in the clear.
    connection.pragma_query_value(None, "cipher_version", |row| row.get::<_, String>(0))?;
    // Before the first read: no other process may have it open, and no shared memory file is made.
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0))?;
    use_write_ahead_log(&connection)?;
    Ok(connection)
}

/// A rollback journal needs three flushes a commit, and a log one, which is ours to do.
fn use_write_ahead_log(connection: &Connection) -> rusqlite::Result<()> {
    let mode: String = connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    assert_eq!(mode, "wal", "SQLite keeps its log in files");
    // Checkpoints and the beginning of a log are flushed by SQLite, commits by `Journal::flush`.
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    // After a failure nothing is to be written any more.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    // In KiB. What does not fit goes to the log before the commit.
    connection.pragma_update(None, "cache_size", -8192)?;
    // The log is there after the first look.
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0)).map(|_| ())
}

fn flush_directory_of(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests;
