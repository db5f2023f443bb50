//! The catalogue snapshot that each backup takes, held against the server's own answers, and `walden log` against a workload that is
//! written down outside the database.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod ddl;
mod object_store;
mod rows;
mod snapshot;
mod targets;

use crate::support::postgres::{Builder, Server};
use crate::support::process::{Output, Running};
use crate::support::restored::Restorer;
use crate::support::walden::{Walden, wait_until_stored};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

/// A server whose WAL is received, and somebody who knows a URL and a key.
struct Source {
    server: Server,
    /// The repository's folder.
    repository: PathBuf,
    archiver: Walden,
    restorer: Restorer,
    /// Receives as long as it is there.
    _run: Running,
}

impl Source {
    /// Folders whose names are hard to quote.
    fn start(builder: Builder, encrypted: bool) -> Self {
        let (mut restorer, builder) = Restorer::for_source(builder);
        let server = builder.start();
        let folder = server.scratch().join("wal \"den\" 50%f");
        fs::create_dir(&folder).unwrap();
        let repository = folder.join("re 'po\" größer");
        restorer.url = format!("file://{}", repository.display()).replace('%', "%25");
        let archiver = Walden::in_directory(&folder);
        let conninfo = server.conninfo();
        let mut arguments = vec!["init", &restorer.url, "--postgres", &conninfo];
        if !encrypted {
            arguments.push("--no-encryption");
        }
        archiver.run(arguments).expect_success();
        let key = folder.join("walden.key");
        restorer.identity = encrypted.then(|| format!("file:{}", key.display()));
        let run = archiver.receive(&server, ["run", "--rpo", "200ms"]);
        Self {
            server,
            repository,
            archiver,
            restorer,
            _run: run,
        }
    }

    fn backup(&self) -> Value {
        let arguments = ["backup", "--fast-checkpoint", "--json"];
        json(&self.archiver.run(arguments).expect_success())
    }

    fn wait_stored(&self) {
        wait_until_stored(&self.server);
    }
}

/// Inserted, updated, deleted.
type Counts = (u64, u64, u64);

/// One transaction as `walden log` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    xid: u32,
    commit_lsn: String,
    committed: String,
    database: Option<String>,
    /// By `schema.name`, or the file where the name is not known.
    rows: BTreeMap<String, Counts>,
    /// The same, of relations to which more happened.
    fates: BTreeMap<String, String>,
    is_complete: bool,
    lost: u64,
    json: Value,
}

impl Entry {
    fn new(json: &Value) -> Self {
        let text = |name: &str| json[name].as_str().map(str::to_owned);
        let (mut rows, mut fates) = (BTreeMap::new(), BTreeMap::new());
        for relation in json["relations"].as_array().unwrap() {
            let name = match (relation["schema"].as_str(), relation["name"].as_str()) {
                (Some(schema), Some(name)) => format!("{schema}.{name}"),
                _ => relation["file"]
                    .as_str()
                    .map_or_else(|| relation["oid"].to_string(), str::to_owned),
            };
            let count = |what: &str| relation["rows"][what].as_u64().unwrap();
            let counts = (count("inserted"), count("updated"), count("deleted"));
            if counts != (0, 0, 0) {
                assert_eq!(rows.insert(name.clone(), counts), None, "{json:#}");
            }
            if let Some(fate) = relation["fate"].as_str() {
                assert_eq!(fates.insert(name, fate.to_owned()), None, "{json:#}");
            }
        }
        Self {
            xid: u32::try_from(json["xid"].as_u64().unwrap()).unwrap(),
            commit_lsn: text("commit_lsn").unwrap(),
            committed: text("committed").unwrap(),
            database: text("database"),
            rows,
            fates,
            is_complete: json["is_complete"].as_bool().unwrap(),
            lost: json["target"]["transactions_lost"].as_u64().unwrap(),
            json: json.clone(),
        }
    }
}

fn json(output: &Output) -> Value {
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output}"))
}

/// `walden log` with only the repository and the key: its document.
#[track_caller]
fn document(source: &Source, arguments: &[&str]) -> Value {
    document_with_code(source, arguments, 0)
}

#[track_caller]
fn document_with_code(source: &Source, arguments: &[&str], code: i32) -> Value {
    let restorer = &source.restorer;
    let mut line = vec!["log", restorer.url.as_str(), "--json"];
    if let Some(identity) = &restorer.identity {
        line.extend(["--identity", identity.as_str()]);
    }
    line.extend(arguments);
    let document = json(&restorer.walden.run(line).expect_code(code));
    assert_eq!(
        (&document["schema"], &document["version"]),
        (&"walden.log".into(), &1.into())
    );
    document
}

/// The transactions it shows, newest first.
#[track_caller]
fn log(source: &Source, arguments: &[&str]) -> Vec<Entry> {
    let document = document(source, arguments);
    for transaction in document["transactions"].as_array().unwrap() {
        assert_eq!(transaction["target"]["transactions_lost_is"], "exact");
    }
    entries(&document)
}

fn entries(document: &Value) -> Vec<Entry> {
    let transactions = document["transactions"].as_array().unwrap();
    transactions.iter().map(Entry::new).collect()
}

/// Runs statements as one transaction; gives its number.
#[track_caller]
fn transaction(server: &Server, statements: &str) -> u32 {
    let printed = server.psql(&format!(
        "begin; {statements}; select 'xid ' || pg_current_xact_id(); commit"
    ));
    let xid = printed.lines().find_map(|line| line.strip_prefix("xid "));
    xid.unwrap_or_else(|| panic!("{statements}: {printed}"))
        .parse()
        .unwrap()
}

#[track_caller]
fn find(entries: &[Entry], xid: u32) -> &Entry {
    entries
        .iter()
        .find(|entry| entry.xid == xid)
        .unwrap_or_else(|| panic!("transaction {xid} is not in the log"))
}
