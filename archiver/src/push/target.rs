//! Where `archive-push` stores: all repositories that know the cluster, at once, until the `ack` policy is met.
//!
//! Owns who is waited for, and that no repository gets WAL of a timeline whose history it lacks. Does not own what a file must be (`push.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use repository::cluster::ClusterDocument;
use repository::key::{ClusterId, ObjectKey};
use repository::sealed::{BufferPool, Facts, OpenPolicy, Sealed, Sealer};
use repository::{ErrorClass, Repository, Stored};

use super::{PushConfig, Pushed};
use crate::everywhere::{Waits, everywhere};
use crate::upload::error_text;
use crate::{Error, Result};

/// How long repositories are waited for: where the policy needs them until the store gives up by itself, else a moment.
const WAITS: Waits = Waits {
    needed: Duration::from_secs(600),
    stragglers: Duration::from_secs(5),
};

/// The repositories that a file goes to.
pub(super) struct Target<'a> {
    config: &'a PushConfig<'a>,
    /// Their numbers; enough for the policy.
    members: BTreeSet<usize>,
}

impl<'a> Target<'a> {
    /// Those that know the cluster.
    pub(super) async fn find(
        config: &'a PushConfig<'a>,
        cluster: ClusterId,
    ) -> Result<(ClusterDocument, Self)> {
        let ask = |number: usize| {
            let repository = &config.repositories[number];
            async move {
                let known = repository.fetch_cluster(cluster).await;
                let known = known.map_err(|error| config.said(repository, error.into()))?;
                known.ok_or_else(|| {
                    let unknown = Error::UnknownCluster {
                        cluster: cluster.to_string(),
                        repository: repository.url().to_owned(),
                    };
                    config.said(repository, unknown)
                })
            }
        };
        let all = 0..config.repositories.len();
        let known = everywhere(all, config.needed(), WAITS, ask).await?;
        let members: BTreeSet<usize> = known.keys().copied().collect();
        match known.into_values().next() {
            Some(document) if members.len() >= config.needed() => {
                Ok((document, Self { config, members }))
            }
            _ => Err(too_slow()),
        }
    }

    /// What the first one says that has it.
    pub(super) async fn fetch(
        &self,
        key: &ObjectKey,
        open: &OpenPolicy,
        limit: usize,
    ) -> Result<Vec<u8>> {
        let fetch = |number: usize| {
            let repository = &self.config.repositories[number];
            async move { Ok(repository.fetch(key, open, limit).await?.1) }
        };
        let waits = Waits {
            stragglers: Duration::ZERO,
            ..WAITS
        };
        let fetched = everywhere(self.members.iter().copied(), 1, waits, fetch).await?;
        fetched.into_values().next().ok_or_else(too_slow)
    }

    /// Seals once and stores in as many as the policy asks for.
    pub(super) async fn store(&self, facts: Facts, plain: &[u8]) -> Result<Pushed> {
        let sealed = self.seal(facts, plain)?;
        let stored = self.put(&sealed, &self.members).await?;
        let config = self.config;
        let missing = (0..config.repositories.len()).filter(|number| !stored.contains_key(number));
        let missing = missing.map(|number| config.repositories[number].name().to_owned());
        let is_new = stored.values().any(|stored| *stored == Stored::New);
        Ok(Pushed {
            stored: if is_new { Stored::New } else { Stored::Already },
            stored_size: sealed.stored_size(),
            missing_in: missing.collect(),
            key: sealed.key,
            invalid: None,
        })
    }

    /// Stores what has to be there before the rest; from now on only repositories that have it get anything.
    pub(super) async fn store_first(&mut self, facts: Facts, plain: &[u8]) -> Result<()> {
        let checksum = crc32fast::hash(plain);
        // Asking is one small request where putting would be two. Whatever it does not settle, putting does.
        let ask = |number: usize| {
            let (repository, key) = (&self.config.repositories[number], &facts.key);
            async move {
                let there = repository.fetch_descriptor(key).await;
                Ok(there.is_ok_and(|there| {
                    there.plain_size == plain.len() as u64 && there.plain_crc32 == Some(checksum)
                }))
            }
        };
        let members = self.members.iter().copied();
        let there = everywhere(members, self.config.needed(), WAITS, ask).await?;
        let mut holders: BTreeSet<usize> = there
            .into_iter()
            .filter_map(|(number, same)| same.then_some(number))
            .collect();
        let rest: BTreeSet<usize> = self.members.difference(&holders).copied().collect();
        if !rest.is_empty() {
            let sealed = self.seal(facts, plain)?;
            let needed = self.config.needed().saturating_sub(holders.len());
            let putting = self.put_to(&sealed, &rest, needed);
            if needed > 0 {
                holders.extend(putting.await?.into_keys());
            } else if let Ok(Ok(stored)) = tokio::time::timeout(WAITS.stragglers, putting).await {
                holders.extend(stored.into_keys());
            }
        }
        self.members = holders;
        match self.members.len() >= self.config.needed() {
            true => Ok(()),
            false => Err(too_slow()),
        }
    }

    fn seal(&self, facts: Facts, plain: &[u8]) -> Result<Sealed> {
        let mut sealer = Sealer::new(self.config.seal.clone(), BufferPool::new(0));
        Ok(sealer.seal(facts, plain)?)
    }

    async fn put(
        &self,
        sealed: &Sealed,
        members: &BTreeSet<usize>,
    ) -> Result<BTreeMap<usize, Stored>> {
        let needed = self.config.needed();
        let stored = self.put_to(sealed, members, needed).await?;
        match stored.len() >= needed {
            true => Ok(stored),
            false => Err(too_slow()),
        }
    }

    async fn put_to(
        &self,
        sealed: &Sealed,
        members: &BTreeSet<usize>,
        needed: usize,
    ) -> Result<BTreeMap<usize, Stored>> {
        let config = self.config;
        let put = |number: usize| {
            let repository = &config.repositories[number];
            async move {
                let stored = repository.put(sealed).await;
                stored.map_err(|error| config.said(repository, error.into()))
            }
        };
        everywhere(members.iter().copied(), needed, WAITS, put).await
    }
}

impl PushConfig<'_> {
    fn needed(&self) -> usize {
        self.ack.needed(self.repositories.len())
    }

    /// One repository's failure, said where others may make up for it.
    fn said(&self, repository: &Repository, error: Error) -> Error {
        if self.repositories.len() > 1 {
            let (repository, text) = (repository.name(), error_text(&error));
            match error.class() {
                ErrorClass::Conflict => tracing::error!(
                    repository,
                    error = text,
                    "CONFLICT: this repository holds other contents; nothing is overwritten"
                ),
                _ => tracing::warn!(repository, error = text, "not stored in this repository"),
            }
        }
        error
    }
}

fn too_slow() -> Error {
    Error::Timeout {
        during: "store in as many repositories as ack asks for".into(),
        after: WAITS.needed,
    }
}
