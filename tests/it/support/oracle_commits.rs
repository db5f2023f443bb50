//! The judge of lost commits: clients in processes of their own, each of which writes down, flushed to disk, that a COMMIT returned
//! before it issues the next one; and what of that a recovered server must have. Owns the clients and the verdict, not what a loss
//! means: in one mode none is allowed, in another some seconds are.

use super::postgres::Server;
use super::process::{COMMAND_DEADLINE, Running, command};
use super::wait_until;
use super::workload::Random;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// Settings of a server that these clients work on: prepared transactions, and commits of others that wait for nobody.
pub(crate) const SETTINGS: [&str; 2] = [
    "max_prepared_transactions = 20",
    "synchronous_commit = local",
];

/// More steps than a client takes in any test.
const STEPS: u32 = 20_000;
/// Bytes that a row's payload is a multiple of.
const UNIT: u64 = 32;

/// A client: reads its steps from a file, and has `psql` take one at a time. `returned` is what psql says when the server has confirmed
/// every statement of a step; `sync` is a process of its own, and so the log is on disk before the next step begins.
const CLIENT: &str = r#"
set -u
trap '' PIPE
plan=$1 log=$2
shift 2
exec 4>>"$log"
coproc PSQL { exec "$@" 2>/dev/null; }
exec 5<&"${PSQL[0]}" 6>&"${PSQL[1]}"
step=0
while IFS= read -r sql <&3; do
  printf '%s\n\\echo returned\n' "$sql" >&6 2>/dev/null || exit 0
  answer=
  while [ "$answer" != returned ]; do IFS= read -r answer <&5 || exit 0; done
  printf '%s %s\n' "$step" "$EPOCHREALTIME" >&4
  sync -d "$log" || exit 1
  step=$((step + 1))
done 3<"$plan"
"#;

/// What a client does in one step. A row is known by its client and the step that makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Commits a row of so many bytes.
    Insert(u64),
    /// Prepares a transaction with a row of so many bytes.
    Prepare(u64),
    /// Commits what was prepared in that step.
    CommitPrepared(u32),
    /// Ends the WAL segment.
    Switch,
}

/// How clients work.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    pub(crate) clients: u32,
    /// A commit takes more than this now and then; nothing longer than a page if 0.
    pub(crate) segment_bytes: u64,
    /// Between a step and the next.
    pub(crate) pause: Duration,
}

/// Clients at work.
#[derive(Debug)]
pub(crate) struct Committers {
    clients: Vec<Client>,
}

#[derive(Debug)]
struct Client {
    number: u32,
    steps: Vec<Step>,
    log: PathBuf,
    process: Running,
}

/// What the clients had written down when the server was gone: for each its steps, and when each one's end was known.
#[derive(Debug)]
pub(crate) struct Logs {
    clients: Vec<(u32, Vec<Step>, Vec<f64>)>,
}

/// What of a client's steps a recovered server has.
#[derive(Debug, Clone)]
pub(crate) struct Verdict {
    /// Steps that returned.
    pub(crate) logged: usize,
    /// Those of them that are not there, with the times at which they had returned, in order.
    pub(crate) lost: Vec<f64>,
    /// When the last step that is there had returned; nothing if none is.
    pub(crate) last_restored: Option<f64>,
    pub(crate) last_logged: Option<f64>,
}

impl Committers {
    /// Makes their table. No client works yet.
    #[track_caller]
    pub(crate) fn prepare(server: &Server) {
        server.psql(
            "create table walden_commits (client int, step int, payload text not null, primary key (client, step));
             alter table walden_commits alter column payload set storage external",
        );
    }

    /// Starts clients; every third one's commits wait for the standby's operating system only (`remote_write`), those of the others
    /// until it has flushed.
    #[track_caller]
    pub(crate) fn start(server: &Server, seed: u64, work: Work) -> Self {
        let clients = (0..work.clients).map(|number| {
            let steps = plan_steps(&mut Random::new(seed ^ u64::from(number) << 48), work);
            let folder = server.scratch().join("committers");
            fs::create_dir_all(&folder).expect("make a folder");
            let (plan, log) = (
                folder.join(format!("plan.{number}")),
                folder.join(format!("log.{number}")),
            );
            let pause = work.pause.as_secs_f64();
            fs::write(&plan, to_sql(number, &steps, pause)).expect("write a client's steps");
            let psql = server.psql_command();
            let mut client = command("bash");
            client.args(["-c", CLIENT, "client"]).arg(plan).arg(&log);
            client.arg(psql.get_program()).args(psql.get_args());
            for (name, value) in psql.get_envs() {
                client.env(name, value.unwrap_or_default());
            }
            let waits = if number % 3 == 2 {
                "remote_write"
            } else {
                "on"
            };
            client.env("PGOPTIONS", format!("-c synchronous_commit={waits}"));
            Client {
                number,
                steps,
                log,
                process: Running::start(client),
            }
        });
        Self {
            clients: clients.collect(),
        }
    }

