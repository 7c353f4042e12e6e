//! Real models on a real ONNX Runtime.
#![expect(clippy::unwrap_used, reason = "a test")]
mod support;

use magray_embed_onnx::{Options, Precision};
use magray_plugin_api::{Embedder, Role};
use std::path::Path;
use support::{cosine, create, embed, fetched, largest_difference, minilm_reference, open, reference, tiny};

const MINILM: &str = "models/all-MiniLM-L6-v2";

#[test]
fn minilm_keeps_the_contract() {
    magray_plugin_testkit::embedder(&open(&fetched(MINILM))).assert();
}

#[test]
fn minilm_gives_the_reference_vectors() {
    let embedder = open(&fetched(MINILM));
    let reference = minilm_reference();
    let texts: Vec<&str> = reference.items.iter().map(|item| item.text.as_str()).collect();
    for (vector, item) in embed(&embedder, &texts, Role::Passage).iter().zip(&reference.items) {
        let difference = largest_difference(vector, &item.embedding);
        assert!(difference <= 1e-4, "{difference} for {:?}", item.text);
    }
    let device = embedder.device();
    assert_eq!((device.device.as_str(), device.engine.as_str()), ("cpu", "CPUExecutionProvider"));
    assert_eq!((device.precision.as_str(), device.fallback_reason.as_str()), ("f32", ""));
}

#[test]
fn every_network_gives_the_vectors_of_its_reference() {
    for name in ["bert", "bert-cls-f16", "mpnet", "xlm-roberta"] {
        let folder = tiny(name);
        let embedder = open(&folder);
        let int8 =
            create(Options { model: folder.clone(), precision: Precision::Int8, ..Options::default() });
        let int8 = int8.unwrap();
        let reference = reference(&Path::new(&folder).join("expected.json"));
        for role in [Role::Query, Role::Passage] {
            let items: Vec<_> = reference.items.iter().filter(|item| item.role() == role).collect();
            let texts: Vec<&str> = items.iter().map(|item| item.text.as_str()).collect();
            let near = embed(&int8, &texts, role);
            for ((vector, near), item) in embed(&embedder, &texts, role).iter().zip(near).zip(items) {
                let difference = largest_difference(vector, &item.embedding);
                assert!(difference <= 1e-4, "{name}: {difference} for {:?}", item.text);
                let cosine = cosine(&near, &item.embedding);
                assert!(cosine >= 0.99, "{name} int8: {cosine} for {:?}", item.text);
            }
        }
    }
}

#[test]
fn int8_keeps_the_contract_and_is_near_the_reference() {
    let model = fetched(MINILM);
    let embedder = create(Options { model, precision: Precision::Int8, ..Options::default() }).unwrap();
    magray_plugin_testkit::embedder(&embedder).assert();
    assert_eq!(embedder.device().precision, "int8");
    assert_eq!(embedder.info(), open(&fetched(MINILM)).info(), "it is the same space");
    let reference = minilm_reference();
    let texts: Vec<&str> = reference.items.iter().map(|item| item.text.as_str()).collect();
    for (vector, item) in embed(&embedder, &texts, Role::Passage).iter().zip(&reference.items) {
        let cosine = cosine(vector, &item.embedding);
        assert!(cosine >= 0.995, "{cosine} for {:?}", item.text);
    }
}
