"""Standard errors of benchmarks/mamba_accuracy.py are those that gaps really scatter by."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import mamba_accuracy
from _paired import difference


def answers(numbers, seeds, pictures, *, of_seeds, of_pictures):
    """Of two models: pictures are hard for both or for one, seeds are good for one or none."""
    hard = numbers.normal(size=pictures)
    made = []
    for offset in (0.3, 0.2):
        own = of_pictures * numbers.normal(size=pictures)
        luck = of_seeds * numbers.normal(size=(seeds, 1))
        made.append(hard + own + luck + numbers.normal(size=(seeds, pictures)) + offset > 0)
    return made


@pytest.mark.parametrize(
    ("seeds", "of_seeds", "of_pictures"), [(10, 0.0, 0.0), (10, 0.3, 1.0), (4, 0.1, 1.0)]
)
def test_standard_error_is_what_repetitions_scatter_by(seeds, of_seeds, of_pictures):
    numbers = np.random.default_rng(0)
    found = np.array(
        [
            difference(*answers(numbers, seeds, 150, of_seeds=of_seeds, of_pictures=of_pictures))
            for _ in range(600)
        ]
    )
    scattered = found[:, 0].var(ddof=1)
    # A variance of seeds below zero is taken for zero, which errs on the wide side.
    assert 0.92 < (found[:, 1] ** 2).mean() / scattered < 1.25


def test_seeds_without_answers_count_like_any_other():
    numbers = np.random.default_rng(1)
    a, b = answers(numbers, 8, 4000, of_seeds=0.1, of_pictures=0.5)
    further = [100 * (float(x.mean()) - float(y.mean())) for x, y in zip(a[5:], b[5:], strict=True)]
    points, error = difference(list(a), list(b))
    again, close = difference(list(a[:5]), list(b[:5]), further)
    assert again == pytest.approx(points)
    assert close == pytest.approx(error, rel=0.05)


def test_one_seed_scatters_as_its_pictures_do():
    a, b = np.array([1, 1, 0, 1], bool), np.array([1, 0, 1, 0], bool)
    points, error = difference([a], [b])
    assert points == 25
    assert error == pytest.approx(100 * np.std([0, 1, -1, 1], ddof=1) / 2)


def test_a_run_goes_on_from_earlier_results_of_the_same_settings(tmp_path, capsys):
    data_set = mamba_accuracy.DATA_SETS["cifar10"]
    rows = {"fine-tuned test 0.8 ward": {"seeds": [60.0, 61.0]}}
    told = {"name": "some", "steps": 5, "pictures": 64, "layers": data_set.layers, "rows": rows}
    file = tmp_path / "some.json"
    file.write_text(json.dumps(told))
    chosen = Namespace(steps=5, pictures=64)
    known = mamba_accuracy.earlier(file, chosen, data_set, "some")
    answers = mamba_accuracy.Answers(tmp_path / "work")
    answers.keep("fine-tuned test 0.8 ward seed 1", np.array([True, False]))
    found = [mamba_accuracy.score("fine-tuned test 0.8 ward", s, answers, known) for s in range(3)]
    assert found == [60.0, 50.0, None]  # what is in the folder comes first
    chosen.steps = 6
    with pytest.raises(SystemExit, match="2"):
        mamba_accuracy.earlier(file, chosen, data_set, "some")
    assert capsys.readouterr().err.count("\n") == 1
    for text in ('{"name": "so', "[]", "{}"):  # truncated, or something else
        file.write_text(text)
        with pytest.raises(SystemExit, match="2"):
            mamba_accuracy.earlier(file, chosen, data_set, "some")
    with pytest.raises(SystemExit, match="2"):
        mamba_accuracy.earlier(tmp_path / "nowhere", chosen, data_set, "some")
    assert capsys.readouterr().err.count("is no results file") == 4


def test_a_gap_of_fewer_seeds_than_its_rows_have_is_outdated():
    rows = {
        "fine-tuned test 0.8 ward": {"seeds": [61.0, 63.0]},
        "fine-tuned test 0.8 r_meeto": {"seeds": [60.0, 60.0, 59.0]},
        "fine-tuned test 0.8: ward (ward) - r_meeto": {"points": 1.0},
        "fine-tuned test 0.8: chosen (l1, none, none) - r_meeto": {"points": 1.0},  # rows unknown
    }
    assert mamba_accuracy.outdated(rows) == ["fine-tuned test 0.8: ward (ward) - r_meeto"]
    rows["fine-tuned test 0.8: ward (ward) - r_meeto"]["points"] = 2.0  # of the first two
    assert mamba_accuracy.outdated(rows) == []
