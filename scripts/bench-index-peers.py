#!/usr/bin/env python3
"""Vector indexes of others as peers of `magray bench index`, by their Python packages:

    magray bench index --data DIR --indexes flat,hnsw \\
        --peer "hnswlib=python3 scripts/bench-index-peers.py hnswlib" \\
        --peer "hnswlib M=32=python3 scripts/bench-index-peers.py hnswlib --set M=32" \\
        --peer "faiss HNSW-SQ8=python3 scripts/bench-index-peers.py faiss-hnsw-sq8"

Needs numpy and, of the kind that is run, hnswlib, usearch, faiss-cpu, scann or turbovec. scripts/bench-index.sh
installs all of them and runs the whole table.

Each kind has options that --set changes; what is swept at search is its breadth, and where it scores candidates again,
how many. Vectors are read, converted to f32 and, for the cosine, normalised before time is taken. Times include the
call through Python, which matters to fast searches of one query a call. The protocol is that of
host/src/bench/index/worker.rs.
"""
import argparse
import itertools
import json
import math
import os
import signal
import sys
import time

PASSES_S = 0.2  # as in host/src/bench/index/worker.rs
BREADTHS = [10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024]


def grid(**knobs):
    """All combinations, the cheapest first, as the settings of the protocol."""
    return [{name: str(value) for name, value in zip(knobs, values)} for values in itertools.product(*knobs.values())]


class Numpy:
    """Exact, by a product of matrices: what there is without an index."""

    options = {}
    filters = False

    def __init__(self, space):
        import numpy as np

        self.engine = f"numpy {np.__version__}"
        self.space, self.numpy = space, np

    def build(self, base, folder):
        self.numpy.save(f"{folder}/base.npy", base)

    def open(self, folder):
        self.base = self.numpy.load(f"{folder}/base.npy")
        self.squares = (self.base**2).sum(1) / 2 if self.space.metric == "l2" else 0

    def settings(self):
        return [{}]

    def search(self, queries, setting, allowed):
        scores = queries @ self.base.T - self.squares
        k = self.space.k
        best = self.numpy.argpartition(scores, -k, axis=1)[:, -k:]
        order = self.numpy.argsort(-self.numpy.take_along_axis(scores, best, 1), axis=1)
        return self.numpy.take_along_axis(best, order, 1)


class Hnswlib:
    options = {"M": 16, "ef_construction": 200}
    # Its filter calls Python for each candidate: that would measure Python.
    filters = False

    def __init__(self, space):
        import hnswlib
        from importlib.metadata import version

        self.engine = f"hnswlib {version('hnswlib')}"
        self.space = space
        self.index = hnswlib.Index("l2" if space.metric == "l2" else "ip", space.dim)

    def build(self, base, folder):
        options = self.options
        self.index.init_index(len(base), M=options["M"], ef_construction=options["ef_construction"])
        self.index.add_items(base, num_threads=self.space.threads)
        self.index.save_index(f"{folder}/index")

    def open(self, folder):
        self.index.load_index(f"{folder}/index")
        self.index.set_num_threads(self.space.threads)

    def settings(self):
        return grid(ef=BREADTHS)

    def search(self, queries, setting, allowed):
        self.index.set_ef(setting["ef"])
        return self.index.knn_query(queries, self.space.k)[0]


class Usearch:
    options = {"connectivity": 16, "expansion_add": 128, "dtype": "f32"}
    filters = False  # not in its Python package

    def __init__(self, space):
        import usearch
        from usearch.index import Index

        self.engine = f"usearch {usearch.__version__}"
        self.space = space
        self.make = Index

    def build(self, base, folder):
        import numpy as np

        metric = "l2sq" if self.space.metric == "l2" else "ip"
        index = self.make(ndim=self.space.dim, metric=metric, **self.options)
        index.add(np.arange(len(base)), base, threads=self.space.threads)
        index.save(f"{folder}/index")

    def open(self, folder):
        self.index = self.make.restore(f"{folder}/index")

    def settings(self):
        return grid(ef=BREADTHS)

    def search(self, queries, setting, allowed):
        self.index.expansion_search = setting["ef"]
        if len(queries) == 1:
            return [self.index.search(queries[0], self.space.k, threads=1).keys]
        return self.index.search(queries, self.space.k, threads=self.space.threads).keys


