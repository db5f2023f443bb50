//! `walden run` where the server's WAL is not one unbroken line: promotions that it sees or misses, and WAL that the server removed.

use super::{DEADLINE, FIRST, flushed, seed, server, terminate, wait_until_flushed, write_wal};
use crate::site::{Plan, Site};
use crate::support::oracle::Oracle;
use crate::support::postgres::Builder;
use crate::support::process::{self, COMMAND_DEADLINE, command};
use crate::support::wait_until;
use rustix::process::Signal;
use std::fs;
use wal_format::{SegmentName, TimelineHistory, TimelineId};

/// The primary is lost while it writes, and the standby that we stream from takes over; `walden run` is there when that
/// happens, or comes back later.
fn follows_a_promotion(major: u32, present: bool) {
    let second = TimelineId::new(2).expect("a timeline");
    let mut primary = server(major).start();
    let standby = primary.standby();
    let site = Site::new(&standby, Plan::default());
    let mut run = Some(site.archive(&standby));
    let mut oracle = Oracle::prepare(&primary, seed());
    let clients = oracle.start(&primary, 2);
    write_wal(&primary, 3);
    clients.wait_for_more(100, DEADLINE);
    if !present {
        terminate(run.take().expect("it runs"));
    }
    std::thread::scope(|scope| {
        let write = "select pg_logical_emit_message(false, 'long', repeat('x', 600000)) from generate_series(1, 1000)";
        scope.spawn(|| primary.try_psql(write, DEADLINE));
        clients.wait_for_more(20, DEADLINE);
        process::send(primary.postmaster(), Signal::QUIT);
    });
    primary.crash();
    oracle.stop(clients);
    standby.promote();
    write_wal(&standby, 2);
    let run = run.unwrap_or_else(|| site.archive(&standby));
    let end = wait_until_flushed(&standby);
    terminate(run);

    let history = fs::read(standby.wal_directory().join("00000002.history")).expect("a history");
    let switch = TimelineHistory::parse(second, &history).expect("a history");
    let switch = switch.switch_point(FIRST).expect("it left timeline 1");
    let old = site.compare(FIRST, &standby.wal_directory());
    let new = site.compare(second, &standby.wal_directory());
    let first = site.size.start(site.size.segment(switch));
    assert_eq!(
        new.from, first,
        "timeline 2 begins in the segment of the switch"
    );
    assert!(new.to >= end, "{new:?} {end}");
    assert!(old.to >= first, "{old:?} reaches the switch at {switch}");
    let number = site.size.segment(switch);
    let name = SegmentName::new(FIRST, number, site.size);
    if site.catalog().timelines[&FIRST]
        .segments
        .contains_key(&name)
    {
        // The standby had passed on so much of a long record, lost with the primary, that the segment was full.
        assert!(old.to >= site.size.end(number), "{old:?}");
    } else {
        let (stored, partial) = site.partial(FIRST);
        assert_eq!(stored, name);
        let file = fs::read(standby.wal_directory().join(name.to_string())).expect("a segment");
        assert!(
            partial == file[..site.size.offset(switch) as usize],
            "all of timeline 1 and no more"
        );
    }

    let objects = site.objects();
    let (_, told) = objects
        .iter()
        .find(|(name, _)| name.ends_with("00000002.history"))
        .map(|(_, object)| object)
        .expect("the history is stored");
    let of_second =
        |name: &str| name.contains("/wal/00000002/") || name.contains("/tail/00000002/");
    let mut of_second = objects
        .iter()
        .filter(|(name, _)| of_second(name))
        .peekable();
    assert!(of_second.peek().is_some());
    for (name, (_, stored)) in of_second {
        assert!(told <= stored, "{name} was stored before its history");
    }
    assert!(site.catalog().gaps.is_empty());
}

#[test]
fn follows_the_promotion_of_a_standby_of_15() {
    follows_a_promotion(15, true);
}

#[test]
fn follows_the_promotion_of_a_standby_of_18() {
    follows_a_promotion(18, true);
}

#[test]
fn follows_a_promotion_that_it_missed() {
    follows_a_promotion(18, false);
}

#[test]
fn a_gap_is_recorded_and_said_once_and_streaming_goes_on() {
    let settings = [
        "wal_keep_size = 0",
        "min_wal_size = 2MB",
        "max_wal_size = 4MB",
    ];
    let server = settings
        .into_iter()
        .fold(server(18), Builder::setting)
        .start();
    let rpo = "100ms";
    let site = Site::new(
        &server,
        Plan {
            rpo,
            ..Plan::default()
        },
    );
    let run = site.archive(&server);
    write_wal(&server, 2);
    wait_until_flushed(&server);
    terminate(run);
    let stored = site.covered_to(&site.catalog(), FIRST).expect("stored");
    // The server removes its files; what is stored is compared with copies.
    let kept = server.scratch().join("kept");
    let keep = || {
        let mut copy = command("cp");
        copy.arg("-a")
            .arg(server.wal_directory())
            .arg("-T")
            .arg(&kept);
        process::run(copy, COMMAND_DEADLINE).expect_success();
    };
    keep();
    server.psql("select pg_drop_replication_slot('walden')");
    let lost = SegmentName::new(FIRST, site.size.segment(stored).next(), site.size);
    wait_until("the server has removed WAL", DEADLINE, || {
        write_wal(&server, 4);
        server.psql("checkpoint");
        (!server.wal_directory().join(lost.to_string()).exists()).then_some(())
    });
    // What comes from now on is to be compared.
    server.psql("alter system set wal_keep_size = '1GB'; select pg_reload_conf()");
    write_wal(&server, 2);

    let run = site.archive(&server);
    wait_until("it goes on", DEADLINE, || {
        flushed(&server).filter(|flush| *flush > stored)
    });
    write_wal(&server, 2);
    let end = wait_until_flushed(&server);
    keep();
    run.signal(Signal::TERM);
    // That WAL was lost is no success.
    let log = run.wait(COMMAND_DEADLINE).expect_code(3).stderr;
    assert_eq!(log.matches(" GAP: ").count(), 1, "{log}");
    assert!(log.contains("take a new base backup"), "{log}");
    let catalog = site.catalog();
    let gaps: Vec<_> = catalog.gaps.iter().copied().collect();
    let [gap] = gaps.as_slice() else {
        panic!("one gap, not {gaps:?}\n{log}");
    };
    assert_eq!(gap.from, stored, "what is stored is not missing");
    assert!(gap.to > stored && site.size.offset(gap.to) == 0, "{gap:?}");
    let holes = catalog.holes(FIRST, site.size);
    let hole = holes.first().copied();
    assert_eq!(hole.map(|hole| hole.to), Some(gap.to), "{holes:?}");
    site.compare_with_hole(FIRST, &kept, hole);
    assert!(catalog.wal_end(FIRST, site.size) >= Some(end));

    // Nothing new about it after a restart.
    let run = site.archive(&server);
    write_wal(&server, 2);
    wait_until_flushed(&server);
    let log = terminate(run);
    assert!(!log.contains("GAP"), "{log}");
    assert_eq!(site.catalog().gaps.len(), 1);
}
