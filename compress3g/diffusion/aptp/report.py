"""Which prompts went where: one HTML file with capacities and pictures, that needs nothing else."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...engine.checkpoint import atomic_write
from ...profile.page import STYLE
from .pipeline import AptpPipeline

_WORDS = 12  # that tell an expert's prompts from the others'
_EXAMPLES = 8

_STYLE = (
    STYLE
    + """
.share { height: 12px; border-radius: 6px; background: var(--rule); margin: 6px 0 12px; }
.share div { height: 100%; border-radius: 6px; background: var(--one); }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(96px, 1fr)); gap: 14px;
  margin-top: 12px; }
.pictures img { width: 100%; image-rendering: pixelated; border-radius: 6px; display: block; }
.pictures figcaption { font-size: 12px; color: var(--soft); line-height: 1.35; margin-top: 4px; }
figure { margin: 0; }
.words span { display: inline-block; border: 1px solid var(--rule); border-radius: 12px;
  padding: 1px 10px; margin: 0 4px 4px 0; font-size: 13px; }
details { margin-top: 14px; }
summary { cursor: pointer; color: var(--soft); }
details ul { margin: 8px 0 0; padding-left: 18px; columns: 2; font-size: 13px; }
"""
)


@dataclass(frozen=True, slots=True)
class Cluster:
    """The prompts of one expert. share: of the dense denoiser's multiply-adds."""

    index: int
    share: float
    params: int
    bypassed: int
    prompts: list[str]
    words: list[str]


def clusters(owner: AptpPipeline, prompts: Sequence[str]) -> list[Cluster]:
    """Where prompts go, the largest expert first."""
    chosen = owner.route(prompts).experts.tolist()
    found = []
    for handle in owner.experts:
        mine = [p for p, i in zip(prompts, chosen, strict=True) if i == handle.index]
        others = [p for p, i in zip(prompts, chosen, strict=True) if i != handle.index]
        about = handle.report()
        words = _telling(mine, others)
        found.append(Cluster(handle.index, about.share, about.params, about.bypassed, mine, words))
    return sorted(found, key=lambda c: -c.share)


def _telling(mine: Sequence[str], others: Sequence[str]) -> list[str]:
    """Words that are more frequent in these prompts than in the others, the most telling first."""

    def rates(prompts: Sequence[str]) -> dict[str, float]:
        counts: dict[str, float] = {}
        for prompt in prompts:
            for word in set(prompt.lower().split()):
                counts[word] = counts.get(word, 0.0) + 1 / len(prompts)
        return counts

    here, there = rates(mine), rates(others)
    gain = {w: r - there.get(w, 0.0) for w, r in here.items()}
    return [w for w in sorted(gain, key=lambda w: (-gain[w], w))[:_WORDS] if gain[w] > 0.02]


def write_report(
    path: Path,
    owner: AptpPipeline,
    prompts: Sequence[str],
    *,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
) -> None:
    """Writes the page: for each expert its size, its words, and pictures of its first prompts."""
    found = clusters(owner, prompts)
    mean = sum(c.share * len(c.prompts) for c in found) / len(prompts)
    how = {"steps": steps, "guidance": guidance, "seed": seed}
    parts = [_table(found, len(prompts))]
    parts += [_section(c, len(prompts), _pictures(owner, c, how)) for c in found]
    body = (
        f"<h1>{len(prompts):,} prompts, {len(found)} experts</h1>"
        f'<p class="soft">On average a prompt costs {mean:.1%} of the dense denoiser\'s '
        f"multiply-adds; the router was asked for {owner.router.config.target:.1%}.</p>"
    )
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Where prompts go</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"{body}\n{''.join(parts)}\n</main>\n</body>\n</html>\n"
    )
    atomic_write(path, lambda file: file.write(page.encode()))


def _table(found: Sequence[Cluster], count: int) -> str:
    rows = "".join(
        f"<tr><td>expert {c.index}</td><td>{c.share:.1%}</td><td>{c.params:,}</td>"
        f"<td>{c.bypassed}</td><td>{len(c.prompts):,} ({len(c.prompts) / count:.1%})</td></tr>"
        for c in found
    )
    head = "<th></th><th>multiply-adds</th><th>parameters</th><th>blocks bypassed</th>"
    return f"<section><table><tr>{head}<th>prompts</th></tr>{rows}</table></section>"


def _section(c: Cluster, count: int, pictures: str) -> str:
    words = "".join(f"<span>{escape(w)}</span>" for w in c.words)
    said = f"{len(c.prompts):,} of {count:,} prompts come here"
    if not c.prompts:
        said = "no prompt of this file comes here"
    elif words:
        said += "; these words are more frequent in them than in the others:"
    listed = "".join(f"<li>{escape(p)}</li>" for p in c.prompts)
    every = f"<details><summary>all of them</summary><ul>{listed}</ul></details>"
    return (
        f"<section><h2>Expert {c.index}: {c.share:.1%} of the multiply-adds</h2>"
        f'<div class="share"><div style="width:{100 * c.share:.1f}%"></div></div>'
        f'<p class="soft">{said}</p><p class="words">{words}</p>{pictures}'
        f"{every if c.prompts else ''}</section>"
    )


def _pictures(owner: AptpPipeline, c: Cluster, how: dict[str, Any]) -> str:
    """Of prompts spread evenly over the cluster's."""
    stride = max(1, len(c.prompts) // _EXAMPLES)
    shown = c.prompts[::stride][:_EXAMPLES]
    if not shown:
        return ""
    images: Tensor = owner.generate(shown, expert=c.index, **how)
    figures = "".join(
        f'<figure><img alt="" src="data:image/png;base64,{_png(image)}">'
        f"<figcaption>{escape(prompt)}</figcaption></figure>"
        for prompt, image in zip(shown, images, strict=True)
    )
    return f'<div class="pictures">{figures}</div>'


def _png(image: Tensor) -> str:
    pixels = (image.float().cpu().clamp(0, 1).permute(1, 2, 0) * 255).round().to(torch.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()
