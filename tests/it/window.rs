//! `walden window` over real servers, judged by `pg_waldump` and the transactions that clients were told: exact to the commit, across a
//! failover, a hole and a lost key; the same answer in `list`, in the refusals of `restore`, and on the page, in a real browser.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use crate::push::Site;
use crate::support::oracle::Oracle;
use crate::support::postgres::{Server, Stop, tool_command};
use crate::support::process::{self, COMMAND_DEADLINE, Output, Running, command};
use crate::support::wait_until;
use crate::support::wal_dump::{Lsn, WalDump};
use crate::support::walden::Walden;
use crate::support::workload::Outcome;
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(60);

fn json(output: &Output) -> Value {
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output}"))
}

fn time(value: &Value) -> jiff::Timestamp {
    let text = value.as_str().unwrap_or_else(|| panic!("{value}"));
    text.parse().unwrap()
}

struct Archive {
    site: Site,
    run: Option<Running>,
}

impl Archive {
    fn start(major: u32) -> Self {
        Self::of(Server::builder(major).wal_segment_mib(1).start())
    }

    fn of(server: Server) -> Self {
        let mut archive = Self {
            site: Site::new(server, None, &[]),
            run: None,
        };
        archive.receive();
        archive
    }

    fn server(&self) -> &Server {
        &self.site.server
    }

    fn receive(&mut self) {
        let run = self.site.walden.start(["run", "--rpo", "200ms"]);
        wait_until("walden run receives", DEADLINE, || {
            let active = "select active from pg_replication_slots where slot_name = 'walden'";
            (self.server().psql(active) == "t").then_some(())
        });
        self.run = Some(run);
    }

    fn stop(&mut self) {
        let run = self.run.take().expect("walden run runs");
        run.signal(Signal::TERM);
        run.wait(DEADLINE).expect_success();
    }

    fn backup(&self) -> Value {
        let arguments = ["backup", "--fast-checkpoint", "--json"];
        json(&self.site.walden.run(arguments).expect_success())
    }

    fn wait_stored(&self) {
        let flushed = self.server().psql("select pg_current_wal_flush_lsn()");
        wait_until("the last WAL is stored", DEADLINE, || {
            let stored = format!(
                "select coalesce(min(flush_lsn) >= '{flushed}', false) from pg_stat_replication"
            );
            (self.server().psql(&stored) == "t").then_some(())
        });
    }

    fn key(&self) -> String {
        format!("file:{}", self.site.folder.join("walden.key").display())
    }

    fn window(&self, code: i32) -> Value {
        let key = self.key();
        let arguments = ["window", "--identity", &key, "--json"];
        json(&self.site.walden.run(arguments).expect_code(code))
    }

    fn stored(&self, folder: &str) -> Vec<PathBuf> {
        let identifier = self.server().control_data("Database system identifier");
        let folder = self.site.repository.join(identifier).join(folder);
        let entries = fs::read_dir(folder).unwrap().flatten();
        entries.map(|entry| entry.path()).collect()
    }

    /// Chunks of a segment stay behind when it is sealed.
    fn remove_tail(&self, name: &str) {
        for chunk in self.stored("tail/00000001") {
            if chunk
                .file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .starts_with(name)
            {
                fs::remove_file(chunk).unwrap();
            }
        }
    }

    fn segments(&self) -> Vec<PathBuf> {
        let mut segments: Vec<PathBuf> = self
            .stored("wal/00000001/00000000")
            .into_iter()
            .filter(|path| path.extension().is_some_and(|kind| kind == "wal"))
            .collect();
        segments.sort();
        segments
    }
}

/// The last commit of `dump` that ends at or before `end`, as `window` has it.
fn expect_last_commit(dump: &WalDump, end: Lsn, commit: &Value) {
    let fitting = dump
        .ends
        .iter()
        .filter(|one| one.committed && one.end <= end);
    let last = fitting.max_by_key(|one| one.start).expect("a commit");
    assert_eq!(commit["xid"], last.xid, "{commit} {last:?}");
    assert_eq!(Lsn::parse(commit["lsn"].as_str().unwrap()), last.start);
    assert_eq!(Lsn::parse(commit["end_lsn"].as_str().unwrap()), last.end);
    assert_eq!(time(&commit["time"]), last.time);
}

