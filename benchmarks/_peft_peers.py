"""Other tools and another score at a third of heads and neurons, for the table of Light-PEFT."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from compress3g.core import Units

Batch = dict[str, Tensor]


class CannotRun(Exception):
    """A peer that is not installed, or that does nothing with this model; the text says which."""


class Salience:
    """APT's score of heads and neurons (2401.12200, equation 5), while it is open.

    sum |dL/dx| times sum |x| over a batch, of what each unit hands to its reader, summed over the
    batches, and the root of the kurtosis of x. The paper adds the two as they come, whose scales
    have nothing to do with each other; here each is divided by its mean over the layer.
    """

    def __init__(self, base: nn.Module, units: Sequence[Units]) -> None:
        self._base, self._units, self._open = base, list(units), ExitStack()
        self._product: dict[str, Tensor] = {}
        self._moments: dict[str, list[Tensor]] = {}

    def __enter__(self) -> Salience:
        for unit in self._units:
            reader = self._base.get_submodule(unit.reads[0].module)
            hook = reader.register_forward_pre_hook(self._looking_at(unit))
            self._open.callback(hook.remove)
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.close()

    def _looking_at(self, unit: Units) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def look(_: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0]
            if not x.requires_grad:
                return
            seen = x.detach().flatten(0, -2).unflatten(-1, (unit.size, -1))  # token, unit, width
            old = self._moments.get(unit.name, [torch.zeros(())] * 5)
            powers = [seen.pow(p).sum(dim=(0, 2)) for p in range(5)]
            self._moments[unit.name] = [a + b for a, b in zip(old, powers, strict=True)]
            sizes = seen.abs().sum(dim=(0, 2))

            def add(gradient: Tensor) -> None:
                g = gradient.flatten(0, -2).unflatten(-1, (unit.size, -1)).abs().sum(dim=(0, 2))
                self._product[unit.name] = self._product.get(unit.name, torch.zeros(())) + g * sizes

            x.register_hook(add)

        return look

    def scores(self) -> dict[str, Tensor]:
        """One number a unit, higher stays."""
        return {
            name: (product / product.mean() + _root_kurtosis(*self._moments[name])).cpu()
            for name, product in self._product.items()
        }


def _root_kurtosis(n: Tensor, s1: Tensor, s2: Tensor, s3: Tensor, s4: Tensor) -> Tensor:
    m1, m2, m3, m4 = s1 / n, s2 / n, s3 / n, s4 / n
    variance = (m2 - m1**2).clamp(min=1e-12)
    fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
    root = (fourth / variance**2).clamp(min=0).sqrt()
    return root / root.mean()


def cut_by_torch_pruning(model: Any, batches: Sequence[Batch], share: float) -> None:
    """Its group Taylor score after `batches`: the same share of every layer, before any step."""
    if importlib.util.find_spec("torch_pruning") is None:
        raise CannotRun("torch-pruning is not installed")
    from _torch_pruning import cut_bert

    counts = {}
    for i, layer in enumerate(model.bert.encoder.layer):
        heads = layer.attention.self.num_attention_heads
        counts[f"encoder.layer.{i}.attention.heads"] = round((1 - share) * heads)
        counts[f"encoder.layer.{i}.neurons"] = round(
            (1 - share) * layer.intermediate.dense.out_features
        )

    def backward(_: Any) -> None:
        for batch in batches:
            (model(**batch).loss / len(batches)).backward()

    cut_bert(model.bert, counts, 0.0, backward)
    model.zero_grad()


def cut_by_slimformers(model: Any, batches: Sequence[Batch], share: float) -> None:
    """slimformers' mean activations over `batches`, before any step."""
    if importlib.util.find_spec("slimformers") is None:
        raise CannotRun("slimformers is not installed")
    import transformers.modeling_utils
    import transformers.pytorch_utils

    # slimformers 1.13.1 imports it from where transformers 4 had it.
    vars(transformers.modeling_utils)["Conv1D"] = transformers.pytorch_utils.Conv1D
    before = sum(p.numel() for p in model.parameters())
    pruner = importlib.import_module("slimformers").Pruner(model)
    pruner.prune(list(batches), strategy=["ffn", "attn"], sparsity=share, max_batches=len(batches))
    if sum(p.numel() for p in model.parameters()) == before:
        raise CannotRun("slimformers finds nothing to cut in this version's BERT")


CUT_FIRST: dict[str, Callable[[Any, Sequence[Batch], float], None]] = {
    "torch-pruning": cut_by_torch_pruning,
    "slimformers": cut_by_slimformers,
}
