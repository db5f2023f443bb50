//! From a checked configuration to what the libraries work with: the repository, how objects are sealed and opened, how the
//! server is reached, and which cluster is meant. Every command begins here.
//!
//! Opening a repository asks nothing of it; what does ask says so. Secrets are fetched here and nowhere kept but in what they open.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use archiver::replication::ConnectionInfo;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use repository::cluster::ClusterDocument;
use repository::identity::ExposeSecret;
use repository::key::ClusterId;
use repository::sealed::{OpenPolicy, SealPolicy};
use repository::store::{Deadlines, StoreOptions};
use repository::{Repositories, Repository, Store};

use crate::config::{Config, Location};
use crate::exit_code::ExitCode;
use crate::failure::Advise;

/// Every configured repository, in the file's order, under the store's usual deadlines. Nothing is asked of the stores yet.
///
/// # Errors
/// As [`open_configured`], for any of them.
pub(crate) async fn repositories(config: &Config) -> Result<Vec<Repository>> {
    repositories_with(config, Deadlines::default()).await
}

/// The same under other deadlines.
///
/// # Errors
/// As [`open_configured`], for any of them.
pub(crate) async fn repositories_with(
    config: &Config,
    deadlines: Deadlines,
) -> Result<Vec<Repository>> {
    let mut repositories = Vec::with_capacity(config.repositories.len());
    for configured in &config.repositories {
        let opened = open_configured(configured, deadlines).await;
        repositories.push(opened.with_context(|| format!("repository {}", configured.name))?);
    }
    Ok(repositories)
}

/// One configured repository. Nothing is asked of the store yet.
///
/// # Errors
/// A URL, certificate file or secret reference that cannot be used: exit code 2.
pub(crate) async fn open_configured(
    configured: &crate::config::Repository,
    deadlines: Deadlines,
) -> Result<Repository> {
    let mut options = StoreOptions {
        deadlines,
        ..StoreOptions::default()
    };
    if let Location::S3 { options: said, .. } = &configured.location {
        options.endpoint.clone_from(&said.endpoint);
        options.region.clone_from(&said.region);
        options.ca_file.clone_from(&said.ca_file);
        options.storage_class.clone_from(&said.storage_class);
        // Not said: the store puts the bucket where its endpoint wants it.
        options.path_style = said.path_style.then_some(true);
        if let Some(pair) = &said.credentials {
            let secret = async |reference: &repository::identity::SecretReference| {
                let text = reference.resolve().await?;
                Ok::<_, repository::Error>(text.expose_secret().trim().to_owned())
            };
            options.access_key_id = Some(secret(&pair.access_key).await?);
            options.secret_access_key = Some(secret(&pair.secret_key).await?);
        }
    }
    let store = Store::open(&configured.url, options)?;
    Ok(Repository::new(&configured.name, store))
}

/// Asks that there is a repository.
///
/// # Errors
/// Nobody ever made a repository there: exit code 10; the store does not answer.
pub(crate) async fn require_repository(repository: &Repository) -> Result<()> {
    let found = repository.fetch_identity().await;
    // A folder that is not there proves nothing (its file system may not be mounted), yet there is no repository either.
    let no_folder = repository.url().starts_with("file://")
        && matches!(found, Err(repository::Error::StoreConfig { .. }));
    let asked = found.with_context(|| format!("ask for the repository at {}", repository.url()));
    if no_folder {
        return asked.map(drop).exit_code(ExitCode::NoRepository);
    }
    if asked?.is_some() {
        return Ok(());
    }
    Err(anyhow!("{}: there is no repository", repository.url()))
        .hint("check the URL, or make one with `walden init`")
        .exit_code(ExitCode::NoRepository)
}

/// How new objects are sealed.
///
/// # Errors
/// As [`Config::recipients`].
pub(crate) fn seal_policy(config: &Config) -> Result<SealPolicy> {
    Ok(SealPolicy {
        recipients: config.recipients()?,
        compression: config.archive.compression,
        minimal_descriptor: config.archive.minimal_descriptor,
    })
}

/// How objects are opened: fetches the identity. Only for commands that read contents.
///
/// # Errors
/// As [`Config::identities`].
pub(crate) async fn open_policy(config: &Config, allow_plain: bool) -> Result<OpenPolicy> {
    Ok(OpenPolicy {
        identities: config.identities().await?,
        allow_plain,
    })
}

/// How the server is reached: the connection string, then libpq's `PG*` variables, then its defaults.
///
/// # Errors
/// A setting that cannot be used: exit code 2.
pub(crate) fn connection_info(config: &Config) -> Result<ConnectionInfo> {
    let conninfo = config.postgres.conninfo.as_deref().unwrap_or_default();
    let environment = |name: &str| std::env::var(name).ok();
    Ok(ConnectionInfo::parse(conninfo, &environment)?)
}

