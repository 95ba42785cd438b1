"""Lessons: what a criterion that looks at data is shown."""

from __future__ import annotations

import copy

import diffusers
import pytest
import torch

from compress3g.core import gated
from compress3g.criteria import CRITERIA, gather, score
from compress3g.diffusion import PruneConfig, before_cut, generate, prune, scores_of
from compress3g.diffusion.calibration import lessons, loss
from compress3g.diffusion.metrics import relative_error
from compress3g.diffusion.units import units_of
from compress3g.errors import ConfigError

from .tiny import captions, classes

SCHEDULERS = {
    "epsilon": diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
    "velocity": diffusers.DDIMScheduler(
        steps_offset=1, clip_sample=False, prediction_type="v_prediction"
    ),
    "sigmas": diffusers.EulerDiscreteScheduler(steps_offset=1),
    "flow": diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, steps_offset=1
    ),
}


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_a_perfect_answer_leads_back_to_the_latents(kind):
    """One exact step from a lesson's latents, its target being the answer, ends at the image."""
    pipe = captions(scheduler=SCHEDULERS[kind])
    made = lessons(pipe, ["a red seven", "a blue three"], steps=10, levels=2)
    assert len(made) == 2
    pipe.scheduler.set_timesteps(10)
    final = pipe([*["a red seven", "a blue three"]], num_inference_steps=10, output_type="latent",
                 generator=[torch.Generator().manual_seed(i) for i in range(2)]).images  # fmt: skip
    for lesson in made:
        sample, t = lesson.call.args[0], lesson.call.args[1]
        scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
        scheduler.set_timesteps(10)
        if kind == "sigmas":
            index = scheduler.index_for_timestep(t)
            sigma = scheduler.sigmas[index]
            origin = sample * (sigma**2 + 1) ** 0.5 - sigma * lesson.target
        elif kind == "flow":
            sigma = scheduler.sigmas[scheduler.index_for_timestep(t)]
            origin = sample - sigma * lesson.target
        else:
            alpha = scheduler.alphas_cumprod[int(t)]
            a, s = alpha.sqrt(), (1 - alpha).sqrt()
            origin = (sample - s * lesson.target) / a
            if kind == "velocity":
                origin = a * sample - s * lesson.target
        # Amplified by 1/a or sigma of up to some tens from float32 noise.
        assert torch.allclose(origin, final, atol=2e-3)


def test_taylor_is_the_gradient_of_the_lessons_loss():
    pipe = captions()
    units = units_of(pipe.unet)
    made = lessons(pipe, ["a red seven"], steps=4, levels=1)
    evidence = gather(
        pipe.unet, units, [CRITERIA["taylor"]], made, loss=loss, generator=torch.Generator()
    )
    scores, _ = score(CRITERIA["taylor"], evidence)
    u = units[0]
    low, high = ({v.name: torch.ones(v.size) for v in units} for _ in range(2))
    step = 1e-2
    low[u.name][1] -= step
    high[u.name][1] += step
    with torch.no_grad():
        with gated(pipe.unet, units, low):
            below = loss(pipe.unet, made[0])
        with gated(pipe.unet, units, high):
            above = loss(pipe.unet, made[0])
    numeric = abs(float(above - below)) / (2 * step)
    # Central differences of a float32 loss.
    assert float(scores[u.name][1]) == pytest.approx(numeric, rel=0.05, abs=1e-4)


def test_classes_are_prompts_too():
    made = lessons(classes(), ["3", "4", "5"], steps=3, levels=2, batch=2)
    assert len(made) == 4
    assert {tuple(lesson.target.shape) for lesson in made} == {(2, 4, 8, 8), (1, 4, 8, 8)}


def test_a_class_that_is_no_number_is_refused():
    with pytest.raises(ConfigError, match="'cat' is no class"):
        lessons(classes(), ["cat"], steps=2)


# Taylor takes what does next to nothing here: there is nothing to bring back.
@pytest.mark.parametrize("method", ["magnitude", "random"])
def test_refit_brings_a_pruned_pipeline_closer_to_the_whole_one(method):
    pipe, prompts = captions(), ["a red seven", "a blue three", "a blue three above a red seven"]
    how = {"method": method, "ratio": 0.2, "round_to": 4, "steps": 4, "batch": 2}
    shown = {"steps": 4, "seed": 50, "output": "latent"}
    dense, errors = generate(pipe, prompts, **shown), {}
    for refit in (False, True):
        config, small = PruneConfig(**how, refit=refit), copy.deepcopy(pipe)
        scores = scores_of(small, prompts, config)
        prune(small, scores, **config.how(), before_cut=before_cut(small, prompts, config))
        errors[refit] = relative_error(generate(small, prompts, **shown), dense)
    # Least squares cannot do worse on what it has seen; other noise of the same prompts is near.
    assert errors[True] < 0.8 * errors[False]


def test_refit_without_prompts_is_refused():
    config = PruneConfig(method="magnitude", refit=True)
    with pytest.raises(ConfigError, match="needs --prompts"):
        before_cut(captions(), [], config)
