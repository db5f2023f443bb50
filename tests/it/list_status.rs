//! `walden list` and `walden status` over a real server that is received and backed up: what they say while all is well, and which
//! side they name when one is down.

use crate::push::Site;
use crate::support::postgres::{Server, Stop};
use crate::support::process::Running;
use crate::support::wait_until;
use crate::support::wal_dump::Lsn;
use crate::support::walden::{Walden, wait_until_stored};
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(60);

fn receive(site: &Site) -> Running {
    site.walden.receive(&site.server, ["run", "--rpo", "200ms"])
}

#[test]
fn list_shows_backups_and_the_window_each_opens() {
    let server = Server::builder(18).wal_segment_mib(1).start();
    let site = Site::new(server, None, &[]);
    let empty = site.walden.run(["list"]).expect_success();
    assert!(empty.stdout.contains("no backups yet"), "{empty}");
    let run = receive(&site);
    let backup = || {
        site.walden
            .run(["backup", "--fast-checkpoint", "--json"])
            .expect_success()
    };
    let first = backup().json();
    site.server
        .psql("create table t (n int); insert into t values (1); select pg_switch_wal()");
    let second = backup().json();
    site.server.psql("insert into t values (2)");
    let newest = site.server.psql(
        "select to_char(pg_xact_commit_timestamp(xmin) at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') from t where n = 2",
    );
    let stored = wait_until_stored(&site.server);
    // No key: the configuration has none, and the identity file is not needed.
    fs::rename(
        site.folder.join("walden.key"),
        site.server.scratch().join("safe"),
    )
    .unwrap();
    let listed = site.walden.run(["list", "--json"]).expect_success().json();
    assert_eq!(
        (&listed["schema"], &listed["version"]),
        (&"walden.list".into(), &1.into())
    );
    let backups = listed["backups"].as_array().unwrap();
    let labels: Vec<&Value> = backups.iter().map(|backup| &backup["label"]).collect();
    assert_eq!(labels, [&first["label"], &second["label"]]);
    // The server may write by itself meanwhile.
    let flushed = Lsn::parse(&site.server.psql("select pg_current_wal_flush_lsn()"));
    for backup in backups {
        let window = &backup["window"];
        assert_eq!(window["from_lsn"], backup["stop_lsn"]);
        let to = Lsn::parse(window["to_lsn"].as_str().unwrap());
        assert!(stored <= to && to <= flushed, "{stored} {flushed} {backup}");
        let time = |text: &str| text.parse::<jiff::Timestamp>().unwrap();
        assert_eq!(
            time(window["to_time"].as_str().unwrap()),
            time(&newest),
            "{backup}"
        );
        assert!(
            backup["stored_bytes"].as_u64().unwrap() > 100_000,
            "{backup}"
        );
        assert_eq!(
            (&backup["kind"], &backup["timeline"]),
            (&"full".into(), &1.into())
        );
    }
    let text = site.walden.run(["list"]).expect_success();
    for label in labels {
        let times = text.stdout.matches(label.as_str().unwrap()).count();
        assert_eq!(times, 2, "once in the table, once with its window: {text}");
    }
    // Nothing but a URL is needed, and a repository that is none is said to be none.
    let elsewhere = Walden::in_directory(site.server.scratch());
    let url = format!("file://{}", site.repository.display());
    let named = elsewhere
        .run(["list", &url, "--json"])
        .expect_success()
        .json();
    // Where the windows end may have moved on: the server writes by itself.
    let but_windows = |listed: &Value| {
        let mut backups = listed["backups"].as_array().unwrap().clone();
        for backup in &mut backups {
            assert!(backup.as_object_mut().unwrap().remove("window").is_some());
        }
        backups
    };
    assert_eq!(but_windows(&named), but_windows(&listed));
    elsewhere
        .run(["list", "file:///nowhere/at/all"])
        .expect_code(10);
    run.signal(Signal::TERM);
    run.wait(DEADLINE).expect_success();
}

