use crate::{ModelFolder, WeightFiles, corrupt, unsupported};
use half::{bf16, f16};
use magray_plugin_api::{Error, ErrorCode, Result};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors, tensor::TensorInfo};
use std::{borrow::Cow, collections::HashMap, fmt, fs::File, ops::Range, sync::Arc};

/// What may stand before the name of every tensor, by the class that saved the file.
const PREFIXES: [&str; 5] = ["", "bert.", "roberta.", "mpnet.", "model."];

/// The tensors of a model's safetensors files, mapped.
pub struct Weights {
    maps: Vec<Arc<Mmap>>,
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
            maps.push(Arc::new(map));
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
        self.tensors.contains_key(&format!("{}{name}", self.prefix)) || self.tensors.contains_key(name)
    }

    /// The shape of a tensor, where there is one of this name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(&format!("{}{name}", self.prefix)).map(|tensor| &*tensor.shape)
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<&Tensor> {
        let tensor =
            self.tensors.get(name).ok_or_else(|| corrupt(format!("the model has no tensor '{name}'")))?;
        if tensor.shape != shape {
            return Err(corrupt(format!("tensor '{name}' has the shape {:?}, not {shape:?}", tensor.shape)));
        }
        if !matches!(tensor.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Err(unsupported(format!(
                "tensor '{name}' is {:?}; F32, F16 and BF16 can be read",
                tensor.dtype
            )));
        }
        Ok(tensor)
    }

    /// A tensor `[rows, width]` of which single rows are wanted; F32, F16 and BF16 can be read. It
    /// stays mapped, and its numbers are not checked.
    ///
    /// # Errors
    /// As [`Weights::f32`].
    pub fn table(&self, name: &str, [rows, width]: [usize; 2]) -> Result<Table> {
        let tensor = self.tensor(&format!("{}{name}", self.prefix), &[rows, width])?;
        let map = self.maps[tensor.map].clone();
        Ok(Table { map, bytes: tensor.bytes.clone(), dtype: tensor.dtype, width })
    }

    /// The numbers of a tensor as f32, row-major; F32, F16 and BF16 can be read.
    ///
    /// # Errors
    /// `CORRUPT_DATA` where it is missing, has another shape or a number that is not finite;
    /// `UNSUPPORTED` for other types.
    pub fn f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        Ok(self.view(name, shape)?.into_owned())
    }

    /// As [`Weights::f32`], without a copy where the file holds the numbers as they are wanted.
    ///
    /// # Errors
    /// As [`Weights::f32`].
    pub fn view(&self, bare: &str, shape: &[usize]) -> Result<Cow<'_, [f32]>> {
        let mut name = Cow::Owned(format!("{}{bare}", self.prefix));
        // What stands beside the network, such as a classifier, has no prefix.
        if !self.tensors.contains_key(&*name) && self.tensors.contains_key(bare) {
            name = bare.into();
        }
        let tensor = self.tensor(&name, shape)?;
        let bytes = &self.maps[tensor.map][tensor.bytes.clone()];
        let numbers = match as_f32(bytes, tensor.dtype) {
            Some(numbers) => Cow::Borrowed(numbers),
            None => {
                let mut numbers = vec![0.0; shape.iter().product()];
                read(bytes, tensor.dtype, &mut numbers);
                Cow::Owned(numbers)
            }
        };
        // Without an early end in the inner loop it takes no longer than the memory does.
        let is_damaged =
            |some: &[f32]| some.iter().fold(false, |damaged, number| damaged | !number.is_finite());
        if numbers.chunks(1 << 10).any(is_damaged)
            && let Some(at) = numbers.iter().position(|number| !number.is_finite())
        {
            return Err(corrupt(format!("tensor '{name}' has {} at {at}", numbers[at])));
        }
        Ok(numbers)
    }

    /// Bytes of the files, which the system may drop from memory at any time.
    pub fn mapped(&self) -> u64 {
        self.maps.iter().map(|map| map.len() as u64).sum()
    }
}

/// A tensor of which single rows are read, such as word embeddings.
pub struct Table {
    map: Arc<Mmap>,
    bytes: Range<usize>,
    dtype: Dtype,
    width: usize,
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("dtype", &self.dtype).finish_non_exhaustive()
    }
}

impl Table {
    /// Writes a row into `out`, `[width]`.
    pub fn read(&self, row: usize, out: &mut [f32]) {
        let size = self.width * self.dtype.bitsize() / 8;
        read(&self.map[self.bytes.clone()][row * size..][..size], self.dtype, out);
    }

    /// The whole table, `[rows, width]`, where the file holds the numbers as f32.
    pub fn as_f32(&self) -> Option<&[f32]> {
        as_f32(&self.map[self.bytes.clone()], self.dtype)
    }

    /// Bytes of the table, which the system may drop from memory at any time.
    pub fn mapped(&self) -> u64 {
        self.bytes.len() as u64
    }
}

/// The numbers of a tensor where they lie, if they are f32 and aligned.
fn as_f32(bytes: &[u8], dtype: Dtype) -> Option<&[f32]> {
    if dtype != Dtype::F32 || cfg!(target_endian = "big") {
        return None;
    }
    // SAFETY: every bit pattern is a number.
    let (before, numbers, after) = unsafe { bytes.align_to() };
    (before.is_empty() && after.is_empty()).then_some(numbers)
}

/// Reads numbers of a type that [`Weights::tensor`] lets through.
fn read(bytes: &[u8], dtype: Dtype, out: &mut [f32]) {
    let halves = || bytes.as_chunks().0.iter().map(|&half| u16::from_le_bytes(half));
    match dtype {
        Dtype::F16 => out.iter_mut().zip(halves()).for_each(|(out, half)| *out = f16::from_bits(half).into()),
        Dtype::BF16 => {
            out.iter_mut().zip(halves()).for_each(|(out, half)| *out = bf16::from_bits(half).into())
        }
        _ => {
            let numbers = bytes.as_chunks().0.iter().map(|&number| f32::from_le_bytes(number));
            out.iter_mut().zip(numbers).for_each(|(out, number)| *out = number);
        }
    }
}
