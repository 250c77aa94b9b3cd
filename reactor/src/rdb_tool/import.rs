//! From a dump to a snapshot: every entry into a keyspace of its shard, then the images of these into one file.
//!
//! The dump's checksum stands at its end, so nothing is written before all of it was read. The snapshot is the first of
//! its history: epoch 1, LSN 0, so that the log of the server that starts on it begins as in an empty directory.

use super::{failed, warn};
use crate::clock::{SystemClock, monotonic_ns};
use crate::io::log_files::{self, DirectoryLock, LOCK_FILE, checksum};
use crate::io::memory::MmapSource;
use crate::io::snapshot_files::{SnapshotDisk, SnapshotFiles, snapshot_path};
use crate::io::snapshot_source::{SnapshotDirectory, SnapshotSource};
use crate::log_tool::{Json, ToolError};
use crate::server::config::Launch;
use crate::server::journal::Holdings;
use crate::server::snapshot_start::has_snapshots;
use snapshot::rdb::{RdbEntry, RdbOptions, RdbReader, RdbSummary, Step};
use snapshot::writer::{Outcome, Plan, Refused, RegionPlan, Settings, ShardPlan, SnapshotWriter};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use store::config::Config;
use store::expiry::Expiry;
use store::keyspace::{Keyspace, KeyspaceOptions, StoreError};
use store::shards::Place;
use store::time::Now;
use store::value::Encoding;
use wal::lsn::{Epoch, Lsn};

/// Bytes of the dump read at a time.
const CHUNK_BYTES: usize = 1 << 20;
/// Bytes of an image handed to the writer before it is asked what to do.
const STEP_BYTES: usize = 256 << 10;

pub(super) fn run(
    from: &Path,
    directory: &Path,
    database: Option<u64>,
    shards: Option<usize>,
    out: &mut impl Write,
) -> Result<(), ToolError> {
    let begun = monotonic_ns();
    let shards = match shards {
        Some(shards) => shards,
        None => Launch::read(&Config::default()).map_err(ToolError::Text)?.shards,
    };
    let mut dump = File::open(from).map_err(failed("opening", from))?;
    if dump.metadata().map_err(failed("looking at", from))?.is_dir() {
        return Err(expected(from, "a dump that Redis wrote (dump.rdb, say), found a directory"));
    }
    let is_new = !directory.try_exists().map_err(failed("looking at", directory))?;
    if !is_new && !directory.is_dir() {
        return Err(expected(directory, "a directory, or a name for a new one, found a file"));
    }
    let _lock = DirectoryLock::take(directory).map_err(|error| ToolError::Text(error.to_string()))?;
    let imported = refuse_data(directory).and_then(|()| {
        let mut filling = Filling::new(shards)?;
        let summary = filling.read(from, &mut dump, database)?;
        let (path, bytes) = filling.write(directory)?;
        Ok((filling, summary, path, bytes))
    });
    if imported.is_err() && is_new {
        // What this made goes; if it cannot, an empty directory is no harm.
        let _ = fs::remove_file(directory.join(LOCK_FILE)).and_then(|()| fs::remove_dir(directory));
    }
    let (filling, summary, path, bytes) = imported?;
    if !summary.has_checksum {
        warn("the dump has no checksum (rdbchecksum no): nothing vouches for what it says");
    }
    if summary.functions > 0 {
        warn(&format!(
            "{} libraries of functions were left out: Millrace runs no functions",
            summary.functions
        ));
    }
    writeln!(
        out,
        "{{\"what\":\"imported\",\"file\":{},\"bytes\":{bytes},\"shards\":{shards},\"keys\":{},\"expires\":{},\
         \"expired_left_out\":{},\"other_databases_left_out\":{},\"functions_left_out\":{},\"rdb_version\":{},\
         \"rdb_bytes\":{},\"has_checksum\":{},\"seconds\":{:.3}}}",
        Json(path.to_string_lossy().as_bytes()),
        filling.keyspaces.iter().map(Keyspace::len).sum::<usize>(),
        filling.keyspaces.iter().map(Keyspace::expires_len).sum::<usize>(),
        filling.expired,
        summary.left_out,
        summary.functions,
        summary.version,
        summary.bytes,
        summary.has_checksum,
        (monotonic_ns() - begun) as f64 / 1e9,
    )?;
    Ok(())
}

fn expected(path: &Path, what: &str) -> ToolError {
    ToolError::Text(format!("{}: expected {what}", path.display()))
}

/// A directory with data is left alone: what a server would make of both is not for a tool to guess.
fn refuse_data(directory: &Path) -> Result<(), ToolError> {
    let looking = failed("looking at", directory);
    let holdings = Holdings::of(directory).map_err(&looking)?;
    let log = log_files::list(directory).map_err(&looking)?;
    // Also those that were set aside: a start asks what became of them.
    let names = SnapshotDirectory::new(directory, None).names().map_err(&looking)?;
    let found = if holdings.sqlcipher {
        "an encrypted journal"
    } else if holdings.native || !log.spares.is_empty() || log.set_aside.is_some() {
        "a log"
    } else if has_snapshots(&names) {
        "a snapshot"
    } else if holdings.converted.is_some() {
        "an interrupted conversion of a journal"
    } else {
        return Ok(());
    };
    Err(ToolError::Text(format!(
        "{}: expected a directory without data, found {found}; import into a new directory, or move what is there away",
        directory.display()
    )))
}

/// Keyspaces that are being filled.
struct Filling {
    keyspaces: Vec<Keyspace>,
    now: Now,
    expired: u64,
}

