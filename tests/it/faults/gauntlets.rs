//! One command, every fault: a backup, a restore and the two hooks each meet every kind once, and outages that outlast their
//! patience. What they must not survive they must not hide.

use super::kills::finish_segment;
use super::{DEADLINE, Rig};
use crate::run::write_wal;
use crate::support::fault_proxy::server::{ServerProxy, Trap};
use crate::support::fault_proxy::{Fault, Rule};
use crate::support::oracle::{Oracle, assert_same_rows, rows};
use crate::support::process;
use crate::support::wal_dump::Target;
use std::fs;
use std::io::Write;
use std::time::Duration;

/// Each once, to this method, one request apart.
fn once_each(method: &'static str, part: &'static str, faults: &[Fault]) -> Vec<Rule> {
    let rule = |(number, fault): (usize, &Fault)| {
        let part = match fault {
            Fault::FlippedBit => ".wal",
            _ => part,
        };
        let number = u32::try_from(number).expect("few");
        Rule::next(*fault)
            .on(method, part)
            .after(if *fault == Fault::FlippedBit {
                0
            } else {
                number % 4
            })
    };
    faults.iter().enumerate().map(rule).collect()
}

/// What a write that is asked for again survives.
const OF_WRITES: [Fault; 12] = [
    Fault::Status(500),
    Fault::Status(503),
    Fault::Status(429),
    Fault::FailedAfter,
    Fault::ReplyLost,
    Fault::Reset,
    Fault::HalfClose,
    Fault::TruncatedRequest,
    Fault::TruncatedAnswer,
    Fault::LengthTooLong,
    Fault::Drip(7, Duration::from_millis(5)),
    Fault::Bandwidth(20_000_000),
];

/// What a reading that is asked for again survives. Of a wrong length or bit it must see that something is wrong.
const OF_READINGS: [Fault; 12] = [
    Fault::Status(500),
    Fault::Status(503),
    Fault::Status(429),
    Fault::Reset,
    Fault::ReplyLost,
    Fault::HalfClose,
    Fault::TruncatedAnswer,
    Fault::LengthTooLong,
    Fault::LengthTooShort,
    Fault::FlippedBit,
    Fault::Drip(1000, Duration::from_millis(2)),
    Fault::Bandwidth(20_000_000),
];

/// Hooks wait for so long in these tests.
const PATIENCE: Duration = Duration::from_secs(3);

#[test]
fn a_backup_and_a_restore_run_the_gauntlet() {
    let mut rig = Rig::new(18, "100ms");
    let run = rig.site.archive(&rig.server);
    let mut oracle = Oracle::prepare(&rig.server, rig.seed);
    let clients = oracle.start(&rig.server, 1);
    write_wal(&rig.server, 1);

    // Through a server that breaks off in the middle: no backup, and none that looks like one. The receiver has a way of its own.
    let folder = rig.server.scratch().join("walden");
    let text = fs::read_to_string(folder.join("walden.toml")).expect("read it");
    let way = ServerProxy::before(&rig.server, rig.seed.wrapping_add(2));
    let text = text.replace(&rig.postgres.conninfo(), &way.conninfo());
    fs::write(folder.join("backup.toml"), text).expect("write it");
    let backup = ["backup", "--fast-checkpoint", "--config", "backup.toml"];
    let broken = [
        (Fault::Reset, 20),
        (Fault::TruncatedAnswer, 400),
        (Fault::Reset, 3_000_000),
        (Fault::HalfClose, 9_000_000),
    ];
    for (fault, after) in broken {
        way.arm([Trap { fault, after }]);
        let output = rig.site.walden.run(backup);
        way.calm();
        // A connection that breaks in the login may be made again.
        if after > 1000 {
            assert_eq!(output.code(), 1, "{output}");
            assert_eq!(rig.complete_backups(), 0, "{fault:?} after {after}");
        }
    }
    let before = rig.complete_backups();
    let slow = Fault::Bandwidth(2_000_000);
    way.arm([
        Trap {
            fault: Fault::Delay(Duration::from_secs(1)),
            after: 100,
        },
        Trap {
            fault: slow,
            after: 100_000,
        },
    ]);
    rig.store
        .arm(once_each("PUT", "/backups/", &OF_WRITES[..8]));
    rig.store
        .arm([Rule::next(Fault::ReplyLost).on("PUT", "/backup.json")]);
    let asked = rig.store.requests();
    let taken = rig.site.walden.run(backup).expect_success();
    let asked = rig.store.requests() - asked;
    rig.store.calm();
    way.calm();
    assert_eq!(rig.complete_backups(), before + 1);
    rig.site.walden.run(["verify"]).expect_success();

    write_wal(&rig.server, 3);
    oracle.stop(clients);
    rig.assert_promises(run, &oracle);

    // The restore, and the hook that its server calls, under a storm.
    rig.store.arm(once_each("GET", "", &OF_READINGS));
    rig.store.arm([Rule::next(Fault::Status(503)).percent(20)]);
    let calm = rig.restorer.restore("gauntlet", &["--to", "latest"]);
    let expected = oracle.rows_at(&oracle.dump(&rig.server), &Target::Latest);
    assert_same_rows("gauntlet", &expected, &rows(&calm.client));
    rig.store.calm();
    process::note(&format!(
        "a backup ({asked} requests, {:?}) and a restore: {:?}, {:?}",
        taken.took,
        rig.store.fired(),
        way.fired()
    ));
    drop(calm);
    rig.assert_nothing_overwritten();
}