#[test]
fn status_tells_apart_which_side_is_down() {
    let server = Server::builder(15).wal_segment_mib(1).start();
    let mut site = Site::new(server, None, &["--no-encryption"]);
    let status = |site: &Site, code: i32| {
        site.walden
            .run(["status", "--json"])
            .expect_code(code)
            .json()
    };
    let sides = |document: &Value| -> Vec<String> {
        let problems = document["problems"].as_array().unwrap();
        problems
            .iter()
            .map(|problem| problem["side"].as_str().unwrap().to_owned())
            .collect()
    };
    let before = status(&site, 3);
    assert_eq!(
        sides(&before),
        ["archiver", "backup", "archiver"],
        "{before}"
    );
    assert_eq!(before["lag_bytes"], Value::Null);

    let run = receive(&site);
    site.walden
        .run(["backup", "--fast-checkpoint"])
        .expect_success();
    site.server
        .psql("create table t (n int); insert into t values (1)");
    // The server may write by itself meanwhile; then what it says now is no measure.
    let (well, flushed) = wait_until("nothing is written beside", DEADLINE, || {
        let stored = wait_until_stored(&site.server);
        let well = status(&site, 0);
        let now = site.server.psql("select pg_current_wal_flush_lsn()");
        (Lsn::parse(&now) == stored).then_some((well, now))
    });
    assert_eq!(well["schema"], "walden.status");
    assert_eq!(sides(&well), [""; 0], "{well}");
    assert_eq!(
        (&well["lag_bytes"], &well["lag_seconds"]),
        (&0.into(), &0.0.into()),
        "{well}"
    );
    assert_eq!(well["server"]["flush_lsn"], flushed.as_str());
    assert_eq!(well["server"]["slot"]["durable_lsn"], flushed.as_str());
    assert_eq!(well["stored"]["timelines"][0]["end_lsn"], flushed.as_str());
    assert!(
        well["stored"]["last_backup"]["age_seconds"]
            .as_f64()
            .unwrap()
            < 600.0
    );
    let text = site.walden.run(["status"]).expect_success();
    assert!(
        text.stdout.contains("all is well") && text.stdout.contains("in use"),
        "{text}"
    );

    run.signal(Signal::TERM);
    run.wait(DEADLINE).expect_success();
    site.server
        .psql("insert into t select generate_series(1, 1000); select pg_switch_wal()");
    site.server
        .psql("insert into t select generate_series(1, 1000)");
    let idle = status(&site, 3);
    assert_eq!(sides(&idle), ["archiver"], "{idle}");
    assert!(idle["lag_bytes"].as_u64().unwrap() > 50_000, "{idle}");
    assert!(idle["lag_seconds"].as_f64().unwrap() > 0.0, "{idle}");
    assert!(
        idle["server"]["slot"]["retained_bytes"].as_u64().unwrap() > 50_000,
        "{idle}"
    );

    // A gap: a segment between others goes missing.
    let run = receive(&site);
    for _ in 0..4 {
        site.server
            .psql("insert into t select generate_series(1, 1000); select pg_switch_wal()");
    }
    wait_until_stored(&site.server);
    let identifier = well["cluster"].as_str().unwrap();
    let folder = site
        .repository
        .join(identifier)
        .join("wal/00000001/00000000");
    let mut segments: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    segments.sort();
    let middle = &segments[segments.len() - 2];
    let bytes = fs::read(middle).unwrap();
    fs::remove_file(middle).unwrap();
    let gap = status(&site, 5);
    assert_eq!(sides(&gap), ["gap", "backup"], "{gap}");
    let listed = site.walden.run(["list"]).expect_code(3);
    assert!(
        listed.stdout.contains("gap: WAL from") && listed.stdout.contains("ends at a gap"),
        "{listed}"
    );
    fs::write(middle, bytes).unwrap();
    assert_eq!(sides(&status(&site, 0)), [""; 0]);

    // Each side down alone.
    run.signal(Signal::TERM);
    run.wait(DEADLINE).expect_success();
    site.server.stop(Stop::Fast, DEADLINE);
    let down = status(&site, 1);
    assert_eq!(sides(&down), ["server"], "{down}");
    assert!(down["stored"]["last_backup"]["label"].is_string());
    site.server.start();
    let run = receive(&site);
    let config = site.folder.join("walden.toml");
    let text = fs::read_to_string(&config).unwrap();
    let url = text
        .lines()
        .find(|line| line.starts_with("url = "))
        .unwrap()
        .to_owned();
    let unreachable = "url = \"s3://bucket/prefix\"\nendpoint = \"http://127.0.0.1:1\"\naccess_key = \"cmd:echo a\"\nsecret_key = \"cmd:echo b\"";
    fs::write(&config, text.replace(&url, unreachable)).unwrap();
    let down = status(&site, 1);
    assert_eq!(sides(&down), ["repository"], "{down}");
    assert!(down["server"]["slot"]["active"].as_bool().unwrap());
    fs::write(&config, text).unwrap();
    run.signal(Signal::TERM);
    run.wait(DEADLINE).expect_success();
}

