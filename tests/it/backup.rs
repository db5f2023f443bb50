//! `walden backup` against real servers: what it stores is put together again by hand and judged by PostgreSQL's own
//! `pg_verifybackup` and by `tar`; what it must refuse or give up leaves nothing that looks like a backup.

use crate::site::{Keys, Place, Plan, Site, wait};
use crate::support::object_store::Bucket;
use crate::support::postgres::{Server, Stop, tool_command};
use crate::support::process::{self, COMMAND_DEADLINE, Running, command};
use crate::support::wait_until;
use crate::support::walden::Walden;
use archiver::base_backup::{self, BackupOptions, BackupRequest};
use archiver::replication::ConnectionInfo;
use archiver::upload::Uploader;
use repository::backup::{
    BackupDescriptor, ContinuedMember, MAX_MANIFEST_BYTES, PART_BYTES, PartDescriptor,
};
use repository::key::{Archive, BackupObject, ObjectKey};
use repository::sealed::{Compression, SealPolicy};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(60);

/// Encrypted or not; what encrypts knows no identity.
fn plan(encrypted: bool) -> Plan<'static> {
    Plan {
        keys: match encrypted {
            true => Keys::Recipient,
            false => Keys::None,
        },
        rpo: "500ms",
        ..Plan::default()
    }
}

impl Site {
    /// Labels of the backups that exist, and of those that were begun.
    fn labels(&self) -> (Vec<String>, Vec<String>) {
        let catalog = self.catalog();
        let complete = catalog.complete_backups().map(ToString::to_string);
        let begun = catalog.backups.keys().map(ToString::to_string);
        (complete.collect(), begun.collect())
    }

    /// The backup that exists; fails the test if there are more or none.
    #[track_caller]
    fn only_backup(&self) -> BackupDescriptor {
        let (complete, _) = self.labels();
        let [label] = complete.as_slice() else {
            panic!("one backup, not {complete:?}");
        };
        let label = label.parse().expect("a label");
        wait(self.repository.fetch_backup(self.cluster(), &label)).expect("fetch backup.json")
    }

    /// The plain bytes of an object of a backup.
    #[track_caller]
    fn plain_of_backup(&self, backup: &BackupDescriptor, object: BackupObject) -> Vec<u8> {
        let key = ObjectKey::Backup {
            cluster: self.cluster(),
            label: backup.label.parse().expect("a label"),
            object,
        };
        let fetched = self.repository.fetch(&key, &self.open, MAX_MANIFEST_BYTES);
        wait(fetched).expect("open an object").1
    }
}

/// Checks every part against its description, and writes the tar streams into `folder`.
fn join_parts(site: &Site, backup: &BackupDescriptor, folder: &Path) -> BTreeMap<Archive, PathBuf> {
    let mut streams: BTreeMap<Archive, Vec<u8>> = BTreeMap::new();
    let mut stored = 0;
    for part in &backup.parts {
        let object = BackupObject::Part {
            archive: part.archive,
            part: part.part,
        };
        let plain = site.plain_of_backup(backup, object);
        assert_eq!(plain.len(), part.plain_size as usize, "{part:?}");
        assert_eq!(Some(crc32fast::hash(&plain)), part.plain_crc32, "{part:?}");
        let stream = streams.entry(part.archive).or_default();
        assert_eq!(stream.len(), part.part as usize * PART_BYTES, "{part:?}");
        stream.extend(plain);
        stored += u64::from(part.stored_size);
    }
    let plain: usize = streams.values().map(Vec::len).sum();
    assert_eq!(plain as u64, backup.plain_size);
    assert!(stored < backup.stored_size, "the manifest is stored too");
    let write = |(archive, stream): (Archive, Vec<u8>)| {
        let path = folder.join(format!("{archive}.tar"));
        fs::write(&path, stream).expect("write a tar stream");
        (archive, path)
    };
    streams.into_iter().map(write).collect()
}

