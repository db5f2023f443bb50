//! A PostgreSQL server on this machine: its binaries, starting it, watching it recover, stopping it.
//!
//! Owns processes and deadlines. Does not speak SQL (the caller's [`ServerProbe`] does) and decides nothing about settings.

use crate::error::{Error, Result};
use crate::recovery_conf::{Action, WalMinimums, quote_for_shell};
use crate::stop::minimums_of;
use std::ffi::OsStr;
use std::future::Future;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};
use wal_format::{ControlFile, Lsn};

/// Longest wait for a program that only prints something.
const PROGRAM_DEADLINE: Duration = Duration::from_secs(10);
/// Pause between two looks at the server.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Bytes read from the end of the server's log for an error.
const LOG_TAIL_BYTES: u64 = 8 << 10;
/// Lines of the server's log shown in an error.
const LOG_TAIL_LINES: usize = 12;

/// The programs of one PostgreSQL installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerBinaries {
    /// Folder that holds `postgres`.
    pub folder: PathBuf,
    /// Version as `postgres --version` prints it, such as `17.11`.
    pub version: String,
}

/// Finds the binaries of a major version: in `bin_dir` alone if given, else in `PATH` and where packages put them.
///
/// # Errors
/// `Config`: none found; the error lists where it looked and what was there.
pub async fn find_server_binaries(major: u32, bin_dir: Option<&Path>) -> Result<ServerBinaries> {
    let folders = match bin_dir {
        Some(folder) => vec![folder.to_owned()],
        None => usual_folders(major, std::env::var_os("PATH").as_deref()),
    };
    let mut searched = Vec::new();
    for folder in folders {
        let program = folder.join("postgres");
        if !program.is_file() {
            if bin_dir.is_some() {
                searched.push(format!("{} (no postgres there)", folder.display()));
            }
            continue;
        }
        match read_version(&program).await {
            Ok(version) if parse_major(&version) == Some(major) => {
                // A link in PATH stands alone; the other programs are where it points.
                let program = program.canonicalize().unwrap_or(program);
                let folder = program.parent().map_or(folder, Path::to_owned);
                return Ok(ServerBinaries { folder, version });
            }
            Ok(version) => searched.push(format!("{} ({version})", folder.display())),
            Err(error) => searched.push(format!("{} ({error})", folder.display())),
        }
    }
    if searched.is_empty() {
        searched.push("PATH and the usual folders (none has a server)".into());
    }
    Err(Error::NoServerBinaries { major, searched })
}

/// `PATH` first, then Debian, Red Hat, source builds, Homebrew.
fn usual_folders(major: u32, path: Option<&OsStr>) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = path
        .map(|path| std::env::split_paths(path).collect())
        .unwrap_or_default();
    folders.retain(|folder| folder.is_absolute());
    folders.extend(
        [
            format!("/usr/lib/postgresql/{major}/bin"),
            format!("/usr/pgsql-{major}/bin"),
            "/usr/local/pgsql/bin".to_owned(),
            format!("/opt/homebrew/opt/postgresql@{major}/bin"),
            format!("/usr/local/opt/postgresql@{major}/bin"),
        ]
        .map(PathBuf::from),
    );
    folders
}

/// The version from `postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)`.
async fn read_version(program: &Path) -> Result<String> {
    let output = run_to_end(Command::new(program).arg("--version")).await?;
    let words = String::from_utf8_lossy(&output.stdout).into_owned();
    words
        .split_once("(PostgreSQL)")
        .and_then(|(_, rest)| rest.split_whitespace().next())
        .map(str::to_owned)
        .ok_or_else(|| Error::Server {
            what: "did not say its version".into(),
            log: words
                .lines()
                .take(LOG_TAIL_LINES)
                .map(str::to_owned)
                .collect(),
        })
}

