"""The index against fast-plaid, LanceDB, faiss and maxsim-cpu: processor time, recall, bytes.

The same pages and queries in one run, one thread each. Every peer gets an environment of its own,
made here (fast-plaid wants another torch than ours) and kept with --environments; what cannot be
installed is said and left out. Recall is the share of the exact top 10. Bytes a page are what grows
with pages; what is learned once (centroids) is a column of its own. Copies of the vectors that
collections so small keep to be trained again with, ours and fast-plaid's, are left out. Quick runs
install nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import venv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _corpora import TokenVectors, cranfield, data_folder, token_vectors
from _peers import cpu_seconds, repeats
from _report import goal, parser, report
from retrieval_scale import make_pages, unit

from compress3g.retrieval.config import PRESETS, IndexConfig
from compress3g.retrieval.index import Index
from compress3g.retrieval.search_config import SearchConfig

SEED, TOKENS, K = 0, 24, 10
PAGE, WORDS = 1030, 12  # vectors of a real page and of a real query
PEERS = {
    "fast_plaid": ["fast-plaid==1.7.0.2110", "torch==2.11.*", "numpy"],
    "lancedb": ["lancedb", "pyarrow", "numpy"],
    "maxsim_cpu": ["maxsim-cpu", "numpy"],
    "faiss_ivfpq": ["faiss-cpu", "numpy"],
}


def data(pages: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Pages [P, 1030, 128], and queries of disturbed vectors of a random page each."""
    vectors = np.stack([p.vectors for p in make_pages(SEED + 1, pages)]).astype(np.float32)
    draw = np.random.default_rng(SEED + 2)
    asked = []
    for page in draw.integers(0, pages, queries):
        x = vectors[page][draw.choice(vectors.shape[1], TOKENS, replace=False)]
        asked.append(unit(x + 0.08 * draw.standard_normal(x.shape)))
    return vectors, np.stack(asked)


def real(pages: int, queries: int) -> tuple[np.ndarray, np.ndarray] | None:
    """The same shapes of MiniLM's token vectors of Cranfield; None without them."""
    folder = data_folder()
    return None if folder is None else long_pages(token_vectors(cranfield(folder)), pages, queries)


def long_pages(made: TokenVectors, pages: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """A page is 1,030 tokens of consecutive texts, a query the first 12 of one that has them."""
    pages = min(pages, len(made.vectors) // PAGE)
    vectors = made.vectors[: pages * PAGE].reshape(pages, PAGE, -1).astype(np.float32)
    starts, stops = made.query_offsets[:-1], made.query_offsets[1:]
    long = np.flatnonzero(stops - starts >= WORDS)[:queries]
    asked = np.stack([made.query_vectors[starts[i] : starts[i] + WORDS] for i in long])
    return vectors, asked.astype(np.float32)


def exact(vectors: np.ndarray, queries: np.ndarray) -> tuple[list[list[int]], float]:
    """The true top 10 by float matrix products in torch, and their processor time a query."""
    whole, times, found = torch.from_numpy(vectors), [], []
    for query in torch.from_numpy(queries):
        clock = cpu_seconds()
        scores = torch.stack([(page @ query.T).amax(0).sum() for page in whole])
        times.append(cpu_seconds() - clock)
        found.append(torch.sort(scores, descending=True, stable=True).indices[:K].tolist())
    return found, 1e3 * float(np.median(times))


def ours(
    vectors: np.ndarray, queries: np.ndarray, folder: Path, config: IndexConfig
) -> dict[str, Any]:
    """The index, built and searched through its public API."""
    from compress3g.retrieval.vectors import PageVectors

    grid = np.stack(np.divmod(np.arange(vectors.shape[1]), 32), 1).astype(np.int16)
    clock = cpu_seconds()
    with Index.create(folder, dimension=vectors.shape[2], config=config) as index:
        index.add_documents(
            index.document(str(i), [PageVectors(page.astype(np.float16), grid=grid)])
            for i, page in enumerate(vectors)
        )
        built = cpu_seconds() - clock
        times, found = [], []
        for query in queries:
            runs = []
            for _ in range(repeats(len(queries))):
                clock = cpu_seconds()
                hits = index.search_vectors([query], config=SearchConfig(k=K))[0]
                runs.append(cpu_seconds() - clock)
            times.append(min(runs))
            found.append([int(hit.doc) for hit in hits])
        info = index.info()
    # As long as it grows an index keeps vectors it was not asked to store; so does fast-plaid.
    spare = (
        0
        if config.store != "none"
        else sum(size for name, size in info.arrays.items() if name.startswith("store"))
    )
    once = sum(f.stat().st_size for f in folder.glob("codebook-*/*"))
    return {"cpu_ms": 1e3 * float(np.median(times)), "found": found, "build_s": built,
            "bytes_per_page": (info.bytes - spare) / info.pages, "bytes_once": once}  # fmt: skip


def environment(folder: Path, packages: list[str]) -> Path | str:
    """The interpreter of an environment with the packages, or why there is none."""
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        try:
            venv.create(folder, with_pip=True, clear=True)
        except subprocess.CalledProcessError as error:
            return f"no environment: {error}"
        done = subprocess.run(
            [python, "-m", "pip", "install", "-q", *packages],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            return (done.stderr.strip().splitlines() or ["pip failed"])[-1]
        (folder / "complete").touch()
    return python


def peer(name: str, environments: Path, file: Path, work: Path) -> dict[str, Any] | str:
    """Rows of a peer by setting, or why there are none."""
    python = environment(environments / name, PEERS[name])
    if isinstance(python, str):
        return python
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "LD_PRELOAD")}
    script = Path(__file__).with_name("_peers.py")
    done = subprocess.run(
        [python, script, name, file, work / name],
        capture_output=True, text=True, check=False, env=clean,
    )  # fmt: skip
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["it failed without a word"])[-1]
    rows: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return rows