/// What `tar` says a stream holds: offset of the header, name, size, permission bits.
fn members(tar: &Path) -> Vec<(u64, String, u64, u32)> {
    let mut list = command("tar");
    list.args([
        "--list",
        "--verbose",
        "--block-number",
        "--quoting-style=literal",
        "--numeric-owner",
        "-f",
    ])
    .arg(tar);
    let listing = process::run(list, COMMAND_DEADLINE).expect_success().stdout;
    let parse = |line: &str| {
        // block 42: -rw------- 1000/1000   8192 2026-01-23 14:28 base/1/112
        let (block, rest) = line.strip_prefix("block ")?.split_once(": ")?;
        let mut words = rest.split_whitespace();
        let (mode, _, size) = (words.next()?, words.next()?, words.next()?.parse().ok()?);
        let (_date, time) = (words.next()?, words.next()?);
        let name = rest.split_once(&format!(" {time} "))?.1;
        let name = name.split(" -> ").next()?;
        let size = if mode.starts_with('-') { size } else { 0 };
        let bit = |letter: char| u32::from(letter != '-');
        let mode = mode[1..10]
            .chars()
            .fold(0, |bits, letter| bits << 1 | bit(letter));
        Some((
            512 * block.parse::<u64>().ok()?,
            name.to_owned(),
            size,
            mode,
        ))
    };
    listing.lines().filter_map(parse).collect()
}

/// What a part's description has to say, by `tar`'s listing alone.
fn describe(
    members: &[(u64, String, u64, u32)],
    part: &PartDescriptor,
) -> (Option<String>, Option<ContinuedMember>) {
    let start = u64::from(part.part) * PART_BYTES as u64;
    let end = start + u64::from(part.plain_size);
    let first = members
        .iter()
        .find(|(header, ..)| (start..end).contains(header));
    let across = |(header, _, size, _): &&(u64, String, u64, u32)| {
        let (from, to) = (header + 512, header + 512 + size.next_multiple_of(512));
        *header < start && from <= start && start < to
    };
    let continued = members.iter().find(across);
    let continued = continued.map(|(header, name, size, mode)| ContinuedMember {
        name: name.clone(),
        offset: (start - header - 512).min(*size),
        size: *size,
        mode: *mode,
    });
    (first.map(|(_, name, ..)| name.clone()), continued)
}

/// Lays a data directory out of the tar streams, as a person would.
fn extract(streams: &BTreeMap<Archive, PathBuf>, data: &Path) {
    for (archive, tar) in streams {
        let folder = match archive {
            Archive::Base => data.to_owned(),
            Archive::Tablespace(oid) => {
                // The server sends no link but names the place in tablespace_map.
                data.join("pg_tblspc").join(oid.to_string())
            }
        };
        fs::create_dir_all(&folder).expect("make a folder");
        let mut extract = command("tar");
        extract
            .args(["-x", "--no-same-owner", "-f"])
            .arg(tar)
            .arg("-C")
            .arg(folder);
        process::run(extract, COMMAND_DEADLINE).expect_success();
    }
}

/// A server with two tablespaces, one of them empty, and a file of more than 32 MiB in the other; gives their OIDs and places.
fn fill(server: &Server) -> Vec<(u32, String)> {
    let folder = server.scratch().join("sp ace \"q\" 100%41 größer");
    let places: Vec<String> = ["used", "empty"]
        .map(|name| folder.join(name).display().to_string())
        .into();
    for place in &places {
        fs::create_dir_all(place).expect("make a tablespace's folder");
    }
    server.psql(&format!(
        "create tablespace used location '{}';\n\
         create tablespace empty location '{}';\n\
         create table big tablespace used as select g, repeat(md5(g::text), 30) as filler from generate_series(1, 40000) g;\n\
         create table small as select g from generate_series(1, 1000) g;",
        places[0], places[1]
    ));
    let oids = server.psql(
        "select oid from pg_tablespace where spcname in ('used', 'empty') order by spcname desc",
    );
    let oids = oids.lines().map(|oid| oid.parse().expect("an OID"));
    oids.zip(places).collect()
}

