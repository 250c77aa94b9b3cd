//! What runs where: which shard on which core, with which part of the keys, listening where.
//!
//! Decided in one place before anything is started, so that `millrace topology` prints what a start would do.

use super::config::{Io, Launch};
use crate::cpu::{self, PinError};
use std::fmt::{self, Write};
use store::shards;

/// Where every shard of a server runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// The core of each shard, in order; `None`: not pinned.
    pub cores: Vec<Option<usize>>,
    /// Several shards share a core.
    pub crowded: bool,
    /// What an operator should know of it.
    pub warnings: Vec<String>,
}

impl Topology {
    /// Decides it; an error if a core that was named cannot be had.
    pub fn plan(launch: &Launch) -> Result<Topology, PinError> {
        for &core in &launch.pin {
            cpu::check_pin(core)?;
        }
        Ok(Self::deal(launch.shards, &launch.pin, &cpu::allowed_cores()))
    }

    /// Deals the cores out: those that were named, or else those of the affinity mask if there are enough.
    fn deal(shards: usize, pin: &[usize], allowed: &[usize]) -> Topology {
        let mut warnings = Vec::new();
        let mut named: Vec<usize> = pin.to_vec();
        named.sort_unstable();
        named.dedup();
        let crowded = match named.len() {
            0 => shards > allowed.len().max(1),
            count => shards > count,
        };
        if crowded {
            let (cores, whose) = match named.len() {
                0 => (allowed.len(), "this process may use"),
                count => (count, "pin names"),
            };
            warnings.push(format!(
                "{shards} shards on {cores} core{}, all that {whose}: shards that share a core wait for each other, \
                 and every command that needs another shard waits with them; use at most one shard for each core",
                if cores == 1 { "" } else { "s" },
            ));
        }
        let core = |shard: usize| match pin {
            [] if shards == 1 || crowded => None,
            [] => Some(allowed[shard]),
            _ => Some(pin[shard % pin.len()]),
        };
        Topology { cores: (0..shards).map(core).collect(), crowded, warnings }
    }

    /// A core for threads that help a shard: one that no shard is pinned to. `None`: there is none, or nothing is
    /// pinned.
    pub fn helper_core(&self) -> Option<usize> {
        let taken: Vec<usize> = self.cores.iter().flatten().copied().collect();
        match taken[..] {
            [] => None,
            _ => cpu::allowed_cores().into_iter().find(|core| !taken.contains(core)),
        }
    }

    /// All of it as a table for a person to read.
    pub fn describe(&self, launch: &Launch) -> String {
        let mut text = String::new();
        let count = self.cores.len();
        let allowed: Vec<String> = cpu::allowed_cores().iter().map(usize::to_string).collect();
        let _ = writeln!(text, "shards     {count}");
        let _ = writeln!(text, "cores      {} (all that this process may use)", allowed.join(","));
        let _ = writeln!(text, "driver     {}", Ring(launch));
        for (number, (transport, address, how)) in listeners(launch).into_iter().enumerate() {
            let title = if number == 0 { "listeners" } else { "" };
            let _ = writeln!(text, "{title:<10} {transport:<4} {address}{how}");
        }
        let _ = writeln!(text, "hop queue  {} messages from each shard to each other", launch.hop_queue);
        let _ = writeln!(text, "\n{:<7}{:<12}{:<8}{:<14}slots", "shard", "core", "node", "keys");
        for (shard, core) in self.cores.iter().enumerate() {
            let (from, to) = shards::slots_of(shard, count);
            let core_name = core.map_or_else(|| "any".into(), |core| core.to_string());
            let node =
                core.and_then(cpu::memory_node).map_or_else(|| "-".into(), |node: usize| node.to_string());
            let share = format!("{:.2} %", 100.0 * (to - from) as f64 / shards::SLOTS as f64);
            let _ = writeln!(text, "{shard:<7}{core_name:<12}{node:<8}{share:<14}{from}-{}", to - 1);
        }
        text
    }
}

/// The driver of every shard, in a line.
struct Ring<'a>(&'a Launch);

impl fmt::Display for Ring<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let launch = self.0;
        match launch.io {
            Io::Epoll => write!(f, "{}, one instance for each shard", launch.io),
            Io::Uring => {
                let (ring, options) = (&launch.uring.ring, &launch.uring);
                write!(
                    f,
                    "{}, one ring for each shard: {} submissions, {} completions",
                    launch.io, ring.submission_entries, ring.completion_entries
                )?;
                match options.provided_buffers {
                    true => write!(f, ", {} buffers of {} bytes", options.buffer_count, options.buffer_size),
                    false => write!(f, ", a buffer of {} bytes for each connection", options.buffer_size),
                }
            }
        }
    }
}

/// Protocol, address, and how shards share it.
fn listeners(launch: &Launch) -> Vec<(&'static str, String, &'static str)> {
    let several = launch.shards > 1;
    let dealt = if several { ", a socket for each shard (SO_REUSEPORT)" } else { "" };
    let mut all = Vec::new();
    let ports = [("resp", Some(launch.port)), ("http", launch.http_port)];
    for (transport, port) in ports {
        let Some(port) = port else { continue };
        let name = if port == 0 { "a free port".to_string() } else { port.to_string() };
        for bind in &launch.bind {
            let address = match bind.address {
                std::net::IpAddr::V4(address) => format!("{address}:{name}"),
                std::net::IpAddr::V6(address) => format!("[{address}]:{name}"),
            };
            let optional = if bind.optional { " (if this machine has it)" } else { "" };
            all.push((transport, format!("{address}{optional}"), dealt));
        }
    }
    if let Some(path) = &launch.unix {
        let shared = if several { ", one socket that all shards wait on" } else { "" };
        all.push(("unix", path.display().to_string(), shared));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_shard_is_pinned_only_where_asked() {
        assert_eq!(Topology::deal(1, &[], &[0, 1]).cores, [None]);
        assert_eq!(Topology::deal(1, &[1], &[0, 1]).cores, [Some(1)]);
    }

    #[test]
    fn several_shards_have_a_core_each_where_there_are_enough() {
        let topology = Topology::deal(2, &[], &[3, 5, 7]);
        assert_eq!((topology.cores, topology.crowded), (vec![Some(3), Some(5)], false));
        assert!(topology.warnings.is_empty());
        let topology = Topology::deal(2, &[7, 3], &[3, 5, 7]);
        assert_eq!((topology.cores, topology.crowded), (vec![Some(7), Some(3)], false));
    }

    #[test]
    fn too_few_cores_are_told_with_what_follows() {
        let topology = Topology::deal(4, &[], &[0, 1]);
        assert_eq!((topology.cores, topology.crowded), (vec![None; 4], true));
        let warning = &topology.warnings[0];
        assert!(
            warning.contains("4 shards on 2 cores") && warning.contains("wait for each other"),
            "{warning}"
        );
        let topology = Topology::deal(3, &[0, 0], &[0, 1]);
        assert_eq!(topology.cores, [Some(0), Some(0), Some(0)]);
        assert!(topology.crowded && topology.warnings[0].contains("1 core, all that pin names"));
        let topology = Topology::deal(3, &[0, 1], &[0, 1]);
        assert_eq!(topology.cores, [Some(0), Some(1), Some(0)]);
    }
}
