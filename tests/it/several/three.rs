//! Three repositories, of which one and then a second one is lost: what the server is told, and what becomes of a backup that is under way.

use super::{DEADLINE, same_paths, terminate};
use crate::support::fault_proxy::store::StoreProxy;
use crate::support::fault_proxy::{Fault, Rule};
use crate::support::object_store::Bucket;
use crate::support::postgres::Server;
use crate::support::process::{Running, note, peak_memory};
use crate::support::restored::Restorer;
use crate::support::wait_until;
use crate::support::walden::{Walden, wait_until_stored};
use repository::catalog::Catalog;
use repository::key::ClusterId;
use serde_json::{Value, json};
use std::fs;
use std::time::Duration;
use wal_format::{Lsn, SegmentSize, TimelineId};

const NAMES: [&str; 3] = ["one", "two", "three"];
/// A repository that has just gone is waited for 30 seconds.
const BACKUP_DEADLINE: Duration = Duration::from_secs(120);
/// Three parts in the clear, three sealed ones, and what a process takes anyway.
const MEMORY_BOUND: u64 = (3 * 32 + 3 * 33 + 96) << 20;

/// A server, three places in a bucket as its repositories, each behind a proxy, and somebody who restores.
struct Trio {
    server: Server,
    restorer: Restorer,
    walden: Walden,
    bucket: Bucket,
    proxies: [StoreProxy; 3],
}

impl Trio {
    fn new(ack: &str) -> Self {
        let builder = Server::builder(18).wal_segment_mib(1);
        let (mut restorer, builder) = Restorer::for_source(builder);
        let server = builder.start();
        let folder = server.scratch().join("walden");
        fs::create_dir_all(&folder).expect("make a folder");
        let bucket = Bucket::new();
        let proxies = NAMES.map(|_| StoreProxy::before(&bucket, 1));
        let conninfo = server.conninfo();
        let mut text = format!(
            "encryption = \"none\"\n[postgres]\nconninfo = \"{conninfo}\"\n[archive]\nrpo = \"200ms\"\nack = {ack}\n"
        );
        for (name, proxy) in NAMES.iter().zip(&proxies) {
            text.push_str(&format!(
                "[[repository]]\nname = \"{name}\"\nurl = '{}'\nendpoint = '{}'\n",
                bucket.url(name),
                proxy.endpoint()
            ));
        }
        fs::write(folder.join("walden.toml"), text).expect("write the configuration");
        let walden = Walden::in_directory(&folder).envs(bucket.environment());
        let url = bucket.url("one");
        let init = ["init", &url, "--no-encryption", "--postgres", &conninfo];
        let made = walden.run(init);
        assert!(matches!(made.code(), 0 | 3), "{made}");
        restorer.walden = restorer.walden.envs(bucket.environment());
        Self {
            server,
            restorer,
            walden,
            bucket,
            proxies,
        }
    }

    /// From now on, to each request.
    fn lose(&self, number: usize, fault: Fault) {
        self.proxies[number].arm([Rule::next(fault).percent(100)]);
    }

    /// To each part of a backup but the first that comes.
    fn lose_parts(&self, number: usize, fault: Fault) {
        let rule = Rule::next(fault).on("PUT", "/base.");
        self.proxies[number].arm([rule.after(1).times(u32::MAX)]);
    }

    #[track_caller]
    fn wait_until_parts_are_lost(&self, number: usize) {
        wait_until("a part is lost", DEADLINE, || {
            self.proxies[number].all_fired().then_some(())
        });
    }

    /// A file in the data directory, all zeros: parts to send, and little to store.
    fn add_bulk(&self, mib: u64) {
        let path = self.server.data_directory().join("bulk");
        let file = fs::File::create(path).expect("make a file");
        file.set_len(mib << 20).expect("make it large");
    }

    fn write(&self, table: &str) {
        self.server.psql(&format!(
            "create table if not exists {table} (n int); insert into {table} select generate_series(1, 100); \
             select count(pg_logical_emit_message(false, 'filler', repeat(md5(g::text), 31))) from generate_series(1, 6144) g; \
             insert into {table} values (0)"
        ));
    }

    fn paths(&self, number: usize) -> Vec<String> {
        let prefix = format!("{}/", NAMES[number]);
        let paths = self.bucket.list(&prefix);
        let paths = paths.iter().filter_map(|path| path.strip_prefix(&prefix));
        paths.map(str::to_owned).collect()
    }

    /// Where what is stored of its WAL ends.
    fn end(&self, number: usize) -> Lsn {
        let cluster = self
            .server
            .psql("select system_identifier from pg_control_system()");
        let cluster: ClusterId = cluster.parse().expect("a system identifier");
        let listing = self.paths(number).into_iter().map(|path| (path, 1));
        let catalog = Catalog::from_listing(cluster, listing);
        let size = SegmentSize::new(1 << 20).expect("a segment size");
        let end = catalog.wal_end(TimelineId::FIRST, size);
        end.unwrap_or(Lsn::INVALID)
    }

    fn lsn(&self, sql: &str) -> Lsn {
        self.server.psql(sql).parse().expect("an LSN")
    }

    /// Waits until all three hold the same, and reads it.
    #[track_caller]
    fn wait_until_same(&self) {
        let compared = wait_until("all three hold the same", DEADLINE, || {
            same_paths((0..3).map(|number| self.paths(number)).collect())
        });
        let count = |end: &str| compared.iter().filter(|path| path.ends_with(end)).count();
        assert!(
            count(".wal") > 3 && count("/backup.json") > 0,
            "{compared:?}"
        );
        for path in compared {
            let each = NAMES.map(|name| self.bucket.get(&format!("{name}/{path}")));
            assert!(each[0] == each[1] && each[1] == each[2], "{path} differs");
        }
    }

