//! A snapshot that came from another server, read whole and made into keyspaces of this one.
//!
//! Unlike a start it has no log beside it, and is not served from where it lies before all of it was checked: what is not
//! what the primary wrote must be found before it takes the place of anything. Then it is served from there like any other,
//! and moves into memory behind the traffic.

use super::{LogOnDisk, Origin, Start, Unusable, Wishes, failed, name, regions};
use crate::io::log_files::LogDirectory;
use crate::io::snapshot_source::{SnapshotDirectory, SnapshotSource};
use snapshot::names::SnapshotId;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use store::keyspace::Keyspace;
use wal::lsn::Lsn;

/// What it held.
pub(in crate::server) struct Received {
    /// Of each shard of this server.
    pub(in crate::server) keyspaces: Vec<Keyspace>,
    /// Of each shard of the server that took it: all records up to here are in it.
    pub(in crate::server) lsns: Vec<Lsn>,
    /// Its random id.
    pub(in crate::server) uid: u64,
    /// When it was complete.
    pub(in crate::server) unix_us: u64,
}

/// Reads it. The error says what is wrong with it. `is_kept`: it will be what the next start begins with, so it is flushed; else
/// it goes as soon as its pages have moved into memory, and nobody waits for the disk.
pub(in crate::server) fn load(
    directory: &Path,
    id: SnapshotId,
    is_kept: bool,
    helper_core: Option<usize>,
    wishes: &Wishes<'_>,
    report: &mut dyn FnMut(&str),
) -> Result<Received, String> {
    let source = SnapshotDirectory::new(directory, helper_core);
    let said = |unusable: Unusable| match unusable {
        Unusable::Damaged { why, .. } => why,
        Unusable::Refused(error) => error.to_string(),
    };
    let log = LogOnDisk::of(LogDirectory::new(directory), wishes.recovery.checksum);
    let log = log.map_err(|error| error.to_string())?;
    let history = log.history();
    let path = directory.join(name(id));
    let mut start =
        Start { log, history, source: &source, wishes, passed: Vec::new(), notes: Vec::new(), report };
    let (file, view) = start.open(id, &path).map_err(said)?;
    let header = *view.header();
    let hash_seed = start.hash_seed(&view, &path, header.lsn_max).map_err(said)?;
    let lsns: Vec<Lsn> = (0..view.shards()).map(|shard| view.lsn(shard)).collect();
    let set_aside = source.set_aside(id);
    let origin = Arc::new(Origin { view, path, found: OnceLock::new(), set_aside });
    let regions = regions(&origin.view);
    let bytes: u64 = regions.iter().flatten().map(|range| range.end - range.start).sum();
    let mut keyspaces = start.keyspaces(&file, &origin, &regions, hash_seed).map_err(said)?;
    if wishes.seeds.len() == keyspaces.len() {
        start.check(&mut keyspaces, bytes).map_err(|damage| origin.describe(&damage))?;
    } else {
        let dealt = start.partition_again(keyspaces, &origin, hash_seed);
        keyspaces = dealt.map_err(|error| error.to_string())??;
    }
    if is_kept {
        source.flush(&file).map_err(|error| failed(&origin.path, "flushing", error).to_string())?;
    }
    Ok(Received { keyspaces, lsns, uid: header.uid, unix_us: header.unix_us })
}
