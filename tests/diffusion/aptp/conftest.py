"""A router trained in seconds on a tiny random pipeline."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compress3g.core import Cut, Units
from compress3g.diffusion.aptp import AptpConfig, AptpPipeline, train_router
from compress3g.diffusion.aptp.codes import Space
from compress3g.diffusion.aptp.corpus import Corpus

from ..tiny import captions

PROMPTS = [
    "a red seven", "a blue three", "a red three", "a blue seven",
    "a red seven above a blue three", "a blue three above a red seven",
    "a red three above a red three", "a blue seven above a blue seven",
]  # fmt: skip
CONFIG = AptpConfig(
    experts=3, target=0.8, steps=6, batch=4, warmup=0.4, learning_rate=0.3, bundle=8,
    inference_steps=4,
)  # fmt: skip


def deep(count=32):
    """Blocks of two linear layers, in an order of their own, as a model and its space."""
    model = nn.ModuleDict()
    for i in range(count):
        model.update({f"up{i}": nn.Linear(4, 6), f"down{i}": nn.Linear(6, 4)})
    blocks = [Units(f"b{i}", 1, bypass=f"up{i}", cost={"flops": 3.0}) for i in range(count)]
    neurons = [
        Units(
            f"n{i}", 6, writes=(Cut(f"up{i}", "out"),), reads=(Cut(f"down{i}", "in"),),
            inside=f"b{i}", cost={"flops": 2.0},
        )
        for i in range(count)
    ]  # fmt: skip
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    return model, Space((*blocks, *neurons), tuple(order), 20.0 * count)


@pytest.fixture(scope="session")
def pipe():
    return captions()


@pytest.fixture(scope="session")
def corpus(pipe):
    return Corpus.of(pipe, PROMPTS, steps=4)


@pytest.fixture(scope="session")
def router(corpus):
    return train_router(corpus, CONFIG)


@pytest.fixture
def routed(pipe, router):
    return AptpPipeline(pipe, router)
