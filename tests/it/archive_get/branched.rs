//! A cluster with a branch and a repository that holds both sides, to ask `walden archive-get` about; and the hook itself, run in a
//! folder like a data directory.

use super::{DESTINATION, SERVED, SIZE, timeline};
use crate::site::{cluster_document, wait};
use crate::support::postgres::{Server, Stop};
use crate::support::process::{self, COMMAND_DEADLINE, Output, command};
use crate::support::wait_until;
use crate::support::walden::Walden;
use archiver::push::{PushConfig, WalFile, push};
use archiver::receive::OnInvalid;
use pitr::scope::{Leg, RestoreScope};
use repository::descriptor::WalDescriptor;
use repository::identity::{
    ExposeSecret, Identities, Recipients, SecretReference, generate_identity,
};
use repository::key::{ClusterId, ObjectKey};
use repository::sealed::{BufferPool, Facts, OpenPolicy, SealPolicy, Sealer};
use repository::testing::UNENCRYPTED;
use repository::wal::lineage;
use repository::{Repository, Store, StoreOptions};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use wal_format::{Lsn, SegmentName, SegmentNumber, TimelineId};

const STOP: Duration = Duration::from_secs(60);

/// A cluster whose timeline 1 went on after timeline 2 had left it, and a repository that holds both.
pub(super) struct Branched {
    /// Wrote timeline 1 to its end; stopped.
    pub(super) origin: Server,
    /// Became timeline 2; stopped.
    pub(super) promoted: Server,
    /// A copy of the origin before all of it, without WAL.
    pub(super) base: PathBuf,
    /// Where timeline 2 begins.
    pub(super) switch_point: Lsn,
    /// A position at the end of a segment of timeline 1: the last record before a segment switch.
    pub(super) target: Lsn,
    /// First segment that each timeline has not finished.
    pub(super) open: [SegmentName; 2],
    pub(super) repository: Repository,
    pub(super) root: PathBuf,
    pub(super) cluster: ClusterId,
    pub(super) seal: SealPolicy,
    pub(super) folder: PathBuf,
}

impl Branched {
    pub(super) fn new(major: u32) -> Self {
        let mut origin = Server::builder(major).wal_segment_mib(1).start();
        origin.psql("create table kept (note text, filler text)");
        let base = origin.scratch().join("base");
        origin.base_backup(&base, &["-X", "none"]);
        let fill = |server: &Server, note: &str| {
            server.psql(&format!(
                "insert into kept select '{note}', repeat(md5(n::text), 30) from generate_series(1, 900) n"
            ));
        };
        let switch = |server: &Server| {
            server.psql("select pg_switch_wal()");
        };
        fill(&origin, "first");
        let target = origin.psql("select pg_logical_emit_message(false, 'target', 'here')");
        let target: Lsn = target.parse().expect("an LSN");
        switch(&origin);
        fill(&origin, "second");
        switch(&origin);
        let mut promoted = origin.standby();
        origin.psql("insert into kept values ('last before the switch', '')");
        let flushed = origin.psql("select pg_current_wal_flush_lsn()");
        wait_until("the standby has it all", COMMAND_DEADLINE, || {
            let replayed = format!("select pg_last_wal_replay_lsn() >= '{flushed}'");
            (promoted.psql(&replayed) == "t").then_some(())
        });
        promoted.promote();
        fill(&origin, "dead");
        switch(&origin);
        fill(&origin, "dead");
        switch(&origin);
        fill(&promoted, "alive");
        switch(&promoted);
        fill(&promoted, "alive");
        switch(&promoted);
        promoted.psql(
            "insert into kept select 'newest', repeat(md5(n::text), 30) from generate_series(1, 200) n",
        );
        let current = "select pg_walfile_name(pg_current_wal_insert_lsn())";
        let open = [&origin, &promoted].map(|server| {
            let name = server.psql(current);
            name.parse().expect("a segment's name")
        });
        let history = fs::read(promoted.wal_directory().join("00000002.history"));
        let history = String::from_utf8(history.expect("a history file")).expect("text");
        let switch_point = history.split('\t').nth(1).expect("a switch point");
        let switch_point = switch_point.parse().expect("an LSN");
        promoted.stop(Stop::Immediate, STOP);
        origin.stop(Stop::Immediate, STOP);

        let identifier = origin.control_data("Database system identifier");
        let cluster = ClusterId::new(identifier.parse().expect("a number"));
        let folder = origin.scratch().join("wal den");
        let root = folder.join("repository");
        fs::create_dir_all(&root).expect("make the repository's folder");
        let identity = generate_identity(jiff::Timestamp::UNIX_EPOCH);
        let other = generate_identity(jiff::Timestamp::UNIX_EPOCH);
        for (name, identity) in [("identity", &identity), ("other", &other)] {
            let text = identity.file.expose_secret();
            fs::write(folder.join(name), text).expect("write an identity");
        }
        let recipients = Recipients::parse(&[identity.recipient.to_string()]);
        let url = format!("file://{}", root.display());
        let store = Store::open(&url, StoreOptions::default()).expect("open the store");
        let branched = Self {
            base,
            switch_point,
            target,
            open,
            repository: Repository::new("primary", store),
            root,
            cluster,
            seal: SealPolicy {
                recipients: Some(recipients.expect("a recipient")),
                ..UNENCRYPTED
            },
            folder,
            origin,
            promoted,
        };
        branched.fill_repository();
        branched
    }