    fn has(&self, number: usize, backup: &Value) -> bool {
        let label = backup["label"].as_str().expect("a label");
        let descriptor = format!("/backups/{label}/backup.json");
        let paths = self.paths(number);
        paths.iter().any(|path| path.ends_with(&descriptor))
    }

    #[track_caller]
    fn assert_restores(&mut self, number: usize, table: &str) {
        let count = format!("select count(*) from {table}");
        self.restorer.url = self.bucket.url(NAMES[number]);
        let restored = self.restorer.restore(NAMES[number], &["--to", "latest"]);
        assert_eq!(restored.client.psql(&count), self.server.psql(&count));
    }

    #[track_caller]
    fn archive(&self) -> Running {
        self.walden.receive(&self.server, ["run"])
    }
}

#[test]
fn with_a_quorum_of_two_one_may_be_lost_and_the_server_waits_for_the_second() {
    let mut trio = Trio::new("{ quorum = 2 }");
    let run = trio.archive();
    let backup = ["backup", "--fast-checkpoint"];
    trio.walden.run(backup).expect_success();
    wait_until_stored(&trio.server);

    trio.lose(2, Fault::Reset);
    trio.write("one_lost");
    wait_until_stored(&trio.server);
    assert!(trio.end(2) < trio.end(0), "nobody was lost");

    trio.lose(1, Fault::Reset);
    trio.write("two_lost");
    let written = trio.lsn("select pg_current_wal_flush_lsn()");
    let reported = "select coalesce(max(flush_lsn), '0/0') from pg_stat_replication where application_name = 'walden'";
    wait_until("the one that is left has it", DEADLINE, || {
        // Asked in this order: what is reported then is there now.
        let (flushed, held) = (trio.lsn(reported), trio.end(1));
        assert!(flushed <= held, "{flushed} is reported, two have {held}");
        (trio.end(0) >= written).then_some(())
    });
    let (flushed, held) = (trio.lsn(reported), trio.end(1));
    assert!(
        flushed <= held && held < written,
        "{flushed} {held} {written}"
    );
    let kept = "select restart_lsn from pg_replication_slots where slot_name = 'walden'";
    assert!(trio.lsn(kept) <= held, "the server keeps it");
    let status = trio.walden.run(["status", "--json"]).expect_code(3).json();
    let problems = status["problems"].to_string();
    let few = "fewer repositories are level than ack asks for";
    assert!(problems.contains(few), "{status}");
    assert_eq!(status["repositories"][1]["state"], "unreachable");

    trio.proxies[1].calm();
    trio.proxies[2].calm();
    wait_until_stored(&trio.server);
    trio.wait_until_same();
    terminate(run);
    trio.assert_restores(2, "two_lost");
}

#[test]
fn a_backup_survives_the_death_of_its_first_repository_and_the_hanging_of_the_second() {
    let mut trio = Trio::new("'any'");
    trio.add_bulk(128);
    let run = trio.archive();
    trio.lose_parts(0, Fault::Reset);
    trio.lose_parts(1, Fault::Stall);
    let backup = trio.walden.start(["backup", "--fast-checkpoint", "--json"]);
    trio.wait_until_parts_are_lost(0);
    trio.wait_until_parts_are_lost(1);
    trio.lose(0, Fault::Reset);
    trio.lose(1, Fault::Stall);
    let taken = backup.wait(BACKUP_DEADLINE).expect_code(3).json();
    assert_eq!(taken["repository"], trio.bucket.url("three"), "{taken}");
    let copies = taken["copies"].as_array().expect("a list");
    let named: Vec<&Value> = copies.iter().map(|copy| &copy["repository"]).collect();
    assert_eq!(named, ["one", "two"], "{taken}");
    assert!(copies.iter().all(|copy| copy["problem"].is_string()));
    let has = [0, 1, 2].map(|number| trio.has(number, &taken));
    assert_eq!(has, [false, false, true]);
    trio.write("after");
    wait_until_stored(&trio.server);
    trio.assert_restores(2, "after");

    // `walden run` brings it when they are back.
    trio.proxies[0].calm();
    trio.proxies[1].calm();
    trio.wait_until_same();
    terminate(run);
    trio.assert_restores(0, "after");
}

#[test]
fn a_repository_that_comes_back_during_a_backup_has_it_in_the_end() {
    let trio = Trio::new("'any'");
    // More than what may be under way.
    trio.add_bulk(320);
    let run = trio.archive();
    trio.lose_parts(1, Fault::Stall);
    let backup = ["backup", "--fast-checkpoint", "--max-rate=32MiB", "--json"];
    let mut backup = trio.walden.start(backup);
    backup.wait_for("it goes on without it", BACKUP_DEADLINE, |_, log| {
        log.contains("goes on without this repository")
    });
    let peak = peak_memory(backup.id()).expect("it runs");
    note(&format!(
        "a backup beside a store that hangs: peak {} MiB",
        peak >> 20
    ));
    assert!(peak < MEMORY_BOUND, "{peak}");
    trio.proxies[1].calm();
    let taken = backup.wait(BACKUP_DEADLINE).expect_success().json();
    assert_eq!(
        taken["copies"],
        json!([
            { "repository": "two", "url": trio.bucket.url("two"), "problem": null },
            { "repository": "three", "url": trio.bucket.url("three"), "problem": null },
        ])
    );
    assert!(taken["parts"].as_u64() > Some(9), "{taken}");
    trio.write("after");
    wait_until_stored(&trio.server);
    trio.wait_until_same();
    terminate(run);
}
