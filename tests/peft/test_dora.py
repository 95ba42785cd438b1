"""DoRA adapters: exact after a cut, though the norms that they divide by change."""

from __future__ import annotations

import copy

import pytest
import torch

from compress3g.core import gated
from compress3g.peft import LightPeftConfig, apply_plan, from_pretrained, get_light_peft_model, save
from compress3g.peft.plan import Plan
from compress3g.peft.units import base_of, lora_layers

from .families import build, inputs, output
from .test_folder import logits, tuned
from .test_light import LOOK, batch, classifier, trainer


def adapted(name):
    import peft

    lora = peft.LoraConfig(r=4, lora_alpha=8, use_dora=True)
    model = get_light_peft_model(build(name), lora, LightPeftConfig())
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for layer in lora_layers(base_of(model)).values():
            for part in (layer.lora_B["default"], layer.lora_magnitude_vector["default"]):
                noise = torch.randn(part.weight.shape, generator=g)
                part.weight.add_(0.3 * noise)
    return model.eval()


@pytest.mark.parametrize("merged", [True, False], ids=["merged", "discarded"])
@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "phi3"])
def test_a_cut_is_exact_through_dora(name, merged):
    model = adapted(name)
    layers = list(lora_layers(base_of(model)))
    g = torch.Generator().manual_seed(3)
    keep, gates = {}, {}
    for u in model.light.units:
        count = max(1, u.size - 1)
        keep[u.name] = torch.randperm(u.size, generator=g)[:count].sort().values
        gates[u.name] = 0.5 + torch.rand(count, generator=g)
    # what adapters lose enters the base, or nothing is lost
    dropped = layers[::3] if merged else []
    ranks = {n: [0, 2] if merged else [0, 1, 2, 3] for n in layers if n not in dropped}
    plan = Plan(
        {n: k.tolist() for n, k in keep.items()},
        {u.name: u.size for u in model.light.units},
        {n: m.tolist() for n, m in gates.items()},
        tuple(dropped),
        ranks,
        merge_dropped=merged,
    )
    whole = base_of(copy.deepcopy(model))
    closed = {
        u.name: torch.zeros(u.size).index_copy(0, keep[u.name], gates[u.name])
        for u in model.light.units
    }
    part = inputs(name)
    with torch.no_grad():
        with gated(whole, model.light.units, closed):
            want = output(whole, part)
        small = base_of(apply_plan(model, plan))
        found = output(small, part)
    # float32: rows are scaled by a quotient of two norms
    assert torch.allclose(found, want, atol=1e-4 * float(want.abs().max()))


def test_dora_is_cut_inside_a_trainer_and_its_folders_compute_the_same(tmp_path):
    config = LightPeftConfig(estimation_steps=LOOK)
    model = classifier(config, use_dora=True)
    run = trainer(model, tmp_path / "run")
    run.train()
    model.eval()
    report = run.light.report
    assert report.params[1] < report.params[0]
    assert all(torch.isfinite(p).all() for p in model.parameters())
    base = classifier(config).unload()
    base.save_pretrained(tmp_path / "dense")
    want = logits(model, batch())
    for form in ("merged", "adapter", "delta"):
        save(tmp_path / form, model, form=form)
        again = from_pretrained(tmp_path / form, tmp_path / "dense")
        # the dense base is cut again, merged weights are rounded once
        assert torch.allclose(logits(again, batch()), want, atol=1e-5), form


def test_module_importance_is_what_dora_adds_over_the_base():
    model = classifier(lora_dropout=0.0, use_dora=True)
    tuned(model, batch())  # past its cut: adapters are not zero any more
    from compress3g.peft.importance import AdapterImportance

    base = base_of(model.train())
    for m in base.modules():
        if isinstance(m, torch.nn.Dropout):
            m.p = 0.0
    name, layer = next(iter(lora_layers(base).items()))
    given = []
    handle = layer.register_forward_pre_hook(lambda m, args: given.append(args[0].detach()))
    watch = AdapterImportance(model)
    with watch.watching():
        model(**batch())
        watch.add()
    handle.remove()
    x = given[0].double()
    inner = layer.base_layer
    weight, bias = inner.weight.double(), inner.bias.double()
    down, up = (getattr(layer, k)["default"].weight.double() for k in ("lora_A", "lora_B"))
    whole = weight + layer.scaling["default"] * up @ down
    scale = layer.lora_magnitude_vector["default"].weight.double() / whole.norm(dim=1)
    added = x @ (scale[:, None] * whole).T - x @ weight.T
    want = (added.norm(dim=-1) / (x @ weight.T + bias).norm(dim=-1)).mean()
    assert float(watch.means()[0][name]) == pytest.approx(float(want.detach()), rel=1e-3)
