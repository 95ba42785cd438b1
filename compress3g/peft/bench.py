"""Two models against each other: time of a forward pass, parameters, what backward keeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..profile import compare, size_of
from ..transformer.prune import open_model
from .folder import ADAPTER, from_pretrained


def saved_bytes(fn: Callable[[], Any], model: Any) -> int:
    """Bytes that autograd keeps for backward during `fn`, each storage once, without parameters."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}
    held: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            held.append(t)  # so that no address is used twice
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = fn()
    del out
    return sum(kept.values())


def race(a: Path, b: Path, *, batch: int, length: int, seconds: float) -> dict[str, Any]:
    """Parameters of both, and how many times as long A's forward pass takes as B's, in turn."""
    models = [_open(folder) for folder in (a, b)]
    vocabulary = min(m.config.get_text_config().vocab_size for m in models)
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, (batch, length), generator=g)

    def forward(model: Any) -> Callable[[], Any]:
        def run() -> Any:
            with torch.inference_mode():
                return model(input_ids=ids)

        return run

    ratio = compare(forward(models[1]), forward(models[0]), seconds=seconds, clock="cpu")
    return {
        "params of A": size_of(models[0]).params,
        "params of B": size_of(models[1]).params,
        "time of A over B": ratio.median,
        "95 % interval from": ratio.low,
        "to": ratio.high,
    }


def _open(folder: Path) -> Any:
    if (folder / ADAPTER).is_dir():
        return from_pretrained(folder).eval()
    return open_model(folder, device=torch.device("cpu"))
