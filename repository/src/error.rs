//! What can go wrong in a repository, as one closed list, and what a caller does about each (`class`).
//! Owns the text of no hint: those are the command line's. Does not own errors of other crates, which only share [`ErrorClass`].

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// `Result` of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller can do about an error. Retry loops, reports and exit codes read only this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// Nothing is proven; the same request may succeed later (network, 5xx, throttling, deadline, full disk).
    Retry,
    /// The object, file or bucket entry asked for is proven absent.
    NotFound,
    /// Something else is already there, or two truths disagree; never overwritten, a human decides.
    Conflict,
    /// Stored bytes are not what they claim to be.
    Corrupt,
    /// Only a changed setting, right or environment helps (URL, credentials, bucket, TLS trust, permissions).
    Config,
    /// No key, or not the right one (exit code 12).
    Key,
    /// An invariant of ours is broken.
    Bug,
}

/// Any failure of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // --- the store: where and how ---
    /// A repository URL that cannot be used as written.
    #[error("repository URL {url:?}: {reason}")]
    InvalidUrl {
        /// The URL as given, secrets redacted.
        url: String,
        /// What is wrong and what is expected.
        reason: String,
    },
    /// A store setting that cannot be used: an option, a CA file, a region.
    #[error("{location}: {reason}")]
    StoreConfig {
        /// URL of the repository or object.
        location: String,
        /// What is wrong and what to change.
        reason: String,
        /// What the store or the operating system said.
        #[source]
        source: Option<Cause>,
    },
    /// The store answered, and refused the credentials or the right (401, 403, EACCES).
    #[error("{location}: access denied")]
    AccessDenied {
        /// URL of the object or repository.
        location: String,
        /// What the store said.
        #[source]
        source: Cause,
    },
    /// No object at this place: proven by the store's answer.
    #[error("{location}: no such object")]
    NotFound {
        /// URL of the object.
        location: String,
    },
    /// The store could not be asked or did not answer properly; retries within the total deadline did not help.
    #[error("{location}: store unavailable after {attempts} attempt(s) in {elapsed:.1?}")]
    Unavailable {
        /// URL of the object or repository.
        location: String,
        /// Requests sent.
        attempts: u32,
        /// Time from the first attempt to giving up.
        elapsed: Duration,
        /// The last answer.
        #[source]
        source: Cause,
    },
    /// The store is full or over its quota. Not retried inside the store; worth retrying once somebody made room.
    #[error("{location}: no space left")]
    StoreFull {
        /// URL of the object.
        location: String,
        /// What the store said.
        #[source]
        source: Cause,
    },
    /// An object larger than the reader allows: nothing was allocated for it.
    #[error("{location}: object of {size} bytes is larger than the limit of {limit} bytes")]
    ObjectTooLarge {
        /// URL of the object.
        location: String,
        /// Size in bytes the store claims.
        size: u64,
        /// Largest size in bytes the caller accepts.
        limit: u64,
    },
    /// A range outside the object.
    #[error("{location}: range {start}..{end} does not lie within the object")]
    RangeOutside {
        /// URL of the object.
        location: String,
        /// First byte asked for.
        start: u64,
        /// First byte not asked for.
        end: u64,
    },
    /// More objects than a listing may hold in memory: nothing is damaged, and what is stored can be read by its name. Not retried inside the
    /// store; it passes once somebody has made room.
    #[error(
        "{location}: more than {limit} objects, too many for one listing to hold in memory (nothing is damaged): remove what is no longer \
         needed, or go on in a new repository"
    )]
    TooManyObjects {
        /// URL of the folder.
        location: String,
        /// How many a listing may hold.
        limit: usize,
    },
    /// The store answered with something that fits no rule.
    #[error("{location}: {reason}")]
    StoreAnswer {
        /// URL of the object or listing.
        location: String,
        /// What was unexpected.
        reason: String,
        /// What the store said.
        #[source]
        source: Option<Cause>,
    },
    /// A path that no key of ours can have reached the store: a mistake in the calling code.
    #[error("object path {path:?}: {reason}")]
    InvalidPath {
        /// The path below the repository root.
        path: String,
        /// Which rule it breaks.
        reason: &'static str,
    },

    // --- keys and sealed objects ---
    /// A path that is no object key of format 1.
    #[error("{path:?} is not the key of an object")]
    InvalidKey {
        /// The path, or the part of it, as found.
        path: String,
    },
    /// Stored bytes that are not what their descriptor, their tags or their checksums say.
    #[error("{key}: {what}")]
    Damaged {
        /// Key of the object.
        key: String,
        /// What does not hold.
        what: String,
    },
    /// An object found where another one belongs.
    #[error("{key}: what stands there is of another place: {found}")]
    Misplaced {
        /// Where it was found.
        key: String,
        /// What it says of itself.
        found: String,
    },
    /// An object without a descriptor: not written by Walden.
    #[error("{key}: the object carries no descriptor")]
    NoDescriptor {
        /// Key of the object.
        key: String,
    },
    /// Written by a later version.
    #[error("{key}: written by a later version: {what}")]
    FromTheFuture {
        /// Key of the object.
        key: String,
        /// What this version does not know.
        what: String,
    },
    /// An unsealed object, and the reader was given an identity.
    #[error("{key}: the object is not encrypted, although an identity is configured")]
    PlainRefused {
        /// Key of the object.
        key: String,
    },
    /// An encrypted object, and no identity to open it.
    #[error("{key}: the object is encrypted and no identity is configured")]
    NoIdentity {
        /// Key of the object.
        key: String,
    },
    /// None of the identities opens the object.
    #[error("{key}: none of the {identities} configured identities opens the object")]
    WrongIdentity {
        /// Key of the object.
        key: String,
        /// How many were tried.
        identities: usize,
    },
    /// Something else already stands at this key: never overwritten.
    #[error("{key}: already stored with different contents: {what}")]
    AlreadyStored {
        /// Key of the object.
        key: String,
        /// Which facts differ.
        what: String,
    },
    /// None of several repositories gives an object.
    #[error("{object}: no repository gives it: {said}")]
    NoRepositoryGives {
        /// Key of the object, or what was listed.
        object: String,
        /// What each of them said, by name.
        said: String,
        /// `Retry` if one of them may still have it, else the worst of theirs.
        class: ErrorClass,
    },
    /// A recipient, identity or secret reference that cannot be used.
    #[error("{reference}: {reason}")]
    Secret {
        /// The reference (never the secret itself).
        reference: String,
        /// What is wrong and what is expected.
        reason: String,
    },
    /// What was asked to be stored breaks a limit or a rule of the format: a mistake in the calling code.
    #[error("{key}: cannot be sealed: {reason}")]
    Unsealable {
        /// Key of the object.
        key: String,
        /// Which rule.
        reason: String,
    },

    // --- local files ---
    /// A local file operation failed.
    #[error("{action} {path:?}")]
    Io {
        /// The operation as a verb: `create`, `write`, `rename`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// What a caller can do about it.
    pub fn class(&self) -> ErrorClass {
        match self {
            Error::InvalidUrl { .. } | Error::StoreConfig { .. } | Error::AccessDenied { .. } => {
                ErrorClass::Config
            }
            Error::NotFound { .. } => ErrorClass::NotFound,
            Error::Unavailable { .. } | Error::StoreFull { .. } | Error::TooManyObjects { .. } => {
                ErrorClass::Retry
            }
            Error::ObjectTooLarge { .. }
            | Error::RangeOutside { .. }
            | Error::StoreAnswer { .. } => ErrorClass::Corrupt,
            Error::InvalidPath { .. } | Error::Unsealable { .. } => ErrorClass::Bug,
            Error::InvalidKey { .. }
            | Error::Damaged { .. }
            | Error::Misplaced { .. }
            | Error::NoDescriptor { .. } => ErrorClass::Corrupt,
            Error::FromTheFuture { .. } | Error::PlainRefused { .. } => ErrorClass::Config,
            Error::NoIdentity { .. } | Error::WrongIdentity { .. } => ErrorClass::Key,
            Error::Secret { .. } => ErrorClass::Config,
            Error::AlreadyStored { .. } => ErrorClass::Conflict,
            Error::NoRepositoryGives { class, .. } => *class,
            Error::Io { source, .. } => class_of_io(source),
        }
    }
}

