//! `millrace log verify|dump|repair DIR`: what operators do with a log while no server serves it.
//!
//! `verify` reads everything and says what is there; `dump` writes one line of JSON for each effect; `repair`
//! says what would be lost by cutting a damaged log, and cuts it only with `--yes`. Nothing is ever deleted: a
//! cut is a new epoch that leaves the rest of the old files uncounted, or files renamed out of the log's way.
//!
//! Exit codes: 0 the log is whole (or was made so), 1 it is damaged or cannot be read, 2 wrong usage.

use crate::clock::{monotonic_ns, realtime_ns};
use crate::io::log_files::{
    self, DirectoryLock, LogDisk, LogFiles, LogWriteMode, SET_ASIDE_SUFFIX, checksum,
};
#[cfg(feature = "sqlcipher")]
use crate::journal_tool::steps;
use crate::journal_tool::{key_argument, key_source};
#[cfg(not(feature = "sqlcipher"))]
use crate::server::journal::NOT_BUILT_IN;
use crate::server::journal::{Holdings, KeySource, refuse_the_other};
use crate::server::recovery::{Bytes, LogOnDisk, Read, RecoveryError, Time};
use clap::builder::NonEmptyStringValueParser;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use std::fmt::{self, Write as _};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use store::mutation::Mutation;
use store::value::Encoding;
use wal::damage::DamageKind;
use wal::end_of_log::EndOfLog;
use wal::group_commit::{GroupCommit, Start};
use wal::lsn::{Epoch, Lsn};
use wal::reader::{ReadOptions, Until};
use wal::segment::{FileName, Sequence};
use wal::settings::Settings;

/// A server writes while a tool reads: what looks damaged may have been half written then.
const ATTEMPTS_BESIDE_A_SERVER: usize = 5;

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTool {
    /// Read all of it and say what is there.
    Verify {
        /// Where the log is.
        directory: PathBuf,
        /// The key, if it is encrypted.
        key: KeySource,
    },
    /// One line of JSON for each effect.
    Dump {
        /// Where the log is.
        directory: PathBuf,
        /// The key, if it is encrypted.
        key: KeySource,
        /// The first record.
        from: Lsn,
        /// The last one.
        until: Lsn,
    },
    /// Cut a damaged log.
    Repair {
        /// Where the log is.
        directory: PathBuf,
        /// Do it, and do not only say it.
        yes: bool,
    },
}

/// Why a tool did not do what it was asked.
#[derive(Debug)]
pub enum ToolError {
    /// The log cannot be read, or is damaged.
    Log(RecoveryError),
    /// It is damaged; what there is to say has been said.
    Damaged,
    /// In words.
    Text(String),
    /// What was found cannot be said.
    Output(io::Error),
}

impl fmt::Display for ToolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ToolError::Log(error) => error.fmt(f),
            ToolError::Damaged => f.write_str("the log is damaged"),
            ToolError::Text(text) => f.write_str(text),
            ToolError::Output(error) => write!(f, "writing the output: {error}"),
        }
    }
}

impl std::error::Error for ToolError {}

impl From<RecoveryError> for ToolError {
    fn from(error: RecoveryError) -> ToolError {
        ToolError::Log(error)
    }
}

impl From<io::Error> for ToolError {
    fn from(error: io::Error) -> ToolError {
        ToolError::Output(error)
    }
}

/// The subcommand `log`.
pub fn command() -> Command {
    let directory = Arg::new("directory")
        .value_name("DIR")
        .required(true)
        .value_parser(NonEmptyStringValueParser::new())
        .help("The directory of the data files (--dir of the server)");
    let lsn = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name("LSN").value_parser(value_parser!(u64).range(1..)).help(help)
    };
    Command::new("log")
        .about("Look at the log of a server, or repair it")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .after_help("Exit codes: 0 the log is whole, 1 it is damaged or cannot be read, 2 wrong usage.")
        .subcommand(
            Command::new("verify")
                .about("Read all of a log and say what is there, where it ends and whether it is damaged")
                .arg(directory.clone())
                .arg(key_argument()),
        )
        .subcommand(
            Command::new("dump")
                .about("Print one line of JSON for each effect in a log")
                .after_help(
                    "Keys and values are strings where they are UTF-8, and {\"hex\": \"…\"} where they are not.",
                )
                .arg(directory.clone())
                .arg(key_argument())
                .arg(lsn("from", "The first record [default: the first there is]"))
                .arg(lsn("until", "The last record [default: the last there is]")),
        )
        .subcommand(
            Command::new("repair")
                .about("Say what would be lost by cutting a damaged log, and cut it with --yes; deletes nothing")
                .arg(directory)
                .arg(Arg::new("yes").long("yes").action(ArgAction::SetTrue).help("Cut it")),
        )
}

