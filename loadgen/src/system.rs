//! What /proc tells: CPU time of processes and of the whole machine, and the description of both.

use serde::Serialize;
use std::fs;

/// /proc/stat counts in ticks of 10 ms, whatever the kernel's own tick is.
const TICK_NS: u64 = 10_000_000;

/// The machine's CPU time since boot, all cores together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MachineTimes {
    /// User, system and interrupt time.
    pub busy_ns: u64,
    /// Time the hypervisor gave to others.
    pub steal_ns: u64,
}

impl MachineTimes {
    /// Busy time between two readings.
    pub fn busy_since(&self, earlier: &MachineTimes) -> u64 {
        self.busy_ns.saturating_sub(earlier.busy_ns)
    }

    /// Stolen time between two readings.
    pub fn steal_since(&self, earlier: &MachineTimes) -> u64 {
        self.steal_ns.saturating_sub(earlier.steal_ns)
    }
}

/// Reads /proc/stat.
pub fn machine_times() -> Option<MachineTimes> {
    parse_machine_times(&fs::read_to_string("/proc/stat").ok()?)
}

fn parse_machine_times(text: &str) -> Option<MachineTimes> {
    let line = text.lines().find(|line| line.starts_with("cpu "))?;
    let ticks: Vec<u64> = line.split_ascii_whitespace().skip(1).map_while(|word| word.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal (guest time is part of user)
    let [user, nice, system, _, _, irq, softirq, steal, ..] = ticks[..] else { return None };
    let busy_ns = (user + nice + system + irq + softirq) * TICK_NS;
    Some(MachineTimes { busy_ns, steal_ns: steal * TICK_NS })
}

/// CPU time of a process, its threads and its children, in nanoseconds. `None`: there is no such process.
///
/// The scheduler's own count is read where the kernel offers it: /proc/PID/stat has ticks of 10 ms only.
pub fn process_cpu_ns(pid: u32) -> Option<u64> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let (mut threads, mut below) = (0, 0);
    for task in tasks.flatten() {
        let path = task.path();
        // A thread may end between the listing and the reading.
        if let Ok(text) = fs::read_to_string(path.join("schedstat")) {
            threads += text.split_ascii_whitespace().next()?.parse::<u64>().ok()?;
        } else {
            return process_cpu_ticks(pid);
        }
        if let Ok(children) = fs::read_to_string(path.join("children")) {
            for child in children.split_ascii_whitespace() {
                below += child.parse().ok().and_then(process_cpu_ns).unwrap_or(0);
            }
        }
    }
    // Threads that have ended are in the count in ticks alone.
    Some(threads.max(process_cpu_ticks(pid).unwrap_or(0)) + below)
}

fn process_cpu_ticks(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; the numbers follow the last one.
    let numbers: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let user: u64 = numbers.get(11)?.parse().ok()?;
    let system: u64 = numbers.get(12)?.parse().ok()?;
    Some((user + system) * TICK_NS)
}

/// Sends a signal, by name, to a process that was started here; whether that worked.
pub fn signal(pid: u32, name: &str) -> bool {
    kill(&format!("-{name} {pid}"))
}

/// Whether a process is stopped by a signal: state T in proc_pid_stat(5).
pub fn is_stopped(pid: u32) -> bool {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Behind the name, which may hold anything.
    text.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T'))
}

/// Sends a signal, by name, to all of a group that was started here; whether that worked.
pub fn signal_group(leader: u32, name: &str) -> bool {
    kill(&format!("-{name} -- -{leader}"))
}

fn kill(arguments: &str) -> bool {
    // The shell's own kill: there may be no program of that name.
    let script = format!("kill {arguments}");
    let mut shell = std::process::Command::new("sh");
    shell.arg("-c").arg(script).stdin(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    shell.status().is_ok_and(|status| status.success())
}

/// Resident memory of a process.
pub fn process_resident_bytes(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_ascii_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// Memory that programs could still take.
pub fn memory_available_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.split_ascii_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// Lets the calling thread's sleeps end on time: the default slack is 50 µs, more than most latencies here.
pub fn set_timer_slack_ns(ns: u64) -> bool {
    // /proc/thread-self has no such file, but /proc/TID does, for every thread.
    let tid = fs::read_link("/proc/thread-self").ok();
    let tid = tid.as_ref().and_then(|path| path.file_name()).and_then(|name| name.to_str());
    tid.is_some_and(|tid| fs::write(format!("/proc/{tid}/timerslack_ns"), ns.to_string()).is_ok())
}

/// The conditions of a measurement: a figure without them is a rumour.
#[derive(Clone, Debug, Serialize)]
pub struct Manifest {
    /// When the run began, UTC.
    pub started_at: String,
    /// The command line.
    pub command: Vec<String>,
    /// Version of this tool.
    pub version: &'static str,
    /// Commit of the source tree when this tool was built, `-dirty` where it had changes; `None`: there was no repository.
    pub commit: Option<String>,
    /// The compiler that built this tool.
    pub toolchain: &'static str,
    /// `release` or `debug`, and its flags.
    pub profile: &'static str,
    /// Extra flags given to the compiler.
    pub rust_flags: &'static str,
    /// Kernel release and version.
    pub kernel: Option<String>,
    /// Model name.
    pub cpu_model: Option<String>,
    /// Cores this process may use.
    pub cores: Vec<usize>,
    /// Frequency governor; `None`: the machine does not say (a virtual one).
    pub governor: Option<String>,
    /// Whether two of the cores share one physical core.
    pub smt: Option<String>,
    /// State of each vulnerability's mitigation.
    pub mitigations: Vec<String>,
    /// Physical memory.
    pub memory_bytes: Option<u64>,
    /// Load average of the last minute, before the run.
    pub load_average: Option<f64>,
    /// Clock source of the kernel.
    pub clock_source: Option<String>,
    /// Hypervisor or bare.
    pub virtual_machine: bool,
    /// TCP congestion control that new sockets use.
    pub tcp_congestion_control: Option<String>,
}

impl Manifest {
    /// Reads the machine.
    pub fn read() -> Manifest {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_string())
        };
        let memory = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
            let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.to_string();
            Some(line.split_ascii_whitespace().next()?.parse::<u64>().ok()? * 1024)
        });
        Manifest {
            started_at: timestamp(),
            command: std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect(),
            version: env!("CARGO_PKG_VERSION"),
            commit: commit(),
            toolchain: env!("LOADGEN_TOOLCHAIN"),
            profile: env!("LOADGEN_PROFILE"),
            rust_flags: env!("LOADGEN_RUST_FLAGS"),
            kernel: read_line("/proc/version"),
            cpu_model: field("model name"),
            cores: reactor::cpu::allowed_cores(),
            governor: read_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            smt: read_line("/sys/devices/system/cpu/smt/active"),
            mitigations: mitigations(),
            memory_bytes: memory,
            load_average: read_line("/proc/loadavg")
                .and_then(|text| text.split_ascii_whitespace().next()?.parse().ok()),
            clock_source: read_line("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
            virtual_machine: field("flags").is_some_and(|flags| flags.contains("hypervisor")),
            tcp_congestion_control: read_line("/proc/sys/net/ipv4/tcp_congestion_control"),
        }
    }
}

