"""What people do to pipelines works on pruned ones."""

from __future__ import annotations

import pytest
import torch

from compress3g.diffusion.prune import prune
from compress3g.diffusion.units import units_of

from .tiny import captions, random_scores


@pytest.fixture
def pipe():
    made = captions()
    prune(made, random_scores(units_of(made.unet)), ratio=0.2, round_to=4)
    return made


def latents(pipe, **options):
    return pipe(
        ["a red seven"],
        num_inference_steps=2,
        generator=[torch.Generator().manual_seed(0)],
        output_type="latent",
        **options,
    ).images


def test_attention_slicing_changes_nothing(pipe):
    before = latents(pipe)
    pipe.enable_attention_slicing(1)
    # One head at a time: other sums, the same result up to float32.
    assert torch.allclose(latents(pipe), before, atol=1e-4)


def test_it_compiles_as_one_graph(pipe):
    torch._dynamo.reset()
    compiled = torch.compile(pipe.unet, fullgraph=True, backend="eager")
    x, words = torch.randn(2, 4, 8, 8), torch.randn(2, 12, 16)
    with torch.no_grad():
        found, expected = compiled(x, 7, words).sample, pipe.unet(x, 7, words).sample
    assert torch.allclose(found, expected, atol=1e-5)  # the same operations in another order


def test_callbacks_see_and_change_latents(pipe):
    seen = []

    def look(pipe, step, time, kwargs):
        seen.append(step)
        return {"latents": kwargs["latents"] * 0}

    assert float(latents(pipe, callback_on_step_end=look).abs().max()) == 0
    assert seen == [0, 1]


def test_another_dtype(pipe):
    pipe.to(torch.bfloat16)
    assert latents(pipe).dtype == torch.bfloat16


def test_gradient_checkpointing_gives_the_same_gradient(pipe):
    x, words = torch.randn(2, 4, 8, 8), torch.randn(2, 12, 16)
    grads = []
    for enable in (False, True):
        if enable:
            pipe.unet.enable_gradient_checkpointing()
        pipe.unet.train()
        pipe.unet.zero_grad()
        pipe.unet(x, 7, words).sample.square().sum().backward()
        grads.append([p.grad.clone() for p in pipe.unet.parameters() if p.grad is not None])
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(*grads, strict=True))
