from __future__ import annotations

import copy

import diffusers
import pytest
import torch

from compress3g.core import gated
from compress3g.diffusion import Replay, units_of
from compress3g.diffusion.pipelines import denoiser_of
from compress3g.errors import ConfigError

from .pipelines import OPTIONS, PIPELINES, pipeline

STEPS = 3
every_family = pytest.mark.parametrize("name", PIPELINES)
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")


def prompts(name):
    return ["cat", 1] if name == "DiT" else ["a red cat", "three blue dog"]


def own_latents(pipe, name, seeds, steps=STEPS, **options):
    """The latents of the pipeline itself: what its scheduler returned last, whatever follows."""
    seen = []
    step = pipe.scheduler.step

    def watched(out, t, z, *args, **kwargs):
        result = step(out, t, z, *args, **kwargs)
        seen.append(result[0] if isinstance(result, tuple) else result.prev_sample)
        return result

    generators = [torch.Generator().manual_seed(s) for s in seeds]
    asked = prompts(name)
    how = {"class_labels": [0, 1]} if name == "DiT" else {"prompt": asked, "output_type": "latent"}
    watched.__wrapped__ = step  # pipelines look at the signature
    pipe.scheduler.step = watched
    try:
        pipe(**how, num_inference_steps=steps, generator=generators, **OPTIONS[name], **options)
    finally:
        del pipe.scheduler.step
    return seen[-1]


@every_family
@pytest.mark.parametrize("guidance", [0.5, 4.0])
def test_replay_equals_the_pipeline(name, guidance):
    pipe = pipeline(name)
    theirs = own_latents(pipe, name, [5, 6], guidance_scale=guidance)
    call = {**OPTIONS[name], "guidance_scale": guidance}
    replay = Replay.of(pipe, prompts(name), steps=STEPS, seed=5, call=call)
    with torch.no_grad():
        assert torch.equal(replay.run(), theirs)
        assert torch.equal(replay.run(), theirs)  # and again: nothing is used up
    assert torch.equal(own_latents(pipe, name, [5, 6], guidance_scale=guidance), theirs)


@every_family
def test_one_step_is_a_trajectory(name):
    pipe = pipeline(name)
    if name == "PixArt":
        with pytest.raises(ConfigError, match="another loop in PixArtAlphaPipeline: give two"):
            Replay.of(pipe, prompts(name), steps=1, call=OPTIONS[name])
        return
    replay = Replay.of(pipe, prompts(name), steps=1, seed=5, call=OPTIONS[name])
    with torch.no_grad():
        assert torch.equal(replay.run(), own_latents(pipe, name, [5, 6], steps=1))


SCHEDULERS = [
    ("SD", "EulerAncestralDiscreteScheduler"),
    ("SD", "HeunDiscreteScheduler"),
    ("SD", "UniPCMultistepScheduler"),
    ("SDXL", "DPMSolverMultistepScheduler"),
    ("SDXL", "LCMScheduler"),
    ("SD3", "FlowMatchHeunDiscreteScheduler"),
    ("PixArt", "DDPMScheduler"),
    ("DiT", "DDPMScheduler"),
    ("Sana", "DPMSolverMultistepScheduler"),
]


@pytest.mark.parametrize(("name", "scheduler"), SCHEDULERS)
def test_replay_equals_the_pipeline_with_other_schedulers(name, scheduler):
    pipe = copy.copy(pipeline(name))
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    more = flow if (name, scheduler[:3]) == ("Sana", "DPM") else {}
    pipe.scheduler = getattr(diffusers, scheduler)(**more)
    torch.manual_seed(3)  # DiT's pipeline gives its scheduler no generator
    theirs = own_latents(pipe, name, [5, 6])
    torch.manual_seed(3)
    replay = Replay.of(pipe, prompts(name), steps=STEPS, seed=[5, 6], call=OPTIONS[name])
    before = torch.get_rng_state()
    with torch.no_grad():
        assert torch.equal(replay.run(), theirs)
        assert torch.equal(replay.run(), theirs)
    assert torch.equal(torch.get_rng_state(), before)


