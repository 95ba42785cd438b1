"""PlainMamba: names, orders, quirks, and pruning over four scans."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress3g.errors import ConfigError
from compress3g.mamba import (
    PlainMambaConfig,
    PruneConfig,
    PruneSchedule,
    apply_patch,
    create_model,
    feature_map,
    flops,
    load_checkpoint,
    preset,
)
from compress3g.mamba.models.plain_mamba import embed_plain
from compress3g.mamba.models.serpentine import serpentine
from compress3g.profile import size_of

from .plain_serpentine import after_embedding, walks
from .small_models import plain_model

CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # float32 over three blocks


@pytest.fixture
def plain():
    return plain_model()


@pytest.fixture
def images():
    return torch.randn(3, 3, 16, 20, generator=torch.Generator().manual_seed(1))


def schedule(keep=0.6, **changes):
    return replace(PruneSchedule(layers=(1, 2), keep=(keep, keep)), **changes)


@pytest.mark.parametrize(
    ("name", "millions", "giga"),
    [("l1", "7.3", "3.0"), ("l2", "25.7", "8.1"), ("l3", "50.5", "14.4")],
)
def test_totals_and_cost_are_the_published_ones(name, millions, giga):
    with torch.device("meta"):
        model = create_model(f"plain_mamba_{name}")
    # They leave out the head and round 7.36, 25.76 and 50.53 as they do.
    found = (size_of(model).params - size_of(model.head).params) / 1e6
    assert found == pytest.approx(float(millions), abs=0.07)
    assert f"{flops(model).total / 1e9:.1f}" == giga


def test_published_names_and_shapes_load():
    """Those of the authors' L1, with the prefixes of their files."""
    norm = {"weight": (64,), "bias": (64,), "running_mean": (64,), "running_var": (64,)}
    shapes = {
        "patch_embed.stem.0.weight": (64, 3, 7, 7), "patch_embed.convs.0.weight": (64, 64, 3, 3),
        "patch_embed.projection.weight": (192, 64, 8, 8), "patch_embed.projection.bias": (192,),
        "pos_embed": (1, 196, 192), "ln1.weight": (192,), "ln1.bias": (192,),
        "layers.0.dw.0.weight": (192, 1, 3, 3),
        **{f"layers.0.dw.1.{k}": (192,) for k in norm},
        **{f"patch_embed.{at}.1.{k}": v for at in ("stem", "convs") for k, v in norm.items()},
    }  # fmt: skip
    counts = ("patch_embed.stem.1", "patch_embed.convs.1", "layers.0.dw.1")
    mixer = {
        "in_proj.weight": (768, 192), "in_proj.bias": (768,), "conv2d.weight": (384, 1, 7, 7),
        "conv2d.bias": (384,), "x_proj.weight": (44, 384), "dt_proj.weight": (384, 12),
        "dt_proj.bias": (384,), "A_log": (384, 16), "D": (384,), "out_proj.weight": (192, 384),
        "out_proj.bias": (192,), "direction_Bs": (5, 16),
    }  # fmt: skip
    for i in range(24):
        shapes |= {f"layers.{i}.norm.{k}": (192,) for k in ("weight", "bias")}
        shapes |= {f"layers.{i}.mamba.{k}": v for k, v in mixer.items()}
    state = {f"backbone.{k}": torch.zeros(v) for k, v in shapes.items()}
    state |= {f"backbone.{k}.num_batches_tracked": torch.tensor(3) for k in counts}
    state |= {"head.fc.weight": torch.zeros(1000, 192), "head.fc.bias": torch.zeros(1000)}
    assert load_checkpoint({"state_dict": state}).model.config == PlainMambaConfig()


@settings(max_examples=30, deadline=None)
@given(high=st.integers(1, 9), wide=st.integers(1, 9))
def test_orders_and_directions_are_those_of_a_walk(high, wide):
    for rank, ids, (cells, said) in zip(*serpentine(high, wide), walks(high, wide), strict=True):
        places = [a * wide + b for a, b in cells]
        assert rank[places].tolist() == list(range(high * wide))
        assert ids[places].tolist() == said


