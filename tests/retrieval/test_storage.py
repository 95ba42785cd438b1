"""Array folders, segments, catalog and writer: what is on disk is what was given."""

from __future__ import annotations

import errno
import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress3g.errors import FormatError
from compress3g.retrieval import array_folder
from compress3g.retrieval.array_folder import BLOCK, ArrayFolder, ArrayFolderWriter
from compress3g.retrieval.catalog import Catalog, Change, DocumentRow, NewSegment
from compress3g.retrieval.places import pack_places, unpack_places
from compress3g.retrieval.segment import PageRows, Segment, SegmentWriter, copy_pages
from compress3g.retrieval.writer import Writer


@settings(deadline=None, max_examples=50)  # every example is fsynced
@given(
    pieces=st.lists(st.integers(0, 50), min_size=1, max_size=5),
    dtype=st.sampled_from(["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"]),
    row=st.sampled_from([(), (3,), (2, 2)]),
    map=st.booleans(),
)
def test_arrays_come_back_bit_for_bit(tmp_path_factory, pieces, dtype, row, map):
    draw = np.random.default_rng(0)
    parts = [
        np.frombuffer(draw.bytes(n * int(np.prod(row)) * np.dtype(dtype).itemsize), dtype)
        .reshape(n, *row)
        for n in pieces
    ]  # fmt: skip
    writer = ArrayFolderWriter(tmp_path_factory.mktemp("arrays") / "made")
    for part in parts:
        writer.append("a", part)
    digest = writer.finish({"kind": "test"}).digest
    folder = ArrayFolder.open(writer.folder, expected=digest, map=map)
    assert folder.arrays["a"].tobytes() == np.concatenate(parts).tobytes()
    assert folder.arrays["a"].dtype == np.dtype(dtype)
    assert folder.facts == {"kind": "test"}
    assert list(folder.damaged()) == []


def made(path, array) -> ArrayFolder:
    writer = ArrayFolderWriter(path)
    writer.append("a", array)
    return writer.finish({})


def test_mapped_arrays_are_read_only_aligned_and_outlive_their_files(tmp_path):
    folder = made(tmp_path / "x", np.arange(100_000))
    for file in folder.path.iterdir():
        file.unlink()
    folder.path.rmdir()
    array = folder.arrays["a"]
    assert array.sum() == 99_999 * 50_000
    assert array.ctypes.data % 64 == 0
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


@pytest.mark.parametrize("at", [0, BLOCK - 1, BLOCK, 2 * BLOCK + 7])
def test_a_flipped_bit_is_found_in_its_block(tmp_path, at):
    folder = made(tmp_path / "x", np.zeros(2 * BLOCK + 100, np.uint8))
    with open(folder.path / "a.u8", "r+b") as file:
        file.seek(at)
        file.write(b"\x01")
    first = at // BLOCK * BLOCK
    last = min(first + BLOCK, 2 * BLOCK + 100)
    assert list(ArrayFolder.open(folder.path).damaged()) == [("a", first, last)]


def test_headers_that_are_damaged_foreign_or_newer_are_refused(tmp_path):
    folder = made(tmp_path / "x", np.arange(4))
    header = folder.path / "header.json"
    text = header.read_text()
    with pytest.raises(FormatError, match=r"header\.json is damaged"):
        ArrayFolder.open(folder.path, expected="0" * 32)
    for wrong, words in (
        ("not json", "damaged"),
        ("[1]", "damaged"),
        ("{}", "damaged"),
        (json.dumps({**json.loads(text), "format": 9}), "has format 9"),
        (text.replace('"bytes": 32', '"bytes": 40'), "instead of 40"),
    ):
        header.write_text(wrong)
        with pytest.raises(FormatError, match=words):
            ArrayFolder.open(folder.path)


def test_rows_of_another_kind_are_refused_before_they_are_written(tmp_path):
    writer = ArrayFolderWriter(tmp_path / "x")
    writer.append("a", np.zeros((2, 3), np.float32))
    for wrong in (np.zeros((2, 4), np.float32), np.zeros((2, 3), np.float16)):
        with pytest.raises(ValueError, match="holds float32 rows of"):
            writer.append("a", wrong)
    writer.abandon()
    assert not (tmp_path / "x").exists()


