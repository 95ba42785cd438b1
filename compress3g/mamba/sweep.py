"""Accuracy of one model over many ways to prune it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

from torch import nn

from ..engine.checkpoint import atomic_write
from ..errors import ConfigError, require
from .checkpoint import Checkpoint
from .config import PruneConfig
from .data import Pictures
from .flops import flops
from .holes import Align, ConvAlign
from .models.family import blocks_of, prune_points
from .patch import pruned
from .schedule import PruneSchedule
from .scores import Score
from .train import accuracy


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One setting and what it reached."""

    keep: float
    score: str
    align: str
    conv_align: str
    top1: float
    macs_share: float

    @property
    def label(self) -> str:
        """All but the keep."""
        return f"{self.score}, align {self.align}, conv {self.conv_align}"


def grid(
    model: nn.Module,
    *,
    keeps: Sequence[float],
    layers: Sequence[int] | None = None,
    scores: Sequence[str] = ("l1",),
    aligns: Sequence[str] = ("current",),
    conv_aligns: Sequence[str] = ("zero",),
) -> list[PruneConfig | None]:
    """All combinations; a keep of 1 gives one dense setting, None.

    Raises ConfigError for names that do not exist, and schedules longer than the model.
    """
    for given, kind in ((scores, Score), (aligns, Align), (conv_aligns, ConvAlign)):
        for name in given:
            if name not in get_args(kind):
                raise ConfigError(f"no {name!r} among {', '.join(get_args(kind))}")
    depth = len(blocks_of(model))
    places = tuple(layers) if layers is not None else prune_points(model)
    made: list[PruneConfig | None] = []
    for keep in keeps:
        schedule = PruneSchedule(layers=places, keep=(keep,) * len(places))
        schedule.check(depth)
        if keep == 1:
            made.append(None)
            continue
        made += [
            PruneConfig(schedule=schedule, score=cast(Score, s), align=cast(Align, a),
                        conv_align=cast(ConvAlign, c))
            for s in scores
            for a in aligns
            for c in conv_aligns
        ]  # fmt: skip
    return made


def curve(
    checkpoint: Checkpoint,
    pictures: Pictures,
    settings: Sequence[PruneConfig | None],
    *,
    batch: int = 50,
) -> list[Point]:
    """Accuracy under each setting, in their order."""
    model, dense = checkpoint.model, flops(checkpoint.model).total
    points = []
    for setting in settings:
        with pruned(model, setting):
            top1 = accuracy(model, pictures, checkpoint.preprocess, batch=batch)
        if setting is None:
            points.append(Point(keep=1.0, score="-", align="-", conv_align="-", top1=top1,
                                macs_share=1.0))  # fmt: skip
            continue
        points.append(
            Point(
                keep=setting.schedule.keep[0],
                score=setting.score,
                align=setting.align,
                conv_align=setting.conv_align,
                top1=top1,
                macs_share=flops(model, setting.schedule).total / dense,
            )
        )
    return points


def table(points: Sequence[Point]) -> str:
    """Markdown, a row per setting."""
    lines = ["| keep | score | scan align | conv align | top-1 | multiply-adds |", "|---" * 6 + "|"]
    lines += [
        f"| {p.keep:g} | {p.score} | {p.align} | {p.conv_align} | {p.top1:.2f} % "
        f"| {p.macs_share:.0%} |"
        for p in points
    ]
    return "\n".join(lines) + "\n"


def write(path: Path, points: Sequence[Point]) -> None:
    """The points as .json, .md or .png, by the name's ending."""
    if path.suffix == ".png":
        _plot(path, points)
        return
    if path.suffix == ".md":
        text = table(points)
    else:
        rows = [{name: getattr(p, name) for name in p.__slots__} for p in points]
        text = json.dumps(rows, indent=1) + "\n"
    atomic_write(path, lambda file: file.write(text.encode()))


def _plot(path: Path, points: Sequence[Point]) -> None:
    """A line per score and alignment over multiply-adds, through the dense model."""
    require("matplotlib", extra="dev", purpose="plots of sweeps")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.add_subplot()
    dense = [p for p in points if p.score == "-"]
    for label in dict.fromkeys(p.label for p in points if p.score != "-"):
        line = sorted(dense + [p for p in points if p.label == label], key=lambda p: p.macs_share)
        shares, reached = [100 * p.macs_share for p in line], [p.top1 for p in line]
        axes.plot(shares, reached, marker="o", markersize=4, label=label)
    axes.set_xlabel("multiply-adds, % of the dense model")
    axes.set_ylabel("top-1, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    atomic_write(path, lambda file: figure.savefig(file, format="png", dpi=130))
