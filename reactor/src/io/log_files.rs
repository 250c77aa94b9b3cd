//! The log's files: what `wal` asks of the disk, as system calls, and the lock on their directory.
//!
//! [`LogFiles::perform`] does one operation and blocks until it is done, so it is called by the log's own threads
//! and never by a shard. Nothing is repeated, merged or dropped here: what a failure means is `wal`'s to decide.
//! A block that must be durable is one system call (`pwritev2` with RWF_DSYNC) in the modes `direct` and
//! `dsync`, and two (`pwrite`, `fdatasync`) in the mode `fdatasync`.

use super::sys::check;
use std::collections::HashMap;
use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use wal::checksum::Checksum;
use wal::operation::{Action, Completion, Errno, Operation, Sync};
use wal::segment::{FileName, Sequence};

/// Zeros are written in pieces of at most this length.
const ZEROS_BYTES: usize = 256 << 10;
const PAGE_BYTES: usize = 4096;

/// The file whose lock says that a process works in the directory. Its text says which.
pub const LOCK_FILE: &str = "millrace.lock";

/// How long a lock is waited for whose holder is gone: the kernel may still be clearing up behind it.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// The CPU's CRC-32C.
pub fn checksum() -> Checksum {
    Checksum::lent(crc32c::crc32c_append).expect("the crate crc32c computes CRC-32C")
}

/// How a block reaches the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogWriteMode {
    /// Past the page cache, durable when the write returns: O_DIRECT and RWF_DSYNC.
    Direct,
    /// Through the page cache, durable when the write returns: RWF_DSYNC.
    Dsync,
    /// Through the page cache, and an fdatasync behind it.
    Fdatasync,
}

impl LogWriteMode {
    /// All of them.
    pub const ALL: [LogWriteMode; 3] = [LogWriteMode::Direct, LogWriteMode::Dsync, LogWriteMode::Fdatasync];

    /// Its word on the command line.
    pub fn name(self) -> &'static str {
        match self {
            LogWriteMode::Direct => "direct",
            LogWriteMode::Dsync => "dsync",
            LogWriteMode::Fdatasync => "fdatasync",
        }
    }

    /// What the writer of the log has to know of it.
    pub fn of_wal(self) -> wal::settings::WriteMode {
        match self {
            LogWriteMode::Direct | LogWriteMode::Dsync => wal::settings::WriteMode::DurableWrite,
            LogWriteMode::Fdatasync => wal::settings::WriteMode::WriteThenFlush,
        }
    }
}

impl fmt::Display for LogWriteMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for LogWriteMode {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|mode| mode.name() == word)
            .ok_or_else(|| format!("expected direct, dsync or fdatasync, found {word:?}"))
    }
}

/// What performs the log's operations: the system, or a test that makes it fail.
pub trait LogDisk: Send + std::marker::Sync + 'static {
    /// Does one operation and returns when it is done.
    fn perform(&self, operation: Operation) -> Completion;
}

/// The files of one directory.
#[derive(Debug)]
pub struct LogFiles {
    directory: PathBuf,
    /// O_DIRECT, unless this file system has none.
    is_direct: AtomicBool,
    /// Both of the log's threads come here; neither holds the lock during an operation.
    open: Mutex<HashMap<FileName, Arc<File>>>,
    zeros: Zeros,
}

impl LogFiles {
    /// For a directory that exists.
    pub fn new(directory: &Path, mode: LogWriteMode) -> LogFiles {
        LogFiles {
            directory: directory.to_path_buf(),
            is_direct: AtomicBool::new(mode == LogWriteMode::Direct),
            open: Mutex::new(HashMap::new()),
            zeros: Zeros::new(),
        }
    }

    fn path(&self, file: FileName) -> PathBuf {
        self.directory.join(file.to_string())
    }

