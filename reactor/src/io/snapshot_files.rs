//! The snapshot's file: what `snapshot` asks of the disk, as system calls, and what lies in the directory.
//!
//! [`SnapshotFiles`] does one operation and blocks until it is done, so it is called by the snapshot's own threads and never
//! by a shard. Several threads may write to the file at a time. Writes go past the page cache (O_DIRECT) where the file system lets them: a snapshot is as large as the
//! data, and pages nobody reads again would push out others and burden the log's flushes. Nothing is repeated, merged or
//! dropped here: what a failure means is decided by the writer.

use super::log_files::{DirectoryLock, flush_directory, in_words, reserve, write_at};
use snapshot::names::{FileName, Listing, SnapshotId};
use snapshot::operation::{Action, Completion, Operation};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use wal::block::{BlockBuffer, PAGE_BYTES};
use wal::operation::Errno;

/// What performs a snapshot's operations: the system, or a test that makes it fail.
pub trait SnapshotDisk: Send + Sync + 'static {
    /// Makes sure that this process has the directory for itself. What is in it, or why that cannot be.
    fn prepare(&self) -> Result<Listing, String>;
    /// Does one operation on the snapshot's file and returns when it is done. Writes may come from several threads.
    fn perform(&self, snapshot: SnapshotId, operation: Operation) -> Completion;
    /// What the directory holds of snapshots; nothing if there is no directory yet.
    fn list(&self) -> io::Result<Listing>;
    /// Removes a file. That it is gone is durable after the next flush of the directory, and need not be.
    fn remove(&self, file: FileName) -> io::Result<()>;
}

/// What is read of a snapshot at once. A disk that takes a millisecond for it gives a gigabyte a second.
const PIECE_BYTES: usize = 1 << 20;

/// A snapshot that is sent to somebody: read once from front to back, past the page cache where the file system lets it. The
/// cache would hold a gigabyte that nobody asks for again, in memory that has to be had first.
#[derive(Debug)]
pub struct SnapshotReader {
    path: PathBuf,
    file: File,
    /// O_DIRECT, unless this file system has none.
    is_direct: bool,
    piece: BlockBuffer,
    /// Where the piece lies in the file.
    at: u64,
}

impl SnapshotReader {
    /// Opens a snapshot.
    pub fn open(path: &Path) -> io::Result<SnapshotReader> {
        let mut options = OpenOptions::new();
        options.read(true);
        let direct = options.clone().custom_flags(libc::O_DIRECT).open(path);
        let is_direct = !matches!(&direct, Err(error) if error.raw_os_error() == Some(libc::EINVAL));
        let file = if is_direct { direct? } else { options.open(path)? };
        let (path, piece) = (path.to_path_buf(), BlockBuffer::with_capacity(PIECE_BYTES));
        Ok(SnapshotReader { path, file, is_direct, piece, at: 0 })
    }

    /// Its bytes.
    pub fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// So many bytes from there on, which are not more than a piece less a page.
    pub fn read(&mut self, offset: u64, length: usize) -> io::Result<&[u8]> {
        let is_there = |reader: &SnapshotReader| {
            reader.at <= offset && offset + length as u64 <= reader.at + reader.piece.used() as u64
        };
        if !is_there(self) {
            self.at = offset - offset % PAGE_BYTES as u64;
            if let Err(error) = self.read_piece() {
                if !self.is_direct || error.raw_os_error() != Some(libc::EINVAL) {
                    return Err(error);
                }
                // Some file systems say so only now.
                (self.is_direct, self.file) = (false, File::open(&self.path)?);
                self.read_piece()?;
            }
            if !is_there(self) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let from = (offset - self.at) as usize;
        Ok(&self.piece.as_slice()[from..from + length])
    }

    fn read_piece(&mut self) -> io::Result<()> {
        let (file, at) = (&self.file, self.at);
        self.piece.fill(|memory| {
            let mut filled = 0;
            while filled < memory.len() {
                match file.read_at(&mut memory[filled..], at + filled as u64) {
                    Ok(0) => break,
                    Ok(count) => filled += count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
                // What is not a page is the end, and is not asked for again where it would have to be one.
                if filled % PAGE_BYTES != 0 {
                    break;
                }
            }
            Ok(filled)
        })
    }
}

/// The snapshots of one directory.
#[derive(Debug)]
pub struct SnapshotFiles {
    directory: PathBuf,
    /// O_DIRECT, unless this file system has none.
    is_direct: AtomicBool,
    /// The one that is being written. Nobody holds the lock during an operation on it.
    open: Mutex<Option<(SnapshotId, Arc<File>)>>,
    /// Whether somebody here holds the lock of the directory; taken with the first snapshot otherwise.
    is_locked: bool,
    lock: Mutex<Option<DirectoryLock>>,
}

impl SnapshotFiles {
    /// For a directory that this process has locked.
    pub fn new(directory: &Path) -> SnapshotFiles {
        let directory = directory.to_path_buf();
        SnapshotFiles {
            directory,
            is_direct: AtomicBool::new(true),
            open: Mutex::default(),
            is_locked: true,
            lock: Mutex::default(),
        }
    }

    /// For one that it has not: it is made if it is missing, and locked, before something is written.
    pub fn to_be_locked(directory: &Path) -> SnapshotFiles {
        SnapshotFiles { is_locked: false, ..SnapshotFiles::new(directory) }
    }

    /// With writes through the page cache, whatever the file system can do.
    pub fn without_direct(self) -> SnapshotFiles {
        SnapshotFiles { is_direct: AtomicBool::new(false), ..self }
    }

    /// Whether writes go past the page cache, as far as is known.
    pub fn is_direct(&self) -> bool {
        self.is_direct.load(Ordering::Relaxed)
    }

    fn path(&self, file: FileName) -> PathBuf {
        self.directory.join(file.to_string())
    }

    fn opened(&self) -> MutexGuard<'_, Option<(SnapshotId, Arc<File>)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn create(&self, id: SnapshotId) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        let path = self.path(FileName::Temporary(id));
        let mut options = OpenOptions::new();
        // Nobody else's file is emptied through a link.
        options.write(true).create(true).truncate(true).mode(0o600);
        if self.is_direct() {
            match options.custom_flags(libc::O_NOFOLLOW | libc::O_DIRECT).open(&path) {
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    self.is_direct.store(false, Ordering::Relaxed);
                }
                file => {
                    *self.opened() = Some((id, Arc::new(file?)));
                    return Ok(());
                }
            }
        }
        let file = options.custom_flags(libc::O_NOFOLLOW).open(&path)?;
        *self.opened() = Some((id, Arc::new(file)));
        Ok(())
    }

