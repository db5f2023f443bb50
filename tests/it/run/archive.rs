//! A server, a repository that knows it, and `walden run` between them; and what the repository holds, compared byte for
//! byte with the server's own `pg_wal`. Does not own the promises: those are the tests in `run.rs`.

use crate::support::object_store::Bucket;
use crate::support::postgres::Server;
use crate::support::process::Running;
use crate::support::wait_until;
use crate::support::walden::Walden;
use repository::catalog::{Catalog, GapRange, TailChunk};
use repository::cluster::{ClusterDocument, RepositoryDocument};
use repository::descriptor::WalDescriptor;
use repository::identity::{ExposeSecret, Identities, SecretReference, generate_identity};
use repository::key::{ClusterId, ObjectKey};
use repository::sealed::OpenPolicy;
use repository::wal::ChainLink;
use repository::{Repository, Store, StoreOptions};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use wal_format::{Lsn, SegmentName, SegmentSize, TimelineId};

pub(super) const DEADLINE: Duration = Duration::from_secs(60);
pub(super) const FIRST: TimelineId = TimelineId::FIRST;

/// Where a repository is to be.
pub(super) enum Place<'a> {
    /// In a folder beside the server's data directory.
    Folder,
    /// In a bucket, which `walden` reaches at this endpoint.
    Bucket(&'a Bucket, String),
}

/// How a [`Site`] is to be.
pub(super) struct Plan<'a> {
    pub(super) place: Place<'a>,
    pub(super) encrypted: bool,
    pub(super) rpo: &'a str,
    /// What the repository believes; the server's own unless said.
    pub(super) system_identifier: Option<u64>,
}

impl Default for Plan<'_> {
    fn default() -> Self {
        Self {
            place: Place::Folder,
            encrypted: false,
            rpo: "200ms",
            system_identifier: None,
        }
    }
}

/// A repository that knows a server, and a configuration for both.
pub(super) struct Site {
    pub(super) repository: Repository,
    pub(super) walden: Walden,
    /// The repository's folder, if it is in one.
    pub(super) root: PathBuf,
    pub(super) size: SegmentSize,
    cluster: ClusterId,
    open: OpenPolicy,
}

/// What of a timeline is stored and was found equal to the server's.
#[derive(Debug)]
pub(super) struct Compared {
    pub(super) from: Lsn,
    /// Behind the last byte before which nothing is missing.
    pub(super) to: Lsn,
    pub(super) segments: usize,
    pub(super) chunks: usize,
}

