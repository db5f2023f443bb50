//! `walden archive-get` as PostgreSQL runs it: each outcome and its exit status on real WAL of real servers, and recoveries in which
//! PostgreSQL itself shows that no answer of ours opened a database early or on a branch that was left.

use crate::support::ports::Port;
use crate::support::postgres::{Server, Stop};
use crate::support::process::{self, COMMAND_DEADLINE, Output, command};
use crate::support::wait_until;
use crate::support::walden::Walden;
use archiver::push::{PushConfig, WalFile, push};
use archiver::receive::OnInvalid;
use pitr::scope::{Leg, RestoreScope};
use repository::cluster::ClusterDocument;
use repository::descriptor::WalDescriptor;
use repository::identity::{
    ExposeSecret, Identities, Recipients, SecretReference, generate_identity,
};
use repository::key::{ClusterId, ObjectKey};
use repository::sealed::{BufferPool, Compression, Facts, OpenPolicy, SealPolicy, Sealer};
use repository::wal::lineage;
use repository::{Repository, Store, StoreOptions};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use wal_format::{Lsn, SegmentName, SegmentNumber, SegmentSize, TimelineId};

const SIZE: SegmentSize = SegmentSize::MIN;
const STOP: Duration = Duration::from_secs(60);
/// What the server's recovery asks its file to be written to.
const DESTINATION: &str = "pg_wal/RECOVERYXLOG";
const SERVED: i32 = 0;
const ABSENT: i32 = 1;
const UNPROVEN: i32 = 126;

fn wait<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    runtime.expect("start a runtime").block_on(future)
}

fn timeline(number: u32) -> TimelineId {
    TimelineId::new(number).expect("not 0")
}

/// A cluster whose timeline 1 went on after timeline 2 had left it, and a repository that holds both.
struct Branched {
    /// Wrote timeline 1 to its end; stopped.
    origin: Server,
    /// Became timeline 2; stopped.
    promoted: Server,
    /// A copy of the origin before all of it, without WAL.
    base: PathBuf,
    /// Where timeline 2 begins.
    switch_point: Lsn,
    /// A position at the end of a segment of timeline 1: the last record before a segment switch.
    target: Lsn,
    /// First segment that each timeline has not finished.
    open: [SegmentName; 2],
    repository: Repository,
    root: PathBuf,
    cluster: ClusterId,
    seal: SealPolicy,
    folder: PathBuf,
}

