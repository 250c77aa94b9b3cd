//! The data directory at a start: locked, read, and made into keyspaces.
//!
//! With a log the directory is this process' own from here on. Without one (`--durability off`) nothing is written to it,
//! yet what lies there is served: the newest snapshot, and the log behind it if there is one.

use super::config::Launch;
use super::journal::{self, JournalKind};
use super::recovery::{RecoveryError, RecoveryOptions};
#[cfg(feature = "sqlcipher")]
use super::replay::{Target, replay};
use super::replication::files;
use super::snapshot_start::{Restored, Served, Wishes, has_snapshots, restore};
use super::start::StartError;
use super::topology::Topology;
use crate::clock::SystemClock;
use crate::io::log_files::{self, DirectoryLock, LogDirectory};
use crate::io::memory::MmapSource;
use crate::io::snapshot_map::SnapshotFile;
use crate::io::snapshot_source::{SnapshotDirectory, SnapshotSource};
use snapshot::names::SnapshotId;
use store::engine::Seeds;
use store::keyspace::Keyspace;
use store::session::Durability;
use wal::group_commit::Start;
use wal::lsn::{Epoch, Lsn};

/// What a start found.
pub(super) struct OpenData {
    /// Of each shard.
    pub(super) keyspaces: Vec<Keyspace>,
    /// The seed of the keys' hashes.
    pub(super) hash_seed: u64,
    /// The directory's, if it has anything that is ours.
    pub(super) lock: Option<DirectoryLock>,
    /// How the log goes on.
    pub(super) log: OpenLog,
    /// Where its history stands.
    pub(super) found: Found,
    /// The snapshot that keyspaces live on.
    pub(super) served: Option<Served<SnapshotFile>>,
}

/// Where the history of the data stands, for snapshots that are taken from now on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    /// Their epoch, where there is no log that has one.
    pub(super) epoch: Epoch,
    /// The last record that is in the data, the same.
    pub(super) lsn: Lsn,
    /// Bytes of log behind the snapshot that the start began with.
    pub(super) log_bytes: u64,
    /// That snapshot.
    pub(super) snapshot: Option<SnapshotId>,
}

impl Found {
    /// No data.
    const NOTHING: Found = Found { epoch: Epoch::FIRST, lsn: Lsn::ZERO, log_bytes: 0, snapshot: None };
}

/// A log that was read to its end.
pub(super) enum OpenLog {
    /// There is none.
    None,
    /// Files of blocks.
    Native(Start),
    /// The encrypted journal.
    #[cfg(feature = "sqlcipher")]
    Encrypted(Box<wal::sqlcipher::Journal>),
}

/// Reads what is there. `notes` gets what an operator should know.
pub(super) fn open(
    launch: &Launch,
    topology: &Topology,
    seeds: &[Seeds],
    notes: &mut Vec<String>,
) -> Result<OpenData, StartError> {
    let source = SnapshotDirectory::new(&launch.dir, topology.helper_core());
    let keeps_log = launch.durability != Durability::Off;
    notes.extend(files::sweep(&launch.dir));
    if !keeps_log && !holds_data(launch, &source)? {
        return Ok(OpenData {
            keyspaces: empty(topology, seeds),
            hash_seed: seeds[0].hash,
            lock: None,
            log: OpenLog::None,
            found: Found::NOTHING,
            served: None,
        });
    }
    let lock = Some(DirectoryLock::take(&launch.dir).map_err(StartError::Lock)?);
    notes.extend(files::tidy(&launch.dir, launch.replicaof.is_some()).map_err(StartError::Setting)?);
    journal::refuse_the_other(&launch.dir, launch.journal).map_err(StartError::Setting)?;
    let names = names(&source)?;
    if launch.journal == JournalKind::Sqlcipher && has_snapshots(&names) {
        return Err(StartError::Setting(format!(
            "{} holds snapshots, which are not encrypted, and the SQLCipher journal has no use for them; start with --journal \
             native, or move the files snapshot-* to another place",
            launch.dir.display()
        )));
    }
    match launch.journal {
        JournalKind::Native => {
            // Nobody waits yet, and on huge pages it serves the faster for as long as it serves.
            if has_snapshots(&names) {
                source.be_patient();
            }
            let opened = open_native(launch, &source, seeds, keeps_log, notes);
            source.begin_serving();
            Ok(OpenData { lock, ..opened? })
        }
        #[cfg(feature = "sqlcipher")]
        JournalKind::Sqlcipher => Ok(OpenData { lock, ..open_encrypted(launch, topology, seeds, notes)? }),
        #[cfg(not(feature = "sqlcipher"))]
        JournalKind::Sqlcipher => Err(StartError::Setting(journal::NOT_BUILT_IN.into())),
    }
}

