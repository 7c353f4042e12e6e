//! The weights of a model as the kernels read them: packed once, kept in a file, mapped.
use super::{
    buffer::Buffer,
    gemm::{COLUMNS, GROUP, Panels, Precision, VECTOR, pack},
    linear::Linear,
    math::bf16,
};
use magray_model::Weights;
use magray_plugin_api::Result;
use memmap2::Mmap;
use std::{
    fmt,
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

/// Changes whenever the same model is packed into other bytes.
const LAYOUT: u32 = 1;
const MAGIC: &[u8; 16] = b"magray packed\n\x1a\0";
/// Magic, layout, precision, units, key, digest of the content, digest of all before it.
const HEADER: usize = 128;

/// Digits of a digest in the name of a file.
const DIGEST: usize = 16;

type Fill = Box<dyn Fn(&Weights, &mut [u32]) -> Result<()>>;

/// What is packed, part after part, and where each part lies.
pub(crate) struct Plan {
    pub(crate) precision: Precision,
    parts: Vec<(usize, Fill)>,
    units: usize,
}

/// The place of a linear layer.
#[derive(Clone, Debug)]
pub(crate) struct LinearPart {
    start: usize,
    inputs: usize,
    outputs: usize,
}

/// The place of some numbers.
#[derive(Clone, Debug)]
pub(crate) struct VectorPart {
    start: usize,
    len: usize,
}

/// Some of the columns of a linear layer: a tensor `[outputs, inputs]`.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    pub(crate) weight: String,
    pub(crate) bias: Option<String>,
    pub(crate) outputs: usize,
    /// Weights and bias are multiplied by it.
    pub(crate) scale: f32,
}

impl Plan {
    pub(crate) fn new(precision: Precision) -> Self {
        Self { precision, parts: Vec::new(), units: 0 }
    }

    fn part(&mut self, units: usize, fill: Fill) -> usize {
        let units = units.next_multiple_of(VECTOR);
        self.parts.push((units, fill));
        self.units += units;
        self.units - units
    }

    /// Adds a layer whose outputs are those of `blocks`, one after the other.
    pub(crate) fn linear(&mut self, inputs: usize, blocks: Vec<Block>) -> LinearPart {
        let precision = self.precision;
        let outputs = blocks.iter().map(|block| block.outputs).sum();
        let units = LinearPart { start: 0, inputs, outputs }.units(precision);
        let fill = move |weights: &Weights, out: &mut [u32]| {
            let (mut rows, mut bias) = (Vec::new(), Vec::new());
            for Block { weight, bias: name, outputs, scale } in &blocks {
                let block = weights.f32(weight, &[*outputs, inputs])?;
                rows.extend(block.into_iter().map(|x| x * scale));
                match name {
                    Some(name) => bias.extend(weights.f32(name, &[*outputs])?.into_iter().map(|x| x * scale)),
                    None => bias.resize(bias.len() + outputs, 0.0),
                }
            }
            pack_linear(precision, inputs, &rows, &bias, out);
            Ok(())
        };
        LinearPart { start: self.part(units, Box::new(fill)), inputs, outputs }
    }

    /// Adds `len` numbers.
    pub(crate) fn vector(
        &mut self,
        len: usize,
        read: impl Fn(&Weights) -> Result<Vec<f32>> + 'static,
    ) -> VectorPart {
        let fill = move |weights: &Weights, out: &mut [u32]| {
            out[..len].copy_from_slice(bytemuck::cast_slice(&read(weights)?));
            Ok(())
        };
        VectorPart { start: self.part(len, Box::new(fill)), len }
    }

    /// Adds a tensor of one dimension.
    pub(crate) fn tensor(&mut self, name: String, len: usize) -> VectorPart {
        self.vector(len, move |weights| weights.f32(&name, &[len]))
    }

