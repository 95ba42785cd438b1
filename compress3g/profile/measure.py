"""All measurements of one function, each in a run of its own so that none disturbs another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from torch import nn

from .clock import measure_latency
from .count import count_flops, size_of
from .environment import environment
from .memory import measure_memory
from .power import counter_for, measure_energy
from .report import Profile
from .roofline import Roofline, peaks_of
from .trace import record_trace


def profile(
    fn: Callable[[], Any],
    *,
    model: nn.Module | None = None,
    latency: bool = True,
    memory: bool = True,
    flops: bool = True,
    energy: bool | Literal["auto"] = "auto",
    trace: Path | None = None,
    seconds: float = 2.0,
    name: str | None = None,
) -> Profile:
    """What one call of `fn` costs: operations, time, memory, energy.

    fn: runs one iteration, the same work every time. It is called many times.
    model: whose parameters are counted, and count as there before the call.
    energy: "auto" measures where a counter can be read, True says why not in `energy.source`.
    trace: receives a Chrome trace; the kernels of that call come with the profile.
    seconds: of samples, after a warm-up of at most as long.
    The roofline needs all of latency, memory and flops; its first use on a machine measures the
    machine's peaks for two seconds and remembers them.

    >>> import torch
    >>> a = torch.ones(8, 8)
    >>> profile(lambda: a @ a, seconds=0.01, memory=False).flops
    1024
    """
    counted = count_flops(fn)  # also says where the work is done
    device = counted.device
    size = size_of(model) if model is not None else None
    used = measure_memory(fn, model=model) if memory else None
    took = measure_latency(fn, seconds=seconds, device=device) if latency else None
    roofline = None
    if used is not None and took is not None and flops:
        roofline = Roofline(
            flops=counted.total,
            traffic=used.traffic,
            peaks=peaks_of(device),
            achieved_ms=took.p50,
        )
    counter = counter_for(device) if energy else None
    wanted = energy is True or (energy and not isinstance(counter, str))
    spent = measure_energy(fn, device=device, seconds=seconds, counter=counter) if wanted else None
    recorded = record_trace(fn, trace, device=device) if trace is not None else None
    return Profile(
        name=name or str(getattr(fn, "__qualname__", type(fn).__name__)),
        device=device,
        params=size.params if size else 0,
        bytes=size.bytes if size else 0,
        flops=counted.total if flops else None,
        flops_by_op=counted.by_op if flops else {},
        uncounted_ops=counted.uncounted if flops else {},
        latency=took,
        peak_bytes=used.peak if used else None,
        saved_bytes=used.saved if used else None,
        energy_j=spent.joules if spent else None,
        roofline=roofline,
        env=environment(device),
        size=size,
        memory=used,
        energy=spent,
        trace=recorded,
    )
