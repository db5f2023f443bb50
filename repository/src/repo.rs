//! One repository: the domain's operations on a store.
//!
//! Owns the answer to "already exists" (never overwritten; the same contents are success, others a conflict), fetching with every
//! check. Does not own listings (`listing.rs`), requests and retries (`store.rs`) or sealing (`sealed/`).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::backup::BackupDescriptor;
use crate::cluster::{ClusterDocument, RepositoryDocument, check_version};
use crate::descriptor::Descriptor;
use crate::index::{self, RollUp};
use crate::key::{BackupLabel, BackupObject, ClusterId, ObjectKey};
use crate::sealed::{MAX_HEADER_BYTES, OpenPolicy, Sealed, described, read_descriptor};
use crate::store::{Deadlines, PutOutcome, Store};
use crate::{Error, ErrorClass, Result};

/// Largest `backup.json`, in bytes: that of some ten terabytes.
const MAX_BACKUP_DOCUMENT_BYTES: u64 = 256 << 20;
/// Largest other plain document, in bytes. The limit also sets how long a store may take to send it.
const MAX_DOCUMENT_BYTES: u64 = 1 << 20;
/// Room for what sealing adds to incompressible bytes: header, frame, tags.
const SEALING_OVERHEAD: u64 = 1 << 20;
/// How often a put starts over when the object it met is gone again.
const MAX_PUT_ROUNDS: u32 = 3;

/// A repository. Cheap to clone.
#[derive(Clone)]
pub struct Repository {
    name: Arc<str>,
    store: Store,
}

/// What a put found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// The object is new.
    New,
    /// The same contents were there already.
    Already,
}

impl Repository {
    /// A repository by its name in the configuration.
    #[must_use]
    pub fn new(name: &str, store: Store) -> Self {
        Self {
            name: name.into(),
            store,
        }
    }

