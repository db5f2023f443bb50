//! What can go wrong while data is fetched from a server, as one closed list, and what a caller does about each (`class`).
//! Owns the mapping from the server's SQLSTATEs to actions. Does not own the errors of stores: those pass through as [`Error::Repository`].

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

pub use repository::ErrorClass;

/// `Result` of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Any failure of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A connection setting that cannot be used as written: unknown key, bad value, missing user.
    #[error("connection settings: {reason}")]
    ConnectionSettings {
        /// What is wrong and what is expected; never holds the password.
        reason: String,
    },
    /// A local file the connection needs (password file, certificate, key) cannot be used.
    #[error("{path:?}: {reason}")]
    LocalFile {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to change.
        reason: String,
        /// What the operating system said.
        #[source]
        source: Option<io::Error>,
    },
    /// No connection could be made to this address.
    #[error("connect to {address}")]
    Connect {
        /// `host:port` or the socket's path.
        address: String,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// TLS could not be agreed on: certificate refused, unknown authority, wrong host name, or the server has no TLS.
    #[error("TLS with {address}: {reason}")]
    Tls {
        /// `host:port`.
        address: String,
        /// Which step failed.
        reason: String,
        /// What the TLS library said.
        #[source]
        source: Option<io::Error>,
    },
    /// The server asks for something this client cannot or may not give (no password known, cleartext without TLS, GSSAPI).
    #[error("authentication at {address}: {reason}")]
    Authentication {
        /// `host:port` or the socket's path.
        address: String,
        /// What is missing or refused.
        reason: String,
    },
    /// A listed server answered but is not of the wanted kind (`target_session_attrs`).
    #[error("{address}: {reason}")]
    UnsuitableServer {
        /// `host:port` or the socket's path.
        address: String,
        /// Which property was wanted.
        reason: String,
    },
    /// None of several addresses worked; the last failure is the source, the others are in the text.
    #[error("no server of {addresses} could be used ({others})")]
    NoServer {
        /// All addresses tried.
        addresses: String,
        /// What the earlier ones said.
        others: String,
        /// What the last one said.
        #[source]
        source: Box<Error>,
    },
    /// The server answered with an error.
    #[error("{during}")]
    Server {
        /// The command or phase the server refused.
        during: String,
        /// The server's words, typed.
        #[source]
        source: Box<ServerError>,
    },
    /// Nothing arrived, or nothing could be sent, within the deadline.
    #[error("{during}: no answer within {after:?}")]
    Timeout {
        /// The command or phase.
        during: String,
        /// The deadline that passed.
        after: Duration,
    },
    /// The connection ended without a word.
    #[error("{during}: connection lost")]
    ConnectionLost {
        /// The command or phase.
        during: String,
        /// What the operating system said; none when the peer closed the connection.
        #[source]
        source: Option<io::Error>,
    },
    /// The peer sent something that the protocol does not allow here, or more than the limit.
    #[error("{during}: {reason}")]
    Protocol {
        /// The command or phase.
        during: String,
        /// What was unexpected.
        reason: String,
    },
    /// The server is of a major version this program does not work with.
    #[error("PostgreSQL {major} is not supported: {supported} are")]
    UnsupportedServer {
        /// The server's major version.
        major: u32,
        /// The majors that work, as words.
        supported: &'static str,
    },
    /// A name that PostgreSQL does not accept (slot name, backup label).
    #[error("{what} {name:?}: {reason}")]
    InvalidName {
        /// What is named.
        what: &'static str,
        /// The name as given.
        name: String,
        /// The rule it breaks.
        reason: &'static str,
    },
    /// A connection was used in a way its state does not allow, for example a query while it streams: a mistake in the calling code.
    #[error("{during}: the connection is {state}")]
    WrongState {
        /// The command or phase asked for.
        during: String,
        /// What the connection is doing instead.
        state: &'static str,
    },
    /// The server sends other WAL than it sent before: it was rolled back or replaced.
    #[error(
        "the WAL at {at} was received before and does not come again: the server's WAL has changed"
    )]
    Diverged {
        /// Start of a record that is missing now, or of a stored chunk whose commits are other ones now.
        at: wal_format::Lsn,
    },
    /// Streaming cannot go on from this server.
    #[error(transparent)]
    Resume(#[from] crate::resume::ResumeConflict),
    /// WAL that is not valid, where it is to be refused.
    #[error("WAL at {at} is not valid: {reason}")]
    InvalidWal {
        /// Where.
        at: wal_format::Lsn,
        /// What is wrong.
        reason: String,
    },
    /// A file that is not what its name says, or not finished.
    #[error("{file}: {reason}")]
    RefusedFile {
        /// Its name.
        file: String,
        /// What does not fit.
        reason: String,
    },
    /// WAL of a cluster that the repository does not know.
    #[error("{repository}: the cluster {cluster} is not known there")]
    UnknownCluster {
        /// Its system identifier.
        cluster: String,
        /// The repository's URL.
        repository: String,
    },
    /// Bytes of PostgreSQL's own formats that cannot be read, or a position that cannot be decoded from.
    #[error(transparent)]
    Format(#[from] wal_format::Error),
    /// The server is not the one the repository or the configuration names.
    #[error("{what}: expected {expected}, found {found}")]
    WrongServer {
        /// Which fact.
        what: &'static str,
        /// From the configuration or the repository.
        expected: String,
        /// From the server.
        found: String,
    },
    /// Asked to stop, from outside.
    #[error("{during}: interrupted")]
    Interrupted {
        /// What was going on.
        during: &'static str,
    },
    /// A base backup was asked for and nothing would store the WAL it needs.
    #[error("nothing stores this server's WAL: {reason}")]
    NotArchiving {
        /// What was looked at and how it was found.
        reason: String,
    },
    /// WAL that a base backup needs did not arrive in the repository.
    #[error(
        "the backup needs WAL up to {needed} on timeline {timeline}, and what is stored ends at {stored}: no more came within {after:?}"
    )]
    WalNotStored {
        /// The timeline that lacks WAL.
        timeline: wal_format::TimelineId,
        /// First byte that is not stored.
        stored: wal_format::Lsn,
        /// First byte behind what is needed.
        needed: wal_format::Lsn,
        /// How long nothing was added.
        after: Duration,
    },
    /// What the server sent as a base backup is not one.
    #[error("base backup: {what}: {reason}")]
    UnusableBackup {
        /// Which stream or document.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Another server than this was promoted to the timeline whose history is stored.
    #[error(
        "{timeline:08X}.history is already stored with different contents: another server was promoted to timeline {timeline}, and its WAL is what is stored"
    )]
    OtherHistory {
        /// Which timeline.
        timeline: u32,
    },
    /// A standby followed a promotion while it was backed up: what comes of that no path of WAL holds as one backup. Take another.
    #[error(
        "the server went on from timeline {start} to timeline {stop} while it was backed up: this backup could not be restored; take another one"
    )]
    TimelineChanged {
        /// On which the backup began.
        start: wal_format::TimelineId,
        /// On which it ended.
        stop: wal_format::TimelineId,
    },
    /// Commits would wait for ever: for somebody who replays WAL, which an archiver does not.
    #[error(
        "commits of {whose} wait for this receiver to replay WAL (synchronous_commit = remote_apply), which it never does: they would hang"
    )]
    RemoteApply {
        /// Whose: the server's, a role's, a database's.
        whose: String,
    },
    /// A server that was restored from a repository: it must not take its source's next timeline.
    #[error("this server was restored from {from}: it must not write into its source's repository")]
    RestoredClone {
        /// What it was restored from.
        from: String,
    },
    /// So many repositories hold other contents than ours that what is received can no longer be stored in enough of them.
    #[error(
        "{left} of the repositories can still be written to, {needed} must have what is received: the others hold other contents under its keys"
    )]
    TooFewRepositories {
        /// Repositories without a conflict.
        left: usize,
        /// How many the `ack` policy asks for.
        needed: usize,
    },
    /// An object that is stored is not listed: a listing that lacks it proves no gap.
    #[error("{object}: is stored, and the store's listing lacks it")]
    Unlisted {
        /// Its key.
        object: String,
    },
    /// The repository could not do what was asked.
    #[error(transparent)]
    Repository(#[from] repository::Error),
}

