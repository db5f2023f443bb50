//! Repository URLs and the options that go with them: text to a checked [`Location`]. Pure.
//! `file:///absolute/path` and `s3://bucket/prefix?endpoint=…&region=…&path_style=…&ca_file=…&allow_http=…`. Percent-encoding is decoded;
//! spaces, quotes and UTF-8 may also stand as they are; `%`, `?` and `#` are written `%25`, `%3F`, `%23`. Secrets never stand in a URL.

use std::fmt;
use std::path::PathBuf;

use object_store::{Attribute, PutMode, PutOptions};

use super::retry::Deadlines;
use crate::{Error, Result};

/// Longest URL accepted, in bytes.
const MAX_URL_LENGTH: usize = 2048;

/// How to reach a store, apart from its URL. Everything unset comes from the URL's query, then from the standard `AWS_*` variables.
#[derive(Clone, Default)]
pub struct StoreOptions {
    /// S3: URL of the service, for everything that is not AWS.
    pub endpoint: Option<String>,
    /// S3: region, `us-east-1` if nobody says otherwise.
    pub region: Option<String>,
    /// S3: bucket in the path (`endpoint/bucket/key`), not in the host name. Default: only with an endpoint of one's own.
    pub path_style: Option<bool>,
    /// S3: access key id. With it, no credentials are taken from the environment.
    pub access_key_id: Option<String>,
    /// S3: secret access key.
    pub secret_access_key: Option<String>,
    /// S3: session token of temporary credentials.
    pub session_token: Option<String>,
    /// S3: the class that new objects are stored in, as the store spells it; the bucket's own if unset.
    pub storage_class: Option<String>,
    /// PEM file with certificates to trust beside the system's. Default: `AWS_CA_BUNDLE`.
    pub ca_file: Option<PathBuf>,
    /// Allow `http://`. An endpoint that says `http://` allows it too.
    pub allow_http: Option<bool>,
    /// How long operations may take.
    pub deadlines: Deadlines,
    /// Seed of the jitter between retries; random if unset. For tests that replay.
    pub jitter_seed: Option<u64>,
}

impl StoreOptions {
    /// How every new object is stored: never over another one.
    pub(crate) fn put_options(&self) -> PutOptions {
        let class = self.storage_class.clone();
        let attributes = class.map(|class| (Attribute::StorageClass, class));
        PutOptions {
            mode: PutMode::Create,
            attributes: attributes.into_iter().collect(),
            ..PutOptions::default()
        }
    }
}

impl fmt::Debug for StoreOptions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secret = |value: &Option<String>| value.as_ref().map(|_| "(redacted)");
        formatter
            .debug_struct("StoreOptions")
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .field("path_style", &self.path_style)
            .field("access_key_id", &self.access_key_id)
            .field("secret_access_key", &secret(&self.secret_access_key))
            .field("session_token", &secret(&self.session_token))
            .field("storage_class", &self.storage_class)
            .field("ca_file", &self.ca_file)
            .field("allow_http", &self.allow_http)
            .field("deadlines", &self.deadlines)
            .finish_non_exhaustive()
    }
}

/// A checked repository URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Location {
    /// A local folder, absolute.
    File { root: PathBuf },
    /// A bucket and the folder in it (empty, or without slashes at its ends).
    S3 { bucket: String, prefix: String },
}

impl fmt::Display for Location {
    /// The URL without its query, as it appears in messages.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::File { root } => write!(formatter, "file://{}", root.display()),
            Location::S3 { bucket, prefix } if prefix.is_empty() => {
                write!(formatter, "s3://{bucket}")
            }
            Location::S3 { bucket, prefix } => write!(formatter, "s3://{bucket}/{prefix}"),
        }
    }
}

/// Reads a URL and merges its query into `options`. A setting given in both places must be the same.
pub(crate) fn parse_url(url: &str, options: StoreOptions) -> Result<(Location, StoreOptions)> {
    let invalid = |reason: String| Error::InvalidUrl {
        url: without_secrets(url),
        reason,
    };
    if url.len() > MAX_URL_LENGTH {
        return Err(Error::InvalidUrl {
            url: url.chars().take(64).collect(),
            reason: format!("longer than {MAX_URL_LENGTH} bytes"),
        });
    }
    if url.chars().any(char::is_control) {
        return Err(invalid("contains a control character".into()));
    }
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err(invalid(match url.strip_prefix('/') {
            Some(_) => format!("has no scheme: write file://{url}"),
            None => "has no scheme: write file:///absolute/path or s3://bucket/prefix".into(),
        }));
    };
    if rest.contains('#') {
        return Err(invalid("contains '#': write it as %23".into()));
    }
    let (rest, query) = rest
        .split_once('?')
        .map_or((rest, None), |(rest, query)| (rest, Some(query)));
    match scheme {
        "file" => {
            if query.is_some() {
                return Err(invalid(
                    "a file:// URL takes no options; write '?' in a name as %3F".into(),
                ));
            }
            Ok((parse_file(rest).map_err(invalid)?, options))
        }
        "s3" => {
            let location = parse_s3(rest).map_err(invalid)?;
            let options = query
                .map_or(Ok(options.clone()), |query| merge_query(query, options))
                .map_err(invalid)?;
            Ok((location, options))
        }
        other => Err(invalid(format!(
            "scheme {other:?} is not supported: use file:// or s3://"
        ))),
    }
}

