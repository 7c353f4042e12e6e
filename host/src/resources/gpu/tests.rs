//! The driver's answers, good and bad, by functions that stand in for it: no test machine has a GPU.
use super::{
    cuda::Cuda,
    nvml::{Memory, Nvml, Utilisation},
    *,
};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

/// # Safety
/// `to` has room for `text` and a 0.
unsafe fn put(to: *mut c_char, text: &CStr) {
    // SAFETY: by the contract above.
    unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), to, text.count_bytes() + 1) };
}

unsafe extern "C" fn init(_: c_uint) -> c_int {
    0
}
unsafe extern "C" fn no_gpu(_: c_uint) -> c_int {
    100
}
unsafe extern "C" fn mismatch(_: c_uint) -> c_int {
    803
}
unsafe extern "C" fn version(to: *mut c_int) -> c_int {
    // SAFETY: the caller gives room for one number.
    unsafe { *to = 12_080 };
    0
}
unsafe extern "C" fn two(to: *mut c_int) -> c_int {
    // SAFETY: as above.
    unsafe { *to = 2 };
    0
}
unsafe extern "C" fn none(_: *mut c_int) -> c_int {
    0
}
unsafe extern "C" fn device(to: *mut c_int, number: c_int) -> c_int {
    // SAFETY: as above.
    unsafe { *to = 40 + number };
    0
}
unsafe extern "C" fn name(to: *mut c_char, room: c_int, device: c_int) -> c_int {
    let name = if device == 40 { c"Test Card 8000" } else { c"Other Card" };
    assert!(room > 20);
    // SAFETY: it is asserted.
    unsafe { put(to, name) };
    0
}
unsafe extern "C" fn memory(to: *mut usize, device: c_int) -> c_int {
    // SAFETY: the caller gives room for one number.
    unsafe { *to = if device == 40 { 8 << 30 } else { 80 << 30 } };
    0
}
unsafe extern "C" fn attribute(to: *mut c_int, attribute: c_int, _: c_int) -> c_int {
    let value = match attribute {
        16 => 108,
        75 => 8,
        76 => 6,
        _ => return 1,
    };
    // SAFETY: as above.
    unsafe { *to = value };
    0
}
unsafe extern "C" fn bus_id(to: *mut c_char, room: c_int, device: c_int) -> c_int {
    assert!(room > 13);
    // SAFETY: it is asserted.
    unsafe { put(to, if device == 40 { c"0000:01:00.0" } else { c"0000:02:00.0" }) };
    0
}

fn driver() -> Cuda {
    Cuda { init, version, count: two, device, name, memory, attribute, bus_id, _library: None }
}

unsafe extern "C" fn by_bus(bus_id: *const c_char, to: *mut *mut c_void) -> c_int {
    // SAFETY: the caller gives a string with a 0 at its end, and room for one handle.
    let known = unsafe { CStr::from_ptr(bus_id) } == c"0000:01:00.0";
    // SAFETY: as above; the handle is never followed.
    unsafe { *to = std::ptr::without_provenance_mut(7) };
    if known { 0 } else { 6 }
}
unsafe extern "C" fn memory_now(_: *mut c_void, to: *mut Memory) -> c_int {
    // SAFETY: the caller gives room for the structure.
    unsafe { *to = Memory { total: 8 << 30, free: 3 << 30, used: 5 << 30 } };
    0
}
unsafe extern "C" fn utilisation(_: *mut c_void, to: *mut Utilisation) -> c_int {
    // SAFETY: as above.
    unsafe { *to = Utilisation { gpu: 71, memory: 20 } };
    0
}
unsafe extern "C" fn no_sensor(_: *mut c_void, _: c_uint, _: *mut c_uint) -> c_int {
    3
}
unsafe extern "C" fn driver_version(to: *mut c_char, room: c_uint) -> c_int {
    assert!(room > 10);
    // SAFETY: it is asserted.
    unsafe { put(to, c"570.86.15") };
    0
}

fn nvml() -> Nvml {
    Nvml {
        device: by_bus,
        memory: memory_now,
        utilisation,
        temperature: no_sensor,
        driver: driver_version,
        _library: None,
    }
}

#[test]
fn every_gpu_is_told_with_what_each_library_knows() {
    let found = gpus(&driver(), Some(&nvml())).expect("all is well");
    let now = GpuNow { free_bytes: 3 << 30, utilisation: Some(71), celsius: None };
    let card = |name: &str, gib: u64, now| Gpu {
        name: name.to_owned(),
        capability: (8, 6),
        multiprocessors: 108,
        total_bytes: gib << 30,
        now,
    };
    assert_eq!(found.gpus, [card("Test Card 8000", 8, Some(now)), card("Other Card", 80, None)]);
    assert_eq!((found.cuda, found.driver.as_deref()), (Some((12, 8)), Some("570.86.15")));
    let memory = ["cuda:0", "cuda:1", "cuda:2", "cuda:x", "cpu"].map(|device| found.memory_of(device));
    assert_eq!(memory, [8 << 30, 80 << 30, 0, 0, 0]);
}

#[test]
fn the_driver_alone_is_enough() {
    let found = gpus(&driver(), None).expect("all is well");
    assert_eq!((found.gpus.len(), found.gpus[0].now, found.driver), (2, None, None));
}

#[test]
fn no_gpu_is_no_error_and_says_why() {
    let found = gpus(&Cuda { init: no_gpu, ..driver() }, None).expect("no error");
    assert!(found.gpus.is_empty() && found.absence.contains("CUDA_VISIBLE_DEVICES"), "{found:?}");
    let found = gpus(&Cuda { count: none, ..driver() }, None).expect("no error");
    assert!(found.gpus.is_empty() && !found.absence.is_empty(), "{found:?}");
}

#[test]
fn a_driver_that_does_not_work_is_an_error_with_a_remedy() {
    let error = gpus(&Cuda { init: mismatch, ..driver() }, None).expect_err("it does not work").to_string();
    for part in ["cuInit", "803", "different versions", "restart"] {
        assert!(error.contains(part), "no {part} in {error}");
    }
    unsafe extern "C" fn broken(_: *mut c_int, _: c_int, _: c_int) -> c_int {
        999
    }
    let error =
        gpus(&Cuda { attribute: broken, ..driver() }, None).expect_err("it does not work").to_string();
    assert!(error.contains("cuDeviceGetAttribute failed with 999"), "{error}");
}
