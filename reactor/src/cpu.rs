//! Cores and CPU time: pinning a thread, which cores we may use, what a thread or process has burnt.

use crate::io::sys;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Why a thread cannot be pinned to a core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PinError {
    /// The machine has no such core, or it is off line.
    Unknown {
        /// The core asked for.
        core: usize,
        /// The kernel's list of cores on line, as `0-3,6`.
        online: String,
    },
    /// The core exists, but this process may not run on it.
    NotAllowed {
        /// The core asked for.
        core: usize,
        /// The cores of the affinity mask.
        allowed: Vec<usize>,
    },
    /// The kernel refused for another reason.
    Refused {
        /// The core asked for.
        core: usize,
    },
}

impl fmt::Display for PinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { core, online } => {
                write!(
                    f,
                    "cannot pin to core {core}: this machine has no such core on line (it has {online})"
                )
            }
            Self::NotAllowed { core, allowed } => write!(
                f,
                "cannot pin to core {core}: this process may run on {} only (see taskset, the container's \
                 cpuset or systemd's CPUAffinity=)",
                core_list(allowed)
            ),
            Self::Refused { core } => write!(f, "the kernel refused to pin the thread to core {core}"),
        }
    }
}

impl std::error::Error for PinError {}

/// The cores this thread may run on, in order.
pub fn allowed_cores() -> Vec<usize> {
    let mut cores: Vec<usize> =
        core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect();
    cores.sort_unstable();
    cores
}

/// The memory node a core belongs to; `None` where the kernel does not say.
pub fn memory_node(core: usize) -> Option<usize> {
    let entries = std::fs::read_dir(format!("/sys/devices/system/cpu/cpu{core}")).ok()?;
    entries.flatten().find_map(|entry| entry.file_name().to_str()?.strip_prefix("node")?.parse().ok())
}

/// Whether this thread could be pinned to `core`; says why not.
pub fn check_pin(core: usize) -> Result<(), PinError> {
    let allowed = allowed_cores();
    if allowed.contains(&core) {
        return Ok(());
    }
    let online = online_cores();
    if parse_core_list(&online).is_some_and(|cores| cores.contains(&core)) {
        Err(PinError::NotAllowed { core, allowed })
    } else {
        Err(PinError::Unknown { core, online })
    }
}

/// Pins the calling thread to `core`. Threads it starts afterwards inherit that.
pub fn pin_to(core: usize) -> Result<(), PinError> {
    check_pin(core)?;
    if core_affinity::set_for_current(core_affinity::CoreId { id: core }) {
        Ok(())
    } else {
        Err(PinError::Refused { core })
    }
}

/// Reads a core list as the kernel and taskset write it: `0`, `0,2`, `1-3,6`. `None` where it is not one.
pub fn parse_core_list(text: &str) -> Option<Vec<usize>> {
    let mut cores = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.trim().split_once('-').unwrap_or((part.trim(), part.trim()));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last > 65_535 {
            return None;
        }
        cores.extend(first..=last);
    }
    Some(cores)
}

fn core_list(cores: &[usize]) -> String {
    let names: Vec<String> = cores.iter().map(|core| core.to_string()).collect();
    format!("core{} {}", if cores.len() == 1 { "" } else { "s" }, names.join(", "))
}

fn online_cores() -> String {
    match std::fs::read_to_string("/sys/devices/system/cpu/online") {
        Ok(text) => text.trim().to_string(),
        // Without /sys the mask is all we know.
        Err(_) => allowed_cores().iter().map(|core| core.to_string()).collect::<Vec<_>>().join(","),
    }
}

/// The CPU time of one thread, readable from every other, during its life and after it.
#[derive(Clone, Debug)]
pub struct ThreadCpuTime {
    clock: libc::clockid_t,
    /// Nanoseconds at the end of the thread; zero while it runs.
    final_ns: Arc<AtomicU64>,
}

impl ThreadCpuTime {
    /// The calling thread's.
    pub fn of_this_thread() -> io::Result<Self> {
        Ok(Self { clock: sys::thread_cpu_clock()?, final_ns: Arc::default() })
    }

    /// User and system time the thread has used so far.
    pub fn read(&self) -> Duration {
        let now = || Duration::from_nanos(self.final_ns.load(Ordering::Acquire));
        match self.final_ns.load(Ordering::Acquire) {
            0 => sys::clock_ns(self.clock).map_or_else(now, Duration::from_nanos),
            ns => Duration::from_nanos(ns),
        }
    }

    /// Keeps the final value: the thread calls this as the last thing it does, because its clock goes with
    /// it (and the clock's number may come back as another thread's).
    pub fn finish(&self) {
        self.final_ns.store(self.read().as_nanos() as u64, Ordering::Release);
    }
}

/// The CPU time of several threads together.
#[derive(Clone, Debug)]
pub struct ThreadsCpuTime(Vec<ThreadCpuTime>);

impl ThreadsCpuTime {
    /// Of these.
    pub fn of(threads: Vec<ThreadCpuTime>) -> Self {
        Self(threads)
    }

    /// User and system time all of them have used so far.
    pub fn read(&self) -> Duration {
        self.each().iter().sum()
    }

