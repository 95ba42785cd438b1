"""The architecture, its names, and files of weights."""

from __future__ import annotations

import argparse

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress3g.errors import ConfigError, FormatError
from compress3g.mamba import Vim, VimConfig, create_model, load_checkpoint
from compress3g.mamba.checkpoint import infer, resize_images, resized_positions, unwrapped
from compress3g.profile import size_of

from .plain_vim import logits

# hustvl/Vim's names with Vim-T's shapes.
PUBLISHED = {
    "cls_token": (1, 1, 192),
    "pos_embed": (1, 197, 192),
    "patch_embed.proj.weight": (192, 3, 16, 16),
    "patch_embed.proj.bias": (192,),
    "norm_f.weight": (192,),
    "head.weight": (1000, 192),
    "head.bias": (1000,),
}
IN_LAYER = {
    "norm.weight": (192,),
    "mixer.in_proj.weight": (768, 192),
    "mixer.out_proj.weight": (192, 384),
    "mixer.A_log": (384, 16),
    "mixer.A_b_log": (384, 16),
    **{f"mixer.D{way}": (384,) for way in ("", "_b")},
    **{f"mixer.conv1d{way}.weight": (384, 1, 4) for way in ("", "_b")},
    **{f"mixer.conv1d{way}.bias": (384,) for way in ("", "_b")},
    **{f"mixer.x_proj{way}.weight": (44, 384) for way in ("", "_b")},
    **{f"mixer.dt_proj{way}.weight": (384, 12) for way in ("", "_b")},
    **{f"mixer.dt_proj{way}.bias": (384,) for way in ("", "_b")},
}


def published_state():
    g = torch.Generator().manual_seed(0)
    shapes = PUBLISHED | {f"layers.{i}.{k}": v for i in range(24) for k, v in IN_LAYER.items()}
    return {k: 0.02 * torch.randn(v, generator=g) for k, v in shapes.items()}


@pytest.mark.parametrize(
    ("name", "millions"), [("vim_tiny", "7.148"), ("vim_small", "25.80"), ("vim_base", "97.60")]
)
def test_totals_are_the_published_ones(name, millions):
    with torch.device("meta"):
        total = size_of(create_model(f"{name}_patch16_224")).params / 1e6
    digits = len(millions.partition(".")[2])
    assert f"{total:.{digits}f}" == millions


def test_a_state_dict_with_published_names_and_shapes_loads(tmp_path):
    state = published_state()
    beside = {"args": argparse.Namespace(lr=1e-3), "epoch": 299}
    wrapped = {"model": {f"module.{k}": v for k, v in state.items()}, **beside}
    torch.save(wrapped, tmp_path / "vim_t.pth")
    model = load_checkpoint(tmp_path / "vim_t.pth").model
    assert model.config == VimConfig()
    assert {k: tuple(v.shape) for k, v in model.state_dict().items()} == {
        k: tuple(v.shape) for k, v in state.items()
    }
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_positions_for_overlapping_patches_are_recognised():
    state = published_state() | {"pos_embed": torch.zeros(1, 730, 192)}
    assert infer(state) == VimConfig(stride=8)


def test_missing_and_foreign_names_are_listed():
    state = published_state()
    del state["layers.3.mixer.A_b_log"], state["norm_f.weight"]
    state["extra.weight"] = torch.zeros(2)
    with pytest.raises(
        FormatError, match=r"lacks layers\.3\.mixer\.A_b_log, norm_f\.weight; .*extra"
    ):
        load_checkpoint(state)


def test_wrong_shapes_are_named_with_both():
    state = published_state() | {"layers.3.mixer.D": torch.zeros(7)}
    with pytest.raises(FormatError, match=r"layers\.3\.mixer\.D \(7,\) for \(384,\)"):
        load_checkpoint(state)


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04"])
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_damaged_files_are_one_line(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FormatError) as caught:
        load_checkpoint(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize("key", ["model", "state_dict", "model_ema"])
def test_wrappers_and_prefixes_go(key):
    found = unwrapped({key: {"module.backbone.norm_f.weight": torch.ones(1)}, "epoch": 3})
    assert list(found) == ["norm_f.weight"]


def test_logits_are_those_of_a_plain_restatement(vim, images):
    got = vim(images)
    for one, image in zip(got, images, strict=True):
        want = logits(vim.state_dict(), image)
        # float32 over four blocks
        assert float((one - want).detach().abs().max()) < 2e-5 * float(want.abs().max())


@settings(max_examples=6, deadline=None)
@given(
    high=st.integers(1, 5), wide=st.integers(1, 5), state=st.sampled_from([1, 3, 8, 16]),
    width=st.sampled_from([8, 12, 20]),
)  # fmt: skip
def test_any_grid_and_width_agrees_with_the_restatement(high, wide, state, width):
    torch.manual_seed(high * 7 + wide)
    config = VimConfig(
        image=(4 * high, 4 * wide), patch=4, stride=4, width=width, depth=2, state=state, classes=3
    )
    model, image = Vim(config).eval(), torch.randn(3, 4 * high, 4 * wide)
    want = logits(model.state_dict(), image)
    assert float((model(image[None])[0] - want).detach().abs().max()) < 2e-5 * float(
        want.abs().max() + 1e-3
    )


def test_resizing_positions_keeps_the_class_token_and_is_the_identity_on_the_same_grid():
    positions = torch.randn(1, 5 * 7 + 1, 6)
    assert torch.allclose(resized_positions(positions, (5, 7), (5, 7)), positions, atol=1e-6)
    larger = resized_positions(positions, (5, 7), (8, 9))
    assert torch.equal(larger[:, 36], positions[:, 17])


def test_a_resized_model_takes_the_other_size_and_no_longer_its_own(vim, images):
    resize_images(vim, (24, 24))
    assert vim(torch.randn(1, 3, 24, 24)).shape == (1, 5)
    with pytest.raises(ConfigError, match="20x28"):
        vim(images)


def test_training_drops_whole_blocks_but_never_the_first():
    torch.manual_seed(0)
    config = VimConfig(image=(8, 8), patch=4, stride=4, width=16, depth=3, drop_path=0.5)
    model = Vim(config)
    assert [layer.drop_rate for layer in model.layers] == [0.0, 0.0, 0.25]
    image = torch.randn(1, 3, 8, 8)
    assert len({model(image)[0, 0].item() for _ in range(40)}) > 1
    model.eval()
    assert torch.equal(model(image), model(image))
