//! Mounts, loop devices and what is left of disks whose process is gone.
//!
//! Each disk has a home, a directory in the temporary directory whose name says whose it is:
//!
//! ```text
//! millrace-power-cut-PID-N/          locked (flock) for as long as the process lives
//!     lock
//!     fuse/disk                      the file, served by a thread of process PID that is called `power-cut-disk`
//!     mount/                         ext4 on a loop device on that file, unless another mount point was asked for
//! ```
//!
//! A home is stale when that thread is gone. Only homes, what is mounted in them, and loop devices whose file lies in
//! them are ever touched; directories are removed by their known names, never recursively.
//!
//! mount(2) and umount(2) are called directly. Loop devices are attached by `losetup`, because their ioctls would
//! need `unsafe`.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::fuse::FILE_NAME;

/// What the name of every home begins with; also the source of its FUSE mount.
const NAME: &str = "millrace-power-cut";

/// What the threads of a disk are called. At most fifteen bytes, or the kernel cuts it.
pub(super) const THREAD_NAME: &str = "power-cut-disk";

/// Homes made by this process.
static HOMES: AtomicU32 = AtomicU32::new(0);

/// The directory of one disk. Removed with it.
pub(super) struct Home {
    path: PathBuf,
    /// Held open for its lock.
    _lock: File,
}

impl Home {
    /// Makes a new one.
    pub(super) fn create() -> io::Result<Home> {
        let number = HOMES.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("{NAME}-{}-{number}", std::process::id()));
        fs::create_dir(&path).map_err(|error| about("cannot make the directory", &path, error))?;
        let lock = File::create(path.join("lock")).and_then(|file| file.lock().map(|()| file));
        let lock = lock.map_err(|error| about("cannot lock", &path.join("lock"), error))?;
        let home = Home { path, _lock: lock };
        fs::create_dir(home.fuse())?;
        fs::create_dir(home.mount())?;
        Ok(home)
    }

    /// Where the file system with the one file is mounted.
    pub(super) fn fuse(&self) -> PathBuf {
        self.path.join("fuse")
    }

    /// The one file.
    pub(super) fn file(&self) -> PathBuf {
        self.fuse().join(FILE_NAME)
    }

    /// Where ext4 is mounted if nothing else was asked for.
    pub(super) fn mount(&self) -> PathBuf {
        self.path.join("mount")
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Err(error) = remove_home(&self.path) {
            eprintln!("power-cut disk: cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Removes what a home consists of. Fails where something is still mounted there, and then removes nothing below it.
fn remove_home(path: &Path) -> io::Result<()> {
    for directory in ["mount", "fuse"] {
        absent_is_fine(fs::remove_dir(path.join(directory)))?;
    }
    absent_is_fine(fs::remove_file(path.join("lock")))?;
    absent_is_fine(fs::remove_dir(path))
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// An error that says what was tried with what.
pub(super) fn about(what: &str, path: &Path, error: impl Into<io::Error>) -> io::Error {
    let error = error.into();
    io::Error::new(error.kind(), format!("{what} {}: {error}", path.display()))
}

/// Mounts a FUSE file system that nobody serves yet. It is served by who reads the descriptor.
pub(super) fn mount_fuse(directory: &Path) -> io::Result<OwnedFd> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse")?;
    let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some(NAME), directory, Some("fuse"), flags, Some(data.as_str()))
        .map_err(|error| about("cannot mount a FUSE file system on", directory, error))?;
    Ok(device.into())
}

/// Mounts what is on the device; ext4 replays its journal here.
pub(super) fn mount_ext4(device: &Path, directory: &Path) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some(device), directory, Some("ext4"), flags, None::<&str>)
        .map_err(|error| about(&format!("cannot mount {} as ext4 on", device.display()), directory, error))
}

/// Takes a mount out of the tree, unless it is in use. Nothing mounted there is fine.
pub(super) fn unmount(directory: &Path) -> io::Result<()> {
    unmount_with(directory, MntFlags::empty())
}

/// Takes a mount out of the tree at once; it ends when its last user does.
pub(super) fn unmount_lazily(directory: &Path) -> io::Result<()> {
    unmount_with(directory, MntFlags::MNT_DETACH)
}

fn unmount_with(directory: &Path, flags: MntFlags) -> io::Result<()> {
    match umount2(directory, flags | MntFlags::UMOUNT_NOFOLLOW) {
        // EINVAL: nothing is mounted there. EPERM: who may not unmount has not mounted either.
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT | nix::Error::EPERM) => Ok(()),
        Err(error) => Err(about("cannot unmount", directory, error)),
    }
}

