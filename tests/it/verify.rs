//! `walden verify` over real archives, encrypted and not: a healthy one is well at every level, and each of many damages, made one at a time
//! on a copy, is found and named with its object and its place in WAL at the level that promises it, and at the deepest.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod archive;
mod damage;
mod deep;
mod told;

use crate::support::object_store::Bucket;
use crate::support::process::{Output, note};
use crate::support::scratch::Scratch;
use crate::support::walden::Walden;
use archive::{Archive, Copy};
use damage::{Damage, Named, damages};
use serde_json::Value;
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

const LEVELS: [&str; 4] = ["--presence", "--checksums", "--wal", "--backups"];

fn json(output: &Output) -> Value {
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output}"))
}

/// A place of its own to run in, which remembers nothing from elsewhere.
struct Verifier {
    scratch: Scratch,
    walden: Walden,
}

impl Verifier {
    fn new() -> Self {
        let scratch = Scratch::new();
        let walden = Walden::in_directory(scratch.path());
        Self { scratch, walden }
    }

    /// As [`Self::new`], for a repository in a bucket.
    fn of_bucket(bucket: &Bucket) -> Self {
        let Self { scratch, walden } = Self::new();
        let walden = walden.envs(bucket.environment());
        Self { scratch, walden }
    }

    fn run(&self, archive: &Archive, url: &str, with_key: bool, more: &[&str]) -> Output {
        let mut arguments = vec!["verify".to_owned(), url.to_owned(), "--json".to_owned()];
        if let Some(identity) = archive.identity().filter(|_| with_key) {
            arguments.extend(["--identity".to_owned(), identity]);
        }
        arguments.extend(more.iter().map(|text| (*text).to_owned()));
        self.walden.run(arguments)
    }
}

#[test]
fn every_damage_is_found_and_named_encrypted() {
    check_archive(true);
}

#[test]
fn every_damage_is_found_and_named_unencrypted() {
    check_archive(false);
}

fn check_archive(encrypted: bool) {
    let archive = Archive::make(encrypted);
    is_healthy(&archive);
    let damages = damages(&archive);
    let next = AtomicUsize::new(0);
    let report = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let verifier = Verifier::new();
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(damage) = damages.get(index) else {
                        break;
                    };
                    let copy = Copy::of(&archive);
                    let expected = (damage.make)(&archive, &copy);
                    let line = is_found(&archive, &verifier, damage, &expected, &copy.url());
                    let line = line.map_err(|why| format!("{}: {why}", damage.name));
                    report.lock().unwrap().push((index, line));
                }
            });
        }
    });
    let mut report = report.into_inner().unwrap();
    report.sort();
    let kind = if encrypted {
        "encrypted"
    } else {
        "unencrypted"
    };
    let mut missed = Vec::new();
    for (_, line) in &report {
        match line {
            Ok(line) => note(&format!("{kind}: {line}")),
            Err(why) => missed.push(why),
        }
    }
    assert!(missed.is_empty(), "{kind}, not found: {missed:#?}");
    assert_eq!(report.len(), damages.len());
    assert!(damages.len() >= 36, "{} damages", damages.len());
    documents_without_which_nothing_is_read(&archive);
    each_repository_is_looked_at(&archive);
    deep::reads_what_one_restore_reads(&archive);
    if encrypted {
        s3_tells_the_same(&archive, &damages);
    }
    // The archive itself is what it was.
    is_healthy(&archive);
}

