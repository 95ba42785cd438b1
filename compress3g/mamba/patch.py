"""Pruning of tokens put on a model and taken off it again; weights and their names stay."""

from __future__ import annotations

import math
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import ConfigError
from .config import Preset, PruneConfig
from .config import preset as preset_config
from .holes import Align, ConvAlign, Holes, record
from .models import windows
from .models.bimamba import Mixed
from .models.family import Family, Grid, Parts, family_of, prune_points
from .schedule import PruneSchedule
from .scores import NEED_CLS, Score, score_tokens
from .select import METHODS, UNSCORED, Method, Reduced, Stream, centred, drop_ragged

_PATCH = "_token_pruning"
_INFO = "_token_info"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenInfo:
    """What the last forward pass kept: original indices, the class token's among them.

    kept[0] are all tokens and kept[i] those after prune point i, on the grid grids[i] of its stage;
    padding of images that kept fewer, or of windows beyond the grid, has index -1. scores and gaps
    are of the prune points at which tokens went. `fate` says for each original token at which point
    it went; one more than there are points for those that stay. A model of stages has none: its
    tokens come back.
    """

    grids: tuple[Grid, ...]
    kept: tuple[Int[Tensor, "b _"], ...]
    scores: tuple[Float[Tensor, "_ _"], ...]  # of the tokens before; a row is an image or a window
    gaps: tuple[Int[Tensor, "_ _"], ...]  # positions missing before each token, forward
    fate: Int[Tensor, "b n"] | None


