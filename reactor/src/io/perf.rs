//! What a process has done by the kernel's and the processor's own counters (perf_event_open(2)): cycles, instructions, system
//! calls. For tools that measure; nothing on the serving path counts.
//!
//! Not every machine has the counters (a virtual one seldom does), and not everybody may read them: the error says which
//! of the two it is, and what to try. Counters are opened for every thread that a process has, and the threads that those
//! start are counted with them.

use super::sys::check;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// Cycles of the cores, in user mode and in the kernel.
    Cycles,
    /// Instructions retired, the same.
    Instructions,
    /// System calls entered.
    SystemCalls,
}

impl Counted {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Counted::Cycles => "cycles",
            Counted::Instructions => "instructions",
            Counted::SystemCalls => "system calls",
        }
    }
}

/// A counter of a process: one for each of its threads.
#[derive(Debug)]
pub struct Counter {
    threads: Vec<OwnedFd>,
}

const TYPE_HARDWARE: u32 = 0;
const TYPE_TRACEPOINT: u32 = 2;
/// Bits of `flags`: children of the thread count, too.
const INHERIT: u64 = 1 << 1;
/// The times for which the counter was enabled, and for which it really ran, are read with it.
const FORMAT_TIMES: u64 = 0b11;
const FLAG_CLOEXEC: libc::c_ulong = 1 << 3;

/// The beginning of `struct perf_event_attr`, all that its first version had.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup: u32,
    breakpoint_type: u32,
    breakpoint_address: u64,
}

const _: () = assert!(size_of::<Attributes>() == 64, "PERF_ATTR_SIZE_VER0");

impl Counter {
    /// Begins to count what a process does. The error says what to try.
    pub fn of_process(pid: u32, counted: Counted) -> Result<Counter, String> {
        let (kind, config) = match counted {
            Counted::Cycles => (TYPE_HARDWARE, 0),
            Counted::Instructions => (TYPE_HARDWARE, 1),
            Counted::SystemCalls => (TYPE_TRACEPOINT, tracepoint_id()?),
        };
        let tasks = fs::read_dir(format!("/proc/{pid}/task"))
            .map_err(|error| format!("process {pid} cannot be looked at: {error}"))?;
        let ids = tasks.flatten().filter_map(|task| task.file_name().to_str()?.parse::<libc::pid_t>().ok());
        let mut threads = Vec::new();
        for id in ids {
            let attributes = Attributes {
                kind,
                size: size_of::<Attributes>() as u32,
                config,
                read_format: FORMAT_TIMES,
                flags: INHERIT,
                ..Attributes::default()
            };
            match open(&attributes, id) {
                Ok(fd) => threads.push(fd),
                // The thread has ended meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                Err(error) => return Err(advice(counted, &error)),
            }
        }
        Ok(Counter { threads })
    }

    /// What was counted since. Where the processor had to share its counters it is what it saw, scaled to all of the time.
    pub fn read(&self) -> io::Result<u64> {
        let mut sum = 0.0;
        for fd in &self.threads {
            let mut words = [0u64; 3];
            let bytes = size_of_val(&words);
            // SAFETY: `words` is writable for that many bytes, and the descriptor is open.
            let read = unsafe { libc::read(fd.as_raw_fd(), words.as_mut_ptr().cast(), bytes) };
            if read != bytes as isize {
                return Err(io::Error::last_os_error());
            }
            let [value, enabled, ran] = words;
            if ran > 0 {
                sum += value as f64 * (enabled as f64 / ran as f64);
            }
        }
        Ok(sum as u64)
    }
}

fn open(attributes: &Attributes, thread: libc::pid_t) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads 64 bytes of `attributes`, as its `size` says, during the call; on any core (-1), in no
    // group (-1). The descriptor returned is new and nobody else's.
    unsafe {
        let fd = libc::syscall(
            libc::SYS_perf_event_open,
            std::ptr::from_ref(attributes),
            thread,
            -1 as libc::c_int,
            -1 as libc::c_int,
            FLAG_CLOEXEC,
        );
        Ok(OwnedFd::from_raw_fd(check(fd as libc::c_int)?))
    }
}

/// The number of the tracepoint at which every system call begins.
fn tracepoint_id() -> Result<u64, String> {
    let path = "/sys/kernel/tracing/events/raw_syscalls/sys_enter/id";
    let text = fs::read_to_string(path).map_err(|error| {
        format!("system calls cannot be counted: {path}: {error} (it needs tracefs, and mostly root)")
    })?;
    text.trim().parse().map_err(|_| format!("system calls cannot be counted: {path} holds no number"))
}

fn advice(counted: Counted, error: &io::Error) -> String {
    let name = counted.name();
    match error.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => {
            let level = fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").unwrap_or_default();
            format!(
                "{name} cannot be counted: not permitted (kernel.perf_event_paranoid is {}; root, CAP_PERFMON or a lower \
                 level may)",
                level.trim()
            )
        }
        Some(libc::ENOENT | libc::EOPNOTSUPP | libc::ENODEV) => {
            format!(
                "{name} cannot be counted: this machine does not offer the counter (a virtual one often does not)"
            )
        }
        Some(libc::ENOSYS) => {
            format!("{name} cannot be counted: this kernel, or the sandbox, has no perf_event_open")
        }
        _ => format!("{name} cannot be counted: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_thread_does_is_counted_or_why_not_is_said() {
        for counted in [Counted::Cycles, Counted::Instructions, Counted::SystemCalls] {
            match Counter::of_process(std::process::id(), counted) {
                Ok(counter) => {
                    let before = counter.read().expect("it was opened");
                    (0..1_000).for_each(|_| super::super::sys::yield_core());
                    let after = counter.read().expect("it was opened");
                    assert!(after >= before + 1_000, "{counted:?}: {before} and {after}");
                }
                Err(why) => {
                    assert!(why.contains(counted.name()) && why.contains("cannot be counted"), "{why}")
                }
            }
        }
        assert!(Counter::of_process(u32::MAX, Counted::Cycles).is_err());
    }
}