/// The cluster that a command works on: `named` on the command line, else the configured system identifier, else the only one
/// in the repository.
///
/// # Errors
/// The repository does not know it: exit code 5. None or several to choose from: exit code 2, with their names.
pub(crate) async fn find_cluster(
    config: &Config,
    repositories: impl Into<Repositories>,
    named: Option<&str>,
) -> Result<ClusterDocument> {
    let repository = repositories.into();
    let wanted: Option<ClusterId> = match named {
        Some(text) => Some(text.parse().exit_code(ExitCode::Usage)?),
        None => config.postgres.cluster(),
    };
    if let Some(cluster) = wanted {
        let found = repository.fetch_cluster(cluster).await?;
        let missing = || {
            anyhow!(
                "{}: the cluster {cluster} is not known there",
                repository.urls()
            )
        };
        return found
            .with_context(missing)
            .hint("`walden init` makes it known; `walden list --cluster` takes another one")
            .exit_code(ExitCode::Integrity);
    }
    let known = repository.list_clusters().await?;
    let only = match known.as_slice() {
        [only] => *only,
        [] => {
            return Err(anyhow!("{}: no cluster is stored there", repository.urls()))
                .hint("`walden init` makes a cluster known")
                .exit_code(ExitCode::NoRepository);
        }
        several => {
            let names: Vec<String> = several.iter().map(ToString::to_string).collect();
            return Err(anyhow!(
                "{}: {} clusters are stored there",
                repository.urls(),
                several.len()
            ))
            .hint(format!("choose one with --cluster: {}", names.join(", ")))
            .exit_code(ExitCode::Usage);
        }
    };
    let document = repository.fetch_cluster(only).await?;
    document.with_context(|| format!("{}: {only} has gone", repository.urls()))
}

/// The configured cluster, as the first of several repositories that answers knows it: one that is down keeps nobody from writing to the
/// others.
///
/// # Errors
/// As [`require_repository`] and [`find_cluster`], if none of them knows it.
pub(crate) async fn find_cluster_anywhere(
    config: &Config,
    repositories: &[Repository],
) -> Result<ClusterDocument> {
    let mut asked: FuturesUnordered<_> = repositories
        .iter()
        .map(|repository| async move {
            require_repository(repository).await?;
            find_cluster(config, repository, None).await
        })
        .collect();
    let mut first = None;
    while let Some(found) = asked.next().await {
        match found {
            Ok(cluster) => {
                if let Some(error) = first {
                    tracing::warn!("{:#}; going on with the other repositories", error);
                }
                return Ok(cluster);
            }
            // Whoever answers first has the most to say: an outage takes its time.
            Err(error) => {
                first.get_or_insert(error);
            }
        }
    }
    Err(first.unwrap_or_else(|| anyhow!("{}: no repository", config.source_name())))
}

/// The store's deadlines for a command that a person waits for: asking again is cheap, waiting five minutes is not.
pub(crate) const IMPATIENT: Deadlines = Deadlines {
    request: Duration::from_secs(5),
    total: Duration::from_secs(8),
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Overrides, RepositoryOverride};
    use crate::failure::Failure;
    use repository::testing::cluster_document;

    fn config(url: &str) -> Config {
        let overrides = Overrides {
            repository: Some(RepositoryOverride {
                url: url.to_owned(),
                ..RepositoryOverride::default()
            }),
            ..Overrides::default()
        };
        Config::load(None, crate::config::Caller::Command, &overrides).unwrap()
    }

    async fn open_first(config: &Config) -> Result<Repository> {
        open_configured(config.repository(), Deadlines::default()).await
    }

    #[tokio::test]
    async fn the_cluster_is_the_named_the_configured_or_the_only_one() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(&format!("file://{}/r", folder.path().display()));
        let none = require_repository(&open_first(&config).await.unwrap()).await;
        assert_eq!(Failure::of(&none.unwrap_err()).code, ExitCode::NoRepository);
        std::fs::create_dir(folder.path().join("r")).unwrap();
        let repository = open_first(&config).await.unwrap();
        let none = require_repository(&repository).await.unwrap_err();
        assert_eq!(Failure::of(&none).code, ExitCode::NoRepository);
        let none = find_cluster(&config, &repository, None).await;
        assert_eq!(Failure::of(&none.unwrap_err()).code, ExitCode::NoRepository);
        let put = async |identifier: u64| {
            let document = cluster_document(identifier);
            let key = repository::key::ObjectKey::Cluster(document.id());
            repository.put_json(&key, &document).await.unwrap();
        };
        put(7).await;
        let found = find_cluster(&config, &repository, None).await.unwrap();
        assert_eq!(found, cluster_document(7));
        put(8).await;
        let several = find_cluster(&config, &repository, None).await.unwrap_err();
        let several = Failure::of(&several);
        assert_eq!(several.code, ExitCode::Usage);
        assert!(several.hint.unwrap().contains("7, 8"));
        let named = find_cluster(&config, &repository, Some("8")).await.unwrap();
        assert_eq!(named.system_identifier, 8);
        config.postgres.system_identifier = std::num::NonZeroU64::new(9);
        let unknown = find_cluster(&config, &repository, None).await.unwrap_err();
        assert_eq!(Failure::of(&unknown).code, ExitCode::Integrity);
        let named = find_cluster(&config, &repository, Some("7")).await.unwrap();
        assert_eq!(named.system_identifier, 7);
    }

    #[test]
    fn nothing_is_sealed_in_the_clear_unless_that_is_said() {
        let mut config = config("file:///nowhere");
        assert!(seal_policy(&config).is_err());
        config.encryption = Some(crate::config::Encryption::None);
        assert!(seal_policy(&config).unwrap().recipients.is_none());
    }

    #[tokio::test]
    async fn keys_of_a_store_are_fetched_from_where_they_are_kept() {
        let mut config = config("s3://bucket/prefix");
        let Location::S3 { options, .. } = &mut config.repositories[0].location else {
            panic!("a bucket")
        };
        options.credentials = Some(crate::config::Credentials {
            access_key: "cmd:echo id".parse().unwrap(),
            secret_key: "env:WALDEN_TEST_NO_SUCH_VARIABLE".parse().unwrap(),
        });
        let error = open_first(&config).await.err().unwrap();
        let failure = Failure::of(&error);
        assert_eq!(failure.code, ExitCode::Usage);
        assert!(failure.line().contains("is not set"), "{}", failure.line());
    }
}
