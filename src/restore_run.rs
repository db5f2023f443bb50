//! Carries a restore out: lays the backup out, writes settings and the hook's configuration, starts the server and watches it reach
//! the target. Owns the order of these steps and what is said meanwhile; the steps are the `pitr` crate's.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use pitr::listen_address::port_in_use;
use pitr::plan::RecoveryPlan;
use pitr::postgres::{
    Recovery, RecoveryEnd, RecoveryGoal, RecoveryLimits, ServerCommand, StopMode,
    find_server_binaries,
};
use pitr::recovery_conf::{Action, RecoveryFacts, WalMinimums, plan_raise, plan_recovery_setup};
use pitr::restore::{LaidOut, OWN_FOLDER, RestoreJob, lay_out};
use pitr::scope::SCOPE_FILE;
use pitr::settle::Settled;
use pitr::stop::minimums_of;
use repository::identity::SecretReference;
use serde_json::json;

use crate::commands::Globals;
use crate::config::{Config, Encryption, Location};
use crate::failure::Advise;
use crate::probe::SqlProbe;
use crate::units::{ByteSize, human_duration};
use crate::{open, sources};

/// The hook's configuration, in [`OWN_FOLDER`].
const HOOK_CONFIG: &str = "restore.toml";
/// The server's messages during recovery, in [`OWN_FOLDER`].
const LOG_FILE: &str = "recovery.log";
/// A recovery that does not move for so long, or takes so long in all, is given up waiting for; the server goes on.
const LIMITS: RecoveryLimits = RecoveryLimits {
    stall: Duration::from_secs(30 * 60),
    total: Duration::from_secs(7 * 24 * 3600),
};

/// How long a server that is to be started anew may take to stop.
const STOP_LIMIT: Duration = Duration::from_secs(300);

/// What to do.
pub(crate) struct RestoreRequest<'a> {
    /// What to lay out, and where.
    pub(crate) job: RestoreJob,
    /// Where replay stops.
    pub(crate) plan: &'a RecoveryPlan,
    /// The target in the user's words.
    pub(crate) target: &'a str,
    /// Where the repository is.
    pub(crate) config: &'a Config,
    /// What the server does at the target.
    pub(crate) action: Action,
    /// Whether to start the server.
    pub(crate) start: bool,
    /// Its port, if not the source's.
    pub(crate) port: Option<u16>,
    /// Segments of which repositories hold different forms, and which one is planned.
    pub(crate) settled: Settled,
    /// Repositories that did not answer when the plan was made.
    pub(crate) unanswered: &'a sources::Unanswered,
    /// Where its programs are, if not where they are looked for.
    pub(crate) bin_dir: Option<&'a Path>,
}

/// How long each phase took.
struct Phases {
    lay_out: Duration,
    recovery: Option<Replayed>,
}

/// A recovery that came to its goal.
struct Replayed {
    end: RecoveryEnd,
    /// Settings that it needed to be larger on its way, and what they are now.
    raised: BTreeMap<&'static str, u32>,
}

/// Restores. Everything that can be refused is refused before anything is written.
pub(crate) async fn run(request: RestoreRequest<'_>, globals: &Globals) -> Result<()> {
    let major = u32::from(request.job.backup.pg_version);
    let data = request.job.data.clone();
    let server = match request.start {
        true => {
            let server = find_server(&request).await?;
            check_port(&request)?;
            Some(server)
        }
        false => None,
    };
    let begun = Instant::now();
    let progress = globals
        .screen
        .progress("restore", Some(request.job.backup.plain_size));
    let seen = std::sync::atomic::AtomicU64::new(0);
    let laid = lay_out(&request.job, &|now| {
        let before = seen.swap(now.bytes_done, std::sync::atomic::Ordering::Relaxed);
        progress.advance(now.bytes_done.saturating_sub(before));
    })
    .await
    .with_context(|| {
        format!(
            "lay backup {} out in {}",
            request.job.label,
            data.path().display()
        )
    })?;
    progress.finish();
    let (notes, minimums) = finish(&request, &laid, major)?;
    for note in &notes {
        globals.screen.say(&format!("note: {note}"));
    }
    let lay_out = begun.elapsed();
    let recovery = match server {
        Some(server) => Some(recover(&request, &server, minimums, globals).await?),
        None => None,
    };
    print(&request, &laid, &Phases { lay_out, recovery }, globals)
}