class Faiss:
    """An index of its factory; what differs between kinds is the description and the parameters of a search."""

    options = {}
    filters = True

    def __init__(self, space):
        import faiss

        self.engine = f"faiss {faiss.__version__}"
        self.space, self.faiss = space, faiss
        faiss.omp_set_num_threads(space.threads)
        self.selectors = {}

    def build(self, base, folder):
        faiss = self.faiss
        metric = faiss.METRIC_L2 if self.space.metric == "l2" else faiss.METRIC_INNER_PRODUCT
        index = faiss.index_factory(self.space.dim, self.describe(len(base)), metric)
        self.prepare(index)
        index.train(base)
        index.add(base)
        faiss.write_index(index, f"{folder}/index")

    def prepare(self, index):
        pass

    def open(self, folder):
        self.index = self.faiss.read_index(f"{folder}/index")

    def selector(self, allowed):
        """One for each filter, made when it is first asked for."""
        if allowed is None:
            return {}
        if id(allowed) not in self.selectors:
            import numpy as np

            bits = np.zeros(self.index.ntotal, bool)
            bits[allowed] = True
            self.selectors[id(allowed)] = self.faiss.IDSelectorBitmap(np.packbits(bits, bitorder="little"))
        return {"sel": self.selectors[id(allowed)]}

    def search(self, queries, setting, allowed):
        return self.index.search(queries, self.space.k, params=self.parameters(setting, self.selector(allowed)))[1]


class FaissFlat(Faiss):
    def describe(self, rows):
        return "Flat"

    def settings(self):
        return [{}]

    def parameters(self, setting, selector):
        return self.faiss.SearchParameters(**selector) if selector else None


class FaissHnswSq8(Faiss):
    options = {"M": 16, "ef_construction": 200, "refine": "none"}

    def describe(self, rows):
        refine = "" if self.options["refine"] == "none" else f",Refine({self.options['refine']})"
        return f"HNSW{self.options['M']}_SQ8{refine}"

    def prepare(self, index):
        index = self.faiss.downcast_index(index)
        graph = index if self.options["refine"] == "none" else self.faiss.downcast_index(index.base_index)
        graph.hnsw.efConstruction = self.options["ef_construction"]

    def settings(self):
        return grid(ef=BREADTHS) if self.options["refine"] == "none" else grid(ef=BREADTHS, k_factor=[1, 2, 4])

    def parameters(self, setting, selector):
        graph = self.faiss.SearchParametersHNSW(efSearch=setting["ef"], **selector)
        if "k_factor" not in setting:
            return graph
        return self.faiss.IndexRefineSearchParameters(k_factor=setting["k_factor"], base_index_params=graph)


class FaissIvfPq(Faiss):
    options = {"nlist": 0, "m": 0, "refine": "Flat"}

    def describe(self, rows):
        # Of its guidelines: 4 to 16 times the root; two dimensions to a code of 4 bits.
        nlist = self.options["nlist"] or 2 ** round(math.log2(4 * math.sqrt(rows)))
        m = self.options["m"] or self.space.dim // 2
        self.options |= {"nlist": nlist, "m": m}
        return f"IVF{nlist},PQ{m}x4fs,Refine({self.options['refine']})"

    def open(self, folder):
        super().open(folder)
        # Fast scan takes selectors in some versions only.
        import numpy as np

        try:
            one = np.zeros((1, self.space.dim), np.float32)
            self.search(one, {"nprobe": 1, "k_factor": 2}, np.arange(1))
        except RuntimeError:
            self.filters = False

    def settings(self):
        return grid(nprobe=[1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024], k_factor=[2, 5, 10, 20, 40, 100])

    def parameters(self, setting, selector):
        lists = self.faiss.SearchParametersIVF(nprobe=setting["nprobe"], **selector)
        return self.faiss.IndexRefineSearchParameters(k_factor=setting["k_factor"], base_index_params=lists)


