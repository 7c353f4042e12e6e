use super::tree::Origin;
use std::fmt;

/// Why a configuration cannot be used: every problem that was found, one a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", lines(problems))]
pub struct ConfigError {
    /// At least one, in the order in which the layers were read.
    pub problems: Vec<Problem>,
}

/// One thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `FILE:LINE`, `FILE:LINE:COLUMN`, `FILE`, the name of an environment variable, or `command line`.
    pub place: String,
    /// What is wrong and what would be right, in one line.
    pub message: String,
}

impl Problem {
    pub(super) fn new(place: impl fmt::Display, message: impl Into<String>) -> Self {
        Self { place: place.to_string(), message: message.into() }
    }

    pub(super) fn at(origin: &Origin, message: impl Into<String>) -> Self {
        match origin {
            Origin::Default => Self::new("built-in defaults", message),
            Origin::File { path, line } => Self::new(format_args!("{}:{line}", path.display()), message),
            Origin::Env(name) => Self::new(name, message),
            Origin::Flag => Self::new("command line", message),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Keys, values and paths may hold any character, and a problem is one line.
        f.write_str(&format!("{}: {}", self.place, self.message).replace(char::is_control, " "))
    }
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n")
}
