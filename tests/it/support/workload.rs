//! Clients that change a table through `psql`, one transaction at a time each, and write down what each transaction
//! was meant to do and what the server answered.

use super::postgres::Server;
use super::process::{self, send};
use super::s3::hex;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Between two transactions of a client: the machine is shared, and a flood tests nothing more.
const PAUSE: Duration = Duration::from_millis(1);
/// How long a transaction may still take once the workload is told to stop.
const STOP_DEADLINE: Duration = Duration::from_secs(15);

/// What a client knows about the end of its transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The server confirmed the commit.
    Committed,
    /// It was rolled back on purpose.
    RolledBack,
    /// The connection ended first.
    Unknown,
}

/// One transaction.
#[derive(Debug, Clone)]
pub(crate) struct Transaction {
    pub(crate) xid: u32,
    pub(crate) outcome: Outcome,
    /// Rows it leaves if it is committed: id and digest of the payload, or nothing if it deletes the row.
    pub(crate) effects: Vec<(i64, Option<String>)>,
}

/// Transactions; those of one client in their order. No two clients touch the same row, so that is order enough.
#[derive(Debug, Clone, Default)]
pub(crate) struct Journal {
    pub(crate) transactions: Vec<Transaction>,
}

impl Journal {
    pub(crate) fn count(&self, outcome: Outcome) -> usize {
        self.transactions
            .iter()
            .filter(|transaction| transaction.outcome == outcome)
            .count()
    }
}

/// Clients at work.
#[derive(Debug)]
pub(crate) struct Running {
    stop: Arc<AtomicBool>,
    finished: Arc<AtomicUsize>,
    clients: Vec<(u32, JoinHandle<Vec<Transaction>>)>,
}

