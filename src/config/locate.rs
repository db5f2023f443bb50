//! Which configuration file is read. Looking is passed in as a function, so the order is tested without a file system.

use std::path::{Path, PathBuf};

/// Who asks for the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Caller {
    /// A command that a user typed.
    Command,
    /// `archive-push` or `archive-get`: the server chose the working directory, so it says nothing.
    Hook,
}

/// What the environment says about where files are.
#[derive(Debug, Clone, Default)]
pub(crate) struct Places {
    /// `XDG_CONFIG_HOME`.
    pub(crate) xdg_config_home: Option<PathBuf>,
    /// `HOME`.
    pub(crate) home: Option<PathBuf>,
}

impl Places {
    /// From the process environment.
    pub(crate) fn from_env() -> Self {
        let variable = |name| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        Self {
            xdg_config_home: variable("XDG_CONFIG_HOME"),
            home: variable("HOME"),
        }
    }

    /// The files that are tried when none is named, first one first.
    pub(crate) fn candidates(&self, caller: Caller) -> Vec<PathBuf> {
        let mut candidates = Vec::new();
        if caller == Caller::Command {
            candidates.push(PathBuf::from("./walden.toml"));
        }
        // The XDG specification: relative paths are to be ignored.
        let per_user = match (&self.xdg_config_home, &self.home) {
            (Some(folder), _) if folder.is_absolute() => Some(folder.clone()),
            (_, Some(home)) => Some(home.join(".config")),
            _ => None,
        };
        candidates.extend(per_user.map(|folder| folder.join("walden/walden.toml")));
        candidates.push(PathBuf::from("/etc/walden/walden.toml"));
        candidates
    }
}

/// The first candidate that exists; `exists` also says yes to what it may not look at, so that a file which cannot be read is
/// an error and not passed over.
pub(crate) fn locate(candidates: &[PathBuf], exists: impl Fn(&Path) -> bool) -> Option<&PathBuf> {
    candidates.iter().find(|path| exists(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(places: &Places, caller: Caller) -> Vec<String> {
        places
            .candidates(caller)
            .iter()
            .map(|path| path.display().to_string())
            .collect()
    }

    #[test]
    fn order_is_here_then_user_then_system() {
        let places = Places {
            xdg_config_home: Some("/x".into()),
            home: Some("/h".into()),
        };
        assert_eq!(
            names(&places, Caller::Command),
            [
                "./walden.toml",
                "/x/walden/walden.toml",
                "/etc/walden/walden.toml"
            ]
        );
        let places = Places {
            xdg_config_home: Some("relative".into()),
            home: Some("/h".into()),
        };
        assert_eq!(
            names(&places, Caller::Hook),
            ["/h/.config/walden/walden.toml", "/etc/walden/walden.toml"]
        );
        assert_eq!(
            names(&Places::default(), Caller::Hook),
            ["/etc/walden/walden.toml"]
        );
    }

    #[test]
    fn hooks_never_read_the_working_directory() {
        let places = Places {
            xdg_config_home: None,
            home: Some("/h".into()),
        };
        assert!(
            names(&places, Caller::Hook)
                .iter()
                .all(|path| path.starts_with('/'))
        );
    }

    #[test]
    fn first_existing_file_wins() {
        let candidates = [
            PathBuf::from("/a"),
            PathBuf::from("/b"),
            PathBuf::from("/c"),
        ];
        assert_eq!(
            locate(&candidates, |path| path != Path::new("/a")),
            Some(&candidates[1])
        );
        assert_eq!(locate(&candidates, |_| false), None);
    }
}
