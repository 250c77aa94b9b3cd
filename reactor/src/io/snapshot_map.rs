//! A snapshot's file as memory: mapped privately, given out region by region, unmapped region by region.
//!
//! A region is written to like any memory: the kernel copies the page, and the file never changes. Its bytes are the file's
//! until they are touched, so mapping takes the same time however long the file is. [`MmapSource::adopt`] makes a
//! region the keyspace's, and unmaps it when it comes back, on a thread of its own.
//!
//! **A file that becomes shorter, or a disk that does not read.** Touching a page that cannot be had is no error that a call
//! could return: the kernel sends SIGBUS, and the default is an end without a word. The handler here knows which
//! addresses are whose file, says what was expected and found with one `write`, and ends the process with code 1. It
//! touches no lock and no allocator, and leaves every other SIGBUS to whoever had the signal before. A file that has its
//! length and cannot be read is renamed, as one with damaged pages is: see [`set_aside`].
//!
//! [`MmapSource::adopt`]: super::memory::MmapSource::adopt

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::ptr::{null_mut, with_exposed_provenance_mut};
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Once, OnceLock};

/// Ranges and regions are whole pages.
const PAGE: u64 = 4096;
/// Files that may be mapped at the same time and be known to the handler: a server has one.
const PLACES: usize = 16;

/// What is appended to the name of a snapshot that was found damaged: a start then takes the one before it.
pub const SET_ASIDE_SUFFIX: &str = ".damaged";

/// Where a snapshot goes that was found damaged.
pub fn aside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(SET_ASIDE_SUFFIX);
    PathBuf::from(name)
}

/// Takes a damaged snapshot out of the way, for good: the next start need not find out again.
pub fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let to = aside(path);
    std::fs::rename(path, &to)?;
    if let Some(directory) = path.parent() {
        super::log_files::flush_directory(directory)?;
    }
    Ok(to)
}

/// An open snapshot.
#[derive(Debug)]
pub struct SnapshotFile {
    path: PathBuf,
    file: Arc<File>,
    length: u64,
}

impl SnapshotFile {
    /// Opens it to be read.
    pub fn open(path: &Path) -> io::Result<SnapshotFile> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        Ok(SnapshotFile { path: path.to_path_buf(), file: Arc::new(file), length })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its bytes when it was opened.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The file.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Reads what is there of `length` bytes.
    pub fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        let mut read = 0;
        while read < length {
            match self.file.read_at(&mut bytes[read..], offset + read as u64) {
                Ok(0) => break,
                Ok(more) => read += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes.truncate(read);
        Ok(bytes)
    }

    /// What can be read is durable.
    pub fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Maps regions of the file: whole pages, none in two of them, all within its length.
    ///
    /// # Panics
    /// If they are not: whoever asks has looked.
    pub fn map(&self, ranges: &[Range<u64>]) -> io::Result<Vec<MappedRegion>> {
        let mut order: Vec<usize> = (0..ranges.len()).collect();
        order.sort_unstable_by_key(|&at| ranges[at].start);
        let mut end = 0;
        for range in order.iter().map(|&at| &ranges[at]) {
            let is_whole = range.start.is_multiple_of(PAGE) && range.end.is_multiple_of(PAGE);
            assert!(is_whole && range.start < range.end, "whole pages are mapped: {range:?}");
            assert!(range.start >= end && range.end <= self.length, "{range:?} of {} bytes", self.length);
            end = range.end;
        }
        let Some(&first) = order.first() else { return Ok(Vec::new()) };
        let begin = ranges[first].start;
        let base = map_file(&self.file, begin, (end - begin) as usize)?;
        let guard = Arc::new(Guard::new(base, (end - begin) as usize, begin, self));
        let mut regions: Vec<Option<MappedRegion>> = Vec::new();
        regions.resize_with(ranges.len(), || None);
        let region = |from: u64, to: u64| MappedRegion {
            address: base + (from - begin) as usize,
            length: (to - from) as usize,
            _guard: Arc::clone(&guard),
        };
        let mut at = begin;
        for index in order {
            let Range { start, end } = ranges[index].clone();
            if at < start {
                // Nobody's.
                drop(region(at, start));
            }
            regions[index] = Some(region(start, end));
            at = end;
        }
        Ok(regions.into_iter().flatten().collect())
    }
}

/// A part of a mapping that nobody refers to. Dropping it unmaps it.
#[derive(Debug)]
pub struct MappedRegion {
    address: usize,
    length: usize,
    /// The handler knows the addresses until the last part is gone.
    _guard: Arc<Guard>,
}

impl MappedRegion {
    /// Its first address.
    pub(super) fn address(&self) -> usize {
        self.address
    }

