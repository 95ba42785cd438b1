"""The shipped router: it draws captions that training never showed, within its budget."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from compress3g.diffusion.aptp import AptpConfig, AptpPipeline
from compress3g.diffusion.finetune import FinetuneConfig
from compress3g.engine.options import read_toml

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "pipelines" / "digits_aptp"
sys.path.insert(0, str(ROOT / "benchmarks"))
import _digits_score  # noqa: E402


@pytest.fixture(scope="module")
def owner():
    return AptpPipeline.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def captions():
    return (FOLDER / "held_out.txt").read_text().splitlines()


def digits(caption):
    return len(_digits_score.scene(caption).objects)


def test_held_out_captions_are_held_out(captions):
    assert all(_digits_score.scene(c).held_out for c in captions)
    learnt = (FOLDER / "captions.txt").read_text().splitlines()
    assert not any(_digits_score.scene(c).held_out for c in learnt)


def test_they_are_drawn_right(owner, captions):
    few = [c for n in (1, 2, 4) for c in [c for c in captions if digits(c) == n][:8]]
    images = owner.generate(few, steps=12, guidance=3.0)
    # All 60 were right when it was made: two of 24 wrong are far off that.
    assert int(_digits_score.right(images, few).sum()) >= 22


def test_the_budget_is_met_and_more_digits_get_more(owner, captions):
    routed = owner.route(captions)
    target = owner.router.config.target
    assert float(routed.shares.mean()) == pytest.approx(target, rel=0.02)
    count = torch.tensor([digits(c) for c in captions])
    by_count = {n: float(routed.shares[count == n].mean()) for n in (1, 2, 4)}
    assert by_count[1] + 0.01 < by_count[2] < by_count[4] - 0.01
    assert owner.router.entropy(routed.experts) > 0.8
    assert owner.router.likeness() < 0.95


def test_it_is_small_and_was_made_by_the_recipe_beside_it(owner):
    assert sum(f.stat().st_size for f in FOLDER.rglob("*") if f.is_file()) < 5e6
    recipe = read_toml(AptpConfig, FOLDER / "route.toml")
    assert owner.router.config == AptpConfig(**recipe)
    assert owner.mode == "finetuned"
    FinetuneConfig(**read_toml(FinetuneConfig, FOLDER / "finetune.toml"))