fn parse_file(rest: &str) -> Result<Location, String> {
    let rest = rest
        .strip_prefix("localhost/")
        .map_or(rest.to_owned(), |path| format!("/{path}"));
    if !rest.starts_with('/') {
        return Err(format!(
            "the path must be absolute: write file:///{rest} with the full path"
        ));
    }
    let path = percent_decode(&rest)?;
    if path.split('/').any(|part| part == "..") {
        return Err("the path contains '..': write it without".into());
    }
    let root: PathBuf = PathBuf::from(&path).components().collect();
    if root.parent().is_none() {
        return Err(
            "the root folder of the system cannot be a repository: name a folder below it".into(),
        );
    }
    Ok(Location::File { root })
}

fn parse_s3(rest: &str) -> Result<Location, String> {
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.contains('@') {
        return Err(
            "credentials do not belong in a URL: use AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
                .into(),
        );
    }
    let bucket = percent_decode(bucket)?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if bucket.is_empty() || bucket.len() > 255 || !bucket.chars().all(allowed) {
        return Err(format!(
            "{bucket:?} is no bucket name: write s3://bucket/prefix"
        ));
    }
    let prefix = percent_decode(prefix)?.trim_matches('/').to_owned();
    if !prefix.is_empty() {
        super::check_path(&prefix).map_err(|reason| format!("prefix {prefix:?}: {reason}"))?;
    }
    Ok(Location::S3 { bucket, prefix })
}

fn merge_query(query: &str, mut options: StoreOptions) -> Result<StoreOptions, String> {
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair
            .split_once('=')
            .ok_or_else(|| format!("option {pair:?} has no value"))?;
        let value = percent_decode(value)?;
        match name {
            "endpoint" => merge(name, &mut options.endpoint, value)?,
            "region" => merge(name, &mut options.region, value)?,
            "path_style" => merge(name, &mut options.path_style, parse_bool(name, &value)?)?,
            "allow_http" => merge(name, &mut options.allow_http, parse_bool(name, &value)?)?,
            "ca_file" => merge(name, &mut options.ca_file, PathBuf::from(value))?,
            _ if is_secret_name(name) => {
                return Err(format!(
                    "{name} does not belong in a URL: use the configuration or AWS_* variables"
                ));
            }
            _ => {
                return Err(format!(
                    "unknown option {name:?}: known are endpoint, region, path_style, ca_file, allow_http"
                ));
            }
        }
    }
    Ok(options)
}

fn merge<T: PartialEq>(name: &str, slot: &mut Option<T>, value: T) -> Result<(), String> {
    match slot {
        Some(old) if *old != value => Err(format!("{name} is given twice with different values")),
        _ => {
            *slot = Some(value);
            Ok(())
        }
    }
}

fn parse_bool(name: &str, value: &str) -> Result<bool, String> {
    match value {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(format!("{name} must be true or false, not {value:?}")),
    }
}

fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    [
        "key",
        "secret",
        "token",
        "password",
        "credential",
        "signature",
    ]
    .iter()
    .any(|word| name.contains(word))
}

fn percent_decode(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if first != b'%' {
            bytes.push(first);
            rest = tail;
            continue;
        }
        let digit = |byte: Option<&u8>| byte.and_then(|&byte| char::from(byte).to_digit(16));
        match (digit(tail.first()), digit(tail.get(1))) {
            (Some(high), Some(low)) => bytes.push((high * 16 + low) as u8),
            _ => {
                return Err(
                    "'%' must be followed by two hex digits: write a plain '%' as %25".into(),
                );
            }
        }
        rest = tail.get(2..).unwrap_or_default();
    }
    let text =
        String::from_utf8(bytes).map_err(|_| "percent-encoding does not give UTF-8".to_owned())?;
    if text.chars().any(char::is_control) {
        return Err("contains a control character".into());
    }
    Ok(text)
}

