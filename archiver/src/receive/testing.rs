//! Repositories in memory for the tests of this folder.

use repository::cluster::{ClusterDocument, RepositoryDocument};
use repository::descriptor::WalDescriptor;
use repository::key::ObjectKey;
use repository::mirror::Ack;
use repository::testing::{self, UNENCRYPTED, cluster_document};
use repository::{Repository, Store};

use crate::upload::Uploader;

/// The cluster that the repositories know.
pub(super) fn cluster() -> ClusterDocument {
    cluster_document(7412)
}

/// Repositories that know the cluster, in these stores.
pub(super) async fn uploader(stores: &[Store]) -> Uploader {
    let mut repositories = Vec::new();
    for (number, store) in stores.iter().enumerate() {
        let repository = Repository::new(&number.to_string(), store.clone());
        let identity = RepositoryDocument {
            format: 1,
            requires: Vec::new(),
            repository_id: format!("{number:032x}"),
            created: jiff::Timestamp::UNIX_EPOCH,
        };
        let key = ObjectKey::Repository;
        repository.put_json(&key, &identity).await.unwrap();
        let key = ObjectKey::Cluster(cluster().id());
        repository.put_json(&key, &cluster()).await.unwrap();
        repositories.push(repository);
    }
    uploader_of(repositories)
}

/// The same for any repositories.
pub(super) fn uploader_of(repositories: Vec<Repository>) -> Uploader {
    Uploader::mirrored(repositories, Ack::All, UNENCRYPTED, 1)
}

/// A sealed object's bytes.
pub(super) fn sealed(path: &str, wal: Option<WalDescriptor>, plain: &[u8]) -> Vec<u8> {
    let sealed = testing::sealed(path.parse().unwrap(), wal, plain);
    [&sealed.header[..], &sealed.payload[..]].concat()
}
