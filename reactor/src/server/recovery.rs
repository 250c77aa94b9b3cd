//! Recovery: what the log holds, record by record, before the server accepts anybody.
//!
//! `wal` decides what is a torn tail, which is cut and said, and what is damage, which is refused; here files are
//! read, progress is shown and the decision is put into words. Every file is flushed before its content is
//! believed: it may be in the page cache only, and a crash could take back what was served.

use crate::clock::monotonic_ns;
use crate::io::log_files::{self, LogDirectory, LogListing, LogSource, checksum};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;
use wal::block::{BLOCK_HEADER_BYTES, BlockHeader};
use wal::checksum::Checksum;
use wal::damage::{Damage, DamageKind};
use wal::end_of_log::{EndOfLog, Tail};
use wal::group_commit::Start;
use wal::lsn::{Epoch, Lsn};
use wal::reader::{HEAD_BYTES, LogReader, ReadOptions, ReadRequest, SegmentFile, Until};
use wal::segment::{FIRST_BLOCK_OFFSET, FileName, SegmentHeader, Sequence};

/// Bytes that the kernel is asked to read before they are wanted.
const READ_AHEAD_BYTES: u64 = 4 << 20;
/// Bytes of segments whose reading begins with the start.
const EXPECTED_BYTES_MAX: u64 = 256 << 20;

/// Where recovery stops, as an operator writes it: an LSN, or a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecoverTo {
    /// After this record.
    Lsn(Lsn),
    /// After the last record of this microsecond since 1970.
    UnixMicros(u64),
}

impl FromStr for RecoverTo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(lsn) = text.parse() {
            return Ok(RecoverTo::Lsn(Lsn(lsn)));
        }
        parse_time(text).map(RecoverTo::UnixMicros).ok_or_else(|| {
            format!(
                "expected an LSN as 12345, or a time as 2026-11-22T14:30:00Z, 2026-11-22T15:30:00.5+01:00 or \
                 @1795357800, found {text:?}"
            )
        })
    }
}

impl From<RecoverTo> for Until {
    fn from(to: RecoverTo) -> Until {
        match to {
            RecoverTo::Lsn(lsn) => Until::Lsn(lsn),
            RecoverTo::UnixMicros(time) => Until::UnixMicros(time),
        }
    }
}

/// How to recover.
#[derive(Clone, Copy, Debug)]
pub struct RecoveryOptions {
    /// The first record wanted: the one after those that a snapshot holds.
    pub from: Lsn,
    /// Where to stop; records behind it are left out for good.
    pub to: Option<RecoverTo>,
    /// What a snapshot knows to have been durable.
    pub durable_at_least: Lsn,
    /// How often progress is reported.
    pub report_period: Duration,
    /// Random, new for each start.
    pub uid_seed: u64,
    /// What blocks are checked with.
    pub checksum: Checksum,
}

impl RecoveryOptions {
    /// All of a log.
    pub fn new(uid_seed: u64) -> RecoveryOptions {
        RecoveryOptions {
            from: Lsn::FIRST,
            to: None,
            durable_at_least: Lsn::ZERO,
            report_period: Duration::from_secs(1),
            uid_seed,
            checksum: checksum(),
        }
    }
}

/// What was recovered.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// How the log goes on.
    pub start: Start,
    /// Where and why it ended.
    pub end: EndOfLog,
    /// How long it took.
    pub elapsed: Duration,
}

