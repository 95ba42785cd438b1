"""Vim once more, from the paper's algorithm 1, one token at a time in float64. Shares no code."""

from __future__ import annotations

import itertools
import math

import torch


def _silu(x):
    return x / (1 + (-x).exp())


def _rms(x, weight):
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def _direction(p, x, suffix, a_name, holes, sizes):
    """One direction over tokens x (l, e) in scan order; holes[k]: positions missing before k.

    sizes: how many tokens each stands for; then convolutions see the last token in holes, and the
    scan sees no holes.
    """
    weight, bias = p[f"conv1d{suffix}.weight"][:, 0], p[f"conv1d{suffix}.bias"]
    places = torch.arange(len(x)) + torch.tensor(holes).cumsum(0)  # original index in scan order
    at = {int(place): k for k, place in enumerate(places)}
    h, before, outputs = torch.zeros_like(p[a_name]), None, []
    for k, place in enumerate(places.tolist()):
        u = bias.clone()
        for back in range(4):
            seen = place - back
            while sizes is not None and seen >= 0 and seen not in at:
                seen -= 1
            if seen in at:
                u = u + weight[:, 3 - back] * x[at[seen]]
        u = _silu(u)
        projected = p[f"x_proj{suffix}.weight"] @ u
        n = h.shape[1]
        rank = len(projected) - 2 * n
        b, c = projected[rank : rank + n], projected[rank + n :]
        raw = p[f"dt_proj{suffix}.weight"] @ projected[:rank] + p[f"dt_proj{suffix}.bias"]
        delta = (1 + raw.exp() * (1 if sizes is None else sizes[k] ** 0.5)).log()
        gap = 0.0 if before is None or sizes is not None else holes[k]
        h = ((delta + gap * delta)[:, None] * -p[a_name].exp()).exp() * h
        h = h + (delta * u)[:, None] * b[None]
        outputs.append(h @ c + p[f"D{suffix}"] * u)
        before = delta
    return torch.stack(outputs)


def mixer(p, x, positions, sizes=None):
    """Mixer output and ungated y of both directions; positions: original index of each token."""
    mirrored_sizes = None if sizes is None else sizes[::-1]
    e = p["D"].shape[0]
    both = x @ p["in_proj.weight"].T
    inner, z = both[:, :e], both[:, e:]
    gaps = [0] + [b - a - 1 for a, b in itertools.pairwise(positions)]
    forward = _direction(p, inner, "", "A_log", gaps, sizes)
    mirrored = [0, *gaps[:0:-1]]
    backward = _direction(p, inner.flip(0), "_b", "A_b_log", mirrored, mirrored_sizes).flip(0)
    y = forward + backward
    return (y * _silu(z) / 2) @ p["out_proj.weight"].T, y


def merged(hidden, residual, sizes, never, count):
    """Every second token but `never` into another while more than `count` of them are left.

    The pair goes whose merging adds least to the squares around averages.
    """
    patches = [k for k in range(len(hidden)) if k != never]
    whole, pairs = hidden + residual, []
    for m in patches[::2]:
        losses = {}
        for k in patches[1::2]:
            middle = (sizes[m] * whole[m] + sizes[k] * whole[k]) / (sizes[m] + sizes[k])
            losses[k] = float(sum(sizes[i] * (whole[i] - middle).square().sum() for i in (m, k)))
        if losses:
            best = min(losses, key=losses.get)
            pairs.append((losses[best], m, best))
    groups = {k: [k] for k in range(len(hidden))}
    for _, m, best in sorted(pairs)[: len(patches) - count]:
        groups[best].append(m)
        del groups[m]
    total = [sum(sizes[m] for m in group) for group in groups.values()]
    parts = [
        torch.stack([sum(sizes[m] * x[m] for m in group) / sum(sizes[m] for m in group)
                     for group in groups.values()])
        for x in (hidden, residual)
    ]  # fmt: skip
    return *parts, total, list(groups)


def logits(state, image, *, prune=None, ward=False):
    """Logits of one image (c, h, w); prune: (block, share) pairs, l1 score, gaps by `current`.

    ward: tokens merge, holes hold the last token, and steps grow with sizes.
    """
    s = {k: v.double() for k, v in state.items()}
    image = image.double()
    kernel = s["patch_embed.proj.weight"]
    patch = kernel.shape[-1]
    tokens = []
    for top in range(0, image.shape[1] - patch + 1, patch):
        for left in range(0, image.shape[2] - patch + 1, patch):
            part = image[:, top : top + patch, left : left + patch]
            tokens.append((kernel * part).sum((1, 2, 3)) + s["patch_embed.proj.bias"])
    middle = len(tokens) // 2
    tokens.insert(middle, s["cls_token"][0, 0])
    hidden = torch.stack(tokens) + s["pos_embed"][0]
    positions, residual = list(range(len(tokens))), torch.zeros_like(hidden)
    sizes = None
    depth = len({k.split(".")[1] for k in s if k.startswith("layers.")})
    for i in range(depth):
        at = f"layers.{i}.mixer."
        p = {k.removeprefix(at): v for k, v in s.items() if k.startswith(at)}
        residual = residual + hidden
        hidden, y = mixer(p, _rms(residual, s[f"layers.{i}.norm.weight"]), positions, sizes)
        for block, share in prune or ():
            if block == i + 1:
                never = positions.index(middle)
                patches = [k for k in range(len(positions)) if k != never]
                count = math.ceil(share * len(patches))
                if ward:
                    sizes = sizes or [1] * len(positions)
                    hidden, residual, sizes, kept = merged(hidden, residual, sizes, never, count)
                else:
                    score = y.abs().sum(1)
                    patches.sort(key=lambda k: -float(score[k]))
                    kept = sorted([*patches[:count], never])
                    hidden, residual = hidden[kept], residual[kept]
                positions = [positions[k] for k in kept]
    cls = positions.index(middle)
    last = _rms(residual[cls] + hidden[cls], s["norm_f.weight"])
    return s["head.weight"] @ last + s["head.bias"]