    fn open_files(&self) -> MutexGuard<'_, HashMap<FileName, Arc<File>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a file; without O_DIRECT from the first time on that the file system says that it has none.
    fn open_with(&self, name: FileName, options: &mut OpenOptions) -> io::Result<Arc<File>> {
        options.read(true).write(true).mode(0o600);
        if self.is_direct.load(Ordering::Relaxed) {
            match options.custom_flags(libc::O_DIRECT).open(self.path(name)) {
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    self.is_direct.store(false, Ordering::Relaxed);
                    eprintln!(
                        "millrace: warning: the file system of {} has no O_DIRECT; the log is written as with \
                         --log-write-mode dsync",
                        self.directory.display()
                    );
                    // Some file systems create the file before they refuse.
                    options.create_new(false).create(true);
                }
                opened => return Ok(Arc::new(opened?)),
            }
        }
        Ok(Arc::new(options.custom_flags(0).open(self.path(name))?))
    }

    fn file(&self, name: FileName) -> io::Result<Arc<File>> {
        if let Some(file) = self.open_files().get(&name) {
            return Ok(Arc::clone(file));
        }
        let file = self.open_with(name, &mut OpenOptions::new())?;
        self.open_files().insert(name, Arc::clone(&file));
        Ok(file)
    }

    fn act(&self, action: &Action) -> io::Result<usize> {
        match *action {
            Action::Create { file: name } => {
                let file = self.open_with(name, OpenOptions::new().create_new(true))?;
                self.open_files().insert(name, file);
            }
            Action::Reserve { file, length } => reserve(&*self.file(file)?, length)?,
            Action::WriteZeros { file, offset, length } => {
                self.write_zeros(&*self.file(file)?, offset, length)?;
            }
            Action::Write { file, offset, ref buffer, start, sync } => {
                let file = self.file(file)?;
                let bytes = &buffer.as_slice()[start..];
                let flags = if sync == Sync::Data { libc::RWF_DSYNC } else { 0 };
                let written = write_at(&file, bytes, offset, flags)?;
                if sync == Sync::Flush && written == bytes.len() {
                    file.sync_data()?;
                }
                return Ok(written);
            }
            Action::Flush { file } => self.file(file)?.sync_data()?,
            Action::Rename { from, to } => {
                std::fs::rename(self.path(from), self.path(to))?;
                let mut open = self.open_files();
                if let Some(file) = open.remove(&from) {
                    open.insert(to, file);
                }
            }
            Action::Delete { file } => {
                self.open_files().remove(&file);
                std::fs::remove_file(self.path(file))?;
            }
            Action::FlushDirectory => flush_directory(&self.directory)?,
            Action::Close { file } => drop(self.open_files().remove(&file)),
        }
        Ok(0)
    }

    fn write_zeros(&self, file: &File, mut offset: u64, length: u64) -> io::Result<()> {
        let end = offset + length;
        while offset < end {
            let piece = (end - offset).min(ZEROS_BYTES as u64) as usize;
            match file.write_at(&self.zeros.bytes()[..piece], offset)? {
                0 => return Err(io::Error::from_raw_os_error(libc::ENOSPC)),
                written => offset += written as u64,
            }
        }
        Ok(())
    }
}

impl LogDisk for LogFiles {
    fn perform(&self, operation: Operation) -> Completion {
        let Operation { id, action } = operation;
        let result = self.act(&action).map_err(|error| Errno(error.raw_os_error().unwrap_or(libc::EIO)));
        let buffer = match action {
            Action::Write { buffer, .. } => Some(buffer),
            _ => None,
        };
        Completion { id, result, buffer }
    }
}

/// Zeros on a page boundary, as O_DIRECT wants them.
#[derive(Debug)]
struct Zeros {
    bytes: Vec<u8>,
    start: usize,
}

impl Zeros {
    fn new() -> Zeros {
        let bytes = vec![0; ZEROS_BYTES + PAGE_BYTES];
        let start = bytes.as_ptr().align_offset(PAGE_BYTES);
        Zeros { bytes, start }
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.start + ZEROS_BYTES]
    }
}

