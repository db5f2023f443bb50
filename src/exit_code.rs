//! The table of exit codes: what a script may conclude from how Walden ended. The hooks' own codes are in `hook.rs`.

use repository::ErrorClass;

/// How a command ended. The numbers are part of the command line and never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExitCode {
    /// 0: done.
    Done,
    /// 1: failed, for no reason listed below.
    Failed,
    /// 2: the command line or the configuration is wrong.
    Usage,
    /// 3: done, but something needs attention.
    Warnings,
    /// 4: the recovery target cannot be reached or was not found.
    Target,
    /// 5: integrity failure, a missing object, or a gap.
    Integrity,
    /// 10: there is no such repository.
    NoRepository,
    /// 11: locked, or the slot is in use.
    Locked,
    /// 12: no key, or the wrong one.
    NoKey,
    /// 1, from `archive-get` alone: the object is proven absent.
    ProvenAbsent,
}

impl ExitCode {
    /// What an error of this class means for a command that knows nothing more about it.
    pub(crate) const fn of_class(class: ErrorClass) -> Self {
        match class {
            ErrorClass::Retry | ErrorClass::Bug => Self::Failed,
            ErrorClass::NotFound | ErrorClass::Conflict | ErrorClass::Corrupt => Self::Integrity,
            ErrorClass::Config => Self::Usage,
            ErrorClass::Key => Self::NoKey,
        }
    }

    /// The process's exit status, for every command but the hooks.
    pub(crate) const fn status(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed | Self::ProvenAbsent => 1,
            Self::Usage => 2,
            Self::Warnings => 3,
            Self::Target => 4,
            Self::Integrity => 5,
            Self::NoRepository => 10,
            Self::Locked => 11,
            Self::NoKey => 12,
        }
    }

    /// The word for it in JSON: `code` of a `walden.error`.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Usage => "usage",
            Self::Warnings => "warnings",
            Self::Target => "target",
            Self::Integrity => "integrity",
            Self::NoRepository => "no-repository",
            Self::Locked => "locked",
            Self::NoKey => "no-key",
            Self::ProvenAbsent => "absent",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_those_of_the_documentation() {
        let table = [
            (ExitCode::Done, 0),
            (ExitCode::Failed, 1),
            (ExitCode::Usage, 2),
            (ExitCode::Warnings, 3),
            (ExitCode::Target, 4),
            (ExitCode::Integrity, 5),
            (ExitCode::NoRepository, 10),
            (ExitCode::Locked, 11),
            (ExitCode::NoKey, 12),
            (ExitCode::ProvenAbsent, 1),
        ];
        for (code, status) in table {
            assert_eq!(code.status(), status, "{}", code.word());
        }
    }
}