/// `18.6` is 18, `19beta1` is 19.
fn parse_major(version: &str) -> Option<u32> {
    let digits = version
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(version.len());
    version.get(..digits)?.parse().ok()
}

/// The operating system user that is to own and run a restored server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// User id.
    pub user: u32,
    /// Group id.
    pub group: u32,
}

impl Owner {
    /// Finds a user by name or number, with its primary group.
    ///
    /// # Errors
    /// `Config`: no such user, or root, as which PostgreSQL does not run.
    pub async fn find(name: &str) -> Result<Self> {
        let fail = |reason: &str| Error::InvalidRequest {
            what: format!("owner {name:?}"),
            reason: reason.into(),
        };
        if name.is_empty() || name.starts_with('-') {
            return Err(fail("not the name of a user"));
        }
        let number = async |flag: &str| -> Result<u32> {
            let output = run_to_end(Command::new("id").args([flag, name])).await?;
            String::from_utf8_lossy(&output.stdout)
                .trim()
                .parse()
                .map_err(|_| fail("no such user on this machine"))
        };
        let owner = Self {
            user: number("-u").await?,
            group: number("-g").await?,
        };
        if owner.user == 0 {
            return Err(fail("PostgreSQL does not run as root"));
        }
        Ok(owner)
    }
}

/// What is needed to run the server of a data directory.
#[derive(Clone, Debug)]
pub struct ServerCommand {
    /// Its programs.
    pub binaries: ServerBinaries,
    /// Its data directory, absolute.
    pub data_directory: PathBuf,
    /// Where its messages go. The file is made if missing.
    pub log_file: PathBuf,
    /// Who runs it; `None` is the current user.
    pub owner: Option<Owner>,
}

impl ServerCommand {
    /// The command for those who start the server themselves.
    pub fn display(&self) -> String {
        format!(
            "{} -D {}",
            quote_for_shell(&self.binaries.folder.join("postgres").to_string_lossy()),
            quote_for_shell(&self.data_directory.to_string_lossy())
        )
    }

    /// Whether the current user can start it.
    ///
    /// # Errors
    /// `Config`: the current user is root and no owner is given.
    pub fn check_user(&self) -> Result<()> {
        if rustix::process::geteuid().is_root() && self.owner.is_none() {
            return Err(Error::RunsAsRoot {
                advice: format!(
                    "name its user with --owner, or start it as that user: {}",
                    self.display()
                ),
            });
        }
        Ok(())
    }

    /// Starts the server, detached from our terminal, and returns at once: it lives on when we end.
    ///
    /// For this run its messages go to `log_file`, whatever its configuration says, so that a failure can be shown.
    ///
    /// # Errors
    /// As [`check_user`](Self::check_user); `Io` when the program or the log file cannot be opened.
    pub fn start(&self) -> Result<Server> {
        self.check_user()?;
        let log = repository::durable::open_append(&self.log_file, 0o600)?;
        if let Some(owner) = self.owner {
            repository::durable::set_owner(&self.log_file, owner.user, owner.group)?;
        }
        let log_start = log.metadata().map_or(0, |metadata| metadata.len());
        let errors = log
            .try_clone()
            .map_err(|source| io_error("open", &self.log_file, source))?;
        let program = self.binaries.folder.join("postgres");
        let mut command = Command::new(&program);
        command
            .arg("-D")
            .arg(&self.data_directory)
            .args([
                "-c",
                "logging_collector=off",
                "-c",
                "log_destination=stderr",
            ])
            .current_dir(&self.data_directory)
            .env_remove("PGDATA")
            .env_remove("PGPORT")
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .process_group(0);
        if let Some(owner) = self.owner.filter(|_| rustix::process::geteuid().is_root()) {
            command.uid(owner.user).gid(owner.group);
        }
        let child = command
            .spawn()
            .map_err(|source| io_error("start", &program, source))?;
        Ok(Server {
            command: self.clone(),
            log_start,
            child,
        })
    }
}

