//! The disk as the only file of a FUSE file system, with its power switch, its faults and its counters.
//!
//! One thread reads requests from /dev/fuse and answers them from [`CachedDisk`]; a second one answers flushes that
//! are made to take their time, so that a cut can end them. The file is opened with FOPEN_DIRECT_IO: the kernel
//! keeps nothing of it, each request of the loop device above arrives here, and what is volatile is only what the
//! disk says is volatile.
//!
//! Each time the power comes back the file gets a new handle number. A loop device that a killed process keeps
//! alive has an old one, and is told EIO for ever: nothing from before a cut can be written after it.
//!
//! A slow flush delays more than its own requester: the loop device's worker waits for it, and with it every later
//! request of the same control group, as on a disk that does nothing else while it flushes.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite,
    Request, WriteFlags,
};

use super::cache::{CachedDisk, CutStyle, Fate, Mark, SECTOR};

/// The name of the file.
pub(super) const FILE_NAME: &str = "disk";

/// The inode of the file; the directory is 1.
const FILE: INodeNo = INodeNo(2);

/// Nothing about the file ever changes but its bytes.
const FOREVER: Duration = Duration::from_secs(1 << 30);

/// FALLOC_FL_PUNCH_HOLE and FALLOC_FL_ZERO_RANGE: both mean zeros on a disk.
const MAKES_ZEROS: i32 = 0x02 | 0x10;

/// What the disk has seen since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Read requests answered.
    pub reads: u64,
    /// Write requests taken into the cache. One of a program can arrive as several, or several as one.
    pub writes: u64,
    /// Sectors in them.
    pub sectors_written: u64,
    /// Flushes answered with success, whether or not they were honoured.
    pub flushes: u64,
    /// Writes that were made to fail.
    pub writes_failed: u64,
    /// Flushes that were made to fail.
    pub flushes_failed: u64,
    /// Requests that met a disk without power.
    pub refused: u64,
    /// Power cuts.
    pub cuts: u64,
    /// Sectors that cuts and failed flushes took.
    pub sectors_dropped: u64,
    /// Sectors that were not flushed and survived a cut.
    pub sectors_kept: u64,
    /// Sectors that became durable without a flush because the cache was full.
    pub sectors_destaged: u64,
}

/// Requests that fail: from which on, how many, with what.
#[derive(Clone, Copy, Debug)]
struct Fault {
    /// Requests that still pass.
    passing: u64,
    /// Requests that fail after them.
    failing: u64,
    errno: i32,
}

/// Whether this request is one that fails.
fn strike(fault: &mut Option<Fault>) -> Option<i32> {
    let current = fault.as_mut()?;
    if current.passing > 0 {
        current.passing -= 1;
        return None;
    }
    let errno = current.errno;
    current.failing -= 1;
    if current.failing == 0 {
        *fault = None;
    }
    Some(errno)
}

/// A flush that is not answered yet.
struct PendingFlush {
    due: Instant,
    mark: Mark,
    errno: Option<i32>,
    reply: ReplyEmpty,
}

/// Everything behind the lock.
struct State {
    disk: CachedDisk,
    power: bool,
    /// The handle of every file opened since the power came.
    handle: u64,
    open_files: usize,
    pending: VecDeque<PendingFlush>,
    flush_delay: Duration,
    honour_flushes: bool,
    write_fault: Option<Fault>,
    flush_fault: Option<Fault>,
    counters: Counters,
    stopped: bool,
}

impl State {
    /// Whether a request through this handle reaches the disk. Counts those that do not.
    fn reached_by(&mut self, handle: FileHandle) -> bool {
        let reached = self.power && handle.0 == self.handle;
        self.counters.refused += u64::from(!reached);
        reached
    }

    fn write(&mut self, handle: FileHandle, offset: u64, data: &[u8]) -> Result<(), Errno> {
        if !self.reached_by(handle) {
            return Err(Errno::EIO);
        }
        if let Some(errno) = strike(&mut self.write_fault) {
            self.counters.writes_failed += 1;
            return Err(Errno::from_i32(errno));
        }
        if !self.disk.write(offset, data) {
            return Err(Errno::EINVAL);
        }
        self.counters.writes += 1;
        self.counters.sectors_written += (data.len() / SECTOR) as u64;
        Ok(())
    }

