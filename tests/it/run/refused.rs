//! Servers that `walden run` must not receive from: in use by another run, of another cluster, of another major, and one that was
//! put back in time. Nothing is stored from any of them.

use super::{
    DEADLINE, FIRST, SHUTDOWN_DEADLINE, flushed, server, terminate, wait_until_flushed, write_wal,
    written_by,
};
use crate::site::{Plan, Site};
use crate::support::postgres::{Server, Stop};
use crate::support::process::{self, COMMAND_DEADLINE, Running, command};
use crate::support::wait_until;
use std::fs;
use std::path::Path;

#[test]
fn a_second_run_says_that_the_slot_is_in_use() {
    let server = server(18).start();
    let site = Site::new(&server, Plan::default());
    let first = site.archive(&server);
    let mut second = site.walden.start(["run"]);
    second.wait_for("the reason is said", DEADLINE, |_, log| {
        log.contains("is active for PID")
    });
    write_wal(&server, 1);
    wait_until_flushed(&server);
    // It waits for its turn, and takes it.
    terminate(first);
    wait_until("the second run streams", DEADLINE, || flushed(&server));
    write_wal(&server, 1);
    let end = wait_until_flushed(&server);
    terminate(second);
    assert!(site.compare(FIRST, &server.wal_directory()).to >= end);
}

#[test]
fn what_stands_where_a_segment_belongs_stays_and_ends_the_run() {
    let server = server(18).start();
    let site = Site::new(&server, Plan::default());
    let run = site.archive(&server);
    let name = server.psql("select pg_walfile_name(pg_current_wal_insert_lsn())");
    let folder = format!("{}/wal/{}/{}", site.cluster(), &name[..8], &name[8..16]);
    let path = site.root.join(folder).join(format!("{name}.wal"));
    fs::create_dir_all(path.parent().expect("a folder")).expect("make a folder");
    fs::write(&path, "other contents").expect("write an object");
    write_wal(&server, 2);
    let ended = run.wait(DEADLINE).expect_code(5);
    assert!(ended.stderr.contains("CONFLICT"), "{ended}");
    let there = fs::read(&path).expect("read the object");
    assert_eq!(String::from_utf8_lossy(&there), "other contents");
}

#[test]
fn another_cluster_and_major_14_are_refused() {
    let ours = server(15).start();
    let site = Site::new(&ours, Plan::default());
    terminate(site.archive(&ours));
    let before = site.objects();
    let other = server(15).own_identity().start();
    let output = site
        .walden
        .run(["run", "--postgres", &other.conninfo()])
        .expect_code(5);
    assert!(
        output.stderr.contains("system identifier: expected "),
        "{output}"
    );
    assert_eq!(other.psql("select count(*) from pg_replication_slots"), "0");
    assert!(site.objects() == before, "something was stored");

    let old = server(14).start();
    let site = Site::new(&old, Plan::default());
    let output = site.walden.run(["run"]).expect_code(2);
    let said = "PostgreSQL 14 is not supported: 15, 16, 17 and 18 are";
    assert!(output.stderr.contains(said), "{output}");
    assert_eq!(old.psql("select count(*) from pg_replication_slots"), "0");
    assert_eq!(site.objects().len(), 2, "walden.json and cluster.json");
}

/// Copies a data directory over another.
fn copy_over(from: &Path, to: &Path) {
    if to.exists() {
        fs::remove_dir_all(to).expect("remove a data directory");
    }
    let mut copy = command("cp");
    copy.arg("-a").arg(from).arg(to);
    process::run(copy, COMMAND_DEADLINE).expect_success();
}

/// A server whose storage was put back to an earlier state, while the repository knows the later one.
fn rolled_back(
    major: u32,
    rpo: &str,
    last_run: impl FnOnce(&Server, &Site, Running),
) -> (Server, Site) {
    let mut server = server(major).start();
    let site = Site::new(
        &server,
        Plan {
            rpo,
            ..Plan::default()
        },
    );
    let run = site.archive(&server);
    write_wal(&server, 2);
    terminate(run);
    server.stop(Stop::Fast, SHUTDOWN_DEADLINE);
    let (data, kept) = (
        server.data_directory().to_owned(),
        server.scratch().join("kept"),
    );
    copy_over(&data, &kept);
    server.start();
    let run = site.archive(&server);
    write_wal(&server, 3);
    last_run(&server, &site, run);
    server.stop(Stop::Fast, SHUTDOWN_DEADLINE);
    copy_over(&kept, &data);
    server.start();
    (server, site)
}

#[track_caller]
fn refuses_the_rolled_back(site: &Site, said: &str) {
    let before = site.objects();
    let output = site.walden.start(["run"]).wait(DEADLINE).expect_code(5);
    assert!(output.stderr.contains(said), "{said}\n{output}");
    let after = site.objects();
    for (name, object) in &before {
        assert!(after.get(name) == Some(object), "{name} was touched");
    }
    let new: Vec<&String> = after
        .keys()
        .filter(|name| !before.contains_key(*name))
        .collect();
    assert!(
        new.is_empty(),
        "stored from another past: {new:?}\n{output}"
    );
}

fn up_to_the_tail(server: &Server, _: &Site, run: Running) {
    wait_until_flushed(server);
    terminate(run);
}

/// Records of other lengths than those of [`write_wal`].
fn write_other_wal(server: &Server, mib: u32) {
    server.psql(&format!(
        "select count(pg_logical_emit_message(true, 'other', repeat(md5(g::text), 17))) from generate_series(1, {}) g",
        mib * 2048
    ));
}

#[test]
fn a_server_put_back_in_time_is_refused() {
    for major in [15, 18] {
        let (_server, site) = rolled_back(major, "200ms", up_to_the_tail);
        refuses_the_rolled_back(&site, "the server was rolled back");
    }
}

#[test]
fn a_server_put_back_in_time_is_refused_when_it_has_written_more_since() {
    let (server, site) = rolled_back(18, "200ms", up_to_the_tail);
    write_other_wal(&server, 6);
    refuses_the_rolled_back(&site, "the server's WAL has changed");
}

#[test]
fn a_server_put_back_in_time_is_refused_where_a_segment_ended() {
    let (server, site) = rolled_back(18, "600s", |server, site, run| {
        let end = site.size.start(site.size.segment(written_by(server)));
        wait_until("whole segments are stored", DEADLINE, || {
            (site.covered_to(&site.catalog(), FIRST)? >= end).then_some(())
        });
        run.kill();
        let covered = site.covered_to(&site.catalog(), FIRST).expect("stored");
        assert_eq!(
            site.size.offset(covered),
            0,
            "no chunk of the open segment is stored"
        );
    });
    write_other_wal(&server, 6);
    refuses_the_rolled_back(&site, "the server's WAL has changed");
}
