"""What adapters are worth, against their definition, and what it costs to look."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from compress3g.peft import Estimator, LightPeftConfig, candidates
from compress3g.peft.importance import AdapterImportance
from compress3g.peft.ratios import AdapterRatios
from compress3g.peft.units import base_of, lora_layers

from .test_light import batch, classifier, looked


def test_module_importance_is_the_mean_ratio_of_norms():
    """Of every layer, over steps of several forward passes, each with its own padding."""
    model = classifier(lora_dropout=0.0).train()
    looked(model)
    base = base_of(model)
    for m in base.modules():
        if isinstance(m, torch.nn.Dropout):
            m.p = 0.0
    parts = [batch(), batch(), {k: v[:, :5] if v.dim() == 2 else v for k, v in batch().items()}]
    parts[0]["attention_mask"][0, 4:] = 0
    del parts[1]["attention_mask"]
    watch, want = AdapterImportance(model), {}
    for name, layer in lora_layers(base).items():

        def expect(module, args, name=name):
            x = args[0].detach().double()
            down, up = (getattr(module, k)["default"].weight.double() for k in ("lora_A", "lora_B"))
            dense = x @ module.base_layer.weight.double().T + module.base_layer.bias.double()
            delta = x @ down.T @ up.T * module.scaling["default"]
            ratio = (delta.norm(dim=-1) / dense.norm(dim=-1)).detach()
            mask = part.get("attention_mask")
            if mask is not None and mask.shape == ratio.shape:
                ratio = ratio[mask.bool()]
            want.setdefault(name, []).append(float(ratio.mean()))

        layer.register_forward_pre_hook(expect)
    with watch.watching():
        for step in (parts[:1], parts, parts[1:]):
            for part in step:
                model(**part)
            watch.add()
        model(**parts[0])
        watch.discard()
    found = watch.means()[0]
    assert len(found) == len(want) > 5
    for name, ratio in found.items():
        # the norm is the difference of larger squares, in float32
        assert float(ratio) == pytest.approx(sum(want[name][:6]) / 6, rel=1e-3)


class Launches(TorchDispatchMode):
    """Counts operations that would be launched on a GPU."""

    VIEWS = (
        "view", "transpose", "permute", "slice", "select", "expand", "reshape", "aten.t.", "detach",
        "split", "alias", "squeeze", "as_strided", "unbind", "empty", "profiler",
    )  # fmt: skip

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += not any(name in str(function) for name in self.VIEWS)
        return function(*args, **(kwargs or {}))


def test_looking_launches_few_operations():
    """Where launches are what a step waits for, as on a GPU, they are what looking costs."""
    model = classifier().train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], foreach=True)

    def launched(look=None):
        for last in (False, True):
            with Launches() as launches:
                model(**batch()).loss.backward()
                if look is not None:
                    look()
                optimizer.step()
                optimizer.zero_grad()
            if last:
                return launches.count

    plain, config = launched(), LightPeftConfig()
    units, _ = candidates(model, config)
    with Estimator(model, units, config, steps=1) as estimator:
        looking = launched(lambda: estimator(1e-3))
    layers = len(lora_layers(base_of(model)))
    # Of every layer a norm and a product; of every unit its gate's product, the gradient's two,
    # and the gates' AdamW, layer by layer on a processor. What does not grow with the model: 85.
    assert looking - plain <= 2 * layers + 16 * len(units) + 85


def test_a_look_at_samples_in_evaluation_counts_nowhere():
    model = classifier(lora_dropout=0.0).train()
    watch = AdapterImportance(model)
    with watch.watching():
        base_of(model).eval()
        base_of(model)(**batch())
        watch.add()
        base_of(model).train()
        model(**batch())
        before, _ = watch.state()
        watch.add()
    after, about = watch.state()
    assert set(about["forwards"].values()) == {1}
    assert len(after) > len(before) == 0


def test_a_kept_state_does_not_change_with_later_steps():
    model = classifier(lora_dropout=0.0).train()
    looked(model)
    watch = AdapterImportance(model)
    with watch.watching():
        for _ in range(2):
            model(**batch()).loss.backward()
            watch.add()
            state, about = watch.state()
            kept = {name: t.clone() for name, t in state.items()}
        model(**batch()).loss.backward()
        watch.add()
        assert all(torch.equal(t, kept[name]) for name, t in state.items())
        again = AdapterImportance(model)
        again.restore(state, about)
        with again.watching():
            model(**batch()).loss.backward()
            again.add()
    assert all(torch.equal(t, kept[name]) for name, t in state.items())
    for mine, other in zip(watch.means(), again.means(), strict=True):
        assert mine.keys() == other.keys()
        assert all(float(mine[name].sum()) > 0 for name in mine)


def test_passes_count_alike_wherever_the_next_one_begins():
    """The first is reduced under autocast, by the second; that one outside of it."""
    model = classifier(lora_dropout=0.0).train()
    looked(model)
    for m in model.modules():
        if isinstance(m, torch.nn.Dropout):
            m.p = 0.0
    ratios = AdapterRatios(model)
    with ratios.watching():
        with torch.autocast("cpu", torch.bfloat16):
            for _ in range(2):
                model(**batch())
        names, found = ratios.taken()
    both = dict(zip(names[: len(names) // 2], found, strict=False))
    assert len(both) > 5
    for name, second in zip(names[len(both) :], found[len(both) :], strict=True):
        assert torch.equal(both[name], second)


def test_a_layer_may_be_given_a_single_vector():
    import peft

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(8, 8)

        def forward(self, x):
            return self.layer(x)

    torch.manual_seed(0)
    lora = peft.LoraConfig(target_modules=["layer"], r=2, init_lora_weights=False)
    model = peft.get_peft_model(Model(), lora).train()
    watch, x = AdapterImportance(model), torch.randn(8)
    with watch.watching():
        out = model(x)
        watch.add()
    dense = next(iter(lora_layers(base_of(model)).values())).base_layer(x)
    want = ((out - dense).norm() / dense.norm()).detach()
    assert float(next(iter(watch.means()[0].values()))) == pytest.approx(float(want), rel=1e-3)


def test_a_scaled_step_that_no_gate_took_part_in_is_a_step():
    model = classifier().train()
    units, _ = candidates(model, LightPeftConfig())
    with Estimator(model, units, LightPeftConfig(), steps=4) as estimator:
        assert estimator(1e-3, scale=65536.0)
        assert estimator.done == 1