impl Recovered {
    /// Bytes of the log a second.
    pub fn bytes_per_second(&self) -> f64 {
        self.end.bytes_read as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// What there is to say, in one line; nothing of an empty log.
    pub fn line(&self) -> Option<String> {
        let EndOfLog { records, bytes_read, next_lsn, .. } = self.end;
        self.end.file?;
        let seconds = self.elapsed.as_secs_f64();
        let rate = match bytes_read {
            0 => String::new(),
            bytes => format!(
                ", {:.2} s a GB, {:.0} records a second",
                seconds / (bytes as f64 / 1e9),
                records as f64 / seconds.max(1e-9)
            ),
        };
        Some(format!(
            "the log was recovered up to LSN {}: {records} records from {} in {seconds:.2} s{rate}",
            next_lsn.previous(),
            Bytes(bytes_read)
        ))
    }

    /// What was cut, in one line, if anything was.
    pub fn cut(&self) -> Option<String> {
        match &self.end.tail {
            Tail::Open { .. } if self.end.is_torn() => Some(format!(
                "torn tail: {}; what was cut was being written when the log ended, and no later block says that it was \
                 durable",
                self.end
            )),
            Tail::Until => Some(format!(
                "{}; what follows is left out, and the log goes on with LSN {} under epoch {}",
                self.end, self.start.next_lsn, self.start.epoch
            )),
            _ => None,
        }
    }
}

/// Why a log cannot be recovered.
#[derive(Debug)]
pub enum RecoveryError {
    /// What was acknowledged is not there.
    Damage(PathBuf, Damage),
    /// A record that is intact and cannot be applied.
    Record {
        /// Where the log is.
        directory: PathBuf,
        /// Which.
        lsn: Lsn,
        /// Why.
        why: String,
    },
    /// A file cannot be read.
    Io {
        /// Which.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// From where on.
        offset: u64,
        /// What the system said.
        error: io::Error,
    },
    /// The log ends before the place where recovery was to stop.
    NotReached {
        /// The last record there is.
        last: Lsn,
        /// The one that was wanted.
        wanted: Lsn,
    },
    /// The log was cut at the wanted place before.
    AlreadyCut {
        /// What began there.
        epoch: u64,
        /// With which record.
        first: Lsn,
    },
    /// The encrypted journal cannot be opened or read.
    Journal(String),
    /// No snapshot, with the log behind it, has what was acknowledged.
    Snapshot(String),
}

impl fmt::Display for RecoveryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecoveryError::Damage(directory, damage) => {
                let directory = directory.display();
                write!(f, "the log is damaged: {directory}/{damage}")?;
                if damage.kind != DamageKind::Version {
                    write!(
                        f,
                        " Try `millrace log verify {directory}`, then `millrace log repair {directory}`."
                    )?;
                }
                Ok(())
            }
            RecoveryError::Record { directory, lsn, why } => write!(
                f,
                "{}: the record with LSN {lsn} is intact and cannot be applied: {why}; was it written by another \
                 version? `millrace log dump --from {lsn} --until {lsn} {0}` shows it, and --recover-to {} goes on \
                 without it and what follows",
                directory.display(),
                lsn.previous()
            ),
            RecoveryError::Io { path, doing, offset, error } => {
                write!(f, "{doing} {} at offset {offset}: {}", path.display(), log_files::in_words(error))
            }
            RecoveryError::NotReached { last, wanted } => write!(
                f,
                "--recover-to {wanted}: the log ends with LSN {last}; name that or an earlier one, or leave the option \
                 out"
            ),
            RecoveryError::AlreadyCut { epoch, first } => write!(
                f,
                "recover-to: the log was cut there already: epoch {epoch} begins at LSN {first}; start without recover-to \
                 to keep what was written since, or name an earlier place"
            ),
            RecoveryError::Journal(text) | RecoveryError::Snapshot(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for RecoveryError {}

/// Reads the log of a directory that the caller has locked. Each record from `options.from` on goes to `each`,
/// with its LSN and time; lines about the progress of a long recovery go to `report`.
pub fn recover(
    directory: &Path,
    options: RecoveryOptions,
    report: &mut dyn FnMut(&str),
    each: impl FnMut(Lsn, u64, &[u8]) -> Result<(), String>,
) -> Result<Recovered, RecoveryError> {
    recover_from(LogDirectory::new(directory), options, report, each)
}

/// [`recover`], wherever the files are.
pub fn recover_from(
    source: impl LogSource,
    options: RecoveryOptions,
    report: &mut dyn FnMut(&str),
    each: impl FnMut(Lsn, u64, &[u8]) -> Result<(), String>,
) -> Result<Recovered, RecoveryError> {
    let files = LogOnDisk::of(source, options.checksum)?;
    files.flush()?;
    files.recover(options, report, each)
}

/// What the headers of a log's segments say, without a look at its records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct History {
    /// The first record there is; `None`: there is none.
    pub(crate) first_lsn: Option<Lsn>,
    /// The histories of which there are segments, and the first record of each.
    pub(crate) epochs: Vec<(Epoch, Lsn)>,
    /// About how many records there are: a hint, never a promise.
    pub(crate) records: u64,
    /// The first record of the last segment that has any: the log goes as far at least.
    pub(crate) last_known: Lsn,
}

impl History {
    /// The last history, and its first record.
    pub(crate) fn latest(&self) -> Option<(Epoch, Lsn)> {
        self.epochs.iter().copied().max()
    }

