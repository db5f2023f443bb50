//! Storms: every kind of fault that passes, one after the other and many at once, while `run` receives, a backup is taken, files are
//! pushed and a cluster is restored.

use super::{DEADLINE, Rig, Rounds, soak_length, usage};
use crate::run::write_wal;
use crate::support::fault_proxy::server::Trap;
use crate::support::fault_proxy::{Fault, Rule};
use crate::support::oracle::Oracle;
use crate::support::process::{self, Running};
use crate::support::wait_until;
use crate::support::workload::Random;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What may happen to a request and pass, but for the ones that take as long as a deadline.
const OF_REQUESTS: [Fault; 15] = [
    Fault::Delay(Duration::from_millis(300)),
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
    Fault::LengthTooShort,
    Fault::Drip(7, Duration::from_millis(5)),
    Fault::Bandwidth(200_000),
    Fault::Status(403),
];

/// What may happen to a connection to the server: to each a number of bytes from it, in the login, in commands, in the stream.
const OF_CONNECTIONS: [(Fault, u64); 6] = [
    (Fault::Delay(Duration::from_millis(300)), 1),
    (Fault::Reset, 30),
    (Fault::Bandwidth(500_000), 3_000),
    (Fault::TruncatedAnswer, 30_000),
    (Fault::HalfClose, 10_000),
    (Fault::Reset, 100_000),
];

/// Of the connections of a storm: what ends one, and what slows it.
const OF_STORMS: [Fault; 5] = [
    Fault::Reset,
    Fault::HalfClose,
    Fault::TruncatedAnswer,
    Fault::Delay(Duration::from_millis(200)),
    Fault::Drip(100, Duration::from_millis(10)),
];

/// What a run may grow to, of memory and of descriptors, after it has met many faults.
const MORE_MEMORY: u64 = 24 << 20;
const MORE_DESCRIPTORS: usize = 20;

/// Random faults for so long, while a receiver is written to, killed now and then (its memory is not measured then), and a backup is
/// taken. Then all of it is restored, through the storm.
fn storm(seed: u64, length: Duration) -> Figures {
    let mut rig = Rig::with_seed(18, "100ms", seed);
    let mut random = Random::new(seed);
    let kills = random.below(2) == 0;
    let mut run = rig.site.archive(&rig.server);
    let backup = ["backup", "--fast-checkpoint"];
    rig.site.walden.run(backup).expect_success();
    let mut oracle = Oracle::prepare(&rig.server, seed);
    let clients = oracle.start(&rig.server, 2);
    let chances = OF_REQUESTS.map(|fault| {
        // Who reads without the right to ends at once: that is tested elsewhere.
        let method = if fault == Fault::Status(403) {
            "PUT"
        } else {
            ""
        };
        Rule::next(fault).on(method, "").percent(2)
    });
    rig.store.arm(chances);
    // A segment that is stored is not listed now and then.
    let unlisted = Rule::next(Fault::Unlisted(".wal"));
    rig.store.arm([unlisted.on("GET", "list-type").percent(5)]);
    rig.postgres.storm(30, &OF_STORMS);

    let begun = Instant::now();
    let mut first = None;
    let mut figures = Figures::default();
    let mut backups = 1;
    let mut taking: Option<Running> = None;
    while begun.elapsed() < length {
        write_wal(&rig.server, 1);
        std::thread::sleep(Duration::from_millis(random.below(300)));
        if kills && random.below(10) == 0 {
            run.kill();
            rig.assert_reported_is_stored("killed in a storm");
            run = rig.site.walden.start(["run"]);
            figures.kills += 1;
        } else if !kills {
            assert!(run.is_running(), "seed {seed}: {:?}", run.printed());
            let now = usage(run.id());
            let first = first.get_or_insert(now);
            figures.peak = figures.peak.max(now.peak);
            figures.descriptors = figures.descriptors.max(now.descriptors);
            assert!(
                now.descriptors <= first.descriptors + MORE_DESCRIPTORS,
                "{first:?} {now:?}, seed {seed}"
            );
            assert!(
                now.resident <= first.resident + MORE_MEMORY,
                "{first:?} {now:?}, seed {seed}"
            );
        }
        if taking.as_mut().is_none_or(|running| !running.is_running()) {
            if let Some(ended) = taking.take() {
                // It may fail; if it says that it has not, it is there.
                backups += usize::from(ended.wait(DEADLINE).code() == 0);
            }
            taking = Some(rig.site.walden.start(backup));
        }
    }
    drop(taking);
    rig.postgres.calm();
    assert!(rig.complete_backups() >= backups, "seed {seed}");
    oracle.stop(clients);
    // The store goes on as it is: what is restored is restored through the storm.
    rig.assert_promises(run, &oracle);
    rig.store.calm();
    figures.rounds = 1;
    figures.restores = 1;
    figures.backups = u32::try_from(backups).expect("few");
    for (name, count) in rig.store.fired().into_iter().chain(rig.postgres.fired()) {
        *figures.faults.entry(name).or_default() += count;
    }
    figures
}

