from __future__ import annotations

import pytest
import torch

from compress3g.engine.checkpoint import load_tensors, save_tensors
from compress3g.errors import FormatError
from compress3g.nerf.checkpoint import load_checkpoint, save_checkpoint
from compress3g.nerf.config import TrainConfig
from compress3g.nerf.model import NerfModel
from compress3g.nerf.trainer import Trainer

_SMALL = {"log2_hashmap": 9, "samples": 1024, "march": 64, "occupancy": 16, "saliency_res": 8}


@pytest.mark.parametrize("pruner", ["rewind", "saliency", "projected", "paper"])
@pytest.mark.parametrize("stop", [3, 31])
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(scene, tmp_path, pruner, stop):
    config = TrainConfig(steps=45, hollow=True, pruner=pruner, hull=False, **_SMALL)
    whole = Trainer(scene, config)
    whole.fit()
    broken = Trainer(scene, config)
    broken.fit(lambda now: now.step < stop)
    save_checkpoint(broken, tmp_path / "c.safetensors")
    resumed = Trainer(scene, config)
    load_checkpoint(resumed, tmp_path / "c.safetensors")
    assert resumed.step == stop
    resumed.fit()
    state, expected = resumed.field.state_dict(), whole.field.state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert torch.equal(resumed.occupancy.bits, whole.occupancy.bits)


@pytest.mark.parametrize("pruner", ["saliency", "rewind"])
def test_a_model_renders_the_same_after_a_round_trip(scene, tmp_path, pruner):
    trainer = Trainer(scene, TrainConfig(steps=20, hollow=True, pruner=pruner, **_SMALL))
    trainer.fit()
    trainer.model().save(tmp_path / "m.safetensors", {"scene": "ball"})
    model, about = NerfModel.load(tmp_path / "m.safetensors")
    assert about == {"scene": "ball"}
    cameras = model.to_unit(scene.test.cameras)
    assert torch.equal(model.render(cameras, 1), trainer.model().render(cameras, 1))


def test_a_table_of_another_convention_is_refused(scene, tmp_path):
    file = tmp_path / "m.safetensors"
    Trainer(scene, TrainConfig(**_SMALL)).model().save(file, {})
    tensors, metadata = load_tensors(file)
    save_tensors(file, tensors, {**metadata, "grid_convention": "tcnn"})
    with pytest.raises(FormatError, match=r"m.safetensors has a hash grid of convention 'tcnn'"):
        NerfModel.load(file)


def test_a_damaged_model_is_one_clear_error(scene, tmp_path):
    file = tmp_path / "m.safetensors"
    Trainer(scene, TrainConfig(**_SMALL)).model().save(file, {})
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(FormatError, match="is damaged"):
        NerfModel.load(file)


def test_a_run_goes_on_only_with_its_own_options(scene, tmp_path):
    trainer = Trainer(scene, TrainConfig(steps=4, **_SMALL))
    save_checkpoint(trainer, tmp_path / "c.safetensors")
    other = Trainer(scene, TrainConfig(steps=9, seed=1, **_SMALL))
    with pytest.raises(FormatError, match="was trained with --seed 0, not --seed 1"):
        load_checkpoint(other, tmp_path / "c.safetensors")