impl Branched {
    fn new(major: u32) -> Self {
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
                compression: Compression::Lz4,
                minimal_descriptor: false,
            },
            folder,
            origin,
            promoted,
        };
        branched.fill_repository();
        branched
    }

    fn fill_repository(&self) {
        let document = ClusterDocument {
            format: 1,
            requires: Vec::new(),
            system_identifier: self.cluster.system_identifier,
            incarnation: 0,
            parent: None,
            pg_version: u16::try_from(self.origin.major()).expect("a small number"),
            block_size: 8192,
            wal_segment_size: SIZE.bytes(),
            created: jiff::Timestamp::UNIX_EPOCH,
        };
        let reference = SecretReference::File(self.folder.join("identity").display().to_string());
        let open = OpenPolicy {
            identities: wait(Identities::load(&[reference])).expect("load the identity"),
            allow_plain: false,
        };
        let config = PushConfig {
            repository: &self.repository,
            seal: self.seal.clone(),
            system_identifier: Some(self.cluster.system_identifier),
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

    fn size(&self) -> usize {
        SIZE.bytes() as usize
    }

    fn name(&self, timeline_number: u32, number: SegmentNumber) -> SegmentName {
        SegmentName::new(timeline(timeline_number), number, SIZE)
    }

    /// The segment that both timelines have, on one of them.
    fn switch_segment(&self, timeline_number: u32) -> SegmentName {
        self.name(timeline_number, SIZE.segment(self.switch_point))
    }

    /// The segment so many after the one in which timeline 2 begins.
    fn after_switch(&self, timeline_number: u32, count: u64) -> SegmentName {
        let number = SIZE.segment(self.switch_point).as_u64() + count;
        self.name(timeline_number, SegmentNumber::new(number))
    }

    fn before_switch(&self, count: u64) -> SegmentName {
        let number = SIZE.segment(self.switch_point).as_u64() - count;
        self.name(1, SegmentNumber::new(number))
    }

    /// What the server wrote.
    fn wal(&self, name: SegmentName) -> Vec<u8> {
        let server = if name.timeline == TimelineId::FIRST {
            &self.origin
        } else {
            &self.promoted
        };
        fs::read(server.wal_directory().join(name.to_string())).expect("read a segment")
    }

    fn history(&self) -> Vec<u8> {
        let path = self.promoted.wal_directory().join("00000002.history");
        fs::read(path).expect("read the history file")
    }

    fn lineage(&self, timeline: TimelineId) -> String {
        let history = (timeline != TimelineId::FIRST).then(|| self.history());
        lineage(history.as_deref())
    }

    fn segment_key(&self, name: SegmentName) -> ObjectKey {
        ObjectKey::Segment {
            cluster: self.cluster,
            name,
        }
    }

    fn history_key(&self) -> ObjectKey {
        ObjectKey::History {
            cluster: self.cluster,
            timeline: timeline(2),
        }
    }

    /// The file that holds an object.
    fn object(&self, key: &ObjectKey) -> PathBuf {
        let path = self.root.join(key.to_string());
        assert!(path.exists(), "{} is stored", path.display());
        path
    }

    /// Takes an object away for as long as what comes back is kept.
    fn without(&self, key: &ObjectKey) -> Changed {
        let changed = Changed::keep(self.object(key));
        fs::remove_file(&changed.path).expect("remove an object");
        changed
    }

    /// Replaces an object's bytes likewise.
    fn with_bytes(&self, key: &ObjectKey, bytes: &[u8]) -> Changed {
        let changed = Changed::keep(self.object(key));
        fs::remove_file(&changed.path).expect("remove an object");
        fs::write(&changed.path, bytes).expect("write an object");
        changed
    }

    /// Stores bytes of a segment under any key, described as said.
    fn put(&self, key: ObjectKey, plain: &[u8], wal: WalDescriptor, seal: SealPolicy) {
        let facts = Facts {
            key,
            pg_version: u16::try_from(self.origin.major()).expect("a small number"),
            wal: Some(wal),
        };
        let sealed = Sealer::new(seal, BufferPool::new(0)).seal(facts, plain);
        wait(self.repository.put(&sealed.expect("seal"))).expect("store an object");
    }

    /// Stores bytes `from..to` of a segment as a tail chunk.
    fn put_tail(&self, name: SegmentName, from: usize, to: usize) -> ObjectKey {
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
    fn config_with(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.join(name);
        fs::write(&path, text).expect("write a configuration");
        path
    }

    fn config(&self) -> PathBuf {
        self.config_with("walden.toml", &self.config_text("identity"))
    }

    fn config_text(&self, identity: &str) -> String {
        let (folder, root) = (self.folder.display(), self.root.display());
        format!(
            "[postgres]\nsystem_identifier = \"{}\"\n[encryption]\nidentity = 'file:{folder}/{identity}'\n\
             [restore]\npatience = '1s'\n[[repository]]\nurl = 'file://{root}'\n",
            self.cluster.system_identifier
        )
    }

    /// A folder like a data directory, for the hook to run in.
    fn hook(&self, name: &str) -> Hook {
        let folder = self.folder.join(name);
        fs::create_dir_all(folder.join("pg_wal")).expect("make a folder");
        Hook {
            folder,
            config: self.config(),
            plan: None,
        }
    }

    /// The plan of a restore from timeline 1 over to timeline 2, up to `end`.
    fn plan(&self, end: Lsn) -> RestoreScope {
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
        }
    }

    fn write_plan(&self, name: &str, plan: &RestoreScope) -> PathBuf {
        let text = serde_json::to_string(plan).expect("a plan as JSON");
        self.config_with(name, &text)
    }

    /// A copy of the base backup that recovers with `settings`, not started.
    fn recovery(&self, name: &str, plan: Option<&Path>, settings: &str) -> Server {
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
struct Changed {
    path: PathBuf,
    before: Vec<u8>,
}

impl Changed {
    fn keep(path: PathBuf) -> Self {
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
struct Hook {
    folder: PathBuf,
    config: PathBuf,
    plan: Option<PathBuf>,
}

impl Hook {
    fn run(&self, name: impl ToString) -> Output {
        let mut arguments = vec!["archive-get".into(), "--config".into()];
        arguments.push(self.config.clone().into_os_string());
        if let Some(plan) = &self.plan {
            arguments.extend(["--plan".into(), plan.clone().into_os_string()]);
        }
        arguments.extend([name.to_string().into(), DESTINATION.into()]);
        Walden::in_directory(&self.folder).run(arguments)
    }

    fn destination(&self) -> PathBuf {
        self.folder.join(DESTINATION)
    }

    /// The file that is served, then taken away again.
    #[track_caller]
    fn serves(&self, name: impl ToString) -> Vec<u8> {
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
    fn fails(&self, name: impl ToString, code: i32, because: &str) -> Output {
        let output = self.run(name).expect_code(code);
        let told = output.stderr.contains(because);
        assert!(told, "{because:?} is said\n{output}");
        self.holds_nothing();
        output
    }

    /// Not even part of a file is left where PostgreSQL could find it.
    #[track_caller]
    fn holds_nothing(&self) {
        let left = fs::read_dir(self.folder.join("pg_wal")).expect("read pg_wal");
        let left: Vec<_> = left
            .map(|entry| entry.expect("read pg_wal").file_name())
            .filter(|name| !name.to_string_lossy().starts_with("walden-unproven-"))
            .collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}

fn answers(major: u32) {
    let site = Branched::new(major);
    let hook = site.hook("answers");

    // Every segment and the history, as the server wrote them.
    for name in [
        site.before_switch(2),
        site.before_switch(1),
        site.switch_segment(1),
        site.switch_segment(2),
        site.after_switch(2, 1),
    ] {
        assert!(hook.serves(name) == site.wal(name), "{name}");
    }
    assert_eq!(hook.serves("00000002.history"), site.history());

    // Proven absent: what nothing descends from.
    hook.fails("00000003.history", ABSENT, "");
    let [end_of_1, end_of_2] = site.open;
    hook.fails(end_of_1, ABSENT, "");
    hook.fails(end_of_2, ABSENT, "");
    hook.fails(site.name(3, SegmentNumber::new(9)), ABSENT, "");
    hook.fails(site.name(2, SegmentNumber::new(1)), ABSENT, "");

    // What PostgreSQL never asks for, and what nobody can answer.
    let segment = site.switch_segment(1);
    hook.fails(format!("{segment}.partial"), UNPROVEN, "never asks");
    hook.fails(format!("{segment}.00000028.backup"), UNPROVEN, "never asks");
    hook.fails("000000010000000000FFFFFF", UNPROVEN, "no WAL segment");
    hook.fails("nonsense", UNPROVEN, "not the name");
    let too_few = Walden::in_directory(&hook.folder).run(["archive-get", "x"]);
    too_few.expect_code(UNPROVEN);
    Walden::in_directory(&hook.folder)
        .run(["archive-get", "--nonsense"])
        .expect_code(UNPROVEN);

    holes(&site, &hook);
    bad_objects(&site, &hook);
    bad_surroundings(&site, &hook);
}

#[test]
fn answers_of_18() {
    answers(18);
}

#[test]
fn answers_of_15() {
    answers(15);
}

fn holes(site: &Branched, hook: &Hook) {
    // In the middle: later segments of the timeline are stored.
    let middle = site.before_switch(2);
    let gone = site.without(&site.segment_key(middle));
    hook.fails(middle, UNPROVEN, "which follows it, is stored");
    drop(gone);

    // The newer timeline's switch segment: PostgreSQL would fall back to the parent's, and replay the branch that was left.
    let first = site.switch_segment(2);
    let gone = site.without(&site.segment_key(first));
    hook.fails(first, UNPROVEN, "is stored");
    drop(gone);

    // The same with nothing else of timeline 2 stored but its history.
    let rest: Vec<Changed> = (0..)
        .map(|count| site.after_switch(2, count))
        .take_while(|name| *name < site.open[1])
        .map(|name| site.without(&site.segment_key(name)))
        .collect();
    assert!(rest.len() >= 2);
    hook.fails(first, UNPROVEN, "begins in it");
    // And at the end of the parent, of which nothing later is stored then: only the child says that it must be there.
    let parents: Vec<Changed> = (0..)
        .map(|count| site.after_switch(1, count))
        .take_while(|name| *name < site.open[0])
        .map(|name| site.without(&site.segment_key(name)))
        .collect();
    hook.fails(site.switch_segment(1), UNPROVEN, "which leaves timeline 1");
    let last = site.before_switch(1);
    let gone = site.without(&site.segment_key(last));
    hook.fails(last, UNPROVEN, "which leaves timeline 1");
    hook.fails(site.after_switch(1, 1), ABSENT, "");
    drop((gone, parents, rest));

    // WAL of a timeline nobody can place: its history is gone.
    let gone = site.without(&site.history_key());
    hook.fails("00000002.history", ABSENT, "");
    hook.fails(first, UNPROVEN, "00000002.history");
    let before = site.without(&site.segment_key(last));
    hook.fails(last, UNPROVEN, "is stored");
    drop((before, gone));
}

fn bad_objects(site: &Branched, hook: &Hook) {
    let (name, other) = (site.switch_segment(2), site.after_switch(2, 1));
    let key = site.segment_key(name);
    let stored = fs::read(site.object(&key)).expect("read an object");
    let header_end = stored
        .windows(5)
        .position(|window| window == b"\n--- ")
        .expect("an age header");
    let middle = (header_end + stored.len()) / 2;
    let last = stored.len() - 1;
    for at in [0, 40, 90, 200, header_end + 10, middle, last] {
        let mut damaged = stored.clone();
        damaged[at] ^= 1;
        let changed = site.with_bytes(&key, &damaged);
        hook.fails(name, UNPROVEN, "error: ");
        drop(changed);
    }
    for length in [0, 10, header_end + 3, middle, last] {
        let changed = site.with_bytes(&key, &stored[..length]);
        hook.fails(name, UNPROVEN, "error: ");
        drop(changed);
    }
    // An object that was moved to another key.
    let moved = fs::read(site.object(&site.segment_key(other))).expect("read an object");
    let changed = site.with_bytes(&key, &moved);
    hook.fails(name, UNPROVEN, &other.to_string());
    drop(changed);
    // Bytes that are right, in objects that are not.
    let start = name.start(SIZE).expect("a segment");
    let right = WalDescriptor {
        start_lsn: start,
        end_lsn: SIZE.end(SIZE.segment(start)),
        lineage: site.lineage(name.timeline),
        ..WalDescriptor::default()
    };
    let foreign = WalDescriptor {
        lineage: lineage(Some(b"1\t0/5000000\tanother server\n")),
        ..right.clone()
    };
    let elsewhere = WalDescriptor {
        start_lsn: right.end_lsn,
        end_lsn: right.end_lsn.saturating_add(u64::from(SIZE.bytes())),
        ..right.clone()
    };
    let invalid = WalDescriptor {
        invalid_at: Some(start.saturating_add(8192)),
        ..right.clone()
    };
    let unlinked = WalDescriptor {
        first_record: Some(start.saturating_add(40)),
        first_record_prev: Some(start.saturating_sub(32)),
        last_record: Some(start.saturating_add(40)),
        ..right.clone()
    };
    let plain = SealPolicy {
        recipients: None,
        ..site.seal.clone()
    };
    for (wal, seal, because) in [
        (foreign, &site.seal, "another lineage"),
        (elsewhere, &site.seal, "it says that it holds"),
        (invalid, &site.seal, "is not valid"),
        (unlinked, &site.seal, "two servers"),
        (right.clone(), &plain, "error: "),
    ] {
        let gone = site.without(&key);
        site.put(key.clone(), &site.wal(name), wal, seal.clone());
        hook.fails(name, UNPROVEN, because);
        fs::remove_file(&gone.path).expect("remove an object");
    }
    let gone = site.without(&key);
    site.put(key.clone(), &site.wal(name), right, site.seal.clone());
    assert!(
        hook.serves(name) == site.wal(name),
        "what is right is served"
    );
    fs::remove_file(&gone.path).expect("remove an object");
    drop(gone);
    // A history file that is damaged: neither it nor anything that needs it.
    let mut damaged = fs::read(site.object(&site.history_key())).expect("read an object");
    *damaged.last_mut().expect("not empty") ^= 1;
    let changed = site.with_bytes(&site.history_key(), &damaged);
    hook.fails("00000002.history", UNPROVEN, "error: ");
    hook.fails(name, UNPROVEN, "error: ");
    hook.fails(site.open[0], UNPROVEN, "error: ");
    drop(changed);
}

fn bad_surroundings(site: &Branched, hook: &Hook) {
    let name = site.switch_segment(1);
    let with_config = |file: &str, text: &str| Hook {
        folder: hook.folder.clone(),
        config: site.config_with(file, text),
        plan: None,
    };
    let text = site.config_text("identity");
    let refuses = |file: &str, text: &str, because: &str| {
        let hook = with_config(file, text);
        hook.fails(name, UNPROVEN, because);
        hook.fails("00000009.history", UNPROVEN, "error: ");
    };
    with_config("wrong-key.toml", &site.config_text("other")).fails(name, UNPROVEN, "error: ");
    let no_key = text.replace("identity = ", "recipients = ['age1nobody']#");
    refuses("no-recipient.toml", &no_key, "recipient");
    let other = generate_identity(jiff::Timestamp::UNIX_EPOCH).recipient;
    let no_key = text.replace("identity = ", &format!("recipients = ['{other}']#"));
    with_config("no-key.toml", &no_key).fails(name, UNPROVEN, "error: ");
    refuses("key-gone.toml", &site.config_text("nowhere"), "identity");
    refuses(
        "unknown-key.toml",
        &text.replace("patience", "patiense"),
        "patiense",
    );
    refuses("not-toml.toml", "[", "not-toml.toml");
    let identifier = site.cluster.system_identifier;
    let stranger = text.replace(&identifier.to_string(), &(identifier ^ 1).to_string());
    refuses("stranger.toml", &stranger, "not known");

    // A store that is not there: a folder gone, a folder empty as where nothing is mounted, an endpoint that does not answer.
    let root = site.root.display().to_string();
    refuses(
        "gone.toml",
        &text.replace(&root, &format!("{root}/gone")),
        "error: ",
    );
    let empty = site.folder.join("empty");
    fs::create_dir_all(&empty).expect("make a folder");
    let unmounted = text.replace(&root, &empty.display().to_string());
    refuses("empty.toml", &unmounted, "not known");
    let closed = Port::lease();
    let (id, secret) = (site.folder.join("s3-id"), site.folder.join("s3-secret"));
    fs::write(&id, "id\n").expect("write a secret");
    fs::write(&secret, "a secret\n").expect("write a secret");
    let s3 = format!(
        "url = 's3://bucket/prefix'\nendpoint = 'http://127.0.0.1:{}'\nregion = 'r'\npath_style = true\n\
         access_key = 'file:{}'\nsecret_key = 'file:{}'\n",
        closed.number(),
        id.display(),
        secret.display()
    );
    let unreachable = text.replace(&format!("url = 'file://{root}'\n"), &s3);
    let output = with_config("unreachable.toml", &unreachable).fails(name, UNPROVEN, "error: ");
    let tried_once = output.stderr.contains("after 1 attempt");
    assert!(
        output.stderr.contains("attempt(s)") && !tried_once,
        "it tried again\n{output}"
    );
    assert!(
        output.took < Duration::from_secs(20),
        "not for ever\n{output}"
    );
    // Secrets that are none: the wrong file was named.
    let identity = site.folder.join("other").display().to_string();
    let wrong = unreachable.replace(&id.display().to_string(), &identity);
    with_config("wrong-id.toml", &wrong).fails(name, UNPROVEN, "a line break");
    // Stopping the server ends the hook too, and not with a status that means anything.
    let patient = unreachable.replace("'1s'", "'10m'");
    let patient = site
        .config_with("patient.toml", &patient)
        .display()
        .to_string();
    let segment = name.to_string();
    let arguments = [
        "-v",
        "archive-get",
        "--config",
        &patient,
        &segment,
        DESTINATION,
    ];
    let mut running = Walden::in_directory(&hook.folder).start(arguments);
    std::thread::sleep(Duration::from_millis(1500));
    assert!(
        running.is_running(),
        "it is patient: {:?}",
        running.printed()
    );
    running.signal(rustix::process::Signal::TERM);
    running.wait(Duration::from_secs(5)).expect_code(128 + 15);
    hook.holds_nothing();
    starved(site, hook);
    let missing = Hook {
        folder: hook.folder.clone(),
        config: site.folder.join("nowhere.toml"),
        plan: None,
    };
    missing.fails(name, UNPROVEN, "nowhere.toml");

    // Nowhere to put it: a folder in its place, a folder that is not there.
    fs::create_dir(hook.destination()).expect("make a folder");
    hook.run(name).expect_code(UNPROVEN);
    fs::remove_dir(hook.destination()).expect("remove the folder");
    hook.holds_nothing();
    let elsewhere = Walden::in_directory(&hook.folder);
    let config = hook.config.display().to_string();
    let segment = name.to_string();
    elsewhere
        .run([
            "archive-get",
            "--config",
            &config,
            &segment,
            "no/such/folder",
        ])
        .expect_code(UNPROVEN);
    // What stood there before is replaced as a whole.
    fs::write(hook.destination(), "old").expect("write a file");
    assert!(hook.serves(name) == site.wal(name));
}

/// With less and less memory threads cannot be started and allocations fail, at any point: panics and aborts, and never an answer
/// that is not true.
fn starved(site: &Branched, hook: &Hook) {
    let name = site.switch_segment(1);
    let (mut served, mut panicked) = (0, 0);
    let mut mib = 12;
    while served < 3 {
        let mut prlimit = process::command_as_server_user("prlimit");
        prlimit
            .arg(format!("--as={}", mib << 20))
            .arg(Walden::program());
        prlimit.args(["archive-get", "--config"]).arg(&hook.config);
        prlimit.args([&name.to_string(), DESTINATION]);
        prlimit.current_dir(&hook.folder);
        let output = process::run(prlimit, COMMAND_DEADLINE);
        if output.code() == SERVED {
            served += 1;
            let bytes = fs::read(hook.destination()).expect("it was delivered");
            assert!(bytes == site.wal(name), "all of it\n{output}");
            fs::remove_file(hook.destination()).expect("take it away");
        } else {
            assert!(output.code() >= UNPROVEN, "{mib} MiB\n{output}");
            assert!(!hook.destination().exists(), "{mib} MiB\n{output}");
            if output.stderr.contains("panicked") {
                panicked += 1;
                assert_eq!(output.code(), UNPROVEN, "{mib} MiB\n{output}");
            }
        }
        mib += 1;
        assert!(mib < 500, "enough at last");
    }
    assert!(panicked > 0, "a thread could not be started");
}

#[test]
fn a_tail_is_served_as_far_as_it_goes_and_never_less_than_before() {
    let site = Branched::new(18);
    let hook = site.hook("tails");
    let zero_padded = |name: SegmentName, length: usize| {
        let mut bytes = site.wal(name);
        bytes[length..].fill(0);
        bytes
    };
    let has_records = |from: usize| site.wal(site.open[1])[from..].iter().any(|byte| *byte != 0);
    assert!(
        has_records(50_000),
        "the last segment goes on where the test cuts it"
    );
    // The last segment, asked for again after more of it has been stored.
    let last = site.open[1];
    site.put_tail(last, 0, 5000);
    assert!(hook.serves(last) == zero_padded(last, 5000));
    site.put_tail(last, 5000, 9000);
    assert!(hook.serves(last) == zero_padded(last, 9000));
    site.put_tail(last, 0, 9000);
    assert!(hook.serves(last) == zero_padded(last, 9000));
    assert!(hook.serves(last) == zero_padded(last, 9000), "and again");
    // A chunk behind a hole.
    let far = site.put_tail(last, 12000, 12500);
    hook.fails(last, UNPROVEN, "are missing");
    fs::remove_file(site.object(&far)).expect("remove a chunk");

    // Chunks that are valid each and not together: a server that was rolled back wrote the second one.
    let mut other = site.wal(last);
    other[9000..9100].fill(0x5A);
    let changed = &other[9000..30_000];
    let start = last.start(SIZE).expect("a segment");
    let key = ObjectKey::Tail {
        cluster: site.cluster,
        name: last,
        from: 9000,
        to: 30_000,
        writer: 8,
    };
    let wal = WalDescriptor {
        start_lsn: start.saturating_add(9000),
        end_lsn: start.saturating_add(30_000),
        lineage: site.lineage(last.timeline),
        ..WalDescriptor::default()
    };
    site.put(key.clone(), changed, wal, site.seal.clone());
    hook.fails(last, UNPROVEN, "is not valid");
    fs::remove_file(site.object(&key)).expect("remove a chunk");
    // One that contradicts another.
    let key = site.put_tail(last, 100, 200);
    let stored = fs::read(site.object(&key)).expect("read an object");
    fs::remove_file(site.object(&key)).expect("remove a chunk");
    let wal = WalDescriptor {
        start_lsn: start.saturating_add(100),
        end_lsn: start.saturating_add(200),
        lineage: site.lineage(last.timeline),
        ..WalDescriptor::default()
    };
    site.put(key.clone(), &other[9000..9100], wal, site.seal.clone());
    hook.fails(last, UNPROVEN, "differs from other chunks");
    fs::write(site.object(&key), stored).expect("put the chunk back");
    assert!(hook.serves(last) == zero_padded(last, 9000));

    // Something follows: less than all of it is a hole.
    let before = site.after_switch(2, 1);
    let sealed = site.without(&site.segment_key(before));
    let part = site.put_tail(before, 0, 300_000);
    hook.fails(before, UNPROVEN, "only 300000 of its first 1048576 bytes");
    site.put_tail(before, 300_000, site.size());
    assert!(
        hook.serves(before) == site.wal(before),
        "all of it is no hole"
    );
    fs::remove_file(site.object(&part)).expect("remove a chunk");
    drop(sealed);

    // A child timeline that is nothing but its first chunk: it must reach to where the timeline begins.
    let first = site.switch_segment(2);
    let rest: Vec<Changed> = [first, before]
        .map(|name| site.without(&site.segment_key(name)))
        .into();
    let tails = site.root.join(format!("{}/tail", site.cluster));
    fs::remove_dir_all(&tails).expect("remove the chunks");
    let begin = SIZE.offset(site.switch_point) as usize;
    let short = site.put_tail(first, 0, begin - 8);
    hook.fails(first, UNPROVEN, "begins in it");
    site.put_tail(first, begin - 8, begin + 100);
    assert!(hook.serves(first) == zero_padded(first, begin + 100));
    // Its parent likewise: it must reach to where the child leaves.
    let parents: Vec<Changed> = (0..)
        .map(|count| site.after_switch(1, count))
        .take_while(|name| *name < site.open[0])
        .map(|name| site.without(&site.segment_key(name)))
        .collect();
    let parent = site.switch_segment(1);
    let chunk = site.put_tail(parent, 0, begin - 8);
    hook.fails(parent, UNPROVEN, "which leaves timeline 1");
    fs::remove_file(site.object(&chunk)).expect("remove a chunk");
    site.put_tail(parent, 0, begin);
    assert!(hook.serves(parent) == zero_padded(parent, begin));
    drop((parents, rest, short));
}

#[test]
fn within_a_plan_nothing_is_served_but_its_path() {
    let site = Branched::new(18);
    let [end_of_1, end_of_2] = site.open;
    // The plan ends 4000 bytes into the segment after the one in which timeline 2 begins.
    let last = site.after_switch(2, 1);
    let end = last.start(SIZE).expect("a segment").saturating_add(4000);
    let plan = site.write_plan("plan.json", &site.plan(end));
    let hook = Hook {
        plan: Some(plan.clone()),
        ..site.hook("planned")
    };
    let begin = SIZE.offset(site.switch_point) as usize;

    for name in [site.before_switch(1), site.switch_segment(2), last] {
        assert!(hook.serves(name) == site.wal(name), "{name}");
    }
    assert_eq!(hook.serves("00000002.history"), site.history());
    hook.fails("00000003.history", ABSENT, "");
    // The parent's copy of the switch segment: not a byte of the branch that was left.
    let parent = site.switch_segment(1);
    let mut cut = site.wal(parent);
    assert!(
        cut[begin..].iter().any(|byte| *byte != 0),
        "it has such bytes"
    );
    cut[begin..].fill(0);
    assert!(hook.serves(parent) == cut);
    assert!(site.wal(parent)[..begin] == site.wal(site.switch_segment(2))[..begin]);
    // Off the path, although stored.
    hook.fails(site.after_switch(1, 1), ABSENT, "");
    hook.fails(end_of_1, ABSENT, "");
    hook.fails(site.name(2, SIZE.segment(site.target)), ABSENT, "");
    hook.fails(site.name(3, SIZE.segment(end)), ABSENT, "");
    // Past the end: PostgreSQL reads ahead.
    hook.fails(end_of_2, ABSENT, "");

    for name in [site.before_switch(1), parent, site.switch_segment(2), last] {
        let gone = site.without(&site.segment_key(name));
        hook.fails(name, UNPROVEN, "the plan of this restore needs it");
        drop(gone);
    }
    let gone = site.without(&site.history_key());
    hook.fails(
        "00000002.history",
        UNPROVEN,
        "the plan of this restore needs it",
    );
    drop(gone);
    // A tail is enough if it reaches to the plan's end.
    let gone = site.without(&site.segment_key(last));
    site.put_tail(last, 0, 3999);
    hook.fails(last, UNPROVEN, "only 3999 of its first 4000 bytes");
    site.put_tail(last, 3999, 4000);
    let mut tail = site.wal(last);
    tail[4000..].fill(0);
    assert!(hook.serves(last) == tail);
    drop(gone);
    // Of the parent only what the child shares.
    let gone = site.without(&site.segment_key(parent));
    site.put_tail(parent, 0, begin);
    assert!(hook.serves(parent) == cut);
    drop(gone);

    // A plan that is not what it should be, or of other histories.
    let scope = site.plan(end);
    let refuses = |file: &str, text: &str, because: &str| {
        let hook = Hook {
            plan: Some(site.config_with(file, text)),
            folder: hook.folder.clone(),
            config: hook.config.clone(),
        };
        hook.fails(site.switch_segment(2), UNPROVEN, because);
        hook.fails("00000002.history", UNPROVEN, "error: ");
    };
    let text = serde_json::to_string(&scope).expect("JSON");
    refuses("empty.json", "", "plan.json");
    refuses("cut.json", &text[..text.len() - 2], "plan.json");
    let later = text.replace("\"format\":1", "\"format\":2");
    refuses("later.json", &later, "later version");
    let lineage = site.lineage(timeline(2));
    let foreign = text.replace(&lineage, &lineage.replace('a', "b").replace('0', "1"));
    assert_ne!(foreign, text);
    refuses("foreign.json", &foreign, "error: ");
    // Past the plan's end absence is proven only where there is a repository.
    let empty = site.folder.join("empty");
    fs::create_dir_all(&empty).expect("make a folder");
    let root = site.root.display().to_string();
    let unmounted = site
        .config_text("identity")
        .replace(&root, &empty.display().to_string());
    let unmounted = Hook {
        config: site.config_with("unmounted.toml", &unmounted),
        plan: Some(plan),
        folder: hook.folder.clone(),
    };
    unmounted.fails(end_of_2, UNPROVEN, "proven");
    unmounted.fails("00000003.history", UNPROVEN, "proven");
}

#[test]
fn a_standby_waits_for_the_newer_timeline() {
    let site = Branched::new(18);
    let hook = site.hook("standby");
    let (newer, older) = (site.switch_segment(2), site.switch_segment(1));
    fs::write(hook.folder.join("standby.signal"), "").expect("be a standby");
    assert!(hook.serves(older) == site.wal(older));

    let gone = site.without(&site.segment_key(newer));
    hook.fails(newer, ABSENT, "is stored");
    hook.fails(older, ABSENT, "not answered yet");
    hook.fails(older, ABSENT, "not answered yet");
    assert!(hook.serves(site.before_switch(1)) == site.wal(site.before_switch(1)));
    hook.fails(newer, ABSENT, "is stored");
    drop(gone);
    hook.fails(older, ABSENT, "not answered yet");
    assert!(hook.serves(newer) == site.wal(newer));
    assert!(
        hook.serves(older) == site.wal(older),
        "the newer one was answered"
    );

    // That there is a newer timeline at all is not known: nothing of an older one.
    let mut damaged = fs::read(site.object(&site.history_key())).expect("read an object");
    *damaged.last_mut().expect("not empty") ^= 1;
    let changed = site.with_bytes(&site.history_key(), &damaged);
    hook.fails("00000002.history", ABSENT, "00000002.history");
    drop(changed);
    hook.fails(older, ABSENT, "not answered yet");
    hook.fails(site.before_switch(1), ABSENT, "not answered yet");
    hook.fails("00000003.history", ABSENT, "");
    hook.fails(older, ABSENT, "not answered yet");
    assert_eq!(hook.serves("00000002.history"), site.history());
    assert!(hook.serves(older) == site.wal(older));

    // Usage is no matter of patience, and without standby.signal an error is one.
    Walden::in_directory(&hook.folder)
        .run(["archive-get", "--nonsense"])
        .expect_code(UNPROVEN);
    let _gone = site.without(&site.segment_key(newer));
    fs::remove_file(hook.folder.join("standby.signal")).expect("be no standby");
    hook.fails(newer, UNPROVEN, "is stored");
}

/// Recovery must end before the database opens, because of what the hook said.
#[track_caller]
fn assert_refuses_to_open(mut server: Server, because: &str) {
    let opened = server.try_start(COMMAND_DEADLINE);
    let log = server.log();
    assert!(opened.is_err(), "the server opened\n{log}");
    for sign in [
        "ready to accept",
        "selected new timeline",
        "archive recovery complete",
    ] {
        assert!(!log.contains(sign), "{sign}\n{log}");
    }
    assert!(log.contains(because), "{because:?} is in the log\n{log}");
    assert_eq!(
        server.control_data("Database cluster state"),
        "in archive recovery"
    );
}

fn notes(server: &Server) -> String {
    server.psql("select string_agg(distinct note, ',' order by note) from kept")
}

fn recoveries(major: u32) {
    let site = Branched::new(major);

    // Along the switch, to the end of what is stored.
    let mut along = site.recovery("along", None, "recovery_target_timeline = 'latest'");
    along.start();
    assert_eq!(
        notes(&along),
        "alive,first,last before the switch,second",
        "{}",
        along.log()
    );
    assert_eq!(
        along.psql("select count(*) from kept where note = 'alive'"),
        "1800"
    );
    assert_eq!(
        along.psql("select timeline_id from pg_control_checkpoint()"),
        "3"
    );
    drop(along);

    // The same within a plan whose target is the same end, given as an LSN.
    let end = site.open[1].start(SIZE).expect("a segment");
    let plan = site.write_plan("along.json", &site.plan(end));
    let mut planned = site.recovery("planned", Some(&plan), "recovery_target_timeline = '2'");
    planned.start();
    assert_eq!(notes(&planned), "alive,first,last before the switch,second");
    drop(planned);

    // The newer timeline's switch segment is gone: the parent's, on the branch that was left, must not be replayed.
    let first = site.switch_segment(2);
    let gone = site.without(&site.segment_key(first));
    let latest = "recovery_target_timeline = 'latest'";
    let branch = site.recovery("branch", None, latest);
    assert_refuses_to_open(branch, &format!("{first}: missing"));
    let branch = site.recovery(
        "planned branch",
        Some(&plan),
        "recovery_target_timeline = '2'",
    );
    assert_refuses_to_open(branch, &format!("{first}: missing"));
    drop(gone);

    // A hole in the middle, and one at the parent's end.
    for (folder, name) in [
        ("middle", site.before_switch(2)),
        ("parent", site.before_switch(1)),
    ] {
        let gone = site.without(&site.segment_key(name));
        let hole = site.recovery(folder, None, latest);
        assert_refuses_to_open(hole, &format!("{name}: missing"));
        drop(gone);
    }

    // A hole behind the target: PostgreSQL reads ahead, and with the plan of the restore that is no matter.
    let beyond = site.name(1, SIZE.segment(site.target).next());
    let gone = site.without(&site.segment_key(beyond));
    let mut scope = site.plan(site.target);
    scope.path = vec![Leg {
        timeline: 1,
        lineage: String::new(),
        switch_point: None,
    }];
    let plan = site.write_plan("target.json", &scope);
    let target = format!(
        "recovery_target_timeline = '1'\nrecovery_target_lsn = '{}'\nrecovery_target_inclusive = off\n\
         recovery_target_action = 'promote'\nrecovery_prefetch = try\n",
        site.target
    );
    let mut targeted = site.recovery("target", Some(&plan), &target);
    targeted.start();
    assert_eq!(notes(&targeted), "first");
    let log = targeted.log();
    let asked = format!("not in the repository: proven file={beyond}");
    assert!(
        log.contains(&asked) || log.contains(&format!("\"{beyond}\"")),
        "it read ahead\n{log}"
    );
    drop(targeted);
    drop(gone);
}

#[test]
fn recoveries_of_18() {
    recoveries(18);
}

#[test]
fn recoveries_of_15() {
    recoveries(15);
}
