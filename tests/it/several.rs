//! Several repositories at once, one of which fails: the others go on, the server is told the truth, and on its return both hold the same, byte for
//! byte, and either one alone restores everything.

mod backups;
mod outages;
mod refusals;
mod three;

use crate::support::door::Door;
use crate::support::object_store::Bucket;
use crate::support::postgres::Server;
use crate::support::process::Running;
use crate::support::restored::Restorer;
use crate::support::wait_until;
use crate::support::walden::Walden;
use repository::key::ObjectKey;
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(60);

/// A server, a folder and a bucket behind a door as its repositories, and somebody who restores.
struct Pair {
    server: Server,
    restorer: Restorer,
    walden: Walden,
    near: PathBuf,
    bucket: Bucket,
    far: Door,
}

impl Pair {
    fn new(ack: &str, segment_mib: u32) -> Self {
        let builder = Server::builder(18).wal_segment_mib(segment_mib);
        let (mut restorer, builder) = Restorer::for_source(builder);
        let server = builder.start();
        let folder = server.scratch().join("walden");
        let near = folder.join("near");
        fs::create_dir_all(&near).expect("make a folder");
        let bucket = Bucket::new();
        let far = Door::before(&bucket);
        let (conninfo, near_url, far_url) = (server.conninfo(), near.display(), bucket.url("far"));
        let text = format!(
            "encryption = \"none\"\n[postgres]\nconninfo = \"{conninfo}\"\n[archive]\nrpo = \"200ms\"\nack = {ack}\n\
             [[repository]]\nname = \"near\"\nurl = 'file://{near_url}'\n\
             [[repository]]\nname = \"far\"\nurl = '{far_url}'\nendpoint = '{}'\n",
            far.endpoint()
        );
        fs::write(folder.join("walden.toml"), text).expect("write the configuration");
        let walden = Walden::in_directory(&folder).envs(bucket.environment());
        let init = [
            "init",
            &format!("file://{near_url}"),
            "--no-encryption",
            "--postgres",
            &conninfo,
        ];
        let made = walden.run(init);
        assert!(matches!(made.code(), 0 | 3), "{made}");
        restorer.walden = restorer.walden.envs(bucket.environment());
        Self {
            server,
            restorer,
            walden,
            near,
            bucket,
            far,
        }
    }

    #[track_caller]
    fn archive(&self) -> Running {
        self.walden.receive(&self.server, ["run"])
    }

    /// What the server was told last as stored.
    fn flushed(&self) -> String {
        self.server.psql("select coalesce(flush_lsn, '0/0') from pg_stat_replication where application_name = 'walden'")
    }

    /// Objects of the folder: path and contents.
    fn near_objects(&self) -> BTreeMap<String, Vec<u8>> {
        let mut found = BTreeMap::new();
        collect(&self.near, &self.near, &mut found);
        found
    }

    /// Paths of the bucket.
    fn far_paths(&self) -> Vec<String> {
        let paths = self.bucket.list("far/");
        let paths = paths.iter().filter_map(|path| path.strip_prefix("far/"));
        paths.map(str::to_owned).collect()
    }

    /// Waits until both hold the same, but for chunks of segments that are sealed, and what each has of its own.
    #[track_caller]
    fn wait_until_same(&self) {
        let compared = wait_until("both repositories hold the same", DEADLINE, || {
            let near = self.near_objects().into_keys().collect();
            same_paths(vec![near, self.far_paths()])
        });
        let near = self.near_objects();
        let segments = compared
            .iter()
            .filter(|path| path.ends_with(".wal"))
            .count();
        assert!(segments > 3, "{compared:?}");
        for path in compared {
            let far = self.bucket.get(&format!("far/{path}"));
            assert!(near.get(&path) == Some(&far), "{path} differs");
        }
    }

    /// Restores to the end from each of them alone, and counts the rows.
    #[track_caller]
    fn assert_each_restores(&mut self, table: &str) {
        let count = format!("select count(*) from {table}");
        let expected = self.server.psql(&count);
        for url in [
            format!("file://{}", self.near.display()),
            self.bucket.url("far"),
        ] {
            self.restorer.url.clone_from(&url);
            let name = url.split(':').next().expect("a scheme");
            let restored = self.restorer.restore(name, &["--to", "latest"]);
            assert_eq!(restored.client.psql(&count), expected, "{url}");
        }
    }

    /// Rows in a table, and about so many MiB of WAL.
    fn write(&self, table: &str, mib: u32) {
        self.server.psql(&format!(
            "create table if not exists {table} (n int); insert into {table} select generate_series(1, 100); \
             select count(pg_logical_emit_message(false, 'filler', repeat(md5(g::text), 31))) from generate_series(1, {}) g; \
             insert into {table} values (0)",
            mib * 1024
        ));
    }
}

/// What all of these hold, if it is the same, but for chunks of segments that are sealed, and what each has of its own.
fn same_paths(mut listings: Vec<Vec<String>>) -> Option<Vec<String>> {
    let sealed: Vec<String> = listings.iter().flatten().cloned().collect();
    let counts = |path: &String| match path.parse() {
        Ok(ObjectKey::Tail { name, .. }) => !sealed
            .iter()
            .any(|path| path.ends_with(&format!("/{name}.wal"))),
        Ok(ObjectKey::Repository | ObjectKey::Rescue | ObjectKey::RollUp { .. }) => false,
        Ok(_) => true,
        Err(_) => false,
    };
    for listing in &mut listings {
        listing.retain(counts);
        listing.sort();
    }
    let first = listings.pop()?;
    listings
        .iter()
        .all(|other| *other == first)
        .then_some(first)
}

fn terminate(run: Running) -> String {
    run.signal(Signal::TERM);
    let output = run.wait(DEADLINE);
    output.expect_success().stderr
}

fn collect(root: &Path, folder: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(root, &path, found);
        } else if let (Ok(relative), Ok(bytes)) = (path.strip_prefix(root), fs::read(&path)) {
            found.insert(relative.display().to_string(), bytes);
        }
    }
}
