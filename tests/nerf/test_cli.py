from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from compress3g.cli.main import main
from compress3g.nerf.run import _fields
from compress3g.nerf.trainer import Progress

_FAST = ["--log2-hashmap", "9", "--samples", "1024", "--march", "64", "--occupancy", "16"]


@pytest.fixture(scope="module")
def run(ball, tmp_path_factory):
    """A finished hollow run with its plain twin."""
    folder = tmp_path_factory.mktemp("runs") / "ball"
    words = ["nerf", "train", str(ball), "--hollow", "--compare", "--steps", "60", *_FAST]
    assert main([*words, "-o", str(folder)]) == 0
    return folder


def test_training_leaves_model_figures_options_and_a_picture(run):
    names = {p.name for p in run.iterdir()}
    assert {"model.safetensors", "checkpoint.safetensors", "result.json", "config.toml"} <= names
    with Image.open(run / "sheet.png") as sheet:
        assert sheet.width > 1000


def test_train_prints_one_json_object_last(ball, tmp_path, capsys):
    words = [
        "nerf",
        "train",
        str(ball),
        "--steps",
        "5",
        *_FAST,
        "--json",
        "-o",
        str(tmp_path / "r"),
    ]
    assert main(words) == 0
    figures = json.loads(capsys.readouterr().out)
    wanted = "psnr ssim params bytes_fp32 kept_cells kept_fraction steps seconds"
    assert set(f"{wanted} samples_per_second backend".split()) <= set(figures)
    assert figures["steps"] == 5


def test_eval_agrees_with_training(run, capsys):
    assert main(["nerf", "eval", str(run), "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)
    assert scored["psnr"] == pytest.approx(json.loads((run / "result.json").read_text())["psnr"])
    assert len(scored["views"]) == 3


def test_eval_saves_images(run, tmp_path):
    assert main(["nerf", "eval", str(run), "--save-images", str(tmp_path / "images")]) == 0
    assert len(list((tmp_path / "images").glob("*.png"))) == 3


def test_render_writes_the_orbit_without_the_scene(run, tmp_path, capsys):
    out = tmp_path / "orbit.gif"
    words = ["nerf", "render", str(run), "-o", str(out), "--frames", "3", "--size", "20x16"]
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["frames"] == 3
    with Image.open(out) as video:
        assert (video.size, video.n_frames) == ((20, 16), 3)
        assert np.asarray(video.convert("RGB")).std() > 5


def test_info_counts_parameters_by_the_papers_rule(run, capsys):
    assert main(["nerf", "info", str(run), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    # The run is hollow: at most the plain table, and a first layer as wide as its levels.
    table, levels = figures["bytes (fp32)"]["hash table"] // 4, figures["grid"]["levels"]
    assert figures["grid"]["levels inside the mask"] == levels
    assert 0 < table <= 2 * 16 * 512
    assert figures["parameters"] == table + 9344 - 64 * 2 * (16 - levels)
    assert main(["nerf", "info", str(run)]) == 0
    out = capsys.readouterr().out
    assert "hash table" in out
    assert f"levels inside the mask  {levels}\n" in out


def test_occupied_and_kept_cells_have_names_of_their_own():
    now = Progress(9, 0.5, 20.0, 1000, 2.0, "main", occupied=0.229, gamma=None)
    fields = _fields(now)
    assert (fields["occupied"], "kept" in fields) == ("22.9%", False)


@pytest.mark.parametrize("arm", ["hollow", "plain"])
def test_info_and_train_count_the_same_bytes(run, capsys, arm):
    file = {"hollow": run, "plain": run / "plain"}[arm]
    assert main(["nerf", "info", str(file), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    trained = json.loads((file / "result.json").read_text())
    parts = figures["bytes (fp32)"]
    assert parts.pop("all that is counted") == sum(parts.values()) == trained["bytes_fp32"]
    mask = 16**3 // 8 if arm == "hollow" else 0  # a bit for each of the cells of --occupancy 16
    assert (parts["mask"], sum(parts.values()) - mask) == (mask, 4 * figures["parameters"])


def test_every_backend_trains_the_same_model(ball, tmp_path, capsys):
    figures = []
    for backend in ("cpu", "reference"):
        words = ["nerf", "train", str(ball), "--steps", "8", *_FAST, "--json", "--backend", backend]
        assert main([*words, "-o", str(tmp_path / backend)]) == 0
        figures.append(json.loads(capsys.readouterr().out))
    assert [f["backend"] for f in figures] == ["cpu", "reference"]
    # Same arithmetic in another order: rounding grows over the steps, it does not jump.
    assert figures[0]["psnr"] == pytest.approx(figures[1]["psnr"], abs=0.05)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nerf", "train", "/nowhere"], "/nowhere"),
        (["nerf", "train", "SCENE", "--steps", "0"], "--steps 0"),
        (["nerf", "train", "SCENE", "--backend", "fast"], "no backend 'fast'"),
        (["nerf", "train", "SCENE", "--device", "tpu"], "no device 'tpu'"),
        (["nerf", "train", "SCENE", "--resume"], "no checkpoint"),
        (["nerf", "eval", "/nowhere"], "holds no model"),
        (["nerf", "render", "RUN", "-o", "x.avi"], "cannot write .avi"),
        (["nerf", "render", "RUN", "-o", "x.gif", "--size", "big"], "is not a size"),
        (["nerf", "info"], "Missing argument"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    words, said, ball, run, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    places = {"SCENE": str(ball), "RUN": str(run)}
    assert main([places.get(word, word) for word in words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_run_is_not_overwritten_unasked(ball, run, capsys):
    before = (run / "model.safetensors").read_bytes()
    assert main(["nerf", "train", str(ball), "--steps", "1", "-o", str(run)]) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert (run / "model.safetensors").read_bytes() == before