    fn pack(&self, weights: &Weights) -> Result<Buffer> {
        let mut buffer = Buffer::zeroed(self.units);
        let mut rest = buffer.units_mut();
        for (units, fill) in &self.parts {
            let part;
            (part, rest) = rest.split_at_mut(*units);
            fill(weights, part)?;
        }
        Ok(buffer)
    }
}

impl LinearPart {
    fn steps(&self, precision: Precision) -> usize {
        self.inputs.div_ceil(precision.per_unit())
    }

    /// Panels, bias, and for int8 scales and sums of each group.
    fn units(&self, precision: Precision) -> usize {
        let groups = if precision == Precision::Int8 { self.steps(precision).div_ceil(GROUP) } else { 0 };
        let vectors = 1 + 2 * groups;
        Panels::len(self.steps(precision), self.outputs) + vectors * self.outputs.next_multiple_of(COLUMNS)
    }

    /// The layer in the packed weights.
    pub(crate) fn of<'a>(&self, packed: &'a Packed) -> Linear<'a> {
        let steps = self.steps(packed.precision);
        let units = &packed.units()[self.start..];
        let (panels, rest) = units.split_at(Panels::len(steps, self.outputs));
        let padded = self.outputs.next_multiple_of(COLUMNS);
        let vectors = |at: usize, count: usize| bytemuck::cast_slice(&rest[at * padded..][..count * padded]);
        let right = Panels { units: panels, steps, columns: self.outputs };
        let (scales, sums) = match packed.precision {
            Precision::Int8 => {
                let groups = steps.div_ceil(GROUP);
                (vectors(1, groups), vectors(1 + groups, groups))
            }
            _ => (&[][..], &[][..]),
        };
        Linear { right, bias: vectors(0, 1), scales, sums }
    }
}

impl VectorPart {
    /// The numbers in the packed weights.
    pub(crate) fn of<'a>(&self, packed: &'a Packed) -> &'a [f32] {
        bytemuck::cast_slice(&packed.units()[self.start..][..self.len])
    }
}

/// Packs `rows`, `[bias.len(), inputs]`, as [`LinearPart::of`] reads it.
fn pack_linear(precision: Precision, inputs: usize, rows: &[f32], bias: &[f32], out: &mut [u32]) {
    let (outputs, per_unit) = (bias.len(), precision.per_unit());
    let steps = inputs.div_ceil(per_unit);
    let (panels, rest) = out.split_at_mut(Panels::len(steps, outputs));
    let vectors: &mut [f32] = bytemuck::cast_slice_mut(rest);
    vectors[..outputs].copy_from_slice(bias);
    let number = |column: usize, input: usize| {
        if input < inputs { rows[column * inputs + input] } else { 0.0 }
    };
    match precision {
        Precision::F32 => pack(steps, outputs, |column, step| number(column, step).to_bits(), panels),
        Precision::Bf16 => {
            let half = |column, input| u32::from(bf16(number(column, input)));
            let unit = |column, step| half(column, 2 * step) | half(column, 2 * step + 1) << 16;
            pack(steps, outputs, unit, panels);
        }
        Precision::Int8 => {
            // Of each group of each column.
            let groups = steps.div_ceil(GROUP);
            let scales: Vec<f32> = rows
                .chunks_exact(inputs)
                .flat_map(|row| row.chunks(GROUP * per_unit))
                .map(|group| group.iter().fold(0.0, |most: f32, x| most.max(x.abs())) / 127.0)
                .collect();
            let int = |column: usize, input: usize| {
                let scale = scales[column * groups + input / (GROUP * per_unit)];
                if scale > 0.0 { (number(column, input) / scale).round() as i8 } else { 0 }
            };
            let unit = |column, step| {
                u32::from_le_bytes([0, 1, 2, 3].map(|at| int(column, per_unit * step + at) as u8))
            };
            pack(steps, outputs, unit, panels);
            let padded = outputs.next_multiple_of(COLUMNS);
            for (at, &scale) in scales.iter().enumerate() {
                let (column, group) = (at / groups, at % groups);
                let first = group * GROUP * per_unit;
                let group_inputs = first..inputs.min(first + GROUP * per_unit);
                let sum: i32 = group_inputs.map(|input| i32::from(int(column, input))).sum();
                vectors[(1 + group) * padded + column] = scale;
                vectors[(1 + groups + group) * padded + column] = sum as f32 * scale;
            }
        }
    }
}