/// The server that replays WAL: its programs, and whether they run for this user.
pub(crate) async fn find_server(request: &RestoreRequest<'_>) -> Result<ServerCommand> {
    let major = u32::from(request.job.backup.pg_version);
    let data = request.job.data.path();
    let server = ServerCommand {
        binaries: find_server_binaries(major, request.bin_dir).await?,
        data_directory: data.to_owned(),
        log_file: data.join(OWN_FOLDER).join(LOG_FILE),
        owner: request.job.owner,
    };
    server.check_user()?;
    Ok(server)
}

/// Whether the port that was asked for is free.
pub(crate) fn check_port(request: &RestoreRequest<'_>) -> Result<()> {
    match request.port.filter(|port| port_in_use(*port)) {
        Some(port) => Err(anyhow!(
            "port {port} is in use on this machine: the restored server could not start"
        ))
        .hint("name a free port with --port, or use --no-start; nothing was written"),
        None => Ok(()),
    }
}

/// Writes the settings, the hook's configuration and the plan; `pg_control` last. Answers what was changed, and what replay is known to need.
fn finish(
    request: &RestoreRequest<'_>,
    laid: &LaidOut,
    major: u32,
) -> Result<(Vec<String>, WalMinimums)> {
    let control = &laid.control_file;
    let backup = minimums_of(&control.parameters);
    let minimums = request.plan.minimums.map_or(backup, |wal| wal.max(backup));
    let program = std::env::current_exe().context("find this program's own path")?;
    let own = request.job.data.path().join(OWN_FOLDER);
    let text = |path: &Path| {
        path.to_str()
            .map(str::to_owned)
            .context("a path is not UTF-8")
    };
    let hook_config = text(&own.join(HOOK_CONFIG))?;
    let plan_file = text(&own.join(SCOPE_FILE))?;
    let restored_from = format!(
        "{} {} {}",
        request.job.cluster, request.job.label, request.plan.stop.record
    );
    let facts = RecoveryFacts {
        major,
        stop: request.plan.stop.record,
        timeline: request.plan.path.history.timeline(),
        action: request.action,
        minimums,
        restored_from: &restored_from,
        program: &text(&program)?,
        hook_config: &hook_config,
        plan_file: &plan_file,
        port: request.port,
        listen_addresses: None,
        socket_directory: None,
        overrides: &[],
    };
    let setup = plan_recovery_setup(&facts, &request.job.data)?;
    // Asked before `pg_control` is written: until then the same command with another port continues.
    let taken = request
        .start
        .then(|| setup.listens.conflict(request.job.data.path()));
    if let Some(taken) = taken.flatten() {
        return Err(anyhow!(
            "{taken}, which the backup's own configuration names, is in use on this machine: the restored server could not start"
        ))
        .hint("run the same command again with --port and a free port: it continues where it stopped; or with --no-start");
    }
    let config = hook_configuration(request.config)?.to_toml();
    let mut scope = request.plan.scope(request.job.cluster);
    scope.allow_plain = request.job.policy.allow_plain;
    scope.settled = request.settled.by_name();
    let scope = serde_json::to_vec_pretty(&scope)?;
    laid.finish(
        &setup,
        &[(HOOK_CONFIG, config.as_bytes()), (SCOPE_FILE, &scope)],
    )?;
    Ok((setup.notes, minimums))
}

