//! Objects in an S3 bucket. Alone imports `object_store`: one attempt per call, its answers sorted into [`FailureKind`]s.
//! Owns the credentials' way in and the redaction of what the store says. Retries and deadlines of whole requests are the parent's.

use std::ops::Range;
use std::path::Path as FilePath;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut};
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::Path;
use object_store::{
    Certificate, ClientOptions, GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutOptions,
    PutPayload, RetryConfig,
};
use tokio::time::timeout;

use super::backend::{Backend, Failure, FailureKind, Fetched, PAGE_SIZE, Page, PageRequest};
use super::location::{Location, StoreOptions};
use super::{Listed, MAX_CONCURRENT_REQUESTS, ObjectMeta, PutOutcome};
use crate::error::Cause;
use crate::{Error, Result};

/// Longest wait for a connection: a host that is there answers sooner.
const MAX_CONNECT_TIME: Duration = Duration::from_secs(10);

/// An idle connection is closed by us before most servers and load balancers do.
const POOL_IDLE_TIME: Duration = Duration::from_secs(20);

/// Longest cause kept of what a store says, in characters.
const MAX_CAUSE_LENGTH: usize = 600;

/// Largest CA file read, in bytes.
const MAX_CA_FILE_SIZE: u64 = 4 << 20;

/// One bucket and the folder in it.
#[derive(Debug)]
pub(crate) struct S3Backend {
    client: AmazonS3,
    /// Empty, or a folder without a closing slash.
    prefix: String,
    /// Longest silence in an answer.
    patience: Duration,
    put_options: PutOptions,
    redactor: Redactor,
}

/// Makes the client; asks the store nothing.
pub(crate) fn open_s3(
    location: &Location,
    bucket: &str,
    prefix: &str,
    options: &StoreOptions,
) -> Result<S3Backend> {
    install_crypto_provider();
    let failed = |reason: String, cause: Option<String>| Error::StoreConfig {
        location: location.to_string(),
        reason,
        source: cause.map(Cause::new),
    };
    let environment = AmazonS3Builder::from_env();
    let from_environment = |key| {
        environment
            .get_config_value(&key)
            .filter(|value| !value.is_empty())
    };
    let redactor = Redactor::new([
        options.secret_access_key.clone(),
        options.session_token.clone(),
        from_environment(AmazonS3ConfigKey::SecretAccessKey),
        from_environment(AmazonS3ConfigKey::Token),
    ]);
    let region = options
        .region
        .clone()
        .or_else(|| from_environment(AmazonS3ConfigKey::Region));
    let endpoint = options
        .endpoint
        .clone()
        .or_else(|| from_environment(AmazonS3ConfigKey::S3Endpoint))
        .or_else(|| from_environment(AmazonS3ConfigKey::Endpoint));

    let mut builder = match (&options.access_key_id, &options.secret_access_key) {
        // Credentials are taken from one place only: a session token of the environment does not fit a key of the configuration.
        (Some(id), Some(secret)) => AmazonS3Builder::new()
            .with_access_key_id(id)
            .with_secret_access_key(secret),
        (None, None) => environment.clone(),
        _ => {
            return Err(failed(
                "an access key id and a secret access key are only useful together".into(),
                None,
            ));
        }
    };
    if let Some(token) = &options.session_token {
        builder = builder.with_token(token);
    }
    let mut allow_http = options.allow_http.unwrap_or(false);
    // Without an endpoint of one's own: AWS, where path style is on its way out. A dot in the bucket's name fits no TLS certificate.
    let path_style = options
        .path_style
        .unwrap_or(endpoint.is_some() || bucket.contains('.'));
    if let Some(endpoint) = endpoint {
        let endpoint = checked_endpoint(&endpoint).map_err(|reason| failed(reason, None))?;
        if endpoint.scheme() == "http" {
            if options.allow_http == Some(false) {
                return Err(failed(
                    format!("endpoint {endpoint} is not encrypted and allow_http = false"),
                    None,
                ));
            }
            allow_http = true;
        }
        let endpoint =
            endpoint_for(endpoint, bucket, path_style).map_err(|reason| failed(reason, None))?;
        builder = builder.with_config(AmazonS3ConfigKey::S3Endpoint, endpoint);
    }
    if let Some(region) = region {
        builder = builder.with_region(region);
    }
    // They go into headers as they are, and object_store panics on what no header can hold: a file with more than the key in it.
    for (key, what) in [
        (AmazonS3ConfigKey::AccessKeyId, "the access key id"),
        (AmazonS3ConfigKey::Region, "the region"),
        (AmazonS3ConfigKey::Token, "the session token"),
    ] {
        let value = builder.get_config_value(&key);
        if value.is_some_and(|value| value.bytes().any(|byte| !(b' '..=b'~').contains(&byte))) {
            let reason = format!("{what} has characters that it cannot have, a line break perhaps");
            return Err(failed(reason, None));
        }
    }

    let deadlines = options.deadlines;
    let mut client = ClientOptions::new()
        .with_timeout_disabled()
        .with_connect_timeout(MAX_CONNECT_TIME.min(deadlines.request))
        .with_pool_idle_timeout(POOL_IDLE_TIME)
        .with_pool_max_idle_per_host(MAX_CONCURRENT_REQUESTS)
        .with_allow_http(allow_http);
    let ca_file = options
        .ca_file
        .clone()
        .or_else(|| std::env::var_os("AWS_CA_BUNDLE").map(Into::into));
    if let Some(ca_file) = ca_file.filter(|path| !path.as_os_str().is_empty()) {
        for certificate in
            read_certificates(&ca_file).map_err(|(reason, cause)| failed(reason, cause))?
        {
            client = client.with_root_certificate(certificate);
        }
    }
    let no_retry = RetryConfig {
        max_retries: 0,
        ..RetryConfig::default()
    };
    let client = builder
        .with_bucket_name(bucket)
        .with_virtual_hosted_style_request(!path_style)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_client_options(client)
        .with_retry(no_retry)
        .build()
        .map_err(|error| {
            failed(
                "these settings do not make an S3 client".into(),
                Some(redactor.cause_of(&error)),
            )
        })?;
    Ok(S3Backend {
        client,
        prefix: prefix.to_owned(),
        patience: deadlines.request,
        put_options: options.put_options(),
        redactor,
    })
}

