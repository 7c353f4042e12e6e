//! Records as users see them, in text and in JSON.
use super::terminal::{BOLD, CYAN, DIM};
use crate::store::Record;
use magray_plugin_api::DeviceReport;
use serde::Serialize;
use std::{
    env,
    path::{Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

/// A record as JSON.
#[derive(Debug, Serialize)]
pub(super) struct RecordJson<'a> {
    id: &'a str,
    layer: &'a str,
    kind: &'a str,
    title: Option<&'a str>,
    text: &'a str,
    tags: &'a [String],
    project: Option<&'a str>,
    session: Option<&'a str>,
    path: Option<&'a str>,
    line_start: Option<u32>,
    line_end: Option<u32>,
    created: String,
    expires: Option<String>,
    valid_from: Option<String>,
    valid_to: Option<String>,
    superseded_by: Option<&'a str>,
    access_count: u64,
}

impl<'a> From<&'a Record> for RecordJson<'a> {
    fn from(record: &'a Record) -> Self {
        let source = record.source.as_ref();
        Self {
            id: &record.ulid,
            layer: record.layer.name(),
            kind: &record.kind,
            title: record.title.as_deref(),
            text: &record.text,
            tags: &record.tags,
            project: record.project.as_deref(),
            session: record.session.as_deref(),
            path: source.map(|source| source.path.as_str()),
            line_start: source.map(|source| source.line_start),
            line_end: source.map(|source| source.line_end),
            created: time(record.created_ms),
            expires: record.expires_ms.map(time),
            valid_from: record.valid_from_ms.map(time),
            valid_to: record.valid_to_ms.map(time),
            superseded_by: record.superseded_by.as_deref(),
            access_count: record.access_count,
        }
    }
}

/// Where an answer was computed, such as `cpu (avx2, f32)`.
pub(super) fn ran_on(device: &DeviceReport) -> String {
    let words = [&device.engine, &device.precision].map(String::as_str);
    let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
    if words.is_empty() { device.device.clone() } else { format!("{} ({})", device.device, words.join(", ")) }
}

/// A time in milliseconds since 1970, as RFC 3339 in UTC.
pub(super) fn time(ms: u64) -> String {
    UNIX_EPOCH
        .checked_add(Duration::from_millis(ms))
        .filter(|_| ms < 253_402_300_800_000) // the year 10000, which the format cannot write
        .map_or_else(|| ms.to_string(), |time| humantime::format_rfc3339_seconds(time).to_string())
}

/// The day of a time, in UTC.
pub(super) fn day(ms: u64) -> String {
    let time = time(ms);
    time.split('T').next().unwrap_or_default().to_owned()
}

/// Where a record comes from: `path:line`, relative to this folder where it is below it; else its
/// short id.
pub(super) fn place(record: &Record, line: Option<u32>) -> String {
    match &record.source {
        Some(source) => {
            let path = relative(Path::new(&source.path));
            format!("{CYAN}{}{CYAN:#}:{}", clean(&path.to_string_lossy()), line.unwrap_or(source.line_start))
        }
        None => format!("{CYAN}{}{CYAN:#}", record.ulid),
    }
}

fn relative(path: &Path) -> PathBuf {
    let here = env::current_dir().ok().and_then(|here| here.canonicalize().ok());
    let below = here.as_deref().and_then(|here| path.strip_prefix(here).ok());
    below.unwrap_or(path).to_owned()
}

/// The line above a record's text: place, layer, labels, heading.
pub(super) fn heading(record: &Record, line: Option<u32>) -> String {
    let mut labels = vec![record.layer.name().to_owned()];
    labels.extend(record.project.iter().map(|project| format!("project {}", clean(project))));
    labels.extend(record.tags.iter().map(|tag| format!("#{}", clean(tag))));
    labels.extend(record.valid_from_ms.map(|ms| format!("from {}", day(ms))));
    labels.extend(record.valid_to_ms.map(|ms| format!("until {}", day(ms))));
    labels.extend(record.superseded_by.iter().map(|id| format!("superseded by {id}")));
    let title =
        record.title.as_deref().map(|title| format!("  {DIM}{}{DIM:#}", clean(title))).unwrap_or_default();
    format!("{}  {DIM}{}{DIM:#}{title}", place(record, line), labels.join(" "))
}

