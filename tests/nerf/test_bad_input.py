"""Bad input from the command line: one line that names the file and the remedy, exit code 2."""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from compress3g.cli.main import main
from compress3g.engine.checkpoint import load_tensors, save_tensors
from compress3g.nerf import run as run_module

_FAST = ["--log2-hashmap", "9", "--samples", "1024", "--march", "64", "--occupancy", "16"]
_COMMAND = [sys.executable, "-m", "compress3g.cli.main", "nerf"]


def _train(scene, folder, *more):
    length = [] if {"--seconds", "--steps", "--resume"} & {*more} else ["--steps", "3"]
    return main(["nerf", "train", str(scene), *length, *_FAST, *map(str, more), "-o", str(folder)])


def _digests(folder):
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def _edit(change, name="transforms_train.json"):
    def apply(scene):
        data = json.loads((scene / name).read_text())
        change(data)
        (scene / name).write_text(json.dumps(data))

    return apply


def _frame(**values):
    return _edit(lambda data: data["frames"][3].update(values))


def _every_picture(make):
    def apply(scene):
        for file in scene.rglob("*.png"):
            make().save(file)

    return apply


def _cut(name):
    return lambda scene: (scene / name).write_bytes((scene / name).read_bytes()[:300])


def _save(name, picture, kind=None):
    return lambda scene: picture.save(scene / name, kind)


def _inside(data):
    for row in data["frames"][3]["transform_matrix"][:3]:
        row[3] = 0.1


_NAN = Image.fromarray(np.full((40, 40), np.nan, np.float32))
_SCENES = {
    "no images": (lambda s: [p.unlink() for p in s.rglob("*.png")], r"no image listed in .*put"),
    "no angle": (_edit(lambda d: d.pop("camera_angle_x")), "transforms_train.json says neither"),
    "no frames": (_edit(lambda d: d.pop("frames")), "transforms_train.json has no list of frames"),
    "no matrix": (_frame(transform_matrix=None), "transform_matrix of frame 3 is missing"),
    "no path": (_frame(file_path=None), "frame 3 has no file_path: add it"),
    "singular": (_frame(transform_matrix=[[0] * 4] * 4), "frame 3 is singular"),
    "not finite": (_frame(transform_matrix=[[float("nan")] * 4] * 4), "frame 3 is not a finite"),
    "mixed sizes": (_save("train/r_3.png", Image.new("RGB", (30, 40))), "r_3.png is 30x40: crop"),
    "camera inside": (_edit(_inside), r"camera of .*r_3.png stands inside.*give --near"),
    "truncated": (_cut("train/r_3.png"), r"r_3.png: image file is truncated: replace it"),
    "truncated test": (_cut("test/r_1.png"), r"r_1.png: image file is truncated: replace it"),
    "NaN pixels": (_save("train/r_3.png", _NAN, "TIFF"), r"r_3.png: it has floating-point samples"),
    "negative width": (_edit(lambda d: d.update(w=-40)), "images of -40x40 pixels are impossible"),
    "huge width": (_edit(lambda d: d.update(w=1e12)), r"describes pictures of 1e\+12x40"),
    "not JSON": (lambda s: (s / "transforms_train.json").write_text("{"), "not JSON"),
    "deep JSON": (lambda s: (s / "transforms_train.json").write_text("[" * 99999), "not JSON"),
    "tiny images": (_every_picture(lambda: Image.new("RGB", (4, 4))), "is 4x4: images need 11"),
    "nothing opaque": (
        _every_picture(lambda: Image.new("RGBA", (40, 40))),
        "all 60 training images are fully transparent",
    ),
    "box unseen": (
        _edit(lambda d: d.update(aabb=[[50] * 3, [51] * 3])),
        "leaves no space in the box",
    ),
}


