//! To a dump: every key of a snapshot, or of a stopped server's directory, that has not expired.
//!
//! The dump is written beside its place, flushed and then given its name, so that under that name there is a whole one
//! or none.

use super::{failed, warn};
use crate::clock::{SystemClock, monotonic_ns};
use crate::io::log_files::flush_directory;
use crate::log_tool::{Json, ToolError};
use crate::server::journal::KeySource;
use crate::server::stopped;
use crate::snapshot_tool::stored::StoredSnapshot;
use crate::snapshot_tool::{STEP_BYTES, Walk};
use snapshot::rdb::RdbWriter;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use store::image::restore::LiveCursor;
use store::keyspace::{Entry, Keyspace};
use store::time::Now;

pub(super) fn run(
    from: &Path,
    to: &Path,
    overwrite: bool,
    key: &KeySource,
    out: &mut impl Write,
) -> Result<(), ToolError> {
    let (begun, now) = (monotonic_ns(), SystemClock::new().now());
    if !overwrite && to.try_exists().map_err(failed("looking at", to))? {
        return Err(taken(to));
    }
    let (dump, held) = if from.is_dir() { of_directory(from, key, to, now) } else { of_file(from, to, now) }?;
    let Dump { keys, expires, .. } = dump;
    let bytes = dump.put_in_place(overwrite)?;
    writeln!(
        out,
        "{{\"what\":\"exported\",\"file\":{},\"bytes\":{bytes},\"keys\":{keys},\"expires\":{expires},\"expired_left_out\":{},\
         \"seconds\":{:.3}}}",
        Json(to.to_string_lossy().as_bytes()),
        held - keys,
        (monotonic_ns() - begun) as f64 / 1e9,
    )?;
    Ok(())
}

/// A dump of a snapshot, and how many keys there were with those that have expired.
fn of_file(from: &Path, to: &Path, now: Now) -> Result<(Dump, u64), ToolError> {
    let snapshot = StoredSnapshot::open(from)?;
    let (first, last) = (snapshot.header().lsn, snapshot.header().lsn_max);
    if first != last {
        warn(&format!(
            "the shards of this snapshot are from different moments (LSN {first} to {last}), which the log behind it makes one: \
             what was written to several keys at once may be there in part. Name the directory for the state at one moment"
        ));
    }
    let shards = 0..snapshot.view().shards();
    let (mut held, mut expires) = (0, 0);
    for shard in shards.clone() {
        let summary = snapshot.summary(shard)?;
        held += summary.entries;
        expires += summary.expires;
    }
    let mut dump = Dump::begin(to, now, held, expires)?;
    for shard in shards {
        let mut walk = Walk::whole(&snapshot, shard)?;
        while walk.step(now, &mut |key, entry| dump.add(key, &entry))? {
            dump.flush()?;
        }
    }
    Ok((dump, held))
}

/// The same of all that a server would serve if it were started there.
fn of_directory(from: &Path, key: &KeySource, to: &Path, now: Now) -> Result<(Dump, u64), ToolError> {
    let text = |error: &dyn std::fmt::Display| ToolError::Text(error.to_string());
    let mut stopped = stopped::read(from, key).map_err(|error| text(&error))?;
    for note in &stopped.notes {
        eprintln!("millrace: {note}");
    }
    let sum = |what: fn(&Keyspace) -> usize| stopped.keyspaces.iter().map(what).sum::<usize>() as u64;
    let (held, expires) = (sum(Keyspace::len), sum(Keyspace::expires_len));
    let mut dump = Dump::begin(to, now, held, expires)?;
    for keyspace in &mut stopped.keyspaces {
        let mut at = Some(LiveCursor::START);
        while let Some(cursor) = at {
            at = keyspace.for_each_live(cursor, STEP_BYTES, now, &mut |key, entry| dump.add(key, &entry));
            dump.flush()?;
        }
        if let Some(damage) = keyspace.damage() {
            return Err(text(damage));
        }
    }
    Ok((dump, held))
}

fn taken(to: &Path) -> ToolError {
    ToolError::Text(format!(
        "{}: expected no such file, found one; name another, or say --overwrite to have it replaced",
        to.display()
    ))
}

/// A dump that is being written; unless it is put in place, it goes with the value.
struct Dump {
    /// Where it is to be.
    to: PathBuf,
    /// Where it is until then.
    path: PathBuf,
    file: File,
    /// None once it is ended.
    writer: Option<RdbWriter>,
    /// What is to be written next.
    buffer: Vec<u8>,
    bytes: u64,
    keys: u64,
    expires: u64,
}

impl Drop for Dump {
    fn drop(&mut self) {
        // Gone already if it is in its place.
        let _ = fs::remove_file(&self.path);
    }
}

impl Dump {
    fn begin(to: &Path, now: Now, keys: u64, expires: u64) -> Result<Dump, ToolError> {
        let mut path = OsString::from(to);
        path.push(format!(".{}.tmp", std::process::id()));
        let path = PathBuf::from(path);
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(failed("making", &path))?;
        let mut buffer = Vec::new();
        let writer = Some(RdbWriter::begin(&mut buffer, now.unix_us / 1_000_000, keys, expires));
        Ok(Dump { to: to.into(), path, file, writer, buffer, bytes: 0, keys: 0, expires: 0 })
    }

    fn add(&mut self, key: &[u8], entry: &Entry<'_>) {
        let writer = self.writer.as_mut().expect("it is not ended");
        writer.entry(&mut self.buffer, key, entry.value, entry.expires_at);
        self.keys += 1;
        self.expires += u64::from(entry.expires_at.is_some());
    }

    fn flush(&mut self) -> Result<(), ToolError> {
        self.file.write_all(&self.buffer).map_err(failed("writing", &self.path))?;
        self.bytes += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Ends it, makes it durable and gives it its name; returns its length.
    fn put_in_place(mut self, overwrite: bool) -> Result<u64, ToolError> {
        self.writer.take().expect("it is not ended").end(&mut self.buffer);
        self.flush()?;
        self.file.sync_all().map_err(failed("flushing", &self.path))?;
        if overwrite {
            fs::rename(&self.path, &self.to).map_err(failed("renaming", &self.path))?;
        } else {
            // A link never replaces anything, and a renaming would, if somebody has come first.
            match fs::hard_link(&self.path, &self.to) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(taken(&self.to)),
                // A file system without links.
                Err(_) => fs::rename(&self.path, &self.to).map_err(failed("renaming", &self.path))?,
            }
        }
        let folder = self.to.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        flush_directory(folder).map_err(failed("flushing", folder))?;
        Ok(self.bytes)
    }
}
