//! Memory images: a keyspace as it was at one moment, in the bytes it lies in.
//!
//! An image is a list of *regions* (the slabs of the index, the arena's segments, the memory of long records), byte for byte
//! as they were, and the *meta* ([`meta`]): everything else, of which only the directory and the pieces are large. The
//! index holds segment numbers and units, never addresses, so a keyspace can live on the regions wherever they are
//! mapped.
//!
//! * [`capture`]: taking one. [`Keyspace::begin_image`] takes time by the number of segments and pieces, then
//!   [`Keyspace::image_step`] hands the bytes out in parts while the keyspace goes on.
//! * [`restore`]: [`Keyspace::from_image`] looks at the meta only. Pages of the regions are checked when they are first
//!   used, and in the background ([`warm`]), which also moves them into memory of the keyspace's own.
//! * A page that is not what was written is *damage*: from then on the keyspace finds nothing and takes nothing, and says why
//!   ([`Keyspace::damage`]). Whoever runs it stops before anything leaves that was made of that.
//!
//! Nothing here reads or writes a file: see the crate `snapshot` and the reactor.
//!
//! [`Keyspace::begin_image`]: crate::keyspace::Keyspace::begin_image
//! [`Keyspace::image_step`]: crate::keyspace::Keyspace::image_step
//! [`Keyspace::from_image`]: crate::keyspace::Keyspace::from_image
//! [`Keyspace::damage`]: crate::keyspace::Keyspace::damage

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

pub mod capture;
pub mod fuzz;
pub mod meta;
pub mod restore;
pub(crate) mod unchecked;
pub mod warm;

/// Bytes of a page: what is copied, and checked, as a whole.
pub const PAGE_BYTES: usize = crate::arena::PAGE_BYTES;
/// No part of an image is longer.
pub const PART_BYTES_MAX: usize = 64 << 10;

/// What a region of an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegionKind {
    /// Two mebibytes of the index's buckets.
    Index,
    /// Two mebibytes that many records share.
    Segment,
    /// Whole pages of one long record.
    Span,
}

impl RegionKind {
    /// The byte that files have for it.
    pub fn code(self) -> u8 {
        match self {
            RegionKind::Index => 1,
            RegionKind::Segment => 2,
            RegionKind::Span => 3,
        }
    }

    /// What a byte in a file stands for.
    pub fn from_code(code: u8) -> Option<RegionKind> {
        [RegionKind::Index, RegionKind::Segment, RegionKind::Span]
            .into_iter()
            .find(|kind| kind.code() == code)
    }
}

impl fmt::Display for RegionKind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            RegionKind::Index => "index slab",
            RegionKind::Segment => "segment",
            RegionKind::Span => "long record",
        })
    }
}

/// A region of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionInfo {
    /// What it is.
    pub kind: RegionKind,
    /// Its number among those of its kind; long records count with the segments.
    pub number: u32,
    /// Its length, whole pages.
    pub bytes: usize,
}

/// What [`Keyspace::begin_image`](crate::keyspace::Keyspace::begin_image) says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageBegin {
    /// See [`meta`].
    pub meta: Vec<u8>,
    /// The regions whose bytes will come.
    pub regions: Vec<RegionInfo>,
}

/// Some pages of an image, on their way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImagePart<'a> {
    /// Which region of [`ImageBegin::regions`].
    pub region: u32,
    /// Where in it, whole pages.
    pub offset: usize,
    /// Whole pages, up to [`PART_BYTES_MAX`].
    pub bytes: &'a [u8],
}

/// Why no image can be begun now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageRefusal {
    /// One is being taken.
    Running,
    /// The last one left slots to be put in order: a few turns.
    Tidying,
    /// The keyspace was restored, and part of it is still where the file is mapped.
    Warming,
    /// What was restored is damaged.
    Damaged,
}

impl fmt::Display for ImageRefusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            ImageRefusal::Running => "a snapshot is being taken",
            ImageRefusal::Tidying => "the last snapshot is being tidied up, try again in a moment",
            ImageRefusal::Warming => {
                "the snapshot the server started from is still being read in, try again then"
            }
            ImageRefusal::Damaged => "the snapshot the server started from is damaged",
        })
    }
}

/// How far an image is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImageProgress {
    /// Bytes of all regions.
    pub total_bytes: u64,
    /// Bytes handed out.
    pub delivered_bytes: u64,
    /// Bytes of index pages that were copied before they changed and wait for the next step.
    pub early_bytes: usize,
    /// The most that ever waited. Bounded by the index.
    pub early_bytes_max: usize,
    /// All bytes that are held only because of the image, but for dead slots: those above, memory of a keyspace that was
    /// cleared since, lists.
    pub held_bytes: usize,
}

/// Checks pages of a file against what the file says of them.
pub trait PageCheck {
    /// Whether `bytes` are what was written as page `page` of region `region`; if not, the checksums expected and found.
    fn check(&self, region: u32, page: u32, bytes: &[u8]) -> Result<(), (u32, u32)>;
}

/// What is wrong with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Its checksum.
    Checksum {
        /// What the file says.
        expected: u32,
        /// What its bytes have.
        found: u32,
    },
    /// Its checksum is right and its contents cannot be: the file was not written by this program.
    Contents(&'static str),
}

/// A page that is not what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Which region of the image.
    pub region: u32,
    /// What it is.
    pub kind: RegionKind,
    /// Its number among those of its kind.
    pub number: u32,
    /// The page in it.
    pub page: u32,
    /// What is wrong.
    pub cause: Cause,
}

impl fmt::Display for Damage {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Damage { region, kind, number, page, cause } = self;
        write!(out, "page {page} of region {region} ({kind} {number}) is damaged: ")?;
        match cause {
            Cause::Checksum { expected, found } => {
                write!(out, "expected checksum {expected:08x}, found {found:08x}")
            }
            Cause::Contents(what) => write!(out, "its checksum is right, but it has {what}"),
        }
    }
}

/// Why there is no keyspace to be had from an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// The meta is not what this program writes: what was expected, what was found.
    Meta(String),
    /// The regions are not those that the meta describes.
    Regions(String),
    /// A page that is needed at once is damaged.
    Damaged(Damage),
}

impl fmt::Display for ImageError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ImageError::Meta(what) => write!(out, "the description of the memory image is wrong: {what}"),
            ImageError::Regions(what) => write!(out, "the memory image does not fit its description: {what}"),
            ImageError::Damaged(damage) => damage.fmt(out),
        }
    }
}

impl core::error::Error for ImageError {}

#[cfg(target_endian = "big")]
compile_error!("memory images are little-endian, as is the memory they are of");
