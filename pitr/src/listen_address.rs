//! Where a restored server will listen, and whether that is free on this machine: asked before the server is started, because a restore
//! often runs beside the server it came from.
//!
//! Owns the reading of the settings that decide it and the test. What those settings are set to is `recovery_conf.rs`'s decision.

use crate::conf_file::Configuration;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// The server's own, where no file says another.
const DEFAULT_PORT: u16 = 5432;

/// What must be free on this machine for the server to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenAddress {
    /// Its port, which is part of the Unix socket's name too.
    pub port: u16,
    /// Whether it listens on TCP (`listen_addresses` is not empty).
    pub tcp: bool,
    /// Folders of its Unix socket as configured, perhaps relative to the data directory; empty where the build's own is used.
    pub socket_directories: Vec<String>,
}

impl ListenAddress {
    /// As the server reads it: the last of `settings`, else what the configuration files say, else the server's default.
    pub(crate) fn find(found: &Configuration, settings: &[(String, String)]) -> Self {
        let value = |name: &str| {
            let ours = settings.iter().rev().find(|(own, _)| own == name);
            ours.map(|(_, value)| value.as_str())
                .or_else(|| found.value(name))
        };
        Self {
            port: value("port")
                .and_then(|port| port.trim().parse().ok())
                .unwrap_or(DEFAULT_PORT),
            tcp: value("listen_addresses").is_none_or(|addresses| !addresses.trim().is_empty()),
            socket_directories: value("unix_socket_directories")
                .unwrap_or_default()
                .split(',')
                .map(|folder| folder.trim().trim_matches('"').to_owned())
                .filter(|folder| !folder.is_empty())
                .collect(),
        }
    }

    /// What already listens where the server wants to: `port 5432`, or the path of a Unix socket that answers. `None` if nothing does.
    ///
    /// A guess that errs on the side of starting: the server itself decides.
    #[must_use]
    pub fn conflict(&self, data_directory: &Path) -> Option<String> {
        let listening = |path: &PathBuf| UnixStream::connect(path).is_ok();
        let sockets = self.socket_directories.iter().map(|folder| {
            data_directory
                .join(folder)
                .join(format!(".s.PGSQL.{}", self.port))
        });
        if self.tcp && port_in_use(self.port) {
            return Some(format!("port {}", self.port));
        }
        sockets
            .into_iter()
            .find(listening)
            .map(|path| path.display().to_string())
    }
}

/// Whether something on this machine listens on that TCP port.
#[must_use]
pub fn port_in_use(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf_file::ConfigSource;

    struct One(&'static str);

    impl ConfigSource for One {
        fn read(&self, path: &str) -> Option<String> {
            (path == "postgresql.conf").then(|| self.0.to_owned())
        }

        fn list(&self, _: &str) -> Option<Vec<String>> {
            None
        }
    }

    fn find(text: &'static str, settings: &[(&str, &str)]) -> ListenAddress {
        let settings: Vec<(String, String)> = settings
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        ListenAddress::find(
            &Configuration::read(&One(text), &["postgresql.conf"]),
            &settings,
        )
    }

    #[test]
    fn settings_come_before_files_and_files_before_defaults() {
        let address = find("", &[]);
        assert_eq!((address.port, address.tcp), (5432, true));
        assert!(address.socket_directories.is_empty());
        let text = "port = 6000\nlisten_addresses = ''\nunix_socket_directories = '/run/a, \"/run/b c\"'\n";
        let address = find(text, &[]);
        assert_eq!((address.port, address.tcp), (6000, false));
        assert_eq!(address.socket_directories, ["/run/a", "/run/b c"]);
        let address = find(text, &[("port", "7000"), ("listen_addresses", "localhost")]);
        assert_eq!((address.port, address.tcp), (7000, true));
    }

    #[test]
    fn what_listens_already_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut address = ListenAddress {
            port,
            tcp: true,
            socket_directories: vec![".".into()],
        };
        assert_eq!(
            address.conflict(folder.path()),
            Some(format!("port {port}"))
        );
        address.tcp = false;
        assert_eq!(address.conflict(folder.path()), None);
        let path = folder.path().join(format!(".s.PGSQL.{port}"));
        let socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let found = address.conflict(folder.path()).unwrap();
        assert!(found.ends_with(&format!(".s.PGSQL.{port}")), "{found}");
        // A socket file whose server is gone does not count, nor does a port that was given back.
        drop((socket, listener));
        address.tcp = true;
        assert_eq!(address.conflict(folder.path()), None);
    }
}
