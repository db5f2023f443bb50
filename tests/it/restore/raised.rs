//! WAL of a server that was started with larger settings after the backup: replay pauses there, which is not the target, and goes on once the
//! restored server has them too.

use super::{DEADLINE, Source};
use crate::support::postgres::{Server, Stop};
use crate::support::wait_until;
use crate::support::walden::wait_until_stored;
use serde_json::json;

/// Some rows, and WAL for segments that the plan has no reason to read.
fn write(server: &Server, row: u32) {
    server.psql(&format!("insert into t values ({row})"));
    for _ in 0..3 {
        server.psql(
            "select pg_logical_emit_message(false, 'filler', repeat('x', 700000));\n\
             select pg_switch_wal()",
        );
    }
}

fn settings_that_grew_do_not_stop_it_early(major: u32) {
    let builder = Server::builder(major).wal_segment_mib(1);
    let mut source = Source::start(builder, true, None);
    source.server.psql("create table t (n int)");
    source.backup();
    write(&source.server, 1);
    for (row, settings) in [
        (2, "max_connections = 130"),
        (3, "max_connections = 140"),
        (4, "max_prepared_transactions = 7"),
    ] {
        let server = &mut source.server;
        server.psql(&format!("alter system set {settings}"));
        server.stop(Stop::Fast, DEADLINE);
        server.start();
        write(server, row);
    }
    write(&source.server, 5);
    wait_until("the receiver is back", DEADLINE, || {
        let active = "select count(*) from pg_stat_replication where state = 'streaming'";
        (source.server.psql(active) == "1").then_some(())
    });
    wait_until_stored(&source.server);

    for action in ["pause", "promote"] {
        let arguments = ["--to", "latest", "--action", action];
        let place = source.restorer.place(action);
        let arguments = source.restorer.arguments(&place, &arguments);
        let output = source.restorer.walden.run(arguments).expect_success();
        let copy = &place.client;
        assert_eq!(
            copy.psql("select string_agg(n::text, ' ' order by n) from t"),
            "1 2 3 4 5",
            "{output}"
        );
        let in_recovery = if action == "pause" { "t" } else { "f" };
        assert_eq!(copy.psql("select pg_is_in_recovery()"), in_recovery);
        assert_eq!(copy.psql("show max_connections"), "140");
        assert_eq!(copy.psql("show max_prepared_transactions"), "7");
        let raised = &output.json()["raised_settings"];
        let expected = json!({ "max_connections": 140, "max_prepared_transactions": 7 });
        assert_eq!(raised, &expected, "{output}");
    }
}

#[test]
fn settings_that_grew_after_the_backup_do_not_stop_a_restore_of_15_early() {
    settings_that_grew_do_not_stop_it_early(15);
}

#[test]
fn settings_that_grew_after_the_backup_do_not_stop_a_restore_of_18_early() {
    settings_that_grew_do_not_stop_it_early(18);
}
