//! A disk whose power can be cut: proof that what was acknowledged is durable, and not only written.
//!
//! SIGKILL proves nothing about flushing: the page cache outlives the process, and a server that never flushes
//! passes. So this is a disk of our own, with a volatile write cache, under a real file system:
//!
//! ```text
//!   server, test      ordinary files, O_DIRECT, io_uring
//!   ext4              on a loop device: a flush there becomes a FUSE_FSYNC here
//!   /dev/loopN        direct I/O: every request arrives as it was sent
//!   FUSE, one file    served by two threads of this process                       fuse
//!   cache | media     volatile until flushed; what a cut leaves                   cache
//! ```
//!
//! [`writers`] are small programs for it that know what they were promised; `tests/power_cut.rs` proves the disk with
//! them.
//!
//! The way of a test: start the server with its directory on [`PowerCutDisk::mount_point`], let it acknowledge,
//! [`cut`](PowerCutDisk::cut), kill it, [`heal`](PowerCutDisk::heal) (ext4 replays its journal), start it again and
//! look. The disk can also fail, be slow, be full, or lie about flushes, which is the negative control for a server
//! that does flush.
//!
//! It needs root, /dev/fuse, loop devices, `losetup` and `mkfs.ext4`. [`Unavailable`] says which is missing; a test
//! then counts as skipped (see [`crate::runner`]). Whatever else goes wrong while a disk is made is a defect, and
//! panics. Mounts, loop device and directory go when the disk is dropped; those of a process that was killed go when
//! the next disk is made ([`mounts`]).
//!
//! Two limits. The seed decides what a cut does to given writes, but the kernel decides when those arrive: a replay
//! is exact for the disk, not for the kernel above it. And the disk is served by the process that uses it: where
//! memory is so short that the kernel writes pages out to get some, the two could wait for each other.

pub mod cache;
mod fuse;
pub mod mounts;
pub mod writers;

use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use fuser::{Config, Session, SessionACL};

pub use cache::{CutStyle, Fate};
pub use fuse::Counters;
use fuse::{OneFile, Shared};
use mounts::{Home, THREAD_NAME};

/// How long the end of a disk waits for the loop device to let go of the file.
const PATIENCE: Duration = Duration::from_secs(5);

/// What kind of disk.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes, in whole MiB, at least 16: ext4 with its journal. A small one fills up.
    pub size: usize,
    /// Where ext4 is mounted: an empty directory, made and removed again if it is not there. Nothing: in the
    /// temporary directory.
    pub mount_point: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Options { size: 256 << 20, mount_point: None }
    }
}

/// Why there can be no such disk on this machine, and what would change that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unavailable(pub String);

impl fmt::Display for Unavailable {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        write!(formatter, "no power-cut disk on this machine: {}", self.0)
    }
}

/// A mounted disk with a power switch.
pub struct PowerCutDisk {
    shared: Arc<Shared>,
    mount_point: PathBuf,
    made_mount_point: bool,
    loop_device: Option<PathBuf>,
    threads: Vec<JoinHandle<()>>,
    /// Nothing only while the disk is dropped: the directory goes last.
    home: Option<Home>,
}

impl PowerCutDisk {
    /// Makes a disk with an empty ext4 file system on it and mounts it. Removes what killed processes left behind.
    pub fn new(options: Options) -> Result<PowerCutDisk, Unavailable> {
        check_machine()?;
        let mib = options.size >> 20;
        assert!(
            mib >= 8 && options.size == mib << 20,
            "a disk of {} bytes: whole MiB, at least 16",
            options.size
        );
        let shared = Shared::new(options.size);
        // Before there is a home: its absence is what tells others that a home is stale.
        let answering = shared.clone();
        let thread = spawn(move || answering.answer_flushes());
        let home = Home::create().unwrap_or_else(|error| panic!("power-cut disk: {error}"));
        let mount_point = options.mount_point.unwrap_or_else(|| home.mount());
        // From here on dropping it cleans up, however far this gets.
        let mut disk = PowerCutDisk {
            shared,
            made_mount_point: false,
            mount_point,
            loop_device: None,
            threads: vec![thread],
            home: Some(home),
        };
        disk.made_mount_point =
            disk.prepare_mount_point().unwrap_or_else(|error| panic!("power-cut disk: {error}"));
        // Absolute, for the servers that are told of it.
        disk.mount_point = fs::canonicalize(&disk.mount_point).expect("it is there now");
        disk.serve()?;
        let device = mounts::attach_loop(&disk.home().file()).map_err(|error| {
            Unavailable(format!("no loop device: {error}; is this a container without them?"))
        })?;
        disk.loop_device = Some(device.clone());
        mounts::make_ext4(&device).unwrap_or_else(|error| panic!("power-cut disk: {error}"));
        disk.mount_loop().map_err(|error| match error.kind() {
            ErrorKind::PermissionDenied => Unavailable(format!("{error}; mounting needs CAP_SYS_ADMIN")),
            _ if error.to_string().contains("(os error 19)") => {
                Unavailable(format!("{error}; the kernel has no ext4"))
            }
            _ => panic!("power-cut disk: {error}"),
        })?;
        Ok(disk)
    }

