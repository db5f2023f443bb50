//! A real archive made by a real server: two backups, two timelines, prepared transactions, tail chunks, and beside it the WAL of a
//! clone that went another way and of a stranger. And copies of it that a damage may change.

use crate::push::Site;
use crate::support::postgres::{Server, Stop};
use crate::support::process::Running;
use crate::support::scratch::Scratch;
use crate::support::wait_until;
use crate::support::walden::Walden;
use repository::descriptor::{Descriptor, WalDescriptor};
use repository::identity::{Identities, Recipients, SecretReference};
use repository::key::ObjectKey;
use repository::sealed::{BufferPool, Facts, OpenPolicy, SealPolicy, Sealer};
use repository::testing::UNENCRYPTED;
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use wal_format::{Lsn, SegmentName, SegmentSize};

const DEADLINE: Duration = Duration::from_secs(60);
/// The prepared transaction that stays open.
pub(super) const PREPARED: &str = "stays open";
/// Segments have 1 MiB.
pub(super) const SIZE: SegmentSize = SegmentSize::MIN;

/// The archive and what a test must know of it.
pub(super) struct Archive {
    site: Site,
    pub(super) cluster: String,
    /// The backups' labels, in order.
    pub(super) labels: Vec<String>,
    /// The backups' descriptors.
    pub(super) backups: Vec<Value>,
    /// Where the clone's WAL and the stranger's are stored.
    clone: PathBuf,
    stranger: PathBuf,
    open: OpenPolicy,
    seal: SealPolicy,
    _held: Vec<Server>,
}

impl Archive {
    pub(super) fn make(encrypted: bool) -> Self {
        let extra: &[&str] = if encrypted { &[] } else { &["--no-encryption"] };
        let server = Server::builder(18)
            .wal_segment_mib(1)
            .setting("max_prepared_transactions = 4")
            .setting("wal_keep_size = 512")
            .setting("autovacuum = off")
            .start();
        let mut site = Site::new(server, None, extra);
        let run = receive(&site);
        site.server.psql("create table t (n bigint, b bytea)");
        let first = backup(&site);
        fill(&site.server, 3);
        site.server
            .psql("begin; insert into t values (1, null); prepare transaction 'comes to an end'");
        site.server.psql(&format!(
            "begin; insert into t values (2, null); prepare transaction '{PREPARED}'"
        ));
        fill(&site.server, 2);
        let second = backup(&site);
        fill(&site.server, 2);
        wait_stored(&site);
        end(run);
        // The same server goes on as timeline 2.
        site.server.stop(Stop::Fast, DEADLINE);
        fs::write(site.server.data_directory().join("standby.signal"), "").unwrap();
        give_away(
            &site.server.data_directory().join("standby.signal"),
            site.server.data_directory(),
        );
        site.server.start();
        site.server.promote();
        let run = receive(&site);
        fill(&site.server, 2);
        site.server.psql("commit prepared 'comes to an end'");
        wait_stored(&site);
        end(run);
        // A copy of it goes another way from here.
        site.server.stop(Stop::Fast, DEADLINE);
        let clone = copy_of(&site.server);
        site.server.start();
        let run = receive(&site);
        fill(&site.server, 3);
        site.server.psql("insert into t values (3, null)");
        wait_stored(&site);
        end(run);

        let config = fs::read_to_string(site.folder.join("walden.toml")).unwrap();
        let recipient = config
            .split('"')
            .find(|text| text.starts_with("age1"))
            .map(str::to_owned);
        let place = Place {
            folder: &site.folder,
            recipient: recipient.as_deref(),
        };
        // Other rows, so that its records lie elsewhere.
        clone.psql("insert into t values (9, 'another way')");
        for _ in 0..4 {
            rows(&clone, 700);
        }
        let other_way = place.push_all(&clone, "clone");
        let foreigner = Server::builder(18)
            .wal_segment_mib(1)
            .own_identity()
            .start();
        for _ in 0..12 {
            foreigner.psql("create table if not exists t (n int); insert into t values (1); select pg_switch_wal()");
        }
        let stranger = place.push_all(&foreigner, "stranger");
        let cluster = site.server.control_data("Database system identifier");
        let label = |backup: &Value| backup["label"].as_str().unwrap().to_owned();
        let labels = vec![label(&first), label(&second)];
        let document = |label: &String| {
            let path = site.repository.join(&cluster).join("backups").join(label);
            serde_json::from_slice(&fs::read(path.join("backup.json")).unwrap()).unwrap()
        };
        let backups = labels.iter().map(document).collect();
        let mut open = OpenPolicy::default();
        if encrypted {
            let file = site.folder.join("walden.key").display().to_string();
            open.identities = wait(Identities::load(&[SecretReference::File(file)])).unwrap();
        }
        let seal = SealPolicy {
            recipients: recipient.map(|recipient| Recipients::parse(&[recipient]).unwrap()),
            ..UNENCRYPTED
        };
        Self {
            clone: other_way,
            stranger,
            cluster,
            labels,
            backups,
            open,
            seal,
            site,
            _held: vec![clone, foreigner],
        }
    }