    fn flush(&mut self, mark: Mark, errno: Option<i32>) -> Result<(), Errno> {
        if let Some(errno) = errno {
            self.counters.flushes_failed += 1;
            self.counters.sectors_dropped += self.disk.fail_flush(mark);
            return Err(Errno::from_i32(errno));
        }
        if self.honour_flushes {
            self.disk.flush(mark);
        }
        self.counters.flushes += 1;
        Ok(())
    }
}

/// The disk, shared by the file system's threads and the one who holds the switch.
pub(super) struct Shared {
    state: Mutex<State>,
    /// A flush was queued or answered, a file was closed, or all is over.
    changed: Condvar,
}

impl Shared {
    pub(super) fn new(size: usize) -> Arc<Shared> {
        Arc::new(Shared {
            state: Mutex::new(State {
                disk: CachedDisk::new(size),
                power: true,
                handle: 1,
                open_files: 0,
                pending: VecDeque::new(),
                flush_delay: Duration::ZERO,
                honour_flushes: true,
                write_fault: None,
                flush_fault: None,
                counters: Counters::default(),
                stopped: false,
            }),
            changed: Condvar::new(),
        })
    }

    /// A panic elsewhere must not leave the kernel waiting for answers: the lock is never poisoned.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on every request fails, those that wait too, and the cache is what `style` leaves of it.
    pub(super) fn cut(&self, style: CutStyle, seed: u64) -> Fate {
        let mut state = self.lock();
        if !state.power {
            return Fate::default();
        }
        state.power = false;
        let fate = state.disk.cut(style, seed);
        state.counters.cuts += 1;
        state.counters.sectors_dropped += fate.dropped;
        state.counters.sectors_kept += fate.kept;
        self.changed.notify_all();
        fate
    }

    /// The power is back, for files opened from here on.
    pub(super) fn power_on(&self) {
        let mut state = self.lock();
        state.power = true;
        state.handle += 1;
    }

    pub(super) fn has_power(&self) -> bool {
        self.lock().power
    }

    pub(super) fn set_flush_delay(&self, delay: Duration) {
        self.lock().flush_delay = delay;
    }

    pub(super) fn honour_flushes(&self, honour: bool) {
        self.lock().honour_flushes = honour;
    }

    pub(super) fn fail_writes(&self, passing: u64, failing: u64, errno: i32) {
        self.lock().write_fault = Some(Fault { passing, failing, errno });
    }

    pub(super) fn fail_flushes(&self, passing: u64, failing: u64, errno: i32) {
        self.lock().flush_fault = Some(Fault { passing, failing, errno });
    }

    pub(super) fn stop_failing(&self) {
        let mut state = self.lock();
        state.write_fault = None;
        state.flush_fault = None;
    }

    pub(super) fn counters(&self) -> Counters {
        let state = self.lock();
        Counters { sectors_destaged: state.disk.destaged, ..state.counters }
    }

    /// Flushes that have arrived and are not answered.
    pub(super) fn flushes_pending(&self) -> usize {
        self.lock().pending.len()
    }

    /// Waits until nobody has the file open, or the time is up. True if nobody has.
    pub(super) fn wait_until_closed(&self, patience: Duration) -> bool {
        let state = self.lock();
        let waited = self.changed.wait_timeout_while(state, patience, |state| state.open_files > 0);
        waited.unwrap_or_else(PoisonError::into_inner).0.open_files == 0
    }

