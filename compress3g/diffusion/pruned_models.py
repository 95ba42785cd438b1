"""Pruned pipelines as ordinary diffusers folders."""

from __future__ import annotations

import base64
import binascii
import inspect
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core import Keep, Units, materialize
from ..core.surgery import Skip, digest
from ..engine.checkpoint import write_json
from ..engine.folder import atomic_folder
from ..errors import ConfigError, FormatError, require
from . import standalone
from .blocks import blocks_of, kind_of_block, units_in_blocks
from .pipelines import denoiser_of
from .units import kind_of, units_of

KEY = standalone.KEY
_VERSION = 1
_PREFIX = "Pruned"
_LIBRARY = "compress3g.diffusion"  # where diffusers looks for the classes
_BESIDE = "pruned_model"  # the module of a folder that needs no compress3g


@cache
def class_of(base: type[Any]) -> type[Any]:
    """`Pruned<base>`, the class that `from_pretrained` builds, cuts and fills."""
    return standalone.pruned_class(base, shrink, _LIBRARY)


def class_named(name: str) -> type[Any]:
    """`class_of` the diffusers class that "Pruned..." names. Raises AttributeError without one."""
    if not name.startswith(_PREFIX):
        raise AttributeError(f"module {_LIBRARY!r} has no attribute {name!r}")
    diffusers = require("diffusers", extra="diffusion", purpose="diffusion pipelines")
    try:
        return class_of(getattr(diffusers, name.removeprefix(_PREFIX)))
    except AttributeError:
        raise AttributeError(f"diffusers {diffusers.__version__} has no {name[6:]}") from None


def is_pruned(model: nn.Module) -> bool:
    """Whether a denoiser has been pruned, in this process or before."""
    return type(model).__name__.startswith(_PREFIX) and bool(_about(model))


def _about(model: Any) -> Mapping[str, Any] | None:
    found: Mapping[str, Any] | None = getattr(model, "config", {}).get(KEY)
    return found


def base_of(model: nn.Module) -> type[Any]:
    """The diffusers class of a denoiser, pruned or not."""
    kind = type(model)
    return kind.__mro__[1] if kind.__name__.startswith(_PREFIX) else kind


def dense_skeleton(model: Any) -> Any:
    """The denoiser as it was before any pruning, without weights."""
    base = base_of(model)
    known = inspect.signature(base.__init__).parameters
    with torch.device("meta"):
        return base(**{k: v for k, v in model.config.items() if k in known})


def describe(
    units: Sequence[Units],
    keep: Keep,
    biases: Sequence[str],
    facts: Mapping[str, Any],
    blocks: Sequence[Units] = (),
) -> dict[str, Any]:
    """What the configuration says under "compress3g".

    units: all of the dense denoiser's; blocks: those that are bypassed.
    """
    groups = {
        u.name: {"kind": kind_of(u), "units": u.size, "keep": _pack(keep[u.name], u.size)}
        for u in units
        if len(keep[u.name]) < u.size
    }
    about = {"version": _VERSION, **facts, "digest": digest(units), "groups": groups}
    if blocks:
        about["bypassed"] = {str(u.bypass): kind_of_block(u) for u in blocks}
    return {**about, "biases": sorted(biases)}


def _pack(kept: Tensor, size: int) -> str:
    bits = torch.zeros(size, dtype=torch.bool).index_fill(0, kept.cpu(), True)
    return base64.b64encode(np.packbits(bits.numpy()).tobytes()).decode()


