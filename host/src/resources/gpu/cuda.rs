//! The few calls of the CUDA driver's interface that need no context, by its reference manual.
use super::{Gpu, GpuError, library};
use libloading::Library;
use std::ffi::{CString, c_char, c_int, c_uint};

pub(super) const LIBRARY: &str = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };

type Status = c_int;
type Device = c_int;
const NO_DEVICE: Status = 100;

const MULTIPROCESSORS: c_int = 16;
const CAPABILITY_MAJOR: c_int = 75;
const CAPABILITY_MINOR: c_int = 76;

/// The driver's functions. In tests they are Rust's.
pub(super) struct Cuda {
    pub(super) init: unsafe extern "C" fn(c_uint) -> Status,
    pub(super) version: unsafe extern "C" fn(*mut c_int) -> Status,
    pub(super) count: unsafe extern "C" fn(*mut c_int) -> Status,
    pub(super) device: unsafe extern "C" fn(*mut Device, c_int) -> Status,
    pub(super) name: unsafe extern "C" fn(*mut c_char, c_int, Device) -> Status,
    pub(super) memory: unsafe extern "C" fn(*mut usize, Device) -> Status,
    pub(super) attribute: unsafe extern "C" fn(*mut c_int, c_int, Device) -> Status,
    pub(super) bus_id: unsafe extern "C" fn(*mut c_char, c_int, Device) -> Status,
    /// Keeps the functions where they are.
    pub(super) _library: Option<Library>,
}

impl Cuda {
    /// The driver, where there is one.
    pub(super) fn open() -> Result<Option<Self>, GpuError> {
        let Some(library) = library::open(LIBRARY) else { return Ok(None) };
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the field it goes to has the type that the driver's header gives this function, and
                // the library is kept beside it.
                *unsafe { library.get($name) }.map_err(|error| GpuError::Library {
                    library: LIBRARY.to_owned(),
                    fault: error.to_string(),
                })?
            };
        }
        Ok(Some(Self {
            init: function!("cuInit"),
            version: function!("cuDriverGetVersion"),
            count: function!("cuDeviceGetCount"),
            device: function!("cuDeviceGet"),
            name: function!("cuDeviceGetName"),
            memory: function!("cuDeviceTotalMem_v2"),
            attribute: function!("cuDeviceGetAttribute"),
            bus_id: function!("cuDeviceGetPCIBusId"),
            _library: Some(library),
        }))
    }

    /// Must come first. False where the driver serves no GPU here.
    pub(super) fn initialise(&self) -> Result<bool, GpuError> {
        // SAFETY: the only value that the manual allows is 0.
        match unsafe { (self.init)(0) } {
            NO_DEVICE => Ok(false),
            status => check("cuInit", status).map(|()| true),
        }
    }

    /// The newest CUDA that it serves.
    pub(super) fn version(&self) -> Result<(i32, i32), GpuError> {
        let mut version = 0;
        // SAFETY: it writes one number.
        check("cuDriverGetVersion", unsafe { (self.version)(&mut version) })?;
        Ok((version / 1000, version % 1000 / 10))
    }

    pub(super) fn count(&self) -> Result<i32, GpuError> {
        let mut count = 0;
        // SAFETY: it writes one number.
        check("cuDeviceGetCount", unsafe { (self.count)(&mut count) })?;
        Ok(count)
    }

    /// A GPU, without how it does now, and its address on the bus.
    pub(super) fn gpu(&self, number: i32) -> Result<(Gpu, CString), GpuError> {
        let mut device = 0;
        // SAFETY: it writes one number.
        check("cuDeviceGet", unsafe { (self.device)(&mut device, number) })?;
        let mut name = [0; 128];
        // SAFETY: it writes at most as many bytes as it is told, a 0 at their end.
        check("cuDeviceGetName", unsafe { (self.name)(name.as_mut_ptr(), name.len() as c_int, device) })?;
        let mut memory = 0;
        // SAFETY: it writes one number.
        check("cuDeviceTotalMem", unsafe { (self.memory)(&mut memory, device) })?;
        let mut bus_id = [0; 32];
        // SAFETY: as for the name.
        let status = unsafe { (self.bus_id)(bus_id.as_mut_ptr(), bus_id.len() as c_int, device) };
        check("cuDeviceGetPCIBusId", status)?;
        let attribute = |attribute| {
            let mut value = 0;
            // SAFETY: it writes one number.
            check("cuDeviceGetAttribute", unsafe { (self.attribute)(&mut value, attribute, device) })?;
            Ok(value)
        };
        let gpu = Gpu {
            name: library::text(&name),
            capability: (attribute(CAPABILITY_MAJOR)?, attribute(CAPABILITY_MINOR)?),
            multiprocessors: attribute(MULTIPROCESSORS)?,
            total_bytes: memory as u64,
            now: None,
        };
        Ok((gpu, CString::new(library::text(&bus_id)).unwrap_or_default()))
    }
}

fn check(call: &'static str, status: Status) -> Result<(), GpuError> {
    let (meaning, remedy) = match status {
        0 => return Ok(()),
        2 => (" (out of memory)", "end other programs that use the GPU"),
        3 => (" (not initialised)", "restart the program"),
        34 => (" (a stub of the driver)", "take the stubs of the CUDA toolkit out of the library path"),
        46 => (
            " (the GPU is in use by another program alone)",
            "end that program, or set the compute mode to default",
        ),
        101 => (" (no such GPU)", "see CUDA_VISIBLE_DEVICES"),
        304 => (" (the system refused)", "see whether this user may open /dev/nvidia*"),
        802 => (" (not ready yet)", "see whether nvidia-fabricmanager runs"),
        803 => (
            " (library and kernel module are of different versions)",
            "restart after an update of the driver",
        ),
        804 => (" (this GPU needs another driver)", "install the driver for it"),
        _ => ("", "see `nvidia-smi` and the system's log"),
    };
    Err(GpuError::Driver { call, code: status, meaning, remedy })
}
