//! How busy the machine is. Systems other than Linux count as idle, with memory to spare.
use crate::resources::pressure::Pressure;
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

/// How scarce memory is, by the bound that is nearest: 0 up to half of it in use, 1 from 85% on.
pub fn memory_pressure() -> f64 {
    Pressure::sample().tightest().map_or(0.0, |limit| scarce(limit.percent() / 100.0))
}

fn scarce(used: f64) -> f64 {
    ((used - EASY) / (CRITICAL - EASY)).clamp(0.0, 1.0)
}

fn first_number(text: &str) -> Option<f64> {
    text.split_whitespace().next()?.parse().ok().filter(|number: &f64| number.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_scarce_from_half_of_it_on() {
        assert_eq!([0.1, 0.5, 0.85, 0.99].map(scarce), [0.0, 0.0, 1.0, 1.0]);
        let some = scarce(0.675);
        assert!((0.49..0.51).contains(&some), "{some}");
    }

    #[test]
    fn the_machine_says_how_it_is() {
        assert!((0.0..=1.0).contains(&system_load()));
        assert!((0.0..=1.0).contains(&memory_pressure()));
    }
}
