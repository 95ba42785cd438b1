"""Noto emoji with captions made of their Unicode names, and a judge that tells them apart.

A picture's file name lists its code points; the caption is what they are called: the name of the
first, who does it and with which skin ("woman astronaut with medium dark skin"). Pictures of two or
more people, figures that face right, flags of regions and what has no name are left out, and of
pictures that are the same only one stays.
Held out are an eighth of the skins of every figure ("tone"), a twelfth of the men and women that do
something, with all skins ("role"), and some that combine what others have apart ("pair"). A model
may draw all of them, or only single people with a profession or with hair (`at_work`).
"""

from __future__ import annotations

import io
import re
import tarfile
import unicodedata
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

PIXELS = 128
TONES = {
    0x1F3FB: "light",
    0x1F3FC: "medium light",
    0x1F3FD: "medium",
    0x1F3FE: "medium dark",
    0x1F3FF: "dark",
}
_GENDERS = {0x2640: "woman", 0x2642: "man"}
_PEOPLE = {0x1F468: "man", 0x1F469: "woman", 0x1F9D1: "person"}
_ROLES = {
    0x2695: "health worker", 0x2696: "judge", 0x2708: "pilot", 0x1F33E: "farmer", 0x1F373: "cook",
    0x1F37C: "feeding baby", 0x1F384: "santa claus", 0x1F393: "student", 0x1F3A4: "singer",
    0x1F3A8: "artist", 0x1F3EB: "teacher", 0x1F3ED: "factory worker", 0x1F4BB: "technologist",
    0x1F4BC: "office worker", 0x1F527: "mechanic", 0x1F52C: "scientist", 0x1F680: "astronaut",
    0x1F692: "firefighter", 0x1F9AF: "walking with white cane", 0x1F9BC: "in motorized wheelchair",
    0x1F9BD: "in manual wheelchair", 0x1F9B0: "with red hair", 0x1F9B1: "with curly hair",
    0x1F9B2: "bald", 0x1F9B3: "with white hair",
}  # fmt: skip
_MOVING = {0x1F9AF, 0x1F9BC, 0x1F9BD}  # whole figures, not busts
# What Unicode 15 and 16 added: names must not depend on what a Python knows.
_NEWER = {
    0x1F6DC: "wireless", 0x1FA75: "light blue heart", 0x1FA76: "grey heart",
    0x1FA77: "pink heart", 0x1FA87: "maracas", 0x1FA88: "flute", 0x1FA89: "harp",
    0x1FA8F: "shovel", 0x1FAAD: "folding hand fan", 0x1FAAE: "hair pick", 0x1FAAF: "khanda",
    0x1FABB: "hyacinth", 0x1FABC: "jellyfish", 0x1FABD: "wing", 0x1FABE: "leafless tree",
    0x1FABF: "goose", 0x1FAC6: "fingerprint", 0x1FACE: "moose", 0x1FACF: "donkey",
    0x1FADA: "ginger root", 0x1FADB: "pea pod", 0x1FADC: "root vegetable", 0x1FADF: "splatter",
    0x1FAE8: "shaking face", 0x1FAE9: "face with bags under eyes",
    0x1FAF7: "leftwards pushing hand", 0x1FAF8: "rightwards pushing hand",
}  # fmt: skip
_HUMANS = {*_PEOPLE, 0x1F466, 0x1F467, 0x1F9D2}
_PAIRS = {
    "orange heart", "purple heart", "large green circle", "large purple square",
    "small orange diamond", "orange book", "crying cat face", "cat face with tears of joy",
    "clock face four oclock", "clock face nine oclock", "clock face two thirty",
    "clock face seven thirty", "clock face eleven thirty", "waning gibbous moon symbol",
}  # fmt: skip
GROUPS = ("seen", "tone", "role", "pair")
WIDTH = 40  # of the judge's description of a picture


