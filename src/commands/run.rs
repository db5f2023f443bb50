//! `walden run`: receives WAL continuously. Receiving itself is `archiver::receive`.

use anyhow::{Context, Result};
use archiver::base_backup::{self, BackupOptions, BackupRequest};
use archiver::receive::{self, Received, Receiver, ReceiverConfig, TakeBackup, segments_in_flight};
use archiver::replication::ConnectionInfo;
use archiver::upload::Uploader;
use clap::Args;
use repository::Repository;
use repository::cluster::ClusterDocument;

use super::Globals;
use crate::cli::ServerArgs;
use crate::config::{OnInvalid, Overrides, Rpo};
use crate::exit_code::ExitCode;
use crate::failure::Advise;
use crate::open;
use crate::shutdown::{GRACE, Shutdown};
use crate::slot_state;

/// Receive WAL from the server and store it, until stopped
///
/// Streams WAL through the replication slot, validates every record, and reports to the server only what is safely stored.
/// SIGTERM and SIGINT store what is pending and leave within 10 seconds; a second one leaves at once.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  walden run
  walden run --config /etc/walden/prod.toml --log-format json
  walden run --rpo 1s")]
pub(crate) struct RunArgs {
    /// Longest time for which WAL may be unstored (5s), or sync: COMMIT waits for the store
    #[arg(long, env = "WALDEN_RPO", value_name = "TIME", hide_env_values = true)]
    pub(crate) rpo: Option<Rpo>,

    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Runs until a signal, and ends with 3 if WAL came that is not valid, or was lost, or a repository holds other contents than ours; an error is one that only a human can settle.
pub(crate) async fn run(args: RunArgs, globals: &Globals) -> Result<ExitCode> {
    let overrides = Overrides {
        conninfo: args.server.conninfo,
        slot: args.server.slot,
        rpo: args.rpo,
        ..Overrides::default()
    };
    let config = globals.load_config(&overrides)?;
    let connection = open::connection_info(&config)?;
    let repositories = open::repositories(&config).await?;
    let cluster = open::find_cluster_anywhere(&config, &repositories).await?;
    let size = cluster.segment_size()?;
    let in_flight = segments_in_flight(size);
    let urls: Vec<&str> = repositories.iter().map(Repository::url).collect();
    tracing::info!(
        repository = urls.join(" "),
        ack = ?config.archive.ack,
        cluster = %cluster.id(),
        slot = config.postgres.slot,
        segment_mib = size.bytes() >> 20,
        segments_in_flight = in_flight,
        "walden run starts"
    );
    let (ack, policy) = (config.archive.ack, open::seal_policy(&config)?);
    let uploader = |buffers| Uploader::mirrored(repositories.clone(), ack, policy.clone(), buffers);
    let take_backup = config.backup.on_gap.then(|| {
        backup_on_gap(
            connection.clone(),
            uploader(base_backup::UPLOAD_BUFFERS),
            cluster.clone(),
            config.postgres.slot.clone(),
        )
    });
    let uploader = uploader(in_flight + 1);
    let stored = uploader.clone();
    let receiver = ReceiverConfig {
        connection,
        slot: config.postgres.slot.clone(),
        cluster,
        standby_slots: config.postgres.standby_slots,
        wal_receiver_timeout: config.postgres.wal_receiver_timeout,
        rpo: match config.archive.rpo {
            Rpo::Sync => receive::Rpo::Sync,
            Rpo::Interval(interval) => receive::Rpo::Interval(interval),
        },
        on_invalid: match config.archive.on_invalid {
            OnInvalid::StoreAndReport => receive::OnInvalid::StoreAndReport,
            OnInvalid::Refuse => receive::OnInvalid::Refuse,
        },
        disk_guard: config.archive.disk_guard.map(slot_state::limits),
        take_backup,
    };
    let stop = Shutdown::on_signals(GRACE)?.channel();
    let received = Receiver::new(receiver, uploader, stop)?.run().await;
    let next = received.as_ref().err().and_then(next_step);
    let received = received.context("receive WAL");
    let received = match next {
        Some(next) => received.hint(next)?,
        None => received?,
    };
    if let Some(at) = received.first_invalid {
        tracing::error!(%at, "WAL that is not valid was stored: recovery ends there; take a new base backup (walden backup)");
    }
    if received.gaps_recorded > 0 {
        tracing::error!(
            gaps = received.gaps_recorded,
            "WAL was lost: see `walden gap list`"
        );
    }
    let refused = stored.refused();
    if !refused.is_empty() {
        tracing::error!(
            repositories = refused.join(" "),
            "CONFLICT: there are other contents than ours, and nothing more was stored: see `walden status` and `walden verify`"
        );
    }
    Ok(match received {
        Received {
            first_invalid: None,
            gaps_recorded: 0,
        } if refused.is_empty() => ExitCode::Done,
        _ => ExitCode::Warnings,
    })
}

/// Takes a base backup as `walden backup` does, beside receiving. It begins at once: until it is there, what is written cannot be restored.
fn backup_on_gap(
    server: ConnectionInfo,
    uploader: Uploader,
    cluster: ClusterDocument,
    slot: String,
) -> TakeBackup {
    TakeBackup::new(move |mut stop| {
        let (server, uploader) = (server.clone(), uploader.clone());
        let (cluster, slot) = (cluster.clone(), slot.clone());
        async move {
            let request = BackupRequest {
                server: &server,
                uploader: &uploader,
                cluster: &cluster,
                slot: &slot,
                options: BackupOptions {
                    fast_checkpoint: true,
                    ..BackupOptions::default()
                },
                now: jiff::Timestamp::now,
                random: base_backup::draw_random()?,
            };
            let stopped = async move {
                // Its sender lives as long as the process.
                drop(stop.wait_for(|stop| *stop).await);
            };
            let taken = base_backup::take(&request, &|_| {}, stopped).await?;
            for warning in &taken.names.warnings {
                tracing::warn!("base backup: {warning}");
            }
            Ok(taken.descriptor.label)
        }
    })
}

/// What helps where a server does not fit what is stored.
fn next_step(error: &archiver::Error) -> Option<&'static str> {
    use archiver::Error;
    match error {
        Error::RestoredClone { .. } => Some(
            "a restored server that shall replace its source is let in by `walden init --adopt`: docs/going-live.md has the steps",
        ),
        Error::Diverged { .. }
        | Error::OtherHistory { .. }
        | Error::Resume(_)
        | Error::Repository(repository::Error::AlreadyStored { .. }) => Some(
            "two servers wrote WAL under one identity, or one was put back in time: stop the wrong one; if this is the right one, `walden init --new-incarnation` goes on beside what is stored",
        ),
        _ => None,
    }
}
