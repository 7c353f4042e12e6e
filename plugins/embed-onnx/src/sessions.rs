//! The sessions of an embedder: how they are made, where their nodes run, and one run.
use crate::{
    batch::{Batch, Inputs, tokens},
    classifier::{Classifier, logistic},
    error,
    graph::{INPUT_IDS, LENGTHS, POOLED, POOLING, TOKEN_TYPES},
    pool::Usage,
    runtime::Runtime,
    source::{Feed, Source},
};
use magray_model::{ModelFolder, Packed, Weights, normalize};
use magray_plugin_api::{Error, ErrorCode, Result};
use ort::{
    AsPointer,
    ep::{ArenaExtendStrategy, CUDA},
    memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType},
    session::{
        NoSelectedOutputs, RunOptions, Session, SessionInputValue,
        builder::{GraphOptimizationLevel, SessionBuilder},
    },
    value::{PrimitiveTensorElementType, Shape, Tensor},
};
use std::{
    collections::BTreeMap,
    ffi::{CStr, c_char},
    fmt::Debug,
    ptr,
    sync::{Arc, Condvar, Mutex, PoisonError},
};

const CUDA_PROVIDER: &str = "CUDAExecutionProvider";

/// How a session is fed.
#[derive(Debug)]
pub(crate) enum Form {
    /// As `graph` says, with token types or without; the classifier is that of a model which judges pairs.
    Network { types: bool, classifier: Option<Classifier> },
    /// An ONNX file: its inputs, whether each takes i64 or i32, and the output that is read, which
    /// holds the states of all tokens, one vector a text, or the logit of a pair.
    File { inputs: Vec<(String, Feed, bool)>, output: String, states: bool },
}

/// Where sessions run.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    Cpu,
    Cuda { device: u32, mem_limit: u64, pinned: bool },
}

/// Sessions of one model, of which each runs one batch at a time.
#[derive(Debug)]
pub(crate) struct Sessions {
    streams: Vec<Mutex<Stream>>,
    /// Numbers of those that nothing runs on.
    free: Mutex<Vec<usize>>,
    returned: Condvar,
    form: Form,
    /// Nodes of the graph by the execution provider that they were placed on.
    pub(crate) placement: BTreeMap<String, usize>,
}

/// A session with its allocators.
#[derive(Debug)]
struct Stream {
    session: Session,
    /// Of what runs.
    memory: Option<Allocator>,
    /// Of inputs, where they are copied to a device.
    pinned: Option<Allocator>,
    /// What the session reads; after it, since fields are dropped in their order.
    _weights: Option<Arc<Weights>>,
}

impl Sessions {
    /// Makes `count` sessions that share `threads` threads.
    ///
    /// # Errors
    /// As [`Source::session`]; `UNAVAILABLE` where the nodes were not placed on the device.
    pub(crate) fn new(
        runtime: &Runtime,
        source: &Source,
        folder: &ModelFolder,
        target: &Target,
        count: usize,
        threads: usize,
    ) -> Result<Self> {
        let mut streams = Vec::with_capacity(count);
        let mut form = Form::Network { types: false, classifier: None };
        for _ in 0..count {
            let options = options(runtime, target, (threads / count).max(1))
                .map_err(|error| error::of_runtime("refuses the settings of a session", &error))?;
            // SAFETY: the stream keeps the weights, and drops the session first.
            let (session, its_form) = unsafe { source.session(folder, options)? };
            form = its_form;
            streams.push(Stream::new(session, source.weights(), target));
        }
        let placement = match streams.first() {
            Some(stream) => placement(&stream.session)
                .map_err(|error| error::of_runtime("does not say where the network runs", &error))?,
            None => BTreeMap::new(),
        };
        let free = Mutex::new((0..count).collect());
        let streams = streams.into_iter().map(Mutex::new).collect();
        let sessions = Self { streams, free, returned: Condvar::new(), form, placement };
        if matches!(target, Target::Cuda { .. }) && sessions.provider() != CUDA_PROVIDER {
            let message = format!("ONNX Runtime placed the network elsewhere: {:?}", sessions.placement);
            return Err(Error::new(ErrorCode::UNAVAILABLE, message));
        }
        Ok(sessions)
    }

    /// The execution provider that most nodes run on.
    pub(crate) fn provider(&self) -> &str {
        self.placement.iter().max_by_key(|(_, nodes)| **nodes).map_or("", |(provider, _)| provider)
    }

    /// Runs a batch, once a session is free. Gives the unit vectors, `[texts, dim]`, or the scores of the pairs,
    /// `[texts]`, and the state of the session's allocator. `firsts` are the tokens of type 0 of each text of the
    /// call; without it all are.
    ///
    /// # Errors
    /// `OUT_OF_MEMORY` where a smaller batch may succeed, and what ONNX Runtime says.
    pub(crate) fn run(
        &self,
        folder: &ModelFolder,
        batch: &Batch,
        packed: &Packed,
        firsts: Option<&[usize]>,
        options: &RunOptions<NoSelectedOutputs>,
    ) -> Result<(Vec<f32>, Usage)> {
        let inputs = Inputs::new(batch, packed, firsts, folder.spec.pooling);
        let taken = self.take();
        let mut stream = self.streams[taken.at].lock().unwrap_or_else(PoisonError::into_inner);
        let vectors = stream.run(&self.form, folder, batch, packed, &inputs, options)?;
        Ok((vectors, stream.usage()))
    }

