"""Estimation: gates under an l1 penalty, and what their gradients and the adapters' say."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..core import Gates, Keep, Masks, Scalar, Units, gated
from ..criteria import GradualShrink
from ..errors import ScoreError
from .config import LightPeftConfig
from .importance import AdapterImportance
from .units import base_of


@dataclass(frozen=True, slots=True)
class Scores:
    """What the estimation found, on the CPU, higher is better.

    units: by criterion ("l1_mask", "taylor", "fisher"), one number per head or neuron; gates: their
    final multipliers; modules, ranks: by adapted layer.
    """

    units: dict[str, Gates]
    gates: Gates
    modules: dict[str, Tensor]
    ranks: dict[str, Tensor]
    steps: int
    skipped: int = 0


class Estimator:
    """Gates at the readers of `units` while it is open, trained beside the adapters.

    The gates are float32 and no part of the model: nothing of them enters its state, its optimiser
    or gradient clipping. L = L_task + l1 sum |m|, m = 1 at the start; AdamW without decay.
    steps: how many are planned; adapters are looked at in the second half.
    """

    def __init__(
        self, model: nn.Module, units: Sequence[Units], config: LightPeftConfig, *, steps: int
    ) -> None:
        self._model, self._base, self._config = model, base_of(model), config
        self.units = list(units)
        self._planned, self.done, self.skipped = steps, 0, 0
        device = next(self._base.parameters()).device
        self.masks = Masks(self.units, Scalar(), init=1.0).to(device)
        self._leaves = {u.name: self.masks.logits[u.name.replace(".", "/")] for u in self.units}
        self._optimizer = torch.optim.AdamW(self.masks.parameters(), lr=0.0, weight_decay=0.0)
        zeros = {u.name: torch.zeros(u.size, device=device) for u in self.units}
        self._taylor, self._fisher = zeros, {n: torch.zeros_like(t) for n, t in zeros.items()}
        self._counts = dict.fromkeys(zeros, 0)
        paper = config.rank_score == "paper"
        self.adapters = AdapterImportance(model, per_size=paper)
        self._shrink: GradualShrink | None = None
        self._open, self._watching = ExitStack(), ExitStack()

    def __enter__(self) -> Estimator:
        self._follow()
        gates = gated(self._base, self.units, self._multipliers, called=self._model)
        self._open.enter_context(gates)
        self._open.push(self._watching)
        if self.done >= self._planned // 2:
            self._watching.enter_context(self.adapters.watching())
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.close()

    def _follow(self) -> None:
        """All that is kept goes where the model is: a Trainer may have moved it since."""
        device = next(self._base.parameters()).device
        self.masks.to(device)
        for held in (self._taylor, self._fisher):
            held.update({name: t.to(device) for name, t in held.items()})
        for state in self._optimizer.state.values():
            state.update({k: t if k == "step" else t.to(device) for k, t in state.items()})
        self.adapters.to(device)

    def _multipliers(self) -> Gates:
        gates = self.masks.sample()
        if self._shrink is None:
            return gates
        fading = self._shrink.gates
        return {name: g * fading[name].to(g.device) for name, g in gates.items()}

    def fade(self, keep: Keep, steps: int) -> None:
        """From now on what `keep` leaves out shrinks to exactly nothing within `steps` steps."""
        self._shrink = GradualShrink(self.units)
        self._shrink.fade(keep, steps)

    def shrink(self) -> None:
        """One step of what `fade` began."""
        if self._shrink is not None:
            self._shrink.step()

    def _watch(self) -> None:
        if self.done == self._planned // 2:
            self._watching.enter_context(self.adapters.watching())

    def __call__(self, learning_rate: float, *, scale: float = 1.0) -> bool:
        """After `backward`, before the optimiser's step: the gates' own step.

        learning_rate: the adapters'; scale: what a gradient scaler multiplied the loss by. Returns
        False, and looks at nothing, when a gradient is not finite: skip the optimiser's step too.
        """
        found = {n: z.grad for n, z in self._leaves.items() if z.grad is not None}
        if scale != 1.0 and found:
            found = dict(zip(found, torch._foreach_div([*found.values()], scale), strict=True))
        found = self._shared(found)
        self.done += 1
        if not _finite([*found.values(), *self.adapters.gradients()]):
            self.skipped += 1
            self._optimizer.zero_grad()
            self.adapters.discard()
            self._watch()
            return False
        self._count(found)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate * self._config.mask_lr_mult
        self._optimizer.step()
        self._optimizer.zero_grad()
        if self.done > self._planned // 2:
            self.adapters.add()
        self.shrink()
        self._watch()
        return True

    def _count(self, found: Gates) -> None:
        """Scores by the gradients, which get the penalty's; not of a tower that was not used.

        All gates in one call each: layer by layer a GPU would wait for the launches.
        """
        if not found:
            return
        gates, grads = [self._leaves[name].detach() for name in found], [*found.values()]
        each = torch._foreach_mul(gates, grads)
        torch._foreach_add_([self._taylor[name] for name in found], torch._foreach_abs(each))
        torch._foreach_addcmul_([self._fisher[name] for name in found], each, each)
        penalty = torch._foreach_mul(torch._foreach_sign(gates), self._config.l1)
        for name, g in zip(found, torch._foreach_add(grads, penalty), strict=True):
            self._counts[name] += 1
            self._leaves[name].grad = g

    def _shared(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """The mean over the processes of a distributed run, so that all gates stay the same."""
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return found
        there = torch.tensor([int(u.name in found) for u in self.units])
        there = there.to(next(self._base.parameters()).device)
        dist.all_reduce(there)
        whole = {}
        for u, count in zip(self.units, there.tolist(), strict=True):
            if count:  # what no process has a gradient of has none
                g = found.get(u.name, torch.zeros_like(self._taylor[u.name])).contiguous()
                dist.all_reduce(g)
                whole[u.name] = g / dist.get_world_size()
        return whole

    def scores(self) -> Scores:
        """What was found so far, the same on all processes. Raises ScoreError before any step."""
        if self.done == self.skipped:
            raise ScoreError("the estimation made no step: there is nothing to plan by")
        silent = [n for n, count in self._counts.items() if not count]
        if silent:
            raise ScoreError(f"{silent[0]} never got a gradient: exclude it, or look longer")
        gates = {n: z.detach().float().cpu() for n, z in self.masks.hard().items()}
        taylor = {n: t.cpu() / self._counts[n] for n, t in self._taylor.items()}
        fisher = {n: t.cpu() / self._counts[n] for n, t in self._fisher.items()}
        self.adapters.share()
        modules, each = self.adapters.means()
        units: dict[str, Gates] = {"l1_mask": gates, "taylor": taylor, "fisher": fisher}
        return Scores(units, gates, modules, each, self.done, self.skipped)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything, for a checkpoint: tensors and JSON values."""
        tensors: dict[str, Tensor] = {}
        for name, z in self._leaves.items():
            tensors[f"gate/{name}"] = z.detach()
            tensors[f"taylor/{name}"] = self._taylor[name]
            tensors[f"fisher/{name}"] = self._fisher[name]
            for key, value in self._optimizer.state.get(z, {}).items():
                tensors[f"adam/{key}/{name}"] = value
        adapters, about = self.adapters.state()
        tensors |= {f"adapter/{n}": t for n, t in adapters.items()}
        counts = {"done": self.done, "skipped": self.skipped, "counts": self._counts}
        return tensors, {**counts, "adapters": about}

    def restore(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        """The inverse of `state`, before the estimator is entered."""
        for name, z in self._leaves.items():
            with torch.no_grad():
                z.copy_(tensors[f"gate/{name}"])
            self._taylor[name].copy_(tensors[f"taylor/{name}"])
            self._fisher[name].copy_(tensors[f"fisher/{name}"])
            saved = {
                key: tensors[f"adam/{key}/{name}"].to(z.device if key != "step" else "cpu")
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"adam/{key}/{name}" in tensors
            }
            if saved:
                self._optimizer.state[z] = saved
        self.done, self.skipped = int(about["done"]), int(about["skipped"])
        self._counts = dict(about["counts"])
        inner = {n.removeprefix("adapter/"): t for n, t in tensors.items() if n[:8] == "adapter/"}
        self.adapters.restore(inner, about["adapters"])


def _finite(gradients: Sequence[Tensor]) -> bool:
    """Whether all numbers are; a device is waited for once."""
    if not gradients:
        return True
    largest = torch._foreach_norm(list(gradients), float("inf"))  # of NaN it is NaN
    return bool(torch.stack([t.float() for t in largest]).isfinite().all())
