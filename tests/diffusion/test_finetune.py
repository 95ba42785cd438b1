"""Recovery brings a pruned pipeline back towards the dense one, and can be stopped at any time."""

from __future__ import annotations

import copy
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from compress3g.diffusion import FinetuneConfig, finetune, open_pipeline, prune, save, units_of
from compress3g.diffusion.distillation import Lesson, Lessons
from compress3g.diffusion.pipelines import denoiser_of, generate
from compress3g.errors import ConfigError, FormatError, ScoreError

from .pipelines import OPTIONS, PIPELINES, pipeline
from .tiny import captions, random_scores

PROMPTS = ["a red seven", "a blue three", "a seven above a three"]
SMALL = FinetuneConfig(updates=4, batch=2, steps=3, rank=2)
ROOT = Path(__file__).parents[2]


def pruned(dense, ratio=0.2):
    small = copy.deepcopy(dense)
    denoiser = denoiser_of(small)[1]
    return prune(small, random_scores(units_of(denoiser)), ratio=ratio, round_to=1)


def weights(pipe):
    return {n: p.detach().clone() for n, p in denoiser_of(pipe)[1].named_parameters()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


@pytest.fixture(scope="module")
def dense():
    return captions()


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_shipped_model_comes_back_towards_the_dense_one(method):
    dense = open_pipeline(ROOT / "pipelines" / "digits_t2i")
    prompts = ["a red seven above a blue three", "a white one", "a green four beside a red two"]
    small = pruned(dense, 0.2)
    config = FinetuneConfig(method=method, updates=30, batch=3, steps=6, guidance=3.0)
    how = {"steps": 6, "guidance": 3.0, "output": "latent", "seed": 50}  # other noise

    def error():
        gap = generate(small, prompts, **how) - generate(dense, prompts, **how)
        return float(gap.square().mean())

    before = error()
    found = finetune(small, dense, prompts, config)
    assert len(found.history) == 30
    # A few seconds of learning: how much they undo depends on how narrow the model is.
    assert error() < 0.9 * before


@pytest.mark.parametrize("name", PIPELINES)
def test_every_family_learns(name):
    dense = pipeline(name)
    small = pruned(dense, 0.05)
    prompts = [0, 1] if name == "DiT" else ["a red cat", "three dog"]
    before, kind = weights(small), type(denoiser_of(small)[1])
    config = replace(SMALL, updates=2, steps=2, denoise=1.0)
    found = finetune(small, dense, prompts, config, call=OPTIONS[name])
    after = weights(small)
    assert all(0 < r["distance"] < r["loss"] < float("inf") for r in found.history)
    assert before.keys() == after.keys()  # merged: nothing of the LoRA is left
    assert type(denoiser_of(small)[1]) is kind
    assert any(not torch.equal(before[n], after[n]) for n in before)


@pytest.mark.parametrize("name", PIPELINES)
def test_the_dense_denoiser_has_nothing_to_learn(name):
    """Its distance is zero, rows with and without prompt, at every level."""
    dense = copy.deepcopy(pipeline(name))
    lessons = Lessons(
        dense, [0, 1] if name == "DiT" else ["a red cat", "dog"], batch=2, steps=3, seed=0,
        call=OPTIONS[name], wanted=True, cache=None,
    )  # fmt: skip
    for level in (0.0, 0.5, 0.99):
        lesson = lessons.at(0, level, torch.Generator().manual_seed(1))
        with torch.no_grad():
            assert float(lesson.losses(denoiser_of(dense)[1])[0]) == 0


@pytest.mark.parametrize("name", ["SD", "SD3", "DiT"])
def test_what_training_wants_leads_to_the_image(name):
    """A scheduler that is given it ends at the noiseless latent in one step."""
    dense = copy.deepcopy(pipeline(name))
    lessons = Lessons(
        dense, [1] if name == "DiT" else ["a red cat"], batch=1, steps=4, seed=0,
        call=OPTIONS[name], wanted=True, cache=None,
    )  # fmt: skip
    lesson = lessons.at(0, 0.5, torch.Generator().manual_seed(1))
    replay, last = lessons._replays[0], lessons._last[0]
    clean = last[: len(lesson.wanted)]
    given = lesson.arguments[replay.adapter.latent][lesson.prompted]
    t = replay.scheduler.timesteps[2]
    if name == "SD3":  # x_t = (1 - s) x + s e, v = e - x
        sigma = replay.scheduler.sigmas[2]
        found = given - sigma * lesson.wanted
    else:  # x_t = sqrt(a) x + sqrt(1 - a) e
        a = replay.scheduler.alphas_cumprod[t]
        found = (given - (1 - a).sqrt() * lesson.wanted) / a.sqrt()
    assert torch.allclose(found, clean, atol=1e-4)  # float32, divided by sqrt(a)


def test_merged_weights_compute_what_was_trained(dense):
    small = pruned(dense)
    unet, out = small.unet, []
    given = (torch.randn(2, 4, 8, 8), 5, torch.randn(2, 7, 16))

    def look(done, record):
        with torch.no_grad():
            out.append(unet(*given).sample)

    finetune(small, dense, PROMPTS, SMALL, after_update=look)
    with torch.no_grad():
        merged = unet(*given).sample
    assert not torch.equal(out[0], out[-1])
    # W x + B A x against (W + B A) x in float32.
    assert torch.allclose(merged, out[-1], atol=1e-5)


def test_the_result_is_an_ordinary_folder(dense, tmp_path):
    small = pruned(dense)
    finetune(small, dense, PROMPTS, SMALL)
    save(small, tmp_path / "small")
    again = open_pipeline(tmp_path / "small")
    how = {"steps": 2, "output": "latent"}
    assert torch.equal(generate(again, PROMPTS, **how), generate(small, PROMPTS, **how))
    assert all(p.requires_grad and p.grad is None for p in small.unet.parameters())


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_that_was_stopped_goes_on_to_the_same_weights(dense, method, tmp_path):
    config = replace(SMALL, method=method)
    straight, broken = pruned(dense), pruned(dense)
    whole = finetune(straight, dense, PROMPTS, config)
    file = tmp_path / "checkpoint"
    half = finetune(
        copy.deepcopy(broken), dense, PROMPTS, config, checkpoint=file,
        after_update=lambda done, record: done < 2,
    )  # fmt: skip
    assert len(half.history) == 2
    found = finetune(broken, dense, PROMPTS, config, checkpoint=file, cache=tmp_path / "cache")
    assert found == whole
    assert same(weights(broken), weights(straight))
    for wrong, says in (
        ((PROMPTS, replace(config, steps=4)), "steps 3 instead of 4"),
        ((PROMPTS[:2], config), "other prompts"),
    ):
        with pytest.raises(FormatError, match=says):
            finetune(pruned(dense), dense, *wrong, checkpoint=file)
    with pytest.raises(FormatError, match="another pruned model"):
        finetune(pruned(dense, 0.1), dense, PROMPTS, config, checkpoint=file)


def test_a_loss_that_is_not_finite_ends_the_run_with_the_weights_before(dense, monkeypatch):
    losses, calls = Lesson.losses, []

    def breaks(self, denoiser):
        calls.append(1)
        return tuple(x * (float("nan") if len(calls) == 3 else 1) for x in losses(self, denoiser))

    with monkeypatch.context() as patch:
        patch.setattr(Lesson, "losses", breaks)
        small = pruned(dense)
        found = finetune(small, dense, PROMPTS, SMALL)
        assert "not finite at update 3" in found.stopped
        assert len(found.history) == 2
        calls[:] = [1, 1]
        with pytest.raises(ScoreError, match="not finite at update 1"):
            finetune(pruned(dense), dense, PROMPTS, SMALL)
    short = pruned(dense)
    finetune(
        short, dense, PROMPTS, SMALL, after_update=lambda done, record: done < 2
    )  # fmt: skip
    assert same(weights(small), weights(short))


def test_options_that_only_save_memory_change_nothing(dense):
    plain, saving = pruned(dense), pruned(dense)
    first = finetune(plain, dense, PROMPTS, SMALL)
    second = finetune(saving, dense, PROMPTS, replace(SMALL, inner_checkpoint=True))
    for a, b in zip(first.history, second.history, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    assert not saving.unet.training


def test_bfloat16_multiplications_learn_too(dense):
    found = finetune(pruned(dense), dense, PROMPTS, replace(SMALL, autocast=True))
    plain = finetune(pruned(dense), dense, PROMPTS, SMALL)
    # Eight bits of mantissa, on both sides of the distance.
    assert found.history[0]["distance"] == pytest.approx(plain.history[0]["distance"], rel=0.2)


def test_half_precision_weights_take_a_lora_in_float32(dense):
    teacher = copy.deepcopy(dense).to(torch.bfloat16)
    small = pruned(teacher)
    before = weights(small)
    finetune(small, teacher, PROMPTS, SMALL)
    after = weights(small)
    assert all(p.dtype == torch.bfloat16 for p in after.values())
    assert not same(before, after)
    with pytest.raises(ConfigError, match="--dtype float32"):
        finetune(small, teacher, PROMPTS, replace(SMALL, method="full"))


def test_what_cannot_be_learnt_from_is_refused(dense):
    with pytest.raises(ConfigError, match="no prompt"):
        finetune(pruned(dense), dense, [], SMALL)
    with pytest.raises(ConfigError, match="not what was pruned: it is a SD3"):
        finetune(pruned(dense), pipeline("SD3"), PROMPTS, SMALL)
    with pytest.raises(ConfigError, match=r"what was pruned: .* is .*, not"):
        finetune(pruned(pipeline("SD")), pipeline("SDXL"), PROMPTS, SMALL)
    for wrong in ({"rank": 0}, {"learning_rate": float("nan")}, {"steps": 0}):
        with pytest.raises(ConfigError, match="out of range"):
            replace(SMALL, **wrong)


def test_memory_that_runs_out_names_the_options_that_help(dense, monkeypatch):
    def full(self, denoiser):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ...")

    monkeypatch.setattr(Lesson, "losses", full)
    with pytest.raises(ConfigError, match="--method lora, --inner-checkpoint"):
        finetune(pruned(dense), dense, PROMPTS, SMALL)


SHARED = replace(SMALL, updates=3, accumulate=2)
_PROCESS = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from safetensors.torch import save_file
from tests.diffusion.test_finetune import shared
torch.set_num_threads(1)
save_file({n: p.contiguous() for n, p in shared().items()}, sys.argv[2])
torch.distributed.destroy_process_group()
"""


def shared():
    dense = captions()
    small = pruned(dense)
    finetune(small, dense, PROMPTS, SHARED)
    return weights(small)


def test_two_processes_learn_what_one_does(tmp_path, monkeypatch):
    from safetensors.torch import load_file

    alone = shared()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    second = {"RANK": "1", "LOCAL_RANK": "1", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-W", "ignore", "-c", _PROCESS, str(ROOT), str(tmp_path / "w")]
    with subprocess.Popen(command, env={**os.environ, **place, **second}) as other:
        for name, value in {**place, "RANK": "0"}.items():
            monkeypatch.setenv(name, value)
        torch.distributed.init_process_group("gloo")
        try:
            ours = shared()
        finally:
            torch.distributed.destroy_process_group()
        assert other.wait(timeout=240) == 0
    assert same(ours, load_file(tmp_path / "w"))
    for name, p in alone.items():
        # Two sums of two gradients in another order; Adam's first steps divide by them.
        assert torch.allclose(ours[name], p, atol=1e-3)


def test_modules_come_back_as_they_were(dense):
    small = pruned(dense)
    kinds = {n: type(m) for n, m in small.unet.named_modules()}
    finetune(small, dense, PROMPTS, SMALL)
    assert {n: type(m) for n, m in small.unet.named_modules()} == kinds
    assert any(isinstance(m, nn.Linear) for m in small.unet.modules())
