//! The log without a server: records a second, latency until durable, and how fast a log is read back.
//!
//! `cargo run --release -p reactor --example log_bench -- [DIR] [SECONDS] [SPIN_US]`
//!
//! One thread plays a shard: it keeps 1, 50 or 200 records outstanding, as so many clients with one command each
//! would, and submits again what became durable, in one batch a turn. Latency counts from the submission until the
//! shard has seen that the record is durable. DIR decides which disk is measured; it is left empty.

use reactor::clock::{monotonic_ns, realtime_ns};
use reactor::io::log_files::{LogFiles, LogWriteMode};
use reactor::server::log_handle::{LogHandle, Waker};
use reactor::server::log_thread::{LogOptions, LogThread};
use reactor::server::recovery::{RecoveryOptions, recover};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::thread::Thread;
use std::time::Duration;
use wal::group_commit::Start;
use wal::lsn::Lsn;
use wal::settings::FlushPolicy;

/// A SET of a key of 16 bytes and a value of 64.
const PAYLOAD: [u8; 84] = [b'x'; 84];

fn main() {
    let mut arguments = std::env::args().skip(1);
    let parent = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let number =
        |text: Option<String>, default: u64| text.map_or(default, |text| text.parse().expect("a number"));
    let seconds = number(arguments.next(), 3);
    let spin = Duration::from_micros(number(arguments.next(), 0));
    let directory = parent.join(format!("millrace-log-bench-{}", std::process::id()));
    println!("{} bytes a record, {seconds} s each, spin {spin:?}, in {}", PAYLOAD.len(), parent.display());
    println!(
        "mode       policy    outstanding  records/s  p50 us  p99 us  records/block  writes/1000  flushes/1000"
    );
    for policy in [FlushPolicy::EveryBlock, FlushPolicy::OnRequest] {
        for write_mode in LogWriteMode::ALL {
            for outstanding in [1, 50, 200] {
                std::fs::create_dir_all(&directory).expect("a directory");
                measure(
                    &directory,
                    LogOptions { write_mode, policy, spin, ..LogOptions::default() },
                    outstanding,
                    seconds,
                );
                std::fs::remove_dir_all(&directory).expect("it can be removed");
            }
        }
    }
    read_back(&directory);
    std::fs::remove_dir_all(&directory).expect("it can be removed");
}

fn start(directory: &Path, options: LogOptions) -> (LogThread, LogHandle) {
    let shard: Thread = std::thread::current();
    let waker: Waker = Box::new(move || shard.unpark());
    let files = LogFiles::new(directory, options.write_mode);
    let (log, mut handles) =
        LogThread::start(files, &Start::empty(monotonic_ns()), options, vec![waker]).expect("a log");
    (log, handles.remove(0))
}

fn submit(handle: &mut LogHandle, count: u64) -> Lsn {
    while handle.admit(count as usize * (PAYLOAD.len() + 8)).is_err() {
        handle.wait_for_room();
        std::thread::park_timeout(Duration::from_millis(10));
    }
    let mut batch = handle.batch(realtime_ns() / 1000);
    let first = handle.allocate(count);
    for index in 0..count {
        batch.push(first.plus(index), &PAYLOAD);
    }
    handle.submit(batch);
    first.plus(count).previous()
}

fn measure(directory: &Path, options: LogOptions, outstanding: u64, seconds: u64) {
    let is_gated = options.policy == FlushPolicy::EveryBlock;
    let (mode, policy) = (options.write_mode, if is_gated { "always" } else { "everysec" });
    let (log, mut handle) = start(directory, options);
    let begun = monotonic_ns();
    let (mut latencies, mut records) = (Vec::new(), 0);
    let mut in_flight: VecDeque<(Lsn, u64, u64)> = VecDeque::new();
    let (mut due, mut now) = (outstanding, begun);
    while now - begun < seconds * 1_000_000_000 {
        if due > 0 {
            let last = submit(&mut handle, due);
            if is_gated {
                in_flight.push_back((last, now, due));
                due = 0;
            } else {
                records += due;
            }
        }
        if let Some(&(_, _, count)) = in_flight.front() {
            // Awake as soon as the oldest is there.
            let oldest = handle.durable_lsn();
            let first = in_flight[0].0;
            if oldest < first && handle.wait_for(Lsn(first.0 - count + 1)) {
                std::thread::park_timeout(Duration::from_millis(100));
            }
        }
        now = monotonic_ns();
        let durable = handle.durable_lsn();
        while let Some(front) = in_flight.front_mut() {
            let first = front.0.0 - front.2 + 1;
            let done = (durable.0 + 1).saturating_sub(first).min(front.2);
            if done == 0 {
                break;
            }
            latencies.extend(std::iter::repeat_n((now - front.1) as u32 / 1000, done as usize));
            (records, due, front.2) = (records + done, due + done, front.2 - done);
            if front.2 == 0 {
                in_flight.pop_front();
            }
        }
    }
    let elapsed = (now - begun) as f64 / 1e9;
    latencies.sort_unstable();
    let quantile = |share: f64| match latencies.len() {
        0 => String::from("-"),
        count => latencies[((count - 1) as f64 * share) as usize].to_string(),
    };
    let shared = std::sync::Arc::clone(log.shared());
    log.close().expect("everything is durable");
    let metrics = shared.metrics();
    let (writes, flushes) = metrics.per_thousand_records();
    println!(
        "{:<10} {policy:<9} {outstanding:>11} {:>10.0} {:>7} {:>7} {:>14.1} {writes:>12.2} {flushes:>13.2}",
        mode.name(),
        records as f64 / elapsed,
        quantile(0.5),
        quantile(0.99),
        metrics.log.records as f64 / metrics.log.blocks.max(1) as f64,
    );
}

/// How long a gigabyte takes, with what a shard would do with it left out.
fn read_back(directory: &Path) {
    for batch in [200, 2000] {
        std::fs::create_dir_all(directory).expect("a directory");
        let options = LogOptions { policy: FlushPolicy::OnRequest, ..LogOptions::default() };
        let (log, mut handle) = start(directory, options);
        for _ in 0..10_000_000 / batch {
            submit(&mut handle, batch);
        }
        log.close().expect("everything is durable");
        for _ in 0..3 {
            let mut bytes = 0;
            let recovered = recover(
                directory,
                RecoveryOptions::new(1),
                &mut |line| println!("{line}"),
                |_, _, payload| {
                    bytes += payload.len();
                    Ok(())
                },
            );
            println!("{} ({bytes} bytes of payload)", recovered.expect("it is whole").line().expect("a log"));
        }
        std::fs::remove_dir_all(directory).expect("it can be removed");
    }
    std::fs::create_dir_all(directory).expect("a directory");
}
