//! Watches, beside a receiver that is at work, which of the server's commits wait for it: the settings may change at any time, and what is
//! streaming cannot be asked. Owns when they are asked for and what is said about them; their meaning is `synchronous.rs`'s.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::replication::{Connection, ConnectionInfo};
use crate::synchronous::CommitSettings;
use crate::upload::error_text;
use crate::{Error, Result};

/// How often the settings are asked for while a receiver is at work.
const ASK_INTERVAL: Duration = Duration::from_secs(3);
/// The same after an answer that did not come.
const LONGER_INTERVAL: Duration = Duration::from_secs(60);
/// Knows, as long as it lives, whether commits wait for a receiver: then every byte is to be stored at once.
pub(crate) struct CommitWatch {
    store_at_once: watch::Receiver<bool>,
    _watcher: JoinSet<()>,
}

impl CommitWatch {
    /// Asks the server that a receiver has connected to, says what is unwise, and goes on asking. `wanted`: every byte is stored at once
    /// whatever the server says. `later`: this receiver was at work before.
    ///
    /// # Errors
    /// `RemoteApply` unless `later`; those of the connection.
    pub(crate) async fn start(
        replication: &mut Connection,
        info: &ConnectionInfo,
        wanted: bool,
        later: bool,
    ) -> Result<Self> {
        let settings = ask_somehow(replication, info).await?;
        let name = &info.application_name;
        let names = &settings.standby_names;
        if settings.wait_for(name) {
            match settings.refuse_remote_apply() {
                Err(error) if later => tell_who_hangs(&error),
                refused => refused?,
            }
            if settings.wait_for_anyone() {
                tracing::warn!(
                    synchronous_standby_names = names,
                    "synchronous_standby_names match every receiver: name the standbys that commits shall wait for"
                );
            }
            if wanted && !settings.always_wait_for(name) {
                tracing::warn!(
                    synchronous_standby_names = names,
                    "rpo is sync, but a commit may return before it is stored: another standby is enough for synchronous_standby_names"
                );
            }
            if !wanted {
                tracing::warn!(
                    synchronous_standby_names = names,
                    "the server's commits wait for this receiver: every byte is stored at once, as with rpo = \"sync\""
                );
            }
        } else if wanted {
            tracing::warn!(
                synchronous_standby_names = names,
                application_name = name,
                "rpo is sync, but the server does not wait for this receiver: its synchronous_standby_names do not name it (walden config check prints the statement)"
            );
        }
        let (sync, store_at_once) = watch::channel(wanted || settings.wait_for(name));
        let mut watcher = JoinSet::new();
        watcher.spawn(watch_settings(info.clone(), settings, wanted, sync));
        Ok(Self {
            store_at_once,
            _watcher: watcher,
        })
    }

    /// Whether every byte is to be stored at once, now and later.
    pub(crate) fn store_at_once(&self) -> watch::Receiver<bool> {
        self.store_at_once.clone()
    }
}

/// What of the settings concerns a receiver that is at work.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Standing {
    waited_for: bool,
    /// Whose commits wait for ever.
    hanging: Option<String>,
}

impl Standing {
    fn of(settings: &CommitSettings, application_name: &str) -> Self {
        let waited_for = settings.wait_for(application_name);
        Self {
            waited_for,
            hanging: settings.first_hanging().filter(|_| waited_for),
        }
    }

    /// Says what is other than before.
    fn tell(&self, before: &Self, wanted: bool, names: &str) {
        match (before.waited_for, self.waited_for) {
            (false, true) if wanted => {
                tracing::info!(
                    synchronous_standby_names = names,
                    "commits wait for this receiver now"
                );
            }
            (false, true) => tracing::warn!(
                synchronous_standby_names = names,
                "the server's commits wait for this receiver now: every byte is stored at once, as with rpo = \"sync\""
            ),
            (true, false) if wanted => tracing::warn!(
                synchronous_standby_names = names,
                "rpo is sync, but the server's commits wait for this receiver no longer: its synchronous_standby_names do not name it"
            ),
            (true, false) => {
                tracing::info!(
                    "the server's commits wait for this receiver no longer: rpo counts again"
                );
            }
            _ => {}
        }
        if let Some(whose) = self
            .hanging
            .as_ref()
            .filter(|_| self.hanging != before.hanging)
        {
            tell_who_hangs(&Error::RemoteApply {
                whose: whose.clone(),
            });
        }
    }
}

/// How commits wait, as far as can be seen: a role that may only replicate is let into no database, and sees the server's settings alone.
async fn ask_somehow(
    replication: &mut Connection,
    info: &ConnectionInfo,
) -> Result<CommitSettings> {
    let error = match CommitSettings::connect_and_ask(info).await {
        Ok(settings) => return Ok(settings),
        Err(error) => error,
    };
    let settings = CommitSettings {
        standby_names: replication.show("synchronous_standby_names").await?,
        server: replication.show("synchronous_commit").await?,
        ..CommitSettings::default()
    };
    if settings.wait_for(&info.application_name) {
        tracing::warn!(
            error = error_text(&error),
            "the settings of roles and databases cannot be seen: nobody may set synchronous_commit = remote_apply while commits wait for this receiver"
        );
    }
    Ok(settings)
}

/// To leave would help nobody: with no standby left, all commits would hang.
fn tell_who_hangs(error: &Error) {
    tracing::error!("{error}: set it to on there; WAL is received meanwhile");
}

/// Asks again and again how commits wait, and keeps `sync` up to date: whether everything is to be stored at once. `wanted`: it is
/// whatever the server says. A server that does not answer has changed nothing. Never ends.
async fn watch_settings(
    replication: ConnectionInfo,
    known: CommitSettings,
    wanted: bool,
    sync: watch::Sender<bool>,
) {
    let name = replication.application_name.clone();
    let mut before = Standing::of(&known, &name);
    let (mut wait, mut is_told) = (ASK_INTERVAL, false);
    loop {
        tokio::time::sleep(wait).await;
        let settings = match CommitSettings::connect_and_ask(&replication).await {
            Ok(settings) => settings,
            Err(error) => {
                wait = LONGER_INTERVAL;
                // That it is the server's refusal, and not its absence, will not change by itself.
                if error.server().is_some() && !is_told {
                    is_told = true;
                    tracing::warn!(
                        error = error_text(&error),
                        "a change of synchronous_standby_names is noticed only when this receiver connects again: its role may not connect to a database"
                    );
                }
                continue;
            }
        };
        wait = ASK_INTERVAL;
        let now = Standing::of(&settings, &name);
        now.tell(&before, wanted, &settings.standby_names);
        let store_at_once = wanted || now.waited_for;
        sync.send_if_modified(|sync| std::mem::replace(sync, store_at_once) != store_at_once);
        before = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hangs_counts_only_where_commits_wait_for_us() {
        let standing = |names: &str, server: &str| {
            let settings = CommitSettings {
                standby_names: names.into(),
                server: server.into(),
                exceptions: Vec::new(),
            };
            let standing = Standing::of(&settings, "walden");
            (standing.waited_for, standing.hanging)
        };
        let server = Some("the server".to_owned());
        assert_eq!(standing("walden", "remote_apply"), (true, server));
        assert_eq!(standing("walden", "on"), (true, None));
        assert_eq!(standing("other", "remote_apply"), (false, None));
    }
}
