"""The cut in a running fine-tune: model, optimiser and adapter become small; nothing restarts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core import Gates, Keep, Units, materialize
from ..core.surgery import slices
from ..errors import BudgetError, ConfigError, CutError
from ..transformer import units_of as sites_of
from ..transformer.refit import add, fitted, joined, plain
from .cost import Batch
from .plan import Plan
from .units import adapter_of, base_of, candidates_by_name, lora_layers, through_adapters, units_of

READER = ("weight", "bias")  # what `readers_of` keeps of a layer


@dataclass(frozen=True, slots=True)
class Refit:
    """What readers are fitted on.

    batches: model inputs, which run as one, twice as large; gates: multipliers of all units, those
    that go too, or None for ones.
    """

    batches: Sequence[Batch]
    gates: Gates | None = None


def check_cuttable(model: nn.Module) -> None:
    """Raises ConfigError for weights that cannot be cut in place, naming the first."""
    for name, p in model.named_parameters():
        if p.is_meta:
            raise ConfigError(
                f"{name} is on the meta device: load the model whole, without offload"
            )
        if hasattr(p, "ds_id") or type(p).__name__ == "DTensor":
            raise ConfigError(
                f"{name} is sharded: estimate, cut in one process, and finish in a third run"
            )
        if not p.dtype.is_floating_point or type(p).__name__ in ("Params4bit", "Int8Params"):
            raise ConfigError(f"{name} is quantised ({p.dtype}): cut in bfloat16, quantise after")
    spread: Any = getattr(model, "hf_device_map", None)
    if spread and len(set(spread.values())) > 1:
        raise ConfigError("the model is spread over devices by device_map: load it on one")


@torch.no_grad()
def apply_plan(
    model: nn.Module,
    plan: Plan,
    optimizer: Any = None,
    *,
    away: Mapping[str, Tensor] | None = None,
    refit: Refit | None = None,
) -> Any:
    """The model, in place, as the plan says; with its optimiser's state where one is given.

    away: what `removed_parts` gave, to be added to the base, and what `readers_of` gave, to be put
    there; by default what this model's adapter loses, if the plan says so. refit: what readers are
    fitted on, to put out what they did. Parameters stay the same objects, so that groups, schedules
    and wrappers stay valid; the adapter's configuration says what is left in peft's own words. A
    model without adapter is cut to the same shapes. Raises ConfigError and CutError before anything
    is changed.
    """
    check_cuttable(model)
    if refit is not None:
        joined(refit.batches)
    base = base_of(model)
    adapted = hasattr(model, "peft_config")
    adapter = adapter_of(model) if adapted else ""
    units = candidates_by_name(base, plan.sizes)
    if adapted:
        _check_adapters(base, plan, adapter)
    if plan.merge_dropped and away is None:
        if not adapted:
            raise ConfigError("the plan merges what the adapter lost into the base: give `away`")
        away = removed_parts(model, plan)
    with _scales_kept(base, adapter):
        _merge(base, away or {})
        if adapted:
            _drop_adapters(base, plan, adapter, optimizer)
    keep, gates, inside = plan.indices(), plan.multipliers(), through_adapters(base, units)
    if refit is not None:
        _take_over(base, units, inside, keep, refit, adapter)
        gates = None
    with _scales_kept(base, adapter):
        _cut(base, inside, keep, gates, optimizer)
        _put(base, away or {})
    if adapted:
        _write_down(model, plan, adapter)
    return model


def _drop_adapters(base: nn.Module, plan: Plan, adapter: str, optimizer: Any) -> None:
    """Adapters and ranks that go, and their parts of the optimiser."""
    gone = _drop(base, plan)
    if optimizer is not None:
        _forget(optimizer, gone)
    ranks = units_of(base, adapter)
    left = {u.name: plan.ranks[u.name.removesuffix(".ranks")] for u in ranks}
    keep = {name: torch.tensor(kept, dtype=torch.long) for name, kept in left.items()}
    _cut(base, ranks, keep, None, optimizer)


def _take_over(
    base: nn.Module,
    units: Sequence[Units],
    inside: Sequence[Units],
    keep: Keep,
    refit: Refit,
    adapter: str,
) -> None:
    """Gates into the weights that read, and these fitted to do without the columns that go."""
    if refit.gates is not None:
        every = {u.name: torch.arange(u.size) for u in units}
        with _scales_kept(base, adapter):
            materialize(base, inside, every, gates=refit.gates)
    found = fitted(base, units, keep, refit.batches)
    scales = row_scales(base, adapter)
    with _scales_kept(base, adapter):
        for name, more in found.items():
            add(base, name, more, scales.get(name))


@contextmanager
def _scales_kept(base: nn.Module, adapter: str) -> Iterator[None]:
    """What DoRA divides and multiplies rows by together stays, while columns and ranks change.

    It stands in the magnitude's place, so that it is cut with the rows.
    """
    for name, scale in row_scales(base, adapter).items():
        magnitude_of(base, name, adapter).copy_(scale)
    yield
    for name, layer in lora_layers(base, adapter).items():
        if adapter in getattr(layer, "lora_magnitude_vector", {}):
            magnitude_of(base, name, adapter).mul_(_row_norms(layer, adapter))


@torch.no_grad()
def readers_of(model: nn.Module, plan: Plan) -> dict[str, Tensor]:
    """Weights and biases of the layers that lost columns, "LAYER.weight" and "LAYER.bias"."""
    base, parts = base_of(model), {}
    lost = {name for name, kept in plan.keep.items() if len(kept) < plan.sizes[name]}
    for u in sites_of(base):
        for name in (cut.module for cut in u.reads if u.name in lost):
            for kind, p in plain(base, name).named_parameters(recurse=False):
                parts[f"{name}.{kind}"] = p.detach()
    return parts


def _put(base: nn.Module, parts: Mapping[str, Tensor]) -> None:
    """What `readers_of` gave, in its place."""
    for key, value in parts.items():
        name, _, kind = key.rpartition(".")
        if kind in READER:
            getattr(plain(base, name), kind).copy_(value)


def magnitude_of(base: nn.Module, name: str, adapter: str) -> Tensor:
    """DoRA's magnitudes of a layer, one per row (2402.09353)."""
    layer: Any = base.get_submodule(name)
    weight: Tensor = layer.lora_magnitude_vector[adapter].weight
    return weight