/// One `pwritev2`.
pub(super) fn write_at(file: &File, bytes: &[u8], offset: u64, flags: libc::c_int) -> io::Result<usize> {
    let piece = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    loop {
        // SAFETY: one entry that describes `bytes`, which are readable for the duration of the call and only
        // read by it; the descriptor is open.
        let written =
            unsafe { libc::pwritev2(file.as_raw_fd(), &raw const piece, 1, offset as libc::off_t, flags) };
        if written >= 0 {
            return Ok(written as usize);
        }
        let error = io::Error::last_os_error();
        // Interrupted before anything was written: no attempt was made that could have failed.
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Sets the space aside. Where the file system cannot, the zeros that follow take it.
pub(super) fn reserve(file: &File, length: u64) -> io::Result<()> {
    // SAFETY: no pointers; the descriptor is open.
    let result = check(unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, length as libc::off_t) });
    match result {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => file.set_len(length),
        result => result.map(drop),
    }
}

/// Makes creations, renames and deletions in it durable.
pub fn flush_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// An error of the system with its name, and what a person can do about it.
pub(crate) fn in_words(error: &io::Error) -> String {
    match error.raw_os_error().map(Errno) {
        Some(errno) => format!("{errno}; {}", errno.remedy()),
        None => error.to_string(),
    }
}

/// Lets the kernel begin to read what will be wanted soon.
fn read_ahead(file: &File, offset: u64, length: u64) {
    // SAFETY: no pointers; the descriptor is open. It is advice: whether it is taken does not matter.
    unsafe {
        libc::posix_fadvise(
            file.as_raw_fd(),
            offset as libc::off_t,
            length as libc::off_t,
            libc::POSIX_FADV_WILLNEED,
        );
    }
}

/// What belongs to a log in a directory, by ascending number.
#[derive(Clone, Debug, Default)]
pub struct LogListing {
    /// Segments and their lengths.
    pub segments: Vec<(Sequence, u64)>,
    /// Segments in preparation.
    pub spares: Vec<Sequence>,
    /// The highest number of a segment that a repair has set aside.
    pub set_aside: Option<Sequence>,
}

/// The kernel is asked for so many bytes at a time.
const EXPECTED_AT_ONCE: u64 = 2 << 20;

/// What a repair appends to the name of a file that it takes out of the log.
pub const SET_ASIDE_SUFFIX: &str = ".damaged";

/// Where recovery reads a log: a directory of files, or a disk that is simulated.
pub trait LogSource {
    /// An open segment.
    type File;
    /// The directory, as messages name it.
    fn directory(&self) -> &Path;
    /// What is there.
    fn list(&self) -> io::Result<LogListing>;
    /// Opens a segment to be read.
    fn open(&self, sequence: Sequence) -> io::Result<Self::File>;
    /// Reads what is there; 0 at the end.
    fn read_at(&self, file: &Self::File, bytes: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Reads the first bytes of a page after the other from `offset` on, `head` of each. How many it was; fewer: there the file
    /// ends.
    fn read_heads(&self, file: &Self::File, bytes: &mut [u8], head: usize, offset: u64) -> io::Result<usize> {
        for (page, bytes) in bytes.chunks_exact_mut(head).enumerate() {
            if self.read_at(file, bytes, offset + (page * PAGE_BYTES) as u64)? < head {
                return Ok(page);
            }
        }
        Ok(bytes.len() / head)
    }
    /// Lets the system begin to read what will be wanted soon.
    fn read_ahead(&self, file: &Self::File, offset: u64, length: u64);
    /// All of these will be read soon: the system may begin, and nobody waits.
    fn expect(&self, _segments: Vec<Sequence>) {}
    /// Makes what can be read durable.
    fn flush(&self, file: &Self::File) -> io::Result<()>;
    /// Makes the names durable.
    fn flush_directory(&self) -> io::Result<()>;
}

/// The log of a directory, to be read.
#[derive(Clone, Debug)]
pub struct LogDirectory(PathBuf);

impl LogDirectory {
    /// Of this one.
    pub fn new(directory: &Path) -> LogDirectory {
        LogDirectory(directory.to_path_buf())
    }
}

impl LogSource for LogDirectory {
    type File = File;

