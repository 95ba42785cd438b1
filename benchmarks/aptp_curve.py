"""How much network do captions of one, two and four digits need, and from what is it learnt?

    python benchmarks/aptp_curve.py [--quick] [--json] [--sizes .3,.34,.41] [--updates 120]

Single networks of several sizes, as `--start graded` cuts them, each of `--updates` as in
aptp.py: from all captions, also three times as long, and from one kind of captions alone or
with those of more digits. So one sees where a router can gain: by networks that learn from fewer
kinds of captions, or by sizes, where a network that has learnt enough still fails. Judged by
captions of the training side that no network learnt from.
"""

from __future__ import annotations

import copy
import json
import time
import zlib
from pathlib import Path
from typing import Any

import torch
from _digits import Classifier, Scene, correct
from _report import parser, report
from _routing import EVEN, GUIDANCE, MODEL, OBJECTS, STEPS, captions_of, texts
from _routing_bank import Bank, Course
from torch import Tensor, nn

import compress3g.diffusion as cd
from compress3g.diffusion.aptp.codes import SoftCode, Space, as_gates, space_of
from compress3g.diffusion.aptp.experts import expert_of
from compress3g.diffusion.aptp.start import by_magnitude
from compress3g.diffusion.pipelines import recording
from compress3g.engine.checkpoint import write_json

LONG = 3
# From which captions a network learns, and on which it is judged: numbers of digits.
LESSONS = {
    "all": (OBJECTS, OBJECTS),
    f"all, {LONG} times as long": (OBJECTS, OBJECTS),
    "1": ((1,), (1,)),
    "2": ((2,), (2,)),
    "2 and 4": ((2, 4), (2,)),
    "4": ((4,), (4,)),
}


def kept_apart(scene: Scene) -> bool:
    """A sixth of the training side's captions, which judge."""
    return zlib.crc32(f"judge {scene.caption}".encode()) % 6 == 0


class Curve:
    """Captions, their bank, and networks of any size."""

    def __init__(self, options: Any) -> None:
        self.options = options
        self.pipe = cd.open_pipeline(MODEL)
        self.judge = Classifier.load(MODEL / "classifier.safetensors")
        drawn = captions_of(options.training, 100, held_out=False, shares=EVEN)
        self.training = [s for s in drawn if not kept_apart(s)]
        others = captions_of(40 * options.captions, 101, held_out=False, shares=EVEN)
        self.wanted = {n: [s for s in others if of(s) == n and kept_apart(s)] for n in OBJECTS}
        self.wanted = {n: w[: options.captions] for n, w in self.wanted.items()}
        self.bank = Bank.of(self.pipe, texts(self.training), 0, STEPS, GUIDANCE)
        self.space = self._space()

    def _space(self) -> Space:
        with recording(self.pipe) as calls:
            cd.generate(self.pipe, ["a red seven"], steps=2, guidance=1.0, output="latent")
        return space_of(self.pipe.unet, lambda m: calls[0].run(m), depth=False)

    def network(self, size: float) -> tuple[nn.Module, float]:
        """As a code of this size starts; and its share of the multiply-adds."""
        code = SoftCode(self.space)
        gates = by_magnitude(self.pipe.unet, self.space, size, staggered=True)
        keep = code.hard(code.inverse(gates))
        share = float(self.space.share(as_gates(keep, self.space)))
        return copy.deepcopy(expert_of(self.pipe.unet, self.space, keep)), share

    def rows(self, kinds: tuple[int, ...]) -> Tensor:
        return torch.tensor([i for i, s in enumerate(self.training) if of(s) in kinds])

    def accuracy(self, network: nn.Module, kinds: tuple[int, ...]) -> dict[str, float]:
        pipe = copy.copy(self.pipe)
        pipe.register_modules(unet=network)
        row = {}
        for n in kinds:
            images = cd.generate(
                pipe, texts(self.wanted[n]), seed=7, steps=STEPS, guidance=GUIDANCE
            )
            row[str(n)] = float(correct(images, self.wanted[n], self.judge).float().mean())
        return row


def of(scene: Scene) -> int:
    return len(scene.objects)


def measured(curve: Curve, options: Any, file: Path) -> dict[str, Any]:
    """By size and lessons; kept in a file as it grows."""
    rows: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for lessons, (kinds, judged) in LESSONS.items():
        for size in options.sizes.split(","):
            name = f"{size}: {lessons}"
            if name in rows:
                continue
            network, share = curve.network(float(size))
            updates = options.updates * (LONG if "long" in lessons else 1)
            course = Course(updates=updates, batch=options.batch, rate=options.rate, seed=50)
            course.take(network, curve.bank, curve.rows(kinds))
            rows[name] = {"share": share, **curve.accuracy(network, judged)}
            write_json(file, rows)
            print(name, rows[name], flush=True)
    return rows


def show(rows: dict[str, Any], sizes: list[str]) -> None:
    head = [f"{rows[f'{s}: all']['share']:.1%}" for s in sizes]
    print(f"\n| learnt from | judged on | {' | '.join(head)} |\n|---|---|" + "---|" * len(sizes))
    for lessons, (_, judged) in LESSONS.items():
        for n in judged:
            cells = [f"{rows[f'{s}: {lessons}'][str(n)]:.0%}" for s in sizes]
            print(f"| {lessons} | {n} | {' | '.join(cells)} |")


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--sizes", default=".29443,.33,.4", help="Shares of the multiply-adds.")
    made.add_argument(
        "--training", type=int, default=480, help="Captions drawn; a sixth is left out."
    )
    made.add_argument("--captions", type=int, default=60, help="That judge, of each kind.")
    made.add_argument("--updates", type=int, default=120, help="Of each network.")
    made.add_argument("--batch", type=int, default=16, help="Captions of an update.")
    made.add_argument("--rate", type=float, default=1e-3, help="Learning rate at its peak.")
    made.add_argument("--work", type=Path, default=Path("runs/aptp_curve"))
    options = made.parse_args()
    torch.set_num_threads(1)
    if options.quick:
        options.sizes, options.training, options.captions = ".33", 24, 3
        options.updates, options.batch, options.work = 2, 4, options.work / f"{time.time():.0f}"
    options.work.mkdir(parents=True, exist_ok=True)
    sizes = options.sizes.split(",")
    file = options.work / f"{options.updates}-{options.training}.json"
    rows = measured(Curve(options), options, file)
    show(rows, sizes)
    report(
        "aptp_curve", options, seeds=[0], goals=[], rows=rows,
        training=options.training, captions=options.captions, updates=options.updates,
        batch=options.batch,
    )  # fmt: skip


if __name__ == "__main__":
    main()