/// The URL with the values of secret options and of a user part taken out, for messages.
fn without_secrets(url: &str) -> String {
    let (front, query) = url
        .split_once('?')
        .map_or((url, None), |(front, query)| (front, Some(query)));
    let front = match front.split_once("://") {
        Some((scheme, rest)) => match rest.split_once('@') {
            Some((_, host)) => format!("{scheme}://(redacted)@{host}"),
            None => front.to_owned(),
        },
        None => front.to_owned(),
    };
    let Some(query) = query else { return front };
    let pairs: Vec<String> = query
        .split('&')
        .map(|pair| match pair.split_once('=') {
            Some((name, _)) if is_secret_name(name) => format!("{name}=(redacted)"),
            _ => pair.to_owned(),
        })
        .collect();
    format!("{front}?{}", pairs.join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_urls_decode_and_keep_odd_names() {
        let check = |url: &str, expected: &str| {
            let (location, _) = parse_url(url, StoreOptions::default()).unwrap();
            assert_eq!(
                location,
                Location::File {
                    root: expected.into()
                },
                "{url}"
            );
        };
        check("file:///var/lib/walden", "/var/lib/walden");
        check("file:///var/lib/walden/", "/var/lib/walden");
        check(
            "file:///my backups/it's \"here\"",
            "/my backups/it's \"here\"",
        );
        check("file:///my%20backups/100%25/%3F%23", "/my backups/100%/?#");
        check("file:///Übung/%E6%97%A5", "/Übung/日");
        check("file://localhost/var/x", "/var/x");
    }

    #[test]
    fn s3_urls_give_bucket_prefix_and_options() {
        let (location, options) = parse_url(
            "s3://acme-pg/prod/eu west?endpoint=https://s3.example:9000&region=eu-1&path_style=false&ca_file=/a%20b.pem",
            StoreOptions::default(),
        )
        .unwrap();
        assert_eq!(
            location,
            Location::S3 {
                bucket: "acme-pg".into(),
                prefix: "prod/eu west".into()
            }
        );
        assert_eq!(location.to_string(), "s3://acme-pg/prod/eu west");
        assert_eq!(options.endpoint.as_deref(), Some("https://s3.example:9000"));
        assert_eq!(options.region.as_deref(), Some("eu-1"));
        assert_eq!(options.path_style, Some(false));
        assert_eq!(options.ca_file, Some("/a b.pem".into()));
        let (location, _) = parse_url("s3://bucket/", StoreOptions::default()).unwrap();
        assert_eq!(
            location,
            Location::S3 {
                bucket: "bucket".into(),
                prefix: String::new()
            }
        );
    }

    #[test]
    fn unusable_urls_say_what_to_write_instead() {
        let check = |url: &str, expected: &str| {
            let options = StoreOptions {
                region: Some("here".into()),
                ..StoreOptions::default()
            };
            let message = parse_url(url, options).unwrap_err().to_string();
            assert!(message.contains(expected), "{url}: {message}");
        };
        check("/var/lib/walden", "write file:///var/lib/walden");
        check("walden", "no scheme");
        check("file://var/lib", "must be absolute: write file:///var/lib");
        check("file://./x", "must be absolute");
        check("file:///", "root folder");
        check("file:///a/../b", "'..'");
        check("file:///a%2e%2e/../b", "'..'");
        check("file:///100%", "write a plain '%' as %25");
        check("file:///a%zzb", "write a plain '%' as %25");
        check("file:///a%FF", "UTF-8");
        check("file:///a%00b", "control character");
        check("file:///a?b", "%3F");
        check("file:///a#b", "%23");
        check("gs://bucket", "not supported");
        check("s3://", "no bucket name");
        check("s3:///prefix", "no bucket name");
        check("s3://b/a//b", "empty");
        check("s3://b/../c", "'..'");
        check("s3://b?region", "no value");
        check("s3://b?regoin=x", "unknown option \"regoin\"");
        check("s3://b?region=there", "given twice");
        check("s3://b?path_style=yes", "true or false");
        check(&format!("file:///{}", "x".repeat(5000)), "longer than");
    }

    #[test]
    fn secrets_are_refused_in_urls_and_do_not_show_in_the_message() {
        for url in [
            "s3://user:hunter2@bucket/x",
            "s3://bucket/x?secret_access_key=hunter2&region=a",
        ] {
            let message = parse_url(url, StoreOptions::default())
                .unwrap_err()
                .to_string();
            assert!(!message.contains("hunter2"), "{message}");
        }
        let options = StoreOptions {
            secret_access_key: Some("hunter2".into()),
            session_token: Some("hunter3".into()),
            ..StoreOptions::default()
        };
        assert!(!format!("{options:?}").contains("hunter"));
    }
}