    /// So many records there are behind one at least.
    pub(crate) fn records_behind(&self, lsn: Lsn) -> u64 {
        self.last_known.0.saturating_sub(lsn.next().0)
    }

    /// Whether what was the state after a record of an epoch was not left out for good since.
    pub(crate) fn includes(&self, epoch: Epoch, lsn: Lsn) -> bool {
        self.epochs.iter().all(|&(later, first)| later <= epoch || lsn < first)
    }
}

/// The files of a log, open.
#[derive(Debug)]
pub(crate) struct LogOnDisk<S: LogSource = LogDirectory> {
    source: S,
    checksum: Checksum,
    pub(crate) directory: PathBuf,
    pub(crate) listing: LogListing,
    /// In the listing's order.
    files: Vec<S::File>,
    heads: Vec<Vec<u8>>,
}

/// What reading came to.
pub(crate) enum Read {
    /// The end of the log.
    End(EndOfLog),
    /// Damage, and the end as it would be if the log were cut there; none if no block was looked at.
    Damaged(PathBuf, Damage, Option<EndOfLog>),
}

impl Read {
    pub(crate) fn into_end(self) -> Result<EndOfLog, RecoveryError> {
        match self {
            Read::End(end) => Ok(end),
            Read::Damaged(directory, damage, _) => Err(RecoveryError::Damage(directory, damage)),
        }
    }
}

/// When and where to say how far it is.
pub(crate) struct Progress<'a> {
    begun: u64,
    period: Duration,
    last: u64,
    report: &'a mut dyn FnMut(&str),
}

impl Progress<'_> {
    fn step(&mut self, reader: &LogReader, records: u64) {
        let now = monotonic_ns();
        if now - self.last < self.period.as_nanos() as u64 {
            return;
        }
        self.last = now;
        let (done, total) = reader.progress();
        let seconds = (now - self.begun) as f64 / 1e9;
        (self.report)(&format!(
            "recovering the log: {} of {} ({} %), {records} records, {} a second",
            Bytes(done),
            Bytes(total),
            done * 100 / total.max(1),
            Bytes((done as f64 / seconds) as u64),
        ));
    }
}

impl LogOnDisk {
    pub(crate) fn open(directory: &Path) -> Result<LogOnDisk, RecoveryError> {
        LogOnDisk::of(LogDirectory::new(directory), checksum())
    }
}

impl<S: LogSource> LogOnDisk<S> {
    pub(crate) fn of(source: S, checksum: Checksum) -> Result<LogOnDisk<S>, RecoveryError> {
        let directory = source.directory().to_path_buf();
        let failed = |doing, path: PathBuf, error| RecoveryError::Io { path, doing, offset: 0, error };
        let listing = source.list().map_err(|error| failed("listing", directory.clone(), error))?;
        let (mut files, mut heads) = (Vec::new(), Vec::new());
        for &(sequence, length) in &listing.segments {
            let path = directory.join(FileName::Segment(sequence).to_string());
            let file = source.open(sequence).map_err(|error| failed("opening", path.clone(), error))?;
            let mut head = vec![0; HEAD_BYTES.min(length as usize)];
            read_exact_at(&source, &file, &mut head).map_err(|error| failed("reading", path, error))?;
            files.push(file);
            heads.push(head);
        }
        Ok(LogOnDisk { source, checksum, directory, listing, files, heads })
    }

