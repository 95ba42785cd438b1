"""Which implementation of an operation runs, and why."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

import torch

from ..errors import BackendError

_log = logging.getLogger(__name__)

# Tried from left to right on each device type. A backend is the module
# `compress3g.kernels.<operation>.<name>`; its `usable()` returns None or the reason why not.
_ORDER: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "hash_grid": {"cpu": ("cpu", "reference"), "cuda": ("tinycudann", "triton", "reference")},
    "mlp": {"cpu": ("cpu", "reference"), "cuda": ("triton", "reference")},
    "ray_march": {"cpu": ("cpu", "reference"), "cuda": ("triton", "reference")},
    "composite": {"cpu": ("cpu", "reference"), "cuda": ("triton", "reference")},
    "code_scan": {"cpu": ("cpu", "reference"), "cuda": ("triton", "reference")},
    "residual_scan": {"cpu": ("cpu", "reference"), "cuda": ("reference",)},
    "hamming": {"cpu": ("cpu", "reference"), "cuda": ("reference",)},
    "adam": {"cpu": ("cpu", "reference"), "cuda": ("triton", "reference")},
    "selective_scan": {
        "cpu": ("cpu", "chunked", "looped", "reference"),
        "cuda": ("triton", "mamba_ssm", "chunked", "looped", "reference"),
    },
    "causal_conv": {"cpu": ("cpu", "reference"), "cuda": ("triton", "reference")},
}

_forced: dict[str, str] = {}
_told: set[tuple[str, str]] = set()


@dataclass(frozen=True, slots=True)
class Candidate:
    """One backend of an operation; `reason` is None when it can run here."""

    name: str
    reason: str | None


def operations() -> tuple[str, ...]:
    """Names of all operations."""
    return tuple(_ORDER)


def _module(op: str, name: str) -> ModuleType:
    return importlib.import_module(f"compress3g.kernels.{op}.{name}")


def candidates(op: str, device_type: str) -> list[Candidate]:
    """All backends of `op` on "cpu" or "cuda", best first, each with the reason it cannot run."""
    return [Candidate(n, _module(op, n).usable()) for n in _ORDER[op].get(device_type, ())]


def _wanted(op: str) -> str | None:
    if op in _forced:
        return _forced[op]
    for pair in os.environ.get("COMPRESS3G_BACKEND", "").split(","):
        name, _, backend = pair.partition("=")
        if name.strip() == op and backend:
            return backend.strip()
    return None


def active(op: str, device_type: str, backend: str = "auto") -> str:
    """Name of the backend that runs `op` on this device type now, or of the one asked for.

    Raises BackendError when a backend was asked for that does not exist or cannot run.
    """
    order = _ORDER[op].get(device_type, ("reference",))
    wanted = _wanted(op) if backend == "auto" else backend
    if wanted is not None:
        if wanted not in order:
            raise BackendError(
                f"{op} has no backend {wanted!r} on {device_type}: use {', '.join(order)}"
            )
        reason = _module(op, wanted).usable()
        if reason is not None:
            raise BackendError(f"backend {wanted!r} of {op} cannot run here: {reason}")
        return wanted
    for position, name in enumerate(order):
        reason = _module(op, name).usable()
        if reason is None:
            return name
        if (op, name) not in _told:
            _told.add((op, name))
            _log.info(
                "%s: %s -> %s (%s)", op, name, order[min(position + 1, len(order) - 1)], reason
            )
    raise BackendError(f"no backend of {op} runs on {device_type}")


# A compiled graph keeps the backend that was active when it was traced.
torch.compiler.assume_constant_result(active)


def pick(op: str, device: torch.device, backend: str = "auto") -> ModuleType:
    """The backend module that runs `op` on `device`; `backend` names one for this call only."""
    # `active` has imported it. torch.compile traces this look-up, but not `import_module`: what it
    # shall find must be there before, see `import_all`.
    return sys.modules[f"compress3g.kernels.{op}.{active(op, device.type, backend)}"]


def import_all(op: str) -> None:
    """Imports the backends of `op` for the devices of this machine, so that it can be compiled."""
    for device_type in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for name in _ORDER[op].get(device_type, ()):
            _module(op, name)


@contextmanager
def use(**backends: str) -> Iterator[None]:
    """Forces backends, given by operation, inside the block.

    >>> with use(hash_grid="reference"):
    ...     active("hash_grid", "cpu")
    'reference'
    """
    unknown = set(backends) - set(_ORDER)
    if unknown:
        raise BackendError(f"no operation {sorted(unknown)[0]!r}: use {', '.join(_ORDER)}")
    before = dict(_forced)
    _forced.update(backends)
    try:
        yield
    finally:
        _forced.clear()
        _forced.update(before)


def use_everywhere(name: str) -> dict[str, str]:
    """The argument for `use` that puts every operation on `name` where it has such a backend.

    "auto" forces nothing. Raises BackendError when no operation has a backend of that name.
    """
    if name == "auto":
        return {}
    chosen = {
        op: name for op, order in _ORDER.items() if any(name in names for names in order.values())
    }
    if not chosen:
        known = sorted({n for order in _ORDER.values() for names in order.values() for n in names})
        raise BackendError(f"no backend {name!r}: use auto, {', '.join(known)}")
    return chosen
