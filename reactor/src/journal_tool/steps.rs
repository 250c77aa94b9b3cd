//! How journals are copied and put in place; see [`super`].
//!
//! Every step is durable before the next one begins. `survive` is asked between two steps: tests answer with an error,
//! and look what somebody finds who comes after a process that ended there.

use super::ToolError;
use crate::clock::{monotonic_ns, realtime_ns};
use crate::io::log_files::{self, DirectoryLock, LogDisk, LogFiles, LogWriteMode, checksum};
use crate::io::snapshot_source::{SnapshotDirectory, SnapshotSource};
use crate::server::journal::{self, CONVERTING, Holdings, JOURNAL_FILE, JournalKind, KeySource};
use crate::server::recovery::LogOnDisk;
use crate::server::snapshot_start::has_snapshots;
use std::fs::{self, DirBuilder};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use wal::group_commit::{GroupCommit, Refused, Start};
use wal::lsn::{Epoch, Lsn};
use wal::reader::{ReadOptions, Until};
use wal::segment::FileName;
use wal::settings::{FlushPolicy, Settings};
use wal::sqlcipher::{Journal, JournalError, Key};

/// Asked between two steps.
pub(super) type Survive<'a> = &'a mut dyn FnMut(&str) -> Result<(), ToolError>;

impl From<JournalError> for ToolError {
    fn from(error: JournalError) -> ToolError {
        ToolError::Text(error.to_string())
    }
}

fn failed(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> ToolError {
    let text = format!("{doing} {}", path.display());
    move |error| ToolError::Text(format!("{text}: {error}"))
}

fn flush(directory: &Path) -> Result<(), ToolError> {
    log_files::flush_directory(directory).map_err(failed("flushing", directory))
}

fn lock(directory: &Path) -> Result<DirectoryLock, ToolError> {
    if !directory.is_dir() {
        let text = "expected the directory that the server was given as --dir, found none";
        return Err(ToolError::Text(format!("{}: {text}", directory.display())));
    }
    DirectoryLock::take(directory).map_err(|error| ToolError::Text(error.to_string()))
}

/// An empty directory to build in; what an interrupted attempt has left goes.
fn workshop(directory: &Path) -> Result<PathBuf, ToolError> {
    let place = directory.join(CONVERTING);
    if place.exists() {
        fs::remove_dir_all(&place).map_err(failed("removing", &place))?;
    }
    DirBuilder::new().mode(0o700).create(&place).map_err(failed("making", &place))?;
    flush(directory)?;
    Ok(place)
}

/// What was copied: enough to see that nothing is missing, added or changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Content {
    records: u64,
    next_lsn: Lsn,
    sum: u32,
    epoch: u64,
    epoch_first_lsn: Lsn,
}

impl Content {
    fn add(&mut self, lsn: Lsn, unix_us: u64, payload: &[u8]) {
        let checksum = checksum();
        for bytes in [&lsn.0.to_le_bytes()[..], &unix_us.to_le_bytes(), payload] {
            self.sum = checksum.continued(self.sum, bytes);
        }
        self.records += 1;
        self.next_lsn = lsn.next();
    }

    /// Reads it back from where it was written.
    fn must_be(self, copy: Content, place: &Path) -> Result<(), ToolError> {
        if copy == self {
            return Ok(());
        }
        let place = place.display();
        Err(ToolError::Text(format!(
            "{place}: expected a copy with {self:?}, found {copy:?}; nothing was changed"
        )))
    }
}

/// Says how far it is, at most once a second.
struct Progress {
    last: u64,
    doing: &'static str,
}

impl Progress {
    fn new(doing: &'static str) -> Progress {
        Progress { last: monotonic_ns(), doing }
    }

    fn at(&mut self, lsn: Lsn) {
        if lsn.0.is_multiple_of(1024) && monotonic_ns() - self.last >= 1_000_000_000 {
            self.last = monotonic_ns();
            eprintln!("millrace: {}: LSN {lsn}", self.doing);
        }
    }
}

fn content_of_journal(journal: &Journal) -> Result<Content, ToolError> {
    let (epoch, epoch_first_lsn) = journal.epoch();
    let next_lsn = journal.first_lsn();
    let mut content = Content { epoch: epoch.0, epoch_first_lsn, next_lsn, ..Content::default() };
    journal.read(journal.first_lsn(), Until::End, |record| -> Result<(), JournalError> {
        content.add(record.lsn, record.unix_us, record.payload);
        Ok(())
    })?;
    Ok(content)
}

