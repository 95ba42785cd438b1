"""Tiny random pipelines of diffusers' own classes, made without any download."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import diffusers
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from ..core.architectures import ARCHITECTURES

_WORDS = ["<pad>", "<s>", "</s>", "<unk>", "a", "red", "blue", "cat", "dog", "three", "above"]
_EOS = _WORDS.index("</s>")


def tokenizer() -> Any:
    """Words, each a token, between <s> and </s>."""
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(_WORDS)}, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        model_max_length=8,
        **{"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"},
    )


def _clip(projected: bool = False) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=len(_WORDS),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        projection_dim=16,
        eos_token_id=_EOS,
        pad_token_id=0,
        bos_token_id=1,
    )
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return kind(config).eval()


def _t5(width: int = 16) -> Any:
    config = transformers.T5Config(
        vocab_size=len(_WORDS), d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2
    )
    return transformers.T5EncoderModel(config).eval()


def _vae(channels: int = 4) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(8,),
        latent_channels=channels,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        layers_per_block=1,
        **({"shift_factor": 0.1} if channels != 4 else {}),
    ).eval()


_UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 2,
}


WORDS = ("a", "red", "blue", "seven", "three", "above")


def _letters() -> Any:
    """CLIP's own tokenizer, which every pipeline folder can hold: WORDS letter by letter."""
    letters = sorted({c for w in WORDS for c in w})
    pieces = ["<|startoftext|>", "<|endoftext|>", *WORDS, *letters, *(f"{c}</w>" for c in letters)]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=12)


def _sd(scheduler: Any = None) -> Any:
    words = _letters()
    text = transformers.CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return diffusers.StableDiffusionPipeline(
        unet=ARCHITECTURES["UNet2DConditionModel SD"].build(),
        vae=_vae(),
        text_encoder=transformers.CLIPTextModel(text),
        tokenizer=words,
        scheduler=scheduler or diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl() -> Any:
    unet = diffusers.UNet2DConditionModel(
        cross_attention_dim=32,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
        use_linear_projection=True,
        **_UNET,
    )
    return diffusers.StableDiffusionXLPipeline(
        unet=unet,
        vae=_vae(),
        text_encoder=_clip(),
        text_encoder_2=_clip(projected=True),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        scheduler=diffusers.EulerDiscreteScheduler(),
        add_watermarker=False,
    )


def _sd3() -> Any:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        out_channels=4,
        pos_embed_max_size=8,
    )
    clips = {f"text_encoder{s}": _clip(projected=True) for s in ("", "_2")}
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        vae=_vae(),
        **clips,
        text_encoder_3=_t5(32),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        tokenizer_3=tokenizer(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )


def _flux() -> Any:
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(2, 2, 4),
        guidance_embeds=True,
    )
    return diffusers.FluxPipeline(
        transformer=transformer,
        vae=_vae(),
        text_encoder=_clip(),
        text_encoder_2=_t5(),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )


def _dit_options(layers: int = 1, heads: int = 2) -> dict[str, Any]:
    return {
        "sample_size": 8,
        "num_layers": layers,
        "patch_size": 2,
        "attention_head_dim": 8,
        "num_attention_heads": heads,
        "in_channels": 4,
        "out_channels": 8,
    }


def _pixart() -> Any:
    transformer = diffusers.PixArtTransformer2DModel(
        caption_channels=16, cross_attention_dim=16, **_dit_options()
    )
    return diffusers.PixArtAlphaPipeline(
        transformer=transformer,
        vae=_vae(),
        text_encoder=_t5(),
        tokenizer=tokenizer(),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )


def _dit(layers: int = 1, heads: int = 2) -> Any:
    return diffusers.DiTPipeline(
        transformer=diffusers.DiTTransformer2DModel(**_dit_options(layers, heads)),
        vae=_vae(),
        scheduler=diffusers.DDIMScheduler(),
        id2label={0: "cat", 1: "dog, hound"},
    )


def _sana() -> Any:
    transformer = diffusers.SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=8,
    )
    vae = diffusers.AutoencoderDC(
        latent_channels=4,
        encoder_block_types=("ResBlock", "ResBlock"),
        decoder_block_types=("ResBlock", "ResBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        scaling_factor=0.41,
    )
    config = transformers.Gemma2Config(
        vocab_size=len(_WORDS),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=_EOS,
    )
    return diffusers.SanaPipeline(
        transformer=transformer,
        vae=vae.eval(),
        text_encoder=transformers.Gemma2Model(config).eval(),
        tokenizer=tokenizer(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


_BUILD: dict[str, Callable[[], Any]] = {
    "SD": _sd,
    "SDXL": _sdxl,
    "SD3": _sd3,
    "Flux": _flux,
    "PixArt": _pixart,
    "DiT": _dit,
    "Sana": _sana,
}
# What these pipelines need for their random parts to run offline and small.
OPTIONS: dict[str, dict[str, Any]] = {
    "SD": {"guidance_rescale": 0.3},
    "SDXL": {"height": 8, "width": 8},
    "SD3": {"max_sequence_length": 8},
    "Flux": {"height": 8, "width": 8, "max_sequence_length": 8},
    "PixArt": {
        "height": 8,
        "width": 8,
        "clean_caption": False,
        "max_sequence_length": 8,
        "use_resolution_binning": False,
    },
    "DiT": {},
    "Sana": {
        "height": 32,
        "width": 32,
        "clean_caption": False,
        "complex_human_instruction": None,
        "max_sequence_length": 8,
        "use_resolution_binning": False,
    },
}
PIPELINES = tuple(_BUILD)


@lru_cache
def pipeline(name: str) -> Any:
    """A pipeline of a family, built once; copy it before changing it."""
    return _made(_BUILD[name])


def captions(seed: int = 0, scheduler: Any = None) -> Any:
    """A Stable Diffusion pipeline of WORDS, of its own."""
    return _made(lambda: _sd(scheduler), seed)


def classes(seed: int = 0) -> Any:
    """A DiT pipeline, conditioned on class numbers, of its own; more of it can go than of "DiT"."""
    return _made(lambda: _dit(layers=2, heads=4), seed)


def _made(build: Callable[[], Any], seed: int = 0) -> Any:
    torch.manual_seed(seed)
    made = build()
    made.set_progress_bar_config(disable=True)
    for component in made.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval()
    return made
