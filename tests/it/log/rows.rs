//! Every transaction of a workload with concurrent clients is in the log with its rows per table, and none that did not happen.

use super::{Counts, Entry, Source, document, document_with_code, find, json, log, transaction};
use crate::support::postgres::{Builder, Server};
use crate::support::wal_dump::{Lsn, WalDump};
use crate::support::walden::Walden;
use crate::support::workload::Random;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What a client's transaction did, by table.
#[derive(Debug)]
struct Done {
    xid: u32,
    rows: BTreeMap<String, Counts>,
    /// The name it was prepared under.
    gid: Option<String>,
}

/// A client with a table of its own, whose rows have the ids `low..high`.
struct Client<'a> {
    server: &'a Server,
    number: u64,
    random: Random,
    low: u64,
    high: u64,
    done: Vec<Done>,
    rolled_back: Vec<u32>,
}

impl Client<'_> {
    fn table(&self) -> String {
        format!("c{}", self.number)
    }

    /// Inserts rows; every seventh is so long that it is stored out of line.
    fn insert(&mut self, count: u64) -> String {
        let from = self.high;
        self.high += count;
        format!(
            "insert into c{} select n, case n % 7 when 0 then (select string_agg(md5((n * m)::text), '') from generate_series(1, 200) m)
                                           else 'x' end from generate_series({from}, {}) n",
            self.number,
            self.high - 1
        )
    }

    fn act(&mut self) {
        let table = self.table();
        let count = 1 + self.random.below(20);
        let here = (self.high - self.low).min(1 + self.random.below(30));
        let (from, to) = (self.low, self.low + here);
        let rows = |counts: Counts| BTreeMap::from([(format!("public.{table}"), counts)]);
        let update = format!("update {table} set t = t || 'y' where id >= {from} and id < {to}");
        let (statements, rows) = match self.random.below(9) {
            0 => (self.insert(count), rows((count, 0, 0))),
            1 => (update, rows((0, here, 0))),
            2 => {
                self.low = to;
                let delete = format!("delete from {table} where id >= {from} and id < {to}");
                (delete, rows((0, 0, here)))
            }
            3 => {
                let (one, two) = (self.insert(3), self.insert(2));
                let statements = format!(
                    "{one}; savepoint s; delete from {table}; truncate {table}; rollback to s; savepoint t; {two}; release t"
                );
                (statements, rows((5, 0, 0)))
            }
            4 => (
                format!("savepoint s; {update}; savepoint t; {update}; release s"),
                rows((0, 2 * here, 0)),
            ),
            5 => {
                let printed = self.server.psql(&format!(
                    "begin; {update}; select 'xid ' || pg_current_xact_id(); rollback"
                ));
                let xid = printed.lines().find_map(|line| line.strip_prefix("xid "));
                self.rolled_back.push(xid.unwrap().parse().unwrap());
                return;
            }
            6 => {
                let mut both = rows((0, here, 0));
                both.insert("s.shared".into(), (2, 0, 0));
                let shared = "insert into s.shared values (1), (2)";
                (format!("{shared}; {update}"), both)
            }
            7 => (
                format!("copy copied{} from program 'seq 1 {count}'", self.number),
                BTreeMap::from([(format!("public.copied{}", self.number), (count, 0, 0))]),
            ),
            _ => {
                let gid = format!("two phases {} {}", self.number, self.high);
                let insert = self.insert(count);
                let printed = self.server.psql(&format!(
                    "begin; {insert}; select 'xid ' || pg_current_xact_id(); prepare transaction '{gid}'"
                ));
                let xid = printed.lines().find_map(|line| line.strip_prefix("xid "));
                self.server.psql(&format!("commit prepared '{gid}'"));
                self.done.push(Done {
                    xid: xid.unwrap().parse().unwrap(),
                    rows: rows((count, 0, 0)),
                    gid: Some(gid),
                });
                return;
            }
        };
        // An update or delete that finds no row still has a number, but nothing to show.
        let rows = rows
            .into_iter()
            .filter(|(_, counts)| *counts != (0, 0, 0))
            .collect();
        let xid = transaction(self.server, &statements);
        self.done.push(Done {
            xid,
            rows,
            gid: None,
        });
    }
}