/// Every record of a log of files, and what they come to.
fn read_native(
    log: &LogOnDisk,
    mut each: impl FnMut(Lsn, u64, &[u8]) -> Result<(), ToolError>,
) -> Result<Content, ToolError> {
    let options = ReadOptions { from: log.first_lsn(), ..ReadOptions::default() };
    let mut content = Content { next_lsn: log.first_lsn(), ..Content::default() };
    let mut why = None;
    let read = log.read(options, None, |lsn, unix_us, payload| {
        content.add(lsn, unix_us, payload);
        each(lsn, unix_us, payload).map_err(|error| {
            why = Some(error);
            String::from("the copy")
        })
    });
    if let Some(error) = why {
        return Err(error);
    }
    let end = read?.into_end()?;
    (content.epoch, content.epoch_first_lsn) = (end.epoch.0, end.epoch_first_lsn);
    Ok(content)
}

/// See [`super::JournalTool::Rekey`].
pub(super) fn rekey(
    directory: &Path,
    key: &KeySource,
    new_key: &KeySource,
    survive: Survive<'_>,
    out: &mut impl Write,
) -> Result<(), ToolError> {
    let _lock = lock(directory)?;
    journal::refuse_the_other(directory, JournalKind::Sqlcipher).map_err(ToolError::Text)?;
    let path = directory.join(JOURNAL_FILE);
    if !Holdings::of(directory).map_err(failed("reading", directory))?.sqlcipher {
        return Err(ToolError::Text(format!("{}: expected a SQLCipher journal, found none", path.display())));
    }
    let new_key = journal::read_key(new_key).map_err(ToolError::Text)?;
    let old = journal::open(directory, key)?;
    let place = workshop(directory)?;
    let copy = place.join(JOURNAL_FILE);
    let mut progress = Progress::new("encrypting with the new key");
    old.copy_to(&copy, &new_key, &mut |lsn| progress.at(lsn))?;
    survive("the copy is written")?;
    let content = content_of_journal(&old)?;
    let written = Journal::open(&copy, &new_key)?;
    written.verify()?;
    content.must_be(content_of_journal(&written)?, &copy)?;
    written.close_as_one_file()?;
    // What is in its log belongs to the old file, and must not be found beside the new one.
    old.close_as_one_file()?;
    survive("the old one is closed")?;
    fs::rename(&copy, &path).map_err(failed("renaming", &copy))?;
    survive("the new one is in place")?;
    flush(directory)?;
    fs::remove_dir(&place).map_err(failed("removing", &place))?;
    flush(directory)?;
    let Content { records, .. } = content;
    writeln!(
        out,
        "{}: {records} records are encrypted with the new key; the old one opens it no more",
        path.display()
    )?;
    writeln!(
        out,
        "copies of the old file, and the blocks of the disk that held it, are still open to the old key"
    )?;
    Ok(())
}

/// See [`super::JournalTool::Convert`].
pub(super) fn convert(
    directory: &Path,
    to: JournalKind,
    key: &KeySource,
    survive: Survive<'_>,
    out: &mut impl Write,
) -> Result<(), ToolError> {
    let _lock = lock(directory)?;
    let found = Holdings::of(directory).map_err(failed("reading", directory))?;
    let place = directory.display();
    match (found.converted, found.native, found.sqlcipher) {
        (Some(other), ..) if other != to => {
            let text = format!("a conversion to {other} was interrupted; end that one first: --to {other}");
            return Err(ToolError::Text(format!("{place}: {text}")));
        }
        (Some(_), ..) => {
            writeln!(
                out,
                "the conversion was interrupted when the new journal was complete: putting it in place"
            )?;
            finish(directory, to, survive)?;
            writeln!(out, "{place}: the journal is of the kind {to} now")?;
            return Ok(());
        }
        (None, false, false) => {
            return Err(ToolError::Text(format!("{place}: expected a journal of either kind, found none")));
        }
        (None, true, true) => {
            let text = "two journals, and nothing says which one counts; move one of them out of the way";
            return Err(ToolError::Text(format!("{place}: {text}")));
        }
        (None, native, _) if native == (to == JournalKind::Native) => {
            writeln!(out, "{place}: the journal is of the kind {to} already")?;
            return Ok(());
        }
        _ => {}
    }
    if to == JournalKind::Sqlcipher {
        refuse_snapshots(directory)?;
    }
    let workshop = workshop(directory)?;
    let content = match to {
        JournalKind::Sqlcipher => {
            to_sqlcipher(directory, &workshop, &journal::read_key(key).map_err(ToolError::Text)?)?
        }
        JournalKind::Native => to_native(directory, &workshop, key)?,
    };
    flush(&workshop)?;
    survive("it is built")?;
    let built = directory.join(to.converted());
    fs::rename(&workshop, &built).map_err(failed("renaming", &workshop))?;
    flush(directory)?;
    survive("it counts")?;
    finish(directory, to, survive)?;
    let Content { records, next_lsn, epoch, .. } = content;
    writeln!(
        out,
        "{place}: {records} records up to LSN {} of epoch {epoch} were converted; the journal is of the kind {to} now, \
         start with --journal {to}",
        next_lsn.previous()
    )?;
    if to == JournalKind::Sqlcipher {
        writeln!(
            out,
            "the blocks of the disk that held the old files are not overwritten, and are not encrypted"
        )?;
    }
    Ok(())
}

