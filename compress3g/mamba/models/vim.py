"""Vision Mamba (Vim, 2401.09417): bidirectional mixers over patches, class token in the middle."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ...errors import ConfigError
from .bimamba import classify, embed, step
from .stages import Stage, spread


@dataclass(frozen=True, slots=True, kw_only=True)
class VimConfig:
    """Sizes of a Vim; the defaults are Vim-T's on ImageNet."""

    image: tuple[int, int] = (224, 224)
    patch: int = 16
    stride: int = 16
    channels: int = 3
    width: int = 192  # d
    depth: int = 24
    state: int = 16  # N
    classes: int = 1000
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        """Raise ConfigError for sizes no model can have."""
        if min(self.patch, self.stride, self.channels, self.width, self.depth, self.state) < 1:
            raise ConfigError(f"sizes of a Vim are positive, got {self}")
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
        high, wide = ((side - self.patch) // self.stride + 1 for side in self.image)
        return high, wide

    @property
    def patches(self) -> int:
        """Number of patch tokens, M; the class token stands at M // 2."""
        return self.grid[0] * self.grid[1]

    @property
    def extra_tokens(self) -> int:
        """Tokens that are no patches."""
        return 1

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All blocks are one."""
        return (Stage(depth=self.depth, patches=self.patches, width=self.width, inner=self.inner),)

    @property
    def prune_points(self) -> tuple[int, ...]:
        """Blocks after which tokens go when nobody says."""
        return spread((self.depth,))

    def block_cost(self, stage: int, block: int, tokens: int, convention: str) -> int:
        """Multiply-adds of a block for that many tokens; the papers count one direction."""
        d, e, n, r = self.width, self.inner, self.state, self.rank
        way = 4 * e + e * (r + 2 * n) + r * e
        if convention == "paper":
            return tokens * (3 * d * e + way + 9 * e * n + 2 * e)
        return tokens * (3 * d * e + 2 * (way + 4 * e * n + e) + e)

    def fixed_cost(self) -> int:
        """Multiply-adds of the patch embedding and the head."""
        return self.patches * self.width * self.channels * self.patch**2 + (
            self.width * self.classes
        )


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """Normalised x in the dtype of the weight."""
        return F.rms_norm(x.to(self.weight.dtype), self.weight.shape, self.weight, self.eps)


class PatchEmbed(nn.Module):
    """Holds the convolution whose name the checkpoints give."""

    def __init__(self, config: VimConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.channels, config.width, config.patch, stride=config.stride)


class Mixer(nn.Module):
    """Parameters of a bidirectional Mamba mixer; `bimamba.mix` runs it."""

    def __init__(self, config: VimConfig) -> None:
        super().__init__()
        d, e, n, r = config.width, config.inner, config.state, config.rank
        self.in_proj = nn.Linear(d, 2 * e, bias=False)
        self.conv1d = nn.Conv1d(e, e, 4, groups=e, padding=3)
        self.x_proj = nn.Linear(e, r + 2 * n, bias=False)
        self.dt_proj = nn.Linear(r, e)
        self.A_log = nn.Parameter(torch.arange(1.0, n + 1).log().repeat(e, 1))
        self.D = nn.Parameter(torch.ones(e))
        self.A_b_log = nn.Parameter(self.A_log.detach().clone())
        self.conv1d_b = nn.Conv1d(e, e, 4, groups=e, padding=3)
        self.x_proj_b = nn.Linear(e, r + 2 * n, bias=False)
        self.dt_proj_b = nn.Linear(r, e)
        self.D_b = nn.Parameter(torch.ones(e))
        self.out_proj = nn.Linear(e, d, bias=False)
        self._initialise(config.depth)

    @torch.no_grad()
    def _initialise(self, depth: int) -> None:
        """Delta starts between 0.001 and 0.1 (2312.00752, 3.6); the output shrinks with depth."""
        for linear in (self.in_proj, self.x_proj, self.x_proj_b):
            nn.init.trunc_normal_(linear.weight, std=0.02)
        nn.init.kaiming_uniform_(self.out_proj.weight, a=math.sqrt(5))
        self.out_proj.weight /= math.sqrt(depth)
        for dt in (self.dt_proj, self.dt_proj_b):
            nn.init.uniform_(dt.weight, -(dt.in_features**-0.5), dt.in_features**-0.5)
            wanted = torch.empty_like(dt.bias).uniform_(math.log(1e-3), math.log(0.1)).exp()
            dt.bias.copy_(wanted.expm1().log())  # softplus(bias) is what was wanted


class Block(nn.Module):
    """A norm and a mixer on a residual stream."""

    def __init__(self, config: VimConfig, drop_path: float) -> None:
        super().__init__()
        self.norm = RMSNorm(config.width)
        self.mixer = Mixer(config)
        self.drop_rate = drop_path  # share of images whose block is skipped while training


class Vim(nn.Module):
    """Logits of images; parameters have the names and shapes of the published checkpoints.

    >>> Vim(VimConfig(image=(8, 8), patch=4, stride=4, width=16, depth=2, classes=10)).patches
    4
    """

    def __init__(self, config: VimConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.patches + 1, config.width))
        # The first block is never dropped; the others ever more often.
        last = max(1, config.depth - 1)
        rates = [config.drop_path * max(0, i - 1) / last for i in range(config.depth)]
        self.layers = nn.ModuleList(Block(config, rate) for rate in rates)
        self.norm_f = RMSNorm(config.width)
        self.head = nn.Linear(config.width, config.classes)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    @property
    def patches(self) -> int:
        """Number of patch tokens of an image."""
        return self.config.patches

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes"]:
        """Logits. Raises ConfigError when the images have another size than the model."""
        hidden, cls, _ = embed(self, images)
        residual: Tensor | None = None
        for layer in self.layers:
            hidden, residual, _ = step(layer, hidden, residual)
        assert residual is not None
        return classify(self, hidden, residual, cls)
