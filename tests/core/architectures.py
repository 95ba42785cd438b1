"""Tiny random models of the classes that users have, each with its Units and a way to run it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from compress3g.core import Cut, Units


@dataclass(frozen=True)
class Architecture:
    """`build` makes the model, `run` gives one output from a seeded input of `batch` rows."""

    build: Callable[[], nn.Module]
    units_of: Callable[[nn.Module], Sequence[Units]]
    run: Callable[[nn.Module, int], Tensor]


def _noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def _tokens(batch: int) -> dict[str, Tensor]:
    ids = torch.randint(3, 50, (batch, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[-1, 6:] = 0
    return {"input_ids": ids, "attention_mask": mask}


_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
}


def _transformer(name: str, config: str, **options: Any) -> Architecture:
    def build() -> nn.Module:
        import transformers

        made = getattr(transformers, config)(**{**_SIZES, **options})
        return getattr(transformers, name)(made).eval()

    def run(model: nn.Module, batch: int) -> Tensor:
        if "pixel_values" in model.main_input_name:
            out = model(pixel_values=_noise(batch, 3, 16, 16))
            return torch.cat([out.last_hidden_state.flatten(1), out.pooler_output], 1)
        return model(**_tokens(batch))[0]

    def units_of(model: nn.Module) -> list[Units]:
        from compress3g.transformer import units_of

        return units_of(model, depth=name.startswith(("Llama", "Bert")))

    return Architecture(build, units_of, run)


def _diffusers(name: str, run: Callable[[nn.Module, int], Tensor], **config: Any) -> Architecture:
    def build() -> nn.Module:
        import diffusers

        return getattr(diffusers, name)(**config).eval()

    def units_of(model: nn.Module) -> list[Units]:
        from compress3g.diffusion import units_of

        return units_of(model)

    return Architecture(build, units_of, run)


def _unet(model: nn.Module, batch: int) -> Tensor:
    return model(_noise(batch, 4, 8, 8), 7, _noise(batch, 5, 16)).sample


def _sdxl(model: nn.Module, batch: int) -> Tensor:
    added = {"text_embeds": _noise(batch, 16), "time_ids": _noise(batch, 6)}
    context = _noise(batch, 5, 16)
    return model(_noise(batch, 4, 8, 8), 7, context, added_cond_kwargs=added).sample


def _sd3(model: nn.Module, batch: int) -> Tensor:
    return model(
        hidden_states=_noise(batch, 4, 8, 8),
        encoder_hidden_states=_noise(batch, 5, 16),
        pooled_projections=_noise(batch, 16),
        timestep=torch.full((batch,), 7),
    ).sample


def _flux(model: nn.Module, batch: int) -> Tensor:
    return model(
        hidden_states=_noise(batch, 6, 4),
        encoder_hidden_states=_noise(batch, 5, 16),
        pooled_projections=_noise(batch, 16),
        timestep=torch.full((batch,), 0.5),
        img_ids=torch.zeros(6, 3),
        txt_ids=torch.zeros(5, 3),
    ).sample


def _classes(model: nn.Module, batch: int) -> Tensor:
    steps = torch.full((batch,), 7)
    return model(_noise(batch, 4, 8, 8), timestep=steps, class_labels=torch.arange(batch)).sample


def _captioned(model: nn.Module, batch: int) -> Tensor:
    mask = torch.ones(batch, 5)
    mask[-1, 3:] = 0
    options: dict[str, Any] = {"timestep": torch.full((batch,), 7), "encoder_attention_mask": mask}
    if "PixArt" in type(model).__name__:
        options["added_cond_kwargs"] = {"resolution": None, "aspect_ratio": None}
    context = _noise(batch, 5, 16)
    return model(_noise(batch, 4, 8, 8), encoder_hidden_states=context, **options).sample


def _mamba() -> Architecture:
    def build() -> nn.Module:
        import transformers

        config = transformers.MambaConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=2, state_size=4
        )
        return transformers.MambaModel(config).eval()

    def units_of(model: nn.Module) -> list[Units]:
        from compress3g.mamba import units_of

        return units_of(model)

    return Architecture(build, units_of, lambda m, b: m(_tokens(b)["input_ids"])[0])


def _conv_chain() -> Architecture:
    """conv-BN-ReLU twice, a depthwise convolution, and a linear layer after flattening."""

    def build() -> nn.Module:
        parts = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6)),
            *(nn.ReLU(), nn.ConvTranspose2d(6, 5, 2), nn.Flatten(), nn.Linear(5 * 25, 7)),
        )
        for norm in (parts[1], parts[5]):
            norm.running_mean.copy_(_noise(norm.num_features))
            norm.running_var.copy_(_noise(norm.num_features).square() + 0.5)
        return parts.eval()

    def units_of(model: nn.Module) -> list[Units]:
        # The depthwise convolution lies between: it is cut with the channels it carries.
        carried = tuple(Cut(name, "out") for name in ("0", "1", "3"))
        first = Units("first", 8, writes=carried, reads=(Cut("4", "in"),))
        last = Units("last", 5, writes=(Cut("7", "out"),), reads=(Cut("9", "in", chunk=25),))
        return [first, last]

    return Architecture(build, units_of, lambda m, b: m(_noise(b, 3, 6, 6)))


def _lora() -> Architecture:
    def build() -> nn.Module:
        import peft
        import transformers

        config = transformers.LlamaConfig(vocab_size=50, num_key_value_heads=2, **_SIZES)
        lora = peft.LoraConfig(r=6, lora_alpha=9, target_modules=["q_proj", "down_proj"])
        model = peft.get_peft_model(transformers.LlamaForCausalLM(config), lora).eval()
        for name, weight in model.named_parameters():
            if "lora_B" in name and not weight.is_meta:  # zeros at first: nothing to test
                nn.init.normal_(weight, std=0.3)
        return model

    def units_of(model: nn.Module) -> list[Units]:
        from compress3g.peft import units_of

        return units_of(model)

    return Architecture(build, units_of, lambda m, b: m(**_tokens(b))[0])


_UNET = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 16,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
_DIT = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "num_attention_heads": 4,
    "attention_head_dim": 8,
}
ARCHITECTURES: dict[str, Architecture] = {
    "UNet2DConditionModel SD": _diffusers(
        "UNet2DConditionModel", _unet, attention_head_dim=4, **_UNET
    ),
    "UNet2DConditionModel SDXL": _diffusers(
        "UNet2DConditionModel",
        _sdxl,
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
        **_UNET,
    ),
    "SD3Transformer2DModel": _diffusers(
        "SD3Transformer2DModel",
        _sd3,
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=16,
        caption_projection_dim=32,
        pooled_projection_dim=16,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    ),
    "FluxTransformer2DModel": _diffusers(
        "FluxTransformer2DModel",
        _flux,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(2, 2, 4),
    ),
    "DiTTransformer2DModel": _diffusers(
        "DiTTransformer2DModel", _classes, num_embeds_ada_norm=10, **_DIT
    ),
    "PixArtTransformer2DModel": _diffusers(
        "PixArtTransformer2DModel", _captioned, cross_attention_dim=32, caption_channels=16, **_DIT
    ),
    "SanaTransformer2DModel": _diffusers(
        "SanaTransformer2DModel",
        _captioned,
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=4,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=16,
    ),
    "BertModel": _transformer("BertModel", "BertConfig", vocab_size=50),
    "RobertaModel": _transformer("RobertaModel", "RobertaConfig", vocab_size=50),
    "LlamaForCausalLM": _transformer(
        "LlamaForCausalLM", "LlamaConfig", vocab_size=50, num_key_value_heads=2
    ),
    "ViTModel": _transformer("ViTModel", "ViTConfig", image_size=16, patch_size=8),
    "SiglipVisionModel": _transformer(
        "SiglipVisionModel", "SiglipVisionConfig", image_size=16, patch_size=8
    ),
    "MambaModel": _mamba(),
    "conv-BN chain": _conv_chain(),
    "LoRA of LlamaForCausalLM": _lora(),
}


@lru_cache
def dense(name: str) -> nn.Module:
    """The model of an architecture, built once; copy it before surgery."""
    torch.manual_seed(0)
    return ARCHITECTURES[name].build()