    /// The memory. The caller sees to it that the only reference there ever was is gone before `self` is dropped.
    pub(super) fn memory(&mut self) -> &'static mut [u8] {
        // SAFETY: `address` and `length` are those of pages that `map_file` made, readable, writable and of this value
        // alone; they stay mapped until it is dropped, which the caller does last.
        unsafe { std::slice::from_raw_parts_mut(with_exposed_provenance_mut(self.address), self.length) }
    }
}

impl Drop for MappedRegion {
    fn drop(&mut self) {
        // SAFETY: a part of our own mapping that no other value has; see `memory`.
        let result = unsafe { libc::munmap(with_exposed_provenance_mut(self.address), self.length) };
        assert_eq!(result, 0, "munmap: {}", io::Error::last_os_error());
    }
}

/// Maps a file privately: what is written stays in memory.
fn map_file(file: &File, offset: u64, length: usize) -> io::Result<usize> {
    // SAFETY: a new mapping where the kernel likes; it touches no existing memory, and the descriptor is open.
    let address = unsafe {
        libc::mmap(
            null_mut(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            // A page is copied when it is written to, and few are: memory for all of them need not be set aside.
            libc::MAP_PRIVATE | libc::MAP_NORESERVE,
            file.as_raw_fd(),
            offset as libc::off_t,
        )
    };
    if address == libc::MAP_FAILED {
        Err(io::Error::last_os_error())
    } else {
        Ok(address.expose_provenance())
    }
}

/// Has the kernel begin to read what will be wanted soon.
pub fn read_ahead(file: &File, offset: u64, length: u64) {
    // SAFETY: no pointers; the descriptor is open. It is advice: whether it is taken does not matter.
    unsafe {
        let (offset, length) = (offset as libc::off_t, length as libc::off_t);
        libc::posix_fadvise(file.as_raw_fd(), offset, length, libc::POSIX_FADV_WILLNEED);
    }
}

/// Has the kernel map all pages of a part of a file at once, reading those that are not in its cache
/// (`MADV_POPULATE_READ`, madvise(2)): a fault for every few pages costs more than looking at them.
pub fn populate(memory: &[u8]) {
    // SAFETY: the range is that of a slice; nothing is written. It is advice: an old kernel that does not know it changes nothing.
    unsafe { libc::madvise(memory.as_ptr().cast_mut().cast(), memory.len(), libc::MADV_POPULATE_READ) };
}

/// What the handler has to know of a mapping. Written before `start` and never while that is not 0.
struct Place {
    start: AtomicUsize,
    end: AtomicUsize,
    /// Of the file, at `start`.
    offset: AtomicU64,
    descriptor: AtomicI32,
    /// Strings of C that are never freed: a handler may be reading them at any time.
    path: AtomicPtr<libc::c_char>,
    aside: AtomicPtr<libc::c_char>,
}

static KNOWN: [Place; PLACES] = [const {
    Place {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        offset: AtomicU64::new(0),
        descriptor: AtomicI32::new(-1),
        path: AtomicPtr::new(null_mut()),
        aside: AtomicPtr::new(null_mut()),
    }
}; PLACES];

/// While it lives, the handler knows whose the addresses are.
#[derive(Debug)]
struct Guard {
    /// `None`: there were too many mappings, and this one's end would be without a word.
    place: Option<usize>,
    /// The handler asks it how long the file is.
    _file: Arc<File>,
}

/// Somebody is writing a place, or is about to take it away.
const TAKEN: usize = 1;

impl Guard {
    fn new(address: usize, length: usize, offset: u64, of: &SnapshotFile) -> Guard {
        install();
        let free = |place: &Place| {
            place.start.compare_exchange(0, TAKEN, Ordering::Acquire, Ordering::Relaxed).is_ok()
        };
        let place = KNOWN.iter().position(free);
        if let Some(place) = place.map(|index| &KNOWN[index]) {
            // One short string for each start of a server.
            let leak =
                |path: &Path| CString::new(path.as_os_str().as_bytes()).map_or(null_mut(), CString::into_raw);
            place.end.store(address + length, Ordering::Relaxed);
            place.offset.store(offset, Ordering::Relaxed);
            place.descriptor.store(of.file.as_raw_fd(), Ordering::Relaxed);
            place.path.store(leak(&of.path), Ordering::Relaxed);
            place.aside.store(leak(&aside(&of.path)), Ordering::Relaxed);
            place.start.store(address, Ordering::Release);
        }
        Guard { place, _file: Arc::clone(&of.file) }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            KNOWN[place].start.store(0, Ordering::Release);
        }
    }
}

