//! From plain bytes to a durable object: sealing on a worker thread, storing with patience.
//!
//! Owns the retries behind the store's own: while the repository does not answer, an upload waits and tries again for as long as the
//! process lives; the server keeps the WAL meanwhile. Does not own what is uploaded when (`receive.rs`, `base_backup.rs`).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use repository::sealed::{BufferPool, Facts, SealPolicy, Sealed, Sealer};
use repository::{ErrorClass, Repository, Stored};

use crate::Result;

/// First wait after a failed upload.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// Longest wait between two attempts.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Seals and stores objects in one repository. Cheap to clone.
#[derive(Clone)]
pub struct Uploader {
    repository: Repository,
    policy: SealPolicy,
    pool: BufferPool,
    idle: Arc<Mutex<Vec<Sealer>>>,
}

impl Uploader {
    /// An uploader that keeps at most `buffers` idle payload buffers.
    #[must_use]
    pub fn new(repository: Repository, policy: SealPolicy, buffers: usize) -> Self {
        Self {
            repository,
            policy,
            pool: BufferPool::new(buffers),
            idle: Arc::default(),
        }
    }

    /// Where it stores.
    #[must_use]
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Seals on the calling thread.
    ///
    /// # Errors
    /// As [`Sealer::seal`].
    pub fn seal_here(&self, facts: Facts, plain: &[u8]) -> Result<Sealed> {
        let idle = self
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        let mut sealer =
            idle.unwrap_or_else(|| Sealer::new(self.policy.clone(), self.pool.clone()));
        let sealed = sealer.seal(facts, plain);
        self.idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(sealer);
        Ok(sealed?)
    }

    /// Seals on a thread for such work. Gives the plain buffer back for reuse.
    ///
    /// # Errors
    /// As [`Sealer::seal`].
    pub async fn seal(&self, facts: Facts, plain: Vec<u8>) -> Result<(Sealed, Vec<u8>)> {
        let uploader = self.clone();
        let work = tokio::task::spawn_blocking(move || {
            let sealed = uploader.seal_here(facts, &plain)?;
            Ok((sealed, plain))
        });
        match work.await {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    /// Stores a sealed object; durable when this returns. Waits out an unavailable store and refused credentials.
    ///
    /// # Errors
    /// `Conflict`, `Corrupt`, `Bug`: waiting would not help.
    pub async fn put(&self, sealed: &Sealed) -> Result<Stored> {
        let (begun, mut wait) = (Instant::now(), FIRST_WAIT);
        loop {
            let error = match self.repository.put(sealed).await {
                Ok(stored) => return Ok(stored),
                Err(error) => error,
            };
            if !matches!(error.class(), ErrorClass::Retry | ErrorClass::Config) {
                return Err(error.into());
            }
            tracing::warn!(
                object = %sealed.key,
                repository = self.repository.name(),
                waiting_seconds = begun.elapsed().as_secs(),
                error = error_text(&error),
                "not stored yet, trying again"
            );
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }
}

/// An error and its causes in one line, for logs.
#[must_use]
pub fn error_text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
