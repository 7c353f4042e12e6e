use super::{
    Failure, Outcome,
    args::Global,
    setup,
    terminal::{BOLD, DIM, RED, Terminal, UntilInterrupted, YELLOW},
    view,
};
use crate::{
    bench::{Backend, BatchRate, BatchRequest, measure_batches},
    engine::Setup,
    plugins::Plugins,
    resources::gpu::{self, Finding, Gpu, Gpus, Reading, Severity, judge},
};
use clap::{Args, Subcommand};
use indicatif::HumanBytes;
use magray_model::GpuTuning;
use magray_plugin_api::ComponentKind;
use serde::Serialize;
use std::collections::BTreeSet;

/// See which GPUs there are, and how fast they embed
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Exit codes: 0 there is a GPU, 1 there is none, 3 its driver or the backend on it does not work.")]
pub(super) enum GpuCommand {
    /// Show the GPUs, what suits them, and which embedding profiles can run on them
    Info,
    Benchmark(Benchmark),
}

/// Measure an embedding profile on a GPU by batch and length, and judge how the GPU does
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  magray gpu benchmark
  magray gpu benchmark --profile cuda --batch 32,128,256 --tokens 32,256 --json")]
pub(super) struct Benchmark {
    /// Embedding profile of the config, or backend of a plugin
    #[arg(long, value_name = "NAME", default_value = "cuda")]
    profile: String,
    /// Model that it runs, instead of that of the config
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Numbers of texts in one call, separated by commas
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', default_value = "1,8,32,64,128,256", value_parser = clap::value_parser!(u16).range(1..=4096))]
    batch: Vec<u16>,
    /// Lengths of the texts in words, separated by commas; most words are one token
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', default_value = "16,64,250", value_parser = clap::value_parser!(u16).range(1..=8192))]
    tokens: Vec<u16>,
    /// How often each figure is measured
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
}

#[derive(Serialize)]
struct InfoJson<'a> {
    driver: Option<&'a str>,
    cuda: Option<String>,
    absence: &'a str,
    gpus: Vec<GpuJson<'a>>,
    profiles: Vec<ProfileJson>,
}

#[derive(Serialize)]
struct GpuJson<'a> {
    number: usize,
    name: &'a str,
    capability: String,
    multiprocessors: i32,
    total_bytes: u64,
    free_bytes: Option<u64>,
    utilisation_percent: Option<u32>,
    celsius: Option<u32>,
    tuning: GpuTuning,
}

/// An embedding profile that can run on a GPU.
#[derive(Serialize)]
struct ProfileJson {
    name: String,
    plugin: String,
    /// Whether it does so as it is configured.
    uses_gpu: bool,
}

#[derive(Serialize)]
struct BenchmarkJson<'a> {
    gpu: &'a str,
    profile: &'a str,
    model: &'a str,
    device: &'a str,
    engine: &'a str,
    precision: &'a str,
    rates: &'a [BatchRate],
    calls: u64,
    failed: u64,
    findings: &'a [Finding],
}

impl GpuCommand {
    pub(super) fn run(self, global: &Global, terminal: &Terminal) -> Result<Outcome, Failure> {
        let setup = setup(global, terminal)?;
        let gpus = gpu::probe()?;
        match self {
            Self::Info => info(terminal, &setup, &gpus),
            Self::Benchmark(benchmark) => benchmark.run(terminal, setup, &gpus),
        }
    }
}

fn info(terminal: &Terminal, setup: &Setup, gpus: &Gpus) -> Result<Outcome, Failure> {
    let found = !gpus.gpus.is_empty();
    let profiles = if found { profiles(setup, &setup.plugins()) } else { Vec::new() };
    let numbered = gpus.gpus.iter().enumerate();
    let json = InfoJson {
        driver: gpus.driver.as_deref(),
        cuda: gpus.cuda.map(|(major, minor)| format!("{major}.{minor}")),
        absence: &gpus.absence,
        gpus: numbered.map(|(number, gpu)| GpuJson::new(number, gpu)).collect(),
        profiles,
    };
    if terminal.json {
        terminal.print_json(&json)?;
    } else {
        print_info(terminal, &json)?;
    }
    Ok(if found { Outcome::Done } else { Outcome::NothingFound })
}

