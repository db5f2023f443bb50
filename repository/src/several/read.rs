//! What is read through several repositories: objects, documents, listings. Owns what absence means for each, and the union of listings.
//! Who is asked next is `several.rs`'s.

use std::time::Duration;

use futures_util::future::join_all;
use serde::de::DeserializeOwned;

use super::{Absence, FAILING, Repositories, Union};
use crate::backup::BackupDescriptor;
use crate::catalog::Catalog;
use crate::cluster::{ClusterDocument, RepositoryDocument};
use crate::descriptor::Descriptor;
use crate::index::RollUp;
use crate::key::{BackupLabel, BackupObject, ClusterId, ObjectKey, all_wal_prefix};
use crate::sealed::OpenPolicy;
use crate::{Error, ErrorClass, Repository, Result};

/// How long a page of a listing is waited for while others have answered, and how long one that fails at once is tried again: more is
/// missed without a listing than without an object.
const LISTING: (Duration, Duration) = (Duration::from_secs(10), FAILING);

impl Repositories {
    /// Fetches and opens an object, as [`Repository::fetch`].
    ///
    /// # Errors
    /// As [`Repository::fetch`] and [`Repositories::first`].
    pub async fn fetch(
        &self,
        key: &ObjectKey,
        policy: &OpenPolicy,
        limit: usize,
    ) -> Result<(Descriptor, Vec<u8>)> {
        let ask = |one: Repository| async move { found(one.fetch(key, policy, limit).await) };
        let name = key.to_string();
        let fetched = self.first_given(&name, limit as u64, Absence::Proven, ask);
        fetched.await?.ok_or_else(|| self.lacks(key))
    }

    /// Reads what an object says of itself, as [`Repository::fetch_descriptor`]. `None`: absent.
    ///
    /// # Errors
    /// As [`Repository::fetch_descriptor`] and [`Repositories::first`].
    pub async fn find_descriptor(
        &self,
        key: &ObjectKey,
        absence: Absence,
    ) -> Result<Option<Descriptor>> {
        let ask = |one: Repository| async move { found(one.fetch_descriptor(key).await) };
        self.first_given(&key.to_string(), 0, absence, ask).await
    }

    /// The same of an object that must be there.
    ///
    /// # Errors
    /// `NotFound`; others as [`Repositories::find_descriptor`].
    pub async fn fetch_descriptor(&self, key: &ObjectKey) -> Result<Descriptor> {
        let found = self.find_descriptor(key, Absence::Proven).await?;
        found.ok_or_else(|| self.lacks(key))
    }

    /// Fetches a JSON document, as [`Repository::fetch_json`].
    ///
    /// # Errors
    /// As [`Repository::fetch_json`] and [`Repositories::first`].
    pub async fn fetch_json<T: DeserializeOwned>(&self, key: &ObjectKey) -> Result<T> {
        let ask = |one: Repository| async move { found(one.fetch_json(key).await) };
        let name = key.to_string();
        let fetched = self.first_given(&name, 0, Absence::Proven, ask);
        fetched.await?.ok_or_else(|| self.lacks(key))
    }

    /// Fetches the descriptor of a backup, as [`Repository::fetch_backup`].
    ///
    /// # Errors
    /// As [`Repository::fetch_backup`] and [`Repositories::first`].
    pub async fn fetch_backup(
        &self,
        cluster: ClusterId,
        label: &BackupLabel,
    ) -> Result<BackupDescriptor> {
        let key = ObjectKey::Backup {
            cluster,
            label: label.clone(),
            object: BackupObject::Descriptor,
        };
        let ask = |one: Repository| async move { found(one.fetch_backup(cluster, label).await) };
        let name = key.to_string();
        let fetched = self.first_given(&name, 0, Absence::Proven, ask);
        fetched.await?.ok_or_else(|| self.lacks(&key))
    }

    /// Fetches a roll-up, as [`Repository::fetch_roll_up`]: a cache, so nobody is waited for long.
    ///
    /// # Errors
    /// As [`Repository::fetch_roll_up`] and [`Repositories::first`].
    pub async fn fetch_roll_up(&self, key: &ObjectKey) -> Result<RollUp> {
        let ask = |one: Repository| async move { found(one.fetch_roll_up(key).await) };
        let name = key.to_string();
        let fetched = self.first_given(&name, 0, Absence::Likely, ask);
        fetched.await?.ok_or_else(|| self.lacks(key))
    }

