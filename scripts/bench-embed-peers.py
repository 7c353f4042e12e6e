#!/usr/bin/env python3
"""Other programs to measure beside magray's backends, in the same run:

    magray bench embed --data DIR --backends cpu --model MODEL \
        --peer "onnxruntime fp32=python3 scripts/bench-embed-peers.py onnx-fp32 MODEL_DIR" \
        --peer "onnxruntime int8=python3 scripts/bench-embed-peers.py onnx-int8 MODEL_DIR" \
        --peer "sentence-transformers=python3 scripts/bench-embed-peers.py sentence-transformers MODEL_DIR"

MODEL_DIR is the folder of a BERT-type model with mean pooling (config.json, model.safetensors, tokenizer.json), such
as all-MiniLM-L6-v2. Needs numpy, onnx, onnxruntime, safetensors and tokenizers; sentence-transformers needs itself.

The ONNX graph is built from the weights with onnxruntime's own fused operators, which is the fastest that it has;
int8 is its dynamic quantization, weights by channel. Texts are tokenized as part of what is measured, padded to the
longest of their batch, and cut at 256 tokens. The protocol is that of host/src/bench/worker.rs.
"""
import argparse
import json
import logging
import os
import signal
import sys
import tempfile
import time

MAX_TOKENS = 256
PASSES_S = 0.2  # as in host/src/bench/worker.rs


