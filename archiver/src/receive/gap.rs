//! WAL that the server no longer has: finds where it can go on, records what lies between, once.
//!
//! The order of things makes it safe to be cut off anywhere: the hole is on record before a byte behind it is asked for, and until
//! something behind it is stored the next session begins at the repository's end again and finds the same. Owns the search and the record.
//! Does not own where to resume (`resume.rs`) or the slot (`slot.rs`).

use std::collections::BTreeSet;
use std::time::Duration;

use repository::catalog::GapRange;
use repository::gap::GapDocument;
use repository::key::ObjectKey;
use repository::{ErrorClass, Stored};
use wal_format::{SegmentName, SegmentNumber};

use super::disk_guard::GivenUp;
use super::slot::beside;
use super::{Receiver, error_text};
use crate::error::ServerErrorKind;
use crate::replication::{Connection, Mode, Started, StreamEvent};
use crate::resume::{ResumePoint, ServerPosition, missing_between, repository_end};
use crate::{Error, Result};

/// How long the server may take to send the first bytes of a segment, or to say that it has removed it.
const PROBE_DEADLINE: Duration = Duration::from_secs(30);

impl Receiver {
    /// The server no longer has the WAL at `point`: records the hole up to the first WAL that it has, and goes on there.
    pub(super) async fn record_gap(
        &mut self,
        server: &ServerPosition,
        point: ResumePoint,
        story: Option<&str>,
        error: &Error,
    ) -> Result<ResumePoint> {
        // Somebody else may have stored some of it meanwhile. What one repository has is no gap: the others are filled from it.
        let catalog = self.survey().await?.union;
        let stored = repository_end(self.size, server, &catalog);
        // Tail chunks of the segment at `point` are there.
        let stored = stored.filter(|stored| stored.timeline == point.timeline);
        let from = stored.map_or(point.start, |stored| stored.end.max(point.start));
        let next = self.first_available(server, point).await?;
        let missing = missing_between(self.size, &server.history, point.timeline, from, next);
        let missing = missing.into_iter();
        let missing = missing.flat_map(|stretch| catalog.missing_in(stretch, self.size));
        let unrecorded: Vec<GapRange> = missing
            .flat_map(|stretch| catalog.unrecorded_in(stretch))
            .collect();
        for gap in &unrecorded {
            self.require_missing(*gap).await?;
        }
        if unrecorded.is_empty() {
            tracing::warn!(%from, to = %next.start, "going on behind a gap that is on record");
        }
        let said = error_text(error);
        let why = story.map_or(said.clone(), |story| format!("{story}; {said}"));
        for gap in unrecorded {
            self.put_gap(gap, &why).await?;
            let backup = match self.config.take_backup {
                Some(_) => "a new base backup is taken",
                None => "take a new base backup (walden backup)",
            };
            tracing::error!(from = %gap.from, to = %gap.to, timeline = gap.timeline.get(), why,
                "GAP: the server has removed WAL that is not stored; restores cannot cross it: {backup}");
        }
        Ok(next)
    }

    /// Records what a slot kept that we have dropped. Once this is done something can be stored again.
    pub(super) async fn record_given_up(&mut self, given_up: GivenUp) -> Result<()> {
        let catalog = self.survey().await?.union;
        let stretch = given_up.gap.map(|gap| GapRange {
            // More may have been stored than was reported.
            from: catalog
                .wal_end(gap.timeline, self.size)
                .map_or(gap.from, |end| gap.from.max(end)),
            ..gap
        });
        let missing: Vec<GapRange> = stretch
            .into_iter()
            .flat_map(|stretch| catalog.missing_in(stretch, self.size))
            .flat_map(|stretch| catalog.unrecorded_in(stretch))
            .collect();
        let why = format!(
            "disk_guard dropped the slot {:?}, which kept {} bytes of WAL",
            self.config.slot, given_up.kept_bytes
        );
        for gap in missing {
            self.require_missing(gap).await?;
            self.put_gap(gap, &why).await?;
            tracing::error!(from = %gap.from, to = %gap.to, timeline = gap.timeline.get(), why,
                "recorded a gap: what the server still has of it is fetched now and closes it");
        }
        Ok(())
    }

