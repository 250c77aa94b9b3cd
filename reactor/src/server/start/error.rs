//! Why a server does not start, in words for who started it.

use crate::cpu::PinError;
use crate::io::listener::ListenError;
use crate::io::log_files::{self, LockError};
use crate::io::probe::RingUnavailable;
use crate::server::recovery::RecoveryError;
use std::fmt;
use std::io;

/// Why a server did not start: for a person to act on.
#[derive(Debug)]
pub enum StartError {
    /// A setting that contradicts another.
    Setting(String),
    /// A core that cannot be had.
    Pin(PinError),
    /// A limit of the process that leaves no room.
    Limit(String),
    /// io_uring cannot be had.
    Ring(RingUnavailable),
    /// Another process works in the directory.
    Lock(LockError),
    /// What the log holds cannot be brought back.
    Recovery(RecoveryError),
    /// An address that cannot be listened on.
    Listen(ListenError),
    /// The kernel refused something else.
    System(io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Setting(text) | Self::Limit(text) => f.write_str(text),
            Self::Pin(error) => error.fmt(f),
            Self::Ring(error) => error.fmt(f),
            Self::Lock(error) => error.fmt(f),
            Self::Recovery(error) => error.fmt(f),
            Self::Listen(error) => error.fmt(f),
            Self::System(error) => {
                write!(f, "the system refused what a start needs: {}", log_files::in_words(error))
            }
        }
    }
}

impl std::error::Error for StartError {}
