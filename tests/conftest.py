from __future__ import annotations

import os

import jaxtyping
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Decoded images go to a folder of the session, not to the user's cache."""
    before = os.environ.get("COMPRESS3G_CACHE")
    os.environ["COMPRESS3G_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("COMPRESS3G_CACHE")
    if before is not None:
        os.environ["COMPRESS3G_CACHE"] = before


@pytest.fixture
def unchecked():
    """Calls as outside tests: what a user passes wrongly reaches the code."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs CUDA"))
