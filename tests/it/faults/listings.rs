//! Listings that come late or lack an object, while every object can be fetched: nobody takes what is not listed for absent, where asking for
//! it would have told. S3 itself lists what it holds; not every store that speaks its protocol does.
//!
//! What cannot be asked for by name, and so is believed to be absent: tail chunks (whoever wrote one is part of its name), partial segments, and
//! backups. Where a listing lacks one of these, the end of the WAL comes earlier by what was not yet sealed, or an older backup is
//! taken.

use super::{DEADLINE, Rig};
use crate::run::{FIRST, flushed, wait_until_flushed, write_wal};
use crate::site::Site;
use crate::support::fault_proxy::{Fault, Rule};
use crate::support::oracle::Oracle;
use crate::support::process;
use crate::support::wait_until;
use std::collections::BTreeSet;
use std::fs;
use std::time::Instant;
use wal_format::SegmentName;

/// Plans that are made with one object unlisted.
const ROUNDS: usize = 6;

fn sealed(site: &Site) -> BTreeSet<SegmentName> {
    let mut catalog = site.catalog();
    let objects = catalog.timelines.remove(&FIRST).unwrap_or_default();
    objects.segments.into_keys().collect()
}

fn has_gap(rig: &Rig) -> bool {
    let keys = rig.bucket.list("");
    keys.iter().any(|key| key.contains("/gaps/"))
}

#[test]
fn what_is_not_listed_is_not_taken_for_absent() {
    let mut rig = Rig::new(18, "100ms");
    let before_all = Instant::now();
    let mut run = rig.site.archive(&rig.server);
    let backup = ["backup", "--fast-checkpoint"];
    rig.site.walden.run(backup).expect_success();
    let mut oracle = Oracle::prepare(&rig.server, rig.seed);
    let clients = oracle.start(&rig.server, 1);
    write_wal(&rig.server, 2);
    wait_until_flushed(&rig.server);
    let early = sealed(&rig.site);
    let moment = Instant::now();
    clients.wait_for_more(20, DEADLINE);
    write_wal(&rig.server, 3);
    oracle.stop(clients);
    wait_until_flushed(&rig.server);
    run.kill();
    let all = sealed(&rig.site);
    let late: Vec<SegmentName> = all.difference(&early).copied().collect();
    assert!(late.len() >= 2, "{late:?}");
    let lists = |fault| Rule::next(fault).on("GET", "list-type");
    let as_of = |moment| lists(Fault::ListedAsOf(moment)).times(u32::MAX);

    // The receiver: the server has no longer what seems to be missing. That is no gap, however often it looks.
    let (pg_wal, away) = (
        rig.server.wal_directory(),
        rig.server.scratch().join("away"),
    );
    fs::create_dir(&away).expect("make a folder");
    for name in &late {
        let name = name.to_string();
        fs::rename(pg_wal.join(&name), away.join(&name)).expect("move it away");
    }
    rig.store.arm([as_of(moment)]);
    run = rig.site.walden.start(["run"]);
    wait_until("it has tried again, twice", DEADLINE, || {
        assert!(run.is_running(), "{:?}", run.printed());
        let (_, log) = run.printed();
        assert!(!has_gap(&rig), "a gap of what is stored\n{log}");
        (log.matches("trying again").count() > 1).then_some(())
    });
    rig.store.calm();
    wait_until("it receives", DEADLINE, || flushed(&rig.server));
    for name in &late {
        let name = name.to_string();
        fs::rename(away.join(&name), pg_wal.join(&name)).expect("move it back");
    }
    write_wal(&rig.server, 1);
    wait_until_flushed(&rig.server);
    run.kill();

    // Plans: the right end, or none.
    let latest = ["--to", "latest"];
    let end = |plan: &serde_json::Value| plan["stop_record_lsn"].to_string();
    let truth = end(&rig.restorer.plan(&latest));
    assert_ne!(truth, "null");
    // The first is of the clusters.
    let late_twice = lists(Fault::ListedAsOf(moment)).after(1).times(2);
    rig.store.arm([late_twice]);
    assert_eq!(end(&rig.restorer.plan(&latest)), truth);
    rig.store.calm();
    let place = rig.restorer.place("never");
    let arguments = rig.restorer.arguments(&place, &latest);
    rig.store.arm([as_of(moment)]);
    let refused = rig.restorer.walden.run(&arguments).expect_code(1);
    rig.store.calm();
    assert!(refused.stderr.contains("listing lacks it"), "{refused}");
    assert!(!place.data.exists());
    let mut left_out = Vec::new();
    for _ in 0..ROUNDS {
        rig.store.arm([lists(Fault::Unlisted(".wal")).after(1)]);
        assert_eq!(end(&rig.restorer.plan(&latest)), truth);
        rig.store.calm();
        let unlisted = rig.store.take_unlisted();
        assert_eq!(unlisted.len(), 1, "{unlisted:?}");
        left_out.extend(unlisted);
    }

    // The hook: what is stored is served, whatever is listed; and where something follows, its absence is a hole.
    let place = rig.server.scratch().join("fetched");
    let destination = place.to_str().expect("a path in UTF-8");
    let get = |name: &str| rig.hook(&["archive-get", name, destination]).wait(DEADLINE);
    let first = all.first().expect("many");
    let missing = first
        .number(rig.site.size)
        .and_then(wal_format::SegmentNumber::previous);
    let missing = SegmentName::new(
        FIRST,
        missing.expect("it is not the first of all"),
        rig.site.size,
    );
    rig.store.arm([as_of(before_all)]);
    for name in [first, &late[0], late.last().expect("two")] {
        let name = name.to_string();
        get(&name).expect_success();
        assert!(
            fs::read(&place).expect("read it") == fs::read(pg_wal.join(&name)).expect("read it")
        );
        fs::remove_file(&place).expect("remove it");
    }
    get(&missing.to_string()).expect_code(126);
    get("0000000100000000000000F0").expect_code(1);
    rig.store.calm();
    for part in [".wal", "/tail/"] {
        rig.store
            .arm([lists(Fault::Unlisted(part)).times(u32::MAX)]);
        get(&missing.to_string()).expect_code(126);
        rig.store.calm();
    }
    left_out.extend(rig.store.take_unlisted());
    process::note(&format!(
        "late listings: {:?}; left out: {left_out:?}",
        rig.store.fired()
    ));
    let run = rig.site.archive(&rig.server);
    assert!(!has_gap(&rig));
    rig.assert_promises(run, &oracle);
}