impl<'a> GpuJson<'a> {
    fn new(number: usize, gpu: &'a Gpu) -> Self {
        let Gpu { name, capability: (major, minor), multiprocessors, total_bytes, now } = gpu;
        Self {
            number,
            name,
            capability: format!("{major}.{minor}"),
            multiprocessors: *multiprocessors,
            total_bytes: *total_bytes,
            free_bytes: now.map(|now| now.free_bytes),
            utilisation_percent: now.and_then(|now| now.utilisation),
            celsius: now.and_then(|now| now.celsius),
            tuning: GpuTuning::of(*total_bytes, u32::try_from(*major).unwrap_or(0)),
        }
    }
}

/// The profiles of the config, and the backends of plugins, that have an option `device_id`. Loads nothing.
fn profiles(setup: &Setup, plugins: &Plugins) -> Vec<ProfileJson> {
    let embedding = &setup.config.ai.embedding;
    let offered: Vec<_> = plugins.offered(ComponentKind::Embedder).collect();
    let mut names: BTreeSet<&str> = embedding.profiles.keys().map(String::as_str).collect();
    names.extend(offered.iter().map(|component| component.name.as_str()));
    let profile = |name: &str| {
        let selected = embedding.profile(name);
        let plugin = &selected.profile.plugin;
        let schema = &offered.iter().find(|component| component.name == *plugin)?.options;
        schema["properties"].get("device_id")?;
        let options: serde_json::Value =
            serde_json::from_str(&selected.options_json(&schema.to_string())).unwrap_or_default();
        Some(ProfileJson {
            name: name.to_owned(),
            plugin: plugin.clone(),
            // One that cannot be told not to always does.
            uses_gpu: schema["properties"].get("use_gpu").is_none() || options["use_gpu"] == true,
        })
    };
    names.into_iter().filter_map(profile).collect()
}

fn print_info(terminal: &Terminal, info: &InfoJson<'_>) -> Result<(), Failure> {
    if info.gpus.is_empty() {
        terminal.hint(&format!("no GPU: {}", info.absence));
        return Ok(());
    }
    for gpu in &info.gpus {
        let GpuJson { number, name, capability, multiprocessors, total_bytes, .. } = gpu;
        terminal.print(format_args!(
            "{BOLD}cuda:{number}  {name}{BOLD:#}  compute capability {capability}, {multiprocessors} multiprocessors"
        ))?;
        let free = gpu.free_bytes.map(|bytes| format!(", {} free", HumanBytes(bytes))).unwrap_or_default();
        let busy = gpu.utilisation_percent.map(|percent| format!(", {percent}% busy")).unwrap_or_default();
        let warm = gpu.celsius.map(|celsius| format!(", {celsius} C")).unwrap_or_default();
        terminal.print(format_args!("  memory  {}{free}{busy}{warm}", HumanBytes(*total_bytes)))?;
        let GpuTuning { batch, min_batch, max_batch, streams, pinned_memory, prefetch } = gpu.tuning;
        let pinned = if pinned_memory { "pinned memory" } else { "no pinned memory" };
        terminal.print(format_args!(
            "  suits   batches of {batch} ({min_batch} to {max_batch}), {streams} streams, {pinned}, {prefetch} ahead"
        ))?;
    }
    let unknown = "unknown";
    terminal.print(format_args!(
        "{DIM}driver {}, CUDA up to {}{DIM:#}",
        info.driver.unwrap_or(unknown),
        info.cuda.as_deref().unwrap_or(unknown)
    ))?;
    for ProfileJson { name, plugin, uses_gpu } in &info.profiles {
        let does = if *uses_gpu { "runs on a GPU" } else { "can run on a GPU, with use_gpu = true" };
        terminal.print(format_args!("profile {BOLD}{name}{BOLD:#} (plugin {plugin}) {does}"))?;
    }
    if info.profiles.is_empty() {
        terminal.hint("no embedding plugin that can run on a GPU was found; see `magray plugin list`");
    }
    Ok(())
}