/// The configuration with which the server's `archive-get` finds the repository: it runs in another folder, so files it names are
/// named by absolute paths. References only, no secrets.
fn hook_configuration(config: &Config) -> Result<Config> {
    let mut config = config.clone();
    // A restore needs no word about encryption, a configuration file does: the hook could not read one without it.
    config.encryption.get_or_insert(Encryption::None);
    let here = |path: &Path| {
        std::path::absolute(path).with_context(|| format!("make {} absolute", path.display()))
    };
    let mut references = Vec::new();
    if let Some(Encryption::Sealed {
        identity: Some(identity),
        ..
    }) = &mut config.encryption
    {
        references.push(identity);
    }
    for repository in &mut config.repositories {
        let Location::S3 { options, .. } = &mut repository.location else {
            continue;
        };
        if let Some(path) = &mut options.ca_file {
            *path = here(path)?;
        }
        if let Some(pair) = &mut options.credentials {
            references.extend([&mut pair.access_key, &mut pair.secret_key]);
        }
    }
    for reference in references {
        if let SecretReference::File(path) = reference {
            let absolute = here(Path::new(path))?;
            *path = absolute
                .to_str()
                .context("the path of a secret is not UTF-8")?
                .to_owned();
        }
    }
    Ok(config)
}

async fn recover(
    request: &RestoreRequest<'_>,
    server: &ServerCommand,
    minimums: WalMinimums,
    globals: &Globals,
) -> Result<Replayed> {
    let screen = &globals.screen;
    screen.say("starting the server: it replays WAL up to the target");
    let mut users = vec!["postgres".to_owned()];
    users.extend(
        open::connection_info(request.config)
            .ok()
            .map(|info| info.user),
    );
    users.extend(std::env::var("USER").ok());
    users.dedup();
    let begun = Instant::now();
    let (mut said, probe) = (begun, SqlProbe { users });
    let mut goal = RecoveryGoal {
        stop: request.plan.stop.record,
        action: request.action,
        minimums,
    };
    let mut raised = BTreeMap::new();
    let replay = async move {
        loop {
            let mut running = server.start().context("start the restored server")?;
            let end = running.watch_recovery(goal, &probe, LIMITS, |lsn| {
                if said.elapsed() >= Duration::from_secs(5) {
                    said = Instant::now();
                    screen.say(&format!("replayed up to {lsn}"));
                }
            });
            match end.await? {
                Recovery::Done(mut end) => {
                    end.until_stop = begun.elapsed();
                    return anyhow::Ok(Replayed { end, raised });
                }
                // Each time they are larger, so this ends.
                Recovery::TooSmall(minimums) => {
                    running.stop(StopMode::Fast, STOP_LIMIT).await?;
                    goal.minimums = minimums;
                    let (file, settings) = plan_raise(minimums, &request.job.data)?;
                    request.job.data.write(&file, request.job.owner)?;
                    for (name, value) in settings {
                        screen.say(&format!("note: {name} is set to {value}, with which the server that wrote the WAL was started after the backup"));
                        raised.insert(name, value);
                    }
                    screen.say("starting the server again: it goes on replaying");
                }
            }
        }
    };
    replay
        .await
        .with_context(|| format!("recover in {}", request.job.data.path().display()))
        .hint(format!(
            "the backup is laid out whole and the server's messages are in {}; with the cause removed go on with: {}\n      \
             to restore anew instead, stop that server and empty the folder first",
            server.log_file.display(),
            server.display()
        ))
}

