//! How busy the machine is. Systems other than Linux count as idle, with memory to spare.
use std::{fs, num::NonZero, thread};

/// The share of the memory in use at which it begins to be scarce, and at which it is critical (the defaults
/// of SPEC G1).
const EASY: f64 = 0.5;
const CRITICAL: f64 = 0.85;

/// Processes that ran or wanted to in the last minute, against the cores: 0 to 1.
pub fn system_load() -> f64 {
    let running = fs::read_to_string("/proc/loadavg").ok().and_then(|text| first_number(&text));
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    running.map_or(0.0, |running| (running / cores as f64).clamp(0.0, 1.0))
}

/// How scarce the memory of the machine is: 0 up to half of it in use, 1 from 85% on.
pub fn memory_pressure() -> f64 {
    fs::read_to_string("/proc/meminfo").ok().and_then(|text| pressure(&text)).unwrap_or(0.0)
}

fn pressure(meminfo: &str) -> Option<f64> {
    let kib = |name| meminfo.lines().find_map(|line| first_number(line.strip_prefix(name)?));
    let used = 1.0 - kib("MemAvailable:")? / kib("MemTotal:")?;
    Some(((used - EASY) / (CRITICAL - EASY)).clamp(0.0, 1.0))
}

fn first_number(text: &str) -> Option<f64> {
    text.split_whitespace().next()?.parse().ok().filter(|number: &f64| number.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_scarce_by_what_is_available() {
        let at = |available: u32| pressure(&format!("MemTotal: 1000 kB\nMemAvailable: {available} kB\n"));
        assert_eq!((at(900), at(500), at(150), at(1)), (Some(0.0), Some(0.0), Some(1.0), Some(1.0)));
        let some = at(325).unwrap();
        assert!((0.49..0.51).contains(&some), "{some}");
        assert_eq!((pressure(""), pressure("MemTotal: 0 kB\nMemAvailable: x")), (None, None));
    }

    #[test]
    fn the_machine_says_how_it_is() {
        assert!((0.0..=1.0).contains(&system_load()));
        assert!((0.0..=1.0).contains(&memory_pressure()));
    }
}
