"""What pruning has to know about a kind of model, found out from the names of its sub-modules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from ...errors import ConfigError
from ..holes import Holes
from . import bimamba, mamba_vision, plain_mamba, vmamba
from .bimamba import Mixed
from .cross_scan import norm
from .grid import as_map
from .stages import spread

Grid = tuple[int, int]
Parts = tuple[Tensor, ...]  # streams (b, l, d) between two blocks; their sum is the residual stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A kind of model as functions over its modules.

    In a model of stages pruned tokens come back at the end of each stage: `leave` is given the
    stream of all tokens there, and returns that of the next stage and its grid.
    """

    name: str
    directions: int
    has_cls: bool
    gated: bool  # whether y is multiplied by a gate
    plane: bool  # whether scans and convolutions follow the grid, not one sequence
    needs: tuple[str, ...]  # names in the model
    first: str  # name of the first block
    mixer: str  # name of the mixer in a block
    in_mixer: tuple[str, ...]
    skip: str  # name of D in a mixer, `directions` of them where each has its own
    start: Callable[[Any, Tensor], tuple[Parts, Tensor | None, Grid]]
    step: Callable[..., tuple[Parts, Mixed | None]]  # (layer, parts, grid, holes, inside)
    finish: Callable[[Any, Parts, Tensor | None], Tensor]
    as_map: Callable[[Any, Tensor, Grid], Tensor]
    stages: Callable[[Any], list[list[Any]]]  # blocks of each stage
    leave: Callable[[Any, int, Parts, Grid], tuple[Parts, Grid]] | None = None
    windowed: bool = False  # whether a row of the stream is a window, not an image

    def blocks(self, model: Any) -> list[Any]:
        """Blocks that a schedule counts, of all stages."""
        return [block for stage in self.stages(model) for block in stage]

    def last_blocks(self, model: Any) -> dict[int, int]:
        """The number of the last block of each stage, and the stage; of a plain model none."""
        if self.leave is None:
            return {}
        last = accumulate(len(stage) for stage in self.stages(model))
        return {number: stage for stage, number in enumerate(last)}

    def prune_points(self, model: Any) -> tuple[int, ...]:
        """Blocks after which tokens go when nobody says."""
        depths = [len(stage) for stage in self.stages(model)]
        return spread(depths) if self.leave is None else spread(depths, self.usable(model))

    def usable(self, model: Any) -> list[int]:
        """Blocks after which tokens can go: those of a stage's last block would be back at once."""
        scans = [number for number, b in enumerate(self.blocks(model), 1) if self.scans(b)]
        return [number for number in scans if number not in self.last_blocks(model)]

    def scans(self, block: Any) -> bool:
        """Whether the block has a scan, by which tokens are scored."""
        return hasattr(getattr(block, self.mixer, None), self.skip)

    def missing(self, model: Any) -> list[str]:
        """Names that a model of this family would have."""
        lacks = [name for name in self.needs if not hasattr(model, name)]
        if lacks:
            return lacks
        try:
            first = next(iter(self.blocks(model)), None)
        except (AttributeError, TypeError):
            return [self.first]
        if first is not None:
            mixer = getattr(first, self.mixer, None)
            at = f"{self.first}.{self.mixer}"
            lacks = [f"{at}.{name}" for name in self.in_mixer if not hasattr(mixer, name)]
        return lacks

    def inner(self, block: Any) -> int:
        """Channels inside the block's mixer, E; 0 without a scan."""
        if not self.scans(block):
            return 0
        size = int(getattr(getattr(block, self.mixer), self.skip).shape[0])
        return size // self.directions if self.skip == "Ds" else size


def _start_vim(model: Any, images: Tensor) -> tuple[Parts, Tensor | None, Grid]:
    hidden, cls, grid = bimamba.embed(model, images)
    return (hidden,), cls, grid


def _step_vim(
    layer: Any, parts: Parts, grid: Grid, holes: Holes | None, inside: bool
) -> tuple[Parts, Mixed | None]:
    residual = parts[1] if len(parts) > 1 else None
    hidden, residual, mixed = bimamba.step(layer, parts[0], residual, holes, inside=inside)
    return (hidden, residual), mixed


def _finish_vim(model: Any, parts: Parts, cls: Int[Tensor, "b"] | None) -> Tensor:
    assert cls is not None
    return bimamba.classify(model, parts[0], parts[1], cls)


def _start_of(embed: Callable[[Any, Tensor], tuple[Tensor, Grid]]) -> Callable[..., Any]:
    """Of a model of one stream without a class token; so are the next three."""

    def start(model: Any, images: Tensor) -> tuple[Parts, Tensor | None, Grid]:
        x, grid = embed(model, images)
        return (x,), None, grid

    return start


def _step_of(block: Callable[..., tuple[Tensor, Mixed | None]]) -> Callable[..., Any]:
    def step(
        layer: Any, parts: Parts, grid: Grid, holes: Holes | None, inside: bool
    ) -> tuple[Parts, Mixed | None]:
        x, mixed = block(layer, parts[0], grid, holes, inside=inside)
        return (x,), mixed

    return step


def _step_window(
    layer: Any, x: Tensor, grid: Grid, holes: Holes | None, *, inside: bool
) -> tuple[Tensor, Mixed | None]:
    """What stands in a window says nothing of the image's grid."""
    return mamba_vision.step_vision(layer, x, holes, inside=inside)


