//! What replication keeps in the data directory: the node's name, its lineage, a snapshot that is being received, and the
//! one step by which such a snapshot takes the place of everything.
//!
//! ```text
//! replica-id      the node's name, drawn once
//! lineage         its history (docs/formats/delta.md)
//! sync-until      while a full sync is not over: the record before which the data is no state that the primary was in
//! incoming/       a snapshot on its way
//! install/        one that is complete, with the lineage it belongs to: it replaces everything
//! sync-<node>/    of a replica without a log: where it has its incoming/, locked while it runs
//! ```
//!
//! **Installing.** `incoming/` gets all that is to be, durably, and is renamed to `install/`: that is the step. What follows
//! can be repeated, and is, by the next start, if the process ends in the middle: old log and snapshots are removed, what is
//! in `install/` is linked into the directory, and `install/` goes. Its snapshot goes last, so it always says what is new.

use crate::io::log_files::{DirectoryLock, LOCK_FILE, LockError, checksum, flush_directory, list};
use crate::io::snapshot_files::{list_snapshots, snapshot_path};
use repl::identity::NodeId;
use repl::lineage::Lineage;
use snapshot::names::{FileName, SnapshotId};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use wal::lsn::Lsn;

const NODE_FILE: &str = "replica-id";
const LINEAGE_FILE: &str = "lineage";
const MARK_FILE: &str = "sync-until";
const INCOMING: &str = "incoming";
const INSTALL: &str = "install";
const SYNC: &str = "sync-";
/// Left-over directories that one start removes: what ended servers left, and never all that somebody put there.
const SYNCS_MAX: usize = 1000;

/// In words, with the file.
fn named<T>(path: &Path, doing: &str, result: io::Result<T>) -> Result<T, String> {
    result.map_err(|error| format!("{doing} {}: {error}", path.display()))
}

/// Writes a file as a whole: beside, flushed, renamed, the directory flushed.
fn write_whole(directory: &Path, name: &str, bytes: &[u8]) -> Result<(), String> {
    let (path, beside) = (directory.join(name), directory.join(format!("{name}.tmp")));
    let write = || -> io::Result<()> {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, &path)?;
        flush_directory(directory)
    };
    named(&path, "writing", write())
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, String> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => named(path, "reading", read).map(Some),
    }
}

/// The node's name: the one in the directory, or a new one.
pub(super) fn node_id(directory: &Path, random: [u8; 16]) -> Result<NodeId, String> {
    let path = directory.join(NODE_FILE);
    if let Some(text) = read_if_there(&path)? {
        let text = String::from_utf8_lossy(&text);
        let digits = text.trim();
        let bytes: Option<Vec<u8>> = (digits.len() == 32 && digits.is_ascii())
            .then(|| (0..16).map(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).ok()).collect())
            .flatten();
        let bytes: [u8; 16] = bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| {
            format!(
                "{}: expected 32 hexadecimal digits, found {digits:?}; remove it, and this node gets a new name",
                path.display()
            )
        })?;
        return Ok(NodeId(bytes));
    }
    let node = NodeId(random);
    write_whole(directory, NODE_FILE, format!("{node}\n").as_bytes())?;
    Ok(node)
}

/// The history that the directory keeps; none: no node has been followed, and none has followed.
pub(super) fn read_lineage(directory: &Path) -> Result<Option<Lineage>, String> {
    let path = directory.join(LINEAGE_FILE);
    let Some(bytes) = read_if_there(&path)? else { return Ok(None) };
    let lineage = Lineage::decode_file(&bytes, checksum());
    lineage.map(Some).map_err(|why| format!("{}: {why}", path.display()))
}

/// Keeps a history, durably.
pub(super) fn write_lineage(directory: &Path, lineage: &Lineage) -> Result<(), String> {
    write_whole(directory, LINEAGE_FILE, &lineage.encode_file(checksum()))
}

/// Says that the data is a state of the primary from this record on, or (`None`) that it is one.
pub(super) fn mark_sync(directory: &Path, until: Option<Lsn>) -> Result<(), String> {
    let path = directory.join(MARK_FILE);
    match until {
        Some(lsn) => write_whole(directory, MARK_FILE, format!("{}\n", lsn.0).as_bytes()),
        None => match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => named(&path, "removing", removed.and_then(|()| flush_directory(directory))),
        },
    }
}

