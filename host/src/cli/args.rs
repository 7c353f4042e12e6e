//! Arguments that several commands share.
use crate::{
    engine::now_ms,
    store::{Filter, Layer},
};
use clap::{
    Args,
    builder::{NonEmptyStringValueParser, PossibleValuesParser, TypedValueParser},
};
use std::{
    path::PathBuf,
    time::{Duration, UNIX_EPOCH},
};

#[derive(Clone, Debug, Args)]
pub(super) struct Global {
    /// Config file; else $MAGRAY_CONFIG, else magray/config.toml in the user's config folder
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub(super) config: Option<PathBuf>,
    /// Folder of database, indexes and models; else $MAGRAY_HOME
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global options")]
    pub(super) data_dir: Option<PathBuf>,
    /// Look for plugins in this folder first; may be given several times
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global options")]
    pub(super) plugin_dir: Vec<PathBuf>,
    /// Embedding profile of the config, or embedding backend of a plugin
    #[arg(long, global = true, value_name = "NAME", help_heading = "Global options")]
    backend: Option<String>,
    /// Embedding model: a name, or the path of a model folder
    #[arg(long, global = true, value_name = "NAME", help_heading = "Global options")]
    model: Option<String>,
    /// Index profile of the config, or index backend of a plugin
    #[arg(long, global = true, value_name = "NAME", help_heading = "Global options")]
    index: Option<String>,
    /// Cache profile of the config, or cache policy of a plugin
    #[arg(long, global = true, value_name = "NAME", help_heading = "Global options")]
    cache: Option<String>,
    /// Print JSON on stdout
    #[arg(long, global = true, help_heading = "Global options")]
    pub(super) json: bool,
    /// Print no progress, hints or warnings
    #[arg(long, short, global = true, conflicts_with = "verbose", help_heading = "Global options")]
    pub(super) quiet: bool,
    /// Print what happens inside; twice for everything
    #[arg(long, short, global = true, action = clap::ArgAction::Count, help_heading = "Global options")]
    pub(super) verbose: u8,
}

impl Global {
    /// The flags that stand for keys of the config.
    pub(super) fn overrides(&self) -> Vec<(String, toml::Value)> {
        let flags = [
            ("ai.embedding.profile", &self.backend),
            ("ai.embedding.model_name", &self.model),
            ("memory.index.profile", &self.index),
            ("memory.cache.profile", &self.cache),
        ];
        let given = flags.into_iter().filter_map(|(key, flag)| Some((key.to_owned(), flag.clone()?.into())));
        given.collect()
    }

    /// The embedding profile and the model that the flags name, taken out, for a command that asks
    /// for a change of them and does not run by them.
    pub(super) fn take_model(&mut self) -> (Option<String>, Option<String>) {
        (self.backend.take(), self.model.take())
    }
}

/// Which records a command is about.
#[derive(Debug, Default, Args)]
pub(super) struct Select {
    /// Only records of this layer; may be given several times
    #[arg(long, value_name = "LAYER", value_parser = layer())]
    layer: Vec<Layer>,
    /// Only records of this kind, such as note or chunk
    #[arg(long, value_name = "KIND", value_parser = NonEmptyStringValueParser::new())]
    kind: Option<String>,
    /// Only records with this tag; several must all be there
    #[arg(long, value_name = "TAG", value_parser = NonEmptyStringValueParser::new())]
    tag: Vec<String>,
    /// Only records of this project
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    project: Option<String>,
    /// Only records of this session
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    session: Option<String>,
    /// Only records from files at or below this path
    #[arg(long, value_name = "PATH")]
    source: Option<PathBuf>,
    /// Only records stored at this time or later: 2026-03-01, 2026-03-01T12:00:00Z (UTC), or 7d for seven days ago
    #[arg(long, value_name = "TIME", value_parser = moment)]
    after: Option<u64>,
    /// Only records stored before this time
    #[arg(long, value_name = "TIME", value_parser = moment)]
    before: Option<u64>,
}

impl Select {
    pub(super) fn filter(&self) -> Filter {
        let absolute = |path: &PathBuf| path.canonicalize().or_else(|_| std::path::absolute(path));
        let source = self.source.as_ref().map(|path| absolute(path).unwrap_or_else(|_| path.clone()));
        Filter {
            layers: self.layer.clone(),
            kind: self.kind.clone(),
            tags: self.tag.clone(),
            project: self.project.clone(),
            session: self.session.clone(),
            source: source.map(|path| path.to_string_lossy().into_owned()),
            created_after_ms: self.after,
            created_before_ms: self.before,
            ..Filter::default()
        }
    }

    /// Whether any of its flags is given.
    pub(super) fn selects(&self) -> bool {
        self.filter() != Filter::default()
    }
}

/// Parses a time into milliseconds since 1970: a date, a date with a time of day, both in UTC, an age such as `7d`, or
/// with a plus the same time ahead.
pub(super) fn moment(text: &str) -> Result<u64, String> {
    let wrong = || {
        "it must be a date (2026-03-01), a time (2026-03-01T12:00:00Z), an age (7d, 12h), or a time ahead (+30d)".to_owned()
    };
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if let Ok(ahead) = humantime::parse_duration(text.strip_prefix('+').unwrap_or(text)) {
        let now = now_ms();
        return Ok(if text.starts_with('+') {
            now.saturating_add(ms(ahead))
        } else {
            now.saturating_sub(ms(ahead))
        });
    }
    let time = humantime::parse_rfc3339_weak(text)
        .or_else(|_| humantime::parse_rfc3339_weak(&format!("{text}T00:00:00Z")));
    let since_1970 = time.map_err(|_| wrong())?.duration_since(UNIX_EPOCH);
    since_1970.map(ms).map_err(|_| wrong())
}

/// Parses the name of a layer.
pub(super) fn layer() -> impl TypedValueParser<Value = Layer> {
    let names = PossibleValuesParser::new(Layer::ALL.map(Layer::name));
    names.try_map(|name| name.parse::<Layer>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_date_a_time_of_day_an_age_or_ahead() {
        assert_eq!(moment("1970-01-02"), Ok(86_400_000));
        assert_eq!(moment("1970-01-01T00:00:01Z"), Ok(1000));
        assert_eq!(moment("1970-01-01 00:01:00"), Ok(60_000));
        let now = now_ms();
        assert!(moment("7d").is_ok_and(|ms| ms.abs_diff(now - 7 * 86_400_000) < 60_000));
        assert!(moment("+1h").is_ok_and(|ms| ms.abs_diff(now + 3_600_000) < 60_000));
        assert!(moment("99999999y").is_ok());
        for wrong in ["", "soon", "7", "2026-13-01", "1969-01-01", "+2026-01-01", "-1d"] {
            assert!(moment(wrong).is_err_and(|message| message.contains("2026-03-01")), "{wrong}");
        }
    }
}
