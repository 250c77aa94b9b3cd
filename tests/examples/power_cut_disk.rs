//! The power-cut disk by hand: mounts one, prints `ready`, and takes commands from standard input until `quit`.
//!
//! ```text
//! cargo run -p tests --example power_cut_disk -- --dir /mnt/x --slow-flush 2ms
//! ```
//!
//! Needs root, as the disk does. End of input, SIGINT and SIGTERM unmount it, too.

use std::io::{BufRead, stdin};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tests::power_cut::{CutStyle, Options, PowerCutDisk};

/// A disk whose power can be cut, mounted for use by hand.
#[derive(Parser)]
struct Arguments {
    /// Where to mount it: an empty directory, made and removed again if it is not there [default: a temporary one]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Its size in MiB, at least 16
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(16..))]
    size_mib: u32,
    /// How long each flush takes: 2ms, 500us, 1s
    #[arg(long, value_parser = duration, default_value = "0ms")]
    slow_flush: Duration,
}

const COMMANDS: &str = "\
cut SEED [lose | writes | sectors]   cut the power; of what is not flushed nothing survives, or some requests, or
                                     some sectors (the default)
heal                                 bring the power back and mount what is left; stop what uses the mount before
slow DURATION                        each flush takes so long: 2ms, 500us; 0ms: as fast as it can
fail-writes ERRNO                    every write fails with this number: 5 is EIO, 28 is ENOSPC
fail-flushes ERRNO                   every flush fails, and loses what it was to flush
stop-failing                         neither fails any more
lie | honour                         flushes succeed and do nothing | do what they should
counters                             what the disk has seen
quit                                 unmount everything and end";

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let options = Options { size: (arguments.size_mib as usize) << 20, mount_point: arguments.dir };
    let mut disk = match PowerCutDisk::new(options) {
        Ok(disk) => disk,
        Err(unavailable) => {
            eprintln!("{unavailable}");
            return ExitCode::FAILURE;
        }
    };
    disk.set_flush_delay(arguments.slow_flush);
    let (send, lines) = mpsc::channel();
    let mut signals = match Signals::new([SIGINT, SIGTERM]) {
        Ok(signals) => signals,
        Err(error) => {
            eprintln!("cannot wait for signals: {error}");
            return ExitCode::FAILURE;
        }
    };
    let interrupted = send.clone();
    thread::spawn(move || signals.forever().take(1).for_each(|_| drop(interrupted.send(None))));
    thread::spawn(move || {
        stdin().lock().lines().map_while(Result::ok).for_each(|line| drop(send.send(Some(line))));
        let _ = send.send(None);
    });
    println!("ready: {} on {}", disk.mount_point().display(), disk.device().display());
    while let Ok(Some(line)) = lines.recv() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if words == ["quit"] {
            break;
        }
        match obey(&mut disk, &words) {
            Ok(said) => println!("{said}"),
            Err(error) => println!("error: {error}"),
        }
    }
    ExitCode::SUCCESS
}

/// Carries out a command and says what came of it.
fn obey(disk: &mut PowerCutDisk, words: &[&str]) -> Result<String, String> {
    match *words {
        ["cut", seed, ref style @ ..] => {
            let style = match style {
                [] | ["sectors"] => CutStyle::KeepSomeSectors,
                ["writes"] => CutStyle::KeepSomeWrites,
                ["lose"] => CutStyle::LoseAll,
                _ => return Err("a cut is lose, writes or sectors".into()),
            };
            let seed = seed.parse().map_err(|_| format!("the seed {seed} is not a number below 2^64"))?;
            if !disk.has_power() {
                return Err("the power is off: heal first".into());
            }
            let fate = disk.cut(style, seed);
            Ok(format!("cut: {} unflushed sectors lost, {} survived", fate.dropped, fate.kept))
        }
        ["heal"] => {
            let begun = Instant::now();
            disk.heal().map_err(|error| error.to_string())?;
            Ok(format!("healed in {} ms, on {}", begun.elapsed().as_millis(), disk.device().display()))
        }
        ["slow", text] => {
            let delay = duration(text)?;
            disk.set_flush_delay(delay);
            Ok(format!("a flush takes {delay:?}"))
        }
        ["fail-writes", text] => {
            disk.fail_writes(errno(text)?);
            Ok("writes fail".into())
        }
        ["fail-flushes", text] => {
            disk.fail_flushes(errno(text)?);
            Ok("flushes fail".into())
        }
        ["stop-failing"] => {
            disk.stop_failing();
            Ok("nothing fails".into())
        }
        ["lie"] => {
            disk.honour_flushes(false);
            Ok("flushes do nothing".into())
        }
        ["honour"] => {
            disk.honour_flushes(true);
            Ok("flushes flush".into())
        }
        ["counters"] => Ok(format!("{:#?}", disk.counters())),
        _ => Err(format!("commands:\n{COMMANDS}")),
    }
}

fn errno(text: &str) -> Result<i32, String> {
    text.parse()
        .ok()
        .filter(|number| (1..512).contains(number))
        .ok_or(format!("{text} is no errno: 5 is EIO"))
}

fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| format!("{text} is no duration: 2ms, 500us, 1s"))?;
    match &text[digits.len()..] {
        "us" => Ok(Duration::from_micros(number)),
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        _ => Err(format!("{text} has no unit: 2ms, 500us, 1s")),
    }
}