    pub(super) fn fill_repository(&self) {
        let document = cluster_document(&self.origin, self.cluster.system_identifier, SIZE);
        let reference = SecretReference::File(self.folder.join("identity").display().to_string());
        let open = OpenPolicy {
            identities: wait(Identities::load(&[reference])).expect("load the identity"),
            allow_plain: false,
        };
        let config = PushConfig {
            repositories: std::slice::from_ref(&self.repository),
            ack: repository::mirror::Ack::All,
            seal: self.seal.clone(),
            system_identifier: Some(self.cluster.system_identifier),
            incarnation: 0,
            on_invalid: OnInvalid::Refuse,
        };
        wait(async {
            let key = ObjectKey::Cluster(self.cluster);
            let put = self.repository.put_json(&key, &document).await;
            put.expect("store cluster.json");
            for (server, open_segment) in [&self.origin, &self.promoted].into_iter().zip(self.open)
            {
                for entry in fs::read_dir(server.wal_directory()).expect("read pg_wal") {
                    let path = entry.expect("read pg_wal").path();
                    let name = path.file_name().and_then(|name| name.to_str());
                    let segment = name.and_then(|name| name.parse::<SegmentName>().ok());
                    let is_history = name == Some("00000002.history");
                    let is_finished = segment.is_some_and(|segment| {
                        segment.timeline == open_segment.timeline && segment < open_segment
                    });
                    if is_history || is_finished {
                        let file = WalFile::read(&path).expect("read a WAL file");
                        push(file, &config, &open).await.expect("store a WAL file");
                    }
                }
            }
        });
    }

    pub(super) fn size(&self) -> usize {
        SIZE.bytes() as usize
    }

    pub(super) fn name(&self, timeline_number: u32, number: SegmentNumber) -> SegmentName {
        SegmentName::new(timeline(timeline_number), number, SIZE)
    }

    /// The segment that both timelines have, on one of them.
    pub(super) fn switch_segment(&self, timeline_number: u32) -> SegmentName {
        self.name(timeline_number, SIZE.segment(self.switch_point))
    }

    /// The segment so many after the one in which timeline 2 begins.
    pub(super) fn after_switch(&self, timeline_number: u32, count: u64) -> SegmentName {
        let number = SIZE.segment(self.switch_point).as_u64() + count;
        self.name(timeline_number, SegmentNumber::new(number))
    }

    pub(super) fn before_switch(&self, count: u64) -> SegmentName {
        let number = SIZE.segment(self.switch_point).as_u64() - count;
        self.name(1, SegmentNumber::new(number))
    }

    /// What the server wrote.
    pub(super) fn wal(&self, name: SegmentName) -> Vec<u8> {
        let server = if name.timeline == TimelineId::FIRST {
            &self.origin
        } else {
            &self.promoted
        };
        fs::read(server.wal_directory().join(name.to_string())).expect("read a segment")
    }

    pub(super) fn history(&self) -> Vec<u8> {
        let path = self.promoted.wal_directory().join("00000002.history");
        fs::read(path).expect("read the history file")
    }

