"""What token pruning wins on a processor: Vim-T at 224 pixels, against the ratio of multiply-adds.

    python benchmarks/mamba_speed.py [--quick] [--batch 4] [--seconds 40]

One thread, float32, random weights (speed does not depend on them), processor time; dense and
pruned passes alternate, and the ratio is the median over neighbours with its 95 % interval. Tokens
go after blocks 5, 10 and 15 (2409.18962). `realised` is the speed-up over the ideal one, the ratio
of multiply-adds in the papers' convention. What alignment costs is measured at the same tokens:
scan and convolution alignment, each and together, against neither; so is what merging costs
(`ward`, `r_meeto`) against dropping as many.
"""

from __future__ import annotations

from functools import partial

import torch
from _report import goal, parser, report

from compress3g.mamba import PruneConfig, PruneSchedule, create_model, flops, preset, pruned
from compress3g.mamba.bench import benchmark
from compress3g.profile import compare

LAYERS = (5, 10, 15)
REALISED = {0.8: 95.0, 0.7: 90.0}
MOST_OF_ALIGNMENT = 3.0


def config(keep: float, **changes: str) -> PruneConfig:
    schedule = PruneSchedule(layers=LAYERS, keep=(keep,) * len(LAYERS))
    return PruneConfig(schedule=schedule, **changes)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--batch", type=int, default=4)
    options.add_argument("--seconds", type=float, default=40.0)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    seconds = 4.0 if chosen.quick else chosen.seconds
    model = create_model("vim_tiny").eval()
    images = torch.randn(chosen.batch, 3, 224, 224)
    rows, goals = {}, []
    for keep, limit in REALISED.items():
        ward = preset("ward", config(keep).schedule)
        for name, setting in ((f"keep {keep}", config(keep)), (f"ward at keep {keep}", ward)):
            speed = benchmark(model, [setting], images=images, seconds=seconds)[0]
            realised = 100 * speed.speed_up / speed.ideal
            rows[name] = {**speed.to_json(), "realised": realised}
            print(f"{name}: {speed.speed_up:.2f}x, ideal {speed.ideal:.2f}x")
            goals.append(goal(f"speed-up realised, {name}", realised, limit, unit="%"))

        def run(setting: PruneConfig) -> torch.Tensor:
            with torch.inference_mode(), pruned(model, setting):
                return model(images)

        naive = partial(run, config(keep, align="none", conv_align="none"))
        parts = {"alignment of both": config(keep), "merging by ward": ward}
        if not chosen.quick:
            parts |= {
                "alignment of scan": config(keep, conv_align="none"),
                "alignment of convolution": config(keep, align="none"),
                "ordered merging": preset("r_meeto", ward.schedule),
            }
        for name, setting in parts.items():
            ratio = compare(naive, partial(run, setting), seconds=seconds, clock="cpu")
            cost = 100 * (ratio.median - 1)
            rows[f"{name} at keep {keep}"] = {
                "percent": cost, "low": 100 * (ratio.low - 1), "high": 100 * (ratio.high - 1),
            }  # fmt: skip
            print(f"{name} at keep {keep}: {cost:+.1f} %")
        both = rows[f"alignment of both at keep {keep}"]["percent"]
        goals.append(
            goal(f"cost of alignment at keep {keep}", both, MOST_OF_ALIGNMENT, unit="%",
                 at_least=False)
        )  # fmt: skip
    for name in ("vim_tiny", "vim_small"):
        with torch.device("meta"):
            cost = flops(create_model(name)).total / 1e9
        rows[name] = {"macs": cost}
        print(f"{name}: {cost:.2f} G multiply-adds in the papers' convention")
    report("mamba_speed", chosen, seeds=[0], goals=goals, rows=rows, batch=chosen.batch)


if __name__ == "__main__":
    main()