impl Error {
    /// What a caller can do about it.
    pub fn class(&self) -> ErrorClass {
        match self {
            Error::ConnectionSettings { .. }
            | Error::LocalFile { .. }
            | Error::Tls { .. }
            | Error::Authentication { .. }
            | Error::UnsupportedServer { .. }
            | Error::InvalidName { .. }
            | Error::UnknownCluster { .. }
            | Error::RemoteApply { .. } => ErrorClass::Config,
            Error::Connect { .. }
            | Error::UnsuitableServer { .. }
            | Error::Timeout { .. }
            | Error::ConnectionLost { .. } => ErrorClass::Retry,
            Error::NoServer { source, .. } => source.class(),
            Error::Server { source, .. } => source.class(),
            Error::Protocol { .. } | Error::WrongState { .. } => ErrorClass::Bug,
            Error::Diverged { .. }
            | Error::WrongServer { .. }
            | Error::RestoredClone { .. }
            | Error::OtherHistory { .. }
            | Error::TooFewRepositories { .. } => ErrorClass::Conflict,
            Error::Resume(crate::resume::ResumeConflict::StandbyBehind { .. }) => ErrorClass::Retry,
            Error::Resume(_) => ErrorClass::Conflict,
            Error::InvalidWal { .. }
            | Error::RefusedFile { .. }
            | Error::Format(_)
            | Error::UnusableBackup { .. } => ErrorClass::Corrupt,
            Error::Interrupted { .. }
            | Error::NotArchiving { .. }
            | Error::TimelineChanged { .. }
            | Error::WalNotStored { .. }
            | Error::Unlisted { .. } => ErrorClass::Retry,
            Error::Repository(error) => error.class(),
        }
    }

