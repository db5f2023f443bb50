//! How long a COMMIT takes that waits for `walden run` with `rpo = "sync"`, beside one that waits for `pg_receivewal --synchronous` on the
//! same server, in turns: a folder on the same disk, and an S3 server on the same machine. Latencies as `pgbench` logs them.
//!
//! Ratios count: the disk is the machine's, and fsync decides. `walden run` flushes a file and the folder it is in; `pg_receivewal` flushes
//! one file that is there already.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench prints, and fails by panicking"
)]

#[path = "../tests/it/site.rs"]
#[expect(dead_code, reason = "the tests use the rest")]
mod site;
#[path = "../tests/it/support/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the tests use the rest")]
mod support;

use rustix::process::Signal;
use site::{Place, Plan, Site};
use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;
use support::object_store::Bucket;
use support::postgres::Server;
use support::process::Running;
use support::wait_until;

const DEADLINE: Duration = Duration::from_secs(60);
/// Turns of each contender; the first numbers of clients are measured in each.
const TURNS: usize = 3;
const CLIENTS: [&str; 2] = ["1", "8"];
/// Seconds of one figure in one turn.
const SECONDS: &str = "1";
const REFERENCE: &str = "pg_receivewal --synchronous";

/// Whom commits wait for.
#[derive(Clone, Copy)]
enum Contender {
    Nobody,
    Reference,
    Folder,
    Bucket,
}

const CONTENDERS: [(&str, Contender); 4] = [
    ("nobody (local flush)", Contender::Nobody),
    (REFERENCE, Contender::Reference),
    ("walden run, folder", Contender::Folder),
    ("walden run, S3", Contender::Bucket),
];

/// Two repositories of one server, each with a slot of its own.
struct Bench {
    server: Server,
    bucket: Site,
    folder: Site,
}

impl Bench {
    fn start() -> Self {
        let server = Server::builder(18)
            .setting("fsync = on")
            .setting("synchronous_commit = local")
            .start();
        server.psql("create table bench_commits (id int, payload text)");
        let store = Bucket::new();
        let plan = |place| Plan {
            rpo: "sync",
            place,
            ..Plan::default()
        };
        let bucket = Site::new(&server, plan(Place::Bucket(&store)));
        let directory = server.scratch().join("walden");
        fs::rename(directory.join("walden.toml"), directory.join("bucket.toml")).unwrap();
        let folder = Site::new(&server, plan(Place::Folder));
        let script = "insert into bench_commits values (1, repeat('x', 100));\n";
        fs::write(server.scratch().join("script"), script).unwrap();
        Self {
            server,
            bucket,
            folder,
        }
    }

    /// Latencies in milliseconds, by number of clients.
    fn turn(&self, contender: Contender) -> Vec<Vec<f64>> {
        let name = match contender {
            Contender::Nobody => return self.measure("local"),
            Contender::Reference => "pg_receivewal",
            Contender::Folder | Contender::Bucket => "walden",
        };
        self.server.psql(&format!(
            "alter system set synchronous_standby_names = '{name}';\nselect pg_reload_conf()"
        ));
        let (receiver, signal) = match contender {
            Contender::Folder => (
                self.folder.walden.receive(&self.server, ["run"]),
                Signal::TERM,
            ),
            Contender::Bucket => {
                let arguments = ["run", "--config", "bucket.toml", "--slot", "walden_s3"];
                (
                    self.bucket.walden.receive(&self.server, arguments),
                    Signal::TERM,
                )
            }
            Contender::Nobody | Contender::Reference => (self.reference(), Signal::INT),
        };
        let state =
            format!("select sync_state from pg_stat_replication where application_name = '{name}'");
        wait_until("commits wait", DEADLINE, || {
            (self.server.psql(&state) == "sync").then_some(())
        });
        let latencies = self.measure("on");
        receiver.signal(signal);
        receiver.wait(DEADLINE).expect_success();
        latencies
    }

    fn reference(&self) -> Running {
        let directory = self.server.scratch().join("received");
        let mut receive = self.server.client("pg_receivewal");
        receive
            .arg("--synchronous")
            .arg("-D")
            .arg(&directory)
            .args(["--slot", "reference"]);
        if !directory.exists() {
            fs::create_dir(&directory).unwrap();
            self.server
                .psql("select pg_create_physical_replication_slot('reference', true)");
        }
        Running::start(receive)
    }

    fn measure(&self, synchronous_commit: &str) -> Vec<Vec<f64>> {
        let measure = |clients: &&str| {
            let logs = tempfile::tempdir_in(self.server.scratch()).unwrap();
            let mut pgbench = self.server.client("pgbench");
            pgbench.env(
                "PGOPTIONS",
                format!("-c synchronous_commit={synchronous_commit}"),
            );
            pgbench.args(["-n", "-c", clients, "-T", SECONDS, "-l"]);
            pgbench.arg(format!(
                "--log-prefix={}",
                logs.path().join("log").display()
            ));
            pgbench.arg("-f").arg(self.server.scratch().join("script"));
            support::process::run(pgbench, DEADLINE).expect_success();
            let mut latencies = Vec::new();
            for log in fs::read_dir(logs.path()).unwrap() {
                let text = fs::read_to_string(log.unwrap().path()).unwrap();
                // Client, transaction, microseconds, …
                let third =
                    |line: &str| line.split(' ').nth(2).unwrap().parse::<f64>().unwrap() / 1e3;
                latencies.extend(text.lines().map(third));
            }
            latencies
        };
        CLIENTS.iter().map(measure).collect()
    }
}

fn main() {
    let bench = Bench::start();
    let mut latencies: BTreeMap<(usize, usize), Vec<f64>> = BTreeMap::new();
    for _ in 0..TURNS {
        for (row, (_, contender)) in CONTENDERS.iter().enumerate() {
            for (column, more) in bench.turn(*contender).into_iter().enumerate() {
                latencies.entry((row, column)).or_default().extend(more);
            }
        }
    }
    for (column, clients) in CLIENTS.iter().enumerate() {
        let mut figures = Vec::new();
        for (row, (name, _)) in CONTENDERS.iter().enumerate() {
            let values = latencies.get_mut(&(row, column)).unwrap();
            values.sort_by(f64::total_cmp);
            let at = |share: f64| values[(share * (values.len() - 1) as f64).round() as usize];
            figures.push((*name, values.len(), at(0.5), at(0.99)));
        }
        let reference = figures.iter().find(|figure| figure.0 == REFERENCE).unwrap();
        let (reference_p50, reference_p99) = (reference.2, reference.3);
        println!(
            "{:<34} {:>8} {:>10} {:>10} {:>14}",
            format!("COMMIT latency, {clients} client(s)"),
            "commits",
            "p50 ms",
            "p99 ms",
            "of pg_receivewal"
        );
        for (name, count, p50, p99) in figures {
            println!(
                "  {name:<32} {count:>8} {p50:>10.2} {p99:>10.2} {:>7.2} {:>6.2}",
                p50 / reference_p50,
                p99 / reference_p99
            );
        }
    }
}