fn is_healthy(archive: &Archive) {
    let verifier = Verifier::new();
    for level in LEVELS {
        let output = verifier.run(archive, &archive.url(), true, &[level, "--all"]);
        let document = json(&output.expect_success());
        assert_eq!(document["schema"], "walden.verify");
        assert_eq!(document["healthy"], true);
        assert_eq!(document["findings"].as_array().unwrap().len(), 0);
        let reaches = document["backups"].as_array().unwrap();
        assert!(reaches.len() >= 4, "two backups, two timelines: {document}");
        let count = |name: &str| document["counts"][name].as_u64().unwrap();
        let decodes = matches!(level, "--wal" | "--backups");
        assert_eq!(count("records") > 1000, decodes, "{level}: {document}");
        let prepared: Vec<&Value> = document["prepared"]["2"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|prepared| &prepared["name"])
            .collect();
        assert_eq!(
            prepared.contains(&&Value::from(archive::PREPARED)),
            decodes,
            "{document}"
        );
        assert!(
            prepared.len() <= 1,
            "the other one was committed: {document}"
        );
        assert_eq!(count("files") > 1000, level == "--backups", "{document}");
        assert_eq!(count("pages") > 2000, level == "--backups", "{document}");
        assert_eq!(count("objects_remembered"), 0, "{document}");
        let trusts = document["notes"].to_string().contains("believed");
        assert_eq!(trusts, level == "--presence", "{document}");
    }
    if archive.identity().is_none() {
        return;
    }
    // Without a key: what needs none works, what needs one says so.
    for level in ["--presence", "--checksums"] {
        let output = verifier.run(archive, &archive.url(), false, &[level, "--all"]);
        output.expect_success();
    }
    let output = verifier.run(archive, &archive.url(), false, &["--wal", "--all"]);
    output.expect_code(12);
}

/// `walden.json` and `cluster.json` are read before anything else: the command ends there, and names them.
fn documents_without_which_nothing_is_read(archive: &Archive) {
    let cluster = format!("{}/cluster.json", archive.cluster);
    for key in ["walden.json", &cluster] {
        let copy = Copy::of(archive);
        let bytes = copy.read(key);
        copy.write(key, &bytes[..bytes.len() / 2]);
        for level in LEVELS {
            let output = Verifier::new().run(archive, &copy.url(), true, &[level]);
            let output = output.expect_code(5);
            assert!(output.stderr.contains(key), "{level}: {output}");
        }
    }
}

/// With several configured, each is verified and shown by itself, and one that is not there is told.
fn each_repository_is_looked_at(archive: &Archive) {
    let copy = Copy::of(archive);
    let middle = archive.middle_segment();
    let key = copy.remove_segment(archive, &middle);
    let nowhere = Scratch::new();
    let nowhere = format!("file://{}", nowhere.join("nothing").display());
    let mut verifier = Verifier::new();
    let folder = verifier.scratch.path().to_owned();
    let configure = |more: &[(&str, &str)]| {
        fs::write(folder.join("walden.toml"), archive.config_with(more)).unwrap();
    };
    if let Some(identity) = archive.identity() {
        verifier.walden = verifier.walden.env("WALDEN_IDENTITY", identity);
    }
    let run = |arguments: &[&str], code: i32| {
        let output = verifier.walden.run(arguments.iter().copied());
        output.expect_code(code)
    };
    let second = copy.url();
    configure(&[("second", &second)]);
    let both = json(&run(&["verify", "--json"], 5));
    assert_eq!(both["healthy"], false, "{both}");
    let each = both["repositories"].as_array().unwrap();
    let healthy: Vec<&Value> = each.iter().map(|one| &one["healthy"]).collect();
    assert_eq!(healthy, [true, false], "{both}");
    assert_eq!(each[1]["findings"][0]["object"], key.as_str(), "{both}");
    assert_eq!(each[1]["repository"], second.as_str(), "{both}");
    run(&["verify", "--repository", "primary"], 0);
    let text = run(&["verify", "--presence"], 5);
    assert_eq!(
        text.stdout.matches("--presence: names").count(),
        2,
        "{text}"
    );
    let windows = json(&run(&["window", "--json"], 3));
    let each = windows["repositories"].as_array().unwrap();
    let gaps: Vec<usize> = each
        .iter()
        .map(|one| one["gaps"].as_array().unwrap().len())
        .collect();
    assert_eq!(gaps, [0, 1], "{windows}");
    assert_eq!(
        each[1]["gaps"][0]["first_missing"],
        middle.to_string(),
        "{windows}"
    );
    run(&["window", "--repository", "primary"], 0);
    let list = run(&["list"], 3);
    assert!(list.stdout.contains("repository second: gap:"), "{list}");
    assert!(!list.stdout.contains("primary: gap:"), "{list}");
    run(&["list", "--repository", "primary"], 0);

    // One that is not there: the other is as well as before, and nobody says that all is.
    configure(&[("gone", &nowhere)]);
    for (arguments, code) in [
        (["verify", "--presence", "--json"], 3),
        (["window", "-q", "--json"], 3),
    ] {
        let document = json(&run(&arguments, code));
        assert_eq!(document["repositories"].as_array().unwrap().len(), 1);
        assert_eq!(document["unseen"][0]["repository"], "gone", "{document}");
        assert_ne!(document["healthy"], true, "{document}");
    }
    let text = run(&["window"], 3);
    assert!(text.stdout.contains("repository gone (file://"), "{text}");
    let page = run(&["window", "--html", "-"], 3).stdout;
    assert!(page.contains("was not looked at"), "{page}");
    // One that is damaged is damaged.
    let cut = Copy::of(archive);
    cut.write("walden.json", b"{");
    configure(&[("cut", &cut.url())]);
    let document = json(&run(&["verify", "--presence", "--json"], 5));
    let problem = document["unseen"][0]["problem"].as_str().unwrap();
    assert!(problem.contains("walden.json"), "{document}");
}

