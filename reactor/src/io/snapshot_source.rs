//! Where a start finds snapshots: a directory of files, or whatever else holds them.

use super::log_files::flush_directory;
use super::memory::MmapSource;
use super::snapshot_files::snapshot_path;
use super::snapshot_map::{MappedRegion, SnapshotFile, read_ahead, set_aside};
use snapshot::names::SnapshotId;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use store::arena::SegmentSource;

/// Bytes at the end of a snapshot that are read at once: its tables take a megabyte and a half for ten million keys.
const EXPECTED_BYTES: u64 = 2 << 20;

/// Memory for a keyspace, and the regions it begins with.
pub type Memory = (Box<dyn SegmentSource>, Vec<&'static mut [u8]>);

/// Sets a file aside: returns what it is called now.
pub type SetAside = Box<dyn Fn() -> io::Result<PathBuf> + Send + Sync>;

/// Where a start finds snapshots: a directory of files, or a disk that is simulated.
pub trait SnapshotSource {
    /// An open snapshot.
    type File;
    /// The directory, as messages name it.
    fn directory(&self) -> &Path;
    /// The names of all files there.
    fn names(&self) -> io::Result<Vec<String>>;
    /// The end of this one will be read first: the system may begin, and nobody waits.
    fn expect(&self, _id: SnapshotId) {}
    /// Opens a snapshot to be read.
    fn open(&self, id: SnapshotId) -> io::Result<Self::File>;
    /// Its bytes.
    fn length(&self, file: &Self::File) -> u64;
    /// Reads what is there of so many bytes.
    fn read(&self, file: &Self::File, offset: u64, length: usize) -> io::Result<Vec<u8>>;
    /// Makes what can be read durable, the names of all files included.
    fn flush(&self, file: &Self::File) -> io::Result<()>;
    /// Memory for each of some shards, with regions of the file: pages that are in no two of them.
    fn memory(&self, file: &Self::File, shards: &[Vec<Range<u64>>]) -> io::Result<Vec<Memory>>;
    /// Memory for a keyspace that begins with nothing.
    fn empty_memory(&self) -> Box<dyn SegmentSource>;
    /// What sets a snapshot aside.
    fn set_aside(&self, id: SnapshotId) -> SetAside;
}

/// The snapshots of a directory, mapped.
#[derive(Debug)]
pub struct SnapshotDirectory {
    directory: PathBuf,
    helper_core: Option<usize>,
    is_patient: Arc<AtomicBool>,
}

impl SnapshotDirectory {
    /// Of this one. Threads that prepare memory run on that core.
    pub fn new(directory: &Path, helper_core: Option<usize>) -> SnapshotDirectory {
        SnapshotDirectory { directory: directory.to_path_buf(), helper_core, is_patient: Arc::default() }
    }

    /// Memory that is taken from now on, until [`begin_serving`](Self::begin_serving), is worth waiting for.
    pub fn be_patient(&self) {
        self.is_patient.store(true, Ordering::Relaxed);
    }

    /// From now on nobody waits for memory.
    pub fn begin_serving(&self) {
        self.is_patient.store(false, Ordering::Relaxed);
    }

    fn source(&self) -> MmapSource {
        MmapSource::with_helper_on(self.helper_core).with_patience(Arc::clone(&self.is_patient))
    }
}

impl SnapshotSource for SnapshotDirectory {
    type File = SnapshotFile;

    fn directory(&self) -> &Path {
        &self.directory
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.directory)? {
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    fn expect(&self, id: SnapshotId) {
        let Ok(file) = File::open(snapshot_path(&self.directory, id)) else { return };
        let length = file.metadata().map_or(0, |metadata| metadata.len());
        read_ahead(&file, length.saturating_sub(EXPECTED_BYTES), EXPECTED_BYTES);
    }

    fn open(&self, id: SnapshotId) -> io::Result<SnapshotFile> {
        SnapshotFile::open(&snapshot_path(&self.directory, id))
    }

    fn length(&self, file: &SnapshotFile) -> u64 {
        file.length()
    }

    fn read(&self, file: &SnapshotFile, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        file.read(offset, length)
    }

    fn flush(&self, file: &SnapshotFile) -> io::Result<()> {
        file.flush()?;
        flush_directory(&self.directory)
    }

    fn memory(&self, file: &SnapshotFile, shards: &[Vec<Range<u64>>]) -> io::Result<Vec<Memory>> {
        let ranges: Vec<Range<u64>> = shards.iter().flatten().cloned().collect();
        let mut regions = file.map(&ranges)?.into_iter();
        let memory = |shard: &Vec<Range<u64>>| -> Memory {
            let mut source = self.source();
            let adopt = |region: MappedRegion| source.adopt(region);
            let regions = regions.by_ref().take(shard.len()).map(adopt).collect();
            (Box::new(source), regions)
        };
        Ok(shards.iter().map(memory).collect())
    }

    fn empty_memory(&self) -> Box<dyn SegmentSource> {
        Box::new(self.source())
    }

    fn set_aside(&self, id: SnapshotId) -> SetAside {
        let path = snapshot_path(&self.directory, id);
        Box::new(move || set_aside(&path))
    }
}