@pytest.mark.parametrize("raster", [True, False])
@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("keep", [1.0, 0.55, 0.1])
def test_logits_are_those_of_a_plain_restatement(images, raster, double, keep):
    model = plain_model(raster_dbc=raster, double_bias=double)
    apply_patch(model, PruneConfig(schedule=schedule(keep)))
    with torch.no_grad():
        got = model(images)
        tokens, grid = embed_plain(model, images)
    for one, x in zip(got, tokens, strict=True):
        want = after_embedding(
            model.state_dict(), x, grid, prune=((1, keep), (2, keep)), raster=raster, double=double
        )
        # float32 over three blocks
        assert float((one - want).abs().max()) < 3e-5 * float(want.abs().max())


def test_both_quirks_matter(images):
    outputs = [
        plain_model(raster_dbc=raster, double_bias=double)(images)
        for raster in (True, False)
        for double in (True, False)
    ]
    for i, one in enumerate(outputs):
        assert not any(torch.allclose(one, other) for other in outputs[:i])


@pytest.mark.parametrize("name", ["random", "r_meeto", "utr"])
def test_rivals_close_up_to_a_smaller_grid(plain, images, name):
    apply_patch(plain, preset(name, schedule()), trace=True)
    together = plain(images)
    assert [k.shape[1] for k in plain._token_info.kept] == [20, 12, 8]
    if name != "random":
        alone = torch.cat([plain(image[None]) for image in images])
        torch.testing.assert_close(together, alone, **CLOSE)


def test_pairs_merge_without_a_class_token(plain, images):
    config = PruneConfig(schedule=schedule(), method="ward", align="none")
    apply_patch(plain, config, trace=True)
    together = plain(images)
    assert [k.shape[1] for k in plain._token_info.kept] == [20, 12, 8]
    alone = torch.cat([plain(image[None]) for image in images])
    torch.testing.assert_close(together, alone, **CLOSE)


def test_naive_pruning_is_the_dense_mixer_on_the_smaller_grid(images):
    """Twelve survivors on 3x4: the same as a model that has only ever seen that grid."""
    from compress3g.mamba.holes import Holes
    from compress3g.mamba.models.plain_mamba import mix_plain

    mixer = plain_model().layers[0].mamba
    x = torch.randn(2, 12, 24)
    holes = Holes(positions=torch.arange(12).expand(2, -1), length=20, align="none",
                  conv_align="none", grid=(3, 4))  # fmt: skip
    torch.testing.assert_close(
        mix_plain(mixer, x, (4, 5), holes)[0], mix_plain(mixer, x, (3, 4))[0], **CLOSE
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"score": "attentiveness"}, {"align": "recorded"}, {"align": "masked"},
        {"align": "size", "method": "ward"},
        {"conv_align": "hold"}, {"conv_align": "none"}, {"schedule": schedule(mode="threshold")},
    ],
)  # fmt: skip
def test_what_needs_a_class_token_or_a_sequence_is_refused(plain, wrong):
    with pytest.raises(ConfigError, match="PlainMamba: "):
        apply_patch(plain, PruneConfig(**{"schedule": schedule()} | wrong))


def test_depthwise_blocks_see_holes_as_zeros(images):
    model = plain_model(depthwise=(0, 1))
    apply_patch(model, keep_ratio=0.5, layers=(1, 2))
    together = model(images)
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(together, alone, **CLOSE)


def test_gradients_reach_every_weight_through_pruning(plain, images):
    pruning = apply_patch(plain, PruneConfig(schedule=schedule(), align="learned"))
    assert pruning.gates.shape == (3, 4, 48)
    plain(images).square().sum().backward()
    assert all(float(p.grad.abs().max()) > 0 for p in plain.parameters())
    assert float(pruning.gates.grad.abs().max()) > 0


def test_feature_maps_have_the_grid(plain, images):
    dense = feature_map(plain, images)
    assert dense.shape == (3, 24, 4, 5)
    apply_patch(plain, keep_ratio=0.5, layers=(1, 2))
    assert torch.isfinite(feature_map(plain, images)).all()
