//! The only door to storage: objects by path below a repository's root, on a local folder or an S3 bucket.
//! Owns deadlines, retries, the limit of concurrent requests and the classes of errors; a child module alone imports `object_store`.
//! Does not know what the paths and bytes mean: "already exists" is a question that the caller answers by reading.

mod backend;
mod listing;
mod local;
mod location;
mod remote;
mod retry;

#[cfg(feature = "testing")]
pub(crate) mod seam {
    //! What the back ends of the tests are made of.
    pub(crate) use super::backend::{
        Backend, Failure, FailureKind, Fetched, PAGE_SIZE, Page, PageRequest,
    };
    pub(crate) use super::retry::split_mix;
}

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use backend::{Backend, Failure, FailureKind, Fetched};
use local::LocalBackend;
use location::Location;
use retry::Backoff;

pub use listing::{Listed, MAX_LISTED, Pages};
pub use location::StoreOptions;
pub use retry::{Deadlines, MIN_TRANSFER_RATE};

use crate::error::Cause;
use crate::{Error, Result};

/// Requests under way at a time in one [`Store`] and its clones: a burst opens no more connections than this.
pub const MAX_CONCURRENT_REQUESTS: usize = 16;

/// Longest path of an object in bytes, the prefix of the repository included: S3 allows 1024.
pub const MAX_PATH_LENGTH: usize = 1000;

/// Longest part of a path between slashes in bytes: what file systems allow.
const MAX_PATH_PART_LENGTH: usize = 255;

/// A store that fails for longer is spoken of: shorter trouble is a store's everyday life.
const SAID_AFTER: Duration = Duration::from_secs(10);

/// Answer of [`Store::put_new`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "AlreadyExists is a question: whose object is it?"]
pub enum PutOutcome {
    /// The object is new, ours and durable.
    Created,
    /// An object is there. It may be ours (a lost reply), the same bytes from somebody else, or a conflict: read it.
    /// Rarely (a conflicting write in flight) there is none yet: then put again.
    AlreadyExists,
}

/// What a store says of one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Size in bytes.
    pub size: u64,
    /// When it was written, by the store's clock.
    pub last_modified: SystemTime,
}

/// The first bytes of an object.
#[derive(Clone, Debug)]
pub struct Head {
    /// At most as many bytes as asked for; fewer only if the object is smaller.
    pub bytes: Bytes,
    /// Size of the whole object in bytes.
    pub object_size: u64,
    /// When it was written, by the store's clock.
    pub last_modified: SystemTime,
}

/// The bytes of an object to store, in pieces that need not be joined first.
#[derive(Clone, Debug, Default)]
pub struct Body(Vec<Bytes>);

impl Body {
    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.0.iter().map(|piece| piece.len() as u64).sum()
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Body(vec![bytes])
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Body(vec![bytes.into()])
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Body(vec![text.into()])
    }
}

impl From<Vec<Bytes>> for Body {
    fn from(pieces: Vec<Bytes>) -> Self {
        Body(pieces)
    }
}

impl From<&'static [u8]> for Body {
    fn from(bytes: &'static [u8]) -> Self {
        Body(vec![Bytes::from_static(bytes)])
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Body(vec![Bytes::from_static(text.as_bytes())])
    }
}

/// A place that keeps objects. Clones share connections and limits.
///
/// Paths are `/`-separated below the repository's root, without slashes at the ends. Every operation ends within
/// [`Deadlines::total`]; errors of class `Retry` have been retried until then and are worth another try later.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

struct Shared {
    /// URL without its query, for messages.
    url: String,
    backend: Arc<dyn Backend>,
    deadlines: Deadlines,
    backoff: Backoff,
    requests: Semaphore,
    /// What the first attempt of an operation may take instead of its share of the deadlines.
    first_attempt: Option<Duration>,
    /// Some request has succeeded: the settings are right, so what fails now may pass.
    reached: AtomicBool,
}

impl fmt::Debug for Store {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Store")
            .field("url", &self.shared.url)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Prepares access to the repository at `url`: `file:///absolute/path`, or `s3://bucket/prefix` with options in its query.
    /// Nothing is asked of the store yet and no folder is made.
    ///
    /// # Errors
    /// `InvalidUrl` and `StoreConfig`, both class `Config`.
    pub fn open(url: &str, options: StoreOptions) -> Result<Self> {
        let (location, options) = location::parse_url(url, options)?;
        let backend: Arc<dyn Backend> = match &location {
            Location::File { root } => Arc::new(LocalBackend::new(root.clone())),
            Location::S3 { bucket, prefix } => {
                Arc::new(remote::open_s3(&location, bucket, prefix, &options)?)
            }
        };
        let seed = match options.jitter_seed {
            Some(seed) => seed,
            None => getrandom::u64().map_err(|error| Error::StoreConfig {
                location: location.to_string(),
                reason: "the system gives no random numbers".into(),
                source: Some(Cause::new(error.to_string())),
            })?,
        };
        Ok(Self::with_backend(
            location.to_string(),
            backend,
            options.deadlines,
            seed,
        ))
    }

