//! What a directory holds becomes keyspaces: the newest snapshot that is whole, and the log behind it.
//!
//! ```text
//! snapshots, newest first ─▶ header, tables, trailer right? ─▶ keyspaces on its regions ─▶ the log's tail ─▶ served
//!                             no: the one before it, if the log    (milliseconds, whatever   (only what a shard's
//!                             behind that holds the same data       their size)               image does not hold)
//! ```
//!
//! **Falling back** is exact or it is not done. An earlier snapshot and the log behind it hold the same data if the log goes
//! on where that snapshot ends, reaches what the damaged one held, and had all of it: a snapshot taken without a log is
//! of an epoch of which the log has no records before it. Where that is not so the start is refused, and says
//! what is damaged and what is missing. A damaged snapshot that was passed over is set aside (`.damaged` is appended to its
//! name), so that nothing counts on it; its name still says that it was there.
//!
//! **Pages** are checked when they are first used ([`PageCheck`]). What is wrong is known here with its place in the file,
//! whichever shard met it; the shard ends the server before anything leaves, and the file is set aside, which is what makes
//! the next start fall back.
//!
//! **Another number of shards**: the images are brought up to date as they are, and then every record goes to the shard that
//! has its key now. That takes as long as there is data.
//!
//! What is read comes from a [`SnapshotSource`]: a directory, or a disk that is simulated.

pub(super) mod received;

use super::recovery::{
    Bytes, History, LogOnDisk, RecoverTo, Recovered, RecoveryError, RecoveryOptions, Time,
};
use super::replay::{Target, replay};
use super::snapshot_survey::{is_worth_while, survey};
use crate::io::log_files::LogSource;
use crate::io::snapshot_map::SET_ASIDE_SUFFIX;
use crate::io::snapshot_source::{SetAside, SnapshotSource};
use snapshot::damage::{Damage, DamageKind, PageMismatch};
use snapshot::names::{FileName, Listing, SnapshotId};
use snapshot::view::{Envelope, SnapshotView};
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, OnceLock};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};
use store::engine::Seeds;
use store::image::restore::LiveCursor;
use store::image::{self, PageCheck, meta};
use store::keyspace::{Keyspace, KeyspaceOptions};
use store::mutation::Mutation;
use store::time::Now;
use wal::block::PAGE_BYTES;
use wal::lsn::{Epoch, Lsn};

/// Bytes of a keyspace that are checked and moved, or walked, between two looks at what else there is.
const STEP_BYTES: usize = 4 << 20;
/// How often it is said how far a start is that takes long.
const REPORT_PERIOD: Duration = Duration::from_secs(1);

/// What is wanted.
pub struct Wishes<'a> {
    /// Of each shard; the seed of hashes is that of the snapshot, if there is one.
    pub seeds: &'a [Seeds],
    /// How the log is read; where it begins is decided here.
    pub recovery: RecoveryOptions,
    /// All pages are checked and in memory before anybody is served.
    pub warms_fully: bool,
    /// The directory is this process' own, and files in it may be set aside.
    pub may_write: bool,
    /// The time.
    pub now: Now,
}

/// What a directory held.
pub struct Restored<F> {
    /// Of each shard.
    pub keyspaces: Vec<Keyspace>,
    /// The seed of the keys' hashes.
    pub hash_seed: u64,
    /// Where the log ended, and how it goes on.
    pub recovered: Recovered,
    /// The snapshot that is being served, while pages of it may be unchecked.
    pub served: Option<Served<F>>,
    /// The snapshot it began with.
    pub snapshot: Option<SnapshotId>,
    /// What an operator should know.
    pub notes: Vec<String>,
}

impl<F> fmt::Debug for Restored<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Restored").field("snapshot", &self.snapshot).finish_non_exhaustive()
    }
}

impl<F> Restored<F> {
    /// The epoch of snapshots that are taken from now on. Without a log it is one of their own: what they hold is nowhere
    /// else, and no earlier snapshot and log may be taken for the same.
    pub fn snapshot_epoch(&self, keeps_log: bool) -> Epoch {
        if keeps_log { self.recovered.start.epoch } else { self.recovered.start.epoch.next() }
    }
}

