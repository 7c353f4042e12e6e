//! The GPUs of this machine: which there are, what they suit, how well they are.
//!
//! The driver's libraries are opened when they are asked for, so that one program serves machines with and without
//! a GPU, and a machine without one has its answer in about a millisecond.
mod cuda;
mod health;
mod library;
mod nvml;

pub use health::{Finding, Reading, Severity, judge};

use cuda::Cuda;
use nvml::Nvml;

/// Why GPUs that may be there cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum GpuError {
    #[error("the CUDA driver's {call} failed with {code}{meaning}; {remedy}")]
    Driver { call: &'static str, code: i32, meaning: &'static str, remedy: &'static str },
    #[error("the CUDA driver's library {library} is not whole: {fault}; install the driver anew")]
    Library { library: String, fault: String },
}

/// The GPUs that this process may use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gpus {
    /// By their number, from 0, as `device_id` in the config counts them.
    pub gpus: Vec<Gpu>,
    /// The newest CUDA that the driver serves.
    pub cuda: Option<(i32, i32)>,
    /// Version of the driver.
    pub driver: Option<String>,
    /// Where there is none: why.
    pub absence: String,
}

impl Gpus {
    /// Bytes of memory of the one that a backend names as its device, such as `cuda:0`; 0 where there is no such one.
    pub fn memory_of(&self, device: &str) -> u64 {
        let number = device.strip_prefix("cuda:").and_then(|number| number.parse::<usize>().ok());
        number.and_then(|number| self.gpus.get(number)).map_or(0, |gpu| gpu.total_bytes)
    }
}

/// One GPU. What the driver does not say is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Its name.
    pub name: String,
    /// Compute capability.
    pub capability: (i32, i32),
    /// Streaming multiprocessors.
    pub multiprocessors: i32,
    /// Bytes of memory.
    pub total_bytes: u64,
    /// How it does now; none without NVML.
    pub now: Option<GpuNow>,
}

/// How a GPU does at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GpuNow {
    /// Bytes of memory that nobody uses.
    pub free_bytes: u64,
    /// Share of the last moments in which it computed, in percent.
    pub utilisation: Option<u32>,
    /// In degrees Celsius.
    pub celsius: Option<u32>,
}

/// Asks the driver which GPUs there are.
///
/// # Errors
/// [`GpuError`] where there is a driver that does not work. No driver, or none for any GPU here, is no error: then
/// there is no GPU.
pub fn probe() -> Result<Gpus, GpuError> {
    let Some(cuda) = Cuda::open()? else {
        return Ok(Gpus {
            absence: format!("there is no CUDA driver ({})", cuda::LIBRARY),
            ..Gpus::default()
        });
    };
    gpus(&cuda, Nvml::open().as_ref())
}

fn gpus(cuda: &Cuda, nvml: Option<&Nvml>) -> Result<Gpus, GpuError> {
    if !cuda.initialise()? {
        let absence =
            "the CUDA driver finds no GPU; see `nvidia-smi`, and whether CUDA_VISIBLE_DEVICES hides it";
        return Ok(Gpus { absence: absence.to_owned(), ..Gpus::default() });
    }
    let gpu = |number| {
        let (gpu, bus_id) = cuda.gpu(number)?;
        let now = nvml.and_then(|nvml| nvml.now(&bus_id));
        Ok(Gpu { now, ..gpu })
    };
    let found = (0..cuda.count()?).map(gpu).collect::<Result<Vec<_>, _>>()?;
    let absence = if found.is_empty() { "the CUDA driver names no GPU".to_owned() } else { String::new() };
    Ok(Gpus { gpus: found, cuda: Some(cuda.version()?), driver: nvml.and_then(Nvml::driver), absence })
}

#[cfg(test)]
mod tests;
