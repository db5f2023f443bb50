//! The server gives the slot up: what every command says, what goes on, and what can be restored.

use super::{Archived, DEADLINE, lsn, terminate};
use crate::support::oracle::{assert_same_rows, rows};
use crate::support::wait_until;
use crate::support::walden::wait_until_stored;
use repository::catalog::GapRange;
use serde_json::Value;
use std::time::Duration;

const KEEP: &str = "max_slot_wal_keep_size = 3MB";

/// `is_running`: the receiver cannot store anything meanwhile, and does not read what the server sends; else nobody uses the slot.
fn a_lost_slot(major: u32, is_running: bool) {
    // No checkpoint comes before we ask for one: the slot is lost when the receiver is known to be in the way.
    let settings = [KEEP, "max_wal_size = 1GB"];
    let settings = &settings[..if is_running { 2 } else { 1 }];
    let (mut archived, run) = Archived::start(major, settings, "", "[backup]\non_gap = true");
    let before = archived.work_to("before");
    let mut waiting = None;
    if is_running {
        archived.set_writable(false);
        waiting = Some(run);
    } else {
        terminate(run, 0);
    }
    let stored = archived.stored_end();
    archived.work(Duration::from_millis(300));
    if is_running {
        // More than it holds, and than is on the way to it.
        archived.write_wal(12);
        let sent =
            "select sent_lsn, sent_lsn < pg_current_wal_flush_lsn() from pg_stat_replication";
        let (mut last, mut times) = (String::new(), 0);
        wait_until("the server can send no more", DEADLINE, || {
            let now = archived.server.psql(sent);
            let is_stuck = now == last && now.ends_with("|t");
            (last, times) = (now, if is_stuck { times + 1 } else { 0 });
            (times == 20).then_some(())
        });
    }
    let lost = "select wal_status from pg_replication_slots where slot_name = 'walden'";
    wait_until("the slot is lost", DEADLINE, || {
        archived.write_wal(2);
        // While the slot is used it waits for the receiver, who has to let go.
        archived.server.psql("checkpoint");
        let log = archived.server.log();
        log.contains("invalidating").then_some(())
    });
    archived
        .server
        .psql("select pg_create_restore_point('within')");
    let within = archived.server.psql("select pg_current_wal_insert_lsn()");
    archived.write_until_removed_to(lsn(&within));
    if !is_running {
        let status = archived.json(&["status"], 5);
        assert!(status.to_string().contains("is lost"), "{status}");
    }

    // It goes on by itself.
    archived.set_writable(true);
    let run = waiting.unwrap_or_else(|| archived.receive());
    wait_until("a gap is on record", DEADLINE, || {
        (!archived.gaps().is_empty()).then_some(())
    });
    archived.write_wal(1);
    wait_until_stored(&archived.server);
    let gaps = archived.gaps();
    // While nothing could be stored the server may have removed more: then that is another one, right behind.
    assert!(is_running || gaps.len() == 1, "{gaps:?}");
    let adjoin = |pair: &[GapRange]| pair[0].to == pair[1].from;
    assert!(gaps.windows(2).all(adjoin), "{gaps:?}");
    let gap = gaps.first().expect("a gap");
    let last = gaps.last().expect("a gap");
    // What had arrived while nothing could be stored was kept and is not lost.
    let from = if is_running {
        gap.from.max(stored)
    } else {
        stored
    };
    assert_eq!(gap.from, from, "what is stored is not missing");
    assert!(last.to > lsn(&within), "what was lost is in the gap");
    archived.check_record();
    archived.check_nothing_stored_is_recorded();
    let reserved = archived.server.psql(lost);
    assert!(
        ["reserved", "extended"].contains(&reserved.as_str()),
        "{reserved}"
    );

    // Everybody says so.
    let id = gap.to_string();
    let status = archived.json(&["status"], 5);
    let said = status["stored"]["gaps"][0].clone();
    assert_eq!(
        (
            &said["from"],
            &said["to"],
            &said["recorded"],
            &said["acknowledged"]
        ),
        (
            &Value::from(gap.from.to_string()),
            &Value::from(gap.to.to_string()),
            &Value::from(true),
            &Value::from(false)
        )
    );
    let listed = archived.json(&["gap", "list"], 5);
    assert_eq!(listed["gaps"][0]["id"], id.as_str(), "{listed}");
    assert_eq!(listed["gaps"][0]["state"], "open");
    let why = listed["gaps"][0]["why"].as_str().expect("a reason");
    assert!(
        is_running || why.contains("max_slot_wal_keep_size"),
        "{why}"
    );
    assert!(why.contains("58P01"), "{why}");
    assert_eq!(archived.json(&["list"], 3)["gaps"][0], said);
    let window = archived.json(&["window"], 3);
    assert_eq!(window["repositories"][0]["gaps"][0], said);
    let verified = archived.json(&["verify"], 5);
    assert_eq!(verified["findings"][0]["problem"], "missing", "{verified}");

    // A backup is there by itself, and both sides of the gap can be restored; nothing crosses it.
    archived.wait_for_backup_behind(*last);
    let after = archived.work(Duration::from_millis(500));
    wait_until_stored(&archived.server);
    let restorer = &archived.restorer;
    for target in [["--to-name", "within"], ["--to-lsn", within.as_str()]] {
        let place = restorer.place("never");
        let refused = restorer.walden.run(restorer.arguments(&place, &target));
        assert!([4, 5].contains(&refused.code()), "{target:?}: {refused}");
        let refused = refused.stdout;
        assert!(refused.contains("reachable: 20"), "{target:?}: {refused}");
        assert!(!place.data.exists());
    }
    let restored = restorer.restore("before", &["--to-name", "before"]);
    assert_same_rows("before", &before, &rows(&restored.client));
    drop(restored);
    let restored = restorer.restore("after", &["--to", "latest"]);
    assert_same_rows("after", &after, &rows(&restored.client));
    drop(restored);

    // Somebody takes note.
    let ack = [
        "gap",
        "ack",
        id.as_str(),
        "--reason",
        "known: disk",
        "--by",
        "tester",
    ];
    let planned = archived.json(&ack, 3);
    assert_eq!(planned["outcome"], "planned", "{planned}");
    assert!(archived.site.catalog().acknowledged.is_empty());
    let mut confirmed = ack.to_vec();
    confirmed.push("--yes");
    let done = archived.json(&confirmed, 0);
    assert_eq!(done["outcome"], "acknowledged", "{done}");
    confirmed[4] = "something else";
    let again = archived.json(&confirmed, 0);
    assert_eq!(again["outcome"], "already-acknowledged");
    assert_eq!(again["gaps"][0]["acknowledgement"]["reason"], "known: disk");
    for more in gaps.iter().skip(1) {
        let id = more.to_string();
        let ack = ["gap", "ack", &id, "--reason", "x", "--by", "t", "--yes"];
        archived.site.walden.run(ack).expect_success();
    }
    let status = archived.json(&["status"], 0);
    assert_eq!(
        status["stored"]["gaps"][0]["acknowledged"], true,
        "{status}"
    );
    let text = archived.site.walden.run(["status"]).expect_success().stdout;
    assert!(text.contains("lost and acknowledged"), "{text}");
    let verified = archived.json(&["verify"], 0);
    assert!(verified["notes"].to_string().contains(&id), "{verified}");
    archived.json(&["list"], 0);
    let window = archived.json(&["window"], 3);
    assert_eq!(window["repositories"][0]["gaps"][0]["acknowledged"], true);
    let listed = archived.json(&["gap", "list"], 0);
    assert_eq!(listed["gaps"][0]["acknowledgement"]["by"], "tester");
    assert_eq!(listed["gaps"][0]["state"], "acknowledged");

    let log = terminate(run, 3);
    assert_eq!(log.matches(" GAP: ").count(), gaps.len(), "{log}");
    assert!(log.contains("took a base backup behind the gap"), "{log}");
    // Else the server's checkpointer waits for it, and it for the store.
    let let_go = log.contains("closed the connection to the server");
    assert_eq!(let_go, is_running, "{log}");
}

#[test]
fn a_slot_that_15_gave_up_while_nobody_used_it() {
    a_lost_slot(15, false);
}

#[test]
fn a_slot_that_18_gave_up_while_it_was_used() {
    a_lost_slot(18, true);
}
