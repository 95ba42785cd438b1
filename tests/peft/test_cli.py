"""The commands on a tiny model with a real tokenizer, and what they say to bad input."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path

import pytest
import torch

from compress3g.cli.main import main
from compress3g.peft import from_pretrained

ROOT = Path(__file__).parents[2]
SHORT = ["--steps", "12", "--estimation-steps", "4", "--batch", "4", "--learning-rate", "0.01"]


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


def test_truncated_weights_are_one_line(model, data, tmp_path, capsys):
    shutil.copytree(model, tmp_path / "dense")
    file = tmp_path / "dense" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:2000])
    out = tmp_path / "out"
    assert main(["peft", "train", str(tmp_path / "dense"), str(data), "-o", str(out), *SHORT]) == 2
    assert "dense cannot be loaded for classification" in said(capsys)
    assert not out.exists()


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


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of a tiny decoder and of a tiny encoder."""
    from ..transformer.folders import folder

    root = tmp_path_factory.mktemp("others")
    return {"lm": folder(root / "decoder", "decoder"), "retrieval": folder(root / "e", "encoder")}


def written(path, task):
    """A small file for a task: every noun has its verb, every query its passage."""
    pairs = [("cat", "sleeps"), ("dog", "runs"), ("house", "under"), ("river", "over")]
    rows = [
        f"the {'old ' * (i % 3)}{noun} {verb} slowly" for i in range(30) for noun, verb in pairs
    ]
    if task == "lm":
        path = path / "texts.txt"
        path.write_text("\n".join(rows) + "\n")
        return path
    path = path / "pairs.jsonl"
    lines = [{"query": f"{'a ' * (i % 3)}{noun}", "passage": f"{verb} {'slowly ' * (i % 4)}and"}
             for i in range(12) for noun, verb in pairs]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


@pytest.mark.parametrize(("task", "measure"), [("lm", "perplexity"), ("retrieval", "recall@1")])
def test_other_tasks_are_learnt_and_load_with_one_line(task, measure, folders, tmp_path, capsys):
    data = written(tmp_path, task)
    words = ["peft", "train", str(folders[task]), str(data), "--task", task, "--json",
             "--length", "8", "--estimation-steps", "4", "--learning-rate", "0.02"]  # fmt: skip
    figures = {}
    for steps in ("5", "40"):
        out = ["-o", str(tmp_path / steps), "--steps", steps]
        assert main([*words, *out]) == 0
        figures[steps] = json.loads(capsys.readouterr().out.splitlines()[-1])
    before, after = figures["5"][measure], figures["40"][measure]
    assert after < before if task == "lm" else after > before
    assert figures["40"]["params"][1] < figures["40"]["params"][0]
    found = from_pretrained(tmp_path / "40")
    with torch.no_grad():
        assert torch.isfinite(found(input_ids=torch.tensor([[5, 6, 7]]))[0]).all()


def test_perplexity_is_that_of_the_models_own_loss(folders, tmp_path):
    import transformers

    from compress3g.peft.data import read_plain
    from compress3g.peft.tasks import TASKS, score
    from compress3g.transformer.pretrained import load_tokenizer

    tokenizer = load_tokenizer(folders["lm"])
    rows = read_plain(written(tmp_path, "lm"), tokenizer, 8)
    model = transformers.AutoModelForCausalLM.from_pretrained(folders["lm"]).eval()
    ids = torch.tensor([row["input_ids"] for row in rows.items])
    with torch.no_grad():
        want = float(model(input_ids=ids, labels=ids).loss.double().exp())
    assert score(TASKS["lm"], model, tokenizer, rows) == pytest.approx(want, rel=1e-4)


def test_plain_text_is_cut_into_blocks_in_its_order(folders, tmp_path):
    from compress3g.peft.data import read_plain
    from compress3g.transformer.pretrained import load_tokenizer

    tokenizer = load_tokenizer(folders["lm"])
    file = written(tmp_path, "lm")
    rows = read_plain(file, tokenizer, 7)
    found = [token for row in rows.items for token in row["input_ids"]]
    whole = tokenizer(file.read_text(), add_special_tokens=False)["input_ids"]
    assert found == whole[: len(found)]
    assert len(whole) - len(found) < 7


def test_contrast_is_the_cross_entropy_of_the_own_passage():
    from compress3g.peft.tasks import contrast

    class Model(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            states = torch.nn.functional.one_hot(input_ids, 8).float()
            return type("Out", (), {"last_hidden_state": states})

    queries, passages = [[1, 2], [3, 4], [1, 4]], [[2, 0], [4, 3], [2, 0]]
    batch = {
        "input_ids": torch.tensor(queries + passages),
        "attention_mask": torch.tensor([[1, 1]] * 3 + [[1, 0], [1, 1], [1, 0]]),
    }
    means = torch.zeros(6, 8, dtype=torch.float64)
    for row, (ids, mask) in enumerate(zip(*batch.values(), strict=True)):
        for i, m in zip(ids.tolist(), mask.tolist(), strict=True):
            means[row, i] += m
    unit = means / means.norm(dim=1, keepdim=True)
    similar = unit[:3] @ unit[3:].T / 0.05
    losses = []
    for i in range(3):  # the first and the third passage are one
        others = [j for j in range(3) if j == i or passages[j] != passages[i]]
        losses.append(similar[i, others].logsumexp(0) - similar[i, i])
    want = float(torch.stack(losses).mean())
    assert float(contrast(Model(), batch)) == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize(
    ("task", "name", "content", "message"),
    [
        ("lm", "a.txt", "the cat\n", "at least two blocks of --length 128"),
        ("lm", "a.jsonl", '{"label": "x"}\n', "a.jsonl:1 is no object with text"),
        ("retrieval", "a.tsv", "query\tanswer\nx\ty\n", "no columns query and passage"),
        ("retrieval", "a.csv", "query,passage\nx,\n", "a.csv:2 has no query or no passage"),
    ],
)
def test_bad_data_of_other_tasks_is_named(task, name, content, message, folders, tmp_path, capsys):
    (tmp_path / name).write_text(content)
    words = ["peft", "train", str(folders[task]), str(tmp_path / name), "-o", str(tmp_path / "o")]
    assert main([*words, "--task", task]) == 2
    assert message in said(capsys)
