//! Real PostgreSQL servers: made, started, stopped, crashed, promoted and copied by PostgreSQL's own programs.
//! They listen on a socket in a short temporary folder, and on TCP only when asked to.

use super::ports::Port;
use super::process::{self, COMMAND_DEADLINE, Output, command, command_as_server_user};
use super::scratch::Scratch;
use super::tls::Authority;
use super::{cache, wait_until};
use rustix::process::Signal;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The supported majors, and 14, which is decoded only.
pub(crate) const MAJORS: [u32; 5] = [14, 15, 16, 17, 18];

/// For every server: no fsync (a killed process loses nothing, only a machine would), shared memory that leaves
/// nothing behind, commit times for the oracle, and enough WAL kept for `pg_waldump` to read afterwards.
const SETTINGS: &str = "
fsync = off
dynamic_shared_memory_type = mmap
shared_buffers = 32MB
track_commit_timestamp = on
wal_keep_size = 4GB
max_wal_size = 1GB
timezone = 'UTC'
log_timezone = 'UTC'
log_line_prefix = '%m [%p] %a '
log_replication_commands = on
";

/// One of PostgreSQL's own programs of this major.
pub(crate) fn tool(major: u32, name: &str) -> PathBuf {
    let path = cache()
        .join("pg")
        .join(major.to_string())
        .join("bin")
        .join(name);
    assert!(
        path.exists(),
        "{} is missing: run scripts/setup test",
        path.display()
    );
    path
}

/// The command of one of PostgreSQL's own programs, run as a user whom servers accept.
pub(crate) fn tool_command(major: u32, name: &str) -> Command {
    let path = tool(major, name);
    let mut command = command_as_server_user(&path);
    // The replication module of these builds would otherwise load the system's libpq, if there is any.
    let bin = path.parent().expect("a program is in a folder");
    command.env("LD_LIBRARY_PATH", bin.with_file_name("lib"));
    command
}

/// What kind of server to make.
#[derive(Debug, Clone)]
pub(crate) struct Builder {
    major: u32,
    wal_segment_mib: u32,
    data_checksums: bool,
    own_identity: bool,
    tcp: bool,
    folder: String,
    settings: Vec<String>,
    hba: Vec<String>,
    /// Certificate and key, to be copied into the data directory.
    identity: Option<Arc<Scratch>>,
}

impl Builder {
    pub(crate) fn major(&self) -> u32 {
        self.major
    }

    /// Size of a WAL segment; 16 unless said.
    pub(crate) fn wal_segment_mib(mut self, mib: u32) -> Self {
        self.wal_segment_mib = mib;
        self
    }

    /// Page checksums; on unless said.
    pub(crate) fn data_checksums(mut self, on: bool) -> Self {
        self.data_checksums = on;
        self
    }

    /// A system identifier of its own. Without it, servers of one kind are copies of one `initdb` and share theirs.
    pub(crate) fn own_identity(mut self) -> Self {
        self.own_identity = true;
        self
    }

    /// Listens on 127.0.0.1 too, at [`Server::port`].
    pub(crate) fn tcp(mut self) -> Self {
        self.tcp = true;
        self
    }

    /// Speaks TLS on TCP, with a certificate for these names (`localhost` and addresses too, if they are to verify).
    pub(crate) fn tls(mut self, authority: &Authority, names: &[&str]) -> Self {
        let identity = Scratch::new();
        authority.issue(
            names,
            &identity.join("server.crt"),
            &identity.join("server.key"),
        );
        self.identity = Some(Arc::new(identity));
        self.tcp().setting("ssl = on")
    }

    /// Name of the data directory within its temporary folder.
    pub(crate) fn folder(mut self, name: &str) -> Self {
        name.clone_into(&mut self.folder);
        self
    }

    /// A line for postgresql.conf. The last one of a name counts, also over those of this module.
    pub(crate) fn setting(mut self, line: impl Into<String>) -> Self {
        self.settings.push(line.into());
        self
    }

    /// A line for pg_hba.conf, ahead of those that let everyone in over the socket.
    pub(crate) fn hba(mut self, line: impl Into<String>) -> Self {
        self.hba.push(line.into());
        self
    }

    /// Makes the cluster and starts it.
    pub(crate) fn start(self) -> Server {
        let mut server = self.make();
        server.start();
        server
    }