impl Site {
    pub(super) fn new(server: &Server, plan: Plan<'_>) -> Self {
        let folder = server.scratch().join("walden");
        let root = folder.join("repository");
        fs::create_dir_all(&root).expect("make the repository's folder");
        let mut open = OpenPolicy::default();
        let mut encryption = "encryption = \"none\"".to_owned();
        if plan.encrypted {
            let identity = generate_identity(jiff::Timestamp::UNIX_EPOCH);
            let file = folder.join("identity");
            fs::write(&file, identity.file.expose_secret()).expect("write the identity");
            let reference = SecretReference::File(file.display().to_string());
            open.identities = wait(Identities::load(&[reference])).expect("load the identity");
            encryption = format!(
                "[encryption]\nrecipients = [\"{}\"]\nidentity = \"file:{}\"",
                identity.recipient,
                file.display()
            );
        }
        let mut walden = Walden::in_directory(&folder);
        let (url, options) = match &plan.place {
            Place::Folder => (
                format!("file://{}", root.display()),
                StoreOptions::default(),
            ),
            Place::Bucket(bucket, endpoint) => {
                walden = walden.envs(bucket.environment());
                walden = walden.env("AWS_ENDPOINT_URL", endpoint);
                (bucket.url("site"), options_for(bucket))
            }
        };
        let (conninfo, rpo) = (server.conninfo(), plan.rpo);
        let text = format!(
            "{encryption}\n[postgres]\nconninfo = \"{conninfo}\"\n[archive]\nrpo = \"{rpo}\"\n[[repository]]\nurl = '{url}'\n"
        );
        fs::write(folder.join("walden.toml"), text).expect("write the configuration");

        let store = Store::open(&url, options).expect("open the store");
        let repository = Repository::new("primary", store);
        let number = |field| -> u64 { server.control_data(field).parse().expect("a number") };
        let segment = u32::try_from(number("Bytes per WAL segment")).expect("a segment's size");
        let identifier = plan.system_identifier;
        let cluster = ClusterDocument {
            format: 1,
            requires: Vec::new(),
            system_identifier: identifier.unwrap_or_else(|| number("Database system identifier")),
            incarnation: 0,
            parent: None,
            pg_version: u16::try_from(server.major()).expect("a small number"),
            block_size: 8192,
            wal_segment_size: segment,
            created: jiff::Timestamp::UNIX_EPOCH,
        };
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
            size: SegmentSize::new(segment).expect("a segment's size"),
            cluster: cluster.id(),
            open,
        }
    }

    /// `walden run`, once the server streams to it.
    #[track_caller]
    pub(super) fn archive(&self, server: &Server) -> Running {
        let mut run = self.walden.start(["run"]);
        wait_until("walden run receives", DEADLINE, || {
            let (_, log) = run.printed();
            assert!(run.is_running(), "walden run ended:\n{log}");
            let sender = "select state from pg_stat_replication where application_name = 'walden'";
            let streams = matches!(server.psql(sender).as_str(), "streaming" | "catchup");
            (streams && log.contains("receiving WAL")).then_some(())
        });
        run
    }

    pub(super) fn catalog(&self) -> Catalog {
        wait(self.repository.list(self.cluster)).expect("list")
    }

    fn segment_key(&self, name: SegmentName) -> ObjectKey {
        let cluster = self.cluster;
        ObjectKey::Segment { cluster, name }
    }

    fn tail_key(&self, name: SegmentName, chunk: &TailChunk) -> ObjectKey {
        ObjectKey::Tail {
            cluster: self.cluster,
            name,
            from: chunk.from,
            to: chunk.to,
            writer: chunk.writer,
        }
    }

    fn plain(&self, key: &ObjectKey) -> Vec<u8> {
        let limit = self.size.bytes() as usize;
        let fetched = wait(self.repository.fetch(key, &self.open, limit));
        fetched.unwrap_or_else(|error| panic!("{key}: {error}")).1
    }

    fn descriptor(&self, key: &ObjectKey) -> WalDescriptor {
        let fetched = wait(self.repository.fetch_descriptor(key));
        let descriptor = fetched.unwrap_or_else(|error| panic!("{key}: {error}"));
        descriptor.wal.expect("WAL describes itself")
    }

    /// The byte behind the last one of a timeline before which nothing is missing, by the names in a listing alone.
    pub(super) fn covered_to(&self, catalog: &Catalog, timeline: TimelineId) -> Option<Lsn> {
        let objects = catalog.timelines.get(&timeline)?;
        let first = objects.segments.keys().chain(objects.tails.keys()).min()?;
        let mut number = first.number(self.size)?;
        loop {
            let name = SegmentName::new(timeline, number, self.size);
            if !objects.segments.contains_key(&name) {
                let chunks = objects.tails.get(&name).into_iter().flatten();
                // In order of their start.
                let reach = chunks.fold(0, |reach, chunk| {
                    if chunk.from <= reach {
                        reach.max(chunk.to)
                    } else {
                        reach
                    }
                });
                return Some(self.size.start(number).saturating_add(u64::from(reach)));
            }
            number = number.next();
        }
    }

    /// Compares everything that is stored of a timeline with the server's files: each segment and each chunk has the
    /// server's bytes, nothing is missing in between, the records chain, nothing is called invalid.
    #[track_caller]
    pub(super) fn compare(&self, timeline: TimelineId, pg_wal: &Path) -> Compared {
        self.compare_with_hole(timeline, pg_wal, None)
    }

    /// As [`Self::compare`], where this is known to be missing.
    #[track_caller]
    pub(super) fn compare_with_hole(
        &self,
        timeline: TimelineId,
        pg_wal: &Path,
        hole: Option<GapRange>,
    ) -> Compared {
        let catalog = self.catalog();
        let objects = catalog
            .timelines
            .get(&timeline)
            .expect("the timeline is stored");
        let mut files: BTreeMap<SegmentName, Vec<u8>> = BTreeMap::new();
        let mut file = |name: SegmentName| {
            let read = || fs::read(pg_wal.join(name.to_string()));
            let bytes = files
                .entry(name)
                .or_insert_with(|| read().unwrap_or_else(|error| panic!("{name}: {error}")));
            assert_eq!(bytes.len(), self.size.bytes() as usize, "{name}");
            bytes.clone()
        };
        let mut link = ChainLink::default();
        for name in objects.segments.keys() {
            let key = self.segment_key(*name);
            assert!(self.plain(&key) == file(*name), "{key} is not the server's");
            let descriptor = self.descriptor(&key);
            assert_eq!(descriptor.invalid_at, None, "{key}");
            assert_eq!(Some(descriptor.start_lsn), name.start(self.size), "{key}");
            if hole.is_some_and(|hole| hole.to == descriptor.start_lsn) {
                link = ChainLink::default();
            }
            link.follow(&descriptor)
                .unwrap_or_else(|broken| panic!("{key}: {broken:?}"));
        }
        let mut chunks = 0;
        for (name, tails) in &objects.tails {
            for chunk in tails {
                let key = self.tail_key(*name, chunk);
                let range = chunk.from as usize..chunk.to as usize;
                let expected = file(*name).get(range).expect("in the segment").to_vec();
                assert!(self.plain(&key) == expected, "{key} is not the server's");
                assert_eq!(self.descriptor(&key).invalid_at, None, "{key}");
                chunks += 1;
            }
        }
        let holes = catalog.holes(timeline, self.size);
        assert_eq!(holes, Vec::from_iter(hole), "what is missing");
        let first = objects.segments.keys().chain(objects.tails.keys()).min();
        let first = first.and_then(|name| name.start(self.size));
        Compared {
            from: first.expect("something is stored"),
            to: self
                .covered_to(&catalog, timeline)
                .expect("something is stored"),
            segments: objects.segments.len(),
            chunks,
        }
    }

    /// Writes what is stored of a timeline as files that PostgreSQL can read: the last one is filled up with zeros.
    pub(super) fn export(&self, timeline: TimelineId, folder: &Path) {
        fs::create_dir_all(folder).expect("make a folder");
        let catalog = self.catalog();
        let objects = &catalog.timelines[&timeline];
        for name in objects.segments.keys() {
            let plain = self.plain(&self.segment_key(*name));
            fs::write(folder.join(name.to_string()), plain).expect("write a segment");
        }
        let Some((name, chunks)) = objects.tails.last_key_value() else {
            return;
        };
        if objects.segments.contains_key(name) {
            return;
        }
        let mut bytes = vec![0; self.size.bytes() as usize];
        for chunk in chunks {
            let plain = self.plain(&self.tail_key(*name, chunk));
            bytes[chunk.from as usize..chunk.to as usize].copy_from_slice(&plain);
        }
        fs::write(folder.join(name.to_string()), bytes).expect("write a segment");
    }

    /// The bytes of the only `.partial` of a timeline, and which segment it is of.
    #[track_caller]
    pub(super) fn partial(&self, timeline: TimelineId) -> (SegmentName, Vec<u8>) {
        let catalog = self.catalog();
        let partials = &catalog.timelines[&timeline].partials;
        assert_eq!(partials.len(), 1, "{partials:?}");
        let partial = partials.first().expect("one");
        let key = ObjectKey::Partial {
            cluster: self.cluster,
            name: partial.name,
            tag: partial.tag,
        };
        (partial.name, self.plain(&key))
    }

    /// Every object of a repository in a folder: path, bytes, when it was finished.
    pub(super) fn objects(&self) -> BTreeMap<String, (Vec<u8>, std::time::SystemTime)> {
        let mut objects = BTreeMap::new();
        for path in self.files() {
            // A file may be finished, and so renamed, between the listing and this.
            let Ok(bytes) = fs::read(&path) else { continue };
            let metadata = path.metadata().expect("an object's metadata");
            let name = path.strip_prefix(&self.root).expect("below the root");
            let modified = metadata.modified().expect("a time");
            objects.insert(name.display().to_string(), (bytes, modified));
        }
        objects
    }

    /// Files of a repository in a folder that are being written right now.
    pub(super) fn unfinished(&self) -> BTreeSet<PathBuf> {
        let temporary = |path: &PathBuf| {
            path.file_name()
                .is_some_and(repository::durable::is_temporary_name)
        };
        self.files().into_iter().filter(temporary).collect()
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        for folder in self.folders() {
            let entries = fs::read_dir(folder).expect("list a folder");
            let paths = entries.map(|entry| entry.expect("an entry").path());
            files.extend(paths.filter(|path| !path.is_dir()));
        }
        files
    }

    /// The folders of a repository in a folder, its root first.
    pub(super) fn folders(&self) -> Vec<PathBuf> {
        let mut folders = vec![self.root.clone()];
        let mut next = 0;
        while let Some(folder) = folders.get(next) {
            let entries = fs::read_dir(folder).expect("list a folder");
            let paths = entries.map(|entry| entry.expect("an entry").path());
            let below: Vec<PathBuf> = paths.filter(|path| path.is_dir()).collect();
            folders.extend(below);
            next += 1;
        }
        folders
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

pub(super) fn wait<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    runtime.expect("start a runtime").block_on(future)
}
