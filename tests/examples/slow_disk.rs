//! A disk whose flushes take their time, for figures: `cargo run --profile ci -p tests --example slow_disk MILLISECONDS`.
//!
//! Prints `ready MOUNT_POINT` and keeps the disk until its standard input ends. The disk is the power-cut disk of the
//! tests: a FUSE file in memory, a loop device on it, ext4 on that. Exit codes: 0, 1 where this machine has none, 2 wrong
//! usage.

use std::io::{Read, stdin};
use std::process::ExitCode;
use std::time::Duration;
use tests::power_cut::{Options, PowerCutDisk};

fn main() -> ExitCode {
    let delay =
        std::env::args().nth(1).and_then(|text| text.parse::<f64>().ok()).filter(|delay| *delay >= 0.0);
    let Some(delay) = delay.filter(|_| std::env::args().len() == 2) else {
        eprintln!("usage: slow_disk MILLISECONDS\nHow long each flush takes.");
        return ExitCode::from(2);
    };
    let disk = match PowerCutDisk::new(Options { size: 1 << 30, ..Options::default() }) {
        Ok(disk) => disk,
        Err(unavailable) => {
            eprintln!("slow_disk: {unavailable}");
            return ExitCode::FAILURE;
        }
    };
    disk.set_flush_delay(Duration::from_secs_f64(delay / 1000.0));
    println!("ready {}", disk.mount_point().display());
    // Whoever started this closes the pipe, or ends.
    let _ = stdin().read_to_end(&mut Vec::new());
    ExitCode::SUCCESS
}
