"""What stays of a cut model puts out what all of it did, as far as it can."""

from __future__ import annotations

import copy
import logging

import pytest
import torch

from compress3g.errors import ConfigError
from compress3g.peft import LightPeftConfig, apply_plan, get_light_peft_model
from compress3g.peft.cut import Refit
from compress3g.peft.plan import Plan
from compress3g.peft.units import base_of, lora_layers

from .families import build, inputs, output
from .test_light import LOOK, batch, classifier, looked, trainer


def adapted(name, **lora):
    """A model whose adapters say something."""
    import peft

    made = peft.LoraConfig(r=4, lora_alpha=8, **lora)
    model = get_light_peft_model(build(name), made, LightPeftConfig())
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for layer in lora_layers(base_of(model)).values():
            up = layer.lora_B["default"].weight
            up.add_(0.1 * torch.randn(up.shape, generator=g))
    return model.eval()


def plan_of(model):
    """Half of all units, a third of the adapters and half of the ranks left go; and all gates."""
    g = torch.Generator().manual_seed(3)
    units, layers = model.light.units, list(lora_layers(base_of(model)))
    keep = {u.name: torch.randperm(u.size, generator=g)[: u.size // 2].sort().values for u in units}
    gates = {u.name: 0.8 + 0.4 * torch.rand(u.size, generator=g) for u in units}
    plan = Plan(
        {n: k.tolist() for n, k in keep.items()},
        {u.name: u.size for u in units},
        {n: gates[n][k].tolist() for n, k in keep.items()},
        tuple(layers[::3]),
        {n: [0, 2] for n in layers if n not in layers[::3]},
        merge_dropped=True,
    )
    return plan, gates


def text(seed, rows=48):
    ids = torch.randint(6, 60, (rows, 9), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[::3, 6:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "phi3", "modernbert", "paligemma"])
def test_the_cut_model_is_the_one_that_was_fitted(name, dora):
    """Half of the fit's own batch runs through the mended model, adapters, gates and all."""
    model, part, said = adapted(name, use_dora=dora), inputs(name), []
    plan, gates = plan_of(model)
    handle = base_of(model).register_forward_hook(lambda m, args, out: said.append(out))
    apply_plan(model, plan, refit=Refit([part], gates))
    handle.remove()
    during, key = said[-1], "logits" if "logits" in said[0] else "last_hidden_state"
    want = during[key][2:]
    with torch.no_grad():
        found = base_of(model)(**part)[key][:, -want.shape[1] :]
    valid = part["attention_mask"][:, -want.shape[1] :].bool()
    assert torch.allclose(found[valid], want[valid], atol=1e-4 * float(want.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
def test_a_refit_brings_the_cut_model_closer_on_other_data(name, dtype):
    model, seen, other = adapted(name).to(dtype), text(1), text(2)
    plan, gates = plan_of(model)
    ones = {n: torch.ones_like(g) for n, g in gates.items()}
    errors = []
    with torch.no_grad():
        whole = output(base_of(model), other)
        for refit in (None, Refit([seen], ones)):
            small = copy.deepcopy(model)
            apply_plan(small, plan if refit else _ungated(plan), refit=refit)
            errors.append(float((output(base_of(small), other) - whole).square().mean()))
    assert all(p.dtype == dtype for p in base_of(small).parameters())
    assert errors[1] < 0.9 * errors[0]  # random networks: hardly an input predicts another


def _ungated(plan):
    return Plan(plan.keep, plan.sizes, None, plan.dropped, plan.ranks, plan.merge_dropped)


def test_a_vision_tower_alone_is_fitted_on_all_patches():
    model = adapted("vit")
    plan, gates = plan_of(model)
    before = copy.deepcopy(base_of(model).state_dict())
    apply_plan(model, plan, refit=Refit([inputs("vit")], gates))
    assert base_of(model)(**inputs("vit")).last_hidden_state.isfinite().all()
    assert len(base_of(model).state_dict()) < len(before)


def test_the_report_of_a_run_says_how_long_it_took_and_a_run_without_says_nothing(tmp_path):
    times = {}
    for refit in (None, True, False):
        config = LightPeftConfig(estimation_steps=LOOK, refit=refit)
        run = trainer(classifier(config), tmp_path / str(refit), config=config)
        run.train()
        times[refit] = run.light.report.refit_s
        kinds = {name.rpartition(".")[2] for name in run.light.away}
        assert ("weight" in kinds) == (refit is not False)
    assert times[None] > 0
    assert times[True] > 0
    assert times[False] is None


def estimated(refit):
    """Ready for its cut."""
    model = classifier(LightPeftConfig(estimation_steps=LOOK, refit=refit))
    model.light.begin(LOOK + 1)
    for _ in range(LOOK):
        model(**batch()).loss.backward()
        model.light.observe(1e-2, batches=list)
    return model.light


def test_without_samples_there_is_no_refit_unless_it_is_asked_for():
    for refit in (None, True):
        light = estimated(refit)
        if refit:
            with pytest.raises(ConfigError, match="--refit needs training data"):
                light.cut()
        else:
            assert light.cut().refit_s is None


def unequal():
    """Two batches of other widths, without a mask that could say which tokens are padding."""
    whole = batch()
    labels = whole["labels"]
    return [{"input_ids": whole["input_ids"][:, :n], "labels": labels} for n in (7, 5)]


def test_a_refit_that_is_refused_changes_nothing():
    model = classifier()
    scores, plan, optimizer = looked(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(ConfigError, match="make no one batch"):
        apply_plan(model, plan, optimizer, refit=Refit(unequal(), scores.gates))
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    for name, p in before.items():
        assert torch.equal(after[name], p), name


def test_batches_that_do_not_join_are_cut_without_a_fit_unless_it_is_asked_for(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("compress3g"), "propagate", True)
    for refit in (None, True):
        light = estimated(refit)
        if refit:
            with pytest.raises(ConfigError, match="make no one batch"):
                light.cut(batches=unequal)
            continue
        with caplog.at_level(logging.WARNING, "compress3g"):
            report = light.cut(batches=unequal)
        assert report.refit_s is None
        assert report.params[1] < report.params[0]
        assert "nothing is fitted at the cut: input_ids has shapes" in caplog.text


def test_what_fades_is_not_mended():
    with pytest.raises(ConfigError, match="give one of them"):
        LightPeftConfig(refit=True, shrink_steps=2, estimation_steps=4)


def test_an_optimiser_goes_on_after_a_refit():
    model = classifier()
    scores, plan, optimizer = looked(model)
    apply_plan(model, plan, optimizer, refit=Refit([batch()], scores.gates))
    was = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    model(**batch()).loss.backward()
    optimizer.step()
    now = [p for p in model.parameters() if p.requires_grad]
    assert all(p.isfinite().all() for p in now)
    assert any(not torch.equal(a, b) for a, b in zip(was, now, strict=True))
