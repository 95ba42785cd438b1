"""`compress3g diffusion route` from outside: what it writes, one line for what it cannot use."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

from compress3g.cli.main import main
from compress3g.diffusion.aptp.config import AptpConfig
from compress3g.diffusion.pruned_models import save
from compress3g.engine.checkpoint import load_tensors, save_tensors
from compress3g.engine.options import read_toml

from ..tiny import captions
from .conftest import PROMPTS

SMALL = ("--experts", 2, "--target", 0.8, "--steps", 3, "--batch", 4, "--learning-rate", 0.3,
         "--inference-steps", 3)  # fmt: skip


def run(*words):
    return main(["diffusion", "route", *map(str, words)])


def test_every_key_of_the_shipped_recipe_is_an_option():
    folder = Path(__file__).parents[3] / "pipelines" / "aptp_sd21"
    AptpConfig(**read_toml(AptpConfig, folder / "route.toml"))


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("route")
    save(captions(), folder / "dense")
    (folder / "captions.txt").write_text("\n".join(PROMPTS) + "\n")
    (folder / "holes.txt").write_text("a red seven\n\na blue three\n")
    (folder / "same.txt").write_text("a red seven\n" * 3)
    code = run(
        "train", folder / "dense", folder / "routed", "--captions", folder / "captions.txt", *SMALL
    )
    assert code == 0
    return folder


def test_train_leaves_a_pipeline_and_no_checkpoint(work, capsys):
    assert (work / "routed" / "router.safetensors").is_file()
    assert not (work / "routed.checkpoint").exists()
    assert run("inspect", work / "routed", "--json") == 0
    about = json.loads(capsys.readouterr().out)
    assert len(about["experts"]) == 2
    assert about["target"] == 0.8


def test_codes_are_cut_again_where_asked(work, tmp_path, capsys):
    asked = ("--captions", work / "captions.txt", *SMALL, "--recut", "fisher")
    assert run("train", work / "dense", tmp_path / "routed", *asked) == 0
    assert run("inspect", tmp_path / "routed", "--json") == 0
    about = json.loads(capsys.readouterr().out.splitlines()[-1])
    mean = sum(e["share"] * e["usage"] for e in about["experts"])
    assert 0.7 < mean <= 0.8 + 1e-6


def test_generate_says_where_each_prompt_went_and_saves_the_pictures(work, tmp_path, capsys):
    file = tmp_path / "sheet.png"
    words = [w for p in PROMPTS[:3] for w in ("--prompt", p)]
    assert run("generate", work / "routed", "-o", file, "--steps", 2, *words) == 0
    out = capsys.readouterr().out
    lines = re.findall(r"expert (\d)\s+([\d.]+)% of the multiply-adds\s+([\d.]+) s  (.+)", out)
    assert [line[3] for line in lines] == PROMPTS[:3]
    assert all(float(line[2]) > 0 for line in lines)
    with Image.open(file) as image:
        assert image.size[0] > image.size[1]


def test_eval_counts_and_rebalance_changes_where_prompts_go(work, capsys):
    assert run("eval", work / "routed", "--captions", work / "captions.txt", "--json") == 0
    about = json.loads(capsys.readouterr().out)
    assert sum(about["counts"]) == len(PROMPTS)
    assert 0 <= about["entropy"] <= 1
    assert run("rebalance", work / "routed", "--captions", work / "captions.txt") == 0
    assert "on average before" in capsys.readouterr().out


def test_the_report_is_one_page_with_pictures(work, tmp_path):
    file = tmp_path / "report.html"
    words = ("--captions", work / "captions.txt", "--steps", 2)
    assert run("report", work / "routed", "-o", file, *words) == 0
    page = file.read_text()
    assert page.count("data:image/png;base64,") >= 2
    assert "http" not in page.replace("http-equiv", "")
    assert all(p in page for p in PROMPTS)


def test_finetune_leaves_a_pipeline_of_trained_experts(work, tmp_path, capsys):
    words = ("--captions", work / "captions.txt", "--updates", 2, "--batch", 2, "--steps", 3)
    assert run("finetune", work / "routed", tmp_path / "tuned", *words) == 0
    assert not (tmp_path / "tuned.checkpoints").exists()
    capsys.readouterr()
    assert run("inspect", tmp_path / "tuned") == 0
    assert "finetuned" in capsys.readouterr().out
    assert run("finetune", tmp_path / "tuned", tmp_path / "twice", *words) == 2
    assert "give the dense pipeline" in capsys.readouterr().err


def test_finetuned_experts_can_be_stored_in_half_the_space(work, tmp_path, capsys):
    words = ("--captions", work / "captions.txt", "--updates", 1, "--batch", 2, "--steps", 3)
    for store in ("float32", "float16"):
        folder = tmp_path / store
        assert run("finetune", work / "routed", folder, *words, "--store", store) == 0
        for i in (0, 1):
            expert = folder / ("pipeline/unet" if i == 0 else "experts/1")
            tensors = load_file(next(expert.glob("*.safetensors")))
            assert {str(t.dtype) for t in tensors.values()} == {f"torch.{store}"}
    file = tmp_path / "sheet.png"
    assert run("generate", tmp_path / "float16", "-o", file, "--steps", 2, "--prompt", "a red") == 0


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["train", "{dense}", "{new}", "--captions", "{holes}"], "line 2"),
        (["train", "{dense}", "{new}", "--captions", "{captions}", "--experts", "99"],
         "--experts 99"),
        (["train", "{dense}", "{new}", "--captions", "{same}", "--experts", "2"],
         "--experts 2 for 1 different captions"),
        (["train", "{dense}", "{new}", "--captions", "{captions}", "--target", "0.002",
          "--experts", "2", "--inference-steps", "3"], "cannot be met"),
        (["train", "{dense}", "{routed}", "--captions", "{captions}"], "exists already"),
        (["generate", "{routed}", "-o", "{new}", "--prompt", "x", "--expert", "7"], "no expert 7"),
        (["generate", "{dense}", "-o", "{new}", "--prompt", "x"], "no routed pipeline"),
        (["generate", "{routed}", "-o", "{new}"], "--prompt"),
        (["eval", "{routed}", "--captions", "{none}"], "No such file"),
        (["rebalance", "{routed}", "--captions", "{captions}", "--target", "0.01"],
         "cannot be met"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_line_and_code_2(work, tmp_path, capsys, words, complaint):
    places = {
        "dense": work / "dense", "routed": work / "routed", "captions": work / "captions.txt",
        "holes": work / "holes.txt", "same": work / "same.txt",
        "new": tmp_path / "new", "none": tmp_path / "none.txt",
    }  # fmt: skip
    code = run(*(w.format(**places) for w in words))
    said = capsys.readouterr().err
    assert code == 2
    assert complaint in said
    assert "Traceback" not in said
    assert not (tmp_path / "new").exists()


def test_the_router_of_another_model_is_refused(work, tmp_path, capsys):
    shutil.copytree(work / "routed", tmp_path / "mixed")
    tensors, facts = load_tensors(tmp_path / "mixed" / "router.safetensors")
    save_tensors(tmp_path / "mixed" / "router.safetensors", tensors, {**facts, "digest": "0"})
    assert run("inspect", tmp_path / "mixed") == 2
    assert "another model" in capsys.readouterr().err
