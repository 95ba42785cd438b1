"""On a GPU: the same plan, the same small model, and state that follows a model that was moved."""

from __future__ import annotations

import pytest
import torch

from compress3g.peft import Estimator, LightPeftConfig, apply_plan, candidates, make_plan
from compress3g.peft.units import base_of, lora_layers

from .test_light import LOOK, batch, classifier, samples

pytestmark = pytest.mark.gpu


def placed(made):
    return {name: t.cuda() for name, t in made.items()}


def estimated(model, device):
    """Scores after steps without dropout, whose masks differ between devices."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    config = LightPeftConfig(estimation_steps=LOOK)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    units, _ = candidates(model, config)
    model.to(device).train()
    part = {name: t.to(device) for name, t in batch().items()}
    with Estimator(model, units, config, steps=LOOK) as estimator:
        for _ in range(LOOK):
            model(**part).loss.backward()
            assert estimator(1e-2)
            optimizer.step()
            optimizer.zero_grad()
        scores = estimator.scores()
    return scores, units, optimizer, part


def test_scores_and_the_cut_model_are_those_of_the_cpu():
    kept, outputs = [], []
    for device in ("cpu", "cuda"):
        model = classifier()
        scores, units, optimizer, part = estimated(model, device)
        kept.append({n: t for each in scores.units.values() for n, t in each.items()})
        if device == "cpu":
            plan = make_plan(scores, units, LightPeftConfig())
        apply_plan(model, plan, optimizer)
        model.train()
        model(**part).loss.backward()
        optimizer.step()
        outputs.append(model.eval()(**part).logits.detach().cpu())
    for name, here in kept[0].items():
        # Adam's first steps are signs: what rounding turns around moves by the rate.
        assert torch.allclose(here, kept[1][name], rtol=0.05, atol=1e-3 * float(here.max()))
    assert float((outputs[0] - outputs[1]).abs().max()) <= 0.05 * float(outputs[0].abs().max())


def test_a_state_restored_before_the_model_moves_goes_with_it(tmp_path):
    first = classifier()
    first.light.begin(12)
    first.train()
    optimizer = torch.optim.AdamW([p for p in first.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(LOOK - 1):
        first(**batch()).loss.backward()
        first.light.observe(1e-2, batches=list)
        optimizer.step()
        optimizer.zero_grad()
    first.light.save_state(tmp_path)

    second = classifier()
    second.light.restore(tmp_path)
    second.cuda().train()
    second.light.begin(12)
    second(**placed(batch())).loss.backward()
    assert second.light.observe(1e-2, batches=list)
    assert second.light.due
    report = second.light.cut()
    assert report.sites[1] < report.sites[0]


@pytest.mark.parametrize("criterion", ["fisher", "flap", "amp", "vib", "auto"])
def test_a_trainer_on_a_gpu_cuts_and_goes_on(criterion, tmp_path):
    import transformers

    from compress3g.peft import LightPeftTrainer

    config = LightPeftConfig(estimation_steps=LOOK, criterion=criterion, samples=8, learn_steps=2)
    model = classifier(config)
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=12, per_device_train_batch_size=4, learning_rate=1e-2,
        report_to=[], disable_tqdm=True, save_strategy="no", bf16=True,
    )  # fmt: skip
    trainer = LightPeftTrainer(model=model, args=arguments, train_dataset=samples(), light=config)
    trainer.train()
    assert trainer.light.stage == "cut"
    assert next(model.parameters()).is_cuda
    layers = lora_layers(base_of(model))
    assert all(layer.lora_A["default"].weight.is_cuda for layer in layers.values())
