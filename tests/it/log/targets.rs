//! A restore to the target that the log prints brings back what was lost, and nothing else is gone than it says.

use super::{Entry, Source, find, log, transaction};
use crate::support::postgres::{Builder, Server};
use crate::support::process::{self, COMMAND_DEADLINE, Output};
use crate::support::restored::Restored;

/// Restores to the target of the command that the log prints.
fn restore(source: &Source, entry: &Entry, name: &str) -> Restored {
    let command = entry.json["target"]["command"].as_str().unwrap();
    let (start, target) = command.split_once(" --to-lsn ").unwrap();
    assert!(start.starts_with("walden restore 'file:///"), "{command}");
    let words: Vec<&str> = target.split(' ').collect();
    let [lsn, "--exclusive", "-D", "NEW_DIRECTORY"] = words.as_slice() else {
        panic!("{command}")
    };
    restore_to(source, lsn, name)
}

fn restore_to(source: &Source, lsn: &str, name: &str) -> Restored {
    let old = source.server.scratch().join("space");
    let new = source.server.scratch().join(format!("space of {name}"));
    let mapping = format!("{}={}", old.display(), new.display());
    source.restorer.restore(
        name,
        &["--to-lsn", lsn, "--exclusive", "--map-tablespace", &mapping],
    )
}

fn query(server: &Server, database: &str, sql: &str) -> Output {
    let mut psql = server.psql_command();
    psql.args(["-d", database, "-c", sql]);
    process::run(psql, COMMAND_DEADLINE)
}

fn dropped_things_come_back(builder: Builder) {
    let source = Source::start(builder.wal_segment_mib(1), true);
    let server = &source.server;
    server.psql("create table orders (id int primary key, n int); insert into orders select n, n from generate_series(1, 100) n; create table log (n int)");
    server.psql("create database victim");
    server.psql("create database moved");
    for database in ["victim", "moved"] {
        query(
            server,
            database,
            "create table t (n int); insert into t values (42)",
        )
        .expect_success();
    }
    let place = server.scratch().join("space");
    std::fs::create_dir(&place).unwrap();
    server.psql(&format!(
        "create tablespace space location '{}'",
        place.display()
    ));
    source.backup();

    transaction(server, "insert into log values (1)");
    let dropped = transaction(server, "drop table orders");
    transaction(server, "insert into log values (2)");
    server.psql("drop database victim");
    transaction(server, "insert into log values (3)");
    server.psql("alter database moved set tablespace space");
    transaction(server, "insert into log values (4)");
    server.psql("drop database moved");
    server.psql("drop tablespace space");
    transaction(server, "insert into log values (5)");
    source.wait_stored();

    let found = log(&source, &["--last", "100"]);
    let drops = log(&source, &["--drops"]);
    let events = |entry: &Entry| -> Vec<String> {
        let events = entry.json["events"].as_array().unwrap().iter();
        events
            .map(|event| {
                format!("{} {} {}", event["what"], event["kind"], event["name"]).replace('"', "")
            })
            .collect()
    };
    let what: Vec<(Vec<String>, usize)> = drops
        .iter()
        .map(|entry| (events(entry), entry.fates.len()))
        .collect();
    let expected = [
        (vec!["dropped tablespace space".to_owned()], 0),
        (vec!["dropped database moved".to_owned()], 0),
        (vec!["dropped database victim".to_owned()], 0),
        (vec![], 1),
    ];
    assert_eq!(what, expected, "{drops:#?}");

    // Others that committed later are what is lost.
    let later = |entry: &Entry| {
        found
            .iter()
            .position(|other| other.xid == entry.xid)
            .unwrap() as u64
    };
    for entry in &drops {
        assert_eq!(entry.lost, later(entry), "{:#}", entry.json);
        let early = entry.fates.is_empty();
        let because = if early { "acts-before-commit" } else { "lock" };
        assert_eq!(entry.json["target"]["because"], because, "{:#}", entry.json);
    }

    let table = find(&found, dropped);
    let restored = restore(&source, table, "table");
    assert_eq!(
        restored.client.psql("select count(*), sum(n) from orders"),
        "100|5050"
    );
    assert_eq!(
        restored
            .client
            .psql("select string_agg(n::text, ',' order by n) from log"),
        "1"
    );
    drop(restored);

    let victim = &drops[2];
    let restored = restore(&source, victim, "victim");
    assert_eq!(
        restored
            .client
            .psql("select string_agg(n::text, ',' order by n) from log"),
        "1,2"
    );
    let row = query(&restored.client, "victim", "select n from t").expect_success();
    assert_eq!(row.stdout.trim(), "42");
    drop(restored);
    // Just before the commit is too late: this is why the log gives another place.
    let late = restore_to(&source, &victim.commit_lsn, "late");
    let refused = query(&late.client, "victim", "select n from t");
    assert_ne!(refused.code(), 0, "{refused}");
    drop(late);

    let moved = found
        .iter()
        .find(|entry| events(entry) == ["moved database moved"])
        .expect("the move");
    let restored = restore(&source, moved, "moved");
    let row = query(&restored.client, "moved", "select n from t").expect_success();
    assert_eq!(row.stdout.trim(), "42");
    let place = "select coalesce(nullif(spcname, 'pg_default'), 'none') from pg_database d join pg_tablespace s on s.oid = dattablespace where datname = 'moved'";
    assert_eq!(restored.client.psql(place), "none");
}

#[test]
fn dropped_things_come_back_on_18() {
    dropped_things_come_back(Server::builder(18));
}

#[test]
fn dropped_things_come_back_on_15() {
    dropped_things_come_back(Server::builder(15));
}