@pytest.mark.parametrize("case", _SCENES)
def test_a_bad_scene_is_one_line_and_leaves_nothing(case, ball, tmp_path, capsys):
    spoil, said = _SCENES[case]
    shutil.copytree(ball, tmp_path / "scene")
    spoil(tmp_path / "scene")
    assert _train(tmp_path / "scene", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(said, error), error
    assert "scene" in error
    assert not (tmp_path / "run").exists()


def test_alpha_that_contradicts_the_cameras_is_one_line(ball, tmp_path, capsys):
    shutil.copytree(ball, tmp_path / "scene")
    picture = np.zeros((40, 40, 4), np.uint8)
    for i, file in enumerate(sorted((tmp_path / "scene" / "train").iterdir())):
        picture[:] = 0
        picture[:3, : 3 if i % 2 else None] = 255  # in the corners, where no two views agree
        Image.fromarray(picture).save(file)
    assert _train(tmp_path / "scene", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert "alpha leaves no space in the box" in error
    assert "--no-hull" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--steps 0", "--steps 0 is out of range: give 1 to"),
        ("--steps many", "not a valid integer"),
        ("--seconds nan", "--seconds nan is out of range"),
        ("--seconds inf", "--seconds inf is out of range"),
        ("--log2-hashmap 60", "--log2-hashmap 60 is out of range: give 3 to 24"),
        ("--saliency-res 1", "--saliency-res 1 is out of range: give 2 to 256"),
        ("--rho inf", "--rho inf is out of range"),
        ("--seed 99999999999999999999", "is out of range"),
        ("--seed -1", "--seed -1 is out of range"),
        ("--threads 20000", "is not in the range"),
        ("--backend nonsense", "no backend 'nonsense': use"),
        ("--backend triton", "has no backend 'triton' on cpu: use"),
        ("--device tpu", "no device 'tpu': use"),
        ("--near 1e30", "no training image shows the box"),
        ("--resume", "holds no checkpoint to resume: leave out --resume"),
        ("--resume --overwrite", "exclude each other"),
        ("--compare", "add --hollow"),
        ("--config nowhere.toml", "nowhere.toml: No such file"),
        ("--steps 5 --seconds 5", "exclude each other"),
    ],
)
def test_absurd_options_are_one_line(flags, said, ball, tmp_path, capsys):
    assert _train(ball, tmp_path / "run", *flags.split()) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_an_output_that_is_no_folder_is_one_line(ball, tmp_path, capsys):
    (tmp_path / "file").touch()
    for place in ("file", "file/run"):
        assert _train(ball, tmp_path / place) == 2
        error = capsys.readouterr().err
        assert "file is" in error
        assert "give the run another folder with -o" in error
        assert error.count("\n") == 1


@pytest.fixture(scope="module")
def run(ball, tmp_path_factory):
    """A finished run of three steps with the saliency pruner."""
    folder = tmp_path_factory.mktemp("runs") / "ball"
    assert _train(ball, folder, "--hollow", "--pruner", "saliency", "--saliency-res", "8") == 0
    return folder


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--steps 9", "holds a run already: give --resume, --overwrite"),
        ("--overwrite --backend triton", "has no backend 'triton'"),
        ("--resume --seed 3", "was trained with --seed 0, not --seed 3: give that again"),
        ("--resume --no-hollow", "was trained with --hollow, not --no-hollow"),
        ("--resume --steps 9 --box -1.2 -1.2 -1.2 1.2 1.2 1.2", "in another box than those of"),
    ],
)
def test_what_is_refused_leaves_the_run_as_it_was(flags, said, ball, run, capsys):
    before = _digests(run)
    assert _train(ball, run, *flags.split()) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert _digests(run) == before


