//! Millrace's instrument: load, histograms, comparisons, reports.
//!
//! ```text
//!  cli ──▶ plan ──▶ worker (one thread, pinned) ──▶ outcome ──▶ verdict ──▶ report: table, JSON, HTML
//!                     │  turn: wait, stamp, events, stamp, sends
//!                     ├─ client     pure: stages, three stamps, histograms
//!                     ├─ schedule   when requests are meant to be sent
//!                     ├─ workload   what they are
//!                     ├─ scan       where replies end
//!                     └─ stages     where the server says its time went, asked before and after
//! ```
//!
//! [`audit`] measures nothing: it kills a server in the middle of writes and looks what is left of them.
//!
//! Closed and open loop answer different questions and are never mixed: every figure carries its loop. The tool
//! judges its own runs ([`verdict`]) and says so in its exit code.

mod arrivals;
mod audit;
mod caching;
mod calibrate;
mod cli;
mod client;
mod compare;
mod demo;
mod gate;
mod histogram;
mod presets;
mod replay;
mod report;
mod run;
mod scan;
mod schedule;
mod server_config;
mod stages;
mod sweep;
mod system;
mod trend;
mod verdict;
mod worker;
mod workload;

use cli::{Cli, Command};
use reactor::io::stop::StopSignal;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::read(std::env::args_os()).unwrap_or_else(|error| error.exit());
    let stop = match StopSignal::new().and_then(|stop| stop.on_signals().map(|()| stop)) {
        Ok(stop) => stop,
        Err(error) => return run::failed(&format!("cannot listen for signals: {error}")),
    };
    carry_out(cli, &stop)
}

/// Does what a command line says.
fn carry_out(cli: Cli, stop: &StopSignal) -> ExitCode {
    match cli.command {
        Some(Command::Run(arguments)) => run::command(&arguments, stop),
        Some(Command::Compare(arguments)) => compare::command(&arguments, stop),
        Some(Command::Caching(arguments)) => caching::command(&arguments, stop),
        Some(Command::Audit(arguments)) => audit::command(&arguments, stop),
        Some(Command::Sweep(arguments)) => sweep::sweep(&arguments, stop),
        Some(Command::Knee(arguments)) => sweep::knee(&arguments, stop),
        Some(Command::Report(arguments)) => report::overlay::command(&arguments),
        Some(Command::Replay(arguments)) => replay::command(&arguments, stop),
        Some(Command::Calibrate(arguments)) => calibrate::command(&arguments, stop),
        None => demo::command(&cli.demo, stop),
    }
}
