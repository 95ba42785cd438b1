"""Training a router: resumed runs, who learns from what, budgets that experts really meet."""

from __future__ import annotations

import copy
import dataclasses
import math
import shutil
import subprocess
import sys

import pytest
import torch

from compress3g.diffusion import open_pipeline
from compress3g.diffusion.aptp.config import AptpConfig
from compress3g.diffusion.aptp.corpus import Corpus
from compress3g.diffusion.aptp.trainer import _Training, train_router
from compress3g.engine.checkpoint import load_tensors
from compress3g.errors import BudgetError, ConfigError, FormatError

from ..tiny import captions
from .conftest import CONFIG, PROMPTS


def scaled(denoiser):
    """Another model of the same sizes: what a little training makes."""
    other = copy.deepcopy(denoiser)
    with torch.no_grad():
        next(other.parameters()).mul_(1.1)
    return other


def test_the_experts_meet_the_target_on_the_training_prompts(router, corpus):
    assert router.expected(corpus.embeddings) <= CONFIG.target + 1e-6
    assert router.expected(corpus.embeddings) >= CONFIG.target - 0.1  # of eight prompts
    assert float(router.usage.sum()) == pytest.approx(1)


def test_a_resumed_run_is_the_same_run(corpus, router, tmp_path):
    file = tmp_path / "checkpoint"
    train_router(corpus, CONFIG, checkpoint=file, after_step=lambda n, _: n < 4)
    assert file.exists()
    again = train_router(corpus, CONFIG, checkpoint=file)
    assert torch.equal(again.logits, router.logits)
    assert torch.equal(again.weight, router.weight)
    assert again.history == router.history


def test_the_checkpoint_of_another_run_is_refused(corpus, tmp_path):
    file = tmp_path / "checkpoint"
    train_router(corpus, CONFIG, checkpoint=file, after_step=lambda n, _: False)
    other = dataclasses.replace(CONFIG, seed=1)
    with pytest.raises(FormatError, match="another run"):
        train_router(corpus, other, checkpoint=file)
    model = dataclasses.replace(corpus, denoiser=scaled(corpus.denoiser))
    with pytest.raises(FormatError, match="other prompts or model"):
        train_router(model, CONFIG, checkpoint=file)
    latents = dataclasses.replace(corpus, latents=corpus.latents.flip(0))
    with pytest.raises(FormatError, match="other latents"):
        train_router(latents, CONFIG, checkpoint=file)
    rounded = dataclasses.replace(corpus, latents=corpus.latents * (1 + 1e-5))
    train_router(rounded, CONFIG, checkpoint=file, after_step=lambda n, _: False)


def test_the_denoiser_itself_does_not_learn(corpus, pipe):
    before = {n: p.clone() for n, p in pipe.unet.named_parameters()}
    wanted = [p.requires_grad for p in pipe.unet.parameters()]
    train_router(corpus, dataclasses.replace(CONFIG, steps=2))
    assert all(torch.equal(p, before[n]) for n, p in pipe.unet.named_parameters())
    assert [p.requires_grad for p in pipe.unet.parameters()] == wanted


def test_after_the_warm_up_the_predictor_learns_from_contrast_alone(corpus):
    training = _Training(corpus, dataclasses.replace(CONFIG, contrast=0.0), None, "pipeline")
    while training.warming:
        training.step()
    before = training.predictor.linear.weight.detach().clone()
    codes = training.codes.detach().clone()
    training.adam.zero_grad()
    training.step()
    assert training.predictor.linear.weight.grad is None
    assert torch.equal(training.predictor.linear.weight, before)
    assert not torch.equal(training.codes, codes)


def test_every_code_is_used_by_transport(corpus):
    config = dataclasses.replace(CONFIG, experts=4, batch=8, bias=0.0)
    training = _Training(corpus, config, None, "pipeline")
    training._start_codes()
    vectors = training.code.similarity_vector(training.code.gates(training.predictor(training.z)))
    codes = training.code.similarity_vector(training.code.gates(training.codes))
    chosen = training._assign(vectors.detach(), codes.detach())
    assert len(chosen.unique()) >= 3


def test_more_experts_than_prompts_are_refused(corpus):
    with pytest.raises(ConfigError, match="--experts 9 for 8 different captions"):
        train_router(corpus, dataclasses.replace(CONFIG, experts=9))
    same = dataclasses.replace(corpus, prompts=PROMPTS[:2] * 4)
    with pytest.raises(ConfigError, match="--experts 3 for 2 different captions"):
        train_router(same, CONFIG)


@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS[:1] * 4])
@pytest.mark.parametrize("more", [{}, {"start": "graded", "recut": "fisher"}])
def test_one_caption_is_enough_for_one_expert(pipe, corpus, prompts, more, tmp_path):
    one = Corpus.of(pipe, prompts, latents=corpus.latents[: len(prompts)], steps=4)
    router = train_router(one, dataclasses.replace(CONFIG, experts=1, steps=3, **more))
    router.save(tmp_path / "router.safetensors")
    tensors, about = load_tensors(tmp_path / "router.safetensors")
    assert about["scale"] > 0
    assert all(t.isfinite().all() for t in tensors.values() if t.is_floating_point())
    # Other captions lie apart from the only one that was seen.
    assert router.standard(corpus.embeddings).isfinite().all()
    assert router.similarities(corpus.embeddings).isfinite().all()