    fn directory(&self) -> &Path {
        &self.0
    }

    fn list(&self) -> io::Result<LogListing> {
        list(&self.0)
    }

    fn open(&self, sequence: Sequence) -> io::Result<File> {
        File::open(self.0.join(FileName::Segment(sequence).to_string()))
    }

    fn read_at(&self, file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        file.read_at(bytes, offset)
    }

    fn read_heads(&self, file: &File, bytes: &mut [u8], head: usize, offset: u64) -> io::Result<usize> {
        // Copying whole pages for a few bytes of each takes longer than all the rest of a start, and so do as many calls.
        let there = file.metadata()?.len().saturating_sub(offset) / PAGE_BYTES as u64;
        let pages = (bytes.len() / head).min(there as usize);
        let bytes = &mut bytes[..pages * head];
        with_pages(file, offset, pages * PAGE_BYTES, |memory| {
            for (head, page) in bytes.chunks_exact_mut(head).zip(memory.chunks_exact(PAGE_BYTES)) {
                head.copy_from_slice(&page[..head.len()]);
            }
        })?;
        Ok(pages)
    }

    fn read_ahead(&self, file: &File, offset: u64, length: u64) {
        read_ahead(file, offset, length);
    }

    fn expect(&self, segments: Vec<Sequence>) {
        let directory = self.clone();
        // Asking for pages costs their allocation: on a thread of its own, which ends by itself. Without it they are read when
        // they are wanted.
        let _ = std::thread::Builder::new().name("read-ahead".into()).spawn(move || {
            for file in segments.into_iter().filter_map(|sequence| directory.open(sequence).ok()) {
                let length = file.metadata().map_or(0, |metadata| metadata.len());
                for offset in (0..length).step_by(EXPECTED_AT_ONCE as usize) {
                    read_ahead(&file, offset, EXPECTED_AT_ONCE);
                }
            }
        });
    }

    fn flush(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    fn flush_directory(&self) -> io::Result<()> {
        flush_directory(&self.0)
    }
}

/// Shows a part of a file where the kernel keeps it. The caller has looked that the file is so long, and nobody makes files of a
/// locked directory shorter: where somebody does, the process ends by SIGBUS.
fn with_pages(file: &File, offset: u64, length: usize, look: impl FnOnce(&[u8])) -> io::Result<()> {
    if length == 0 {
        return Ok(());
    }
    let (protection, flags) = (libc::PROT_READ, libc::MAP_SHARED | libc::MAP_POPULATE);
    // SAFETY: a new mapping where the kernel likes, of an open descriptor. It is looked at as bytes that this process does not
    // write: the file is a log that is being recovered, before anything writes to it. It is unmapped behind the last look.
    unsafe {
        let address = libc::mmap(
            std::ptr::null_mut(),
            length,
            protection,
            flags,
            file.as_raw_fd(),
            offset as libc::off_t,
        );
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        look(std::slice::from_raw_parts(address.cast::<u8>(), length));
        check(libc::munmap(address, length)).map(|_| ())
    }
}

/// Looks what is in a directory.
pub fn list(directory: &Path) -> io::Result<LogListing> {
    let mut listing = LogListing::default();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if let Some(FileName::Segment(sequence)) =
            name.strip_suffix(SET_ASIDE_SUFFIX).and_then(FileName::parse)
        {
            listing.set_aside = listing.set_aside.max(Some(sequence));
        }
        match FileName::parse(name) {
            Some(FileName::Segment(sequence)) => {
                listing.segments.push((sequence, entry.metadata()?.len()));
            }
            Some(FileName::Spare(sequence)) => listing.spares.push(sequence),
            None => {}
        }
    }
    listing.segments.sort_unstable();
    listing.spares.sort_unstable();
    Ok(listing)
}

/// The lock on a directory of data: held for as long as the value lives, and gone with the process at the latest.
#[derive(Debug)]
pub struct DirectoryLock {
    _file: File,
}

/// Why a directory cannot be locked.
#[derive(Debug)]
pub enum LockError {
    /// Somebody works in it.
    Held {
        /// Where.
        directory: PathBuf,
        /// By whom, in words.
        holder: String,
    },
    /// The system refused.
    System(PathBuf, io::Error),
}

impl fmt::Display for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LockError::Held { directory, holder } => write!(
                f,
                "{} is in use by {holder}; stop that process first, or use another directory (--dir)",
                directory.display()
            ),
            LockError::System(path, error) => write!(
                f,
                "{}: {}; --dir must name a directory in which this process may make files",
                path.display(),
                in_words(error)
            ),
        }
    }
}