@every_family
def test_halves_in_turn_come_to_the_same(name):
    pipe = pipeline(name)
    model = denoiser_of(pipe)[1]
    units = units_of(model)
    found = []
    for halves in (False, True):
        replay = Replay.of(pipe, prompts(name), steps=STEPS, halves=halves, call=OPTIONS[name])
        gates = {u.name: torch.full((2, u.size), 0.9, requires_grad=True) for u in units}
        with gated(model, units, gates):
            out = replay.run(list(gates.values()))
            grads = torch.autograd.grad(out.square().mean(), list(gates.values()))
        found.append([out.detach(), *grads])
    for a, b in zip(*found, strict=True):
        # Products of matrices round differently for half as many rows.
        assert float((a - b).abs().max()) <= 1e-4 * float(b.abs().max())


@every_family
def test_a_prompt_does_not_see_its_neighbours(name):
    """Gates of one sample change that sample only, in both halves of guidance."""
    pipe = pipeline(name)
    model = denoiser_of(pipe)[1]
    units = units_of(model)
    replay = Replay.of(pipe, prompts(name), steps=STEPS, call=OPTIONS[name])
    gates = {u.name: torch.ones(2, u.size) for u in units}
    for gate in gates.values():
        gate[1] = 0.5
    with torch.no_grad():
        dense = replay.run()
        with gated(model, units, gates):
            masked = replay.run()
    assert torch.allclose(masked[0], dense[0], rtol=0, atol=1e-4 * float(dense.abs().max()))
    assert not torch.allclose(masked[1], dense[1], rtol=0, atol=1e-3 * float(dense.abs().max()))


def test_recorded_steps_run_again():
    replay = Replay.of(pipeline("SDXL"), ["a cat"], steps=4, call=OPTIONS["SDXL"])
    last, recording = replay.record()
    for i in (2, 0, 3):
        with torch.no_grad():
            z = replay.step(recording.again(i), i)
        after = last if i == 3 else recording.latent(i + 1)
        assert torch.equal(z, after)


def test_the_pipeline_is_left_as_it_was():
    pipe = pipeline("SD")
    before = dict(vars(pipe.scheduler)), len(pipe.unet._forward_hooks), pipe._progress_bar_config
    Replay.of(pipe, ["a cat"], steps=2)
    assert "step" not in vars(pipe.scheduler)
    assert before[0].keys() == vars(pipe.scheduler).keys()
    assert len(pipe.unet._forward_hooks) == before[1]
    assert pipe._progress_bar_config == before[2]


class _Other(torch.nn.Module):
    pass


def test_an_unknown_denoiser_names_the_adapter():
    pipe = copy.copy(pipeline("SD"))
    pipe.unet = _Other()
    with pytest.raises(ConfigError, match=r"ADAPTERS\['_Other'\]"):
        Replay.of(pipe, ["a cat"], steps=2)


BAD = [
    ("SD", {"prompts": []}, "no prompt"),
    ("SD", {"steps": 0}, "at least one"),
    ("SD", {"seed": [1, 2, 3]}, "3 seeds for 1"),
    ("SD", {"call": {"guidance": 3}}, "no option 'guidance'"),
    ("Flux", {"call": {"true_cfg_scale": 2.0, "negative_prompt": "dog"}}, "2 times per step"),
    ("SD3", {"call": {"skip_guidance_layers": [0]}}, "skip_guidance_layers"),
]


@pytest.mark.parametrize(("name", "change", "says"), BAD)
def test_what_cannot_be_replayed_is_refused(name, change, says):
    asked = {"prompts": ["a cat"], "steps": 2, **change}
    asked["call"] = {**OPTIONS[name], **asked.get("call", {})}
    with pytest.raises(ConfigError, match=says):
        Replay.of(pipeline(name), asked.pop("prompts"), **asked)
