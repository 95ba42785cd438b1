"""The terrain U-Net of `adaptive-terrain-diffusion` (PyPI, MIT), out of its ONNX file into torch.

A consistency model (2303.01469) in one step: noise of deviation 80 and a difficulty in [0, 1]
become a height field of 128 x 128 in [-1, 1]. The layout is that of ADM (2105.05233): residual
blocks with scale and shift, which also resample; self-attention of 32-channel heads at 32 x 32 and
below. Modules are named as diffusers names them, so that compress3g finds heads and channel groups.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from compress3g.diffusion.adapters import ADAPTERS, Adapter

SIZE, SIGMA_MIN, SIGMA_MAX, SIGMA_DATA = 128, 0.002, 80.0, 0.5
GROUPS = 32
WEIGHTS = "weights/terrain_consistency_unet_difficulty100.onnx"


class Residual(nn.Module):
    """x + conv2(silu(norm2(conv1(silu(norm1 x))) (1 + scale) + shift)), perhaps at another size."""

    def __init__(self, inputs: int, outputs: int, wide: int, resample: str = "") -> None:
        super().__init__()
        self.resample = resample
        self.norm1 = nn.GroupNorm(GROUPS, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time_emb_proj = nn.Linear(wide, 2 * outputs)
        self.norm2 = nn.GroupNorm(GROUPS, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = F.silu(self.norm1(x))
        if self.resample == "down":
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        elif self.resample == "up":
            h, x = (F.interpolate(y, scale_factor=2.0) for y in (h, x))
        h = self.norm2(self.conv1(h))
        scale, shift = self.time_emb_proj(F.silu(embedding))[..., None, None].chunk(2, 1)
        return self.conv_shortcut(x) + self.conv2(F.silu(h * (1 + scale) + shift))


class Attention(nn.Module):
    """Self-attention over pixels."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.heads = channels // width
        self.group_norm = nn.GroupNorm(GROUPS, channels)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        rows = self.group_norm(x).flatten(2).transpose(1, 2)
        q, k, v = (
            to(rows).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for to in (self.to_q, self.to_k, self.to_v)
        )
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.to_out[0](seen).transpose(1, 2).reshape(x.shape)


