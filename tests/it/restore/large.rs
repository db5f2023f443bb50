//! More data than fits where memory must not grow with it: over 1 GiB is filled in, streamed, backed up and restored once, and both
//! programs stay small.

use crate::support::postgres::Server;
use crate::support::process::{self, Output, Running, peak_memory};
use crate::support::restored::Restorer;
use crate::support::wait_until;
use crate::support::walden::{Walden, wait_until_stored};
use std::fs;
use std::time::{Duration, Instant};

const GIB: u64 = 1 << 30;
/// For `walden backup` and `walden restore` each.
const MAX_MEMORY: u64 = 256 << 20;
const DEADLINE: Duration = Duration::from_secs(300);
const ROWS: u64 = 116_000;
/// Pieces of 4 MiB of hashes: what repeats is farther apart than LZ4 looks back.
const FILL: &str = "
create table large (id bigint, filler bytea);
alter table large alter filler set storage external;
insert into large
    select id, sha512(int8send(id)) || substr(hashes, (id * 9500 % 4000000)::int + 1, 9500)
    from (select string_agg(sha512(int8send(part)), '') as hashes from generate_series(1, 65536) part) source,
        generate_series(1, ROWS) id";
const CHECK: &str =
    "select count(*), sum(id), sum(length(filler)), sum(crc32c(filler) # id) from large";

/// Runs it to its end, and gives the most memory that it was seen to have.
#[track_caller]
fn watch(what: &str, mut running: Running) -> (Output, u64) {
    let mut peak = 0;
    wait_until(what, DEADLINE, || {
        peak = peak.max(peak_memory(running.id()).unwrap_or(0));
        (!running.is_running()).then_some(())
    });
    let output = running.wait(DEADLINE).expect_success();
    assert!(peak > 1 << 20, "{what}: it was watched");
    (output, peak)
}

#[test]
fn more_than_a_gib_is_backed_up_and_restored_in_little_memory() {
    let builder = Server::builder(18)
        .setting("synchronous_commit = off")
        .setting("max_wal_size = 4GB")
        .setting("wal_keep_size = 0");
    let (mut restorer, builder) = Restorer::for_source(builder);
    let server = builder.start();
    let folder = server.scratch().join("large");
    fs::create_dir(&folder).unwrap();
    restorer.url = format!("file://{}", folder.join("repository").display());
    restorer.identity = Some(format!("file:{}", folder.join("walden.key").display()));
    let walden = Walden::in_directory(&folder);
    let conninfo = server.conninfo();
    walden
        .run(["init", &restorer.url, "--postgres", &conninfo])
        .expect_success();
    let run = walden.receive(&server, ["run", "--rpo", "1s"]);

    let begun = Instant::now();
    let fill = FILL.replace("ROWS", &ROWS.to_string());
    server.try_psql(&fill, DEADLINE).expect_success();
    let size = "select pg_database_size('postgres')";
    let size: u64 = server.psql(size).parse().unwrap();
    assert!(size >= GIB, "{size} bytes are less than a GiB");
    let written = server.psql("select pg_current_wal_lsn() - '0/0'");
    let filled = begun.elapsed();

    let backup = walden.start(["backup", "--fast-checkpoint", "--json"]);
    let (backup, backup_peak) = watch("walden backup", backup);
    let said = backup.json();
    assert!(said["plain_bytes"].as_u64() >= Some(size), "{said}");
    server.psql(
        "set synchronous_commit = on;
         insert into large select id, sha512(int8send(id)) from generate_series(-1000, -1) id",
    );
    wait_until_stored(&server);
    let run_peak = peak_memory(run.id()).unwrap();

    let mut restored = restorer.place("large");
    let arguments = restorer.arguments(&restored, &["--to", "latest"]);
    let (restore, restore_peak) = watch("walden restore", restorer.walden.start(arguments));
    restored.said = restore.json();
    let sums = |server: &Server| server.try_psql(CHECK, DEADLINE).expect_success().stdout;
    let (here, there) = (sums(&server), sums(&restored.client));
    assert_eq!(here, there);
    assert!(here.starts_with(&format!("{}|", ROWS + 1000)), "{here}");
    process::note(&format!(
        "{} MiB of data, WAL up to {} MiB: filled in {filled:.1?}, backed up in {:.1?} with {} MiB of memory, restored in {:.1?} with {} MiB; walden run had {} MiB",
        size >> 20,
        written.parse::<u64>().unwrap() >> 20,
        backup.took,
        backup_peak >> 20,
        restore.took,
        restore_peak >> 20,
        run_peak >> 20,
    ));
    for (what, peak) in [
        ("backup", backup_peak),
        ("restore", restore_peak),
        ("run", run_peak),
    ] {
        assert!(peak < MAX_MEMORY, "walden {what} had {peak} bytes");
    }
}
