//! `magray stats --memory`, and whether a configuration fits the memory.
use super::{
    Failure,
    terminal::{BOLD, DIM, Terminal, UntilInterrupted},
};
use crate::{
    config::{Config, Resolved},
    engine::{self, Engine, EngineError, MemoryReport},
    models::Models,
    resources::{fit::Fit, total_memory},
};
use indicatif::HumanBytes;
use serde::Serialize;
use std::path::Path;

#[derive(Serialize)]
struct MemoryJson {
    #[serde(flatten)]
    memory: MemoryReport,
    grants: GrantsJson,
    fit: Fit,
}

/// What a process that lives long begins with, and may come to.
#[derive(Serialize)]
struct GrantsJson {
    cache_bytes: u64,
    most_cache_bytes: u64,
    vectors: u64,
    most_vectors: u64,
}

/// Whose memory it is, of a process with the model loaded and every index open.
pub(super) fn show(engine: &Engine, terminal: &Terminal) -> Result<(), Failure> {
    engine.indexes()?.open_all(&UntilInterrupted).map_err(EngineError::from)?;
    let memory = engine.memory();
    let grants = engine.grants(&memory.pressure)?;
    let grants = GrantsJson {
        cache_bytes: grants.cache.granted(),
        most_cache_bytes: grants.cache.most(),
        vectors: grants.vectors.granted(),
        most_vectors: grants.vectors.most(),
    };
    let fit = engine.fit(memory.pressure.total())?;
    let json = MemoryJson { memory, grants, fit };
    if terminal.json { terminal.print_json(&json) } else { print(terminal, &json) }
}

fn print(terminal: &Terminal, MemoryJson { memory, grants, fit }: &MemoryJson) -> Result<(), Failure> {
    terminal.print(format_args!(
        "{BOLD}{:<22} {:>12} {:>12} {:>12}{BOLD:#}",
        "component", "memory", "mapped", "GPU"
    ))?;
    let row = |name: &str, bytes: [u64; 3]| {
        let [resident, mapped, device] = bytes.map(|bytes| match bytes {
            0 => "-".to_owned(),
            bytes => HumanBytes(bytes).to_string(),
        });
        terminal.print(format_args!("{name:<22} {resident:>12} {mapped:>12} {device:>12}"))
    };
    for component in &memory.components {
        row(&component.name, [component.resident, component.mapped, component.device])?;
    }
    row("unaccounted", [memory.unaccounted, 0, 0])?;
    let process = memory.pressure.process;
    terminal.print(format_args!(
        "\nthe process has {} in memory: {} that it allocated, {} of mapped files",
        HumanBytes(process.resident),
        HumanBytes(process.anonymous),
        HumanBytes(process.file)
    ))?;
    for limit in &memory.pressure.limits {
        terminal.print(format_args!(
            "{}: {} of {} in use ({:.0}%)",
            limit.name,
            HumanBytes(limit.used),
            HumanBytes(limit.total),
            limit.percent()
        ))?;
    }
    for gpu in &memory.gpus {
        let used = gpu.used.map_or_else(|| "?".to_owned(), |used| HumanBytes(used).to_string());
        terminal.print(format_args!("{}: {used} of {} in use", gpu.name, HumanBytes(gpu.total)))?;
    }
    terminal.print(format_args!(
        "a process that lives long may cache {} in memory, up to {}, and hold {} vectors open, up to {}",
        HumanBytes(grants.cache_bytes),
        HumanBytes(grants.most_cache_bytes),
        grants.vectors,
        grants.most_vectors
    ))?;
    terminal.print(format_args!("{DIM}{fit}{DIM:#}"))
}

/// Whether as many vectors as may be stored can be searched from `memory`, else from that of this machine. None where
/// nobody says how wide the vectors of the model are.
pub(super) fn fit(config: &Config, models: &Path, memory: Option<u64>) -> Option<Fit> {
    let dim = Models::new(models.to_owned()).dim(&config.ai.embedding.model_name)?;
    Some(engine::fit(config, dim, memory.unwrap_or_else(total_memory)))
}

/// Whether somebody has set how many vectors there may be. The default means "as many as fit".
pub(super) fn is_set(resolved: &Resolved) -> bool {
    resolved.is_set("memory.resource_manager.scaling_max_vectors")
}

/// Parses a number of bytes, such as `64GiB`.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 1,
        "K" | "KIB" => 1 << 10,
        "M" | "MIB" => 1 << 20,
        "G" | "GIB" => 1 << 30,
        "T" | "TIB" => 1u64 << 40,
        _ => return Err("it must be a number of bytes such as 64GiB".into()),
    };
    let number = digits.trim().parse::<u64>().ok().filter(|number| *number > 0);
    let bytes = number.and_then(|number| number.checked_mul(unit));
    bytes.ok_or_else(|| "it must be a number of bytes such as 64GiB".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_unit() {
        assert_eq!(bytes("1024"), Ok(1024));
        assert_eq!((bytes("64GiB"), bytes("2 g"), bytes("3TiB")), (Ok(64 << 30), Ok(2 << 30), Ok(3 << 40)));
        for wrong in ["", "G", "-1G", "1.5G", "1X", "0", "99999999TiB", "１G"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