    /// The same repository for a caller who can ask elsewhere: see [`Store::hurried`].
    #[must_use]
    pub(crate) fn hurried(&self, waiting: Duration, failing: Duration) -> Self {
        Self {
            name: Arc::clone(&self.name),
            store: self.store.hurried(waiting, failing),
        }
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// How long its operations may take.
    pub(crate) fn deadlines(&self) -> Deadlines {
        self.store.deadlines()
    }

    /// Its name in the configuration.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is, without secrets.
    #[must_use]
    pub fn url(&self) -> &str {
        self.store.url()
    }

    /// Stores a sealed object, durably when this returns.
    ///
    /// # Errors
    /// `Conflict`: something else stands at the key. `Retry`: the store did not answer, or what it holds could not be read: not
    /// durable. `Config`: no right to.
    pub async fn put(&self, sealed: &Sealed) -> Result<Stored> {
        let path = sealed.key.to_string();
        for _ in 0..MAX_PUT_ROUNDS {
            let body = vec![sealed.header.clone(), sealed.payload.clone()];
            match self.store.put_new(&path, body).await? {
                PutOutcome::Created => return Ok(Stored::New),
                PutOutcome::AlreadyExists => {}
            }
            // A question: our own lost reply, the same contents from elsewhere, or other contents? What speaks against it is read twice.
            let judged = match self.is_stored(&path, sealed).await {
                Err(error) if is_verdict(&error) => self.is_stored(&path, sealed).await,
                judged => judged,
            };
            match judged {
                Err(error) if error.class() == ErrorClass::NotFound => {}
                judged => return judged.map(|()| Stored::Already),
            }
        }
        Err(neither_there_nor_not(path))
    }

    /// Holds what stands at `path` against what was to be stored there.
    async fn is_stored(&self, path: &str, sealed: &Sealed) -> Result<()> {
        let head = self.store.fetch_head(path, MAX_HEADER_BYTES as u64).await?;
        if head.bytes.starts_with(&sealed.header) && head.object_size == sealed.stored_size() {
            return Ok(());
        }
        let (there, stored_size) = described(&sealed.key, &head.bytes)?;
        match there.difference(&sealed.descriptor) {
            None if stored_size != head.object_size => Err(Error::Damaged {
                key: path.to_owned(),
                what: format!(
                    "it has {} bytes of the {stored_size} that it says",
                    head.object_size
                ),
            }),
            None => Ok(()),
            Some(what) => Err(Error::AlreadyStored {
                key: path.to_owned(),
                what: what.to_owned(),
            }),
        }
    }

    /// Stores a plain document. Identical bytes are success.
    ///
    /// # Errors
    /// As [`Repository::put`].
    pub async fn put_document(&self, key: &ObjectKey, body: Bytes) -> Result<Stored> {
        let path = key.to_string();
        for _ in 0..MAX_PUT_ROUNDS {
            match self.store.put_new(&path, vec![body.clone()]).await? {
                PutOutcome::Created => return Ok(Stored::New),
                PutOutcome::AlreadyExists => {}
            }
            for is_last in [false, true] {
                match self.store.fetch(&path, document_limit(key)).await {
                    Ok(there) if there == body => return Ok(Stored::Already),
                    Ok(_) if is_last => {
                        return Err(Error::AlreadyStored {
                            key: path,
                            what: "the document's bytes".into(),
                        });
                    }
                    Ok(_) => {}
                    Err(error) if error.class() == ErrorClass::NotFound => break,
                    Err(error) => return Err(error),
                }
            }
        }
        Err(neither_there_nor_not(path))
    }

    /// Stores a document as JSON, one field a line.
    ///
    /// # Errors
    /// As [`Repository::put`].
    pub async fn put_json<T: Serialize>(&self, key: &ObjectKey, document: &T) -> Result<Stored> {
        let json = serde_json::to_vec_pretty(document).map_err(|error| Error::Unsealable {
            key: key.to_string(),
            reason: error.to_string(),
        })?;
        self.put_document(key, json.into()).await
    }

    /// Fetches a JSON document.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt`: not the document it should be; `Retry`, `Config` from the store.
    pub async fn fetch_json<T: DeserializeOwned>(&self, key: &ObjectKey) -> Result<T> {
        match self.fetch_json_once(key).await {
            Err(error) if may_be_the_way(&error) => self.fetch_json_once(key).await,
            fetched => fetched,
        }
    }

    async fn fetch_json_once<T: DeserializeOwned>(&self, key: &ObjectKey) -> Result<T> {
        let path = key.to_string();
        let bytes = self.store.fetch(&path, document_limit(key)).await?;
        serde_json::from_slice(&bytes).map_err(|error| Error::Damaged {
            key: path,
            what: format!("it cannot be read: {error}"),
        })
    }

    /// Fetches `walden.json`; `None` if no repository was ever made here.
    ///
    /// # Errors
    /// As [`Repository::fetch_json`]; `Config`: made by a later version.
    pub async fn fetch_identity(&self) -> Result<Option<RepositoryDocument>> {
        let document: Option<RepositoryDocument> =
            absent(self.fetch_json(&ObjectKey::Repository).await)?;
        if let Some(document) = &document {
            check_version("walden.json", document.format, &document.requires)?;
        }
        Ok(document)
    }

    /// Fetches `cluster.json`; `None` if the cluster is not known here.
    ///
    /// # Errors
    /// As [`Repository::fetch_json`]; `Config`: made by a later version; `Corrupt`: of another cluster.
    pub async fn fetch_cluster(&self, cluster: ClusterId) -> Result<Option<ClusterDocument>> {
        let key = ObjectKey::Cluster(cluster);
        let document: Option<ClusterDocument> = absent(self.fetch_json(&key).await)?;
        if let Some(document) = &document {
            check_version(&key.to_string(), document.format, &document.requires)?;
            if document.id() != cluster {
                return Err(Error::Misplaced {
                    key: key.to_string(),
                    found: format!("{}/cluster.json", document.id()),
                });
            }
        }
        Ok(document)
    }

    /// Fetches the descriptor of a backup.
    ///
    /// # Errors
    /// As [`Repository::fetch_json`]; `Config`: made by a later version; `Corrupt`: of another backup or cluster.
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
        let document: BackupDescriptor = self.fetch_json(&key).await?;
        check_version(&key.to_string(), document.format, &document.requires)?;
        if document.system_identifier != cluster.system_identifier
            || document.label != label.as_str()
        {
            let found = format!(
                "backup {} of the system identifier {}",
                document.label, document.system_identifier
            );
            return Err(Error::Misplaced {
                key: key.to_string(),
                found,
            });
        }
        Ok(document)
    }

