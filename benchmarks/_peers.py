"""One peer, in an environment of its own: `python _peers.py NAME DATA.npz FOLDER` prints JSON.

Needs numpy and the peer, nothing of compress3g. Times are processor time per query of the whole
process and of the children it has waited for, the median over queries of the best of `repeats`;
every library is told to use one thread.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "MKL_NUM_THREADS", "LANCE_CPU_THREADS"):
    os.environ[variable] = "1"

import numpy as np

K = 10
Search = Callable[[np.ndarray], list[int]]
# Searches by setting; bytes: of a page; once: of centroids, however many pages there are.
Prepared = tuple[dict[str, Search], dict[str, float]]


def cpu_seconds() -> float:
    """Processor time of all threads of this process and of its finished children."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def repeats(queries: int) -> int:
    """Times a query is asked: the median of many queries needs no second look."""
    return 3 if queries <= 50 else 1


def folder_bytes(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def fast_plaid(vectors: np.ndarray, folder: Path) -> Prepared:
    """Defaults, and fewer full scores; bytes without its centroids and its copy of the vectors."""
    import torch
    from fast_plaid import search

    torch.set_num_threads(1)
    plaid = search.FastPlaid(index=str(folder), device="cpu")
    plaid.create(documents_embeddings=[torch.from_numpy(page) for page in vectors])

    def ask(query: np.ndarray, **settings: int) -> list[int]:
        asked = torch.from_numpy(query)[None]
        found = plaid.search(queries_embeddings=asked, top_k=K, **settings)[0]
        return [int(page) for page, _ in found]

    raw = sum(f.stat().st_size for f in folder.rglob("*") if "embedding" in f.name)
    whole = folder_bytes(folder)
    once = (folder / "centroids.npy").stat().st_size
    searches: dict[str, Search] = {
        "fast-plaid": ask,
        "fast-plaid, n_full_scores=256": lambda q: ask(q, n_full_scores=256),
    }
    size = {"bytes": (whole - raw - once) / len(vectors), "once": once}
    return searches, size | {"with": whole / len(vectors)}


def lancedb(vectors: np.ndarray, folder: Path) -> Prepared:
    """A column of many vectors a page, without an index: exact, as it recommends for few pages."""
    import lancedb as lance
    import pyarrow as arrow

    dimension = vectors.shape[2]
    schema = arrow.schema(
        [("page", arrow.int64()), ("vectors", arrow.list_(arrow.list_(arrow.float32(), dimension)))]
    )
    rows = [{"page": i, "vectors": page.tolist()} for i, page in enumerate(vectors)]
    table = lance.connect(folder).create_table("pages", rows, schema=schema)

    def ask(query: np.ndarray) -> list[int]:
        found = table.search(query.tolist(), vector_column_name="vectors").metric("cosine")
        return [row["page"] for row in found.select(["page"]).limit(K).to_list()]

    return {"LanceDB": ask}, {"bytes": folder_bytes(folder) / len(vectors)}


def maxsim_cpu(vectors: np.ndarray, folder: Path) -> Prepared:
    """Exact scores of float vectors in memory."""
    import maxsim_cpu as library

    whole = np.ascontiguousarray(vectors, np.float32)

    def ask(query: np.ndarray) -> list[int]:
        scores = np.asarray(library.maxsim_scores(query, whole))
        return [int(i) for i in np.argsort(-scores, kind="stable")[:K]]

    return {"maxsim-cpu": ask}, {"bytes": whole[0].nbytes}


def faiss_ivfpq(vectors: np.ndarray, folder: Path) -> Prepared:
    """All vectors in one IVF-PQ index: 500 neighbours of each token, summed over tokens by page."""
    import faiss

    faiss.omp_set_num_threads(1)
    pages, length, dimension = vectors.shape
    flat = np.ascontiguousarray(vectors.reshape(-1, dimension), np.float32)
    cells = int(min(1024, max(len(flat) // 256, 1)))
    index = faiss.index_factory(dimension, f"IVF{cells},PQ16", faiss.METRIC_INNER_PRODUCT)
    draw = np.random.default_rng(0)
    index.train(flat[draw.choice(len(flat), min(len(flat), 64 * cells), replace=False)])
    index.add(flat)
    index.nprobe = 16

    def ask(query: np.ndarray) -> list[int]:
        similarity, found = index.search(query, 500)
        best = np.repeat(similarity.min(1)[:, None], pages, 1)  # for pages not among a token's
        for token in range(len(query)):
            there = found[token] >= 0
            np.maximum.at(best[token], found[token][there] // length, similarity[token][there])
        return [int(i) for i in np.argsort(-best.sum(0), kind="stable")[:K]]

    size = len(faiss.serialize_index(index))
    return {"faiss IVF-PQ16": ask}, {"bytes": size / pages}


def main() -> None:
    name, data, folder = sys.argv[1], np.load(sys.argv[2]), Path(sys.argv[3])
    clock = cpu_seconds()
    searches, size = globals()[name](data["vectors"], folder)
    built = cpu_seconds() - clock
    rows = {}
    for setting, ask in searches.items():
        times, found = [], []
        for query in data["queries"]:
            runs = []
            for _ in range(repeats(len(data["queries"]))):
                clock = cpu_seconds()
                pages = ask(query)
                runs.append(cpu_seconds() - clock)
            times.append(min(runs))
            found.append(pages)
        rows[setting] = {
            "cpu_ms": 1e3 * float(np.median(times)), "found": found, "build_s": built,
            "bytes_per_page": size["bytes"], "bytes_once": size.get("once", 0),
            "bytes_with_originals": size.get("with"),
        }  # fmt: skip
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