class Scann:
    options = {"leaves": 0, "dimensions_per_block": 2, "anisotropic_quantization_threshold": 0.2}
    filters = False

    def __init__(self, space):
        from importlib.metadata import version

        from scann.scann_ops.py import scann_ops_pybind

        self.engine = f"scann {version('scann')}"
        self.space, self.scann = space, scann_ops_pybind

    def build(self, base, folder):
        options = self.options
        leaves = options["leaves"] or round(2 * math.sqrt(len(base)))
        metric = "squared_l2" if self.space.metric == "l2" else "dot_product"
        # The anisotropic loss is one of inner products.
        threshold = math.nan if metric == "squared_l2" else options["anisotropic_quantization_threshold"]
        builder = self.scann.builder(base, self.space.k, metric).set_n_training_threads(self.space.threads)
        builder = builder.tree(
            num_leaves=leaves, num_leaves_to_search=leaves // 10, training_sample_size=min(len(base), 250_000)
        )
        builder = builder.score_ah(options["dimensions_per_block"], anisotropic_quantization_threshold=threshold)
        builder.reorder(100).build().serialize(folder)

    def open(self, folder):
        self.index = self.scann.load_searcher(folder)
        self.index.set_num_threads(self.space.threads)

    def settings(self):
        return grid(leaves=[1, 2, 4, 8, 16, 32, 64, 128, 256, 512], reorder=[20, 40, 80, 160, 320])

    def search(self, queries, setting, allowed):
        knobs = {
            "final_num_neighbors": self.space.k,
            "pre_reorder_num_neighbors": setting["reorder"],
            "leaves_to_search": setting["leaves"],
        }
        if len(queries) == 1:
            return [self.index.search(queries[0], **knobs)[0]]
        if self.space.threads > 1:
            return self.index.search_batched_parallel(queries, **knobs)[0]
        return self.index.search_batched(queries, **knobs)[0]


class Turbovec:
    """It scans codes; for recall beyond theirs numpy scores candidates again, as its users must."""

    options = {"bit_width": 4}
    filters = True

    def __init__(self, space):
        import turbovec

        if space.metric == "l2":
            raise ValueError("turbovec has inner products only, and the metric is l2")
        self.engine = f"turbovec {turbovec.__version__}"
        self.space, self.turbovec = space, turbovec
        self.masks = {}
        # Refuses a width that it does not do.
        turbovec.TurboQuantIndex(space.dim, self.options["bit_width"])

    def build(self, base, folder):
        import numpy as np

        index = self.turbovec.TurboQuantIndex(self.space.dim, self.options["bit_width"])
        # Its documentation: about 1024 rows, drawn uniformly.
        index.calibrate(base[np.random.default_rng(0).choice(len(base), min(len(base), 1024), replace=False)])
        index.add(base, chunk_size=0)
        index.write(f"{folder}/index")
        np.save(f"{folder}/originals.npy", base)

    def open(self, folder):
        import numpy as np

        self.index = self.turbovec.TurboQuantIndex.load(f"{folder}/index")
        self.index.prepare()
        self.originals = np.load(f"{folder}/originals.npy", mmap_mode="r")

    def settings(self):
        return grid(rescore=[0, 10, 20, 40, 80, 160, 320])

    def search(self, queries, setting, allowed):
        import numpy as np

        mask = {}
        if allowed is not None:
            if id(allowed) not in self.masks:
                bits = np.zeros(len(self.index), bool)
                bits[allowed] = True
                self.masks[id(allowed)] = bits
            mask["mask"] = self.masks[id(allowed)]
        found = self.index.search(queries, max(self.space.k, setting["rescore"]), **mask)[1].astype(np.int64)
        if setting["rescore"] <= self.space.k:
            return found
        rows = []
        for query, ids in zip(queries, found):
            scores = self.originals[ids] @ query
            best = np.argpartition(-scores, min(self.space.k, len(scores)) - 1)[: self.space.k]
            rows.append(ids[best[np.argsort(-scores[best])]])
        return rows