    pub(super) fn lineage(&self, timeline: TimelineId) -> String {
        let history = (timeline != TimelineId::FIRST).then(|| self.history());
        lineage(history.as_deref())
    }

    pub(super) fn segment_key(&self, name: SegmentName) -> ObjectKey {
        ObjectKey::Segment {
            cluster: self.cluster,
            name,
        }
    }

    pub(super) fn history_key(&self) -> ObjectKey {
        ObjectKey::History {
            cluster: self.cluster,
            timeline: timeline(2),
        }
    }

    /// The file that holds an object.
    pub(super) fn object(&self, key: &ObjectKey) -> PathBuf {
        let path = self.root.join(key.to_string());
        assert!(path.exists(), "{} is stored", path.display());
        path
    }

    /// Takes an object away for as long as what comes back is kept.
    pub(super) fn without(&self, key: &ObjectKey) -> Changed {
        let changed = Changed::keep(self.object(key));
        fs::remove_file(&changed.path).expect("remove an object");
        changed
    }

    /// Replaces an object's bytes likewise.
    pub(super) fn with_bytes(&self, key: &ObjectKey, bytes: &[u8]) -> Changed {
        let changed = Changed::keep(self.object(key));
        fs::remove_file(&changed.path).expect("remove an object");
        fs::write(&changed.path, bytes).expect("write an object");
        changed
    }

    /// Stores bytes of a segment under any key, described as said.
    pub(super) fn put(&self, key: ObjectKey, plain: &[u8], wal: WalDescriptor, seal: SealPolicy) {
        let facts = Facts {
            key,
            pg_version: u16::try_from(self.origin.major()).expect("a small number"),
            wal: Some(wal),
        };
        let sealed = Sealer::new(seal, BufferPool::new(0)).seal(facts, plain);
        wait(self.repository.put(&sealed.expect("seal"))).expect("store an object");
    }

    /// Stores bytes `from..to` of a segment as a tail chunk.
    pub(super) fn put_tail(&self, name: SegmentName, from: usize, to: usize) -> ObjectKey {
        let start = name.start(SIZE).expect("a segment");
        let offset = |offset: usize| u32::try_from(offset).expect("an offset in a segment");
        let key = ObjectKey::Tail {
            cluster: self.cluster,
            name,
            from: offset(from),
            to: offset(to),
            writer: 7,
        };
        let wal = WalDescriptor {
            start_lsn: start.saturating_add(from as u64),
            end_lsn: start.saturating_add(to as u64),
            lineage: self.lineage(name.timeline),
            ..WalDescriptor::default()
        };
        let bytes = self.wal(name);
        let bytes = bytes.get(from..to).expect("bytes of the segment");
        self.put(key.clone(), bytes, wal, self.seal.clone());
        key
    }

    /// A configuration with this in it.
    pub(super) fn config_with(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.join(name);
        fs::write(&path, text).expect("write a configuration");
        path
    }

    pub(super) fn config(&self) -> PathBuf {
        self.config_with("walden.toml", &self.config_text("identity"))
    }

    pub(super) fn config_text(&self, identity: &str) -> String {
        let (folder, root) = (self.folder.display(), self.root.display());
        format!(
            "[postgres]\nsystem_identifier = \"{}\"\n[encryption]\nidentity = 'file:{folder}/{identity}'\n\
             [restore]\npatience = '1s'\n[[repository]]\nurl = 'file://{root}'\n",
            self.cluster.system_identifier
        )
    }

    /// A folder like a data directory, for the hook to run in.
    pub(super) fn hook(&self, name: &str) -> Hook {
        let folder = self.folder.join(name);
        fs::create_dir_all(folder.join("pg_wal")).expect("make a folder");
        Hook {
            folder,
            config: self.config(),
            plan: None,
        }
    }

    /// The plan of a restore from timeline 1 over to timeline 2, up to `end`.
    pub(super) fn plan(&self, end: Lsn) -> RestoreScope {
        let leg = |number: u32, switch_point: Option<Lsn>| Leg {
            timeline: number,
            lineage: self.lineage(timeline(number)),
            switch_point: switch_point.map(|lsn| lsn.to_string()),
        };
        RestoreScope {
            format: 1,
            cluster: self.cluster.to_string(),
            wal_segment_size: SIZE.bytes(),
            path: vec![leg(1, Some(self.switch_point)), leg(2, None)],
            end: end.to_string(),
            allow_plain: false,
            settled: BTreeMap::new(),
        }
    }

