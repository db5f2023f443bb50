//! A replication stream in which nothing comes any more and nobody says that it has ended: the receiver notices by its own deadline, connects
//! anew, and nothing is lost.

use super::{DEADLINE, Rig};
use crate::run::{flushed, lsn, terminate, wait_until_flushed, write_wal};
use crate::support::fault_proxy::Fault;
use crate::support::fault_proxy::server::Trap;
use crate::support::oracle::Oracle;
use crate::support::process;
use crate::support::wait_until;
use std::fs;
use std::time::{Duration, Instant};

/// What the receiver is told to bear.
const LONGEST: Duration = Duration::from_secs(2);
/// For a machine that does other things too.
const MARGIN: Duration = Duration::from_secs(3);
/// Until it streams again: while the server takes the dead connection for alive, the slot is in use.
const BACK: Duration = Duration::from_secs(20);
/// Bytes that only a stream of WAL brings.
const IN_THE_STREAM: u64 = 200_000;

#[test]
fn a_stream_that_goes_silent_is_made_again_within_its_deadline() {
    let mut rig = Rig::new(18, "100ms");
    let file = rig.server.scratch().join("walden/walden.toml");
    let text = fs::read_to_string(&file).expect("read the configuration");
    let setting = format!(
        "wal_receiver_timeout = \"{}s\"\n[archive]",
        LONGEST.as_secs()
    );
    let text = text.replace("[archive]", &setting);
    fs::write(&file, text).expect("write the configuration");
    // By itself the server would never let go of the slot.
    rig.server.psql("alter system set wal_sender_timeout = 0");
    rig.server.psql("select pg_reload_conf()");
    let mut run = rig.site.archive(&rig.server);
    let backup = ["backup", "--fast-checkpoint"];
    rig.site.walden.run(backup).expect_success();
    let mut oracle = Oracle::prepare(&rig.server, rig.seed);
    let clients = oracle.start(&rig.server, 2);

    let mut told = Vec::new();
    // Neither side hears of the other; then one that hears and is not heard, so that the server has no reason to hang up.
    for fault in [Fault::Stall, Fault::StallInAnswer] {
        let connections = rig.postgres.connections();
        let after = IN_THE_STREAM;
        rig.postgres.arm([Trap { fault, after }]);
        wait_until("the stream goes silent", DEADLINE, || {
            write_wal(&rig.server, 1);
            rig.postgres.all_fired().then_some(())
        });
        let begun = Instant::now();
        let held = wait_until("the receiver hangs up", DEADLINE, || {
            rig.postgres.take_held().pop()
        });
        assert!(
            held > LONGEST / 2 && held < LONGEST + MARGIN,
            "{fault:?}: borne for {held:?}"
        );
        clients.wait_for_more(20, DEADLINE);
        let written = lsn(&rig.server.psql("select pg_current_wal_flush_lsn()"));
        wait_until("all is stored again", DEADLINE, || {
            (flushed(&rig.server)? >= written).then_some(())
        });
        let back = begun.elapsed();
        assert!(back < BACK, "{fault:?}: back after {back:?}");
        assert!(rig.postgres.connections() > connections, "{fault:?}");
        assert!(run.is_running(), "{fault:?}: {:?}", run.printed());
        told.push(format!(
            "{fault:?} borne for {held:?}, all stored after {back:?}"
        ));
    }
    // A server that has nothing to say for long is not taken for silent: it is asked. (It must not ask us: with the timeout that we set for
    // it, it would; `options` win over that.)
    oracle.stop(clients);
    wait_until_flushed(&rig.server);
    terminate(run);
    let text = fs::read_to_string(&file).expect("read the configuration");
    let setting = "conninfo = \"options='-c wal_sender_timeout=0' ";
    fs::write(&file, text.replace("conninfo = \"", setting)).expect("write the configuration");
    let run = rig.site.archive(&rig.server);
    wait_until_flushed(&rig.server);
    let sender = || {
        rig.server
            .psql("select active_pid from pg_replication_slots where slot_name = 'walden'")
    };
    let quiet = sender();
    std::thread::sleep(2 * LONGEST + Duration::from_secs(1));
    assert_eq!(sender(), quiet, "connected anew");
    process::note(&told.join("; "));
    rig.assert_promises(run, &oracle);
}
