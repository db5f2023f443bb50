//! What a place to store objects must be able to do in one attempt, and how an attempt fails.
//! Owns the seam between [`super::Store`] (deadlines, retries, limits) and the back ends. Owns no retry and no deadline of a whole request.

use std::ops::Range;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;

use super::{Listed, ObjectMeta, PutOutcome};

/// Keys in one page of a listing, at most.
pub(crate) const PAGE_SIZE: usize = 1000;

/// One attempt at each operation. Paths were checked by the caller and lie below the back end's root.
#[async_trait]
pub(crate) trait Backend: Send + Sync {
    /// Stores a new object, or finds one there. After `Created` it is durable; after a failure either may be true.
    async fn put_new(&self, path: &str, body: &[Bytes]) -> Result<PutOutcome, Failure>;

    /// Reads `range` as far as the object has such bytes (empty when it begins at or beyond the end); `None` is the whole
    /// object, refused with [`FailureKind::TooLarge`] before anything is allocated when it is larger than `limit` bytes.
    async fn fetch(
        &self,
        path: &str,
        range: Option<Range<u64>>,
        limit: u64,
    ) -> Result<Fetched, Failure>;

    /// Size and time of an object. [`FailureKind::NotFound`] only when the store says so, in the right place.
    async fn head(&self, path: &str) -> Result<ObjectMeta, Failure>;

    /// One page of a listing.
    async fn list_page(&self, request: &PageRequest) -> Result<Page, Failure>;
}

/// Bytes read and what the store said of the whole object.
#[derive(Debug)]
pub(crate) struct Fetched {
    /// The bytes of the range that exist.
    pub(crate) bytes: Bytes,
    /// Size of the whole object in bytes.
    pub(crate) object_size: u64,
    /// When the store says it was written.
    pub(crate) last_modified: SystemTime,
}

impl Fetched {
    /// Itself, if these are all bytes of `range` (`None`: of the object) that exist: a cut answer must not pass for a short object.
    pub(crate) fn complete(self, range: Option<&Range<u64>>) -> Result<Self, Failure> {
        let all = 0..self.object_size;
        let range = range.unwrap_or(&all);
        let expected = range.end.min(self.object_size).saturating_sub(range.start);
        match self.bytes.len() as u64 {
            length if length == expected => Ok(self),
            length => Err(Failure::transient(format!(
                "{length} bytes arrived of {expected}"
            ))),
        }
    }
}

/// Which page of which listing.
#[derive(Clone, Debug)]
pub(crate) struct PageRequest {
    /// Folder below the root without a closing slash, empty for the root.
    pub(crate) folder: String,
    /// Only paths greater than this one (full path below the root).
    pub(crate) after: Option<String>,
    /// Only what lies directly in the folder; deeper objects show as folders.
    pub(crate) delimited: bool,
    /// Where the previous page ended, in the back end's own words.
    pub(crate) token: Option<String>,
}

/// Objects and folders of one page; `token` asks for the next one.
#[derive(Debug, Default)]
pub(crate) struct Page {
    /// Objects, full paths below the root.
    pub(crate) objects: Vec<Listed>,
    /// Folders, full paths below the root without a closing slash. Only of delimited listings.
    pub(crate) folders: Vec<String>,
    /// `None`: this was the last page.
    pub(crate) token: Option<String>,
}

/// Why an attempt failed. `cause` is in the store's words, already free of secrets.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) kind: FailureKind,
    pub(crate) cause: String,
}

/// What to do about a failed attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FailureKind {
    /// Nothing is proven, try again.
    Transient,
    /// Proven absent.
    NotFound,
    /// Credentials or rights refused.
    Denied,
    /// The instance's credentials could not be had: a mistake in the settings at the start, a hiccup later.
    NoCredentials,
    /// No room left.
    Full,
    /// A setting is wrong; the text says which and what to do.
    Config(String),
    /// Larger than the reader's limit: size in bytes.
    TooLarge(u64),
    /// An answer that fits no rule; the text says what.
    Odd(String),
}

impl Failure {
    pub(crate) fn new(kind: FailureKind, cause: impl Into<String>) -> Self {
        Failure {
            kind,
            cause: cause.into(),
        }
    }

    pub(crate) fn transient(cause: impl Into<String>) -> Self {
        Failure::new(FailureKind::Transient, cause)
    }
}
