//! `millrace journal rekey|convert DIR`: another key for the encrypted journal, or the other kind of journal.
//!
//! Both write everything to new files beside the old ones, read these back, flush them, and then put them in place
//! with a rename: a process that is killed, or a power cut, at any moment leaves the old journal or the new one, whole.
//!
//! - **rekey** renames one file over another. Before that the old key opens the journal, behind it the new one.
//! - **convert** builds in the directory `converting`, which counts for nothing. Renaming it to `converted-to-…` is the
//!   moment from which the new journal counts; then the old files go, and the new ones move to their places. If that is
//!   interrupted no server starts, and the same command goes on where it stopped.
//!
//! Exit codes: 0 done, 1 not done and nothing changed unless it says so, 2 wrong usage.

use crate::log_tool::ToolError;
use crate::server::journal::{JournalKind, KeySource};
use clap::builder::NonEmptyStringValueParser;
use clap::{Arg, ArgMatches, Command};
use std::io::Write;
use std::path::PathBuf;

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JournalTool {
    /// Encrypt with another key.
    Rekey {
        /// Where the journal is.
        directory: PathBuf,
        /// Its key.
        key: KeySource,
        /// A file with the key it is to have.
        new_key: PathBuf,
    },
    /// Make it the other kind.
    Convert {
        /// Where the journal is.
        directory: PathBuf,
        /// The kind it is to be; a word that a program without the encrypted journal can read.
        to: String,
        /// The key of the encrypted one.
        key: KeySource,
    },
}

/// The flag that names a file with a key, and what stands in for it.
pub(crate) fn key_argument() -> Arg {
    Arg::new("journal-key-file")
        .long("journal-key-file")
        .value_name("FILE")
        .value_parser(NonEmptyStringValueParser::new())
        .help("File with the key of the encrypted journal [default: the environment variable MILLRACE_JOURNAL_KEY]")
}

/// What [`key_argument`] was given.
pub(crate) fn key_source(matches: &ArgMatches) -> KeySource {
    KeySource::of(matches.get_one::<String>("journal-key-file").map(PathBuf::from))
}

/// The subcommand `journal`.
pub fn command() -> Command {
    let directory = Arg::new("directory")
        .value_name("DIR")
        .required(true)
        .value_parser(NonEmptyStringValueParser::new())
        .help("The directory of the data files (--dir of the server)");
    Command::new("journal")
        .about("Give the encrypted journal another key, or convert one kind of journal to the other")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .after_help(
            "Both need room for a second journal, and a server that is stopped. Interrupted at any moment, they leave a \
             journal that is whole.",
        )
        .subcommand(
            Command::new("rekey")
                .about("Encrypt a SQLCipher journal with another key")
                .arg(directory.clone())
                .arg(key_argument())
                .arg(
                    Arg::new("new-key-file")
                        .long("new-key-file")
                        .value_name("FILE")
                        .required(true)
                        .value_parser(NonEmptyStringValueParser::new())
                        .help("File with the new key"),
                ),
        )
        .subcommand(
            Command::new("convert")
                .about("Make a journal of one kind into one of the other: same records, numbers, times and epoch")
                .arg(directory)
                .arg(
                    Arg::new("to")
                        .long("to")
                        .value_name("KIND")
                        .required(true)
                        .value_parser(["native", "sqlcipher"])
                        .help("What it is to be"),
                )
                .arg(key_argument()),
        )
}

impl JournalTool {
    /// Reads what clap made of `millrace journal …`.
    pub fn from_matches(matches: &ArgMatches) -> JournalTool {
        let Some((name, matches)) = matches.subcommand() else { unreachable!("a subcommand is required") };
        let text = |name| matches.get_one::<String>(name).expect("it is required");
        let (directory, key) = (PathBuf::from(text("directory")), key_source(matches));
        match name {
            "rekey" => JournalTool::Rekey { directory, key, new_key: text("new-key-file").into() },
            _ => JournalTool::Convert { directory, to: text("to").clone(), key },
        }
    }

    /// Does it; what there is to say goes to `out`.
    #[cfg(feature = "sqlcipher")]
    pub fn run(&self, out: &mut impl Write) -> Result<(), ToolError> {
        let mut survive = |_: &str| Ok(());
        match self {
            JournalTool::Rekey { directory, key, new_key } => {
                let new_key = KeySource::File(new_key.clone());
                steps::rekey(directory, key, &new_key, &mut survive, out)
            }
            JournalTool::Convert { directory, to, key } => {
                let to = JournalKind::parse(to).map_err(ToolError::Text)?;
                steps::convert(directory, to, key, &mut survive, out)
            }
        }
    }

    /// There is nothing it could do.
    #[cfg(not(feature = "sqlcipher"))]
    pub fn run(&self, _out: &mut impl Write) -> Result<(), ToolError> {
        let _ = JournalKind::Native;
        Err(ToolError::Text(crate::server::journal::NOT_BUILT_IN.into()))
    }
}

#[cfg(feature = "sqlcipher")]
pub(crate) mod steps;
