"""What `prune` removes, how much, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from compress3g.core import Cut, Units, gated, materialize, price
from compress3g.diffusion import prune, units_of
from compress3g.diffusion.pipelines import NEUTRAL, a_call
from compress3g.diffusion.prune import decide
from compress3g.diffusion.pruned_models import kept_of
from compress3g.diffusion.units import kind_of
from compress3g.errors import BudgetError, ConfigError, ScoreError
from compress3g.profile import count_flops

from .tiny import ARCHITECTURES, FAMILIES, Pipe, captions, dense, dense_copy, random_scores


def size(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_the_share_of_the_whole_denoiser_goes(name):
    model = dense_copy(name)
    before, units = size(model), units_of(model)
    largest = max(max(u.cost["params"] for u in price(model, units)), 1)
    prune(Pipe(model), random_scores(units), ratio=0.15, round_to=1)
    gone = before - size(model)
    # At least what was asked for, and less than one more unit of the largest kind.
    assert 0.15 * before <= gone < 0.15 * before + largest


@pytest.mark.parametrize("name", FAMILIES)
def test_the_pruned_denoiser_computes_what_the_masked_one_does(name):
    case, model = ARCHITECTURES[name], dense_copy(name)
    units = units_of(model)
    prune(Pipe(model), random_scores(units), ratio=0.15, round_to=4)
    keep = kept_of(model.config["compress3g"], units)
    gates = {u.name: torch.zeros(u.size).index_fill(0, keep[u.name], 1.0) for u in units}
    whole = dense_copy(name)
    with torch.no_grad(), gated(whole, units, gates):
        masked = case.run(whole, 2)
    with torch.no_grad():
        # Sums of fewer terms round differently: some float32 steps of the largest output.
        assert float((case.run(model, 2) - masked).abs().max() / masked.abs().max()) < 1e-5


def test_learned_logits_are_scores():
    class Learned:
        logits = random_scores(units_of(dense("SD3Transformer2DModel")), 3)

    one, two = (dense_copy("SD3Transformer2DModel") for _ in range(2))
    prune(Pipe(one), Learned(), ratio=0.2)
    prune(Pipe(two), Learned.logits, ratio=0.2)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_channels_come_in_multiples_and_heads_whole():
    model = dense_copy("PixArtTransformer2DModel")
    prune(Pipe(model), random_scores(units_of(model)), ratio=0.2, round_to=16)
    counts = {kind_of(u): u.size for u in units_of(model)}
    assert all(u.size % 16 == 0 for u in units_of(model) if kind_of(u) == "neurons")
    assert counts["heads"] >= 1


def test_wide_channel_groups_come_in_whole_multiples():
    """As in Stable Diffusion: 32 groups of 10 channels. Of 260, a processor computes 320."""
    units = [
        Units(f"{name}.groups", 32, reads=(Cut(name, "in", width),), cost={"params": 100.0 * width})
        for name, width in (("a", 10), ("b", 20), ("c", 3))
    ]
    total = sum(u.cost["params"] * u.size for u in units)
    for ratio in (0.1, 0.2, 0.4, 0.6):
        keep = decide(random_scores(units), units, ratio * total, total, round_to=16)
        assert all(len(keep[f"{name}.groups"]) * w % 16 == 0 for name, w in (("a", 10), ("b", 20)))
        assert len(keep["c.groups"]) % 6 in (0, 2)  # of 3 channels: 18 at a time, or whole


@pytest.mark.parametrize("ratio", [0.1, 0.25])
def test_a_share_of_the_operations_goes(ratio):
    """As counted, in calls of the pipeline's own; attention itself comes on top."""
    dense, small = captions(), captions()
    prune(small, random_scores(units_of(small.unet)), ratio=ratio, cost="flops", round_to=1)
    before, after = (count_flops(a_call(p, [NEUTRAL])).total for p in (dense, small))
    assert ratio <= 1 - after / before < ratio + 0.05
    assert small.unet.config["compress3g"]["cost"] == "flops"
    by_params = captions()
    prune(by_params, random_scores(units_of(by_params.unet)), ratio=ratio, round_to=1)
    assert size(by_params.unet) != size(small.unet)


def test_layers_lose_the_same_share():
    model = dense_copy("DiTTransformer2DModel")
    before = {u.name: u.size for u in units_of(model)}
    prune(Pipe(model), random_scores(units_of(model)), ratio=0.2, scope="layer", round_to=1)
    shares = [u.size / before[u.name] for u in units_of(model) if kind_of(u) == "neurons"]
    assert max(shares) - min(shares) < 0.01


