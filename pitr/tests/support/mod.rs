//! Servers of this machine for the tests of this crate. The project's own test support is the binary's; this needs only what `pitr` has.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(clippy::print_stderr, reason = "a test says when it could not run")]

use pitr::postgres::{
    Owner, PidFile, ServerAddress, ServerBinaries, ServerStatus, find_server_binaries,
};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

pub(crate) struct Psql {
    /// Where psql is.
    pub(crate) binaries: ServerBinaries,
}

impl Psql {
    pub(crate) fn ask(&self, address: &ServerAddress, sql: &str) -> Result<String, String> {
        let output = Command::new(self.binaries.folder.join("psql"))
            .args([
                "-XAtq",
                "-v",
                "ON_ERROR_STOP=1",
                "-U",
                "postgres",
                "-d",
                "postgres",
                "-c",
                sql,
                "-h",
            ])
            .arg(address.socket_directory.as_deref().unwrap())
            .args(["-p", &address.port.to_string()])
            .env(
                "LD_LIBRARY_PATH",
                self.binaries.folder.with_file_name("lib"),
            )
            .output()
            .unwrap();
        match output.status.success() {
            true => Ok(String::from_utf8(output.stdout).unwrap().trim().to_owned()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }
}

/// Where `scripts/setup` puts servers, or where the system has them.
pub(crate) async fn binaries(major: u32) -> Option<ServerBinaries> {
    let cache = std::env::var_os("WALDEN_CACHE_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache"),
        PathBuf::from,
    );
    let folder = cache.join(format!("pg/{major}/bin"));
    let bin_dir = folder.is_dir().then_some(folder);
    let found = find_server_binaries(major, bin_dir.as_deref()).await.ok();
    if found.is_none() {
        eprintln!("NOT RUN: no PostgreSQL {major} (run scripts/setup test)");
    }
    found
}

/// Stops whatever still runs in a data directory when the test ends, however it ends.
pub(crate) struct Guard(pub(crate) PathBuf);

impl Drop for Guard {
    fn drop(&mut self) {
        let pid = PidFile::read(&self.0).and_then(|file| rustix::process::Pid::from_raw(file.pid));
        if let Some(pid) = pid {
            rustix::process::kill_process(pid, rustix::process::Signal::QUIT).ok();
        }
    }
}

pub(crate) async fn wait_until_ready(data: &Path) -> ServerAddress {
    for _ in 0..400 {
        match PidFile::read(data) {
            Some(file) if file.status == ServerStatus::Ready => return file.address,
            _ => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    panic!(
        "the source did not start: {:?}",
        std::fs::read_to_string(data.with_extension("log"))
    );
}

pub(crate) fn run(owner: Option<Owner>, program: &Path, arguments: &[&str]) {
    let mut command = Command::new(program);
    command.args(arguments).current_dir("/");
    if let Some(owner) = owner {
        command.uid(owner.user).gid(owner.group);
    }
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

pub(crate) fn give_away(path: &Path, owner: Option<Owner>) {
    if let Some(owner) = owner {
        chown(path, Some(owner.user), Some(owner.group)).unwrap();
    }
}
