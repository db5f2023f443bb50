//! The replication slot as a session finds it: made if it is missing, made again if it keeps nothing any more.
//!
//! Owns what is asked of the server about it and the judgement. A slot is only ever dropped here when it keeps nothing: the server has
//! given it up (`max_slot_wal_keep_size`, `idle_replication_slot_timeout`) or it never kept anything. What that has lost is found out by
//! asking for the WAL at the repository's end, which may still be there: `gap.rs`. Dropping one that keeps too much is `disk_guard.rs`.

use wal_format::{Lsn, SegmentSize};

use super::{Receiver, error_text};
use crate::error::ServerErrorKind;
use crate::replication::{
    Connection, ConnectionInfo, Deadlines, Mode, SlotPosition, SlotStatus, WalStatus,
};
use crate::resume::ResumePoint;
use crate::{Error, Result};

/// A slot that is fit to stream with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UsableSlot {
    /// Oldest WAL it keeps.
    pub(super) restart_lsn: Option<Lsn>,
    /// What became of the one before, if it is new: for the record of a gap.
    pub(super) story: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Missing,
    Usable(SlotPosition),
    /// It keeps nothing, and why.
    Useless(String),
}

/// What a slot is worth. `status` is what `pg_replication_slots` says, where that may be read.
fn judge(position: Option<SlotPosition>, status: Option<&SlotStatus>) -> Verdict {
    let Some(position) = position else {
        return Verdict::Missing;
    };
    let given_up = status.and_then(|status| {
        let reason = status.invalidation_reason.as_deref();
        match (&status.wal_status, reason) {
            (_, Some("wal_removed")) | (Some(WalStatus::Lost), None) => Some(
                "was lost: the server has removed WAL that it kept (max_slot_wal_keep_size)"
                    .to_owned(),
            ),
            (_, Some("idle_timeout")) => {
                Some("was invalidated: nobody used it for idle_replication_slot_timeout".to_owned())
            }
            (_, Some(reason)) => Some(format!("was invalidated: {reason}")),
            _ => None,
        }
    });
    match given_up {
        // Whoever uses it can still store what it sends.
        Some(_) if status.is_some_and(|status| status.is_active) => Verdict::Usable(position),
        Some(why) => Verdict::Useless(why),
        None if position.restart_lsn.is_none() => {
            Verdict::Useless("kept no WAL: it was lost, or made without reserving any".to_owned())
        }
        None => Verdict::Usable(position),
    }
}

/// The settings with a database to ask questions in.
pub(super) fn for_questions(info: &ConnectionInfo) -> ConnectionInfo {
    let mut info = info.clone();
    info.database.get_or_insert_with(|| "postgres".to_owned());
    info
}

/// The settings for another connection than the one that streams, under a name of its own: commits may wait for the name of that one.
pub(super) fn beside(info: &ConnectionInfo, purpose: &str) -> ConnectionInfo {
    let mut info = info.clone();
    info.application_name = format!("{}_{purpose}", info.application_name);
    info
}

impl Receiver {
    /// Our slot, fit to stream with.
    pub(super) async fn usable_slot(&self, connection: &mut Connection) -> Result<UsableSlot> {
        let position = connection.read_slot(&self.config.slot).await?;
        let status = match position {
            None => None,
            Some(_) => self.ask_status(connection).await,
        };
        match judge(position, status.as_ref()) {
            Verdict::Usable(position) => Ok(UsableSlot {
                restart_lsn: position.restart_lsn,
                story: None,
            }),
            Verdict::Missing => {
                let restart_lsn = self.make_slot(connection).await?;
                tracing::info!(slot = self.config.slot, "made the replication slot");
                Ok(UsableSlot {
                    restart_lsn,
                    story: Some(format!("there was no slot {:?}", self.config.slot)),
                })
            }
            Verdict::Useless(why) => self.remake_slot(connection, &why).await,
        }
    }

