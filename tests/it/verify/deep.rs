//! `walden restore --dry-run --deep`: reads what one restore would read, all of it and nothing else.

use super::archive::{Archive, Copy, SIZE};
use super::damage::{damages, flip, part_key, records, start};
use super::json;
use crate::support::scratch::Scratch;
use crate::support::walden::Walden;
use serde_json::Value;
use std::fs;

/// Somebody who wants to know whether a restore would work.
struct Planner<'a> {
    archive: &'a Archive,
    scratch: Scratch,
    walden: Walden,
}

impl<'a> Planner<'a> {
    fn new(archive: &'a Archive) -> Self {
        let scratch = Scratch::new();
        let mut walden = Walden::in_directory(scratch.path());
        if let Some(identity) = archive.identity() {
            walden = walden.env("WALDEN_IDENTITY", identity);
        }
        Self {
            archive,
            scratch,
            walden,
        }
    }

    fn plan(&self, source: &[&str], more: &[&str], code: i32) -> Value {
        let mut arguments = vec!["restore"];
        arguments.extend(source);
        arguments.extend(["-D", "nowhere", "--dry-run", "--json", "--no-start"]);
        arguments.extend(more);
        let output = self.walden.run(arguments).expect_code(code);
        let plan = json(&output);
        assert_eq!(plan["schema"], "walden.restore-plan", "{output}");
        assert!(!self.scratch.join("nowhere").exists(), "it wrote something");
        plan
    }

    /// The same, and reads everything.
    fn deep(&self, url: &str, more: &[&str], code: i32) -> Value {
        let plan = self.plan(&[url], &[&["--deep"], more].concat(), code);
        assert_eq!(plan["deep"]["healthy"], code == 0, "{plan:#}");
        plan
    }

    /// The restore from the oldest backup goes over all WAL.
    fn deep_from_the_oldest(&self, url: &str, code: i32) -> Value {
        let label = self.archive.labels[0].as_str();
        self.deep(url, &["--to", "latest", "--backup", label], code)
    }
}

#[track_caller]
fn names(plan: &Value, object: &str, lsn: Option<&str>) {
    let findings = plan["deep"]["findings"].as_array().unwrap();
    let found = findings.iter().find(|finding| {
        let named = finding["object"].as_str().unwrap().contains(object);
        named && lsn.is_none_or(|lsn| finding["lsn"] == lsn)
    });
    assert!(found.is_some(), "{object} at {lsn:?}: {findings:#?}");
}