/// Puts a directory in order that this process has locked, before anything in it is read. A full sync that was not over is
/// begun anew by a replica, which forgets what it has of it; nobody else may start on it. Returns what an operator should
/// know.
pub(in crate::server) fn tidy(directory: &Path, follows: bool) -> Result<Option<String>, String> {
    if directory.join(INSTALL).is_dir() {
        finish_install(directory)?;
    }
    let incoming = directory.join(INCOMING);
    if incoming.is_dir() {
        named(&incoming, "removing", fs::remove_dir_all(&incoming))?;
    }
    let mark = directory.join(MARK_FILE);
    if read_if_there(&mark)?.is_none() {
        return Ok(None);
    }
    if !follows {
        return Err(format!(
            "{} says that this directory was in the middle of a full sync: what it holds is no state that its primary was \
             in. Start it as a replica (--replicaof HOST:PORT), which gives it everything anew, or on another directory",
            mark.display()
        ));
    }
    remove_data(directory, None)?;
    mark_sync(directory, None)?;
    Ok(Some("the last full sync was not over: everything is asked for anew".into()))
}

/// Removes log, lineage and snapshots, but for this one.
fn remove_data(directory: &Path, but: Option<SnapshotId>) -> Result<(), String> {
    let remove = |path: PathBuf| match fs::remove_file(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => named(&path, "removing", removed),
    };
    // The history first: without it nobody takes the rest for anything.
    remove(directory.join(LINEAGE_FILE))?;
    let log = named(directory, "listing", list(directory))?;
    for (sequence, _) in log.segments {
        remove(directory.join(wal::segment::FileName::Segment(sequence).to_string()))?;
    }
    for sequence in log.spares {
        remove(directory.join(wal::segment::FileName::Spare(sequence).to_string()))?;
    }
    let snapshots = named(directory, "listing", list_snapshots(directory))?;
    for id in snapshots.snapshots {
        if Some(id) != but {
            remove(snapshot_path(directory, id))?;
        }
    }
    for id in snapshots.temporary {
        remove(directory.join(FileName::Temporary(id).to_string()))?;
    }
    named(directory, "flushing", flush_directory(directory))
}

/// Does what is to be done once `install/` is there; as often as it takes.
fn finish_install(directory: &Path) -> Result<(), String> {
    let install = directory.join(INSTALL);
    let found = named(&install, "listing", list_snapshots(&install))?;
    if let Some(&id) = found.snapshots.first() {
        // One of the same name that was there before is another file.
        let new = snapshot_path(directory, id);
        remove_data(directory, None)?;
        named(&new, "linking", fs::hard_link(snapshot_path(&install, id), &new))?;
        for name in [LINEAGE_FILE, MARK_FILE] {
            let bytes = named(&install, "reading", fs::read(install.join(name)))?;
            write_whole(directory, name, &bytes)?;
        }
        named(&install, "emptying", fs::remove_file(snapshot_path(&install, id)))?;
    }
    named(&install, "removing", fs::remove_dir_all(&install))?;
    named(directory, "flushing", flush_directory(directory))
}

/// Where a replica without a log receives snapshots, below the data directory: others may use that as well.
pub(super) fn sync_name(node: &NodeId) -> String {
    format!("{SYNC}{node}")
}

/// Removes such a directory, which is not in use, with what is ours in it; what is not keeps it there.
fn remove_sync_directory(directory: &Path) -> io::Result<()> {
    let if_there = |removed: io::Result<()>| match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    };
    if_there(fs::remove_dir_all(directory.join(INCOMING)))?;
    if_there(fs::remove_file(directory.join(LOCK_FILE)))?;
    if_there(fs::remove_dir(directory))
}

/// The same for the one of this process.
pub(super) fn remove_sync(directory: &Path) {
    // What is left is removed by the next start.
    let _ = remove_sync_directory(directory);
}

/// Removes what replicas without a log that have ended left below a directory: a full sync that was interrupted takes as
/// much room as all data. Returns what an operator should know.
pub(in crate::server) fn sweep(directory: &Path) -> Option<String> {
    let is_ours = |entry: &fs::DirEntry| {
        let name = entry.file_name();
        let node = name.to_str().and_then(|name| name.strip_prefix(SYNC));
        let is_node = |node: &str| {
            node.len() == 32
                && node.bytes().all(|byte| byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase())
        };
        // A link is not followed.
        node.is_some_and(is_node) && entry.file_type().is_ok_and(|kind| kind.is_dir())
    };
    let (mut removed, mut failure) = (0, None);
    for entry in fs::read_dir(directory).ok()?.flatten().filter(is_ours).take(SYNCS_MAX) {
        let path = entry.path();
        let gone = match DirectoryLock::take(&path) {
            Ok(_lock) => remove_sync_directory(&path),
            Err(LockError::Held { .. }) => continue,
            Err(LockError::System(_, error)) => Err(error),
        };
        match gone {
            Ok(()) => removed += 1,
            Err(error) => {
                failure = Some(format!("{}, left over from a full sync, stays: {error}", path.display()))
            }
        }
    }
    let done =
        (removed > 0).then(|| format!("removed what {removed} interrupted full syncs had left (sync-*)"));
    failure.or(done)
}

