"""A pruned denoiser's class, in a file that needs diffusers and torch and nothing else.

Copied beside the weights of a folder that is to load without compress3g.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

KEY = "compress3g"


def pruned_class(
    base: type[Any], shrink: Callable[[Any, Mapping[str, Any]], object], module: str
) -> type[Any]:
    """Subclass `Pruned<base>` of a diffusers model, whose configuration has one more key.

    It is built as its base is (on the meta device under `from_pretrained`: nothing is allocated),
    `shrink(model, config["compress3g"])` cuts it to shape, and weights arrive as they always do;
    so that shards, dtypes, device maps and quantisation work as they do for its base.
    module: where the class says it lives; diffusers writes it into model_index.json.
    """

    def __init__(self: Any, *args: Any, compress3g: Any = None, **kwargs: Any) -> None:
        base.__init__(self, *args, **kwargs)
        if compress3g is not None:
            shrink(self, compress3g)
        self.register_to_config(**{KEY: compress3g})

    # diffusers reads from the signature which keys of a configuration are wanted.
    signature = inspect.signature(base.__init__)
    extra = inspect.Parameter(KEY, inspect.Parameter.KEYWORD_ONLY, default=None)
    named = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    __init__.__signature__ = signature.replace(parameters=[*named, extra])  # type: ignore[attr-defined]
    name = f"Pruned{base.__name__}"
    doc = f"A {base.__name__} with units removed, as its configuration says."
    body = {"__init__": __init__, "__module__": module, "__qualname__": name, "__doc__": doc}
    return type(name, (base,), body)


def passed_on(kind: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What a block that is bypassed returns, of what it is given.

    kind: "first", its first argument; "tuple", the same as a tuple; "pair", the states of text and
    image; "channels n", the first n channels of its first argument.
    """
    first = args[0] if args else kwargs["hidden_states"]
    if kind == "pair":
        text = args[1] if len(args) > 1 else kwargs["encoder_hidden_states"]
        return text, first
    if kind == "tuple":
        return (first,)
    return first if kind == "first" else first[:, : int(kind.split()[1])]


class Bypassed(nn.Module):
    """What stands where a block was."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """See `passed_on`."""
        return passed_on(self.kind, args, kwargs)


def cut_to_table(model: nn.Module, about: Mapping[str, Any]) -> None:
    """Gives modules the shapes and sizes of `about["modules"]`, with nothing in them yet."""
    for name, kind in about.get("bypassed", {}).items():
        model.set_submodule(name, Bypassed(kind))
    for name, sizes in about["modules"].items():
        module = model.get_submodule(name)
        for attribute, value in sizes["sizes"].items():
            setattr(module, attribute, value)
        for tensor, shape in sizes["tensors"].items():
            old = getattr(module, tensor)
            like = module.weight if old is None else old
            assert isinstance(like, torch.Tensor)
            new = torch.empty(shape, dtype=like.dtype, device=like.device)
            setattr(module, tensor, nn.Parameter(new, requires_grad=like.requires_grad))