@dataclass(frozen=True, slots=True)
class Emoji:
    """One picture.

    code: its code points in hex; name: what it shows, skin aside; gendered: whether the same is
    done by a man, a woman and somebody; tone: of the skin, or nothing.
    """

    code: str
    name: str
    gendered: bool
    tone: str = ""

    @property
    def caption(self) -> str:
        return f"{self.name} with {self.tone} skin" if self.tone else self.name

    @property
    def at_work(self) -> bool:
        """Whether it is one person with a profession, or with hair: `--domain work`."""
        points = [int(part, 16) for part in self.code.split("_")]
        return points[0] in _PEOPLE and any(p in _ROLES and p not in _MOVING for p in points)

    @property
    def group(self) -> str:
        """`seen` in training, or why not."""
        if self.name in _PAIRS:
            return "pair"
        of_one = self.gendered and self.name.split()[0] in ("man", "woman")
        if of_one and zlib.crc32(self.name.encode()) % 12 == 0:
            return "role"
        return "tone" if self.tone and zlib.crc32(self.caption.encode()) % 8 == 0 else "seen"


def named(code: str) -> Emoji | None:
    """What a file name's code points mean, or nothing for those that are left out."""
    points = [int(part, 16) for part in code.split("_")]
    tones = [TONES[p] for p in points if p in TONES]
    shown = [p for p in points if p not in TONES and p not in (0x200D, 0xFE0F)]
    if not shown or len(tones) > 1 or sum(p in _HUMANS for p in shown) > 1 or 0x27A1 in shown[1:]:
        return None
    first, more = shown[0], shown[1:]
    if len(more) > 1 or (0x1F1E6 <= first <= 0x1F1FF and more):
        return None
    try:
        names = [_words(_NEWER.get(p) or unicodedata.name(chr(p))) for p in shown]
    except ValueError:
        return None
    tone = tones[0] if tones else ""
    if first in _PEOPLE and more:
        role = _ROLES.get(more[0], names[-1])
        return Emoji(code, f"{_PEOPLE[first]} {role}", True, tone)
    if more and more[0] in _GENDERS:
        return Emoji(code, f"{_GENDERS[more[0]]} {_doing(names[0])}", True, tone)
    return Emoji(code, " ".join(dict.fromkeys(" ".join(names).split())), False, tone)


