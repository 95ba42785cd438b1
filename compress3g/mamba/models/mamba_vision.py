"""MambaVision (2407.08083): convolutions, then windows of mixers and, after them, attention."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ...core.tokens import gather_tokens, scatter_tokens
from ...errors import ConfigError
from ...kernels.selective_scan import selective_scan
from ..holes import Holes
from .bimamba import Mixed, drop_path
from .cross_scan import linear, norm
from .grid import as_map, as_tokens
from .stages import Stage, doubled, halved, spread
from .windows import counts, from_windows, to_windows

_CONVOLUTIONAL = 2  # stages before the first mixer


@dataclass(frozen=True, slots=True, kw_only=True)
class MambaVisionConfig:
    """Sizes of a MambaVision; the defaults are those of MambaVision-T on ImageNet.

    Its published code adds the bias of Delta twice, and its weights depend on that: turn
    `double_bias` off to train anew. Blocks that a schedule counts are those of the stages with
    mixers, the third and fourth.
    """

    image: tuple[int, int] = (224, 224)
    channels: int = 3
    width: int = 80  # d of the first stage; twice as much in each next one
    stem: int = 32
    depths: tuple[int, ...] = (1, 3, 8, 4)
    heads: tuple[int, ...] = (2, 4, 8, 16)
    windows: tuple[int, ...] = (8, 8, 14, 7)  # patches along a side
    state: int = 8  # N
    mlp: float = 4.0
    layer_scale: bool = False
    classes: int = 1000
    drop_path: float = 0.0
    double_bias: bool = True

    def __post_init__(self) -> None:
        """Raise ConfigError for sizes no model can have."""
        sizes = (self.channels, self.stem, self.state, self.classes, *self.image, *self.depths)
        lengths = {len(self.depths), len(self.heads), len(self.windows)}
        if min(sizes) < 1 or self.width < 1 or lengths == {0} or len(lengths) > 1:
            raise ConfigError(f"sizes of a MambaVision are positive, one for a stage, got {self}")
        if len(self.depths) <= _CONVOLUTIONAL:
            raise ConfigError(f"a MambaVision has more than two stages, got depths {self.depths}")
        for d, heads in zip(self.widths, self.heads, strict=True):
            if heads < 1 or d % heads or d % 2:
                raise ConfigError(f"{heads} heads do not share a width of {d} out evenly")

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
        """Blocks, patches of a window, windows and inner channels of each stage with mixers."""
        return tuple(
            Stage(
                depth=self.depths[i],
                patches=self.windows[i] ** 2,
                sequences=math.prod(counts(self.grids[i], self.windows[i])),
                width=self.widths[i],
                inner=self.widths[i] // 2,
            )
            for i in range(_CONVOLUTIONAL, len(self.depths))
        )

    @property
    def extra_tokens(self) -> int:
        """Tokens that are no patches."""
        return 0

    def mixers(self, stage: int) -> int:
        """How many blocks of a stage are mixers; the others, after them, are attention."""
        return -(-self.depths[stage] // 2)

    @property
    def prune_points(self) -> tuple[int, ...]:
        """Blocks after which tokens go when nobody says: mixers of the longest stage."""
        usable, before = [], 0
        for i in range(_CONVOLUTIONAL, len(self.depths)):
            usable += [before + 1 + j for j in range(self.mixers(i))]
            before += self.depths[i]
        return spread(self.depths[_CONVOLUTIONAL:], usable)

    def block_cost(self, stage: int, block: int, tokens: int, convention: str) -> int:
        """Multiply-adds of a block for the tokens of a window.

        The authors' counter sees neither fused attention's products nor the scan.
        """
        at, paper = _CONVOLUTIONAL + stage, convention == "paper"
        d, n = self.widths[at], self.state
        e, r = d // 2, math.ceil(d / 16)
        network = 2 * int(self.mlp * d) * d
        if block - sum(self.depths[_CONVOLUTIONAL:at]) > self.mixers(at):
            return tokens * (4 * d * d + network) + (0 if paper else 2 * tokens * tokens * d)
        each = 2 * d * d + 2 * 3 * e + e * (r + 2 * n) + r * e + network
        return tokens * (each if paper else each + 4 * e * n + e)

    def fixed_cost(self) -> int:
        """Multiply-adds of the convolutions and the head."""
        patches = [math.prod(grid) for grid in self.grids]
        half = math.prod(-(-side // 2) for side in self.image)
        total = 9 * half * self.channels * self.stem + 9 * patches[0] * self.stem * self.width
        for i in range(_CONVOLUTIONAL):
            total += self.depths[i] * 2 * 9 * self.widths[i] ** 2 * patches[i]
        for i, d in enumerate(self.widths[:-1]):
            total += 9 * d * 2 * d * patches[i + 1]
        return total + self.widths[-1] * self.classes


class _ConvBlock(nn.Module):
    def __init__(self, width: int, rate: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(width)
        self.drop_rate = rate

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.norm1(self.conv1(x)), approximate="tanh")
        out = self.norm2(self.conv2(hidden)).flatten(2)
        return x + drop_path(out, self.drop_rate, self.training).view_as(x)


class VisionMixer(nn.Module):
    """Parameters of a mixer: half of the channels are scanned, half only convolved."""

    def __init__(self, config: MambaVisionConfig, width: int) -> None:
        super().__init__()
        e, n, r = width // 2, config.state, math.ceil(width / 16)
        self.double_bias = config.double_bias
        self.in_proj = nn.Linear(width, width, bias=False)
        self.x_proj = nn.Linear(e, r + 2 * n, bias=False)
        self.dt_proj = nn.Linear(r, e)
        self.A_log = nn.Parameter(torch.arange(1.0, n + 1).log().repeat(e, 1))
        self.D = nn.Parameter(torch.ones(e))
        self.out_proj = nn.Linear(width, width, bias=False)
        self.conv1d_x = nn.Conv1d(e, e, 3, padding=1, groups=e, bias=False)
        self.conv1d_z = nn.Conv1d(e, e, 3, padding=1, groups=e, bias=False)

    @torch.no_grad()
    def initialise(self) -> None:
        """Delta starts between 0.001 and 0.1 (2312.00752, 3.6)."""
        most = self.dt_proj.in_features**-0.5
        nn.init.uniform_(self.dt_proj.weight, -most, most)
        wanted = torch.empty_like(self.dt_proj.bias).uniform_(math.log(1e-3), math.log(0.1))
        self.dt_proj.bias.copy_(wanted.exp().expm1().log())


class Attention(nn.Module):
    """Parameters of self-attention within a window."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)