    /// Drops a slot that keeps nothing and makes it again, so that it keeps what the server writes from now on.
    pub(super) async fn remake_slot(
        &self,
        connection: &mut Connection,
        why: &str,
    ) -> Result<UsableSlot> {
        let story = format!("the slot {:?} {why}", self.config.slot);
        connection.drop_slot(&self.config.slot).await?;
        let restart_lsn = self.make_slot(connection).await?;
        tracing::error!(
            "{story}; it was made again: what of its WAL is still there is fetched, the rest is a gap"
        );
        Ok(UsableSlot {
            restart_lsn,
            story: Some(story),
        })
    }

    async fn make_slot(&self, connection: &mut Connection) -> Result<Option<Lsn>> {
        match connection
            .create_physical_slot(&self.config.slot, true)
            .await
        {
            // Another `run` was faster: whose turn it is shows when one of us streams.
            Err(error) if error.server_kind() == Some(ServerErrorKind::SlotExists) => {}
            made => drop(made?),
        }
        let position = connection.read_slot(&self.config.slot).await?;
        Ok(position.and_then(|position| position.restart_lsn))
    }

    /// What `pg_replication_slots` says, on the server that we stream from; `None` if it cannot be asked: a role may have the right to
    /// replicate and no other.
    async fn ask_status(&self, replication: &Connection) -> Option<SlotStatus> {
        let info = for_questions(&self.hosts.same(&self.config.connection));
        let asked = async {
            let mut sql = Connection::connect_with(&info, Mode::Sql, Deadlines::DEFAULT).await?;
            // One of several servers: what another says of its slot of that name is nothing to us.
            if sql.address() != replication.address() {
                return Ok(None);
            }
            let status = sql.slot_status(&self.config.slot).await?;
            sql.close().await?;
            Ok::<_, Error>(status)
        };
        asked.await.unwrap_or_else(|error| {
            tracing::debug!(
                error = error_text(&error),
                "pg_replication_slots cannot be read: the slot is judged by what it keeps"
            );
            None
        })
    }

    /// Says so where the slot begins behind the place to go on: somebody has made it again or moved it.
    pub(super) fn warn_of_slot_ahead(
        &self,
        size: SegmentSize,
        restart_lsn: Option<Lsn>,
        point: ResumePoint,
    ) {
        let Some(kept) = restart_lsn.filter(|lsn| size.segment(*lsn) > size.segment(point.start))
        else {
            return;
        };
        tracing::warn!(
            slot = self.config.slot,
            stored_to = %point.start,
            slot_from = %kept,
            "the slot does not keep all WAL that is not stored yet: it is new, or somebody made it again or moved it; asking for the rest \
             while the server still has it"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(wal_status: &WalStatus, reason: Option<&str>, is_active: bool) -> SlotStatus {
        SlotStatus {
            is_physical: true,
            is_active,
            active_pid: None,
            restart_lsn: None,
            wal_status: Some(wal_status.clone()),
            safe_wal_size: None,
            invalidation_reason: reason.map(str::to_owned),
        }
    }

    #[test]
    fn a_slot_is_made_again_only_when_it_keeps_nothing() {
        let at = |lsn: Option<u64>| {
            Some(SlotPosition {
                restart_lsn: lsn.map(Lsn::new),
                restart_timeline: None,
            })
        };
        let useless = |position, status: Option<SlotStatus>| {
            matches!(judge(position, status.as_ref()), Verdict::Useless(_))
        };
        assert_eq!(judge(None, None), Verdict::Missing);
        assert!(useless(at(None), None));
        assert!(!useless(at(Some(1)), None));
        for kept in [
            WalStatus::Reserved,
            WalStatus::Extended,
            WalStatus::Unreserved,
            WalStatus::Other("x".into()),
        ] {
            assert!(!useless(at(Some(1)), Some(status(&kept, None, false))));
        }
        let lost = |reason, is_active| Some(status(&WalStatus::Lost, reason, is_active));
        assert!(useless(at(Some(1)), lost(None, false)));
        assert!(useless(at(None), lost(Some("wal_removed"), false)));
        assert!(useless(at(Some(1)), lost(Some("idle_timeout"), false)));
        assert!(!useless(at(Some(1)), lost(None, true)));
    }
}
