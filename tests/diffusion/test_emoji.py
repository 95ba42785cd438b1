"""Captions of emoji; and the model that benchmarks/train_emoji.py makes, where it was made."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

import compress3g.diffusion as cd

ROOT = Path(__file__).parents[2]
FOLDER = Path(os.environ.get("COMPRESS3G_EMOJI", ""))
sys.path.insert(0, str(ROOT / "benchmarks"))
import _emoji  # noqa: E402

needs_model = pytest.mark.skipif(
    not (FOLDER / "emoji.txt").exists(),
    reason="needs the folder of benchmarks/train_emoji.py in COMPRESS3G_EMOJI",
)


@pytest.fixture(scope="module")
def listed():
    return _emoji.read_list(FOLDER / "emoji.txt")


@pytest.mark.parametrize(
    ("code", "caption"),
    [
        ("1f469_1f3fe_200d_1f680", "woman astronaut with medium dark skin"),
        ("1f3c4_200d_2642", "man surfer"),
        ("2764", "heavy black heart"),
        ("1f44d_1f3fb", "thumbs up sign with light skin"),
        ("1f469_1f3fd_200d_2764_200d_1f468_1f3fe", None),  # two people
        ("1f1eb_1f1f7", None),  # a flag
        ("1f3fb", None),  # a skin alone
    ],
)
def test_captions_say_what_code_points_mean(code, caption):
    found = _emoji.named(code)
    assert (found and found.caption) == caption


@needs_model
def test_what_is_held_out_combines_what_training_showed(listed):
    known, drawn = listed
    seen = [known[i] for i in drawn["seen"]]
    words = {word for e in seen for word in e.caption.split()}
    for group in ("tone", "role"):
        kept = [known[i] for i in drawn[group]]
        assert kept
        assert all(e.group == group for e in kept)
        assert not {e.caption for e in seen} & {e.caption for e in kept}
        assert all(set(e.caption.split()) <= words for e in kept)
    assert not {e.name for e in seen} & {known[i].name for i in drawn["role"]}


@needs_model
def test_the_model_draws_what_it_is_told(listed):
    """A tenth of its full measurement; half of the captions were never shown."""
    known, drawn = listed
    judge = _emoji.Judge.load(FOLDER / "judge.safetensors")
    wanted = drawn["seen"][10::50] + drawn["tone"][::5]
    pipe = cd.open_pipeline(FOLDER)
    images = cd.generate(pipe, [known[i].caption for i in wanted], steps=10, guidance=3.0)
    assert images.shape[1:] == (3, 128, 128)
    assert _emoji.judged(images, wanted, known, judge)[:, 1].float().mean() >= 0.7
    others = wanted[1:] + wanted[:1]
    assert _emoji.judged(images, others, known, judge)[:, 0].float().mean() <= 0.1
