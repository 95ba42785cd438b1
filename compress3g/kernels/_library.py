"""Finds and loads the compiled CPU library, and says why not when it cannot."""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import BackendError

_ABI = 3
_SETS = ("scalar", "avx2", "avx512", "icelake")
_TYPES = (torch.float32, torch.int64, torch.uint8)

POINTER = ctypes.c_void_p
INTEGER = ctypes.c_int64

_forced: str | None = None


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    folder = Path(__file__).parent
    files = [folder / f"_cpu{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES]
    found = next((file for file in files if file.exists()), None)
    if found is None:
        return None, "not compiled: install a C compiler, then reinstall compress3g"
    try:
        library = ctypes.CDLL(str(found))
        abi = int(library.compress3g_abi())
    except (OSError, AttributeError) as error:
        return None, f"{found.name} does not load: {error}"
    if abi != _ABI:
        return None, f"{found.name} is of another version (ABI {abi}, need {_ABI}): reinstall"
    return library, None


def status() -> str | None:
    """None when the compiled library is loaded, else the reason in one line."""
    return _load()[1]


def isa() -> str:
    """The instruction set whose kernels run: "scalar", "avx2", "avx512" or "icelake".

    The last is AVX-512 with VBMI, VNNI, VPOPCNTDQ and BITALG (also AMD's since Zen 4).

    The widest the processor has, unless COMPRESS3G_ISA or `use_isa` names a narrower one.
    Raises BackendError when that name is unknown or wider than the processor.
    """
    library, reason = _load()
    if library is None:
        raise BackendError(f"no compiled kernels: {reason}")
    best = int(library.compress3g_isa())
    wanted = _forced or os.environ.get("COMPRESS3G_ISA")
    if not wanted:
        return _SETS[best]
    if wanted not in _SETS[: best + 1]:
        raise BackendError(
            f"instruction set {wanted!r} cannot run here: use {', '.join(_SETS[: best + 1])}"
        )
    return wanted


@contextmanager
def use_isa(name: str) -> Iterator[None]:
    """Run the kernels of one instruction set inside the block."""
    global _forced
    before, _forced = _forced, name
    try:
        isa()
        yield
    finally:
        _forced = before


@functools.cache
def _bind(name: str, suffix: str, arguments: tuple[Any, ...]) -> Callable[..., None]:
    library, reason = _load()
    if library is None:
        raise BackendError(f"no compiled kernels: {reason}")
    if suffix == "icelake" and not hasattr(library, f"{name}_{suffix}"):
        suffix = "avx512"  # few operations gain from the newer instructions
    symbol = getattr(library, f"{name}_{suffix}")
    symbol.argtypes, symbol.restype = list(arguments), None
    return symbol  # type: ignore[no-any-return]


def function(name: str, arguments: Sequence[Any]) -> Callable[..., None]:
    """The C function `name` for the active instruction set; the range (lo, hi) comes last."""
    return _bind(name, isa(), (*arguments, INTEGER, INTEGER))


def address(tensor: Tensor | None, dtypes: Sequence[torch.dtype] = _TYPES) -> int | None:
    """Data pointer of a contiguous CPU tensor, or None for a null pointer.

    Raises BackendError for anything C cannot walk through from the front.
    """
    if tensor is None:
        return None
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise BackendError(
            f"CPU kernels need contiguous CPU tensors, got {tuple(tensor.shape)} on {tensor.device}"
        )
    if tensor.dtype not in dtypes:
        wanted = ", ".join(str(t).removeprefix("torch.") for t in dtypes)
        raise BackendError(
            f"CPU kernels take {wanted} here, got {tensor.dtype}: convert it, or use the reference "
            "backend"
        )
    return tensor.data_ptr()