/// What snapshots hold the log need not have: an encrypted journal made of the log alone would lack it.
fn refuse_snapshots(directory: &Path) -> Result<(), ToolError> {
    let names = SnapshotDirectory::new(directory, None).names().map_err(failed("reading", directory))?;
    let place = directory.display();
    let found = if has_snapshots(&names) {
        String::from(
            "snapshots, and the log need not have what is in them (files snapshot-*, which are not encrypted)",
        )
    } else {
        match LogOnDisk::open(directory)?.first_lsn() {
            Lsn::FIRST => return Ok(()),
            first => format!("a log that begins with LSN {first}, and what was before it was in a snapshot"),
        }
    };
    Err(ToolError::Text(format!(
        "{place}: expected a log with all of the data, found {found}. `millrace export-rdb {place} OUT.rdb` writes all of it, and \
         clients can fill a server with --journal sqlcipher in a new directory; nothing was changed"
    )))
}

/// From the rename on the new journal counts: the old one goes, and the new one takes its place.
fn finish(directory: &Path, to: JournalKind, survive: Survive<'_>) -> Result<(), ToolError> {
    let old: Vec<PathBuf> = match to {
        JournalKind::Native => {
            let names = [JOURNAL_FILE.to_string(), format!("{JOURNAL_FILE}-wal")];
            names.map(|name| directory.join(name)).into_iter().filter(|path| path.exists()).collect()
        }
        JournalKind::Sqlcipher => {
            let listing = log_files::list(directory).map_err(failed("reading", directory))?;
            let segments = listing.segments.iter().map(|segment| FileName::Segment(segment.0));
            let names = segments.chain(listing.spares.iter().map(|&sequence| FileName::Spare(sequence)));
            names.map(|name| directory.join(name.to_string())).collect()
        }
    };
    for path in &old {
        fs::remove_file(path).map_err(failed("removing", path))?;
        survive("an old file is removed")?;
    }
    flush(directory)?;
    let built = directory.join(to.converted());
    for entry in fs::read_dir(&built).map_err(failed("reading", &built))? {
        let entry = entry.map_err(failed("reading", &built))?;
        fs::rename(entry.path(), directory.join(entry.file_name()))
            .map_err(failed("moving", &entry.path()))?;
        survive("a new file is in place")?;
    }
    flush(directory)?;
    fs::remove_dir(&built).map_err(failed("removing", &built))?;
    flush(directory)
}

fn to_sqlcipher(directory: &Path, workshop: &Path, key: &Key) -> Result<Content, ToolError> {
    let log = LogOnDisk::open(directory)?;
    log.flush()?;
    let copy = workshop.join(JOURNAL_FILE);
    let mut journal = Journal::open(&copy, key)?;
    let mut progress = Progress::new("converting to sqlcipher");
    let first = log.first_lsn();
    journal.begin_at(first, Epoch::FIRST, Lsn::FIRST)?;
    let content = read_native(&log, |lsn, unix_us, payload| {
        progress.at(lsn);
        Ok(journal.load(payload, unix_us)?)
    })?;
    journal.commit()?;
    journal.set_epoch(Epoch(content.epoch), content.epoch_first_lsn)?;
    journal.close_as_one_file()?;
    let written = Journal::open(&copy, key)?;
    written.verify()?;
    content.must_be(content_of_journal(&written)?, &copy)?;
    written.close_as_one_file()?;
    Ok(content)
}

fn to_native(directory: &Path, workshop: &Path, key: &KeySource) -> Result<Content, ToolError> {
    let journal = journal::open(directory, key)?;
    let content = content_of_journal(&journal)?;
    let first = journal.first_lsn();
    // What is older than the epoch belongs to the one before: which records began that is known to neither journal.
    let has_two = content.epoch_first_lsn > first && content.epoch > 1;
    let (epoch, epoch_first_lsn) = match has_two {
        true => (Epoch(content.epoch - 1), first),
        false => (Epoch(content.epoch), content.epoch_first_lsn.min(first)),
    };
    let start = Start { next_lsn: first, epoch, epoch_first_lsn, ..Start::empty(uid_seed()) };
    let mut log = NativeLog::begin(workshop, &start);
    let mut progress = Progress::new("converting to native");
    let mut is_last = !has_two;
    journal.read(first, Until::End, |record| -> Result<(), ToolError> {
        progress.at(record.lsn);
        if !is_last && record.lsn >= content.epoch_first_lsn {
            log.go_on_under(Epoch(content.epoch), content.epoch_first_lsn)?;
            is_last = true;
        }
        log.append(record.payload, record.unix_us)
    })?;
    if !is_last {
        log.go_on_under(Epoch(content.epoch), content.epoch_first_lsn)?;
    }
    log.close()?;
    // What closing has not written is seen here.
    let copy = LogOnDisk::open(workshop)?;
    copy.flush()?;
    content.must_be(read_native(&copy, |_, _, _| Ok(()))?, workshop)?;
    journal.close()?;
    Ok(content)
}

