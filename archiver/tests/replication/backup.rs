//! Base backups: what arrives is what PostgreSQL's own tools accept, damage and cancellation are errors, other majors are refused.

use crate::server::{Server, command, programs, run};
use crate::streaming::{connect, start};
use archiver::error::{Error, ErrorClass, ServerErrorKind};
use archiver::replication::{
    BaseBackupEvent, BaseBackupOptions, Connection, Mode, SUPPORTED_MAJORS,
};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use wal_format::{Lsn, TimelineId};

/// A whole base backup in memory.
pub(crate) struct Fetched {
    pub(crate) start_lsn: Lsn,
    stop_lsn: Lsn,
    /// Name, tablespace path, bytes.
    archives: Vec<(String, String, Vec<u8>)>,
    manifest: Vec<u8>,
    progress: Vec<u64>,
    folder: std::path::PathBuf,
}

impl Fetched {
    /// Writes the archives as files and unpacks the first.
    pub(crate) fn extract(&self, data: &Path) {
        for (name, _, bytes) in &self.archives {
            fs::write(self.folder.join(name), bytes).unwrap();
        }
        let mut mkdir = Command::new("mkdir");
        run_plain(mkdir.args(["-m", "700"]).arg(data));
        run_plain(
            Command::new("tar")
                .arg("-xf")
                .arg(self.folder.join("base.tar"))
                .arg("-C")
                .arg(data),
        );
        fs::write(data.join("backup_manifest"), &self.manifest).unwrap();
    }
}

