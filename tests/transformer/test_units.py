"""Families whose projections are fused, or whose heads are tied across layers."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress3g.core import Budget, gated, materialize, price, select
from compress3g.transformer import from_pretrained, save_pretrained, units_of
from compress3g.transformer.depth import drop_layers, layers_of

_SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "pad_token_id": 0,
}
FAMILIES = {
    "GPT2LMHeadModel": ("GPT2Config", {"vocab_size": 60, "n_embd": 32, "n_layer": 3, "n_head": 4}),
    "GPTNeoXForCausalLM": ("GPTNeoXConfig", _SIZES),
    "Phi3ForCausalLM": ("Phi3Config", {**_SIZES, "num_key_value_heads": 2}),
    "Gemma2ForCausalLM": (
        "Gemma2Config",
        {**_SIZES, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4},
    ),
    "Dinov2Model": ("Dinov2Config", {**_SIZES, "image_size": 16, "patch_size": 8}),
}
families = pytest.mark.parametrize("name", FAMILIES)


def build(name):
    import transformers

    kind, options = FAMILIES[name]
    if name == "Dinov2Model":
        options = {k: v for k, v in options.items() if k in ("hidden_size", "num_hidden_layers")}
        options |= {"num_attention_heads": 4, "image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    return getattr(transformers, name)(getattr(transformers, kind)(**options)).eval()


def run(model):
    g = torch.Generator().manual_seed(1)
    if model.main_input_name == "pixel_values":
        return model(pixel_values=torch.randn(2, 3, 16, 16, generator=g))[0]
    return model(input_ids=torch.randint(3, 50, (2, 9), generator=g))[0]


@families
@settings(max_examples=4, deadline=None)
@given(keep=st.floats(0.5, 1.0), seed=st.integers(0, 1 << 16))
def test_masked_equals_materialized(name, keep, seed):
    model = build(name)
    units = price(model, units_of(model))
    g = torch.Generator().manual_seed(seed)
    kept = select({u.name: torch.rand(u.size, generator=g) for u in units}, units, Budget(keep))
    gates = {u.name: torch.zeros(u.size).index_fill(0, kept[u.name], 0.7) for u in units}
    with torch.no_grad(), gated(model, units, gates):
        masked = run(model)
    small = materialize(copy.deepcopy(model), units, kept, gates=gates)
    with torch.no_grad():
        # sums of fewer terms round differently
        assert float((run(small) - masked).abs().max()) < 1e-5 * float(masked.abs().max())


@families
def test_layers_and_units_go_and_the_folder_loads_again(name, tmp_path):
    model = build(name)
    drop_layers(model, [layers_of(model)[0]])
    units = price(model, units_of(model))
    g = torch.Generator().manual_seed(0)
    kept = select({u.name: torch.rand(u.size, generator=g) for u in units}, units, Budget(0.6))
    materialize(model, units, kept)
    save_pretrained(tmp_path / "small", model)
    again = from_pretrained(tmp_path / "small")
    with torch.no_grad():
        assert torch.equal(run(again), run(model))
    if model.can_generate():
        ids = torch.tensor([[4, 9, 7]])
        settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
        cached = again.generate(ids, **settings)
        assert torch.equal(cached, again.generate(ids, use_cache=False, **settings))


@pytest.mark.parametrize("name", ["T5EncoderModel", "MPNetModel"])
def test_heads_that_share_a_table_of_biases_stay(name):
    import transformers

    config = {
        "T5EncoderModel": lambda: transformers.T5Config(
            vocab_size=60, d_model=32, d_kv=8, d_ff=24, num_layers=2, num_heads=4
        ),
        "MPNetModel": lambda: transformers.MPNetConfig(**_SIZES),
    }[name]()
    units = units_of(getattr(transformers, name)(config))
    assert units
    assert all(u.name.endswith("neurons") for u in units)