@pytest.mark.parametrize("damage", ["zero bytes", "cut off", "garbage", "convention"])
@pytest.mark.parametrize("command", ["info", "eval", "render", "train"])
def test_a_damaged_run_is_one_line(damage, command, ball, run, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    for name in ("model.safetensors", "checkpoint.safetensors"):
        whole = (folder / name).read_bytes()
        if damage == "convention":
            tensors, metadata = load_tensors(folder / name)
            save_tensors(folder / name, tensors, {**metadata, "grid_convention": "tcnn"})
        else:
            damaged = {"zero bytes": b"", "cut off": whole[:-50], "garbage": b"x" * 99}
            (folder / name).write_bytes(damaged[damage])
    before = _digests(folder)
    if command == "train":
        assert _train(ball, folder, "--resume", "--steps", "9") == 2
    else:
        more = ["-o", str(tmp_path / "x.gif")] if command == "render" else []
        assert main(["nerf", command, str(folder), *more]) == 2
    error = capsys.readouterr().err
    assert "is damaged" in error or "hash grid of convention 'tcnn'" in error
    assert ".safetensors" in error
    assert error.count("\n") == 1
    assert _digests(folder) == before
    assert not (tmp_path / "x.gif").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["eval", "RUN", "--scene", "nowhere"], "nowhere does not exist"),
        (["eval", "EMPTY"], "holds no model"),
        (["info", "RUN/sheet.png"], "sheet.png is damaged"),
        (["render", "RUN", "-o", "x.gif", "--size", "0x0"], "images of 0x0 pixels"),
        (["render", "RUN", "-o", "x.gif", "--size", "\u00b2x3"], "is not a size"),
        (["render", "RUN", "-o", "x.gif", "--size", "1000000x1000000"], "out of memory"),
        (["render", "RUN", "-o", "x.gif", "--path", "nowhere.json"], "nowhere.json: No such"),
    ],
)
def test_other_commands_are_one_line_too(words, said, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    assert main(["nerf", *(word.replace("RUN", str(run)) for word in words)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["EMPTY"]


def test_resume_goes_on_with_the_options_of_the_run(ball, tmp_path, capsys):
    folder = tmp_path / "a run, Übung"
    more = ["--hollow", "--pruner", "paper", "--saliency-res", "8", "--seconds", "0.05"]
    assert _train(ball, folder, *more) == 0
    words = ["nerf", "train", str(ball), "--resume", "--steps", "40", "-o", str(folder), "--json"]
    assert main(words) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["steps"] == 40
    assert figures["p_histogram"] is not None


def test_a_scene_that_needs_a_box_is_evaluated_in_that_of_its_run(ball, tmp_path, capsys):
    _, folder = shutil.copytree(ball, tmp_path / "scene"), tmp_path / "run"
    _edit(_inside)(tmp_path / "scene")
    assert _train(tmp_path / "scene", folder, "--near", "0.2") == 0
    capsys.readouterr()
    assert main(["nerf", "eval", str(folder), "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)
    assert scored["psnr"] == pytest.approx(json.loads((folder / "result.json").read_text())["psnr"])


def _limited():
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_a_disk_that_is_full_is_named_and_the_old_run_survives(ball, run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    before = _digests(folder)
    words = ["train", str(ball), "--steps", "3", *_FAST, "--overwrite", "-o", str(folder)]
    done = subprocess.run(
        [*_COMMAND, *words], capture_output=True, text=True, preexec_fn=_limited, check=False
    )
    assert done.returncode == 2
    assert "checkpoint.safetensors: File too large: raise the limit" in done.stderr
    assert done.stderr.count("\n") == 1
    assert _digests(folder) == before


def test_a_reader_that_has_gone_is_no_error(run):
    words = [*_COMMAND, "info", str(run)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    with process.stderr as said:
        assert said.read() == b""
    assert process.wait() == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_says_how_to_go_on_and_can_be_looked_at(ball, tmp_path, number, code, capsys):
    folder = tmp_path / "a run"
    words = ["train", str(ball), "--hollow", "--seconds", "500", *_FAST, "-o", str(folder)]
    process = subprocess.Popen(
        [*_COMMAND, *words], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (folder / "config.toml").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code, error
    *progress, last = error.splitlines()  # a slow machine has lines of progress to tell
    assert all("PSNR" in line for line in progress)
    assert main(["nerf", "info", str(folder)]) == 0
    again = shlex.split(last.split("go on with: compress3g ")[1])
    assert main([*again, "--seconds", "0.5"]) == 0
    assert "hollow" in capsys.readouterr().out


def test_a_run_stopped_in_its_plain_twin_goes_on_from_its_own_folder(
    ball, tmp_path, monkeypatch, capsys
):
    real, folder = run_module.train, tmp_path / "run"

    def stop(scene, config, *rest, **options):
        if not config.hollow:
            raise run_module.Stopped(2, signal.SIGTERM)
        return real(scene, config, *rest, **options)

    monkeypatch.setattr(run_module, "train", stop)
    assert _train(ball, folder, "--hollow", "--compare", "--downscale", "1") == 143
    words = shlex.split(capsys.readouterr().err.split("go on with: compress3g ")[1])
    expected = ["nerf", "train", str(ball), "--resume", "-o", str(folder), "--downscale", "1"]
    assert words == [*expected, "--compare"]
    monkeypatch.undo()
    assert main(words) == 0
    assert "plain" in capsys.readouterr().out


def test_overwriting_forgets_the_plain_twin_of_the_run_before(ball, tmp_path):
    folder = tmp_path / "run"
    assert _train(ball, folder, "--hollow", "--compare") == 0
    assert (folder / "plain" / "model.safetensors").exists()
    assert _train(ball, folder, "--hollow", "--overwrite") == 0
    assert not (folder / "plain" / "model.safetensors").exists()
    assert (folder / "sheet.png").exists()