impl LogTool {
    /// Reads what clap made of `millrace log …`.
    pub fn from_matches(matches: &ArgMatches) -> LogTool {
        let Some((name, matches)) = matches.subcommand() else { unreachable!("a subcommand is required") };
        let directory = PathBuf::from(matches.get_one::<String>("directory").expect("it is required"));
        let lsn = |name, default| Lsn(matches.get_one::<u64>(name).copied().unwrap_or(default));
        match name {
            "verify" => LogTool::Verify { directory, key: key_source(matches) },
            "dump" => LogTool::Dump {
                directory,
                key: key_source(matches),
                from: lsn("from", 1),
                until: lsn("until", u64::MAX - 1),
            },
            _ => LogTool::Repair { directory, yes: matches.get_flag("yes") },
        }
    }

    /// Does it; what there is to say goes to `out`.
    pub fn run(&self, out: &mut impl Write) -> Result<(), ToolError> {
        let result = match self {
            LogTool::Verify { directory, key } if is_encrypted(directory)? => {
                verify_encrypted(directory, key, out)
            }
            LogTool::Dump { directory, key, from, until } if is_encrypted(directory)? => {
                dump_encrypted(directory, key, (*from, *until), out)
            }
            LogTool::Repair { directory, .. } if is_encrypted(directory)? => Err(ToolError::Text(format!(
                "{}: an encrypted journal is not repaired: it has no torn end that counts, and a page that was changed takes \
                 the rest with it; restore it from a copy",
                directory.display()
            ))),
            LogTool::Verify { directory, .. } => verify(directory, out),
            LogTool::Dump { directory, from, until, .. } => dump(directory, *from, *until, out),
            LogTool::Repair { directory, yes } => repair(directory, *yes, out),
        };
        let flushed = out.flush();
        match result {
            // `millrace log dump | head`
            Err(ToolError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Ok(()) => Ok(flushed?),
            result => result,
        }
    }
}

/// Whether the directory holds the encrypted journal; half a conversion is nothing to look at.
fn is_encrypted(directory: &Path) -> Result<bool, ToolError> {
    let failed = |error| ToolError::Text(format!("{}: {error}", directory.display()));
    let found = Holdings::of(directory).map_err(failed)?;
    match found.converted {
        Some(kind) => refuse_the_other(directory, kind).map(|()| false).map_err(ToolError::Text),
        None => Ok(found.sqlcipher),
    }
}

#[cfg(feature = "sqlcipher")]
fn verify_encrypted(directory: &Path, key: &KeySource, out: &mut impl Write) -> Result<(), ToolError> {
    steps::verify(directory, key, out)
}

#[cfg(feature = "sqlcipher")]
fn dump_encrypted(
    directory: &Path,
    key: &KeySource,
    (from, until): (Lsn, Lsn),
    out: &mut impl Write,
) -> Result<(), ToolError> {
    if from > until {
        return Err(ToolError::Text(format!("--from {from} is behind --until {until}")));
    }
    let (mut malformed, mut line) = (0_u64, String::new());
    steps::dump(directory, key, (from, until), |lsn, unix_us, payload| {
        line.clear();
        malformed += u64::from(!describe(&mut line, lsn, unix_us, payload));
        Ok(out.write_all(line.as_bytes())?)
    })?;
    if malformed > 0 {
        return Err(ToolError::Text(format!("{malformed} records hold no effects that this version knows")));
    }
    Ok(())
}

#[cfg(not(feature = "sqlcipher"))]
fn verify_encrypted(_: &Path, _: &KeySource, _: &mut impl Write) -> Result<(), ToolError> {
    Err(ToolError::Text(NOT_BUILT_IN.into()))
}

#[cfg(not(feature = "sqlcipher"))]
fn dump_encrypted(_: &Path, _: &KeySource, _: (Lsn, Lsn), _: &mut impl Write) -> Result<(), ToolError> {
    Err(ToolError::Text(NOT_BUILT_IN.into()))
}

/// The log of a directory, if there is one.
fn open(directory: &Path) -> Result<LogOnDisk, ToolError> {
    let log = LogOnDisk::open(directory)?;
    if log.listing.segments.is_empty() && log.listing.spares.is_empty() {
        return Err(ToolError::Text(format!(
            "{}: expected a log (files named log-….wal), found none; name the directory that the server was given as \
             --dir",
            directory.display()
        )));
    }
    Ok(log)
}

fn whole(log: &LogOnDisk) -> ReadOptions {
    ReadOptions { from: log.first_lsn(), ..ReadOptions::default() }
}

/// What records of a log have in common.
#[derive(Default)]
struct Span {
    first: Option<(Lsn, u64)>,
    last: Option<(Lsn, u64)>,
    malformed: u64,
}

fn verify(directory: &Path, out: &mut impl Write) -> Result<(), ToolError> {
    let holder = DirectoryLock::holder(directory);
    if let Some(holder) = &holder {
        writeln!(out, "{holder} works in this directory: what it writes now may be missing here")?;
    }
    let attempts = if holder.is_some() { ATTEMPTS_BESIDE_A_SERVER } else { 1 };
    let mut attempt = 1;
    let (log, span, read, elapsed) = loop {
        let log = open(directory)?;
        let mut span = Span::default();
        let begun = monotonic_ns();
        let read = log.read(whole(&log), None, |lsn, unix_us, payload| {
            span.first.get_or_insert((lsn, unix_us));
            span.last = Some((lsn, unix_us));
            let mut rest = payload;
            while !rest.is_empty() {
                if Mutation::decode(&mut rest).is_err() {
                    span.malformed += 1;
                    break;
                }
            }
            Ok(())
        })?;
        if attempt == attempts || matches!(read, Read::End(_)) {
            break (log, span, read, (monotonic_ns() - begun) as f64 / 1e9);
        }
        attempt += 1;
    };
    for (sequence, length, header, block) in log.headers() {
        let file = FileName::Segment(sequence);
        match header {
            None => writeln!(out, "{file}  {}  no valid header", Bytes(length))?,
            Some(header) => {
                let first = block.map_or(String::from("prepared, not begun"), |block| {
                    format!("begins with LSN {}", block.first_whole_lsn())
                });
                writeln!(
                    out,
                    "{file}  {}  epoch {} from LSN {}  {first}",
                    Bytes(length),
                    header.epoch,
                    header.epoch_first_lsn
                )?;
            }
        }
    }
    for &sequence in &log.listing.spares {
        writeln!(out, "{}  in preparation", FileName::Spare(sequence))?;
    }
    match (span.first, span.last) {
        (Some(first), Some(last)) => {
            writeln!(out, "records: LSN {} to {}, {} to {}", first.0, last.0, Time(first.1), Time(last.1))?
        }
        _ => writeln!(out, "records: none")?,
    }
    if span.malformed > 0 {
        writeln!(out, "{} of them are intact and hold no effects that this version knows", span.malformed)?;
    }
    match read {
        Read::End(end) => {
            writeln!(
                out,
                "read: {} records with {} in {} blocks, {} in {elapsed:.2} s",
                end.records,
                Bytes(end.payload_bytes),
                end.blocks,
                Bytes(end.bytes_read)
            )?;
            writeln!(out, "end: {end}")?;
            writeln!(out, "epoch: {}, from LSN {}", end.epoch, end.epoch_first_lsn)?;
            if end.is_torn() {
                writeln!(out, "torn tail: the next start cuts it; no later block says that it was durable")?;
            }
            if span.malformed > 0 {
                return Err(ToolError::Text(String::from("the log holds records that cannot be applied")));
            }
            writeln!(out, "whole")?;
            Ok(())
        }
        Read::Damaged(directory, damage, _) => {
            writeln!(out, "damaged: {damage}")?;
            Err(RecoveryError::Damage(directory, damage).into())
        }
    }
}

fn dump(directory: &Path, from: Lsn, until: Lsn, out: &mut impl Write) -> Result<(), ToolError> {
    if from > until {
        return Err(ToolError::Text(format!("--from {from} is behind --until {until}")));
    }
    let log = open(directory)?;
    let options =
        ReadOptions { from: from.max(log.first_lsn()), until: Until::Lsn(until), ..ReadOptions::default() };
    let mut failed = None;
    let mut malformed = 0_u64;
    let mut line = String::new();
    let result = log.read(options, None, |lsn, unix_us, payload| {
        line.clear();
        malformed += u64::from(!describe(&mut line, lsn, unix_us, payload));
        out.write_all(line.as_bytes()).map_err(|error| {
            failed = Some(error);
            String::from("the output")
        })
    });
    if let Some(error) = failed {
        return Err(error.into());
    }
    result?.into_end()?;
    if malformed > 0 {
        return Err(ToolError::Text(format!("{malformed} records hold no effects that this version knows")));
    }
    Ok(())
}

/// Adds a line for each effect of a record; false if it has bytes that are none.
fn describe(out: &mut String, lsn: Lsn, unix_us: u64, payload: &[u8]) -> bool {
    let mut rest = payload;
    while !rest.is_empty() {
        let _ = write!(out, "{{\"lsn\":{lsn},\"time\":\"{}\",\"kind\":", Time(unix_us));
        let before = rest;
        let mutation = match Mutation::decode(&mut rest) {
            Ok(mutation) => mutation,
            Err(malformed) => {
                let _ = writeln!(out, "\"malformed\",\"why\":\"{malformed}\",\"bytes\":{}}}", Hex(before));
                return false;
            }
        };
        let kind = match mutation {
            Mutation::Set { .. } => "set",
            Mutation::Append { .. } => "append",
            Mutation::WriteRange { .. } => "write_range",
            Mutation::SetExpiry { .. } => "set_expiry",
            Mutation::Remove { .. } => "remove",
            Mutation::Clear => "clear",
        };
        let _ = write!(out, "\"{kind}\"");
        if let Some(key) = mutation.key() {
            let _ = write!(out, ",\"key\":{}", Json(key));
        }
        match mutation {
            Mutation::Set { value, expires_at, encoding, .. } => {
                let _ = write!(out, ",\"value\":{}", Json(value));
                if let Some(at) = expires_at {
                    let _ = write!(out, ",\"expires_at_ms\":{at}");
                }
                let encoding = match encoding {
                    Encoding::Auto => "auto",
                    Encoding::Raw => "raw",
                    Encoding::NotInteger => "not_integer",
                };
                let _ = write!(out, ",\"encoding\":\"{encoding}\"");
            }
            Mutation::Append { bytes, .. } => {
                let _ = write!(out, ",\"bytes\":{}", Json(bytes));
            }
            Mutation::WriteRange { offset, bytes, .. } => {
                let _ = write!(out, ",\"offset\":{offset},\"bytes\":{}", Json(bytes));
            }
            Mutation::SetExpiry { expires_at, .. } => match expires_at {
                Some(at) => drop(write!(out, ",\"expires_at_ms\":{at}")),
                None => out.push_str(",\"expires_at_ms\":null"),
            },
            Mutation::Remove { .. } | Mutation::Clear => {}
        }
        out.push_str("}\n");
    }
    true
}

/// Bytes as JSON, without loss: a string if they are UTF-8, else an object that says so.
pub(crate) struct Json<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Json<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ok(text) = std::str::from_utf8(self.0) else { return Hex(self.0).fmt(f) };
        f.write_char('"')?;
        for letter in text.chars() {
            match letter {
                '"' | '\\' => write!(f, "\\{letter}")?,
                '\n' => f.write_str("\\n")?,
                '\r' => f.write_str("\\r")?,
                '\t' => f.write_str("\\t")?,
                letter if letter < ' ' || letter == '\x7f' => write!(f, "\\u{:04x}", letter as u32)?,
                letter => f.write_char(letter)?,
            }
        }
        f.write_char('"')
    }
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{\"hex\":\"")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("\"}")
    }
}

