"""VMamba once more, token by token in float64, from its published description. Shares no code."""

from __future__ import annotations

import math

import torch

from .plain_serpentine import _norm
from .plain_vim import _silu


def convolve(x, at, weight, bias, stride=1):
    """3x3 with padding 1 of values x (n, i) at cells `at`; zeros where there is none."""
    high = max(a for a, _ in at) + 1
    wide = max(b for _, b in at) + 1
    rows, columns = -(-high // stride), -(-wide // stride)
    depthwise = weight.shape[1] == 1
    found = {}
    for row in range(rows):
        for column in range(columns):
            total = torch.zeros(weight.shape[0], dtype=torch.float64) if bias is None else bias
            for a in (-1, 0, 1):
                for b in (-1, 0, 1):
                    cell = (row * stride + a, column * stride + b)
                    if cell not in at:
                        continue
                    value, tap = x[at[cell]], weight[:, :, a + 1, b + 1]
                    total = total + (tap[:, 0] * value if depthwise else tap @ value)
            found[row, column] = total
    return found


def mixer(p, x, kept, grid):
    """Output and y of the tokens at cells `kept`, each with its distance to the one before."""
    high, wide = grid
    at = {cell: k for k, cell in enumerate(kept)}
    convolved = convolve(x @ p["in_proj.weight"].T, at, p["conv2d.weight"], p.get("conv2d.bias"))
    u = _silu(torch.stack([convolved[cell] for cell in kept]))
    e, n = u.shape[1], p["A_logs"].shape[1]
    rows = [(a, b) for a in range(high) for b in range(wide)]
    columns = [(a, b) for b in range(wide) for a in range(high)]
    y = torch.zeros_like(u)
    for k, walk in enumerate((rows, columns, rows[::-1], columns[::-1])):
        weight, steps = p["x_proj_weight"][k], p["dt_projs_weight"][k]
        decay = -p["A_logs"][k * e : (k + 1) * e].exp()
        h, last = torch.zeros(e, n, dtype=torch.float64), None
        for place, cell in enumerate(walk):
            if cell not in at:
                continue
            token = u[at[cell]]
            projected = weight @ token
            r, b, c = projected[: -2 * n], projected[-2 * n : -n], projected[-n:]
            delta = (1 + (steps @ r + p["dt_projs_bias"][k]).exp()).log()
            gap = 0 if last is None else place - last - 1
            h = (((1 + gap) * delta)[:, None] * decay).exp() * h + (delta * token)[:, None] * b
            y[at[cell]] += h @ c + p["Ds"][k * e : (k + 1) * e] * token
            last = place
    normed = _norm(y, p["out_norm.weight"], p["out_norm.bias"], 1e-5)
    return normed @ p["out_proj.weight"].T, y


def _gelu(x):
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def _under(state, at):
    return {k.removeprefix(at): v for k, v in state.items() if k.startswith(at)}


def _halve(state, at, conv, x, cells):
    """A convolution of stride 2 with the norm that stands two places behind it."""
    found = convolve(x, cells, state[f"{at}.{conv}.weight"], state[f"{at}.{conv}.bias"], 2)
    new = {cell: k for k, cell in enumerate(found)}
    values = torch.stack(list(found.values()))
    weight, bias = (state[f"{at}.{conv + 2}.{k}"] for k in ("weight", "bias"))
    return _norm(values, weight, bias, 1e-5), new


def logits(state, image, *, prune=()):
    """Of one image (c, h, w); prune: (block, share), by l1, all tokens back after each stage."""
    s = {k: v.double() for k, v in state.items()}
    pixels = image.double().flatten(1).T
    wide = image.shape[2]
    x, cells = _halve(s, "patch_embed", 0, pixels, {divmod(i, wide): i for i in range(len(pixels))})
    x, cells = _halve(s, "patch_embed", 5, _gelu(x), cells)
    block = 0
    for stage in range(len({k.split(".")[1] for k in s if k.startswith("layers.")})):
        grid = tuple(1 + max(c[i] for c in cells) for i in (0, 1))
        order, kept = list(cells), list(cells)
        depth = len({k.split(".")[3] for k in s if k.startswith(f"layers.{stage}.blocks.")})
        whole = x
        for j in range(depth):
            block += 1
            p = _under(s, f"layers.{stage}.blocks.{j}.")
            normed = _norm(x, p["norm.weight"], p["norm.bias"], 1e-5)
            out, y = mixer(_under(p, "op."), normed, kept, grid)
            x = x + out
            normed = _norm(x, p["norm2.weight"], p["norm2.bias"], 1e-5)
            hidden = _gelu(normed @ p["mlp.fc1.weight"].T + p["mlp.fc1.bias"])
            x = x + hidden @ p["mlp.fc2.weight"].T + p["mlp.fc2.bias"]
            whole = whole.clone()
            whole[[order.index(cell) for cell in kept]] = x
            for number, share in prune:
                if number == block:
                    ranked = sorted(range(len(kept)), key=lambda k: -float(y.abs().sum(1)[k]))
                    stays = sorted(ranked[: math.ceil(share * len(kept))])
                    x, kept = x[stays], [kept[k] for k in stays]
        x = whole
        if f"layers.{stage}.downsample.1.weight" in s:
            x, cells = _halve(s, f"layers.{stage}.downsample", 1, x, cells)
    x = _norm(x, s["classifier.norm.weight"], s["classifier.norm.bias"], 1e-5).mean(0)
    return s["classifier.head.weight"] @ x + s["classifier.head.bias"]
