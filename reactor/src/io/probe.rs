//! What this kernel, these limits and this machine allow, and what a person can do where they do not.
//!
//! Versions are not compared: what is needed is tried. A ring is set up with every flag that will be used, the
//! opcodes are asked for, and one message goes through a multishot receive into a provided buffer, because
//! that is where kernels that accept the registration still differ. What fails is explained with what /proc
//! says about the reason (sysctl, seccomp, limits), and every explanation ends in something to try.

use super::buffers::{BufferRing, GROUP};
use super::ring::{Ring, RingOptions};
use super::sys;
use super::uring::UringOptions;
use io_uring::{Probe, opcode, types};
use std::fmt;
use std::fs;
use std::io;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Descriptors that are not connections: the standard three, listeners, ring, eventfds, files to come.
const RESERVED_FILES: u64 = 160;

/// Why io_uring cannot be used, and what to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingUnavailable(String);

impl fmt::Display for RingUnavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for RingUnavailable {}

/// Tries what the io_uring driver will use, small: whether it works does not depend on the size.
pub fn check_uring(options: &UringOptions) -> Result<(), RingUnavailable> {
    let small = RingOptions { submission_entries: 8, completion_entries: 32, ..options.ring };
    let ring = Ring::new(&small).map_err(|error| explain(&error, options))?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(|error| explain(&error, options))?;
    let missing: Vec<&str> =
        OPCODES.iter().filter(|(code, _)| !probe.is_supported(*code)).map(|(_, name)| *name).collect();
    if !missing.is_empty() {
        return Err(too_old(&format!("the operations {}", missing.join(", ")), &Facts::read()));
    }
    if options.provided_buffers && options.multishot_receive {
        try_multishot_receive(ring).map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => too_old(
                "multishot receives into provided buffers (Linux 6.0; --uring-multishot-receive no does without)",
                &Facts::read(),
            ),
            _ => explain(&error, options),
        })?;
    }
    Ok(())
}

/// The operations no switch can do without.
const OPCODES: &[(u8, &str)] = &[
    (opcode::Accept::CODE, "ACCEPT"),
    (opcode::Recv::CODE, "RECV"),
    (opcode::Send::CODE, "SEND"),
    (opcode::Connect::CODE, "CONNECT"),
    (opcode::Shutdown::CODE, "SHUTDOWN"),
    (opcode::Close::CODE, "CLOSE"),
    (opcode::PollAdd::CODE, "POLL_ADD"),
    (opcode::AsyncCancel::CODE, "ASYNC_CANCEL"),
];

/// One message through a socket pair, received as the driver receives.
fn try_multishot_receive(ring: Ring) -> io::Result<()> {
    const MESSAGE: &[u8] = b"does it turn?";
    let buffers = BufferRing::new(&ring, 8, 64)?;
    // Dropped in the reverse order, and the ring has to go first: it may still write into the buffers.
    let mut ring = ring;
    let (mut ours, theirs) = UnixStream::pair()?;
    ours.write_all(MESSAGE)?;
    let receive = opcode::RecvMulti::new(types::Fd(theirs.as_raw_fd()), GROUP).build();
    // SAFETY: the entry points to no memory but the buffer ring's, which outlives the ring.
    unsafe { ring.push(receive)? };
    ring.enter(1, Some(Duration::from_secs(1)))?;
    match ring.next_completion() {
        None => Err(io::Error::new(io::ErrorKind::TimedOut, "a receive of a test message did not complete")),
        Some(completion) if completion.result < 0 => Err(io::Error::from_raw_os_error(-completion.result)),
        Some(completion) => match completion.buffer() {
            Some(id) if buffers.bytes(id, completion.result as usize) == MESSAGE => Ok(()),
            _ => Err(io::Error::other("a receive of a test message brought something else")),
        },
    }
}

/// What a failed set-up of the ring or of its buffers means here.
pub fn explain(error: &io::Error, options: &UringOptions) -> RingUnavailable {
    match error.raw_os_error() {
        Some(libc::EINVAL) => {
            let missing = missing_flags(&options.ring, |ring| Ring::new(ring).is_ok());
            too_old(&missing, &Facts::read())
        }
        _ => explain_with(error, options, &Facts::read()),
    }
}

/// What /proc knows about the reasons.
#[derive(Debug)]
struct Facts {
    /// `kernel.io_uring_disabled`: 0 open, 1 for a group only, 2 for nobody.
    sysctl: Option<u32>,
    /// `Seccomp:` of this thread; 2 is a filter.
    seccomp: Option<u32>,
    memlock_bytes: u64,
    kernel: String,
}