fn repair(directory: &Path, yes: bool, out: &mut impl Write) -> Result<(), ToolError> {
    let _lock = match std::fs::exists(directory) {
        Ok(true) => DirectoryLock::take(directory).map_err(|error| ToolError::Text(error.to_string()))?,
        _ => return open(directory).map(drop),
    };
    let log = open(directory)?;
    let records = |read: &Read| match read {
        Read::End(end) | Read::Damaged(_, _, Some(end)) => end.next_lsn,
        Read::Damaged(_, _, None) => log.first_lsn(),
    };
    let read = log.read(whole(&log), None, |_, _, _| Ok(()))?;
    let keep_before = records(&read);
    let (damage, cut) = match read {
        Read::End(end) => {
            writeln!(out, "nothing to repair: {end}")?;
            if end.is_torn() {
                writeln!(out, "the torn tail is cut by the next start of the server")?;
            }
            return Ok(());
        }
        Read::Damaged(directory, damage, _) if damage.kind == DamageKind::Version => {
            return Err(RecoveryError::Damage(directory, damage).into());
        }
        Read::Damaged(_, damage, cut) => (damage, cut),
    };
    writeln!(out, "damaged: {damage}")?;
    // Where blocks can be read, a new epoch says which of them count. Where a header is damaged, its file and
    // what comes after it are taken out of the log's way.
    let aside: Vec<Sequence> = match (&cut, damage.file) {
        (Some(_), _) => Vec::new(),
        (None, FileName::Segment(first) | FileName::Spare(first)) => log
            .listing
            .segments
            .iter()
            .map(|segment| segment.0)
            .filter(|&sequence| sequence >= first)
            .collect(),
    };
    let what = if yes { "cutting" } else { "`--yes` would cut" };
    match cut {
        Some(_) => writeln!(
            out,
            "{what} the log before LSN {keep_before}: all from {} at offset {} on is left out, the files stay as they are",
            damage.file, damage.offset
        )?,
        None => {
            writeln!(out, "{what} the log where {} begins; out of the log's way go, renamed:", damage.file)?;
            for &sequence in &aside {
                let file = FileName::Segment(sequence);
                writeln!(out, "  {file} to {file}{SET_ASIDE_SUFFIX}")?;
            }
        }
    }
    if !yes {
        writeln!(out, "copy the directory first: what is cut was acknowledged, and is lost to every client")?;
        return Err(ToolError::Damaged);
    }
    let mut epoch_max = log.headers().filter_map(|(_, _, header, _)| Some(header?.epoch)).max();
    for &sequence in &aside {
        set_aside(directory, sequence)?;
    }
    let mut kept = cut_and_mark(directory, cut, &mut epoch_max)?;
    let mut more_aside = Vec::new();
    // A block that contradicts the one before it stays a contradiction whatever the epoch: its file goes, too.
    while let Read::Damaged(_, damage, _) = &kept {
        let FileName::Segment(sequence) = damage.file else { break };
        if !log.listing.segments.iter().any(|segment| segment.0 == sequence) {
            break;
        }
        set_aside(directory, sequence)?;
        writeln!(out, "its file had to go as well: {} is renamed, {damage}", damage.file)?;
        more_aside.push(sequence);
        kept = cut_and_mark(directory, None, &mut epoch_max)?;
    }
    let end = kept.into_end()?;
    writeln!(out, "repaired: {end}; it goes on under epoch {} from LSN {}", end.epoch, end.epoch_first_lsn)?;
    Ok(())
}