    /// Makes the cluster without starting it.
    pub(crate) fn make(self) -> Server {
        let scratch = Scratch::new();
        let data = scratch.join(&self.folder);
        if self.own_identity {
            self.initdb(&data);
        } else {
            let template = self.template();
            let mut copy = command("cp");
            copy.arg("-a").arg(template).arg(&data);
            process::run(copy, COMMAND_DEADLINE).expect_success();
        }
        append(&data.join("postgresql.conf"), SETTINGS);
        append(
            &data.join("postgresql.conf"),
            &(self.settings.join("\n") + "\n"),
        );
        if !self.hba.is_empty() {
            let path = data.join("pg_hba.conf");
            let rest = std::fs::read_to_string(&path).expect("read pg_hba.conf");
            let text = self.hba.join("\n") + "\n" + &rest;
            std::fs::write(&path, text).expect("write pg_hba.conf");
        }
        if let Some(identity) = &self.identity {
            for name in ["server.crt", "server.key"] {
                std::fs::copy(identity.join(name), data.join(name)).expect("copy a certificate");
            }
        }
        Server::over(self.major, data, scratch, self.tcp)
    }

    /// A cluster made once for this kind of server, then copied. It is kept from run to run.
    fn template(&self) -> PathBuf {
        let Self {
            major,
            wal_segment_mib,
            data_checksums,
            ..
        } = self;
        let sums = if *data_checksums { "sums" } else { "nosums" };
        let templates = cache().join("templates");
        std::fs::create_dir_all(&templates).expect("make the folder of templates");
        let mut postgres = tool_command(*major, "postgres");
        postgres.arg("--version");
        let version = process::run(postgres, COMMAND_DEADLINE)
            .expect_success()
            .stdout;
        let version = version
            .split_whitespace()
            .last()
            .expect("postgres says its version");
        let name = format!("{version}-{wal_segment_mib}MiB-{sums}");
        let lock = File::create(templates.join(format!("{name}.lock"))).expect("make a lock file");
        lock.lock().expect("lock the template");
        let template = templates.join(&name);
        if !template.exists() {
            let unfinished = templates.join(format!("{name}.new"));
            if unfinished.exists() {
                std::fs::remove_dir_all(&unfinished).expect("remove what a killed run left");
            }
            self.initdb(&unfinished);
            std::fs::rename(&unfinished, &template).expect("name the finished template");
        }
        template
    }

    fn initdb(&self, data: &Path) {
        let mut initdb = tool_command(self.major, "initdb");
        initdb.arg("-D").arg(data);
        initdb.args([
            "-U",
            "postgres",
            "--auth=trust",
            "-E",
            "UTF8",
            "--locale=C",
            "--no-sync",
        ]);
        initdb.arg(format!("--wal-segsize={}", self.wal_segment_mib));
        match (self.data_checksums, self.major) {
            (true, _) => initdb.arg("--data-checksums"),
            (false, 18..) => initdb.arg("--no-data-checksums"),
            (false, _) => &mut initdb,
        };
        process::run(initdb, COMMAND_DEADLINE).expect_success();
    }
}

/// Adds to a file of settings, where the last one of a name counts.
pub(crate) fn append(path: &Path, text: &str) {
    let mut file = File::options()
        .append(true)
        .create(true)
        .open(path)
        .expect("open a setting file");
    file.write_all(text.as_bytes())
        .expect("append to a setting file");
}

/// How a server is told to stop.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stop {
    /// Disconnects clients, writes a checkpoint, waits for WAL senders.
    Fast,
    /// Leaves at once; the next start recovers.
    Immediate,
}

/// A server in folders of its own. Dropping it stops it and removes them.
#[derive(Debug)]
pub(crate) struct Server {
    major: u32,
    data: PathBuf,
    port: Option<Port>,
    postmaster: Option<Child>,
    /// What a killed server left in the kernel.
    abandoned_memory: Option<String>,
    // After the postmaster: dropped last.
    scratch: Scratch,
}

impl Server {
    pub(crate) fn builder(major: u32) -> Builder {
        Builder {
            major,
            wal_segment_mib: 16,
            data_checksums: true,
            own_identity: false,
            tcp: false,
            folder: "data".to_owned(),
            settings: Vec::new(),
            hba: Vec::new(),
            identity: None,
        }
    }

    /// A server over a data directory that somebody else made, as a restore does. It is not started yet; the
    /// directory stays when the server is dropped.
    pub(crate) fn over_directory(major: u32, data: &Path) -> Self {
        Self::over(major, data.to_owned(), Scratch::new(), false)
    }

    fn over(major: u32, data: PathBuf, scratch: Scratch, tcp: bool) -> Self {
        let port = tcp.then(Port::lease);
        Self {
            major,
            data,
            port,
            postmaster: None,
            abandoned_memory: None,
            scratch,
        }
    }

    pub(crate) fn major(&self) -> u32 {
        self.major
    }

    pub(crate) fn data_directory(&self) -> &Path {
        &self.data
    }

    pub(crate) fn wal_directory(&self) -> PathBuf {
        self.data.join("pg_wal")
    }

