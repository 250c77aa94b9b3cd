//! The system calls that neither `std` nor `socket2` covers, each behind a safe signature.
//!
//! Nothing here decides anything: a function makes one call, checks what the kernel answered and returns it
//! typed. Callers see no raw pointers.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Turns the C convention (-1 and errno) into a `Result`.
#[inline]
pub(crate) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Lets large buffers go back to the system when they are freed. By itself glibc takes the size of the largest
/// mapping freed so far for the size of what is worth keeping, and after a storm of large replies it keeps
/// what they took, a gigabyte or more, for ever.
pub fn return_large_buffers() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no pointers; both parameters may be set at any time.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 4 << 20);
    }
}

/// The calling thread no longer interrupts another of its core when it wakes (`SCHED_BATCH`, sched(7)): it runs when that one
/// waits, or has used its slice.
pub(crate) fn yield_to_others() -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the struct is readable for the duration of the call; 0 is the calling thread.
    check(unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const parameters) }).map(|_| ())
}

/// Lets others of this core run first, if there are any (sched_yield(2)).
pub(crate) fn yield_core() {
    // SAFETY: no arguments; it cannot fail on Linux.
    unsafe { libc::sched_yield() };
}

/// A counter descriptor that is readable while it is not zero. Non-blocking, closed on exec.
pub(crate) fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the descriptor returned is new and nobody else's.
    unsafe {
        let fd = check(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Adds one to an eventfd. Async-signal-safe: one `write`, and errno is put back.
pub(crate) fn eventfd_raise(fd: BorrowedFd<'_>) {
    let one = 1u64;
    // SAFETY: `one` is eight readable bytes for the duration of the call, errno is thread-local. A full
    // counter (EAGAIN) is as readable as we want it, so the result does not matter.
    unsafe {
        let errno = *libc::__errno_location();
        libc::write(fd.as_raw_fd(), (&raw const one).cast(), size_of::<u64>());
        *libc::__errno_location() = errno;
    }
}

/// Whether a read would not block now.
pub(crate) fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let mut entry = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid entry, count one.
    unsafe { libc::poll(&mut entry, 1, 0) == 1 && entry.revents & libc::POLLIN != 0 }
}

/// Waits until a read would not block, at most `timeout` (`None`: for ever); `false`: it would, still.
pub(crate) fn wait_readable(fd: BorrowedFd<'_>, timeout: Option<Duration>) -> bool {
    let mut entry = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let span = timeout.map(timespec);
    let span = span.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: one valid entry, count one; the span, where there is one, outlives the call; no signal mask.
    unsafe { libc::ppoll(&mut entry, 1, span, std::ptr::null()) == 1 && entry.revents & libc::POLLIN != 0 }
}

/// Waits until one of these has something to tell, at most `timeout` (`None`: for ever); says what in `revents`.
pub(crate) fn poll(entries: &mut [libc::pollfd], timeout: Option<Duration>) -> io::Result<()> {
    let span = timeout.map(timespec);
    let span = span.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let count = entries.len() as libc::nfds_t;
    // SAFETY: `count` valid entries; the span, where there is one, outlives the call; no signal mask.
    match check(unsafe { libc::ppoll(entries.as_mut_ptr(), count, span, std::ptr::null()) }) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(()),
    }
}

/// Takes an eventfd's count: it is not readable any more. Nothing to take is no error.
pub(crate) fn eventfd_take(fd: BorrowedFd<'_>) {
    let mut count = 0u64;
    // SAFETY: `count` is eight writable bytes for the duration of the call. It does not wait: the descriptor is
    // non-blocking, and EAGAIN means that there was nothing.
    unsafe { libc::read(fd.as_raw_fd(), (&raw mut count).cast(), size_of::<u64>()) };
}

