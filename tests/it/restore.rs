//! `walden restore` as a process, with PostgreSQL and an oracle outside the database as its judges: every kind of target, row for row;
//! what it lays out; what it refuses before it writes anything; what a restored server has to leave alone.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use crate::support::object_store::Bucket;
use crate::support::oracle::{Oracle, assert_same_rows, rows};
use crate::support::ports::Port;
use crate::support::postgres::{Builder, Server, tool};
use crate::support::process::{self, Output, Running, wait_gone};
use crate::support::scratch::Scratch;
use crate::support::wait_until;
use crate::support::wal_dump::{Lsn, Target};
use crate::support::walden::Walden;
use crate::support::workload::{Outcome, Random};
use rustix::process::Signal;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(60);

/// A server that is archived and backed up, and what is needed to restore it.
struct Source {
    server: Server,
    /// `walden run`, while it runs.
    run: Option<Running>,
    /// Where the source's configuration and key are.
    folder: PathBuf,
    /// The repository, if it is a folder.
    repository: PathBuf,
    url: String,
    /// In the source's folder.
    archiver: Walden,
    /// In another, empty folder: a restore needs only the URL and the identity.
    restorer: Walden,
    identity: Option<String>,
    /// Restored servers have their sockets here, and their data directories below it.
    scratch: Scratch,
}

impl Source {
    /// Folders whose names are hard to quote.
    fn start(builder: Builder, encrypted: bool, bucket: Option<&Bucket>) -> Self {
        let scratch = Scratch::new();
        // The source itself is told another folder on its command line.
        let server = builder
            .setting(format!(
                "unix_socket_directories = '{}'",
                scratch.path().display()
            ))
            .setting("listen_addresses = ''")
            .folder("da ta 'größe' 100%p")
            .start();
        let folder = server.scratch().join("wal \"den\" 50%f");
        let elsewhere = scratch.join("some where");
        fs::create_dir(&folder).unwrap();
        fs::create_dir(&elsewhere).unwrap();
        let repository = folder.join("re 'po\" größer");
        let mut url = format!("file://{}", repository.display()).replace('%', "%25");
        let (mut archiver, mut restorer) = (
            Walden::in_directory(&folder),
            Walden::in_directory(&elsewhere),
        );
        if let Some(bucket) = bucket {
            url = bucket.url("pre fix");
            archiver = archiver.envs(bucket.environment());
            restorer = restorer.envs(bucket.environment());
        }
        let conninfo = server.conninfo();
        let mut arguments = vec!["init", url.as_str(), "--postgres", conninfo.as_str()];
        if !encrypted {
            arguments.push("--no-encryption");
        }
        archiver.run(arguments).expect_success();
        let identity = encrypted.then(|| format!("file:{}", folder.join("walden.key").display()));
        let mut source = Self {
            server,
            run: None,
            folder,
            repository,
            url,
            archiver,
            restorer,
            identity,
            scratch,
        };
        source.receive();
        source
    }

    fn receive(&mut self) {
        let mut run = self.archiver.start(["run", "--rpo", "200ms"]);
        wait_until("walden run receives", DEADLINE, || {
            let active = "select active from pg_replication_slots where slot_name = 'walden'";
            assert!(run.is_running(), "walden run ended:\n{}", run.printed().1);
            (self.server.psql(active) == "t").then_some(())
        });
        self.run = Some(run);
    }

    fn backup(&self) -> Value {
        let arguments = ["backup", "--fast-checkpoint", "--json"];
        json(&self.archiver.run(arguments).expect_success())
    }

    /// Until everything that the server has flushed is stored.
    fn wait_stored(&self) {
        let flushed = self.server.psql("select pg_current_wal_flush_lsn()");
        wait_until("the last WAL is stored", DEADLINE, || {
            let stored = format!(
                "select coalesce(min(flush_lsn) >= '{flushed}', false) from pg_stat_replication"
            );
            (self.server.psql(&stored) == "t").then_some(())
        });
    }

    /// The command line of a restore into the folder `name`.
    fn arguments(&self, restored: &Restored, more: &[&str]) -> Vec<String> {
        let mut arguments = vec!["restore".to_owned(), self.url.clone()];
        let mut add = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        if let Some(identity) = &self.identity {
            add("--identity", identity.clone());
        }
        add("-D", restored.data.display().to_string());
        let binaries = tool(self.server.major(), "postgres");
        add(
            "--bin-dir",
            binaries.parent().unwrap().display().to_string(),
        );
        add("--port", restored.port.number().to_string());
        arguments.push("--json".to_owned());
        arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        arguments
    }

    /// A place for a restored server; nothing is there yet.
    fn place(&self, name: &str) -> Restored {
        Restored::new(self.server.major(), self.scratch.path(), name)
    }

    /// Restores, and checks what every restore has to say.
    #[track_caller]
    fn restore(&self, name: &str, more: &[&str]) -> Restored {
        let mut restored = self.place(name);
        let output = self
            .restorer
            .run(self.arguments(&restored, more))
            .expect_success();
        restored.said = json(&output);
        assert_eq!(restored.said["schema"], "walden.restore");
        assert_eq!(
            restored.said["data_directory"],
            restored.data.to_str().unwrap()
        );
        restored
    }
}

