"""PlainMamba (2403.17695): one stage, no class token, four serpentine scans over the patches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ...core.tokens import gather_tokens
from ...errors import ConfigError
from ...kernels.selective_scan import selective_scan
from ..holes import Holes
from .bimamba import Mixed, drop_path
from .grid import convolve_on_grid
from .serpentine import serpentine
from .stages import Stage, spread

_STEM = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainMambaConfig:
    """Sizes of a PlainMamba; the defaults are L1's on ImageNet.

    Two quirks of the published code that its weights depend on are on: `raster_dbc`, only u is put
    in the order of a scan while Delta, B and C stay row by row; `double_bias`, the bias of Delta is
    added twice. Turn both off to train anew.
    """

    image: tuple[int, int] = (224, 224)
    patch: int = 16
    channels: int = 3
    width: int = 192  # d
    depth: int = 24
    state: int = 16  # N
    classes: int = 1000
    stem_convs: int = 1
    depthwise: tuple[int, ...] = (0,)  # layers that end with a 3x3 depthwise convolution
    drop_path: float = 0.0
    raster_dbc: bool = True
    double_bias: bool = True

    def __post_init__(self) -> None:
        """Raise ConfigError for sizes no model can have."""
        if min(self.channels, self.width, self.depth, self.state) < 1 or self.patch % 2:
            raise ConfigError(f"sizes of a PlainMamba are positive, patches even, got {self}")
        if min(self.image) < self.patch:
            raise ConfigError(f"a {self.patch}-pixel patch does not fit an image of {self.image}")

    @property
    def inner(self) -> int:
        """Channels inside a mixer, E = 2 d."""
        return 2 * self.width

    @property
    def rank(self) -> int:
        """Of the projection to Delta, R = ceil(d / 16)."""
        return math.ceil(self.width / 16)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along height and width."""
        return self.image[0] // self.patch, self.image[1] // self.patch

    @property
    def patches(self) -> int:
        """Number of tokens."""
        return self.grid[0] * self.grid[1]

    @property
    def extra_tokens(self) -> int:
        """Tokens that are no patches."""
        return 0

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All blocks are one."""
        return (Stage(depth=self.depth, patches=self.patches, width=self.width, inner=self.inner),)

    @property
    def prune_points(self) -> tuple[int, ...]:
        """Blocks after which tokens go when nobody says."""
        return spread((self.depth,))

    def block_cost(self, stage: int, block: int, tokens: int, convention: str) -> int:
        """Multiply-adds of a block for that many tokens; the papers count all four scans."""
        d, e, n, r = self.width, self.inner, self.state, self.rank
        each = 3 * d * e + 49 * e + e * (r + 2 * n) + r * e
        scans = 4 * 9 * e * n if convention == "paper" else 4 * (4 * e * n + e) + e
        return tokens * (each + scans)

    def fixed_cost(self) -> int:
        """Multiply-adds of the stem and the head."""
        pixels = (self.image[0] // 2) * (self.image[1] // 2)
        stem = pixels * _STEM * (self.channels * 49 + self.stem_convs * _STEM * 9)
        return (
            stem
            + self.patches * self.width * _STEM * (self.patch // 2) ** 2
            + (self.width * self.classes)
        )


def _conv_norm(ins: int, size: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(ins, _STEM, size, stride, size // 2, bias=False)
    return [conv, nn.BatchNorm2d(_STEM), nn.ReLU()]


class _PatchEmbed(nn.Module):
    def __init__(self, config: PlainMambaConfig) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv_norm(config.channels, 7, 2))
        self.convs = nn.Sequential(
            *(m for _ in range(config.stem_convs) for m in _conv_norm(_STEM, 3, 1))
        )
        self.projection = nn.Conv2d(_STEM, config.width, config.patch // 2, config.patch // 2)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.projection(self.convs(self.stem(images)))
        return out


class PlainMixer(nn.Module):
    """Parameters of a four-way mixer; `mix_plain` runs it."""

    def __init__(self, config: PlainMambaConfig) -> None:
        super().__init__()
        d, e, n, r = config.width, config.inner, config.state, config.rank
        self.raster_dbc, self.double_bias = config.raster_dbc, config.double_bias
        self.in_proj = nn.Linear(d, 2 * e)
        self.conv2d = nn.Conv2d(e, e, 7, padding=3, groups=e)
        self.x_proj = nn.Linear(e, r + 2 * n, bias=False)
        self.dt_proj = nn.Linear(r, e)
        self.A_log = nn.Parameter(torch.arange(1.0, n + 1).log().repeat(e, 1))
        self.D = nn.Parameter(torch.ones(e))
        self.out_proj = nn.Linear(e, d)
        self.direction_Bs = nn.Parameter(torch.zeros(5, n))
        for linear in (self.in_proj, self.x_proj, self.out_proj):
            nn.init.trunc_normal_(linear.weight, std=0.02)
        nn.init.trunc_normal_(self.direction_Bs, std=0.02)
        with torch.no_grad():
            wanted = torch.empty_like(self.dt_proj.bias).uniform_(math.log(1e-3), math.log(0.1))
            self.dt_proj.bias.copy_(wanted.exp().expm1().log())


class _Block(nn.Module):
    def __init__(self, config: PlainMambaConfig, index: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.mamba = PlainMixer(config)
        self.drop_rate = config.drop_path * index / max(1, config.depth - 1)
        if index in config.depthwise:
            width = config.width
            conv = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
            self.dw = nn.Sequential(conv, nn.BatchNorm2d(width), nn.GELU())


class PlainMamba(nn.Module):
    """Logits of images; parameters have the names and shapes of the published checkpoints."""

    def __init__(self, config: PlainMambaConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = _PatchEmbed(config)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.patches, config.width))
        self.layers = nn.ModuleList(_Block(config, i) for i in range(config.depth))
        self.ln1 = nn.LayerNorm(config.width, eps=1e-6)
        self.head = nn.ModuleDict({"fc": nn.Linear(config.width, config.classes)})
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.head["fc"].weight, std=0.02)  # type: ignore[arg-type]

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes"]:
        """Logits. Raises ConfigError when the images have another size than the model."""
        x, grid = embed_plain(self, images)
        for layer in self.layers:
            x, _ = step_plain(layer, x, grid)
        return classify_plain(self, x)


def embed_plain(
    model: Any, images: Float[Tensor, "b c h w"]
) -> tuple[Float[Tensor, "b l d"], tuple[int, int]]:
    """Tokens and the grid of patches."""
    x = model.patch_embed(images)
    grid = (x.shape[2], x.shape[3])
    x = x.flatten(2).transpose(1, 2)
    if model.pos_embed.shape[1] != x.shape[1]:
        raise ConfigError(
            f"images of {images.shape[2]}x{images.shape[3]} give {x.shape[1]} patches but the "
            f"model's positions are for {model.pos_embed.shape[1]}: resize the images"
        )
    return x + model.pos_embed, grid


def step_plain(
    layer: Any,
    x: Float[Tensor, "b l d"],
    grid: tuple[int, int],
    holes: Holes | None = None,
    *,
    inside: bool = False,
) -> tuple[Float[Tensor, "b l d"], Mixed | None]:
    """One block: x + mixer(norm(x)), in L1's first block a depthwise convolution after it."""
    out, mixed = mix_plain(layer.mamba, layer.norm(x), grid, holes, inside=inside)
    x = x + drop_path(out, layer.drop_rate, layer.training)
    if hasattr(layer, "dw"):
        x = convolve_on_grid(layer.dw, x, grid, holes)
    return x, mixed


