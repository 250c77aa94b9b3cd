//! `loadgen audit`: is what was acknowledged still there after the server went away?
//!
//! Clients with keys of their own write (SET with an expiry and without, DEL, INCRBY, APPEND) until the server is
//! killed, in the middle of it all, at a number of acknowledgements drawn from the seed. It comes back, and each key
//! must hold what its last acknowledged write left behind, or what one of the later writes would have: else it is LOST
//! or PHANTOM. Then the next cycle goes on with what is there.
//!
//! ```text
//!   cycle:  up ──▶ load: clients ⇄ server ──▶ kill at the n-th acknowledgement ──▶ up again ──▶ read every key
//!                   │ ledger of each key: known, pending      what a reader was shown │           │
//!                   └────────────────────────────────────────────────────────────────┴─▶ candidates ─▶ verdict
//! ```
//!
//! | module | what it owns |
//! |---|---|
//! | [`plan`] | the flags |
//! | [`ledger`] | what a key may hold; pure |
//! | [`client`] | drawing, sending and checking; one thread each |
//! | [`connection`] | RESP and HTTP, blocking |
//! | [`server`] | the process that comes and goes |
//! | [`report`] | table and JSON |
//!
//! It says nothing about power cuts: a killed process leaves its writes in the kernel, flushed or not.

pub mod plan;

mod client;
mod connection;
mod ledger;
mod report;
mod server;

use crate::report::{check_writable, write_json};
use crate::run::{EXIT_FAILED, failed, usage};
use crate::system::Manifest;
use client::{Client, Shared, Tally};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use plan::{AuditArgs, Plan, Way};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use reactor::io::stop::StopSignal;
use report::{AuditReport, Cycle, SCHEMA, Totals};
use server::{INTERRUPTED, Server};
use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// How often the progress bar and Ctrl-C are looked at during load.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Carries out an audit. 0: nothing lost or invented; 1: something was, or not all was carried out; 2: wrong usage.
pub fn command(arguments: &AuditArgs, stop: &StopSignal) -> ExitCode {
    let (plan, way) = match arguments.plan() {
        Ok(plan) => plan,
        Err(error) => return usage(&error),
    };
    if let Some(error) = arguments.json.as_ref().and_then(|path| check_writable(path).err()) {
        return failed(&error);
    }
    let signal = match &way {
        Way::Watched(_) => None,
        Way::Started { signal, .. } => Some(signal.name()),
    };
    let mut server = match Server::new(way) {
        Ok(server) => server,
        Err(error) => return failed(&error),
    };
    let mut report = AuditReport {
        schema: SCHEMA,
        manifest: Manifest::read(),
        server: server.name(),
        signal,
        plan: plan.clone(),
        totals: Totals::default(),
        incomplete: None,
        refusal: None,
        findings: Vec::new(),
        cycles: Vec::new(),
    };
    let bar = progress_bar(&plan);
    report.incomplete = audit(&plan, &mut server, &mut report, &bar, stop).err();
    bar.finish_and_clear();
    print!("{}", report.table());
    if !report.passed()
        && let Some(folder) = server.folder()
        && folder.read_dir().is_ok_and(|mut files| files.next().is_some())
    {
        println!("  kept            {}", folder.display());
        server.keeps_folder = true;
    }
    if let Some(path) = &arguments.json
        && let Err(error) = write_json(&report, path)
    {
        return failed(&error);
    }
    match (&report.incomplete, report.passed()) {
        (_, true) => ExitCode::SUCCESS,
        (Some(why), false) => failed(why),
        (None, false) => ExitCode::from(EXIT_FAILED),
    }
}

fn progress_bar(plan: &Plan) -> ProgressBar {
    // indicatif draws on stderr and hides itself where that is no terminal.
    let bar =
        ProgressBar::with_draw_target(Some(u64::from(plan.cycles)), ProgressDrawTarget::stderr_with_hz(5));
    let style = ProgressStyle::with_template("{prefix:>12} [{bar:32}] {pos}/{len} {msg}")
        .expect("a constant template");
    bar.set_style(style.progress_chars("=> "));
    bar.set_prefix("audit");
    bar
}

