//! Each answer outside a restore, and everything that must not become one: holes, objects that are not what they should be, and
//! surroundings in which nothing can be known.

use super::branched::{Branched, Changed, Hook};
use super::{ABSENT, DESTINATION, SERVED, SIZE, UNPROVEN};
use crate::support::ports::Port;
use crate::support::process::{self, COMMAND_DEADLINE};
use crate::support::walden::Walden;
use repository::descriptor::WalDescriptor;
use repository::identity::generate_identity;
use repository::sealed::SealPolicy;
use repository::wal::lineage;
use std::fs;
use std::time::Duration;
use wal_format::SegmentNumber;

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
