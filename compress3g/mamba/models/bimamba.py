"""The arithmetic of Vim's layers, over any module with the published names of parameters.

Functions rather than methods: a foreign Vim (hustvl's, or one registered elsewhere) has the same
names, and is run by the same lines when it is pruned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ...errors import ConfigError
from ...kernels.causal_conv import causal_conv1d
from ...kernels.selective_scan import selective_scan
from ..holes import Holes


@dataclass(frozen=True, slots=True)
class Direction:
    """Parameters of one direction of a mixer."""

    conv: nn.Conv1d
    x_proj: nn.Linear
    dt_proj: nn.Linear
    a_log: Tensor  # (E, N)
    skip: Tensor  # D (E)
    reverse: bool


def directions(mixer: Any) -> tuple[Direction, Direction]:
    """Forward and backward; note that the backward A is called A_b_log."""
    m = mixer
    return (
        Direction(m.conv1d, m.x_proj, m.dt_proj, m.A_log, m.D, False),
        Direction(m.conv1d_b, m.x_proj_b, m.dt_proj_b, m.A_b_log, m.D_b, True),
    )


@dataclass(frozen=True, slots=True)
class Scanned:
    """What one direction's scan read, in the order of tokens; scores are made of it."""

    u: Float[Tensor, "b l e"]
    raw_delta: Float[Tensor, "b l e"]  # before bias and softplus
    B: Float[Tensor, "b l n"]
    C: Float[Tensor, "b l n"]
    parameters: Direction

    @property
    def delta(self) -> Float[Tensor, "b l e"]:
        """Delta = softplus(W_dt r + b)."""
        return F.softplus((self.raw_delta + self.parameters.dt_proj.bias).float())


@dataclass(frozen=True, slots=True)
class Mixed:
    """Inside of one mixer call: y and y * silu(z), each summed over directions."""

    y: Float[Tensor, "b l e"]  # with D u, before the gate
    gated: Float[Tensor, "b l e"]
    backward_gated: Float[Tensor, "b l e"] | None = None
    scanned: tuple[Scanned, ...] = ()
    delta: Float[Tensor, "b l e"] | None = None  # where all directions share it


def _scan_inputs(way: Direction, x: Tensor, holes: Holes | None) -> Scanned:
    weight = way.conv.weight.squeeze(1)
    if holes is None:
        u = causal_conv1d(x, weight, way.conv.bias, reverse=way.reverse, activation="silu")
    else:
        u = causal_conv1d(
            x,
            weight,
            way.conv.bias,
            reverse=way.reverse,
            activation="silu",
            **holes.convolution,
        )
    rank, state = way.dt_proj.in_features, way.a_log.shape[1]
    r, b, c = way.x_proj(u).split([rank, state, state], dim=-1)
    weight = way.dt_proj.weight
    if holes is None or holes.longer is None:
        raw = F.linear(r, weight)
    else:  # the sum is made where the product is: a pass over all of it would cost a percent
        longer = holes.longer.to(r.dtype).flatten(0, 1)
        raw = torch.addmm(longer, r.flatten(0, 1), weight.t()).view(*r.shape[:2], -1)
    if holes is not None and holes.valid is not None:
        # Padding neither adds to the state nor lets it decay: u = 0 and Delta = softplus(-inf) = 0.
        u = u.masked_fill(~holes.valid[..., None], 0)
        raw = raw.masked_fill(~holes.valid[..., None], -1e4)
    return Scanned(u, raw, b, c, way)


def mix(
    mixer: Any, x: Float[Tensor, "b l d"], holes: Holes | None = None, *, inside: bool = False
) -> tuple[Float[Tensor, "b l d"], Mixed | None]:
    """out_proj((forward + backward) / 2), and with `inside` what scores are made of.

    h_k = exp((Delta_k + G_k) A) h_(k-1) + Delta_k B_k u_k, where G_k is the decay over the hole
    before token k (`Holes`); without holes G = 0 and this is Vim's recurrence.
    """
    x, z = mixer.in_proj(x).chunk(2, dim=-1)
    if holes is not None and holes.valid is not None:
        x = x.masked_fill(~holes.valid[..., None], 0)
    outputs: list[Any] = []
    scans = []
    for index, way in enumerate(directions(mixer)):
        s = _scan_inputs(way, x, holes)
        scans.append(s)
        outputs.append(_scan(s, z, holes, index, inside))
    if not inside:
        return mixer.out_proj((outputs[0] + outputs[1]) / 2), None
    (forward, y_forward), (backward, y_backward) = outputs
    both = forward + backward
    mixed = Mixed(y_forward + y_backward, both, backward, (scans[0], scans[1]))
    return mixer.out_proj(both / 2), mixed


