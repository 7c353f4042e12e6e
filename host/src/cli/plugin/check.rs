//! `magray plugin check`: the conformance kit against a plugin.
use super::super::{
    Failure, Outcome,
    args::Global,
    setup,
    terminal::{BOLD, DIM, GREEN, RED, Terminal, YELLOW},
};
use crate::{
    engine::{LINKED, Setup},
    plugins::{Candidate, CheckOptions, CheckRequest, PluginError},
};
use clap::Args;
use magray_plugin_api::{ComponentKind, manifest::ComponentManifest};
use magray_plugin_testkit::{self as testkit, Check as Finding, Outcome as Verdict, Report};
use serde::Serialize;
use std::{
    env, fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

const EXAMPLES: &str = "\
Examples:
  magray plugin check target/release/libacme_exact.so
  magray plugin check hnsw --only fuzz --reproduce 81723
  magray plugin check ./libacme_api.so --options '{\"url\": \"http://localhost:11434/api/embed\"}'
  magray plugin check ./libacme_exact.so --junit report.xml

Exit codes: 0 every check passed, was skipped or warns, 2 wrong usage, 3 a check failed.";

/// Try a plugin against the contract, each check in a process of its own
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(in crate::cli) struct Check {
    /// A plugin file, or id of a plugin, or name of a component
    plugin: String,
    /// Only this check; may be given several times
    #[arg(long, value_name = "CHECK")]
    only: Vec<String>,
    /// Only this component of the plugin
    #[arg(long, value_name = "NAME")]
    component: Option<String>,
    /// Options of the component as a JSON object, instead of those of its profile in the config
    #[arg(long, value_name = "JSON")]
    options: Option<String>,
    /// A check that takes longer has failed
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Memory that a check may take, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 4096, value_parser = clap::value_parser!(u64).range(64..=1 << 24))]
    memory: u64,
    /// What the check `fuzz` draws its input from, as its finding names it; without it another each time
    #[arg(long, value_name = "SEED", alias = "reproduce")]
    seed: Option<u64>,
    /// Write the report as JUnit XML too
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Show only the checks that did not pass
    #[arg(long)]
    brief: bool,
}

/// What was found out about one component.
#[derive(Serialize)]
struct ReportJson<'a> {
    plugin: &'a str,
    version: &'a str,
    path: Option<&'a PathBuf>,
    kind: ComponentKind,
    component: &'a str,
    seed: u64,
    passed: bool,
    checks: &'a [Finding],
}

impl Check {
    /// What `install` asks of a file.
    pub(super) fn of(file: &Path, options: Option<String>) -> Self {
        Self {
            plugin: file.to_string_lossy().into_owned(),
            only: Vec::new(),
            component: None,
            options,
            timeout: Duration::from_secs(60),
            memory: 4096,
            seed: None,
            junit: None,
            brief: true,
        }
    }

    pub(super) fn run(self, global: &Global, terminal: &Terminal) -> Result<Outcome, Failure> {
        let setup = setup(global, terminal)?;
        let candidate = if looks_like_a_file(&self.plugin) {
            Candidate::file(Path::new(&self.plugin))?
        } else {
            setup.plugins().candidate(&self.plugin).ok_or_else(|| {
                Failure::Usage(format!(
                    "there is no file, and no usable plugin or component '{}'; see `magray plugin list`",
                    self.plugin
                ))
            })?
        };
        let components = self.components(&candidate)?;
        let seed = self.seed.unwrap_or_else(any_seed);
        let mut findings = Vec::new();
        for component in &components {
            let report = self.report(&setup, terminal, &candidate, component, seed)?;
            findings.push((component, report));
        }
        if let Some(file) = &self.junit {
            // Several suites in one file are several roots; so all of a plugin are one suite.
            let all = findings.iter().flat_map(|(_, report)| report.checks.clone()).collect();
            let suite = format!("{} {}", candidate.manifest.id, candidate.manifest.version);
            let xml = Report { checks: all }.to_junit(&suite);
            fs::write(file, xml).map_err(Failure::io(format!("cannot write {}", file.display())))?;
        }
        let failed: usize = findings.iter().map(|(_, report)| report.failures().count()).sum();
        match failed {
            0 => Ok(Outcome::Done),
            1 => Err(Failure::Partly(format!("1 check of {} failed", candidate.manifest.id))),
            _ => Err(Failure::Partly(format!("{failed} checks of {} failed", candidate.manifest.id))),
        }
    }

