"""Gates that training closes: HESSO's shrink, VIB's noise, PDP's threshold."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from compress3g.core import Budget, Cut, SoftThreshold, Units, gated
from compress3g.criteria import (
    GradualShrink,
    VIBGates,
    hesso,
    learn_hesso,
    learn_pdp,
    learn_vib,
    mixed_score,
    norms,
    soft_masks,
)
from compress3g.errors import ScoreError

UNIT = Units("u", 12, writes=(Cut("0", "out"),), reads=(Cut("2", "in"),), cost={"params": 9.0})


def toy(seed=0, dead=4):
    """Eight neurons that matter and `dead` that nobody can miss, but whose weights are as large.

    The dead ones come in pairs that write the same and are read with opposite signs.
    """
    g = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g))
        for i in range(12 - dead, 12):
            model[2].weight[:, i] *= 1e-3
    x = torch.randn(64, 6, generator=g)
    y = model(x).detach()
    return model.requires_grad_(False), [(x[i : i + 16], y[i : i + 16]) for i in range(0, 64, 16)]


def error(model, batch):
    x, y = batch
    return (model(x) - y).square().mean() / y.square().mean()


@given(steps=st.integers(1, 50))
def test_shrinking_is_linear_and_reaches_exactly_zero(steps):
    shrink = GradualShrink([UNIT])
    shrink.fade({"u": torch.tensor([0, 3])}, steps)
    for t in range(steps):
        shrink.step()
        gates = shrink.gates["u"]
        assert torch.equal(gates[[0, 3]], torch.ones(2))
        # the product of (D - t - 1)/(D - t) is (D - t - 1)/D
        torch.testing.assert_close(gates[[1, 11]], torch.full((2,), (steps - t - 1) / steps))
    assert bool((shrink.gates["u"][[1, 2, 4, 11]] == 0).all())
    shrink.step()
    assert float(shrink.gates["u"].sum()) == 2


def test_a_later_period_goes_on_from_what_is_left():
    shrink = GradualShrink([UNIT])
    shrink.fade({"u": torch.arange(8)}, 4)
    for _ in range(4):
        shrink.step()
    shrink.fade({"u": torch.arange(5)}, 2)
    shrink.step()
    torch.testing.assert_close(shrink.gates["u"][5:8], torch.full((3,), 0.5))
    shrink.step()
    assert shrink.gates["u"].tolist() == [1.0] * 5 + [0.0] * 7


def test_mixed_score_is_the_printed_sum():
    g = torch.Generator().manual_seed(0)
    sizes = {"a": (5, 4), "b": (3, 2)}
    groups = {
        n: (torch.randn(s, generator=g), torch.randn(s, generator=g)) for n, s in sizes.items()
    }
    rows = []
    for x, d in groups.values():
        for xi, di in zip(x.double(), d.double(), strict=True):
            dot = float(xi @ di)
            rows.append(
                [
                    float(xi.norm()),
                    float(xi.norm()) / len(xi),
                    abs(dot),
                    dot**2 / 2,
                    1 + dot / float(xi.norm() * di.norm()),
                ]
            )
    parts = torch.tensor(rows, dtype=torch.float64)
    expected = (parts / parts.norm(dim=0)).sum(1)
    found = torch.cat(list(mixed_score(groups).values()))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_unit_driven_towards_zero_scores_less_than_one_driven_away():
    x = torch.ones(2, 3)
    scores = mixed_score({"u": (x, torch.stack([-x[0], x[1]]))})["u"]
    assert scores[0] < scores[1]


def test_a_loss_that_fails_leaves_weights_held_and_gates_closed():
    model, batches = toy()
    calls = []

    def loss(model, batch):
        calls.append(batch)
        if len(calls) == 2:
            raise ScoreError("no loss")
        return error(model, batch)

    with pytest.raises(ScoreError, match="no loss"):
        learn_hesso(model, [UNIT], batches, loss, Budget(0.5), steps=20)
    assert not any(p.requires_grad for p in model.parameters())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_hesso_reads_the_direction_behind_a_gate():
    """Scores at gates g equal those of weights scaled by g and ungated."""
    model, batches = toy()
    model.requires_grad_(True)
    g = torch.rand(12, generator=torch.Generator().manual_seed(3)) + 0.5
    with gated(model, [UNIT], {"u": g}):
        error(model, batches[0]).backward()
    through = hesso(model, [UNIT], {"u": g})["u"]
    model.zero_grad()
    with torch.no_grad():
        model[2].weight *= g
    error(model, batches[0]).backward()
    torch.testing.assert_close(through, hesso(model, [UNIT])["u"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_vib_finds_the_units_nobody_misses_and_folds_to_the_same_error(seed):
    model, batches = toy(seed)
    g = torch.Generator().manual_seed(seed)
    gates = learn_vib(model, [UNIT], batches, error, steps=300, generator=g)
    scores = gates.scores()["u"]
    assert set(scores.argsort()[:4].tolist()) == {8, 9, 10, 11}
    assert float(scores[8:].max()) < 0 < float(scores[:8].max())  # the paper's threshold
    multipliers = torch.where(scores > 0, gates.hard()["u"].detach(), 0.0)
    with torch.no_grad(), gated(model, [UNIT], {"u": multipliers}):
        kept = float(error(model, batches[0]))
    with torch.no_grad(), gated(model, [UNIT], {"u": (scores <= scores.median()).float()}):
        assert kept < 0.2 * float(error(model, batches[0]))


def test_vib_learns_where_a_reader_has_other_rows_than_samples():
    """One draw serves the whole forward, whatever number of rows each site has."""

    class Towers(nn.Module):
        def __init__(self):
            super().__init__()
            self.texts, self.images = nn.Linear(12, 3), nn.Linear(12, 3)

        def forward(self, texts, images):
            return self.texts(texts).sum() + self.images(images).sum()

    units = [Units(name, 12, reads=(Cut(name, "in"),)) for name in ("texts", "images")]
    batch, seen = (torch.randn(2, 12), torch.randn(5, 12)), []
    model = Towers().requires_grad_(False)
    for layer in (model.texts, model.images):
        layer.register_forward_hook(lambda m, args, out: seen.append(args[0].detach()))
    g = torch.Generator().manual_seed(0)
    learn_vib(model, units, [batch], lambda m, b: m(*b).square(), steps=2, generator=g)
    drawn = [x / batch[i % 2] for i, x in enumerate(seen)]
    assert len(drawn) == 4
    for gates in drawn:
        torch.testing.assert_close(gates, gates[:1].expand_as(gates))  # alike for all rows
    assert not torch.allclose(drawn[0][0], drawn[2][0])  # and new in every step


def test_vib_noise_and_penalty_are_the_printed_ones():
    gates = VIBGates([UNIT], log_variance=-2.0)
    with torch.no_grad():
        gates.mu.copy_(torch.linspace(-1, 2, 12))
    drawn = gates.sample(20000, generator=torch.Generator().manual_seed(0))["u"].detach()
    sigma = torch.tensor(-1.0).exp()
    # the standard error of 20000 draws is sigma / 141
    torch.testing.assert_close(drawn.mean(0), gates.mu.detach(), rtol=0, atol=float(sigma) / 30)
    torch.testing.assert_close(drawn.std(0), sigma.expand(12), rtol=0.03, atol=0)
    ratio = gates.mu.detach().square() / torch.tensor(-2.0).exp()
    torch.testing.assert_close(gates.penalty().detach(), (0.5 * (1 + ratio).log()).mean())
    torch.testing.assert_close(gates.scores()["u"], ratio.log())
    assert torch.equal(gates.hard()["u"], gates.mu)


def test_pdp_masks_are_made_of_norms_and_pass_gradients_to_weights():
    model, batches = toy()
    model.requires_grad_(True)
    z = norms(model, [UNIT])
    torch.testing.assert_close(z["u"], model[2].weight.norm(dim=0))
    masks = soft_masks(z, 0.5, temperature=0.1)
    tau = 0.1 * float(z["u"].detach().square().mean())
    torch.testing.assert_close(masks["u"], SoftThreshold(0.5, tau).open(z["u"]))
    with gated(model, [UNIT], {"u": masks["u"].detach()}):
        error(model, batches[0]).backward()
    alone = model[2].weight.grad.clone()
    model.zero_grad()
    with gated(model, [UNIT], lambda: soft_masks(norms(model, [UNIT]), 0.5, temperature=0.1)):
        error(model, batches[0]).backward()
    assert not torch.allclose(alone, model[2].weight.grad)


@pytest.mark.parametrize("seed", range(3))
def test_pdp_logits_leave_a_better_model_than_norms_alone(seed):
    """Units 0 to 2 are read by smaller columns than 8 to 11, which write next to nothing."""
    model, _ = toy(seed, dead=0)
    with torch.no_grad():
        norm = model[2].weight.norm(dim=0)
        model[2].weight /= norm
        model[2].weight[:, :3] *= 0.9
        model[0].weight[8:] *= 0.05
        model[0].bias[8:] = 0
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(seed))
    batches = [(x, model(x).detach())]
    before = norms(model, [UNIT])["u"]
    after = learn_pdp(model, [UNIT], batches, error, 0.75, steps=200, learning_rate=0.02)["u"]
    errors = []
    for z in (before, after):
        gate = torch.zeros(12).index_fill(0, z.argsort(descending=True)[:9], 1.0)
        with torch.no_grad(), gated(model, [UNIT], {"u": gate}):
            errors.append(float(error(model, batches[0])))
    assert errors[1] < 0.8 * errors[0]
