"""Merging by Ward's loss: who goes into whom, what is conserved, and what it costs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress3g.errors import ConfigError
from compress3g.mamba import (
    MambaVisionConfig,
    PlainMambaConfig,
    PruneSchedule,
    VimConfig,
    VMambaConfig,
    flops,
)
from compress3g.mamba.select import Stream, evit, merge, utr, ward

from .plain_vim import merged

SHAPES = {
    "patches": st.integers(2, 12),
    "batch": st.integers(0, 3),
    "parts": st.integers(1, 2),
    "cls": st.booleans(),
    "sizes": st.booleans(),
    "keep": st.floats(0.01, 1.0),
    "seed": st.integers(0, 1 << 20),
}


def drawn(patches, batch, parts, cls, sizes, keep, seed):
    """A stream of float64 tokens, a score, and how many patches stay."""
    g = torch.Generator().manual_seed(seed)
    length = patches + cls
    stream = Stream(
        parts=tuple(
            torch.randn(batch, length, 3, generator=g, dtype=torch.float64) for _ in range(parts)
        ),
        cls=torch.randint(length, (batch,), generator=g) if cls else None,
        size=torch.randint(1, 5, (batch, length), generator=g).double() if sizes else None,
    )
    if cls and sizes:
        stream.size.scatter_(1, stream.cls[:, None], 1.0)
    count = max(1, patches // 2, round(keep * patches))
    return stream, torch.randn(batch, length, generator=g), count


@pytest.mark.parametrize(
    "scores", [torch.Tensor.abs, lambda s: s, lambda s: 100 + s, torch.zeros_like]
)
def test_a_fused_token_is_the_average_by_score_of_what_it_holds(scores):
    """Of tokens none of which is negative in proportion to their scores, else from the lowest."""
    stream, score, count = drawn(10, 3, 2, cls=True, sizes=False, keep=0.6, seed=3)
    score = scores(score)
    got = evit(stream, score, count)
    for i, cls in enumerate(stream.cls.tolist()):
        patches = [j for j in range(11) if j != cls]
        ranked = sorted(patches, key=lambda j: -float(score[i, j]))  # a stable sort
        fused = ranked[count - 1 :]
        assert sorted([*ranked[:count], cls]) == got.index[i].tolist()
        raw = [float(score[i, j]) for j in fused]
        weights = [s - min(*raw, 0.0) for s in raw]
        weights = weights if sum(weights) else [1.0] * len(fused)
        at = got.index[i].tolist().index(fused[0])
        for part, made in zip(stream.parts, got.stream.parts, strict=True):
            total = sum(w * part[i, j] for w, j in zip(weights, fused, strict=True))
            torch.testing.assert_close(made[i, at], total / sum(weights), rtol=1e-5, atol=1e-6)


@settings(max_examples=80, deadline=None)
@given(**SHAPES)
def test_the_pairs_merge_whose_merging_loses_least(**shapes):
    stream, score, count = drawn(**shapes)
    got = ward(stream, score, count)
    for i in range(len(score)):
        cls = -1 if stream.cls is None else int(stream.cls[i])
        before = [1] * stream.tokens if stream.size is None else stream.size[i].tolist()
        first, last = stream.parts[0][i], stream.parts[-1][i]
        rest = last if len(stream.parts) > 1 else torch.zeros_like(last)
        hidden, residual, total, kept = merged(first, rest, before, cls, count)
        assert got.index[i].tolist() == kept
        # float64, in another order
        torch.testing.assert_close(got.stream.parts[0][i], hidden, rtol=1e-12, atol=1e-12)
        if len(stream.parts) > 1:
            torch.testing.assert_close(got.stream.parts[1][i], residual, rtol=1e-12, atol=1e-12)
        assert got.stream.size[i].tolist() == total


@pytest.mark.parametrize(
    ("method", "least"), [(merge, 3), (ward, 3), (utr, 4)], ids=["merge", "ward", "utr"]
)
def test_more_than_half_of_the_tokens_do_not_merge(method, least):
    """Of seven; fewer would be left than were asked, and counted."""
    stream = Stream(parts=(torch.randn(2, 7, 3),))
    score = torch.rand(2, 7)
    assert method(stream, score, least).index.shape[1] == least
    with pytest.raises(ConfigError, match=f"{least - 1} of 7 would be left: keep more"):
        method(stream, score, least - 1)


@pytest.mark.parametrize("method", [merge, ward])
@settings(max_examples=60, deadline=None)
@given(**SHAPES)
def test_sizes_and_sums_are_conserved_and_the_class_token_is_left_alone(method, **shapes):
    stream, score, count = drawn(**shapes)
    got = method(stream, score, count)
    assert got.index.shape[1] == count + stream.extra
    assert bool((got.index.diff(dim=1) > 0).all())
    size = torch.ones_like(score).double() if stream.size is None else stream.size
    assert torch.equal(got.stream.size.sum(1), size.sum(1))
    for before, after in zip(stream.parts, got.stream.parts, strict=True):
        total = (after * got.stream.size[..., None]).sum(1)
        torch.testing.assert_close(total, (before * size[..., None]).sum(1))  # float64
        if stream.cls is not None:
            row = torch.arange(len(score))
            assert torch.equal(after[row, got.stream.cls], before[row, stream.cls])
            assert bool((got.stream.size[row, got.stream.cls] == 1).all())


@pytest.mark.parametrize(
    ("config", "extra", "width", "sequences"),
    [
        (VimConfig(image=(32, 32), patch=4, stride=4, width=96, depth=4), 1, 96, 1),
        (PlainMambaConfig(image=(32, 32), patch=4, width=64, depth=4, depthwise=()), 0, 64, 1),
        (VMambaConfig(image=(32, 32), width=12, depths=(4,)), 0, 12, 1),
        (MambaVisionConfig(image=(128, 128), width=8, windows=(8, 8, 8, 4)), 0, 32, 1),
    ],
)
def test_the_true_convention_counts_what_is_compared(config, extra, width, sequences):
    schedule = PruneSchedule(layers=(1,), keep=(40,), mode="count")
    dropped = flops(config, schedule, convention="true").total
    scores = (64 + extra) * config.stages[0].inner
    for method, scored in (("merge", 0), ("ward", 0), ("utr", scores)):
        found = flops(config, schedule, convention="true", method=method).total - dropped
        assert found == sequences * (32 * 32 * width + scored - scores)
    assert flops(config, schedule, method="ward") == flops(config, schedule)  # papers do not
