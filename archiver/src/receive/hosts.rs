//! Which of several listed servers is received from: the first that is of the wanted kind and fits what is stored.
//!
//! Owns the decision after a session's end (pure: the time is passed in). Connecting, and what "of the wanted kind" means, is
//! `replication`'s, as libpq has it.

use std::time::{Duration, Instant};

use repository::ErrorClass;

use crate::Error;
use crate::error::ServerErrorKind;
use crate::replication::{ConnectionInfo, Host};
use crate::resume::ResumeConflict;

/// How long a server that does not fit is borne with while another may still come: a failover takes its time.
const CONFLICT_PATIENCE: Duration = Duration::from_secs(60);

/// The listed servers, and which of them did not fit.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    /// Of this session.
    connected: Option<Host>,
    /// Did not fit what is stored, in this round.
    refused: Vec<Host>,
    /// The first of them, and since when nothing better was found.
    conflict: Option<(Instant, Error)>,
}

/// What follows from a session's end.
#[derive(Debug)]
pub(super) enum Next {
    /// Another listed server may do better: at once.
    AnotherHost,
    /// This error counts, as if there were one host.
    Settle(Error),
    /// No server fits, and none came for long.
    GiveUp(Error),
}

impl Hosts {
    /// The settings with the servers that were not refused in this round.
    pub(super) fn candidates(&self, info: &ConnectionInfo) -> ConnectionInfo {
        let mut info = info.clone();
        info.hosts.retain(|host| !self.refused.contains(host));
        info
    }

    /// The settings for another connection to the same server.
    pub(super) fn same(&self, info: &ConnectionInfo) -> ConnectionInfo {
        let mut info = info.clone();
        if let Some(host) = &self.connected {
            info.hosts = vec![host.clone()];
        }
        info
    }

    /// The settings for each of the other servers.
    pub(super) fn others(&self, info: &ConnectionInfo) -> Vec<ConnectionInfo> {
        let others = info.hosts.iter();
        let others = others.filter(|host| Some(*host) != self.connected.as_ref());
        others
            .map(|host| {
                let mut info = info.clone();
                info.hosts = vec![host.clone()];
                info.target_session = crate::replication::TargetSession::Any;
                info
            })
            .collect()
    }

    pub(super) fn connected_to(&mut self, host: &Host) {
        self.connected = Some(host.clone());
    }

    /// A session ended in order.
    pub(super) fn ended(&mut self) {
        *self = Self::default();
    }

    /// A session ended with this error.
    pub(super) fn failed(&mut self, error: Error, info: &ConnectionInfo, now: Instant) -> Next {
        let connected = self.connected.take();
        if info.hosts.len() < 2 {
            return Next::Settle(error);
        }
        match connected {
            Some(host) if is_about_the_host(&error) => {
                self.refused.push(host);
                if info.hosts.iter().any(|host| !self.refused.contains(host)) {
                    tracing::error!(
                        error = crate::upload::error_text(&error),
                        "this server does not fit what is stored: trying the next one listed"
                    );
                    self.conflict.get_or_insert((now, error));
                    return Next::AnotherHost;
                }
                self.refused.clear();
                Next::Settle(error)
            }
            // It was received from: whatever did not fit before is not in the way.
            Some(_) => {
                self.ended();
                Next::Settle(error)
            }
            None => {
                self.refused.clear();
                match self.conflict.take() {
                    // A standby that is behind may catch up, or be promoted.
                    Some((since, conflict))
                        if conflict.class() == ErrorClass::Conflict
                            && now.duration_since(since) > CONFLICT_PATIENCE =>
                    {
                        Next::GiveUp(conflict)
                    }
                    conflict => {
                        self.conflict = conflict;
                        Next::Settle(error)
                    }
                }
            }
        }
    }
}

