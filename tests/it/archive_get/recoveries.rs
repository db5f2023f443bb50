//! Recoveries by PostgreSQL itself with `walden archive-get` as its hook: no answer of ours opened a database early or on a branch
//! that was left.

use super::SIZE;
use super::branched::Branched;
use crate::support::postgres::Server;
use crate::support::process::COMMAND_DEADLINE;
use pitr::scope::Leg;

#[track_caller]
fn assert_refuses_to_open(mut server: Server, because: &str) {
    let opened = server.try_start(COMMAND_DEADLINE);
    let log = server.log();
    assert!(opened.is_err(), "the server opened\n{log}");
    for sign in [
        "ready to accept",
        "selected new timeline",
        "archive recovery complete",
    ] {
        assert!(!log.contains(sign), "{sign}\n{log}");
    }
    assert!(log.contains(because), "{because:?} is in the log\n{log}");
    assert_eq!(
        server.control_data("Database cluster state"),
        "in archive recovery"
    );
}

fn notes(server: &Server) -> String {
    server.psql("select string_agg(distinct note, ',' order by note) from kept")
}

fn recoveries(major: u32) {
    let site = Branched::new(major);

    // Along the switch, to the end of what is stored.
    let mut along = site.recovery("along", None, "recovery_target_timeline = 'latest'");
    along.start();
    assert_eq!(
        notes(&along),
        "alive,first,last before the switch,second",
        "{}",
        along.log()
    );
    assert_eq!(
        along.psql("select count(*) from kept where note = 'alive'"),
        "1800"
    );
    assert_eq!(
        along.psql("select timeline_id from pg_control_checkpoint()"),
        "3"
    );
    drop(along);

    // The same within a plan whose target is the same end, given as an LSN.
    let end = site.open[1].start(SIZE).expect("a segment");
    let plan = site.write_plan("along.json", &site.plan(end));
    let mut planned = site.recovery("planned", Some(&plan), "recovery_target_timeline = '2'");
    planned.start();
    assert_eq!(notes(&planned), "alive,first,last before the switch,second");
    drop(planned);

    // The newer timeline's switch segment is gone: the parent's, on the branch that was left, must not be replayed.
    let first = site.switch_segment(2);
    let gone = site.without(&site.segment_key(first));
    let latest = "recovery_target_timeline = 'latest'";
    let branch = site.recovery("branch", None, latest);
    assert_refuses_to_open(branch, &format!("{first}: missing"));
    let branch = site.recovery(
        "planned branch",
        Some(&plan),
        "recovery_target_timeline = '2'",
    );
    assert_refuses_to_open(branch, &format!("{first}: missing"));
    drop(gone);

    // A hole in the middle, and one at the parent's end.
    for (folder, name) in [
        ("middle", site.before_switch(2)),
        ("parent", site.before_switch(1)),
    ] {
        let gone = site.without(&site.segment_key(name));
        let hole = site.recovery(folder, None, latest);
        assert_refuses_to_open(hole, &format!("{name}: missing"));
        drop(gone);
    }

    // Behind the target there is nothing, or damage: PostgreSQL reads ahead, and with the plan of the restore that is no matter.
    let beyond = site.name(1, SIZE.segment(site.target).next());
    let mut scope = site.plan(site.target);
    scope.path = vec![Leg {
        timeline: 1,
        lineage: String::new(),
        switch_point: None,
    }];
    let plan = site.write_plan("target.json", &scope);
    let target = format!(
        "recovery_target_timeline = '1'\nrecovery_target_lsn = '{}'\nrecovery_target_inclusive = off\n\
         recovery_target_action = 'promote'\nrecovery_prefetch = try\n",
        site.target
    );
    let recovers = |folder: &str, said: &str| {
        let mut targeted = site.recovery(folder, Some(&plan), &target);
        targeted.start();
        assert_eq!(notes(&targeted), "first");
        let log = targeted.log();
        assert!(log.contains(said), "it read ahead\n{log}");
    };
    let key = site.segment_key(beyond);
    let gone = site.without(&key);
    recovers(
        "target",
        &format!("not in the repository: proven file=\"{beyond}\""),
    );
    drop(gone);
    let mut bytes = std::fs::read(site.root.join(key.to_string())).expect("read an object");
    *bytes.last_mut().expect("it is not empty") ^= 1;
    let damaged = site.with_bytes(&key, &bytes);
    recovers(
        "damaged behind the target",
        "not served, and not needed: it lies behind the target",
    );
    drop(damaged);
}

#[test]
fn recoveries_of_18() {
    recoveries(18);
}

#[test]
fn recoveries_of_15() {
    recoveries(15);
}
