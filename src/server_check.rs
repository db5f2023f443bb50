//! What a server must be and have before Walden can archive it: asked once, judged in one place, for `init` and `config check`.
//!
//! Owns findings and how they are shown. `facts.rs` asks the server, `judge.rs` finds.

mod facts;
mod judge;

use std::fmt::Write as _;

use serde::Serialize;

pub(crate) use facts::ServerFacts;
pub(crate) use judge::judge;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    /// Archiving does not work.
    Error,
    /// It works, with a danger.
    Warning,
}

/// Something about the server, and what helps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// How much it matters.
    pub(crate) severity: Severity,
    /// What is found.
    pub(crate) what: String,
    /// The statement or line that changes it, ready to be copied.
    pub(crate) fix: Option<String>,
    /// What must be done for the change to take effect.
    pub(crate) then: Option<&'static str>,
}

const RESTART: &str = "restart the server";
const RELOAD: &str = "reload: SELECT pg_reload_conf();";

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(
        &mut self,
        severity: Severity,
        what: String,
        fix: Option<String>,
        then: Option<&'static str>,
    ) {
        self.0.push(Finding {
            severity,
            what,
            fix,
            then,
        });
    }

    fn error(&mut self, what: String, fix: Option<String>, then: Option<&'static str>) {
        self.add(Severity::Error, what, fix, then);
    }

    fn warning(&mut self, what: String, fix: Option<String>, then: Option<&'static str>) {
        self.add(Severity::Warning, what, fix, then);
    }
}

/// Findings for people, each with what to do under it.
pub(crate) fn to_text(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let word = match finding.severity {
            Severity::Error => "missing",
            Severity::Warning => "warning",
        };
        // Writing to a String does not fail.
        let mut add = |line: std::fmt::Arguments<'_>| {
            text.write_fmt(line).expect("a String takes every write");
        };
        add(format_args!("{word}: {}\n", finding.what));
        if let Some(fix) = &finding.fix {
            add(format_args!("    {fix}\n"));
        }
        if let Some(then) = finding.then {
            add(format_args!("    then {then}\n"));
        }
    }
    text
}

/// Whether archiving cannot work.
pub(crate) fn has_errors(findings: &[Finding]) -> bool {
    findings
        .iter()
        .any(|finding| finding.severity == Severity::Error)
}
