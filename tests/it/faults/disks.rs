//! Full disks: of a repository in a folder, and of the place a cluster is restored to. The server goes on, nothing half-written is
//! taken for whole, and with space again all of it ends well.

use super::{DEADLINE, Rig};
use crate::run::{FIRST, flushed, lsn, seed, server, wait_until_flushed, write_wal};
use crate::site::{Plan, Site};
use crate::support::fault_proxy::{Fault, Rule};
use crate::support::oracle::{Oracle, assert_same_rows, rows};
use crate::support::process::{self, COMMAND_DEADLINE, Running, command, wait_gone};
use crate::support::restored::Restorer;
use crate::support::small_disk::SmallDisk;
use crate::support::wait_until;
use crate::support::wal_dump::Target;
use crate::support::walden::Walden;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// Copies what is in a folder to another.
fn copy(from: &Path, to: &Path) {
    let mut copy = command("cp");
    copy.arg("-a").arg(from.join(".")).arg(to);
    process::run(copy, COMMAND_DEADLINE).expect_success();
}

#[test]
fn a_repository_on_a_full_disk_harms_nobody_and_goes_on_with_space() {
    let seed = seed();
    process::note(&format!("WALDEN_TEST_SEED={seed}"));
    let (mut restorer, builder) = Restorer::for_source(server(18));
    let server = builder.start();
    let site = Site::new(&server, Plan::default());
    restorer.url.clone_from(&site.url);
    let beside = server.scratch().join("beside");
    fs::create_dir(&beside).expect("make a folder");
    copy(&site.root, &beside);
    let disk = SmallDisk::mount(&site.root, "24m");
    disk.shell(&format!("cp -a '{}/.' \"$1\"", beside.display()));
    let folder = server.scratch().join("walden");
    let start = |arguments: &[&str]| {
        let mut walden = disk.command(&folder, Walden::program());
        walden.args(arguments);
        Running::start(walden)
    };
    let mut run = start(&["run"]);
    wait_until("walden run receives", DEADLINE, || {
        assert!(run.is_running(), "{:?}", run.printed());
        flushed(&server)
    });
    start(&["backup", "--fast-checkpoint"])
        .wait(DEADLINE)
        .expect_success();
    let mut oracle = Oracle::prepare(&server, seed);
    let clients = oracle.start(&server, 2);
    clients.wait_for_more(50, DEADLINE);

    disk.fill();
    write_wal(&server, 3);
    let written = lsn(&server.psql("select pg_current_wal_flush_lsn()"));
    clients.wait_for_more(50, DEADLINE);
    std::thread::sleep(Duration::from_secs(2));
    assert!(flushed(&server).expect("it is connected") < written);
    assert!(run.is_running());
    // What does not fit is no backup.
    let refused = start(&["backup", "--fast-checkpoint"]);
    std::thread::sleep(Duration::from_secs(1));
    refused.kill();

    disk.free();
    disk.shell("mount -o remount,size=200m \"$1\"");
    clients.wait_for_more(50, DEADLINE);
    oracle.stop(clients);
    let end = wait_until_flushed(&server);
    run.signal(rustix::process::Signal::TERM);
    run.wait(DEADLINE).expect_success();
    copy(&disk.seen_from_outside(), &site.root);
    let compared = site.compare(FIRST, &server.wal_directory());
    assert!(compared.to >= end, "{compared:?} {end}");
    assert_eq!(site.catalog().complete_backups().count(), 1);
    let expected = oracle.rows_at(&oracle.dump(&server), &Target::Latest);
    let restored = restorer.restore("full", &["--to", "latest"]);
    assert_same_rows(&format!("seed {seed}"), &expected, &rows(&restored.client));
}

#[test]
fn a_restore_onto_a_full_disk_is_no_data_directory_and_goes_on_with_space() {
    let rig = Rig::new(18, "100ms");
    let run = rig.site.archive(&rig.server);
    let backup = ["backup", "--fast-checkpoint"];
    rig.site.walden.run(backup).expect_success();
    let mut oracle = Oracle::prepare(&rig.server, rig.seed);
    oracle.run(&rig.server, 1, Duration::from_secs(1));
    wait_until_flushed(&rig.server);
    crate::run::terminate(run);

    let restored = rig.restorer.place("full");
    fs::create_dir(&restored.data).expect("make a folder");
    let disk = SmallDisk::mount(&restored.data, "200m");
    let inside = disk.seen_from_outside();
    disk.shell("chmod 700 \"$1\"");
    let arguments = rig.restorer.arguments(&restored, &["--to", "latest"]);
    let start = || {
        let mut walden = disk.command(rig.restorer.scratch.path(), Walden::program());
        walden.args(&arguments);
        walden.envs(rig.bucket.environment());
        walden.env("AWS_ENDPOINT_URL", rig.store.endpoint());
        Running::start(walden)
    };
    // The part comes slowly, and meanwhile somebody else takes the space.
    rig.store
        .arm([Rule::next(Fault::Delay(Duration::from_secs(2)))
            .on("GET", "/base.")
            .after(1)]);
    let restoring = start();
    wait_until("the restore has begun", DEADLINE, || {
        rig.store.all_fired().then_some(())
    });
    disk.fill();
    let failed = restoring.wait(DEADLINE).expect_code(1);
    rig.store.calm();
    assert!(failed.stderr.contains("No space left"), "{failed}");
    assert!(!inside.join("global/pg_control").exists());
    disk.free();
    start().wait(DEADLINE).expect_success();
    let expected = oracle.rows_at(&oracle.dump(&rig.server), &Target::Latest);
    assert_same_rows("full", &expected, &rows(&restored.client));
    // Its lock file is seen inside only.
    let lock = fs::read_to_string(inside.join("postmaster.pid")).expect("a server runs there");
    let postmaster = lock.lines().next().and_then(|line| line.parse().ok());
    let postmaster = postmaster.expect("a process id");
    process::send(postmaster, rustix::process::Signal::QUIT);
    wait_gone(&[postmaster]);
}