/// Somebody removes WAL by its age: the newest backup has lost its beginning, and all that came later is there.
#[test]
fn a_backup_that_nothing_can_be_recovered_from_is_not_called_well() {
    let server = Server::builder(17).wal_segment_mib(1).start();
    let site = Site::new(server, None, &[]);
    let run = receive(&site);
    let backup = site.walden.run(["backup", "--fast-checkpoint", "--json"]);
    let backup = backup.expect_success().json();
    site.server
        .psql("create table t (n int); select pg_switch_wal()");
    site.server.psql("insert into t values (1)");
    wait_until_stored(&site.server);
    site.walden.run(["status"]).expect_success();
    site.walden.run(["list"]).expect_success();

    let start = Lsn::parse(backup["start_lsn"].as_str().unwrap());
    let name = format!(
        "{:08X}{:08X}{:08X}.wal",
        1,
        start.0 >> 32,
        start.0 as u32 >> 20
    );
    let segments = site.repository.join(&site.system_identifier).join("wal");
    let mut folders = vec![segments];
    let mut removed = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.ends_with(&name) {
                fs::remove_file(path).unwrap();
                removed += 1;
            }
        }
    }
    assert_eq!(removed, 1, "{name}");
    let label = backup["label"].as_str().unwrap();
    let told = site.walden.run(["status"]).expect_code(5);
    let line = format!("nothing can be recovered from backup {label}");
    assert!(told.stdout.contains(&line), "{told}");
    let listed = site.walden.run(["list"]).expect_code(3);
    assert!(listed.stdout.contains("nothing: the WAL"), "{listed}");
    drop(run);
}

#[test]
fn a_window_goes_on_across_a_promotion_where_its_history_can_be_read() {
    let server = Server::builder(18).wal_segment_mib(1).start();
    let mut site = Site::new(server, None, &[]);
    let run = receive(&site);
    site.walden
        .run(["backup", "--fast-checkpoint"])
        .expect_success();
    let standby = site.server.standby();
    site.server.psql("create table t (n int)");
    wait_until_stored(&site.server);
    let switched = site.server.psql("select pg_current_wal_flush_lsn()");
    wait_until("the standby has it all", DEADLINE, || {
        let query = format!("select pg_last_wal_replay_lsn() >= '{switched}'");
        (standby.psql(&query) == "t").then_some(())
    });
    run.signal(Signal::TERM);
    run.wait(DEADLINE).expect_success();
    site.server.stop(Stop::Fast, DEADLINE);
    standby.promote();
    // The roles change: what is the site's server now is what was promoted.
    let old = std::mem::replace(&mut site.server, standby);
    let config = site.folder.join("walden.toml");
    let text = fs::read_to_string(&config).unwrap();
    let moved = text.replace(&old.conninfo(), &site.server.conninfo());
    assert_ne!(moved, text);
    fs::write(&config, &moved).unwrap();
    let run = receive(&site);
    site.server.psql("insert into t values (1)");
    let stored = wait_until_stored(&site.server);
    run.signal(Signal::TERM);
    run.wait(DEADLINE).expect_success();

    let window = |site: &Site| {
        let listed = site.walden.run(["list", "--json"]).expect_success().json();
        listed["backups"][0]["window"].clone()
    };
    let keyless = window(&site);
    assert_eq!(keyless["timeline"], 1, "{keyless}");
    let end = |window: &Value| Lsn::parse(window["to_lsn"].as_str().unwrap());
    assert!(end(&keyless) < stored, "{keyless}");
    let with_key = "[encryption]\nidentity = \"file:walden.key\"\n";
    fs::write(&config, moved.replace("[encryption]\n", with_key)).unwrap();
    let across = window(&site);
    assert_eq!(across["timeline"], 2, "{across}");
    assert!(end(&across) >= stored, "{across}");
    let status = site.walden.run(["status", "--json"]).expect_code(3).json();
    assert_eq!(status["lag_bytes"], 0, "{status}");
    assert_eq!(status["server"]["timeline"], 2, "{status}");
}
