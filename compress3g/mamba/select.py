"""Fewer tokens out of many: dropped, fused or merged, always in their original order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.tokens import gather_tokens, keep_tokens
from ..errors import ConfigError

Method = Literal["drop", "evit", "merge", "utr", "ward"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """Tokens between two blocks: of Vim hidden states and residual, of PlainMamba one stream."""

    parts: tuple[Float[Tensor, "b l d"], ...]
    cls: Int[Tensor, "b"] | None = None  # where each image's class token stands
    size: Float[Tensor, "b l"] | None = None  # tokens merged into each; None: one each
    valid: Bool[Tensor, "b l"] | None = None

    @property
    def tokens(self) -> int:
        """Class token and padding included."""
        return self.parts[0].shape[1]

    @property
    def extra(self) -> int:
        """Tokens that never go."""
        return 0 if self.cls is None else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduced:
    """What is left of a stream; `index` says which tokens stand there now."""

    stream: Stream
    index: Int[Tensor, "b k"]


def _protected(score: Tensor, stream: Stream) -> Tensor:
    """Class tokens first, padding last."""
    if stream.valid is not None:
        score = score.masked_fill(~stream.valid, -torch.inf)
    return score if stream.cls is None else score.scatter(1, stream.cls[:, None], torch.inf)


def _pick(stream: Stream, index: Tensor) -> Stream:
    return Stream(
        parts=tuple(gather_tokens(part, index) for part in stream.parts),
        cls=None if stream.cls is None else (index < stream.cls[:, None]).sum(1),
        size=None if stream.size is None else stream.size.gather(1, index),
        valid=None if stream.valid is None else stream.valid.gather(1, index),
    )


def drop(stream: Stream, score: Float[Tensor, "b l"], count: int) -> Reduced:
    """The `count` best patch tokens and the class token."""
    index = keep_tokens(_protected(score, stream), count + stream.extra)
    return Reduced(stream=_pick(stream, index), index=index)


def drop_ragged(
    stream: Stream, score: Float[Tensor, "b l"], share: float, least: int, most: int
) -> Reduced:
    """Image by image the best tokens that hold `share` of the image's scores together.

    Scores count from the lowest of the image on, so that they have no sign. Images that keep fewer
    than others are padded to the same length, behind their own tokens.
    """
    assert stream.cls is not None
    flat = score if stream.valid is None else score.masked_fill(~stream.valid, torch.inf)
    positive = (score - flat.amin(1, keepdim=True)).scatter(1, stream.cls[:, None], 0.0)
    if stream.valid is not None:
        positive = positive.masked_fill(~stream.valid, 0)
    best = positive.sort(dim=1, descending=True, stable=True).values.double()
    before = best.cumsum(1) - best
    wanted = (before < share * best.sum(1, keepdim=True) - 1e-12).sum(1)
    real = stream.tokens - 1 if stream.valid is None else stream.valid.sum(1) - 1
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
        parts=tuple(gather_tokens(part, index) for part in stream.parts),
        cls=((index < stream.cls[:, None]) & valid).sum(1),
        valid=valid,
    )
    return Reduced(stream=picked, index=index)


def evit(stream: Stream, score: Float[Tensor, "b l"], count: int) -> Reduced:
    """As `drop`, but one more goes, and the dropped ones live on in one fused token.

    Their average, weighed in proportion to their scores (2202.07800, 3.2), takes the place of the
    best of them: a scan has an order, and this is the one place the fused token has a claim to.
    Where one of their scores is negative, which attention never is, all count from the lowest on.
    As many tokens as with `drop`.
    """
    if count < 2 or count + stream.extra >= stream.tokens:
        return drop(stream, score, count)
    count += stream.extra
    order = _protected(score, stream).argsort(dim=1, descending=True, stable=True)
    index = order[:, :count].sort(1).values  # the worst of them becomes the fused token
    fused, rest = order[:, count - 1 : count], order[:, count - 1 :]
    weight = score.gather(1, rest).float()
    weight = weight - weight.amin(1, keepdim=True).clamp_max(0)
    weight = weight + torch.finfo(weight.dtype).tiny  # alike where no score is above the lowest
    weight = (weight / weight.sum(1, keepdim=True))[..., None]
    picked = _pick(stream, index)
    at = (index == fused).to(torch.int8).argmax(1)
    row = torch.arange(len(at), device=at.device)
    parts = [part.clone() for part in picked.parts]
    for part, whole in zip(parts, stream.parts, strict=True):
        part[row, at] = (gather_tokens(whole, rest) * weight).sum(1).to(part.dtype)
    return Reduced(stream=replace(picked, parts=tuple(parts)), index=index)


def merge(stream: Stream, score: Float[Tensor, "b l"], count: int) -> Reduced:
    """Alike tokens merged in order (R-MeeTo, 2412.12496): no score, cosine of the hidden states.

    Every second patch token is matched with its most alike among the others; the pairs most alike
    become their average by size, at the place of the partner. At most half of the tokens go.
    Where the published code places the class token by proportion, it keeps its true place here.
    """
    patches = _patches(stream)
    a, b = patches[:, ::2], patches[:, 1::2]
    return _match(stream, a, b, count, dropped=0.0, gain=_cosine)


def utr(stream: Stream, score: Float[Tensor, "b l"], count: int) -> Reduced:
    """The less important half matched with the more important (UTR, 2410.14725, 4.2 and 4.3).

    Of the tokens that go, in the hidden states the half most alike is merged and the rest dropped;
    in the residual, or the only stream, all are merged. At most half of the tokens go.
    """
    patches = _patches(stream)
    order = score.gather(1, patches).argsort(dim=1, descending=True, stable=True)
    middle = (patches.shape[1] + 1) // 2
    b = patches.gather(1, order[:, :middle]).sort(1).values
    a = patches.gather(1, order[:, middle:]).sort(1).values
    return _match(stream, a, b, count, dropped=0.5, gain=_cosine)


def ward(stream: Stream, score: Float[Tensor, "b l"], count: int) -> Reduced:
    """The pairs whose merging loses least, in order; no score.

        loss(a, b) = s_a s_b / (s_a + s_b) |x_a - x_b|^2     (Ward 1963)

    x: the sum of all parts, what the next block reads; s: the tokens that each stands for. This is
    by how much the squares around averages grow, so that what already stands for many merges last.
    As in `merge` every second patch token is matched with one of the others, and at most half go.
    """
    patches = _patches(stream)
    return _match(stream, patches[:, ::2], patches[:, 1::2], count, dropped=0.0, gain=_ward)


def centred(stream: Stream) -> tuple[Stream, Int[Tensor, "b k"]]:
    """The class token between two halves of the others, and which token stands where now."""
    assert stream.cls is not None
    middle = (stream.tokens - 1) // 2
    place = torch.arange(stream.tokens, device=stream.cls.device).expand(len(stream.cls), -1)
    other = place - (place > middle).long()  # its place among the others
    other = other + (other >= stream.cls[:, None]).long()
    order = torch.where(place == middle, stream.cls[:, None], other)
    moved = Stream(
        parts=tuple(gather_tokens(part, order) for part in stream.parts),
        cls=torch.full_like(stream.cls, middle),
        size=None if stream.size is None else stream.size.gather(1, order),
    )
    return moved, order


def _patches(stream: Stream) -> Int[Tensor, "b p"]:
    """Indices of the patch tokens of every image."""
    first = stream.parts[0]
    other = torch.arange(stream.tokens - stream.extra, device=first.device)
    if stream.cls is None:
        return other.expand(len(first), -1)
    return other + (other >= stream.cls[:, None]).long()


def _cosine(stream: Stream, a: Tensor, b: Tensor) -> Float[Tensor, "b i j"]:
    """Of the first part: in a Vim the hidden states."""
    alike = F.normalize(stream.parts[0].float(), dim=-1)
    return gather_tokens(alike, a) @ gather_tokens(alike, b).transpose(1, 2)


def _ward(stream: Stream, a: Tensor, b: Tensor) -> Float[Tensor, "b i j"]:
    first, *rest = stream.parts
    whole = sum(rest, first.float())
    x, y = gather_tokens(whole, a), gather_tokens(whole, b)
    squares = x.square().sum(-1)[:, :, None] + y.square().sum(-1)[:, None]
    apart = squares - 2 * (x @ y.transpose(1, 2))
    if stream.size is None:
        return -apart
    n, m = stream.size.gather(1, a)[:, :, None], stream.size.gather(1, b)[:, None]
    return -apart * (n * m / (n + m))


def _match(
    stream: Stream,
    a: Int[Tensor, "b i"],
    b: Int[Tensor, "b j"],
    count: int,
    *,
    dropped: float,
    gain: Callable[[Stream, Tensor, Tensor], Tensor],
) -> Reduced:
    """The tokens of `a` whose pair with one of `b` gains most merge into it, or go.

    Raises ConfigError where more would have to go than `a` holds.
    """
    patches = a.shape[1] + b.shape[1]
    away = patches - count
    if away > a.shape[1]:
        raise ConfigError(
            f"merging lets at most half of the tokens go at a point, {count} of {patches} would be "
            "left: keep more, or prune at more blocks"
        )
    with torch.no_grad():
        closest, partner = gain(stream, a, b).max(-1)
        order = closest.argsort(dim=1, descending=True, stable=True)
        source = a.gather(1, order[:, :away])
        target = b.gather(1, partner.gather(1, order[:, :away]))
        stays = [b, a.gather(1, order[:, away:])]
        if stream.cls is not None:
            stays.append(stream.cls[:, None])
        index = torch.cat(stays, 1).sort(1).values
    last = stream.parts[-1]
    size = stream.size if stream.size is not None else torch.ones_like(last[..., 0])
    lost = round(dropped * away) if len(stream.parts) > 1 else 0
    kept = source[:, : away - lost], target[:, : away - lost]
    first = [_add(part, size, *kept)[0] for part in stream.parts[:-1]]
    residual, grown = _add(last, size, source, target)
    whole = Stream(parts=(*first, residual), cls=stream.cls, size=grown)
    return Reduced(stream=_pick(whole, index), index=index)


def _add(x: Tensor, size: Tensor, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Averages by size of every target with its sources, and the new sizes."""
    weighed = x * size[..., None].to(x.dtype)
    first = torch.arange(len(x), device=x.device)[:, None] * x.shape[1]
    given = gather_tokens(weighed, source).flatten(0, 1)
    total = weighed.flatten(0, 1).index_add(0, (first + target).flatten(), given).view_as(x)
    grown = size.scatter_add(1, target, size.gather(1, source))
    return total / grown[..., None].to(x.dtype), grown


def pairs(method: Method, patches: int) -> int:
    """How many pairs of tokens a method compares, to let any of so many go."""
    return (patches // 2) * (patches - patches // 2) if method in MERGING else 0


# Methods after which a token may stand for several, and those of them that need no score.
MERGING: tuple[Method, ...] = ("merge", "utr", "ward")
UNSCORED: tuple[Method, ...] = ("merge", "ward")
METHODS: dict[Method, Callable[[Stream, Tensor, int], Reduced]] = {
    "drop": drop,
    "evit": evit,
    "merge": merge,
    "utr": utr,
    "ward": ward,
}
