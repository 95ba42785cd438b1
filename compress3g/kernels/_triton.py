"""Triton where it is installed: modules of kernels import with or without it."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..errors import BackendError

triton: Any = None
tl: Any = None
_missing: str | None = None
try:
    triton = importlib.import_module("triton")
    tl = importlib.import_module("triton.language")
except (ImportError, OSError) as error:
    _missing = f"triton does not import: {str(error).splitlines()[0]}"


def jit(function: Callable[..., Any]) -> Any:
    """The compiled function; untouched without Triton."""
    # Triton compiles the source itself, not what checks of types have wrapped around it.
    return function if triton is None else triton.jit(inspect.unwrap(function))


def _nothing() -> None:
    pass


# TRITON_INTERPRET=1 before the first import.
_interpreted = triton is not None and not isinstance(jit(_nothing), triton.JITFunction)


@functools.cache
def usable() -> str | None:
    """None, or why Triton cannot run here."""
    if _missing is not None:
        return _missing
    if _interpreted or torch.cuda.is_available():
        return None
    return "no CUDA device is visible to torch"


def on(device: torch.device) -> AbstractContextManager[object]:
    """Where a kernel is launched: on that GPU; the interpreter needs nothing."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def check_device(tensor: Tensor) -> None:
    """Raises BackendError for a tensor that is not on a GPU (or interpreted)."""
    if not (tensor.is_cuda or _interpreted):
        raise BackendError(f"triton kernels need CUDA tensors, got {tensor.device}")


def check(*tensors: Tensor) -> None:
    """Raises BackendError for all but contiguous float32 tensors on a GPU (or interpreted)."""
    for tensor in tensors:
        check_device(tensor)
        if tensor.dtype != torch.float32 or not tensor.is_contiguous():
            raise BackendError(
                f"triton kernels need contiguous float32 tensors, got {tensor.dtype} of shape "
                f"{tuple(tensor.shape)}: use the reference backend"
            )