class TerrainUNet(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """(noisy (n, 1, h, w), sigma (n,), difficulty (n,)) -> denoised (n, 1, h, w)."""

    @register_to_config
    def __init__(
        self,
        channels: int = 32,
        multipliers: Sequence[int] = (1, 1, 2, 3, 4),
        blocks: int = 4,
        attention_from: int = 2,
        head_width: int = 32,
    ) -> None:
        super().__init__()
        wide = 4 * channels
        self.time_embed = nn.Sequential(nn.Linear(channels, wide), nn.SiLU(), nn.Linear(wide, wide))
        self.label_emb = nn.Sequential(nn.Linear(1, wide), nn.SiLU(), nn.Linear(wide, wide))

        def stage(level: int, inputs: int) -> list[nn.Module]:
            outputs = channels * multipliers[level]
            attention = [Attention(outputs, head_width)] if level >= attention_from else []
            return [Residual(inputs, outputs, wide), *attention]

        self.conv_in = nn.Conv2d(1, channels, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        widths, now = [channels], channels
        for level, multiplier in enumerate(multipliers):
            for _ in range(blocks):
                self.down.append(nn.ModuleList(stage(level, now)))
                now = channels * multiplier
                widths.append(now)
            if level < len(multipliers) - 1:
                self.down.append(nn.ModuleList([Residual(now, now, wide, "down")]))
                widths.append(now)
        self.middle = nn.ModuleList(
            [Residual(now, now, wide), Attention(now, head_width), Residual(now, now, wide)]
        )
        for level in reversed(range(len(multipliers))):
            for i in range(blocks + 1):
                parts = stage(level, now + widths.pop())
                now = channels * multipliers[level]
                if level and i == blocks:
                    parts.append(Residual(now, now, wide, "up"))
                self.up.append(nn.ModuleList(parts))
        self.norm_out = nn.GroupNorm(GROUPS, now)
        self.conv_out = nn.Conv2d(now, 1, 3, padding=1)

    def forward(
        self, noisy: Tensor, timestep: Tensor, difficulty: Tensor, return_dict: bool = True
    ) -> Any:
        """The clean field; in a tuple, as diffusers' denoisers have it, without `return_dict`."""
        sigma = timestep
        shifted, power = sigma - SIGMA_MIN, sigma.square() + SIGMA_DATA**2
        skip = SIGMA_DATA**2 / (shifted.square() + SIGMA_DATA**2)
        wide = lambda a: a[:, None, None, None]  # noqa: E731
        out = self._network(wide(power.rsqrt()) * noisy, 250 * sigma.log(), difficulty)
        out = wide(shifted * SIGMA_DATA * power.rsqrt()) * out + wide(skip) * noisy
        out = out.clamp(-1, 1)
        return out if return_dict else (out,)

    def _network(self, x: Tensor, time: Tensor, difficulty: Tensor) -> Tensor:
        half = self.time_embed[0].in_features // 2
        rate = torch.exp(-math.log(10000) * torch.arange(half, device=x.device) / half)
        angle = time[:, None] * rate
        embedding = self.time_embed(torch.cat([angle.cos(), angle.sin()], -1))
        embedding = embedding + self.label_emb(difficulty[:, None])
        x = self.conv_in(x)
        kept = [x]
        for parts in self.down:
            for part in parts:
                x = part(x, embedding)
            kept.append(x)
        for part in self.middle:
            x = part(x, embedding)
        for parts in self.up:
            x = torch.cat([x, kept.pop()], 1)
            for part in parts:
                x = part(x, embedding)
        return self.conv_out(F.silu(self.norm_out(x)))


class OneStep:
    """A consistency model's scheduler: the first answer is the last."""

    def __init__(self) -> None:
        self.timesteps = torch.tensor([SIGMA_MAX])

    def step(self, out: Tensor, t: Tensor, z: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        return (out,)


class Pipe:
    """As much of a pipeline as pruning and learning look at: a prompt is a difficulty."""

    def __init__(self, unet: TerrainUNet) -> None:
        self.unet, self.scheduler = unet, OneStep()

    def register_modules(self, unet: Any) -> None:
        self.unet = unet

    def set_progress_bar_config(self, **_: Any) -> None:
        pass

    def maybe_free_model_hooks(self) -> None:
        pass

    def __call__(
        self,
        prompt: Sequence[str],
        num_inference_steps: int = 1,
        generator: Sequence[torch.Generator] = (),
        output_type: str = "latent",
        guidance_scale: float = 1.0,
    ) -> Tensor:
        z = torch.cat([torch.randn(1, 1, SIZE, SIZE, generator=g) for g in generator]) * SIGMA_MAX
        told = torch.tensor([float(p) for p in prompt])
        for t in self.scheduler.timesteps:
            out = self.unet(z, t.expand(len(z)), told, return_dict=False)[0]
            z = self.scheduler.step(out, t, z, return_dict=False)[0]
        return z


ADAPTERS["TerrainUNet"] = Adapter(
    timestep=lambda t, rows, *_: t.expand(rows),
    output=lambda out, *_: out,
    latent="noisy",
    scaled=False,
)


def onnx_file(given: Path | None = None) -> Path:
    """The network's file: the given one, or that of the installed package."""
    if given is not None:
        return given
    found = importlib.util.find_spec("terrain_diffusion")
    if found is None or not found.submodule_search_locations:
        raise SystemExit(
            "needs --weights FILE.onnx, or: pip install --no-deps adaptive-terrain-diffusion==0.4.2"
        )
    return Path(found.submodule_search_locations[0]) / WEIGHTS


def load(file: Path) -> TerrainUNet:
    """The network with the weights of the ONNX file."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(file)).graph
    tensors = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    made = {output: node for node in graph.node for output in node.output}
    # The exporter has taken norms apart, y = x * weight + bias: they are told by their order.
    norms: list[tuple[Tensor, Tensor]] = []
    for node in graph.node:
        if node.op_type == "Add" and node.output[0].startswith("group_norm"):
            scaled = made[node.input[0]]
            norms.append((tensors[scaled.input[1]].flatten(), tensors[node.input[1]].flatten()))
    model = TerrainUNet()
    state: dict[str, Tensor] = {}
    for (name, _), (weight, bias) in zip(_norms(model), norms, strict=True):
        state |= {f"{name}.weight": weight, f"{name}.bias": bias}
    for ours, theirs in _names(model):
        weight, bias = tensors[f"network.{theirs}.weight"], tensors[f"network.{theirs}.bias"]
        if theirs.endswith(".qkv"):
            for part, w, b in zip("qkv", weight.flatten(1).chunk(3), bias.chunk(3), strict=True):
                state |= {f"{ours}.to_{part}.weight": w, f"{ours}.to_{part}.bias": b}
        else:
            shape = model.get_submodule(ours).weight.shape
            state |= {f"{ours}.weight": weight.reshape(shape), f"{ours}.bias": bias}
    model.load_state_dict(state)
    return model.eval()


def _norms(model: TerrainUNet) -> Iterator[tuple[str, nn.Module]]:
    """In the order in which they run, which is that of their definition."""
    parts = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.GroupNorm)]
    place = {"down": 0, "middle": 1, "up": 2, "norm_out": 3}
    yield from sorted(parts, key=lambda p: place[p[0].split(".")[0]])


def _names(model: TerrainUNet) -> Iterator[tuple[str, str]]:
    """Modules of the port and those of the file."""
    for sequence in ("time_embed", "label_emb"):
        yield from ((f"{sequence}.{i}", f"{sequence}.{i}") for i in (0, 2))
    yield from (("conv_in", "input_blocks.0.0"), ("conv_out", "out.2"))
    places = {"middle": "middle_block"}
    places |= {f"down.{i}": f"input_blocks.{i + 1}" for i in range(len(model.down))}
    places |= {f"up.{i}": f"output_blocks.{i}" for i in range(len(model.up))}
    inside = {
        "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }  # fmt: skip
    for ours, theirs in places.items():
        for i, part in enumerate(model.get_submodule(ours).children()):
            if isinstance(part, Attention):
                yield f"{ours}.{i}", f"{theirs}.{i}.qkv"
                yield f"{ours}.{i}.to_out.0", f"{theirs}.{i}.proj_out"
                continue
            for name, there in inside.items():
                if not isinstance(part.get_submodule(name), nn.Identity):
                    yield f"{ours}.{i}.{name}", f"{theirs}.{i}.{there}"
