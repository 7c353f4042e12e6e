use serde::{Deserialize, Serialize};
use std::{fs, num::NonZero, thread};

/// Where figures were measured.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Name of the processor.
    pub cpu: String,
    /// What it can do beyond its architecture's base, of what matters to vectors.
    pub flags: Vec<String>,
    /// Cores that this process may use.
    pub cores: usize,
    /// Release of the system's kernel.
    pub kernel: String,
    /// Processes that wanted a core, on average over the last minute: other work spoils figures.
    pub load: f64,
}

const FLAGS: &[&str] = &[
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx_vnni",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
    "bf16",
];

impl Machine {
    /// This machine. What the system does not say is empty.
    pub fn here() -> Self {
        let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |names: &[&str]| {
            let lines = cpu.lines().filter_map(|line| line.split_once(':'));
            lines
                .filter(|(name, _)| names.contains(&name.trim()))
                .map(|(_, value)| value.trim())
                .next()
                .unwrap_or_default()
        };
        let flags: Vec<&str> = field(&["flags", "Features"]).split(' ').collect();
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            cpu: field(&["model name"]).to_owned(),
            flags: FLAGS.iter().filter(|flag| flags.contains(flag)).map(ToString::to_string).collect(),
            cores: thread::available_parallelism().map_or(1, NonZero::get),
            kernel: kernel.trim().to_owned(),
            load: Conditions::now().load,
        }
    }
}

/// How the machine is at a moment, of what spoils figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Conditions {
    /// As [`Machine::load`].
    pub load: f64,
    /// The mean frequency of its cores; none where the system does not tell.
    pub mhz: Option<f64>,
    /// How often a core was slowed down since the start because it was hot; none where the system does not tell.
    pub throttled: Option<u64>,
}

impl Conditions {
    /// Those of this moment.
    pub fn now() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpu = read("/proc/cpuinfo");
        let lines = cpu.lines().filter_map(|line| line.strip_prefix("cpu MHz")?.split_once(':'));
        let mhz: Vec<f64> = lines.filter_map(|(_, mhz)| mhz.trim().parse().ok()).collect();
        let throttled = read("/sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count");
        Self {
            load: read("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0),
            mhz: (!mhz.is_empty()).then(|| mhz.iter().sum::<f64>() / mhz.len() as f64),
            throttled: throttled.trim().parse().ok(),
        }
    }
}
