"""Fewer tokens out of many: dropped, fused or merged, always in their original order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.tokens import gather_tokens, keep_tokens

Method = Literal["drop", "evit", "merge", "utr"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """Both streams of a Vim between two blocks."""

    hidden: Float[Tensor, "b l d"]
    residual: Float[Tensor, "b l d"]
    cls: Int[Tensor, "b"]
    size: Float[Tensor, "b l"] | None = None  # tokens merged into each; None: one each
    valid: Bool[Tensor, "b l"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduced:
    """What is left of a stream; `index` says which tokens stand there now."""

    stream: Stream
    index: Int[Tensor, "b k"]


def _protected(score: Tensor, stream: Stream) -> Tensor:
    """Class tokens first, padding last."""
    if stream.valid is not None:
        score = score.masked_fill(~stream.valid, -torch.inf)
    return score.scatter(1, stream.cls[:, None], torch.inf)


def _cls_in(index: Int[Tensor, "b k"], cls: Int[Tensor, "b"]) -> Int[Tensor, "b"]:
    """Where each image's class token stands among the tokens of `index`."""
    return (index < cls[:, None]).sum(1)


def _pick(stream: Stream, index: Tensor) -> Stream:
    return Stream(
        hidden=gather_tokens(stream.hidden, index),
        residual=gather_tokens(stream.residual, index),
        cls=_cls_in(index, stream.cls),
        size=None if stream.size is None else stream.size.gather(1, index),
        valid=None if stream.valid is None else stream.valid.gather(1, index),
    )


def drop(stream: Stream, score: Float[Tensor, "b l"], count: int) -> Reduced:
    """The `count` best patch tokens and the class token."""
    index = keep_tokens(_protected(score, stream), count + 1)
    return Reduced(stream=_pick(stream, index), index=index)


def drop_ragged(
    stream: Stream, score: Float[Tensor, "b l"], share: float, least: int, most: int
) -> Reduced:
    """Image by image the best tokens that hold `share` of the image's scores together.

    Scores count from the lowest of the image on, so that they have no sign. Images that keep fewer
    than others are padded to the same length, behind their own tokens.
    """
    flat = score if stream.valid is None else score.masked_fill(~stream.valid, torch.inf)
    positive = (score - flat.amin(1, keepdim=True)).scatter(1, stream.cls[:, None], 0.0)
    if stream.valid is not None:
        positive = positive.masked_fill(~stream.valid, 0)
    best = positive.sort(dim=1, descending=True, stable=True).values.double()
    before = best.cumsum(1) - best
    wanted = (before < share * best.sum(1, keepdim=True) - 1e-12).sum(1)
    real = stream.hidden.shape[1] - 1 if stream.valid is None else stream.valid.sum(1) - 1
    wanted = wanted.clamp(least, most).minimum(torch.as_tensor(real, device=wanted.device))
    longest = int(wanted.max()) if len(wanted) else least
    index = keep_tokens(_protected(score, stream), longest + 1)
    # Of those `longest + 1`, the worst become padding: they move behind the others.
    ranked = _protected(score, stream).gather(1, index)
    rank = ranked.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    valid = rank <= wanted[:, None]
    if bool(valid.all()):
        return Reduced(stream=_pick(stream, index), index=index)
    order = (~valid).to(torch.int8).argsort(dim=1, stable=True)
    index, valid = index.gather(1, order), valid.gather(1, order)
    picked = Stream(
        hidden=gather_tokens(stream.hidden, index),
        residual=gather_tokens(stream.residual, index),
        cls=((index < stream.cls[:, None]) & valid).sum(1),
        valid=valid,
    )
    return Reduced(stream=picked, index=index)