@settings(deadline=None, max_examples=30)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    dead=st.sets(st.integers(0, 40)),
)
def test_copied_pages_are_the_living_ones_unchanged(tmp_path_factory, lengths, dead):
    folder = tmp_path_factory.mktemp("segments")
    draw = np.random.default_rng(len(lengths))
    # Two segments whose page numbers interleave, as compactions of some segments can leave them.
    ids = np.flatnonzero(draw.random(len(lengths) * 3) < 0.7)
    halves = [ids[::2], ids[1::2]]
    segments, wanted = [], {}
    for number, half in enumerate(halves):
        writer = SegmentWriter(ArrayFolderWriter(folder / f"seg-{number}"))
        for page in half:
            codes = draw.integers(0, 9, lengths[page % len(lengths)]).astype(np.uint8)
            unique = np.unique(codes)
            writer.append(
                PageRows(np.asarray([page]), np.asarray([len(codes)]), {"codes": codes},
                         {"unique": (unique, np.asarray([len(unique)]))})
            )  # fmt: skip
            wanted[int(page)] = (codes.tolist(), unique.tolist())
        if len(half):
            segments.append(Segment(writer.finish()))
    keep = [~np.isin(s.page_ids, sorted(dead)) for s in segments]
    living = {p: w for p, w in wanted.items() if p not in dead}
    if not living:
        return
    target = SegmentWriter(ArrayFolderWriter(folder / "seg-copy"))
    copy_pages(segments, keep, target)
    copy = Segment(target.finish())
    assert copy.page_ids.tolist() == sorted(living)
    for row, page in enumerate(copy.page_ids.tolist()):
        piece = copy.take(row, row + 1)
        found = (piece.vectors["codes"].tolist(), piece.streams["unique"][0].tolist())
        assert found == living[page]
    assert list(copy.problems(9)) == []


@given(
    grids=st.lists(
        st.lists(st.tuples(st.integers(-1, 3000), st.integers(-1, 3000)), max_size=40),
        min_size=1, max_size=4,
    )
)  # fmt: skip
def test_places_come_back(grids):
    lengths = np.asarray([len(g) for g in grids])
    flat = np.asarray([p for g in grids for p in g], np.int16).reshape(-1, 2)
    packed, sizes = pack_places(flat, lengths)
    start = 0
    for grid, size in zip(grids, sizes.tolist(), strict=True):
        assert [tuple(p) for p in unpack_places(packed[start : start + size]).tolist()] == grid
        start += size


def test_places_of_a_page_of_patches_take_a_fraction_of_its_codes():
    grid = np.stack(np.divmod(np.arange(1024), 32), 1).astype(np.int16)
    packed, _ = pack_places(grid, np.asarray([1024]))
    assert len(packed) < 120


@pytest.fixture
def folder(tmp_path):
    Catalog.create(tmp_path, {"made": "yes"}).close()
    return tmp_path


def add_one(writer: Writer, path: str = "a", pages: int = 2) -> None:
    segment = SegmentWriter(writer.new_folder("seg"))
    ids = writer.new_pages(pages)
    segment.append(PageRows(np.asarray(ids), np.ones(pages, np.int64),
                            {"codes": np.zeros(pages, np.uint8)}))  # fmt: skip
    try:
        made = segment.finish()
    except OSError:
        segment.abandon()
        raise
    number = writer.new_document()
    writer.commit(
        Change(
            "add",
            [NewSegment(segment.name, made.digest, None, pages, segment.page_ids)],
            [DocumentRow(number, path, "0", 0.0, pages, {})],
            [(page, number, i) for i, page in enumerate(ids)],
        )
    )


def test_a_change_that_fails_half_way_leaves_nothing(folder):
    with Writer(folder) as writer:
        add_one(writer)
        before = writer.snapshot()
        number = writer.new_document()
        twice = [DocumentRow(number, p, "0", 0.0, 1, {}) for p in ("b", "b")]
        with pytest.raises(FormatError):
            writer.commit(Change("bad", documents=twice, remove_documents=[0]))
        assert writer.snapshot() == before
        assert [d.path for d in writer.catalog.documents()] == ["a"]


def test_folders_that_no_row_names_are_removed_by_the_next_writer(folder):
    with Writer(folder) as writer:
        add_one(writer)
        orphan = writer.new_folder("seg")
        orphan.append("codes", np.zeros(3, np.uint8))
        orphan.finish({})
        kept = {s.name for s in writer.snapshot().segments}
    assert orphan.folder.exists()
    (folder / "notes").mkdir()  # not ours
    with Writer(folder):
        pass
    assert {p.name for p in folder.iterdir() if p.is_dir()} == kept | {"notes"}


def test_page_and_document_numbers_are_never_given_twice(folder):
    for _ in range(3):
        with Writer(folder) as writer:
            add_one(writer, path="a")
            writer.commit(Change("remove", remove_documents=[writer.new_document() - 1]))
    with Writer(folder) as writer:
        pages = [p for (p,) in writer.catalog.query("SELECT page FROM pages ORDER BY page")]
        assert pages == list(range(6))
        assert writer.new_pages(1) == range(6, 7)


def test_a_full_disk_is_an_os_error_and_nothing_is_committed(folder, monkeypatch):
    def full(self) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    with Writer(folder) as writer:
        monkeypatch.setattr(array_folder._ArrayFile, "finish", full)
        with pytest.raises(OSError, match="No space"):
            add_one(writer)
        assert writer.snapshot().segments == ()
