//! `millrace export-rdb` and `millrace import-rdb`: to Redis and from Redis, as a dump that stock Redis reads and writes.
//!
//! Both work on files while no server does: what goes out is a snapshot, or the directory of a stopped server, its log
//! included; what comes in becomes a snapshot in a directory that has no data yet, and a server starts there. A dump
//! with anything but strings is refused, and the key and its type are named; nothing is left out in silence. Nothing is
//! overwritten unless `--overwrite` says so, and nothing that was half written is left behind.
//!
//! Exit codes: 0 done, 1 not done and nothing changed, 2 wrong usage.

use crate::io::log_files::in_words;
use crate::journal_tool::{key_argument, key_source};
use crate::log_tool::ToolError;
use crate::server::journal::KeySource;
use clap::builder::NonEmptyStringValueParser;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use store::shards::SHARDS_MAX;

mod export;
mod import;

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RdbTool {
    /// Write a dump.
    Export {
        /// A snapshot, or the directory of a server.
        from: PathBuf,
        /// The dump.
        to: PathBuf,
        /// Whether it may be there already.
        overwrite: bool,
        /// The key, if the directory's journal is encrypted.
        key: KeySource,
    },
    /// Make a directory of a dump.
    Import {
        /// The dump.
        from: PathBuf,
        /// Where a server is to start.
        directory: PathBuf,
        /// The database whose keys are wanted; `None`: there must be none but 0.
        database: Option<u64>,
        /// Shards of the snapshot; `None`: as many as a server would have here.
        shards: Option<usize>,
    },
}

fn path(name: &'static str, value_name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .value_name(value_name)
        .required(true)
        .value_parser(NonEmptyStringValueParser::new())
        .help(help)
}

/// The subcommand `export-rdb`.
pub fn export_command() -> Command {
    Command::new("export-rdb")
        .about("Write what a stopped server or a snapshot holds as a dump that Redis 7 loads")
        .arg(path("from", "DIR|FILE", "The directory of a stopped server (--dir), or a snapshot file"))
        .arg(path("to", "OUT.rdb", "The dump"))
        .arg(
            Arg::new("overwrite")
                .long("overwrite")
                .action(ArgAction::SetTrue)
                .help("Replace OUT.rdb if it is there, once the new one is complete"),
        )
        .arg(key_argument())
        .after_help(
            "Keys that have expired are left out and counted. Exit codes: 0 written, 1 not written, 2 wrong usage.",
        )
}

/// The subcommand `import-rdb`.
pub fn import_command() -> Command {
    Command::new("import-rdb")
        .about("Make a directory that a server starts on, of a dump that Redis wrote (versions 2.6 to 7.2)")
        .arg(path("from", "IN.rdb", "The dump: `redis-cli SAVE` writes it, `redis-cli --rdb FILE` fetches one"))
        .arg(path("directory", "DIR", "The directory to be (--dir of the server); it must hold no data yet"))
        .arg(
            Arg::new("database")
                .long("database")
                .value_name("N")
                .value_parser(value_parser!(u64))
                .help("Take the keys of this database and leave out those of others [default: all must be in 0]"),
        )
        .arg(
            Arg::new("shards")
                .long("shards")
                .value_name("N")
                .value_parser(value_parser!(u64).range(1..=SHARDS_MAX as u64))
                .help(
                    "Shards of the snapshot: with the --shards of the server it starts at once [default: as many as the server \
                     has by default here]",
                ),
        )
        .after_help(
            "Millrace holds strings: a dump with a key of another type is refused, and key and type are named. Keys that \
             have expired and libraries of functions are left out and counted. Exit codes: 0 imported, 1 not \
             imported, 2 wrong usage.",
        )
}

impl RdbTool {
    /// Reads what clap made of `millrace export-rdb …`.
    pub fn from_export_matches(matches: &ArgMatches) -> RdbTool {
        let path = |name| PathBuf::from(matches.get_one::<String>(name).expect("it is required"));
        RdbTool::Export {
            from: path("from"),
            to: path("to"),
            overwrite: matches.get_flag("overwrite"),
            key: key_source(matches),
        }
    }

    /// Reads what clap made of `millrace import-rdb …`.
    pub fn from_import_matches(matches: &ArgMatches) -> RdbTool {
        let path = |name| PathBuf::from(matches.get_one::<String>(name).expect("it is required"));
        RdbTool::Import {
            from: path("from"),
            directory: path("directory"),
            database: matches.get_one("database").copied(),
            shards: matches.get_one::<u64>("shards").map(|&shards| shards as usize),
        }
    }

    /// Does it; a line of JSON with what was done goes to `out`.
    pub fn run(&self, out: &mut impl Write) -> Result<(), ToolError> {
        match self {
            RdbTool::Export { from, to, overwrite, key } => export::run(from, to, *overwrite, key, out)?,
            RdbTool::Import { from, directory, database, shards } => {
                import::run(from, directory, *database, *shards, out)?;
            }
        }
        Ok(out.flush()?)
    }
}

/// An error with what was being done and the file.
fn failed(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> ToolError {
    let place = path.display().to_string();
    move |error| {
        ToolError::Text(match error.kind() {
            io::ErrorKind::NotFound => format!("{doing} {place}: there is no such file or directory"),
            _ => format!("{doing} {place}: {}", in_words(&error)),
        })
    }
}

fn warn(text: &str) {
    eprintln!("millrace: warning: {text}");
}