impl Filling {
    fn new(shards: usize) -> Result<Filling, ToolError> {
        let seed = random()?;
        let keyspace = |_| {
            let options =
                KeyspaceOptions { hash_seed: seed, random_seed: random()?, ..KeyspaceOptions::default() };
            Ok(Keyspace::new(options, Box::new(MmapSource::new())))
        };
        let keyspaces = (0..shards).map(keyspace).collect::<Result<_, ToolError>>()?;
        Ok(Filling { keyspaces, now: SystemClock::new().now(), expired: 0 })
    }

    fn read(&mut self, path: &Path, dump: &mut File, database: Option<u64>) -> Result<RdbSummary, ToolError> {
        let refused = |why: &dyn std::fmt::Display| ToolError::Text(format!("{} {why}", path.display()));
        let mut reader = RdbReader::new(RdbOptions { database, ..RdbOptions::default() });
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let offset = reader.offset();
            match reader.poll().map_err(|error| refused(&error))? {
                Step::Entry(entry) => self.add(&entry).map_err(|why| {
                    refused(&format!("before offset {}: {why}", reader.offset().max(offset)))
                })?,
                Step::End(summary) => return Ok(summary),
                Step::NeedMore => match dump.read(&mut chunk) {
                    Ok(0) => reader.finish(),
                    Ok(read) => reader.push(&chunk[..read]),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(failed("reading", path)(error)),
                },
            }
        }
    }

    fn add(&mut self, entry: &RdbEntry) -> Result<(), String> {
        let RdbEntry { key, value, expires_at } = entry;
        let place = Place { index: 0, count: self.keyspaces.len() };
        let keyspace = &mut self.keyspaces[place.shard_of(key)];
        let (hash, now) = (keyspace.hash(key), self.now);
        if expires_at.is_some_and(|at| at <= now.unix_ms()) {
            self.expired += 1;
            return Ok(());
        }
        if keyspace.peek(key, hash, now).is_some() {
            return Err(format!(
                "expected each key once, found \"{}\" twice: Redis does not write that",
                key.escape_ascii()
            ));
        }
        let expiry = expires_at.map_or(Expiry::Never, Expiry::At);
        keyspace.set(key, hash, value, expiry, Encoding::Auto, now).map_err(|error| match error {
            StoreError::OutOfSpace => format!(
                "no memory for \"{}\", after {} keys in its shard; a shard holds 32 GiB at most: try more --shards, or a \
                 machine with more memory",
                key.escape_ascii(),
                keyspace.len()
            ),
            StoreError::TooLarge => format!("\"{}\" or its value is longer than 1 GiB", key.escape_ascii()),
            StoreError::Damaged => unreachable!("a keyspace that lives on no image"),
        })
    }

    /// Writes a snapshot; returns its path and length.
    fn write(&mut self, directory: &Path) -> Result<(std::path::PathBuf, u64), ToolError> {
        let mut shards = Vec::new();
        for keyspace in &mut self.keyspaces {
            let begun = keyspace.begin_image(self.now).expect("nothing else was begun");
            let region = |region: &store::image::RegionInfo| RegionPlan {
                kind: u32::from(region.kind.code()),
                number: region.number,
                length: region.bytes as u64,
            };
            let regions = begun.regions.iter().map(region).collect();
            shards.push(ShardPlan { lsn: Lsn::ZERO, meta: begun.meta, regions });
        }
        let plan = Plan { uid: random()?, epoch: Epoch::FIRST, unix_us: self.now.unix_us, shards };
        let mut writer = SnapshotWriter::new(&plan, Settings::default(), checksum())
            .map_err(|error| ToolError::Text(format!("this cannot be a snapshot: {error}")))?;
        drop(plan);
        let files = SnapshotFiles::new(directory);
        settle(&mut writer, &files);
        for (shard, keyspace) in self.keyspaces.iter_mut().enumerate() {
            while keyspace.image_step(STEP_BYTES, &mut |part| {
                put(&mut writer, &files, shard, &part);
            }) {
                settle(&mut writer, &files);
            }
            keyspace.end_image();
        }
        if writer.outcome() == Outcome::Working {
            writer.finish().expect("every part has come");
            writer.handle_durable(Lsn::ZERO);
            settle(&mut writer, &files);
        }
        match writer.outcome() {
            Outcome::Complete => Ok((snapshot_path(directory, writer.id()), writer.header().length)),
            Outcome::Failed(failure) => Err(ToolError::Text(format!(
                "{} ({} bytes) in {}; {}",
                failure,
                writer.header().length,
                directory.display(),
                failure.errno.remedy()
            ))),
            outcome => unreachable!("nothing is on its way, and it is {outcome:?}"),
        }
    }
}

/// Hands a part over, and has the disk take what fills the buffers.
fn put(writer: &mut SnapshotWriter, files: &SnapshotFiles, shard: usize, part: &store::image::ImagePart<'_>) {
    loop {
        match writer.handle_part(shard, part.region as usize, part.offset as u64, part.bytes) {
            Ok(()) => return,
            Err(Refused::Full) => settle(writer, files),
            // It has failed; that is asked when all is over.
            Err(Refused::Ended) => return,
            Err(refused) => panic!("{refused}: an image's parts are its pages, each once"),
        }
    }
}

/// Does all that can be done now.
fn settle(writer: &mut SnapshotWriter, files: &SnapshotFiles) {
    while let Some(operation) = writer.poll_operation() {
        let completion = files.perform(writer.id(), operation);
        writer.handle_completion(completion);
    }
}

fn random() -> Result<u64, ToolError> {
    getrandom::u64().map_err(|error| ToolError::Text(format!("the kernel gave no random bytes: {error}")))
}
