"""How much each token is attended to, beside fast attention that keeps no weights.

Fused attention returns no weights, and the eager kind costs layers x heads x n² floats. Here an
attention function computes the output as before and, in the layers asked for, the softmax again in
blocks of rows, of which only sums over rows remain.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ...errors import ConfigError
from ..config import SignalName

AttentionSaliency = Literal["indegree", "last_indegree", "last_row"]
_IMPLEMENTATION = "c3g_saliency"
_ROWS = 256  # of the attention matrix at once


@dataclass(slots=True, eq=False)
class Attended:
    """Collects saliency while a model runs: `results` are it, [B, n] each, 0 for padding.

    layers: those that count, by kind; of `last_row` only what the last valid token attends to.
    valid: tokens that are not padding.
    """

    layers: Mapping[AttentionSaliency, frozenset[int]]
    valid: Bool[Tensor, "b n"]
    _sums: dict[AttentionSaliency, list[Float[Tensor, "b n"]]] = field(default_factory=dict)

    def see(
        self,
        layer: int | None,
        query: Float[Tensor, "b h n d"],
        key: Float[Tensor, "b g n d"],
        mask: Tensor | None,
        causal: bool,
        scale: float | None,
    ) -> None:
        """Takes part of a layer's attention; layers of other towers are passed over."""
        same = (query.shape[0], query.shape[2]) == self.valid.shape == (len(key), key.shape[2])
        for kind, layers in self.layers.items():
            if layer in layers and same:
                rows = _last(self.valid) if kind == "last_row" else self.valid
                sums = mean_attention(query, key, rows, mask=mask, causal=causal, scale=scale)
                self._sums.setdefault(kind, []).append(sums)

    @property
    def results(self) -> dict[str, Float[Tensor, "b n"]]:
        """Mean over layers of each kind. Raises ConfigError when no layer could be seen."""
        if self.layers.keys() != self._sums.keys():
            raise ConfigError("this model's attention cannot be watched: use saliency norm")
        return {kind: torch.stack(s).mean(0) * self.valid for kind, s in self._sums.items()}


def mean_attention(
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b g n d"],
    rows: Bool[Tensor, "b n"],
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Float[Tensor, "b n"]:
    """Attention to each token: mean over heads and over those of the rows that may attend to it.

    a_j = 1/(H n_j) sum_{h, i} A_ij. Dividing by n_j and not by n keeps causal models from
    favouring early tokens. mask: boolean (True: may attend) or additive, [b or 1, 1 or h, n, n];
    causal counts without one. g divides h (grouped queries).
    """
    batch, heads, length, depth = query.shape
    key = key.repeat_interleave(heads // key.shape[1], 1) if key.shape[1] != heads else key
    scale = 1 / math.sqrt(depth) if scale is None else scale
    sums = torch.zeros(batch, length, device=query.device)
    counts = torch.zeros_like(sums)
    for first in range(0, length, _ROWS):
        block = slice(first, min(first + _ROWS, length))
        logits = (query[:, :, block] @ key.transpose(2, 3) * scale).float()
        allowed = _allowed(mask, causal, block, logits)
        if mask is not None and mask.dtype != torch.bool:
            logits = logits + mask[..., block, :].float()
        counted = rows[:, None, block, None] & allowed
        weights = logits.masked_fill(~allowed, -torch.inf).softmax(-1)
        sums += torch.where(counted, weights, 0.0).sum((1, 2))
        counts += counted.expand(batch, heads, -1, -1).sum((1, 2))
    return sums / counts.clamp(min=1)


def _allowed(
    mask: Tensor | None, causal: bool, block: slice, logits: Float[Tensor, "b h r n"]
) -> Bool[Tensor, "#b #h r n"]:
    """Which columns each row of the block may attend to."""
    if mask is None:
        allowed = torch.ones_like(logits[:1, :1], dtype=torch.bool)
        return allowed.tril(block.start) if causal else allowed
    part = mask[..., block, :]
    return part if part.dtype == torch.bool else part > torch.finfo(part.dtype).min / 2


def _last(valid: Bool[Tensor, "b n"]) -> Bool[Tensor, "b n"]:
    """Only the last valid token of each row."""
    place = torch.arange(valid.shape[1], device=valid.device).where(valid, -1)
    return place == place.amax(1, keepdim=True)


_watching: ContextVar[Attended | None] = ContextVar("watching", default=None)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    seen = _watching.get()
    if seen is not None:
        causal = options.get("is_causal")
        causal = getattr(module, "is_causal", True) if causal is None else causal
        layer = getattr(module, "layer_idx", None)
        seen.see(layer, query, key, attention_mask, bool(causal), options.get("scaling"))
    output: tuple[Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, **options
    )
    return output


def watched_layers(kind: AttentionSaliency, layers: int) -> frozenset[int]:
    """Middle third of so many layers for indegree, else the last.

    >>> sorted(watched_layers("indegree", 6)), sorted(watched_layers("last_row", 6))
    ([2, 3], [5])
    """
    if kind != "indegree":
        return frozenset({layers - 1})
    return frozenset(range(layers // 3, max(layers // 3 + 1, 2 * layers // 3)))


def attention_signals(signals: Sequence[SignalName]) -> tuple[AttentionSaliency, ...]:
    """Those of the signals that need the model's attention."""
    known: tuple[AttentionSaliency, ...] = get_args(AttentionSaliency)
    return tuple(kind for kind in known if kind in signals)


@contextmanager
def watch_attention(
    model: Any, valid: Bool[Tensor, "b n"], kinds: Sequence[AttentionSaliency]
) -> Iterator[Attended]:
    """Saliency of the tokens that the model is run on inside, its output unchanged to the bit.

    The model is a transformers model with fused attention (sdpa). Its attention is as before
    afterwards, whatever happens.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(_IMPLEMENTATION, _attention)
    AttentionMaskInterface.register(_IMPLEMENTATION, sdpa_mask)
    depth = model.config.get_text_config().num_hidden_layers
    seen = Attended({kind: watched_layers(kind, depth) for kind in kinds}, valid)
    before = _implementations(model.config)
    token = _watching.set(seen)
    try:
        model.set_attn_implementation(_IMPLEMENTATION)
        yield seen
    finally:
        _watching.reset(token)
        model.set_attn_implementation(before)


def _implementations(config: Any) -> dict[str, str]:
    """The attention of a configuration, "", and of its parts."""
    parts: Sequence[str] = tuple(getattr(config, "sub_configs", {}) or {})
    found = {n: getattr(config, n)._attn_implementation for n in parts if getattr(config, n, None)}
    return {"": config._attn_implementation, **found}