/// The same archive in a bucket: healthy, remembered, and some of the damages.
fn s3_tells_the_same(archive: &Archive, damages: &[Damage]) {
    let bucket = Bucket::new();
    let whole = Copy::of(archive);
    for key in whole.keys() {
        bucket.put(&format!("a/{key}"), &whole.read(&key));
    }
    let (verifier, url) = (Verifier::of_bucket(&bucket), bucket.url("a"));
    for level in LEVELS {
        let output = verifier.run(archive, &url, true, &[level, "--all"]);
        let document = json(&output.expect_success());
        assert_eq!(document["healthy"], true, "{level}: {document}");
    }
    let again = json(&verifier.run(archive, &url, true, &[]).expect_success());
    let counts = &again["counts"];
    assert!(
        counts["objects_remembered"].as_u64().unwrap() > 12,
        "{again}"
    );
    let mut tried = 0;
    for damage in damages {
        let is_chosen = [
            "a middle segment deleted",
            "a history file deleted",
            "a byte flipped in the payload",
            "two segments swapped",
            "a backup part truncated",
            "a record with a wrong xl_prev and its CRC recomputed, sealed anew",
        ]
        .contains(&damage.name);
        if !is_chosen {
            continue;
        }
        tried += 1;
        let copy = Copy::of(archive);
        let expected = (damage.make)(archive, &copy);
        let stored = copy.keys();
        let changed: Vec<String> = whole
            .keys()
            .into_iter()
            .filter(|key| !stored.contains(key) || copy.read(key) != whole.read(key))
            .collect();
        assert!(!changed.is_empty(), "{}", damage.name);
        for key in &changed {
            match stored.contains(key) {
                true => bucket.put(&format!("a/{key}"), &copy.read(key)),
                false => bucket.delete(&format!("a/{key}")),
            }
        }
        match is_found(archive, &verifier, damage, &expected, &url) {
            Ok(line) => note(&format!("S3: {line}")),
            Err(why) => panic!("S3: {}: {why}", damage.name),
        }
        for key in &changed {
            bucket.put(&format!("a/{key}"), &whole.read(key));
        }
    }
    assert_eq!(tried, 6);
    let output = verifier.run(archive, &url, true, &["--all"]);
    output.expect_success();
}

/// Has a damage found; gives what was said of it, or why it was not found.
fn is_found(
    archive: &Archive,
    verifier: &Verifier,
    damage: &Damage,
    expected: &[Named],
    url: &str,
) -> Result<String, String> {
    let mut told = None;
    for level in [damage.level, "--backups"] {
        let output = verifier.run(archive, url, true, &[level, "--all"]);
        if output.code() != 5 {
            return Err(format!("{level}: {output}"));
        }
        let document = json(&output);
        let findings = document["findings"].as_array().unwrap();
        for (object, lsn) in expected {
            let found = findings.iter().find(|finding| {
                let named = finding["object"]
                    .as_str()
                    .unwrap()
                    .contains(object.as_str());
                let placed = lsn.is_none_or(|lsn| finding["lsn"] == lsn.to_string());
                named && placed
            });
            let Some(found) = found else {
                return Err(format!(
                    "{level} does not name {object} at {lsn:?}: {findings:#?}"
                ));
            };
            let text = |field: &str| found[field].as_str().unwrap_or("-").to_owned();
            let matters = !found["affects"].as_array().unwrap().is_empty();
            if text("advice").is_empty() || matters != damage.matters {
                return Err(format!("whom it affects: {found:#}"));
            }
            told.get_or_insert_with(|| {
                format!(
                    "{} -> {level}: {} {} at {}: {}",
                    damage.name,
                    text("problem"),
                    text("object"),
                    text("lsn"),
                    text("detail")
                )
            });
        }
    }
    told.ok_or_else(|| "nothing is expected of it".to_owned())
}