def build_onnx(folder, path):
    """Writes the encoder with masked mean pooling and normalisation as ONNX, `com.microsoft` operators."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from safetensors.numpy import load_file

    with open(f"{folder}/config.json") as file:
        config = json.load(file)
    weights = load_file(f"{folder}/model.safetensors")
    prefix = "bert." if any(name.startswith("bert.") for name in weights) else ""
    heads, width, eps = config["num_attention_heads"], config["hidden_size"], config["layer_norm_eps"]
    nodes, constants = [], []

    def weight(name):
        return weights[prefix + name].astype(np.float32)

    def constant(name, value):
        constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(operator, inputs, output, fused=False, **attributes):
        outputs = output if isinstance(output, list) else [output]
        domain = {"domain": "com.microsoft"} if fused else {}
        nodes.append(helper.make_node(operator, inputs, outputs, name=f"node_{len(nodes)}", **domain, **attributes))
        return outputs[0]

    def norm(name):
        return [constant(name + part, weight(f"{name}.{part}")) for part in ("weight", "bias")]

    # The type of every token is 0, so its row is added to each position.
    kind = weight("embeddings.token_type_embeddings.weight")[0]
    ids = node("Cast", ["input_ids"], "ids", to=TensorProto.INT32)
    mask = node("Cast", ["attention_mask"], "mask", to=TensorProto.INT32)
    words = constant("words", weight("embeddings.word_embeddings.weight"))
    positions = constant("positions", weight("embeddings.position_embeddings.weight") + kind)
    x = node(
        "EmbedLayerNormalization",
        [ids, "", words, positions, "", *norm("embeddings.LayerNorm"), mask],
        ["x", "mask_index"],
        fused=True,
        epsilon=eps,
    )
    for layer in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{layer}"
        parts = [f"{at}.attention.self.{part}" for part in ("query", "key", "value")]
        qkv = constant(f"{at}.qkv", np.concatenate([weight(f"{part}.weight").T for part in parts], 1))
        bias = constant(f"{at}.qkv_bias", np.concatenate([weight(f"{part}.bias") for part in parts]))
        attention = node("Attention", [x, qkv, bias, "mask_index"], f"{at}.attended", fused=True, num_heads=heads)

        def dense(name, value, after=None):
            product = node("MatMul", [value, constant(f"{name}.w", weight(f"{name}.weight").T)], f"{name}.product")
            bias = constant(f"{name}.b", weight(f"{name}.bias"))
            if after is None:
                return node("BiasGelu", [product, bias], f"{name}.gelu", fused=True)
            residual, normed = after
            inputs = [product, residual, *norm(normed), bias]
            return node("SkipLayerNormalization", inputs, f"{normed}.out", fused=True, epsilon=eps)

        y = dense(f"{at}.attention.output.dense", attention, (x, f"{at}.attention.output.LayerNorm"))
        x = dense(f"{at}.output.dense", dense(f"{at}.intermediate.dense", y), (y, f"{at}.output.LayerNorm"))
    # The mean's divisor cancels in the norm.
    weights_of_mean = node("Cast", ["attention_mask"], "mask_f32", to=TensorProto.FLOAT)
    weights_of_mean = node("Unsqueeze", [weights_of_mean, constant("axis", np.array([1], np.int64))], "mask_row")
    total = node("MatMul", [weights_of_mean, x], "sum_row")
    total = node("Squeeze", [total, "axis"], "sum")
    node("LpNormalization", [total], "embedding", axis=-1, p=2)

    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
        for name in ("input_ids", "attention_mask")
    ]
    outputs = [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", width])]
    graph = helper.make_graph(nodes, "bert", inputs, outputs, constants)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)


class Onnx:
    def __init__(self, folder, threads, quantized):
        import onnxruntime
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(MAX_TOKENS)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        with tempfile.TemporaryDirectory() as scratch:
            path = f"{scratch}/model.onnx"
            build_onnx(folder, path)
            if quantized:
                from onnxruntime.quantization import QuantType, quantize_dynamic

                logging.disable(logging.WARNING)  # it advises on shapes that it does not need
                quantize_dynamic(
                    path,
                    f"{scratch}/int8.onnx",
                    op_types_to_quantize=["MatMul", "Attention"],
                    per_channel=True,
                    weight_type=QuantType.QInt8,
                    extra_options={"MatMulConstBOnly": True, "DefaultTensorType": 1},
                )
                path = f"{scratch}/int8.onnx"
            self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.engine = f"onnxruntime {onnxruntime.__version__}"
        self.precision = "int8" if quantized else "f32"

    def count_tokens(self, texts):
        return [len(encoding.ids) for encoding in self.tokenizer.encode_batch(texts)]

    def embed(self, texts):
        import numpy as np

        encodings = self.tokenizer.encode_batch(texts)
        ids = np.zeros((len(texts), max(len(encoding.ids) for encoding in encodings)), np.int64)
        mask = np.zeros_like(ids)
        for row, encoding in enumerate(encodings):
            ids[row, : len(encoding.ids)] = encoding.ids
            mask[row, : len(encoding.ids)] = 1
        return self.session.run(None, {"input_ids": ids, "attention_mask": mask})[0]

    def embed_all(self, texts, batch):
        return [row for start in range(0, len(texts), batch) for row in self.embed(texts[start : start + batch])]


class SentenceTransformers:
    precision = "f32"

    def __init__(self, folder, threads):
        import sentence_transformers
        import torch

        torch.set_num_threads(threads)
        self.model = sentence_transformers.SentenceTransformer(folder, device="cpu")
        self.model.max_seq_length = MAX_TOKENS
        self.engine = f"sentence-transformers {sentence_transformers.__version__}, torch {torch.__version__}"

    def count_tokens(self, texts):
        return [len(ids) for ids in self.model.tokenizer(texts, truncation=True, max_length=MAX_TOKENS)["input_ids"]]

    def embed_all(self, texts, batch):
        # It sorts by length itself.
        return self.model.encode(texts, batch_size=batch, normalize_embeddings=True, show_progress_bar=False)


def load(kind, folder, threads):
    if kind == "sentence-transformers":
        return SentenceTransformers(folder, threads)
    return Onnx(folder, threads, quantized=kind == "onnx-int8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["onnx-fp32", "onnx-int8", "sentence-transformers"])
    parser.add_argument("model_dir")
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Libraries that print must not print into the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value):
        print(json.dumps(value), file=answers, flush=True)

    texts, model = {}, None
    for line in sys.stdin:
        ((request, fields),) = json.loads(line).items()
        try:
            if request == "start":
                # Pools that read their number of threads from here do so when they are loaded.
                for pool in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
                    os.environ[pool] = str(fields["threads"])
                os.environ["TOKENIZERS_PARALLELISM"] = "true" if fields["threads"] > 1 else "false"
                with open(fields["texts"]) as file:
                    for text in map(json.loads, file):
                        texts.setdefault(text["shape"], []).append(text["text"])
                model = load(args.kind, args.model_dir, fields["threads"])
                tokens = {shape: sum(model.count_tokens(of)) for shape, of in texts.items()}
                name = os.path.basename(os.path.normpath(args.model_dir))
                ready = {"model": name, "device": "cpu", "engine": model.engine, "precision": model.precision}
                answer({"ready": {**ready, "max_batch": 1 << 20, "tokens": tokens}})
            elif request == "run":
                run = texts[fields["shape"]]
                if fields["sorted"]:
                    run = sorted(run, key=lambda text: len(text.encode()))
                seconds, start = [], time.perf_counter()
                while not seconds or time.perf_counter() - start < PASSES_S:
                    before = time.perf_counter()
                    model.embed_all(run, fields["batch"])
                    seconds.append(time.perf_counter() - before)
                answer({"seconds": seconds})
            elif request == "latency":
                seconds = []
                for _ in range(fields["times"]):
                    before = time.perf_counter()
                    model.embed_all([fields["text"]], 1)
                    seconds.append(time.perf_counter() - before)
                answer({"seconds": seconds})
            elif request == "vectors":
                vectors = model.embed_all(texts[fields["shape"]][: fields["count"]], fields["count"])
                answer({"vectors": [[float(value) for value in vector] for vector in vectors]})
            else:
                answer({"error": f"unknown request {request}"})
        except Exception as error:  # every fault is the answer to its request
            answer({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
