"""FLOPs of torch operators that torch's own counter passes over: 2 per multiply-add.

Conventions are torch's (torch.utils.flop_counter): contractions only, a causal or masked attention
counts whole, a fused attention's backward recomputes the scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch

Shape = Sequence[int]

_aten = torch.ops.aten


def attention(query: Shape, key: Shape, value: Shape) -> int:
    """2 b h s_q s_k (d_q + d_v): scores and weighted sum, with the heads of the query.

    >>> attention((1, 2, 3, 8), (1, 2, 5, 8), (1, 2, 5, 4))
    720
    """
    scores = prod(query[:-1]) * key[-2]
    return 2 * scores * (query[-1] + value[-1])


def attention_backward(query: Shape, key: Shape, value: Shape) -> int:
    """2 b h s_q s_k (3 d_q + 2 d_v): the scores again, and gradients of both products."""
    scores = prod(query[:-1]) * key[-2]
    return 2 * scores * (3 * query[-1] + 2 * value[-1])


def _attention(query: Shape, key: Shape, value: Shape, *rest: Any, **named: Any) -> int:
    return attention(query, key, value)


def _attention_backward(
    upstream: Shape, query: Shape, key: Shape, value: Shape, *rest: Any, **named: Any
) -> int:
    return attention_backward(query, key, value)


def _matrix_vector(matrix: Shape, *rest: Any, **named: Any) -> int:
    return 2 * prod(matrix)


def _added_matrix_vector(bias: Shape, matrix: Shape, *rest: Any, **named: Any) -> int:
    return 2 * prod(matrix)


def _matrix_matrix(a: Shape, b: Shape, *rest: Any, **named: Any) -> int:
    return 2 * prod(a) * b[-1]


def _added_batches(bias: Shape, a: Shape, b: Shape, *rest: Any, **named: Any) -> int:
    return 2 * prod(a) * b[-1]


def _fast_attention(
    query: Shape, key: Shape, value: Shape, width: int, heads: int, *rest: Any, **named: Any
) -> int:
    """`nn.MultiheadAttention` in inference: four square projections and the attention."""
    batch, queries, keys = query[0], query[1], key[1]
    projections = 2 * batch * width * width * (2 * queries + 2 * keys)
    return projections + 4 * batch * queries * keys * width


def _fast_encoder_layer(
    source: Shape,
    width: int,
    heads: int,
    qkv_weight: Shape,
    qkv_bias: Shape,
    out_weight: Shape,
    out_bias: Shape,
    use_gelu: bool,
    norm_first: bool,
    eps: float,
    *rest: Any,
    **named: Any,
) -> int:
    """`nn.TransformerEncoderLayer` in inference: attention and two linear layers."""
    up: Shape = rest[4]  # after two layer norms of two tensors each
    feed_forward = 2 * prod(source[:-1]) * 2 * prod(up)
    return _fast_attention(source, source, source, width, heads) + feed_forward


_NAMES: dict[str, Callable[..., int]] = {
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
    "_scaled_dot_product_fused_attention_overrideable": _attention,
    "_scaled_dot_product_fused_attention_overrideable_backward": _attention_backward,
    "mv": _matrix_vector,
    "addmv": _added_matrix_vector,
    "dot": _matrix_vector,
    "vdot": _matrix_vector,
    "addbmm": _added_batches,
    "_int_mm": _matrix_matrix,
    "_native_multi_head_attention": _fast_attention,
    "_transformer_encoder_layer_fwd": _fast_encoder_layer,
}


def missing_formulas() -> dict[Any, Callable[..., int]]:
    """Formulas by operator, for `FlopCounterMode(custom_mapping=...)`.

    An operator for which this version of torch has a formula keeps torch's.
    """
    from torch.utils.flop_counter import flop_registry

    packets = {getattr(_aten, name, None): formula for name, formula in _NAMES.items()}
    return {p: f for p, f in packets.items() if p is not None and p not in flop_registry}
