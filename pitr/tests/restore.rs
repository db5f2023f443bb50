//! A base backup of a real server, stored as the archiver stores it, laid out again: whole, interrupted, damaged, and hostile.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use pitr::data_directory::DataDirectory;
use pitr::error::{Error, Result};
use pitr::manifest::Manifest;
use pitr::postgres::{Owner, ServerBinaries, ServerCommand, StopMode};
use pitr::recovery_conf::{Action, RecoveryFacts, WalMinimums, plan_recovery_setup};
use pitr::restore::{LaidOut, OWN_FOLDER, PG_CONTROL, RestoreJob, STATE_FILE, lay_out};
use pitr::stop::minimums_of;
use pitr::tar_slice::{SliceContent, read_part};
use repository::backup::{BackupDescriptor, ContinuedMember, PART_BYTES, PartDescriptor};
use repository::key::{Archive, BackupLabel, BackupObject, ClusterId, ObjectKey};
use repository::sealed::{BufferPool, Facts, OpenPolicy, Sealer};
use repository::testing::UNENCRYPTED;
use repository::{ErrorClass, Repository, Store, StoreOptions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use support::{Guard, Psql, binaries, give_away, run, wait_until_ready};
use wal_format::{Lsn, TimelineId};

const MAJOR: u32 = 18;

struct Stored {
    scratch: tempfile::TempDir,
    binaries: ServerBinaries,
    owner: Option<Owner>,
    repository: Repository,
    cluster: ClusterId,
    label: BackupLabel,
    backup: BackupDescriptor,
    tablespace: String,
}

impl Stored {
    fn folder(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn job(&self, name: &str) -> RestoreJob {
        RestoreJob {
            repository: (&self.repository).into(),
            policy: OpenPolicy::default(),
            cluster: self.cluster,
            label: self.label.clone(),
            backup: self.backup.clone(),
            data: DataDirectory::new(&self.folder(name)).unwrap(),
            mappings: vec![(
                self.tablespace.clone(),
                self.folder(&format!("{name} ts=1"))
                    .to_str()
                    .unwrap()
                    .to_owned(),
            )],
            owner: self.owner,
        }
    }

    fn key(&self, object: BackupObject) -> ObjectKey {
        ObjectKey::Backup {
            cluster: self.cluster,
            label: self.label.clone(),
            object,
        }
    }

    fn object_file(&self, archive: Archive, part: u32) -> PathBuf {
        self.folder("store")
            .join(self.key(BackupObject::Part { archive, part }).to_string())
    }

    fn verify(&self, laid_out: &LaidOut, name: &str) {
        let data = self.folder(name);
        let facts = RecoveryFacts {
            major: MAJOR,
            stop: Lsn::new(0x3000000),
            timeline: TimelineId::FIRST,
            action: Action::Pause,
            minimums: minimums_of(&laid_out.control_file.parameters),
            restored_from: "test",
            program: "/bin/false",
            hook_config: "/x",
            plan_file: "/x",
            port: None,
            listen_addresses: None,
            socket_directory: None,
            overrides: &[],
        };
        let minimums: WalMinimums = facts.minimums;
        assert_eq!(minimums.max_connections, 37);
        let setup = plan_recovery_setup(&facts, &DataDirectory::new(&data).unwrap()).unwrap();
        assert!(!data.join(PG_CONTROL).exists());
        laid_out.finish(&setup, &[("plan.json", b"{}")]).unwrap();
        assert!(
            data.join(OWN_FOLDER).join("plan.json").is_file() && !data.join(STATE_FILE).exists()
        );
        // The map names the new place of the tablespace; everything else is byte for byte what was backed up.
        let output = Command::new(self.binaries.folder.join("pg_verifybackup"))
            .args(["-n", "-i", "tablespace_map"])
            .arg(&data)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(
            std::fs::metadata(&data).unwrap().permissions().mode() & 0o777,
            0o700
        );
        let oid = self.backup.tablespaces[0].oid;
        let link = std::fs::read_link(data.join(format!("pg_tblspc/{oid}"))).unwrap();
        assert_eq!(link, self.folder(&format!("{name} ts=1")));
    }
}

/// Cuts a tar stream into parts and says of each what the archiver says.
fn parts(archive: Archive, tar: &[u8]) -> Vec<(PartDescriptor, Vec<u8>)> {
    let mut open: Option<ContinuedMember> = None;
    let mut parts = Vec::new();
    for (index, part) in tar.chunks(PART_BYTES).enumerate() {
        let continued = open.take();
        for slice in read_part("part", part, continued.as_ref()).unwrap() {
            if let SliceContent::Piece {
                size,
                offset,
                bytes,
            } = slice.content
            {
                let offset = offset + bytes.len() as u64;
                open = (offset < size).then_some(ContinuedMember {
                    name: slice.path,
                    offset,
                    size,
                    mode: slice.mode,
                });
            }
        }
        let descriptor = PartDescriptor {
            archive,
            part: index as u32,
            plain_size: part.len() as u32,
            stored_size: 0,
            plain_crc32: None,
            first_member: None,
            continued,
        };
        parts.push((descriptor, part.to_vec()));
    }
    parts
}

async fn stored() -> Option<Stored> {
    let binaries = binaries(MAJOR).await?;
    let is_root = rustix::process::geteuid().is_root();
    let owner = if is_root {
        Some(Owner::find("nobody").await.unwrap())
    } else {
        None
    };
    let scratch = tempfile::Builder::new()
        .prefix("wr")
        .tempdir_in("/tmp")
        .unwrap();
    let folder = |name: &str| scratch.path().join(name);
    for name in ["", "ts a% é=b", "store", "tar"] {
        std::fs::create_dir_all(folder(name)).unwrap();
        std::fs::set_permissions(folder(name), PermissionsExt::from_mode(0o755)).unwrap();
        give_away(&folder(name), owner);
    }
    let text = |name: &str| folder(name).to_str().unwrap().to_owned();
    let tool = |name: &str| binaries.folder.join(name);
    let _guard = Guard(folder("source"));
    run(
        owner,
        &tool("initdb"),
        &[
            "-D",
            &text("source"),
            "-A",
            "trust",
            "-U",
            "postgres",
            "-N",
            "--locale=C",
            "-k",
        ],
    );
    let conf = folder("source").join("postgresql.conf");
    let mut settings = std::fs::read_to_string(&conf).unwrap();
    settings.push_str("listen_addresses = ''\nunix_socket_directories = '.'\nmax_connections = 37\nfsync = off\nport = 15997\nsummarize_wal = off\n");
    std::fs::write(&conf, settings).unwrap();
    let command = ServerCommand {
        binaries: binaries.clone(),
        data_directory: folder("source"),
        log_file: folder("source.log"),
        owner,
    };
    let mut server = command.start().unwrap();
    let address = wait_until_ready(&folder("source")).await;
    let psql = Psql {
        binaries: binaries.clone(),
    };
    let tablespace = text("ts a% é=b");
    psql.ask(
        &address,
        &format!("create tablespace ts location '{}'", tablespace),
    )
    .unwrap();
    psql.ask(
        &address,
        "create table big as select i, repeat(md5(i::text), 30) from generate_series(1, 70000) i",
    )
    .unwrap();
    psql.ask(&address, "create table far (i int) tablespace ts; insert into far values (1); create table empty (i int)").unwrap();
    let socket = text("source");
    run(
        owner,
        &tool("pg_basebackup"),
        &[
            "-D",
            &text("tar"),
            "-F",
            "tar",
            "-h",
            &socket,
            "-p",
            "15997",
            "-U",
            "postgres",
            "-X",
            "none",
            "-c",
            "fast",
            "--no-sync",
        ],
    );
    let identifier = psql
        .ask(
            &address,
            "select system_identifier from pg_control_system()",
        )
        .unwrap();
    let oid: u32 = psql
        .ask(
            &address,
            "select oid from pg_tablespace where spcname = 'ts'",
        )
        .unwrap()
        .parse()
        .unwrap();
    server
        .stop(StopMode::Immediate, Duration::from_secs(20))
        .await
        .unwrap();

    let store = Store::open(
        &format!("file://{}", text("store")),
        StoreOptions::default(),
    )
    .unwrap();
    let repository = Repository::new("test", store);
    let cluster = ClusterId::new(identifier.parse().unwrap());
    let label: BackupLabel = "20260123T142811Z-full-3fa9".parse().unwrap();
    let mut sealer = Sealer::new(UNENCRYPTED, BufferPool::new(2));
    let manifest = std::fs::read(folder("tar/backup_manifest")).unwrap();
    let facts = Manifest::parse(&manifest).unwrap();
    let mut objects = vec![(BackupObject::Manifest, manifest.clone())];
    let mut descriptors = Vec::new();
    for (archive, name) in [
        (Archive::Base, "base.tar".to_owned()),
        (Archive::Tablespace(oid), format!("{oid}.tar")),
    ] {
        let tar = std::fs::read(folder("tar").join(name)).unwrap();
        for (descriptor, bytes) in parts(archive, &tar) {
            objects.push((
                BackupObject::Part {
                    archive,
                    part: descriptor.part,
                },
                bytes,
            ));
            descriptors.push(descriptor);
        }
    }
    for (object, bytes) in objects {
        let key = ObjectKey::Backup {
            cluster,
            label: label.clone(),
            object,
        };
        let sealed = sealer
            .seal(
                Facts {
                    key,
                    pg_version: MAJOR as u16,
                    wal: None,
                },
                &bytes,
            )
            .unwrap();
        repository.put(&sealed).await.unwrap();
    }
    assert!(
        descriptors.len() > 3 && descriptors.iter().any(|part| part.continued.is_some()),
        "{}",
        descriptors.len()
    );
    let moment = "2026-01-23T14:28:11Z".parse().unwrap();
    let backup = BackupDescriptor {
        format: 1,
        requires: Vec::new(),
        label: label.as_str().to_owned(),
        kind: "full".into(),
        system_identifier: cluster.system_identifier,
        pg_version: MAJOR as u16,
        server_version: binaries.version.clone(),
        wal_segment_size: 16 << 20,
        timeline: 1,
        lineage: String::new(),
        start_lsn: facts.start.1,
        stop_lsn: facts.stop.1,
        started: moment,
        stopped: moment,
        from_standby: false,
        tablespaces: vec![repository::backup::TablespaceDescriptor {
            oid,
            location: tablespace.clone(),
        }],
        plain_size: descriptors
            .iter()
            .map(|part| u64::from(part.plain_size))
            .sum(),
        parts: descriptors,
        manifest_size: manifest.len() as u64,
        stored_size: 0,
    };
    Some(Stored {
        scratch,
        binaries,
        owner,
        repository,
        cluster,
        label,
        backup,
        tablespace,
    })
}

async fn restore(job: &RestoreJob) -> Result<LaidOut> {
    lay_out(job, &|_| {}).await
}

fn failure(result: Result<LaidOut>, class: ErrorClass, words: &str) {
    let error = result.err().unwrap();
    assert_eq!(error.class(), class, "{error}");
    assert!(error.to_string().contains(words), "{error}");
}

/// Changes bytes all over every file below a folder.
fn damage_files(folder: &Path) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            damage_files(&path);
            continue;
        }
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.iter_mut().step_by(4096).for_each(|byte| *byte ^= 1);
        std::fs::write(&path, bytes).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_comes_back_whole_or_not_at_all() {
    let Some(stored) = stored().await else {
        return;
    };
    let copy_of = |path: &Path| path.with_extension("away");

    // Whole, with progress to the end.
    let seen = std::sync::Mutex::new(Vec::new());
    let job = stored.job("whole");
    let laid_out = lay_out(&job, &|progress| seen.lock().unwrap().push(progress))
        .await
        .unwrap();
    let last = *seen.lock().unwrap().last().unwrap();
    assert_eq!(
        (last.parts_done, last.bytes_done),
        (stored.backup.parts.len(), stored.backup.plain_size)
    );
    assert!(!laid_out.resumed && laid_out.files > 900);
    stored.verify(&laid_out, "whole");
    failure(
        restore(&job).await,
        ErrorClass::Conflict,
        "a finished restore is in it",
    );

    // Interrupted by a missing part, then continued.
    let job = stored.job("interrupted");
    let part = stored.object_file(Archive::Base, 1);
    std::fs::rename(&part, copy_of(&part)).unwrap();
    failure(
        restore(&job).await,
        ErrorClass::Corrupt,
        "missing: the backup is not whole without it",
    );
    assert!(!stored.folder("interrupted").join(PG_CONTROL).exists());
    // Only this restore may go on here.
    let mut another = job.clone();
    another.mappings.clear();
    failure(
        restore(&another).await,
        ErrorClass::Conflict,
        "was interrupted here",
    );
    std::fs::rename(copy_of(&part), &part).unwrap();
    let laid_out = restore(&job).await.unwrap();
    assert!(laid_out.resumed);
    stored.verify(&laid_out, "interrupted");

    // What an earlier run wrote is checked again.
    let job = stored.job("damaged");
    let oid = stored.backup.tablespaces[0].oid;
    let part = stored.object_file(Archive::Tablespace(oid), 0);
    std::fs::rename(&part, copy_of(&part)).unwrap();
    failure(restore(&job).await, ErrorClass::Corrupt, "missing");
    std::fs::rename(copy_of(&part), &part).unwrap();
    let state = std::fs::read_to_string(stored.folder("damaged").join(STATE_FILE)).unwrap();
    assert!(state.contains("[\"base\","), "{state}");
    damage_files(&stored.folder("damaged/base"));
    damage_files(&stored.folder("damaged/pg_xact"));
    failure(
        restore(&job).await,
        ErrorClass::Corrupt,
        "its bytes do not have the checksum",
    );

    // backup.json is a hint: edited, it leads to errors and never to other bytes.
    type Edit = fn(&mut BackupDescriptor);
    let edits: [(&str, Edit, &str); 6] = [
        (
            "e1",
            |backup| backup.stop_lsn = backup.stop_lsn.saturating_add(8),
            "does not belong",
        ),
        (
            "e2",
            |backup| drop(backup.parts.pop()),
            "no part of the backup held it whole",
        ),
        (
            "e3",
            |backup| backup.parts[1].continued.as_mut().unwrap().name = "../../etc/cron.d/x".into(),
            "could leave",
        ),
        (
            "e4",
            |backup| backup.parts[1].continued.as_mut().unwrap().name = "base/1/1249".into(),
            "in the manifest",
        ),
        (
            "e5",
            |backup| backup.parts[1].continued.as_mut().unwrap().offset += 512,
            "",
        ),
        ("e6", |backup| drop(backup.parts.remove(0)), "first part"),
    ];
    for (name, edit, words) in edits {
        let mut job = stored.job(name);
        edit(&mut job.backup);
        failure(restore(&job).await, ErrorClass::Corrupt, words);
        assert!(!stored.folder(name).join(PG_CONTROL).exists());
    }

    // A tablespace is never laid over what is there, and a mapping that fits nothing is a mistake.
    let mut job = stored.job("in the way");
    job.mappings.clear();
    failure(
        restore(&job).await,
        ErrorClass::Conflict,
        "--map-tablespace",
    );
    assert!(!stored.folder("in the way").exists());
    job.mappings = vec![("/elsewhere".into(), "/new".into())];
    failure(
        restore(&job).await,
        ErrorClass::Config,
        "no tablespace there",
    );

    // An object moved to another key, or damaged, is refused before a byte of it is written.
    let job = stored.job("moved");
    let part = stored.object_file(Archive::Base, 1);
    let other = stored.object_file(Archive::Base, 2);
    std::fs::rename(&part, copy_of(&part)).unwrap();
    std::fs::copy(&other, &part).unwrap();
    let error = restore(&job).await.err().unwrap();
    assert!(
        matches!(error, Error::Repository(_)) && error.class() == ErrorClass::Corrupt,
        "{error}"
    );
}