fn every_row_is_in_the_log(builder: Builder, encrypted: bool) {
    let builder = builder
        .wal_segment_mib(1)
        .setting("autovacuum = off")
        .setting("max_prepared_transactions = 8");
    let source = Source::start(builder, encrypted);
    let server = &source.server;
    server.psql("create schema s; create table s.shared (n int)");
    for number in 0..3 {
        server.psql(&format!(
            "create table c{number} (id bigint primary key, t text); create table copied{number} (n int)"
        ));
    }
    source.backup();
    let start = server.psql("select pg_current_wal_insert_lsn()");

    // Open from before everything else to its end.
    let long = std::thread::scope(|scope| {
        let long = scope.spawn(|| {
            let xid = transaction(
                server,
                "create temp table unseen (n int); insert into s.shared values (7); select pg_sleep(4); delete from s.shared where n = 7",
            );
            Done {
                xid,
                rows: BTreeMap::from([("s.shared".into(), (1, 0, 1))]),
                gid: None,
            }
        });
        let clients: Vec<_> = (0..3)
            .map(|number| {
                scope.spawn(move || {
                    let mut client = Client {
                        server,
                        number,
                        random: Random::new(number),
                        low: 0,
                        high: 0,
                        done: Vec::new(),
                        rolled_back: Vec::new(),
                    };
                    for round in 0..40 {
                        if number == 0 && round % 10 == 9 {
                            server.psql("select pg_switch_wal()");
                        }
                        client.act();
                    }
                    (client.done, client.rolled_back)
                })
            })
            .collect();
        let mut done = Vec::new();
        let mut rolled_back = Vec::new();
        for client in clients {
            let (mine, undone) = client.join().unwrap();
            done.extend(mine);
            rolled_back.extend(undone);
        }
        done.push(long.join().unwrap());
        (done, rolled_back)
    });
    let (done, rolled_back) = long;
    source.wait_stored();
    let dump = WalDump::of_server(server, Lsn::parse(&start));
    let range = format!("{start}..");
    let whole = document(&source, &["--last", "1000", "--lsn", &range]);
    assert_eq!(whole["holes"], serde_json::json!([]));
    let found = super::entries(&whole);

    let touched =
        |entry: &&Entry| entry.database.as_deref() == Some("postgres") && !entry.rows.is_empty();
    let logged: BTreeSet<u32> = found
        .iter()
        .filter(touched)
        .map(|entry| entry.xid)
        .collect();
    let expected: BTreeSet<u32> = done
        .iter()
        .filter(|done| !done.rows.is_empty())
        .map(|done| done.xid)
        .collect();
    assert_eq!(logged, expected, "both ways");
    assert!(expected.len() > 90 && rolled_back.len() > 3);
    assert!(done.iter().any(|done| done.gid.is_some()));
    for done in done.iter().filter(|done| !done.rows.is_empty()) {
        let entry = find(&found, done.xid);
        let kept: BTreeMap<String, Counts> = entry
            .rows
            .iter()
            .filter(|(name, _)| !name.starts_with("pg_toast."))
            .map(|(name, counts)| (name.clone(), *counts))
            .collect();
        assert_eq!(kept, done.rows, "{:#}", entry.json);
        // With wal_level = replica the commit does not carry it.
        assert_eq!(entry.json["gid"].as_str(), done.gid.as_deref());
        assert!(entry.is_complete, "{:#}", entry.json);
    }
    for xid in rolled_back {
        assert!(
            !found.iter().any(|entry| entry.xid == xid),
            "{xid} was rolled back"
        );
    }

    // Where and when each committed, in which order, and how many after it: as pg_waldump says.
    let commits: Vec<_> = dump.ends.iter().filter(|end| end.committed).collect();
    assert_eq!(found.len(), commits.len());
    for (index, (entry, end)) in found.iter().zip(commits.iter().rev()).enumerate() {
        assert_eq!(entry.xid, end.xid);
        assert_eq!(Lsn::parse(&entry.commit_lsn), end.start);
        assert_eq!(
            entry.committed.parse::<jiff::Timestamp>().unwrap(),
            end.time
        );
        if entry.json["target"]["because"] == "commit" {
            assert_eq!(entry.lost as usize, index, "{:#}", entry.json);
        }
    }
    let spans = |entry: &Entry| {
        let first = Lsn::parse(entry.json["start_lsn"].as_str().unwrap());
        (first, Lsn::parse(&entry.commit_lsn))
    };
    let open = |entry: &Entry| entry.json["subtransactions"] == 0;
    assert!(found.iter().any(open));
    let (first, last) = spans(find(&found, long_xid(&found)));
    assert!(first < last);

    // Selections are what they say of the same transactions.
    let same = |arguments: &[&str], wanted: &dyn Fn(&Entry) -> bool| {
        let mut arguments = arguments.to_vec();
        arguments.extend(["--last", "1000"]);
        let selected: Vec<u32> = log(&source, &arguments)
            .iter()
            .filter(|entry| Lsn::parse(&entry.commit_lsn) >= Lsn::parse(&start))
            .map(|entry| entry.xid)
            .collect();
        let wanted: Vec<u32> = found
            .iter()
            .filter(|entry| wanted(entry))
            .map(|entry| entry.xid)
            .collect();
        assert!(!wanted.is_empty(), "{arguments:?}");
        assert_eq!(selected, wanted, "{arguments:?}");
    };
    let middle = &found[found.len() / 2];
    let (xid, commit) = (middle.xid.to_string(), middle.commit_lsn.as_str());
    same(&["--xid", &xid], &|entry| entry.xid == middle.xid);
    let here = Lsn::parse(commit);
    same(&["--lsn", &format!("{commit}..")], &|entry| {
        Lsn::parse(&entry.commit_lsn) >= here
    });
    let deleted = |entry: &Entry| entry.rows.values().map(|counts| counts.2).sum::<u64>();
    same(&["--deletes-over", "5"], &|entry| deleted(entry) > 5);
    let shared = |entry: &Entry| entry.rows.contains_key("s.shared");
    same(&["--relation", "s.shared"], &shared);
    same(&["--relation", "postgres.s.shared"], &shared);
    same(&["--relation", "shared"], &shared);
    let moment: jiff::Timestamp = middle.committed.parse().unwrap();
    let time = |entry: &Entry| entry.committed.parse::<jiff::Timestamp>().unwrap();
    same(&["--since", &middle.committed], &|entry| {
        time(entry) >= moment
    });
    // How many follow is not counted one by one then.
    let until = document(&source, &["--until", &middle.committed, "--last", "1000"]);
    let until: Vec<u64> = until["transactions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["xid"].as_u64().unwrap())
        .collect();
    let wanted: Vec<u64> = found
        .iter()
        .filter(|entry| time(entry) <= moment)
        .map(|entry| u64::from(entry.xid))
        .collect();
    assert_eq!(until[..wanted.len()], wanted);
    let newest = log(&source, &["--last", "7"]);
    assert_eq!(newest, found[..7]);

    // The same from the server's own files, without names.
    let folder = source.server.scratch().join("segments");
    fs::create_dir(&folder).unwrap();
    for entry in fs::read_dir(server.wal_directory()).unwrap().flatten() {
        if entry.file_name().len() == 24 {
            fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
        }
    }
    let walden = Walden::in_directory(source.server.scratch());
    let plain = walden.run([
        "log",
        "--wal-dir",
        folder.to_str().unwrap(),
        "--json",
        "--last",
        "1000",
        "--lsn",
        &range,
    ]);
    let plain = super::entries(&json(&plain.expect_success()));
    assert_eq!(plain.len(), found.len());
    for (plain, named) in plain.iter().zip(&found) {
        assert_eq!(
            (plain.xid, &plain.commit_lsn, plain.lost),
            (named.xid, &named.commit_lsn, named.lost)
        );
        let sum = |entry: &Entry| {
            entry
                .rows
                .values()
                .map(|counts| counts.0 + counts.1 + counts.2)
                .sum::<u64>()
        };
        assert!(sum(plain) >= sum(named));
        assert!(
            plain.rows.keys().all(|name| name.split('/').count() == 3),
            "{plain:?}"
        );
    }
    a_hole_is_said(&source, &found, &range);
}

/// A segment in the middle is lost: it is said, and what lies on both sides of it is shown.
fn a_hole_is_said(source: &Source, found: &[Entry], range: &str) {
    let mut segments: Vec<_> = walk(&source.repository)
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "wal"))
        .collect();
    segments.sort();
    let lost = &segments[segments.len() - 2];
    let number = lost.file_stem().unwrap().to_str().unwrap();
    let start = u64::from_str_radix(&number[16..], 16).unwrap() << 20;
    let hole = start..start + (1 << 20);
    fs::remove_file(lost).unwrap();
    let arguments = ["--last", "1000", "--lsn", range];
    let document = document_with_code(source, &arguments, 5);
    let problems = document["problems"].to_string();
    assert!(problems.contains(number), "{problems}");
    // What was read is said without it.
    let lsn = |json: &serde_json::Value| Lsn::parse(json.as_str().unwrap()).0;
    let holes = document["holes"].as_array().unwrap();
    assert_eq!(holes.len(), 1, "{holes:?}");
    // Chunks may have the lost segment's beginning.
    assert!(hole.contains(&lsn(&holes[0]["from_lsn"])), "{holes:?}");
    assert_eq!(lsn(&holes[0]["to_lsn"]), hole.end);
    assert!(lsn(&document["from_lsn"]) < hole.start && hole.end < lsn(&document["to_lsn"]));
    let restorer = &source.restorer;
    let mut line = vec![
        "log",
        restorer.url.as_str(),
        "--last",
        "1000",
        "--lsn",
        range,
    ];
    if let Some(identity) = &restorer.identity {
        line.extend(["--identity", identity.as_str()]);
    }
    let text = restorer.walden.run(line).expect_code(5).stdout;
    let but = format!(
        "was read, BUT NOT from {}",
        holes[0]["from_lsn"].as_str().unwrap()
    );
    assert!(text.contains(&but), "{text}");
    let seen = super::entries(&document);
    // A commit record may reach over the segment's end.
    let outside = |entry: &&Entry| {
        let commit = Lsn::parse(&entry.commit_lsn).0;
        !hole.contains(&commit) && !hole.contains(&(commit + 4096))
    };
    let expected: Vec<u32> = found
        .iter()
        .filter(outside)
        .map(|entry| entry.xid)
        .collect();
    let seen: Vec<u32> = seen.iter().filter(outside).map(|entry| entry.xid).collect();
    assert_eq!(seen, expected);
    assert!(expected.len() < found.len(), "something was lost");
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().flatten();
    entries
        .flat_map(|entry| match entry.file_type().unwrap().is_dir() {
            true => walk(&entry.path()),
            false => vec![entry.path()],
        })
        .collect()
}

fn long_xid(found: &[Entry]) -> u32 {
    let long = found
        .iter()
        .find(|entry| entry.rows.get("s.shared") == Some(&(1, 0, 1)));
    long.expect("the long one").xid
}

#[test]
fn every_row_is_in_the_log_on_18() {
    every_row_is_in_the_log(Server::builder(18), true);
}

#[test]
fn every_row_is_in_the_log_on_15_without_encryption() {
    every_row_is_in_the_log(Server::builder(15).setting("wal_level = logical"), false);
}
