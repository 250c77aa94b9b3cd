//! `millrace snapshot verify|info|dump FILE`: what operators ask of a snapshot file, whoever else works beside it.
//!
//! `info` says what a start believes of the file: header, tables and what each shard's image says of itself. `verify`
//! reads all of it: every page against its checksum, every record against the index. `dump` writes a line for each key.
//! What is said is JSON, an object a line, whose `what` says what it is about. Nothing is ever changed.
//!
//! Exit codes: 0 the snapshot is whole, 1 it is damaged or cannot be read, 2 wrong usage.

use crate::clock::monotonic_ns;
use crate::io::snapshot_files::{list_snapshots, snapshot_path};
use crate::log_tool::{Json, ToolError};
use crate::server::recovery::Time;
use clap::builder::NonEmptyStringValueParser;
use clap::{Arg, ArgMatches, Command};
use snapshot::damage::Damage;
use snapshot::format::{PAGE, VERSION};
use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use store::image::RegionKind;
use store::image::restore::LiveCursor;
use store::keyspace::{Entry, Keyspace};
use store::shards::Place;
use store::time::Now;
use store::value::Encoding;
use stored::{StoredSnapshot, Unreadable};

pub(crate) mod stored;

/// So many damaged pages get a line of their own; the rest is counted.
const DAMAGE_LINES_MAX: u64 = 1000;
/// Bytes of records looked at before what was made of them is written.
pub(crate) const STEP_BYTES: usize = 1 << 20;

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotTool {
    /// Read all of it and say whether it is whole.
    Verify(PathBuf),
    /// Say what a start believes of it.
    Info(PathBuf),
    /// One line of JSON for each key.
    Dump(PathBuf),
}

impl From<Unreadable> for ToolError {
    fn from(error: Unreadable) -> ToolError {
        ToolError::Text(match error {
            Unreadable::Damage(damage) => format!("the snapshot is damaged: {damage}"),
            error => error.to_string(),
        })
    }
}

/// The subcommand `snapshot`.
pub fn command() -> Command {
    let file = Arg::new("file")
        .value_name("FILE")
        .required(true)
        .value_parser(NonEmptyStringValueParser::new())
        .help("The snapshot: snapshot-….mrs in the directory of the data files (--dir of the server)");
    Command::new("snapshot")
        .about("Look at a snapshot: lines of JSON")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .after_help(
            "Each reads one file and changes nothing, so a server may run meanwhile. Exit codes: 0 the snapshot is whole, 1 it \
             is damaged or cannot be read, 2 wrong usage.",
        )
        .subcommand(
            Command::new("verify")
                .about("Read all of a snapshot: every page against its checksum, every record against the index")
                .after_help("A shard is in memory at a time.")
                .arg(file.clone()),
        )
        .subcommand(
            Command::new("info")
                .about("Say what a start believes of a snapshot before it looks at the data: header, tables, trailer")
                .arg(file.clone()),
        )
        .subcommand(
            Command::new("dump")
                .about("Print one line of JSON for each key in a snapshot, in no order")
                .after_help(
                    "Keys and values are strings where they are UTF-8, and {\"hex\": \"…\"} where they are not. Keys that have \
                     expired since are among them.",
                )
                .arg(file),
        )
}

impl SnapshotTool {
    /// Reads what clap made of `millrace snapshot …`.
    pub fn from_matches(matches: &ArgMatches) -> SnapshotTool {
        let Some((name, matches)) = matches.subcommand() else { unreachable!("a subcommand is required") };
        let file = PathBuf::from(matches.get_one::<String>("file").expect("it is required"));
        match name {
            "verify" => SnapshotTool::Verify(file),
            "info" => SnapshotTool::Info(file),
            _ => SnapshotTool::Dump(file),
        }
    }