#[test]
fn the_hooks_run_the_gauntlet() {
    let mut rig = Rig::new(18, "100ms");
    let config = rig.server.scratch().join("walden/walden.toml");
    let mut config = fs::File::options()
        .append(true)
        .open(config)
        .expect("open it");
    writeln!(config, "[restore]\npatience = \"{}s\"", PATIENCE.as_secs()).expect("write it");
    rig.server.psql("create table t ()");

    // Pushing and fetching, each through every fault.
    let place = rig.server.scratch().join("fetched");
    let destination = place.to_str().expect("a path in UTF-8");
    let mut names = Vec::new();
    for (number, fault) in OF_WRITES.iter().enumerate() {
        let path = finish_segment(&rig.server);
        let path = path.to_str().expect("a path in UTF-8").to_owned();
        rig.store.arm([Rule::next(*fault).on("PUT", ".wal")]);
        rig.hook(&["archive-push", &path])
            .wait(DEADLINE)
            .expect_success();
        rig.store.calm();

        let original = fs::read(rig.server.data_directory().join(&path)).expect("read it");
        let name = path["pg_wal/".len()..].to_owned();
        let fault = OF_READINGS[number];
        // A listing vouches for nothing, as no store damages one over TLS: objects and documents do.
        let other = if fault == Fault::FlippedBit {
            "/cluster.json"
        } else {
            ""
        };
        for part in [".wal", other] {
            rig.store.arm([Rule::next(fault).on("GET", part)]);
            let fetched = rig
                .hook(&["archive-get", &name, destination])
                .wait(DEADLINE);
            rig.store.calm();
            assert_eq!(fetched.code(), 0, "{fault:?} {part}: {fetched}");
            assert!(fs::read(&place).expect("read it") == original, "{name}");
            fs::remove_file(&place).expect("remove it");
        }
        names.push(name);
    }

    // An outage that lasts: nothing is proven, nothing is archived, and nobody waits longer than was said.
    let last = names.last().expect("many").clone();
    let beyond = "0000000100000000000000F0";
    for (fault, most) in [
        (Fault::Status(503), 40),
        (Fault::Status(403), 40),
        (Fault::Reset, 40),
        (Fault::Stall, 4),
        (Fault::StallInAnswer, 4),
        (Fault::FlippedBit, 40),
    ] {
        for name in [last.as_str(), beyond] {
            let asked = rig.store.requests();
            let part = match fault {
                Fault::FlippedBit => "/cluster.json",
                _ => "",
            };
            rig.store
                .arm([Rule::next(fault).on("GET", part).times(u32::MAX)]);
            let output = rig.hook(&["archive-get", name, destination]).wait(DEADLINE);
            rig.store.calm();
            let asked = rig.store.requests() - asked;
            assert_eq!(output.code(), 126, "{fault:?}: {output}");
            assert!(output.took < PATIENCE * 2, "{fault:?}: {output}");
            assert!(asked <= most, "{asked} requests, {fault:?}");
            assert!(!place.exists());
        }
    }
    // And when it is over, the truth again.
    rig.hook(&["archive-get", beyond, destination])
        .wait(DEADLINE)
        .expect_code(1);
    rig.hook(&["archive-get", &last, destination])
        .wait(DEADLINE)
        .expect_success();
    process::note(&format!("both hooks: {:?}", rig.store.fired()));

    // Expired credentials are the pusher's failure at once, not after minutes.
    let path = finish_segment(&rig.server);
    let path = path.to_str().expect("a path in UTF-8");
    rig.store
        .arm([Rule::next(Fault::Status(403)).times(u32::MAX)]);
    let refused = rig
        .hook(&["archive-push", path])
        .wait(DEADLINE)
        .expect_code(1);
    rig.store.calm();
    assert!(refused.took < Duration::from_secs(10), "{refused}");
    rig.hook(&["archive-push", path])
        .wait(DEADLINE)
        .expect_success();
    rig.assert_nothing_overwritten();
}
