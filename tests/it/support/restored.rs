//! Clusters that `walden restore` makes: what it is told, where they go, how their servers are asked, and that they end with their test.

use super::ports::Port;
use super::postgres::{Builder, Server, tool};
use super::process::{self, wait_gone};
use super::scratch::Scratch;
use super::walden::Walden;
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// Somebody who restores: all they know is a URL and perhaps an identity.
#[derive(Debug)]
pub(crate) struct Restorer {
    major: u32,
    /// The repository's.
    pub(crate) url: String,
    /// As `--identity` takes it.
    pub(crate) identity: Option<String>,
    /// In a folder without a configuration.
    pub(crate) walden: Walden,
    /// Restored servers have their sockets here, and their data directories below it.
    pub(crate) scratch: Scratch,
}

impl Restorer {
    /// Before its source is made: a restored server has the settings of its source, so the source's settings name the folder of the
    /// restored server's socket. (The source itself is told another on its command line.)
    pub(crate) fn for_source(builder: Builder) -> (Self, Builder) {
        let scratch = Scratch::new();
        let folder = scratch.join("some where");
        fs::create_dir(&folder).expect("make a folder");
        let builder = builder
            .setting(format!(
                "unix_socket_directories = '{}'",
                scratch.path().display()
            ))
            .setting("listen_addresses = ''");
        let restorer = Self {
            major: builder.major(),
            url: String::new(),
            identity: None,
            walden: Walden::in_directory(&folder),
            scratch,
        };
        (restorer, builder)
    }

    /// A place for a restored server; nothing is there yet.
    pub(crate) fn place(&self, name: &str) -> Restored {
        Restored::new(self.major, self.scratch.path(), name)
    }

    /// The command line of a restore to there.
    pub(crate) fn arguments(&self, restored: &Restored, more: &[&str]) -> Vec<String> {
        let mut arguments = vec!["restore".to_owned(), self.url.clone()];
        let mut add = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        if let Some(identity) = &self.identity {
            add("--identity", identity.clone());
        }
        add("-D", restored.data.display().to_string());
        let binaries = tool(self.major, "postgres");
        let binaries = binaries.parent().expect("a program is in a folder");
        add("--bin-dir", binaries.display().to_string());
        add("--port", restored.port.number().to_string());
        arguments.push("--json".to_owned());
        arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        arguments
    }

    /// Restores, and checks what every restore has to say.
    #[track_caller]
    pub(crate) fn restore(&self, name: &str, more: &[&str]) -> Restored {
        let mut restored = self.place(name);
        let output = self.walden.run(self.arguments(&restored, more));
        restored.said = output.expect_success().json();
        assert_eq!(restored.said["schema"], "walden.restore");
        let data = restored.data.to_str().expect("a path in UTF-8");
        assert_eq!(restored.said["data_directory"], data);
        restored
    }

    /// What a restore would do. Nothing is written.
    #[track_caller]
    pub(crate) fn plan(&self, more: &[&str]) -> Value {
        let place = self.place("never");
        let mut arguments = self.arguments(&place, more);
        arguments.push("--dry-run".to_owned());
        let plan = self.walden.run(arguments).expect_success().json();
        assert_eq!(plan["schema"], "walden.restore-plan");
        assert!(!place.data.exists());
        plan
    }
}

/// A restored server, which `walden restore` has started or will: dropping it stops it and removes it.
#[derive(Debug)]
pub(crate) struct Restored {
    pub(crate) data: PathBuf,
    pub(crate) port: Port,
    /// Its clients. The server is not this value's child.
    pub(crate) client: Server,
    /// What `walden restore` said, if it was asked.
    pub(crate) said: Value,
}

impl Restored {
    fn new(major: u32, sockets: &Path, name: &str) -> Self {
        let data = sockets.join(name);
        let port = Port::lease();
        let client = Server::over_directory(major, &data);
        // Clients look for the usual port in a folder of their own.
        std::os::unix::fs::symlink(
            sockets.join(format!(".s.PGSQL.{}", port.number())),
            client.socket_directory().join(".s.PGSQL.5432"),
        )
        .expect("link to the socket");
        Self {
            data,
            port,
            client,
            said: Value::Null,
        }
    }

    pub(crate) fn postmaster(&self) -> Option<u32> {
        let text = fs::read_to_string(self.data.join("postmaster.pid")).ok()?;
        text.lines().next()?.trim().parse().ok()
    }

    pub(crate) fn stop(&self, signal: Signal) {
        if let Some(postmaster) = self.postmaster() {
            process::send(postmaster, signal);
            wait_gone(&[postmaster]);
        }
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.client.psql("select pg_get_wal_replay_pause_state()") == "paused"
    }
}

impl Drop for Restored {
    fn drop(&mut self) {
        self.stop(Signal::QUIT);
        if self.data.exists() {
            fs::remove_dir_all(&self.data).expect("remove a restored directory");
        }
    }
}
