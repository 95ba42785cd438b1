"""VMamba: names, sizes, cross scans, and pruning inside stages."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compress3g.cli.main import main
from compress3g.errors import ConfigError
from compress3g.mamba import (
    PruneConfig,
    PruneSchedule,
    VMamba,
    VMambaConfig,
    apply_patch,
    create_model,
    feature_map,
    flops,
    load_checkpoint,
    preset,
    save_checkpoint,
    schedule_for_flops,
)
from compress3g.mamba.holes import Holes
from compress3g.mamba.models.cross_scan import mix_cross
from compress3g.mamba.pictures import Preprocess
from compress3g.mamba.train import _groups
from compress3g.profile import size_of

from .plain_cross import logits, mixer
from .small_models import cross_model

CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # float32 over six blocks
ALIGNS = ("none", "hold", "current", "previous", "mean", "bias", "learned")


@pytest.fixture
def model():
    return cross_model()


@pytest.fixture
def images():
    return torch.randn(3, 3, 20, 28, generator=torch.Generator().manual_seed(1))


def schedule(keep=0.6, **changes):
    return replace(PruneSchedule(layers=(1, 2, 4), keep=(keep,) * 3), **changes)


@pytest.mark.parametrize(
    ("name", "changes", "millions", "giga"),
    [
        ("tiny", {}, 30, "4.9"),
        ("small", {}, 50, "8.7"),
        ("base", {}, 89, "15.4"),
        ("tiny", {"depths": (2, 2, 5, 2), "expand": 2.0}, 31, "4.9"),
        ("small", {"depths": (2, 2, 20, 2), "expand": 1.0}, 49, "8.6"),
        ("base", {"depths": (2, 2, 20, 2), "expand": 1.0}, 87, "15.2"),
    ],
)
def test_totals_and_cost_are_the_published_ones(name, changes, millions, giga):
    """Of all six models in the authors' table of results."""
    with torch.device("meta"):
        model = create_model(f"vmamba_{name}", **changes)
    assert round(size_of(model).params / 1e6) == millions
    assert f"{flops(model).total / 1e9:.1f}" == giga


def test_names_of_other_times_give_the_same_model(images):
    model = cross_model()
    state = {}
    for name, tensor in model.state_dict().items():
        name = name.replace(".op.x_proj_weight", ".self_attention.x_proj.weight")
        name = name.replace(".op.dt_projs_weight", ".op.dt_projs.weight")
        name = name.replace(".blocks.0.norm.", ".blocks.0.ln_1.")
        name = name.removeprefix("classifier.")
        if name.endswith((".x_proj.weight", "dt_projs.weight")):
            tensor = tensor.flatten(0, 1)
        state[name] = tensor
    again = load_checkpoint(state).model
    assert torch.equal(again(images), model(images))


@pytest.mark.parametrize("sizes", [{}, {"state": 3, "expand": 2.0, "conv_bias": True}])
@pytest.mark.parametrize("keep", [1.0, 0.55, 0.05])
def test_logits_are_those_of_a_plain_restatement(images, sizes, keep):
    model = cross_model(**sizes)
    apply_patch(model, PruneConfig(schedule=schedule(keep)))
    with torch.no_grad():
        got = model(images)
    for one, image in zip(got, images, strict=True):
        want = logits(model.state_dict(), image, prune=[(n, keep) for n in (1, 2, 4)])
        # float32 over six blocks
        assert float((one - want).abs().max()) < 3e-5 * float(want.abs().max())


@settings(max_examples=15, deadline=None)
@given(high=st.integers(1, 6), wide=st.integers(1, 6), data=st.data())
def test_cross_scans_know_every_hole(high, wide, data):
    """Any kept tokens on any grid: output and score as of the walk over the whole grid."""
    cells = high * wide
    kept = sorted(data.draw(st.sets(st.integers(0, cells - 1), min_size=1)))
    op = cross_model(state=2).layers[0].blocks[0].op
    x = torch.randn(1, len(kept), 12, generator=torch.Generator().manual_seed(high * 7 + wide))
    holes = Holes(positions=torch.tensor([kept]), length=cells, align="current",
                  conv_align="zero", grid=(high, wide))  # fmt: skip
    with torch.no_grad():
        out, mixed = mix_cross(op, x, (high, wide), holes, inside=True)
        if len(kept) == cells:
            torch.testing.assert_close(mix_cross(op, x, (high, wide))[0], out, **CLOSE)
    p = {k: v.double() for k, v in op.state_dict().items()}
    want, y = mixer(p, x[0].double(), [divmod(k, wide) for k in kept], (high, wide))
    torch.testing.assert_close(out[0].double(), want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixed.y[0].double(), y, rtol=1e-4, atol=1e-5)


