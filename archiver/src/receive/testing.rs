//! Repositories in memory for the tests of this folder.

use repository::cluster::{ClusterDocument, RepositoryDocument};
use repository::descriptor::WalDescriptor;
use repository::key::ObjectKey;
use repository::mirror::Ack;
use repository::sealed::{BufferPool, Compression, Facts, SealPolicy, Sealer};
use repository::{Repository, Store};

use crate::upload::Uploader;

const POLICY: SealPolicy = SealPolicy {
    recipients: None,
    compression: Compression::Lz4,
    minimal_descriptor: false,
};

/// The cluster 7412, with segments of 1 MiB.
pub(super) fn cluster() -> ClusterDocument {
    ClusterDocument {
        format: 1,
        requires: Vec::new(),
        system_identifier: 7412,
        incarnation: 0,
        parent: None,
        pg_version: 18,
        block_size: 8192,
        wal_segment_size: 1 << 20,
        created: jiff::Timestamp::UNIX_EPOCH,
    }
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
    Uploader::mirrored(repositories, Ack::All, POLICY, 1)
}

/// A sealed object's bytes.
pub(super) fn sealed(path: &str, wal: Option<WalDescriptor>, plain: &[u8]) -> Vec<u8> {
    let facts = Facts {
        key: path.parse().unwrap(),
        pg_version: 18,
        wal,
    };
    let sealed = Sealer::new(POLICY, BufferPool::new(1)).seal(facts, plain);
    let sealed = sealed.unwrap();
    [&sealed.header[..], &sealed.payload[..]].concat()
}
