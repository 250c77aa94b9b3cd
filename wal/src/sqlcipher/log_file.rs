//! SQLite's own log beneath the journal: the file `journal.db-wal`, seen as what it is on disk.
//!
//! SQLite writes it and reads it; three things are done here that SQLite leaves out:
//!
//! - **Room.** The file is made of written zeros before records are admitted, so a commit overwrites space that is
//!   there and cannot find the disk full. Zeros are no frames, so SQLite stops reading where they begin.
//! - **Flushing.** One `fdatasync` after a commit makes it durable, always or once a second, and the mark with it.
//!   `synchronous=FULL` would have SQLite call `fsync` in each commit: as many flushes, but no choice.
//! - **The durable mark.** SQLite takes the first frame that does not fit for the end of its log, whatever follows: a
//!   flipped byte would silently take back all that was acknowledged behind it. The last page of the file says how
//!   many frames were durable, and a log that ends before is refused.
//!
//! Frames are SQLite's (<https://sqlite.org/fileformat2.html#the_write_ahead_log>); what is in them is encrypted.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::JournalError;
use crate::checksum::Checksum;

/// Pages of the file that are ours: the last one has the mark.
const MARK_PAGE_BYTES: u64 = 4096;
const MARK_MAGIC: [u8; 8] = *b"MRLJMARK";
const MARK_BYTES: usize = 32;
/// SQLite's header of the file, and of a frame.
const HEADER_BYTES: u64 = 32;
const FRAME_HEADER_BYTES: usize = 24;
/// Bytes of a page of the database: SQLCipher's default.
pub(super) const PAGE_BYTES: usize = 4096;
/// What a page takes in the log.
pub(super) const FRAME_BYTES: u64 = (FRAME_HEADER_BYTES + PAGE_BYTES) as u64;
/// Zeros are written in pieces of this length.
const ZEROS_BYTES: usize = 256 << 10;

/// Where a journal's log lies.
pub(super) fn path_of(journal: &Path) -> PathBuf {
    let mut name = journal.to_path_buf().into_os_string();
    name.push("-wal");
    name.into()
}

/// The file while SQLite has it open, too.
#[derive(Debug)]
pub(super) struct LogFile {
    file: File,
    /// Its length, all of it written.
    bytes: u64,
}

impl LogFile {
    /// The file that SQLite has made or opened.
    pub(super) fn open(journal: &Path) -> io::Result<LogFile> {
        let file = OpenOptions::new().read(true).write(true).open(path_of(journal))?;
        let bytes = file.metadata()?.len();
        Ok(LogFile { file, bytes })
    }

    /// Bytes that frames may take.
    pub(super) fn capacity(&self) -> u64 {
        match self.bytes.is_multiple_of(MARK_PAGE_BYTES) {
            true => self.bytes.saturating_sub(HEADER_BYTES + MARK_PAGE_BYTES),
            // It is as SQLite made it.
            false => 0,
        }
    }

    /// Makes the file so long that frames may take `capacity` bytes, with zeros that are written and not just
    /// promised. Where the disk is too full for that nothing is kept of the attempt: others may need it.
    pub(super) fn prepare(&mut self, capacity: u64) -> io::Result<()> {
        let bytes = (capacity + HEADER_BYTES + MARK_PAGE_BYTES).next_multiple_of(MARK_PAGE_BYTES);
        if bytes <= self.bytes {
            return Ok(());
        }
        let zeros = vec![0; ZEROS_BYTES];
        let mut at = self.bytes;
        let mut written = Ok(());
        while at < bytes && written.is_ok() {
            let length = (bytes - at).min(ZEROS_BYTES as u64);
            written = self.file.write_all_at(&zeros[..length as usize], at);
            at += length;
        }
        if let Err(error) = written.and_then(|()| self.file.sync_all()) {
            // Without it the file is longer than it should be, and no worse.
            let _ = self.file.set_len(self.bytes);
            return Err(error);
        }
        self.bytes = bytes;
        Ok(())
    }

    /// Makes what SQLite has written durable, and the mark with it.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Says that so many frames of this generation are durable; it is on disk with the next flush.
    pub(super) fn mark(&self, frames: u64) -> io::Result<()> {
        if self.capacity() == 0 {
            return Ok(());
        }
        let mut salt = [0; 8];
        self.file.read_exact_at(&mut salt, 16)?;
        let mut mark = [0; MARK_BYTES];
        mark[..8].copy_from_slice(&MARK_MAGIC);
        mark[8..16].copy_from_slice(&salt);
        mark[16..24].copy_from_slice(&frames.to_le_bytes());
        let sum = Checksum::portable().of(&mark[..24]);
        mark[24..28].copy_from_slice(&sum.to_le_bytes());
        self.file.write_all_at(&mark, self.bytes - MARK_PAGE_BYTES)
    }

    /// All of it is in the database and durable there: SQLite need not read it again.
    pub(super) fn forget(&self) -> io::Result<()> {
        self.mark(0)?;
        // The mark first: a log that says nothing is whole, one that has lost its header is not.
        self.file.sync_data()?;
        self.file.write_all_at(&[0; HEADER_BYTES as usize], 0)?;
        self.file.sync_data()
    }
}

