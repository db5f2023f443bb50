//! RESCUE.md, followed to the letter by somebody who has no Walden: a shell, `age`, `lz4`, `tar`, `dd` and PostgreSQL.
//! The commands are taken from the copy that lies in the repository; this module supplies what the text leaves to its reader.

use crate::support::oracle::{Oracle, assert_same_rows, rows};
use crate::support::postgres::Server;
use crate::support::process::{self, COMMAND_DEADLINE, command_as_server_user};
use crate::support::wait_until;
use crate::support::wal_dump::{Lsn, Target, WalDump};
use crate::support::walden::{Walden, wait_until_stored};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(60);
const SEGMENT: u64 = 1 << 20;

/// What is left after the disaster, and what has to come back.
struct Loss {
    /// Crashed; its folders are there only until this is dropped.
    server: Server,
    oracle: Oracle,
    dump: WalDump,
    /// The printed SHA-256 of RESCUE.md.
    digest: String,
}

fn repository(server: &Server) -> PathBuf {
    server.scratch().join("repository")
}

fn tablespace(server: &Server) -> PathBuf {
    server.scratch().join("table space")
}

/// A few transactions, far less than a segment.
fn a_little(oracle: &mut Oracle, server: &Server) {
    let clients = oracle.start(server, 2);
    clients.wait_for_more(8, DEADLINE);
    oracle.stop(clients);
    wait_until_stored(server);
}

/// A cluster with a tablespace is archived and backed up, works on, and is lost together with `walden run`. What was
/// written last is in tail chunks of two writers.
fn lose_a_cluster(encrypted: bool) -> Loss {
    let mut server = Server::builder(18).wal_segment_mib(1).start();
    let etc = server.scratch().join("etc");
    fs::create_dir(&etc).expect("make a folder");
    let walden = Walden::in_directory(&etc);
    let url = format!("file://{}", repository(&server).display());
    let conninfo = server.conninfo();
    let mut init = vec!["init", &url, "--postgres", &conninfo];
    if !encrypted {
        init.push("--no-encryption");
    }
    let printed = walden.run(init).expect_success().stdout;
    let digest = printed
        .lines()
        .find_map(|line| line.strip_prefix("RESCUE.md")?.split_once("SHA-256 "))
        .expect("init prints the SHA-256 of RESCUE.md")
        .1
        .trim()
        .to_owned();
    let file = etc.join("walden.toml");
    let config = fs::read_to_string(&file).expect("read the configuration");
    assert!(config.contains("rpo = \"5s\""), "{config}");
    fs::write(&file, config.replace("rpo = \"5s\"", "rpo = \"300ms\"")).expect("write it");

    let place = tablespace(&server);
    fs::create_dir(&place).expect("make a tablespace's folder");
    server.psql(&format!(
        "create tablespace aside location '{}';\n\
         create table kept tablespace aside as select g from generate_series(1, 1000) g",
        place.display()
    ));
    let run = walden.receive(&server, ["run"]);
    let mut oracle = Oracle::prepare(&server, 11);
    oracle.run(&server, 2, Duration::from_millis(500));
    walden.run(["backup", "--fast-checkpoint"]).expect_success();
    oracle.run(&server, 2, Duration::from_millis(500));
    server.psql(
        "insert into kept select g from generate_series(1001, 2000) g;\n\
         select count(pg_logical_emit_message(false, 'filler', repeat(md5(g::text), 31))) from generate_series(1, 3000) g;\n\
         select pg_switch_wal()",
    );
    a_little(&mut oracle, &server);
    run.kill();
    let run = walden.receive(&server, ["run"]);
    a_little(&mut oracle, &server);
    let dump = oracle.dump(&server);
    oracle.check(&dump, Some(&server));
    let all = oracle.rows_at(&dump, &Target::Latest);
    assert_same_rows("before the loss", &all, &rows(&server));
    run.kill();
    server.crash();
    Loss {
        server,
        oracle,
        dump,
        digest,
    }
}

/// The indented blocks of the text, without their indentation.
fn blocks(text: &str) -> Vec<String> {
    let mut blocks: Vec<String> = Vec::new();
    let mut within = false;
    for line in text.lines() {
        let code = line.starts_with("    ");
        match blocks.last_mut() {
            Some(block) if code && within => *block += &format!("\n{}", line.trim_start()),
            _ if code => blocks.push(line.trim_start().to_owned()),
            _ => {}
        }
        within = code;
    }
    blocks
}

/// Replaces what has to be there.
#[track_caller]
fn put(text: &str, pairs: &[(&str, &str)]) -> String {
    pairs.iter().fold(text.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "no {from:?} in {text:?}");
        text.replace(from, to)
    })
}

/// The one who follows the text, in a folder where R, C, B, K, D and W are what the text says they are.
struct Rescuer {
    folder: PathBuf,
    decode: String,
    stream: String,
    chunk: String,
    settings: String,
}

