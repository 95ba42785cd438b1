"""The Python in docs/ runs as printed, and relative links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from transformers import AutoModel

from compress3g.transformer import save_pretrained

from .transformer.folders import folder

ROOT = Path(__file__).parent.parent
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
BLOCKS = [
    pytest.param(block, id=f"{page.stem}-{i}")
    for page in PAGES
    for i, block in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S))
]


@pytest.fixture
def pages_folder(tmp_path, monkeypatch):
    """Where the pages' examples find MODEL, a pruned SMALL, texts.txt, and shipped pipelines."""
    (tmp_path / "pipelines").symlink_to(ROOT / "pipelines")
    folder(tmp_path / "MODEL", "encoder")
    (tmp_path / "texts.txt").write_text("the old cat sleeps\na quick dog runs over the house\n" * 4)
    monkeypatch.chdir(tmp_path)
    model = AutoModel.from_pretrained("MODEL")
    save_pretrained(Path("SMALL"), model, Path("MODEL"))


@pytest.mark.usefixtures("pages_folder")
@pytest.mark.parametrize("block", BLOCKS)
def test_examples_run(block):
    exec(compile(block, "example", "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    missing = [x for x in links if "://" not in x and not (page.parent / x).exists()]
    assert not missing