    /// A folder beside the data directory, for whatever goes with this server. Removed with it.
    pub(crate) fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    pub(crate) fn socket_directory(&self) -> &Path {
        self.scratch.path()
    }

    /// The port: of the socket's name, and of 127.0.0.1 if it listens there.
    pub(crate) fn port(&self) -> u16 {
        self.port.as_ref().map_or(5432, Port::number)
    }

    /// A libpq connection string over the socket, as the superuser.
    pub(crate) fn conninfo(&self) -> String {
        let socket = self.socket_directory().display();
        format!(
            "host={socket} port={} user=postgres dbname=postgres",
            self.port()
        )
    }

    /// One of this server's own client programs, pointed at it by the environment.
    pub(crate) fn client(&self, name: &str) -> Command {
        let mut client = tool_command(self.major, name);
        client
            .env("PGHOST", self.socket_directory())
            .env("PGPORT", self.port().to_string());
        client
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres")
            .env("PGCONNECT_TIMEOUT", "30");
        client
    }

    /// `psql` that prints values only, separated by `|`, and stops at the first error.
    pub(crate) fn psql_command(&self) -> Command {
        let mut psql = self.client("psql");
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]);
        psql
    }

    /// Runs statements, each a transaction of its own, and gives what they print, without the last line end.
    #[track_caller]
    pub(crate) fn psql(&self, sql: &str) -> String {
        let output = self.try_psql(sql, COMMAND_DEADLINE).expect_success();
        output.stdout.trim_end_matches('\n').to_owned()
    }

    /// As [`Self::psql`], for statements that may fail or take their time.
    #[track_caller]
    pub(crate) fn try_psql(&self, sql: &str, deadline: Duration) -> Output {
        let mut psql = self.psql_command();
        // One -c holds one transaction; a file holds one for each statement.
        let mut script =
            tempfile::NamedTempFile::new_in(self.scratch.path()).expect("make a script");
        script.write_all(sql.as_bytes()).expect("write a script");
        psql.arg("-f").arg(script.path());
        process::run(psql, deadline)
    }

    /// Runs `pgbench` with these arguments.
    #[track_caller]
    pub(crate) fn pgbench(&self, arguments: &[&str], deadline: Duration) -> Output {
        let mut pgbench = self.client("pgbench");
        pgbench.args(arguments);
        process::run(pgbench, deadline).expect_success()
    }

    /// Starts it and waits until it answers a query.
    #[track_caller]
    pub(crate) fn start(&mut self) {
        if let Err(why) = self.try_start(COMMAND_DEADLINE) {
            panic!("the server does not start: {why}\n{}", self.log());
        }
    }

    /// As [`Self::start`]; that the server ends instead (as when recovery fails, or shuts down at its target) is an
    /// answer. It is then stopped.
    pub(crate) fn try_start(&mut self, deadline: Duration) -> Result<(), String> {
        self.launch();
        let started = Instant::now();
        loop {
            if let Some(status) = self.exited() {
                return Err(format!("postgres ended with {status}"));
            }
            let mut probe = self.psql_command();
            probe.args(["-c", "select 1"]);
            if process::run(probe, COMMAND_DEADLINE).code() == 0 {
                return Ok(());
            }
            if started.elapsed() > deadline {
                self.crash();
                return Err(format!("no answer within {deadline:?}"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Starts the postmaster and waits for nothing.
    fn launch(&mut self) {
        assert!(self.postmaster.is_none(), "the server is running already");
        let log = File::options()
            .append(true)
            .create(true)
            .open(self.log_path());
        let log = log.expect("open the server's log");
        let mut postgres = tool_command(self.major, "postgres");
        postgres.arg("-D").arg(&self.data);
        // On the command line, because a copied or restored cluster brings the settings of another place.
        let address = if self.port.is_some() { "127.0.0.1" } else { "" };
        postgres
            .arg("-c")
            .arg(format!("listen_addresses={address}"));
        postgres.arg("-c").arg(format!("port={}", self.port()));
        let socket = self.socket_directory().display();
        postgres
            .arg("-c")
            .arg(format!("unix_socket_directories={socket}"));
        postgres
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("share the log"))
            .stderr(log);
        self.postmaster = Some(process::spawn(postgres));
    }

    /// Waits for a server that is to end by itself, and gives its exit status.
    #[track_caller]
    pub(crate) fn wait_for_exit(&mut self, deadline: Duration) -> std::process::ExitStatus {
        wait_until("the server ends", deadline, || self.exited())
    }

    fn exited(&mut self) -> Option<std::process::ExitStatus> {
        let postmaster = self.postmaster.as_mut().expect("the server was started");
        let status = postmaster
            .try_wait()
            .expect("ask for the postmaster's state")?;
        self.postmaster = None;
        Some(status)
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.postmaster.is_some() && self.exited().is_none()
    }

    /// Process id of the postmaster.
    pub(crate) fn postmaster(&self) -> u32 {
        self.postmaster
            .as_ref()
            .expect("the server is running")
            .id()
    }

    /// Stops it and says how long that took; fails the test if it takes longer than `deadline`.
    #[track_caller]
    pub(crate) fn stop(&mut self, how: Stop, deadline: Duration) -> Duration {
        let started = Instant::now();
        let signal = match how {
            Stop::Fast => Signal::INT,
            Stop::Immediate => Signal::QUIT,
        };
        process::send(self.postmaster(), signal);
        while self.exited().is_none() {
            let late = started.elapsed() > deadline;
            assert!(
                !late,
                "{how:?} stop took longer than {deadline:?}\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        started.elapsed()
    }

    /// Kills every process of the server at once, as losing the machine would.
    pub(crate) fn crash(&mut self) {
        let Some(mut postmaster) = self.postmaster.take() else {
            return;
        };
        // Line 7 of the lock file: key and number of the one shared memory segment that outlives a killed server.
        let lock = std::fs::read_to_string(self.data.join("postmaster.pid")).unwrap_or_default();
        let segment = lock
            .lines()
            .nth(6)
            .and_then(|line| line.split_whitespace().nth(1));
        self.abandoned_memory = segment.map(str::to_owned);
        let id = postmaster.id();
        // Stopped first, so that it starts no new process while its children are being counted.
        process::send(id, Signal::STOP);
        let children = process::children_of(id);
        for process in children.iter().copied().chain([id]) {
            process::send(process, Signal::KILL);
        }
        postmaster.wait().expect("reap the postmaster");
        process::wait_gone(&children);
    }

    /// Promotes a standby, or a server paused at its recovery target, and waits until it is a primary.
    #[track_caller]
    pub(crate) fn promote(&self) {
        assert_eq!(
            self.psql("select pg_promote(true, 60)"),
            "t",
            "promoted within its deadline"
        );
    }

    /// A running standby of this server, made by `pg_basebackup` and streaming from it.
    #[track_caller]
    pub(crate) fn standby(&self) -> Server {
        let scratch = Scratch::new();
        let data = scratch.join("data");
        self.base_backup(&data, &["-R", "-X", "stream"]);
        let mut standby = Self::over(self.major, data, scratch, self.port.is_some());
        standby.start();
        wait_until("the standby streams", COMMAND_DEADLINE, || {
            let receiver = standby.psql("select status from pg_stat_wal_receiver");
            (receiver == "streaming").then_some(())
        });
        standby
    }

    /// A copy of this running server by its own `pg_basebackup`, the reference for ours.
    #[track_caller]
    pub(crate) fn base_backup(&self, destination: &Path, arguments: &[&str]) {
        let mut backup = self.client("pg_basebackup");
        backup
            .arg("-D")
            .arg(destination)
            .args(["-c", "fast", "--no-sync"])
            .args(arguments);
        process::run(backup, COMMAND_DEADLINE).expect_success();
    }

    /// `pg_controldata` of the data directory: the value of `field`.
    #[track_caller]
    pub(crate) fn control_data(&self, field: &str) -> String {
        let mut program = tool_command(self.major, "pg_controldata");
        program.arg(&self.data);
        let output = process::run(program, COMMAND_DEADLINE).expect_success();
        let value = output.stdout.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            (name == field).then(|| value.trim().to_owned())
        });
        value.unwrap_or_else(|| panic!("pg_controldata has no {field:?}\n{output}"))
    }

    pub(crate) fn log_path(&self) -> PathBuf {
        self.scratch.join("server.log")
    }

    /// The end of the server's log, at most 16 KiB.
    pub(crate) fn log(&self) -> String {
        let mut file = File::open(self.log_path()).expect("open the server's log");
        let length = file.metadata().expect("the log's length").len();
        file.seek(SeekFrom::Start(length.saturating_sub(16 * 1024)))
            .expect("seek in the log");
        let mut end = Vec::new();
        file.read_to_end(&mut end).expect("read the log");
        String::from_utf8_lossy(&end).into_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The gentlest of the quick ways, because the server then removes its shared memory.
        if self.is_running() {
            process::send(self.postmaster(), Signal::QUIT);
            let until = Instant::now() + Duration::from_secs(10);
            while self.is_running() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        self.crash();
        if let Some(segment) = &self.abandoned_memory {
            let mut remove = command("ipcrm");
            remove.args(["-m", segment]);
            // The next start of the same cluster may have removed it long ago: any exit code is right.
            process::run(remove, COMMAND_DEADLINE);
        }
    }
}
