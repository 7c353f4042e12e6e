use super::{INPUT_IDS, LENGTHS, POOLED, POOLING, TOKEN_TYPES};
use crate::error;
use magray_model::Weights;
use magray_plugin_api::{Error, ErrorCode, Result};
use ort::{
    AsPointer,
    editor::{Graph, Model, Node, ONNX_DOMAIN, Opset},
    memory::{Allocator, MemoryInfo},
    operator::Attribute,
    value::{
        Outlet, PrimitiveTensorElementType, Shape, SymbolicDimensions, Tensor, TensorElementType, ValueType,
    },
};
use std::{borrow::Cow, ffi::CString, fmt::Debug, ptr};

/// The domain of the fused operators.
pub(super) const CONTRIB: &str = "com.microsoft";
pub(super) const ONNX: &str = ONNX_DOMAIN;
/// The standard operators as ONNX Runtime 1.24 and all later ones have them.
const OPSET: u32 = 18;

/// A graph that grows node by node. Every value is known by its name.
pub(super) struct Builder<'w> {
    graph: Graph,
    pub(super) weights: &'w Weights,
}

/// Bytes from which on a constant may stay where it is.
const IN_PLACE: usize = 128;

fn failed<R>(error: ort::Error<R>) -> Error {
    error::of_runtime("cannot build the network", &error)
}

impl<'w> Builder<'w> {
    pub(super) fn new(weights: &'w Weights) -> Result<Self> {
        Ok(Self { graph: Graph::new().map_err(failed)?, weights })
    }

    /// Adds a constant, `shape` row-major.
    pub(super) fn constant<T>(&mut self, name: &str, shape: &[usize], data: &[T]) -> Result<String>
    where
        T: PrimitiveTensorElementType + Debug + Copy,
    {
        self.filled(name, shape, |out| out.copy_from_slice(data))
    }

    /// Adds a constant, `shape` row-major, which `fill` writes.
    pub(super) fn filled<T>(
        &mut self,
        name: &str,
        shape: &[usize],
        fill: impl FnOnce(&mut [T]),
    ) -> Result<String>
    where
        T: PrimitiveTensorElementType + Debug + Copy,
    {
        // Memory of ONNX Runtime, so that it takes the tensor over without another copy.
        let mut tensor =
            Tensor::<T>::new(&Allocator::default(), Shape::from(shape.to_vec())).map_err(failed)?;
        let data = tensor.extract_tensor_mut().1;
        fill(data);
        let in_place = size_of_val(data) >= IN_PLACE;
        self.graph.add_initializer(name, tensor, in_place).map_err(failed)?;
        Ok(name.to_owned())
    }

    /// Adds a tensor of the model under its own name. Where the file holds f32 it stays there.
    pub(super) fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<String> {
        match self.weights.view(name, shape)? {
            Cow::Borrowed(data) => self.borrowed(name, shape, data),
            Cow::Owned(data) => self.constant(name, shape, &data),
        }
    }

    /// As [`Self::tensor`], for tables of which few rows are read: their numbers are not checked.
    pub(super) fn table(&mut self, name: &str, [rows, width]: [usize; 2]) -> Result<String> {
        let table = self.weights.table(name, [rows, width])?;
        if let Some(data) = table.as_f32() {
            return self.borrowed(name, &[rows, width], data);
        }
        self.filled(name, &[rows, width], |out| {
            out.chunks_exact_mut(width).enumerate().for_each(|(row, out)| table.read(row, out));
        })
    }