impl Rescuer {
    fn new(loss: &Loss, encrypted: bool) -> Self {
        let folder = loss.server.scratch().join("rescue");
        fs::create_dir(&folder).expect("make a folder");
        let rescuer = Self {
            folder,
            decode: String::new(),
            stream: String::new(),
            chunk: String::new(),
            settings: String::new(),
        };
        let copy = format!("cp -r '{}' R", repository(&loss.server).display());
        rescuer.shell(&copy);
        let digest = rescuer.shell("sha256sum < R/RESCUE.md");
        assert_eq!(digest.split_whitespace().next(), Some(&*loss.digest));
        let text = fs::read_to_string(rescuer.folder.join("R/RESCUE.md")).expect("RESCUE.md");
        let found = blocks(&text);
        let [decode, stream, chunk, settings] = found.as_slice() else {
            panic!("{} blocks: {found:#?}", found.len());
        };
        let (mut decode, mut stream) = (decode.clone(), stream.clone());
        if encrypted {
            let key = loss.server.scratch().join("etc/walden.key");
            fs::copy(key, rescuer.folder.join("K")).expect("copy the identity");
        } else {
            // As the text says of what is not encrypted.
            let instead = "lz4 -dc < OBJECT > PLAIN";
            assert!(text.contains(&format!("`{instead}`")), "{text}");
            instead.clone_into(&mut decode);
            let age = "age -d -i K \"$part\" | lz4 -dc";
            stream = put(&stream, &[(age, "lz4 -dc < \"$part\"")]);
        }
        Self {
            decode,
            stream,
            chunk: chunk.clone(),
            settings: settings.clone(),
            ..rescuer
        }
    }

    /// Runs commands as PostgreSQL's user. They may not say anything: that would mean damage.
    #[track_caller]
    fn shell(&self, commands: &str) -> String {
        let mut shell = command_as_server_user("bash");
        shell.args(["-e", "-u", "-o", "pipefail", "-c", commands]);
        shell.current_dir(&self.folder);
        let output = process::run(shell, COMMAND_DEADLINE).expect_success();
        assert_eq!(output.stderr, "", "{output}");
        output.stdout
    }

    fn decode(&self, object: &str, plain: &str) {
        self.shell(&put(&self.decode, &[("OBJECT", object), ("PLAIN", plain)]));
    }

    fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.folder.join(folder)).expect("a folder");
        let mut names: Vec<String> = entries
            .map(|entry| entry.expect("an entry").file_name())
            .map(|name| name.into_string().expect("UTF-8"))
            .collect();
        names.sort();
        names
    }

    /// Step 1: gives backup.json.
    fn choose(&self) -> serde_json::Value {
        let cluster = self
            .names("R")
            .into_iter()
            .find(|name| name.starts_with(|first: char| first.is_ascii_digit()))
            .expect("the cluster's folder");
        symlink(&cluster, self.folder.join("R/C")).expect("set C");
        let labels = self.names("R/C/backups");
        let [label] = labels.as_slice() else {
            panic!("one backup, not {labels:?}")
        };
        symlink(label, self.folder.join("R/C/backups/B")).expect("set B");
        let json = fs::read(self.folder.join("R/C/backups/B/backup.json")).expect("backup.json");
        serde_json::from_slice(&json).expect("backup.json is plain JSON")
    }

    /// Step 2. `elsewhere`: where the tablespace goes instead of its old place.
    fn lay_out(&self, backup: &serde_json::Value, elsewhere: Option<&Path>) {
        let mut new = fs::DirBuilder::new();
        new.mode(0o700);
        new.create(self.folder.join("D")).expect("make D");
        self.shell(&self.stream);
        let list = backup["tablespaces"].as_array().expect("tablespaces");
        assert_eq!(list.len(), 1, "{backup}");
        for tablespace in list {
            let oid = &tablespace["oid"];
            let oid = oid.as_str().map_or_else(|| oid.to_string(), str::to_owned);
            let old = tablespace["location"].as_str().expect("location");
            let place = elsewhere.map_or(old, |path| path.to_str().expect("UTF-8"));
            new.create(place).expect("make the tablespace's folder");
            let pairs = [
                ("base.*", &*format!("{oid}.*")),
                ("-C D", &format!("-C '{place}'")),
            ];
            self.shell(&put(&self.stream, &pairs));
            if elsewhere.is_some() {
                let map = self.folder.join("D/tablespace_map");
                let text = fs::read_to_string(&map).expect("read tablespace_map");
                fs::write(&map, put(&text, &[(old, place)])).expect("edit tablespace_map");
            }
        }
    }

    /// Step 3: gives the names of the segments in W.
    fn segments(&self, backup: &serde_json::Value) -> Vec<String> {
        fs::create_dir(self.folder.join("W")).expect("make W");
        let start = Lsn::parse(backup["start_lsn"].as_str().expect("start_lsn"));
        let (timeline, half) = (backup["timeline"].as_u64().expect("timeline"), 1 << 32);
        let first = format!(
            "{timeline:08X}{:08X}{:08X}",
            start.0 / half,
            start.0 % half / SEGMENT
        );
        for name in self.names("R/C/wal/00000001/00000000") {
            let segment = name.strip_suffix(".wal").expect("only segments");
            if segment >= &*first {
                let object = format!("R/C/wal/00000001/00000000/{name}");
                self.decode(&object, &format!("W/{segment}"));
            }
        }
        let segments = self.names("W");
        assert_eq!(segments.first(), Some(&first));
        segments
    }

    /// Step 4: gives where the WAL of the chunks begins.
    fn last_seconds(&self, segments: &[String]) -> Lsn {
        let last = segments.last().expect("segments are stored");
        let chunks = self.names("R/C/tail/00000001");
        let chunks: Vec<_> = chunks
            .iter()
            .filter(|name| name.split('.').next() > Some(last))
            .collect();
        let part = |name: &str, index: usize| {
            let part = name.split('.').nth(index);
            part.expect("a name of four parts").to_owned()
        };
        let of_one: BTreeSet<_> = chunks.iter().map(|name| part(name, 0)).collect();
        let writers: BTreeSet<_> = chunks.iter().map(|name| part(name, 2)).collect();
        assert_eq!((of_one.len(), writers.len()), (1, 2), "{chunks:?}");
        let segment = of_one.first().expect("one segment");
        for name in &chunks {
            self.decode(&format!("R/C/tail/00000001/{name}"), "chunk");
            let range = part(name, 1);
            let from = range.split('-').next().expect("an offset");
            let json = fs::read(self.folder.join("R/C/cluster.json")).expect("cluster.json");
            let json: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
            let size = json["wal_segment_size"].to_string();
            assert_eq!(size, SEGMENT.to_string());
            let pairs = [
                ("CHUNK", "chunk"),
                ("SEGMENT", segment),
                ("00004000", from),
                ("16777216", &size),
            ];
            self.shell(&put(&self.chunk, &pairs));
        }
        let number = u64::from_str_radix(&segment[16..], 16).expect("hexadecimal");
        Lsn(number * SEGMENT)
    }

    /// Step 5, and the server of step 6.
    fn server(&self, target: &Target) -> Server {
        let wal = self.folder.join("W").display().to_string();
        let mut settings = put(&self.settings, &[("\"W/", &format!("\"{wal}/"))]);
        let example = "recovery_target_time = '2026-01-31 14:03:00+00'";
        let wanted = match target {
            Target::Time { time, .. } => {
                let time = time.strftime("%Y-%m-%d %H:%M:%S.%6f+00");
                format!("recovery_target_time = '{time}'")
            }
            _ => String::new(),
        };
        settings = put(&settings, &[(example, &wanted)]);
        let file = self.folder.join("D/postgresql.auto.conf");
        let before = fs::read_to_string(&file).expect("read postgresql.auto.conf");
        fs::write(&file, format!("{before}{settings}\n")).expect("append to it");
        assert!(!self.folder.join("D/standby.signal").exists());
        fs::write(self.folder.join("D/recovery.signal"), "").expect("make recovery.signal");
        Server::over_directory(18, &self.folder.join("D"))
    }
}