impl Facts {
    fn read() -> Self {
        let number = |text: &str| text.trim().parse().ok();
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        // A filter belongs to a thread, not to the process.
        let status = read("/proc/thread-self/status");
        Facts {
            sysctl: number(&read("/proc/sys/kernel/io_uring_disabled")),
            seccomp: status.lines().find_map(|line| line.strip_prefix("Seccomp:")).and_then(number),
            memlock_bytes: sys::resource_limit(libc::RLIMIT_MEMLOCK).map_or(u64::MAX, |limit| limit.0),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_string(),
        }
    }
}

fn too_old(missing: &str, facts: &Facts) -> RingUnavailable {
    RingUnavailable(format!(
        "this kernel ({}) is too old for io_uring as Millrace uses it: it lacks {missing}; a newer kernel (6.1 at \
         least) or --io epoll",
        facts.kernel
    ))
}

/// Names the set-up flags a kernel lacks: those without which the set-up works.
fn missing_flags(options: &RingOptions, works: impl Fn(&RingOptions) -> bool) -> String {
    let small = RingOptions { submission_entries: 8, completion_entries: 32, ..*options };
    let mut left_out = small;
    let mut names = Vec::new();
    // From the newest to the oldest: a kernel lacks a newer one before an older one.
    if options.no_sqarray {
        left_out.no_sqarray = false;
        names.push("NO_SQARRAY (Linux 6.6; --uring-no-sqarray no does without)");
        if works(&left_out) {
            return names.join(", ");
        }
    }
    if options.defer_taskrun {
        left_out.defer_taskrun = false;
        names.push("DEFER_TASKRUN (Linux 6.1; --uring-defer-taskrun no does without)");
        if works(&left_out) {
            return names.join(", ");
        }
    }
    if options.single_issuer {
        left_out.single_issuer = false;
        names.push("SINGLE_ISSUER (Linux 6.0; --uring-single-issuer no does without)");
        if works(&left_out) {
            return names.join(", ");
        }
    }
    "a flag of the set-up that no switch turns off (SUBMIT_ALL, COOP_TASKRUN, TASKRUN_FLAG: Linux 5.19)"
        .into()
}

fn explain_with(error: &io::Error, options: &UringOptions, facts: &Facts) -> RingUnavailable {
    let filtered = facts.seccomp == Some(2);
    let reason = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => match facts.sysctl {
            Some(2) => "sysctl kernel.io_uring_disabled=2 forbids io_uring to everybody; \
                        `sysctl -w kernel.io_uring_disabled=0` allows it"
                .into(),
            Some(1) if !filtered => "sysctl kernel.io_uring_disabled=1 keeps io_uring for one group \
                                     (kernel.io_uring_group); join that group, or set it to 0"
                .into(),
            _ if filtered => "a seccomp filter forbids io_uring to this process, as Docker and containerd do by \
                              default; start the container with a profile that allows io_uring_setup, \
                              io_uring_enter and io_uring_register (--security-opt seccomp=FILE)"
                .into(),
            _ => format!("the kernel forbids io_uring to this process ({error}); a security module may be why"),
        },
        Some(libc::ENOSYS) if filtered => {
            "a seccomp filter hides io_uring from this process, or the kernel has none; start the container \
             with a profile that allows io_uring_setup, io_uring_enter and io_uring_register"
                .into()
        }
        Some(libc::ENOSYS) => format!(
            "this kernel ({}) has no io_uring: it is older than 5.1, built without it, or no Linux at heart (gVisor)",
            facts.kernel
        ),
        Some(libc::ENOMEM) => format!(
            "no memory for the ring: it needs about {} KiB of locked memory, and the limit is {} KiB for all rings \
             of this user together; raise it (`ulimit -l`, LimitMEMLOCK=, --ulimit memlock=-1), or take fewer \
             --uring-provided-buffers-count",
            locked_bytes(options).div_ceil(1024),
            facts.memlock_bytes / 1024
        ),
        Some(libc::EMFILE | libc::ENFILE) => {
            "no descriptor is left for the ring, or its table of direct descriptors is larger than the limit on \
             open files; raise that (`ulimit -n`)"
                .into()
        }
        _ => format!("io_uring could not be set up: {error}"),
    };
    RingUnavailable(format!("{reason}; or choose --io epoll"))
}

/// What the kernel charges to RLIMIT_MEMLOCK: the two queues and the ring of receive buffers, in pages.
fn locked_bytes(options: &UringOptions) -> u64 {
    let pages = |bytes: u64| bytes.next_multiple_of(4096);
    let ring = &options.ring;
    let indices = if ring.no_sqarray { 0 } else { ring.submission_entries as u64 * 4 };
    pages(ring.submission_entries as u64 * 64)
        + pages(ring.completion_entries as u64 * 16 + indices + 64)
        + pages(if options.provided_buffers { options.buffer_count as u64 * 16 } else { 0 })
}

