//! The log of a repository in an object store, which lists and answers otherwise than a folder: what it prints for a dropped table is restored to.

use super::{Entry, entries, json, transaction};
use crate::support::object_store::Bucket;
use crate::support::postgres::Server;
use crate::support::restored::Restorer;
use crate::support::walden::{Walden, wait_until_stored};

#[test]
fn a_drop_is_found_in_an_object_store_and_undone() {
    let bucket = Bucket::new();
    let (mut restorer, builder) = Restorer::for_source(Server::builder(18).wal_segment_mib(1));
    let server = builder.start();
    restorer.url = bucket.url("log");
    restorer.walden = restorer.walden.envs(bucket.environment());
    let archiver = Walden::in_directory(server.scratch()).envs(bucket.environment());
    let conninfo = server.conninfo();
    let arguments = ["init", &restorer.url, "--postgres", &conninfo];
    archiver.run(arguments).expect_success();
    let key = server.scratch().join("walden.key");
    restorer.identity = Some(format!("file:{}", key.display()));
    let run = archiver.receive(&server, ["run", "--rpo", "200ms"]);
    server.psql("create table orders (n int); create table journal (n int)");
    server.psql("insert into orders select generate_series(1, 100)");
    archiver
        .run(["backup", "--fast-checkpoint"])
        .expect_success();

    for number in 1..=3 {
        server.psql("select pg_switch_wal()");
        transaction(&server, &format!("insert into journal values ({number})"));
    }
    let dropped = transaction(&server, "drop table orders");
    for number in 4..=5 {
        transaction(&server, &format!("insert into journal values ({number})"));
        server.psql("select pg_switch_wal()");
    }
    wait_until_stored(&server);
    drop(run);

    let log = |more: &[&str]| -> Vec<Entry> {
        let identity = restorer.identity.as_deref().unwrap();
        let mut line = vec!["log", &restorer.url, "--identity", identity, "--json"];
        line.extend(more);
        entries(&json(&restorer.walden.run(line).expect_success()))
    };
    let drops = log(&["--drops"]);
    let [found] = drops.as_slice() else {
        panic!("{drops:#?}")
    };
    assert_eq!((found.xid, found.lost), (dropped, 2), "{:#}", found.json);
    assert_eq!(found.fates["public.orders"], "dropped");
    let all = log(&["--last", "100"]);
    assert_eq!(super::find(&all, dropped), found);

    let command = found.json["target"]["command"].as_str().unwrap();
    let (start, target) = command.split_once(" --to-lsn ").unwrap();
    assert!(start.contains(" s3://"), "{command}");
    let lsn = target.split(' ').next().unwrap();
    let restored = restorer.restore("before", &["--to-lsn", lsn, "--exclusive"]);
    let rows = "select (select count(*) from orders) || ' ' || (select string_agg(n::text, ',' order by n) from journal)";
    assert_eq!(restored.client.psql(rows), "100 1,2,3");
}
