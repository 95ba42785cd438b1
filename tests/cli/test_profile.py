from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from compress3g.cli.main import main
from compress3g.profile import Peaks, roofline

ROOT = Path(__file__).parents[2]


@pytest.fixture
def module(tmp_path, monkeypatch):
    peaks = Peaks(flops_per_second=1e11, bytes_per_second=2e10, machine="a machine")
    monkeypatch.setattr(roofline, "measure_peaks", lambda device: peaks)
    file = tmp_path / "steps.py"
    file.write_text(
        textwrap.dedent(
            """
            import torch
            from torch import nn

            def iteration():
                return torch.ones(16, 16) @ torch.ones(16, 16)

            def prepared():
                model, x = nn.Linear(8, 4), torch.randn(3, 8)
                return model, lambda: model(x)

            def closure():
                a = torch.ones(64, 64)
                return lambda: a @ a @ a @ a @ a

            def broken():
                raise ValueError("no such\\nshape")

            def late():
                left = [1]
                return lambda: torch.ones(3) * left.pop()

            def leaves():
                raise SystemExit(3)

            def odd():
                return nn.Linear(2, 2), 5

            number = 7
            """
        )
    )
    return file


def test_end_to_end_in_a_process_of_its_own(module, tmp_path):
    """The command as users run it: figures on stdout, three files, a winner between two."""
    out = [tmp_path / name for name in ("out/p.json", "out/p.html", "out/t.json")]
    words = [f"{module}:iteration", "--against", f"{module}:closure", "--seconds", "0.2"]
    files = ["--json", str(out[0]), "--html", str(out[1]), "--trace", str(out[2])]
    done = subprocess.run(
        [sys.executable, "-m", "compress3g.cli.main", "profile", *words, *files],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("# iteration against closure on cpu")
    data = json.loads(out[0].read_text())
    assert data["profile"]["flops"] == 2 * 16**3
    assert data["against"]["flops"] == 4 * 2 * 64**3
    assert data["comparison"]["winner"] == "a"
    assert "profile" in data["env"]["command"]
    assert out[1].read_text().startswith("<!doctype html>")
    assert json.loads(out[2].read_text())["traceEvents"]


def test_a_function_may_prepare_model_and_run(module, capsys):
    assert main(["profile", f"{module}:prepared", "--seconds", "0.05"]) == 0
    out = capsys.readouterr().out
    assert "| parameters | 36 |" in out
    assert "| FLOPs | 192 FLOP |" in out


def test_importable_modules_have_names(module, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(module.parent))
    assert main(["profile", "steps:iteration", "--no-latency"]) == 0
    out = capsys.readouterr().out
    assert "8.192 kFLOP" in out
    assert "latency" not in out


def test_the_seed_makes_inputs_equal(module, tmp_path, capsys):
    for _ in range(2):
        assert (
            main(
                [
                    "profile",
                    f"{module}:prepared",
                    "--no-latency",
                    "--seed",
                    "5",
                    "--json",
                    str(tmp_path / "p"),
                ]
            )
            == 0
        )
    assert json.loads((tmp_path / "p").read_text())["env"]["seed"] == "5"


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("{file}:absent", "has no function absent: it has iteration, prepared, closure"),
        ("{file}:number", "has no function number"),
        ("{file}", "is not MODULE:FUNCTION"),
        (":f", "is not MODULE:FUNCTION"),
        ("{file}:", "is not MODULE:FUNCTION"),
        ("nowhere.to.be.found:f", "cannot import nowhere.to.be.found"),
        ("{folder}/absent.py:f", "there is no such file"),
        ("{file}:broken", "raised ValueError: no such shape"),
        ("{file}:late", "raised IndexError"),
        ("{file}:leaves", "raised SystemExit"),
        ("{file}:odd", "returned a model and a int"),
    ],
)
def test_wrong_targets_are_one_line_and_exit_code_2(target, said, module, capsys):
    words = target.format(file=module, folder=module.parent)
    assert main(["profile", words, "--seconds", "0.05"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_module_that_does_not_import_is_named(tmp_path, capsys):
    (tmp_path / "bad.py").write_text("import absent_package")
    assert main(["profile", f"{tmp_path / 'bad.py'}:f"]) == 2
    error = capsys.readouterr().err
    assert "bad.py" in error
    assert "absent_package" in error
    (tmp_path / "worse.py").write_text("def f(:")
    assert main(["profile", f"{tmp_path / 'worse.py'}:f"]) == 2
    assert "SyntaxError" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--json", "--html", "--trace"])
def test_an_unwritable_file_is_said_before_anything_runs(option, module, tmp_path, capsys):
    (tmp_path / "file").write_text("kept")
    for bad in (tmp_path / "file" / "below", tmp_path):
        assert main(["profile", f"{module}:broken", option, str(bad)]) == 2
        error = capsys.readouterr().err
        assert str(bad) in error
        assert error.count("\n") == 1
    assert (tmp_path / "file").read_text() == "kept"


def test_a_failing_run_leaves_no_empty_files(module, tmp_path):
    target = tmp_path / "new.json"
    assert main(["profile", f"{module}:broken", "--json", str(target)]) == 2
    assert not target.exists()


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "1e9", "many"])
def test_impossible_seconds_are_refused(seconds, module, capsys):
    assert main(["profile", f"{module}:iteration", "--seconds", seconds]) == 2
    assert capsys.readouterr().err.count("\n") == 1