/// How many clients the limit on open files allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenFiles {
    /// At most what was asked for.
    pub clients_max: usize,
    /// Said where it is less.
    pub warning: Option<String>,
}

/// Raises the limit on open files to what `clients_max` connections need. Where it cannot be raised far
/// enough, fewer clients are served, as in Redis; where not even a few would fit, that is the error.
pub fn raise_open_files(clients_max: usize) -> Result<OpenFiles, String> {
    let (soft, hard) = sys::resource_limit(libc::RLIMIT_NOFILE).map_err(|error| error.to_string())?;
    let need = clients_max as u64 + RESERVED_FILES;
    if soft >= need {
        return Ok(OpenFiles { clients_max, warning: None });
    }
    // A privileged process may raise the hard limit too.
    let raised = [(need, hard.max(need)), (hard, hard)]
        .into_iter()
        .find(|&(soft, hard)| sys::set_resource_limit(libc::RLIMIT_NOFILE, soft, hard).is_ok());
    fit_open_files(clients_max, raised.map_or(soft, |(soft, _)| soft))
}

fn fit_open_files(clients_max: usize, limit: u64) -> Result<OpenFiles, String> {
    let possible = limit.saturating_sub(RESERVED_FILES).min(clients_max as u64) as usize;
    if possible == 0 {
        return Err(format!(
            "the limit on open files is {limit}, and {RESERVED_FILES} are needed beside connections; raise it \
             (`ulimit -n`, LimitNOFILE=, --ulimit nofile=)"
        ));
    }
    let warning = (possible < clients_max).then(|| {
        format!(
            "maxclients is {possible} instead of {clients_max}: the limit on open files is {limit} and cannot be \
             raised from here; raise it to {} (`ulimit -n`, LimitNOFILE=, --ulimit nofile=)",
            clients_max as u64 + RESERVED_FILES
        )
    });
    Ok(OpenFiles { clients_max: possible, warning })
}

/// The kernel's bound on the queue of connections not accepted yet.
pub fn backlog_max() -> Option<u32> {
    fs::read_to_string("/proc/sys/net/core/somaxconn").ok()?.trim().parse().ok()
}

/// Who listens on a TCP port, as `pid 4711 (redis-server)`. Needs to see that process' descriptors, which an
/// unprivileged user can for their own processes only.
pub(crate) fn who_listens(port: u16) -> Option<String> {
    let tables =
        ["/proc/net/tcp", "/proc/net/tcp6"].map(|table| fs::read_to_string(table).unwrap_or_default());
    let inodes: Vec<String> = tables
        .iter()
        .flat_map(|table| listening_inodes(table, port))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    let holds = |process: &fs::DirEntry| {
        fs::read_dir(process.path().join("fd")).is_ok_and(|descriptors| {
            descriptors.flatten().any(|descriptor| {
                fs::read_link(descriptor.path())
                    .is_ok_and(|target| inodes.iter().any(|inode| target.as_os_str() == inode.as_str()))
            })
        })
    };
    let is_process = |entry: &fs::DirEntry| entry.file_name().as_encoded_bytes()[0].is_ascii_digit();
    let holder = fs::read_dir("/proc").ok()?.flatten().filter(is_process).find(holds)?;
    let name = fs::read_to_string(holder.path().join("comm")).unwrap_or_default();
    Some(format!("pid {} ({})", holder.file_name().to_string_lossy(), name.trim()))
}

/// The socket inodes that listen on `port` in a table of the form of `/proc/net/tcp`.
fn listening_inodes(table: &str, port: u16) -> impl Iterator<Item = &str> {
    const LISTEN: &str = "0A";
    table.lines().skip(1).filter_map(move |line| {
        let mut fields = line.split_ascii_whitespace();
        let local = fields.nth(1)?;
        let state = fields.nth(1)?;
        let inode = fields.nth(5)?;
        let local_port = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
        (state == LISTEN && local_port == port).then_some(inode)
    })
}