    /// The same one by one.
    pub fn each(&self) -> Vec<Duration> {
        self.0.iter().map(ThreadCpuTime::read).collect()
    }
}

/// CPU time of the calling thread.
pub fn thread_cpu_time() -> Duration {
    Duration::from_nanos(sys::clock_ns(libc::CLOCK_THREAD_CPUTIME_ID).unwrap_or(0))
}

/// What the kernel has charged to this process or to one thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Time in user mode.
    pub user: Duration,
    /// Time in the kernel.
    pub system: Duration,
    /// Largest resident size so far.
    pub resident_bytes_max: u64,
    /// Times the thread gave the core up (it waited).
    pub voluntary_switches: u64,
    /// Times the core was taken away.
    pub involuntary_switches: u64,
    /// Page faults served without reading a disk.
    pub minor_faults: u64,
}

/// Of all threads of this process together.
pub fn process_usage() -> Usage {
    usage(libc::RUSAGE_SELF)
}

/// Of all processes that this one started, and that have ended and been waited for.
pub fn children_usage() -> Usage {
    usage(libc::RUSAGE_CHILDREN)
}

/// Of the calling thread alone.
pub fn thread_usage() -> Usage {
    usage(libc::RUSAGE_THREAD)
}

/// Memory of this process that is resident now; 0 where /proc is not there.
pub fn resident_bytes() -> u64 {
    // Pages, and Linux on the machines we run on has pages of 4 KiB.
    const PAGE: u64 = 4096;
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|fields| fields.split_ascii_whitespace().nth(1)?.parse::<u64>().ok());
    pages.map_or(0, |pages| pages * PAGE)
}

fn usage(who: libc::c_int) -> Usage {
    // getrusage fails for an unknown `who` only.
    let raw = sys::resource_usage(who).expect("getrusage of a known subject");
    let time =
        |value: libc::timeval| Duration::from_micros(value.tv_sec as u64 * 1_000_000 + value.tv_usec as u64);
    Usage {
        user: time(raw.ru_utime),
        system: time(raw.ru_stime),
        resident_bytes_max: raw.ru_maxrss as u64 * 1024,
        voluntary_switches: raw.ru_nvcsw as u64,
        involuntary_switches: raw.ru_nivcsw as u64,
        minor_faults: raw.ru_minflt as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn core_lists_are_read_as_the_kernel_writes_them() {
        assert_eq!(parse_core_list("0"), Some(vec![0]));
        assert_eq!(parse_core_list("0-3,6\n"), Some(vec![0, 1, 2, 3, 6]));
        assert_eq!(parse_core_list(" 1 , 2 "), Some(vec![1, 2]));
        for wrong in ["", "a", "3-1", "1,,2", "-1", "0-99999999"] {
            assert_eq!(parse_core_list(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_pinned_thread_stays_on_its_core_and_others_keep_theirs() {
        let before = allowed_cores();
        let core = *before.last().unwrap();
        let seen = std::thread::spawn(move || {
            pin_to(core).unwrap();
            (allowed_cores(), check_pin(core + 4096))
        });
        let (mask, elsewhere) = seen.join().unwrap();
        assert_eq!(mask, [core]);
        assert!(matches!(elsewhere, Err(PinError::Unknown { .. })));
        assert_eq!(allowed_cores(), before);
    }

    #[test]
    fn a_core_outside_the_mask_is_told_from_one_that_does_not_exist() {
        let cores = allowed_cores();
        if cores.len() < 2 {
            return; // one core: there is no other to be outside of the mask
        }
        let (inside, outside) = (cores[0], cores[1]);
        let error = std::thread::spawn(move || {
            pin_to(inside).unwrap();
            pin_to(outside).unwrap_err()
        });
        let error = error.join().unwrap();
        assert_eq!(error, PinError::NotAllowed { core: outside, allowed: vec![inside] });
        assert!(error.to_string().contains("taskset"), "{error}");
    }

    #[test]
    fn cpu_time_is_readable_from_outside_and_after_the_end() {
        let (give, take) = std::sync::mpsc::channel();
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let time = ThreadCpuTime::of_this_thread().unwrap();
            while thread_cpu_time() < Duration::from_millis(5) {
                std::hint::spin_loop();
            }
            give.send(time.clone()).unwrap();
            wait.recv().unwrap();
            time.finish();
        });
        let time = take.recv().unwrap();
        let running = time.read();
        assert!(running >= Duration::from_millis(5));
        go.send(()).unwrap();
        thread.join().unwrap();
        let ended = time.read();
        assert!(ended >= running);
        assert_eq!(time.read(), ended);
    }

    #[test]
    fn usage_grows() {
        let before = process_usage();
        let start = thread_cpu_time();
        while thread_cpu_time() - start < Duration::from_millis(3) {
            std::hint::spin_loop();
        }
        let after = process_usage();
        assert!(after.user + after.system > before.user + before.system);
        let resident = resident_bytes();
        assert!(resident > 1 << 16 && resident <= after.resident_bytes_max.max(resident_bytes()) * 2);
        assert!(after.resident_bytes_max > 0 && thread_usage().minor_faults <= after.minor_faults);
    }
}