fn set_aside(directory: &Path, sequence: Sequence) -> Result<(), ToolError> {
    let name = FileName::Segment(sequence).to_string();
    let (from, to) = (directory.join(&name), directory.join(format!("{name}{SET_ASIDE_SUFFIX}")));
    let renamed = std::fs::rename(&from, &to).and_then(|()| log_files::flush_directory(directory));
    renamed.map_err(|error| {
        let error = log_files::in_words(&error);
        ToolError::Text(format!("renaming {} to {}: {error}", from.display(), to.display()))
    })
}

/// Begins a new epoch behind what is kept, has it say so on disk, and reads the log again.
fn cut_and_mark(
    directory: &Path,
    cut: Option<EndOfLog>,
    epoch_max: &mut Option<Epoch>,
) -> Result<Read, ToolError> {
    let log = LogOnDisk::open(directory)?;
    log.flush()?;
    let end = match cut {
        Some(end) => end,
        None => match log.read(whole(&log), None, |_, _, _| Ok(()))? {
            Read::End(end) | Read::Damaged(_, _, Some(end)) => end,
            read @ Read::Damaged(_, _, None) => return Ok(read),
        },
    };
    let epoch = epoch_max.unwrap_or(Epoch::FIRST).max(end.epoch).next();
    *epoch_max = Some(epoch);
    let mut start = end.start(&log.listing.spares, monotonic_ns() ^ realtime_ns().rotate_left(32));
    log.pass_over(&mut start);
    (start.epoch, start.epoch_first_lsn) = (epoch, start.next_lsn);
    mark(directory, &start)
        .map_err(|text| ToolError::Text(format!("repairing {}: {text}", directory.display())))?;
    let log = LogOnDisk::open(directory)?;
    Ok(log.read(whole(&log), None, |_, _, _| Ok(()))?)
}