fn backup_can_be_put_together_by_hand(major: u32, encrypted: bool, bucket: Option<&Bucket>) {
    let server = Server::builder(major).wal_segment_mib(1).start();
    let place = bucket.map_or(Place::Folder, Place::Bucket);
    let plan = Plan {
        place,
        ..plan(encrypted)
    };
    let site = Site::new(&server, plan);
    let tablespaces = fill(&server);
    let run = site.archive(&server);
    let output = site
        .walden
        .run(["backup", "--fast-checkpoint", "--json"])
        .expect_success();
    drop(run);

    let backup = site.only_backup();
    let document = output.json();
    assert_eq!(document["schema"], "walden.backup");
    assert_eq!(document["label"], backup.label.as_str());
    assert_eq!(document["plain_bytes"], backup.plain_size);
    assert!(!backup.from_standby);
    let stated: Vec<(u32, String)> = backup
        .tablespaces
        .iter()
        .map(|tablespace| (tablespace.oid, tablespace.location.clone()))
        .collect();
    let by_oid = |mut list: Vec<(u32, String)>| {
        list.sort();
        list
    };
    assert_eq!(by_oid(stated), by_oid(tablespaces));

    let folder = server.scratch().join("joined");
    fs::create_dir(&folder).expect("make a folder");
    let streams = join_parts(&site, &backup, &folder);
    assert_eq!(streams.len(), 3, "the data directory and two tablespaces");
    let mut continued = 0;
    for (archive, tar) in &streams {
        let members = members(tar);
        for part in backup.parts.iter().filter(|part| part.archive == *archive) {
            let expected = describe(&members, part);
            assert_eq!(
                (part.first_member.clone(), part.continued.clone()),
                expected,
                "{part:?}"
            );
            continued += u32::from(part.continued.is_some());
        }
    }
    assert!(
        continued > 0,
        "a file of more than 32 MiB goes on in the next part"
    );

    let data = folder.join("data");
    extract(&streams, &data);
    let manifest = site.plain_of_backup(&backup, BackupObject::Manifest);
    assert_eq!(manifest.len() as u64, backup.manifest_size);
    fs::write(data.join("backup_manifest"), manifest).expect("write the manifest");
    let mut verify = tool_command(major, "pg_verifybackup");
    verify.arg("-n").arg(&data);
    process::run(verify, COMMAND_DEADLINE).expect_success();
    let map = fs::read_to_string(data.join("tablespace_map")).expect("read tablespace_map");
    for tablespace in &backup.tablespaces {
        let line = format!("{} {}\n", tablespace.oid, tablespace.location);
        assert!(map.contains(&line), "{line}\n{map}");
    }
    let label = fs::read_to_string(data.join("backup_label")).expect("read backup_label");
    let start = format!("START WAL LOCATION: {} ", backup.start_lsn);
    assert!(label.starts_with(&start), "{start}\n{label}");
    assert!(
        label.contains(&format!("LABEL: {}\n", backup.label)),
        "{label}"
    );
}

#[test]
fn backup_of_15_in_the_clear_can_be_put_together_by_hand() {
    backup_can_be_put_together_by_hand(15, false, None);
}

#[test]
fn encrypted_backup_of_18_can_be_put_together_by_hand() {
    backup_can_be_put_together_by_hand(18, true, None);
}

#[test]
fn backups_of_16_and_of_17_in_a_bucket_can_be_put_together_by_hand() {
    backup_can_be_put_together_by_hand(16, true, None);
    backup_can_be_put_together_by_hand(17, false, Some(&Bucket::new()));
}

#[test]
fn a_backup_given_up_or_killed_half_way_is_not_visible() {
    let server = Server::builder(18).wal_segment_mib(1).start();
    let site = Site::new(&server, plan(false));
    fill(&server);
    let _run = site.archive(&server);
    for (round, signal) in [Signal::INT, Signal::TERM, Signal::KILL]
        .into_iter()
        .enumerate()
    {
        let backup = site
            .walden
            .start(["backup", "--fast-checkpoint", "--max-rate", "16MiB"]);
        wait_until("a part of it is stored", DEADLINE, || {
            let catalog = site.catalog();
            assert_eq!(catalog.complete_backups().count(), 0);
            let stored = catalog
                .backups
                .values()
                .filter(|backup| backup.stored_bytes > 0);
            (stored.count() > round).then_some(())
        });
        backup.signal(signal);
        let output = backup.wait(Duration::from_secs(10));
        if signal == Signal::KILL {
            assert_eq!(output.code(), 137, "{output}");
        } else {
            let output = output.expect_code(1);
            assert!(
                output
                    .stderr
                    .contains("error: take a base backup: base backup: interrupted"),
                "{output}"
            );
        }
        wait_until("the server has ended the backup too", DEADLINE, || {
            let running = server.psql("select count(*) from pg_stat_progress_basebackup");
            (running == "0").then_some(())
        });
        let (complete, begun) = site.labels();
        assert_eq!((complete.len(), begun.len()), (0, round + 1));
    }
    site.walden
        .run(["backup", "--fast-checkpoint"])
        .expect_success();
    assert_eq!(
        site.labels().0.len(),
        1,
        "what was given up is in nobody's way"
    );
}

