//! A throwaway PostgreSQL server for the tests of this crate: `WALDEN_TEST_PG_DIR/<major>/bin` holds its programs. Dies with the test.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

/// Longest time any helper program may take.
const PROGRAM_DEADLINE: Duration = Duration::from_secs(60);

/// The folder with the server programs of a major; prints why if a test cannot run.
pub(crate) fn programs(major: u32) -> Option<PathBuf> {
    let Some(root) = std::env::var_os("WALDEN_TEST_PG_DIR") else {
        eprintln!("NOT RUN: WALDEN_TEST_PG_DIR is not set");
        return None;
    };
    let bin = Path::new(&root).join(major.to_string()).join("bin");
    if !bin.join("postgres").exists() {
        eprintln!("NOT RUN: no PostgreSQL {major} in {}", bin.display());
        return None;
    }
    Some(bin)
}

/// Servers refuse root: as root they run in a user namespace of their own.
pub(crate) fn command(program: &Path) -> Command {
    let is_root = fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
    let mut command = if is_root {
        let mut unshare = Command::new("unshare");
        unshare.args(["-U", "--map-user=1000", "--map-group=1000"]);
        unshare
            .args(["setpriv", "--pdeathsig", "QUIT"])
            .arg(program);
        unshare
    } else {
        let mut setpriv = Command::new("setpriv");
        setpriv.args(["--pdeathsig", "QUIT"]).arg(program);
        setpriv
    };
    command.env("LC_ALL", "C").stdin(Stdio::null());
    command
}

/// Runs a program to its end and returns what it printed.
pub(crate) fn run(mut command: Command) -> String {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        stderr.read_to_string(&mut text).unwrap();
        text
    });
    let mut text = String::new();
    stdout.read_to_string(&mut text).unwrap();
    let status = wait(&mut child, PROGRAM_DEADLINE).expect("the program ends in time");
    assert!(
        status.success(),
        "{command:?}: {text}{}",
        reader.join().unwrap()
    );
    text
}

/// Waits for a process, at most so long.
pub(crate) fn wait(child: &mut Child, deadline: Duration) -> Option<std::process::ExitStatus> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if start.elapsed() > deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A port nobody listens on; two calls never give the same one.
pub(crate) fn free_port() -> u16 {
    static NEXT: OnceLock<Mutex<u16>> = OnceLock::new();
    let seed = 10_000 + u16::try_from(std::process::id() % 9_000).unwrap();
    let mut next = NEXT.get_or_init(|| Mutex::new(seed)).lock().unwrap();
    loop {
        *next = if *next >= 19_990 { 10_000 } else { *next + 1 };
        if std::net::TcpListener::bind(("127.0.0.1", *next)).is_ok() {
            return *next;
        }
    }
}

/// A running server with its data directory and socket in one temporary folder.
pub(crate) struct Server {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) bin: PathBuf,
    pub(crate) port: u16,
    child: Option<Child>,
}

impl Server {
    /// A new cluster with 1 MiB segments and page checksums, not yet started. The superuser is `postgres`, without password on the socket.
    pub(crate) fn init(bin: &Path) -> Server {
        let server = Server::empty(bin);
        let mut initdb = command(&bin.join("initdb"));
        initdb.args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"]);
        initdb.args(["--locale=C", "--wal-segsize=1", "--data-checksums", "-D"]);
        initdb.arg(server.data());
        run(initdb);
        server.configure(
            "fsync = off\nwal_keep_size = '512MB'\nmax_wal_senders = 6\nwal_level = replica\n\
             autovacuum = off\nlog_min_messages = warning\n",
        );
        server
    }

    /// A folder without a cluster.
    pub(crate) fn empty(bin: &Path) -> Server {
        Server {
            folder: tempfile::Builder::new()
                .prefix("wr")
                .tempdir_in("/tmp")
                .unwrap(),
            bin: bin.to_owned(),
            port: free_port(),
            child: None,
        }
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub(crate) fn configure(&self, lines: &str) {
        append(&self.data().join("postgresql.auto.conf"), lines);
    }

    /// Starts it and waits until it accepts connections.
    pub(crate) fn start(&mut self) {
        let log = fs::File::create(self.folder.path().join("log")).unwrap();
        let mut postgres = command(&self.bin.join("postgres"));
        postgres
            .arg("-D")
            .arg(self.data())
            .args(["-c", &format!("port={}", self.port)])
            .args(["-c", "listen_addresses=127.0.0.1"])
            .args([
                "-c",
                &format!("unix_socket_directories={}", self.folder.path().display()),
            ])
            .stdout(Stdio::null())
            .stderr(log);
        self.child = Some(postgres.spawn().unwrap());
        let start = Instant::now();
        while !self.is_ready() {
            assert!(start.elapsed() < Duration::from_secs(30), "{}", self.log());
            let child = self.child.as_mut().unwrap();
            assert!(child.try_wait().unwrap().is_none(), "{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn is_ready(&self) -> bool {
        let mut ready = command(&self.bin.join("pg_isready"));
        ready.args(["-q", "-h"]).arg(self.folder.path());
        ready.args(["-p", &self.port.to_string()]);
        ready.status().unwrap().success()
    }

    /// Connection settings of the superuser on the socket.
    pub(crate) fn socket(&self, rest: &str) -> String {
        format!(
            "host={} port={} {rest}",
            self.folder.path().display(),
            self.port
        )
    }

    /// A program that talks to this server as superuser.
    pub(crate) fn client(&self, program: &str) -> Command {
        let mut client = command(&self.bin.join(program));
        client.env("PGHOST", self.folder.path());
        client.env("PGPORT", self.port.to_string());
        client
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres");
        client
    }

    pub(crate) fn psql(&self, sql: &str) -> String {
        let mut psql = self.client("psql");
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql]);
        run(psql).trim().to_owned()
    }

    /// `INT` = fast, `QUIT` = immediate shutdown.
    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        assert!(
            Command::new("kill")
                .args([&format!("-{signal}"), &pid])
                .status()
                .unwrap()
                .success()
        );
    }

    /// Waits for the server to end.
    pub(crate) fn wait_stopped(&mut self, deadline: Duration) -> bool {
        self.child
            .as_mut()
            .is_none_or(|child| wait(child, deadline).is_some())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take()
            && child.try_wait().unwrap().is_none()
        {
            let pid = child.id().to_string();
            Command::new("kill").args(["-QUIT", &pid]).status().ok();
            if wait(&mut child, Duration::from_secs(10)).is_none() {
                child.kill().ok();
                child.wait().ok();
            }
        }
    }
}

/// Adds lines to a file.
pub(crate) fn append(path: &Path, lines: &str) {
    let before = fs::read_to_string(path).unwrap_or_default();
    fs::write(path, format!("{before}\n{lines}\n")).unwrap();
}
