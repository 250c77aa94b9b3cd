//! One measurement from plan to report, with a progress bar beside it.

use crate::cli::RunArgs;
use crate::client::{Failure, Plan, Stage};
use crate::gate::Gate;
use crate::histogram::{Interval, Merging};
use crate::report::table::{micros, thousands};
use crate::report::{self, Conditions, Placement, Report, RunReport, files, planned_ns, table};
use crate::system::{self, Manifest};
use crate::verdict::Verdict;
use crate::worker::{self, Progress, ServerCounters, ServerCpu, Worked, WorkerOptions};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use reactor::cpu;
use reactor::io::stop::StopSignal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Exit code of a run that failed or cannot be believed.
pub const EXIT_FAILED: u8 = 1;
/// Exit code of wrong usage.
pub const EXIT_USAGE: u8 = 2;

/// `loadgen run`.
pub fn command(arguments: &RunArgs, stop: &StopSignal) -> ExitCode {
    if let Err(error) = check_outputs(arguments) {
        return failed(&error);
    }
    let (plan, (options, notes)) =
        match arguments.plan().and_then(|plan| Ok((plan, worker_options(arguments)?))) {
            Ok(both) => both,
            Err(error) => return usage(&error),
        };
    let manifest = Manifest::read();
    let placement = Placement { generator_core: arguments.pin.first().copied(), server_core: None };
    let mut run = match measure("run", plan, options, placement, stop) {
        Ok(run) => run,
        Err(failure) => return failed(&failure.to_string()),
    };
    run.notes.extend(notes);
    let report = Report::new("loadgen run", manifest, vec![run]);
    print!("{}", table::runs(&report.runs));
    if let Err(error) = write_outputs(arguments, &report) {
        return failed(&error);
    }
    exit_code(&report.runs)
}

/// How the flags want a worker to run, and what the reader of a run should know of that; `Err` is a usage error.
pub fn worker_options(arguments: &RunArgs) -> Result<(WorkerOptions, Vec<String>), String> {
    for core in &arguments.pin {
        cpu::check_pin(*core).map_err(|error| format!("--pin {core}: {error}"))?;
    }
    let threads = arguments.threads as usize;
    if !arguments.pin.is_empty() && arguments.pin.len() != threads {
        return Err(format!(
            "--pin names {} cores for {threads} threads: name one for each, such as --pin 1,2, or none",
            arguments.pin.len()
        ));
    }
    if threads > arguments.connections as usize {
        return Err(format!(
            "--threads {threads}: each thread needs a connection of its own, and --connections is {}",
            arguments.connections
        ));
    }
    let (mut server_cpu, mut server_counters): (Option<ServerCpu>, Option<ServerCounters>) = (None, None);
    let mut notes = Vec::new();
    if let Some(pid) = arguments.server_pid {
        if system::process_cpu_ns(pid).is_none() {
            return Err(format!("--server-pid {pid}: there is no such process, or it cannot be read"));
        }
        server_cpu = Some(Box::new(move || system::process_cpu_ns(pid)));
        (server_counters, notes) = worker::counters_of(pid, arguments.syscalls);
    } else {
        // A server on this machine would count as one of them.
        notes.push("other programs' CPU cannot be judged: give --server-pid".into());
    }
    let options = WorkerOptions {
        io: arguments.io,
        pin: arguments.pin.first().copied(),
        others: (1..threads).map(|index| arguments.pin.get(index).copied()).collect(),
        spin: arguments.spin(),
        server_cpu,
        server_counters,
        server_is_embedded: false,
    };
    Ok((options, notes))
}

/// Whether what is asked for can be written at all: better said before an hour's run than behind it.
pub fn check_outputs(arguments: &RunArgs) -> Result<(), String> {
    let hlog = arguments.hdr_file_prefix.as_ref().map(|prefix| with_ending(prefix, "hlog"));
    let all = [&arguments.json, &arguments.html, &arguments.csv, &hlog];
    all.into_iter().flatten().try_for_each(|path| report::check_writable(path))
}

/// `PREFIX.ENDING`; a dot in the prefix is part of it.
fn with_ending(prefix: &Path, ending: &str) -> PathBuf {
    let mut name = prefix.as_os_str().to_os_string();
    name.push(".");
    name.push(ending);
    name.into()
}