fn print(
    request: &RestoreRequest<'_>,
    laid: &LaidOut,
    phases: &Phases,
    globals: &Globals,
) -> Result<()> {
    let data = request.job.data.path().display().to_string();
    let end = phases.recovery.as_ref().map(|replayed| &replayed.end);
    let address = end.and_then(|end| end.address.as_ref());
    let folder = address.and_then(|address| address.socket_directory.as_deref());
    let folder = folder.map(|folder| folder.display().to_string());
    let port = address.map(|address| address.port);
    let account = request.job.repository.account();
    let body = json!({
        "repositories": sources::to_json(request.unanswered, &account),
        "data_directory": data,
        "target": request.target,
        "backup": request.job.label.as_str(),
        "timeline": request.plan.path.history.timeline().get(),
        "stop_record_lsn": request.plan.stop.record.to_string(),
        "last_transaction": request.plan.newest_transaction.map(pitr::time::format_utc),
        "files": laid.files,
        "resumed": laid.resumed,
        "lay_out_seconds": phases.lay_out.as_secs_f64(),
        "raised_settings": phases.recovery.as_ref().map(|replayed| &replayed.raised),
        "recovery_seconds": end.map(|end| end.until_stop.as_secs_f64()),
        "replayed_to": end.and_then(|end| end.replay_lsn).map(|lsn| lsn.to_string()),
        "action": request.action.as_str(),
        "started": phases.recovery.is_some(),
        "socket_directory": folder,
        "port": port,
    });
    globals.output.print("walden.restore", &body, || {
        let mut lines = vec![format!(
            "restored to {} in {data}: {} files, {} in {}",
            request.target,
            laid.files,
            ByteSize::new(request.job.backup.plain_size),
            human_duration(phases.lay_out)
        )];
        if let Some(end) = end {
            let replayed = end
                .replay_lsn
                .map_or_else(String::new, |lsn| format!(" up to {lsn}"));
            lines.push(format!(
                "replayed WAL{replayed} in {}",
                human_duration(end.until_stop)
            ));
        }
        let raised = phases.recovery.iter().flat_map(|replayed| &replayed.raised);
        lines.extend(
            raised
                .map(|(name, value)| format!("{name} was raised to {value}, which the WAL needs")),
        );
        if let Some(time) = request.plan.newest_transaction {
            lines.push(format!(
                "last transaction: {}",
                pitr::time::format_utc(time)
            ));
        }
        lines.extend(sources::lines(&account));
        lines.extend(next_steps(request, folder.as_deref(), port));
        lines.join("\n") + "\n"
    })
}

/// What to type next.
fn next_steps(
    request: &RestoreRequest<'_>,
    folder: Option<&str>,
    port: Option<u16>,
) -> Vec<String> {
    let data = request.job.data.path().display();
    let psql = match (folder, port) {
        (Some(folder), Some(port)) => format!("psql -h {folder} -p {port}"),
        (None, Some(port)) => format!("psql -h localhost -p {port}"),
        _ => "psql".to_owned(),
    };
    if !request.start {
        return vec![format!(
            "next: pg_ctl -D {data} start; the server replays WAL to the target and then does: {}",
            request.action.as_str()
        )];
    }
    match request.action {
        Action::Pause => vec![
            "the server is paused at the target, open for reading".to_owned(),
            format!("  look:     {psql}"),
            format!(
                "  go live:  {psql} -c 'SELECT pg_wal_replay_resume()'   (or restore again to another target)"
            ),
        ],
        Action::Promote => vec![format!("the server is open for writing: {psql}")],
        Action::Shutdown => vec![
            "the server stopped at the target, and would stop there at each start; to go live:"
                .to_owned(),
            format!(
                "  echo \"recovery_target_action = 'promote'\" >> {data}/postgresql.auto.conf && pg_ctl -D {data} start"
            ),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_that_the_hook_reads_is_named_from_the_root() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("walden.toml");
        let text = "[encryption]\nidentity = 'file:k'\n[[repository]]\nurl = 's3://b/p'\nca_file = 'ca.pem'\n\
                    access_key = 'file:id'\nsecret_key = 'file:secret'\n";
        std::fs::write(&path, text).unwrap();
        let overrides = crate::config::Overrides::default();
        let mut config =
            Config::load(Some(&path), crate::config::Caller::Command, &overrides).unwrap();
        // As they are where the configuration or the flags name them from the working directory.
        if let Location::S3 { options, .. } = &mut config.repositories[0].location {
            options.ca_file = Some("ca.pem".into());
            let pair = options.credentials.as_mut().unwrap();
            pair.access_key = SecretReference::File("id".into());
            pair.secret_key = SecretReference::File("secret".into());
        }
        let text = hook_configuration(&config).unwrap().to_toml();
        let here = std::env::current_dir().unwrap();
        for name in ["ca.pem", "id", "secret"] {
            let absolute = here.join(name).display().to_string();
            assert!(text.contains(&absolute), "{absolute}: {text}");
        }
    }
}
