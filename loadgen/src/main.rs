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

mod audit;
mod cli;
mod client;
mod compare;
mod demo;
mod histogram;
mod report;
mod run;
mod scan;
mod schedule;
mod stages;
mod system;
mod verdict;
mod worker;
mod workload;

use clap::Parser;
use cli::{Cli, Command};
use reactor::io::stop::StopSignal;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let stop = match StopSignal::new().and_then(|stop| stop.on_signals().map(|()| stop)) {
        Ok(stop) => stop,
        Err(error) => return run::failed(&format!("cannot listen for signals: {error}")),
    };
    match cli.command {
        Some(Command::Run(arguments)) => run::command(&arguments, &stop),
        Some(Command::Compare(arguments)) => compare::command(&arguments, &stop),
        Some(Command::Audit(arguments)) => audit::command(&arguments, &stop),
        None => demo::command(&cli.demo, &stop),
    }
}
