//! Child processes of tests: each has a deadline, and dies with the test program however that ends.

use super::wait_until;
use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

/// How long a command may take that has no reason to take long. Wide, because two cores may be shared by many tests.
pub(crate) const COMMAND_DEADLINE: Duration = Duration::from_secs(120);

/// A command whose process is killed when this test program ends, with an environment that owes nothing to the
/// machine: only `PATH`, a UTF-8 locale and UTC.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    clean(Command::new("setpriv"), program.as_ref())
}

/// As [`command`], but run as a user whom PostgreSQL accepts: servers refuse root. The user namespace maps root to a
/// plain user, so files keep their owner and nothing needs to be made readable.
pub(crate) fn command_as_server_user(program: impl AsRef<OsStr>) -> Command {
    if !rustix::process::geteuid().is_root() {
        return command(program);
    }
    let mut command = Command::new("unshare");
    command.args(["-U", "--map-user=1000", "--map-group=1000", "--", "setpriv"]);
    clean(command, program.as_ref())
}

fn clean(mut command: Command, program: &OsStr) -> Command {
    command
        .args(["--pdeathsig", "KILL", "--"])
        .arg(program)
        .env_clear();
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
        .env("LANG", "C.UTF-8")
        .env("TZ", "UTC")
        .env("RUST_BACKTRACE", "1");
    command
}

type Request = (Command, Sender<std::io::Result<Child>>);

/// The kernel ties "dies with its parent" to the *thread* that started the child, and tests run on threads that end.
/// So one thread that lives as long as the program starts them all.
static SPAWNER: LazyLock<Sender<Request>> = LazyLock::new(|| {
    let (sender, receiver) = channel::<Request>();
    std::thread::spawn(move || {
        for (mut command, reply) in receiver {
            // The asker may have failed its test meanwhile; then the child is nobody's and must not stay.
            if let Err(unsent) = reply.send(command.spawn())
                && let Ok(mut child) = unsent.0
            {
                child.kill().expect("kill an unwanted child");
                child.wait().expect("reap an unwanted child");
            }
        }
    });
    sender
});

/// Starts `command`. The caller sets where its streams go.
pub(crate) fn spawn(command: Command) -> Child {
    let shown = format!("{command:?}");
    let (reply, answer) = channel();
    SPAWNER
        .send((command, reply))
        .expect("the spawner lives as long as the program");
    match answer.recv().expect("the spawner answers") {
        Ok(child) => child,
        Err(error) => panic!("start {shown}: {error}"),
    }
}

/// What a finished command left.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) command: String,
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
}

impl Output {
    /// The exit code; a death by signal is 128 + signal, as in a shell.
    pub(crate) fn code(&self) -> i32 {
        self.status
            .code()
            .unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// Fails the test, showing everything, unless the exit code is `code`.
    #[track_caller]
    pub(crate) fn expect_code(self, code: i32) -> Self {
        assert!(
            self.code() == code,
            "exit code {} instead of {code}\n{self}",
            self.code()
        );
        self
    }

    /// Fails the test unless the command succeeded.
    #[track_caller]
    pub(crate) fn expect_success(self) -> Self {
        self.expect_code(0)
    }

    /// Its standard output, which is a JSON document.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}\n{self}"))
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            command,
            status,
            stdout,
            stderr,
            took,
        } = self;
        write!(
            f,
            "{command}\n{status} after {took:?}\n--- stdout\n{stdout}\n--- stderr\n{stderr}"
        )
    }
}

/// Runs `command` to its end, with nothing on its standard input, and fails the test if that takes longer than
/// `deadline`.
#[track_caller]
pub(crate) fn run(command: Command, deadline: Duration) -> Output {
    Running::start(command).wait(deadline)
}