def faiss_here(file: Path, work: Path) -> dict[str, Any] | str:
    """faiss is ours too: quick runs take it from this environment."""
    script = Path(__file__).with_name("_peers.py")
    done = subprocess.run(
        [sys.executable, script, "faiss_ivfpq", file, work / "faiss"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else done.stderr[-200:]


def settings(quick: bool) -> dict[str, IndexConfig]:
    """Presets, and the residuals of two and of fast-plaid's four bits a dimension."""
    balanced = PRESETS["balanced"]
    if quick:  # the training alone would take a minute
        return {"tiny": PRESETS["tiny"], "balanced": replace(balanced, k=1024)}
    return {
        "tiny": PRESETS["tiny"],
        "balanced": balanced,
        "res2": replace(balanced, residual="res2"),
        "pq32": replace(balanced, residual="pq32"),
        "res4": replace(balanced, residual="res4"),
        "lossless": PRESETS["lossless"],
    }


def recall(found: list[list[int]], truth: list[list[int]]) -> float:
    return float(np.mean([len(set(a) & set(b)) / K for a, b in zip(found, truth, strict=True)]))


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--pages", type=int, help="Default: 400, quick 100.")
    options.add_argument("--real", action="store_true", help="Token vectors of Cranfield.")
    options.add_argument("--only", nargs="+", help="Settings and peers to run, not all of them.")
    options.add_argument("--queries", type=int, help="Default: 50, quick 10; real: all.")
    options.add_argument("--environments", type=Path, help="Where to make and keep them.")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    pages = chosen.pages or (100 if chosen.quick else 400)
    count = chosen.queries or (10 if chosen.quick else 1000 if chosen.real else 50)
    with tempfile.TemporaryDirectory(prefix="compress3g-peers-") as folder:
        work = Path(folder)
        found_real = real(pages, count) if chosen.real else None
        if chosen.real and found_real is None:
            print("skipped: --real needs COMPRESS3G_DATA with retrieval/cranfield")
            return
        vectors, queries = found_real or data(pages, count)
        np.savez(work / "data.npz", vectors=vectors, queries=queries)
        truth, brute_ms = exact(vectors, queries)
        whole = float(vectors[0].nbytes)
        rows: dict[str, Any] = {
            "torch float32": {"cpu_ms": brute_ms, "found": truth, "bytes_per_page": whole}
        }
        wanted = chosen.only or [*settings(chosen.quick), *PEERS]
        for name, config in settings(chosen.quick).items():
            if name not in wanted:
                continue
            rows[f"compress3g {name}"] = ours(vectors, queries, work / name, config)
        missing: dict[str, str] = {}
        if chosen.quick:
            result: dict[str, Any] = {"faiss_ivfpq": faiss_here(work / "data.npz", work)}
            missing = {n: "not installed in a quick run" for n in PEERS if n != "faiss_ivfpq"}
        else:
            environments = chosen.environments or work / "environments"
            result = {
                n: peer(n, environments, work / "data.npz", work) for n in PEERS if n in wanted
            }
        for peer_name, found in result.items():
            if isinstance(found, str):
                missing[peer_name] = found
            else:
                rows |= found
    print_rows(rows, truth, missing)
    goals = compare(rows)
    name = "retrieval_peers_real" if chosen.real else "retrieval_peers"
    name += "_some" if chosen.only else ""
    report(name, chosen, seeds=[SEED], goals=goals, rows=rows, pages=len(vectors),
           queries=len(queries), missing=missing)  # fmt: skip


def print_rows(rows: dict[str, Any], truth: list[list[int]], missing: dict[str, str]) -> None:
    """Prints the table; recall takes the place of the pages that were found."""
    heads = (("CPU ms a query", 16), ("recall@10", 12), ("bytes a page", 15), ("once, kB", 11),
             ("build CPU s", 13))  # fmt: skip
    print(f"{'':34}" + "".join(f"{head:>{width}}" for head, width in heads))
    for name, row in rows.items():
        row["recall"] = recall(row.pop("found"), truth)
        built = f"{row['build_s']:13.1f}" if "build_s" in row else f"{'':13}"
        print(
            f"{name:34}{row['cpu_ms']:16.2f}{row['recall']:12.3f}"
            f"{row['bytes_per_page']:15,.0f}{row.get('bytes_once', 0) / 1000:11,.0f}{built}"
        )
    for name, reason in missing.items():
        print(f"{name} is not in the table: {reason}")


def compare(rows: dict[str, Any]) -> list[dict[str, Any]]:
    """The goals against fast-plaid, where it could be run.

    By our setting of highest recall among those of at most half its bytes.
    """
    theirs = rows.get("fast-plaid")
    if theirs is None:
        print("no goals: they are set against fast-plaid, which did not run")
        return []
    half = theirs["bytes_per_page"] / 2
    small = {n: r for n, r in rows.items() if n.startswith("comp") and r["bytes_per_page"] <= half}
    name = max(small, key=lambda n: small[n]["recall"])
    mine, size = small[name], small[name]["bytes_per_page"] / theirs["bytes_per_page"]
    return [
        goal(f"less processor time than fast-plaid, {name}", theirs["cpu_ms"] / mine["cpu_ms"], 10),
        goal("its recall less fast-plaid's", mine["recall"] - theirs["recall"], 0.0),
        goal("its bytes a page over fast-plaid's", size, 0.5, at_least=False),
    ]


if __name__ == "__main__":
    main()