    pub(super) fn url(&self) -> String {
        format!("file://{}", self.site.repository.display())
    }

    /// The configuration with more repositories beside the archive, which is `primary`.
    pub(super) fn config_with(&self, more: &[(&str, &str)]) -> String {
        let mut config = fs::read_to_string(self.site.folder.join("walden.toml")).unwrap();
        for (name, url) in more {
            config.push_str(&format!(
                "\n[[repository]]\nname = \"{name}\"\nurl = \"{url}\"\n"
            ));
        }
        config
    }

    pub(super) fn identity(&self) -> Option<String> {
        let key = self.site.folder.join("walden.key");
        key.exists().then(|| format!("file:{}", key.display()))
    }

    /// Names of the sealed segments of a timeline, in order.
    pub(super) fn segments(&self, timeline: u32) -> Vec<SegmentName> {
        let folder = self
            .site
            .repository
            .join(&self.cluster)
            .join(format!("wal/{timeline:08X}/00000000"));
        let mut names: Vec<SegmentName> = fs::read_dir(folder)
            .unwrap()
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                name.strip_suffix(".wal")?.parse().ok()
            })
            .collect();
        names.sort();
        names
    }

    /// One between the backups' starts that neither needs to be consistent.
    pub(super) fn middle_segment(&self) -> SegmentName {
        let stop = self.lsn(0, "stop_lsn");
        let start = self.lsn(1, "start_lsn");
        let between = self.segments(1).into_iter().filter(|name| {
            let begin = name.start(SIZE).unwrap();
            begin > stop && begin.saturating_add(1 << 20) < start
        });
        let between: Vec<_> = between.collect();
        assert!(
            between.len() >= 2,
            "segments between the backups: {between:?}"
        );
        between[between.len() / 2]
    }

    pub(super) fn lsn(&self, backup: usize, field: &str) -> Lsn {
        self.backups[backup][field]
            .as_str()
            .unwrap()
            .parse()
            .unwrap()
    }

    pub(super) fn second_backup_stopped(&self) -> String {
        // PostgreSQL's times, and therefore targets, have microseconds.
        let stopped: jiff::Timestamp = self.backups[1]["stopped"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap();
        let micros = stopped.as_microsecond() + 1;
        jiff::Timestamp::from_microsecond(micros)
            .unwrap()
            .to_string()
    }

    /// The segment that holds the byte before `lsn`, on timeline 1.
    pub(super) fn segment_before(&self, lsn: Lsn) -> SegmentName {
        SegmentName::new(
            wal_format::TimelineId::FIRST,
            SIZE.segment_before(lsn),
            SIZE,
        )
    }

    pub(super) fn segment_key(&self, name: &SegmentName) -> String {
        let cluster = self.cluster.parse().unwrap();
        ObjectKey::Segment {
            cluster,
            name: *name,
        }
        .to_string()
    }

    /// A segment of the clone's, or of the stranger's, as their archive has it.
    pub(super) fn of_clone(&self, name: &SegmentName) -> Option<Vec<u8>> {
        find(&self.clone, &format!("{name}.wal"))
    }

    pub(super) fn of_stranger(&self, name: &SegmentName) -> Option<Vec<u8>> {
        find(&self.stranger, &format!("{name}.wal"))
    }

    pub(super) fn open(&self, key: &str, object: Vec<u8>) -> (Descriptor, Vec<u8>) {
        let mut plain = Vec::new();
        let key = key.parse().unwrap();
        let opened = self.open.open(&key, object.into(), 64 << 20, &mut plain);
        (opened.unwrap(), plain)
    }

    /// Seals bytes as the archive's own, whatever is said of them.
    pub(super) fn seal(&self, key: &str, wal: Option<WalDescriptor>, plain: &[u8]) -> Vec<u8> {
        let facts = Facts {
            key: key.parse().unwrap(),
            pg_version: 18,
            wal,
        };
        let mut sealer = Sealer::new(self.seal.clone(), BufferPool::new(0));
        let sealed = sealer.seal(facts, plain).unwrap();
        [sealed.header, sealed.payload].concat()
    }
}

