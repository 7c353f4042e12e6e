//! Errors of ONNX Runtime as those of the plugin boundary.
use magray_plugin_api::{Error, ErrorCode};

/// What ONNX Runtime, CUDA and the allocators of both say when memory runs out. There is no code for
/// it.
const OUT_OF_MEMORY: [&str; 6] = [
    "out of memory",
    "failed to allocate memory",
    "cuda_error_out_of_memory",
    "cudnn_status_alloc_failed",
    "cublas_status_alloc_failed",
    "std::bad_alloc",
];

/// An error of ONNX Runtime while doing `what`.
pub(crate) fn of_runtime<R>(what: &str, error: &ort::Error<R>) -> Error {
    // Messages of CUDA have several lines.
    let message = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
    Error::new(code(error.code(), &message), format!("ONNX Runtime {what}: {message}"))
}

fn code(code: ort::ErrorCode, message: &str) -> ErrorCode {
    let lower = message.to_lowercase();
    if OUT_OF_MEMORY.iter().any(|part| lower.contains(part)) {
        return ErrorCode::OUT_OF_MEMORY;
    }
    match code {
        ort::ErrorCode::NoSuchFile | ort::ErrorCode::NoModel | ort::ErrorCode::NotFound => {
            ErrorCode::UNAVAILABLE
        }
        ort::ErrorCode::InvalidProtobuf | ort::ErrorCode::InvalidGraph => ErrorCode::CORRUPT_DATA,
        ort::ErrorCode::NotImplemented => ErrorCode::UNSUPPORTED,
        ort::ErrorCode::DeviceReset => ErrorCode::UNAVAILABLE,
        _ if lower.contains("cuda failure") || lower.contains("cuda error") => ErrorCode::UNAVAILABLE,
        _ => ErrorCode::INTERNAL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_host_can_act_on_is_told_apart() {
        let general = ort::ErrorCode::GenericFailure;
        for (runtime, message, expected) in [
            (
                general,
                "bfc_arena.cc:376 AllocateRawInternal Failed to allocate memory for requested buffer of size 12",
                ErrorCode::OUT_OF_MEMORY,
            ),
            (general, "CUDA failure 2: out of memory ; GPU=0", ErrorCode::OUT_OF_MEMORY),
            (general, "CUDA failure 100: no CUDA-capable device is detected", ErrorCode::UNAVAILABLE),
            (ort::ErrorCode::InvalidProtobuf, "Protobuf parsing failed.", ErrorCode::CORRUPT_DATA),
            (ort::ErrorCode::NotImplemented, "no kernel", ErrorCode::UNSUPPORTED),
            (general, "something else", ErrorCode::INTERNAL),
        ] {
            assert_eq!(code(runtime, message), expected, "{message}");
        }
    }
}