KINDS = {
    "numpy": Numpy,
    "hnswlib": Hnswlib,
    "usearch": Usearch,
    "faiss-flat": FaissFlat,
    "faiss-hnsw-sq8": FaissHnswSq8,
    "faiss-ivf-pq": FaissIvfPq,
    "scann": Scann,
    "turbovec": Turbovec,
}


class Space:
    """What is asked for: the vectors, how near two of them are, and by how many threads."""

    def __init__(self, threads, base, queries, query_count, metric, k):
        import numpy as np

        self.threads, self.metric, self.k = threads, metric, k
        self.base = base
        self.dim = np.load(base, mmap_mode="r").shape[1]
        self.queries = self.read(queries)[:query_count]
        self.allowed = {}

    def read(self, path):
        import numpy as np

        vectors = np.load(path).astype(np.float32, copy=False)
        if self.metric == "cosine":
            vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.ascontiguousarray(vectors)

    def allow(self, path):
        import numpy as np

        if path is None:
            return None
        if path not in self.allowed:
            self.allowed[path] = np.fromfile(path, "<u4").astype(np.int64)
        return self.allowed[path]


def search(peer, space, setting, batch, allowed):
    setting = {name: int(value) for name, value in setting.items()}
    cpu_s, passes, seconds, start = 0.0, 0, [], time.perf_counter()
    while not passes or time.perf_counter() - start < PASSES_S:
        found, cpu = [], time.process_time()
        for first in range(0, len(space.queries), batch):
            queries, before = space.queries[first : first + batch], time.perf_counter()
            found.append(peer.search(queries, setting, allowed))
            seconds.append(time.perf_counter() - before)
        cpu_s += time.process_time() - cpu
        passes += 1
    # Where there are fewer, some fill the row with -1, some with the greatest number, and fast scan of faiss 1.15 under
    # a filter with 0, allowed or not.
    may = None if allowed is None else set(allowed.tolist())
    ids = [
        list(dict.fromkeys(int(id) for id in row if 0 <= id < 1 << 32 and (may is None or int(id) in may)))
        for rows in found
        for row in rows
    ]
    return {"cpu_s": cpu_s / passes, "seconds": seconds, "ids": ids}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE", help="change an option")
    args = parser.parse_args()
    kind = KINDS[args.kind]
    options = dict(kind.options)
    for name, _, value in (option.partition("=") for option in args.set):
        if name not in options:
            parser.error(f"{args.kind} has no option {name}; it has {', '.join(options) or 'none'}")
        options[name] = type(options[name])(value)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Libraries that print must not print into the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value):
        print(json.dumps(value), file=answers, flush=True)

    space = peer = None
    for line in sys.stdin:
        ((task, fields),) = json.loads(line).items()
        try:
            if task == "start":
                # Pools that read their number of threads from here do so when they are loaded. A thread that waits
                # must not burn the CPU time that is measured.
                for pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
                    os.environ[pool] = str(fields["threads"])
                os.environ["OMP_WAIT_POLICY"] = "passive"
                space = Space(**fields)
                kind.options = options
                peer = kind(space)
                answer({"ready": {"engine": peer.engine, "options": json.dumps(options)}})
            elif task == "build":
                base = space.read(space.base)
                cpu, before = time.process_time(), time.perf_counter()
                peer.build(base, fields["folder"])
                cpu, seconds = time.process_time() - cpu, time.perf_counter() - before
                answer({"built": {"cpu_s": cpu, "seconds": seconds}})
            elif task == "open":
                before = time.perf_counter()
                peer.open(fields["folder"])
                seconds = time.perf_counter() - before
                settings = peer.settings()
                before = time.perf_counter()
                peer.search(space.queries[:1], {name: int(value) for name, value in settings[0].items()}, None)
                first_s = time.perf_counter() - before
                opened = {"seconds": seconds, "first_s": first_s, "filters": peer.filters, "settings": settings}
                answer({"opened": opened})
            elif task == "search":
                allowed = space.allow(fields["filter"])
                answer({"found": search(peer, space, fields["setting"], fields["batch"], allowed)})
            else:
                answer({"error": f"unknown task {task}"})
        except Exception as error:  # every fault is the answer to its task
            answer({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