    /// Fetches `cluster.json`; `None` if none of them knows the cluster.
    ///
    /// # Errors
    /// As [`Repository::fetch_cluster`] and [`Repositories::first`].
    pub async fn fetch_cluster(&self, cluster: ClusterId) -> Result<Option<ClusterDocument>> {
        let ask = |one: Repository| async move { one.fetch_cluster(cluster).await };
        let key = ObjectKey::Cluster(cluster).to_string();
        self.first_given(&key, 0, Absence::Proven, ask).await
    }

    /// Fetches `walden.json` of the first that has one; `None` if no repository was ever made in any of their places.
    ///
    /// # Errors
    /// As [`Repository::fetch_identity`] and [`Repositories::first`].
    pub async fn fetch_identity(&self) -> Result<Option<RepositoryDocument>> {
        let ask = |one: Repository| async move { one.fetch_identity().await };
        let key = ObjectKey::Repository.to_string();
        self.first_given(&key, 0, Absence::Proven, ask).await
    }

    /// The clusters that at least one of those knows which answer, by number.
    ///
    /// # Errors
    /// None of them answers.
    pub async fn list_clusters(&self) -> Result<Vec<ClusterId>> {
        let list = |one: Repository| async move { one.list_clusters().await };
        let (lists, _) = self.ask_all("", list).await?;
        let mut clusters: Vec<ClusterId> = lists.into_iter().flatten().collect();
        clusters.sort_unstable();
        clusters.dedup();
        Ok(clusters)
    }

    /// Lists everything of a cluster that they hold together. One that does not answer is waited for some seconds while another has.
    ///
    /// # Errors
    /// None of them answers.
    pub async fn list(&self, cluster: ClusterId) -> Result<Union> {
        let list = |one: Repository| async move { one.list(cluster).await };
        self.union(&cluster.to_string(), list).await
    }

    /// Lists the WAL that they hold together, as [`Repository::list_wal`] and [`Repositories::list`].
    ///
    /// # Errors
    /// None of them answers.
    pub async fn list_wal(&self, cluster: ClusterId) -> Result<Union> {
        let list = |one: Repository| async move { one.list_wal(cluster).await };
        self.union(&all_wal_prefix(cluster), list).await
    }

    /// How long an operation may take that one of them does not answer.
    #[must_use]
    pub fn patience(&self) -> Duration {
        let totals = self.members().iter().map(|member| member.deadlines().total);
        totals.max().unwrap_or_default()
    }

    async fn union<Asked: Future<Output = Result<Catalog>>>(
        &self,
        what: &str,
        list: impl Fn(Repository) -> Asked,
    ) -> Result<Union> {
        let (catalogs, unanswered) = self.ask_all(what, list).await?;
        let mut catalog = Catalog::default();
        for other in catalogs {
            catalog.merge(other);
        }
        Ok(Union {
            catalog,
            unanswered,
        })
    }

    /// Asks all of them at once: the answers in their order, and those who gave none.
    async fn ask_all<T, Asked: Future<Output = Result<T>>>(
        &self,
        what: &str,
        ask: impl Fn(Repository) -> Asked,
    ) -> Result<(Vec<T>, Vec<(String, Error)>)> {
        if let [only] = self.members() {
            return Ok((vec![ask(only.clone()).await?], Vec::new()));
        }
        let mut is_patient = false;
        loop {
            let asks = self.members().iter().map(|member| match is_patient {
                false => ask(member.hurried(LISTING.0, LISTING.1)),
                true => ask(member.clone()),
            });
            let (mut answers, mut failures) = (Vec::new(), Vec::new());
            for (index, answer) in join_all(asks).await.into_iter().enumerate() {
                match answer {
                    Ok(answer) => {
                        self.answered(index);
                        answers.push(answer);
                    }
                    Err(error) => {
                        self.avoid(index, &error);
                        failures.push((index, error));
                    }
                }
            }
            if !answers.is_empty() {
                let named = failures
                    .into_iter()
                    .map(|(index, error)| (self.name(index), error));
                return Ok((answers, named.collect()));
            }
            if is_patient {
                return Err(self.nobody(what, failures, &[]));
            }
            is_patient = true;
        }
    }
}

/// Absence as a value.
pub(super) fn found<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.class() == ErrorClass::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
