#!/usr/bin/env python3
"""Index plugins beside hnswlib, faiss and usearch: one run, one table.

    cargo build --release -p magray-bench-ann
    python3 -m venv peers && peers/bin/pip install numpy hnswlib faiss-cpu usearch
    peers/bin/python scripts/bench-index-peers.py graph       # hnsw beside hnswlib, usearch, faiss HNSW
    peers/bin/python scripts/bench-index-peers.py flat        # flat beside faiss IndexFlatIP and numpy

Vectors are those of minilm-100k-384-cos in $MAGRAY_DATA, else in shared/data beside the repository; --n takes the
first so many, and the truth is computed anew for them. Everything runs on one thread but for our `flat` and `hnsw`,
whose threads are counted together: figures are by seconds of the processor, which other programs on the machine do
not take from. Each figure is the best of --rounds rounds, and engines take turns.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
RECALLS = (0.90, 0.95, 0.98, 0.99, 0.995)
EFS = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
K = 10


def unit(vectors):
    vectors = vectors.astype(np.float32)
    return np.ascontiguousarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def nearest(base, queries, k):
    """The k nearest rows of each query, nearest first."""
    rows = []
    for part in np.array_split(queries, max(1, len(queries) // 100)):
        scores = part @ base.T
        near = np.argpartition(-scores, k, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(scores, near, 1), axis=1, kind="stable")
        rows.append(np.take_along_axis(near, order, 1))
    return np.vstack(rows).astype(np.uint32)


def recall(found, truth):
    return np.mean([len(set(row) & set(near[:K])) / K for row, near in zip(found.tolist(), truth.tolist())])


def best(rounds, call):
    """The result, and the fewest seconds of the processor that it took."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        result = call()
        times.append(time.process_time() - start)
    return result, min(times)


class Run:
    def __init__(self, args, base, queries, truth, folder):
        self.args, self.base, self.queries, self.truth, self.folder = args, base, queries, truth, folder
        self.rows = []

    def add(self, name, build, points):
        """`points`: (recall, queries a second of the processor), by rising breadth."""
        at = []
        for wanted in RECALLS:
            fits = [speed for reached, speed in points if reached >= wanted]
            at.append(f"{max(fits):,.0f}" if fits else "-")
        print(f"| {name} | {build:,.0f} | " + " | ".join(at) + " |", flush=True)
        self.rows.append((name, build, points))

    def ours(self, index, options, *more):
        """Runs an index plugin; returns what it printed."""
        command = [self.args.program, "--index", index, "--options", json.dumps(options), "--set", self.folder]
        command += ["--dim", str(self.base.shape[1]), "--truth", str(self.truth.shape[1])]
        command += ["--rounds", str(self.args.rounds), *more]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        lines = [json.loads(line) for line in out.splitlines()]
        if self.args.verbose:
            print(out, file=sys.stderr)
        return lines

    def ours_graph(self, name, index, options):
        lines = self.ours(index, options, "--ef", ",".join(map(str, EFS)))
        points = [(line["recall"], line["qps_per_cpu_s"]) for line in lines if "recall" in line]
        self.add(name, lines[0]["build_per_cpu_s"], points)

    def peer_graph(self, name, build, search):
        index, seconds = best(1, build)
        points = []
        for ef in EFS:
            found, took = best(self.args.rounds, lambda: search(index, ef))
            points.append((recall(found, self.truth), len(self.queries) / took))
        self.add(name, len(self.base) / seconds, points)


