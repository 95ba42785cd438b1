"""A dense model's LoRA on the pruned model computes what the merged and pruned model does."""

from __future__ import annotations

import pytest
import torch

import compress3g.diffusion as cd
from compress3g.diffusion.lora import sliced
from compress3g.diffusion.prune import prune
from compress3g.diffusion.units import units_of
from compress3g.errors import ConfigError

from .tiny import Pipe, captions, dense_copy, random_scores

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "conv1", "conv2"]
# peft guesses at names that diffusers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def lora_file(tmp_path_factory):
    """A LoRA of the dense U-Net whose scale, 1.5, is told by the file's metadata alone."""
    import diffusers
    import peft
    from peft.utils import get_peft_model_state_dict

    folder, pipe = tmp_path_factory.mktemp("lora"), captions()
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS)
    pipe.unet.add_adapter(config)
    g = torch.Generator().manual_seed(0)
    for name, weight in pipe.unet.named_parameters():
        if "lora_B" in name:
            weight.data = 0.2 * torch.randn(weight.shape, generator=g)
    diffusers.StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=get_peft_model_state_dict(pipe.unet),
        unet_lora_adapter_metadata=config.to_dict() | {"target_modules": TARGETS},
    )
    return folder / "pytorch_lora_weights.safetensors"


def latents(pipe):
    return cd.generate(pipe, ["a blue three"], steps=2, output="latent")


def scores():
    return random_scores(units_of(captions().unet), 5)


def test_pruned_with_the_lora_equals_merged_and_pruned(lora_file):
    merged = captions()
    plain = latents(merged)
    merged.load_lora_weights(str(lora_file))
    merged.fuse_lora()
    merged.unload_lora_weights()
    prune(merged, scores(), ratio=0.25, round_to=4)

    pruned = captions()
    prune(pruned, scores(), ratio=0.25, round_to=4)
    without = latents(pruned)
    cd.load_lora(pruned, lora_file)
    expected, found = latents(merged), latents(pruned)
    assert float((found - without).abs().max()) > 1e-2 < float((plain - expected).abs().max())
    # W x + B A x against (W + B A) x: rounding of float32, over two steps.
    assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()) * 5)


def test_on_a_dense_pipeline_it_is_what_diffusers_does(lora_file):
    ours, theirs = captions(), captions()
    cd.load_lora(ours, lora_file)
    theirs.load_lora_weights(str(lora_file))
    assert torch.equal(latents(ours), latents(theirs))


def small():
    model = dense_copy("SD3Transformer2DModel")
    prune(Pipe(model), random_scores(units_of(model)), ratio=0.2, round_to=1)
    return model


@pytest.mark.parametrize(
    ("down", "up"),
    [
        ("to_q.lora_A.weight", "to_q.lora_B.weight"),
        ("to_q.lora.down.weight", "to_q.lora.up.weight"),
        ("processor.to_q_lora.down.weight", "processor.to_q_lora.up.weight"),
    ],
)
def test_all_forms_of_names_are_read(down, up):
    model, place = small(), "transformer.transformer_blocks.0.attn."
    state = {
        place + down: torch.randn(2, 32),
        place + up: torch.randn(32, 2),
        "text.x": torch.ones(3),
    }
    made = sliced(state, model, "transformer.")
    assert made[place + up].shape[0] == model.transformer_blocks[0].attn.to_q.out_features < 32
    assert made[place + down].shape == (2, 32)
    assert made["text.x"] is state["text.x"]


@pytest.mark.parametrize(
    ("key", "shape", "says"),
    [
        ("transformer_blocks.7.attn.to_q.lora_A.weight", (2, 32), "no transformer_blocks.7"),
        ("transformer_blocks.0.attn.to_q.lora_B.weight", (64, 2), "has 64 channels"),
        ("transformer_blocks.0.attn.to_q.lora_A.weight", (2, 64), "has 64 channels"),
        ("transformer_blocks.0.attn.to_q.lora_magnitude_vector", (32,), "DoRA"),
        ("transformer_blocks.0.attn.to_q.weight", (32, 32), "no name of a LoRA"),
    ],
)
def test_a_lora_of_another_base_is_refused(key, shape, says):
    with pytest.raises(ConfigError, match=says):
        sliced({f"transformer.{key}": torch.ones(shape)}, small(), "transformer.")