/// `reqwest` is built without a crypto library of its own and takes the process's: `ring`, unless the program chose one already.
fn install_crypto_provider() {
    use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
    if CryptoProvider::get_default().is_none()
        && ring::default_provider().install_default().is_err()
    {
        tracing::debug!("another thread installed the crypto provider first");
    }
}

fn checked_endpoint(endpoint: &str) -> Result<url::Url, String> {
    let url = url::Url::parse(endpoint).map_err(|error| {
        format!("endpoint {endpoint:?} is no URL ({error}): write https://host:port")
    })?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(format!(
            "endpoint {endpoint:?} must begin with https:// or http://"
        ));
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
        return Err("the endpoint must not hold credentials or options".into());
    }
    Ok(url)
}

/// `object_store` expects the bucket in the endpoint for virtual-hosted style and adds it itself for path style.
fn endpoint_for(mut endpoint: url::Url, bucket: &str, path_style: bool) -> Result<String, String> {
    if !path_style {
        let host = endpoint.host_str().unwrap_or_default();
        let host = format!("{bucket}.{host}");
        endpoint.set_host(Some(&host)).map_err(|error| {
            format!("path_style = false needs a host name in the endpoint ({error})")
        })?;
    }
    Ok(endpoint.as_str().trim_end_matches('/').to_owned())
}

fn read_certificates(path: &FilePath) -> Result<Vec<Certificate>, (String, Option<String>)> {
    let failed = |what: &str, cause: Option<String>| (format!("CA file {path:?} {what}"), cause);
    let cannot_read = |error: std::io::Error| failed("cannot be read", Some(error.to_string()));
    if std::fs::metadata(path).map_err(cannot_read)?.len() > MAX_CA_FILE_SIZE {
        return Err(failed("is too large for a file of certificates", None));
    }
    let pem = std::fs::read(path).map_err(cannot_read)?;
    let certificates = Certificate::from_pem_bundle(&pem)
        .map_err(|error| failed("is no PEM file of certificates", Some(error.to_string())))?;
    if certificates.is_empty() {
        return Err(failed(
            "holds no certificate: it needs -----BEGIN CERTIFICATE-----",
            None,
        ));
    }
    Ok(certificates)
}

