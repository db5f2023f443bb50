//! The whole path on the majors that other tests look at less: made, streamed, backed up, lost, and brought back to just before.

use crate::support::postgres::Server;
use crate::support::wait_until;
use crate::support::walden::{Walden, wait_until_stored};
use std::fs;
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(60);
const ROWS: &str = "select count(*), md5(string_agg(t::text, ',' order by id)) from t";

fn loses_a_table_and_gets_it_back(major: u32) {
    let server = Server::builder(major).wal_segment_mib(1).start();
    let etc = server.scratch().join("etc");
    fs::create_dir(&etc).expect("make a folder");
    let walden = Walden::in_directory(&etc);
    let url = format!("file://{}", server.scratch().join("repository").display());
    walden
        .run(["init", &url, "--postgres", &server.conninfo()])
        .expect_success();
    let file = etc.join("walden.toml");
    let config = fs::read_to_string(&file).expect("read the configuration");
    fs::write(&file, config.replace("rpo = \"5s\"", "rpo = \"300ms\"")).expect("write it");
    let run = walden.receive(&server, ["run"]);
    server.psql("create table t (id int primary key, at timestamptz default clock_timestamp())");
    server.psql("insert into t select generate_series(1, 5000)");
    walden.run(["backup", "--fast-checkpoint"]).expect_success();
    server.psql("insert into t select generate_series(5001, 20000)");
    let before = server.psql(ROWS);
    assert!(before.starts_with("20000|"), "{before}");
    // A moment after the last commit, to the microsecond, and before the loss.
    let moment = server.psql(
        "select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')",
    );
    server.psql("drop table t");
    wait_until_stored(&server);

    let data = server.scratch().join("restored");
    let identity = format!("file:{}", etc.join("walden.key").display());
    let pgdata = data.to_str().expect("UTF-8");
    let bin = crate::support::postgres::tool(major, "postgres");
    let bin = bin.parent().expect("a folder").to_str().expect("UTF-8");
    let path = format!("{bin}:{}", std::env::var("PATH").expect("PATH"));
    walden
        .env("PATH", path)
        .run([
            "restore",
            "--to",
            &moment,
            "--identity",
            &identity,
            "--no-start",
            "-D",
            pgdata,
        ])
        .expect_success();
    let mut restored = Server::over_directory(major, &data);
    restored.start();
    wait_until("recovery pauses at its target", DEADLINE, || {
        (restored.psql("select pg_get_wal_replay_pause_state()") == "paused").then_some(())
    });
    assert_eq!(restored.psql(ROWS), before, "PostgreSQL {major}");
    drop(run);
}

#[test]
fn postgresql_16_and_17_lose_a_table_and_get_it_back() {
    for major in [16, 17] {
        loses_a_table_and_gets_it_back(major);
    }
}
