//! What happens without a usable ONNX Runtime. In a process of its own, since the first library that
//! loads stays.
use magray_embed_onnx::{OnnxEmbedder, Options};
use magray_model_testkit::{fetched, tiny};
use magray_plugin_api::{CreateEmbedder, ErrorCode};
use magray_plugin_testkit::HOST;
use std::{env, fs, path::Path};

#[test]
fn an_unusable_runtime_is_refused_and_a_good_one_then_found() {
    let library = fetched("onnxruntime/libonnxruntime.so");
    let dir = tempfile::tempdir().unwrap();
    let create = |runtime: &Path| {
        let runtime = runtime.to_str().unwrap().to_owned();
        let model = tiny("bert").to_str().unwrap().to_owned();
        OnnxEmbedder::create(Options { model, runtime, ..Options::default() }, HOST)
    };
    let file = |name: &str, content: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, content).unwrap();
        path
    };
    let whole = fs::read(&library).unwrap();
    let another = env::current_exe().unwrap();
    for (path, says) in [
        (dir.path().join("nothing.so"), "No such file"),
        (file("garbage.so", b"this is no library at all"), "no library"),
        (file("half.so", &whole[..whole.len() / 2]), "half.so"),
        (file("another.so", &fs::read(another).unwrap()), "another.so"),
        (dir.path().join("folder.so"), "No such file"),
    ] {
        let error = create(&path).unwrap_err();
        assert_eq!(error.code(), ErrorCode::UNAVAILABLE, "{error}");
        for part in [says, "scripts/fetch-models.sh", "ORT_DYLIB_PATH"] {
            assert!(error.message().contains(part), "no {part:?} in {error}");
        }
        assert!(!error.message().contains('\n'), "{error}");
    }
    create(&library).unwrap();
    create(&dir.path().join("nothing.so")).unwrap();
}