    /// A listing that lacks what is stored proves no gap: asks for the first and the last segment of the stretch themselves.
    async fn require_missing(&self, gap: GapRange) -> Result<()> {
        let ends = [gap.from, gap.to.saturating_sub(1)].map(|lsn| self.size.segment(lsn));
        let ends = BTreeSet::from(ends);
        let (mut answered, mut failed) = (false, None);
        for number in ends {
            let name = SegmentName::new(gap.timeline, number, self.size);
            let key = ObjectKey::Segment {
                cluster: self.cluster,
                name,
            };
            for repository in self.uploader.repositories() {
                match repository.fetch_descriptor(&key).await {
                    Ok(_) => {
                        let object = format!("{}/{key}", repository.url());
                        return Err(Error::Unlisted { object });
                    }
                    Err(error) if error.class() == ErrorClass::NotFound => answered = true,
                    Err(error) => failed = Some(error),
                }
            }
        }
        // As with listings: one that cannot be asked is gone on without.
        match failed.filter(|_| !answered) {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }

    async fn put_gap(&mut self, gap: GapRange, why: &str) -> Result<()> {
        let now = jiff::Timestamp::from_microsecond(jiff::Timestamp::now().as_microsecond());
        let document = GapDocument::new(gap, why, now.unwrap_or_default());
        let stored = self
            .uploader
            .put_json(&gap.key(self.cluster), &document)
            .await?;
        if stored == Stored::New {
            self.gaps_recorded += 1;
        }
        Ok(())
    }

    /// The first segment behind `missing` that the server has. It removes the oldest first, so halving finds it: what a slot was lost for is
    /// seldom gone whole, and each segment that is fetched is one less in the gap.
    async fn first_available(
        &self,
        server: &ServerPosition,
        missing: ResumePoint,
    ) -> Result<ResumePoint> {
        let mut gone = self.size.segment(missing.start);
        let kept = server.restart_lsn.map(|lsn| self.size.segment(lsn));
        let mut there = kept
            .filter(|number| *number > gone)
            .unwrap_or_else(|| self.size.segment(server.flush_lsn));
        if there <= gone {
            return Err(Error::Protocol {
                during: "START_REPLICATION".into(),
                reason: format!(
                    "the server has removed WAL at {}, where its slot or end says that it goes on",
                    missing.start
                ),
            });
        }
        let point = |number: SegmentNumber| {
            let start = self.size.start(number);
            ResumePoint {
                timeline: server.history.timeline_at(start),
                start,
            }
        };
        while there.as_u64() - gone.as_u64() > 1 {
            let middle = SegmentNumber::new(gone.as_u64() + (there.as_u64() - gone.as_u64()) / 2);
            match self.is_available(point(middle)).await? {
                true => there = middle,
                false => gone = middle,
            }
        }
        Ok(point(there))
    }

    /// Whether the server sends WAL from there on. Asked on a connection of its own: streaming ends with it.
    async fn is_available(&self, point: ResumePoint) -> Result<bool> {
        let info = beside(&self.hosts.same(&self.config.connection), "probe");
        let mut probe = Connection::connect(&info, Mode::PhysicalReplication).await?;
        let ask = async {
            let started = probe
                .start_replication(None, point.start, point.timeline)
                .await?;
            if started == Started::Streaming {
                while let StreamEvent::Keepalive(_) = probe.next_message().await? {}
            }
            Ok::<_, Error>(())
        };
        match tokio::time::timeout(PROBE_DEADLINE, ask).await {
            Ok(Ok(())) => Ok(true),
            Ok(Err(error)) if error.server_kind() == Some(ServerErrorKind::WalRemoved) => Ok(false),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::Timeout {
                during: format!("ask for WAL at {}", point.start),
                after: PROBE_DEADLINE,
            }),
        }
    }
}