/// A snapshot whose pages keyspaces live on.
pub struct Served<F> {
    /// What checks its pages and knows what is wrong with them.
    pub origin: Arc<Origin>,
    /// The file.
    pub file: F,
    /// Of each shard, where its regions lie, in the order in which they warm.
    pub regions: Vec<Vec<Range<u64>>>,
}

/// The snapshot that keyspaces live on.
pub struct Origin {
    view: SnapshotView<Vec<u8>>,
    path: PathBuf,
    /// The first page that was not what it should be.
    found: OnceLock<Damage>,
    set_aside: SetAside,
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Origin").field(&self.path).finish()
    }
}

impl Origin {
    /// What is wrong, with its place in the file.
    fn describe(&self, damage: &image::Damage) -> String {
        match self.found.get() {
            Some(found) => found.to_string(),
            None => format!("{}: {damage}", self.path.display()),
        }
    }

    /// A shard has met damage: sets the file aside, and says why the server ends.
    pub fn fail(&self, damage: &image::Damage) -> io::Error {
        let aside = match (self.set_aside)() {
            Ok(path) => format!("it is called {} now, and the next start does without it", path.display()),
            // Another shard was here before.
            Err(error) if error.kind() == io::ErrorKind::NotFound => "it is set aside".into(),
            Err(error) => format!("it could not be set aside ({error}): move it away before the next start"),
        };
        let what = self.describe(damage);
        io::Error::other(format!(
            "the snapshot that is being served is damaged: {what} The server ends, and nothing has left that could depend on \
             it; {aside}."
        ))
    }
}

/// Checks the pages of one shard.
struct ShardPages {
    origin: Arc<Origin>,
    shard: usize,
}

impl PageCheck for ShardPages {
    fn check(&self, region: u32, page: u32, bytes: &[u8]) -> Result<(), (u32, u32)> {
        let (origin, region, page) = (&self.origin, region as usize, u64::from(page));
        origin.view.check_page(self.shard, region, page, bytes).map_err(|mismatch| {
            let PageMismatch { expected, found } = mismatch;
            origin.found.get_or_init(|| origin.view.page_damage(self.shard, region, page, mismatch));
            (expected, found)
        })
    }
}

/// A snapshot newer than the one that is used, and why it is not.
struct PassedOver {
    id: SnapshotId,
    /// The last record it held, as far as is known.
    lsn_max: Lsn,
    why: String,
    /// It is damaged for good, and has not been set aside yet.
    is_to_go: bool,
}

/// Why a snapshot is not used.
enum Unusable {
    /// It is damaged: another may do.
    Damaged { lsn_max: Lsn, why: String, is_to_go: bool },
    /// Nothing will do.
    Refused(RecoveryError),
}

impl From<RecoveryError> for Unusable {
    fn from(error: RecoveryError) -> Unusable {
        Unusable::Refused(error)
    }
}

fn refuse<T>(text: String) -> Result<T, RecoveryError> {
    Err(RecoveryError::Snapshot(text))
}

fn name(id: SnapshotId) -> String {
    FileName::Snapshot(id).to_string()
}

/// The snapshots of a directory, newest first; `true`: it was set aside.
fn candidates(names: &[String]) -> Vec<(SnapshotId, bool)> {
    let names = || names.iter().map(String::as_str);
    let whole = Listing::of(names()).snapshots;
    let aside = Listing::of(names().filter_map(|name| name.strip_suffix(SET_ASIDE_SUFFIX))).snapshots;
    let mut all: Vec<_> = aside.iter().map(|&id| (id, true)).collect();
    // One that was put back counts.
    all.retain(|(id, _)| !whole.contains(id));
    all.extend(whole.iter().map(|&id| (id, false)));
    all.sort_unstable_by(|a, b| b.cmp(a));
    all
}

