"""PlainMamba once more, walking the grid step by step in float64. Shares no code."""

from __future__ import annotations

import math

import torch

from .plain_vim import _silu

_TURN = {"right": (0, 1), "left": (0, -1), "up": (-1, 0), "down": (1, 0)}
_IDS = {"begin": 0, "right": 1, "left": 2, "up": 3, "down": 4}


def walk(high, wide, start, along, across):
    """Cells and direction ids: `along` until the border, one step `across`, back, and so on."""
    cell, heading, cells, ids = start, along, [], []
    back = {"right": "left", "left": "right", "up": "down", "down": "up"}
    said = "begin"
    while True:
        cells.append(cell)
        ids.append(_IDS[said])
        ahead = (cell[0] + _TURN[heading][0], cell[1] + _TURN[heading][1])
        said = heading
        if not (0 <= ahead[0] < high and 0 <= ahead[1] < wide):
            ahead = (cell[0] + _TURN[across][0], cell[1] + _TURN[across][1])
            said, heading = across, back[heading]
            if not (0 <= ahead[0] < high and 0 <= ahead[1] < wide):
                return cells, ids
        cell = ahead


def walks(high, wide):
    """The four of the published code."""
    bottom = ((high - 1, wide - 1), "left") if high % 2 else ((high - 1, 0), "right")
    right = ((high - 1, wide - 1), "up") if wide % 2 else ((0, wide - 1), "down")
    return [
        walk(high, wide, (0, 0), "right", "down"),
        walk(high, wide, *bottom, "up"),
        walk(high, wide, (0, 0), "down", "right"),
        walk(high, wide, *right, "left"),
    ]


def _norm(x, weight, bias, eps):
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias


def mixer(p, x, kept, grid, *, raster, double):
    """Output and ungated y; kept: cells of the grid that are left, row by row."""
    high, wide = grid
    e = p["D"].shape[0]
    both = x @ p["in_proj.weight"].T + p["in_proj.bias"]
    inner, z = both[:, :e], both[:, e:]
    at = {divmod(cell, wide): k for k, cell in enumerate(kept)}
    u = []
    for cell in kept:
        row, column = divmod(cell, wide)
        total = p["conv2d.bias"].clone()
        for a in range(-3, 4):
            for b in range(-3, 4):
                if (row + a, column + b) in at:
                    total = (
                        total
                        + p["conv2d.weight"][:, 0, a + 3, b + 3] * inner[at[row + a, column + b]]
                    )
        u.append(_silu(total))
    u = torch.stack(u)
    projected = u @ p["x_proj.weight"].T
    n = p["A_log"].shape[1]
    rank = projected.shape[1] - 2 * n
    raw = projected[:, :rank] @ p["dt_proj.weight"].T + (2 if double else 1) * p["dt_proj.bias"]
    delta, b, c = (1 + raw.exp()).log(), projected[:, rank : rank + n], projected[:, rank + n :]
    y = torch.zeros_like(u)
    for cells, ids in walks(high, wide):
        h, last, step = torch.zeros_like(p["A_log"]), None, 0
        for place, (cell, direction) in enumerate(zip(cells, ids, strict=True)):
            if cell not in at:
                continue
            token = at[cell]
            read = step if raster else token
            gap = 0 if last is None else place - last - 1
            d = delta[read]
            h = (((1 + gap) * d)[:, None] * -p["A_log"].exp()).exp() * h
            drive = b[read] + p["direction_Bs"][direction]
            h = h + (d * u[token])[:, None] * drive[None]
            y[token] += h @ c[read] + p["D"] * u[token]
            last, step = place, step + 1
    return (y * _silu(z)) @ p["out_proj.weight"].T + p["out_proj.bias"], y


def after_embedding(state, x, grid, *, prune=(), raster=True, double=True):
    """Logits of one image from its tokens with positions (n, d); prune: (block, share), l1."""
    s, x, kept = {k: v.double() for k, v in state.items()}, x.double(), list(range(len(x)))
    for i in range(len({k.split(".")[1] for k in s if k.startswith("layers.")})):
        at = f"layers.{i}."
        p = {k.removeprefix(at + "mamba."): v for k, v in s.items() if k.startswith(at + "mamba.")}
        normed = _norm(x, s[at + "norm.weight"], s[at + "norm.bias"], 1e-5)
        out, y = mixer(p, normed, kept, grid, raster=raster, double=double)
        x = x + out
        for block, share in prune:
            if block == i + 1:
                order = sorted(range(len(kept)), key=lambda k: -float(y.abs().sum(1)[k]))
                stays = sorted(order[: math.ceil(share * len(kept))])
                x, kept = x[stays], [kept[k] for k in stays]
    x = _norm(x, s["ln1.weight"], s["ln1.bias"], 1e-6)
    return s["head.fc.weight"] @ x.mean(0) + s["head.fc.bias"]
