"""What is found in denoisers, and what is left out with a reason."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from compress3g.core import gated, materialize
from compress3g.diffusion import skipped_of, units_of
from compress3g.errors import CutError


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def sana(**options):
    import diffusers

    sizes = {"num_layers": 1, "num_attention_heads": 4, "attention_head_dim": 8}
    cross = {
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 16,
        "cross_attention_dim": 32,
    }
    rest = {"sample_size": 8, "in_channels": 4, "out_channels": 4, "caption_channels": 16}
    return diffusers.SanaTransformer2DModel(**{**sizes, **cross, **rest, **options}).eval()


def test_norms_over_all_heads_keep_them_and_say_so():
    model = sana(qk_norm="rms_norm_across_heads")
    assert [u.name.rpartition(".")[2] for u in units_of(model)] == ["neurons"]
    skipped = {s.name: s.reason for s in skipped_of(model)}
    assert set(skipped) == {"transformer_blocks.0.attn1", "transformer_blocks.0.attn2"}
    assert all("normalises over all heads" in reason for reason in skipped.values())


def test_fused_projections_are_refused():
    import diffusers
    from diffusers.models.attention_processor import Attention

    model = diffusers.DiTTransformer2DModel(
        **{"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8, "sample_size": 8},
        **{"in_channels": 4, "patch_size": 2, "num_embeds_ada_norm": 10},
    )
    assert not skipped_of(model)
    assert units_of(model)
    for module in model.modules():
        if isinstance(module, Attention):
            module.fuse_projections(fuse=True)
    with pytest.raises(CutError, match="unfuse_qkv_projections"):
        units_of(model)


@pytest.mark.filterwarnings("ignore:.*Transformer2DModelOutput.*:FutureWarning")
def test_query_heads_that_share_a_key_go_together():
    import diffusers

    torch.manual_seed(0)
    model = diffusers.StableAudioDiTModel(
        **{"sample_size": 8, "in_channels": 4, "out_channels": 4, "num_layers": 1},
        **{"attention_head_dim": 16, "num_attention_heads": 4, "num_key_value_attention_heads": 2},
        **{"cross_attention_dim": 16, "time_proj_dim": 8, "global_states_input_dim": 16},
        cross_attention_input_dim=16,
    ).eval()
    grouped = next(u for u in units_of(model) if u.name.endswith("attn2.heads"))
    assert (grouped.size, grouped.reads[0].chunk) == (2, 32)

    def run(model):
        rotary = (torch.ones(9, 8), torch.zeros(9, 8))
        return model(
            noise(2, 4, 8),
            torch.full((2,), 0.5),
            encoder_hidden_states=noise(2, 5, 16),
            global_hidden_states=noise(2, 1, 16),
            rotary_embedding=rotary,
        ).sample

    with torch.no_grad(), gated(model, [grouped], {grouped.name: torch.tensor([0.0, 1.0])}):
        masked = run(model)
    small = materialize(copy.deepcopy(model), [grouped], {grouped.name: torch.tensor([1])})
    with torch.no_grad():
        cut = run(small)
        assert not torch.allclose(cut, run(model), atol=1e-4)
    # Sums of fewer terms round differently.
    assert torch.allclose(cut, masked, atol=1e-5)


def test_a_model_without_units_is_an_error():
    with pytest.raises(CutError, match="no unit of a known kind"):
        units_of(nn.Sequential(nn.Linear(2, 2)))