    /// Those that are asked for; each check that is named must be one of some of them.
    fn components<'a>(&self, candidate: &'a Candidate) -> Result<Vec<&'a ComponentManifest>, Failure> {
        let all = &candidate.manifest.components;
        let asked = self.component.as_ref().or(Some(&self.plugin).filter(|name| {
            all.iter().any(|component| component.name == **name) && candidate.manifest.id != **name
        }));
        let chosen: Vec<_> =
            all.iter().filter(|component| asked.is_none_or(|name| component.name == *name)).collect();
        if chosen.is_empty() {
            let id = &candidate.manifest.id;
            return Err(Failure::Usage(format!("{id} has no component '{}'", asked.map_or("", |name| name))));
        }
        for only in &self.only {
            let known: Vec<_> = chosen.iter().flat_map(|component| testkit::checks(component.kind)).collect();
            if known.iter().all(|check| check.0 != only) {
                let names: Vec<_> = known.iter().map(|check| check.0).collect();
                return Err(Failure::Usage(format!(
                    "there is no check '{only}'; there are {}",
                    names.join(", ")
                )));
            }
        }
        Ok(chosen)
    }

    fn report(
        &self,
        setup: &Setup,
        terminal: &Terminal,
        candidate: &Candidate,
        component: &ComponentManifest,
        seed: u64,
    ) -> Result<Report, Failure> {
        let program = env::current_exe().map_err(Failure::io("cannot find this program"))?;
        let options = match &self.options {
            Some(options) => options.clone(),
            None => configured(setup, component)?,
        };
        let options = CheckOptions { options, seed, timeout: self.timeout, memory: self.memory << 20 };
        let checks: Vec<_> = testkit::checks(component.kind)
            .into_iter()
            .filter(|(name, _)| self.only.is_empty() || self.only.iter().any(|only| only == name))
            .collect();
        if !terminal.json {
            let ComponentManifest { kind, name, .. } = component;
            terminal.print(format_args!("{BOLD}{kind} {name}{BOLD:#}  {DIM}seed {seed}{DIM:#}"))?;
        }
        let progress = terminal.progress("checks");
        progress.0.set_length(checks.len() as u64);
        let mut report = Report::default();
        for (name, asks) in checks {
            progress.0.set_message(name);
            let broken = report
                .checks
                .first()
                .is_some_and(|first| first.name == CREATES && first.outcome.is_failure());
            let finding = if broken {
                let outcome = Verdict::Skipped("it could not be created".into());
                Finding { name, asks, outcome, elapsed: Duration::ZERO }
            } else {
                candidate.check(&program, &setup.data_dir, component, (name, asks), &options)
            };
            progress.0.inc(1);
            // What follows from the first failure is told once, by the count.
            let told = self.brief && finding.outcome == Verdict::Passed;
            if !terminal.json && !broken && !told {
                progress.0.suspend(|| show(terminal, &finding))?;
            }
            report.checks.push(finding);
        }
        drop(progress);
        let count = |name: &str| report.checks.iter().filter(|check| check.outcome.name() == name).count();
        if terminal.json {
            terminal.print_json(&ReportJson {
                plugin: &candidate.manifest.id,
                version: &candidate.manifest.version,
                path: candidate.path.as_ref(),
                kind: component.kind,
                component: &component.name,
                seed,
                passed: report.passed(),
                checks: &report.checks,
            })?;
        } else {
            let outcomes = ["passed", "failed", "crashed", "timed_out", "warned", "skipped"];
            let counts = outcomes.map(|name| (count(name), name)).into_iter().filter(|count| count.0 > 0);
            let counts: Vec<_> = counts.map(|(n, name)| format!("{n} {}", name.replace('_', " "))).collect();
            terminal.print(format_args!("{}", counts.join(", ")))?;
        }
        Ok(report)
    }
}

/// The check that the others need.
const CREATES: &str = "creates";

fn show(terminal: &Terminal, finding: &Finding) -> Result<(), Failure> {
    let Finding { name, asks, outcome, .. } = finding;
    let (style, word) = match outcome {
        Verdict::Passed => (GREEN, "pass"),
        Verdict::Skipped(_) => (DIM, "skip"),
        Verdict::Warned(_) => (YELLOW, "warn"),
        Verdict::Failed(_) => (RED, "FAIL"),
        Verdict::Crashed(_) => (RED, "CRASH"),
        Verdict::TimedOut(_) => (RED, "HANG"),
    };
    terminal.print(format_args!("  {style}{word:<5}{style:#} {name}  {DIM}{asks}{DIM:#}"))?;
    match outcome.reason() {
        "" => Ok(()),
        reason => terminal.print(format_args!("        {reason}")),
    }
}

/// The options that the component would be used with.
fn configured(setup: &Setup, component: &ComponentManifest) -> Result<String, PluginError> {
    let ComponentManifest { kind, name, options } = component;
    let config = &setup.config;
    let selected = match kind {
        ComponentKind::Embedder => config.ai.embedding.profile(name),
        ComponentKind::Index => config.memory.index.profile(name),
        ComponentKind::CachePolicy => config.memory.cache.profile(name),
    };
    if selected.profile.plugin != *name {
        return Ok("{}".to_owned());
    }
    let options = selected.options_json(&options.to_string());
    setup.project.iter().try_for_each(|project| project.check_options(component, &options))?;
    Ok(options)
}

fn looks_like_a_file(name: &str) -> bool {
    name.contains(['/', '.', std::path::MAIN_SEPARATOR]) || Path::new(name).is_file()
}

fn any_seed() -> u64 {
    // Short enough to be typed.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| u64::from(now.subsec_nanos()) % 100_000)
}

/// One check, in this process: what the children of `check` are
#[derive(Debug, Args)]
pub(in crate::cli) struct RunCheck {
    check: String,
    kind: String,
    component: String,
    options: String,
    seed: u64,
    memory: u64,
    path: Option<PathBuf>,
}

impl RunCheck {
    pub(super) fn run(&self, data_dir: &Path, terminal: &Terminal) -> Result<Outcome, Failure> {
        let kinds = [ComponentKind::Embedder, ComponentKind::Index, ComponentKind::CachePolicy];
        let kind = kinds.into_iter().find(|kind| kind.name() == self.kind);
        let request = CheckRequest {
            path: self.path.as_deref(),
            kind: kind.ok_or_else(|| Failure::Usage(format!("there is no kind '{}'", self.kind)))?,
            component: &self.component,
            options: &self.options,
            check: &self.check,
            seed: self.seed,
            memory: self.memory,
        };
        terminal.print(format_args!("{}", request.run(data_dir, LINKED)))?;
        Ok(Outcome::Done)
    }
}
