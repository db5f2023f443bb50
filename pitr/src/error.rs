//! What can go wrong while getting data out, as one closed list, and what a caller does about each (`class`).
//! Owns the words of no hint: those are the command line's.

use crate::window::Window;
use repository::ErrorClass;
use std::path::PathBuf;
use std::time::Duration;

/// `Result` of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Any failure of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // --- what the user asked for ---
    /// A recovery target that cannot be understood.
    #[error("recovery target {input:?}: {reason}")]
    InvalidTarget {
        /// As the user wrote it.
        input: String,
        /// What is wrong and what is expected.
        reason: String,
    },
    /// A local time inside a clock change: it happened twice, or never.
    #[error("{input} {happened} in {zone}: say {earlier} or {later}")]
    AmbiguousTime {
        /// As the user wrote it.
        input: String,
        /// `happened twice` or `never happened`.
        happened: &'static str,
        /// The zone whose clocks changed.
        zone: String,
        /// The earlier of the two readings, RFC 3339 with its offset.
        earlier: String,
        /// The later of the two readings, RFC 3339 with its offset.
        later: String,
    },
    /// Something else the user gave that cannot be used: an option, a name, a mapping.
    #[error("{what}: {reason}")]
    InvalidRequest {
        /// The option, setting or mapping.
        what: String,
        /// What is wrong and what to do.
        reason: String,
    },

    // --- the plan ---
    /// What was asked for is not in the repository: the target, the backup, the timeline.
    #[error("{what}: {reason}; {window}")]
    Unreachable {
        /// The target, backup or timeline in the user's form.
        what: String,
        /// Why it cannot be reached.
        reason: String,
        /// What can be reached.
        window: Box<Window>,
    },
    /// An object that the plan needs is missing.
    #[error("{object}: missing: {reason}")]
    Missing {
        /// Name of the object: a segment with its timeline, a history file, a backup's part.
        object: String,
        /// Why it must exist.
        reason: String,
    },
    /// The same on the way to a target, with what can be reached without it.
    #[error("{object}: missing: {reason}; {window}")]
    MissingOnTheWay {
        /// Name of the object.
        object: String,
        /// Why it must exist.
        reason: String,
        /// What can be reached.
        window: Box<Window>,
    },
    /// An object that is stored is not listed: a listing that lacks it proves nothing.
    #[error(
        "{object}: is stored, and the store's listing lacks it: try again once it lists what it holds"
    )]
    Unlisted {
        /// Its key.
        object: String,
    },
    /// Stored bytes or what they claim of themselves contradict each other.
    #[error("{object}: {reason}")]
    Integrity {
        /// Name of the object.
        object: String,
        /// What disagrees with what.
        reason: String,
    },

    // --- the data directory and the server ---
    /// A data directory that must not be written to as it is.
    #[error("data directory {path:?}: {reason}")]
    DataDirectory {
        /// The folder.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// No server binaries of the major the cluster needs.
    #[error("no PostgreSQL {major} server binaries found; looked in {}", .searched.join(", "))]
    NoServerBinaries {
        /// Major version of the cluster.
        major: u32,
        /// Folders looked in, each with what was found there.
        searched: Vec<String>,
    },
    /// The server cannot be started by this user.
    #[error("PostgreSQL does not run as root: {advice}")]
    RunsAsRoot {
        /// What to do: an option, or the command to run.
        advice: String,
    },
    /// The server did not do what was expected of it.
    #[error("PostgreSQL {what}{}", log_excerpt(.log))]
    Server {
        /// What happened: `did not start`, `stopped during recovery`.
        what: String,
        /// Last lines of its log, oldest first.
        log: Vec<String>,
    },
    /// A wait came to its deadline.
    #[error("{what} took longer than {limit:?}")]
    Deadline {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
    },
    /// A local file or process operation failed.
    #[error("{action} {path:?}")]
    Io {
        /// The operation as a verb: `read`, `start`.
        action: &'static str,
        /// The file, folder or program.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// The repository failed.
    #[error(transparent)]
    Repository(#[from] repository::Error),
}

impl Error {
    /// What a caller can do about it. `NotFound` means a target, backup or timeline that is not there (exit code 4);
    /// `Corrupt` means a missing or damaged object (exit code 5).
    pub fn class(&self) -> ErrorClass {
        match self {
            Error::InvalidTarget { .. }
            | Error::AmbiguousTime { .. }
            | Error::InvalidRequest { .. }
            | Error::NoServerBinaries { .. }
            | Error::RunsAsRoot { .. } => ErrorClass::Config,
            Error::Unreachable { .. } => ErrorClass::NotFound,
            Error::Missing { .. } | Error::MissingOnTheWay { .. } | Error::Integrity { .. } => {
                ErrorClass::Corrupt
            }
            Error::DataDirectory { .. } => ErrorClass::Conflict,
            Error::Server { .. } | Error::Deadline { .. } | Error::Unlisted { .. } => {
                ErrorClass::Retry
            }
            Error::Io { source, .. } => repository::error::class_of_io(source),
            Error::Repository(error) => error.class(),
        }
    }
}

impl repository::several::Fault for Error {
    fn class(&self) -> ErrorClass {
        self.class()
    }
}

fn log_excerpt(lines: &[String]) -> String {
    if lines.is_empty() {
        return String::new();
    }
    format!("; its log ends with:\n  {}", lines.join("\n  "))
}
