//! A cluster archived to a bucket, a copy of that repository in a folder, and somebody who restores from both.

use crate::support::door::Door;
use crate::support::object_store::Bucket;
use crate::support::oracle::{Oracle, Rows};
use crate::support::postgres::Server;
use crate::support::process::{Output, Running, wait_gone};
use crate::support::restored::{Restored, Restorer};
use crate::support::wal_dump::Target;
use crate::support::walden::{Walden, wait_until_stored};
use rustix::process::Signal;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(60);
/// Where in the bucket the repository is.
pub(crate) const PREFIX: &str = "pre fix";

pub(crate) struct World {
    pub(crate) server: Server,
    pub(crate) oracle: Oracle,
    pub(crate) bucket: Bucket,
    /// In the source's folder, with its configuration.
    pub(crate) archiver: Walden,
    pub(crate) restorer: Restorer,
    /// Number of the cluster, as the repository calls it.
    pub(crate) cluster: String,
}

impl World {
    /// A cluster with one backup and WAL behind it, all of it in the bucket.
    pub(crate) fn new(seed: u64) -> Self {
        let builder = Server::builder(18).wal_segment_mib(1);
        let (mut restorer, builder) = Restorer::for_source(builder);
        let server = builder.start();
        let folder = server.scratch().join("archiver");
        fs::create_dir(&folder).expect("make a folder");
        let bucket = Bucket::new();
        restorer.url = bucket.url(PREFIX);
        let archiver = Walden::in_directory(&folder).envs(bucket.environment());
        restorer.walden = restorer.walden.envs(bucket.environment());
        let conninfo = server.conninfo();
        archiver
            .run(["init", &restorer.url, "--postgres", &conninfo])
            .expect_success();
        restorer.identity = Some(format!("file:{}", folder.join("walden.key").display()));
        let cluster = server.control_data("Database system identifier");
        let mut world = Self {
            oracle: Oracle::prepare(&server, seed),
            server,
            bucket,
            archiver,
            restorer,
            cluster,
        };
        let run = world.run();
        world.backup();
        world.work(2000);
        world.stop(run);
        world
    }

    /// `walden run`.
    pub(crate) fn run(&self) -> Running {
        self.archiver
            .receive(&self.server, ["run", "--rpo", "200ms"])
    }

    pub(crate) fn backup(&self) {
        self.archiver
            .run(["backup", "--fast-checkpoint"])
            .expect_success();
    }

    /// Transactions, and enough WAL to fill several segments; all of it stored when this returns.
    pub(crate) fn work(&mut self, rows: u32) {
        let running = self.oracle.start(&self.server, 2);
        running.wait_for_more(20, DEADLINE);
        self.server.psql(&format!(
            "create table if not exists filler (text text);
             insert into filler select (select string_agg(md5(n::text || m::text), '') from generate_series(1, 60) m)
             from generate_series(1, {rows}) n"
        ));
        running.wait_for_more(20, DEADLINE);
        self.oracle.stop(running);
        wait_until_stored(&self.server);
    }

    pub(crate) fn stop(&self, run: Running) {
        run.signal(Signal::TERM);
        run.wait(DEADLINE).expect_success();
    }

    /// What must be there after a restore to the end.
    pub(crate) fn latest(&self) -> Rows {
        let dump = self.oracle.dump(&self.server);
        self.oracle.rows_at(&dump, &Target::Latest)
    }

    /// A folder for a repository, and its URL.
    pub(crate) fn folder(&self, name: &str) -> (PathBuf, String) {
        let path = self.server.scratch().join(name);
        let url = format!("file://{}", path.display());
        (path, url)
    }

    /// A copy of the bucket's repository in a folder.
    pub(crate) fn copy_to(&self, name: &str) -> (PathBuf, String) {
        let (path, url) = self.folder(name);
        let copied = self.archiver.run(["copy", &self.restorer.url, &url]);
        copied.expect_success();
        (path, url)
    }

    /// Paths of all segments below a folder's repository, in order.
    pub(crate) fn segments(&self, root: &Path) -> Vec<PathBuf> {
        let wal = root.join(&self.cluster).join("wal");
        let mut found = Vec::new();
        let mut folders = vec![wal];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).expect("list a folder").flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|kind| kind == "wal") {
                    found.push(path);
                }
            }
        }
        found.sort();
        found
    }

    /// A configuration for restores, in the restorer's folder, with these repositories: name, URL, and endpoint if another than the store's.
    pub(crate) fn configure(&self, repositories: &[(&str, &str, Option<String>)], patience: &str) {
        let identity = self.restorer.identity.as_ref().expect("an identity");
        let mut text = format!(
            "[postgres]\nsystem_identifier = \"{}\"\n[encryption]\nidentity = '{identity}'\n[restore]\npatience = '{patience}'\n",
            self.cluster
        );
        for (name, url, endpoint) in repositories {
            text += &format!("[[repository]]\nname = '{name}'\nurl = '{url}'\n");
            if let Some(endpoint) = endpoint {
                text += &format!("endpoint = '{endpoint}'\n");
            }
        }
        fs::write(self.config(), text).expect("write a configuration");
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.restorer.scratch.join("some where/walden.toml")
    }

    /// The bucket behind a door, as the first repository, and a folder as the second.
    pub(crate) fn configure_behind(&self, door: &Door, second: &str) {
        let first = self.restorer.url.clone();
        let endpoint = Some(door.endpoint());
        self.configure(
            &[("first", &first, endpoint), ("second", second, None)],
            "20s",
        );
    }

    /// `walden restore` as the configuration says, to this exit code.
    #[track_caller]
    pub(crate) fn restore(&self, name: &str, more: &[&str], code: i32) -> (Restored, Output) {
        let mut restored = self.restorer.place(name);
        let mut arguments = self.restorer.arguments(&restored, more);
        // The configuration names repositories and identity.
        arguments.drain(1..4);
        let output = self.restorer.walden.run(arguments).expect_code(code);
        if code == 0 {
            restored.said = output.json();
        }
        (restored, output)
    }

    /// What the hooks of a restored server said.
    pub(crate) fn hooks_said(restored: &Restored) -> String {
        let log = restored.data.join("pg_wal/walden/recovery.log");
        fs::read_to_string(log).expect("read the recovery's log")
    }

    /// Waits for nothing to be left of a restored server.
    pub(crate) fn end(restored: &Restored) {
        if let Some(postmaster) = restored.postmaster() {
            restored.stop(Signal::QUIT);
            wait_gone(&[postmaster]);
        }
    }
}