def test_groups_without_scores_stay_whole():
    model = dense_copy("UNet2DConditionModel SD")
    scored = [u for u in units_of(model) if kind_of(u) == "neurons"]
    before = {u.name: u.size for u in units_of(model)}
    prune(Pipe(model), random_scores(scored), ratio=0.1, round_to=1)
    after = {u.name: u.size for u in units_of(model)}
    changed = {n for n in before if before[n] != after[n]}
    assert changed
    assert changed <= {u.name for u in scored}


def test_pruning_twice_names_units_of_the_dense_model():
    name = "SD3Transformer2DModel"
    case, model = ARCHITECTURES[name], dense_copy(name)
    pipe, units = Pipe(model), units_of(model)
    prune(pipe, random_scores(units, 1), ratio=0.1, round_to=1)
    first = kept_of(model.config["compress3g"], units)
    prune(pipe, random_scores(units_of(model), 2), ratio=0.1, round_to=1)
    both = kept_of(model.config["compress3g"], units)
    assert all(set(both[n].tolist()) <= set(first[n].tolist()) for n in both)
    at_once = materialize(dense_copy(name), units, both)
    with torch.no_grad():
        assert torch.equal(case.run(model, 2), case.run(at_once, 2))


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, float("nan")])
def test_a_ratio_that_is_no_share_is_refused(ratio):
    model = dense_copy("DiTTransformer2DModel")
    with pytest.raises(ConfigError, match="is not a share"):
        prune(Pipe(model), random_scores(units_of(model)), ratio=ratio)


def test_an_unreachable_ratio_says_what_can_be_reached():
    model = dense_copy("SD3Transformer2DModel")
    units = units_of(model)
    with pytest.raises(BudgetError, match=r"at most (0\.\d+) goes") as caught:
        prune(Pipe(model), random_scores(units), ratio=0.97, round_to=1)
    reachable = float(str(caught.value).partition("at most ")[2].split()[0])
    before = size(model)
    prune(Pipe(model), random_scores(units), ratio=reachable - 0.001, round_to=1)
    assert size(model) / before == pytest.approx(1 - reachable, abs=0.002)


def test_scores_of_another_model_are_refused():
    model = dense_copy("DiTTransformer2DModel")
    with pytest.raises(ScoreError, match="no units 'elsewhere'"):
        prune(Pipe(model), {"elsewhere": torch.ones(3)}, ratio=0.2)


def test_an_unknown_kind_and_a_missing_one_are_refused():
    model = dense_copy("DiTTransformer2DModel")
    with pytest.raises(ConfigError, match="'layers' is no kind"):
        prune(Pipe(model), {}, ratio=0.2, kinds=("layers",))
    with pytest.raises(ConfigError, match="has no groups to remove"):
        prune(Pipe(model), {}, ratio=0.2, kinds=("groups",))


def test_a_higher_score_stays():
    model = dense("FluxTransformer2DModel")
    units = price(model, units_of(model))
    scores = random_scores(units)
    total = size(model)
    keep = decide(scores, units, 0.2 * total, total)
    gone = [
        s
        for u in units
        for i, s in enumerate(scores[u.name].tolist())
        if i not in set(keep[u.name].tolist())
    ]
    stays = [s for u in units for s in scores[u.name][keep[u.name]].tolist()]
    floors = [float(scores[u.name].max()) for u in units]
    assert max(gone) <= min(s for s in stays if s not in floors)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_rounding_does_not_take_much_more_than_was_asked_for(scope):
    """At every ratio no multiple could come back without missing it."""
    model = dense("UNet2DConditionModel SDXL")
    units = price(model, units_of(model))
    scores, total = random_scores(units), size(model)
    for ratio in (0.1, 0.2, 0.3):
        keep = decide(scores, units, ratio * total, total, scope=scope, round_to=8)
        gone = sum(u.cost["params"] * (u.size - len(keep[u.name])) for u in units)
        cheapest = min(
            u.cost["params"] * (1 if kind_of(u) == "heads" else max(1, 8 // u.reads[0].chunk))
            for u in units
            if len(keep[u.name]) < u.size
        )
        assert ratio * total <= gone < ratio * total + cheapest
        for u in units:  # still the best of each group
            kept = scores[u.name][keep[u.name]]
            assert float(kept.min()) >= float(
                scores[u.name].sort(descending=True).values[len(kept) - 1]
            )