/// The packed weights of a model.
pub(crate) struct Packed {
    precision: Precision,
    memory: Memory,
}

enum Memory {
    Mapped(Mmap),
    Own(Buffer),
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Packed").field("precision", &self.precision).finish_non_exhaustive()
    }
}

impl Packed {
    /// Maps the file at `path`, where it is what `plan` makes of the weights with the digest `key`;
    /// else packs `weights` and writes the file. Where it cannot be written, and where there is no
    /// path, the weights stay in memory, and `warn` is told why.
    ///
    /// # Errors
    /// `CORRUPT_DATA` where the model lacks a tensor.
    pub(crate) fn open(
        plan: &Plan,
        key: [u8; 32],
        weights: &Weights,
        path: Option<&Path>,
        warn: impl Fn(String),
    ) -> Result<Self> {
        let precision = plan.precision;
        if let Some(path) = path
            && let Ok(map) = map(path, plan, &key)
        {
            return Ok(Self { precision, memory: Memory::Mapped(map) });
        }
        let buffer = plan.pack(weights)?;
        if let Some(path) = path {
            match write(path, plan, &key, &buffer).and_then(|()| map(path, plan, &key)) {
                Ok(map) => return Ok(Self { precision, memory: Memory::Mapped(map) }),
                Err(error) => warn(format!("cannot keep the packed weights in {}: {error}", path.display())),
            }
        }
        Ok(Self { precision, memory: Memory::Own(buffer) })
    }

    fn units(&self) -> &[u32] {
        match &self.memory {
            Memory::Mapped(map) => bytemuck::cast_slice(&map[HEADER..]),
            Memory::Own(buffer) => buffer.units(),
        }
    }

    /// All bytes, for whoever wants them in memory.
    pub(crate) fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(self.units())
    }

    /// Whether the system may drop them from memory.
    pub(crate) fn is_mapped(&self) -> bool {
        matches!(self.memory, Memory::Mapped(_))
    }
}

fn header(plan: &Plan, key: &[u8; 32], content: blake3::Hash) -> [u8; HEADER] {
    let mut header = Vec::with_capacity(HEADER);
    header.extend_from_slice(MAGIC);
    header.extend_from_slice(&LAYOUT.to_le_bytes());
    header.extend_from_slice(&(plan.precision.per_unit() as u32).to_le_bytes());
    header.extend_from_slice(&(plan.units as u64).to_le_bytes());
    header.extend_from_slice(key);
    header.extend_from_slice(content.as_bytes());
    let all = blake3::hash(&header);
    header.extend_from_slice(all.as_bytes());
    let mut bytes = [0; HEADER];
    bytes.copy_from_slice(&header);
    bytes
}

/// Maps a packed file and verifies every byte of it.
fn map(path: &Path, plan: &Plan, key: &[u8; 32]) -> io::Result<Mmap> {
    let file = File::open(path)?;
    // SAFETY: the file is this plugin's own, in a folder of its own; it is replaced as a whole and
    // never written in place. Every bit pattern is a valid number.
    let map = unsafe { Mmap::map(&file)? };
    let other = || io::Error::new(io::ErrorKind::InvalidData, "it is damaged, or of another model");
    if map.len() != HEADER + plan.units * size_of::<u32>() {
        return Err(other());
    }
    #[cfg(target_os = "linux")]
    {
        // Fewer address translations where the system can; no harm where it cannot.
        let _ = map.advise(memmap2::Advice::HugePage);
        let _ = map.advise(memmap2::Advice::WillNeed);
    }
    let (head, content) = map.split_at(HEADER);
    if head != header(plan, key, blake3::hash(content)) {
        return Err(other());
    }
    Ok(map)
}

