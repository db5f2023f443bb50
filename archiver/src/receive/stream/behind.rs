//! Repositories that are behind the others while WAL streams: what fills them is asked to go on, and they are spoken of. Who is behind, and
//! who takes part again when, is decided in `lanes.rs`.

use std::time::{Duration, Instant};

use super::super::lanes::LaneState;
use super::Streaming;
use crate::progress::positions;

/// How often a repository that is behind is spoken of.
const REMINDER: Duration = Duration::from_secs(60);

impl Streaming {
    /// Has a lane that is behind filled up, and lets it take part again when it is.
    pub(super) fn follow_filling(&mut self, lane: usize, now: Instant) {
        let done =
            self.requests[lane].is_some_and(|request| self.receiver.fillers.is_done(lane, request));
        match self.lanes.state(lane) {
            LaneState::Behind(_) if done || self.requests[lane].is_none() => {
                // The first time through the bulk is copied, and nobody waits for it.
                if done {
                    self.lanes.join(lane);
                }
                let live = (0..self.puts.len())
                    .filter(|lane| matches!(self.lanes.state(*lane), LaneState::Live));
                let request = self.receiver.fillers.request(lane, live.collect());
                self.requests[lane] = Some(request);
            }
            LaneState::Joining(since) if done => {
                self.lanes.joined(lane, now);
                self.requests[lane] = None;
                tracing::info!(
                    repository = self.name(lane),
                    seconds = now.duration_since(since).as_secs(),
                    "this repository has caught up"
                );
            }
            LaneState::Live | LaneState::Refused => self.requests[lane] = None,
            LaneState::Behind(_) | LaneState::Joining(_) => {}
        }
    }

    /// Says of each repository that is behind how far, and what follows for the server.
    pub(super) fn remind(&mut self, now: Instant) {
        if self
            .reminded
            .is_some_and(|at| now.duration_since(at) < REMINDER)
        {
            return;
        }
        let durable: Vec<_> = self.lanes.durable().collect();
        let flush = self.positions().flush;
        for (lane, durable) in durable.into_iter().enumerate() {
            let (LaneState::Behind(since) | LaneState::Joining(since)) = self.lanes.state(lane)
            else {
                continue;
            };
            self.reminded = Some(now);
            let (name, seconds) = (self.name(lane), now.duration_since(since).as_secs());
            let behind_bytes = durable.and_then(|lsn| self.lanes.received().distance_from(lsn));
            let held = flush < self.assembler.position() && self.holds_server(lane);
            match held {
                true => tracing::warn!(
                    repository = name,
                    seconds,
                    ?behind_bytes,
                    "this repository is behind, and ack needs it: the server KEEPS ALL WAL until it has caught up"
                ),
                false => tracing::warn!(
                    repository = name,
                    seconds,
                    ?behind_bytes,
                    "this repository is behind the others"
                ),
            }
        }
    }

    /// Whether the server could forget more if this lane had everything.
    fn holds_server(&self, lane: usize) -> bool {
        let received = self.lanes.received();
        let others = self.lanes.durable().enumerate();
        let with = others.map(|(number, durable)| match number == lane {
            true => Some(received),
            false => durable,
        });
        let ack = self.receiver.uploader.ack();
        positions(ack, received, with, false).flush > self.positions().flush
    }
}
