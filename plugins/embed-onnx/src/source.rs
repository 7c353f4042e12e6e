//! What of a model's folder is run: a network that is built from its tensors, or an ONNX file.
use crate::{classifier::Classifier, error, graph, options::Precision, sessions::Form};
use magray_model::{Architecture, ModelFolder, Spec, WeightFiles, Weights};
use magray_plugin_api::{Error, ErrorCode, Result};
use ort::{
    session::{Session, builder::SessionBuilder},
    value::{Outlet, TensorElementType, ValueType},
};
use std::{path::PathBuf, sync::Arc};

/// Where int8 forms are, by the names that their makers give them.
const INT8_FILES: [&str; 4] =
    ["onnx/model_int8.onnx", "onnx/model_quantized.onnx", "model_int8.onnx", "model_quantized.onnx"];

/// What is run.
#[derive(Debug)]
pub(crate) enum Source {
    /// A network that is built from tensors, in f32 or int8.
    Tensors { weights: Arc<Weights>, int8: bool },
    /// An ONNX file.
    File { path: PathBuf, int8: bool },
}

impl Source {
    /// Chooses for `precision`. Tensors come before a file: they are what the digest of the space is
    /// of, and their network is made of fused operators.
    ///
    /// # Errors
    /// `UNSUPPORTED` where the folder has no form that runs here.
    pub(crate) fn choose(folder: &ModelFolder, precision: Precision) -> Result<Self> {
        let tensors = matches!(folder.weights, WeightFiles::Safetensors(_));
        if tensors && graph::is_known(&folder.spec.architecture) {
            let weights = Arc::new(Weights::open(folder)?);
            return Ok(Self::Tensors { weights, int8: precision == Precision::Int8 });
        }
        let int8 = INT8_FILES.iter().map(|name| folder.dir.join(name)).find(|path| path.is_file());
        let fp32 = folder.onnx.as_ref().map(|name| folder.dir.join(name));
        let (path, is_int8) = match precision {
            Precision::Int8 => (int8, true),
            Precision::Auto if fp32.is_none() => (int8, true),
            Precision::Auto | Precision::Fp32 => (fp32, false),
        };
        match path {
            Some(path) => Ok(Self::File { path, int8: is_int8 }),
            None => Err(unsupported(folder, precision)),
        }
    }

    /// `f32` or `int8`.
    pub(crate) fn precision(&self) -> &'static str {
        match self {
            Self::Tensors { int8: true, .. } | Self::File { int8: true, .. } => "int8",
            Self::Tensors { .. } | Self::File { .. } => "f32",
        }
    }

    /// The tensors that sessions read.
    pub(crate) fn weights(&self) -> Option<Arc<Weights>> {
        match self {
            Self::Tensors { weights, .. } => Some(weights.clone()),
            Self::File { .. } => None,
        }
    }

    /// Bytes of its weights.
    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::Tensors { weights, .. } => weights.mapped(),
            Self::File { path, .. } => path.metadata().map_or(0, |metadata| metadata.len()),
        }
    }

    /// Makes a session by `options`, and says how it is fed. It reads tensors from where they are, so that
    /// [`Source::weights`] must outlive it.
    ///
    /// # Errors
    /// `CORRUPT_DATA` for a damaged model, `UNSUPPORTED` for an ONNX file that takes or gives something
    /// else, and what ONNX Runtime says.
    ///
    /// # Safety
    /// Whoever has the session keeps [`Source::weights`] for as long.
    pub(crate) unsafe fn session(
        &self,
        folder: &ModelFolder,
        mut options: SessionBuilder,
    ) -> Result<(Session, Form)> {
        match self {
            Self::Tensors { weights, int8 } => {
                // SAFETY: the caller keeps the weights.
                let model = unsafe { graph::build(&folder.spec, weights, *int8) }
                    .map_err(|error| error_of(folder, error.code(), error.message()))?;
                let session = model.into_session(&options).map_err(|error| {
                    error::of_runtime(&format!("cannot run the model {}", folder.name), &error)
                })?;
                let types = graph::takes_types(&folder.spec);
                let classifier = match folder.spec.architecture.hidden() {
                    Some(hidden) if folder.spec.judges_pairs => Some(
                        Classifier::read(weights, hidden)
                            .map_err(|error| error_of(folder, error.code(), error.message()))?,
                    ),
                    _ => None,
                };
                Ok((session, Form::Network { types, classifier }))
            }
            Self::File { path, .. } => {
                let session = options.commit_from_file(path).map_err(|error| {
                    let error = error::of_runtime(&format!("cannot load {}", path.display()), &error);
                    // Whatever it says of a file that it cannot load, the file is the cause.
                    let code = match error.code() {
                        ErrorCode::INTERNAL => ErrorCode::CORRUPT_DATA,
                        code => code,
                    };
                    Error::new(code, error.message())
                })?;
                let form = form(&session, &folder.spec).map_err(|why| {
                    Error::new(ErrorCode::UNSUPPORTED, format!("{}: {why}", path.display()))
                })?;
                Ok((session, form))
            }
        }
    }
}