    pub(super) fn write_plan(&self, name: &str, plan: &RestoreScope) -> PathBuf {
        let text = serde_json::to_string(plan).expect("a plan as JSON");
        self.config_with(name, &text)
    }

    /// A copy of the base backup that recovers with `settings`, not started.
    pub(super) fn recovery(&self, name: &str, plan: Option<&Path>, settings: &str) -> Server {
        let data = self.folder.join(name);
        let mut copy = command("cp");
        copy.arg("-a").arg(&self.base).arg(&data);
        process::run(copy, COMMAND_DEADLINE).expect_success();
        let plan = plan.map_or_else(String::new, |plan| {
            format!("--plan \"{}\" ", plan.display())
        });
        let restore_command = format!(
            "\"{}\" -v archive-get --config \"{}\" {plan}%f %p",
            Walden::program().display(),
            self.config().display()
        );
        let path = data.join("postgresql.auto.conf");
        let before = fs::read_to_string(&path).expect("read the settings");
        // Without hot standby it answers only once it has opened as a primary.
        let settings = format!(
            "{before}\nrestore_command = '{restore_command}'\nhot_standby = off\n{settings}\n"
        );
        fs::write(&path, settings).expect("write the settings");
        fs::write(data.join("recovery.signal"), "").expect("ask for recovery");
        Server::over_directory(self.origin.major(), &data)
    }
}

/// An object as it was, put back when this is dropped.
pub(super) struct Changed {
    pub(super) path: PathBuf,
    pub(super) before: Vec<u8>,
}

impl Changed {
    pub(super) fn keep(path: PathBuf) -> Self {
        let before = fs::read(&path).expect("read an object");
        Self { path, before }
    }
}

impl Drop for Changed {
    fn drop(&mut self) {
        fs::write(&self.path, &self.before).expect("put an object back");
    }
}

/// `walden archive-get`, run in a folder like a data directory.
pub(super) struct Hook {
    pub(super) folder: PathBuf,
    pub(super) config: PathBuf,
    pub(super) plan: Option<PathBuf>,
}

impl Hook {
    pub(super) fn run(&self, name: impl ToString) -> Output {
        let mut arguments = vec!["archive-get".into(), "--config".into()];
        arguments.push(self.config.clone().into_os_string());
        if let Some(plan) = &self.plan {
            arguments.extend(["--plan".into(), plan.clone().into_os_string()]);
        }
        arguments.extend([name.to_string().into(), DESTINATION.into()]);
        Walden::in_directory(&self.folder).run(arguments)
    }

    pub(super) fn destination(&self) -> PathBuf {
        self.folder.join(DESTINATION)
    }

    /// The file that is served, then taken away again.
    #[track_caller]
    pub(super) fn serves(&self, name: impl ToString) -> Vec<u8> {
        self.run(name).expect_code(SERVED);
        let mode = fs::metadata(self.destination()).expect("it was delivered");
        assert_eq!(mode.permissions().mode() & 0o7777, 0o600);
        let bytes = fs::read(self.destination()).expect("read what was delivered");
        fs::remove_file(self.destination()).expect("take it away");
        self.holds_nothing();
        bytes
    }

    /// Fails with this status and leaves nothing behind.
    #[track_caller]
    pub(super) fn fails(&self, name: impl ToString, code: i32, because: &str) -> Output {
        let output = self.run(name).expect_code(code);
        let told = output.stderr.contains(because);
        assert!(told, "{because:?} is said\n{output}");
        self.holds_nothing();
        output
    }

    /// Not even part of a file is left where PostgreSQL could find it.
    #[track_caller]
    pub(super) fn holds_nothing(&self) {
        let left = fs::read_dir(self.folder.join("pg_wal")).expect("read pg_wal");
        let left: Vec<_> = left
            .map(|entry| entry.expect("read pg_wal").file_name())
            .filter(|name| !name.to_string_lossy().starts_with("walden-unproven-"))
            .collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}
