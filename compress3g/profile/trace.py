"""Which kernels a function spends its time in, and how much of it in none."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

from ..engine.checkpoint import atomic_write


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One kernel or operator of a trace."""

    name: str
    calls: int
    ms: float  # its own time, that of the operators it calls excluded


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Where the time of one call went, as torch's profiler saw it (which slows the call down)."""

    kernels: tuple[Kernel, ...]  # most time first
    total_ms: float
    outside_ms: float  # inside no kernel: Python, launches, waiting


def record_trace(
    fn: Callable[[], Any], path: Path | None = None, *, device: str = "cpu", top: int = 15
) -> Trace:
    """The kernels of one call of `fn`; `path` receives a trace for chrome://tracing or Perfetto.

    On a CPU a kernel is a torch operator, our own C kernels are outside; on CUDA it is what the
    device runs. OSError passes through when `path` cannot be written.
    """
    cuda = device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    # The first profile of a process sets the tracer up, which takes longer than most functions.
    with torch_profile(activities=activities):
        fn()
    with torch_profile(activities=activities) as profiler:
        began = time.perf_counter()
        fn()
        if cuda:
            torch.cuda.synchronize(device)
        total = (time.perf_counter() - began) * 1e3
    if path is not None:
        _write(profiler, path)
    events = [e for e in profiler.events() if _is_kernel(e, cuda)]
    own = "self_device_time_total" if cuda else "self_cpu_time_total"
    sums: dict[str, tuple[int, float]] = {}
    for event in events:
        calls, ms = sums.get(event.name, (0, 0.0))
        sums[event.name] = calls + 1, ms + getattr(event, own) * 1e-3
    ranked = sorted(sums.items(), key=lambda item: -item[1][1])[:top]
    inside = covered((e.time_range.start, e.time_range.end) for e in events) * 1e-3
    return Trace(
        kernels=tuple(Kernel(name=name, calls=calls, ms=ms) for name, (calls, ms) in ranked),
        total_ms=total,
        outside_ms=max(0.0, total - inside),
    )


def _is_kernel(event: Any, cuda: bool) -> bool:
    on_device = event.device_type == torch.autograd.DeviceType.CUDA  # type: ignore[attr-defined]
    if cuda or on_device:
        return cuda and on_device
    return "::" in event.name and not event.name.startswith(("autograd::", "torch::autograd"))


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals.

    >>> covered([(0, 2), (1, 3), (5, 6)])
    4.0
    """
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def _write(profiler: Any, path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        data = file.read_bytes()
    atomic_write(path, lambda out: out.write(data))
