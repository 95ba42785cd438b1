"""What a pipeline's denoiser costs: parameters, operations, bytes, time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..profile import Ratio, compare, count_flops, measure_latency, size_of
from ..profile.quantities import byte_size, milliseconds, operations
from .pipelines import a_call, denoiser_of
from .pruned_models import is_pruned


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One call of the denoiser, as its pipeline makes it for `batch` prompts.

    bytes: of parameters; macs: multiply-adds; latency_ms: the median, None where it was
    not timed; pruned: of which method and ratio, when it was pruned.
    """

    denoiser: str
    params: int
    bytes: int
    macs: int
    latency_ms: float | None
    batch: int
    device: str
    pruned: str | None = None

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)

    def __str__(self) -> str:
        cost = operations(self.macs, "MAC")
        if self.latency_ms is not None:
            cost += f", {milliseconds(self.latency_ms)}"
        rows = [
            ("denoiser", self.denoiser + (f" ({self.pruned})" if self.pruned else "")),
            ("parameters", f"{self.params:,}"),
            ("bytes", byte_size(self.bytes)),
            ("per call", cost),
        ]
        return "\n".join(f"{name:14}{value}" for name, value in rows)


def report(
    pipe: Any,
    *,
    prompts: Sequence[str] = ("",),
    guidance: float | None = None,
    seconds: float | None = 1.0,
) -> Report:
    """Parameters, bytes, multiply-adds and time of a denoiser.

    prompts: decide the batch; classes for a pipeline of classes. seconds: of timing, None
    for none: times that are not taken in turn do not say which of two pipelines is faster.
    """
    denoiser: Any = denoiser_of(pipe)[1]
    again = a_call(pipe, prompts, guidance=guidance)
    size = size_of(denoiser)
    flops = count_flops(again)
    latency = (
        None if seconds is None
        else measure_latency(again, seconds=seconds, device=flops.device).p50
    )  # fmt: skip
    about = denoiser.config.get("compress3g") if is_pruned(denoiser) else None
    return Report(
        denoiser=type(denoiser).__name__,
        params=size.params,
        bytes=size.bytes,
        macs=flops.total // 2,
        latency_ms=latency,
        batch=len(prompts),
        device=flops.device,
        pruned=None if about is None else _pruned(about),
    )


def _pruned(about: Mapping[str, Any]) -> str:
    return f"{about['method']}, {about['ratio']:g} of the {about.get('cost', 'params')} removed"


def race(
    dense: Any,
    pruned: Any,
    *,
    prompts: Sequence[str] = ("",),
    guidance: float | None = None,
    seconds: float = 5.0,
) -> Ratio:
    """Time of the pruned denoiser over that of the dense one, from neighbouring runs in turn."""
    calls = [a_call(pipe, prompts, guidance=guidance) for pipe in (dense, pruned)]
    return compare(*calls, seconds=seconds, device=count_flops(calls[0]).device)