/// A restored server, which `walden restore` has started or will: dropping it stops it and removes it.
struct Restored {
    data: PathBuf,
    port: Port,
    /// Its clients. The server is not this value's child.
    client: Server,
    said: Value,
}

impl Restored {
    fn new(major: u32, sockets: &Path, name: &str) -> Self {
        let data = sockets.join(name);
        let port = Port::lease();
        let client = Server::over_directory(major, &data);
        // Clients look for the usual port in a folder of their own.
        std::os::unix::fs::symlink(
            sockets.join(format!(".s.PGSQL.{}", port.number())),
            client.socket_directory().join(".s.PGSQL.5432"),
        )
        .unwrap();
        Self {
            data,
            port,
            client,
            said: Value::Null,
        }
    }

    fn postmaster(&self) -> Option<u32> {
        let text = fs::read_to_string(self.data.join("postmaster.pid")).ok()?;
        text.lines().next()?.trim().parse().ok()
    }

    fn stop(&self, signal: Signal) {
        if let Some(postmaster) = self.postmaster() {
            process::send(postmaster, signal);
            wait_gone(&[postmaster]);
        }
    }

    fn is_paused(&self) -> bool {
        self.client.psql("select pg_get_wal_replay_pause_state()") == "paused"
    }
}

impl Drop for Restored {
    fn drop(&mut self) {
        self.stop(Signal::QUIT);
        if self.data.exists() {
            fs::remove_dir_all(&self.data).expect("remove a restored directory");
        }
    }
}

fn json(output: &Output) -> Value {
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output}"))
}

/// The target on the command line; `bare` where `--to` alone understands it.
fn target_arguments(target: &Target, bare: bool) -> Vec<String> {
    let (name, value, inclusive) = match target {
        Target::Latest => ("--to", "latest".to_owned(), true),
        Target::Time { time, inclusive } => ("--to-time", time.to_string(), *inclusive),
        Target::Lsn { lsn, inclusive } => ("--to-lsn", lsn.to_string(), *inclusive),
        Target::Xid { xid, inclusive } => ("--to-xid", xid.to_string(), *inclusive),
        Target::Name(name) => ("--to-name", name.clone(), true),
    };
    let name = match target {
        Target::Time { .. } | Target::Lsn { .. } if bare => "--to",
        _ => name,
    };
    let mut arguments = vec![name.to_owned(), value];
    if !inclusive {
        arguments.push("--exclusive".to_owned());
    }
    arguments
}

/// Every `every`-th target of every kind: the rows are those the oracle knows, no more and no fewer.
fn restores_to_every_target(
    builder: Builder,
    encrypted: bool,
    bucket: Option<&Bucket>,
    every: usize,
) {
    let source = Source::start(builder, encrypted, bucket);
    let server = &source.server;
    let mut oracle = Oracle::prepare(server, 21);
    let running = oracle.start(server, 3);
    running.wait_for_more(20, DEADLINE);
    source.backup();
    oracle.stop(running);
    let backed_up = server.psql("select pg_current_wal_flush_lsn()");
    oracle.run(server, 3, Duration::from_secs(2));
    server.psql("select pg_create_restore_point('a \"point\" of größe')");
    oracle.run(server, 2, Duration::from_millis(500));
    assert!(oracle.journal.count(Outcome::Committed) > 40);
    let dump = oracle.dump(server);
    oracle.check(&dump, Some(server));
    let latest = oracle.rows_at(&dump, &Target::Latest);
    assert_same_rows("the source", &latest, &rows(server));
    source.wait_stored();

    let from = Lsn::parse(&backed_up);
    let mut targets = oracle.targets(&dump, from, &mut Random::new(5));
    targets.push(Target::Latest);
    let (mut different, mut count) = (BTreeSet::new(), 0);
    for (number, target) in targets.into_iter().enumerate().step_by(every) {
        let expected = oracle.rows_at(&dump, &target);
        let mut arguments = target_arguments(&target, number % 2 == 0);
        let promote = count % 4 == 3;
        let action = if promote { "promote" } else { "pause" };
        arguments.extend(["--action", action].map(str::to_owned));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let restored = source.restore(&format!("re 'st\" {number} 5%f %p ü"), &arguments);
        assert_eq!(restored.said["action"], action);
        assert_eq!(restored.said["port"], restored.port.number());
        assert_same_rows(&format!("{target:?}"), &expected, &rows(&restored.client));
        if promote {
            let opened = restored
                .client
                .psql("insert into walden_oracle values (-1, 'new'); select pg_is_in_recovery()");
            assert_eq!(opened, "f");
        } else {
            assert!(restored.is_paused());
        }
        different.insert(expected.len());
        count += 1;
    }
    assert!(count >= 24 / every, "{count} targets");
    assert!(
        different.len() > 24 / every / 4,
        "the targets differ in their rows"
    );
}

#[test]
fn restores_to_every_target_on_18() {
    let builder = Server::builder(18).wal_segment_mib(1);
    restores_to_every_target(builder, true, None, 1);
}

#[test]
fn restores_to_a_third_of_targets_on_15_from_an_object_store() {
    let builder = Server::builder(15).data_checksums(false);
    restores_to_every_target(builder, false, Some(&Bucket::new()), 3);
}
