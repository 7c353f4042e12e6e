use libloading::Library;
use std::ffi::{CStr, c_char};

/// Opens a library of the driver by its name, where there is one.
pub(super) fn open(name: &str) -> Option<Library> {
    // SAFETY: it is the system's own library of this name, found where the system keeps its libraries. What it
    // runs when it is loaded is what every program that uses a GPU runs.
    unsafe { Library::new(name) }.ok()
}

/// A buffer that a C function has written a string into.
pub(super) fn text(buffer: &[c_char]) -> String {
    // Not `cast_unsigned`: a character has a sign on x86-64 and none on aarch64.
    let bytes: Vec<u8> = buffer.iter().flat_map(|c| c.to_ne_bytes()).collect();
    CStr::from_bytes_until_nul(&bytes).map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
}