    /// Does it; what there is to say goes to `out`.
    pub fn run(&self, out: &mut impl Write) -> Result<(), ToolError> {
        let result = match self {
            SnapshotTool::Verify(file) => verify(file, out),
            SnapshotTool::Info(file) => info(file, out),
            SnapshotTool::Dump(file) => dump(file, out),
        };
        let flushed = out.flush();
        match result {
            // `millrace snapshot dump | head`
            Err(ToolError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Ok(()) => Ok(flushed?),
            result => result,
        }
    }
}

/// Opens a file; who names a directory is told what is in it.
fn open(path: &Path) -> Result<StoredSnapshot, Unreadable> {
    if !path.is_dir() {
        return StoredSnapshot::open(path);
    }
    let listing = list_snapshots(path).unwrap_or_default();
    let advice = match listing.snapshots.first() {
        Some(&newest) => format!("its newest snapshot is {}", snapshot_path(path, newest).display()),
        None => "and it holds no snapshot".into(),
    };
    Err(Unreadable::NoFile { path: path.into(), found: format!("a directory; {advice}") })
}

/// The lines of header and shards.
fn describe(snapshot: &StoredSnapshot, out: &mut impl Write) -> Result<(), ToolError> {
    let header = snapshot.header();
    let file = snapshot.path().to_string_lossy();
    writeln!(
        out,
        "{{\"what\":\"snapshot\",\"file\":{},\"version\":{VERSION},\"bytes\":{},\"epoch\":{},\"lsn\":{},\"lsn_max\":{},\
         \"time\":\"{}\",\"shards\":{},\"uid\":\"{:016x}\"}}",
        Json(file.as_bytes()),
        header.length,
        header.epoch.0,
        header.lsn,
        header.lsn_max,
        Time(header.unix_us),
        header.shards,
        header.uid
    )?;
    for shard in 0..snapshot.view().shards() {
        let summary = snapshot.summary(shard)?;
        let regions = snapshot.view().regions(shard);
        let of_kind =
            |kind: RegionKind| regions.iter().filter(|region| region.kind == u32::from(kind.code())).count();
        writeln!(
            out,
            "{{\"what\":\"shard\",\"shard\":{shard},\"lsn\":{},\"time\":\"{}\",\"keys\":{},\"expires\":{},\"bytes\":{},\
             \"pages\":{},\"index_slabs\":{},\"segments\":{},\"long_records\":{},\"meta_bytes\":{}}}",
            snapshot.view().lsn(shard),
            Time(summary.unix_us),
            summary.entries,
            summary.expires,
            regions.iter().map(|region| region.length).sum::<u64>(),
            regions.iter().map(|region| region.length / PAGE).sum::<u64>(),
            of_kind(RegionKind::Index),
            of_kind(RegionKind::Segment),
            of_kind(RegionKind::Span),
            snapshot.view().meta(shard).len(),
        )?;
    }
    Ok(())
}

fn damage_line(damage: &Damage, out: &mut impl Write) -> io::Result<()> {
    let Damage { file, offset, expected, found, .. } = damage;
    writeln!(
        out,
        "{{\"what\":\"damage\",\"file\":{},\"offset\":{offset},\"expected\":{},\"found\":{}}}",
        Json(file.as_bytes()),
        Json(expected.as_bytes()),
        Json(found.as_bytes())
    )
}

/// Opens a snapshot; damage that is found has its line, too.
fn open_and_say(path: &Path, out: &mut impl Write) -> Result<StoredSnapshot, ToolError> {
    open(path).map_err(|error| said(error, out))
}

fn said(error: Unreadable, out: &mut impl Write) -> ToolError {
    if let Unreadable::Damage(damage) = &error
        && let Err(error) = damage_line(damage, out)
    {
        return error.into();
    }
    error.into()
}

fn info(path: &Path, out: &mut impl Write) -> Result<(), ToolError> {
    describe(&open_and_say(path, out)?, out)
}

fn verify(path: &Path, out: &mut impl Write) -> Result<(), ToolError> {
    let begun = monotonic_ns();
    let snapshot = open_and_say(path, out)?;
    describe(&snapshot, out)?;
    let (mut damaged, mut first, mut failed, mut keys) = (0_u64, None, None, 0);
    for shard in 0..snapshot.view().shards() {
        let keyspace = snapshot.read_shard(shard, &mut |damage| {
            damaged += 1;
            if damaged <= DAMAGE_LINES_MAX {
                failed = failed.take().or(damage_line(&damage, out).err());
            }
            first.get_or_insert(damage);
        });
        if let Some(error) = failed.take() {
            return Err(error.into());
        }
        let Some(keyspace) = keyspace.map_err(|error| said(error, out))? else { continue };
        keys += count(&snapshot, shard, keyspace).map_err(|error| said(error, out))?;
    }
    let seconds = (monotonic_ns() - begun) as f64 / 1e9;
    let pages: u64 = (0..snapshot.view().shards())
        .flat_map(|shard| snapshot.view().regions(shard))
        .map(|region| region.pages())
        .sum();
    let state = if damaged == 0 { "whole" } else { "damaged" };
    writeln!(
        out,
        "{{\"what\":\"result\",\"state\":\"{state}\",\"pages\":{pages},\"damaged_pages\":{damaged},\"keys\":{keys},\
         \"seconds\":{seconds:.3}}}"
    )?;
    match first {
        None => Ok(()),
        Some(first) => {
            out.flush()?;
            Err(ToolError::Text(format!(
                "the snapshot is damaged, {damaged} of {pages} pages; the first: {first}"
            )))
        }
    }
}

/// A walk over every key of a shard's keyspace, step by step: between two steps the caller may write.
pub(crate) struct Walk<'a> {
    snapshot: &'a StoredSnapshot,
    shard: usize,
    keyspace: Keyspace,
    at: Option<LiveCursor>,
}

