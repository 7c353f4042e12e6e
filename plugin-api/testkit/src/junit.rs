use crate::{Outcome, Report};
use std::fmt::Write as _;

impl Report {
    /// The report as JUnit XML, which CI systems show: one test suite by the name of `suite`. A crash or a
    /// hang is an error there, and a warning is a passed test with a message in `system-out`.
    pub fn to_junit(&self, suite: &str) -> String {
        let count =
            |wanted: fn(&Outcome) -> bool| self.checks.iter().filter(|check| wanted(&check.outcome)).count();
        let (tests, suite) = (self.checks.len(), escape(suite));
        let failures = count(|outcome| matches!(outcome, Outcome::Failed(_)));
        let errors = count(|outcome| matches!(outcome, Outcome::Crashed(_) | Outcome::TimedOut(_)));
        let skipped = count(|outcome| matches!(outcome, Outcome::Skipped(_)));
        let time: f64 = self.checks.iter().map(|check| check.elapsed.as_secs_f64()).sum();
        let mut xml = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n  <testsuite name=\"{suite}\" tests=\"{tests}\" \
             failures=\"{failures}\" errors=\"{errors}\" skipped=\"{skipped}\" time=\"{time:.3}\">\n"
        );
        for check in &self.checks {
            let (asks, why) = (escape(check.asks), escape(check.outcome.reason()));
            let inner = match &check.outcome {
                Outcome::Passed => String::new(),
                Outcome::Failed(_) => format!("<failure message=\"{why}\">the contract: {asks}</failure>"),
                Outcome::Crashed(_) => {
                    format!("<error type=\"crash\" message=\"{why}\">the contract: {asks}</error>")
                }
                Outcome::TimedOut(_) => {
                    format!("<error type=\"timeout\" message=\"{why}\">the contract: {asks}</error>")
                }
                Outcome::Skipped(_) => format!("<skipped message=\"{why}\"/>"),
                Outcome::Warned(_) => format!("<system-out>warning: {why}</system-out>"),
            };
            let time = check.elapsed.as_secs_f64();
            // Writing to a string does not fail.
            let _ = writeln!(
                xml,
                "    <testcase classname=\"{suite}\" name=\"{}\" time=\"{time:.3}\">{inner}</testcase>",
                check.name
            );
        }
        xml + "  </testsuite>\n</testsuites>\n"
    }
}

/// For an attribute or for text. XML has no way to write most control characters.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\n' => escaped += "&#10;",
            '\0'..' ' | '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}