fn error_of(folder: &ModelFolder, code: ErrorCode, message: &str) -> Error {
    Error::new(code, format!("model {}: {message}", folder.dir.display()))
}

fn unsupported(folder: &ModelFolder, precision: Precision) -> Error {
    let message = match &folder.spec.architecture {
        Architecture::Static => "it is static, which only the backend cpu runs".to_owned(),
        Architecture::Bert(_) | Architecture::Qwen3(_) => {
            let name = if precision == Precision::Int8 { INT8_FILES[0] } else { "onnx/model.onnx" };
            format!("it has no model.safetensors and no {name}, so that it does not run in this 'precision'")
        }
    };
    error_of(folder, ErrorCode::UNSUPPORTED, &message)
}

/// What an input of an ONNX file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Feed {
    Ids,
    Mask,
    TokenTypes,
    Positions,
}

/// How a session of an ONNX file is fed, or why it cannot be.
fn form(session: &Session, spec: &Spec) -> std::result::Result<Form, String> {
    let mut inputs = Vec::new();
    for input in session.inputs() {
        let feed = match input.name() {
            "input_ids" => Feed::Ids,
            "attention_mask" => Feed::Mask,
            "token_type_ids" => Feed::TokenTypes,
            "position_ids" => Feed::Positions,
            other => {
                return Err(format!(
                    "it has an input '{other}'; input_ids, attention_mask, token_type_ids and position_ids are known"
                ));
            }
        };
        let wide = match tensor(input) {
            Some((TensorElementType::Int64, 2)) => true,
            Some((TensorElementType::Int32, 2)) => false,
            _ => {
                return Err(format!(
                    "its input '{}' is {}, not int64[batch, seq]",
                    input.name(),
                    input.dtype()
                ));
            }
        };
        inputs.push((input.name().to_owned(), feed, wide));
    }
    if !inputs.iter().any(|(_, feed, _)| *feed == Feed::Ids) {
        return Err("it has no input 'input_ids'".to_owned());
    }
    let rank =
        |rank: usize| move |output: &&Outlet| tensor(output) == Some((TensorElementType::Float32, rank));
    let outputs = || session.outputs().iter();
    if spec.judges_pairs {
        let is_one = |output: &&Outlet| match output.dtype() {
            ValueType::Tensor { shape, .. } => shape.last().is_some_and(|&width| width == 1 || width < 0),
            _ => false,
        };
        let output = outputs().filter(rank(2)).find(is_one).ok_or("it has no output logits f32[batch, 1]")?;
        return Ok(Form::File { inputs, output: output.name().to_owned(), states: false });
    }
    let hidden = spec.architecture.hidden();
    // States of the tokens are pooled here, as the model's files say; a vector is taken as it is.
    let output = outputs()
        .find(rank(3))
        .or_else(|| outputs().filter(rank(2)).find(|output| output.name().contains("embedding")))
        .ok_or_else(|| {
            let names: Vec<_> = outputs().map(|output| format!("{} {}", output.name(), output.dtype())).collect();
            format!(
                "it has the outputs {names:?}; last_hidden_state f32[batch, seq, hidden] or sentence_embedding \
                 f32[batch, hidden] is needed"
            )
        })?;
    let width = match output.dtype() {
        ValueType::Tensor { shape, .. } => shape.last().copied().filter(|&width| width > 0),
        _ => None,
    };
    if let (Some(width), Some(hidden)) = (width, hidden)
        && usize::try_from(width) != Ok(hidden)
    {
        return Err(format!("its output '{}' is {width} wide, and config.json says {hidden}", output.name()));
    }
    Ok(Form::File { inputs, output: output.name().to_owned(), states: rank(3)(&output) })
}

/// Type and rank of a tensor.
fn tensor(outlet: &Outlet) -> Option<(TensorElementType, usize)> {
    match outlet.dtype() {
        ValueType::Tensor { ty, shape, .. } => Some((*ty, shape.len())),
        _ => None,
    }
}
