"""LoRAs that were trained on the dense model, on a pruned one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ..core.surgery import slices
from ..errors import ConfigError
from .pipelines import denoiser_of
from .pruned_models import dense_skeleton, is_pruned, kept_of
from .units import units_of

# peft's names, diffusers' older ones, and those of attention processors before that.
_FORMS = (
    re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.\w+)?\.(?:weight|bias)"),
    re.compile(r"(?P<module>.+)\.lora(?:_linear_layer)?\.(?P<side>down|up)\.weight"),
    re.compile(r"(?P<module>.+)\.processor\.(?P<leaf>\w+)_lora\.(?P<side>down|up)\.weight"),
)


def load_lora(pipe: Any, lora: str | Path | Mapping[str, Tensor], **options: Any) -> None:
    """`pipe.load_lora_weights(lora, **options)` for a LoRA of the dense model.

    Rows and columns that were removed from the denoiser are removed from the LoRA, which then
    computes what pruning the denoiser with the LoRA merged into it would have computed. On a dense
    pipeline nothing is changed.
    Raises ConfigError when the LoRA cannot be read, is of another base, or a DoRA, which is not
    linear in it.
    """
    attribute, denoiser = denoiser_of(pipe)
    source = dict(lora) if isinstance(lora, Mapping) else str(lora)
    if not is_pruned(denoiser):
        _load(pipe, source, options)
        return
    read = pipe.lora_state_dict

    def lora_state_dict(*args: Any, **kwargs: Any) -> Any:
        found = read(*args, **kwargs)
        state, rest = (found[0], found[1:]) if isinstance(found, tuple) else (found, None)
        state = sliced(state, denoiser, f"{attribute}.")
        return state if rest is None else (state, *rest)

    # Reading is the one step of loading in between: scales, metadata and text encoders are its own.
    pipe.lora_state_dict = lora_state_dict
    try:
        _load(pipe, source, options)
    finally:
        del pipe.lora_state_dict


def _load(pipe: Any, source: dict[str, Tensor] | str, options: Mapping[str, Any]) -> None:
    try:
        pipe.load_lora_weights(source, **options)
    except ConfigError:
        raise
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()
        what = source if isinstance(source, str) else "the LoRA"
        raise ConfigError(
            f"{what} cannot be loaded onto {type(pipe).__name__}: {' '.join(reason[:2])}"
        ) from None


def sliced(state: Mapping[str, Tensor], denoiser: nn.Module, prefix: str) -> dict[str, Tensor]:
    """A LoRA's tensors by name without the rows and columns that a pruned denoiser has lost.

    prefix: of the names that belong to the denoiser; others pass. Raises ConfigError.
    """
    dense = dense_skeleton(denoiser)
    units = units_of(dense)
    model: Any = denoiser
    keep = kept_of(model.config["compress3g"], units)
    cuts = {(name, axis): kept for name, axis, _, kept in slices(dense, units, keep)}
    made: dict[str, Tensor] = {}
    for key, tensor in state.items():
        made[key] = tensor
        if not key.startswith(prefix) or key.endswith(".alpha"):
            continue
        module, side = _parsed(key.removeprefix(prefix), dense)
        dim = 0 if side == "B" else 1
        _check(key, tensor, dense, module, dim)
        kept = cuts.get((module, "out" if side == "B" else "in"))
        if kept is not None:
            made[key] = tensor.index_select(dim, kept.to(tensor.device)).contiguous()
    return made


def _parsed(key: str, dense: nn.Module) -> tuple[str, str]:
    """Module and side, A (inputs) or B (outputs)."""
    if "magnitude" in key or "dora" in key:
        raise ConfigError(f"{key} is of a DoRA: merge it into the dense model and prune that")
    for form in _FORMS:
        if (match := form.fullmatch(key)) is not None:
            parts = match.groupdict()
            module = parts["module"]
            if "leaf" in parts:
                leaf = parts["leaf"]
                module = f"{module}.{'to_out.0' if leaf == 'to_out' else leaf}"
            return module, {"down": "A", "up": "B"}.get(parts["side"], parts["side"])
    raise ConfigError(f"{key} is no name of a LoRA's tensor that is known")


def _check(key: str, tensor: Tensor, dense: nn.Module, module: str, dim: int) -> None:
    try:
        weight = dense.get_submodule(module).weight
    except AttributeError:
        raise ConfigError(f"the LoRA is of another base: the denoiser has no {module}") from None
    assert isinstance(weight, torch.Tensor)
    if tensor.dim() > dim and tensor.shape[dim] != weight.shape[dim]:
        raise ConfigError(
            f"the LoRA is of another base: {key} has {tensor.shape[dim]} channels, "
            f"{module} had {weight.shape[dim]} before it was pruned"
        )