fn write(path: &Path, plan: &Plan, key: &[u8; 32], buffer: &Buffer) -> io::Result<()> {
    let content = &bytemuck::cast_slice(buffer.units())[..plan.units * size_of::<u32>()];
    // Another process may be writing the same file.
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(&header(plan, key, blake3::hash(content)))?;
        file.write_all(content)?;
        fs::rename(&temporary, path)
    });
    match &written {
        Ok(()) => remove_superseded(path),
        Err(_) => drop(fs::remove_file(&temporary)),
    }
    written
}

/// Removes what stands beside `path` of the same model and precision with other weights: the model was replaced. Where
/// another process still maps such a file it keeps it until it ends. Without the right to remove it stays.
fn remove_superseded(path: &Path) {
    let parts = |path: &Path| {
        let stem = path.file_name()?.to_str()?.strip_suffix(".packed")?;
        let (rest, precision) = stem.rsplit_once('-')?;
        let (model, digest) = rest.rsplit_once('-')?;
        (digest.len() == DIGEST).then(|| (model.to_owned(), precision.to_owned()))
    };
    let (Some(own), Some(dir)) = (parts(path), path.parent()) else { return };
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let other = entry.path();
        if other != path && parts(&other).as_ref() == Some(&own) {
            let _ = fs::remove_file(other);
        }
    }
}