fn run_plain(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Takes a base backup, checking the order of events.
pub(crate) async fn fetch(server: &Server, folder: &Path) -> Fetched {
    let mut connection = connect(server, Mode::PhysicalReplication).await;
    let options = BaseBackupOptions::new("it's a label");
    let mut backup = connection.base_backup(&options).await.unwrap();
    let mut fetched = Fetched {
        start_lsn: backup.start_lsn,
        stop_lsn: Lsn::INVALID,
        archives: Vec::new(),
        manifest: Vec::new(),
        progress: Vec::new(),
        folder: folder.to_owned(),
    };
    assert_eq!(backup.timeline, TimelineId::FIRST);
    assert!(backup.data_directory_size_kib.unwrap() > 10_000);
    let expected: Vec<String> = backup
        .tablespaces
        .iter()
        .map(|t| format!("{}.tar", t.oid))
        .collect();
    let mut in_manifest = false;
    let (stop_lsn, timeline) = loop {
        // Cancelled now and then: nothing may be lost.
        let next = tokio::time::timeout(Duration::from_micros(500), backup.next()).await;
        let Ok(event) = next else { continue };
        match event.unwrap() {
            BaseBackupEvent::ArchiveStart {
                name,
                tablespace_path,
            } => {
                assert!(!in_manifest);
                fetched.archives.push((name, tablespace_path, Vec::new()));
            }
            BaseBackupEvent::ManifestStart => in_manifest = true,
            BaseBackupEvent::Data(data) if in_manifest => fetched.manifest.extend_from_slice(&data),
            BaseBackupEvent::Data(data) => fetched
                .archives
                .last_mut()
                .unwrap()
                .2
                .extend_from_slice(&data),
            BaseBackupEvent::Progress(bytes) => fetched.progress.push(bytes),
            BaseBackupEvent::End { stop_lsn, timeline } => break (stop_lsn, timeline),
        }
    };
    assert!(matches!(backup.next().await, Err(Error::WrongState { .. })));
    assert!(in_manifest);
    assert_eq!(timeline, TimelineId::FIRST);
    assert!(stop_lsn > fetched.start_lsn);
    fetched.stop_lsn = stop_lsn;
    let mut names: Vec<_> = fetched
        .archives
        .iter()
        .map(|(name, _, _)| name.clone())
        .collect();
    assert_eq!(names.pop().as_deref(), Some("base.tar"));
    assert_eq!(names, expected);
    // The connection is idle again.
    connection.identify_system().await.unwrap();
    fetched
}

/// Names and sizes as `tar` lists them, plain files only.
fn list(archive: &Path, prefix: &str) -> Vec<(String, u64)> {
    let listing = run_plain(
        Command::new("tar")
            .args(["--numeric-owner", "--quoting-style=literal", "-tvf"])
            .arg(archive),
    );
    let entries = listing.lines().filter(|line| line.starts_with('-'));
    entries
        .map(|line| {
            let mut words = line.split_whitespace();
            let size = words.nth(2).unwrap().parse().unwrap();
            (format!("{prefix}{}", words.nth(2).unwrap()), size)
        })
        .collect()
}

async fn base_backup_with_tablespace(major: u32) {
    let Some(bin) = programs(major) else { return };
    let server = start(&bin);
    let location = server.folder.path().join("table space");
    let mut mkdir = command(Path::new("/bin/mkdir"));
    mkdir.args(["-m", "700"]).arg(&location);
    run(mkdir);
    server.psql(&format!(
        "CREATE TABLESPACE ts LOCATION '{}'",
        location.display()
    ));
    server.psql("CREATE TABLE t TABLESPACE ts AS SELECT generate_series(1, 50000) AS i; CREATE TABLE v(i int)");
    server.psql("CHECKPOINT");

    let fetched = fetch(&server, server.folder.path()).await;
    assert_eq!(fetched.archives.len(), 2);
    assert_eq!(fetched.archives[0].1, location.to_str().unwrap());
    assert_eq!(fetched.archives[1].1, "");
    assert!(fetched.progress.is_sorted() && !fetched.progress.is_empty());

    // `tar` reads the archives to their very end, and lists what the manifest lists.
    let mut listed = BTreeMap::new();
    for (name, tablespace, bytes) in &fetched.archives {
        let path = server.folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        assert_eq!(bytes.len() % 512, 0);
        let oid = name.strip_suffix(".tar").unwrap();
        let prefix = match tablespace.as_str() {
            "" => String::new(),
            _ => format!("pg_tblspc/{oid}/"),
        };
        let files = list(&path, &prefix);
        if tablespace.is_empty() {
            assert_eq!(files.first().unwrap().0, "backup_label");
            assert_eq!(files.last().unwrap().0, "global/pg_control");
        }
        let headers: u64 = files
            .iter()
            .map(|(_, size)| 512 + size.div_ceil(512) * 512)
            .sum();
        assert!(
            bytes.len() as u64 >= headers + 1024,
            "{name}: {} of {headers}",
            bytes.len()
        );
        listed.extend(files);
    }
    let manifest: serde_json::Value = serde_json::from_slice(&fetched.manifest).unwrap();
    let files = manifest["Files"].as_array().unwrap();
    let in_manifest: BTreeMap<String, u64> = files
        .iter()
        .map(|file| {
            (
                file["Path"].as_str().unwrap().to_owned(),
                file["Size"].as_u64().unwrap(),
            )
        })
        .collect();
    assert!(in_manifest.len() > 900, "{}", in_manifest.len());
    assert_eq!(listed, in_manifest);
    assert_eq!(
        manifest["WAL-Ranges"][0]["Start-LSN"].as_str().unwrap(),
        fetched.start_lsn.to_string()
    );
    assert_eq!(
        manifest["WAL-Ranges"][0]["End-LSN"].as_str().unwrap(),
        fetched.stop_lsn.to_string()
    );

    // PostgreSQL's own verification accepts it, byte for byte.
    let data = server.folder.path().join("copy");
    fetched.extract(&data);
    let tablespace = data
        .join("pg_tblspc")
        .join(fetched.archives[0].0.strip_suffix(".tar").unwrap());
    fs::create_dir(&tablespace).unwrap();
    let archive = server.folder.path().join(&fetched.archives[0].0);
    run_plain(
        Command::new("tar")
            .arg("-xf")
            .arg(archive)
            .arg("-C")
            .arg(&tablespace),
    );
    let label = fs::read_to_string(data.join("backup_label")).unwrap();
    assert!(label.contains("LABEL: it's a label\n"), "{label}");
    let mut verify = command(&bin.join("pg_verifybackup"));
    verify.arg("-n").arg(&data);
    run(verify);

    // A slow backup is cancelled; the connection stays usable.
    let mut connection = connect(&server, Mode::PhysicalReplication).await;
    let token = connection.cancel_token();
    let mut options = BaseBackupOptions::new("slow");
    options.max_rate = Some(32);
    let mut backup = connection.base_backup(&options).await.unwrap();
    let error = loop {
        match backup.next().await {
            Ok(BaseBackupEvent::Data(_)) => token.cancel().await.unwrap(),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(
        error.server_kind(),
        Some(ServerErrorKind::Cancelled),
        "{error:?}"
    );
    connection.identify_system().await.unwrap();

    // A damaged page: every byte comes, then the error.
    let path = server
        .data()
        .join(server.psql("SELECT pg_relation_filepath('t')"));
    let mut bytes = fs::read(&path).unwrap();
    bytes[5000] ^= 1;
    fs::write(&path, bytes).unwrap();
    let mut backup = connection
        .base_backup(&BaseBackupOptions::new("damaged"))
        .await
        .unwrap();
    let mut has_manifest = false;
    let error = loop {
        match backup.next().await {
            Ok(BaseBackupEvent::ManifestStart) => has_manifest = true,
            Ok(BaseBackupEvent::End { .. }) => panic!("the damage was not seen"),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(has_manifest);
    assert_eq!(
        error.server_kind(),
        Some(ServerErrorKind::DataCorrupted),
        "{error:?}"
    );
    assert_eq!(error.class(), ErrorClass::Corrupt);
    connection.identify_system().await.unwrap();
}

#[tokio::test]
async fn a_base_backup_with_a_tablespace_is_what_postgres_verifies_on_15() {
    base_backup_with_tablespace(15).await;
}

#[tokio::test]
async fn a_base_backup_with_a_tablespace_is_what_postgres_verifies_on_18() {
    base_backup_with_tablespace(18).await;
}

#[tokio::test]
async fn fourteen_is_refused_by_name() {
    let Some(bin) = programs(14) else { return };
    let server = start(&bin);
    let mut connection = connect(&server, Mode::PhysicalReplication).await;
    assert_eq!(connection.server_major(), 14);
    assert!(!SUPPORTED_MAJORS.contains(&14));
    let refused = |error: Error| {
        assert_eq!(error.class(), ErrorClass::Config);
        let text = error.to_string();
        assert!(text.contains("PostgreSQL 14 is not supported"), "{text}");
    };
    refused(connection.require_supported().unwrap_err());
    refused(connection.read_slot("walden").await.unwrap_err());
    let options = BaseBackupOptions::new("x");
    refused(
        connection
            .base_backup(&options)
            .await
            .map(|_| ())
            .unwrap_err(),
    );
    // What every major answers still works, so the refusal can say more.
    connection.identify_system().await.unwrap();
    Connection::close(connection).await.unwrap();
}