@torch.no_grad()
def row_scales(base: nn.Module, adapter: str) -> dict[str, Tensor]:
    """m / ||W + s B A|| of every row of every layer with DoRA; nothing for plain LoRA."""
    return {
        name: magnitude_of(base, name, adapter) / _row_norms(layer, adapter)
        for name, layer in lora_layers(base, adapter).items()
        if adapter in getattr(layer, "lora_magnitude_vector", {})
    }


def _row_norms(layer: Any, adapter: str) -> Tensor:
    weight = layer.base_layer.weight
    weight = weight.T if type(layer.base_layer).__name__ == "Conv1D" else weight
    delta = layer.lora_B[adapter].weight @ layer.lora_A[adapter].weight
    norms: Tensor = torch.linalg.vector_norm(weight + layer.scaling[adapter] * delta, dim=1)
    return norms


@torch.no_grad()
def removed_parts(model: nn.Module, plan: Plan) -> dict[str, Tensor]:
    """The ranks that a plan takes from the adapter, "LAYER.A" and "LAYER.B", scaling included.

    "LAYER.scale": of the rows of layers that lose their DoRA adapter whole.
    """
    base, adapter = base_of(model), adapter_of(model)
    scales = row_scales(base, adapter)
    parts: dict[str, Tensor] = {}
    for name, layer in lora_layers(base, adapter).items():
        down, up = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        stays = set(plan.ranks.get(name, ()))
        gone = [k for k in range(len(down)) if k not in stays]
        if gone:
            parts[f"{name}.A"] = down[gone].float().clone()
            parts[f"{name}.B"] = up[:, gone].float() * float(layer.scaling[adapter])
            if name in scales and not stays:
                parts[f"{name}.scale"] = scales[name].float().clone()
    return parts


