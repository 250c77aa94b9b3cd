//! Snapshots of a simulated server: the real owner, stepped; and the simulated disk as a start reads snapshots from it.
//!
//! [`Taker`] does what the snapshot's threads do, writes beside each other and all else one at a time; each takes its time, so
//! that writes end in any order and the power can go between any two of them. [`SimSnapshots`] copies the regions of a file into memory where a server maps
//! them: a page is checked when it is first used, all the same.

use super::disk::{Disk, InFlight};
use super::server::{Pool, system};
use super::trace;
use reactor::io::snapshot_map::SET_ASIDE_SUFFIX;
use reactor::io::snapshot_source::{Memory, SetAside, SnapshotSource};
use reactor::server::log_handle::Message as LogMessage;
use reactor::server::snapshot_handle::Message;
use reactor::server::snapshot_owner::{OpenedSnapshots, SnapshotOwner, Times, Work};
use snapshot::names::{FileName, Listing, SnapshotId};
use snapshot::operation::{Action, Operation};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};
use store::arena::SegmentSource;
use store::snapshots::Wish;

/// Snapshots that a start or a server has set aside, and the disk does not know yet.
pub type Asides = Arc<Mutex<Vec<SnapshotId>>>;

/// The disk as a start reads snapshots.
pub struct SimSnapshots {
    disk: Rc<RefCell<Disk>>,
    asides: Asides,
}

impl SimSnapshots {
    /// Of this disk.
    pub fn new(disk: &Rc<RefCell<Disk>>) -> SimSnapshots {
        SimSnapshots { disk: Rc::clone(disk), asides: Asides::default() }
    }

    /// Who sets aside says so there.
    pub fn asides(&self) -> Asides {
        Arc::clone(&self.asides)
    }
}

/// Renames what was set aside.
pub fn settle_asides(disk: &mut Disk, asides: &Asides) {
    for id in asides.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
        let name = FileName::Snapshot(id).to_string();
        trace!("{name} is set aside");
        // Another shard was here before.
        let _ = disk.rename(&name, &format!("{name}{SET_ASIDE_SUFFIX}"));
    }
}

impl SnapshotSource for SimSnapshots {
    type File = String;

    fn directory(&self) -> &Path {
        Path::new("disk")
    }

    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.disk.borrow().list().into_iter().map(|(name, _)| name).collect())
    }

    fn open(&self, id: SnapshotId) -> io::Result<String> {
        Ok(FileName::Snapshot(id).to_string())
    }

    fn length(&self, file: &String) -> u64 {
        let listed = self.disk.borrow().list().into_iter().find(|(name, _)| name == file);
        listed.map_or(0, |(_, length)| length)
    }

    fn read(&self, file: &String, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        let read = self.disk.borrow_mut().read(file, &mut bytes, offset).map_err(system)?;
        bytes.truncate(read);
        Ok(bytes)
    }

    fn flush(&self, file: &String) -> io::Result<()> {
        self.disk.borrow_mut().flush(file).map_err(system)?;
        self.disk.borrow_mut().flush_directory().map_err(system)
    }

    fn memory(&self, file: &String, shards: &[Vec<Range<u64>>]) -> io::Result<Vec<Memory>> {
        let region = |range: &Range<u64>| {
            let memory = Pool.allocate((range.end - range.start) as usize).expect("memory");
            match self.disk.borrow_mut().read(file, memory, range.start) {
                Ok(_) => Ok(memory),
                Err(errno) => {
                    Pool.release(memory);
                    Err(system(errno))
                }
            }
        };
        let mut all: Vec<Memory> = Vec::new();
        for ranges in shards {
            all.push((Box::new(Pool), Vec::new()));
            for range in ranges {
                match region(range) {
                    Ok(memory) => all.last_mut().expect("just pushed").1.push(memory),
                    Err(error) => {
                        all.into_iter()
                            .flat_map(|(_, regions)| regions)
                            .for_each(|memory| Pool.release(memory));
                        return Err(error);
                    }
                }
            }
        }
        Ok(all)
    }

    fn empty_memory(&self) -> Box<dyn SegmentSource> {
        Box::new(Pool)
    }

    fn set_aside(&self, id: SnapshotId) -> SetAside {
        let asides = Arc::clone(&self.asides);
        Box::new(move || {
            asides.lock().unwrap_or_else(PoisonError::into_inner).push(id);
            Ok(PathBuf::from(format!("{}{SET_ASIDE_SUFFIX}", FileName::Snapshot(id))))
        })
    }
}

enum Stage {
    /// Until then.
    Waiting(u64),
    /// This is done then.
    Working(Work, u64),
    Over,
}

/// See the module.
pub struct Taker {
    owner: SnapshotOwner,
    messages: Receiver<Message>,
    inbox: VecDeque<Message>,
    stage: Stage,
    /// On their way, and when they will be done.
    writes: Vec<(u64, SnapshotId, Operation)>,
    disk: Rc<RefCell<Disk>>,
    /// Snapshots that were completed.
    pub completed: u64,
    /// Attempts that came to nothing.
    pub failed: u64,
}

