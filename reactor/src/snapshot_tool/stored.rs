//! A snapshot file as tools read it: header and tables first, then a shard at a time, into memory of their own.
//!
//! A server maps the file and looks at a page when it needs it; a tool wants all of it once, so it reads from front to
//! back, checks every page as it comes, and holds one shard at a time. A file that changes or shrinks meanwhile is an error
//! of reading, or damage, like any other.

use crate::io::log_files::{checksum, in_words};
use crate::io::memory::MmapSource;
use snapshot::damage::{Damage, DamageKind, PageMismatch};
use snapshot::format::{Header, PAGE};
use snapshot::view::{Envelope, SnapshotView};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use store::arena::SegmentSource;
use store::image::{Cause, ImageError, PageCheck, meta};
use store::keyspace::{Keyspace, KeyspaceOptions};
use store::time::Now;

/// Bytes read at a time, pages.
const PIECE_BYTES: usize = 1 << 20;

/// Why a snapshot cannot be read.
#[derive(Debug)]
pub(crate) enum Unreadable {
    /// It is not what was written.
    Damage(Damage),
    /// The system refused.
    Io { path: PathBuf, doing: &'static str, offset: u64, error: io::Error },
    /// It is no file.
    NoFile { path: PathBuf, found: String },
    /// No memory for it.
    Memory { path: PathBuf, bytes: u64 },
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unreadable::Damage(damage) => damage.fmt(f),
            Unreadable::NoFile { path, found } => {
                write!(f, "{}: expected a snapshot file, found {found}", path.display())
            }
            Unreadable::Io { path, doing, offset, error } => {
                write!(f, "{doing} {} at offset {offset}: {}", path.display(), in_words(error))
            }
            Unreadable::Memory { path, bytes } => write!(
                f,
                "{}: no memory for a shard of {bytes} bytes; a tool reads one shard of a snapshot at a time, try it where there is \
                 more",
                path.display()
            ),
        }
    }
}

impl From<Damage> for Unreadable {
    fn from(damage: Damage) -> Unreadable {
        Unreadable::Damage(damage)
    }
}

type Tables = SnapshotView<Vec<u8>>;

/// A snapshot whose header, tables and trailer are right.
#[derive(Debug)]
pub(crate) struct StoredSnapshot {
    path: PathBuf,
    file: File,
    view: Arc<Tables>,
}

impl StoredSnapshot {
    /// Opens a file and looks at what a start looks at.
    pub(crate) fn open(path: &Path) -> Result<StoredSnapshot, Unreadable> {
        let io = |doing, error| Unreadable::Io { path: path.into(), doing, offset: 0, error };
        let no_file = |found: &str| Unreadable::NoFile { path: path.into(), found: found.into() };
        let file = File::open(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => no_file("nothing"),
            _ => io("opening", error),
        })?;
        let metadata = file.metadata().map_err(|error| io("opening", error))?;
        if !metadata.is_file() {
            return Err(no_file("something else"));
        }
        let length = metadata.len();
        let read = |offset: u64, bytes: u64| read_up_to(&file, path, offset, bytes);
        let (first, last) =
            (read(0, length.min(PAGE))?, read(length.saturating_sub(PAGE), length.min(PAGE))?);
        let name = path.to_string_lossy();
        let envelope = Envelope::open(&name, length, &first, &last, checksum())?;
        let tables = envelope.tables();
        let tables = read(tables.start, tables.end - tables.start)?;
        let view = Arc::new(SnapshotView::open(envelope, tables, checksum())?);
        Ok(StoredSnapshot { path: path.into(), file, view })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn header(&self) -> &Header {
        self.view.header()
    }

    pub(crate) fn view(&self) -> &Tables {
        &self.view
    }

    /// What the meta of a shard says at its beginning.
    pub(crate) fn summary(&self, shard: usize) -> Result<meta::Summary, Unreadable> {
        meta::summary(self.view.meta(shard)).map_err(|error| self.inconsistent(shard, &error).into())
    }

