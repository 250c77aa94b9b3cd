//! Everything the writer can ask of the disk, and what comes back, on one screen.
//!
//! Each operation is completed exactly once, in any order; buffers travel by ownership. The edge opens files
//! on first use (mode 0600), and never repeats, merges or drops an operation on its own: what a failure means
//! is decided here.

use alloc::string::String;
use core::fmt;

use crate::block::BlockBuffer;
use crate::segment::FileName;

/// Names an operation in its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OperationId(pub u64);

/// Something to do, handed to the edge.
#[derive(Debug)]
pub struct Operation {
    /// Comes back in the completion.
    pub id: OperationId,
    /// What.
    pub action: Action,
}

/// What to do.
#[derive(Debug)]
pub enum Action {
    /// Create the file, empty, mode 0600. It is an error if it exists.
    Create {
        /// Always a spare.
        file: FileName,
    },
    /// Give the file this length and have the file system set the space aside (`fallocate`), so that a full
    /// disk is found at once and not after the writing of most zeros.
    Reserve {
        /// Always a spare.
        file: FileName,
        /// In bytes.
        length: u64,
    },
    /// Write zeros: the file system then has nothing to convert when a block is flushed.
    WriteZeros {
        /// Always a spare.
        file: FileName,
        /// First byte.
        offset: u64,
        /// Number of bytes; they are written completely or the operation failed.
        length: u64,
    },
    /// Write `buffer.as_slice()[start..]`. A short write is fine: the rest comes as another operation.
    Write {
        /// A spare (its header) or a segment (a block).
        file: FileName,
        /// Where the first byte written goes; a multiple of 4096, as `start` and the length are.
        offset: u64,
        /// Comes back with the completion.
        buffer: BlockBuffer,
        /// Bytes of the buffer that are written already.
        start: usize,
        /// What must have happened before the operation completes.
        sync: Sync,
    },
    /// `fdatasync`: what was written to this file by writes completed before is durable.
    Flush {
        /// Which file.
        file: FileName,
    },
    /// Rename; the target does not exist.
    Rename {
        /// Its name now.
        from: FileName,
        /// Its name then.
        to: FileName,
    },
    /// Remove the file.
    Delete {
        /// Which file.
        file: FileName,
    },
    /// `fsync` of the directory: creations, renames and deletions completed before are durable.
    FlushDirectory,
    /// Nothing more will be written to the file for now: its descriptor may be closed.
    Close {
        /// Which file.
        file: FileName,
    },
}

/// How much durability is part of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// None.
    None,
    /// The bytes are durable: `RWF_DSYNC`, with O_DIRECT or without.
    Data,
    /// An `fdatasync` follows in the same breath (linked, or by the same thread); complete after it. A write
    /// or flush that fails fails the operation.
    Flush,
}

/// What became of an operation.
#[derive(Debug)]
pub struct Completion {
    /// Which.
    pub id: OperationId,
    /// Bytes written by a `Write`; any number for the others.
    pub result: Result<usize, Errno>,
    /// The buffer of a `Write`.
    pub buffer: Option<BlockBuffer>,
}

/// An error of the operating system by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// Input/output error.
    pub const EIO: Errno = Errno(5);
    /// No space left on device.
    pub const ENOSPC: Errno = Errno(28);

    /// What a person can do about it.
    pub fn remedy(self) -> &'static str {
        match self.0 {
            1 | 13 => "let this process make, read and write files there",
            2 => "look who removed it while it was in use",
            11 | 12 => "give this process more memory or threads",
            20 | 36 | 40 => "name a directory with --dir",
            23 | 24 => "raise the limit of open files (ulimit -n)",
            27 => "raise the limit on the length of files (ulimit -f)",
            28 | 122 => "free space on its disk",
            30 => {
                "mount its file system for writing; it may have turned read-only after an error of the disk (dmesg)"
            }
            _ => "look what the kernel says of its disk (dmesg)",
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Linux' numbers of what a file system may say to these operations.
        let name = match self.0 {
            1 => "EPERM: not permitted",
            2 => "ENOENT: no such file or directory",
            5 => "EIO: input/output error",
            9 => "EBADF: not an open file",
            11 => "EAGAIN: try again",
            12 => "ENOMEM: out of memory",
            13 => "EACCES: permission denied",
            16 => "EBUSY: in use",
            17 => "EEXIST: file exists",
            20 => "ENOTDIR: not a directory",
            21 => "EISDIR: a directory",
            22 => "EINVAL: invalid argument",
            23 => "ENFILE: too many open files in the system",
            24 => "EMFILE: too many open files",
            27 => "EFBIG: file too large",
            28 => "ENOSPC: no space left on device",
            30 => "EROFS: read-only file system",
            36 => "ENAMETOOLONG: name too long",
            38 => "ENOSYS: not in this kernel",
            40 => "ELOOP: too many symbolic links",
            61 => "ENODATA: no data",
            95 => "EOPNOTSUPP: not supported",
            110 => "ETIMEDOUT: timed out",
            116 => "ESTALE: stale file handle",
            121 => "EREMOTEIO: remote input/output error",
            122 => "EDQUOT: disk quota exceeded",
            number => return write!(f, "error {number} of the operating system (see errno(3))"),
        };
        f.write_str(name)
    }
}

/// What an operation does, as a message names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// `Create`.
    Creating,
    /// `Reserve`, `WriteZeros`.
    Preallocating,
    /// `Write`.
    Writing,
    /// `Flush`.
    Flushing,
    /// `Rename`.
    Renaming,
    /// `FlushDirectory`.
    FlushingDirectory,
}

impl fmt::Display for Doing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Doing::Creating => "creating",
            Doing::Preallocating => "preallocating",
            Doing::Writing => "writing",
            Doing::Flushing => "flushing",
            Doing::Renaming => "renaming",
            Doing::FlushingDirectory => "flushing the directory of",
        })
    }
}

/// An operation that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What was being done.
    pub doing: Doing,
    /// To which file.
    pub file: FileName,
    /// From where on; 0 where an operation has no place.
    pub offset: u64,
    /// How many bytes; 0 where it has no length.
    pub length: u64,
    /// What the system said.
    pub errno: Errno,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.doing, self.file)?;
        if self.length > 0 {
            write!(f, " at offset {}, {} bytes", self.offset, self.length)?;
        }
        write!(f, ": {}", self.errno)
    }
}

impl From<Failure> for String {
    fn from(failure: Failure) -> String {
        alloc::format!("{failure}")
    }
}
