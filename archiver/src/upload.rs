//! From plain bytes to a durable object in every repository: sealing once, on a worker thread, and storing with patience.
//!
//! Owns the retries behind the store's own: while a repository does not answer, an upload waits and tries again for as long as the
//! process lives; the server keeps the WAL meanwhile. Owns which repositories hold contents other than ours: nothing more is stored there. Does
//! not own what is uploaded when (`receive.rs`, `base_backup.rs`).

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use repository::cluster::ClusterDocument;
use repository::key::{ClusterId, ObjectKey};
use repository::mirror::Ack;
use repository::sealed::{BufferPool, Facts, SealPolicy, Sealed, Sealer};
use repository::{ErrorClass, Repository, Stored};
use wal_format::TimelineId;

use crate::everywhere::{Waits, everywhere};
use crate::server_identity::{StoredHistory, compare_history};
use crate::{Error, Result};

/// First wait after a failed upload.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// Longest wait between two attempts.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// How long a repository that the `ack` policy does not need is waited for once the others have an object that is needed before anything else.
const STRAGGLER_GRACE: Duration = Duration::from_secs(1);
/// How long one that it does need is waited for, while another one has the object.
pub(crate) const NEEDED_GRACE: Duration = Duration::from_secs(30);

/// Seals objects once, for all repositories, and stores them there. Cheap to clone.
#[derive(Clone)]
pub struct Uploader {
    repositories: Arc<[Repository]>,
    ack: Ack,
    /// Repositories that hold other contents under a key of ours.
    refused: Arc<[AtomicBool]>,
    policy: SealPolicy,
    pool: BufferPool,
    idle: Arc<Mutex<Vec<Sealer>>>,
}

impl Uploader {
    /// An uploader for one repository that keeps at most `buffers` idle payload buffers.
    #[must_use]
    pub fn new(repository: Repository, policy: SealPolicy, buffers: usize) -> Self {
        Self::mirrored(vec![repository], Ack::All, policy, buffers)
    }

    /// An uploader for several, at least one; `ack` says how many must have something before it counts as stored.
    ///
    /// # Panics
    /// Without a repository.
    #[must_use]
    pub fn mirrored(
        repositories: Vec<Repository>,
        ack: Ack,
        policy: SealPolicy,
        buffers: usize,
    ) -> Self {
        assert!(!repositories.is_empty(), "a checked configuration has one");
        let refused = repositories.iter().map(|_| AtomicBool::new(false));
        Self {
            refused: refused.collect(),
            repositories: repositories.into(),
            ack,
            policy,
            pool: BufferPool::new(buffers),
            idle: Arc::default(),
        }
    }

    /// The first place where it stores.
    #[must_use]
    pub fn repository(&self) -> &Repository {
        &self.repositories[0]
    }

    /// Everywhere it stores, in the configuration's order; at least one.
    #[must_use]
    pub fn repositories(&self) -> &[Repository] {
        &self.repositories
    }

    /// When something counts as stored.
    #[must_use]
    pub fn ack(&self) -> Ack {
        self.ack
    }

    /// Names of the repositories that have shown other contents under a key of ours, since the process began.
    #[must_use]
    pub fn refused(&self) -> Vec<&str> {
        let all = self.repositories.iter().enumerate();
        let refused = all.filter(|(number, _)| self.is_refused(*number));
        refused.map(|(_, repository)| repository.name()).collect()
    }