class _Block(nn.Module):
    def __init__(self, config: MambaVisionConfig, stage: int, index: int, rate: float) -> None:
        super().__init__()
        d = config.widths[stage]
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        mixes = index < config.mixers(stage)
        self.mixer = VisionMixer(config, d) if mixes else Attention(d, config.heads[stage])
        hidden = int(config.mlp * d)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(d, hidden), "fc2": nn.Linear(hidden, d)})
        if config.layer_scale:
            self.gamma_1 = nn.Parameter(torch.full((d,), 1e-5))
            self.gamma_2 = nn.Parameter(torch.full((d,), 1e-5))
        self.drop_rate = rate


class _Level(nn.Module):
    def __init__(self, config: MambaVisionConfig, index: int) -> None:
        super().__init__()
        d, before, last = config.widths[index], sum(config.depths[:index]), sum(config.depths) - 1
        rates = [
            config.drop_path * (before + j) / max(1, last) for j in range(config.depths[index])
        ]
        self.window_size = config.windows[index]
        self.blocks = nn.ModuleList(
            _ConvBlock(d, rate) if index < _CONVOLUTIONAL else _Block(config, index, j, rate)
            for j, rate in enumerate(rates)
        )
        self.downsample: nn.Module | None = None
        if index + 1 < len(config.depths):
            halve = nn.Conv2d(d, 2 * d, 3, stride=2, padding=1, bias=False)
            self.downsample = nn.Sequential()
            self.downsample.add_module("reduction", nn.Sequential(halve))


class MambaVision(nn.Module):
    """Logits of images; parameters have the names and shapes of the published checkpoints.

    >>> sizes = {"width": 8, "stem": 4, "depths": (1, 1, 2, 1), "heads": (1, 1, 2, 2)}
    >>> model = MambaVision(MambaVisionConfig(image=(64, 64), **sizes, classes=10)).eval()
    >>> model(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 10])
    """

    def __init__(self, config: MambaVisionConfig) -> None:
        super().__init__()
        self.config = config
        halves = []
        for ins, outs in ((config.channels, config.stem), (config.stem, config.width)):
            conv = nn.Conv2d(ins, outs, 3, stride=2, padding=1, bias=False)
            halves += [conv, nn.BatchNorm2d(outs, eps=1e-4), nn.ReLU()]
        self.patch_embed = nn.ModuleDict({"conv_down": nn.Sequential(*halves)})
        self.levels = nn.ModuleList(_Level(config, i) for i in range(len(config.depths)))
        self.norm = nn.BatchNorm2d(config.widths[-1])
        self.head = nn.Linear(config.widths[-1], config.classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, VisionMixer):
                module.initialise()

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes"]:
        """Logits, of images of any size."""
        x, grid = embed_vision(self, images)
        levels = stages_of(self)
        for number, level in enumerate(levels):
            for block in level.blocks:
                x, _ = step_vision(block, x)
            x, grid = leave_vision(self, number, x, grid)
        return classify_vision(self, x)


def stages_of(model: Any) -> list[Any]:
    """The levels with mixers, which come after those of convolutions alone."""
    return [level for level in model.levels if not hasattr(level.blocks[0], "conv1")]


def embed_vision(
    model: Any, images: Float[Tensor, "b c h w"]
) -> tuple[Float[Tensor, "s l d"], tuple[int, int]]:
    """Windows after the levels of convolutions, and the grid that they cover."""
    x = model.patch_embed.conv_down(images)
    stages = stages_of(model)
    for level in list(model.levels)[: len(model.levels) - len(stages)]:
        for block in level.blocks:
            x = block(x)
        x = level.downsample(x)
    return to_windows(x, stages[0].window_size), (x.shape[2], x.shape[3])