def _leave_of(downsample: Callable[..., tuple[Tensor, Grid]]) -> Callable[..., Any]:
    def leave(model: Any, stage: int, parts: Parts, grid: Grid) -> tuple[Parts, Grid]:
        x, smaller = downsample(model, stage, parts[0], grid)
        return (x,), smaller

    return leave


def _finish_of(classify: Callable[[Any, Tensor], Tensor]) -> Callable[..., Tensor]:
    def finish(model: Any, parts: Parts, cls: Tensor | None) -> Tensor:
        return classify(model, parts[0])

    return finish


def _map_plain(
    model: Any, tokens: Float[Tensor, "b l d"], grid: Grid
) -> Float[Tensor, "b d rows columns"]:
    return as_map(model.ln1(tokens), grid)


def _map_cross(
    model: Any, tokens: Float[Tensor, "b l d"], grid: Grid
) -> Float[Tensor, "b d rows columns"]:
    return as_map(norm(model.classifier.norm, tokens), grid)


def _stages_of_levels(model: Any) -> list[list[Any]]:
    return [list(level.blocks) for level in mamba_vision.stages_of(model)]


def _one_stage(model: Any) -> list[list[Any]]:
    return [list(model.layers)]


def _stages_of_layers(model: Any) -> list[list[Any]]:
    return [list(stage.blocks) for stage in model.layers]


_SHARED = ("in_proj", "x_proj", "dt_proj", "A_log", "D", "out_proj")
VIM = Family(
    name="Vim",
    directions=2,
    has_cls=True,
    gated=True,
    plane=False,
    needs=("patch_embed", "cls_token", "pos_embed", "layers", "norm_f", "head"),
    first="layers.0",
    mixer="mixer",
    in_mixer=(*_SHARED, "conv1d", "conv1d_b", "x_proj_b", "dt_proj_b", "A_b_log", "D_b"),
    skip="D",
    start=_start_vim,
    step=_step_vim,
    finish=_finish_vim,
    as_map=bimamba.as_map,
    stages=_one_stage,
)
PLAIN = Family(
    name="PlainMamba",
    directions=4,
    has_cls=False,
    gated=True,
    plane=True,
    needs=("patch_embed", "pos_embed", "layers", "ln1", "head"),
    first="layers.0",
    mixer="mamba",
    in_mixer=(*_SHARED, "conv2d", "direction_Bs"),
    skip="D",
    start=_start_of(plain_mamba.embed_plain),
    step=_step_of(plain_mamba.step_plain),
    finish=_finish_of(plain_mamba.classify_plain),
    as_map=_map_plain,
    stages=_one_stage,
)
VMAMBA = Family(
    name="VMamba",
    directions=4,
    has_cls=False,
    gated=False,
    plane=True,
    needs=("patch_embed", "layers", "classifier"),
    first="layers.0.blocks.0",
    mixer="op",
    in_mixer=(
        "in_proj", "conv2d", "x_proj_weight", "dt_projs_weight", "dt_projs_bias", "A_logs", "Ds",
        "out_norm", "out_proj",
    ),
    skip="Ds",
    start=_start_of(vmamba.embed_cross),
    step=_step_of(vmamba.step_cross),
    finish=_finish_of(vmamba.classify_cross),
    as_map=_map_cross,
    stages=_stages_of_layers,
    leave=_leave_of(vmamba.leave_cross),
)  # fmt: skip
VISION = Family(
    name="MambaVision",
    directions=1,
    has_cls=False,
    gated=False,
    plane=False,
    needs=("patch_embed", "levels", "norm", "head"),
    first="levels.2.blocks.0",
    mixer="mixer",
    in_mixer=(*_SHARED, "conv1d_x", "conv1d_z"),
    skip="D",
    start=_start_of(mamba_vision.embed_vision),
    step=_step_of(_step_window),
    finish=_finish_of(mamba_vision.classify_vision),
    as_map=mamba_vision.map_vision,
    stages=_stages_of_levels,
    leave=_leave_of(mamba_vision.leave_vision),
    windowed=True,
)
_FAMILIES = (VIM, PLAIN, VMAMBA, VISION)


def family_of(model: Any) -> Family:
    """The kind of model. Raises ConfigError naming what a model that is none lacks."""
    lacks = {family.name: family.missing(model) for family in _FAMILIES}
    for family in _FAMILIES:
        if not lacks[family.name]:
            break
    else:
        told = [f"no {name}: it has no {', '.join(names)}" for name, names in lacks.items()]
        raise ConfigError(f"{type(model).__name__} is {'; and '.join(told)}")
    if getattr(model, "use_double_cls_token", False) or getattr(model, "if_rope", False):
        raise ConfigError("a Vim with two class tokens or rotary positions cannot be pruned")
    if family is VMAMBA:
        vmamba.refuse_other_forms(model)
    return family


def blocks_of(model: Any) -> list[Any]:
    """Blocks that a schedule counts. Raises ConfigError for a model that cannot be pruned."""
    return family_of(model).blocks(model)


def prune_points(model: Any) -> tuple[int, ...]:
    """Blocks after which tokens go when nobody says."""
    return family_of(model).prune_points(model)
