"""`compress3g diffusion` from outside: what it writes, and one line for what it cannot use."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path

import diffusers
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from compress3g.cli.main import main
from compress3g.diffusion.pruned_models import save
from compress3g.diffusion.units import units_of

from .tiny import captions, classes

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A dense pipeline and prompts for it."""
    folder = tmp_path_factory.mktemp("cli")
    save(captions(), folder / "dense")
    (folder / "prompts.txt").write_text("a red seven\n\na blue three above a red seven\n")
    (folder / "empty.txt").write_text("\n \n")
    save(classes(), folder / "classes")
    unet = diffusers.UNet2DModel(
        **{"sample_size": 8, "block_out_channels": (8, 8), "norm_num_groups": 4},
        **{"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2},
        add_attention=False,
    )
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(folder / "images")
    (folder / "other").mkdir()
    down, up = (f"unet.mid_block.resnets.0.conv1.lora_{s}.weight" for s in "AB")
    other = {down: torch.ones(2, 99, 3, 3), up: torch.ones(99, 2, 1, 1)}
    save_file(other, folder / "other" / "pytorch_lora_weights.safetensors")
    return folder


def tree(folder):
    """Every file and when it was written."""
    return {f: f.stat().st_mtime_ns for f in sorted(folder.rglob("*"))}


def run(capsys, *words):
    code = main(["diffusion", *map(str, words)])
    said = capsys.readouterr()
    return code, said.out, said.err


def size_of(file):
    with Image.open(file) as image:
        return image.size


@pytest.mark.parametrize("method", ["magnitude", "random", "taylor", "fisher"])
def test_prune_writes_a_smaller_pipeline(work, method, tmp_path, capsys):
    code, out, err = run(
        capsys, "prune", work / "dense", tmp_path / "small", "--method", method, "--ratio", "0.2",
        "--prompts", work / "prompts.txt", "--steps", 3, "--round-to", 4, "--json",
    )  # fmt: skip
    assert code == 0, err
    told = json.loads(out)
    assert 0.2 <= 1 - told["pruned"]["params"] / told["dense"]["params"] < 0.25
    assert told["pruned"]["macs"] < told["dense"]["macs"]
    assert told["likeness"]["images"] == 2
    assert told["likeness"]["latent_error"] > 0
    config = json.loads((tmp_path / "small" / "unet" / "config.json").read_text())
    assert config["compress3g"]["method"] == method


def test_a_refit_changes_weights_and_not_what_goes(work, tmp_path, capsys):
    for name, more in {"plain": ["--no-refit"], "refit": []}.items():
        code, _, err = run(
            capsys, "prune", work / "dense", tmp_path / name, "--method", "magnitude", "--ratio",
            0.2, "--prompts", work / "prompts.txt", "--steps", 3, "--round-to", 4, *more,
        )  # fmt: skip
        assert code == 0, err
    kept, weights = [], []
    for name in ("plain", "refit"):
        kept.append(
            json.loads((tmp_path / name / "unet" / "config.json").read_text())["compress3g"]
        )
        weights.append((tmp_path / name / "unet" / WEIGHTS).read_bytes())
    assert kept[0] == kept[1]
    assert weights[0] != weights[1]


def test_the_whole_way_from_one_pipeline_to_a_compared_one(work, tmp_path, capsys):
    small, sheet = tmp_path / "small", tmp_path / "sheet.png"
    prompts = ["--prompts", work / "prompts.txt", "--steps", 2]
    code, out, _ = run(
        capsys, "prune", work / "dense", small, "--method", "magnitude", "--ratio", 0.15,
        "--round-to", 1, *prompts, "--sheet", sheet,
    )  # fmt: skip
    assert code == 0
    assert "of the parameters and" in out
    # Times that were not taken in turn would not say which is faster.
    assert re.search(r"\d ?[mµ]?s\b", out) is None
    assert f"compress3g diffusion bench {work / 'dense'} {small}" in out
    assert size_of(sheet) == (2 * 66, 2 * 66)
    (tmp_path / "judge.py").write_text("def bright(images, prompts): return images.mean((1, 2, 3))")
    score = ("--score", f"{tmp_path}/judge.py:bright")
    code, out, _ = run(capsys, "eval", work / "dense", small, *prompts, *score, "--json")
    assert code == 0
    figures = json.loads(out)
    assert 0 < figures["scores"][0] != figures["scores"][1] > 0
    assert figures["latent_error"] > 0
    assert figures["ssim"] < 1
    code, out, _ = run(capsys, "eval", small, small, *prompts, "--json")
    assert json.loads(out)["latent_error"] == 0
    assert json.loads(out)["ssim"] == pytest.approx(1)
    code, out, _ = run(capsys, "bench", work / "dense", small, "--seconds", 0.05, "--json")
    assert code == 0
    dense, pruned = json.loads(out)
    assert pruned["params"] < dense["params"]
    assert len(pruned["time_ratio"]) == 3
    picture = tmp_path / "one.png"
    code, out, _ = run(capsys, "generate", small, "-o", picture, "--prompt", "a red", "--steps", 2)
    assert (code, size_of(picture)) == (0, (66, 66))


def test_inspect_reads_no_weights(work, tmp_path, capsys):
    for file in ("model_index.json", "unet/config.json"):
        target = tmp_path / file
        target.parent.mkdir(exist_ok=True)
        target.write_text((work / "dense" / file).read_text())
    code, out, _ = run(capsys, "inspect", tmp_path, "--json")
    assert code == 0
    told = json.loads(out)
    unet = captions().unet
    assert told["params"] == sum(p.numel() for p in unet.parameters())
    assert [u["name"] for u in told["units"]] == [u.name for u in units_of(unet)]
    code, out, _ = run(capsys, "inspect", tmp_path)
    assert "parameters can go" in out


LEARN = ("--steps", 3, "--updates", 3, "--batch", 2, "--accumulate", 1, "--target", 0.15)


def test_masks_are_learnt_once_and_pruned_by_at_any_ratio(work, tmp_path, capsys):
    masks = tmp_path / "masks.safetensors"
    words = ("--prompts", work / "prompts.txt", *LEARN)
    code, out, err = run(capsys, "learn", work / "dense", masks, *words)
    assert code == 0, err
    assert "3 updates: latent error" in out
    assert sorted(p.name for p in tmp_path.iterdir()) == [masks.name]  # the checkpoint is gone
    for ratio in (0.1, 0.15):
        small = tmp_path / f"small-{ratio}"
        code, _, err = run(
            capsys, "prune", work / "dense", small, "--masks", masks, "--ratio", ratio,
            "--round-to", 1, "--json",
        )  # fmt: skip
        assert code == 0, err
        config = json.loads((small / "unet" / "config.json").read_text())["compress3g"]
        assert (config["method"], config["ratio"]) == ("ecodiff", ratio)
    # Masks count in the dense model: they do not fit one that has lost units.
    code, _, err = run(capsys, "prune", small, tmp_path / "again", "--masks", masks)
    assert code == 2
    assert "masks of another model" in err


def test_an_interrupted_learning_goes_on(work, tmp_path, capsys, monkeypatch):
    from compress3g.diffusion import ecodiff

    straight, broken = tmp_path / "straight.safetensors", tmp_path / "broken.safetensors"
    words = ("--prompts", work / "prompts.txt", *LEARN)
    assert run(capsys, "learn", work / "dense", straight, *words)[0] == 0
    update = ecodiff._Learning.update

    def interrupted(self):
        if self.done == 2:
            raise KeyboardInterrupt
        update(self)

    with monkeypatch.context() as patch:
        patch.setattr(ecodiff._Learning, "update", interrupted)
        patch.setattr(ecodiff, "_SAVE_EVERY", 1)
        assert run(capsys, "learn", work / "dense", broken, *words)[0] == 130
    assert not broken.exists()
    code, _, err = run(capsys, "learn", work / "dense", broken, *words[:-1], 0.1)
    assert code == 2
    assert "target" in err
    assert run(capsys, "learn", work / "dense", broken, *words)[0] == 0
    first, second = (ecodiff.Learned.load(path) for path in (straight, broken))
    assert all(torch.equal(first.logits[n], second.logits[n]) for n in first.logits)
    assert first.history == second.history


FINETUNE = ("--steps", 3, "--updates", 3, "--batch", 2, "--rank", 2)


@pytest.fixture(scope="module")
def small(work):
    assert main([
        "diffusion", "prune", str(work / "dense"), str(work / "small"), "--method", "magnitude",
        "--round-to", "1",
    ]) == 0  # fmt: skip
    return work / "small"


def test_a_pruned_pipeline_is_finetuned(work, small, tmp_path, capsys):
    words = ("--dense", work / "dense", "--prompts", work / "prompts.txt", *FINETUNE)
    code, out, err = run(
        capsys, "finetune", small, tmp_path / "better", *words, "--sheet", tmp_path / "sheet.png",
        "--json",
    )  # fmt: skip
    assert code == 0, err
    told = json.loads(out)
    assert told["updates"] == 3
    assert told["latent_error"]["after"] != told["latent_error"]["before"] > 0
    assert size_of(tmp_path / "sheet.png") == (2 * 66, 3 * 66)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["better", "sheet.png"]
    configs = [
        json.loads((f / "unet" / "config.json").read_text()) for f in (small, tmp_path / "better")
    ]
    assert configs[0]["compress3g"] == configs[1]["compress3g"]
    code, out, _ = run(capsys, "finetune", small, tmp_path / "again", *words, "--method", "full")
    assert (code, "latent error" in out) == (0, True)


def test_an_interrupted_finetuning_goes_on(work, small, tmp_path, capsys, monkeypatch):
    from compress3g.diffusion import finetune

    words = ("--dense", work / "dense", "--prompts", work / "prompts.txt", *FINETUNE)
    assert run(capsys, "finetune", small, tmp_path / "straight", *words)[0] == 0
    learn = sys.modules[finetune.__module__]._Run._learn

    def told_to_stop(self, m):
        if self.done == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return learn(self, m)

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[finetune.__module__]._Run, "_learn", told_to_stop)
        assert run(capsys, "finetune", small, tmp_path / "broken", *words)[0] == 130
    assert not (tmp_path / "broken").exists()
    assert (tmp_path / "broken.checkpoint").exists()
    assert run(capsys, "finetune", small, tmp_path / "broken", *words)[0] == 0
    assert not (tmp_path / "broken.checkpoint").exists()
    file = "unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "broken" / file).read_bytes() == (tmp_path / "straight" / file).read_bytes()