    /// Lists the clusters that have a `cluster.json`, by number.
    ///
    /// # Errors
    /// `Retry`, `Config` from the store.
    pub async fn list_clusters(&self) -> Result<Vec<ClusterId>> {
        let folders = self.store.list_folders("").await?;
        let mut clusters: Vec<ClusterId> = Vec::new();
        for cluster in folders
            .iter()
            .filter_map(|folder| folder.trim_end_matches('/').parse().ok())
        {
            if self.fetch_cluster(cluster).await?.is_some() {
                clusters.push(cluster);
            }
        }
        clusters.sort_unstable();
        Ok(clusters)
    }

    /// Stores a roll-up.
    ///
    /// # Errors
    /// `Retry`, `Config` from the store: nothing is lost by it.
    pub async fn put_roll_up(&self, roll_up: &RollUp) -> Result<Stored> {
        let (key, bytes) = roll_up.encode()?;
        self.put_roll_up_bytes(&key, bytes).await
    }

    /// As [`Repository::put_roll_up`], of bytes that [`RollUp::parse`] has read.
    pub(crate) async fn put_roll_up_bytes(&self, key: &ObjectKey, bytes: Bytes) -> Result<Stored> {
        // The key holds the checksum: what is there is the same, or is refused when it is read.
        match self.store.put_new(&key.to_string(), vec![bytes]).await? {
            PutOutcome::Created => Ok(Stored::New),
            PutOutcome::AlreadyExists => Ok(Stored::Already),
        }
    }

    /// Fetches a roll-up.
    ///
    /// # Errors
    /// As [`RollUp::parse`]; `NotFound`; `Retry`, `Config` from the store. It is a cache: read the segments' own headers instead.
    pub async fn fetch_roll_up(&self, key: &ObjectKey) -> Result<RollUp> {
        let limit = index::MAX_STORED_BYTES as u64;
        let bytes = self.store.fetch(&key.to_string(), limit).await?;
        RollUp::parse(key, &bytes)
    }

    /// Fetches an object as it is stored, of at most `limit` plain bytes. Nothing is checked.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt`: larger than such an object can be; `Retry`, `Config`.
    pub async fn fetch_stored(&self, key: &ObjectKey, limit: usize) -> Result<Bytes> {
        self.store
            .fetch(&key.to_string(), limit as u64 + SEALING_OVERHEAD)
            .await
    }

    /// Reads what an object says of itself: one small request, no key.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt`: no descriptor, damaged, or of another key; `Retry`, `Config`.
    pub async fn fetch_descriptor(&self, key: &ObjectKey) -> Result<Descriptor> {
        match self.fetch_descriptor_once(key).await {
            Err(error) if may_be_the_way(&error) => self.fetch_descriptor_once(key).await,
            fetched => fetched,
        }
    }

    async fn fetch_descriptor_once(&self, key: &ObjectKey) -> Result<Descriptor> {
        let head = self
            .store
            .fetch_head(&key.to_string(), MAX_HEADER_BYTES as u64)
            .await?;
        read_descriptor(key, &head.bytes)
    }

    /// Fetches and opens an object of at most `limit` plain bytes into `plain`. Opening runs on a thread for such work.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt`; `Key`; `Retry`, `Config`.
    pub async fn fetch(
        &self,
        key: &ObjectKey,
        policy: &OpenPolicy,
        limit: usize,
    ) -> Result<(Descriptor, Vec<u8>)> {
        match self.fetch_once(key, policy, limit).await {
            Err(error) if may_be_the_way(&error) => self.fetch_once(key, policy, limit).await,
            fetched => fetched,
        }
    }

