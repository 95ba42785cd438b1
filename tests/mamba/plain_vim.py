"""Vim once more, from the paper's algorithm 1, one token at a time in float64. Shares no code."""

from __future__ import annotations

import itertools
import math

import torch


def _silu(x):
    return x / (1 + (-x).exp())


def _rms(x, weight):
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def _direction(p, x, suffix, a_name, holes):
    """One direction over tokens x (l, e) in scan order; holes[k]: positions missing before k."""
    weight, bias = p[f"conv1d{suffix}.weight"][:, 0], p[f"conv1d{suffix}.bias"]
    places = torch.arange(len(x)) + torch.tensor(holes).cumsum(0)  # original index in scan order
    at = {int(place): k for k, place in enumerate(places)}
    h, before, outputs = torch.zeros_like(p[a_name]), None, []
    for k, place in enumerate(places.tolist()):
        u = bias.clone()
        for back in range(4):
            if place - back in at:
                u = u + weight[:, 3 - back] * x[at[place - back]]
        u = _silu(u)
        projected = p[f"x_proj{suffix}.weight"] @ u
        n = h.shape[1]
        rank = len(projected) - 2 * n
        b, c = projected[rank : rank + n], projected[rank + n :]
        raw = p[f"dt_proj{suffix}.weight"] @ projected[:rank] + p[f"dt_proj{suffix}.bias"]
        delta = (1 + raw.exp()).log()
        gap = 0.0 if before is None else holes[k]
        h = ((delta + gap * delta)[:, None] * -p[a_name].exp()).exp() * h
        h = h + (delta * u)[:, None] * b[None]
        outputs.append(h @ c + p[f"D{suffix}"] * u)
        before = delta
    return torch.stack(outputs)


def mixer(p, x, positions):
    """Mixer output and ungated y of both directions; positions: original index of each token."""
    e = p["D"].shape[0]
    both = x @ p["in_proj.weight"].T
    inner, z = both[:, :e], both[:, e:]
    gaps = [0] + [b - a - 1 for a, b in itertools.pairwise(positions)]
    forward = _direction(p, inner, "", "A_log", gaps)
    mirrored = [0, *gaps[:0:-1]]
    backward = _direction(p, inner.flip(0), "_b", "A_b_log", mirrored).flip(0)
    y = forward + backward
    return (y * _silu(z) / 2) @ p["out_proj.weight"].T, y


def logits(state, image, *, prune=None):
    """Logits of one image (c, h, w); prune: (block, share) pairs, l1 score, gaps by `current`."""
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
    depth = len({k.split(".")[1] for k in s if k.startswith("layers.")})
    for i in range(depth):
        at = f"layers.{i}.mixer."
        p = {k.removeprefix(at): v for k, v in s.items() if k.startswith(at)}
        residual = residual + hidden
        hidden, y = mixer(p, _rms(residual, s[f"layers.{i}.norm.weight"]), positions)
        for block, share in prune or ():
            if block == i + 1:
                score = y.abs().sum(1)
                patches = [k for k in range(len(positions)) if positions[k] != middle]
                patches.sort(key=lambda k: -float(score[k]))
                count = math.ceil(share * len(patches))
                kept = sorted([*patches[:count], positions.index(middle)])
                hidden, residual = hidden[kept], residual[kept]
                positions = [positions[k] for k in kept]
    cls = positions.index(middle)
    last = _rms(residual[cls] + hidden[cls], s["norm_f.weight"])
    return s["head.weight"] @ last + s["head.bias"]