def test_refit_brings_a_pruned_pipeline_closer(work, tmp_path, capsys):
    errors = []
    for word in ("--no-refit", "--refit"):
        out = tmp_path / word.strip("-")
        prompts = ("--prompts", work / "prompts.txt", "--steps", 3)
        code, _, err = run(
            capsys, "prune", work / "dense", out, "--method", "magnitude", "--round-to", 1,
            *prompts, word,
        )  # fmt: skip
        assert code == 0, err
        code, told, _ = run(capsys, "eval", work / "dense", out, *prompts, "--json")
        errors.append(json.loads(told)["latent_error"])
    # The prompts that it was fitted to, and their noise: there the fit is the best linear one.
    assert errors[1] < errors[0]


def test_ecodiff_is_a_method_like_the_others(work, tmp_path, capsys):
    code, out, err = run(
        capsys, "prune", work / "dense", tmp_path / "small", "--method", "ecodiff", "--ratio", 0.15,
        "--prompts", work / "prompts.txt", "--steps", 3, "--updates", 2, "--batch", 2,
        "--round-to", 1,
    )  # fmt: skip
    assert code == 0, err
    assert "ecodiff: " in out


def test_a_toml_file_gives_options_and_flags_win(work, tmp_path, capsys):
    (tmp_path / "o.toml").write_text(
        'method = "magnitude"\nratio = 0.1\nround_to = 1\ncost = "flops"\n'
    )
    code, _, err = run(
        capsys, "prune", work / "dense", tmp_path / "small", "--config", tmp_path / "o.toml",
        "--ratio", 0.15,
    )  # fmt: skip
    assert code == 0, err
    config = json.loads((tmp_path / "small" / "unet" / "config.json").read_text())["compress3g"]
    assert (config["method"], config["ratio"], config["cost"]) == ("magnitude", 0.15, "flops")