impl Running {
    /// The rows of `run` have ids of their own.
    pub(crate) fn start(server: &Server, seed: u64, run: u64, clients: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let finished = Arc::new(AtomicUsize::new(0));
        let clients = (0..clients).map(|number| {
            let mut psql = server.psql_command();
            psql.stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null());
            let mut child = process::spawn(psql);
            let process = child.id();
            let first_id = i64::try_from(run << 48 | u64::from(number) << 32).expect("few runs");
            let mut client = Client {
                input: child.stdin.take().expect("stdin is piped"),
                output: BufReader::new(child.stdout.take().expect("stdout is piped")),
                random: Random::new(seed.wrapping_add(u64::from(number))),
                next_id: first_id,
                live: Vec::new(),
                done: Vec::new(),
            };
            let (stop, finished) = (Arc::clone(&stop), Arc::clone(&finished));
            let thread = std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) && client.transaction() {
                    finished.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(PAUSE);
                }
                let Client {
                    input,
                    output,
                    done,
                    ..
                } = client;
                drop((input, output));
                child.wait().expect("reap psql");
                done
            });
            (process, thread)
        });
        let clients = clients.collect();
        Self {
            stop,
            finished,
            clients,
        }
    }

    /// Transactions the server has answered so far.
    pub(crate) fn finished(&self) -> usize {
        self.finished.load(Ordering::Relaxed)
    }

    /// Waits until `count` more transactions are finished, and fails the test if that takes longer than `deadline`.
    #[track_caller]
    pub(crate) fn wait_for_more(&self, count: usize, deadline: Duration) {
        let enough = self.finished() + count;
        super::wait_until("transactions go on", deadline, || {
            (self.finished() >= enough).then_some(())
        });
    }

    /// Lets each client finish its transaction. One that hangs (a commit that waits for a standby) is cut off, and its
    /// outcome is unknown.
    pub(crate) fn stop(self) -> Journal {
        self.stop.store(true, Ordering::Relaxed);
        let until = Instant::now() + STOP_DEADLINE;
        let mut transactions = Vec::new();
        for (process, thread) in self.clients {
            while !thread.is_finished() {
                if Instant::now() > until {
                    send(process, rustix::process::Signal::KILL);
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            transactions.extend(thread.join().expect("no client panics"));
        }
        Journal { transactions }
    }
}

struct Client {
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    random: Random,
    next_id: i64,
    /// Own rows that are there, to change or delete.
    live: Vec<i64>,
    done: Vec<Transaction>,
}

impl Client {
    /// One transaction; false when the connection has ended.
    fn transaction(&mut self) -> bool {
        let mut effects = Vec::new();
        let mut sql = "begin;\n".to_owned();
        match self.random.below(100) {
            0..10 => self.delete(&mut sql, &mut effects),
            10..30 => self.update(&mut sql, &mut effects),
            30..40 => {
                self.insert(&mut sql, &mut effects);
                // A subtransaction that is undone: its row must never be seen.
                sql.push_str("savepoint undone;\n");
                self.insert(&mut sql, &mut Vec::new());
                sql.push_str("rollback to undone;\n");
            }
            40..45 => {
                sql.push_str("savepoint kept;\n");
                self.insert(&mut sql, &mut effects);
                sql.push_str("release kept;\n");
                self.insert(&mut sql, &mut effects);
            }
            _ => self.insert(&mut sql, &mut effects),
        }
        let commit = self.random.below(10) > 0;
        sql.push_str("select 'xid', pg_current_xact_id()::xid;\n");
        sql.push_str(if commit { "commit;\n" } else { "rollback;\n" });
        sql.push_str("\\echo end\n");
        // psql stops at the first error, so "end" means that every statement succeeded.
        if self.input.write_all(sql.as_bytes()).is_err() {
            return false;
        }

        let mut xid = None;
        let mut ended = false;
        let mut line = String::new();
        while !ended
            && self
                .output
                .read_line(&mut line)
                .is_ok_and(|length| length > 0)
        {
            if let Some(number) = line.trim_end().strip_prefix("xid|") {
                xid = number.parse().ok();
            }
            ended = line == "end\n";
            line.clear();
        }
        // Without an xid the end was never asked for, so nothing can have come of it.
        let Some(xid) = xid else { return false };
        let outcome = match (ended, commit) {
            (true, true) => Outcome::Committed,
            (true, false) => Outcome::RolledBack,
            (false, _) => Outcome::Unknown,
        };
        if outcome == Outcome::Committed {
            for (id, digest) in &effects {
                self.live.retain(|live| live != id);
                if digest.is_some() {
                    self.live.push(*id);
                }
            }
            // Old rows stay for good; the list is only what to choose from.
            let surplus = self.live.len().saturating_sub(200);
            self.live.drain(..surplus);
        }
        self.done.push(Transaction {
            xid,
            outcome,
            effects,
        });
        ended
    }

    fn insert(&mut self, sql: &mut String, effects: &mut Vec<(i64, Option<String>)>) {
        let id = self.next_id;
        self.next_id += 1;
        let payload = self.payload();
        writeln!(sql, "insert into walden_oracle values ({id}, '{payload}');").expect("a string");
        effects.push((id, Some(hex(&Sha256::digest(payload)))));
    }

    fn update(&mut self, sql: &mut String, effects: &mut Vec<(i64, Option<String>)>) {
        let Some(id) = self.choose() else {
            return self.insert(sql, effects);
        };
        let payload = self.payload();
        writeln!(
            sql,
            "update walden_oracle set payload = '{payload}' where id = {id};"
        )
        .expect("a string");
        effects.push((id, Some(hex(&Sha256::digest(payload)))));
    }

    fn delete(&mut self, sql: &mut String, effects: &mut Vec<(i64, Option<String>)>) {
        let Some(id) = self.choose() else {
            return self.insert(sql, effects);
        };
        writeln!(sql, "delete from walden_oracle where id = {id};").expect("a string");
        effects.push((id, None));
    }

    fn choose(&mut self) -> Option<i64> {
        let count = u64::try_from(self.live.len()).expect("a small list");
        if count == 0 {
            return None;
        }
        let index = usize::try_from(self.random.below(count)).expect("within the list");
        self.live.get(index).copied()
    }

    /// Mostly short; a few are so long that their WAL records cross pages and they are stored out of line.
    fn payload(&mut self) -> String {
        let words = match self.random.below(100) {
            0..3 => 2000 + self.random.below(3000),
            3..20 => 50 + self.random.below(150),
            _ => 1 + self.random.below(10),
        };
        (0..words).fold(String::new(), |mut text, _| {
            write!(text, "{:016x}", self.random.next()).expect("a string takes everything");
            text
        })
    }
}

/// A small generator (SplitMix64), so that a workload is the same for the same seed.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}