    fn file(&self, id: SnapshotId) -> io::Result<Arc<File>> {
        match &*self.opened() {
            Some((open, file)) if *open == id => Ok(Arc::clone(file)),
            // Its creation failed, or it has its name: a mistake of the caller.
            _ => Err(io::Error::from_raw_os_error(libc::EBADF)),
        }
    }

    fn act(&self, id: SnapshotId, action: &Action) -> io::Result<usize> {
        match *action {
            Action::Create => self.create(id)?,
            Action::Reserve { length } => reserve(&*self.file(id)?, length)?,
            Action::Write { offset, ref buffer, start } => {
                return write_at(&*self.file(id)?, &buffer.as_slice()[start..], offset, 0);
            }
            Action::Flush => self.file(id)?.sync_data()?,
            Action::Rename => {
                std::fs::rename(self.path(FileName::Temporary(id)), self.path(FileName::Snapshot(id)))?;
                *self.opened() = None;
            }
            Action::FlushDirectory => flush_directory(&self.directory)?,
            Action::Delete => {
                *self.opened() = None;
                std::fs::remove_file(self.path(FileName::Temporary(id)))?;
            }
        }
        Ok(0)
    }
}

impl SnapshotDisk for SnapshotFiles {
    fn prepare(&self) -> Result<Listing, String> {
        let mut lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.is_locked && lock.is_none() {
            *lock = Some(DirectoryLock::take(&self.directory).map_err(|error| error.to_string())?);
        }
        let unreadable = |error| format!("{}: {}", self.directory.display(), in_words(&error));
        list_snapshots(&self.directory).map_err(unreadable)
    }

    fn perform(&self, snapshot: SnapshotId, operation: Operation) -> Completion {
        let Operation { id, action } = operation;
        let result =
            self.act(snapshot, &action).map_err(|error| Errno(error.raw_os_error().unwrap_or(libc::EIO)));
        let buffer = match action {
            Action::Write { buffer, .. } => Some(buffer),
            _ => None,
        };
        Completion { id, result, buffer }
    }

    fn list(&self) -> io::Result<Listing> {
        list_snapshots(&self.directory)
    }

    fn remove(&self, file: FileName) -> io::Result<()> {
        std::fs::remove_file(self.path(file))
    }
}

/// Looks which snapshots a directory holds. One that is missing holds none.
pub fn list_snapshots(directory: &Path) -> io::Result<Listing> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Listing::default()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().into_string());
    }
    Ok(Listing::of(names.iter().map(String::as_str)))
}

