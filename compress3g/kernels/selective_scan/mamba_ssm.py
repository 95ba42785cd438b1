"""The scan by mamba_ssm's CUDA kernel, which knows nothing of holes, through an exact rewrite.

With d' = d + G and u' = u d / d', its recurrence exp(d' A) h + d' B u' is ours: exp((d + G) A) h
+ d B u. The skip, the gate and the softplus lie outside. Its states have no gradient and start from
zero: a call with either goes to another backend. Slower so than the scan in Triton, which is asked
first: by itself its forward pass takes as long, and less with gradients (benchmarks/mamba_gpu.py).
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from . import chunked, triton
from ._around import run
from ._inputs import Inputs, Outputs


@functools.cache
def _library() -> tuple[Any, str | None]:
    # Built for another torch or without CUDA it fails with whatever its loader raises.
    try:
        found = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    except Exception as error:
        return None, " ".join(str(error).split()) or type(error).__name__
    # Since 2.3 it installs without its compiled scan unless told to, and says so at the first call.
    if getattr(found, "selective_scan_cuda", found) is None:
        return None, (
            "mamba_ssm was installed without its CUDA scan: MAMBA_KEEP_CUDA_BUILD=TRUE "
            "pip install --force-reinstall --no-deps --no-build-isolation mamba-ssm"
        )
    return found, None


def usable() -> str | None:
    """None, or mamba_ssm's own message why it does not import."""
    reason = _library()[1]
    if reason is None and not torch.cuda.is_available():
        return "no CUDA device is visible to torch"
    return reason


def _recurrence(
    decay: Float[Tensor, "b l e"],
    drive: Float[Tensor, "b l e"],
    A: Float[Tensor, "e n"],
    B: Float[Tensor, "b g l n"],
    C: Float[Tensor, "b g l n"],
    state: Float[Tensor, "b e n"],
) -> tuple[Float[Tensor, "b l e"], Float[Tensor, "b e n"]]:
    # A step of size 0 has no drive either.
    u = drive / torch.where(decay == 0, 1.0, decay)
    steps_last = [t.transpose(-1, -2).contiguous() for t in (u, decay, B, C)]
    y = _library()[0].selective_scan_fn(*steps_last[:2], A, *steps_last[2:])
    return y.transpose(1, 2), state


def _other(x: Inputs) -> ModuleType:
    single = x.u.is_cuda and x.dtype != torch.float64
    return triton if single and triton.usable() is None else chunked


def scan(x: Inputs, *, ungated: bool, last_state: bool) -> Outputs:
    """Outputs, differentiable by autograd."""
    # Its own limit is 256 states, and it has no double precision.
    if last_state or x.initial_state is not None or x.A.shape[1] > 256 or x.dtype == torch.float64:
        found: Outputs = _other(x).scan(x, ungated=ungated, last_state=last_state)
        return found
    return run(x, _recurrence)