fn audit(
    plan: &Plan,
    server: &mut Server,
    report: &mut AuditReport,
    bar: &ProgressBar,
    stop: &StopSignal,
) -> Result<(), String> {
    let began = Instant::now();
    let mut random = Xoshiro256PlusPlus::seed_from_u64(plan.seed);
    let mut clients: Vec<Client> = (0..plan.clients).map(|number| Client::new(plan, number)).collect();
    bar.set_message("waiting for the server");
    server.up(plan.patience, stop)?;
    for (number, client) in clients.iter_mut().enumerate() {
        client.clear(plan, server.addresses().of(number))?;
    }
    for cycle in 1..=plan.cycles {
        if began.elapsed() > plan.max_time {
            return Err(format!("--max-time is over after {} of {} cycles", cycle - 1, plan.cycles));
        }
        let kill_at = server.is_ours().then(|| random.random_range(1..=plan.acks * 2));
        bar.set_message("writing");
        let mut tally = load(plan, server, &mut clients, cycle, kill_at, bar, stop);
        if let Some(failure) = tally.failure.take() {
            return Err(format!("in cycle {cycle}: {failure}{}", server.log_tail()));
        }
        server.wait_until_gone(plan.patience)?;
        bar.set_message("waiting for the server");
        let recovery = server
            .up(plan.patience, stop)
            .map_err(|error| format!("after the kill of cycle {cycle}: {error}"))?;
        bar.set_message("reading every key");
        tally.add(verify(plan, server, &mut clients, cycle));
        if let Some(failure) = tally.failure.take() {
            return Err(format!("after the kill of cycle {cycle}: {failure}{}", server.log_tail()));
        }
        let row = Cycle::new(cycle, kill_at, &tally, recovery);
        if !std::io::stderr().is_terminal() {
            eprintln!(
                "cycle {cycle}/{}: {} acknowledged, {} unknown, {} refused, {} lost, {} phantom, back in {:.1} ms",
                plan.cycles,
                row.counters.acknowledged,
                row.counters.unknown,
                row.counters.refused,
                row.counters.lost,
                row.counters.phantom,
                row.recovery_ms
            );
        }
        report.add(row, tally);
        bar.inc(1);
    }
    Ok(())
}

/// Writes until the server is gone.
fn load(
    plan: &Plan,
    server: &Server,
    clients: &mut [Client],
    cycle: u32,
    kill_at: Option<u64>,
    bar: &ProgressBar,
    stop: &StopSignal,
) -> Tally {
    let shared = Shared {
        acknowledged: AtomicU64::new(0),
        kill_at,
        kill: &|| server.kill(),
        is_over: AtomicBool::new(false),
        deadline: Instant::now() + plan.patience,
    };
    let mut tally = Tally::default();
    let addresses = server.addresses();
    for (number, client) in clients.iter_mut().enumerate() {
        if let Err(failure) = client.connect(addresses.of(number)) {
            return Tally { failure: Some(failure), ..tally };
        }
    }
    let mut readings = Vec::new();
    std::thread::scope(|scope| {
        let shared = &shared;
        // Nothing is sent: that all senders are gone tells that all clients are done.
        let (working, all_done) = channel::<()>();
        for (number, client) in clients.iter_mut().enumerate() {
            let protocol = addresses.of(number).target.protocol;
            let working = working.clone();
            scope.spawn(move || {
                client.load(plan, protocol, shared);
                drop(working);
            });
        }
        drop(working);
        let readers: Vec<_> = (0..plan.readers)
            .map(|number| {
                let seed = plan.seed ^ u64::from(cycle) << 32 ^ (number as u64) << 16;
                scope.spawn(move || client::read(plan, addresses.of(number), shared, seed))
            })
            .collect();
        while all_done.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
            if stop.is_requested() {
                shared.is_over.store(true, Ordering::Relaxed);
            }
            bar.set_message(format!("writing, {} acknowledged", shared.acknowledged.load(Ordering::Relaxed)));
        }
        // Readers alone do not keep a cycle going.
        shared.is_over.store(true, Ordering::Relaxed);
        for reader in readers {
            let (shown, count, failure) = reader.join().expect("a reader does not panic");
            tally.shown += count;
            tally.failure = tally.failure.take().or(failure);
            readings.push(shown);
        }
    });
    for ((client, key), value) in readings.into_iter().flatten() {
        clients[client].shown(plan, cycle, key, &value);
    }
    for client in clients {
        tally.add(std::mem::take(&mut client.tally));
    }
    if stop.is_requested() {
        tally.failure = Some(INTERRUPTED.into());
    }
    let reached = shared.acknowledged.load(Ordering::Relaxed);
    let was_killed = kill_at.is_none_or(|kill_at| reached >= kill_at);
    let is_late = Instant::now() > shared.deadline;
    if tally.failure.is_none() && (is_late || !was_killed) {
        let patience = plan.patience.as_secs_f64();
        let refusal =
            tally.refusal.as_ref().map_or(String::new(), |first| format!("; the first refusal: {first}"));
        tally.failure = Some(match (server.ends_soon(), kill_at) {
            (Some(status), _) => format!("the server ended by itself ({status})"),
            (None, Some(kill_at)) => {
                format!("{reached} of {kill_at} writes were acknowledged within {patience} s{refusal}")
            }
            (None, None) => format!("nobody killed the server within {patience} s{refusal}"),
        });
    }
    tally
}

/// Reads every key of every client.
fn verify(plan: &Plan, server: &Server, clients: &mut [Client], cycle: u32) -> Tally {
    std::thread::scope(|scope| {
        for (number, client) in clients.iter_mut().enumerate() {
            let endpoint = server.addresses().of(number);
            scope.spawn(move || client.verify(plan, endpoint, cycle));
        }
    });
    let mut tally = Tally::default();
    for client in clients {
        tally.add(std::mem::take(&mut client.tally));
    }
    tally
}
