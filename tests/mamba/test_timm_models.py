"""Our models in timm, where timm is; and what is said where it is not."""

from __future__ import annotations

import sys

import pytest
import torch

from compress3g.errors import ConfigError, MissingExtra
from compress3g.mamba import apply_patch, register_in_timm
from compress3g.mamba.models import MODELS, VimConfig


@pytest.fixture
def timm():
    return pytest.importorskip("timm")


def test_without_timm_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtra, match=r"compress3g\[timm\]"):
        register_in_timm()


def test_all_models_are_there_and_registering_twice_is_harmless(timm):
    assert register_in_timm() == register_in_timm() == list(MODELS)
    assert set(MODELS) <= set(timm.list_models())


def test_timms_words_are_our_fields(timm):
    register_in_timm()
    model = timm.create_model("vim_tiny", num_classes=7, img_size=32, drop_path_rate=0.1, depth=2)
    assert model.config == VimConfig(image=(32, 32), depth=2, classes=7, drop_path=0.1)
    assert model.num_classes == 7
    assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
    apply_patch(model, keep_ratio=0.5, layers=(1,))
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 7)


def test_weights_come_by_path(timm, tmp_path):
    register_in_timm()
    sizes = {"img_size": 32, "num_classes": 3, "depths": (1, 1), "width": 8}
    torch.manual_seed(0)
    model = timm.create_model("vmamba_tiny", **sizes).eval()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "weights.pth")
    torch.manual_seed(1)
    again = timm.create_model("vmamba_tiny", checkpoint_path=tmp_path / "weights.pth", **sizes)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(again.eval()(images), model(images))


def test_its_data_configuration_is_that_of_the_authors(timm):
    register_in_timm()
    with torch.device("meta"):
        model = timm.create_model("mamba_vision_small", num_classes=10)
    found = timm.data.resolve_model_data_config(model)
    assert found["input_size"] == (3, 224, 224)
    assert found["crop_pct"] == 0.93
    assert found["interpolation"] == "bicubic"


@pytest.mark.parametrize(
    ("words", "told"),
    [({"pretrained": True}, "no weights of vim_tiny"), ({"heads": 3}, "vim_tiny has no heads")],
)
def test_what_it_cannot_do_is_said(timm, words, told):
    register_in_timm()
    with pytest.raises(ConfigError, match=told):
        timm.create_model("vim_tiny", **words)