fn read_line(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_string())
}

fn mitigations() -> Vec<String> {
    let Ok(entries) = fs::read_dir("/sys/devices/system/cpu/vulnerabilities") else { return Vec::new() };
    let mut lines: Vec<String> = entries
        .flatten()
        .filter_map(|entry| {
            let state = fs::read_to_string(entry.path()).ok()?;
            let state = state.trim();
            let name = entry.file_name().into_string().ok()?;
            (state != "Not affected").then(|| format!("{name}: {state}"))
        })
        .collect();
    lines.sort();
    lines
}

/// The commit of the tree this was built from, as the build has written it down: the tree may have moved since.
fn commit() -> Option<String> {
    Some(env!("LOADGEN_COMMIT").to_string()).filter(|commit| !commit.is_empty())
}

/// The present moment as `20261121T223015Z`.
pub fn timestamp() -> String {
    let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format_timestamp(since_1970.as_secs())
}

fn format_timestamp(unix_s: u64) -> String {
    let (days, seconds) = (unix_s / 86_400, unix_s % 86_400);
    // Count in years that begin in March, so that the leap day is the last of its year: 400 years are 146,097
    // days, and the months from March on follow the line (153·m + 2)/5.
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_name_the_right_day() {
        for (unix_s, expected) in [
            (0, "19700101T000000Z"),
            (951_782_400, "20000229T000000Z"),
            (1_709_251_199, "20240229T235959Z"),
            (1_735_689_600, "20250101T000000Z"),
            (1_795_300_215, "20261121T223015Z"),
        ] {
            assert_eq!(format_timestamp(unix_s), expected);
        }
    }

    #[test]
    fn the_machine_line_is_read() {
        let text = "cpu  10 20 30 1000 50 6 7 8 9 0\ncpu0 1 2 3 4 5 6 7 8 9 0\n";
        let times = parse_machine_times(text).expect("well-formed");
        assert_eq!(times, MachineTimes { busy_ns: 73 * TICK_NS, steal_ns: 8 * TICK_NS });
        assert_eq!(parse_machine_times("intr 1\n"), None);
        assert!(machine_times().is_some_and(|times| times.busy_ns > 0));
    }

    #[test]
    fn what_a_thread_used_stays_when_it_ends() {
        let pid = std::process::id();
        let before = process_cpu_ns(pid).expect("it is this one");
        let used = std::thread::spawn(|| {
            while reactor::cpu::thread_cpu_time().as_millis() < 100 {
                std::hint::spin_loop();
            }
        });
        used.join().expect("no panic");
        // Two ticks are lost by rounding; what other tests use meanwhile comes on top.
        let after = process_cpu_ns(pid).expect("it still is");
        assert!(after >= before + 75_000_000, "{before} and {after}");
    }

    #[test]
    fn cpu_time_of_a_process_grows_with_its_work() {
        // A process of its own: in this one other tests' threads end meanwhile, and take their time with them.
        let mut child =
            std::process::Command::new("sh").args(["-c", "while :; do :; done"]).spawn().expect("a shell");
        let begun = std::time::Instant::now();
        let before = process_cpu_ns(child.id()).expect("it exists");
        while process_cpu_ns(child.id()).expect("it still exists") < before + 20_000_000 {
            assert!(begun.elapsed().as_secs() < 30, "it works and its time does not grow");
            std::thread::yield_now();
        }
        child.kill().expect("it is ours");
        child.wait().expect("it ends");
        assert_eq!(process_cpu_ns(u32::MAX), None);
    }
}
