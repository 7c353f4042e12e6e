use crate::{Checked, Settings};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

/// One thing that the contract asks, and whether the plugin does it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Stable name, kebab-case.
    pub name: &'static str,
    /// What the contract asks, in one sentence.
    pub asks: &'static str,
    /// How it went.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// How long it took; in JSON `seconds`.
    #[serde(rename = "seconds", serialize_with = "seconds")]
    pub elapsed: Duration,
}

fn seconds<S: serde::Serializer>(elapsed: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((elapsed.as_secs_f64() * 1000.0).round() / 1000.0)
}

/// How a [`Check`] went; in each, why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", content = "reason", rename_all = "snake_case")]
pub enum Outcome {
    /// The plugin does what is asked.
    Passed,
    /// It does not: what was seen instead.
    Failed(String),
    /// It ended the process. Only a check in a process of its own can say so.
    Crashed(String),
    /// It did not come to an end. Only a check in a process of its own can say so.
    TimedOut(String),
    /// The question does not arise.
    Skipped(String),
    /// It may do so, but it should not.
    Warned(String),
}

impl Outcome {
    /// In one word or two, as JSON has it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed(_) => "failed",
            Self::Crashed(_) => "crashed",
            Self::TimedOut(_) => "timed_out",
            Self::Skipped(_) => "skipped",
            Self::Warned(_) => "warned",
        }
    }

    /// Why; empty where it passed.
    pub fn reason(&self) -> &str {
        match self {
            Self::Passed => "",
            Self::Failed(why)
            | Self::Crashed(why)
            | Self::TimedOut(why)
            | Self::Skipped(why)
            | Self::Warned(why) => why,
        }
    }

    /// Whether the plugin breaks the contract.
    pub const fn is_failure(&self) -> bool {
        matches!(self, Self::Failed(_) | Self::Crashed(_) | Self::TimedOut(_))
    }
}

/// Every check of one component, in the order in which they ran.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "a report says nothing until it is shown or asserted"]
pub struct Report {
    /// The checks.
    pub checks: Vec<Check>,
}

impl Report {
    /// Whether no check failed.
    pub fn passed(&self) -> bool {
        self.failures().next().is_none()
    }

    /// The checks that failed.
    pub fn failures(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| check.outcome.is_failure())
    }

    /// For a unit test.
    ///
    /// # Panics
    /// With the whole report, where a check failed.
    pub fn assert(&self) {
        assert!(self.passed(), "\n{self}");
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, asks, outcome, .. } = self;
        match outcome {
            Outcome::Passed => write!(f, "pass   {name}"),
            Outcome::Skipped(why) => write!(f, "skip   {name}: {why}"),
            Outcome::Warned(why) => write!(f, "warn   {name}: {why}"),
            Outcome::Failed(why) => write!(f, "FAIL   {name}: {why}\n       the contract: {asks}"),
            Outcome::Crashed(why) => write!(f, "CRASH  {name}: {why}\n       the contract: {asks}"),
            Outcome::TimedOut(why) => write!(f, "HANG   {name}: {why}\n       the contract: {asks}"),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.checks.iter().try_for_each(|check| writeln!(f, "{check}"))
    }
}

/// A report that is being made.
pub(crate) struct Run<'a> {
    /// The one check that is wanted; all without it.
    pub(crate) only: Option<&'a str>,
    pub(crate) settings: Settings,
    pub(crate) report: Report,
}

impl<'a> Run<'a> {
    pub(crate) fn new(only: Option<&'a str>, settings: Settings) -> Self {
        Self { only, settings, report: Report::default() }
    }

    /// Runs one check and keeps its outcome; a panic is a failure.
    pub(crate) fn check(&mut self, (name, asks): crate::Asks, check: impl FnOnce() -> Checked) {
        if self.only.is_some_and(|only| only != name) {
            return;
        }
        let began = Instant::now();
        let outcome = match catch_unwind(AssertUnwindSafe(check)) {
            Ok(Ok(())) => Outcome::Passed,
            Ok(Err(outcome)) => outcome,
            Err(payload) => {
                let text = payload.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
                Outcome::Failed(format!("it panicked: {}", text.unwrap_or("no message")))
            }
        };
        self.report.checks.push(Check { name, asks, outcome, elapsed: began.elapsed() });
    }
}