/// A snapshot that is being received.
#[derive(Debug)]
pub(super) struct Incoming {
    /// Where it lies.
    directory: PathBuf,
    id: SnapshotId,
    file: File,
    /// Nobody takes it for left over.
    _lock: Option<DirectoryLock>,
}

impl Incoming {
    /// A new one below this directory, which is locked unless this process has done so already; what was there of another
    /// goes.
    pub(super) fn begin(below: &Path, id: SnapshotId, is_locked: bool) -> Result<Incoming, String> {
        let directory = below.join(INCOMING);
        Incoming::remove(below);
        let lock = match is_locked {
            true => None,
            false => Some(DirectoryLock::take(below).map_err(|error| error.to_string())?),
        };
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        named(&directory, "making", made)?;
        let path = snapshot_path(&directory, id);
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = named(&path, "making", file)?;
        Ok(Incoming { directory, id, file, _lock: lock })
    }

    /// What there is of one goes.
    pub(super) fn remove(below: &Path) {
        // What is left is removed by the next start.
        let _ = fs::remove_dir_all(below.join(INCOMING));
    }

    /// Bytes of it.
    pub(super) fn store(&self, offset: u64, bytes: &[u8]) -> Result<(), String> {
        use std::os::unix::fs::FileExt;
        let path = snapshot_path(&self.directory, self.id);
        named(&path, "writing", self.file.write_all_at(bytes, offset))
    }

    /// Where it lies.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// What it is called.
    pub(super) fn id(&self) -> SnapshotId {
        self.id
    }
}