/// A copy of the archive's repository: hard links, and files of its own where something was changed.
pub(super) struct Copy {
    scratch: Scratch,
}

impl Copy {
    pub(super) fn of(archive: &Archive) -> Self {
        let scratch = Scratch::new();
        link_tree(&archive.site.repository, &scratch.join("repo"));
        Self { scratch }
    }

    pub(super) fn url(&self) -> String {
        format!("file://{}", self.scratch.join("repo").display())
    }

    pub(super) fn path(&self, key: &str) -> PathBuf {
        self.scratch.join("repo").join(key)
    }

    pub(super) fn read(&self, key: &str) -> Vec<u8> {
        fs::read(self.path(key)).unwrap()
    }

    pub(super) fn remove(&self, key: &str) {
        fs::remove_file(self.path(key)).unwrap();
    }

    /// Removes a sealed segment and the tail chunks that it covers, which would stand in for its beginning.
    pub(super) fn remove_segment(&self, archive: &Archive, name: &SegmentName) -> String {
        let key = archive.segment_key(name);
        self.remove(&key);
        let chunks = format!("{}/tail/{:08X}", archive.cluster, name.timeline.get());
        for entry in fs::read_dir(self.path(&chunks))
            .into_iter()
            .flatten()
            .flatten()
        {
            if entry
                .file_name()
                .to_string_lossy()
                .starts_with(&name.to_string())
            {
                fs::remove_file(entry.path()).unwrap();
            }
        }
        key
    }

    /// Adds an object.
    pub(super) fn add(&self, key: &str, bytes: &[u8]) {
        let path = self.path(key);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        assert!(!path.exists(), "{key} is there");
        fs::write(&path, bytes).unwrap();
    }

    /// Keys of all objects, in order.
    pub(super) fn keys(&self) -> Vec<String> {
        let root = self.scratch.join("repo");
        let mut keys = Vec::new();
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap().flatten() {
                match entry.path() {
                    path if path.is_dir() => folders.push(path),
                    path => keys.push(
                        path.strip_prefix(&root)
                            .unwrap()
                            .to_str()
                            .unwrap()
                            .to_owned(),
                    ),
                }
            }
        }
        keys.sort();
        keys
    }

    /// Replaces an object; the one in the archive stays as it is.
    pub(super) fn write(&self, key: &str, bytes: &[u8]) {
        let path = self.path(key);
        assert_ne!(
            fs::read(&path).unwrap(),
            bytes,
            "{key}: nothing was damaged"
        );
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
    }
}

/// Where other servers' WAL is put.
struct Place<'a> {
    folder: &'a Path,
    recipient: Option<&'a str>,
}

