//! Seconds of loss, or none: what a server that is gone, disk and all, leaves in the repository. With `rpo = "sync"` every commit that
//! returned; with an interval all but the last of them; and how many objects that takes. Clients in processes of their own are the witnesses.

mod chunks;
mod settings;
mod vanished;

use crate::site::{Place, Plan, Site};
use crate::support::object_store::Bucket;
use crate::support::oracle_commits::{self, Committers};
use crate::support::postgres::{Builder, Server};
use crate::support::process::Running;
use crate::support::wait_until;
use crate::support::walden::Walden;
use rustix::process::Signal;
use std::time::Duration;
use wal_format::{Lsn, TimelineId};

const DEADLINE: Duration = Duration::from_secs(60);
/// What `walden run` has after SIGTERM.
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// Small, so that many commits cross their ends.
const SEGMENT_MIB: u32 = 1;
/// What a busy machine may take to carry a commit from the server to `walden run`, beyond what is measured.
const DELIVERY: Duration = Duration::from_millis(300);

/// A server whose clients' commits wait for `walden run`; nobody else's do.
fn waiting(major: u32) -> Builder {
    let builder = Server::builder(major).wal_segment_mib(SEGMENT_MIB);
    let builder = oracle_commits::SETTINGS
        .into_iter()
        .fold(builder, Builder::setting);
    builder.setting("synchronous_standby_names = 'walden'")
}

fn plan<'a>(rpo: &'a str, bucket: Option<&'a Bucket>) -> Plan<'a> {
    Plan {
        rpo,
        place: bucket.map_or(Place::Folder, Place::Bucket),
        ..Plan::default()
    }
}

/// `walden run` that says what it stores, and how long that takes; as the standby that commits wait for.
#[track_caller]
fn receive(server: &Server, walden: &Walden) -> Running {
    let run = walden.receive(server, ["-v", "--log-format", "json", "run"]);
    Committers::prepare(server);
    run
}

#[track_caller]
fn terminate(run: Running) {
    run.signal(Signal::TERM);
    run.wait(STOP_DEADLINE).expect_success();
}

fn is_synchronous(server: &Server) -> bool {
    server.psql("select sync_state from pg_stat_replication where application_name = 'walden'")
        == "sync"
}

#[track_caller]
fn wait_until_synchronous(server: &Server) {
    wait_until("commits wait for walden run", DEADLINE, || {
        is_synchronous(server).then_some(())
    });
}

/// How long each tail chunk took to be stored, from its log.
fn chunk_seconds(log: &str) -> Vec<f64> {
    let chunk = |line: &str| {
        let event: serde_json::Value = serde_json::from_str(line).ok()?;
        let fields = event.get("fields").unwrap_or(&event);
        let object = fields.get("object")?.as_str()?;
        let stored = fields.get("message")? == "stored" && object.contains("/tail/");
        stored.then(|| fields["seconds"].as_f64().expect("its time"))
    };
    log.lines().filter_map(chunk).collect()
}

/// The least, the middle, the one below which 99 of 100 lie, and the most.
fn distribution(values: &mut [f64]) -> String {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let last = values.len().saturating_sub(1);
        values
            .get((share * last as f64).round() as usize)
            .copied()
            .unwrap_or(0.0)
    };
    let [min, p50, p99, max] = [0.0, 0.5, 0.99, 1.0].map(at);
    format!("min {min:.3} s, p50 {p50:.3} s, p99 {p99:.3} s, max {max:.3} s")
}

fn written(server: &Server) -> Lsn {
    let end = server.psql("select pg_current_wal_flush_lsn()");
    end.parse().expect("an LSN")
}

/// The end of what is stored, by a listing.
fn stored(site: &Site) -> Option<Lsn> {
    site.catalog().wal_end(TimelineId::FIRST, site.size)
}
