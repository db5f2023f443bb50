//! `walden restore` as a process, with PostgreSQL and an oracle outside the database as its judges: every kind of target, row for row;
//! what it lays out; what it refuses before it writes anything; what a restored server has to leave alone.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use crate::support::object_store::Bucket;
use crate::support::oracle::{Oracle, assert_same_rows, rows};
use crate::support::ports::Port;
use crate::support::postgres::{Builder, Server, Stop, tool, tool_command};
use crate::support::process::{self, COMMAND_DEADLINE, Output, Running, wait_gone};
use crate::support::scratch::Scratch;
use crate::support::wait_until;
use crate::support::wal_dump::{Lsn, Target};
use crate::support::walden::Walden;
use crate::support::workload::{Outcome, Random};
use repository::identity::{ExposeSecret, generate_identity};
use rustix::process::Signal;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(60);

/// A server that is archived and backed up, and what is needed to restore it.
pub(crate) struct Source {
    pub(crate) server: Server,
    /// `walden run`, while it runs.
    run: Option<Running>,
    /// The repository, if it is a folder.
    repository: PathBuf,
    pub(crate) url: String,
    /// In the source's folder.
    archiver: Walden,
    /// In another, empty folder: a restore needs only the URL and the identity.
    pub(crate) restorer: Walden,
    pub(crate) identity: Option<String>,
    /// Restored servers have their sockets here, and their data directories below it.
    scratch: Scratch,
}

