"""How long a function takes, and which of two is faster."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, exp
from statistics import median
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch

from ..errors import ConfigError
from .interval import median_interval

Kind = Literal["wall", "cpu"]

_SHORTEST = 2e-4  # seconds a sample takes at least: the clock and the loop then cost below 0.1 %
_STEADY = 0.05
_WINDOW = 5
_MOST = 100_000  # samples of one measurement
_FEWEST_QUADS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Milliseconds per call: every sample, and what they say."""

    samples: tuple[float, ...]  # in the order they were taken; each the mean of `calls` calls
    calls: int  # per sample
    warmup: int  # calls before the first sample
    steady: bool  # whether medians of five had settled within 5 % by then
    clock: str

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.samples)

    @property
    def min(self) -> float:
        """The fastest sample."""
        return min(self.samples)

    def quantile(self, q: float) -> float:
        """The sample below which a fraction `q` lies, interpolated."""
        return float(np.quantile(self.samples, q))

    @property
    def p10(self) -> float:
        """A tenth of the samples is faster."""
        return self.quantile(0.1)

    @property
    def p50(self) -> float:
        """The median."""
        return self.quantile(0.5)

    @property
    def p90(self) -> float:
        """A tenth of the samples is slower."""
        return self.quantile(0.9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Time of `b` over time of `a`, from pairs of neighbouring samples."""

    median: float
    low: float  # 95 % interval of the median
    high: float
    ratios: tuple[float, ...]  # one per pair, in order; two pairs make a quad
    a: Latency  # samples of both, taken in turn
    b: Latency

    @property
    def winner(self) -> Literal["a", "b"] | None:
        """The faster one; None when the interval contains 1 and nothing can be said."""
        if self.low > 1:
            return "a"
        return "b" if self.high < 1 else None


@runtime_checkable
class _Clock(Protocol):
    name: str

    def __call__(self, fn: Callable[[], Any], calls: int) -> float:
        """Seconds of `calls` calls."""


class _HostClock:
    name = "perf_counter_ns"

    def __call__(self, fn: Callable[[], Any], calls: int) -> float:
        began = time.perf_counter_ns()
        for _ in range(calls):
            fn()
        return (time.perf_counter_ns() - began) * 1e-9


class _ProcessorClock:
    """Time that all threads of this process spent on processors: waiting for one does not count."""

    name = "process_time_ns"

    def __call__(self, fn: Callable[[], Any], calls: int) -> float:
        began = time.process_time_ns()
        for _ in range(calls):
            fn()
        return (time.process_time_ns() - began) * 1e-9


class _CudaClock:
    """Events on the device's stream; the second-level cache is overwritten before every sample."""

    name = "cuda events"

    def __init__(self, device: torch.device) -> None:
        size = torch.cuda.get_device_properties(device).L2_cache_size
        self._flush = torch.empty(max(2 * size, 1 << 22), dtype=torch.uint8, device=device)
        self._device = device

    def __call__(self, fn: Callable[[], Any], calls: int) -> float:
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.zero_()
        with torch.cuda.device(self._device):
            first.record()
            for _ in range(calls):
                fn()
            last.record()
        last.synchronize()
        return float(first.elapsed_time(last)) * 1e-3


def _clock(device: str, kind: Kind) -> _Clock:
    if device.startswith("cuda"):
        if kind == "cpu":
            raise ConfigError(f"processor time says nothing about work on {device}: use clock wall")
        return _CudaClock(torch.device(device))
    return _ProcessorClock() if kind == "cpu" else _HostClock()


def _check(seconds: float) -> None:
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"seconds must be positive, got {seconds}")


def _warm_up(clock: _Clock, fn: Callable[[], Any], seconds: float) -> tuple[int, bool, float]:
    """Calls made, whether they settled, and seconds of one call.

    Settled: the median of the last five is within 5 % of that of the five before.
    """
    times: list[float] = []
    until = time.perf_counter() + seconds
    while True:
        times.append(clock(fn, 1))
        recent, older = times[-_WINDOW:], times[-2 * _WINDOW : -_WINDOW]
        if len(older) == _WINDOW and abs(median(recent) / median(older) - 1) <= _STEADY:
            return len(times), True, median(recent)
        if time.perf_counter() > until:
            return len(times), False, median(recent)