/// What a caller can do about a failed file operation. Unknown kinds are `Retry`: they prove nothing.
pub fn class_of_io(error: &std::io::Error) -> ErrorClass {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::NotFound => ErrorClass::NotFound,
        ErrorKind::AlreadyExists | ErrorKind::DirectoryNotEmpty => ErrorClass::Conflict,
        ErrorKind::PermissionDenied
        | ErrorKind::ReadOnlyFilesystem
        | ErrorKind::NotADirectory
        | ErrorKind::IsADirectory
        | ErrorKind::InvalidFilename
        | ErrorKind::Unsupported => ErrorClass::Config,
        ErrorKind::InvalidData | ErrorKind::UnexpectedEof => ErrorClass::Corrupt,
        ErrorKind::InvalidInput => ErrorClass::Bug,
        _ => ErrorClass::Retry,
    }
}

/// The text of a foreign error and its causes, credentials and signatures already redacted.
///
/// Foreign error types stay inside the module that imports their crate; only their redacted words leave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause(String);

impl Cause {
    /// A cause with these words. The caller has redacted them.
    pub fn new(words: impl Into<String>) -> Self {
        Cause(words.into())
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Cause {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn a_denied_file_is_config_and_an_interrupted_one_is_retry() {
        let check = |kind: io::ErrorKind, expected: ErrorClass| {
            let error = Error::Io {
                action: "read",
                path: "/x".into(),
                source: kind.into(),
            };
            assert_eq!(error.class(), expected, "{kind:?}");
        };
        check(io::ErrorKind::PermissionDenied, ErrorClass::Config);
        check(io::ErrorKind::NotFound, ErrorClass::NotFound);
        check(io::ErrorKind::AlreadyExists, ErrorClass::Conflict);
        check(io::ErrorKind::StorageFull, ErrorClass::Retry);
        check(io::ErrorKind::Interrupted, ErrorClass::Retry);
        check(io::ErrorKind::Other, ErrorClass::Retry);
    }

    #[test]
    fn the_cause_is_a_source_and_not_pasted_into_the_message() {
        let error = Error::AccessDenied {
            location: "s3://b/p/x".into(),
            source: Cause::new("403 SignatureDoesNotMatch"),
        };
        assert_eq!(error.to_string(), "s3://b/p/x: access denied");
        assert_eq!(
            std::error::Error::source(&error)
                .map(ToString::to_string)
                .as_deref(),
            Some("403 SignatureDoesNotMatch")
        );
    }
}