    fn path(&self, sequence: Sequence) -> PathBuf {
        self.directory.join(FileName::Segment(sequence).to_string())
    }

    /// What is read is to be on the disk and not only in memory.
    pub(crate) fn flush(&self) -> Result<(), RecoveryError> {
        self.flush_behind(Lsn::ZERO)
    }

    /// The same of what may be read behind a record that a snapshot holds: what is before it was durable when the snapshot
    /// got its name.
    pub(crate) fn flush_behind(&self, held: Lsn) -> Result<(), RecoveryError> {
        let failed = |path, error| RecoveryError::Io { path, doing: "flushing", offset: 0, error };
        let first = first_behind(self.headers().map(|(.., block)| block.map(|b| b.first_whole_lsn())), held);
        for (file, &(sequence, _)) in self.files.iter().zip(&self.listing.segments).skip(first) {
            self.source.flush(file).map_err(|error| failed(self.path(sequence), error))?;
        }
        self.source.flush_directory().map_err(|error| failed(self.directory.clone(), error))
    }

    /// What is behind a record that a snapshot holds will be read, up to the end of the last segment: the system may begin.
    pub(crate) fn expect_tail(&self, held: Lsn) {
        let first = first_behind(self.headers().map(|(.., block)| block.map(|b| b.first_whole_lsn())), held);
        let tail = self.listing.segments.iter().skip(first);
        let within = tail.scan(0, |bytes, &(sequence, length)| {
            *bytes += length;
            (*bytes <= EXPECTED_BYTES_MAX || *bytes == length).then_some(sequence)
        });
        self.source.expect(within.collect());
    }

    /// Every segment's number, length, header if it has one, and first block's header if it has begun.
    pub(crate) fn headers(
        &self,
    ) -> impl Iterator<Item = (Sequence, u64, Option<SegmentHeader>, Option<BlockHeader>)> {
        let checksum = self.checksum;
        self.listing.segments.iter().zip(&self.heads).map(move |(&(sequence, length), head)| {
            let header = SegmentHeader::decode(head, checksum).ok();
            let block = header.and_then(|header| {
                let page = head.get(FIRST_BLOCK_OFFSET as usize..)?;
                BlockHeader::decode(page, FIRST_BLOCK_OFFSET, header.seed(checksum), checksum)
            });
            (sequence, length, header, block)
        })
    }

    /// What the headers say.
    pub(crate) fn history(&self) -> History {
        let (mut first, mut last, mut full_bytes, mut bytes) = (None, Lsn::ZERO, 0, 0);
        let mut epochs = Vec::new();
        for (_, length, header, block) in self.headers() {
            epochs.extend(header.map(|header| (header.epoch, header.epoch_first_lsn)));
            let Some(block) = block else { continue };
            first = first.or(Some(block.first_whole_lsn()));
            (last, full_bytes) = (block.first_lsn, bytes);
            bytes += length;
        }
        epochs.dedup();
        // What stands in the last segment is not said anywhere; as much as in the others, at most.
        let records = match first {
            Some(first) if full_bytes > 0 => {
                (last.0.saturating_sub(first.0) as f64 * bytes as f64 / full_bytes as f64) as u64
            }
            _ => 0,
        };
        History { first_lsn: first, epochs, records, last_known: last }
    }

    /// Reads what is there from `options.from` on: see [`recover`]. The files are flushed.
    pub(crate) fn recover(
        &self,
        options: RecoveryOptions,
        report: &mut dyn FnMut(&str),
        each: impl FnMut(Lsn, u64, &[u8]) -> Result<(), String>,
    ) -> Result<Recovered, RecoveryError> {
        let begun = monotonic_ns();
        let read = ReadOptions {
            from: options.from,
            until: options.to.map_or(Until::End, Until::from),
            durable_at_least: options.durable_at_least,
            may_read_heads: true,
            ..ReadOptions::default()
        };
        let period = options.report_period;
        let end = self.read(read, Some(Progress { begun, period, last: begun, report }), each)?.into_end()?;
        if let Some(RecoverTo::Lsn(wanted)) = options.to
            && end.next_lsn <= wanted
        {
            return Err(RecoveryError::NotReached { last: end.next_lsn.previous(), wanted });
        }
        let mut start = end.start(&self.listing.spares, options.uid_seed);
        self.pass_over(&mut start);
        Ok(Recovered { start, end, elapsed: Duration::from_nanos(monotonic_ns() - begun) })
    }