#[test]
fn what_was_verified_is_remembered_until_it_changes() {
    let archive = Archive::make(false);
    let verifier = Verifier::new();
    let copy = Copy::of(&archive);
    let verify = |code: i32, more: &[&str]| {
        json(
            &verifier
                .run(&archive, &copy.url(), true, more)
                .expect_code(code),
        )
    };
    let count = |document: &Value, name: &str| document["counts"][name].as_u64().unwrap();
    let first = verify(0, &["--backups"]);
    assert_eq!(count(&first, "objects_remembered"), 0, "{first}");
    let again = verify(0, &["--backups"]);
    // Tail chunks, partials and history files are few, and always read.
    assert!(count(&again, "objects_read") < 20, "{again}");
    assert!(count(&again, "objects_remembered") > 12, "{again}");
    assert_eq!(again["prepared"], first["prepared"]);
    let notes = again["notes"].to_string();
    assert!(notes.contains("objects were not read again"), "{again}");
    let notes = first["notes"].to_string();
    assert!(!notes.contains("not read again"), "{first}");
    // Another copy is not this one, however alike.
    let elsewhere = Copy::of(&archive);
    let output = verifier.run(&archive, &elsewhere.url(), true, &[]);
    let other = json(&output.expect_success());
    assert_eq!(count(&other, "objects_remembered"), 0, "{other}");
    let shallower = verify(0, &["--checksums"]);
    assert!(count(&shallower, "objects_remembered") > 12, "{shallower}");
    let all = verify(0, &["--backups", "--all"]);
    assert_eq!(count(&all, "objects_remembered"), 0, "{all}");
    // Nothing of it lies in the repository.
    let state = verifier.scratch.join(".local/state/walden");
    let files = fs::read_dir(&state).unwrap().flatten();
    let mut ours = files.map(|entry| entry.path()).filter(|path| {
        let text = fs::read_to_string(path).unwrap();
        text.contains(&copy.url())
    });
    let (file, more) = (ours.next().unwrap(), ours.next());
    assert_eq!(more, None);
    // What changes is read again, and what is wrong is told every time.
    let middle = archive.middle_segment();
    let key = archive.segment_key(&middle);
    let mut bytes = copy.read(&key);
    let last = bytes.len() - 5;
    bytes[last] ^= 1;
    copy.write(&key, &bytes);
    for _ in 0..2 {
        let damaged = verify(5, &["--checksums"]);
        assert_eq!(damaged["findings"][0]["object"], key.as_str(), "{damaged}");
        assert!(count(&damaged, "objects_remembered") > 12, "{damaged}");
    }
    bytes[last] ^= 1;
    copy.write(&key, &bytes);
    verify(0, &["--wal"]);
    // A broken or foreign state file only costs time.
    let good = fs::read_to_string(&file).unwrap();
    for broken in [
        good[..good.len() / 2].to_owned(),
        good.replace("\"format\":1", "\"format\":9"),
    ] {
        fs::write(&file, broken).unwrap();
        let document = verify(0, &["--wal"]);
        assert_eq!(count(&document, "objects_remembered"), 0, "{document}");
        assert!(
            document["notes"].to_string().contains("not known"),
            "{document}"
        );
        let after = verify(0, &["--wal"]);
        assert!(count(&after, "objects_remembered") > 5, "{after}");
    }
    // Only what recoveries to a later time need.
    let since = archive.second_backup_stopped();
    let document = verify(0, &["--wal", "--all", "--since", &since]);
    assert!(
        count(&document, "records") < count(&all, "records"),
        "{document}"
    );
    let labels: Vec<&Value> = document["backups"]
        .as_array()
        .unwrap()
        .iter()
        .map(|reach| &reach["backup"])
        .collect();
    assert!(
        labels
            .iter()
            .all(|label| **label == archive.labels[1].as_str()),
        "{document}"
    );
}