    /// Adds a constant that stays where it is in the weights, which outlive all sessions by the contract of
    /// [`super::build`].
    fn borrowed(&mut self, name: &str, shape: &[usize], data: &[f32]) -> Result<String> {
        if size_of_val(data) < IN_PLACE {
            return self.constant(name, shape, data);
        }
        let dimensions = Shape::from(shape.to_vec());
        let c_name = CString::new(name)
            .map_err(|_| Error::new(ErrorCode::CORRUPT_DATA, format!("a tensor is called {name:?}")))?;
        let (api, memory) = (ort::api(), MemoryInfo::default());
        let mut value = ptr::null_mut();
        // SAFETY: the data is as long as is said, is only read, and outlives the graph as above. The graph takes
        // the value over where it says that it did, and else it is ours to release.
        unsafe {
            let status = (api.CreateTensorWithDataAsOrtValue)(
                memory.ptr(),
                data.as_ptr().cast_mut().cast(),
                size_of_val(data),
                dimensions.as_ptr(),
                dimensions.len(),
                TensorElementType::Float32.into(),
                &raw mut value,
            );
            ort::Error::result_from_status(status).map_err(failed)?;
            let editor = &*(api.GetModelEditorApi)();
            let status = (editor.AddInitializerToGraph)(self.graph.ptr_mut(), c_name.as_ptr(), value, true);
            ort::Error::result_from_status(status).map_err(|error| {
                (api.ReleaseValue)(value);
                failed(error)
            })?;
        }
        Ok(name.to_owned())
    }

    /// The product of `x` and a linear layer's weights as the model has them, `[n, k]`.
    pub(super) fn product(
        &mut self,
        x: &str,
        weight: &str,
        shape: [usize; 2],
        output: &str,
    ) -> Result<String> {
        let weight = self.tensor(weight, &shape)?;
        self.node(CONTRIB, "FusedMatMul", &[x, &weight], output, [attribute("transB", 1i64)?])
    }

    /// Adds a node of one output, which gets the name of the node. An input without a name is one that
    /// is left out.
    pub(super) fn node(
        &mut self,
        domain: &str,
        operator: &str,
        inputs: &[&str],
        output: &str,
        attributes: impl IntoIterator<Item = Attribute>,
    ) -> Result<String> {
        self.node_of(domain, operator, inputs, &[output], attributes)?;
        Ok(output.to_owned())
    }

    /// Adds a node of several outputs, of which the first gives it its name.
    pub(super) fn node_of(
        &mut self,
        domain: &str,
        operator: &str,
        inputs: &[&str],
        outputs: &[&str],
        attributes: impl IntoIterator<Item = Attribute>,
    ) -> Result<()> {
        let node = Node::new(operator, domain, outputs[0], inputs, outputs, attributes).map_err(failed)?;
        self.graph.add_node(node).map_err(failed)
    }

    /// Sums the states, `[batch, seq, hidden]`, into the output; `types` says whether the network takes types.
    pub(super) fn finish(mut self, states: &str, hidden: usize, types: bool) -> Result<Model> {
        self.node(ONNX, "MatMul", &[POOLING, states], POOLED, [])?;
        let number = |size: usize| i64::try_from(size).unwrap_or(i64::MAX);
        let value = |name: &str, ty, dimensions: &[(i64, &str)]| {
            let shape = Shape::new(dimensions.iter().map(|&(size, _)| size));
            let symbols = dimensions.iter().map(|&(_, symbol)| symbol.to_owned());
            let dimension_symbols = SymbolicDimensions::new(symbols);
            Outlet::new(name, ValueType::Tensor { ty, shape, dimension_symbols })
        };
        let (batch, seq, one) = ((-1, "batch"), (-1, "seq"), (1, ""));
        let int = TensorElementType::Int32;
        let float = TensorElementType::Float32;
        let mut inputs = vec![
            value(INPUT_IDS, int, &[batch, seq]),
            value(LENGTHS, int, &[batch]),
            value(POOLING, float, &[batch, one, seq]),
        ];
        if types {
            inputs.push(value(TOKEN_TYPES, int, &[batch, seq]));
        }
        self.graph.set_inputs(inputs).map_err(failed)?;
        self.graph
            .set_outputs([value(POOLED, float, &[batch, one, (number(hidden), "")])])
            .map_err(failed)?;
        let opsets = [Opset::new(ONNX, OPSET).map_err(failed)?, Opset::new(CONTRIB, 1).map_err(failed)?];
        let mut model = Model::new(opsets).map_err(failed)?;
        model.set_graph(self.graph).map_err(failed)?;
        Ok(model)
    }
}

/// An attribute of a node.
pub(super) fn attribute(name: &str, value: impl ort::operator::ToAttribute) -> Result<Attribute> {
    Attribute::new(name, value).map_err(failed)
}