    /// Where the file system is mounted; the same after every heal.
    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// The loop device the file system is on: /dev/loopN. Another one after a heal.
    pub fn device(&self) -> &Path {
        self.loop_device.as_deref().expect("a disk has a device but while it heals")
    }

    /// Cuts the power: every request fails with EIO from here on, and what was not flushed is lost as the style and
    /// the seed say. Does nothing if the power is off.
    pub fn cut(&mut self, style: CutStyle, seed: u64) -> Fate {
        self.shared.cut(style, seed)
    }

    /// Whether requests are answered.
    pub fn has_power(&self) -> bool {
        self.shared.has_power()
    }

    /// Brings the power back and mounts what the disk holds. Files that are still open belong to the old mount and
    /// fail for ever; kill the server before. Without a cut before it this is a clean unmount and a mount.
    ///
    /// Injected faults, the flush delay and the counters stay as they are. An error is what mount(2) said: a disk
    /// that lied about flushes may well hold no file system any more.
    pub fn heal(&mut self) -> io::Result<()> {
        if mounts::unmount(&self.mount_point).is_err() {
            mounts::unmount_lazily(&self.mount_point)?;
        }
        self.forget_loop();
        self.shared.power_on();
        self.loop_device = Some(mounts::attach_loop(&self.home().file())?);
        self.mount_loop()
    }

    /// How long each flush takes from here on. What is sent to the disk meanwhile waits: see [`fuse`].
    pub fn set_flush_delay(&self, delay: Duration) {
        self.shared.set_flush_delay(delay);
    }

    /// False: a disk that lies. Flushes succeed, and nothing becomes durable by them. With [`CutStyle::LoseAll`] the
    /// disk falls back to what it held when the lie began; with another style ext4 may be damaged.
    pub fn honour_flushes(&self, honour: bool) {
        self.shared.honour_flushes(honour);
    }

    /// Every write fails from here on, and changes nothing. A loop device hands on EIO and ENOSPC as they are and
    /// makes EIO of most others.
    pub fn fail_writes(&self, errno: i32) {
        self.shared.fail_writes(0, u64::MAX, errno);
    }

    /// The `nth` write from now fails (1: the next), and only that. ext4 writes too: about its journal every 5 s.
    pub fn fail_nth_write(&self, nth: u64, errno: i32) {
        assert!(nth > 0, "the first write is number 1");
        self.shared.fail_writes(nth - 1, 1, errno);
    }

    /// Every flush fails from here on, whatever the errno as EIO (the loop device's doing), and loses what it was to
    /// flush: still read back, but no later flush makes it durable. Where ext4's journal needed it, ext4 goes
    /// read-only, as it does on any disk.
    pub fn fail_flushes(&self, errno: i32) {
        self.shared.fail_flushes(0, u64::MAX, errno);
    }

    /// The `nth` flush from now fails (1: the next), and only that.
    pub fn fail_nth_flush(&self, nth: u64, errno: i32) {
        assert!(nth > 0, "the first flush is number 1");
        self.shared.fail_flushes(nth - 1, 1, errno);
    }

    /// Ends both kinds of failing.
    pub fn stop_failing(&self) {
        self.shared.stop_failing();
    }

    /// What the disk has seen since it was made.
    pub fn counters(&self) -> Counters {
        self.shared.counters()
    }

    /// Flushes that a slow disk has not answered yet.
    pub fn flushes_pending(&self) -> usize {
        self.shared.flushes_pending()
    }

    fn home(&self) -> &Home {
        self.home.as_ref().expect("a disk has a home until it is dropped")
    }

