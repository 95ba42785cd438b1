"""What an adapter is worth: how much it adds to its layer, and what each of its ranks does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..engine.ranks import of_all_ranks
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
        self.modules: dict[str, Tensor] = {}
        self.ranks: dict[str, Tensor] = {}
        self.counts: dict[str, float] = {}
        self._forwards: dict[str, float] = {}
        self._step: dict[str, list[Tensor]] = {}  # mean ratios of the step's forward passes so far
        self._ratios: dict[str, Tensor] = {}
        self._valid: Tensor | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Ratios of the forward passes in this block wait for the next `add` or `discard`."""
        with ExitStack() as stack:
            hook = self._model.register_forward_pre_hook(self._note, with_kwargs=True)
            stack.callback(hook.remove)
            for name, layer in self._layers.items():
                hook = layer.register_forward_hook(self._hook(name))
                stack.callback(hook.remove)
                # DoRA scales the layer's whole output: what it adds is seen beside the base's own.
                dora = self._adapter in getattr(layer, "lora_magnitude_vector", {})
                part = layer.base_layer if dora else layer.lora_A[self._adapter]
                inner = part.register_forward_hook(self._inner(name))
                stack.callback(inner.remove)
            yield

    def _note(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask")
        self._valid = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None

    def _inner(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, out: Tensor) -> None:
            if self._model.training:
                self._ratios[name] = out.detach()

        return hook

    def _hook(self, name: str) -> Any:
        @torch.no_grad()
        def hook(module: Any, args: Any, out: Tensor) -> None:
            inner = self._ratios.pop(name, None)
            if inner is None:
                return
            if self._adapter in getattr(module, "lora_magnitude_vector", {}):
                added = torch.linalg.vector_norm(out - inner, dim=-1, dtype=torch.float32)
                dense = torch.linalg.vector_norm(inner, dim=-1, dtype=torch.float32)
                self._take(name, added / dense.clamp_min(1e-6))
                return
            # The layer's output is W x + DeltaW x with DeltaW x = s B z. Norms by way of the ranks:
            # ||B z||^2 = z'(B'B)z, and ||W x||^2 = ||out||^2 - 2 <out, s B z> + ||s B z||^2.
            up = module.lora_B[self._adapter].weight
            z = inner.float() * float(module.scaling[self._adapter])
            delta = ((z @ (up.T @ up).float()) * z).sum(-1).clamp_min(0)
            along = ((out @ up.to(out.dtype)).float() * z).sum(-1)
            whole = torch.linalg.vector_norm(out, dim=-1, dtype=torch.float32).square()
            dense = (whole - 2 * along + delta).clamp_min(1e-12)
            self._take(name, (delta / dense).sqrt())

        return hook

    def _take(self, name: str, ratio: Float[Tensor, "..."]) -> None:
        if self._valid is not None and self._valid.shape == ratio.shape:
            weight = self._valid.to(ratio)
            mean = (ratio * weight).sum() / weight.sum().clamp_min(1)
        else:
            mean = ratio.mean()
        self._step.setdefault(name, []).append(mean)

    def gradients(self) -> list[Tensor]:
        """What `add` reads: those of every layer's B that has one."""
        ups = (layer.lora_B[self._adapter].weight for layer in self._layers.values())
        return [up.grad for up in ups if up.grad is not None]

    def discard(self) -> None:
        """Forget the ratios since the last `add`: the step is not made."""
        self._step.clear()

    @torch.no_grad()
    def add(self) -> None:
        """Count the step's ratios and read the ranks' gradients, as the optimiser will."""
        for name, ratios in self._step.items():
            self.modules[name] = self.modules.get(name, 0.0) + torch.stack(ratios).sum()
            self._forwards[name] = self._forwards.get(name, 0) + len(ratios)
        self.discard()
        for name, layer in self._layers.items():
            up = layer.lora_B[self._adapter].weight
            if up.grad is None:
                continue
            each = (up.float() * up.grad.float()).sum(0).abs()
            if self._per_size:
                down = layer.lora_A[self._adapter].weight
                each = each * (1 / down.shape[1] + 1 / up.shape[0])
            self.ranks[name] = self.ranks.get(name, 0.0) + each
            self.counts[name] = self.counts.get(name, 0) + 1

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
        tensors = {f"module/{n}": torch.as_tensor(t) for n, t in self.modules.items()}
        tensors |= {f"rank/{n}": t for n, t in self.ranks.items()}
        return tensors, {"forwards": self._forwards, "counts": self.counts}

    def restore(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        """The inverse of `state`."""
        for kind, table in (("module/", self.modules), ("rank/", self.ranks)):
            table.update(
                {n.removeprefix(kind): t for n, t in tensors.items() if n.startswith(kind)}
            )
        self.to(next(self._model.parameters()).device)
        self._forwards, self.counts = dict(about["forwards"]), dict(about["counts"])
