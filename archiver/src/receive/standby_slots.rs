//! A slot on each of the other listed servers, so that after a failover the new primary still has the WAL from where the repository ends.
//!
//! A standby's slot does not move by itself. From time to time it is advanced to what is durable by policy: what the primary was told is
//! flushed, never beyond what that standby has replayed (the server sees to it). So it keeps what a failover needs, and no more piles up than
//! arrives between two visits, or while nothing is stored. Owns those visits; the slot in use moves by streaming.

use std::collections::BTreeMap;
use std::time::Duration;

use wal_format::Lsn;

use crate::Result;
use crate::replication::{Connection, ConnectionInfo, Mode, ReportedFlush, WalStatus};
use crate::upload::error_text;

/// Time between two rounds of visits.
const INTERVAL: Duration = Duration::from_secs(10);
/// Longest time for one visit.
const VISIT_DEADLINE: Duration = Duration::from_secs(30);

/// What keeping slots needs to know.
pub(super) struct StandbySlots {
    /// One for each server.
    pub(super) servers: Vec<ConnectionInfo>,
    pub(super) slot: String,
    pub(super) system_identifier: u64,
    /// What is durable.
    pub(super) stored: ReportedFlush,
}

/// What a visit found or did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Visit {
    /// The slot is where it should be.
    Kept,
    /// There was none, or it had lost its WAL.
    Made,
    /// Another connection uses it.
    InUse,
    /// It is a primary: not this cluster's living one, or the one received from by another name.
    Primary,
    /// Another cluster.
    Foreign,
    /// A logical slot has the name.
    Logical,
}

impl StandbySlots {
    /// Visits for as long as it is polled.
    pub(super) async fn keep(self) {
        let mut said: BTreeMap<String, String> = BTreeMap::new();
        loop {
            for server in &self.servers {
                let visit = tokio::time::timeout(VISIT_DEADLINE, self.visit(server)).await;
                let found = match visit {
                    Ok(Ok(visit)) => Ok(visit),
                    Ok(Err(error)) => Err(error_text(&error)),
                    Err(_) => Err(format!("no answer within {VISIT_DEADLINE:?}")),
                };
                let host: Vec<String> = server.hosts.iter().map(ToString::to_string).collect();
                let host = host.join(",");
                let text = format!("{found:?}");
                // Only what changed is worth a line.
                if said.get(&host) != Some(&text) {
                    self.say(&host, &found);
                    said.insert(host, text);
                }
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }

    fn say(&self, host: &str, found: &Result<Visit, String>) {
        let slot = &self.slot;
        match found {
            Ok(Visit::Kept) => {
                tracing::debug!(host, slot, "the standby keeps a slot for a failover")
            }
            Ok(Visit::Made) => {
                tracing::info!(host, slot, "made a slot on a standby, for a failover to it")
            }
            Ok(Visit::InUse) => tracing::debug!(host, slot, "the slot is in use there"),
            Ok(Visit::Primary) => tracing::debug!(host, "not a standby: its slots are left alone"),
            Ok(Visit::Foreign) => tracing::error!(host, "another cluster: it cannot take over"),
            Ok(Visit::Logical) => tracing::error!(
                host,
                slot,
                "a logical slot has our slot's name there: a failover to it may lose WAL"
            ),
            Err(error) => tracing::warn!(
                host,
                error,
                "no slot can be kept there: after a failover to it, WAL that is not stored yet may be missing"
            ),
        }
    }

    async fn visit(&self, server: &ConnectionInfo) -> Result<Visit> {
        let mut info = server.clone();
        // A function call needs a database; any will do.
        info.database.get_or_insert_with(|| "postgres".to_owned());
        let mut sql = Connection::connect(&info, Mode::Sql).await?;
        let visit = self.settle(&mut sql).await;
        if let Err(error) = sql.close().await {
            tracing::debug!(error = error_text(&error), "closing a visit to a standby");
        }
        visit
    }

    async fn settle(&self, sql: &mut Connection) -> Result<Visit> {
        let asked = sql
            .simple_query("SELECT system_identifier, pg_catalog.pg_is_in_recovery() AS standby, pg_catalog.pg_last_wal_replay_lsn() AS replayed FROM pg_catalog.pg_control_system()")
            .await?;
        let identifier = asked.text(0, "system_identifier");
        if identifier.and_then(|text| text.parse().ok()) != Some(self.system_identifier) {
            return Ok(Visit::Foreign);
        }
        if asked.text(0, "standby") != Some("t") {
            return Ok(Visit::Primary);
        }
        let status = sql.slot_status(&self.slot).await?;
        let Some(status) = status else {
            sql.create_slot_by_sql(&self.slot).await?;
            return Ok(Visit::Made);
        };
        if !status.is_physical {
            return Ok(Visit::Logical);
        }
        if status.is_active {
            return Ok(Visit::InUse);
        }
        let lost = status.wal_status == Some(WalStatus::Lost);
        let Some(restart) = status.restart_lsn.filter(|_| !lost) else {
            sql.drop_slot_by_sql(&self.slot).await?;
            sql.create_slot_by_sql(&self.slot).await?;
            return Ok(Visit::Made);
        };
        let replayed = asked.text(0, "replayed").and_then(|text| text.parse().ok());
        if let Some(to) = advance(restart, self.stored.get(), replayed) {
            sql.advance_slot(&self.slot, to).await?;
        }
        Ok(Visit::Kept)
    }
}

/// Where a slot is moved to, if it is behind: never beyond what is `stored`, as a failover must find the rest, nor beyond what its server has
/// replayed, which knows no later place.
fn advance(restart: Lsn, stored: Lsn, replayed: Option<Lsn>) -> Option<Lsn> {
    let to = stored.min(replayed.unwrap_or(Lsn::INVALID));
    (restart < to).then_some(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_moved_to_what_is_stored_and_the_standby_has() {
        let check = |restart, stored, replayed: Option<u64>, expected: Option<u64>| {
            let to = advance(Lsn::new(restart), Lsn::new(stored), replayed.map(Lsn::new));
            assert_eq!(
                to,
                expected.map(Lsn::new),
                "{restart} {stored} {replayed:?}"
            );
        };
        check(10, 20, Some(30), Some(20));
        check(10, 30, Some(20), Some(20));
        check(20, 20, Some(30), None);
        check(25, 20, Some(30), None);
        check(10, 20, None, None);
        // Nothing was reported yet.
        check(10, 0, Some(30), None);
    }
}
