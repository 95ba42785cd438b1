"""Run as a program by test_faults.py: works on an index in processes that are killed or starved.

Every trial forks a process that changes the index and acknowledges each finished change through a
pipe; then another process checks that the index holds exactly what was acknowledged, or that and
the one change that was under way, whole.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from compress3g.errors import Compress3GError
from compress3g.retrieval import catalog, codebook, page_graph
from compress3g.retrieval.config import IndexConfig
from compress3g.retrieval.encoding import stored_vectors
from compress3g.retrieval.index import Index
from compress3g.retrieval.vectors import PageVectors

DIMENSION = 16


def vectors(name: str, version: int) -> list[np.ndarray]:
    """The vectors of all pages of a document, from its name alone."""
    seed = int.from_bytes(hashlib.sha256(f"{name} {version}".encode()).digest()[:8], "little")
    draw = np.random.default_rng(seed)
    pages = []
    for _ in range(int(draw.integers(1, 5))):
        x = draw.standard_normal((int(draw.integers(3, 20)), DIMENSION)).astype(np.float32)
        pages.append((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16))
    return pages


def apply(state: dict[str, int], change: tuple[str, str, int]) -> dict[str, int]:
    """The documents and their versions after a change."""
    what, name, version = change
    after = dict(state)
    if what == "add":
        after[name] = version
    elif what == "remove":
        after.pop(name, None)
    return after


def perform(index: Index, change: tuple[str, str, int]) -> None:
    what, name, version = change
    if what == "add":
        pages = [PageVectors(x) for x in vectors(name, version)]
        index.add_vectors(name, pages, metadata={"version": version}, sha256=str(version))
    elif what == "remove":
        index.remove(name)
    else:
        index.compact()


def next_change(state: dict[str, int], kind: str, draw: random.Random) -> tuple[str, str, int]:
    """A random change of the kind under test, or one that makes room for the next of that kind."""
    if kind == "remove" and len(state) > 3 and draw.random() < 0.7:
        return ("remove", draw.choice(sorted(state)), 0)
    if kind == "compact" and len(state) > 3 and draw.random() < 0.5:
        return ("compact", "", 0)
    if len(state) > 12:
        return ("remove", draw.choice(sorted(state)), 0)
    name = f"document {draw.randrange(20)}"
    return ("add", name, state.get(name, 0) + 1)


def check(path: Path, allowed: list[dict[str, int]]) -> str:
    """Empty when the index holds one of the allowed states, whole; otherwise what is wrong."""
    index = Index.open(path)
    found = index.verify(deep=True)
    if found.problems:
        return f"verify: {found.problems}"
    documents = {d.path: d for d in index.documents()}
    state = {name: int(d.meta["version"]) for name, d in documents.items()}
    if state not in allowed:
        return f"state {state}, allowed {allowed}"
    for name, version in state.items():
        rows = index._catalog.query(
            "SELECT page FROM pages WHERE document = ? AND deleted IS NULL ORDER BY number",
            [documents[name].document],
        )
        stored = [_stored(index, page) for (page,) in rows]
        wanted = vectors(name, version)
        # In half precision as they were; in bytes to half a step, of which there are 254.
        off = 0 if index.config.store == "f16" else 1 / 254
        pairs = zip(stored, wanted, strict=False)
        same = [a.shape == b.shape and abs(a - b).max() <= off for a, b in pairs]
        if len(stored) != len(wanted) or not all(same):
            return f"{name}: other vectors than were added"
    if state:
        found = index.search_vectors([vectors(*next(iter(state.items())))[0].astype(np.float32)])
        if not found[0]:
            return "search finds nothing"
    from compress3g.retrieval.writer import Writer

    with Writer(path) as writer:  # removes the garbage
        known = {s.name for s in writer.snapshot().segments}
        codebook = writer.snapshot().codebook
        known |= {codebook[0]} if codebook else set()
    folders = {p.name for p in path.iterdir() if p.is_dir()}
    if folders != known:
        return f"garbage {folders - known}, missing {known - folders}"
    return ""


def _stored(index: Index, page: int) -> np.ndarray:
    view = index._view
    segment, rows, _ = next(view.split(view.positions_of(np.asarray([page]))))
    return stored_vectors(segment.take(int(rows[0]), int(rows[0]) + 1))


def forked(work) -> int:
    """The number of a process that runs `work` and exits with what it returns."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 3
    try:
        code = int(work() or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def changing(path: Path, state, choose, seed: int, pipe: int, limit: int, arm):
    """Changes the index, announcing and acknowledging; a clean error ends it with code 2."""
    index = Index.open(path)
    arm()
    draw = random.Random(seed)
    code = 0
    for _ in range(limit):
        change = choose(state, draw)
        os.write(pipe, f"{json.dumps(['start', *change])}\n".encode())
        try:
            perform(index, change)
        except (OSError, Compress3GError) as error:
            os.write(pipe, f"{json.dumps(['error', str(error)])}\n".encode())
            code = 2
            break
        state = apply(state, change)
        os.write(pipe, f"{json.dumps(['done', *change])}\n".encode())
    seen = ctypes.CDLL(None).fault_seen() if "LD_PRELOAD" in os.environ else 0
    os.write(pipe, f"{json.dumps(['seen', seen])}\n".encode())
    return code


@dataclass(frozen=True)
class End:
    """How a trial ended. code: of the process, -9 when killed. seen: changes of files it saw."""

    state: dict[str, int]
    code: int
    cut: bool
    seen: int


def trial(path: Path, state, choose, seed: int, *, limit: int, arm, kill_after) -> End:
    """One process that works, is killed or starved, and the check of what it leaves."""
    read, write = os.pipe()
    pid = forked(lambda: changing(path, state, choose, seed, write, limit, arm))
    os.close(write)
    first = b""
    if kill_after is not None:
        first = os.read(read, 1 << 16)  # the first change has begun
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    with os.fdopen(read, "rb") as lines:
        said = [json.loads(line) for line in (first + lines.read()).splitlines() if line]
    _, status = os.waitpid(pid, 0)
    pending, seen = None, 0
    for what, *about in said:
        if what == "start":
            pending = tuple(about)
        elif what == "done":
            state, pending = apply(state, pending), None
        elif what == "seen":
            seen = about[0]
    candidates = [state] + ([apply(state, pending)] if pending else [])
    _check_in_process(path, candidates, pending)
    return End(_state(path), os.waitstatus_to_exitcode(status), pending is not None, seen)


def _check_in_process(path: Path, candidates: list[dict[str, int]], pending) -> None:
    def work() -> int:
        problem = check(path, candidates)
        if problem:
            print(f"after {pending}: {problem}", file=sys.stderr)
        return 1 if problem else 0

    _, status = os.waitpid(forked(work), 0)
    if status:
        raise SystemExit(f"the index is not what was committed (status {status})")


def _state(path: Path) -> dict[str, int]:
    read, write = os.pipe()

    def work() -> int:
        state = {d.path: int(d.meta["version"]) for d in Index.open(path).documents()}
        os.write(write, json.dumps(state).encode())
        return 0

    pid = forked(work)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        state = json.loads(pipe.read())
    os.waitpid(pid, 0)
    return state


def prepared(path: Path, kind: str) -> dict[str, int]:
    """A small index with a codebook, segments and a deleted document."""
    keep = {"store": "none"} if kind == "grow" else {"store": "f16", "grow": False}

    def work() -> int:
        config = IndexConfig(k=32, residual="none", graph=True, **keep)
        with Index.create(path, dimension=DIMENSION, config=config) as index:
            for name in ("document 1", "document 2", "document 3", "document 4"):
                perform(index, ("add", name, 1))
            perform(index, ("remove", "document 3", 0))
        return 0

    _, status = os.waitpid(forked(work), 0)
    if status:
        raise SystemExit("the index could not be prepared")
    return _state(path)


def kills(path: Path, kind: str, times: int, seed: int) -> dict[str, int]:
    draw = random.Random(seed)
    state, cut = prepared(path, kind), 0
    for i in range(times):
        end = trial(
            path, state, lambda now, random: next_change(now, kind, random), seed + i,
            limit=1000, arm=lambda: None, kill_after=draw.uniform(0.0, 0.25),
        )  # fmt: skip
        if end.code != -signal.SIGKILL:
            raise SystemExit(f"the process ended by itself: {end.code}")
        state, cut = end.state, cut + end.cut
    return {"killed": times, "cut": cut}


def every_write(path: Path, kind: str, deadly: bool) -> dict[str, int]:
    """Fails or dies at the first, second, ... change of a file, until the operation gets through.

    Each time on a fresh copy of the same index, so that the n-th change is always the same.
    """
    library = ctypes.CDLL(None)
    template = path.with_name(f"{path.name}-template")
    state = prepared(template, kind)
    change = {
        "add": ("add", "document 1", 2),  # replaces one
        "grow": ("add", "document 1", 2),
        "remove": ("remove", "document 2", 0),
        "compact": ("compact", "", 0),
    }[kind]
    failed = n = 0
    while True:
        n += 1
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(template, path)
        arm = functools.partial(
            library.fault_arm, str(path.resolve()).encode(), ctypes.c_long(n), int(deadly)
        )
        end = trial(path, state, lambda *_: change, n, limit=1, arm=arm, kill_after=None)
        if end.code not in (0, 2, -signal.SIGKILL):
            raise SystemExit(f"change {n}: an error that is neither an OSError nor ours")
        failed += end.code != 0
        # It can survive a fault in a place that does not matter, such as a clean-up.
        if end.code == 0 and end.seen < n:
            return {"failed": failed, "writes": n - 1}


def main() -> None:
    page_graph.FEWEST = 2  # pages: the segments here are small, and shall have graphs too
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("fault", choices=["kill", "full", "die"])
    parser.add_argument("kind", choices=["add", "grow", "remove", "compact"])
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--journal", default="WAL")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.kind == "grow":
        codebook._GROWTH = 1.0  # every addition trains anew
    if options.journal == "DELETE":  # as on a network file system
        catalog._prepare = lambda connection: connection.execute("PRAGMA journal_mode = DELETE")
    if options.fault == "kill":
        result = kills(options.path, options.kind, options.times, options.seed)
    else:
        result = every_write(options.path, options.kind, options.fault == "die")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