#[async_trait]
impl Backend for S3Backend {
    async fn put_new(&self, path: &str, body: &[Bytes]) -> Result<PutOutcome, Failure> {
        let payload: PutPayload = body.iter().cloned().collect();
        match self
            .client
            .put_opts(&self.key(path)?, payload, self.put_options.clone())
            .await
        {
            Ok(_) => Ok(PutOutcome::Created),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(PutOutcome::AlreadyExists),
            Err(error) => Err(match self.failure_of(&error) {
                // An object that does not exist cannot be missing in a put: something was deleted beneath it.
                Failure {
                    kind: FailureKind::NotFound,
                    cause,
                } => Failure::transient(cause),
                failure => failure,
            }),
        }
    }

    async fn fetch(
        &self,
        path: &str,
        range: Option<Range<u64>>,
        limit: u64,
    ) -> Result<Fetched, Failure> {
        let options = GetOptions {
            range: range.clone().map(GetRange::Bounded),
            ..GetOptions::default()
        };
        let result = match self
            .patiently(self.client.get_opts(&self.key(path)?, options))
            .await?
        {
            Ok(result) => result,
            Err(error) => {
                let failure = self.failure_of(&error);
                return match range {
                    // Beyond the end (416), and some stores answer a range of an empty object with no range: ask for the size.
                    Some(range) if is_about_range(&error) => {
                        self.fetch_beyond_end(path, range.start, failure).await
                    }
                    _ => Err(failure),
                };
            }
        };
        let expected = result.range.end.saturating_sub(result.range.start);
        if expected > limit {
            return Err(Failure::new(FailureKind::TooLarge(result.meta.size), ""));
        }
        let (object_size, last_modified) = (
            result.meta.size,
            SystemTime::from(result.meta.last_modified),
        );
        let mut stream = result.into_stream();
        let mut pieces = Pieces::default();
        while let Some(piece) = self.patiently(stream.next()).await? {
            pieces.push(piece.map_err(|error| self.failure_of(&error))?, expected)?;
        }
        Ok(Fetched {
            bytes: pieces.join(expected)?,
            object_size,
            last_modified,
        })
    }

    async fn head(&self, path: &str) -> Result<ObjectMeta, Failure> {
        match self.client.head(&self.key(path)?).await {
            Ok(meta) => Ok(ObjectMeta {
                size: meta.size,
                last_modified: SystemTime::from(meta.last_modified),
            }),
            // An answer to HEAD has no body: only a GET says whether the object or the whole bucket is missing.
            Err(object_store::Error::NotFound { .. }) => {
                let fetched = self.fetch(path, Some(0..1), 1).await?;
                Ok(ObjectMeta {
                    size: fetched.object_size,
                    last_modified: fetched.last_modified,
                })
            }
            Err(error) => Err(self.failure_of(&error)),
        }
    }

    async fn list_page(&self, request: &PageRequest) -> Result<Page, Failure> {
        let folder = match self.full(&request.folder) {
            folder if folder.is_empty() => None,
            folder => Some(format!("{folder}/")),
        };
        let options = PaginatedListOptions {
            offset: start_after(&request.folder, request.after.as_deref())
                .map(|start| self.full(&start)),
            delimiter: request.delimited.then_some("/".into()),
            max_keys: Some(PAGE_SIZE),
            page_token: request.token.clone(),
            ..PaginatedListOptions::default()
        };
        let answer = self
            .client
            .list_paginated(folder.as_deref(), options)
            .await
            .map_err(|error| self.failure_of(&error))?;
        let below = |path: &Path| self.below_prefix(path.as_ref());
        let objects = answer.result.objects.iter().filter_map(|meta| {
            let path = below(&meta.location)?;
            // The store's own idea of "after" is not taken on trust; a folder's marker object is not ours.
            let wanted =
                request.after.as_ref().is_none_or(|after| path > *after) && path != request.folder;
            wanted.then(|| Listed {
                path,
                size: meta.size,
                last_modified: SystemTime::from(meta.last_modified),
            })
        });
        Ok(Page {
            objects: objects.collect(),
            folders: answer
                .result
                .common_prefixes
                .iter()
                .filter_map(below)
                .collect(),
            token: answer.page_token,
        })
    }
}

