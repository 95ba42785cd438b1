"""Tiny Hugging Face model folders with a real tokenizer, made by the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

WORDS = ["the", "a", "cat", "dog", "house", "river", "runs", "sleeps", "over", "under"]
WORDS += ["green", "old", "and", "slowly", "quick"]
_SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "intermediate_size": 48,
}


def tokenizer(kind: str) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    extra = {} if kind == "decoder" else {"mask_token": "[MASK]", "cls_token": "[CLS]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", **extra
    )


def model(kind: str) -> Any:
    import transformers

    torch.manual_seed(0)
    if kind == "decoder":
        config = transformers.LlamaConfig(**_SIZES, num_key_value_heads=4, tie_word_embeddings=True)
        made = transformers.LlamaForCausalLM(config)
    elif kind == "encoder":
        made = transformers.BertModel(transformers.BertConfig(**_SIZES))
    elif kind == "masked":
        made = transformers.BertForMaskedLM(transformers.BertConfig(**_SIZES))
    elif kind == "classifier":
        made = transformers.BertForSequenceClassification(
            transformers.BertConfig(**_SIZES, num_labels=3)
        )
    else:
        config = transformers.ViTConfig(image_size=16, patch_size=8, **_SIZES)
        made = transformers.ViTModel(config)
    with torch.no_grad():
        for p in made.parameters():  # the library's own start is close to linear
            if p.dim() > 1:
                p.copy_(torch.randn_like(p) / p.shape[-1] ** 0.5)
    return made.eval()


def folder(path: Path, kind: str) -> Path:
    """A folder as a user has it; vision models have an image processor's file."""
    made = model(kind)
    made.save_pretrained(path)
    if kind == "vision":
        (path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.4, 0.3]}')
    else:
        tokenizer(kind).save_pretrained(path)
    return path


def text(path: Path, lines: int = 60) -> Path:
    g = torch.Generator().manual_seed(0)
    rows = []
    for i in range(lines):
        chosen = torch.randint(0, len(WORDS), (4 + i % 7,), generator=g)
        rows.append(" ".join(WORDS[j] for j in chosen))
    path.write_text("\n".join(rows) + "\n")
    return path


def images(path: Path, count: int = 6) -> Path:
    import numpy as np
    from PIL import Image

    path.mkdir()
    noise = np.random.default_rng(0)
    for i in range(count):
        pixels = noise.integers(0, 255, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"{i}.png")
    return path