/// Where the packed weights of a model are kept, below the plugin's folder `dir`.
pub(crate) fn file_name(model: &str, key: &[u8; 32], precision: Precision) -> String {
    let model: String = model
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '.' { c } else { '_' })
        .collect();
    let digest = blake3::Hash::from(*key).to_hex();
    format!("{model}-{}-{}.packed", &digest[..DIGEST], precision.name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use magray_model::{ModelFolder, Overrides};
    use std::cell::RefCell;
    use tempfile::tempdir;

    const DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../model/tests/data/architectures/bert");

    fn plan(precision: Precision) -> (Plan, LinearPart, VectorPart) {
        let mut plan = Plan::new(precision);
        let block = |name: &str, scale| Block {
            weight: format!("encoder.layer.0.attention.self.{name}.weight"),
            bias: Some(format!("encoder.layer.0.attention.self.{name}.bias")),
            outputs: 36,
            scale,
        };
        let linear = plan.linear(36, vec![block("query", 0.5), block("key", 1.0)]);
        let vector = plan.tensor("embeddings.LayerNorm.weight".to_owned(), 36);
        (plan, linear, vector)
    }

    fn weights() -> Weights {
        Weights::open(&ModelFolder::open(DIR.as_ref(), &Overrides::default()).unwrap()).unwrap()
    }

    #[test]
    fn what_is_packed_is_what_the_model_has() {
        let weights = weights();
        let read = |name: &str, shape: &[usize]| weights.f32(name, shape).unwrap();
        let query = read("encoder.layer.0.attention.self.query.weight", &[36, 36]);
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            let (plan, linear, vector) = plan(precision);
            let packed = Packed::open(&plan, [1; 32], &weights, None, |why| panic!("{why}")).unwrap();
            assert!(!packed.is_mapped());
            assert_eq!(vector.of(&packed), read("embeddings.LayerNorm.weight", &[36]));
            let linear = linear.of(&packed);
            assert_eq!(linear.right.columns, 72);
            assert_eq!(linear.bias[71], read("encoder.layer.0.attention.self.key.bias", &[36])[35]);
            // The first number of column 17 is the first in its unit, in the first panel.
            let unit = linear.right.units[17];
            let number = match precision {
                Precision::F32 => f32::from_bits(unit),
                Precision::Bf16 => f32::from_bits(unit << 16),
                Precision::Int8 => f32::from(unit as i8) * linear.scales[17],
            };
            let expected = query[17 * 36] * 0.5;
            assert!((number - expected).abs() < 0.02 * expected.abs().max(0.1), "{number} {expected}");
        }
    }

    #[test]
    fn a_file_that_is_not_whole_is_made_anew() {
        let (dir, weights) = (tempdir().unwrap(), weights());
        let path = dir.path().join("model.packed");
        let open = |key: u8, precision| {
            let warned = RefCell::new(Vec::new());
            let warn = |why| warned.borrow_mut().push(why);
            let packed = Packed::open(&plan(precision).0, [key; 32], &weights, Some(&path), warn).unwrap();
            assert!(packed.is_mapped(), "{warned:?}");
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "a temporary file is left");
            packed.bytes().to_vec()
        };
        let content = open(1, Precision::Bf16);
        let file = fs::read(&path).unwrap();
        assert_eq!(open(1, Precision::Bf16), content);
        assert_eq!(fs::read(&path).unwrap(), file);
        for at in [0, 17, 21, 30, 40, 70, 100, HEADER, file.len() / 2, file.len() - 1] {
            let mut damaged = file.clone();
            damaged[at] ^= 1;
            fs::write(&path, &damaged).unwrap();
            assert_eq!(open(1, Precision::Bf16), content, "byte {at}");
            assert_eq!(fs::read(&path).unwrap(), file, "byte {at}");
        }
        for len in [0, 1, HEADER - 1, HEADER, file.len() - 1] {
            fs::write(&path, &file[..len]).unwrap();
            assert_eq!(open(1, Precision::Bf16), content, "{len} bytes");
        }
        // Another model and another precision are not taken for it.
        open(2, Precision::Bf16);
        assert_ne!(fs::read(&path).unwrap(), file);
        assert_ne!(open(1, Precision::F32), content);
    }

    #[test]
    fn weights_stay_in_memory_where_no_file_can_be_written() {
        let dir = tempdir().unwrap();
        let path = dir.path().join("no-such-folder/model.packed");
        let warned = RefCell::new(String::new());
        let (plan, _, vector) = plan(Precision::F32);
        let packed =
            Packed::open(&plan, [1; 32], &weights(), Some(&path), |why| *warned.borrow_mut() = why).unwrap();
        assert!(!packed.is_mapped());
        assert_eq!(vector.of(&packed).len(), 36);
        assert!(warned.borrow().contains("no-such-folder"), "{warned:?}");
    }

    #[test]
    fn a_file_of_a_model_that_was_replaced_is_removed() {
        let (dir, weights) = (tempdir().unwrap(), weights());
        let file = |model: &str, key: u8, precision| {
            let path = dir.path().join(file_name(model, &[key; 32], precision));
            let plan = plan(precision).0;
            Packed::open(&plan, [key; 32], &weights, Some(&path), |why| panic!("{why}")).unwrap();
            path
        };
        let former = file("bge", 1, Precision::Bf16);
        let others = [
            file("bge", 1, Precision::Int8),
            file("bge-small", 1, Precision::Bf16),
            dir.path().join("bge-notes-bf16.packed"),
        ];
        fs::write(&others[2], "not of this plugin").unwrap();
        let own = file("bge", 2, Precision::Bf16);
        assert!(!former.exists() && own.exists());
        assert!(others.iter().all(|path| path.exists()), "{others:?}");
    }

    #[test]
    fn a_file_name_is_harmless_and_tells_models_apart() {
        let name = file_name("../BAAI/bge small", &[1; 32], Precision::Int8);
        assert!(name.ends_with("-int8.packed") && !name.contains(['/', ' ']), "{name}");
        assert_ne!(name, file_name("../BAAI/bge small", &[2; 32], Precision::Int8));
    }
}