impl<'a> Walk<'a> {
    pub(crate) fn new(snapshot: &'a StoredSnapshot, shard: usize, keyspace: Keyspace) -> Walk<'a> {
        Walk { snapshot, shard, keyspace, at: Some(LiveCursor::START) }
    }

    /// Over a shard of which every page is what was written.
    pub(crate) fn whole(snapshot: &'a StoredSnapshot, shard: usize) -> Result<Walk<'a>, Unreadable> {
        let mut first = None;
        let keyspace = snapshot.read_shard(shard, &mut |damage| {
            first.get_or_insert(damage);
        })?;
        let keyspace = keyspace.ok_or_else(|| first.expect("no keyspace without damage"))?;
        Ok(Walk::new(snapshot, shard, keyspace))
    }

    /// Visits the next keys that have not expired at `now`; false: there are no more.
    pub(crate) fn step(
        &mut self,
        now: Now,
        visit: &mut dyn FnMut(&[u8], Entry<'_>),
    ) -> Result<bool, Unreadable> {
        let Some(from) = self.at else { return Ok(false) };
        self.at = self.keyspace.for_each_live(from, STEP_BYTES, now, visit);
        match self.keyspace.damage() {
            None => Ok(true),
            Some(damage) => Err(self.snapshot.contents_damage(self.shard, damage).into()),
        }
    }
}

/// Counts the keys of a shard; they must be as many as its image says, and its own.
fn count(snapshot: &StoredSnapshot, shard: usize, keyspace: Keyspace) -> Result<u64, Unreadable> {
    let place = Place { index: shard, count: snapshot.view().shards() };
    let (mut keys, mut expires, mut strangers) = (0, 0, 0_u64);
    let mut walk = Walk::new(snapshot, shard, keyspace);
    // At the beginning of time nothing has expired yet.
    while walk.step(Now::default(), &mut |key, entry| {
        keys += 1;
        expires += u64::from(entry.expires_at.is_some());
        strangers += u64::from(place.shard_of(key) != shard);
    })? {}
    let summary = snapshot.summary(shard)?;
    if (keys, expires, strangers) != (summary.entries, summary.expires, 0) {
        let found = format!(
            "{keys} keys of which {expires} expire and {strangers} are another shard's; expected {} and {}",
            summary.entries, summary.expires
        );
        return Err(snapshot.inconsistent(shard, &found).into());
    }
    Ok(keys)
}

fn dump(path: &Path, out: &mut impl Write) -> Result<(), ToolError> {
    let snapshot = open(path)?;
    let mut lines = String::new();
    for shard in 0..snapshot.view().shards() {
        let mut walk = Walk::whole(&snapshot, shard)?;
        while walk.step(Now::default(), &mut |key, entry| entry_line(&mut lines, shard, key, &entry))? {
            out.write_all(lines.as_bytes())?;
            lines.clear();
        }
    }
    Ok(())
}

fn entry_line(out: &mut String, shard: usize, key: &[u8], entry: &Entry<'_>) {
    let encoding = match entry.encoding {
        Encoding::Auto => "auto",
        Encoding::Raw => "raw",
        Encoding::NotInteger => "not_integer",
    };
    let _ = write!(
        out,
        "{{\"what\":\"key\",\"shard\":{shard},\"key\":{},\"value\":{},\"expires_at_ms\":",
        Json(key),
        Json(entry.value)
    );
    let _ = match entry.expires_at {
        Some(at) => write!(out, "{at}"),
        None => write!(out, "null"),
    };
    let _ = writeln!(out, ",\"encoding\":\"{encoding}\"}}");
}