/// Has a writer begin and close: the first block of the epoch, and the mark that the log was closed.
fn mark(directory: &Path, start: &Start) -> Result<(), String> {
    let settings = Settings {
        // Enough for marks: the server makes segments of its own length.
        segment_bytes: 64 << 10,
        block_bytes_max: 4096,
        pending_bytes_max: 1 << 20,
        append_bytes_max: 0,
        ..Settings::default()
    };
    let files = LogFiles::new(directory, LogWriteMode::Fdatasync);
    let mut log = GroupCommit::new(settings, start, checksum());
    let settle = |log: &mut GroupCommit| {
        while let Some(operation) = log.poll_operation() {
            log.handle_completion(files.perform(operation));
        }
        match (log.failure(), log.shortage()) {
            (Some(failure), _) => Err(failure.to_string()),
            (None, Some(failure)) => Err(failure.to_string()),
            (None, None) => Ok(()),
        }
    };
    settle(&mut log)?;
    log.close();
    settle(&mut log)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_loses_nothing() {
        assert_eq!(Json(b"a\"b\\c\n\r\t\x01\x7f").to_string(), r#""a\"b\\c\n\r\t\u0001\u007f""#);
        assert_eq!(Json("ü→".as_bytes()).to_string(), "\"ü→\"");
        assert_eq!(Json(b"\xff\x00").to_string(), "{\"hex\":\"ff00\"}");
        assert_eq!(Json(b"").to_string(), "\"\"");
    }

    #[test]
    fn every_effect_has_its_line() {
        let mut payload = Vec::new();
        let set = Mutation::Set { key: b"k", value: b"\xfe", expires_at: Some(7), encoding: Encoding::Raw };
        for mutation in [
            set,
            Mutation::Append { key: b"k", bytes: b"x" },
            Mutation::WriteRange { key: b"k", offset: 9, bytes: b"" },
            Mutation::SetExpiry { key: b"k", expires_at: None },
            Mutation::Remove { key: b"k" },
            Mutation::Clear,
        ] {
            mutation.encode(&mut payload);
        }
        let mut out = String::new();
        assert!(describe(&mut out, Lsn(3), 1_500_000, &payload));
        let head = r#"{"lsn":3,"time":"1970-01-01T00:00:01.500000Z","kind":"#;
        let expected = [
            r#""set","key":"k","value":{"hex":"fe"},"expires_at_ms":7,"encoding":"raw"}"#,
            r#""append","key":"k","bytes":"x"}"#,
            r#""write_range","key":"k","offset":9,"bytes":""}"#,
            r#""set_expiry","key":"k","expires_at_ms":null}"#,
            r#""remove","key":"k"}"#,
            r#""clear"}"#,
        ];
        assert!(out.lines().eq(expected.map(|tail| format!("{head}{tail}"))), "{out}");
        let mut out = String::new();
        assert!(!describe(&mut out, Lsn(3), 0, &[6, 99]));
        assert!(
            out.lines().count() == 2 && out.contains("\"malformed\"") && out.contains("{\"hex\":\"63\"}")
        );
    }
}
