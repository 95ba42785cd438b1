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

from collections.abc import Callable

import torch
from _pruned_speed import RATIOS, Given, Pipe, speeds
from _report import goal, parser, report


def unet(heads: int | tuple[int, ...]) -> tuple[Pipe, Given]:
    import diffusers

    # What diffusers calls `attention_head_dim` is the number of heads.
    model = diffusers.UNet2DConditionModel(
        sample_size=32, block_out_channels=(128, 256, 512, 512), attention_head_dim=heads,
        cross_attention_dim=512, use_linear_projection=heads != 4,
    )  # fmt: skip
    text = torch.randn(2, 77, 512)
    given = {"timestep": torch.tensor(500), "encoder_hidden_states": text}
    return Pipe(unet=model), {"sample": torch.randn(2, 4, 32, 32), **given}


def transformer() -> tuple[Pipe, Given]:
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


DENOISERS: dict[str, Callable[[], tuple[Pipe, Given]]] = {
    "U-Net, SD 1": lambda: unet(4),
    "U-Net, SD 2": lambda: unet((2, 4, 8, 8)),
    "SD 3": transformer,
}


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    seconds = 1.0 if options.quick else 20.0
    denoisers = dict(list(DENOISERS.items())[1:]) if options.quick else DENOISERS
    ratios = RATIOS[1:] if options.quick else RATIOS
    rows, goals = speeds(denoisers, ratios, seconds=seconds, clock="cpu")
    size = min(row["params"] for row in rows.values()) / 1e6
    goals.append(goal("million parameters of the smaller denoiser", size, 60))
    report("diffusion_speed", options, seeds=[0], goals=goals, rows=rows, seconds=seconds)


if __name__ == "__main__":
    main()
