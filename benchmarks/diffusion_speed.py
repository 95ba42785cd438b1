"""How much faster denoisers are with a share of their parameters gone.

    python benchmarks/diffusion_speed.py [--quick] [--json]

Denoisers of more than 60 million parameters with random weights: U-Nets of Stable Diffusion's first
and second layout (4 heads in every layer; heads of 64 channels) at two fifths of their width, and a
transformer of Stable Diffusion 3's. Units are scored by magnitude, which takes the same share of
every group, and cut with the product's own rounding. A batch of two (guidance), latents of 32 x 32,
77 tokens of text, one thread. Dense and pruned run in turn
(`compress3g.profile.compare`), in processor time, since the machine may be shared. "of MACs" is the
share of time that is saved over the share of multiply-adds that is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from _report import goal, parser, report

import compress3g.diffusion as cd
from compress3g.profile import compare, count_flops

RATIOS = (0.2, 0.5)
FASTER = {0.2: 1.15, 0.5: 1.5}


class Pipe:
    """As much of a pipeline as pruning looks at."""

    def __init__(self, **parts: Any) -> None:
        self.register_modules(**parts)

    def register_modules(self, **parts: Any) -> None:
        vars(self).update(parts)


def unet(heads: int | tuple[int, ...]) -> tuple[Pipe, dict[str, Any]]:
    import diffusers

    # What diffusers calls `attention_head_dim` is the number of heads.
    model = diffusers.UNet2DConditionModel(
        sample_size=32, block_out_channels=(128, 256, 512, 512), attention_head_dim=heads,
        cross_attention_dim=512, use_linear_projection=heads != 4,
    )  # fmt: skip
    text = torch.randn(2, 77, 512)
    given = {"timestep": torch.tensor(500), "encoder_hidden_states": text}
    return Pipe(unet=model), {"sample": torch.randn(2, 4, 32, 32), **given}


def transformer() -> tuple[Pipe, dict[str, Any]]:
    import diffusers

    model = diffusers.SD3Transformer2DModel(
        sample_size=32, num_layers=8, attention_head_dim=64, num_attention_heads=8,
        joint_attention_dim=512, caption_projection_dim=512, pooled_projection_dim=256,
        in_channels=16, out_channels=16, pos_embed_max_size=32,
    )  # fmt: skip
    return Pipe(transformer=model), {
        "hidden_states": torch.randn(2, 16, 32, 32), "timestep": torch.tensor([500.0, 500.0]),
        "encoder_hidden_states": torch.randn(2, 77, 512), "pooled_projections": torch.randn(2, 256),
    }  # fmt: skip


DENOISERS: dict[str, Callable[[], tuple[Pipe, dict[str, Any]]]] = {
    "U-Net, SD 1": lambda: unet(4),
    "U-Net, SD 2": lambda: unet((2, 4, 8, 8)),
    "SD 3": transformer,
}


def call(model: Any, given: dict[str, Any]) -> Callable[[], object]:
    def again() -> object:
        with torch.inference_mode():
            return model(**given, return_dict=False)

    return again


def measured(pipe: Pipe, given: dict[str, Any], ratio: float, seconds: float) -> dict[str, float]:
    config = cd.PruneConfig(method="magnitude", ratio=ratio)
    small = copy.deepcopy(pipe)
    cd.prune(small, cd.scores_of(small, [], config), **config.how())
    models = [cd.denoiser_of(p)[1].eval() for p in (pipe, small)]
    params = [sum(p.numel() for p in m.parameters()) for m in models]
    runs = [call(m, given) for m in models]
    macs = [count_flops(run).total / 2 for run in runs]
    time = compare(*runs, seconds=seconds, clock="cpu")
    saved = 1 - macs[1] / macs[0]
    return {
        "params": params[0], "gone": 1 - params[1] / params[0], "macs": macs[0], "saved": saved,
        "faster": 1 / time.median, "low": 1 / time.high, "high": 1 / time.low,
        "realised": (1 - time.median) / saved, "dense ms": time.a.p50,
    }  # fmt: skip


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    seconds = 1.0 if options.quick else 20.0
    rows: dict[str, Any] = {}
    goals = []
    print(f"{'':14}{'ratio':>6}{'parameters':>12}{'MACs':>9}{'time':>9}{'faster':>9}  of MACs")
    for name, build in list(DENOISERS.items())[1 if options.quick else 0 :]:
        torch.manual_seed(0)
        pipe, given = build()
        for ratio in RATIOS[1:] if options.quick else RATIOS:
            row = rows[f"{name}/{ratio}"] = measured(pipe, given, ratio, seconds)
            print(
                f"{name:14}{ratio:>6.0%}{-row['gone']:>12.1%}{-row['saved']:>9.1%}"
                f"{1 / row['faster'] - 1:>9.1%}{row['faster']:>9.2f}{row['realised']:>9.1%}"
                f"   ({row['low']:.2f} to {row['high']:.2f}, dense {row['dense ms']:.0f} ms)",
                flush=True,
            )
    for key, row in rows.items():
        ratio = float(key.rpartition("/")[2])
        goals += [
            goal(f"{key}: times as fast", row["faster"], FASTER[ratio]),
            goal(f"{key}: share of the MACs saving", row["realised"], 0.9),
        ]
    size = min(row["params"] for row in rows.values()) / 1e6
    goals.append(goal("million parameters of the smaller denoiser", size, 60))
    report("diffusion_speed", options, seeds=[0], goals=goals, rows=rows, seconds=seconds)


if __name__ == "__main__":
    main()
