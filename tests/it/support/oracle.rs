//! The judge of a restore: every transaction a workload made, written down outside the database, and from that the
//! rows that must be there at any target. When a transaction ended, and in which order, is taken from `pg_waldump`.

use super::postgres::Server;
use super::process::COMMAND_DEADLINE;
use super::wal_dump::{Lsn, Target, TransactionEnd, WalDump};
use super::workload::{Journal, Outcome, Random, Running};
use std::collections::{BTreeMap, BTreeSet};

/// Row id and a digest of its payload.
pub(crate) type Rows = BTreeMap<i64, String>;

/// What is known of one cluster's `walden_oracle` table.
#[derive(Debug)]
pub(crate) struct Oracle {
    seed: u64,
    runs: u64,
    start: Lsn,
    pub(crate) journal: Journal,
}

impl Oracle {
    /// Makes the table on a server that has none yet.
    #[track_caller]
    pub(crate) fn prepare(server: &Server, seed: u64) -> Self {
        let start = Lsn::parse(&server.psql("select pg_current_wal_flush_lsn()"));
        server.psql("create table walden_oracle (id bigint primary key, payload text not null)");
        Self {
            seed,
            runs: 0,
            start,
            journal: Journal::default(),
        }
    }

    /// Where the WAL of the first transaction begins.
    pub(crate) fn start_lsn(&self) -> Lsn {
        self.start
    }

    /// Starts `clients` clients. Each run has rows of its own, so one whose outcome is unknown (the server crashed)
    /// harms no later one.
    pub(crate) fn start(&mut self, server: &Server, clients: u32) -> Running {
        self.runs += 1;
        Running::start(
            server,
            self.seed.wrapping_add(self.runs << 32),
            self.runs,
            clients,
        )
    }

    /// Ends a run and keeps what it did.
    #[track_caller]
    pub(crate) fn stop(&mut self, running: Running) {
        self.journal
            .transactions
            .extend(running.stop().transactions);
    }

    /// A run of this length.
    #[track_caller]
    pub(crate) fn run(&mut self, server: &Server, clients: u32, length: std::time::Duration) {
        let running = self.start(server, clients);
        std::thread::sleep(length);
        self.stop(running);
    }

    /// The WAL of everything so far, from a running primary that never changed its timeline.
    #[track_caller]
    pub(crate) fn dump(&self, server: &Server) -> WalDump {
        WalDump::of_server(server, self.start)
    }

    /// After a crash: what had not reached the WAL never happened, and its transaction number is given out again. `dump` is what the crash
    /// left.
    pub(crate) fn forget_lost(&mut self, dump: &WalDump) {
        let transactions = &mut self.journal.transactions;
        transactions
            .retain(|one| one.outcome == Outcome::Committed || dump.end_of(one.xid).is_some());
    }

    /// Compares what clients were told with what the WAL holds: no commit they saw is missing, no abort became a
    /// commit, and (if `server` still knows) commit times agree.
    #[track_caller]
    pub(crate) fn check(&self, dump: &WalDump, server: Option<&Server>) {
        for transaction in &self.journal.transactions {
            let end = dump.end_of(transaction.xid);
            let committed = end.map(|end| end.committed);
            let fits = match transaction.outcome {
                Outcome::Committed => committed == Some(true),
                // An abort is not flushed, so the last ones may not be in the WAL, or lost in a crash.
                Outcome::RolledBack => committed != Some(true),
                Outcome::Unknown => true,
            };
            assert!(fits, "{transaction:?} ended as {end:?}");
        }
        let Some(server) = server else { return };
        let known = server.psql(
            "select xid, to_char(time at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')
             from (select distinct xmin as xid, pg_xact_commit_timestamp(xmin) as time from walden_oracle) as rows",
        );
        // A row of a subtransaction carries an xid of its own, which no client was told.
        let ours: BTreeSet<u32> = self
            .journal
            .transactions
            .iter()
            .map(|one| one.xid)
            .collect();
        let mut compared = 0;
        for line in known.lines() {
            let (xid, time) = line.split_once('|').expect("two columns");
            let xid = xid.parse().expect("an xid");
            if ours.contains(&xid) {
                let end = dump.end_of(xid).expect("the WAL has its commit");
                assert_eq!(
                    end.time,
                    time.parse().expect("a time"),
                    "commit time of {xid}"
                );
                compared += 1;
            }
        }
        assert!(compared > 0, "no commit time was compared");
    }