/// Where to reach a running server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerAddress {
    /// Folder of its Unix socket, absolute; `None` when it has none.
    pub socket_directory: Option<PathBuf>,
    /// Its port, which is part of the socket's name too.
    pub port: u16,
}

/// How far the server is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerStatus {
    /// Not open yet.
    Starting,
    /// Open for reading, in recovery.
    Standby,
    /// Open for writing.
    Ready,
    /// Shutting down.
    Stopping,
}

/// What `postmaster.pid` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PidFile {
    /// The server's process.
    pub pid: i32,
    /// Where to reach it.
    pub address: ServerAddress,
    /// How far it is open.
    pub status: ServerStatus,
}

impl PidFile {
    /// Reads the text of `postmaster.pid`; `None` while the server is still writing it.
    ///
    /// Lines (`src/include/utils/pidfile.h`): pid, data directory, start time, port, socket folder, listen address, shared memory, status.
    pub fn parse(text: &str, data_directory: &Path) -> Option<Self> {
        let lines: Vec<&str> = text.lines().collect();
        let pid = lines.first()?.trim().parse().ok()?;
        let socket = lines.get(4)?.trim();
        let status = match lines.get(7)?.trim() {
            "ready" => ServerStatus::Ready,
            "standby" => ServerStatus::Standby,
            "stopping" => ServerStatus::Stopping,
            _ => ServerStatus::Starting,
        };
        Some(Self {
            pid,
            address: ServerAddress {
                // A relative folder is relative to the data directory, in which the server works.
                socket_directory: (!socket.is_empty()).then(|| data_directory.join(socket)),
                port: lines.get(3)?.trim().parse().ok()?,
            },
            status,
        })
    }

    /// Reads the `postmaster.pid` of a data directory; `None` if there is none or it is incomplete.
    pub fn read(data_directory: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(data_directory.join("postmaster.pid")).ok()?;
        Self::parse(&text, data_directory)
    }
}

/// Whether a server runs in this data directory. A leftover `postmaster.pid` whose process is gone does not count.
pub fn is_running(data_directory: &Path) -> bool {
    let Ok(text) = std::fs::read_to_string(data_directory.join("postmaster.pid")) else {
        return false;
    };
    let pid = text
        .lines()
        .next()
        .and_then(|line| line.trim().parse::<i32>().ok());
    // A single-user server writes its pid negated.
    let Some(pid) = pid.and_then(|pid| rustix::process::Pid::from_raw(pid.saturating_abs())) else {
        return false;
    };
    // "Not permitted" is somebody else's process: it runs.
    rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::SRCH)
}

/// What the server says of its recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecoveryState {
    /// `pg_is_in_recovery()`
    pub in_recovery: bool,
    /// `pg_last_wal_replay_lsn()`: end of the last record applied.
    pub replay_lsn: Option<Lsn>,
    /// `pg_get_wal_replay_pause_state() = 'paused'`
    pub paused: bool,
}

/// Asks a running server for its state. Given by the caller: this crate speaks no SQL.
pub trait ServerProbe: Sync {
    /// Connects, asks, and answers; an error means "could not ask now" and is tried again.
    fn recovery_state(
        &self,
        address: &ServerAddress,
    ) -> impl Future<Output = std::result::Result<RecoveryState, String>> + Send;
}

/// How long to wait for a recovery.
#[derive(Clone, Copy, Debug)]
pub struct RecoveryLimits {
    /// Longest time in which neither the replay position nor the log moves.
    pub stall: Duration,
    /// Longest time in all.
    pub total: Duration,
}

/// How a recovery ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveryEnd {
    /// Where the server can be reached; `None` after a shutdown.
    pub address: Option<ServerAddress>,
    /// End of the last record applied; `None` after a shutdown.
    pub replay_lsn: Option<Lsn>,
    /// From the start until the server was open for reading; `None` if it never was.
    pub until_open: Option<Duration>,
    /// From the start until the stop was reached and the action done.
    pub until_stop: Duration,
}

