//! The names in a backup are those that the server gives; a database that cannot be read is a warning and not a failed backup.

use crate::push::Site;
use crate::support::postgres::Server;
use crate::support::process::{self, COMMAND_DEADLINE, Output, Running, command};
use crate::support::wait_until;
use repository::names::{CatalogNames, FileLocator};
use rustix::process::Signal;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(60);

fn receive(site: &Site) -> Running {
    let run = site.walden.start(["run", "--rpo", "200ms"]);
    wait_until("walden run receives", DEADLINE, || {
        let active = "select active from pg_replication_slots where slot_name = 'walden'";
        (site.server.psql(active) == "t").then_some(())
    });
    run
}

fn json(output: &Output) -> Value {
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output}"))
}

/// The snapshot of a backup, decoded by `age` and `lz4`.
fn snapshot(site: &Site, backup: &Value) -> CatalogNames {
    let label = backup["label"].as_str().unwrap();
    let cluster = backup["system_identifier"].as_str().unwrap();
    let object = format!("{cluster}/backups/{label}/catalog");
    let plain = site.folder.join("catalog");
    let mut decode = command("sh");
    decode.args(["-euc", "age -d -i \"$1\" \"$2\" | lz4 -dc >\"$3\"", "-"]);
    decode
        .arg(site.folder.join("walden.key"))
        .arg(site.repository.join(&object))
        .arg(&plain);
    process::run(decode, COMMAND_DEADLINE).expect_success();
    let names = CatalogNames::parse(&fs::read(plain).unwrap(), &object).unwrap();
    assert_eq!(
        (
            names.label.as_str(),
            names.system_identifier.to_string().as_str()
        ),
        (label, cluster)
    );
    names
}

/// Everything the server says of one database's files: tablespace, database, file, kind, schema, name, table.
fn asked(server: &Server, database: &str) -> BTreeSet<String> {
    let mut psql = server.psql_command();
    psql.args(["-d", database, "-c"]);
    psql.arg(
        "select case c.reltablespace when 0 then d.dattablespace else c.reltablespace end || '/'
                || case c.relisshared when true then 0 else d.oid end || '/' || pg_relation_filenode(c.oid)
                || ' ' || c.relkind::text || ' ' || c.relnamespace::regnamespace::text || ' ' || replace(c.relname::text, e'\n', '~')
                || ' ' || coalesce((select i.indrelid from pg_index i where i.indexrelid = c.oid),
                                   (select t.oid from pg_class t where t.reltoastrelid = c.oid), 0)
         from pg_class c, pg_database d
         where d.datname = current_database() and pg_relation_filenode(c.oid) is not null",
    );
    let output = process::run(psql, COMMAND_DEADLINE).expect_success();
    output.stdout.lines().map(str::to_owned).collect()
}

/// Views, and what is partitioned.
fn count_without_files(server: &Server, database: &str) -> usize {
    let mut psql = server.psql_command();
    psql.args(["-d", database, "-c"]);
    psql.arg("select count(*) from pg_class where relkind in ('v', 'p', 'I', 'f')");
    let output = process::run(psql, COMMAND_DEADLINE).expect_success();
    output.stdout.trim().parse().unwrap()
}

fn told(names: &CatalogNames, databases: &[u32]) -> BTreeSet<String> {
    names
        .files()
        .filter(|(file, _)| databases.contains(&file.database))
        .map(|(file, relation)| {
            let FileLocator {
                tablespace,
                database,
                file,
            } = file;
            let (kind, schema) = (relation.kind, &relation.schema);
            let name = relation.name.replace('\n', "~");
            let owner = relation.owner.unwrap_or(0);
            format!("{tablespace}/{database}/{file} {kind} {schema} {name} {owner}")
        })
        .collect()
}

fn oid(server: &Server, database: &str) -> u32 {
    let oid = server.psql(&format!(
        "select oid from pg_database where datname = '{database}'"
    ));
    oid.parse().unwrap()
}