/// Whether a directory has snapshots, set aside or not.
pub fn has_snapshots(names: &[String]) -> bool {
    !candidates(names).is_empty()
}

/// Makes keyspaces of what is there. The caller has locked the directory, if anything is written to it.
pub fn restore<S: SnapshotSource>(
    log: impl LogSource,
    source: &S,
    wishes: &Wishes<'_>,
    report: &mut dyn FnMut(&str),
) -> Result<Restored<S::File>, RecoveryError> {
    let log = LogOnDisk::of(log, wishes.recovery.checksum)?;
    let names = source.names().map_err(|error| failed(source.directory(), "listing", error))?;
    let candidates = candidates(&names);
    let newest = candidates.iter().find(|(_, is_aside)| !is_aside).map(|&(id, _)| id);
    // Before the log, which is much more, and wanted after it.
    if let Some(id) = newest {
        source.expect(id);
    }
    log.expect_tail(newest.map_or(Lsn::ZERO, |id| id.lsn));
    let history = log.history();
    let mut start = Start { log, history, source, wishes, passed: Vec::new(), notes: Vec::new(), report };
    let stop = if candidates.is_empty() { None } else { start.stop()? };
    for (id, is_aside) in candidates {
        if !start.history.includes(id.epoch, id.lsn) {
            let text = "is of a history that was left out for good (--recover-to, or a repair)";
            start.notes.push(format!("{} {text}, and is not used", name(id)));
            continue;
        }
        if stop.is_some_and(|stop| id.lsn > stop.lsn) {
            continue;
        }
        if is_aside {
            let why = format!(
                "{}{SET_ASIDE_SUFFIX} was found damaged before.",
                source.directory().join(name(id)).display()
            );
            start.passed.push(PassedOver { id, lsn_max: id.lsn, why, is_to_go: false });
            continue;
        }
        match start.attempt(id, stop) {
            Ok(Some(restored)) => return start.finish(restored),
            Ok(None) => {}
            Err(Unusable::Damaged { lsn_max, why, is_to_go }) => {
                start.passed.push(PassedOver { id, lsn_max, why, is_to_go });
            }
            Err(Unusable::Refused(error)) => return Err(error),
        }
    }
    if stop.is_some() && start.history.first_lsn.is_none() {
        return refuse(format!(
            "--recover-to: no snapshot in {} is that old, and there is no log; name a later place, or leave the option out",
            source.directory().display()
        ));
    }
    let restored = start.without_snapshot()?;
    start.finish(restored)
}

/// Where recovery is to stop.
#[derive(Clone, Copy)]
struct Stop {
    lsn: Lsn,
    /// And when, if that was asked for.
    unix_us: Option<u64>,
}

fn failed(path: &Path, doing: &'static str, error: io::Error) -> RecoveryError {
    RecoveryError::Io { path: path.to_path_buf(), doing, offset: 0, error }
}

struct Start<'a, L: LogSource, S: SnapshotSource> {
    log: LogOnDisk<L>,
    history: History,
    source: &'a S,
    wishes: &'a Wishes<'a>,
    passed: Vec<PassedOver>,
    notes: Vec<String>,
    report: &'a mut dyn FnMut(&str),
}