@dataclass(frozen=True, slots=True)
class _Way:
    """One of the four orders for the tokens that are left."""

    order: Int[Tensor, "b k"]  # which token stands where in the scan
    back: Int[Tensor, "b k"]
    ids: Int[Tensor, "b k"]  # direction id of each step
    gap: Int[Tensor, "b k"]


def ways(positions: Int[Tensor, "b k"], grid: tuple[int, int], max_gap: int | None) -> list[_Way]:
    """Orders, direction ids and gaps; a token keeps rank and id that it has in the full grid."""
    found = []
    for rank, ids in zip(*serpentine(*grid), strict=True):
        at = rank.to(positions.device)[positions]
        order = at.argsort(dim=1)
        gap = at.gather(1, order).diff(dim=1) - 1
        gap = gap if max_gap is None else gap.clamp_max(max_gap)
        gap = torch.cat([gap.new_zeros(len(gap), 1), gap], dim=1).int()
        kept = ids.to(positions.device)[positions.gather(1, order)]
        found.append(_Way(order, order.argsort(dim=1), kept, gap))
    return found


def mix_plain(
    mixer: Any,
    x: Float[Tensor, "b l d"],
    grid: tuple[int, int],
    holes: Holes | None = None,
    *,
    inside: bool = False,
) -> tuple[Float[Tensor, "b l d"], Mixed | None]:
    """out_proj of the four scans' sum times silu(z); the direction of a step is added to its B."""
    m = mixer
    x, z = m.in_proj(x).chunk(2, dim=-1)
    u = F.silu(convolve_on_grid(m.conv2d, x, grid, holes))
    rank, state = m.dt_proj.in_features, m.A_log.shape[1]
    r, b, c = m.x_proj(u).split([rank, state, state], dim=-1)
    raw = F.linear(r, m.dt_proj.weight)
    bias = 2 * m.dt_proj.bias if m.double_bias else m.dt_proj.bias
    a = -m.A_log.float().exp()
    if holes is None:
        index = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
        found = ways(index, grid, None)
    else:
        found = holes.ways
    total: Tensor | None = None
    for number, way in enumerate(found):
        parts = (raw, b, c) if m.raster_dbc else [gather_tokens(t, way.order) for t in (raw, b, c)]
        steps, drive, read = parts
        settings: dict[str, Any] = {"delta_bias": bias, "delta_softplus": True}
        if holes is not None and holes.decays:
            settings |= holes.decay_by(way.gap, number, steps, bias)
        y = selective_scan(
            gather_tokens(u, way.order), steps, a, drive + m.direction_Bs[way.ids], read, m.D,
            **settings,
        )  # fmt: skip
        assert isinstance(y, Tensor)
        y = gather_tokens(y, way.back)
        total = y if total is None else total + y
    assert total is not None
    gated = total * F.silu(z)
    out = m.out_proj(gated)
    if not inside:
        return out, None
    delta = F.softplus((raw + bias).float())
    return out, Mixed(y=total, gated=gated, delta=delta)


def classify_plain(model: Any, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b classes"]:
    """Logits of the mean over the tokens that are left."""
    out: Tensor = model.head["fc"](model.ln1(x).mean(1))
    return out
