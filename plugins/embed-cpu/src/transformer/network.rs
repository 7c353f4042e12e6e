//! What the networks share: their engine, and the memory that a forward pass works in.
use super::{
    attention::{RelativeBias, Scratch, Shape, attention},
    bert::BertNetwork,
    buffer::{Buffer, Encoded},
    cpu::Isa,
    gemm::{COLUMNS, Kernel, Precision, ROWS},
    linear::{Linear, Out, encode, linear},
    packed::{Packed, Plan},
    qwen3::Qwen3Network,
};
use magray_model::{Activation, Architecture, Pooling, Spec, Table, Weights};
use magray_plugin_api::{CallContext, Error, ErrorCode, Result};

/// A network with its kernels.
#[derive(Debug)]
pub(crate) enum Network {
    Bert(BertNetwork),
    Qwen3(Qwen3Network),
}

/// Instructions and precision of the products.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Engine {
    pub(crate) isa: Isa,
    /// Of the linear layers.
    kernel: Kernel,
    /// Of attention, which knows no int8.
    attention: Kernel,
}

impl Engine {
    /// The engine of `precision` on `isa`, for heads of `dim` numbers; none where the CPU lacks it.
    pub(crate) fn new(isa: Isa, precision: Precision, dim: usize) -> Option<Self> {
        let kernel = Kernel::new(precision, isa)?;
        let f32 = Kernel::new(Precision::F32, isa)?;
        // Two numbers of a head are one unit.
        let bf16 = || Kernel::new(Precision::Bf16, isa).filter(|_| dim.is_multiple_of(2));
        let attention = if precision == Precision::F32 { f32 } else { bf16().unwrap_or(f32) };
        Some(Self { isa, kernel, attention })
    }

    pub(crate) fn precision(&self) -> Precision {
        self.kernel.precision()
    }

    /// The name for reports.
    pub(crate) fn name(&self) -> &'static str {
        match (self.isa.name(), self.precision()) {
            ("avx512", Precision::Bf16) => "avx512-bf16",
            ("avx512", Precision::Int8) => "avx512-vnni",
            ("avx2", Precision::Int8) => "avx2-vnni",
            (name, _) => name,
        }
    }

    /// Rows that go through the feed-forward network together: `(first, rows)`.
    pub(crate) fn chunks(&self, rows: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        const CHUNK: usize = 16 * ROWS;
        (0..rows).step_by(CHUNK).map(move |first| (first, (rows - first).min(CHUNK)))
    }

    /// Multiplies rows of `left` from `first` on by a layer.
    #[expect(clippy::too_many_arguments, reason = "as `linear`")]
    pub(crate) fn linear(
        &self,
        left: &Encoded,
        first: usize,
        rows: usize,
        layer: Linear<'_>,
        activation: Option<Activation>,
        out: Out<'_>,
        stride: usize,
    ) {
        let ranges = left.ranges.get(first * left.groups()..).unwrap_or_default();
        linear(self.isa, self.kernel, left.left(first), ranges, rows, layer, activation, out, stride);
    }

    /// Attention of each text: from `work.encoded` by way of `layer` into `work.context`.
    pub(crate) fn attention(
        &self,
        shape: &Shape,
        bias: Option<RelativeBias<'_>>,
        layer: Linear<'_>,
        texts: &[&[u32]],
        work: &mut Workspace,
    ) {
        let rows = texts.iter().map(|ids| ids.len()).sum();
        let out = self.qkv(&mut work.qkv);
        self.linear(&work.encoded, 0, rows, layer, None, out, work.qkv_stride);
        self.attend(shape, bias, texts, work);
    }

    /// Queries, keys and values as attention reads them.
    pub(crate) fn qkv<'a>(&self, buffer: &'a mut Buffer) -> Out<'a> {
        match self.attention.precision() {
            Precision::Bf16 => Out::Bf16(buffer.halves_mut()),
            _ => Out::F32(buffer.floats_mut()),
        }
    }

    /// Attention of each text: from `work.qkv` into `work.context`.
    pub(crate) fn attend(
        &self,
        shape: &Shape,
        bias: Option<RelativeBias<'_>>,
        texts: &[&[u32]],
        work: &mut Workspace,
    ) {
        let qkv_stride = work.qkv_stride / self.attention.precision().per_unit();
        let mut first = 0;
        for ids in texts {
            let len = ids.len();
            let stride = work.context.stride;
            attention(
                self.isa,
                self.attention,
                shape,
                bias,
                &work.qkv.units()[first * qkv_stride..],
                qkv_stride,
                len,
                work.attended.floats_mut(),
                stride,
                &mut work.scratch,
            );
            encode(self.isa, work.attended.floats(), first, len, &mut work.context);
            first += len;
        }
    }

    /// The first half of a feed-forward network: rows of `work.encoded` from `first` on, by way of
    /// `layer` and `activation` into `work.inner` from its start.
    pub(crate) fn up(
        &self,
        first: usize,
        rows: usize,
        layer: Linear<'_>,
        activation: Activation,
        work: &mut Workspace,
    ) {
        let stride = work.inner.stride;
        work.inner.reserve(rows);
        let left = &work.encoded;
        let activation = Some(activation);
        match self.precision() {
            Precision::F32 => {
                let out = Out::F32(work.inner.buffer.floats_mut());
                self.linear(left, first, rows, layer, activation, out, stride);
            }
            Precision::Bf16 => {
                let out = Out::Bf16(work.inner.buffer.halves_mut());
                self.linear(left, first, rows, layer, activation, out, stride);
            }
            Precision::Int8 => {
                work.wide.reserve(rows * stride);
                let out = Out::F32(work.wide.floats_mut());
                self.linear(left, first, rows, layer, activation, out, stride);
                encode(self.isa, work.wide.floats(), 0, rows, &mut work.inner);
            }
        }
    }
}