def _words(name: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", name.lower().replace("'", "").replace("-", " ")))


def _doing(name: str) -> str:
    """Without who does it."""
    return re.sub(r"^(happy )?(person|man|woman) ", "", name)


def pictures(archive: Path) -> tuple[list[Emoji], Tensor]:
    """What is kept of the archive, by code, and uint8 pictures (n, 3, 128, 128) over white."""
    found: dict[bytes, tuple[Emoji, np.ndarray]] = {}
    with tarfile.open(archive) as files:
        members = [m for m in files if m.name.endswith(".png")]
        # Of pictures that are the same, the one that says most about itself.
        for member in sorted(members, key=lambda m: (-m.name.count("_"), m.name)):
            emoji = named(Path(member.name).stem.removeprefix("emoji_u"))
            if emoji is None:
                continue
            opened = files.extractfile(member)
            assert opened is not None
            image = Image.open(io.BytesIO(opened.read())).convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            pixels = np.asarray(Image.alpha_composite(white, image).convert("RGB"))
            found.setdefault(pixels.tobytes(), (emoji, pixels))
    kept = sorted(found.values(), key=lambda pair: pair[0].code)
    kept = list({emoji.caption: (emoji, pixels) for emoji, pixels in reversed(kept)}.values())[::-1]
    images = torch.from_numpy(np.stack([pixels for _, pixels in kept]))
    return [emoji for emoji, _ in kept], images.permute(0, 3, 1, 2).contiguous()


class Judge(nn.Module):
    """Descriptions (n, 40) of length one of pictures (n, 3, 128, 128) in [0, 1].

    `known` (m, 40) holds a direction for every emoji; what a picture shows is the nearest.
    """

    def __init__(self, known: int, channels: Sequence[int] = (32, 48, 64, 80)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for i, width in enumerate(channels):
            for _ in range(1 if i == 0 else 2):
                layers += [
                    nn.Conv2d(before, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                ]
                before = width
            layers.append(nn.MaxPool2d(2))
        self.layers = nn.Sequential(*layers)
        self.described = nn.Linear(before * 16, WIDTH)  # of the 4x4 places that are left
        self.known = nn.Parameter(torch.randn(known, WIDTH))

    def forward(self, images: Tensor) -> Tensor:
        small = F.avg_pool2d(images, 2)
        return F.normalize(self.described(self.layers(small).flatten(1)), dim=1)

    def scores(self, images: Tensor) -> Tensor:
        """Cosine of every picture (n) with every emoji (m)."""
        return self(images) @ F.normalize(self.known, dim=1).T

    def save(self, path: Path) -> None:
        save_file({k: v.half() for k, v in self.state_dict().items()}, path)

    @classmethod
    def load(cls, path: Path) -> Judge:
        state = {k: v.float() for k, v in load_file(path).items()}
        made = cls(len(state["known"]))
        made.load_state_dict(state)
        return made.eval()


def varied(images: Tensor, random: torch.Generator | None = None) -> Tensor:
    """Turned, moved, stretched, blurred, dimmed and noisy copies of pictures in [0, 1]."""
    n, device = len(images), images.device

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, generator=random)

    def uniform() -> Tensor:
        return torch.rand(n, 1, 1, 1, device=device, generator=random)

    turn, scale = 0.06 * normal(n), 1 + 0.05 * normal(n, 2)
    matrix = torch.stack(
        [
            torch.stack([turn.cos() * scale[:, 0], -turn.sin(), 0.04 * normal(n)], 1),
            torch.stack([turn.sin(), turn.cos() * scale[:, 1], 0.04 * normal(n)], 1),
        ],
        1,
    )
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    moved = F.grid_sample(1 - images, grid, align_corners=False)  # white is what is around
    soft = F.avg_pool2d(F.avg_pool2d(moved, 5, 1, 2), 5, 1, 2)
    moved = torch.lerp(moved, soft, uniform() ** 2)
    bright = 1 + 0.05 * normal(n, 1, 1, 1)
    noise = uniform() * 0.08 * normal(n, 3, PIXELS, PIXELS)
    return (1 - moved * bright + noise).clamp(0, 1)


@torch.no_grad()
def judged(images: Tensor, wanted: Sequence[int], known: Sequence[Emoji], judge: Judge) -> Tensor:
    """What is right of every picture: bool (n, 4), columns as in `RIGHT`."""
    scores = torch.cat([judge.scores(part) for part in images.split(128)])
    index = torch.tensor(wanted, device=scores.device)
    best = scores.topk(5, 1).indices
    names = [known[i] for i in best[:, 0].tolist()]
    truth = [known[i] for i in index.tolist()]
    same = [(a.name == b.name, a.tone == b.tone) for a, b in zip(names, truth, strict=True)]
    hits = best == index[:, None]
    found = torch.stack([hits[:, 0], hits.any(1)], 1).cpu()
    return torch.cat([found, torch.tensor(same).reshape(-1, 2)], 1)


RIGHT = ("first", "first five", "name", "skin")


def write_list(path: Path, known: Sequence[Emoji], drawn: Sequence[int]) -> None:
    """A line of an emoji: code points, name, whether it is gendered, skin, group if it is drawn.

    known: in the judge's order; drawn: the numbers of those that the model is for.
    """
    of = set(drawn)
    lines = [
        f"{e.code}\t{e.name}\t{e.gendered:d}\t{e.tone}\t{e.group if i in of else ''}\n"
        for i, e in enumerate(known)
    ]
    path.write_text("".join(lines), encoding="utf-8")


def read_list(path: Path) -> tuple[list[Emoji], dict[str, list[int]]]:
    """What the judge knows, and the numbers of what the model draws by group."""
    known: list[Emoji] = []
    drawn: dict[str, list[int]] = {group: [] for group in GROUPS}
    for i, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        code, name, gendered, tone, group = line.split("\t")
        known.append(Emoji(code, name, gendered == "1", tone))
        if group:
            drawn[group].append(i)
    return known, drawn