    /// The server's error, if the server sent one: what a caller matches on to tell "removed" from "not in history".
    pub fn server(&self) -> Option<&ServerError> {
        match self {
            Error::Server { source, .. } => Some(source),
            Error::NoServer { source, .. } => source.server(),
            _ => None,
        }
    }

    /// Shorthand for `server().map(kind)`.
    pub fn server_kind(&self) -> Option<ServerErrorKind> {
        self.server().map(ServerError::kind)
    }
}

/// An ErrorResponse or NoticeResponse of the server (protocol "Error and Notice Message Fields"), majors 14 to 18.
///
/// Text is in the server's `lc_messages` language, so decisions use `sqlstate` and `routine` where they can.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerError {
    /// `ERROR`, `FATAL`, `PANIC`, `WARNING`, … never translated (field `V`).
    pub severity: String,
    /// Five characters, for example `58P01`.
    pub sqlstate: String,
    /// The primary message.
    pub message: String,
    /// A second, longer message.
    pub detail: Option<String>,
    /// What to do about it, in the server's opinion.
    pub hint: Option<String>,
    /// Where in the statement, in characters from 1.
    pub position: Option<u32>,
    /// The server's C function that raised it; absent if the server hides it.
    pub routine: Option<String>,
}

/// Which of the known failures a [`ServerError`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ServerErrorKind {
    /// 28P01: wrong password or unknown user.
    AuthenticationFailed,
    /// 28000: pg_hba.conf has no line for us, or the role may not log in or replicate.
    Rejected,
    /// 42501: the role lacks a right.
    PermissionDenied,
    /// 3D000: the database does not exist.
    DatabaseMissing,
    /// The requested start or timeline is not in this server's history.
    NotInHistory,
    /// The requested start is ahead of what this server has flushed.
    AheadOfFlush,
    /// 58P01: the server removed the WAL segment that was asked for.
    WalRemoved,
    /// 58P01 otherwise: a file that was asked for does not exist (timeline history).
    FileMissing,
    /// 55006: another connection uses the slot.
    SlotInUse,
    /// 42704: there is no such slot.
    SlotMissing,
    /// 42710: the slot already exists.
    SlotExists,
    /// 55000: the slot was invalidated or the server is not set up for this.
    NotInPrerequisiteState,
    /// 53300: no free connection, WAL sender or slot.
    TooManyConnections,
    /// 57P01, 57P02, 57P03: the server is shutting down, crashed or still starting.
    ShuttingDown,
    /// 57014: cancelled at our request.
    Cancelled,
    /// XX001, XX002: damaged data (a base backup that met bad page checksums).
    DataCorrupted,
    /// Anything else; read the SQLSTATE.
    Other,
}

impl ServerError {
    /// Which of the known failures this is.
    pub fn kind(&self) -> ServerErrorKind {
        use ServerErrorKind as Kind;
        match self.sqlstate.as_str() {
            "28P01" => Kind::AuthenticationFailed,
            "28000" => Kind::Rejected,
            "42501" => Kind::PermissionDenied,
            "3D000" => Kind::DatabaseMissing,
            "58P01" if self.says_wal_removed() => Kind::WalRemoved,
            "58P01" => Kind::FileMissing,
            "55006" => Kind::SlotInUse,
            "42704" => Kind::SlotMissing,
            "42710" => Kind::SlotExists,
            "55000" => Kind::NotInPrerequisiteState,
            "53300" | "53400" => Kind::TooManyConnections,
            "57P01" | "57P02" | "57P03" => Kind::ShuttingDown,
            "57014" => Kind::Cancelled,
            "XX001" | "XX002" => Kind::DataCorrupted,
            "XX000" => self.kind_of_internal_error(),
            _ => Kind::Other,
        }
    }

