"""Gated and cut are the same in every family, through LoRA adapters."""

from __future__ import annotations

import copy

import pytest
import torch

from compress3g.core import gated
from compress3g.peft import LightPeftConfig, apply_plan, get_light_peft_model
from compress3g.peft.plan import Plan
from compress3g.peft.units import base_of, lora_layers

from .families import BOTH_TOWERS, FAMILIES, build, inputs, output


def adapted(name, **changes):
    import peft

    model = get_light_peft_model(build(name), peft.LoraConfig(r=4, lora_alpha=8), LightPeftConfig())
    g = torch.Generator().manual_seed(2)
    for layer in lora_layers(base_of(model)).values():
        up = layer.lora_B["default"].weight
        with torch.no_grad():
            up.copy_(torch.randn(up.shape, generator=g) * 0.3)
    return model.eval()


def drawn(model, seed=0):
    """A random plan: units, gates, dropped adapters and ranks."""
    g = torch.Generator().manual_seed(seed)
    units, layers = model.light.units, list(lora_layers(base_of(model)))
    keep = {}
    for u in units:
        count = int(torch.randint(1, u.size + 1, (1,), generator=g))
        keep[u.name] = torch.randperm(u.size, generator=g)[:count].sort().values
    gates = {n: (0.5 + torch.rand(len(k), generator=g)).tolist() for n, k in keep.items()}
    return Plan(
        {n: k.tolist() for n, k in keep.items()},
        {u.name: u.size for u in units},
        gates,
        tuple(layers[::3]),
        {n: [0, 2, 3][: 1 + i % 3] for i, n in enumerate(layers) if i % 3},
    )


def gated_reference(model, plan, batch):
    """The uncut model with zeros where the plan removes: gates, adapters, ranks."""
    base = base_of(copy.deepcopy(model))
    for name, layer in lora_layers(base).items():
        weight = layer.lora_B["default"].weight
        stays = torch.zeros(weight.shape[1], dtype=weight.dtype)
        stays[plan.ranks.get(name, [])] = 1
        with torch.no_grad():
            weight.mul_(stays)
    gates = {
        name: torch.zeros(plan.sizes[name]).index_copy(0, index, torch.tensor(plan.gates[name]))
        for name, index in plan.indices().items()
    }
    with torch.no_grad(), gated(base, model.light.units, gates):
        return output(base, batch)


@pytest.mark.parametrize("name", FAMILIES)
def test_cut_equals_gated(name):
    model, batch = adapted(name), inputs(name)
    plan = drawn(model)
    want = gated_reference(model, plan, batch)
    apply_plan(model, plan)
    with torch.no_grad():
        found = output(model, batch)
    # sums of fewer terms round differently
    assert float((found - want).abs().max()) <= 5e-6 * max(1.0, float(want.abs().max()))


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "phi3"])
def test_cut_equals_gated_in_eager_attention(name):
    model, batch = adapted(name), inputs(name)
    base_of(model).set_attn_implementation("eager")
    plan = drawn(model, 1)
    want = gated_reference(model, plan, batch)
    apply_plan(model, plan)
    with torch.no_grad():
        found = output(model, batch)
    assert float((found - want).abs().max()) <= 5e-6 * max(1.0, float(want.abs().max()))


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_cut_equals_gated_in_bfloat16(name):
    model, batch = adapted(name).to(torch.bfloat16), inputs(name)
    plan = drawn(model)
    want = gated_reference(model, plan, batch)
    apply_plan(model, plan)
    with torch.no_grad():
        found = output(model, batch)
    # a weight times its gate is rounded to eight bits, and so is every activation
    assert float((found - want).norm() / want.norm()) <= 2e-2


@pytest.mark.parametrize("name", FAMILIES)
def test_every_layer_and_both_towers_are_found(name):
    names = [u.name for u in get_names(name)]
    heads = [n for n in names if n.endswith(".heads")]
    neurons = [n for n in names if n.endswith(".neurons")]
    assert len(heads) == len(neurons) == (4 if name in BOTH_TOWERS else 2)


def get_names(name):
    from compress3g.peft import candidates

    return candidates(build(name), LightPeftConfig())[0]
