"""The shipped Vim on the pictures that are shipped with it: what the page says holds on them too.

500 pictures have a standard error of 1.6 points: only differences far beyond it are asserted.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from compress3g.cli.main import main
from compress3g.mamba import PruneConfig, PruneSchedule, load_checkpoint, preset, pruned
from compress3g.mamba.data import open_data
from compress3g.mamba.train import accuracy

FOLDER = Path(__file__).parent.parent.parent / "pipelines" / "fashion_vim"
SCHEDULE = PruneSchedule(layers=(2, 4, 6), keep=(0.65,) * 3)


@pytest.fixture(scope="module")
def pictures():
    return open_data(FOLDER / "test_500.npz")


@pytest.fixture(scope="module")
def reached(pictures):
    """Accuracy of the dense weights under several prunings."""
    found = load_checkpoint(FOLDER / "dense")
    naive = PruneConfig(schedule=SCHEDULE, align="none", conv_align="none")
    settings = {
        "dense": None,
        "ours": PruneConfig(schedule=SCHEDULE),
        "naive": naive,
        "code": preset("top_vim_code", SCHEDULE),
        "centred": replace(naive, schedule=replace(SCHEDULE, cls="center")),
    }
    figures = {}
    for name, config in settings.items():
        with pruned(found.model, config):
            figures[name] = accuracy(found.model, pictures, found.preprocess)
    return figures


FLOORS = {"dense": 84.5, "keep_0.8": 81.5, "keep_0.65": 79.0}  # % of the test split


def test_weights_are_small_and_carry_their_story():
    for folder, floor in FLOORS.items():
        found = load_checkpoint(FOLDER / folder)
        assert (FOLDER / folder / "model.safetensors").stat().st_size < 5e6
        assert found.about["classes"][9] == "ankle boot"
        assert found.about["test"] > floor
        assert (found.pruning is None) == (folder == "dense")


def test_the_dense_model_is_as_good_as_its_story_says(reached):
    told = load_checkpoint(FOLDER / "dense").about["test"]
    assert reached["dense"] == pytest.approx(told, abs=5)


def test_repairing_the_holes_gains_over_naive_pruning(reached):
    assert reached["dense"] > reached["ours"] > reached["naive"]


def test_the_published_code_is_no_better_than_what_the_paper_describes(reached):
    assert reached["code"] <= reached["ours"]
    assert reached["centred"] <= reached["naive"] + 3.2  # two standard errors


@pytest.mark.parametrize("keep", [0.8, 0.65])
def test_fine_tuned_models_are_as_good_as_they_say_and_beat_pruning_alone(pictures, keep):
    tuned, dense = load_checkpoint(FOLDER / f"keep_{keep}"), load_checkpoint(FOLDER / "dense")
    with pruned(dense.model, tuned.pruning):
        before = accuracy(dense.model, pictures, dense.preprocess)
    reached = accuracy(tuned.model, pictures, tuned.preprocess)
    assert reached > before + 5
    assert reached == pytest.approx(tuned.about["test"], abs=5)


def test_show_explains_the_shipped_picture(tmp_path, capsys):
    out = tmp_path / "kept.png"
    words = ["mamba", "show", str(FOLDER / "boot.png"), "--ckpt", str(FOLDER / "keep_0.65")]
    assert main([*words, "-o", str(out)]) == 0
    assert "ankle boot" in capsys.readouterr().out
    assert out.stat().st_size > 10_000