    /// Targets of every kind between `from` and the last transactions of the dump: exactly on, just before and just
    /// after commits and aborts that the random numbers choose, and each restore point there.
    #[track_caller]
    pub(crate) fn targets(&self, dump: &WalDump, from: Lsn, random: &mut Random) -> Vec<Target> {
        let ends = dump.ends.iter().filter(|end| end.start >= from);
        let ends: Vec<&TransactionEnd> = ends.collect();
        // Recovery needs a later commit or abort to stop at a time, and times are not quite in WAL order.
        let ends = ends
            .get(5..ends.len().saturating_sub(10))
            .unwrap_or_default();
        let mut choose = |committed: bool| {
            let fitting: Vec<_> = ends
                .iter()
                .filter(|end| end.committed == committed)
                .collect();
            assert!(
                !fitting.is_empty(),
                "the workload is too short to choose targets from"
            );
            let count = u64::try_from(fitting.len()).expect("a count");
            let index = usize::try_from(random.below(count)).expect("within the list");
            (**fitting.get(index).expect("within the list")).clone()
        };
        let mut targets = Vec::new();
        for inclusive in [true, false] {
            let (commit, abort) = (choose(true), choose(false));
            let step = jiff::Span::new().microseconds(1);
            let times = [
                commit.time - step,
                commit.time,
                commit.time + step,
                abort.time,
            ];
            targets.extend(times.map(|time| Target::Time { time, inclusive }));
            let (commit, abort) = (choose(true), choose(false));
            let next = Lsn(commit.start.0 + 1);
            let lsns = [
                Lsn(commit.start.0 - 1),
                commit.start,
                next,
                commit.end,
                abort.start,
            ];
            targets.extend(lsns.map(|lsn| Target::Lsn { lsn, inclusive }));
            let xids = [choose(true).xid, choose(false).xid];
            targets.extend(xids.map(|xid| Target::Xid { xid, inclusive }));
        }
        let points = dump.restore_points.iter().filter(|(_, lsn)| *lsn >= from);
        targets.extend(points.map(|(name, _)| Target::Name(name.clone())));
        targets
    }

    /// The rows that must be there after a recovery to `target`.
    #[track_caller]
    pub(crate) fn rows_at(&self, dump: &WalDump, target: &Target) -> Rows {
        self.rows_of(&dump.committed_at(target))
    }

    /// The rows that exactly these transactions leave.
    fn rows_of(&self, committed: &BTreeSet<u32>) -> Rows {
        let mut rows = Rows::new();
        for transaction in &self.journal.transactions {
            if committed.contains(&transaction.xid) {
                for (id, digest) in &transaction.effects {
                    match digest {
                        Some(digest) => rows.insert(*id, digest.clone()),
                        None => rows.remove(id),
                    };
                }
            }
        }
        rows
    }
}

/// The rows that a server has.
#[track_caller]
pub(crate) fn rows(server: &Server) -> Rows {
    let sql = "select id, encode(sha256(convert_to(payload, 'UTF8')), 'hex') from walden_oracle";
    let output = server.try_psql(sql, COMMAND_DEADLINE).expect_success();
    let row = |line: &str| {
        let (id, digest) = line.split_once('|').expect("two columns");
        (id.parse().expect("an id is a number"), digest.to_owned())
    };
    output.stdout.lines().map(row).collect()
}

/// Fails the test unless both have the same rows, and says which differ.
#[track_caller]
pub(crate) fn assert_same_rows(what: &str, expected: &Rows, actual: &Rows) {
    let difference = difference(expected, actual);
    assert!(
        difference.is_empty(),
        "{what}: {} rows expected, {} there\n{difference}",
        expected.len(),
        actual.len()
    );
}

/// Empty if the rows are the same.
fn difference(expected: &Rows, actual: &Rows) -> String {
    let all: BTreeSet<i64> = expected.keys().chain(actual.keys()).copied().collect();
    let mut lines = Vec::new();
    for id in all {
        // The upper bits say who wrote the row: run and client.
        let name = format!(
            "row {id} (run {}, client {})",
            id >> 48,
            (id >> 32) & 0xFFFF
        );
        match (expected.get(&id), actual.get(&id)) {
            (Some(_), None) => lines.push(format!("missing: {name}")),
            (None, Some(_)) => lines.push(format!("must not be there: {name}")),
            (Some(one), Some(other)) if one != other => lines.push(format!("differs: {name}")),
            _ => {}
        }
    }
    let count = lines.len();
    lines.truncate(20);
    if count > lines.len() {
        lines.push(format!("and {} more", count - lines.len()));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(rows: &[(i64, &str)]) -> Rows {
        rows.iter()
            .map(|(id, digest)| (*id, (*digest).to_owned()))
            .collect()
    }

    #[test]
    fn rows_are_compared_both_ways() {
        let rows = of(&[(1, "a"), (2, "b")]);
        assert_eq!(difference(&rows, &rows), "");
        assert!(difference(&rows, &of(&[(1, "a")])).contains("missing: row 2"));
        assert!(difference(&of(&[(1, "a")]), &rows).contains("must not be there: row 2"));
        assert!(difference(&rows, &of(&[(1, "a"), (2, "c")])).contains("differs: row 2"));
    }
}