/// Every request to a FUSE file system that waits fails, and so does every later one.
pub(super) fn abort_fuse(directory: &Path) {
    // Refused with EBUSY if it is in use, but it has aborted the connection by then, and only that counts.
    let _ = umount2(directory, MntFlags::MNT_FORCE | MntFlags::UMOUNT_NOFOLLOW);
}

/// Puts a loop device on a file and returns it: /dev/loopN.
pub(super) fn attach_loop(file: &Path) -> io::Result<PathBuf> {
    let device = run(Command::new("losetup").args(["--find", "--show", "--direct-io=on"]).arg(file))?;
    Ok(PathBuf::from(device.trim()))
}

/// Detaches a loop device; one that is mounted goes when it is not any more.
pub(super) fn detach_loop(device: &Path) -> io::Result<()> {
    run(Command::new("losetup").arg("--detach").arg(device)).map(|_| ())
}

/// Makes an ext4 file system with the defaults of the machine, but for the blocks, which on a small disk would be
/// of 1 KiB. It is complete at once: nothing is initialised later, in the background, between a test's own writes.
pub(super) fn make_ext4(device: &Path) -> io::Result<()> {
    let complete = "nodiscard,lazy_itable_init=0,lazy_journal_init=0";
    run(Command::new("mkfs.ext4").args(["-q", "-F", "-b", "4096", "-m", "0", "-E", complete]).arg(device))
        .map(|_| ())
}

/// Runs a program and returns its output; an error says how it ended and what it said.
pub(super) fn run(command: &mut Command) -> io::Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .map_err(|error| io::Error::new(error.kind(), format!("cannot run {name}: {error}")))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_string();
        Err(io::Error::other(format!("{name}: {}: {said}", output.status)))
    }
}

/// One line of /proc/self/mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// What is mounted: a device, or the name of a FUSE file system.
    pub source: String,
    /// Where.
    pub target: PathBuf,
}

/// What is mounted in this mount namespace.
fn mounted() -> io::Result<Vec<Mounted>> {
    Ok(fs::read_to_string("/proc/self/mountinfo")?.lines().filter_map(parse_mount).collect())
}

/// `36 35 98:0 / TARGET rw,noatime master:1 - ext4 SOURCE rw`: the fifth word, and the second behind the dash.
fn parse_mount(line: &str) -> Option<Mounted> {
    let (before, after) = line.split_once(" - ")?;
    let target = unescape(before.split(' ').nth(4)?);
    let source = unescape(after.split(' ').nth(1)?);
    Some(Mounted { source, target: PathBuf::from(target) })
}

/// Blanks, tabs, line ends and backslashes are octal there.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_string(), |text, (escape, plain)| text.replace(escape, plain))
}

/// The loop devices whose file lies in this directory.
fn loops_in(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/block")? {
        let entry = entry?;
        let Ok(file) = fs::read_to_string(entry.path().join("loop/backing_file")) else { continue };
        if Path::new(file.trim_end()).starts_with(directory) {
            found.push(Path::new("/dev").join(entry.file_name()));
        }
    }
    Ok(found)
}

/// What disks of a process have left, in words: homes, mounts and loop devices. Empty if nothing.
pub fn traces_of(pid: u32) -> io::Result<Vec<String>> {
    let temporary = std::env::temp_dir();
    let prefix = temporary.join(format!("{NAME}-{pid}-")).display().to_string();
    let mut traces: Vec<String> = Vec::new();
    for entry in fs::read_dir(&temporary)? {
        let home = entry?.path();
        if owner(&home) == Some(pid) {
            traces.push(home.display().to_string());
        }
    }
    let loops: Vec<(String, String)> = loops_in(&temporary)?
        .iter()
        .filter_map(|device| Some((device.display().to_string(), backing_file(device)?)))
        .filter(|(_, file)| file.starts_with(&prefix))
        .collect();
    for mounted in mounted()? {
        let on_loop = loops.iter().any(|(device, _)| *device == mounted.source);
        if on_loop || mounted.target.display().to_string().starts_with(&prefix) {
            traces.push(format!("a mount on {}", mounted.target.display()));
        }
    }
    traces.extend(loops.iter().map(|(device, file)| format!("{device} on {file}")));
    Ok(traces)
}

