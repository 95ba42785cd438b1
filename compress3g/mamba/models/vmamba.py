"""VMamba (2401.10166) as published under `v05_noz`: four stages of cross scans without a gate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ...errors import ConfigError
from ..holes import Holes
from .bimamba import Mixed, drop_path
from .cross_scan import linear, mix_cross, norm
from .grid import as_map, as_tokens
from .stages import Stage, doubled, halved, spread


@dataclass(frozen=True, slots=True, kw_only=True)
class VMambaConfig:
    """Sizes of a VMamba; the defaults are those of VMamba-T (s1l8) on ImageNet."""

    image: tuple[int, int] = (224, 224)
    channels: int = 3
    width: int = 96  # d of the first stage; twice as much in each next one
    depths: tuple[int, ...] = (2, 2, 8, 2)
    state: int = 1  # N
    expand: float = 1.0  # E / d
    mlp: float = 4.0
    conv_bias: bool = False
    classes: int = 1000
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        """Raise ConfigError for sizes no model can have."""
        sizes = (self.channels, self.state, self.classes, *self.image, *self.depths)
        if not self.depths or min(sizes) < 1 or self.width < 2 or self.width % 2:
            raise ConfigError(f"sizes of a VMamba are positive, its width even, got {self}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of each stage, d."""
        return doubled(self.width, len(self.depths))

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """Patches of each stage along height and width."""
        return halved(self.image, len(self.depths))

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Blocks, patches and inner channels of each stage."""
        return tuple(
            Stage(depth=depth, patches=high * wide, width=d, inner=int(self.expand * d))
            for depth, (high, wide), d in zip(self.depths, self.grids, self.widths, strict=True)
        )

    @property
    def depth(self) -> int:
        """Blocks of all stages."""
        return sum(self.depths)

    @property
    def extra_tokens(self) -> int:
        """Tokens that are no patches."""
        return 0

    @property
    def prune_points(self) -> tuple[int, ...]:
        """Blocks after which tokens go when nobody says."""
        return spread(self.depths)

    def block_cost(self, stage: int, block: int, tokens: int, convention: str) -> int:
        """Multiply-adds of a block of that stage; the paper counts all four scans and norms."""
        d, e = self.widths[stage], self.stages[stage].inner
        n, r = self.state, math.ceil(d / 16)
        each = 2 * d * e + 9 * e + 4 * (e * (r + 2 * n) + r * e) + 2 * int(self.mlp * d) * d
        if convention == "paper":
            return tokens * (each + 4 * (9 * e * n + e) + 5 * (2 * d + e))
        return tokens * (each + 4 * (4 * e * n + e))

    def fixed_cost(self) -> int:
        """Multiply-adds of the stem, the convolutions between stages, and the head."""
        first = self.width // 2
        half = math.prod(-(-side // 2) for side in self.image)
        patches = [stage.patches for stage in self.stages]
        stem = half * first * 9 * self.channels + patches[0] * self.width * 9 * first
        between = sum(
            9 * wide * 2 * wide * n
            for wide, n in zip(self.widths[:-1], patches[1:], strict=True)
        )  # fmt: skip
        return stem + between + self.widths[-1] * self.classes


class CrossMixer(nn.Module):
    """Parameters of an SS2D mixer; `cross_scan.mix_cross` runs it."""

    def __init__(self, config: VMambaConfig, width: int) -> None:
        super().__init__()
        e, n, r = int(config.expand * width), config.state, math.ceil(width / 16)
        self.x_proj_weight = nn.Parameter(torch.empty(4, r + 2 * n, e))
        self.dt_projs_weight = nn.Parameter(torch.empty(4, e, r))
        self.dt_projs_bias = nn.Parameter(torch.empty(4, e))
        self.A_logs = nn.Parameter(torch.arange(1.0, n + 1).log().repeat(4 * e, 1))
        self.Ds = nn.Parameter(torch.ones(4 * e))
        self.in_proj = nn.Linear(width, e, bias=False)
        self.conv2d = nn.Conv2d(e, e, 3, padding=1, groups=e, bias=config.conv_bias)
        self.out_norm = nn.LayerNorm(e)
        self.out_proj = nn.Linear(e, width, bias=False)
        with torch.no_grad():
            nn.init.trunc_normal_(self.x_proj_weight, std=0.02)
            nn.init.uniform_(self.dt_projs_weight, -(r**-0.5), r**-0.5)
            wanted = torch.empty(4, e, device=self.Ds.device)
            wanted.uniform_(math.log(1e-3), math.log(0.1))
            self.dt_projs_bias.copy_(wanted.exp().expm1().log())  # softplus gives what was wanted


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)


class _Block(nn.Module):
    def __init__(self, config: VMambaConfig, width: int, rate: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.op = CrossMixer(config, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = _Mlp(width, int(config.mlp * width))
        self.drop_rate = rate


class _Stage(nn.Module):
    def __init__(self, config: VMambaConfig, index: int) -> None:
        super().__init__()
        width, before = config.widths[index], sum(config.depths[:index])
        last = max(1, config.depth - 1)
        self.blocks = nn.ModuleList(
            _Block(config, width, config.drop_path * (before + i) / last)
            for i in range(config.depths[index])
        )
        if index + 1 < len(config.depths):
            wider = 2 * width
            halve = nn.Conv2d(width, wider, 3, stride=2, padding=1)
            self.downsample = nn.ModuleDict({"1": halve, "3": nn.LayerNorm(wider)})


class VMamba(nn.Module):
    """Logits of images; parameters have the names and shapes of the published checkpoints.

    >>> sizes = VMambaConfig(image=(32, 32), width=16, depths=(1, 1), classes=10)
    >>> VMamba(sizes)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(self, config: VMambaConfig) -> None:
        super().__init__()
        self.config = config
        first = config.width // 2
        self.patch_embed = nn.ModuleDict(
            {
                "0": nn.Conv2d(config.channels, first, 3, stride=2, padding=1),
                "2": nn.LayerNorm(first),
                "5": nn.Conv2d(first, config.width, 3, stride=2, padding=1),
                "7": nn.LayerNorm(config.width),
            }
        )
        self.layers = nn.ModuleList(_Stage(config, i) for i in range(len(config.depths)))
        wide = config.widths[-1]
        self.classifier = nn.ModuleDict(
            {"norm": nn.LayerNorm(wide), "head": nn.Linear(wide, config.classes)}
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes"]:
        """Logits, of images of any size."""
        x, grid = embed_cross(self, images)
        for number, stage in enumerate(self.layers):
            for block in stage.blocks:  # type: ignore[union-attr]
                x, _ = step_cross(block, x, grid)
            x, grid = leave_cross(self, number, x, grid)
        return classify_cross(self, x)


def _part(container: Any, place: int) -> Any:
    """Module number `place` of a sequence, or of one that holds only the modules with weights."""
    return container[str(place) if isinstance(container, nn.ModuleDict) else place]


def embed_cross(
    model: Any, images: Float[Tensor, "b c h w"]
) -> tuple[Float[Tensor, "b l d"], tuple[int, int]]:
    """Tokens and the grid of patches: two convolutions that halve the sides."""
    x, grid = _halved(model.patch_embed, 0, images)
    return _halved(model.patch_embed, 5, as_map(F.gelu(x), grid))


def _halved(container: Any, place: int, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """The convolution at `place` and the norm two places after it."""
    x = _part(container, place)(x)
    return norm(_part(container, place + 2), as_tokens(x)), (x.shape[2], x.shape[3])


def leave_cross(
    model: Any, stage: int, x: Float[Tensor, "b l d"], grid: tuple[int, int]
) -> tuple[Float[Tensor, "b m w"], tuple[int, int]]:
    """Tokens of the next stage; the same after the last one."""
    container = getattr(model.layers[stage], "downsample", None)
    if container is None or isinstance(container, nn.Identity):
        return x, grid
    return _halved(container, 1, as_map(x, grid))


def step_cross(
    layer: Any,
    x: Float[Tensor, "b l d"],
    grid: tuple[int, int],
    holes: Holes | None = None,
    *,
    inside: bool = False,
) -> tuple[Float[Tensor, "b l d"], Mixed | None]:
    """One block: x + mixer(norm(x)), then x + mlp(norm(x))."""
    rate = getattr(layer, "drop_rate", 0.0)
    out, mixed = mix_cross(layer.op, norm(layer.norm, x), grid, holes, inside=inside)
    x = x + drop_path(out, rate, layer.training)
    hidden = F.gelu(linear(layer.mlp.fc1, norm(layer.norm2, x)))
    return x + drop_path(linear(layer.mlp.fc2, hidden), rate, layer.training), mixed


def classify_cross(model: Any, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b classes"]:
    """Logits of the mean over all patches."""
    out: Tensor = model.classifier.head(norm(model.classifier.norm, x).mean(1))
    return out


def refuse_other_forms(model: Any) -> None:
    """Raises ConfigError for a VMamba with a gate, or with norms after the mixers."""
    block = model.layers[0].blocks[0]
    if getattr(block, "post_norm", False):
        raise ConfigError("a VMamba with norms after its mixers cannot be pruned")
    if block.op.in_proj.weight.shape[0] != block.op.out_norm.weight.shape[0]:
        raise ConfigError("a VMamba with a gate is an early one: only v05_noz can be pruned")
