"""Every compiled body of an operation, and the reference, as the parameter `body` of a test."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

from compress3g.errors import BackendError
from compress3g.kernels import _library
from compress3g.kernels.registry import use

# The first example of a process also pays for torch's start.
settings.register_profile("without deadline", deadline=None)
settings.load_profile("without deadline")

SETS = ("scalar", "avx2", "avx512", "icelake")


def _obstacle(name: str) -> str | None:
    if _library.status() is not None:
        return "CPU library not compiled"
    try:
        with _library.use_isa(name):
            return None
    except BackendError:
        return f"this processor has no {name}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    compiled = [
        pytest.param(name, marks=pytest.mark.skipif(reason is not None, reason=reason or ""))
        for name in SETS
        for reason in [_obstacle(name)]
    ]
    if "body" in metafunc.fixturenames:
        metafunc.parametrize("body", ["reference", *compiled])
    if "scan_body" in metafunc.fixturenames:
        metafunc.parametrize("scan_body", ["reference", "chunked", *compiled])
    if "compiled" in metafunc.fixturenames:
        metafunc.parametrize("compiled", compiled)


@contextmanager
def _running(operation: str, body: str) -> Iterator[None]:
    if body in ("reference", "chunked"):
        with use(**{operation: body}):
            yield
    else:
        with use(**{operation: "cpu"}), _library.use_isa(body):
            yield


@pytest.fixture(scope="session")
def running() -> Callable[[str, str], AbstractContextManager[None]]:
    """`with running("hash_grid", "avx2"):` forces that body of the operation."""
    return _running


@pytest.fixture(scope="session")
def scanning() -> Callable[[str], AbstractContextManager[None]]:
    """`with scanning("avx2"):` forces that body of the selective scan."""
    return partial(_running, "selective_scan")


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def installed_triton() -> None:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton not installed")


@pytest.fixture
def triton_script(installed_triton: None, tmp_path: Path) -> Callable[..., None]:
    """Runs a script in a process of its own: Triton reads TRITON_INTERPRET when it is imported."""

    def run(script: str, *, interpret: bool, says: str) -> None:
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={
                **os.environ,
                "TRITON_CACHE_DIR": str(tmp_path),
                "TRITON_INTERPRET": "1" if interpret else "0",
            },
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.stdout.strip() == says, done.stderr

    return run


@dataclass(frozen=True, slots=True)
class Corpus:
    """Clustered unit vectors of a few pages, one of them empty, and their nearest centroids."""

    centroids: np.ndarray
    vectors: np.ndarray
    codes: np.ndarray
    offsets: np.ndarray
    query: np.ndarray

    @property
    def pages(self) -> int:
        return len(self.offsets) - 1


def _unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def _corpus(*, pages: int, longest: int, rows: int, tokens: int, dims: int, seed: int) -> Corpus:
    random = np.random.default_rng(seed)
    centroids = _unit(random.standard_normal((rows, dims)))
    counts = random.integers(0, longest + 1, pages)
    counts[pages // 2] = 0
    offsets = np.concatenate([[0], counts.cumsum()]).astype(np.int64)
    source = random.integers(0, rows, offsets[-1])
    noise = random.standard_normal((len(source), dims)) * 0.3 / dims**0.5
    vectors = _unit(centroids[source] + noise)
    codes = (vectors @ centroids.T).argmax(-1).astype(np.uint8 if rows <= 256 else np.uint16)
    query = _unit(centroids[random.integers(0, rows, tokens)] + random.standard_normal(dims) * 0.05)
    return Corpus(centroids, vectors, codes, offsets, query)


@pytest.fixture(scope="session")
def corpus() -> Callable[..., Corpus]:
    """`corpus(pages=, longest=, rows=, tokens=, dims=, seed=)`: a small retrieval corpus."""
    return _corpus