/// Who had the signal before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// Makes the handler the one for SIGBUS, once.
fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: all fields of a sigaction may be zero; the handler has the signature that SA_SIGINFO asks for, and
        // calls only what may be called in one. The old action is kept for signals that are not ours; it is read
        // before ours is set, so that no signal can come in between without it.
        unsafe {
            let mut before: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(libc::SIGBUS, std::ptr::null(), &mut before) != 0 {
                return;
            }
            let _ = BEFORE.set(before);
            let mut action: libc::sigaction = std::mem::zeroed();
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_bus_error;
            action.sa_sigaction = handler as libc::sighandler_t;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigemptyset(&mut action.sa_mask);
            libc::sigaction(libc::SIGBUS, &action, null_mut());
        }
    });
}

extern "C" fn on_bus_error(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel hands over a valid siginfo, whose address is that of the fault for SIGBUS.
    let address = unsafe { (*info).si_addr() }.addr();
    let is_in = |place: &&Place| {
        let start = place.start.load(Ordering::Acquire);
        start > TAKEN && address >= start && address < place.end.load(Ordering::Relaxed)
    };
    let Some(place) = KNOWN.iter().find(is_in) else {
        // Not ours: whoever had the signal before gets it, because the instruction that failed is executed again.
        if let Some(before) = BEFORE.get() {
            // SAFETY: an action that the kernel gave us; sigaction may be called in a handler.
            unsafe { libc::sigaction(signal, before, null_mut()) };
        }
        return;
    };
    let start = place.start.load(Ordering::Relaxed);
    let offset = place.offset.load(Ordering::Relaxed) + (address - start) as u64 / PAGE * PAGE;
    // SAFETY: all zeros is a valid stat; the descriptor is open as long as the place is known. fstat, rename, write and
    // _exit may be called in a handler; the strings are never freed.
    unsafe {
        let mut status: libc::stat = std::mem::zeroed();
        let has_length = libc::fstat(place.descriptor.load(Ordering::Relaxed), &mut status) == 0;
        let length = status.st_size as u64;
        let path = place.path.load(Ordering::Relaxed);
        let aside = place.aside.load(Ordering::Relaxed);
        let mut text = Text { bytes: [0; 2048], used: 0 };
        text.put(b"millrace: ");
        text.put_c(path);
        text.put(b" at offset ");
        text.put_number(offset);
        text.put(b": expected a page of the snapshot that is being served, found ");
        if has_length && length < offset + PAGE {
            text.put(b"that the file ends at ");
            text.put_number(length);
            text.put(b"; something has made it shorter. ");
        } else {
            text.put(b"that the disk cannot read it (SIGBUS). ");
            if !path.is_null() && !aside.is_null() && libc::rename(path, aside) == 0 {
                text.put(b"The file is called ");
                text.put_c(aside);
                text.put(b" now. ");
            }
        }
        text.put(
            b"The server ends; nothing was answered that is wrong. Start it again: an earlier snapshot and the log hold \
              the same data, if they are still there; or restore the file from a copy.\n",
        );
        libc::write(2, text.bytes.as_ptr().cast(), text.used);
        libc::_exit(1);
    }
}

/// A message that is put together without an allocator.
struct Text {
    bytes: [u8; 2048],
    used: usize,
}

impl Text {
    fn put(&mut self, more: &[u8]) {
        for &byte in more {
            if let Some(place) = self.bytes.get_mut(self.used) {
                *place = byte;
                self.used += 1;
            }
        }
    }

    /// A string of C, or nothing.
    unsafe fn put_c(&mut self, text: *const libc::c_char) {
        if !text.is_null() {
            // SAFETY: the caller's string ends with a zero and is not freed.
            self.put(unsafe { std::ffi::CStr::from_ptr(text) }.to_bytes());
        }
    }