pub(super) fn reads_what_one_restore_reads(archive: &Archive) {
    let planner = Planner::new(archive);
    let latest = ["--to", "latest"];
    let key = |name| archive.segment_key(name);

    // Healthy: all of the plan's objects were read, and every file of the backup.
    let plan = planner.deep(&archive.url(), &latest, 0);
    let count = |plan: &Value, name: &str| plan["deep"]["counts"][name].as_u64().unwrap();
    let objects = plan["objects"].as_u64().unwrap();
    assert!(
        objects > plan["wal_segments"].as_u64().unwrap() + 2,
        "{plan:#}"
    );
    // Across the switch of timelines a segment is read twice: a record may go over it.
    let read = count(&plan, "objects_read");
    assert!((objects..=objects + 2).contains(&read), "{plan:#}");
    let stored = count(&plan, "stored_bytes");
    let told = plan["download_bytes"].as_u64().unwrap();
    assert!(told.abs_diff(stored) < 2 << 20, "{told} {stored}");
    assert!(count(&plan, "files") > 900, "{plan:#}");
    assert!(count(&plan, "pages") > 1000, "{plan:#}");
    assert_eq!(plan["backup"], archive.labels[1].as_str());
    let oldest = planner.deep_from_the_oldest(&archive.url(), 0);
    let (more, few) = (count(&oldest, "records"), count(&plan, "records"));
    assert!(more > few && few > 100, "{more} {few}");

    // One byte of a part of its backup; of another backup's it does not matter.
    let copy = Copy::of(archive);
    let part = part_key(archive, 1);
    flip(&copy, &part, |bytes| bytes.len() * 2 / 3);
    names(&planner.deep(&copy.url(), &latest, 5), &part, None);
    planner.deep_from_the_oldest(&copy.url(), 0);

    // One of a segment before the backup begins: only the older one needs it.
    let copy = Copy::of(archive);
    let middle = archive.middle_segment();
    flip(&copy, &key(&middle), |bytes| bytes.len() * 2 / 3);
    planner.deep(&copy.url(), &latest, 0);
    let at = start(&middle).unwrap().to_string();
    let plan = planner.deep_from_the_oldest(&copy.url(), 5);
    names(&plan, &key(&middle), Some(&at));
    // The target lies before it.
    let before = archive.lsn(0, "stop_lsn").to_string();
    planner.deep(&copy.url(), &["--to-lsn", &before], 0);

    // A record that is not valid, in a segment whose seal and descriptor say that all is well; behind the target it does not matter.
    let copy = Copy::of(archive);
    let name = archive.segments(2)[1];
    let (_, plain) = archive.open(&key(&name), copy.read(&key(&name)));
    let early = records(&name, &plain)[1].start.to_string();
    let all = damages(archive);
    let make = |damage: &str, copy: &Copy| {
        let found = all.iter().find(|one| one.name == damage).unwrap();
        (found.make)(archive, copy)
    };
    let named = make("a flipped bit in a record, sealed anew", &copy);
    let (object, at) = named[0].clone();
    let at = at.unwrap().to_string();
    let plan = planner.deep(&copy.url(), &latest, 5);
    names(&plan, &object, Some(&at));
    planner.deep(&copy.url(), &["--to-lsn", &early], 0);
    // The same in words.
    let mut arguments = vec!["restore", "-D", "nowhere", "--dry-run", "--deep"];
    let url = copy.url();
    arguments.extend(["--to", "latest", "--no-start", &url]);
    let output = planner.walden.run(arguments).expect_code(5);
    for words in [object.as_str(), &at, "this restore would fail"] {
        assert!(output.stdout.contains(words), "{words}: {output}");
    }

    // Without a record that is wrong anywhere: what the restore would take from another repository is taken from there, and said.
    let copy = Copy::of(archive);
    let last = archive.segments(2)[2];
    // A segment of a server that went another way from there, which shows only in the next one.
    let other = "two histories of one timeline mixed from two repositories";
    let (next, _) = make(other, &copy)[0].clone();
    flip(&copy, &part, |bytes| bytes.len() * 2 / 3);
    flip(&copy, &key(&last), |bytes| bytes.len() * 2 / 3);
    let config = archive.config_with(&[("second", &archive.url())]);
    let config = config.replacen(&archive.url(), &copy.url(), 1);
    fs::write(planner.scratch.join("walden.toml"), config).unwrap();
    let plan = planner.plan(&[], &["--to", "latest", "--deep"], 0);
    let fell_over = plan["repositories"]["fell_over"].to_string();
    let segments = archive.segments(2);
    let index = segments.iter().position(|name| key(name) == next).unwrap();
    let swapped = key(&segments[index - 1]);
    for object in [&part, &key(&last), &swapped] {
        assert!(fell_over.contains(object), "{object}: {fell_over}");
    }
    // What neither has as it should be is told.
    let both = Copy::of(archive);
    flip(&both, &key(&last), |bytes| bytes.len() / 2);
    let config = archive.config_with(&[("second", &both.url())]);
    let config = config.replacen(&archive.url(), &copy.url(), 1);
    fs::write(planner.scratch.join("walden.toml"), config).unwrap();
    let plan = planner.plan(&[], &["--to", "latest", "--deep"], 5);
    names(&plan, &key(&last), Some(&start(&last).unwrap().to_string()));
    assert_eq!(SIZE.bytes(), 1 << 20);

    says_what_is_in_the_way(archive);
}

/// The plan says what it takes on this machine and what refuses it there.
fn says_what_is_in_the_way(archive: &Archive) {
    let planner = Planner::new(archive);
    let url = archive.url();
    let latest = ["--to", "latest"];
    let plan = planner.plan(&[&url], &latest, 0);
    let room = &plan["room"][0];
    assert!(
        room["needed_bytes"].as_u64().unwrap() > 10 << 20,
        "{plan:#}"
    );
    assert!(room["free_bytes"].as_u64().unwrap() > 10 << 20, "{plan:#}");
    assert_eq!(plan["conflicts"], Value::Array(Vec::new()), "{plan:#}");
    assert_eq!(plan["chain"][0], plan["backup"]);
    assert_eq!(plan["deep"], Value::Null);
    let folder = planner.scratch.join("in use");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("file"), "").unwrap();
    let more = [
        "--map-tablespace",
        "/a=/b",
        "--to",
        "latest",
        "--bin-dir",
        "no programs",
    ];
    let mut arguments = vec!["restore", &url, "-D", "in use", "--dry-run", "--json"];
    arguments.extend(more);
    let plan = json(&planner.walden.run(arguments).expect_code(3));
    let conflicts = plan["conflicts"].as_array().unwrap();
    for words in ["not empty", "no tablespace there", "server binaries"] {
        let told = conflicts
            .iter()
            .any(|one| one.as_str().unwrap().contains(words));
        assert!(told, "{words}: {conflicts:?}");
    }
    let arguments = ["restore", &url, "-D", "nowhere", "--to", "latest", "--deep"];
    let output = planner.walden.run(arguments).expect_code(2);
    assert!(
        output.stderr.contains("hint: use it with --dry-run"),
        "{output}"
    );
}