    /// True if it was made here. Refuses one with something in it: it would be hidden, and look lost.
    fn prepare_mount_point(&self) -> io::Result<bool> {
        let path = &self.mount_point;
        match fs::read_dir(path).map(|mut entries| entries.next().is_some()) {
            Ok(false) => Ok(false),
            Ok(true) => {
                Err(io::Error::other(format!("{} is not empty: name an empty directory", path.display())))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                fs::create_dir(path).map_err(|error| mounts::about("cannot make", path, error))?;
                Ok(true)
            }
            Err(error) => Err(mounts::about("cannot mount on", path, error)),
        }
    }

    /// Mounts the file system with the one file and starts the thread that serves it.
    fn serve(&mut self) -> Result<(), Unavailable> {
        let device = mounts::mount_fuse(&self.home().fuse()).map_err(|error| {
            Unavailable(format!("{error}; mounting needs CAP_SYS_ADMIN (docker run --privileged has it)"))
        })?;
        let config = Config::default();
        let session = Session::from_fd(OneFile(self.shared.clone()), device, SessionACL::Owner, config)
            .unwrap_or_else(|error| panic!("power-cut disk: FUSE's handshake failed: {error}"));
        self.threads.push(spawn(move || {
            // Ends when the file system is unmounted, or with the reason why it could not go on.
            if let Err(error) = session.run() {
                eprintln!("power-cut disk: FUSE: {error}");
            }
        }));
        Ok(())
    }

    fn mount_loop(&mut self) -> io::Result<()> {
        let device = self.device();
        mounts::mount_ext4(device, &self.mount_point)?;
        // Marks it: the loop device goes with the last user of the mount, whenever and however that ends.
        mounts::detach_loop(device)
    }

    /// A device that was mounted has been told to go by itself. One that never was must be told here.
    fn forget_loop(&mut self) {
        if let Some(device) = self.loop_device.take()
            && mounts::is_attached(&device, &self.home().file())
            && let Err(error) = mounts::detach_loop(&device)
        {
            eprintln!("power-cut disk: {error}");
        }
    }
}

impl Drop for PowerCutDisk {
    fn drop(&mut self) {
        let complain = |result: io::Result<()>| {
            if let Err(error) = result {
                eprintln!("power-cut disk: {error}");
            }
        };
        self.shared.stop_failing();
        self.shared.set_flush_delay(Duration::ZERO);
        if mounts::unmount(&self.mount_point).is_err() {
            // Somebody has files open there. They fail from here on, and the mount ends when they are closed.
            self.shared.cut(CutStyle::LoseAll, 0);
            complain(mounts::unmount_lazily(&self.mount_point));
        }
        self.forget_loop();
        if !self.shared.wait_until_closed(PATIENCE) {
            eprintln!(
                "power-cut disk: files on {} are still open: their loop device goes when they are closed",
                self.mount_point.display()
            );
        }
        self.shared.stop();
        let fuse = self.home().fuse();
        mounts::abort_fuse(&fuse);
        complain(mounts::unmount_lazily(&fuse));
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        if self.made_mount_point {
            complain(fs::remove_dir(&self.mount_point));
        }
        self.home = None;
    }
}

fn spawn(body: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    std::thread::Builder::new().name(THREAD_NAME.into()).spawn(body).expect("a thread")
}

/// Whether this machine can have such a disk, and the first thing that is missing.
fn check_machine() -> Result<(), Unavailable> {
    let missing = |what: String| Err(Unavailable(what));
    if !nix::unistd::geteuid().is_root() {
        return missing("it mounts file systems; run the test as root".into());
    }
    if let Err(error) = fs::OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        return missing(format!("/dev/fuse: {error}; try: modprobe fuse (docker run --device /dev/fuse)"));
    }
    if let Err(error) = fs::File::open("/dev/loop-control") {
        return missing(format!("/dev/loop-control: {error}; try: modprobe loop (docker run --privileged)"));
    }
    for (program, package) in [("losetup", "mount"), ("mkfs.ext4", "e2fsprogs")] {
        if let Err(error) = mounts::run(Command::new(program).arg("-V")) {
            return missing(format!("{error}; it is in the Debian package {package}"));
        }
    }
    if let Err(error) = mounts::clean_stale() {
        eprintln!("power-cut disk: what an earlier run left behind stays: {error}; unmount it by hand");
    }
    Ok(())
}

impl From<Unavailable> for crate::runner::Skipped {
    fn from(unavailable: Unavailable) -> Self {
        crate::runner::Skipped(unavailable.to_string())
    }
}
