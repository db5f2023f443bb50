//! What an error means to the user: the exit code it ends with and the next step, carried along the chain of causes, and how it
//! is printed: `error: a: b: c`, a blank line, `hint: …`; or as a JSON document.

use std::error::Error as StdError;
use std::fmt;

use anyhow::Error;
use archiver::error::ServerErrorKind;
use repository::ErrorClass;
use serde::Serialize;

use crate::exit_code::ExitCode;
use crate::redact;

/// An error with advice. Transparent in the chain of causes: it prints as the error it holds.
#[derive(Debug)]
pub(crate) struct Advice {
    hint: Option<String>,
    code: Option<ExitCode>,
    inner: Error,
}

impl Advice {
    /// `error`, with the next step.
    pub(crate) fn hint(error: Error, hint: impl Into<String>) -> Error {
        Error::new(Self {
            hint: Some(hint.into()),
            code: None,
            inner: error,
        })
    }

    /// `error`, ending with `code`.
    pub(crate) fn exit_code(error: Error, code: ExitCode) -> Error {
        Error::new(Self {
            hint: None,
            code: Some(code),
            inner: error,
        })
    }
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl StdError for Advice {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.inner.chain().nth(1)
    }
}

/// Giving advice about the error of a `Result`. Of several the outermost counts.
pub(crate) trait Advise<T> {
    /// Says what to do next.
    fn hint(self, hint: impl Into<String>) -> anyhow::Result<T>;
    /// Says with which code the command ends.
    fn exit_code(self, code: ExitCode) -> anyhow::Result<T>;
}

impl<T, E: Into<Error>> Advise<T> for Result<T, E> {
    fn hint(self, hint: impl Into<String>) -> anyhow::Result<T> {
        self.map_err(|error| Advice::hint(error.into(), hint))
    }

    fn exit_code(self, code: ExitCode) -> anyhow::Result<T> {
        self.map_err(|error| Advice::exit_code(error.into(), code))
    }
}

/// An error as the user is told of it: nothing in it is secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// How the command ends.
    pub(crate) code: ExitCode,
    /// What failed.
    pub(crate) message: String,
    /// Why, outermost first.
    pub(crate) causes: Vec<String>,
    /// The next step.
    pub(crate) hint: Option<String>,
}

impl Failure {
    /// Reads an error's chain.
    pub(crate) fn of(error: &Error) -> Self {
        let mut failure = Self {
            code: ExitCode::Failed,
            message: String::new(),
            causes: Vec::new(),
            hint: None,
        };
        let mut code = None;
        failure.visit(error, &mut code);
        failure.code = code.unwrap_or(ExitCode::Failed);
        failure
    }

    fn visit(&mut self, error: &Error, code: &mut Option<ExitCode>) {
        for cause in error.chain() {
            if let Some(advice) = cause.downcast_ref::<Advice>() {
                self.hint = self.hint.take().or_else(|| {
                    advice
                        .hint
                        .as_deref()
                        .map(|hint| redact::text(hint).into_owned())
                });
                *code = code.or(advice.code);
                // What follows in this chain is the inner error's causes, seen through it.
                return self.visit(&advice.inner, code);
            }
            *code = code.or_else(|| code_of(cause));
            self.add(redact::text(&cause.to_string()).into_owned());
        }
    }

    fn add(&mut self, text: String) {
        if self.message.is_empty() {
            self.message = text;
            return;
        }
        // Some libraries paste the cause into the message that it is the cause of.
        let before = self.causes.last().unwrap_or(&self.message);
        if !before.ends_with(&text) {
            self.causes.push(text);
        }
    }

    /// `a: b: c`.
    pub(crate) fn line(&self) -> String {
        std::iter::once(&self.message)
            .chain(&self.causes)
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(": ")
    }

    /// The text for stderr.
    pub(crate) fn to_text(&self, color: bool) -> String {
        let paint = |style: &str, text: &str| {
            if color {
                format!("\x1b[{style}m{text}\x1b[0m")
            } else {
                text.to_owned()
            }
        };
        let mut text = format!("{} {}\n", paint("1;31", "error:"), self.line());
        if let Some(hint) = &self.hint {
            text.push_str(&format!("\n{} {hint}\n", paint("1;36", "hint:")));
        }
        text
    }

    /// The document for stdout, schema `walden.error`.
    pub(crate) fn to_document(&self) -> ErrorDocument<'_> {
        ErrorDocument {
            code: self.code.word(),
            exit_code: self.code.status(),
            message: &self.message,
            causes: &self.causes,
            hint: self.hint.as_deref(),
        }
    }
}

/// The body of a `walden.error` document.
#[derive(Debug, Serialize)]
pub(crate) struct ErrorDocument<'a> {
    code: &'static str,
    exit_code: u8,
    message: &'a str,
    causes: &'a [String],
    hint: Option<&'a str>,
}

