from __future__ import annotations

import pytest
import torch

from compress3g.errors import ConfigError
from compress3g.kernels.ray_march import unpack_bits
from compress3g.nerf.config import TrainConfig
from compress3g.nerf.evaluation import evaluate
from compress3g.nerf.inside import fitted_levels
from compress3g.nerf.metrics import composite_over, psnr
from compress3g.nerf.trainer import Trainer
from compress3g.nerf.visibility import cell_of, visibility

_SMALL = {"log2_hashmap": 11, "samples": 4096, "march": 128, "occupancy": 32, "saliency_res": 16}


def _psnr(trainer: Trainer) -> float:
    scores = [score.psnr for score, _, _ in evaluate(trainer.model(), trainer.scene.test)]
    return sum(scores) / len(scores)


@pytest.mark.parametrize("pruner", [None, "rewind", "saliency", "projected"])
def test_every_pruner_learns_the_ball(scene, pruner):
    options = {"hollow": True, "pruner": pruner} if pruner else {}
    trainer = Trainer(scene, TrainConfig(steps=250, hull=False, **_SMALL, **options))
    trainer.fit()
    views = [composite_over(image) for image in scene.test.images]
    blank = sum(psnr(torch.ones_like(view), view) for view in views) / len(views)
    assert _psnr(trainer) > blank + 5
    saliency = float(trainer.pruner.picture(trainer).mean())
    assert saliency == 1.0 if pruner is None else saliency < 0.5


def test_the_paper_pruner_moves_saliency_and_sharpens_its_gate(scene):
    config = TrainConfig(steps=40, hollow=True, pruner="paper", hull=False, **_SMALL)
    trainer = Trainer(scene, config)
    assert trainer.field.alpha == 1e4
    trainer.fit()
    assert trainer.field.alpha == 1e5
    assert trainer.field.saliency is not None
    assert float(trainer.field.saliency.volume().mean()) < 0.731
    assert trainer.pruner.gamma() == pytest.approx(trainer.progress().gamma)


def test_the_same_seed_gives_the_same_model(scene):
    tables = []
    for _ in range(2):
        trainer = Trainer(scene, TrainConfig(steps=12, hollow=True, **_SMALL))
        trainer.fit()
        tables.append(trainer.field.table.detach())
    assert torch.equal(*tables)


def test_library_code_leaves_the_global_generator_alone(scene):
    before = torch.get_rng_state()
    Trainer(scene, TrainConfig(steps=3, hollow=True, **_SMALL)).fit()
    assert torch.equal(before, torch.get_rng_state())


def test_a_time_budget_is_kept(scene):
    trainer = Trainer(scene, TrainConfig(seconds=0.5, **_SMALL))
    trainer.fit()
    assert 0.5 <= trainer.seconds < 3
    assert trainer.done() == 1


def test_a_rate_that_diverges_is_one_clear_error(scene):
    trainer = Trainer(scene, TrainConfig(steps=5, **_SMALL))
    trainer.field.density_layers[0].data.fill_(float("nan"))
    with pytest.raises(ConfigError, match="diverged at step 0: try a --learning-rate below"):
        trainer.fit()


def test_visibility_is_largest_on_the_surface(scene):
    trainer = Trainer(scene, TrainConfig(steps=250, **_SMALL))
    trainer.fit()
    seen = visibility(trainer, 8000)
    side = seen.shape[0]
    centre = (torch.arange(side) + 0.5) / side * 2 - 1
    z, y, x = torch.meshgrid(centre, centre, centre, indexing="ij")
    radius = (x**2 + y**2 + z**2).sqrt()
    shell = seen[(radius - 0.5).abs() < 0.04].mean()
    assert float(seen[radius > 0.75].mean()) < 0.05 * float(shell)
    # Behind the surface nothing is seen: the inside is hollow.
    assert float(seen[radius < 0.3].mean()) < 0.2 * float(shell)


def test_rewind_spends_the_plain_table_on_what_is_visible(scene):
    options = {**_SMALL, "samples": 1 << 14, "hull": False}
    plain = Trainer(scene, TrainConfig(**options))
    trainer = Trainer(scene, TrainConfig(steps=200, hollow=True, **options))
    trainer.fit()
    field = trainer.field
    assert field.kept is not None
    kept = unpack_bits(field.kept, trainer.occupancy.side)
    assert field.levels.entries <= plain.field.levels.entries
    assert field.levels.resolutions == fitted_levels(kept, field.levels.entries).resolutions
    # Nothing is sampled where the table has no rows.
    assert not (trainer.occupancy.allowed & ~kept).any()
    # The ball's surface is inside, most of the box is not.
    side = kept.shape[0]
    centre = (torch.arange(side) + 0.5) / side * 2 - 1
    z, y, x = torch.meshgrid(centre, centre, centre, indexing="ij")
    shell = ((x**2 + y**2 + z**2).sqrt() - 0.5).abs() < 0.03
    assert float(kept[shell].float().mean()) > 0.98
    assert float(kept.float().mean()) < 0.5


def test_cell_of_matches_a_loop(generator):
    x = torch.rand(50, 3, generator=generator)
    expected = [sum(int(c * 7) * 7**k for k, c in enumerate(p)) for p in x.tolist()]
    assert cell_of(x, 7).tolist() == expected


@pytest.mark.parametrize(
    "bad", [{"steps": 0}, {"log2_hashmap": 2}, {"sparsity": 1.5}, {"steps": 5, "seconds": 1.0}]
)
def test_options_nothing_can_be_trained_with_are_refused(bad):
    with pytest.raises(ConfigError, match="--"):
        TrainConfig(**bad)
