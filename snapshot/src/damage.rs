//! What is wrong with a snapshot, in words an operator can act on.

use alloc::string::String;
use core::fmt;

/// Why a snapshot is refused. Nothing of it is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// What kind it is.
    pub kind: DamageKind,
    /// The file, as the reader was told it is called.
    pub file: String,
    /// The byte in it from which on it is not what it should be.
    pub offset: u64,
    /// What should be there.
    pub expected: String,
    /// What is there.
    pub found: String,
}

/// Kinds of damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DamageKind {
    /// The first page is no valid header.
    Header,
    /// A header of a version that this program does not know: no damage to the file, but as little to be
    /// read.
    Version,
    /// The file does not have its length.
    Length,
    /// The file has the name of another snapshot.
    Name,
    /// The last page is no valid trailer.
    Trailer,
    /// The tables do not have their checksum.
    Tables,
    /// A page of a region does not have its checksum.
    Page,
    /// Checksums are right, yet no writer writes such a thing.
    Inconsistent,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Damage { kind, file, offset, expected, found } = self;
        write!(f, "{file} at offset {offset}: expected {expected}, found {found}. ")?;
        f.write_str(match kind {
            DamageKind::Version => "Start the program that wrote it, or a later one.",
            DamageKind::Name => "Give the file its own name back.",
            _ => {
                "Nothing of this snapshot is served. Restore the file from a copy, or move it out of the directory: an \
                 earlier snapshot and the log hold the same data, if they are still there."
            }
        })
    }
}

impl core::error::Error for Damage {}

/// A page that does not have its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageMismatch {
    /// What the tables say.
    pub expected: u32,
    /// What its bytes give.
    pub found: u32,
}
