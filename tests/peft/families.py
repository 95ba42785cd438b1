"""Tiny random models of many families, and one forward pass of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
}
TEXT = {**SIZES, "vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = {**TEXT, "num_key_value_heads": 2}
VISION = {**SIZES, "image_size": 16, "patch_size": 8}


def _text(name: str, config: str, **options: Any) -> Callable[[], Any]:
    def build() -> Any:
        import transformers

        made = getattr(transformers, config)(**options)
        return getattr(transformers, name)(made)

    return build


def _idefics3() -> Any:
    import transformers

    text = {"model_type": "llama", **GROUPED}
    config = transformers.Idefics3Config(
        text_config=text, vision_config=VISION, image_token_id=5, scale_factor=1
    )
    return transformers.Idefics3ForConditionalGeneration(config)


def _paligemma() -> Any:
    import transformers

    config = transformers.PaliGemmaConfig(
        text_config={"model_type": "gemma", **GROUPED, "head_dim": 8},
        vision_config={"model_type": "siglip_vision_model", "projection_dim": 32, **VISION},
        image_token_index=5,
        projection_dim=32,
    )
    return transformers.PaliGemmaForConditionalGeneration(config)


def _pair(name: str) -> Callable[[], Any]:
    def build() -> Any:
        import transformers

        config = getattr(transformers, f"{name}Config")
        made = config(text_config=TEXT, vision_config=VISION, projection_dim=16)
        return getattr(transformers, f"{name}Model")(made)

    return build


FAMILIES: dict[str, Callable[[], Any]] = {
    "bert": _text("BertModel", "BertConfig", **TEXT),
    "roberta": _text("RobertaModel", "RobertaConfig", **TEXT),
    "distilbert": _text(
        "DistilBertModel",
        "DistilBertConfig",
        vocab_size=60,
        dim=32,
        n_layers=2,
        n_heads=4,
        hidden_dim=24,
    ),
    "modernbert": _text(
        "ModernBertModel", "ModernBertConfig", **TEXT, cls_token_id=1, sep_token_id=2
    ),
    "opt": _text(
        "OPTForCausalLM",
        "OPTConfig",
        vocab_size=60,
        hidden_size=32,
        ffn_dim=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=32,
    ),
    "gpt2": _text(
        "GPT2LMHeadModel",
        "GPT2Config",
        vocab_size=60,
        n_embd=32,
        n_layer=2,
        n_head=4,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "llama": _text("LlamaForCausalLM", "LlamaConfig", **GROUPED),
    "qwen2": _text("Qwen2ForCausalLM", "Qwen2Config", **GROUPED),
    "qwen3": _text("Qwen3ForCausalLM", "Qwen3Config", **GROUPED, head_dim=8),
    "mistral": _text("MistralForCausalLM", "MistralConfig", **GROUPED),
    "gemma2": _text("Gemma2ForCausalLM", "Gemma2Config", **GROUPED, head_dim=8),
    "phi3": _text("Phi3ForCausalLM", "Phi3Config", **GROUPED),
    "siglip": _pair("Siglip"),
    "clip": _pair("CLIP"),
    "vit": _text("ViTModel", "ViTConfig", **VISION),
    "dinov2": _text(
        "Dinov2Model",
        "Dinov2Config",
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=16,
        patch_size=8,
    ),
    "idefics3": _idefics3,
    "paligemma": _paligemma,
}
BOTH_TOWERS = ("siglip", "clip", "idefics3", "paligemma")


def build(name: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = FAMILIES[name]()
    with torch.no_grad():
        for p in model.parameters():  # the library's own start is close to linear
            if p.dim() > 1:
                p.copy_(torch.randn_like(p) / p.shape[-1] ** 0.5)
    return model.eval()


def inputs(name: str, seed: int = 1) -> dict[str, torch.Tensor]:
    """A batch of two, the first padded where there is text."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(6, 60, (2, 9), generator=g)
    mask = torch.ones_like(ids)
    pixels = torch.randn(2, 3, 16, 16, generator=g)
    if name in ("vit", "dinov2"):
        return {"pixel_values": pixels}
    if name in ("idefics3", "paligemma"):
        ids[:, :4] = 5  # four patches
        pixels = pixels[:, None] if name == "idefics3" else pixels
        return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}
    mask[0, 6:] = 0
    if name == "siglip":
        return {"input_ids": ids, "pixel_values": pixels}
    if name == "clip":
        ids[:, -1] = 2
        return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}
    return {"input_ids": ids, "attention_mask": mask}


def output(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Everything that any of the towers says, side by side, without padding."""
    out = model(**batch)
    parts = [
        getattr(out, key)
        for key in ("logits", "last_hidden_state", "text_embeds", "image_embeds")
        if getattr(out, key, None) is not None
    ]
    mask = batch.get("attention_mask")
    if parts[0].dim() == 3 and mask is not None and parts[0].shape[:2] == mask.shape:
        parts = [parts[0][mask.bool()]]
    return torch.cat([p.reshape(-1).float() for p in parts])
