"""Shipped recipes: every key is an option, and each runs on a tiny pipeline of its family."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import signal
import sys
import tomllib
from pathlib import Path

import pytest

from compress3g.cli.main import main
from compress3g.diffusion import EcoDiffConfig, FinetuneConfig, PruneConfig, save
from compress3g.diffusion.recipe import TABLES, Recipe
from compress3g.engine.options import read_toml
from compress3g.errors import ConfigError

from .pipelines import pipeline

# The package's own name for the function hides the module.
_Run = sys.modules["compress3g.diffusion.finetune"]._Run
FOLDER = Path(__file__).parents[2] / "pipelines"
RECIPES = {"sdxl": "SDXL", "flux": "Flux", "sd35": "SD3", "sd2": "SD"}
KINDS = {"learn": EcoDiffConfig, "prune": PruneConfig, "finetune": FinetuneConfig}
# As little work as there is: the recipe's other options stay as they are.
SHORT = {"steps": 2, "updates": 1, "batch": 1, "accumulate": 1, "rank": 2, "samples": 2}
SHORT |= {"round_to": 1, "ratio": 0.1}


def test_every_recipe_is_tried():
    assert {f.parent.name for f in FOLDER.glob("ecodiff_*/*.toml")} == {
        f"ecodiff_{name}" for name in RECIPES
    }


@pytest.mark.parametrize("name", RECIPES)
def test_every_key_is_an_option(name):
    file = FOLDER / f"ecodiff_{name}" / "recipe.toml"
    given = tomllib.loads(file.read_text())
    assert set(given) == set(TABLES) == set(KINDS)
    for table, kind in KINDS.items():
        values = read_toml(kind, file, table=table, tables=TABLES)
        assert values == given[table]
        for key, value in dataclasses.asdict(kind(**values)).items():
            assert value == values.get(key, getattr(kind(), key))
    recipe = Recipe.of(PruneConfig(**given["prune"]), file)
    assert recipe.learn.target == recipe.prune.ratio
    text = (file.parent / "README.md").read_text()
    assert f"--config pipelines/{file.parent.name}/recipe.toml" in text


def shortened(file: Path) -> str:
    lines = []
    for table, values in tomllib.loads(file.read_text()).items():
        lines.append(f"[{table}]")
        lines += [f"{k} = {json.dumps(SHORT.get(k, v))}" for k, v in values.items()]
    return "\n".join(lines)


@pytest.mark.parametrize("name", RECIPES)
def test_it_runs_on_a_tiny_pipeline_of_the_family(name, tmp_path, capsys):
    save(copy.deepcopy(pipeline(RECIPES[name])), tmp_path / "dense")
    (tmp_path / "prompts.txt").write_text("a red cat\nthree dog\n")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(shortened(FOLDER / f"ecodiff_{name}" / "recipe.toml"))
    words = ["diffusion", "prune", tmp_path / "dense", tmp_path / "small", "--config", recipe]
    words += ["--prompts", tmp_path / "prompts.txt", "--json"]
    code = main([str(w) for w in words])
    said = capsys.readouterr()
    assert code == 0, said.err
    told = json.loads(said.out)
    assert 0.1 <= 1 - told["pruned"]["params"] / told["dense"]["params"] < 0.4
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "dense", "prompts.txt", "recipe.toml", "small",
    ]  # fmt: skip


def test_an_interrupted_recipe_goes_on_to_the_same_pipeline(tmp_path, monkeypatch, capsys):
    save(copy.deepcopy(pipeline("SD")), tmp_path / "dense")
    (tmp_path / "prompts.txt").write_text("a red cat\nthree dog\n")
    recipe = tmp_path / "recipe.toml"
    text = shortened(FOLDER / "ecodiff_sd2" / "recipe.toml")
    recipe.write_text(text.replace("updates = 1", "updates = 3"))
    learn = _Run._learn

    def told_to_stop(self, m):
        if self.done == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return learn(self, m)

    def run(out):
        words = ["diffusion", "prune", tmp_path / "dense", out, "--config", recipe]
        return main([str(w) for w in [*words, "--prompts", tmp_path / "prompts.txt"]])

    assert run(tmp_path / "straight") == 0
    with monkeypatch.context() as patch:
        patch.setattr(_Run, "_learn", told_to_stop)
        assert run(tmp_path / "broken") == 130
    left = {p.name for p in tmp_path.iterdir()}
    assert {"broken.learn", "broken.finetune"} < left
    assert "broken" not in left
    assert run(tmp_path / "broken") == 0
    file = "unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "broken" / file).read_bytes() == (tmp_path / "straight" / file).read_bytes()
    assert not list(tmp_path.glob("broken.*"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ratio = 0.2\n[learn]\nsteps = 5\n", "ratio is none of the tables"),
        ("[teach]\nsteps = 5\n", "teach is none of the tables learn, prune, finetune"),
        ("[learn]\nstep = 5\n", "no option 'step'"),
        ("[finetune]\nupdates = 0\n", "--updates 0 is out of range"),
    ],
)
def test_a_wrong_recipe_is_told_apart(text, says, tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says):
        Recipe.of(PruneConfig(**read_toml(PruneConfig, file, table="prune", tables=TABLES)), file)