def _calls(clock: _Clock, single: float) -> int:
    """Calls per sample: many when they are short, one on a device whose cache is flushed."""
    if isinstance(clock, _CudaClock):
        return 1
    return max(1, ceil(_SHORTEST / max(single, 1e-9)))


def measure_latency(
    fn: Callable[[], Any], *, seconds: float = 2.0, device: str = "cpu", clock: Kind = "wall"
) -> Latency:
    """Milliseconds of a call of `fn`, sampled for `seconds` after a warm-up that ends by itself.

    device: "cpu" times the call from outside; "cuda:N" times the device, with cold second-level
    cache, and leaves out what the host does meanwhile. At least 5 samples are taken.
    clock: "wall", or "cpu" for the time processors spent on it, summed over threads.
    Raises ConfigError unless seconds is positive.
    """
    _check(seconds)
    timer = _clock(device, clock)
    warm = _warm_up(timer, fn, seconds)
    calls = _calls(timer, warm[2])
    samples: list[float] = []
    until = time.perf_counter() + seconds
    while len(samples) < _WINDOW or (time.perf_counter() < until and len(samples) < _MOST):
        samples.append(timer(fn, calls))
    return _latency(np.array(samples), calls, warm, timer)


def compare(
    a: Callable[[], Any],
    b: Callable[[], Any],
    *,
    seconds: float = 5.0,
    device: str = "cpu",
    clock: Kind = "wall",
    seed: int = 0,
) -> Ratio:
    """How many times as long `b` takes as `a`: median ratio of neighbours, and its 95 % interval.

    Both run in turn, in quads ABBA or BAAB by the toss of a coin, for `seconds` and at least five
    quads. What slows the machine down then hits both alike: drift cancels within a quad, and
    whatever does not cancel has a random sign. `interval.py` says how the interval comes about.
    A function that runs longer than the scheduler's slice (some ms) is disturbed in every call on a
    busy machine: there clock="cpu" sees differences that "wall" cannot.
    Raises ConfigError unless seconds is positive.

    >>> from time import sleep
    >>> compare(lambda: sleep(0.001), lambda: sleep(0.002), seconds=0.2).winner
    'a'
    """
    _check(seconds)
    timer, generator = _clock(device, clock), np.random.default_rng(seed)
    warm = [_warm_up(timer, fn, seconds / 2) for fn in (a, b)]
    calls = _calls(timer, min(single for _, _, single in warm))
    times: tuple[list[float], list[float]] = ([], [])
    until = time.perf_counter() + seconds
    while len(times[0]) < 2 * _FEWEST_QUADS or (
        time.perf_counter() < until and len(times[0]) < _MOST
    ):
        first = int(generator.integers(2))
        for which in (first, 1 - first, 1 - first, first):
            times[which].append(timer((a, b)[which], calls))
    slow, fast = np.array(times[1]), np.array(times[0])
    logs = np.log(np.maximum(slow, 1e-9) / np.maximum(fast, 1e-9))
    middle, low, high = median_interval(logs.reshape(-1, 2), generator)
    return Ratio(
        median=exp(middle),
        low=exp(low),
        high=exp(high),
        ratios=tuple(np.exp(logs).tolist()),
        a=_latency(fast, calls, warm[0], timer),
        b=_latency(slow, calls, warm[1], timer),
    )


def _latency(
    seconds: npt.NDArray[np.float64], calls: int, warm: tuple[int, bool, float], clock: _Clock
) -> Latency:
    """Samples of `calls` calls each, in seconds, after that warm-up."""
    return Latency(
        samples=tuple((seconds / calls * 1e3).tolist()),
        calls=calls,
        warmup=warm[0],
        steady=warm[1],
        clock=clock.name,
    )
