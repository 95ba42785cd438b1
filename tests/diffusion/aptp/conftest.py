"""A router trained in seconds on a tiny random pipeline."""

from __future__ import annotations

import pytest

from compress3g.diffusion.aptp import AptpConfig, AptpPipeline, train_router
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