/// What a recovery is to come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecoveryGoal {
    /// Start of the last record to apply.
    pub stop: Lsn,
    /// What the server is to do there.
    pub action: Action,
    /// What its settings are at least.
    pub minimums: WalMinimums,
}

/// What came of a recovery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// It came to its goal.
    Done(RecoveryEnd),
    /// It cannot go on: after the backup the server that wrote the WAL was started with larger settings, and this one needs them too, at
    /// least these. It has paused on the way, or ended.
    TooSmall(WalMinimums),
}

/// How to stop a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Disconnects everyone and shuts down cleanly.
    Fast,
    /// Stops at once; the next start recovers.
    Immediate,
}

/// A server that we started.
#[derive(Debug)]
pub struct Server {
    command: ServerCommand,
    log_start: u64,
    child: Child,
}

impl Server {
    /// Waits until the server has come to its goal, and checks that it did that and nothing else.
    ///
    /// `progress` hears each new replay position.
    ///
    /// # Errors
    /// `Server`: it ended, or opened for writing when it was to pause or before the stop (what it logged is in the error); `Deadline`: see
    /// `limits`.
    pub async fn watch_recovery(
        &mut self,
        goal: RecoveryGoal,
        probe: &impl ServerProbe,
        limits: RecoveryLimits,
        mut progress: impl FnMut(Lsn),
    ) -> Result<Recovery> {
        let began = Instant::now();
        let mut until_open = None;
        let mut last_seen = (None, 0_u64);
        let mut moved = began;
        let mut last_answer = String::from("it has not opened yet");
        loop {
            if let Some(status) = self
                .child
                .try_wait()
                .map_err(|source| io_error("wait for", &self.command.data_directory, source))?
            {
                if goal.action == Action::Shutdown && status.success() {
                    return Ok(Recovery::Done(RecoveryEnd {
                        address: None,
                        replay_lsn: None,
                        until_open,
                        until_stop: began.elapsed(),
                    }));
                }
                // Before it is consistent, a server ends where it would pause later.
                if let Some(minimums) = self.settings_needed(goal.minimums) {
                    return Ok(Recovery::TooSmall(minimums));
                }
                return Err(self.failure(format!("ended during recovery ({status})")));
            }
            let open = PidFile::read(&self.command.data_directory)
                .filter(|file| matches!(file.status, ServerStatus::Standby | ServerStatus::Ready));
            let mut position = last_seen.0;
            if let Some(file) = open {
                until_open.get_or_insert_with(|| began.elapsed());
                match timeout(PROGRAM_DEADLINE, probe.recovery_state(&file.address)).await {
                    Err(_) => last_answer = "it did not answer in time".into(),
                    Ok(Err(words)) => last_answer = words,
                    Ok(Ok(state)) => {
                        if let Some(lsn) = state.replay_lsn.filter(|lsn| Some(*lsn) != position) {
                            progress(lsn);
                        }
                        position = state.replay_lsn.or(position);
                        if self.has_done(goal, state)? {
                            return Ok(Recovery::Done(RecoveryEnd {
                                address: Some(file.address),
                                replay_lsn: position,
                                until_open,
                                until_stop: began.elapsed(),
                            }));
                        }
                        last_answer = "it is still replaying".into();
                        if state.paused {
                            if let Some(minimums) = self.settings_needed(goal.minimums) {
                                return Ok(Recovery::TooSmall(minimums));
                            }
                            last_answer = "it is paused before the target".into();
                        }
                    }
                }
            }
            let seen = (position, self.log_size());
            if seen != last_seen {
                last_seen = seen;
                moved = Instant::now();
            }
            for (waited, limit) in [
                (moved.elapsed(), limits.stall),
                (began.elapsed(), limits.total),
            ] {
                if waited >= limit {
                    return Err(Error::Deadline {
                        what: format!(
                            "recovery of {} ({last_answer})",
                            self.command.data_directory.display()
                        ),
                        limit,
                    });
                }
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Whether `state` is the end that is asked for.
    fn has_done(&self, goal: RecoveryGoal, state: RecoveryState) -> Result<bool> {
        let is_before = state.replay_lsn.is_some_and(|end| end <= goal.stop);
        match goal.action {
            Action::Promote if !state.in_recovery && is_before => {
                Err(self.failure("opened for writing before the target".into()))
            }
            Action::Promote => Ok(!state.in_recovery),
            Action::Pause if !state.in_recovery => {
                Err(self.failure("opened for writing instead of pausing".into()))
            }
            // It also pauses where its settings are too small, and when somebody tells it to.
            Action::Pause => Ok(state.paused && !is_before),
            Action::Shutdown if !state.in_recovery => {
                Err(self.failure("opened for writing instead of shutting down".into()))
            }
            Action::Shutdown => Ok(false),
        }
    }

    /// What the settings must at least be, if that is more than they are: replay writes into `pg_control` what the WAL asks for.
    fn settings_needed(&self, minimums: WalMinimums) -> Option<WalMinimums> {
        let path = self.command.data_directory.join("global/pg_control");
        // A file that is just being written is read again later.
        let control = ControlFile::parse(&std::fs::read(path).ok()?).ok()?;
        let needed = minimums.max(minimums_of(&control.parameters));
        (needed != minimums).then_some(needed)
    }

    /// Stops the server and waits for it. One that has ended already is fine.
    ///
    /// # Errors
    /// `Deadline`: it did not end within `limit`; it is left running.
    pub async fn stop(&mut self, mode: StopMode, limit: Duration) -> Result<()> {
        let ended = self.child.try_wait().ok().flatten().is_some();
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok());
        let Some(pid) = pid
            .and_then(rustix::process::Pid::from_raw)
            .filter(|_| !ended)
        else {
            return Ok(());
        };
        let signal = match mode {
            StopMode::Fast => rustix::process::Signal::INT,
            StopMode::Immediate => rustix::process::Signal::QUIT,
        };
        rustix::process::kill_process(pid, signal)
            .map_err(|errno| io_error("stop", &self.command.data_directory, errno.into()))?;
        match timeout(limit, self.child.wait()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(source)) => Err(io_error("stop", &self.command.data_directory, source)),
            Err(_) => Err(Error::Deadline {
                what: format!(
                    "stopping the server of {}",
                    self.command.data_directory.display()
                ),
                limit,
            }),
        }
    }

    fn log_size(&self) -> u64 {
        std::fs::metadata(&self.command.log_file).map_or(0, |metadata| metadata.len())
    }

    fn failure(&self, what: String) -> Error {
        Error::Server {
            what,
            log: read_log_tail(&self.command.log_file, self.log_start).unwrap_or_default(),
        }
    }
}

/// The last lines of a log, none of them from before `start`.
fn read_log_tail(path: &Path, start: u64) -> std::io::Result<Vec<String>> {
    let mut file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(
        start.max(length.saturating_sub(LOG_TAIL_BYTES)),
    ))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines: Vec<String> = text
        .lines()
        .rev()
        .take(LOG_TAIL_LINES)
        .map(str::to_owned)
        .collect();
    lines.reverse();
    Ok(lines)
}

