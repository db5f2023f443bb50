//! What `walden restore` lays out: PostgreSQL's own programs find no fault in it, tablespaces go where they are told, and a killed
//! restore is continued.

use super::{DEADLINE, Source, tree};
use crate::support::oracle::{Oracle, assert_same_rows, rows};
use crate::support::postgres::{Server, Stop, tool_command};
use crate::support::process::{self, COMMAND_DEADLINE};
use crate::support::wait_until;
use crate::support::wal_dump::Target;
use crate::support::walden::wait_until_stored;
use rustix::process::Signal;
use std::fs;
use std::time::Duration;

#[test]
fn what_is_laid_out_satisfies_the_programs_of_postgresql() {
    let source = Source::start(Server::builder(18).wal_segment_mib(1), true, None);
    let server = &source.server;
    server.pgbench(&["-i", "-q", "-s", "1"], DEADLINE);
    let mut oracle = Oracle::prepare(server, 33);
    let running = oracle.start(server, 2);
    running.wait_for_more(20, DEADLINE);
    source.backup();
    running.wait_for_more(20, DEADLINE);
    oracle.stop(running);
    server.pgbench(&["-c", "2", "-t", "200"], DEADLINE);
    wait_until_stored(server);

    let restored = source.restorer.restore(
        "laid 'out'",
        &["--to", "latest", "--action", "promote", "--no-start"],
    );
    assert_eq!(restored.said["started"], false);
    let mut verify = tool_command(18, "pg_verifybackup");
    verify.arg("-n").arg(&restored.data);
    process::run(verify, COMMAND_DEADLINE).expect_success();

    let mut copy = Server::over_directory(18, &restored.data);
    copy.start();
    wait_until("the copy is open for writing", DEADLINE, || {
        (copy.psql("select pg_is_in_recovery()") == "f").then_some(())
    });
    let dump = oracle.dump(server);
    let latest = oracle.rows_at(&dump, &Target::Latest);
    assert_same_rows("the copy", &latest, &rows(&copy));
    let sums = "select (select sum(abalance) from pgbench_accounts), (select count(*) from pgbench_history)";
    assert_eq!(copy.psql(sums), server.psql(sums));
    let mut check = copy.client("pg_amcheck");
    check.args(["--all", "--install-missing", "--heapallindexed"]);
    process::run(check, COMMAND_DEADLINE).expect_success();
    copy.stop(Stop::Fast, DEADLINE);
    let mut sums = tool_command(18, "pg_checksums");
    sums.arg("--check").arg("-D").arg(&restored.data);
    let sums = process::run(sums, COMMAND_DEADLINE).expect_success();
    let scanned = sums
        .stdout
        .lines()
        .find_map(|line| line.strip_prefix("Blocks scanned:"));
    let scanned: u64 = scanned.expect("blocks are counted").trim().parse().unwrap();
    assert!(scanned > 3000, "{sums}");
    process::note(&format!("pg_checksums found no fault in {scanned} blocks"));
}

