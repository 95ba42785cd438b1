"""How much each adapter adds to what its layer puts out, watched in forward passes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .units import adapter_of, base_of, lora_layers


@dataclass(frozen=True, slots=True)
class _Pass:
    """What a layer's forward pass leaves until the model's is over: by token, few numbers each."""

    layer: str
    first: Tensor  # [..., r] z = A x; DoRA: [...] ||added||
    second: Tensor  # [..., r] B' out; DoRA: [...] ||W x||
    whole: Tensor | None  # [...] ||out||; DoRA: None
    valid: Tensor | None  # [b, l], zero at padding


class AdapterRatios:
    """Mean over tokens of ||DeltaW x|| / ||W x + b|| of every adapted layer (2406.03792).

    A forward pass pays for two products per layer. What is left is done for all layers at once
    when the pass is over: layer by layer a GPU would wait for two dozen launches each.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model, self._adapter = model, adapter_of(model)
        self._layers = lora_layers(base_of(model), self._adapter)
        self._inner: dict[str, Tensor] = {}
        self._valid: Tensor | None = None
        self._passes: list[_Pass] = []
        self._names: list[str] = []
        self._found: list[Tensor] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Forward passes in this block, of layers in training, wait for `taken` or `discard`.

        What still waits at its end is forgotten.
        """
        with ExitStack() as stack:
            hook = self._model.register_forward_pre_hook(self._note, with_kwargs=True)
            stack.callback(hook.remove)
            for name, layer in self._layers.items():
                hook = layer.register_forward_hook(self._outer_hook(name))
                stack.callback(hook.remove)
                # DoRA scales the layer's whole output: what it adds is seen beside the base's own.
                part = layer.base_layer if self._dora(layer) else layer.lora_A[self._adapter]
                inner = part.register_forward_hook(self._inner_hook(name))
                stack.callback(inner.remove)
            stack.callback(self.discard)
            yield

    def discard(self) -> None:
        """Forget what waits: the step is not made."""
        self._inner.clear()
        for waits in (self._passes, self._names, self._found):
            waits.clear()

    def taken(self) -> tuple[list[str], list[Float[Tensor, ""]]]:
        """The layer and the mean ratio of every pass that waited, which then wait no more.

        To be called before the optimiser moves the adapters.
        """
        self._reduce()
        found = list(self._names), list(self._found)
        self.discard()
        return found

    @torch.no_grad()
    def _reduce(self) -> None:
        """One number per pass that is over: batches that are accumulated hold no more."""
        groups: dict[Any, list[_Pass]] = defaultdict(list)
        for each in self._passes:
            up = self._up(each.layer).shape
            groups[up, each.first.shape, each.whole is None, id(each.valid)].append(each)
        for group in groups.values():
            self._names += [each.layer for each in group]
            # The next pass may begin under autocast: differences of squares want all digits.
            with torch.autocast(group[0].first.device.type, enabled=False):
                self._found += self._means(group).unbind()
        self._passes.clear()

    def _means(self, group: Sequence[_Pass]) -> Float[Tensor, "n"]:
        """Of passes whose tensors have the same shapes and the same padding."""
        first, second = (
            torch.stack([getattr(each, part) for each in group]).float()
            for part in ("first", "second")
        )
        if group[0].whole is None:
            ratio = first / second.clamp_min(1e-6)
        else:
            whole = torch.stack([each.whole for each in group if each.whole is not None])
            ratio = self._by_ranks([each.layer for each in group], first, second, whole)
        ratio, valid = ratio.reshape(len(group), -1), group[0].valid
        if valid is None or valid.numel() != ratio.shape[1]:
            return ratio.mean(1)
        weight = valid.flatten().to(ratio)
        return ratio @ weight / weight.sum().clamp_min(1)

    def _by_ranks(
        self, names: list[str], z: Tensor, along: Tensor, whole: Float[Tensor, "n ..."]
    ) -> Float[Tensor, "n ..."]:
        """||s B z|| / ||W x + b||, both from what the ranks say.

        The layer's output is W x + b + s B z. ||B z||^2 = z' (B'B) z, and ||W x + b||^2 =
        ||out||^2 - 2 <out, s B z> + ||s B z||^2.
        """
        ups = torch.stack([self._up(name) for name in names]).float()
        scales = [float(self._layers[name].scaling[self._adapter]) for name in names]
        if len({*scales}) == 1:
            z = z * scales[0]
        else:
            z = z * z.new_tensor(scales).view(-1, *(1 for _ in z.shape[1:]))
        tokens = z.reshape(len(z), -1, z.shape[-1])
        delta = ((tokens @ (ups.mT @ ups)) * tokens).sum(-1).clamp_min(0).view(whole.shape)
        dense = whole.square() - 2 * (along * z).sum(-1) + delta
        return (delta / dense.clamp_min(1e-12)).sqrt()

    def _up(self, name: str) -> Tensor:
        up: Tensor = self._layers[name].lora_B[self._adapter].weight.detach()
        return up

    def _dora(self, layer: nn.Module) -> bool:
        return self._adapter in getattr(layer, "lora_magnitude_vector", {})

    def _note(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self._reduce()
        mask = kwargs.get("attention_mask")
        self._valid = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None

    def _inner_hook(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, out: Tensor) -> None:
            if module.training:  # samples that a criterion looks at are no step
                self._inner[name] = out.detach()

        return hook

    def _outer_hook(self, name: str) -> Any:
        @torch.no_grad()
        def hook(module: nn.Module, args: Any, out: Tensor) -> None:
            inner = self._inner.pop(name, None)
            if inner is None:
                return
            valid = self._valid
            if valid is not None and valid.shape != inner.shape[:-1]:
                valid = None
            if self._dora(module):
                seen = _Pass(name, _norms(out - inner), _norms(inner), None, valid)
            else:
                along = out @ self._up(name).to(out.dtype)
                seen = _Pass(name, inner, along, _norms(out), valid)
            self._passes.append(seen)

        return hook


def _norms(x: Float[Tensor, "... d"]) -> Float[Tensor, "..."]:
    norms: Tensor = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32)
    return norms