impl S3Backend {
    fn full(&self, path: &str) -> String {
        match (self.prefix.as_str(), path) {
            ("", path) => path.to_owned(),
            (prefix, "") => prefix.to_owned(),
            (prefix, path) => format!("{prefix}/{path}"),
        }
    }

    fn key(&self, path: &str) -> Result<Path, Failure> {
        Path::parse(self.full(path)).map_err(|error| {
            Failure::new(
                FailureKind::Odd("not a possible key".into()),
                error.to_string(),
            )
        })
    }

    fn below_prefix(&self, key: &str) -> Option<String> {
        if self.prefix.is_empty() {
            return Some(key.to_owned());
        }
        key.strip_prefix(&self.prefix)?
            .strip_prefix('/')
            .map(str::to_owned)
    }

    async fn patiently<T>(&self, wait: impl Future<Output = T>) -> Result<T, Failure> {
        timeout(self.patience, wait)
            .await
            .map_err(|_| Failure::transient(format!("no bytes within {:.1?}", self.patience)))
    }

    async fn fetch_beyond_end(
        &self,
        path: &str,
        start: u64,
        failure: Failure,
    ) -> Result<Fetched, Failure> {
        let meta = self
            .client
            .head(&self.key(path)?)
            .await
            .map_err(|error| self.failure_of(&error))?;
        if start < meta.size {
            return Err(failure);
        }
        let last_modified = SystemTime::from(meta.last_modified);
        Ok(Fetched {
            bytes: Bytes::new(),
            object_size: meta.size,
            last_modified,
        })
    }

    fn failure_of(&self, error: &object_store::Error) -> Failure {
        let answer = Answer::of(error, &self.redactor);
        Failure::new(answer.kind(), answer.cause)
    }
}

/// Where to let the store begin so that it skips nothing greater than `after`; what it sends too much is dropped here.
///
/// Not every store lists in byte order: SeaweedFS walks folders, so for it `a/x` comes before `a-b` and beginning after `a-b` would lose it.
/// The beginning of the first part below `folder`, only of characters beyond `/` and one less, comes before all of `after`'s successors
/// in both orders: a greater path's part there is never a proper prefix of it, nor equal to it.
fn start_after(folder: &str, after: Option<&str>) -> Option<String> {
    let below = match folder {
        "" => after?,
        folder => after?.strip_prefix(folder)?.strip_prefix('/')?,
    };
    let mut part: String = below.chars().take_while(|c| *c > '/').collect();
    part.pop();
    match (part.as_str(), folder) {
        ("", _) => None,
        (part, "") => Some(part.to_owned()),
        (part, folder) => Some(format!("{folder}/{part}")),
    }
}

/// The pieces of a body, joined only if there are several.
#[derive(Default)]
struct Pieces {
    first: Bytes,
    joined: BytesMut,
}

impl Pieces {
    fn push(&mut self, piece: Bytes, expected: u64) -> Result<(), Failure> {
        let size = (self.first.len() + self.joined.len() + piece.len()) as u64;
        if size > expected {
            return Err(Failure::transient(format!(
                "{size} bytes arrived where {expected} were announced"
            )));
        }
        if self.first.is_empty() && self.joined.is_empty() {
            self.first = piece;
            return Ok(());
        }
        if self.joined.is_empty() {
            // `expected` is within the reader's limit.
            self.joined.reserve(usize::try_from(expected).unwrap_or(0));
            self.joined
                .extend_from_slice(&std::mem::take(&mut self.first));
        }
        self.joined.extend_from_slice(&piece);
        Ok(())
    }

    fn join(self, expected: u64) -> Result<Bytes, Failure> {
        let bytes = if self.joined.is_empty() {
            self.first
        } else {
            self.joined.freeze()
        };
        match bytes.len() as u64 == expected {
            true => Ok(bytes),
            false => Err(Failure::transient(format!(
                "{} bytes arrived of {expected}",
                bytes.len()
            ))),
        }
    }
}

