//! The directory of a stopped server, read for a tool as a start reads it, and left as it is.
//!
//! The newest whole snapshot and the log behind it, or the encrypted journal; every page is checked before anything is made of
//! it. The directory is locked meanwhile, so that no server goes on in it.

use super::journal::{self, Holdings, JournalKind, KeySource};
use super::recovery::{RecoveryError, RecoveryOptions};
#[cfg(feature = "sqlcipher")]
use super::replay::{Target, replay};
use super::snapshot_start::{Restored, Wishes, has_snapshots, restore};
use super::start::{StartError, random};
use crate::clock::SystemClock;
use crate::io::log_files::{DirectoryLock, LogDirectory};
#[cfg(feature = "sqlcipher")]
use crate::io::memory::MmapSource;
use crate::io::snapshot_files::{list_snapshots, snapshot_path};
use crate::io::snapshot_source::{SnapshotDirectory, SnapshotSource};
use crate::snapshot_tool::stored::StoredSnapshot;
use std::path::Path;
use store::engine::Seeds;
use store::keyspace::Keyspace;

/// What a directory held.
pub(crate) struct Stopped {
    /// Of each shard.
    pub(crate) keyspaces: Vec<Keyspace>,
    /// What an operator should know.
    pub(crate) notes: Vec<String>,
    _lock: DirectoryLock,
}

/// Reads a directory; the key is for an encrypted journal.
pub(crate) fn read(directory: &Path, key: &KeySource) -> Result<Stopped, StartError> {
    let place = directory.display();
    let looking = |error| {
        let (path, doing, offset) = (directory.to_path_buf(), "listing", 0);
        StartError::Recovery(RecoveryError::Io { path, doing, offset, error })
    };
    let holdings = Holdings::of(directory).map_err(looking)?;
    let names = SnapshotDirectory::new(directory, None).names().map_err(looking)?;
    let kind = if holdings.sqlcipher { JournalKind::Sqlcipher } else { JournalKind::Native };
    if !holdings.native && !holdings.sqlcipher && holdings.converted.is_none() && !has_snapshots(&names) {
        return Err(StartError::Setting(format!(
            "{place}: expected a directory with the data of a server (its --dir), found no log, snapshot or journal there"
        )));
    }
    let lock = DirectoryLock::take(directory).map_err(StartError::Lock)?;
    refuse_the_middle_of_a_sync(directory)?;
    journal::refuse_the_other(directory, kind).map_err(StartError::Setting)?;
    let (keyspaces, notes) = match kind {
        JournalKind::Native => {
            // In as many shards as the newest snapshot has: its records need not be dealt anew.
            let listed = list_snapshots(directory).map_err(looking)?.snapshots;
            let newest = listed.first().map(|&id| StoredSnapshot::open(&snapshot_path(directory, id)));
            let shards = match newest {
                Some(Ok(snapshot)) => snapshot.view().shards(),
                _ => 1,
            };
            read_native(directory, shards)?
        }
        #[cfg(feature = "sqlcipher")]
        JournalKind::Sqlcipher => read_encrypted(directory, key)?,
        #[cfg(not(feature = "sqlcipher"))]
        JournalKind::Sqlcipher => {
            let _ = key;
            return Err(StartError::Setting(journal::NOT_BUILT_IN.into()));
        }
    };
    Ok(Stopped { keyspaces, notes, _lock: lock })
}

/// As a start refuses such a directory (replication's `tidy`), which puts it in order first; a tool changes nothing. What
/// `install/` holds is on its way to take everything's place, and its mark comes with it.
fn refuse_the_middle_of_a_sync(directory: &Path) -> Result<(), StartError> {
    let marks = [directory.join("sync-until"), directory.join("install")];
    let Some(mark) = marks.into_iter().find(|mark| mark.exists()) else { return Ok(()) };
    Err(StartError::Setting(format!(
        "{} says that this directory was in the middle of a full sync: what it holds is no state that its primary was \
         in. Start it as a replica (--replicaof HOST:PORT), which gives it everything anew, or on another directory",
        mark.display()
    )))
}

fn read_native(directory: &Path, shards: usize) -> Result<(Vec<Keyspace>, Vec<String>), StartError> {
    let seeds = vec![Seeds { hash: random()?, ..Seeds::default() }; shards];
    let wishes = Wishes {
        seeds: &seeds,
        recovery: RecoveryOptions::new(random()?),
        // A page that is damaged is found now, while an earlier snapshot may still do.
        warms_fully: true,
        may_write: false,
        now: SystemClock::new().now(),
    };
    let source = SnapshotDirectory::new(directory, None);
    let restored = restore(LogDirectory::new(directory), &source, &wishes, &mut report);
    let Restored { keyspaces, recovered, mut notes, .. } = restored.map_err(StartError::Recovery)?;
    notes.extend(recovered.line());
    notes.extend(recovered.cut());
    Ok((keyspaces, notes))
}

#[cfg(feature = "sqlcipher")]
fn read_encrypted(directory: &Path, key: &KeySource) -> Result<(Vec<Keyspace>, Vec<String>), StartError> {
    let seeds = Seeds { hash: random()?, ..Seeds::default() };
    let opened = journal::open(directory, key).map_err(StartError::Recovery)?;
    let records = opened.next_lsn().0 - opened.first_lsn().0;
    let mut keyspace = Keyspace::new(seeds.keyspace_options(), Box::new(MmapSource::new()));
    let recovered =
        replay(directory, vec![Target::empty(&mut keyspace)], records, SystemClock::new().now(), |each| {
            journal::recover(&opened, None, &mut report, each)
        });
    let notes = recovered.map_err(StartError::Recovery)?.line().into_iter().collect();
    Ok((vec![keyspace], notes))
}

fn report(line: &str) {
    eprintln!("millrace: {line}");
}
