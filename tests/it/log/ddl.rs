//! What becomes of whole relations: dropped, truncated, rewritten, created, told apart where WAL can tell, by name where a snapshot has one.

use super::{Source, find, log, transaction};
use crate::support::postgres::{Builder, Server};
use crate::support::wal_dump::Lsn;
use std::collections::BTreeMap;

fn fates(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(name, fate)| ((*name).to_owned(), (*fate).to_owned()))
        .collect()
}

fn relations_are_followed(builder: Builder) {
    let source = Source::start(builder.wal_segment_mib(1).setting("autovacuum = off"), true);
    let server = &source.server;
    let make = |name: &str| {
        server.psql(&format!(
            "create table {name} (id serial primary key, n int, t text);
             insert into {name} (n, t) select n, repeat('x', 100) from generate_series(1, 50) n"
        ));
    };
    for name in [
        "dropped",
        "truncated",
        "refilled",
        "retyped",
        "vacuumed",
        "swapped",
        "kept",
        "twice",
    ] {
        make(name);
    }
    server.psql(
        "create table plain (n int); insert into plain values (1);
         create table parted (n int) partition by list (n); create table parted_1 partition of parted for values in (1);
         create view looks as select * from kept; create materialized view seen as select * from kept",
    );
    let backup = source.backup();
    let label = backup["label"].as_str().unwrap();

    let dropped = transaction(server, "drop table dropped");
    let truncated = transaction(server, "truncate truncated");
    let refilled = transaction(
        server,
        "truncate refilled; insert into refilled (n) select 1 from generate_series(1, 9)",
    );
    let retyped = transaction(server, "alter table retyped alter column n type bigint");
    let full_before = server.psql("select pg_relation_filenode('vacuumed')");
    server.psql("vacuum full vacuumed");
    assert_ne!(
        server.psql("select pg_relation_filenode('vacuumed')"),
        full_before
    );
    let both = transaction(server, "drop table swapped; create table new_one (n int)");
    let parted = transaction(server, "drop table parted");
    let views = transaction(server, "drop view looks; drop materialized view seen");
    let young = transaction(
        server,
        "create table young (n int); insert into young select generate_series(1, 3)",
    );
    let young_file = server.psql("select '1663/' || d.oid || '/' || pg_relation_filenode('young') from pg_database d where datname = current_database()");
    let young_dropped = transaction(server, "drop table young");
    // A table without an index: the one rewrite that is certain to be one.
    let plain = transaction(server, "truncate plain");
    let after_plain = transaction(server, "insert into plain values (2), (3)");
    let twice = transaction(server, "alter table twice alter column n type bigint");
    let twice_dropped = transaction(server, "drop table twice");
    let rolled_back =
        server.psql("begin; drop table kept; select 'xid ' || pg_current_xact_id(); rollback");
    source.wait_stored();

    let found = log(&source, &["--last", "200"]);
    let check = |xid: u32, expected: &[(&str, &str)]| {
        let entry = find(&found, xid);
        let named: BTreeMap<String, String> = entry
            .fates
            .iter()
            .filter(|(name, _)| !name.starts_with("pg_toast.") && !name.starts_with("16"))
            .map(|(name, fate)| (name.clone(), fate.clone()))
            .collect();
        assert_eq!(named, fates(expected), "{:#}", entry.json);
        for relation in entry.json["relations"].as_array().unwrap() {
            if !relation["name"].is_null() {
                assert_eq!(relation["name_from_backup"], label, "{relation:#}");
            }
        }
    };
    check(
        dropped,
        &[
            ("public.dropped", "dropped"),
            ("public.dropped_id_seq", "dropped"),
        ],
    );
    check(truncated, &[("public.truncated", "truncated")]);
    let refilled_fate = match server.psql("show wal_level").as_str() {
        // The record says so.
        "logical" => "truncated",
        _ => "rewritten",
    };
    check(refilled, &[("public.refilled", refilled_fate)]);
    check(retyped, &[("public.retyped", "rewritten")]);
    let full: Vec<_> = found
        .iter()
        .filter(|entry| {
            entry
                .fates
                .get("public.vacuumed")
                .is_some_and(|fate| fate != "created")
        })
        .collect();
    assert_eq!(full.len(), 1);
    check(full[0].xid, &[("public.vacuumed", "rewritten")]);
    check(
        both,
        &[
            ("public.swapped", "dropped"),
            ("public.swapped_id_seq", "dropped"),
        ],
    );
    let new_one: Vec<_> = find(&found, both)
        .fates
        .iter()
        .filter(|(name, _)| name.starts_with("1663/"))
        .collect();
    assert_eq!(new_one.len(), 1);
    assert_eq!(new_one[0].1, "created");
    check(
        parted,
        &[("public.parted", "dropped"), ("public.parted_1", "dropped")],
    );
    check(
        views,
        &[("public.looks", "dropped"), ("public.seen", "dropped")],
    );
    assert_eq!(
        find(&found, young).fates,
        fates(&[(&young_file, "created")])
    );
    assert_eq!(find(&found, young).rows[&young_file], (3, 0, 0));
    assert_eq!(
        find(&found, young_dropped).fates,
        fates(&[(&young_file, "dropped")])
    );
    // No backup has seen it; the row that gave it its name is in the WAL.
    let dropped_again = &find(&found, young_dropped).json["relations"][0];
    let created_as = &dropped_again["created_as"];
    assert_eq!(created_as["name"], "young", "{dropped_again:#}");
    assert_eq!(created_as["schema_oid"], 2200);
    assert_eq!(
        format!(
            "1663/{}/{}",
            dropped_again["database_oid"], created_as["oid"]
        ),
        young_file
    );
    let born = Lsn::parse(created_as["lsn"].as_str().unwrap());
    let creation = find(&found, young);
    let began = Lsn::parse(creation.json["start_lsn"].as_str().unwrap());
    assert!(began <= born && born < Lsn::parse(&creation.commit_lsn));
    check(plain, &[("public.plain", "truncated")]);
    let followed = find(&found, after_plain);
    assert_eq!(
        followed.rows["public.plain"],
        (2, 0, 0),
        "{:#}",
        followed.json
    );
    assert_eq!(
        followed.json["relations"][0]["name_from"],
        "snapshot-and-rewrites"
    );
    check(twice, &[("public.twice", "rewritten")]);
    // Its file is not the one of the snapshot any more, its OID is.
    let again = &find(&found, twice_dropped).fates;
    assert_eq!(
        again.get("public.twice").map(String::as_str),
        Some("dropped"),
        "{again:?}"
    );
    let undone: u32 = rolled_back
        .lines()
        .find_map(|line| line.strip_prefix("xid "))
        .unwrap()
        .parse()
        .unwrap();
    assert!(!found.iter().any(|entry| entry.xid == undone));

    let xids = |arguments: &[&str]| -> Vec<u32> {
        let mut found: Vec<u32> = log(&source, arguments)
            .iter()
            .map(|entry| entry.xid)
            .collect();
        found.sort_unstable();
        found
    };
    assert_eq!(
        xids(&["--drops"]),
        [dropped, both, parted, views, young_dropped, twice_dropped]
    );
    let truncates = xids(&["--truncates"]);
    for xid in [truncated, plain] {
        assert!(truncates.contains(&xid), "{truncates:?}");
    }
    assert_eq!(truncates.contains(&refilled), refilled_fate == "truncated");
    assert!(!truncates.contains(&dropped) && !truncates.contains(&retyped));

    // A later backup knows what this one did not.
    let later = transaction(
        server,
        "create table later (n int primary key); insert into later values (1)",
    );
    let second = source.backup();
    source.wait_stored();
    let entry = log(&source, &["--xid", &later.to_string()]).remove(0);
    assert_eq!(entry.rows["public.later"], (1, 0, 0), "{:#}", entry.json);
    let relation = &entry.json["relations"][0];
    assert_eq!(
        (&relation["name_from"], &relation["name_from_backup"]),
        (&"later-snapshot".into(), &second["label"])
    );
    assert_eq!(
        log(&source, &["--drops", "--last", "1"])[0].xid,
        twice_dropped
    );
}

#[test]
fn relations_are_followed_on_18() {
    relations_are_followed(Server::builder(18));
}

#[test]
fn relations_are_followed_on_15_with_logical_wal() {
    relations_are_followed(Server::builder(15).setting("wal_level = logical"));
}