    /// Steps that all of them have written down.
    pub(crate) fn logged(&self) -> usize {
        self.clients.iter().map(|client| client.times().len()).sum()
    }

    /// Waits until each has written down so many steps.
    #[track_caller]
    pub(crate) fn wait_for_each(&self, steps: usize, deadline: Duration) {
        wait_until("commits return", deadline, || {
            let all = self.clients.iter();
            all.into_iter()
                .all(|client| client.times().len() >= steps)
                .then_some(())
        });
    }

    /// The clients have lost their server, and end.
    #[track_caller]
    pub(crate) fn logs(self) -> Logs {
        let clients = self.clients.into_iter().map(|client| {
            let times = client.log.clone();
            client.process.wait(COMMAND_DEADLINE).expect_success();
            (client.number, client.steps, read_times(&times))
        });
        Logs {
            clients: clients.collect(),
        }
    }
}

impl Client {
    fn times(&self) -> Vec<f64> {
        read_times(&self.log)
    }
}

/// The times of a log, whose steps count up from 0.
fn read_times(log: &std::path::Path) -> Vec<f64> {
    let text = fs::read_to_string(log).unwrap_or_default();
    // Of a line that is just being written the end is missing.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let lines = whole.lines().enumerate();
    lines
        .map(|(number, line)| {
            let (step, time) = line.split_once(' ').expect("two columns");
            assert_eq!(step, number.to_string(), "{}", log.display());
            time.parse().expect("a time")
        })
        .collect()
}

/// Mostly small rows; some of many pages, a few of more than a segment, prepared transactions with other commits between their two
/// halves, and a switch of segments now and then.
fn plan_steps(random: &mut Random, work: Work) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut prepared = None;
    while steps.len() < STEPS as usize {
        let small = 1 + random.below(30);
        if work.segment_bytes == 0 {
            steps.push(Step::Insert(small));
            continue;
        }
        let here = u32::try_from(steps.len()).expect("few steps");
        steps.push(match (random.below(100), prepared) {
            (0..2, _) => Step::Insert(work.segment_bytes / UNIT + random.below(20_000)),
            (2..15, _) => Step::Insert(200 + random.below(3_000)),
            (15..18, _) => Step::Switch,
            (18..40, Some(at)) => {
                prepared = None;
                Step::CommitPrepared(at)
            }
            (18..40, None) => {
                prepared = Some(here);
                Step::Prepare(small)
            }
            _ => Step::Insert(small),
        });
    }
    steps
}

fn to_sql(client: u32, steps: &[Step], pause: f64) -> String {
    let mut sql = String::new();
    for (step, what) in steps.iter().enumerate() {
        let insert = |units: u64| {
            format!(
                "insert into walden_commits values ({client}, {step}, repeat(md5('{client} {step}'), {units}))"
            )
        };
        let line = match *what {
            Step::Insert(units) if step % 2 == 0 => insert(units),
            Step::Insert(units) => format!("begin; {}; commit", insert(units)),
            Step::Prepare(units) => {
                let insert = insert(units);
                format!("begin; {insert}; prepare transaction '{client} {step}'")
            }
            Step::CommitPrepared(at) => format!("commit prepared '{client} {at}'"),
            Step::Switch => "select pg_switch_wal()".to_owned(),
        };
        let pause = match pause > 0.0 {
            true => format!("select pg_sleep({pause}); "),
            false => String::new(),
        };
        writeln!(sql, "{pause}{line};").expect("a string");
    }
    sql
}

/// Rows and prepared transactions of one client, by the step that made them.
#[derive(Debug, Default, PartialEq, Eq)]
struct State {
    rows: BTreeSet<u32>,
    prepared: BTreeSet<u32>,
}

impl State {
    fn take(&mut self, number: u32, step: Step) {
        match step {
            Step::Insert(_) => _ = self.rows.insert(number),
            Step::Prepare(_) => _ = self.prepared.insert(number),
            Step::CommitPrepared(at) => {
                self.prepared.remove(&at);
                self.rows.insert(at);
            }
            Step::Switch => {}
        }
    }
}