def leave_vision(
    model: Any, stage: int, x: Float[Tensor, "s l d"], grid: tuple[int, int]
) -> tuple[Float[Tensor, "_b _m _e"], tuple[int, int]]:
    """Windows of the next stage, or after the last one all tokens of each image."""
    stages = stages_of(model)
    whole = from_windows(x, grid)
    if stages[stage].downsample is None:
        return as_tokens(whole), grid
    whole = stages[stage].downsample(whole)
    return to_windows(whole, stages[stage + 1].window_size), (whole.shape[2], whole.shape[3])


def step_vision(
    layer: Any, x: Float[Tensor, "s l d"], holes: Holes | None = None, *, inside: bool = False
) -> tuple[Float[Tensor, "s l d"], Mixed | None]:
    """One block: x + mixer(norm(x)), then x + mlp(norm(x)); the mixer may be attention."""
    rate, mixed = getattr(layer, "drop_rate", 0.0), None
    normed = norm(layer.norm1, x)
    if hasattr(layer.mixer, "qkv"):
        out = attend(layer.mixer, normed)
    else:
        out, mixed = mix_vision(layer.mixer, normed, holes, inside=inside)
    x = x + drop_path(getattr(layer, "gamma_1", 1) * out, rate, layer.training)
    hidden = F.gelu(linear(layer.mlp.fc1, norm(layer.norm2, x)))
    out = linear(layer.mlp.fc2, hidden)
    return x + drop_path(getattr(layer, "gamma_2", 1) * out, rate, layer.training), mixed


def attend(mixer: Any, x: Float[Tensor, "s l d"]) -> Float[Tensor, "s l d"]:
    """Self-attention among the tokens that are left of each window."""
    q, k, v = mixer.qkv(x).reshape(*x.shape[:2], 3, mixer.num_heads, -1).permute(2, 0, 3, 1, 4)
    out = F.scaled_dot_product_attention(q, k, v)
    attended: Tensor = mixer.proj(out.transpose(1, 2).reshape(x.shape))
    return attended


def mix_vision(
    mixer: Any, x: Float[Tensor, "s l d"], holes: Holes | None = None, *, inside: bool = False
) -> tuple[Float[Tensor, "s l d"], Mixed | None]:
    """out_proj of the scan of one half of the channels beside the other half, only convolved."""
    m = mixer
    x, z = m.in_proj(x).chunk(2, dim=-1)
    u, z = (F.silu(_convolved(c, t, holes)) for c, t in ((m.conv1d_x, x), (m.conv1d_z, z)))
    rank, state = m.dt_proj.in_features, m.A_log.shape[1]
    r, b, c = m.x_proj(u).split([rank, state, state], dim=-1)
    raw = F.linear(r, m.dt_proj.weight)
    bias = 2 * m.dt_proj.bias if getattr(m, "double_bias", True) else m.dt_proj.bias
    settings: dict[str, Any] = {"delta_bias": bias, "delta_softplus": True}
    if holes is not None and holes.decays:
        settings |= holes.decay_by(holes.gaps[0], 0, raw, bias)
    y = selective_scan(u, raw, -m.A_log.float().exp(), b, c, m.D, **settings)
    out = m.out_proj(torch.cat([y, z], dim=-1))
    if not inside:
        return out, None
    return out, Mixed(y=y, gated=y, delta=F.softplus((raw + bias).float()))


def _convolved(conv: Any, x: Float[Tensor, "s l e"], holes: Holes | None) -> Tensor:
    """A convolution that looks one token back and one ahead, at the tokens that are left."""
    kept = None if holes is None or holes.conv_align == "none" else holes
    if kept is not None:
        x = _with_holes(x, kept)
    out = F.conv1d(x.transpose(1, 2), conv.weight, conv.bias, padding=1, groups=conv.groups)
    out = out.transpose(1, 2)
    return out if kept is None else gather_tokens(out, kept.positions)


def _with_holes(x: Float[Tensor, "s k e"], holes: Holes) -> Float[Tensor, "s l e"]:
    """All positions of a window: zeros in the holes, or the last token before each."""
    whole = scatter_tokens(x, holes.positions, holes.length)
    if holes.conv_align == "zero":
        return whole
    there = torch.zeros_like(whole[..., 0], dtype=torch.long).scatter(1, holes.positions, 1)
    last = there.cumsum(1) - 1
    return gather_tokens(x, last.clamp_min(0)) * (last >= 0)[..., None]


def classify_vision(model: Any, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b classes"]:
    """Logits of the mean over all patches."""
    out: Tensor = model.head(model.norm(x.transpose(1, 2)[..., None]).mean((2, 3)))
    return out


def map_vision(
    model: Any, x: Float[Tensor, "b l d"], grid: tuple[int, int]
) -> Float[Tensor, "b d rows columns"]:
    """Normalised features on the grid of the last stage."""
    out: Tensor = model.norm(as_map(x, grid))
    return out
