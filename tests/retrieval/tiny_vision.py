"""Vision-language encoders with random weights and processors made without a network."""

from __future__ import annotations

from typing import Any

import torch

SPECIALS = {
    "colpali": ["<image>"],
    "colqwen2_5": ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>",
                   "<|im_start|>", "<|im_end|>", "<|endoftext|>"],
    "colidefics3": ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>",
                    "<|im_start|>",
                    *(f"<row_{r}_col_{c}>" for r in range(1, 5) for c in range(1, 5))],
}  # fmt: skip
SPECIALS["colqwen2"] = SPECIALS["colqwen2_5"]


def tokenizer_of(family: str) -> Any:
    """Bytes as tokens, and the family's own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
        special_tokens=["<pad>", "<bos>", "<eos>", *SPECIALS[family]],
    )  # fmt: skip
    inner.train_from_iterator(["describe the image", "query question"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>",
        extra_special_tokens=SPECIALS[family],
    )  # fmt: skip


def tiny_vision(family: str) -> tuple[Any, Any]:
    """Model and processor of a family."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return globals()[f"_{family}"](tokenizer_of(family))


def _colpali(tokenizer: Any) -> tuple[Any, Any]:
    from colpali_engine.models import ColPali, ColPaliProcessor
    from transformers import PaliGemmaConfig, SiglipImageProcessor

    images = SiglipImageProcessor(size={"height": 56, "width": 56})
    images.image_seq_length = 16
    processor = ColPaliProcessor(image_processor=images, tokenizer=tokenizer)
    text = dict(model_type="gemma", hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
                num_key_value_heads=1, head_dim=16, intermediate_size=96,
                vocab_size=len(tokenizer) + 2000)  # fmt: skip
    vision = dict(model_type="siglip_vision_model", hidden_size=32, num_hidden_layers=2,
                  num_attention_heads=2, intermediate_size=48, image_size=56, patch_size=14,
                  vision_use_head=False)  # fmt: skip
    config = PaliGemmaConfig(
        text_config=text, vision_config=vision, projection_dim=64,
        image_token_index=processor.image_token_id,
    )  # fmt: skip
    return ColPali(config), processor


def _qwen(tokenizer: Any, config_class: Any, vision: dict[str, Any]) -> tuple[Any, Any]:
    from transformers.models.qwen2_vl import Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    images = Qwen2VLImageProcessor(size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 20})
    parts = dict(image_processor=images, tokenizer=tokenizer,
                 video_processor=Qwen2VLVideoProcessor())  # fmt: skip
    rope = dict(rope_type="default", mrope_section=[2, 3, 3], rope_theta=10000.0)
    text = dict(hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
                intermediate_size=96, vocab_size=len(tokenizer), rope_parameters=rope)  # fmt: skip
    tokens = {
        f"{n}_token_id": tokenizer.convert_tokens_to_ids(t)
        for n, t in (("image", "<|image_pad|>"), ("video", "<|video_pad|>"),
                     ("vision_start", "<|vision_start|>"), ("vision_end", "<|vision_end|>"))
    }  # fmt: skip
    return config_class(text_config=text, vision_config=vision, **tokens), parts


def _colqwen2_5(tokenizer: Any) -> tuple[Any, Any]:
    from colpali_engine.models import ColQwen2_5, ColQwen2_5_Processor
    from transformers import Qwen2_5_VLConfig

    vision = dict(depth=2, hidden_size=32, intermediate_size=48, num_heads=2, out_hidden_size=64,
                  window_size=56, fullatt_block_indexes=[1])  # fmt: skip
    config, parts = _qwen(tokenizer, Qwen2_5_VLConfig, vision)
    return ColQwen2_5(config), ColQwen2_5_Processor(**parts)


def _colqwen2(tokenizer: Any) -> tuple[Any, Any]:
    from colpali_engine.models import ColQwen2, ColQwen2Processor
    from transformers import Qwen2VLConfig

    vision = dict(depth=2, embed_dim=32, hidden_size=64, num_heads=2, mlp_ratio=2)
    config, parts = _qwen(tokenizer, Qwen2VLConfig, vision)
    return ColQwen2(config), ColQwen2Processor(**parts)


def _colidefics3(tokenizer: Any) -> tuple[Any, Any]:
    from colpali_engine.models import ColIdefics3, ColIdefics3Processor
    from transformers import Idefics3Config, Idefics3ImageProcessor

    images = Idefics3ImageProcessor(size={"longest_edge": 112},
                                    max_image_size={"longest_edge": 56})  # fmt: skip
    processor = ColIdefics3Processor(images, tokenizer=tokenizer, image_seq_len=4)
    text = dict(model_type="llama", hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
                num_key_value_heads=2, intermediate_size=96, vocab_size=len(tokenizer),
                pad_token_id=0)  # fmt: skip
    vision = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
                  image_size=56, patch_size=14)  # fmt: skip
    config = Idefics3Config(
        text_config=text, vision_config=vision, scale_factor=2, pad_token_id=0,
        image_token_id=processor.image_token_id,
    )  # fmt: skip
    return ColIdefics3(config), processor
