//! One of two repositories refuses: its disk is full, the credentials are not the right ones, or other contents stand where ours should. The other
//! goes on, and everybody is told.

use super::{DEADLINE, Pair, terminate};
use crate::support::process::Running;
use crate::support::small_disk::SmallDisk;
use crate::support::wait_until;
use crate::support::walden::{Walden, wait_until_stored};
use repository::key::{ClusterId, ObjectKey};
use repository::testing::sealed;
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::time::Duration;
use wal_format::SegmentName;

/// A repository that takes nothing is waited for 30 seconds.
const BACKUP_DEADLINE: Duration = Duration::from_secs(120);

/// What the other repository's copy of a backup lacks.
#[track_caller]
fn problem(taken: &Value, repository: &str) -> String {
    let copies = taken["copies"].as_array().expect("a list");
    assert_eq!(copies.len(), 1, "{taken}");
    assert_eq!(copies[0]["repository"], repository, "{taken}");
    copies[0]["problem"].as_str().expect("a problem").to_owned()
}

#[test]
fn beside_a_full_disk_the_other_repository_gets_wal_and_backups() {
    let mut pair = Pair::new("'any'", 1);
    let beside = pair.server.scratch().join("beside");
    fs::rename(&pair.near, &beside).expect("move the folder");
    fs::create_dir(&pair.near).expect("make a folder");
    let disk = SmallDisk::mount(&pair.near, "24m");
    disk.shell(&format!("cp -a '{}/.' \"$1\"", beside.display()));
    pair.near = disk.seen_from_outside();
    let folder = pair.server.scratch().join("walden");
    let start = |arguments: &[&str]| {
        let mut walden = disk.command(&folder, Walden::program());
        walden.args(arguments).envs(pair.bucket.environment());
        Running::start(walden)
    };
    let mut run = start(&["run"]);
    run.wait_for("it receives", DEADLINE, |_, log| {
        log.contains("receiving WAL")
    });
    start(&["backup", "--fast-checkpoint"])
        .wait(DEADLINE)
        .expect_success();

    disk.fill();
    pair.write("filled", 6);
    wait_until_stored(&pair.server);
    let backup = start(&["backup", "--fast-checkpoint", "--json"]);
    let taken = backup.wait(BACKUP_DEADLINE).expect_code(3).json();
    assert_eq!(taken["repository"], pair.bucket.url("far"), "{taken}");
    problem(&taken, "near");
    let label = taken["label"].as_str().expect("a label");
    let is_near = |path: &String| path.ends_with(&format!("{label}/backup.json"));
    assert!(!pair.near_objects().keys().any(is_near));
    let segments = |paths: Vec<String>| paths.iter().filter(|path| path.ends_with(".wal")).count();
    let near = segments(pair.near_objects().into_keys().collect());
    assert!(near < segments(pair.far_paths()), "the disk was not full");

    disk.free();
    disk.shell("mount -o remount,size=400m \"$1\"");
    pair.wait_until_same();
    assert!(pair.near_objects().keys().any(is_near));
    terminate(run);
}

#[test]
fn beside_refused_credentials_the_other_repository_gets_wal_and_backups() {
    let mut pair = Pair::new("'any'", 1);
    let wrong = pair.walden.clone().env("AWS_SECRET_ACCESS_KEY", "wrong");
    let run = wrong.receive(&pair.server, ["run"]);
    let backup = ["backup", "--fast-checkpoint", "--json"];
    let taken = wrong.run(backup).expect_code(3).json();
    let said = problem(&taken, "far");
    assert!(
        said.contains("403") || said.contains("denied") || said.contains("refuse"),
        "{said}"
    );
    pair.write("refused", 6);
    wait_until_stored(&pair.server);
    let status = wrong.run(["status", "--json"]).expect_code(3).json();
    assert_eq!(
        status["repositories"][1]["state"], "unreachable",
        "{status}"
    );
    let listed = wrong.run(["list", "--json"]).expect_code(3).json();
    assert_eq!(listed["unseen"][0]["repository"], "far", "{listed}");
    assert!(!pair.far_paths().iter().any(|path| path.ends_with(".wal")));
    terminate(run);

    let run = pair.archive();
    pair.wait_until_same();
    pair.walden.run(["status"]).expect_success();
    pair.walden.run(["list"]).expect_success();
    terminate(run);
    pair.assert_each_restores("refused");
}

#[test]
fn one_that_holds_other_contents_is_left_as_it_is_loudly_and_the_other_goes_on() {
    let pair = Pair::new("'any'", 1);
    let run = pair.archive();
    let backup = ["backup", "--fast-checkpoint", "--json"];
    pair.walden.run(backup).expect_success();
    wait_until_stored(&pair.server);
    let name = "select pg_walfile_name(pg_current_wal_lsn() + 2 * 1024 * 1024)";
    let (key, foreign) = foreign_segment(&pair, &pair.server.psql(name));
    pair.bucket.put(&format!("far/{key}"), &foreign);
    pair.write("contested", 6);
    wait_until_stored(&pair.server);
    wait_until("the conflict is seen", DEADLINE, || {
        run.printed().1.contains("CONFLICT").then_some(())
    });
    let status = pair.walden.run(["status", "--json"]).expect_code(5).json();
    let problems = status["problems"].to_string();
    assert!(
        problems.contains("CONFLICT: repository far holds other contents than near"),
        "{status}"
    );
    let conflicts = &status["repositories"][1]["conflicts"];
    assert_eq!(conflicts.as_array().map(Vec::len), Some(1), "{status}");
    assert!(
        key.contains(conflicts[0].as_str().expect("a name")),
        "{status}"
    );

    // A backup without its WAL is none: the far one has none.
    let backup = pair.walden.start(backup);
    let taken = backup.wait(BACKUP_DEADLINE).expect_code(3).json();
    let said = problem(&taken, "far");
    assert!(said.contains("needs WAL"), "{said}");
    let label = taken["label"].as_str().expect("a label");
    let is_whole = |path: &String| path.ends_with(&format!("{label}/backup.json"));
    assert!(!pair.far_paths().iter().any(is_whole));
    assert!(pair.near_objects().keys().any(is_whole));
    assert!(
        pair.bucket.get(&format!("far/{key}")) == foreign,
        "overwritten"
    );
    run.signal(Signal::TERM);
    let ended = run.wait(DEADLINE).expect_code(3);
    assert!(ended.stderr.contains("other contents than ours"), "{ended}");
}

/// A segment that another server may have written: its key and its stored bytes.
fn foreign_segment(pair: &Pair, name: &str) -> (String, Vec<u8>) {
    let cluster = pair
        .server
        .psql("select system_identifier from pg_control_system()");
    let cluster: ClusterId = cluster.parse().expect("a system identifier");
    let name: SegmentName = name.parse().expect("a segment name");
    let key = ObjectKey::Segment { cluster, name };
    let sealed = sealed(key, None, b"of another server");
    let bytes = [sealed.header.as_ref(), sealed.payload.as_ref()].concat();
    (sealed.key.to_string(), bytes)
}
