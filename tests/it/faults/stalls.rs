//! What never answers: each wait ends when it was said to, measured at the proxy, and what waited goes on.

use super::kills::finish_segment;
use super::{DEADLINE, Rig};
use crate::run::write_wal;
use crate::support::fault_proxy::server::Trap;
use crate::support::fault_proxy::{Fault, Rule};
use crate::support::oracle::{Oracle, assert_same_rows, rows};
use crate::support::process;
use crate::support::wait_until;
use crate::support::wal_dump::Target;
use std::fs;
use std::time::{Duration, Instant};

/// What a request may take.
const REQUEST: Duration = Duration::from_secs(30);
/// For its bytes, and on a machine that does other things too.
const MARGIN: Duration = Duration::from_secs(6);

/// At once, because each takes half a minute: a chunk, a part of a backup, a pushed segment and a part of a restore are taken by the store
/// and never answered.
#[test]
fn a_request_that_is_never_answered_ends_at_its_deadline_and_is_made_again() {
    let mut rig = Rig::new(18, "100ms");
    let run = rig.site.archive(&rig.server);
    let backup = ["backup", "--fast-checkpoint"];
    rig.site.walden.run(backup).expect_success();
    let mut oracle = Oracle::prepare(&rig.server, rig.seed);
    oracle.run(&rig.server, 2, Duration::from_secs(1));
    write_wal(&rig.server, 1);
    crate::run::wait_until_flushed(&rig.server);
    let expected = oracle.rows_at(&oracle.dump(&rig.server), &Target::Latest);

    // A login that is never answered: the connection string says how long.
    let folder = rig.server.scratch().join("walden");
    let text = fs::read_to_string(folder.join("walden.toml")).expect("read it");
    let impatient = text.replace("dbname=postgres\"", "dbname=postgres connect_timeout=2\"");
    assert_ne!(impatient, text);
    fs::write(folder.join("impatient.toml"), impatient).expect("write it");
    rig.postgres.arm([Trap {
        fault: Fault::Stall,
        after: 0,
    }]);
    let arguments = ["backup", "--config", "impatient.toml"];
    let output = rig.site.walden.run(arguments).expect_code(1);
    rig.postgres.calm();
    assert!(output.took < Duration::from_secs(2) + MARGIN, "{output}");
    let held = rig.postgres.take_held();
    assert!(
        held.iter()
            .all(|held| *held < Duration::from_secs(2) + MARGIN),
        "{held:?}"
    );

    // People who look do not wait for half a minute.
    rig.store.arm([Rule::next(Fault::Stall)
        .on("GET", "list-type")
        .times(u32::MAX)]);
    let looked = rig.site.walden.run(["status"]);
    rig.store.calm();
    assert_ne!(looked.code(), 0, "{looked}");
    assert!(looked.took < Duration::from_secs(8) + MARGIN, "{looked}");

    let path = finish_segment(&rig.server);
    let name = path.file_name().expect("a name").to_str().expect("UTF-8");
    rig.store.take_fates();
    let stalled = |method, part| Rule::next(Fault::Stall).on(method, part);
    let begun = Instant::now();
    // First a chunk: none is made while a segment is on its way.
    rig.store.arm([stalled("PUT", "/tail/")]);
    rig.server.psql("create table waited_for ()");
    wait_until("a chunk is stalled", DEADLINE, || {
        rig.store.all_fired().then_some(())
    });
    rig.store.arm([
        Rule::next(Fault::StallInAnswer).on("PUT", "/wal/"),
        stalled("PUT", "/manifest"),
        Rule::next(Fault::StallInAnswer).on("GET", "/base."),
    ]);
    let backing_up = rig.site.walden.start(backup);
    let pushing = rig.hook(&["archive-push", &format!("pg_wal/{name}")]);
    let restored = rig.restorer.place("stalled");
    let arguments = rig.restorer.arguments(&restored, &["--to", "latest"]);
    let restoring = rig.restorer.walden.start(&arguments);
    write_wal(&rig.server, 1);
    pushing.wait(DEADLINE).expect_success();
    backing_up.wait(DEADLINE).expect_success();
    restoring.wait(DEADLINE).expect_success();
    let took = begun.elapsed();
    assert_same_rows("stalled", &expected, &rows(&restored.client));
    drop(restored);
    rig.store.calm();
    let fates = rig.store.take_fates();
    let held: Vec<_> = fates
        .iter()
        .filter(|fate| matches!(fate.fault, Some(Fault::Stall | Fault::StallInAnswer)))
        .collect();
    assert_eq!(held.len(), 4, "{held:?}");
    for fate in &held {
        assert!(fate.took >= REQUEST - Duration::from_secs(1), "{fate:?}");
        assert!(fate.took <= REQUEST + MARGIN, "{fate:?}");
        // The same again, and then it was done.
        let again = fates.iter().find(|later| {
            later.target == fate.target
                && later.method == fate.method
                && later.arrived > fate.arrived
                && later.fault.is_none()
        });
        assert!(again.is_some(), "{fate:?} was not made again");
    }
    process::note(&format!(
        "stalled for {:?}; all went on after {took:?}",
        held.iter().map(|fate| fate.took).collect::<Vec<_>>()
    ));
    rig.assert_promises(run, &oracle);
}
