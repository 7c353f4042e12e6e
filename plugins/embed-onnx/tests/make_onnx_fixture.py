"""Writes data/bert/model.onnx: the tiny model `bert` of the crate magray-model as an ONNX file such as
others publish, of standard operators, with int64 inputs and the states of all tokens as output.

    pip install onnx numpy safetensors && python make_onnx_fixture.py
"""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

HERE = Path(__file__).parent
MODEL = HERE.parents[1] / "model/tests/data/architectures/bert"

config = json.loads((MODEL / "config.json").read_text())
weights = load_file(MODEL / "model.safetensors")
hidden, heads = config["hidden_size"], config["num_attention_heads"]
width, eps = hidden // heads, config["layer_norm_eps"]
nodes, constants = [], []


def constant(value):
    name = f"c{len(constants)}"
    constants.append(numpy_helper.from_array(np.asarray(value), name))
    return name


def tensor(name):
    return constant(weights[name].astype(np.float32))


def node(operator, *inputs, output=None, **attributes):
    output = output or f"v{len(nodes)}"
    nodes.append(helper.make_node(operator, inputs, [output], **attributes))
    return output


def linear(x, name):
    columns = constant(np.ascontiguousarray(weights[name + ".weight"].astype(np.float32).T))
    return node("Add", node("MatMul", x, columns), tensor(name + ".bias"))


def norm(x, name, **output):
    return node(
        "LayerNormalization", x, tensor(name + ".weight"), tensor(name + ".bias"), axis=-1, epsilon=eps, **output
    )


def split(x, order):
    x = node("Reshape", x, constant(np.array([0, 0, heads, width], np.int64)))
    return node("Transpose", x, perm=order)


words = node("Gather", tensor("embeddings.word_embeddings.weight"), "input_ids")
types = node("Gather", tensor("embeddings.token_type_embeddings.weight"), "token_type_ids")
length = node("Gather", node("Shape", "input_ids"), constant(np.int64(1)))
positions = node("Range", constant(np.int64(0)), length, constant(np.int64(1)))
positions = node("Gather", tensor("embeddings.position_embeddings.weight"), positions)
x = norm(node("Add", node("Add", words, types), positions), "embeddings.LayerNorm")
mask = node("Unsqueeze", node("Cast", "attention_mask", to=TensorProto.FLOAT), constant(np.array([1, 2], np.int64)))
mask = node("Mul", node("Sub", constant(np.float32(1)), mask), constant(np.float32(-1e9)))
for layer in range(config["num_hidden_layers"]):
    at = f"encoder.layer.{layer}."
    query = split(linear(x, at + "attention.self.query"), [0, 2, 1, 3])
    key = split(linear(x, at + "attention.self.key"), [0, 2, 3, 1])
    value = split(linear(x, at + "attention.self.value"), [0, 2, 1, 3])
    scores = node("Mul", node("MatMul", query, key), constant(np.float32(width**-0.5)))
    shares = node("Softmax", node("Add", scores, mask), axis=-1)
    mixed = node("Transpose", node("MatMul", shares, value), perm=[0, 2, 1, 3])
    mixed = node("Reshape", mixed, constant(np.array([0, 0, hidden], np.int64)))
    x = norm(node("Add", linear(mixed, at + "attention.output.dense"), x), at + "attention.output.LayerNorm")
    inner = linear(x, at + "intermediate.dense")
    erf = node("Erf", node("Mul", inner, constant(np.float32(0.5**0.5))))
    inner = node("Mul", node("Mul", inner, node("Add", erf, constant(np.float32(1)))), constant(np.float32(0.5)))
    outer = node("Add", linear(inner, at + "output.dense"), x)
    last = layer + 1 == config["num_hidden_layers"]
    x = norm(outer, at + "output.LayerNorm", **({"output": "last_hidden_state"} if last else {}))

names = ["input_ids", "attention_mask", "token_type_ids"]
inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "seq"]) for name in names]
output = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "seq", hidden])
graph = helper.make_graph(nodes, "bert", inputs, [output], constants)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
onnx.checker.check_model(model)
out = HERE / "data/bert"
out.mkdir(parents=True, exist_ok=True)
onnx.save(model, out / "model.onnx")
