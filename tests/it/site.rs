//! A server, a repository that knows it, and a configuration for both, made without `walden init`, so that a test may make them not fit
//! each other; and the repository as Walden's own library sees it. Does not own the promises: those are the tests.

use crate::support::object_store::Bucket;
use crate::support::postgres::Server;
use crate::support::process::Running;
use crate::support::walden::Walden;
use repository::catalog::Catalog;
use repository::cluster::{ClusterDocument, RepositoryDocument};
use repository::identity::{ExposeSecret, Identities, SecretReference, generate_identity};
use repository::key::{ClusterId, ObjectKey};
use repository::sealed::OpenPolicy;
use repository::{Repository, Store, StoreOptions};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use wal_format::SegmentSize;

/// Where a repository is to be.
pub(crate) enum Place<'a> {
    /// In a folder beside the server's data directory.
    Folder,
    /// In a bucket.
    Bucket(&'a Bucket),
    /// In a bucket, which `walden` reaches at this endpoint.
    BucketBehind(&'a Bucket, String),
}

/// What of the encryption the configuration names.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keys {
    /// Nothing is encrypted.
    None,
    /// What it takes to encrypt.
    Recipient,
    /// What it takes to decrypt, too.
    Identity,
}

/// How a [`Site`] is to be.
pub(crate) struct Plan<'a> {
    pub(crate) place: Place<'a>,
    pub(crate) keys: Keys,
    pub(crate) rpo: &'a str,
    /// What the repository believes; the server's own unless said.
    pub(crate) system_identifier: Option<u64>,
}

impl Default for Plan<'_> {
    fn default() -> Self {
        Self {
            place: Place::Folder,
            keys: Keys::None,
            rpo: "200ms",
            system_identifier: None,
        }
    }
}

/// A repository that knows a server, and a configuration for both.
pub(crate) struct Site {
    pub(crate) repository: Repository,
    pub(crate) walden: Walden,
    /// The repository's folder, if it is in one.
    pub(crate) root: PathBuf,
    pub(crate) url: String,
    pub(crate) size: SegmentSize,
    pub(crate) cluster: ClusterDocument,
    /// Opens what is stored.
    pub(crate) open: OpenPolicy,
}

impl Site {
    pub(crate) fn new(server: &Server, plan: Plan<'_>) -> Self {
        let folder = server.scratch().join("walden");
        let root = folder.join("re po\"sitory");
        fs::create_dir_all(&root).expect("make the repository's folder");
        let mut open = OpenPolicy::default();
        let mut encryption = "encryption = \"none\"".to_owned();
        if plan.keys != Keys::None {
            let identity = generate_identity(jiff::Timestamp::UNIX_EPOCH);
            let file = folder.join("identity");
            fs::write(&file, identity.file.expose_secret()).expect("write the identity");
            let reference = SecretReference::File(file.display().to_string());
            open.identities = wait(Identities::load(&[reference])).expect("load the identity");
            encryption = format!("[encryption]\nrecipients = [\"{}\"]", identity.recipient);
            if plan.keys == Keys::Identity {
                encryption += &format!("\nidentity = \"file:{}\"", file.display());
            }
        }
        let mut walden = Walden::in_directory(&folder);
        let (url, options) = match &plan.place {
            Place::Folder => (
                format!("file://{}", root.display()),
                StoreOptions::default(),
            ),
            Place::Bucket(bucket) | Place::BucketBehind(bucket, _) => {
                walden = walden.envs(bucket.environment());
                (bucket.url("pre fix"), options_for(bucket))
            }
        };
        if let Place::BucketBehind(_, endpoint) = plan.place {
            walden = walden.env("AWS_ENDPOINT_URL", endpoint);
        }
        // `encryption = "none"` has to stand before any table.
        let (conninfo, rpo) = (server.conninfo(), plan.rpo);
        let text = format!(
            "{encryption}\n[postgres]\nconninfo = \"{conninfo}\"\n[archive]\nrpo = \"{rpo}\"\n[[repository]]\nurl = '{url}'\n"
        );
        fs::write(folder.join("walden.toml"), text).expect("write the configuration");

        let store = Store::open(&url, options).expect("open the store");
        let repository = Repository::new("primary", store);
        let number = |field| -> u64 { server.control_data(field).parse().expect("a number") };
        let segment = u32::try_from(number("Bytes per WAL segment")).expect("a segment's size");
        let size = SegmentSize::new(segment).expect("a segment's size");
        let identifier = plan.system_identifier;
        let identifier = identifier.unwrap_or_else(|| number("Database system identifier"));
        let cluster = cluster_document(server, identifier, size);
        let identity = RepositoryDocument {
            format: 1,
            requires: Vec::new(),
            repository_id: "0".repeat(32),
            created: jiff::Timestamp::UNIX_EPOCH,
        };
        wait(async {
            let put = repository.put_json(&ObjectKey::Repository, &identity).await;
            put.expect("store walden.json");
            let key = ObjectKey::Cluster(cluster.id());
            let put = repository.put_json(&key, &cluster).await;
            put.expect("store cluster.json");
        });
        Self {
            repository,
            walden,
            root,
            url,
            size,
            cluster,
            open,
        }
    }

    pub(crate) fn cluster(&self) -> ClusterId {
        self.cluster.id()
    }

    /// `walden run`, once the server streams to it.
    #[track_caller]
    pub(crate) fn archive(&self, server: &Server) -> Running {
        self.walden.receive(server, ["run"])
    }

    pub(crate) fn catalog(&self) -> Catalog {
        wait(self.repository.list(self.cluster())).expect("list")
    }

    /// The same with the tail chunks that sealed segments cover.
    pub(crate) fn catalog_with_covered(&self) -> Catalog {
        let cluster = self.cluster();
        let all = cluster.to_string();
        wait(self.repository.list_below(cluster, &all)).expect("list all")
    }
}

/// What a repository has to know of a server, for which this stands as its system identifier.
pub(crate) fn cluster_document(
    server: &Server,
    system_identifier: u64,
    size: SegmentSize,
) -> ClusterDocument {
    ClusterDocument {
        format: 1,
        requires: Vec::new(),
        system_identifier,
        incarnation: 0,
        parent: None,
        pg_version: u16::try_from(server.major()).expect("a small number"),
        block_size: 8192,
        wal_segment_size: size.bytes(),
        created: jiff::Timestamp::UNIX_EPOCH,
    }
}

fn options_for(bucket: &Bucket) -> StoreOptions {
    let environment: BTreeMap<String, String> = bucket.environment().into_iter().collect();
    let value = |name: &str| environment.get(name).cloned();
    StoreOptions {
        endpoint: value("AWS_ENDPOINT_URL"),
        region: value("AWS_REGION"),
        access_key_id: value("AWS_ACCESS_KEY_ID"),
        secret_access_key: value("AWS_SECRET_ACCESS_KEY"),
        allow_http: Some(true),
        ..StoreOptions::default()
    }
}

/// What a library call gives, from a test that is no async function.
pub(crate) fn wait<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    runtime.expect("start a runtime").block_on(future)
}