#[test]
fn refuses_to_start_where_nothing_archives() {
    let server = Server::builder(15).wal_segment_mib(1).start();
    let site = Site::new(&server, plan(false));
    let output = site
        .walden
        .run(["backup", "--fast-checkpoint"])
        .expect_code(1);
    for text in [
        "nothing stores this server's WAL: there is no slot \"walden\", archive_mode is off",
        "hint: start `walden run`",
    ] {
        assert!(output.stderr.contains(text), "{text}\n{output}");
    }
    assert_eq!(site.labels().1.len(), 0, "not even a label was taken");
}

#[test]
fn archive_command_counts_as_archiving_while_it_works() {
    let server = Server::builder(15)
        .wal_segment_mib(1)
        .setting("archive_mode = on")
        .start();
    let site = Site::new(&server, plan(false));
    let command = |command: &str| {
        let command = command.replace('\'', "''");
        server.psql(&format!(
            "alter system set archive_command = '{command}'; select pg_reload_conf()"
        ));
    };
    // Above 125 the archiver process would die without counting a failure.
    command("false walden archive-push %p");
    server
        .psql("create table t as select g from generate_series(1, 1000) g; select pg_switch_wal()");
    wait_until("the archiver process has failed", DEADLINE, || {
        let failed = server.psql("select failed_count > 0 from pg_stat_archiver");
        (failed == "t").then_some(())
    });
    let output = site
        .walden
        .run(["backup", "--fast-checkpoint"])
        .expect_code(1);
    assert!(output.stderr.contains("archive_command fails"), "{output}");

    let configuration = server.scratch().join("walden/walden.toml");
    let program = Walden::program().display();
    command(&format!(
        "{program} archive-push --config {} %p",
        configuration.display()
    ));
    wait_until("the archiver process succeeds", DEADLINE, || {
        let works = "select last_archived_time > last_failed_time from pg_stat_archiver";
        (server.psql(works) == "t").then_some(())
    });
    site.walden
        .run(["backup", "--fast-checkpoint"])
        .expect_success();
    assert!(site.only_backup().parts.len() == 1);
}

#[test]
fn backup_is_none_while_its_wal_is_not_stored() {
    let server = Server::builder(18).wal_segment_mib(1).start();
    let site = Site::new(&server, plan(false));
    server.psql("select pg_create_physical_replication_slot('walden')");
    // Somebody uses the slot, and stores elsewhere.
    let mut elsewhere = server.client("pg_receivewal");
    let folder = server.scratch().join("elsewhere");
    fs::create_dir(&folder).expect("make a folder");
    elsewhere
        .args(["-S", "walden", "--no-sync", "-D"])
        .arg(&folder);
    let _elsewhere = Running::start(elsewhere);

    let nothing = |_: &str| None;
    let connection = ConnectionInfo::parse(&server.conninfo(), &nothing).expect("conninfo");
    let policy = SealPolicy {
        recipients: None,
        compression: Compression::Lz4,
        minimal_descriptor: true,
    };
    let uploader = Uploader::new(site.repository.clone(), policy, base_backup::UPLOAD_BUFFERS);
    let request = BackupRequest {
        server: &connection,
        uploader: &uploader,
        cluster: &site.cluster,
        slot: "walden",
        options: BackupOptions {
            fast_checkpoint: true,
            archiving_grace: Duration::from_secs(20),
            wal_patience: Duration::from_secs(1),
            ..BackupOptions::default()
        },
        now: jiff::Timestamp::now,
        random: 7,
    };
    let error = wait(base_backup::take(&request, &|_| {}, std::future::pending()));
    let error = error.expect_err("its WAL is not stored");
    assert!(
        matches!(error, archiver::Error::WalNotStored { .. }),
        "{error}"
    );
    let (complete, begun) = site.labels();
    assert_eq!((complete.len(), begun.len()), (0, 1));
}

