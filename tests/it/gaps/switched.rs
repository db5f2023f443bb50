//! A gap over which the server switched timelines: the end of one and the beginning of the next are lost. Each is on record on its own timeline, and what
//! lies before and behind can be restored.

use super::{Archived, DEADLINE, FIRST, lsn, terminate};
use crate::support::oracle::{assert_same_rows, rows};
use crate::support::postgres::Stop;
use crate::support::wait_until;
use crate::support::walden::wait_until_stored;
use repository::catalog::GapRange;
use std::fs;
use std::time::Duration;
use wal_format::{SegmentName, TimelineId};

#[test]
fn a_gap_that_goes_over_a_switch_of_timelines() {
    let (mut archived, run) = Archived::start(18, &[], "", "[backup]\non_gap = true");
    let before = archived.work_to("before");
    terminate(run, 0);
    let stored = archived.stored_end();
    archived
        .server
        .psql("select pg_drop_replication_slot('walden')");
    archived.write_wal(3);

    // The same server goes on as timeline 2, and removes what no slot keeps.
    let server = &mut archived.server;
    server.stop(Stop::Fast, DEADLINE);
    fs::write(server.data_directory().join("standby.signal"), "").expect("write standby.signal");
    server.start();
    server.promote();
    let history = server.wal_directory().join("00000002.history");
    let history = fs::read_to_string(history).expect("read the history");
    let switch = lsn(history.split_whitespace().nth(1).expect("a switch point"));
    let size = archived.site.size;
    let second = TimelineId::new(2).expect("a timeline");
    let first_of_second = SegmentName::new(second, size.segment(switch), size);
    let file = archived
        .server
        .wal_directory()
        .join(first_of_second.to_string());
    wait_until("both timelines' WAL is removed", DEADLINE, || {
        archived.write_wal(3);
        archived.server.psql("checkpoint");
        (!file.exists()).then_some(())
    });

    let run = archived.receive();
    wait_until("the gap is on record", DEADLINE, || {
        (archived.gaps().len() >= 2).then_some(())
    });
    archived.write_wal(1);
    wait_until_stored(&archived.server);
    let gaps = archived.gaps();
    let catalog = archived.site.catalog();
    let begins = catalog.timelines[&second].segments.keys().next();
    let begins = begins.and_then(|name| name.start(size)).expect("WAL of 2");
    let expected = [
        GapRange {
            timeline: FIRST,
            from: stored,
            to: switch,
        },
        GapRange {
            timeline: second,
            from: size.start(size.segment(switch)),
            to: begins,
        },
    ];
    assert_eq!(gaps, expected, "no more, no less");
    assert!(begins > switch);
    archived.check_nothing_stored_is_recorded();
    assert_eq!(catalog.holes(second, size), []);
    assert!(catalog.timelines[&second].history);

    // Everybody says so, and names both.
    let listed = archived.json(&["gap", "list"], 5);
    for (index, gap) in gaps.iter().enumerate() {
        assert_eq!(listed["gaps"][index]["id"], gap.to_string(), "{listed}");
        assert_eq!(listed["gaps"][index]["state"], "open", "{listed}");
    }
    let status = archived.json(&["status"], 5);
    assert_eq!(status["stored"]["gaps"].as_array().map(Vec::len), Some(2));
    archived.json(&["list"], 3);
    archived.json(&["window"], 3);
    let verified = archived.json(&["verify"], 5);
    let findings = verified["findings"].to_string();
    assert!(findings.contains(&stored.to_string()), "{verified}");

    // A backup is there by itself; both sides can be restored, and nothing crosses.
    archived.wait_for_backup_behind(gaps[1]);
    let after = archived.work(Duration::from_millis(500));
    wait_until_stored(&archived.server);
    let log = terminate(run, 3);
    assert_eq!(log.matches(" GAP: ").count(), 2, "{log}");
    let restorer = &archived.restorer;
    let restored = restorer.restore("before", &["--to-name", "before"]);
    assert_same_rows("before", &before, &rows(&restored.client));
    drop(restored);
    let restored = restorer.restore("after", &["--to", "latest"]);
    assert_same_rows("after", &after, &rows(&restored.client));
    drop(restored);
    let (place, within) = (restorer.place("never"), switch.to_string());
    let refused = restorer.arguments(&place, &["--to-lsn", &within]);
    let refused = restorer.walden.run(refused);
    assert!([4, 5].contains(&refused.code()), "{refused}");
    assert!(!place.data.exists());

    // A restart finds nothing new; acknowledged, nobody speaks of it any more.
    let run = archived.receive();
    archived.write_wal(1);
    wait_until_stored(&archived.server);
    for gap in &gaps {
        let id = gap.to_string();
        let ack = ["gap", "ack", &id, "--reason", "x", "--by", "t", "--yes"];
        archived.site.walden.run(ack).expect_success();
    }
    archived.json(&["status"], 0);
    archived.json(&["verify"], 0);
    let log = terminate(run, 0);
    assert!(!log.contains("GAP"), "{log}");
    assert_eq!(archived.gaps(), expected);
}
