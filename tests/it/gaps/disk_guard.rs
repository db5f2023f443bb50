//! A repository that cannot be written must not fill the server's disk: the slot is given up at the limit that is configured, and what that loses is
//! on record once the repository is back.

use super::{Archived, DEADLINE, terminate};
use crate::support::oracle::{assert_same_rows, rows};
use crate::support::wait_until;
use crate::support::walden::wait_until_stored;
use std::time::Duration;

#[test]
fn the_slot_is_given_up_before_the_disk_is_full() {
    let guard = "disk_guard = { warn = \"3MiB\", drop_slot = \"9MiB\" }";
    let (mut archived, run) = Archived::start(18, &[], guard, "[backup]\non_gap = true");
    let before = archived.work_to("before");
    archived.set_writable(false);
    let stored = archived.stored_end();
    let slots = "select count(*) from pg_replication_slots where slot_name = 'walden'";
    archived.write_wal(5);
    let status = archived.json(&["status"], 3);
    let said = status["problems"].to_string();
    assert!(
        said.contains("from 9.0 MiB on walden run gives the slot up"),
        "{said}"
    );
    wait_until("it is said", DEADLINE, || {
        run.printed().1.contains("disk_guard.warn").then_some(())
    });
    assert_eq!(archived.server.psql(slots), "1", "it is too early");
    wait_until("the slot is given up", DEADLINE, || {
        archived.write_wal(1);
        (archived.server.psql(slots) == "0").then_some(())
    });
    // It stays so: another slot would fill the disk as well.
    archived.write_until_removed();
    assert_eq!(archived.server.psql(slots), "0");
    assert_eq!((archived.stored_end(), archived.gaps()), (stored, vec![]));

    archived.set_writable(true);
    wait_until("a gap is on record", DEADLINE, || {
        (!archived.gaps().is_empty()).then_some(())
    });
    wait_until("it receives again", DEADLINE, || {
        (archived.server.psql(slots) == "1" && archived.stored_end() > stored).then_some(())
    });
    archived.write_wal(1);
    wait_until_stored(&archived.server);
    let gaps = archived.gaps();
    assert_eq!(gaps.first().map(|gap| gap.from), Some(stored), "{gaps:?}");
    archived.check_record();
    archived.json(&["status"], 5);
    let listed = archived.json(&["gap", "list"], 5);
    let why = listed["gaps"][0]["why"].as_str().expect("a reason");
    assert!(why.contains("disk_guard dropped the slot"), "{why}");

    archived.wait_for_backup_behind(*gaps.last().expect("a gap"));
    let after = archived.work(Duration::from_millis(500));
    wait_until_stored(&archived.server);
    let log = terminate(run, 3);
    assert_eq!(log.matches("dropped the slot: ").count(), 1, "{log}");
    let restorer = &archived.restorer;
    let restored = restorer.restore("before", &["--to-name", "before"]);
    assert_same_rows("before", &before, &rows(&restored.client));
    drop(restored);
    let restored = restorer.restore("after", &["--to", "latest"]);
    assert_same_rows("after", &after, &rows(&restored.client));
}
