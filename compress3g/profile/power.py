"""Energy from the counters of the hardware; nothing where there are none, and why."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

_RAPL = Path("/sys/class/powercap")


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """Joules of one call, or the reason why they are not known."""

    joules: float | None
    source: str  # the counter; the reason when joules is None
    calls: int = 0


@runtime_checkable
class Counter(Protocol):
    """A counter of energy that only grows."""

    source: str

    def read(self) -> float:
        """Joules since some moment."""


class Rapl:
    """Whole processor packages, through Linux's powercap files; idle power is part of it."""

    source = "RAPL, processor packages"

    def __init__(self, folder: Path = _RAPL) -> None:
        """Raises OSError when there is no counter or it may not be read."""
        self._files = sorted(folder.glob("intel-rapl:[0-9]*/energy_uj"))
        self._files = [f for f in self._files if f.parent.name.count(":") == 1]
        if not self._files:
            raise FileNotFoundError(f"no RAPL counter in {folder}")
        self._spans = [int((f.parent / "max_energy_range_uj").read_text()) for f in self._files]
        self._last = self._now()
        self._total = 0

    def _now(self) -> list[int]:
        return [int(file.read_text()) for file in self._files]

    def read(self) -> float:
        """Joules since construction; right when called before a counter wraps around twice."""
        now = self._now()
        for new, old, span in zip(now, self._last, self._spans, strict=True):
            self._total += new - old if new >= old else new - old + span
        self._last = now
        return self._total * 1e-6


class Nvml:
    """One NVIDIA device, Volta or newer; idle power is part of it."""

    def __init__(self, index: int, nvml: Any) -> None:
        """Raises nvml.NVMLError when the device has no such counter."""
        nvml.nvmlInit()
        self._nvml, self._handle = nvml, nvml.nvmlDeviceGetHandleByIndex(index)
        self.source = f"NVML, device {index}"
        self.read()

    def read(self) -> float:
        """Joules since the driver was loaded."""
        return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) * 1e-3


def counter_for(device: str) -> Counter | str:
    """The counter that sees `device` ("cpu", "cuda:0"), or the reason why there is none."""
    if device.startswith("cuda"):
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            return "nvidia-ml-py is not installed: pip install 'compress3g[gpu]'"
        try:
            return Nvml(int(device.partition(":")[2] or 0), nvml)
        except nvml.NVMLError as error:
            return f"NVML: {error}"
    try:
        return Rapl()
    except PermissionError:
        return f"only root may read the RAPL counters in {_RAPL}"
    except (OSError, ValueError) as error:
        return str(error)


def measure_energy(
    fn: Callable[[], Any],
    *,
    device: str = "cpu",
    seconds: float = 2.0,
    counter: Counter | str | None = None,
) -> Energy:
    """Joules per call, the difference of a hardware counter over calls that last `seconds`.

    Everything the counter sees is in it: other processes and what the idle hardware draws. Without
    a counter, None and the reason; never an estimate. `counter` overrides the choice by device.
    """
    counter = counter_for(device) if counter is None else counter
    if isinstance(counter, str):
        return Energy(joules=None, source=counter)
    synchronize = _synchronizer(device)
    fn()
    synchronize()
    calls, before = 0, counter.read()
    until = time.perf_counter() + seconds
    while calls == 0 or time.perf_counter() < until:
        fn()
        calls += 1
    synchronize()
    return Energy(joules=(counter.read() - before) / calls, source=counter.source, calls=calls)


def _synchronizer(device: str) -> Callable[[], None]:
    if not device.startswith("cuda"):
        return lambda: None
    import torch

    return lambda: torch.cuda.synchronize(device)
