//! Restores from two repositories, of which the first dies, lies or lacks.

use super::world::World;
use crate::support::door::{Door, Way};
use crate::support::oracle::{assert_same_rows, rows};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// One byte of the second half of an object is another one from now on.
fn flip(path: &Path) {
    let mut bytes = fs::read(path).expect("read an object");
    let middle = bytes.len() * 3 / 4;
    bytes[middle] ^= 0x10;
    fs::remove_file(path).expect("remove an object");
    fs::write(path, bytes).expect("write an object");
}

pub(super) fn fell_over(said: &Value) -> Vec<(String, String, String)> {
    let named = said["repositories"]["fell_over"].as_array();
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    named
        .expect("a list")
        .iter()
        .map(|one| {
            (
                text(&one["repository"]),
                text(&one["object"]),
                text(&one["taken_from"]),
            )
        })
        .collect()
}

#[test]
fn a_restore_goes_on_when_its_first_repository_dies() {
    let world = World::new(41);
    let expected = world.latest();
    let (_, second) = world.copy_to("second");
    let door = Door::before(&world.bucket);
    world.configure_behind(&door, &second);

    // How much comes from the first when all is well.
    let before = door.passed();
    let plan = ["--to", "latest", "--dry-run"];
    let (_, output) = world.restore("never", &plan, 0);
    let plan = output.json();
    let planning = door.passed() - before;
    let stored = plan["stored_bytes"].as_u64().expect("bytes");
    assert!(planning > 0 && stored > 500_000, "{planning} {stored}");

    // In the middle of the backup.
    door.set_after(planning + stored / 2, Way::Shut);
    let (restored, output) = world.restore("laying", &["--to", "latest", "--action", "promote"], 0);
    assert_eq!(door.way(), Way::Shut, "it never died");
    let parts: Vec<_> = fell_over(&restored.said);
    let is_part = |(from, object, to): &(String, String, String)| {
        (from.as_str(), to.as_str()) == ("first", "second") && object.contains("/backups/")
    };
    assert!(parts.iter().any(is_part), "{parts:?}\n{}", output.stderr);
    assert_same_rows("died in the backup", &expected, &rows(&restored.client));
    World::end(&restored);

    // During replay: the backup is laid out, and the hooks ask.
    door.set(Way::Open);
    // (Its first part is read twice: for what it says, and to be laid out.)
    door.set_after(planning + 2 * stored + 300_000, Way::Shut);
    let (restored, output) = world.restore("replaying", &["--to", "latest"], 0);
    assert_eq!(door.way(), Way::Shut, "it never died");
    let parts = fell_over(&restored.said);
    assert!(!parts.iter().any(is_part), "{parts:?}");
    let hooks = World::hooks_said(&restored);
    assert!(
        hooks.contains("a repository does not answer") && hooks.contains(r#"taken_from="second""#),
        "{hooks}\n{}",
        output.stderr
    );
    assert!(restored.is_paused());
    assert_same_rows("died in the WAL", &expected, &rows(&restored.client));
    World::end(&restored);

    // Not there from the start: said, since what it alone holds could be newer.
    let (restored, output) =
        world.restore("without", &["--to", "latest", "--action", "promote"], 3);
    let said = output.json();
    assert_eq!(said["repositories"]["unanswered"][0]["repository"], "first");
    assert!(
        output.stderr.contains("repository first did not answer"),
        "{}",
        output.stderr
    );
    assert_same_rows("never there", &expected, &rows(&restored.client));
}

#[test]
fn what_is_damaged_or_missing_in_one_comes_from_the_other_and_is_said() {
    let world = World::new(42);
    let expected = world.latest();
    let ((first, first_url), (second, second_url)) =
        (world.copy_to("first"), world.copy_to("second"));
    world.configure(
        &[("first", &first_url, None), ("second", &second_url, None)],
        "5s",
    );
    let segments = world.segments(&first);
    let name = |path: &Path| {
        let name = path.file_stem().and_then(|name| name.to_str());
        name.expect("a segment's name").to_owned()
    };
    // The last two sealed ones, which every restore to the end reads.
    let [.., damaged, missing] = segments.as_slice() else {
        panic!("{segments:?}");
    };
    flip(damaged);
    fs::remove_file(missing).expect("remove a segment");
    let backups = first.join(&world.cluster).join("backups");
    let backup = fs::read_dir(&backups).expect("list").flatten().next();
    let backup = backup.expect("a backup").path();
    flip(&backup.join("base.000000"));
    fs::remove_file(backup.join("manifest")).expect("remove the manifest");

    let (restored, output) = world.restore("mended", &["--to", "latest", "--action", "promote"], 0);
    assert_same_rows("from both", &expected, &rows(&restored.client));
    let said = fell_over(&restored.said);
    for object in ["base.000000", "manifest"] {
        let named = said.iter().any(|(from, named, to)| {
            named.ends_with(object) && (from.as_str(), to.as_str()) == ("first", "second")
        });
        assert!(named, "{object}: {said:?}\n{}", output.stderr);
    }
    let hooks = World::hooks_said(&restored);
    for path in [damaged, missing] {
        let line = hooks.lines().find(|line| {
            line.contains("taken from another repository") && line.contains(&name(path))
        });
        let line = line.unwrap_or_else(|| panic!("{}: {hooks}", name(path)));
        assert!(line.contains(r#"taken_from="second""#), "{line}");
    }
    World::end(&restored);
    drop(restored);

    // `--repository` reads one of them alone.
    world.restore(
        "alone",
        &["--to", "latest", "--repository", "second", "--dry-run"],
        0,
    );
    let (_, output) = world.restore("alone", &["--to", "latest", "--repository", "third"], 2);
    assert!(
        output.stderr.contains("known are: first, second"),
        "{}",
        output.stderr
    );
    world.restore("alone", &["--to", "latest", "--repository", "first"], 5);

    // What neither has is missing, and refused before anything is written.
    fs::remove_file(second.join(missing.strip_prefix(&first).expect("below")))
        .expect("remove a segment");
    let (restored, output) = world.restore("hole", &["--to", "latest"], 5);
    assert!(output.stderr.contains(&name(missing)), "{}", output.stderr);
    assert!(!restored.data.exists());
    let far = ["--to-lsn", "FF/0", "--dry-run"];
    let (_, output) = world.restore("far", &far, 5);
    assert!(output.stderr.contains(&name(missing)), "{}", output.stderr);
    let (_, output) = world.restore("past", &["--to", "2001-01-01T00:00:00Z"], 4);
    assert!(!output.stderr.is_empty());
}
