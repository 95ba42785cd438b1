"""When tokens go, how many stay, and what that costs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress3g.errors import ConfigError
from compress3g.mamba import SCHEDULES, PruneSchedule, VimConfig, flops, schedule_for_flops


def test_published_schedules_have_their_tokens_and_cost():
    tiny, small = VimConfig(), VimConfig(width=384)
    assert SCHEDULES["vim-s-30"].tokens(196, 24)[::5] == (196, 157, 126, 101, 101)
    dense = flops(small).total
    assert flops(small, SCHEDULES["vim-s-30"]).total / dense == pytest.approx(0.70, abs=0.01)
    assert flops(small, SCHEDULES["vim-s-40"]).total / dense == pytest.approx(0.59, abs=0.01)
    share = flops(tiny, SCHEDULES["vim-t-11"]).total / flops(tiny).total
    assert share == pytest.approx(0.88, abs=0.01)


def test_dense_cost_is_the_published_one():
    assert f"{flops(VimConfig()).total / 1e9:.2f}" == "1.45"
    assert f"{flops(VimConfig(width=384)).total / 1e9:.2f}" == "5.08"


def test_the_true_convention_counts_what_the_projections_multiply():
    """Products of both directions, counted by torch, plus the scan and the rest by hand."""
    from torch.utils.flop_counter import FlopCounterMode

    from compress3g.kernels import registry
    from compress3g.mamba import Vim

    config = VimConfig(image=(12, 16), patch=4, stride=4, width=16, depth=3, classes=5)
    model = Vim(config).eval()
    with FlopCounterMode(display=False) as counter, registry.use(), torch.no_grad():
        model(torch.randn(1, 3, 12, 16))
    e, n, tokens = config.inner, config.state, config.patches + 1
    by_op = {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}
    products = sum(c for op, c in by_op.items() if op in ("aten.mm", "aten.addmm", "aten.bmm"))
    patches = config.patches * config.width * 3 * 16
    rest = tokens * config.depth * (2 * (4 * e + 4 * e * n + e) + e)
    assert flops(config, convention="true").total == products / 2 + patches + rest


@settings(max_examples=60, deadline=None)
@given(
    patches=st.integers(1, 300),
    keep=st.lists(st.floats(0.01, 1.0), min_size=1, max_size=4),
    least=st.integers(1, 5),
)
def test_counts_fall_and_never_below_the_least(patches, keep, least):
    schedule = PruneSchedule(
        layers=tuple(range(1, len(keep) + 1)), keep=tuple(keep), min_tokens=least
    )
    counts = schedule.tokens(patches, len(keep) + 1)
    assert counts[0] == patches
    for before, after, share in zip(counts, counts[1:], keep, strict=False):
        assert min(before, least) <= after <= before
        assert after >= share * before - 1e-6


def test_counts_and_losses_can_be_given_as_numbers():
    assert PruneSchedule(layers=(1,), keep=(30,), mode="count").tokens(49, 2) == (49, 30)
    assert PruneSchedule(layers=(1,), keep=(11,), mode="tokens").tokens(49, 2) == (49, 38)


@settings(max_examples=20, deadline=None)
@given(target=st.floats(0.55, 1.0))
def test_a_schedule_for_flops_is_the_largest_that_fits(target):
    config = VimConfig()
    made = schedule_for_flops(config, target, layers=(5, 10, 15))
    dense = flops(config).total
    assert flops(config, made).total <= target * dense
    more = min(1.0, made.keep[0] + 0.001)
    larger = PruneSchedule(layers=(5, 10, 15), keep=(more,) * 3)
    assert more == 1.0 or flops(config, larger).total > target * dense


@pytest.mark.parametrize(
    "wrong",
    [
        {"keep": (0.0,) * 3}, {"keep": (-1.0,) * 3}, {"keep": (1.1,) * 3}, {"keep": (0.5,)},
        {"keep": (float("nan"),) * 3}, {"layers": (3, 2, 1)}, {"layers": (0, 1, 2)},
        {"layers": (), "keep": ()}, {"mode": "count", "keep": (1.5,) * 3}, {"min_tokens": 0},
    ],
)  # fmt: skip
def test_impossible_schedules_are_refused(wrong):
    with pytest.raises(ConfigError):
        PruneSchedule(**wrong)


def test_a_schedule_longer_than_the_model_is_refused():
    with pytest.raises(ConfigError, match="block 15 but the model has 8"):
        PruneSchedule().check(8)


@pytest.mark.parametrize("target", [0.0, 1.5, 0.1])
def test_impossible_shares_of_flops_are_refused(target):
    with pytest.raises(ConfigError):
        schedule_for_flops(VimConfig(), target, layers=(5, 10, 15))
