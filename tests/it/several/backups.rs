//! Base backups with several repositories: each has one when `walden backup` ends, or is named.

use super::door::State;
use super::{Pair, terminate};

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

    pair.far.set(State::Shut);
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
    pair.far.set(State::Open);
    let status = pair.walden.run(["status"]).expect_code(3);
    assert!(
        status
            .stdout
            .contains("repository far lacks the newest backup"),
        "{status}"
    );
}
