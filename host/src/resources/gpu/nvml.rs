//! How a GPU does, from NVML, the library below `nvidia-smi`. All of it is optional: containers often lack it.
use super::{GpuNow, library};
use libloading::Library;
use std::{
    ffi::{CStr, c_char, c_int, c_uint, c_void},
    ptr,
};

const LIBRARY: &str = if cfg!(windows) { "nvml.dll" } else { "libnvidia-ml.so.1" };

type Status = c_int;
type Device = *mut c_void;
/// The sensor on the chip.
const ON_CHIP: c_uint = 0;

#[repr(C)]
#[derive(Default)]
pub(super) struct Memory {
    pub(super) total: u64,
    pub(super) free: u64,
    pub(super) used: u64,
}

#[repr(C)]
#[derive(Default)]
pub(super) struct Utilisation {
    pub(super) gpu: c_uint,
    pub(super) memory: c_uint,
}

/// NVML's functions. In tests they are Rust's.
pub(super) struct Nvml {
    pub(super) device: unsafe extern "C" fn(*const c_char, *mut Device) -> Status,
    pub(super) memory: unsafe extern "C" fn(Device, *mut Memory) -> Status,
    pub(super) utilisation: unsafe extern "C" fn(Device, *mut Utilisation) -> Status,
    pub(super) temperature: unsafe extern "C" fn(Device, c_uint, *mut c_uint) -> Status,
    pub(super) driver: unsafe extern "C" fn(*mut c_char, c_uint) -> Status,
    /// Keeps the functions where they are.
    pub(super) _library: Option<Library>,
}

impl Nvml {
    /// NVML, ready to be asked, where it is and works.
    pub(super) fn open() -> Option<Self> {
        let library = library::open(LIBRARY)?;
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the place it goes to has the type that NVML's header gives this function, and the
                // library is kept beside it.
                *unsafe { library.get($name) }.ok()?
            };
        }
        let init: unsafe extern "C" fn() -> Status = function!("nvmlInit_v2");
        // SAFETY: it takes nothing. What it sets up is left to the end of the process.
        if unsafe { init() } != 0 {
            return None;
        }
        Some(Self {
            device: function!("nvmlDeviceGetHandleByPciBusId_v2"),
            memory: function!("nvmlDeviceGetMemoryInfo"),
            utilisation: function!("nvmlDeviceGetUtilizationRates"),
            temperature: function!("nvmlDeviceGetTemperature"),
            driver: function!("nvmlSystemGetDriverVersion"),
            _library: Some(library),
        })
    }

    /// How the GPU at this address on the bus does.
    pub(super) fn now(&self, bus_id: &CStr) -> Option<GpuNow> {
        let mut device: Device = ptr::null_mut();
        // SAFETY: it reads a string up to its 0 and writes one handle.
        known(unsafe { (self.device)(bus_id.as_ptr(), &mut device) })?;
        let mut memory = Memory::default();
        // SAFETY: the handle is NVML's own, and it fills a structure of the layout of its header.
        known(unsafe { (self.memory)(device, &mut memory) })?;
        let mut utilisation = Utilisation::default();
        // SAFETY: as above.
        let used = known(unsafe { (self.utilisation)(device, &mut utilisation) });
        let mut celsius = 0;
        // SAFETY: the handle is NVML's own, and it writes one number.
        let felt = known(unsafe { (self.temperature)(device, ON_CHIP, &mut celsius) });
        Some(GpuNow {
            free_bytes: memory.free,
            utilisation: used.map(|()| utilisation.gpu),
            celsius: felt.map(|()| celsius),
        })
    }

    /// Version of the driver.
    pub(super) fn driver(&self) -> Option<String> {
        let mut version = [0; 96];
        // SAFETY: it writes at most as many bytes as it is told, a 0 at their end.
        known(unsafe { (self.driver)(version.as_mut_ptr(), version.len() as c_uint) })?;
        Some(library::text(&version)).filter(|version| !version.is_empty())
    }
}

fn known(status: Status) -> Option<()> {
    (status == 0).then_some(())
}
