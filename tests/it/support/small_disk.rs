//! A small file system of one test: a tmpfs in a mount namespace of its own, so that no rights are needed and nothing stays. Programs
//! that are to see it are run inside; the test looks at it through `/proc`.

use super::process::{self, COMMAND_DEADLINE, Output, Running, command};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Mounts, says so, and holds the namespace until it is killed.
const HOLD: &str = r#"
mount -t tmpfs -o "size=$2,mode=0777" tmpfs "$1"
echo mounted
exec sleep 3600
"#;

/// Mounted at a folder, for those inside.
#[derive(Debug)]
pub(crate) struct SmallDisk {
    folder: PathBuf,
    holder: Running,
}

impl SmallDisk {
    /// Over `folder`, which exists: what is in it is hidden inside. `size` as `mount` takes it, such as `8m`.
    #[track_caller]
    pub(crate) fn mount(folder: &Path, size: &str) -> Self {
        let mut hold = command("unshare");
        hold.args([
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-euc",
            HOLD,
            "hold",
        ]);
        hold.arg(folder).arg(size);
        let mut holder = Running::start(hold);
        holder.wait_for("a tmpfs is mounted", COMMAND_DEADLINE, |said, _| {
            said.contains("mounted")
        });
        Self {
            folder: folder.to_owned(),
            holder,
        }
    }

    /// The same path as those inside see, from outside.
    pub(crate) fn seen_from_outside(&self) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.id()));
        root.join(self.folder.strip_prefix("/").expect("an absolute path"))
    }

    /// A command inside, as the namespace's root.
    fn inside(&self, program: impl AsRef<OsStr>) -> Command {
        let mut inside = command("nsenter");
        inside
            .arg(format!("--target={}", self.holder.id()))
            .args(["--user", "--mount", "--preserve-credentials", "--"])
            .arg(program);
        inside
    }

    /// A command inside, in a folder, as a user whom PostgreSQL accepts.
    pub(crate) fn command(&self, folder: &Path, program: impl AsRef<OsStr>) -> Command {
        let mut inside = self.inside("unshare");
        inside
            .args(["-U", "--map-user=1000", "--map-group=1000", "--"])
            .args(["setpriv", "--pdeathsig", "KILL", "--", "env", "--chdir"])
            .arg(folder)
            .arg(program);
        inside
    }

    /// Runs a shell script inside, with the folder as `$1`.
    #[track_caller]
    pub(crate) fn shell(&self, script: &str) -> Output {
        let mut shell = self.inside("sh");
        shell.args(["-euc", script, "shell"]).arg(&self.folder);
        process::run(shell, COMMAND_DEADLINE).expect_success()
    }

    /// Takes all the space that is left.
    pub(crate) fn fill(&self) {
        self.shell("dd if=/dev/zero of=\"$1/filler\" bs=64k 2>/dev/null || true");
    }

    pub(crate) fn free(&self) {
        self.shell("rm \"$1/filler\"");
    }
}
