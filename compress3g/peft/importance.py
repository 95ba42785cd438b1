"""What an adapter is worth: how much it adds to its layer, and what each of its ranks does."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..engine.ranks import of_all_ranks
from .ratios import AdapterRatios
from .units import adapter_of, base_of, lora_layers


class AdapterImportance:
    """Running means, float32, on the layers' device; model: the PeftModel that is called.

    modules: mean over steps of the mean over tokens of ||DeltaW x|| / ||W x + b|| (2406.03792, the
    released code); ranks: mean over steps of |sum_i B_ik dL/dB_ik|. That of A is the same number:
    scaling row k of A or column k of B is one perturbation. per_size: times (1/d_in + 1/d_out), as
    the released code has it, which favours small layers.
    """

    def __init__(self, model: nn.Module, *, per_size: bool = False) -> None:
        self._model, self._adapter, self._per_size = model, adapter_of(model), per_size
        self._layers = lora_layers(base_of(model), self._adapter)
        self._ratios = AdapterRatios(model)
        self.modules: dict[str, Tensor] = {}
        self.ranks: dict[str, Tensor] = {}
        self.counts: dict[str, float] = {}
        self._forwards: dict[str, float] = {}

    def watching(self) -> AbstractContextManager[None]:
        """Ratios of the forward passes in this block wait for an `add` or `discard` in it."""
        return self._ratios.watching()

    def gradients(self) -> list[Tensor]:
        """What `add` reads: those of every layer's B that has one."""
        ups = (layer.lora_B[self._adapter].weight for layer in self._layers.values())
        return [up.grad for up in ups if up.grad is not None]

    def discard(self) -> None:
        """Forget the ratios since the last `add`: the step is not made."""
        self._ratios.discard()

    @torch.no_grad()
    def add(self) -> None:
        """Count the step's ratios and read the ranks' gradients, as the optimiser will."""
        names, means = self._ratios.taken()
        _add(self.modules, names, means)
        for name in names:
            self._forwards[name] = self._forwards.get(name, 0) + 1
        by_shape = defaultdict(list)
        for name, layer in self._layers.items():
            up = layer.lora_B[self._adapter].weight
            if up.grad is not None:
                by_shape[up.shape, layer.lora_A[self._adapter].weight.shape].append((name, up))
                self.counts[name] = self.counts.get(name, 0) + 1
        for (up_shape, down_shape), group in by_shape.items():  # all layers of a size at once
            values, grads = ([p for _, p in group], [p.grad for _, p in group])
            both = torch.stack(values).float() * torch.stack(grads).float()
            each = both.sum(1).abs()
            if self._per_size:
                each = each * (1 / down_shape[1] + 1 / up_shape[0])
            _add(self.ranks, [name for name, _ in group], each.unbind())

    def share(self) -> None:
        """Sums and counts become their means over the processes of a distributed run.

        So `means` are those over what all of them saw. All of them have to call this.
        """
        tables: tuple[dict[str, Any], ...] = (self.modules, self.ranks, self._forwards, self.counts)
        mine = [{n: torch.as_tensor(t).cpu() for n, t in table.items()} for table in tables[:2]]
        every: list[list[dict[str, Any]]] = of_all_ranks([*mine, *tables[2:]])
        if len(every) == 1:
            return
        for i, table in enumerate(tables):
            for name in sorted({n for found in every for n in found[i]}):
                table[name] = sum(found[i].get(name, 0) for found in every) / len(every)
        self.to(next(self._model.parameters()).device)

    def to(self, device: torch.device) -> None:
        """Moves the sums to where the model is."""
        for table in (self.modules, self.ranks):
            table.update({name: torch.as_tensor(t).to(device) for name, t in table.items()})

    def means(self) -> tuple[dict[str, Tensor], dict[str, Float[Tensor, "r"]]]:
        """Of modules and of ranks, on the CPU; layers that never took part score nothing."""
        modules, ranks = {}, {}
        for name, layer in self._layers.items():
            forwards, steps = self._forwards.get(name, 0), self.counts.get(name, 0)
            none = torch.zeros(int(layer.lora_A[self._adapter].out_features))
            modules[name] = torch.as_tensor(self.modules.get(name, 0.0)).cpu() / (forwards or 1)
            ranks[name] = torch.as_tensor(self.ranks.get(name, none)).cpu() / (steps or 1)
        return modules, ranks

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Sums and counts, for a checkpoint."""
        tensors = {f"module/{n}": torch.as_tensor(t).clone() for n, t in self.modules.items()}
        tensors |= {f"rank/{n}": t.clone() for n, t in self.ranks.items()}
        return tensors, {"forwards": self._forwards, "counts": self.counts}

    def restore(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        """The inverse of `state`."""
        for kind, table in (("module/", self.modules), ("rank/", self.ranks)):
            table.update(
                {n.removeprefix(kind): t.clone() for n, t in tensors.items() if n.startswith(kind)}
            )
        self.to(next(self._model.parameters()).device)
        self._forwards, self.counts = dict(about["forwards"]), dict(about["counts"])


def _add(table: dict[str, Tensor], names: Sequence[str], found: Sequence[Tensor]) -> None:
    """Adds each to the sum of its name: the first of every name in one call, then the second."""
    rounds: list[dict[str, Tensor]] = []
    times: dict[str, int] = defaultdict(int)
    for name, t in zip(names, found, strict=True):
        if times[name] == len(rounds):
            rounds.append({})
        rounds[times[name]][name] = t
        times[name] += 1
    for each in rounds:
        there = [name for name in each if name in table]
        if there:
            torch._foreach_add_([table[name] for name in there], [each[name] for name in there])
        table.update({name: t.clone() for name, t in each.items() if name not in table})
