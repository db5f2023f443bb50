//! The password file (libpq, "The Password File"): one line `host:port:database:user:password` per login, `*` for any, backslash escapes.
//! Parsing is pure; reading checks that nobody else can read the file.

use super::conninfo::{DEFAULT_SOCKET_DIRECTORIES, Host, Password};
use crate::error::{Error, Result};
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Largest password file read, in bytes.
const MAX_PASSFILE_BYTES: u64 = 1024 * 1024;
/// What replication connections are called in the database field.
pub(super) const REPLICATION_DATABASE: &str = "replication";

/// Looks a password up in the file. `None`: there is no file, or no line of it fits.
///
/// # Errors
/// `LocalFile` (class `Config`): the file is readable by others, not a plain file, or cannot be read.
pub(super) fn read_password(
    path: &Path,
    host: &Host,
    database: &str,
    user: &str,
) -> Result<Option<Password>> {
    let failed = |reason: &str, source: Option<io::Error>| Error::LocalFile {
        path: path.to_owned(),
        reason: reason.to_owned(),
        source,
    };
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read the password file", Some(error))),
    };
    if !metadata.is_file() {
        return Err(failed("the password file is not a plain file", None));
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(failed(
            "the password file can be read by others; its permissions must be 0600 or less",
            None,
        ));
    }
    let mut text = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(MAX_PASSFILE_BYTES).read_to_end(&mut text))
        .map_err(|error| failed("read the password file", Some(error)))?;
    Ok(find_password(
        &String::from_utf8_lossy(&text),
        &host_field(host),
        &port_field(host),
        database,
        user,
    ))
}

/// What the host field must say: sockets in a default directory are `localhost`, others are their directory.
fn host_field(host: &Host) -> String {
    match host {
        Host::Tcp { name, .. } => name.clone(),
        Host::Unix { directory, .. } => match directory.to_str() {
            Some(directory) if !DEFAULT_SOCKET_DIRECTORIES.contains(&directory) => {
                directory.to_owned()
            }
            _ => "localhost".to_owned(),
        },
    }
}

fn port_field(host: &Host) -> String {
    let (Host::Tcp { port, .. } | Host::Unix { port, .. }) = host;
    port.to_string()
}

/// The first line whose four fields fit decides.
fn find_password(
    text: &str,
    host: &str,
    port: &str,
    database: &str,
    user: &str,
) -> Option<Password> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .find_map(|line| {
            let mut rest = line;
            for wanted in [host, port, database, user] {
                rest = match_field(rest, wanted)?;
            }
            let password = unescape(rest);
            (!password.is_empty()).then(|| Password::new(password))
        })
}

/// What follows the field and its colon, if the field is `*` or the wanted text.
fn match_field<'a>(line: &'a str, wanted: &str) -> Option<&'a str> {
    if let Some(rest) = line.strip_prefix("*:") {
        return Some(rest);
    }
    let mut escaped = false;
    let end = line.find(|c| {
        let ends = c == ':' && !escaped;
        escaped = c == '\\' && !escaped;
        ends
    })?;
    let (field, rest) = line.split_at(end);
    (unescape(field) == wanted).then(|| rest.strip_prefix(':'))?
}

fn unescape(field: &str) -> String {
    let mut text = String::with_capacity(field.len());
    let mut chars = field.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => text.extend(chars.next()),
            c => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::OpenOptionsExt;

    const FILE: &str = "# host:port:database:user:password\n\
        h:5432:replication:u:one\n\
        h:*:db:u:two\\:\\\\x\n\
        a\\:b:1:*:u:three\n\
        /sock:1:db:u:four\n\
        localhost:1:db:u:five\n\
        empty:1:db:u:\n\
        broken line\n\
        *:*:*:any:six:with colon\n";

    fn check(host: &str, port: &str, database: &str, user: &str, expected: Option<&str>) {
        let password = find_password(FILE, host, port, database, user);
        let password = password.as_ref().map(Password::reveal);
        assert_eq!(password, expected, "{host} {port} {database} {user}");
    }

    #[test]
    fn the_first_fitting_line_decides() {
        check("h", "5432", "replication", "u", Some("one"));
        check("h", "5432", "db", "u", Some("two:\\x"));
        check("h", "1", "db", "u", Some("two:\\x"));
        check("a:b", "1", "db", "u", Some("three"));
        check("empty", "1", "db", "u", None);
        check("h", "1", "other", "u", None);
        check("x", "9", "y", "any", Some("six:with colon"));
        check("# host", "port", "database", "user", None);
    }

    #[test]
    fn sockets_are_named_by_their_directory_unless_it_is_a_default_one() {
        let unix = |directory: &str| Host::Unix {
            directory: directory.into(),
            port: 1,
        };
        assert_eq!(host_field(&unix("/sock")), "/sock");
        assert_eq!(host_field(&unix("/tmp")), "localhost");
        assert_eq!(host_field(&unix("/var/run/postgresql")), "localhost");
        assert_eq!(port_field(&unix("/tmp")), "1");
    }

    #[test]
    fn a_file_that_others_can_read_is_refused_and_a_missing_one_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let host = Host::Tcp {
            name: "h".into(),
            address: None,
            port: 5432,
        };
        let read = |name: &str| {
            read_password(&folder.path().join(name), &host, "replication", "u")
                .map(|password| password.map(|password| password.reveal().to_owned()))
        };
        for (name, mode) in [("good", 0o600), ("open", 0o640)] {
            let path = folder.path().join(name);
            let mut options = fs::OpenOptions::new();
            let file = options.write(true).create(true).mode(mode).open(&path);
            io::Write::write_all(&mut file.unwrap(), FILE.as_bytes()).unwrap();
        }
        assert_eq!(read("good").unwrap().as_deref(), Some("one"));
        assert_eq!(read("absent").unwrap(), None);
        assert!(read("open").unwrap_err().to_string().contains("0600"));
        assert!(read("").unwrap_err().to_string().contains("plain file"));
    }
}