def graph(run):
    m, construction = run.args.m, run.args.ef_construction
    dim, base, queries = run.base.shape[1], run.base, run.queries
    print(f"| {len(base)} x {dim}, M {m}, ef_construction {construction} | build /CPU-s | "
          + " | ".join(f"QPS at {wanted}" for wanted in RECALLS) + " |")
    print("|---" * (2 + len(RECALLS)) + "|")
    options = {"max_connections": m, "ef_construction": construction, "exact_below": 0}
    run.ours_graph("magray hnsw", "hnsw", options)

    import hnswlib

    def build_hnswlib():
        index = hnswlib.Index(space="cosine", dim=dim)
        index.init_index(max_elements=len(base), M=m, ef_construction=construction)
        index.add_items(base, num_threads=1)
        return index

    def search_hnswlib(index, ef):
        index.set_ef(ef)
        return np.vstack([index.knn_query(query, K, num_threads=1)[0] for query in queries])

    run.peer_graph(f"hnswlib {getattr(hnswlib, '__version__', '')}", build_hnswlib, search_hnswlib)

    from usearch import index as usearch

    for dtype in ("f32", "i8"):
        def build_usearch():
            index = usearch.Index(ndim=dim, metric="cos", dtype=dtype, connectivity=m, expansion_add=construction)
            index.add(np.arange(len(base)), base, threads=1)
            return index

        def search_usearch(index, ef):
            index.expansion_search = ef
            return np.vstack([index.search(query, K, threads=1).keys for query in queries])

        run.peer_graph(f"usearch {dtype}", build_usearch, search_usearch)

    import faiss

    faiss.omp_set_num_threads(1)

    def build_faiss():
        index = faiss.IndexHNSWFlat(dim, m, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = construction
        index.add(base)
        return index

    def search_faiss(index, ef):
        index.hnsw.efSearch = ef
        return np.vstack([index.search(query[None], K)[1] for query in queries])

    run.peer_graph(f"faiss {faiss.__version__} HNSW", build_faiss, search_faiss)


def flat(run):
    base, queries = run.base, run.queries
    batches = (1, 4, 16, 64, 256)
    print(f"| {len(base)} x {base.shape[1]}, QPS per CPU-s | " + " | ".join(f"batch {b}" for b in batches) + " |")
    print("|---" * (1 + len(batches)) + "|")

    def row(name, speeds):
        print(f"| {name} | " + " | ".join(f"{speed:,.0f}" for speed in speeds) + " |", flush=True)

    lines = run.ours("flat", {}, "--batch", ",".join(map(str, batches)))
    row("magray flat", [line["qps_per_cpu_s"] for line in lines if "recall" in line])

    import faiss

    faiss.omp_set_num_threads(1)
    index = faiss.IndexFlatIP(base.shape[1])
    index.add(base)

    def parts(batch):
        return [queries[at:at + batch] for at in range(0, len(queries), batch)]

    def numpy_search(part):
        scores = part @ base.T
        near = np.argpartition(-scores, K, axis=1)[:, :K]
        order = np.argsort(-np.take_along_axis(scores, near, 1), axis=1)
        return np.take_along_axis(near, order, 1)

    for name, search in (("faiss IndexFlatIP", lambda part: index.search(part, K)), ("numpy", numpy_search)):
        speeds = []
        for batch in batches:
            _, took = best(run.args.rounds, lambda: [search(part) for part in parts(batch)])
            speeds.append(len(queries) / took)
        row(name, speeds)
    read = base.nbytes
    _, took = best(run.args.rounds, lambda: base.view(np.uint64).sum())
    print(f"\nReading the vectors once, a sum by numpy: {read / took / 1e9:.1f} GB per CPU-s; "
          f"flat, one query at a time: "
          f"{read * [line['qps_per_cpu_s'] for line in lines if line.get('batch') == 1][0] / 1e9:.1f}.")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("graph", "flat"))
    parser.add_argument("--n", type=int, default=100_000, help="vectors")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--m", type=int, default=16, help="links of a vector")
    parser.add_argument("--ef-construction", type=int, default=200)
    parser.add_argument("--program", default=str(ROOT / "target/release/magray-bench-ann"))
    parser.add_argument("--verbose", action="store_true", help="what our program prints, to standard error")
    args = parser.parse_args()
    data = pathlib.Path(os.environ.get("MAGRAY_DATA", ROOT.parent / "shared/data")) / "ann/minilm-100k-384-cos"
    base = unit(np.load(data / "base.f16.npy")[: args.n])
    queries = unit(np.load(data / "query.f16.npy")[: args.queries])
    truth = nearest(base, queries, 100)
    with tempfile.TemporaryDirectory() as folder:
        for name, array in (("base.f32", base), ("query.f32", queries), ("truth.u32", truth)):
            array.tofile(os.path.join(folder, name))
        {"graph": graph, "flat": flat}[args.what](Run(args, base, queries, truth, folder))


if __name__ == "__main__":
    main()