def _unpack(name: str, group: Mapping[str, Any], size: int) -> Tensor:
    try:
        packed = np.frombuffer(base64.b64decode(group["keep"], validate=True), np.uint8)
    except (KeyError, TypeError, binascii.Error):
        raise _edited(f"group {name!r} has no list of kept units") from None
    bits = np.unpackbits(packed)
    if group.get("units") != size or len(bits) != -(-size // 8) * 8 or bits[size:].any():
        raise _edited(f"group {name!r} has {group.get('units')} units, the model has {size}")
    if not bits.any():
        raise _edited(f"group {name!r} keeps no unit")
    return torch.from_numpy(bits[:size].nonzero()[0])


def _edited(what: str) -> FormatError:
    return FormatError(f"the configuration of the pruned denoiser was edited: {what}; prune again")


def kept_of(about: Mapping[str, Any], units: Sequence[Units]) -> Keep:
    """The decision that a configuration holds, by the dense model's units.

    Raises FormatError for another version and for whatever was edited by hand.
    """
    if about.get("version") != _VERSION:
        raise FormatError(
            f"the denoiser has format {about.get('version')}, this version reads {_VERSION}"
        )
    if about.get("digest") != digest(units):
        raise _edited("its sizes are not those of the model that was pruned")
    groups = about.get("groups")
    if not isinstance(groups, Mapping):
        raise _edited("it has no groups")
    unknown = [name for name in groups if name not in {u.name for u in units}]
    if unknown:
        raise _edited(f"the model has no group {unknown[0]!r}")
    whole = {u.name: torch.arange(u.size) for u in units}
    return whole | {
        u.name: _unpack(u.name, groups[u.name], u.size) for u in units if u.name in groups
    }


def shrink(model: nn.Module, about: Mapping[str, Any]) -> None:
    """Cuts a dense denoiser to what its configuration says. Raises FormatError."""
    units = units_of(model)
    keep = dict(kept_of(about, units))
    closed = bypassed_in(about, model)
    keep |= {u.name: torch.arange(u.size) for u in blocks_of(model)}
    keep |= {u.name: torch.arange(0) for u in closed}
    materialize(model, units_in_blocks(model, units), keep)
    for name in about.get("biases", ()):
        try:
            module = model.get_submodule(name)
        except AttributeError:
            raise _edited(f"the model has no {name}") from None
        weight = module.weight
        assert isinstance(weight, Tensor)
        module.bias = nn.Parameter(torch.zeros_like(weight[:, 0].reshape(len(weight), -1)[:, 0]))


def bypassed_in(about: Mapping[str, Any], model: nn.Module) -> list[Units]:
    """The blocks of a dense model that a configuration says are bypassed. Raises FormatError."""
    named = about.get("bypassed", {})
    if not isinstance(named, Mapping):
        raise _edited("its bypassed blocks are no table")
    known = {str(u.bypass): u for u in blocks_of(model)}
    for name, kind in named.items():
        if name not in known or kind_of_block(known[name]) != kind:
            raise _edited(f"the model has no block {name!r} to bypass")
    return [known[name] for name in named]


def adopt(pipe: Any, about: Mapping[str, Any]) -> None:
    """Makes a pipeline's denoiser, already cut, an instance of the class that can be saved."""
    attribute, model = denoiser_of(pipe)
    kind: Any = base_of(model)
    model.__class__ = class_of(kind)
    model.register_to_config(**{KEY: dict(about)})  # type: ignore[operator]
    pipe.register_modules(**{attribute: model})


def save(pipe: Any, folder: Path | str, *, self_contained: bool = False, **options: Any) -> None:
    """Writes a pipeline as a diffusers folder, whole or not at all.

    It loads with `DiffusionPipeline.from_pretrained(folder)` once compress3g.diffusion is imported;
    self_contained: with `trust_remote_code=True` on machines that have diffusers alone.
    options: of diffusers' `save_pretrained` (max_shard_size, variant).
    Raises ConfigError when the folder exists or a self-contained pipeline is not pruned.
    """
    attribute, model = denoiser_of(pipe)
    if self_contained and not is_pruned(model):
        raise ConfigError(
            f"{type(model).__name__} is not pruned: it needs no self-contained folder"
        )
    with atomic_folder(Path(folder)) as temporary:
        pipe.save_pretrained(temporary, **options)
        if self_contained:
            _put_beside(temporary, attribute, model)


def _put_beside(folder: Path, attribute: str, model: Any) -> None:
    config = json.loads((folder / attribute / "config.json").read_text())
    config[KEY]["modules"] = _difference(dense_skeleton(model), model)
    write_json(folder / attribute / "config.json", config)
    index = json.loads((folder / "model_index.json").read_text())
    index[attribute] = [_BESIDE, type(model).__name__]
    write_json(folder / "model_index.json", index)
    source = inspect.getsource(standalone)
    base = base_of(model).__name__
    source += f"\n\nfrom diffusers import {base}  # noqa: E402\n"
    source += f"\n{_PREFIX}{base} = pruned_class({base}, cut_to_table, __name__)\n"
    (folder / attribute / f"{_BESIDE}.py").write_text(source)


def _difference(dense: nn.Module, pruned: nn.Module) -> dict[str, Any]:
    """Shapes and integer attributes of modules that are not as in the dense model."""
    modules = dict(dense.named_modules())
    table: dict[str, Any] = {}
    for name, module in pruned.named_modules():
        if isinstance(module, Skip):
            continue
        before = modules[name]
        tensors = {
            n: list(p.shape)
            for n, p in module.named_parameters(recurse=False)
            if (old := before._parameters.get(n)) is None or old.shape != p.shape
        }
        sizes = {
            n: v
            for n, v in vars(module).items()
            if type(v) is int and not n.startswith("_") and vars(before).get(n) != v
        }
        if name and (tensors or sizes):
            table[name] = {"tensors": tensors, "sizes": sizes}
    return table