    fn put_number(&mut self, number: u64) {
        let mut digits = [0; 20];
        let (mut at, mut rest) = (digits.len(), number);
        loop {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        self.put(&digits[at..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::memory::MmapSource;
    use store::arena::SegmentSource;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str, bytes: &[u8]) -> Scratch {
            let path = std::env::temp_dir().join(format!("millrace-map-{name}-{}", std::process::id()));
            std::fs::write(&path, bytes).unwrap();
            Scratch(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    /// Bytes of this process that are mapped from a file.
    fn mapped(path: &Path) -> u64 {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let of_file = maps.lines().filter(|line| line.ends_with(path.to_str().unwrap()));
        of_file
            .map(|line| {
                let (from, rest) = line.split_once('-').unwrap();
                let to = rest.split(' ').next().unwrap();
                u64::from_str_radix(to, 16).unwrap() - u64::from_str_radix(from, 16).unwrap()
            })
            .sum()
    }

    /// Regions are the file's bytes, are written to without the file noticing, and go one by one, whoever releases them.
    #[test]
    fn regions_are_private_and_go_one_by_one() {
        let bytes: Vec<u8> = (0..12 * 4096_u32).map(|at| (at / 4096) as u8).collect();
        let scratch = Scratch::new("private", &bytes);
        let file = SnapshotFile::open(&scratch.0).unwrap();
        assert_eq!(file.read(11 * 4096, 8192).unwrap(), [11; 4096]);
        let page = |number: u64| number * 4096;
        // In any order; one page belongs to nobody.
        let ranges = [page(7)..page(9), page(1)..page(4), page(4)..page(6)];
        let mut regions = file.map(&ranges).unwrap();
        assert_eq!(mapped(&scratch.0), page(7));
        let mut source = MmapSource::new();
        let own = source.allocate(2 << 20).unwrap();
        let last = regions.pop().map(|region| source.adopt(region)).unwrap();
        let middle = regions.pop().map(|region| source.adopt(region)).unwrap();
        let first = regions.pop().map(|region| source.adopt(region)).unwrap();
        assert!(first[..4096].iter().all(|&byte| byte == 7) && first[4096..].iter().all(|&byte| byte == 8));
        assert_eq!((middle[0], middle.len(), last[4096]), (1, 3 * 4096, 5));
        middle.fill(99);
        assert_eq!((first[0], last[0]), (7, 4));
        let wait_for = |bytes| {
            let begun = std::time::Instant::now();
            while mapped(&scratch.0) != bytes {
                assert!(begun.elapsed().as_secs() < 20, "{} bytes are mapped", mapped(&scratch.0));
                std::thread::yield_now();
            }
        };
        source.release(middle);
        wait_for(page(4));
        source.release(own);
        source.release(last);
        source.release(first);
        wait_for(0);
        assert_eq!(std::fs::read(&scratch.0).unwrap(), bytes, "the file has not changed");
    }

    /// What is not given to anybody goes as well.
    #[test]
    fn what_nobody_took_is_unmapped() {
        let scratch = Scratch::new("unmapped", &[1; 4 * 4096]);
        let file = SnapshotFile::open(&scratch.0).unwrap();
        let regions = file.map(&[0..4096, 8192..16384]).unwrap();
        assert_eq!(mapped(&scratch.0), 3 * 4096);
        drop(regions);
        assert_eq!(mapped(&scratch.0), 0);
        assert!(file.map(&[]).unwrap().is_empty());
        // A source that goes takes with it what its helper has not unmapped yet.
        let mut source = MmapSource::new();
        let region = file.map(std::slice::from_ref(&(0..16384))).unwrap().pop().unwrap();
        let memory = source.adopt(region);
        source.release(memory);
        drop(source);
        assert_eq!(mapped(&scratch.0), 0);
    }

    #[test]
    fn a_damaged_snapshot_is_set_aside_under_a_name_that_says_so() {
        let scratch = Scratch::new("aside", b"damaged");
        let to = Scratch(set_aside(&scratch.0).unwrap());
        assert!(to.0.to_str().unwrap().ends_with(".damaged") && !scratch.0.exists());
        assert_eq!(std::fs::read(&to.0).unwrap(), b"damaged");
    }
}