/// What storms have come to.
#[derive(Debug, Default)]
struct Figures {
    rounds: u32,
    kills: u32,
    backups: u32,
    restores: u32,
    faults: BTreeMap<String, u32>,
    peak: u64,
    descriptors: usize,
}

#[test]
fn soak_random_faults_lose_nothing_and_cost_nothing() {
    let mut all = Figures::default();
    for round in Rounds::new(1) {
        let one = storm(
            round.seed,
            Duration::from_secs(if soak_length().is_some() { 30 } else { 5 }),
        );
        process::note(&format!("soak: storms, seed {}: {one:?}", round.seed));
        all.rounds += one.rounds;
        all.kills += one.kills;
        all.backups += one.backups;
        all.restores += one.restores;
        all.peak = all.peak.max(one.peak);
        all.descriptors = all.descriptors.max(one.descriptors);
        for (name, count) in one.faults {
            *all.faults.entry(name).or_default() += count;
        }
    }
    let faults: u32 = all.faults.values().sum();
    process::note(&format!("soak: storms: {faults} faults, 0 losses: {all:?}"));
    assert!(faults > 5 * all.rounds, "{all:?}");
}

#[test]
fn a_run_survives_every_fault_of_the_store_and_of_the_server() {
    let mut rig = Rig::new(18, "100ms");
    let run = rig.site.archive(&rig.server);
    let backup = ["backup", "--fast-checkpoint"];
    rig.site.walden.run(backup).expect_success();
    let mut oracle = Oracle::prepare(&rig.server, rig.seed);
    let clients = oracle.start(&rig.server, 2);
    write_wal(&rig.server, 2);
    let before = usage(run.id());

    let one_each = OF_REQUESTS.iter().enumerate().map(|(number, fault)| {
        let number = u32::try_from(number).expect("few");
        Rule::next(*fault).on("PUT", "").after(number)
    });
    rig.store.arm(one_each);
    wait_until("every fault of the store happened", DEADLINE, || {
        write_wal(&rig.server, 1);
        rig.store.all_fired().then_some(())
    });
    rig.store.calm();
    rig.postgres
        .arm(OF_CONNECTIONS.map(|(fault, after)| Trap { fault, after }));
    // The connection that streams gets the first; the next ones come after it ends.
    wait_until("every fault of the server happened", DEADLINE, || {
        write_wal(&rig.server, 1);
        rig.postgres.all_fired().then_some(())
    });
    rig.postgres.calm();
    write_wal(&rig.server, 2);
    oracle.stop(clients);
    let after = usage(run.id());
    process::note(&format!(
        "faults of the store {:?}, of the server {:?}, {} requests; run: {before:?}, then {after:?}",
        rig.store.fired(),
        rig.postgres.fired(),
        rig.store.requests()
    ));
    rig.assert_promises(run, &oracle);
}