    /// The last record of a time or before; the one before the first, if that is later.
    pub(crate) fn last_until(&self, unix_us: u64) -> Result<Lsn, RecoveryError> {
        let from = self.first_lsn();
        let read = ReadOptions { from, until: Until::UnixMicros(unix_us), ..ReadOptions::default() };
        Ok(self.read(read, None, |_, _, _| Ok(()))?.into_end()?.next_lsn.previous())
    }

    /// The first record there is; a log whose beginning was released begins later than with LSN 1.
    pub(crate) fn first_lsn(&self) -> Lsn {
        let first = self.headers().find_map(|(.., block)| block.map(|block| block.first_whole_lsn()));
        first.unwrap_or(Lsn::FIRST)
    }

    /// New segments get higher numbers than those that were set aside.
    pub(crate) fn pass_over(&self, start: &mut Start) {
        if let Some(sequence) = self.listing.set_aside {
            start.next_sequence = start.next_sequence.max(sequence.next());
        }
    }

    /// Reads records until the end, damage, or an error of `each`.
    pub(crate) fn read(
        &self,
        options: ReadOptions,
        mut progress: Option<Progress<'_>>,
        mut each: impl FnMut(Lsn, u64, &[u8]) -> Result<(), String>,
    ) -> Result<Read, RecoveryError> {
        let files: Vec<SegmentFile<'_>> = self
            .listing
            .segments
            .iter()
            .zip(&self.heads)
            .map(|(&(sequence, length), head)| SegmentFile { sequence, length, head })
            .collect();
        let mut reader = match LogReader::open(&files, options, self.checksum) {
            Ok(reader) => reader,
            Err(damage) => return Ok(Read::Damaged(self.directory.clone(), damage, None)),
        };
        let (mut memory, mut records) = (Vec::new(), 0);
        loop {
            loop {
                match reader.next_record() {
                    Ok(Some(record)) => {
                        records += 1;
                        let lsn = record.lsn;
                        each(lsn, record.unix_us, record.payload).map_err(|why| RecoveryError::Record {
                            directory: self.directory.clone(),
                            lsn,
                            why,
                        })?;
                    }
                    Ok(None) => break,
                    Err(damage) => {
                        let cut = reader.cut_at_damage();
                        return Ok(Read::Damaged(self.directory.clone(), damage, cut));
                    }
                }
            }
            if let Some(progress) = &mut progress {
                progress.step(&reader, records);
            }
            let Some(request) = reader.poll_read() else {
                return Ok(Read::End(reader.end().expect("nothing more is wanted").clone()));
            };
            self.fill(request, &mut memory)?;
            memory = reader.handle_read(memory);
        }
    }

    /// Reads what is wanted, and has the kernel begin with what comes next.
    fn fill(&self, request: ReadRequest, memory: &mut Vec<u8>) -> Result<(), RecoveryError> {
        let ReadRequest { sequence, offset, length, heads_only } = request;
        let segments = &self.listing.segments;
        let index = segments.binary_search_by_key(&sequence, |segment| segment.0);
        let index = index.expect("the reader wants what it was given");
        let behind = offset + length as u64;
        // Once for so many bytes, whatever is read at once.
        if behind / READ_AHEAD_BYTES != offset / READ_AHEAD_BYTES || length as u64 >= READ_AHEAD_BYTES {
            if behind < segments[index].1 {
                self.source.read_ahead(&self.files[index], behind, READ_AHEAD_BYTES);
            } else if let Some(next) = self.files.get(index + 1) {
                self.source.read_ahead(next, 0, READ_AHEAD_BYTES);
            }
        }
        // Only what grows is cleared; what is there is overwritten.
        memory.resize(request.bytes(), 0);
        let read = if heads_only {
            let found = self.source.read_heads(&self.files[index], memory, BLOCK_HEADER_BYTES, offset);
            let found = found.map_err(|error| {
                let path = self.path(sequence);
                RecoveryError::Io { path, doing: "reading", offset, error }
            })?;
            found * BLOCK_HEADER_BYTES
        } else {
            self.read_file(index, memory, offset)?
        };
        memory.truncate(read);
        Ok(())
    }