def test_delta_is_the_mean_step_of_all_four_scans(model, images):
    op = model.layers[0].blocks[0].op
    x = torch.randn(2, 35, 12)
    with torch.no_grad():
        dense = mix_cross(op, x, (5, 7), inside=True)[1].delta
        holes = Holes(positions=torch.arange(35).expand(2, -1), length=35, align="current",
                      conv_align="zero", grid=(5, 7))  # fmt: skip
        torch.testing.assert_close(mix_cross(op, x, (5, 7), holes, inside=True)[1].delta, dense)
        u = nn.functional.silu(
            op.conv2d(op.in_proj(x).transpose(1, 2).reshape(2, 12, 5, 7)).flatten(2).transpose(1, 2)
        )
        want = sum(
            nn.functional.softplus(u @ w[:1].T @ d.T + b)
            for w, d, b in zip(op.x_proj_weight, op.dt_projs_weight, op.dt_projs_bias, strict=True)
        )
    torch.testing.assert_close(dense, want, **CLOSE)


def test_every_rule_of_alignment_says_something_else(model, images):
    found = []
    for align in ("none", "current", "previous", "mean", "bias", "learned"):
        apply_patch(model, PruneConfig(schedule=schedule(), align=align))
        found.append(model(images))
    apply_patch(model, PruneConfig(schedule=schedule(), align="none", conv_align="none"))
    found.append(model(images))
    for i, one in enumerate(found):
        assert not any(torch.allclose(one, other) for other in found[:i])


def test_the_patched_dense_path_runs_every_stage(model, images):
    """Without a patch the model runs its own loop: both must be the same."""
    dense = model(images)
    apply_patch(model, PruneConfig(schedule=PruneSchedule(layers=(5,), keep=(1.0,))))
    assert torch.equal(model(images), dense)


def test_tokens_come_back_at_the_end_of_a_stage(model, images):
    """Those that went keep their value: with mixers and networks that add nothing, all do."""
    with torch.no_grad():
        for block in model.layers[0].blocks[1:]:
            block.op.out_proj.weight.zero_()
            block.mlp.fc2.weight.zero_()
            block.mlp.fc2.bias.zero_()
    dense = model(images)
    apply_patch(model, keep_ratio=0.3, layers=(1, 2), trace=True)
    assert torch.equal(model(images), dense)
    assert [k.shape[1] for k in model._token_info.kept] == [35, 11, 4]


def test_the_trace_has_the_grid_of_every_prune_point(model, images):
    apply_patch(model, PruneConfig(schedule=schedule(0.5)), trace=True)
    model(images)
    info = model._token_info
    assert info.grids == ((5, 7), (5, 7), (5, 7), (3, 4))
    assert [k.shape[1] for k in info.kept] == [35, 18, 9, 6]
    assert info.fate is None
    assert flops(model, schedule(0.5)).tokens == (35, 18, 9, 12, 6, 6)


@pytest.mark.parametrize("name", ["random", "r_meeto", "utr"])
def test_rivals_run_and_keep_the_same_number(model, images, name):
    apply_patch(model, preset(name, schedule()), trace=True)
    assert torch.isfinite(model(images)).all()
    assert [k.shape[1] for k in model._token_info.kept] == [35, 21, 13, 8]


def test_pairs_merge_without_a_class_token(model, images):
    config = PruneConfig(schedule=schedule(), method="ward", align="none")
    apply_patch(model, config, trace=True)
    together = model(images)
    assert [k.shape[1] for k in model._token_info.kept] == [35, 21, 13, 8]
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(together, alone, **CLOSE)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"score": "attentiveness"}, "needs a class token"),
        ({"score": "gated"}, "needs a gate"),
        ({"align": "recorded"}, "two scans of Vim"),
        ({"align": "size", "method": "ward"}, "align size makes"),
        ({"align": "masked"}, "oracle"),
        ({"conv_align": "hold"}, "conv_align zero"),
        ({"conv_align": "none"}, "use align none"),
        ({"schedule": schedule(mode="threshold")}, "padded"),
        ({"schedule": PruneSchedule(layers=(3,), keep=(0.5,))}, "block 3 ends a.* 1, 2, 4, 5"),
        ({"schedule": PruneSchedule(layers=(7,), keep=(0.5,))}, "model has 6 blocks"),
    ],
)  # fmt: skip
def test_what_it_cannot_have_is_refused(model, wrong, told):
    with pytest.raises(ConfigError, match=told):
        apply_patch(model, PruneConfig(**{"schedule": schedule()} | wrong))


