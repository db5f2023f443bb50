//! Asks a restored server how far its recovery is: the SQL that `pitr` does not speak.

use std::fmt::Write;
use std::time::Duration;

use archiver::replication::{Connection, ConnectionInfo, Mode};
use pitr::postgres::{RecoveryState, ServerAddress, ServerProbe};
use wal_format::Lsn;

/// Longest time for one question.
const DEADLINE: Duration = Duration::from_secs(10);

/// Asks over the server's Unix socket, as one of the users named.
#[derive(Debug, Clone)]
pub(crate) struct SqlProbe {
    /// Users to try in turn: who may enter depends on the restored cluster's pg_hba.conf.
    pub(crate) users: Vec<String>,
}

const QUESTION: &str = "SELECT pg_is_in_recovery() AS in_recovery, pg_last_wal_replay_lsn() AS replay_lsn, \
    CASE WHEN pg_is_in_recovery() THEN pg_get_wal_replay_pause_state() END AS pause_state";

impl ServerProbe for SqlProbe {
    async fn recovery_state(&self, address: &ServerAddress) -> Result<RecoveryState, String> {
        let mut last = "no user to ask as".to_owned();
        for user in &self.users {
            match tokio::time::timeout(DEADLINE, ask(address, user)).await {
                Ok(Ok(state)) => return Ok(state),
                Ok(Err(error)) => last = error,
                Err(_) => last = format!("no answer within {DEADLINE:?}"),
            }
        }
        Err(last)
    }
}

async fn ask(address: &ServerAddress, user: &str) -> Result<RecoveryState, String> {
    let mut conninfo = format!(
        "dbname=postgres sslmode=disable port={} user={}",
        address.port,
        quoted(user)
    );
    let host = address.socket_directory.as_deref().map_or_else(
        || "localhost".to_owned(),
        |folder| folder.display().to_string(),
    );
    // Writing to a string cannot fail.
    write!(conninfo, " host={}", quoted(&host)).map_err(|error| error.to_string())?;
    let text = |error: archiver::Error| archiver::upload::error_text(&error);
    let info = ConnectionInfo::parse(&conninfo, &|_| None).map_err(text)?;
    let mut connection = Connection::connect(&info, Mode::Sql).await.map_err(text)?;
    let answer = connection.simple_query(QUESTION).await.map_err(text)?;
    connection.close().await.map_err(text)?;
    Ok(RecoveryState {
        in_recovery: answer.text(0, "in_recovery") == Some("t"),
        replay_lsn: answer
            .text(0, "replay_lsn")
            .and_then(|lsn| lsn.parse::<Lsn>().ok()),
        paused: answer.text(0, "pause_state") == Some("paused"),
    })
}

/// A value of a connection string.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}