    /// Whether the repository of this number has shown other contents under a key of ours, since the process began.
    pub(crate) fn is_refused(&self, repository: usize) -> bool {
        self.refused[repository].load(Ordering::Relaxed)
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

    /// Stores a sealed object by the policy. A repository that takes longer than the others is waited for a while, and then left to whoever fills
    /// up what is missing; with the policy not met, at least one has it.
    ///
    /// # Errors
    /// As [`Uploader::put_to`], where so many refuse it that the policy cannot be met any more.
    pub async fn put(&self, sealed: &Sealed) -> Result<Stored> {
        self.everywhere(|number| self.put_to(number, sealed)).await
    }

    /// Stores a document as [`Uploader::put`] does. One that is there already, in whatever words, is success: the key says what it is about.
    ///
    /// # Errors
    /// As [`Uploader::put`].
    pub async fn put_json<T: serde::Serialize + Sync>(
        &self,
        key: &ObjectKey,
        document: &T,
    ) -> Result<Stored> {
        let store = |repository: Repository| async move {
            let stored = repository.put_json(key, document).await;
            stored.or_else(|error| match error.class() {
                ErrorClass::Conflict => Ok(Stored::Already),
                _ => Err(error),
            })
        };
        self.everywhere(|number| self.with_patience(number, key, store))
            .await
    }

    /// In every repository that does not hold other contents; those that are late are said, and filled up later.
    async fn everywhere<F: Future<Output = Result<Stored>>>(
        &self,
        store: impl Fn(usize) -> F,
    ) -> Result<Stored> {
        let all = self.repositories.len();
        let members = (0..all).filter(|number| !self.is_refused(*number));
        let waits = Waits {
            needed: NEEDED_GRACE,
            stragglers: STRAGGLER_GRACE,
        };
        let stored = everywhere(members, self.ack.needed(all), waits, store).await?;
        for number in (0..all).filter(|number| !stored.contains_key(number)) {
            let repository = self.repositories[number].name();
            tracing::warn!(
                repository,
                "an object is not stored there yet, and will be copied later"
            );
        }
        let is_new = stored.values().any(|stored| *stored == Stored::New);
        Ok(if is_new { Stored::New } else { Stored::Already })
    }

    /// Whether this history file of a timeline is another one than what is stored, and nowhere what is stored.
    ///
    /// # Errors
    /// As [`Uploader::put`].
    pub(crate) async fn has_other_history(
        &self,
        cluster: ClusterId,
        timeline: TimelineId,
        content: &[u8],
    ) -> Result<bool> {
        let all = self.repositories.len();
        let members = (0..all).filter(|number| !self.is_refused(*number));
        let waits = Waits {
            needed: NEEDED_GRACE,
            stragglers: STRAGGLER_GRACE,
        };
        let ask = |number: usize| async move {
            let repository: &Repository = &self.repositories[number];
            let stored = compare_history(repository, cluster, timeline, content).await;
            // One that does not answer says so again when it is written to.
            Ok(stored.unwrap_or_else(|error| {
                tracing::debug!(
                    error = error_text(&error),
                    "a history file was not compared"
                );
                StoredHistory::Absent
            }))
        };
        let said = everywhere(members, self.ack.needed(all), waits, ask).await?;
        let has = |wanted: StoredHistory| said.values().any(|stored| *stored == wanted);
        Ok(has(StoredHistory::Another) && !has(StoredHistory::Same))
    }

    /// Passes over a repository's refusal if the others can still meet the policy.
    ///
    /// # Errors
    /// The error that was passed in: they cannot.
    pub(crate) fn can_go_on(&self, error: Error) -> Result<()> {
        match error.class() {
            ErrorClass::Conflict | ErrorClass::Corrupt if self.require_enough().is_ok() => Ok(()),
            _ => Err(error),
        }
    }

    /// Whether the policy can still be met.
    ///
    /// # Errors
    /// `Conflict`: too many repositories hold other contents than ours.
    pub(crate) fn require_enough(&self) -> Result<()> {
        let all = self.repositories.len();
        let left = (0..all).filter(|number| !self.is_refused(*number)).count();
        match self.ack.is_met(left, all) {
            true => Ok(()),
            false => Err(Error::TooFewRepositories {
                left,
                needed: self.ack.needed(all),
            }),
        }
    }

    /// Stores a sealed object in the repository of this number; durable when this returns. Waits out an unavailable store and refused
    /// credentials.
    ///
    /// # Errors
    /// `Conflict`, `Corrupt`: the repository holds something else there, and is refused from now on. `Bug`.
    pub async fn put_to(&self, number: usize, sealed: &Sealed) -> Result<Stored> {
        let store = |repository: Repository| async move { repository.put(sealed).await };
        self.with_patience(number, &sealed.key, store).await
    }

    /// As [`Uploader::put_to`], of whatever `store` stores under `key`.
    pub(crate) async fn with_patience<F: Future<Output = repository::Result<Stored>>>(
        &self,
        number: usize,
        key: &ObjectKey,
        store: impl Fn(Repository) -> F,
    ) -> Result<Stored> {
        let repository = &self.repositories[number];
        let (begun, mut wait) = (Instant::now(), FIRST_WAIT);
        loop {
            let error = match store(repository.clone()).await {
                Ok(stored) => return Ok(stored),
                Err(error) => error,
            };
            if matches!(error.class(), ErrorClass::Conflict | ErrorClass::Corrupt) {
                self.refuse(number, &error);
            }
            if !matches!(error.class(), ErrorClass::Retry | ErrorClass::Config) {
                return Err(error.into());
            }
            tracing::warn!(
                object = %key,
                repository = repository.name(),
                waiting_seconds = begun.elapsed().as_secs(),
                error = error_text(&error),
                "not stored yet, trying again"
            );
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    /// The repository of this number holds other contents than ours: it is left as it is, for a person to look at.
    pub(crate) fn refuse(&self, number: usize, error: &dyn std::error::Error) {
        self.refused[number].store(true, Ordering::Relaxed);
        let repository = &self.repositories[number];
        tracing::error!(
            repository = repository.name(),
            url = repository.url(),
            error = error_text(error),
            "CONFLICT: this repository holds other contents than ours; nothing is overwritten, and nothing more is stored there"
        );
    }
}

/// Whether a repository is there and knows the cluster: nothing is written into anything else.
///
/// # Errors
/// `UnknownCluster`, `WrongServer`; from the store.
pub(crate) async fn require_known(
    repository: &Repository,
    cluster: &ClusterDocument,
) -> Result<()> {
    let known = match repository.fetch_identity().await? {
        Some(_) => repository.fetch_cluster(cluster.id()).await?,
        None => None,
    };
    match known {
        None => Err(Error::UnknownCluster {
            cluster: cluster.id().to_string(),
            repository: repository.url().to_owned(),
        }),
        Some(known) => match known.difference(cluster) {
            None => Ok(()),
            Some(what) => Err(Error::WrongServer {
                what,
                expected: format!("that of {}", repository.url()),
                found: "another one".to_owned(),
            }),
        },
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