/// The code that an error of a library stands for.
fn code_of(cause: &(dyn StdError + 'static)) -> Option<ExitCode> {
    if let Some(error) = cause.downcast_ref::<archiver::Error>() {
        return Some(match error {
            archiver::Error::Repository(error) => code_of_repository(error),
            error if error.server_kind() == Some(ServerErrorKind::SlotInUse) => ExitCode::Locked,
            error => ExitCode::of_class(error.class()),
        });
    }
    if let Some(error) = cause.downcast_ref::<pitr::Error>() {
        return Some(match error {
            pitr::Error::Repository(error) => code_of_repository(error),
            // Neither speaks of stored objects.
            pitr::Error::Io { .. } | pitr::Error::DataDirectory { .. } => ExitCode::Failed,
            error if error.class() == ErrorClass::NotFound => ExitCode::Target,
            error => ExitCode::of_class(error.class()),
        });
    }
    cause
        .downcast_ref::<repository::Error>()
        .map(code_of_repository)
}

fn code_of_repository(error: &repository::Error) -> ExitCode {
    match error {
        // A file of this host, not an object of the repository.
        repository::Error::Io { .. } => ExitCode::Failed,
        error => ExitCode::of_class(error.class()),
    }
}

#[cfg(test)]
mod tests {

    use anyhow::{Context, anyhow};

    use super::*;

    #[test]
    fn chain_reads_outermost_first_with_hint_below() {
        let error = Err::<(), _>(anyhow!("c"))
            .hint("do this")
            .context("b")
            .exit_code(ExitCode::Integrity)
            .context("a")
            .unwrap_err();
        let failure = Failure::of(&error);
        assert_eq!(failure.to_text(false), "error: a: b: c\n\nhint: do this\n");
        assert_eq!(failure.code, ExitCode::Integrity);
        assert_eq!(failure.causes, ["b", "c"]);
        assert_eq!(
            format!("{error:#}"),
            "a: b: c",
            "the chain itself reads the same"
        );
    }

    #[test]
    fn outermost_advice_counts() {
        let inner = Err::<(), _>(anyhow!("x"))
            .hint("inner")
            .exit_code(ExitCode::NoKey);
        let error = inner.hint("outer").exit_code(ExitCode::Usage).unwrap_err();
        let failure = Failure::of(&error);
        assert_eq!(
            (failure.hint.as_deref(), failure.code),
            (Some("outer"), ExitCode::Usage)
        );
        assert_eq!(failure.line(), "x");
    }

    #[test]
    fn without_advice_it_is_a_failure() {
        let failure = Failure::of(&anyhow!("x"));
        assert_eq!((failure.code, failure.hint), (ExitCode::Failed, None));
    }

    #[test]
    fn errors_of_libraries_bring_their_code() {
        fn check(error: impl StdError + Send + Sync + 'static, code: ExitCode) {
            let error = anyhow!(error).context("b").context("a");
            assert_eq!(Failure::of(&error).code, code, "{error:#}");
            let told = Err::<(), _>(error)
                .exit_code(ExitCode::NoRepository)
                .unwrap_err();
            assert_eq!(
                Failure::of(&told).code,
                ExitCode::NoRepository,
                "what a command says goes before"
            );
        }
        let absent = || repository::Error::NotFound {
            location: "x".into(),
        };
        let no_key = || repository::Error::NoIdentity { key: "x".into() };
        let local = || repository::Error::Io {
            action: "open",
            path: "x".into(),
            source: std::io::ErrorKind::NotFound.into(),
        };
        check(absent(), ExitCode::Integrity);
        check(no_key(), ExitCode::NoKey);
        check(local(), ExitCode::Failed);
        check(
            repository::Error::InvalidUrl {
                url: "x".into(),
                reason: "y".into(),
            },
            ExitCode::Usage,
        );

        check(archiver::Error::Repository(no_key()), ExitCode::NoKey);
        check(archiver::Error::Repository(local()), ExitCode::Failed);
        check(
            archiver::Error::ConnectionSettings { reason: "x".into() },
            ExitCode::Usage,
        );
        let in_use = archiver::error::ServerError {
            sqlstate: "55006".into(),
            ..Default::default()
        };
        check(
            archiver::Error::Server {
                during: "x".into(),
                source: Box::new(in_use),
            },
            ExitCode::Locked,
        );

        let window = Box::<pitr::window::Window>::default();
        check(
            pitr::Error::Unreachable {
                what: "x".into(),
                reason: "y".into(),
                window,
            },
            ExitCode::Target,
        );
        check(
            pitr::Error::Missing {
                object: "x".into(),
                reason: "y".into(),
            },
            ExitCode::Integrity,
        );
        check(
            pitr::Error::InvalidTarget {
                input: "x".into(),
                reason: "y".into(),
            },
            ExitCode::Usage,
        );
        check(
            pitr::Error::DataDirectory {
                path: "x".into(),
                reason: "y".into(),
            },
            ExitCode::Failed,
        );
        check(pitr::Error::Repository(absent()), ExitCode::Integrity);
    }

    #[test]
    fn causes_that_were_pasted_are_said_once() {
        let error = anyhow!("reset").context("send: reset").context("fetch");
        assert_eq!(Failure::of(&error).line(), "fetch: send: reset");
    }

    #[test]
    fn secrets_do_not_pass() {
        let error = Err::<(), _>(anyhow!("connect password=hunter2"))
            .hint("try postgres://u:hunter2@h")
            .unwrap_err();
        let failure = Failure::of(&error);
        assert!(!failure.to_text(true).contains("hunter2"));
        assert!(
            !serde_json::to_string(&failure.to_document())
                .unwrap()
                .contains("hunter2")
        );
    }
}