/// What a failed request says of itself: HTTP status, S3 error code, and the words to show.
#[derive(Debug)]
struct Answer {
    status: Option<u16>,
    code: String,
    /// Every word of the error, for the marks of failures without a status.
    text: String,
    cause: String,
    is_unsupported: bool,
}

impl Answer {
    fn of(error: &object_store::Error, redactor: &Redactor) -> Self {
        // The outermost message repeats those beneath it; only transport errors hide their reason deeper.
        let message = error.to_string();
        let text = chain(error).join(": ");
        let status = message
            .split_once("non-2xx status code: ")
            .or_else(|| text.split_once("error response: "))
            .and_then(|(_, rest)| rest.get(..3)?.parse().ok());
        let code = element(&message, "Code").unwrap_or_default().to_owned();
        let cause = match status {
            Some(status) => redactor.clean(&words_of_answer(status, &code, &message)),
            None => redactor.cause_of(error),
        };
        let is_unsupported = matches!(error, object_store::Error::NotImplemented { .. });
        Answer {
            status,
            code,
            text,
            cause,
            is_unsupported,
        }
    }

    fn kind(&self) -> FailureKind {
        let config = |reason: &str| FailureKind::Config(reason.to_owned());
        if ["//169.254.", "/latest/api/token", "/latest/meta-data/"]
            .iter()
            .any(|mark| self.text.contains(mark))
        {
            return FailureKind::NoCredentials;
        }
        match (self.status, self.code.as_str()) {
            (_, "NoSuchKey") => FailureKind::NotFound,
            (_, "NoSuchBucket") => {
                config("the bucket does not exist: create it, or correct the URL")
            }
            (_, "RequestTimeTooSkewed") => config(
                "the clocks of this host and the store differ too much: set this host's clock",
            ),
            (_, "InvalidObjectState") => {
                config("the object is in an archive storage class: restore it there first")
            }
            (_, "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired") => FailureKind::Denied,
            (
                _,
                "PermanentRedirect"
                | "AuthorizationHeaderMalformed"
                | "IllegalLocationConstraintException",
            ) => config("wrong region or endpoint for this bucket: set region"),
            (_, "XMinioStorageFull" | "QuotaExceeded" | "InsufficientStorage") | (Some(507), _) => {
                FailureKind::Full
            }
            (
                _,
                "SlowDown" | "RequestTimeout" | "BadDigest" | "IncompleteBody" | "InternalError",
            ) => FailureKind::Transient,
            (Some(401 | 403), _) => FailureKind::Denied,
            (Some(300..=399), _) => config("redirected: wrong region or endpoint for this bucket"),
            (Some(404), _) => {
                config("answers 404 but not as an S3 service does: is the endpoint right?")
            }
            (Some(501), _) => config(
                "the store lacks something that Walden needs (conditional writes: If-None-Match)",
            ),
            (Some(408 | 409 | 412 | 425 | 429 | 500..), _) => FailureKind::Transient,
            (Some(_), _) => config("the store refuses the request"),
            (None, _) => self.kind_without_status(),
        }
    }

    fn kind_without_status(&self) -> FailureKind {
        let config = |reason: &str| FailureKind::Config(reason.to_owned());
        let says = |mark: &str| self.text.contains(mark);
        if self.is_unsupported {
            return FailureKind::Config("the store cannot do what Walden needs".into());
        }
        if says("invalid peer certificate") || says("UnknownIssuer") {
            return config(
                "the store's TLS certificate is not trusted: set ca_file to the CA that issued it",
            );
        }
        if says("received corrupt message") || says("wrong version number") {
            return config("the endpoint does not speak TLS: write http:// or use its TLS port");
        }
        if says("scheme is not allowed") {
            return config("http:// is not allowed: use https://, or set allow_http = true");
        }
        if says("incorrectly configured region") {
            return config("wrong region or endpoint for this bucket: set region");
        }
        FailureKind::Transient
    }
}

fn is_about_range(error: &object_store::Error) -> bool {
    let text = error.to_string();
    [
        "status code: 416",
        "InvalidRange",
        "non-partial response",
        "range starting at",
        "Content-Range",
    ]
    .iter()
    .any(|mark| text.contains(mark))
}