/// The whole story on one server: healthy, without a key, with a hole in the middle.
fn exact_to_the_commit(major: u32) {
    let mut archive = Archive::start(major);
    let mut oracle = Oracle::prepare(archive.server(), 7 + u64::from(major));
    let first = archive.backup();
    oracle.run(archive.server(), 3, Duration::from_millis(1500));
    archive
        .server()
        .psql("select pg_switch_wal(); select pg_create_restore_point('between')");
    let second = archive.backup();
    oracle.run(archive.server(), 3, Duration::from_millis(1500));
    // An abort is the newest transaction; the last commit is another one.
    archive.server().psql(
        "begin; create table never (n int); rollback; select pg_create_restore_point('flushed')",
    );
    archive.wait_stored();
    let flushed = archive.server().psql("select pg_current_wal_flush_lsn()");
    archive.stop();
    let dump = oracle.dump(archive.server());

    let healthy = archive.window(0);
    assert_eq!(healthy["schema"], "walden.window");
    let windows = &healthy["repositories"][0];
    // The server may have written a little more before it was left.
    let end = windows["newest"]["lsn"].as_str().unwrap().to_owned();
    assert!(Lsn::parse(&end) >= Lsn::parse(&flushed), "{windows}");
    expect_last_commit(&dump, Lsn::parse(&end), &windows["last_commit"]);
    // Nothing that a client was told is committed lies behind it, and it is one of theirs.
    let xid = u32::try_from(windows["last_commit"]["xid"].as_u64().unwrap()).unwrap();
    let told = oracle.journal.transactions.iter();
    let committed: Vec<u32> = told
        .filter(|one| one.outcome == Outcome::Committed)
        .map(|one| one.xid)
        .collect();
    let last_told = dump
        .ends
        .iter()
        .rfind(|end| committed.contains(&end.xid))
        .expect("clients committed");
    let reached = dump.end_of(xid).expect("the WAL has it");
    assert!(
        reached.start >= last_told.start,
        "{reached:?} {last_told:?}"
    );
    assert_eq!(windows["oldest_promised"]["backup"], first["label"]);
    assert_eq!(windows["oldest_promised"]["lsn"], first["stop_lsn"]);
    let backups = windows["backups"].as_array().unwrap();
    assert_eq!(backups.len(), 2);
    for (window, made) in backups.iter().zip([&first, &second]) {
        assert_eq!(window["label"], made["label"]);
        assert_eq!(window["from"]["lsn"], made["stop_lsn"]);
        let ranges = window["ranges"].as_array().unwrap();
        assert_eq!(ranges.len(), 1, "{window}");
        assert_eq!(ranges[0]["last_commit"], windows["last_commit"]);
        assert_eq!(ranges[0]["proven"], true);
    }
    let text = archive.site.walden.run(["window"]).expect_success();
    assert!(
        text.stdout.contains("last commit") && text.stdout.contains(&end),
        "{text}"
    );

    // Without the key the ends are the same, and what is not known is not guessed.
    let elsewhere = Walden::in_directory(archive.server().scratch());
    let url = format!("file://{}", archive.site.repository.display());
    let keyless = json(&elsewhere.run(["window", &url, "--json"]).expect_success());
    let keyless = &keyless["repositories"][0];
    assert_eq!(keyless["newest"]["lsn"], windows["newest"]["lsn"]);
    let newest_end = dump.ends.iter().map(|end| end.time).max().unwrap();
    assert!(time(&keyless["newest"]["time"]) <= newest_end);
    assert!(time(&keyless["newest"]["time"]) >= reached.time);
    assert_eq!(
        (&keyless["last_commit"], &keyless["lacks_key"]),
        (&Value::Null, &true.into())
    );

    // A segment between the two backups goes missing.
    let switched = Lsn::parse(second["start_lsn"].as_str().unwrap());
    let segments = archive.segments();
    let start_of = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        Lsn(u64::from_str_radix(&name[16..24], 16).unwrap() << 20)
    };
    let after_first = Lsn::parse(first["stop_lsn"].as_str().unwrap());
    let between: Vec<&PathBuf> = segments
        .iter()
        .filter(|path| start_of(path) > after_first && start_of(path).0 + (1 << 20) < switched.0)
        .collect();
    assert!(
        between.len() >= 3,
        "too little WAL between the backups: {segments:?}"
    );
    let missing = between[between.len() / 2];
    let safe = archive.site.folder.join("safe");
    fs::rename(missing, &safe).unwrap();
    let name = missing.file_stem().unwrap().to_str().unwrap();
    archive.remove_tail(name);
    let holed = archive.window(3);
    let windows = &holed["repositories"][0];
    let gap = &windows["gaps"][0];
    assert_eq!(
        (&gap["first_missing"], &gap["segments"]),
        (&name.into(), &1.into()),
        "{windows}"
    );
    let range = &windows["backups"][0]["ranges"][0];
    assert_eq!(
        Lsn::parse(range["to"]["lsn"].as_str().unwrap()),
        start_of(missing)
    );
    assert_eq!(range["first_missing"], name);
    expect_last_commit(&dump, start_of(missing), &range["last_commit"]);
    let whole = &windows["backups"][1]["ranges"][0];
    expect_last_commit(&dump, Lsn::parse(&end), &whole["last_commit"]);

    // A restore into the hole is refused with the moments on both sides.
    let into_hole = Lsn(start_of(missing).0 + 4096).to_string();
    let restored = archive.site.folder.join("restored");
    let key = archive.key();
    let refused = archive.site.walden.run([
        "restore",
        "--to-lsn",
        &into_hole,
        "--identity",
        &key,
        "-D",
        restored.to_str().unwrap(),
    ]);
    let refused = refused.expect_code(5);
    let before = format!("(LSN {}, timeline 1)", start_of(missing));
    let after = format!("(LSN {}, timeline 1)", second["stop_lsn"].as_str().unwrap());
    let words = refused.to_string();
    let nearest = words.split("nearest before the target: ").nth(1);
    let nearest = nearest.unwrap_or_else(|| panic!("{refused}"));
    let (one, other) = nearest
        .split_once("nearest after the target: ")
        .unwrap_or_else(|| panic!("{refused}"));
    assert!(one.contains(&before) && other.contains(&after), "{refused}");
    assert!(!restored.exists());
    page_in_a_browser(&archive, windows, name);
}

