"""The best this machine can do, measured, and how far a function is from it."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ..engine.cache import cache_folder
from ..engine.checkpoint import write_json

_log = logging.getLogger(__name__)

_SIDE = 2048  # of the multiplied matrices, 16 MB each
_COPIED = 1 << 28  # bytes: several times the last-level cache
_SECONDS = 1.0  # per peak


@dataclass(frozen=True, slots=True, kw_only=True)
class Peaks:
    """What a machine reaches, not what its vendor says."""

    flops_per_second: float  # a product of two float32 matrices of 2048 x 2048
    bytes_per_second: float  # copying 256 MB: bytes read plus bytes written (STREAM's Copy)
    machine: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """The time below which the machine cannot do this work, and the time it took."""

    flops: int
    traffic: int  # bytes that must at least move: what was there before and is read, what stays
    peaks: Peaks
    achieved_ms: float  # median latency

    @property
    def intensity(self) -> float:
        """Arithmetic intensity, FLOPs per byte."""
        return self.flops / self.traffic if self.traffic else 0.0

    @property
    def ridge(self) -> float:
        """The intensity at which the machine's two peaks take equally long."""
        return self.peaks.flops_per_second / self.peaks.bytes_per_second

    @property
    def compute_floor_ms(self) -> float:
        """Milliseconds of the arithmetic at the peak."""
        return self.flops / self.peaks.flops_per_second * 1e3

    @property
    def bandwidth_floor_ms(self) -> float:
        """Milliseconds of the traffic at the peak."""
        return self.traffic / self.peaks.bytes_per_second * 1e3

    @property
    def floor_ms(self) -> float:
        """The larger of the two."""
        return max(self.compute_floor_ms, self.bandwidth_floor_ms)

    @property
    def achieved_over_floor(self) -> float | None:
        """How many times as long as the floor it took; below 1 when the data stayed in a cache."""
        return self.achieved_ms / self.floor_ms if self.floor_ms else None


def measure_peaks(device: str = "cpu", *, side: int = _SIDE, copied: int = _COPIED) -> Peaks:
    """Both peaks of a device with the present number of threads, best of a second each."""
    a = torch.rand(side, side, device=device)
    b, product = torch.rand_like(a), torch.empty_like(a)
    gemm = _fastest(lambda: torch.mm(a, b, out=product), device)
    source = torch.ones(copied // 4, device=device)
    target = torch.zeros_like(source)
    copy = _fastest(lambda: target.copy_(source), device)
    return Peaks(
        flops_per_second=2 * side**3 / gemm,
        bytes_per_second=2 * copied / copy,
        machine=machine(device),
    )


def _fastest(fn: Callable[[], object], device: str) -> float:
    cuda = device.startswith("cuda")

    def synchronize() -> None:
        if cuda:
            torch.cuda.synchronize(device)

    best, until, tries = float("inf"), time.perf_counter() + _SECONDS, 0
    while tries < 3 or time.perf_counter() < until:
        synchronize()
        began = time.perf_counter()
        fn()
        synchronize()
        best, tries = min(best, time.perf_counter() - began), tries + 1
    return best


def machine(device: str = "cpu") -> str:
    """What peaks depend on, in words: processor or GPU, threads, torch."""
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def processor() -> str:
    """The processor's name as its vendor gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def peaks_of(device: str = "cpu", *, reached: float = 0.0) -> Peaks:
    """The peaks of this machine: from the user's cache, else measured once and kept there.

    reached: FLOP/s somebody has just seen. Peaks below it were taken while the machine was busy:
    they are taken again and the better of both is kept. (Half precision beats them for good.)
    A cache only saves time: whatever goes wrong with it is logged for the curious.
    """
    words = machine(device)
    known, file = None, None
    try:
        file = cache_folder() / f"peaks-{hashlib.sha256(words.encode()).hexdigest()[:16]}.json"
        read = Peaks(**json.loads(file.read_text()))
        if read.machine == words and min(read.flops_per_second, read.bytes_per_second) > 0:
            known = read
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        _log.debug("measuring the machine's peaks: %s", error)
    if known is not None and known.flops_per_second >= reached:
        return known
    peaks = _better(measure_peaks(device), known)
    try:
        if file is not None:
            write_json(file, asdict(peaks))
    except OSError as error:
        _log.debug("cannot keep the machine's peaks: %s", error)
    return peaks


def _better(new: Peaks, known: Peaks | None) -> Peaks:
    if known is None:
        return new
    return Peaks(
        flops_per_second=max(new.flops_per_second, known.flops_per_second),
        bytes_per_second=max(new.bytes_per_second, known.bytes_per_second),
        machine=new.machine,
    )