/// `403: AccessDenied: Access Denied.`, or the beginning of a body that is no S3 error.
fn words_of_answer(status: u16, code: &str, text: &str) -> String {
    match element(text, "Message") {
        Some(message) => format!("{status}: {code}: {message}"),
        None => {
            let body = text
                .split_once("status code: ")
                .map_or(text, |(_, body)| body);
            body.chars().filter(|c| !c.is_control()).take(200).collect()
        }
    }
}

/// The text of the first XML element of this name.
fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>"))
        .map(|(inner, _)| inner)
}

/// The messages of an error and its causes, outermost first.
fn chain(error: &(dyn std::error::Error + 'static)) -> Vec<String> {
    std::iter::successors(Some(error), |error| error.source())
        .take(16)
        .map(ToString::to_string)
        .collect()
}

/// Takes secrets out of what is shown.
#[derive(Debug)]
struct Redactor {
    secrets: Secrets,
}

struct Secrets(Vec<String>);

impl std::fmt::Debug for Secrets {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} secrets", self.0.len())
    }
}

impl Redactor {
    fn new(secrets: impl IntoIterator<Item = Option<String>>) -> Self {
        Redactor {
            secrets: Secrets(
                secrets
                    .into_iter()
                    .flatten()
                    .filter(|secret| secret.len() >= 4)
                    .collect(),
            ),
        }
    }

    /// The innermost messages say what happened (`Connection refused`), the outer ones repeat them.
    fn cause_of(&self, error: &object_store::Error) -> String {
        let mut messages: Vec<String> = Vec::new();
        for message in chain(error).into_iter().rev() {
            if !messages
                .iter()
                .any(|inner| message.contains(inner.as_str()))
            {
                messages.push(message);
            }
            if messages.len() == 3 {
                break;
            }
        }
        messages.reverse();
        self.clean(&messages.join(": "))
    }

    /// Without known secrets and without the query of any URL (signatures and tokens stand there); of bounded length.
    fn clean(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for secret in &self.secrets.0 {
            text = text.replace(secret.as_str(), "(redacted)");
        }
        let words: Vec<&str> = text
            .split_whitespace()
            .map(|word| match word.contains("://") {
                true => word.split('?').next().unwrap_or_default(),
                false => word,
            })
            .collect();
        words.join(" ").chars().take(MAX_CAUSE_LENGTH).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_begins_where_no_order_can_have_skipped_anything() {
        let check = |folder: &str, after: &str, expected: Option<&str>| {
            assert_eq!(
                start_after(folder, Some(after)).as_deref(),
                expected,
                "{after} in {folder:?}"
            );
        };
        check("order", "order/a-b", None);
        check("order", "order/ab-b", Some("order/a"));
        check("wal/1", "wal/1/0007.wal", Some("wal/1/000"));
        check("wal", "wal/0001/0007.wal", Some("wal/000"));
        check("", "wal/0001", Some("wa"));
        check("", "ü日/x", Some("ü"));
        check("order", "order", None);
        check("order", "orderly/x", None);
        check("order", "zzz", None);
        assert_eq!(start_after("order", None), None);
    }

    #[test]
    fn every_greater_path_is_beyond_the_start_in_byte_order_and_in_folder_order() {
        let names = ["a", "a-b", "a.b", "a0", "aa", "ab", "b", "ba", "-", "0"];
        let paths: Vec<String> = names
            .iter()
            .flat_map(|one| {
                names
                    .iter()
                    .map(move |two| format!("f/{one}/{two}"))
                    .chain([format!("f/{one}")])
            })
            .collect();
        let parts = |path: &str| path.split('/').map(str::to_owned).collect::<Vec<_>>();
        let mut started = 0;
        for after in &paths {
            let Some(start) = start_after("f", Some(after)) else {
                continue;
            };
            started += 1;
            for path in paths.iter().filter(|path| *path > after) {
                assert!(*path > start, "{path} after {after} from {start}");
                assert!(
                    parts(path)[1] > parts(&start)[1],
                    "{path} after {after} from {start}"
                );
            }
        }
        assert!(started > 20, "{started}");
    }
}