/// The page says the same as the document, in headless Chromium, and is a picture with red in it.
fn page_in_a_browser(archive: &Archive, windows: &Value, missing: &str) {
    let page = archive.site.folder.join("window.html");
    let key = archive.key();
    let arguments = [
        "window",
        "--identity",
        &key,
        "--html",
        page.to_str().unwrap(),
    ];
    archive.site.walden.run(arguments).expect_code(3);
    let Some(browser) = tool_in_path(&["chromium", "chromium-browser", "google-chrome"]) else {
        panic!("NOT RUN: no Chromium here; scripts/setup test installs it");
    };
    let profile = archive.site.folder.join("profile");
    let headless = |arguments: &[String]| {
        let mut chromium = command(&browser);
        chromium.args([
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--virtual-time-budget=2000",
        ]);
        chromium.arg(format!("--user-data-dir={}", profile.display()));
        chromium.args(arguments);
        chromium.arg(format!("file://{}", page.display()));
        process::run(chromium, COMMAND_DEADLINE).expect_success()
    };
    let dom = headless(&["--dump-dom".into()]).stdout;
    let commit = &windows["last_commit"];
    for text in [
        format!("transaction {}", commit["xid"]),
        commit["lsn"].as_str().unwrap().to_owned(),
        missing.to_owned(),
        "newest reachable commit".to_owned(),
        windows["cluster"].as_str().unwrap().to_owned(),
    ] {
        assert!(dom.contains(&text), "{text}: {dom}");
    }
    for backup in windows["backups"].as_array().unwrap() {
        assert!(dom.contains(backup["label"].as_str().unwrap()), "{dom}");
    }
    assert_eq!(dom.matches("class=\"bar\"").count(), 2, "{dom}");
    assert_eq!(dom.matches("class=\"gap\"").count(), 1, "{dom}");
    let picture = archive.site.folder.join("window.png");
    headless(&[
        format!("--screenshot={}", picture.display()),
        "--window-size=1000,700".into(),
    ]);
    // Counted by a program of others: pixels of the gaps' red, of the bars' green, and of white paper.
    let mut python = command("python3");
    python.args(["-c", COUNT_PIXELS]).arg(&picture);
    let counted = process::run(python, COMMAND_DEADLINE).expect_success();
    let counted = json(&counted);
    let [red, green, white] = ["red", "green", "white"].map(|name| counted[name].as_u64().unwrap());
    assert!(red > 100 && green > 500 && white > 100_000, "{counted}");
}