/// Whether the error says that this server's WAL is not what is stored goes on with; a slot in use says nothing of that.
fn is_about_the_host(error: &Error) -> bool {
    match error {
        Error::Resume(ResumeConflict::StandbyBehind { .. }) => true,
        _ => {
            error.class() == ErrorClass::Conflict
                && error.server_kind() != Some(ServerErrorKind::SlotInUse)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(hosts: &str) -> ConnectionInfo {
        let conninfo = format!("host={hosts} user=walden");
        ConnectionInfo::parse(&conninfo, &|_| None).unwrap()
    }

    fn conflict() -> Error {
        Error::RestoredClone {
            from: "7412".into(),
        }
    }

    fn lost() -> Error {
        Error::ConnectionLost {
            during: "x".into(),
            source: None,
        }
    }

    #[test]
    fn one_host_settles_at_once() {
        let info = info("a");
        let mut hosts = Hosts::default();
        hosts.connected_to(&info.hosts[0]);
        let next = hosts.failed(conflict(), &info, Instant::now());
        assert!(matches!(next, Next::Settle(Error::RestoredClone { .. })));
    }

    #[test]
    fn a_server_that_does_not_fit_is_passed_over_and_if_none_fits_that_is_the_end() {
        let info = info("a,b");
        let mut hosts = Hosts::default();
        let now = Instant::now();
        hosts.connected_to(&info.hosts[0]);
        assert!(matches!(
            hosts.failed(conflict(), &info, now),
            Next::AnotherHost
        ));
        assert_eq!(hosts.candidates(&info).hosts, info.hosts[1..]);
        hosts.connected_to(&info.hosts[1]);
        let next = hosts.failed(conflict(), &info, now);
        assert!(matches!(next, Next::Settle(Error::RestoredClone { .. })));
        assert_eq!(hosts.candidates(&info).hosts, info.hosts);
    }

    #[test]
    fn a_failover_is_waited_for_but_not_for_ever() {
        let info = info("a,b");
        let mut hosts = Hosts::default();
        let begun = Instant::now();
        let round = |hosts: &mut Hosts, at: u64| {
            let now = begun + Duration::from_secs(at);
            hosts.connected_to(&info.hosts[0]);
            assert!(matches!(
                hosts.failed(conflict(), &info, now),
                Next::AnotherHost
            ));
            // The other one is down.
            hosts.failed(lost(), &info, now)
        };
        assert!(matches!(
            round(&mut hosts, 0),
            Next::Settle(Error::ConnectionLost { .. })
        ));
        assert!(matches!(round(&mut hosts, 50), Next::Settle(_)));
        let next = round(&mut hosts, 70);
        assert!(matches!(next, Next::GiveUp(Error::RestoredClone { .. })));
        // A server that was received from begins it anew.
        assert!(matches!(round(&mut hosts, 80), Next::Settle(_)));
        hosts.connected_to(&info.hosts[1]);
        assert!(matches!(
            hosts.failed(lost(), &info, begun),
            Next::Settle(_)
        ));
        assert!(matches!(round(&mut hosts, 200), Next::Settle(_)));
    }

    /// The primary is down, and nobody has promoted the standby yet, which lacks the last bytes that are stored.
    #[test]
    fn a_standby_that_is_behind_is_waited_for() {
        let info = info("a,b");
        let mut hosts = Hosts::default();
        let begun = Instant::now();
        for seconds in [0, 50, 70, 500] {
            let now = begun + Duration::from_secs(seconds);
            hosts.connected_to(&info.hosts[1]);
            let behind = Error::Resume(ResumeConflict::StandbyBehind {
                timeline: wal_format::TimelineId::FIRST,
                server: wal_format::Lsn::new(1),
                repository: wal_format::Lsn::new(2),
            });
            let next = hosts.failed(behind, &info, now);
            assert!(matches!(next, Next::AnotherHost));
            let next = hosts.failed(lost(), &info, now);
            assert!(matches!(next, Next::Settle(_)), "{seconds}");
        }
    }

    #[test]
    fn the_others_are_every_host_but_the_one_in_use() {
        let info = info("a,b,c");
        let mut hosts = Hosts::default();
        hosts.connected_to(&info.hosts[1]);
        let others: Vec<_> = hosts
            .others(&info)
            .into_iter()
            .flat_map(|info| info.hosts)
            .collect();
        assert_eq!(others, [info.hosts[0].clone(), info.hosts[2].clone()]);
        assert_eq!(hosts.same(&info).hosts, info.hosts[1..2]);
    }
}
