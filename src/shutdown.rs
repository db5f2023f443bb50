//! SIGTERM and SIGINT: the first asks the command to finish what is pending, a second one, or a deadline, ends the process at
//! once. What finishing means is the command's.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::exit_code::ExitCode;

/// How long a command may take to finish after it was asked to.
pub(crate) const GRACE: Duration = Duration::from_secs(10);

/// A wish to stop, to be waited for. Clones are told alike.
#[derive(Debug, Clone)]
pub(crate) struct Shutdown {
    requested: watch::Receiver<bool>,
}

impl Shutdown {
    /// Listens for the signals from now on. Needs a tokio runtime.
    ///
    /// # Errors
    /// The signals cannot be listened for.
    pub(crate) fn on_signals(grace: Duration) -> Result<Self> {
        let terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
        let interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
        let (request, requested) = watch::channel(false);
        tokio::spawn(watch_signals(terminate, interrupt, request, grace));
        Ok(Self { requested })
    }

    /// The same for code that takes a plain channel: true from the request on. Its sender lives as long as the process.
    pub(crate) fn channel(&self) -> watch::Receiver<bool> {
        self.requested.clone()
    }

    /// Returns once the process was asked to stop; at once if it already was.
    pub(crate) async fn requested(&mut self) {
        // The sender lives as long as the process: there is no other end.
        drop(self.requested.wait_for(|requested| *requested).await);
    }
}

async fn watch_signals(
    mut terminate: Signal,
    mut interrupt: Signal,
    request: watch::Sender<bool>,
    grace: Duration,
) {
    let name = next(&mut terminate, &mut interrupt).await;
    tracing::info!("{name}: finishing what is pending; once more to leave at once");
    request.send_replace(true);
    let why = tokio::select! {
        name = next(&mut terminate, &mut interrupt) => format!("{name} again"),
        () = tokio::time::sleep(grace) => format!("not finished within {grace:?}"),
    };
    tracing::warn!("{why}: leaving at once");
    leave();
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

#[expect(
    clippy::exit,
    reason = "the command did not return in time, or is not to be waited for"
)]
fn leave() -> ! {
    std::process::exit(i32::from(ExitCode::Failed.status()))
}

#[cfg(test)]
mod tests {

    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};

    use rustix::process::{Pid, Signal as Kill, kill_process};

    use super::*;

    /// Tells the child, which is this very test binary, how it behaves.
    const CHILD: &str = "WALDEN_TEST_SHUTDOWN_AS";
    /// The child's exit status when it finished as asked.
    const FINISHED: i32 = 42;
    /// No child of these tests takes longer.
    const DEADLINE: Duration = Duration::from_secs(30);

    #[expect(clippy::exit, reason = "the child talks to its parent so")]
    fn be_the_child(role: &str) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let grace = if role == "slow" {
                Duration::from_millis(200)
            } else {
                GRACE
            };
            let mut shutdown = Shutdown::on_signals(grace).unwrap();
            assert!(!*shutdown.channel().borrow());
            println!("\nready");
            shutdown.requested().await;
            assert!(*shutdown.channel().borrow());
            println!("\nasked");
            if role == "obedient" {
                std::process::exit(FINISHED);
            }
            tokio::time::sleep(DEADLINE).await;
        });
    }

    struct Running(Child, BufReader<std::process::ChildStdout>);

    impl Running {
        fn start(role: &str) -> Self {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args([
                    "--exact",
                    "shutdown::tests::signals_ask_once_and_then_insist",
                    "--nocapture",
                ])
                .env(CHILD, role)
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let stdout = BufReader::new(child.stdout.take().unwrap());
            let mut running = Self(child, stdout);
            running.wait_for("ready");
            running
        }

        /// The child ends by itself within [`DEADLINE`], and with it this.
        fn wait_for(&mut self, word: &str) {
            let mut line = String::new();
            while line.trim() != word {
                line.clear();
                assert!(
                    self.1.read_line(&mut line).unwrap() > 0,
                    "the child ended before it was {word}"
                );
            }
        }

        fn signal(&self, signal: Kill) {
            kill_process(Pid::from_child(&self.0), signal).unwrap();
        }

        fn status(mut self) -> Option<i32> {
            self.0.wait().unwrap().code()
        }
    }

    #[test]
    fn signals_ask_once_and_then_insist() {
        if let Ok(role) = std::env::var(CHILD) {
            return be_the_child(&role);
        }
        for signal in [Kill::TERM, Kill::INT] {
            let child = Running::start("obedient");
            child.signal(signal);
            assert_eq!(child.status(), Some(FINISHED), "{signal:?}");
        }
        let mut child = Running::start("stubborn");
        child.signal(Kill::TERM);
        child.wait_for("asked");
        child.signal(Kill::INT);
        assert_eq!(child.status(), Some(1), "a second signal ends it at once");
        let child = Running::start("slow");
        child.signal(Kill::TERM);
        assert_eq!(child.status(), Some(1), "the deadline ends it");
    }
}
