//! `walden restore` as a process, with PostgreSQL and an oracle outside the database as its judges: every kind of target, row for row;
//! what it lays out; what it refuses before it writes anything; what a restored server has to leave alone; how much memory it takes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod actions;
mod harmless;
mod large;
mod layout;
mod raised;
mod refused;
mod targets;

use crate::support::object_store::Bucket;
use crate::support::postgres::{Builder, Server};
use crate::support::process::Running;
use crate::support::restored::Restorer;
use crate::support::walden::Walden;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(60);

/// A server that is archived and backed up, and what is needed to restore it.
struct Source {
    server: Server,
    /// Receives as long as it is there.
    _run: Running,
    /// The repository, if it is a folder.
    repository: PathBuf,
    /// In the source's folder.
    archiver: Walden,
    restorer: Restorer,
}

impl Source {
    /// Folders whose names are hard to quote.
    fn start(builder: Builder, encrypted: bool, bucket: Option<&Bucket>) -> Self {
        let (mut restorer, builder) = Restorer::for_source(builder);
        let server = builder.folder("da ta 'größe' 100%p").start();
        let folder = server.scratch().join("wal \"den\" 50%f");
        fs::create_dir(&folder).unwrap();
        let repository = folder.join("re 'po\" größer");
        restorer.url = format!("file://{}", repository.display()).replace('%', "%25");
        let mut archiver = Walden::in_directory(&folder);
        if let Some(bucket) = bucket {
            restorer.url = bucket.url("pre fix");
            archiver = archiver.envs(bucket.environment());
            restorer.walden = restorer.walden.envs(bucket.environment());
        }
        let conninfo = server.conninfo();
        let mut arguments = vec!["init", &restorer.url, "--postgres", &conninfo];
        if !encrypted {
            arguments.push("--no-encryption");
        }
        archiver.run(arguments).expect_success();
        restorer.identity =
            encrypted.then(|| format!("file:{}", folder.join("walden.key").display()));
        let run = archiver.receive(&server, ["run", "--rpo", "200ms"]);
        Self {
            server,
            _run: run,
            repository,
            archiver,
            restorer,
        }
    }

    fn backup(&self) -> Value {
        let arguments = ["backup", "--fast-checkpoint", "--json"];
        self.archiver.run(arguments).expect_success().json()
    }
}

/// What is below a folder, by path, with every file's content.
fn tree(folder: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if entry.file_type().unwrap().is_dir() {
                found.insert(path.clone(), None);
                folders.push(path);
            } else {
                let bytes = fs::read(&path).unwrap_or_default();
                found.insert(path, Some(bytes));
            }
        }
    }
    found
}
