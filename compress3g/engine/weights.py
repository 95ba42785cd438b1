"""A model's tensors, each once, for a file; and a skeleton that is filled with them again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import FormatError


def distinct_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Parameters and buffers by name, and for names that share memory with another, which.

    Buffers that are no part of the state dict are among them: a skeleton on the meta device has no
    other source for them.
    """
    tensors: dict[str, Tensor] = {}
    ties: dict[str, str] = {}
    first: dict[tuple[int, torch.Size], str] = {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, t in {**parameters, **dict(model.named_buffers(remove_duplicate=False))}.items():
        source = first.setdefault((t.data_ptr(), t.shape), name)
        if source == name or not t.numel():
            tensors[name] = t.detach().cpu().contiguous()
        else:
            ties[name] = source
    return tensors, ties


def fill(
    model: nn.Module, tensors: Mapping[str, Tensor], ties: Mapping[str, str], path: Path
) -> None:
    """Puts tensors in place of a skeleton's and ties what was tied; a bias may be new.

    Raises FormatError, naming `path` and the tensor, when the model has none of that name or shape,
    or when one of the model's stays without data.
    """
    for name, tensor in tensors.items():
        owner, leaf = _place(model, name, path)
        old = getattr(owner, leaf)
        if old is not None and old.shape != tensor.shape:
            raise FormatError(
                f"{path}: {name} is {tuple(tensor.shape)}, the model needs {tuple(old.shape)}"
            )
        if old is None or isinstance(old, nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=old is None or old.requires_grad)
        setattr(owner, leaf, tensor)
    for name, source in ties.items():
        owner, leaf = _place(model, name, path)
        setattr(owner, leaf, getattr(*_place(model, source, path)))
    for name, left in [*model.named_parameters(), *model.named_buffers()]:
        if left.is_meta:
            raise FormatError(f"{path} has no tensor for {name}")


def _place(model: nn.Module, name: str, path: Path) -> tuple[nn.Module, str]:
    owner, _, leaf = name.rpartition(".")
    try:
        module = model.get_submodule(owner)
        getattr(module, leaf)
    except AttributeError:
        raise FormatError(f"{path}: the model has no {name}") from None
    return module, leaf