impl Taker {
    /// Of what was opened, but for the shards' ends.
    pub fn new(opened: OpenedSnapshots, disk: &Rc<RefCell<Disk>>, now: u64) -> Taker {
        let OpenedSnapshots { owner, ends: _, queue: _, messages } = opened;
        Taker {
            owner,
            messages,
            inbox: VecDeque::new(),
            stage: Stage::Waiting(now),
            writes: Vec::new(),
            disk: Rc::clone(disk),
            completed: 0,
            failed: 0,
        }
    }

    /// Somebody says BGSAVE.
    pub fn wish(&mut self) {
        if self.owner.shared().status.claim() {
            self.inbox.push_back(Message::Wish(Wish::Background));
        }
    }

    /// When something happens next.
    pub fn due(&mut self) -> Option<u64> {
        self.inbox.extend(self.messages.try_iter());
        let next = match &self.stage {
            Stage::Over => return None,
            Stage::Working(_, done) => *done,
            Stage::Waiting(_) if !self.inbox.is_empty() => 0,
            Stage::Waiting(at) => *at,
        };
        self.writes.iter().map(|&(done, ..)| done).chain([next]).min()
    }

    /// Everything has ended as it should.
    pub fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Over)
    }

    /// Goes on. `delay` says how long a piece of work takes; what the log is told comes back.
    pub fn step(&mut self, times: Times, delay: &mut dyn FnMut() -> u64) -> Vec<LogMessage> {
        let mut for_log = Vec::new();
        let now = times.monotonic_ns;
        self.end_writes(now);
        if let Stage::Working(_, done) = &self.stage {
            if *done > now {
                return for_log;
            }
            let Stage::Working(work, _) = std::mem::replace(&mut self.stage, Stage::Waiting(now)) else {
                unreachable!("just looked")
            };
            self.perform(work);
        }
        self.owner.handle_time(times);
        self.inbox.extend(self.messages.try_iter());
        if let Some(message) = self.inbox.pop_front() {
            self.owner.handle(message);
            self.stage = Stage::Waiting(now);
            return for_log;
        }
        self.stage = loop {
            match self.owner.poll_work() {
                Some(Work::Release(needed)) => for_log.push(LogMessage::Release(needed)),
                Some(Work::FlushLog) => for_log.push(LogMessage::Flush),
                Some(Work::Say(text)) => {
                    trace!("snapshots: {text}");
                    self.completed += u64::from(text.contains("is complete"));
                    self.failed += u64::from(text.contains("there is no snapshot"));
                }
                Some(Work::File(id, operation)) if matches!(operation.action, Action::Write { .. }) => {
                    self.writes.push((now + 1 + delay(), id, operation));
                }
                Some(work) => break Stage::Working(work, now + 1 + delay()),
                None if self.owner.is_finished() => break Stage::Over,
                None => break Stage::Waiting(self.owner.wake_at().unwrap_or(u64::MAX)),
            }
        };
        for_log
    }

    /// Those that are done by now: the owner hears of them when it listens.
    fn end_writes(&mut self, now: u64) {
        while let Some(at) = self.writes.iter().position(|&(done, ..)| done <= now) {
            let (_, id, operation) = self.writes.swap_remove(at);
            let completion = self.disk.borrow_mut().perform_of_snapshot(id, operation);
            self.inbox.push_back(Message::Written(completion));
        }
    }

    fn list(&self) -> Listing {
        let names: Vec<String> = self.disk.borrow().list().into_iter().map(|(name, _)| name).collect();
        Listing::of(names.iter().map(String::as_str))
    }

    fn perform(&mut self, work: Work) {
        match work {
            Work::Prepare => {
                let listing = self.list();
                self.owner.handle_prepared(Ok(listing));
            }
            Work::File(id, operation) => {
                let completion = self.disk.borrow_mut().perform_of_snapshot(id, operation);
                self.owner.handle_completion(completion);
            }
            Work::List => {
                let listing = self.list();
                self.owner.handle_listing(Ok(listing));
            }
            Work::Remove(file) => {
                let removed = self.disk.borrow_mut().remove(&file.to_string()).map_err(system);
                self.owner.handle_removed(file, removed);
            }
            Work::Release(_) | Work::FlushLog | Work::Say(_) => unreachable!("done at once"),
        }
    }

    /// The end of the process: what the disk was doing for it.
    pub fn end(self) -> Vec<InFlight> {
        let writes = self.writes.into_iter().map(|(_, id, operation)| InFlight::Snapshot(id, operation));
        let beside = match self.stage {
            Stage::Working(Work::File(id, operation), _) => Some(InFlight::Snapshot(id, operation)),
            Stage::Working(Work::Remove(file), _) => Some(InFlight::Remove(file.to_string())),
            _ => None,
        };
        writes.chain(beside).collect()
    }

    /// After a stop: whether a snapshot of the end that was wanted is missing.
    pub fn finish(self) -> Result<(), String> {
        self.owner.finish()
    }
}