impl Benchmark {
    fn run(self, terminal: &Terminal, mut setup: Setup, gpus: &Gpus) -> Result<Outcome, Failure> {
        let number = setup.config.ai.embedding.gpu_config.device_id as usize;
        let Some(gpu) = gpus.gpus.get(number) else {
            let absence = if gpus.absence.is_empty() {
                format!("device_id is {number}, and there are {}", gpus.gpus.len())
            } else {
                gpus.absence.clone()
            };
            terminal.hint(&format!("no GPU: {absence}"));
            return Ok(Outcome::NothingFound);
        };
        terminal.stop_gently();
        if let Some(model) = self.model {
            setup.config.ai.embedding.model_name = model;
        }
        let largest = self.batch.iter().copied().max().unwrap_or(1);
        setup.config.ai.embedding.batch_size = usize::from(largest);
        let backend = Backend::open(&setup, &setup.plugins(), &self.profile)?;
        let request = BatchRequest {
            batches: self.batch.into_iter().map(usize::from).collect(),
            lengths: self.tokens.into_iter().map(usize::from).collect(),
            runs: usize::from(self.runs),
        };
        let measured = {
            let progress = terminal.progress("figures");
            progress.0.set_length((request.batches.len() * request.lengths.len()) as u64);
            measure_batches(&UntilInterrupted, &backend, &request, &mut || progress.0.inc(1))?
        };
        let device = backend.embedder().device();
        if device.device.starts_with("cpu") {
            let reason = if device.fallback_reason.is_empty() {
                "it was not asked to"
            } else {
                &device.fallback_reason
            };
            return Err(Failure::Partly(format!(
                "the profile '{}' did not run on the GPU: {reason}",
                self.profile
            )));
        }
        // Asked again, now that the model and its work are in the memory.
        let now = gpu::probe()?.gpus.get(number).and_then(|gpu| gpu.now);
        let findings = judge(&Reading {
            calls: measured.calls,
            failed: measured.failed,
            used_bytes: now.map_or(0, |now| gpu.total_bytes.saturating_sub(now.free_bytes)),
            total_bytes: gpu.total_bytes,
        });
        let json = BenchmarkJson {
            gpu: &gpu.name,
            profile: &self.profile,
            model: &backend.embedder().info().model,
            device: &device.device,
            engine: &device.engine,
            precision: &device.precision,
            rates: &measured.rates,
            calls: measured.calls,
            failed: measured.failed,
            findings: &findings,
        };
        if terminal.json {
            terminal.print_json(&json)?;
        } else {
            print_benchmark(terminal, &json)?;
        }
        Ok(Outcome::Done)
    }
}

fn print_benchmark(terminal: &Terminal, found: &BenchmarkJson<'_>) -> Result<(), Failure> {
    let BenchmarkJson { gpu, profile, model, device, engine, precision, .. } = found;
    terminal
        .print(format_args!("{BOLD}{profile}{BOLD:#}  {model} on {device}, {gpu} ({engine}, {precision})"))?;
    terminal.print(format_args!(
        "{BOLD}{:>7} {:>6} {:>10} {:>11} {:>12}{BOLD:#}",
        "tokens", "batch", "texts/s", "tokens/s", "GPU memory"
    ))?;
    for BatchRate { tokens, batch, texts_per_s, device_bytes, fault } in found.rates {
        let memory = HumanBytes(*device_bytes);
        match (texts_per_s, fault) {
            (Some(rate), _) => terminal.print(format_args!(
                "{tokens:>7.0} {batch:>6} {rate:>10.1} {:>11.0} {memory:>12}",
                rate * tokens
            ))?,
            (None, fault) => terminal.print(format_args!(
                "{tokens:>7.0} {batch:>6} {RED}{}{RED:#}",
                fault.as_deref().unwrap_or("failed")
            ))?,
        }
    }
    for Finding { severity, fault, recommendation } in found.findings {
        let (style, word) = match severity {
            Severity::High => (RED, "high"),
            Severity::Medium => (YELLOW, "medium"),
        };
        terminal.print(format_args!("{style}{word}:{style:#} {fault}; {recommendation}"))?;
    }
    if found.findings.is_empty() {
        terminal.print(format_args!(
            "{} of {} failed; the GPU does well",
            found.failed,
            view::counted(found.calls, "call")
        ))?;
    }
    Ok(())
}
