"""Scores that are made at the cut: what they see, what they leave alone, and which is best."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from compress3g.core import price
from compress3g.criteria import learn_vib
from compress3g.errors import ConfigError
from compress3g.peft import LightPeftConfig, apply_plan
from compress3g.peft.config import AUTO
from compress3g.peft.ranking import losses_of, own_loss, ranking_of
from compress3g.peft.units import base_of, of_base

from .test_light import LOOK, STEPS, batch, classifier, trainer


def estimated(**changes):
    """A model whose gates have been looked at and are still open."""
    model = classifier(LightPeftConfig(estimation_steps=LOOK, **changes), lora_dropout=0.0)
    model.light.begin(STEPS)
    for _ in range(LOOK):
        model.train()(**batch()).loss.backward()
        model.light.observe(1e-2, batches=list)
    return model


def test_gates_that_learn_leave_parameters_and_their_gradients_alone():
    model = estimated(criterion="vib", learn_steps=5)
    before = {n: (p.clone(), None if p.grad is None else p.grad.clone(), p.requires_grad)
              for n, p in model.named_parameters()}  # fmt: skip
    ranking_of(model, model.light.units, model.light.config, lambda: [batch()])
    for name, p in model.named_parameters():
        was, grad, trained = before[name]
        assert torch.equal(p, was), name
        assert p.requires_grad == trained
        assert (p.grad is None) == (grad is None)
        assert grad is None or torch.equal(p.grad, grad)
    assert model.training


def test_learnt_gates_are_those_of_the_criterion_and_enter_the_weights():
    model = estimated(criterion="vib", learn_steps=5)
    light = model.light
    estimated_gates = light.estimator.scores().gates
    base = base_of(model).eval()
    priced = price(base, of_base(base, light.units))
    units = [replace(u, cost=p.cost) for u, p in zip(light.units, priced, strict=True)]
    g = torch.Generator().manual_seed(light.config.seed)
    own = learn_vib(base, units, [batch()], own_loss, steps=5, generator=g)
    plan = light.decide(lambda: [batch()])
    for name, index in plan.indices().items():
        mu = own.hard()[name].detach()[index]
        want = estimated_gates[name][index] * mu
        assert torch.allclose(torch.tensor(plan.gates[name]), want, atol=1e-6), name
        if name.endswith("heads"):  # the same number goes from every layer, by score alone
            order = own.scores()[name].argsort(descending=True)[: len(index)]
            assert sorted(order.tolist()) == index.tolist()


def test_the_chosen_criterion_has_the_least_loss_of_all_without_what_it_takes():
    model = estimated(criterion="auto", fold="reset")
    light = model.light
    plan = light.decide(lambda: [batch()])
    assert set(light.losses) == set(AUTO)
    assert light.losses[light.criterion] == min(light.losses.values())
    # a loss is that of a model that is really cut by the plan, gates as estimated folded
    folded = {n: light.estimator.scores().gates[n][i].tolist() for n, i in plan.indices().items()}
    whole = replace(plan, gates=folded, merge_dropped=True)
    light.estimator.__exit__(None, None, None)
    small = apply_plan(model, whole).eval()
    with torch.no_grad():
        assert float(small(**batch()).loss) == pytest.approx(
            light.losses[light.criterion], rel=1e-4
        )


def test_auto_and_vib_cut_inside_a_trainer_and_say_so(tmp_path):
    for criterion in ("auto", "vib"):
        config = LightPeftConfig(estimation_steps=LOOK, criterion=criterion, learn_steps=3)
        run = trainer(classifier(config), tmp_path / criterion, steps=LOOK + 2)
        run.train()
        report = run.light.report
        assert report.criterion in (AUTO if criterion == "auto" else ("vib",))
        assert [kept for n, (kept, _) in report.kept.items() if n.endswith("heads")] == [3, 3]


def test_a_resumed_shrinking_run_keeps_what_was_learnt(tmp_path):
    config = LightPeftConfig(estimation_steps=LOOK, shrink_steps=2, criterion="vib", learn_steps=3)
    whole = classifier(config)
    trainer(whole, tmp_path, save_steps=1, steps=LOOK + 2).train()
    again = classifier(config)
    trainer(again, tmp_path / "again", steps=LOOK + 2).train(
        resume_from_checkpoint=tmp_path / f"checkpoint-{LOOK - 1}"
    )
    found = dict(again.named_parameters())
    for name, p in whole.named_parameters():
        assert torch.equal(found[name], p), name


def test_a_criterion_without_data_or_loss_is_refused():
    model = estimated(criterion="vib")
    with pytest.raises(ConfigError, match="needs training data"):
        model.light.decide(list)
    with pytest.raises(ConfigError, match="compares losses"):
        losses_of(model, model.light.units, {}, list)
    rows = {k: v for k, v in batch().items() if k != "labels"}
    with pytest.raises(ConfigError, match="gives no loss"):
        model.light.decide(lambda: [rows])
