//! Which files make a model folder in Hugging Face layout.
use std::path::{Component, Path};

/// Files beside the weights that decide a vector, or whose licence must go with them.
const FILES: [&str; 11] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "LICENSE",
    "LICENSE.txt",
    "ATTRIBUTION.txt",
];
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const ONNX: [&str; 2] = ["onnx/model.onnx", "model.onnx"];

/// Of the files in a folder or repository, those that make the model. Where there are safetensors, an ONNX form
/// is taken only when `with_onnx` says so. Empty where there is no `config.json` or there are no weights.
pub(super) fn needed(names: &[String], with_onnx: bool) -> Vec<&str> {
    let there = |name: &str| names.iter().any(|there| there == name);
    let safetensors = there(WEIGHTS) || there(INDEX);
    let onnx = ONNX.into_iter().find(|name| there(name));
    if !there("config.json") || !(safetensors || onnx.is_some()) {
        return Vec::new();
    }
    let wanted = |name: &str| {
        is_safe(name)
            && (FILES.contains(&name)
                || is_module(name)
                || (there(WEIGHTS) && name == WEIGHTS)
                || (!there(WEIGHTS) && (name == INDEX || is_shard(name)))
                || match onnx {
                    Some(_) if with_onnx => is_onnx(name),
                    // Tensors beyond 2 GB are in a file beside it.
                    Some(onnx) if !safetensors => {
                        name.strip_prefix(onnx).is_some_and(|end| matches!(end, "" | "_data" | ".data"))
                    }
                    _ => false,
                })
    };
    names.iter().map(String::as_str).filter(|name| wanted(name)).collect()
}

/// Folders in `names` that hold a model, by their path with a `/` at the end; that of the top is empty.
pub(super) fn model_roots(names: &[String]) -> Vec<&str> {
    let roots = names.iter().filter_map(|name| name.strip_suffix("config.json"));
    let roots = roots.filter(|root| {
        let below: Vec<String> =
            names.iter().filter_map(|name| name.strip_prefix(root)).map(str::to_owned).collect();
        (root.is_empty() || root.ends_with('/')) && !needed(&below, false).is_empty()
    });
    roots.collect()
}

/// Whether a name from elsewhere is a path that stays below its folder, on every system.
pub(super) fn is_safe(name: &str) -> bool {
    let plain = |part: Component<'_>| match part {
        Component::Normal(part) => {
            part.to_str().is_some_and(|part| part.len() <= 200 && !part.starts_with('.'))
        }
        _ => false,
    };
    !name.is_empty()
        && name != magray_model::MANIFEST
        && !name.contains(['\\', ':'])
        && !name.contains("//")
        && !name.ends_with('/')
        && !name.chars().any(char::is_control)
        && Path::new(name).components().all(plain)
}

/// Whether `name` can be the name of a model folder, on every system.
pub(super) fn is_name(name: &str) -> bool {
    name.len() <= 100
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && !name.ends_with('.')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
}

/// `1_Pooling/config.json`, `2_Dense/model.safetensors`.
fn is_module(name: &str) -> bool {
    name.split_once('/').is_some_and(|(module, file)| {
        let numbered = module.split_once('_').is_some_and(|(number, _)| number.parse::<u8>().is_ok());
        numbered && matches!(file, "config.json" | WEIGHTS)
    })
}

/// `model-00001-of-00002.safetensors`
fn is_shard(name: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let numbers = name.strip_prefix("model-").and_then(|rest| rest.strip_suffix(".safetensors"));
    numbers.and_then(|numbers| numbers.split_once("-of-")).is_some_and(|(a, b)| number(a) && number(b))
}

fn is_onnx(name: &str) -> bool {
    let file = name.strip_prefix("onnx/").unwrap_or(name);
    !file.contains('/')
        && [".onnx", ".onnx_data", ".onnx.data"]
            .iter()
            .any(|end| file.len() > end.len() && file.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn only_what_is_needed_is_taken() {
        let repository = names(&[
            ".gitattributes",
            "1_Pooling/config.json",
            "README.md",
            "config.json",
            "data_config.json",
            "model.safetensors",
            "modules.json",
            "onnx/model.onnx",
            "onnx/model_O4.onnx",
            "openvino/openvino_model.bin",
            "pytorch_model.bin",
            "tf_model.h5",
            "tokenizer.json",
            "train_script.py",
        ]);
        let plain =
            ["1_Pooling/config.json", "config.json", "model.safetensors", "modules.json", "tokenizer.json"];
        assert_eq!(needed(&repository, false), plain);
        let with_onnx = needed(&repository, true);
        assert!(with_onnx.contains(&"onnx/model.onnx") && with_onnx.contains(&"onnx/model_O4.onnx"));
        assert_eq!(with_onnx.len(), plain.len() + 2);
    }

    #[test]
    fn shards_and_onnx_stand_in_for_the_one_file() {
        let shards = names(&[
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.fp16-00001-of-00002.safetensors",
            "model.safetensors.index.json",
        ]);
        assert_eq!(needed(&shards, false).len(), 4);
        let onnx = names(&["config.json", "onnx/model.onnx", "onnx/model.onnx_data", "onnx/model_int8.onnx"]);
        assert_eq!(needed(&onnx, false), ["config.json", "onnx/model.onnx", "onnx/model.onnx_data"]);
        assert!(needed(&names(&["config.json", "pytorch_model.bin"]), false).is_empty());
        assert!(needed(&names(&["model.safetensors"]), false).is_empty());
    }

    #[test]
    fn a_model_is_found_wherever_it_is() {
        let wheel = names(&[
            "pkg/__init__.py",
            "pkg/model/1_Pooling/config.json",
            "pkg/model/config.json",
            "pkg/model/data_config.json",
            "pkg/model/model.safetensors",
        ]);
        assert_eq!(model_roots(&wheel), ["pkg/model/"]);
        assert_eq!(model_roots(&names(&["config.json", "model.safetensors"])), [""]);
        assert!(model_roots(&names(&["a/config.json", "b/model.safetensors"])).is_empty());
    }

    #[test]
    fn no_name_leads_out_of_its_folder() {
        for name in ["model.safetensors", "1_Pooling/config.json", "onnx/model.onnx"] {
            assert!(is_safe(name), "{name}");
        }
        for name in [
            "",
            "..",
            "../x",
            "a/../../x",
            "/etc/passwd",
            "a//b",
            "a/",
            "./a",
            "C:\\x",
            "a\\..\\b",
            "c:x",
            "a\nb",
            ".hidden",
            "a/.b",
            "magray.json",
            "a/./b",
        ] {
            assert!(!is_safe(name), "{name}");
        }
        for name in ["all-MiniLM-L6-v2", "e5", "bge_small.v1"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", ".", "..", ".incoming", "a/b", "a\\b", "a b", "модель", "-x", "x."] {
            assert!(!is_name(name), "{name}");
        }
    }
}