/// Memory for one forward pass after the other.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// The states, `[rows, hidden]`.
    pub(crate) x: Buffer,
    /// The states as a product reads them, normalised.
    pub(crate) encoded: Encoded,
    /// Queries, keys and values of each token, in the precision of attention.
    pub(crate) qkv: Buffer,
    /// Numbers from a token to the next in `qkv`.
    pub(crate) qkv_stride: usize,
    /// What attention gives for one text.
    attended: Buffer,
    /// What attention gives for all texts, as a product reads it.
    pub(crate) context: Encoded,
    /// The wide rows of the feed-forward network, as a product reads them.
    pub(crate) inner: Encoded,
    /// The same before they are encoded.
    pub(crate) wide: Buffer,
    scratch: Scratch,
}

impl Workspace {
    fn new(precision: Precision, hidden: usize, intermediate: usize, shape: &Shape) -> Self {
        Self {
            x: Buffer::default(),
            encoded: Encoded::new(precision, hidden),
            qkv: Buffer::default(),
            qkv_stride: shape.qkv().next_multiple_of(COLUMNS),
            attended: Buffer::default(),
            context: Encoded::new(precision, shape.out()),
            inner: Encoded::new(precision, intermediate),
            wide: Buffer::default(),
            scratch: Scratch::default(),
        }
    }

    /// Makes room for `rows` tokens, the longest text of which has `longest`.
    fn reserve(&mut self, rows: usize, longest: usize) {
        self.x.reserve(rows * self.encoded.stride);
        self.encoded.reserve(rows);
        self.qkv.reserve(rows * self.qkv_stride);
        self.attended.reserve(longest * self.context.stride);
        self.context.reserve(rows);
    }

    /// Bytes that it holds.
    pub(crate) fn bytes(&self) -> usize {
        let buffers = [&self.x, &self.qkv, &self.attended, &self.wide].map(Buffer::bytes);
        let encoded = [&self.encoded, &self.context, &self.inner].map(Encoded::bytes);
        buffers.iter().chain(&encoded).sum::<usize>() + self.scratch.bytes()
    }
}

impl Network {
    /// Says in `plan` what of `weights` is packed.
    ///
    /// # Errors
    /// `CORRUPT_DATA` where the word embeddings are missing, `UNSUPPORTED` for a static model.
    pub(crate) fn new(spec: &Spec, weights: &Weights, plan: &mut Plan) -> Result<Self> {
        match &spec.architecture {
            Architecture::Bert(bert) => {
                Ok(Self::Bert(BertNetwork::new(bert, spec.max_tokens, weights, plan)?))
            }
            Architecture::Qwen3(qwen) => {
                Ok(Self::Qwen3(Qwen3Network::new(qwen, spec.max_tokens, weights, plan)?))
            }
            Architecture::Static => {
                Err(Error::new(ErrorCode::UNSUPPORTED, "a static model has no layers to run"))
            }
        }
    }

    /// The table of word embeddings, which stays in the model's file.
    pub(crate) fn words(&self) -> &Table {
        match self {
            Self::Bert(bert) => bert.words(),
            Self::Qwen3(qwen) => qwen.words(),
        }
    }

    pub(crate) fn workspace(&self, engine: &Engine, architecture: &Architecture) -> Workspace {
        let (hidden, intermediate) = match architecture {
            Architecture::Bert(bert) => (bert.hidden, bert.intermediate),
            Architecture::Qwen3(qwen) => (qwen.hidden, qwen.intermediate),
            Architecture::Static => (0, 0),
        };
        let shape = match self {
            Self::Bert(bert) => bert.shape(),
            Self::Qwen3(qwen) => qwen.shape(),
        };
        Workspace::new(engine.precision(), hidden, intermediate, shape)
    }

    /// Writes the unit vectors of `texts`, none of them empty.
    ///
    /// # Errors
    /// `CANCELLED` and `DEADLINE` by `cx`, asked before each layer.
    #[expect(clippy::too_many_arguments, reason = "a forward pass has many sides")]
    pub(crate) fn embed(
        &self,
        engine: &Engine,
        packed: &Packed,
        cx: &dyn CallContext,
        texts: &[&[u32]],
        pooling: Pooling,
        work: &mut Workspace,
        out: &mut [&mut [f32]],
    ) -> Result<()> {
        let rows = texts.iter().map(|ids| ids.len()).sum();
        work.reserve(rows, texts.iter().map(|ids| ids.len()).max().unwrap_or(0));
        match self {
            Self::Bert(bert) => bert.forward(engine, packed, cx, texts, work)?,
            Self::Qwen3(qwen) => qwen.forward(engine, packed, cx, texts, work)?,
        }
        let stride = work.encoded.stride;
        let mut states = work.x.floats();
        for (ids, out) in texts.iter().zip(out) {
            let own;
            (own, states) = states.split_at(ids.len() * stride);
            pooling.pool(own, stride, out);
        }
        Ok(())
    }
}
