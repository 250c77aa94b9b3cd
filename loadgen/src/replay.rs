//! `loadgen replay RUN`: carries the command line of a report out again, and lays both reports side by side.
//!
//! A report holds the whole command line, and every random choice follows from its seed: what is repeated is the same
//! requests at the same intended moments. What may differ is everything else, so the conditions are compared first. The
//! report that is repeated is never written over.

use crate::cli::{Cli, Command};
use crate::report::check_folder;
use crate::report::overlay;
use crate::report::side_by_side::{self, StoredTable};
use crate::report::stored::{StoredManifest, StoredReport};
use crate::run::{failed, usage};
use crate::system;
use clap::Args;
use reactor::io::stop::StopSignal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Flags of `replay`.
#[derive(Clone, Debug, Args)]
pub struct ReplayArgs {
    /// A report of `run`, `sweep`, `knee`, `compare`, `caching`, `calibrate` or the demonstration: a JSON file, or a folder with
    /// a report.json.
    #[arg(value_name = "RUN")]
    pub report: PathBuf,
    /// Another target than the report's.
    #[arg(long, value_name = "URL")]
    pub target: Option<String>,
    /// Where the new report is written.
    #[arg(long, default_value = "results", value_name = "DIR")]
    pub results: PathBuf,
}

/// `loadgen replay`.
pub fn command(arguments: &ReplayArgs, stop: &StopSignal) -> ExitCode {
    let old = match Stored::read(&arguments.report) {
        Ok(report) => report,
        Err(error) => return usage(&error),
    };
    let recorded = &old.manifest().command;
    let folder = arguments.results.join(format!("{}-replay", system::timestamp()));
    let again = match command_line(recorded, arguments.target.as_deref(), &folder) {
        Ok(cli) => cli,
        Err(error) => return usage(&format!("{}: {error}", arguments.report.display())),
    };
    if let Err(error) = check_folder(&arguments.results) {
        return failed(&error);
    }
    eprintln!("loadgen {}", recorded[1..].join(" "));
    let code = crate::carry_out(again, stop);
    let Some(written) = find_report(&folder) else {
        return failed("the run left no report; its reason stands above");
    };
    match Stored::read(&written).and_then(|new| old.beside(new)) {
        Ok(text) => {
            println!("\n  A: {}, B: {}", arguments.report.display(), written.display());
            print!("{text}");
            code
        }
        Err(error) => failed(&error),
    }
}

/// A report that can be repeated.
enum Stored {
    /// Of runs.
    Runs(Box<StoredReport>),
    /// Of another command that measures.
    Table(Box<StoredTable>),
}

impl Stored {
    fn read(path: &Path) -> Result<Stored, String> {
        match StoredTable::read(path)? {
            Some(table) => Ok(Stored::Table(Box::new(table))),
            None => Ok(Stored::Runs(Box::new(StoredReport::read(path)?))),
        }
    }

    fn manifest(&self) -> &StoredManifest {
        match self {
            Stored::Runs(report) => &report.manifest,
            Stored::Table(table) => &table.manifest,
        }
    }

    /// Both for a terminal.
    fn beside(self, new: Stored) -> Result<String, String> {
        match (self, new) {
            (Stored::Runs(old), Stored::Runs(new)) => Ok(overlay::text(&[*old, *new])),
            (Stored::Table(old), Stored::Table(new)) => side_by_side::text(&old, &new),
            _ => Err("the command left a report of another kind".into()),
        }
    }
}

/// The command line of a report with its outputs turned elsewhere.
fn command_line(recorded: &[String], target: Option<&str>, folder: &Path) -> Result<Cli, String> {
    let mut cli = Cli::read(recorded.iter().map(Into::into)).map_err(|error| {
        format!("its command line is not understood by this version: {}", error.to_string().trim_end())
    })?;
    let refused =
        |what: &str| Err(format!("it is a report of `{what}`, which is repeated by its own command line"));
    let no_target = |what: &str| match target {
        Some(_) => Err(format!("{what} brings its own server: --target has no place there")),
        None => Ok(()),
    };
    let json = folder.join("report.json");
    let run = match &mut cli.command {
        None => {
            no_target("the demonstration")?;
            cli.demo.results = folder.into();
            return Ok(cli);
        }
        Some(Command::Compare(compare)) => {
            no_target("`compare`")?;
            compare.results = folder.into();
            return Ok(cli);
        }
        Some(Command::Calibrate(calibrate)) => {
            no_target("`calibrate`")?;
            calibrate.json = Some(json);
            return Ok(cli);
        }
        Some(Command::Caching(caching)) => {
            let common = caching.common_mut();
            common.json = Some(json);
            common.html = common.html.as_ref().map(|_| folder.join("report.html"));
            if let Some(target) = target {
                common.target = Some(target.into());
                common.server_pid = None;
            }
            return Ok(cli);
        }
        Some(Command::Run(run)) => run,
        Some(Command::Sweep(sweep)) => &mut sweep.run,
        Some(Command::Knee(knee)) => &mut knee.run,
        Some(Command::Audit(_)) => return refused("audit"),
        Some(Command::Report(_)) => return refused("report"),
        Some(Command::Replay(_)) => return refused("replay"),
    };
    run.json = Some(json);
    run.html = run.html.as_ref().map(|_| folder.join("report.html"));
    run.csv = run.csv.as_ref().map(|_| folder.join("report.csv"));
    run.hdr_file_prefix = run.hdr_file_prefix.as_ref().map(|_| folder.join("report"));
    if let Some(target) = target {
        run.target = Some(target.into());
        (run.server, run.port, run.unix_socket, run.protocol) = (None, None, None, None);
        // It belonged to the old one.
        run.server_pid = None;
    }
    Ok(cli)
}

