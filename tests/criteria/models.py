"""A tiny grouped-query decoder with everything a criterion looks at: units, batches, a loss."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress3g.core import Units, price
from compress3g.criteria import CRITERIA, gather, score
from compress3g.transformer import units_of


@dataclass(frozen=True)
class Batch:
    ids: Tensor
    mask: Tensor


@lru_cache
def _blank() -> Any:
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        intermediate_size=20,
    )
    return transformers.LlamaForCausalLM(config).eval()


def decoder(seed: int = 0) -> Any:
    """Random weights large enough that nothing is close to linear or to zero."""
    import copy

    model, g = copy.deepcopy(_blank()), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.copy_(torch.randn(p.shape, generator=g) * (1 / p.shape[1] ** 0.5))
    return model


def priced(model: nn.Module) -> list[Units]:
    units = units_of(model, depth=True)
    return price(model, [u for u in units if u.bypass is None])


def samples(count: int = 32, *, seed: int = 0, length: int = 10, padding: int = 0) -> list[Batch]:
    """One sample each; the last ones are shorter than `length`."""
    g = torch.Generator().manual_seed(seed + 1)
    made = []
    for i in range(count):
        ids = F.pad(torch.randint(3, 60, (1, length), generator=g), (0, padding), value=i % 60)
        mask = torch.ones_like(ids)
        if i % 3 == 0:
            mask[:, length - 3 :] = 0
        mask[:, length:] = 0
        made.append(Batch(ids, mask))
    return made


def joined(batches: list[Batch], size: int) -> list[Batch]:
    return [
        Batch(
            torch.cat([b.ids for b in batches[i : i + size]]),
            torch.cat([b.mask for b in batches[i : i + size]]),
        )
        for i in range(0, len(batches), size)
    ]


def run(model: nn.Module, batch: Batch) -> Any:
    return model(input_ids=batch.ids, attention_mask=batch.mask)


def valid(batch: Batch) -> Tensor:
    return batch.mask.bool()


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean over samples of the mean over their tokens."""
    logits = run(model, batch).logits[:, :-1]
    labels = batch.ids[:, 1:].masked_fill(batch.mask[:, 1:] == 0, -100)
    each = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=-100)
    return (each.sum(1) / (labels != -100).sum(1)).mean()


def scores_of(name: str, model: nn.Module, batches: list[Batch], *, steps: int = 40) -> Any:
    """The scores of a criterion of the table."""
    from compress3g.core import Budget

    model.requires_grad_(False)
    evidence = gather(
        model,
        priced(model),
        [CRITERIA[name]],
        batches,
        loss=loss,
        run=run,
        valid=valid,
        generator=torch.Generator().manual_seed(0),
        budget=Budget(0.6),
        steps=steps,
    )
    return score(CRITERIA[name], evidence)[0]