def test_gradients_reach_every_weight_through_pruning(model, images):
    pruning = apply_patch(model, PruneConfig(schedule=schedule(), align="learned"))
    assert pruning.gates.shape == (6, 4, 24)
    model(images).square().sum().backward()
    assert all(float(p.grad.abs().max()) > 0 for p in model.parameters())
    assert float(pruning.gates.grad[1, :, :12].abs().min()) > 0
    assert float(pruning.gates.grad[1, :, 12:].abs().max()) == 0  # of a wider stage


def test_what_is_no_weight_matrix_is_not_decayed(model):
    decayed, free = _groups(model, 0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    assert decayed["weight_decay"] == 0.1
    assert free["weight_decay"] == 0
    for p in decayed["params"]:
        assert names[id(p)].rpartition(".")[2] in ("weight", "x_proj_weight", "dt_projs_weight")
        assert p.ndim > 1
    assert any(names[id(p)].endswith("A_logs") for p in free["params"])


def test_feature_maps_are_those_of_the_last_stage(model, images):
    dense = feature_map(model, images)
    assert dense.shape == (3, 24, 3, 4)
    head = model.classifier.head
    pooled = dense.mean((2, 3)) @ head.weight.T + head.bias
    torch.testing.assert_close(pooled, model(images), **CLOSE)
    apply_patch(model, keep_ratio=0.5, layers=(1, 4))
    sparse = feature_map(model, images)
    pooled = sparse.mean((2, 3)) @ head.weight.T + head.bias
    torch.testing.assert_close(pooled, model(images), **CLOSE)


def test_default_points_lie_in_the_longest_stage():
    config = VMambaConfig()
    assert config.prune_points == (6, 8, 10)
    with torch.device("meta"):
        model = VMamba(config)
    assert apply_patch(model, keep_ratio=0.7).config.schedule.layers == (6, 8, 10)
    found = schedule_for_flops(config, 0.8)
    assert found.layers == (6, 8, 10)
    share = flops(config, found).total / flops(config).total
    assert 0.79 < share <= 0.8


class _Foreign(nn.Module):
    """As others write it: channels first, norms and projections of their own classes."""

    def __init__(self, ours):
        super().__init__()
        self.patch_embed = nn.Sequential(
            ours.patch_embed["0"], nn.Identity(), ours.patch_embed["2"], nn.Identity(), nn.GELU(),
            ours.patch_embed["5"], nn.Identity(), ours.patch_embed["7"],
        )  # fmt: skip
        self.layers = nn.ModuleList()
        for stage in ours.layers:
            down = nn.Identity()
            if hasattr(stage, "downsample"):
                parts = stage.downsample
                down = nn.Sequential(nn.Identity(), parts["1"], nn.Identity(), parts["3"])
            blocks = nn.Sequential(*stage.blocks)
            self.layers.append(nn.ModuleDict({"blocks": blocks, "downsample": down}))
        self.classifier = ours.classifier

    def forward(self, images):
        raise NotImplementedError


def test_a_foreign_module_with_these_names_is_pruned_too(model, images):
    foreign = _Foreign(model).eval()
    for one in (model, foreign):
        apply_patch(one, keep_ratio=0.5, layers=(1, 4))
    assert torch.equal(foreign(images), model(images))


def test_the_command_line_knows_it(tmp_path, capsys):
    from PIL import Image

    torch.manual_seed(0)
    model = VMamba(VMambaConfig(image=(32, 32), width=8, depths=(2, 3), classes=3))
    look = Preprocess(size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
    save_checkpoint(tmp_path / "model", model, look, {"classes": ["a", "b", "c"]})
    for i in range(6):
        at = tmp_path / "data" / "abc"[i % 3]
        at.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(at / f"{i}.png")
    ckpt = ["--ckpt", str(tmp_path / "model")]
    prune = ["--keep", ".5", "--layers", "1,3"]
    assert main(["mamba", "info", str(tmp_path / "model")]) == 0
    said = capsys.readouterr().out
    assert "VMamba" in said
    assert "64 64 16 16 16" in said
    assert main(["mamba", "eval", *ckpt, "--data", str(tmp_path / "data"), *prune]) == 0
    assert "of 6 pictures" in capsys.readouterr().out
    picture = str(tmp_path / "data" / "a" / "0.png")
    words = ["mamba", "show", picture, *ckpt, *prune, "-o", str(tmp_path / "kept.png")]
    assert main(words) == 0
    assert "8 of 16 patches" in capsys.readouterr().out
    bench = ["mamba", "bench", *ckpt, "--keeps", "1,.5", "--layers", "1", "--batch", "1"]
    assert main([*bench, "--seconds", ".1"]) == 0
    assert "realised" in capsys.readouterr().out
    assert main(["mamba", "eval", *ckpt, "--data", str(tmp_path / "data"), "--keep", ".5",
                 "--layers", "2"]) == 2  # fmt: skip
    assert "block 2 ends a stage" in capsys.readouterr().err