/// Whether the device is on this file.
pub(super) fn is_attached(device: &Path, file: &Path) -> bool {
    backing_file(device).is_some_and(|attached| Path::new(&attached) == file)
}

fn backing_file(device: &Path) -> Option<String> {
    let name = device.file_name()?;
    let file = Path::new("/sys/block").join(name).join("loop/backing_file");
    fs::read_to_string(file).ok().map(|text| text.trim_end().to_string())
}

/// The process that a home belongs to, by its name. Nothing if it is no home.
fn owner(home: &Path) -> Option<u32> {
    let name = home.file_name()?.to_str()?;
    let (pid, number) = name.strip_prefix(NAME)?.strip_prefix('-')?.split_once('-')?;
    number.parse::<u32>().ok()?;
    pid.parse().ok()
}

/// Removes the homes of processes that are gone, with their mounts and loop devices. Returns the homes removed.
pub fn clean_stale() -> io::Result<Vec<PathBuf>> {
    let mut cleaned = Vec::new();
    for entry in fs::read_dir(std::env::temp_dir())? {
        let home = entry?.path();
        if owner(&home).is_some_and(|pid| !is_served(pid)) && was_left_behind(&home)? {
            clean(&home)?;
            cleaned.push(home);
        }
    }
    Ok(cleaned)
}

/// Whether that process still has a thread of a disk.
fn is_served(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    threads
        .flatten()
        .filter_map(|thread| fs::read_to_string(thread.path().join("comm")).ok())
        .any(|name| name.trim_end() == THREAD_NAME)
}

/// Its lock is free: the owner is gone. Or it is not, but the mount is one of ours: then the owner was killed and
/// cannot end, because one of its threads waits for an answer that only another, which has ended, could give.
/// A lock that is held for a home that is not mounted here belongs to another container that shares the directory.
fn was_left_behind(home: &Path) -> io::Result<bool> {
    let lock = match File::open(home.join("lock")) {
        Ok(lock) => lock,
        // Half made or half removed.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
    };
    match lock.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => {
            let fuse = home.join("fuse");
            Ok(mounted()?.iter().any(|mounted| mounted.source == NAME && mounted.target == fuse))
        }
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn clean(home: &Path) -> io::Result<()> {
    let loops = loops_in(home)?;
    // First of all: requests that nobody will answer fail, so that whoever waits for them can end.
    abort_fuse(&home.join("fuse"));
    let devices: Vec<String> = loops.iter().map(|device| device.display().to_string()).collect();
    for ext4 in mounted()?.into_iter().filter(|mounted| devices.contains(&mounted.source)) {
        unmount_lazily(&ext4.target)?;
    }
    for device in loops.iter().filter(|device| backing_file(device).is_some()) {
        // It may have gone by itself meanwhile.
        if let Err(error) = detach_loop(device)
            && backing_file(device).is_some()
        {
            return Err(error);
        }
    }
    unmount_lazily(&home.join("fuse"))?;
    remove_home(home)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_says_whose_it_is_and_nothing_else_is_a_home() {
        assert_eq!(owner(Path::new("/tmp/millrace-power-cut-123-0")), Some(123));
        for other in
            ["millrace-power-cut-123", "millrace-power-cut-x-0", "millrace-power-cut-1-0.bak", "x-1-0"]
        {
            assert_eq!(owner(&Path::new("/tmp").join(other)), None, "{other}");
        }
    }

    #[test]
    fn a_mount_is_read_with_its_blanks() {
        let line = r"36 35 98:0 /a /mnt/a\040b\134 rw,noatime shared:1 master:1 - ext4 /dev/loop3 rw,errors=continue";
        let mounted = Mounted { source: "/dev/loop3".into(), target: "/mnt/a b\\".into() };
        assert_eq!(parse_mount(line), Some(mounted));
        assert_eq!(parse_mount("36 35 98:0 / /mnt rw"), None);
    }

    #[test]
    fn a_thread_of_a_disk_is_found_by_its_name() {
        let (tell, told) = std::sync::mpsc::channel::<()>();
        let (ready, is_ready) = std::sync::mpsc::channel();
        assert!(!is_served(u32::MAX));
        let thread = std::thread::Builder::new().name(THREAD_NAME.into()).spawn(move || {
            ready.send(()).expect("the test waits");
            told.recv()
        });
        is_ready.recv().expect("the thread runs");
        assert!(is_served(std::process::id()));
        drop(tell);
        let _ = thread.expect("a thread").join();
    }
}
