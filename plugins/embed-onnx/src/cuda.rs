//! Asks the CUDA driver what there is, without ONNX Runtime: registering its CUDA provider where
//! there is no GPU takes up to 500 ms, this takes less than one.
use libloading::Library;
use std::ffi::c_int;

const DRIVER: &str = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };

/// CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
const COMPUTE_CAPABILITY: c_int = 75;

/// A GPU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gpu {
    /// Bytes of its memory.
    pub(crate) memory: u64,
    /// Major number of its compute capability.
    pub(crate) capability: u32,
}

type Init = unsafe extern "C" fn(u32) -> c_int;
type DeviceCount = unsafe extern "C" fn(*mut c_int) -> c_int;
type DeviceGet = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
type DeviceMemory = unsafe extern "C" fn(*mut usize, c_int) -> c_int;
type DeviceAttribute = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int;

impl Gpu {
    /// The GPU with the number `device`, or why there is none.
    pub(crate) fn probe(device: u32) -> Result<Self, String> {
        // SAFETY: the driver's library is made to be loaded into any process.
        let driver = unsafe { Library::new(DRIVER) }
            .map_err(|_| format!("there is no NVIDIA driver ({DRIVER} is not found)"))?;
        // Once started the driver must not go away; without a driver nothing is kept.
        let driver: &'static Library = Box::leak(Box::new(driver));
        let missing = |error: libloading::Error| format!("the NVIDIA driver is unusable: {error}");
        let failed = |what: &str, status: c_int| match status {
            0 => Ok(()),
            100 => Err("the NVIDIA driver finds no GPU".to_owned()),
            _ => Err(format!("the NVIDIA driver fails: {what} gives {status}")),
        };
        let (mut count, mut handle, mut memory, mut capability) = (0, 0, 0usize, 0);
        // SAFETY: the signatures are those of cuda.h; the pointers are to locals of the right types,
        // and every call but the first comes after a successful cuInit.
        unsafe {
            let init = driver.get::<Init>(b"cuInit\0").map_err(missing)?;
            let device_count = driver.get::<DeviceCount>(b"cuDeviceGetCount\0").map_err(missing)?;
            let device_get = driver.get::<DeviceGet>(b"cuDeviceGet\0").map_err(missing)?;
            let device_memory = driver.get::<DeviceMemory>(b"cuDeviceTotalMem_v2\0").map_err(missing)?;
            let attribute = driver.get::<DeviceAttribute>(b"cuDeviceGetAttribute\0").map_err(missing)?;
            failed("cuInit", init(0))?;
            failed("cuDeviceGetCount", device_count(&raw mut count))?;
            let device = c_int::try_from(device).unwrap_or(c_int::MAX);
            if device >= count {
                return Err(format!("there is no GPU {device}; the NVIDIA driver finds {count}"));
            }
            failed("cuDeviceGet", device_get(&raw mut handle, device))?;
            failed("cuDeviceTotalMem", device_memory(&raw mut memory, handle))?;
            let status = attribute(&raw mut capability, COMPUTE_CAPABILITY, handle);
            failed("cuDeviceGetAttribute", status)?;
        }
        Ok(Self { memory: memory as u64, capability: u32::try_from(capability).unwrap_or(0) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_there_is_no_gpu_is_said() {
        if let Err(why) = Gpu::probe(u32::MAX) {
            assert!(why.contains("NVIDIA"), "{why}");
        }
    }
}
