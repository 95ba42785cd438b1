from __future__ import annotations

import json
import subprocess
import sys

import pytest

from compress3g.cli.main import main


def test_help_lists_the_commands(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "nerf" in out
    assert "doctor" in out


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from compress3g.cli.main import main; main(['--help']);"
        "print([m for m in ('torch', 'numpy', 'PIL') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("words", [["nonsense"], ["nerf", "nonsense"], ["doctor", "--what"]])
def test_wrong_words_are_one_line_and_exit_code_2(words, capsys):
    assert main(words) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("words", [["nonsense"], ["index", "add", "idx", "x", "--meta", "year"]])
def test_the_pointer_to_help_is_a_sentence_of_its_own(words, capsys):
    assert main(words) == 2
    message, _, pointer = capsys.readouterr().err.partition(" See 'compress3g")
    assert pointer
    assert message.endswith(".")
    assert not message.endswith("..")


def test_doctor_reports_backends(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "hash_grid" in out
    assert "pip install 'compress3g[ray]'" in out or "ray " in out
    assert main(["doctor", "--json"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out), dict)


def test_a_toml_file_sets_options_and_flags_win(tmp_path, capsys):
    (tmp_path / "c.toml").write_text("steps = 5\nlog2_hashmap = 99\n")
    assert main(["nerf", "train", "x", "--config", str(tmp_path / "c.toml")]) == 2
    assert "--log2-hashmap 99 is out of range" in capsys.readouterr().err
    words = ["nerf", "train", "/nowhere", "--config", str(tmp_path / "c.toml")]
    assert main([*words, "--log2-hashmap", "9"]) == 2
    assert "/nowhere" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["stepps = 5", "steps = 'many'", "steps ="])
def test_a_wrong_toml_file_is_named(text, tmp_path, capsys):
    (tmp_path / "c.toml").write_text(text)
    assert main(["nerf", "train", "x", "--config", str(tmp_path / "c.toml")]) == 2
    error = capsys.readouterr().err
    assert "c.toml" in error
    assert error.count("\n") == 1