fn names(source: &SnapshotDirectory) -> Result<Vec<String>, StartError> {
    source.names().map_err(|error| {
        let (path, doing, offset) = (source.directory().to_path_buf(), "listing", 0);
        StartError::Recovery(RecoveryError::Io { path, doing, offset, error })
    })
}

/// Whether a directory that is not written to has anything to be served.
fn holds_data(launch: &Launch, source: &SnapshotDirectory) -> Result<bool, StartError> {
    // The encrypted journal is read only by who goes on with it.
    if launch.journal == JournalKind::Sqlcipher || !launch.dir.is_dir() {
        return Ok(false);
    }
    let has_log = || log_files::list(&launch.dir).is_ok_and(|found| !found.segments.is_empty());
    Ok(has_snapshots(&names(source)?) || has_log())
}

fn empty(topology: &Topology, seeds: &[Seeds]) -> Vec<Keyspace> {
    let keyspace = |seeds: &Seeds| {
        let memory = Box::new(MmapSource::with_helper_on(topology.helper_core()));
        Keyspace::new(seeds.keyspace_options(), memory)
    };
    seeds.iter().map(keyspace).collect()
}

fn open_native(
    launch: &Launch,
    source: &SnapshotDirectory,
    seeds: &[Seeds],
    keeps_log: bool,
    notes: &mut Vec<String>,
) -> Result<OpenData, StartError> {
    let mut recovery = RecoveryOptions::new(super::start::random()?);
    recovery.to = launch.recover_to;
    let wishes = Wishes {
        seeds,
        recovery,
        warms_fully: launch.warms_fully,
        may_write: keeps_log,
        now: SystemClock::new().now(),
    };
    let mut report = |line: &str| eprintln!("millrace: {line}");
    let restored = restore(LogDirectory::new(&launch.dir), source, &wishes, &mut report)
        .map_err(StartError::Recovery)?;
    let (epoch, snapshot) = (restored.snapshot_epoch(keeps_log), restored.snapshot);
    let Restored { keyspaces, hash_seed, recovered, served, notes: noted, .. } = restored;
    let found = Found {
        epoch,
        lsn: recovered.start.next_lsn.previous(),
        log_bytes: recovered.end.bytes_read,
        snapshot,
    };
    notes.extend(noted);
    notes.extend(recovered.line());
    notes.extend(recovered.cut());
    let log = if keeps_log { OpenLog::Native(recovered.start) } else { OpenLog::None };
    Ok(OpenData { keyspaces, hash_seed, lock: None, log, found, served })
}

#[cfg(feature = "sqlcipher")]
fn open_encrypted(
    launch: &Launch,
    topology: &Topology,
    seeds: &[Seeds],
    notes: &mut Vec<String>,
) -> Result<OpenData, StartError> {
    let now = SystemClock::new().now();
    let source = journal::KeySource::of(launch.journal_key_file.clone());
    let mut opened = journal::open(&launch.dir, &source).map_err(StartError::Recovery)?;
    let mut report = |line: &str| eprintln!("millrace: {line}");
    let records = opened.next_lsn().0 - opened.first_lsn().0;
    let mut keyspaces = empty(topology, seeds);
    let targets = keyspaces.iter_mut().map(Target::empty).collect();
    let recovered = replay(&launch.dir, targets, records, now, |each| {
        journal::recover(&opened, launch.recover_to, &mut report, each)
    })
    .map_err(StartError::Recovery)?;
    notes.extend(recovered.line());
    if launch.recover_to.is_some() {
        notes.extend(recovered.cut(&mut opened).map_err(StartError::Recovery)?);
    }
    let log = OpenLog::Encrypted(Box::new(opened));
    Ok(OpenData { keyspaces, hash_seed: seeds[0].hash, lock: None, log, found: Found::NOTHING, served: None })
}
