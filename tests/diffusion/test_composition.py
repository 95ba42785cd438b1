"""What people do to pipelines works on pruned ones."""

from __future__ import annotations

import diffusers
import pytest
import torch

import compress3g.diffusion as cd
from compress3g.core import gated
from compress3g.diffusion.prune import prune
from compress3g.diffusion.pruned_models import KEY, kept_of
from compress3g.diffusion.units import units_of
from compress3g.errors import ConfigError, CutError

from .tiny import Pipe, captions, dense_copy, random_scores


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


def masked(unet, keep, call):
    """What the dense network answers when units that would be removed are silent."""
    units = [u for u in units_of(unet) if u.name in keep]
    gates = {u.name: torch.zeros(u.size).index_fill(0, keep[u.name], 1.0) for u in units}
    with torch.no_grad(), gated(unet, units, gates):
        return call(unet)


def kept_by(unet, dense):
    return kept_of(unet.config[KEY], units_of(dense))


def test_a_control_net_of_the_dense_model_steers_the_pruned_one(pipe):
    dense = captions().unet
    torch.manual_seed(0)
    control = diffusers.ControlNetModel.from_unet(dense, conditioning_embedding_out_channels=(4, 8))
    for weight in control.parameters():
        torch.nn.init.normal_(weight, std=0.2)  # its last convolutions start at zero
    x, words, picture = torch.randn(2, 4, 8, 8), torch.randn(2, 12, 16), torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        down, mid = control(x, 7, words, picture, return_dict=False)

    def call(unet):
        steered = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        return unet(x, 7, words, **steered).sample

    with torch.no_grad():
        found, alone = call(pipe.unet), pipe.unet(x, 7, words).sample
    expected = masked(dense, kept_by(pipe.unet, dense), call)
    assert float((found - alone).abs().max()) > 0.1
    # Sums over fewer channels, in float32.
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))


def ip_adapter(unet):
    """A random adapter of one picture vector, in the form of published files."""
    g = torch.Generator().manual_seed(1)

    def drawn(*shape):
        return torch.randn(shape, generator=g)

    state = {}
    attentions = [n.removesuffix(".processor") for n in unet.attn_processors if "attn2" in n]
    for number, name in enumerate(attentions):
        for leaf in ("to_k_ip", "to_v_ip"):  # numbered 1, 3, 5 ...
            width = unet.get_submodule(name).to_q.out_features
            state[f"{2 * number + 1}.{leaf}.weight"] = drawn(width, 16)
    projection = {"proj.weight": drawn(4 * 16, 8), "proj.bias": drawn(4 * 16)}
    projection |= {"norm.weight": torch.ones(16), "norm.bias": torch.zeros(16)}
    return {"image_proj": projection, "ip_adapter": state}


HOW = {"subfolder": "", "weight_name": "", "image_encoder_folder": None}


def test_an_ip_adapter_of_the_dense_model_fits_the_pruned_one(pipe):
    dense = captions()
    adapter = ip_adapter(dense.unet)
    keep = kept_by(pipe.unet, dense.unet)
    assert any(len(keep[u.name]) < u.size for u in units_of(dense.unet) if "attn2" in u.name)
    gates = [u for u in units_of(dense.unet) if u.name in keep]
    for made in (dense, pipe):
        cd.load_ip_adapter(made, adapter, **HOW)
    x, words = torch.randn(2, 4, 8, 8), torch.randn(2, 12, 16)
    picture = {"image_embeds": [torch.randn(2, 1, 8)]}

    def call(unet):
        return unet(x, 7, words, added_cond_kwargs=picture).sample

    silent = {u.name: torch.zeros(u.size).index_fill(0, keep[u.name], 1.0) for u in gates}
    with torch.no_grad(), gated(dense.unet, gates, silent):
        expected = call(dense.unet)
    with torch.no_grad():
        found = call(pipe.unet)
        picture = {"image_embeds": [torch.zeros(2, 1, 8)]}
        assert float((found - call(pipe.unet)).abs().max()) > 1e-3
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))


def test_pruning_asks_for_the_ip_adapter_to_be_unloaded():
    dense = captions()
    cd.load_ip_adapter(dense, ip_adapter(dense.unet), **HOW)
    with pytest.raises(CutError, match="unload_ip_adapter"):
        units_of(dense.unet)


def test_a_pruned_transformer_refuses_an_ip_adapter():
    model = Pipe(dense_copy("SD3Transformer2DModel"))
    prune(model, random_scores(units_of(model.transformer)), ratio=0.1, round_to=1)
    with pytest.raises(ConfigError, match="only onto pruned U-Nets"):
        cd.load_ip_adapter(model, {})
