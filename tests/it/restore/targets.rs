//! `walden restore` to every kind of target, row for row as the oracle knows them.

use super::{DEADLINE, Source};
use crate::support::object_store::Bucket;
use crate::support::oracle::{Oracle, Rows, assert_same_rows, rows};
use crate::support::postgres::{Builder, Server};
use crate::support::wal_dump::{Lsn, Target};
use crate::support::walden::wait_until_stored;
use crate::support::workload::{Outcome, Random};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// The target on the command line; `bare` where `--to` alone understands it.
fn target_arguments(target: &Target, bare: bool) -> Vec<String> {
    let (name, value, inclusive) = match target {
        Target::Latest => ("--to", "latest".to_owned(), true),
        Target::Time { time, inclusive } => ("--to-time", time.to_string(), *inclusive),
        Target::Lsn { lsn, inclusive } => ("--to-lsn", lsn.to_string(), *inclusive),
        Target::Xid { xid, inclusive } => ("--to-xid", xid.to_string(), *inclusive),
        Target::Name(name) => ("--to-name", name.clone(), true),
    };
    let name = match target {
        Target::Time { .. } | Target::Lsn { .. } if bare => "--to",
        _ => name,
    };
    let mut arguments = vec![name.to_owned(), value];
    if !inclusive {
        arguments.push("--exclusive".to_owned());
    }
    arguments
}

/// Every `every`-th target of every kind: the rows are those the oracle knows, no more and no fewer.
fn restores_to_every_target(
    builder: Builder,
    encrypted: bool,
    bucket: Option<&Bucket>,
    every: usize,
) {
    let source = Source::start(builder, encrypted, bucket);
    let server = &source.server;
    let mut oracle = Oracle::prepare(server, 21);
    let running = oracle.start(server, 3);
    running.wait_for_more(20, DEADLINE);
    source.backup();
    oracle.stop(running);
    let backed_up = server.psql("select pg_current_wal_flush_lsn()");
    oracle.run(server, 3, Duration::from_secs(2));
    server.psql("select pg_create_restore_point('a \"point\" of größe')");
    oracle.run(server, 2, Duration::from_millis(500));
    assert!(oracle.journal.count(Outcome::Committed) > 40);
    let dump = oracle.dump(server);
    oracle.check(&dump, Some(server));
    let latest = oracle.rows_at(&dump, &Target::Latest);
    assert_same_rows("the source", &latest, &rows(server));
    wait_until_stored(server);

    let from = Lsn::parse(&backed_up);
    let mut targets = oracle.targets(&dump, from, &mut Random::new(5));
    targets.push(Target::Latest);
    let chosen: Vec<(usize, Target)> = targets.into_iter().enumerate().step_by(every).collect();
    assert!(chosen.len() >= 24 / every, "{} targets", chosen.len());
    // Two at a time: each has folders, a port and a server of its own.
    let next = AtomicUsize::new(0);
    let different = std::thread::scope(|scope| {
        let work = || {
            let mut different = BTreeSet::new();
            while let Some((number, target)) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                let expected = oracle.rows_at(&dump, target);
                restores_to(&source, *number, target, &expected);
                different.insert(expected.len());
            }
            different
        };
        let workers = [scope.spawn(work), scope.spawn(work)];
        let done = workers.map(|worker| worker.join().expect("every target is reached"));
        done.into_iter().flatten().collect::<BTreeSet<usize>>()
    });
    assert!(
        next.load(Ordering::Relaxed) >= chosen.len(),
        "none was left"
    );
    assert!(
        different.len() > 24 / every / 4,
        "the targets differ in their rows"
    );
}

#[track_caller]
fn restores_to(source: &Source, number: usize, target: &Target, expected: &Rows) {
    let mut arguments = target_arguments(target, number.is_multiple_of(2));
    let promote = number % 4 == 3;
    let action = if promote { "promote" } else { "pause" };
    arguments.extend(["--action", action].map(str::to_owned));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let name = format!("re 'st\" {number} 5%f %p ü");
    let restored = source.restorer.restore(&name, &arguments);
    assert_eq!(restored.said["action"], action);
    assert_eq!(restored.said["port"], restored.port.number());
    assert_same_rows(&format!("{target:?}"), expected, &rows(&restored.client));
    if promote {
        let opened = restored
            .client
            .psql("insert into walden_oracle values (-1, 'new'); select pg_is_in_recovery()");
        assert_eq!(opened, "f");
    } else {
        assert!(restored.is_paused());
    }
}

#[test]
fn restores_to_every_target_on_18() {
    let builder = Server::builder(18).wal_segment_mib(1);
    restores_to_every_target(builder, true, None, 1);
}

#[test]
fn restores_to_a_third_of_targets_on_15_from_an_object_store() {
    let builder = Server::builder(15).data_checksums(false);
    restores_to_every_target(builder, false, Some(&Bucket::new()), 3);
}
