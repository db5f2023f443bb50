//! `[[repository]]`: where objects are stored and how to get there. Opening it is the library's.

use std::path::{Path, PathBuf};

use ::repository::identity::SecretReference;

use super::reader::{Complaint, Table};
use super::secret_ref_at;

/// A repository and how to reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Repository {
    /// What reports call it: lower-case letters, digits, `-` and `_`.
    pub(crate) name: String,
    /// `s3://BUCKET[/PREFIX]` or `file:///PATH`, as the user wrote it.
    pub(crate) url: String,
    /// The same, taken apart.
    pub(crate) location: Location,
}

/// Where a repository is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Location {
    /// A folder of this host (or mounted there), absolute.
    File(PathBuf),
    /// A prefix of a bucket.
    S3 {
        /// Bucket name.
        bucket: String,
        /// Prefix without slashes at its ends; empty for the whole bucket.
        prefix: String,
        /// How to reach the store.
        options: S3Options,
    },
}

/// How to reach an S3 store; what is absent comes from the `AWS_*` variables or the SDK's defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct S3Options {
    /// `http://` or `https://` URL.
    pub(crate) endpoint: Option<String>,
    /// Region.
    pub(crate) region: Option<String>,
    /// The bucket stands in the path, not in the host name.
    pub(crate) path_style: bool,
    /// PEM file of the certificates to trust.
    pub(crate) ca_file: Option<PathBuf>,
    /// Where the keys are kept.
    pub(crate) credentials: Option<Credentials>,
    /// The class that objects are stored in; the bucket's own if absent.
    pub(crate) storage_class: Option<String>,
}

/// Where both halves of an access key are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Credentials {
    /// Access key id.
    pub(crate) access_key: SecretReference,
    /// Secret access key.
    pub(crate) secret_key: SecretReference,
}

/// A repository as the command line names it; what is `None` is not said there.
#[derive(Debug, Clone, Default)]
pub(crate) struct RepositoryOverride {
    /// URL.
    pub(crate) url: String,
    /// `--endpoint`
    pub(crate) endpoint: Option<String>,
    /// `--region`
    pub(crate) region: Option<String>,
    /// `--path-style`
    pub(crate) path_style: Option<bool>,
    /// `--ca-file`
    pub(crate) ca_file: Option<PathBuf>,
    /// `--access-key`
    pub(crate) access_key: Option<SecretReference>,
    /// `--secret-key`
    pub(crate) secret_key: Option<SecretReference>,
}

impl Repository {
    /// The name of a repository that nobody named.
    pub(crate) const DEFAULT_NAME: &str = "primary";

    pub(super) fn read(mut table: Table<'_>, folder: &Path) -> Result<Self, Complaint> {
        let name = match table.string("name")? {
            Some(name) => {
                let allowed = |byte: u8| {
                    byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte)
                };
                if name.value.is_empty()
                    || name.value.len() > 63
                    || !name.value.bytes().all(allowed)
                {
                    return Err(name.complain(
                        "`name` is made of lower-case letters, digits, - and _, at most 63",
                    ));
                }
                name.value
            }
            None => Self::DEFAULT_NAME.to_owned(),
        };
        let url = table
            .string("url")?
            .ok_or_else(|| table.complain("[[repository]] has no `url`"))?;
        let mut location = parse_url(&url.value).map_err(|message| url.complain(message))?;