    /// A shard's keyspace. Every page that is not what was written goes to `damaged` first; if there was one there is
    /// no keyspace.
    pub(crate) fn read_shard(
        &self,
        shard: usize,
        damaged: &mut dyn FnMut(Damage),
    ) -> Result<Option<Keyspace>, Unreadable> {
        let mut source = MmapSource::new();
        let (mut regions, mut is_whole) = (Vec::new(), true);
        let all: u64 = self.view.regions(shard).iter().map(|region| region.length).sum();
        for (index, region) in self.view.regions(shard).iter().enumerate() {
            let memory = usize::try_from(region.length).ok().and_then(|length| source.allocate(length));
            let memory = memory.ok_or_else(|| Unreadable::Memory { path: self.path.clone(), bytes: all })?;
            for (number, piece) in memory.chunks_mut(PIECE_BYTES).enumerate() {
                let at = (number * PIECE_BYTES) as u64;
                self.fill(piece, region.offset + at)?;
                for (page, bytes) in piece.chunks(PAGE as usize).enumerate() {
                    let page = at / PAGE + page as u64;
                    if let Err(mismatch) = self.view.check_page(shard, index, page, bytes) {
                        is_whole = false;
                        damaged(self.view.page_damage(shard, index, page, mismatch));
                    }
                }
            }
            regions.push(memory);
        }
        if !is_whole {
            regions.into_iter().for_each(|memory| source.release(memory));
            return Ok(None);
        }
        let summary = self.summary(shard)?;
        let options = KeyspaceOptions { hash_seed: summary.hash_seed, ..KeyspaceOptions::default() };
        let check = Box::new(Pages { view: Arc::clone(&self.view), shard });
        let (meta, source) = (self.view.meta(shard), Box::new(source));
        match Keyspace::from_image(options, source, meta, regions, check, Now::default()) {
            Ok(keyspace) => Ok(Some(keyspace)),
            Err(ImageError::Damaged(damage)) => Err(self.contents_damage(shard, &damage).into()),
            Err(error) => Err(self.inconsistent(shard, &error).into()),
        }
    }

    /// What a keyspace came across, where it is in the file.
    pub(crate) fn contents_damage(&self, shard: usize, damage: &store::image::Damage) -> Damage {
        let (region, page) = (damage.region as usize, u64::from(damage.page));
        match damage.cause {
            Cause::Checksum { expected, found } => {
                self.view.page_damage(shard, region, page, PageMismatch { expected, found })
            }
            Cause::Contents(what) => Damage {
                kind: DamageKind::Inconsistent,
                file: self.path.to_string_lossy().into_owned(),
                offset: self.view.regions(shard)[region].offset + page * PAGE,
                expected: format!(
                    "a page of shard {shard}, {} {}, that a keyspace can live on",
                    damage.kind, damage.number
                ),
                found: format!("one with the right checksum, but it has {what}"),
            },
        }
    }

    /// Tables with the right checksum that no keyspace has written.
    pub(crate) fn inconsistent(&self, shard: usize, why: &dyn fmt::Display) -> Damage {
        Damage {
            kind: DamageKind::Inconsistent,
            file: self.path.to_string_lossy().into_owned(),
            // The meta lies in the tables, which is where to look.
            offset: self.view.tables().start,
            expected: format!("a memory image of shard {shard}"),
            found: why.to_string(),
        }
    }

    fn fill(&self, bytes: &mut [u8], offset: u64) -> Result<(), Unreadable> {
        self.file.read_exact_at(bytes, offset).map_err(|error| Unreadable::Io {
            path: self.path.clone(),
            doing: "reading",
            offset,
            error,
        })
    }
}

/// Reads so many bytes; fewer where the file has become shorter, which the view then says.
fn read_up_to(file: &File, path: &Path, offset: u64, bytes: u64) -> Result<Vec<u8>, Unreadable> {
    let length = usize::try_from(bytes).map_err(|_| Unreadable::Memory { path: path.into(), bytes })?;
    let mut memory = vec![0; length];
    let mut read = 0;
    while read < length {
        match file.read_at(&mut memory[read..], offset + read as u64) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                let offset = offset + read as u64;
                return Err(Unreadable::Io { path: path.into(), doing: "reading", offset, error });
            }
        }
    }
    memory.truncate(read);
    Ok(memory)
}

/// The checksums of a shard's pages.
struct Pages {
    view: Arc<Tables>,
    shard: usize,
}

impl PageCheck for Pages {
    fn check(&self, region: u32, page: u32, bytes: &[u8]) -> Result<(), (u32, u32)> {
        let checked = self.view.check_page(self.shard, region as usize, u64::from(page), bytes);
        checked.map_err(|PageMismatch { expected, found }| (expected, found))
    }
}
