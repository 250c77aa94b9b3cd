//! Everything the writer can ask of the disk, on one screen.
//!
//! All operations are on one file, under its temporary name until [`Action::Rename`]. Each is completed exactly
//! once, in any order; buffers travel by ownership. The edge never repeats, merges or drops an operation on its
//! own: what a failure means is decided by the writer.

use core::fmt;

use wal::block::BlockBuffer;
use wal::operation::{Doing, Errno};

use crate::names::{FileName, SnapshotId};

pub use wal::operation::{Completion, OperationId};

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
    /// Create the temporary file, empty, mode 0600; one that a crash left behind is emptied.
    Create,
    /// Give it this length and have the file system set the space aside (`fallocate`), so that a full disk is
    /// found before anything is written.
    Reserve {
        /// In bytes.
        length: u64,
    },
    /// Write `buffer.as_slice()[start..]`. A short write is fine: the rest comes as another operation.
    Write {
        /// Where the first byte written goes; a multiple of 4096, as `start` and the length are.
        offset: u64,
        /// Aligned for O_DIRECT. Comes back with the completion.
        buffer: BlockBuffer,
        /// Bytes of the buffer that are written already.
        start: usize,
    },
    /// `fdatasync`: what was written by writes completed before is durable.
    Flush,
    /// Give it the snapshot's name, in place of whatever has that name.
    Rename,
    /// `fsync` of the directory: the renaming is durable.
    FlushDirectory,
    /// Remove the temporary file.
    Delete,
}

/// An operation that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What was being done.
    pub doing: Doing,
    /// Of which snapshot.
    pub id: SnapshotId,
    /// From where on; 0 where an operation has no place.
    pub offset: u64,
    /// What the system said.
    pub errno: Errno,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.doing, FileName::Temporary(self.id))?;
        if self.doing == Doing::Writing {
            write!(f, " at offset {}", self.offset)?;
        }
        write!(f, ": {}", self.errno)
    }
}