def _merge(base: nn.Module, parts: Mapping[str, Tensor]) -> None:
    """W += B A in float32, and rows times a scale, for a model with or without adapters."""
    for name in sorted(n.removesuffix(".A") for n in parts if n.endswith(".A")):
        layer: Any = base.get_submodule(name)
        weight = getattr(layer, "base_layer", layer).weight
        delta = (parts[f"{name}.B"] @ parts[f"{name}.A"]).to(weight.device)
        scale = parts.get(f"{name}.scale", torch.ones(len(delta))).to(weight.device)[:, None]
        if type(getattr(layer, "base_layer", layer)).__name__ == "Conv1D":
            delta, scale = delta.T, scale.T
        weight.copy_((weight + delta) * scale)


def _check_adapters(base: nn.Module, plan: Plan, adapter: str) -> None:
    layers = lora_layers(base, adapter)
    named = {*plan.ranks, *plan.dropped}
    if named != set(layers):
        odd = sorted(named ^ set(layers))[0]
        raise CutError(
            f"{odd} is adapted in one of model and plan only: they do not belong together"
        )
    if not plan.ranks:
        raise BudgetError("no rank of any adapter is left to train: lower module or rank ratio")


def _drop(base: nn.Module, plan: Plan) -> list[Tensor]:
    """Base layers back in the place of dropped adapters; the parameters that went."""
    gone: list[Tensor] = []
    for name in plan.dropped:
        layer: Any = base.get_submodule(name)
        inner = {id(p) for p in layer.base_layer.parameters()}
        gone += [p for p in layer.parameters() if id(p) not in inner]
        base.set_submodule(name, layer.base_layer)
    return gone


def unwrapped(optimizer: Any) -> Any:
    """The optimiser itself, where something is wrapped around it."""
    return getattr(optimizer, "optimizer", optimizer)


def _forget(optimizer: Any, gone: Sequence[Tensor]) -> None:
    ids, inner = {id(p) for p in gone}, unwrapped(optimizer)
    for group in inner.param_groups:
        group["params"][:] = [p for p in group["params"] if id(p) not in ids]
    for p in gone:
        p.grad = None
        inner.state.pop(p, None)


def _cut(
    base: nn.Module, units: Sequence[Units], keep: Keep, gates: Gates | None, optimizer: Any
) -> None:
    """Core's surgery, and the same slices of what the optimiser keeps of every parameter."""
    jobs: dict[int, tuple[Tensor, torch.Size, list[tuple[int, Tensor]]]] = {}
    for _, axis, layout, kept in slices(base, units, keep):
        for name, dim in layout.tensors[axis]:
            p = getattr(layout.owner, name)
            if isinstance(p, nn.Parameter):
                _, _, cuts = jobs.setdefault(id(p), (p, p.shape, []))
                if dim not in [d for d, _ in cuts]:
                    cuts.append((dim, kept))
    if gates is not None:
        gates = {u.name: gates.get(u.name, torch.ones(u.size)) for u in units}
    materialize(base, units, keep, gates=gates)
    state = {} if optimizer is None else unwrapped(optimizer).state
    for p, shape, cuts in jobs.values():
        _renew(p)
        if p in state:
            _slice_state(state, p, shape, cuts)


def _renew(p: Tensor) -> None:
    """Makes autograd forget the parameter's old shape, which a graph that still lives remembers.

    Only a change of type makes it look again.
    """
    data = p.data
    other = torch.float32 if data.dtype == torch.float64 else torch.float64
    p.data = torch.empty(0, dtype=other, device=data.device)
    p.data = data