/// Reads a PNG of 8 bits a channel (ISO/IEC 15948) and prints how many pixels have the page's colours.
const COUNT_PIXELS: &str = r#"
import json, struct, sys, zlib
data, at, packed = open(sys.argv[1], "rb").read(), 8, b""
assert data.startswith(b"\x89PNG")
while at < len(data):
    size, kind = struct.unpack(">I4s", data[at:at + 8])
    body = data[at + 8:at + 8 + size]
    if kind == b"IHDR": width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", body)
    if kind == b"IDAT": packed += body
    at += 12 + size
assert (depth, interlace) == (8, 0) and colour in (2, 6), (depth, colour, interlace)
n = 3 if colour == 2 else 4
raw, line, found = zlib.decompress(packed), bytearray(width * n), {"red": 0, "green": 0, "white": 0}
for y in range(height):
    start = y * (width * n + 1)
    how, row, above = raw[start], bytearray(raw[start + 1:start + 1 + width * n]), line
    if how:
        for i in range(width * n):
            a, b, c = (row[i - n] if i >= n else 0), above[i], (above[i - n] if i >= n else 0)
            if how == 4:
                p = a + b - c
                near = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
            row[i] = (row[i] + (0, a, b, (a + b) // 2, near if how == 4 else 0)[how]) & 255
    line = row
    for x in range(0, width * n, n):
        r, g, b = row[x], row[x + 1], row[x + 2]
        if r > 170 and g < 90 and b < 90: found["red"] += 1
        elif g > r + 40 and g > b + 10: found["green"] += 1
        elif min(r, g, b) > 250: found["white"] += 1
print(json.dumps(found))
"#;

fn tool_in_path(names: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    names.iter().find_map(|name| {
        folders
            .iter()
            .map(|folder: &PathBuf| folder.join(name))
            .find(|file: &PathBuf| Path::new(file).is_file())
    })
}

#[test]
fn the_last_reachable_commit_is_exact_on_15() {
    exact_to_the_commit(15);
}

#[test]
fn the_last_reachable_commit_is_exact_on_18() {
    exact_to_the_commit(18);
}

#[test]
fn a_new_timeline_branches_off_in_the_tree_and_is_followed() {
    let server = Server::builder(18)
        .wal_segment_mib(1)
        .setting("restore_command = 'false'")
        .start();
    let mut archive = Archive::of(server);
    let backup = archive.backup();
    archive
        .server()
        .psql("create table t (n int); insert into t values (1)");
    archive.wait_stored();
    // Archive recovery ends on a new timeline.
    archive.site.server.stop(Stop::Fast, DEADLINE);
    fs::write(
        archive.server().data_directory().join("recovery.signal"),
        "",
    )
    .unwrap();
    archive.site.server.start();
    wait_until("the server is on timeline 2", DEADLINE, || {
        (archive.server().psql("select pg_is_in_recovery()") == "f").then_some(())
    });
    archive.server().psql("insert into t values (2)");
    wait_until("timeline 2 is received", DEADLINE, || {
        let active = "select active from pg_replication_slots where slot_name = 'walden'";
        (archive.server().psql(active) == "t").then_some(())
    });
    archive.wait_stored();
    archive.stop();
    let row = |n: u32| {
        let told = archive.server().psql(&format!(
            "select xmin, to_char(pg_xact_commit_timestamp(xmin) at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')
             from t where n = {n}"
        ));
        let (xid, time) = told.split_once('|').unwrap();
        (
            xid.parse::<u64>().unwrap(),
            time.parse::<jiff::Timestamp>().unwrap(),
        )
    };
    let history =
        fs::read_to_string(archive.server().wal_directory().join("00000002.history")).unwrap();
    let switch = history.split_whitespace().nth(1).unwrap();

    let windows = &archive.window(0)["repositories"][0];
    let timelines = windows["timelines"].as_array().unwrap();
    assert_eq!(timelines.len(), 2, "{windows}");
    let second = &timelines[1];
    assert_eq!(
        (
            &second["timeline"],
            &second["parent"],
            &second["switch_lsn"]
        ),
        (&2.into(), &1.into(), &switch.into())
    );
    let ranges = &windows["backups"][0]["ranges"];
    assert_eq!(windows["backups"][0]["label"], backup["label"]);
    for (range, timeline, n) in [(&ranges[0], 2, 2), (&ranges[1], 1, 1)] {
        let (xid, time_told) = row(n);
        assert_eq!(range["timeline"], timeline, "{windows}");
        assert_eq!(range["last_commit"]["xid"], xid, "{windows}");
        assert_eq!(time(&range["last_commit"]["time"]), time_told);
    }
    assert_eq!(ranges[1]["to"]["lsn"], switch, "{windows}");
    assert_eq!(windows["last_commit"], ranges[0]["last_commit"]);
    let key = archive.key();
    let text = archive
        .site
        .walden
        .run(["window", "--identity", &key])
        .expect_success();
    assert!(
        text.stdout.contains(&format!("     2 from {switch} on")),
        "{text}"
    );
    // Without the key the timelines stand each for itself.
    let elsewhere = Walden::in_directory(archive.server().scratch());
    let url = format!("file://{}", archive.site.repository.display());
    let keyless = json(&elsewhere.run(["window", &url, "--json"]).expect_success());
    let keyless = &keyless["repositories"][0];
    assert_eq!(keyless["timelines"][1]["known"], false);
    assert_eq!(keyless["backups"][0]["ranges"].as_array().unwrap().len(), 1);
    assert_eq!(keyless["backups"][0]["ranges"][0]["timeline"], 1);
}

#[test]
fn run_rolls_a_log_up_when_it_ends_and_the_answer_does_not_depend_on_it() {
    let mut server = Server::builder(15).wal_segment_mib(1).make();
    // WAL goes on near the end of the first 4 GiB.
    let mut reset = tool_command(15, "pg_resetwal");
    reset.args(["-l", "000000010000000000000FF8", "-D"]);
    reset.arg(server.data_directory());
    process::run(reset, COMMAND_DEADLINE).expect_success();
    server.start();
    let mut archive = Archive::of(server);
    archive.server().psql("create table t (n int)");
    archive.backup();
    for n in 0..20 {
        archive.server().psql(&format!(
            "insert into t values ({n}); select pg_switch_wal()"
        ));
    }
    archive.wait_stored();
    let index = wait_until("the roll-up of the first log is stored", DEADLINE, || {
        let identifier = archive.server().control_data("Database system identifier");
        let folder = archive
            .site
            .repository
            .join(identifier)
            .join("index/00000001");
        let mut entries = fs::read_dir(folder).ok()?.flatten();
        let path = entries.next()?.path();
        let name = path.file_name()?.to_str()?.to_owned();
        name.starts_with("00000000.").then_some(path)
    });
    archive.stop();
    // What it says, by a program of others.
    let mut shell = command("lz4");
    shell.args(["-dc"]).arg(&index);
    let document = json(&process::run(shell, COMMAND_DEADLINE).expect_success());
    let rolled: Vec<&str> = document["segments"]
        .as_array()
        .unwrap()
        .iter()
        .map(|segment| segment["name"].as_str().unwrap())
        .collect();
    let stored = archive.segments();
    let stored: Vec<&str> = stored
        .iter()
        .map(|path| path.file_stem().unwrap().to_str().unwrap())
        .collect();
    assert_eq!(rolled, stored);
    assert_eq!(rolled.last(), Some(&"000000010000000000000FFF"));

    let answer = |code: i32| archive.window(code)["repositories"].clone();
    let with = answer(0);
    let bytes = fs::read(&index).unwrap();
    let mut damaged = bytes.clone();
    damaged[bytes.len() / 2] ^= 1;
    fs::write(&index, damaged).unwrap();
    assert_eq!(answer(0), with, "a damaged roll-up");
    fs::remove_file(&index).unwrap();
    assert_eq!(answer(0), with, "no roll-up");
    // It is made up for by the next run.
    archive.receive();
    wait_until("the roll-up is stored again", DEADLINE, || {
        (fs::read(&index).ok()? == bytes).then_some(())
    });
    archive.stop();
}