impl std::error::Error for LockError {}

impl DirectoryLock {
    /// Locks the directory, which is made if it is missing.
    pub fn take(directory: &Path) -> Result<DirectoryLock, LockError> {
        let path = directory.join(LOCK_FILE);
        let system = |error| LockError::System(path.clone(), error);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(system)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(&path).map_err(system)?;
        let give_up = Instant::now() + LOCK_PATIENCE;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(error)) => return Err(system(error)),
                Err(TryLockError::WouldBlock) => {}
            }
            let (pid, holder) = read_holder(&mut file);
            let lives = pid.is_some_and(|pid| Path::new(&format!("/proc/{pid}")).exists());
            if lives || Instant::now() >= give_up {
                return Err(LockError::Held { directory: directory.to_path_buf(), holder });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let command: Vec<String> =
            std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
        let text = format!("{}\n{}\n", std::process::id(), command.join(" "));
        file.set_len(0).and_then(|()| file.rewind()).map_err(system)?;
        file.write_all(text.as_bytes()).map_err(system)?;
        Ok(DirectoryLock { _file: file })
    }

    /// Who holds the lock, if anybody does; nothing is changed.
    pub fn holder(directory: &Path) -> Option<String> {
        let mut file = File::open(directory.join(LOCK_FILE)).ok()?;
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => Some(read_holder(&mut file).1),
            _ => None,
        }
    }
}

/// The process that a lock file names, and its words.
fn read_holder(file: &mut File) -> (Option<u32>, String) {
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.read_to_string(&mut text));
    let mut lines = text.lines();
    let pid = lines.next().and_then(|line| line.parse::<u32>().ok());
    match (read, pid) {
        (Ok(_), Some(pid)) => {
            (Some(pid), format!("process {pid} ({})", lines.next().unwrap_or("no command named")))
        }
        _ => (None, String::from("another process, which has not said which")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let path = std::env::temp_dir().join(format!("millrace-files-{name}-{}", std::process::id()));
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
    fn a_directory_is_locked_once_and_the_holder_is_named() {
        let scratch = Scratch::new("lock");
        let lock = DirectoryLock::take(&scratch.0).unwrap();
        // A lock belongs to the open file, so a second one in this process meets it as another process would.
        let refused = DirectoryLock::take(&scratch.0).unwrap_err().to_string();
        let me = format!("process {} (", std::process::id());
        assert!(refused.contains(&me) && refused.contains("--dir"), "{refused}");
        assert!(DirectoryLock::holder(&scratch.0).is_some_and(|holder| holder.contains(&me)));
        drop(lock);
        assert_eq!(DirectoryLock::holder(&scratch.0), None);
        drop(DirectoryLock::take(&scratch.0).unwrap());
    }

    #[test]
    fn zeros_are_aligned() {
        let zeros = Zeros::new();
        assert!(zeros.bytes().as_ptr().addr().is_multiple_of(PAGE_BYTES));
        assert_eq!(zeros.bytes().len(), ZEROS_BYTES);
    }

    #[test]
    fn modes_read_as_they_are_written() {
        for mode in LogWriteMode::ALL {
            assert_eq!(mode.name().parse(), Ok(mode));
        }
        assert!("sync".parse::<LogWriteMode>().unwrap_err().contains("fdatasync"));
    }
}