/// A command that runs beside the test; its output is collected as it comes. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Running {
    command: String,
    child: Child,
    stdout: Collected,
    stderr: Collected,
    started: Instant,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let shown = format!("{command:?}");
        let started = Instant::now();
        let mut child = spawn(command);
        let stdout = Collected::from(child.stdout.take().expect("stdout is piped"));
        let stderr = Collected::from(child.stderr.take().expect("stderr is piped"));
        Self {
            command: shown,
            child,
            stdout,
            stderr,
            started,
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child
            .try_wait()
            .expect("ask for a child's state")
            .is_none()
    }

    /// What it has printed so far: standard output, standard error.
    pub(crate) fn printed(&self) -> (String, String) {
        (self.stdout.text(), self.stderr.text())
    }

    /// Waits until `holds` is true of what it has printed (standard output, standard error); fails the test if the
    /// command ends before that.
    #[track_caller]
    pub(crate) fn wait_for(
        &mut self,
        what: &str,
        deadline: Duration,
        holds: impl Fn(&str, &str) -> bool,
    ) {
        let started = Instant::now();
        loop {
            // The state is asked first, so that what a command printed just before its end still counts.
            let running = self.is_running();
            if !running {
                self.stdout.wait_for_end();
                self.stderr.wait_for_end();
            }
            let (stdout, stderr) = self.printed();
            if holds(&stdout, &stderr) {
                return;
            }
            let why = if running {
                "not within its deadline"
            } else {
                "it ended before"
            };
            assert!(
                running && started.elapsed() < deadline,
                "{what}: {why}\n{}\n--- stdout\n{stdout}\n--- stderr\n{stderr}",
                self.command
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        send(self.child.id(), signal);
    }

    /// Waits for its end; past `deadline` it is killed and the test fails, showing what it printed.
    #[track_caller]
    pub(crate) fn wait(mut self, deadline: Duration) -> Output {
        let until = Instant::now() + deadline;
        let mut in_time = true;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("ask for a child's state") {
                break status;
            }
            if Instant::now() >= until && in_time {
                in_time = false;
                self.child.kill().expect("kill a child that is still there");
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let took = self.started.elapsed();
        self.stdout.wait_for_end();
        self.stderr.wait_for_end();
        let (stdout, stderr) = self.printed();
        let output = Output {
            command: self.command.clone(),
            status,
            stdout,
            stderr,
            took,
        };
        assert!(
            in_time,
            "killed after its deadline of {deadline:?}\n{output}"
        );
        output
    }

    /// Ends it at once, as a crash would.
    #[track_caller]
    pub(crate) fn kill(self) -> Output {
        self.signal(rustix::process::Signal::KILL);
        self.wait(COMMAND_DEADLINE)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.is_running() {
            self.child.kill().expect("kill a child that is still there");
            self.child.wait().expect("reap a killed child");
        }
    }
}

/// Sends `signal` to a process; that it has ended meanwhile is not an error.
pub(crate) fn send(process: u32, signal: rustix::process::Signal) {
    let pid = i32::try_from(process)
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    match rustix::process::kill_process(pid.expect("a process id is positive"), signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => panic!("send {signal:?} to {process}: {error}"),
    }
}

/// Bytes that a thread reads from a pipe, as far as they have come.
#[derive(Debug)]
struct Collected {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: std::thread::JoinHandle<()>,
}

impl Collected {
    fn from(mut pipe: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&bytes);
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 8192];
            while let Ok(length @ 1..) = pipe.read(&mut buffer) {
                let read = buffer.get(..length).expect("no more is read than fits");
                shared
                    .lock()
                    .expect("no reader panics")
                    .extend_from_slice(read);
            }
        });
        Self { bytes, reader }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().expect("no reader panics")).into_owned()
    }

    /// A process left behind by the command may hold the pipe open for ever: then what has come is all there is.
    fn wait_for_end(&self) {
        let until = Instant::now() + Duration::from_secs(2);
        while !self.reader.is_finished() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// The most memory that a process has had so far, in bytes: the kernel's `VmHWM`. Nothing once it has ended.
pub(crate) fn peak_memory(id: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// Waits until no process of `ids` is left (one that only waits to be reaped by init counts as gone).
pub(crate) fn wait_gone(ids: &[u32]) {
    wait_until("killed processes are gone", COMMAND_DEADLINE, || {
        let alive = |id: &u32| {
            std::fs::read_to_string(format!("/proc/{id}/stat"))
                .is_ok_and(|stat| state_of(&stat).is_some_and(|(state, _)| state != "Z"))
        };
        (!ids.iter().any(alive)).then_some(())
    });
}

/// The processes whose parent is `id`.
pub(crate) fn children_of(id: u32) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").expect("read /proc");
    let ids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    ids.filter(|child| {
        // A process may end between the listing and this; then it is no child any more.
        std::fs::read_to_string(format!("/proc/{child}/stat"))
            .is_ok_and(|stat| state_of(&stat).is_some_and(|(_, parent)| parent == id))
    })
    .collect()
}

/// State letter and parent from a line of `/proc/<id>/stat`. The program's name, in parentheses, may hold anything.
fn state_of(stat: &str) -> Option<(&str, u32)> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?, fields.next()?.parse().ok()?))
}

/// Tells whoever runs the tests something that is no failure, past the test runner's capture.
pub(crate) fn note(text: &str) {
    use std::io::Write;
    writeln!(std::io::stderr(), "note: {text}").expect("stderr takes a line");
}