fn rescue(encrypted: bool, same_place: bool, to_time: bool) {
    let loss = lose_a_cluster(encrypted);
    let committed: Vec<_> = loss.dump.ends.iter().filter(|end| end.committed).collect();
    let target = if to_time {
        let wanted = committed.get(committed.len() - 3).expect("three commits");
        Target::Time {
            time: wanted.time,
            inclusive: true,
        }
    } else {
        Target::Latest
    };
    let rescuer = Rescuer::new(&loss, encrypted);
    let backup = rescuer.choose();
    let other = rescuer.folder.join("other place");
    if same_place {
        fs::remove_dir_all(tablespace(&loss.server)).expect("the place is lost, too");
    }
    rescuer.lay_out(&backup, (!same_place).then_some(&other));
    let segments = rescuer.segments(&backup);
    let tail = rescuer.last_seconds(&segments);
    let only_there = committed.iter().filter(|end| end.start >= tail).count();
    assert!(only_there >= 8, "{only_there} commits are in the tail only");

    let mut server = rescuer.server(&target);
    server.start();
    if to_time {
        wait_until("recovery pauses at its target", DEADLINE, || {
            (server.psql("select pg_get_wal_replay_pause_state()") == "paused").then_some(())
        });
        server.psql("select pg_wal_replay_resume()");
    }
    wait_until("the server is open for writing", DEADLINE, || {
        (server.psql("select pg_is_in_recovery()") == "f").then_some(())
    });
    let expected = loss.oracle.rows_at(&loss.dump, &target);
    let everything = loss.oracle.rows_at(&loss.dump, &Target::Latest);
    assert_eq!(expected != everything, to_time);
    assert_same_rows("restored by hand", &expected, &rows(&server));
    let kept = server.psql("select count(*), sum(g) from kept");
    assert_eq!(kept, "2000|2001000");
    let places = server
        .psql("select pg_tablespace_location(oid) from pg_tablespace where spcname = 'aside'");
    let place = if same_place {
        tablespace(&loss.server)
    } else {
        other
    };
    assert_eq!(Path::new(&places), place);
    server.psql("insert into kept values (2001)");
}

#[test]
fn an_encrypted_repository_is_restored_by_hand() {
    rescue(true, false, false);
}

#[test]
fn an_unencrypted_repository_is_restored_to_a_time_by_hand() {
    rescue(false, true, true);
}