#[test]
fn backup_of_a_standby_waits_for_the_wal_of_its_primary() {
    let server = Server::builder(18).wal_segment_mib(1).start();
    let site = Site::new(&server, plan(true));
    server.psql("create table t as select g from generate_series(1, 10000) g");
    let _run = site.archive(&server);
    let standby = server.standby();
    let conninfo = standby.conninfo();
    let arguments = ["backup", "--fast-checkpoint", "--postgres", &conninfo];
    let output = site.walden.run(arguments).expect_success();
    assert!(output.stdout.contains("(full, from a standby)"), "{output}");
    let backup = site.only_backup();
    assert!(backup.from_standby);
    let folder = server.scratch().join("joined");
    fs::create_dir(&folder).expect("make a folder");
    let streams = join_parts(&site, &backup, &folder);
    let names: Vec<String> = members(&streams[&Archive::Base])
        .into_iter()
        .map(|member| member.1)
        .collect();
    assert!(
        names.iter().any(|name| name == "standby.signal"),
        "{names:?}"
    );
}

/// While a standby is backed up its primary is lost, another standby is promoted, and this one follows that.
#[test]
fn backup_of_a_standby_that_changes_its_timeline_is_refused() {
    let mut primary = Server::builder(17).wal_segment_mib(1).start();
    let site = Site::new(&primary, plan(false));
    primary.psql("create table t as select g from generate_series(1, 10000) g");
    let _run = site.archive(&primary);
    let next = primary.standby();
    let standby = primary.standby();
    let conninfo = standby.conninfo();
    let slow = ["--max-rate", "1MiB", "--postgres", &conninfo];
    let backup = site
        .walden
        .start(["backup", "--fast-checkpoint"].iter().chain(&slow));
    wait_until("the backup has begun", DEADLINE, || {
        let streams = "select count(*) from pg_stat_progress_basebackup where phase = 'streaming database files'";
        (standby.psql(streams) == "1").then_some(())
    });
    primary.stop(Stop::Fast, DEADLINE);
    next.promote();
    standby.psql(&format!(
        "alter system set primary_conninfo = '{}'; select pg_reload_conf()",
        next.conninfo()
    ));
    next.psql("create table u as select g from generate_series(1, 10000) g; checkpoint");
    wait_until("the standby has followed", DEADLINE, || {
        let there = "select count(*) from pg_class where relname = 'u'";
        (standby.psql(there) == "1").then_some(())
    });
    standby.psql("checkpoint");
    assert_eq!(standby.psql("select pg_is_in_recovery()"), "t");
    let output = backup.wait(2 * DEADLINE);
    assert_eq!(output.code(), 1, "{output}");
    let why = "went on from timeline 1 to timeline 2";
    assert!(output.stderr.contains(why), "{output}");
    assert_eq!(site.labels().0.len(), 0);
}

#[test]
fn another_server_and_major_14_are_refused() {
    let server = Server::builder(15).wal_segment_mib(1).start();
    let plan = Plan {
        system_identifier: Some(4711),
        ..plan(false)
    };
    let site = Site::new(&server, plan);
    let output = site.walden.run(["backup"]).expect_code(5);
    assert!(
        output
            .stderr
            .contains("system identifier: expected 4711, found "),
        "{output}"
    );
    assert_eq!(site.labels().1.len(), 0);

    let server = Server::builder(14).wal_segment_mib(1).start();
    let site = Site::new(&server, Plan::default());
    let output = site.walden.run(["backup"]).expect_code(2);
    assert!(
        output
            .stderr
            .contains("PostgreSQL 14 is not supported: 15, 16, 17 and 18 are"),
        "{output}"
    );
    assert_eq!(site.labels().1.len(), 0);
}
