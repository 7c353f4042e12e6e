use crate::{ModelFolder, WeightFiles, corrupt, unsupported};
use half::{
    bf16, f16,
    slice::{HalfBitsSliceExt, HalfFloatSliceExt},
};
use magray_plugin_api::{Error, ErrorCode, Result};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors, tensor::TensorInfo};
use std::{collections::HashMap, fmt, fs::File, ops::Range};

/// What may stand before the name of every tensor, by the class that saved the file.
const PREFIXES: [&str; 5] = ["", "bert.", "roberta.", "mpnet.", "model."];

/// The tensors of a model's safetensors files, mapped.
pub struct Weights {
    maps: Vec<Mmap>,
    tensors: HashMap<String, Tensor>,
    prefix: &'static str,
}

struct Tensor {
    map: usize,
    bytes: Range<usize>,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl fmt::Debug for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Weights").field("tensors", &self.tensors.len()).finish_non_exhaustive()
    }
}

impl Weights {
    /// Maps the files of `folder` and reads their headers.
    ///
    /// # Errors
    /// `UNSUPPORTED` where the folder has only an ONNX form, `CORRUPT_DATA` for damaged files.
    pub fn open(folder: &ModelFolder) -> Result<Self> {
        let WeightFiles::Safetensors(files) = &folder.weights else {
            return Err(unsupported(format!(
                "the model '{}' has only an ONNX form; use the backend onnx, or get its model.safetensors",
                folder.name
            )));
        };
        let (mut maps, mut tensors) = (Vec::new(), HashMap::new());
        for name in files {
            let unreadable = |error| {
                Error::new(ErrorCode::IO, format!("model {}: cannot read {name}: {error}", folder.name))
            };
            let file = File::open(folder.dir.join(name)).map_err(unreadable)?;
            // SAFETY: only bytes are read from it, for which every value is valid. Whoever changes a
            // model in use gets other vectors; whoever truncates it ends the process, as with every
            // mapped file.
            let map = unsafe { Mmap::map(&file) }.map_err(unreadable)?;
            let (header_len, header) = SafeTensors::read_metadata(&map)
                .map_err(|error| corrupt(format!("model {}: {name} is damaged: {error}", folder.name)))?;
            for (tensor, TensorInfo { dtype, shape, data_offsets: (start, end) }) in header.tensors() {
                // The tensors start after 8 bytes, which hold the length of the header, and the header.
                let bytes = 8 + header_len + start..8 + header_len + end;
                let (dtype, shape) = (*dtype, shape.clone());
                tensors.insert(tensor, Tensor { map: maps.len(), bytes, dtype, shape });
            }
            maps.push(map);
        }
        let holds = |prefix: &&str| {
            ["embeddings.word_embeddings.weight", "embed_tokens.weight"]
                .iter()
                .any(|name| tensors.contains_key(&format!("{prefix}{name}")))
        };
        let prefix = PREFIXES.into_iter().find(holds).unwrap_or("");
        Ok(Self { maps, tensors, prefix })
    }

    /// Whether there is a tensor of this name, which stands without the prefix of the class that
    /// saved it (`bert.`, `model.`, ...).
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(&format!("{}{name}", self.prefix))
    }

    /// The shape of a tensor, where there is one of this name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(&format!("{}{name}", self.prefix)).map(|tensor| &*tensor.shape)
    }

    /// The numbers of a tensor as f32, row-major; F32, F16 and BF16 can be read.
    ///
    /// # Errors
    /// `CORRUPT_DATA` where it is missing, has another shape or a number that is not finite;
    /// `UNSUPPORTED` for other types.
    pub fn f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let name = format!("{}{name}", self.prefix);
        let tensor =
            self.tensors.get(&name).ok_or_else(|| corrupt(format!("the model has no tensor '{name}'")))?;
        if tensor.shape != shape {
            return Err(corrupt(format!("tensor '{name}' has the shape {:?}, not {shape:?}", tensor.shape)));
        }
        let bytes = &self.maps[tensor.map][tensor.bytes.clone()];
        let halves =
            || bytes.as_chunks().0.iter().map(|&half| u16::from_le_bytes(half)).collect::<Vec<u16>>();
        let numbers: Vec<f32> = match tensor.dtype {
            Dtype::F32 => bytes.as_chunks().0.iter().map(|&number| f32::from_le_bytes(number)).collect(),
            Dtype::F16 => halves().reinterpret_cast::<f16>().to_f32_vec(),
            Dtype::BF16 => halves().reinterpret_cast::<bf16>().to_f32_vec(),
            other => {
                return Err(unsupported(format!(
                    "tensor '{name}' is {other:?}; F32, F16 and BF16 can be read"
                )));
            }
        };
        if let Some(at) = numbers.iter().position(|number| !number.is_finite()) {
            return Err(corrupt(format!("tensor '{name}' has {} at {at}", numbers[at])));
        }
        Ok(numbers)
    }

    /// Bytes of the files, which the system may drop from memory at any time.
    pub fn mapped(&self) -> u64 {
        self.maps.iter().map(|map| map.len() as u64).sum()
    }
}