/// A mark as it stands in the file.
struct Mark {
    salt: [u8; 8],
    frames: u64,
}

fn read_mark(file: &File, length: u64) -> Option<Mark> {
    if length < 2 * MARK_PAGE_BYTES || !length.is_multiple_of(MARK_PAGE_BYTES) {
        return None;
    }
    let mut mark = [0; MARK_BYTES];
    file.read_exact_at(&mut mark, length - MARK_PAGE_BYTES).ok()?;
    let sum = u32::from_le_bytes(mark[24..28].try_into().expect("four bytes"));
    let is_mark = mark[..8] == MARK_MAGIC && Checksum::portable().of(&mark[..24]) == sum;
    is_mark.then(|| Mark {
        salt: mark[8..16].try_into().expect("eight bytes"),
        frames: u64::from_le_bytes(mark[16..24].try_into().expect("eight bytes")),
    })
}

/// SQLite's checksum, over words of either byte order.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Sum(u32, u32);

impl Sum {
    fn over(self, bytes: &[u8], is_big: bool) -> Sum {
        let word = |bytes: &[u8]| {
            let bytes: [u8; 4] = bytes.try_into().expect("four bytes");
            if is_big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
        };
        bytes.chunks_exact(8).fold(self, |Sum(a, b), pair| {
            let a = a.wrapping_add(word(&pair[..4])).wrapping_add(b);
            Sum(a, b.wrapping_add(word(&pair[4..])).wrapping_add(a))
        })
    }

    fn stored(bytes: &[u8]) -> Sum {
        let word = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().expect("four bytes"));
        Sum(word(&bytes[..4]), word(&bytes[4..]))
    }
}

/// Before SQLite opens it: refuses a log that ends before its durable mark, and makes durable what SQLite will read.
///
/// After a flush that failed the page cache may hold, as clean, what the disk does not. So what is going to be
/// believed is written once more and flushed, before anybody is shown it.
pub(super) fn settle(journal: &Path) -> Result<(), JournalError> {
    let path = path_of(journal);
    let failed =
        |doing: &str, error: io::Error| JournalError::Failed(path.clone(), format!("{doing}: {error}"));
    let opened = OpenOptions::new().read(true).write(true).open(&path);
    let file = match opened {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        opened => opened.map_err(|error| failed("opening it", error))?,
    };
    let length = file.metadata().map_err(|error| failed("looking at it", error))?.len();
    let mark = read_mark(&file, length).filter(|mark| mark.frames > 0);
    let damaged = |at: u64, found: &str, mark: &Mark| {
        JournalError::Damaged(
            path.clone(),
            format!("{found} at offset {at}, where {} frames had been durable", mark.frames),
        )
    };
    let mut header = [0; HEADER_BYTES as usize];
    if file.read_exact_at(&mut header, 0).is_err() {
        return mark.map_or(Ok(()), |mark| Err(damaged(0, "an end", &mark)));
    }
    let is_big = header[3] & 1 == 1;
    let has_magic = header[..3] == [0x37, 0x7f, 0x06] && header[3] & 0xfe == 0x82;
    let mut sum = Sum(0, 0).over(&header[..24], is_big);
    if !has_magic || sum != Sum::stored(&header[24..]) {
        return mark.map_or(Ok(()), |mark| Err(damaged(0, "a header that is not valid", &mark)));
    }
    let (mut at, mut frames, mut committed) = (HEADER_BYTES, 0, 0);
    let mut frame = vec![0; FRAME_BYTES as usize];
    while at + FRAME_BYTES <= length {
        file.read_exact_at(&mut frame, at).map_err(|error| failed("reading it", error))?;
        let (head, page) = frame.split_at(FRAME_HEADER_BYTES);
        sum = sum.over(&head[..8], is_big).over(page, is_big);
        if head[8..16] != header[16..24] || sum != Sum::stored(&head[16..]) {
            break;
        }
        file.write_all_at(&frame, at).map_err(|error| failed("making it durable", error))?;
        frames += 1;
        if head[4..8] != [0; 4] {
            committed = frames;
        }
        at += FRAME_BYTES;
    }
    file.write_all_at(&header, 0)
        .and_then(|()| file.sync_all())
        .map_err(|error| failed("flushing it", error))?;
    let Some(mark) = mark else { return Ok(()) };
    // SQLite counts the first half of the salt up whenever it begins at the front again.
    let generation = |salt: &[u8]| u32::from_be_bytes(salt[..4].try_into().expect("four bytes"));
    let ahead = generation(&header[16..20]).wrapping_sub(generation(&mark.salt));
    if header[16..24] == mark.salt {
        if committed < mark.frames {
            return Err(damaged(at, "a frame that is not valid", &mark));
        }
    } else if ahead == 0 || ahead > u32::MAX / 2 {
        return Err(damaged(0, "the header of an earlier time", &mark));
    }
    // A later generation whose first mark is not there yet: all that was marked is in the database.
    Ok(())
}
