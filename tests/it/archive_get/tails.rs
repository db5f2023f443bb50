//! Tail chunks, and the bounds that the plan of a restore or a standby's newer timeline set.

use super::branched::{Branched, Changed, Hook};
use super::{ABSENT, SIZE, UNPROVEN, timeline};
use crate::support::walden::Walden;
use repository::descriptor::WalDescriptor;
use repository::key::ObjectKey;
use std::fs;
use wal_format::SegmentName;

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
    // One that contradicts another process's, which has all of its bytes, too. (A process's own are replaced by its later ones.)
    let key = ObjectKey::Tail {
        cluster: site.cluster,
        name: last,
        from: 100,
        to: 200,
        writer: 8,
    };
    let wal = WalDescriptor {
        start_lsn: start.saturating_add(100),
        end_lsn: start.saturating_add(200),
        lineage: site.lineage(last.timeline),
        ..WalDescriptor::default()
    };
    site.put(key.clone(), &other[9000..9100], wal, site.seal.clone());
    hook.fails(last, UNPROVEN, "differs from other chunks");
    fs::remove_file(site.object(&key)).expect("remove a chunk");
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
