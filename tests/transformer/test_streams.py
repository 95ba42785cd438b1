"""Residual streams are found by looking at one forward pass."""

from __future__ import annotations

import pytest
import torch

from compress3g.transformer import units_of
from compress3g.transformer.streams import streams_of

from ..peft.families import build, inputs

# Blocks that normalise after they add, or what they add; DINOv2's own scales are ones at the start.
NONE = ("bert", "roberta", "distilbert", "gemma2")
TWO = {"siglip": 2, "clip": 2, "idefics3": 2, "paligemma": 2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "name", [*NONE, *TWO, "modernbert", "opt", "gpt2", "llama", "qwen3", "phi3", "vit"]
)
def test_a_stream_is_found_where_blocks_only_add(name, dtype):
    model = build(name).to(dtype)
    part = {k: t.to(dtype) if t.is_floating_point() else t for k, t in inputs(name).items()}
    sites = units_of(model)
    found = streams_of(model, sites, lambda: model(**part))
    assert len(set(found.values())) == (0 if name in NONE else TWO.get(name, 1))
    readers = {cut.module for u in sites for cut in u.reads if ".head." not in cut.module}
    assert set(found) == (set() if name in NONE else readers)


def test_no_stream_is_found_when_a_block_adds_something_else():
    model, part = build("llama"), inputs("llama")
    sites = [u for u in units_of(model) if u.name != "model.layers.1.mlp.neurons"]
    assert any("layers.1" in u.name for u in sites)
    assert not streams_of(model, sites, lambda: model(**part))