/// Where a snapshot of a directory lies.
pub fn snapshot_path(directory: &Path, id: SnapshotId) -> PathBuf {
    directory.join(FileName::Snapshot(id).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::log_files::checksum;
    use snapshot::view::SnapshotView;
    use snapshot::writer::{Outcome, Plan, RegionPlan, Settings, ShardPlan, SnapshotWriter};
    use std::os::unix::fs::PermissionsExt;
    use wal::lsn::{Epoch, Lsn};

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let path = std::env::temp_dir().join(format!("millrace-snapshot-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            Scratch(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_file_is_read_in_any_order_up_to_its_last_byte() {
        let scratch = Scratch::new("reader");
        std::fs::create_dir_all(&scratch.0).unwrap();
        let path = scratch.0.join("file");
        let bytes: Vec<u8> = (0..2 * PIECE_BYTES as u32 + 5003).map(|at| (at % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let mut reader = SnapshotReader::open(&path).unwrap();
        assert_eq!(reader.length().unwrap(), bytes.len() as u64);
        let piece = PIECE_BYTES;
        for (from, length) in [
            (0, 4096),
            (100, 700),
            (piece - 10, 20),
            (2 * piece, 5003),
            (2 * piece + 4097, 906),
            (5, piece / 4),
        ] {
            let read = reader.read(from as u64, length).unwrap();
            assert!(read == &bytes[from..from + length], "{length} bytes at {from}");
        }
        for (from, length) in [(bytes.len() - 3, 4), (bytes.len() + 9000, 1)] {
            let error = reader.read(from as u64, length).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{length} bytes at {from}");
        }
        assert!(SnapshotReader::open(&scratch.0.join("none")).unwrap_err().kind() == io::ErrorKind::NotFound);
    }

    fn writer(lsn: u64) -> SnapshotWriter {
        let regions = vec![RegionPlan { kind: 2, number: 0, length: 8192 }];
        let shards = vec![ShardPlan { lsn: Lsn(lsn), meta: vec![7; 100], regions }];
        let plan = Plan { uid: 5, epoch: Epoch(1), unix_us: 9, shards };
        SnapshotWriter::new(&plan, Settings::default(), checksum()).unwrap()
    }

    fn run(files: &SnapshotFiles, writer: &mut SnapshotWriter) {
        while let Some(operation) = writer.poll_operation() {
            let completion = files.perform(writer.id(), operation);
            writer.handle_completion(completion);
        }
    }

    fn write(files: &SnapshotFiles, lsn: u64) -> SnapshotId {
        let mut writer = writer(lsn);
        run(files, &mut writer);
        writer.handle_part(0, 0, 4096, &[2; 4096]).unwrap();
        writer.handle_part(0, 0, 0, &[1; 4096]).unwrap();
        writer.finish().unwrap();
        writer.handle_durable(Lsn(lsn));
        run(files, &mut writer);
        assert_eq!(writer.outcome(), Outcome::Complete);
        writer.id()
    }

    #[test]
    fn a_snapshot_is_written_listed_opened_and_removed() {
        for is_direct in [true, false] {
            let scratch = Scratch::new(if is_direct { "direct" } else { "buffered" });
            let mut files = SnapshotFiles::new(&scratch.0);
            if !is_direct {
                files = files.without_direct();
            }
            assert_eq!(files.list().unwrap(), Listing::default(), "no directory holds no snapshot");
            let ids = [write(&files, 3), write(&files, 8)];
            assert_eq!(files.list().unwrap().snapshots, [ids[1], ids[0]]);
            assert_eq!(files.list().unwrap().temporary, []);
            let path = snapshot_path(&scratch.0, ids[1]);
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "nobody else reads what the keys hold");
            let bytes = std::fs::read(&path).unwrap();
            let view = SnapshotView::of_file(path.to_str().unwrap(), &bytes, checksum()).unwrap();
            assert_eq!(view.header().lsn, Lsn(8));
            files.remove(FileName::Snapshot(ids[0])).unwrap();
            assert_eq!(files.list().unwrap().snapshots, [ids[1]]);
        }
    }

    #[test]
    fn what_is_given_up_leaves_nothing() {
        let scratch = Scratch::new("given-up");
        let files = SnapshotFiles::new(&scratch.0);
        let mut writer = writer(3);
        run(&files, &mut writer);
        assert_eq!(files.list().unwrap().temporary, [writer.id()]);
        writer.abandon();
        run(&files, &mut writer);
        assert!(writer.is_ended());
        assert_eq!(files.list().unwrap(), Listing::default());
        assert_eq!(std::fs::read_dir(&scratch.0).unwrap().count(), 0);
    }

    #[test]
    fn errors_come_back_with_their_number() {
        let scratch = Scratch::new("errors");
        // A file where the directory should be.
        std::fs::write(&scratch.0, "").unwrap();
        let files = SnapshotFiles::new(&scratch.0);
        let mut writer = writer(3);
        run(&files, &mut writer);
        let Outcome::Failed(failure) = writer.outcome() else { panic!("{:?}", writer.outcome()) };
        assert!(failure.to_string().starts_with("creating snapshot-"), "{failure}");
        assert!(matches!(failure.errno.0, libc::EEXIST | libc::ENOTDIR), "{failure}");
        std::fs::remove_file(&scratch.0).unwrap();
        std::fs::create_dir(&scratch.0).unwrap();
    }
}