    async fn fetch_once(
        &self,
        key: &ObjectKey,
        policy: &OpenPolicy,
        limit: usize,
    ) -> Result<(Descriptor, Vec<u8>)> {
        let object = self.fetch_stored(key, limit).await?;
        let (key, policy) = (key.clone(), policy.clone());
        let open = move || {
            let mut plain = Vec::new();
            let descriptor = policy.open(&key, object, limit, &mut plain)?;
            Ok((descriptor, plain))
        };
        match tokio::task::spawn_blocking(open).await {
            Ok(opened) => opened,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }
}

/// Whether to read once more: what came damaged may have been damaged, or cut off, on the way. What is damaged where it is stays so.
fn may_be_the_way(error: &Error) -> bool {
    let damaged = error.class() == ErrorClass::Corrupt;
    if damaged {
        tracing::debug!(%error, "read what is damaged, reading it again");
    }
    damaged
}

/// The same of what stands where something was to be stored: other contents may be damage on the way, too.
fn is_verdict(error: &Error) -> bool {
    error.class() == ErrorClass::Conflict || may_be_the_way(error)
}

fn neither_there_nor_not(location: String) -> Error {
    Error::Unavailable {
        location,
        attempts: MAX_PUT_ROUNDS,
        elapsed: Duration::ZERO,
        source: crate::error::Cause::new("the object exists for a put and does not for a get"),
    }
}

fn document_limit(key: &ObjectKey) -> u64 {
    match key {
        ObjectKey::Backup {
            object: BackupObject::Descriptor,
            ..
        } => MAX_BACKUP_DOCUMENT_BYTES,
        _ => MAX_DOCUMENT_BYTES,
    }
}

fn absent<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.class() == ErrorClass::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreOptions;
    use crate::testing;
    use wal_format::TimelineId;

    #[tokio::test]
    async fn an_object_that_was_cut_off_is_not_taken_for_ours() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("file://{}", folder.path().display());
        let store = Store::open(&url, StoreOptions::default()).unwrap();
        let repository = Repository::new("test", store);
        let key = ObjectKey::History {
            cluster: "7412".parse().unwrap(),
            timeline: TimelineId::new(2).unwrap(),
        };
        let history = b"1\t0/3000000\tno recovery target\n";
        let sealed = testing::sealed(key.clone(), None, history);
        assert_eq!(repository.put(&sealed).await.unwrap(), Stored::New);
        assert_eq!(repository.put(&sealed).await.unwrap(), Stored::Already);

        let path = folder.path().join(key.to_string());
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        let refused = repository.put(&sealed).await.unwrap_err();
        assert_eq!(refused.class(), ErrorClass::Corrupt, "{refused}");
        assert!(std::fs::read(&path).unwrap().len() < bytes.len());
    }

    /// Nothing else tells them apart, so that its checksum is not left out even where descriptors say as little as they can.
    #[tokio::test]
    async fn two_histories_of_one_length_are_not_one() {
        let repository = Repository::new("test", Store::in_memory());
        let policy = crate::sealed::SealPolicy {
            minimal_descriptor: true,
            ..testing::UNENCRYPTED
        };
        let mut sealer = crate::sealed::Sealer::new(policy, crate::sealed::BufferPool::new(1));
        let mut seal = |plain: &[u8]| {
            let facts = crate::sealed::Facts {
                key: "7412/wal/00000002.history".parse().unwrap(),
                pg_version: 18,
                wal: None,
            };
            sealer.seal(facts, plain).unwrap()
        };
        let (west, east) = (seal(b"1\t0/3000500\tx\n"), seal(b"1\t0/3000600\tx\n"));
        assert_eq!(repository.put(&west).await.unwrap(), Stored::New);
        assert_eq!(repository.put(&west).await.unwrap(), Stored::Already);
        let refused = repository.put(&east).await.unwrap_err();
        assert_eq!(refused.class(), ErrorClass::Conflict, "{refused}");
    }

    /// A read that was damaged on its way is no reason to call a repository wrong.
    #[tokio::test]
    async fn what_is_there_already_is_read_twice_before_it_is_called_another() {
        let store = Store::in_memory();
        let key: ObjectKey = "7412/wal/00000002.history".parse().unwrap();
        let sealed = testing::sealed(key.clone(), None, b"1\t0/3000000\tx\n");
        let repository = Repository::new("test", store.clone());
        assert_eq!(repository.put(&sealed).await.unwrap(), Stored::New);
        let (mut misjudged, mut flipped) = (0, 0);
        for seed in 0..200 {
            let plan = testing::FaultPlan {
                seed,
                flip: 300,
                ..testing::FaultPlan::default()
            };
            let asked = plan.requests.clone();
            let faulty = Store::faulty(&store, plan, Deadlines::default());
            let put = Repository::new("test", faulty).put(&sealed).await;
            misjudged += u32::from(put.is_err());
            flipped += u32::from(asked.of("fetch") > 1);
        }
        assert!(flipped > 40, "{flipped} were damaged once");
        assert!(misjudged < flipped / 2, "{misjudged} of {flipped}");
    }
}