fn names_are_those_of_the_server(major: u32) {
    let server = Server::builder(major).wal_segment_mib(1).start();
    let place = server.scratch().join("space");
    fs::create_dir(&place).unwrap();
    server.psql(&format!(
        "create tablespace fast location '{}'",
        place.display()
    ));
    server.psql("create database \"Söng\" tablespace fast");
    server.psql("create database closed; alter database closed allow_connections false");
    let change = |database: &str, sql: &str| {
        let mut psql = server.psql_command();
        psql.args(["-d", database, "-c", sql]);
        process::run(psql, COMMAND_DEADLINE).expect_success();
    };
    change(
        "Söng",
        "create schema s; create table s.\"O'rders\n\" (id serial primary key, note text);
         create table s.parted (a int) partition by list (a); create table s.one partition of s.parted for values in (1) tablespace pg_default;
         create unlogged table u (a int); create materialized view m as select 1",
    );
    change("Söng", "vacuum full s.\"O'rders\n\", pg_class");
    let site = Site::new(server, None, &[]);
    let run = receive(&site);
    let server = &site.server;
    let before = server.psql("select pg_current_wal_insert_lsn()");
    let output = site
        .walden
        .run(["backup", "--fast-checkpoint", "--json"])
        .expect_success();
    let backup = json(&output);
    let names = snapshot(&site, &backup);
    assert_eq!(backup["warnings"], Value::Array(Vec::new()));
    assert_eq!(
        backup["names"]["databases"], 3,
        "closed and template0 are not read"
    );

    let mut compared = 0;
    let shared = asked(server, "postgres");
    for database in ["postgres", "template1", "Söng"] {
        let number = oid(server, database);
        let expected: BTreeSet<String> = asked(server, database);
        assert_eq!(told(&names, &[0, number]), expected, "{database}");
        compared += expected.len();
        let read = names.database(number).unwrap().read.clone().unwrap();
        let ordered = server.psql(&format!(
            "select '{before}'::pg_lsn <= '{0}' and '{0}' <= pg_current_wal_insert_lsn(), '{1}'::pg_snapshot is not null",
            read.lsn, read.snapshot
        ));
        assert_eq!(ordered, "t|t", "{read:?}");
    }
    let global = shared
        .iter()
        .filter(|line| line.starts_with("1664/0/"))
        .count();
    assert_eq!(told(&names, &[0]).len(), global, "shared relations once");
    assert_eq!(names.files().count(), compared - 2 * global);
    let fileless: usize = ["postgres", "template1", "Söng"]
        .iter()
        .map(|database| count_without_files(server, database))
        .sum();
    let told = backup["names"]["relations"].as_u64().unwrap() as usize;
    assert_eq!(told, names.files().count() + fileless);
    assert!(compared > 700, "{compared}");
    let closed = names.database(oid(server, "closed")).unwrap();
    assert_eq!((closed.name.as_str(), &closed.read), ("closed", &None));
    let space: u32 = server
        .psql("select oid from pg_tablespace where spcname = 'fast'")
        .parse()
        .unwrap();
    assert_eq!(names.tablespace(space), Some("fast"));
    let listed = json(&site.walden.run(["list", "--json"]).expect_success());
    assert_eq!(listed["backups"][0]["stored_bytes"], backup["stored_bytes"]);
    run.signal(Signal::TERM);
    run.wait(DEADLINE).expect_success();
}

#[test]
fn names_are_those_of_the_server_on_18() {
    names_are_those_of_the_server(18);
}

#[test]
fn names_are_those_of_the_server_on_15() {
    names_are_those_of_the_server(15);
}

#[test]
fn a_database_that_cannot_be_read_is_a_warning() {
    let server = Server::builder(18).wal_segment_mib(1).start();
    server.psql("create database locked; create database fine");
    let site = Site::new(server, None, &[]);
    let run = receive(&site);
    let mut blocker = site.server.psql_command();
    // Reading the catalog would wait for this lock.
    blocker.args([
        "-d",
        "locked",
        "-c",
        "begin; lock table pg_namespace; select pg_sleep(60)",
    ]);
    let blocker = Running::start(blocker);
    wait_until("the lock is held", DEADLINE, || {
        let held =
            "select count(*) from pg_locks where relation = 2615 and mode = 'AccessExclusiveLock'";
        (site.server.psql(held) == "1").then_some(())
    });
    let output = site
        .walden
        .run(["backup", "--fast-checkpoint", "--json"])
        .expect_code(3);
    let backup = json(&output);
    let warnings = backup["warnings"].as_array().unwrap();
    assert_eq!(warnings.len(), 1, "{backup}");
    let warning = warnings[0].as_str().unwrap();
    assert!(
        warning.contains("\"locked\"") && warning.contains("lock timeout"),
        "{warning}"
    );
    let names = snapshot(&site, &backup);
    let read = |database: &str| {
        let number = oid(&site.server, database);
        (
            names.database(number).unwrap().read.is_some(),
            told(&names, &[number]).is_empty(),
        )
    };
    assert_eq!(
        (read("locked"), read("fine")),
        ((false, true), (true, false))
    );
    let listed = json(&site.walden.run(["list", "--json"]).expect_success());
    assert_eq!(
        listed["backups"].as_array().unwrap().len(),
        1,
        "the backup counts"
    );
    blocker.kill();
    run.signal(Signal::TERM);
    run.wait(DEADLINE).expect_success();
}