    fn take(&self) -> Taken<'_> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match free.pop() {
                Some(at) => return Taken { sessions: self, at },
                None => free = self.returned.wait(free).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

/// A session that is in use until this is dropped, also by a panic.
struct Taken<'a> {
    sessions: &'a Sessions,
    at: usize,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.sessions.free.lock().unwrap_or_else(PoisonError::into_inner).push(self.at);
        self.sessions.returned.notify_one();
    }
}

fn options(runtime: &Runtime, target: &Target, threads: usize) -> ort::Result<SessionBuilder> {
    let mut options = Session::builder(&runtime.environment)?
        .with_optimization_level(GraphOptimizationLevel::All)?
        .with_intra_threads(threads)?
        // Threads that wait do not burn a core, and shapes differ from run to run.
        .with_intra_op_spinning(false)?
        .with_memory_pattern(false)?
        .with_config_entry("session.record_ep_graph_assignment_info", "1")?;
    if let Target::Cuda { device, mem_limit, .. } = target {
        let mut cuda = CUDA::default().with_device_id(i32::try_from(*device).unwrap_or(i32::MAX));
        if *mem_limit > 0 {
            cuda = cuda
                .with_memory_limit(usize::try_from(*mem_limit).unwrap_or(usize::MAX))
                .with_arena_extend_strategy(ArenaExtendStrategy::SameAsRequested);
        }
        options = options.with_execution_providers([cuda.build().error_on_failure()])?;
    }
    Ok(options)
}

/// Counts the nodes of a session by the provider that they were placed on.
fn placement(session: &Session) -> ort::Result<BTreeMap<String, usize>> {
    let api = ort::api();
    let mut placement = BTreeMap::new();
    let (mut parts, mut count) = (ptr::null(), 0);
    // SAFETY: the session lives; the array belongs to it and is only read here. Every pointer that is
    // passed is to a local, or is one that ONNX Runtime gave.
    unsafe {
        let status = (api.Session_GetEpGraphAssignmentInfo)(session.ptr(), &raw mut parts, &raw mut count);
        ort::Error::result_from_status(status)?;
        for part in 0..count {
            let part = *parts.add(part);
            let (mut name, mut nodes, mut node_count) = (ptr::null::<c_char>(), ptr::null(), 0);
            ort::Error::result_from_status((api.EpAssignedSubgraph_GetEpName)(part, &raw mut name))?;
            let status = (api.EpAssignedSubgraph_GetNodes)(part, &raw mut nodes, &raw mut node_count);
            ort::Error::result_from_status(status)?;
            let name = CStr::from_ptr(name).to_string_lossy().into_owned();
            *placement.entry(name).or_insert(0) += node_count;
        }
    }
    Ok(placement)
}

impl Stream {
    fn new(session: Session, weights: Option<Arc<Weights>>, target: &Target) -> Self {
        let (device, id) = match target {
            Target::Cpu => (AllocationDevice::CPU, 0),
            Target::Cuda { device, .. } => {
                (AllocationDevice::CUDA, i32::try_from(*device).unwrap_or(i32::MAX))
            }
        };
        let allocator = |device, id, memory| {
            let info = MemoryInfo::new(device, id, AllocatorType::Device, memory)?;
            Allocator::new(&session, info)
        };
        // Without the first there are no figures, without the second copies are slower.
        let memory = allocator(device, id, MemoryType::Default).ok();
        let pinned = match target {
            Target::Cuda { pinned: true, .. } => {
                allocator(AllocationDevice::CUDA_PINNED, id, MemoryType::CPUOutput)
                    .inspect_err(|error| tracing::warn!("there is no pinned memory: {error}"))
                    .ok()
            }
            _ => None,
        };
        Self { session, memory, pinned, _weights: weights }
    }

    /// State of the allocator of what runs; zero where it does not say.
    fn usage(&self) -> Usage {
        let Some(allocator) = &self.memory else { return Usage::default() };
        let api = ort::api();
        let mut pairs = ptr::null_mut();
        let mut usage = Usage::default();
        // SAFETY: the allocator lives. ONNX Runtime gives a list that is ours to release, and strings
        // that live as long as it.
        unsafe {
            if ort::Error::result_from_status((api.AllocatorGetStats)(allocator.ptr(), &raw mut pairs))
                .is_err()
                || pairs.is_null()
            {
                return usage;
            }
            let number = |name: &CStr| {
                let value = (api.GetKeyValue)(pairs, name.as_ptr());
                if value.is_null() { None } else { CStr::from_ptr(value).to_str().ok()?.parse().ok() }
            };
            usage.reserved = number(c"TotalAllocated").unwrap_or(0);
            usage.in_use = number(c"InUse").unwrap_or(0);
            usage.peak = number(c"MaxInUse").unwrap_or(0);
            (api.ReleaseKeyValuePairs)(pairs);
        }
        usage
    }

