//! The server's binary: settings in, `ready` out, exit codes.
//!
//! 0: stopped as asked, or an answer was printed · 1: could not start, or failed · 2: wrong usage.

use reactor::io::stop::StopSignal;
use reactor::io::sys;
use reactor::server::config::{Invocation, Launch, Settings, from_arguments};
use reactor::server::start::Server;
use reactor::server::topology::Topology;
use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let result = match from_arguments(std::env::args_os()) {
        Ok(Invocation::Serve(settings)) => serve(*settings),
        Ok(Invocation::Topology(settings)) => topology(&settings),
        Ok(Invocation::Print(text)) => print(&text),
        Ok(Invocation::Log(tool)) => tool.run(&mut std::io::stdout().lock()).map_err(Box::from),
        Ok(Invocation::Journal(tool)) => tool.run(&mut std::io::stdout().lock()).map_err(Box::from),
        Ok(Invocation::Rdb(tool)) => tool.run(&mut std::io::stdout().lock()).map_err(Box::from),
        Ok(Invocation::Snapshot(tool)) => tool.run(&mut std::io::stdout().lock()).map_err(Box::from),
        Err(usage) => usage.exit(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("millrace: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(settings: Settings) -> Result<(), Box<dyn Error>> {
    sys::return_large_buffers();
    let stop = StopSignal::new()?;
    // Before anything is opened, so that a signal during the start is heeded as well.
    stop.on_signals()?;
    let server = Server::start_with(settings, stop)?;
    warn(&server.warnings);
    // A supervisor that closed its end is no reason not to serve.
    let _ = print(&format!("{}\n", server.ready_line()));
    Ok(server.join()?)
}

/// What a start with these settings would do.
fn topology(settings: &Settings) -> Result<(), Box<dyn Error>> {
    let launch = Launch::read(&settings.config)?;
    let topology = Topology::plan(&launch)?;
    warn(&topology.warnings);
    print(&topology.describe(&launch))
}

fn warn(warnings: &[String]) {
    for warning in warnings {
        eprintln!("millrace: warning: {warning}");
    }
}

fn print(text: &str) -> Result<(), Box<dyn Error>> {
    let mut stdout = std::io::stdout();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}