impl<L: LogSource, S: SnapshotSource> Start<'_, L, S> {
    /// The last record that is wanted.
    fn stop(&mut self) -> Result<Option<Stop>, RecoveryError> {
        Ok(match self.wishes.recovery.to {
            None => None,
            Some(RecoverTo::Lsn(lsn)) => Some(Stop { lsn, unix_us: None }),
            Some(RecoverTo::UnixMicros(time)) => {
                // Without a log there is only the time of a snapshot to go by.
                let lsn = match self.history.first_lsn {
                    Some(_) => self.log.last_until(time)?,
                    None => Lsn::MAX,
                };
                Some(Stop { lsn, unix_us: Some(time) })
            }
        })
    }

    /// The state of a snapshot and the log behind it. `None`: it is later than what is wanted.
    fn attempt(&mut self, id: SnapshotId, stop: Option<Stop>) -> Result<Option<Restored<S::File>>, Unusable> {
        let begun = Instant::now();
        let path = self.source.directory().join(name(id));
        let (file, view) = self.open(id, &path)?;
        let header = *view.header();
        if !self.history.includes(header.epoch, header.lsn_max)
            || stop.is_some_and(|stop| {
                header.lsn_max > stop.lsn || stop.unix_us.is_some_and(|time| header.unix_us > time)
            })
        {
            return Ok(None);
        }
        let held = self.held(&view);
        self.can_go_on(id, held, header.lsn_max)?;
        self.is_exact(Some((id, held)))?;
        let hash_seed = self.hash_seed(&view, &path, header.lsn_max)?;
        let set_aside = self.source.set_aside(id);
        let lsns: Vec<Lsn> = (0..view.shards()).map(|shard| view.lsn(shard)).collect();
        let origin = Arc::new(Origin { view, path, found: OnceLock::new(), set_aside });
        let damaged = |why| Unusable::Damaged { lsn_max: header.lsn_max, why, is_to_go: true };
        let regions = regions(&origin.view);
        let mut keyspaces = self.keyspaces(&file, &origin, &regions, hash_seed)?;
        let ready = begun.elapsed();
        let bytes: u64 = regions.iter().flatten().map(|range| range.end - range.start).sum();
        if is_worth_while(self.history.records_behind(header.lsn), bytes) {
            survey(&mut keyspaces, |shard, region, page, memory| {
                origin.view.check_page(shard, region as usize, page, memory).is_ok()
            });
        }

        let recovery = RecoveryOptions {
            from: held.next(),
            durable_at_least: self.durable_at_least(header.lsn_max),
            ..self.wishes.recovery
        };
        let recovered = self.replay(&mut keyspaces, &lsns, recovery, 0);
        // A page of the snapshot that was damaged is no fault of the record that needed it.
        if let Some(damage) = keyspaces.iter().find_map(Keyspace::damage) {
            return Err(damaged(origin.describe(damage)));
        }
        let mut recovered = recovered?;
        self.adopt_epoch(&mut recovered, id, header.lsn_max.max(held))?;

        let keys: usize = keyspaces.iter().map(Keyspace::len).sum();
        let mut text = format!(
            "serving from {} of {}, with {keys} keys, {} and all up to LSN {}",
            name(id),
            Time(header.unix_us),
            Bytes(bytes),
            header.lsn
        );
        text.push_str(&format!(", mapped in {:.1} ms", ready.as_secs_f64() * 1e3));
        let count = self.wishes.seeds.len();
        let mut served = Some(Served { origin: Arc::clone(&origin), file, regions });
        if count != keyspaces.len() {
            let begun = Instant::now();
            let from = keyspaces.len();
            keyspaces = self.partition_again(keyspaces, &origin, hash_seed)?.map_err(damaged)?;
            text.push_str(&format!(
                "; it is of {from} shards, and dealing its records to {count} took {:.2} s",
                begun.elapsed().as_secs_f64()
            ));
            served = None;
        } else if self.wishes.warms_fully {
            let begun = Instant::now();
            self.warm(&mut keyspaces, bytes).map_err(|damage| damaged(origin.describe(&damage)))?;
            text.push_str(&format!("; all of it was read in {:.2} s", begun.elapsed().as_secs_f64()));
            served = None;
        }
        self.notes.push(text);
        self.warn_of_no_log(header.lsn_max);
        let notes = Vec::new();
        Ok(Some(Restored { keyspaces, hash_seed, recovered, served, snapshot: Some(id), notes }))
    }

    /// Opens a snapshot: what is believed at the start.
    fn open(&self, id: SnapshotId, path: &Path) -> Result<(S::File, SnapshotView<Vec<u8>>), Unusable> {
        let checksum = self.wishes.recovery.checksum;
        let unreadable = |doing: &str, error: io::Error| Unusable::Damaged {
            lsn_max: id.lsn,
            why: format!("{}: {doing} it: {error}.", path.display()),
            is_to_go: false,
        };
        let damaged = |damage: Damage| Unusable::Damaged {
            lsn_max: id.lsn,
            why: damage.to_string(),
            is_to_go: !matches!(damage.kind, DamageKind::Version | DamageKind::Name),
        };
        let file = self.source.open(id).map_err(|error| unreadable("opening", error))?;
        let read = |offset, length| {
            self.source.read(&file, offset, length).map_err(|error| unreadable("reading", error))
        };
        // Log segments may be let go because it is there: it must be.
        self.source.flush(&file).map_err(|error| unreadable("flushing", error))?;
        let length = self.source.length(&file);
        let first = read(0, PAGE_BYTES)?;
        let last = read(length.saturating_sub(PAGE_BYTES as u64), PAGE_BYTES)?;
        let shown = path.display().to_string();
        let envelope = Envelope::open(&shown, length, &first, &last, checksum).map_err(damaged)?;
        let Range { start, end } = envelope.tables();
        let tables = read(start, (end - start) as usize)?;
        let view = SnapshotView::open(envelope, tables, checksum).map_err(damaged)?;
        Ok((file, view))
    }

    /// The seed that all images have been made with.
    fn hash_seed(&self, view: &SnapshotView<Vec<u8>>, path: &Path, lsn_max: Lsn) -> Result<u64, Unusable> {
        let nonsense = |what: String| Unusable::Damaged {
            lsn_max,
            why: format!("{}: checksums are right, yet {what}.", path.display()),
            is_to_go: true,
        };
        let mut seed = None;
        for shard in 0..view.shards() {
            let summary = meta::summary(view.meta(shard)).map_err(|error| nonsense(error.to_string()))?;
            if *seed.get_or_insert(summary.hash_seed) != summary.hash_seed {
                return Err(nonsense("its shards hash keys in different ways".into()));
            }
        }
        seed.ok_or_else(|| nonsense("it has no shards".into()))
    }

    /// Keyspaces as they were when the images were begun.
    fn keyspaces(
        &self,
        file: &S::File,
        origin: &Arc<Origin>,
        regions: &[Vec<Range<u64>>],
        hash_seed: u64,
    ) -> Result<Vec<Keyspace>, Unusable> {
        let view = &origin.view;
        let memory =
            self.source.memory(file, regions).map_err(|error| failed(&origin.path, "mapping", error))?;
        let (seeds, now) = (self.wishes.seeds, self.wishes.now);
        let mut keyspaces = Vec::with_capacity(view.shards());
        for (shard, (memory, regions)) in memory.into_iter().enumerate() {
            let options = options(seeds[shard % seeds.len()], hash_seed);
            let check = Box::new(ShardPages { origin: Arc::clone(origin), shard });
            let made = Keyspace::from_image(options, memory, view.meta(shard), regions, check, now);
            keyspaces.push(made.map_err(|error| Unusable::Damaged {
                lsn_max: view.header().lsn_max,
                why: match (&error, origin.found.get()) {
                    (image::ImageError::Damaged(_), Some(found)) => found.to_string(),
                    _ => format!("{}: shard {shard}: {error}.", origin.path.display()),
                },
                is_to_go: true,
            })?);
        }
        Ok(keyspaces)
    }

    fn replay(
        &mut self,
        keyspaces: &mut [Keyspace],
        behind: &[Lsn],
        options: RecoveryOptions,
        records: u64,
    ) -> Result<Recovered, RecoveryError> {
        let targets = keyspaces.iter_mut().zip(behind);
        let targets = targets.map(|(keyspace, &behind)| Target { keyspace, behind }).collect();
        let Start { log, report, wishes, .. } = self;
        let directory = log.directory.clone();
        replay(&directory, targets, records, wishes.now, |each| log.recover(options, *report, each))
    }

    /// Without a snapshot: what the log holds.
    fn without_snapshot(&mut self) -> Result<Restored<S::File>, RecoveryError> {
        self.is_exact(None)?;
        let wishes = self.wishes;
        let hash_seed = wishes.seeds.first().map_or(0, |seeds| seeds.hash);
        let mut keyspaces: Vec<Keyspace> = wishes
            .seeds
            .iter()
            .map(|&seeds| Keyspace::new(options(seeds, hash_seed), self.source.empty_memory()))
            .collect();
        let behind = vec![Lsn::ZERO; keyspaces.len()];
        let durable_at_least = self.durable_at_least(wishes.recovery.durable_at_least);
        let recovery = RecoveryOptions { durable_at_least, ..wishes.recovery };
        let recovered = self.replay(&mut keyspaces, &behind, recovery, self.history.records)?;
        let notes = Vec::new();
        Ok(Restored { keyspaces, hash_seed, recovered, served: None, snapshot: None, notes })
    }

    /// What is said and done once it is known what is served.
    fn finish(self, mut restored: Restored<S::File>) -> Result<Restored<S::File>, RecoveryError> {
        if self.wishes.recovery.to.is_some()
            && let Some((epoch, first)) = self.history.latest()
            && (epoch > Epoch::FIRST && first == restored.recovered.end.next_lsn)
        {
            // A supervisor that starts it again with the same words must not cut again.
            return Err(RecoveryError::AlreadyCut { epoch: epoch.0, first });
        }
        // Before anybody is answered, and before a record behind it says that all of this is durable.
        match restored.snapshot {
            Some(id) => self.log.flush_behind(id.lsn)?,
            None => self.log.flush()?,
        }
        let mut notes = Vec::new();
        for PassedOver { id, why, is_to_go, .. } in self.passed {
            let instead = match restored.snapshot {
                Some(used) => format!("{} and the log behind it hold all of it and are", name(used)),
                None => "the log holds all of it and is".into(),
            };
            let mut text = format!("{why} {instead} used instead");
            if is_to_go && self.wishes.may_write {
                text.push_str(&match self.source.set_aside(id)() {
                    Ok(path) => format!("; it is called {} now", path.display()),
                    Err(error) => format!("; it could not be set aside: {error}"),
                });
            }
            notes.push(text);
        }
        notes.extend(self.notes);
        restored.notes = notes;
        Ok(restored)
    }

    /// The last record that is in a snapshot. Data that came without any (`import-rdb`, `--durability off`) counts as the
    /// first one: before that there is nothing, and a replica that has nothing would be taken for one that has it all.
    fn held(&self, view: &SnapshotView<Vec<u8>>) -> Lsn {
        let holds = |shard| meta::summary(view.meta(shard)).is_ok_and(|summary| summary.entries > 0);
        let is_without = view.header().lsn_max == Lsn::ZERO
            && self.history.first_lsn != Some(Lsn::FIRST)
            && (0..view.shards()).any(holds);
        if is_without { Lsn::FIRST } else { view.header().lsn }
    }

    /// Whether the log goes on where a snapshot, which holds all up to a record, ends.
    fn can_go_on(&self, id: SnapshotId, held: Lsn, lsn_max: Lsn) -> Result<(), RecoveryError> {
        let place = self.source.directory().join(name(id));
        match self.history.first_lsn {
            Some(first) if first > held.next() => refuse(format!(
                "{} holds all up to LSN {}, and the log in {} begins with LSN {first}: the records from LSN {} to {} are in \
                 neither. Put the missing segments of the log back, or move the log away to do without what is in it.{}",
                place.display(),
                held,
                self.log.directory.display(),
                held.next(),
                first.previous(),
                self.said()
            )),
            None if id.lsn < lsn_max => refuse(format!(
                "{} holds one shard up to LSN {} and another up to LSN {lsn_max}, and there is no log in {} that has the \
                 records between. Put the log back that was beside it.{}",
                place.display(),
                id.lsn,
                self.log.directory.display(),
                self.said()
            )),
            _ => Ok(()),
        }
    }

    /// Whether what was passed over is held by a snapshot, or nothing, and the log behind it.
    fn is_exact(&self, base: Option<(SnapshotId, Lsn)>) -> Result<(), RecoveryError> {
        let from = base.map_or(Lsn::ZERO, |(_, held)| held);
        let instead = || base.map_or("An empty server".into(), |(id, _)| name(id));
        for passed in &self.passed {
            let PassedOver { id, lsn_max, .. } = passed;
            let begins = self.history.epochs.iter().find(|(epoch, _)| *epoch == id.epoch);
            let lacks = match (self.history.first_lsn, begins) {
                (None, _) => "there is no log".to_string(),
                (Some(first), _) if first > from.next() => {
                    format!("the log begins with LSN {first}, and not with LSN {}", from.next())
                }
                (_, None) => format!(
                    "the log has no records of its epoch, {}: it was taken without a log, or the log has lost its end",
                    id.epoch
                ),
                (_, Some(&(epoch, first))) if epoch > Epoch::FIRST && id.lsn < first => {
                    format!("epoch {epoch} of the log begins with LSN {first}, on the state that was in it")
                }
                _ => continue,
            };
            return refuse(format!(
                "{} {} with the log does not hold the same data: {lacks}. To go on without what is lost (up to LSN \
                 {lsn_max}), move that file to another place.",
                self.said().trim_start(),
                instead()
            ));
        }
        Ok(())
    }

    /// What was said of the snapshots that were passed over.
    fn said(&self) -> String {
        self.passed.iter().map(|passed| format!(" {}", passed.why)).collect()
    }

    /// What was durable because snapshots have it.
    fn durable_at_least(&self, lsn: Lsn) -> Lsn {
        // Without a log nothing says so: whether that will do was asked before.
        self.passed.iter().map(|passed| passed.lsn_max).fold(lsn, Lsn::max)
    }

    /// A snapshot that was taken without a log has begun an epoch: the log goes on in it.
    fn adopt_epoch(
        &self,
        recovered: &mut Recovered,
        id: SnapshotId,
        lsn_max: Lsn,
    ) -> Result<(), RecoveryError> {
        let latest = self.history.latest().map_or(Epoch(0), |(epoch, _)| epoch);
        if id.epoch <= latest {
            return Ok(());
        }
        let Recovered { start, end, .. } = recovered;
        if end.next_lsn > lsn_max.next() {
            return refuse(format!(
                "{} begins epoch {} behind LSN {lsn_max}, and the log goes on to LSN {} under epoch {latest}: they are two \
                 histories. Move the one away that is not wanted.",
                self.source.directory().join(name(id)).display(),
                id.epoch,
                end.next_lsn.previous()
            ));
        }
        let forks = start.epoch > end.epoch;
        start.epoch = if forks { id.epoch.next() } else { id.epoch };
        start.epoch_first_lsn = start.next_lsn;
        Ok(())
    }

    fn warn_of_no_log(&mut self, lsn_max: Lsn) {
        if self.history.first_lsn.is_none() && lsn_max > Lsn::ZERO {
            self.notes.push(format!(
                "there is no log beside the snapshot: what was written after LSN {lsn_max} is not here"
            ));
        }
    }

    /// Deals the records of keyspaces to others.
    fn partition_again(
        &mut self,
        mut from: Vec<Keyspace>,
        origin: &Origin,
        hash_seed: u64,
    ) -> Result<Result<Vec<Keyspace>, String>, RecoveryError> {
        let (seeds, now) = (self.wishes.seeds, self.wishes.now);
        let make = |&seeds: &Seeds| Keyspace::new(options(seeds, hash_seed), self.source.empty_memory());
        let mut into: Vec<Keyspace> = seeds.iter().map(make).collect();
        let records = from.iter().map(Keyspace::len).sum::<usize>() as u64;
        let targets = into.iter_mut().map(Target::empty).collect();
        // Whose time has come is for the server to find out: here everything stays that is there.
        let then = Now { unix_us: 0, ..now };
        let (mut done, mut last) = (0, Instant::now());
        let Start { log, report, .. } = self;
        let dealt = replay(&log.directory.clone(), targets, records, now, |each| {
            let mut effect = Vec::new();
            for keyspace in &mut from {
                let mut at = Some(LiveCursor::START);
                while let Some(cursor) = at {
                    let mut refused = Ok(());
                    at = keyspace.for_each_live(cursor, STEP_BYTES, then, &mut |key, entry| {
                        effect.clear();
                        let (value, expires_at) = (entry.value, entry.expires_at);
                        Mutation::Set { key, value, expires_at, encoding: entry.encoding }
                            .encode(&mut effect);
                        done += 1;
                        if refused.is_ok() {
                            refused = each(Lsn(done), now.unix_us, &effect);
                        }
                    });
                    if let Err(why) = refused {
                        let directory = log.directory.clone();
                        return Err(RecoveryError::Record { directory, lsn: Lsn(done), why });
                    }
                    if last.elapsed() >= REPORT_PERIOD {
                        last = Instant::now();
                        report(&format!("dealing records to other shards: {done} of {records}"));
                    }
                }
                if keyspace.damage().is_some() {
                    break;
                }
            }
            Ok(())
        });
        if let Some(damage) = from.iter().find_map(Keyspace::damage) {
            return Ok(Err(origin.describe(damage)));
        }
        dealt.map_err(|error| match error {
            RecoveryError::Record { why, .. } => RecoveryError::Snapshot(format!(
                "{}: its records cannot be dealt to {} shards: {why}",
                origin.path.display(),
                seeds.len()
            )),
            error => error,
        })?;
        Ok(Ok(into))
    }

    /// Has all pages checked and moved.
    fn warm(&mut self, keyspaces: &mut [Keyspace], bytes: u64) -> Result<(), image::Damage> {
        // What is left when nothing is in the file any more is put in order while serving.
        let step =
            |keyspace: &mut Keyspace| keyspace.warm_step(STEP_BYTES) && keyspace.warm_progress().is_some();
        self.read_all(keyspaces, bytes, &step)
    }

    /// Has all pages checked. They are served from the file, and moved, when shards have the time.
    fn check(&mut self, keyspaces: &mut [Keyspace], bytes: u64) -> Result<(), image::Damage> {
        self.read_all(keyspaces, bytes, &|keyspace| keyspace.check_step(STEP_BYTES))
    }

    fn read_all(
        &mut self,
        keyspaces: &mut [Keyspace],
        bytes: u64,
        step: &(dyn Fn(&mut Keyspace) -> bool + Sync),
    ) -> Result<(), image::Damage> {
        let (done, at_work) = (AtomicU64::new(0), AtomicUsize::new(keyspaces.len()));
        scope(|scope| {
            for keyspace in keyspaces.iter_mut() {
                let (done, at_work) = (&done, &at_work);
                scope.spawn(move || {
                    let mut before = 0;
                    while step(keyspace) {
                        let checked = keyspace.warm_progress().map_or(0, |progress| progress.checked_bytes);
                        done.fetch_add(checked.saturating_sub(before), Relaxed);
                        before = checked;
                    }
                    at_work.fetch_sub(1, Relaxed);
                });
            }
            let mut last = Instant::now();
            while at_work.load(Relaxed) > 0 {
                sleep(Duration::from_millis(1));
                if last.elapsed() >= REPORT_PERIOD {
                    last = Instant::now();
                    (self.report)(&format!(
                        "reading the snapshot: {} of {}",
                        Bytes(done.load(Relaxed)),
                        Bytes(bytes)
                    ));
                }
            }
        });
        keyspaces.iter().find_map(Keyspace::damage).map_or(Ok(()), |damage| Err(*damage))
    }
}

fn options(seeds: Seeds, hash_seed: u64) -> KeyspaceOptions {
    Seeds { hash: hash_seed, ..seeds }.keyspace_options()
}

/// Where the regions of each shard lie.
fn regions(view: &SnapshotView<Vec<u8>>) -> Vec<Vec<Range<u64>>> {
    (0..view.shards())
        .map(|shard| view.regions(shard).iter().map(|region| region.range()).collect())
        .collect()
}
