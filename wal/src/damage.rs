//! What is wrong with a log, in words an operator can act on.

use alloc::string::String;
use core::fmt;

use crate::lsn::Lsn;
use crate::segment::FileName;

/// Why a log is refused. Nothing of it is served: what was read before is intact, but what comes after it was
/// acknowledged and is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// What kind it is.
    pub kind: DamageKind,
    /// The file.
    pub file: FileName,
    /// The byte in it from which on it is not what it should be.
    pub offset: u64,
    /// What should be there.
    pub expected: String,
    /// What is there.
    pub found: String,
    /// All records before this one are intact.
    pub intact_before: Lsn,
}

/// Kinds of damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DamageKind {
    /// A file with the name of a segment has no valid header.
    Header,
    /// A header of a version that this program does not know: no damage to the file, but as little to be
    /// read.
    Version,
    /// A file does not have its length.
    Length,
    /// Two files have the same number, or headers contradict each other.
    Order,
    /// A block is not valid, and it was durable.
    Block,
    /// Records are missing between two segments.
    Gap,
    /// Records are there twice.
    Duplicate,
    /// Checksums are right, yet no writer writes such a thing.
    Inconsistent,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Damage { kind, file, offset, expected, found, intact_before } = self;
        write!(f, "{file} at offset {offset}: expected {expected}, found {found}. ")?;
        match kind {
            DamageKind::Version => f.write_str("Start the program that wrote it, or a later one."),
            _ => write!(
                f,
                "Records before LSN {intact_before} are intact, what follows is not all there, and nothing is served. \
                 Restore the file from a copy or a replica; `millrace log repair` says what would be lost by cutting \
                 the log there."
            ),
        }
    }
}

impl core::error::Error for Damage {}
