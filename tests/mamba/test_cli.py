"""`compress3g mamba`: what a person sees."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
import torch
from PIL import Image

from compress3g.cli.main import main
from compress3g.mamba import (
    PruneSchedule,
    Vim,
    VimConfig,
    apply_patch,
    load_checkpoint,
    preset,
    save_checkpoint,
)
from compress3g.mamba.pictures import Preprocess

GREY = {"image": (12, 12), "patch": 4, "stride": 4, "channels": 1, "width": 16, "depth": 4}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a dense and a pruned checkpoint, and pictures in all three forms."""
    folder = tmp_path_factory.mktemp("mamba")
    torch.manual_seed(0)
    model = Vim(VimConfig(**GREY, classes=3))
    look = Preprocess(size=(12, 12), mean=(0.5,), std=(0.5,))
    about = {"classes": ["dot", "bar", "cross"]}
    save_checkpoint(folder / "dense", model, look, about)
    apply_patch(model, keep_ratio=0.5, layers=(1, 2))
    save_checkpoint(folder / "half", model, look, about)
    g = np.random.default_rng(0)
    images = g.integers(0, 256, (30, 12, 12), dtype=np.uint8)
    labels = np.arange(30) % 3
    np.savez(folder / "data.npz", X=images, Y=labels)
    for name, magic, array in (("images", 3, images), ("labels", 1, labels.astype(np.uint8))):
        head = bytes([0, 0, 8, magic]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
        packed = gzip.compress(head + array.tobytes())
        (folder / f"t-{name}-idx{magic}-ubyte.gz").write_bytes(packed)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        at = folder / "classes" / "abc"[label]
        at.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(at / f"{i:02}.png")
    Image.fromarray(images[0]).resize((60, 40)).save(folder / "picture.png")
    return folder


def run(capsys, *words):
    code = main(["mamba", *map(str, words)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_info_says_sizes_schedule_and_cost(place, capsys):
    code, out, _ = run(capsys, "info", place / "half", "--json")
    assert code == 0
    figures = json.loads(out)
    assert figures["tokens"] == [10, 6, 4, 4]
    assert figures["macs_paper"] < figures["macs_paper_dense"]
    assert run(capsys, "info", place / "half")[0] == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
@pytest.mark.parametrize("device", ["cuda", "gpu"])
def test_a_device_that_is_not_there_is_refused(place, capsys, device):
    words = ("eval", "--ckpt", place / "half", "--data", place / "data.npz", "--device", device)
    code, _, said = run(capsys, *words)
    assert code == 2
    assert len(said.strip().splitlines()) == 1
    assert ("sees no CUDA device" if device == "cuda" else "no device 'gpu'") in said


@pytest.mark.parametrize("data", ["data.npz", "t-images-idx3-ubyte.gz", "classes"])
def test_all_forms_of_data_give_the_same_accuracy(place, capsys, data):
    figures = json.loads(
        run(capsys, "eval", "--ckpt", place / "dense", "--data", place / data, "--json")[1]
    )
    with np.load(place / "data.npz") as found:
        images, labels = found["X"], found["Y"]
    tensor = torch.from_numpy(images[:, None]) / 127.5 - 1
    with torch.no_grad():
        best = load_checkpoint(place / "dense").model(tensor).argmax(1).numpy()
    assert figures["top1"] == pytest.approx(100 * (best == labels).mean())
    assert figures["pruning"] == "dense"


def test_options_overrule_what_the_checkpoint_says(place, capsys):
    words = ["eval", "--ckpt", place / "half", "--data", place / "data.npz"]
    assert "keep 0.5,0.5" in run(capsys, *words)[1]
    out = run(capsys, *words, "--keep", ".7", "--layers", "3", "--score", "clip")[1]
    assert "after blocks 3 keep 0.7 (ratio), drop, score clip" in out
    assert run(capsys, *words, "--flops", ".7", "--preset", "top", "--limit", "4")[0] == 0


@pytest.mark.parametrize("name", ["curve.json", "curve.md", "curve.png"])
def test_sweep_writes_all_settings(place, capsys, tmp_path, name):
    words = ["--keeps", "1,.6", "--scores", "l1,random", "--aligns", "none,current"]
    code, out, _ = run(
        capsys, "sweep", "--ckpt", place / "dense", "--data", place / "data.npz", *words,
        "--out", tmp_path / name,
    )  # fmt: skip
    assert code == 0
    assert "9 settings" in out  # one dense, 2 scores x 2 x 2 alignments
    if name.endswith("json"):
        assert len(json.loads((tmp_path / name).read_text())) == 9
    elif name.endswith("md"):
        assert (tmp_path / name).read_text().count("\n") == 11
    else:
        with Image.open(tmp_path / name) as plot:
            assert plot.width > 500


def test_finetuning_trains_pruned_and_writes_a_folder_that_loads(place, capsys, tmp_path):
    code, out, _ = run(
        capsys, "finetune", "--ckpt", place / "dense", "--data", place / "data.npz",
        tmp_path / "tuned", "--keep", ".6", "--layers", "1,2", "--epochs", "3", "--distill", ".5",
    )  # fmt: skip
    assert code == 0
    assert "keep 0.6,0.6" in out
    again = load_checkpoint(tmp_path / "tuned")
    assert again.pruning is not None
    assert again.about["classes"] == ["dot", "bar", "cross"]
    before = load_checkpoint(place / "dense").model.head.weight
    assert not torch.equal(again.model.head.weight, before)
    code, _, err = run(
        capsys, "finetune", "--ckpt", place / "dense", "--data", place / "data.npz",
        tmp_path / "tuned", "--keep", ".6",
    )  # fmt: skip
    assert code == 2
    assert "exists already" in err


def test_bench_shows_the_ideal_beside_what_was_reached(place, capsys):
    words = ["bench", "--ckpt", place / "dense", "--keeps", "1,.5", "--layers", "1", "--batch", "2"]
    code, out, _ = run(capsys, *words, "--seconds", ".1", "--json")
    assert code == 0
    dense, half = json.loads(out)
    assert dense["speed_up"] == 1
    assert half["ideal"] > 1
    assert half["tokens"] == [10, 6, 6, 6]
    assert "realised" in run(capsys, *words, "--seconds", ".1")[1]


def test_show_writes_the_picture_and_says_the_same(place, capsys, tmp_path):
    out = tmp_path / "kept.png"
    words = ["show", place / "picture.png", "--ckpt", place / "half", "--out", out]
    figures = json.loads(run(capsys, *words, "--json")[1])
    assert figures["kept"] == [5, 3]
    assert figures["dense"]["name"] in ("dot", "bar", "cross")
    with Image.open(out) as sheet:
        assert sheet.width > 900
    code, said, _ = run(capsys, *words, "--keep", ".9", "--layers", "2")
    assert code == 0
    assert "9 of 9" in said


def test_show_draws_what_a_model_that_merges_keeps(place, capsys, tmp_path):
    found = load_checkpoint(place / "dense")
    schedule = PruneSchedule(layers=(1, 2), keep=(0.7, 0.7))
    apply_patch(found.model, preset("ward", schedule))
    save_checkpoint(tmp_path / "ward", found.model, found.preprocess, found.about)
    words = ["show", place / "picture.png", "--ckpt"]
    named = ["--preset", "ward", "--keep", ".7", "--layers", "1,2"]
    saved, said = (
        json.loads(run(capsys, *words, *rest, "--out", tmp_path / "kept.png", "--json")[1])
        for rest in ([tmp_path / "ward"], [place / "dense", *named])
    )
    assert saved["kept"] == [7, 5]
    assert saved["pruned"] == said["pruned"]
    assert (tmp_path / "kept.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["info", "NOWHERE"], "does not exist"),
        (["eval", "--ckpt", "dense", "--data", "NOWHERE.npz"], "does not exist"),
        (["eval", "--ckpt", "dense", "--data", "picture.png"], "no data set"),
        (["eval", "--ckpt", "dense", "--data", "data.npz", "--keep", "0"], "keep 0 is not above"),
        (["eval", "--ckpt", "dense", "--data", "data.npz", "--keep", "-.2"], "keep -0.2 is not"),
        (["eval", "--ckpt", "dense", "--data", "data.npz", "--keep", ".5", "--layers", "3,9"],
         "the model has 4 blocks"),
        (["eval", "--ckpt", "dense", "--data", "data.npz", "--keep", ".5", "--layers", "a"],
         "not a list"),
        (["eval", "--ckpt", "dense", "--data", "data.npz", "--flops", ".01"], "prune earlier"),
        (["eval", "--ckpt", "dense", "--data", "data.npz", "--flops", ".9", "--keep", "1"],
         "exclude each other"),
        (["sweep", "--ckpt", "dense", "--data", "data.npz", "--scores", "best"], "no 'best' among"),
        (["sweep", "--ckpt", "dense", "--data", "data.npz", "--out", "a.txt"], "ends in .json"),
        (["finetune", "--ckpt", "dense", "--data", "data.npz", "new"], "give --keep"),
        (["finetune", "--ckpt", "half", "--data", "data.npz", "new", "--lr", "7"], "--lr 7.0 is"),
        (["show", "data.npz", "--ckpt", "half"], "not a picture"),
        (["show", "NOWHERE.png", "--ckpt", "half"], "does not exist"),
        (["show", "picture.png", "--ckpt", "dense"], "give --keep"),
        (["bench", "--model", "vim_huge"], "no model 'vim_huge'"),
        (["bench", "--backends", "abacus"], "no backend 'abacus'"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(place, capsys, monkeypatch, words, told):
    monkeypatch.chdir(place)
    code, _, err = run(capsys, *words)
    assert code == 2
    assert told in err
    assert err.count("\n") == 1
    assert not (place / "new").exists()


def test_a_checkpoint_with_missing_keys_lists_them(place, capsys, tmp_path):
    from .test_vim import published_state

    state = published_state()
    del state["layers.7.mixer.D_b"]
    torch.save({"model": state}, tmp_path / "vim.pth")
    code, _, err = run(capsys, "info", tmp_path / "vim.pth")
    assert code == 2
    assert "layers.7.mixer.D_b" in err
    assert err.count("\n") == 1