class TokenPruning:
    """Runs a model with fewer and fewer tokens.

    gates: with `align="learned"`, logits g (blocks, directions, E) to be trained; else None.
    """

    def __init__(self, model: Any, config: PruneConfig, *, trace: bool = False) -> None:
        self.family, self.config, self.trace = family_of(model), config, trace
        blocks = self.family.blocks(model)
        config.schedule.check(len(blocks))
        _check_settings(self.family, config)
        _check_points(self.family, model, config)
        self.info: TokenInfo | None = None
        self.gates: nn.Parameter | None = None
        if config.align == "learned":
            widest = max(self.family.inner(block) for block in blocks)
            shape = len(blocks), self.family.directions, widest
            device = next(model.parameters()).device
            self.gates = nn.Parameter(torch.full(shape, 4.0, device=device))

    def __call__(self, model: Any, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes"]:
        """Logits after all blocks."""
        run = _Run(self, *self.family.start(model, images))
        stream = self._through(model, run)
        if self.trace:
            self.info = run.info()
            setattr(model, _INFO, self.info)
        return self.family.finish(model, stream.parts, stream.cls)

    def feature_map(self, model: Any, images: Tensor) -> Float[Tensor, "b d rows columns"]:
        """Features of all patches; those that went keep the value they had when they did."""
        run = _Run(self, *self.family.start(model, images))
        run.keep_values()
        stream = self._through(model, run)
        return self.family.as_map(model, run.painted(stream), run.grid)

    def _through(self, model: Any, run: _Run) -> Stream:
        """The stream after the last block."""
        stream, schedule = run.stream, self.config.schedule
        last = self.family.last_blocks(model)
        for number, layer in enumerate(self.family.blocks(model), start=1):
            point = schedule.layers.index(number) if number in schedule.layers else None
            goes = point is not None and run.goes(point, stream)
            inside = goes and self.config.method not in UNSCORED
            holes = run.holes(number, self.family.inner(layer))
            parts, mixed = self.family.step(layer, stream.parts, run.grid, holes, inside)
            stream = replace(stream, parts=parts)
            if point is not None and goes:
                stream = run.prune(point, stream, mixed)
            elif point is not None:
                run.keep_all()
            if number in last:
                assert self.family.leave is not None
                whole = (run.painted(stream),)
                stream = run.enter(*self.family.leave(model, last[number], whole, run.grid))
        return stream


def _check_points(family: Family, model: Any, config: PruneConfig) -> None:
    """Raises ConfigError for prune points of a model of stages that would save nothing."""
    if family.leave is None:
        return
    for layer in config.schedule.layers:
        if layer in family.last_blocks(model):
            reason = "ends a stage, after which all tokens are back"
        elif not family.scans(family.blocks(model)[layer - 1]):
            reason = "has no scan to score tokens by"
        else:
            continue
        good = ", ".join(map(str, family.usable(model)))
        raise ConfigError(f"{family.name}: block {layer} {reason}: prune after blocks of {good}")


def _check_settings(family: Family, config: PruneConfig) -> None:
    """Raises ConfigError for what a model without class token, on a grid, cannot have."""
    if family.has_cls:
        return
    reasons = {
        f"score {config.score} needs a class token": config.score in NEED_CLS,
        f"score {config.score} needs a gate": config.score == "gated" and not family.gated,
        "align recorded follows the two scans of Vim": config.align == "recorded",
        "align size makes the steps of Vim's scans longer": config.align == "size",
        "align masked is an oracle for Vim": config.align == "masked",
        "a 2-D convolution has no last token: use conv_align zero": (
            family.plane and config.conv_align == "hold"
        ),
        "mode threshold needs sequences that can be padded": config.schedule.mode == "threshold",
        "without convolution alignment the tokens close up to a smaller grid that has no gaps: "
        "use align none": (
            family.plane and config.conv_align == "none" and config.align not in ("none", "hold")
        ),
    }
    for reason, holds in reasons.items():
        if holds:
            raise ConfigError(f"{family.name}: {reason}")


class _Run:
    """Tokens that are left while one batch goes through the blocks."""

    def __init__(
        self, pruning: TokenPruning, parts: Parts, cls: Int[Tensor, "b"] | None, grid: Grid
    ) -> None:
        self._pruning, self._config = pruning, pruning.config
        self._kept: list[Tensor] = []
        self._grids: list[Grid] = []
        self._scores: list[Tensor] = []
        self._gaps: list[Tensor] = []
        self._recorded: tuple[Tensor, Tensor] | None = None
        self._canvas: Tensor | None = None  # features of all positions, when somebody wants them
        self.stream = self.enter(parts, grid, cls)
        self.keep_all()

    def enter(self, parts: Parts, grid: Grid, cls: Int[Tensor, "b"] | None = None) -> Stream:
        """The stream of all tokens with which a stage begins."""
        stream = Stream(parts=parts, cls=cls)
        self.grid, self._length = grid, stream.tokens
        everywhere = torch.arange(self._length, device=parts[0].device)
        self._positions = everywhere.expand(len(parts[0]), -1)
        self._holes: Holes | None = None
        if self._pruning.family.leave is not None:
            self._canvas = parts[0]
        return stream

    def keep_values(self) -> None:
        """From now on notes what pruned tokens were worth, as stages do anyway."""
        if self._canvas is None:
            self._canvas = self.stream.parts[0].float()

    def goes(self, point: int, stream: Stream) -> bool:
        """Whether any token goes at this prune point; if none does the dense path is taken."""
        schedule, left = self._config.schedule, stream.tokens - stream.extra
        if schedule.mode == "threshold":
            return schedule.keep[point] < 1
        return schedule.count(point, left) < left

    def holes(self, number: int, inner: int) -> Holes | None:
        """What the mixer of block `number` has to know; None while nothing is missing."""
        if self._holes is None or self._pruning.gates is None:
            return self._holes
        return replace(self._holes, gate=self._pruning.gates[number - 1, :, :inner].sigmoid())

    def painted(self, stream: Stream) -> Tensor:
        """All positions: what the stream holds, and the last value of what is gone."""
        assert self._canvas is not None
        first, *rest = stream.parts
        now = sum(rest, first.to(self._canvas.dtype))
        if self._holes is None:
            return now
        whole = torch.cat([self._canvas, self._canvas[:, : self._positions.shape[1]]], dim=1)
        place = self._positions[..., None].expand(-1, -1, whole.shape[2])
        return whole.scatter(1, place, now)[:, : self._length]  # padding lies behind

    def keep_all(self) -> None:
        """Notes where all tokens are, at the start and where none goes."""
        if self._pruning.trace:
            self._kept.append(self._shown(self._positions))
            self._grids.append(self.grid)

    def prune(self, point: int, stream: Stream, mixed: Mixed | None) -> Stream:
        """The stream that is left after prune point `point`."""
        config = self._config
        if mixed is None:
            score = stream.parts[0].new_zeros(stream.parts[0].shape[:2])
        else:
            draw = (config.seed, point)
            score = score_tokens(config.score, mixed, stream.cls, draw)
        if self._pruning.family.windowed:
            outside = windows.beyond(self._positions, self._length, self.grid)
            score = score.masked_fill(outside, torch.finfo(score.dtype).min)
        if self._canvas is not None:
            self._canvas = self.painted(stream)
        reduced = self._reduce(point, stream, score)
        if config.align == "recorded" and mixed is not None:
            deltas = mixed.scanned[0].delta, mixed.scanned[1].delta
            self._recorded = record(self._recorded, deltas, reduced.index)
        self._positions = self._positions.gather(1, reduced.index)
        left = reduced.stream
        if left.valid is not None:
            behind = self._length + torch.arange(left.valid.shape[1], device=left.valid.device)
            self._positions = self._positions.where(left.valid, behind)
        if config.schedule.cls == "center" and left.cls is not None:
            left, order = centred(left)
            self._positions = self._positions.gather(1, order)
        self._holes = self._new_holes(left)
        if self._pruning.trace:
            self._note(score, left)
        return left

    def _new_holes(self, left: Stream) -> Holes:
        config = self._config
        positions, grid = self._positions, self.grid
        if self._pruning.family.plane and config.conv_align == "none":
            # What is left closes up, row by row, to the nearest rectangle (2409.18962, figure 1).
            size = positions.shape[1]
            wide = math.ceil(math.sqrt(size * grid[1] / grid[0]))
            grid = (math.ceil(size / wide), wide)
            positions = torch.arange(size, device=positions.device).expand(len(positions), -1)
        return Holes(
            positions=positions,
            length=self._length,
            align=config.align,
            conv_align=config.conv_align,
            max_gap=config.max_gap,
            valid=left.valid,
            recorded=self._recorded,
            size=left.size,
            grid=grid,
        )

    def _reduce(self, point: int, stream: Stream, score: Tensor) -> Reduced:
        schedule, left = self._config.schedule, stream.tokens - stream.extra
        if schedule.mode == "threshold":
            least = min(schedule.min_tokens, left)
            return drop_ragged(stream, score, schedule.keep[point], least, left)
        return METHODS[self._config.method](stream, score, schedule.count(point, left))

    def _note(self, score: Tensor, left: Stream) -> None:
        assert self._holes is not None
        positions = self._positions
        if left.valid is not None:
            positions = positions.masked_fill(~left.valid, -1)
        self._kept.append(self._shown(positions))
        self._grids.append(self.grid)
        self._scores.append(score)
        self._gaps.append(self._holes.gaps[0])

    def _shown(self, positions: Tensor) -> Tensor:
        """Positions in the image, of those in windows."""
        if not self._pruning.family.windowed:
            return positions
        return windows.in_image(positions, self._length, self.grid)

    def info(self) -> TokenInfo:
        """The trace of the whole pass."""
        return TokenInfo(
            grids=tuple(self._grids),
            kept=tuple(self._kept),
            scores=tuple(self._scores),
            gaps=tuple(self._gaps),
            fate=self._fate() if self._pruning.family.leave is None else None,
        )

    def _fate(self) -> Int[Tensor, "b n"]:
        fate = torch.zeros_like(self._kept[0])
        for positions in self._kept:
            there = torch.zeros(len(fate), self._length + 1, dtype=torch.bool, device=fate.device)
            there.scatter_(1, positions % (self._length + 1), True)  # -1, padding, is the last
            fate = fate + there[:, : self._length].long()
        return fate


def apply_patch(
    model: nn.Module,
    config: PruneConfig | None = None,
    *,
    keep_ratio: float | None = None,
    layers: Sequence[int] | None = None,
    score: Score = "l1",
    align: Align = "current",
    conv_align: ConvAlign = "zero",
    method: Method = "drop",
    preset: Preset | None = None,
    trace: bool = False,
) -> TokenPruning:
    """Makes `model` prune tokens from its next forward pass on; what runs it is returned.

    Either a whole `config`, or keep_ratio and layers (default: three, evenly spread) with the other
    settings. Any module with the sub-modules of one of our models will do, a foreign one too.
    Parameters, their names and the class stay; a patched model is patched anew. trace: leave a
    `TokenInfo` in `model._token_info` after every pass. Raises ConfigError when the model is none
    of them, or has fewer blocks than the schedule.
    """
    family_of(model)
    if config is None:
        if keep_ratio is None:
            raise ConfigError("say how much to keep: keep_ratio=0.8, or a whole config")
        config = _config(model, keep_ratio, layers, preset)
        if preset is None:
            config = replace(config, score=score, align=align, conv_align=conv_align, method=method)
    remove_patch(model)
    pruning = TokenPruning(model, config, trace=trace)
    setattr(model, _PATCH, pruning)
    model.forward = types.MethodType(_forward, model)
    return pruning


def _config(
    model: Any, keep_ratio: float, layers: Sequence[int] | None, name: Preset | None
) -> PruneConfig:
    places = tuple(layers) if layers is not None else prune_points(model)
    schedule = PruneSchedule(layers=places, keep=(keep_ratio,) * len(places))
    return PruneConfig(schedule=schedule) if name is None else preset_config(name, schedule)


def _forward(model: Any, images: Tensor) -> Tensor:
    pruning: TokenPruning = getattr(model, _PATCH)
    return pruning(model, images)


def pruning_of(model: nn.Module) -> TokenPruning | None:
    """What prunes the model's tokens now, if anything."""
    found = vars(model).get(_PATCH)
    return found if isinstance(found, TokenPruning) else None


@torch.no_grad()
def feature_map(
    model: nn.Module, images: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b d rows columns"]:
    """Normalised features of the patches on their grid, as detectors and segmenters need them.

    Of a pruned model too: a pruned patch keeps the value it had when it went.
    """
    pruning = pruning_of(model)
    if pruning is None:
        pruning = TokenPruning(model, PruneConfig(schedule=PruneSchedule(layers=(1,), keep=(1.0,))))
    return pruning.feature_map(model, images)


def remove_patch(model: nn.Module) -> None:
    """The dense model again; does nothing to a model without a patch."""
    for name in (_PATCH, _INFO, "forward"):
        vars(model).pop(name, None)


@contextmanager
def pruned(model: nn.Module, config: PruneConfig | None) -> Iterator[None]:
    """Inside the block the model prunes as `config` says (None: not at all); as before after it."""
    before = {n: vars(model)[n] for n in (_PATCH, _INFO, "forward") if n in vars(model)}
    remove_patch(model)
    try:
        if config is not None:
            apply_patch(model, config)
        yield
    finally:
        remove_patch(model)
        vars(model).update(before)