    /// Ends [`Shared::answer_flushes`]; what waits is refused.
    pub(super) fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }

    /// The second thread: answers the flushes of a slow disk when they are due, and all of them when the power goes.
    pub(super) fn answer_flushes(&self) {
        let mut state = self.lock();
        loop {
            let gone = !state.power || state.stopped;
            let left = state.pending.front().map(|flush| flush.due.saturating_duration_since(Instant::now()));
            match left {
                None if state.stopped => return,
                None => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(left) if !gone && !left.is_zero() => {
                    state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
                }
                Some(_) => {
                    let flush = state.pending.pop_front().expect("looked at just now");
                    let answer = if gone {
                        state.counters.refused += 1;
                        Err(Errno::EIO)
                    } else {
                        state.flush(flush.mark, flush.errno)
                    };
                    drop(state);
                    reply_empty(flush.reply, answer);
                    state = self.lock();
                }
            }
        }
    }
}

fn reply_empty(reply: ReplyEmpty, answer: Result<(), Errno>) {
    match answer {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

/// The file system: a directory and a file.
pub(super) struct OneFile(pub(super) Arc<Shared>);

impl OneFile {
    fn attributes(&self, inode: INodeNo) -> Option<FileAttr> {
        let (kind, perm, size) = match inode {
            INodeNo::ROOT => (FileType::Directory, 0o700, 0),
            FILE => (FileType::RegularFile, 0o600, self.0.lock().disk.size() as u64),
            _ => return None,
        };
        let then = SystemTime::UNIX_EPOCH;
        Some(FileAttr {
            ino: inode,
            size,
            blocks: size / SECTOR as u64,
            atime: then,
            mtime: then,
            ctime: then,
            crtime: then,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

impl Filesystem for OneFile {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Requests of the loop device go out together; without this each waits for the one before.
        config.add_capabilities(InitFlags::FUSE_ASYNC_DIO).map_err(|_| {
            io::Error::other("this kernel's FUSE has no asynchronous direct I/O (Linux 3.13)")
        })?;
        config
            .set_max_background(128)
            .map_err(|_| io::Error::other("FUSE refuses 128 background requests"))?;
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.attributes(FILE) {
            Some(attributes) if parent == INodeNo::ROOT && name == FILE_NAME => {
                reply.entry(&FOREVER, &attributes, Generation(0));
            }
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(inode) {
            Some(attributes) => reply.attr(&FOREVER, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let mut state = self.0.lock();
        if !state.power {
            state.counters.refused += 1;
            return reply.error(Errno::EIO);
        }
        state.open_files += 1;
        let flags = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
        reply.opened(FileHandle(state.handle), flags);
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.0.lock().open_files -= 1;
        self.0.changed.notify_all();
        reply.ok();
    }

    /// A close(2), not a flush of a disk.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut state = self.0.lock();
        if !state.reached_by(handle) {
            return reply.error(Errno::EIO);
        }
        state.counters.reads += 1;
        let left = (state.disk.size() as u64).saturating_sub(offset);
        let length = u64::from(size).min(left) as usize;
        match state.disk.read(offset.min(state.disk.size() as u64), length) {
            Some(bytes) => reply.data(bytes),
            None => reply.error(Errno::EIO),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let answer = self.0.lock().write(handle, offset, data);
        match answer {
            Ok(()) => reply.written(data.len() as u32),
            Err(errno) => reply.error(errno),
        }
    }

    fn fsync(&self, _: &Request, _: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        let mut state = self.0.lock();
        if !state.reached_by(handle) {
            return reply.error(Errno::EIO);
        }
        let mark = state.disk.mark();
        let errno = strike(&mut state.flush_fault);
        if state.flush_delay.is_zero() && state.pending.is_empty() {
            let answer = state.flush(mark, errno);
            drop(state);
            return reply_empty(reply, answer);
        }
        let due = Instant::now() + state.flush_delay;
        state.pending.push_back(PendingFlush { due, mark, errno, reply });
        self.0.changed.notify_all();
    }

    /// Zeros, where the block layer asks for them; they are as volatile as any write.
    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        if mode & MAKES_ZEROS == 0 {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let mut state = self.0.lock();
        let mut at = offset;
        let end = offset.saturating_add(length);
        while at < end {
            let part = (end - at).min(ZEROS.len() as u64);
            if let Err(errno) = state.write(handle, at, &ZEROS[..part as usize]) {
                return reply.error(errno);
            }
            at += part;
        }
        reply.ok();
    }
}
