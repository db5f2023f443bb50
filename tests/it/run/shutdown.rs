//! `walden run` when a server shuts down, when it is told to stop itself, and when a commit waits for it: nothing hangs, and what
//! was promised is stored.

use super::{
    DEADLINE, FIRST, SHUTDOWN_DEADLINE, flushed, lsn, restart_lsn, sample_flush, seed, server,
    terminate, wait_until_flushed, wait_until_sent, write_wal,
};
use crate::site::{Keys, Place, Plan, Site};
use crate::support::door::Door;
use crate::support::object_store::Bucket;
use crate::support::oracle::Oracle;
use crate::support::postgres::{Server, Stop};
use crate::support::wait_until;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;
use wal_format::{Lsn, SegmentName};

/// Behind the record at which the server's last checkpoint lies, at the least: the record's length stands in its first bytes.
fn shutdown_checkpoint_end(server: &Server, site: &Site) -> Lsn {
    assert_eq!(server.control_data("Database cluster state"), "shut down");
    let start = lsn(&server.control_data("Latest checkpoint location"));
    let name = SegmentName::new(FIRST, site.size.segment(start), site.size);
    let file = fs::read(server.wal_directory().join(name.to_string())).expect("read a segment");
    let offset = site.size.offset(start) as usize;
    let length = file.get(offset..offset + 4).expect("in the segment");
    let length = u32::from_le_bytes(length.try_into().expect("four bytes"));
    assert!(
        (100..200).contains(&length),
        "a checkpoint has not {length} bytes"
    );
    start.saturating_add(u64::from(length))
}

/// Stops the server while it is written to, with `during` beside, and looks at what is stored. Then the server comes back,
/// and so does `walden run`, by itself.
fn shutdown_while_archiving(
    mut server: Server,
    site: &Site,
    least: Duration,
    during: impl FnOnce() + Send,
) {
    let mut run = site.archive(&server);
    let mut oracle = Oracle::prepare(&server, seed());
    let clients = oracle.start(&server, 2);
    write_wal(&server, 3);
    clients.wait_for_more(50, DEADLINE);
    let took = std::thread::scope(|scope| {
        scope.spawn(during);
        // Whatever `during` does has begun.
        std::thread::sleep(Duration::from_millis(300));
        server.stop(Stop::Fast, SHUTDOWN_DEADLINE)
    });
    oracle.stop(clients);
    assert!(took >= least, "it did not wait for us: {took:?}");
    run.wait_for("the shutdown is said", DEADLINE, |_, log| {
        log.contains("the server shut down, everything it had is stored")
    });
    let end = shutdown_checkpoint_end(&server, site);
    let compared = site.compare(FIRST, &server.wal_directory());
    assert!(
        compared.to >= end,
        "{compared:?}, the checkpoint ends at {end}"
    );

    server.start();
    wait_until("walden run is back", DEADLINE, || flushed(&server));
    write_wal(&server, 1);
    let end = wait_until_sent(&server);
    terminate(run);
    assert!(site.compare(FIRST, &server.wal_directory()).to >= end);
}

#[test]
fn fast_shutdown_of_15_waits_for_the_last_byte_and_no_longer() {
    let server = server(15).start();
    let rpo = "600s";
    let site = Site::new(
        &server,
        Plan {
            rpo,
            ..Plan::default()
        },
    );
    shutdown_while_archiving(server, &site, Duration::ZERO, || {});
}

#[test]
fn fast_shutdown_survives_a_folder_that_cannot_be_written() {
    let server = server(18).start();
    let site = Site::new(&server, Plan::default());
    let stall = Duration::from_secs(3);
    shutdown_while_archiving(server, &site, Duration::from_secs(2), || {
        let folders = || {
            site.folders()
                .into_iter()
                .filter(|folder| *folder != site.root)
        };
        let mode = |folder: &Path, mode| {
            fs::set_permissions(folder, fs::Permissions::from_mode(mode)).expect("set a mode");
        };
        folders().for_each(|folder| mode(&folder, 0o500));
        std::thread::sleep(stall);
        folders().for_each(|folder| mode(&folder, 0o750));
    });
}