def _scan(s: Scanned, z: Tensor, holes: Holes | None, index: int, inside: bool) -> Any:
    way = s.parameters
    settings: dict[str, Any] = {
        "delta_bias": way.dt_proj.bias,
        "delta_softplus": True,
        "reverse": way.reverse,
    }
    a = -way.a_log.float().exp()
    if inside:
        settings["return_ungated"] = True
    if holes is None or not holes.decays:
        return selective_scan(s.u, s.raw_delta, a, s.B, s.C, way.skip, z, **settings)
    if holes.align == "masked":
        return holes.run_whole(selective_scan, s, a, z, settings)
    return selective_scan(
        s.u, s.raw_delta, a, s.B, s.C, way.skip, z, **settings, **holes.decay(index, s)
    )


def step(
    layer: Any,
    hidden: Float[Tensor, "b l d"],
    residual: Float[Tensor, "b l d"] | None,
    holes: Holes | None = None,
    *,
    inside: bool = False,
) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b l d"], Mixed | None]:
    """One block: residual += hidden, hidden = mixer(norm(residual)); the residual is float32."""
    if residual is None:
        residual = hidden.float()
    else:
        residual = residual + drop_path(hidden, getattr(layer, "drop_rate", 0.0), layer.training)
    out, mixed = mix(layer.mixer, _norm(layer.norm, residual), holes, inside=inside)
    return out, residual, mixed


def drop_path(
    hidden: Float[Tensor, "b l d"], rate: float, training: bool
) -> Float[Tensor, "b l d"]:
    """In training, zeros for a share of the images and more for the others (1603.09382)."""
    if not training or rate == 0:
        return hidden
    stays = torch.rand(len(hidden), 1, 1, device=hidden.device) >= rate
    return hidden * stays / (1 - rate)


def _norm(norm: Any, x: Tensor) -> Tensor:
    """RMSNorm from weight and eps alone: a foreign one may be a fused kernel."""
    weight = norm.weight
    return F.rms_norm(x.to(weight.dtype), weight.shape, weight, norm.eps)


def embed(
    model: Any, images: Float[Tensor, "b c h w"]
) -> tuple[Float[Tensor, "b l d"], Int[Tensor, "b"], tuple[int, int]]:
    """Tokens with the class token in the middle, its index per image, and the grid of patches."""
    x = model.patch_embed.proj(images)
    grid = (x.shape[2], x.shape[3])
    x = x.flatten(2).transpose(1, 2)
    patches = x.shape[1]
    if model.pos_embed.shape[1] != patches + 1:
        high, wide = images.shape[2:]
        raise ConfigError(
            f"images of {high}x{wide} give {patches} patches but the model's positions are for "
            f"{model.pos_embed.shape[1] - 1}: resize the images, or load with positions for them"
        )
    middle = patches // 2
    cls = model.cls_token.expand(len(x), -1, -1)
    x = torch.cat([x[:, :middle], cls, x[:, middle:]], dim=1) + model.pos_embed
    return x, torch.full((len(x),), middle, device=x.device), grid


def as_map(
    model: Any, tokens: Float[Tensor, "b l d"], grid: tuple[int, int]
) -> Float[Tensor, "b d rows columns"]:
    """Normalised patch tokens on their grid, the class token left out."""
    middle = grid[0] * grid[1] // 2
    patches = torch.cat([tokens[:, :middle], tokens[:, middle + 1 :]], dim=1)
    normed = _norm(model.norm_f, patches).transpose(1, 2)
    return normed.reshape(*normed.shape[:2], *grid)


def classify(
    model: Any,
    hidden: Float[Tensor, "b l d"],
    residual: Float[Tensor, "b l d"],
    cls: Int[Tensor, "b"],
) -> Float[Tensor, "b classes"]:
    """Logits of the class token's row."""
    row = torch.arange(len(cls), device=cls.device)
    out: Tensor = model.head(_norm(model.norm_f, residual[row, cls] + hidden[row, cls]))
    return out