def evit(stream: Stream, score: Float[Tensor, "b l"], count: int) -> Reduced:
    """As `drop`, but one more goes, and the dropped ones live on in one fused token.

    Their average by score (2202.07800, 3.2) takes the place of the best of them: a scan has an
    order, and this is the one place the fused token has a claim to. As many tokens as with `drop`.
    """
    if count < 2 or count + 1 >= stream.hidden.shape[1]:
        return drop(stream, score, count)
    ranked = _protected(score, stream)
    order = ranked.argsort(dim=1, descending=True, stable=True)
    index = order[:, : count + 1].sort(1).values  # the last of them becomes the fused token
    fused, rest = order[:, count : count + 1], order[:, count:]
    weight = score.gather(1, rest).float().softmax(1)[..., None]
    picked = _pick(stream, index)
    at = (index == fused).to(torch.int8).argmax(1)
    row = torch.arange(len(at), device=at.device)
    hidden, residual = picked.hidden.clone(), picked.residual.clone()
    hidden[row, at] = (gather_tokens(stream.hidden, rest) * weight).sum(1).to(hidden.dtype)
    residual[row, at] = (gather_tokens(stream.residual, rest) * weight).sum(1)
    stream = Stream(hidden=hidden, residual=residual, cls=picked.cls, size=picked.size)
    return Reduced(stream=stream, index=index)


def merge(stream: Stream, score: Float[Tensor, "b l"], count: int) -> Reduced:
    """Alike tokens merged in order (R-MeeTo, 2412.12496): no score, cosine of the hidden states.

    Every second patch token is matched with its most alike among the others; the pairs most alike
    become their average by size, at the place of the partner. At most half of the tokens go.
    Where the published code places the class token by proportion, it keeps its true place here.
    """
    patches = _patches(stream)
    a, b = patches[:, ::2], patches[:, 1::2]
    return _match(stream, a, b, count, dropped=0.0)


def utr(stream: Stream, score: Float[Tensor, "b l"], count: int) -> Reduced:
    """The less important half matched with the more important (UTR, 2410.14725, 4.2 and 4.3).

    Of the tokens that go, in the hidden states the half most alike is merged and the rest dropped;
    in the residual all are merged. At most half of the tokens go.
    """
    patches = _patches(stream)
    order = score.gather(1, patches).argsort(dim=1, descending=True, stable=True)
    middle = (patches.shape[1] + 1) // 2
    b = patches.gather(1, order[:, :middle]).sort(1).values
    a = patches.gather(1, order[:, middle:]).sort(1).values
    return _match(stream, a, b, count, dropped=0.5)


def _patches(stream: Stream) -> Int[Tensor, "b p"]:
    """Indices of the patch tokens of every image."""
    size = stream.hidden.shape[1]
    index = torch.arange(size, device=stream.hidden.device).expand(len(stream.cls), -1)
    other = torch.arange(size - 1, device=stream.hidden.device)
    return index.gather(1, other + (other >= stream.cls[:, None]).long())


def _match(
    stream: Stream, a: Int[Tensor, "b i"], b: Int[Tensor, "b j"], count: int, *, dropped: float
) -> Reduced:
    """The tokens of `a` that have the closest partner in `b` merge into it, or go."""
    away = min(a.shape[1] + b.shape[1] - count, a.shape[1])
    with torch.no_grad():
        alike = F.normalize(stream.hidden.float(), dim=-1)
        cosine = gather_tokens(alike, a) @ gather_tokens(alike, b).transpose(1, 2)
        closest, partner = cosine.max(-1)
        order = closest.argsort(dim=1, descending=True, stable=True)
        source = a.gather(1, order[:, :away])
        target = b.gather(1, partner.gather(1, order[:, :away]))
        stays = torch.cat([b, a.gather(1, order[:, away:]), stream.cls[:, None]], 1)
        index = stays.sort(1).values
    size = stream.size if stream.size is not None else torch.ones_like(stream.residual[..., 0])
    lost = round(dropped * away)
    kept = source[:, : away - lost], target[:, : away - lost]
    hidden, _ = _add(stream.hidden, size, *kept)
    residual, grown = _add(stream.residual, size, source, target)
    whole = Stream(hidden=hidden, residual=residual, cls=stream.cls, size=grown)
    return Reduced(stream=_pick(whole, index), index=index)


def _add(x: Tensor, size: Tensor, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Averages by size of every target with its sources, and the new sizes."""
    weighed = x * size[..., None].to(x.dtype)
    spread = target[..., None].expand(-1, -1, x.shape[-1])
    total = weighed.scatter_add(1, spread, gather_tokens(weighed, source))
    grown = size.scatter_add(1, target, size.gather(1, source))
    return total / grown[..., None].to(x.dtype), grown


METHODS: dict[Method, Callable[[Stream, Tensor, int], Reduced]] = {
    "drop": drop,
    "evit": evit,
    "merge": merge,
    "utr": utr,
}
