//! Base backups with several repositories: each has one when `walden backup` ends, or is named; and what `list` and `status` say of each.

use super::{Pair, terminate};
use crate::support::door::Way;
use crate::support::walden::wait_until_stored;
use serde_json::json;
use std::time::{Duration, Instant};

#[test]
fn a_backup_stands_in_each_repository_or_the_lack_of_it_is_told() {
    let pair = Pair::new("\"any\"", 1);
    let run = pair.archive();
    let backup = ["backup", "--fast-checkpoint", "--json"];
    let taken = pair.walden.run(backup).expect_code(0).json();
    assert_eq!(taken["copies"][0]["problem"], serde_json::Value::Null);
    let descriptor = format!(
        "/backups/{}/backup.json",
        taken["label"].as_str().expect("a label")
    );
    let is_far = |descriptor: &str| {
        let paths = pair.far_paths();
        paths.iter().any(|path| path.ends_with(descriptor))
    };
    assert!(is_far(&descriptor), "{:?}", pair.far_paths());

    pair.far.set(Way::Shut);
    let alone = pair.walden.run(backup).expect_code(3).json();
    assert_eq!(alone["copies"][0]["repository"], "far", "{alone}");
    assert!(alone["copies"][0]["problem"].is_string(), "{alone}");
    let descriptor = format!(
        "/backups/{}/backup.json",
        alone["label"].as_str().expect("a label")
    );
    assert!(!is_far(&descriptor));
    // Without `run` nobody fills it up.
    terminate(run);
    pair.far.set(Way::Open);
    let status = pair.walden.run(["status"]).expect_code(3);
    assert!(
        status
            .stdout
            .contains("repository far lacks the newest backup"),
        "{status}"
    );
    let (first, second) = (&taken["label"], &alone["label"]);
    let listed = pair.walden.run(["list", "--json"]).expect_code(3).json();
    let backups = listed["backups"].as_array().expect("a list");
    let where_of = |label: &serde_json::Value| {
        let backup = backups.iter().find(|backup| backup["label"] == *label);
        backup.expect("it is listed")["repositories"].clone()
    };
    assert_eq!(backups.len(), 2, "{listed}");
    assert_eq!(where_of(first), json!(["near", "far"]), "{listed}");
    assert_eq!(where_of(second), json!(["near"]), "{listed}");
    let lacks = |number: usize| &listed["repositories"][number]["lacks"];
    assert_eq!((lacks(0), lacks(1)), (&json!([]), &json!([second])));
    let text = pair.walden.run(["list"]).expect_code(3);
    let line = format!("repository far lacks {}", second.as_str().expect("a label"));
    assert!(text.stdout.contains(&line), "{text}");
    let near = ["list", "--repository", "near"];
    pair.walden.run(near).expect_success();

    // One that hangs keeps nobody from the other.
    pair.far.set(Way::Held);
    let begun = Instant::now();
    let listed = pair.walden.run(["list", "--json"]).expect_code(3).json();
    assert!(begun.elapsed() < Duration::from_secs(60));
    let (seen, unseen) = (&listed["repositories"], &listed["unseen"]);
    assert_eq!(seen.as_array().map(Vec::len), Some(1), "{listed}");
    assert_eq!(seen[0]["name"], "near", "{listed}");
    assert_eq!(unseen[0]["repository"], "far", "{listed}");
    assert!(unseen[0]["problem"].is_string(), "{listed}");
}

#[test]
fn what_a_failover_left_in_one_repository_alone_is_told_with_its_name() {
    let mut pair = Pair::new("'any'", 1);
    let run = pair.archive();
    let backup = ["backup", "--fast-checkpoint"];
    pair.walden.run(backup).expect_success();
    pair.write("kept", 4);
    let kept_to = pair.server.psql("select pg_current_wal_flush_lsn()");
    pair.write("lost_in_both", 1);
    wait_until_stored(&pair.server);
    pair.wait_until_same();
    pair.far.set(Way::Shut);
    pair.write("lost", 1);
    wait_until_stored(&pair.server);
    terminate(run);
    pair.far.set(Way::Open);

    // Somebody goes live with a part of what the far one has.
    pair.restorer.url = pair.bucket.url("far");
    let promote = ["--to-lsn", &kept_to, "--action", "promote"];
    let promoted = pair.restorer.restore("promoted", &promote);
    let conninfo = promoted.client.conninfo();
    let status = |more: &[&str]| {
        let arguments = ["status", "--postgres", &conninfo];
        pair.walden.run(arguments.iter().chain(more))
    };
    let told = status(&["--json"]).json();
    let left = &told["left_behind"];
    assert_eq!(left.as_array().map(Vec::len), Some(1), "{told}");
    assert_eq!(left[0]["timeline"], 1, "{told}");
    assert_eq!(left[0]["repositories"], json!(["near"]), "{told}");
    assert!(left[0]["commits"].as_u64() > Some(0), "{told}");
    let text = status(&[]);
    assert!(text.stdout.contains("not all of it, in far"), "{text}");
    // The far one is not the reason to say nothing.
    pair.far.set(Way::Shut);
    let told = status(&["--json"]).json();
    assert_eq!(told["left_behind"][0]["repositories"], json!(["near"]));
}