PRUNE = ("prune", "{dense}", "{out}")
DRAW = ("generate", "{small}", "-o", "{out}", "--prompt", "a")
FINE = ("finetune", "{dense}", "{out}", "--dense", "{dense}")
DIGITS = Path(__file__).parents[2] / "pipelines" / "digits_t2i"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((*PRUNE, "--ratio", "1.2", "--method", "magnitude"), "--ratio 1.2 is not a share"),
        ((*PRUNE, "--ratio", "0.95", "--method", "magnitude"), "cannot be reached"),
        ((*PRUNE, "--method", "taylor"), "needs --prompts"),
        ((*PRUNE, "--masks", "{absent}"), "absent does not exist"),
        ((*PRUNE, "--masks", "{empty}"), "empty.txt"),
        (("learn", "{dense}", "{out}"), "--prompts"),
        (("learn", "{dense}", "{out}", "--prompts", "{empty}"), "has no prompt"),
        (("learn", "{dense}", "{out}", "--prompts", "{text}", "--target", "1.5"), "--target 1.5"),
        (
            ("learn", "{dense}", "{out}", "--prompts", "{text}", "--target", "0.95"),
            "cannot be reached",
        ),
        ((*PRUNE, "--prompts", "{empty}"), "has no prompt"),
        ((*PRUNE, "--method", "magnitude", "--refit"), "--refit needs --prompts"),
        ((*FINE, "--prompts", "{empty}"), "has no prompt"),
        ((*FINE, "--prompts", "{text}", "--updates", "0"), "--updates 0 is out of range"),
        ((*FINE, "--prompts", "{text}", "--dense", "{absent}"), "does not exist"),
        ((*FINE, "--prompts", "{text}", "--dense", "{digits}"), "not what was pruned"),
        ((*FINE[:2], "{dense}", *FINE[3:], "--prompts", "{text}"), "exists already"),
        (
            (*FINE, "--prompts", "{text}", "--dtype", "bfloat16", "--method", "full"),
            "--dtype float32",
        ),
        ((*PRUNE, "--prompts", "{absent}"), "No such file"),
        ((*PRUNE, "--method", "magic"), "magic"),
        ((*PRUNE, "--method", "magnitude", "--kinds", "layers"), "'layers' is no kind"),
        ((*PRUNE, "--method", "magnitude", "--round-to", "0"), "--round-to 0 is less than 1"),
        ((*PRUNE, "--method", "magnitude", "--sheet", "{out}.png"), "--sheet needs --prompts"),
        (("prune", "{absent}", "{out}", "--method", "magnitude"), "does not exist"),
        (("prune", "{dense}", "{dense}", "--method", "magnitude"), "exists already"),
        (("inspect", "{absent}"), "no model_index.json"),
        (("generate", "{dense}", "-o", "{out}"), "Give --prompt"),
        ((*DRAW, "--lora", "{absent}"), "cannot be loaded"),
        ((*DRAW, "--lora", "{other}"), "another base"),
        (
            ("prune", "{classes}", "{out}", "--method", "magnitude", "--kinds", "groups"),
            "no groups",
        ),
        (("prune", "{images}", "{out}", "--method", "magnitude"), "neither prompts nor classes"),
        (("learn", "{images}", "{out}", "--prompts", "{text}"), "put a adapters.Adapter into"),
        ((*PRUNE, "--method", "magnitude", "--score", "{text}:right"), "--score needs --prompts"),
        (("eval", "{dense}", "{dense}", "--prompt", "a", "--score", "right"), "is not MODULE:FUNC"),
        (("eval", "{dense}", "{absent}", "--prompt", "a"), "does not exist"),
        (("bench", "{absent}"), "does not exist"),
    ],
)
def test_bad_input_is_one_line(work, small, words, says, tmp_path, capsys):
    places = {"dense": work / "dense", "empty": work / "empty.txt", "digits": DIGITS}
    places |= {"small": small, "classes": work / "classes", "images": work / "images"}
    places |= {"other": work / "other" / "pytorch_lora_weights.safetensors"}
    places |= {"out": tmp_path / "out", "absent": tmp_path / "absent", "text": work / "prompts.txt"}
    before = tree(work)
    code, _, err = run(capsys, *(w.format(**places) for w in words))
    assert code == 2
    assert says in err
    assert len(err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
    assert tree(work) == before


def test_a_pruned_folder_edited_by_hand_is_one_line(work, tmp_path, capsys):
    small = tmp_path / "small"
    run(capsys, "prune", work / "dense", small, "--method", "magnitude", "--round-to", 1)
    file = small / "unet" / "config.json"
    config = json.loads(file.read_text())
    name = next(iter(config["compress3g"]["groups"]))
    config["compress3g"]["groups"][name]["keep"] = "AAAA"
    file.write_text(json.dumps(config))
    code, _, err = run(capsys, "generate", small, "-o", tmp_path / "o.png", "--prompt", "a")
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert "was edited" in err
