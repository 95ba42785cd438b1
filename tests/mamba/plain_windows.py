"""MambaVision once more in float64, a window and a token at a time. Shares no code."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from .plain_cross import _gelu, _under
from .plain_serpentine import _norm
from .plain_vim import _silu


def _batch_norm(s, at, x, eps):
    """Of one picture (c, h, w), by the running averages."""
    mean, var = s[f"{at}.running_mean"], s[f"{at}.running_var"]
    scale = s[f"{at}.weight"] / (var + eps).sqrt()
    return x * scale[:, None, None] + (s[f"{at}.bias"] - mean * scale)[:, None, None]


def _conv(x, weight, bias=None, stride=1):
    return F.conv2d(x[None], weight, bias, stride, 1)[0]


def _taps(x, kept, weight, *, align, size=None):
    """Three taps around each kept place: zeros in holes, the value before, or closed up.

    size: places of the window; nothing holds beyond its end.
    """
    at = {place: k for k, place in enumerate(kept)}
    rows = []
    for k, place in enumerate(kept):
        total = torch.zeros(x.shape[1], dtype=torch.float64)
        for off in (-1, 0, 1):
            read = None
            if align == "none" and 0 <= k + off < len(kept):
                read = k + off
            elif align == "zero":
                read = at.get(place + off)
            elif align == "hold":
                before = [q for q in kept if q <= place + off]
                read = at[before[-1]] if before and place + off < size else None
            if read is not None:
                total = total + weight[:, 0, off + 1] * x[read]
        rows.append(total)
    return torch.stack(rows)


def mixer(p, x, kept, *, align="current", conv="zero", size=None, double=True):
    """Output and y of the kept tokens of one window, x (k, d), at their places in it."""
    both = x @ p["in_proj.weight"].T
    e = both.shape[1] // 2
    u = _silu(_taps(both[:, :e], kept, p["conv1d_x.weight"], align=conv, size=size))
    z = _silu(_taps(both[:, e:], kept, p["conv1d_z.weight"], align=conv, size=size))
    n = p["A_log"].shape[1]
    h, last, outputs = torch.zeros(e, n, dtype=torch.float64), None, []
    for token, place in zip(u, kept, strict=True):
        projected = p["x_proj.weight"] @ token
        r, b, c = projected[: -2 * n], projected[-2 * n : -n], projected[-n:]
        steps = p["dt_proj.weight"] @ r + (2 if double else 1) * p["dt_proj.bias"]
        delta = (1 + steps.exp()).log()
        gap = 0 if last is None or align == "none" else place - last - 1
        h = (((1 + gap) * delta)[:, None] * -p["A_log"].exp()).exp() * h
        h = h + (delta * token)[:, None] * b
        outputs.append(h @ c + p["D"] * token)
        last = place
    y = torch.stack(outputs)
    return torch.cat([y, z], 1) @ p["out_proj.weight"].T, y


def attention(p, x, heads):
    qkv = x @ p["qkv.weight"].T + p["qkv.bias"]
    d = x.shape[1]
    size, parts = d // heads, []
    for head in range(heads):
        q, k, v = (qkv[:, i * d + head * size : i * d + (head + 1) * size] for i in range(3))
        parts.append((q @ k.T / math.sqrt(size)).softmax(1) @ v)
    return torch.cat(parts, 1) @ p["proj.weight"].T + p["proj.bias"]


def _block(p, x, kept, heads, double):
    normed = _norm(x, p["norm1.weight"], p["norm1.bias"], 1e-5)
    y, inner = None, _under(p, "mixer.")
    if "qkv.weight" in inner:
        out = attention(inner, normed, heads)
    else:
        out, y = mixer(inner, normed, kept, double=double)
    x = x + p.get("gamma_1", 1) * out
    normed = _norm(x, p["norm2.weight"], p["norm2.bias"], 1e-5)
    hidden = _gelu(normed @ p["mlp.fc1.weight"].T + p["mlp.fc1.bias"])
    return x + p.get("gamma_2", 1) * (hidden @ p["mlp.fc2.weight"].T + p["mlp.fc2.bias"]), y


def _level(s, level, x, config, first, prune):
    """A level with mixers over a picture (d, h, w): every window by itself."""
    side, (_, high, wide) = config.windows[level], x.shape
    out = torch.zeros_like(x)
    for top in range(0, high, side):
        for left in range(0, wide, side):
            cells = [(top + a, left + b) for a in range(side) for b in range(side)]
            real = [a < high and b < wide for a, b in cells]
            empty = torch.zeros(x.shape[0], dtype=torch.float64)
            tokens = torch.stack(
                [x[:, a, b] if ok else empty for (a, b), ok in zip(cells, real, strict=True)]
            )
            kept, whole = list(range(len(cells))), tokens.clone()
            for j in range(config.depths[level]):
                p = _under(s, f"levels.{level}.blocks.{j}.")
                tokens, y = _block(p, tokens, kept, config.heads[level], config.double_bias)
                whole[kept] = tokens
                for number, share in prune:
                    if number == first + j:
                        worth = [(-float(y.abs().sum(1)[k])) if real[q] else 1.0
                                 for k, q in enumerate(kept)]  # fmt: skip
                        ranked = sorted(range(len(kept)), key=lambda k, worth=worth: worth[k])
                        stays = sorted(ranked[: math.ceil(share * len(kept))])
                        tokens, kept = tokens[stays], [kept[k] for k in stays]
            for (a, b), ok, value in zip(cells, real, whole, strict=True):
                if ok:
                    out[:, a, b] = value
    return out


def logits(state, image, config, *, prune=()):
    """Of one image (c, h, w); prune: (block, share), by l1 within each window."""
    s = {k: v.double() for k, v in state.items()}
    x = image.double()
    for place in (0, 3):
        x = _conv(x, s[f"patch_embed.conv_down.{place}.weight"], stride=2)
        x = _batch_norm(s, f"patch_embed.conv_down.{place + 1}", x, 1e-4).relu()
    first = 1
    for level, depth in enumerate(config.depths):
        if level < 2:
            for j in range(depth):
                at = f"levels.{level}.blocks.{j}"
                y = _conv(x, s[f"{at}.conv1.weight"], s[f"{at}.conv1.bias"])
                y = _batch_norm(s, f"{at}.norm1", y, 1e-5)
                y = 0.5 * y * (1 + (math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)).tanh())
                y = _conv(y, s[f"{at}.conv2.weight"], s[f"{at}.conv2.bias"])
                x = x + _batch_norm(s, f"{at}.norm2", y, 1e-5)
        else:
            x = _level(s, level, x, config, first, prune)
            first += depth
        if f"levels.{level}.downsample.reduction.0.weight" in s:
            x = _conv(x, s[f"levels.{level}.downsample.reduction.0.weight"], stride=2)
    x = _batch_norm(s, "norm", x, 1e-5).mean((1, 2))
    return s["head.weight"] @ x + s["head.bias"]