/// Nanoseconds on one of the kernel's clocks; `None` where the clock is gone (a thread that ended).
#[inline]
pub(crate) fn clock_ns(clock: libc::clockid_t) -> Option<u64> {
    let mut time = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: `time` is writable for one timespec and is read only after the call filled it.
    unsafe {
        if libc::clock_gettime(clock, time.as_mut_ptr()) != 0 {
            return None;
        }
        let time = time.assume_init();
        Some(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
    }
}

/// The clock that counts CPU time of the calling thread and can be read from any other thread.
pub(crate) fn thread_cpu_clock() -> io::Result<libc::clockid_t> {
    let mut clock: libc::clockid_t = 0;
    // SAFETY: pthread_self is always valid for the caller; `clock` is writable.
    match unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &mut clock) } {
        0 => Ok(clock),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// The kernel's account of a process or thread.
pub(crate) fn resource_usage(who: libc::c_int) -> io::Result<libc::rusage> {
    let mut usage = MaybeUninit::<libc::rusage>::uninit();
    // SAFETY: `usage` is writable for one rusage and is read only after the call filled it.
    unsafe {
        check(libc::getrusage(who, usage.as_mut_ptr()))?;
        Ok(usage.assume_init())
    }
}

/// A resource limit as (soft, hard); `u64::MAX` is "unlimited".
pub(crate) fn resource_limit(resource: libc::__rlimit_resource_t) -> io::Result<(u64, u64)> {
    let mut limit = MaybeUninit::<libc::rlimit>::uninit();
    // SAFETY: `limit` is writable for one rlimit and is read only after the call filled it.
    let limit = unsafe {
        check(libc::getrlimit(resource, limit.as_mut_ptr()))?;
        limit.assume_init()
    };
    Ok((limit.rlim_cur, limit.rlim_max))
}

/// Sets a resource limit of this process.
pub(crate) fn set_resource_limit(
    resource: libc::__rlimit_resource_t,
    soft: u64,
    hard: u64,
) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` is a valid rlimit for the duration of the call.
    check(unsafe { libc::setrlimit(resource, &limit) }).map(drop)
}

/// Writing to a closed connection must be an error code, not the end of the process. Rust programs start
/// that way; a program that embeds us may have changed it.
pub(crate) fn ignore_sigpipe() {
    // SAFETY: SIG_IGN is a valid disposition for SIGPIPE.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// A `timespec` of the same length.
#[inline]
pub(crate) fn timespec(duration: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: duration.as_secs().min(i64::MAX as u64) as libc::time_t,
        tv_nsec: duration.subsec_nanos() as libc::c_long,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn an_eventfd_is_readable_once_raised_and_stays_so() {
        let event = eventfd().unwrap();
        assert!(!is_readable(event.as_fd()));
        eventfd_raise(event.as_fd());
        eventfd_raise(event.as_fd());
        assert!(is_readable(event.as_fd()));
        assert!(is_readable(event.as_fd()), "polling does not take the count");
    }

    #[test]
    fn what_is_taken_from_an_eventfd_is_gone_and_waiting_ends_with_the_time() {
        let event = eventfd().unwrap();
        eventfd_take(event.as_fd());
        assert!(!wait_readable(event.as_fd(), Some(Duration::from_micros(100))));
        eventfd_raise(event.as_fd());
        assert!(wait_readable(event.as_fd(), None));
        eventfd_take(event.as_fd());
        assert!(!wait_readable(event.as_fd(), Some(Duration::ZERO)));
    }

    #[test]
    fn raising_leaves_errno_alone() {
        let event = eventfd().unwrap();
        // A counter at its maximum answers EAGAIN: fill it first.
        let full = u64::MAX - 1;
        // SAFETY: eight readable bytes.
        let written = unsafe { libc::write(event.as_raw_fd(), (&raw const full).cast(), 8) };
        assert_eq!(written, 8);
        // SAFETY: errno is thread-local.
        unsafe { *libc::__errno_location() = libc::ENOTTY };
        eventfd_raise(event.as_fd());
        assert_eq!(io::Error::last_os_error().raw_os_error(), Some(libc::ENOTTY));
    }

    #[test]
    fn an_unknown_clock_is_none() {
        assert!(clock_ns(libc::CLOCK_MONOTONIC).is_some());
        assert_eq!(clock_ns(12345), None);
    }
}