    /// Reads what is there; less than is asked for if the file became shorter: the reader says what that means.
    fn read_file(&self, index: usize, bytes: &mut [u8], offset: u64) -> Result<usize, RecoveryError> {
        let mut read = 0;
        while read < bytes.len() {
            match self.source.read_at(&self.files[index], &mut bytes[read..], offset + read as u64) {
                Ok(0) => break,
                Ok(more) => read += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let path = self.path(self.listing.segments[index].0);
                    let offset = offset + read as u64;
                    return Err(RecoveryError::Io { path, doing: "reading", offset, error });
                }
            }
        }
        Ok(read)
    }
}

/// The segment in which the first record behind `held` may begin, of those whose first records these are; `None`: one that
/// has not begun, or whose beginning cannot be read.
fn first_behind(firsts: impl Iterator<Item = Option<Lsn>>, held: Lsn) -> usize {
    firsts
        .enumerate()
        .filter(|(_, first)| first.is_some_and(|first| first <= held.next()))
        .last()
        .map_or(0, |(at, _)| at)
}

/// Reads the beginning of a file.
fn read_exact_at<S: LogSource>(source: &S, file: &S::File, bytes: &mut [u8]) -> io::Result<()> {
    let mut read = 0;
    while read < bytes.len() {
        match source.read_at(file, &mut bytes[read..], read as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(more) => read += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A number of bytes, as people read it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bytes(pub(crate) u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes @ 0..10_000 => write!(f, "{bytes} B"),
            bytes @ 10_000..10_000_000 => write!(f, "{:.1} kB", bytes as f64 / 1e3),
            bytes @ 10_000_000..1_000_000_000 => write!(f, "{:.1} MB", bytes as f64 / 1e6),
            bytes => write!(f, "{:.2} GB", bytes as f64 / 1e9),
        }
    }
}

/// A time of the log as RFC 3339 writes it, in UTC, to the microsecond.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Time(pub(crate) u64);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, micros) = (self.0 / 1_000_000, self.0 % 1_000_000);
        let (year, month, day) = civil((seconds / 86_400) as i64);
        let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
    }
}

/// Day of the proleptic Gregorian calendar, from days since 1970 (the year is counted from March, so that the
/// leap day is its last).
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let (day, month) = (day_of_year - (153 * march_month + 2) / 5 + 1, (march_month + 2) % 12 + 1);
    (year + era * 400 + i64::from(month <= 2), month, day)
}

