"""What a router is trained on, term by term (APTP 2406.12042, section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def denoising_loss(
    predicted: Float[Tensor, "B ..."], target: Float[Tensor, "B ..."], weight: Float[Tensor, "B"]
) -> Float[Tensor, ""]:
    """L_ddpm = mean_b w_b |predicted_b - target_b|^2; a predicted variance is left out."""
    each = (predicted[:, : target.shape[1]].float() - target.float()).square().flatten(1).mean(1)
    loss: Tensor = (weight * each).mean()
    return loss


def min_snr_weight(scheduler: Any, times: Float[Tensor, "B"], limit: float) -> Float[Tensor, "B"]:
    """w = min(SNR, limit) / SNR, over SNR + 1 for velocities (2303.09556); 1 for flows.

    SNR = alphabar_t / (1 - alphabar_t).
    """
    kind = scheduler.config.get("prediction_type", "flow_prediction")
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is None or kind not in ("epsilon", "v_prediction", "sample"):
        return torch.ones_like(times)
    alpha = alphas.to(times.device)[times.long().clamp(0, len(alphas) - 1)]
    snr = (alpha / (1 - alpha)).clamp(min=1e-8)
    least = snr.clamp(max=limit)
    over = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}[kind]
    weight: Tensor = (least / over).to(times.dtype)
    return weight


def distillation_loss(ours: Tensor, dense: Tensor) -> Float[Tensor, ""]:
    """L_distill = mean |ours - dense|^2."""
    return (ours.float() - dense.float()).square().mean()


def block_loss(ours: Sequence[Tensor], dense: Sequence[Tensor]) -> Float[Tensor, ""]:
    """L_block = mean over blocks of mean |ours - dense|^2 of what they return."""
    return torch.stack([distillation_loss(a, b) for a, b in zip(ours, dense, strict=True)]).mean()


def resource_loss(shares: Float[Tensor, "B"], p: float) -> Float[Tensor, ""]:
    """L_res = |log(mean_b r_b / p)|, r_b the share of the prunable cost that sample b keeps."""
    return (shares.mean() / p).log().abs()


def contrastive_loss(
    prompts: Float[Tensor, "B d"], codes: Float[Tensor, "B U"], temperature: float
) -> Float[Tensor, ""]:
    """L_cont = BCE(S_a, S_z): networks are as alike as the prompts they are for.

    S = softmax over each row of the cosines over the temperature. prompts: embeddings, not learnt;
    codes: unit vectors n(GS(e)).
    """
    with torch.no_grad():
        z = F.normalize(prompts.float(), dim=-1)
        wanted = (z @ z.T / temperature).softmax(-1)
    found = (codes @ codes.T / temperature).softmax(-1)
    return F.binary_cross_entropy(found.clamp(1e-7, 1 - 1e-7), wanted.clamp(0, 1))


def spread_loss(shares: Float[Tensor, "B"]) -> Float[Tensor, ""]:
    """- std_b r_b: capacities shall differ."""
    return -shares.std(correction=0)


def peak_loss(shares: Float[Tensor, "B"]) -> Float[Tensor, ""]:
    """1 - max_b r_b: some prompt shall have nearly all."""
    return 1 - shares.max()
