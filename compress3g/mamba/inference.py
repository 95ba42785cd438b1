"""The architecture of a published checkpoint, out of names and shapes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

from torch import Tensor

from ..errors import FormatError
from .models import Config, MambaVisionConfig, PlainMambaConfig, VimConfig, VMambaConfig

_NAMES = {
    "Vim": (
        "patch_embed.proj.weight", "pos_embed", "layers.0.mixer.A_b_log", "head.weight",
    ),
    "PlainMamba": (
        "patch_embed.stem.0.weight", "patch_embed.projection.weight", "pos_embed",
        "layers.0.mamba.A_log", "head.fc.weight",
    ),
    "VMamba": (
        "patch_embed.0.weight", "layers.0.blocks.0.norm.weight", "layers.0.blocks.0.op.A_logs",
        "layers.0.blocks.0.op.in_proj.weight", "layers.0.blocks.0.mlp.fc1.weight",
        "classifier.head.weight",
    ),
    "MambaVision": (
        "patch_embed.conv_down.0.weight", "patch_embed.conv_down.3.weight",
        "levels.2.blocks.0.mixer.A_log", "levels.2.blocks.0.mlp.fc1.weight", "head.weight",
    ),
}  # fmt: skip


def infer(state: Mapping[str, Tensor], where: str = "the state dict") -> Config:
    """The architecture whose shapes these are.

    The size of images is not among them: 224 where that fits the positions, as in all published
    files, else patches side by side on a square. Of a MambaVision heads and windows are not among
    them either: they are those of the published ones. Raises FormatError for what is no model of
    ours.
    """
    kind = "Vim"
    if "layers.0.mamba.direction_Bs" in state:
        kind = "PlainMamba"
    elif any(name.endswith(".op.A_logs") for name in state):
        kind = "VMamba"
    elif any(name.startswith("levels.") for name in state):
        kind = "MambaVision"
    missing = [name for name in _NAMES[kind] if name not in state]
    if missing:
        raise FormatError(f"{where} is no {kind}: it lacks {', '.join(missing)}")
    try:
        return _INFER[kind](state, where)
    except FormatError:
        raise
    except (ValueError, IndexError):
        told = ", ".join(f"{name} {tuple(state[name].shape)}" for name in _NAMES[kind])
        raise FormatError(f"{where} is no {kind}: it has {told}") from None


def _count(state: Mapping[str, Tensor], under: str) -> int:
    """How many modules there are in the list called `under`."""
    return len({k[len(under) :].split(".")[0] for k in state if k.startswith(under)})


def _side(state: Mapping[str, Tensor], where: str, extra: int) -> int:
    shape = tuple(state["pos_embed"].shape)
    side = math.isqrt(shape[1] - extra)
    if side * side != shape[1] - extra:
        raise FormatError(f"{where}: positions {shape} are no square grid")
    return side


def _infer_vim(state: Mapping[str, Tensor], where: str) -> VimConfig:
    width, channels, patch, _ = state["patch_embed.proj.weight"].shape
    side = _side(state, where, 1)
    image, stride = patch * side, patch
    if patch == 16 and side > 1 and (224 - patch) % (side - 1) == 0:
        image, stride = 224, (224 - patch) // (side - 1)
    return VimConfig(
        image=(image, image),
        patch=patch,
        stride=stride,
        channels=channels,
        width=width,
        depth=_count(state, "layers."),
        state=state["layers.0.mixer.A_b_log"].shape[1],
        classes=state["head.weight"].shape[0],
    )


def _infer_plain(state: Mapping[str, Tensor], where: str) -> PlainMambaConfig:
    depth = _count(state, "layers.")
    width, _, half, _ = state["patch_embed.projection.weight"].shape
    side = _side(state, where, 0)
    return PlainMambaConfig(
        image=(2 * half * side, 2 * half * side),
        patch=2 * half,
        channels=state["patch_embed.stem.0.weight"].shape[1],
        width=width,
        depth=depth,
        state=state["layers.0.mamba.A_log"].shape[1],
        classes=state["head.fc.weight"].shape[0],
        stem_convs=sum(
            k.startswith("patch_embed.convs.") and v.ndim == 4 for k, v in state.items()
        ),
        depthwise=tuple(i for i in range(depth) if f"layers.{i}.dw.0.weight" in state),
    )


def _infer_vmamba(state: Mapping[str, Tensor], where: str) -> VMambaConfig:
    at = "layers.0.blocks.0."
    width, logs = state[f"{at}norm.weight"].shape[0], state[f"{at}op.A_logs"]
    inner = logs.shape[0] // 4
    found = state[f"{at}op.in_proj.weight"].shape[0]
    if found != inner:
        raise FormatError(
            f"{where} is a VMamba of another form: {found} rows of in_proj for {inner} channels "
            "(an early one with a gate has twice as many); only v05_noz is known"
        )
    stages = range(_count(state, "layers."))
    return VMambaConfig(
        channels=state["patch_embed.0.weight"].shape[1],
        width=width,
        depths=tuple(_count(state, f"layers.{i}.blocks.") for i in stages),
        state=logs.shape[1],
        expand=inner / width,
        mlp=state[f"{at}mlp.fc1.weight"].shape[0] / width,
        conv_bias=f"{at}op.conv2d.bias" in state,
        classes=state["classifier.head.weight"].shape[0],
    )


def _infer_vision(state: Mapping[str, Tensor], where: str) -> MambaVisionConfig:
    width, stem = state["patch_embed.conv_down.3.weight"].shape[:2]
    levels = _count(state, "levels.")
    heads = MambaVisionConfig().heads
    if levels != len(heads):
        raise FormatError(
            f"{where}: a MambaVision of {levels} stages has unknown heads and windows"
        )
    if width >= _WIDE:
        heads = tuple(2 * number for number in heads)
    return MambaVisionConfig(
        channels=state["patch_embed.conv_down.0.weight"].shape[1],
        width=width,
        stem=stem,
        depths=tuple(_count(state, f"levels.{i}.blocks.") for i in range(levels)),
        heads=heads,
        state=state["levels.2.blocks.0.mixer.A_log"].shape[1],
        mlp=state["levels.2.blocks.0.mlp.fc1.weight"].shape[0] / (4 * width),
        layer_scale="levels.2.blocks.0.gamma_1" in state,
        classes=state["head.weight"].shape[0],
    )


_WIDE = 196  # the published MambaVisions from this width on have twice as many heads

_INFER: dict[str, Callable[[Mapping[str, Tensor], str], Config]] = {
    "Vim": _infer_vim,
    "PlainMamba": _infer_plain,
    "VMamba": _infer_vmamba,
    "MambaVision": _infer_vision,
}

# Names that the authors of VMamba have given the same weights over time.
_RENAMED = (
    (r"\.ln_1\.", ".norm."),
    (r"\.self_attention\.", ".op."),
    (r"\.op\.x_proj\.weight$", ".op.x_proj_weight"),
    (r"\.op\.dt_projs\.(weight|bias)$", r".op.dt_projs_\1"),
    (r"^patch_embed\.proj\.", "patch_embed.0."),
    (r"^(norm|head)\.", r"classifier.\1."),
)
_LINEAR = re.compile(r"\.(in_proj|out_proj|fc1|fc2)\.weight$")


def published_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A VMamba's tensors under one set of names and shapes; other models' as they are.

    >>> import torch
    >>> old = {"a.self_attention.A_logs": torch.zeros(8, 1), "norm.bias": torch.zeros(2)}
    >>> list(published_names(old))
    ['a.op.A_logs', 'classifier.norm.bias']
    """
    if not any(name.endswith(".A_logs") for name in state):
        return dict(state)
    renamed = {}
    for name, tensor in state.items():
        for old, new in _RENAMED:
            name = re.sub(old, new, name)
        renamed[name] = tensor.flatten(1) if _LINEAR.search(name) else tensor
    for name in list(renamed):
        if name.endswith(".op.A_logs"):
            _apart(renamed, name.removesuffix("A_logs"), renamed[name].shape[0] // 4)
    return renamed


def _apart(state: dict[str, Tensor], at: str, inner: int) -> None:
    """Weights of four directions that lie in one matrix as four."""
    for name, shape in (("x_proj_weight", (4, -1, inner)), ("dt_projs_weight", (4, inner, -1))):
        tensor = state.get(at + name)
        if tensor is not None and inner and tensor.numel() % (4 * inner) == 0:
            state[at + name] = tensor.reshape(shape)
