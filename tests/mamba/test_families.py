"""What holds of every family beside Vim, whose own tests are older and closer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from compress3g.mamba import (
    PruneConfig,
    PruneSchedule,
    apply_patch,
    load_checkpoint,
    remove_patch,
    save_checkpoint,
)
from compress3g.mamba.pictures import Preprocess

from . import small_models

CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # float32 over a few blocks


@dataclass(frozen=True)
class Case:
    """A maker of models, its sizes, and blocks after which tokens go."""

    make: Callable[[], Any]
    sizes: dict[str, Any]
    layers: tuple[int, ...]


CASES = {
    "PlainMamba": Case(small_models.plain_model, small_models.PLAIN, (1, 2)),
    "VMamba": Case(small_models.cross_model, small_models.CROSS, (1, 2, 4)),
    "MambaVision": Case(small_models.vision_model, small_models.VISION, (1, 3, 6)),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture
def model(case):
    return case.make()


@pytest.fixture
def images(case):
    g = torch.Generator().manual_seed(1)
    return torch.randn(3, 3, *case.sizes["image"], generator=g)


@pytest.mark.parametrize(
    "align", ["none", "hold", "current", "previous", "mean", "bias", "learned"]
)
def test_images_of_a_batch_are_pruned_as_if_each_were_alone(case, model, images, align):
    schedule = PruneSchedule(layers=case.layers, keep=(0.6,) * len(case.layers))
    apply_patch(model, PruneConfig(schedule=schedule, align=align), trace=True)
    together = model(images)
    assert len({tuple(row) for row in model._token_info.kept[-1].tolist()}) > 1
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(together, alone, **CLOSE)


def test_keeping_everything_is_the_dense_model_and_patches_come_off(case, model, images):
    dense, names = model(images), list(model.state_dict())
    apply_patch(model, keep_ratio=1.0, layers=case.layers)
    assert torch.equal(model(images), dense)
    apply_patch(model, keep_ratio=0.5, layers=case.layers)
    assert not torch.equal(model(images), dense)
    assert list(model.state_dict()) == names
    remove_patch(model)
    assert torch.equal(model(images), dense)


def test_a_folder_brings_back_the_model(case, model, images, tmp_path):
    apply_patch(model, keep_ratio=0.5, layers=case.layers)
    look = Preprocess(size=case.sizes["image"], mean=(0.5,) * 3, std=(0.5,) * 3)
    save_checkpoint(tmp_path / "folder", model, look)
    again = load_checkpoint(tmp_path / "folder")
    assert again.model.config == model.config
    assert torch.equal(again.model(images), model(images))
