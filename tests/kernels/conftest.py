"""Every compiled body of an operation, and the reference, as the parameter `body` of a test."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from compress3g.errors import BackendError
from compress3g.kernels import _library
from compress3g.kernels.registry import use

# The first example of a process also pays for torch's start.
settings.register_profile("without deadline", deadline=None)
settings.load_profile("without deadline")

SETS = ("scalar", "avx2", "avx512")


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
    if "compiled" in metafunc.fixturenames:
        metafunc.parametrize("compiled", compiled)


@contextmanager
def _running(operation: str, body: str) -> Iterator[None]:
    if body == "reference":
        with use(**{operation: "reference"}):
            yield
    else:
        with use(**{operation: "cpu"}), _library.use_isa(body):
            yield


@pytest.fixture(scope="session")
def running() -> Callable[[str, str], AbstractContextManager[None]]:
    """`with running("hash_grid", "avx2"):` forces that body of the operation."""
    return _running


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def triton_script(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a script in a process of its own: Triton reads TRITON_INTERPRET when it is imported."""

    def run(script: str, *, interpret: bool) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
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

    return run
