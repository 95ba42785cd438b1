"""The commands on a tiny model with a real tokenizer, and what they say to bad input."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import torch

from compress3g.cli.main import main
from compress3g.peft import from_pretrained

ROOT = Path(__file__).parents[2]
SHORT = ["--steps", "12", "--estimation-steps", "4", "--batch", "4", "--learning-rate", "0.01"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder of a tiny classifier."""
    from ..transformer.folders import folder

    return folder(tmp_path_factory.mktemp("model") / "MODEL", "classifier")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    lines = ["text\tlabel"]
    for i in range(20):
        lines += [f"the old cat sleeps {'slowly ' * (i % 3)}\tcat", "a quick dog runs\tdog"]
    file = tmp_path_factory.mktemp("data") / "texts.tsv"
    file.write_text("\n".join(lines) + "\n")
    return file


def said(capsys):
    out = capsys.readouterr()
    return out.out + out.err


@pytest.fixture(scope="module")
def tuned(model, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "small"
    words = ["peft", "train", str(model), str(data), "-o", str(out), "--form", "adapter", *SHORT]
    assert main(words) == 0
    return out


def test_train_leaves_a_folder_that_loads_with_one_line(tuned):
    report = json.loads((tuned / "report.json").read_text())
    assert report["params"][1] < report["params"][0]
    found = from_pretrained(tuned)
    assert found.config.id2label == {0: "cat", 1: "dog"}
    with torch.no_grad():
        assert found(input_ids=torch.tensor([[5, 6, 7]])).logits.shape == (1, 2)


def test_train_says_what_the_cut_did(model, data, tmp_path, capsys):
    words = ["peft", "train", str(model), str(data), "-o", str(tmp_path / "out"), "--json", *SHORT]
    assert main(words) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["step_ms"] is not None
    assert 0 <= figures["accuracy"] <= 1


def test_merge_and_bench(tuned, model, tmp_path, capsys):
    assert main(["peft", "merge", str(tuned), "-o", str(tmp_path / "whole")]) == 0
    capsys.readouterr()
    words = ["peft", "bench", str(model), str(tmp_path / "whole"), "--seconds", "0.2", "--json"]
    assert main(words) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["params of B"] < figures["params of A"]


def test_inspect_names_every_site(model, capsys):
    assert main(["peft", "inspect", str(model), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert len(figures["sites"]) == 8
    assert figures["prunable"] < figures["params"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "3", "--estimation-steps", "4"], "not more than the 4"),
        (["--budget", "params=0.0001"], "smallest that is feasible"),
        (["--attn-ratio", "2"], "--attn-ratio"),
        (["--learning-rate", "9"], "--learning-rate"),
    ],
)
def test_bad_options_are_one_line_and_exit_code_2(words, message, model, data, tmp_path, capsys):
    whole = ["peft", "train", str(model), str(data), "-o", str(tmp_path / "out"), *SHORT, *words]
    assert main(whole) == 2
    assert message in said(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "text\tkind\nx\ty\n", "no columns text and label"),
        ("a.tsv", "text\tlabel\nx\ty\nz\t\n", "a.tsv:3"),
        ("a.jsonl", '{"text": "x"}\n', "a.jsonl:1"),
        ("a.tsv", "text\tlabel\nx\ty\nz\ty\n", "one label only"),
        ("a.txt", "x\n", ".csv, .tsv or .jsonl"),
    ],
)
def test_bad_data_is_named(name, content, message, model, tmp_path, capsys):
    (tmp_path / name).write_text(content)
    words = ["peft", "train", str(model), str(tmp_path / name), "-o", str(tmp_path / "out")]
    assert main(words) == 2
    assert message in said(capsys)


def test_a_pruned_model_is_not_tuned_again(tuned, data, tmp_path, capsys):
    words = ["peft", "train", str(tuned), str(data), "-o", str(tmp_path / "out"), *SHORT]
    assert main(words) == 2
    assert "is pruned already" in said(capsys)


def test_the_shipped_requests_are_what_their_script_writes():
    made = runpy.run_path(str(ROOT / "examples" / "requests.py"))["rows"](100)
    lines = (ROOT / "examples" / "requests.tsv").read_text().splitlines()
    assert lines == ["text\tlabel", *(f"{text}\t{kind}" for text, kind in made)]