    /// An input, in pinned memory where there is some.
    fn tensor<T>(&self, shape: Vec<usize>, data: Vec<T>) -> ort::Result<SessionInputValue<'static>>
    where
        T: PrimitiveTensorElementType + Debug + Copy + 'static,
    {
        Ok(match &self.pinned {
            None => Tensor::from_array((shape, data))?.into(),
            Some(allocator) => {
                let mut tensor = Tensor::<T>::new(allocator, Shape::from(shape))?;
                tensor.try_extract_tensor_mut::<T>()?.1.copy_from_slice(&data);
                tensor.into()
            }
        })
    }

    /// The session's inputs by name.
    fn feed(
        &self,
        form: &Form,
        batch: &Batch,
        inputs: &Inputs,
    ) -> ort::Result<Vec<(String, SessionInputValue<'static>)>> {
        let (texts, width) = (batch.texts.len(), batch.width);
        let wanted = match form {
            Form::File { inputs, .. } => inputs,
            Form::Network { types, .. } => {
                let mut fed = vec![
                    (INPUT_IDS.to_owned(), self.tensor(vec![texts, width], inputs.ids.clone())?),
                    (LENGTHS.to_owned(), self.tensor(vec![texts], inputs.lengths.clone())?),
                    (POOLING.to_owned(), self.tensor(vec![texts, 1, width], inputs.pooling.clone())?),
                ];
                if *types {
                    fed.push((
                        TOKEN_TYPES.to_owned(),
                        self.tensor(vec![texts, width], inputs.types.clone())?,
                    ));
                }
                return Ok(fed);
            }
        };
        let each = |value: &dyn Fn(usize, usize) -> i32| -> Vec<i32> {
            (0..texts * width).map(|at| value(at / width, at % width)).collect()
        };
        wanted
            .iter()
            .map(|(name, feed, wide)| {
                let data = match feed {
                    Feed::Ids => inputs.ids.clone(),
                    Feed::Mask => each(&|text, at| i32::from((at as i32) < inputs.lengths[text])),
                    Feed::TokenTypes => inputs.types.clone(),
                    Feed::Positions => each(&|_, at| at as i32),
                };
                let shape = vec![texts, width];
                let tensor = if *wide {
                    self.tensor(shape, data.into_iter().map(i64::from).collect())?
                } else {
                    self.tensor(shape, data)?
                };
                Ok((name.clone(), tensor))
            })
            .collect()
    }

    fn run(
        &mut self,
        form: &Form,
        folder: &ModelFolder,
        batch: &Batch,
        packed: &Packed,
        inputs: &Inputs,
        options: &RunOptions<NoSelectedOutputs>,
    ) -> Result<Vec<f32>> {
        let failed = |error: &ort::Error| error::of_runtime("failed", error);
        let values = self.feed(form, batch, inputs).map_err(|error| failed(&error))?;
        let outputs = self.session.run_with_options(values, options).map_err(|error| failed(&error))?;
        let (name, states) = match form {
            Form::Network { .. } => (POOLED, false),
            Form::File { output, states, .. } => (output.as_str(), *states),
        };
        let output = outputs
            .get(name)
            .ok_or_else(|| Error::new(ErrorCode::INTERNAL, format!("ONNX Runtime gave no '{name}'")))?;
        let (shape, data) = output.try_extract_tensor::<f32>().map_err(|error| failed(&error))?;
        let texts = batch.texts.len();
        let rows = if states { texts * batch.width } else { texts };
        // Of a pair an ONNX file gives the logit itself.
        let judged = folder.spec.judges_pairs;
        let classifier = match form {
            Form::Network { classifier, .. } => classifier.as_ref(),
            Form::File { .. } => None,
        };
        let dim = if judged && classifier.is_none() { 1 } else { folder.spec.dim };
        let hidden = data.len() / rows;
        if data.len() != rows * hidden || hidden < dim || shape.first() != Some(&(texts as i64)) {
            let message = format!("the network gave {shape:?} for {texts} texts of {} tokens", batch.width);
            return Err(Error::new(ErrorCode::CORRUPT_DATA, message));
        }
        if judged {
            let logit = |data: &[f32]| classifier.map_or(data[0], |classifier| classifier.logit(data));
            return Ok(data.chunks_exact(hidden).map(|data| logistic(logit(data))).collect());
        }
        let mut vectors = vec![0.0; texts * dim];
        let of_texts = data.chunks_exact(data.len() / texts).zip(&batch.texts);
        for (vector, (data, &text)) in vectors.chunks_exact_mut(dim).zip(of_texts) {
            if states {
                let data = &data[..tokens(packed, text).len() * hidden];
                folder.spec.pooling.pool(data, hidden, vector);
            } else {
                vector.copy_from_slice(&data[..dim]);
                normalize(vector);
            }
        }
        Ok(vectors)
    }
}