    pub(crate) fn with_backend(
        url: String,
        backend: Arc<dyn Backend>,
        deadlines: Deadlines,
        seed: u64,
    ) -> Self {
        Store {
            shared: Arc::new(Shared {
                url,
                backend,
                deadlines,
                backoff: Backoff::new(seed),
                requests: Semaphore::new(MAX_CONCURRENT_REQUESTS),
                first_attempt: None,
                reached: AtomicBool::new(false),
            }),
        }
    }

    /// The same store under other deadlines, sharing connections but not the limit of concurrent requests.
    #[must_use]
    pub fn with_deadlines(&self, deadlines: Deadlines) -> Self {
        let seed = retry::split_mix(deadlines.total.as_nanos() as u64);
        Self::with_backend(
            self.shared.url.clone(),
            Arc::clone(&self.shared.backend),
            deadlines,
            seed,
        )
    }

    /// The same store for a caller who can ask elsewhere: what fails at once is tried again for `failing` in all, what does not answer is
    /// waited for as long as `waiting`, once.
    #[must_use]
    pub(crate) fn hurried(&self, waiting: Duration, failing: Duration) -> Self {
        let total = self.shared.deadlines.total;
        let deadlines = Deadlines {
            request: waiting.min(total),
            total: failing.min(total),
        };
        let mut store = self.with_deadlines(deadlines);
        if let Some(shared) = Arc::get_mut(&mut store.shared) {
            shared.first_attempt = Some(waiting.min(total));
        }
        store
    }

    /// How long an operation may take.
    pub(crate) fn deadlines(&self) -> Deadlines {
        self.shared.deadlines
    }

    #[cfg(feature = "testing")]
    pub(crate) fn backend(&self) -> Arc<dyn Backend> {
        Arc::clone(&self.shared.backend)
    }

    /// URL of the repository's root without options, for messages.
    pub fn url(&self) -> &str {
        &self.shared.url
    }

    /// URL of an object, for messages.
    pub fn url_of(&self, path: &str) -> String {
        if path.is_empty() {
            self.shared.url.clone()
        } else {
            format!("{}/{path}", self.shared.url)
        }
    }

    /// Stores a new object in one conditional write; never touches an existing one.
    ///
    /// # Errors
    /// Class `Retry` proves nothing: the object may be there. `Config`: rights, bucket, or a store without conditional writes.
    pub async fn put_new(&self, path: &str, body: impl Into<Body>) -> Result<PutOutcome> {
        checked(path)?;
        let body = body.into();
        let deadline = self.shared.deadlines.request_of(body.size());
        self.attempts(path, 0, deadline, || {
            self.shared.backend.put_new(path, &body.0)
        })
        .await
    }

    /// Reads a whole object of at most `limit` bytes.
    ///
    /// # Errors
    /// `NotFound` only when the store proves it; `ObjectTooLarge` before anything is read.
    pub async fn fetch(&self, path: &str, limit: u64) -> Result<Bytes> {
        Ok(self.read(path, None, limit).await?.bytes)
    }

    /// Reads the first `max_bytes` bytes of an object, or all of a smaller one, with its size.
    ///
    /// # Errors
    /// `NotFound` only when the store proves it.
    pub async fn fetch_head(&self, path: &str, max_bytes: u64) -> Result<Head> {
        let max_bytes = max_bytes.max(1);
        let fetched = self.read(path, Some(0..max_bytes), max_bytes).await?;
        Ok(Head {
            bytes: fetched.bytes,
            object_size: fetched.object_size,
            last_modified: fetched.last_modified,
        })
    }

    /// Reads exactly the bytes `range` of an object; an empty range reads nothing and asks nobody.
    ///
    /// # Errors
    /// `RangeOutside` when the object has no such bytes; `NotFound` only when the store proves it.
    pub async fn fetch_range(&self, path: &str, range: Range<u64>) -> Result<Bytes> {
        let length = range.end.saturating_sub(range.start);
        if length == 0 {
            return Ok(Bytes::new());
        }
        let fetched = self.read(path, Some(range.clone()), length).await?;
        if fetched.object_size < range.end {
            return Err(Error::RangeOutside {
                location: self.url_of(path),
                start: range.start,
                end: range.end,
            });
        }
        Ok(fetched.bytes)
    }

