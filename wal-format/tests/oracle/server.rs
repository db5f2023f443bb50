//! A throwaway PostgreSQL server: made, started, crashed, promoted, stopped. It is told by nothing else here what its WAL means.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

/// The longest that any one program may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// The folder `14/bin` … `18/bin` are in, and of those the one of `major`; else why there is none.
pub(crate) fn binaries(major: u32) -> Result<PathBuf, String> {
    let root = std::env::var_os("WALDEN_TEST_PG_DIR").ok_or("WALDEN_TEST_PG_DIR is not set")?;
    let bin = Path::new(&root).join(major.to_string()).join("bin");
    match bin.join("pg_waldump").exists() && bin.join("postgres").exists() {
        true => Ok(bin),
        false => Err(format!("no PostgreSQL {major} in {}", bin.display())),
    }
}

pub(crate) struct Server {
    bin: PathBuf,
    folder: tempfile::TempDir,
    port: u16,
    postmaster: Option<Child>,
}

impl Server {
    /// Makes a cluster with segments of that many MiB.
    pub(crate) fn init(bin: &Path, segment_mib: u32) -> Self {
        static NEXT_PORT: AtomicU16 = AtomicU16::new(0);
        let folder = tempfile::Builder::new()
            .prefix("wo")
            .tempdir()
            .expect("temporary folder");
        // Only names the socket: nothing listens on TCP, and each server has a folder of its own.
        let port = 17_000 + NEXT_PORT.fetch_add(1, Ordering::Relaxed);
        let server = Self {
            bin: bin.to_owned(),
            folder,
            port,
            postmaster: None,
        };
        let mut initdb = server.as_user("initdb");
        initdb.args([
            "-A",
            "trust",
            "-U",
            "postgres",
            "--no-sync",
            "-k",
            "-E",
            "UTF8",
            "--locale=C",
        ]);
        initdb
            .arg(format!("--wal-segsize={segment_mib}"))
            .arg("-D")
            .arg(server.data());
        server.run(initdb);
        server.configure(&[
            "listen_addresses = ''",
            &format!(
                "unix_socket_directories = '{}'",
                server.folder.path().display()
            ),
            &format!("port = {port}"),
            "fsync = off",
            "synchronous_commit = off",
            "wal_level = replica",
            "wal_keep_size = '4GB'",
            "max_wal_size = '4GB'",
            "max_prepared_transactions = 20",
            "max_connections = 50",
            "track_commit_timestamp = on",
            "autovacuum_naptime = '1s'",
            "log_timezone = 'UTC'",
        ]);
        server
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A folder for whatever else a test needs.
    pub(crate) fn scratch(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn bin(&self, program: &str) -> PathBuf {
        self.bin.join(program)
    }

    /// Adds settings; they count from the next start.
    pub(crate) fn configure(&self, lines: &[&str]) {
        let path = self.data().join("postgresql.conf");
        let text = fs::read_to_string(&path).expect("postgresql.conf");
        fs::write(&path, format!("{text}\n{}\n", lines.join("\n"))).expect("postgresql.conf");
    }

    pub(crate) fn start(&mut self) {
        assert!(self.postmaster.is_none(), "already running");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.folder.path().join("log"))
            .expect("log");
        let mut command = self.as_user("postgres");
        command.arg("-D").arg(self.data());
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log"))
            .stderr(log);
        self.postmaster = Some(command.spawn().expect("postgres"));
        let began = Instant::now();
        while !self.try_sql("SELECT 1") {
            let exited = self
                .postmaster
                .as_mut()
                .and_then(|child| child.try_wait().expect("wait"));
            let log = || fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            assert!(exited.is_none(), "server exited: {}", log());
            assert!(
                began.elapsed() < DEADLINE,
                "server does not answer: {}",
                log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Stops the server: `fast` with a checkpoint, `immediate` as a crash.
    pub(crate) fn stop(&mut self, mode: &str) {
        let mut command = self.as_user("pg_ctl");
        command
            .args(["stop", "-w", "-t", "30", "-m", mode, "-D"])
            .arg(self.data());
        self.run(command);
        let mut child = self.postmaster.take().expect("running");
        wait(&mut child, "postgres");
    }

    pub(crate) fn promote(&self) {
        let mut command = self.as_user("pg_ctl");
        command
            .args(["promote", "-w", "-t", "30", "-D"])
            .arg(self.data());
        self.run(command);
    }

    /// Takes a base backup into the scratch folder.
    pub(crate) fn base_backup(&self, label: &str) {
        let mut command = self.client("pg_basebackup");
        command
            .args(["-c", "fast", "-X", "none", "-l", label, "-D"])
            .arg(self.scratch().join("base"));
        self.run(command);
    }

    pub(crate) fn sql(&self, sql: &str) {
        let path = self.folder.path().join("script.sql");
        fs::write(&path, sql).expect("script");
        let mut command = self.client("psql");
        command
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-f"])
            .arg(&path)
            .arg("postgres");
        self.run(command);
    }

    /// Whether the statement succeeds.
    pub(crate) fn try_sql(&self, sql: &str) -> bool {
        let mut command = self.client("psql");
        command.args(["-X", "-q", "-c", sql, "postgres"]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut child = command.spawn().expect("psql");
        wait(&mut child, "psql")
    }

    /// Starts a client whose end, good or bad, nobody depends on.
    pub(crate) fn sql_in_background(&self, sql: &str) -> Child {
        let mut command = self.client("psql");
        command.args(["-X", "-q", "-c", sql, "postgres"]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command.spawn().expect("psql")
    }

    pub(crate) fn pgbench(&self, arguments: &[&str]) {
        let mut command = self.client("pgbench");
        command.args(arguments).arg("postgres");
        self.run(command);
    }

    /// A program that connects to the server.
    fn client(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin(program));
        command
            .env("PGHOST", self.folder.path())
            .env("PGPORT", self.port.to_string());
        command
            .env("PGUSER", "postgres")
            .env("PGTZ", "UTC")
            .env("LC_ALL", "C");
        command
    }

    /// A program of the server, which refuses root, and which dies with this process.
    fn as_user(&self, program: &str) -> Command {
        // The owner of what this process makes is who it runs as.
        let is_root =
            std::os::unix::fs::MetadataExt::uid(&fs::metadata(self.folder.path()).expect("folder"))
                == 0;
        let mut command = if is_root {
            let mut command = Command::new("unshare");
            command.args([
                "-U",
                "--map-user=1000",
                "--map-group=1000",
                "setpriv",
                "--pdeathsig",
                "KILL",
            ]);
            command
        } else {
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL"]);
            command
        };
        command
            .arg(self.bin(program))
            .env("LC_ALL", "C")
            .env("TZ", "UTC");
        command
    }

    /// Runs a program to its good end; gives what it printed.
    pub(crate) fn run(&self, command: Command) -> String {
        let (good, stdout, stderr) = self.output(command);
        assert!(good, "{stderr}");
        stdout
    }

    /// Runs a program to its end, with what it printed.
    pub(crate) fn output(&self, mut command: Command) -> (bool, String, String) {
        let file = || tempfile::tempfile_in(self.folder.path()).expect("temporary file");
        let (mut stdout, mut stderr) = (file(), file());
        command
            .stdin(Stdio::null())
            .stdout(stdout.try_clone().expect("file"))
            .stderr(stderr.try_clone().expect("file"));
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let good = wait(&mut child, &format!("{command:?}"));
        (good, read_all(&mut stdout), read_all(&mut stderr))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.postmaster.take() {
            // The server's other processes leave when they see this one gone.
            child
                .kill()
                .and_then(|()| child.wait())
                .map(drop)
                .unwrap_or_default();
        }
    }
}

fn read_all(file: &mut File) -> String {
    use std::io::{Read, Seek};
    let mut bytes = Vec::new();
    file.rewind()
        .and_then(|()| file.read_to_end(&mut bytes))
        .expect("output");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Waits for a program; says whether it ended well.
fn wait(child: &mut Child, name: &str) -> bool {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("wait") {
            return status.success();
        }
        if began.elapsed() > DEADLINE {
            child
                .kill()
                .and_then(|()| child.wait())
                .map(drop)
                .unwrap_or_default();
            panic!("{name} takes too long");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