/// The text in lines of at most `width` columns, at most `max_lines` of them, each indented, words
/// of `query` in bold. Line breaks and the indentation of code stay.
pub(super) fn snippet(text: &str, query: &str, width: usize, max_lines: usize) -> String {
    const INDENT: &str = "      ";
    let words: Vec<String> =
        words_of(query).map(str::to_lowercase).filter(|word| word.chars().count() > 2).collect();
    let shown = text.lines().filter(|line| !line.trim().is_empty());
    let margin = shown.clone().map(|line| line.len() - line.trim_start().len()).min().unwrap_or(0);
    let mut lines: Vec<String> = Vec::new();
    for line in shown {
        lines.extend(wrapped(line.get(margin..).unwrap_or(line), width.saturating_sub(INDENT.len())));
        if lines.len() > max_lines {
            lines.truncate(max_lines);
            lines.iter_mut().last().into_iter().for_each(|last| last.push_str(" ..."));
            break;
        }
    }
    let lines = lines.iter().map(|line| format!("{INDENT}{}", emphasised(line, &words)));
    lines.collect::<Vec<_>>().join("\n")
}

/// Control characters, which a terminal would obey, as spaces.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A text whole, with its lines and tabs, and nothing else that a terminal would obey.
pub(super) fn whole(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && !matches!(c, '\n' | '\t') { ' ' } else { c }).collect()
}

/// `1 record`, `2 records`.
pub(super) fn counted(count: impl Into<u64>, what: &str) -> String {
    let count = count.into();
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn words_of(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty())
}

/// One line in pieces of `width` columns, broken at spaces.
fn wrapped(line: &str, width: usize) -> Vec<String> {
    let clean = clean(line);
    let indent = &clean[..clean.len() - clean.trim_start().len()];
    let mut lines = vec![indent.to_owned()];
    let mut columns = indent.len();
    for word in clean.split_whitespace() {
        let len = word.chars().count();
        if columns > indent.len() && columns + 1 + len > width {
            lines.push(indent.to_owned());
            columns = indent.len();
        }
        let Some(line) = lines.last_mut() else { break };
        if columns > indent.len() {
            line.push(' ');
            columns += 1;
        }
        line.push_str(word);
        columns += len;
    }
    lines
}

fn emphasised(line: &str, words: &[String]) -> String {
    let mut out = String::new();
    let mut rest = line;
    for word in words_of(line) {
        let at = rest.find(word).unwrap_or(0);
        out.push_str(&rest[..at]);
        let lower = word.to_lowercase();
        if words.iter().any(|wanted| lower.starts_with(wanted.as_str())) {
            out.push_str(&format!("{BOLD}{word}{BOLD:#}"));
        } else {
            out.push_str(word);
        }
        rest = &rest[at + word.len()..];
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snippet_wraps_and_says_that_it_was_cut() {
        let shown = snippet("one two three four five six", "", 6 + 9, 2);
        assert_eq!(shown, "      one two\n      three ...");
    }

    #[test]
    fn a_snippet_of_code_keeps_its_lines() {
        let shown = snippet("    if ready {\n\n        go();\n    }", "", 80, 4);
        assert_eq!(shown, "      if ready {\n          go();\n      }");
    }

    #[test]
    fn words_of_the_query_are_bold_and_control_characters_are_gone() {
        let shown = snippet("The Backup\x1b[31m ran", "backup", 80, 1);
        assert_eq!(shown, format!("      The {BOLD}Backup{BOLD:#} [31m ran"));
    }

    #[test]
    fn far_times_do_not_panic() {
        assert_eq!(time(0), "1970-01-01T00:00:00Z");
        assert_eq!(time(u64::MAX), u64::MAX.to_string());
    }
}