        let endpoint = table.string("endpoint")?;
        let region = table.string("region")?;
        let path_style = table.boolean("path_style")?;
        let ca_file = table.string("ca_file")?;
        let access_key = secret_ref_at(&mut table, "access_key", folder)?;
        let secret_key = secret_ref_at(&mut table, "secret_key", folder)?;
        let storage_class = table.string("storage_class")?;
        match &mut location {
            Location::S3 { options, .. } => {
                if let Some(endpoint) = endpoint {
                    check_endpoint(&endpoint.value)
                        .map_err(|message| endpoint.complain(message))?;
                    options.endpoint = Some(endpoint.value);
                }
                options.region = region.map(|region| region.value);
                options.path_style = path_style.is_some_and(|choice| choice.value);
                options.ca_file = ca_file.map(|path| folder.join(path.value));
                options.credentials =
                    pair(access_key, secret_key).map_err(|message| table.complain(message))?;
                if let Some(class) = storage_class {
                    check_storage_class(&class.value).map_err(|message| class.complain(message))?;
                    options.storage_class = Some(class.value);
                }
            }
            Location::File(_) => {
                let line = endpoint
                    .or(region)
                    .or(ca_file)
                    .or(storage_class)
                    .map(|setting| setting.line)
                    .or(path_style.map(|setting| setting.line))
                    .or_else(|| access_key.or(secret_key).map(|_| url.line));
                if let Some(line) = line {
                    let message =
                        "endpoint, region, path_style, ca_file, storage_class and keys are for s3:// only"
                            .to_owned();
                    return Err(Complaint {
                        line: Some(line),
                        message,
                        hint: None,
                    });
                }
            }
        }
        table.finish()?;
        Ok(Self {
            name,
            url: url.value,
            location,
        })
    }

    /// Whether both are one and the same place, however their URLs spell it.
    pub(super) fn is_same_place(&self, other: &Self) -> bool {
        match (&self.location, &other.location) {
            // `components` passes over doubled and closing slashes.
            (Location::File(left), Location::File(right)) => {
                left.components().eq(right.components())
            }
            (
                Location::S3 {
                    bucket,
                    prefix,
                    options,
                },
                Location::S3 {
                    bucket: other_bucket,
                    prefix: other_prefix,
                    options: other_options,
                },
            ) => {
                (bucket, prefix, &options.endpoint)
                    == (other_bucket, other_prefix, &other_options.endpoint)
            }
            _ => false,
        }
    }

    /// The repository that the command line names.
    pub(super) fn from_override(named: &RepositoryOverride) -> Result<Self, String> {
        let location = parse_url(&named.url)?;
        Self {
            name: Self::DEFAULT_NAME.to_owned(),
            url: named.url.clone(),
            location,
        }
        .with(named)
    }

    /// This repository, with what `named` says of it.
    pub(super) fn with(mut self, named: &RepositoryOverride) -> Result<Self, String> {
        let RepositoryOverride {
            url: _,
            endpoint,
            region,
            path_style,
            ca_file,
            access_key,
            secret_key,
        } = named.clone();
        match &mut self.location {
            Location::S3 { options, .. } => {
                if let Some(endpoint) = endpoint {
                    check_endpoint(&endpoint)?;
                    options.endpoint = Some(endpoint);
                }
                options.region = region.or(options.region.take());
                options.path_style = path_style.unwrap_or(options.path_style);
                options.ca_file = ca_file.or(options.ca_file.take());
                options.credentials = pair(access_key, secret_key)?.or(options.credentials.take());
            }
            Location::File(_) => {
                let said = endpoint.is_some()
                    || region.is_some()
                    || path_style.is_some()
                    || ca_file.is_some()
                    || access_key.is_some()
                    || secret_key.is_some();
                if said {
                    return Err(
                        "endpoint, region, path style, CA file and keys are for s3:// only"
                            .to_owned(),
                    );
                }
            }
        }
        Ok(self)
    }
}

fn pair(
    access_key: Option<SecretReference>,
    secret_key: Option<SecretReference>,
) -> Result<Option<Credentials>, String> {
    match (access_key, secret_key) {
        (Some(access_key), Some(secret_key)) => Ok(Some(Credentials {
            access_key,
            secret_key,
        })),
        (None, None) => Ok(None),
        _ => Err("access_key and secret_key go together".to_owned()),
    }
}