def test_a_target_no_code_can_meet_is_refused(corpus):
    with pytest.raises(BudgetError, match="cannot be met"):
        train_router(corpus, dataclasses.replace(CONFIG, target=0.002))


@pytest.mark.parametrize("name", ["target", "tau", "temperature", "learning_rate"])
def test_values_nothing_can_be_learnt_with_are_named(name):
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')}"):
        AptpConfig(**{name: math.nan})


def test_samples_are_what_the_scheduler_makes_of_the_latents(corpus, pipe):
    rows = torch.tensor([0, 5])
    sample = corpus.draw(rows, torch.Generator().manual_seed(0))
    noise_at = {float(t) for t in corpus.scheduler.timesteps}
    assert all(float(t) in noise_at for t in sample.times)
    # DDIM predicts the noise: x = sqrt(a) z + sqrt(1 - a) e.
    a = pipe.scheduler.alphas_cumprod[sample.times.long()].view(-1, 1, 1, 1)
    x = a.sqrt() * corpus.latents[rows] + (1 - a).sqrt() * sample.target
    assert torch.allclose(sample.arguments["sample"], x, atol=1e-5)
    told = sample.arguments["encoder_hidden_states"]
    one = Corpus.of(pipe, [PROMPTS[5]], latents=corpus.latents[:1], steps=4)
    assert torch.allclose(told[1], one._told["encoder_hidden_states"][0], atol=1e-5)


def test_dropped_prompts_are_told_nothing(corpus):
    rows, g = torch.arange(8), torch.Generator().manual_seed(0)
    sample = corpus.draw(rows, g, drop=1.0)
    told = sample.arguments["encoder_hidden_states"]
    assert all(torch.equal(row, told[0]) for row in told)


def test_latents_of_another_number_are_refused(pipe):
    with pytest.raises(ConfigError, match="3 latents for 2 prompts"):
        Corpus.of(pipe, PROMPTS[:2], latents=torch.zeros(3, 4, 8, 8))


def test_cached_latents_of_other_prompts_are_refused(pipe, tmp_path):
    Corpus.of(pipe, PROMPTS[:2], steps=3, cache=tmp_path / "latents")
    again = Corpus.of(pipe, PROMPTS[:2], steps=3, cache=tmp_path / "latents")
    assert len(again) == 2
    with pytest.raises(FormatError, match="other prompts"):
        Corpus.of(pipe, PROMPTS[1:3], steps=3, cache=tmp_path / "latents")
    other = copy.copy(pipe)
    other.register_modules(unet=scaled(pipe.unet))
    with pytest.raises(FormatError, match="another model"):
        Corpus.of(other, PROMPTS[:2], steps=3, cache=tmp_path / "latents")


@pytest.mark.parametrize("part", ["text_encoder", "scheduler"])
def test_cached_latents_of_another_text_encoder_or_scheduler_are_refused(tmp_path, part):
    pipe = captions()
    Corpus.of(pipe, PROMPTS[:2], steps=3, cache=tmp_path / "latents")
    if part == "scheduler":
        changed = type(pipe.scheduler).from_config(pipe.scheduler.config, beta_end=0.03)
    else:
        changed = scaled(pipe.text_encoder)
    other = copy.copy(pipe)
    other.register_modules(**{part: changed})
    with pytest.raises(FormatError, match="another model"):
        Corpus.of(other, PROMPTS[:2], steps=3, cache=tmp_path / "latents")


def test_cached_latents_are_found_again_wherever_the_model_lies(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    made = [
        Corpus.of(open_pipeline(tmp_path / n), PROMPTS[:2], steps=3, cache=tmp_path / "latents")
        for n in ("here", "there")
    ]
    assert torch.equal(made[0].latents, made[1].latents)


_RANK = """
import sys
import torch.distributed as dist
from pathlib import Path
sys.path.insert(0, sys.argv[3])
rank, folder = int(sys.argv[1]), Path(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
from tests_aptp import run
run().save(folder / f"{rank}.safetensors")
"""


def test_two_processes_train_the_same_router(tmp_path, pipe):
    made = """
import dataclasses, sys
import torch
torch.set_num_threads(1)
from compress3g.diffusion.aptp.corpus import Corpus
from compress3g.diffusion.aptp.config import AptpConfig
from compress3g.diffusion.aptp.trainer import train_router
from compress3g.diffusion import open_pipeline


def run():
    prompts = {prompts!r}
    corpus = Corpus.of(open_pipeline({folder!r}), prompts, steps=4)
    return train_router(corpus, AptpConfig(**{config!r}))
"""
    pipe.save_pretrained(tmp_path / "pipe")
    config = dataclasses.asdict(dataclasses.replace(CONFIG, steps=3))
    text = made.format(prompts=PROMPTS, folder=str(tmp_path / "pipe"), config=config)
    (tmp_path / "tests_aptp.py").write_text(text)
    (tmp_path / "rank.py").write_text(_RANK)
    ranks = [
        subprocess.Popen([sys.executable, tmp_path / "rank.py", str(i), tmp_path, tmp_path])
        for i in range(2)
    ]
    assert [p.wait(timeout=240) for p in ranks] == [0, 0]
    one, two = (load_tensors(tmp_path / f"{i}.safetensors")[0] for i in range(2))
    assert all(torch.equal(one[n], two[n]) for n in one)
