"""Pruning put on a model: what goes, what stays in place, and what a dense model would say."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compress3g.errors import ConfigError
from compress3g.kernels import registry
from compress3g.mamba import (
    PruneConfig,
    PruneSchedule,
    Vim,
    VimConfig,
    apply_patch,
    feature_map,
    load_checkpoint,
    preset,
    pruned,
    remove_patch,
    save_checkpoint,
)
from compress3g.mamba.patch import pruning_of
from compress3g.mamba.pictures import Preprocess
from compress3g.mamba.select import MERGING

from .plain_vim import logits

ALIGNS = ("none", "hold", "current", "previous", "mean", "bias", "recorded", "learned", "masked")
CONV_ALIGNS = ("none", "zero", "hold")
PRESETS = ("top", "top_vim_code", "evit", "random", "r_meeto", "utr", "ward")
MIDDLE = 17  # of the fixture's 5x7 grid

# Sums of fewer or differently grouped float32 terms over four blocks.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def schedule(keep=0.6, **changes):
    return replace(PruneSchedule(layers=(1, 3), keep=(keep, keep)), **changes)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", [None, *PRESETS])
def test_keeping_everything_is_the_dense_model_bit_for_bit(vim, images, backend, name):
    with registry.use(**registry.use_everywhere(backend)):
        dense = vim(images)
        apply_patch(vim, keep_ratio=1.0, layers=(1, 3), preset=name)
        assert torch.equal(vim(images), dense)


@pytest.mark.parametrize("keep", [0.01, 0.3, 0.62, 0.9])
def test_pruned_logits_are_those_of_a_plain_restatement(vim, images, keep):
    apply_patch(vim, keep_ratio=keep, layers=(1, 3))
    got = vim(images)
    for one, image in zip(got, images, strict=True):
        want = logits(vim.state_dict(), image, prune=((1, keep), (3, keep)))
        # float32 over four blocks
        assert float((one - want).detach().abs().max()) < 2e-5 * float(want.abs().max())


@pytest.mark.parametrize("keep", [0.5, 0.62, 0.9])
def test_merged_logits_are_those_of_a_plain_restatement(vim, images, keep):
    apply_patch(vim, preset("ward", schedule(keep)), trace=True)
    together = vim(images)
    for one, image in zip(together, images, strict=True):
        want = logits(vim.state_dict(), image, prune=((1, keep), (3, keep)), ward=True)
        # float32 over four blocks
        assert float((one - want).detach().abs().max()) < 2e-5 * float(want.abs().max())
    alone = torch.cat([vim(image[None]) for image in images])
    torch.testing.assert_close(together, alone, **CLOSE)


@pytest.mark.parametrize("method", ["drop", "evit"])
def test_steps_cannot_grow_with_sizes_that_nothing_has(vim, method):
    with pytest.raises(ConfigError, match=f"method {method} merges nothing"):
        PruneConfig(schedule=schedule(), method=method, align="size")


@pytest.mark.parametrize("align", ALIGNS)
@pytest.mark.parametrize("conv_align", CONV_ALIGNS)
def test_images_of_a_batch_are_pruned_as_if_each_were_alone(vim, images, align, conv_align):
    config = PruneConfig(schedule=schedule(), align=align, conv_align=conv_align)
    apply_patch(vim, config, trace=True)
    together = vim(images)
    kept = vim._token_info.kept[-1]
    assert len({tuple(row) for row in kept.tolist()}) == 3  # they do differ
    alone = torch.cat([vim(image[None]) for image in images])
    torch.testing.assert_close(together, alone, **CLOSE)


def test_images_that_keep_different_numbers_are_pruned_as_if_each_were_alone(vim, images):
    config = PruneConfig(schedule=schedule(0.75, mode="threshold"))
    for align in ALIGNS:
        for conv_align in CONV_ALIGNS:
            ragged = replace(config, align=align, conv_align=conv_align)
            apply_patch(vim, ragged, trace=True)
            together = vim(images)
            counts = (vim._token_info.kept[-1] >= 0).sum(1)
            alone = torch.cat([vim(image[None]) for image in images])
            torch.testing.assert_close(together, alone, **CLOSE)
    assert len(set(counts.tolist())) > 1


@pytest.mark.parametrize("name", PRESETS)
def test_presets_run_and_keep_as_many_tokens_as_the_schedule(vim, images, name):
    apply_patch(vim, preset(name, schedule()), trace=True)
    assert torch.isfinite(vim(images)).all()
    assert [k.shape[1] for k in vim._token_info.kept] == [36, 22, 14]


@pytest.mark.parametrize("name", [n for n in PRESETS if n != "top_vim_code"])
def test_the_class_token_stays_in_place_in_every_image(vim, images, name):
    keep = 0.55 if preset(name, schedule()).method in MERGING else 0.4
    apply_patch(vim, preset(name, schedule(keep)), trace=True)
    vim(images)
    for kept in vim._token_info.kept:
        assert (kept == MIDDLE).sum(1).tolist() == [1, 1, 1]
        assert bool((kept.diff(dim=1) > 0).all())  # no token twice, all in their order


def test_the_published_code_puts_the_class_token_in_the_middle(vim, images):
    apply_patch(vim, preset("top_vim_code", schedule()), trace=True)
    vim(images)
    for kept in vim._token_info.kept[1:]:
        place = (kept == MIDDLE).int().argmax(1)
        assert place.tolist() == [(kept.shape[1] - 1) // 2] * 3
        others = kept[kept != MIDDLE].reshape(3, -1)
        assert bool((others.diff(dim=1) > 0).all())


@pytest.mark.parametrize("keep", [1e-6, 0.02])
@pytest.mark.parametrize("align", ALIGNS)
def test_one_patch_and_the_class_token_are_the_least(vim, images, keep, align):
    apply_patch(vim, PruneConfig(schedule=schedule(keep), align=align), trace=True)
    assert torch.isfinite(vim(images)).all()
    assert vim._token_info.kept[-1].shape == (3, 2)


def test_no_images_give_no_logits(vim):
    apply_patch(vim, keep_ratio=0.5, layers=(1, 3))
    assert vim(torch.zeros(0, 3, 20, 28)).shape == (0, 5)


def test_planted_tokens_are_what_goes(vim, images):
    """Scores made the lowest or highest, at both ends and beside the class token."""
    low, high = [0, 16, 35], [5, 18, 30]

    def plant(mixed, cls, *rest):
        score = torch.ones(mixed.y.shape[:2])
        score[:, low], score[:, high] = 0.0, 2.0
        return score

    config = PruneConfig(schedule=PruneSchedule(layers=(2,), keep=(32,), mode="count"))
    apply_patch(vim, config, trace=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("compress3g.mamba.patch.score_tokens", lambda kind, *a: plant(*a))
        vim(images)
    gone = set(range(36)) - set(vim._token_info.kept[-1][0].tolist())
    assert gone == set(low)


def test_scores_of_both_directions_belong_to_their_token(vim):
    """One bright patch on an empty picture has the highest score wherever it lies."""
    vim.pos_embed.data.zero_()
    vim.cls_token.data.zero_()
    for place in (0, 3, 20, 34):
        image = torch.zeros(1, 3, 20, 28)
        row, column = divmod(place, 7)
        image[..., 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 30
        vim.patch_embed.proj.bias.data.zero_()
        apply_patch(vim, PruneConfig(schedule=PruneSchedule(layers=(1,), keep=(0.5,))), trace=True)
        vim(image)
        assert int(vim._token_info.scores[0][0].argmax()) == place + (place >= MIDDLE)


def test_ties_go_to_the_lower_index(vim):
    with torch.no_grad():
        for p in vim.parameters():
            p.zero_()
    apply_patch(vim, keep_ratio=0.5, layers=(1,), trace=True)
    vim(torch.zeros(1, 3, 20, 28))
    assert vim._token_info.kept[-1][0].tolist() == [*range(18), 18][:17] + [17, 18][:2]


@pytest.mark.parametrize("name", [None, *PRESETS])
def test_patches_come_off_and_leave_the_weights_alone(vim, images, name):
    dense, names = vim(images), list(vim.state_dict())
    before = copy.deepcopy(vim.state_dict())
    for _ in range(2):
        apply_patch(vim, keep_ratio=0.5, layers=(1, 2), preset=name)
        assert not torch.equal(vim(images), dense)
        assert list(vim.state_dict()) == names
    remove_patch(vim)
    remove_patch(vim)
    assert torch.equal(vim(images), dense)
    assert all(torch.equal(v, before[k]) for k, v in vim.state_dict().items())


def test_a_copy_of_a_patched_model_runs_its_own_weights(vim, images):
    apply_patch(vim, keep_ratio=0.5, layers=(1,))
    other = copy.deepcopy(vim)
    torch.nn.init.zeros_(other.head.weight)
    assert torch.equal(other(images), torch.zeros(3, 5))
    assert not torch.equal(vim(images), torch.zeros(3, 5))


def test_pruned_inside_a_block_is_as_before_after_it(vim, images):
    apply_patch(vim, keep_ratio=0.5, layers=(1,))
    before = vim(images)
    with pruned(vim, None):
        assert pruning_of(vim) is None
    with pruned(vim, PruneConfig(schedule=schedule(0.3))):
        assert not torch.equal(vim(images), before)
    assert torch.equal(vim(images), before)


def test_pruning_is_the_same_twice_and_with_any_number_of_threads(vim, images):
    apply_patch(vim, keep_ratio=0.5, layers=(1, 3))
    once, threads = vim(images), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert torch.equal(vim(images), once)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(vim(images), once)


def test_bias_with_zeros_in_holes_is_the_masked_run(vim, images):
    """The oracle: all positions, u = 0 and Delta = softplus(b) where tokens are gone."""
    config = PruneConfig(schedule=schedule(), align="bias", conv_align="zero")
    apply_patch(vim, config)
    fast = vim(images)
    apply_patch(vim, replace(config, align="masked"))
    torch.testing.assert_close(fast, vim(images), rtol=1e-6, atol=2e-6)


def test_no_gap_is_no_change(vim, images):
    """With max_gap 0 every rule that counts positions is the rule without decay."""
    config = PruneConfig(schedule=schedule(), align="hold")
    apply_patch(vim, config)
    held = vim(images)
    for align in ("current", "previous", "mean", "bias", "learned"):
        apply_patch(vim, replace(config, align=align, max_gap=0))
        torch.testing.assert_close(vim(images), held, **CLOSE)


def test_recorded_decay_is_that_of_the_tokens_that_went(vim, images):
    """Its hole sums follow the definition, over two prune points."""
    from compress3g.mamba.holes import record

    g = torch.Generator().manual_seed(0)
    first = [torch.rand(1, 9, 2, generator=g) for _ in range(2)]
    second = [torch.rand(1, 5, 2, generator=g) for _ in range(2)]
    once = record(None, tuple(first), torch.tensor([[0, 3, 4, 7, 8]]))
    twice = record(once, tuple(second), torch.tensor([[1, 4]]))  # tokens 3 and 8 are left
    want = first[0][:, 5:7].sum(1) + second[0][:, 2:4].sum(1)  # 5, 6 went first, then 4 and 7
    torch.testing.assert_close(twice[0][:, 1], want)
    want = first[1][:, 5:7].sum(1) + second[1][:, 2:4].sum(1)
    torch.testing.assert_close(twice[1][:, 0], want)
    assert float(once[0][:, 0].abs().max()) == 0
    assert float(once[1][:, -1].abs().max()) == 0


def test_gradients_reach_every_weight_through_pruning(vim, images):
    for align in ("current", "learned"):
        pruning = apply_patch(vim, PruneConfig(schedule=schedule(), align=align))
        vim.zero_grad()
        vim(images).square().sum().backward()
        assert all(float(p.grad.abs().max()) > 0 for p in vim.parameters())
    assert float(pruning.gates.grad.abs().max()) > 0
    apply_patch(vim, preset("ward", schedule()))
    vim.zero_grad()
    vim(images).square().sum().backward()
    assert all(float(p.grad.abs().max()) > 0 for p in vim.parameters())


@settings(max_examples=8, deadline=None)
@given(high=st.integers(1, 7), wide=st.integers(1, 9), keep=st.floats(0.05, 1.0))
def test_odd_and_oblong_grids_agree_with_the_restatement(high, wide, keep):
    torch.manual_seed(high * 10 + wide)
    config = VimConfig(image=(2 * high, 2 * wide), patch=2, stride=2, width=16, depth=3, classes=3)
    model = Vim(config).eval()
    image = torch.randn(3, 2 * high, 2 * wide)
    apply_patch(model, keep_ratio=keep, layers=(1, 2))
    want = logits(model.state_dict(), image, prune=((1, keep), (2, keep)))
    got = model(image[None])[0].detach()
    assert float((got - want).abs().max()) < 2e-5 * float(want.abs().max() + 1e-3)


def test_the_trace_tells_the_fate_of_every_token(vim, images):
    apply_patch(vim, keep_ratio=0.5, layers=(1, 3), trace=True)
    vim(images)
    info = vim._token_info
    assert info.grids[0] == (5, 7)
    for row in range(3):
        for index in range(36):
            present = [index in kept[row].tolist() for kept in info.kept]
            assert int(info.fate[row, index]) == sum(present)
    assert info.gaps[-1].sum(1).tolist() == [int(k[-1] - k[0]) + 1 - len(k) for k in info.kept[-1]]


class _Foreign(nn.Module):
    """A Vim as others write it: the same names, another class, norms of its own."""

    def __init__(self, vim):
        super().__init__()
        self.patch_embed, self.layers = vim.patch_embed, vim.layers
        self.norm_f, self.head = vim.norm_f, vim.head
        self.cls_token, self.pos_embed = vim.cls_token, vim.pos_embed

    def forward(self, x):
        raise AssertionError("the patch did not take over")


def test_foreign_modules_with_the_names_of_vim_are_pruned_too(vim, images):
    apply_patch(vim, keep_ratio=0.5, layers=(1, 3))
    other = _Foreign(vim).eval()
    apply_patch(other, keep_ratio=0.5, layers=(1, 3))
    assert torch.equal(other(images), vim(images))
    assert list(other.state_dict()) == [k for k in other.state_dict() if k in vim.state_dict()]


def test_what_is_no_vim_is_told_so():
    with pytest.raises(ConfigError, match="Linear is no Vim: it has no patch_embed"):
        apply_patch(nn.Linear(2, 2), keep_ratio=0.5)
    half = nn.Module()
    for name in ("patch_embed", "cls_token", "pos_embed", "norm_f", "head"):
        setattr(half, name, None)
    half.layers = [SimpleNamespace(mixer=SimpleNamespace(in_proj=None))]
    with pytest.raises(ConfigError, match=r"layers\.0\.mixer\.conv1d"):
        apply_patch(half, keep_ratio=0.5)


@pytest.mark.parametrize("wrong", [{"keep_ratio": 0.0}, {"keep_ratio": -1.0}, {"keep_ratio": 1.2},
                                   {"keep_ratio": 0.5, "layers": (3, 9)}, {}])  # fmt: skip
def test_impossible_schedules_are_one_line(vim, wrong):
    with pytest.raises(ConfigError) as caught:
        apply_patch(vim, **wrong)
    assert "\n" not in str(caught.value)


def test_a_centred_class_token_has_no_distances():
    with pytest.raises(ConfigError, match="no distance"):
        PruneConfig(schedule=schedule(cls="center"))


@pytest.mark.parametrize("align", ["current", "learned"])
def test_a_folder_brings_back_weights_and_pruning(vim, images, tmp_path, align):
    pruning = apply_patch(vim, PruneConfig(schedule=schedule(), align=align))
    if pruning.gates is not None:
        nn.init.normal_(pruning.gates)
    look = Preprocess(size=(20, 28), mean=(0.5,) * 3, std=(0.5,) * 3)
    save_checkpoint(tmp_path / "folder", vim, look, {"test": 12.5})
    again = load_checkpoint(tmp_path / "folder")
    assert again.preprocess == look
    assert again.pruning == pruning.config
    assert again.about == {"test": 12.5}
    assert torch.equal(again.model(images), vim(images))
    remove_patch(again.model)
    remove_patch(vim)
    assert torch.equal(again.model(images), vim(images))


def test_bfloat16_runs_pruned_and_stays_near(vim, images):
    apply_patch(vim, keep_ratio=0.5, layers=(1, 3), score="random")
    want = vim(images).detach()
    got = vim.to(torch.bfloat16)(images.to(torch.bfloat16)).detach()
    # 8 bits of mantissa
    assert float((got.float() - want).abs().max()) < 0.06 * float(want.abs().max())


def test_feature_maps_keep_what_pruned_patches_had(vim, images):
    """Against the stream itself: block by block, last values of every token."""
    from compress3g.mamba.models.bimamba import embed, step

    apply_patch(vim, PruneConfig(schedule=schedule(mode="threshold"), score="clip"), trace=True)
    vim(images)
    fate, found = vim._token_info.fate, feature_map(vim, images)
    assert found.shape == (3, 24, 5, 7)
    hidden, _, _ = embed(vim, images)
    hidden, residual, _ = step(vim.layers[0], hidden, None)
    early = torch.nn.functional.rms_norm(hidden + residual, (24,), vim.norm_f.weight, 1e-5)
    patches = [i for i in range(36) if i != MIDDLE]
    flat = found.flatten(2).transpose(1, 2)
    for row in range(3):
        went = [k for k, i in enumerate(patches) if int(fate[row, i]) == 1]
        assert went
        before = early[row, [patches[k] for k in went]]
        torch.testing.assert_close(flat[row, went], before.detach(), **CLOSE)


def test_the_feature_map_of_a_dense_model_is_that_of_keeping_everything(vim, images):
    dense = feature_map(vim, images)
    apply_patch(vim, keep_ratio=1.0, layers=(2,))
    assert torch.equal(feature_map(vim, images), dense)
