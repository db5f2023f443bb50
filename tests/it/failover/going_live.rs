//! docs/going-live.md does what it says: its commands, as they stand there, take a cluster that lost its server to a new one that is
//! archived, backed up, and restores with what was written after it went live.

use super::scene::{DEADLINE, Scene, mark, wait_until_safe, write_wal};
use crate::support::postgres::{Server, tool};
use crate::support::process::{self, Output, command_as_server_user};
use crate::support::walden::Walden;
use rustix::process::Signal;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// What the page's first block sets, with values of this test.
type Names = Vec<(&'static str, String)>;

/// The page's commands: everything in a fence marked `sh`, in order.
fn commands(names: &Names) -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/going-live.md");
    let page = fs::read_to_string(page).expect("read the page");
    let mut script = String::new();
    let mut replaced = 0;
    for block in page.split("\n```sh\n").skip(1) {
        let (block, _) = block.split_once("\n```").expect("the fence is closed");
        for line in block.lines() {
            let Some(settings) = line.strip_prefix("export ") else {
                script.push_str(&format!("{line}\n"));
                continue;
            };
            for setting in settings.split(' ') {
                let (name, _) = setting.split_once('=').expect("a name and its value");
                let value = names.iter().find(|(known, _)| *known == name);
                let (_, value) = value.unwrap_or_else(|| panic!("what is {name}?"));
                script.push_str(&format!("export {name}='{value}'\n"));
                replaced += 1;
            }
        }
    }
    assert_eq!(replaced, names.len(), "the page has other names\n{script}");
    script
}

/// A service manager that knows one service, and what it starts runs beside the script. With paths of this build.
fn prelude(folder: &Path) -> String {
    format!(
        r#"set -euo pipefail
export PATH='{programs}':'{own}':$PATH LC_ALL=C NO_COLOR=1 PSQLRC=/dev/null PGCONNECT_TIMEOUT=20
systemctl() {{
  case "$1 $2" in
    "stop walden") kill -TERM "$(cat '{folder}/run.pid')"; while kill -0 "$(cat '{folder}/run.pid')" 2>/dev/null; do sleep 0.1; done ;;
    "start walden") nohup walden run >'{folder}/run.log' 2>&1 & echo $! >'{folder}/run.pid' ;;
    *) echo "no service $2" >&2; return 1 ;;
  esac
}}
"#,
        programs = tool(18, "postgres").parent().expect("a folder").display(),
        own = Walden::program().parent().expect("a folder").display(),
        folder = folder.display(),
    )
}

/// Ends what the page's commands left running.
struct Ends<'a>(&'a Path);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        let pid = fs::read_to_string(self.0.join("run.pid")).unwrap_or_default();
        if let Ok(pid) = pid.trim().parse()
            && Path::new(&format!("/proc/{pid}")).exists()
        {
            process::send(pid, Signal::KILL);
        }
    }
}

fn bash(folder: &Path, script: &str) -> Output {
    let mut bash = command_as_server_user("bash");
    bash.args(["-c", script])
        .current_dir(folder)
        .env("HOME", folder);
    process::run(bash, DEADLINE)
}

#[test]
fn the_page_takes_a_restored_clone_live() {
    let (mut old, scene) = Scene::with(
        18,
        |builder| builder.setting("port = 5432"),
        crate::site::Plan::default(),
    );
    let folder = scene.copies.path();
    // Where clients find the cluster: the old server has its socket elsewhere, and is linked to.
    let sockets = scene.restorer.scratch.path();
    let socket = ".s.PGSQL.5432";
    std::os::unix::fs::symlink(old.socket_directory().join(socket), sockets.join(socket))
        .expect("link to the socket");
    scene.name_cluster();
    let text = fs::read_to_string(scene.config()).expect("read the configuration");
    let text = text.replace(
        &format!("host={} ", old.socket_directory().display()),
        &format!("host={} ", sockets.display()),
    );
    fs::write(scene.config(), text).expect("write the configuration");
    let run = scene.site.walden.receive(&old, ["run"]);
    old.psql("create table orders (id int, ordered timestamptz default now())");
    scene
        .site
        .walden
        .run(["backup", "--fast-checkpoint"])
        .expect_success();
    old.psql("insert into orders select generate_series(1, 1000)");
    mark(&old, "before");
    wait_until_safe(&old);

    fs::write(folder.join("run.pid"), run.id().to_string()).expect("note the process");
    let ends = Ends(folder);
    let restored = scene.restorer.place("live");
    let names: Names = vec![
        ("WALDEN_CONFIG", scene.config().display().to_string()),
        ("WALDEN_IDENTITY", String::new()),
        ("OLD", old.data_directory().display().to_string()),
        ("NEW", restored.data.display().to_string()),
        ("PGHOST", sockets.display().to_string()),
        ("PGUSER", "postgres".to_owned()),
        ("PGDATABASE", "postgres".to_owned()),
    ];
    // An empty variable is none; the repository is not encrypted.
    let script = commands(&names).replace("export WALDEN_IDENTITY=''\n", "");
    let said = std::thread::scope(|scope| {
        // The old server and `walden run` are this test's children: somebody has to reap them.
        let reaped = scope.spawn(move || run.wait(Duration::from_secs(60)));
        let gone = scope.spawn(|| old.wait_for_exit(DEADLINE));
        let said = bash(folder, &format!("{}{script}", prelude(folder)));
        gone.join().expect("the old server ended");
        reaped.join().expect("run ended").expect_success();
        said
    });
    let said = said.expect_success();
    assert!(said.stdout.contains("1000"), "{said}");
    assert!(said.stdout.contains("adopted     restored from"), "{said}");
    assert!(said.stdout.contains("ALTER SYSTEM"), "{said}");
    assert!(said.stdout.contains("all is well"), "{said}");

    // It is live: writes are archived, restored, and the old server is refused.
    let live = &Server::over_directory(18, &restored.data);
    std::os::unix::fs::symlink(sockets.join(socket), live.socket_directory().join(socket))
        .expect("link to the socket");
    assert_eq!(live.psql("show archive_mode"), "on");
    mark(live, "live");
    write_wal(live, 1);
    wait_until_safe(live);
    let before = scene.objects();
    scene.restores(&["--to", "latest"], &["before", "live"]);
    old.start();
    scene.run_is_refused(&old, "which is not in the history of this server");
    before.are_untouched_in(&scene);
    drop(ends);
    restored.stop(Signal::QUIT);
}