/// Ports below this one need a privilege.
pub(crate) fn first_unprivileged_port() -> u16 {
    fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts { sysctl: Some(0), seccomp: Some(0), memlock_bytes: 64 << 10, kernel: "6.18.44".into() }
    }

    fn told(errno: i32, facts: Facts) -> String {
        let error = io::Error::from_raw_os_error(errno);
        let text = explain_with(&error, &UringOptions::default(), &facts).to_string();
        assert!(text.ends_with("or choose --io epoll"), "{text}");
        text
    }

    #[test]
    fn each_way_to_forbid_io_uring_is_told_from_the_others() {
        assert!(
            told(libc::EPERM, Facts { sysctl: Some(2), ..facts() }).contains("kernel.io_uring_disabled=2")
        );
        assert!(told(libc::EPERM, Facts { sysctl: Some(1), ..facts() }).contains("kernel.io_uring_group"));
        assert!(told(libc::EPERM, Facts { seccomp: Some(2), ..facts() }).contains("seccomp filter forbids"));
        assert!(told(libc::EPERM, facts()).contains("security module"));
        assert!(told(libc::ENOSYS, Facts { seccomp: Some(2), ..facts() }).contains("seccomp filter hides"));
        assert!(told(libc::ENOSYS, facts()).contains("(6.18.44) has no io_uring"));
        assert!(told(libc::EMFILE, facts()).contains("ulimit -n"));
        assert!(told(libc::EIO, facts()).contains("could not be set up"));
    }

    #[test]
    fn too_little_locked_memory_is_told_with_limit_and_need() {
        let text = told(libc::ENOMEM, facts());
        assert!(text.contains("needs about 284 KiB") && text.contains("the limit is 64 KiB"), "{text}");
        assert!(text.contains("ulimit -l"), "{text}");
    }

    #[test]
    fn an_old_kernel_is_told_which_flags_it_lacks() {
        let options = RingOptions::default();
        let text = missing_flags(&options, |ring| !ring.no_sqarray);
        assert!(text.contains("NO_SQARRAY") && !text.contains("DEFER"), "{text}");
        let text = missing_flags(&options, |ring| !ring.no_sqarray && !ring.defer_taskrun);
        assert!(text.contains("NO_SQARRAY") && text.contains("DEFER") && !text.contains("SINGLE"), "{text}");
        let text = missing_flags(&options, |ring| !ring.single_issuer);
        assert!(text.contains("SINGLE_ISSUER"), "{text}");
        assert!(missing_flags(&options, |_| false).contains("5.19"));
        let text = too_old("X", &facts()).to_string();
        assert!(
            text.contains("6.18.44") && text.contains("lacks X") && text.contains("--io epoll"),
            "{text}"
        );
    }

    /// Where the tests run io_uring may be forbidden; then the message must say by whom.
    #[test]
    fn this_machine_passes_or_is_told_why_not() {
        if let Err(why) = check_uring(&UringOptions::default()) {
            let text = why.to_string();
            assert!(text.contains("--io epoll") && text.len() > 60, "{text}");
        }
    }

    /// A filter that answers EPERM to io_uring_setup, on one thread, as a container's does for all.
    #[test]
    fn a_real_seccomp_filter_is_recognised() {
        let why = std::thread::spawn(|| {
            forbid_io_uring_on_this_thread();
            check_uring(&UringOptions::default()).unwrap_err().to_string()
        });
        let why = why.join().unwrap();
        assert!(why.contains("seccomp filter forbids"), "{why}");
        assert!(why.contains("--security-opt") && why.contains("--io epoll"), "{why}");
    }

    fn forbid_io_uring_on_this_thread() {
        let step =
            |code: u32, k: u32, yes: u8, no: u8| libc::sock_filter { code: code as u16, jt: yes, jf: no, k };
        let mut program = [
            // seccomp_data starts with the number of the system call.
            step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
            step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, libc::SYS_io_uring_setup as u32, 0, 1),
            step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32, 0, 0),
            step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0),
        ];
        let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
        // SAFETY: the program is valid for the calls; both act on the calling thread only, which ends with
        // the test.
        unsafe {
            assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
            let mode = libc::SECCOMP_SET_MODE_FILTER;
            let result = libc::syscall(libc::SYS_seccomp, mode, 0, &raw const program);
            assert_eq!(result, 0, "{}", io::Error::last_os_error());
        }
    }

    #[test]
    fn fewer_files_are_fewer_clients() {
        assert_eq!(fit_open_files(100, 260), Ok(OpenFiles { clients_max: 100, warning: None }));
        let fewer = fit_open_files(10_000, 1024).unwrap();
        assert_eq!(fewer.clients_max, 864);
        let warning = fewer.warning.unwrap();
        assert!(
            warning.contains("864 instead of 10000") && warning.contains("raise it to 10160"),
            "{warning}"
        );
        let refused = fit_open_files(10_000, 64).unwrap_err();
        assert!(refused.contains("open files is 64") && refused.contains("ulimit -n"), "{refused}");
    }

    #[test]
    fn listeners_are_found_in_the_kernels_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:18EB 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 0000000000000000
   1: 0100007F:18EB 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 4343 1 0000000000000000
   2: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4444 1 0000000000000000
";
        assert_eq!(listening_inodes(table, 6379).collect::<Vec<_>>(), ["4242"]);
        assert_eq!(listening_inodes(table, 8080).collect::<Vec<_>>(), ["4444"]);
        assert_eq!(listening_inodes(table, 1).count(), 0);
    }
}