impl Source {
    /// Folders whose names are hard to quote.
    pub(crate) fn start(builder: Builder, encrypted: bool, bucket: Option<&Bucket>) -> Self {
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

    pub(crate) fn backup(&self) -> Value {
        let arguments = ["backup", "--fast-checkpoint", "--json"];
        json(&self.archiver.run(arguments).expect_success())
    }

    /// Until everything that the server has flushed is stored.
    pub(crate) fn wait_stored(&self) {
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
    pub(crate) fn restore(&self, name: &str, more: &[&str]) -> Restored {
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
pub(crate) struct Restored {
    data: PathBuf,
    port: Port,
    /// Its clients. The server is not this value's child.
    pub(crate) client: Server,
    pub(crate) said: Value,
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

#[test]
fn what_is_laid_out_satisfies_the_programs_of_postgresql() {
    let source = Source::start(Server::builder(18).wal_segment_mib(1), true, None);
    let server = &source.server;
    server.pgbench(&["-i", "-q", "-s", "1"], DEADLINE);
    let mut oracle = Oracle::prepare(server, 33);
    let running = oracle.start(server, 2);
    running.wait_for_more(20, DEADLINE);
    source.backup();
    running.wait_for_more(20, DEADLINE);
    oracle.stop(running);
    server.pgbench(&["-c", "2", "-t", "200"], DEADLINE);
    source.wait_stored();

    let restored = source.restore(
        "laid 'out'",
        &["--to", "latest", "--action", "promote", "--no-start"],
    );
    assert_eq!(restored.said["started"], false);
    let mut verify = tool_command(18, "pg_verifybackup");
    verify.arg("-n").arg(&restored.data);
    process::run(verify, COMMAND_DEADLINE).expect_success();

    let mut copy = Server::over_directory(18, &restored.data);
    copy.start();
    wait_until("the copy is open for writing", DEADLINE, || {
        (copy.psql("select pg_is_in_recovery()") == "f").then_some(())
    });
    let dump = oracle.dump(server);
    let latest = oracle.rows_at(&dump, &Target::Latest);
    assert_same_rows("the copy", &latest, &rows(&copy));
    let sums = "select (select sum(abalance) from pgbench_accounts), (select count(*) from pgbench_history)";
    assert_eq!(copy.psql(sums), server.psql(sums));
    let mut check = copy.client("pg_amcheck");
    check.args(["--all", "--install-missing", "--heapallindexed"]);
    process::run(check, COMMAND_DEADLINE).expect_success();
    copy.stop(Stop::Fast, DEADLINE);
    let mut sums = tool_command(18, "pg_checksums");
    sums.arg("--check").arg("-D").arg(&restored.data);
    let sums = process::run(sums, COMMAND_DEADLINE).expect_success();
    let scanned = sums
        .stdout
        .lines()
        .find_map(|line| line.strip_prefix("Blocks scanned:"));
    let scanned: u64 = scanned.expect("blocks are counted").trim().parse().unwrap();
    assert!(scanned > 3000, "{sums}");
    process::note(&format!("pg_checksums found no fault in {scanned} blocks"));
}

#[test]
fn a_killed_restore_is_continued() {
    let source = Source::start(Server::builder(18), true, None);
    let server = &source.server;
    server.psql(
        "create table big as select g, repeat(md5(g::text), 30) as filler from generate_series(1, 60000) g",
    );
    let mut oracle = Oracle::prepare(server, 5);
    source.backup();
    oracle.run(server, 2, Duration::from_millis(300));
    source.wait_stored();

    let mut restored = source.place("killed");
    let arguments = source.arguments(&restored, &["--to", "latest"]);
    let state = restored.data.join("pg_wal/walden/restoring.json");
    let some_part = |text: String| !text.contains("\"parts\":[]");
    let moments: [(&str, &dyn Fn() -> bool); 3] = [
        ("it has begun", &|| state.exists()),
        ("it writes files", &|| restored.data.join("base/5").exists()),
        ("a part is written", &|| {
            fs::read_to_string(&state).is_ok_and(some_part)
        }),
    ];
    for (what, reached) in moments {
        let mut running = source.restorer.start(&arguments);
        wait_until(what, DEADLINE, || {
            let now = reached();
            assert!(now || running.is_running(), "{:?}", running.printed());
            now.then_some(())
        });
        let killed = running.kill();
        assert_eq!(killed.status.code(), None, "{killed}");
        assert!(state.exists());
        assert!(!restored.data.join("global/pg_control").exists());
    }
    let output = source.restorer.run(&arguments).expect_success();
    restored.said = json(&output);
    assert_eq!(restored.said["resumed"], true);
    assert!(!state.exists());
    let dump = oracle.dump(server);
    let latest = oracle.rows_at(&dump, &Target::Latest);
    assert_same_rows("continued", &latest, &rows(&restored.client));
    let sum = "select count(*), sum(hashtext(filler)::bigint) from big";
    assert_eq!(restored.client.psql(sum), server.psql(sum));

    // Done is done: neither the running nor the stopped one is touched by another restore.
    let again = source.restorer.run(&arguments).expect_code(1);
    assert!(again.stdout.contains("a server is running"), "{again}");
    assert!(restored.is_paused());
    restored.stop(Signal::QUIT);
    let before = tree(&restored.data);
    let again = source.restorer.run(&arguments).expect_code(1);
    assert!(again.stdout.contains("not empty"), "{again}");
    assert_eq!(tree(&restored.data), before);
}

#[test]
fn what_cannot_be_restored_is_refused_before_anything_is_written() {
    let source = Source::start(Server::builder(18).wal_segment_mib(1), true, None);
    let server = &source.server;
    let too_early = format!("{:.6}", jiff::Timestamp::now());
    source.backup();
    server.psql("create table t (n int); insert into t values (1)");
    for _ in 0..4 {
        server.psql("insert into t select generate_series(1, 1000); select pg_switch_wal()");
    }
    server.psql("insert into t values (2)");
    source.wait_stored();
    let restored = source.place("never");
    let absent = || {
        assert!(!restored.data.exists());
    };

    let future = format!("{:.6}", jiff::Timestamp::now() + Duration::from_secs(3600));
    for (target, value) in [
        ("--to", future.as_str()),
        ("--to-time", &too_early),
        ("--to-name", "no such point"),
        ("--to-xid", "3000000000"),
        ("--to-lsn", "7F/0"),
    ] {
        let arguments = source.arguments(&restored, &[target, value]);
        let refused = source.restorer.run(arguments).expect_code(4);
        assert!(
            refused.stdout.contains("reachable: 20"),
            "{target}: {refused}"
        );
        absent();
    }

    // A folder that somebody uses, and a server that runs.
    let used = source.place("used");
    fs::create_dir(&used.data).unwrap();
    fs::write(used.data.join("mine"), "precious").unwrap();
    let before = tree(&used.data);
    let refused = source
        .restorer
        .run(source.arguments(&used, &["--to", "latest"]));
    let refused = refused.expect_code(1);
    assert!(refused.stdout.contains("not empty"), "{refused}");
    assert_eq!(tree(&used.data), before);
    let mut arguments = source.arguments(&restored, &["--to", "latest"]);
    let place = arguments
        .iter()
        .position(|argument| argument == "-D")
        .unwrap()
        + 1;
    arguments[place] = server.data_directory().display().to_string();
    let refused = source.restorer.run(&arguments).expect_code(1);
    assert!(refused.stdout.contains("a server is running"), "{refused}");
    assert_eq!(server.psql("select count(*) from t where n = 2"), "5");

    // Somebody else's key, and none.
    let other = source.scratch.join("other.key");
    let identity = generate_identity(jiff::Timestamp::UNIX_EPOCH);
    fs::write(&other, identity.file.expose_secret()).unwrap();
    let mut arguments = source.arguments(&restored, &["--to", "latest"]);
    let place = arguments
        .iter()
        .position(|argument| argument == "--identity")
        .unwrap();
    arguments[place + 1] = format!("file:{}", other.display());
    source.restorer.run(&arguments).expect_code(12);
    absent();
    arguments.drain(place..place + 2);
    source.restorer.run(&arguments).expect_code(12);
    absent();

    // A segment between the backup and the target is gone.
    let wal = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "wal");
    let mut segments: Vec<PathBuf> = tree(&source.repository).into_keys().filter(wal).collect();
    segments.sort();
    let victim = &segments[segments.len() - 3];
    let name = victim.file_name().unwrap().to_str().unwrap()[..24].to_owned();
    let bytes = fs::read(victim).unwrap();
    fs::remove_file(victim).unwrap();
    let arguments = source.arguments(&restored, &["--to", "latest"]);
    let refused = source.restorer.run(&arguments).expect_code(5);
    assert!(refused.stdout.contains(&name), "{name}: {refused}");
    absent();

    // All of these were refused for what they say: with everything in place the same restore is done.
    fs::write(victim, bytes).unwrap();
    source.restorer.run(&arguments).expect_success();
    assert_eq!(
        restored.client.psql("select count(*) from t where n = 2"),
        "5"
    );
}

#[test]
fn tablespaces_move_where_they_are_mapped() {
    let source = Source::start(Server::builder(17).wal_segment_mib(1), true, None);
    let server = &source.server;
    let folder = server.scratch().join("sp ace \"q\" a=b 100%41 größer");
    let [used, empty] = ["used", "empty"].map(|name| {
        let place = folder.join(name);
        fs::create_dir_all(&place).unwrap();
        place.display().to_string()
    });
    server.psql(&format!(
        "create tablespace used location '{used}';
         create tablespace empty location '{empty}';
         create table there tablespace used as select generate_series(1, 5000) as n"
    ));
    source.backup();
    server.psql("insert into there values (0)");
    source.wait_stored();
    let before = tree(&folder);

    // Where they were they are still in use.
    let refused = source.place("refused");
    let arguments = source.arguments(&refused, &["--to", "latest"]);
    source.restorer.run(arguments).expect_code(1);
    assert!(!refused.data.exists());
    assert_eq!(tree(&folder), before);

    let new = source.scratch.join("new = place");
    let escaped = |path: &str| path.replace('=', "\\=");
    let mapping = |old: &str, name: &str| {
        let new = new.join(name).display().to_string();
        format!("{}={}", escaped(old), escaped(&new))
    };
    let (used_mapping, empty_mapping) = (mapping(&used, "u'sed"), mapping(&empty, "empty"));
    let restored = source.restore(
        "moved",
        &[
            "--to",
            "latest",
            "--action",
            "promote",
            "--map-tablespace",
            &used_mapping,
            "--map-tablespace",
            &empty_mapping,
        ],
    );
    let copy = &restored.client;
    assert_eq!(copy.psql("select count(*), min(n) from there"), "5001|0");
    let places = copy.psql(
        "select pg_tablespace_location(oid) from pg_tablespace where spcname in ('used', 'empty') order by spcname desc",
    );
    let wanted = ["u'sed", "empty"].map(|name| new.join(name).display().to_string());
    assert_eq!(places, wanted.join("\n"));
    copy.psql(
        "insert into there select generate_series(6000, 7000);
         create table anew tablespace empty as select 1; checkpoint",
    );
    assert!(tree(&new.join("empty")).len() > 2);
    assert_eq!(tree(&folder), before, "the source's files are as they were");
}

/// The settings of a restored server whose source had every value that would do harm.
fn leaves_the_source_alone(major: u32) {
    let marks = Scratch::new();
    // Server commands run in the data directory, so each mark says whose it is.
    let mark = |name: &str| format!("'pwd >> {}/{name}'", marks.path().display());
    let builder = Server::builder(major)
        .wal_segment_mib(1)
        .setting("archive_mode = on")
        .setting(format!("archive_command = {}", mark("archived")));
    let source = Source::start(builder, true, None);
    let server = &source.server;
    let mut harmful = vec![
        ("recovery_end_command", mark("ended")),
        ("archive_cleanup_command", mark("cleaned")),
        ("restore_command", mark("restored")),
        ("primary_conninfo", "'host=/nowhere user=nobody'".to_owned()),
        ("primary_slot_name", "'nothing'".to_owned()),
        ("recovery_target_name", "'long ago'".to_owned()),
        ("recovery_target_inclusive", "off".to_owned()),
        ("recovery_target_action", "shutdown".to_owned()),
        ("recovery_target_timeline", "'7'".to_owned()),
        ("recovery_min_apply_delay", "'1h'".to_owned()),
        ("hot_standby", "off".to_owned()),
        // None takes effect on the source before its next start, so pg_control has what it runs with.
        ("max_connections", "20".to_owned()),
        ("max_worker_processes", "1".to_owned()),
        ("max_wal_senders", "5".to_owned()),
        ("max_locks_per_transaction", "10".to_owned()),
        ("max_logical_replication_workers", "4".to_owned()),
        // Walden is one, so the source's commits are not held up.
        ("synchronous_standby_names", "'*'".to_owned()),
    ];
    if major == 15 {
        let file = marks.join("promote");
        fs::write(&file, "").unwrap();
        harmful.push(("promote_trigger_file", format!("'{}'", file.display())));
    }
    let statements: String = harmful
        .iter()
        .map(|(name, value)| format!("alter system set {name} = {value};\n"))
        .collect();
    server.psql(&format!("{statements} select pg_reload_conf()"));
    source.backup();
    server.psql("create table t as select generate_series(1, 100) as n; select pg_switch_wal()");
    server.psql("insert into t values (101)");
    source.wait_stored();

    let restored = source.restore("harmless", &["--to", "latest"]);
    let copy = &restored.client;
    assert!(restored.is_paused());
    assert_eq!(copy.psql("select count(*) from t"), "101");
    for (name, wanted) in [
        ("archive_mode", "off"),
        ("recovery_end_command", ""),
        ("archive_cleanup_command", ""),
        ("primary_conninfo", ""),
        ("primary_slot_name", ""),
        ("synchronous_standby_names", ""),
        ("recovery_target_name", ""),
        ("recovery_target_inclusive", "on"),
        ("recovery_target_action", "pause"),
        ("recovery_target_timeline", "1"),
        ("recovery_min_apply_delay", "0"),
        ("hot_standby", "on"),
        ("max_connections", "100"),
        ("max_worker_processes", "8"),
        ("max_wal_senders", "10"),
        ("max_locks_per_transaction", "64"),
        ("max_logical_replication_workers", "0"),
    ] {
        assert_eq!(copy.psql(&format!("show {name}")), wanted, "{name}");
    }
    assert_ne!(copy.psql("show walden.restored_from"), "");

    copy.psql("select pg_wal_replay_resume()");
    wait_until("the restored server is open for writing", DEADLINE, || {
        (copy.psql("select pg_is_in_recovery()") == "f").then_some(())
    });
    // A commit that waits for a standby waits for ever.
    let commit = "insert into t values (102); select pg_switch_wal(); checkpoint";
    copy.try_psql(commit, Duration::from_secs(30))
        .expect_success();
    restored.stop(Signal::INT);
    for name in ["ended", "cleaned", "restored"] {
        assert!(!marks.join(name).exists(), "{name}");
    }
    let archived = fs::read_to_string(marks.join("archived")).unwrap();
    let own = server.data_directory().to_str().unwrap();
    assert!(archived.lines().all(|line| line == own), "{archived}");
}

#[test]
fn a_restored_server_of_18_leaves_its_source_alone() {
    leaves_the_source_alone(18);
}

#[test]
fn a_restored_server_of_15_leaves_its_source_alone() {
    leaves_the_source_alone(15);
}

#[test]
fn plain_objects_are_restored_despite_an_identity_only_if_told_so() {
    let mut source = Source::start(Server::builder(18).wal_segment_mib(1), false, None);
    source.server.psql("create table t as select 1 as n");
    source.backup();
    source.server.psql("insert into t values (2)");
    source.wait_stored();
    let key = source.scratch.join("some.key");
    let identity = generate_identity(jiff::Timestamp::UNIX_EPOCH);
    fs::write(&key, identity.file.expose_secret()).unwrap();
    source.identity = Some(format!("file:{}", key.display()));

    let refused = source.place("refused");
    let output = source
        .restorer
        .run(source.arguments(&refused, &["--to", "latest"]));
    assert_ne!(output.code(), 0, "{output}");
    assert!(!refused.data.exists());
    let restored = source.restore("told", &["--to", "latest", "--allow-plain"]);
    assert_eq!(restored.client.psql("select sum(n) from t"), "3");
}
