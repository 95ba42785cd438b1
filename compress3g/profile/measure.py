"""All measurements of one function, each in a run of its own so that none disturbs another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from .clock import Latency, compare, measure_latency
from .count import count_flops, size_of
from .environment import environment
from .memory import measure_memory
from .power import counter_for, measure_energy
from .report import Profile, Report
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
    counter = counter_for(device) if energy else None
    wanted = energy is True or (energy and not isinstance(counter, str))
    spent = measure_energy(fn, device=device, seconds=seconds, counter=counter) if wanted else None
    recorded = record_trace(fn, trace, device=device) if trace is not None else None
    found = Profile(
        name=name or str(getattr(fn, "__qualname__", type(fn).__name__)),
        device=device,
        params=size.params if size else 0,
        bytes=size.bytes if size else 0,
        flops=counted.total if flops else None,
        flops_by_op=counted.by_op if flops else {},
        uncounted_ops=counted.uncounted if flops else {},
        latency=None,
        peak_bytes=used.peak if used else None,
        saved_bytes=used.saved if used else None,
        energy_j=spent.joules if spent else None,
        roofline=None,
        env=environment(device),
        size=size,
        memory=used,
        energy=spent,
        trace=recorded,
    )
    return _timed(found, measure_latency(fn, seconds=seconds, device=device)) if latency else found


def profile_both(
    a: Callable[[], Any],
    b: Callable[[], Any],
    *,
    models: tuple[nn.Module | None, nn.Module | None] = (None, None),
    names: tuple[str, str] | None = None,
    trace: Path | None = None,
    seconds: float = 2.0,
    seed: int = 0,
) -> Report:
    """What both cost and which is faster; their latencies are the samples of the comparison.

    Latencies measured one after the other would show how the machine's load changed in between.
    trace: of `a`. seconds: of samples, each.
    """
    named = names or (None, None)
    first = profile(a, model=models[0], latency=False, trace=trace, seconds=seconds, name=named[0])
    second = profile(b, model=models[1], latency=False, seconds=seconds, name=named[1])
    ratio = compare(a, b, seconds=2 * seconds, device=first.device, seed=seed)
    return Report(profile=_timed(first, ratio.a), against=_timed(second, ratio.b), comparison=ratio)


def _timed(p: Profile, took: Latency) -> Profile:
    """The profile with that latency, and its roofline where operations and memory are known."""
    roofline = None
    if p.memory is not None and p.flops is not None:
        roofline = Roofline(
            flops=p.flops,
            traffic=p.memory.traffic,
            peaks=peaks_of(p.device, reached=p.flops / took.p50 * 1e3),
            achieved_ms=took.p50,
        )
    return replace(p, latency=took, roofline=roofline)