fn uid_seed() -> u64 {
    monotonic_ns() ^ realtime_ns().rotate_left(32)
}

/// A log of files that nobody serves.
struct NativeLog<'a> {
    directory: &'a Path,
    log: GroupCommit,
    files: LogFiles,
}

impl NativeLog<'_> {
    fn begin<'a>(directory: &'a Path, start: &Start) -> NativeLog<'a> {
        let settings = Settings {
            // Whatever its length, a record that is there must be taken.
            pending_bytes_max: isize::MAX as usize,
            append_bytes_max: 0,
            flush_policy: FlushPolicy::OnRequest,
            ..Settings::default()
        };
        let files = LogFiles::new(directory, LogWriteMode::Fdatasync);
        NativeLog { directory, log: GroupCommit::new(settings, start, checksum()), files }
    }

    fn append(&mut self, payload: &[u8], unix_us: u64) -> Result<(), ToolError> {
        loop {
            match self.log.append(payload, unix_us) {
                Ok(_) => return Ok(()),
                // A segment is being prepared, or a block is to be written first.
                Err(Refused::Starting | Refused::Busy) => self.settle()?,
                Err(refused) => return Err(ToolError::Text(refused.to_string())),
            }
        }
    }

    /// Does all that the writer wants done.
    fn settle(&mut self) -> Result<(), ToolError> {
        while let Some(operation) = self.log.poll_operation() {
            self.log.handle_completion(self.files.perform(operation));
        }
        match (self.log.failure(), self.log.shortage()) {
            (Some(failure), _) => Err(ToolError::Text(failure.to_string())),
            (None, Some(failure)) => Err(ToolError::Text(failure.to_string())),
            (None, None) => Ok(()),
        }
    }

    fn close(&mut self) -> Result<(), ToolError> {
        self.settle()?;
        self.log.close();
        self.settle()
    }

    /// Closes it, and begins an epoch behind what is there.
    fn go_on_under(&mut self, epoch: Epoch, epoch_first_lsn: Lsn) -> Result<(), ToolError> {
        self.close()?;
        let written = LogOnDisk::open(self.directory)?;
        let options = ReadOptions { from: written.first_lsn(), ..ReadOptions::default() };
        let end = written.read(options, None, |_, _, _| Ok(()))?.into_end()?;
        let mut start = end.start(&written.listing.spares, uid_seed());
        assert_eq!(start.next_lsn, epoch_first_lsn, "all before the epoch is there");
        (start.epoch, start.epoch_first_lsn, start.is_marked) = (epoch, epoch_first_lsn, false);
        let NativeLog { log, files, .. } = NativeLog::begin(self.directory, &start);
        (self.log, self.files) = (log, files);
        Ok(())
    }
}

/// What `millrace log verify` says of such a journal.
pub(crate) fn verify(directory: &Path, key: &KeySource, out: &mut impl Write) -> Result<(), ToolError> {
    let _lock = lock(directory)?;
    let journal = journal::open(directory, key)?;
    journal.verify()?;
    let content = content_of_journal(&journal)?;
    let (first, last) = (journal.first_lsn(), journal.durable_lsn());
    match content.records {
        0 => writeln!(out, "records: none; the next one is LSN {}", journal.next_lsn())?,
        records => writeln!(out, "records: LSN {first} to {last}, {records} in all")?,
    }
    writeln!(out, "epoch: {}, from LSN {}", content.epoch, content.epoch_first_lsn)?;
    writeln!(out, "every page is encrypted with this key and unchanged; whole")?;
    Ok(())
}

/// Hands out the records of such a journal for `millrace log dump`.
pub(crate) fn dump(
    directory: &Path,
    key: &KeySource,
    (from, until): (Lsn, Lsn),
    mut each: impl FnMut(Lsn, u64, &[u8]) -> Result<(), ToolError>,
) -> Result<(), ToolError> {
    let _lock = lock(directory)?;
    let journal = journal::open(directory, key)?;
    let from = from.max(journal.first_lsn());
    if from >= journal.next_lsn() {
        return Ok(());
    }
    journal.read(from, Until::Lsn(until), |record| each(record.lsn, record.unix_us, record.payload))?;
    Ok(())
}

#[cfg(test)]
mod tests;