#[test]
fn a_killed_restore_is_continued() {
    let source = Source::start(Server::builder(18), true, None);
    let server = &source.server;
    server.psql(
        "create table big as select g, repeat(md5(g::text), 30) as filler from generate_series(1, 60000) g",
    );
    let mut oracle = Oracle::prepare(server, 5);
    source.backup();
    oracle.run(server, 2, Duration::from_millis(300));
    wait_until_stored(server);

    let mut restored = source.restorer.place("killed");
    let arguments = source.restorer.arguments(&restored, &["--to", "latest"]);
    let state = restored.data.join("pg_wal/walden/restoring.json");
    let some_part = |text: String| !text.contains("\"parts\":[]");
    let moments: [(&str, &dyn Fn() -> bool); 3] = [
        ("it has begun", &|| state.exists()),
        ("it writes files", &|| restored.data.join("base/5").exists()),
        ("a part is written", &|| {
            fs::read_to_string(&state).is_ok_and(some_part)
        }),
    ];
    for (what, reached) in moments {
        let mut running = source.restorer.walden.start(&arguments);
        wait_until(what, DEADLINE, || {
            let now = reached();
            assert!(now || running.is_running(), "{:?}", running.printed());
            now.then_some(())
        });
        let killed = running.kill();
        assert_eq!(killed.status.code(), None, "{killed}");
        assert!(state.exists());
        assert!(!restored.data.join("global/pg_control").exists());
    }
    let output = source.restorer.walden.run(&arguments).expect_success();
    restored.said = output.json();
    assert_eq!(restored.said["resumed"], true);
    assert!(!state.exists());
    let dump = oracle.dump(server);
    let latest = oracle.rows_at(&dump, &Target::Latest);
    assert_same_rows("continued", &latest, &rows(&restored.client));
    let sum = "select count(*), sum(hashtext(filler)::bigint) from big";
    assert_eq!(restored.client.psql(sum), server.psql(sum));

    // Done is done: neither the running nor the stopped one is touched by another restore.
    let again = source.restorer.walden.run(&arguments).expect_code(1);
    assert!(again.stdout.contains("a server is running"), "{again}");
    assert!(restored.is_paused());
    restored.stop(Signal::QUIT);
    let before = tree(&restored.data);
    let again = source.restorer.walden.run(&arguments).expect_code(1);
    assert!(again.stdout.contains("a finished restore"), "{again}");
    assert_eq!(tree(&restored.data), before);
}

#[test]
fn tablespaces_move_where_they_are_mapped() {
    let source = Source::start(Server::builder(17).wal_segment_mib(1), true, None);
    let server = &source.server;
    let folder = server.scratch().join("sp ace \"q\" a=b 100%41 größer");
    let [used, empty] = ["used", "empty"].map(|name| {
        let place = folder.join(name);
        fs::create_dir_all(&place).unwrap();
        place.display().to_string()
    });
    server.psql(&format!(
        "create tablespace used location '{used}';
         create tablespace empty location '{empty}';
         create table there tablespace used as select generate_series(1, 5000) as n"
    ));
    source.backup();
    server.psql("insert into there values (0)");
    wait_until_stored(server);
    let before = tree(&folder);

    // Where they were they are still in use.
    let refused = source.restorer.place("refused");
    let arguments = source.restorer.arguments(&refused, &["--to", "latest"]);
    source.restorer.walden.run(arguments).expect_code(1);
    assert!(!refused.data.exists());
    assert_eq!(tree(&folder), before);

    let new = source.restorer.scratch.join("new = place");
    let escaped = |path: &str| path.replace('=', "\\=");
    let mapping = |old: &str, name: &str| {
        let new = new.join(name).display().to_string();
        format!("{}={}", escaped(old), escaped(&new))
    };
    let (used_mapping, empty_mapping) = (mapping(&used, "u'sed"), mapping(&empty, "empty"));
    let restored = source.restorer.restore(
        "moved",
        &[
            "--to",
            "latest",
            "--action",
            "promote",
            "--map-tablespace",
            &used_mapping,
            "--map-tablespace",
            &empty_mapping,
        ],
    );
    let copy = &restored.client;
    assert_eq!(copy.psql("select count(*), min(n) from there"), "5001|0");
    let places = copy.psql(
        "select pg_tablespace_location(oid) from pg_tablespace where spcname in ('used', 'empty') order by spcname desc",
    );
    let wanted = ["u'sed", "empty"].map(|name| new.join(name).display().to_string());
    assert_eq!(places, wanted.join("\n"));
    copy.psql(
        "insert into there select generate_series(6000, 7000);
         create table anew tablespace empty as select 1; checkpoint",
    );
    assert!(tree(&new.join("empty")).len() > 2);
    assert_eq!(tree(&folder), before, "the source's files are as they were");
}