/// Days since 1970, if there is such a day.
fn days(year: i64, month: i64, day: i64) -> Option<i64> {
    let shifted_year = year - i64::from(month <= 2);
    let (era, year_of_era) = (shifted_year.div_euclid(400), shifted_year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * 146_097 + day_of_era - 719_468;
    ((1..=12).contains(&month) && civil(days) == (year, month, day)).then_some(days)
}

/// Microseconds since 1970 of a time as RFC 3339 writes it, or `@` and seconds.
fn parse_time(text: &str) -> Option<u64> {
    let fraction = |digits: &str| -> Option<u64> {
        let valid = (1..=6).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
        valid.then(|| format!("{digits:0<6}").parse().ok())?
    };
    let number = |digits: &str, length: usize| -> Option<i64> {
        let valid = digits.len() == length && digits.bytes().all(|byte| byte.is_ascii_digit());
        valid.then(|| digits.parse().ok())?
    };
    if let Some(seconds) = text.strip_prefix('@') {
        let (seconds, micros) = match seconds.split_once('.') {
            Some((seconds, digits)) => (seconds, fraction(digits)?),
            None => (seconds, 0),
        };
        return number(seconds, seconds.len())?
            .checked_mul(1_000_000)?
            .checked_add_unsigned(micros)?
            .try_into()
            .ok();
    }
    let (date, time) = text.split_once(['T', 't', ' '])?;
    let mut date = date.splitn(3, '-');
    let days = days(number(date.next()?, 4)?, number(date.next()?, 2)?, number(date.next()?, 2)?)?;
    let (time, offset_minutes) = match time.strip_suffix(['Z', 'z']) {
        Some(time) => (time, 0),
        None => {
            let at = time.rfind(['+', '-'])?;
            let (hours, minutes) = time[at + 1..].split_once(':')?;
            let (hours, minutes) = (number(hours, 2)?, number(minutes, 2)?);
            let sign = if time.as_bytes()[at] == b'-' { -1 } else { 1 };
            ((hours < 24 && minutes < 60).then_some(&time[..at])?, sign * (hours * 60 + minutes))
        }
    };
    let (time, micros) = match time.split_once('.') {
        Some((time, digits)) => (time, fraction(digits)?),
        None => (time, 0),
    };
    let mut time = time.splitn(3, ':');
    let (hour, minute, second) =
        (number(time.next()?, 2)?, number(time.next()?, 2)?, number(time.next()?, 2)?);
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let seconds = days * 86_400 + hour * 3600 + (minute - offset_minutes) * 60 + second;
    (seconds * 1_000_000 + micros as i64).try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_written() {
        for (text, unix_us) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T23:59:59Z", 951_868_799_000_000),
            ("2026-11-22T14:30:00.25Z", 1_795_357_800_250_000),
            ("2026-11-22T15:30:00.25+01:00", 1_795_357_800_250_000),
            ("2026-11-22T09:00:00.25-05:30", 1_795_357_800_250_000),
            ("@1795357800.25", 1_795_357_800_250_000),
            ("@0", 0),
        ] {
            assert_eq!(parse_time(text), Some(unix_us), "{text}");
        }
        assert_eq!(Time(1_795_357_800_250_000).to_string(), "2026-11-22T14:30:00.250000Z");
        for day in (0..60_000).step_by(17) {
            let time = Time(day * 86_400_000_000 + 86_399_999_999);
            assert_eq!(parse_time(&time.to_string()), Some(time.0), "{time}");
        }
        for wrong in [
            "",
            "yesterday",
            "2026-11-22",
            "2026-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-11-22T24:00:00Z",
            "2026-11-22T00:00:00",
            "2026-11-22T00:00:00.1234567Z",
            "@",
            "@-1",
            "1969-12-31T23:59:59Z",
        ] {
            assert_eq!(parse_time(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_a_snapshot_holds_need_not_be_flushed_and_all_else_must() {
        let firsts = [Some(Lsn(1)), Some(Lsn(10)), None, Some(Lsn(20)), None];
        for (held, first) in [(0, 0), (8, 0), (9, 1), (10, 1), (18, 1), (19, 3), (500, 3)] {
            assert_eq!(
                first_behind(firsts.into_iter(), Lsn(held)),
                first,
                "all up to LSN {held} is in the snapshot"
            );
        }
        assert_eq!(first_behind([None, Some(Lsn(7))].into_iter(), Lsn(3)), 0, "a log with a hole");
    }

    #[test]
    fn the_place_to_stop_is_an_lsn_or_a_time() {
        assert_eq!("17".parse(), Ok(RecoverTo::Lsn(Lsn(17))));
        assert_eq!("@17".parse(), Ok(RecoverTo::UnixMicros(17_000_000)));
        let refused = "noon".parse::<RecoverTo>().unwrap_err();
        assert!(refused.contains("expected an LSN") && refused.contains("\"noon\""), "{refused}");
    }
}