def scale_rates(optimizer: Any, factor: float) -> None:
    """Multiplies the learning rates of all groups, those that a schedule starts from too."""
    for group in unwrapped(optimizer).param_groups:
        for name in ("lr", "initial_lr"):
            if name in group:
                group[name] = group[name] * factor


def scale_schedule(schedule: Any, factor: float) -> None:
    """The same for the rates that a schedule keeps for itself, where it does."""
    inner = getattr(schedule, "scheduler", schedule)  # where something is wrapped around it
    for name in ("base_lrs", "_last_lr"):
        if hasattr(inner, name):
            setattr(inner, name, [rate * factor for rate in getattr(inner, name)])


def _slice_state(
    state: dict[Tensor, Any], p: Tensor, shape: torch.Size, cuts: Sequence[tuple[int, Tensor]]
) -> None:
    held = state[p]
    if any(isinstance(t, Tensor) and t.dtype == torch.uint8 for t in held.values()):
        del state[p]  # moments in blocks of eight bits cannot be sliced: they start anew
        return
    for key, t in held.items():
        if not isinstance(t, Tensor) or t.dim() == 0:
            continue
        for dim, kept in cuts:
            if (axis := _axis(key, t.shape, shape, dim)) is not None:
                held[key] = held[key].index_select(axis, kept.to(t.device))


def _axis(key: str, found: torch.Size, shape: torch.Size, dim: int) -> int | None:
    """Where a state's tensor runs along dimension `dim` of a parameter of `shape`, if it does.

    It is as large as the parameter, or a factor of it (Adafactor): with a dimension of one in the
    other's place, or without it.
    """
    if len(found) == len(shape):
        return dim if found[dim] == shape[dim] else None
    last = len(shape) - 1
    if found == shape[:-1] and "col" not in key:
        return dim if dim < last else None
    if found == shape[:-2] + shape[-1:] and "row" not in key:
        return last - 1 if dim == last else None
    return None


def _write_down(model: Any, plan: Plan, adapter: str) -> None:
    """What is left of the adapter: layers' own sizes, and peft's configuration of them."""
    config, base = model.peft_config[adapter], base_of(model)
    power = 0.5 if getattr(config, "use_rslora", False) else 1.0
    counts = {name: len(kept) for name, kept in plan.ranks.items()}
    usual = max(sorted(set(counts.values())), key=list(counts.values()).count)
    alphas: dict[str, float] = {}
    for name, layer in lora_layers(base, adapter).items():
        # alpha / r (or alpha / sqrt r) is what the adapter was trained with.
        share = counts[name] / layer.r[adapter]
        alphas[name] = _plain(layer.lora_alpha[adapter] * share**power)
        layer.r[adapter], layer.lora_alpha[adapter] = counts[name], alphas[name]
        layer.scaling[adapter] = alphas[name] / counts[name] ** power
        weight = getattr(layer.get_base_layer(), "weight", None)
        if isinstance(weight, Tensor):
            layer.in_features = layer.lora_A[adapter].in_features
            layer.out_features = layer.lora_B[adapter].out_features
    config.r = usual
    config.lora_alpha = next(alphas[n] for n, count in counts.items() if count == usual)
    config.rank_pattern = {_anchored(n): c for n, c in sorted(counts.items()) if c != usual}
    config.alpha_pattern = {
        _anchored(n): a for n, a in sorted(alphas.items()) if a != config.lora_alpha
    }
    config.target_modules = set(counts)
    config.layers_to_transform = config.layers_pattern = config.exclude_modules = None


def _plain(alpha: float) -> float:
    return int(alpha) if math.isclose(alpha, round(alpha)) and alpha == int(alpha) else alpha


def _anchored(name: str) -> str:
    """A key that peft, which takes it for a regular expression, matches with this layer alone."""
    return "^" + name.replace(".", r"\.")