/// A class can be read back at once, or a restore would not begin, and "already exists" could not be answered.
fn check_storage_class(class: &str) -> Result<(), String> {
    if matches!(class, "GLACIER" | "DEEP_ARCHIVE") {
        return Err(format!(
            "objects of class {class} cannot be read without being brought back first, hours later: use GLACIER_IR"
        ));
    }
    let allowed = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
    match !class.is_empty() && class.len() <= 64 && class.bytes().all(allowed) {
        true => Ok(()),
        false => Err(format!(
            "`{class}` is not a storage class: write it as the store does, such as STANDARD_IA"
        )),
    }
}

fn parse_url(url: &str) -> Result<Location, String> {
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err(match url.starts_with('/') {
            true => format!("`{url}` is a path; as a repository URL it is file://{url}"),
            false => {
                format!("`{url}` is not a repository URL: write s3://BUCKET/PREFIX or file:///PATH")
            }
        });
    };
    match scheme {
        _ if rest.split('/').next().is_some_and(|host| host.contains('@')) => {
            Err("a repository URL holds no user or password; give access_key and secret_key as references".to_owned())
        }
        _ if rest.contains(['?', '#']) => Err(format!("`{url}` has a query or fragment; options are settings of their own")),
        "file" if rest.starts_with('/') => Ok(Location::File(rest.into())),
        "file" => Err(format!("`{url}` is not absolute: a file repository is file:///PATH, with three slashes")),
        "s3" => {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            if bucket.is_empty() {
                return Err(format!("`{url}` names no bucket: s3://BUCKET/PREFIX"));
            }
            let prefix = prefix.trim_matches('/').to_owned();
            Ok(Location::S3 { bucket: bucket.to_owned(), prefix, options: S3Options::default() })
        }
        other => Err(format!("`{other}://` is not supported: s3:// and file:// are")),
    }
}

fn check_endpoint(endpoint: &str) -> Result<(), String> {
    let host = endpoint
        .strip_prefix("https://")
        .or_else(|| endpoint.strip_prefix("http://"));
    match host {
        Some(host) if host.contains('@') => Err("an endpoint holds no user or password".to_owned()),
        Some(host) if !host.is_empty() => Ok(()),
        _ => Err(format!(
            "`{endpoint}` is not an endpoint: write https://HOST[:PORT]"
        )),
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        let s3 = |url: &str, expected_bucket: &str, expected_prefix: &str| match parse_url(url) {
            Ok(Location::S3 { bucket, prefix, .. }) => assert_eq!(
                (bucket.as_str(), prefix.as_str()),
                (expected_bucket, expected_prefix)
            ),
            other => panic!("{url}: {other:?}"),
        };
        s3("s3://acme/prod/a", "acme", "prod/a");
        s3("s3://acme/prod/", "acme", "prod");
        s3("s3://acme", "acme", "");
        assert_eq!(
            parse_url("file:///srv/a b"),
            Ok(Location::File("/srv/a b".into()))
        );
    }

    #[test]
    fn bad_urls_say_what_to_write() {
        let check = |url: &str, advice: &str| {
            let error = parse_url(url).unwrap_err();
            assert!(error.contains(advice), "{url}: {error}");
        };
        check("/srv/walden", "file:///srv/walden");
        check("walden", "s3://BUCKET/PREFIX");
        check("file://srv/walden", "three slashes");
        check("s3://", "names no bucket");
        check("gs://bucket", "`gs://` is not supported");
        check("s3://bucket/p?versioning", "query");
        let error = parse_url("s3://key:hunter2@bucket/p").unwrap_err();
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn a_flag_wins_over_the_file_for_the_same_url_only() {
        let named = RepositoryOverride {
            url: "s3://a/b".into(),
            region: Some("r2".into()),
            ..Default::default()
        };
        let mut known = Repository::from_override(&named).unwrap();
        if let Location::S3 { options, .. } = &mut known.location {
            options.endpoint = Some("https://e".into());
            options.region = Some("r1".into());
        }
        let merged = known.with(&named).unwrap();
        let Location::S3 { options, .. } = merged.location else {
            panic!("still S3")
        };
        assert_eq!(
            (options.endpoint.as_deref(), options.region.as_deref()),
            (Some("https://e"), Some("r2"))
        );
    }
}