#[test]
fn a_bucket_that_stalls_delays_and_loses_nothing() {
    let server = server(18).start();
    let bucket = Bucket::new();
    let gate = Door::before(&bucket);
    let place = Place::BucketBehind(&bucket, gate.endpoint());
    let site = Site::new(
        &server,
        Plan {
            place,
            keys: Keys::Identity,
            ..Plan::default()
        },
    );
    let run = site.archive(&server);
    write_wal(&server, 3);
    assert!(sample_flush(&server, &site, Duration::from_secs(1)) > 0);
    wait_until_flushed(&server);
    terminate(run);
    let least = Duration::from_secs(2);
    shutdown_while_archiving(server, &site, least, || {
        gate.hold_for(Duration::from_secs(3))
    });
}

#[test]
fn sigterm_stores_the_tail() {
    for major in [15, 18] {
        let server = server(major).start();
        let rpo = "600s";
        let site = Site::new(
            &server,
            Plan {
                rpo,
                ..Plan::default()
            },
        );
        let run = site.archive(&server);
        write_wal(&server, 2);
        let end = wait_until_sent(&server);
        let before = flushed(&server).expect("it is connected");
        assert!(before < end, "something must be left to store");
        let log = terminate(run);
        assert!(
            log.contains("stopped, everything received is stored"),
            "{log}"
        );
        let compared = site.compare(FIRST, &server.wal_directory());
        assert!(compared.to >= end, "{compared:?} {end}");
        assert_eq!(restart_lsn(&server), compared.to);
    }
}

#[test]
fn a_commit_that_waited_for_us_is_in_the_repository() {
    // With rpo = "sync", and without it: the server's own settings say that it waits.
    for (major, rpo) in [(15, "600s"), (18, "sync")] {
        let server = server(major).start();
        let site = Site::new(
            &server,
            Plan {
                rpo,
                keys: Keys::Identity,
                ..Plan::default()
            },
        );
        server.psql("CREATE TABLE waited (n int)");
        server.psql("ALTER SYSTEM SET synchronous_standby_names = 'walden'");
        let run = site.archive(&server);
        wait_until("it streams", DEADLINE, || flushed(&server));
        server.psql("SELECT pg_reload_conf()");
        // The running receiver has not seen the setting: a new one does.
        terminate(run);
        let run = site.archive(&server);
        wait_until("it streams", DEADLINE, || flushed(&server));
        for n in 0..20 {
            server.psql(&format!("INSERT INTO waited VALUES ({n})"));
            let committed = flushed(&server).expect("it is connected");
            let covered = site.covered_to(&site.catalog(), FIRST);
            assert!(covered >= Some(committed), "{covered:?} {committed}");
        }
        server.psql("ALTER SYSTEM SET synchronous_commit = 'remote_apply'");
        server.psql("SELECT pg_reload_conf()");
        terminate(run);
        let refused = site.walden.run(["run"]).expect_code(2);
        assert!(
            refused.stderr.contains("remote_apply"),
            "{}",
            refused.stderr
        );
        // Set for one role, which no replication connection shows.
        server.psql("ALTER SYSTEM RESET synchronous_commit");
        server.psql("SELECT pg_reload_conf()");
        server.psql("SET synchronous_commit = local; CREATE ROLE etl; ALTER ROLE etl SET synchronous_commit = 'remote_apply'");
        let refused = site.walden.run(["run"]).expect_code(2);
        assert!(refused.stderr.contains("role \"etl\""), "{refused}");
        let checked = site.walden.run(["config", "check"]).expect_code(2);
        let fix = "ALTER ROLE etl SET synchronous_commit = 'on';";
        assert!(checked.stdout.contains(fix), "{checked}");
    }
}
