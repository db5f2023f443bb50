//! How many tail chunks there are, and when: one within `rpo` of a commit on a server that is otherwise silent, no more than time and
//! group commit ask for, and never more of one segment than a reader has to put together.

use super::{
    DEADLINE, DELIVERY, chunk_seconds, plan, receive, terminate, wait_until_synchronous, waiting,
};
use crate::site::Site;
use crate::support::oracle_commits::{Committers, Work};
use crate::support::postgres::Server;
use crate::support::process::note;
use crate::support::soak;
use crate::support::wait_until;
use std::time::{Duration, Instant};
use wal_format::TimelineId;

fn chunks(site: &Site) -> usize {
    let catalog = site.catalog_with_covered();
    let timelines = catalog.timelines.values();
    timelines
        .map(|objects| {
            objects
                .tails
                .values()
                .map(|chunks| chunks.len())
                .sum::<usize>()
        })
        .sum()
}

#[test]
fn one_commit_and_silence_is_stored_in_time() {
    const RPO: Duration = Duration::from_secs(1);
    let server = Server::builder(18).wal_segment_mib(1).start();
    let site = Site::new(&server, plan("1s", None));
    let run = receive(&server, &site.walden);
    // Whatever the start has brought is stored.
    wait_until("the start is stored", DEADLINE, || {
        let end = super::written(&server);
        (super::stored(&site) >= Some(end)).then_some(())
    });
    std::thread::sleep(RPO / 2);
    let before = chunks(&site);
    server.psql("insert into walden_commits values (0, 0, 'one')");
    let (committed, end) = (Instant::now(), super::written(&server));
    let took = wait_until("the commit is stored", DEADLINE, || {
        (super::stored(&site) >= Some(end)).then(|| committed.elapsed())
    });
    let (_, log) = run.printed();
    let put = chunk_seconds(&log).into_iter().fold(0.0, f64::max);
    let bound = RPO + DELIVERY + Duration::from_secs_f64(put);
    assert!(
        took <= bound,
        "stored after {took:?}, {bound:?} are allowed"
    );
    std::thread::sleep(RPO * 2);
    let silent = chunks(&site) - before;
    assert!((1..=2).contains(&silent), "{silent} chunks of one commit");
    terminate(run);
    note(&format!(
        "rpo = 1s: one commit, then silence: stored after {took:.2?}"
    ));
}

#[test]
fn a_slow_database_makes_a_chunk_for_each_interval() {
    const RPO: Duration = Duration::from_millis(500);
    let server = super::waiting(18)
        .setting("synchronous_standby_names = ''")
        .start();
    let site = Site::new(&server, plan("500ms", None));
    let run = receive(&server, &site.walden);
    let before = chunks(&site);
    let work = Work {
        clients: 1,
        segment_bytes: 0,
        pause: Duration::from_millis(20),
    };
    let begun = Instant::now();
    let clients = Committers::start(&server, soak::seed(), work);
    clients.wait_for_each(60, DEADLINE);
    let (logged, passed) = (clients.logged(), begun.elapsed());
    let made = chunks(&site) - before;
    let most = passed.as_millis() / RPO.as_millis() + 2;
    assert!(
        made as u128 <= most && made >= 1,
        "{made} chunks in {passed:?}"
    );
    note(&format!(
        "rpo = 500ms: {made} chunks for {logged} commits in {passed:.2?}"
    ));
    drop(server);
    clients.logs();
    run.kill();
}

/// More clients than a store has answers for share its answers.
#[test]
fn waiting_commits_share_their_chunks() {
    let server = waiting(18).start();
    let site = Site::new(&server, plan("sync", None));
    let run = receive(&server, &site.walden);
    wait_until_synchronous(&server);
    let before = chunks(&site);
    let work = Work {
        clients: 8,
        segment_bytes: 0,
        pause: Duration::ZERO,
    };
    let clients = Committers::start(&server, soak::seed(), work);
    clients.wait_for_each(40, DEADLINE);
    let (logged, made) = (clients.logged(), chunks(&site) - before);
    assert!(
        logged * 3 > made * 4,
        "{made} chunks for {logged} commits of 8 clients"
    );

    // Of each segment only so many are needed as a reader may have to fetch.
    let objects = site
        .catalog_with_covered()
        .timelines
        .remove(&TimelineId::FIRST)
        .expect("stored");
    let needed = objects.tails.values().map(|chunks| {
        let (mut reach, mut count) = (0, 0);
        while let Some(next) = chunks
            .iter()
            .filter(|chunk| chunk.from <= reach)
            .map(|chunk| chunk.to)
            .max()
            .filter(|to| *to > reach)
        {
            (reach, count) = (next, count + 1);
        }
        count
    });
    let needed = needed.max().expect("some");
    assert!(
        needed <= MOST_CHUNKS,
        "{needed} chunks to put a segment together"
    );
    note(&format!(
        "rpo = sync: {made} chunks for {logged} commits of 8 clients; {needed} make the longest tail"
    ));
    drop(server);
    clients.logs();
    run.kill();
}

/// That a tail is put together from.
const MOST_CHUNKS: usize = 64;
