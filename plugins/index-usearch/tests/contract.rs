//! The contract of an index, for each way in which usearch stores numbers.
use magray_index_usearch::{Options, Scalar, Usearch};
use magray_plugin_api::{CreateVectorIndex, ErrorCode, IndexSpec, Metric, Result, VectorIndex};
use magray_plugin_testkit::{self as testkit, HOST};
use std::path::Path;

fn conforms(scalar: Scalar) {
    let options = Options { scalar, ..Options::default() };
    let make = move |spec: IndexSpec| -> Result<Box<dyn VectorIndex>> {
        Ok(Box::new(Usearch::create(options, spec, HOST)?))
    };
    let open = move |spec: IndexSpec, dir: &Path| -> Result<Box<dyn VectorIndex>> {
        Ok(Box::new(Usearch::open(options, spec, dir, HOST)?))
    };
    testkit::index(&make, Some(&open)).assert();
}

#[test]
fn f32_conforms() {
    conforms(Scalar::F32);
}

#[test]
fn bf16_conforms() {
    conforms(Scalar::Bf16);
}

#[test]
fn i8_conforms() {
    conforms(Scalar::I8);
}

#[test]
fn options_out_of_range_are_refused() {
    let spec = IndexSpec { dim: 4, metric: Metric::L2 };
    for (options, code) in [
        (Options { connectivity: 1, ..Options::default() }, ErrorCode::INVALID_CONFIG),
        (Options { expansion_add: 0, ..Options::default() }, ErrorCode::INVALID_CONFIG),
        (Options { scalar: Scalar::I8, ..Options::default() }, ErrorCode::UNSUPPORTED),
    ] {
        assert_eq!(Usearch::create(options, spec, HOST).unwrap_err().code(), code);
    }
}