impl Place<'_> {
    /// Pushes every finished segment of a server into a repository of its own.
    fn push_all(&self, server: &Server, name: &str) -> PathBuf {
        let folder = self.folder.join(name);
        fs::create_dir(&folder).unwrap();
        let repository = folder.join("repo");
        let url = format!("file://{}", repository.display());
        let conninfo = server.conninfo();
        let mut arguments = vec!["init", &url, "--postgres", &conninfo];
        match self.recipient {
            Some(recipient) => arguments.extend(["--recipient", recipient]),
            None => arguments.push("--no-encryption"),
        }
        let walden = Walden::in_directory(&folder);
        walden.run(arguments).expect_success();
        let current = server.psql("select pg_walfile_name(pg_current_wal_lsn())");
        let mut names: Vec<String> = fs::read_dir(server.wal_directory())
            .unwrap()
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| {
                name.parse::<SegmentName>().is_ok() && *name < current && name[..8] == current[..8]
            })
            .collect();
        names.sort();
        let config = folder.join("walden.toml");
        for name in names {
            let path = server.wal_directory().join(name);
            let arguments = [
                "archive-push",
                "--config",
                config.to_str().unwrap(),
                path.to_str().unwrap(),
            ];
            walden.run(arguments).expect_success();
        }
        repository
    }
}

fn receive(site: &Site) -> Running {
    let run = site.walden.start(["run", "--rpo", "200ms"]);
    wait_until("walden run receives", DEADLINE, || {
        let active = "select active from pg_replication_slots where slot_name = 'walden'";
        (site.server.psql(active) == "t").then_some(())
    });
    run
}

fn end(run: Running) {
    run.signal(Signal::TERM);
    run.wait(DEADLINE).expect_success();
}

fn backup(site: &Site) -> Value {
    let output = site.walden.run(["backup", "--fast-checkpoint", "--json"]);
    serde_json::from_str(&output.expect_success().stdout).unwrap()
}

/// So many segments and a bit, of bytes that do not compress.
fn fill(server: &Server, segments: u32) {
    for _ in 0..segments {
        rows(server, 900);
    }
    server.psql("insert into t values (0, null)");
}

/// So many rows of a kilobyte, and a segment switch.
fn rows(server: &Server, count: u32) {
    server.psql(&format!(
        "insert into t select n, decode(repeat(md5(random()::text || n), 1), 'hex') || \
             decode((select string_agg(md5(random()::text || n || i), '') from generate_series(1, 60) i), 'hex') \
             from generate_series(1, {count}) n; select pg_switch_wal()"
    ));
}

/// Until everything that the server has flushed is stored.
fn wait_stored(site: &Site) {
    let flushed = site.server.psql("select pg_current_wal_flush_lsn()");
    wait_until("the last WAL is stored", DEADLINE, || {
        let stored = format!(
            "select coalesce(min(flush_lsn) >= '{flushed}', false) from pg_stat_replication"
        );
        (site.server.psql(&stored) == "t").then_some(())
    });
}

/// A running server over a copy of a stopped one's data directory.
fn copy_of(server: &Server) -> Server {
    let scratch = Scratch::new();
    let (folder, lock) = scratch.keep();
    let data = folder.join("data");
    let status = std::process::Command::new("cp")
        .arg("-a")
        .arg(server.data_directory())
        .arg(&data)
        .status();
    assert!(status.unwrap().success());
    let mut copy = Server::over_directory(18, &data);
    copy.start();
    // Whoever sweeps abandoned folders leaves this one alone until the program ends.
    std::mem::forget(lock);
    copy
}

/// Gives a file to the owner of another one.
fn give_away(path: &Path, like: &Path) {
    use std::os::unix::fs::MetadataExt;
    let owner = fs::metadata(like).unwrap();
    std::os::unix::fs::chown(path, Some(owner.uid()), Some(owner.gid())).unwrap();
}

fn find(folder: &Path, name: &str) -> Option<Vec<u8>> {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            if let Some(found) = find(&path, name) {
                return Some(found);
            }
        } else if entry.file_name() == name {
            return Some(fs::read(path).unwrap());
        }
    }
    None
}

fn link_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        match path.is_dir() {
            true => link_tree(&path, &target),
            false => fs::hard_link(&path, &target).unwrap(),
        }
    }
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(future)
}
