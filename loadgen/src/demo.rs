//! `loadgen` without a command: an embedded server on one core, its load from another, figures with their
//! conditions within a quarter of a minute.
//!
//! First a closed loop finds the maximum, then an open loop offers a fixed share of it: the first says what the
//! server can do, the second what its users would feel at that load.

use crate::cli::{DemoArgs, interval_ns};
use crate::client::{Load, Plan, Stop};
use crate::report::{Placement, Report, RunReport, table};
use crate::run::{failed, measure};
use crate::schedule::Arrival;
use crate::system::Manifest;
use crate::worker::{Io, Spin, WorkerOptions};
use crate::workload::WorkloadOptions;
use reactor::io::stop::StopSignal;
use reactor::server::event::Target;
use reactor::{RunningServer, Server};
use std::process::ExitCode;
use std::time::Duration;
use store::config::{Config, Setting};

const CONNECTIONS: usize = 50;
const KEYS: u64 = 100_000;

/// Runs the demonstration.
pub fn command(arguments: &DemoArgs, stop: &StopSignal) -> ExitCode {
    if let Err(error) = crate::report::check_folder(&arguments.results) {
        return failed(&error);
    }
    let manifest = Manifest::read();
    let cores = &manifest.cores;
    let placement = match cores[..] {
        [server, generator, ..] => Placement { server_core: Some(server), generator_core: Some(generator) },
        _ => Placement::default(),
    };
    let server = match start_server(arguments.io, placement.server_core) {
        Ok(server) => server,
        Err(error) => return failed(&format!("the embedded server does not start: {error}")),
    };
    let Some(address) = server.resp else {
        return failed("the embedded server has no RESP listener");
    };
    match (placement.server_core, placement.generator_core) {
        (Some(server_core), Some(generator_core)) => eprintln!(
            "An embedded Millrace ({}) on core {server_core}, loadgen on core {generator_core}, over TCP \
             loopback.",
            server.io
        ),
        _ => eprintln!(
            "This process may use one core only: server and generator share it, unpinned, and take each \
             other's time. Read the figures as a smoke test."
        ),
    }
    for warning in &server.warnings {
        eprintln!("server: {warning}");
    }

    let mut runs: Vec<RunReport> = Vec::new();
    let closed = plan(arguments, address, Load::Closed { pipeline: 1 }, true);
    let options = |server: &RunningServer| worker_options(arguments, server, placement);
    match measure("maximum", closed, options(&server), placement, stop) {
        Ok(run) => runs.push(run),
        Err(failure) => return failed(&failure.to_string()),
    }
    let maximum = runs[0].throughput_per_s.unwrap_or(0.0);
    let rate = (maximum * arguments.share).floor();
    if runs[0].incomplete.is_none() && rate >= 1.0 {
        let load = Load::Open { rate, arrival: Arrival::Poisson };
        let open = plan(arguments, address, load, false);
        let title = format!("at {:.0} % of it", arguments.share * 100.0);
        match measure(&title, open, options(&server), placement, stop) {
            Ok(run) => runs.push(run),
            Err(failure) => return failed(&failure.to_string()),
        }
    }
    server.stop();
    if let Err(error) = server.join() {
        eprintln!("loadgen: the embedded server ended with an error: {error}");
    }
    for run in &mut runs {
        if placement.server_core.is_none() {
            run.notes.push("server and generator shared one core".into());
        }
    }

    let folder = arguments.results.join(format!("{}-demo", manifest.started_at));
    let report = Report::new("Millrace: the demonstration", manifest, runs);
    println!("{}", table::runs(&report.runs));
    let (json, html) = (folder.join("report.json"), folder.join("report.html"));
    if let Err(error) = report.write_json(&json).and_then(|()| report.write_html(&html)) {
        return failed(&error);
    }
    println!("  written         {} and {}", html.display(), json.display());
    // A figure not worth quoting is no failure of a demonstration: the verdict stands in the table, and the exit
    // code says whether everything was carried out. `loadgen run` is stricter.
    match report.runs.iter().find_map(|run| run.incomplete.as_ref()) {
        None => ExitCode::SUCCESS,
        Some(why) => failed(why),
    }
}

fn start_server(io: Io, core: Option<usize>) -> Result<RunningServer, String> {
    let mut config = Config::default();
    let mut settings = vec![
        ("port", "0".to_string()),
        ("http-port", "0".to_string()),
        ("bind", "127.0.0.1".to_string()),
        ("durability", "off".to_string()),
        ("shards", "1".to_string()),
    ];
    settings.extend(core.map(|core| ("pin", core.to_string())));
    if io == Io::Epoll {
        settings.push(("io", "epoll".into()));
    }
    for (name, value) in settings {
        let setting = Setting::find(name.as_bytes()).ok_or_else(|| format!("no setting named {name}"))?;
        (setting.set)(&mut config, &value).map_err(|error| format!("{name} {value}: {error}"))?;
    }
    Server::start(config).map_err(|error| error.to_string())
}

fn worker_options(arguments: &DemoArgs, server: &RunningServer, placement: Placement) -> WorkerOptions {
    let clock = server.cpu_clock();
    WorkerOptions {
        io: arguments.io,
        pin: placement.generator_core,
        spin: if placement.generator_core.is_some() { Spin::Auto } else { Spin::Never },
        server_cpu: Some(Box::new(move || Some(clock.read().as_nanos() as u64))),
        server_counters: None,
        server_is_embedded: true,
        others: Vec::new(),
    }
}

fn plan(arguments: &DemoArgs, address: std::net::SocketAddr, load: Load, prefill: bool) -> Plan {
    Plan {
        target: Target::Tcp(address),
        workload: WorkloadOptions {
            keys: KEYS,
            http_host: address.to_string(),
            verify: true,
            seed: arguments.seed,
            ..WorkloadOptions::default()
        },
        connections: CONNECTIONS,
        load,
        prefill,
        warmup_ns: Duration::from_millis(500).as_nanos() as u64,
        warmup_is_tested: false,
        stop: Stop::After(arguments.duration.as_nanos() as u64),
        drain_ns: Duration::from_secs(1).as_nanos() as u64,
        timeout_ns: Duration::from_secs(10).as_nanos() as u64,
        interval_ns: interval_ns(arguments.duration),
        connects_per_s: None,
        requests_per_connection: None,
    }
}
