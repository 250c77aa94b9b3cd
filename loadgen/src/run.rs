//! One measurement from plan to report, with a progress bar beside it.

use crate::cli::RunArgs;
use crate::client::{Failure, Plan, Stage};
use crate::report::table::{micros, thousands};
use crate::report::{Placement, Report, RunReport, planned_ns, table};
use crate::system::{self, Manifest};
use crate::verdict::Verdict;
use crate::worker::{self, Progress, ServerCpu, WorkerOptions};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use reactor::cpu;
use reactor::io::stop::StopSignal;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Exit code of a run that failed or cannot be believed.
pub const EXIT_FAILED: u8 = 1;
/// Exit code of wrong usage.
pub const EXIT_USAGE: u8 = 2;

/// `loadgen run`.
pub fn command(arguments: &RunArgs, stop: &StopSignal) -> ExitCode {
    let plan = match arguments.plan() {
        Ok(plan) => plan,
        Err(error) => return usage(&error),
    };
    if let Some(core) = arguments.pin
        && let Err(error) = cpu::check_pin(core)
    {
        return usage(&format!("--pin {core}: {error}"));
    }
    let mut server_cpu: Option<ServerCpu> = None;
    if let Some(pid) = arguments.server_pid {
        if system::process_cpu_ns(pid).is_none() {
            return usage(&format!("--server-pid {pid}: there is no such process, or it cannot be read"));
        }
        server_cpu = Some(Box::new(move || system::process_cpu_ns(pid)));
    }
    let manifest = Manifest::read();
    let options = WorkerOptions {
        io: arguments.io,
        pin: arguments.pin,
        // On one core spinning would take the server's time.
        spin: cpu::allowed_cores().len() > 1,
        server_cpu,
        server_is_embedded: false,
    };
    let placement = Placement { generator_core: arguments.pin, server_core: None };
    let run = match measure("run", plan, options, placement, stop) {
        Ok(run) => run,
        Err(failure) => return failed(&failure.to_string()),
    };
    let report = Report::new("loadgen run", manifest, vec![run]);
    print!("{}", table::runs(&report.runs));
    let mut written = Ok(());
    if let Some(path) = &arguments.json {
        written = written.and(report.write_json(path));
    }
    if let Some(path) = &arguments.html {
        written = written.and(report.write_html(path));
    }
    if let Err(error) = written {
        return failed(&error);
    }
    exit_code(&report.runs)
}

/// A message for wrong usage, and its exit code.
pub fn usage(error: &str) -> ExitCode {
    eprintln!("error: {error}\n\nFor more information, try '--help'.");
    ExitCode::from(EXIT_USAGE)
}

/// A message for a failure, and its exit code.
pub fn failed(error: &str) -> ExitCode {
    eprintln!("loadgen: {error}");
    ExitCode::from(EXIT_FAILED)
}

/// 0 where every run can be quoted, with or without care.
pub fn exit_code(runs: &[RunReport]) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for run in runs {
        if let Some(why) = &run.incomplete {
            eprintln!("loadgen: {why}");
        }
        if run.verdict == Verdict::Invalid {
            code = ExitCode::from(EXIT_FAILED);
        }
    }
    code
}

/// Carries out a plan on a thread of its own and judges it.
pub fn measure(
    title: &str,
    plan: Plan,
    options: WorkerOptions,
    placement: Placement,
    stop: &StopSignal,
) -> Result<RunReport, Failure> {
    let (sender, receiver) = channel();
    let core = options.pin;
    let worked = std::thread::scope(|scope| {
        let watcher = scope.spawn({
            let plan = &plan;
            move || {
                // The bar's own work belongs to the generator's core, where lateness would show it.
                let _ = core.map(cpu::pin_to);
                watch(title, plan, &receiver);
            }
        });
        let worker = std::thread::Builder::new().name("generator".into());
        let worker = worker.spawn_scoped(scope, {
            let plan = plan.clone();
            // The channel closes with the worker: that ends the watcher.
            move || worker::work(plan, options, &sender, stop)
        });
        let worked = match worker {
            Ok(thread) => thread.join().expect("a panic of the worker has ended the process"),
            Err(error) => Err(Failure::Driver(format!("no thread for the generator: {error}"))),
        };
        watcher.join().expect("the watcher does not panic");
        worked
    })?;
    Ok(RunReport::new(title, &plan, worked, placement))
}

/// Shows what the worker tells, on a terminal only.
fn watch(title: &str, plan: &Plan, progress: &Receiver<Progress>) {
    // indicatif draws on stderr and hides itself where that is no terminal.
    let bar = ProgressBar::with_draw_target(Some(1_000), ProgressDrawTarget::stderr_with_hz(5));
    let style = ProgressStyle::with_template("{prefix:>12} [{bar:32}] {msg}").expect("a constant template");
    bar.set_style(style.progress_chars("=> "));
    bar.set_prefix(title.to_string());
    let planned = planned_ns(plan);
    let mut began = Instant::now();
    let mut stage = Stage::Connect;
    loop {
        match progress.recv_timeout(Duration::from_millis(200)) {
            Ok(Progress::Stage(next)) => {
                if stage < Stage::WarmUp && next >= Stage::WarmUp {
                    began = Instant::now();
                }
                stage = next;
                bar.set_message(match stage {
                    Stage::Connect => "connecting",
                    Stage::Prefill => "filling",
                    Stage::WarmUp => "warming up",
                    Stage::Measure => "measuring",
                    Stage::Drain => "waiting for the last replies",
                    Stage::Done => "done",
                });
            }
            Ok(Progress::Prefill(share)) => bar.set_position((share * 1_000.0) as u64),
            Ok(Progress::Interval(interval)) => bar.set_message(format!(
                "{}/s  p50 {}  p99 {}",
                thousands(interval.completed as f64 * 1e3 / interval.length_ms),
                micros(interval.p50_ns),
                micros(interval.p99_ns)
            )),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if let (Some(planned), true) = (planned, stage >= Stage::WarmUp) {
            bar.set_position(
                (began.elapsed().as_nanos() as f64 / planned as f64 * 1_000.0).min(1_000.0) as u64
            );
        }
    }
    bar.finish_and_clear();
}