/// The demonstration makes a folder of its own below the one it is given.
fn find_report(folder: &Path) -> Option<PathBuf> {
    let here = folder.join("report.json");
    if here.exists() {
        return Some(here);
    }
    let mut below = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path().join("report.json"));
    below.find(|path| path.exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_string).collect()
    }

    #[test]
    fn the_same_command_with_its_outputs_elsewhere() {
        let folder = Path::new("new");
        let line =
            "loadgen run --target resp://127.0.0.1:1 --seed 7 --json old.json --csv old.csv --server-pid 5";
        let cli = command_line(&words(line), None, folder).expect("well-formed");
        let Some(Command::Run(run)) = cli.command else { panic!("a run stays a run") };
        assert_eq!((run.seed, run.json, run.html), (7, Some("new/report.json".into()), None));
        assert_eq!((run.csv, run.server_pid), (Some("new/report.csv".into()), Some(5)));
        let cli = command_line(&words(line), Some("resp://127.0.0.1:2"), folder).expect("well-formed");
        let Some(Command::Run(run)) = cli.command else { panic!("a run stays a run") };
        assert_eq!((run.target.as_deref(), run.server_pid), (Some("resp://127.0.0.1:2"), None));
        let demo = command_line(&words("loadgen --seed 3 --results old"), None, folder).expect("well-formed");
        assert_eq!((demo.demo.seed, demo.demo.results), (3, "new".into()));
    }

    #[test]
    fn what_cannot_be_repeated_is_refused() {
        let refused =
            |line: &str| command_line(&words(line), None, Path::new("new")).expect_err("must be refused");
        assert!(refused("loadgen report a.json").contains("`report`"));
        assert!(refused("loadgen run --no-such-flag").contains("not understood"));
        let elsewhere = |line: &str| {
            command_line(&words(line), Some("resp://127.0.0.1:2"), Path::new("new"))
                .expect_err("must be refused")
        };
        assert!(elsewhere("loadgen compare").contains("`compare` brings its own server"));
        assert!(elsewhere("loadgen calibrate").contains("`calibrate` brings"));
        assert!(elsewhere("loadgen").contains("the demonstration brings"));
    }

    #[test]
    fn comparisons_caches_and_calibrations_are_repeated_too() {
        let folder = Path::new("new");
        let again =
            |line: &str, target| command_line(&words(line), target, folder).expect("well-formed").command;
        let Some(Command::Compare(compare)) = again("loadgen compare --results old --seed 4", None) else {
            panic!("a comparison stays one")
        };
        assert_eq!((compare.seed, compare.results), (4, "new".into()));
        let Some(Command::Calibrate(calibrate)) = again("loadgen calibrate --only 50", None) else {
            panic!("a calibration stays one")
        };
        assert_eq!((calibrate.only.as_deref(), calibrate.json), (Some("50"), Some("new/report.json".into())));
        let line =
            "loadgen caching grid --target resp://127.0.0.1:1 --server-pid 5 --json old.json --html old.html";
        for (target, pid) in [(None, Some(5)), (Some("resp://127.0.0.1:2"), None)] {
            let Some(Command::Caching(mut caching)) = again(line, target) else {
                panic!("caches stay caches")
            };
            let common = caching.common_mut();
            assert_eq!(common.target.as_deref(), target.or(Some("resp://127.0.0.1:1")));
            assert_eq!(common.server_pid, pid);
            assert_eq!(
                (&common.json, &common.html),
                (&Some("new/report.json".into()), &Some("new/report.html".into()))
            );
        }
    }
}
