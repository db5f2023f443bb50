//! One of two repositories is down: before the start, in the middle, by hanging, by refusing; under `any` and under `all`.

use super::{DEADLINE, Pair, terminate};
use crate::support::door::Way;
use crate::support::process::{Running, note, peak_memory};
use crate::support::wait_until;
use crate::support::walden::wait_until_stored;
use serde_json::json;
use std::time::{Duration, Instant};

/// What the receiver may take, and what a process takes anyway.
const MEMORY_BOUND: u64 = (256 + 96) << 20;

/// What it lacked may be there before the repository that was behind takes part again.
#[track_caller]
fn takes_part_again(run: &Running) {
    wait_until("it takes part again", DEADLINE, || {
        run.printed().1.contains("caught up").then_some(())
    });
}

#[test]
fn under_any_a_store_that_hangs_slows_nobody_and_is_filled_up() {
    let mut pair = Pair::new("'any'", 16);
    let run = pair.archive();
    pair.walden
        .run(["backup", "--fast-checkpoint"])
        .expect_success();
    wait_until_stored(&pair.server);
    pair.far.set(Way::Held);
    let begun = Instant::now();
    pair.write("hung", 160);
    wait_until_stored(&pair.server);
    let took = begun.elapsed();
    let peak = peak_memory(run.id()).expect("it runs");
    note(&format!(
        "160 MiB beside a store that hangs: {took:?}, peak {} MiB",
        peak >> 20
    ));
    assert!(pair.far.met() > 0, "nobody met the door");
    assert!(peak < MEMORY_BOUND, "{peak}");
    let (near, far) = (pair.near_objects().len(), pair.far_paths().len());
    assert!(
        far + 5 < near,
        "the far one was not behind: {far} of {near}"
    );
    pair.far.set(Way::Open);
    pair.wait_until_same();
    takes_part_again(&run);
    pair.write("hung", 1);
    wait_until_stored(&pair.server);
    pair.wait_until_same();
    let log = terminate(run);
    assert!(log.contains("holds up the others"), "{log}");
    pair.assert_each_restores("hung");
}

#[test]
fn under_all_the_server_keeps_what_one_lacks() {
    let mut pair = Pair::new("'all'", 1);
    let run = pair.archive();
    pair.walden
        .run(["backup", "--fast-checkpoint"])
        .expect_success();
    wait_until_stored(&pair.server);
    pair.far.set(Way::Shut);
    let before = pair.flushed();
    pair.write("kept", 12);
    std::thread::sleep(Duration::from_secs(2));
    let during = pair.flushed();
    assert!(pair.far.met() > 0, "nobody met the door");
    let written = pair.server.psql("select pg_current_wal_flush_lsn()");
    let behind = format!("select '{written}'::pg_lsn - '{during}'::pg_lsn > 8 * 1024 * 1024");
    assert_eq!(
        pair.server.psql(&behind),
        "t",
        "{before} {during} {written}"
    );
    let status = pair.walden.run(["status", "--json"]).expect_code(3).json();
    let (near, far) = (&status["repositories"][0], &status["repositories"][1]);
    assert_eq!(
        (&near["name"], &near["state"]),
        (&json!("near"), &json!("level"))
    );
    assert_eq!(
        (&far["name"], &far["state"]),
        (&json!("far"), &json!("unreachable"))
    );
    assert!(
        far["error"].is_string() && near["durable_lsn"].is_string(),
        "{status}"
    );
    let problems = status["problems"].to_string();
    let told = [
        "repository far cannot be asked",
        "fewer repositories are level than ack asks for",
    ];
    assert!(
        told.iter().all(|what| problems.contains(what)),
        "{problems}"
    );
    // Killed meanwhile: what it starts from is what is stored, and the slot has the rest.
    run.kill();
    let run = pair.walden.start(["run"]);
    std::thread::sleep(Duration::from_secs(1));
    pair.far.set(Way::Open);
    wait_until_stored(&pair.server);
    pair.wait_until_same();
    terminate(run);
    pair.assert_each_restores("kept");
}

#[test]
fn one_that_is_down_at_the_start_is_filled_when_it_comes() {
    for ack in ["'any'", "{ quorum = 1 }", "'all'"] {
        let pair = Pair::new(ack, 1);
        pair.far.set(Way::Shut);
        let run = pair.archive();
        pair.write("started", 6);
        wait_until("the near one has it", DEADLINE, || {
            (pair.near_objects().len() > 8).then_some(())
        });
        if ack != "'all'" {
            wait_until_stored(&pair.server);
        }
        assert!(!pair.far_paths().iter().any(|path| path.ends_with(".wal")));
        pair.far.set(Way::Open);
        wait_until_stored(&pair.server);
        takes_part_again(&run);
        pair.wait_until_same();
        terminate(run);
    }
}