    /// Size and time of an object; `None` only when the store proves that there is none.
    ///
    /// # Errors
    /// All but absence.
    pub async fn head(&self, path: &str) -> Result<Option<ObjectMeta>> {
        checked(path)?;
        let deadline = self.shared.deadlines.request;
        match self
            .attempts(path, 0, deadline, || self.shared.backend.head(path))
            .await
        {
            Ok(meta) => Ok(Some(meta)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn read(&self, path: &str, range: Option<Range<u64>>, limit: u64) -> Result<Fetched> {
        checked(path)?;
        let deadline = self.shared.deadlines.request_of(limit);
        let read = async || {
            self.shared
                .backend
                .fetch(path, range.clone(), limit)
                .await?
                .complete(range.as_ref())
        };
        self.attempts(path, limit, deadline, read).await
    }

    /// Runs one operation until it succeeds, fails for good, or the total deadline is over. `limit` is the reader's, for messages.
    async fn attempts<T, F>(
        &self,
        path: &str,
        limit: u64,
        request: Duration,
        mut operation: impl FnMut() -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let shared = &*self.shared;
        let started = Instant::now();
        let mut attempts = 0;
        loop {
            let left = shared.deadlines.total.saturating_sub(started.elapsed());
            let deadline = match shared.first_attempt {
                Some(first) if attempts == 0 => first,
                _ => request.min(left),
            };
            let outcome = self.attempt(deadline, &mut operation).await;
            attempts += 1;
            let failure = match outcome {
                Ok(value) => {
                    shared.reached.store(true, Ordering::Relaxed);
                    return Ok(value);
                }
                Err(failure) => failure,
            };
            if !self.is_transient(&failure.kind) {
                return Err(self.error_of(failure, path, limit));
            }
            let wait = shared.backoff.wait_after(attempts);
            let elapsed = started.elapsed();
            if elapsed.saturating_add(wait) >= shared.deadlines.total {
                let source = Cause::new(failure.cause);
                return Err(Error::Unavailable {
                    location: self.url_of(path),
                    attempts,
                    elapsed,
                    source,
                });
            }
            let url = self.url_of(path);
            let waited_seconds = elapsed.as_secs();
            if elapsed < SAID_AFTER {
                tracing::debug!(%url, attempts, waited_seconds, cause = failure.cause, "store request failed, trying again");
            } else {
                tracing::warn!(%url, attempts, waited_seconds, cause = failure.cause, "store request failed, trying again");
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// One attempt: waiting for a free place and the request itself end at the deadline.
    async fn attempt<T, F>(
        &self,
        deadline: Duration,
        operation: &mut impl FnMut() -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let request = async {
            match self.shared.requests.acquire().await {
                Ok(_permit) => operation().await,
                Err(closed) => Err(Failure::new(
                    FailureKind::Odd("the store is closed".into()),
                    closed.to_string(),
                )),
            }
        };
        match timeout(deadline, request).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::transient(format!(
                "no answer within {deadline:.1?}"
            ))),
        }
    }

    fn is_transient(&self, kind: &FailureKind) -> bool {
        match kind {
            FailureKind::Transient => true,
            FailureKind::NoCredentials => self.shared.reached.load(Ordering::Relaxed),
            _ => false,
        }
    }

    fn error_of(&self, failure: Failure, path: &str, limit: u64) -> Error {
        let location = self.url_of(path);
        let source = Cause::new(failure.cause);
        match failure.kind {
            FailureKind::NotFound => Error::NotFound { location },
            FailureKind::Denied => Error::AccessDenied { location, source },
            FailureKind::Full => Error::StoreFull { location, source },
            FailureKind::TooLarge(size) => Error::ObjectTooLarge {
                location,
                size,
                limit,
            },
            FailureKind::Config(reason) => Error::StoreConfig {
                location,
                reason,
                source: Some(source),
            },
            FailureKind::NoCredentials => {
                let reason = "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run where the cloud provides them \
                              (~/.aws is not read)";
                Error::StoreConfig {
                    location,
                    reason: reason.into(),
                    source: Some(source),
                }
            }
            FailureKind::Odd(reason) => Error::StoreAnswer {
                location,
                reason,
                source: Some(source),
            },
            FailureKind::Transient => Error::Unavailable {
                location,
                attempts: 1,
                elapsed: Duration::ZERO,
                source,
            },
        }
    }
}

fn checked(path: &str) -> Result<()> {
    check_path(path).map_err(|reason| Error::InvalidPath {
        path: path.to_owned(),
        reason,
    })
}

/// The rules for paths: what every back end can store under exactly this name.
pub(crate) fn check_path(path: &str) -> Result<(), &'static str> {
    if path.len() > MAX_PATH_LENGTH {
        return Err("longer than 1000 bytes");
    }
    if path.chars().any(char::is_control) {
        return Err("contains a control character");
    }
    if path.contains('\\') {
        return Err("contains a backslash, which some stores turn into a slash");
    }
    for part in path.split('/') {
        match part {
            "" => return Err("empty, or with an empty part between slashes"),
            "." | ".." => return Err("contains '.' or '..'"),
            _ if part.len() > MAX_PATH_PART_LENGTH => {
                return Err("a part between slashes is longer than 255 bytes");
            }
            _ if part.starts_with(crate::durable::TEMPORARY_PREFIX) => {
                return Err("is the name of a temporary file");
            }
            _ => {}
        }
    }
    Ok(())
}