async fn run_to_end(command: &mut Command) -> Result<std::process::Output> {
    let program = PathBuf::from(command.as_std().get_program());
    command.stdin(Stdio::null()).kill_on_drop(true);
    match timeout(PROGRAM_DEADLINE, command.output()).await {
        Ok(output) => output.map_err(|source| io_error("run", &program, source)),
        Err(_) => Err(Error::Deadline {
            what: format!("{}", program.display()),
            limit: PROGRAM_DEADLINE,
        }),
    }
}

fn io_error(action: &'static str, path: &Path, source: std::io::Error) -> Error {
    Error::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn fake_server(folder: &Path, version: &str) {
        let program = folder.join("postgres");
        std::fs::write(
            &program,
            format!("#!/bin/sh\necho 'postgres (PostgreSQL) {version}'\n"),
        )
        .unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[tokio::test]
    async fn binaries_of_another_major_are_named_in_the_error() {
        let folder = tempfile::tempdir().unwrap();
        fake_server(folder.path(), "15.14 (Debian 15.14-0+deb12u1)");
        let found = find_server_binaries(15, Some(folder.path())).await.unwrap();
        assert_eq!(found.version, "15.14");
        let error = find_server_binaries(17, Some(folder.path()))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("(15.14)"), "{error}");
        let error = find_server_binaries(17, Some(Path::new("/nowhere")))
            .await
            .unwrap_err();
        assert!(
            error.to_string().contains("/nowhere (no postgres there)"),
            "{error}"
        );
    }

    #[test]
    fn majors_come_from_the_versions_first_digits() {
        for (version, major) in [
            ("15.14", Some(15)),
            ("18.6", Some(18)),
            ("19beta1", Some(19)),
            ("19devel", Some(19)),
            ("x", None),
        ] {
            assert_eq!(parse_major(version), major, "{version}");
        }
    }

    #[test]
    fn path_comes_before_the_packages_folders() {
        let folders = usual_folders(17, Some(OsStr::new("/a:rel:/b")));
        let shown: Vec<_> = folders
            .iter()
            .map(|folder| folder.to_string_lossy())
            .collect();
        assert_eq!(shown[..3], ["/a", "/b", "/usr/lib/postgresql/17/bin"]);
    }

    #[test]
    fn the_pid_file_says_where_and_how_open() {
        let parse = |text: &str| PidFile::parse(text, Path::new("/d"));
        let file =
            parse("4711\n/d\n1769178491\n15432\n/tmp\n\n  5432001         3\nstandby \n").unwrap();
        assert_eq!((file.pid, file.status), (4711, ServerStatus::Standby));
        assert_eq!(file.address.port, 15432);
        assert_eq!(
            file.address.socket_directory.as_deref(),
            Some(Path::new("/tmp"))
        );
        let file = parse("4711\n/d\n1\n1\n.\n\nx\nready   \n").unwrap();
        assert_eq!(
            file.address.socket_directory.as_deref(),
            Some(Path::new("/d/."))
        );
        assert_eq!(file.status, ServerStatus::Ready);
        let file = parse("4711\n/d\n1\n1\n\n\nx\nstarting\n").unwrap();
        assert_eq!(
            (file.status, file.address.socket_directory),
            (ServerStatus::Starting, None)
        );
        for text in ["", "x", "4711\n/d\n1\n1\n/tmp\n"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_leftover_pid_file_is_no_running_server() {
        let folder = tempfile::tempdir().unwrap();
        let check = |pid: &str, expected: bool| {
            std::fs::write(folder.path().join("postmaster.pid"), format!("{pid}\n")).unwrap();
            assert_eq!(is_running(folder.path()), expected, "{pid}");
        };
        assert!(!is_running(folder.path()));
        check(&std::process::id().to_string(), true);
        check(&format!("-{}", std::process::id()), true);
        // Above the kernel's largest pid.
        check("2000000000", false);
        check("0", false);
        check("", false);
    }

    #[tokio::test]
    async fn root_and_unknown_users_own_no_server() {
        for name in ["root", "0", "", "-u", "no-such-user-here"] {
            let error = Owner::find(name).await.unwrap_err();
            assert_eq!(
                error.class(),
                repository::ErrorClass::Config,
                "{name}: {error}"
            );
        }
        assert!(Owner::find("nobody").await.unwrap().user > 0);
    }
}
