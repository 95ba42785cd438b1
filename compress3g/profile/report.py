"""What was measured, as data, as JSON and as Markdown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from . import quantities as q
from .clock import Latency, Ratio
from .count import Size
from .memory import Memory
from .power import Energy
from .roofline import Roofline
from .trace import Trace

SCHEMA = "compress3g.profile/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Everything measured of one function; None where it was not asked for or cannot be known."""

    name: str
    device: str
    params: int  # of the model, tied weights once; 0 without a model
    bytes: int  # of its parameters
    flops: int | None  # 2 per multiply-add
    flops_by_op: dict[str, int]
    uncounted_ops: dict[str, int]  # calls of operators that `flops` leaves out
    latency: Latency | None
    peak_bytes: int | None
    saved_bytes: int | None  # kept for the backward pass
    energy_j: float | None  # per call
    roofline: Roofline | None
    env: dict[str, str] = field(repr=False)
    size: Size | None = None
    memory: Memory | None = None
    energy: Energy | None = None
    trace: Trace | None = None

    @property
    def macs(self) -> int | None:
        """Multiply-adds: half the FLOPs."""
        return None if self.flops is None else self.flops // 2

    def to_json(self) -> dict[str, Any]:
        """Plain values, every sample among them."""
        plain = asdict(self)
        plain["macs"] = self.macs
        if self.latency is not None:
            found = self.latency
            plain["latency"] |= {
                "unit": "ms", "p10": found.p10, "p50": found.p50, "p90": found.p90,
                "min": found.min, "n": found.n,
            }  # fmt: skip
        if self.roofline is not None:
            roof = self.roofline
            plain["roofline"] |= {
                "intensity": roof.intensity, "compute_floor_ms": roof.compute_floor_ms,
                "bandwidth_floor_ms": roof.bandwidth_floor_ms, "floor_ms": roof.floor_ms,
                "achieved_over_floor": roof.achieved_over_floor,
            }  # fmt: skip
        return plain


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One profile, or two and which of them is faster."""

    profile: Profile
    against: Profile | None = None
    comparison: Ratio | None = None

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """The one or two profiles."""
        return (self.profile,) if self.against is None else (self.profile, self.against)

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the version of their schema."""
        return {
            "schema": SCHEMA,
            "env": self.profile.env,
            "profile": self.profile.to_json(),
            "against": None if self.against is None else self.against.to_json(),
            "comparison": None if self.comparison is None else _ratio(self.comparison),
        }

    def to_markdown(self) -> str:
        """A heading line, the verdict of a comparison, and a table of figures."""
        lines = [self.first_line(), ""]
        if self.comparison is not None:
            lines += [verdict(self), ""]
        names = [p.name for p in self.profiles]
        lines += [f"| | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
        lines += [f"| {label} | {' | '.join(cells)} |" for label, cells in rows(self)]
        for p in self.profiles:
            if p.trace is not None:
                lines += ["", *_kernels(p.name, p.trace)]
        env = self.profile.env
        lines += ["", ", ".join(f"{key} {env[key]}" for key in ("cpu", "threads", "load", "torch"))]
        return "\n".join(lines) + "\n"

    def first_line(self) -> str:
        """Device, and what the FLOPs leave out: nobody may read them without knowing."""
        missing: dict[str, int] = {}
        for p in self.profiles:
            missing |= p.uncounted_ops
        where = f"{' against '.join(p.name for p in self.profiles)} on {self.profile.device}"
        if not missing:
            return f"# {where}"
        names = [name.removeprefix("aten.") for name in missing]
        shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        return f"# {where}; FLOPs leave out {len(names)} operators: {shown}"


def _ratio(ratio: Ratio) -> dict[str, Any]:
    """Plain values; of the samples only their medians, which are in the profiles."""
    plain = asdict(ratio) | {"winner": ratio.winner, "a_ms": ratio.a.p50, "b_ms": ratio.b.p50}
    return {key: value for key, value in plain.items() if key not in ("a", "b")}


def verdict(report: Report) -> str:
    """Which one is faster, or that nothing can be said."""
    ratio = report.comparison
    if ratio is None or report.against is None:
        return ""
    interval = f"95 % interval {ratio.low:.3f} to {ratio.high:.3f}, {len(ratio.ratios)} pairs"
    a, b = report.profile.name, report.against.name
    if ratio.winner is None:
        return f"No winner: {b} takes {ratio.median:.3f} times as long as {a} ({interval})."
    fast, slow = (a, b) if ratio.winner == "a" else (b, a)
    times = ratio.median if ratio.winner == "a" else 1 / ratio.median
    said = f"time ratio {ratio.median:.3f}, {interval}"
    return f"{fast} is {times:.3f} times as fast as {slow} ({said})."


def _roof(p: Profile) -> str | None:
    over = None if p.roofline is None else p.roofline.achieved_over_floor
    return None if over is None else f"{q.digits(over, 3)}x"


def _energy(p: Profile) -> str | None:
    if p.energy is None:
        return None
    return q.joules(p.energy.joules) if p.energy.joules is not None else "not measured"


def _reserved(p: Profile) -> str | None:
    if p.memory is None or p.memory.reserved is None:
        return None
    return q.byte_size(p.memory.reserved)


def _samples(p: Profile) -> str | None:
    return f"{p.latency.n:,} x {q.plural(p.latency.calls, 'call')}" if p.latency else None


def _bandwidth(p: Profile) -> str | None:
    return q.milliseconds(p.roofline.bandwidth_floor_ms) if p.roofline else None


def _outside(p: Profile) -> str | None:
    return q.percent(p.trace.outside_ms / p.trace.total_ms) if p.trace else None


_ROWS: tuple[tuple[str, Callable[[Profile], str | None]], ...] = (
    ("latency, median", lambda p: q.milliseconds(p.latency.p50) if p.latency else None),
    ("latency, 10 %", lambda p: q.milliseconds(p.latency.p10) if p.latency else None),
    ("latency, 90 %", lambda p: q.milliseconds(p.latency.p90) if p.latency else None),
    ("latency, fastest", lambda p: q.milliseconds(p.latency.min) if p.latency else None),
    ("samples", _samples),
    ("FLOPs", lambda p: None if p.flops is None else q.operations(p.flops)),
    ("MACs (FLOPs / 2)", lambda p: None if p.macs is None else q.operations(p.macs, "MAC")),
    ("parameters", lambda p: f"{p.size.params:,}" if p.size else None),
    ("parameter bytes", lambda p: q.byte_size(p.size.bytes) if p.size else None),
    ("buffer bytes", lambda p: q.byte_size(p.size.buffer_bytes) if p.size else None),
    ("bytes on disk", lambda p: q.byte_size(p.size.state_bytes) if p.size else None),
    ("peak memory", lambda p: q.byte_size(p.memory.peak) if p.memory else None),
    ("reserved memory", _reserved),
    ("saved for backward", lambda p: None if p.saved_bytes is None else q.byte_size(p.saved_bytes)),
    ("resident growth", lambda p: q.byte_size(p.memory.resident) if p.memory else None),
    ("energy per call", _energy),
    ("FLOP per byte", lambda p: q.digits(p.roofline.intensity, 3) if p.roofline else None),
    (
        "compute floor",
        lambda p: q.milliseconds(p.roofline.compute_floor_ms) if p.roofline else None,
    ),
    ("bandwidth floor", _bandwidth),
    ("achieved / floor", _roof),
    ("outside any kernel", _outside),
)


def rows(report: Report) -> list[tuple[str, list[str]]]:
    """Labels and one cell per profile, without rows of which nothing is known."""
    table = [(label, [show(p) or "-" for p in report.profiles]) for label, show in _ROWS]
    return [(label, cells) for label, cells in table if set(cells) != {"-"}]


def _kernels(name: str, trace: Trace) -> list[str]:
    lines = [f"| {name}: kernel | calls | own time |", "|---|---:|---:|"]
    return lines + [f"| {k.name} | {k.calls:,} | {q.milliseconds(k.ms)} |" for k in trace.kernels]