impl Logs {
    /// Compares with a recovered server that has become a primary. Whatever is lost: of each client exactly its first steps are there,
    /// none in part, none that it had not begun, every byte as it was.
    #[track_caller]
    pub(crate) fn judge(&self, recovered: &Server) -> Vec<Verdict> {
        let mut states: BTreeMap<u32, State> = BTreeMap::new();
        let mut lengths: BTreeMap<(u32, u32), u64> = BTreeMap::new();
        let numbers = |line: &str| -> Vec<u64> {
            let fields = line.split(['|', ' ']);
            fields
                .map(|field| field.parse().unwrap_or_else(|_| panic!("{line:?}")))
                .collect()
        };
        let id = |number: u64| u32::try_from(number).expect("a small number");
        let rows = recovered.psql(
            "select client, step, length(payload) / 32, (payload = repeat(md5(client || ' ' || step), length(payload) / 32))::int from walden_commits",
        );
        for line in rows.lines() {
            let [client, step, units, intact] = numbers(line)[..] else {
                panic!("{line:?}");
            };
            assert_eq!(intact, 1, "a payload has changed: {line}");
            states.entry(id(client)).or_default().rows.insert(id(step));
            lengths.insert((id(client), id(step)), units);
        }
        for line in recovered.psql("select gid from pg_prepared_xacts").lines() {
            let [client, step] = numbers(line)[..] else {
                panic!("{line:?}");
            };
            let state = states.entry(id(client)).or_default();
            state.prepared.insert(id(step));
        }
        let mut verdicts = Vec::new();
        for (client, steps, times) in &self.clients {
            let there = states.remove(client).unwrap_or_default();
            let verdict = judge(steps, times, &there);
            verdicts.push(verdict.unwrap_or_else(|why| panic!("client {client}: {why}")));
            for row in &there.rows {
                let Some(Step::Insert(units) | Step::Prepare(units)) = steps.get(*row as usize)
                else {
                    panic!("client {client} made no row in step {row}");
                };
                assert_eq!(lengths.get(&(*client, *row)), Some(units));
            }
        }
        assert!(states.is_empty(), "nobody's: {states:?}");
        verdicts
    }
}

fn judge(steps: &[Step], times: &[f64], there: &State) -> Result<Verdict, String> {
    let mut state = State::default();
    let mut restored = (state == *there).then_some(0);
    // The step after the last that returned may have been done, and its client not told.
    for (number, step) in (0..).zip(steps.iter().take(times.len() + 1)) {
        state.take(number, *step);
        if state == *there {
            restored = Some(number as usize + 1);
        }
    }
    let Some(restored) = restored else {
        let rows: Vec<_> = state.rows.symmetric_difference(&there.rows).collect();
        let prepared: Vec<_> = state
            .prepared
            .symmetric_difference(&there.prepared)
            .collect();
        return Err(format!(
            "{} steps are logged; what is there is no state it was ever in: rows {rows:?}, prepared {prepared:?} are missing or too many",
            times.len()
        ));
    };
    Ok(Verdict {
        logged: times.len(),
        lost: times.get(restored..).unwrap_or_default().to_vec(),
        last_restored: restored
            .min(times.len())
            .checked_sub(1)
            .map(|last| times[last]),
        last_logged: times.last().copied(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEPS: [Step; 5] = [
        Step::Insert(1),
        Step::Prepare(1),
        Step::Insert(1),
        Step::CommitPrepared(1),
        Step::Insert(1),
    ];
    const TIMES: [f64; 4] = [1.0, 2.0, 3.0, 4.0];

    fn there(rows: &[u32], prepared: &[u32]) -> State {
        State {
            rows: rows.iter().copied().collect(),
            prepared: prepared.iter().copied().collect(),
        }
    }

    #[test]
    fn a_commit_that_returned_and_is_not_there_is_lost() {
        let lost = |rows: &[u32], prepared: &[u32]| {
            judge(&STEPS, &TIMES, &there(rows, prepared)).unwrap().lost
        };
        assert_eq!(lost(&[0, 1, 2], &[]), [0.0; 0]);
        assert_eq!(
            lost(&[0, 1, 2, 4], &[]),
            [0.0; 0],
            "done, and nobody was told"
        );
        assert_eq!(lost(&[0, 2], &[1]), [4.0]);
        assert_eq!(lost(&[0], &[]), [2.0, 3.0, 4.0], "a prepared one counts");
        assert_eq!(lost(&[], &[]), TIMES);
    }

    #[test]
    fn what_no_client_ever_saw_is_no_verdict() {
        for (rows, prepared) in [(&[1, 2][..], &[][..]), (&[0, 1], &[]), (&[0, 1, 2], &[1])] {
            let there = there(rows, prepared);
            judge(&STEPS, &TIMES, &there).unwrap_err();
        }
    }
}
