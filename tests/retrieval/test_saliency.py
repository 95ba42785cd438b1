"""Saliency: fused attention's output to the bit, eager attention's sums."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")

from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel

from compress3g.retrieval.encoders.saliency import mean_attention, watch_attention, watched_layers

LENGTHS = (11, 7)


def tiny(family: str, implementation: str = "sdpa"):
    torch.manual_seed(1)
    if family == "bert":
        config = BertConfig(
            vocab_size=50, hidden_size=32, num_hidden_layers=5, num_attention_heads=4,
            intermediate_size=48, max_position_embeddings=600, initializer_range=0.5,
        )  # fmt: skip
        model = BertModel(config)
    else:
        config = LlamaConfig(
            vocab_size=50, hidden_size=32, num_hidden_layers=5, num_attention_heads=4,
            num_key_value_heads=2, intermediate_size=48, initializer_range=0.5,
        )  # fmt: skip
        model = LlamaModel(config)
    model.eval().set_attn_implementation(implementation)
    return model


def batch(lengths=LENGTHS, *, left: bool = False):
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    valid = torch.zeros_like(ids, dtype=torch.bool)
    generator = torch.Generator().manual_seed(2)
    for i, n in enumerate(lengths):
        place = slice(max(lengths) - n, None) if left else slice(0, n)
        ids[i, place] = torch.randint(1, 50, (n,), generator=generator)
        valid[i, place] = True
    return ids, valid


def watched(model, ids, valid, kind):
    with torch.no_grad(), watch_attention(model, valid, [kind]) as seen:
        hidden = model(input_ids=ids, attention_mask=valid.long()).last_hidden_state
    return hidden, seen.results[kind]


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("lengths", [LENGTHS, (9, 9)])  # padded, and without any mask
def test_output_is_that_of_fused_attention_to_the_bit(family, lengths):
    model = tiny(family)
    ids, valid = batch(lengths)
    with torch.no_grad():
        plain = model(input_ids=ids, attention_mask=valid.long()).last_hidden_state
    hidden, _ = watched(model, ids, valid, "indegree")
    assert torch.equal(hidden, plain)


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("kind", ["indegree", "last_indegree", "last_row"])
@pytest.mark.parametrize("lengths", [LENGTHS, (9, 9), (300,)])  # 300: more than a block of rows
def test_saliency_is_the_column_mean_of_eager_attention(family, left, kind, lengths):
    ids, valid = batch(lengths, left=left)
    _, found = watched(tiny(family), ids, valid, kind)
    with torch.no_grad():
        eager = tiny(family, "eager")
        layers = eager(
            input_ids=ids, attention_mask=valid.long(), output_attentions=True
        ).attentions
    for b, row in enumerate(valid):
        tokens = row.nonzero().flatten()
        expected = torch.zeros(len(row), dtype=torch.float64)
        chosen = watched_layers(kind, 5)
        for layer in chosen:
            weights = layers[layer][b].double().mean(0)[tokens][:, tokens]
            if kind == "last_row":
                expected[tokens] += weights[-1]
            else:
                n = len(tokens)
                may = torch.arange(n, 0, -1) if family == "llama" else torch.full((n,), n)
                expected[tokens] += weights.sum(0) / may
        # Eager attention adds up in another order, in float32.
        torch.testing.assert_close(found[b].double(), expected / len(chosen), atol=1e-5, rtol=0)


def test_several_kinds_at_once_are_each_what_it_is_alone():
    model, (ids, valid) = tiny("bert"), batch()
    kinds = ("indegree", "last_indegree", "last_row")
    with torch.no_grad(), watch_attention(model, valid, kinds) as seen:
        model(input_ids=ids, attention_mask=valid.long())
    for kind in kinds:
        assert torch.equal(seen.results[kind], watched(model, ids, valid, kind)[1])


def test_attention_is_as_before_afterwards_even_after_an_error():
    model = tiny("bert")
    _, valid = batch()
    with pytest.raises(RuntimeError, match="stop"), watch_attention(model, valid, ["indegree"]):
        raise RuntimeError("stop")
    assert model.config._attn_implementation == "sdpa"


def test_an_additive_mask_counts_like_a_boolean_one():
    generator = torch.Generator().manual_seed(3)
    q, k = torch.randn(2, 1, 4, 6, 8, generator=generator)
    may = torch.rand(1, 1, 6, 6, generator=generator) > 0.3
    may |= torch.eye(6, dtype=torch.bool)
    rows = torch.ones(1, 6, dtype=torch.bool)
    additive = torch.zeros(1, 1, 6, 6).masked_fill(~may, torch.finfo(torch.float32).min)
    torch.testing.assert_close(
        mean_attention(q, k, rows, mask=additive), mean_attention(q, k, rows, mask=may)
    )