/// Lets the snapshot in `incoming/` take the place of everything, in one step. Nobody writes to the directory meanwhile.
pub(super) fn install(directory: &Path, lineage: &Lineage, until: Lsn) -> Result<(), String> {
    let incoming = directory.join(INCOMING);
    write_lineage(&incoming, lineage)?;
    mark_sync(&incoming, Some(until))?;
    for id in named(&incoming, "listing", list_snapshots(&incoming))?.snapshots {
        let path = snapshot_path(&incoming, id);
        named(&path, "flushing", File::open(&path).and_then(|file| file.sync_all()))?;
    }
    named(&incoming, "flushing", flush_directory(&incoming))?;
    let renamed = fs::rename(&incoming, directory.join(INSTALL)).and_then(|()| flush_directory(directory));
    named(&incoming, "renaming", renamed)?;
    finish_install(directory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use repl::lineage::BranchId;
    use wal::lsn::Epoch;

    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("millrace-files-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn lineage() -> Lineage {
        let mut lineage = Lineage::default();
        lineage.begin(Lsn(7), BranchId(1), Epoch(3));
        lineage
    }

    #[test]
    fn a_node_keeps_its_name_and_its_history() {
        let here = directory("name");
        let node = node_id(&here, [7; 16]).unwrap();
        assert_eq!(node_id(&here, [8; 16]).unwrap(), node);
        assert_eq!(read_lineage(&here).unwrap(), None);
        write_lineage(&here, &lineage()).unwrap();
        assert_eq!(read_lineage(&here).unwrap(), Some(lineage()));
        fs::write(here.join(NODE_FILE), "zz").unwrap();
        assert!(node_id(&here, [8; 16]).unwrap_err().contains("expected 32 hexadecimal digits"));
        fs::remove_dir_all(here).unwrap();
    }

    /// Found in review: what a full sync without a log had received stayed for ever when its server was killed.
    #[test]
    fn what_ended_servers_left_of_full_syncs_is_removed_and_nothing_else() {
        let here = directory("sweep");
        assert_eq!(sweep(&here.join("missing")), None);
        assert_eq!(sweep(&here), None);
        let name = |digit: u8| here.join(sync_name(&NodeId([digit; 16])));
        let id = SnapshotId { epoch: Epoch(4), lsn: Lsn(20) };
        let begin = |digit| Incoming::begin(&name(digit), id, false).unwrap();
        let (running, killed) = (begin(1), begin(2));
        running.store(0, b"bytes").unwrap();
        killed.store(0, b"bytes").unwrap();
        drop(killed);
        // As an earlier version left it, without a lock.
        fs::create_dir_all(name(3).join(INCOMING)).unwrap();
        // Not ours: other names, a file, a link; and something of somebody's in one of ours.
        let others =
            ["sync-me", "sync-zz020202020202020202020202020202", "sync-0202020202020202020202020202020"];
        others.iter().for_each(|other| fs::create_dir_all(here.join(other).join(INCOMING)).unwrap());
        fs::write(name(4), "a file").unwrap();
        let elsewhere = directory("sweep-elsewhere");
        fs::create_dir_all(elsewhere.join(INCOMING)).unwrap();
        std::os::unix::fs::symlink(&elsewhere, name(5)).unwrap();
        fs::create_dir_all(name(6)).unwrap();
        fs::write(name(6).join("notes"), "mine").unwrap();
        let said = sweep(&here).unwrap();
        assert!(said.contains("left over from a full sync, stays"), "{said}");
        assert!(!name(2).exists() && !name(3).exists());
        assert!(
            running.directory().exists()
                && others.iter().all(|other| here.join(other).join(INCOMING).exists())
        );
        assert!(name(4).exists() && elsewhere.join(INCOMING).exists() && name(6).join("notes").exists());
        fs::remove_dir_all(name(6)).unwrap();
        drop(running);
        assert_eq!(sweep(&here).unwrap(), "removed what 1 interrupted full syncs had left (sync-*)");
        assert_eq!(sweep(&here), None);
        // The process itself leaves nothing.
        drop(begin(7));
        remove_sync(&name(7));
        assert!(!name(7).exists());
        fs::remove_dir_all(here).unwrap();
        fs::remove_dir_all(elsewhere).unwrap();
    }

    /// Ended after any of its steps, an installation is finished by the next start, or was never begun.
    #[test]
    fn an_installation_is_done_or_not_begun() {
        let (old, new) =
            (SnapshotId { epoch: Epoch(9), lsn: Lsn(900) }, SnapshotId { epoch: Epoch(4), lsn: Lsn(20) });
        for step in 0..5 {
            let here = directory(&format!("install-{step}"));
            fs::write(snapshot_path(&here, old), "old").unwrap();
            fs::write(here.join("log-0000000000000001.wal"), "old").unwrap();
            let incoming = Incoming::begin(&here, new, true).unwrap();
            incoming.store(0, b"new").unwrap();
            write_lineage(incoming.directory(), &lineage()).unwrap();
            mark_sync(incoming.directory(), Some(Lsn(25))).unwrap();
            if step == 0 {
                // The process ends here: what is on its way goes, the rest stays.
                assert_eq!(tidy(&here, false).unwrap(), None);
                assert_eq!(fs::read(snapshot_path(&here, old)).unwrap(), b"old");
                assert!(!here.join(INCOMING).exists());
                fs::remove_dir_all(here).unwrap();
                continue;
            }
            fs::rename(here.join(INCOMING), here.join(INSTALL)).unwrap();
            if step >= 2 {
                remove_data(&here, None).unwrap();
            }
            if step >= 3 {
                fs::hard_link(snapshot_path(&here.join(INSTALL), new), snapshot_path(&here, new)).unwrap();
                write_lineage(&here, &lineage()).unwrap();
            }
            if step >= 4 {
                mark_sync(&here, Some(Lsn(25))).unwrap();
                fs::remove_file(snapshot_path(&here.join(INSTALL), new)).unwrap();
            }
            finish_install(&here).unwrap();
            assert_eq!(fs::read(snapshot_path(&here, new)).unwrap(), b"new");
            assert_eq!(read_lineage(&here).unwrap(), Some(lineage()));
            assert!(!snapshot_path(&here, old).exists() && !here.join(INSTALL).exists());
            let refused = tidy(&here, false).unwrap_err();
            assert!(refused.contains("in the middle of a full sync"), "{refused}");
            assert!(tidy(&here, true).unwrap().is_some());
            assert!(!snapshot_path(&here, new).exists() && read_lineage(&here).unwrap().is_none());
            assert_eq!(tidy(&here, false).unwrap(), None);
            fs::remove_dir_all(here).unwrap();
        }
    }
}
