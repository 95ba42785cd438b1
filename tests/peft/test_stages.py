"""Three runs make what one makes, to the bit; what is not a stage is refused."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from compress3g.cli.main import main
from compress3g.peft import from_pretrained

from .test_cli import SHORT, said

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def stages(model, data, tmp_path_factory):
    """Folders of the three runs, the last in all forms."""
    root = tmp_path_factory.mktemp("stages")
    look = ["peft", "estimate", str(model), str(data), "-o", str(root / "looked"), *SHORT]
    assert main(look) == 0
    assert main(["peft", "cut", str(root / "looked"), "-o", str(root / "cut")]) == 0
    for form in ("merged", "adapter", "delta"):
        words = ["peft", "finish", str(root / "cut"), "-o", str(root / form), "--form", form]
        assert main(words) == 0
    return root


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.tensor([[5, 6, 7, 9]])).logits


def test_three_runs_end_with_the_bits_of_one(stages, model, data, tmp_path):
    one = tmp_path / "one"
    assert main(["peft", "train", str(model), str(data), "-o", str(one), *SHORT]) == 0
    expected = from_pretrained(one).state_dict()
    found = from_pretrained(stages / "merged").state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_every_form_of_the_last_run_computes_the_same(stages, model):
    merged = logits(from_pretrained(stages / "merged"))
    for form in ("adapter", "delta"):
        found = logits(from_pretrained(stages / form, model))
        # W + BA is rounded once, W x + B A x at every step
        assert torch.allclose(found, merged, atol=1e-5), form


def test_the_report_says_how_the_step_time_fell(stages):
    report = json.loads((stages / "merged" / "report.json").read_text())
    assert all(ms > 0 for ms in report["step_ms"])
    assert report["params"][1] < report["params"][0]


def test_what_the_cut_left_loads_by_itself(stages):
    report = json.loads((stages / "cut" / "small" / "report.json").read_text())
    found = from_pretrained(stages / "cut" / "small")
    neurons = found.get_submodule("base_model.model.bert.encoder.layer.0.intermediate.dense")
    name = "bert.encoder.layer.0.neurons"
    assert neurons.out_features == report["kept"][name][0] < report["kept"][name][1]


def test_the_criterion_that_looks_at_data_decides_as_in_one_run(model, data, tmp_path):
    options = [*SHORT, "--criterion", "flap", "--samples", "8"]
    look = ["peft", "estimate", str(model), str(data), "-o", str(tmp_path / "looked"), *options]
    assert main(look) == 0
    assert main(["peft", "cut", str(tmp_path / "looked"), "-o", str(tmp_path / "cut")]) == 0
    one = ["peft", "train", str(model), str(data), "-o", str(tmp_path / "one"), *options]
    assert main([*one, "--form", "delta"]) == 0
    digest = json.loads((tmp_path / "one" / "plan.json").read_text())
    assert main(["peft", "finish", str(tmp_path / "cut"), "-o", str(tmp_path / "three"),
                 "--form", "delta"]) == 0  # fmt: skip
    assert json.loads((tmp_path / "three" / "plan.json").read_text()) == digest


def test_two_processes_estimate_and_finish(model, data, tmp_path):
    def launch(*words):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        started = [
            subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "compress3g.cli.main", *words],
                env={
                    **os.environ,
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": "2",
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                    "OMP_NUM_THREADS": "1",
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=ROOT,
            )
            for rank in range(2)
        ]
        outs = [p.communicate(timeout=240)[0] for p in started]
        assert [p.returncode for p in started] == [0, 0], outs
        return outs

    looked, cut, tuned = (str(tmp_path / n) for n in ("looked", "cut", "tuned"))
    short = [*SHORT, "--device", "cpu"]
    outs = launch("peft", "estimate", str(model), str(data), "-o", looked, *short)
    assert "peft cut" in outs[0]
    assert "peft cut" not in outs[1]
    assert main(["peft", "cut", looked, "-o", cut]) == 0
    launch("peft", "finish", cut, "-o", tuned, "--device", "cpu")
    assert torch.isfinite(logits(from_pretrained(tuned))).all()


@pytest.mark.parametrize(
    ("command", "folder", "message"),
    [
        ("cut", "cut", "is cut already: go on with compress3g peft finish"),
        ("finish", "looked", "is estimated already: go on with compress3g peft cut"),
        ("cut", "merged", "no folder of a stage"),
    ],
)
def test_stages_out_of_order_are_refused(command, folder, message, stages, tmp_path, capsys):
    words = ["peft", command, str(stages / folder), "-o", str(tmp_path / "out")]
    assert main(words) == 2
    assert message in said(capsys)
    assert not (tmp_path / "out").exists()


def test_data_that_changed_between_stages_is_refused(model, data, tmp_path, capsys):
    mine = tmp_path / "texts.tsv"
    mine.write_text(data.read_text())
    look = ["peft", "estimate", str(model), str(mine), "-o", str(tmp_path / "looked"), *SHORT]
    assert main(look) == 0
    mine.write_text(data.read_text() + "one more dog\tdog\nand a cat\tcat\n")
    capsys.readouterr()
    assert main(["peft", "cut", str(tmp_path / "looked"), "-o", str(tmp_path / "cut")]) == 2
    assert "the first stage had 36" in said(capsys)


def test_the_cut_in_several_processes_is_refused(stages, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = ["peft", "cut", str(stages / "looked"), "-o", str(tmp_path / "out")]
    assert main(words) == 2
    assert "without torchrun" in said(capsys)