/// Writes what the flags ask for. One that fails does not keep the others from being written.
pub fn write_outputs(arguments: &RunArgs, report: &Report) -> Result<(), String> {
    let mut written = Ok(());
    if let Some(path) = &arguments.json {
        written = written.and(report.write_json(path));
    }
    if let Some(path) = &arguments.html {
        written = written.and(report.write_html(path));
    }
    if let Some(path) = &arguments.csv {
        written = written.and(report::write(path, files::csv(&report.runs).as_bytes()));
    }
    if let Some(prefix) = &arguments.hdr_file_prefix {
        let log =
            files::hdr_log(&report.runs).and_then(|log| report::write(&with_ending(prefix, "hlog"), &log));
        written = written.and(log);
        for (index, run) in report.runs.iter().enumerate() {
            for (name, histogram) in run.histograms.named() {
                let ending = format!("{}.hgrm", files::file_part(index, report.runs.len(), name));
                let path = with_ending(prefix, &ending);
                written = written.and(report::write(&path, files::hgrm(histogram).as_bytes()));
            }
        }
    }
    written
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

/// Carries out a plan on threads of its own and judges it.
pub fn measure(
    title: &str,
    plan: Plan,
    mut options: WorkerOptions,
    placement: Placement,
    stop: &StopSignal,
) -> Result<RunReport, Failure> {
    let conditions = Conditions::ask(&plan);
    let (sender, receiver) = channel();
    let cores: Vec<Option<usize>> = [&[options.pin][..], &options.others].concat();
    let threads = cores.len();
    let gate = (threads > 1).then(|| Arc::new(Gate::new(threads)));
    let epoch = Instant::now();
    let mut options_of = |index: usize| WorkerOptions {
        io: options.io,
        pin: cores[index],
        spin: options.spin,
        // The first one reads what belongs to the server and the machine.
        server_cpu: if index == 0 { options.server_cpu.take() } else { None },
        server_counters: if index == 0 { options.server_counters.take() } else { None },
        server_is_embedded: options.server_is_embedded,
        others: Vec::new(),
    };
    let (worked, intervals) = std::thread::scope(|scope| {
        let core = cores[0];
        let watcher = scope.spawn({
            let plan = &plan;
            move || {
                // The bar's own work belongs to the generator's core, where lateness would show it.
                let _ = core.map(cpu::pin_to);
                watch(title, plan, threads, &receiver)
            }
        });
        let spawn = |index: usize| {
            let (plan, options, sender, gate) =
                (plan.share(index, threads), options_of(index), sender.clone(), gate.clone());
            std::thread::Builder::new().name("generator".into()).spawn_scoped(scope, move || {
                let worked = worker::work(plan, options, &sender, stop, epoch, gate.clone());
                // Without it the others would wait for it.
                if let (Err(_), Some(gate)) = (&worked, gate) {
                    gate.give_up();
                }
                worked
            })
        };
        let workers: Vec<_> = (0..threads).map(spawn).collect();
        if let (true, Some(gate)) = (workers.iter().any(Result::is_err), &gate) {
            gate.give_up();
        }
        // The channel closes with the last worker: that ends the watcher.
        drop(sender);
        let mut all: Option<Result<Worked, Failure>> = None;
        for worker in workers {
            let one = match worker {
                Ok(thread) => thread.join().expect("a panic of the worker has ended the process"),
                Err(error) => Err(Failure::Driver(format!("no thread for the generator: {error}"))),
            };
            all = Some(match (all, one) {
                (None, one) => one,
                (Some(Ok(mut sum)), Ok(one)) => {
                    sum.merge(one);
                    Ok(sum)
                }
                (Some(Err(failure)), _) | (Some(Ok(_)), Err(failure)) => Err(failure),
            });
        }
        let intervals = watcher.join().expect("the watcher does not panic");
        (all.expect("there is at least one thread"), intervals)
    });
    let mut worked = worked?;
    if threads > 1 {
        worked.outcome.intervals = intervals;
        let on = match cores.iter().flatten().map(usize::to_string).collect::<Vec<_>>() {
            cores if cores.is_empty() => String::new(),
            cores => format!(", on cores {}", cores.join(", ")),
        };
        worked
            .notes
            .push(format!("{threads} generator threads{on}; histograms are merged, never percentiles"));
    }
    Ok(RunReport::new(title, &plan, worked, placement, conditions))
}

/// Shows what the workers tell, on a terminal only, and merges the intervals of several.
fn watch(title: &str, plan: &Plan, threads: usize, progress: &Receiver<Progress>) -> Vec<Interval> {
    // indicatif draws on stderr and hides itself where that is no terminal.
    let bar = ProgressBar::with_draw_target(Some(1_000), ProgressDrawTarget::stderr_with_hz(5));
    let style = ProgressStyle::with_template("{prefix:>12} [{bar:32}] {msg}").expect("a constant template");
    bar.set_style(style.progress_chars("=> "));
    bar.set_prefix(title.to_string());
    let planned = planned_ns(plan);
    let mut merging = Merging::new(threads);
    let mut began = Instant::now();
    let mut stage = Stage::Connect;
    loop {
        let show = |interval: Interval| {
            bar.set_message(format!(
                "{}/s  p50 {}  p99 {}",
                thousands(interval.completed as f64 * 1e3 / interval.length_ms),
                micros(interval.p50_ns),
                micros(interval.p99_ns)
            ));
        };
        match progress.recv_timeout(Duration::from_millis(200)) {
            // Of several threads, where the foremost is.
            Ok(Progress::Stage(next)) if next > stage => {
                if stage < Stage::WarmUp && next >= Stage::WarmUp {
                    began = Instant::now();
                }
                stage = next;
                bar.set_message(match stage {
                    Stage::Connect | Stage::Wait => "connecting",
                    Stage::Prefill => "filling",
                    Stage::WarmUp => "warming up",
                    Stage::Measure => "measuring",
                    Stage::Drain => "waiting for the last replies",
                    Stage::Done => "done",
                });
            }
            Ok(Progress::Stage(_)) => {}
            Ok(Progress::Prefill(share)) => bar.set_position((share * 1_000.0) as u64),
            Ok(Progress::Interval(interval)) => show(interval),
            Ok(Progress::Part(part)) => {
                if let Some(interval) = merging.add(*part) {
                    show(interval);
                }
            }
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
    merging.end()
}
