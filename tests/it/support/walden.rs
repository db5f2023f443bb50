//! The `walden` program, run as a user would: in a folder, with arguments and an environment, under a deadline.

use super::postgres::Server;
use super::process::{self, Output, Running, command_as_server_user};
use super::wait_until;
use super::wal_dump::Lsn;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a run of `walden` may take unless a test says otherwise.
pub(crate) const DEADLINE: Duration = Duration::from_secs(180);
/// How long it may take until `walden run` has reached its server, or what that has written.
const RECEIVE_DEADLINE: Duration = Duration::from_secs(60);

/// The program with the settings that several runs of a test share.
#[derive(Debug, Clone)]
pub(crate) struct Walden {
    directory: PathBuf,
    environment: Vec<(String, String)>,
}

impl Walden {
    /// Path of the program, for hooks that a server runs.
    pub(crate) fn program() -> &'static Path {
        Path::new(env!("CARGO_BIN_EXE_walden"))
    }

    /// Runs in `directory`, so a `walden.toml` there is found.
    pub(crate) fn in_directory(directory: &Path) -> Self {
        let environment = vec![("HOME".to_owned(), directory.display().to_string())];
        Self {
            directory: directory.to_owned(),
            environment,
        }
    }

    pub(crate) fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    pub(crate) fn envs(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        self.environment.extend(variables);
        self
    }

    /// Runs to the end, within [`DEADLINE`].
    #[track_caller]
    pub(crate) fn run<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Output {
        self.start(arguments).wait(DEADLINE)
    }

    /// Starts it beside the test, as for `walden run`; see [`Running`] for waiting, signals and `kill -9`.
    pub(crate) fn start<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Running {
        let mut walden = command_as_server_user(Self::program());
        walden.args(arguments).current_dir(&self.directory);
        walden.envs(self.environment.iter().map(|(name, value)| (name, value)));
        process::Running::start(walden)
    }
    /// `walden run` with these arguments, once the server streams to it.
    #[track_caller]
    pub(crate) fn receive<A: AsRef<OsStr>>(
        &self,
        server: &Server,
        arguments: impl IntoIterator<Item = A>,
    ) -> Running {
        let mut run = self.start(arguments);
        wait_until("walden run receives", RECEIVE_DEADLINE, || {
            let (_, log) = run.printed();
            assert!(run.is_running(), "walden run ended:\n{log}");
            let sender = "select state from pg_stat_replication where application_name = 'walden'";
            let streams = matches!(server.psql(sender).as_str(), "streaming" | "catchup");
            (streams && log.contains("receiving WAL")).then_some(())
        });
        run
    }
}

/// Waits until `walden run` has reported all as stored that the server has written, and says where that ends.
#[track_caller]
pub(crate) fn wait_until_stored(server: &Server) -> Lsn {
    let written = Lsn::parse(&server.psql("select pg_current_wal_flush_lsn()"));
    let reported = "select flush_lsn from pg_stat_replication where application_name = 'walden' and flush_lsn is not null";
    wait_until("everything is reported stored", RECEIVE_DEADLINE, || {
        let reported = server.psql(reported);
        (!reported.is_empty() && Lsn::parse(&reported) >= written).then_some(())
    });
    written
}