    /// What a caller can do about it.
    pub fn class(&self) -> ErrorClass {
        use ServerErrorKind as Kind;
        match self.kind() {
            Kind::AuthenticationFailed
            | Kind::Rejected
            | Kind::PermissionDenied
            | Kind::DatabaseMissing
            | Kind::NotInPrerequisiteState => ErrorClass::Config,
            Kind::NotInHistory | Kind::AheadOfFlush | Kind::SlotInUse | Kind::SlotExists => {
                ErrorClass::Conflict
            }
            Kind::WalRemoved | Kind::FileMissing | Kind::SlotMissing => ErrorClass::NotFound,
            Kind::TooManyConnections | Kind::ShuttingDown | Kind::Cancelled => ErrorClass::Retry,
            Kind::DataCorrupted => ErrorClass::Corrupt,
            // Class 08 (connection), 40 (rollback), 53 (resources), 57 (operator), 58 (system): the next try may succeed.
            Kind::Other => match self.sqlstate.get(..2) {
                Some("08" | "40" | "53" | "57" | "58" | "XX") => ErrorClass::Retry,
                Some("42") => ErrorClass::Bug,
                _ => ErrorClass::Config,
            },
        }
    }

    /// Whether the server closes the connection after this.
    pub fn is_fatal(&self) -> bool {
        matches!(self.severity.as_str(), "FATAL" | "PANIC")
    }

    /// `errcode_for_file_access` gives 58P01 to every missing file; two places in the server mean a removed segment.
    fn says_wal_removed(&self) -> bool {
        matches!(
            self.routine.as_deref(),
            Some("CheckXLogRemoved" | "WalSndSegmentOpen")
        ) || self.message.starts_with("requested WAL segment")
    }

    /// `StartReplication` raises two errors without an SQLSTATE of their own. Only "not in this server's history" has a
    /// detail; the words are compared first, for servers that speak English.
    fn kind_of_internal_error(&self) -> ServerErrorKind {
        let routine = self.routine.as_deref();
        if self.message.contains("not in this server's history") {
            ServerErrorKind::NotInHistory
        } else if self.message.contains("ahead of the WAL flush position") {
            ServerErrorKind::AheadOfFlush
        } else if routine == Some("tliSwitchPoint")
            || (routine == Some("StartReplication") && self.detail.is_some())
        {
            ServerErrorKind::NotInHistory
        } else if routine == Some("StartReplication") {
            ServerErrorKind::AheadOfFlush
        } else {
            ServerErrorKind::Other
        }
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "server says {}", self.message)?;
        if let Some(detail) = &self.detail {
            write!(formatter, "; {detail}")?;
        }
        if let Some(hint) = &self.hint {
            write!(formatter, " (server hint: {hint})")?;
        }
        write!(formatter, " [{} {}]", self.severity, self.sqlstate)
    }
}

impl std::error::Error for ServerError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(sqlstate: &str, message: &str, detail: Option<&str>, routine: &str) -> ServerError {
        ServerError {
            severity: "ERROR".into(),
            sqlstate: sqlstate.into(),
            message: message.into(),
            detail: detail.map(str::to_owned),
            routine: Some(routine.into()),
            ..ServerError::default()
        }
    }

    #[test]
    fn start_errors_are_told_apart_in_any_language() {
        use ServerErrorKind as Kind;
        let check = |error: ServerError, kind: Kind, class: ErrorClass| {
            assert_eq!(error.kind(), kind, "{error}");
            assert_eq!(error.class(), class, "{error}");
        };
        let history =
            "requested starting point 0/9000000 on timeline 1 is not in this server's history";
        check(
            server("XX000", history, Some("fork"), "StartReplication"),
            Kind::NotInHistory,
            ErrorClass::Conflict,
        );
        check(
            server(
                "XX000",
                "gewünschter Startpunkt …",
                Some("Zweig"),
                "StartReplication",
            ),
            Kind::NotInHistory,
            ErrorClass::Conflict,
        );
        check(
            server(
                "XX000",
                "gewünschter Startpunkt …",
                None,
                "StartReplication",
            ),
            Kind::AheadOfFlush,
            ErrorClass::Conflict,
        );
        check(
            server("XX000", "something else", None, "elsewhere"),
            Kind::Other,
            ErrorClass::Retry,
        );
        check(
            server("58P01", "angefordertes Segment …", None, "CheckXLogRemoved"),
            Kind::WalRemoved,
            ErrorClass::NotFound,
        );
        check(
            server("58P01", "could not open file", None, "SendTimeLineHistory"),
            Kind::FileMissing,
            ErrorClass::NotFound,
        );
        check(
            server("28P01", "password", None, "auth_failed"),
            Kind::AuthenticationFailed,
            ErrorClass::Config,
        );
    }

    #[test]
    fn the_servers_words_are_the_source_and_not_the_message() {
        let error = Error::Server {
            during: "START_REPLICATION".into(),
            source: Box::new(server("58P01", "requested WAL segment 1 …", None, "x")),
        };
        assert_eq!(error.to_string(), "START_REPLICATION");
        assert_eq!(error.server_kind(), Some(ServerErrorKind::WalRemoved));
        let source = std::error::Error::source(&error).map(ToString::to_string);
        assert_eq!(
            source.as_deref(),
            Some("server says requested WAL segment 1 … [ERROR 58P01]")
        );
    }
}
