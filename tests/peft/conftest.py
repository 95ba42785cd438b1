from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder of a tiny classifier."""
    from ..transformer.folders import folder

    return folder(tmp_path_factory.mktemp("model") / "MODEL", "classifier")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Forty texts of two kinds."""
    lines = ["text\tlabel"]
    for i in range(20):
        lines += [f"the old cat sleeps {'slowly ' * (i % 3)}\tcat", "a quick dog runs\tdog"]
    file = tmp_path_factory.mktemp("data") / "texts.tsv"
    file.write_text("\n".join(lines) + "\n")
    return file
